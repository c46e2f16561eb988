//! The conformance tables of the reference, V1 to V16 and H1 to H3, each asserted by `ip`, `bridge`, `cat` and `etcdctl`.
//!
//! Two differences are decided: our routes carry protocol 241, and subnet.env has the MTU that full-size IPv6 packets need.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

use lab::rig::{Rig, Wish, vxlan_lease};
use lab::witness::{
    addresses, forwarding, link, link_names, neighbours, permanent_forwarding, route, routes, sysctl,
};
use lab::{Families, Lab};
use serde_json::{Value, json};

const B: &str = "10.244.250.0-24";
const B46: &str = "10.244.250.0-24&fd00:10:244:fa::-64";
const MAC: &str = "02:00:00:00:00:0b";
const MAC6: &str = "02:00:00:00:00:6b";

fn info<'a>(link: &'a Value, field: &str) -> &'a Value {
    &link["linkinfo"]["info_data"][field]
}

/// A route as the tables have it: ours must carry the protocol, which is then set aside.
fn plain_route(lab: &Lab, destination: &str) -> Result<Value, lab::LabError> {
    let mut all = route(lab.host(1), destination.parse().unwrap())?;
    for route in all.as_array_mut().unwrap() {
        let object = route.as_object_mut().unwrap();
        if object.remove("protocol") != Some(json!("241")) {
            object.insert("not".to_owned(), json!("of protocol 241"));
        }
        object.remove("pref");
    }
    Ok(all)
}

fn by_dst(mut list: Vec<Value>) -> Vec<Value> {
    list.sort_by_key(|e| e["dst"].to_string());
    list
}

#[test]
fn v1_to_v5_devices_and_addresses_of_a_dual_stack_host() {
    let rig = Rig::alone(&Wish::new(json!({ "Type": "vxlan" })).hosts(1)).unwrap();
    let (host, spec) = (rig.lab.host(1), &rig.lab.spec);
    let device = link(host, "flannel.1").unwrap().unwrap();
    assert_eq!(device["linkinfo"]["info_kind"], "vxlan", "V1");
    for (field, value) in [
        ("id", json!(1)),
        ("local", json!(spec.host4(1))),
        ("link", json!("eth0")),
        ("port", json!(8472)),
        ("learning", json!(false)),
        ("udp_csum", json!(true)),
        ("ageing", json!(300)),
        ("ttl", json!(0)),
        ("port_range", json!({ "low": 0, "high": 0 })),
    ] {
        assert_eq!(*info(&device, field), value, "V1 {field}");
    }
    for absent in ["l2miss", "l3miss", "proxy", "rsc", "gbp"] {
        assert!(info(&device, absent).is_null(), "V1 {absent}");
    }
    assert_eq!(device["mtu"], 1450, "V2");
    assert!(device["flags"].as_array().unwrap().contains(&json!("UP")), "V2");
    assert!(device["txqlen"].is_null(), "V2");
    assert_eq!(device["link_type"], "ether", "V2");
    let first = u8::from_str_radix(&device["address"].as_str().unwrap()[..2], 16).unwrap();
    assert_eq!(
        first & 3,
        2,
        "V2 locally administered unicast: {}",
        device["address"]
    );

    let device6 = link(host, "flannel-v6.1").unwrap().unwrap();
    for (field, value) in [
        ("id", json!(1)),
        ("local6", json!(spec.host6(1))),
        ("port", json!(8472)),
        ("udp_zero_csum6_tx", json!(false)),
        ("udp_zero_csum6_rx", json!(false)),
    ] {
        assert_eq!(*info(&device6, field), value, "V3 {field}");
    }
    assert_eq!(device6["mtu"], 1430, "V3");
    for device in ["flannel.1", "flannel-v6.1"] {
        assert_eq!(
            sysctl(host, &format!("net/ipv6/conf/{device}/accept_ra")).unwrap(),
            "0",
            "V4 {device}"
        );
    }

    let subnet = rig.subnet(1, 4).unwrap();
    let v4: Vec<Value> = addresses(host, "flannel.1")
        .unwrap()
        .into_iter()
        .filter(|a| a["family"] == "inet")
        .collect();
    assert_eq!(v4.len(), 1, "V5");
    assert_eq!(
        (&v4[0]["local"], &v4[0]["prefixlen"]),
        (&json!(subnet.addr()), &json!(32)),
        "V5"
    );
    assert_eq!(v4[0]["scope"], "global", "V5");
    assert!(v4[0]["broadcast"].is_null(), "V5");
    let subnet6 = rig.subnet(1, 6).unwrap();
    let v6: Vec<Value> = addresses(host, "flannel-v6.1")
        .unwrap()
        .into_iter()
        .filter(|a| a["scope"] == "global")
        .collect();
    assert_eq!(v6.len(), 1, "V5");
    assert_eq!(
        (&v6[0]["local"], &v6[0]["prefixlen"]),
        (&json!(subnet6.addr()), &json!(128)),
        "V5"
    );
}

