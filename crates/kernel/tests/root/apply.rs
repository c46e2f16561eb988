use fabric::object::{Address, Forwarding, Key, Link, LinkKind, Mac, Neighbour, Object, Op, Route};
use kernel::{ApplyOptions, Kernel, Outcome, Scope};
use serde_json::json;

use crate::rtnl::{ip, tunnel_route, vxlan};
use crate::scratch::{Scratch, interest, link};

pub const PLAIN: ApplyOptions = ApplyOptions {
    nexthop_objects: false,
};
pub const BY_OBJECT: ApplyOptions = ApplyOptions {
    nexthop_objects: true,
};

pub fn device(scratch: &Scratch) -> Kernel {
    let mut kernel = scratch.kernel(
        &["flannel.1", "eth0"],
        &["10.5.0.0/16", "10.64.0.0/10", "fd00:5::/32"],
    );
    kernel.observe(Scope::All).unwrap();
    let ops = [
        Op::Add(Object::Link(Box::new(vxlan("flannel.1", "192.0.2.1")))),
        Op::Add(Object::Address(Address {
            link: link("flannel.1"),
            address: "10.5.1.0/32".parse().unwrap(),
        })),
    ];
    done(&kernel.apply(&ops, PLAIN));
    kernel
}

/// All that a peer's lease means, `second.third` of 10.x.y.0/24.
pub fn peer(second: u8, third: u8) -> Vec<Object> {
    let mac = Mac([0x0a, 0, 0, 0, second, third]);
    let base = format!("10.{second}.{third}.0");
    vec![
        Object::Neighbour(Neighbour {
            link: link("flannel.1"),
            address: ip(&base),
            mac,
        }),
        Object::Forwarding(Forwarding {
            link: link("flannel.1"),
            mac,
            remote: ip(&format!("198.51.{second}.{third}")),
        }),
        Object::Route(tunnel_route(&format!("{base}/24"), &base, "flannel.1")),
    ]
}

pub fn add(objects: &[Object]) -> Vec<Op> {
    let mut ops: Vec<Op> = objects.iter().cloned().map(Op::Add).collect();
    ops.sort_by_key(Op::key);
    ops
}

pub fn remove(objects: &[Object]) -> Vec<Op> {
    let mut ops: Vec<Op> = objects.iter().cloned().map(Op::Remove).collect();
    ops.sort_by_key(|op| std::cmp::Reverse(op.key()));
    ops
}

pub fn done(outcomes: &[Outcome]) {
    let failed: Vec<_> = outcomes
        .iter()
        .filter(|o| !o.is_ok())
        .map(ToString::to_string)
        .collect();
    assert!(
        failed.is_empty(),
        "{} failed, the first: {:?}",
        failed.len(),
        failed.first()
    );
}

/// What a new observer sees is what this mirror shows.
pub fn assert_mirror_true(kernel: &mut Kernel, interest: kernel::Interest) {
    kernel.drain().unwrap();
    let mut fresh = Kernel::open(interest).unwrap();
    fresh.observe(Scope::All).unwrap();
    assert_eq!(kernel.objects(), fresh.objects());
}

pub fn own_interest() -> kernel::Interest {
    interest(
        &["flannel.1", "eth0"],
        &["10.5.0.0/16", "10.64.0.0/10", "fd00:5::/32"],
    )
}

fn route_of(objects: &[Object]) -> Route {
    objects
        .iter()
        .find_map(|o| if let Object::Route(r) = o { Some(*r) } else { None })
        .unwrap()
}

fn change(kernel: &Kernel, to: Object) -> Op {
    Op::Change {
        from: kernel.objects()[&to.key()].clone(),
        to,
    }
}

