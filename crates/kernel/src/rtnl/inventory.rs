//! What the choice of the external interface looks at: addresses of all links, default routes, and the way to an address.

use std::net::IpAddr;

use fabric::object::Family;
use rustix::io::Errno;

use crate::nl::message::get_u32;
use crate::nl::{Message, NetlinkError, Reply};

use super::address::{self, ObservedAddress};
use super::link::ObservedLink;
use super::route::{self, RouteKind};
use super::{AF_UNSPEC, Rtnl};

const RTA_OIF: u16 = 4;
const RTA_PREFSRC: u16 = 7;
const RTMSG: usize = 12;

/// A default route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Priority; the lowest wins.
    pub metric: u32,
    /// Index of the outgoing link; that of the first next hop where there are several.
    pub link: Option<u32>,
    /// It has several next hops.
    pub multipath: bool,
}

/// Where the kernel would send a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Index of the outgoing link.
    pub link: u32,
    /// The source address it would have (`RTA_PREFSRC`).
    pub source: Option<IpAddr>,
}

/// Links, their addresses, and the default routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawInventory {
    /// Every link, by index.
    pub links: Vec<ObservedLink>,
    /// Every address of both families, in the kernel's order.
    pub addresses: Vec<ObservedAddress>,
    /// IPv4 default routes, lowest metric first.
    pub default4: Vec<DefaultRoute>,
    /// IPv6 default routes, likewise.
    pub default6: Vec<DefaultRoute>,
}

impl Rtnl {
    /// Takes stock of the namespace.
    pub fn inventory(&mut self) -> Result<RawInventory, NetlinkError> {
        let mut links = self.links()?;
        links.sort_by_key(|link| link.index);
        let mut header = [0; 8];
        header[0] = AF_UNSPEC;
        let message = Message::new("list addresses", address::GET, 0).raw(&header);
        let addresses = self.list(&message, address::read)?;
        let default4 = self.default_routes(Family::V4)?;
        let default6 = self.default_routes(Family::V6)?;
        Ok(RawInventory {
            links,
            addresses,
            default4,
            default6,
        })
    }

    fn default_routes(&mut self, family: Family) -> Result<Vec<DefaultRoute>, NetlinkError> {
        let mut found = self.fold_routes(family, None, Vec::new, |found, route| {
            if route.destination.prefix_len() == 0 && route.kind == RouteKind::Unicast {
                found.push(DefaultRoute {
                    metric: route.metric,
                    link: route.link,
                    multipath: route.compound,
                });
            }
        })?;
        // Stable: among equal metrics the kernel's own order decides, as it does for packets.
        found.sort_by_key(|route: &DefaultRoute| route.metric);
        Ok(found)
    }

    /// The link and source address by which the kernel would reach an address; `None` when it has no route to it.
    pub fn reach(&mut self, to: IpAddr) -> Result<Option<Reach>, NetlinkError> {
        match self.socket().get(&route::lookup_message(to), read_reach) {
            Err(error) if error.is(Errno::NETUNREACH) || error.is(Errno::HOSTUNREACH) => Ok(None),
            other => other.map_err(|error| error.of(format_args!("look up route to {to}"))),
        }
    }
}

fn read_reach(reply: &Reply<'_>) -> Option<Reach> {
    let header = reply.header(RTMSG)?;
    // rtm_type: a route that drops leads nowhere; one to ourselves (local, 2) leads to no other host, but the caller says so
    // better than silence would.
    if reply.kind != route::NEW || !matches!(header.get(7), Some(1 | 2)) {
        return None;
    }
    let (mut link, mut source) = (None, None);
    for attribute in reply.attributes(RTMSG) {
        match attribute.kind {
            RTA_OIF => link = get_u32(attribute.value, 0),
            RTA_PREFSRC => source = attribute.ip(),
            _ => {}
        }
    }
    Some(Reach { link: link?, source })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{heard, ip};
    use super::*;

    #[test]
    fn way_when_looked_up_then_link_and_source_unless_it_leads_nowhere() {
        let shown = |kind, what| Message::new("", kind, 0).raw(&[2, 32, 0, 0, 254, 0, 0, what, 0, 0, 0, 0]);
        for what in [1, 2] {
            let whole = shown(24, what)
                .u32(4, 3)
                .ip(7, ip("192.0.2.1"))
                .ip(5, ip("192.0.2.9"));
            let expected = Reach {
                link: 3,
                source: Some(ip("192.0.2.1")),
            };
            assert_eq!(heard(&whole, read_reach), Some(expected));
        }
        let sourceless = heard(&shown(24, 1).u32(4, 3), read_reach);
        assert_eq!(sourceless.map(|reach| reach.source), Some(None));
        assert_eq!(heard(&shown(24, 1), read_reach), None, "by no link");
        assert_eq!(heard(&shown(25, 1).u32(4, 3), read_reach), None);
        for what in [0, 6, 7, 8] {
            assert_eq!(heard(&shown(24, what).u32(4, 3), read_reach), None, "type {what}");
        }
    }
}
