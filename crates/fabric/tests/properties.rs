//! Properties of leases, config, allocation and subnet.env over generated values, against naive models where there is one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use fabric::alloc::{Action, AllocError, PublicIps, choose, decide, is_compatible, older_rival};
use fabric::config::NetworkConfig;
use fabric::go_json::compact;
use fabric::lease::{Attributes, Lease, Rejected, Snapshot, Subnet, snapshot_from};
use fabric::object::Family;
use fabric::subnet_env::{SubnetEnv, read_previous, read_strict, repair};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;

fn v4_net(lens: std::ops::RangeInclusive<u8>) -> impl Strategy<Value = Ipv4Net> {
    (any::<u32>(), lens).prop_map(|(ip, len)| Ipv4Net::new(ip.into(), len).unwrap().trunc())
}

fn v6_net(lens: std::ops::RangeInclusive<u8>) -> impl Strategy<Value = Ipv6Net> {
    // Mapped IPv4 addresses are no part of any IPv6 network here.
    let ip = any::<u128>().prop_map(|ip| ip | 1 << 127);
    (ip, lens).prop_map(|(ip, len)| Ipv6Net::new(ip.into(), len).unwrap().trunc())
}

fn subnet() -> impl Strategy<Value = Subnet> {
    let both = (
        proptest::option::of(v4_net(1..=31)),
        proptest::option::of(v6_net(1..=127)),
    );
    both.prop_filter_map("one half at least", |(v4, v6)| Subnet::new(v4, v6))
}

fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Bool(true)),
        any::<i64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    let value = leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            proptest::collection::btree_map(any::<String>(), inner, 0..4)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    });
    value.prop_map(|value| compact(&serde_json::to_string_pretty(&value).unwrap()).unwrap())
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let ip6 = proptest::option::of(any::<u128>().prop_map(|ip| Ipv6Addr::from(ip | 1 << 127)));
    let data = || proptest::option::of(json().prop_map(String::into_boxed_str));
    (any::<u32>(), ip6, any::<String>(), data(), data()).prop_map(|(ip, public_ip6, kind, data, data6)| {
        Attributes {
            public_ip: Ipv4Addr::from(ip),
            public_ip6,
            backend_type: kind.into(),
            data,
            data6,
        }
    })
}

/// A network of few subnets, so that naive models stay fast, as config JSON.
fn small_config() -> impl Strategy<Value = NetworkConfig> {
    let v4 = (v4_net(8..=26), 2..=4_u8).prop_map(|(net, more)| (net, net.prefix_len() + more));
    let v6 = (v6_net(32..=120), 2..=4_u8).prop_map(|(net, more)| (net, net.prefix_len() + more));
    (v4, v6, 1..=3_u8).prop_map(|((v4, len), (v6, len6), families)| {
        let json = format!(
            r#"{{"EnableIPv4":{},"Network":"{v4}","SubnetLen":{len},"EnableIPv6":{},"IPv6Network":"{v6}","IPv6SubnetLen":{len6}}}"#,
            families & 1 != 0,
            families & 2 != 0
        );
        NetworkConfig::parse(json.as_bytes()).unwrap()
    })
}

/// A subnet in or around a config's spaces, of about the right length.
fn near(config: &NetworkConfig, seed: u64) -> Option<Subnet> {
    let half = |family: Family, seed: u64| -> Option<IpNet> {
        let space = config.space(family)?;
        let len = space
            .subnet_len
            .saturating_add_signed([0, 0, 0, -1, 1, -2][(seed % 6) as usize])
            .min(family.bits() - 1);
        let count = 1_u64 << (space.subnet_len - space.network.prefix_len());
        let base = space
            .network
            .subnets(space.subnet_len)
            .ok()?
            .nth((seed / 6 % count) as usize)?;
        Some(IpNet::new(base.addr(), len).ok()?.trunc())
    };
    let v4 = half(Family::V4, seed);
    let v6 = half(Family::V6, seed >> 20);
    let (v4, v6) = match seed >> 60 {
        0 => (v4, None),
        1 => (None, v6),
        _ => (v4, v6),
    };
    let v4 = v4.and_then(|net| if let IpNet::V4(net) = net { Some(net) } else { None });
    let v6 = v6.and_then(|net| if let IpNet::V6(net) = net { Some(net) } else { None });
    Subnet::new(v4, v6)
}

