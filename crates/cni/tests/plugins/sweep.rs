//! What is left of containers that are gone: collected whole, and nothing of anybody else.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::rig::{Call, Host, walk};

const LIMITS: &str = r#","runtimeConfig":{"bandwidth":{"ingressRate":8000000,"ingressBurst":800000,"egressRate":16000000,"egressBurst":1600000}}"#;

/// How a host is set up.
#[derive(Debug, Clone, Copy)]
struct Firewall {
    masquerade: &'static str,
    ports: &'static str,
}

const FIREWALLS: [Firewall; 2] = [
    Firewall {
        masquerade: "iptables",
        ports: "iptables",
    },
    Firewall {
        masquerade: "nftables",
        ports: "nftables",
    },
];

fn flannel(host: &Host, firewall: Firewall, more: &str) -> String {
    let delegate = format!(
        r#","delegate":{{"hairpinMode":true,"isDefaultGateway":true,"ipMasq":true,"ipMasqBackend":"{}"}}{more}"#,
        firewall.masquerade
    );
    host.config("cbr0", &delegate).replace("1.0.0", "1.1.0")
}

/// A call for one container; its pod has the number `i`.
fn call(
    host: &mut Host,
    plugin: &str,
    verb: &'static str,
    (i, container, ifname): (usize, &'static str, &'static str),
    stdin: String,
) -> Call<'static> {
    Call {
        container,
        ifname,
        netns: host.pod(i),
        ..host.call(plugin, verb, stdin)
    }
}

