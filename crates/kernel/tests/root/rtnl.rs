use std::net::IpAddr;

use fabric::kind::Vxlan;
use fabric::object::{Family, Link, LinkKind, Mac, Route};
use kernel::kind::ObservedKind;
use kernel::nl::{Fault, Message, Protocol, Socket};
use kernel::rtnl::route::Via;
use kernel::rtnl::{LinkChange, RouteKind, Rtnl, link as link_message, route as route_message};
use serde_json::json;

use crate::scratch::{Scratch, link};

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn vxlan(name: &str, local: &str) -> Link {
    let v6 = local.contains(':');
    Link {
        name: link(name),
        kind: LinkKind::Vxlan(Box::new(Vxlan {
            vni: 1,
            port: Some(8472),
            local: ip(local),
            lower: link("eth0"),
            learning: false,
            gbp: false,
        })),
        mac: Mac::parse(if v6 {
            "06:00:00:00:06:01"
        } else {
            "06:00:00:00:00:01"
        }),
        mtu: if v6 { 1430 } else { 1450 },
        up: true,
    }
}

pub fn add_vxlan(rtnl: &mut Rtnl, link: &Link) -> u32 {
    let lower = link.kind.lower().expect("a vxlan device");
    let lower = rtnl.link_by_name(lower).unwrap().unwrap().index;
    rtnl.add_link(link, lower).unwrap();
    rtnl.link_by_name(link.name).unwrap().unwrap().index
}

pub fn tunnel_route(to: &str, via: &str, dev: &str) -> Route {
    let destination: ipnet::IpNet = to.parse().unwrap();
    Route {
        destination,
        metric: Family::of_net(destination).default_metric(),
        gateway: Some(ip(via)),
        link: link(dev),
        onlink: true,
        protocol: 241,
    }
}

#[test]
fn vxlan_when_added_then_one_message_makes_all_of_it() {
    let scratch = Scratch::new();
    let mut rtnl = Rtnl::open_in(std::os::fd::AsFd::as_fd(&scratch.netns())).unwrap();
    let before = rtnl.socket().calls().sends;
    let mut wanted = vxlan("flannel.1", "192.0.2.1");
    if let LinkKind::Vxlan(vxlan) = &mut wanted.kind {
        (vxlan.gbp, vxlan.learning, vxlan.port) = (true, true, Some(4789));
    }
    add_vxlan(&mut rtnl, &wanted);
    assert_eq!(rtnl.socket().calls().sends - before, 3);
    let shown = &scratch.ip_json("-d link show flannel.1")[0];
    assert_eq!(shown["address"], "06:00:00:00:00:01");
    assert_eq!(shown["mtu"], 1450);
    assert!(
        shown["flags"].as_array().unwrap().contains(&json!("UP")),
        "{shown}"
    );
    assert_eq!(shown.get("txqlen"), None, "queue length 0, as Go flannel's");
    let data = &shown["linkinfo"]["info_data"];
    for (field, value) in [
        ("id", json!(1)),
        ("link", json!("eth0")),
        ("local", json!("192.0.2.1")),
        ("port", json!(4789)),
        ("learning", json!(true)),
        // Printed only where set.
        ("proxy", json!(null)),
        ("rsc", json!(null)),
        ("l2miss", json!(null)),
        ("l3miss", json!(null)),
        ("ageing", json!(300)),
        ("udp_csum", json!(true)),
        ("udp_zero_csum6_tx", json!(false)),
        ("udp_zero_csum6_rx", json!(false)),
    ] {
        assert_eq!(data[field], value, "{field}");
    }
    assert!(data.get("gbp").is_some(), "{data}");
    let seen = rtnl.link_by_name(link("flannel.1")).unwrap().unwrap();
    let Some(ObservedKind::Vxlan(made_of)) = &seen.made_of else {
        panic!("{seen:?}")
    };
    let index_of = |index| (index == made_of.lower).then(|| link("eth0"));
    assert_eq!(seen.to_object(index_of), wanted);
}

