//! The state as data.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fabric::lease::{Snapshot, snapshot_from};
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
    /// Key text of the own lease.
    pub lease: Option<String>,
    /// When it ends, seconds since 1970; `None` for a reservation. After that it is no longer ours to use.
    pub lease_expires: Option<u64>,
    /// The last complete listing of the registry.
    pub cache: Option<CachedSnapshot>,
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
            lease_expires: None,
            cache: None,
        }
    }
}

/// A complete listing, as the registry gave it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedSnapshot {
    /// Key prefix it was listed under: under another one it means nothing.
    pub prefix: String,
    /// The network config's JSON.
    pub config: String,
    /// Revision of the registry.
    pub revision: i64,
    /// When it was saved, seconds since 1970.
    pub saved: u64,
    /// The leases.
    pub leases: Vec<CachedLease>,
}

/// A lease, as the registry gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedLease {
    /// Key text.
    pub key: String,
    /// The value's JSON.
    pub value: String,
    /// Create revision.
    pub created: i64,
}

impl CachedSnapshot {
    /// Takes a snapshot down.
    pub fn of(snapshot: &Snapshot, prefix: &str, config: &str, saved: u64) -> CachedSnapshot {
        let leases = snapshot.leases.values().map(|lease| CachedLease {
            key: lease.subnet.to_string(),
            value: lease.attributes.to_json(),
            created: lease.created,
        });
        CachedSnapshot {
            prefix: prefix.to_owned(),
            config: config.to_owned(),
            revision: snapshot.revision,
            saved,
            leases: leases.collect(),
        }
    }

    /// The snapshot again; an entry that does not parse is among the rejected ones.
    pub fn snapshot(&self) -> Snapshot {
        snapshot_from(
            self.revision,
            self.leases
                .iter()
                .map(|lease| (&lease.key, &lease.value, lease.created)),
        )
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

    /// The own lease, as long as it is ours: key text, unless `now` (seconds since 1970) is past its end.
    pub fn live_lease(&self, now: u64) -> Option<&str> {
        self.lease
            .as_deref()
            .filter(|_| self.lease_expires.is_none_or(|end| now < end))
    }

    /// The cached listing, if it was made under this prefix.
    pub fn cache_for(&self, prefix: &str) -> Option<&CachedSnapshot> {
        self.cache.as_ref().filter(|cache| cache.prefix == prefix)
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
