//! A container's end of a link: addresses, up, routes, all in one conversation.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use fabric::object::{Family, LinkName};
use ipnet::IpNet;

use crate::nl::{Message, NetlinkError, Protocol, Socket, flag};

use super::address::{self, NODAD};
use super::bridge::wait_readable;
use super::link::{self, IFLA_IFNAME, UP};
use super::{Rtnl, family_number, group};

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
/// `IFA_F_TENTATIVE`: duplicate address detection is under way.
const TENTATIVE: u32 = 0x40;
/// `IFA_F_DADFAILED`: another host has the address.
const DADFAILED: u32 = 0x08;

const NEW_ROUTE: u16 = 24;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_METRICS: u16 = 8;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
const TABLE_MAIN: u8 = 254;
/// `RT_TABLE_UNSPEC`-like filler of the 8-bit field when the table does not fit it.
const TABLE_COMPAT: u8 = 252;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;

/// A route of a container, as CNI results have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodRoute {
    /// Destination, host bits ignored.
    pub destination: IpNet,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Metric; 0 is the kernel's default.
    pub priority: u32,
    /// Routing table; `None` is the main one.
    pub table: Option<u32>,
    /// `rtm_scope`.
    pub scope: u8,
    /// Path MTU in bytes; 0 is none.
    pub mtu: u32,
    /// Advertised TCP segment size in bytes; 0 is none.
    pub advmss: u32,
}

/// Which step of [`Rtnl::configure_pod`] the kernel refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodStep {
    /// The address at this position.
    Address(usize),
    /// Setting the link up.
    Up,
    /// The route at this position.
    Route(usize),
}

/// A step the kernel refused, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodError {
    /// Which one.
    pub step: PodStep,
    /// The kernel's reason.
    pub error: NetlinkError,
}

/// The message that adds an address with the broadcast address of its network, as `ip` and Go's plugins do.
pub fn add_address_message(link: u32, address: IpNet, nodad: bool, flags: u16) -> Message {
    let [a, b, c, d] = link.to_ne_bytes();
    let ifa_flags = if nodad { NODAD } else { 0 };
    let header = [
        family_number(Family::of_net(address)),
        address.prefix_len(),
        ifa_flags,
        0,
        a,
        b,
        c,
        d,
    ];
    let message = Message::new("add address", address::NEW, flags)
        .raw(&header)
        .ip(IFA_LOCAL, address.addr())
        .ip(IFA_ADDRESS, address.addr());
    match broadcast(address) {
        Some(broadcast) => message.ip(IFA_BROADCAST, IpAddr::V4(broadcast)),
        None => message,
    }
}

fn broadcast(address: IpNet) -> Option<Ipv4Addr> {
    match address {
        IpNet::V4(net) if net.prefix_len() < 31 => Some(net.broadcast()),
        _ => None,
    }
}

