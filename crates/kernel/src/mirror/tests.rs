//! What notifications and dumps make of the mirror. Notifications are written as the kernel sends them.

use std::net::IpAddr;

use fabric::object::{Address, Forwarding, Link, LinkKind, Neighbour};

use crate::nl::message::Replies;
use crate::nl::{Message, flag};
use crate::rtnl::{ObservedAddress, ObservedRoute, RouteKind};

use super::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);
/// The port of somebody else.
const SOMEBODY: u32 = 4711;

const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
const NEW_NEIGHBOUR: u16 = 28;
const DEL_NEIGHBOUR: u16 = 29;
const NEW_NEXTHOP: u16 = 104;
const DEL_NEXTHOP: u16 = 105;

const ETH0: u32 = 3;
const VTEP: u32 = 5;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn name(text: &str) -> LinkName {
    LinkName::new(text).unwrap()
}

fn eth0() -> LinkName {
    name("eth0")
}

fn vtep() -> LinkName {
    name("flannel.1")
}

/// A link as the kernel shows it; a vxlan over eth0 where it is a device of ours.
fn link(index: u32, called: &str, up: bool, device: bool) -> Message {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&(if up { 0x1_0001u32 } else { 0 }).to_ne_bytes());
    let message = Message::new("", NEW_LINK, 0)
        .raw(&header)
        .text(3, called)
        .u32(4, 1450);
    if !device {
        return message;
    }
    message.nest(18, |info| {
        info.attribute(1, b"vxlan")
            .nest(2, |data| data.u32(1, 1).u32(3, ETH0))
    })
}

fn gone(index: u32, called: &str) -> Message {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    Message::new("", DEL_LINK, 0).raw(&header).text(3, called)
}

fn address(kind: u16, index: u8, address: &str) -> Message {
    let address = net(address);
    let family = if address.addr().is_ipv4() { 2 } else { 10 };
    Message::new("", kind, 0)
        .raw(&[family, address.prefix_len(), 0x80, 0, index, 0, 0, 0])
        .ip(2, address.addr())
}

fn neighbour(kind: u16, index: u32, to: &str, state: u8) -> Message {
    Message::new("", kind, 0)
        .raw(&[2, 0, 0, 0, index as u8, 0, 0, 0, state, 0, 0, 1])
        .ip(1, ip(to))
        .attribute(2, &MAC.0)
}

fn entry(kind: u16, index: u32, remote: &str, state: u8) -> Message {
    Message::new("", kind, 0)
        .raw(&[7, 0, 0, 0, index as u8, 0, 0, 0, state, 0, 2, 1])
        .ip(1, ip(remote))
        .attribute(2, &MAC.0)
}

fn route_of(kind: u16, flags: u16, to: &str, table: u8) -> Message {
    let to = net(to);
    let family = if to.addr().is_ipv4() { 2 } else { 10 };
    Message::new("", kind, flags)
        .raw(&[family, to.prefix_len(), 0, 0, table, 241, 0, 1, 4, 0, 0, 0])
        .ip(1, to.addr())
}

fn route(kind: u16, flags: u16, to: &str, gateway: &str, index: u32) -> Message {
    route_of(kind, flags, to, 254).ip(5, ip(gateway)).u32(4, index)
}

fn nexthop(kind: u16, id: u32, gateway: &str, index: u32) -> Message {
    Message::new("", kind, 0)
        .raw(&[2, 0, 241, 0, 4, 0, 0, 0])
        .u32(1, id)
        .u32(5, index)
        .ip(6, ip(gateway))
}

fn wanted() -> Interest {
    Interest {
        links: vec![eth0(), vtep()],
        networks: vec![net("10.5.0.0/16"), net("fd00::/48")],
    }
}

/// Takes in what the kernel tells, as caused by this port, and ends the round.
fn hear_from(mirror: &mut Mirror, port: u32, messages: &[Message]) -> Drained {
    for message in messages {
        let mut bytes = Vec::new();
        message.write(0, &mut bytes);
        let mut reply = Replies(&bytes).next().unwrap();
        reply.port = port;
        mirror.notice(&reply);
    }
    mirror.settle();
    mirror.take_news()
}

fn hear(mirror: &mut Mirror, messages: &[Message]) -> Drained {
    hear_from(mirror, SOMEBODY, messages)
}

/// eth0 and the device over it, both up, each with its address; nothing to tell.
fn mirror() -> Mirror {
    let mut mirror = Mirror::default();
    mirror.set_interest(wanted());
    hear(
        &mut mirror,
        &[
            link(ETH0, "eth0", true, false),
            link(VTEP, "flannel.1", true, true),
            address(NEW_ADDRESS, 3, "192.0.2.1/24"),
            address(NEW_ADDRESS, 5, "10.5.1.0/32"),
        ],
    );
    mirror
}

fn changed(keys: &[Key], by: Option<u32>) -> Vec<Changed> {
    keys.iter().map(|key| Changed { key: *key, by }).collect()
}

fn route_key(to: &str) -> Key {
    Key::Route(net(to), 0)
}

fn peer(to: &str, gateway: &str) -> Route {
    Route {
        destination: net(to),
        metric: 0,
        gateway: Some(ip(gateway)),
        link: vtep(),
        onlink: true,
        protocol: 241,
    }
}

