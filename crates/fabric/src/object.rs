//! Kernel objects as data: what a plan desires, what the kernel was seen to hold, and the steps between.
//!
//! Every object has a [`Key`] (its identity in the kernel's own terms) and a content. The same types serve
//! both sides of the diff, so that equality is one `==` and no layer translates. Each kind of object has a file here and one
//! of the same name in `kernel::rtnl`, which holds its bytes; the kinds of links are in [`crate::kind`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

pub use self::address::Address;
pub use self::forwarding::Forwarding;
pub use self::link::Link;
pub use self::neighbour::Neighbour;
pub use self::objects::Objects;
pub use self::route::{IPV6_DEFAULT_METRIC, ROUTE_PROTOCOL, ROUTE_PROTOCOL_BOOT, Route};
pub use crate::kind::LinkKind;

mod address;
mod forwarding;
mod link;
mod neighbour;
mod objects;
mod route;

/// An IP family. Everything in this project that exists twice exists once, with a `Family`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in the order in which flannel treats them.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The family of a prefix.
    pub fn of_net(net: IpNet) -> Family {
        Family::of(net.addr())
    }

    /// Address length in bits: 32 or 128.
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// `0.0.0.0` or `::`.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }

    /// Metric a route of this family has when none is asked for: 0 or 1024.
    pub fn default_metric(self) -> u32 {
        match self {
            Family::V4 => 0,
            Family::V6 => IPV6_DEFAULT_METRIC,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// A link name: 1 to 15 bytes, no NUL, `/`, or white space (`dev_valid_name`). `Copy`, so that a key costs no heap.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName {
    bytes: [u8; 15],
    len: u8,
}

impl LinkName {
    /// No link's name.
    const NONE: LinkName = LinkName {
        bytes: [0; 15],
        len: 0,
    };

    /// Checks and takes a name; `None` when the kernel would refuse it.
    pub fn new(name: &str) -> Option<LinkName> {
        let raw = name.as_bytes();
        let refused = |b: &u8| *b == 0 || *b == b'/' || *b == b':' || b.is_ascii_whitespace();
        if raw.is_empty() || raw.len() > 15 || name == "." || name == ".." || raw.iter().any(refused) {
            return None;
        }
        let mut bytes = [0; 15];
        bytes[..raw.len()].copy_from_slice(raw);
        Some(LinkName {
            bytes,
            len: raw.len() as u8,
        })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or("?")
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// A 6-byte Ethernet address; text form lower-case, colon separated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Reads `aa:bb:cc:dd:ee:ff`, also with `-`, or `aabb.ccdd.eeff` (the forms Go's `net.ParseMAC` takes for 6 bytes).
    pub fn parse(text: &str) -> Option<Mac> {
        let (separators, group): (&[char], usize) = match text.len() {
            17 => (&[':', '-'], 2),
            14 => (&['.'], 4),
            _ => return None,
        };
        let separator = separators.iter().find(|separator| text.contains(**separator))?;
        // With this length, groups of this size are twelve characters.
        let mut digits = String::with_capacity(12);
        for part in text.split(*separator) {
            if part.len() != group {
                return None;
            }
            digits.push_str(part);
        }
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut bytes = [0; 6];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[i * 2..i * 2 + 2], 16).ok()?;
        }
        Some(Mac(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Any object a plan can desire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A device.
    Link(Box<Link>),
    /// An address of a device.
    Address(Address),
    /// A neighbour entry.
    Neighbour(Neighbour),
    /// A forwarding entry.
    Forwarding(Forwarding),
    /// A route.
    Route(Route),
}

/// Identity of an object in the kernel.
///
/// INVARIANT: the order of the variants is the order in which additions must happen (a route needs its link, address and
/// neighbour); removals go the other way round. `diff` sorts by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// By name.
    Link(LinkName),
    /// By link, address and prefix length.
    Address(LinkName, IpNet),
    /// By link and protocol address.
    Neighbour(LinkName, IpAddr),
    /// By device and inner destination: one outer destination per MAC.
    Forwarding(LinkName, Mac),
    /// By destination and metric.
    Route(IpNet, u32),
}

impl Key {
    /// Whether it names a link.
    pub fn is_link(&self) -> bool {
        matches!(self, Key::Link(_))
    }

    /// The link the object hangs on, where its identity names one.
    pub fn link(&self) -> Option<LinkName> {
        match *self {
            Key::Link(link) | Key::Address(link, _) | Key::Neighbour(link, _) | Key::Forwarding(link, _) => {
                Some(link)
            }
            Key::Route(..) => None,
        }
    }

    /// Whether it names a route: the one kind of object of which others may have some in our places.
    pub fn is_route(&self) -> bool {
        matches!(self, Key::Route(..))
    }
}

impl Object {
    /// Whether the observed object does what this one asks for.
    pub fn is_met_by(&self, observed: &Object) -> bool {
        match (self, observed) {
            (Object::Link(wanted), Object::Link(observed)) => wanted.is_met_by(observed),
            (wanted, observed) => wanted == observed,
        }
    }

    /// The link, if it is one.
    pub fn as_link(&self) -> Option<&Link> {
        match self {
            Object::Link(link) => Some(link),
            _ => None,
        }
    }

    /// The object's identity.
    pub fn key(&self) -> Key {
        match self {
            Object::Link(link) => link.key(),
            Object::Address(address) => address.key(),
            Object::Neighbour(neighbour) => neighbour.key(),
            Object::Forwarding(forwarding) => forwarding.key(),
            Object::Route(route) => route.key(),
        }
    }

    /// The link the object hangs on.
    pub fn link(&self) -> LinkName {
        match self {
            Object::Link(link) => link.name,
            Object::Address(a) => a.link,
            Object::Neighbour(n) => n.link,
            Object::Forwarding(f) => f.link,
            Object::Route(r) => r.link,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Link(link) => write!(f, "link {link}"),
            Key::Address(link, address) => write!(f, "address {address} dev {link}"),
            Key::Neighbour(link, address) => write!(f, "neighbour {address} dev {link}"),
            Key::Forwarding(link, mac) => write!(f, "fdb {mac} dev {link}"),
            Key::Route(destination, metric) if *metric == Family::of_net(*destination).default_metric() => {
                write!(f, "route {destination}")
            }
            Key::Route(destination, metric) => write!(f, "route {destination} metric {metric}"),
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Link(link) => link.fmt(f),
            Object::Address(address) => address.fmt(f),
            Object::Neighbour(neighbour) => neighbour.fmt(f),
            Object::Forwarding(forwarding) => forwarding.fmt(f),
            Object::Route(route) => route.fmt(f),
        }
    }
}

/// One step from the observed state to the desired one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Make an object that is not there.
    Add(Object),
    /// Turn an object into another of the same key, in place and without a moment in which there is neither.
    Change {
        /// What is there.
        from: Object,
        /// What shall be there.
        to: Object,
    },
    /// Remove an object, exactly this one.
    Remove(Object),
}

impl Op {
    /// The object the step is about; of a change, what it shall be.
    pub fn object(&self) -> &Object {
        match self {
            Op::Add(object) | Op::Remove(object) | Op::Change { to: object, .. } => object,
        }
    }

    /// Identity of that object.
    pub fn key(&self) -> Key {
        self.object().key()
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Add(object) => write!(f, "add {object}"),
            Op::Change { from, to } => write!(f, "change {to} (was: {from})"),
            Op::Remove(object) => write!(f, "remove {object}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node with thousands of peers holds three of these for each, twice: once desired, once observed.
    #[test]
    fn sizes_when_thousands_are_held_then_small() {
        assert!(size_of::<Key>() <= 36, "Key: {} bytes", size_of::<Key>());
        assert!(size_of::<Object>() <= 64, "Object: {} bytes", size_of::<Object>());
    }

    #[test]
    fn mac_when_of_a_form_that_go_takes_then_read_and_otherwise_not() {
        let mac = Mac([0x0a, 0xbc, 0x00, 0x01, 0xff, 0x10]);
        for text in [
            "0a:bc:00:01:ff:10",
            "0A:BC:00:01:FF:10",
            "0a-bc-00-01-ff-10",
            "0abc.0001.ff10",
        ] {
            assert_eq!(Mac::parse(text), Some(mac), "{text}");
        }
        for text in [
            "",
            "0a:bc:00:01:ff:1",
            "0a:bc:00:01:ff:100",
            "0abc0001ff10",
            "0a.bc.00.01.ff.10",
            "0a_bc_00_01_ff_10",
            "0a:bc:00:01-ff-10",
            "0ab:c:00:01:ff:10",
            "0a:bc:00:01:ff:1g",
            "+a:bc:00:01:ff:10",
            "0abc:0001:ff10",
            "0abc-0001-ff10",
            "0ab.c000.1ff10",
            "0abc.0001.ff1g",
            "0a:bc:00:01:ff:\u{e4}",
            "0abc.0001.ff\u{e4}",
        ] {
            assert_eq!(Mac::parse(text), None, "{text}");
        }
        assert_eq!(mac.to_string(), "0a:bc:00:01:ff:10");
        assert_eq!(format!("{mac:?}"), "0a:bc:00:01:ff:10");
    }

    #[test]
    fn name_when_the_kernel_would_take_it_then_taken() {
        for good in ["a", "eth0", "flannel-v6.9999", "...", "br-\u{e4}"] {
            let name = LinkName::new(good).unwrap();
            assert_eq!((name.as_str(), format!("{name:?}")), (good, format!("{good:?}")));
        }
        for bad in [
            "",
            ".",
            "..",
            "flannel-v6.10000",
            "a/b",
            "a b",
            "a\tb",
            "a:b",
            "a\0b",
        ] {
            assert_eq!(LinkName::new(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn key_when_printed_then_a_metric_is_said_where_it_is_not_the_familys() {
        let text = |destination: &str, metric| Key::Route(destination.parse().unwrap(), metric).to_string();
        assert_eq!(text("10.1.0.0/24", 0), "route 10.1.0.0/24");
        assert_eq!(text("10.1.0.0/24", 1024), "route 10.1.0.0/24 metric 1024");
        assert_eq!(text("fd00::/64", 1024), "route fd00::/64");
        assert_eq!(text("fd00::/64", 0), "route fd00::/64 metric 0");
    }

    #[test]
    fn family_when_asked_then_its_own_figures() {
        let of = |ip: &str| Family::of(ip.parse().unwrap());
        assert_eq!((of("192.0.2.1"), of("2001:db8::1")), (Family::V4, Family::V6));
        assert_eq!(Family::BOTH.map(Family::bits), [32, 128]);
        assert_eq!(Family::BOTH.map(Family::default_metric), [0, 1024]);
        assert_eq!(
            Family::BOTH.map(|family| family.unspecified().to_string()),
            ["0.0.0.0", "::"]
        );
        assert_eq!(Family::BOTH.map(|family| family.to_string()), ["IPv4", "IPv6"]);
    }
}
