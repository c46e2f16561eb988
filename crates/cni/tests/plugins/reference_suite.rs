//! What the tests of Go's flannel plugin say (T1–T23), and what they leave out (P3–P11), through the executable.

use serde_json::{Value, json};

use crate::rig::{Answer, Call, Host, ID};

const V4: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n";
const V6: &str = "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\n";
const SEVERAL: &str = "FLANNEL_NETWORK=10.1.0.0/16,192.168.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n";
const REST: &str = "FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";

/// One node with such a subnet.env.
struct Node(Host);

impl Node {
    fn new(subnet_env: &str) -> Node {
        let host = Host::new();
        std::fs::write(host.path("subnet.env"), subnet_env).unwrap();
        Node(host)
    }

    /// The suite's configuration with more keys (`,"x":1`) and more of `ipam` (`,"x":1`).
    fn config(&self, more: &str, ipam: &str) -> String {
        format!(
            r#"{{"name":"cni-flannel","type":"flannel","subnetFile":"{}","dataDir":"{}","ipam":{{"dataDir":"{}"{ipam}}}{more}}}"#,
            self.0.path("subnet.env"),
            self.0.path("flannel"),
            self.0.path("networks")
        )
    }

    fn run(&mut self, verb: &'static str, more: &str, ipam: &str) -> Answer {
        let stdin = self.config(more, ipam);
        let call = self.0.call("flannel", verb, stdin);
        self.0.run(&call)
    }

    /// The delegate's configuration as it was saved, without the folder this test needs.
    fn saved(&self) -> Value {
        let mut saved: Value = serde_json::from_str(&self.0.read(&format!("flannel/{ID}"))).unwrap();
        assert_eq!(saved["ipam"]["dataDir"], self.0.path("networks"));
        saved["ipam"].as_object_mut().unwrap().remove("dataDir");
        saved
    }

