//! Each rule of the diff on objects made by hand: whose each of them is, is known from how it was made.

use std::net::IpAddr;

use ipnet::IpNet;

use super::*;
use crate::kind::{LinkKind, Vxlan};
use crate::object::{Address, Forwarding, Link, Mac, Neighbour, ROUTE_PROTOCOL, ROUTE_PROTOCOL_BOOT, Route};

const STATIC: u8 = 4;

fn name(name: &str) -> LinkName {
    LinkName::new(name).unwrap()
}

fn net(net: &str) -> IpNet {
    net.parse().unwrap()
}

fn ip(ip: &str) -> IpAddr {
    ip.parse().unwrap()
}

fn mac(last: u8) -> Mac {
    Mac([0x0a, 0, 0, 0, 0, last])
}

fn vxlan(link: &str, vni: u32) -> Link {
    Link {
        name: name(link),
        kind: LinkKind::from(Vxlan {
            vni,
            port: Some(8472),
            local: ip("192.0.2.1"),
            lower: name("eth0"),
            learning: false,
            gbp: false,
        }),
        mac: Some(mac(1)),
        mtu: 1450,
        up: true,
    }
}

fn link(link: Link) -> Object {
    Object::Link(Box::new(link))
}

fn bridge() -> Object {
    link(Link {
        kind: LinkKind::Other("bridge".into()),
        ..vxlan("flannel.1", 1)
    })
}

/// What the device lies on.
fn below() -> Object {
    link(Link {
        name: name("eth0"),
        kind: LinkKind::Other("".into()),
        ..vxlan("eth0", 0)
    })
}

fn address(address: &str) -> Object {
    Object::Address(Address {
        link: name("flannel.1"),
        address: net(address),
    })
}

fn neighbour(third: u8, mac: Mac) -> Object {
    Object::Neighbour(Neighbour {
        link: name("flannel.1"),
        address: ip(&format!("10.244.{third}.0")),
        mac,
    })
}

fn forwarding(third: u8) -> Object {
    Object::Forwarding(Forwarding {
        link: name("flannel.1"),
        mac: mac(third),
        remote: ip(&format!("192.0.2.{third}")),
    })
}

/// To the subnet of a peer, through the tunnel.
fn tunnelled(third: u8, protocol: u8) -> Route {
    Route {
        destination: net(&format!("10.244.{third}.0/24")),
        metric: 0,
        gateway: Some(ip(&format!("10.244.{third}.0"))),
        link: name("flannel.1"),
        onlink: true,
        protocol,
    }
}

/// The same past the tunnel.
fn plain(third: u8, protocol: u8) -> Route {
    Route {
        gateway: Some(ip(&format!("192.0.2.{third}"))),
        link: name("eth0"),
        onlink: false,
        ..tunnelled(third, protocol)
    }
}

/// The objects of a peer.
fn peer(third: u8) -> [Object; 3] {
    [
        neighbour(third, mac(third)),
        forwarding(third),
        Object::Route(tunnelled(third, ROUTE_PROTOCOL)),
    ]
}

/// A device, our address, and the peers of subnets 5 and 6.
fn fabric() -> Objects {
    let mut objects: Objects = [link(vxlan("flannel.1", 1)), address("10.244.1.0/32")].into();
    objects.extend(peer(5));
    objects.extend(peer(6));
    objects
}

fn ownership() -> Ownership {
    Ownership {
        links: vec![name("flannel.1")],
        networks: vec![net("10.244.0.0/16")],
        former_leases: [(net("10.244.9.0/24"), vec![ip("10.244.9.0")])].into(),
    }
}

fn whole(desired: &Objects, observed: &Objects) -> Difference {
    diff(desired, observed, &ownership(), &|_| false, Part::Whole)
}

fn keyed(desired: &Objects, observed: &Objects, keys: &[Key]) -> Difference {
    let keys: BTreeSet<Key> = keys.iter().copied().collect();
    diff(desired, observed, &ownership(), &|_| false, Part::Keys(&keys))
}

fn adds(objects: impl IntoIterator<Item = Object>) -> Vec<Op> {
    objects.into_iter().map(Op::Add).collect()
}

fn refused(third: u8) -> Object {
    Object::Route(Route {
        gateway: None,
        link: name("lo"),
        onlink: false,
        ..tunnelled(third, ROUTE_PROTOCOL)
    })
}

