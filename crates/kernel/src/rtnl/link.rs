//! Links: `RTM_*LINK`, `struct ifinfomsg`.

use std::net::{IpAddr, Ipv4Addr};

use fabric::object::{Link, LinkKind, LinkName, Mac, Vxlan};
use rustix::io::Errno;

use crate::nl::message::{get_u16, get_u32};
use crate::nl::{Attributes, Message, NetlinkError, Reply, flag};

use super::{AF_UNSPEC, Rtnl};

/// `RTM_NEWLINK`.
pub const NEW: u16 = 16;
/// `RTM_DELLINK`.
pub const DEL: u16 = 17;
/// `RTM_GETLINK`.
pub const GET: u16 = 18;

/// `IFF_UP`: administratively up.
pub const UP: u32 = 0x1;
/// `IFF_LOWER_UP`: has a carrier.
pub const LOWER_UP: u32 = 0x1_0000;

pub(crate) const IFLA_ADDRESS: u16 = 1;
pub(crate) const IFLA_IFNAME: u16 = 3;
pub(crate) const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
pub(crate) const IFLA_MASTER: u16 = 10;
pub(crate) const IFLA_TXQLEN: u16 = 13;
pub(crate) const IFLA_LINKINFO: u16 = 18;
const IFLA_EXT_MASK: u16 = 29;
pub(crate) const IFLA_INFO_KIND: u16 = 1;
pub(crate) const IFLA_INFO_DATA: u16 = 2;
/// `RTEXT_FILTER_SKIP_STATS`: counters are two thirds of a link's bytes.
const SKIP_STATS: u32 = 1 << 3;

const VXLAN_ID: u16 = 1;
const VXLAN_LINK: u16 = 3;
const VXLAN_LOCAL: u16 = 4;
const VXLAN_TTL: u16 = 5;
const VXLAN_TOS: u16 = 6;
const VXLAN_LEARNING: u16 = 7;
const VXLAN_PROXY: u16 = 11;
const VXLAN_RSC: u16 = 12;
const VXLAN_L2MISS: u16 = 13;
const VXLAN_L3MISS: u16 = 14;
const VXLAN_PORT: u16 = 15;
const VXLAN_LOCAL6: u16 = 17;
const VXLAN_UDP_ZERO_CSUM6_TX: u16 = 19;
const VXLAN_UDP_ZERO_CSUM6_RX: u16 = 20;
const VXLAN_GBP: u16 = 23;

const IFINFOMSG: usize = 16;

/// A link as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedLink {
    /// Interface index; a link made anew has a new one.
    pub index: u32,
    /// Its name.
    pub name: LinkName,
    /// `IFLA_INFO_KIND`; empty for links without one, such as physical ones and loopback.
    pub kind: Box<str>,
    /// Hardware address, where it has one of 6 bytes.
    pub mac: Option<Mac>,
    /// Bytes.
    pub mtu: u32,
    /// `IFF_*`.
    pub flags: u32,
    /// Index of the bridge or bond it is a port of.
    pub master: Option<u32>,
    /// Index of the link it is paired with or stacked on (`IFLA_LINK`); of a veth, in the other end's namespace.
    pub lower: Option<u32>,
    /// What a vxlan device is made of.
    pub vxlan: Option<ObservedVxlan>,
}

/// What a vxlan device is made of, as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedVxlan {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Outer source address, if set.
    pub local: Option<IpAddr>,
    /// Index of the underlay link; 0 when none is set.
    pub lower: u32,
    /// Learns forwarding entries from traffic.
    pub learning: bool,
    /// Group-based policy extension.
    pub gbp: bool,
}

impl ObservedLink {
    /// Administratively up.
    pub fn is_up(&self) -> bool {
        self.flags & UP != 0
    }

    /// The link as an object; `name_of` gives names to indices.
    ///
    /// What [`Vxlan`] cannot say is said by a value that no plan has: a device without local address has `0.0.0.0`, one
    /// without known underlay link has itself as `lower`.
    pub fn to_object(&self, name_of: impl Fn(u32) -> Option<LinkName>) -> Link {
        let kind = match self.vxlan {
            Some(vxlan) => LinkKind::Vxlan(Box::new(Vxlan {
                vni: vxlan.vni,
                port: Some(vxlan.port),
                local: vxlan.local.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
                lower: name_of(vxlan.lower).unwrap_or(self.name),
                learning: vxlan.learning,
                gbp: vxlan.gbp,
            })),
            None => LinkKind::Other(self.kind.clone()),
        };
        Link {
            name: self.name,
            kind,
            mac: self.mac,
            mtu: self.mtu,
            up: self.is_up(),
        }
    }
}

