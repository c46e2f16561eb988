//! The merges against real firewalls: iptables and ip6tables in both variants, and nft, each in a network namespace of its own.
//!
//! Needs root and the Debian packages `iptables`, `nftables` and `iproute2`; fails without. What the firewall holds is read back by
//! its own tools only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use fabric::object::Family;
use fabric::rules::{Table, Wish, iptables, nft};
use ipnet::IpNet;

/// A network namespace that goes when the test ends, however it ends.
struct Namespace(String);

impl Namespace {
    fn new() -> Namespace {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "fabricfw-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let added = Command::new("ip").args(["netns", "add", &name]).status().unwrap();
        assert!(
            added.success(),
            "these tests need root: ip netns add {name} failed"
        );
        Namespace(name)
    }

    /// Runs a program inside; its output, and its error text when it fails.
    fn run(&self, words: &[&str], input: &str) -> Result<String, String> {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.0])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        if output.status.success() {
            Ok(text(output.stdout))
        } else {
            Err(text(output.stderr))
        }
    }

    fn must(&self, command: &str) -> String {
        let words: Vec<&str> = command.split(' ').collect();
        self.run(&words, "")
            .unwrap_or_else(|error| panic!("{command}: {error}"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// Two daemons' wishes in a family, the second with other networks.
fn wishes(family: Family) -> [Wish; 2] {
    let nets = match family {
        Family::V4 => [["10.5.0.0/16", "10.5.1.0/24"], ["10.9.0.0/16", "10.9.7.0/24"]],
        Family::V6 => [["fd05::/48", "fd05:0:0:1::/64"], ["fd09::/48", "fd09:0:0:7::/64"]],
    };
    nets.map(|[network, subnet]| Wish::new(net(network), net(subnet), true, true, true, &[]))
}

fn nothing(wish: &Wish) -> Wish {
    Wish::nothing(wish.family, &wish.networks)
}

/// One of the four iptables programs in a namespace of its own.
struct Iptables {
    namespace: Namespace,
    family: Family,
    program: &'static str,
}

impl Iptables {
    fn each() -> impl Iterator<Item = Iptables> {
        [
            (Family::V4, "iptables-nft"),
            (Family::V6, "ip6tables-nft"),
            (Family::V4, "iptables-legacy"),
            (Family::V6, "ip6tables-legacy"),
        ]
        .into_iter()
        .map(|(family, program)| Iptables {
            namespace: Namespace::new(),
            family,
            program,
        })
    }

    fn save(&self, table: Table) -> String {
        self.namespace
            .must(&format!("{}-save -t {}", self.program, table.name()))
    }

    fn restore(&self, payload: &str) {
        let restore = format!("{}-restore", self.program);
        let done = self.namespace.run(&[&restore, "--noflush", "-w", "5"], payload);
        done.unwrap_or_else(|error| panic!("{restore}: {error}\n{payload}"));
    }

    /// Merges and applies for both tables; whether anything was to be done.
    fn settle(&self, wish: &Wish) -> bool {
        let mut changed = false;
        for table in Table::BOTH {
            if let Some(payload) = iptables::merge(table, &self.save(table), wish).unwrap() {
                assert_eq!(payload.matches("COMMIT").count(), 1);
                self.restore(&payload);
                changed = true;
            }
            let again = iptables::merge(table, &self.save(table), wish).unwrap();
            assert_eq!(
                again,
                None,
                "{}: not settled:\n{}",
                self.program,
                self.save(table)
            );
        }
        changed
    }

    /// The rule lines of a table.
    fn lines(&self, table: Table) -> Vec<String> {
        self.save(table)
            .lines()
            .filter(|line| line.starts_with("-A"))
            .map(str::to_owned)
            .collect()
    }

    fn run(&self, arguments: &str) {
        self.namespace.must(&format!("{} {arguments}", self.program));
    }
}

#[test]
fn iptables_when_settled_holds_exactly_the_lines_and_wants_nothing_more() {
    for host in Iptables::each() {
        let [wish, _] = wishes(host.family);
        assert!(host.settle(&wish));
        for table in Table::BOTH {
            assert_eq!(
                host.lines(table),
                iptables::lines(table, &wish),
                "{}",
                host.program
            );
        }
        assert!(!host.settle(&wish));
        let without_random = Wish::new(wish.networks[0], wish.networks[0], true, false, false, &[]);
        assert!(host.settle(&without_random));
        assert_eq!(
            host.lines(Table::Nat),
            iptables::lines(Table::Nat, &without_random),
            "{}",
            host.program
        );
        assert_eq!(host.lines(Table::Filter), [""; 0], "{}", host.program);
        assert!(
            !host.save(Table::Filter).contains("FLANNEL-FWD"),
            "{}",
            host.program
        );
    }
}

#[test]
fn iptables_when_damaged_in_any_way_comes_back() {
    for host in Iptables::each() {
        let [wish, _] = wishes(host.family);
        host.settle(&wish);
        for damage in [
            "-t nat -F FLANNEL-POSTRTG",
            "-t nat -F POSTROUTING",
            "-t nat -F",
            "-t nat -D FLANNEL-POSTRTG 1",
            "-t nat -D FLANNEL-POSTRTG 4",
            "-t nat -R FLANNEL-POSTRTG 4 -j RETURN",
            "-F FLANNEL-FWD",
            "-F FORWARD",
            "-D FLANNEL-FWD 2",
        ] {
            host.run(damage);
            assert!(host.settle(&wish), "{} {damage}", host.program);
            let jumps = |table| {
                host.lines(table)
                    .iter()
                    .filter(|line| line.contains("-j FLANNEL-"))
                    .count()
            };
            assert_eq!(
                (jumps(Table::Nat), jumps(Table::Filter)),
                (1, 1),
                "{} {damage}",
                host.program
            );
        }
        host.run("-t nat -F");
        host.run("-t nat -X");
        assert!(host.settle(&wish));
        host.run("-t nat -A POSTROUTING -m comment --comment flanneld -j FLANNEL-POSTRTG");
        assert!(!host.settle(&wish), "a jump in other words is not ours");
    }
}

#[test]
fn iptables_when_two_daemons_share_a_host_both_settle_and_leave_alone() {
    for host in Iptables::each() {
        let [one, two] = wishes(host.family);
        host.settle(&one);
        assert!(host.settle(&two));
        assert!(
            !host.settle(&one),
            "{}: the second daemon disturbed the first",
            host.program
        );
        // A restart of Go flannel empties the chain for all.
        host.run("-t nat -F FLANNEL-POSTRTG");
        assert!(
            host.settle(&two) && host.settle(&one) && !host.settle(&two),
            "{}",
            host.program
        );
        let elsewhere = if host.family == Family::V4 {
            "10.77.0.0/16"
        } else {
            "fd77::/48"
        };
        host.run(&format!(
            "-t nat -I FLANNEL-POSTRTG 2 -s {elsewhere} -p udp --dport 53 -m comment --comment mine -j RETURN"
        ));
        assert!(!host.settle(&one) && !host.settle(&two));
        assert!(host.settle(&nothing(&two)));
        assert!(
            !host.settle(&one),
            "{}: leaving disturbed the other",
            host.program
        );
        assert!(host.settle(&nothing(&one)));
        let mine = host.lines(Table::Nat);
        assert!(
            mine.iter().any(|line| line.contains("--dport 53")),
            "{}: {mine:#?}",
            host.program
        );
        assert_eq!(
            mine.len(),
            3,
            "{}: the mark, the foreign rule, the jump: {mine:#?}",
            host.program
        );
    }
}

#[test]
fn iptables_when_the_last_daemon_leaves_nothing_remains() {
    for host in Iptables::each() {
        let [one, two] = wishes(host.family);
        host.settle(&one);
        host.settle(&two);
        host.settle(&nothing(&one));
        host.settle(&nothing(&two));
        for table in Table::BOTH {
            assert!(
                !host.save(table).contains("FLANNEL"),
                "{}: {}",
                host.program,
                host.save(table)
            );
        }
    }
}

#[test]
fn iptables_when_go_flannel_0_11_ran_before_its_rules_make_way_and_others_stay() {
    let golden = include_str!("golden/vxlan-v0.11-etcd2/a.iptables-save.txt");
    let admin = "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE";
    for host in Iptables::each().filter(|host| host.family == Family::V4) {
        host.restore(&golden.replace(
            "-A POSTROUTING -s 10.128.0.0/16 -d",
            &format!("{admin}\n-A POSTROUTING -s 10.128.0.0/16 -d"),
        ));
        let wish = Wish::new(net("10.128.0.0/16"), net("10.128.36.0/24"), true, true, true, &[]);
        assert!(host.settle(&wish));
        let expected: Vec<String> = [vec![admin.to_owned()], iptables::lines(Table::Nat, &wish)].concat();
        assert_eq!(host.lines(Table::Nat), expected, "{}", host.program);
        assert_eq!(
            host.lines(Table::Filter),
            iptables::lines(Table::Filter, &wish),
            "{}",
            host.program
        );
    }
}

#[test]
fn iptables_when_go_flannel_ran_before_nothing_is_to_be_done() {
    let goldens = [
        (
            Family::V4,
            include_str!("golden/vxlan-4/a.iptables-save.txt"),
            "10.128.0.0/16",
            "10.128.68.0/24",
        ),
        (
            Family::V6,
            include_str!("golden/vxlan-46/a.ip6tables-save.txt"),
            "fd10::/48",
            "fd10:0:0:10::/64",
        ),
    ];
    for host in Iptables::each() {
        for (family, golden, network, subnet) in goldens {
            if family != host.family {
                continue;
            }
            host.restore(golden);
            let wish = Wish::new(net(network), net(subnet), true, true, true, &[]);
            assert!(!host.settle(&wish), "{}", host.program);
            // The host's subnet and network change: what Go left of the former goes.
            let (moved, part) = match family {
                Family::V4 => ("10.77.0.0/16", "10.77.1.0/24"),
                Family::V6 => ("fd77::/48", "fd77:0:0:1::/64"),
            };
            let moved = Wish::new(net(moved), net(part), true, true, true, &[net(network)]);
            assert!(host.settle(&moved));
            assert_eq!(
                host.lines(Table::Nat),
                iptables::lines(Table::Nat, &moved),
                "{}",
                host.program
            );
        }
    }
}

/// nft in a namespace of its own.
struct Nft {
    namespace: Namespace,
    family: Family,
}

impl Nft {
    fn each() -> impl Iterator<Item = Nft> {
        Family::BOTH.into_iter().map(|family| Nft {
            namespace: Namespace::new(),
            family,
        })
    }

    /// The listing; empty for no table, as a caller has it.
    fn list(&self) -> String {
        let command = format!("nft list table {}", nft::table(self.family));
        let words: Vec<&str> = command.split(' ').collect();
        self.namespace.run(&words, "").unwrap_or_default()
    }

    fn feed(&self, script: &str) {
        let done = self.namespace.run(&["nft", "-f", "-"], script);
        done.unwrap_or_else(|error| panic!("nft: {error}\n{script}"));
    }

    fn settle(&self, wish: &Wish) -> bool {
        let script = nft::merge(&self.list(), wish, true);
        if let Some(script) = &script {
            self.feed(script);
        }
        assert_eq!(
            nft::merge(&self.list(), wish, true),
            None,
            "not settled:\n{}",
            self.list()
        );
        script.is_some()
    }
}

#[test]
fn nft_when_settled_lists_the_rules_and_wants_nothing_more() {
    for host in Nft::each() {
        let [wish, _] = wishes(host.family);
        assert!(host.settle(&wish) && !host.settle(&wish));
        let list = host.list();
        for line in [
            "meta mark & 0x00004000 == 0x00004000 return",
            "type nat hook postrouting priority srcnat; policy accept;",
            "type filter hook forward priority filter; policy accept;",
            "masquerade fully-random",
            "comment \"rules for flannel-",
        ] {
            assert!(list.contains(line), "{line} is not in\n{list}");
        }
        let (ip, network, subnet) = match host.family {
            Family::V4 => ("ip", "10.5.0.0/16", "10.5.1.0/24"),
            Family::V6 => ("ip6", "fd05::/48", "fd05:0:0:1::/64"),
        };
        assert!(
            list.contains(&format!("{ip} saddr != {network} {ip} daddr {subnet} return")),
            "{list}"
        );
        let forward_only = Wish {
            nat: Vec::new(),
            ..wish.clone()
        };
        assert!(host.settle(&forward_only));
        assert!(!host.list().contains("postrtg") && host.list().contains("chain forward"));
        assert!(host.settle(&nothing(&wish)));
        assert_eq!(host.list(), "");
        host.feed(&nft::merge("", &wish, false).unwrap());
        assert!(
            !host.settle(&wish),
            "the same rules without comments are right too"
        );
    }
}

#[test]
fn nft_when_damaged_in_any_way_comes_back() {
    for host in Nft::each() {
        let [wish, _] = wishes(host.family);
        host.settle(&wish);
        let table = nft::table(host.family);
        let hook = "type nat hook postrouting priority";
        for damage in [
            "flush ruleset".to_owned(),
            format!("flush table {table}"),
            format!("flush chain {table} postrtg"),
            format!("flush chain {table} forward\ndelete chain {table} forward"),
            format!("delete table {table}"),
            format!("add chain {table} forward {{ policy drop ; }}"),
            format!("flush chain {table} postrtg\ndelete chain {table} postrtg\nadd chain {table} postrtg"),
            format!(
                "flush chain {table} postrtg\ndelete chain {table} postrtg\nadd chain {table} postrtg {{ {hook} 50 ; }}"
            ),
            format!("add table {table} {{ flags dormant ; }}"),
            format!("insert rule {table} postrtg meta mark 0x4000 return"),
        ] {
            host.feed(&format!("{damage}\n"));
            assert!(host.settle(&wish), "{damage}");
        }
    }
}

#[test]
fn nft_when_go_flannel_wrote_the_table_only_its_defects_are_changed() {
    for (family, golden, network, subnet) in [
        (
            Family::V4,
            include_str!("golden/vxlan-nft/a.nft.txt"),
            "10.128.0.0/16",
            "10.128.43.0/24",
        ),
        (
            Family::V4,
            include_str!("golden/vxlan-nft-46/a.nft.txt"),
            "10.128.0.0/16",
            "10.128.78.0/24",
        ),
        (
            Family::V6,
            include_str!("golden/vxlan-nft-46/a.nft.txt"),
            "fd10::/48",
            "fd10:0:0:40::/64",
        ),
    ] {
        let host = Nft {
            namespace: Namespace::new(),
            family,
        };
        host.feed(golden);
        let before = host.list();
        assert!(before.contains(subnet), "{before}");
        let wish = Wish::new(net(network), net(subnet), true, true, true, &[]);
        assert!(host.settle(&wish));
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        let expected = before
            .replace("meta mark 0x00004000", "meta mark & 0x00004000 == 0x00004000")
            .replace(
                &format!("{ip} saddr != {subnet} {ip} daddr {network}"),
                &format!("{ip} saddr != {network} {ip} daddr {subnet}"),
            );
        assert_eq!(host.list(), expected);
        // Its rules for a network this host has left, and its table where nothing is wanted any more.
        assert!(host.settle(&Wish::nothing(family, &[net(network)])));
        assert_eq!(host.list(), "");
    }
}

#[test]
fn nft_when_two_daemons_and_foreign_rules_share_the_table_all_live_together() {
    for host in Nft::each() {
        let [one, two] = wishes(host.family);
        let (table, ip) = (
            nft::table(host.family),
            if host.family == Family::V4 { "ip" } else { "ip6" },
        );
        let addresses: Vec<String> = (1..40)
            .map(|i| {
                if host.family == Family::V4 {
                    format!("10.200.{}.0/24", 2 * i)
                } else {
                    format!("fd99:{}::/32", 2 * i)
                }
            })
            .collect();
        host.settle(&one);
        host.settle(&two);
        assert!(!host.settle(&one), "the second daemon disturbed the first");
        let foreign = format!(
            "{ip} saddr {{ {} }} counter return comment \"a {{ b\"",
            addresses.join(", ")
        );
        let elsewhere = if ip == "ip" { "10.77.0.0/16" } else { "fd77::/48" };
        host.feed(&format!(
            "insert rule {table} postrtg index 1 {foreign}\nadd rule {table} forward {ip} saddr {elsewhere} drop\n"
        ));
        assert!(!host.settle(&one) && !host.settle(&two));
        host.feed(&format!(
            "delete rule {table} postrtg handle {}\n",
            handle(&host, "masquerade")
        ));
        assert!(host.settle(&one) | host.settle(&two));
        let has_foreign = |list: &str| {
            list.contains("comment \"a { b\"") && list.contains(addresses[38].trim_end_matches("/32"))
        };
        assert!(has_foreign(&host.list()), "{}", host.list());
        host.settle(&nothing(&one));
        assert!(!host.settle(&two), "leaving disturbed the other");
        host.settle(&nothing(&two));
        let left = host.list();
        assert!(
            has_foreign(&left) && left.contains(&format!("saddr {elsewhere} drop")),
            "{left}"
        );
        assert!(!left.contains("masquerade"), "{left}");
    }
}

/// The handle of the first rule with this word in it.
fn handle(host: &Nft, word: &str) -> String {
    let list = host
        .namespace
        .must(&format!("nft -a list table {}", nft::table(host.family)));
    let line = list.lines().find(|line| line.contains(word)).unwrap();
    line.rsplit(' ').next().unwrap().to_owned()
}

#[test]
fn nft_probes_when_checked_pass_and_leave_nothing() {
    for host in Nft::each() {
        for probe in [
            nft::fully_random_probe(host.family),
            nft::comment_probe(host.family),
        ] {
            host.namespace
                .run(&["nft", "--check", "-f", "-"], &probe)
                .unwrap();
        }
        assert_eq!(host.list(), "");
    }
}