#[test]
fn peers_when_added_and_removed_then_kernel_and_mirror_agree_and_nothing_is_left() {
    let scratch = Scratch::new();
    let mut kernel = device(&scratch);
    let peers: Vec<Object> = (2..40).flat_map(|third| peer(5, third)).collect();
    let outcomes = kernel.apply(&add(&peers), PLAIN);
    assert!(outcomes.iter().all(|o| *o == Outcome::Done), "{outcomes:?}");
    assert_eq!(
        scratch.ip_json("neigh show dev flannel.1 nud permanent").len(),
        38
    );
    assert_eq!(scratch.bridge_json("fdb show dev flannel.1").len(), 38);
    let routes = scratch.ip_json("-d route show dev flannel.1");
    assert_eq!(routes.iter().filter(|r| r["protocol"] == "241").count(), 38);
    assert_mirror_true(&mut kernel, own_interest());
    for object in &peers {
        assert_eq!(kernel.objects().get(&object.key()), Some(object));
    }
    // The same again: routes are there, neighbours and forwarding entries are written over.
    done(&kernel.apply(&add(&peers), PLAIN));
    let routes_again: Vec<Object> = peers
        .iter()
        .filter(|o| matches!(o, Object::Route(_)))
        .cloned()
        .collect();
    assert!(
        kernel
            .apply(&add(&routes_again), PLAIN)
            .iter()
            .all(|o| *o == Outcome::Already)
    );
    let address =
        Op::Add(kernel.objects()[&Key::Address(link("flannel.1"), "10.5.1.0/32".parse().unwrap())].clone());
    let device = Op::Add(Object::Link(Box::new(vxlan("flannel.1", "192.0.2.1"))));
    assert_eq!(
        kernel.apply(&[device, address], PLAIN),
        [Outcome::Already, Outcome::Already]
    );
    assert!(
        kernel
            .apply(&remove(&peers), PLAIN)
            .iter()
            .all(|o| *o == Outcome::Done)
    );
    let again = kernel.apply(&remove(&peers), PLAIN);
    // Of a forwarding entry that is not there the kernel says so, as of the others.
    assert!(again.iter().all(|o| *o == Outcome::Already), "{again:?}");
    assert!(
        scratch
            .ip_json("neigh show dev flannel.1 nud permanent")
            .is_empty()
    );
    assert!(scratch.bridge_json("fdb show dev flannel.1").is_empty());
    assert_mirror_true(&mut kernel, own_interest());
    assert!(kernel.drain().unwrap().is_empty(), "our own doing is no news");
}

#[test]
fn route_when_its_place_is_taken_by_another_then_fails_alone_and_says_by_what() {
    let scratch = Scratch::new();
    let mut kernel = device(&scratch);
    scratch.ip("route add 10.5.3.0/24 via 192.0.2.77");
    scratch.ip("route add blackhole 10.5.4.0/24");
    let peers: Vec<Object> = (2..6).flat_map(|third| peer(5, third)).collect();
    let ops = add(&peers);
    let outcomes = kernel.apply(&ops, PLAIN);
    for (op, outcome) in ops.iter().zip(&outcomes) {
        let text = op.to_string();
        if text.starts_with("add route 10.5.3.0/24") {
            let error = outcome.error().expect("taken");
            assert!(error.is_exists());
            let wanted = format!(
                "{text}: File exists (os error 17): its place is taken by route 10.5.3.0/24 via 192.0.2.77 dev eth0"
            );
            assert_eq!(error.to_string(), wanted);
        } else if text.starts_with("add route 10.5.4.0/24") {
            assert!(outcome.error().expect("taken").is_exists());
        } else {
            assert_eq!(outcome, &Outcome::Done, "{text}");
        }
    }
    // Seen, so that a diff can put them right in place.
    let wanted: Vec<Object> = [peer(5, 3), peer(5, 4)]
        .concat()
        .into_iter()
        .filter(|o| matches!(o, Object::Route(_)))
        .collect();
    let changes: Vec<Op> = wanted.iter().map(|to| change(&kernel, to.clone())).collect();
    done(&kernel.apply(&changes, PLAIN));
    assert_eq!(scratch.ip_json("route show 10.5.4.0/24").len(), 1);
    assert_eq!(
        scratch.ip_json("route show 10.5.4.0/24")[0]["gateway"],
        "10.5.4.0"
    );
    assert_mirror_true(&mut kernel, own_interest());
}