fn with(mut objects: Objects, object: Object) -> Objects {
    objects.insert(object);
    objects
}

fn without(mut objects: Objects, object: &Object) -> Objects {
    assert!(objects.remove(&object.key()).is_some());
    objects
}

#[test]
fn diff_when_there_is_nothing_then_all_is_added_from_links_to_routes() {
    let difference = whole(&fabric(), &Objects::new());
    let [n5, f5, r5] = peer(5);
    let [n6, f6, r6] = peer(6);
    let device = link(vxlan("flannel.1", 1));
    assert_eq!(
        difference.ops,
        adds([device, address("10.244.1.0/32"), n5, n6, f5, f6, r5, r6])
    );
    assert_eq!(difference.conflicts, []);
}

#[test]
fn diff_when_nothing_is_wanted_then_ours_goes_from_routes_to_links_and_the_rest_stays() {
    let mut observed = fabric();
    let other = link(vxlan("flannel.9", 9));
    let others = [
        other.clone(),
        address("10.244.1.1/24"),
        Object::Route(plain(7, STATIC)),
        Object::Route(tunnelled(8, ROUTE_PROTOCOL_BOOT)),
    ];
    observed.extend(others);
    let recorded = Object::Route(tunnelled(9, ROUTE_PROTOCOL_BOOT));
    observed.insert(recorded.clone());
    let difference = whole(&Objects::new(), &observed);
    let [n5, f5, r5] = peer(5);
    let [n6, f6, r6] = peer(6);
    let device = link(vxlan("flannel.1", 1));
    let expected = [recorded, r6, r5, f6, f5, n6, n5, address("10.244.1.0/32"), device];
    assert_eq!(difference.ops, expected.map(Op::Remove));
    assert_eq!(difference.conflicts, []);
}

#[test]
fn diff_when_some_is_wanted_and_some_no_longer_then_additions_and_changes_come_before_removals() {
    let moved = neighbour(5, mac(0x55));
    let observed = with(without(fabric(), &forwarding(5)), moved.clone());
    let desired = {
        let mut desired = fabric();
        for object in peer(6) {
            desired = without(desired, &object);
        }
        desired
    };
    let [n6, f6, r6] = peer(6);
    assert_eq!(
        whole(&desired, &observed).ops,
        [
            Op::Change {
                from: moved,
                to: neighbour(5, mac(5))
            },
            Op::Add(forwarding(5)),
            Op::Remove(r6),
            Op::Remove(f6),
            Op::Remove(n6),
        ]
    );
}

#[test]
fn diff_when_all_is_as_wanted_then_nothing_and_no_key_is_looked_at_twice() {
    assert_eq!(whole(&fabric(), &fabric()), Difference::default());
    let other = with(fabric(), neighbour(5, mac(0x55)));
    let difference = whole(&fabric(), &other);
    assert_eq!(difference.ops.len(), 1, "{:?}", difference.ops);
    let keys: Vec<Key> = union(&fabric(), &with(fabric(), Object::Route(tunnelled(7, STATIC)))).collect();
    let expected: BTreeSet<Key> = fabric().keys().chain([tunnelled(7, STATIC).key()]).collect();
    assert_eq!(keys, expected.into_iter().collect::<Vec<_>>());
}

#[test]
fn diff_when_only_some_keys_are_asked_for_then_only_these() {
    let [n5, f5, r5] = peer(5);
    let observed: Objects = [link(vxlan("flannel.1", 1))].into();
    assert_eq!(
        keyed(&fabric(), &observed, &[r5.key(), n5.key()]).ops,
        adds([n5, r5])
    );
    assert_eq!(keyed(&fabric(), &observed, &[f5.key()]).ops, adds([f5.clone()]));
    assert_eq!(keyed(&fabric(), &observed, &[]).ops, []);
    assert_eq!(
        keyed(&Objects::new(), &fabric(), &[f5.key()]).ops,
        [Op::Remove(f5)]
    );
}

