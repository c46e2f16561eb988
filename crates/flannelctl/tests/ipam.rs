//! `flannelctl ipam` on nodes whose pods live and die in every way there is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod nodes;

use std::time::Duration;

use nodes::{GO_PLUGINS, Node, executable, expected, record, run};
use serde_json::Value;

/// Pods whose namespaces are kept in different ways, all reservations old; `gone` has none any more.
fn village() -> (Node, String) {
    let mut node = Node::new();
    let named = node.named("named");
    node.add("named", &named);
    let id = node.process("exec unshare --net bash -c 'echo ready; exec sleep 600'");
    node.add("process", &format!("/proc/{id}/ns/net"));
    let pin = node.path("pinned");
    std::fs::write(&pin, "").unwrap();
    let id = node.process(&format!(
        "exec unshare --mount --propagation private bash -c 'unshare --net={pin} true && echo ready; exec sleep 600'"
    ));
    node.add("mounted", &format!("/proc/{id}/root{pin}"));
    let back = std::process::id();
    let id = node.process(&format!(
        "exec unshare --net bash -c 'exec 9</proc/self/ns/net; echo ready; exec nsenter --net=/proc/{back}/ns/net sleep 600'"
    ));
    node.add("held", &format!("/proc/{id}/fd/9"));
    let gone = node.named("gone");
    node.add("gone", &gone);
    node.remove(&gone);
    node.make_old("cbr0");
    (node, named)
}

/// What a dead container that no link leads to is seen as from here: where the machine's other processes are out of sight, as in a
/// container that runs these tests, it may be behind one of theirs. The first of all PID namespaces has a number of its own in
/// the kernel (`PROC_PID_INIT_INO`).
fn unlinked() -> &'static str {
    let own = std::fs::read_link("/proc/self/ns/pid").unwrap();
    if own.to_str() == Some("pid:[4026531836]") {
        "garbage"
    } else {
        "unknown"
    }
}

const VILLAGE: [(&str, &str); 5] = [
    ("gone", "garbage"),
    ("held", "alive"),
    ("mounted", "alive"),
    ("named", "alive"),
    ("process", "alive"),
];

#[test]
fn list_when_namespaces_are_kept_in_every_way_finds_them_through_links_and_without() {
    let (mut node, _) = village();
    assert_eq!(node.states(), expected(&VILLAGE));
    let (code, text) = node.ipam(&["list"]);
    assert_eq!(code, 1, "there is garbage: {text}");
    assert!(text.contains("cbr0: 10 held (8 alive, 2 garbage)"), "{text}");
    assert!(
        text.contains(&format!("248 of 253 free in {}.1-", node.subnet)),
        "{text}"
    );
    assert!(text.contains(&node.id("gone")), "{text}");
    // From another namespace no link leads to the pods: processes, descriptors and mounts do.
    let visitor = node.named("visitor");
    let mut from_there = VILLAGE;
    assert_eq!(from_there[0].0, "gone");
    from_there[0].1 = unlinked();
    assert_eq!(
        node.states_by(&["nsenter", &format!("--net={visitor}")]),
        expected(&from_there)
    );
}

