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

/// What the test below starts: `exec` looks for programs where the environment of the process says.
#[test]
#[ignore = "the other half of the next test, in a process of its own"]
fn half_restore() {
    let restored = kernel::firewall::iptables_restore(Family::V4, "*nat\nCOMMIT\n");
    assert!(restored.is_ok(), "{restored:?}");
}

/// Before 1.6.2 `iptables-restore` takes neither `-w` nor the lock.
#[test]
fn restore_when_the_program_is_older_than_its_wait_then_it_is_run_without_and_under_the_lock() {
    use std::os::unix::fs::PermissionsExt;
    let folder = std::env::temp_dir().join(format!("kernel-old-iptables-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let program = |name: &str, script: &str| {
        let path = folder.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let restore = "echo \"$*\" >>\"$(dirname \"$0\")/calls\"; cat >/dev/null
        flock -n /run/xtables.lock true && echo free >>\"$(dirname \"$0\")/calls\"; exit 0";
    program("iptables-restore", restore);
    let calls = |version: &str| {
        program("iptables", &format!("echo 'iptables v{version}'"));
        let _ = std::fs::remove_file(folder.join("calls"));
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
        let half = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "firewall::half_restore", "--ignored"])
            .env("PATH", path)
            .output()
            .unwrap();
        assert!(half.status.success(), "{}", String::from_utf8_lossy(&half.stdout));
        std::fs::read_to_string(folder.join("calls")).unwrap_or_default()
    };
    let (old, new) = (calls("1.4.21"), calls("1.8.9 (nf_tables)"));
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(old, "--noflush\n");
    assert_eq!(new, "--noflush -w 20\nfree\n");
}