/// The message that adds a route behind those of the same destination and metric, or before them (IPv4).
pub fn add_route_message(link: u32, route: &PodRoute) -> Message {
    let family = Family::of_net(route.destination);
    let table = route.table.unwrap_or(u32::from(TABLE_MAIN));
    let header = [
        family_number(family),
        route.destination.prefix_len(),
        0,
        0,
        u8::try_from(table).unwrap_or(TABLE_COMPAT),
        RTPROT_BOOT,
        route.scope,
        RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    let mut message = Message::new("add route", NEW_ROUTE, flag::CREATE).raw(&header);
    message = message.ip(RTA_DST, route.destination.network());
    if let Some(gateway) = route.gateway {
        message = message.ip(RTA_GATEWAY, gateway);
    }
    message = message.u32(RTA_OIF, link);
    if route.priority > 0 {
        message = message.u32(RTA_PRIORITY, route.priority);
    }
    if table > u32::from(u8::MAX) {
        message = message.u32(RTA_TABLE, table);
    }
    if route.mtu == 0 && route.advmss == 0 {
        return message;
    }
    message.nest(RTA_METRICS, |mut metrics| {
        for (kind, value) in [(RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advmss)] {
            if value > 0 {
                metrics = metrics.u32(kind, value);
            }
        }
        metrics
    })
}

/// The messages that add an address; an `exempt` IPv6 one without detection, and then made an ordinary one.
fn usable_address_messages(link: u32, address: IpNet, exempt: bool) -> Vec<Message> {
    let exempt = exempt && address.addr().is_ipv6();
    let mut messages = vec![add_address_message(link, address, exempt, flag::ADD)];
    if exempt {
        messages.push(add_address_message(link, address, false, flag::REPLACE));
    }
    messages
}

/// The messages that make a pod's link what it is to be, and which step each belongs to.
fn pod_messages(
    link: u32,
    addresses: &[IpNet],
    routes: &[PodRoute],
    detection: bool,
) -> (Vec<PodStep>, Vec<Message>) {
    let mut steps = Vec::with_capacity(addresses.len() * 2 + 1 + routes.len());
    let mut messages = Vec::with_capacity(steps.capacity());
    for (i, address) in addresses.iter().enumerate() {
        let wanted = usable_address_messages(link, *address, !detection);
        steps.extend(wanted.iter().map(|_| PodStep::Address(i)));
        messages.extend(wanted);
    }
    steps.push(PodStep::Up);
    messages.push(Message::new("set link up", link::NEW, 0).raw(&link::header(link, UP, UP)));
    for (i, route) in routes.iter().enumerate() {
        steps.push(PodStep::Route(i));
        messages.push(add_route_message(link, route));
    }
    (steps, messages)
}

impl Rtnl {
    /// Gives a link its addresses, sets it up and adds the routes through it.
    ///
    /// Without duplicate address `detection`, IPv6 addresses are usable when this returns: they are added as exempt from it
    /// and at once changed into ordinary ones, which the kernel does not detect anew. (Switched off by sysctl alone, they stay
    /// tentative until a worker of the kernel has had its turn.)
    pub fn configure_pod(
        &mut self,
        link: u32,
        addresses: &[IpNet],
        routes: &[PodRoute],
        detection: bool,
    ) -> Result<(), PodError> {
        let (steps, messages) = pod_messages(link, addresses, routes, detection);
        let outcomes = self.socket().pipeline(messages);
        for (step, outcome) in steps.into_iter().zip(outcomes) {
            outcome.map_err(|error| PodError { step, error })?;
        }
        Ok(())
    }

    /// Waits until duplicate address detection is done with a link's addresses, woken by the kernel. `Some` is the address that
    /// is still tentative at the limit, or (true) that another host has.
    pub fn wait_detected(
        &mut self,
        link: u32,
        limit: Duration,
    ) -> Result<Option<(IpNet, bool)>, NetlinkError> {
        let deadline = Instant::now() + limit;
        let monitor = Socket::open(Protocol::Route)?;
        monitor.subscribe(group::IPV6_IFADDR)?;
        let mut monitor = monitor;
        loop {
            let addresses = self.addresses(link)?;
            let pending = addresses.iter().filter(|a| a.address.addr().is_ipv6());
            if let Some(failed) = pending.clone().find(|a| a.flags & DADFAILED != 0) {
                return Ok(Some((failed.address, true)));
            }
            let Some(tentative) = pending.clone().find(|a| a.flags & TENTATIVE != 0) else {
                return Ok(None);
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Some((tentative.address, false)));
            }
            wait_readable(&monitor, left);
            let _ = monitor.notifications(|_| {});
        }
    }

    /// Adds an address with its broadcast; one that is there is fine.
    ///
    /// An IPv6 one is usable at once (see [`Rtnl::configure_pod`] for how): while it is tentative, for a second or two, the
    /// bridge does not answer for it, and the first pod of a host reaches nothing beyond. The bridge is ours, so there is nobody
    /// it could be a duplicate of.
    pub fn add_gateway(&mut self, link: u32, address: IpNet) -> Result<(), NetlinkError> {
        match self
            .socket()
            .pipeline(usable_address_messages(link, address, true))
            .into_iter()
            .collect::<Result<(), _>>()
        {
            Err(error) if error.is_exists() => Ok(()),
            other => other.map_err(|error| error.of(format_args!("add address {address}"))),
        }
    }

    /// Deletes a link by name; false when there is none. The kernel removes all that hangs on it, the other end of a pair too.
    pub fn delete_link_by_name(&mut self, name: LinkName) -> Result<bool, NetlinkError> {
        let message = Message::new("delete link", link::DEL, 0)
            .raw(&link::header(0, 0, 0))
            .text(IFLA_IFNAME, name.as_str());
        match self.socket().request(&message) {
            Ok(()) => Ok(true),
            Err(error) if error.is(rustix::io::Errno::NODEV) => Ok(false),
            Err(error) => Err(error.of(format_args!("delete link {name}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_same;
    use super::*;

    #[test]
    fn pod_when_made_then_addresses_state_and_routes_in_that_order() {
        let (v4, v6): (IpNet, IpNet) = ("10.5.1.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap());
        let route = PodRoute {
            destination: "10.5.0.0/16".parse().unwrap(),
            gateway: None,
            priority: 0,
            table: None,
            scope: 0,
            mtu: 0,
            advmss: 0,
        };
        let up = || {
            let mut header = [0; 16];
            (header[4], header[8], header[12]) = (5, 1, 1);
            Message::new("", 16, 0).raw(&header)
        };
        let add = |address, exempt| add_address_message(5, address, exempt, flag::ADD);
        let (steps, messages) = pod_messages(5, &[v4, v6], &[route, route], false);
        let expected = [
            (PodStep::Address(0), add(v4, false)),
            (PodStep::Address(1), add(v6, true)),
            (
                PodStep::Address(1),
                add_address_message(5, v6, false, flag::REPLACE),
            ),
            (PodStep::Up, up()),
            (PodStep::Route(0), add_route_message(5, &route)),
            (PodStep::Route(1), add_route_message(5, &route)),
        ];
        assert_eq!((steps.len(), messages.len()), (expected.len(), expected.len()));
        for ((step, message), (expected, said)) in steps.iter().zip(&messages).zip(&expected) {
            assert_eq!(step, expected);
            assert_same(message, said);
        }
        let (steps, messages) = pod_messages(5, &[v6], &[], true);
        assert_eq!(steps, [PodStep::Address(0), PodStep::Up]);
        assert_same(&messages[0], &add(v6, false));
        assert_eq!(usable_address_messages(5, v4, true).len(), 1);
        assert_eq!(usable_address_messages(5, v6, true).len(), 2);
    }
}