#[test]
fn objects_when_changed_then_in_place_and_exactly_one_is_left() {
    let scratch = Scratch::new();
    let mut kernel = device(&scratch);
    let v6: Route = tunnel_route("fd00:5:2::/64", "fd00:5:2::", "flannel.1");
    let mut objects = peer(5, 2);
    objects.push(Object::Route(v6));
    done(&kernel.apply(&add(&objects), PLAIN));
    for how in [BY_OBJECT, PLAIN, BY_OBJECT, BY_OBJECT, PLAIN] {
        let round = match kernel.objects()[&Key::Route(v6.destination, v6.metric)] {
            Object::Route(r) if r.gateway == Some(ip("fd00:5:2::8")) => 9,
            _ => 8,
        };
        let mac = objects[0].clone();
        let Object::Neighbour(mut neighbour) = mac else {
            panic!()
        };
        neighbour.mac = Mac([0x0a, 0, 0, 0, 0, round]);
        let Object::Forwarding(mut forwarding) = objects[1].clone() else {
            panic!()
        };
        forwarding.remote = ip(&format!("192.0.2.{round}"));
        let mut route = route_of(&objects);
        route.gateway = Some(ip(&format!("10.5.2.{round}")));
        let mut route6 = v6;
        route6.gateway = Some(ip(&format!("fd00:5:2::{round}")));
        let to = [
            Object::Neighbour(neighbour),
            Object::Forwarding(forwarding),
            Object::Route(route),
            Object::Route(route6),
        ];
        let ops: Vec<Op> = to.into_iter().map(|to| change(&kernel, to)).collect();
        done(&kernel.apply(&ops, how));
        let shown = [
            scratch.ip_json("route show 10.5.2.0/24"),
            scratch.ip_json("-6 route show fd00:5:2::/64"),
        ];
        for (shown, gateway) in shown
            .iter()
            .zip([format!("10.5.2.{round}"), format!("fd00:5:2::{round}")])
        {
            assert_eq!(shown.len(), 1, "{how:?}: {shown:?}");
            assert_eq!(shown[0]["gateway"], gateway, "{how:?}");
            assert_eq!(shown[0].get("nhid").is_some(), how.nexthop_objects, "{shown:?}");
        }
        let fdb = scratch.bridge_json("fdb show dev flannel.1");
        assert_eq!(
            (fdb.len(), &fdb[0]["dst"]),
            (1, &json!(format!("192.0.2.{round}")))
        );
        let neighbours = scratch.ip_json("-4 neigh show dev flannel.1 nud permanent");
        assert_eq!(neighbours[0]["lladdr"], neighbour.mac.to_string());
        let expected = if how.nexthop_objects { 2 } else { 0 };
        assert_eq!(
            scratch.ip_json("nexthop show").len(),
            expected,
            "no object outlives its route"
        );
        assert_mirror_true(&mut kernel, own_interest());
    }
}

