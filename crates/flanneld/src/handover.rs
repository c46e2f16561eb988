//! Listening sockets on their way to the next program in this process: whoever asks during a reload waits, and is not refused.

use std::ffi::OsStr;
use std::fmt::Write;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use kernel::inherit::{keep_over_exec, take_listener};
use tracing::warn;

use crate::socket::Identity;

/// Tells the next program which descriptors are meant for it: our process id, so that children do not take it for theirs, then
/// `health=FD` and `status=FD@DEVICE:INODE`.
pub const VARIABLE: &str = "FLANNELD_HANDOVER";

/// What is handed over.
#[derive(Debug, Default)]
pub struct Handover {
    /// The health port.
    pub health: Option<TcpListener>,
    /// The status socket, and which file leads to it.
    pub status: Option<(UnixListener, Identity)>,
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
        Ok(text)
    }

    /// Nobody came to take them: they are ours again.
    pub fn stay(&self) {
        let health = self.health.as_ref().map(AsFd::as_fd);
        let status = self.status.as_ref().map(|(status, _)| status.as_fd());
        for descriptor in [health, status].into_iter().flatten() {
            if let Err(failure) = keep_over_exec(descriptor, false) {
                warn!("a listening socket cannot be kept from children: {failure}");
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
            _ => return Err(odd()),
        }
        Ok(())
    }
}
