//! Whether there is anything to remove, asked of the kernel: most containers have no ports, and a firewall program costs more
//! than all the rest of their DEL.

use kernel::nl::{Message, Protocol, Socket};

/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETCHAIN`.
const GET_CHAIN: u16 = 0x0a04;
/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETRULE`.
const GET_RULE: u16 = 0x0a07;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_RULE_TABLE: u16 = 1;
const FAMILIES: [u8; 2] = [2, 10];

/// The nat table of iptables (the one built on nftables) has a chain of this name, in either family.
///
/// The old iptables does not show here. What cannot be asked is taken to be absent.
pub fn has_chain(name: &str) -> bool {
    let Ok(mut socket) = Socket::open(Protocol::Netfilter) else {
        return false;
    };
    FAMILIES.into_iter().any(|family| {
        let ask = Message::new("get chain", GET_CHAIN, 0)
            .raw(&[family, 0, 0, 0])
            .text(NFTA_CHAIN_TABLE, "nat")
            .text(NFTA_CHAIN_NAME, name);
        matches!(socket.get(&ask, |_| Some(())), Ok(Some(())))
    })
}

/// A rule of a table speaks of a container: its comment is the id.
pub fn has_rule(table: &str, container: &str) -> bool {
    let Ok(mut socket) = Socket::open(Protocol::Netfilter) else {
        return false;
    };
    let id = container.as_bytes();
    FAMILIES.into_iter().any(|family| {
        let ask = Message::new("list rules", GET_RULE, 0)
            .raw(&[family, 0, 0, 0])
            .text(NFTA_RULE_TABLE, table);
        let found = socket.dump(
            &ask,
            || false,
            |found, reply| {
                *found = *found || reply.body.windows(id.len().max(1)).any(|bytes| bytes == id);
            },
        );
        found.unwrap_or(false)
    })
}
