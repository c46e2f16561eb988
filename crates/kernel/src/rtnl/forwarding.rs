//! Forwarding entries of tunnel devices: `RTM_*NEIGH` of `AF_BRIDGE` with `NTF_SELF`.

use std::net::IpAddr;

use fabric::object::Mac;

use crate::nl::message::{get_u16, get_u32};
use crate::nl::{Message, NetlinkError, Reply, flag};

use super::neighbour::{DEL, GET, NDA_DST, NDA_IFINDEX, NDA_LLADDR, NDMSG, NEW, PERMANENT, header};
use super::{AF_BRIDGE, Rtnl};

const NTF_SELF: u8 = 0x02;
const NTF_MASTER: u8 = 0x04;
const NTF_EXT_LEARNED: u8 = 0x10;

/// A forwarding entry as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedForwarding {
    /// Index of the device.
    pub link: u32,
    /// Inner destination.
    pub mac: Mac,
    /// Outer destination.
    pub remote: IpAddr,
    /// `NUD_*`.
    pub state: u16,
    /// `NTF_*`.
    pub flags: u8,
}

impl ObservedForwarding {
    /// Made by somebody rather than learned from traffic or by another control plane.
    pub fn is_permanent(&self) -> bool {
        self.state & PERMANENT != 0 && self.flags & NTF_EXT_LEARNED == 0
    }
}

/// Reads an `RTM_NEWNEIGH` or `RTM_DELNEIGH` of a tunnel device; entries of bridges have no outer destination.
pub fn read(reply: &Reply<'_>) -> Option<ObservedForwarding> {
    let header = reply.header(NDMSG)?;
    let flags = *header.get(10)?;
    if !matches!(reply.kind, NEW | DEL) || *header.first()? != AF_BRIDGE || flags & NTF_MASTER != 0 {
        return None;
    }
    let (mut mac, mut remote) = (None, None);
    for attribute in reply.attributes(NDMSG) {
        match attribute.kind {
            NDA_LLADDR => mac = attribute.value.try_into().ok().map(Mac),
            NDA_DST => remote = attribute.ip(),
            _ => {}
        }
    }
    let state = get_u16(header, 8)?;
    Some(ObservedForwarding {
        link: get_u32(header, 4)?,
        mac: mac?,
        remote: remote?,
        state,
        flags,
    })
}

/// The message that makes a permanent entry; `flags` say what to do when there is one.
pub fn add_message(flags: u16, link: u32, mac: Mac, remote: IpAddr) -> Message {
    Message::new("add fdb", NEW, flags)
        .raw(&header(AF_BRIDGE, link, PERMANENT, NTF_SELF, 0))
        .ip(NDA_DST, remote)
        .attribute(NDA_LLADDR, &mac.0)
}

/// The message that deletes the entry of this MAC with this destination.
pub fn delete_message(link: u32, mac: Mac, remote: IpAddr) -> Message {
    Message::new("delete fdb", DEL, 0)
        .raw(&header(AF_BRIDGE, link, 0, NTF_SELF, 0))
        .ip(NDA_DST, remote)
        .attribute(NDA_LLADDR, &mac.0)
}

/// The request for the forwarding entries of a device.
pub(crate) fn list_message(link: u32) -> Message {
    Message::new("list fdb", GET, 0)
        .raw(&header(AF_BRIDGE, 0, 0, 0, 0))
        .u32(NDA_IFINDEX, link)
}

impl Rtnl {
    /// The forwarding entries of a tunnel device, learned ones included.
    pub fn forwardings(&mut self, link: u32) -> Result<Vec<ObservedForwarding>, NetlinkError> {
        self.list(&list_message(link), |reply| {
            read(reply).filter(|f| f.link == link)
        })
    }

    /// Makes a permanent entry; refused when there is one.
    pub fn add_forwarding(&mut self, link: u32, mac: Mac, remote: IpAddr) -> Result<(), NetlinkError> {
        self.put_forwarding("add", flag::ADD, link, mac, remote)
    }

    /// Makes a permanent entry, or turns the one of this MAC into it, so that it has one destination.
    pub fn replace_forwarding(&mut self, link: u32, mac: Mac, remote: IpAddr) -> Result<(), NetlinkError> {
        self.put_forwarding("replace", flag::PUT, link, mac, remote)
    }

    fn put_forwarding(
        &mut self,
        verb: &str,
        flags: u16,
        link: u32,
        mac: Mac,
        remote: IpAddr,
    ) -> Result<(), NetlinkError> {
        self.socket()
            .request(&add_message(flags, link, mac, remote))
            .map_err(|error| error.of(format_args!("{verb} fdb {mac}")))
    }

    /// Deletes an entry.
    pub fn delete_forwarding(&mut self, link: u32, mac: Mac, remote: IpAddr) -> Result<(), NetlinkError> {
        self.socket()
            .request(&delete_message(link, mac, remote))
            .map_err(|error| error.of(format_args!("delete fdb {mac}")))
    }
}
