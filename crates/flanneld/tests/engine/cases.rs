//! Single histories, each with one question.

use std::collections::BTreeMap;
use std::time::Duration;

use fabric::object::{Key, Object, Op};
use fabric::readiness::Kind;

use crate::rig::{
    DIRECT, EINVAL, ENETUNREACH, ENOBUFS, HOST_GW, Rig, VXLAN, admin_route, dummy, eth0, is_closed, is_ours,
    is_served, millis, name, underlay,
};

#[test]
fn engine_when_nothing_was_listed_yet_then_nothing_is_done_or_planned() {
    let mut rig = Rig::new(VXLAN);
    rig.act(Op::Add(admin_route("10.5.9.0/24")));
    assert!(rig.plan().is_empty());
    rig.pass(Duration::from_secs(200));
    assert!(rig.engine.host().truth().values().all(|object| !is_ours(object)));
    assert!(!rig.standing().engaged && rig.subnet_file.take().is_none());
}

#[test]
fn engine_when_set_up_from_a_cache_then_it_serves_that_and_removes_nothing_before_the_registry_speaks() {
    let mut rig = Rig::new(VXLAN);
    rig.learn(3, 0);
    let stray = rig.route(3);
    let stray = rig.desired().get(&stray).map(|route| (*route).clone()).unwrap();
    rig.leases.clear();
    rig.learn(1, 0);
    rig.learn(2, 0);
    rig.set_up_from_cache();
    rig.pass(millis(20));
    rig.assert_converged();
    assert!(rig.standing().engaged && rig.subnet_file.take().is_some());
    // A peer that came after the cache was written: the daemon that knew it left its route.
    rig.act(Op::Add(stray.clone()));
    rig.pass(Duration::from_secs(200));
    assert!(rig.there(&stray.key()).is_some());
    assert!(rig.plan().is_empty());
    // What is known is kept all the same.
    let lost = rig.route(1);
    rig.remove(&lost);
    rig.pass(Duration::from_secs(1));
    assert!(is_served(&mut rig, 1) && is_served(&mut rig, 2));
    // The registry says the same: absence counts from now on.
    rig.snapshot();
    rig.pass(Duration::from_secs(1));
    assert!(rig.there(&stray.key()).is_none());
    rig.assert_converged();
}

#[test]
fn engine_when_a_cache_comes_after_the_registry_spoke_then_it_is_history() {
    let mut rig = Rig::running(VXLAN, 3);
    let third = rig.leases.remove(&rig.subnet(3)).unwrap();
    let fourth = rig.learn(4, 0);
    rig.set_up_from_cache();
    rig.leases.remove(&fourth.subnet);
    rig.leases.insert(third.subnet, third);
    rig.pass(Duration::from_secs(1));
    rig.assert_converged();
    let fourth = rig.route(4);
    assert!(rig.there(&fourth).is_none());
}

#[test]
fn engine_when_a_peers_step_fails_then_the_others_do_not_wait() {
    let mut rig = Rig::running(VXLAN, 2);
    let broken = rig.route(3);
    rig.engine.host().refuse(broken, ENOBUFS);
    rig.put(3, 0);
    rig.put(4, 0);
    rig.round();
    assert!(is_served(&mut rig, 4) && !is_served(&mut rig, 3));
    rig.pass(Duration::from_secs(20));
    rig.put(5, 0);
    rig.round();
    assert!(is_served(&mut rig, 5), "in the very round that heard of it");
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.standing().failed_peers, 1);
    assert_eq!(rig.found(Kind::Failure).len(), 1, "{:?}", rig.report());
    rig.engine.host().allow_all();
    rig.pass(Duration::from_secs(31));
    rig.assert_converged();
    assert_eq!((rig.standing().failed_peers, rig.repairs()), (0, 0));
}

#[test]
fn engine_when_the_device_cannot_be_made_then_what_hangs_on_it_is_not_tried_and_nothing_spins() {
    let mut rig = Rig::running(VXLAN, 5);
    let link = Key::Link(name("flannel.1"));
    rig.engine.host().refuse(link, EINVAL);
    rig.remove(&link);
    rig.pass(Duration::from_secs(2));
    assert_eq!(
        rig.found(Kind::Failure).len(),
        1,
        "one cause, one failure: {:?}",
        rig.report()
    );
    assert_eq!(rig.standing().failed_peers, 5);
    assert!((1..=5).all(|peer| is_closed(&mut rig, peer)));
    // News for a device that is not there waits for it.
    rig.put(6, 0);
    let before = rig.rounds;
    rig.pass(Duration::from_secs(50));
    assert!(rig.rounds - before < 60, "{} rounds", rig.rounds - before);
    assert_eq!(rig.found(Kind::Failure).len(), 1);
    rig.engine.host().allow_all();
    // Nobody tells when whoever had its number or its port lets go.
    rig.pass(Duration::from_secs(3));
    rig.assert_converged();
}

