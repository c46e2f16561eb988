use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::*;
use crate::lease::{Attributes, Rejected};

fn config(json: &str) -> NetworkConfig {
    NetworkConfig::parse(json.as_bytes()).unwrap()
}

fn v4() -> NetworkConfig {
    config(r#"{"Network":"10.5.0.0/16"}"#)
}

fn dual() -> NetworkConfig {
    config(r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#)
}

fn v6() -> NetworkConfig {
    config(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48"}"#)
}

fn key(text: &str) -> Subnet {
    Subnet::parse_key(text).unwrap()
}

fn keys(texts: &[&str]) -> Vec<Subnet> {
    texts.iter().map(|text| key(text)).collect()
}

fn lease(text: &str, ip: &str, ip6: Option<&str>, created: i64) -> Lease {
    let attributes = Attributes {
        public_ip: ip.parse().unwrap(),
        public_ip6: ip6.map(|ip| ip.parse().unwrap()),
        backend_type: "vxlan".into(),
        data: None,
        data6: None,
    };
    Lease {
        subnet: key(text),
        attributes,
        created,
    }
}

fn listing(leases: &[Lease]) -> Snapshot {
    let leases: BTreeMap<_, _> = leases.iter().map(|lease| (lease.subnet, lease.clone())).collect();
    Snapshot {
        revision: 1,
        leases,
        rejected: Vec::new(),
    }
}

fn first(_: usize) -> usize {
    0
}

fn last(n: usize) -> usize {
    n - 1
}

const ME: PublicIps = PublicIps {
    v4: Some(Ipv4Addr::new(192, 0, 2, 1)),
    v6: Some(Ipv6Addr::new(0xfd18, 0, 0, 0, 0, 0, 0, 1)),
};

#[test]
fn compatible_when_families_length_and_range_match_only() {
    for (config, text, expected) in [
        (v4(), "10.5.1.0-24", true),
        (v4(), "10.5.255.0-24", true),
        (v4(), "10.5.0.0-24", false),
        (v4(), "10.6.1.0-24", false),
        (v4(), "10.5.2.0-25", false),
        (v4(), "10.5.1.0-24&fd00:0:0:1::-64", false),
        (dual(), "10.5.1.0-24&fd00:0:0:1::-64", true),
        (dual(), "10.5.1.0-24", false),
        (dual(), "10.5.1.0-24&fd00::-64", false),
        (dual(), "10.5.1.0-24&fd00:0:0:1::-65", false),
        (v6(), "0.0.0.0-0&fd00:0:0:1::-64", true),
        (v6(), "10.5.1.0-24&fd00:0:0:1::-64", false),
    ] {
        assert_eq!(is_compatible(&config, &key(text)), expected, "{text}");
    }
}

#[test]
fn choose_when_nothing_is_taken_picks_among_the_first_hundred() {
    assert_eq!(choose(&v4(), &[], None, &mut first), Ok(key("10.5.1.0-24")));
    assert_eq!(choose(&v4(), &[], None, &mut last), Ok(key("10.5.100.0-24")));
    assert_eq!(
        choose(&v6(), &[], None, &mut last),
        Ok(key("0.0.0.0-0&fd00:0:0:64::-64"))
    );
    assert_eq!(
        choose(&dual(), &[], None, &mut first),
        Ok(key("10.5.1.0-24&fd00:0:0:1::-64"))
    );
}

#[test]
fn choose_when_leases_overlap_in_any_size_steps_over_them() {
    let taken = keys(&[
        "10.5.1.0-24",
        "10.5.2.128-25",
        "10.5.4.0-22",
        "10.5.9.0-24",
        "10.5.8.0-30",
        "10.0.0.0-10",
    ]);
    let taken = [&taken[..5], &keys(&["0.0.0.0-0&fd00::-48"])].concat();
    assert_eq!(choose(&v4(), &taken, None, &mut first), Ok(key("10.5.3.0-24")));
    let more = [&taken[..], &keys(&["10.5.3.0-24"])].concat();
    assert_eq!(choose(&v4(), &more, None, &mut first), Ok(key("10.5.10.0-24")));
}

#[test]
fn choose_when_previous_is_free_takes_it_and_otherwise_not() {
    let previous = Some(key("10.5.200.0-24"));
    assert_eq!(
        choose(&v4(), &[], previous, &mut first),
        previous.ok_or(AllocError::NoFamily)
    );
    assert_eq!(
        choose(&v4(), &keys(&["10.5.200.0-24"]), previous, &mut first),
        Ok(key("10.5.1.0-24"))
    );
    assert_eq!(
        choose(&v4(), &keys(&["10.5.200.0-25"]), previous, &mut first),
        Ok(key("10.5.1.0-24"))
    );
    assert_eq!(
        choose(&v4(), &[], Some(key("10.6.1.0-24")), &mut first),
        Ok(key("10.5.1.0-24"))
    );
    assert_eq!(
        choose(&v4(), &[], Some(key("10.5.200.0-25")), &mut first),
        Ok(key("10.5.1.0-24"))
    );
}

#[test]
fn choose_when_the_previous_was_ipv4_only_keeps_that_half_in_dual_stack() {
    let chosen = choose(
        &dual(),
        &keys(&["10.5.1.0-24"]),
        Some(key("10.5.200.0-24")),
        &mut first,
    );
    assert_eq!(chosen, Ok(key("10.5.200.0-24&fd00:0:0:1::-64")));
}

#[test]
fn choose_when_the_range_is_full_says_range_and_how_many() {
    let config = config(r#"{"Network":"10.5.0.0/28"}"#);
    // The last two begin and end beside the range, and count for nothing.
    let taken = keys(&[
        "10.5.0.4-30",
        "10.5.0.8-29",
        "10.9.0.0-24",
        "10.5.0.16-30",
        "10.5.0.0-30",
    ]);
    let error = choose(&config, &taken, None, &mut first).unwrap_err().to_string();
    assert!(
        error.starts_with("out of subnets: all 3 subnets of /30 from 10.5.0.4 to 10.5.0.12 in 10.5.0.0/28 overlap one of 2 leases"),
        "{error}"
    );
}

#[test]
fn choose_when_the_range_ends_at_the_last_address_does_not_run_over() {
    let four = config(r#"{"Network":"255.255.255.0/24","SubnetLen":26}"#);
    let taken = keys(&["255.255.255.64-26", "255.255.255.128-25"]);
    assert!(choose(&four, &taken, None, &mut first).is_err());
    let six = config(
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"ffff:ffff:ffff:fffc::/62","IPv6SubnetMin":"ffff:ffff:ffff:ffff::"}"#,
    );
    assert_eq!(
        choose(&six, &[], None, &mut last),
        Ok(key("0.0.0.0-0&ffff:ffff:ffff:ffff::-64"))
    );
    assert!(
        choose(
            &six,
            &keys(&["0.0.0.0-0&ffff:ffff:ffff:ffff::-64"]),
            None,
            &mut first
        )
        .is_err()
    );
}

#[test]
fn choose_when_ten_thousand_leases_or_millions_of_subnets_are_taken_is_fast() {
    let config = config(r#"{"Network":"10.0.0.0/8","SubnetLen":30}"#);
    let mut taken: Vec<Subnet> = (0..10_000u32)
        .map(|i| {
            let ip = Ipv4Addr::from(0x0a00_0000 + (i * 7919 % 10_000 + 1) * 4);
            Subnet::new(Some(Ipv4Net::new(ip, 30).unwrap()), None).unwrap()
        })
        .collect();
    taken.extend(keys(&["10.0.0.0-9", "10.128.0.0-10"]));
    let started = Instant::now();
    for _ in 0..100 {
        assert_eq!(
            choose(&config, &taken, None, &mut first),
            Ok(key("10.192.0.0-30"))
        );
    }
    // Walking the three million taken subnets one by one would take minutes for the hundred calls.
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn decide_when_a_compatible_lease_is_ours_reuses_it_and_lists_the_others() {
    let leases = [
        lease("10.5.9.0-24", "192.0.2.9", None, 1),
        lease("10.5.8.0-24", "192.0.2.1", None, 5),
        lease("10.5.7.0-24", "192.0.2.1", None, 6),
        lease("10.6.7.0-24", "192.0.2.1", None, 2),
    ];
    let decision = decide(&v4(), &listing(&leases), &ME, None, &mut first).unwrap();
    assert_eq!(decision.action, Action::Reuse(leases[1].clone()));
    assert_eq!(decision.also_ours, keys(&["10.5.7.0-24", "10.6.7.0-24"]));
    let decision = decide(
        &v4(),
        &listing(&leases),
        &ME,
        Some(key("10.5.7.0-24")),
        &mut first,
    )
    .unwrap();
    assert_eq!(decision.action, Action::Reuse(leases[2].clone()));
}

#[test]
fn decide_when_a_family_comes_or_goes_then_the_half_that_fits_is_kept_and_the_old_lease_left_for_later() {
    let leases = [
        lease("10.5.1.0-24", "192.0.2.1", None, 1),
        lease("10.5.2.0-24", "192.0.2.2", None, 2),
    ];
    for previous in [Some(key("10.5.1.0-24")), None] {
        let decision = decide(&dual(), &listing(&leases), &ME, previous, &mut first).unwrap();
        assert_eq!(decision.action, Action::Take(key("10.5.1.0-24&fd00:0:0:1::-64")));
        assert_eq!(decision.also_ours, keys(&["10.5.1.0-24"]));
    }
    // And back, by the lease alone.
    let both = lease("10.5.7.0-24&fd00:0:0:9::-64", "192.0.2.1", Some("fd18::1"), 3);
    let leases = [leases[1].clone(), both];
    let decision = decide(&v4(), &listing(&leases), &ME, None, &mut first).unwrap();
    assert_eq!(decision.action, Action::Take(key("10.5.7.0-24")));
    let me = PublicIps { v4: None, ..ME };
    let leases = [lease(
        "10.5.7.0-24&fd00:0:0:9::-64",
        "0.0.0.0",
        Some("fd18::1"),
        3,
    )];
    let decision = decide(&v6(), &listing(&leases), &me, None, &mut first).unwrap();
    assert_eq!(decision.action, Action::Take(key("0.0.0.0-0&fd00:0:0:9::-64")));
}

#[test]
fn decide_when_the_half_to_keep_does_not_fit_or_is_anothers_then_another_is_taken() {
    // Of another length: what is left of the old lease counts as taken.
    let mine = lease("10.5.0.0-22", "192.0.2.1", None, 1);
    let decision = decide(&dual(), &listing(&[mine]), &ME, None, &mut first).unwrap();
    assert_eq!(decision.action, Action::Take(key("10.5.4.0-24&fd00:0:0:1::-64")));
    // An older one of another node's shares it.
    let leases = [
        lease("10.5.1.0-24&fd00:0:0:5::-64", "192.0.2.2", Some("fd18::2"), 1),
        lease("10.5.1.0-24", "192.0.2.1", None, 2),
    ];
    let decision = decide(&dual(), &listing(&leases), &ME, None, &mut first).unwrap();
    assert_eq!(decision.action, Action::Take(key("10.5.2.0-24&fd00:0:0:1::-64")));
    // Of two of ours the older one's.
    let leases = [
        lease("10.5.8.0-24", "192.0.2.1", None, 2),
        lease("10.5.9.0-24", "192.0.2.1", None, 1),
    ];
    let decision = decide(&dual(), &listing(&leases), &ME, None, &mut first).unwrap();
    assert_eq!(decision.action, Action::Take(key("10.5.9.0-24&fd00:0:0:1::-64")));
    assert_eq!(decision.also_ours, keys(&["10.5.8.0-24", "10.5.9.0-24"]));
}

#[test]
fn decide_when_ipv6_only_finds_the_own_lease_by_ipv6_and_not_by_zero() {
    let leases = [
        lease("0.0.0.0-0&fd00:0:0:1::-64", "0.0.0.0", Some("fd18::2"), 1),
        lease("0.0.0.0-0&fd00:0:0:2::-64", "0.0.0.0", Some("fd18::1"), 2),
    ];
    let me = PublicIps { v4: None, ..ME };
    let decision = decide(&v6(), &listing(&leases), &me, None, &mut first).unwrap();
    assert_eq!(
        decision,
        Decision {
            action: Action::Reuse(leases[1].clone()),
            also_ours: vec![]
        }
    );
    let stranger = PublicIps {
        v4: None,
        v6: "fd18::3".parse().ok(),
    };
    let decision = decide(&v6(), &listing(&leases), &stranger, None, &mut first).unwrap();
    assert_eq!(decision.action, Action::Take(key("0.0.0.0-0&fd00:0:0:3::-64")));
    let nobody = PublicIps::default();
    let decision = decide(&v4(), &listing(&leases), &nobody, None, &mut first).unwrap();
    assert_eq!(
        decision,
        Decision {
            action: Action::Take(key("10.5.1.0-24")),
            also_ours: vec![]
        }
    );
}

#[test]
fn decide_when_another_node_holds_an_older_overlapping_lease_gives_way() {
    let older = lease("10.5.4.0-22", "192.0.2.9", None, 1);
    let mine = lease("10.5.5.0-24", "192.0.2.1", None, 2);
    let decision = decide(
        &v4(),
        &listing(&[older.clone(), mine.clone()]),
        &ME,
        Some(mine.subnet),
        &mut first,
    )
    .unwrap();
    assert_eq!(decision.action, Action::Take(key("10.5.1.0-24")));
    assert_eq!(decision.also_ours, [mine.subnet]);
    let younger = Lease { created: 3, ..older };
    let decision = decide(&v4(), &listing(&[younger, mine.clone()]), &ME, None, &mut first).unwrap();
    assert_eq!(decision.action, Action::Reuse(mine));
}

#[test]
fn decide_when_entries_only_look_like_leases_does_not_take_their_keys() {
    let mut listing = listing(&[]);
    for bad in ["10.5.1.0-24", "10.5.2.7-24", "10.5.3.0-024", "foo"] {
        listing.rejected.push(Rejected {
            key: bad.into(),
            reason: "bad value".into(),
        });
    }
    let decision = decide(&v4(), &listing, &ME, None, &mut first).unwrap();
    assert_eq!(decision.action, Action::Take(key("10.5.4.0-24")));
}

#[test]
fn own_when_ipv4_is_on_by_that_and_otherwise_or_without_one_by_ipv6() {
    let of = |ip, ip6| lease("10.5.1.0-24", ip, ip6, 1);
    for (config, lease, expected) in [
        (v4(), of("192.0.2.1", None), true),
        (v4(), of("192.0.2.1", Some("fd18::9")), true),
        (v4(), of("192.0.2.9", Some("fd18::1")), false),
        (v4(), of("0.0.0.0", Some("fd18::1")), true),
        (v4(), of("0.0.0.0", Some("fd18::9")), false),
        (v4(), of("0.0.0.0", None), false),
        (v6(), of("192.0.2.9", Some("fd18::1")), true),
        (v6(), of("192.0.2.1", Some("fd18::9")), false),
    ] {
        assert_eq!(ME.own(&config, &lease), expected, "{lease:?}");
    }
    assert!(!PublicIps::default().own(&v6(), &of("0.0.0.0", None)));
}

#[test]
fn compatible_when_outside_the_asked_range_not() {
    let config = config(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.16.0","SubnetMax":"10.5.32.0"}"#);
    for (text, expected) in [
        ("10.5.15.0-24", false),
        ("10.5.16.0-24", true),
        ("10.5.32.0-24", true),
        ("10.5.33.0-24", false),
    ] {
        assert_eq!(is_compatible(&config, &key(text)), expected, "{text}");
    }
}

#[test]
fn rival_when_older_overlapping_and_anothers_only() {
    let mine = lease("10.5.5.0-24", "192.0.2.1", None, 5);
    let rival = |other: Lease| {
        let listing = listing(&[mine.clone(), other]);
        older_rival(&v4(), &listing, &ME, &mine).map(|lease| lease.created)
    };
    assert_eq!(rival(lease("10.5.4.0-22", "192.0.2.9", None, 4)), Some(4));
    assert_eq!(rival(lease("10.5.4.0-22", "192.0.2.9", None, 6)), None, "younger");
    assert_eq!(rival(lease("10.5.4.0-22", "192.0.2.1", None, 4)), None, "our own");
    assert_eq!(
        rival(lease("10.5.6.0-24", "192.0.2.9", None, 4)),
        None,
        "elsewhere"
    );
    // Made in one transaction: the smaller key wins, for both.
    assert_eq!(rival(lease("10.5.4.0-22", "192.0.2.9", None, 5)), Some(5));
    assert_eq!(rival(lease("10.5.5.0-25", "192.0.2.9", None, 5)), None);
    // Nobody is a rival of himself, by whatever address he is looked at.
    let stranger = PublicIps::default();
    assert_eq!(
        older_rival(&v4(), &listing(std::slice::from_ref(&mine)), &stranger, &mine),
        None
    );
}

/// Leases of any size around the one that is asked for.
#[test]
fn choose_when_neighbours_are_taken_looks_at_the_first_and_last_address() {
    let previous = key("10.5.200.0-24");
    let taken = |nets: &[&str]| -> Vec<Subnet> {
        let nets = nets.iter().map(|net| net.parse().unwrap());
        nets.map(|net| Subnet::new(Some(net), None).unwrap()).collect()
    };
    let free = Ok(previous);
    let busy = Ok(key("10.5.1.0-24"));
    for (nets, expected) in [
        (&["10.5.201.0/24"][..], &free),
        (&["10.5.199.0/24"], &free),
        (&["10.5.199.0/24", "10.5.201.0/24"], &free),
        (&["10.5.1.0/24", "10.5.2.0/24", "10.5.201.0/24"], &free),
        (&["10.5.200.0/32"], &busy),
        (&["10.5.200.255/32"], &busy),
        (&["10.5.199.0/24", "10.5.200.0/32", "10.5.201.0/24"], &busy),
    ] {
        let chosen = choose(&v4(), &taken(nets), Some(previous), &mut first);
        assert_eq!(&chosen, expected, "{nets:?}");
    }
    // One inside another: the walk over them must not stop at the end of the smaller.
    let nested = taken(&["10.5.128.0/17", "10.5.129.0/24", "10.5.130.0/24"]);
    assert_eq!(choose(&v4(), &nested, Some(previous), &mut first), busy);
    for (nets, expected) in [
        (&["10.5.1.0/32"][..], "10.5.2.0-24"),
        (&["10.5.1.255/32"], "10.5.2.0-24"),
        (&["10.5.2.0/24"], "10.5.1.0-24"),
        (&["10.5.0.0/24"], "10.5.1.0-24"),
        (&["10.5.0.0/23", "10.5.2.0/32", "10.5.3.0/24"], "10.5.4.0-24"),
    ] {
        assert_eq!(
            choose(&v4(), &taken(nets), None, &mut first),
            Ok(key(expected)),
            "{nets:?}"
        );
    }
}

#[test]
fn decide_when_somebodys_entry_is_all_of_the_network_or_more_then_it_is_in_nobodys_way() {
    let wide: Vec<Lease> = ["0.0.0.0-1", "10.0.0.0-8", "10.5.0.0-16", "0.0.0.0-0&8000::-1"]
        .iter()
        .map(|key| lease(key, "192.0.2.66", None, 1))
        .collect();
    let mine = lease("10.5.1.0-24", "192.0.2.1", None, 9);
    let decision = decide(&v4(), &listing(&wide), &ME, None, &mut first).unwrap();
    assert_eq!(decision.action, Action::Take(mine.subnet));
    let mut all = listing(&wide);
    all.leases.insert(mine.subnet, mine.clone());
    assert_eq!(older_rival(&v4(), &all, &ME, &mine), None);
    let decision = decide(&v4(), &all, &ME, None, &mut first).unwrap();
    assert_eq!(decision.action, Action::Reuse(mine.clone()));
    // What is a part of it is somebody's.
    let half = lease("10.5.0.0-17", "192.0.2.66", None, 2);
    all.leases.insert(half.subnet, half.clone());
    assert_eq!(older_rival(&v4(), &all, &ME, &mine), Some(&half));
}