#[test]
fn v6_to_v9_v12_v13_objects_of_a_peer_come_change_and_go_with_its_lease() {
    let rig = Rig::alone(&Wish::new(json!({ "Type": "vxlan" })).hosts(1)).unwrap();
    rig.put_lease(
        B46,
        &vxlan_lease("198.18.0.250", Some("fd18::fa"), MAC, Some(MAC6)),
    )
    .unwrap();
    // Of another type, and of no readable content: no objects, and no harm to the others.
    rig.put_lease(
        "10.244.251.0-24",
        &json!({ "PublicIP": "198.18.0.251", "BackendType": "host-gw" }),
    )
    .unwrap();
    rig.lab
        .put("/coreos.com/network/subnets/10.244.252.0-24", "{\"PublicIP\":")
        .unwrap();
    rig.lab.put("/coreos.com/network/subnets/junk", "{}").unwrap();

    let v6 = json!([{ "dst": "10.244.250.0/24", "gateway": "10.244.250.0", "dev": "flannel.1", "flags": ["onlink"] }]);
    rig.settle("V6", &v6, |lab| plain_route(lab, "10.244.250.0/24"))
        .unwrap();
    let v7 = json!([{
        "dst": "fd00:10:244:fa::/64", "gateway": "fd00:10:244:fa::", "dev": "flannel-v6.1",
        "metric": 1024, "flags": ["onlink"]
    }]);
    rig.settle("V7", &v7, |lab| plain_route(lab, "fd00:10:244:fa::/64"))
        .unwrap();
    let host = rig.lab.host(1);
    let neighbour = |dst: &str, mac: &str| json!({ "dst": dst, "lladdr": mac, "state": ["PERMANENT"] });
    assert_eq!(
        neighbours(host, "flannel.1").unwrap(),
        [neighbour("10.244.250.0", MAC)],
        "V8"
    );
    assert_eq!(
        neighbours(host, "flannel-v6.1").unwrap(),
        [neighbour("fd00:10:244:fa::", MAC6)],
        "V8"
    );
    let entry =
        |mac: &str, dst: &str| json!({ "mac": mac, "flags": ["self"], "dst": dst, "state": "permanent" });
    assert_eq!(
        forwarding(host, "flannel.1").unwrap(),
        [entry(MAC, "198.18.0.250")],
        "V9"
    );
    assert_eq!(
        forwarding(host, "flannel-v6.1").unwrap(),
        [entry(MAC6, "fd18::fa")],
        "V9"
    );

    for n in 1..=5 {
        let value = vxlan_lease(
            &format!("198.18.1.{n}"),
            None,
            &format!("02:00:00:00:01:0{n}"),
            None,
        );
        rig.put_lease(&format!("10.244.24{n}.0-24"), &value).unwrap();
    }
    let count = |lab: &Lab| -> Result<[usize; 3], lab::LabError> {
        let host = lab.host(1);
        let ours = routes(host, 4)?
            .iter()
            .filter(|r| r.protocol.as_deref() == Some("241"))
            .count();
        Ok([
            ours,
            neighbours(host, "flannel.1")?.len(),
            permanent_forwarding(host, "flannel.1")?.len(),
        ])
    };
    rig.settle(
        "V12: routes, neighbours, forwarding entries of 6 vxlan leases",
        &[6, 6, 6],
        count,
    )
    .unwrap();

    rig.put_lease(
        B46,
        &vxlan_lease("198.18.0.250", Some("fd18::fa"), "02:00:00:00:00:0c", Some(MAC6)),
    )
    .unwrap();
    let new = by_dst(vec![neighbour("10.244.250.0", "02:00:00:00:00:0c")]);
    rig.settle("V13: neighbour with the new MAC", &new, |lab| {
        let all = neighbours(lab.host(1), "flannel.1")?;
        Ok(by_dst(
            all.into_iter().filter(|n| n["dst"] == "10.244.250.0").collect(),
        ))
    })
    .unwrap();
    rig.settle(
        "V13: only the new MAC in the forwarding table",
        &vec!["02:00:00:00:00:0c".to_owned()],
        |lab| {
            let all = permanent_forwarding(lab.host(1), "flannel.1")?;
            let of_b = all.iter().filter(|e| e["dst"] == "198.18.0.250");
            Ok(of_b.map(|e| e["mac"].as_str().unwrap().to_owned()).collect())
        },
    )
    .unwrap();

    rig.delete_lease(B46).unwrap();
    rig.settle("V13: five peers are left", &[5, 5, 5], count).unwrap();
    rig.settle("V13: nothing on the IPv6 device", &(0, 0, json!([])), |lab| {
        let host = lab.host(1);
        let gone = plain_route(lab, "fd00:10:244:fa::/64")?;
        Ok((
            neighbours(host, "flannel-v6.1")?.len(),
            permanent_forwarding(host, "flannel-v6.1")?.len(),
            gone,
        ))
    })
    .unwrap();
}

