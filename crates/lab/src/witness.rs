//! What is, seen by others' eyes: `ip -j`, `bridge -j`, `nft -j`, `iptables-save`, `/proc`.
//!
//! Views keep the tools' own JSON beside typed fields, so that a table of expectations can compare whole objects.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::command::{LabError, output, words};
use crate::node::Node;

/// Parses a tool's JSON; no output at all is an empty list.
pub fn json(command: &str, text: &str) -> Result<Value, LabError> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(Value::Array(Vec::new()));
    }
    serde_json::from_str(text).map_err(|e| LabError::Output {
        command: command.to_owned(),
        problem: format!("{e}: {text}"),
    })
}

fn list<T: for<'a> Deserialize<'a>>(command: &str, value: Value) -> Result<Vec<T>, LabError> {
    serde_json::from_value(value).map_err(|e| LabError::Output {
        command: command.to_owned(),
        problem: e.to_string(),
    })
}

/// `ip -j ARGS` in a node.
pub fn ip(node: &Node, arguments: &[&str]) -> Result<Value, LabError> {
    let mut all = vec!["-j"];
    all.extend(arguments);
    json(&format!("ip {}", all.join(" ")), &node.ip(&all)?)
}

/// A route of `ip -j route`.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
pub struct Route {
    /// Destination as printed: a prefix, an address, or `default`.
    pub dst: String,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Outgoing link.
    #[serde(default)]
    pub dev: String,
    /// Origin: a name or a number.
    pub protocol: Option<String>,
    /// Priority.
    pub metric: Option<u32>,
    /// `onlink`, `linkdown`, ...
    #[serde(default)]
    pub flags: Vec<String>,
}

impl Route {
    /// The destination as a prefix; `None` for `default` and for what is no unicast prefix.
    pub fn destination(&self) -> Option<IpNet> {
        self.dst
            .parse::<IpNet>()
            .ok()
            .or_else(|| self.dst.parse::<IpAddr>().ok().map(IpNet::from))
    }
}

/// The main table of a family (4 or 6).
pub fn routes(node: &Node, family: u8) -> Result<Vec<Route>, LabError> {
    list(
        "ip route",
        ip(node, &[&format!("-{family}"), "route", "show", "table", "main"])?,
    )
}

/// The route to exactly this prefix, as `ip -j route show` prints it; an array of none, one, or more.
pub fn route(node: &Node, destination: IpNet) -> Result<Value, LabError> {
    let family = if destination.addr().is_ipv4() { "-4" } else { "-6" };
    ip(
        node,
        &[family, "route", "show", "exact", &destination.to_string()],
    )
}

/// `ip -d -j link show`, one link or `None`.
pub fn link(node: &Node, name: &str) -> Result<Option<Value>, LabError> {
    let all = ip(node, &["-d", "link", "show"])?;
    let found = all
        .as_array()
        .into_iter()
        .flatten()
        .find(|l| l["ifname"] == name)
        .cloned();
    Ok(found)
}

/// Whether this machine's kernel makes links of a kind: one is made with these further words, and deleted.
pub fn has_kind(node: &Node, kind: &str, more: &[&str]) -> Result<bool, LabError> {
    let mut words = vec!["ip", "link", "add", "probe", "type", kind];
    words.extend(more);
    let (made, _, stderr, _) = output(&mut node.network_command(&words), "")?;
    if made {
        node.ip(&["link", "del", "probe"])?;
    } else if !stderr.contains("Unknown device type") && !stderr.contains("not supported") {
        return Err(LabError::Command {
            command: words.join(" "),
            status: "refused for another reason than the kind".to_owned(),
            stderr,
        });
    }
    Ok(made)
}

/// Names of all links.
pub fn link_names(node: &Node) -> Result<Vec<String>, LabError> {
    let all = ip(node, &["link", "show"])?;
    let names = all
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|l| l["ifname"].as_str().map(str::to_owned));
    Ok(names.collect())
}

/// Addresses of a link, as `ip -j` prints them.
pub fn addresses(node: &Node, link: &str) -> Result<Vec<Value>, LabError> {
    let all = ip(node, &["addr", "show"])?;
    let found = all.as_array().into_iter().flatten().find(|l| l["ifname"] == link);
    Ok(found
        .and_then(|l| l["addr_info"].as_array().cloned())
        .unwrap_or_default())
}

