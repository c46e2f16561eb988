use super::vxlan::Macs;
use super::*;
use crate::lease::Lease;
use crate::object::{Address, Link, LinkKind, Mac, Op, Route};

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
        segments: Vec::new(),
    };
    let subnet = Subnet::parse_key(subnet).unwrap();
    let identity = backend.identity(&network, &subnet, &Objects::new(), None, &Provided::default());
    Node {
        network,
        underlay,
        subnet,
        identity,
        provided: Provided::default(),
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
        ("10.244.0.0-16", PEER.to_owned(), "not inside"),
        ("10.244.0.0-15", PEER.to_owned(), "not inside"),
        ("10.244.1.128-25", PEER.to_owned(), "overlaps our own"),
        ("10.244.0.0-23", PEER.to_owned(), "overlaps our own"),
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
            "PublicIP 224.0.0.1 is not a host",
        ),
        (
            "10.244.2.0-24",
            PEER.replace("192.0.2.2", "127.0.0.2"),
            "PublicIP 127.0.0.2 is not a host",
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
fn peer_when_it_has_an_address_of_ours_then_refused_be_it_the_advertised_or_the_interfaces() {
    let (backend, mut node) = dual();
    node.underlay.public4 = "203.0.113.1".parse().ok();
    let problems = |address: &str| {
        let value = PEER.replace("192.0.2.2", address);
        let plan = plan_peer(&*backend, &node, &lease("10.244.2.0-24", &value, 1));
        plan.problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    for own in ["192.0.2.1", "203.0.113.1"] {
        assert_eq!(problems(own), [format!("IPv4: PublicIP {own} is our own")]);
    }
    assert_eq!(problems("203.0.113.2"), Vec::<String>::new());
}

#[test]
fn peer_when_its_address_can_be_no_hosts_then_that_half_is_refused_and_the_other_served() {
    let (backend, mut node) = dual();
    let key = "10.244.2.0-24&fd00:10:244:2::-64";
    let net = |net: &str| net.parse().unwrap();
    node.underlay.segments = vec![
        net("10.244.1.0/24"),
        net("172.17.0.0/16"),
        net("192.0.2.0/25"),
        net("198.51.100.4/31"),
        net("198.51.100.7/32"),
    ];
    let plan = |from: &str, to: &str| {
        let value = PEER.replace(from, to);
        let plan = plan_peer(&*backend, &node, &lease(key, &value, 1));
        let problems: Vec<String> = plan.problems.iter().map(ToString::to_string).collect();
        (plan.objects.len(), problems)
    };
    let no_host = "is not a host's address";
    for (address, why) in [
        ("0.1.2.3", no_host.to_owned()),
        ("127.0.0.1", no_host.to_owned()),
        ("224.0.0.1", no_host.to_owned()),
        ("239.255.255.255", no_host.to_owned()),
        ("240.0.0.1", no_host.to_owned()),
        ("255.255.255.255", no_host.to_owned()),
        (
            "192.0.2.127",
            format!("{no_host} but the broadcast address of 192.0.2.0/25"),
        ),
        (
            "172.17.255.255",
            format!("{no_host} but the broadcast address of 172.17.0.0/16"),
        ),
        (
            "10.244.2.9",
            format!("{no_host} but one of the pods of 10.244.2.0/24"),
        ),
        (
            "10.244.1.9",
            format!("{no_host} but one of the pods of 10.244.1.0/24"),
        ),
        (
            "10.244.9.9",
            format!("{no_host} but one inside Network 10.244.0.0/16"),
        ),
    ] {
        assert_eq!(
            plan("192.0.2.2", address),
            (3, vec![format!("IPv4: PublicIP {address} {why}")])
        );
    }
    for (address, why) in [
        ("::1", no_host.to_owned()),
        ("::2", no_host.to_owned()),
        ("::c000:207", no_host.to_owned()),
        ("ff02::1", no_host.to_owned()),
        ("ff0e::7", no_host.to_owned()),
        (
            "fd00:10:244:2::9",
            format!("{no_host} but one of the pods of fd00:10:244:2::/64"),
        ),
        (
            "fd00:10:244:9::9",
            format!("{no_host} but one inside Network fd00:10:244::/48"),
        ),
    ] {
        assert_eq!(
            plan("2001:db8::2", address),
            (3, vec![format!("IPv6: PublicIPv6 {address} {why}")])
        );
    }
    for fine in [
        "1.0.0.1",
        "126.0.0.1",
        "223.255.255.254",
        // What an interface without any other address has, and Go flannel publishes.
        "169.254.7.7",
        // No segment of these has a broadcast address.
        "198.51.100.5",
        "198.51.100.7",
        "192.0.2.126",
        "192.0.2.255",
        "10.245.0.1",
    ] {
        assert_eq!(plan("192.0.2.2", fine), (6, vec![]), "{fine}");
    }
    for fine in [
        "fe80::7",
        "64:ff9b::c000:207",
        "1::1",
        "0:0:0:0:1::1",
        "fd00:10:245::1",
    ] {
        assert_eq!(plan("2001:db8::2", fine), (6, vec![]), "{fine}");
    }
}

/// Such a Network is named at the start; it works as long as no subnet holds a host.
#[test]
fn peer_when_the_network_covers_the_hosts_then_their_addresses_are_hosts() {
    let (backend, mut node) = dual();
    let problems = |node: &Node, address: &str| {
        let value = PEER.replace("192.0.2.2", address);
        let plan = plan_peer(&*backend, node, &lease("10.244.2.0-24", &value, 1));
        plan.problems.len()
    };
    assert_eq!(problems(&node, "10.244.200.2"), 1);
    node.underlay.segments = vec!["10.244.200.0/24".parse().unwrap()];
    assert_eq!(problems(&node, "10.244.200.2"), 0);
    assert_eq!(problems(&node, "10.244.201.2"), 1);
    node.underlay.address4 = "10.244.200.1".parse().ok();
    assert_eq!(problems(&node, "10.244.201.2"), 0);
    assert_eq!(problems(&node, "10.244.2.2"), 1);
}

#[test]
fn peer_when_its_ipv6_address_is_none_then_that_half_is_refused() {
    let (backend, node) = dual();
    let value = PEER.replace("2001:db8::2", "::");
    let plan = plan_peer(
        &*backend,
        &node,
        &lease("10.244.2.0-24&fd00:10:244:2::-64", &value, 1),
    );
    assert_eq!(plan.objects.len(), 3);
    assert_eq!(plan.problems[0].to_string(), "IPv6: lease has no PublicIPv6");
}

#[test]
fn backends_when_listed_then_those_of_the_table() {
    assert_eq!(built(), "vxlan, host-gw, alloc, ipip");
    assert!(is_built("vxlan") && is_built("ipip"));
    assert!(!is_built("udp") && !is_built(""));
}

#[test]
fn peer_when_direct_routing_and_on_link_then_one_plain_route() {
    let network = network(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#);
    let backend = backend(&network.backend).unwrap();
    let mut node = node_of(&*backend, network, "10.244.1.0-24");
    let peer = lease("10.244.2.0-24", PEER, 1);
    assert_eq!(plan_peer(&*backend, &node, &peer).objects.len(), 3);
    node.provided
        .direct
        .insert("192.0.2.2".parse().unwrap(), node.underlay.link);
    let plan = plan_peer(&*backend, &node, &peer);
    assert_eq!(
        texts(&plan.objects),
        ["route 10.244.2.0/24 via 192.0.2.2 dev eth0"]
    );
}

#[test]
fn identity_when_device_is_the_subnets_then_its_mac_else_the_lease_else_derived_and_stable() {
    let (backend, node) = dual();
    let own = backend.own_objects(&node);
    let Object::Link(link) = &own[1] else {
        panic!("no link")
    };
    let mut device: Link = (**link).clone();
    device.mac = Mac::parse("0e:11:22:33:44:55");
    let observed: Objects = [own[0].clone(), Object::Link(Box::new(device.clone()))].into();
    let published = Attributes::parse(PEER.as_bytes()).unwrap();
    let of_lease = Mac::parse("0a:00:00:00:00:02");
    let mac4 = |observed: &Objects, own| {
        let provided = Provided::default();
        let identity = backend.identity(&node.network, &node.subnet, observed, own, &provided);
        identity.open::<Macs>().unwrap().v4
    };
    assert_eq!(mac4(&observed, Some(&published)), device.mac);
    assert_eq!(mac4(&observed, None), device.mac);
    assert_eq!(mac4(&Objects::new(), Some(&published)), of_lease);
    let derived = mac4(&Objects::new(), None).unwrap();
    assert_eq!(mac4(&Objects::new(), None), Some(derived));
    assert_eq!(derived.0[0] & 3, 2, "locally administered unicast");
    assert_ne!(Some(derived), node.identity.open::<Macs>().unwrap().v6);
    // Whose a device without its address is cannot be told: it may be left from a subnet that another holds by now.
    let bare: Objects = [Object::Link(Box::new(device.clone()))].into();
    assert_eq!(mac4(&bare, Some(&published)), of_lease);
    assert_eq!(mac4(&bare, None), Some(derived));
    device.kind = LinkKind::Other("dummy".into());
    let foreign: Objects = [own[0].clone(), Object::Link(Box::new(device))].into();
    assert_eq!(mac4(&foreign, None), Some(derived));
}

#[test]
fn identity_when_the_device_has_not_its_subnets_address_then_its_mac_stays_behind_with_another() {
    let (backend, node) = dual();
    let Some(Object::Link(link)) = backend.own_objects(&node).into_iter().nth(1) else {
        panic!("no link")
    };
    let mut device: Link = *link;
    device.mac = Mac::parse("0e:11:22:33:44:55");
    let address = |net: &str| {
        Object::Address(Address {
            link: device.name,
            address: net.parse().unwrap(),
        })
    };
    let base = node.subnet.v4.unwrap().network();
    let macs = |observed: &Objects| {
        let provided = Provided::default();
        let identity = backend.identity(&node.network, &node.subnet, observed, None, &provided);
        identity.open::<Macs>().unwrap().v4
    };
    let mac = |addresses: &[String]| {
        let link = Object::Link(Box::new(device.clone()));
        let addresses = addresses.iter().map(|net| address(net));
        let observed: Objects = std::iter::once(link).chain(addresses).collect();
        macs(&observed)
    };
    let derived = macs(&Objects::new());
    let other = "10.5.250.0/32".to_owned();
    assert_eq!(mac(std::slice::from_ref(&other)), derived);
    assert_eq!(mac(&["fe80::1/64".to_owned(), format!("{base}/24")]), derived);
    assert_eq!(mac(&[other, format!("{base}/32")]), device.mac);
}

#[test]
fn attributes_when_dual_stack_vxlan_then_the_bytes_go_reads_back() {
    let (backend, node) = dual();
    let identity = Identity::new(Macs {
        v4: Mac::parse("f6:df:b4:d0:5d:72"),
        v6: Mac::parse("f6:df:b4:d0:5d:73"),
    });
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
            "network config: Backend.VNI is \"x\": expected a whole number from 0",
        ),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"nosuch"}}"#,
            "is \"nosuch\": expected one of vxlan",
        ),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"wireguard"}}"#,
            "\"wireguard\" is not built",
        ),
        (
            r#"{"Network":"10.0.0.0/16"}"#,
            "network config: Backend is not set, which means \"udp\", and that is not built into this flannel yet: expected \"Backend\":{\"Type\":...} with one of vxlan",
        ),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"udp"}}"#,
            "network config: Backend.Type \"udp\" is not built into this flannel yet",
        ),
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
    node.underlay.address6 = None;
    node.underlay.public4 = node.underlay.address4;
    let refused = backend.mtu(&node.network, &node.underlay).unwrap_err();
    assert_eq!(refused.to_string(), "interface eth0 has no IPv6 address");
}

