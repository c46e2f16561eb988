//! How flannel scales with leases: one host, a real etcd, and as many peers as asked for that are only leases.
//!
//! `cargo xtask bench scale [--json] [--leases N,...] [--repeat N] [--audit]`. Seconds run from exec to the last route, seen in the
//! kernel's own count (`/proc/net/fib_triestat`), which costs no process and almost no time to read.

#![allow(clippy::unwrap_used, clippy::panic)] // A bench is run by people and stops at the first thing that is wrong.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use lab::Families;
use lab::cost::{cost, median, prefixes, wait_for};
use lab::gateway::Gateway;
use lab::rig::{Rig, Wish};
use lab::store::SUBNETS;
use serde_json::{Value, json};

/// Sizes measured unless others are asked for.
const SIZES: [usize; 4] = [100, 1000, 4000, 10_000];
/// Budgets for seconds from exec to the last route.
const BUDGETS: [(&str, usize, f64); 4] = [
    ("vxlan", 1000, 0.08),
    ("vxlan", 4000, 0.2),
    ("vxlan", 10_000, 0.5),
    ("host-gw", 4000, 0.5),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let value = |name: &str| {
        let position = arguments.iter().position(|a| a == name)?;
        arguments.get(position + 1).cloned()
    };
    let sizes: Vec<usize> = match value("--leases") {
        Some(list) => list.split(',').map(|n| n.parse().unwrap()).collect(),
        None => SIZES.to_vec(),
    };
    let repeat: usize = value("--repeat").map_or(3, |n| n.parse().unwrap());
    let audited = arguments.iter().any(|a| a == "--audit");
    let as_json = arguments.iter().any(|a| a == "--json");
    let (mut results, mut good) = (Vec::new(), true);
    for backend in ["vxlan", "host-gw"] {
        for leases in &sizes {
            say(&format!("{backend}, {leases} leases"));
            results.push(measure(backend, *leases, repeat, audited));
        }
    }
    let mut out = std::io::stdout().lock();
    if as_json {
        writeln!(out, "{:#}", json!(results)).unwrap();
    } else {
        table(&mut out, &results);
    }
    // Counts gate; seconds inform.
    for result in &results {
        good &= result["requests in 20 peer events"] == 0 && result["complete"] == true;
    }
    if !good {
        panic!("a count is not what it must be");
    }
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn subnet(index: usize) -> String {
    // 10.0.0.0/8 in /24s, from 10.1.0.0 on.
    format!("10.{}.{}.0", 1 + index / 250, index % 250)
}

fn lease(backend: &str, index: usize) -> (String, String) {
    // host-gw peers must be on the link; several may share an address.
    let host = format!("198.18.{}.{}", 2 + index / 250 % 12, 1 + index % 250);
    let mut value = json!({ "PublicIP": host, "PublicIPv6": null, "BackendType": backend });
    if backend == "vxlan" {
        let mac = format!(
            "02:00:00:{:02x}:{:02x}:{:02x}",
            index >> 16,
            index >> 8 & 255,
            index & 255
        );
        value["BackendData"] = json!({ "VNI": 1, "VtepMAC": mac });
    }
    (format!("{SUBNETS}{}-24", subnet(index)), value.to_string())
}

/// Prefixes a daemon makes for itself: the tunnel's own address. Without policy rules the kernel keeps the local and the main
/// table in one trie, so it is counted, too.
fn own(backend: &str) -> usize {
    usize::from(backend == "vxlan")
}

fn calls(gateway: &mut Gateway) -> u64 {
    gateway.calls().unwrap().iter().map(|c| c.1).sum()
}

/// Removes what a run left in the kernel, so that the next starts from nothing.
fn clean(rig: &Rig, base: usize) {
    let host = rig.lab.host(1);
    host.shell("ip link del flannel.1 2>/dev/null || true; ip route flush proto 241; ip nexthop flush proto 241 2>/dev/null || true; rm -rf /run/flannel/* /var/lib/flannel/*").unwrap();
    assert!(
        wait_for(&rig.lab, base, Duration::from_millis(1)).is_some(),
        "left over: {}",
        prefixes(&rig.lab)
    );
}

fn measure(backend: &str, leases: usize, repeat: usize, audited: bool) -> Value {
    let mut wish = Wish::of(Families::V4, json!({ "Type": backend })).hosts(1);
    wish.config["Network"] = json!("10.0.0.0/8");
    wish.config["SubnetMin"] = json!("10.250.0.0");
    let mut rig = Rig::bare(&wish).unwrap();
    let endpoint = rig.lab.store().unwrap().endpoint.clone();
    let mut gateway = Gateway::connect(rig.lab.switch(), &endpoint).unwrap();
    let all: Vec<(String, String)> = (0..leases).map(|i| lease(backend, i)).collect();
    for chunk in all.chunks(100) {
        gateway.put(chunk).unwrap();
    }
    let base = prefixes(&rig.lab);
    let mut audits = vec![];
    let (mut seconds, mut cpu, mut memory, mut peak, mut requests) = (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..repeat {
        clean(&rig, base);
        let before = calls(&mut gateway);
        let start = Instant::now();
        let mut daemon = rig.lab.start_daemon(1, &[]).unwrap();
        if wait_for(&rig.lab, base + own(backend) + leases, Duration::from_micros(500)).is_none() {
            panic!(
                "{} of {leases} routes came: {}",
                prefixes(&rig.lab) - base,
                daemon.log()
            );
        }
        seconds.push(start.elapsed().as_secs_f64());
        let (time, now, most) = cost(&daemon);
        cpu.push(time);
        memory.push(now);
        peak.push(most);
        if audited && audits.is_empty() {
            // The first comes within 75 s.
            std::thread::sleep(Duration::from_secs(80));
            audits.push(cost(&daemon).1);
        }
        requests.push((calls(&mut gateway) - before) as f64);
        daemon.stop(Duration::from_secs(10));
    }
    let complete = complete(&rig, backend, leases);
    let mut result = json!({
        "backend": backend,
        "leases": leases,
        "seconds": median(seconds),
    "budget": BUDGETS.iter().find(|b| b.0 == backend && b.1 == leases).map(|b| b.2),
        "cpu seconds": median(cpu),
        "rss MiB": median(memory),
        "rss MiB after an audit": audits.first(),
        "peak MiB": median(peak),
        "requests at start": median(requests),
        "complete": complete,
        "system calls": system_calls(&mut rig, base, base + own(backend) + leases),
    });
    changes(&mut rig, &mut gateway, backend, leases, base, &mut result);
    result
}

/// Every object that the leases ask for is there, by the tools' own count.
fn complete(rig: &Rig, backend: &str, leases: usize) -> bool {
    let host = rig.lab.host(1);
    let count = |command: &str| host.shell(command).unwrap().trim().parse::<usize>().unwrap();
    let routes = count("ip route show proto 241 | wc -l") == leases;
    let tunnel = backend != "vxlan"
        || count("ip neigh show dev flannel.1 nud permanent | wc -l") == leases
            && count("bridge fdb show dev flannel.1 | grep -c permanent") == leases;
    routes && tunnel
}

/// Of a start, in a run of its own: strace slows it down.
fn system_calls(rig: &mut Rig, base: usize, wanted: usize) -> Value {
    clean(rig, base);
    let words = rig.lab.daemon_arguments().unwrap();
    let mut traced = vec!["strace", "-f", "-c", "-S", "calls", "-o", "/run/strace.txt"];
    traced.extend(words.iter().map(String::as_str));
    let inside = rig.lab.host(1).path("/run/strace.txt");
    let mut process = rig.lab.host(1).spawn("strace", &traced).unwrap();
    let arrived = wait_for(&rig.lab, wanted, Duration::from_millis(5));
    assert!(arrived.is_some(), "under strace: {}", process.log());
    // End the daemon, not strace, which then writes its sums.
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", process.pid())).unwrap();
    for child in children.split_whitespace() {
        lab::process::send(child.parse().unwrap(), rustix::process::Signal::TERM);
    }
    process.wait(Duration::from_secs(10));
    let text = fs::read_to_string(inside).unwrap_or_default();
    let total = text.lines().rev().find(|l| l.ends_with(" total"));
    let field = |line: &str| line.split_whitespace().nth(3).and_then(|n| n.parse::<u64>().ok());
    json!(total.and_then(field))
}

/// One lease more, one less, a hundred in one transaction: time from the request to the kernel, and what it costs.
fn changes(
    rig: &mut Rig,
    gateway: &mut Gateway,
    backend: &str,
    leases: usize,
    base: usize,
    result: &mut Value,
) {
    clean(rig, base);
    let full = base + own(backend) + leases;
    let daemon = rig.lab.start_daemon(1, &[]).unwrap();
    assert!(
        wait_for(&rig.lab, full, Duration::from_millis(1)).is_some(),
        "{}",
        daemon.log()
    );
    std::thread::sleep(Duration::from_millis(500));
    let fresh: Vec<(String, String)> = (0..100).map(|i| lease(backend, 20_000 + i)).collect();
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    let (asked, quick) = (calls(gateway), Duration::from_micros(200));
    for pair in fresh.iter().take(10) {
        let start = Instant::now();
        gateway.put(std::slice::from_ref(pair)).unwrap();
        assert!(wait_for(&rig.lab, full + 1, quick).is_some());
        added.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        gateway.delete(&pair.0).unwrap();
        assert!(wait_for(&rig.lab, full, quick).is_some());
        removed.push(start.elapsed().as_secs_f64() * 1e3);
    }
    // The gateway's own calls are one each.
    let own = 20;
    let extra = calls(gateway) - asked - own;
    let before = cost(&daemon).0;
    let start = Instant::now();
    gateway.put(&fresh).unwrap();
    assert!(wait_for(&rig.lab, full + 100, quick).is_some());
    result["one added ms"] = json!(median(added));
    result["one removed ms"] = json!(median(removed));
    result["hundred in one ms"] = json!(start.elapsed().as_secs_f64() * 1e3);
    result["hundred in one cpu ms"] = json!((cost(&daemon).0 - before) * 1e3);
    result["requests in 20 peer events"] = json!(extra);
}

fn table(out: &mut impl Write, results: &[Value]) {
    writeln!(
        out,
        "{:<8} {:>6} {:>8} {:>7} {:>7} {:>8} {:>8} {:>9} {:>9} {:>7} {:>7} {:>9} {:>9} {:>9}",
        "backend",
        "leases",
        "seconds",
        "budget",
        "cpu s",
        "rss MiB",
        "peak MiB",
        "syscalls",
        "requests",
        "+1 ms",
        "-1 ms",
        "+100 ms",
        "+100 cpu",
        "req/20 ev"
    )
    .unwrap();
    for r in results {
        let number = |name: &str, digits: usize| match r[name].as_f64() {
            Some(n) => format!("{n:.digits$}"),
            None => "-".to_owned(),
        };
        writeln!(
            out,
            "{:<8} {:>6} {:>8} {:>7} {:>7} {:>8} {:>8} {:>9} {:>9} {:>7} {:>7} {:>9} {:>9} {:>9}",
            r["backend"].as_str().unwrap(),
            number("leases", 0),
            number("seconds", 3),
            number("budget", 2),
            number("cpu seconds", 3),
            number("rss MiB", 1),
            number("peak MiB", 1),
            number("system calls", 0),
            number("requests at start", 0),
            number("one added ms", 1),
            number("one removed ms", 1),
            number("hundred in one ms", 1),
            number("hundred in one cpu ms", 1),
            number("requests in 20 peer events", 0),
        )
        .unwrap();
    }
    writeln!(
        out,
        "budgets: rss 10 MiB and cpu 0.1 s at 4000 (vxlan); +1 5 ms; +100 40 ms and 20 ms of cpu; 0 requests per peer event"
    )
    .unwrap();
}
