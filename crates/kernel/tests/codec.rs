//! Our bytes as a codec of others reads them, and as it writes them again.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use fabric::kind::{Ipip, Vxlan};
use fabric::object::{Link, LinkName, Mac, Route};
use kernel::nl::{Message, Reply, flag};
use kernel::rtnl::route::Via;
use kernel::rtnl::{address, forwarding, link, neighbour, nexthop, route};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;

const SEQUENCE: u32 = 0x0102_0304;

/// What the other codec reads, as its debug text, and the message's flags.
fn read(message: &Message) -> (String, u16) {
    let mut bytes = Vec::new();
    message.write(SEQUENCE, &mut bytes);
    assert_eq!(bytes.len(), message.len());
    let decoded = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).unwrap();
    assert_eq!(decoded.header.sequence_number, SEQUENCE);
    let mut again = vec![0; decoded.buffer_len()];
    decoded.serialize(&mut again);
    // It ends the kind with a NUL, Go flannel and we do not; the kernel takes both.
    if let Some(kind) = again.windows(9).position(|w| w == b"\x0a\0\x01\0vxlan") {
        again[kind] = 9;
    }
    assert_eq!(again, bytes, "written again by the other codec");
    let flags = decoded.header.flags;
    match decoded.payload {
        NetlinkPayload::InnerMessage(inner) => (format!("{inner:?}"), flags),
        other => panic!("{other:?}"),
    }
}

fn name(name: &str) -> LinkName {
    LinkName::new(name).unwrap()
}

fn assert_in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let at = rest
            .find(part)
            .unwrap_or_else(|| panic!("{part} not, or not there, in {text}"));
        rest = &rest[at + part.len()..];
    }
}

#[test]
fn vxlan_when_written_then_has_what_go_flannel_sends_in_its_order() {
    let vxlan = Vxlan {
        vni: 7,
        port: Some(4789),
        local: "192.0.2.1".parse().unwrap(),
        lower: name("eth0"),
        learning: false,
        gbp: true,
    };
    let device = Link {
        name: name("flannel.7"),
        kind: vxlan.clone().into(),
        mac: Mac::parse("06:00:00:00:00:07"),
        mtu: 1450,
        up: true,
    };
    let (text, flags) = read(&link::add_message(&device, 3).unwrap());
    assert_eq!(
        flags, 0x601,
        "request, create, exclusive; the acknowledgement is asked for by who sends"
    );
    assert!(text.starts_with("NewLink"), "{text}");
    let expected = [
        "flags: LinkFlags(Up)",
        "change_mask: LinkFlags(Up)",
        r#"IfName("flannel.7")"#,
        "Mtu(1450)",
        "TxQueueLen(0)",
        "Address([6, 0, 0, 0, 0, 7])",
        "Kind(Vxlan)",
        "Id(7)",
        "Link(3)",
        "Local(192.0.2.1)",
        "Ttl(0)",
        "Tos(0)",
        "Learning(false)",
        "Proxy(false)",
        "Rsc(false)",
        "L2Miss(false)",
        "L3Miss(false)",
        "UDPZeroCsumTX(false)",
        "UDPZeroCsumRX(false)",
        "Gbp",
        "Port(4789)",
    ];
    assert_in_order(&text, &expected);
    // What Go flannel leaves to the kernel, we do too.
    let plain = Vxlan {
        port: None,
        gbp: false,
        local: "2001:db8::1".parse().unwrap(),
        ..vxlan
    };
    let plain = Link {
        kind: plain.into(),
        mac: None,
        mtu: 0,
        up: false,
        ..device
    };
    let (text, _) = read(&link::add_message(&plain, 3).unwrap());
    for absent in [
        "Port(", "Gbp", "Mtu(", "Address(", "Ageing", "UDPCsum", "Df", "Up",
    ] {
        assert!(!text.contains(absent), "{absent} in {text}");
    }
    assert_in_order(&text, &["Link(3)", "Local6(2001:db8::1)", "Learning(false)"]);
}

