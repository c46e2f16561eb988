use std::collections::BTreeMap;

use super::*;
use crate::lease::Lease;
use crate::object::{Link, LinkKind, Mac, Op, Route};

pub(crate) fn network(json: &str) -> NetworkConfig {
    NetworkConfig::parse(json.as_bytes()).unwrap()
}

pub(crate) fn node_of(backend: &dyn Backend, network: NetworkConfig, subnet: &str) -> Node {
    let underlay = Underlay {
        link: LinkName::new("eth0").unwrap(),
        mtu: 1500,
        address4: network.v4.map(|_| "192.0.2.1".parse().unwrap()),
        address6: network.v6.map(|_| "2001:db8::1".parse().unwrap()),
        public4: network.v4.map(|_| "192.0.2.1".parse().unwrap()),
        public6: network.v6.map(|_| "2001:db8::1".parse().unwrap()),
    };
    let subnet = Subnet::parse_key(subnet).unwrap();
    let identity = backend.identity(&network, &subnet, &Objects::new(), None);
    Node {
        network,
        underlay,
        subnet,
        identity,
        direct: BTreeMap::new(),
    }
}

pub(crate) fn lease(key: &str, value: &str, created: i64) -> Lease {
    Lease {
        subnet: Subnet::parse_key(key).unwrap(),
        attributes: Attributes::parse(value.as_bytes()).unwrap(),
        created,
    }
}

const DUAL: &str = r#"{"Network":"10.244.0.0/16","IPv6Network":"fd00:10:244::/48","EnableIPv6":true,"Backend":{"Type":"vxlan"}}"#;
const PEER: &str = r#"{"PublicIP":"192.0.2.2","PublicIPv6":"2001:db8::2","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:02"},"BackendV6Data":{"VNI":1,"VtepMAC":"0a:00:00:00:06:02"}}"#;

fn dual() -> (Box<dyn Backend>, Node) {
    let network = network(DUAL);
    let backend = backend(&network.backend).unwrap();
    let node = node_of(&*backend, network, "10.244.1.0-24&fd00:10:244:1::-64");
    (backend, node)
}

fn texts(objects: &[Object]) -> Vec<String> {
    objects.iter().map(ToString::to_string).collect()
}

#[test]
fn peer_objects_when_dual_stack_vxlan_then_the_six_of_appendix_b1() {
    let (backend, node) = dual();
    let plan = plan_peer(
        &*backend,
        &node,
        &lease("10.244.2.0-24&fd00:10:244:2::-64", PEER, 1),
    );
    assert_eq!(plan.problems, []);
    assert_eq!(
        texts(&plan.objects),
        [
            "neighbour 10.244.2.0 lladdr 0a:00:00:00:00:02 dev flannel.1 permanent",
            "fdb 0a:00:00:00:00:02 dst 192.0.2.2 dev flannel.1 self permanent",
            "route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
            "neighbour fd00:10:244:2:: lladdr 0a:00:00:00:06:02 dev flannel-v6.1 permanent",
            "fdb 0a:00:00:00:06:02 dst 2001:db8::2 dev flannel-v6.1 self permanent",
            "route fd00:10:244:2::/64 via fd00:10:244:2:: dev flannel-v6.1 onlink",
        ]
    );
}

#[test]
fn own_objects_when_dual_stack_then_each_device_has_the_mtu_its_underlay_leaves() {
    let (backend, node) = dual();
    let own = backend.own_objects(&node);
    assert_eq!(texts(&own)[0], "address 10.244.1.0/32 dev flannel.1");
    assert!(
        texts(&own)[1].starts_with("link flannel.1 mtu 1450 up"),
        "{:?}",
        texts(&own)
    );
    assert_eq!(texts(&own)[2], "address fd00:10:244:1::/128 dev flannel-v6.1");
    assert!(
        texts(&own)[3].starts_with("link flannel-v6.1 mtu 1430 up"),
        "{:?}",
        texts(&own)
    );
    assert_eq!(backend.mtu(&node.network, &node.underlay), Ok(1430));
}

