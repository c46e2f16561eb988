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
    let taken = keys(&["10.5.0.4-30", "10.5.0.8-29", "10.9.0.0-24"]);
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
fn decide_when_own_lease_is_incompatible_takes_another_and_leaves_the_old_for_later() {
    let leases = [
        lease("10.5.1.0-24", "192.0.2.1", None, 1),
        lease("10.5.2.0-24", "192.0.2.2", None, 2),
    ];
    let decision = decide(
        &dual(),
        &listing(&leases),
        &ME,
        Some(key("10.5.1.0-24")),
        &mut first,
    )
    .unwrap();
    assert_eq!(decision.action, Action::Take(key("10.5.3.0-24&fd00:0:0:1::-64")));
    assert_eq!(decision.also_ours, keys(&["10.5.1.0-24"]));
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