#[test]
fn engine_when_a_failed_device_comes_up_by_another_hand_then_its_peers_are_served_at_once() {
    let mut rig = Rig::running(VXLAN, 3);
    let link = Key::Link(name("flannel.1"));
    let Some(Object::Link(up)) = rig.there(&link) else {
        panic!()
    };
    let mut down = up.clone();
    down.up = false;
    rig.engine.host().refuse(link, EINVAL);
    rig.act(Op::Change {
        from: Object::Link(up.clone()),
        to: Object::Link(down.clone()),
    });
    rig.pass(Duration::from_secs(10));
    assert!(!is_served(&mut rig, 1));
    rig.act(Op::Change {
        from: Object::Link(down),
        to: Object::Link(up),
    });
    rig.pass(millis(200));
    rig.assert_converged();
}

#[test]
fn engine_when_a_change_of_the_device_fails_then_peers_are_served_all_the_same() {
    let mut rig = Rig::running(VXLAN, 3);
    let link = Key::Link(name("flannel.1"));
    let Some(Object::Link(right)) = rig.there(&link) else {
        panic!()
    };
    let mut wrong = right.clone();
    wrong.mtu = 1300;
    rig.engine.host().refuse(link, EINVAL);
    rig.act(Op::Change {
        from: Object::Link(right),
        to: Object::Link(wrong),
    });
    let route = rig.route(2);
    rig.remove(&route);
    rig.put(4, 0);
    rig.pass(millis(200));
    assert!((1..=4).all(|peer| is_served(&mut rig, peer)));
}

/// What is sent to a peer is refused.
#[test]
fn engine_when_our_objects_are_removed_then_they_are_back_and_counted_once() {
    let mut rig = Rig::running(VXLAN, 4);
    let route = rig.route(2);
    rig.remove(&route);
    rig.pass(millis(200));
    rig.assert_converged();
    assert_eq!(rig.repairs(), 1);
    rig.remove(&Key::Link(name("flannel.1")));
    rig.pass(millis(200));
    rig.assert_converged();
    // The link, its address, and three objects for each of four peers.
    assert_eq!(rig.repairs(), 1 + 14);
}

#[test]
fn engine_when_a_first_attempt_failed_then_its_success_is_no_repair() {
    let mut rig = Rig::running(VXLAN, 1);
    let broken = rig.route(2);
    rig.engine.host().refuse(broken, ENOBUFS);
    rig.put(2, 0);
    rig.pass(millis(150));
    rig.engine.host().allow_all();
    // An audit and a disturbance elsewhere at the same time make no difference.
    rig.engine.host().lose_notifications();
    rig.pass(Duration::from_secs(1));
    assert!(is_served(&mut rig, 2));
    assert_eq!(rig.repairs(), 0);
}

#[test]
fn engine_when_the_underlay_is_cut_unplugged_or_renumbered_then_the_host_is_not_ready_until_it_is_back() {
    let mut rig = Rig::running(VXLAN, 1);
    assert!(rig.report().is_ready(), "{:?}", rig.report());
    let is_told = |rig: &mut Rig, word: &str| {
        rig.pass(millis(100));
        let reasons = rig.report().reasons();
        reasons
            .iter()
            .any(|reason| reason.contains(word) && reason.contains("eth0"))
    };
    rig.engine.host().set_carrier(name("eth0"), false);
    assert!(is_told(&mut rig, "carrier"));
    rig.engine.host().set_carrier(name("eth0"), true);
    rig.pass(millis(100));
    assert!(rig.report().is_ready());
    let address = underlay()[1].clone();
    rig.act(Op::Remove(address.clone()));
    assert!(is_told(&mut rig, "192.0.2.1"));
    rig.act(Op::Add(address));
    rig.pass(millis(500));
    assert!(rig.report().is_ready(), "{:?}", rig.report());
    rig.act(Op::Change {
        from: eth0(true),
        to: eth0(false),
    });
    assert!(is_told(&mut rig, "down"));
    rig.act(Op::Change {
        from: eth0(false),
        to: eth0(true),
    });
    rig.pass(Duration::from_secs(2));
    assert!(rig.report().is_ready(), "{:?}", rig.report());
    rig.act(Op::Remove(eth0(true)));
    assert!(is_told(&mut rig, "gone"));
}

