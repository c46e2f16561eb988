//! Port mappings as nftables rules, in the tables of Go's plugin. A rule's comment is its container's id; which attachment it is of
//! tells the address in it.

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::NetlinkError;
use kernel::nl::{Attributes, Message, Protocol, Socket};
use rustix::io::Errno;

use crate::netfilter::run;
use crate::portmap::config::Config;

/// The table, of either family.
pub const TABLE: &str = "cni_hostport";
const CHAINS: [&str; 3] = ["hostports", "hostip_hostports", "masquerading"];
/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETRULE`.
const GET_RULE: u16 = 0x0a07;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
const NFTNL_UDATA_RULE_COMMENT: u8 = 0;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

fn family(v6: bool) -> &'static str {
    if v6 { "ip6" } else { "ip" }
}

fn target(ip: IpAddr, port: u16) -> String {
    match ip {
        IpAddr::V4(ip) => format!("{ip}:{port}"),
        IpAddr::V6(ip) => format!("[{ip}]:{port}"),
    }
}

/// Adds the mappings to a container's addresses, replacing those it has there: one transaction.
pub fn forward(config: &Config, addresses: &[IpNet]) -> Result<(), String> {
    let mut text = String::new();
    for address in addresses {
        text.push_str(&transaction(config, *address)?);
    }
    if text.is_empty() {
        return Ok(());
    }
    match run("nft", &["-f", "-"], &text) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err("could not find nftables binary: executable file not in $PATH".to_owned()),
        Err(e) => Err(format!("unable to set up nftables rules for port mappings: {e}")),
    }
}

fn transaction(config: &Config, address: IpNet) -> Result<String, String> {
    let v6 = address.addr().is_ipv6();
    let ip = family(v6);
    let table = format!("{ip} {TABLE}");
    let mut text = format!("add table {table} {{ comment \"CNI portmap plugin\"; }}\n");
    let mut line = |rest: &str| text.push_str(&format!("{}\n", rest.replace('@', &table)));
    line("add chain @ hostports");
    line("add chain @ hostip_hostports");
    line("add chain @ hostports_all");
    line("flush chain @ hostports_all");
    line("add rule @ hostports_all jump hostip_hostports");
    line("add rule @ hostports_all jump hostports");
    for hook in ["prerouting", "output"] {
        line(&format!(
            "add chain @ {hook} {{ type nat hook {hook} priority -100; }}"
        ));
        line(&format!("flush chain @ {hook}"));
        line(&format!(
            "add rule @ {hook} fib daddr type local jump hostports_all"
        ));
    }
    if config.snat {
        line("add chain @ masquerading { type nat hook postrouting priority 100; }");
    }
    for (chain, handle) in rules_of(&config.container, v6, Some(address.addr()))? {
        line(&format!("delete rule @ {chain} handle {handle}"));
    }
    let comment = &config.container;
    // Before the container's own rules: Go's plugin has them before the jump, where the last container's would be everybody's.
    let conditions: String = config
        .conditions_of(v6)
        .iter()
        .map(|word| format!("{word} "))
        .collect();
    for mapping in config.mappings.iter().filter(|m| m.is_for(v6)) {
        let bound = mapping
            .bound_to()
            .map(|to| format!("{ip} daddr {to} "))
            .unwrap_or_default();
        line(&format!(
            "add rule @ hostports {conditions}{bound}{} dport {} dnat to {} comment \"{comment}\"",
            mapping.protocol,
            mapping.host_port,
            target(address.addr(), mapping.container_port)
        ));
    }
    if config.snat {
        let pod = address.addr();
        let source = match (config.masq_all, v6) {
            (true, true) => "::/0".to_owned(),
            (true, false) => "0.0.0.0/0".to_owned(),
            (false, _) => pod.to_string(),
        };
        line(&format!(
            "add rule @ masquerading {ip} saddr {source} {ip} daddr {pod} masquerade comment \"{comment}\""
        ));
        if !v6 && !config.masq_all {
            line(&format!(
                "add rule @ masquerading ip saddr 127.0.0.1 ip daddr {pod} masquerade comment \"{comment}\""
            ));
        }
    }
    Ok(text)
}

/// Chains and handles of a container's rules in one family, of those that name an address if one is given. Asked of the kernel
/// itself: `nft` lists a table in a process of its own, and two tables in one only since a newer version.
fn rules_of(container: &str, v6: bool, of: Option<IpAddr>) -> Result<Vec<(String, u64)>, String> {
    let listed = || -> Result<Vec<(String, u64)>, NetlinkError> {
        let header = [if v6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 }, 0, 0, 0];
        let request = Message::new("list rules", GET_RULE, 0)
            .raw(&header)
            .text(NFTA_RULE_TABLE, TABLE);
        Socket::open(Protocol::Netfilter)?.dump(&request, Vec::new, |found, reply| {
            found.extend(rule_of(container, of, reply.attributes(header.len())));
        })
    };
    match listed() {
        Ok(found) => Ok(found),
        // A kernel without nftables has no rules in it.
        Err(e) if e.is_unsupported() || e.is_absent() || e.is(Errno::INVAL) => Ok(Vec::new()),
        Err(e) => Err(e.to_string()),
    }
}

/// Chain and handle of a rule, if it is in our table, its comment is the container's id, and it names the address.
fn rule_of(container: &str, of: Option<IpAddr>, attributes: Attributes<'_>) -> Option<(String, u64)> {
    let (mut table, mut chain, mut handle, mut ours) = (None, None, None, false);
    let mut names_it = of.is_none();
    for attribute in attributes {
        match attribute.kind {
            NFTA_RULE_TABLE => table = attribute.text(),
            NFTA_RULE_CHAIN => chain = attribute.text(),
            NFTA_RULE_HANDLE => handle = attribute.value.try_into().ok().map(u64::from_be_bytes),
            NFTA_RULE_EXPRESSIONS => names_it = names_it || of.is_some_and(|ip| holds(attribute.value, ip)),
            NFTA_RULE_USERDATA => ours = comment(attribute.value) == Some(container.as_bytes()),
            _ => {}
        }
    }
    let chain = chain.filter(|name| CHAINS.contains(name))?;
    (ours && names_it && table == Some(TABLE)).then_some((chain.to_owned(), handle?))
}

/// A rule's expressions compare with the address or translate to it: attributes begin at every fourth byte.
pub(super) fn holds(expressions: &[u8], ip: IpAddr) -> bool {
    let at = |octets: &[u8]| expressions.windows(octets.len()).step_by(4).any(|w| w == octets);
    match ip {
        IpAddr::V4(ip) => at(&ip.octets()),
        IpAddr::V6(ip) => at(&ip.octets()),
    }
}

/// The comment in a rule's user data, which libnftnl writes as type, length and value with a final NUL.
fn comment(mut data: &[u8]) -> Option<&[u8]> {
    while let [kind, length, rest @ ..] = data {
        let (value, after) = rest.split_at_checked(usize::from(*length))?;
        if *kind == NFTNL_UDATA_RULE_COMMENT {
            return Some(value.strip_suffix(&[0]).unwrap_or(value));
        }
        data = after;
    }
    None
}

/// Removes an attachment's rules in both families: one transaction, and none when there are none. Without its addresses, all of the
/// container's.
pub fn unforward(config: &Config) -> Result<(), String> {
    let mut text = String::new();
    let [v4, of_v6] = config.addresses;
    let known = v4.is_some() || of_v6.is_some();
    for (v6, address) in [(false, v4), (true, of_v6)] {
        if known && address.is_none() {
            continue;
        }
        for (chain, handle) in rules_of(&config.container, v6, address.map(|a| a.addr()))? {
            text.push_str(&format!(
                "delete rule {} {TABLE} {chain} handle {handle}\n",
                family(v6)
            ));
        }
    }
    if !text.is_empty() {
        run("nft", &["-f", "-"], &text).map_err(|e| format!("error deleting nftables rules: {e}"))?;
    }
    Ok(())
}

/// As many rules of the container's are there as its mappings need.
pub fn check(config: &Config, address: IpNet) -> Result<(), String> {
    let v6 = address.addr().is_ipv6();
    let ports = config.mappings.iter().filter(|m| m.is_for(v6)).count();
    let masquerades = match (config.snat, v6 || config.masq_all) {
        (false, _) => 0,
        (true, true) => 1,
        (true, false) => 2,
    };
    let have = rules_of(&config.container, v6, Some(address.addr()))?;
    for (chain, wanted) in [("hostports", ports), ("masquerading", masquerades)] {
        if have.iter().filter(|(at, _)| at == chain).count() < wanted {
            return Err(format!("missing hostport rules in {chain:?} chain"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_when_an_address_stands_at_a_fourth_byte_hold_it() {
        let ip = |text: &str| text.parse().unwrap();
        let bytes = [
            &[8, 0, 1, 0, 10, 244, 7, 2][..],
            &[0x20, 1, 0xd, 0xb8],
            &[0; 11],
            &[5],
        ]
        .concat();
        assert!(holds(&bytes, ip("10.244.7.2")) && holds(&bytes, ip("2001:db8::5")));
        assert!(
            !holds(&bytes, ip("244.7.2.32")) && !holds(&bytes, ip("2001:db8::6")) && !holds(b"", ip("::"))
        );
    }

    #[test]
    fn comment_when_user_data_has_it_anywhere_is_found_and_broken_data_has_none() {
        assert_eq!(comment(b"\0\x03c1\0"), Some(&b"c1"[..]));
        assert_eq!(comment(b"\x01\x02xy\0\x03c1\0\x01\0"), Some(&b"c1"[..]));
        assert_eq!(comment(b"\0\x02c1"), Some(&b"c1"[..]));
        for none in [&b""[..], b"\0", b"\0\x09c1", b"\x01\x01x", b"\x01"] {
            assert_eq!(comment(none), None, "{none:?}");
        }
    }
}
