//! The diff and the world, by property: whatever is observed, applying the diff gives what is desired, and nothing foreign.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use fabric::config::NetworkConfig;
use fabric::diff::{Part, diff};
use fabric::lease::{Attributes, Delta, Lease, Rejected, Snapshot, Subnet, Update};
use fabric::node::{Node, Provided, Underlay};
use fabric::object::*;
use fabric::ownership::Ownership;
use fabric::plan::{Backend, backend};
use fabric::world::{Touched, World};
use ipnet::IpNet;
use proptest::prelude::*;

/// A backend with a device of its own, by what it is called in the config, and the device.
#[derive(Debug, Clone, Copy)]
struct Tunnel {
    backend: &'static str,
    device: &'static str,
}

const VXLAN: Tunnel = Tunnel {
    backend: "vxlan",
    device: "flannel.1",
};
const IPIP: Tunnel = Tunnel {
    backend: "ipip",
    device: "flannel.ipip",
};

fn tunnel() -> impl Strategy<Value = Tunnel> {
    prop::sample::select(vec![VXLAN, IPIP])
}

fn name(name: &str) -> LinkName {
    LinkName::new(name).unwrap()
}

fn parts(tunnel: Tunnel) -> (Box<dyn Backend>, Node) {
    let config = format!(
        r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"{}"}}}}"#,
        tunnel.backend
    );
    let network = NetworkConfig::parse(config.as_bytes()).unwrap();
    let backend = backend(&network.backend).unwrap();
    let subnet = Subnet::parse_key("10.244.1.0-24").unwrap();
    let identity = backend.identity(&network, &subnet, &Objects::new(), None, &Provided::default());
    let address = Some(Ipv4Addr::new(192, 0, 2, 1));
    let underlay = Underlay {
        link: name("eth0"),
        mtu: 1500,
        address4: address,
        address6: None,
        public4: address,
        public6: None,
        segments: Vec::new(),
    };
    (
        backend,
        Node {
            network,
            underlay,
            subnet,
            identity,
            provided: Provided::default(),
        },
    )
}

fn ownership(tunnel: Tunnel) -> Ownership {
    Ownership {
        links: vec![name(tunnel.device)],
        networks: vec!["10.244.0.0/16".parse().unwrap()],
        former_leases: [
            (
                "10.244.9.0/24".parse().unwrap(),
                vec!["10.244.9.0".parse().unwrap()],
            ),
            // Whoever wrote this one: it lies in none of our Networks.
            ("10.9.1.0/24".parse().unwrap(), vec!["192.0.2.2".parse().unwrap()]),
        ]
        .into(),
    }
}

fn route(third: u8, gateway: &str, link: &str, metric: u32, protocol: u8) -> Object {
    Object::Route(Route {
        destination: IpNet::new(IpAddr::V4(Ipv4Addr::new(10, 244, third, 0)), 24).unwrap(),
        metric,
        gateway: Some(gateway.parse().unwrap()),
        link: name(link),
        onlink: link != "eth0",
        protocol,
    })
}

fn lease(tunnel: Tunnel, key: &str, host: u8, mac: u8, created: i64) -> Lease {
    let value = format!(
        r#"{{"PublicIP":"192.0.2.{host}","PublicIPv6":null,"BackendType":"{}","BackendData":{{"VNI":1,"VtepMAC":"0a:00:00:00:00:{mac:02x}"}}}}"#,
        tunnel.backend
    );
    Lease {
        subnet: Subnet::parse_key(key).unwrap(),
        attributes: Attributes::parse(value.as_bytes()).unwrap(),
        created,
    }
}

/// A lease of a small pool, so that subnets, MACs and addresses collide often enough.
fn any_lease(tunnel: Tunnel) -> impl Strategy<Value = Lease> {
    (
        2_u8..8,
        prop::sample::select(vec![24_u8, 25]),
        2_u8..6,
        2_u8..6,
        1_i64..9,
    )
        .prop_map(move |(net, len, host, mac, created)| {
            lease(tunnel, &format!("10.244.{net}.0-{len}"), host, mac, created)
        })
}

