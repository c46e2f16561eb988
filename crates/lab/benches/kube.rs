//! How flannel scales with the Nodes of a cluster: one host, a real API server, and as many Nodes of realistic size as asked for.
//!
//! `cargo xtask bench kube [--json] [--nodes N] [--repeat N]`. The Nodes are put into the API server's store, where its watch finds
//! them: as its own controllers would write them, and faster. What takes a daemon how long is set beside what a bare client takes
//! for the same in the same run.

#![allow(clippy::unwrap_used, clippy::panic)] // A bench is run by people and stops at the first thing that is wrong.
#![allow(clippy::cast_precision_loss)] // Counts of a bench are small.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use lab::Families;
use lab::cost::{cost, median, prefixes, quantile, wait_for};
use lab::gateway::Gateway;
use lab::kube::PREFIX;
use lab::rig::{Rig, Wish};
use lab::store::Kind;
use serde_json::{Value, json};

/// Bytes of a Node with fifty images and what its writers have written.
const SIZE: usize = 16 << 10;
/// Nodes of one transaction of the store: it takes a million and a half bytes.
const AT_ONCE: usize = 40;
/// Changes of a lease whose way into the kernel is timed.
const CHANGES: usize = 200;
const STORE: &str = "http://127.0.0.1:2379";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let value = |name: &str, default: usize| {
        let position = arguments.iter().position(|a| a == name);
        let given = position.and_then(|at| arguments.get(at + 1));
        given.map_or(default, |n| n.parse().unwrap())
    };
    let result = measure(value("--nodes", 5000), value("--repeat", 3));
    let mut out = std::io::stdout().lock();
    if arguments.iter().any(|a| a == "--json") {
        writeln!(out, "{result:#}").unwrap();
    } else {
        for (figure, value) in result.as_object().unwrap() {
            writeln!(out, "{figure:<44} {value}").unwrap();
        }
    }
    assert!(
        result["every Node's route is there"] == true,
        "routes are missing"
    );
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn name(index: usize) -> String {
    format!("node-{index:05}.cluster.example.org")
}

/// A Node as its kubelet and flannel have left it, at some heartbeat.
fn node(index: usize, beat: usize, mac: usize) -> String {
    let subnet = format!("10.{}.{}.0/24", 1 + index / 250, index % 250);
    let mac = format!(
        "02:00:{mac:02x}:{:02x}:{:02x}:{:02x}",
        index >> 16,
        index >> 8 & 255,
        index & 255
    );
    let time = format!(
        "2026-11-30T{:02}:{:02}:{:02}Z",
        beat / 3600 % 24,
        beat / 60 % 60,
        beat % 60
    );
    let condition = |kind: &str| {
        json!({ "type": kind, "status": "False", "reason": format!("KubeletHas{kind}"), "message": "kubelet has what it needs",
            "lastHeartbeatTime": time, "lastTransitionTime": "2026-11-01T00:00:00Z" })
    };
    let mut node = json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": {
            "name": name(index), "uid": format!("00000000-0000-4000-8000-{index:012x}"), "creationTimestamp": "2026-11-01T00:00:00Z",
            "labels": { "kubernetes.io/hostname": name(index), "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64" },
            "annotations": {
                format!("{PREFIX}backend-data"): json!({ "VNI": 1, "VtepMAC": mac }).to_string(),
                format!("{PREFIX}backend-type"): "vxlan",
                format!("{PREFIX}kube-subnet-manager"): "true",
                format!("{PREFIX}public-ip"): format!("198.18.{}.{}", 2 + index / 250 % 12, 1 + index % 250),
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            },
            "managedFields": [{ "manager": "kubelet", "operation": "Update", "apiVersion": "v1", "time": time,
                "fieldsType": "FieldsV1", "fieldsV1": { "f:status": { "f:conditions": { "k:{\"type\":\"Ready\"}": {} } } } }],
        },
        "spec": { "podCIDR": subnet, "podCIDRs": [subnet] },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }],
            "conditions": [condition("MemoryPressure"), condition("DiskPressure"), condition("PIDPressure"), condition("Ready")],
            "images": [],
        },
    });
    let mut images = Vec::new();
    while node.to_string().len() + images.len() * 240 < SIZE {
        images.push(json!({ "names": [format!("registry.example.org/team/image-{}@sha256:{:064x}", images.len(), index),
            format!("registry.example.org/team/image-{}:v1.{index}", images.len())], "sizeBytes": 100_000_000 + images.len() }));
    }
    node["status"]["images"] = json!(images);
    node.to_string()
}