#[test]
fn mirror_when_links_are_told_of_then_it_knows_them_and_what_is_of_interest_is_an_object() {
    let mut mirror = Mirror::default();
    mirror.set_interest(wanted());
    assert!(!mirror.has_news());
    let news = hear(
        &mut mirror,
        &[
            link(ETH0, "eth0", true, false),
            link(VTEP, "flannel.1", false, true),
            link(9, "veth9", true, false),
        ],
    );
    assert_eq!(
        news.changed,
        changed(&[Key::Link(eth0()), Key::Link(vtep())], Some(SOMEBODY))
    );
    assert!(news.underlay_changed && !news.device_gone && news.resync.is_none());
    assert_eq!(mirror.index(vtep()), Some(VTEP));
    assert_eq!(mirror.index(name("veth9")), Some(9), "routes may go through it");
    assert_eq!(mirror.name(9), Some(name("veth9")));
    assert_eq!(mirror.name(10), None);
    assert!(mirror.is_watched(eth0()) && !mirror.is_watched(name("veth9")));
    assert!(mirror.has_entries(vtep()) && !mirror.has_entries(eth0()) && !mirror.has_entries(name("x")));
    assert_eq!(
        [eth0(), vtep(), name("x")].map(|name| mirror.has_carrier(name)),
        [Some(true), Some(false), None]
    );
    let mut watched = mirror.watched();
    watched.sort_unstable();
    assert_eq!(watched, [eth0(), vtep()]);
    assert_eq!(mirror.objects().len(), 2);
    let device = mirror.objects().get(&Key::Link(vtep())).and_then(Object::as_link);
    assert_eq!(device.and_then(|device| device.kind.lower()), Some(eth0()));
    // A device of ours is no underlay, and the same again is no news.
    let news = hear(
        &mut mirror,
        &[
            link(VTEP, "flannel.1", true, true),
            link(ETH0, "eth0", true, false),
        ],
    );
    assert_eq!(news.changed, changed(&[Key::Link(vtep())], Some(SOMEBODY)));
    assert!(!news.underlay_changed);
    mirror.want(Scope::All);
    assert!(mirror.has_news());
}

#[test]
fn mirror_when_objects_come_and_go_then_each_is_told_with_who_did_it() {
    let mut mirror = mirror();
    let all = |[link_address, neighbours, fdb, routes]: [u16; 4]| {
        [
            address(link_address, 5, "fd00::1/128"),
            neighbour(neighbours, VTEP, "10.5.2.0", 0x80),
            entry(fdb, VTEP, "192.0.2.2", 0x80),
            route(routes, 0, "10.5.2.0/24", "10.5.2.0", VTEP),
        ]
    };
    let keys = [
        Key::Address(vtep(), net("fd00::1/128")),
        Key::Neighbour(vtep(), ip("10.5.2.0")),
        Key::Forwarding(vtep(), MAC),
        route_key("10.5.2.0/24"),
    ];
    let news = hear(
        &mut mirror,
        &all([NEW_ADDRESS, NEW_NEIGHBOUR, NEW_NEIGHBOUR, NEW_ROUTE]),
    );
    assert_eq!(news.changed, changed(&keys, Some(SOMEBODY)));
    assert_eq!((news.resync, news.underlay_changed), (None, false));
    let objects = [
        Object::Address(Address {
            link: vtep(),
            address: net("fd00::1/128"),
        }),
        Object::Neighbour(Neighbour {
            link: vtep(),
            address: ip("10.5.2.0"),
            mac: MAC,
        }),
        Object::Forwarding(Forwarding {
            link: vtep(),
            mac: MAC,
            remote: ip("192.0.2.2"),
        }),
        Object::Route(peer("10.5.2.0/24", "10.5.2.0")),
    ];
    for object in &objects {
        assert_eq!(mirror.objects().get(&object.key()), Some(object));
    }
    assert!(mirror.has_routes(vtep()) && !mirror.has_routes(eth0()));
    assert!(
        hear(
            &mut mirror,
            &all([NEW_ADDRESS, NEW_NEIGHBOUR, NEW_NEIGHBOUR, NEW_ROUTE])
        )
        .is_empty()
    );
    // By the kernel itself.
    let news = hear_from(
        &mut mirror,
        0,
        &all([DEL_ADDRESS, DEL_NEIGHBOUR, DEL_NEIGHBOUR, DEL_ROUTE]),
    );
    assert_eq!(news.changed, changed(&keys, None));
    assert_eq!(news.resync, None, "an IPv6 address takes no IPv4 routes along");
    assert_eq!(mirror.objects().len(), 4);
    assert!(!mirror.has_routes(vtep()));
}

#[test]
fn mirror_when_something_went_and_came_back_in_one_round_then_nothing_is_told() {
    let mut mirror = mirror();
    let there = route(NEW_ROUTE, 0, "10.5.2.0/24", "10.5.2.0", VTEP);
    let not_there = route(DEL_ROUTE, 0, "10.5.2.0/24", "10.5.2.0", VTEP);
    hear(&mut mirror, std::slice::from_ref(&there));
    assert!(hear(&mut mirror, &[not_there.clone(), there.clone()]).is_empty());
    // What was told and not taken is told once, with who did it last.
    let mut bytes = Vec::new();
    not_there.write(0, &mut bytes);
    let mut reply = Replies(&bytes).next().unwrap();
    reply.port = 7;
    mirror.notice(&reply);
    mirror.settle();
    let news = hear_from(&mut mirror, 8, &[there]);
    assert_eq!(news.changed, changed(&[route_key("10.5.2.0/24")], Some(8)));
}

