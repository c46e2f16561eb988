//! Whether there is anything to remove, asked of the kernel: most containers have no ports, and a firewall program costs more
//! than all the rest of their DEL.

use kernel::nl::{Message, Protocol, Socket};
use rustix::io::Errno;

/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETCHAIN`.
const GET_CHAIN: u16 = 0x0a04;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const FAMILIES: [u8; 2] = [2, 10];

/// The nat table of iptables (the one built on nftables) has a chain of one of these names, in either family.
///
/// The old iptables does not show here: where its nat table is in use there may be one, and where the kernel does not say.
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
    found || uses_nat("ip_tables_names") || uses_nat("ip6_tables_names")
}

fn uses_nat(list: &str) -> bool {
    let tables = std::fs::read_to_string(format!("/proc/thread-self/net/{list}")).unwrap_or_default();
    tables.lines().any(|table| table == "nat")
}
