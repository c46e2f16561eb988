//! The same configurations as the reference was run with give the same kernel objects, files and registry values.
//!
//! `tests/golden/<case>/` holds what Go flannel v0.28.9 left behind on two hosts. Both sides are turned into the same lines of
//! text, with subnets, addresses and MACs replaced by their roles. What this project decided to do differently is listed in
//! [`decided`], one by one.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;

use lab::rig::{Rig, Wish};
use lab::store::CONFIG_KEY;
use lab::{Families, Lab};
use serde_json::{Value, json};

/// Everything of one host that is compared, raw.
#[derive(Default)]
struct Host {
    links: Value,
    addresses: Value,
    forwarding: Value,
    neighbours: Value,
    routes: Vec<Value>,
    rules: [String; 2],
    nft: String,
    env: String,
    sysctls: String,
    registry: Vec<(String, String)>,
}

fn fixture(case: &str, file: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(case)
        .join(file);
    std::fs::read_to_string(path).unwrap_or_default()
}

fn recorded(case: &str) -> Host {
    let json = |file: &str| -> Value { serde_json::from_str(&fixture(case, file)).unwrap_or(json!([])) };
    let registry = fixture(case, "registry.txt");
    let lines: Vec<&str> = registry.lines().collect();
    let routes = ["a.route4.json", "a.route6.json"].map(json);
    Host {
        links: json("a.link.json"),
        addresses: json("a.addr.json"),
        forwarding: json("a.fdb.json"),
        neighbours: json("a.neigh.json"),
        routes: routes
            .iter()
            .flat_map(|r| r.as_array().cloned().unwrap())
            .collect(),
        rules: ["a.iptables-save.txt", "a.ip6tables-save.txt"].map(|f| fixture(case, f)),
        nft: fixture(case, "a.nft.txt"),
        env: fixture(case, "a.subnet.env"),
        sysctls: fixture(case, "a.sysctl.txt"),
        registry: lines
            .chunks(2)
            .map(|pair| (pair[0].to_owned(), pair[1].to_owned()))
            .collect(),
    }
}

/// What the first host of the lab holds now, collected with the same commands the recording was made with.
fn observed(lab: &Lab, like: &Host) -> Result<Host, lab::LabError> {
    let host = lab.host(1);
    let ip = |arguments: &[&str]| lab::witness::ip(host, arguments);
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        routes.extend(
            ip(&[family, "route", "show", "table", "main"])?
                .as_array()
                .cloned()
                .unwrap(),
        );
    }
    let mut neighbours = ip(&["-4", "neigh", "show"])?;
    let more = ip(&["-6", "neigh", "show"])?;
    neighbours
        .as_array_mut()
        .unwrap()
        .extend(more.as_array().cloned().unwrap());
    let mut sysctls = String::new();
    for line in like.sysctls.lines().filter(|l| l.contains("flannel")) {
        let (path, _) = line.rsplit_once(':').unwrap();
        let value = lab::witness::sysctl(host, &format!("net/{path}")).unwrap_or("missing".to_owned());
        sysctls.push_str(&format!("{path}:{value}\n"));
    }
    let mut registry = vec![(CONFIG_KEY.to_owned(), lab.get(CONFIG_KEY)?.unwrap_or_default())];
    for (key, value) in lab.leases()? {
        registry.push((format!("/coreos.com/network/subnets/{key}"), value));
    }
    let forwarding = host.bridge(&["-j", "fdb", "show"])?;
    Ok(Host {
        links: ip(&["-d", "link", "show"])?,
        addresses: ip(&["addr", "show"])?,
        forwarding: lab::witness::json("bridge -j fdb", &forwarding)?,
        neighbours,
        routes,
        rules: [host.run(&["iptables-save"])?, host.run(&["ip6tables-save"])?],
        nft: [
            lab::witness::nft_table(host, "ip", "flannel-ipv4")?,
            lab::witness::nft_table(host, "ip6", "flannel-ipv6")?,
        ]
        .into_iter()
        .flatten()
        .collect(),
        env: host.read("/run/flannel/subnet.env").unwrap_or_default(),
        sysctls,
        registry,
    })
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn is_ours(name: &Value) -> bool {
    name.as_str().is_some_and(|n| n.starts_with("flannel"))
}

