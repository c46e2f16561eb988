//! Clusters of one family and of two, with either backend: what is written of a Node, and that pods reach each other.

use lab::Families;
use lab::kube::PREFIX;
use lab::rig::{Rig, Wish};
use lab::store::Kind;
use serde_json::{Value, json};

use crate::peer::data;

/// All at once: each waits most of the time, for the controller manager to begin.
pub fn each() {
    let cases = [
        (Families::V4, json!({ "Type": "vxlan" })),
        (Families::V6, json!({ "Type": "vxlan" })),
        (Families::Both, json!({ "Type": "host-gw" })),
    ];
    std::thread::scope(|scope| {
        for (families, backend) in &cases {
            scope.spawn(move || one(*families, backend));
        }
    });
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
    for family in families.each() {
        let (key, device, address) = match family {
            4 => ("backend-data", "flannel.1", "public-ip"),
            _ => ("backend-v6-data", "flannel-v6.1", "public-ipv6"),
        };
        let published = if kind == "vxlan" {
            data(&mac(device))
        } else {
            "null".to_owned()
        };
        expected.push((key, published));
        expected.push((address, rig.lab.spec.host_address(1, family).to_string()));
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