fn leases(tunnel: Tunnel) -> impl Strategy<Value = BTreeMap<Subnet, Lease>> {
    prop::collection::vec(any_lease(tunnel), 0..6)
        .prop_map(|all| all.into_iter().map(|l| (l.subnet, l)).collect())
}

fn world(tunnel: Tunnel, leases: BTreeMap<Subnet, Lease>) -> World {
    let (backend, node) = parts(tunnel);
    let mut world = World::new(backend, node);
    world.update(Update::Snapshot(Snapshot {
        revision: 1,
        leases,
        rejected: Vec::new(),
    }));
    world
}

/// What a host has, and whose that is: known from how it was made.
#[derive(Debug, Clone)]
struct Seen {
    objects: Objects,
    /// Nobody's but others', whatever becomes of our device.
    foreign: Vec<Key>,
    /// Others', on our device.
    guests: Vec<Key>,
    /// The device of our name is of another kind, and with it all that is on it is somebody else's.
    is_strange: bool,
}

/// Objects of others that look like ours but for one thing each.
fn strangers(tunnel: Tunnel) -> Vec<Object> {
    let address = |link: &str, address: &str| {
        Object::Address(Address {
            link: name(link),
            address: address.parse().unwrap(),
        })
    };
    let mac = Mac([0x0a, 0, 0, 0, 0, 0x77]);
    let device = |link: &str| {
        let mut device = device_of(tunnel);
        device.name = name(link);
        Object::Link(Box::new(device))
    };
    let mut outside = Route {
        destination: "10.9.0.0/24".parse().unwrap(),
        metric: 0,
        gateway: Some("192.0.2.2".parse().unwrap()),
        link: name("eth0"),
        onlink: false,
        protocol: ROUTE_PROTOCOL,
    };
    let marked = Object::Route(outside);
    outside.destination = "10.9.1.0/24".parse().unwrap();
    outside.protocol = ROUTE_PROTOCOL_BOOT;
    vec![
        // Another's device of the same kind, and one with a name of ours that we did not make.
        device("tun9"),
        device("flannel.9"),
        address("tun9", "10.244.1.0/32"),
        Object::Neighbour(Neighbour {
            link: name("tun9"),
            address: "10.244.2.0".parse().unwrap(),
            mac,
        }),
        Object::Forwarding(Forwarding {
            link: name("tun9"),
            mac,
            remote: "192.0.2.2".parse().unwrap(),
        }),
        marked,
        Object::Route(outside),
        // On our device: an address that is no host's, and one of another network.
        address(tunnel.device, "10.244.77.1/24"),
        address(tunnel.device, "172.30.0.1/32"),
    ]
}

fn device_of(tunnel: Tunnel) -> Link {
    let world = world(tunnel, BTreeMap::new());
    world.desired().links().next().unwrap().as_link().unwrap().clone()
}