/// A backend of which only the types and the way of planning matter.
struct Strange;

impl Backend for Strange {
    fn name(&self) -> &'static str {
        "strange"
    }

    fn wire_type(&self) -> &'static str {
        ""
    }

    fn serves(&self, wire_type: &str) -> bool {
        wire_type.is_empty() || wire_type == "host-gw"
    }

    fn links(&self, _: &NetworkConfig) -> Vec<LinkName> {
        Vec::new()
    }

    fn mtu(&self, _: &NetworkConfig, underlay: &Underlay) -> Result<u32, PlanError> {
        Ok(underlay.mtu)
    }

    /// IPv4 fails half-way, IPv6 succeeds; whoever has both is said to.
    fn plan_peer(&self, node: &Node, peer: &Peer<'_>, plan: &mut PeerPlan) {
        let (both, wire_type) = (peer.v4.is_some() && peer.v6.is_some(), peer.wire_type.to_owned());
        for half in peer.halves() {
            plan.serve(half.family, |objects| {
                objects.push(Object::Route(Route {
                    destination: half.subnet,
                    metric: half.family.default_metric(),
                    gateway: Some(half.public),
                    link: node.underlay.link,
                    onlink: false,
                    protocol: crate::object::ROUTE_PROTOCOL,
                }));
                match half.family {
                    Family::V4 => Err(format!("both: {both}, type {wire_type:?}")),
                    Family::V6 => Ok(()),
                }
            });
        }
    }
}