/// What [`Rtnl::set_link`] changes; `None` leaves as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// Bytes.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// Administrative state.
    pub up: Option<bool>,
}

/// `struct ifinfomsg` of family `AF_UNSPEC`.
pub fn header(index: u32, flags: u32, change: u32) -> [u8; IFINFOMSG] {
    let mut bytes = [0; IFINFOMSG];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

/// Reads an `RTM_NEWLINK` or `RTM_DELLINK`.
///
/// `None` for a name we cannot hold, and for messages of other families: the bridge reports a port that *left it* as an
/// `RTM_DELLINK` of `AF_BRIDGE`.
pub fn read(reply: &Reply<'_>) -> Option<ObservedLink> {
    let header = reply.header(IFINFOMSG)?;
    if !matches!(reply.kind, NEW | DEL) || *header.first()? != AF_UNSPEC {
        return None;
    }
    let (mut name, mut kind, mut mac, mut mtu) = (None, "", None, 0);
    let (mut master, mut lower, mut vxlan) = (None, None, None);
    for attribute in reply.attributes(IFINFOMSG) {
        match attribute.kind {
            IFLA_IFNAME => name = attribute.text().and_then(LinkName::new),
            IFLA_ADDRESS => mac = attribute.value.try_into().ok().map(Mac),
            IFLA_MTU => mtu = attribute.u32()?,
            IFLA_MASTER => master = attribute.u32(),
            IFLA_LINK => lower = attribute.u32(),
            IFLA_LINKINFO => {
                let mut data = None;
                for part in attribute.nested() {
                    match part.kind {
                        IFLA_INFO_KIND => kind = part.text().unwrap_or_default(),
                        IFLA_INFO_DATA => data = Some(part.nested()),
                        _ => {}
                    }
                }
                if kind == "vxlan" {
                    vxlan = data.map(read_vxlan);
                }
            }
            _ => {}
        }
    }
    Some(ObservedLink {
        index: get_u32(header, 4)?,
        name: name?,
        kind: kind.into(),
        // Physical types differ in address length; only Ethernet's zero address on loopback needs a word.
        mac: mac.filter(|_| get_u16(header, 2) != Some(libc::ARPHRD_LOOPBACK)),
        mtu,
        flags: get_u32(header, 8)?,
        master,
        lower,
        vxlan,
    })
}

fn read_vxlan(data: Attributes<'_>) -> ObservedVxlan {
    let mut vxlan = ObservedVxlan {
        vni: 0,
        port: 0,
        local: None,
        lower: 0,
        learning: false,
        gbp: false,
    };
    for attribute in data {
        match attribute.kind {
            VXLAN_ID => vxlan.vni = attribute.u32().unwrap_or(0),
            VXLAN_LINK => vxlan.lower = attribute.u32().unwrap_or(0),
            // Without a local address some kernels show the unspecified one.
            VXLAN_LOCAL | VXLAN_LOCAL6 => vxlan.local = attribute.ip().filter(|ip| !ip.is_unspecified()),
            VXLAN_LEARNING => vxlan.learning = attribute.u8() == Some(1),
            VXLAN_PORT => vxlan.port = attribute.be16().unwrap_or(0),
            VXLAN_GBP => vxlan.gbp = true,
            _ => {}
        }
    }
    vxlan
}

/// The message that makes a vxlan device with everything it has, its administrative state included.
///
/// COMPAT: attributes, their order and the explicit zeroes are what Go flannel sends (transmit queue length 0 shows in
/// `ip -j link` as its absence).
pub fn add_vxlan_message(link: &Link, vxlan: &Vxlan, lower_index: u32) -> Message {
    let up = if link.up { UP } else { 0 };
    let mut message = Message::new("add link", NEW, flag::ADD)
        .raw(&header(0, up, up))
        .text(IFLA_IFNAME, link.name.as_str());
    if link.mtu > 0 {
        message = message.u32(IFLA_MTU, link.mtu);
    }
    message = message.u32(IFLA_TXQLEN, 0);
    if let Some(mac) = link.mac {
        message = message.attribute(IFLA_ADDRESS, &mac.0);
    }
    message.nest(IFLA_LINKINFO, |info| {
        info.attribute(IFLA_INFO_KIND, b"vxlan")
            .nest(IFLA_INFO_DATA, |data| {
                let local = if vxlan.local.is_ipv4() {
                    VXLAN_LOCAL
                } else {
                    VXLAN_LOCAL6
                };
                let mut data = data
                    .u32(VXLAN_ID, vxlan.vni)
                    .u32(VXLAN_LINK, lower_index)
                    .ip(local, vxlan.local)
                    .u8(VXLAN_TTL, 0)
                    .u8(VXLAN_TOS, 0)
                    .u8(VXLAN_LEARNING, u8::from(vxlan.learning))
                    .u8(VXLAN_PROXY, 0)
                    .u8(VXLAN_RSC, 0)
                    .u8(VXLAN_L2MISS, 0)
                    .u8(VXLAN_L3MISS, 0)
                    .u8(VXLAN_UDP_ZERO_CSUM6_TX, 0)
                    .u8(VXLAN_UDP_ZERO_CSUM6_RX, 0);
                if vxlan.gbp {
                    data = data.attribute(VXLAN_GBP, &[]);
                }
                match vxlan.port {
                    Some(port) if port > 0 => data.be16(VXLAN_PORT, port),
                    _ => data,
                }
            })
    })
}

/// The request for the link of this name.
pub fn get_message(name: LinkName) -> Message {
    Message::new("get link", GET, 0)
        .raw(&header(0, 0, 0))
        .text(IFLA_IFNAME, name.as_str())
        .u32(IFLA_EXT_MASK, SKIP_STATS)
}

impl Rtnl {
    /// All links of the namespace.
    pub fn links(&mut self) -> Result<Vec<ObservedLink>, NetlinkError> {
        let message = Message::new("list links", GET, 0)
            .raw(&header(0, 0, 0))
            .u32(IFLA_EXT_MASK, SKIP_STATS);
        self.list(&message, read)
    }

    /// The link of this name; `None` when there is none.
    pub fn link_by_name(&mut self, name: LinkName) -> Result<Option<ObservedLink>, NetlinkError> {
        self.get_link(&get_message(name))
            .map_err(|error| error.of(format_args!("get link {name}")))
    }

    /// The link of this index; `None` when there is none.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<ObservedLink>, NetlinkError> {
        let message = Message::new("get link", GET, 0)
            .raw(&header(index, 0, 0))
            .u32(IFLA_EXT_MASK, SKIP_STATS);
        self.get_link(&message)
            .map_err(|error| error.of(format_args!("get link with index {index}")))
    }

    fn get_link(&mut self, message: &Message) -> Result<Option<ObservedLink>, NetlinkError> {
        match self.socket().get(message, read) {
            Err(error) if error.is(Errno::NODEV) => Ok(None),
            other => other,
        }
    }

    /// Makes a vxlan device over the link with index `lower_index`.
    pub fn add_vxlan(&mut self, link: &Link, vxlan: &Vxlan, lower_index: u32) -> Result<(), NetlinkError> {
        let message = add_vxlan_message(link, vxlan, lower_index);
        self.socket()
            .request(&message)
            .map_err(|error| error.of(format_args!("add link {}", link.name)))
    }

    /// Changes a link in place, all in one message.
    pub fn set_link(&mut self, index: u32, change: LinkChange) -> Result<(), NetlinkError> {
        let (flags, mask) = change.up.map_or((0, 0), |up| (if up { UP } else { 0 }, UP));
        let mut message = Message::new("set link", NEW, 0).raw(&header(index, flags, mask));
        if let Some(mtu) = change.mtu {
            message = message.u32(IFLA_MTU, mtu);
        }
        if let Some(mac) = change.mac {
            message = message.attribute(IFLA_ADDRESS, &mac.0);
        }
        self.socket().request(&message)
    }

    /// Switches learning of a vxlan device in place.
    pub fn set_vxlan_learning(&mut self, index: u32, learning: bool) -> Result<(), NetlinkError> {
        let message =
            Message::new("set link", NEW, 0)
                .raw(&header(index, 0, 0))
                .nest(IFLA_LINKINFO, |info| {
                    info.attribute(IFLA_INFO_KIND, b"vxlan")
                        .nest(IFLA_INFO_DATA, |data| data.u8(VXLAN_LEARNING, u8::from(learning)))
                });
        self.socket().request(&message)
    }

    /// Deletes a link; the kernel removes all that hangs on it.
    pub fn delete_link(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.socket()
            .request(&Message::new("delete link", DEL, 0).raw(&header(index, 0, 0)))
    }
}
