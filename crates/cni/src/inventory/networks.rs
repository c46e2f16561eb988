//! The networks that have reservations: which of them are flannel's, and how much room there is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Folders, Reservation};
use crate::call::{Call, Environment};
use crate::flannel::subnet_env;
use crate::host_local::HOST_LOCAL;
use crate::host_local::config::{DATA_DIR, HostLocalConfig};
use crate::host_local::ranges::{RangeConfig, RangeSet};
use crate::json::{self, JsonObject};
use crate::saved;

/// A network's name that is flannel's wherever it is found: every shipped configuration has it.
const CUSTOMARY: &str = "cbr0";

/// A network with a folder of reservations.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// The record of an attachment of flannel's names it; others' are shown, but only freed by name.
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
pub fn all(folders: &Folders, names: Vec<String>, reservations: &[Reservation]) -> Vec<Network> {
    let saved = saved(folders);
    let env = subnet_env::load(&folders.subnet_file).ok();
    let subnets: Vec<_> = env.iter().flat_map(|env| [env.subnet, env.subnet6]).collect();
    let subnets: Vec<_> = subnets.into_iter().flatten().collect();
    // Not that a container of flannel's is in it, nor what its addresses are: pods have interfaces of other plugins' beside flannel's.
    let is_flannels = |name: &String| name == CUSTOMARY || saved.contains_key(name);
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

/// The network whose addresses the record of an attachment reserves in a folder of host-local's, if it does.
pub fn network_of(record: &[u8], data_dir: &str) -> Option<String> {
    let config = json::parse(record).ok()?;
    let config = JsonObject::of(&config).ok()?;
    let ipam = config.object("ipam").ok()?;
    let folder = ipam.string("dataDir").ok()?.filter(|dir| !dir.is_empty());
    let reserves = ipam.string("type").ok()? == Some(HOST_LOCAL) && folder.unwrap_or(DATA_DIR) == data_dir;
    let name = config.string("name").ok()??;
    reserves.then(|| name.to_owned())
}

/// Networks that records of flannel's attachments name, with the ranges of one of them.
fn saved(folders: &Folders) -> BTreeMap<String, Vec<RangeSet>> {
    let mut found = BTreeMap::new();
    for attachment in saved::all(&folders.flannel_dir).unwrap_or_default() {
        let name = network_of(&attachment.text, &folders.data_dir);
        let Some(name) = name.filter(|name| !found.contains_key(name)) else {
            continue;
        };
        let env = Environment {
            command: "DEL".to_owned(),
            ..Environment::default()
        };
        let config = Call::check(env, attachment.text).and_then(|call| HostLocalConfig::load(&call));
        found.insert(name, config.map(|config| config.sets).unwrap_or_default());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_when_it_reserves_elsewhere_names_no_network_here() {
        let network = |text: &str| network_of(text.as_bytes(), "/x/networks");
        let here = r#"{"name":"n","type":"bridge","ipam":{"type":"host-local","dataDir":"/x/networks"}}"#;
        assert_eq!(network(here).as_deref(), Some("n"));
        assert_eq!(network(&here.replace("/x/", "/y/")), None);
        assert_eq!(network(&here.replace("host-local", "dhcp")), None);
        assert_eq!(network(r#"{"name":"n","ipam":{"type":"host-local"}}"#), None);
        for broken in [
            "",
            "{",
            "7",
            r#"{"name":7,"ipam":{"type":"host-local","dataDir":"/x/networks"}}"#,
        ] {
            assert_eq!(network(broken), None, "{broken}");
        }
    }

    use super::super::{Fate, tests::Room};
    use crate::owner::Owner;
    use crate::saved::SavedConfigs;
    use std::time::SystemTime;

    #[test]
    fn networks_when_records_or_custom_say_so_are_flannels_and_share_their_room() {
        let room = Room::new();
        let folders = room.folders();
        let held = |network: &str, ip: &str| Reservation {
            network: network.into(),
            address: ip.parse().unwrap(),
            owner: Owner::new("c", "eth0"),
            since: SystemTime::UNIX_EPOCH,
            fate: Fate::Alive,
            why: String::new(),
        };
        let record = format!(
            r#"{{"name":"pods","type":"bridge","ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.9.0.0/29"}}]]}}}}"#,
            folders.data_dir
        );
        let saved = SavedConfigs::create(&folders.flannel_dir, "c1", "eth0").unwrap();
        saved.begin(&record).unwrap();
        let reservations = [
            held("cbr0", "10.244.7.2"),
            held("pods", "10.244.7.3"),
            held("pods", "10.244.7.2"),
            held("other", "10.244.7.4"),
            held("pods", "10.9.0.2"),
        ];
        let all = || {
            let names = ["cbr0", "other", "pods"].map(str::to_owned).to_vec();
            let pool = |pool: &Pool| format!("{} {} {}", pool.ranges, pool.size, pool.free);
            let network = |n: &Network| {
                (
                    n.name.clone(),
                    n.is_flannels,
                    n.pools.iter().map(pool).collect::<Vec<_>>(),
                )
            };
            all(&folders, names, &reservations)
                .iter()
                .map(network)
                .collect::<Vec<_>>()
        };
        let saved = vec!["10.9.0.1-10.9.0.6 5 4".to_owned()];
        assert_eq!(
            all(),
            [
                ("cbr0".to_owned(), true, vec![]),
                ("other".to_owned(), false, vec![]),
                ("pods".to_owned(), true, saved)
            ]
        );
        let env = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        std::fs::write(&folders.subnet_file, env).unwrap();
        let current = vec!["10.244.7.1-10.244.7.254 253 251".to_owned()];
        assert_eq!(
            all(),
            [
                ("cbr0".to_owned(), true, current.clone()),
                ("other".to_owned(), false, vec![]),
                ("pods".to_owned(), true, current)
            ]
        );
    }
}