#[test]
fn peer_when_one_half_is_bad_then_the_other_is_served_and_the_bad_one_named() {
    let (backend, node) = dual();
    let bad = PEER.replace("0a:00:00:00:06:02", "");
    let plan = plan_peer(
        &*backend,
        &node,
        &lease("10.244.2.0-24&fd00:10:244:2::-64", &bad, 1),
    );
    assert_eq!(plan.objects.len(), 3);
    assert_eq!(plan.problems.len(), 1);
    assert!(
        plan.problems[0].to_string().contains("IPv6"),
        "{:?}",
        plan.problems
    );
}

#[test]
fn peer_when_it_lacks_a_family_then_the_common_one_is_served_without_a_problem() {
    let (backend, node) = dual();
    let v011 =
        r#"{"PublicIP":"192.0.2.2","BackendType":"vxlan","BackendData":{"VtepMAC":"0a:00:00:00:00:02"}}"#;
    let plan = plan_peer(&*backend, &node, &lease("10.244.2.0-24", v011, 1));
    assert_eq!((plan.objects.len(), plan.problems.len()), (3, 0));
}

#[test]
fn peer_when_lease_would_harm_this_node_then_no_objects() {
    let (backend, node) = dual();
    let cases = [
        ("10.9.2.0-24", PEER.to_owned(), "not inside"),
        ("10.244.1.128-25", PEER.to_owned(), "overlaps our own"),
        (
            "10.244.2.0-24",
            PEER.replace("192.0.2.2", "192.0.2.1"),
            "is our own",
        ),
        (
            "10.244.2.0-24",
            PEER.replace("192.0.2.2", "0.0.0.0"),
            "has no PublicIP",
        ),
        (
            "10.244.2.0-24",
            PEER.replace("192.0.2.2", "224.0.0.1"),
            "not a host",
        ),
        (
            "10.244.2.0-24",
            PEER.replace("0a:00:00:00:00:02", "01:00:00:00:00:02"),
            "unicast",
        ),
        (
            "10.244.2.0-24",
            PEER.replace("\"vxlan\"", "\"host-gw-x\""),
            "backend type",
        ),
    ];
    for (key, value, expected) in cases {
        let plan = plan_peer(&*backend, &node, &lease(key, &value, 1));
        assert_eq!(plan.objects, [], "{key} {value}");
        assert!(
            plan.problems[0].to_string().contains(expected),
            "{:?}",
            plan.problems
        );
    }
}

#[test]
fn peer_when_direct_routing_and_on_link_then_one_plain_route() {
    let network = network(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#);
    let backend = backend(&network.backend).unwrap();
    let mut node = node_of(&*backend, network, "10.244.1.0-24");
    let peer = lease("10.244.2.0-24", PEER, 1);
    assert_eq!(plan_peer(&*backend, &node, &peer).objects.len(), 3);
    node.direct
        .insert("192.0.2.2".parse().unwrap(), node.underlay.link);
    let plan = plan_peer(&*backend, &node, &peer);
    assert_eq!(
        texts(&plan.objects),
        ["route 10.244.2.0/24 via 192.0.2.2 dev eth0"]
    );
}

#[test]
fn identity_when_device_exists_then_its_mac_else_the_lease_else_derived_and_stable() {
    let (backend, node) = dual();
    let own = backend.own_objects(&node);
    let Object::Link(link) = &own[1] else {
        panic!("no link")
    };
    let mut device: Link = (**link).clone();
    device.mac = Mac::parse("0e:11:22:33:44:55");
    let observed: Objects = [Object::Link(Box::new(device.clone()))].into();
    let published = Attributes::parse(PEER.as_bytes()).unwrap();
    let mac4 = |observed: &Objects, own| backend.identity(&node.network, &node.subnet, observed, own).mac4;
    assert_eq!(mac4(&observed, Some(&published)), device.mac);
    assert_eq!(
        mac4(&Objects::new(), Some(&published)),
        Mac::parse("0a:00:00:00:00:02")
    );
    let derived = mac4(&Objects::new(), None).unwrap();
    assert_eq!(mac4(&Objects::new(), None), Some(derived));
    assert_eq!(derived.0[0] & 3, 2, "locally administered unicast");
    assert_ne!(Some(derived), node.identity.mac6);
    device.kind = LinkKind::Other("dummy".into());
    let foreign: Objects = [Object::Link(Box::new(device))].into();
    assert_eq!(mac4(&foreign, None), Some(derived));
}

#[test]
fn attributes_when_dual_stack_vxlan_then_the_bytes_go_reads_back() {
    let (backend, node) = dual();
    let identity = Identity {
        mac4: Mac::parse("f6:df:b4:d0:5d:72"),
        mac6: Mac::parse("f6:df:b4:d0:5d:73"),
    };
    let value = backend
        .attributes(&node.network, &node.underlay, &identity)
        .to_json();
    assert_eq!(
        value,
        r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"f6:df:b4:d0:5d:72"},"BackendV6Data":{"VNI":1,"VtepMAC":"f6:df:b4:d0:5d:73"}}"#
    );
}

