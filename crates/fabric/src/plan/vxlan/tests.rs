//! What is vxlan's alone: the keys of its config, the bounds of its MTU, whose MAC is taken, the data of a lease.

use super::*;
use crate::lease::Lease;
use crate::plan::tests::{lease, network, node_of};
use crate::plan::{backend, plan_peer};

const PEER: &str = r#"{"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:02"}}"#;
const V4: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"KEYS}}"#;
const V6: &str =
    r#"{"EnableIPv4":false,"IPv6Network":"fd00:244::/48","EnableIPv6":true,"Backend":{"Type":"vxlan"KEYS}}"#;

/// A host whose `Backend` has these further keys.
fn host(config: &str, keys: &str) -> (Box<dyn Backend>, Node) {
    let network = network(&config.replace("KEYS", keys));
    let backend = backend(&network.backend).unwrap();
    let subnet = match network.v6 {
        Some(_) => "0.0.0.0-0&fd00:244:0:1::-64",
        None => "10.244.1.0-24",
    };
    let node = node_of(&*backend, network, subnet);
    (backend, node)
}

fn device(backend: &dyn Backend, node: &Node) -> Link {
    let own = backend.own_objects(node);
    own.iter().find_map(Object::as_link).unwrap().clone()
}

fn mac(text: &str) -> Option<Mac> {
    Some(Mac::parse(text).unwrap())
}