/// An observed state: what some set of leases asked for, some of it missing or altered, with foreign objects in between.
fn observed(tunnel: Tunnel) -> impl Strategy<Value = Seen> {
    let routes = (
        2_u8..8,
        prop::sample::select(vec![2_u8, 3, 4, 241]),
        any::<bool>(),
    )
        .prop_map(move |(net, protocol, plain)| match plain {
            true => route(net, "192.0.2.77", "eth0", 0, protocol),
            false => route(net, "10.244.77.0", tunnel.device, 50, protocol),
        });
    (
        leases(tunnel),
        any::<u8>(),
        prop::collection::vec(routes, 0..4),
        prop::sample::subsequence(strangers(tunnel), 0..=9),
        0_u32..6,
    )
        .prop_map(move |(leases, drop, routes, strangers, device)| {
            let mut objects = world(tunnel, leases).desired().clone();
            let mut n = drop;
            objects.retain(|_| {
                n = n.wrapping_mul(29).wrapping_add(7);
                n % 4 != 0
            });
            let mut foreign = Vec::new();
            for route in routes {
                let key = route.key();
                foreign.retain(|other| *other != key);
                if matches!(&route, Object::Route(route) if route.protocol != ROUTE_PROTOCOL) {
                    foreign.push(key);
                }
                objects.insert(route);
            }
            // What our device lies on is there, and not ours.
            let below = Object::Link(Box::new(Link {
                name: name("eth0"),
                kind: LinkKind::Other("".into()),
                mac: None,
                mtu: 1500,
                up: true,
            }));
            foreign.extend(strangers.iter().chain([&below]).map(Object::key));
            objects.extend(strangers);
            objects.insert(below);
            let ours = name(tunnel.device);
            if let Some(Object::Link(mut link)) = objects.get(&Key::Link(ours)).cloned() {
                match device {
                    0 => link.mtu = 1400,
                    1 => link.up = false,
                    2 => make_another(&mut link),
                    3 => change_in_place(&mut link),
                    4 => link.kind = LinkKind::Other("bridge".into()),
                    _ => {}
                }
                objects.insert(Object::Link(link));
            } else {
                // A kernel keeps nothing on a device that is not there.
                objects.retain(|object| object.link() != ours);
            }
            // Nor on any other.
            let links: Vec<LinkName> = objects.links().map(Object::link).collect();
            objects.retain(|object| object.link().as_str() == "eth0" || links.contains(&object.link()));
            let device = objects.get(&Key::Link(ours)).and_then(Object::as_link);
            let is_strange = device.is_some_and(|device| matches!(device.kind, LinkKind::Other(_)));
            if is_strange {
                foreign.extend(objects.keys().filter(|key| key.link() == Some(ours)));
            }
            foreign.retain(|key| objects.contains_key(key));
            let (guests, foreign) = foreign
                .into_iter()
                .partition(|key| objects.get(key).is_some_and(|object| object.link() == ours));
            Seen {
                objects,
                foreign,
                guests,
                is_strange,
            }
        })
}

/// The same, but for a port that is the kernel's to choose.
fn is_as_asked(want: &Object, have: &Object) -> bool {
    let (mut want, have) = (want.clone(), have.clone());
    if let (Object::Link(want), Object::Link(have)) = (&mut want, &have)
        && let (LinkKind::Vxlan(want), LinkKind::Vxlan(have)) = (&mut want.kind, &have.kind)
    {
        want.port = want.port.or(have.port);
    }
    want == have
}

/// Makes a device one that has to be made anew.
fn make_another(link: &mut Link) {
    match &mut link.kind {
        LinkKind::Vxlan(vxlan) => vxlan.vni = 9,
        LinkKind::Ipip(ipip) => ipip.remote = Some(Ipv4Addr::new(192, 0, 2, 2)),
        LinkKind::Other(_) => panic!("{link}"),
    }
}

fn change_in_place(link: &mut Link) {
    match &mut link.kind {
        LinkKind::Vxlan(vxlan) => vxlan.learning = true,
        LinkKind::Ipip(ipip) => ipip.plain = false,
        LinkKind::Other(_) => panic!("{link}"),
    }
}

/// A kernel as far as order matters: objects need their link, and a link takes all that is on it along.
fn apply(objects: &mut Objects, ops: &[Op]) {
    for op in ops {
        match op {
            Op::Add(object) => {
                let link = Key::Link(object.link());
                let is_here = ["eth0", "lo"].contains(&object.link().as_str());
                let exists = is_here || objects.contains_key(&link) || object.key() == link;
                assert!(exists, "{op}: no such device");
                assert!(objects.insert(object.clone()).is_none(), "{op}: file exists");
            }
            Op::Change { from, to } => {
                assert_eq!(objects.get(&from.key()), Some(from), "{op}");
                objects.insert(to.clone());
            }
            Op::Remove(object) => {
                assert!(objects.remove(&object.key()).is_some(), "{op}: no such object");
                if let Object::Link(link) = object {
                    objects.retain(|other| other.link() != link.name);
                }
            }
        }
    }
}

/// The destinations of all routes.
fn routed(world: &World) -> BTreeSet<IpNet> {
    let routes = world.desired().values().filter_map(|object| match object {
        Object::Route(route) => Some(route.destination),
        _ => None,
    });
    routes.collect()
}

