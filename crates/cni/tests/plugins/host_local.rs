//! host-local by itself.

use crate::rig::{Answer, Call, Host, ID};

fn config(host: &Host, ipam: &str, more: &str) -> String {
    format!(
        r#"{{"cniVersion":"1.0.0","name":"net","type":"ipvlan","ipam":{{"type":"host-local","dataDir":"{}"{ipam}}}{more}}}"#,
        host.path("networks")
    )
}

fn run(host: &mut Host, verb: &'static str, container: &str, ipam: &str, more: &str) -> Answer {
    let stdin = config(host, ipam, more);
    let call = host.call("host-local", verb, stdin);
    let call = Call { container, ..call };
    host.run(&call)
}

const SMALL: &str = r#","ranges":[[{"subnet":"10.64.0.0/29"}]]"#;

#[test]
fn addresses_when_handed_out_go_round_and_end() {
    let mut host = Host::new();
    let add = |host: &mut Host, id: &str| run(host, "ADD", id, SMALL, "").ok().addresses().remove(0);
    assert_eq!(add(&mut host, "a"), "10.64.0.2/29");
    assert_eq!(add(&mut host, "b"), "10.64.0.3/29");
    run(&mut host, "DEL", "a", SMALL, "").ok();
    assert_eq!(add(&mut host, "c"), "10.64.0.4/29", "a released one is used last");
    assert_eq!(add(&mut host, "d"), "10.64.0.5/29");
    assert_eq!(add(&mut host, "e"), "10.64.0.6/29");
    assert_eq!(add(&mut host, "f"), "10.64.0.2/29");
    let answer = run(&mut host, "ADD", "g", SMALL, "");
    let msg = "failed to allocate for range 0: no IP addresses available in range set: 10.64.0.1-10.64.0.6";
    assert_eq!(answer.failure(), (999, msg.to_owned()));
    let details = answer.json()["details"].as_str().unwrap().to_owned();
    assert!(
        details.starts_with("5 held in ") && details.contains("10.64.0.3 by b eth0"),
        "{details}"
    );
    let status = config(&host, SMALL, "").replace("1.0.0", "1.1.0");
    let call = host.call("host-local", "STATUS", status.clone());
    assert_eq!(host.run(&call).failure().0, 50);
    run(&mut host, "DEL", "b", SMALL, "").ok();
    assert_eq!(host.run(&call).ok().stdout, "");
    assert_eq!(host.read("networks/net/last_reserved_ip.0"), "10.64.0.2");
}

