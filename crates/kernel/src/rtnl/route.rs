//! Routes: `RTM_*ROUTE`, `struct rtmsg`.

use std::net::IpAddr;

use fabric::object::{Family, Route};
use ipnet::IpNet;
use rustix::io::Errno;

use crate::nl::message::get_u32;
use crate::nl::{Attribute, Message, NetlinkError, Reply, flag};

use super::{AF_INET, AF_INET6, Rtnl, family_number};

/// `RTM_NEWROUTE`.
pub const NEW: u16 = 24;
/// `RTM_DELROUTE`.
pub const DEL: u16 = 25;
/// `RTM_GETROUTE`.
pub const GET: u16 = 26;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_ENCAP_TYPE: u16 = 21;
const RTA_NH_ID: u16 = 30;

/// `RT_TABLE_LOCAL`.
const TABLE_LOCAL: u32 = 255;
const TABLE_MAIN: u8 = 254;
const SCOPE_GLOBAL: u8 = 0;
const SCOPE_LINK: u8 = 253;
/// In a deletion: any scope.
const SCOPE_NOWHERE: u8 = 255;
const RTNH_F_ONLINK: u32 = 4;
const RTM_F_CLONED: u32 = 0x200;

const RTMSG: usize = 12;

/// `rtm_type`, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteKind {
    /// Towards a next hop or a link.
    Unicast,
    /// Blackhole, unreachable, prohibit, throw, local, broadcast, …: its number.
    Other(u8),
}

impl RouteKind {
    fn of(number: u8) -> RouteKind {
        if number == 1 {
            RouteKind::Unicast
        } else {
            RouteKind::Other(number)
        }
    }
}

/// `RTN_UNICAST`.
const UNICAST: u8 = 1;
/// `RTN_BLACKHOLE`.
pub const BLACKHOLE: u8 = 6;
/// `RTN_UNREACHABLE`.
pub const UNREACHABLE: u8 = 7;

/// A route as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedRoute {
    /// Destination prefix.
    pub destination: IpNet,
    /// Priority; 0 for IPv4 routes that have none.
    pub metric: u32,
    /// Type of service it is for; 0 for any.
    pub tos: u8,
    /// Routing table.
    pub table: u32,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
    /// What it does.
    pub kind: RouteKind,
    /// Next hop; of the other family for `via inet6`.
    pub gateway: Option<IpAddr>,
    /// Index of the outgoing link.
    pub link: Option<u32>,
    /// The gateway is taken to be on the link.
    pub onlink: bool,
    /// Several next hops, or an encapsulation: more than gateway and link say.
    pub compound: bool,
    /// Number of the next hop object it uses.
    pub nexthop: Option<u32>,
    /// A cached exception, not a route somebody made.
    pub cloned: bool,
}

impl ObservedRoute {
    /// A configured route of the main table, for any type of service.
    pub fn is_main(&self) -> bool {
        self.table == u32::from(TABLE_MAIN) && self.tos == 0 && !self.cloned
    }

    /// A configured route of a table that a rule may lead to. The kernel's own, of local addresses, is none.
    pub fn is_of_further_table(&self) -> bool {
        ![u32::from(TABLE_MAIN), TABLE_LOCAL].contains(&self.table) && !self.cloned
    }
}

/// How a route reaches its next hop in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Gateway and link of the route itself, through the link of this index.
    Link(u32),
    /// The next hop object of this number.
    Nexthop(u32),
    /// None: of a blackhole and its like. In a deletion it matches any.
    Nowhere,
}

struct Header {
    family: u8,
    prefix: u8,
    protocol: u8,
    scope: u8,
    kind: u8,
    flags: u32,
}

impl Header {
    fn bytes(&self) -> [u8; RTMSG] {
        let [a, b, c, d] = self.flags.to_ne_bytes();
        [
            self.family,
            self.prefix,
            0,
            0,
            TABLE_MAIN,
            self.protocol,
            self.scope,
            self.kind,
            a,
            b,
            c,
            d,
        ]
    }
}

