//! What a container's link and its bridge look like.

use crate::rig::{Answer, Call, Host};

fn bridge_config(host: &Host, more: &str) -> String {
    format!(
        r#"{{"cniVersion":"1.0.0","name":"net","type":"bridge","bridge":"br7","ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.7.0.0/24"}}]]}}{more}}}"#,
        host.path("networks")
    )
}

fn bridge(host: &mut Host, verb: &'static str, more: &str) -> Answer {
    let stdin = bridge_config(host, more);
    let call = host.call("bridge", verb, stdin);
    host.run(&call)
}

#[test]
fn c12_w9_bridge_mac_when_a_hundred_containers_come_and_go_stays_the_same() {
    let mut host = Host::new();
    let mac = |host: &Host| -> String {
        let text = host.ip(&["-o", "link", "show", "cni0"]);
        text.split("link/ether ")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .to_owned()
    };
    // The very first ADD on the node fails late and is taken back.
    std::fs::create_dir_all(host.path("networks")).unwrap();
    std::fs::write(host.path("networks/cbr0"), "in the way").unwrap();
    host.flannel("ADD").failure();
    std::fs::remove_file(host.path("networks/cbr0")).unwrap();
    host.flannel("DEL").ok();
    let first = mac(&host);
    assert_ne!(first, "00:00:00:00:00:00");
    for _ in 0..100 {
        let result = host.flannel("ADD").ok().json();
        assert_eq!(result["interfaces"][0]["mac"], first.as_str());
        assert_eq!(mac(&host), first);
        host.flannel("DEL").ok();
        assert_eq!(mac(&host), first);
    }
    let of_bridge = host.exec(&[
        "ip",
        "netns",
        "exec",
        &host.name,
        "cat",
        "/sys/class/net/cni0/addr_assign_type",
    ]);
    assert_eq!(of_bridge.trim(), "3");
}

