//! Listening sockets and locks on their way to the next program in this process: whoever asks during a reload waits, and is not
//! refused, and nobody else gets our devices.

use std::ffi::OsStr;
use std::fmt::Write;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use kernel::inherit::{keep_over_exec, take_file, take_listener};
use tracing::warn;

use crate::socket::Identity;

/// Tells the next program which descriptors are meant for it: our process id, so that children do not take it for theirs, then
/// `health=FD`, `status=FD@DEVICE:INODE` and, for each device that is kept, `lock=FD`.
pub const VARIABLE: &str = "FLANNELD_HANDOVER";

/// What is handed over.
#[derive(Debug, Default)]
pub struct Handover {
    /// The health port.
    pub health: Option<TcpListener>,
    /// The status socket, and which file leads to it.
    pub status: Option<(UnixListener, Identity)>,
    /// The locks of the devices.
    pub locks: Vec<OwnedFd>,
}

impl Handover {
    /// Makes the descriptors outlive `execve`; the value of [`VARIABLE`] that names them.
    pub fn leave(&self, pid: u32) -> io::Result<String> {
        let mut text = pid.to_string();
        // Writing to a String cannot fail.
        if let Some(health) = &self.health {
            keep_over_exec(health, true)?;
            let _ = write!(text, " health={}", health.as_raw_fd());
        }
        if let Some((status, Identity { device, inode })) = &self.status {
            keep_over_exec(status, true)?;
            let _ = write!(text, " status={}@{device}:{inode}", status.as_raw_fd());
        }
        for lock in &self.locks {
            keep_over_exec(lock, true)?;
            let _ = write!(text, " lock={}", lock.as_raw_fd());
        }
        Ok(text)
    }

    /// Nobody came to take them: they are ours again.
    pub fn stay(&self) {
        let health = self.health.as_ref().map(AsFd::as_fd);
        let status = self.status.as_ref().map(|(status, _)| status.as_fd());
        let locks = self.locks.iter().map(AsFd::as_fd);
        for descriptor in [health, status].into_iter().flatten().chain(locks) {
            if let Err(failure) = keep_over_exec(descriptor, false) {
                warn!("a descriptor cannot be kept from children: {failure}");
            }
        }
    }

    /// Takes what a predecessor left; what cannot be taken is opened anew by whoever needs it.
    pub fn take(variable: Option<&OsStr>, pid: u32) -> Handover {
        let mut handover = Handover::default();
        let mut words = variable.and_then(OsStr::to_str).unwrap_or("").split(' ');
        if words.next() != Some(pid.to_string().as_str()) {
            return handover;
        }
        for word in words {
            if let Err(failure) = handover.take_one(word) {
                warn!("{VARIABLE}: {word:?}: {failure}");
            }
        }
        handover
    }

    fn take_one(&mut self, word: &str) -> io::Result<()> {
        let odd = || io::Error::new(io::ErrorKind::InvalidInput, "not understood");
        let take =
            |number: &str| -> io::Result<OwnedFd> { take_listener(number.parse().map_err(|_| odd())?) };
        match word.split_once('=') {
            Some(("health", number)) => self.health = Some(take(number)?.into()),
            Some(("status", rest)) => {
                let (number, file) = rest.split_once('@').ok_or_else(odd)?;
                let (device, inode) = file.split_once(':').ok_or_else(odd)?;
                let identity = Identity {
                    device: device.parse().map_err(|_| odd())?,
                    inode: inode.parse().map_err(|_| odd())?,
                };
                self.status = Some((take(number)?.into(), identity));
            }
            Some(("lock", number)) => self.locks.push(take_file(number.parse().map_err(|_| odd())?)?),
            _ => return Err(odd()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::fd::IntoRawFd;

    use super::*;

    fn is_kept(descriptor: impl AsFd) -> bool {
        !rustix::io::fcntl_getfd(descriptor)
            .unwrap()
            .contains(rustix::io::FdFlags::CLOEXEC)
    }

    #[test]
    fn handover_when_left_then_taken_once_by_this_process_only() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, file) = (folder.path().join("s"), folder.path().join("lock"));
        let handover = Handover {
            health: Some(TcpListener::bind("127.0.0.1:0").unwrap()),
            status: Some((
                UnixListener::bind(&socket).unwrap(),
                Identity { device: 7, inode: 9 },
            )),
            locks: vec![std::fs::File::create(&file).unwrap().into()],
        };
        let all = |handover: &Handover| {
            let health = is_kept(handover.health.as_ref().unwrap());
            [
                health,
                is_kept(&handover.status.as_ref().unwrap().0),
                is_kept(&handover.locks[0]),
            ]
        };
        assert_eq!(all(&handover), [false; 3]);
        let text = OsString::from(handover.leave(41).unwrap());
        assert_eq!(all(&handover), [true; 3]);
        handover.stay();
        assert_eq!(all(&handover), [false; 3], "nobody came");
        let refused = Handover::take(Some(&text), 41);
        assert!(
            refused.health.is_none() && refused.locks.is_empty(),
            "they are somebody's"
        );
        handover.leave(41).unwrap();
        let address = handover.health.as_ref().unwrap().local_addr().unwrap();
        // As over an exec: nobody owns them.
        let _ = handover.health.map(IntoRawFd::into_raw_fd);
        let _ = handover.status.map(|(status, _)| status.into_raw_fd());
        let _: Vec<i32> = handover.locks.into_iter().map(IntoRawFd::into_raw_fd).collect();
        let others = Handover::take(Some(&text), 42);
        assert!(others.health.is_none() && others.status.is_none() && others.locks.is_empty());
        assert!(Handover::take(None, 41).health.is_none());
        let taken = Handover::take(Some(&text), 41);
        assert_eq!(taken.health.as_ref().unwrap().local_addr().unwrap(), address);
        let (_, identity) = taken.status.as_ref().unwrap();
        assert_eq!((identity.device, identity.inode, taken.locks.len()), (7, 9, 1));
        assert_eq!(all(&taken), [false; 3]);
    }

    #[test]
    fn handover_when_it_is_not_understood_then_what_is_not_is_left() {
        for word in [
            "",
            "health",
            "health=x",
            "status=3",
            "status=3@7",
            "status=3@x:9",
            "status=3@7:x",
            "lock=x",
            "other=3",
        ] {
            let error = Handover::default().take_one(word).unwrap_err();
            assert_eq!(error.to_string(), "not understood", "{word}");
        }
        let text = OsString::from("41 health=-1 lock=-1");
        let taken = Handover::take(Some(&text), 41);
        assert!(taken.health.is_none() && taken.locks.is_empty());
    }
}
