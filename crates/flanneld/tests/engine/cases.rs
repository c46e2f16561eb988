//! Single histories, each with one question.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fabric::object::{Address, Key, Object, Op};

use crate::rig::{DIRECT, HOST_GW, Rig, VXLAN, admin_route, dummy, eth0, is_ours, is_right, name, underlay};

const ENOBUFS: i32 = 105;
const EINVAL: i32 = 22;

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn is_served(rig: &mut Rig, peer: u8) -> bool {
    let (want, there) = (rig.desired(), rig.engine.host().truth().clone());
    let subnet = rig.subnet(peer).v4.unwrap();
    let about = |object: &Object| match object {
        Object::Route(route) => route.destination == subnet.into(),
        Object::Neighbour(n) => n.address == subnet.addr(),
        _ => false,
    };
    let mut peers = want.values().filter(|object| about(object)).peekable();
    assert!(peers.peek().is_some());
    peers.all(|object| is_right(object, there.get(&object.key())))
}

#[test]
fn engine_when_nothing_was_listed_yet_then_nothing_is_done_or_planned() {
    let mut rig = Rig::new(VXLAN);
    rig.act(Op::Add(admin_route("10.5.9.0/24")));
    assert!(rig.plan().is_empty());
    rig.pass(Duration::from_secs(200));
    assert!(rig.engine.host().truth().values().all(|object| !is_ours(object)));
    assert!(!rig.standing().engaged && !rig.env_path().exists());
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
    assert!(rig.standing().engaged && rig.env_path().exists());
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
fn engine_when_it_is_set_up_anew_then_lines_of_others_in_the_subnet_file_stay() {
    let mut rig = Rig::running(VXLAN, 1);
    let ours = std::fs::read_to_string(rig.env_path()).unwrap();
    std::fs::write(rig.env_path(), format!("{ours}DOCKER_OPT_MTU=\"--mtu=1450\"\n")).unwrap();
    rig.pass(Duration::from_secs(2));
    rig.set_up(BTreeMap::new());
    rig.pass(Duration::from_secs(2));
    let text = std::fs::read_to_string(rig.env_path()).unwrap();
    assert!(
        text.contains("DOCKER_OPT_MTU") && text.contains("FLANNEL_SUBNET"),
        "{text}"
    );
}

#[test]
fn engine_when_the_subnet_file_is_fought_over_then_it_yields_step_by_step_and_says_so() {
    let mut rig = Rig::running(VXLAN, 1);
    rig.pass(Duration::from_secs(1));
    let right = std::fs::read_to_string(rig.env_path()).unwrap();
    let mut wrong_at = Vec::new();
    for second in 0..50 {
        std::fs::write(rig.env_path(), "FLANNEL_MTU=9000\n").unwrap();
        rig.pass(Duration::from_secs(1));
        let now = std::fs::read_to_string(rig.env_path()).unwrap();
        if !now.contains("FLANNEL_MTU=1450") {
            wrong_at.push(second);
            assert!(!rig.standing().subnet_file_written, "not right now");
        }
    }
    let repairs = rig.repairs();
    assert!((6..=16).contains(&repairs), "{repairs} repairs");
    assert!(wrong_at.len() > 25 && wrong_at[0] >= 3, "{wrong_at:?}");
    let fights = rig.standing().fights;
    assert!(
        fights.len() == 1 && fights[0].contains("subnet.env"),
        "{fights:?}"
    );
    // The other gives up: it is right again within the longest pause, and the fight is forgotten after a while.
    rig.pass(Duration::from_secs(31));
    assert_eq!(std::fs::read_to_string(rig.env_path()).unwrap(), right);
    assert!(rig.standing().subnet_file_written);
    rig.pass(Duration::from_secs(70));
    assert!(rig.standing().fights.is_empty(), "{:?}", rig.standing().fights);
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
    assert_eq!(rig.standing().failures.len(), 1, "{:?}", rig.standing());
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
        rig.standing().failures.len(),
        1,
        "one cause, one failure: {:?}",
        rig.standing().failures
    );
    assert_eq!(rig.standing().failed_peers, 5);
    // News for a device that is not there waits for it.
    rig.put(6, 0);
    let before = rig.rounds;
    rig.pass(Duration::from_secs(50));
    assert!(rig.rounds - before < 60, "{} rounds", rig.rounds - before);
    assert_eq!(rig.standing().failures.len(), 1);
    rig.engine.host().allow_all();
    rig.pass(Duration::from_secs(31));
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
    assert!(
        rig.standing().conflicts[0].contains("flannel.1"),
        "{:?}",
        rig.standing()
    );
    rig.remove(&Key::Link(name("flannel.1")));
    rig.pass(millis(200));
    rig.assert_converged();
}

