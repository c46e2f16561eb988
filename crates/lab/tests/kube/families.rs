//! Clusters of one family and of two, with either backend: what is written of a Node, and that pods reach each other.

use lab::Families;
use lab::kube::PREFIX;
use lab::rig::{Rig, Wish};
use lab::store::Kind;
use serde_json::{Value, json};

use crate::peer::data;

pub fn each() {
    for (families, backend) in [
        (Families::V4, json!({ "Type": "host-gw" })),
        (Families::V4, json!({ "Type": "vxlan" })),
        (Families::V6, json!({ "Type": "vxlan" })),
    ] {
        one(families, &backend);
    }
}

fn one(families: Families, backend: &Value) {
    let mut wish = Wish::of(families, backend.clone()).hosts(2);
    wish.store = Kind::Kube;
    let mut rig = Rig::start(&wish).unwrap();
    let cluster = rig.lab.cluster();
    let mac = |device: &str| {
        let link = lab::witness::link(rig.lab.host(1), device).unwrap().unwrap();
        link["address"].as_str().unwrap().to_owned()
    };
    let kind = backend["Type"].as_str().unwrap();
    let mut expected = vec![
        ("backend-type", kind.to_owned()),
        ("kube-subnet-manager", "true".to_owned()),
    ];
    match (kind, families) {
        ("host-gw", _) => expected.push(("backend-data", "null".to_owned())),
        (_, Families::V4) => expected.push(("backend-data", data(&mac("flannel.1")))),
        _ => expected.push(("backend-v6-data", data(&mac("flannel-v6.1")))),
    }
    let of_family = |family: u8| rig.lab.spec.host_address(1, family).to_string();
    match families {
        Families::V6 => expected.push(("public-ipv6", of_family(6))),
        _ => expected.push(("public-ip", of_family(4))),
    }
    expected.sort();
    let name = format!("annotations of a node of a cluster of family {families} with {kind}");
    rig.wait(&name, 10, |_| {
        let now = cluster.annotations("h1")?;
        let is_same = now
            .iter()
            .map(|(k, v)| (k.as_str(), v))
            .eq(expected.iter().map(|(k, v)| (*k, v)));
        Ok((!is_same).then(|| format!("{now:?}, and not {expected:?}")))
    })
    .unwrap();
    // As an administrator reads them.
    let text = cluster.kubectl(&["get", "node", "h1", "-o", "json"], "").unwrap();
    let object: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in &expected {
        assert_eq!(
            object["metadata"]["annotations"][format!("{PREFIX}{key}")],
            **value,
            "{name}"
        );
    }
    rig.lab.add_pods().unwrap();
    let matrix = rig.lab.matrix().unwrap();
    assert!(matrix.good(), "{name}: {:?}", matrix.bad());
    rig.wait_for_health().unwrap();
}
