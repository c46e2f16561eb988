use std::net::IpAddr;

use fabric::object::{Address, Link, LinkKind, Mac, Neighbour, ROUTE_PROTOCOL, Route, Vxlan};

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
    let kind = LinkKind::Vxlan(Box::new(vxlan));
    Object::Link(Box::new(Link {
        name: name("flannel.1"),
        kind,
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