fn dummy_there(truth: &fabric::object::Objects) -> Object {
    truth[&Key::Link(name("flannel.1"))].clone()
}

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
fn engine_when_somebody_changes_a_place_again_and_again_then_ever_more_slowly_and_by_name() {
    let mut rig = Rig::running(VXLAN, 2);
    let route = rig.route(1);
    let mut repaired = 0;
    for _ in 0..1200 {
        if rig.there(&route).is_some() {
            rig.remove(&route);
            repaired += 1;
        }
        rig.pass(millis(100));
    }
    assert!((5..40).contains(&repaired), "{repaired} repairs in two minutes");
    assert!(
        rig.standing().fights[0].contains("pid 4242"),
        "{:?}",
        rig.standing().fights
    );
    // Nobody else has to wait.
    let other = rig.route(2);
    rig.remove(&other);
    rig.pass(millis(100));
    assert!(is_served(&mut rig, 2));
    rig.pass(Duration::from_secs(300));
    rig.assert_converged();
    assert!(rig.standing().fights.is_empty(), "{:?}", rig.standing().fights);
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
fn engine_when_paused_then_it_sleeps_and_when_resumed_then_it_repairs() {
    let mut rig = Rig::running(VXLAN, 3);
    let broken = rig.route(4);
    rig.engine.host().refuse(broken, ENOBUFS);
    rig.put(4, 0);
    rig.pass(millis(50));
    rig.pause(true);
    let link = Key::Link(name("flannel.1"));
    rig.remove(&link);
    std::fs::remove_file(rig.env_path()).unwrap();
    let before = rig.rounds;
    rig.pass(Duration::from_secs(50));
    assert!(rig.rounds - before < 20, "{} rounds", rig.rounds - before);
    assert!(rig.there(&link).is_none() && !rig.env_path().exists() && rig.standing().paused);
    rig.engine.host().allow_all();
    rig.pause(false);
    rig.pass(millis(300));
    rig.assert_converged();
    assert!(rig.env_path().exists());
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
        (rig.standing().conflicts.len(), rig.standing().failed_peers),
        (1, 1)
    );
    rig.remove(&route);
    rig.pass(millis(100));
    rig.assert_converged();
    assert_eq!(
        (rig.standing().conflicts.len(), rig.standing().failed_peers),
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
    let named = rig.standing().overlaps;
    assert_eq!(named.len(), 1, "{named:?}");
    assert!(named[0].contains("10.5.77.0/24"), "{named:?}");
    assert!(rig.standing().conflicts.is_empty() && rig.standing().failed_peers == 0);
    // Its node comes back: then the place is wanted, and somebody else's in it is a conflict.
    rig.put(77, 0);
    rig.pass(Duration::from_secs(200));
    assert!(rig.standing().overlaps.is_empty());
    rig.delete(77);
    rig.remove(&strangers[0].key());
    rig.pass(Duration::from_secs(200));
    assert!(rig.standing().overlaps.is_empty() && rig.standing().conflicts.is_empty());
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
    assert!(rig.standing().conflicts.is_empty());
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
    assert!(rig.standing().failures.is_empty());
    assert_eq!(rig.standing().conflicts.len(), 1);
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
    };
    rig.mailbox.update(fabric::lease::Update::Delta(delta));
    rig.round();
    let standing = rig.standing();
    assert_eq!(
        (standing.peers, standing.failed_peers, standing.revision),
        (2, 1, 99)
    );
}

#[test]
fn engine_when_the_subnet_file_cannot_be_written_then_again_without_anybody_touching_it() {
    let mut rig = Rig::running(VXLAN, 1);
    let directory = rig.env_path().parent().unwrap().to_owned();
    std::fs::remove_dir_all(&directory).unwrap();
    std::fs::write(&directory, "in the way").unwrap();
    rig.pass(Duration::from_secs(3));
    assert!(rig.standing().subnet_file_error.is_some());
    std::fs::remove_file(&directory).unwrap();
    std::fs::create_dir(&directory).unwrap();
    rig.pass(Duration::from_secs(2));
    assert!(rig.env_path().exists() && rig.standing().subnet_file_error.is_none());
}
