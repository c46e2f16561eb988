//! `flannelctl lab` as a person uses it: up, look, break, down; and Ctrl-C.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use lab::rig::{executables, unique_name};
use serde_json::Value;

fn flannelctl(arguments: &[&str]) -> Output {
    Command::new(executables().unwrap().join("flannelctl"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Takes the lab down whatever happens.
struct Down(String);

impl Drop for Down {
    fn drop(&mut self) {
        let _ = lab::topology::remove(&self.0);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn every_pod_reaches_every_pod(extra: &[&str], paths: usize) {
    let name = unique_name();
    let _down = Down(name.clone());
    let mut arguments = vec!["lab", "up", "--name", &name, "--json"];
    arguments.extend(extra);
    let up = flannelctl(&arguments);
    let result: Value = serde_json::from_slice(&up.stdout)
        .unwrap_or_else(|e| panic!("{e}: {} {}", text(&up.stdout), text(&up.stderr)));
    assert_eq!(
        up.status.code(),
        Some(0),
        "{}\n{:#}",
        text(&up.stderr),
        result["matrix"]
    );
    assert_eq!(result["good"], true);
    assert_eq!(result["matrix"]["fragments"], 0);
    let cells = result["matrix"]["cells"].as_array().unwrap();
    assert_eq!(cells.len(), paths, "{cells:#?}");
    for cell in cells {
        assert_eq!(cell["largest"], cell["expected"], "{cell}");
    }
    let status = flannelctl(&["lab", "status", "--name", &name]);
    assert_eq!(status.status.code(), Some(0), "{}", text(&status.stdout));
    let inside = flannelctl(&["lab", "exec", "--name", &name, "h1", "flannelctl", "status"]);
    assert_eq!(
        inside.status.code(),
        Some(0),
        "{}{}",
        text(&inside.stdout),
        text(&inside.stderr)
    );
    let plan = flannelctl(&["lab", "exec", "--name", &name, "h1", "flannelctl", "plan"]);
    assert_eq!(
        plan.status.code(),
        Some(0),
        "a healthy host has nothing to change: {}{}",
        text(&plan.stdout),
        text(&plan.stderr)
    );
    let down = flannelctl(&["lab", "down", "--name", &name]);
    assert_eq!(down.status.code(), Some(0));
    nothing_left(&name);
}

fn nothing_left(name: &str) {
    let spaces: Vec<String> = std::fs::read_dir("/run/netns")
        .map(|d| d.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    assert!(!spaces.iter().any(|s| s.contains(name)), "{spaces:?}");
    assert!(!lab::layout::directory(name).exists());
    let mark = format!("FLANNEL_LAB={name}");
    for pid in lab::process::all() {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let ours = environment.split(|b| *b == 0).any(|v| v == mark.as_bytes());
        let alive = lab::process::stat(pid).is_some_and(|s| s.state != 'Z');
        assert!(!(ours && alive), "process {pid} is left");
    }
}

// Three pods, three hosts: 3 x 2 + 3 x 3 paths a family.

#[test]
fn vxlan_dual_stack_on_the_embedded_registry() {
    every_pod_reaches_every_pod(&[], 30);
}

#[test]
fn vxlan_dual_stack_on_etcd() {
    every_pod_reaches_every_pod(&["--etcd", "--no-speed"], 30);
}

#[test]
fn host_gw_dual_stack_on_the_embedded_registry() {
    every_pod_reaches_every_pod(&["--backend", "host-gw"], 30);
}

#[test]
fn host_gw_dual_stack_on_etcd() {
    every_pod_reaches_every_pod(&["--backend", "host-gw", "--etcd", "--no-speed"], 30);
}

#[test]
fn vxlan_ipv6_only() {
    every_pod_reaches_every_pod(&["--family", "6", "--no-speed"], 15);
}

#[test]
fn vxlan_with_direct_routing_over_a_router_and_nftables() {
    let extra = [
        "--routed",
        "--option",
        "DirectRouting=true",
        "--nftables",
        "--family",
        "4",
        "--no-speed",
    ];
    every_pod_reaches_every_pod(&extra, 15);
}

#[test]
fn fault_is_named_done_and_repaired_while_pods_talk() {
    let name = unique_name();
    let _down = Down(name.clone());
    let up = flannelctl(&["lab", "up", "--name", &name, "--nodes", "2", "--no-speed"]);
    assert_eq!(
        up.status.code(),
        Some(0),
        "{}{}",
        text(&up.stdout),
        text(&up.stderr)
    );
    for words in ["lab exec", "lab down", "h1-p1"] {
        assert!(text(&up.stdout).contains(words), "{}", text(&up.stdout));
    }
    let strike = flannelctl(&["lab", "break", "--name", &name, "h2", "link-del"]);
    assert_eq!(strike.status.code(), Some(0), "{}", text(&strike.stderr));
    assert!(
        text(&strike.stdout).contains("ip link del flannel.1"),
        "{}",
        text(&strike.stdout)
    );
    let start = Instant::now();
    loop {
        let matrix = flannelctl(&["lab", "status", "--matrix", "--name", &name]);
        if matrix.status.code() == Some(0) {
            break;
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{}",
            text(&matrix.stdout)
        );
    }
    assert!(
        text(&strike.stdout).contains("all as before") && text(&strike.stdout).contains("repaired: "),
        "{}",
        text(&strike.stdout)
    );
    faults_are_told_as_they_are(&name);
    let unknown = flannelctl(&["lab", "break", "--name", &name, "h2", "gremlins"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        text(&unknown.stderr).contains("--list"),
        "{}",
        text(&unknown.stderr)
    );
}

/// What has been done already is not told as done once more; a daemon that hangs is not told as one that runs.
fn faults_are_told_as_they_are(name: &str) {
    let lab = |words: &[&str]| {
        let output = flannelctl(&[&["lab", words[0], "--name", name], &words[1..]].concat());
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let (_, said) = lab(&["exec", "h1", "flannelctl", "status"]);
    assert!(said.contains("never put back"), "{said}");
    for (fault, undone) in [
        ("cut", "heal"),
        ("unplug", "plug"),
        ("registry-stop", "registry-start"),
        ("daemon-hang", "daemon-continue"),
    ] {
        let (code, said) = lab(&["break", "h1", undone]);
        assert_eq!(code, Some(1), "{undone} of what is well: {said}");
        for name in [fault, undone] {
            let (code, said) = lab(&["break", "h1", name]);
            assert_eq!(code, Some(0), "{name}: {said}");
            assert!(!said.contains("..."), "{said}");
            let (code, said) = lab(&["break", "h1", name]);
            assert_eq!(code, Some(1), "{name} a second time: {said}");
        }
    }
    assert_eq!(lab(&["break", "h1", "daemon-hang"]).0, Some(0));
    std::thread::sleep(Duration::from_millis(2500));
    let asked = Instant::now();
    let (code, said) = lab(&["exec", "h1", "flannelctl", "status"]);
    // 2 s of its own; the rest is the machine's.
    assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
    assert_eq!(code, Some(1));
    assert!(
        said.contains("does not answer since ") && said.contains("it is stopped"),
        "{said}"
    );
    assert!(!said.contains("os error"), "{said}");
    let (code, said) = lab(&["status"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("HANGS") && said.contains("h1: the daemon (pid "),
        "{said}"
    );
    assert_eq!(lab(&["break", "h1", "daemon-continue"]).0, Some(0));
    let start = Instant::now();
    while lab(&["status"]).0 != Some(0) {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{}",
            lab(&["status"]).1
        );
    }
}

#[test]
fn interrupt_at_any_moment_leaves_nothing() {
    for delay in [50, 300, 1000, 2500] {
        let name = unique_name();
        let _down = Down(name.clone());
        let mut up = Command::new(executables().unwrap().join("flannelctl"))
            .args(["lab", "up", "--name", &name, "--nodes", "8"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        lab::process::send(up.id(), rustix::process::Signal::INT);
        let status = up.wait().unwrap();
        if status.success() {
            // It was up before the signal came: then it stays.
            continue;
        }
        assert_eq!(status.code(), Some(1), "after {delay} ms");
        nothing_left(&name);
    }
}
