//! Changes of nftables and of iptables on top of it, as `nft` and `iptables` make them.

use std::process::Command;

use fabric::object::Family;
use kernel::firewall::monitor::{Monitor, Place};

use crate::scratch::Scratch;

fn place() -> Place {
    Place {
        family: Family::V4,
        table: "nat",
        chains: &["FLANNEL-POSTRTG", "POSTROUTING"],
    }
}

/// A monitor inside a namespace, and how to run programs there.
fn inside() -> (Scratch, Monitor) {
    let scratch = Scratch::empty();
    scratch.netns().enter().unwrap();
    let monitor = Monitor::open(vec![place()]).unwrap();
    (scratch, monitor)
}

/// The thread is inside already, and so are its children.
fn run(line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn feed(script: &str) {
    use std::io::Write;
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn drain_when_one_of_the_chains_changes_then_touched_and_the_program_is_named() {
    let (_scratch, mut monitor) = inside();
    assert!(!monitor.drain().touched);
    run("iptables -t nat -N FLANNEL-POSTRTG");
    let changes = monitor.drain();
    assert!(changes.touched);
    let (_, name) = changes.by.unwrap();
    assert!(name.starts_with("iptables"), "{name}");
    run("iptables -t nat -A FLANNEL-POSTRTG -j RETURN");
    assert!(monitor.drain().touched, "a rule");
    run("iptables -t nat -A POSTROUTING -j FLANNEL-POSTRTG");
    assert!(monitor.drain().touched, "the jump");
    run("iptables -t nat -F FLANNEL-POSTRTG");
    assert!(monitor.drain().touched, "a flush");
    run("nft delete table ip nat");
    assert!(monitor.drain().touched, "the table");
}

#[test]
fn drain_when_others_change_theirs_then_not_touched() {
    let (_scratch, mut monitor) = inside();
    run("iptables -t nat -N FLANNEL-POSTRTG");
    monitor.drain();
    run("iptables -t nat -N KUBE-SERVICES");
    run("iptables -t nat -A KUBE-SERVICES -j RETURN");
    run("iptables -t filter -N FLANNEL-POSTRTG");
    run("ip6tables -t nat -N FLANNEL-POSTRTG");
    run("nft add table ip other");
    assert_eq!(monitor.drain(), kernel::firewall::monitor::Changes::default());
}

#[test]
fn drain_when_thousands_of_foreign_rules_are_rewritten_then_the_end_of_ours_among_them_is_not_missed() {
    let (_scratch, mut monitor) = inside();
    run("iptables -t nat -N FLANNEL-POSTRTG");
    run("iptables -t nat -A FLANNEL-POSTRTG -j RETURN");
    monitor.drain();
    let mut script = String::from("table ip other {\n chain c {\n");
    for i in 0..20_000 {
        script.push_str(&format!("  ip saddr 10.{}.{}.1 return\n", i / 250, i % 250));
    }
    script.push_str(" }\n}\nflush chain ip nat FLANNEL-POSTRTG\n");
    feed(&script);
    // Read, or known to be lost: either way it has to be looked at.
    assert!(monitor.drain().touched);
    assert!(!monitor.drain().touched);
}
