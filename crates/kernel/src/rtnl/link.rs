//! Links: `RTM_*LINK`, `struct ifinfomsg`.

use fabric::object::{Link, LinkKind, LinkName, Mac};
use rustix::io::Errno;

use crate::kind::{self, ObservedKind};
use crate::nl::message::{get_u16, get_u32};
use crate::nl::{Fault, Message, NetlinkError, Reply, flag};

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
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
pub(crate) const IFLA_INFO_KIND: u16 = 1;
pub(crate) const IFLA_INFO_DATA: u16 = 2;
/// `RTEXT_FILTER_SKIP_STATS`: counters are two thirds of a link's bytes.
const SKIP_STATS: u32 = 1 << 3;

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
    /// What it is made of, where it is of a kind that plans make.
    pub made_of: Option<ObservedKind>,
    /// Further names (`IFLA_ALT_IFNAME`), such as `enp3s0`.
    pub other_names: Vec<Box<str>>,
}

impl ObservedLink {
    /// Administratively up.
    pub fn is_up(&self) -> bool {
        self.flags & UP != 0
    }

    /// Something is at the other end of the cable.
    pub fn has_carrier(&self) -> bool {
        self.flags & LOWER_UP != 0
    }

    /// The link as an object; `name_of` gives names to indices.
    pub fn to_object(&self, name_of: impl Fn(u32) -> Option<LinkName>) -> Link {
        let kind = match &self.made_of {
            Some(made_of) => made_of.to_object(self.name, &name_of),
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
    let (mut master, mut lower, mut made_of) = (None, None, None);
    let mut other_names = Vec::new();
    for attribute in reply.attributes(IFINFOMSG) {
        match attribute.kind {
            IFLA_IFNAME => name = attribute.text().and_then(LinkName::new),
            IFLA_ADDRESS => mac = attribute.value.try_into().ok().map(Mac),
            IFLA_MTU => mtu = attribute.u32()?,
            IFLA_MASTER => master = attribute.u32(),
            IFLA_LINK => lower = attribute.u32(),
            IFLA_PROP_LIST => {
                let names = attribute.nested().filter(|part| part.kind == IFLA_ALT_IFNAME);
                other_names.extend(names.filter_map(|name| Some(Box::from(name.text()?))));
            }
            IFLA_LINKINFO => {
                let mut data = None;
                for part in attribute.nested() {
                    match part.kind {
                        IFLA_INFO_KIND => kind = part.text().unwrap_or_default(),
                        IFLA_INFO_DATA => data = Some(part.nested()),
                        _ => {}
                    }
                }
                made_of = data.and_then(|data| ObservedKind::read(kind, data));
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
        made_of,
        other_names,
    })
}

/// The message that makes a link with everything it has, its administrative state included; `lower` is the index of the link
/// it lies on, 0 where it has none. `None` for kinds that plans do not make.
///
/// COMPAT: attributes, their order and the explicit zeroes are what Go flannel sends (transmit queue length 0 shows in
/// `ip -j link` as its absence).
pub fn add_message(link: &Link, lower: u32) -> Option<Message> {
    if !link.kind.is_made() {
        return None;
    }
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
    Some(message.nest(IFLA_LINKINFO, |info| {
        info.attribute(IFLA_INFO_KIND, link.kind.name().as_bytes())
            .nest(IFLA_INFO_DATA, |data| kind::write(&link.kind, data, lower))
    }))
}

/// The message that turns a link into one of this kind in place, as far as its kind's own settings go.
pub fn change_kind_message(index: u32, to: &LinkKind) -> Message {
    Message::new("set link", NEW, 0)
        .raw(&header(index, 0, 0))
        .nest(IFLA_LINKINFO, |info| {
            info.attribute(IFLA_INFO_KIND, to.name().as_bytes())
                .nest(IFLA_INFO_DATA, |data| kind::write_change(to, data))
        })
}

/// The message that changes a link in place.
pub fn set_message(index: u32, change: LinkChange) -> Message {
    let (flags, mask) = change.up.map_or((0, 0), |up| (if up { UP } else { 0 }, UP));
    let mut message = Message::new("set link", NEW, 0).raw(&header(index, flags, mask));
    if let Some(mtu) = change.mtu {
        message = message.u32(IFLA_MTU, mtu);
    }
    if let Some(mac) = change.mac {
        message = message.attribute(IFLA_ADDRESS, &mac.0);
    }
    message
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

    /// Makes a link of a kind that plans make, over the link with index `lower` (0 where its kind lies on none).
    pub fn add_link(&mut self, link: &Link, lower: u32) -> Result<(), NetlinkError> {
        let Some(message) = add_message(link, lower) else {
            return Err(NetlinkError::new(
                "add link",
                Fault::Refused,
                Errno::OPNOTSUPP,
                "links of this kind are not made by us",
            ));
        };
        self.socket().request(&message).map_err(|mut error| {
            if error.fault == Fault::Refused
                && let Some(text) = kind::explain(&link.kind, Errno::from_raw_os_error(error.errno))
            {
                error.text = text.into();
            }
            error.of(format_args!("add link {}", link.name))
        })
    }

    /// Changes a link in place, all in one message.
    pub fn set_link(&mut self, index: u32, change: LinkChange) -> Result<(), NetlinkError> {
        self.socket().request(&set_message(index, change))
    }

    /// Turns a link into one of this kind in place, as far as its kind's own settings go.
    pub fn set_kind(&mut self, index: u32, to: &LinkKind) -> Result<(), NetlinkError> {
        self.socket().request(&change_kind_message(index, to))
    }

    /// Deletes a link; the kernel removes all that hangs on it.
    pub fn delete_link(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.socket()
            .request(&Message::new("delete link", DEL, 0).raw(&header(index, 0, 0)))
    }
}
