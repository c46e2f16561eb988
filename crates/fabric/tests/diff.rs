//! The diff and the world, by property: whatever is observed, applying the diff gives what is desired, and nothing foreign.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use fabric::config::NetworkConfig;
use fabric::diff::{Part, diff, equal};
use fabric::lease::{Attributes, Delta, Lease, Rejected, Snapshot, Subnet, Update};
use fabric::node::{Node, Underlay};
use fabric::object::*;
use fabric::ownership::{Owner, Ownership};
use fabric::plan::{Backend, backend};
use fabric::world::{Touched, World};
use ipnet::IpNet;
use proptest::prelude::*;

fn parts() -> (Box<dyn Backend>, Node) {
    let config = br#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
    let network = NetworkConfig::parse(config).unwrap();
    let backend = backend(&network.backend).unwrap();
    let subnet = Subnet::parse_key("10.244.1.0-24").unwrap();
    let identity = backend.identity(&network, &subnet, &Objects::new(), None);
    let address = Some(Ipv4Addr::new(192, 0, 2, 1));
    let link = LinkName::new("eth0").unwrap();
    let underlay = Underlay {
        link,
        mtu: 1500,
        address4: address,
        address6: None,
        public4: address,
        public6: None,
    };
    (
        backend,
        Node {
            network,
            underlay,
            subnet,
            identity,
            direct: BTreeMap::new(),
        },
    )
}

fn ownership() -> Ownership {
    Ownership {
        links: vec![LinkName::new("flannel.1").unwrap()],
        networks: vec!["10.244.0.0/16".parse().unwrap()],
        former_leases: [(
            "10.244.9.0/24".parse().unwrap(),
            vec!["10.244.9.0".parse().unwrap()],
        )]
        .into(),
    }
}

fn route(third: u8, gateway: &str, link: &str, metric: u32, protocol: u8) -> Object {
    Object::Route(Route {
        destination: IpNet::new(IpAddr::V4(Ipv4Addr::new(10, 244, third, 0)), 24).unwrap(),
        metric,
        gateway: Some(gateway.parse().unwrap()),
        link: LinkName::new(link).unwrap(),
        onlink: link != "eth0",
        protocol,
    })
}

fn lease(key: &str, host: u8, mac: u8, created: i64) -> Lease {
    let value = format!(
        r#"{{"PublicIP":"192.0.2.{host}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0a:00:00:00:00:{mac:02x}"}}}}"#
    );
    Lease {
        subnet: Subnet::parse_key(key).unwrap(),
        attributes: Attributes::parse(value.as_bytes()).unwrap(),
        created,
    }
}

/// A lease of a small pool, so that subnets, MACs and addresses collide often enough.
fn any_lease() -> impl Strategy<Value = Lease> {
    (
        2_u8..8,
        prop::sample::select(vec![24_u8, 25]),
        2_u8..6,
        2_u8..6,
        1_i64..9,
    )
        .prop_map(|(net, len, host, mac, created)| {
            lease(&format!("10.244.{net}.0-{len}"), host, mac, created)
        })
}

fn leases() -> impl Strategy<Value = BTreeMap<Subnet, Lease>> {
    prop::collection::vec(any_lease(), 0..6).prop_map(|all| all.into_iter().map(|l| (l.subnet, l)).collect())
}

fn world(leases: BTreeMap<Subnet, Lease>) -> World {
    let (backend, node) = parts();
    let mut world = World::new(backend, node);
    world.update(Update::Snapshot(Snapshot {
        revision: 1,
        leases,
        rejected: Vec::new(),
    }));
    world
}

/// An observed state: what some set of leases asked for, some of it missing or altered, with foreign objects in between.
fn observed() -> impl Strategy<Value = Objects> {
    let foreign = (
        2_u8..8,
        prop::sample::select(vec![2_u8, 3, 4, 241]),
        any::<bool>(),
    )
        .prop_map(|(net, protocol, plain)| match plain {
            true => route(net, "192.0.2.77", "eth0", 0, protocol),
            false => route(net, "10.244.77.0", "flannel.1", 50, protocol),
        });
    (
        leases(),
        any::<u8>(),
        prop::collection::vec(foreign, 0..4),
        0_u32..4,
    )
        .prop_map(|(leases, drop, foreign, device)| {
            let mut objects = world(leases).desired().clone();
            let mut n = drop;
            objects.retain(|_| {
                n = n.wrapping_mul(29).wrapping_add(7);
                n % 4 != 0
            });
            objects.extend(foreign);
            let device_key = Key::Link(LinkName::new("flannel.1").unwrap());
            if let Some(Object::Link(mut link)) = objects.get(&device_key).cloned() {
                match device {
                    0 => link.mtu = 1400,
                    1 => link.up = false,
                    2 => {
                        if let LinkKind::Vxlan(vxlan) = &mut link.kind {
                            vxlan.vni = 9;
                        }
                    }
                    _ => {}
                }
                objects.insert(Object::Link(link));
            } else {
                // A kernel keeps nothing on a device that is not there.
                objects.retain(|object| object.link().as_str() == "eth0");
            }
            objects
        })
}