#[test]
fn vxlan_when_changed_then_it_stays_the_same_device() {
    let scratch = Scratch::new();
    let mut rtnl = Rtnl::open_in(std::os::fd::AsFd::as_fd(&scratch.netns())).unwrap();
    let index = add_vxlan(&mut rtnl, &vxlan("flannel-v6.1", "2001:db8::1"));
    let mut learning = vxlan("flannel-v6.1", "2001:db8::1").kind;
    if let LinkKind::Vxlan(vxlan) = &mut learning {
        vxlan.learning = true;
    }
    rtnl.set_kind(index, &learning).unwrap();
    rtnl.set_link(
        index,
        LinkChange {
            mtu: Some(1300),
            mac: Mac::parse("0a:00:00:00:00:09"),
            up: None,
        },
    )
    .unwrap();
    let shown = &scratch.ip_json("-d link show flannel-v6.1")[0];
    assert_eq!((&shown["ifindex"], &shown["mtu"]), (&json!(index), &json!(1300)));
    assert_eq!(shown["address"], "0a:00:00:00:00:09");
    assert_eq!(shown["linkinfo"]["info_data"]["learning"], true);
    assert_eq!(shown["linkinfo"]["info_data"]["local6"], "2001:db8::1");
    rtnl.set_link(
        index,
        LinkChange {
            up: Some(false),
            ..LinkChange::default()
        },
    )
    .unwrap();
    assert!(!rtnl.link_by_index(index).unwrap().unwrap().is_up());
    rtnl.delete_link(index).unwrap();
    assert!(rtnl.delete_link(index).unwrap_err().is_absent());
    assert_eq!(rtnl.link_by_name(link("flannel-v6.1")).unwrap(), None);
    assert_eq!(rtnl.link_by_index(index).unwrap(), None);
}

#[test]
fn refusal_when_the_kernel_explains_it_then_its_words_and_offset_are_kept() {
    let scratch = Scratch::new();
    let mut rtnl = Rtnl::open_in(std::os::fd::AsFd::as_fd(&scratch.netns())).unwrap();
    let mut wanted = vxlan("flannel.1", "192.0.2.1");
    if let LinkKind::Vxlan(vxlan) = &mut wanted.kind {
        vxlan.vni = 1 << 24;
    }
    let lower = rtnl.link_by_name(link("eth0")).unwrap().unwrap().index;
    let error = rtnl.add_link(&wanted, lower).unwrap_err();
    assert_eq!(error.fault, Fault::Refused);
    assert_eq!(
        error.to_string(),
        "add link flannel.1: Numerical result out of range (os error 34): VXLAN ID must be lower than 16777216"
    );
    assert!(error.offset.is_some_and(|offset| offset > 16), "{error:#?}");
    add_vxlan(&mut rtnl, &vxlan("flannel.1", "192.0.2.1"));
    let good = vxlan("flannel.1", "192.0.2.1");
    let again = rtnl.add_link(&good, lower).unwrap_err();
    assert!(again.is_exists(), "{again}");
}