#[test]
fn gc_when_a_pod_is_gone_frees_it_with_all_of_its_and_nothing_of_the_living() {
    let (mut node, named) = village();
    let ported = node.named("ported");
    let config = node.config("cbr0", "");
    let result = node.add("ported", &ported);
    let port = format!(
        r#"{{"name":"cbr0","cniVersion":"1.0.0","type":"portmap","backend":"iptables","runtimeConfig":{{"portMappings":[{{"hostPort":8080,"containerPort":80,"protocol":"tcp"}}]}},"prevResult":{result}}}"#
    );
    let output = node.plugin("portmap", "ADD", "ported", &ported, "eth0", &port);
    assert!(output.status.success(), "{output:?}");
    let rules = |node: &Node| {
        let text = node.on_node(&["iptables-save", "-t", "nat"]);
        text.lines()
            .filter(|l| l.contains("CNI-DN-") || l.contains("MASQUERADE"))
            .count()
    };
    assert!(
        node.on_node(&["iptables-save", "-t", "nat"])
            .contains(".ported\\\"")
    );
    let before = rules(&node);
    node.remove(&ported);
    node.make_old("cbr0");

    let files = node.files();
    let (code, text) = node.ipam(&["gc", "--dry-run"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(
        text.lines().filter(|l| l.starts_with("would free ")).count(),
        4,
        "{text}"
    );
    assert_eq!(node.files(), files);

    let (code, text) = node.ipam(&["gc", "--json"]);
    assert_eq!(code, 0, "{text}");
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["freed"].as_array().unwrap().len(), 4, "{text}");
    assert_eq!(node.holders("cbr0"), ["held", "mounted", "named", "process"]);
    assert!(rules(&node) < before);
    let nat = node.on_node(&["iptables-save", "-t", "nat"]);
    for gone in ["gone", "ported"] {
        assert!(!nat.contains(&format!(".{gone}\\\"")), "{nat}");
        let left: Vec<_> = node
            .files()
            .into_iter()
            .filter(|(path, _)| path.ends_with(node.id(gone)))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
    assert!(nat.contains(".named\\\""), "{nat}");
    assert_eq!(node.ipam(&["gc"]), (0, "nothing to free\n".to_owned()));
    assert_eq!(node.ipam(&["list", "--network", "cbr0"]).0, 0);
    // What the index of owners says is still true: a DEL finds its addresses.
    let output = node.plugin("flannel", "DEL", "named", &named, "eth0", &config);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(node.holders("cbr0"), ["held", "mounted", "process"]);
}

#[test]
fn gc_inside_a_container_when_the_pods_links_are_there_frees_and_elsewhere_refuses() {
    let (mut node, _) = village();
    let inside = ["unshare", "--pid", "--fork", "--mount-proc"];
    // Without any process of the machine to be seen, nor any namespace's mount.
    let visitor = node.named("visitor");
    let netns = format!("--net={visitor}");
    let elsewhere = [&["nsenter", netns.as_str()], &inside[..]].concat();
    let seen = node.states_by(&elsewhere);
    // What is mounted under /run/netns is to be seen wherever that is.
    assert!(
        seen.contains(&("gone".to_owned(), "unknown".to_owned())),
        "{seen:?}"
    );
    assert!(!seen.iter().any(|(_, state)| state == "garbage"), "{seen:?}");
    assert_eq!(seen.len(), VILLAGE.len());
    let files = node.files();
    let (code, text) = node.ipam_by(&elsewhere, &["gc"]);
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("inside a container") && text.contains("--force"),
        "{text}"
    );
    assert_eq!(node.files(), files);

    let netns = format!("--net=/run/netns/{}", node.name);
    let with_links = [&["nsenter", netns.as_str()], &inside[..]].concat();
    assert_eq!(node.states_by(&with_links), expected(&VILLAGE));
    let (code, text) = node.ipam_by(&with_links, &["gc"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(node.holders("cbr0"), ["held", "mounted", "named", "process"]);
}

/// What a pod of flanneld's has: the host's network, and power over that alone.
#[test]
fn gc_when_it_has_power_over_networks_alone_frees_and_without_that_only_by_force() {
    let (mut node, _) = village();
    let second = node.named("second");
    node.add("second", &second);
    node.remove(&second);
    node.make_old("cbr0");
    let netns = format!("--net=/run/netns/{}", node.name);
    let pod = |powers: &'static str| {
        [
            "nsenter",
            &netns,
            "unshare",
            "--pid",
            "--fork",
            "--mount-proc",
            "setpriv",
            "--bounding-set",
            powers,
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let by = |powers: &'static str, arguments: &[&str]| {
        let before = pod(powers);
        let before: Vec<&str> = before.iter().map(String::as_str).collect();
        node.ipam_by(&before, arguments)
    };
    // Our interfaces' names tell whose they are; what is behind them cannot be asked.
    let powerless = "-all,+dac_override";
    let (code, text) = by(powerless, &["gc"]);
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("whether 4 of them are still in use cannot be told"),
        "{text}"
    );
    assert!(
        text.contains("what is behind veth") && text.contains("not permitted"),
        "{text}"
    );
    assert_eq!(
        node.holders("cbr0"),
        ["gone", "held", "mounted", "named", "process", "second"]
    );

    let (code, text) = by("-all,+dac_override,+net_admin", &["gc", "--dry-run"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(
        text.lines().filter(|l| l.starts_with("would free ")).count(),
        4,
        "{text}"
    );
    let (code, text) = by(powerless, &["gc", "--force"]);
    assert_eq!(
        text.lines().filter(|l| l.starts_with("freed ")).count(),
        4,
        "{code} {text}"
    );
    assert_eq!(node.holders("cbr0"), ["held", "mounted", "named", "process"]);
}

#[test]
fn list_when_not_root_says_what_it_may_not_see_and_calls_nothing_garbage() {
    let (node, _) = village();
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    run(&["chmod", "-R", "a+rX", node.folder.path().to_str().unwrap()]);
    let exe = node.path("flannelctl");
    std::fs::copy(executable("flannelctl"), &exe).unwrap();
    let list = |verb: &str| {
        let netns = format!("--net=/run/netns/{}", node.name);
        let mut command = vec!["nsenter", &netns];
        command.extend(user);
        let places = node.places();
        command.extend([exe.as_str(), "ipam", verb]);
        command.extend(places.iter().map(String::as_str));
        let output = std::process::Command::new(command[0])
            .args(&command[1..])
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (code, text) = list("list");
    assert_eq!(code, Some(1));
    assert!(text.contains("unknown") && !text.contains("garbage)"), "{text}");
    assert!(text.contains("Permission denied"), "{text}");
    let held = node.reservations("cbr0");
    let (code, text) = list("gc");
    assert_eq!(code, Some(1), "{text}");
    assert_eq!(node.reservations("cbr0"), held);
    // Files that may not even be read are an error, and no pod less.
    run(&["chmod", "-R", "go-rwx", &node.path("cni/networks/cbr0")]);
    let (code, text) = list("list");
    assert_eq!(code, Some(1));
    assert!(
        text.starts_with("flannelctl: ") && text.contains("permission denied"),
        "{text}"
    );
}

/// A pod by Go's plugins, whose sandbox has taken the address off the interface as gVisor's does; a dead one beside it.
#[test]
fn gc_when_a_sandbox_hides_its_address_frees_nothing_until_a_record_tells_whose_it_is() {
    let mut node = Node::new();
    let (hidden, dead) = (node.named("hidden"), node.named("dead"));
    let config = format!(
        r#"{{"name":"cbr0","cniVersion":"1.0.0","type":"bridge","bridge":"cni0","isGateway":true,"ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"{}.0/24"}}]]}}}}"#,
        node.path("cni/networks"),
        node.subnet
    );
    for (container, netns) in [("hidden", &hidden), ("dead", &dead)] {
        let output = node.plugin(
            &format!("{GO_PLUGINS}/bridge"),
            "ADD",
            container,
            netns,
            "eth0",
            &config,
        );
        assert!(output.status.success(), "{output:?}");
    }
    node.make_old("cbr0");
    let states = |hidden, dead| expected(&[("dead", dead), ("hidden", hidden)]);
    assert_eq!(node.states(), states("alive", "alive"));
    node.remove(&dead);
    assert_eq!(node.states(), states("alive", "garbage"));

    run(&[
        "nsenter",
        &format!("--net={hidden}"),
        "ip",
        "address",
        "flush",
        "dev",
        "eth0",
    ]);
    assert_eq!(node.states(), states("unknown", "unknown"));
    let (code, text) = node.ipam(&["gc"]);
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("leads to a container that shows no address"),
        "{text}"
    );
    assert_eq!(node.holders("cbr0"), ["dead", "hidden"]);

    std::fs::create_dir_all(node.path("cni/results")).unwrap();
    for (container, netns) in [("hidden", &hidden), ("dead", &dead)] {
        let id = node.id(container);
        let file = node.path(&format!("cni/results/cbr0-{id}-eth0"));
        std::fs::write(file, record(&id, netns)).unwrap();
    }
    assert_eq!(node.states(), states("alive", "garbage"));
    assert_eq!(node.ipam(&["gc"]).0, 0);
    assert_eq!(node.holders("cbr0"), ["hidden"]);
}

#[test]
fn gc_when_a_reservation_is_young_or_a_plugin_is_at_work_for_it_waits() {
    let mut node = Node::new();
    let netns = node.named("pod");
    node.add("pod", &netns);
    node.remove(&netns);
    assert_eq!(node.states(), expected(&[("pod", "young")]));
    assert_eq!(node.ipam(&["gc"]), (0, "nothing to free\n".to_owned()));
    node.make_old("cbr0");
    let id = node.process(&format!(
        "CNI_COMMAND=ADD CNI_CONTAINERID={} exec bash -c 'echo ready; exec sleep 600'",
        node.id("pod")
    ));
    // While it becomes `sleep` its variables are out of sight for a moment.
    node.eventually("the plugin is seen", |node| {
        node.states() == expected(&[("pod", "young")])
    });
    assert!(node.ipam(&["list"]).1.contains("a plugin at work"));
    assert_eq!(node.ipam(&["gc"]).0, 0);
    assert_eq!(node.holders("cbr0"), ["pod"]);
    node.end(id);
    assert_eq!(node.ipam(&["gc"]).0, 0);
    assert_eq!(node.holders("cbr0"), Vec::<String>::new());
}

/// All of a container's interfaces share its fate, and one network's dead are freed alone when asked for.
#[test]
fn gc_when_asked_for_a_network_leaves_others_and_never_frees_without_being_asked_what_is_not_flannels() {
    let mut node = Node::new();
    let (pod, dead) = (node.named("pod"), node.named("dead"));
    node.add("pod", &pod);
    node.add("dead", &dead);
    let second = node.config("second", "");
    for (container, netns) in [("pod", &pod), ("dead", &dead)] {
        let output = node.plugin("flannel", "ADD", container, netns, "net1", &second);
        assert!(output.status.success(), "{output:?}");
    }
    node.remove(&dead);
    run(&["nsenter", &format!("--net={pod}"), "ip", "link", "del", "net1"]);
    let foreign = node.path("cni/networks/macvlan");
    std::fs::create_dir_all(&foreign).unwrap();
    std::fs::write(format!("{foreign}/192.0.2.7"), "somebody\r\nnet1").unwrap();
    for network in ["cbr0", "second", "macvlan"] {
        node.make_old(network);
    }
    assert_eq!(
        node.states(),
        expected(&[("dead", "garbage"), ("pod", "alive"), ("somebody", unlinked())])
    );
    let (_, text) = node.ipam(&["list"]);
    assert!(
        text.contains(&format!("macvlan: 1 held (1 {}) (not flannel's)", unlinked())),
        "{text}"
    );
    // Both networks take from one subnet.
    assert_eq!(text.matches("249 of 253 free").count(), 2, "{text}");

    let (code, text) = node.ipam(&["gc", "--network", "second"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(node.holders("second"), ["pod"]);
    assert_eq!(node.holders("cbr0"), ["dead", "pod"]);
    if unlinked() == "garbage" {
        let (code, text) = node.ipam(&["gc"]);
        assert_eq!(code, 0, "{text}");
        assert!(
            text.contains("macvlan is not flannel's: its 1 dead addresses stay"),
            "{text}"
        );
        assert_eq!(node.holders("cbr0"), ["pod"]);
        assert_eq!(node.holders("macvlan"), ["somebody"]);
        assert_eq!(node.ipam(&["gc", "--network", "macvlan"]).0, 0);
        assert_eq!(node.holders("macvlan"), Vec::<String>::new());
    } else {
        let (code, text) = node.ipam(&["gc", "--network", "macvlan"]);
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("inside a container"), "{text}");
        assert_eq!(node.holders("macvlan"), ["somebody"]);
    }

    for (arguments, code, word) in [
        (
            &["gc", "--network", "nosuch"][..],
            1,
            "there are cbr0, macvlan, second",
        ),
        (&["gc", "--dry"], 2, "--dry"),
        (&["list", "more"], 2, "more"),
        (&["nosuch"], 2, "nosuch"),
        (&["gc", "--help"], 0, "Examples:"),
        (&["list", "--help"], 0, "Examples:"),
    ] {
        let (got, text) = node.ipam(arguments);
        assert_eq!(got, code, "{text}");
        assert!(text.contains(word), "{text}");
    }
}

/// A network of another plugin's stays another's though a container of flannel's is in it, dead or alive, and though its addresses
/// are flannel's: its owner's records are gone, and nobody here sees whether they are in use.
#[test]
fn gc_when_containers_of_flannels_are_in_anothers_network_frees_nothing_there() {
    let mut node = Node::new();
    let (pod, dead) = (node.named("pod"), node.named("dead"));
    node.add("pod", &pod);
    node.add("dead", &dead);
    node.remove(&dead);
    let inside = format!("{}.200", node.subnet);
    let foreign = [
        ("macvlan", "192.0.2.7", "pod"),
        ("macvlan", "192.0.2.8", "dead"),
        ("macvlan", "192.0.2.9", "vm"),
        ("inside", &inside, "vm"),
    ];
    for (network, address, container) in foreign {
        let folder = node.path(&format!("cni/networks/{network}"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(
            format!("{folder}/{address}"),
            format!("{}\r\nnet1", node.id(container)),
        )
        .unwrap();
    }
    for network in ["cbr0", "macvlan", "inside"] {
        node.make_old(network);
    }
    let (_, text) = node.ipam(&["list"]);
    assert!(
        text.contains(&format!(
            "macvlan: 3 held (1 alive, 2 {}) (not flannel's)",
            unlinked()
        )),
        "no range of flannel's is told of it: {text}"
    );
    assert!(
        text.contains("inside: 1 held (1 garbage) (not flannel's)"),
        "{text}"
    );
    let (code, text) = node.ipam(&["gc"]);
    if unlinked() == "garbage" {
        assert_eq!(code, 0, "{text}");
        assert!(
            text.contains("macvlan is not flannel's: its 2 dead addresses stay"),
            "{text}"
        );
    } else {
        assert!(text.contains("inside a container"), "{text}");
        assert_eq!(node.ipam(&["gc", "--network", "cbr0"]).0, 0);
    }
    assert_eq!(node.holders("cbr0"), ["pod"]);
    assert_eq!(node.holders("macvlan"), ["dead", "pod", "vm"]);
    assert_eq!(node.holders("inside"), ["vm"]);
}

/// With every reservation dated back at once, as a jump of the clock does, youth protects nothing.
#[test]
fn gc_when_it_runs_among_adds_and_the_clock_jumps_frees_no_address_of_a_pod() {
    let mut node = Node::new();
    let pods: Vec<String> = (0..24).map(|i| node.named(&format!("p{i}"))).collect();
    let node = &node;
    let done = std::sync::atomic::AtomicBool::new(false);
    let is_done = || done.load(std::sync::atomic::Ordering::Relaxed);
    let rounds = std::thread::scope(|scope| {
        let clock = scope.spawn(|| {
            while !is_done() {
                node.make_old("cbr0");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let gc = scope.spawn(|| {
            let mut rounds = 0;
            while !is_done() || rounds < 2 {
                let (code, text) = node.ipam(&["gc"]);
                assert!(!text.contains("freed "), "{code}: {text}");
                rounds += 1;
            }
            rounds
        });
        let adders: Vec<_> = pods
            .chunks(8)
            .enumerate()
            .map(|(n, chunk)| {
                scope.spawn(move || {
                    for (i, pod) in chunk.iter().enumerate() {
                        node.add(&format!("pod{n}-{i}"), pod);
                    }
                })
            })
            .collect();
        for adder in adders {
            adder.join().unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        clock.join().unwrap();
        gc.join().unwrap()
    });
    assert!(rounds >= 2);
    assert_eq!(node.holders("cbr0").len(), pods.len());
    assert_eq!(node.reservations("cbr0").len(), 2 * pods.len());
    node.make_old("cbr0");
    assert_eq!(node.ipam(&["list"]).0, 0);
}
