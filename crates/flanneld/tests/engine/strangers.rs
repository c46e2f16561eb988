//! What others do to the kernel, and how much of it: fights, noise, lost words, places that are taken.

use std::sync::atomic::Ordering;
use std::time::Duration;

use fabric::object::{Address, Key, Object, Op};
use fabric::readiness::Kind;

use crate::rig::{
    DIRECT, ENOBUFS, HOST_GW, Rig, VXLAN, admin_route, dummy, eth0, is_closed, is_served, millis, name,
};

fn dummy_there(truth: &fabric::object::Objects) -> Object {
    truth[&Key::Link(name("flannel.1"))].clone()
}

#[test]
fn engine_when_somebody_removes_an_object_without_end_then_it_is_back_within_a_second_each_time() {
    let mut rig = Rig::running(VXLAN, 2);
    let route = rig.route(1);
    let (mut missing, mut longest) = (0, 0);
    for _ in 0..1200 {
        match rig.there(&route) {
            Some(_) => {
                rig.remove(&route);
                missing = 0;
            }
            None => missing += 1,
        }
        longest = longest.max(missing);
        rig.pass(millis(100));
    }
    assert!(longest < 10, "{longest} tenths of a second");
    let fights = rig.found(Kind::Fight).into_iter().chain(rig.found(Kind::Remark));
    let fights: Vec<String> = fights.collect();
    assert!(fights[0].contains("pid 4242"), "{fights:?}");
}

#[test]
fn engine_when_somebody_changes_a_place_again_and_again_then_ever_more_slowly_and_by_name() {
    let mut rig = Rig::running(VXLAN, 2);
    let route = rig.route(1);
    let ours = rig.there(&route).unwrap();
    let (mut repaired, mut told) = (0, 0);
    for _ in 0..1200 {
        if rig.there(&route).as_ref() == Some(&ours) {
            let to = admin_route("10.5.1.0/24");
            rig.act(Op::Change {
                from: ours.clone(),
                to,
            });
            repaired += 1;
        } else {
            told += usize::from(!rig.report().is_ready() && !rig.found(Kind::Fight).is_empty());
        }
        rig.pass(millis(100));
    }
    assert!((5..40).contains(&repaired), "{repaired} repairs in two minutes");
    assert!(told > 900, "not ready while it is held back: {told}");
    let fights = rig.found(Kind::Fight);
    assert!(fights[0].contains("pid 4242"), "{fights:?}");
    // Nobody else has to wait.
    let other = rig.route(2);
    rig.remove(&other);
    rig.pass(millis(100));
    assert!(is_served(&mut rig, 2));
    rig.pass(Duration::from_secs(300));
    rig.assert_converged();
    assert!(
        rig.report().is_ready() && rig.found(Kind::Remark).is_empty(),
        "{:?}",
        rig.report()
    );
}

#[test]
fn engine_when_one_foreign_route_changes_every_second_then_no_back_off_is_cut_and_nothing_is_dumped() {
    let mut rig = Rig::running(VXLAN, 2);
    let broken = rig.route(3);
    rig.engine.host().refuse(broken, ENOBUFS);
    rig.put(3, 0);
    rig.pass(Duration::from_secs(10));
    let (dumps, choices) = (
        rig.engine.host().dumps(),
        rig.underlay_changes.load(Ordering::Relaxed),
    );
    let tried = rig.tries();
    for n in 0..40 {
        let foreign = admin_route(&format!("198.18.{n}.0/24"));
        rig.act(Op::Add(foreign));
        rig.pass(Duration::from_secs(1));
    }
    assert_eq!(rig.engine.host().dumps(), dumps);
    assert_eq!(rig.underlay_changes.load(Ordering::Relaxed), choices);
    assert!(
        rig.tries() - tried <= 4,
        "{} attempts in 40 s",
        rig.tries() - tried
    );
    // A default route decides which interface is chosen.
    rig.act(Op::Add(admin_route("0.0.0.0/0")));
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.underlay_changes.load(Ordering::Relaxed), choices + 1);
}