#[test]
fn address_neighbour_fdb_when_added_then_iproute2_sees_them_and_deletion_takes_exactly_them() {
    let scratch = Scratch::new();
    let mut rtnl = Rtnl::open_in(std::os::fd::AsFd::as_fd(&scratch.netns())).unwrap();
    let index = add_vxlan(&mut rtnl, &vxlan("flannel.1", "192.0.2.1"));
    let mac = Mac::parse("0a:00:00:00:00:02").unwrap();
    for address in ["10.5.1.0/32", "fd00:5:1::/128"] {
        rtnl.add_address(index, address.parse().unwrap()).unwrap();
        assert!(
            rtnl.add_address(index, address.parse().unwrap())
                .unwrap_err()
                .is_exists()
        );
    }
    for peer in ["10.5.2.0", "fd00:5:2::"] {
        rtnl.add_neighbour(index, ip(peer), mac).unwrap();
        assert!(rtnl.add_neighbour(index, ip(peer), mac).unwrap_err().is_exists());
        rtnl.replace_neighbour(index, ip(peer), Mac::parse("0a:00:00:00:00:03").unwrap())
            .unwrap();
    }
    rtnl.add_forwarding(index, mac, ip("192.0.2.2")).unwrap();
    assert!(
        rtnl.add_forwarding(index, mac, ip("192.0.2.2"))
            .unwrap_err()
            .is_exists()
    );
    rtnl.replace_forwarding(index, mac, ip("192.0.2.3")).unwrap();

    let shown = scratch.ip_json("address show dev flannel.1 scope global");
    let held: Vec<_> = shown[0]["addr_info"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|a| a.get("local").cloned())
        .collect();
    assert_eq!(held, [json!("10.5.1.0"), json!("fd00:5:1::")]);
    assert_eq!(shown[0]["addr_info"][1]["nodad"], true, "{shown:?}");
    assert_eq!(shown[0]["addr_info"][1].get("tentative"), None);
    let mut neighbours = scratch.ip_json("neigh show dev flannel.1 nud permanent");
    neighbours.extend(scratch.ip_json("-6 neigh show dev flannel.1 nud permanent"));
    neighbours.dedup();
    assert_eq!(neighbours.len(), 2, "{neighbours:?}");
    assert!(
        neighbours.iter().all(|n| n["lladdr"] == "0a:00:00:00:00:03"),
        "{neighbours:?}"
    );
    let fdb = scratch.bridge_json("fdb show dev flannel.1");
    assert_eq!(fdb.len(), 1, "one destination for a MAC: {fdb:?}");
    assert_eq!(
        (&fdb[0]["dst"], &fdb[0]["state"]),
        (&json!("192.0.2.3"), &json!("permanent"))
    );
    assert_eq!(fdb[0]["flags"], json!(["self"]));

    let seen = rtnl.neighbours(index).unwrap();
    assert_eq!(seen.iter().filter(|n| n.is_permanent()).count(), 2);
    assert!(rtnl.forwardings(index).unwrap()[0].is_permanent());
    assert_eq!(
        rtnl.addresses(index)
            .unwrap()
            .iter()
            .filter(|a| a.scope == 0)
            .count(),
        2
    );
    // The kernel calls it success, but leaves an entry with another destination alone.
    rtnl.delete_forwarding(index, mac, ip("192.0.2.2")).unwrap();
    assert_eq!(scratch.bridge_json("fdb show dev flannel.1").len(), 1);
    rtnl.delete_forwarding(index, mac, ip("192.0.2.3")).unwrap();
    rtnl.delete_neighbour(index, ip("10.5.2.0")).unwrap();
    assert!(
        rtnl.delete_neighbour(index, ip("10.5.2.0"))
            .unwrap_err()
            .is_absent()
    );
    rtnl.delete_address(index, "10.5.1.0/32".parse().unwrap())
        .unwrap();
    assert!(
        rtnl.delete_address(index, "10.5.1.0/32".parse().unwrap())
            .unwrap_err()
            .is_absent()
    );
    assert!(scratch.bridge_json("fdb show dev flannel.1").is_empty());
    assert_eq!(scratch.ip_json("-4 neigh show dev flannel.1").len(), 0);
    assert_eq!(
        scratch.ip_json("-6 neigh show dev flannel.1 nud permanent").len(),
        1
    );
}