#[test]
fn v10_peer_on_the_same_link_is_routed_directly() {
    let wish = Wish::of(Families::V4, json!({ "Type": "vxlan", "DirectRouting": true }));
    let rig = Rig::alone(&wish.hosts(2)).unwrap();
    let gateway = rig.lab.spec.host4(2).to_string();
    rig.put_lease(B, &vxlan_lease(&gateway, None, MAC, None)).unwrap();
    let direct = json!([{ "dst": "10.244.250.0/24", "gateway": gateway, "dev": "eth0", "flags": [] }]);
    rig.settle("V10", &direct, |lab| plain_route(lab, "10.244.250.0/24"))
        .unwrap();
    assert_eq!(
        neighbours(rig.lab.host(1), "flannel.1").unwrap(),
        Vec::<Value>::new(),
        "V10"
    );
    assert_eq!(
        permanent_forwarding(rig.lab.host(1), "flannel.1").unwrap(),
        Vec::<Value>::new(),
        "V10"
    );
}

#[test]
fn v11_peer_behind_a_router_is_tunnelled_in_spite_of_direct_routing() {
    let mut wish = Wish::of(Families::V4, json!({ "Type": "vxlan", "DirectRouting": true }));
    wish.routed = true;
    let rig = Rig::alone(&wish.hosts(2)).unwrap();
    let remote = rig.lab.spec.host4(2).to_string();
    rig.put_lease(B, &vxlan_lease(&remote, None, MAC, None)).unwrap();
    let tunnelled = json!([{ "dst": "10.244.250.0/24", "gateway": "10.244.250.0", "dev": "flannel.1", "flags": ["onlink"] }]);
    rig.settle("V11", &tunnelled, |lab| plain_route(lab, "10.244.250.0/24"))
        .unwrap();
    assert_eq!(neighbours(rig.lab.host(1), "flannel.1").unwrap().len(), 1, "V11");
    assert_eq!(
        permanent_forwarding(rig.lab.host(1), "flannel.1").unwrap().len(),
        1,
        "V11"
    );
}