#[test]
fn link_when_changed_then_in_place_and_what_went_with_it_is_told() {
    let scratch = Scratch::new();
    let mut kernel = device(&scratch);
    let peers: Vec<Object> = (2..6).flat_map(|third| peer(5, third)).collect();
    done(&kernel.apply(&add(&peers), PLAIN));
    kernel.drain().unwrap();
    let index = kernel.link_index(link("flannel.1")).unwrap();
    let Object::Link(now) = kernel.objects()[&Key::Link(link("flannel.1"))].clone() else {
        panic!()
    };
    let mut wanted: Link = (*now).clone();
    wanted.mtu = 1400;
    wanted.mac = Mac::parse("06:00:00:00:00:77");
    if let LinkKind::Vxlan(vxlan) = &mut wanted.kind {
        vxlan.learning = true;
    }
    done(&kernel.apply(&[change(&kernel, Object::Link(Box::new(wanted.clone())))], PLAIN));
    let shown = &scratch.ip_json("-d link show flannel.1")[0];
    assert_eq!((&shown["ifindex"], &shown["mtu"]), (&json!(index), &json!(1400)));
    assert_eq!(
        (&shown["address"], &shown["linkinfo"]["info_data"]["learning"]),
        (&json!("06:00:00:00:00:77"), &json!(true))
    );
    assert_mirror_true(&mut kernel, own_interest());
    // The kernel flushes neighbours when the address of their link changes.
    let gone = scratch.ip_json("-4 neigh show dev flannel.1 nud permanent").len();
    let known = kernel
        .objects()
        .keys()
        .filter(|k| matches!(k, Key::Neighbour(..)))
        .count();
    assert_eq!(gone, known);
    done(&kernel.apply(&add(&peers), PLAIN));
    wanted.up = false;
    kernel.drain().unwrap();
    done(&kernel.apply(&[change(&kernel, Object::Link(Box::new(wanted.clone())))], PLAIN));
    assert!(kernel.has_news());
    let news = kernel.drain().unwrap();
    assert_eq!(
        news.changed
            .iter()
            .filter(|c| matches!(c.key, Key::Route(..)))
            .count(),
        4,
        "{news:?}"
    );
    assert_mirror_true(&mut kernel, own_interest());
    wanted.up = true;
    done(&kernel.apply(&[change(&kernel, Object::Link(Box::new(wanted.clone())))], PLAIN));
    done(&kernel.apply(&add(&peers), PLAIN));
    // What makes the device cannot be changed.
    if let LinkKind::Vxlan(vxlan) = &mut wanted.kind {
        vxlan.vni = 2;
    }
    let outcomes = kernel.apply(&[change(&kernel, Object::Link(Box::new(wanted.clone())))], PLAIN);
    assert!(
        outcomes[0].error().is_some_and(|e| e.is_unsupported()),
        "{outcomes:?}"
    );
    // Made anew: everything on it goes, in the mirror too.
    let ops = [
        Op::Remove(Object::Link(now)),
        Op::Add(Object::Link(Box::new(wanted))),
    ];
    done(&kernel.apply(&ops, PLAIN));
    assert_ne!(kernel.link_index(link("flannel.1")), Some(index));
    assert_eq!(
        scratch.ip_json("-d link show flannel.1")[0]["linkinfo"]["info_data"]["id"],
        2
    );
    assert_mirror_true(&mut kernel, own_interest());
    assert!(
        !kernel
            .objects()
            .keys()
            .any(|key| matches!(key, Key::Neighbour(..) | Key::Route(..)))
    );
}

#[test]
fn operations_when_the_link_they_need_failed_then_each_reports_and_the_rest_goes_on() {
    let scratch = Scratch::new();
    scratch.ip("route add 10.5.77.0/24 via 192.0.2.9");
    let mut kernel = scratch.kernel(&["flannel.1", "eth0"], &["10.5.0.0/16"]);
    kernel.observe(Scope::All).unwrap();
    let mut bad = vxlan("flannel.1", "192.0.2.1");
    if let LinkKind::Vxlan(vxlan) = &mut bad.kind {
        vxlan.lower = link("eth9");
    }
    let mut ops = vec![Op::Add(Object::Link(Box::new(bad)))];
    ops.extend(add(&peer(5, 2)));
    let mut host_gw = tunnel_route("10.5.8.0/24", "192.0.2.8", "eth0");
    host_gw.onlink = false;
    ops.push(Op::Add(Object::Route(host_gw)));
    let outcomes = kernel.apply(&ops, PLAIN);
    let texts: Vec<String> = outcomes.iter().map(ToString::to_string).collect();
    assert!(
        texts[0].ends_with("No such device (os error 19): there is no link eth9 below it"),
        "{texts:?}"
    );
    assert!(
        texts[1].ends_with("No such device (os error 19): there is no link flannel.1"),
        "{texts:?}"
    );
    assert!(outcomes[1..4].iter().all(|o| !o.is_ok()));
    assert_eq!(outcomes[4], Outcome::Done);
    assert_eq!(scratch.ip_json("route show 10.5.8.0/24")[0]["dev"], "eth0");
    let outcomes = kernel.apply(&remove(&peer(5, 2)), PLAIN);
    assert!(outcomes.iter().all(|o| *o == Outcome::Already), "{outcomes:?}");
    assert_eq!(kernel.objects().len(), scratch_objects(&scratch));
}

