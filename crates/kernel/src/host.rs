//! What an engine needs of a host: observe it, hear of changes, change it. [`Kernel`](crate::Kernel) is the real one,
//! [`Memory`](crate::memory::Memory) one for tests.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use fabric::object::{Key, LinkName, Objects, Op};
use ipnet::IpNet;

use crate::nl::NetlinkError;

/// Which part of the kernel's state is mirrored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interest {
    /// Links that are mirrored with their addresses, and, where they are vxlan devices, their permanent neighbours and
    /// forwarding entries. The underlay's link belongs here too.
    pub links: Vec<LinkName>,
    /// Routes of the main table with a destination inside any of these are mirrored, whoever made them.
    pub networks: Vec<IpNet>,
}

/// How much to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Everything of interest.
    All,
    /// One link and what hangs on it.
    Link(LinkName),
}

impl Scope {
    /// The narrowest scope that holds both.
    #[must_use]
    pub fn and(self, other: Scope) -> Scope {
        if self == other { self } else { Scope::All }
    }
}

/// An object that is not as it was when the engine last looked, by somebody else's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    /// Which object.
    pub key: Key,
    /// Netlink port id of who did it (mostly its process id); `None` when it was the kernel itself, or does not say.
    pub by: Option<u32>,
}

/// What happened since the last time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drained {
    /// Mirrored objects that changed, each once.
    pub changed: Vec<Changed>,
    /// Something may have changed without a word: observe this scope before trusting the mirror.
    pub resync: Option<Scope>,
    /// A link of interest that is not a vxlan device, an address of one, or a main-table route outside the networks changed:
    /// choices that rest on those must be made anew.
    pub underlay_changed: bool,
}

impl Drained {
    /// Nothing happened.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.resync.is_none() && !self.underlay_changed
    }

    /// Asks for a scope to be observed.
    pub(crate) fn want(&mut self, scope: Scope) {
        self.resync = Some(self.resync.map_or(scope, |wanted| wanted.and(scope)));
    }
}

/// How to apply; encoding details that make no difference to the objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ApplyOptions {
    /// Make routes with a gateway by next hop object where the kernel has them: many routes through one link are then
    /// linear rather than quadratic work for it.
    pub nexthop_objects: bool,
}

/// What became of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// There was nothing to do: what was to be added is there and equal, what was to be removed is not there.
    Already,
    /// Refused. Boxed, because there is one outcome for every operation and hardly ever a refusal.
    Failed(Box<NetlinkError>),
}

impl Outcome {
    /// The host is as the operation wants it.
    pub fn is_ok(&self) -> bool {
        !matches!(self, Outcome::Failed(_))
    }

    /// Why it was refused.
    pub fn error(&self) -> Option<&NetlinkError> {
        match self {
            Outcome::Failed(error) => Some(error),
            _ => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Done => f.write_str("done"),
            Outcome::Already => f.write_str("already"),
            Outcome::Failed(error) => error.fmt(f),
        }
    }
}

/// Why the host cannot be observed or listened to; single operations fail by [`Outcome`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// A netlink conversation failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// A host whose state is mirrored and changed; what the engine's loop is written against.
pub trait Host {
    /// Sets what is mirrored; observe [`Scope::All`] afterwards.
    fn set_interest(&mut self, interest: Interest);

    /// Readable when there is something to [drain](Host::drain).
    fn monitor_fd(&self) -> BorrowedFd<'_>;

    /// There is something to drain although the descriptor may not be readable: it was read on another occasion.
    fn has_news(&self) -> bool;

    /// Reads a part of the state into the mirror.
    fn observe(&mut self, scope: Scope) -> Result<(), KernelError>;

    /// Reads what happened since the last call into the mirror, without waiting.
    fn drain(&mut self) -> Result<Drained, KernelError>;

    /// The mirror.
    fn objects(&self) -> &Objects;

    /// Applies operations in order, one outcome for each; the mirror shows what succeeded.
    fn apply(&mut self, ops: &[Op], how: ApplyOptions) -> Vec<Outcome>;

    /// For each address the link through which it is reached without a gateway.
    fn direct(&mut self, peers: &[IpAddr]) -> Result<Vec<Option<LinkName>>, KernelError>;

    /// Packs the mirror, after many single changes.
    fn compact(&mut self);
}
