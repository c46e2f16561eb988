//! Port mappings as nftables rules, in the tables of Go's plugin. A rule's comment is its container's id; which attachment it is of
//! tells the address in it.

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::NetlinkError;
use kernel::nl::{Attributes, Message, Protocol, Socket};
use rustix::io::Errno;

use crate::netfilter::{Firewall, FirewallError};
use crate::portmap::config::PortmapConfig;
use crate::portmap::gone;

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
///
/// # Errors
///
/// nft's words, or that it is not installed.
pub fn forward(
    firewall: &Firewall,
    config: &PortmapConfig,
    addresses: &[IpNet],
) -> Result<(), FirewallError> {
    let mut text = String::new();
    for address in addresses {
        text.push_str(&transaction(config, *address)?);
    }
    if text.is_empty() {
        return Ok(());
    }
    match firewall.run("nft", &["-f", "-"], &text) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(FirewallError::lasting(
            "could not find nftables binary: executable file not in $PATH",
        )),
        Err(e) => Err(e.within("unable to set up nftables rules for port mappings")),
    }
}

fn transaction(config: &PortmapConfig, address: IpNet) -> Result<String, FirewallError> {
    let v6 = address.addr().is_ipv6();
    let stale = rules_of(&config.container, v6, Some(address.addr()))?;
    Ok(text_of(config, address, &stale))
}

