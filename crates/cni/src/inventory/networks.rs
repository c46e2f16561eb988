//! The networks that have reservations: which of them are flannel's, and how much room there is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Place, Reservation};
use crate::call::{Call, Environment};
use crate::flannel::{state, subnet_env};
use crate::host_local::config::Config;
use crate::host_local::ranges::{RangeConfig, RangeSet};
use crate::json::{self, Object};

/// A network's name that is flannel's wherever it is found: every shipped configuration has it.
const CUSTOMARY: &str = "cbr0";

/// A network with a folder of reservations.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Flannel's plugin has made it; others' are shown, but only freed by name.
    pub is_flannels: bool,
    /// What its addresses are taken from, where that is known.
    pub pools: Vec<Pool>,
}

/// Addresses that are given to pods.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// First to last.
    pub ranges: RangeSet,
    /// How many there are, without gateways.
    pub size: u128,
    /// How many nobody holds, in any network that takes from the same subnet.
    pub free: u128,
}

/// Every network of these names.
pub fn all(place: &Place, names: Vec<String>, reservations: &[Reservation]) -> Vec<Network> {
    let saved = saved(&place.flannel_dir);
    let env = subnet_env::load(&place.subnet_file).ok();
    let subnets: Vec<_> = env.iter().flat_map(|env| [env.subnet, env.subnet6]).collect();
    let subnets: Vec<_> = subnets.into_iter().flatten().collect();
    let is_flannels = |name: &String| {
        let mut own = reservations.iter().filter(|r| r.network == *name).peekable();
        let known = |r: &Reservation| state::knows(&place.flannel_dir, &r.owner.container);
        let inside = |r: &Reservation| subnets.iter().any(|net| net.contains(&r.address));
        name == CUSTOMARY
            || saved.contains_key(name)
            || reservations.iter().any(|r| r.network == *name && known(r))
            || own.peek().is_some() && own.all(inside)
    };
    let flannels: BTreeSet<&String> = names.iter().filter(|name| is_flannels(name)).collect();
    let count = |name: &String, ranges: RangeSet| {
        let shared = flannels.contains(name);
        let of_it = |r: &&Reservation| r.network == *name || shared && flannels.contains(&r.network);
        let held: BTreeSet<IpAddr> = reservations.iter().filter(of_it).map(|r| r.address).collect();
        let held = held.iter().filter(|ip| ranges.range_for(**ip).is_some()).count();
        let size = ranges.size();
        Pool {
            ranges,
            size,
            free: size.saturating_sub(held as u128),
        }
    };
    let pools = |name: &String| -> Vec<Pool> {
        let current = subnets
            .iter()
            .filter(|_| flannels.contains(name))
            .map(|net| RangeConfig {
                subnet: Some(*net),
                ..RangeConfig::default()
            });
        let current: Vec<_> = current
            .filter_map(|range| RangeSet::check(&[range]).ok())
            .collect();
        let sets = match current.is_empty() {
            true => saved.get(name).cloned().unwrap_or_default(),
            false => current,
        };
        sets.into_iter().map(|set| count(name, set)).collect()
    };
    let network = |name: &String| Network {
        name: name.clone(),
        is_flannels: flannels.contains(name),
        pools: pools(name),
    };
    names.iter().map(network).collect()
}

/// Networks of saved configurations, with the ranges of one of them.
fn saved(flannel_dir: &str) -> BTreeMap<String, Vec<RangeSet>> {
    let mut found = BTreeMap::new();
    for attachment in state::all(flannel_dir).unwrap_or_default() {
        let Ok(config) = json::parse(&attachment.text) else {
            continue;
        };
        let name = Object::of(&config)
            .ok()
            .and_then(|o| o.string("name").ok()?.map(str::to_owned));
        let Some(name) = name.filter(|name| !found.contains_key(name)) else {
            continue;
        };
        let env = Environment {
            command: "DEL".to_owned(),
            ..Environment::default()
        };
        let config = Call::check(env, attachment.text).and_then(|call| Config::load(&call));
        found.insert(name, config.map(|config| config.sets).unwrap_or_default());
    }
    found
}