/// eth0, its two addresses, and two routes.
fn scratch_objects(scratch: &Scratch) -> usize {
    1 + scratch.ip_json("address show dev eth0")[0]["addr_info"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|a| a["scope"] == "global")
        .count()
        + scratch.ip_json("route show root 10.5.0.0/16").len()
}

#[test]
fn accept_ra_when_vxlan_is_made_then_off() {
    let scratch = Scratch::new();
    let _kernel = device(&scratch);
    let value = crate::scratch::run(
        "ip",
        &[
            "netns",
            "exec",
            scratch.path().file_name().unwrap().to_str().unwrap(),
            "cat",
            "/proc/sys/net/ipv6/conf/flannel.1/accept_ra",
        ],
    );
    assert_eq!(value.trim(), "0");
}

#[test]
fn nexthop_objects_when_used_then_invisible_in_the_mirror_and_removed_with_their_routes() {
    let scratch = Scratch::new();
    let mut kernel = device(&scratch);
    let peers: Vec<Object> = (2..30).flat_map(|third| peer(5, third)).collect();
    done(&kernel.apply(&add(&peers), BY_OBJECT));
    let objects = scratch.ip_json("nexthop show");
    assert_eq!(objects.len(), 28);
    assert!(
        objects
            .iter()
            .all(|o| o["protocol"] == "241" && o["dev"] == "flannel.1"),
        "{objects:?}"
    );
    let routes = scratch.ip_json("-d route show dev flannel.1");
    assert!(
        routes
            .iter()
            .filter(|r| r["protocol"] == "241")
            .all(|r| r.get("nhid").is_some())
    );
    for object in &peers {
        assert_eq!(kernel.objects().get(&object.key()), Some(object));
    }
    assert_mirror_true(&mut kernel, own_interest());
    // Another process finds them as they are, and knows the objects.
    drop(kernel);
    let mut kernel = Kernel::open(own_interest()).unwrap();
    kernel.observe(Scope::All).unwrap();
    let outcomes = kernel.apply(&add(&peers[..3]), BY_OBJECT);
    assert!(outcomes.iter().all(Outcome::is_ok), "{outcomes:?}");
    assert_eq!(scratch.ip_json("nexthop show").len(), 28);
    done(&kernel.apply(&remove(&peers), PLAIN));
    assert!(scratch.ip_json("nexthop show").is_empty());
    assert_eq!(scratch.ip_json("route show proto 241").len(), 0);
}