#[test]
fn route_when_replaced_then_exactly_one_is_left_in_both_families_plain_and_by_nexthop() {
    let scratch = Scratch::new();
    let mut rtnl = Rtnl::open_in(std::os::fd::AsFd::as_fd(&scratch.netns())).unwrap();
    let index = add_vxlan(&mut rtnl, &vxlan("flannel.1", "192.0.2.1"));
    for (to, one, other) in [
        ("10.5.2.0/24", "10.5.2.0", "10.5.9.9"),
        ("fd00:5:2::/64", "fd00:5:2::", "fd00:5:9::9"),
    ] {
        let family = if to.contains(':') { "-6" } else { "-4" };
        let shown = || scratch.ip_json(&format!("{family} -d route show {to}"));
        let first = tunnel_route(to, one, "flannel.1");
        let second = tunnel_route(to, other, "flannel.1");
        rtnl.add_route(&first, index).unwrap();
        assert!(rtnl.add_route(&second, index).unwrap_err().is_exists());
        let route = &shown()[0];
        assert_eq!(
            (&route["gateway"], &route["dev"]),
            (&json!(one), &json!("flannel.1"))
        );
        assert_eq!(
            (&route["protocol"], &route["type"]),
            (&json!("241"), &json!("unicast"))
        );
        assert!(
            route["flags"].as_array().unwrap().contains(&json!("onlink")),
            "{route}"
        );
        rtnl.replace_route(&second, index).unwrap();
        assert_eq!(shown().len(), 1, "{:?}", shown());
        assert_eq!(shown()[0]["gateway"], other);
        rtnl.add_nexthop(77, index, ip(one), true, 241).unwrap();
        rtnl.socket()
            .request(&route_message::add_message(
                kernel::nl::flag::PUT,
                &first,
                Via::Nexthop(77),
            ))
            .unwrap();
        assert_eq!((shown().len(), &shown()[0]["nhid"]), (1, &json!(77)));
        let seen: Vec<_> = rtnl
            .routes(Family::of_net(first.destination), Some(index))
            .unwrap();
        let seen = seen.iter().find(|r| r.destination == first.destination).unwrap();
        assert_eq!(
            (seen.nexthop, seen.gateway, seen.onlink),
            (Some(77), first.gateway, true)
        );
        let strange = rtnl.delete_route(&first, Via::Nexthop(78)).unwrap_err();
        assert_eq!(strange.errno, 22, "{strange}");
        rtnl.replace_route(&second, index).unwrap();
        assert_eq!((shown().len(), shown()[0].get("nhid")), (1, None));
        assert!(
            rtnl.delete_route(&first, Via::Link(index))
                .unwrap_err()
                .is_absent(),
            "another gateway"
        );
        rtnl.delete_route(&second, Via::Link(index)).unwrap();
        assert!(shown().is_empty());
        rtnl.delete_nexthop(77).unwrap();
        assert!(rtnl.delete_nexthop(77).unwrap_err().is_absent());
    }
    rtnl.add_blackhole("10.5.0.0/16".parse().unwrap(), 241).unwrap();
    assert_eq!(
        scratch.ip_json("-d route show 10.5.0.0/16")[0]["type"],
        "blackhole"
    );
    let seen = rtnl.routes(Family::V4, None).unwrap();
    assert!(seen.iter().any(|r| r.kind == RouteKind::Other(6)));
}

#[test]
fn lookup_when_asked_then_tells_gateways_from_direct() {
    let scratch = Scratch::new();
    scratch.ip("route add 198.51.100.0/24 via 192.0.2.254");
    let mut rtnl = Rtnl::open_in(std::os::fd::AsFd::as_fd(&scratch.netns())).unwrap();
    assert_eq!(rtnl.lookup(ip("192.0.2.7")).unwrap().unwrap().gateway, None);
    assert_eq!(
        rtnl.lookup(ip("198.51.100.7")).unwrap().unwrap().gateway,
        Some(ip("192.0.2.254"))
    );
    assert_eq!(rtnl.lookup(ip("203.0.113.7")).unwrap(), None);
    assert_eq!(rtnl.lookup(ip("2001:db8::7")).unwrap().unwrap().gateway, None);
}

#[test]
fn pipeline_when_some_members_are_refused_then_each_failure_is_its_own() {
    let scratch = Scratch::new();
    let mut rtnl = Rtnl::open_in(std::os::fd::AsFd::as_fd(&scratch.netns())).unwrap();
    let index = add_vxlan(&mut rtnl, &vxlan("flannel.1", "192.0.2.1"));
    let bad = |i: usize| i.is_multiple_of(7);
    let message = |i: usize| {
        let to = format!("10.{}.{}.0/24", 64 + i / 256, i % 256);
        let via = format!("10.{}.{}.0", 64 + i / 256, i % 256);
        let mut route = tunnel_route(&to, &via, "flannel.1");
        if bad(i) {
            // A gateway without a link to it.
            route.onlink = false;
        }
        route_message::add_message(kernel::nl::flag::ADD, &route, Via::Link(index))
    };
    let before = rtnl.socket().calls();
    let outcomes = rtnl.socket().pipeline((0..3000).map(message));
    let calls = rtnl.socket().calls();
    assert_eq!(outcomes.len(), 3000);
    for (i, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Ok(()) => assert!(!bad(i), "{i}"),
            Err(error) => {
                assert!(bad(i), "{i}: {error}");
                assert_eq!(
                    (error.fault, &*error.text),
                    (Fault::Refused, "Nexthop has invalid gateway")
                );
            }
        }
    }
    assert_eq!(
        scratch.ip_json("route show dev flannel.1").len(),
        (0..3000).filter(|i| !bad(*i)).count()
    );
    assert!(calls.sends - before.sends <= 4, "{calls:?}");
    // All refused: 1,000 refusals for each send, none lost.
    let outcomes = rtnl.socket().pipeline((0..3000).map(message));
    assert!(
        outcomes
            .iter()
            .all(|o| o.as_ref().is_err_and(|e| e.fault == Fault::Refused))
    );
}

