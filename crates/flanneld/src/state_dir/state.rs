//! The state as data.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fabric::object::LinkName;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Format of what is written; a file of another one is not read.
const FORMAT: u32 = 1;
/// Former networks and devices kept: more than any host has seen.
const MOST_NAMES: usize = 64;

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    format: u32,
    /// The subnet file of the daemon whose state this is, for a human who looks at the folder.
    pub subnet_file: String,
    networks: Vec<IpNet>,
    links: Vec<String>,
    former_leases: BTreeMap<IpNet, Vec<IpAddr>>,
    /// Key text of the own lease: the subnet to ask for again, which the registry gives if nobody else has it.
    pub lease: Option<String>,
}

impl Default for State {
    fn default() -> State {
        State {
            format: FORMAT,
            subnet_file: String::new(),
            networks: Vec::new(),
            links: Vec::new(),
            former_leases: BTreeMap::new(),
            lease: None,
        }
    }
}

impl State {
    pub(super) fn check_format(&self) -> Result<(), String> {
        if self.format == FORMAT {
            Ok(())
        } else {
            Err(format!("format {}, expected {FORMAT}", self.format))
        }
    }

    /// Networks this host has been part of, the current one included.
    pub fn former_networks(&self) -> impl Iterator<Item = IpNet> {
        self.networks.iter().copied()
    }

    /// Records networks.
    pub fn add_networks(&mut self, networks: impl IntoIterator<Item = IpNet>) {
        add(
            &mut self.networks,
            networks.into_iter().map(|network| network.trunc()),
        );
    }

    /// Devices that were made here, the current ones included.
    pub fn former_links(&self) -> impl Iterator<Item = LinkName> {
        self.links.iter().filter_map(|name| LinkName::new(name))
    }

    /// Records devices.
    pub fn add_links(&mut self, links: impl IntoIterator<Item = LinkName>) {
        add(&mut self.links, links.into_iter().map(|link| link.to_string()));
    }

    /// Destinations that leases asked routes for, with their next hops: what allows to remove a predecessor's route.
    pub fn former_leases(&self) -> BTreeMap<IpNet, Vec<IpAddr>> {
        self.former_leases.clone()
    }

    /// Records what leases ask for now (destination and next hop), in place of what they asked for before.
    pub fn set_leases(&mut self, leases: impl IntoIterator<Item = (IpNet, IpAddr)>) {
        self.former_leases.clear();
        for (destination, hop) in leases {
            let hops = self.former_leases.entry(destination).or_default();
            if !hops.contains(&hop) {
                hops.push(hop);
            }
        }
    }
}

/// Appends what is not there yet and forgets the oldest beyond the bound.
fn add<T: PartialEq>(known: &mut Vec<T>, news: impl Iterator<Item = T>) {
    for item in news {
        if !known.contains(&item) {
            known.push(item);
        }
    }
    if known.len() > MOST_NAMES {
        known.drain(..known.len() - MOST_NAMES);
    }
}