#[test]
fn requested_addresses_when_given_are_taken_or_refused_in_gos_words() {
    let mut host = Host::new();
    let asked = |ips: &str| format!(r#","runtimeConfig":{{"ips":{ips}}}"#);
    assert_eq!(
        run(&mut host, "ADD", "a", SMALL, &asked(r#"["10.64.0.5/29"]"#))
            .ok()
            .addresses(),
        ["10.64.0.5/29"]
    );
    let refused = |host: &mut Host, ips: &str| run(host, "ADD", "b", SMALL, &asked(ips)).failure().1;
    assert_eq!(
        refused(&mut host, r#"["10.64.0.5"]"#),
        "failed to allocate for range 0: requested IP address 10.64.0.5 is not available in range set 10.64.0.1-10.64.0.6"
    );
    assert_eq!(
        refused(&mut host, r#"["10.64.0.1"]"#),
        "failed to allocate for range 0: requested ip 10.64.0.1 is subnet's gateway"
    );
    assert_eq!(
        refused(&mut host, r#"["10.99.0.1"]"#),
        "failed to allocate all requested IPs: 10.99.0.1"
    );
    assert_eq!(host.reservations("net").len(), 1, "nothing stays of a refusal");
    // The pointer went to .5 with the first request and to .6 with the last refusal, which had taken that one already.
    assert_eq!(
        run(&mut host, "ADD", "c", SMALL, "").ok().addresses(),
        ["10.64.0.2/29"]
    );
    let stdin = config(&host, SMALL, "");
    let mut call = host.call("host-local", "ADD", stdin);
    call.args = "IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.64.0.3";
    assert_eq!(host.run(&call).ok().addresses(), ["10.64.0.3/29"]);
}

#[test]
fn container_when_it_asks_again_is_refused_and_its_first_address_stays() {
    let mut host = Host::new();
    run(&mut host, "ADD", "c1", SMALL, "").ok();
    let msg = "failed to allocate for range 0: 10.64.0.2 has been allocated to c1, duplicate allocation is not allowed";
    assert_eq!(
        run(&mut host, "ADD", "c1", SMALL, "").failure(),
        (999, msg.to_owned())
    );
    assert_eq!(
        host.reservations("net"),
        [("10.64.0.2".to_owned(), "c1\r\neth0".to_owned())]
    );
    run(&mut host, "CHECK", "c1", SMALL, "").ok();
    run(&mut host, "DEL", "c1", SMALL, "").ok();
    run(&mut host, "DEL", "c1", SMALL, "").ok();
    let msg = "host-local: Failed to find address added by container c1";
    assert_eq!(run(&mut host, "CHECK", "c1", SMALL, "").failure().1, msg);
}

#[test]
fn second_range_set_when_full_releases_the_first() {
    let mut host = Host::new();
    let two = r#","ranges":[[{"subnet":"10.64.0.0/24"}],[{"subnet":"fd00::/126"}]],"routes":[{"dst":"::/0"}],"resolvConf":"/etc/resolv.conf""#;
    let without = two.replace(r#","resolvConf":"/etc/resolv.conf""#, "");
    let first = run(&mut host, "ADD", "a", &without, "").ok();
    assert_eq!(first.addresses(), ["10.64.0.2/24", "fd00::2/126"]);
    assert_eq!(first.json()["routes"][0]["dst"], "::/0");
    run(&mut host, "ADD", "b", &without, "").ok();
    let (_, msg) = run(&mut host, "ADD", "c", &without, "").failure();
    assert_eq!(
        msg,
        "failed to allocate for range 1: no IP addresses available in range set: fd00::1-fd00::3"
    );
    assert_eq!(host.reservations("net").len(), 4);
    std::fs::write(host.path("resolv"), "nameserver 192.0.2.1\nsearch a b\n").unwrap();
    let with = format!(r#"{SMALL},"resolvConf":"{}""#, host.path("resolv"));
    let result = run(&mut host, "ADD", "d", &with, "").ok().json();
    assert_eq!(result["dns"]["nameservers"][0], "192.0.2.1");
}

#[test]
fn w19_addresses_when_files_are_empty_or_foreign_are_free_or_left_alone() {
    let mut host = Host::new();
    run(&mut host, "ADD", "a", SMALL, "").ok();
    // Cut off by a power failure, and what others keep in the folder.
    std::fs::write(host.path("networks/net/10.64.0.2"), "").unwrap();
    std::fs::write(host.path("networks/net/10.64.0.3"), "").unwrap();
    std::fs::write(host.path("networks/net/README"), "mine").unwrap();
    std::fs::write(host.path("networks/net/last_reserved_ip.0"), "").unwrap();
    let taken: Vec<String> = ["b", "c"]
        .iter()
        .map(|id| run(&mut host, "ADD", id, SMALL, "").ok().addresses().remove(0))
        .collect();
    assert_eq!(taken, ["10.64.0.2/29", "10.64.0.3/29"]);
    run(&mut host, "DEL", "a", SMALL, "").ok();
    assert_eq!(host.reservations("net").len(), 2);
    assert_eq!(host.read("networks/net/README"), "mine");
}

#[test]
fn gc_when_given_a_list_keeps_exactly_that_and_without_one_keeps_all() {
    let mut host = Host::new();
    for id in ["a", "b", "c"] {
        run(&mut host, "ADD", id, SMALL, "").ok();
    }
    let gc = |host: &mut Host, list: &str| {
        let stdin = config(host, SMALL, list).replace("1.0.0", "1.1.0");
        let call = host.call("host-local", "GC", stdin);
        host.run(&call).ok();
        host.reservations("net").len()
    };
    assert_eq!(gc(&mut host, ""), 3);
    let valid = r#","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"},{"containerID":"b","ifname":"net1"}]"#;
    assert_eq!(gc(&mut host, valid), 1);
    assert_eq!(gc(&mut host, r#","cni.dev/valid-attachments":[]"#), 0);
}

#[test]
fn id_only_files_when_left_by_old_versions_are_found_and_released() {
    let mut host = Host::new();
    std::fs::create_dir_all(host.path("networks/net")).unwrap();
    std::fs::write(host.path("networks/net/10.64.0.4"), format!("  {ID}\n")).unwrap();
    run(&mut host, "CHECK", ID, SMALL, "").ok();
    run(&mut host, "DEL", ID, SMALL, "").ok();
    assert_eq!(host.reservations("net"), []);
}

#[test]
fn pool_when_it_is_full_says_as_go_does_and_then_who_holds_it_and_how_many_look_dead() {
    let mut host = Host::new();
    host.subnet_env("10.244.0.0/16", "10.244.9.1/29", "", "", true);
    let add = |host: &mut Host, i: usize, network: &str, ifname: &'static str| {
        let stdin = host.config(network, "");
        let container = format!("pod{i}");
        let call = Call {
            container: &container,
            netns: host.pod(i),
            ifname,
            ..host.call("flannel", "ADD", stdin)
        };
        host.run(&call)
    };
    for i in 0..4 {
        add(&mut host, i, "cbr0", "eth0").ok();
    }
    add(&mut host, 0, "second", "net1").ok();
    let full = |host: &mut Host| {
        let answer = add(host, 4, "cbr0", "eth0");
        let (code, msg) = answer.failure();
        assert_eq!(
            (code, msg.as_str()),
            (
                999,
                "failed to allocate for range 0: no IP addresses available in range set: 10.244.9.1-10.244.9.6"
            )
        );
        answer.json()["details"].as_str().unwrap().to_owned()
    };
    let details = full(&mut host);
    assert!(
        details.starts_with("4 held in ") && details.contains("10.244.9.2 by pod0 eth0"),
        "{details}"
    );
    assert!(
        details.contains("; 1 in other networks of flannel's; none of them looks dead"),
        "{details}"
    );
    for i in [1, 2] {
        host.pod_ip(i, &["link", "del", "eth0"]);
    }
    let details = full(&mut host);
    assert!(
        details.contains("; 2 of them look dead") && details.contains("`flannelctl ipam gc` frees them"),
        "{details}"
    );
}