#[test]
fn diff_when_a_link_has_to_be_made_anew_then_all_on_it_is_put_back_whatever_was_asked_for() {
    let was = link(vxlan("flannel.1", 2));
    let device = link(vxlan("flannel.1", 1));
    let direct = Object::Route(plain(7, ROUTE_PROTOCOL));
    let desired = with(fabric(), direct.clone());
    let observed = with(with(desired.clone(), was.clone()), below());
    let [n5, f5, r5] = peer(5);
    let [n6, f6, r6] = peer(6);
    let mut expected = vec![Op::Remove(was)];
    expected.extend(adds([
        device.clone(),
        address("10.244.1.0/32"),
        n5,
        n6,
        f5,
        f6,
        r5,
        r6,
    ]));
    assert_eq!(whole(&desired, &observed).ops, expected);
    assert_eq!(keyed(&desired, &observed, &[device.key()]).ops, expected);
    // The same where it is not there at all, although what was on it is still remembered.
    let observed = without(desired.clone(), &device);
    assert_eq!(keyed(&desired, &observed, &[device.key()]).ops, expected[1..]);
    // What is not on it is not asked for.
    let observed = without(observed, &direct);
    assert_eq!(keyed(&desired, &observed, &[device.key()]).ops, expected[1..]);
}

#[test]
fn diff_when_a_link_has_to_be_made_anew_and_cannot_then_the_one_that_is_there_stays_with_all_on_it() {
    let was = link(vxlan("flannel.1", 2));
    let device = link(vxlan("flannel.1", 1));
    let observed = with(fabric(), was.clone());
    let expected = adds([device.clone()]);
    assert_eq!(whole(&fabric(), &observed).ops, expected);
    assert_eq!(keyed(&fabric(), &observed, &[device.key()]).ops, expected);
    // One that lies on none can always be made.
    let ipip = |remote: Option<[u8; 4]>| {
        link(Link {
            kind: LinkKind::from(crate::kind::Ipip {
                local: "192.0.2.1".parse().unwrap(),
                remote: remote.map(Into::into),
                plain: true,
            }),
            ..vxlan("flannel.ipip", 0)
        })
    };
    let (want, have) = (ipip(None), ipip(Some([192, 0, 2, 2])));
    let difference = whole(&[want.clone()].into(), &[have.clone()].into());
    assert_eq!(difference.ops, [Op::Remove(have), Op::Add(want)]);
}

#[test]
fn diff_when_a_link_differs_in_what_can_be_changed_then_in_place_and_what_is_on_it_stays() {
    let narrow = link(Link {
        mtu: 1300,
        ..vxlan("flannel.1", 1)
    });
    let observed = with(fabric(), narrow.clone());
    let device = link(vxlan("flannel.1", 1));
    let expected = [Op::Change {
        from: narrow,
        to: device.clone(),
    }];
    assert_eq!(whole(&fabric(), &observed).ops, expected);
    assert_eq!(keyed(&fabric(), &observed, &[device.key()]).ops, expected);
}

#[test]
fn diff_when_a_stranger_has_our_links_name_then_it_and_its_entries_stay_and_the_routes_refuse() {
    let direct = Object::Route(plain(7, ROUTE_PROTOCOL));
    let desired = with(fabric(), direct.clone());
    let former = Object::Route(tunnelled(8, ROUTE_PROTOCOL));
    let mut observed: Objects = [
        bridge(),
        // On the stranger's device: theirs, also where they look like ours.
        address("10.244.3.0/32"),
        neighbour(5, mac(0x55)),
        neighbour(7, mac(7)),
        // Ours from before it came, one wanted and one not.
        Object::Route(tunnelled(5, ROUTE_PROTOCOL)),
        former.clone(),
    ]
    .into();
    let closed = [
        Op::Change {
            from: Object::Route(tunnelled(5, ROUTE_PROTOCOL)),
            to: refused(5),
        },
        Op::Add(refused(6)),
    ];
    let mut expected = closed.to_vec();
    expected.extend([Op::Add(direct.clone()), Op::Remove(former)]);
    let difference = whole(&desired, &observed);
    assert_eq!(difference.ops, expected);
    let device = link(vxlan("flannel.1", 1));
    let conflict = Conflict {
        desired: device.clone(),
        observed: bridge(),
    };
    assert_eq!(difference.conflicts, [conflict]);
    // The link alone was asked about: no packet may take the default route meanwhile.
    assert_eq!(keyed(&desired, &observed, &[device.key()]).ops, closed);
    // One peer was asked about, its link not.
    let keys: Vec<Key> = peer(5).iter().map(Object::key).collect();
    let difference = keyed(&desired, &observed, &keys);
    assert_eq!(difference.ops, closed[..1]);
    assert_eq!(difference.conflicts, []);
    // Nothing is left to do once they refuse.
    observed.extend([refused(5), refused(6), direct]);
    observed = without(observed, &Object::Route(tunnelled(8, ROUTE_PROTOCOL)));
    assert_eq!(whole(&desired, &observed).ops, []);
    // Nor is anything of the stranger's removed that nobody wants any more.
    let keys = [neighbour(7, mac(7)).key(), address("10.244.3.0/32").key()];
    assert_eq!(keyed(&desired, &observed, &keys).ops, []);
}

