use super::*;
use crate::interface::address::{AddressInfo, PERMANENT};
use fabric::object::LinkName;
use proptest::prelude::*;

const V4: Families = Families { v4: true, v6: false };
const V6: Families = Families { v4: false, v6: true };
const DUAL: Families = Families { v4: true, v6: true };

fn link(index: u32, name: &str, addresses: &[&str]) -> LinkInfo {
    let addresses = addresses.iter().map(|ip| AddressInfo {
        ip: ip.parse().unwrap(),
        prefix: 24,
        flags: PERMANENT,
        scope: 0,
    });
    LinkInfo {
        index,
        name: LinkName::new(name).unwrap(),
        mtu: 1500,
        up: true,
        addresses: addresses.collect(),
    }
}

fn default(link: u32, metric: u32) -> DefaultRoute {
    DefaultRoute {
        metric,
        link: Some(link),
        multipath: false,
    }
}

/// A host with a management interface that has the default routes, and a second one for the fabric.
fn host() -> Inventory {
    Inventory {
        links: vec![
            link(1, "lo", &["127.0.0.1", "::1"]),
            link(2, "eth0", &["192.0.2.10", "2001:db8::10", "fe80::10"]),
            link(3, "eth1", &["172.18.0.5", "fd00::5", "fe80::5"]),
            link(4, "bare0", &[]),
        ],
        default4: vec![default(2, 100)],
        default6: vec![default(2, 1024)],
    }
}

fn wish(iface: &[&str], regex: &[&str]) -> Wish {
    Wish {
        iface: iface.iter().map(ToString::to_string).collect(),
        iface_regex: regex.iter().map(ToString::to_string).collect(),
        ..Wish::default()
    }
}

fn choose(wish: &Wish, families: Families, inventory: &Inventory) -> Result<Selected, SelectError> {
    select(wish, families, inventory, |_| {
        panic!("nobody asked to reach anything")
    })
}

/// `link v4 v6 public4 public6` of a choice, `-` for none.
fn sum(selected: &Selected) -> String {
    let u = &selected.underlay;
    let v4 = |ip: Option<Ipv4Addr>| ip.map_or("-".into(), |ip| ip.to_string());
    let v6 = |ip: Option<Ipv6Addr>| ip.map_or("-".into(), |ip| ip.to_string());
    format!(
        "{} {} {} {} {}",
        u.link,
        v4(u.address4),
        v6(u.address6),
        v4(u.public4),
        v6(u.public6)
    )
}

fn chosen(wish: &Wish, families: Families) -> String {
    let selected = choose(wish, families, &host()).unwrap();
    assert_eq!(selected.warnings, Vec::<String>::new());
    sum(&selected)
}

#[test]
fn select_when_nothing_is_said_takes_the_default_route() {
    assert_eq!(chosen(&Wish::default(), V4), "eth0 192.0.2.10 - 192.0.2.10 -");
    assert_eq!(chosen(&Wish::default(), V6), "eth0 - 2001:db8::10 - 2001:db8::10");
    assert_eq!(
        chosen(&Wish::default(), DUAL),
        "eth0 192.0.2.10 2001:db8::10 192.0.2.10 2001:db8::10"
    );
    assert_eq!(chosen(&wish(&[""], &[]), V4), "eth0 192.0.2.10 - 192.0.2.10 -");
    assert_eq!(chosen(&wish(&[], &[""]), V4), "eth0 192.0.2.10 - 192.0.2.10 -");
}

#[test]
fn select_when_a_name_or_address_is_given_takes_that_link() {
    assert_eq!(
        chosen(&wish(&["eth1"], &[]), DUAL),
        "eth1 172.18.0.5 fd00::5 172.18.0.5 fd00::5"
    );
    assert_eq!(
        chosen(&wish(&["172.18.0.5"], &[]), V4),
        "eth1 172.18.0.5 - 172.18.0.5 -"
    );
    assert_eq!(chosen(&wish(&["fd00::5"], &[]), V6), "eth1 - fd00::5 - fd00::5");
    assert_eq!(
        chosen(&wish(&["fe80::5"], &[]), V4),
        "eth1 172.18.0.5 - 172.18.0.5 -"
    );
}

/// The reference dereferences nil here.
#[test]
fn select_when_dual_and_only_an_ipv6_address_is_given_finds_the_ipv4_one() {
    assert_eq!(
        chosen(&wish(&["fd00::5"], &[]), DUAL),
        "eth1 172.18.0.5 fd00::5 172.18.0.5 fd00::5"
    );
}