#[test]
fn backend_when_config_is_bad_then_the_field_is_named() {
    for (json, expected) in [
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#,
            "Backend.VNI is 16777216",
        ),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","Port":70000}}"#,
            "Backend.Port is 70000",
        ),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","MTU":60}}"#,
            "Backend.MTU is 60",
        ),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","VNI":"x"}}"#,
            "VNI",
        ),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"nosuch"}}"#,
            "nosuch",
        ),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"wireguard"}}"#,
            "not built",
        ),
        (r#"{"Network":"10.0.0.0/16"}"#, "udp"),
    ] {
        let error = backend(&network(json).backend).unwrap_err().to_string();
        assert!(error.contains(expected), "{json}: {error}");
    }
}

#[test]
fn display_when_an_op_is_printed_then_it_reads_like_iproute2() {
    let route = Object::Route(Route {
        destination: "10.1.0.0/24".parse().unwrap(),
        metric: 0,
        gateway: "10.1.0.0".parse().ok(),
        link: LinkName::new("flannel.1").unwrap(),
        onlink: true,
        protocol: crate::object::ROUTE_PROTOCOL,
    });
    assert_eq!(
        Op::Add(route).to_string(),
        "add route 10.1.0.0/24 via 10.1.0.0 dev flannel.1 onlink"
    );
}

#[test]
fn peer_objects_when_host_gw_then_one_route_a_family_through_the_peer() {
    let network = network(&DUAL.replace("vxlan", "host-gw"));
    let backend = backend(&network.backend).unwrap();
    let mut node = node_of(&*backend, network, "10.244.1.0-24&fd00:10:244:1::-64");
    let value = r#"{"PublicIP":"192.0.2.2","PublicIPv6":"2001:db8::2","BackendType":"host-gw"}"#;
    let plan = plan_peer(
        &*backend,
        &node,
        &lease("10.244.2.0-24&fd00:10:244:2::-64", value, 1),
    );
    assert_eq!(
        texts(&plan.objects),
        [
            "route 10.244.2.0/24 via 192.0.2.2 dev eth0",
            "route fd00:10:244:2::/64 via 2001:db8::2 dev eth0"
        ]
    );
    assert_eq!(backend.own_objects(&node), []);
    assert_eq!(backend.mtu(&node.network, &node.underlay), Ok(1500));
    let attributes = backend.attributes(&node.network, &node.underlay, &node.identity);
    assert_eq!(
        attributes.to_json(),
        value.replace(".2.2", ".2.1").replace("::2", "::1")
    );
    node.underlay.public4 = "203.0.113.1".parse().ok();
    let refused = backend
        .mtu(&node.network, &node.underlay)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("203.0.113.1") && refused.contains("NAT"),
        "{refused}"
    );
}