/// The subnets that have a route when each that is older goes before all that overlap with it.
fn oldest_first(leases: &BTreeMap<Subnet, Lease>) -> BTreeSet<IpNet> {
    let mut order: Vec<&Lease> = leases.values().collect();
    order.sort_by_key(|lease| (lease.created, lease.subnet));
    let mut held = BTreeSet::new();
    for net in order.iter().filter_map(|lease| lease.subnet.of(Family::V4)) {
        if !held
            .iter()
            .any(|other: &IpNet| other.contains(&net) || net.contains(other))
        {
            held.insert(net);
        }
    }
    held
}

proptest! {
    #[test]
    fn diff_when_applied_then_the_desired_state_is_there_and_foreign_objects_are_untouched(
        (tunnel, leases, seen) in tunnel().prop_flat_map(|tunnel| (Just(tunnel), leases(tunnel), observed(tunnel))),
        held in any::<bool>(),
    ) {
        let world = world(tunnel, leases);
        let own = ownership(tunnel);
        let difference = diff(world.desired(), &seen.objects, &own, &|_| held, Part::Whole);
        let mut after = seen.objects.clone();
        apply(&mut after, &difference.ops);
        let conflicts: Vec<Key> = difference.conflicts.iter().map(|c| c.desired.key()).collect();
        for (key, want) in world.desired().iter() {
            let right = match want {
                // Nothing can be put on a stranger's device, and nothing may pass it by.
                Object::Route(_) if seen.is_strange => matches!(after.get(&key), Some(Object::Route(have)) if have.is_unreachable()),
                _ if seen.is_strange => continue,
                want => after.get(&key).is_some_and(|have| is_as_asked(want, have)),
            };
            prop_assert!(right || conflicts.contains(&key), "{key} is not as desired");
        }
        prop_assert_eq!(conflicts.contains(&Key::Link(name(tunnel.device))), seen.is_strange);
        let ours = name(tunnel.device);
        let rebuilt = difference.ops.iter().any(|op| matches!(op, Op::Remove(Object::Link(link)) if link.name == ours));
        for key in &seen.foreign {
            // A place that we held may be taken back from a foreign route.
            let taken_back = held && key.is_route() && world.desired().contains_key(key);
            prop_assert!(taken_back || after.get(key) == seen.objects.get(key), "{key} is not ours to touch");
        }
        for key in seen.guests.iter().filter(|_| !rebuilt) {
            let taken_back = held && key.is_route() && world.desired().contains_key(key);
            prop_assert!(taken_back || after.get(key) == seen.objects.get(key), "{key} is not ours to touch");
        }
        for (key, have) in after.iter() {
            let others = seen.foreign.contains(&key) || seen.guests.contains(&key);
            let predecessors = matches!(have, Object::Route(route) if route.protocol == ROUTE_PROTOCOL_BOOT);
            prop_assert!(world.desired().contains_key(&key) || others || predecessors, "{have} of ours is left over");
        }
        let again = diff(world.desired(), &after, &own, &|_| held, Part::Whole);
        prop_assert_eq!(again.ops, Vec::<Op>::new());
    }

    #[test]
    fn diff_when_nothing_differs_then_no_ops(
        (tunnel, leases) in tunnel().prop_flat_map(|tunnel| (Just(tunnel), leases(tunnel))),
    ) {
        let world = world(tunnel, leases);
        let difference = diff(world.desired(), world.desired(), &ownership(tunnel), &|_| false, Part::Whole);
        prop_assert_eq!(difference.ops, Vec::<Op>::new());
    }

    #[test]
    fn world_when_fed_deltas_then_the_same_as_planned_from_the_beginning(
        (tunnel, first, steps) in tunnel().prop_flat_map(|tunnel| (
            Just(tunnel),
            leases(tunnel),
            prop::collection::vec((any_lease(tunnel), any::<bool>()), 0..8),
        )),
    ) {
        let mut incremental = world(tunnel, first.clone());
        let mut all = first;
        let mut kernel = incremental.desired().clone();
        for (lease, gone) in steps {
            let subnet = lease.subnet;
            let change = (!gone).then_some(lease);
            match &change {
                Some(lease) => all.insert(subnet, lease.clone()),
                None => all.remove(&subnet),
            };
            let delta = Delta { revision: incremental.revision() + 1, changes: vec![(subnet, change)], rejected: Vec::new(), gone: Vec::new() };
            let touched = incremental.update(Update::Delta(delta));
            let part = match &touched {
                Touched::Whole => Part::Whole,
                Touched::Keys(keys) => Part::Keys(keys),
            };
            let ops = diff(incremental.desired(), &kernel, &ownership(tunnel), &|_| true, part).ops;
            apply(&mut kernel, &ops);
        }
        let fresh = world(tunnel, all.clone());
        prop_assert_eq!(routed(&fresh), oldest_first(&all));
        prop_assert_eq!(incremental.desired(), fresh.desired());
        prop_assert_eq!(incremental.problems(), fresh.problems());
        prop_assert_eq!(&kernel, fresh.desired());
    }
}

