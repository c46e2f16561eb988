//! `flannelctl cleanup`: a host is afterwards what it was before flannel came, and what was never flannel's is as it was.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

use std::time::Duration;

use lab::node::Node;
use lab::rig::{Rig, Wish};
use lab::{Families, Lab};
use serde_json::{Value, json};

/// What stands on the host before flannel comes, much of it in flannel's neighbourhood.
const STRANGERS: &str = "
    ip route add 10.244.200.0/24 via 198.18.0.1 proto static
    ip route add 10.245.0.0/16 via 198.18.0.1
    ip link add flannel.9 type veth peer name veth9
    ip link add br7 type bridge
    iptables -w -A FORWARD -s 10.9.0.0/16 -j ACCEPT
    iptables -w -t nat -A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE
    nft add table ip flannel-admin
    mkdir -p /run/flannel-other /run/plugins /etc/cni/net.d
    echo '{\"name\":\"other\",\"type\":\"bridge\"}' > /etc/cni/net.d/99-other.conf
";

/// Where runtimes of the host look: `/opt` is the machine's own.
const PLUGINS: &str = "/run/plugins";

/// A lab whose hosts have never seen flannel.
fn bare(wish: &Wish) -> Rig {
    let rig = Rig::bare(wish).unwrap();
    rig.lab.host(1).shell("rmdir /run/flannel").unwrap();
    rig
}

/// All that can be seen of a host: links, addresses, routes, rules, entries, the firewall, files.
fn seen(node: &Node) -> Vec<String> {
    let text = node
        .shell(
            "ip -o link show | sed 's/ state [A-Z]* / /'
            ip -o addr show | sed 's/ valid_lft.*//'
            ip -o neigh show nud permanent; bridge fdb show
            ip -4 route show table all; ip -6 route show table all; ip rule; ip -6 rule
            iptables-save; ip6tables-save; nft list tables
            find /run /var/lib/flannel /var/lib/cni /etc/cni || true",
        )
        .unwrap();
    // What iptables makes for itself when it is first asked, and keeps: its tables with empty chains, and its lock.
    let is_iptables_own = |line: &&str| {
        let counted = line.starts_with(':') && line.contains(" ACCEPT [");
        let named = line.starts_with("table ip") && ["filter", "nat"].iter().any(|name| line.ends_with(name));
        counted || named || line.starts_with(['*', '#']) || *line == "COMMIT" || *line == "/run/xtables.lock"
    };
    // The kernel's own, which come and go with what others say.
    let is_groups = |line: &&str| {
        ["33:33:", "01:00:5e:", "multicast "]
            .iter()
            .any(|start| line.starts_with(start))
    };
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| !is_iptables_own(line) && !is_groups(line))
        .map(|line| line.trim().to_owned())
        .collect();
    lines.sort();
    lines
}

fn differences(before: &[String], after: &[String]) -> Vec<String> {
    let more = after
        .iter()
        .filter(|line| !before.contains(line))
        .map(|line| format!("+{line}"));
    let less = before
        .iter()
        .filter(|line| !after.contains(line))
        .map(|line| format!("-{line}"));
    more.chain(less).collect()
}

/// Runs it; the exit status, and all it says.
fn cleanup(lab: &Lab, arguments: &str) -> (i32, String) {
    let text = lab
        .host(1)
        .shell(&format!(
            "flannelctl cleanup --cni-bin {PLUGINS} {arguments} 2>&1 && echo =0 || echo \"=$?\""
        ))
        .unwrap();
    let (said, status) = text.trim_end().rsplit_once('=').unwrap();
    (status.parse().unwrap(), said.to_owned())
}

fn leaves_the_host_as_it_was(families: Families, config: Value) {
    let mut wish = Wish::of(families, config["Backend"].clone());
    for (key, value) in config.as_object().unwrap() {
        wish.config[key] = value.clone();
    }
    let mut rig = bare(&wish);
    rig.lab.host(1).shell(STRANGERS).unwrap();
    let before = seen(rig.lab.host(1));
    assert_eq!(cleanup(&rig.lab, "--dry-run").0, 0);
    let (status, said) = cleanup(&rig.lab, "");
    assert!(
        status == 0 && said.contains("nothing of flannel's is here"),
        "{said}"
    );
    assert_eq!(differences(&before, &seen(rig.lab.host(1))), [""; 0]);

    rig.daemons = rig.lab.start_daemons(&[]).unwrap();
    rig.lab.wait_for_routes(Duration::from_secs(30)).unwrap();
    rig.lab
        .host(1)
        .shell(&format!("flannelctl cni install --all --dir {PLUGINS}"))
        .unwrap();
    rig.lab.add_pods().unwrap();
    let pods = rig.lab.state.pods.clone();
    // While it runs, and while a pod is there.
    let (status, said) = cleanup(&rig.lab, "");
    assert!(status == 1 && said.contains("flanneld runs here (pid "), "{said}");
    let (status, said) = cleanup(&rig.lab, "--dry-run");
    assert!(
        status == 0 && said.contains("would be refused now: flanneld runs"),
        "{said}"
    );
    rig.daemons[0].stop(Duration::from_secs(10));
    let full = seen(rig.lab.host(1));
    let (status, said) = cleanup(&rig.lab, "");
    assert!(status == 1 && said.contains("containers are attached"), "{said}");
    assert_eq!(
        differences(&full, &seen(rig.lab.host(1))),
        [""; 0],
        "refused means nothing is done"
    );
    rig.lab.remove_pod(&pods[0].full_name()).unwrap();

    let (status, planned) = cleanup(&rig.lab, "--dry-run");
    assert_eq!(status, 0, "{planned}");
    let (status, said) = cleanup(&rig.lab, "");
    assert_eq!(status, 0, "{said}");
    let done: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("removed "))
        .collect();
    let announced: Vec<&str> = planned
        .lines()
        .filter_map(|line| line.strip_prefix("would remove "))
        .collect();
    assert_eq!(done, announced);
    assert!(done.len() > 4, "{said}");
    assert_eq!(differences(&before, &seen(rig.lab.host(1))), [""; 0], "{said}");
    let (status, again) = cleanup(&rig.lab, "--json");
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!((status, &again["removed"]), (0, &json!([])), "{again}");
}

