//! Ours and Debian's Go plugins on one node: what one adds the other removes.

use crate::rig::{Call, GO_PLUGINS, Host, ID};

/// Without routes of its own: Debian's CHECK does not find those without a next hop, its own included.
fn delegate(host: &Host, masquerade: bool) -> String {
    format!(
        r#"{{"cniVersion":"1.0.0","hairpinMode":true,"ipMasq":{masquerade},"ipam":{{"dataDir":"{}","ranges":[[{{"subnet":"10.244.7.0/24"}}],[{{"subnet":"fd00:10:244:7::/64"}}]],"type":"host-local"}},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}}"#,
        host.path("networks")
    )
}

fn by(host: &mut Host, whose: &str, verb: &'static str, masquerade: bool) -> Call<'static> {
    let stdin = delegate(host, masquerade);
    let mut call = host.call("bridge", verb, stdin);
    if whose == "go" {
        call.program = format!("{GO_PLUGINS}/bridge").into();
        call.path = GO_PLUGINS.to_owned();
    }
    call
}

/// Links, addresses, routes and rules of host and container, without what is random.
fn state(host: &Host) -> String {
    let veth = host
        .links()
        .into_iter()
        .find(|l| l.starts_with("veth"))
        .unwrap_or_default();
    let words = |text: String| {
        let text = text.replace(&veth, "VETH");
        let words = text
            .split_whitespace()
            .filter(|w| w.len() != 17 && !w.starts_with("fe80::") && *w != "tentative");
        words.collect::<Vec<_>>().join(" ")
    };
    let mut all = vec![
        words(host.pod_ip(0, &["-o", "addr", "show", "eth0"])),
        words(host.pod_ip(0, &["-4", "route"])),
        words(host.pod_ip(0, &["-6", "route"])),
        words(host.ip(&["-4", "-o", "addr", "show", "cni0"])),
        words(host.ip(&["-6", "-o", "addr", "show", "cni0", "scope", "global"])),
    ];
    all.extend(host.nat());
    all.push(format!("{:?}", host.reservations("cbr0")));
    all.join("\n")
}

#[test]
fn c9_attachments_when_added_by_one_are_removed_by_the_other_and_look_the_same() {
    for masquerade in [false, true] {
        let mut seen = Vec::new();
        for (adds, dels) in [("ours", "go"), ("go", "ours"), ("ours", "ours"), ("go", "go")] {
            let mut host = Host::new();
            let add = by(&mut host, adds, "ADD", masquerade);
            let result = host.run(&add).ok().json();
            assert_eq!(result["ips"].as_array().unwrap().len(), 2);
            seen.push(state(&host));
            for whose in ["go", "ours"] {
                let mut check = by(&mut host, whose, "CHECK", masquerade);
                let mut config: serde_json::Value = serde_json::from_str(&check.stdin).unwrap();
                config["prevResult"] = result.clone();
                check.stdin = config.to_string();
                host.run(&check).ok();
            }
            let del = by(&mut host, dels, "DEL", masquerade);
            host.run(&del).ok();
            assert_eq!(host.pod_links(0), Vec::<String>::new());
            // Go leaves our index of what it has released; the next call of ours sees that and clears it up.
            let del = by(&mut host, "ours", "DEL", masquerade);
            host.run(&del).ok();
            host.assert_nothing_left("cbr0");
        }
        assert_eq!(seen[0], seen[1], "ours and Go's");
    }
}

#[test]
fn c9_flannel_when_go_saved_the_state_deletes_by_it() {
    let mut host = Host::new();
    host.dual_stack();
    let add = by(&mut host, "go", "ADD", true);
    host.run(&add).ok();
    std::fs::create_dir(host.path("flannel")).unwrap();
    std::fs::write(host.path(&format!("flannel/{ID}")), delegate(&host, true)).unwrap();
    host.flannel("DEL").ok();
    assert_eq!(host.pod_links(0), Vec::<String>::new());
    host.assert_nothing_left("cbr0");
}

#[test]
fn c5_containers_when_half_of_their_attachments_are_gos_are_freed_whole() {
    for order in [["eth0", "net1"], ["net1", "eth0"]] {
        let mut host = Host::new();
        host.dual_stack();
        let go = by(&mut host, "go", "ADD", false);
        host.run(&go).ok();
        std::fs::create_dir(host.path("flannel")).unwrap();
        std::fs::write(host.path(&format!("flannel/{ID}")), delegate(&host, false)).unwrap();
        let stdin = host.config("cbr0", "");
        let ours = Call {
            ifname: "net1",
            ..host.call("flannel", "ADD", stdin)
        };
        assert_ne!(host.run(&ours).ok().addresses()[0], "10.244.7.2/24");
        for ifname in order {
            let del = Call {
                ifname,
                verb: "DEL",
                ..ours.clone()
            };
            host.run(&del).ok();
        }
        assert_eq!(host.pod_links(0), Vec::<String>::new());
        host.assert_nothing_left("cbr0");
    }
}

#[test]
fn both_when_they_hand_out_addresses_at_the_same_time_never_give_one_twice() {
    const COUNT: usize = 20;
    let mut host = Host::new();
    let ids: Vec<String> = (0..COUNT).map(|i| format!("pod{i}")).collect();
    let mut calls = Vec::new();
    for (i, id) in ids.iter().enumerate() {
        let netns = host.pod(i);
        let call = by(&mut host, if i % 2 == 0 { "go" } else { "ours" }, "ADD", false);
        calls.push(Call {
            container: id,
            netns,
            ..call
        });
    }
    let running: Vec<_> = calls.iter().map(|call| host.start(call)).collect();
    let mut addresses = std::collections::BTreeSet::new();
    for running in running {
        addresses.extend(running.finish().ok().addresses());
    }
    assert_eq!(addresses.len(), 2 * COUNT);
    // Each deletes what the other has made.
    for (i, call) in calls.iter().enumerate() {
        let other = by(&mut host, if i % 2 == 0 { "ours" } else { "go" }, "DEL", false);
        let del = Call {
            container: call.container,
            netns: call.netns.clone(),
            ..other
        };
        host.run(&del).ok();
    }
    assert_eq!(host.reservations("cbr0"), []);
    let del = by(&mut host, "ours", "DEL", false);
    host.run(&del).ok();
    host.assert_nothing_left("cbr0");
}
