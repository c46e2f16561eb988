//! What pods and flannel leave on a machine, seen by `ip`, `bridge`, `iptables-save` and `ls`.

use std::collections::BTreeSet;

use lab::Node;
use lab::witness::{ip, json};
use serde_json::Value;

/// What pods have: addresses of the CNI plugin, their interfaces and networks, and rules.
pub fn of_pods(node: &Node) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut add = |what: &str, text: String| {
        found.extend(text.lines().map(|line| format!("{what} {line}")));
    };
    // The last address that was given is no pod's.
    add(
        "address",
        shell(
            node,
            "ls /var/lib/cni/networks/cbr0 | grep -v -e last_reserved -e lock",
        ),
    );
    add("network", shell(node, "ls /run/netns"));
    let links = ip(node, &["link", "show", "type", "veth"]).unwrap();
    let names = links.as_array().into_iter().flatten();
    let names: Vec<&str> = names
        .filter_map(|link| link["ifname"].as_str())
        .filter(|name| *name != "eth0")
        .collect();
    add("interface", names.join("\n"));
    add("rule", rules(node));
    found
}

/// What flannel has: devices, routes, neighbours and forwarding entries, and rules.
pub fn of_flannel(node: &Node) -> BTreeSet<String> {
    let word = |entry: &Value, key: &str| entry[key].as_str().unwrap_or("nothing").to_owned();
    let mut found = BTreeSet::new();
    let links = ip(node, &["link"]).unwrap();
    for link in links.as_array().into_iter().flatten() {
        let name = word(link, "ifname");
        if name.starts_with("flannel") {
            found.insert(format!("device {name} {} {}", word(link, "address"), link["mtu"]));
        }
    }
    let routes = ip(node, &["route", "show", "table", "main"]).unwrap();
    for route in routes.as_array().into_iter().flatten() {
        if route["dst"]
            .as_str()
            .is_some_and(|dst| dst.starts_with("10.244."))
            && route["dev"] != "cni0"
        {
            found.insert(format!(
                "route {} via {} dev {}",
                word(route, "dst"),
                word(route, "gateway"),
                word(route, "dev")
            ));
        }
    }
    let neighbours = ip(node, &["neigh", "show", "nud", "permanent"]).unwrap();
    for entry in neighbours.as_array().into_iter().flatten() {
        if word(entry, "dev").starts_with("flannel") {
            found.insert(format!(
                "neighbour {} is {}",
                word(entry, "dst"),
                word(entry, "lladdr")
            ));
        }
    }
    let text = node.bridge(&["-j", "fdb", "show"]).unwrap();
    for entry in json("bridge -j fdb", &text)
        .unwrap()
        .as_array()
        .into_iter()
        .flatten()
    {
        if word(entry, "ifname").starts_with("flannel") && entry["state"] == "permanent" {
            found.insert(format!(
                "forwarding {} to {}",
                word(entry, "mac"),
                word(entry, "dst")
            ));
        }
    }
    found.extend(
        rules(node)
            .lines()
            .filter(|rule| rule.contains("FLANNEL"))
            .map(|rule| format!("rule {rule}")),
    );
    found
}

/// All rules but those of kube-proxy, which follow the Services and not this.
fn rules(node: &Node) -> String {
    shell(
        node,
        "iptables-save | grep ^-A | grep -v -e '^-A KUBE-'; ip6tables-save | grep ^-A | grep -v -e '^-A KUBE-'",
    )
}

fn shell(node: &Node, line: &str) -> String {
    // Where nothing is found, grep says so by its status.
    node.shell(&format!("{{ {line}; }} || true")).unwrap()
}
