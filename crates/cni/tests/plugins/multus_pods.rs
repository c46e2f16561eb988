//! Pods with several of flannel's networks under Multus: no shared state, no address twice, DEL in any order and number.

use std::collections::BTreeSet;

use crate::libcni::{Attachment, List};
use crate::multus::{Multus, Pod, Selection};
use crate::rig::{Answer, GO_PLUGINS, Host};

/// A definition with the folders of the host. `more` are further keys (`,"x":1`), a `name` among them or not.
fn definition(host: &Host, version: &str, subnet_file: &str, more: &str) -> String {
    format!(
        r#"{{"cniVersion":"{version}","type":"flannel","subnetFile":"{}","dataDir":"{}","ipam":{{"dataDir":"{}"}}{more}}}"#,
        host.path(subnet_file),
        host.path("flannel"),
        host.path("networks")
    )
}

/// flannel as the cluster's network (`cbr0`), and as a definition that is like it but for the name.
fn node(host: &Host) -> Multus {
    let gateway = r#","delegate":{"isDefaultGateway":true}"#;
    let first = definition(
        host,
        "1.0.0",
        "subnet.env",
        &format!(r#","name":"cbr0"{gateway}"#),
    );
    let mut multus = Multus::of(host, &first);
    let second = definition(host, "0.3.1", "subnet.env", gateway);
    multus.definitions.insert("flannel-conf", second);
    multus
}

fn pod(host: &mut Host, i: usize, networks: &[&'static str]) -> Pod {
    Pod {
        container: format!("{i:04x}{:060x}", 0xc0ffee),
        netns: host.pod(i),
        networks: networks.iter().map(|name| Selection::of(name)).collect(),
        default_network: None,
    }
}

fn addresses(answers: &[Answer]) -> Vec<String> {
    answers
        .iter()
        .flat_map(|answer| {
            let result: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
            let ips = result["ips"].as_array().unwrap().clone();
            ips.into_iter()
                .map(|ip| ip["address"].as_str().unwrap().to_owned())
        })
        .collect()
}

fn assert_nothing_left(host: &Host, multus: &Multus) {
    for network in ["cbr0", "flannel-conf"] {
        host.assert_nothing_left(network);
    }
    multus.assert_nothing_left();
}

/// Pings the gateway from an address of a pod until it answers; what is lost on the way is not counted.
fn talks(host: &Host, i: usize, from: &str, gateway: &str) {
    let from = from.split('/').next().unwrap();
    host.pod_exec(i, &["ping", "-c1", "-w30", "-i0.2", "-q", "-I", from, gateway]);
}

#[test]
fn pod_when_it_has_one_network_twice_and_another_loses_nothing_in_any_order_of_del() {
    const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for order in ORDERS {
        let mut host = Host::new();
        // Masquerading too, whose chain Go's plugins share between attachments.
        host.subnet_env("10.244.0.0/16", "10.244.7.1/24", "", "", false);
        let multus = node(&host);
        let pod = pod(&mut host, 0, &["flannel-conf", "flannel-conf"]);
        let got = addresses(&multus.add(&host, &pod).unwrap());
        assert_eq!(got, ["10.244.7.2/24", "10.244.7.3/24", "10.244.7.4/24"]);
        let names = ["eth0", "net1", "net2"];
        let networks = ["cbr0", "flannel-conf", "flannel-conf"];
        let folder = host.path("flannel/.v2");
        let mut left: BTreeSet<usize> = BTreeSet::from([0, 1, 2]);
        for gone in order {
            let config = match gone {
                0 => List::parse(&multus.cluster_network),
                _ => {
                    let text = &multus.definitions["flannel-conf"];
                    List {
                        name: "flannel-conf".to_owned(),
                        ..List::parse(text)
                    }
                }
            };
            let to = Attachment::of(&pod.container, &pod.netns, names[gone]);
            // Twice each: the second takes nothing of the others.
            multus.libcni.del(&host, &config, &to).unwrap();
            multus.libcni.del(&host, &config, &to).unwrap();
            left.remove(&gone);
            let expected: Vec<&str> = left.iter().map(|i| names[*i]).collect();
            assert_eq!(host.pod_links(0), expected, "{order:?} after {gone}");
            let saved = expected
                .iter()
                .filter(|name| std::path::Path::new(&format!("{folder}/{}/{name}", pod.container)).exists());
            assert_eq!(saved.count(), left.len(), "{order:?}: {:?}", host.saved());
            let jumps = host
                .nat()
                .iter()
                .filter(|l| l.starts_with("-A POSTROUTING"))
                .count();
            assert_eq!(jumps, left.len(), "{order:?}: {:#?}", host.nat());
            for i in &left {
                let held = host.reservations(networks[*i]);
                let owner = format!("{}\r\n{}", pod.container, names[*i]);
                let ip = got[*i].split('/').next().unwrap().to_owned();
                assert!(held.contains(&(ip, owner)), "{order:?}: {held:?}");
                talks(&host, 0, &got[*i], "10.244.7.1");
            }
        }
        std::fs::remove_file(host.path(&format!("multus/{}", pod.container))).unwrap();
        assert_nothing_left(&host, &multus);
    }
}

#[test]
fn pod_when_deleted_twice_after_a_reboot_or_without_a_namespace_leaves_nothing() {
    for how in ["twice", "rebooted", "without a namespace", "list lost"] {
        let mut host = Host::new();
        host.subnet_env("10.244.0.0/16", "10.244.7.1/24", "", "", false);
        let multus = node(&host);
        let mut pod = pod(&mut host, 0, &["flannel-conf", "flannel-conf"]);
        multus.add(&host, &pod).unwrap();
        let mut known = false;
        match how {
            "rebooted" => {
                host.remove_pod(0);
                host.ip(&["link", "del", "cni0"]);
                host.exec(&["iptables", "-t", "nat", "-F"]);
                host.exec(&["iptables", "-t", "nat", "-X"]);
                std::fs::remove_file(host.path("subnet.env")).unwrap();
            }
            "without a namespace" => pod.netns = String::new(),
            "list lost" => {
                std::fs::remove_file(host.path(&format!("multus/{}", pod.container))).unwrap();
                known = true;
            }
            _ => {}
        }
        multus
            .del(&host, &pod, known)
            .unwrap_or_else(|e| panic!("{how}: {e}"));
        multus
            .del(&host, &pod, true)
            .unwrap_or_else(|e| panic!("{how}: {e}"));
        assert_nothing_left(&host, &multus);
        if how != "rebooted" {
            assert_eq!(host.pod_links(0), Vec::<String>::new(), "{how}");
        }
    }
}

#[test]
fn networks_when_two_have_subnet_files_of_their_own_do_not_meet() {
    let mut host = Host::new();
    let mut multus = node(&host);
    std::fs::copy(host.path("subnet.env"), host.path("first.env")).unwrap();
    host.subnet_env("10.9.0.0/16", "10.9.3.1/24", "", "", false);
    std::fs::rename(host.path("subnet.env"), host.path("second.env")).unwrap();
    std::fs::rename(host.path("first.env"), host.path("subnet.env")).unwrap();
    let other = definition(&host, "1.0.0", "second.env", r#","delegate":{"bridge":"cni9"}"#);
    multus.definitions.insert("management", other);
    let pod = pod(&mut host, 0, &["management"]);
    let got = addresses(&multus.add(&host, &pod).unwrap());
    assert_eq!(got, ["10.244.7.2/24", "10.9.3.2/24"]);
    let routes = host.pod_ip(0, &["-4", "route"]);
    let has = |line: &str| routes.lines().any(|l| l.trim() == line);
    assert!(
        has("default via 10.244.7.1 dev eth0")
            && has("10.244.0.0/16 via 10.244.7.1 dev eth0")
            && has("10.9.0.0/16 via 10.9.3.1 dev net1"),
        "{routes}"
    );
    // The first goes while the second is in use.
    let ping = ["ping", "-c15", "-i0.1", "-W5", "-q", "-I", "10.9.3.2", "10.9.3.1"];
    let mut running = std::process::Command::new("nsenter")
        .arg(format!("--net={}", pod.netns))
        .args(ping)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let to = Attachment::of(&pod.container, &pod.netns, "eth0");
    multus
        .libcni
        .del(&host, &List::parse(&multus.cluster_network), &to)
        .unwrap();
    let status = running.wait().unwrap();
    assert!(status.success(), "{status}");
    let list = List {
        name: "management".to_owned(),
        ..List::parse(&multus.definitions["management"])
    };
    let to = Attachment::of(&pod.container, &pod.netns, "net1");
    multus.libcni.check(&host, &list, &to).unwrap();
    multus.del(&host, &pod, false).unwrap();
    host.assert_nothing_left("management");
    assert_nothing_left(&host, &multus);
}

#[test]
fn pod_when_it_asks_for_addresses_mac_and_ports_gets_them_and_gives_them_back() {
    requests("");
}

#[test]
fn pod_when_it_asks_for_ports_by_nftables_gets_them_and_gives_them_back() {
    requests(r#","backend":"nftables""#);
}

fn requests(backend: &str) {
    let mut host = Host::new();
    host.dual_stack();
    let mut multus = node(&host);
    let requests = format!(
        r#"{{"cniVersion":"1.0.0","plugins":[{},{{"type":"portmap","capabilities":{{"portMappings":true}}{backend}}}]}}"#,
        definition(
            &host,
            "",
            "subnet.env",
            r#","capabilities":{"ips":true,"mac":true}"#
        )
    );
    multus.definitions.insert("requests", requests);
    let mut pod = pod(&mut host, 0, &[]);
    pod.networks = vec![Selection {
        interface: "mgmt",
        ips: &["10.244.7.77/24", "fd00:10:244:7::77"],
        mac: "c2:11:22:33:44:55",
        ports: r#"[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]"#,
        ..Selection::of("requests")
    }];
    let answers = multus.add(&host, &pod).unwrap();
    assert_eq!(
        addresses(&answers[1..]),
        ["10.244.7.77/24", "fd00:10:244:7::77/64"]
    );
    let link: serde_json::Value =
        serde_json::from_str(&host.pod_ip(0, &["-j", "link", "show", "dev", "mgmt"])).unwrap();
    assert_eq!(link[0]["address"], "c2:11:22:33:44:55");
    let to_pod = |host: &Host| {
        let rules = match backend {
            "" => host.nat(),
            _ => host
                .exec(&["nft", "list", "table", "ip", "cni_hostport"])
                .lines()
                .map(str::to_owned)
                .collect(),
        };
        let is_of_pod = |rule: &&String| {
            ["10.244.7.77", "CNI-DN-", "8080"]
                .iter()
                .any(|word| rule.contains(word))
        };
        rules.iter().filter(is_of_pod).count()
    };
    assert!(to_pod(&host) > 0, "{:#?}", host.nat());
    // At DEL Multus has forgotten the ports it asked for.
    multus.del(&host, &pod, false).unwrap();
    assert_eq!(to_pod(&host), 0, "{:#?}", host.nat());
    assert_eq!(host.pod_links(0), Vec::<String>::new());
    for network in ["cbr0", "requests"] {
        assert_eq!(host.reservations(network), []);
    }
    assert_eq!(host.saved(), Vec::<String>::new());
    // An address that is taken fails the pod as a whole, and nothing of it stays.
    let mut second = self::pod(&mut host, 1, &[]);
    second.networks.clone_from(&pod.networks);
    multus.add(&host, &pod).unwrap();
    let refused = multus.add(&host, &second).unwrap_err();
    assert!(
        refused.contains("requested IP address 10.244.7.77 is not available"),
        "{refused}"
    );
    multus.del(&host, &second, false).unwrap();
    assert_eq!(host.pod_links(1), Vec::<String>::new());
    assert_eq!(host.reservations("requests").len(), 2);
    assert!(to_pod(&host) > 0);
    multus.del(&host, &pod, false).unwrap();
    for network in ["cbr0", "requests"] {
        assert_eq!(host.reservations(network), []);
    }
    multus.assert_nothing_left();
}

#[test]
fn pod_when_its_second_network_fails_is_undone_and_deleting_it_again_is_fine() {
    let mut host = Host::new();
    let mut multus = node(&host);
    let broken = definition(&host, "1.0.0", "nosuch.env", "");
    multus.definitions.insert("broken", broken);
    let pod = pod(&mut host, 0, &["flannel-conf", "broken", "flannel-conf"]);
    let refused = multus.add(&host, &pod).unwrap_err();
    assert!(refused.contains("nosuch.env: no such file"), "{refused}");
    // Multus has undone what there was, by DELs that began with the one that failed.
    assert_eq!(host.pod_links(0), Vec::<String>::new());
    for network in ["cbr0", "flannel-conf", "broken"] {
        host.assert_nothing_left(network);
    }
    // The kubelet's DEL goes through the whole list once more.
    multus.del(&host, &pod, false).unwrap();
    assert_nothing_left(&host, &multus);
}

#[test]
fn interface_when_added_twice_keeps_its_first_address_and_state() {
    let mut host = Host::new();
    let multus = node(&host);
    let pod = pod(&mut host, 0, &[]);
    let list = List::parse(&multus.cluster_network);
    let to = Attachment::of(&pod.container, &pod.netns, "eth0");
    let first = multus.libcni.add(&host, &list, &to).ok();
    let saved = host.saved();
    let again = multus.libcni.add(&host, &list, &to);
    assert!(again.failure().1.contains("already exists"), "{again:?}");
    // Under another network's name too.
    let other = List {
        name: "flannel-conf".to_owned(),
        ..List::parse(&multus.definitions["flannel-conf"])
    };
    let again = multus.libcni.add(&host, &other, &to);
    assert!(again.failure().1.contains("already exists"), "{again:?}");
    assert_eq!(host.saved(), saved);
    assert_eq!(host.reservations("flannel-conf"), []);
    multus.libcni.check(&host, &list, &to).unwrap();
    talks(&host, 0, &first.addresses()[0], "10.244.7.1");
    multus.libcni.del(&host, &list, &to).unwrap();
    assert_eq!(host.pod_links(0), Vec::<String>::new());
    host.assert_nothing_left("cbr0");
    host.assert_nothing_left("flannel-conf");
}

#[test]
fn pods_when_fifty_come_and_go_at_once_with_two_networks_each_are_distinct_and_leave_nothing() {
    const COUNT: usize = 50;
    let mut host = Host::new();
    let multus = node(&host);
    let pods: Vec<Pod> = (0..COUNT).map(|i| pod(&mut host, i, &["flannel-conf"])).collect();
    let at_once = |work: &(dyn Fn(&Pod) -> Vec<String> + Sync)| -> Vec<String> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(move || work(pod))).collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap())
                .collect()
        })
    };
    let got = at_once(&|pod| addresses(&multus.add(&host, pod).unwrap()));
    assert_eq!(got.len(), 2 * COUNT);
    assert_eq!(
        got.iter().collect::<BTreeSet<_>>().len(),
        2 * COUNT,
        "an address twice: {got:?}"
    );
    assert_eq!(host.reservations("cbr0").len(), COUNT);
    assert_eq!(host.reservations("flannel-conf").len(), COUNT);
    at_once(&|pod| {
        multus.del(&host, pod, false).unwrap();
        Vec::new()
    });
    assert_nothing_left(&host, &multus);
}

