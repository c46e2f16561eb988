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
        other_names: Vec::new(),
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
            "passed over: --iface=bare0: bare0 has no IPv4 address"
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
fn select_when_the_name_is_one_that_ip_prints_or_a_further_one_then_it_is_that_interface() {
    let mut host = host();
    host.links[1].other_names = vec!["enp3s0".into(), "wan@home".into()];
    for name in ["eth0", "enp3s0", "eth0@if7", "wan@home"] {
        let selected = choose(&wish(&[name], &[]), V4, &host).unwrap();
        assert_eq!(selected.underlay.link.as_str(), "eth0", "{name}");
    }
    // A name of its own comes before another's further one.
    host.links[1].other_names = vec!["eth1".into()];
    let selected = choose(&wish(&["eth1"], &[]), V4, &host).unwrap();
    assert_eq!(selected.index, 3);
    let error = choose(&wish(&["eth9@eth0"], &[]), V4, &host).unwrap_err();
    assert!(
        error.to_string().contains("no interface has that name"),
        "{error}"
    );
}

#[test]
fn select_when_no_address_is_of_use_then_says_which_there_are_and_why() {
    let mut host = host();
    for address in &mut host.links[1].addresses {
        address.flags |= crate::interface::address::DEPRECATED;
    }
    let error = choose(&wish(&["eth0"], &[]), V6, &host).unwrap_err().to_string();
    let reason =
        "--iface=eth0: eth0 has no usable IPv6 address: 2001:db8::10 is deprecated, fe80::10 is deprecated";
    assert!(error.contains(reason), "{error}");
    assert!(
        error.contains("eth0 [192.0.2.10 (deprecated) "),
        "the list says so too: {error}"
    );
    let error = choose(&wish(&["bare0"], &[]), V4, &host).unwrap_err().to_string();
    assert!(error.contains("bare0 has no IPv4 address;"), "{error}");
}

/// No default route, and machines' bridges beside what is meant.
fn island() -> Inventory {
    Inventory {
        links: vec![
            link(1, "lo", &["127.0.0.1", "::1"]),
            link(2, "eth0", &["192.0.2.10", "fe80::10"]),
            link(3, "docker0", &["172.17.0.1"]),
            link(4, "flannel.1", &["10.5.1.0"]),
            link(5, "eth7", &["fe80::7"]),
        ],
        ..Inventory::default()
    }
}

#[test]
fn select_when_there_is_no_default_route_then_the_only_interface_is_taken_and_that_is_said() {
    let selected = choose(&Wish::default(), V4, &island()).unwrap();
    assert_eq!(selected.underlay.link.as_str(), "eth0");
    assert_eq!(
        selected.warnings,
        ["there is no default route: using eth0, the only interface with an address"]
    );
    assert!(selected.guessed);
    let mut two = island();
    two.links.push(link(6, "eth1", &["198.51.100.1"]));
    let error = choose(&Wish::default(), V4, &two).unwrap_err().to_string();
    assert!(error.contains("no IPv4 default route"), "{error}");
    two.links[5].up = false;
    assert!(choose(&Wish::default(), V4, &two).is_ok(), "one of them is down");
    // One default route is enough to be no case for guessing.
    let mut routed = island();
    routed.links[1].addresses.clear();
    routed.default4 = vec![default(2, 100)];
    let error = choose(&Wish::default(), V4, &routed).unwrap_err().to_string();
    assert!(error.contains("eth0 has no IPv4 address"), "{error}");
}

#[test]
fn select_when_there_is_no_default_route_then_the_way_to_the_registry_decides_between_several() {
    let mut host = island();
    host.links.push(link(6, "eth1", &["198.51.100.1"]));
    let registry = |addresses: &[&str]| Wish {
        registry: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        ..Wish::default()
    };
    let asked = std::cell::RefCell::new(Vec::new());
    let towards = |wish: &Wish| {
        select(wish, V4, &host, |to| {
            asked.borrow_mut().push(to.to_string());
            let link = if to.to_string().starts_with("198") { 6 } else { 3 };
            Ok(Some(Reach { link, source: None }))
        })
    };
    // A registry on this host says nothing, nor does one behind what cannot be meant.
    let wish = registry(&["127.0.0.1", "192.0.2.10", "172.17.0.9", "198.51.100.7"]);
    let selected = towards(&wish).unwrap();
    assert_eq!(selected.underlay.link.as_str(), "eth1");
    assert!(selected.guessed);
    assert_eq!(
        selected.warnings,
        ["there is no default route: using eth1, the way to the registry at 198.51.100.7"]
    );
    assert_eq!(*asked.borrow(), ["172.17.0.9", "198.51.100.7"]);
    assert!(towards(&registry(&["127.0.0.1"])).is_err());
}

