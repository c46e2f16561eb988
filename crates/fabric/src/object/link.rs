//! Links: network devices.

use std::fmt;

use crate::kind::{Likeness, LinkKind};

use super::{Key, LinkName, Mac};

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name, which is its identity: kernel indices change when it is made anew.
    pub name: LinkName,
    /// Kind and what the kind configures.
    pub kind: LinkKind,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// Bytes of the largest packet.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
}

impl Link {
    /// Identity of the object.
    pub fn key(&self) -> Key {
        Key::Link(self.name)
    }

    /// Whether it is one of those that flannel makes, by kind and name.
    pub fn is_flannels(&self) -> bool {
        self.kind.bears(self.name)
    }

    /// How an observed link in this one's place stands to it, as far as the kind goes.
    pub fn likeness(&self, observed: &Link) -> Likeness {
        self.kind.likeness(&observed.kind)
    }

    /// Whether the observed link does what this one asks for.
    pub fn is_met_by(&self, observed: &Link) -> bool {
        self.likeness(observed) == Likeness::Met
            && self.mtu == observed.mtu
            && self.up == observed.up
            && (self.mac.is_none() || self.mac == observed.mac)
    }

    /// Whether the observed link can have on it what is to hang on this one: it is that device, and up if it shall be.
    pub fn is_carried_by(&self, observed: &Link) -> bool {
        matches!(self.likeness(observed), Likeness::Met | Likeness::Changeable) && (observed.up || !self.up)
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.up { "up" } else { "down" };
        write!(f, "link {} mtu {} {state}", self.name, self.mtu)?;
        if let Some(mac) = self.mac {
            write!(f, " address {mac}")?;
        }
        write!(f, " {}", self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Link {
        Link {
            name: LinkName::new("port0").unwrap(),
            kind: LinkKind::Other("veth".into()),
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            mtu: 1450,
            up: true,
        }
    }

    #[test]
    fn link_when_anything_asked_for_differs_then_not_met() {
        let wanted = device();
        assert!(wanted.is_met_by(&device()));
        let others = [
            Link {
                mtu: 1449,
                ..device()
            },
            Link {
                up: false,
                ..device()
            },
            Link {
                mac: None,
                ..device()
            },
            Link {
                kind: LinkKind::Other("bridge".into()),
                ..device()
            },
        ];
        for other in others {
            assert!(!wanted.is_met_by(&other), "{other}");
        }
        let any_mac = Link {
            mac: None,
            ..device()
        };
        assert!(any_mac.is_met_by(&device()));
    }

    #[test]
    fn link_when_down_or_of_another_kind_then_carries_nothing() {
        let down = Link {
            up: false,
            ..device()
        };
        assert!(device().is_carried_by(&device()) && !device().is_carried_by(&down));
        assert!(down.is_carried_by(&down) && down.is_carried_by(&device()));
        let narrow = Link {
            mtu: 1300,
            ..device()
        };
        assert!(device().is_carried_by(&narrow));
        let stranger = Link {
            kind: LinkKind::Other("bridge".into()),
            ..device()
        };
        assert!(!device().is_carried_by(&stranger));
    }
}