/// The transaction that replaces these rules of the container's, by chain and handle.
fn text_of(config: &PortmapConfig, address: IpNet, stale: &[(String, u64)]) -> String {
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
    for (chain, handle) in stale {
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
    text
}

/// Chains and handles of a container's rules in one family, of those that name an address if one is given. Asked of the kernel
/// itself: `nft` lists a table in a process of its own, and two tables in one only since a newer version.
fn rules_of(container: &str, v6: bool, of: Option<IpAddr>) -> Result<Vec<(String, u64)>, FirewallError> {
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
        Err(e) => Err(FirewallError::lasting(e.to_string())),
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

/// There are rules of an attachment's, in either family. Without its addresses, of any of the container's.
///
/// # Errors
///
/// The kernel's, of listing.
pub fn has_rules(config: &PortmapConfig) -> Result<bool, FirewallError> {
    Ok(!deletions(config)?.is_empty())
}

/// Removes an attachment's rules in both families: one transaction, and none when there are none. Without its addresses, all of the
/// container's.
///
/// # Errors
///
/// nft's words.
pub fn unforward(firewall: &Firewall, config: &PortmapConfig) -> Result<(), FirewallError> {
    apply(firewall, &deletions(config)?)
}

/// Runs what [`deletions_at`] has found.
///
/// # Errors
///
/// nft's words.
pub fn apply(firewall: &Firewall, deletions: &str) -> Result<(), FirewallError> {
    if !deletions.is_empty() {
        firewall
            .run("nft", &["-f", "-"], deletions)
            .map_err(|e| e.within("error deleting nftables rules"))?;
    }
    Ok(())
}

/// Deletions of a container's rules that name one of these addresses; empty when there are none.
///
/// # Errors
///
/// The kernel's, of listing.
pub fn deletions_at(container: &str, addresses: &[IpAddr]) -> Result<String, FirewallError> {
    let mut text = String::new();
    for address in addresses {
        let v6 = address.is_ipv6();
        for (chain, handle) in rules_of(container, v6, Some(*address))? {
            text.push_str(&deletion(v6, &chain, handle));
        }
    }
    Ok(text)
}

fn deletion(v6: bool, chain: &str, handle: u64) -> String {
    format!("delete rule {} {TABLE} {chain} handle {handle}\n", family(v6))
}

fn deletions(config: &PortmapConfig) -> Result<String, FirewallError> {
    let mut text = String::new();
    let [v4, of_v6] = config.addresses;
    let known = v4.is_some() || of_v6.is_some();
    for (v6, address) in [(false, v4), (true, of_v6)] {
        if known && address.is_none() {
            continue;
        }
        for (chain, handle) in rules_of(&config.container, v6, address.map(|a| a.addr()))? {
            text.push_str(&deletion(v6, &chain, handle));
        }
    }
    Ok(text)
}

/// The addresses that a container's ports lead to, in both families.
pub fn published_at(firewall: &Firewall, container: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for v6 in [false, true] {
        if rules_of(container, v6, None).is_ok_and(|rules| !rules.is_empty()) {
            let listed = firewall.run("nft", &["list", "table", family(v6), TABLE], "");
            found.extend(targets_in(&listed.ok().flatten().unwrap_or_default(), container));
        }
    }
    found
}

fn targets_in(listed: &str, container: &str) -> Vec<IpAddr> {
    let end = format!(" comment \"{container}\"");
    let rules = listed.lines().filter_map(|line| line.trim().strip_suffix(&end));
    let mut found: Vec<IpAddr> = rules
        .filter_map(|rule| gone::address_of(rule.split_once(" dnat to ")?.1.split(' ').next()?))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// As many rules of the container's are there as its mappings need.
///
/// # Errors
///
/// The chain that has too few.
pub fn check(config: &PortmapConfig, address: IpNet) -> Result<(), FirewallError> {
    let v6 = address.addr().is_ipv6();
    let have = rules_of(&config.container, v6, Some(address.addr()))?;
    match lacking(&have, config, v6) {
        Some(chain) => Err(FirewallError::lasting(format!(
            "missing hostport rules in {chain:?} chain"
        ))),
        None => Ok(()),
    }
}

/// The first chain that has fewer rules of the container's than its mappings need.
fn lacking(have: &[(String, u64)], config: &PortmapConfig, v6: bool) -> Option<&'static str> {
    let ports = config.mappings.iter().filter(|m| m.is_for(v6)).count();
    let masquerades = match (config.snat, v6 || config.masq_all) {
        (false, _) => 0,
        (true, true) => 1,
        (true, false) => 2,
    };
    let lacks = |(chain, wanted): &(&str, usize)| have.iter().filter(|(at, _)| at == chain).count() < *wanted;
    let needed = [("hostports", ports), ("masquerading", masquerades)];
    needed.into_iter().find(lacks).map(|(chain, _)| chain)
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
    fn targets_when_listed_are_those_of_the_container_alone() {
        let listed = "table ip cni_hostport {\n\tchain hostports {\n\t\ttcp dport 80 dnat to 10.244.7.2:80 comment \"c1\"\n\
            \t\tudp dport 53 dnat to 10.244.7.2:53 comment \"c1\"\n\t\ttcp dport 81 dnat to 10.244.7.9:80 comment \"c10\"\n\t}\n\
            \tchain masquerading {\n\t\tip saddr 127.0.0.1 ip daddr 10.244.7.2 masquerade comment \"c1\"\n\t}\n}\n";
        let ips = |text: &str| vec![text.parse::<IpAddr>().unwrap()];
        assert_eq!(targets_in(listed, "c1"), ips("10.244.7.2"));
        assert_eq!(targets_in(listed, "c2"), Vec::<IpAddr>::new());
        let v6 = "udp dport 53 dnat to [fd00::2]:53 comment \"c1\"\n";
        assert_eq!(targets_in(v6, "c1"), ips("fd00::2"));
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

    use crate::call::{Call, Environment};
    use crate::portmap::attribute;
    use kernel::nl::message::attributes;

    fn config(more: &str) -> PortmapConfig {
        let env = Environment {
            command: "ADD".into(),
            container_id: "c1".into(),
            ifname: "eth0".into(),
            ..Environment::default()
        };
        let stdin = format!(
            r#"{{"name":"cbr0","cniVersion":"1.0.0","backend":"nftables","runtimeConfig":{{"portMappings":[
                {{"hostPort":8080,"containerPort":80,"protocol":"tcp"}},
                {{"hostPort":53,"containerPort":5353,"protocol":"udp","hostIP":"192.0.2.9"}}]}}{more}}}"#
        );
        PortmapConfig::load(&Call::check(env, stdin.into_bytes()).unwrap()).unwrap()
    }

    fn added(config: &PortmapConfig, address: &str) -> Vec<String> {
        let text = text_of(config, address.parse().unwrap(), &[("hostports".into(), 7)]);
        let lines = text.lines().skip_while(|line| !line.starts_with("delete rule"));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn transaction_when_written_replaces_the_containers_rules_in_gos_tables() {
        let text = text_of(&config(""), "10.244.7.3/24".parse().unwrap(), &[]);
        assert!(text.starts_with("add table ip cni_hostport { comment \"CNI portmap plugin\"; }\nadd chain ip cni_hostport hostports\n"));
        assert!(text.contains("add rule ip cni_hostport output fib daddr type local jump hostports_all\n"));
        assert!(text.contains("masquerading { type nat hook postrouting priority 100; }"));
        assert_eq!(
            added(
                &config(r#","conditionsV4":["ip","saddr","192.0.2.0/24"]"#),
                "10.244.7.3/24"
            ),
            [
                "delete rule ip cni_hostport hostports handle 7",
                "add rule ip cni_hostport hostports ip saddr 192.0.2.0/24 tcp dport 8080 dnat to 10.244.7.3:80 comment \"c1\"",
                "add rule ip cni_hostport hostports ip saddr 192.0.2.0/24 ip daddr 192.0.2.9 udp dport 53 dnat to 10.244.7.3:5353 comment \"c1\"",
                "add rule ip cni_hostport masquerading ip saddr 10.244.7.3 ip daddr 10.244.7.3 masquerade comment \"c1\"",
                "add rule ip cni_hostport masquerading ip saddr 127.0.0.1 ip daddr 10.244.7.3 masquerade comment \"c1\"",
            ]
        );
        assert_eq!(
            added(&config(""), "fd00::3/64"),
            [
                "delete rule ip6 cni_hostport hostports handle 7",
                "add rule ip6 cni_hostport hostports tcp dport 8080 dnat to [fd00::3]:80 comment \"c1\"",
                "add rule ip6 cni_hostport masquerading ip6 saddr fd00::3 ip6 daddr fd00::3 masquerade comment \"c1\"",
            ]
        );
    }

    #[test]
    fn transaction_when_all_or_nothing_is_masqueraded_has_the_one_rule_or_none() {
        let all = config(r#","masqAll":true"#);
        assert!(
            added(&all, "10.244.7.3/24")[3].contains("ip saddr 0.0.0.0/0 ip daddr 10.244.7.3 masquerade")
        );
        assert_eq!(added(&all, "10.244.7.3/24").len(), 4);
        assert!(added(&all, "fd00::3/64")[2].contains("ip6 saddr ::/0 ip6 daddr fd00::3 masquerade"));
        let none = config(r#","snat":false"#);
        let text = text_of(&none, "10.244.7.3/24".parse().unwrap(), &[]);
        assert!(!text.contains("masquerad"), "{text}");
    }

    #[test]
    fn rules_when_counted_lack_none_of_what_the_mappings_need() {
        let have = |ports: usize, masquerades: usize| -> Vec<(String, u64)> {
            let of = |chain: &str, count| std::iter::repeat_n((chain.to_owned(), 1), count);
            of("hostports", ports)
                .chain(of("masquerading", masquerades))
                .collect()
        };
        let usual = config("");
        assert_eq!(lacking(&have(2, 2), &usual, false), None);
        assert_eq!(lacking(&have(3, 3), &usual, false), None);
        assert_eq!(lacking(&have(1, 2), &usual, false), Some("hostports"));
        assert_eq!(lacking(&have(2, 1), &usual, false), Some("masquerading"));
        assert_eq!(lacking(&have(1, 1), &usual, true), None);
        assert_eq!(lacking(&have(1, 0), &usual, true), Some("masquerading"));
        assert_eq!(lacking(&have(2, 1), &config(r#","masqAll":true"#), false), None);
        assert_eq!(lacking(&have(2, 0), &config(r#","snat":false"#), false), None);
    }

    #[test]
    fn rule_when_it_is_the_containers_and_names_the_address_gives_chain_and_handle() {
        let rule = |table: &str, chain: &str, id: &[u8]| {
            let comment = [&[0, u8::try_from(id.len()).unwrap()], id].concat();
            [
                attribute(NFTA_RULE_TABLE, format!("{table}\0").as_bytes()),
                attribute(NFTA_RULE_CHAIN, format!("{chain}\0").as_bytes()),
                attribute(NFTA_RULE_HANDLE, &9u64.to_be_bytes()),
                attribute(NFTA_RULE_EXPRESSIONS, &[10, 244, 7, 3]),
                attribute(NFTA_RULE_USERDATA, &comment),
            ]
            .concat()
        };
        let read = |of: Option<&str>, bytes: &[u8]| {
            rule_of("c1", of.map(|ip| ip.parse().unwrap()), attributes(bytes))
        };
        let ours = rule(TABLE, "hostports", b"c1\0");
        assert_eq!(read(Some("10.244.7.3"), &ours), Some(("hostports".into(), 9)));
        assert_eq!(read(None, &ours), Some(("hostports".into(), 9)));
        assert_eq!(read(Some("10.244.7.4"), &ours), None);
        for other in [
            rule("nat", "hostports", b"c1\0"),
            rule(TABLE, "prerouting", b"c1\0"),
            rule(TABLE, "hostports", b"c10\0"),
        ] {
            assert_eq!(read(None, &other), None);
        }
        assert_eq!(
            deletion(true, "hostports", 9),
            "delete rule ip6 cni_hostport hostports handle 9\n"
        );
    }
}
