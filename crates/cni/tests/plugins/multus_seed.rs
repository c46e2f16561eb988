//! The two pods of a user's page on Calico and flannel under Multus, with its definition as written: no `name`, no folder, and
//! `isDefaultGateway`. Called from the host's own root (thin Multus) and from a container's by chroot (thick Multus).
//!
//! Calico itself needs a cluster; what stands for it is Debian's Go `ptp` on a subnet of its own, which leaves the same in a
//! pod: a first interface with the default route.

use serde_json::Value;

use crate::multus::{Multus, Pod, Selection};
use crate::rig::{GO_PLUGINS, Host};

const DEFINITION: &str = r#"{
    "cniVersion": "0.3.0",
    "type": "flannel",
    "delegate": {
      "isDefaultGateway": true
    }
  }"#;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Flavour {
    Thin,
    Thick,
}

/// Makes a root for the plugins in which the default paths are folders of this test, and `Multus` that calls into it.
fn node(host: &Host, flavour: Flavour) -> Multus {
    use std::os::unix::fs::PermissionsExt;
    let folder = host.folder.path().display().to_string();
    for name in [
        "flannel",
        "networks",
        "run/netns",
        "run/flannel",
        "hostroot",
        "start",
    ] {
        std::fs::create_dir_all(host.path(name)).unwrap();
    }
    std::fs::write(host.path("run/flannel/subnet.env"), "").unwrap();
    // A node with nothing but our executable under flannel's name, and the other network's plugin.
    for name in ["bridge", "host-local", "portmap", "bandwidth", "loopback"] {
        std::fs::remove_file(host.folder.path().join("bin").join(name)).unwrap();
    }
    for name in ["ptp", "host-local"] {
        std::fs::copy(
            format!("{GO_PLUGINS}/{name}"),
            host.folder.path().join("bin").join(name),
        )
        .unwrap();
    }
    let (root, enter) = match flavour {
        Flavour::Thin => (String::new(), "exec".to_owned()),
        Flavour::Thick => (
            format!("{folder}/hostroot"),
            format!("exec chroot {folder}/hostroot"),
        ),
    };
    let copy_root = match flavour {
        Flavour::Thin => String::new(),
        Flavour::Thick => format!("mount --rbind / {root}\n"),
    };
    for plugin in ["flannel", "ptp"] {
        let script = format!(
            "#!/bin/sh\nset -e\n\
            if [ -z \"$INSIDE\" ]; then INSIDE=1 exec unshare --mount \"$0\"; fi\nunset INSIDE\n{copy_root}\
            mount -t tmpfs none {root}/opt\nmkdir -p {root}/opt/cni/bin\nmount --bind {folder}/bin {root}/opt/cni/bin\n\
            mount -t tmpfs none {root}/var/lib\nmkdir -p {root}/var/lib/cni/networks {root}/var/lib/cni/flannel\n\
            mount --bind {folder}/networks {root}/var/lib/cni/networks\n\
            mount --bind {folder}/flannel {root}/var/lib/cni/flannel\n\
            mount --rbind /run/netns {folder}/run/netns\n\
            mount --bind {folder}/subnet.env {folder}/run/flannel/subnet.env\n\
            mount --rbind {folder}/run {root}/run\n\
            {enter} /opt/cni/bin/{plugin}\n"
        );
        let file = host.folder.path().join("start").join(plugin);
        std::fs::write(&file, script).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let calico = r#"{"cniVersion":"0.3.1","name":"k8s-pod-network","plugins":[{"type":"ptp","mtu":1480,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.200.235.192/26"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}"#;
    let mut multus = Multus::of(host, calico);
    multus.libcni.programs = vec![host.path("start").into()];
    multus.libcni.path = "/opt/cni/bin".to_owned();
    multus.definitions.insert("flannel-conf", DEFINITION.to_owned());
    multus
}

fn pod(host: &mut Host, i: usize) -> Pod {
    Pod {
        container: format!("{i:x}b7a491ec50{i:053x}"),
        netns: host.pod(i),
        networks: Vec::new(),
        default_network: None,
    }
}

/// Default routes in the order in which the kernel tries them: gateway and device.
fn default_routes(host: &Host, i: usize) -> Vec<(String, String)> {
    let routes: Value = serde_json::from_str(&host.pod_ip(i, &["-j", "-4", "route"])).unwrap();
    let word = |route: &Value, key: &str| route[key].as_str().unwrap().to_owned();
    let routes = routes.as_array().unwrap().iter();
    let defaults = routes.filter(|route| route["dst"] == "default");
    defaults
        .map(|route| (word(route, "gateway"), word(route, "dev")))
        .collect()
}

fn address_of(host: &Host, i: usize, ifname: &str) -> String {
    let link: Value =
        serde_json::from_str(&host.pod_ip(i, &["-j", "-4", "addr", "show", "dev", ifname])).unwrap();
    let info = &link[0]["addr_info"][0];
    format!("{}/{}", info["local"].as_str().unwrap(), info["prefixlen"])
}

fn assert_nothing_left(host: &Host, multus: &Multus) {
    for network in ["k8s-pod-network", "flannel-conf"] {
        host.assert_nothing_left(network);
    }
    multus.assert_nothing_left();
}

fn pair(gateway: &str, ifname: &str) -> (String, String) {
    (gateway.to_owned(), ifname.to_owned())
}

/// "flannel as `net1` beside Calico": `k8s.v1.cni.cncf.io/networks: default/flannel-conf`.
fn beside_another_plugin(flavour: Flavour) {
    let mut host = Host::new();
    let multus = node(&host, flavour);
    let mut pod = pod(&mut host, 0);
    pod.networks = vec![Selection::of("flannel-conf")];
    let answers = multus.add(&host, &pod).unwrap();
    assert_eq!(host.pod_links(0), ["eth0", "net1"]);
    assert_eq!(address_of(&host, 0, "eth0"), "10.200.235.194/26");
    assert_eq!(address_of(&host, 0, "net1"), "10.244.7.2/24");
    let link: Value = serde_json::from_str(&host.pod_ip(0, &["-j", "link", "show", "dev", "net1"])).unwrap();
    assert_eq!(link[0]["mtu"], 1450);
    // The definition says default gateway, and the kernel puts the later of two equal routes first: so it is with Go's
    // plugins, and so it stays. It is said, because it is rarely meant.
    assert_eq!(
        default_routes(&host, 0),
        [pair("10.244.7.1", "net1"), pair("10.200.235.193", "eth0")]
    );
    let said = &answers[1].stderr;
    assert!(
        said.contains("net1") && said.contains("eth0") && said.contains("isDefaultGateway"),
        "{said}"
    );
    assert_eq!(answers[0].stderr, "");
    host.pod_exec(
        0,
        &["ping", "-c1", "-W5", "-I", "10.200.235.194", "10.200.235.193"],
    );
    host.pod_exec(0, &["ping", "-c1", "-W5", "-I", "10.244.7.2", "10.244.7.1"]);
    assert_eq!(
        multus.libcni.cached(),
        [
            format!("flannel-conf-{}-net1", pod.container),
            format!("k8s-pod-network-{}-eth0", pod.container)
        ]
    );
    multus.del(&host, &pod, false).unwrap();
    assert_eq!(host.pod_links(0), Vec::<String>::new());
    assert_nothing_left(&host, &multus);
    // Once more: the saved list is gone, and whether the pod is still known or not nothing happens.
    multus.del(&host, &pod, true).unwrap();
    multus.del(&host, &pod, false).unwrap();
    assert_nothing_left(&host, &multus);
}

#[test]
fn seed_001_flannel_when_net1_beside_another_plugin_under_thin_multus_is_as_on_the_page() {
    beside_another_plugin(Flavour::Thin);
}

#[test]
fn seed_001_flannel_when_net1_beside_another_plugin_under_thick_multus_is_as_on_the_page() {
    beside_another_plugin(Flavour::Thick);
}

#[test]
fn default_route_when_multus_is_asked_for_it_or_the_definition_does_not_is_where_it_is_wanted() {
    let mut host = Host::new();
    let mut multus = node(&host, Flavour::Thin);
    let plain = r#"{"cniVersion":"0.3.0","type":"flannel"}"#;
    multus.definitions.insert("flannel-plain", plain.to_owned());
    let mut pod = pod(&mut host, 0);
    // Without `isDefaultGateway` eth0 keeps it, and the pods of flannel's network are reached by net1.
    pod.networks = vec![Selection::of("flannel-plain")];
    let answers = multus.add(&host, &pod).unwrap();
    assert_eq!(default_routes(&host, 0), [pair("10.200.235.193", "eth0")]);
    assert!(
        !answers[1].stderr.contains("isDefaultGateway"),
        "{}",
        answers[1].stderr
    );
    let towards = host.pod_ip(0, &["route", "get", "10.244.9.9"]);
    assert!(towards.contains("via 10.244.7.1 dev net1"), "{towards}");
    multus.del(&host, &pod, false).unwrap();
    host.assert_nothing_left("flannel-plain");
    // Asked by annotation it is net1's alone.
    pod.networks = vec![Selection {
        default_route: &["10.244.7.1"],
        ..Selection::of("flannel-conf")
    }];
    multus.add(&host, &pod).unwrap();
    assert_eq!(default_routes(&host, 0), [pair("10.244.7.1", "net1")]);
    multus.del(&host, &pod, false).unwrap();
    assert_nothing_left(&host, &multus);
}

/// "a pod on flannel": `v1.multus-cni.io/default-network: default/flannel-conf`.
fn as_default_network(flavour: Flavour) {
    let mut host = Host::new();
    let multus = node(&host, flavour);
    let pods: Vec<Pod> = (0..2)
        .map(|i| Pod {
            default_network: Some("flannel-conf"),
            ..pod(&mut host, i)
        })
        .collect();
    for (i, pod) in pods.iter().enumerate() {
        let answers = multus.add(&host, pod).unwrap();
        assert_eq!(answers.len(), 1);
        assert_eq!(
            answers[0].stderr, "",
            "the only default route is nothing to speak of"
        );
        assert_eq!(host.pod_links(i), ["eth0"]);
        assert_eq!(address_of(&host, i, "eth0"), format!("10.244.7.{}/24", 2 + i));
        assert_eq!(default_routes(&host, i), [pair("10.244.7.1", "eth0")]);
    }
    host.pod_exec(0, &["ping", "-c1", "-W5", "10.244.7.3"]);
    // Its node goes away with the first, without a DEL: namespaces and /run are empty then, the disk is not.
    host.remove_pod(0);
    multus.del(&host, &pods[0], false).unwrap();
    host.pod_exec(1, &["ping", "-c1", "-W5", "10.244.7.1"]);
    let without_namespace = Pod {
        netns: String::new(),
        ..pods[1].clone()
    };
    multus.del(&host, &without_namespace, false).unwrap();
    assert_eq!(host.pod_links(1), Vec::<String>::new());
    assert_nothing_left(&host, &multus);
}

#[test]
fn seed_001_flannel_when_default_network_under_thin_multus_is_as_on_the_page() {
    as_default_network(Flavour::Thin);
}

#[test]
fn seed_001_flannel_when_default_network_under_thick_multus_is_as_on_the_page() {
    as_default_network(Flavour::Thick);
}
