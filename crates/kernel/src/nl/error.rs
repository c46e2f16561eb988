//! What can go wrong in a netlink conversation.

use std::borrow::Cow;
use std::fmt;
use std::io;

use rustix::io::Errno;

/// Why a conversation failed, as far as a caller decides by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The kernel refused the request; `errno` and `text` are its own.
    Refused,
    /// Messages were lost because the receive buffer was full (`ENOBUFS`): what was missed must be dumped anew.
    Overrun,
    /// A datagram was longer than the buffer (`MSG_TRUNC`); the buffer has been grown, the datagram is lost.
    Truncated,
    /// No reply came within the receive timeout.
    Timeout,
    /// Every attempt at a dump was interrupted by changes (`NLM_F_DUMP_INTR`).
    Interrupted,
    /// A message that is not netlink's format, or too large to be sent.
    Malformed,
    /// A system call on the socket failed.
    Socket,
}

/// A failed netlink request, with the kernel's own words where it gave any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetlinkError {
    /// What was tried, e.g. `add route 10.1.2.0/24`.
    pub verb: Cow<'static, str>,
    /// The positive error number.
    pub errno: i32,
    /// Extended-ack text of the kernel, or our own where `fault` is not [`Fault::Refused`]; may be empty.
    pub text: Box<str>,
    /// Byte offset in the request of the attribute the kernel objects to (`NLMSGERR_ATTR_OFFS`).
    pub offset: Option<u32>,
    /// Which kind of failure this is.
    pub fault: Fault,
}

impl NetlinkError {
    pub(crate) fn new(
        verb: &'static str,
        fault: Fault,
        errno: Errno,
        text: impl Into<Box<str>>,
    ) -> NetlinkError {
        NetlinkError {
            verb: Cow::Borrowed(verb),
            errno: errno.raw_os_error(),
            text: text.into(),
            offset: None,
            fault,
        }
    }

    /// A refusal with the negative error number the kernel sends.
    pub(crate) fn refused(verb: &'static str, code: i32) -> NetlinkError {
        NetlinkError {
            verb: Cow::Borrowed(verb),
            errno: code.saturating_neg(),
            text: Box::default(),
            offset: None,
            fault: Fault::Refused,
        }
    }

    /// The same failure, said of `what`.
    #[must_use]
    pub fn of(mut self, what: impl fmt::Display) -> NetlinkError {
        self.verb = Cow::Owned(what.to_string());
        self
    }

    /// The kernel refused with exactly this error number.
    pub fn is(&self, errno: Errno) -> bool {
        self.fault == Fault::Refused && self.errno == errno.raw_os_error()
    }

    /// The object to be made exists (`EEXIST`).
    pub fn is_exists(&self) -> bool {
        self.is(Errno::EXIST)
    }

    /// The object to be removed, or the link it hangs on, is not there (`ENOENT`, `ESRCH`, `ENODEV`, `EADDRNOTAVAIL`).
    pub fn is_absent(&self) -> bool {
        [Errno::NOENT, Errno::SRCH, Errno::NODEV, Errno::ADDRNOTAVAIL]
            .iter()
            .any(|errno| self.is(*errno))
    }

    /// The kernel does not know this kind of request.
    pub fn is_unsupported(&self) -> bool {
        self.is(Errno::OPNOTSUPP)
    }
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No system call was interrupted, and "Interrupted system call" would send whoever reads it after signals.
        if self.fault == Fault::Interrupted {
            return write!(f, "{}: {}", self.verb, self.text);
        }
        write!(f, "{}: {}", self.verb, io::Error::from_raw_os_error(self.errno))?;
        if !self.text.is_empty() {
            write!(f, ": {}", self.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for NetlinkError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_when_a_dump_was_interrupted_then_says_by_what_and_names_no_system_call() {
        let text = "interrupted by changes 10 times";
        let interrupted = NetlinkError::new("list links", Fault::Interrupted, Errno::INTR, text);
        assert_eq!(
            interrupted.to_string(),
            "list links: interrupted by changes 10 times"
        );
        let refused = NetlinkError::refused("list links", -libc::ENOMEM).to_string();
        assert!(
            refused.starts_with("list links: Cannot allocate memory"),
            "{refused}"
        );
    }
}