/// Permanent neighbours on a link, as `ip -j` prints them.
pub fn neighbours(node: &Node, link: &str) -> Result<Vec<Value>, LabError> {
    let mut found = Vec::new();
    for family in ["-4", "-6"] {
        let all = ip(node, &[family, "neigh", "show", "nud", "permanent"])?;
        for mut entry in all.as_array().cloned().unwrap_or_default() {
            if entry["dev"] == link {
                if let Some(object) = entry.as_object_mut() {
                    object.remove("dev");
                }
                found.push(entry);
            }
        }
    }
    Ok(found)
}

/// Forwarding entries of a link, as `bridge -j` prints them with a `dev` filter.
pub fn forwarding(node: &Node, link: &str) -> Result<Vec<Value>, LabError> {
    if !link_names(node)?.iter().any(|l| l == link) {
        return Ok(Vec::new());
    }
    let text = node.bridge(&["-j", "fdb", "show", "dev", link])?;
    Ok(json("bridge -j fdb", &text)?
        .as_array()
        .cloned()
        .unwrap_or_default())
}

/// Permanent forwarding entries of a vxlan device.
pub fn permanent_forwarding(node: &Node, link: &str) -> Result<Vec<Value>, LabError> {
    let mut all = forwarding(node, link)?;
    all.retain(|e| e["state"] == "permanent");
    Ok(all)
}

/// `iptables-save` (or `ip6tables-save`) without comments and counters.
pub fn rules(node: &Node, family: u8) -> Result<Vec<String>, LabError> {
    let program = if family == 4 {
        "iptables-save"
    } else {
        "ip6tables-save"
    };
    let text = node.run(&[program])?;
    Ok(text
        .lines()
        .filter(|l| !l.starts_with('#'))
        .map(without_counters)
        .collect())
}

/// The `-A` lines of one chain, in order.
pub fn chain(node: &Node, family: u8, chain: &str) -> Result<Vec<String>, LabError> {
    let start = format!("-A {chain} ");
    Ok(rules(node, family)?
        .into_iter()
        .filter(|l| l.starts_with(&start))
        .collect())
}

fn without_counters(line: &str) -> String {
    match line.split_once(" [") {
        Some((head, _)) if line.starts_with(':') => head.to_owned(),
        _ => line.to_owned(),
    }
}

/// `nft list table FAMILY NAME` as text; `None` when there is none.
pub fn nft_table(node: &Node, family: &str, name: &str) -> Result<Option<String>, LabError> {
    let all = node.run(&["nft", "list", "tables"])?;
    if !all.lines().any(|l| l == format!("table {family} {name}")) {
        return Ok(None);
    }
    node.run(&["nft", "list", "table", family, name]).map(Some)
}

/// A counter of `/proc/net/snmp` or `/proc/net/snmp6`, such as `Ip FragCreates` or `Ip6FragCreates`.
pub fn counter(node: &Node, name: &str) -> Result<u64, LabError> {
    let bad = || LabError::Output {
        command: "cat /proc/net/snmp".to_owned(),
        problem: format!("no {name}"),
    };
    if let Some((protocol, field)) = name.split_once(' ') {
        let text = node.network_run(&["cat", "/proc/net/snmp"])?;
        let prefix = format!("{protocol}: ");
        let mut lines = text.lines().filter_map(|l| l.strip_prefix(&prefix));
        let (heads, values) = (lines.next().ok_or_else(bad)?, lines.next().ok_or_else(bad)?);
        let column = heads.split(' ').position(|h| h == field).ok_or_else(bad)?;
        return values
            .split(' ')
            .nth(column)
            .and_then(|v| v.parse().ok())
            .ok_or_else(bad);
    }
    let text = node.network_run(&["cat", "/proc/net/snmp6"])?;
    let mut lines = text.lines().filter_map(|l| l.split_once(char::is_whitespace));
    lines
        .find(|l| l.0 == name)
        .and_then(|l| l.1.trim().parse().ok())
        .ok_or_else(bad)
}