#[test]
fn select_when_an_address_and_the_other_public_one_are_on_different_links_refuses() {
    let wish = Wish {
        public_ipv6: "2001:db8::10".parse().ok(),
        ..wish(&["172.18.0.5"], &[])
    };
    let error = choose(&wish, DUAL, &host()).unwrap_err().to_string();
    assert!(
        error.contains("--iface=172.18.0.5: that is eth1, but 2001:db8::10 is an address of eth0"),
        "{error}"
    );
    // By name it is not asked: the address may be one that the outside world has for us.
    let named = Wish {
        iface: vec!["eth1".into()],
        ..wish
    };
    assert_eq!(
        chosen(&named, DUAL),
        "eth1 172.18.0.5 fd00::5 172.18.0.5 2001:db8::10"
    );
}

#[test]
fn select_when_several_are_given_takes_the_first_that_works_and_says_what_it_passed_over() {
    let selected = choose(&wish(&["eth9", "bare0", "eth1"], &["eth0"]), V4, &host()).unwrap();
    assert_eq!(selected.underlay.link.as_str(), "eth1");
    assert_eq!(
        selected.warnings,
        [
            "passed over: --iface=eth9: no interface has that name",
            "passed over: --iface=bare0: bare0 has no usable IPv4 address"
        ]
    );
    let selected = choose(&wish(&["eth9"], &["(", "172.18.(.*)"]), V4, &host()).unwrap();
    assert_eq!(
        (selected.underlay.link.as_str(), selected.by.as_str()),
        ("eth1", "--iface-regex=172.18.(.*)")
    );
    assert_eq!(selected.warnings.len(), 2);
}

#[test]
fn select_when_a_regex_is_given_tries_addresses_before_names() {
    assert_eq!(
        chosen(&wish(&[], &["^172\\."]), V4),
        "eth1 172.18.0.5 - 172.18.0.5 -"
    );
    assert_eq!(
        chosen(&wish(&[], &["eth1"]), DUAL),
        "eth1 172.18.0.5 fd00::5 172.18.0.5 fd00::5"
    );
    // `1` is in the name of eth1 and in every address: the address of the lowest index wins, and loopback has none.
    assert_eq!(chosen(&wish(&[], &["1"]), V4), "eth0 192.0.2.10 - 192.0.2.10 -");
    // Link-local addresses come last, but they count.
    let selected = choose(&wish(&[], &["^fe80::5$"]), V6, &host()).unwrap();
    assert_eq!(
        (selected.underlay.link.as_str(), selected.warnings.len()),
        ("eth1", 1)
    );
}

/// The reference keeps the IPv4 address of one link and takes another link by name.
#[test]
fn select_when_dual_and_the_regex_matches_one_family_only_does_not_mix_links() {
    let mut host = host();
    host.links.push(link(5, "fabric172", &["10.9.0.1", "fd09::1"]));
    let selected = choose(&wish(&[], &["172"]), DUAL, &host).unwrap();
    assert_eq!(sum(&selected), "fabric172 10.9.0.1 fd09::1 10.9.0.1 fd09::1");
}

#[test]
fn select_when_an_address_has_to_be_reached_takes_route_and_source() {
    let wish = Wish {
        can_reach: "203.0.113.1".parse().ok(),
        ..Wish::default()
    };
    let reach = |source: &str, link| {
        let source = source.parse().ok();
        move |to: IpAddr| {
            assert_eq!(to.to_string(), "203.0.113.1");
            Ok(Some(Reach { link, source }))
        }
    };
    let selected = select(&wish, V4, &host(), reach("172.18.0.5", 3)).unwrap();
    assert_eq!(sum(&selected), "eth1 172.18.0.5 - 172.18.0.5 -");
    assert!(
        select(&wish, V4, &host(), |_| Ok(None))
            .unwrap_err()
            .to_string()
            .contains("no route to it")
    );
    assert!(select(&wish, V4, &host(), reach("172.18.0.5", 9)).is_err());
    let own = Wish {
        can_reach: "192.0.2.10".parse().ok(),
        ..Wish::default()
    };
    assert!(
        choose(&own, V4, &host())
            .unwrap_err()
            .to_string()
            .contains("address of this host")
    );
}

/// The reference stores an IPv6 source as the IPv4 address, and forgets it where the network is IPv6 only.
#[test]
fn select_when_the_reached_address_is_ipv6_keeps_the_source_in_its_family() {
    let wish = Wish {
        can_reach: "2001:db8:9::1".parse().ok(),
        ..Wish::default()
    };
    let reach = |_| {
        Ok(Some(Reach {
            link: 3,
            source: "fd00::5".parse().ok(),
        }))
    };
    assert_eq!(
        sum(&select(&wish, DUAL, &host(), reach).unwrap()),
        "eth1 172.18.0.5 fd00::5 172.18.0.5 fd00::5"
    );
    assert_eq!(
        sum(&select(&wish, V6, &host(), reach).unwrap()),
        "eth1 - fd00::5 - fd00::5"
    );
    assert_eq!(
        sum(&select(&wish, V4, &host(), reach).unwrap()),
        "eth1 172.18.0.5 - 172.18.0.5 -"
    );
}