#[test]
fn replies_when_the_receive_buffer_is_tiny_then_nothing_is_lost_or_it_is_said() {
    let scratch = Scratch::new();
    let mut rtnl = Rtnl::open_in(std::os::fd::AsFd::as_fd(&scratch.netns())).unwrap();
    let index = add_vxlan(&mut rtnl, &vxlan("flannel.1", "192.0.2.1"));
    rtnl.socket().set_receive_buffer(4 << 10).unwrap();
    let bad = |i: usize| {
        let mut route = tunnel_route(&format!("10.64.{i}.0/24"), &format!("10.64.{i}.0"), "flannel.1");
        route.onlink = false;
        route_message::add_message(kernel::nl::flag::ADD, &route, Via::Link(index))
    };
    let outcomes = rtnl.socket().pipeline((0..200).map(bad));
    assert!(
        outcomes
            .iter()
            .all(|o| o.as_ref().is_err_and(|e| e.fault == Fault::Refused)),
        "{outcomes:?}"
    );
    let outcomes = rtnl.socket().pipeline_get(
        (1..200).map(|i| {
            let mut header = [0; 12];
            (header[0], header[1]) = (2, 32);
            Message::new("look up route", 26, 0)
                .raw(&header)
                .attribute(1, &[192, 0, 2, i])
        }),
        |_, _| {},
    );
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
}

#[test]
fn dump_when_a_message_is_longer_than_the_buffer_then_it_is_read_with_a_longer_one() {
    let scratch = Scratch::empty();
    // Besides lo, where the kernel has tunnels: one of each.
    let before = scratch.ip_json("link show").len();
    let lines: String = (0..40).map(|i| format!("link add d{i} type bridge\n")).collect();
    scratch.batch("ip", &lines);
    let mut rtnl = Rtnl::open_in(std::os::fd::AsFd::as_fd(&scratch.netns())).unwrap();
    // Alternative names are part of a link's message: 600 of 120 bytes are more than 64 KiB.
    let name = "x".repeat(110);
    let names: String = (0..300)
        .map(|i| format!("link property add dev d7 altname {name}{i}\n"))
        .collect();
    scratch.batch("ip", &names);
    let links = rtnl.links().unwrap();
    assert_eq!(links.len(), before + 40, "the long one among them");
    assert_eq!(rtnl.links().unwrap().len(), before + 40);
}

#[test]
fn notifications_when_more_than_the_buffer_holds_then_overrun_is_typed_and_the_rest_is_read() {
    let scratch = Scratch::empty();
    let netns = scratch.netns();
    let mut monitor = Socket::open_in(Protocol::Route, std::os::fd::AsFd::as_fd(&netns)).unwrap();
    monitor.set_receive_buffer(8 << 10).unwrap();
    monitor.subscribe(kernel::rtnl::group::LINK).unwrap();
    let lines: String = (0..50).map(|i| format!("link add d{i} type bridge\n")).collect();
    scratch.batch("ip", &lines);
    let error = monitor.notifications(|_| {}).unwrap_err();
    assert_eq!(error.fault, Fault::Overrun);
    let mut seen = 0;
    monitor.notifications(|_| seen += 1).unwrap();
    assert!(seen > 0, "what was queued before the loss is still there");
    assert_eq!(monitor.notifications(|_| {}).unwrap(), 0);
    scratch.ip("link add after type bridge");
    let mut names = Vec::new();
    monitor
        .notifications(|reply| names.extend(link_message::read(reply).map(|l| l.name.to_string())))
        .unwrap();
    assert!(names.contains(&"after".to_owned()), "{names:?}");
}

