//! bandwidth: beside Go's plugin, on two attachments, and refusals (C13c).

use serde_json::Value;

use crate::rig::{Call, GO_PLUGINS, Host};

const LIMITS: &str = r#","runtimeConfig":{"bandwidth":{"ingressRate":8000000,"ingressBurst":800000,"egressRate":16000000,"egressBurst":1600000}}"#;

fn call(
    host: &mut Host,
    verb: &'static str,
    ifname: &'static str,
    previous: &Value,
    more: &str,
) -> Call<'static> {
    let stdin =
        format!(r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"bandwidth","prevResult":{previous}{more}}}"#);
    Call {
        ifname,
        ..host.call("bandwidth", verb, stdin)
    }
}

fn attach(host: &mut Host, ifname: &'static str) -> Value {
    let stdin = host.config("cbr0", "");
    let call = Call {
        ifname,
        ..host.call("flannel", "ADD", stdin)
    };
    host.run(&call).ok().json()
}

fn devices(host: &Host) -> Vec<String> {
    host.links()
        .into_iter()
        .filter(|l| l.starts_with("bwp"))
        .collect()
}

#[test]
fn limits_when_set_by_one_are_checked_and_removed_by_the_other() {
    let mut seen = Vec::new();
    for (adds, others) in [("ours", "go"), ("go", "ours")] {
        let mut host = Host::new();
        let result = attach(&mut host, "eth0");
        let by = |host: &mut Host, whose: &str, verb: &'static str, previous: &Value| -> Call<'static> {
            let mut made = call(host, verb, "eth0", previous, LIMITS);
            if whose == "go" {
                made.program = format!("{GO_PLUGINS}/bandwidth").into();
            }
            made
        };
        let add = by(&mut host, adds, "ADD", &result);
        let limited = host.run(&add).ok().json();
        assert_eq!(limited["interfaces"].as_array().unwrap().len(), 4);
        let qdiscs = host.exec(&["tc", "qdisc"]);
        let veth = result["interfaces"][1]["name"].as_str().unwrap();
        seen.push(qdiscs.replace(veth, "VETH"));
        for whose in ["ours", "go"] {
            let check = by(&mut host, whose, "CHECK", &limited);
            host.run(&check).ok();
        }
        let del = by(&mut host, others, "DEL", &limited);
        host.run(&del).ok();
        assert_eq!(devices(&host), Vec::<String>::new());
        host.run(&del).ok();
    }
    assert_eq!(seen[0], seen[1]);
    assert!(
        seen[0].contains("rate 8Mbit burst 100000b lat 25ms"),
        "{}",
        seen[0]
    );
}

#[test]
fn c13c_limits_when_set_on_two_attachments_of_a_container_do_not_meet() {
    for order in [["eth0", "net1"], ["net1", "eth0"]] {
        let mut host = Host::new();
        let results = ["eth0", "net1"].map(|ifname| (ifname, attach(&mut host, ifname)));
        let results = results.map(|(ifname, result)| {
            let add = call(&mut host, "ADD", ifname, &result, LIMITS);
            (ifname, host.run(&add).ok().json())
        });
        assert_eq!(devices(&host).len(), 2);
        for (left, ifname) in [(1, order[0]), (0, order[1])] {
            let (ifname, result) = results.iter().find(|(name, _)| *name == ifname).unwrap();
            let del = call(&mut host, "DEL", ifname, result, LIMITS);
            host.run(&del).ok();
            assert_eq!(devices(&host).len(), left);
            // Doubled, it takes nothing of the other's.
            host.run(&del).ok();
            assert_eq!(devices(&host).len(), left);
        }
    }
}

#[test]
fn del_when_the_configuration_is_one_that_add_refuses_still_removes_the_limits() {
    for more in [
        r#","ingressRate":8000"#,
        r#","runtimeConfig":7"#,
        r#","egressRate":"x","prevResult":{"cniVersion":"9"}"#,
    ] {
        let mut host = Host::new();
        let result = attach(&mut host, "eth0");
        let add = call(&mut host, "ADD", "eth0", &result, LIMITS);
        host.run(&add).ok();
        assert_eq!(devices(&host).len(), 1);
        let stdin = format!(r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"bandwidth"{more}}}"#);
        let refused = host.call("bandwidth", "ADD", stdin.clone());
        host.run(&refused).failure();
        let del = host.call("bandwidth", "DEL", stdin);
        host.run(&del).ok();
        assert_eq!(devices(&host), Vec::<String>::new(), "{more}");
    }
}

#[test]
fn calls_when_wrong_are_refused_and_without_limits_handed_on() {
    let mut host = Host::new();
    let result = attach(&mut host, "eth0");
    for (more, msg) in [
        (
            r#","ingressRate":8000"#,
            "if rate is set, burst must also be set: ingressRate is 8000, ingressBurst is not set",
        ),
        (
            r#","egressBurst":8000"#,
            "if burst is set, rate must also be set: egressBurst is 8000, egressRate is not set",
        ),
        (
            r#","runtimeConfig":{"bandwidth":{"ingressRate":8000}}"#,
            "if rate is set, burst must also be set: runtimeConfig.bandwidth.ingressRate is 8000, ingressBurst is not set",
        ),
        (
            r#","egressRate":8,"egressBurst":34359738368"#,
            "burst cannot be more than 4GB: egressBurst is 34359738368 bits",
        ),
        (
            r#","egressRate":1,"egressBurst":800"#,
            "invalid rate: 1: egressRate has to be 8 bits a second at least",
        ),
        (
            r#","egressRate":-1,"egressBurst":800"#,
            "failed to parse network configuration: egressRate is -1: expected a whole number of bits, not negative",
        ),
    ] {
        let add = call(&mut host, "ADD", "eth0", &result, more);
        assert_eq!(host.run(&add).failure().1, msg);
    }
    let add = call(&mut host, "ADD", "eth0", &result, "");
    assert_eq!(host.run(&add).ok().json(), result);
    let stdin = r#"{"cniVersion":"1.0.0","name":"cbr0","ingressRate":8000,"ingressBurst":8000}"#;
    let add = host.call("bandwidth", "ADD", stdin.to_owned());
    assert_eq!(host.run(&add).failure().1, "must be called as chained plugin");
    let old = host.call("bandwidth", "ADD", stdin.replace("1.0.0", "0.2.0"));
    assert_eq!(
        host.run(&old).failure().0,
        1,
        "results without interfaces say nothing to it"
    );
    let version = host.call("bandwidth", "VERSION", String::new());
    assert!(
        host.run(&version)
            .ok()
            .stdout
            .contains(r#""supportedVersions":["0.3.0","#)
    );
    assert_eq!(devices(&host), Vec::<String>::new());
}