#[test]
fn diff_when_the_stranger_is_gone_then_the_routes_lead_through_the_tunnel_again() {
    let observed = with(fabric(), refused(5));
    assert_eq!(
        whole(&fabric(), &observed).ops,
        [Op::Change {
            from: refused(5),
            to: Object::Route(tunnelled(5, ROUTE_PROTOCOL))
        }]
    );
}

#[test]
fn diff_when_a_foreign_route_has_our_place_then_a_conflict_unless_we_held_it() {
    let theirs = Object::Route(plain(5, STATIC));
    let ours = Object::Route(tunnelled(5, ROUTE_PROTOCOL));
    let observed = with(fabric(), theirs.clone());
    let difference = whole(&fabric(), &observed);
    assert_eq!(difference.ops, []);
    let conflict = Conflict {
        desired: ours.clone(),
        observed: theirs.clone(),
    };
    assert_eq!(difference.conflicts, [conflict]);
    let key = ours.key();
    let held = |asked: &Key| *asked == key;
    let difference = diff(&fabric(), &observed, &ownership(), &held, Part::Whole);
    assert_eq!(
        difference.ops,
        [Op::Change {
            from: theirs,
            to: ours
        }]
    );
    assert_eq!(difference.conflicts, []);
    // It was another place that we held.
    let held = |asked: &Key| *asked != key;
    assert_eq!(
        diff(&fabric(), &observed, &ownership(), &held, Part::Whole).ops,
        []
    );
}

#[test]
fn diff_when_an_entry_is_on_a_device_that_is_not_ours_then_it_is_never_replaced() {
    let nobody = Ownership {
        links: Vec::new(),
        ..ownership()
    };
    let theirs = neighbour(5, mac(0x55));
    let observed = with(fabric(), theirs.clone());
    for held in [false, true] {
        let difference = diff(&fabric(), &observed, &nobody, &|_| held, Part::Whole);
        assert_eq!(difference.ops, []);
        let conflict = Conflict {
            desired: neighbour(5, mac(5)),
            observed: theirs.clone(),
        };
        assert_eq!(difference.conflicts, [conflict]);
    }
}

#[test]
fn diff_when_a_predecessors_route_has_our_place_then_taken_over() {
    let theirs = Object::Route(tunnelled(5, ROUTE_PROTOCOL_BOOT));
    let difference = whole(&fabric(), &with(fabric(), theirs.clone()));
    assert_eq!(
        difference.ops,
        [Op::Change {
            from: theirs,
            to: Object::Route(tunnelled(5, ROUTE_PROTOCOL))
        }]
    );
    assert_eq!(difference.conflicts, []);
}

#[test]
fn without_link_when_a_route_needs_it_then_refused_and_all_else_is_left() {
    let route = Object::Route(tunnelled(5, ROUTE_PROTOCOL));
    assert_eq!(without_link(&Op::Add(route.clone())), Some(Op::Add(refused(5))));
    assert_eq!(without_link(&Op::Add(neighbour(5, mac(5)))), None);
    let change = |from: &Object, to: &Object| Op::Change {
        from: from.clone(),
        to: to.clone(),
    };
    let direct = Object::Route(plain(5, ROUTE_PROTOCOL));
    assert_eq!(
        without_link(&change(&direct, &route)),
        Some(change(&direct, &refused(5)))
    );
    assert_eq!(without_link(&change(&refused(5), &route)), None);
    assert_eq!(
        without_link(&change(&neighbour(5, mac(6)), &neighbour(5, mac(5)))),
        None
    );
    assert_eq!(without_link(&Op::Remove(route)), None);
}