/// The host as lines, still with its own addresses.
fn lines(host: &Host) -> Vec<String> {
    let mut lines = Vec::new();
    for link in list(&host.links).filter(|l| is_ours(&l["ifname"])) {
        lines.push(format!(
            "link {} {} mtu {} {} txqlen {} {} {}",
            link["ifname"],
            link["link_type"],
            link["mtu"],
            link["flags"],
            link["txqlen"],
            link["linkinfo"]["info_kind"],
            link["linkinfo"]["info_data"]
        ));
    }
    for link in list(&host.addresses).filter(|l| is_ours(&l["ifname"])) {
        for address in list(&link["addr_info"]).filter(|a| a["scope"] == "global") {
            lines.push(format!(
                "address {} {}/{} broadcast {}",
                link["ifname"], address["local"], address["prefixlen"], address["broadcast"]
            ));
        }
    }
    for entry in list(&host.forwarding).filter(|e| is_ours(&e["ifname"])) {
        lines.push(format!("forwarding {entry}"));
    }
    for entry in list(&host.neighbours).filter(|e| is_ours(&e["dev"]) && e["state"] == json!(["PERMANENT"])) {
        lines.push(format!("neighbour {entry}"));
    }
    for route in &host.routes {
        let to_pods = route["dst"]
            .as_str()
            .is_some_and(|d| d.starts_with("10.128.") || d.starts_with("fd10:"));
        if !to_pods || route["protocol"] == "kernel" || route["dev"] == "cni0" {
            continue;
        }
        let mut route = route.clone();
        let object = route.as_object_mut().unwrap();
        // Decided: our routes carry a protocol of their own, by which they are known to be ours.
        let protocol = object.remove("protocol");
        assert!(
            protocol.is_none() || protocol == Some(json!("241")),
            "{protocol:?}"
        );
        lines.push(format!("route {route}"));
    }
    for (family, rules) in ["ip", "ip6"].iter().zip(&host.rules) {
        let ours = rules.lines().filter(|l| l.contains("FLANNEL-"));
        // The order within a chain matters, and -A lines come in it; so number them by chain.
        let mut counts = std::collections::BTreeMap::<&str, usize>::new();
        for rule in ours {
            if let Some(chain) = rule.strip_prefix("-A ").and_then(|r| r.split(' ').next()) {
                let count = counts.entry(chain).or_default();
                *count += 1;
                lines.push(format!("{family}tables {count} {rule}"));
            } else {
                lines.push(format!("{family}tables {}", rule.split(" [").next().unwrap()));
            }
        }
    }
    lines.extend(
        host.nft
            .lines()
            .enumerate()
            .map(|(n, l)| format!("nft {n:02} {}", l.trim())),
    );
    lines.extend(host.env.lines().enumerate().map(|(n, l)| format!("env {n} {l}")));
    lines.extend(
        host.sysctls
            .lines()
            .filter(|l| l.contains("flannel"))
            .map(|l| format!("sysctl {l}")),
    );
    for (key, value) in host.registry.iter().filter(|r| r.0 != CONFIG_KEY) {
        lines.push(format!("registry {key} {value}"));
    }
    lines
}

/// Text to role: own and peer's subnets, public addresses, MACs.
fn roles(host: &Host) -> Vec<(String, String)> {
    let env = lab::flannel::Env::parse(&host.env);
    let mut roles = Vec::new();
    let mine = |key: &str| {
        env.subnet
            .is_some_and(|s| key.contains(&format!("/{}-", s.trunc().addr())))
            || (env.subnet.is_none()
                && env
                    .subnet6
                    .is_some_and(|s| key.contains(&s.trunc().addr().to_string())))
    };
    for (key, value) in host.registry.iter().filter(|r| r.0 != CONFIG_KEY) {
        let who = if mine(key) { "OWN" } else { "PEER" };
        let text = key.rsplit('/').next().unwrap();
        for part in text.split('&') {
            let base = part.rsplit_once('-').unwrap().0;
            match base.rsplit_once('.') {
                Some(("0.0.0", _)) => {}
                Some((head, _)) => roles.push((format!("{head}."), format!("{who}-SUBNET."))),
                None => roles.push((base.to_owned(), format!("{who}-SUBNET6::"))),
            }
        }
        let value: Value = serde_json::from_str(value).unwrap();
        for (field, name) in [("PublicIP", "HOST"), ("PublicIPv6", "HOST6")] {
            if let Some(address) = value[field].as_str().filter(|a| *a != "0.0.0.0") {
                roles.push((format!("\"{address}\""), format!("\"{who}-{name}\"")));
            }
        }
        for (field, name) in [("BackendData", "MAC"), ("BackendV6Data", "MAC6")] {
            if let Some(mac) = value[field]["VtepMAC"].as_str() {
                roles.push((mac.to_owned(), format!("{who}-{name}")));
            }
        }
    }
    roles
}