#[test]
fn mirror_when_learned_or_others_entries_are_told_of_then_none_is_an_object() {
    let mut mirror = mirror();
    let news = hear(
        &mut mirror,
        &[
            neighbour(NEW_NEIGHBOUR, VTEP, "10.5.2.0", 0x02),
            entry(NEW_NEIGHBOUR, VTEP, "192.0.2.2", 0x02),
            neighbour(NEW_NEIGHBOUR, ETH0, "192.0.2.9", 0x80),
            entry(NEW_NEIGHBOUR, ETH0, "192.0.2.9", 0x80),
            neighbour(NEW_NEIGHBOUR, 77, "192.0.2.9", 0x80),
            address(NEW_ADDRESS, 77, "10.9.9.9/32"),
        ],
    );
    assert!(news.is_empty());
    assert_eq!(mirror.objects().len(), 4);
    // One that was made and is learned now is no longer as it was made.
    hear(
        &mut mirror,
        &[
            neighbour(NEW_NEIGHBOUR, VTEP, "10.5.2.0", 0x80),
            entry(NEW_NEIGHBOUR, VTEP, "192.0.2.2", 0x80),
        ],
    );
    // The end of a destination that was replaced before says nothing; that of the present one does.
    assert!(hear(&mut mirror, &[entry(DEL_NEIGHBOUR, VTEP, "192.0.2.8", 0x80)]).is_empty());
    let news = hear(
        &mut mirror,
        &[
            neighbour(NEW_NEIGHBOUR, VTEP, "10.5.2.0", 0x02),
            entry(NEW_NEIGHBOUR, VTEP, "192.0.2.3", 0x02),
        ],
    );
    assert_eq!(
        news.changed,
        changed(
            &[
                Key::Neighbour(vtep(), ip("10.5.2.0")),
                Key::Forwarding(vtep(), MAC)
            ],
            Some(SOMEBODY)
        )
    );
    assert_eq!(mirror.objects().len(), 4);
}

#[test]
fn mirror_when_addresses_change_then_the_underlay_may_have_and_routes_may_be_gone() {
    let mut mirror = mirror();
    hear(
        &mut mirror,
        &[route(NEW_ROUTE, 0, "10.5.2.0/24", "10.5.2.0", VTEP)],
    );
    let news = hear(&mut mirror, &[address(DEL_ADDRESS, 5, "10.5.1.0/32")]);
    assert_eq!(news.resync, Some(Scope::Link(vtep())));
    assert!(!news.underlay_changed);
    assert_eq!(
        news.changed,
        changed(&[Key::Address(vtep(), net("10.5.1.0/32"))], Some(SOMEBODY))
    );
    let news = hear(&mut mirror, &[address(NEW_ADDRESS, 5, "10.5.1.0/32")]);
    assert_eq!(news.resync, None, "a new one takes nothing away");
    // No routes, so nothing else can have gone.
    let news = hear(&mut mirror, &[address(DEL_ADDRESS, 3, "192.0.2.1/24")]);
    assert!(news.underlay_changed && news.resync.is_none());
    assert!(
        hear(&mut mirror, &[address(DEL_ADDRESS, 3, "192.0.2.1/24")]).is_empty(),
        "told before"
    );
    // Addresses that come with the link are no objects.
    let seen = |scope, address: &str| ObservedAddress {
        link: VTEP,
        address: net(address),
        scope,
        flags: 0,
    };
    for (scope, text, is_one) in [
        (0, "fd00::1/64", true),
        (253, "fe80::1/64", false),
        (253, "169.254.1.1/16", true),
        (254, "127.0.0.1/8", false),
        (254, "::1/128", false),
        (200, "fec0::1/64", true),
    ] {
        assert_eq!(mirror.address(&seen(scope, text)).is_some(), is_one, "{text}");
    }
}

#[test]
fn link_when_it_goes_down_then_its_scope_is_asked_for_if_it_matters() {
    let mut mirror = mirror();
    assert_eq!(
        hear(&mut mirror, &[link(VTEP, "flannel.1", false, true)]).resync,
        Some(Scope::Link(vtep()))
    );
    assert_eq!(
        hear(&mut mirror, &[link(VTEP, "flannel.1", false, true)]).resync,
        None
    );
    assert_eq!(
        hear(&mut mirror, &[link(VTEP, "flannel.1", true, true)]).resync,
        None
    );
    hear(&mut mirror, &[link(9, "eth9", true, false)]);
    assert!(hear(&mut mirror, &[link(9, "eth9", false, false)]).is_empty());
    hear(
        &mut mirror,
        &[
            link(9, "eth9", true, false),
            route(NEW_ROUTE, 0, "10.5.9.0/24", "192.0.9.1", 9),
        ],
    );
    let news = hear(&mut mirror, &[link(9, "eth9", false, false)]);
    assert_eq!(
        news.resync,
        Some(Scope::Link(name("eth9"))),
        "a route of interest leads there"
    );
    assert!(!news.underlay_changed, "and it is nobody's underlay");
}