#[test]
fn equal_when_the_observed_does_what_is_asked_then_and_only_then() {
    let any_mac = link(Link {
        mac: None,
        ..vxlan("flannel.1", 1)
    });
    let device = link(vxlan("flannel.1", 1));
    assert!(any_mac.is_met_by(&device) && !device.is_met_by(&any_mac));
    assert!(forwarding(5).is_met_by(&forwarding(5)));
    assert!(!neighbour(5, mac(5)).is_met_by(&neighbour(5, mac(6))));
}

#[test]
fn carries_when_the_observed_link_is_that_device_and_up_then_and_only_then() {
    let device = link(vxlan("flannel.1", 1));
    let narrow = link(Link {
        mtu: 1300,
        ..vxlan("flannel.1", 1)
    });
    let down = link(Link {
        up: false,
        ..vxlan("flannel.1", 1)
    });
    assert!(carries(&device, &device) && carries(&device, &narrow));
    for other in [down, link(vxlan("flannel.1", 2)), bridge(), forwarding(5)] {
        assert!(!carries(&device, &other), "{other}");
    }
    assert!(!carries(&forwarding(5), &forwarding(5)), "no link");
}

#[test]
fn place_when_our_own_object_is_there_then_held() {
    let ours = Object::Route(tunnelled(5, ROUTE_PROTOCOL));
    assert!(is_held(&ours, &ours));
    assert!(!is_held(&ours, &Object::Route(plain(5, ROUTE_PROTOCOL))));
    // What an admin asks for with our very content is the admin's all the same.
    let unmarked = Object::Route(tunnelled(5, STATIC));
    assert!(!is_held(&unmarked, &unmarked));
    assert!(is_held(&forwarding(5), &forwarding(5)));
    assert!(!is_held(&neighbour(5, mac(5)), &neighbour(5, mac(6))));
}

#[test]
fn diff_when_a_predecessors_route_leads_to_the_peer_by_any_of_its_ways_then_taken_over_and_an_admins_never() {
    let direct = with(
        [link(vxlan("flannel.1", 1)), address("10.244.1.0/32")].into(),
        Object::Route(plain(5, ROUTE_PROTOCOL)),
    );
    let admins = Route {
        gateway: Some(ip("192.0.2.77")),
        ..plain(5, ROUTE_PROTOCOL_BOOT)
    };
    for (desired, there, is_taken) in [
        // The very way we want.
        (&direct, plain(5, ROUTE_PROTOCOL_BOOT), true),
        // Through the tunnel, where we want it directly; and the other way round.
        (&direct, tunnelled(5, ROUTE_PROTOCOL_BOOT), true),
        (&fabric(), plain(5, ROUTE_PROTOCOL_BOOT), true),
        (&direct, admins, false),
        (&fabric(), admins, false),
    ] {
        let observed = with(desired.clone(), Object::Route(there));
        let difference = whole(desired, &observed);
        assert_eq!(difference.ops.len(), usize::from(is_taken), "{there}");
        assert_eq!(difference.conflicts.len(), usize::from(!is_taken), "{there}");
    }
}

#[test]
fn diff_when_our_former_subnet_is_a_peers_then_our_old_address_goes_before_what_the_peer_needs() {
    let (desired, old) = (fabric(), address("10.244.5.0/32"));
    let observed: Objects = [link(vxlan("flannel.1", 1)), old.clone()].into();
    let mut expected = adds([address("10.244.1.0/32")]);
    expected.push(Op::Remove(old));
    let entries = [
        neighbour(5, mac(5)),
        neighbour(6, mac(6)),
        forwarding(5),
        forwarding(6),
    ];
    expected.extend(adds(entries));
    expected.extend(adds(
        [5, 6].map(|third| Object::Route(tunnelled(third, ROUTE_PROTOCOL))),
    ));
    assert_eq!(whole(&desired, &observed).ops, expected);
    // One that nobody wants goes last.
    let stray = address("10.244.8.0/32");
    let observed: Objects = [link(vxlan("flannel.1", 1)), stray.clone()].into();
    assert_eq!(whole(&desired, &observed).ops.last(), Some(&Op::Remove(stray)));
}