#[test]
fn select_when_a_public_address_is_ours_takes_its_link_by_either_family() {
    let v4 = Wish {
        public_ip: "172.18.0.5".parse().ok(),
        ..Wish::default()
    };
    assert_eq!(chosen(&v4, V4), "eth1 172.18.0.5 - 172.18.0.5 -");
    assert_eq!(chosen(&v4, DUAL), "eth1 172.18.0.5 fd00::5 172.18.0.5 fd00::5");
    let v6 = Wish {
        public_ipv6: "fd00::5".parse().ok(),
        ..Wish::default()
    };
    assert_eq!(chosen(&v6, DUAL), "eth1 172.18.0.5 fd00::5 172.18.0.5 fd00::5");
    let apart = Wish {
        public_ipv6: "2001:db8::10".parse().ok(),
        ..v4
    };
    let error = choose(&apart, DUAL, &host()).unwrap_err().to_string();
    assert!(error.contains("expected one interface"), "{error}");
}

#[test]
fn select_when_nobody_has_the_public_address_uses_the_default_route_and_warns() {
    let nat = Wish {
        public_ip: "198.51.100.7".parse().ok(),
        ..Wish::default()
    };
    let selected = choose(&nat, V4, &host()).unwrap();
    assert_eq!(sum(&selected), "eth0 192.0.2.10 - 198.51.100.7 -");
    assert_eq!(
        selected.warnings,
        ["--public-ip=198.51.100.7: no interface has it; using eth0 and telling other hosts that address"]
    );
    // One of ours, one not: ours decides.
    let half = Wish {
        public_ipv6: "fd00::5".parse().ok(),
        ..nat.clone()
    };
    let selected = choose(&half, DUAL, &host()).unwrap();
    assert_eq!(sum(&selected), "eth1 172.18.0.5 fd00::5 198.51.100.7 fd00::5");
    assert_eq!(selected.warnings.len(), 1);
    // With an interface flag nothing is odd about it.
    let named = Wish {
        iface: vec!["eth1".into()],
        ..nat
    };
    assert_eq!(chosen(&named, V4), "eth1 172.18.0.5 - 198.51.100.7 -");
}

#[test]
fn select_when_a_family_is_off_its_public_address_only_warns() {
    let wish = Wish {
        public_ip: "172.18.0.5".parse().ok(),
        ..Wish::default()
    };
    let selected = choose(&wish, V6, &host()).unwrap();
    assert_eq!(sum(&selected), "eth0 - 2001:db8::10 - 2001:db8::10");
    assert_eq!(
        selected.warnings,
        ["--public-ip has no effect: the network has no IPv4"]
    );
}

#[test]
fn select_when_default_routes_disagree_finds_the_link_that_has_both_or_refuses() {
    let mut host = host();
    host.default4 = vec![default(3, 50), default(2, 100)];
    assert_eq!(
        choose(&Wish::default(), V4, &host)
            .unwrap()
            .underlay
            .link
            .as_str(),
        "eth1"
    );
    assert_eq!(
        choose(&Wish::default(), DUAL, &host)
            .unwrap()
            .underlay
            .link
            .as_str(),
        "eth0"
    );
    host.default4.pop();
    let error = choose(&Wish::default(), DUAL, &host).unwrap_err().to_string();
    assert!(
        error.contains("of IPv4 is through eth1, that of IPv6 through eth0"),
        "{error}"
    );
    host.default6.clear();
    assert_eq!(
        choose(&Wish::default(), DUAL, &host)
            .unwrap()
            .underlay
            .link
            .as_str(),
        "eth1"
    );
    host.default4.clear();
    assert!(
        choose(&Wish::default(), V4, &host)
            .unwrap_err()
            .to_string()
            .contains("no IPv4 default route")
    );
}

#[test]
fn select_when_the_default_route_has_several_hops_takes_the_first_and_warns() {
    let mut host = host();
    host.default4 = vec![DefaultRoute {
        metric: 0,
        link: Some(3),
        multipath: true,
    }];
    let selected = choose(&Wish::default(), V4, &host).unwrap();
    assert_eq!(selected.underlay.link.as_str(), "eth1");
    assert_eq!(selected.warnings.len(), 1);
}