/// A sysctl of the node, by its path below `/proc/sys`.
pub fn sysctl(node: &Node, path: &str) -> Result<String, LabError> {
    Ok(node
        .network_run(&["cat", &format!("/proc/sys/{path}")])?
        .trim()
        .to_owned())
}

/// Every object flannel could have made in a host, as sorted text lines: links with their numbers, addresses, permanent
/// neighbours and forwarding entries, main-table routes, firewall. Two equal pictures mean that nothing was touched.
pub fn picture(node: &Node) -> Result<Vec<String>, LabError> {
    let mut lines = Vec::new();
    for link in ip(node, &["-d", "link", "show"])?
        .as_array()
        .into_iter()
        .flatten()
    {
        lines.push(format!(
            "link {} {} {} mtu {} {} {}",
            link["ifindex"],
            link["ifname"],
            link["address"],
            link["mtu"],
            link["flags"],
            link["linkinfo"]["info_data"]["id"]
        ));
    }
    for link in ip(node, &["addr", "show"])?.as_array().into_iter().flatten() {
        for address in link["addr_info"].as_array().into_iter().flatten() {
            lines.push(format!(
                "address {} {}/{}",
                link["ifname"], address["local"], address["prefixlen"]
            ));
        }
    }
    for family in [4, 6] {
        let flag = format!("-{family}");
        for route in ip(node, &[&flag, "route", "show", "table", "main"])?
            .as_array()
            .into_iter()
            .flatten()
        {
            lines.push(format!("route {route}"));
        }
        for entry in ip(node, &[&flag, "neigh", "show", "nud", "permanent"])?
            .as_array()
            .into_iter()
            .flatten()
        {
            lines.push(format!("neighbour {entry}"));
        }
        lines.extend(rules(node, family)?);
    }
    let entries = node.bridge(&["-j", "fdb", "show"])?;
    for entry in json("bridge -j fdb", &entries)?.as_array().into_iter().flatten() {
        if entry["state"] == "permanent" {
            lines.push(format!("forwarding {entry}"));
        }
    }
    let tables = node.run(&["nft", "list", "tables"])?;
    for table in tables.lines().filter(|t| t.contains("flannel")) {
        let mut command = vec!["nft", "list"];
        command.extend(table.split(' '));
        lines.push(node.run(&command)?);
    }
    lines.sort();
    Ok(lines)
}

/// What `ip monitor` and `bridge monitor` see in a node, from the moment `start` returns.
#[derive(Debug)]
pub struct Monitor {
    process: crate::process::Process,
}

impl Monitor {
    /// Watches links, addresses, routes, neighbours and nexthops of a node.
    pub fn start(node: &Node, label: &str) -> Result<Monitor, LabError> {
        let process = node.spawn(
            &format!("monitor-{label}"),
            &[
                "ip", "-ts", "monitor", "link", "address", "route", "neigh", "nexthop",
            ],
        )?;
        // It says nothing when it listens, so make it: a link that comes and goes must be seen.
        let start = std::time::Instant::now();
        let probe = "lab-probe";
        while !process.log().contains(probe) {
            if start.elapsed().as_secs() > 10 {
                return Err(LabError::Timeout {
                    what: "ip monitor".to_owned(),
                    seconds: 10,
                    missing: "any word of it".to_owned(),
                });
            }
            let _ = node.ip(&["link", "add", probe, "type", "bridge"]);
            let _ = node.ip(&["link", "del", probe]);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        Ok(Monitor { process })
    }

    /// What was seen that has one of these words in it; the probe of the start is left out.
    pub fn seen(&self, any: &[&str]) -> Vec<String> {
        let log = self.process.log();
        let mut lines: Vec<String> = Vec::new();
        for line in log.lines() {
            if any.iter().any(|w| line.contains(w)) && !line.contains("lab-probe") {
                lines.push(line.to_owned());
            }
        }
        lines
    }

    /// Ends it.
    pub fn stop(mut self) {
        self.process.kill();
    }
}

/// Whether a program is installed.
pub fn installed(program: &str) -> bool {
    crate::command::run(&mut words(&["sh", "-c", &format!("command -v {program}")])).is_ok()
}
