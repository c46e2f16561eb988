//! Against the rule as it is said: the oldest first, and whoever overlaps with nobody that has a place gets one.

use super::*;
use crate::plan::tests::lease;

fn subnet(key: &str) -> Subnet {
    Subnet::parse_key(key).unwrap()
}

fn halves(subnet: &Subnet) -> Vec<Half> {
    Family::BOTH
        .iter()
        .filter_map(|family| Some((subnet.of(*family)?, *subnet)))
        .collect()
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Which halves have a place.
fn expected(leases: &BTreeMap<Subnet, Lease>) -> BTreeSet<Half> {
    let mut order: Vec<Half> = leases.keys().flat_map(halves).collect();
    order.sort_by_key(|half| (rank(leases, &half.1), half.0));
    let mut held: Vec<Half> = Vec::new();
    for half in order {
        if !held.iter().any(|other| overlap(&other.0, &half.0)) {
            held.push(half);
        }
    }
    held.into_iter().collect()
}

fn check(seniority: &Seniority, leases: &BTreeMap<Subnet, Lease>) {
    let expected = expected(leases);
    let held: BTreeSet<Half> = seniority
        .held
        .iter()
        .map(|(net, subnet)| (*net, *subnet))
        .collect();
    assert_eq!(held, expected);
    let all: usize = leases.keys().map(|subnet| halves(subnet).len()).sum();
    assert_eq!(seniority.held.len() + seniority.lost.len(), all);
    assert_eq!(seniority.lengths.values().sum::<usize>(), all);
    for half in leases.keys().flat_map(halves) {
        let rivals = expected
            .iter()
            .filter(|other| overlap(&other.0, &half.0) && rank(leases, &other.1) < rank(leases, &half.1));
        // From the outside in.
        let first = rivals.min_by_key(|other| (!other.0.contains(&half.0), other.0));
        let holder = first.map(|other| other.1).filter(|_| !expected.contains(&half));
        assert_eq!(seniority.holder(&half), holder, "{half:?}");
    }
}

fn built(leases: &BTreeMap<Subnet, Lease>) -> Seniority {
    let mut order: Vec<Subnet> = leases.keys().copied().collect();
    order.sort_by_key(|subnet| rank(leases, subnet));
    Seniority::of(order.iter().flat_map(halves), leases)
}

/// splitmix64: the same numbers each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[test]
fn seniority_when_leases_come_change_and_go_then_as_from_the_beginning_and_as_the_rule_says() {
    let mut numbers = Numbers(7);
    for _ in 0..60 {
        let mut leases = BTreeMap::new();
        let mut seniority = Seniority::default();
        for _ in 0..60 {
            let length = 26 + numbers.below(5);
            let v4 = format!(
                "10.0.0.{}-{length}",
                numbers.below(64) >> (32 - length) << (32 - length)
            );
            let key = match numbers.below(3) {
                0 => v4,
                1 => format!("{v4}&fd00::{}-125", numbers.below(2) * 8),
                _ => format!(
                    "0.0.0.0-0&fd00::{}-{}",
                    numbers.below(2) * 8,
                    124 + numbers.below(2)
                ),
            };
            let Ok(subnet) = Subnet::parse_key(&key) else {
                continue;
            };
            let created = i64::try_from(numbers.below(12)).unwrap();
            let before: BTreeMap<Half, Option<Subnet>> = leases
                .keys()
                .flat_map(halves)
                .map(|half| (half, seniority.holder(&half)))
                .collect();
            let out = leases
                .remove(&subnet)
                .map(|_: Lease| halves(&subnet))
                .unwrap_or_default();
            let put = if numbers.below(3) > 0 {
                leases.insert(subnet, lease(&key, "{}", created));
                halves(&subnet)
            } else {
                Vec::new()
            };
            let changed = seniority.change(&out, &put, &leases);
            check(&seniority, &leases);
            check(&built(&leases), &leases);
            // What it says has changed is what was, and nothing else has.
            for half in leases.keys().flat_map(halves).filter(|half| half.1 != subnet) {
                let was = before.get(&half).copied().flatten();
                match changed.get(&half) {
                    Some(said) => assert_eq!(*said, was, "{half:?}"),
                    None => assert_eq!(seniority.holder(&half), was, "{half:?}"),
                }
            }
            for half in &out {
                assert_eq!(changed.get(half), before.get(half), "{half:?}");
            }
        }
    }
}

#[test]
fn seniority_when_one_that_has_lost_is_in_between_then_it_takes_no_place_from_the_youngest() {
    let mut leases = BTreeMap::new();
    for (key, created) in [("10.0.0.0-26", 1), ("10.0.0.0-25", 2), ("10.0.0.64-26", 3)] {
        leases.insert(subnet(key), lease(key, "{}", created));
    }
    let seniority = built(&leases);
    let holder = |key: &str| seniority.holder(&halves(&subnet(key))[0]);
    assert_eq!(holder("10.0.0.0-25"), Some(subnet("10.0.0.0-26")));
    assert_eq!(holder("10.0.0.64-26"), None);
    // One that nobody knows is the youngest of all.
    assert_eq!(rank(&leases, &subnet("10.0.0.0-27")).0, i64::MAX);
}