#[test]
fn backend_when_its_types_differ_then_leases_say_one_and_people_read_the_other() {
    let (_, node) = dual();
    let backend: &dyn Backend = &Strange;
    assert_eq!(format!("{backend:?}"), "backend strange");
    let attributes = backend.attributes(&node.network, &node.underlay, &Identity::default());
    assert_eq!(
        attributes.to_json(),
        r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1"}"#
    );
    let problems = plan_peer(backend, &node, &lease("10.244.2.0-24", PEER, 1)).problems;
    assert_eq!(
        problems[0].to_string(),
        r#"lease is of backend type "vxlan", ours is "strange""#
    );
}

#[test]
fn peer_when_planned_then_both_halves_are_at_hand_and_one_that_fails_leaves_nothing() {
    let (_, node) = dual();
    let key = "10.244.2.0-24&fd00:10:244:2::-64";
    for wire_type in ["", "host-gw"] {
        let value = PEER.replace("\"vxlan\"", &format!("{wire_type:?}"));
        let plan = plan_peer(&Strange, &node, &lease(key, &value, 1));
        assert_eq!(
            texts(&plan.objects),
            ["route fd00:10:244:2::/64 via 2001:db8::2 dev eth0"]
        );
        assert_eq!(
            plan.problems,
            [Problem::Half {
                family: "IPv4".to_owned(),
                reason: format!("both: true, type {wire_type:?}"),
            }]
        );
    }
    let bad = PEER
        .replace("\"vxlan\"", "\"\"")
        .replace("2001:db8::2", "2001:db8::1");
    let problems: Vec<String> = plan_peer(&Strange, &node, &lease(key, &bad, 1))
        .problems
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        problems,
        [
            "IPv6: PublicIPv6 2001:db8::1 is our own",
            r#"IPv4: both: false, type """#
        ]
    );
}