#[test]
fn v14_restart_keeps_the_device_and_a_change_that_needs_a_new_one_makes_it() {
    let mut rig = Rig::alone(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(1)).unwrap();
    let identity = |lab: &Lab, name: &str| -> Result<Option<(u64, String, u64)>, lab::LabError> {
        Ok(link(lab.host(1), name)?.map(|l| {
            let mac = l["address"].as_str().unwrap().to_owned();
            (
                l["ifindex"].as_u64().unwrap(),
                mac,
                info(&l, "port").as_u64().unwrap(),
            )
        }))
    };
    let before = identity(&rig.lab, "flannel.1").unwrap().unwrap();
    let subnet = rig.subnet(1, 4).unwrap();
    let status = rig.daemons[0].stop(std::time::Duration::from_secs(10));
    assert!(
        status.is_some_and(|s| s.success()),
        "V14: SIGTERM ends it with 0: {status:?}"
    );
    assert_eq!(
        identity(&rig.lab, "flannel.1").unwrap().as_ref(),
        Some(&before),
        "V14: stopping leaves the device"
    );
    std::fs::remove_file(rig.lab.host(1).path("/run/flannel/subnet.env")).unwrap();
    rig.restart(1, &[]).unwrap();
    rig.settle("V14: the same subnet after a restart", &Some(subnet), |lab| {
        Ok(lab.env(1).ok().and_then(|e| e.subnet_of(4)))
    })
    .unwrap();
    assert_eq!(
        identity(&rig.lab, "flannel.1").unwrap(),
        Some(before.clone()),
        "V14: same ifindex and MAC"
    );

    rig.reconfigure(&lab::flannel::config(
        Families::V4,
        json!({ "Type": "vxlan", "Port": 4789 }),
    ))
    .unwrap();
    rig.restart(1, &[]).unwrap();
    rig.wait("V14: a new device for a new port", 15, |rig| {
        let now = identity(&rig.lab, "flannel.1")?;
        Ok(now
            .as_ref()
            .is_none_or(|n| n.0 == before.0 || n.2 != 4789)
            .then(|| format!("{now:?}")))
    })
    .unwrap();
    rig.reconfigure(&lab::flannel::config(
        Families::V4,
        json!({ "Type": "vxlan", "VNI": 7 }),
    ))
    .unwrap();
    rig.restart(1, &[]).unwrap();
    rig.wait("V14: the device of the new VNI", 15, |rig| {
        Ok(identity(&rig.lab, "flannel.7")?
            .is_none()
            .then(|| "flannel.7".to_owned()))
    })
    .unwrap();
}

