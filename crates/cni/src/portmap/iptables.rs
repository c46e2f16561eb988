//! Port mappings as iptables rules, letter by letter those of Go's plugin.
//!
//! One transaction checks that the shared chains are whole and adds the container's. Only when it is refused (the first mapping
//! after a boot, or rules that an earlier call has left) is more looked at.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::digest::sha512;
use crate::netfilter::{Firewall, FirewallError};
use crate::portmap::config::{Mapping, PortmapConfig};
use crate::portmap::gone;
use crate::portmap::presence;

/// Where every container's entries are.
pub const DNAT: &str = "CNI-HOSTPORT-DNAT";
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
    format!("CNI-DN-{}", sha512(&format!("{network}{container}"), 21))
}

/// The container's chain, and the one it had in a version long ago.
pub fn chains(network: &str, container: &str) -> [String; 2] {
    let old = format!("CNI-SN-{}", sha512(&format!("{network}{container}"), 21));
    [chain(network, container), old]
}

/// A shared rule: its chain, the rest of it, and whether it goes before the others.
struct Shared(&'static str, String, bool);

fn shared(config: &PortmapConfig) -> Vec<Shared> {
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
fn entries(config: &PortmapConfig, v6: bool) -> Vec<String> {
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
fn translations(config: &PortmapConfig, address: IpNet) -> Vec<String> {
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
fn container_lines(config: &PortmapConfig, address: IpNet, declare: String) -> Vec<String> {
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
///
/// # Errors
///
/// iptables' words, or that it is not installed.
pub fn forward(firewall: &Firewall, config: &PortmapConfig, address: IpNet) -> Result<(), FirewallError> {
    let v6 = address.addr().is_ipv6();
    let own = chain(&config.network, &config.container);
    let shared = shared(config);
    let mut lines: Vec<String> = shared
        .iter()
        .map(|Shared(at, rule, _)| format!("-C {at} {rule}"))
        .collect();
    lines.extend(container_lines(config, address, format!("-N {own}")));
    if let Ok(done) = firewall.restore(v6, &lines) {
        return done.map(drop).ok_or_else(|| not_installed(v6));
    }
    // Chains by themselves first: declaring one that is there would empty it.
    let present = firewall
        .list(v6, &[DNAT, SETMARK, MASQ, &own])?
        .ok_or_else(|| not_installed(v6))?;
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
        firewall.restore(v6, &missing)?;
    }
    for Shared(at, rule, first) in &shared {
        // Asked of iptables itself: its own text for a rule is a matter of its version.
        if firewall.restore(v6, &[format!("-C {at} {rule}")]).is_err() {
            let verb = if *first {
                format!("-I {at} 1")
            } else {
                format!("-A {at}")
            };
            firewall.restore(v6, &[format!("{verb} {rule}")])?;
        }
    }
    let mut lines = stale_entries(&present, &own);
    lines.extend(container_lines(config, address, format!(":{own} - [0:0]")));
    firewall.restore(v6, &lines).map(drop)
}

fn not_installed(v6: bool) -> FirewallError {
    let program = if v6 { "ip6tables" } else { "iptables" };
    FirewallError::lasting(format!(
        "failed to open iptables: {program}: executable file not in $PATH"
    ))
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
pub fn may_hold(config: &PortmapConfig) -> bool {
    let names = chains(&config.network, &config.container);
    let addresses: Vec<IpAddr> = config.addresses.iter().flatten().map(|a| a.addr()).collect();
    presence::may_have_chain(&names)
        && !names
            .iter()
            .any(|name| presence::leads_elsewhere(name, &addresses))
}

/// Removes the container's chain and what leads there, in one family or both.
///
/// # Errors
///
/// iptables' words, where a family that is in use is concerned.
pub fn unforward(firewall: &Firewall, config: &PortmapConfig) -> Result<(), FirewallError> {
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
            if matches!(firewall.restore(v6, &lines), Ok(Some(_))) {
                usable = true;
                continue;
            }
        }
        // Something is missing, or the ports are others than those of the ADD.
        match firewall.list(v6, &[DNAT, SNAT, &own, &old]) {
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
                        firewall.restore(v6, &lines)?;
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
    let said: Vec<String> = errors.iter().map(FirewallError::to_string).collect();
    let said = format!("neither iptables nor ip6tables is usable: {}", said.join("; "));
    Err(match errors.iter().any(FirewallError::is_passing) {
        true => FirewallError::passing(said),
        false => FirewallError::lasting(said),
    })
}

/// The container's chain and its rules are there.
///
/// # Errors
///
/// That the chain is not whole, and iptables' words.
pub fn check(firewall: &Firewall, config: &PortmapConfig, address: IpNet) -> Result<(), FirewallError> {
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
    match firewall.restore(v6, &lines) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(not_installed(v6)),
        Err(e) => Err(e.within(&format!(
            "could not check {family} dnat: chain {own} in iptables table nat is not whole"
        ))),
    }
}

/// Removes the chains of a network's containers that `keep` does not want.
///
/// # Errors
///
/// iptables' words.
pub fn sweep(firewall: &Firewall, network: &str, keep: impl Fn(&str) -> bool) -> Result<(), FirewallError> {
    for v6 in [false, true] {
        let Some(present) = firewall.save(v6)? else {
            continue;
        };
        let (lines, chains) = unwanted(&present, network, &keep);
        if !lines.is_empty() {
            firewall.restore(v6, &lines)?;
            gone::forget_flows(&gone::destinations(&present, &chains));
        }
    }
    Ok(())
}

/// Deletions of what leads to a network's containers that `keep` does not want and of their chains, and the names of these.
fn unwanted(present: &str, network: &str, keep: &impl Fn(&str) -> bool) -> (Vec<String>, Vec<String>) {
    let (mut lines, mut chains) = (Vec::new(), Vec::new());
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
            chains.push(own);
        }
    }
    // Every jump has to go before its chain can.
    lines.sort_by_key(|line| (!line.starts_with("-D"), !line.starts_with("-F")));
    (lines, chains)
}

/// The addresses that a container's ports lead to, in both families.
pub fn published_at(firewall: &Firewall, config: &PortmapConfig) -> Vec<IpAddr> {
    let names = chains(&config.network, &config.container);
    let own: Vec<&str> = names.iter().map(String::as_str).collect();
    let listed = [false, true].map(|v6| firewall.list(v6, &own).ok().flatten().unwrap_or_default());
    gone::destinations(&listed.concat(), &names)
}

#[cfg(test)]
mod tests;