#[test]
fn error_when_nothing_fits_lists_every_attempt_and_what_there_is() {
    let mut host = host();
    host.links
        .extend((10..60).map(|i| link(i, &format!("veth{i}"), &["fe80::1"])));
    let error = choose(&wish(&["eth9"], &["nope", "("]), V4, &host).unwrap_err();
    assert_eq!(error.attempts.len(), 3);
    let text = error.to_string();
    for part in [
        "--iface=eth9",
        "--iface-regex=nope",
        "eth1 [172.18.0.5 fd00::5 fe80::5]",
        "and 38 more",
    ] {
        assert!(text.contains(part), "{part} not in {text}");
    }
    assert!(!text.contains('\n'));
}

#[test]
fn select_when_a_link_has_no_mtu_or_is_down_says_so() {
    let mut host = host();
    if let Some(link) = host.links.get_mut(2) {
        link.up = false;
    }
    assert_eq!(
        choose(&wish(&["eth1"], &[]), V4, &host).unwrap().warnings,
        ["eth1 is down"]
    );
    if let Some(link) = host.links.get_mut(2) {
        link.mtu = 0;
    }
    assert!(choose(&wish(&["eth1"], &[]), V4, &host).is_err());
}

fn some_ip() -> impl Strategy<Value = String> {
    prop_oneof![
        (0u8..4).prop_map(|n| format!("10.0.0.{n}")),
        (0u8..4).prop_map(|n| format!("fd00::{n}")),
        Just("fe80::1".to_owned()),
        Just("127.0.0.1".to_owned()),
    ]
}

fn some_host() -> impl Strategy<Value = Inventory> {
    let addresses = proptest::collection::vec((some_ip(), any::<u8>()), 0..4);
    let links = proptest::collection::vec((addresses, 0u32..2, any::<bool>()), 0..5);
    let routes = || proptest::collection::vec((0u32..3, proptest::option::of(0u32..6), any::<bool>()), 0..3);
    (links, routes(), routes()).prop_map(|(links, default4, default6)| {
        let links = links.into_iter().zip(1..).map(|((addresses, mtu, up), index)| {
            let mut info = link(index, &format!("eth{index}"), &[]);
            (info.mtu, info.up) = (mtu * 1500, up);
            info.addresses = addresses
                .into_iter()
                .map(|(ip, flags)| AddressInfo {
                    ip: ip.parse().unwrap(),
                    prefix: 24,
                    flags: flags.into(),
                    scope: 0,
                })
                .collect();
            info
        });
        let routes = |routes: Vec<(u32, Option<u32>, bool)>| {
            routes
                .into_iter()
                .map(|(metric, link, multipath)| DefaultRoute {
                    metric,
                    link,
                    multipath,
                })
                .collect()
        };
        Inventory {
            links: links.collect(),
            default4: routes(default4),
            default6: routes(default6),
        }
    })
}

fn some_wish() -> impl Strategy<Value = Wish> {
    let name = prop_oneof![some_ip(), "eth[0-9]", Just(String::new())];
    let regex = prop_oneof!["eth[0-9]", Just("10.0.*".to_owned()), Just("(".to_owned())];
    (
        proptest::collection::vec(name, 0..3),
        proptest::collection::vec(regex, 0..2),
        proptest::option::of(some_ip()),
        proptest::option::of(0u8..4),
        proptest::option::of(0u16..4),
    )
        .prop_map(|(iface, iface_regex, reach, v4, v6)| Wish {
            iface,
            iface_regex,
            can_reach: reach.and_then(|ip| ip.parse().ok()),
            public_ip: v4.map(|n| Ipv4Addr::new(10, 0, 0, n)),
            public_ipv6: v6.map(|n| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n)),
        })
}

proptest! {
    #[test]
    fn select_when_anything_is_wished_gives_a_whole_answer_or_a_reason(
        wish in some_wish(),
        host in some_host(),
        (v4, v6) in prop_oneof![Just((true, false)), Just((false, true)), Just((true, true))],
        found in proptest::option::of((0u32..6, proptest::option::of(some_ip()))),
    ) {
        let reach = |_| Ok(found.clone().map(|(link, ip)| Reach { link, source: ip.and_then(|ip| ip.parse().ok()) }));
        let answer = select(&wish, Families { v4, v6 }, &host, reach);
        prop_assert_eq!(&answer, &select(&wish, Families { v4, v6 }, &host, reach), "the same question, another answer");
        match answer {
            Ok(selected) => {
                let u = &selected.underlay;
                prop_assert_eq!((u.address4.is_some(), u.address6.is_some()), (v4, v6));
                prop_assert_eq!((u.public4.is_some(), u.public6.is_some()), (v4, v6));
                prop_assert!(u.mtu > 0 && host.link(selected.index).is_some_and(|link| link.name == u.link));
            }
            Err(error) => prop_assert!(!error.attempts.is_empty() && !error.to_string().contains('\n')),
        }
    }
}
