//! CHECK, STATUS and GC (C13, P20).

use serde_json::Value;

use crate::rig::{Answer, Call, Host, ID};

fn at_1_1(host: &Host, more: &str) -> String {
    host.config("cbr0", more).replace("1.0.0", "1.1.0")
}

fn run(host: &mut Host, verb: &'static str, more: &str) -> Answer {
    let stdin = at_1_1(host, more);
    let call = host.call("flannel", verb, stdin);
    host.run(&call)
}

#[test]
fn p20_status_when_an_add_would_fail_says_50_and_why() {
    let mut host = Host::new();
    assert_eq!(run(&mut host, "STATUS", "").ok().stdout, "");
    let path = host.path("subnet.env");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("FLANNEL_MTU", "X")).unwrap();
    let (code, msg) = run(&mut host, "STATUS", "").failure();
    assert!(code == 50 && msg.contains("is missing FLANNEL_MTU"), "{msg}");
    std::fs::remove_file(&path).unwrap();
    let (code, msg) = run(&mut host, "STATUS", "").failure();
    assert!(
        code == 50 && msg.contains(&format!("open {path}: no such file or directory")),
        "{msg}"
    );
    std::fs::write(&path, text.replace("/24", "/30")).unwrap();
    run(&mut host, "STATUS", "").ok();
    // A pool of one, which is taken.
    run(&mut host, "ADD", "").ok();
    let (code, msg) = run(&mut host, "STATUS", "").failure();
    assert!(
        code == 50 && msg.starts_with("no IP addresses available in range set: "),
        "{msg}"
    );
    run(&mut host, "DEL", "").ok();
    let (code, msg) = run(&mut host, "STATUS", r#","delegate":{"type":"nosuch"}"#).failure();
    assert!(
        code == 50 && msg.starts_with("failed to find plugin \"nosuch\""),
        "{msg}"
    );
}

#[test]
fn c13_gc_when_given_a_list_deletes_the_others_and_without_one_nothing() {
    let mut host = Host::new();
    host.subnet_env("10.244.0.0/16", "10.244.7.1/24", "", "", false);
    let ids = ["a", "b", "c"];
    for (i, id) in ids.iter().enumerate() {
        let stdin = at_1_1(&host, "");
        let call = Call {
            container: id,
            netns: host.pod(i),
            ..host.call("flannel", "ADD", stdin)
        };
        host.run(&call).ok();
    }
    let held = |host: &Host| host.reservations("cbr0").len();
    run(&mut host, "GC", "").ok();
    assert_eq!(held(&host), 3, "no list says nothing about anybody");
    // b's container is gone without a DEL; c's is so young that the list may just not have it yet.
    host.pod_ip(1, &["link", "del", "eth0"]);
    let list = r#","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]"#;
    run(&mut host, "GC", list).ok();
    let contents: Vec<String> = host
        .reservations("cbr0")
        .into_iter()
        .map(|(_, content)| content)
        .collect();
    assert_eq!(contents, ["a\r\neth0", "c\r\neth0"]);
    assert!(!host.exists("flannel/b") && host.exists("flannel/c"));
    assert_eq!(
        host.nat()
            .iter()
            .filter(|l| l.starts_with("-A POSTROUTING"))
            .count(),
        2
    );
    // An empty list: all that are not young and alive.
    host.pod_ip(0, &["link", "del", "eth0"]);
    host.pod_ip(2, &["link", "del", "eth0"]);
    run(&mut host, "GC", r#","cni.dev/valid-attachments":[]"#).ok();
    host.assert_nothing_left("cbr0");
}

#[test]
fn gc_when_nothing_was_saved_frees_reservations_and_rules_of_the_unlisted() {
    let mut host = Host::new();
    host.subnet_env("10.244.0.0/16", "10.244.7.1/24", "", "", false);
    host.flannel("ADD").ok();
    std::fs::remove_dir_all(host.path("flannel")).unwrap();
    host.pod_ip(0, &["link", "del", "eth0"]);
    assert!(!host.nat().is_empty());
    run(&mut host, "GC", r#","cni.dev/valid-attachments":[]"#).ok();
    host.assert_nothing_left("cbr0");
}

#[test]
fn check_when_something_of_the_attachment_is_gone_names_it() {
    let mut host = Host::new();
    let result = host.flannel("ADD").ok().json();
    let of_flannel = |host: &mut Host| -> Answer {
        let stdin = host.config("cbr0", &format!(r#","prevResult":{result}"#));
        let call = host.call("flannel", "CHECK", stdin);
        host.run(&call)
    };
    of_flannel(&mut host).ok();
    let delegate: Value = serde_json::from_str(&host.read(&format!("flannel/{ID}"))).unwrap();
    let check = |host: &mut Host| -> Answer {
        let mut stdin = delegate.clone();
        stdin["prevResult"] = result.clone();
        let call = host.call("bridge", "CHECK", stdin.to_string());
        host.run(&call)
    };
    check(&mut host).ok();
    host.pod_ip(0, &["route", "del", "10.244.0.0/16"]);
    assert_eq!(
        check(&mut host).failure().1,
        "Expected Route 10.244.0.0/16 via 10.244.7.1 is not in the routing table"
    );
    assert_eq!(
        of_flannel(&mut host).failure(),
        check(&mut host).failure(),
        "flannel asks its delegate"
    );
    host.pod_ip(0, &["addr", "flush", "dev", "eth0"]);
    assert_eq!(
        check(&mut host).failure().1,
        "Failed to match addr 10.244.7.2/24 on interface eth0"
    );
    let veth = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
    host.ip(&["link", "set", &veth, "nomaster"]);
    assert_eq!(
        check(&mut host).failure().1,
        "CNI veth created for bridge cni0 was not found"
    );
    std::fs::remove_file(host.path("networks/cbr0/10.244.7.2")).unwrap();
    let msg = format!("host-local: Failed to find address added by container {ID}");
    assert_eq!(check(&mut host).failure().1, msg);
}

#[test]
fn del_when_the_namespace_lives_on_without_a_path_takes_the_link_with_the_address() {
    let mut host = Host::new();
    host.flannel("ADD").ok();
    let stdin = host.config("cbr0", "");
    let mut del = host.call("flannel", "DEL", stdin);
    del.netns = String::new();
    host.run(&del).ok();
    assert_eq!(host.pod_links(0), Vec::<String>::new());
    host.assert_nothing_left("cbr0");
}
