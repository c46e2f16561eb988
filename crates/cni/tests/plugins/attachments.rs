//! Many attachments: of one container, and at the same time (P16, C1, C3–C6, W-12).

use std::collections::BTreeSet;

use crate::rig::{Call, Host, ID};

fn attachment(host: &mut Host, verb: &'static str, network: &str, ifname: &'static str) -> Call<'static> {
    let stdin = host.config(network, "");
    let call = host.call("flannel", verb, stdin);
    Call { ifname, ..call }
}

#[test]
fn p16_c4_container_when_attached_twice_loses_nothing_in_any_order_of_del() {
    for networks in [["cbr0", "cbr0"], ["cbr0", "flannel-conf"]] {
        for order in [[0, 1], [1, 0]] {
            let mut host = Host::new();
            host.subnet_env("10.244.0.0/16", "10.244.7.1/24", "", "", false);
            let names: [&'static str; 2] = ["eth0", "net1"];
            let mut addresses = BTreeSet::new();
            for i in [0, 1] {
                let call = attachment(&mut host, "ADD", networks[i], names[i]);
                addresses.extend(host.run(&call).ok().addresses());
            }
            assert_eq!(addresses.len(), 2, "{networks:?}: {addresses:?}");
            let first = attachment(&mut host, "DEL", networks[order[0]], names[order[0]]);
            host.run(&first).ok();
            assert_eq!(host.pod_links(0), [names[order[1]]]);
            let held = host.reservations(networks[order[1]]);
            let left = format!("{ID}\r\n{}", names[order[1]]);
            assert_eq!(
                held.iter().filter(|(_, content)| *content == left).count(),
                1,
                "{held:?}"
            );
            // W-12: what is left is masqueraded still.
            let jumps = host
                .nat()
                .iter()
                .filter(|l| l.starts_with("-A POSTROUTING"))
                .count();
            assert_eq!(jumps, 1, "{:?}", host.nat());
            host.run(&first).ok();
            assert_eq!(
                host.pod_links(0),
                [names[order[1]]],
                "a doubled DEL takes nothing else"
            );
            let second = attachment(&mut host, "DEL", networks[order[1]], names[order[1]]);
            host.run(&second).ok();
            for network in networks {
                host.assert_nothing_left(network);
            }
        }
    }
}

#[test]
fn c6_dels_when_the_namespace_went_first_remove_every_attachment() {
    let mut host = Host::new();
    host.subnet_env("10.244.0.0/16", "10.244.7.1/24", "", "", false);
    for ifname in ["eth0", "net1"] {
        let call = attachment(&mut host, "ADD", "cbr0", ifname);
        host.run(&call).ok();
    }
    let dels = ["eth0", "net1"].map(|ifname| attachment(&mut host, "DEL", "cbr0", ifname));
    host.remove_pod(0);
    for del in &dels {
        host.run(del).ok();
        host.run(del).ok();
    }
    host.assert_nothing_left("cbr0");
}

#[test]
fn c3_attachments_when_made_at_the_same_time_for_one_container_are_all_there() {
    for _ in 0..5 {
        let mut host = Host::new();
        let stdin = r#"{"cniVersion":"0.3.1","name":"cni-loopback","type":"loopback"}"#;
        let lo = host.call("loopback", "ADD", stdin.to_owned());
        let calls = [
            attachment(&mut host, "ADD", "cbr0", "eth0"),
            attachment(&mut host, "ADD", "flannel-conf", "net1"),
            attachment(&mut host, "ADD", "cbr0", "net2"),
            lo,
        ];
        let running: Vec<_> = calls.iter().map(|call| host.start(call)).collect();
        let mut addresses = BTreeSet::new();
        for (i, running) in running.into_iter().enumerate() {
            let answer = running.finish().ok();
            if i < 3 {
                addresses.extend(answer.addresses());
            }
        }
        assert_eq!(addresses.len(), 3, "{addresses:?}");
        let dels: Vec<Call<'_>> = calls
            .iter()
            .map(|call| Call {
                verb: "DEL",
                ..call.clone()
            })
            .collect();
        let running: Vec<_> = dels.iter().map(|call| host.start(call)).collect();
        for running in running {
            running.finish().ok();
        }
        host.assert_nothing_left("cbr0");
        host.assert_nothing_left("flannel-conf");
    }
}

#[test]
fn c1_fifty_containers_when_added_and_deleted_at_once_are_distinct_and_leave_nothing() {
    const COUNT: usize = 50;
    let mut host = Host::new();
    host.dual_stack();
    let ids: Vec<String> = (0..COUNT).map(|i| format!("{i:064x}")).collect();
    let mut calls = Vec::new();
    for (i, id) in ids.iter().enumerate() {
        let stdin = host.config("cbr0", "");
        let netns = host.pod(i);
        let call = host.call("flannel", "ADD", stdin);
        calls.push(Call {
            container: id,
            netns,
            ..call
        });
    }
    for round in 0..2 {
        let running: Vec<_> = calls.iter().map(|call| host.start(call)).collect();
        let mut addresses = BTreeSet::new();
        for running in running {
            addresses.extend(running.finish().ok().addresses());
        }
        assert_eq!(addresses.len(), 2 * COUNT, "round {round}");
        let veths = host.links().iter().filter(|l| l.starts_with("veth")).count();
        assert_eq!(veths, COUNT);
        assert_eq!(host.reservations("cbr0").len(), 2 * COUNT);
        let dels: Vec<Call<'_>> = calls
            .iter()
            .map(|call| Call {
                verb: "DEL",
                ..call.clone()
            })
            .collect();
        let running: Vec<_> = dels.iter().map(|call| host.start(call)).collect();
        for running in running {
            running.finish().ok();
        }
        host.assert_nothing_left("cbr0");
    }
}

#[test]
fn default_route_when_a_second_network_asks_for_it_is_as_go_leaves_it() {
    let mut host = Host::new();
    let eth0 = attachment(&mut host, "ADD", "cbr0", "eth0");
    host.run(&eth0).ok();
    let net1 = attachment(&mut host, "ADD", "flannel-conf", "net1");
    host.run(&net1).ok();
    let routes = host.pod_ip(0, &["-4", "route"]);
    let defaults: Vec<&str> = routes.lines().filter(|l| l.starts_with("default")).collect();
    assert_eq!(
        defaults,
        [
            "default via 10.244.7.1 dev net1 ",
            "default via 10.244.7.1 dev eth0 "
        ]
    );
}