#[test]
fn notifications_when_caused_by_an_ignored_port_then_they_are_not_delivered() {
    let scratch = Scratch::new();
    let netns = scratch.netns();
    let mut rtnl = Rtnl::open_in(std::os::fd::AsFd::as_fd(&netns)).unwrap();
    let mut monitor = Socket::open_in(Protocol::Route, std::os::fd::AsFd::as_fd(&netns)).unwrap();
    monitor.ignore_port(rtnl.port()).unwrap();
    monitor.subscribe(kernel::rtnl::group::IPV4_ROUTE).unwrap();
    let index = rtnl.link_by_name(link("eth0")).unwrap().unwrap().index;
    let mut own = tunnel_route("10.5.2.0/24", "192.0.2.2", "eth0");
    own.onlink = false;
    rtnl.add_route(&own, index).unwrap();
    scratch.ip("route add 10.5.3.0/24 via 192.0.2.3");
    let mut seen = Vec::new();
    monitor
        .notifications(|reply| {
            seen.extend(route_message::read(reply).map(|r| (r.destination.to_string(), reply.port)))
        })
        .unwrap();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0].0, "10.5.3.0/24");
    assert_ne!(seen[0].1, rtnl.port());
    assert_ne!(seen[0].1, 0, "who did it is known");
}

#[test]
fn dump_when_links_come_and_go_meanwhile_then_whole_or_an_error() {
    let scratch = Scratch::new();
    let mut rtnl = Rtnl::open_in(std::os::fd::AsFd::as_fd(&scratch.netns())).unwrap();
    let lines: String = (0..60)
        .map(|i| format!("link add stay{i} type bridge\n"))
        .collect();
    scratch.batch("ip", &lines);
    let churn: String = (0..300)
        .map(|i| format!("link add go{i} type bridge\nlink del go{i}\n"))
        .collect();
    std::thread::scope(|scope| {
        let churning = scope.spawn(|| scratch.batch("ip", &churn));
        let mut dumps = 0;
        while !churning.is_finished() || dumps == 0 {
            match rtnl.links() {
                Ok(links) => {
                    let mut names: Vec<_> = links.iter().map(|l| l.name.to_string()).collect();
                    names.retain(|name| name.starts_with("stay"));
                    let count = names.len();
                    names.sort();
                    names.dedup();
                    assert_eq!((names.len(), count), (60, 60), "each once");
                    dumps += 1;
                }
                Err(error) => assert_eq!(error.fault, Fault::Interrupted, "{error}"),
            }
        }
    });
}

#[test]
fn message_when_from_another_process_then_not_taken_for_the_kernels() {
    let scratch = Scratch::empty();
    let netns = scratch.netns();
    let links = scratch.ip_json("link show").len();
    let mut monitor = Socket::open_in(Protocol::Route, std::os::fd::AsFd::as_fd(&netns)).unwrap();
    let forger = Socket::open_in(Protocol::Route, std::os::fd::AsFd::as_fd(&netns)).unwrap();
    let mut bytes = Vec::new();
    Message::new("forge", link_message::DEL, 0)
        .raw(&link_message::header(1, 0, 0))
        .write(1, &mut bytes);
    let to = rustix::net::netlink::SocketAddrNetlink::new(monitor.port(), 0);
    let sent = rustix::net::sendto(&forger, &bytes, rustix::net::SendFlags::empty(), &to).unwrap();
    assert_eq!(sent, bytes.len(), "root may do so");
    assert_eq!(monitor.notifications(|reply| panic!("{reply:?}")).unwrap(), 0);
    assert_eq!(rtnl_lists(&mut monitor), links, "and is not confused by it");
}

fn rtnl_lists(socket: &mut Socket) -> usize {
    let message = Message::new("list links", link_message::GET, 0).raw(&link_message::header(0, 0, 0));
    socket.dump(&message, || 0, |count, _| *count += 1).unwrap()
}