/// Reads an `RTM_NEWROUTE` or `RTM_DELROUTE` of an IP family.
pub fn read(reply: &Reply<'_>) -> Option<ObservedRoute> {
    let header = reply.header(RTMSG)?;
    let [family, prefix, _, tos, table, protocol, _, kind, ..] = *header else {
        return None;
    };
    let unspecified = match family {
        AF_INET => Family::V4.unspecified(),
        AF_INET6 => Family::V6.unspecified(),
        _ => return None,
    };
    if !matches!(reply.kind, NEW | DEL) {
        return None;
    }
    let flags = get_u32(header, 8)?;
    let (mut destination, mut metric, mut table) = (unspecified, 0, u32::from(table));
    let (mut gateway, mut link, mut nexthop, mut compound) = (None, None, None, false);
    for attribute in reply.attributes(RTMSG) {
        match attribute.kind {
            RTA_DST => destination = attribute.ip()?,
            RTA_OIF => link = attribute.u32(),
            RTA_GATEWAY => gateway = attribute.ip(),
            RTA_VIA => gateway = via(&attribute),
            RTA_PRIORITY => metric = attribute.u32()?,
            RTA_TABLE => table = attribute.u32()?,
            RTA_NH_ID => nexthop = attribute.u32(),
            RTA_MULTIPATH => {
                compound = true;
                // struct rtnexthop: length, flags, hops, then the interface index.
                link = get_u32(attribute.value, 4);
            }
            RTA_ENCAP_TYPE => compound = true,
            _ => {}
        }
    }
    Some(ObservedRoute {
        destination: IpNet::new(destination, prefix).ok()?,
        metric,
        tos,
        table,
        protocol,
        kind: RouteKind::of(kind),
        gateway,
        link,
        onlink: flags & RTNH_F_ONLINK != 0,
        compound,
        nexthop,
        cloned: flags & RTM_F_CLONED != 0,
    })
}

/// `struct rtvia`: the family, then the address.
fn via(attribute: &Attribute<'_>) -> Option<IpAddr> {
    Attribute {
        kind: 0,
        value: attribute.value.get(2..)?,
    }
    .ip()
}

fn destination(message: Message, route: &Route) -> Message {
    let message = message.ip(RTA_DST, route.destination.network());
    // Leaving the default out keeps the bytes those of Go flannel.
    if route.metric == Family::of_net(route.destination).default_metric() {
        message
    } else {
        message.u32(RTA_PRIORITY, route.metric)
    }
}

/// The message that makes a route; `flags` say what to do when there is one of the same destination and metric.
pub fn add_message(flags: u16, route: &Route, via: Via) -> Message {
    let family = family_number(Family::of_net(route.destination));
    let refused = route.is_unreachable();
    let local = family == AF_INET && route.gateway.is_none() && !refused;
    let onlink = route.onlink && matches!(via, Via::Link(_));
    let header = Header {
        family,
        prefix: route.destination.prefix_len(),
        protocol: route.protocol,
        scope: if local { SCOPE_LINK } else { SCOPE_GLOBAL },
        kind: if refused { UNREACHABLE } else { UNICAST },
        flags: if onlink { RTNH_F_ONLINK } else { 0 },
    };
    let message = destination(Message::new("add route", NEW, flags).raw(&header.bytes()), route);
    match via {
        Via::Nexthop(id) => message.u32(RTA_NH_ID, id),
        Via::Link(index) if !refused => gateway(message, route).u32(RTA_OIF, index),
        Via::Link(_) | Via::Nowhere => message,
    }
}

fn gateway(message: Message, route: &Route) -> Message {
    match route.gateway {
        Some(gateway) if gateway.is_ipv4() == route.destination.addr().is_ipv4() => {
            message.ip(RTA_GATEWAY, gateway)
        }
        Some(IpAddr::V6(gateway)) => {
            let mut bytes = [0; 18];
            bytes[..2].copy_from_slice(&u16::from(AF_INET6).to_ne_bytes());
            bytes[2..].copy_from_slice(&gateway.octets());
            message.attribute(RTA_VIA, &bytes)
        }
        // An IPv4 gateway of an IPv6 route does not exist; the kernel says so better than we would.
        Some(gateway) => message.ip(RTA_GATEWAY, gateway),
        None => message,
    }
}

/// The message that deletes exactly this route.
pub fn delete_message(route: &Route, via: Via) -> Message {
    let header = Header {
        family: family_number(Family::of_net(route.destination)),
        prefix: route.destination.prefix_len(),
        protocol: route.protocol,
        scope: SCOPE_NOWHERE,
        kind: 0,
        flags: 0,
    };
    let message = Message::new("delete route", DEL, 0).raw(&header.bytes());
    // Unlike in an addition, leaving the IPv6 metric out would mean any.
    let message = message.ip(RTA_DST, route.destination.network());
    let message = if route.metric == 0 {
        message
    } else {
        message.u32(RTA_PRIORITY, route.metric)
    };
    match via {
        // The kernel matches neither gateway nor link of a route by object.
        Via::Nexthop(id) => message.u32(RTA_NH_ID, id),
        Via::Link(index) => gateway(message, route).u32(RTA_OIF, index),
        Via::Nowhere => message,
    }
}

/// The message that drops packets for a destination, silently.
pub fn blackhole_message(flags: u16, to: IpNet, metric: u32, protocol: u8) -> Message {
    let header = Header {
        family: family_number(Family::of_net(to)),
        prefix: to.prefix_len(),
        protocol,
        scope: SCOPE_GLOBAL,
        kind: BLACKHOLE,
        flags: 0,
    };
    let message = Message::new("add blackhole", NEW, flags)
        .raw(&header.bytes())
        .ip(RTA_DST, to.network());
    if metric == Family::of_net(to).default_metric() {
        message
    } else {
        message.u32(RTA_PRIORITY, metric)
    }
}