#[test]
fn entries_when_written_then_permanent_and_of_the_right_family() {
    let mac = Mac::parse("0a:00:00:00:00:02").unwrap();
    let (text, flags) = read(&neighbour::add_message(
        flag::PUT,
        5,
        "10.5.2.0".parse().unwrap(),
        mac,
    ));
    assert_eq!(flags, 0x501);
    assert_in_order(
        &text,
        &[
            "NewNeighbour",
            "family: Inet,",
            "ifindex: 5",
            "state: Permanent",
            "kind: Unicast",
            "Destination(Inet(10.5.2.0))",
            "LinkLayerAddress([10, 0, 0, 0, 0, 2])",
        ],
    );
    let (text, _) = read(&neighbour::delete_message(5, "fd00::1".parse().unwrap()));
    assert_in_order(
        &text,
        &[
            "DelNeighbour",
            "family: Inet6",
            "ifindex: 5",
            "Destination(Inet6(fd00::1))",
        ],
    );
    let (text, flags) = read(&forwarding::add_message(
        flag::PUT,
        5,
        mac,
        "2001:db8::2".parse().unwrap(),
    ));
    assert_eq!(flags, 0x501);
    assert_in_order(
        &text,
        &[
            "NewNeighbour",
            "family: Bridge",
            "ifindex: 5",
            "state: Permanent",
            "NeighbourFlags(Own)",
            "Destination(Other([32, 1, 13, 184, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]))",
            "LinkLayerAddress([10, 0, 0, 0, 0, 2])",
        ],
    );
    let (text, flags) = read(&forwarding::delete_message(5, mac, "192.0.2.2".parse().unwrap()));
    assert_eq!(flags, 1);
    assert_in_order(
        &text,
        &[
            "DelNeighbour",
            "family: Bridge",
            "Destination(Other([192, 0, 2, 2]))",
        ],
    );
}

#[test]
fn addresses_when_written_then_global_and_ipv6_without_detection() {
    let (text, flags) = read(&address::add_message(5, "10.5.1.0/32".parse().unwrap()));
    assert_eq!(flags, 0x601);
    assert_in_order(
        &text,
        &[
            "NewAddress",
            "family: Inet,",
            "prefix_len: 32",
            "AddressHeaderFlags(0x0)",
            "Universe",
            "index: 5",
            "Local(10.5.1.0)",
            "Address(10.5.1.0)",
        ],
    );
    assert!(!text.contains("Broadcast"));
    let (text, _) = read(&address::add_message(5, "fd00::/128".parse().unwrap()));
    assert_in_order(
        &text,
        &["family: Inet6", "prefix_len: 128", "Nodad", "Local(fd00::)"],
    );
    let (text, _) = read(&address::delete_message(5, "fd00::/128".parse().unwrap()));
    assert_in_order(&text, &["DelAddress", "prefix_len: 128", "Local(fd00::)"]);
}

#[test]
fn routes_when_written_then_main_table_own_protocol_and_metric_only_where_it_is_not_the_default() {
    let v4 = Route {
        destination: "10.5.2.0/24".parse().unwrap(),
        metric: 0,
        gateway: Some("10.5.2.0".parse().unwrap()),
        link: name("flannel.1"),
        onlink: true,
        protocol: 241,
    };
    let (text, flags) = read(&route::add_message(flag::ADD, &v4, Via::Link(5)));
    assert_eq!(flags, 0x601);
    let expected = [
        "NewRoute",
        "address_family: Inet,",
        "destination_prefix_length: 24",
        "table: 254",
        "protocol: Other(241)",
        "scope: Universe",
        "kind: Unicast",
        "Onlink",
        "Destination(Inet(10.5.2.0))",
        "Gateway(Inet(10.5.2.0))",
        "Oif(5)",
    ];
    assert_in_order(&text, &expected);
    assert!(!text.contains("Priority"));
    let v6 = Route {
        destination: "fd00:2::/64".parse().unwrap(),
        metric: 1024,
        gateway: Some("fd00:2::".parse().unwrap()),
        ..v4
    };
    let (text, flags) = read(&route::add_message(flag::PUT, &v6, Via::Nexthop(77)));
    assert_eq!(flags, 0x501);
    assert_in_order(
        &text,
        &[
            "address_family: Inet6",
            "Destination(Inet6(fd00:2::))",
            "NhId(77)",
        ],
    );
    for absent in ["Priority", "Gateway", "Oif", "Onlink"] {
        assert!(!text.contains(absent), "{absent} in {text}");
    }
    let (text, _) = read(&route::add_message(
        flag::PUT,
        &Route { metric: 9, ..v6 },
        Via::Link(5),
    ));
    assert_in_order(&text, &["Priority(9)"]);
    // Without one, an IPv6 deletion would take any metric.
    let (text, flags) = read(&route::delete_message(&v6, Via::Link(5)));
    assert_eq!(flags, 1);
    assert_in_order(
        &text,
        &[
            "DelRoute",
            "protocol: Other(241)",
            "scope: NoWhere",
            "Destination(Inet6(fd00:2::))",
            "Priority(1024)",
            "Gateway(Inet6(fd00:2::))",
            "Oif(5)",
        ],
    );
    // Directly on a link; over the other family.
    let (text, _) = read(&route::add_message(
        flag::ADD,
        &Route {
            gateway: None,
            onlink: false,
            ..v4
        },
        Via::Link(5),
    ));
    assert_in_order(&text, &["scope: Link", "Oif(5)"]);
    let (text, _) = read(&route::add_message(
        flag::ADD,
        &Route {
            gateway: v6.gateway,
            ..v4
        },
        Via::Link(5),
    ));
    assert_in_order(&text, &["Via(Inet6(fd00:2::))", "Oif(5)"]);
    let (text, _) = read(&route::blackhole_message(flag::ADD, v4.destination, 0, 241));
    assert_in_order(
        &text,
        &[
            "protocol: Other(241)",
            "kind: BlackHole",
            "Destination(Inet(10.5.2.0))",
        ],
    );
}

