//! Port mappings as iptables rules, letter by letter those of Go's plugin.
//!
//! One transaction checks that the shared chains are whole and adds the container's. Only when it is refused (the first mapping
//! after a boot, or rules that an earlier call has left) is more looked at.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::bridge::masquerade::hash;
use crate::netfilter::{list, restore, save};
use crate::portmap::config::{Config, Mapping};
use crate::portmap::presence;

const DNAT: &str = "CNI-HOSTPORT-DNAT";
const SETMARK: &str = "CNI-HOSTPORT-SETMARK";
const MASQ: &str = "CNI-HOSTPORT-MASQ";
/// Where versions long ago had what [`MASQ`] does now.
const SNAT: &str = "CNI-HOSTPORT-SNAT";
/// Ports of one multiport match.
const PORTS: usize = 15;
/// Longest comment, in bytes.
const COMMENT: usize = 255;

/// Name of the container's chain: 28 characters.
pub fn chain(network: &str, container: &str) -> String {
    format!("CNI-DN-{}", hash(&format!("{network}{container}"), 21))
}

/// The container's chain, and the one it had in a version long ago.
pub fn chains(network: &str, container: &str) -> [String; 2] {
    let old = format!("CNI-SN-{}", hash(&format!("{network}{container}"), 21));
    [chain(network, container), old]
}

/// A shared rule: its chain, the rest of it, and whether it goes before the others.
struct Shared(&'static str, String, bool);

fn shared(config: &Config) -> Vec<Shared> {
    let mut rules = Vec::new();
    if config.snat && config.external_chain.is_none() {
        let mark = format!("{:#x}/{:#x}", config.mark, config.mark);
        rules.push(Shared(
            SETMARK,
            format!("-m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark {mark}"),
            false,
        ));
        rules.push(Shared(
            MASQ,
            format!("-m mark --mark {mark} -j MASQUERADE"),
            false,
        ));
        // Before the rules of bridge and ptp, which would take the packets first.
        rules.push(Shared(
            "POSTROUTING",
            format!("-m comment --comment \"CNI portfwd requiring masquerade\" -j {MASQ}"),
            true,
        ));
    }
    for entry in ["PREROUTING", "OUTPUT"] {
        rules.push(Shared(
            entry,
            format!("-m addrtype --dst-type LOCAL -j {DNAT}"),
            false,
        ));
    }
    rules
}

fn quote(word: &str) -> String {
    if !word.is_empty()
        && word
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\'' | b'\\'))
    {
        return word.to_owned();
    }
    format!(
        "\"{}\"",
        word.replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace(['\n', '\0'], " ")
    )
}

/// The rules that lead into the container's chain.
fn entries(config: &Config, v6: bool) -> Vec<String> {
    let mut comment = format!("dnat name: \"{}\" id: \"{}\"", config.network, config.container);
    if comment.len() > COMMENT {
        comment.truncate(COMMENT - 2);
        comment.push_str("...");
    }
    let conditions: String = config
        .conditions_of(v6)
        .iter()
        .map(|word| format!(" {}", quote(word)))
        .collect();
    let mut protocols: Vec<&str> = config.mappings.iter().map(|m| m.protocol.as_str()).collect();
    protocols.sort_unstable();
    protocols.dedup();
    let mut rules = Vec::new();
    for protocol in protocols {
        let ports: Vec<String> = config
            .mappings
            .iter()
            .filter(|m| m.protocol == protocol)
            .map(|m| m.host_port.to_string())
            .collect();
        for ports in ports.chunks(PORTS) {
            rules.push(format!(
                "-p {protocol} -m comment --comment {} -m multiport --dports {}{conditions} -j {}",
                quote(&comment),
                ports.join(","),
                chain(&config.network, &config.container)
            ));
        }
    }
    rules
}

/// The rules of the container's chain: marks first, then the translation.
fn translations(config: &Config, address: IpNet) -> Vec<String> {
    let v6 = address.addr().is_ipv6();
    let mark = config.external_chain.as_deref().unwrap_or(SETMARK);
    let mut rules = Vec::new();
    for mapping in config.mappings.iter().filter(|m| m.is_for(v6)) {
        let Mapping {
            host_port,
            container_port,
            protocol,
            ..
        } = mapping;
        let bound = mapping
            .bound_to()
            .map(|ip| format!("-d {ip} "))
            .unwrap_or_default();
        let base = format!("{bound}-p {protocol} --dport {host_port}");
        if config.snat {
            let source = match (config.masq_all, v6) {
                (true, true) => "::/0".to_owned(),
                (true, false) => "0.0.0.0/0".to_owned(),
                (false, _) => address.trunc().to_string(),
            };
            rules.push(format!("-s {source} {base} -j {mark}"));
            if !v6 && !config.masq_all {
                rules.push(format!("-s 127.0.0.1 {base} -j {mark}"));
            }
        }
        let ip = match v6 {
            true => format!("[{}]", address.addr()),
            false => address.addr().to_string(),
        };
        rules.push(format!("{base} -j DNAT --to-destination {ip}:{container_port}"));
    }
    rules
}