#[test]
fn a_host_of_vxlan_in_both_families_with_iptables_is_what_it_was() {
    let config = json!({ "Backend": { "Type": "vxlan" } });
    leaves_the_host_as_it_was(Families::Both, config);
}

#[test]
fn a_host_of_host_gw_with_nftables_is_what_it_was() {
    let config = json!({ "EnableNFTables": true, "Backend": { "Type": "host-gw" } });
    leaves_the_host_as_it_was(Families::Both, config);
}

/// Two daemons of one host leave a state each; of an earlier flannel there is none.
#[test]
fn a_host_of_two_daemons_and_of_an_earlier_flannel_is_what_it_was() {
    let mut rig = bare(&Wish::new(json!({ "Type": "vxlan" })));
    let before = seen(rig.lab.host(1));
    let second = r#"{"Network":"10.77.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#;
    rig.lab.put("/second/config", second).unwrap();
    let more = [
        "--etcd-prefix=/second",
        "--subnet-file=/run/flannel/second.env",
        "--healthz-port=8082",
    ];
    rig.daemons.push(rig.lab.start_daemon(1, &[]).unwrap());
    let words = rig.lab.daemon_arguments().unwrap();
    let words: Vec<&str> = words.iter().map(String::as_str).chain(more).collect();
    rig.daemons
        .push(rig.lab.host(1).spawn("flanneld-second", &words).unwrap());
    rig.wait("both devices", 30, |rig| {
        let there = "ip link show flannel.1 && ip link show flannel.2 && cat /run/flannel/subnet.env /run/flannel/second.env";
        Ok(rig.lab.host(1).shell(there).err().map(|error| error.to_string()))
    })
    .unwrap();
    let (_, said) = cleanup(&rig.lab, "");
    for daemon in &mut rig.daemons {
        let pid = daemon.record().pid.to_string();
        assert!(said.contains(&pid), "{said}");
        daemon.stop(Duration::from_secs(10));
    }
    let host = rig.lab.host(1);
    host.shell(
        "ip link add flannel.3 type vxlan id 3 local 198.18.0.11 dev eth0 dstport 8472 nolearning
        ip link set flannel.3 up
        ip route add 10.77.9.0/24 via 10.77.9.0 dev flannel.3 onlink
        ip route add 10.77.8.0/24 via 198.18.0.12
        iptables-legacy -t nat -N FLANNEL-POSTRTG
        iptables-legacy -t nat -A POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG
        iptables-legacy -t nat -A FLANNEL-POSTRTG -s 10.66.0.0/16 -m comment --comment 'flanneld masq' -j MASQUERADE",
    )
    .unwrap();
    // A state that names what is no subnet file.
    host.shell(
        "mkdir /var/lib/flannel/0123456789abcdef
        echo '{\"format\":1,\"subnet_file\":\"/run/precious\"}' > /var/lib/flannel/0123456789abcdef/state.json
        echo treasure > /run/precious",
    )
    .unwrap();
    let (status, said) = cleanup(&rig.lab, "");
    assert_eq!(status, 0, "{said}");
    assert!(
        said.contains("stays: /run/precious: named in a state, but no subnet file"),
        "{said}"
    );
    rig.lab.host(1).shell("rm /run/precious").unwrap();
    let named = "10.77.8.0/24 via 198.18.0.12 dev eth0";
    assert!(
        said.contains("stays: ") && said.contains(named),
        "whose it is only an admin knows: {said}"
    );
    let host = rig.lab.host(1);
    assert!(
        host.ip(&["route", "show", "10.77.8.0/24"])
            .unwrap()
            .contains("198.18.0.12")
    );
    host.ip(&["route", "del", "10.77.8.0/24"]).unwrap();
    let legacy = host.shell("iptables-legacy-save").unwrap();
    assert!(
        !legacy.contains("FLANNEL") && !legacy.contains("flanneld"),
        "{legacy}"
    );
    assert_eq!(differences(&before, &seen(host)), [""; 0], "{said}");
}