#[test]
fn diff_when_predecessors_route_then_adopted_with_a_live_lease_and_removed_only_when_recorded() {
    let boot = |third: u8| {
        route(
            third,
            &format!("10.244.{third}.0"),
            "flannel.1",
            0,
            ROUTE_PROTOCOL_BOOT,
        )
    };
    let live = lease(VXLAN, "10.244.5.0-24", 5, 5, 1);
    let world = world(VXLAN, [(live.subnet, live)].into());
    let mut observed = world.desired().clone();
    for third in [5, 9, 11] {
        observed.insert(boot(third));
    }
    let ops = diff(
        world.desired(),
        &observed,
        &ownership(VXLAN),
        &|_| false,
        Part::Whole,
    )
    .ops;
    assert_eq!(ops.len(), 2, "{ops:?}");
    assert!(matches!(&ops[0], Op::Change { from, .. } if *from == boot(5)));
    assert_eq!(
        ops[1],
        Op::Remove(boot(9)),
        "11 is in nobody's record, so it is not ours to remove"
    );
}

/// A blackhole or a route to a link: Go flannel makes none.
#[test]
fn diff_when_a_route_of_go_flannels_protocol_has_no_gateway_then_it_is_somebody_elses() {
    let live = lease(VXLAN, "10.244.5.0-24", 5, 5, 1);
    let world = world(VXLAN, [(live.subnet, live)].into());
    let mut observed = world.desired().clone();
    let Object::Route(mut other) = route(5, "10.244.5.0", "flannel.1", 0, ROUTE_PROTOCOL_BOOT) else {
        panic!()
    };
    other.gateway = None;
    observed.insert(Object::Route(other));
    let difference = diff(
        world.desired(),
        &observed,
        &ownership(VXLAN),
        &|_| false,
        Part::Whole,
    );
    assert_eq!(difference.ops, []);
    assert_eq!(difference.conflicts.len(), 1);
}

#[test]
fn diff_when_a_foreign_device_has_our_name_then_nothing_is_done_and_it_is_named() {
    for tunnel in [VXLAN, IPIP] {
        let world = world(tunnel, BTreeMap::new());
        let other = if tunnel.backend == "ipip" { VXLAN } else { IPIP };
        for kind in [LinkKind::Other("bridge".into()), device_of(other).kind] {
            let foreign = Link {
                name: name(tunnel.device),
                kind,
                mac: None,
                mtu: 1500,
                up: true,
            };
            let observed: Objects = [Object::Link(Box::new(foreign))].into();
            let own = ownership(tunnel);
            let difference = diff(world.desired(), &observed, &own, &|_| true, Part::Whole);
            assert_eq!(difference.ops, []);
            assert_eq!(difference.conflicts.len(), 1);
            // Nor is it removed when nobody wants one there any more.
            let difference = diff(&Objects::new(), &observed, &own, &|_| true, Part::Whole);
            assert_eq!(difference.ops, []);
        }
    }
}