fn key(index: usize) -> String {
    format!("/registry/minions/{}", name(index))
}

fn put(gateway: &mut Gateway, indices: std::ops::Range<usize>, beat: usize) {
    let all: Vec<usize> = indices.collect();
    for chunk in all.chunks(AT_ONCE) {
        let pairs: Vec<(String, String)> = chunk
            .iter()
            .map(|index| (key(*index), node(*index, beat, 0)))
            .collect();
        gateway.put(&pairs).unwrap();
    }
}

/// A request of the administrator's, by a program of its own in the switch's network.
fn curl(rig: &Rig, path: &str, extra: &[&str]) -> Command {
    let folder = rig.lab.spec.directory().join("kube");
    let (url, folder) = (
        rig.lab.store().unwrap().endpoint.clone(),
        folder.display().to_string(),
    );
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", rig.lab.switch().network_file().display()));
    command
        .args(["curl", "-sS", "--fail", "-N", "--cacert"])
        .arg(format!("{folder}/ca.crt"));
    command
        .arg("--cert")
        .arg(format!("{folder}/admin.crt"))
        .arg("--key")
        .arg(format!("{folder}/admin.key"));
    command.args(extra).arg(format!("{url}{path}"));
    command
}

/// Reads all Nodes as a client does that does nothing with them, in the pages that flanneld asks for; seconds, and bytes.
fn bare_read(rig: &Rig) -> (f64, usize) {
    let (start, mut bytes, mut next) = (Instant::now(), 0, String::new());
    loop {
        let path = format!("/api/v1/nodes?limit=100{next}");
        let output = curl(rig, &path, &[]).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        bytes += output.stdout.len();
        let head = String::from_utf8_lossy(output.stdout.get(..1000).unwrap_or(&output.stdout)).into_owned();
        let token = head
            .split("\"continue\":\"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        match token {
            Some(token) if !token.is_empty() => next = format!("&continue={token}"),
            _ => return (start.elapsed().as_secs_f64(), bytes),
        }
    }
}

/// Removes what a run left in the kernel.
fn clean(rig: &Rig, base: usize) {
    rig.lab.host(1).shell("ip link del flannel.1 2>/dev/null || true; ip route flush proto 241; ip nexthop flush proto 241 2>/dev/null || true; rm -rf /run/flannel/* /var/lib/flannel/*").unwrap();
    assert!(
        wait_for(&rig.lab, base, Duration::from_millis(1)).is_some(),
        "left over: {}",
        prefixes(&rig.lab)
    );
}

