//! Ending and starting the daemon: no packet is lost, and nothing in the kernel changes.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

use std::process::Stdio;
use std::time::Duration;

use lab::flannel::config;
use lab::reach::parse_echo;
use lab::rig::{Rig, Wish};
use lab::witness::{Monitor, link, picture, routes};
use lab::{Families, Lab};
use serde_json::json;

fn healthy(rig: &Rig) {
    rig.wait("a healthy h1 by its own word", 20, |rig| {
        Ok(rig
            .lab
            .host(1)
            .run(&["flannelctl", "status"])
            .err()
            .map(|e| e.to_string()))
    })
    .unwrap();
}

fn no_packet_is_lost(backend: serde_json::Value) {
    let mut rig = Rig::start(&Wish::new(backend)).unwrap();
    rig.lab.add_pods().unwrap();
    let pods = rig.lab.state.pods.clone();
    let mut pings = Vec::new();
    for family in [4, 6] {
        let target = pods[1].address(family).unwrap().to_string();
        // The first packet may wait for neighbours; the count begins after it.
        rig.lab
            .pod_end(&pods[0])
            .ping(&["-c", "3", "-i", "0.1", "-W", "3", &target])
            .unwrap();
        let mut command = rig
            .lab
            .pod_end(&pods[0])
            .command(&["ping", "-n", "-q", "-i", "0.01", "-c", "600", "-W", "2", &target]);
        pings.push(command.stdout(Stdio::piped()).spawn().unwrap());
    }
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(700));
        rig.restart(1, &[]).unwrap();
        std::thread::sleep(Duration::from_millis(700));
        rig.restart(2, &[]).unwrap();
    }
    for ping in pings {
        let output = ping.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let echo = parse_echo(&text).unwrap();
        assert_eq!((echo.sent, echo.received), (600, 600), "{text}");
    }
    healthy(&rig);
}

#[test]
fn vxlan_kill_9_under_ping_loses_no_packet() {
    no_packet_is_lost(json!({ "Type": "vxlan" }));
}

#[test]
fn host_gw_kill_9_under_ping_loses_no_packet() {
    no_packet_is_lost(json!({ "Type": "host-gw" }));
}

#[test]
fn restart_changes_nothing_in_the_kernel() {
    for backend in [json!({ "Type": "vxlan" }), json!({ "Type": "host-gw" })] {
        let mut rig = Rig::start(&Wish::new(backend.clone()).hosts(3)).unwrap();
        healthy(&rig);
        // The kernel's own link-local addresses become valid a second or two after their devices came up.
        rig.settle("no tentative address", &String::new(), |lab| {
            lab.host(1).ip(&["-6", "addr", "show", "tentative"])
        })
        .unwrap();
        let before = picture(rig.lab.host(1)).unwrap();
        let leases = rig.lab.leases().unwrap();
        let monitor = Monitor::start(rig.lab.host(1), "restart").unwrap();
        rig.restart(1, &[]).unwrap();
        healthy(&rig);
        std::thread::sleep(Duration::from_millis(500));
        let seen: Vec<String> = monitor
            .seen(&["flannel", "10.244.", "fd00:10:244"])
            .into_iter()
            .filter(|line| !line.contains("lladdr") || line.contains("PERMANENT"))
            .collect();
        monitor.stop();
        assert_eq!(seen, Vec::<String>::new(), "{backend}: ip monitor saw changes");
        assert_eq!(picture(rig.lab.host(1)).unwrap(), before, "{backend}");
        assert_eq!(
            rig.lab.leases().unwrap(),
            leases,
            "{backend}: the same keys and values"
        );
    }
}

