//! Kernel objects as data: what a plan desires, what the kernel was seen to hold, and the steps between.
//!
//! Every object has a [`Key`] (its identity in the kernel's own terms) and a content. The same types serve
//! both sides of the diff, so that equality is one `==` and no layer translates.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

pub use self::objects::Objects;

mod objects;

/// Route protocol that marks a route or nexthop object as ours (`rtm_protocol`, `nh_protocol`).
pub const ROUTE_PROTOCOL: u8 = 241;
/// Route protocol of routes made by Go flannel and by `ip route add` without `proto` (`RTPROT_BOOT`).
pub const ROUTE_PROTOCOL_BOOT: u8 = 3;
/// Metric the kernel gives an IPv6 route that names none (`IP6_RT_PRIO_USER`); part of its identity.
pub const IPV6_DEFAULT_METRIC: u32 = 1024;
/// UDP port the kernel gives a vxlan device that names none (module parameter `udp_port`).
pub const VXLAN_DEFAULT_PORT: u16 = 8472;

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
        let (separator, group) = match text.len() {
            17 if text.is_ascii() => (text.as_bytes()[2], 2),
            14 if text.is_ascii() => (b'.', 4),
            _ => return None,
        };
        if group == 2 && separator != b':' && separator != b'-' {
            return None;
        }
        let mut digits = String::with_capacity(12);
        for (i, part) in text.split(separator as char).enumerate() {
            if part.len() != group || i >= 12 / group {
                return None;
            }
            digits.push_str(part);
        }
        if digits.len() != 12 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
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

/// What makes a vxlan device the device it is; a difference in any field but `learning` means a new device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port; `None` asks for the kernel's default and equals anything observed.
    pub port: Option<u16>,
    /// Outer source address.
    pub local: IpAddr,
    /// Name of the underlay link (`IFLA_VXLAN_LINK`).
    pub lower: LinkName,
    /// Learn forwarding entries from traffic.
    pub learning: bool,
    /// Group-based policy extension.
    pub gbp: bool,
}

/// The kind of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A VXLAN tunnel end point.
    Vxlan(Box<Vxlan>),
    /// A link of a kind no plan makes (`IFLA_INFO_KIND`, or empty for a physical one); only ever observed.
    Other(Box<str>),
}

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

/// An address of a link. Scope global, no broadcast, IPv6 without duplicate address detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The link that holds it.
    pub link: LinkName,
    /// Address and prefix length.
    pub address: IpNet,
}

/// A permanent neighbour entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The link it is on.
    pub link: LinkName,
    /// Protocol address.
    pub address: IpAddr,
    /// Hardware address.
    pub mac: Mac,
}

/// A permanent forwarding entry of a vxlan device (`AF_BRIDGE`, `NTF_SELF`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwarding {
    /// The vxlan device.
    pub link: LinkName,
    /// Inner destination.
    pub mac: Mac,
    /// Outer destination.
    pub remote: IpAddr,
}

/// A unicast route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Destination prefix, host bits clear.
    pub destination: IpNet,
    /// Priority; IPv6 routes without one have 1024.
    pub metric: u32,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Outgoing link.
    pub link: LinkName,
    /// The gateway is taken to be on the link without a route that says so (`RTNH_F_ONLINK`).
    pub onlink: bool,
    /// `rtm_protocol`; [`ROUTE_PROTOCOL`] on what we want.
    pub protocol: u8,
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
}

impl Object {
    /// The object's identity.
    pub fn key(&self) -> Key {
        match self {
            Object::Link(link) => Key::Link(link.name),
            Object::Address(a) => Key::Address(a.link, a.address),
            Object::Neighbour(n) => Key::Neighbour(n.link, n.address),
            Object::Forwarding(f) => Key::Forwarding(f.link, f.mac),
            Object::Route(r) => Key::Route(r.destination, r.metric),
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
            Object::Link(link) => {
                write!(
                    f,
                    "link {} mtu {} {}",
                    link.name,
                    link.mtu,
                    if link.up { "up" } else { "down" }
                )?;
                if let Some(mac) = link.mac {
                    write!(f, " address {mac}")?;
                }
                match &link.kind {
                    LinkKind::Vxlan(v) => {
                        write!(f, " vxlan id {} local {} dev {}", v.vni, v.local, v.lower)?;
                        if let Some(port) = v.port {
                            write!(f, " dstport {port}")?;
                        }
                        f.write_str(if v.learning { " learning" } else { " nolearning" })?;
                        f.write_str(if v.gbp { " gbp" } else { "" })
                    }
                    LinkKind::Other(kind) => write!(f, " {kind}"),
                }
            }
            Object::Address(a) => write!(f, "address {} dev {}", a.address, a.link),
            Object::Neighbour(n) => write!(
                f,
                "neighbour {} lladdr {} dev {} permanent",
                n.address, n.mac, n.link
            ),
            Object::Forwarding(e) => {
                write!(f, "fdb {} dst {} dev {} self permanent", e.mac, e.remote, e.link)
            }
            Object::Route(r) => {
                write!(f, "route {}", r.destination)?;
                if let Some(gateway) = r.gateway {
                    write!(f, " via {gateway}")?;
                }
                write!(f, " dev {}", r.link)?;
                f.write_str(if r.onlink { " onlink" } else { "" })
            }
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
}
