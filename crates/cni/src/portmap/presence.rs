//! Whether there is anything to remove, asked of the kernel: most containers have no ports, and a firewall program costs more
//! than all the rest of their DEL.

use std::net::IpAddr;

use fabric::object::Family;
use kernel::firewall::legacy::Probe;
use kernel::nl::{Attribute, Message, Protocol, Socket};
use rustix::io::Errno;

use crate::portmap::nft::holds;

/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETCHAIN`.
const GET_CHAIN: u16 = 0x0a04;
/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETRULE`.
const GET_RULE: u16 = 0x0a07;
const NFGENMSG: usize = 4;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const FAMILIES: [u8; 2] = [2, 10];

/// The nat table of iptables (the one built on nftables) has a chain of one of these names, in either family.
///
/// The old iptables does not show there: its nat table is read as it is. Where the kernel does not say there may be one.
pub fn may_have_chain(names: &[String]) -> bool {
    let Ok(mut socket) = Socket::open(Protocol::Netfilter) else {
        return true;
    };
    let mut has = |family: u8, name: &str| {
        let ask = Message::new("get chain", GET_CHAIN, 0)
            .raw(&[family, 0, 0, 0])
            .text(NFTA_CHAIN_TABLE, "nat")
            .text(NFTA_CHAIN_NAME, name);
        match socket.get(&ask, |_| Some(())) {
            Ok(found) => found.is_some(),
            // A kernel without nftables has no chains in it.
            Err(e) => !(e.is_absent() || e.is_unsupported() || e.is(Errno::INVAL)),
        }
    };
    let found = FAMILIES
        .into_iter()
        .any(|family| names.iter().any(|name| has(family, name)));
    let in_old = |family| Probe::new(family, "nat").has_chain(names).unwrap_or(true);
    found || Family::BOTH.into_iter().any(in_old)
}

/// A chain of a nat table, that of iptables built on nftables or the old one's, has a rule that holds this text, in a comment for
/// instance. Where the kernel does not say there may be one.
pub fn may_hold_text(family: Family, chain: &str, text: &str) -> bool {
    let number = FAMILIES[usize::from(family == Family::V6)];
    let ask = Message::new("list rules", GET_RULE, 0)
        .raw(&[number, 0, 0, 0])
        .text(NFTA_RULE_TABLE, "nat")
        .text(NFTA_RULE_CHAIN, chain);
    let wanted = text.as_bytes();
    let holds_it = |a: Attribute<'_>| a.value.windows(wanted.len().max(1)).any(|w| w == wanted);
    let listed = Socket::open(Protocol::Netfilter).and_then(|mut socket| {
        socket.dump(
            &ask,
            || false,
            |found: &mut bool, reply| {
                *found = *found || reply.attributes(NFGENMSG).any(holds_it);
            },
        )
    });
    let in_new = match listed {
        Ok(found) => found,
        // No such chain, or a kernel without nftables.
        Err(e) => !(e.is_absent() || e.is_unsupported() || e.is(Errno::INVAL)),
    };
    in_new || Probe::new(family, "nat").holds_text(text).unwrap_or(true)
}

/// A chain of iptables (the one built on nftables) has rules, none of which names one of these addresses.
pub fn leads_elsewhere(chain: &str, addresses: &[IpAddr]) -> bool {
    let (mut rules, mut ours) = (0, false);
    for ip in addresses {
        let ask = Message::new("list rules", GET_RULE, 0)
            .raw(&[FAMILIES[usize::from(ip.is_ipv6())], 0, 0, 0])
            .text(NFTA_RULE_TABLE, "nat")
            .text(NFTA_RULE_CHAIN, chain);
        let listed = Socket::open(Protocol::Netfilter).and_then(|mut socket| {
            socket.dump(&ask, Vec::new, |found: &mut Vec<bool>, reply| {
                let attributes = || reply.attributes(NFGENMSG);
                if attributes().any(|a| a.kind == NFTA_RULE_CHAIN && a.text() == Some(chain)) {
                    let names = |a: Attribute<'_>| a.kind == NFTA_RULE_EXPRESSIONS && holds(a.value, *ip);
                    found.push(attributes().any(names));
                }
            })
        });
        for names_it in listed.unwrap_or_default() {
            rules += 1;
            ours |= names_it;
        }
    }
    rules > 0 && !ours
}