#[test]
fn networks_when_attached_at_once_to_one_pod_and_deleted_at_once_are_distinct_and_leave_nothing() {
    // As containerd attaches a pod's networks; twice, so that the second finds folders that a DEL may be removing.
    let mut host = Host::new();
    let multus = node(&host);
    let pod = pod(&mut host, 0, &[]);
    let lists: Vec<List> = ["cbr0", "flannel-conf", "third", "cbr0", "flannel-conf", "third"]
        .iter()
        .map(|name| List {
            name: (*name).to_owned(),
            ..List::parse(&multus.definitions["flannel-conf"])
        })
        .collect();
    for round in 0..3 {
        let each = |work: &(dyn Fn(&List, &Attachment) -> Vec<String> + Sync)| -> Vec<String> {
            std::thread::scope(|scope| {
                let threads: Vec<_> = lists
                    .iter()
                    .enumerate()
                    .map(|(i, list)| {
                        let to = Attachment::of(&pod.container, &pod.netns, &format!("eth{i}"));
                        scope.spawn(move || work(list, &to))
                    })
                    .collect();
                threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
            })
        };
        let got = each(&|list, to| multus.libcni.add(&host, list, to).ok().addresses());
        assert_eq!(
            got.iter().collect::<BTreeSet<_>>().len(),
            lists.len(),
            "{round}: {got:?}"
        );
        each(&|list, to| {
            multus.libcni.del(&host, list, to).unwrap();
            Vec::new()
        });
        assert_eq!(host.pod_links(0), Vec::<String>::new());
        for network in ["cbr0", "flannel-conf", "third"] {
            host.assert_nothing_left(network);
        }
    }
}