#[test]
fn link_when_deleted_then_everything_on_it_goes_and_what_else_is_said_depends_on_whose_it_was() {
    let mut mirror = mirror();
    hear(
        &mut mirror,
        &[
            neighbour(NEW_NEIGHBOUR, VTEP, "10.5.2.0", 0x80),
            entry(NEW_NEIGHBOUR, VTEP, "192.0.2.2", 0x80),
            route(NEW_ROUTE, 0, "10.5.2.0/24", "10.5.2.0", VTEP),
            route(NEW_ROUTE, 0, "10.5.9.0/24", "192.0.2.9", ETH0),
            nexthop(NEW_NEXTHOP, 70, "10.5.2.0", VTEP),
            nexthop(NEW_NEXTHOP, 71, "192.0.2.9", ETH0),
        ],
    );
    let news = hear_from(&mut mirror, 0, &[gone(VTEP, "flannel.1")]);
    let keys = [
        Key::Link(vtep()),
        Key::Address(vtep(), net("10.5.1.0/32")),
        Key::Neighbour(vtep(), ip("10.5.2.0")),
        Key::Forwarding(vtep(), MAC),
        route_key("10.5.2.0/24"),
    ];
    assert_eq!(news.changed, changed(&keys, None));
    assert!(news.device_gone && !news.underlay_changed);
    assert_eq!(mirror.index(vtep()), None);
    assert!(mirror.nexthop(70).is_none() && mirror.nexthop(71).is_some());
    let left: Vec<Key> = mirror.objects().keys().collect();
    assert_eq!(
        left,
        [
            Key::Link(eth0()),
            Key::Address(eth0(), net("192.0.2.1/24")),
            route_key("10.5.9.0/24")
        ]
    );
    let news = hear(&mut mirror, &[gone(ETH0, "eth0")]);
    assert!(news.underlay_changed && !news.device_gone);
    assert!(mirror.objects().is_empty());
    assert!(
        hear(&mut mirror, &[gone(ETH0, "eth0")]).changed.is_empty(),
        "gone before"
    );
}

#[test]
fn link_when_its_name_went_to_another_then_the_first_and_its_objects_are_gone() {
    let mut mirror = mirror();
    let news = hear(&mut mirror, &[link(8, "flannel.1", true, true)]);
    assert_eq!(mirror.index(vtep()), Some(8));
    assert_eq!((mirror.name(VTEP), mirror.name(8)), (None, Some(vtep())));
    assert_eq!(
        news.changed,
        changed(&[Key::Address(vtep(), net("10.5.1.0/32"))], Some(SOMEBODY))
    );
    // The end of the first, told late, is not that of the second.
    hear(&mut mirror, &[gone(VTEP, "flannel.1")]);
    assert_eq!(mirror.index(vtep()), Some(8));
    assert!(mirror.objects().contains_key(&Key::Link(vtep())));
}

#[test]
fn link_below_when_renamed_then_the_device_lies_on_it_until_interest_or_the_name_changes() {
    let mut mirror = mirror();
    let device = |mirror: &Mirror| {
        mirror
            .objects()
            .get(&Key::Link(vtep()))
            .and_then(|o| o.as_link().cloned())
    };
    let before = device(&mirror);
    let news = hear(&mut mirror, &[link(ETH0, "wan0", true, false)]);
    assert!(news.underlay_changed);
    assert_eq!(news.resync, Some(Scope::All), "a device lies on it");
    assert_eq!(
        (mirror.index(eth0()), mirror.index(name("wan0"))),
        (None, Some(ETH0))
    );
    hear(&mut mirror, &[link(VTEP, "flannel.1", true, true)]);
    assert_eq!(device(&mirror), before, "it lies where it lay");
    // A second name later, still the same link.
    hear(
        &mut mirror,
        &[
            link(ETH0, "lan0", true, false),
            link(VTEP, "flannel.1", true, true),
        ],
    );
    assert_eq!(device(&mirror), before);
    // Another link of the first name: what the device lies on is to be looked at.
    let news = hear(&mut mirror, &[link(11, "eth0", true, false)]);
    assert_eq!(news.resync, Some(Scope::All));
    hear(&mut mirror, &[link(VTEP, "flannel.1", true, true)]);
    assert_eq!(
        device(&mirror).and_then(|device| device.kind.lower()),
        Some(name("lan0"))
    );
}

#[test]
fn interest_when_said_anew_then_present_names_count_and_what_is_outside_leaves() {
    let mut mirror = mirror();
    hear(
        &mut mirror,
        &[
            link(ETH0, "wan0", true, false),
            route(NEW_ROUTE, 0, "10.5.2.0/24", "10.5.2.0", VTEP),
        ],
    );
    mirror.set_interest(Interest {
        links: vec![name("wan0"), vtep()],
        networks: vec![net("10.6.0.0/16")],
    });
    assert!(
        !mirror.objects().contains_key(&Key::Link(vtep())),
        "on which link it lies is to be seen anew"
    );
    assert!(!mirror.objects().contains_key(&route_key("10.5.2.0/24")));
    assert!(
        mirror
            .objects()
            .contains_key(&Key::Address(vtep(), net("10.5.1.0/32")))
    );
    hear(&mut mirror, &[link(VTEP, "flannel.1", true, true)]);
    let device = mirror.objects().get(&Key::Link(vtep())).and_then(Object::as_link);
    assert_eq!(device.and_then(|device| device.kind.lower()), Some(name("wan0")));
    mirror.set_interest(Interest {
        links: vec![name("wan0")],
        networks: vec![],
    });
    assert!(
        mirror
            .objects()
            .keys()
            .all(|key| key.link() == Some(name("wan0")))
    );
    assert!(!mirror.has_news(), "no news to whoever asked for it");
}