#[test]
fn engine_when_the_kernel_refuses_what_a_peer_has_published_then_the_peer_is_degraded_and_the_host_ready() {
    let mut rig = Rig::running(HOST_GW, 1);
    let beyond = rig.route(2);
    rig.engine.host().refuse(beyond, ENETUNREACH);
    rig.put(2, 0);
    rig.pass(millis(100));
    assert!(rig.report().is_ready(), "{:?}", rig.report());
    assert_eq!(rig.found(Kind::Degraded).len(), 1);
    // The same answer for want of an address of our own is nobody else's fault.
    rig.act(Op::Remove(underlay()[1].clone()));
    rig.pass(Duration::from_secs(40));
    assert!(
        rig.found(Kind::Failure)
            .iter()
            .any(|text| text.contains("192.0.2.1"))
    );
}

#[test]
fn engine_when_paused_then_it_sleeps_and_when_resumed_then_it_repairs() {
    let mut rig = Rig::running(VXLAN, 3);
    let broken = rig.route(4);
    rig.engine.host().refuse(broken, ENOBUFS);
    rig.put(4, 0);
    rig.pass(millis(50));
    rig.pause(true);
    let link = Key::Link(name("flannel.1"));
    rig.remove(&link);
    let before = rig.rounds;
    rig.pass(Duration::from_secs(50));
    assert!(rig.rounds - before < 20, "{} rounds", rig.rounds - before);
    assert!(rig.there(&link).is_none() && rig.standing().paused);
    assert_eq!(rig.found(Kind::Paused).len(), 1);
    rig.engine.host().allow_all();
    rig.pause(false);
    rig.pass(millis(300));
    rig.assert_converged();
    assert!(rig.report().is_ready(), "{:?}", rig.report());
}

#[test]
fn engine_when_a_held_place_is_taken_and_cannot_be_taken_back_at_once_then_it_is_not_given_up() {
    let mut rig = Rig::running(VXLAN, 1);
    let route = rig.route(1);
    let ours = rig.there(&route).unwrap();
    rig.engine.host().refuse(route, ENOBUFS);
    rig.act(Op::Change {
        from: ours,
        to: admin_route("10.5.1.0/24"),
    });
    // Compared as a whole meanwhile.
    rig.engine.host().lose_notifications();
    rig.pass(Duration::from_secs(100));
    rig.engine.host().allow_all();
    rig.pass(Duration::from_secs(31));
    rig.assert_converged();
    assert!(rig.found(Kind::Conflict).is_empty());
}

#[test]
fn engine_when_the_underlay_comes_back_then_host_gw_routes_are_back_within_a_moment() {
    let mut rig = Rig::running(HOST_GW, 3);
    rig.act(Op::Change {
        from: eth0(true),
        to: eth0(false),
    });
    rig.pass(Duration::from_secs(30));
    rig.act(Op::Change {
        from: eth0(false),
        to: eth0(true),
    });
    rig.pass(millis(200));
    rig.assert_converged();
}

#[test]
fn engine_when_the_underlays_link_is_gone_for_long_then_all_is_back_with_it() {
    let mut rig = Rig::running(VXLAN, 3);
    rig.act(Op::Remove(eth0(true)));
    let before = rig.rounds;
    rig.pass(Duration::from_secs(100));
    assert!(rig.rounds - before < 150, "{} rounds", rig.rounds - before);
    for object in underlay() {
        rig.act(Op::Add(object));
    }
    rig.pass(millis(500));
    rig.assert_converged();
}

#[test]
fn engine_when_the_way_to_a_peer_changes_with_its_lease_then_nothing_of_the_old_way_is_left() {
    let mut rig = Rig::running(DIRECT, 2);
    let public = rig.lease(1, 0, 1).attributes.public_ip.into();
    // The kernel changed its mind without the engine hearing of it before the lease's own news.
    rig.engine.host().set_direct(public, Some(name("eth0")));
    rig.engine.host().lose_notifications();
    rig.put(1, 0);
    rig.leases.get_mut(&rig.lease(1, 0, 1).subnet).unwrap().created += 1;
    rig.snapshot();
    rig.pass(Duration::from_secs(200));
    rig.assert_converged();
}