/// Whatever bytes come, reading them ends and panics nowhere.
#[test]
fn messages_when_damaged_then_read_as_something_or_nothing() {
    let vxlan = Vxlan {
        vni: 7,
        port: Some(4789),
        local: "192.0.2.1".parse().unwrap(),
        lower: name("eth0"),
        learning: true,
        gbp: true,
    };
    let device = Link {
        name: name("flannel.7"),
        kind: vxlan.clone().into(),
        mac: Mac::parse("06:00:00:00:00:07"),
        mtu: 1450,
        up: true,
    };
    let tunnel = Link {
        kind: Ipip {
            local: "192.0.2.1".parse().unwrap(),
            remote: None,
            plain: true,
        }
        .into(),
        ..device.clone()
    };
    let v6 = Route {
        destination: "fd00:2::/64".parse().unwrap(),
        metric: 9,
        gateway: Some("fd00:2::".parse().unwrap()),
        link: name("flannel.1"),
        onlink: true,
        protocol: 241,
    };
    let mac = Mac([2; 6]);
    let messages = [
        link::add_message(&device, 3).unwrap(),
        link::add_message(&tunnel, 0).unwrap(),
        address::add_message(5, "fd00::/128".parse().unwrap()),
        neighbour::add_message(flag::PUT, 5, "10.5.2.0".parse().unwrap(), mac),
        forwarding::add_message(flag::PUT, 5, mac, "192.0.2.2".parse().unwrap()),
        route::add_message(flag::ADD, &v6, Via::Link(5)),
        route::add_message(
            flag::ADD,
            &Route {
                destination: "10.5.2.0/24".parse().unwrap(),
                ..v6
            },
            Via::Link(5),
        ),
        nexthop::add_message(7, 5, "10.5.2.0".parse().unwrap(), true, 241),
    ];
    let mut state = 1u64;
    let mut random = move |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    let mut understood = 0;
    for round in 0..200_000 {
        let mut bytes = Vec::new();
        messages[round % messages.len()].write(1, &mut bytes);
        let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
        let mut body = bytes.split_off(16);
        for _ in 0..random(4) {
            let at = random(body.len());
            body[at] = random(256) as u8;
        }
        if random(4) == 0 {
            body.truncate(random(body.len() + 1));
        }
        let reply = Reply {
            kind,
            flags: 0,
            sequence: 1,
            port: 0,
            body: &body,
        };
        understood += usize::from(link::read(&reply).is_some())
            + usize::from(address::read(&reply).is_some())
            + usize::from(neighbour::read(&reply).is_some())
            + usize::from(forwarding::read(&reply).is_some())
            + usize::from(route::read(&reply).is_some())
            + usize::from(nexthop::read(&reply).is_some());
    }
    assert!(understood > 50_000, "most damage is small: {understood}");
}