/// What Go's flannel hands to Go's bridge, and saves under the container's id alone.
fn of_go(host: &Host, network: &str, pod: &Pod, ifname: &str) -> Answer {
    let delegate = format!(
        r#"{{"cniVersion":"1.0.0","ipMasq":false,"ipam":{{"dataDir":"{}","ranges":[[{{"subnet":"10.244.7.0/24"}}]],"routes":[{{"dst":"10.244.0.0/16"}}],"type":"host-local"}},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"{network}","type":"bridge"}}"#,
        host.path("networks")
    );
    std::fs::create_dir_all(host.path("flannel")).unwrap();
    std::fs::write(host.path(&format!("flannel/{}", pod.container)), &delegate).unwrap();
    let mut go = Multus::of(host, "{}").libcni;
    go.programs = vec![GO_PLUGINS.into()];
    GO_PLUGINS.clone_into(&mut go.path);
    let to = Attachment::of(&pod.container, &pod.netns, ifname);
    go.add(host, &List::parse(&delegate), &to).ok()
}

#[test]
fn pods_when_go_made_all_or_half_of_their_attachments_are_freed_whole_in_either_order() {
    // Who made eth0 and net1, and the network of net1. With two networks Go gives one address twice; that heals here too.
    for (makers, second) in [
        (["go", "ours"], "cbr0"),
        (["go", "ours"], "flannel-conf"),
        (["go", "go"], "cbr0"),
        (["go", "go"], "flannel-conf"),
    ] {
        for order in [[1, 0], [0, 1]] {
            let mut host = Host::new();
            let multus = node(&host);
            let pod = pod(&mut host, 0, &[]);
            let networks = ["cbr0", second];
            let lists = networks.map(|name| List {
                name: name.to_owned(),
                ..List::parse(&multus.cluster_network)
            });
            let to = ["eth0", "net1"].map(|name| Attachment::of(&pod.container, &pod.netns, name));
            let mut got = Vec::new();
            for i in [0, 1] {
                let answer = match makers[i] {
                    "go" => of_go(&host, networks[i], &pod, &to[i].ifname),
                    _ => multus.libcni.add(&host, &lists[i], &to[i]).ok(),
                };
                got.extend(answer.addresses());
            }
            assert_eq!(
                got[0] == got[1],
                makers == ["go", "go"] && second != "cbr0",
                "{got:?}"
            );
            for (n, i) in order.into_iter().enumerate() {
                multus.libcni.del(&host, &lists[i], &to[i]).unwrap();
                multus.libcni.del(&host, &lists[i], &to[i]).unwrap();
                let left = match n {
                    0 => vec![to[1 - i].ifname.clone()],
                    _ => Vec::new(),
                };
                assert_eq!(host.pod_links(0), left, "{makers:?} {second} {order:?}");
            }
            for network in networks {
                host.assert_nothing_left(network);
            }
        }
    }
}

