//! Waiting for several file descriptors at once, and waking who waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
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
pub struct Waker {
    fd: OwnedFd,
    /// Spares the system call where there is nothing to clear.
    ///
    /// INVARIANT: set after the descriptor was made readable and taken back before it is read, so that a descriptor never stays
    /// readable with this unset: the waiting thread would go round and round.
    is_raised: AtomicBool,
}

impl Waker {
    /// A silent one.
    pub fn new() -> io::Result<Waker> {
        Ok(Waker {
            fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            is_raised: AtomicBool::new(false),
        })
    }

    /// Makes the descriptor readable.
    pub fn wake(&self) {
        // The only failure is a counter at its maximum, and then it is readable already.
        let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
        self.is_raised.store(true, Ordering::SeqCst);
    }

    /// Makes it silent again.
    pub fn clear(&self) {
        if self.is_raised.swap(false, Ordering::SeqCst) {
            let _ = rustix::io::read(&self.fd, &mut [0_u8; 8]);
        }
    }

    /// What becomes readable.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
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

    #[test]
    fn clear_when_others_wake_meanwhile_then_no_descriptor_stays_readable_unseen() {
        let waker = Waker::new().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..20_000).for_each(|_| waker.wake()));
            }
            for _ in 0..20_000 {
                waker.clear();
            }
        });
        waker.clear();
        assert_eq!(wait(&[waker.fd()], Duration::ZERO).unwrap(), [false]);
        waker.wake();
        assert_eq!(wait(&[waker.fd()], Duration::ZERO).unwrap(), [true]);
    }
}
