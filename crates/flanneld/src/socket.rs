//! The status socket: where it is, and taking it.
//!
//! `flannelctl` and the CNI plugin know a daemon by its subnet file, so the socket's place follows from that
//! ([`socket_of`]). Two daemons on one host have two subnet files, and so two sockets.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::{Path, PathBuf};

use fabric::status::socket_of;
use tokio::net::UnixListener;

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
///
/// Must be called inside a tokio runtime.
pub fn take_over(
    path: &Path,
    listener: StdListener,
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
    Some((UnixListener::from_std(listener).ok()?, socket))
}

/// Takes the socket at `path`, mode 0600. One that a dead daemon left behind is replaced.
///
/// Must be called inside a tokio runtime.
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
    let moved = fs::set_permissions(&temporary, Permissions::from_mode(0o600))
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

    fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| Identity::of(&found) == self.identity)
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = fs::remove_file(&self.path);
        }
    }
}
