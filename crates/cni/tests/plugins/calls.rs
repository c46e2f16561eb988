//! Single calls: refusals and their texts, what they leave, and delegates that are programs of their own (P1–P20, C10).

use std::os::unix::fs::PermissionsExt;

use crate::rig::{Answer, Host, ID};

fn refused(host: &mut Host, stdin: String, code: u64, msg: &str) {
    let call = host.call("flannel", "ADD", stdin);
    let answer = host.run(&call);
    assert_eq!(answer.failure(), (code, msg.to_owned()));
    assert!(!answer.stdout.ends_with('\n'), "one document, no newline");
    assert_eq!(host.saved(), Vec::<String>::new(), "a refusal saves nothing");
    assert_eq!(host.links(), Vec::<String>::new(), "a refusal makes nothing");
}

#[test]
fn t1_add_when_config_is_minimal_saves_gos_bytes_and_del_removes_them() {
    let mut host = Host::new();
    std::fs::write(
        host.path("subnet.env"),
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n",
    )
    .unwrap();
    let stdin = format!(
        r#"{{"name":"cni-flannel","type":"flannel","subnetFile":"{}","dataDir":"{}","ipam":{{"dataDir":"{}"}}}}"#,
        host.path("subnet.env"),
        host.path("flannel"),
        host.path("networks")
    );
    let add = host.call("flannel", "ADD", stdin.clone());
    let answer = host.run(&add).ok();
    assert_eq!(
        answer.json()["ip4"]["ip"],
        "10.1.17.2/24",
        "no version is 0.1.0: {}",
        answer.stdout
    );
    assert_eq!(
        host.read(&format!("flannel/{ID}")),
        format!(
            r#"{{"ipMasq":false,"ipam":{{"dataDir":"{}","ranges":[[{{"subnet":"10.1.17.0/24"}}]],"routes":[{{"dst":"10.1.0.0/16"}}],"type":"host-local"}},"isGateway":true,"mtu":1472,"name":"cni-flannel","type":"bridge"}}"#,
            host.path("networks")
        )
    );
    for _ in 0..2 {
        let del = host.call("flannel", "DEL", stdin.clone());
        assert_eq!(host.run(&del).ok().stdout, "");
        host.assert_nothing_left("cni-flannel");
    }
}

#[test]
fn p1_p2_add_when_subnet_env_is_missing_or_short_says_so_in_gos_words() {
    let mut host = Host::new();
    let config = host.config("cbr0", "");
    let path = host.path("subnet.env");
    std::fs::remove_file(&path).unwrap();
    let text = |why: &str| {
        format!("failed to load flannel 'subnet.env' file: {why}. Check the flannel pod log for this node.")
    };
    refused(
        &mut host,
        config.clone(),
        999,
        &text(&format!("open {path}: no such file or directory")),
    );
    std::fs::create_dir(&path).unwrap();
    refused(
        &mut host,
        config.clone(),
        999,
        &text(&format!("read {path}: is a directory")),
    );
    std::fs::remove_dir(&path).unwrap();
    for (content, why) in [
        (
            "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.1.1/24\nFLANNEL_IPMASQ=true",
            format!("{path} is missing FLANNEL_MTU"),
        ),
        (
            "FLANNEL_SUBNET=10.244.0.0",
            "invalid CIDR address: 10.244.0.0".to_owned(),
        ),
        (
            "FLANNEL_MTU=1450 ",
            "strconv.ParseUint: parsing \"1450 \": invalid syntax".to_owned(),
        ),
        (
            "FLANNEL_SUBNET",
            "line 1 is \"FLANNEL_SUBNET\" alone: expected FLANNEL_SUBNET=<value>".to_owned(),
        ),
    ] {
        std::fs::write(&path, content).unwrap();
        refused(&mut host, config.clone(), 999, &text(&why));
    }
}