#[test]
fn select_when_one_family_cannot_be_served_then_the_other_is_and_it_is_named() {
    let partly = |host: &Inventory, families| {
        select_partly(&Wish::default(), families, host, &mut |_| panic!("nobody asked"))
    };
    let whole = partly(&host(), DUAL).unwrap();
    assert_eq!(whole.unserved, None);
    let mut no6 = host();
    no6.default6.clear();
    no6.links[1].addresses.retain(|address| address.ip.is_ipv4());
    let selected = partly(&no6, DUAL).unwrap();
    let underlay = &selected.underlay;
    assert_eq!(
        (underlay.link.as_str(), underlay.address6, underlay.public6),
        ("eth0", None, None)
    );
    assert_eq!(underlay.address4, "192.0.2.10".parse().ok());
    assert_eq!(
        selected.unserved.unwrap().to_string(),
        "IPv6 is in the network and not served on this host: the default route: eth0 has no IPv6 address"
    );
    let mut no4 = host();
    no4.default4.clear();
    no4.links[1].addresses.retain(|address| address.ip.is_ipv6());
    no4.links.remove(2);
    let selected = partly(&no4, DUAL).unwrap();
    assert_eq!(selected.unserved.unwrap().family, Family::V4);
    assert_eq!(selected.underlay.address6, "2001:db8::10".parse().ok());
    // What a network of one family asks for is all of it.
    assert!(partly(&no4, V4).is_err());
    let bare = Inventory {
        links: vec![link(1, "lo", &["127.0.0.1", "::1"])],
        ..Inventory::default()
    };
    assert!(partly(&bare, DUAL).is_err());
}

#[test]
fn select_when_the_interface_in_use_was_renamed_then_it_stays_and_what_a_restart_would_say_is_said() {
    let mut host = host();
    let wish = wish(&["eth0"], &[]);
    let held = Held {
        index: 2,
        link: LinkName::new("eth0").unwrap(),
    };
    host.links[1].name = LinkName::new("wan0").unwrap();
    let failure = choose(&wish, V4, &host).unwrap_err();
    let again = |host: &Inventory| select_renamed(&wish, V4, host, held, &failure);
    let selected = again(&host).unwrap();
    assert_eq!((selected.underlay.link.as_str(), selected.index), ("wan0", 2));
    assert_eq!(selected.underlay.address4, "192.0.2.10".parse().ok());
    let warning = &selected.warnings[0];
    for words in ["eth0 is called wan0 now", "after a restart", "--iface=eth0"] {
        assert!(warning.contains(words), "{warning}");
    }
    // Under its name it is no case for this, and one that is gone or has no address is none at all.
    let mut other = host.clone();
    other.links[1].name = held.link;
    assert_eq!(again(&other), None);
    other.links.remove(1);
    assert_eq!(again(&other), None);
    host.links[1].addresses.clear();
    assert_eq!(again(&host), None);
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
            registry: Vec::new(),
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

#[test]
fn segments_when_links_are_up_then_their_ipv4_prefixes_once_each() {
    let mut inventory = host();
    inventory.links.push(link(5, "eth2", &["172.18.0.9"]));
    inventory.links.push(LinkInfo {
        up: false,
        ..link(6, "eth3", &["198.51.100.1"])
    });
    let chosen = choose(&wish(&["eth1"], &[]), V4, &inventory).unwrap();
    let expected: Vec<Ipv4Net> = ["127.0.0.0/24", "172.18.0.0/24", "192.0.2.0/24"]
        .map(|net| net.parse().unwrap())
        .to_vec();
    assert_eq!(chosen.underlay().segments, expected);
}
