//! Neighbours: `RTM_*NEIGH` of `AF_INET` and `AF_INET6`, `struct ndmsg`.

use std::net::IpAddr;

use fabric::object::{Family, Mac};

use crate::nl::message::{get_u16, get_u32};
use crate::nl::{Message, NetlinkError, Reply, flag};

use super::{AF_INET, AF_INET6, AF_UNSPEC, Rtnl, family_number};

/// `RTM_NEWNEIGH`.
pub const NEW: u16 = 28;
/// `RTM_DELNEIGH`.
pub const DEL: u16 = 29;
/// `RTM_GETNEIGH`.
pub const GET: u16 = 30;

pub(super) const NDA_DST: u16 = 1;
pub(super) const NDA_LLADDR: u16 = 2;
pub(super) const NDA_IFINDEX: u16 = 8;
/// `NUD_PERMANENT`: made by somebody, never aged.
pub const PERMANENT: u16 = 0x80;
const NTF_PROXY: u8 = 0x08;
/// `RTN_UNICAST`, which is what Go flannel puts there.
const UNICAST: u8 = 1;

pub(super) const NDMSG: usize = 12;

/// A neighbour as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedNeighbour {
    /// Index of the link it is on.
    pub link: u32,
    /// Protocol address.
    pub address: IpAddr,
    /// Hardware address; `None` while unresolved.
    pub mac: Option<Mac>,
    /// `NUD_*`.
    pub state: u16,
}

impl ObservedNeighbour {
    /// Made by somebody rather than learned.
    pub fn is_permanent(&self) -> bool {
        self.state & PERMANENT != 0
    }
}

pub(super) fn header(family: u8, index: u32, state: u16, flags: u8, kind: u8) -> [u8; NDMSG] {
    let [a, b, c, d] = index.to_ne_bytes();
    let [e, f] = state.to_ne_bytes();
    [family, 0, 0, 0, a, b, c, d, e, f, flags, kind]
}

/// Reads an `RTM_NEWNEIGH` or `RTM_DELNEIGH` of an IP family; proxy entries are not neighbours.
pub fn read(reply: &Reply<'_>) -> Option<ObservedNeighbour> {
    let header = reply.header(NDMSG)?;
    let ip_family = matches!(*header.first()?, AF_INET | AF_INET6);
    if !matches!(reply.kind, NEW | DEL) || !ip_family || header.get(10)? & NTF_PROXY != 0 {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in reply.attributes(NDMSG) {
        match attribute.kind {
            NDA_DST => address = attribute.ip(),
            NDA_LLADDR => mac = attribute.value.try_into().ok().map(Mac),
            _ => {}
        }
    }
    Some(ObservedNeighbour {
        link: get_u32(header, 4)?,
        address: address?,
        mac,
        state: get_u16(header, 8)?,
    })
}

/// The message that makes a permanent neighbour entry; `flags` say what to do when there is one.
pub fn add_message(flags: u16, link: u32, address: IpAddr, mac: Mac) -> Message {
    let family = family_number(Family::of(address));
    Message::new("add neighbour", NEW, flags)
        .raw(&header(family, link, PERMANENT, 0, UNICAST))
        .ip(NDA_DST, address)
        .attribute(NDA_LLADDR, &mac.0)
}

/// The message that deletes the neighbour entry of an address, whatever its hardware address.
pub fn delete_message(link: u32, address: IpAddr) -> Message {
    let family = family_number(Family::of(address));
    Message::new("delete neighbour", DEL, 0)
        .raw(&header(family, link, PERMANENT, 0, UNICAST))
        .ip(NDA_DST, address)
}

/// The request for the neighbours of a link, of both families.
pub(crate) fn list_message(link: u32) -> Message {
    Message::new("list neighbours", GET, 0)
        .raw(&header(AF_UNSPEC, 0, 0, 0, 0))
        .u32(NDA_IFINDEX, link)
}

impl Rtnl {
    /// The neighbours of a link, of both families and every state.
    pub fn neighbours(&mut self, link: u32) -> Result<Vec<ObservedNeighbour>, NetlinkError> {
        self.list(&list_message(link), |reply| {
            read(reply).filter(|n| n.link == link)
        })
    }

    /// Makes a permanent entry; refused when there is one.
    pub fn add_neighbour(&mut self, link: u32, address: IpAddr, mac: Mac) -> Result<(), NetlinkError> {
        self.put_neighbour("add", flag::ADD, link, address, mac)
    }

    /// Makes a permanent entry, or turns what is there into it.
    pub fn replace_neighbour(&mut self, link: u32, address: IpAddr, mac: Mac) -> Result<(), NetlinkError> {
        self.put_neighbour("replace", flag::PUT, link, address, mac)
    }

    fn put_neighbour(
        &mut self,
        verb: &str,
        flags: u16,
        link: u32,
        address: IpAddr,
        mac: Mac,
    ) -> Result<(), NetlinkError> {
        self.socket()
            .request(&add_message(flags, link, address, mac))
            .map_err(|error| error.of(format_args!("{verb} neighbour {address}")))
    }

    /// Deletes an entry.
    pub fn delete_neighbour(&mut self, link: u32, address: IpAddr) -> Result<(), NetlinkError> {
        self.socket()
            .request(&delete_message(link, address))
            .map_err(|error| error.of(format_args!("delete neighbour {address}")))
    }
}