/// What one family's transaction adds for the container, its chain being made or emptied by `declare`.
fn container_lines(config: &Config, address: IpNet, declare: String) -> Vec<String> {
    let own = chain(&config.network, &config.container);
    let mut lines = vec![declare];
    lines.extend(
        translations(config, address)
            .iter()
            .map(|rule| format!("-A {own} {rule}")),
    );
    lines.extend(
        entries(config, address.addr().is_ipv6())
            .iter()
            .map(|rule| format!("-A {DNAT} {rule}")),
    );
    lines
}

/// Adds the mappings to one address.
pub fn forward(config: &Config, address: IpNet) -> Result<(), String> {
    let v6 = address.addr().is_ipv6();
    let own = chain(&config.network, &config.container);
    let shared = shared(config);
    let mut lines: Vec<String> = shared
        .iter()
        .map(|Shared(at, rule, _)| format!("-C {at} {rule}"))
        .collect();
    lines.extend(container_lines(config, address, format!("-N {own}")));
    if let Ok(done) = restore(v6, &lines) {
        return done.map(drop).ok_or_else(|| not_installed(v6));
    }
    // Chains by themselves first: declaring one that is there would empty it.
    let present = list(v6, &[DNAT, SETMARK, MASQ, &own])?.ok_or_else(|| not_installed(v6))?;
    let has = |name: &str| present.lines().any(|line| line.starts_with(&format!(":{name} ")));
    let mut chains = vec![DNAT];
    if shared.iter().any(|Shared(at, _, _)| *at == SETMARK) {
        chains.extend([SETMARK, MASQ]);
    }
    let missing: Vec<String> = chains
        .into_iter()
        .filter(|name| !has(name))
        .map(|name| format!("-N {name}"))
        .collect();
    if !missing.is_empty() {
        restore(v6, &missing)?;
    }
    for Shared(at, rule, first) in &shared {
        // Asked of iptables itself: its own text for a rule is a matter of its version.
        if restore(v6, &[format!("-C {at} {rule}")]).is_err() {
            let verb = if *first {
                format!("-I {at} 1")
            } else {
                format!("-A {at}")
            };
            restore(v6, &[format!("{verb} {rule}")])?;
        }
    }
    let mut lines = stale_entries(&present, &own);
    lines.extend(container_lines(config, address, format!(":{own} - [0:0]")));
    restore(v6, &lines).map(drop)
}

fn not_installed(v6: bool) -> String {
    let program = if v6 { "ip6tables" } else { "iptables" };
    format!("failed to open iptables: {program}: executable file not in $PATH")
}

/// Deletions of everything that leads into a chain.
fn stale_entries(present: &str, chain: &str) -> Vec<String> {
    let target = format!(" -j {chain}");
    let lines = present
        .lines()
        .filter(|line| line.starts_with("-A ") && line.ends_with(&target));
    lines.map(|line| line.replacen("-A", "-D", 1)).collect()
}

/// The container may have a chain, and not one that leads to another of its attachments in this network. Asked of the kernel, without
/// a program.
pub fn may_hold(config: &Config) -> bool {
    let names = chains(&config.network, &config.container);
    let addresses: Vec<IpAddr> = config.addresses.iter().flatten().map(|a| a.addr()).collect();
    presence::may_have_chain(&names)
        && !names
            .iter()
            .any(|name| presence::leads_elsewhere(name, &addresses))
}

/// Removes the container's chain and what leads there, in one family or both.
pub fn unforward(config: &Config) -> Result<(), String> {
    let [own, old] = chains(&config.network, &config.container);
    let [v4, of_v6] = &config.addresses;
    let known = config.previous.is_some() && (v4.is_some() || of_v6.is_some());
    let (mut usable, mut errors) = (false, Vec::new());
    for v6 in [false, true] {
        let has_address = if v6 { of_v6.is_some() } else { v4.is_some() };
        if known && !has_address {
            continue;
        }
        if known || !v6 {
            let mut lines: Vec<String> = entries(config, v6)
                .iter()
                .map(|rule| format!("-D {DNAT} {rule}"))
                .collect();
            lines.extend([format!("-F {own}"), format!("-X {own}")]);
            if matches!(restore(v6, &lines), Ok(Some(_))) {
                usable = true;
                continue;
            }
        }
        // Something is missing, or the ports are others than those of the ADD.
        match list(v6, &[DNAT, SNAT, &own, &old]) {
            Ok(Some(present)) => {
                usable = true;
                for chain in [&own, &old] {
                    let mut lines = stale_entries(&present, chain);
                    if present
                        .lines()
                        .any(|line| line.starts_with(&format!(":{chain} ")))
                    {
                        lines.extend([format!("-F {chain}"), format!("-X {chain}")]);
                    }
                    if !lines.is_empty() {
                        restore(v6, &lines)?;
                    }
                }
            }
            Ok(None) => errors.push(not_installed(v6)),
            // A family that is not in use may well be unusable.
            Err(e) if has_address => return Err(e),
            Err(e) => errors.push(e),
        }
    }
    if usable || errors.is_empty() {
        return Ok(());
    }
    Err(format!(
        "neither iptables nor ip6tables is usable: {}",
        errors.join("; ")
    ))
}