#[test]
fn engine_when_set_up_again_before_the_first_listing_then_a_predecessors_record_is_kept() {
    let mut rig = Rig::new(VXLAN);
    let Object::Route(mut left) = admin_route("10.5.7.0/24") else {
        panic!()
    };
    left.protocol = 3;
    rig.act(Op::Add(Object::Route(left)));
    rig.set_up(BTreeMap::from([(left.destination, vec![left.gateway.unwrap()])]));
    rig.round();
    rig.set_up(BTreeMap::new());
    // Whoever is not in the record is an admin's.
    let Object::Route(mut kept) = admin_route("10.5.8.0/24") else {
        panic!()
    };
    kept.protocol = 3;
    rig.act(Op::Add(Object::Route(kept)));
    rig.snapshot();
    let gone = Object::Route(left).key();
    rig.held.insert(gone);
    rig.pass(millis(200));
    assert!(rig.there(&gone).is_none());
    assert!(rig.there(&Object::Route(kept).key()).is_some());
}

/// The record of who was there is needed until what it names is gone.
#[test]
fn engine_when_the_kernel_does_not_let_go_of_a_predecessors_route_then_it_is_asked_again() {
    let mut rig = Rig::new(VXLAN);
    let Object::Route(mut left) = admin_route("10.5.7.0/24") else {
        panic!()
    };
    left.protocol = 3;
    let gone = Object::Route(left).key();
    rig.act(Op::Add(Object::Route(left)));
    rig.set_up(BTreeMap::from([(left.destination, vec![left.gateway.unwrap()])]));
    rig.engine.host().refuse(gone, ENOBUFS);
    rig.snapshot();
    rig.held.insert(gone);
    rig.pass(Duration::from_secs(5));
    assert!(rig.there(&gone).is_some());
    rig.engine.host().allow_all();
    rig.pass(Duration::from_secs(60));
    assert!(rig.there(&gone).is_none());
}

#[test]
fn engine_when_a_lease_asks_for_nothing_then_it_is_counted_all_the_same() {
    let mut rig = Rig::running(VXLAN, 1);
    let mut strange = rig.learn(2, 0);
    strange.attributes.backend_type = "host-gw".into();
    rig.leases.insert(strange.subnet, strange.clone());
    let delta = fabric::lease::Delta {
        revision: 99,
        changes: vec![(strange.subnet, Some(strange))],
        rejected: vec![],
        gone: vec![],
    };
    rig.mailbox.update(fabric::lease::Update::Delta(delta));
    rig.round();
    let standing = rig.standing();
    assert_eq!(
        (
            standing.peers,
            standing.degraded_peers,
            standing.failed_peers,
            standing.revision
        ),
        (2, 1, 0, 99)
    );
}

#[test]
fn engine_when_a_peers_entry_cannot_be_read_at_its_start_then_what_an_earlier_process_left_stays_until_it_is_known()
 {
    let mut rig = Rig::new(VXLAN);
    let lease = rig.learn(3, 0);
    rig.learn(4, 0);
    // An earlier process served both; of one the registry says nothing that can be read.
    rig.set_up_from_cache();
    rig.pass(millis(50));
    assert!(is_served(&mut rig, 3) && is_served(&mut rig, 4));
    let truth = rig.engine.host().truth().clone();
    let mut fresh = Rig::new(VXLAN);
    for object in truth.into_values().filter(is_ours) {
        fresh.act(Op::Add(object));
    }
    let fourth = fresh.learn(4, 0);
    let leases = BTreeMap::from([(fourth.subnet, fourth)]);
    let reason = "lease value: not JSON".to_owned();
    let rejected = vec![fabric::lease::Rejected {
        key: lease.subnet.to_string(),
        reason,
    }];
    let snapshot = |revision, rejected| {
        let leases = leases.clone();
        fabric::lease::Update::Snapshot(fabric::lease::Snapshot {
            revision,
            leases,
            rejected,
        })
    };
    fresh.mailbox.update(snapshot(50, rejected));
    fresh.pass(Duration::from_secs(100));
    let of_third = |rig: &mut Rig| {
        let subnet = rig.subnet(3).v4.unwrap();
        let truth = rig.engine.host().truth();
        let about = |object: &&Object| match object {
            Object::Route(route) => route.destination == subnet.into(),
            Object::Neighbour(n) => n.address == subnet.addr(),
            Object::Forwarding(f) => f.remote.to_string() == "192.0.2.13",
            _ => false,
        };
        truth.values().filter(about).count()
    };
    assert_eq!(of_third(&mut fresh), 3, "route, neighbour and forwarding entry");
    assert!(fresh.report().is_ready() && fresh.found(Kind::Degraded).len() == 1);
    // The entry is deleted: now its absence says something.
    fresh.mailbox.update(snapshot(51, Vec::new()));
    fresh.pass(Duration::from_secs(1));
    assert_eq!(of_third(&mut fresh), 0);
}

