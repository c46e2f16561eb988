//! The chart by its rendered copies: of this chart, as the manifest, and with values.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::objects::{MANIFEST, at, differences, inner, named, objects, output, read, rights, root, texts};

const COPIES: [&str; 4] = ["default", "vxlan", "ipv6", "bare"];

fn copy(name: &str) -> String {
    format!("deploy/chart/rendered/{name}.yaml")
}

#[test]
fn copies_are_of_the_chart_as_it_is() {
    let digest = output(&root().join("scripts/render-deploy"), &["--digest"]);
    for name in COPIES {
        let text = read(&copy(name));
        let head = text.lines().next().unwrap();
        assert!(
            head.contains(digest.trim()),
            "{name}.yaml is of another chart: scripts/render-deploy makes it anew"
        );
    }
    let values = std::fs::read_dir(root().join("deploy/chart/rendered")).unwrap();
    assert_eq!(values.count(), 2 * COPIES.len() - 1);
}

/// The chart makes no Namespace, since helm has one to be told; and as flannel's own chart it stays on nodes that others are evicted from.
#[test]
fn copy_when_nothing_is_set_is_the_manifest_but_for_the_namespace_and_a_toleration() {
    let (mut expected, mut found) = (objects(MANIFEST), objects(&copy("default")));
    assert!(expected.remove("Namespace kube-flannel").is_some());
    for all in [&mut expected, &mut found] {
        // As documents, not as text.
        let config = all.get_mut("ConfigMap kube-flannel-cfg").unwrap();
        for key in ["cni-conf.json", "net-conf.json"] {
            let document = inner(config, key);
            config["data"][key] = document;
        }
    }
    let mut different = BTreeSet::new();
    differences(&json!(expected), &json!(found), "", &mut different);
    let named = ["/DaemonSet kube-flannel-ds/spec/template/spec/tolerations"];
    assert_eq!(different, named.map(str::to_owned).into());
    assert_eq!(
        at(
            &found["DaemonSet kube-flannel-ds"],
            "/spec/template/spec/tolerations"
        ),
        &json!([
            { "effect": "NoExecute", "operator": "Exists" },
            { "effect": "NoSchedule", "operator": "Exists" },
        ])
    );
}

fn pod(name: &str) -> Value {
    let objects = objects(&copy(name));
    at(&objects["DaemonSet kube-flannel-ds"], "/spec/template/spec").clone()
}

fn network(name: &str) -> Value {
    inner(
        &objects(&copy(name))["ConfigMap kube-flannel-cfg"],
        "net-conf.json",
    )
}

fn flanneld(pod: &Value) -> &Value {
    named(pod, "/containers")["kube-flannel"]
}

#[test]
fn copy_when_all_values_of_vxlan_are_set_says_them_where_they_belong() {
    assert_eq!(
        network("vxlan"),
        json!({
            "Network": "10.42.0.0/16",
            "IPv6Network": "2001:cafe:42::/56",
            "EnableIPv6": true,
            "EnableNFTables": true,
            "Backend": {
                "Type": "vxlan", "Port": 4789, "VNI": 4096, "MTU": 1400, "GBP": true, "DirectRouting": true,
                "MacPrefix": "0E-2B",
            },
        })
    );
    let pod = pod("vxlan");
    let inits = named(&pod, "/initContainers");
    assert_eq!(
        inits["install-cni-plugin"]["image"],
        "registry.example.com/flannel-cni-plugin:v1"
    );
    // The plugin's image of others has nothing else that could install it.
    assert_eq!(texts(inits["install-cni-plugin"].get("command")), ["cp"]);
    assert_eq!(
        texts(inits["install-cni-plugin"].get("args")),
        ["-f", "/flannel", "/opt/cni/bin/flannel"]
    );
    assert_eq!(inits["install-cni"]["image"], "registry.example.com/flannel:edge");
    let flanneld = flanneld(&pod);
    assert_eq!(flanneld["image"], "registry.example.com/flannel:edge");
    assert_eq!(
        texts(flanneld.get("args")),
        [
            "--ip-masq",
            "--kube-subnet-mgr",
            "--iface=eth1",
            "--healthz-port=8081"
        ]
    );
    let volumes = named(&pod, "/volumes");
    assert_eq!(
        volumes["cni-plugin"]["hostPath"]["path"],
        "/var/lib/rancher/k3s/data/cni"
    );
    assert_eq!(
        volumes["cni"]["hostPath"]["path"],
        "/var/lib/rancher/k3s/agent/etc/cni/net.d"
    );
    assert_eq!(pod["imagePullSecrets"], json!([{ "name": "pull" }]));
    assert_eq!(pod["nodeSelector"], json!({ "kubernetes.io/arch": "amd64" }));
    assert_eq!(pod["tolerations"], json!([{ "operator": "Exists" }]));
}

#[test]
fn copy_when_there_is_no_ipv4_says_so_and_serves_health_where_probes_come() {
    assert_eq!(
        network("ipv6"),
        json!({
            "EnableIPv4": false,
            "IPv6Network": "fd00:244::/48",
            "EnableIPv6": true,
            "EnableNFTables": false,
            // Options that the backend does not know are not said.
            "Backend": { "Type": "host-gw" },
        })
    );
    assert_eq!(
        texts(flanneld(&pod("ipv6")).get("args")),
        [
            "--ip-masq",
            "--kube-subnet-mgr",
            "--healthz-port=8081",
            "--healthz-ip=::"
        ]
    );
}

#[test]
fn copy_when_parts_are_switched_off_or_on_has_them_not_or_has_them() {
    assert_eq!(
        at(&network("bare"), "/Backend"),
        &json!({
            "Type": "wireguard", "ListenPort": 51821, "ListenPortV6": 51822, "PSK": "a secret", "MTU": 1380,
            "Mode": "separate", "PersistentKeepaliveInterval": 25,
        })
    );
    let pod = pod("bare");
    let inits = named(&pod, "/initContainers");
    assert_eq!(inits.keys().copied().collect::<Vec<_>>(), ["install-cni-plugin"]);
    let flanneld = flanneld(&pod);
    for absent in ["ports", "livenessProbe", "readinessProbe", "resources"] {
        assert_eq!(flanneld.get(absent), None, "{absent}");
    }
    assert_eq!(texts(flanneld.get("args")), ["--ip-masq", "--kube-subnet-mgr"]);
    let policies = named(&pod, "/containers")["kube-network-policies"];
    assert_eq!(policies["securityContext"]["privileged"], true);
    let more: BTreeSet<String> = rights(&objects(&copy("bare"))["ClusterRole flannel"])
        .difference(&rights(&objects(MANIFEST)["ClusterRole flannel"]))
        .cloned()
        .collect();
    assert!(
        more.contains("networking.k8s.io/networkpolicies watch") && more.contains("/namespaces list"),
        "{more:?}"
    );
}
