//! Next hop objects (Linux 5.3): `RTM_*NEXTHOP`, `struct nhmsg`.

use std::net::IpAddr;

use fabric::object::Family;

use crate::nl::message::get_u32;
use crate::nl::{Message, NetlinkError, Reply, flag};

use super::{AF_UNSPEC, Rtnl, family_number};

/// `RTM_NEWNEXTHOP`.
pub const NEW: u16 = 104;
/// `RTM_DELNEXTHOP`.
pub const DEL: u16 = 105;
/// `RTM_GETNEXTHOP`.
pub const GET: u16 = 106;

const NHA_ID: u16 = 1;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const RTNH_F_ONLINK: u32 = 4;

const NHMSG: usize = 8;

/// A next hop object as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedNexthop {
    /// Its number.
    pub id: u32,
    /// Index of its link; `None` for groups and blackholes.
    pub link: Option<u32>,
    /// Its gateway.
    pub gateway: Option<IpAddr>,
    /// The gateway is taken to be on the link.
    pub onlink: bool,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
}

/// `nh_scope` stays 0: the kernel refuses any other in a request.
fn header(family: u8, protocol: u8, flags: u32) -> [u8; NHMSG] {
    let [a, b, c, d] = flags.to_ne_bytes();
    [family, 0, protocol, 0, a, b, c, d]
}

/// Reads an `RTM_NEWNEXTHOP` or `RTM_DELNEXTHOP`.
pub fn read(reply: &Reply<'_>) -> Option<ObservedNexthop> {
    let header = reply.header(NHMSG)?;
    if !matches!(reply.kind, NEW | DEL) {
        return None;
    }
    let (mut id, mut link, mut gateway) = (None, None, None);
    for attribute in reply.attributes(NHMSG) {
        match attribute.kind {
            NHA_ID => id = attribute.u32(),
            NHA_OIF => link = attribute.u32(),
            NHA_GATEWAY => gateway = attribute.ip(),
            _ => {}
        }
    }
    let onlink = get_u32(header, 4)? & RTNH_F_ONLINK != 0;
    Some(ObservedNexthop {
        id: id?,
        link,
        gateway,
        onlink,
        protocol: *header.get(2)?,
    })
}

/// The message that makes a next hop object.
pub fn add_message(id: u32, link: u32, gateway: IpAddr, onlink: bool, protocol: u8) -> Message {
    let flags = if onlink { RTNH_F_ONLINK } else { 0 };
    Message::new("add nexthop", NEW, flag::ADD)
        .raw(&header(family_number(Family::of(gateway)), protocol, flags))
        .u32(NHA_ID, id)
        .u32(NHA_OIF, link)
        .ip(NHA_GATEWAY, gateway)
}

/// The message that deletes a next hop object, and with it every route that uses it.
pub fn delete_message(id: u32) -> Message {
    Message::new("delete nexthop", DEL, 0)
        .raw(&header(AF_UNSPEC, 0, 0))
        .u32(NHA_ID, id)
}

/// The request for all next hop objects, or those through one link.
pub(crate) fn list_message(link: Option<u32>) -> Message {
    let message = Message::new("list nexthops", GET, 0).raw(&header(AF_UNSPEC, 0, 0));
    match link {
        Some(index) => message.u32(NHA_OIF, index),
        None => message,
    }
}

impl Rtnl {
    /// All next hop objects, or those through one link; `EOPNOTSUPP` on kernels that have none.
    pub fn nexthops(&mut self, link: Option<u32>) -> Result<Vec<ObservedNexthop>, NetlinkError> {
        self.list(&list_message(link), |reply| {
            read(reply).filter(|seen| link.is_none() || seen.link == link)
        })
    }

    /// Makes a next hop object; refused when the number is in use.
    pub fn add_nexthop(
        &mut self,
        id: u32,
        link: u32,
        gateway: IpAddr,
        onlink: bool,
        protocol: u8,
    ) -> Result<(), NetlinkError> {
        self.socket()
            .request(&add_message(id, link, gateway, onlink, protocol))
            .map_err(|error| error.of(format_args!("add nexthop {id} via {gateway}")))
    }

    /// Deletes a next hop object and every route that uses it.
    pub fn delete_nexthop(&mut self, id: u32) -> Result<(), NetlinkError> {
        self.socket()
            .request(&delete_message(id))
            .map_err(|error| error.of(format_args!("delete nexthop {id}")))
    }
}