/// The container's chain and its rules are there.
pub fn check(config: &Config, address: IpNet) -> Result<(), String> {
    let v6 = address.addr().is_ipv6();
    let own = chain(&config.network, &config.container);
    let rules = translations(config, address)
        .into_iter()
        .map(|rule| format!("-C {own} {rule}"));
    let entries = entries(config, v6)
        .into_iter()
        .map(|rule| format!("-C {DNAT} {rule}"));
    let lines: Vec<String> = rules.chain(entries).collect();
    let family = if v6 { "ipv6" } else { "ipv4" };
    match restore(v6, &lines) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(not_installed(v6)),
        Err(e) => Err(format!(
            "could not check {family} dnat: chain {own} in iptables table nat is not whole: {e}"
        )),
    }
}

/// Removes the chains of a network's containers that `keep` does not want.
pub fn sweep(network: &str, keep: impl Fn(&str) -> bool) -> Result<(), String> {
    for v6 in [false, true] {
        let Some(present) = save(v6)? else { continue };
        let mut lines = Vec::new();
        for line in present
            .lines()
            .filter(|line| line.starts_with(&format!("-A {DNAT} ")))
        {
            let name = format!("\"dnat name: \\\"{network}\\\" id: \\\"");
            let id = line
                .split_once(&name)
                .and_then(|(_, rest)| rest.split_once("\\\"\""))
                .map(|(id, _)| id);
            let Some(id) = id.filter(|id| !keep(id)) else {
                continue;
            };
            lines.push(line.replacen("-A", "-D", 1));
            let own = chain(network, id);
            let remove = [format!("-F {own}"), format!("-X {own}")];
            if !lines.contains(&remove[0]) {
                lines.extend(remove);
            }
        }
        // Every jump has to go before its chain can.
        lines.sort_by_key(|line| (!line.starts_with("-D"), !line.starts_with("-F")));
        if !lines.is_empty() {
            restore(v6, &lines)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::{Call, Environment};

    fn config(more: &str) -> Config {
        let env = Environment {
            command: "ADD".into(),
            container_id: "c1".into(),
            ifname: "eth0".into(),
            ..Environment::default()
        };
        let stdin = format!(r#"{{"name":"cbr0","cniVersion":"1.0.0"{more}}}"#);
        Config::load(&Call::check(env, stdin.into_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn rules_when_written_are_gos_in_their_order() {
        let config = config(
            r#","runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostPort":8053,"containerPort":53,"protocol":"udp","hostIP":"127.0.0.1"}]},"conditionsV4":["!","-d","192.0.2.0/24"]"#,
        );
        assert_eq!(chain("cbr0", "c1"), "CNI-DN-68f1f1eeb62cad3d0bdd5");
        assert_eq!(
            translations(&config, "10.244.7.3/24".parse().unwrap()),
            [
                "-s 10.244.7.0/24 -p tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
                "-s 127.0.0.1 -p tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
                "-p tcp --dport 8080 -j DNAT --to-destination 10.244.7.3:80",
                "-s 10.244.7.0/24 -d 127.0.0.1 -p udp --dport 8053 -j CNI-HOSTPORT-SETMARK",
                "-s 127.0.0.1 -d 127.0.0.1 -p udp --dport 8053 -j CNI-HOSTPORT-SETMARK",
                "-d 127.0.0.1 -p udp --dport 8053 -j DNAT --to-destination 10.244.7.3:53",
            ]
        );
        assert_eq!(
            translations(&config, "fd00::3/64".parse().unwrap()),
            [
                "-s fd00::/64 -p tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
                "-p tcp --dport 8080 -j DNAT --to-destination [fd00::3]:80",
            ]
        );
        assert_eq!(
            entries(&config, false)[0],
            "-p tcp -m comment --comment \"dnat name: \\\"cbr0\\\" id: \\\"c1\\\"\" -m multiport --dports 8080 ! -d 192.0.2.0/24 -j CNI-DN-68f1f1eeb62cad3d0bdd5"
        );
    }

    #[test]
    fn entries_when_ports_are_many_are_split_by_fifteen() {
        let ports: Vec<String> = (1..=31)
            .map(|p| format!(r#"{{"hostPort":{p},"containerPort":1,"protocol":"tcp"}}"#))
            .collect();
        let config = config(&format!(
            r#","runtimeConfig":{{"portMappings":[{}]}}"#,
            ports.join(",")
        ));
        let entries = entries(&config, true);
        assert_eq!(entries.len(), 3);
        assert!(entries[2].contains("--dports 31 -j"), "{}", entries[2]);
    }
}
