//! Deleting UDP flows that rules no longer say anything about: those that began before a port was mapped would go on past the new
//! rules, those that were translated to a container would go on to nobody when that is gone.

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
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_DST: u16 = 4;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const UDP: u8 = 17;
const NFGENMSG: usize = 4;

/// Deletes UDP flows of a family that rules for these addresses and ports would take over; `None` is any address of the host. Returns
/// how many there were.
///
/// # Errors
///
/// The kernel's, of listing.
pub fn delete_udp_flows(v6: bool, to: &[(Option<IpAddr>, u16)]) -> Result<usize, NetlinkError> {
    // A flow through the host to somebody else's port of that number goes on.
    let mut host = Host::default();
    delete(v6, |flow| {
        let mut targets = to.iter().filter(|(_, wanted)| *wanted == flow.port);
        targets.any(|(bound, _)| bound.map_or_else(|| host.has(flow.to), |bound| bound == flow.to))
    })
}

/// Deletes UDP flows that are translated to these addresses, of containers that are gone: as long as somebody sends, each would go
/// on to nobody. Returns how many there were.
///
/// # Errors
///
/// The kernel's, of listing.
pub fn delete_udp_flows_into(pods: &[IpAddr]) -> Result<usize, NetlinkError> {
    let mut deleted = 0;
    for v6 in [false, true] {
        if pods.iter().any(|pod| pod.is_ipv6() == v6) {
            deleted += delete(v6, |flow| flow.is_translated_to(pods))?;
        }
    }
    Ok(deleted)
}

/// A UDP flow.
struct Flow {
    /// What its first packet was sent to.
    to: IpAddr,
    port: u16,
    /// Who answers: another than it was sent to where that is translated.
    answered_by: Option<IpAddr>,
}

impl Flow {
    fn is_translated_to(&self, pods: &[IpAddr]) -> bool {
        self.answered_by
            .is_some_and(|by| by != self.to && pods.contains(&by))
    }
}

fn delete(v6: bool, mut is_wanted: impl FnMut(&Flow) -> bool) -> Result<usize, NetlinkError> {
    let family = if v6 { 10 } else { 2 };
    let header = [family, 0, 0, 0];
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let listing = Message::new("list flows", GET, 0).raw(&header);
    let flows = socket.dump(&listing, Vec::new, |found: &mut Vec<Vec<u8>>, reply| {
        let (mut sent, mut answered_by) = (None, None);
        for attribute in reply.attributes(NFGENMSG) {
            match attribute.kind {
                CTA_TUPLE_ORIG => {
                    let target = udp_target(attribute.nested());
                    sent = target.map(|target| (target, attribute.value.to_vec()));
                }
                CTA_TUPLE_REPLY => answered_by = source(attribute.nested()),
                _ => {}
            }
        }
        if let Some(((to, port), tuple)) = sent
            && is_wanted(&Flow {
                to,
                port,
                answered_by,
            })
        {
            found.push(tuple);
        }
    })?;
    let deletions = flows.iter().map(|tuple| {
        Message::new("delete flow", DELETE, 0)
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

fn source(tuple: Attributes<'_>) -> Option<IpAddr> {
    let mut found = None;
    for part in tuple {
        for detail in part.nested() {
            if part.kind == CTA_TUPLE_IP && matches!(detail.kind, CTA_IP_V4_SRC | CTA_IP_V6_SRC) {
                found = detail.ip();
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::portmap::attribute;
    use kernel::nl::message::attributes;

    fn tuple(number: u8, port: u16) -> Vec<u8> {
        let ip = [
            attribute(CTA_IP_V4_SRC, &[192, 0, 2, 1]),
            attribute(CTA_IP_V4_DST, &[10, 244, 7, 2]),
        ];
        let proto = [
            attribute(CTA_PROTO_NUM, &[number]),
            attribute(2, &7u16.to_be_bytes()),
            attribute(CTA_PROTO_DST_PORT, &port.to_be_bytes()),
        ];
        [
            attribute(CTA_TUPLE_IP, &ip.concat()),
            attribute(CTA_TUPLE_PROTO, &proto.concat()),
        ]
        .concat()
    }

    #[test]
    fn flow_when_of_udp_tells_whither_it_was_sent_and_who_answers() {
        let udp = tuple(UDP, 53);
        let target: IpAddr = "10.244.7.2".parse().unwrap();
        assert_eq!(udp_target(attributes(&udp)), Some((target, 53)));
        assert_eq!(source(attributes(&udp)), Some("192.0.2.1".parse().unwrap()));
        assert_eq!(udp_target(attributes(&tuple(6, 53))), None, "TCP");
        assert_eq!(udp_target(attributes(&[])), None);
        // Of the same numbers in the other part nothing is an address.
        let ports = attribute(CTA_TUPLE_PROTO, &attribute(CTA_IP_V4_SRC, &[1, 2, 3, 4]));
        assert_eq!(source(attributes(&ports)), None);
        let of_v6 = [
            attribute(CTA_IP_V6_SRC, &[0xfd; 16]),
            attribute(CTA_IP_V6_DST, &[0xfe; 16]),
        ];
        let of_v6 = attribute(CTA_TUPLE_IP, &of_v6.concat());
        assert_eq!(source(attributes(&of_v6)), Some(IpAddr::from([0xfd; 16])));
    }

    #[test]
    fn flow_when_the_container_answers_for_another_address_is_translated_to_it() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let flow = |to: &str, by: Option<&str>| Flow {
            to: ip(to),
            port: 53,
            answered_by: by.map(ip),
        };
        let pods = [ip("10.244.7.2")];
        assert!(flow("192.0.2.1", Some("10.244.7.2")).is_translated_to(&pods));
        assert!(!flow("10.244.7.2", Some("10.244.7.2")).is_translated_to(&pods));
        assert!(!flow("192.0.2.1", Some("10.244.7.3")).is_translated_to(&pods));
        assert!(!flow("192.0.2.1", None).is_translated_to(&pods));
    }
}
