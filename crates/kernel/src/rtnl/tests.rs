//! What the kernel shows, read, and what is asked of it, byte by byte. Field numbers are written out here as in the kernel's
//! headers, not taken from the code.

use std::net::IpAddr;

use fabric::kind::Vxlan;
use fabric::object::{Family, LinkKind, LinkName, Mac, Route};

use crate::kind::ObservedKind;
use crate::nl::message::Replies;
use crate::nl::{Message, Reply, flag};

use super::pod::PodRoute;
use super::route::Via;
use super::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);
const PERMANENT: u16 = 0x80;
const REACHABLE: u16 = 0x02;

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn name(text: &str) -> LinkName {
    LinkName::new(text).unwrap()
}

/// The bytes of a message behind its length, with sequence 0.
pub(super) fn bytes(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.write(0, &mut bytes);
    assert_eq!(bytes.len(), message.len());
    bytes
}

/// What is read of a message that the kernel sends.
pub(super) fn heard<T>(message: &Message, read: impl Fn(&Reply<'_>) -> Option<T>) -> Option<T> {
    let bytes = bytes(message);
    let reply = Replies(&bytes).next().unwrap();
    read(&reply)
}

/// Two messages are the same on the wire.
#[track_caller]
pub(super) fn assert_same(message: &Message, expected: &Message) {
    assert_eq!(bytes(message), bytes(expected));
}

fn ifaddr(kind: u16, family: u8, prefix: u8, scope: u8) -> Message {
    Message::new("", kind, 0).raw(&[family, prefix, 0x80, scope, 5, 0, 0, 0])
}

#[test]
fn address_when_shown_then_the_local_end_with_all_its_flags() {
    let pair = |kind| {
        ifaddr(kind, 2, 24, 253)
            .ip(1, ip("10.0.0.9"))
            .ip(2, ip("10.0.0.1"))
            .u32(8, 0x280)
    };
    let expected = ObservedAddress {
        link: 5,
        address: "10.0.0.1/24".parse().unwrap(),
        scope: 253,
        flags: 0x280,
    };
    assert_eq!(heard(&pair(20), address::read), Some(expected));
    assert_eq!(heard(&pair(21), address::read), Some(expected));
    assert_eq!(heard(&pair(22), address::read), None, "another message");
    let v6 = ifaddr(20, 10, 64, 0).ip(1, ip("fd00::1"));
    let seen = heard(&v6, address::read).unwrap();
    assert_eq!((seen.address, seen.flags), ("fd00::1/64".parse().unwrap(), 0x80));
    let bridge = ifaddr(20, 7, 24, 0).ip(2, ip("10.0.0.1"));
    assert_eq!(heard(&bridge, address::read), None, "another family");
    let nameless = ifaddr(20, 2, 24, 0).u32(8, 0);
    assert_eq!(heard(&nameless, address::read), None);
    let absurd = ifaddr(20, 2, 33, 0).ip(2, ip("10.0.0.1"));
    assert_eq!(heard(&absurd, address::read), None);
    assert_eq!(
        heard(&Message::new("", 20, 0).raw(&[2, 24, 0, 0]), address::read),
        None
    );
}

/// `struct ifinfomsg`: family, type of hardware, index, flags, mask.
fn ifinfo(kind: u16, family: u8, hardware: u16, flags: u32) -> Message {
    let mut header = [0; 16];
    header[0] = family;
    header[2..4].copy_from_slice(&hardware.to_ne_bytes());
    header[4..8].copy_from_slice(&7u32.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    Message::new("", kind, 0).raw(&header)
}

#[test]
fn link_when_shown_then_everything_about_it() {
    let shown = |kind, family| {
        ifinfo(kind, family, 1, 0x1_0001)
            .text(3, "flannel.1")
            .attribute(1, &MAC.0)
            .u32(4, 1450)
            .u32(10, 8)
            .u32(5, 3)
            .nest(52, |list| list.text(53, "other").text(54, "no name"))
            .nest(18, |info| {
                info.text(1, "vxlan")
                    .nest(2, |data| data.u32(1, 77).u32(3, 4).be16(15, 8472).u8(7, 1))
            })
    };
    let seen = heard(&shown(16, 0), link::read).unwrap();
    assert_eq!(
        (seen.index, seen.name, &*seen.kind),
        (7, name("flannel.1"), "vxlan")
    );
    assert_eq!((seen.mac, seen.mtu, seen.flags), (Some(MAC), 1450, 0x1_0001));
    assert_eq!((seen.master, seen.lower), (Some(8), Some(3)));
    assert_eq!(seen.other_names, [Box::from("other")]);
    assert!(matches!(&seen.made_of, Some(ObservedKind::Vxlan(vxlan)) if vxlan.vni == 77));
    let object = seen.to_object(|index| (index == 4).then(|| name("eth0")));
    let expected = Vxlan {
        vni: 77,
        port: Some(8472),
        local: ip("0.0.0.0"),
        lower: name("eth0"),
        learning: true,
        gbp: false,
    };
    assert_eq!(object.kind, LinkKind::from(expected));
    assert_eq!(
        (object.name, object.mac, object.mtu),
        (seen.name, seen.mac, seen.mtu)
    );
    assert!(object.up);
    assert_eq!(heard(&shown(17, 0), link::read), Some(seen));
    assert_eq!(heard(&shown(18, 0), link::read), None, "another message");
    assert_eq!(
        heard(&shown(17, 7), link::read),
        None,
        "a port that left its bridge"
    );
}

#[test]
fn link_when_it_has_little_then_little_is_seen() {
    let lo = ifinfo(16, 0, 772, 0x8).text(3, "lo").attribute(1, &[0; 6]);
    let seen = heard(&lo, link::read).unwrap();
    assert_eq!((seen.mac, &*seen.kind, seen.made_of.clone()), (None, "", None));
    assert_eq!(
        (seen.master, seen.lower, seen.is_up(), seen.has_carrier()),
        (None, None, false, false)
    );
    assert_eq!(seen.to_object(|_| None).kind, LinkKind::Other("".into()));
    assert!(!seen.to_object(|_| None).up);
    let infiniband = ifinfo(16, 0, 32, 0x1_0000).text(3, "ib0").attribute(1, &[9; 20]);
    let seen = heard(&infiniband, link::read).unwrap();
    assert_eq!((seen.mac, seen.is_up(), seen.has_carrier()), (None, false, true));
    assert_eq!(heard(&ifinfo(16, 0, 1, 0), link::read), None, "without a name");
    let up = ObservedLink { flags: 0x1, ..seen };
    assert!(up.is_up() && !up.has_carrier());
}

#[test]
fn links_when_asked_for_or_changed_then_by_index_or_name_and_without_counters() {
    assert_eq!(link::header(0x0102_0304, 5, 6)[..4], [0; 4]);
    let asked = Message::new("", 18, 0).raw(&[0; 16]).text(3, "eth0").u32(29, 8);
    assert_same(&link::get_message(name("eth0")), &asked);
    let vxlan = Vxlan {
        vni: 1,
        port: None,
        local: ip("192.0.2.1"),
        lower: name("eth0"),
        learning: false,
        gbp: false,
    };
    let changed = Message::new("", 16, 0)
        .raw(&[0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        .nest(18, |info| {
            info.attribute(1, b"vxlan").nest(2, |data| data.u8(7, 0))
        });
    assert_same(&link::change_kind_message(7, &vxlan.into()), &changed);
    let nothing = link::set_message(7, LinkChange::default());
    let header = [0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_same(&nothing, &Message::new("", 16, 0).raw(&header));
    for (up, flags) in [(true, 1), (false, 0)] {
        let all = link::set_message(
            7,
            LinkChange {
                mtu: Some(1400),
                mac: Some(MAC),
                up: Some(up),
            },
        );
        let expected = Message::new("", 16, 0)
            .raw(&[0, 0, 0, 0, 7, 0, 0, 0, flags, 0, 0, 0, 1, 0, 0, 0])
            .u32(4, 1400)
            .attribute(1, &MAC.0);
        assert_same(&all, &expected);
    }
}

/// `struct ndmsg`: family, padding, index, state, flags, type.
fn nd(kind: u16, family: u8, state: u16, flags: u8) -> Message {
    let [a, b] = state.to_ne_bytes();
    Message::new("", kind, 0).raw(&[family, 0, 0, 0, 5, 0, 0, 0, a, b, flags, 1])
}

#[test]
fn neighbour_when_shown_then_read_unless_it_is_a_proxys_or_a_bridges() {
    let shown = |kind, family, flags| {
        nd(kind, family, PERMANENT, flags)
            .ip(1, ip("10.5.2.0"))
            .attribute(2, &MAC.0)
    };
    let expected = ObservedNeighbour {
        link: 5,
        address: ip("10.5.2.0"),
        mac: Some(MAC),
        state: PERMANENT,
    };
    assert!(expected.is_permanent());
    assert_eq!(heard(&shown(28, 2, 0), neighbour::read), Some(expected));
    assert_eq!(heard(&shown(29, 10, 0x80), neighbour::read), Some(expected));
    for (kind, family, flags) in [(30, 2, 0), (28, 7, 0), (28, 2, 8), (28, 2, 0x18)] {
        assert_eq!(heard(&shown(kind, family, flags), neighbour::read), None);
    }
    let learned = nd(28, 2, REACHABLE, 0).ip(1, ip("10.5.2.0"));
    let seen = heard(&learned, neighbour::read).unwrap();
    assert_eq!((seen.mac, seen.is_permanent()), (None, false));
    assert_eq!(
        heard(&nd(28, 2, PERMANENT, 0), neighbour::read),
        None,
        "of no address"
    );
    let listed = Message::new("", 30, 0).raw(&[0; 12]).u32(8, 5);
    assert_same(&neighbour::list_message(5), &listed);
}

#[test]
fn forwarding_entry_when_shown_then_read_if_it_is_a_devices_own() {
    let shown = |kind, family, flags| {
        nd(kind, family, PERMANENT, flags)
            .attribute(2, &MAC.0)
            .ip(1, ip("192.0.2.2"))
    };
    let expected = ObservedForwarding {
        link: 5,
        mac: MAC,
        remote: ip("192.0.2.2"),
        state: PERMANENT,
        flags: 2,
    };
    assert!(expected.is_permanent());
    let learned = ObservedForwarding {
        state: REACHABLE,
        ..expected
    };
    let by_others = ObservedForwarding {
        flags: 0x12,
        ..expected
    };
    assert!(!learned.is_permanent() && !by_others.is_permanent());
    let both = ObservedForwarding {
        state: REACHABLE,
        flags: 0x12,
        ..expected
    };
    assert!(!both.is_permanent());
    assert_eq!(heard(&shown(28, 7, 2), forwarding::read), Some(expected));
    assert_eq!(heard(&shown(29, 7, 2), forwarding::read), Some(expected));
    for (kind, family, flags) in [(30, 7, 2), (28, 2, 2), (28, 7, 4), (28, 7, 6)] {
        assert_eq!(heard(&shown(kind, family, flags), forwarding::read), None);
    }
    let of_a_bridge = nd(28, 7, PERMANENT, 2).attribute(2, &MAC.0);
    assert_eq!(heard(&of_a_bridge, forwarding::read), None);
    let without = nd(28, 7, PERMANENT, 2).ip(1, ip("192.0.2.2"));
    assert_eq!(heard(&without, forwarding::read), None);
    let listed = Message::new("", 30, 0)
        .raw(&[7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        .u32(8, 5);
    assert_same(&forwarding::list_message(5), &listed);
}

#[test]
fn nexthop_when_shown_then_read_and_when_made_then_with_its_flags() {
    let shown = |kind, flags| {
        Message::new("", kind, 0)
            .raw(&[2, 0, 241, 0, flags, 0, 0, 0])
            .u32(1, 77)
            .u32(5, 6)
            .ip(6, ip("10.5.2.0"))
    };
    let expected = ObservedNexthop {
        id: 77,
        link: Some(6),
        gateway: Some(ip("10.5.2.0")),
        onlink: true,
        protocol: 241,
    };
    assert_eq!(heard(&shown(104, 4), nexthop::read), Some(expected));
    assert_eq!(heard(&shown(105, 0x14), nexthop::read), Some(expected));
    assert_eq!(heard(&shown(106, 4), nexthop::read), None);
    let plain = heard(&shown(104, 0x10), nexthop::read).unwrap();
    assert!(!plain.onlink);
    let group = Message::new("", 104, 0).raw(&[0; 8]).u32(1, 5);
    let group = heard(&group, nexthop::read).unwrap();
    assert_eq!((group.link, group.gateway), (None, None));
    let made = nexthop::add_message(77, 6, ip("10.5.2.0"), true, 241);
    let want = Message::new("", 104, flag::CREATE | flag::EXCL)
        .raw(&[2, 0, 241, 0, 4, 0, 0, 0])
        .u32(1, 77)
        .u32(5, 6)
        .ip(6, ip("10.5.2.0"));
    assert_same(&made, &want);
    let made = nexthop::add_message(77, 6, ip("fd00::1"), false, 241);
    let want = Message::new("", 104, flag::CREATE | flag::EXCL)
        .raw(&[10, 0, 241, 0, 0, 0, 0, 0])
        .u32(1, 77)
        .u32(5, 6)
        .ip(6, ip("fd00::1"));
    assert_same(&made, &want);
    let gone = Message::new("", 105, 0).raw(&[0; 8]).u32(1, 77);
    assert_same(&nexthop::delete_message(77), &gone);
    let all = Message::new("", 106, 0).raw(&[0; 8]);
    assert_same(&nexthop::list_message(None), &all);
    assert_same(&nexthop::list_message(Some(6)), &all.u32(5, 6));
}

/// `struct rtmsg`: family, prefix, source's, tos, table, protocol, scope, type, flags.
fn rt(kind: u16, family: u8, prefix: u8, tos: u8, table: u8, what: u8, flags: u32) -> Message {
    let [a, b, c, d] = flags.to_ne_bytes();
    Message::new("", kind, 0).raw(&[family, prefix, 0, tos, table, 241, 0, what, a, b, c, d])
}

#[test]
fn route_when_shown_then_everything_about_it() {
    let shown = |kind| {
        rt(kind, 2, 24, 0, 254, 1, 4)
            .ip(1, ip("10.5.2.0"))
            .u32(6, 9)
            .ip(5, ip("10.5.2.1"))
            .u32(4, 6)
    };
    let expected = ObservedRoute {
        destination: "10.5.2.0/24".parse().unwrap(),
        metric: 9,
        tos: 0,
        table: 254,
        protocol: 241,
        kind: RouteKind::Unicast,
        gateway: Some(ip("10.5.2.1")),
        link: Some(6),
        onlink: true,
        compound: false,
        nexthop: None,
        cloned: false,
    };
    assert_eq!(heard(&shown(24), route::read), Some(expected));
    assert_eq!(heard(&shown(25), route::read), Some(expected));
    assert_eq!(heard(&shown(26), route::read), None);
    let default = rt(24, 10, 0, 0, 254, 7, 0x10);
    let seen = heard(&default, route::read).unwrap();
    assert_eq!(
        (seen.destination, seen.kind, seen.onlink, seen.cloned),
        ("::/0".parse().unwrap(), RouteKind::Other(7), false, false)
    );
    let v4 = heard(&rt(24, 2, 0, 0, 254, 6, 0), route::read).unwrap();
    assert_eq!(
        (v4.destination, v4.kind),
        ("0.0.0.0/0".parse().unwrap(), RouteKind::Other(6))
    );
    assert_eq!(
        heard(&rt(24, 7, 0, 0, 254, 1, 0), route::read),
        None,
        "another family"
    );
    let cloned = heard(&rt(24, 10, 0, 3, 254, 1, 0x200), route::read).unwrap();
    assert_eq!((cloned.cloned, cloned.tos, cloned.onlink), (true, 3, false));
}

#[test]
fn route_when_it_is_not_a_simple_one_then_that_is_seen() {
    let base = || rt(24, 2, 24, 0, 254, 1, 0).ip(1, ip("10.5.2.0"));
    let mut via = vec![10, 0];
    via.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let seen = heard(&base().attribute(18, &via), route::read).unwrap();
    assert_eq!((seen.gateway, seen.compound), (Some(ip("fd00::1")), false));
    let several = base().attribute(9, &[16, 0, 0, 0, 6, 0, 0, 0]);
    let seen = heard(&several, route::read).unwrap();
    assert_eq!((seen.link, seen.compound), (Some(6), true));
    let seen = heard(&base().u16(21, 1).u32(4, 6), route::read).unwrap();
    assert_eq!((seen.link, seen.compound), (Some(6), true));
    let seen = heard(&base().u32(30, 77), route::read).unwrap();
    assert_eq!((seen.nexthop, seen.compound), (Some(77), false));
    let seen = heard(&base().u32(15, 1000), route::read).unwrap();
    assert_eq!(seen.table, 1000);
}

#[test]
fn route_when_of_another_table_or_service_then_not_of_the_main_one() {
    let of = |table, tos, cloned| {
        let flags = if cloned { 0x200 } else { 0 };
        let seen = heard(&rt(24, 2, 0, tos, table, 1, flags), route::read).unwrap();
        (seen.is_main(), seen.is_of_further_table())
    };
    assert_eq!(of(254, 0, false), (true, false));
    assert_eq!(of(254, 4, false), (false, false));
    assert_eq!(of(254, 0, true), (false, false));
    assert_eq!(of(255, 0, false), (false, false), "the kernel's own addresses");
    assert_eq!(of(100, 0, false), (false, true));
    assert_eq!(of(100, 4, false), (false, true));
    assert_eq!(of(100, 0, true), (false, false));
}

fn plain(destination: &str, gateway: Option<&str>) -> Route {
    Route {
        destination: destination.parse().unwrap(),
        metric: 0,
        gateway: gateway.map(ip),
        link: name("flannel.1"),
        onlink: true,
        protocol: 241,
    }
}

/// A request about a route: its scope, its type, its flags.
fn request(kind: u16, flags: u16, v6: bool, scope: u8, what: u8, onlink: u8) -> Message {
    let (family, prefix) = if v6 { (10, 64) } else { (2, 24) };
    Message::new("", kind, flags).raw(&[family, prefix, 0, 0, 254, 241, scope, what, onlink, 0, 0, 0])
}

#[test]
fn routes_when_deleted_then_by_what_tells_them_from_others() {
    let v4 = plain("10.5.2.0/24", Some("10.5.2.0"));
    let gone = || request(25, 0, false, 255, 0, 0).ip(1, ip("10.5.2.0"));
    let by_link = gone().ip(5, ip("10.5.2.0")).u32(4, 6);
    assert_same(&route::delete_message(&v4, Via::Link(6)), &by_link);
    assert_same(&route::delete_message(&v4, Via::Nexthop(77)), &gone().u32(30, 77));
    assert_same(&route::delete_message(&v4, Via::Nowhere), &gone());
    let metric = Route { metric: 5, ..v4 };
    assert_same(&route::delete_message(&metric, Via::Nowhere), &gone().u32(6, 5));
    let v6 = Route {
        metric: 1024,
        ..plain("fd00:2::/64", None)
    };
    let expected = request(25, 0, true, 255, 0, 0)
        .ip(1, ip("fd00:2::"))
        .u32(6, 1024)
        .u32(4, 6);
    assert_same(&route::delete_message(&v6, Via::Link(6)), &expected);
}

#[test]
fn routes_when_made_then_with_scope_type_and_flags_of_what_they_do() {
    let v4 = plain("10.5.2.0/24", Some("10.5.2.0"));
    let add = |scope, what, onlink| request(24, flag::ADD, false, scope, what, onlink).ip(1, ip("10.5.2.0"));
    let by_link = add(0, 1, 4).ip(5, ip("10.5.2.0")).u32(4, 6);
    assert_same(&route::add_message(flag::ADD, &v4, Via::Link(6)), &by_link);
    let by_object = add(0, 1, 0).u32(30, 77);
    assert_same(&route::add_message(flag::ADD, &v4, Via::Nexthop(77)), &by_object);
    assert_same(&route::add_message(flag::ADD, &v4, Via::Nowhere), &add(0, 1, 0));
    let direct = Route {
        gateway: None,
        onlink: false,
        ..v4
    };
    let expected = add(253, 1, 0).u32(4, 6);
    assert_same(&route::add_message(flag::ADD, &direct, Via::Link(6)), &expected);
    let refused = v4.unreachable();
    let expected = request(24, flag::ADD, false, 0, 7, 0).ip(1, ip("10.5.2.0"));
    assert_same(&route::add_message(flag::ADD, &refused, Via::Link(1)), &expected);
    let v6 = Route {
        metric: 1024,
        onlink: false,
        ..plain("fd00:2::/64", None)
    };
    let expected = request(24, flag::ADD, true, 0, 1, 0)
        .ip(1, ip("fd00:2::"))
        .u32(4, 6);
    assert_same(&route::add_message(flag::ADD, &v6, Via::Link(6)), &expected);
    let odd = Route {
        gateway: Some(ip("192.0.2.1")),
        ..v6
    };
    let expected = request(24, flag::ADD, true, 0, 1, 0)
        .ip(1, ip("fd00:2::"))
        .ip(5, ip("192.0.2.1"))
        .u32(4, 6);
    assert_same(&route::add_message(flag::ADD, &odd, Via::Link(6)), &expected);
    let hole = route::blackhole_message(flag::ADD, v4.destination, 0, 241);
    assert_same(&hole, &add(0, 6, 0));
    let hole = route::blackhole_message(flag::ADD, v4.destination, 7, 241);
    assert_same(&hole, &add(0, 6, 0).u32(6, 7));
}

#[test]
fn routes_when_asked_for_then_of_the_main_table_and_one_link_or_to_one_address() {
    let all = |family| {
        Message::new("", 26, 0)
            .raw(&[family, 0, 0, 0, 254, 0, 0, 0, 0, 0, 0, 0])
            .u32(15, 254)
    };
    assert_same(&route::list_message(Family::V4, None), &all(2));
    assert_same(&route::list_message(Family::V6, Some(6)), &all(10).u32(4, 6));
    let to = Message::new("", 26, 0)
        .raw(&[2, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        .ip(1, ip("192.0.2.1"));
    assert_same(&route::lookup_message(ip("192.0.2.1")), &to);
    let to = Message::new("", 26, 0)
        .raw(&[10, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        .ip(1, ip("fd00::1"));
    assert_same(&route::lookup_message(ip("fd00::1")), &to);
}

#[test]
fn pod_address_when_written_then_with_broadcast_where_there_is_one() {
    let add = |address: &str, nodad| pod::add_address_message(5, address.parse().unwrap(), nodad, flag::ADD);
    let head =
        |family, prefix, flags| Message::new("", 20, flag::ADD).raw(&[family, prefix, flags, 0, 5, 0, 0, 0]);
    let expected = head(2, 24, 0)
        .ip(2, ip("10.5.1.2"))
        .ip(1, ip("10.5.1.2"))
        .ip(4, ip("10.5.1.255"));
    assert_same(&add("10.5.1.2/24", false), &expected);
    for prefix in [31, 32] {
        let expected = head(2, prefix, 0).ip(2, ip("10.5.1.2")).ip(1, ip("10.5.1.2"));
        assert_same(&add(&format!("10.5.1.2/{prefix}"), false), &expected);
    }
    let expected = head(2, 30, 0)
        .ip(2, ip("10.5.1.2"))
        .ip(1, ip("10.5.1.2"))
        .ip(4, ip("10.5.1.3"));
    assert_same(&add("10.5.1.2/30", false), &expected);
    let expected = head(10, 64, 2).ip(2, ip("fd00::2")).ip(1, ip("fd00::2"));
    assert_same(&add("fd00::2/64", true), &expected);
}

#[test]
fn pod_route_when_written_then_only_with_what_it_has() {
    let route = PodRoute {
        destination: "10.5.9.7/16".parse().unwrap(),
        gateway: None,
        priority: 0,
        table: None,
        scope: 253,
        mtu: 0,
        advmss: 0,
    };
    let head = |table| {
        Message::new("", 24, flag::CREATE)
            .raw(&[2, 16, 0, 0, table, 3, 253, 1, 0, 0, 0, 0])
            .ip(1, ip("10.5.0.0"))
    };
    assert_same(&pod::add_route_message(5, &route), &head(254).u32(4, 5));
    let full = PodRoute {
        gateway: Some(ip("10.5.1.1")),
        priority: 1,
        table: Some(256),
        mtu: 1400,
        advmss: 1300,
        ..route
    };
    let expected = head(252)
        .ip(5, ip("10.5.1.1"))
        .u32(4, 5)
        .u32(6, 1)
        .u32(15, 256)
        .nest(8, |metrics| metrics.u32(2, 1400).u32(8, 1300));
    assert_same(&pod::add_route_message(5, &full), &expected);
    let table = PodRoute {
        table: Some(255),
        advmss: 1,
        ..route
    };
    let expected = head(255).u32(4, 5).nest(8, |metrics| metrics.u32(8, 1));
    assert_same(&pod::add_route_message(5, &table), &expected);
    let mtu = PodRoute { mtu: 1, ..route };
    let expected = head(254).u32(4, 5).nest(8, |metrics| metrics.u32(2, 1));
    assert_same(&pod::add_route_message(5, &mtu), &expected);
}

#[test]
fn rtnl_when_it_asks_for_what_every_host_has_then_it_is_there_and_nothing_else_is() {
    let mut rtnl = Rtnl::open().unwrap();
    assert_ne!(rtnl.port(), 0);
    let all = rtnl.links().unwrap();
    let lo = rtnl.link_by_name(name("lo")).unwrap().unwrap();
    assert_eq!((lo.name, lo.index, lo.mac), (name("lo"), 1, None));
    assert!(all.iter().any(|link| link.index == 1 && link.name == lo.name));
    assert_eq!(rtnl.link_by_index(1).unwrap().unwrap().name, lo.name);
    assert_eq!(rtnl.link_by_name(name("no-such-link")).unwrap(), None);
    assert_eq!(rtnl.link_by_index(0x7fff_fff0).unwrap(), None);
    let own = rtnl.addresses(1).unwrap();
    assert!(own.iter().all(|address| address.link == 1));
    assert!(
        own.iter()
            .any(|address| address.address == "127.0.0.1/8".parse().unwrap())
    );
    assert_eq!(rtnl.addresses(0x7fff_fff0).unwrap(), []);
    let every = rtnl.all_addresses().unwrap();
    assert!(every.contains(&own[0]));
    let inventory = rtnl.inventory().unwrap();
    assert!(inventory.links.is_sorted_by_key(|link| link.index));
    assert_eq!(inventory.links.len(), all.len());
    assert_eq!(inventory.addresses.len(), every.len());
    for (family, defaults) in [
        (Family::V4, &inventory.default4),
        (Family::V6, &inventory.default6),
    ] {
        let routes = rtnl.routes(family, None).unwrap();
        let is_default =
            |route: &&ObservedRoute| route.destination.prefix_len() == 0 && route.kind == RouteKind::Unicast;
        assert_eq!(defaults.len(), routes.iter().filter(is_default).count());
        assert!(defaults.is_sorted_by_key(|route| route.metric));
        assert!(
            routes
                .iter()
                .all(|route| route.table == 254 && Family::of_net(route.destination) == family)
        );
        assert_eq!(rtnl.routes(family, Some(0x7fff_fff0)).unwrap(), []);
    }
    let reach = rtnl.reach(ip("127.0.0.1")).unwrap().unwrap();
    assert_eq!(reach.link, 1);
    assert_eq!(rtnl.lookup(ip("127.0.0.1")).unwrap().unwrap().link, Some(1));
    assert!(rtnl.neighbours(1).unwrap().iter().all(|n| n.link == 1));
    assert_eq!(rtnl.forwardings(1).unwrap(), []);
    let port = rtnl.port_by_name(name("lo")).unwrap().unwrap();
    assert_eq!((port.link.index, port.promiscuity), (1, 0));
    assert_eq!(rtnl.port_by_name(name("no-such-link")).unwrap(), None);
    let (one, other) = rtnl.port_and_bridge(name("lo"), name("lo")).unwrap();
    assert_eq!((one.link.index, other.link.index), (1, 1));
    assert!(rtnl.port_and_bridge(name("lo"), name("no-such-link")).is_err());
    // Nobody can delete this, whoever they are.
    let error = rtnl.delete_link(0x7fff_fff0).unwrap_err();
    assert_eq!(error.verb, "delete link");
}