#[test]
fn v15_v16_lease_and_subnet_env_say_what_the_devices_are() {
    let rig = Rig::alone(&Wish::new(json!({ "Type": "vxlan" })).hosts(1)).unwrap();
    let mac = |name: &str| {
        link(rig.lab.host(1), name).unwrap().unwrap()["address"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let (subnet, subnet6) = (rig.subnet(1, 4).unwrap(), rig.subnet(1, 6).unwrap());
    let leases = rig.lab.leases().unwrap();
    let key = format!("{}-24&{}-64", subnet.addr(), subnet6.addr());
    let value = format!(
        "{{\"PublicIP\":\"198.18.0.11\",\"PublicIPv6\":\"fd18::b\",\"BackendType\":\"vxlan\",\
         \"BackendData\":{{\"VNI\":1,\"VtepMAC\":\"{}\"}},\"BackendV6Data\":{{\"VNI\":1,\"VtepMAC\":\"{}\"}}}}",
        mac("flannel.1"),
        mac("flannel-v6.1"),
    );
    assert_eq!(leases, [(key, value)], "V15");
    let env = rig.lab.host(1).read("/run/flannel/subnet.env").unwrap();
    let first = |subnet: ipnet::IpNet| lab::flannel::first_address(subnet);
    assert_eq!(
        env,
        format!(
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={}/24\nFLANNEL_IPV6_NETWORK=fd00:10:244::/48\n\
             FLANNEL_IPV6_SUBNET={}/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n",
            first(subnet),
            first(subnet6)
        ),
        "V16 for dual stack"
    );
    drop(rig);
    let rig = Rig::alone(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(1)).unwrap();
    assert_eq!(rig.lab.env(1).unwrap().mtu, Some(1450), "V16");
}

#[test]
fn h1_to_h3_host_gw_is_one_route_per_peer_and_nothing_else() {
    let rig = Rig::alone(&Wish::new(json!({ "Type": "host-gw" })).hosts(3)).unwrap();
    let (b, b6) = (
        rig.lab.spec.host4(2).to_string(),
        rig.lab.spec.host6(2).to_string(),
    );
    let lease = |v4: &str, v6: &str| json!({ "PublicIP": v4, "PublicIPv6": v6, "BackendType": "host-gw" });
    rig.put_lease(B46, &lease(&b, &b6)).unwrap();
    let via =
        |gateway: &str| json!([{ "dst": "10.244.250.0/24", "gateway": gateway, "dev": "eth0", "flags": [] }]);
    rig.settle("H1", &via(&b), |lab| plain_route(lab, "10.244.250.0/24"))
        .unwrap();
    let via6 = json!([{
        "dst": "fd00:10:244:fa::/64", "gateway": b6, "dev": "eth0", "metric": 1024, "flags": []
    }]);
    rig.settle("H1", &via6, |lab| plain_route(lab, "fd00:10:244:fa::/64"))
        .unwrap();
    let names = link_names(rig.lab.host(1)).unwrap();
    assert!(!names.iter().any(|n| n.starts_with("flannel")), "H1: {names:?}");

    rig.lab.host(1).ip(&["route", "del", "10.244.250.0/24"]).unwrap();
    let took = rig
        .settle("H2: the route is back", &via(&b), |lab| {
            plain_route(lab, "10.244.250.0/24")
        })
        .unwrap();
    assert!(took.as_secs() < 10, "H2: {took:?}");
    assert_eq!(rig.lab.env(1).unwrap().mtu, Some(1500), "H2");

    let (c, c6) = (
        rig.lab.spec.host4(3).to_string(),
        rig.lab.spec.host6(3).to_string(),
    );
    rig.put_lease(B46, &lease(&c, &c6)).unwrap();
    rig.settle("H3: one route, by the new address", &via(&c), |lab| {
        plain_route(lab, "10.244.250.0/24")
    })
    .unwrap();
    rig.delete_lease(B46).unwrap();
    rig.settle("H3: gone with the lease", &json!([]), |lab| {
        plain_route(lab, "10.244.250.0/24")
    })
    .unwrap();
    rig.settle("H3: gone with the lease", &json!([]), |lab| {
        plain_route(lab, "fd00:10:244:fa::/64")
    })
    .unwrap();
}

#[test]
fn h2_host_gw_refuses_an_advertised_address_that_is_not_the_interface_s() {
    let mut rig = Rig::bare(&Wish::of(Families::V4, json!({ "Type": "host-gw" })).hosts(1)).unwrap();
    let mut daemon = rig.lab.start_daemon(1, &["--public-ip=203.0.113.7"]).unwrap();
    let status = daemon.wait(std::time::Duration::from_secs(20));
    assert_eq!(status.and_then(|s| s.code()), Some(1), "H2: {}", daemon.log());
    assert!(daemon.log().contains("203.0.113.7"), "H2: {}", daemon.log());
}
