//! Network namespaces by path: opening, comparing, and running code inside without moving the caller.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::LinkNameSpaceType;

const NSFS_MAGIC: u64 = 0x6e73_6673;
/// `NS_GET_NSTYPE` of `linux/nsfs.h`: which kind of namespace a descriptor stands for.
const NS_GET_NSTYPE: u64 = 0xb703;
/// `SIOCGSKNS` of `linux/sockios.h`: a descriptor of a socket's network namespace.
const SIOCGSKNS: u64 = 0x894c;

/// Why a namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// There is nothing at the path: a namespace that is gone.
    #[error("network namespace {} does not exist", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// There is something, but not a network namespace (an unmounted name leaves an empty file).
    #[error("{} is not a network namespace", path.display())]
    NotANamespace {
        /// What was looked at.
        path: PathBuf,
    },
    /// It cannot be opened or entered.
    #[error("network namespace {}: cannot {action}: {errno}", path.display())]
    Refused {
        /// Which namespace.
        path: PathBuf,
        /// "open" or "enter".
        action: &'static str,
        /// The system's reason.
        errno: Errno,
    },
    /// No thread could be started to enter it, or it panicked.
    #[error("network namespace {}: no thread to enter it", path.display())]
    Thread {
        /// Which namespace.
        path: PathBuf,
    },
}

/// Which namespace a path or descriptor leads to, whatever its name: device and inode of nsfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// Of what a path or descriptor of a namespace leads to.
    pub fn of(status: &rustix::fs::Stat) -> Identity {
        Identity {
            device: status.st_dev,
            inode: status.st_ino,
        }
    }
}

/// An open network namespace; it lives at least as long as this.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    path: PathBuf,
    identity: Identity,
}

impl Netns {
    /// Opens a namespace by path, such as `/run/netns/a` or `/proc/1/ns/net`.
    pub fn open(path: impl AsRef<Path>) -> Result<Netns, NetnsError> {
        let path = path.as_ref().to_path_buf();
        // Whatever the path leads to: a FIFO is not waited for.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(NetnsError::Missing { path }),
            Err(errno) => {
                return Err(NetnsError::Refused {
                    path,
                    action: "open",
                    errno,
                });
            }
        };
        let refused = |errno| NetnsError::Refused {
            path: path.clone(),
            action: "open",
            errno,
        };
        let filesystem = rustix::fs::fstatfs(&fd).map_err(refused)?;
        if filesystem.f_type as u64 != NSFS_MAGIC || !is_network(&fd) {
            return Err(NetnsError::NotANamespace { path });
        }
        let identity = Identity::of(&rustix::fs::fstat(&fd).map_err(refused)?);
        Ok(Netns { fd, path, identity })
    }

    /// The calling thread's own.
    ///
    /// Asked of a new socket, which is in it: the kernel makes half a dozen inodes for a new process's path in `/proc`.
    pub fn current() -> Result<Netns, NetnsError> {
        const PATH: &str = "/proc/thread-self/ns/net";
        let Some(fd) = of_new_socket() else {
            return Netns::open(PATH);
        };
        let path = PathBuf::from(PATH);
        match rustix::fs::fstat(&fd) {
            Ok(status) => Ok(Netns {
                fd,
                path,
                identity: Identity::of(&status),
            }),
            Err(errno) => Err(NetnsError::Refused {
                path,
                action: "open",
                errno,
            }),
        }
    }

    /// Which namespace it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` inside, on a thread of its own that ends with it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        let thread = || NetnsError::Thread {
            path: self.path.clone(),
        };
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("netns".into())
                .spawn_scoped(scope, || {
                    self.enter()?;
                    Ok(work())
                })
                .map_err(|_| thread())?
                .join()
                .map_err(|_| thread())?
        })
    }

    /// Moves the calling thread inside, for good.
    pub fn enter(&self) -> Result<(), NetnsError> {
        rustix::thread::move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network)).map_err(
            |errno| NetnsError::Refused {
                path: self.path.clone(),
                action: "enter",
                errno,
            },
        )
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A descriptor of the calling thread's namespace by way of a socket in it; needs Linux 4.9 and `CAP_NET_ADMIN`.
fn of_new_socket() -> Option<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok()?;
    // SAFETY: SIOCGSKNS takes no argument and touches no memory of ours; the descriptor is open.
    let fd = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS as _) };
    // SAFETY: what the call returned is new, close-on-exec, and nobody else's.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// True also where the kernel is too old to say (before 4.11): entering will tell.
fn is_network(fd: &OwnedFd) -> bool {
    // SAFETY: NS_GET_NSTYPE takes no argument and touches no memory of ours; the descriptor is open.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as _) };
    kind < 0 || kind == libc::CLONE_NEWNET
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_when_not_a_network_namespace_then_says_which() {
        assert!(matches!(
            Netns::open("/nonexistent/x"),
            Err(NetnsError::Missing { .. })
        ));
        assert!(matches!(
            Netns::open("/etc/passwd"),
            Err(NetnsError::NotANamespace { .. })
        ));
        assert!(matches!(
            Netns::open("/proc/self/ns/uts"),
            Err(NetnsError::NotANamespace { .. })
        ));
    }

    #[test]
    fn run_when_in_own_namespace_then_caller_stays() {
        let here = Netns::current().unwrap();
        let inside = here.run(|| Netns::current().unwrap().identity()).unwrap();
        assert_eq!(inside, here.identity());
        assert_eq!(
            Netns::open("/proc/thread-self/ns/net").unwrap().identity(),
            here.identity()
        );
        here.enter().unwrap();
    }

    #[test]
    fn open_when_it_is_a_pipe_then_not_waited_for_and_what_is_open_is_no_childs() {
        let pipe = std::env::temp_dir().join(format!("kernel-netns-{}", std::process::id()));
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::RUSR).unwrap();
        let opened = Netns::open(&pipe);
        std::fs::remove_file(&pipe).unwrap();
        assert!(matches!(opened, Err(NetnsError::NotANamespace { .. })));
        let below = "/etc/passwd/x";
        assert!(matches!(Netns::open(below), Err(NetnsError::Missing { path }) if path == Path::new(below)));
        let here = Netns::open("/proc/thread-self/ns/net").unwrap();
        assert_eq!(here.path(), Path::new("/proc/thread-self/ns/net"));
        let flags = rustix::io::fcntl_getfd(here.as_fd()).unwrap();
        assert_eq!(flags, rustix::io::FdFlags::CLOEXEC);
    }
}
