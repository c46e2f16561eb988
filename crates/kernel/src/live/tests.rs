//! What operations become and how refusals are judged, on a kernel that nothing is sent to: its mirror is what the test says.

use std::net::IpAddr;

use fabric::kind::{Ipip, Vxlan};
use fabric::object::{Address, Forwarding, Key, Link, LinkKind, Mac, Neighbour, Op, Route};

use crate::host::{ApplyOptions, Outcome};
use crate::nl::message::Replies;
use crate::nl::{Message, flag};
use crate::rtnl::route::Via;
use crate::rtnl::{ObservedNexthop, address, link, nexthop};

use super::apply::{Verdict, needs_remaking};
use super::steps::{Planner, Step, What, message};
use super::*;

const VTEP: u32 = 0x7fff_0005;
const OTHER: u32 = 0x7fff_0006;
/// FNV-1a of `flannel.1` and 10.5.2.0, and of it and fd00::1, reckoned by another program.
const NUMBER: u32 = 0x6457e6b9;
const NUMBER_V6: u32 = 0x74ba0188;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name(text: &str) -> LinkName {
    LinkName::new(text).unwrap()
}

fn vtep() -> LinkName {
    name("flannel.1")
}

/// Knows two links that no host has, and has looked at nothing.
fn kernel() -> Kernel {
    let mut kernel = Kernel::open(Interest {
        links: vec![vtep(), name("other")],
        networks: vec!["10.5.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()],
    })
    .unwrap();
    for (index, called) in [(VTEP, "flannel.1"), (OTHER, "other")] {
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut bytes = Vec::new();
        let shown = Message::new("", link::NEW, 0).raw(&header).text(3, called);
        shown.write(0, &mut bytes);
        let seen = link::read(&Replies(&bytes).next().unwrap()).unwrap();
        kernel.mirror.set_link(&seen, Origin::Own);
    }
    kernel.has_nexthops = true;
    kernel
}

fn route(to: &str, gateway: Option<&str>) -> Route {
    Route {
        destination: to.parse().unwrap(),
        metric: 0,
        gateway: gateway.map(ip),
        link: vtep(),
        onlink: true,
        protocol: ROUTE_PROTOCOL,
    }
}

fn peer() -> Route {
    route("10.5.2.0/24", Some("10.5.2.0"))
}

fn seen_nexthop(id: u32) -> ObservedNexthop {
    ObservedNexthop {
        id,
        link: Some(VTEP),
        gateway: Some(ip("10.5.2.0")),
        onlink: true,
        protocol: ROUTE_PROTOCOL,
    }
}

fn planned(kernel: &Kernel, ops: &[Op]) -> Vec<(usize, What)> {
    let mut planner = Planner::new(kernel, true);
    for (at, op) in ops.iter().enumerate() {
        planner.plan(at, op).unwrap();
    }
    planner.steps.iter().map(|step| (step.op, step.what)).collect()
}

fn add(route: Route) -> Op {
    Op::Add(Object::Route(route))
}

fn remove(route: Route) -> Op {
    Op::Remove(Object::Route(route))
}

fn change(from: Route, to: Route) -> Op {
    Op::Change {
        from: Object::Route(from),
        to: Object::Route(to),
    }
}

fn own_address() -> Object {
    Object::Address(Address {
        link: vtep(),
        address: "10.5.1.0/32".parse().unwrap(),
    })
}

#[test]
fn plan_when_a_route_has_no_gateway_of_its_family_or_objects_are_not_to_be_had_then_it_is_one_message() {
    let mut kernel = kernel();
    let plain = [(0, What::Plain(VTEP))];
    assert_eq!(planned(&kernel, &[Op::Add(own_address())]), plain);
    assert_eq!(planned(&kernel, &[add(route("10.5.2.0/24", None))]), plain);
    assert_eq!(
        planned(&kernel, &[add(route("10.5.2.0/24", Some("fd00::1")))]),
        plain
    );
    let mut planner = Planner::new(&kernel, false);
    planner.plan(0, &add(peer())).unwrap();
    assert_eq!(
        planner.steps,
        [Step {
            op: 0,
            what: What::Plain(VTEP)
        }]
    );
    kernel.has_nexthops = false;
    assert_eq!(planned(&kernel, &[add(peer())]), plain);
    let elsewhere = Route {
        link: name("absent"),
        ..peer()
    };
    let error = Planner::new(&kernel, true).plan(0, &add(elsewhere)).unwrap_err();
    assert!(
        error.is(Errno::NODEV) && error.to_string().ends_with("there is no link absent"),
        "{error}"
    );
}

#[test]
fn plan_when_routes_are_made_by_objects_then_each_number_is_one_gateways_and_found_again() {
    let mut kernel = kernel();
    let new = [(0, What::Nexthop(NUMBER, VTEP)), (0, What::RouteBy(NUMBER))];
    assert_eq!(planned(&kernel, &[add(peer())]), new);
    let v6 = Route {
        metric: 1024,
        ..route("fd00:0:0:2::/64", Some("fd00::1"))
    };
    assert_eq!(
        planned(&kernel, &[add(v6)]),
        [(0, What::Nexthop(NUMBER_V6, VTEP)), (0, What::RouteBy(NUMBER_V6))]
    );
    // A second one of the same gateway in one run has the next number.
    let second = route("10.5.3.0/24", Some("10.5.2.0"));
    let both = planned(&kernel, &[add(peer()), add(second)]);
    assert_eq!(
        both[2..],
        [
            (1, What::Nexthop(NUMBER + 1, VTEP)),
            (1, What::RouteBy(NUMBER + 1))
        ]
    );
    kernel.mirror.set_nexthop(seen_nexthop(NUMBER));
    assert_eq!(planned(&kernel, &[add(peer())]), [(0, What::RouteBy(NUMBER))]);
    let strangers = [
        ObservedNexthop {
            link: Some(OTHER),
            ..seen_nexthop(NUMBER)
        },
        ObservedNexthop {
            gateway: Some(ip("10.5.2.1")),
            ..seen_nexthop(NUMBER)
        },
        ObservedNexthop {
            onlink: false,
            ..seen_nexthop(NUMBER)
        },
        ObservedNexthop {
            protocol: 3,
            ..seen_nexthop(NUMBER)
        },
    ];
    for stranger in strangers {
        kernel.mirror.set_nexthop(stranger);
        let next = [
            (0, What::Nexthop(NUMBER + 1, VTEP)),
            (0, What::RouteBy(NUMBER + 1)),
        ];
        assert_eq!(planned(&kernel, &[add(peer())]), next, "{stranger:?}");
    }
}

/// The route is there, by this object, which so many routes use besides.
fn by_object(kernel: &mut Kernel, nexthop: ObservedNexthop, others: usize) {
    kernel.mirror.set_nexthop(nexthop);
    kernel.mirror.set_route(peer(), Some(nexthop.id), Origin::Own);
    for n in 0..others {
        let other = route(&format!("10.5.{}.0/24", 100 + n), Some("10.5.2.0"));
        kernel.mirror.set_route(other, Some(nexthop.id), Origin::Own);
    }
}

#[test]
fn plan_when_the_last_route_of_an_object_of_ours_goes_then_it_goes_too() {
    let gone = (0, What::DeleteRoute(Via::Nexthop(NUMBER)));
    let mut last = kernel();
    by_object(&mut last, seen_nexthop(NUMBER), 0);
    assert_eq!(
        planned(&last, &[remove(peer())]),
        [gone, (0, What::DeleteNexthop(NUMBER))]
    );
    // What is deleted in this run is used by nothing that is made in it.
    let again = route("10.5.9.0/24", Some("10.5.2.0"));
    assert_eq!(
        planned(&last, &[remove(peer()), add(again)])[2..],
        [
            (1, What::Nexthop(NUMBER + 1, VTEP)),
            (1, What::RouteBy(NUMBER + 1))
        ]
    );
    assert_eq!(
        planned(&last, &[add(again), remove(peer())]),
        [
            (0, What::RouteBy(NUMBER)),
            (1, What::DeleteRoute(Via::Nexthop(NUMBER)))
        ],
        "it is still used"
    );
    let to = route("10.5.2.0/24", Some("10.5.2.9"));
    let steps = planned(&last, &[change(peer(), to)]);
    assert_eq!(steps.len(), 3);
    assert_eq!(steps[2], (0, What::DeleteNexthop(NUMBER)));
    let mut shared = kernel();
    by_object(&mut shared, seen_nexthop(NUMBER), 1);
    assert_eq!(planned(&shared, &[remove(peer())]), [gone]);
    let other = route("10.5.100.0/24", Some("10.5.2.0"));
    let both = planned(&shared, &[remove(peer()), remove(other)]);
    assert_eq!(both[2], (1, What::DeleteNexthop(NUMBER)));
    let mut strange = kernel();
    by_object(
        &mut strange,
        ObservedNexthop {
            protocol: 3,
            ..seen_nexthop(NUMBER)
        },
        0,
    );
    assert_eq!(planned(&strange, &[remove(peer())]), [gone], "not ours to delete");
}

#[test]
fn way_when_a_route_is_to_be_deleted_then_what_tells_it_from_others() {
    let mut kernel = kernel();
    assert_eq!(kernel.way_of(&peer()), Some(Via::Link(VTEP)));
    let absent = Route {
        link: name("absent"),
        ..peer()
    };
    assert_eq!(kernel.way_of(&absent), None);
    assert_eq!(kernel.way_of(&peer().unreachable()), Some(Via::Nowhere));
    let by_lo = Route {
        link: name("lo"),
        ..peer()
    };
    assert_eq!(
        kernel.way_of(&by_lo),
        None,
        "it has a gateway, and lo is not known here"
    );
    assert_eq!(kernel.way_of(&route("10.5.2.0/24", None)), Some(Via::Link(VTEP)));
    by_object(&mut kernel, seen_nexthop(NUMBER), 0);
    assert_eq!(kernel.way_of(&peer()), Some(Via::Nexthop(NUMBER)));
    // A deletion whose way is not known says the link.
    assert_eq!(
        planned(&self::kernel(), &[remove(peer())]),
        [(0, What::DeleteRoute(Via::Link(VTEP)))]
    );
}

#[track_caller]
fn assert_same(message: Option<Message>, expected: &Message) {
    let bytes = |message: &Message| {
        let mut bytes = Vec::new();
        message.write(0, &mut bytes);
        bytes
    };
    assert_eq!(bytes(&message.unwrap()), bytes(expected));
}

#[test]
fn message_when_a_step_is_said_then_additions_of_routes_and_addresses_are_exclusive() {
    let neighbour = Neighbour {
        link: vtep(),
        address: ip("10.5.2.0"),
        mac: Mac([2; 6]),
    };
    let entry = Forwarding {
        link: vtep(),
        mac: Mac([2; 6]),
        remote: ip("192.0.2.2"),
    };
    let net = "10.5.1.0/32".parse().unwrap();
    let here = What::Plain(VTEP);
    assert_same(
        message(&Op::Add(own_address()), here, None),
        &address::add_message(VTEP, net),
    );
    assert_same(
        message(&Op::Remove(own_address()), here, None),
        &address::delete_message(VTEP, net),
    );
    let put = flag::PUT;
    let object = Object::Neighbour(neighbour);
    let said = neighbour::add_message(put, VTEP, neighbour.address, neighbour.mac);
    assert_same(message(&Op::Add(object.clone()), here, None), &said);
    assert_same(
        message(
            &Op::Change {
                from: object.clone(),
                to: object.clone(),
            },
            here,
            None,
        ),
        &said,
    );
    assert_same(
        message(&Op::Remove(object), here, None),
        &neighbour::delete_message(VTEP, neighbour.address),
    );
    let object = Object::Forwarding(entry);
    assert_same(
        message(&Op::Add(object.clone()), here, None),
        &forwarding::add_message(put, VTEP, entry.mac, entry.remote),
    );
    assert_same(
        message(&Op::Remove(object), here, None),
        &forwarding::delete_message(VTEP, entry.mac, entry.remote),
    );
    let (link_way, object_way) = (Via::Link(VTEP), Via::Nexthop(7));
    assert_same(
        message(&add(peer()), here, None),
        &route::add_message(flag::ADD, &peer(), link_way),
    );
    assert_same(
        message(&add(peer()), here, Some(put)),
        &route::add_message(put, &peer(), link_way),
    );
    assert_same(
        message(&change(peer(), peer()), here, None),
        &route::add_message(put, &peer(), link_way),
    );
    assert_same(
        message(&add(peer()), What::RouteBy(7), None),
        &route::add_message(flag::ADD, &peer(), object_way),
    );
    assert_same(
        message(&add(peer()), What::Nexthop(7, VTEP), None),
        &nexthop::add_message(7, VTEP, ip("10.5.2.0"), true, 241),
    );
    assert_same(
        message(&remove(peer()), What::DeleteRoute(object_way), None),
        &route::delete_message(&peer(), object_way),
    );
    for op in [add(peer()), remove(peer()), change(peer(), peer())] {
        assert_same(
            message(&op, What::DeleteNexthop(7), None),
            &nexthop::delete_message(7),
        );
    }
    for (op, what) in [
        (remove(peer()), here),
        (Op::Add(own_address()), What::RouteBy(7)),
        (add(route("10.5.2.0/24", None)), What::Nexthop(7, VTEP)),
        (add(peer()), What::DeleteRoute(link_way)),
        (Op::Remove(own_address()), What::DeleteRoute(link_way)),
    ] {
        assert!(message(&op, what, None).is_none(), "{op:?} {what:?}");
    }
}

fn refusal(errno: Errno) -> NetlinkError {
    NetlinkError::new("x", Fault::Refused, errno, "")
}

/// What becomes of an operation whose message had this result.
fn judged(
    kernel: &mut Kernel,
    op: &Op,
    what: What,
    result: Result<(), Errno>,
    verdict: &mut Verdict,
) -> Outcome {
    let mut outcome = Outcome::Done;
    kernel.judge(
        op,
        Step { op: 0, what },
        result.map_err(refusal),
        &mut outcome,
        verdict,
    );
    outcome
}

#[test]
fn success_when_judged_then_the_mirror_shows_it() {
    let mut kernel = kernel();
    let here = What::Plain(VTEP);
    let mut verdict = Verdict::default();
    for (op, what) in [
        (Op::Add(own_address()), here),
        (add(peer()), What::Nexthop(NUMBER, VTEP)),
        (add(peer()), What::RouteBy(NUMBER)),
    ] {
        assert_eq!(
            judged(&mut kernel, &op, what, Ok(()), &mut verdict),
            Outcome::Done
        );
    }
    assert!(kernel.mirror.objects().contains_key(&own_address().key()));
    assert_eq!(
        kernel.mirror.objects().get(&peer().key()),
        Some(&Object::Route(peer()))
    );
    let made = kernel.mirror.nexthop(NUMBER).unwrap();
    assert_eq!((made.seen, made.uses), (seen_nexthop(NUMBER), 1));
    assert!(verdict.stale_links.is_empty());
    judged(
        &mut kernel,
        &Op::Remove(own_address()),
        here,
        Ok(()),
        &mut verdict,
    );
    assert!(!kernel.mirror.objects().contains_key(&own_address().key()));
    assert!(
        verdict.stale_links.contains(&vtep()),
        "routes may have gone with it"
    );
    let way = What::DeleteRoute(Via::Nexthop(NUMBER));
    judged(&mut kernel, &remove(peer()), way, Ok(()), &mut verdict);
    judged(
        &mut kernel,
        &remove(peer()),
        What::DeleteNexthop(NUMBER),
        Ok(()),
        &mut verdict,
    );
    assert!(kernel.mirror.objects().get(&peer().key()).is_none() && kernel.mirror.nexthop(NUMBER).is_none());
    let mut verdict = Verdict::default();
    judged(&mut kernel, &Op::Add(own_address()), here, Ok(()), &mut verdict);
    judged(
        &mut kernel,
        &Op::Remove(own_address()),
        here,
        Ok(()),
        &mut verdict,
    );
    assert!(verdict.stale_links.is_empty(), "there were no routes");
    // A route that takes another's place by its link is by no object any more.
    by_object(&mut kernel, seen_nexthop(NUMBER), 0);
    judged(&mut kernel, &change(peer(), peer()), here, Ok(()), &mut verdict);
    assert_eq!(kernel.mirror.nexthop_of(&peer()), None);
}

#[test]
fn refusal_when_what_is_to_go_is_not_there_then_nothing_was_to_be_done() {
    let mut kernel = kernel();
    by_object(&mut kernel, seen_nexthop(NUMBER), 0);
    let mut verdict = Verdict::default();
    let by_link = What::DeleteRoute(Via::Link(VTEP));
    let by_nexthop = What::DeleteRoute(Via::Nexthop(NUMBER));
    assert!(
        !judged(
            &mut kernel,
            &remove(peer()),
            by_link,
            Err(Errno::INVAL),
            &mut verdict
        )
        .is_ok()
    );
    assert!(
        !judged(
            &mut kernel,
            &remove(peer()),
            by_nexthop,
            Err(Errno::PERM),
            &mut verdict
        )
        .is_ok()
    );
    assert!(kernel.mirror.objects().contains_key(&peer().key()));
    for (what, errno) in [
        (by_nexthop, Errno::INVAL),
        (by_link, Errno::SRCH),
        (by_nexthop, Errno::SRCH),
    ] {
        kernel.mirror.set_route(peer(), None, Origin::Own);
        let outcome = judged(&mut kernel, &remove(peer()), what, Err(errno), &mut verdict);
        assert_eq!(outcome, Outcome::Already);
        assert!(!kernel.mirror.objects().contains_key(&peer().key()));
    }
    let outcome = judged(
        &mut kernel,
        &add(peer()),
        What::Plain(VTEP),
        Err(Errno::SRCH),
        &mut verdict,
    );
    assert!(!outcome.is_ok(), "an addition needs what is not there");
    // An object that is still used says nothing about its route.
    let outcome = judged(
        &mut kernel,
        &remove(peer()),
        What::DeleteNexthop(NUMBER),
        Err(Errno::BUSY),
        &mut verdict,
    );
    assert_eq!(outcome, Outcome::Done);
    assert!(kernel.mirror.nexthop(NUMBER).is_some());
}

#[test]
fn refusal_when_a_place_is_taken_or_the_kernel_cannot_change_in_place_then_it_is_looked_at() {
    let mut kernel = kernel();
    let here = What::Plain(VTEP);
    let mut verdict = Verdict::default();
    let outcome = judged(&mut kernel, &add(peer()), here, Err(Errno::EXIST), &mut verdict);
    assert!(outcome.error().is_some_and(NetlinkError::is_exists));
    assert_eq!(
        (verdict.taken.as_slice(), verdict.remade.as_slice()),
        (&[0][..], &[][..])
    );
    let mut verdict = Verdict::default();
    judged(
        &mut kernel,
        &change(peer(), peer()),
        here,
        Err(Errno::EXIST),
        &mut verdict,
    );
    assert_eq!(
        (verdict.taken.as_slice(), verdict.remade.as_slice()),
        (&[][..], &[0][..])
    );
    let mut verdict = Verdict::default();
    let outcome = judged(&mut kernel, &add(peer()), here, Err(Errno::PERM), &mut verdict);
    assert!(verdict.taken.is_empty() && verdict.remade.is_empty());
    assert!(outcome.to_string().contains("10.5.2.0/24"), "{outcome}");
    let v6 = Route {
        metric: 1024,
        ..route("fd00:0:0:2::/64", Some("fd00::1"))
    };
    let elsewhere = Route {
        link: name("other"),
        ..v6
    };
    let remade = |from, to, errno| needs_remaking(&change(from, to), &refusal(errno));
    assert!(remade(elsewhere, v6, Errno::INVAL) && remade(v6, v6, Errno::EXIST));
    assert!(!remade(v6, v6, Errno::INVAL), "not misled");
    assert!(!remade(elsewhere, Route { onlink: false, ..v6 }, Errno::INVAL));
    assert!(
        !remade(
            Route {
                link: name("other"),
                ..peer()
            },
            peer(),
            Errno::INVAL
        ),
        "IPv4 is not"
    );
    assert!(!remade(elsewhere, v6, Errno::PERM));
    assert!(!needs_remaking(&add(v6), &refusal(Errno::EXIST)));
}

#[test]
fn nexthop_object_when_refused_then_its_route_is_made_without() {
    let mut kernel = kernel();
    let mut verdict = Verdict::default();
    let object = What::Nexthop(NUMBER, VTEP);
    assert_eq!(
        judged(&mut kernel, &add(peer()), object, Err(Errno::EXIST), &mut verdict),
        Outcome::Done
    );
    assert!(kernel.has_nexthops, "only this one");
    assert_eq!(verdict.without_nexthop.get(&0), Some(&false));
    judged(
        &mut kernel,
        &add(peer()),
        What::RouteBy(NUMBER),
        Ok(()),
        &mut verdict,
    );
    assert_eq!(
        verdict.without_nexthop.get(&0),
        Some(&true),
        "made by a stranger's object"
    );
    judged(
        &mut kernel,
        &add(peer()),
        What::RouteBy(NUMBER),
        Err(Errno::INVAL),
        &mut verdict,
    );
    assert_eq!(verdict.without_nexthop.get(&0), Some(&false));
    assert!(!kernel.mirror.objects().contains_key(&peer().key()));
    judged(
        &mut kernel,
        &add(peer()),
        object,
        Err(Errno::OPNOTSUPP),
        &mut verdict,
    );
    assert!(!kernel.has_nexthops, "this kernel has none");
}

fn device(kind: LinkKind, called: &str) -> Box<Link> {
    Box::new(Link {
        name: name(called),
        kind,
        mac: None,
        mtu: 1450,
        up: true,
    })
}

fn vxlan(vni: u32) -> LinkKind {
    let vxlan = Vxlan {
        vni,
        port: None,
        local: ip("192.0.2.1"),
        lower: name("absent"),
        learning: false,
        gbp: false,
    };
    vxlan.into()
}

/// Nothing of this is sent: what it would be about is not there.
#[test]
fn apply_when_links_are_not_there_then_each_operation_has_its_own_outcome() {
    let mut kernel = Kernel::open(Interest::default()).unwrap();
    let absent = |to: &str| Route {
        link: name("absent"),
        ..route(to, Some("10.5.2.0"))
    };
    let ops = [
        remove(absent("10.5.2.0/24")),
        add(absent("10.5.3.0/24")),
        Op::Remove(Object::Link(device(vxlan(1), "absent"))),
        change(absent("10.5.4.0/24"), absent("10.5.4.0/24")),
        Op::Add(Object::Link(device(vxlan(1), "made"))),
    ];
    let outcomes = kernel.apply(&ops, ApplyOptions::default());
    assert_eq!(outcomes.len(), 5);
    assert_eq!(
        (&outcomes[0], &outcomes[2]),
        (&Outcome::Already, &Outcome::Already)
    );
    for (at, words) in [
        (1, "there is no link absent"),
        (3, "there is no link absent"),
        (4, "there is no link absent below it"),
    ] {
        let error = outcomes[at].error().unwrap();
        assert!(
            error.is(Errno::NODEV) && error.to_string().ends_with(words),
            "{error}"
        );
    }
    let changed = |from: LinkKind, to: LinkKind| Op::Change {
        from: Object::Link(device(from, "absent")),
        to: Object::Link(device(to, "absent")),
    };
    let ipip = Ipip {
        local: "192.0.2.1".parse().unwrap(),
        remote: None,
        plain: true,
    };
    let mixed = Op::Change {
        from: own_address(),
        to: Object::Link(device(vxlan(1), "absent")),
    };
    for (op, errno, words) in [
        (changed(vxlan(1), vxlan(1)), Errno::NODEV, "there is no such link"),
        (
            changed(vxlan(1), vxlan(2)),
            Errno::OPNOTSUPP,
            "what makes a vxlan device cannot be changed in place",
        ),
        (
            changed(ipip.into(), vxlan(1)),
            Errno::OPNOTSUPP,
            "the kind of a link cannot be changed in place",
        ),
        (mixed, Errno::INVAL, "a change must be of one kind of object"),
    ] {
        let outcomes = kernel.apply(&[op], ApplyOptions::default());
        let error = outcomes[0].error().unwrap();
        assert!(error.is(errno) && error.to_string().ends_with(words), "{error}");
    }
}

/// Only looks, at what every host has.
#[test]
fn kernel_when_it_observes_then_links_of_interest_and_nothing_else() {
    let lo = name("lo");
    let interest = |links: &[LinkName]| Interest {
        links: links.to_vec(),
        networks: vec!["198.18.77.0/24".parse().unwrap()],
    };
    let mut kernel = Kernel::open(interest(&[lo])).unwrap();
    assert!(kernel.objects().is_empty() && !kernel.has_news());
    kernel.observe(Scope::All).unwrap();
    assert!(kernel.objects().contains_key(&Key::Link(lo)));
    assert!(kernel.objects().values().all(|object| object.link() == lo));
    assert_eq!(
        (kernel.link_index(lo), kernel.link_index(name("absent"))),
        (Some(1), None)
    );
    assert_eq!(crate::Host::has_carrier(&kernel, lo), Some(true));
    assert_eq!(
        kernel.direct(&[ip("127.0.0.1")]).unwrap(),
        [None],
        "an address of its own is no peer's"
    );
    assert_eq!(kernel.name_of(1).unwrap(), Some(lo));
    assert_eq!(kernel.name_of(0x7fff_0001).unwrap(), None);
    let (requests, news) = kernel.calls();
    assert!(requests.sends > 0 && news.receives > 0 && news.sends == 0);
    kernel.set_interest(interest(&[]));
    assert!(kernel.has_news() && kernel.objects().is_empty());
    assert_eq!(kernel.drain().unwrap().resync, Some(Scope::All));
    kernel.set_interest(interest(&[lo]));
    kernel.observe(Scope::Link(lo)).unwrap();
    assert!(kernel.objects().contains_key(&Key::Link(lo)));
    // A link that has gone is no longer there when it is looked at.
    let mut stale = self::kernel();
    stale.observe(Scope::Link(vtep())).unwrap();
    assert!(!stale.objects().contains_key(&Key::Link(vtep())) && stale.link_index(vtep()).is_none());
    assert!(stale.objects().contains_key(&Key::Link(name("other"))));
    stale.observe(Scope::All).unwrap();
    assert_eq!(stale.link_index(name("other")), None);
}