#[test]
fn device_when_the_config_has_keys_then_each_is_in_it() {
    let text = |keys: &str| {
        let (backend, node) = host(V4, keys);
        let mut device = device(&*backend, &node);
        device.mac = None;
        device.to_string()
    };
    let plain = "link flannel.1 mtu 1450 up vxlan id 1 local 192.0.2.1 dev eth0 nolearning";
    assert_eq!(text(""), plain);
    assert_eq!(text(r#","Port":0,"MacPrefix":"0E-2A""#), plain);
    assert_eq!(
        text(r#","VNI":4096,"Port":4789,"GBP":true,"Learning":true"#),
        "link flannel.4096 mtu 1450 up vxlan id 4096 local 192.0.2.1 dev eth0 dstport 4789 learning gbp"
    );
    assert_eq!(text(r#","MTU":1400"#), plain.replace("1450", "1350"));
    assert_eq!(
        text(r#","MTU":9000"#),
        plain,
        "not above what the underlay carries"
    );
    for bounds in [
        r#","MTU":118"#,
        r#","MTU":65535"#,
        r#","VNI":16777215"#,
        r#","Port":65535"#,
    ] {
        let network = network(&V4.replace("KEYS", bounds));
        assert!(backend(&network.backend).is_ok(), "{bounds}");
    }
}

#[test]
fn mtu_when_less_is_left_than_the_family_needs_then_refused_and_not_before() {
    for (config, enough, least, overhead) in [(V4, 118, 68, 50), (V6, 1350, 1280, 70)] {
        let (backend, mut node) = host(config, "");
        assert_eq!(backend.mtu(&node.network, &node.underlay), Ok(1500 - overhead));
        node.underlay.mtu = enough;
        assert_eq!(backend.mtu(&node.network, &node.underlay), Ok(least));
        node.underlay.mtu = enough - 1;
        let family = if least == 68 { "IPv4" } else { "IPv6" };
        assert_eq!(
            backend
                .mtu(&node.network, &node.underlay)
                .unwrap_err()
                .to_string(),
            format!(
                "MTU {} of interface eth0 leaves {} bytes for {family} inside vxlan; at least {least} are needed",
                enough - 1,
                least - 1
            )
        );
        node.underlay.mtu = 3;
        let text = backend
            .mtu(&node.network, &node.underlay)
            .unwrap_err()
            .to_string();
        assert!(text.contains("leaves 0 bytes"), "{text}");
    }
}

#[test]
fn mtu_when_there_is_no_address_or_no_name_for_the_device_then_refused() {
    let (backend, mut node) = host(V4, r#","VNI":10000000"#);
    let refused = backend
        .mtu(&node.network, &node.underlay)
        .unwrap_err()
        .to_string();
    assert!(
        refused.starts_with("network config: Backend.VNI is 10000000: expected at most 9999999 for IPv4"),
        "{refused}"
    );
    assert_eq!(backend.links(&node.network), []);
    let (backend, _) = host(V4, r#","VNI":9999999"#);
    assert_eq!(backend.mtu(&node.network, &node.underlay), Ok(1450));
    node.underlay.address4 = None;
    let refused = backend
        .mtu(&node.network, &node.underlay)
        .unwrap_err()
        .to_string();
    assert_eq!(refused, "interface eth0 has no IPv4 address");
}

#[test]
fn links_when_asked_for_then_one_of_each_family_in_use() {
    let names = |config: &str| {
        let (backend, node) = host(config, "");
        let links = backend.links(&node.network);
        links.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names(V4), ["flannel.1"]);
    assert_eq!(names(V6), ["flannel-v6.1"]);
}

/// Peers keep it as long as the node does: it may not change from version to version.
#[test]
fn mac_when_derived_then_these_bytes_for_ever() {
    let derived = |network: &str, subnet: &str, vni, family| {
        derive_mac(&network.parse().unwrap(), &subnet.parse().unwrap(), vni, family).to_string()
    };
    assert_eq!(
        derived("10.244.0.0/16", "10.244.1.0/24", 1, Family::V4),
        "3a:83:35:1a:9a:44"
    );
    assert_eq!(
        derived("10.244.0.0/16", "10.244.2.0/24", 1, Family::V4),
        "5e:7c:ce:43:90:09"
    );
    assert_eq!(
        derived("10.244.0.0/16", "10.244.1.0/24", 2, Family::V4),
        "3e:c9:b1:07:ed:21"
    );
    assert_eq!(
        derived("fd00:244::/48", "fd00:244:0:1::/64", 1, Family::V6),
        "9e:d0:89:d3:da:c5"
    );
}

#[test]
fn mac_when_the_devices_cannot_be_one_then_the_leases_is_taken() {
    let (backend, node) = host(V4, "");
    let published = Attributes::parse(PEER.as_bytes()).unwrap();
    let taken = |text: &str| {
        let mut device = device(&*backend, &node);
        device.mac = mac(text);
        let address = Object::Address(Address {
            link: device.name,
            address: "10.244.1.0/32".parse().unwrap(),
        });
        let observed: Objects = [address, Object::Link(Box::new(device))].into();
        let provided = Provided::default();
        let identity = backend.identity(
            &node.network,
            &node.subnet,
            &observed,
            Some(&published),
            &provided,
        );
        let macs = *identity.open::<Macs>().unwrap();
        assert_eq!(macs.v6, None, "no IPv6 here");
        macs.v4
    };
    let leased = mac("0a:00:00:00:00:02");
    assert_eq!(taken("0e:11:22:33:44:55"), mac("0e:11:22:33:44:55"));
    assert_eq!(taken("00:00:00:00:00:01"), mac("00:00:00:00:00:01"));
    assert_eq!(taken("00:00:00:00:00:00"), leased, "none");
    assert_eq!(taken("0f:11:22:33:44:55"), leased, "multicast");
}

#[test]
fn peer_when_its_data_is_of_no_use_then_told_why() {
    let (backend, node) = host(V4, "");
    let told = |data: Option<&str>| {
        let mut lease: Lease = lease("10.244.2.0-24", PEER, 1);
        lease.attributes.data = data.map(Into::into);
        let plan = plan_peer(&*backend, &node, &lease);
        assert_eq!(plan.objects, []);
        plan.problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    for none in [None, Some(""), Some("null")] {
        assert_eq!(told(none), ["IPv4: lease has no vxlan data"], "{none:?}");
    }
    let unpublished = ["IPv4: the peer has not published its VtepMAC yet"];
    assert_eq!(told(Some("{}")), unpublished);
    assert_eq!(told(Some(r#"{"VNI":1,"VtepMAC":""}"#)), unpublished);
    for bad in ["00:00:00:00:00:00", "01:00:5e:00:00:01", "0a:00:00:00:00", "junk"] {
        assert_eq!(
            told(Some(&format!(r#"{{"VtepMAC":"{bad}"}}"#))),
            [format!(
                "IPv4: vxlan data: VtepMAC is {bad:?}; expected a unicast MAC address of 6 bytes"
            )]
        );
    }
    let told = told(Some("[]"));
    assert!(told[0].starts_with("IPv4: vxlan data: "), "{told:?}");
}

#[test]
fn peer_when_it_has_our_own_mac_then_refused_as_a_clone() {
    let (backend, node) = host(V4, "");
    let own = Macs::of(&node.identity, Family::V4).unwrap();
    let cloned = PEER.replace("0a:00:00:00:00:02", &own.to_string());
    let plan = plan_peer(&*backend, &node, &lease("10.244.2.0-24", &cloned, 1));
    assert_eq!(plan.objects, []);
    assert_eq!(
        plan.problems[0].to_string(),
        format!("IPv4: VtepMAC {own} is our own: was this machine cloned?")
    );
}

/// What was found out for another backend's config is not used.
#[test]
fn peer_when_direct_routing_is_off_then_through_the_tunnel_also_where_the_way_is_known() {
    let (backend, mut node) = host(V4, "");
    node.provided
        .direct
        .insert("192.0.2.2".parse().unwrap(), node.underlay.link);
    assert_eq!(backend.needs(), []);
    let plan = plan_peer(&*backend, &node, &lease("10.244.2.0-24", PEER, 1));
    assert_eq!(plan.objects.len(), 3);
}

#[test]
fn device_when_it_has_the_subnets_own_address_then_that_subnets_and_else_left_from_before() {
    let device = LinkName::new("flannel.1").unwrap();
    let is_ours = |subnet: Option<&str>, addresses: &[(&str, &str)]| {
        let on = |(link, address): &(&str, &str)| {
            Object::Address(Address {
                link: LinkName::new(link).unwrap(),
                address: address.parse().unwrap(),
            })
        };
        let observed: Objects = addresses.iter().map(on).collect();
        is_of(device, subnet.map(|net| net.parse().unwrap()), &observed)
    };
    let now = Some("10.244.1.0/24");
    let (ours, left) = (("flannel.1", "10.244.1.0/32"), ("flannel.1", "10.244.2.0/32"));
    assert!(is_ours(now, &[ours]));
    assert!(is_ours(now, &[left, ours]));
    assert!(is_ours(Some("fd00::/64"), &[("flannel.1", "fd00::/128"), left]));
    assert!(!is_ours(None, &[ours]));
    for not in [
        &[][..],
        &[left],
        &[("flannel.9", "10.244.1.0/32")],
        &[("flannel.1", "10.244.1.0/24")],
        &[("flannel.1", "fd00:1::/128")],
    ] {
        assert!(!is_ours(now, not), "{not:?}");
    }
}