#[test]
fn hangup_executes_the_daemon_anew_in_the_same_process() {
    let rig = Rig::start(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(2)).unwrap();
    healthy(&rig);
    let before = picture(rig.lab.host(1)).unwrap();
    let record = rig.daemons[0].record().clone();
    let started = || -> u64 {
        let status = rig
            .lab
            .host(1)
            .run(&["sh", "-c", "flannelctl status --json; true"])
            .unwrap_or_default();
        serde_json::from_str::<serde_json::Value>(&status).map_or(0, |s| s["started"].as_u64().unwrap_or(0))
    };
    let first = started();
    assert!(first > 0);
    std::thread::sleep(Duration::from_millis(1100));
    record.signal(rustix::process::Signal::HUP);
    rig.wait("a new start in the old process", 15, |_| {
        Ok((started() <= first).then(|| "no".to_owned()))
    })
    .unwrap();
    assert!(record.alive(), "the same process");
    healthy(&rig);
    assert_eq!(picture(rig.lab.host(1)).unwrap(), before);
}

/// Two networks on the same hosts: other prefix, Network, VNI, subnet file.
#[test]
fn two_daemons_on_one_host_do_not_touch_each_other() {
    let mut rig = Rig::start(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(2)).unwrap();
    let mut second = config(Families::V4, json!({ "Type": "vxlan", "VNI": 2 }));
    second["Network"] = json!("10.99.0.0/16");
    rig.lab
        .put("/second/network/config", &second.to_string())
        .unwrap();
    let endpoint = rig.lab.store().unwrap().endpoint.clone();
    let start = |lab: &Lab, host: usize| {
        let flags = [
            "flanneld",
            "--etcd-endpoints",
            &endpoint,
            "--etcd-prefix=/second/network",
            "--iface=eth0",
            "--ip-masq",
            "--subnet-file=/run/flannel/second.env",
        ];
        lab.host(host).spawn("second", &flags).unwrap()
    };
    let mut seconds = [start(&rig.lab, 1), start(&rig.lab, 2)];
    let env = |lab: &Lab, host: usize| {
        lab.host(host)
            .read("/run/flannel/second.env")
            .ok()
            .map(|t| lab::flannel::Env::parse(&t))
            .and_then(|e| e.subnet)
    };
    rig.wait("the second network", 20, |rig| {
        let (Some(_), Some(other)) = (env(&rig.lab, 1), env(&rig.lab, 2)) else {
            return Ok(Some(format!("a subnet: {}", seconds_log(&rig.lab))));
        };
        let route = routes(rig.lab.host(1), 4)?
            .into_iter()
            .find(|r| r.destination() == Some(other.trunc()));
        Ok(route
            .is_none_or(|r| r.dev != "flannel.2")
            .then(|| format!("a route to {other}: {}", seconds_log(&rig.lab))))
    })
    .unwrap();
    // The firewall of both settles, then everything holds still, whatever resyncs run and whoever restarts.
    let rules = |lab: &Lab| lab::fault::firewall_text(lab.host(1));
    rig.wait("rules of both networks", 15, |rig| {
        let text = rules(&rig.lab)?;
        let both = ["10.244.0.0/16", "10.99.0.0/16"].iter().all(|n| text.contains(n));
        Ok((!both).then_some(text))
    })
    .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let before = picture(rig.lab.host(1)).unwrap();
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(
        picture(rig.lab.host(1)).unwrap(),
        before,
        "nothing moves while both run"
    );
    rig.restart(1, &[]).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(picture(rig.lab.host(1)).unwrap(), before, "the first restarts");
    seconds[0].kill();
    seconds[0] = start(&rig.lab, 1);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(picture(rig.lab.host(1)).unwrap(), before, "the second restarts");
    // What is broken of one is repaired by that one.
    rig.lab.host(1).ip(&["link", "del", "flannel.2"]).unwrap();
    rig.wait("flannel.2 again, with its route", 10, |rig| {
        let there = link(rig.lab.host(1), "flannel.2")?.is_some();
        let routed = routes(rig.lab.host(1), 4)?.iter().any(|r| r.dev == "flannel.2");
        Ok((!(there && routed)).then(|| seconds_log(&rig.lab)))
    })
    .unwrap();
}

fn seconds_log(lab: &Lab) -> String {
    lab::process::tail(&lab.spec.directory().join("h1-second.log"), 8)
}
