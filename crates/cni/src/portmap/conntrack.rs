//! Forgetting UDP flows that began before a port was mapped: they would go on past the new rules.

use kernel::NetlinkError;
use kernel::nl::message::NESTED;
use kernel::nl::{Attributes, Message, Protocol, Socket};

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_GET`.
const GET: u16 = 0x0101;
/// `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = 0x0102;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const UDP: u8 = 17;
const NFGENMSG: usize = 4;

/// Forgets UDP flows of a family to any of these ports; returns how many there were.
pub fn forget_udp(v6: bool, ports: &[u16]) -> Result<usize, NetlinkError> {
    let family = if v6 { 10 } else { 2 };
    let header = [family, 0, 0, 0];
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let listing = Message::new("list flows", GET, 0).raw(&header);
    let flows: Vec<Vec<u8>> = socket.dump(&listing, Vec::new, |found, reply| {
        for attribute in reply.attributes(NFGENMSG).filter(|a| a.kind == CTA_TUPLE_ORIG) {
            if udp_port(attribute.nested()).is_some_and(|port| ports.contains(&port)) {
                found.push(attribute.value.to_vec());
            }
        }
    })?;
    let deletions = flows.iter().map(|tuple| {
        Message::new("forget flow", DELETE, 0)
            .raw(&header)
            .attribute(CTA_TUPLE_ORIG | NESTED, tuple)
    });
    // One that has ended meanwhile is as good as forgotten.
    let outcomes = socket.pipeline(deletions.collect::<Vec<_>>());
    Ok(outcomes.into_iter().filter(Result::is_ok).count())
}

fn udp_port(tuple: Attributes<'_>) -> Option<u16> {
    let protocol = tuple.into_iter().find(|a| a.kind == CTA_TUPLE_PROTO)?;
    let (mut number, mut port) = (None, None);
    for part in protocol.nested() {
        match part.kind {
            CTA_PROTO_NUM => number = part.u8(),
            CTA_PROTO_DST_PORT => port = part.be16(),
            _ => {}
        }
    }
    port.filter(|_| number == Some(UDP))
}
