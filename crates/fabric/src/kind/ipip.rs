//! ipip: a device that puts IPv4 packets into IPv4 packets. Where to is the next hop of the route, so nothing hangs on it.

use std::fmt;
use std::net::Ipv4Addr;

use crate::kind::Kind;
use crate::object::LinkName;

/// What makes an ipip device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipip {
    /// Outer source address; unspecified on devices that have none.
    pub local: Ipv4Addr,
    /// The one other end, on devices that have one. Ours have not.
    pub remote: Option<Ipv4Addr>,
    /// As flannel wants it: TTL and TOS of the inner packet, fragments allowed, no encapsulation of the outer packet, bound to no link.
    pub plain: bool,
}

impl Kind for Ipip {
    const NAME: &'static str = "ipip";
    const HAS_ENTRIES: bool = false;

    fn bears(name: LinkName) -> bool {
        name.as_str() == "flannel.ipip"
    }

    fn lower(&self) -> Option<LinkName> {
        None
    }

    /// COMPAT: Go flannel makes the device anew when either end differs, and takes over any other.
    fn is_same_device(&self, observed: &Ipip) -> bool {
        self.local == observed.local && self.remote == observed.remote
    }

    fn is_met_by(&self, observed: &Ipip) -> bool {
        self == observed
    }

    fn excludes(&self, other: &Ipip) -> bool {
        self.local == other.local && self.remote == other.remote
    }
}

impl fmt::Display for Ipip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ipip local {}", self.local)?;
        if let Some(remote) = self.remote {
            write!(f, " remote {remote}")?;
        }
        f.write_str(if self.plain { "" } else { " with further options" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::{Likeness, LinkKind};

    fn tunnel(local: &str, remote: Option<&str>, plain: bool) -> Ipip {
        Ipip {
            local: local.parse().unwrap(),
            remote: remote.map(|ip| ip.parse().unwrap()),
            plain,
        }
    }

    #[test]
    fn device_when_an_end_differs_then_another_and_when_an_option_does_then_changed_in_place() {
        let wanted: LinkKind = tunnel("192.0.2.1", None, true).into();
        let likeness = |observed: Ipip| wanted.likeness(&observed.into());
        assert_eq!(likeness(tunnel("192.0.2.1", None, true)), Likeness::Met);
        assert_eq!(likeness(tunnel("192.0.2.1", None, false)), Likeness::Changeable);
        assert_eq!(likeness(tunnel("192.0.2.2", None, true)), Likeness::Another);
        assert_eq!(likeness(tunnel("0.0.0.0", None, true)), Likeness::Another);
        assert_eq!(
            likeness(tunnel("192.0.2.1", Some("192.0.2.2"), true)),
            Likeness::Another
        );
        assert_eq!(
            wanted.likeness(&LinkKind::Other("sit".into())),
            Likeness::Stranger
        );
    }

    #[test]
    fn devices_when_both_ends_are_one_then_the_kernel_takes_one_of_them() {
        let there = tunnel("192.0.2.1", None, true);
        assert!(there.excludes(&tunnel("192.0.2.1", None, false)));
        assert!(!there.excludes(&tunnel("192.0.2.2", None, true)));
        assert!(!there.excludes(&tunnel("192.0.2.1", Some("192.0.2.2"), true)));
    }

    #[test]
    fn name_when_of_our_form_then_ours_and_of_no_other_kind() {
        let name = |name: &str| LinkName::new(name).unwrap();
        assert!(Ipip::bears(name("flannel.ipip")));
        assert!(
            !["tunl0", "flannel.1", "flannel.ipip0"]
                .map(name)
                .into_iter()
                .any(Ipip::bears)
        );
        assert!(!crate::kind::Vxlan::bears(name("flannel.ipip")));
    }

    #[test]
    fn display_when_printed_then_reads_like_iproute2() {
        let text = |remote, plain| tunnel("192.0.2.1", remote, plain).to_string();
        assert_eq!(text(None, true), "ipip local 192.0.2.1");
        assert_eq!(
            text(Some("192.0.2.2"), false),
            "ipip local 192.0.2.1 remote 192.0.2.2 with further options"
        );
    }
}
