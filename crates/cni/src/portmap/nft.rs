//! Port mappings as nftables rules, in the tables of Go's plugin. A rule's comment is its container's id.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::netfilter::run;
use crate::portmap::config::Config;

const TABLE: &str = "cni_hostport";
const CHAINS: [&str; 3] = ["hostports", "hostip_hostports", "masquerading"];

fn family(v6: bool) -> &'static str {
    if v6 { "ip6" } else { "ip" }
}

fn target(ip: IpAddr, port: u16) -> String {
    match ip {
        IpAddr::V4(ip) => format!("{ip}:{port}"),
        IpAddr::V6(ip) => format!("[{ip}]:{port}"),
    }
}

/// Adds the mappings to one address, replacing those the container has there.
pub fn forward(config: &Config, address: IpNet) -> Result<(), String> {
    let v6 = address.addr().is_ipv6();
    let (ip, conditions) = (family(v6), config.conditions_of(v6).join(" "));
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
            "add rule @ {hook} {conditions} fib daddr type local jump hostports_all"
        ));
    }
    if config.snat {
        line("add chain @ masquerading { type nat hook postrouting priority 100; }");
    }
    for (chain, handle) in handles(v6, &config.container)? {
        line(&format!("delete rule @ {chain} handle {handle}"));
    }
    let comment = &config.container;
    for mapping in config.mappings.iter().filter(|m| m.is_for(v6)) {
        let bound = mapping
            .bound_to()
            .map(|to| format!("{ip} daddr {to} "))
            .unwrap_or_default();
        line(&format!(
            "add rule @ hostports {bound}{} dport {} dnat to {} comment \"{comment}\"",
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
    match run("nft", &["-f", "-"], &text) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err("could not find nftables binary: executable file not in $PATH".to_owned()),
        Err(e) => Err(format!("unable to set up nftables rules for port mappings: {e}")),
    }
}

/// Chains and handles of a container's rules in one family.
fn handles(v6: bool, container: &str) -> Result<Vec<(String, String)>, String> {
    let suffix = format!(" comment \"{container}\" # handle ");
    Ok(rules(v6)?
        .into_iter()
        .filter_map(|(chain, rule)| {
            let (_, handle) = rule.split_once(&suffix)?;
            Some((chain, handle.trim().to_owned()))
        })
        .collect())
}

/// Every rule of our chains as listed, with its chain.
fn rules(v6: bool) -> Result<Vec<(String, String)>, String> {
    let listed = match run("nft", &["-a", "list", "table", family(v6), TABLE], "") {
        Ok(listed) => listed.unwrap_or_default(),
        // No such table: nobody has used it yet.
        Err(e) if e.contains("No such file or directory") => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut chain = String::new();
    let mut found = Vec::new();
    for line in listed.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("chain ") {
            rest.split(' ').next().unwrap_or_default().clone_into(&mut chain);
        } else if line.contains("# handle ") && CHAINS.contains(&chain.as_str()) {
            found.push((chain.clone(), line.to_owned()));
        }
    }
    Ok(found)
}

/// Removes a container's rules in both families.
pub fn unforward(config: &Config) -> Result<(), String> {
    for v6 in [false, true] {
        let lines = handles(v6, &config.container)?;
        let lines: String = lines
            .into_iter()
            .map(|(chain, handle)| format!("delete rule {} {TABLE} {chain} handle {handle}\n", family(v6)))
            .collect();
        if !lines.is_empty() {
            run("nft", &["-f", "-"], &lines).map_err(|e| format!("error deleting nftables rules: {e}"))?;
        }
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
    let have = handles(v6, &config.container)?;
    for (chain, wanted) in [("hostports", ports), ("masquerading", masquerades)] {
        if have.iter().filter(|(at, _)| at == chain).count() < wanted {
            return Err(format!("missing hostport rules in {chain:?} chain"));
        }
    }
    Ok(())
}
