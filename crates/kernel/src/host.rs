//! What an engine needs of a host: observe it, hear of changes, change it. [`Kernel`](crate::Kernel) is the real one,
//! [`Memory`](crate::memory::Memory) one for tests.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use fabric::object::{Key, LinkName, Objects, Op};
use ipnet::IpNet;

use crate::nl::NetlinkError;

/// Which part of the kernel's state is mirrored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interest {
    /// Links that are mirrored with their addresses, and, where their kind has them, their permanent neighbours and
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
    /// A link of interest that is not of a kind we make, or an address of one, changed: choices that rest on those must be made
    /// anew.
    pub underlay_changed: bool,
    /// A device of a kind that plans make has gone, whosever it was: what the kernel refused for its sake it may take now.
    pub device_gone: bool,
    /// Where the way to addresses outside the networks changed.
    pub ways: Ways,
}

/// Destinations to which packets may go another way than before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ways {
    /// These prefixes.
    some: BTreeSet<IpNet>,
    /// So many that they are not told apart.
    many: bool,
    /// A default route is among them.
    default: bool,
    /// Every destination, the default routes' included: a rule changed.
    all: bool,
}

impl Ways {
    /// More prefixes than this are not told apart: somebody's routing table is being filled.
    const MOST: usize = 256;

    /// Notes that the way to a prefix changed.
    pub fn note(&mut self, destination: IpNet) {
        self.default |= destination.prefix_len() == 0;
        if !self.many {
            self.some.insert(destination);
            self.many = self.some.len() > Ways::MOST;
        }
        if self.many {
            self.some.clear();
        }
    }

    /// Notes that any way may have changed.
    pub fn note_all(&mut self) {
        self.all = true;
    }

    /// Takes in what another holds.
    pub fn join(&mut self, other: &Ways) {
        other.some.iter().for_each(|net| self.note(*net));
        self.many |= other.many;
        self.default |= other.default;
        self.all |= other.all;
    }

    /// Whether none changed.
    pub fn is_empty(&self) -> bool {
        self.some.is_empty() && !self.many && !self.default && !self.all
    }

    /// Whether a default route may be among them.
    pub fn has_default(&self) -> bool {
        self.default || self.all
    }

    /// Whether the way to an address may have changed.
    pub fn covers(&self, address: IpAddr) -> bool {
        self.all || self.many || self.some.iter().any(|net| net.contains(&address))
    }
}

impl Drained {
    /// Nothing happened.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty()
            && self.resync.is_none()
            && !self.underlay_changed
            && !self.device_gone
            && self.ways.is_empty()
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

    /// Whether a link has a carrier; `None` where that is not known, the link itself included.
    fn has_carrier(&self, link: LinkName) -> Option<bool>;

    /// For each address the link through which it is reached without a gateway.
    fn direct(&mut self, peers: &[IpAddr]) -> Result<Vec<Option<LinkName>>, KernelError>;

    /// Packs the mirror, after many single changes.
    fn compact(&mut self);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_when_a_table_is_filled_then_they_cover_everything_and_hold_nothing() {
        let mut ways = Ways::default();
        assert!(ways.is_empty() && !ways.covers("192.0.2.1".parse().unwrap()));
        for n in 0..=Ways::MOST {
            ways.note(format!("198.18.{}.{}/32", n / 256, n % 256).parse().unwrap());
        }
        assert!(ways.some.is_empty() && ways.covers("192.0.2.1".parse().unwrap()) && !ways.has_default());
        ways.note("::/0".parse().unwrap());
        assert!(ways.has_default());
    }

    #[test]
    fn ways_when_one_route_changed_then_only_what_it_leads_to_is_covered() {
        let (mut ways, mut one) = (Ways::default(), Ways::default());
        one.note("192.0.2.0/24".parse().unwrap());
        ways.join(&one);
        assert!(ways.covers("192.0.2.9".parse().unwrap()) && !ways.covers("192.0.3.9".parse().unwrap()));
        assert!(!ways.has_default() && !ways.is_empty());
        one.note_all();
        ways.join(&one);
        assert!(ways.covers("192.0.3.9".parse().unwrap()) && ways.has_default());
    }

