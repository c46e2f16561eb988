use fabric::object::Family;
use kernel::firewall::legacy::Probe;

use crate::scratch::{Scratch, run};

struct Host {
    scratch: Scratch,
}

impl Host {
    fn iptables(&self, family: Family, arguments: &str) {
        let program = if family == Family::V4 {
            "iptables-legacy"
        } else {
            "ip6tables-legacy"
        };
        let name = self
            .scratch
            .path()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let mut all = vec!["netns", "exec", &name, program, "-w"];
        all.extend(arguments.split_whitespace());
        run("ip", &all);
    }
}

#[test]
fn legacy_rules_when_ours_or_built_in_chains_change_then_seen_and_others_not() {
    let host = Host {
        scratch: Scratch::empty(),
    };
    host.scratch.netns().enter().unwrap();
    for family in Family::BOTH {
        let mut probe = Probe::new(family, "nat");
        assert_eq!(probe.fingerprint().unwrap(), None, "looking makes no table");
        assert!(!probe.changed());
        host.iptables(family, "-t nat -N FLANNEL-POSTRTG");
        assert!(probe.changed());
        assert!(!probe.changed());
        let has = |probe: &mut Probe, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            probe.has_chain(&names).unwrap()
        };
        assert!(has(&mut probe, &["FLANNEL-FWD", "FLANNEL-POSTRTG"]));
        assert!(!has(&mut probe, &["FLANNEL-POST", "FLANNEL-POSTRTG-2"]));
        host.iptables(family, "-t nat -N KUBE-SVC");
        for mark in 1..30 {
            host.iptables(
                family,
                &format!("-t nat -A KUBE-SVC -m mark --mark {mark} -j RETURN"),
            );
        }
        assert!(!probe.changed(), "chains of others");
        host.iptables(family, "-t nat -A POSTROUTING -j FLANNEL-POSTRTG");
        assert!(probe.changed(), "the jump to ours");
        host.iptables(family, "-t nat -A OUTPUT -j RETURN");
        assert!(probe.changed());
        let name = host
            .scratch
            .path()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let to = if family == Family::V4 { "127.0.0.1" } else { "::1" };
        run("ip", &["netns", "exec", &name, "ping", "-c", "1", "-q", to]);
        assert!(!probe.changed(), "counting is no change");
        // Offsets of ours move, they do not change.
        host.iptables(family, "-t nat -I KUBE-SVC -j RETURN");
        host.iptables(family, "-t nat -N AAA");
        assert!(!probe.changed());
        host.iptables(
            family,
            "-t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN",
        );
        assert!(probe.changed());
        host.iptables(family, "-t nat -A FLANNEL-POSTRTG -j MASQUERADE");
        assert!(probe.changed());
        host.iptables(
            family,
            "-t nat -R FLANNEL-POSTRTG 1 -m mark --mark 0x8000/0x8000 -j RETURN",
        );
        assert!(probe.changed(), "a match of the same length");
        host.iptables(family, "-t nat -R POSTROUTING 1 -j KUBE-SVC");
        assert!(probe.changed(), "another chain is jumped to");
        host.iptables(family, "-t nat -F FLANNEL-POSTRTG");
        assert!(probe.changed());
    }
}