/// A kernel as far as order matters: objects need their link, and a link takes all that is on it along.
fn apply(objects: &mut Objects, ops: &[Op]) {
    for op in ops {
        match op {
            Op::Add(object) => {
                let link = Key::Link(object.link());
                let exists =
                    object.link().as_str() == "eth0" || objects.contains_key(&link) || object.key() == link;
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

proptest! {
    #[test]
    fn diff_when_applied_then_the_desired_state_is_there_and_foreign_objects_are_untouched(
        leases in leases(), observed in observed(), held in any::<bool>(),
    ) {
        let world = world(leases);
        let own = ownership();
        let difference = diff(world.desired(), &observed, &own, &|_| held, Part::Whole);
        let mut after = observed.clone();
        apply(&mut after, &difference.ops);
        let conflicts: Vec<Key> = difference.conflicts.iter().map(|c| c.desired.key()).collect();
        for (key, want) in world.desired().iter() {
            let right = after.get(&key).is_some_and(|have| equal(want, have));
            prop_assert!(right || conflicts.contains(&key), "{key} is not as desired");
        }
        let rebuilt = difference.ops.iter().any(|op| matches!(op, Op::Remove(Object::Link(_))));
        for (key, was) in observed.iter() {
            let foreign = own.owner(was) == Owner::Foreign;
            if foreign && !held && !(rebuilt && was.link().as_str() == "flannel.1") {
                prop_assert_eq!(after.get(&key), Some(was), "foreign object touched");
            }
        }
        for (key, have) in after.iter() {
            let wanted = world.desired().contains_key(&key);
            prop_assert!(wanted || own.owner(have) != Owner::Ours, "{} of ours is left over", have);
        }
        let again = diff(world.desired(), &after, &own, &|_| held, Part::Whole);
        prop_assert_eq!(again.ops, Vec::<Op>::new());
    }

    #[test]
    fn diff_when_nothing_differs_then_no_ops(leases in leases()) {
        let world = world(leases);
        let difference = diff(world.desired(), world.desired(), &ownership(), &|_| false, Part::Whole);
        prop_assert_eq!(difference.ops, Vec::<Op>::new());
    }

    #[test]
    fn world_when_fed_deltas_then_the_same_as_planned_from_the_beginning(
        first in leases(), steps in prop::collection::vec((any_lease(), any::<bool>()), 0..8),
    ) {
        let mut incremental = world(first.clone());
        let mut all = first;
        let mut kernel = incremental.desired().clone();
        for (lease, gone) in steps {
            let subnet = lease.subnet;
            let change = (!gone).then_some(lease);
            match &change {
                Some(lease) => all.insert(subnet, lease.clone()),
                None => all.remove(&subnet),
            };
            let delta = Delta { revision: incremental.revision() + 1, changes: vec![(subnet, change)], rejected: Vec::new() };
            let touched = incremental.update(Update::Delta(delta));
            let part = match &touched {
                Touched::Whole => Part::Whole,
                Touched::Keys(keys) => Part::Keys(keys),
            };
            let ops = diff(incremental.desired(), &kernel, &ownership(), &|_| true, part).ops;
            apply(&mut kernel, &ops);
        }
        let fresh = world(all);
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
    let live = lease("10.244.5.0-24", 5, 5, 1);
    let world = world([(live.subnet, live)].into());
    let mut observed = world.desired().clone();
    for third in [5, 9, 11] {
        observed.insert(boot(third));
    }
    let ops = diff(world.desired(), &observed, &ownership(), &|_| false, Part::Whole).ops;
    assert_eq!(ops.len(), 2, "{ops:?}");
    assert!(matches!(&ops[0], Op::Change { from, .. } if *from == boot(5)));
    assert_eq!(
        ops[1],
        Op::Remove(boot(9)),
        "11 is in nobody's record, so it is not ours to remove"
    );
}

#[test]
fn diff_when_a_foreign_device_has_our_name_then_nothing_is_done_and_it_is_named() {
    let world = world(BTreeMap::new());
    let name = LinkName::new("flannel.1").unwrap();
    let foreign = Link {
        name,
        kind: LinkKind::Other("bridge".into()),
        mac: None,
        mtu: 1500,
        up: true,
    };
    let observed: Objects = [Object::Link(Box::new(foreign))].into();
    let difference = diff(world.desired(), &observed, &ownership(), &|_| true, Part::Whole);
    assert_eq!(difference.ops, []);
    assert_eq!(difference.conflicts.len(), 1);
}

#[test]
fn world_when_an_entry_turns_unreadable_then_the_lease_it_was_stays_and_the_entry_is_named() {
    let good = lease("10.244.5.0-24", 5, 5, 1);
    let mut world = world([(good.subnet, good.clone())].into());
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