fn picture(host: &Host) -> BTreeSet<String> {
    let roles = roles(host);
    lines(host)
        .into_iter()
        .map(|mut line| {
            for (text, role) in &roles {
                line = line.replace(text, role);
            }
            line
        })
        .collect()
}

/// What differs on purpose, and nothing else.
fn decided(case: &str, line: String) -> String {
    // Full-size IPv6 packets need 70 bytes of room, not 50.
    if line.ends_with("FLANNEL_MTU=1450") && case.ends_with("6") {
        return line.replace("1450", "1430");
    }
    // No router speaks on a tunnel: on every device of ours, not on those of vxlan alone.
    if line.starts_with("sysctl ") && case.starts_with("ipip") {
        return line.replace("accept_ra:1", "accept_ra:0");
    }
    if line.starts_with("nft ") {
        // The semantics of the iptables set: a masked test of the mark, and the own subnet in the fourth rule.
        let line = line.replace(
            "meta mark 0x00004000 return",
            "meta mark & 0x00004000 == 0x00004000 return",
        );
        for (family, network) in [("ip", "10.128.0.0/16"), ("ip6", "fd10::/48")] {
            for own in ["OWN-SUBNET.0/24", "OWN-SUBNET6::/64"] {
                let theirs = format!("{family} saddr != {own} {family} daddr {network} return");
                if line.ends_with(&theirs) {
                    return line.replace(
                        &theirs,
                        &format!("{family} saddr != {network} {family} daddr {own} return"),
                    );
                }
            }
        }
        return line;
    }
    line
}

fn compare(case: &str, families: Families, routed: bool) {
    compare_some(case, families, routed, Rig::start, |_, _| true);
}

/// Compares what there is some time after `start`, as far as it `counts` in that lab.
fn compare_some(
    case: &str,
    families: Families,
    routed: bool,
    start: impl FnOnce(&Wish) -> Result<Rig, lab::LabError>,
    counts: impl Fn(&Rig, &str) -> bool,
) -> Rig {
    let golden = recorded(case);
    let config = golden
        .registry
        .iter()
        .find(|r| r.0 == CONFIG_KEY)
        .unwrap()
        .1
        .clone();
    let mut wish = Wish::of(families, json!({}));
    wish.config = serde_json::from_str(&config).unwrap();
    wish.routed = routed;
    let mut expected: BTreeSet<String> = picture(&golden).into_iter().map(|l| decided(case, l)).collect();
    if families == Families::V4 {
        // Decided: no empty table for a family that is not in use.
        expected.retain(|l| !["nft 20", "nft 21", "nft 22"].iter().any(|n| l.starts_with(n)));
    }
    assert!(expected.len() > 10, "{case}: the recording holds next to nothing");
    let rig = start(&wish).unwrap();
    expected.retain(|line| counts(&rig, line));
    assert!(expected.len() > 10, "{case}: next to nothing is compared");
    rig.wait(&format!("{case} as recorded"), 15, |rig| {
        let mut observed = picture(&observed(&rig.lab, &golden)?);
        observed.retain(|line| counts(rig, line));
        let missing: Vec<&String> = expected.difference(&observed).collect();
        let surplus: Vec<&String> = observed.difference(&expected).collect();
        let equal = missing.is_empty() && surplus.is_empty();
        Ok((!equal).then(|| format!("\nrecorded, not here: {missing:#?}\nhere, not recorded: {surplus:#?}")))
    })
    .unwrap_or_else(|e| panic!("{e}"));
    rig
}

#[test]
fn vxlan_ipv4_as_recorded() {
    compare("vxlan-4", Families::V4, false);
}

#[test]
fn vxlan_dual_stack_as_recorded() {
    compare("vxlan-46", Families::Both, false);
}

#[test]
fn vxlan_direct_routing_as_recorded() {
    compare("vxlan-direct", Families::V4, false);
}

#[test]
fn vxlan_direct_routing_over_a_router_as_recorded() {
    compare("vxlan-direct-l3", Families::V4, true);
}

#[test]
fn vxlan_with_every_option_as_recorded() {
    compare("vxlan-options", Families::V4, false);
}

#[test]
fn vxlan_with_nftables_as_recorded() {
    compare("vxlan-nft", Families::V4, false);
}

#[test]
fn vxlan_dual_stack_with_nftables_as_recorded() {
    compare("vxlan-nft-46", Families::Both, false);
}

#[test]
fn host_gw_ipv4_as_recorded() {
    compare("host-gw-4", Families::V4, false);
}

#[test]
fn host_gw_dual_stack_as_recorded() {
    compare("host-gw-46", Families::Both, false);
}