#[test]
fn nexthop_objects_when_orphaned_or_their_number_is_taken_then_put_right() {
    let scratch = Scratch::new();
    let mut kernel = device(&scratch);
    let peers = peer(5, 2);
    done(&kernel.apply(&add(&peers), BY_OBJECT));
    let number = scratch.ip_json("nexthop show")[0]["id"].as_u64().unwrap();
    done(&kernel.apply(&remove(&peers), BY_OBJECT));
    // A stranger has the number, unknown to the mirror when the batch is planned: the route must not go its way.
    let mut blind = Kernel::open(own_interest()).unwrap();
    blind.observe(Scope::All).unwrap();
    scratch.ip(&format!("nexthop add id {number} via 192.0.2.66 dev eth0"));
    scratch.ip("nexthop add id 5 via 10.5.9.0 dev flannel.1 onlink proto 241");
    scratch.ip("nexthop add id 6 via 10.5.9.9 dev flannel.1 onlink proto 241");
    scratch.ip("nexthop add id 7 via 192.0.2.6 dev eth0 proto 99");
    scratch.ip("route add 203.0.113.0/24 nhid 6");
    done(&blind.apply(&add(&peers), BY_OBJECT));
    assert_eq!(
        scratch.ip_json("route show 10.5.2.0/24")[0]["gateway"],
        "10.5.2.0"
    );
    assert_mirror_true(&mut blind, own_interest());
    // Found by a full observation, removed by the next batch: ours, unused, on a device of ours.
    blind.observe(Scope::All).unwrap();
    done(&blind.apply(&[], BY_OBJECT));
    let left: Vec<u64> = scratch
        .ip_json("nexthop show")
        .iter()
        .filter_map(|n| n["id"].as_u64())
        .filter(|id| *id < 10)
        .collect();
    assert_eq!(left, [6, 7], "a used one and a stranger's stay");
}

#[test]
fn direct_when_asked_of_many_then_names_the_links_without_gateway() {
    let scratch = Scratch::new();
    scratch.ip("route add 198.51.100.0/24 via 192.0.2.254");
    let mut kernel = device(&scratch);
    let peers = [
        ip("192.0.2.2"),
        ip("198.51.100.2"),
        ip("203.0.113.2"),
        ip("2001:db8::2"),
        ip("2001:db8:1::2"),
        ip("127.0.0.1"),
    ];
    let answers = kernel.direct(&peers).unwrap();
    assert_eq!(
        answers[..5],
        [Some(link("eth0")), None, None, Some(link("eth0")), None]
    );
    assert_eq!(answers[5], None, "an address of our own is no peer");
    let many: Vec<_> = (0..3000)
        .map(|i| ip(&format!("192.0.2.{}", 2 + i % 200)))
        .collect();
    let (before, _) = kernel.calls();
    assert!(
        kernel
            .direct(&many)
            .unwrap()
            .iter()
            .all(|l| *l == Some(link("eth0")))
    );
    let (after, _) = kernel.calls();
    assert!(after.sends - before.sends < 30, "{after:?}");
}

#[test]
fn ten_thousand_peers_when_applied_then_system_calls_are_few() {
    let scratch = Scratch::new();
    let mut kernel = device(&scratch);
    let peers: Vec<Object> = (0..10_000u32)
        .flat_map(|i| peer(64 + (i / 256) as u8, (i % 256) as u8))
        .collect();
    let ops = add(&peers);
    let (before, _) = kernel.calls();
    let start = std::time::Instant::now();
    done(&kernel.apply(&ops, BY_OBJECT));
    let took = start.elapsed();
    let (after, _) = kernel.calls();
    let sends = after.sends - before.sends;
    // 40,000 messages: 1,000 a send, and one more where a slice ends.
    assert!(sends <= 80, "{sends}");
    assert!(after.receives - before.receives <= 2 * sends);
    let news = kernel.drain().unwrap();
    assert!(
        news.is_empty(),
        "our own changes are neither news nor an overrun: {:?} {:?}",
        news.resync,
        news.changed.first()
    );
    assert_eq!(scratch.ip_json("route show proto 241").len(), 10_000);
    let start = std::time::Instant::now();
    kernel.observe(Scope::All).unwrap();
    let looked = start.elapsed();
    assert_eq!(
        peers
            .iter()
            .filter(|o| kernel.objects().get(&o.key()) == Some(*o))
            .count(),
        30_000
    );
    let start = std::time::Instant::now();
    done(&kernel.apply(&remove(&peers), PLAIN));
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(
        out,
        "10,000 peers: applied in {took:?}, {sends} sends; observed in {looked:?}; removed in {:?}",
        start.elapsed()
    );
    assert!(scratch.ip_json("nexthop show").is_empty());
}