#[test]
fn engine_when_ten_thousand_foreign_routes_come_at_once_then_ours_is_back_at_once() {
    let mut rig = Rig::running(DIRECT, 3);
    let dumps = rig.engine.host().dumps();
    for n in 0..10_000 {
        rig.act(Op::Add(admin_route(&format!(
            "198.18.{}.{}/32",
            n / 256,
            n % 256
        ))));
    }
    let route = rig.route(2);
    rig.remove(&route);
    rig.pass(millis(100));
    rig.assert_converged();
    rig.pass(Duration::from_secs(5));
    assert_eq!(rig.engine.host().dumps(), dumps);
}

#[test]
fn engine_when_a_key_both_fails_and_is_fought_over_then_the_loop_does_not_spin() {
    let mut rig = Rig::running(VXLAN, 1);
    let route = rig.route(1);
    for _ in 0..5 {
        if rig.there(&route).is_some() {
            rig.remove(&route);
        }
        rig.pass(millis(300));
    }
    rig.engine.host().refuse(route, ENOBUFS);
    rig.pass(Duration::from_secs(100));
    rig.engine.host().allow_all();
    rig.pass(Duration::from_secs(60));
    rig.assert_converged();
}

#[test]
fn engine_when_notifications_come_while_it_applies_then_they_are_heard_in_the_next_round() {
    let mut rig = Rig::running(VXLAN, 2);
    rig.put(3, 0);
    // The order of the kernel's own reading: notifications of others are read on the way to applying.
    rig.remove(&Key::Link(name("flannel.1")));
    rig.round();
    assert!(kernel::Host::has_news(rig.engine.host()) || is_served(&mut rig, 3));
    rig.pass(millis(200));
    rig.assert_converged();
}

#[test]
fn engine_when_notifications_are_lost_then_one_dump_finds_all_and_dumps_are_spaced() {
    let mut rig = Rig::running(VXLAN, 3);
    for peer in 1..=3 {
        let route = rig.route(peer);
        rig.remove(&route);
    }
    let before = rig.engine.host().dumps();
    for _ in 0..100 {
        rig.engine.host().lose_notifications();
        rig.pass(millis(10));
    }
    let dumps = rig.engine.host().dumps() - before;
    assert!((1..=11).contains(&dumps), "{dumps} dumps in a second");
    rig.assert_converged();
}

#[test]
fn engine_when_the_state_cannot_be_read_then_it_is_asked_for_once_a_second() {
    let mut rig = Rig::running(VXLAN, 1);
    rig.engine.host().set_unreadable(true);
    rig.engine.host().lose_notifications();
    let before = rig.rounds;
    rig.pass(Duration::from_secs(10));
    assert!(rig.rounds - before < 20, "{} rounds", rig.rounds - before);
    let route = rig.route(1);
    rig.remove(&route);
    rig.engine.host().set_unreadable(false);
    rig.pass(Duration::from_secs(2));
    rig.assert_converged();
}

#[test]
fn engine_when_an_admins_route_was_there_first_then_it_stays_and_is_named() {
    let mut rig = Rig::new(VXLAN);
    rig.act(Op::Add(admin_route("10.5.1.0/24")));
    rig.learn(1, 0);
    rig.snapshot();
    rig.pass(Duration::from_secs(200));
    let route = rig.route(1);
    assert_eq!(rig.there(&route), Some(admin_route("10.5.1.0/24")));
    assert_eq!(
        (rig.found(Kind::Conflict).len(), rig.standing().failed_peers),
        (1, 1)
    );
    rig.remove(&route);
    rig.pass(millis(100));
    rig.assert_converged();
    assert_eq!(
        (rig.found(Kind::Conflict).len(), rig.standing().failed_peers),
        (0, 0)
    );
}

#[test]
fn engine_when_routes_inside_the_network_are_nobodys_it_knows_then_they_stay_and_are_named() {
    let mut rig = Rig::new(VXLAN);
    // A predecessor's, of a node that is gone; one inside our own subnet; one to the whole network.
    let strangers = ["10.5.77.0/24", "10.5.0.128/25", "10.5.0.0/16"].map(admin_route);
    for stranger in &strangers {
        rig.act(Op::Add(stranger.clone()));
    }
    rig.learn(1, 0);
    rig.snapshot();
    rig.pass(Duration::from_secs(1));
    for stranger in &strangers {
        assert_eq!(rig.there(&stranger.key()).as_ref(), Some(stranger));
    }
    let named = rig.found(Kind::Remark);
    assert_eq!(named.len(), 1, "{named:?}");
    assert!(
        named[0].contains("10.5.77.0/24") && named[0].contains("no lease asks for it and it is not ours"),
        "{named:?}"
    );
    assert!(rig.found(Kind::Conflict).is_empty() && rig.standing().failed_peers == 0);
    // Its node comes back: then the place is wanted, and somebody else's in it is a conflict.
    rig.put(77, 0);
    rig.pass(Duration::from_secs(200));
    assert!(rig.found(Kind::Remark).is_empty());
    rig.delete(77);
    rig.remove(&strangers[0].key());
    rig.pass(Duration::from_secs(200));
    assert!(rig.found(Kind::Remark).is_empty() && rig.found(Kind::Conflict).is_empty());
}