#[test]
fn needs_when_direct_routing_then_the_routes_are_asked_for() {
    let of = |json: &str| backend(&network(json).backend).unwrap().needs().to_vec();
    assert_eq!(of(DUAL), []);
    let direct = DUAL.replace("\"vxlan\"", "\"vxlan\",\"DirectRouting\":true");
    assert_eq!(of(&direct), [Need::DirectRoutes]);
}

#[test]
fn config_when_printed_for_debugging_then_no_key_in_it_shows() {
    let network = network(&DUAL.replace("\"vxlan\"", "\"vxlan\",\"PSK\":\"c2VjcmV0\""));
    let backend = backend(&network.backend).unwrap();
    let node = node_of(&*backend, network, "10.244.1.0-24&fd00:10:244:1::-64");
    let text = format!("{node:?} {backend:?}");
    assert!(text.contains("vxlan") && !text.contains("c2VjcmV0"), "{text}");
}

#[test]
fn families_when_a_backend_carries_one_then_any_other_config_is_refused_by_the_keys() {
    let v4 = network(r#"{"Network":"10.244.0.0/16"}"#);
    let v6 = network(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48"}"#);
    assert_eq!(carries_only(Family::V4, "strange", &v4), Ok(()));
    for other in [&v6, &network(DUAL)] {
        assert_eq!(
            carries_only(Family::V4, "strange", other)
                .unwrap_err()
                .to_string(),
            "network config: Backend.Type \"strange\" carries IPv4 only: expected EnableIPv4 true and EnableIPv6 false, or a \
             backend that carries both"
        );
    }
    assert_eq!(carries_only(Family::V6, "strange", &v6), Ok(()));
    assert!(carries_only(Family::V6, "strange", &v4).is_err());
}