#[test]
fn device_when_renamed_then_its_former_name_is_free_and_the_new_one_looked_at() {
    let mut mirror = mirror();
    hear(&mut mirror, &[link(9, "spare", true, false)]);
    let news = hear(&mut mirror, &[link(VTEP, "stolen", true, true)]);
    assert_eq!(mirror.index(vtep()), None);
    assert_eq!(
        news.changed,
        changed(
            &[Key::Link(vtep()), Key::Address(vtep(), net("10.5.1.0/32"))],
            Some(SOMEBODY)
        )
    );
    assert!(news.underlay_changed, "a link of interest has another name");
    assert_eq!(
        news.resync, None,
        "nothing leads through it, and nobody asked for the new name"
    );
    let news = hear(&mut mirror, &[link(VTEP, "flannel.1", true, true)]);
    assert_eq!(news.resync, Some(Scope::Link(vtep())));
    let news = hear(&mut mirror, &[link(9, "other", true, false)]);
    assert!(news.is_empty(), "neither name is of interest");
    hear(&mut mirror, &[route(NEW_ROUTE, 0, "10.5.9.0/24", "192.0.2.9", 9)]);
    let news = hear(&mut mirror, &[link(9, "third", true, false)]);
    assert_eq!(
        news.resync,
        Some(Scope::Link(name("third"))),
        "routes lead through it"
    );
}

#[test]
fn own_change_when_the_kernel_tells_of_it_then_it_is_no_news_and_others_still_are() {
    let mut mirror = mirror();
    hear(&mut mirror, &[neighbour(NEW_NEIGHBOUR, VTEP, "10.5.2.0", 0x80)]);
    mirror.begin_own(vtep());
    let news = hear_from(
        &mut mirror,
        0,
        &[
            link(VTEP, "flannel.1", false, true),
            neighbour(DEL_NEIGHBOUR, VTEP, "10.5.2.0", 0x80),
            address(DEL_ADDRESS, 3, "192.0.2.1/24"),
        ],
    );
    assert_eq!(
        news.changed,
        changed(&[Key::Address(eth0(), net("192.0.2.1/24"))], None)
    );
    let news = hear(&mut mirror, &[link(VTEP, "flannel.1", true, true)]);
    assert_eq!(
        news.changed,
        changed(&[Key::Link(vtep())], Some(SOMEBODY)),
        "not by the kernel itself"
    );
    hear_from(&mut mirror, 0, &[gone(VTEP, "flannel.1")]);
    mirror.end_own();
    // What was asked for before stays, what our own change asked for does not.
    let mut mirror = self::mirror();
    mirror.begin_own(vtep());
    mirror.want(Scope::Link(vtep()));
    mirror.end_own();
    assert!(!mirror.has_news());
    mirror.want(Scope::Link(vtep()));
    mirror.begin_own(vtep());
    mirror.want(Scope::Link(vtep()));
    mirror.end_own();
    assert_eq!(mirror.take_news().resync, Some(Scope::Link(vtep())));
    mirror.begin_own(vtep());
    mirror.want(Scope::Link(eth0()));
    mirror.end_own();
    assert_eq!(mirror.take_news().resync, Some(Scope::Link(eth0())));
    mirror.end_own();
    assert!(!mirror.has_news());
}

#[test]
fn own_device_when_we_delete_it_then_no_device_has_gone() {
    let mut mirror = mirror();
    mirror.begin_own(vtep());
    assert!(!hear_from(&mut mirror, 0, &[gone(VTEP, "flannel.1")]).device_gone);
}

#[test]
fn route_when_told_of_then_in_a_place_of_interest_an_object_and_elsewhere_a_changed_way() {
    let mut mirror = mirror();
    let news = hear(
        &mut mirror,
        &[
            route(NEW_ROUTE, 0, "198.51.100.0/24", "192.0.2.9", ETH0),
            route_of(NEW_ROUTE, 0, "203.0.113.0/24", 100).u32(4, ETH0),
        ],
    );
    assert!(news.changed.is_empty());
    assert!(news.ways.covers(ip("198.51.100.7")) && news.ways.covers(ip("203.0.113.7")));
    assert!(!news.ways.covers(ip("192.0.2.7")) && !news.ways.has_default());
    // Neither ours in another table, nor the kernel's own, nor link-local ones change a way.
    let news = hear(
        &mut mirror,
        &[
            route_of(NEW_ROUTE, 0, "10.5.7.0/24", 100).u32(4, ETH0),
            route_of(NEW_ROUTE, 0, "203.0.113.0/24", 255).u32(4, ETH0),
            route_of(NEW_ROUTE, 0, "fe80::/64", 254).u32(4, ETH0),
            route_of(NEW_ROUTE, 0, "ff00::/8", 254).u32(4, ETH0),
        ],
    );
    assert!(news.is_empty());
    let news = hear(
        &mut mirror,
        &[route_of(DEL_ROUTE, 0, "169.254.0.0/16", 254).u32(4, ETH0)],
    );
    assert!(news.ways.covers(ip("169.254.1.1")));
    for kind in [32, 33] {
        let news = hear(&mut mirror, &[Message::new("", kind, 0).raw(&[0; 12])]);
        assert!(
            news.ways.covers(ip("192.0.2.7")) && news.ways.has_default(),
            "a rule"
        );
    }
    assert!(hear(&mut mirror, &[Message::new("", 34, 0).raw(&[0; 12])]).is_empty());
}

