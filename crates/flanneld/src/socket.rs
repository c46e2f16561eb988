//! The status socket: where it is, and taking it.
//!
//! `flannelctl` and the CNI plugin know a daemon by its subnet file, so the socket's place follows from that
//! ([`socket_of`]). Two daemons on one host have two subnet files, and so two sockets.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use fabric::status::socket_of;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW};

/// `sizeof(sockaddr_un.sun_path)` less the NUL at its end.
const LONGEST_PATH: usize = 107;

/// Where the daemon with this subnet file has its socket.
pub fn path_for(subnet_file: &Path) -> PathBuf {
    let subnet_file = std::path::absolute(subnet_file).unwrap_or_else(|_| subnet_file.to_owned());
    match subnet_file.to_str() {
        Some(text) => PathBuf::from(socket_of(text)),
        None => {
            let mut path = subnet_file.into_os_string();
            path.push(".sock");
            PathBuf::from(path)
        }
    }
}

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A daemon answers there.
    #[error("{path}: another flanneld is running with this subnet file", path = path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket is there; it is left alone.
    #[error("{path}: is not a socket", path = path.display())]
    NotASocket {
        /// What was found.
        path: PathBuf,
    },
    /// Longer than the kernel takes.
    #[error("{path}: expected a path of at most {LONGEST_PATH} bytes", path = path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {step} {path}: {source}", path = path.display())]
    System {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// Which file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Device number.
    pub device: u64,
    /// Inode number on it.
    pub inode: u64,
}

impl Identity {
    fn of(found: &fs::Metadata) -> Identity {
        Identity {
            device: found.dev(),
            inode: found.ino(),
        }
    }
}

/// The socket; removed when dropped, unless another daemon has taken its place.
#[derive(Debug)]
pub struct StatusSocket {
    path: PathBuf,
    identity: Identity,
}

/// Goes on listening on a socket that was handed over, if the path still leads to it.
pub fn take_over(
    path: &Path,
    listener: UnixListener,
    identity: Identity,
) -> Option<(UnixListener, StatusSocket)> {
    let socket = StatusSocket {
        path: path.to_owned(),
        identity,
    };
    if !socket.is_there() {
        return None;
    }
    listener.set_nonblocking(true).ok()?;
    Some((listener, socket))
}

/// Takes the socket at `path`, mode 0600, as tokio wants it: it does not block. One that a dead daemon left behind is replaced.
///
/// May block, where the directory's file system or whoever listens there does.
pub fn take(path: &Path) -> Result<(UnixListener, StatusSocket), SocketError> {
    let at = |step: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| SocketError::System { step, path, source }
    };
    // Bound under another name and moved into place: at no moment is it open to others, and none finds it half made.
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let temporary = PathBuf::from(name);
    if temporary.as_os_str().len() > LONGEST_PATH {
        return Err(SocketError::TooLong {
            path: path.to_owned(),
        });
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => {
                return Err(SocketError::Taken {
                    path: path.to_owned(),
                });
            }
            // Nobody listens: it is a dead daemon's.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at("connect to", path)(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(directory) = path.parent() {
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(directory)
                    .map_err(at("make directory", directory))?;
            }
        }
        Err(error) => return Err(at("look at", path)(error)),
    }
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at("remove", &temporary)(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary).map_err(at("bind", &temporary))?;
    let moved = listener
        .set_nonblocking(true)
        .and_then(|()| fs::set_permissions(&temporary, Permissions::from_mode(0o600)))
        .map_err(at("set the mode of", &temporary))
        .and_then(|()| fs::rename(&temporary, path).map_err(at("replace", path)));
    if let Err(error) = moved {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    let found = fs::symlink_metadata(path).map_err(at("look at", path))?;
    Ok((
        listener,
        StatusSocket {
            path: path.to_owned(),
            identity: Identity::of(&found),
        },
    ))
}

impl StatusSocket {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the file in its place, for whoever goes on listening there.
    pub fn hand_over(mut self) -> Identity {
        // An empty path leads nowhere.
        self.path = PathBuf::new();
        self.identity
    }

    /// Looks whether the path still leads to it, and if so leaves the time there as a sign of life (its modification time), which
    /// tells who asks and gets no answer since when that is. For a thread that may block.
    pub fn look(&self) -> impl FnOnce() -> bool + Send + 'static {
        let (path, identity) = (self.path.clone(), self.identity);
        move || {
            let is_there = is_at(&path, identity);
            if is_there {
                // Where the time cannot be left, who asks is told less.
                let _ = rustix::fs::utimensat(CWD, &path, &NOW, AtFlags::SYMLINK_NOFOLLOW);
            }
            is_there
        }
    }

    fn is_there(&self) -> bool {
        is_at(&self.path, self.identity)
    }
}

const NOW: Timestamps = {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    Timestamps {
        last_access: now,
        last_modification: now,
    }
};

fn is_at(path: &Path, identity: Identity) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| Identity::of(&found) == identity)
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_when_taken_then_for_its_owner_alone_and_gone_with_the_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/s.sock");
        let (listener, socket) = take(&path).unwrap();
        assert_eq!(socket.path(), path);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "nothing is left beside it"
        );
        assert!(matches!(take(&path), Err(SocketError::Taken { .. })));
        let old = fs::File::open(folder.path())
            .unwrap()
            .metadata()
            .unwrap()
            .modified()
            .unwrap();
        assert!(socket.look()() && socket.look()());
        assert!(fs::symlink_metadata(&path).unwrap().modified().unwrap() >= old);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn socket_when_a_dead_daemon_left_it_then_replaced_and_when_it_is_anothers_now_then_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        drop(UnixListener::bind(&path).unwrap());
        fs::write(folder.path().join("s.sock.new"), "left by a crash").unwrap();
        let (_listener, first) = take(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!first.look()());
        let other = UnixListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists(), "it is another's");
        drop(other);
    }

    #[test]
    fn socket_when_handed_over_then_it_stays_and_is_taken_up_only_where_it_still_leads_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let (listener, socket) = take(&path).unwrap();
        let identity = socket.hand_over();
        assert!(path.exists());
        let strange = Identity {
            inode: identity.inode + 1,
            ..identity
        };
        assert!(take_over(&path, listener.try_clone().unwrap(), strange).is_none());
        listener.set_nonblocking(false).unwrap();
        let (listener, socket) = take_over(&path, listener, identity).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn socket_when_something_else_is_in_its_place_or_the_path_is_too_long_then_said_so() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.sock");
        fs::write(&file, "x").unwrap();
        assert!(matches!(take(&file), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read(&file).unwrap(), b"x");
        let below = take(&file.join("s.sock")).unwrap_err();
        assert!(matches!(below, SocketError::System { .. }), "{below}");
        let room = LONGEST_PATH - folder.path().as_os_str().len() - 1 - ".new".len();
        assert!(take(&folder.path().join("x".repeat(room))).is_ok());
        let long = take(&folder.path().join("x".repeat(room + 1)));
        assert!(matches!(long, Err(SocketError::TooLong { .. })));
        assert_eq!(
            path_for(Path::new("/run/flannel/subnet.env")),
            PathBuf::from(socket_of("/run/flannel/subnet.env"))
        );
        let relative = path_for(Path::new("subnet.env"));
        assert!(relative.is_absolute(), "{relative:?}");
    }
}