/// ADD of flannel, portmap and bandwidth, as a runtime's library calls them one after the other.
fn attach(host: &mut Host, firewall: Firewall, who: (usize, &'static str, &'static str)) {
    let stdin = flannel(host, firewall, "");
    let add = call(host, "flannel", "ADD", who, stdin);
    let result = host.run(&add).ok().json();
    let chained = |plugin: &str, result: &Value, more: &str| {
        format!(r#"{{"cniVersion":"1.1.0","name":"cbr0","type":"{plugin}","prevResult":{result}{more}}}"#)
    };
    let ports = format!(
        r#","backend":"{}","runtimeConfig":{{"portMappings":[{{"hostPort":{},"containerPort":80,"protocol":"tcp"}}]}}"#,
        firewall.ports,
        8000 + who.0
    );
    let add = call(host, "portmap", "ADD", who, chained("portmap", &result, &ports));
    host.run(&add).ok();
    let add = call(
        host,
        "bandwidth",
        "ADD",
        who,
        chained("bandwidth", &result, LIMITS),
    );
    host.run(&add).ok();
}

/// GC of each plugin of the list, as a runtime's library calls them one after the other.
fn gc(host: &mut Host, firewall: Firewall, plugins: &[&str], valid: &[(&str, &str)]) {
    let list: Vec<String> = valid
        .iter()
        .map(|(id, ifname)| format!(r#"{{"containerID":"{id}","ifname":"{ifname}"}}"#))
        .collect();
    let list = format!(r#","cni.dev/valid-attachments":[{}]"#, list.join(","));
    for plugin in plugins {
        let stdin = match *plugin {
            "flannel" => flannel(host, firewall, &list),
            other => format!(r#"{{"cniVersion":"1.1.0","name":"cbr0","type":"{other}"{list}}}"#),
        };
        let call = host.call(plugin, "GC", stdin);
        host.run(&call).ok();
    }
}

/// Everything plugins make on a host, seen by others: links, rules, files.
fn everything(host: &Host) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    all.extend(host.links().into_iter().map(|link| format!("link {link}")));
    for program in ["iptables-save", "ip6tables-save"] {
        let text = host.exec(&[program, "-t", "nat"]);
        let rules = text
            .lines()
            .filter(|l| l.starts_with("-A") || l.starts_with(":CNI"));
        all.extend(rules.map(|l| format!("{program} {}", l.split(" [").next().unwrap())));
    }
    let (mut table, mut chain) = (String::new(), String::new());
    for line in host.exec(&["nft", "list", "ruleset"]).lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches(" {").to_owned();
        } else if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches(" {").to_owned();
        } else if line.contains("cni_") || line.contains("comment") {
            all.insert(format!("nft {table} {chain} {line}"));
        }
    }
    walk(host.folder.path(), &mut |path| {
        let name = path.strip_prefix(host.folder.path().to_str().unwrap()).unwrap();
        if (name.starts_with("/flannel/") || name.starts_with("/networks/"))
            && !name.contains("last_reserved")
        {
            all.insert(format!("file {name}"));
        }
    });
    all
}

/// What other networks and owners have, in the forms our own things have.
fn make_foreign(host: &Host) {
    let iptables = "*nat\n:CNI-aaaaaaaaaaaaaaaaaaaaaaaa - [0:0]\n:CNI-DN-bbbbbbbbbbbbbbbbbbbbb - [0:0]\n\
        -A CNI-aaaaaaaaaaaaaaaaaaaaaaaa -d 10.88.0.0/16 -m comment --comment \"name: \\\"podman\\\" id: \\\"dead\\\"\" -j ACCEPT\n\
        -A POSTROUTING -s 10.88.0.2/32 -m comment --comment \"name: \\\"podman\\\" id: \\\"dead\\\"\" -j CNI-aaaaaaaaaaaaaaaaaaaaaaaa\n\
        -A CNI-DN-bbbbbbbbbbbbbbbbbbbbb -p tcp -m tcp --dport 9000 -j DNAT --to-destination 10.88.0.2:80\n\
        -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: \\\"podman\\\" id: \\\"dead\\\"\" -m multiport --dports 9000 -j CNI-DN-bbbbbbbbbbbbbbbbbbbbb\n\
        COMMIT\n";
    let nft = "add rule ip cni_hostport hostports tcp dport 9000 dnat to 10.88.0.2:80 comment \"foreign\"\n\
        add rule inet cni_plugins_masquerade masq_checks ip saddr 10.88.0.2 masquerade comment \"0123456789abcdef-d4583dafd1439c34, net: podman, if: eth0, id: dead\"\n";
    for (program, text) in [
        (
            "iptables -t nat -N CNI-HOSTPORT-DNAT 2>/dev/null || true; iptables-restore --noflush",
            iptables,
        ),
        (
            "nft add table ip cni_hostport; nft add chain ip cni_hostport hostports; nft add table inet cni_plugins_masquerade; \
             nft add chain inet cni_plugins_masquerade masq_checks; nft add chain inet cni_plugins_masquerade postrouting '{ type nat hook postrouting priority 100; }'; nft -f -",
            nft,
        ),
    ] {
        let file = host.path("foreign");
        std::fs::write(&file, text).unwrap();
        host.exec(&["sh", "-ec", &format!("({program}) < {file}")]);
        std::fs::remove_file(file).unwrap();
    }
    host.ip(&["link", "add", "ifb0", "type", "ifb"]);
    host.ip(&["link", "add", "bwp0123456789ab", "type", "ifb"]);
    // Not one of ours though it has such a name.
    host.ip(&[
        "link",
        "add",
        "vethdeadbeef",
        "type",
        "veth",
        "peer",
        "name",
        "peer",
    ]);
    let other = host.path("networks/podman");
    std::fs::create_dir_all(&other).unwrap();
    std::fs::write(format!("{other}/10.88.0.2"), "dead\r\neth0").unwrap();
    std::fs::write(
        host.path("flannel/ofothers"),
        r#"{"name":"other-network","type":"bridge"}"#,
    )
    .unwrap();
}

/// A rule of the same container in another network, which tells only by its address.
fn make_namesake(host: &Host) {
    let rule = "add rule ip cni_hostport hostports tcp dport 9001 dnat to 10.88.0.3:80 comment dead";
    let words: Vec<&str> = ["nft"].into_iter().chain(rule.split(' ')).collect();
    host.exec(&words);
}

fn assert_same(before: &BTreeSet<String>, after: &BTreeSet<String>, when: &str) {
    let left: Vec<_> = after.difference(before).collect();
    let lost: Vec<_> = before.difference(after).collect();
    assert!(
        left.is_empty() && lost.is_empty(),
        "{when}: left {left:#?}, lost {lost:#?}"
    );
}

#[test]
fn gc_when_a_container_is_not_listed_takes_all_of_it_and_nothing_of_others() {
    for firewall in FIREWALLS {
        for plugins in [&["flannel", "portmap", "bandwidth"][..], &["flannel"]] {
            let mut host = Host::new();
            host.dual_stack();
            attach(&mut host, firewall, (0, "live", "eth0"));
            make_foreign(&host);
            let mut before = everything(&host);
            attach(&mut host, firewall, (1, "dead", "eth0"));
            // A second attachment of a container that stays.
            attach(&mut host, firewall, (2, "dead", "net1"));
            host.pod_ip(1, &["link", "del", "eth0"]);
            host.pod_ip(2, &["link", "del", "net1"]);
            let without = everything(&host);
            make_namesake(&host);
            before.extend(everything(&host).difference(&without).cloned());
            assert!(everything(&host).len() >= before.len() + 12);
            gc(&mut host, firewall, plugins, &[("live", "eth0")]);
            assert_same(&before, &everything(&host), &format!("{firewall:?} {plugins:?}"));
        }
    }
}

#[test]
fn gc_when_nothing_is_saved_of_a_container_knows_it_by_its_address() {
    for firewall in FIREWALLS {
        let mut host = Host::new();
        host.dual_stack();
        attach(&mut host, firewall, (0, "live", "eth0"));
        make_foreign(&host);
        let before = everything(&host);
        attach(&mut host, firewall, (1, "dead", "eth0"));
        host.pod_ip(1, &["link", "del", "eth0"]);
        for lost in ["flannel/dead", "flannel/.v2/dead/eth0"] {
            std::fs::remove_file(host.path(lost)).unwrap();
        }
        std::fs::remove_dir(host.path("flannel/.v2/dead")).unwrap();
        gc(&mut host, firewall, &["flannel"], &[("live", "eth0")]);
        assert_same(&before, &everything(&host), &format!("{firewall:?}"));
    }
}

#[test]
fn gc_when_gos_flannel_saved_the_configuration_takes_every_interface_it_stands_for() {
    for listed in [false, true] {
        let mut host = Host::new();
        attach(&mut host, FIREWALLS[0], (0, "live", "eth0"));
        let before = everything(&host);
        for (i, ifname) in [(1, "eth0"), (2, "net1")] {
            attach(&mut host, FIREWALLS[0], (i, "dead", ifname));
            host.pod_ip(i, &["link", "del", ifname]);
        }
        // Go's leaves one file for both.
        std::fs::remove_dir_all(host.path("flannel/.v2/dead")).unwrap();
        let all = everything(&host);
        let mut valid = vec![("live", "eth0")];
        if listed {
            valid.push(("dead", "net1"));
        }
        gc(&mut host, FIREWALLS[0], &["flannel"], &valid);
        match listed {
            false => assert_same(&before, &everything(&host), "not listed"),
            true => {
                assert!(
                    host.exists("flannel/dead"),
                    "the file stands for the one that is listed"
                );
                let left = all.difference(&everything(&host)).cloned().collect::<Vec<_>>();
                assert!(
                    left.iter().any(|l| l.contains("file /networks/cbr0/10.244.7.3")),
                    "{left:?}"
                );
                assert!(!left.iter().any(|l| l.contains("10.244.7.4")), "{left:?}");
            }
        }
    }
}

/// As if all that is saved of a container had been written long ago.
fn age(host: &Host, container: &str) {
    let mut files = Vec::new();
    walk(host.folder.path(), &mut |path| files.push(path.to_owned()));
    for file in files {
        let content = std::fs::read_to_string(&file).unwrap_or_default();
        if file.contains(&format!("/{container}")) || content.starts_with(&format!("{container}\r\n")) {
            host.exec(&["touch", "-h", "-d", "2 hours ago", &file]);
        }
    }
}

#[test]
fn gc_when_an_unlisted_containers_link_is_there_spares_it_for_its_first_minute() {
    for plugin in ["flannel", "bridge"] {
        let mut host = Host::new();
        attach(&mut host, FIREWALLS[0], (0, "live", "eth0"));
        let before = everything(&host);
        attach(&mut host, FIREWALLS[0], (1, "young", "eth0"));
        let with = everything(&host);
        let list = r#","cni.dev/valid-attachments":[{"containerID":"live","ifname":"eth0"}]"#;
        let collect = |host: &mut Host| {
            let stdin = match plugin {
                "bridge" => {
                    let saved: Value = serde_json::from_str(&host.read("flannel/live")).unwrap();
                    let saved = saved.to_string();
                    format!("{}{list}}}", saved.strip_suffix('}').unwrap())
                }
                _ => flannel(host, FIREWALLS[0], list),
            };
            let call = host.call(plugin, "GC", stdin);
            host.run(&call).ok();
        };
        collect(&mut host);
        assert_same(&with, &everything(&host), plugin);
        age(&host, "young");
        collect(&mut host);
        let mut after = everything(&host);
        if plugin == "bridge" {
            // What flannel has saved is flannel's to collect.
            after.retain(|it| !it.contains("/flannel/") || !it.contains("young"));
        }
        assert_same(&before, &after, plugin);
        assert_eq!(
            host.pod_links(1),
            Vec::<String>::new(),
            "the link goes before its address"
        );
    }
}

#[test]
fn gc_when_only_portmap_and_bandwidth_are_called_needs_a_reservation_to_know_whose_it_is() {
    let firewall = FIREWALLS[1];
    let mut host = Host::new();
    host.dual_stack();
    attach(&mut host, firewall, (0, "live", "eth0"));
    make_foreign(&host);
    let before = everything(&host);
    attach(&mut host, firewall, (1, "dead", "eth0"));
    host.pod_ip(1, &["link", "del", "eth0"]);
    let made: BTreeSet<_> = everything(&host).difference(&before).cloned().collect();
    make_namesake(&host);
    let foreign: BTreeSet<_> = everything(&host).difference(&made).cloned().collect();
    let kept = |host: &Host| {
        let now = everything(host);
        let kept = |prefix: &str| {
            made.iter()
                .filter(|l| l.starts_with(prefix) && now.contains(*l))
                .count()
        };
        (
            kept("nft ip cni_hostport") + kept("nft ip6 cni_hostport"),
            kept("link bwp"),
        )
    };
    assert_eq!(kept(&host), (5, 1), "{made:#?}");
    // Nobody can tell which network they are of.
    gc(
        &mut host,
        firewall,
        &["portmap", "bandwidth"],
        &[("live", "eth0")],
    );
    assert_eq!(kept(&host), (5, 1));
    // With Debian's host-local the reservation is still there.
    let networks = host.path("networks");
    for plugin in ["portmap", "bandwidth"] {
        let list = r#""cni.dev/valid-attachments":[{"containerID":"live","ifname":"eth0"}]"#;
        let stdin = format!(r#"{{"cniVersion":"1.1.0","name":"cbr0","type":"{plugin}",{list}}}"#);
        let mut call = host.call(plugin, "GC", stdin);
        let script = format!(
            "#!/bin/sh\nexec unshare -m sh -ec 'mount -t tmpfs none /var/lib; mkdir -p /var/lib/cni/networks; \
             mount --bind {networks} /var/lib/cni/networks; exec {}'\n",
            call.program.display()
        );
        let file = host.path("elsewhere");
        std::fs::write(&file, script).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        call.program = file.into();
        host.run(&call).ok();
    }
    assert_eq!(kept(&host), (0, 0));
    let lost: Vec<_> = foreign.difference(&everything(&host)).cloned().collect();
    assert_eq!(lost, Vec::<String>::new());
}

/// A subnet of five addresses, all taken by containers with ports and limits whose namespaces are gone. No other test has these
/// addresses: an address that is in use anywhere on the machine is nobody's garbage.
fn fill_with_the_dead(host: &mut Host, firewall: Firewall) {
    host.subnet_env("10.244.0.0/16", "10.244.61.1/29", "", "", true);
    for (i, container) in DEAD.into_iter().enumerate() {
        attach(host, firewall, (i + 1, container, "eth0"));
    }
    bury(host, DEAD.len());
}

const DEAD: [&str; 5] = ["dead1", "dead2", "dead3", "dead4", "dead5"];

/// As a restart of the machine leaves them: namespaces and their links are gone, files are old.
fn bury(host: &mut Host, count: usize) {
    for i in 1..=count {
        host.remove_pod(i);
    }
    wait(host, "links of removed namespaces to go", |host| {
        !host
            .links()
            .iter()
            .any(|l| l.starts_with("veth") && l != "vethdeadbeef")
    });
    for container in DEAD {
        age(host, container);
    }
}

fn wait(host: &mut Host, what: &str, mut done: impl FnMut(&mut Host) -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !done(host) {
        assert!(
            std::time::Instant::now() < deadline,
            "waiting for {what}: {:#?}",
            everything(host)
        );
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// ADD of a container that nothing was ever known of.
fn add_new(host: &mut Host, firewall: Firewall) -> crate::rig::Answer {
    let stdin = flannel(host, firewall, "");
    let add = call(host, "flannel", "ADD", (8, "new", "eth0"), stdin);
    host.run(&add)
}

fn del_new(host: &mut Host, firewall: Firewall) {
    let stdin = flannel(host, firewall, "");
    let del = call(host, "flannel", "DEL", (8, "new", "eth0"), stdin);
    host.run(&del).ok();
}

/// An ADD that sweeps. Where other tests' containers are just coming or going, it cannot tell, and it takes another.
fn sweep_again(host: &mut Host, firewall: Firewall) -> bool {
    let _ = std::fs::remove_file(host.path("subnet.env.swept"));
    for container in DEAD {
        age(host, container);
    }
    add_new(host, firewall).ok();
    del_new(host, firewall);
    of_the_dead(host).is_empty()
}

/// Without what ports and limits leave for everybody.
fn of_the_dead(host: &Host) -> Vec<String> {
    let all = everything(host).into_iter();
    let ids =
        |l: &String| DEAD.iter().any(|d| l.contains(d)) || l.contains("10.244.6") || l.contains("link bwp");
    all.filter(ids)
        .filter(|l| !l.contains("10.88.") && !l.contains("bwp0123456789ab"))
        .collect()
}

#[test]
fn add_when_the_dead_hold_every_address_frees_them_and_works() {
    for firewall in FIREWALLS {
        let mut host = Host::new();
        fill_with_the_dead(&mut host, firewall);
        make_foreign(&host);
        // Not the time to sweep, but there is no room.
        assert!(host.exists("subnet.env.swept"));
        assert!(of_the_dead(&host).len() > 5 * 4, "{:#?}", of_the_dead(&host));
        let mut said = String::new();
        wait(&mut host, "room", |host| {
            let answer = add_new(host, firewall);
            said.clone_from(&answer.stderr);
            answer.status == 0
        });
        assert!(
            said.contains("that containers have left which are gone: 10.244.61."),
            "{said}"
        );
        del_new(&mut host, firewall);
        wait(&mut host, "the rest to go", |host| {
            of_the_dead(host).is_empty() || sweep_again(host, firewall)
        });
        assert!(host.exists("networks/podman/10.88.0.2") && host.exists("flannel/ofothers"));
        assert!(host.links().contains(&"bwp0123456789ab".to_owned()));
    }
}

#[test]
fn add_when_the_living_hold_every_address_fails_and_names_them() {
    let firewall = FIREWALLS[0];
    let mut host = Host::new();
    host.subnet_env("10.244.0.0/16", "10.244.62.1/29", "", "", true);
    for (i, container) in DEAD.into_iter().enumerate() {
        attach(&mut host, firewall, (i + 1, container, "eth0"));
        age(&host, container);
    }
    let before = everything(&host);
    // Also where only a part of the machine is to be seen, as in a container with a process namespace of its own.
    for wrapper in ["", "unshare --pid --fork --mount-proc"] {
        let stdin = flannel(&host, firewall, "");
        let mut add = call(&mut host, "flannel", "ADD", (8, "new", "eth0"), stdin);
        let file = host.path("wrapper");
        std::fs::write(
            &file,
            format!("#!/bin/sh\nexec {wrapper} {}\n", add.program.display()),
        )
        .unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        add.program = file.into();
        let answer = host.run(&add);
        let (code, msg) = answer.failure();
        assert!(
            code == 999 && msg.contains("no IP addresses available in range set: 10.244.62.1-10.244.62.6"),
            "{msg}"
        );
        let details = answer.json()["details"].as_str().unwrap().to_owned();
        assert!(details.contains("10.244.62.2 by dead1 eth0"), "{details}");
        assert_same(&before, &everything(&host), wrapper);
    }
}

#[test]
fn add_when_it_is_the_first_since_the_machine_was_started_sweeps_and_the_next_does_not() {
    let firewall = FIREWALLS[1];
    let mut host = Host::new();
    host.subnet_env(
        "10.244.0.0/16",
        "10.244.63.1/24",
        "fd00:10:244::/56",
        "fd00:10:244:63::1/64",
        true,
    );
    for (i, container) in DEAD.into_iter().enumerate() {
        attach(&mut host, firewall, (i + 1, container, "eth0"));
    }
    bury(&mut host, DEAD.len());
    make_foreign(&host);
    let dead = of_the_dead(&host);
    // The mark of the first ADD is there.
    add_new(&mut host, firewall).ok();
    del_new(&mut host, firewall);
    assert_eq!(of_the_dead(&host), dead);
    // With the machine's start /run is emptied.
    wait(&mut host, "a sweep", |host| sweep_again(host, firewall));
    assert!(host.exists("networks/podman/10.88.0.2") && host.exists("flannel/ofothers"));
    // Long after the last time is as good.
    attach(&mut host, firewall, (1, "dead1", "eth0"));
    bury(&mut host, 1);
    wait(&mut host, "a sweep", |host| {
        host.exec(&["touch", "-d", "1 hour ago", &host.path("subnet.env.swept")]);
        add_new(host, firewall).ok();
        del_new(host, firewall);
        of_the_dead(host).is_empty()
    });
}

#[test]
fn add_when_it_is_killed_while_it_sweeps_leaves_what_the_next_one_takes() {
    let firewall = FIREWALLS[1];
    let mut host = Host::new();
    host.subnet_env(
        "10.244.0.0/16",
        "10.244.64.1/24",
        "fd00:10:244::/56",
        "fd00:10:244:64::1/64",
        true,
    );
    // What the sweep is finished by; all else a DEL does is killed in the tests of `kill`.
    let changing = "unlinkat,rmdir";
    let trace = host.path("trace");
    let traced = |host: &mut Host, options: &str| {
        let stdin = flannel(host, firewall, "");
        let mut add = call(host, "flannel", "ADD", (8, "new", "eth0"), stdin);
        let file = host.path("tracer");
        let script = format!(
            "#!/bin/sh\nexec strace -qq -o {trace} -e trace={changing} {options} {}\n",
            add.program.display()
        );
        std::fs::write(&file, script).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        add.program = file.into();
        host.run(&add)
    };
    let die = |host: &mut Host| {
        attach(host, firewall, (1, "dead1", "eth0"));
        bury(host, 1);
        let _ = std::fs::remove_file(host.path("subnet.env.swept"));
    };
    let calls = |host: &Host| -> Vec<String> {
        let names = host.read("trace");
        let names = names.lines().filter_map(|line| line.split_once('('));
        names.map(|(name, _)| name.to_owned()).collect()
    };
    add_new(&mut host, firewall).ok();
    del_new(&mut host, firewall);
    traced(&mut host, "").ok();
    let ordinary = calls(&host).len();
    del_new(&mut host, firewall);
    let mut sweeping = Vec::new();
    wait(&mut host, "a sweep to look at", |host| {
        die(host);
        traced(host, "").ok();
        sweeping = calls(host);
        del_new(host, firewall);
        of_the_dead(host).is_empty()
    });
    assert!(sweeping.len() > ordinary + 3, "{ordinary} {}", sweeping.len());
    for at in ordinary..sweeping.len() {
        let name = &sweeping[at];
        let count = sweeping[..=at].iter().filter(|n| *n == name).count();
        die(&mut host);
        traced(&mut host, &format!("-e inject={name}:signal=KILL:when={count}"));
        wait(
            &mut host,
            &format!("a sweep after one that was killed at {name} number {count}"),
            |host| {
                del_new(host, firewall);
                sweep_again(host, firewall)
            },
        );
    }
}

/// Reservations of other plugins' networks: of a container that is flannel's as well, of one that is alive where nobody sees it, and
/// one whose address is inside flannel's subnet. Whoever made them has no record of them any more.
#[test]
fn add_when_a_dead_container_was_in_anothers_network_too_frees_nothing_there() {
    let firewall = FIREWALLS[0];
    let mut host = Host::new();
    host.subnet_env("10.244.0.0/16", "10.244.66.1/24", "", "", true);
    attach(&mut host, firewall, (1, "dead1", "eth0"));
    let foreign = [
        ("macvlan/192.0.2.7", "dead1\r\nnet1"),
        ("macvlan/192.0.2.8", "vm\r\neth0"),
        ("inside/10.244.66.77", "vm\r\neth1"),
    ];
    for (file, content) in foreign {
        let path = host.path(&format!("networks/{file}"));
        std::fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        host.exec(&["touch", "-d", "2 hours ago", &path]);
    }
    bury(&mut host, 1);
    wait(&mut host, "a sweep", |host| {
        sweep_again(host, firewall);
        !host.exists("networks/cbr0/10.244.66.2")
    });
    for (file, content) in foreign {
        assert_eq!(host.read(&format!("networks/{file}")), content, "{file}");
    }
}