#[test]
fn route_when_another_takes_or_shares_its_place_then_the_mirror_knows_or_asks() {
    let mut mirror = mirror();
    let (first, second) = ("10.5.2.0", "10.5.2.9");
    let with = |flags, gateway| route(NEW_ROUTE, flags, "10.5.2.0/24", gateway, VTEP);
    let shown = |mirror: &Mirror| match mirror.objects().get(&route_key("10.5.2.0/24")) {
        Some(Object::Route(route)) => route.gateway,
        _ => None,
    };
    hear(&mut mirror, &[with(0, first)]);
    let news = hear(&mut mirror, &[with(flag::REPLACE, second)]);
    assert_eq!((shown(&mirror), news.resync), (Some(ip(second)), None));
    // Beside it, in front: that is the one taken. Both are to be seen.
    let news = hear(&mut mirror, &[with(0, first)]);
    assert_eq!(
        (shown(&mirror), news.resync),
        (Some(ip(first)), Some(Scope::Link(vtep())))
    );
    // In a crowded place a replacement need not be of the first.
    let news = hear(&mut mirror, &[with(flag::REPLACE, second)]);
    assert_eq!(news.resync, Some(Scope::Link(vtep())));
    // When the known one of several goes, what is taken now is not known.
    let news = hear(&mut mirror, &[route(DEL_ROUTE, 0, "10.5.2.0/24", second, VTEP)]);
    assert_eq!((shown(&mirror), news.resync), (None, Some(Scope::All)));
    // Behind it: the one that was there is still taken.
    hear(&mut mirror, &[with(0, first)]);
    let news = hear(&mut mirror, &[with(flag::APPEND, second)]);
    assert_eq!(
        (shown(&mirror), news.resync),
        (Some(ip(first)), Some(Scope::Link(vtep())))
    );
    // One that is not the one known goes: nothing is known to have gone.
    let news = hear(&mut mirror, &[route(DEL_ROUTE, 0, "10.5.2.0/24", second, VTEP)]);
    assert_eq!(
        (shown(&mirror), news.resync),
        (Some(ip(first)), Some(Scope::Link(vtep())))
    );
    assert!(news.changed.is_empty());
    let news = hear(&mut mirror, &[route(DEL_ROUTE, 0, "10.5.8.0/24", second, VTEP)]);
    assert!(news.is_empty(), "nobody knew it");
    let elsewhere = route(NEW_ROUTE, flag::APPEND, "10.5.2.0/24", "192.0.2.9", ETH0);
    assert_eq!(
        hear(&mut mirror, &[elsewhere]).resync,
        Some(Scope::All),
        "two links"
    );
}

#[test]
fn route_when_a_leg_is_added_then_it_is_seen_as_one_of_several() {
    let mut mirror = mirror();
    hear(
        &mut mirror,
        &[route(NEW_ROUTE, 0, "10.5.2.0/24", "10.5.2.0", VTEP)],
    );
    let several =
        route_of(NEW_ROUTE, flag::APPEND, "10.5.2.0/24", 254).attribute(9, &[16, 0, 0, 0, 5, 0, 0, 0]);
    let news = hear(&mut mirror, &[several]);
    assert_eq!(news.resync, Some(Scope::Link(vtep())));
    let Some(Object::Route(seen)) = mirror.objects().get(&route_key("10.5.2.0/24")) else {
        panic!("no route");
    };
    assert_eq!((seen.gateway, seen.onlink, seen.link), (None, false, vtep()));
}

#[test]
fn crowded_places_when_all_routes_of_a_family_are_to_be_seen_then_only_its_are_forgotten() {
    let mut mirror = mirror();
    let (v4, v6) = (route_key("10.5.2.0/24"), Key::Route(net("fd00:0:0:2::/64"), 0));
    for key in [v4, v6, Key::Link(vtep())] {
        mirror.set_crowded(key);
    }
    assert!(mirror.is_crowded(&v4) && mirror.is_crowded(&v6));
    assert!(!mirror.is_crowded(&Key::Route(net("10.5.2.0/24"), 7)) && !mirror.is_crowded(&Key::Link(vtep())));
    mirror.forget_crowded(true);
    assert!(!mirror.is_crowded(&v4) && mirror.is_crowded(&v6));
    mirror.set_crowded(v4);
    mirror.forget_crowded(false);
    assert!(mirror.is_crowded(&v4) && !mirror.is_crowded(&v6));
}

#[test]
fn nexthop_objects_when_routes_use_them_then_counted_and_their_silent_loss_is_asked_for() {
    let mut mirror = mirror();
    let by = |id: u32, to: &str| route_of(NEW_ROUTE, flag::REPLACE, to, 254).u32(30, id);
    let uses = |mirror: &Mirror, id| mirror.nexthop(id).map(|nexthop| nexthop.uses);
    hear(
        &mut mirror,
        &[
            nexthop(NEW_NEXTHOP, 70, "10.5.2.0", VTEP),
            nexthop(NEW_NEXTHOP, 71, "10.5.3.0", VTEP),
        ],
    );
    assert_eq!(mirror.nexthops().count(), 2);
    let news = hear(&mut mirror, &[by(70, "10.5.2.0/24"), by(70, "10.5.4.0/24")]);
    assert_eq!(news.changed.len(), 2);
    assert_eq!((uses(&mirror, 70), uses(&mirror, 71)), (Some(2), Some(0)));
    let shown = peer("10.5.2.0/24", "10.5.2.0");
    assert_eq!(
        mirror.objects().get(&shown.key()),
        Some(&Object::Route(shown)),
        "as the object leads"
    );
    assert_eq!(mirror.nexthop_of(&shown), Some(70));
    hear(&mut mirror, &[by(71, "10.5.2.0/24")]);
    assert_eq!((uses(&mirror, 70), uses(&mirror, 71)), (Some(1), Some(1)));
    hear(&mut mirror, &[by(71, "10.5.2.0/24")]);
    assert_eq!(
        (uses(&mirror, 70), uses(&mirror, 71)),
        (Some(1), Some(1)),
        "the same again"
    );
    // The same gateway said without an object is another encoding of the same route.
    hear(
        &mut mirror,
        &[route(NEW_ROUTE, flag::REPLACE, "10.5.2.0/24", "10.5.3.0", VTEP)],
    );
    assert_eq!(uses(&mirror, 71), Some(0));
    // Unchanged, and changed.
    assert_eq!(
        hear(&mut mirror, &[nexthop(NEW_NEXTHOP, 70, "10.5.2.0", VTEP)]).resync,
        None
    );
    assert_eq!(uses(&mirror, 70), Some(1), "who is seen again is used as before");
    let news = hear(&mut mirror, &[nexthop(NEW_NEXTHOP, 70, "10.5.2.7", VTEP)]);
    assert_eq!(news.resync, Some(Scope::Link(vtep())));
    assert_eq!(
        hear(&mut mirror, &[nexthop(NEW_NEXTHOP, 71, "10.5.3.7", VTEP)]).resync,
        None,
        "unused"
    );
    let news = hear(&mut mirror, &[nexthop(DEL_NEXTHOP, 70, "10.5.2.7", VTEP)]);
    assert_eq!(news.resync, Some(Scope::Link(vtep())));
    assert!(mirror.nexthop(70).is_none());
    assert_eq!(
        hear(&mut mirror, &[nexthop(DEL_NEXTHOP, 71, "10.5.3.7", VTEP)]).resync,
        None
    );
    hear(
        &mut mirror,
        &[route(DEL_ROUTE, 0, "10.5.2.0/24", "10.5.3.0", VTEP)],
    );
    assert_eq!(mirror.nexthop_of(&shown), None);
}

