//! Descriptors that a predecessor in the same process left open over `execve`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{FileType, fstat};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::sockopt::socket_acceptconn;

/// Takes a listening socket by its number. From now on it is closed on exec, like any other.
///
/// Whatever a Rust program opens is closed on exec: a descriptor that is not was left here by a predecessor and is nobody's yet.
/// Any other is refused, and so is a second taking.
///
/// # Errors
/// It is nobody's to take, or something else.
pub fn take_listener(number: RawFd) -> io::Result<OwnedFd> {
    take(number, |descriptor| {
        if socket_acceptconn(descriptor)? {
            Ok(())
        } else {
            Err(refusal("not a listening socket"))
        }
    })
}

/// Takes a regular file by its number, as [`take_listener`] does a socket.
///
/// # Errors
/// It is nobody's to take, or something else.
pub fn take_file(number: RawFd) -> io::Result<OwnedFd> {
    take(number, |descriptor| {
        let mode = fstat(descriptor)?.st_mode;
        if FileType::from_raw_mode(mode) == FileType::RegularFile {
            Ok(())
        } else {
            Err(refusal("not a regular file"))
        }
    })
}

fn refusal(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

fn take(number: RawFd, check: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(refusal("not a descriptor that is handed over"));
    }
    // SAFETY: the borrow ends below, before anybody could own the number; one that is not open makes the calls on it fail.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    if fcntl_getfd(borrowed)?.contains(FdFlags::CLOEXEC) {
        return Err(refusal("the descriptor is somebody's"));
    }
    check(borrowed)?;
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and it was not closed on exec until the line above, so that nothing in this program owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes what whoever started this process left open beside standard input, output and error, and nobody has taken; how many
/// that was. What is closed on exec was opened by this program and stays.
///
/// # Errors
/// The process's own descriptors cannot be listed.
pub fn close_strays() -> io::Result<usize> {
    let mut closed = 0;
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        // The folder's own is closed on exec.
        if let Some(Ok(stray)) = number.map(|number| take(number, |_| Ok(()))) {
            drop(stray);
            closed += 1;
        }
    }
    Ok(closed)
}

/// Leaves a descriptor open over the next `execve`, or no more.
pub fn keep_over_exec(descriptor: impl AsFd, keep: bool) -> io::Result<()> {
    let flags = if keep { FdFlags::empty() } else { FdFlags::CLOEXEC };
    Ok(fcntl_setfd(descriptor, flags)?)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    #[test]
    fn take_listener_when_it_is_somebodys_or_nobodys_or_does_not_listen_refuses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(take_listener(listener.as_raw_fd()).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        keep_over_exec(&file, true).unwrap();
        assert!(take_listener(file.as_raw_fd()).is_err());
        assert!(
            take_file(file.as_raw_fd()).is_err(),
            "a device is no regular file"
        );
        assert!(
            [-1, 0, 1, 2, 1 << 20]
                .into_iter()
                .all(|n| take_listener(n).is_err())
        );
    }

    #[test]
    fn take_listener_when_it_was_left_gives_it_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        keep_over_exec(&listener, true).unwrap();
        let number = listener.into_raw_fd();
        let taken = TcpListener::from(take_listener(number).unwrap());
        assert_eq!(taken.local_addr().unwrap(), address);
        assert!(take_listener(number).is_err());
    }
}
