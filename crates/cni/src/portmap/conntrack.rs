//! Forgetting UDP flows that began before a port was mapped: they would go on past the new rules.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kernel::NetlinkError;
use kernel::nl::message::NESTED;
use kernel::nl::{Attributes, Message, Protocol, Socket};
use kernel::rtnl::Rtnl;
use kernel::rtnl::route::RouteKind;

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_GET`.
const GET: u16 = 0x0101;
/// `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = 0x0102;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_DST: u16 = 4;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const UDP: u8 = 17;
const NFGENMSG: usize = 4;

/// Forgets UDP flows of a family that rules for these addresses and ports would take over; `None` is any address of the host. Returns
/// how many there were.
pub fn forget_udp(v6: bool, to: &[(Option<IpAddr>, u16)]) -> Result<usize, NetlinkError> {
    let family = if v6 { 10 } else { 2 };
    let header = [family, 0, 0, 0];
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let listing = Message::new("list flows", GET, 0).raw(&header);
    let mut flows: Vec<(IpAddr, u16, Vec<u8>)> = socket.dump(&listing, Vec::new, |found, reply| {
        for attribute in reply.attributes(NFGENMSG).filter(|a| a.kind == CTA_TUPLE_ORIG) {
            if let Some((ip, port)) = udp_target(attribute.nested())
                && to.iter().any(|(_, wanted)| *wanted == port)
            {
                found.push((ip, port, attribute.value.to_vec()));
            }
        }
    })?;
    // A flow through the host to somebody else's port of that number goes on.
    let mut host = Host::default();
    flows.retain(|(ip, port, _)| {
        let mut targets = to.iter().filter(|(_, wanted)| wanted == port);
        targets.any(|(bound, _)| bound.map_or_else(|| host.has(*ip), |bound| bound == *ip))
    });
    let deletions = flows.iter().map(|(_, _, tuple)| {
        Message::new("forget flow", DELETE, 0)
            .raw(&header)
            .attribute(CTA_TUPLE_ORIG | NESTED, tuple)
    });
    // One that has ended meanwhile is as good as forgotten.
    let outcomes = socket.pipeline(deletions.collect::<Vec<_>>());
    Ok(outcomes.into_iter().filter(Result::is_ok).count())
}

/// Which addresses are the host's, asked once each.
#[derive(Default)]
struct Host {
    rtnl: Option<Rtnl>,
    known: BTreeMap<IpAddr, bool>,
}

impl Host {
    fn has(&mut self, ip: IpAddr) -> bool {
        const LOCAL: RouteKind = RouteKind::Other(2);
        if let Some(known) = self.known.get(&ip) {
            return *known;
        }
        if self.rtnl.is_none() {
            self.rtnl = Rtnl::open().ok();
        }
        let route = self.rtnl.as_mut().and_then(|rtnl| rtnl.lookup(ip).ok().flatten());
        let is_local = route.is_some_and(|route| route.kind == LOCAL);
        self.known.insert(ip, is_local);
        is_local
    }
}

fn udp_target(tuple: Attributes<'_>) -> Option<(IpAddr, u16)> {
    let (mut ip, mut number, mut port) = (None, None, None);
    for part in tuple {
        for detail in part.nested() {
            match (part.kind, detail.kind) {
                (CTA_TUPLE_IP, CTA_IP_V4_DST | CTA_IP_V6_DST) => ip = detail.ip(),
                (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => number = detail.u8(),
                (CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT) => port = detail.be16(),
                _ => {}
            }
        }
    }
    Some((ip?, port.filter(|_| number == Some(UDP))?))
}