fn measure(nodes: usize, repeat: usize) -> Value {
    let mut wish = Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(1);
    wish.config["Network"] = json!("10.0.0.0/8");
    wish.store = Kind::Kube;
    let mut rig = Rig::bare(&wish).unwrap();
    let mut gateway = Gateway::connect(rig.lab.switch(), STORE).unwrap();
    say(&format!("{nodes} Nodes of {} bytes", node(0, 0, 0).len()));
    put(&mut gateway, 0..nodes, 0);
    let base = prefixes(&rig.lab);
    let full = base + 1 + nodes;
    // The server has read them all once before anybody is timed.
    bare_read(&rig);
    let (mut seconds, mut bare, mut cpu, mut memory, mut peak) = (vec![], vec![], vec![], vec![], vec![]);
    let mut bytes = 0;
    for _ in 0..repeat {
        clean(&rig, base);
        let (time, read) = bare_read(&rig);
        bare.push(time);
        bytes = read;
        let start = Instant::now();
        let mut daemon = rig.lab.start_daemon(1, &[]).unwrap();
        let arrived = wait_for(&rig.lab, full, Duration::from_micros(500));
        assert!(
            arrived.is_some(),
            "{} of {nodes} routes came: {}",
            prefixes(&rig.lab) - base,
            daemon.log()
        );
        seconds.push(start.elapsed().as_secs_f64());
        let (time, now, most) = cost(&daemon);
        cpu.push(time);
        memory.push(now);
        peak.push(most);
        daemon.stop(Duration::from_secs(10));
    }
    clean(&rig, base);
    let mut daemon = rig.lab.start_daemon(1, &[]).unwrap();
    let complete = wait_for(&rig.lab, full, Duration::from_millis(1)).is_some();
    // The watch follows the listing.
    std::thread::sleep(Duration::from_secs(2));

    say("heartbeats");
    let before = cost(&daemon).0;
    put(&mut gateway, 0..nodes, 60);
    // One more Node, after all heartbeats: when its route is there, they have been read.
    put(&mut gateway, nodes..nodes + 1, 0);
    assert!(
        wait_for(&rig.lab, full + 1, Duration::from_millis(1)).is_some(),
        "{}",
        daemon.log()
    );
    let (after, resident, most) = cost(&daemon);
    let beat = (after - before) * 1e3 / nodes as f64;

    say("changes of a lease");
    let (total, of_watch) = changes(&rig, &mut gateway, nodes + 1, full + 1);
    let way = |part: f64| quantile(total.clone(), part) - quantile(of_watch.clone(), part);
    daemon.stop(Duration::from_secs(10));
    let (took, bare) = (median(seconds), median(bare));
    json!({
        "Nodes": nodes,
        "MiB of the list": bytes as f64 / f64::from(1 << 20),
        "seconds, exec to all routes": took,
        "seconds, bare read of the same pages": bare,
        "ratio (budget 1.3)": took / bare,
        "CPU seconds (budget 0.5)": median(cpu),
        "RSS MiB (budget 20)": median(memory),
        "RSS MiB after the heartbeats": resident,
        "peak MiB (budget 30)": median(peak).max(most),
        "CPU ms of a heartbeat (budget 0.1)": beat,
        "ms, written to route, p50": quantile(total.clone(), 0.5),
        "ms, written to a bare watcher, p50": quantile(of_watch.clone(), 0.5),
        "ms, event to route, p50 (budget 2)": way(0.5),
        "ms, event to route, p99 (budget 10)": way(0.99),
        "every Node's route is there": complete,
    })
}

/// Makes one Node come and go: milliseconds from the write until the route is there, and until a watcher that does nothing else has
/// read the event.
fn changes(rig: &Rig, gateway: &mut Gateway, index: usize, base: usize) -> (Vec<f64>, Vec<f64>) {
    let path = "/api/v1/nodes?watch=1&resourceVersion=0&fieldSelector=metadata.name%3D";
    let mut watcher = curl(rig, &format!("{path}{}", name(index)), &[])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(watcher.stdout.take().unwrap()).lines();
    let (tell, told) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for _ in lines.map_while(Result::ok) {
            if tell.send(Instant::now()).is_err() {
                return;
            }
        }
    });
    let (mut total, mut of_watch) = (Vec::new(), Vec::new());
    std::thread::sleep(Duration::from_secs(1));
    for round in 0..CHANGES {
        let is_there = round % 2 == 0;
        let start = Instant::now();
        if is_there {
            gateway.put(&[(key(index), node(index, 0, 0))]).unwrap();
        } else {
            gateway.delete(&key(index)).unwrap();
        }
        let wanted = base + usize::from(is_there);
        assert!(wait_for(&rig.lab, wanted, Duration::from_micros(100)).is_some());
        total.push(start.elapsed().as_secs_f64() * 1e3);
        let heard = told.recv_timeout(Duration::from_secs(10)).unwrap();
        of_watch.push(heard.saturating_duration_since(start).as_secs_f64() * 1e3);
    }
    let _ = watcher.kill();
    let _ = watcher.wait();
    let _ = reader.join();
    (total, of_watch)
}