#[test]
fn engine_when_a_device_is_taken_away_in_the_moment_it_is_made_then_that_is_a_failure_and_it_is_made_again() {
    let mut rig = Rig::running(VXLAN, 2);
    let link = Key::Link(name("flannel.1"));
    rig.engine.host().snatch(link);
    rig.remove(&link);
    rig.pass(Duration::from_secs(2));
    assert!(rig.there(&link).is_none());
    let failures = rig.found(Kind::Failure);
    assert!(
        failures.len() == 1 && failures[0].contains("flannel.1"),
        "{failures:?}"
    );
    rig.engine.host().allow_all();
    rig.pass(Duration::from_secs(4));
    rig.assert_converged();
    assert!(rig.report().is_ready(), "{:?}", rig.report());
}

#[test]
fn engine_when_a_device_goes_then_what_was_refused_for_its_sake_is_tried_at_once() {
    const EEXIST: i32 = 17;
    let mut rig = Rig::running(VXLAN, 2);
    let (ours, other) = (Key::Link(name("flannel.1")), dummy("vxlan9"));
    rig.act(Op::Add(other.clone()));
    rig.engine.host().refuse(ours, EEXIST);
    rig.remove(&ours);
    // Long enough for its retries to be seldom, and not at the moment of one.
    rig.pass(millis(20_500));
    rig.engine.host().allow_all();
    rig.act(Op::Remove(other));
    rig.pass(millis(100));
    rig.assert_converged();
}

#[test]
fn engine_when_a_bridge_was_left_on_a_former_subnet_then_it_is_named_with_its_cure_before_any_peer_has_that()
{
    let mut rig = Rig::running(VXLAN, 2);
    rig.act(Op::Add(dummy("docker0")));
    let of_bridge = |destination: &str| {
        let Object::Route(route) = admin_route(destination) else {
            panic!()
        };
        Object::Route(fabric::object::Route {
            gateway: None,
            link: name("docker0"),
            protocol: 2,
            ..route
        })
    };
    let former = of_bridge("10.5.77.0/24");
    rig.act(Op::Add(former.clone()));
    rig.pass(millis(100));
    let said = rig.found(Kind::Remark).join("; ");
    for words in [
        "docker0 has the subnet of route 10.5.77.0/24",
        "not this host's",
        "restart it",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    rig.remove(&former.key());
    rig.pass(millis(100));
    assert!(rig.found(Kind::Remark).is_empty(), "{:?}", rig.report());
    // On this host's own subnet, or outside the network, it is as it should be.
    let own = rig.subnet(0).v4.unwrap().to_string();
    rig.act(Op::Add(of_bridge(&own)));
    rig.act(Op::Add(of_bridge("172.17.0.0/16")));
    rig.pass(Duration::from_secs(100));
    assert!(rig.found(Kind::Remark).is_empty(), "{:?}", rig.report());
}

/// Go flannel forgets them when its Network changes; whether they may go only an admin knows.
#[test]
fn engine_when_an_earlier_flannel_left_routes_of_another_network_then_they_are_named_and_left() {
    let mut rig = Rig::running(VXLAN, 1);
    rig.former_networks = vec!["10.77.0.0/16".parse().unwrap()];
    rig.set_up(BTreeMap::new());
    let left = |protocol: u8, link: &str| {
        Object::Route(fabric::object::Route {
            destination: "10.77.4.0/24".parse().unwrap(),
            metric: 0,
            gateway: Some("10.77.4.0".parse().unwrap()),
            link: name(link),
            onlink: true,
            protocol,
        })
    };
    // An admin's own there is nobody's business.
    let admins = left(4, "flannel.1");
    rig.act(Op::Add(admins.clone()));
    rig.pass(Duration::from_secs(1));
    assert!(rig.found(Kind::Remark).is_empty(), "{:?}", rig.report());
    rig.act(Op::Remove(admins));
    let gos = left(3, "flannel.1");
    rig.act(Op::Add(gos.clone()));
    rig.pass(Duration::from_secs(1));
    let said = rig.found(Kind::Remark).join("; ");
    assert!(
        said.contains("10.77.4.0/24") && said.contains("left by an earlier flannel"),
        "{said}"
    );
    rig.pass(Duration::from_secs(200));
    assert!(rig.there(&gos.key()).is_some());
    rig.remove(&gos.key());
    rig.pass(Duration::from_secs(1));
    assert!(rig.found(Kind::Remark).is_empty(), "{:?}", rig.report());
}
