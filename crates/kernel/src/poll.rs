//! Waiting for several file descriptors at once, and waking who waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Waits until one of the descriptors is readable or has failed, or the time is over. Interrupted waits go on.
///
/// Says of each descriptor whether it is readable.
pub fn wait(fds: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<Vec<bool>> {
    let until = Instant::now() + timeout;
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut polled, Some(&left)) {
            Ok(_) => return Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Wakes a thread that waits for its descriptor; any number of calls before the thread looks are one.
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// A silent one.
    pub fn new() -> io::Result<Waker> {
        Ok(Waker(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes the descriptor readable.
    pub fn wake(&self) {
        // The only failure is a counter at its maximum, and then it is readable already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Makes it silent again.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }

    /// What becomes readable.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_when_woken_then_only_that_descriptor_is_readable_until_cleared() {
        let (a, b) = (Waker::new().unwrap(), Waker::new().unwrap());
        b.wake();
        b.wake();
        assert_eq!(
            wait(&[a.fd(), b.fd()], Duration::from_secs(60)).unwrap(),
            [false, true]
        );
        b.clear();
        assert_eq!(wait(&[a.fd(), b.fd()], Duration::ZERO).unwrap(), [false, false]);
    }
}