/// The request for the main table's routes of a family, all or those through one link.
pub(crate) fn list_message(family: Family, link: Option<u32>) -> Message {
    let header = Header {
        family: family_number(family),
        prefix: 0,
        protocol: 0,
        scope: 0,
        kind: 0,
        flags: 0,
    }
    .bytes();
    let message = Message::new("list routes", GET, 0)
        .raw(&header)
        .u32(RTA_TABLE, u32::from(TABLE_MAIN));
    match link {
        Some(index) => message.u32(RTA_OIF, index),
        None => message,
    }
}

/// The request for the route the kernel would take to an address.
pub(crate) fn lookup_message(to: IpAddr) -> Message {
    let family = Family::of(to);
    let mut header = [0; RTMSG];
    header[0] = family_number(family);
    header[1] = family.bits();
    Message::new("look up route", GET, 0).raw(&header).ip(RTA_DST, to)
}

impl Rtnl {
    /// The configured routes of the main table, all or those through one link.
    pub fn routes(&mut self, family: Family, link: Option<u32>) -> Result<Vec<ObservedRoute>, NetlinkError> {
        self.fold_routes(family, link, Vec::new, |found, route| found.push(*route))
    }

    /// As [`Rtnl::routes`], each route given to `each` instead of kept; `start` is called anew if the dump must be.
    pub fn fold_routes<S>(
        &mut self,
        family: Family,
        link: Option<u32>,
        start: impl Fn() -> S,
        mut each: impl FnMut(&mut S, &ObservedRoute),
    ) -> Result<S, NetlinkError> {
        let result = self
            .socket()
            .dump(&list_message(family, link), &start, |state, reply| {
                // Kernels without strict checking ignore the filters.
                let wanted = |r: &ObservedRoute| {
                    r.is_main()
                        && Family::of_net(r.destination) == family
                        && (link.is_none() || r.link == link || r.compound)
                };
                if let Some(route) = read(reply).filter(wanted) {
                    each(state, &route);
                }
            });
        match result {
            // A namespace that never had a route has no main table.
            Err(error) if error.is(Errno::NOENT) || error.is(Errno::NODEV) => Ok(start()),
            Err(error) if error.is(Errno::AFNOSUPPORT) || error.is(Errno::OPNOTSUPP) => Ok(start()),
            other => other,
        }
    }

    /// Adds a route through the link of this index; refused when destination and metric are taken.
    pub fn add_route(&mut self, route: &Route, link: u32) -> Result<(), NetlinkError> {
        self.put_route("add", flag::ADD, route, Via::Link(link))
    }

    /// Adds a route, or turns the one of the same destination and metric into it, without a moment of neither.
    pub fn replace_route(&mut self, route: &Route, link: u32) -> Result<(), NetlinkError> {
        self.put_route("replace", flag::PUT, route, Via::Link(link))
    }

    /// Adds a route by next hop object.
    pub fn add_route_by_nexthop(&mut self, route: &Route, id: u32) -> Result<(), NetlinkError> {
        self.put_route("add", flag::ADD, route, Via::Nexthop(id))
    }

    fn put_route(&mut self, verb: &str, flags: u16, route: &Route, via: Via) -> Result<(), NetlinkError> {
        self.socket()
            .request(&add_message(flags, route, via))
            .map_err(|error| error.of(format_args!("{verb} route {}", route.destination)))
    }

    /// Deletes exactly this route.
    pub fn delete_route(&mut self, route: &Route, via: Via) -> Result<(), NetlinkError> {
        self.socket()
            .request(&delete_message(route, via))
            .map_err(|error| error.of(format_args!("delete route {}", route.destination)))
    }

    /// Adds a blackhole with the family's default metric.
    pub fn add_blackhole(&mut self, to: IpNet, protocol: u8) -> Result<(), NetlinkError> {
        let metric = Family::of_net(to).default_metric();
        self.socket()
            .request(&blackhole_message(flag::ADD, to, metric, protocol))
            .map_err(|error| error.of(format_args!("add blackhole {to}")))
    }

    /// The route the kernel would take to an address; `None` when it has none.
    pub fn lookup(&mut self, to: IpAddr) -> Result<Option<ObservedRoute>, NetlinkError> {
        match self.socket().get(&lookup_message(to), read) {
            Err(error) if error.is(Errno::NETUNREACH) || error.is(Errno::HOSTUNREACH) => Ok(None),
            other => other.map_err(|error| error.of(format_args!("look up route to {to}"))),
        }
    }
}