fn start_without_waiting(wish: &Wish) -> Result<Rig, lab::LabError> {
    let mut rig = Rig::bare(wish)?;
    rig.daemons = rig.lab.start_daemons(&[])?;
    Ok(rig)
}

/// All of it where this machine's kernel has ipip. Where not, all but the tunnel; `tests/ipip.rs` says what is said of that.
fn compare_ipip(case: &str, routed: bool) {
    let has_ipip = std::cell::OnceCell::new();
    let counts = |rig: &Rig, line: &str| {
        let has_ipip = has_ipip.get_or_init(|| {
            let local = ["local", "192.0.2.99"];
            let has_ipip = lab::witness::has_kind(rig.lab.host(1), "ipip", &local).unwrap();
            let found = if has_ipip { "has it" } else { "has none" };
            let _ = writeln!(std::io::stdout().lock(), "ipip: this kernel {found}");
            has_ipip
        });
        // Without the tunnel what is sent to its peers is refused.
        *has_ipip || !(line.contains("flannel.ipip") || line.contains("unreachable"))
    };
    compare_some(case, Families::V4, routed, start_without_waiting, counts);
}

#[test]
fn ipip_as_recorded() {
    compare_ipip("ipip", false);
}

#[test]
fn ipip_direct_routing_over_a_router_as_recorded() {
    compare_ipip("ipip-direct-l3", true);
}

/// Subnets, files and firewall rules, and nothing else in the kernel: a host that is as it shall be has no route to wait for.
#[test]
fn alloc_as_recorded_and_ready() {
    let rig = compare_some("alloc", Families::V4, false, start_without_waiting, |_, _| true);
    let observed = observed(&rig.lab, &recorded("alloc")).unwrap();
    assert!(
        !lines(&observed).iter().any(|l| l.starts_with("route ")),
        "{:?}",
        lines(&observed)
    );
    rig.wait("flannelctl status without a complaint", 15, |rig| {
        let mut status = rig.lab.host(1).command(&["flannelctl", "status"]);
        let (good, text, errors, _) = lab::command::output(&mut status, "")?;
        Ok((!good).then(|| text + &errors))
    })
    .unwrap();
}

/// The recording has one lease for two hosts: the reference finds its own by PublicIP, which is 0.0.0.0 for all of them.
/// So what is compared is one host without peers.
#[test]
fn vxlan_ipv6_only_as_recorded_but_for_the_lease_all_hosts_share_there() {
    let golden = recorded("vxlan-6");
    let alone = |line: &String| !line.starts_with("registry") && !line.contains("PEER");
    let expected: BTreeSet<String> = lines(&golden).into_iter().filter(alone).collect();
    let own = lab::flannel::Env::parse(&golden.env)
        .subnet6
        .unwrap()
        .trunc()
        .addr()
        .to_string();
    let normal =
        |line: String, subnet: &str, host: &str| line.replace(subnet, "SUBNET::").replace(host, "HOST");
    let expected: BTreeSet<String> = expected
        .into_iter()
        .map(|l| normal(decided("vxlan-6", l), &own, "fd18::11"))
        .collect();
    let mut wish = Wish::of(Families::V6, json!({})).hosts(1);
    wish.config = serde_json::from_str(&golden.registry[0].1).unwrap();
    let rig = Rig::alone(&wish).unwrap();
    rig.wait("vxlan-6 as recorded", 15, |rig| {
        let observed = observed(&rig.lab, &golden)?;
        let own = rig.subnet(1, 6)?.addr().to_string();
        let lines = lines(&observed).into_iter().filter(alone);
        let observed: BTreeSet<String> = lines.map(|l| normal(l, &own, "fd18::b")).collect();
        let missing: Vec<&String> = expected.difference(&observed).collect();
        let surplus: Vec<&String> = observed.difference(&expected).collect();
        let equal = missing.is_empty() && surplus.is_empty();
        Ok((!equal).then(|| format!("\nrecorded, not here: {missing:#?}\nhere, not recorded: {surplus:#?}")))
    })
    .unwrap_or_else(|e| panic!("{e}"));
    let leases = rig.lab.leases().unwrap();
    assert_eq!(leases.len(), 1);
    assert!(leases[0].0.starts_with("0.0.0.0-0&fd10:"), "{leases:?}");
    assert!(
        leases[0].1.starts_with(
            "{\"PublicIP\":\"0.0.0.0\",\"PublicIPv6\":\"fd18::b\",\"BackendType\":\"vxlan\",\"BackendV6Data\""
        ),
        "{leases:?}"
    );
}