fn observed_nexthop(id: u32, link: Option<u32>) -> ObservedNexthop {
    ObservedNexthop {
        id,
        link,
        gateway: None,
        onlink: false,
        protocol: 241,
    }
}

#[test]
fn nexthop_objects_when_listed_anew_then_exactly_those_in_the_scope() {
    let mut mirror = mirror();
    let ids = |mirror: &Mirror| mirror.nexthops().map(|n| n.seen.id).collect::<Vec<u32>>();
    let all = [
        observed_nexthop(1, Some(VTEP)),
        observed_nexthop(2, Some(ETH0)),
        observed_nexthop(3, None),
        observed_nexthop(4, Some(VTEP)),
    ];
    mirror.replace_nexthops(None, &all);
    assert_eq!(ids(&mirror), [1, 2, 3, 4]);
    mirror.replace_nexthops(Some(VTEP), &all[..1]);
    assert_eq!(ids(&mirror), [1, 2, 3]);
    mirror.forget_link(VTEP, Origin::Own);
    assert_eq!(ids(&mirror), [2, 3], "gone with their link");
    mirror.replace_nexthops(None, &all[2..3]);
    assert_eq!(ids(&mirror), [3]);
}

#[test]
fn sections_when_listed_anew_then_exactly_those_and_nothing_beside_them() {
    let mut mirror = mirror();
    hear(
        &mut mirror,
        &[
            neighbour(NEW_NEIGHBOUR, VTEP, "10.5.2.0", 0x80),
            neighbour(NEW_NEIGHBOUR, VTEP, "10.5.3.0", 0x80),
            entry(NEW_NEIGHBOUR, VTEP, "192.0.2.2", 0x80),
        ],
    );
    let kept = Object::Neighbour(Neighbour {
        link: vtep(),
        address: ip("10.5.3.0"),
        mac: MAC,
    });
    let fresh = || Objects::from_iter([kept.clone()]);
    assert!(mirror.knows_more(Section::Neighbour, vtep(), &fresh()));
    mirror.replace_section(Section::Neighbour, vtep(), fresh(), Origin::Foreign(None));
    assert!(!mirror.knows_more(Section::Neighbour, vtep(), &fresh()));
    assert!(!mirror.knows_more(Section::Neighbour, eth0(), &Objects::new()));
    assert_eq!(mirror.section(Section::Neighbour, vtep()), [kept.key()]);
    assert_eq!(
        mirror.section(Section::Forwarding, vtep()),
        [Key::Forwarding(vtep(), MAC)]
    );
    assert_eq!(
        mirror.section(Section::Address, eth0()),
        [Key::Address(eth0(), net("192.0.2.1/24"))]
    );
    assert_eq!(mirror.section(Section::Link, vtep()), [Key::Link(vtep())]);
    mirror.settle();
    assert_eq!(
        mirror.take_news().changed,
        changed(&[Key::Neighbour(vtep(), ip("10.5.2.0"))], None)
    );
}

fn fresh(routes: &[Route]) -> FreshRoutes {
    routes.iter().map(|route| (route.key(), (*route, None))).collect()
}