#[test]
fn diff_when_a_former_device_of_another_kind_is_left_then_removed() {
    let world = world(IPIP, BTreeMap::new());
    let mut own = ownership(IPIP);
    own.links.push(name(VXLAN.device));
    let former = Object::Link(Box::new(device_of(VXLAN)));
    let mut observed = world.desired().clone();
    observed.insert(former.clone());
    let difference = diff(world.desired(), &observed, &own, &|_| true, Part::Whole);
    assert_eq!(difference.ops, [Op::Remove(former)]);
}

#[test]
fn world_when_an_entry_turns_unreadable_then_the_lease_it_was_stays_and_the_entry_is_named() {
    let good = lease(VXLAN, "10.244.5.0-24", 5, 5, 1);
    let mut world = world(VXLAN, [(good.subnet, good.clone())].into());
    let before = world.desired().clone();
    let rejected = |key: &str| Rejected {
        key: key.to_owned(),
        reason: "junk".to_owned(),
    };
    let rejected = vec![rejected("10.244.5.0-24"), rejected("foo")];
    world.update(Update::Snapshot(Snapshot {
        revision: 9,
        leases: BTreeMap::new(),
        rejected,
    }));
    assert_eq!(world.desired(), &before);
    assert_eq!(world.rejected().len(), 2);
    world.update(Update::Snapshot(Snapshot {
        revision: 10,
        leases: BTreeMap::new(),
        rejected: Vec::new(),
    }));
    assert_eq!(world.peers().count(), 0);
}

#[test]
fn diff_when_a_route_of_go_flannels_protocol_is_in_a_peers_place_then_where_it_leads_says_whose_it_is() {
    let live = lease(VXLAN, "10.244.5.0-24", 5, 5, 1);
    let world = world(VXLAN, [(live.subnet, live)].into());
    let ownership = ownership(VXLAN);
    let boot = |gateway: &str, link: &str| route(5, gateway, link, 0, ROUTE_PROTOCOL_BOOT);
    for (there, is_taken) in [
        // What Go flannel makes of the lease, through the tunnel and directly.
        (boot("10.244.5.0", "flannel.1"), true),
        (boot("192.0.2.5", "eth0"), true),
        // `ip route add 10.244.5.0/24 via 192.0.2.77`.
        (boot("192.0.2.77", "eth0"), false),
    ] {
        let mut observed = world.desired().clone();
        observed.insert(there.clone());
        let difference = diff(world.desired(), &observed, &ownership, &|_| false, Part::Whole);
        let changes = difference
            .ops
            .iter()
            .filter(|op| matches!(op, Op::Change { from, .. } if *from == there));
        assert_eq!(
            (changes.count() == 1, difference.conflicts.is_empty()),
            (is_taken, is_taken),
            "{there}"
        );
        // A place that was ours since we started is taken back from anybody.
        let difference = diff(world.desired(), &observed, &ownership, &|_| true, Part::Whole);
        assert!(
            difference.conflicts.is_empty() && difference.ops.len() == 1,
            "{there}"
        );
    }
}

#[test]
fn diff_when_the_subnet_we_had_is_a_peers_now_then_our_old_address_goes_between_the_new_one_and_the_route() {
    // This node has 10.244.1.0/24 now, and had 10.244.5.0/24 before, which is another's.
    let live = lease(VXLAN, "10.244.5.0-24", 5, 5, 1);
    let world = world(VXLAN, [(live.subnet, live)].into());
    let mut observed = Objects::new();
    observed.extend(world.desired().links().cloned());
    let old = Object::Address(Address {
        link: name("flannel.1"),
        address: "10.244.5.0/32".parse().unwrap(),
    });
    observed.insert(old.clone());
    let ops = diff(
        world.desired(),
        &observed,
        &ownership(VXLAN),
        &|_| false,
        Part::Whole,
    )
    .ops;
    let position = |wanted: &dyn Fn(&Op) -> bool| ops.iter().position(wanted).unwrap();
    let new = position(&|op| matches!(op, Op::Add(Object::Address(_))));
    let gone = position(&|op| *op == Op::Remove(old.clone()));
    let route = position(&|op| matches!(op, Op::Add(Object::Route(_))));
    assert!(new < gone && gone < route, "{ops:?}");
}