    #[test]
    fn ways_when_any_of_what_they_hold_is_there_then_they_are_not_empty() {
        let net: IpNet = "192.0.2.0/24".parse().unwrap();
        let kinds = [
            Ways {
                some: BTreeSet::from([net]),
                ..Ways::default()
            },
            Ways {
                many: true,
                ..Ways::default()
            },
            Ways {
                default: true,
                ..Ways::default()
            },
            Ways {
                all: true,
                ..Ways::default()
            },
        ];
        let outside = "203.0.113.1".parse().unwrap();
        assert_eq!(kinds.clone().map(|ways| ways.is_empty()), [false; 4]);
        assert_eq!(
            kinds.clone().map(|ways| ways.has_default()),
            [false, false, true, true]
        );
        assert_eq!(
            kinds.clone().map(|ways| ways.covers(outside)),
            [false, true, false, true]
        );
        for ways in kinds {
            let mut joined = Ways::default();
            joined.join(&ways);
            assert_eq!(joined, ways);
            let mut both = Ways {
                some: BTreeSet::from([net]),
                default: true,
                ..Ways::default()
            };
            both.join(&ways);
            assert!(
                both.default && both.some.contains(&net) && both.many == ways.many && both.all == ways.all
            );
        }
        let mut ways = Ways::default();
        for n in 0..Ways::MOST {
            ways.note(format!("198.18.{}.{}/32", n / 256, n % 256).parse().unwrap());
        }
        assert_eq!(
            (ways.some.len(), ways.many),
            (Ways::MOST, false),
            "so many are told apart"
        );
    }

    #[test]
    fn news_when_any_of_it_is_there_then_it_is_not_empty_and_scopes_add_up() {
        let link = LinkName::new("eth0").unwrap();
        let (one, other) = (Scope::Link(link), Scope::Link(LinkName::new("eth1").unwrap()));
        assert!(Drained::default().is_empty());
        let changed = Changed {
            key: Key::Link(link),
            by: None,
        };
        let news = [
            Drained {
                changed: vec![changed],
                ..Drained::default()
            },
            Drained {
                resync: Some(one),
                ..Drained::default()
            },
            Drained {
                underlay_changed: true,
                ..Drained::default()
            },
            Drained {
                device_gone: true,
                ..Drained::default()
            },
            Drained {
                ways: Ways {
                    all: true,
                    ..Ways::default()
                },
                ..Drained::default()
            },
        ];
        assert_eq!(news.map(|news| news.is_empty()), [false; 5]);
        assert_eq!(
            (one.and(one), one.and(other), Scope::All.and(one)),
            (one, Scope::All, Scope::All)
        );
        let mut drained = Drained::default();
        for (wanted, is) in [(one, one), (one, one), (other, Scope::All), (one, Scope::All)] {
            drained.want(wanted);
            assert_eq!(drained.resync, Some(is));
        }
    }

    #[test]
    fn outcome_when_asked_then_only_a_failure_is_none() {
        let error = NetlinkError::new(
            "add route",
            crate::nl::Fault::Socket,
            rustix::io::Errno::PERM,
            "why",
        );
        let failed = Outcome::Failed(Box::new(error.clone()));
        assert!(Outcome::Done.is_ok() && Outcome::Already.is_ok() && !failed.is_ok());
        assert_eq!((failed.error(), Outcome::Done.error()), (Some(&error), None));
        assert_eq!(failed.to_string(), error.to_string());
        assert_eq!(
            [Outcome::Done, Outcome::Already].map(|outcome| outcome.to_string()),
            ["done", "already"]
        );
    }
}
