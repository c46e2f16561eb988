//! Typed verbs of rtnetlink, one file per kind of object. Each file holds the bytes of its messages and the reading of what
//! the kernel answers; field numbers are those of `linux/if_link.h`, `if_addr.h`, `neighbour.h`, `rtnetlink.h`, `nexthop.h`.

pub mod address;
pub mod beyond;
pub mod bridge;
pub mod forwarding;
pub mod inventory;
pub mod link;
pub mod neighbour;
pub mod nexthop;
pub mod pod;
pub mod route;
pub mod veth;

use std::os::fd::BorrowedFd;

use crate::nl::{Message, NetlinkError, Protocol, Reply, Socket};

pub use address::ObservedAddress;
pub use forwarding::ObservedForwarding;
pub use inventory::{DefaultRoute, RawInventory, Reach};
pub use link::{LinkChange, ObservedLink};
pub use neighbour::ObservedNeighbour;
pub use nexthop::ObservedNexthop;
pub use route::{ObservedRoute, RouteKind};

pub(crate) const AF_UNSPEC: u8 = 0;
pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_BRIDGE: u8 = 7;
pub(crate) const AF_INET6: u8 = 10;

/// Multicast groups (`RTNLGRP_*`).
pub mod group {
    /// Links.
    pub const LINK: u32 = 1;
    /// Neighbours and forwarding entries.
    pub const NEIGH: u32 = 3;
    /// IPv4 addresses.
    pub const IPV4_IFADDR: u32 = 5;
    /// IPv4 routes.
    pub const IPV4_ROUTE: u32 = 7;
    /// IPv4 rules.
    pub const IPV4_RULE: u32 = 8;
    /// IPv6 addresses.
    pub const IPV6_IFADDR: u32 = 9;
    /// IPv6 routes.
    pub const IPV6_ROUTE: u32 = 11;
    /// IPv6 rules.
    pub const IPV6_RULE: u32 = 19;
    /// Next hop objects.
    pub const NEXTHOP: u32 = 32;
}

/// The number of a family in the kernel.
pub(crate) fn family_number(family: fabric::object::Family) -> u8 {
    match family {
        fabric::object::Family::V4 => AF_INET,
        fabric::object::Family::V6 => AF_INET6,
    }
}

/// Rtnetlink in the network namespace it was opened in.
#[derive(Debug)]
pub struct Rtnl {
    socket: Socket,
}

impl Rtnl {
    /// In the calling thread's network namespace.
    pub fn open() -> Result<Rtnl, NetlinkError> {
        Ok(Rtnl {
            socket: Socket::open(Protocol::Route)?,
        })
    }

    /// In another network namespace; the caller does not move.
    pub fn open_in(netns: BorrowedFd<'_>) -> Result<Rtnl, NetlinkError> {
        Ok(Rtnl {
            socket: Socket::open_in(Protocol::Route, netns)?,
        })
    }

    /// The socket below, for conversations of several messages.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// Our port id.
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Dumps into a vector everything that `read` takes.
    pub(crate) fn list<T>(
        &mut self,
        message: &Message,
        mut read: impl FnMut(&Reply<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        self.socket
            .dump(message, Vec::new, |found, reply| found.extend(read(reply)))
    }
}

#[cfg(test)]
mod tests;
