//! C11: the node gets another lease while containers live on the old one.

use crate::rig::{Answer, Call, Host, ID};

const SECOND: &str = "5ec04d0123456789";

fn flannel(host: &mut Host, verb: &'static str, i: usize, more: &str) -> Answer {
    let stdin = host.config("cbr0", more);
    let call = Call {
        container: [ID, SECOND][i],
        netns: host.pod(i),
        ..host.call("flannel", verb, stdin)
    };
    host.run(&call)
}

fn change_lease(host: &Host) {
    host.subnet_env("10.244.0.0/16", "10.244.9.1/24", "", "", false);
}

fn masqueraded(host: &Host) -> usize {
    host.nat()
        .iter()
        .filter(|l| l.starts_with("-A POSTROUTING"))
        .count()
}

#[test]
fn c11_add_when_the_lease_has_changed_is_refused_in_gos_words_and_leaves_nothing() {
    let mut host = Host::new();
    host.subnet_env("10.244.0.0/16", "10.244.7.1/24", "", "", false);
    flannel(&mut host, "ADD", 0, "").ok();
    change_lease(&host);
    let refused = flannel(&mut host, "ADD", 1, "");
    let msg = "failed to set bridge addr: \"cni0\" already has an IP address different from 10.244.9.1/24";
    assert_eq!(refused.failure(), (999, msg.to_owned()));
    // The living one has lost nothing, and of the other nothing is there.
    assert_eq!(host.bridge_addresses(), ["10.244.7.1/24"]);
    host.pod_exec(0, &["ping", "-c1", "-W5", "10.244.7.1"]);
    assert_eq!(host.pod_links(1), Vec::<String>::new());
    assert_eq!(
        host.reservations("cbr0"),
        [("10.244.7.2".to_owned(), format!("{ID}\r\neth0"))]
    );
    assert_eq!(masqueraded(&host), 1);
    flannel(&mut host, "DEL", 1, "").ok();
    // The old container goes by what was saved for it; the new lease is usable once the operator has removed the address.
    flannel(&mut host, "DEL", 0, "").ok();
    assert_eq!(host.pod_links(0), Vec::<String>::new());
    host.assert_nothing_left("cbr0");
    host.ip(&["addr", "del", "10.244.7.1/24", "dev", "cni0"]);
    let added = flannel(&mut host, "ADD", 1, "").ok().addresses();
    assert_eq!(added, ["10.244.9.3/24"], "the refused ADD had .2");
    flannel(&mut host, "DEL", 1, "").ok();
    host.assert_nothing_left("cbr0");
}

#[test]
fn c11_add_when_the_lease_has_changed_and_the_address_is_forced_replaces_the_gateway() {
    let more = r#","delegate":{"isDefaultGateway":true,"forceAddress":true}"#;
    for order in [[0, 1], [1, 0]] {
        let mut host = Host::new();
        host.subnet_env("10.244.0.0/16", "10.244.7.1/24", "", "", false);
        flannel(&mut host, "ADD", 0, more).ok();
        change_lease(&host);
        assert_eq!(
            flannel(&mut host, "ADD", 1, more).ok().addresses(),
            ["10.244.9.2/24"]
        );
        assert_eq!(host.bridge_addresses(), ["10.244.9.1/24"]);
        host.pod_exec(1, &["ping", "-c1", "-W5", "10.244.9.1"]);
        assert_eq!(masqueraded(&host), 2);
        for (n, i) in order.into_iter().enumerate() {
            flannel(&mut host, "DEL", i, more).ok();
            assert_eq!(host.pod_links(i), Vec::<String>::new());
            assert_eq!(masqueraded(&host), 1 - n, "{order:?}");
            assert_eq!(host.reservations("cbr0").len(), 1 - n, "{order:?}");
        }
        host.assert_nothing_left("cbr0");
    }
}

#[test]
fn c11_del_when_the_lease_and_subnet_env_are_gone_removes_what_was_made() {
    let mut host = Host::new();
    host.subnet_env("10.244.0.0/16", "10.244.7.1/24", "", "", false);
    for i in [0, 1] {
        flannel(&mut host, "ADD", i, "").ok();
    }
    std::fs::remove_file(host.path("subnet.env")).unwrap();
    let refused = flannel(&mut host, "ADD", 0, "").failure().1;
    assert!(
        refused.contains("subnet.env: no such file or directory. Check the flannel pod log"),
        "{refused}"
    );
    assert_eq!(host.reservations("cbr0").len(), 2);
    for i in [0, 1] {
        flannel(&mut host, "DEL", i, "").ok();
        assert_eq!(host.pod_links(i), Vec::<String>::new());
    }
    host.assert_nothing_left("cbr0");
}