#[test]
fn w9_bridge_mac_when_left_unpinned_by_another_is_pinned() {
    let mut host = Host::new();
    host.exec(&["ip", "link", "add", "cni0", "type", "bridge"]);
    // As a runtime sees it: with a sysfs of the host's own namespace.
    let stdin = host.config("cbr0", "");
    let mut call = host.call("flannel", "ADD", stdin);
    let inner = call.program.to_str().unwrap().to_owned();
    call.program = "/usr/sbin/ip".into();
    let script = format!("exec {inner}");
    let mut wrapped = call.clone();
    wrapped.program = host.folder.path().join("wrapped");
    std::fs::write(
        &wrapped.program,
        format!("#!/bin/sh\nexec ip netns exec {} sh -c '{script}'\n", host.name),
    )
    .unwrap();
    std::fs::set_permissions(
        &wrapped.program,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    host.run(&wrapped).ok();
    let kind = host.exec(&[
        "ip",
        "netns",
        "exec",
        &host.name,
        "cat",
        "/sys/class/net/cni0/addr_assign_type",
    ]);
    assert_eq!(kind.trim(), "3");
}

#[test]
fn forwarding_when_off_is_switched_on_for_the_families_in_use() {
    let mut host = Host::new();
    host.flannel("ADD").ok();
    assert_eq!(
        (
            host.sysctl("ipv4/ip_forward"),
            host.sysctl("ipv6/conf/all/forwarding")
        ),
        ("1".into(), "0".into())
    );
    host.flannel("DEL").ok();
    host.dual_stack();
    host.flannel("ADD").ok();
    assert_eq!(host.sysctl("ipv6/conf/all/forwarding"), "1");
}

#[test]
fn addresses_when_ipv6_is_used_are_usable_as_soon_as_add_returns() {
    let mut host = Host::new();
    host.dual_stack();
    host.flannel("ADD").ok();
    let addresses = host.pod_ip(0, &["-6", "-o", "addr", "show", "eth0", "scope", "global"]);
    assert!(addresses.contains("fd00:10:244:7::2/64"), "{addresses}");
    assert!(
        !addresses.contains("tentative") && !addresses.contains("nodad"),
        "{addresses}"
    );
    host.pod_exec(0, &["ping", "-c1", "-W2", "10.244.7.1"]);
}

#[test]
fn detection_when_enabled_is_waited_for() {
    let mut host = Host::new();
    host.dual_stack();
    let stdin = host.config("cbr0", r#","delegate":{"enabledad":true}"#);
    let call = host.call("flannel", "ADD", stdin);
    host.run(&call).ok();
    let addresses = host.pod_ip(0, &["-6", "-o", "addr", "show", "eth0"]);
    assert!(
        addresses.contains("fd00:10:244:7::2/64") && !addresses.contains("tentative"),
        "{addresses}"
    );
    assert_eq!(
        host.pod_exec(0, &["cat", "/proc/sys/net/ipv6/conf/eth0/accept_dad"])
            .trim(),
        "1"
    );
}

#[test]
fn port_when_options_are_given_has_them() {
    let mut host = Host::new();
    bridge(
        &mut host,
        "ADD",
        r#","hairpinMode":true,"portIsolation":true,"mtu":1300,"args":{"cni":{"mac":"02:00:00:00:00:07"}}"#,
    )
    .ok();
    let ports = host.exec(&["bridge", "-d", "-o", "link"]);
    assert!(
        ports.contains("hairpin on") && ports.contains("isolated on"),
        "{ports}"
    );
    let link = host.pod_ip(0, &["-o", "link", "show", "eth0"]);
    assert!(
        link.contains("mtu 1300") && link.contains("02:00:00:00:00:07"),
        "{link}"
    );
    bridge(&mut host, "DEL", "").ok();
    bridge(&mut host, "ADD", r#","promiscMode":true"#).ok();
    assert!(
        host.ip(&["-d", "-o", "link", "show", "br7"])
            .contains("promiscuity 1")
    );
    bridge(&mut host, "DEL", "").ok();
    let both = bridge(&mut host, "ADD", r#","promiscMode":true,"hairpinMode":true"#).failure();
    assert_eq!(
        both.1,
        "cannot set hairpin mode and promiscuous mode at the same time"
    );
    host.assert_nothing_left("net");
}

#[test]
fn bridge_when_its_name_is_another_links_is_refused() {
    let mut host = Host::new();
    let stdin = bridge_config(&host, "").replace("br7", "lo");
    let call = host.call("bridge", "ADD", stdin);
    let msg = "failed to create bridge \"lo\": \"lo\" already exists but is not a bridge";
    assert_eq!(host.run(&call).failure(), (999, msg.to_owned()));
}

#[test]
fn bridge_when_not_a_gateway_has_no_address_and_follows_its_ports() {
    let mut host = Host::new();
    let result = bridge(&mut host, "ADD", "").ok().json();
    assert_eq!(result["ips"][0]["gateway"], "10.7.0.1");
    assert_eq!(host.ip(&["-4", "-o", "addr", "show", "br7"]), "");
    assert_eq!(host.sysctl("ipv4/ip_forward"), "0");
    bridge(&mut host, "DEL", "").ok();
    host.assert_nothing_left("net");
}

#[test]
fn link_when_there_is_no_ipam_is_up_without_addresses() {
    let mut host = Host::new();
    let stdin = r#"{"cniVersion":"1.0.0","name":"l2","type":"bridge","dns":{"domain":"d"}}"#;
    let call = host.call("bridge", "ADD", stdin.to_owned());
    let result = host.run(&call).ok().json();
    assert!(
        result.get("ips").is_none() && result["dns"]["domain"] == "d",
        "{result}"
    );
    assert!(
        host.pod_ip(0, &["-o", "link", "show", "eth0"])
            .contains("LOWER_UP")
    );
    let call = host.call("bridge", "DEL", stdin.to_owned());
    host.run(&call).ok();
    assert_eq!(host.pod_links(0), Vec::<String>::new());
}

#[test]
fn w15_routes_when_they_have_metrics_and_tables_are_made_with_them() {
    let mut host = Host::new();
    let routes = r#""routes":[{"dst":"10.99.0.0/16","mtu":1400,"advmss":1300,"priority":77},{"dst":"10.98.0.0/16","gw":"10.7.0.254","table":500},{"dst":"0.0.0.0/0"}],"#;
    let stdin = bridge_config(&host, r#","isDefaultGateway":true"#)
        .replace(r#""ranges""#, &format!(r#"{routes}"ranges""#));
    let call = host.call("bridge", "ADD", stdin);
    host.run(&call).ok();
    let main = host.pod_ip(0, &["route"]);
    assert!(
        main.contains("10.99.0.0/16 via 10.7.0.1 dev eth0 metric 77 mtu 1400 advmss 1300"),
        "{main}"
    );
    assert_eq!(
        main.lines().filter(|l| l.starts_with("default")).count(),
        1,
        "{main}"
    );
    let table = host.pod_ip(0, &["route", "show", "table", "500"]);
    assert!(table.contains("10.98.0.0/16 via 10.7.0.254"), "{table}");
    let bad = bridge_config(&host, "").replace(
        r#""ranges""#,
        r#""routes":[{"dst":"10.99.0.0/16","gw":"192.0.2.1"}],"ranges""#,
    );
    let call = Call {
        container: "other",
        netns: host.pod(1),
        stdin: bad,
        ..host.call("bridge", "ADD", String::new())
    };
    let (_, msg) = host.run(&call).failure();
    assert!(msg.starts_with("failed to add route '{10.99.0.0 ffff0000} via 192.0.2.1 dev eth0 metric 0 (Scope: 0, Table: 0)': network is unreachable"), "{msg}");
    assert_eq!(host.pod_links(1), Vec::<String>::new());
}

#[test]
fn loopback_when_added_and_deleted_goes_up_and_down() {
    let mut host = Host::new();
    let stdin = r#"{"cniVersion":"0.3.1","name":"cni-loopback","type":"loopback"}"#;
    let mut call = host.call("loopback", "ADD", stdin.to_owned());
    call.ifname = "anything";
    let result = host.run(&call).ok().json();
    assert_eq!(result["interfaces"][0]["name"], "lo");
    assert_eq!(result["interfaces"][0]["mac"], "00:00:00:00:00:00");
    assert_eq!(result["ips"][0]["address"], "127.0.0.1/8");
    assert_eq!(result["ips"][1]["address"], "::1/128");
    let up = |host: &Host| host.pod_ip(0, &["-o", "link", "show", "lo"]).contains(",UP");
    assert!(up(&host));
    let check = r#"{"cniVersion":"1.0.0","name":"cni-loopback","type":"loopback","prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.9/24"}]}}"#;
    let call = host.call("loopback", "CHECK", check.to_owned());
    host.run(&call).ok();
    let call = host.call("loopback", "ADD", check.to_owned());
    assert_eq!(
        host.run(&call).ok().addresses(),
        ["10.0.0.9/24"],
        "a previous result is handed on"
    );
    let call = host.call("loopback", "DEL", stdin.to_owned());
    host.run(&call).ok();
    assert!(!up(&host));
    let call = host.call("loopback", "CHECK", check.to_owned());
    assert_eq!(host.run(&call).failure().1, "loopback interface is down");
    host.pod_ip(0, &["addr", "add", "10.1.1.1/32", "dev", "lo"]);
    let call = host.call("loopback", "ADD", stdin.to_owned());
    assert_eq!(
        host.run(&call).failure().1,
        "loopback interface found with non-loopback address \"10.1.1.1\""
    );
    let mut gone = host.call("loopback", "DEL", stdin.to_owned());
    host.remove_pod(0);
    host.run(&gone).ok();
    gone.netns = String::new();
    host.run(&gone).ok();
}