#[test]
fn engine_when_a_route_of_anothers_lies_inside_a_peers_subnet_then_it_is_named_at_once_and_the_host_is_not_ready()
 {
    let mut rig = Rig::running(VXLAN, 2);
    rig.act(Op::Add(admin_route("10.5.1.128/25")));
    rig.pass(millis(100));
    let conflicts = rig.found(Kind::Conflict);
    assert!(
        conflicts.len() == 1 && conflicts[0].contains("10.5.1.128/25"),
        "{conflicts:?}"
    );
    assert!(!rig.report().is_ready());
    // Without the lease it draws traffic from nobody.
    rig.delete(1);
    rig.pass(millis(100));
    assert!(rig.report().is_ready() && rig.found(Kind::Remark).len() == 1);
    rig.put(1, 0);
    rig.pass(millis(100));
    assert!(!rig.report().is_ready());
    rig.remove(&admin_route("10.5.1.128/25").key());
    rig.pass(millis(100));
    assert!(rig.report().is_ready() && rig.found(Kind::Remark).is_empty());
}

#[test]
fn engine_when_a_failure_becomes_a_conflict_then_the_loop_does_not_spin() {
    let mut rig = Rig::running(VXLAN, 1);
    let route = rig.route(2);
    rig.engine.host().refuse(route, ENOBUFS);
    rig.put(2, 0);
    rig.pass(millis(50));
    rig.act(Op::Add(admin_route("10.5.2.0/24")));
    rig.pass(Duration::from_secs(100));
    assert!(rig.found(Kind::Failure).is_empty());
    assert_eq!(rig.found(Kind::Conflict).len(), 1);
}

#[test]
fn engine_when_the_underlay_flaps_without_end_then_choices_are_made_anew_once_a_second() {
    let mut rig = Rig::running(HOST_GW, 2);
    let before = rig.underlay_changes.load(Ordering::Relaxed);
    for n in 0..500 {
        rig.act(Op::Change {
            from: eth0(n % 2 == 1),
            to: eth0(n % 2 == 0),
        });
        rig.pass(millis(20));
    }
    let changes = rig.underlay_changes.load(Ordering::Relaxed) - before;
    assert!((5..=20).contains(&changes), "{changes} in ten seconds");
    rig.act(Op::Change {
        from: eth0(false),
        to: eth0(true),
    });
    rig.pass(Duration::from_secs(2));
    rig.assert_converged();
}

#[test]
fn engine_when_a_stranger_has_our_devices_name_then_nothing_is_put_on_it() {
    let mut rig = Rig::new(VXLAN);
    rig.act(Op::Add(dummy("flannel.1")));
    let address = "10.5.0.9/32".parse().unwrap();
    let adorned = Object::Address(Address {
        link: name("flannel.1"),
        address,
    });
    rig.act(Op::Add(adorned.clone()));
    rig.put(1, 0);
    rig.snapshot();
    rig.pass(millis(100));
    // A single lease is compared without looking at the link.
    rig.put(2, 0);
    rig.pass(Duration::from_secs(100));
    let truth = rig.engine.host().truth();
    let on_it: Vec<&Object> = truth.values().filter(|o| o.link() == name("flannel.1")).collect();
    assert_eq!(on_it, [&dummy_there(truth), &adorned]);
    // Nothing to a peer follows the default route meanwhile.
    assert!(is_closed(&mut rig, 1) && is_closed(&mut rig, 2));
    let conflicts = rig.found(Kind::Conflict);
    assert!(conflicts[0].contains("flannel.1"), "{conflicts:?}");
    assert_eq!(rig.standing().failed_peers, 2);
    rig.remove(&Key::Link(name("flannel.1")));
    rig.pass(millis(200));
    rig.assert_converged();
}
