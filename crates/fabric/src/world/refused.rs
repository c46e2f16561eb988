//! Registry entries that are no leases. What is kept of them is bounded, whatever they hold and however many there are; what is
//! gone is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::digest::fnv1a;
use crate::lease::{Rejected, Subnet};
use crate::object::{Family, Key, LinkName, Mac, Object, Objects};

/// Entries kept with their name and what is wrong with them; of the others there is a number.
const NAMED: usize = 256;
/// Entries that are counted. Beyond that they are as many or more.
const COUNTED: usize = 100_000;

/// Entries that are no leases, as far as they are kept.
#[derive(Debug, Default)]
pub struct Refused {
    named: BTreeMap<String, String>,
    /// Digests of the names of the others. Two with one digest count as one, which harms nobody.
    more: BTreeSet<u64>,
    /// Those that stand where leases do. All of them: a lease that cannot be read is not one that is gone.
    subnets: BTreeSet<Subnet>,
}

impl Refused {
    /// How many there are, as far as they are counted.
    pub fn len(&self) -> usize {
        self.named.len() + self.more.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.subnets.is_empty()
    }

    /// Names of those that are named, and what is wrong with them.
    pub fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().map(|(key, reason)| (&**key, &**reason))
    }

    /// What is wrong with an entry, if it is named.
    pub fn reason(&self, key: &str) -> Option<&str> {
        self.named.get(key).map(String::as_str)
    }

    /// Those that stand where leases do.
    pub fn subnets(&self) -> &BTreeSet<Subnet> {
        &self.subnets
    }

    /// Takes one in.
    pub(super) fn note(&mut self, entry: Rejected) {
        if let Ok(subnet) = Subnet::parse_key(&entry.key) {
            self.subnets.insert(subnet);
        }
        let digest = fnv1a(entry.key.as_bytes());
        let is_known = self.named.contains_key(&entry.key);
        if is_known || self.named.len() < NAMED && !self.more.contains(&digest) {
            self.named.insert(entry.key, entry.reason);
        } else if self.more.len() < COUNTED {
            self.more.insert(digest);
        }
    }

    /// It is gone, or a lease.
    pub(super) fn forget(&mut self, key: &str) {
        if self.named.remove(key).is_none() {
            self.more.remove(&fnv1a(key.as_bytes()));
        }
        if let Ok(subnet) = Subnet::parse_key(key) {
            self.subnets.remove(&subnet);
        }
    }
}

/// Objects that may be those of living peers: their entries are there but cannot be read, and nothing better is known of them.
/// What an earlier process put there is not removed on the strength of that.
#[derive(Debug, Default)]
pub struct Doubts {
    nets: BTreeSet<IpNet>,
    gateways: BTreeSet<IpAddr>,
    macs: BTreeSet<(LinkName, Mac)>,
}

impl Doubts {
    pub(super) fn about<'a>(subnets: impl Iterator<Item = &'a Subnet>, observed: &Objects) -> Doubts {
        let of = |subnet: &Subnet| Family::BOTH.map(|family| subnet.of(family));
        let nets: BTreeSet<IpNet> = subnets.flat_map(of).flatten().collect();
        if nets.is_empty() {
            return Doubts::default();
        }
        let gateways: BTreeSet<IpAddr> = nets.iter().map(IpNet::network).collect();
        let mut macs = BTreeSet::new();
        for link in observed.links().map(Object::link) {
            for gateway in &gateways {
                if let Some(Object::Neighbour(found)) = observed.get(&Key::Neighbour(link, *gateway)) {
                    macs.insert((link, found.mac));
                }
            }
        }
        Doubts { nets, gateways, macs }
    }

    /// Whether an observed object is one of them.
    pub fn cover(&self, object: &Object) -> bool {
        match object {
            Object::Route(route) => self.nets.contains(&route.destination),
            Object::Neighbour(neighbour) => self.gateways.contains(&neighbour.address),
            Object::Forwarding(entry) => self.macs.contains(&(entry.link, entry.mac)),
            Object::Link(_) | Object::Address(_) => false,
        }
    }
}