#[test]
fn gc_when_attachments_are_stale_deletes_them_and_keeps_the_listed() {
    let mut host = Host::new();
    let multus = node(&host);
    let text = multus.cluster_network.replace("1.0.0", "1.1.0");
    let list = List::parse(&text);
    let pods: Vec<Pod> = (0..3).map(|i| pod(&mut host, i, &[])).collect();
    let of = |pod: &Pod, ifname: &str| Attachment::of(&pod.container, &pod.netns, ifname);
    for (pod, ifname) in [
        (&pods[0], "eth0"),
        (&pods[0], "net1"),
        (&pods[1], "eth0"),
        (&pods[2], "eth0"),
    ] {
        multus.libcni.add(&host, &list, &of(pod, ifname)).ok();
    }
    multus.libcni.status(&host, &list).unwrap();
    // Of the third even the runtime has lost the record.
    std::fs::remove_file(multus.libcni.cache_file("cbr0", &of(&pods[2], "eth0"))).unwrap();
    host.remove_pod(2);
    multus
        .libcni
        .gc(&host, &list, &[(&pods[0].container, "eth0")])
        .unwrap();
    assert_eq!(
        multus.libcni.cached(),
        [format!("cbr0-{}-eth0", pods[0].container)]
    );
    assert_eq!(host.pod_links(0), ["eth0"]);
    assert_eq!(host.pod_links(1), Vec::<String>::new());
    // The third's host end goes with its namespace, by a worker of the kernel; after that nothing speaks for it.
    let owner = ("10.244.7.2".to_owned(), format!("{}\r\neth0", pods[0].container));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while host.reservations("cbr0") != [owner.clone()] && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(50));
        multus
            .libcni
            .gc(&host, &list, &[(&pods[0].container, "eth0")])
            .unwrap();
    }
    assert_eq!(host.reservations("cbr0"), [owner]);
    multus.libcni.check(&host, &list, &of(&pods[0], "eth0")).unwrap();
    std::fs::remove_file(host.path("subnet.env")).unwrap();
    assert_eq!(multus.libcni.status(&host, &list).unwrap_err()["code"], 50);
    multus.libcni.del(&host, &list, &of(&pods[0], "eth0")).unwrap();
    host.assert_nothing_left("cbr0");
}