#[test]
fn p7_add_when_the_delegate_sets_what_flannel_sets_is_refused_and_saves_nothing() {
    let mut host = Host::new();
    for (delegate, msg) in [
        (
            r#"{"type":7}"#,
            "'delegate' dictionary, if present, must have (string) 'type' field",
        ),
        (
            r#"{"name":"x"}"#,
            "'delegate' dictionary must not have 'name' field, it'll be set by flannel",
        ),
        (
            r#"{"ipam":{}}"#,
            "'delegate' dictionary must not have 'ipam' field, it'll be set by flannel",
        ),
    ] {
        let stdin = host.config("cbr0", &format!(r#","delegate":{delegate}"#));
        refused(&mut host, stdin, 999, msg);
    }
    let stdin = host
        .config("cbr0", "")
        .replace(&host.path("flannel"), "/proc/nope");
    refused(
        &mut host,
        stdin,
        999,
        "mkdir /proc/nope: no such file or directory",
    );
}

#[test]
fn p12_add_when_the_delegate_is_not_to_be_found_keeps_its_state_for_a_del() {
    let mut host = Host::new();
    let stdin = host.config("cbr0", r#","delegate":{"type":"nosuch"}"#);
    let bin = host.path("bin");
    let call = host.call("flannel", "ADD", stdin.clone());
    let missing = format!("failed to find plugin \"nosuch\" in path [{bin}]");
    assert_eq!(
        host.run(&call).failure(),
        (999, format!("failed to delegate add: {missing}"))
    );
    assert!(host.exists(&format!("flannel/{ID}")));
    let call = host.call("flannel", "DEL", stdin);
    assert_eq!(host.run(&call).failure(), (999, missing));
    assert!(
        host.exists(&format!("flannel/{ID}")),
        "W-1: as long as the delegate's DEL fails the state is needed"
    );
}

#[test]
fn p13_p14_del_when_lease_namespace_or_variable_is_gone_still_cleans_up() {
    let mut host = Host::new();
    host.flannel("ADD").ok();
    host.subnet_env("10.9.0.0/16", "10.9.1.1/24", "", "", true);
    host.flannel("DEL").ok();
    host.assert_nothing_left("cbr0");

    host.subnet_env("10.9.0.0/16", "10.9.1.1/24", "", "", false);
    host.exec(&["ip", "link", "del", "cni0"]);
    for gone in ["namespace", "unmounted", "variable", "link", "subnet.env"] {
        host.flannel("ADD").ok();
        let stdin = host.config("cbr0", "");
        let mut del = host.call("flannel", "DEL", stdin);
        match gone {
            "namespace" => host.remove_pod(0),
            "unmounted" => {
                host.remove_pod(0);
                del.netns = host.path("empty");
                std::fs::write(&del.netns, "").unwrap();
            }
            "variable" => {
                del.netns = String::new();
                host.pod_ip(0, &["link", "del", "eth0"]);
            }
            "link" => drop(host.pod_ip(0, &["link", "del", "eth0"])),
            _ => std::fs::remove_file(host.path("subnet.env")).unwrap(),
        }
        host.run(&del).ok();
        host.assert_nothing_left("cbr0");
        host.run(&del).ok();
        host.pod(0);
    }
}

#[test]
fn p15_del_when_the_saved_state_is_broken_or_lost_cleans_up_by_container_id() {
    let mut host = Host::new();
    host.subnet_env("10.244.0.0/16", "10.244.7.1/24", "", "", false);
    for broken in ["", "{", "[]", "{\"name\":\"cbr0\"}", "lost"] {
        host.flannel("ADD").ok();
        assert!(!host.nat().is_empty());
        for path in [format!("flannel/{ID}"), format!("flannel/.v2/{ID}/eth0")] {
            match broken {
                "lost" => std::fs::remove_file(host.path(&path)).unwrap(),
                _ => std::fs::write(host.path(&path), broken).unwrap(),
            }
        }
        host.flannel("DEL").ok();
        assert_eq!(host.pod_links(0), Vec::<String>::new(), "{broken}");
        host.assert_nothing_left("cbr0");
    }
}

#[test]
fn del_when_nothing_is_known_leaves_another_plugins_interface_alone() {
    let mut host = Host::new();
    host.pod(0);
    host.exec(&[
        "ip",
        "link",
        "add",
        "other",
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        &format!("{}-0", host.name),
    ]);
    host.flannel("DEL").ok();
    assert_eq!(host.pod_links(0), ["eth0"]);
}

#[test]
fn p17_add_when_made_twice_is_refused_and_the_first_stays_whole() {
    let mut host = Host::new();
    let first = host.flannel("ADD").ok();
    let state = host.read(&format!("flannel/{ID}"));
    let routes = host.pod_ip(0, &["route"]);
    let (code, msg) = host.flannel("ADD").failure();
    assert_eq!(code, 999);
    assert!(
        msg.starts_with("container veth name (\"eth0\") peer provided (\"veth")
            && msg.ends_with("\") already exists"),
        "{msg}"
    );
    assert_eq!(host.read(&format!("flannel/{ID}")), state);
    assert_eq!(host.pod_ip(0, &["route"]), routes);
    let veth = first.json()["interfaces"][1]["name"].as_str().unwrap().to_owned();
    assert_eq!(host.links(), ["cni0", &veth]);
    assert_eq!(host.reservations("cbr0").len(), 1);
    host.flannel("DEL").ok();
    host.assert_nothing_left("cbr0");
}

#[test]
fn p18_add_when_asked_in_any_version_answers_in_its_shape() {
    let mut host = Host::new();
    host.dual_stack();
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let stdin = host.config("cbr0", "").replace("1.0.0", version);
        let add = host.call("flannel", "ADD", stdin.clone());
        let answer = host.run(&add).ok();
        let result = answer.json();
        assert_eq!(result["cniVersion"], version);
        match version {
            "0.1.0" | "0.2.0" => {
                assert!(
                    result["ip4"]["routes"].is_array() && result["ip6"]["gateway"].is_string(),
                    "{version}"
                );
                assert!(answer.stdout.ends_with("\"dns\": {}\n}"), "{version}");
            }
            "1.0.0" | "1.1.0" => {
                assert!(result.get("dns").is_none() && result["ips"][0].get("version").is_none())
            }
            _ => assert!(
                result["dns"].is_object() && result["ips"][1]["version"] == "6",
                "{version}"
            ),
        }
        let del = host.call("flannel", "DEL", stdin);
        host.run(&del).ok();
    }
}

#[test]
fn guard_when_the_namespace_is_our_own_acts_before_anything_is_done() {
    let mut host = Host::new();
    for verb in ["ADD", "DEL"] {
        for plugin in ["flannel", "bridge", "host-local", "loopback"] {
            let stdin = host.config("cbr0", "");
            let mut call = host.call(plugin, verb, stdin);
            call.netns = format!("/run/netns/{}", host.name);
            call.ifname = "lo";
            let msg = "plugin's netns and netns from CNI_NETNS should not be the same";
            assert_eq!(host.run(&call).failure(), (8, msg.to_owned()), "{plugin} {verb}");
        }
    }
    assert_eq!(host.links(), Vec::<String>::new());
    assert_eq!(host.reservations("cbr0"), []);
    // Overridden, the attachment is made in the host's own namespace.
    let stdin = host.config("cbr0", "");
    let mut call = host.call("flannel", "ADD", stdin);
    call.netns = format!("/run/netns/{}", host.name);
    call.variables = vec![("CNI_NETNS_OVERRIDE", "TRUE")];
    host.run(&call).ok();
    assert!(host.links().contains(&"eth0".to_owned()));
}

#[test]
fn add_when_the_namespace_is_missing_or_none_says_so_and_makes_nothing() {
    let mut host = Host::new();
    for (netns, why) in [
        (
            "/run/netns/nosuch-cnit",
            "failed to Statfs \"/run/netns/nosuch-cnit\": no such file or directory",
        ),
        ("/etc/hostname", "unknown FS magic on \"/etc/hostname\": "),
    ] {
        let stdin = host.config("cbr0", "");
        let mut call = host.call("flannel", "ADD", stdin);
        call.netns = netns.to_owned();
        let (code, msg) = host.run(&call).failure();
        assert_eq!(code, 999);
        assert!(
            msg.starts_with(&format!("failed to open netns {netns:?}: {why}")),
            "{msg}"
        );
        host.assert_nothing_left("cbr0");
        assert_eq!(host.links(), Vec::<String>::new());
    }
}

/// A delegate that notes what it is given and then does as told.
fn recorder(host: &Host, name: &str, then: &str) {
    let file = host.path(&format!("bin/{name}"));
    let _ = std::fs::remove_file(&file);
    let root = host.path("");
    let script =
        format!("#!/bin/sh\ncat > {root}$CNI_COMMAND.stdin\nenv | sort > {root}$CNI_COMMAND.env\n{then}\n");
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

const RESULT: &str = r#"[ $CNI_COMMAND = DEL ] || echo '{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.9.9.9/24"}],"extra":1,"dns":{}}'; echo noise >&2"#;

#[test]
fn c10_delegate_when_it_is_another_plugin_gets_the_exact_bytes_and_the_environment() {
    let mut host = Host::new();
    recorder(&host, "macvlan", RESULT);
    let stdin = host.config("cbr0", r#","delegate":{"type":"macvlan","master":"eth0"},"args":{"x":1},"runtimeConfig":{"mac":"02:00:00:00:00:01"}"#);
    let mut add = host.call("flannel", "ADD", stdin.clone());
    add.variables = vec![("TRACEPARENT", "abc")];
    let answer = host.run(&add).ok();
    assert_eq!(
        answer.json()["cniVersion"],
        "0.4.0",
        "the delegate's own version: {}",
        answer.stdout
    );
    assert!(
        answer.json().get("extra").is_none() && answer.stderr.contains("noise"),
        "{answer:?}"
    );
    let expected = format!(
        r#"{{"cniVersion":"1.0.0","ipMasq":false,"ipam":{{"dataDir":"{}","ranges":[[{{"subnet":"10.244.7.0/24"}}]],"routes":[{{"dst":"10.244.0.0/16"}}],"type":"host-local"}},"master":"eth0","mtu":1450,"name":"cbr0","runtimeConfig":{{"mac":"02:00:00:00:00:01"}},"type":"macvlan"}}"#,
        host.path("networks")
    );
    assert_eq!(host.read("ADD.stdin"), expected);
    assert_eq!(host.read(&format!("flannel/{ID}")), expected);
    let env = host.read("ADD.env");
    for line in [
        "CNI_COMMAND=ADD",
        "CNI_IFNAME=eth0",
        "TRACEPARENT=abc",
        &format!("CNI_CONTAINERID={ID}"),
    ] {
        assert!(env.lines().any(|l| l == line), "{line} in {env}");
    }
    let del = host.call("flannel", "DEL", stdin);
    host.run(&del).ok();
    assert_eq!(host.read("DEL.stdin"), expected);
    host.assert_nothing_left("cbr0");
}

#[test]
fn delegate_when_told_to_be_exec_ed_or_not_known_to_us_is_the_bridge_on_the_path() {
    let mut host = Host::new();
    recorder(&host, "bridge", RESULT);
    let runs = |host: &mut Host, more: &str, variables: Vec<(&'static str, &'static str)>| -> bool {
        let _ = std::fs::remove_file(host.path("ADD.stdin"));
        let stdin = host.config("cbr0", more);
        let mut add = host.call("flannel", "ADD", stdin.clone());
        add.variables = variables.clone();
        host.run(&add).ok();
        let exec = host.exists("ADD.stdin");
        let mut del = host.call("flannel", "DEL", stdin);
        del.variables = variables;
        host.run(&del).ok();
        host.assert_nothing_left("cbr0");
        exec
    };
    assert!(!runs(&mut host, "", vec![]), "all keys are known");
    assert!(runs(&mut host, "", vec![("FLANNEL_CNI_EXEC", "1")]));
    assert!(runs(&mut host, r#","nativeDelegate":false"#, vec![]));
    for delegate in [
        r#""vlan":7"#,
        r#""vlanTrunk":[{"id":5}]"#,
        r#""macspoofchk":true"#,
        r#""brandNewKey":1"#,
    ] {
        assert!(
            runs(&mut host, &format!(r#","delegate":{{{delegate}}}"#), vec![]),
            "{delegate}"
        );
    }
    assert!(!runs(
        &mut host,
        r#","delegate":{"vlan":0,"macspoofchk":false,"portIsolation":true}"#,
        vec![]
    ));
    // Nowhere to be found, ours does what it can and names what it cannot.
    std::fs::remove_file(host.path("bin/bridge")).unwrap();
    assert!(!runs(&mut host, r#","delegate":{"brandNewKey":1}"#, vec![]));
    let stdin = host.config("cbr0", r#","delegate":{"vlan":7}"#);
    let call = host.call("flannel", "ADD", stdin);
    let (code, msg) = host.run(&call).failure();
    assert!(
        code == 2 && msg.starts_with("\"vlan\" needs the bridge plugin"),
        "{msg}"
    );
    assert_eq!(host.saved(), Vec::<String>::new());
}

#[test]
fn delegate_when_its_add_fails_is_asked_to_undo_it_and_its_own_error_comes_out() {
    let mut host = Host::new();
    let error = r#"echo '{"code":11,"msg":"try later","details":"full"}'; exit 1"#;
    recorder(
        &host,
        "macvlan",
        &format!("[ $CNI_COMMAND = DEL ] || {{ {error}; }}"),
    );
    let stdin = host.config("cbr0", r#","delegate":{"type":"macvlan"}"#);
    let add = host.call("flannel", "ADD", stdin);
    let answer: Answer = host.run(&add);
    assert_eq!(
        answer.stdout,
        "{\n    \"code\": 11,\n    \"msg\": \"try later\",\n    \"details\": \"full\"\n}"
    );
    assert!(host.exists("DEL.stdin"));
    assert_eq!(host.saved(), Vec::<String>::new());
    // It cannot undo it either: then the runtime's DEL has to.
    recorder(&host, "macvlan", error);
    assert_eq!(host.run(&add).failure().0, 11);
    assert!(host.exists(&format!("flannel/{ID}")));
}

#[test]
fn ipam_when_it_is_another_plugin_is_run_with_the_same_bytes() {
    let mut host = Host::new();
    recorder(
        &host,
        "my-ipam",
        r#"[ $CNI_COMMAND = DEL ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"10.50.0.9/24"}],"routes":[{"dst":"0.0.0.0/0"}]}'"#,
    );
    std::fs::remove_file(host.path("bin/bridge")).unwrap();
    let stdin = host
        .config("cbr0", "")
        .replace(r#""ipam":{"#, r#""ipam":{"type":"my-ipam","#);
    let add = host.call("flannel", "ADD", stdin.clone());
    let answer = host.run(&add).ok();
    assert_eq!(answer.addresses(), ["10.50.0.9/24"]);
    assert_eq!(host.read("ADD.stdin"), host.read(&format!("flannel/{ID}")));
    // A default route without a next hop and isDefaultGateway are one route (W-15).
    let routes = host.pod_ip(0, &["route"]);
    assert_eq!(
        routes
            .lines()
            .filter(|l| l.starts_with("default via 10.50.0.1"))
            .count(),
        1,
        "{routes}"
    );
    let del = host.call("flannel", "DEL", stdin);
    host.run(&del).ok();
    assert_eq!(host.read("DEL.stdin"), host.read("ADD.stdin"));
    host.assert_nothing_left("cbr0");
}

#[test]
fn failed_add_when_it_fails_late_leaves_nothing_of_the_container() {
    let mut host = Host::new();
    host.flannel("ADD").ok();
    let before = (host.links(), host.reservations("cbr0"), host.nat());
    // The lease has changed while a container lives on the bridge.
    host.subnet_env("10.244.0.0/16", "10.244.9.1/24", "", "", false);
    let stdin = host.config("cbr0", "");
    let mut add = host.call("flannel", "ADD", stdin);
    add.container = "second";
    add.netns = host.pod(1);
    let msg = "failed to set bridge addr: \"cni0\" already has an IP address different from 10.244.9.1/24";
    assert_eq!(host.run(&add).failure(), (999, msg.to_owned()));
    assert_eq!((host.links(), host.reservations("cbr0"), host.nat()), before);
    assert_eq!(host.pod_links(1), Vec::<String>::new());
    assert!(!host.exists("flannel/second") && !host.exists("flannel/.v2/second"));
    // Asked to, the new address takes the old one's place.
    let stdin = host.config("cbr0", r#","delegate":{"forceAddress":true}"#);
    let call = crate::rig::Call { stdin, ..add };
    assert_eq!(
        host.run(&call).ok().addresses(),
        ["10.244.9.3/24"],
        "the pointer has moved on"
    );
    assert!(
        host.ip(&["-4", "-o", "addr", "show", "cni0"])
            .contains("10.244.9.1/24")
    );
    // The container of the old lease can go all the same.
    host.flannel("DEL").ok();
    assert_eq!(host.reservations("cbr0").len(), 1);
}
