//! Objects of ours, broken by hand: how long until they are back, with all that hung on them. And objects of others beside
//! ours: untouched.
//!
//! Times are upper bounds: they run from before the command that breaks, and end when a witness of three commands has seen it
//! whole again, which takes some 10 ms itself.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use lab::Families;
use lab::fault::{FAULTS, Fault, Part, kernel_text, part_text};
use lab::rig::{Rig, Wish};
use lab::store::Kind;
use rustix::process::Signal;
use serde_json::{Value, json};

/// What must hold, and what is aimed at.
fn limits(part: Part) -> (Duration, Duration) {
    match part {
        Part::Kernel => (Duration::from_secs(2), Duration::from_millis(200)),
        _ => (Duration::from_secs(5), Duration::from_secs(1)),
    }
}

/// Strikes and waits until the host looks as before; `None` when the host has nothing of the kind.
///
/// First with the daemon stopped, to see that the fault is one: what is repaired before the witness looks could also be nothing.
/// Then with the daemon running, and the clock.
fn repair(rig: &Rig, fault: &Fault) -> Option<Result<Duration, String>> {
    let host = rig.lab.host(1);
    let before = part_text(host, fault.part).unwrap();
    let broken = fault.aim(host).unwrap()?;
    let daemon = rig.daemons[0].record();
    daemon.signal(Signal::STOP);
    while !stopped(daemon.pid) {
        std::thread::sleep(Duration::from_millis(1));
    }
    host.shell(&broken.did).unwrap();
    let struck = part_text(host, fault.part).unwrap();
    daemon.signal(Signal::CONT);
    assert_ne!(
        struck, before,
        "{}: `{}` does nothing that the witness sees",
        fault.name, broken.did
    );
    if let Err(text) = whole(rig, fault, &before) {
        return Some(Err(format!("{}: {text}", broken.did)));
    }
    let mut start = Instant::now();
    // A repair that is still under way may take what the command aims at (a rule's handle) from under it.
    for attempt in 1.. {
        match host.shell(&broken.did) {
            Ok(_) => break,
            Err(error) => assert!(attempt < 5, "{error}"),
        }
        start = Instant::now();
    }
    let result = whole(rig, fault, &before).map(|()| start.elapsed());
    Some(result.map_err(|text| format!("{}: {text}", broken.did)))
}

