use std::net::IpAddr;

use fabric::kind::{Ipip, Vxlan};
use fabric::object::{Address, Link, LinkKind, Mac, Neighbour, ROUTE_PROTOCOL, Route};

use super::state::{Notice, State};
use super::*;

fn name(text: &str) -> LinkName {
    LinkName::new(text).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn underlay() -> Object {
    let kind = LinkKind::Other("".into());
    Object::Link(Box::new(Link {
        name: name("eth0"),
        kind,
        mac: None,
        mtu: 1500,
        up: true,
    }))
}

fn vtep(up: bool) -> Object {
    let vxlan = Vxlan {
        vni: 1,
        port: None,
        local: ip("192.0.2.1"),
        lower: name("eth0"),
        learning: false,
        gbp: false,
    };
    Object::Link(Box::new(Link {
        name: name("flannel.1"),
        kind: vxlan.into(),
        mac: None,
        mtu: 1450,
        up,
    }))
}

fn route(onlink: bool) -> Object {
    Object::Route(Route {
        destination: "10.5.2.0/24".parse().unwrap(),
        metric: 0,
        gateway: Some(ip("10.5.2.0")),
        link: name("flannel.1"),
        onlink,
        protocol: ROUTE_PROTOCOL,
    })
}

fn own_address() -> Object {
    Object::Address(Address {
        link: name("flannel.1"),
        address: "10.5.1.0/32".parse().unwrap(),
    })
}

fn memory() -> Memory {
    let mut memory = Memory::new().unwrap();
    let links = vec![name("flannel.1"), name("eth0")];
    memory.set_interest(Interest {
        links,
        networks: vec!["10.5.0.0/16".parse().unwrap()],
    });
    memory.drain().unwrap();
    memory
}

fn errno(result: Result<(), NetlinkError>) -> Errno {
    Errno::from_raw_os_error(result.unwrap_err().errno)
}

#[test]
fn act_when_the_kernel_would_refuse_then_the_same_error() {
    let mut memory = memory();
    assert_eq!(
        errno(memory.act(&Op::Add(vtep(true)), None)),
        Errno::NODEV,
        "no link below"
    );
    memory.act(&Op::Add(underlay()), None).unwrap();
    assert_eq!(errno(memory.act(&Op::Add(underlay()), None)), Errno::EXIST);
    memory.act(&Op::Add(vtep(false)), None).unwrap();
    assert_eq!(errno(memory.act(&Op::Add(route(true)), None)), Errno::NETDOWN);
    memory
        .act(
            &Op::Change {
                from: vtep(false),
                to: vtep(true),
            },
            None,
        )
        .unwrap();
    assert_eq!(errno(memory.act(&Op::Add(route(false)), None)), Errno::NETUNREACH);
    assert_eq!(errno(memory.act(&Op::Remove(route(true)), None)), Errno::SRCH);
    memory.act(&Op::Add(route(true)), None).unwrap();
    assert_eq!(errno(memory.act(&Op::Add(route(true)), None)), Errno::EXIST);
    assert_eq!(
        errno(memory.act(&Op::Remove(own_address()), None)),
        Errno::ADDRNOTAVAIL
    );
}

#[test]
fn drain_when_a_link_goes_down_then_neighbours_are_told_and_routes_go_in_silence() {
    let mut memory = memory();
    for object in [underlay(), vtep(true), route(true)] {
        memory.act(&Op::Add(object), None).unwrap();
    }
    let neighbour = Neighbour {
        link: name("flannel.1"),
        address: ip("10.5.2.0"),
        mac: Mac([2, 0, 0, 0, 0, 1]),
    };
    memory
        .act(&Op::Add(Object::Neighbour(neighbour)), Some(7))
        .unwrap();
    memory.drain().unwrap();
    memory
        .act(
            &Op::Change {
                from: vtep(true),
                to: vtep(false),
            },
            Some(7),
        )
        .unwrap();
    let drained = memory.drain().unwrap();
    let keys: Vec<Key> = drained.changed.iter().map(|changed| changed.key).collect();
    assert_eq!(keys, [vtep(false).key(), Object::Neighbour(neighbour).key()]);
    assert_eq!(drained.resync, Some(Scope::Link(name("flannel.1"))));
    assert!(
        memory.objects().contains_key(&route(true).key()),
        "believed until observed"
    );
    memory.observe(Scope::Link(name("flannel.1"))).unwrap();
    assert!(!memory.objects().contains_key(&route(true).key()));
}

#[test]
fn act_when_the_link_below_goes_then_everything_above_goes() {
    let mut memory = memory();
    for object in [underlay(), vtep(true), own_address(), route(true)] {
        memory.act(&Op::Add(object), None).unwrap();
    }
    memory.act(&Op::Remove(underlay()), None).unwrap();
    assert!(memory.truth().is_empty());
}

#[test]
fn act_when_the_last_address_goes_then_routes_go_with_it() {
    let mut memory = memory();
    for object in [underlay(), vtep(true), own_address(), route(true)] {
        memory.act(&Op::Add(object), None).unwrap();
    }
    memory.act(&Op::Remove(own_address()), None).unwrap();
    assert!(!memory.truth().contains_key(&route(true).key()));
}

#[test]
fn apply_when_keys_are_refused_then_only_they_fail_until_allowed() {
    let mut memory = memory();
    memory.act(&Op::Add(underlay()), None).unwrap();
    memory.refuse(route(true).key(), 12);
    let ops = [Op::Add(vtep(true)), Op::Add(route(true)), Op::Add(own_address())];
    let outcomes = memory.apply(&ops, ApplyOptions::default());
    assert!(outcomes[0].is_ok() && outcomes[2].is_ok());
    assert_eq!(outcomes[1].error().unwrap().errno, 12);
    memory.allow_all();
    assert_eq!(memory.apply(&ops[1..2], ApplyOptions::default()), [Outcome::Done]);
    assert_eq!(
        memory.apply(&ops[1..2], ApplyOptions::default()),
        [Outcome::Already]
    );
}

#[test]
fn drain_when_notifications_were_lost_then_a_resync_is_asked_for_and_the_mirror_is_old() {
    let mut memory = memory();
    memory.act(&Op::Add(underlay()), None).unwrap();
    memory.lose_notifications();
    assert!(memory.objects().is_empty());
    assert_eq!(memory.drain().unwrap().resync, Some(Scope::All));
    memory.observe(Scope::All).unwrap();
    assert_eq!(memory.objects(), memory.truth());
}

fn tunnel(name_of_link: &str, local: &str) -> Object {
    let ipip = Ipip {
        local: local.parse().unwrap(),
        remote: None,
        plain: true,
    };
    Object::Link(Box::new(Link {
        name: name(name_of_link),
        kind: ipip.into(),
        mac: None,
        mtu: 1480,
        up: true,
    }))
}

#[test]
fn act_when_a_device_excludes_another_then_refused_whatever_their_names() {
    let mut memory = memory();
    memory.act(&Op::Add(underlay()), None).unwrap();
    for (first, second) in [
        (vtep(true), vtep(true)),
        (
            tunnel("flannel.ipip", "192.0.2.1"),
            tunnel("flannel.ipip", "192.0.2.1"),
        ),
    ] {
        let Object::Link(mut other) = second else { panic!() };
        other.name = name("other");
        memory.act(&Op::Add(first), None).unwrap();
        assert_eq!(
            errno(memory.act(&Op::Add(Object::Link(other)), None)),
            Errno::EXIST
        );
    }
    memory.act(&Op::Add(tunnel("other", "192.0.2.2")), None).unwrap();
}

#[test]
fn act_when_the_kind_has_no_entries_then_forwarding_is_refused_and_it_stands_without_a_link_below() {
    let mut memory = memory();
    memory
        .act(&Op::Add(tunnel("flannel.ipip", "192.0.2.1")), None)
        .unwrap();
    let Some(Object::Link(made)) = memory.truth().get(&Key::Link(name("flannel.ipip"))).cloned() else {
        panic!()
    };
    assert_eq!(made.mac, None);
    let entry = Object::Forwarding(fabric::object::Forwarding {
        link: name("flannel.ipip"),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        remote: ip("192.0.2.2"),
    });
    assert_eq!(errno(memory.act(&Op::Add(entry), None)), Errno::OPNOTSUPP);
}

fn all() -> Vec<Object> {
    let entry = Object::Forwarding(fabric::object::Forwarding {
        link: name("flannel.1"),
        mac: Mac([2; 6]),
        remote: ip("192.0.2.2"),
    });
    let neighbour = Object::Neighbour(Neighbour {
        link: name("flannel.1"),
        address: ip("10.5.2.0"),
        mac: Mac([2; 6]),
    });
    vec![
        underlay(),
        vtep(true),
        own_address(),
        neighbour,
        entry,
        route(true),
    ]
}

fn route6() -> Object {
    Object::Route(Route {
        destination: "fd00:2::/64".parse().unwrap(),
        metric: 1024,
        gateway: Some(ip("fd00:2::")),
        link: name("flannel.1"),
        onlink: true,
        protocol: ROUTE_PROTOCOL,
    })
}

fn address6() -> Object {
    Object::Address(Address {
        link: name("flannel.1"),
        address: "fd00:1::/128".parse().unwrap(),
    })
}

/// Everything that is told of an operation: keys of what is set or gone, and links whose routes may have gone.
fn told(state: &mut State, op: &Op) -> (Vec<Key>, Vec<LinkName>) {
    let (mut keys, mut silent) = (Vec::new(), Vec::new());
    for notice in state.execute(op).unwrap() {
        match notice {
            Notice::Set(key, _) => keys.push(key),
            Notice::Silent(link) => silent.push(link),
            other => panic!("{other:?}"),
        }
    }
    (keys, silent)
}

fn state() -> State {
    let mut state = State::default();
    for object in all().into_iter().chain([address6(), route6()]) {
        state.execute(&Op::Add(object)).unwrap();
    }
    state
}

fn keys(objects: &[Object]) -> Vec<Key> {
    objects.iter().map(Object::key).collect()
}

#[test]
fn link_when_removed_then_what_hangs_on_it_is_told_of_before_it_and_ipv4_routes_are_not() {
    let mut state = state();
    let device = name("flannel.1");
    let (told, silent) = self::told(&mut state, &Op::Remove(vtep(true)));
    let of_it = all();
    assert_eq!(told.last(), Some(&vtep(true).key()));
    let mut sorted = told[..told.len() - 1].to_vec();
    sorted.sort();
    let mut expected = keys(&[
        own_address(),
        address6(),
        of_it[3].clone(),
        of_it[4].clone(),
        route6(),
    ]);
    expected.sort();
    assert_eq!(sorted, expected);
    assert_eq!((silent, state.objects().len()), (vec![device], 1));
    assert_eq!(state.execute(&Op::Remove(vtep(true))).unwrap_err(), Errno::NODEV);
}

#[test]
fn link_when_set_down_then_forwarding_entries_and_ipv4_addresses_stay() {
    let mut state = state();
    let down = Op::Change {
        from: vtep(true),
        to: vtep(false),
    };
    let (told, silent) = self::told(&mut state, &down);
    let mut sorted = told.clone();
    sorted.sort();
    let mut expected = keys(&[vtep(false), address6(), all()[3].clone(), route6()]);
    expected.sort();
    assert_eq!((told[0], sorted), (vtep(false).key(), expected));
    assert_eq!(silent, [name("flannel.1")]);
    let mut left: Vec<Key> = state.objects().keys().collect();
    left.sort();
    let mut stays = keys(&[underlay(), vtep(false), own_address(), all()[4].clone()]);
    stays.sort();
    assert_eq!(left, stays);
    let (told, silent) = self::told(&mut state, &down);
    assert_eq!((told.len(), silent.len()), (1, 0), "it was down before");
}

#[test]
fn address_when_removed_then_routes_of_its_family_go_with_the_last_one_of_ipv4() {
    let mut state = state();
    let (told, silent) = self::told(&mut state, &Op::Remove(address6()));
    assert_eq!((told, silent), (vec![address6().key()], vec![]));
    assert!(state.objects().contains_key(&route6().key()));
    let second = Object::Address(Address {
        link: name("flannel.1"),
        address: "10.5.9.0/32".parse().unwrap(),
    });
    self::told(&mut state, &Op::Add(second.clone()));
    let (_, silent) = self::told(&mut state, &Op::Remove(second));
    assert_eq!(silent, [], "another is left");
    assert!(state.objects().contains_key(&route(true).key()));
    let (told, silent) = self::told(&mut state, &Op::Remove(own_address()));
    assert_eq!(
        (told, silent),
        (vec![own_address().key()], vec![name("flannel.1")])
    );
    assert!(
        !state.objects().contains_key(&route(true).key()) && state.objects().contains_key(&route6().key())
    );
}

#[test]
fn operation_when_refused_then_with_the_kernels_number_and_nothing_is_changed() {
    let mut state = state();
    let refusals = [
        (Op::Add(own_address()), Errno::EXIST),
        (Op::Remove(all()[3].clone()), Errno::NOENT),
        (
            Op::Change {
                from: vtep(true),
                to: tunnel("flannel.9", "192.0.2.1"),
            },
            Errno::NODEV,
        ),
    ];
    self::told(&mut state, &Op::Remove(all()[3].clone()));
    let before = state.objects().clone();
    for (op, errno) in refusals {
        assert_eq!(state.execute(&op).unwrap_err(), errno, "{op:?}");
    }
    let Object::Route(mut own) = route(true) else {
        panic!()
    };
    own.gateway = Some(ip("10.5.1.0"));
    assert_eq!(
        state.execute(&Op::Add(Object::Route(own))).unwrap_err(),
        Errno::INVAL,
        "a gateway of our own"
    );
    let closed = Object::Route(own.unreachable());
    assert_eq!(state.execute(&Op::Add(closed.clone())).unwrap_err(), Errno::EXIST);
    assert_eq!(*state.objects(), before);
    state
        .execute(&Op::Change {
            from: route(true),
            to: closed.clone(),
        })
        .unwrap();
    assert_eq!(state.objects().get(&closed.key()), Some(&closed));
    // A gateway that an address of the link leads to need not be taken to be there.
    let near = Object::Address(Address {
        link: name("eth0"),
        address: "192.0.2.1/24".parse().unwrap(),
    });
    state.execute(&Op::Add(near)).unwrap();
    let by = |link: &str| {
        let Object::Route(mut route) = route(false) else {
            panic!()
        };
        (route.gateway, route.link, route.metric) = (Some(ip("192.0.2.9")), name(link), 7);
        Op::Add(Object::Route(route))
    };
    assert_eq!(state.execute(&by("flannel.1")).unwrap_err(), Errno::NETUNREACH);
    state.execute(&by("eth0")).unwrap();
}

#[test]
fn mirror_when_others_act_then_it_hears_by_notification_and_tells_each_once() {
    let mut memory = memory();
    assert!(!memory.has_news());
    for object in all() {
        memory.act(&Op::Add(object), Some(7)).unwrap();
    }
    assert!(memory.has_news() && memory.objects().is_empty());
    let news = memory.drain().unwrap();
    assert!(news.underlay_changed && !news.device_gone && news.ways.is_empty());
    let mut changed: Vec<(Key, Option<u32>)> = news.changed.iter().map(|c| (c.key, c.by)).collect();
    changed.sort();
    let mut expected: Vec<(Key, Option<u32>)> = keys(&all()).into_iter().map(|key| (key, Some(7))).collect();
    expected.sort();
    assert_eq!(changed, expected);
    assert_eq!(memory.objects(), memory.truth());
    assert!(memory.drain().unwrap().is_empty() && !memory.has_news());
    // Gone and back between two looks is nothing.
    memory.act(&Op::Remove(route(true)), None).unwrap();
    memory.act(&Op::Add(route(true)), None).unwrap();
    assert!(memory.drain().unwrap().changed.is_empty());
    memory.act(&Op::Remove(own_address()), Some(7)).unwrap();
    let news = memory.drain().unwrap();
    assert!(!news.underlay_changed, "a device of ours is no underlay");
    assert_eq!(news.resync, Some(Scope::Link(name("flannel.1"))));
    memory.act(&Op::Remove(vtep(true)), Some(7)).unwrap();
    assert!(memory.drain().unwrap().device_gone);
}

#[test]
fn mirror_when_routes_of_others_or_the_way_to_a_peer_change_then_only_the_ways_do() {
    let mut memory = memory();
    memory.act(&Op::Add(underlay()), None).unwrap();
    memory.drain().unwrap();
    let Object::Route(mut other) = route(true) else {
        panic!()
    };
    (other.destination, other.link) = ("198.51.100.0/24".parse().unwrap(), name("eth0"));
    memory.act(&Op::Add(Object::Route(other)), None).unwrap();
    let news = memory.drain().unwrap();
    assert!(news.changed.is_empty() && news.ways.covers(ip("198.51.100.1")) && !news.underlay_changed);
    assert!(!memory.objects().contains_key(&Key::Route(other.destination, 0)));
    let (near, far) = (ip("192.0.2.9"), ip("192.0.2.10"));
    memory.set_direct(near, Some(name("eth0")));
    assert!(memory.drain().unwrap().ways.covers(near));
    assert_eq!(memory.direct(&[near, far]).unwrap(), [Some(name("eth0")), None]);
    memory.set_direct(near, None);
    assert_eq!(memory.direct(&[near]).unwrap(), [None]);
    assert_eq!(
        (
            memory.has_carrier(name("eth0")),
            memory.has_carrier(name("absent"))
        ),
        (Some(true), None)
    );
    memory.set_carrier(name("eth0"), false);
    assert!(memory.has_news());
    assert_eq!(memory.has_carrier(name("eth0")), Some(false));
    memory.set_carrier(name("eth0"), true);
    assert_eq!(memory.has_carrier(name("eth0")), Some(true));
}

#[test]
fn apply_when_it_is_ours_then_no_news_but_what_went_with_it() {
    let mut memory = memory();
    let ops: Vec<Op> = all().into_iter().map(Op::Add).collect();
    let outcomes = memory.apply(&ops, ApplyOptions::default());
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Done));
    assert_eq!(memory.take_done(), ops);
    assert_eq!(memory.take_done(), []);
    assert!(memory.drain().unwrap().changed.is_empty());
    assert_eq!(memory.objects(), memory.truth());
    let down = Op::Change {
        from: vtep(true),
        to: vtep(false),
    };
    assert_eq!(memory.apply(&[down], ApplyOptions::default()), [Outcome::Done]);
    let mut changed: Vec<Key> = memory.drain().unwrap().changed.iter().map(|c| c.key).collect();
    changed.sort();
    let mut gone = keys(&[all()[3].clone(), route(true)]);
    gone.sort();
    assert_eq!(changed, gone);
    let again = [Op::Remove(route(true)), Op::Add(own_address())];
    assert_eq!(
        memory.apply(&again, ApplyOptions::default()),
        [Outcome::Already, Outcome::Already]
    );
    memory.snatch(all()[3].key());
    assert_eq!(
        memory.apply(&[Op::Add(all()[3].clone())], ApplyOptions::default()),
        [Outcome::Done]
    );
    assert!(!memory.objects().contains_key(&all()[3].key()));
    memory.allow_all();
    memory.apply(&[Op::Remove(vtep(false))], ApplyOptions::default());
    assert_eq!(memory.objects().keys().collect::<Vec<Key>>(), [underlay().key()]);
}

#[test]
fn observation_when_it_cannot_be_made_then_an_error_and_not_counted() {
    let mut memory = memory();
    memory.act(&Op::Add(underlay()), None).unwrap();
    memory.set_unreadable(true);
    assert!(memory.observe(Scope::All).is_err());
    memory.set_unreadable(false);
    let before = memory.dumps();
    memory.observe(Scope::All).unwrap();
    assert_eq!(memory.dumps(), before + 1);
    memory.set_interest(Interest::default());
    assert!(memory.objects().is_empty());
    assert_eq!(memory.drain().unwrap().resync, Some(Scope::All));
}