#[test]
fn device_when_another_has_its_vni_then_the_kernel_says_so_and_it_stays() {
    let scratch = Scratch::new();
    scratch.ip("link add other type vxlan id 1 dev eth0 dstport 8472 local 192.0.2.1");
    let mut kernel = scratch.kernel(&["flannel.1", "eth0"], &["10.5.0.0/16"]);
    kernel.observe(Scope::All).unwrap();
    let add = Op::Add(Object::Link(Box::new(vxlan("flannel.1", "192.0.2.1"))));
    let outcomes = kernel.apply(std::slice::from_ref(&add), PLAIN);
    let text = outcomes[0].to_string();
    assert!(
        text.ends_with("File exists (os error 17): A VXLAN device with the specified VNI already exists"),
        "{text}"
    );
    // One of our name, but another device: not ours to say whether it may go.
    scratch.ip("link del other");
    scratch.ip("link add flannel.1 type vxlan id 9 dev eth0 dstport 8472");
    let outcomes = kernel.apply(&[add], PLAIN);
    assert!(outcomes[0].error().is_some_and(|e| e.is_exists()), "{outcomes:?}");
    assert_eq!(
        scratch.ip_json("-d link show flannel.1")[0]["linkinfo"]["info_data"]["id"],
        9
    );
    assert_mirror_true(&mut kernel, interest(&["flannel.1", "eth0"], &["10.5.0.0/16"]));
}

#[test]
fn routes_when_closed_and_opened_again_then_each_takes_the_others_place_and_a_blackhole_is_something_else() {
    for how in [PLAIN, BY_OBJECT] {
        let scratch = Scratch::new();
        let mut kernel = device(&scratch);
        scratch.ip("address add fd00:5:1::/128 dev flannel.1");
        for (net, gateway) in [("10.5.2.0/24", "10.5.2.0"), ("fd00:5:0:2::/64", "fd00:5:0:2::")] {
            let open = tunnel_route(net, gateway, "flannel.1");
            let closed = open.unreachable();
            let family = if net.contains(':') { "-6" } else { "-4" };
            let shown = |scratch: &Scratch| scratch.ip(&format!("{family} route show {net} proto 241"));
            done(&kernel.apply(&[Op::Add(Object::Route(closed))], how));
            let text = shown(&scratch);
            assert!(
                text.starts_with("unreachable ")
                    || scratch
                        .ip(&format!("{family} route show type unreachable"))
                        .contains(net),
                "{text}"
            );
            assert_mirror_true(&mut kernel, own_interest());
            let step = change(&kernel, Object::Route(open));
            done(&kernel.apply(&[step], how));
            let text = shown(&scratch);
            assert!(text.contains(gateway) && !text.contains("unreachable"), "{text}");
            let step = change(&kernel, Object::Route(closed));
            done(&kernel.apply(&[step], how));
            assert_mirror_true(&mut kernel, own_interest());
            assert_eq!(kernel.objects().get(&closed.key()), Some(&Object::Route(closed)));
            done(&kernel.apply(&[Op::Remove(Object::Route(closed))], how));
            assert_eq!(shown(&scratch).trim(), "");
            scratch.ip(&format!("{family} route add blackhole {net} proto 241"));
            kernel.observe(Scope::All).unwrap();
            let there = kernel.objects().get(&closed.key()).cloned();
            assert!(there.is_some_and(|there| there != Object::Route(closed)));
            scratch.ip(&format!("{family} route del blackhole {net}"));
        }
        assert_mirror_true(&mut kernel, own_interest());
        let left = scratch.ip("nexthop show");
        assert_eq!(left.trim(), "", "no next hop object without a route");
    }
}