#[test]
fn routes_when_listed_anew_then_of_that_family_and_link_exactly_those() {
    let mut mirror = mirror();
    let (a, b) = (peer("10.5.2.0/24", "10.5.2.0"), peer("10.5.3.0/24", "10.5.3.0"));
    let elsewhere = Route {
        link: eth0(),
        ..peer("10.5.4.0/24", "192.0.2.4")
    };
    let v6 = peer("fd00:0:0:2::/64", "fd00:0:0:2::");
    mirror.replace_routes(true, None, fresh(&[a, b, elsewhere]), Origin::Own);
    mirror.replace_routes(false, None, fresh(&[v6]), Origin::Own);
    let routes = |mirror: &Mirror| -> Vec<Route> {
        mirror
            .objects()
            .values()
            .filter_map(|o| if let Object::Route(r) = o { Some(*r) } else { None })
            .collect()
    };
    assert_eq!(routes(&mirror), [a, b, elsewhere, v6]);
    mirror.replace_routes(true, Some(vtep()), fresh(&[b]), Origin::Own);
    assert_eq!(routes(&mirror), [b, elsewhere, v6]);
    assert!(!mirror.take_uncovered());
    // Seen on this link, known on another: which is taken is not known.
    let moved = Route {
        link: vtep(),
        ..elsewhere
    };
    mirror.replace_routes(true, Some(vtep()), fresh(&[b, moved]), Origin::Own);
    assert!(mirror.take_uncovered() && !mirror.take_uncovered());
    mirror.set_crowded(b.key());
    mirror.replace_routes(true, Some(vtep()), fresh(&[b, moved]), Origin::Own);
    assert!(mirror.take_uncovered(), "one of several");
    mirror.replace_routes(true, None, fresh(&[elsewhere]), Origin::Own);
    assert!(mirror.take_uncovered(), "the crowded place is empty now");
    mirror.replace_routes(false, None, fresh(&[]), Origin::Own);
    assert_eq!(routes(&mirror), [elsewhere]);
    assert!(mirror.has_routes(eth0()) && !mirror.has_routes(vtep()));
    mirror.settle();
    assert!(!mirror.has_news(), "what a dump shows is told to nobody");
}

fn observed_link(message: &Message) -> ObservedLink {
    let mut bytes = Vec::new();
    message.write(0, &mut bytes);
    crate::rtnl::link::read(&Replies(&bytes).next().unwrap()).unwrap()
}

#[test]
fn links_when_listed_anew_then_others_are_gone_and_names_below_are_known_in_any_order() {
    let mut mirror = Mirror::default();
    mirror.set_interest(wanted());
    let device = observed_link(&link(VTEP, "flannel.1", true, true));
    let below = observed_link(&link(ETH0, "eth0", true, false));
    mirror.replace_links(&[device.clone(), below.clone()]);
    let seen = mirror.objects().get(&Key::Link(vtep())).and_then(Object::as_link);
    assert_eq!(seen.and_then(|seen| seen.kind.lower()), Some(eth0()));
    mirror.replace_links(&[device]);
    assert_eq!(mirror.index(eth0()), None);
    assert!(!mirror.objects().contains_key(&Key::Link(eth0())));
    assert!(
        !mirror.rename(&below, Origin::Own),
        "a new one has no former name"
    );
    let renamed = ObservedLink {
        name: name("wan0"),
        ..below
    };
    assert!(mirror.rename(&renamed, Origin::Own));
}

#[test]
fn route_when_no_plan_could_have_made_it_then_shown_as_what_no_plan_wants() {
    let mirror = mirror();
    let seen = ObservedRoute {
        destination: net("10.5.2.0/24"),
        metric: 0,
        tos: 0,
        table: 254,
        protocol: 3,
        kind: RouteKind::Unicast,
        gateway: Some(ip("10.5.2.0")),
        link: Some(VTEP),
        onlink: true,
        compound: false,
        nexthop: None,
        cloned: false,
    };
    let shown = |seen| {
        let route = mirror.route(&seen).unwrap();
        (route.link, route.gateway, route.onlink)
    };
    let lo = name("lo");
    assert_eq!(shown(seen), (vtep(), seen.gateway, true));
    assert_eq!(
        shown(ObservedRoute {
            onlink: false,
            ..seen
        }),
        (vtep(), seen.gateway, false)
    );
    assert_eq!(
        shown(ObservedRoute {
            compound: true,
            ..seen
        }),
        (vtep(), None, false)
    );
    assert_eq!(
        shown(ObservedRoute {
            link: Some(99),
            ..seen
        }),
        (lo, seen.gateway, true)
    );
    for (kind, is_refused) in [(7, true), (6, false), (8, false)] {
        let route = mirror
            .route(&ObservedRoute {
                kind: RouteKind::Other(kind),
                ..seen
            })
            .unwrap();
        assert_eq!((route.link, route.gateway), (lo, None));
        assert_eq!(route.is_unreachable(), is_refused, "type {kind}");
    }
}

#[test]
fn mirror_when_packed_then_the_same() {
    let mut mirror = mirror();
    hear(
        &mut mirror,
        &[
            nexthop(NEW_NEXTHOP, 70, "10.5.2.0", VTEP),
            route_of(NEW_ROUTE, 0, "10.5.2.0/24", 254).u32(30, 70),
        ],
    );
    let before: Vec<Key> = mirror.objects().keys().collect();
    mirror.compact();
    assert_eq!(mirror.objects().keys().collect::<Vec<Key>>(), before);
    assert_eq!(mirror.nexthop(70).map(|nexthop| nexthop.uses), Some(1));
    assert_eq!(mirror.nexthop_of(&peer("10.5.2.0/24", "10.5.2.0")), Some(70));
}

#[test]
fn devices_when_their_link_below_is_no_longer_known_by_that_name_then_only_they_are_left_out() {
    let mut mirror = mirror();
    let other = LinkKind::Other("dummy".into());
    let link = Link {
        name: eth0(),
        kind: other,
        mac: None,
        mtu: 1500,
        up: true,
    };
    mirror.set(Key::Link(eth0()), Some(Object::Link(Box::new(link))), Origin::Own);
    mirror.forget_carried(name("wan0"));
    assert_eq!(mirror.objects().len(), 4);
    mirror.forget_carried(eth0());
    assert_eq!(mirror.objects().len(), 3);
    assert!(mirror.objects().contains_key(&Key::Link(eth0())));
}