/// Every thread stands: the signal takes a moment to reach those on another processor.
fn stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.flatten().all(|thread| {
        let text = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        text.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

fn whole(rig: &Rig, fault: &Fault, before: &str) -> Result<(), String> {
    let start = Instant::now();
    loop {
        let now = part_text(rig.lab.host(1), fault.part).unwrap();
        if now == before {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(12) {
            return Err(difference(before, &now));
        }
    }
}

fn difference(before: &str, now: &str) -> String {
    let mut text = String::new();
    for (mark, from, to) in [("-", before, now), ("+", now, before)] {
        for line in from.lines().filter(|l| !to.lines().any(|t| t == *l)).take(6) {
            let _ = write!(text, "\n      {mark} {line}");
        }
    }
    text
}

/// Every fault that a host of this kind can have, each on a daemon that has seen none before: what is repaired again and
/// again is repaired more and more slowly, which is meant so, and tested elsewhere.
fn table(title: &str, wish: &Wish) {
    let mut rig = Rig::start(wish).unwrap();
    let (mut rows, mut failures, mut count) = (String::new(), Vec::new(), 0);
    for fault in FAULTS {
        rig.restart(1, &[]).unwrap();
        rig.wait_for_health().unwrap();
        let Some(result) = repair(&rig, fault) else {
            continue;
        };
        count += 1;
        let (gate, budget) = limits(fault.part);
        let (time, verdict) = match &result {
            Ok(took) if *took <= budget => (format!("{:.3}", took.as_secs_f64()), "ok"),
            Ok(took) if *took <= gate => (format!("{:.3}", took.as_secs_f64()), "over budget"),
            Ok(took) => (format!("{:.3}", took.as_secs_f64()), "TOO SLOW"),
            Err(_) => (" never".to_owned(), "NOT REPAIRED"),
        };
        let _ = writeln!(
            rows,
            "{:<20} {:<58} {time:>7} {:>7.1}  {verdict}",
            fault.name,
            fault.about,
            budget.as_secs_f64()
        );
        match result {
            Ok(took) if took <= gate => {}
            Ok(took) => failures.push(format!("{}: {took:?}", fault.name)),
            Err(text) => failures.push(format!("{}: {text}", fault.name)),
        }
    }
    println(&format!(
        "\n{title}\n{:<20} {:<58} {:>7} {:>7}\n{rows}",
        "FAULT", "WHAT IT DOES", "SECONDS", "BUDGET"
    ));
    assert!(count > 5, "only {count} faults could be aimed at this host");
    assert!(failures.is_empty(), "{title}:\n{}", failures.join("\n"));
}

fn println(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

#[test]
fn vxlan_dual_stack_every_object_comes_back() {
    table(
        "vxlan, dual stack, iptables",
        &Wish::new(json!({ "Type": "vxlan" })).hosts(3),
    );
}

#[test]
fn host_gw_every_object_comes_back() {
    table(
        "host-gw, dual stack, iptables",
        &Wish::new(json!({ "Type": "host-gw" })).hosts(3),
    );
}

#[test]
fn nftables_every_rule_comes_back() {
    let mut wish = Wish::new(json!({ "Type": "host-gw" })).hosts(2);
    wish.config["EnableNFTables"] = json!(true);
    wish.store = Kind::Embedded;
    table("host-gw, dual stack, nftables, embedded registry", &wish);
}

#[test]
fn underlay_that_goes_and_comes_takes_no_route_with_it() {
    for backend in [
        json!({ "Type": "host-gw" }),
        json!({ "Type": "vxlan", "DirectRouting": true }),
    ] {
        let rig = Rig::start(&Wish::of(Families::V4, backend.clone()).hosts(2)).unwrap();
        rig.wait_for_health().unwrap();
        let host = rig.lab.host(1);
        let before = kernel_text(host).unwrap();
        host.shell(
            "ip link set eth0 down; sleep 0.3; ip link set eth0 up; ip route replace default via 198.18.0.1",
        )
        .unwrap();
        rig.wait(&format!("{backend}: all as before"), 10, |rig| {
            let now = kernel_text(rig.lab.host(1))?;
            Ok((now != before).then(|| difference(&before, &now)))
        })
        .unwrap();
    }
}

#[test]
fn objects_of_others_are_untouched_beside_ours() {
    let rig = Rig::start(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(2)).unwrap();
    rig.wait_for_health().unwrap();
    let host = rig.lab.host(1);
    host.shell(
        "ip route add 203.0.113.0/24 dev flannel.1 scope link proto static
        ip route add 10.244.99.0/24 via 198.18.0.12 proto static
        ip route add blackhole 10.244.98.0/24
        bridge fdb add 02:00:00:00:00:77 dev flannel.1 dst 198.18.0.12 self dynamic
        iptables -w -t nat -A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE
        iptables -w -I FORWARD 1 -s 192.0.2.7 -j DROP
        nft add table ip foreign; nft add chain ip foreign c
        ip link add other0 type bridge; ip addr add 192.0.2.1/24 dev other0",
    )
    .unwrap();
    let foreign = || -> Vec<bool> {
        let seen = host
            .shell("ip route; bridge fdb show dev flannel.1; iptables-save; nft list tables; ip addr show")
            .unwrap();
        let wanted = [
            "203.0.113.0/24 dev flannel.1",
            "10.244.99.0/24 via 198.18.0.12",
            "blackhole 10.244.98.0/24",
            "02:00:00:00:00:77",
            "-s 192.0.2.0/24 -j MASQUERADE",
            "-s 192.0.2.7/32 -j DROP",
            "table ip foreign",
            "192.0.2.1/24",
        ];
        wanted.iter().map(|w| seen.contains(w)).collect()
    };
    assert_eq!(foreign(), [true; 8], "the test's own objects stand");
    let before = kernel_text(host).unwrap();
    // Not `addr-del`: with a device's last address the kernel itself removes every route through it.
    for name in [
        "route-del",
        "neigh-del",
        "fdb-del",
        "mtu-change",
        "masq-flush",
        "subnet-env-del",
    ] {
        let fault = lab::fault::find(name).unwrap();
        assert!(repair(&rig, fault).unwrap().is_ok(), "{name}");
    }
    // Longer than any resync, and a restart besides: whoever removed foreign objects had the chance.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(foreign(), [true; 8]);
    let mut rig = rig;
    rig.restart(1, &[]).unwrap();
    rig.wait_for_health().unwrap();
    let host = rig.lab.host(1);
    assert_eq!(
        kernel_text(host).unwrap(),
        before,
        "a restart changes nothing either"
    );
}

#[test]
fn foreign_route_in_the_place_of_ours_stays_and_is_named() {
    let rig = Rig::start(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(2)).unwrap();
    rig.wait_for_health().unwrap();
    let host = rig.lab.host(1);
    host.ip(&[
        "route",
        "add",
        "10.244.250.0/24",
        "via",
        "198.18.0.12",
        "proto",
        "static",
    ])
    .unwrap();
    let lease = lab::rig::vxlan_lease("198.18.0.250", None, "02:00:00:00:00:0b", None);
    rig.put_lease("10.244.250.0-24", &lease).unwrap();
    rig.wait("a conflict in the daemon's status", 10, |_| {
        let status = host.run(&["sh", "-c", "flannelctl status --json; true"])?;
        let status: Value = serde_json::from_str(&status).unwrap();
        let named = status["findings"].to_string().contains("10.244.250.0/24");
        let peers = status["peers"].as_array().unwrap();
        let peer = peers.iter().find(|p| p["subnet"] == "10.244.250.0-24");
        let marked = peer.is_some_and(|p| p["state"] == "conflict");
        let others = peers.iter().filter(|p| p["state"] == "ok").count();
        Ok((!(named && marked && others == 1)).then(|| format!("{status:#}")))
    })
    .unwrap_or_else(|e| panic!("{e}"));
    let route = host.ip(&["route", "show", "10.244.250.0/24"]).unwrap();
    assert!(
        route.contains("via 198.18.0.12") && route.contains("static"),
        "{route}"
    );
    // Once it is out of the way, ours takes its place.
    host.ip(&["route", "del", "10.244.250.0/24", "proto", "static"])
        .unwrap();
    rig.settle("our route", &true, |lab| {
        Ok(lab
            .host(1)
            .ip(&["route", "show", "10.244.250.0/24"])?
            .contains("dev flannel.1"))
    })
    .unwrap_or_else(|e| panic!("{e}"));
}

/// The tunnel lies on the link, not on its name.
#[test]
fn underlay_that_is_renamed_for_good_keeps_its_device_and_what_a_restart_would_say_is_said() {
    let mut wish = Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(2);
    wish.flags = vec!["--iface=eth0".to_owned()];
    let rig = Rig::start(&wish).unwrap();
    rig.wait_for_health().unwrap();
    let host = rig.lab.host(1);
    let device = || -> Value {
        let text = host
            .ip(&["-d", "-j", "link", "show", "flannel.1"])
            .unwrap_or_default();
        let links: Value = serde_json::from_str(&text).unwrap_or_default();
        links[0].clone()
    };
    let before = device()["ifindex"].clone();
    assert!(before.is_u64(), "{before}");
    host.shell("ip link set eth0 down && ip link set eth0 name wan0 && ip link set wan0 up")
        .unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        assert_eq!(device()["ifindex"], before, "it was made anew");
        std::thread::sleep(Duration::from_millis(20));
    }
    rig.wait_for_health().unwrap();
    assert_eq!(device()["linkinfo"]["info_data"]["link"], "wan0");
    let status: Value =
        serde_json::from_str(&host.run(&["flannelctl", "status", "--json"]).unwrap()).unwrap();
    assert_eq!(status["underlay"]["link"], "wan0");
    let warnings = status["underlay"]["warnings"].to_string();
    assert!(
        warnings.contains("eth0 is called wan0 now") && warnings.contains("after a restart"),
        "{warnings}"
    );
    // What comes now is put on it.
    let subnet = rig.subnet(2, 4).unwrap().to_string();
    host.ip(&["route", "del", &subnet]).unwrap();
    rig.settle("the route", &true, |lab| {
        Ok(lab.host(1).ip(&["route", "show", &subnet])?.contains("flannel.1"))
    })
    .unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn paused_daemon_says_what_it_would_do_and_does_it_when_resumed() {
    let rig = Rig::start(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(2)).unwrap();
    rig.wait_for_health().unwrap();
    let host = rig.lab.host(1);
    assert_eq!(host.run(&["flannelctl", "plan"]).unwrap(), "nothing to change\n");
    host.run(&["flannelctl", "pause"]).unwrap();
    let subnet = rig.subnet(2, 4).unwrap().to_string();
    host.ip(&["route", "del", &subnet]).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(
        host.ip(&["route", "show", &subnet]).unwrap(),
        "",
        "a paused daemon repairs nothing"
    );
    let plan = host.run(&["sh", "-c", "flannelctl plan; true"]).unwrap();
    assert_eq!(plan.lines().count(), 1, "{plan}");
    assert!(plan.contains(&subnet), "{plan}");
    host.run(&["flannelctl", "resume"]).unwrap();
    rig.settle("the route", &true, |lab| {
        Ok(lab.host(1).ip(&["route", "show", &subnet])?.contains("flannel.1"))
    })
    .unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn somebody_who_keeps_breaking_the_same_object_is_named_and_not_fought_at_full_speed() {
    let rig = Rig::start(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(2)).unwrap();
    rig.wait_for_health().unwrap();
    let host = rig.lab.host(1);
    let subnet = rig.subnet(2, 4).unwrap().to_string();
    let (start, mut deletions) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(6) {
        if host.ip(&["route", "del", &subnet]).is_ok() {
            deletions += 1;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!((3..40).contains(&deletions), "repaired {deletions} times in 6 s");
    let status = host.run(&["sh", "-c", "flannelctl status --json; true"]).unwrap();
    let status: Value = serde_json::from_str(&status).unwrap();
    assert!(status["findings"].to_string().contains(&subnet), "{status:#}");
}

/// Entries on our device that lead nowhere we know go, however many they are; meanwhile and afterwards the rest is as it was.
#[test]
fn route_is_back_at_once_although_somebody_added_fifty_thousand_entries() {
    const ENTRIES: usize = 50_000;
    let rig = Rig::start(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(2)).unwrap();
    rig.wait_for_health().unwrap();
    let (host, subnet) = (rig.lab.host(1), rig.subnet(2, 4).unwrap().to_string());
    let resident = || lab::process::stat(rig.daemons[0].pid()).unwrap().resident * 4;
    std::thread::sleep(Duration::from_secs(2));
    let quiet = resident();
    let entry = |n: usize| {
        format!(
            "fdb add 02:66:00:{:02x}:{:02x}:{:02x} dev flannel.1 dst 192.0.2.66 self permanent",
            n >> 16,
            n >> 8 & 255,
            n & 255
        )
    };
    let batch: Vec<String> = (0..ENTRIES).map(entry).collect();
    host.write("/run/entries", &batch.join("\n")).unwrap();
    let lines = rig.daemons[0].log().lines().count();
    host.shell("bridge -batch /run/entries").unwrap();
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        host.ip(&["route", "del", &subnet]).unwrap();
        let took = rig.settle("the route", &true, |lab| {
            Ok(lab.host(1).ip(&["route", "show", &subnet])?.contains("flannel.1"))
        });
        slowest = slowest.max(took.unwrap());
        std::thread::sleep(Duration::from_millis(1500));
    }
    let held = resident();
    let said = rig.daemons[0].log().lines().count() - lines;
    println(&format!(
        "{ENTRIES} entries: the route back after {slowest:?} at most, RSS {quiet} -> {held} KiB, {said} lines"
    ));
    rig.settle("our entry alone", &"1".to_owned(), |lab| {
        let count = "bridge fdb show dev flannel.1 | wc -l";
        Ok(lab.host(1).shell(count)?.trim().to_owned())
    })
    .unwrap();
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    // That somebody did it is remembered for a minute, and let go of with the next audit.
    assert!(held < quiet + (32 << 10), "{held} of {quiet} KiB");
    assert!(said < 100, "{}", rig.daemons[0].log());
}

/// With DirectRouting a peer on the link is routed to without the tunnel. Which way packets go is for rules to say, too.
#[test]
fn direct_routing_follows_a_rule_at_once() {
    let rig = Rig::start(&Wish::of(Families::V4, json!({ "Type": "vxlan", "DirectRouting": true })).hosts(2))
        .unwrap();
    rig.wait_for_health().unwrap();
    let subnet = rig.subnet(2, 4).unwrap();
    let peer = "198.18.0.12";
    let device = |lab: &lab::Lab| {
        let routes = lab::witness::routes(lab.host(1), 4)?;
        let found = routes
            .into_iter()
            .find(|route| route.destination() == Some(subnet));
        Ok(found.map(|route| route.dev))
    };
    rig.settle("a direct route", &Some("eth0".to_owned()), device)
        .unwrap();
    // The audit would see it, too, but not within seconds; the first is up to 75 s away.
    let host = rig.lab.host(1);
    host.shell("ip route add default via 198.18.0.1 table 100")
        .unwrap();
    for (rule, expected) in [("add", "flannel.1"), ("del", "eth0")] {
        host.shell(&format!("ip rule {rule} to {peer} lookup 100"))
            .unwrap();
        let took = rig.settle(rule, &Some(expected.to_owned()), device).unwrap();
        assert!(took < Duration::from_secs(5), "ip rule {rule}: {took:?}");
    }
    // And for the tables that they lead to.
    host.shell(&format!(
        "ip route del default table 100; ip rule add to {peer} lookup 100"
    ))
    .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    host.shell("ip route add default via 198.18.0.1 table 100")
        .unwrap();
    let took = rig
        .settle("a further table", &Some("flannel.1".to_owned()), device)
        .unwrap();
    assert!(took < Duration::from_secs(5), "a further table: {took:?}");
}