    /// The delegate's configuration of an ADD, whose delegate need not work.
    fn delegate_of(&mut self, more: &str, ipam: &str) -> Value {
        // A bridge that takes it, whatever it says.
        let file = self.0.path("bin/bridge");
        let _ = std::fs::remove_file(&file);
        let result = r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.1.17.2/24"},"dns":{}}"#;
        let script = format!("#!/bin/sh\ncat > /dev/null\n[ $CNI_COMMAND != ADD ] || echo '{result}'\n");
        std::fs::write(&file, script).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let answer = self.run("ADD", &format!(r#"{more},"nativeDelegate":false"#), ipam);
        assert!(self.0.exists(&format!("flannel/{ID}")), "{answer:?}");
        let saved = self.saved();
        self.run("DEL", more, ipam).ok();
        assert_eq!(self.0.saved(), Vec::<String>::new());
        saved
    }
}

fn networks(list: &[&str]) -> Value {
    list.iter().map(|net| json!({ "dst": net })).collect()
}

fn ranges(list: &[&str]) -> Value {
    list.iter().map(|net| json!([{ "subnet": net }])).collect()
}

#[test]
fn t1_to_t13_t18_add_when_families_differ_saves_the_suites_delegate_and_two_dels_are_fine() {
    for (env, routes, subnets, ips) in [
        (V4.to_owned(), vec!["10.1.0.0/16"], vec!["10.1.17.0/24"], 1),
        (
            SEVERAL.to_owned(),
            vec!["10.1.0.0/16", "192.168.0.0/16"],
            vec!["10.1.17.0/24"],
            1,
        ),
        (V6.to_owned(), vec!["fc00::/48"], vec!["fc00::/64"], 1),
        (
            format!("{V4}{V6}"),
            vec!["10.1.0.0/16", "fc00::/48"],
            vec!["10.1.17.0/24", "fc00::/64"],
            2,
        ),
    ] {
        let mut node = Node::new(&format!("{env}{REST}"));
        let answer = node.run("ADD", "", "").ok();
        let result = answer.json();
        let found = ["ip4", "ip6"].iter().filter(|key| result[**key].is_object());
        assert_eq!(found.count(), ips, "{}", answer.stdout);
        let expected = json!({
            "ipMasq": false,
            "ipam": { "routes": networks(&routes), "ranges": ranges(&subnets), "type": "host-local" },
            "isGateway": true,
            "mtu": 1472,
            "name": "cni-flannel",
            "type": "bridge",
        });
        assert_eq!(node.saved(), expected);
        for _ in 0..2 {
            node.run("DEL", "", "").ok();
            node.0.assert_nothing_left("cni-flannel");
        }
    }
}

#[test]
fn t14_to_t16_add_when_subnet_env_has_no_key_of_flannels_names_them_all() {
    let mut node = Node::new("foo=bar");
    let msg = node.run("ADD", "", "").failure().1;
    assert!(
        msg.contains("missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ"),
        "{msg}"
    );
    assert_eq!(node.0.saved(), Vec::<String>::new());
}

#[test]
fn t17_t19_to_t23_add_when_ipam_is_given_hands_it_on_with_routes_behind_its_own() {
    let given = r#","unknown-param":"u","routes":[{"dst":"10.96.0.0/12"},{"dst":"192.168.244.0/24","gw":"10.1.17.20"}]"#;
    for (env, own, subnets) in [
        (V4.to_owned(), vec!["10.1.0.0/16"], vec!["10.1.17.0/24"]),
        (V6.to_owned(), vec!["fc00::/48"], vec!["fc00::/64"]),
        (
            format!("{V4}{V6}"),
            vec!["10.1.0.0/16", "fc00::/48"],
            vec!["10.1.17.0/24", "fc00::/64"],
        ),
    ] {
        for (kind, key) in [("my-ipam", r#","type":"my-ipam""#), ("host-local", "")] {
            let mut node = Node::new(&format!("{env}{REST}"));
            let delegate = node.delegate_of("", &format!("{key}{given}"));
            let mut routes = vec![
                json!({ "dst": "10.96.0.0/12" }),
                json!({ "dst": "192.168.244.0/24", "gw": "10.1.17.20" }),
            ];
            routes.extend(own.iter().map(|net| json!({ "dst": net })));
            let expected =
                json!({ "type": kind, "unknown-param": "u", "routes": routes, "ranges": ranges(&subnets) });
            assert_eq!(delegate["ipam"], expected);
        }
    }
}

#[test]
fn p3_to_p6_add_when_subnet_env_is_odd_takes_or_refuses_it_as_go() {
    let good = format!("{V4}{REST}");
    let mut node = Node::new(&good.replace('\n', "\r\n"));
    assert_eq!(node.delegate_of("", "")["mtu"], 1472, "P3");
    let mut node = Node::new(&good.replace("=true", "=TRUE"));
    assert_eq!(node.delegate_of("", "")["ipMasq"], true, "P4");
    let mut node = Node::new(&good.replace("10.1.0.0/16", "10.1.9.9/16,192.168.0.0/16,10.1.0.0/16"));
    let routes = node.delegate_of("", "")["ipam"]["routes"].clone();
    assert_eq!(routes, networks(&["10.1.0.0/16", "192.168.0.0/16"]), "P5");
    for (odd, said) in [
        ("10.1.0.0/16,", "invalid CIDR address: . Check"),
        (
            "10.1.0.0/16, 10.2.0.0/16",
            "invalid CIDR address:  10.2.0.0/16. Check",
        ),
    ] {
        let mut node = Node::new(&good.replace("10.1.0.0/16", odd));
        let msg = node.run("ADD", "", "").failure().1;
        assert!(msg.contains(said), "P6: {msg}");
        assert_eq!(node.0.saved(), Vec::<String>::new());
    }
}

#[test]
fn p8_to_p11_add_when_keys_are_given_hands_on_what_go_does() {
    let mut node = Node::new(&format!("{V4}{REST}"));
    let plain = node.delegate_of("", "");
    assert_eq!(node.delegate_of(r#","delegate":null"#, ""), plain, "P8");
    let kept = node.delegate_of(
        r#","delegate":{"mtu":1300,"ipMasq":true,"isGateway":false,"hairpinMode":true}"#,
        "",
    );
    for (key, value) in [
        ("mtu", json!(1300)),
        ("ipMasq", json!(true)),
        ("isGateway", json!(false)),
        ("hairpinMode", json!(true)),
    ] {
        assert_eq!(kept[key], value, "P9: {key}");
    }
    let runtime = node.delegate_of(r#","runtimeConfig":{"mac":"02:00:00:00:00:07"}"#, "");
    assert_eq!(
        runtime["runtimeConfig"],
        json!({ "mac": "02:00:00:00:00:07" }),
        "P10"
    );
    let dropped = node.delegate_of(
        r#","args":{"cni":{"labels":[]}},"dns":{"nameservers":["192.0.2.1"]},"capabilities":{"mac":true},"whatever":1"#,
        "",
    );
    assert_eq!(dropped, plain, "P11");
}

#[test]
fn p19_version_when_asked_does_not_wait_for_stdin() {
    let mut host = Host::new();
    let call = host.call("flannel", "VERSION", String::new());
    // A fifo that somebody holds open and nobody writes to.
    let fifo = host.path("fifo");
    host.exec(&["mkfifo", &fifo]);
    let file = host.path("waiting");
    let script = format!(
        "#!/bin/sh\nexec 3<>{fifo}\nexec {} < {fifo}\n",
        call.program.display()
    );
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let call = Call {
        program: file.into(),
        ..call
    };
    let answer = host.run(&call).ok();
    assert_eq!(
        answer.stdout,
        "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n"
    );
}