/// Every subnet of a space that overlaps nothing taken, in order.
fn free(config: &NetworkConfig, family: Family, taken: &[Subnet]) -> Vec<IpNet> {
    let space = config.space(family).unwrap();
    let all = space.network.subnets(space.subnet_len).unwrap();
    let clear = |net: &IpNet| {
        let overlaps = |other: IpNet| net.contains(&other) || other.contains(net);
        !taken.iter().filter_map(|subnet| subnet.of(family)).any(overlaps)
    };
    all.filter(|net| space.min <= net.addr() && net.addr() <= space.max)
        .filter(clear)
        .collect()
}

proptest! {
    #[test]
    fn key_when_printed_reads_back_and_no_other_spelling_does(subnet in subnet(), spoil in any::<(usize, char)>()) {
        let text = subnet.to_string();
        prop_assert_eq!(Subnet::parse_key(&text), Ok(subnet));
        let mut spoilt: Vec<char> = text.chars().collect();
        let at = spoil.0 % spoilt.len();
        spoilt[at] = spoil.1;
        let spoilt: String = spoilt.into_iter().collect();
        if let Ok(other) = Subnet::parse_key(&spoilt) {
            prop_assert_eq!(other.to_string(), spoilt);
        }
    }

    #[test]
    fn overlap_when_asked_either_way_is_the_same_and_holds_for_parts(a in subnet(), b in subnet()) {
        prop_assert_eq!(a.overlaps(&b), b.overlaps(&a));
        prop_assert!(a.overlaps(&a));
        if let Some(v4) = a.v4 {
            let whole = Subnet::new(Ipv4Net::new(v4.addr(), 1).ok(), b.v6).unwrap();
            prop_assert!(whole.overlaps(&a));
        }
    }

    #[test]
    fn value_when_written_reads_back_equal_also_with_blanks_and_unknown_fields(attributes in attributes()) {
        let json = attributes.to_json();
        prop_assert_eq!(Attributes::parse(json.as_bytes()), Ok(attributes.clone()));
        let spaced = format!(" {{ \"later\" : [ {{ }} ] ,\n{}", &json[1..]);
        prop_assert_eq!(Attributes::parse(spaced.as_bytes()), Ok(attributes));
        prop_assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok());
        let unescaped = ['<', '>', '&', '\u{2028}', '\u{2029}'];
        prop_assert!(!json.contains(unescaped));
    }

    #[test]
    fn snapshot_when_bad_entries_are_mixed_in_holds_every_good_one(
        good in proptest::collection::btree_map(subnet(), attributes(), 0..8),
        bad in proptest::collection::vec((any::<String>(), any::<Vec<u8>>()), 0..8),
        order in any::<u64>(),
    ) {
        let mut entries: Vec<(String, Vec<u8>)> =
            good.iter().map(|(subnet, a)| (subnet.to_string(), a.to_json().into_bytes())).chain(bad.clone()).collect();
        entries.sort_by_key(|(key, _)| key.bytes().fold(order, |sum, b| sum.rotate_left(7) ^ u64::from(b)));
        let snapshot = snapshot_from(9, entries.into_iter().map(|(key, value)| (key, value, 1)));
        prop_assert_eq!(snapshot.leases.len(), good.len());
        prop_assert_eq!(snapshot.rejected.len(), bad.len());
        for (subnet, attributes) in good {
            prop_assert_eq!(&snapshot.leases[&subnet].attributes, &attributes);
        }
    }

    #[test]
    fn config_when_accepted_holds_together_and_when_refused_names_a_field(
        net in v4_net(0..=32), len in 0..=40_u32, min in any::<Option<u32>>(), max in any::<Option<u32>>(), inside in any::<bool>(),
    ) {
        let size = 1_u64 << (32 - len.clamp(1, 32));
        let place = |ip: u32| match inside {
            true => Ipv4Addr::from(u32::from(net.addr()) | (ip & u32::from(net.hostmask()) & !(size - 1) as u32)),
            false => Ipv4Addr::from(ip),
        };
        let mut json = format!(r#"{{"Network":"{net}","SubnetLen":{len}"#);
        for (name, ip) in [("SubnetMin", min), ("SubnetMax", max)] {
            if let Some(ip) = ip {
                json.push_str(&format!(r#","{name}":"{}""#, place(ip)));
            }
        }
        json.push('}');
        match NetworkConfig::parse(json.as_bytes()) {
            Ok(config) => {
                let space = config.v4.unwrap();
                prop_assert_eq!(space.network, IpNet::V4(net));
                prop_assert!(net.prefix_len() + 2 <= space.subnet_len && space.subnet_len <= 30);
                prop_assert!(len == 0 || u32::from(space.subnet_len) == len);
                prop_assert!(space.min <= space.max);
                for ip in [space.min, space.max] {
                    let subnet = IpNet::new(ip, space.subnet_len).unwrap();
                    prop_assert!(subnet.network() == ip && space.network.contains(&subnet));
                }
            }
            Err(error) => {
                let text = error.to_string();
                let named = ["Network is", "SubnetLen is", "SubnetMin is", "SubnetMax is"];
                prop_assert!(named.iter().any(|name| text.contains(name)) && text.contains("expected"), "{}", text);
            }
        }
    }

    #[test]
    fn choice_when_made_is_one_of_the_first_hundred_free_and_fails_only_without_any(
        config in small_config(), seeds in proptest::collection::vec(any::<u64>(), 0..40), pick in any::<usize>(), previous in any::<u64>(),
    ) {
        let taken: Vec<Subnet> = seeds.into_iter().filter_map(|seed| near(&config, seed)).collect();
        let previous = near(&config, previous);
        match choose(&config, &taken, previous, &mut |n| pick % n) {
            Ok(subnet) => {
                prop_assert!(is_compatible(&config, &subnet));
                prop_assert!(!taken.iter().any(|other| other.overlaps(&subnet)));
                for family in config.families() {
                    let (half, free) = (subnet.of(family).unwrap(), free(&config, family, &taken));
                    let kept = previous.and_then(|subnet| subnet.of(family)).filter(|net| free.contains(net));
                    match kept {
                        Some(kept) => prop_assert_eq!(half, kept),
                        None => prop_assert_eq!(half, free[pick % free.len().min(100)]),
                    }
                }
            }
            Err(AllocError::OutOfSubnets(space, _)) => {
                prop_assert!(free(&config, Family::of_net(space.network), &taken).is_empty());
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn decision_when_made_never_takes_what_is_held_and_never_reuses_what_is_not_ours(
        config in small_config(),
        seeds in proptest::collection::vec((any::<u64>(), 0..3_u32, 0..3_u128, 0..9_i64), 0..12),
        odd in proptest::collection::vec(any::<u64>(), 0..3),
        previous in any::<u64>(),
    ) {
        let leases: BTreeMap<Subnet, Lease> = seeds
            .into_iter()
            .filter_map(|(seed, ip, ip6, created)| {
                let attributes = Attributes {
                    public_ip: Ipv4Addr::from(ip),
                    public_ip6: (ip6 > 0).then(|| Ipv6Addr::from(ip6)),
                    backend_type: "vxlan".into(),
                    data: None,
                    data6: None,
                };
                let subnet = near(&config, seed)?;
                Some((subnet, Lease { subnet, attributes, created }))
            })
            .collect();
        let rejected: Vec<Rejected> = odd
            .into_iter()
            .filter_map(|seed| near(&config, seed))
            .map(|subnet| Rejected { key: subnet.to_string(), reason: "bad value".into() })
            .collect();
        let listing = Snapshot { revision: 10, leases, rejected };
        let me = PublicIps { v4: Some(Ipv4Addr::from(1)), v6: Some(Ipv6Addr::from(1)) };
        let Ok(decision) = decide(&config, &listing, &me, near(&config, previous), &mut |_| 0) else { return Ok(()) };
        for subnet in &decision.also_ours {
            prop_assert!(me.own(&config, &listing.leases[subnet]));
        }
        match decision.action {
            Action::Reuse(lease) => {
                prop_assert!(is_compatible(&config, &lease.subnet) && me.own(&config, &lease));
                prop_assert!(older_rival(&config, &listing, &me, &lease).is_none());
                prop_assert!(!decision.also_ours.contains(&lease.subnet));
                prop_assert_eq!(listing.leases.get(&lease.subnet), Some(&lease));
            }
            Action::Take(subnet) => {
                prop_assert!(is_compatible(&config, &subnet));
                // What is all of a Network or more is nobody's; a half of ours may stay ours, as it is.
                let pairs = |other: &Subnet| {
                    let part = |family| {
                        let (other, taken) = (other.of(family)?, subnet.of(family)?);
                        let is_part = other.prefix_len() > config.space(family)?.network.prefix_len();
                        (is_part && (other.contains(&taken) || taken.contains(&other))).then_some((other, taken))
                    };
                    Family::BOTH.into_iter().filter_map(part).collect::<Vec<_>>()
                };
                for (other, lease) in &listing.leases {
                    let is_mine = me.own(&config, lease);
                    prop_assert!(pairs(other).iter().all(|(other, taken)| is_mine && other == taken), "{} {}", other, subnet);
                }
                for entry in &listing.rejected {
                    prop_assert!(pairs(&Subnet::parse_key(&entry.key).unwrap()).is_empty(), "{}", entry.key);
                }
            }
        }
    }

    #[test]
    fn subnet_env_when_rendered_reads_back_by_both_readers_and_survives_foreign_lines(
        v4 in proptest::option::of((v4_net(8..=28), v4_net(9..=30))), v6 in proptest::option::of((v6_net(16..=64), v6_net(64..=126))),
        mtu in any::<u32>(), ipmasq in any::<bool>(), foreign in proptest::collection::vec("[A-Z_]{1,8}=[ -~]{0,12}|#[ -~]{0,12}", 0..5),
    ) {
        let env = SubnetEnv {
            network: v4.map(|(network, _)| network),
            subnet: v4.map(|(_, subnet)| subnet),
            network6: v6.map(|(network, _)| network),
            subnet6: v6.map(|(_, subnet)| subnet),
            mtu,
            ipmasq,
        };
        let text = env.render();
        let previous = read_previous(&text);
        prop_assert_eq!((previous.network, previous.subnet), (env.network, env.subnet));
        prop_assert_eq!((previous.network6, previous.subnet6), (env.network6, env.subnet6));
        let strict = |text: &str| read_strict("f", text.as_bytes());
        if v4.is_some() || v6.is_some() {
            let pods = strict(&text).unwrap();
            prop_assert_eq!((pods.subnet, pods.subnet6), (env.subnet.map(IpNet::V4), env.subnet6.map(IpNet::V6)));
            prop_assert_eq!((pods.mtu, pods.ipmasq), (mtu, ipmasq));
            let stale = SubnetEnv { mtu: mtu.wrapping_add(1), ..env }.render();
            let damaged = format!("{}\n{stale}", foreign.join("\n"));
            let repaired = repair(&damaged, &env);
            prop_assert_eq!(strict(&repaired), Ok(pods));
            for line in &foreign {
                prop_assert!(repaired.lines().any(|kept| kept == line), "{} is gone", line);
            }
        } else {
            prop_assert!(strict(&text).is_err());
        }
    }
}
