//! Addresses: `RTM_*ADDR`, `struct ifaddrmsg`.

use std::net::IpAddr;

use fabric::object::Family;
use ipnet::IpNet;

use crate::nl::message::get_u32;
use crate::nl::{Message, NetlinkError, Reply, flag};

use super::{AF_INET, AF_INET6, AF_UNSPEC, Rtnl, family_number};

/// `RTM_NEWADDR`.
pub const NEW: u16 = 20;
/// `RTM_DELADDR`.
pub const DEL: u16 = 21;
/// `RTM_GETADDR`.
pub const GET: u16 = 22;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// `IFA_F_NODAD`: usable at once, without duplicate address detection.
pub const NODAD: u8 = 0x02;
/// `RT_SCOPE_UNIVERSE`.
pub const SCOPE_GLOBAL: u8 = 0;

const IFADDRMSG: usize = 8;

/// An address as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedAddress {
    /// Index of the link that holds it.
    pub link: u32,
    /// Address and prefix length.
    pub address: IpNet,
    /// `RT_SCOPE_*`: 0 global, 253 link, 254 host.
    pub scope: u8,
    /// `IFA_F_*`.
    pub flags: u32,
}

fn header(family: u8, prefix: u8, flags: u8, index: u32) -> [u8; IFADDRMSG] {
    let [a, b, c, d] = index.to_ne_bytes();
    [family, prefix, flags, SCOPE_GLOBAL, a, b, c, d]
}

/// Reads an `RTM_NEWADDR` or `RTM_DELADDR`.
pub fn read(reply: &Reply<'_>) -> Option<ObservedAddress> {
    let header = reply.header(IFADDRMSG)?;
    let [family, prefix, flags, scope, ..] = *header else {
        return None;
    };
    if !matches!(reply.kind, NEW | DEL) || !matches!(family, AF_INET | AF_INET6) {
        return None;
    }
    let (mut address, mut local, mut flags) = (None, None, u32::from(flags));
    for attribute in reply.attributes(IFADDRMSG) {
        match attribute.kind {
            IFA_ADDRESS => address = attribute.ip(),
            // Where both are there, the local one is ours and the other the peer's.
            IFA_LOCAL => local = attribute.ip(),
            IFA_FLAGS => flags = attribute.u32()?,
            _ => {}
        }
    }
    let address = IpNet::new(local.or(address)?, prefix).ok()?;
    Some(ObservedAddress {
        link: get_u32(header, 4)?,
        address,
        scope,
        flags,
    })
}

/// The message that adds an address of global scope, without broadcast, IPv6 without duplicate address detection.
pub fn add_message(link: u32, address: IpNet) -> Message {
    let flags = if address.addr().is_ipv6() { NODAD } else { 0 };
    let family = family_number(Family::of_net(address));
    Message::new("add address", NEW, flag::ADD)
        .raw(&header(family, address.prefix_len(), flags, link))
        .ip(IFA_LOCAL, address.addr())
        .ip(IFA_ADDRESS, address.addr())
}

/// The message that deletes exactly this address.
pub fn delete_message(link: u32, address: IpNet) -> Message {
    let family = family_number(Family::of_net(address));
    let ip: IpAddr = address.addr();
    Message::new("delete address", DEL, 0)
        .raw(&header(family, address.prefix_len(), 0, link))
        .ip(IFA_LOCAL, ip)
        .ip(IFA_ADDRESS, ip)
}

impl Rtnl {
    /// The addresses of a link, of both families and every scope.
    pub fn addresses(&mut self, link: u32) -> Result<Vec<ObservedAddress>, NetlinkError> {
        let message = Message::new("list addresses", GET, 0).raw(&header(AF_UNSPEC, 0, 0, link));
        // Kernels without strict checking ignore the filter.
        match self.list(&message, |reply| read(reply).filter(|a| a.link == link)) {
            Err(error) if error.is_absent() => Ok(Vec::new()),
            other => other,
        }
    }

    /// Adds an address of global scope.
    pub fn add_address(&mut self, link: u32, address: IpNet) -> Result<(), NetlinkError> {
        self.socket()
            .request(&add_message(link, address))
            .map_err(|error| error.of(format_args!("add address {address}")))
    }

    /// Deletes an address.
    pub fn delete_address(&mut self, link: u32, address: IpNet) -> Result<(), NetlinkError> {
        self.socket()
            .request(&delete_message(link, address))
            .map_err(|error| error.of(format_args!("delete address {address}")))
    }
}
