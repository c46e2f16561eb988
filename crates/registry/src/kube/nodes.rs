//! What is known of the cluster's Nodes: of each the lease that it is, by the Node's name.
//!
//! INVARIANT: a Node's state is kept under its name, not under its subnet: a Node that is gone, changes its subnet or stops being
//! flannel's takes away what it had and nothing of another's, in whatever order that is heard.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use fabric::annotations::{NodeObject, entry_of};
use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Delta, Lease, Rejected, Snapshot, Subnet};

/// A Node's place among those that have one subnet: the oldest has it.
type Seniority = (i64, String);

/// A Node object of which no more than the name can be read.
#[derive(Debug)]
pub(super) struct Unread {
    pub(super) name: String,
    /// Why.
    pub(super) reason: String,
}

/// What a Node is known for.
#[derive(Debug, Default)]
struct Known {
    /// Its lease as it was last read.
    lease: Option<Lease>,
    /// Why what it says now cannot be read.
    refused: bool,
}

impl Known {
    /// Whether a Node that cannot be read may still be what it was.
    fn stays(&self, node: &NodeObject, network: &NetworkConfig) -> bool {
        let subnet = self.lease.as_ref().map(|lease| lease.subnet);
        subnet.is_some_and(|subnet| node.subnet(network).is_ok_and(|now| now == subnet))
    }
}

/// The Nodes.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    known: HashMap<String, Known>,
    /// Who has a subnet, in the order of their rights to it.
    holders: BTreeMap<Subnet, BTreeSet<Seniority>>,
}

impl Nodes {
    /// Begins a listing: what comes of it is told by [`Listing::end`].
    pub(super) fn list(&mut self) -> Listing<'_> {
        Listing {
            before: std::mem::take(&mut self.known),
            nodes: {
                self.holders.clear();
                self
            },
            rejected: Vec::new(),
        }
    }

    /// Takes in what a Node is now; whether that changes anything, and what.
    pub(super) fn put(&mut self, node: &NodeObject, network: &NetworkConfig, delta: &mut Delta) {
        match node.lease(network) {
            Ok(Some(lease)) => self.set(&node.name, Some(lease), delta),
            Ok(None) => self.set(&node.name, None, delta),
            Err(rejected) => {
                // The lease it was stays: what cannot be read does not say that the node is gone. A subnet that is not its own any more does.
                if !self
                    .known
                    .get(&node.name)
                    .is_some_and(|known| known.stays(node, network))
                {
                    self.set(&node.name, None, delta);
                }
                self.known.entry(node.name.clone()).or_default().refused = true;
                delta.refuse(rejected);
            }
        }
    }

    /// A Node says what cannot be read at all: the lease it was stays.
    pub(super) fn keep(&mut self, unread: Unread, delta: &mut Delta) {
        let Unread { name, reason } = unread;
        delta.refuse(Rejected {
            key: entry_of(&name),
            reason,
        });
        self.known.entry(name).or_default().refused = true;
    }

    /// Who else has a subnet that is, or overlaps, a Node's own; in words.
    pub(super) fn overlap_with(&self, own: &str) -> Option<String> {
        let subnet = self.known.get(own)?.lease.as_ref()?.subnet;
        let others = self.holders.iter().filter(|(other, _)| other.overlaps(&subnet));
        let (other, name) = others
            .flat_map(|(other, holders)| holders.iter().map(move |(_, name)| (other, name)))
            .find(|(_, name)| *name != own)?;
        Some(format!(
            "podCIDR {subnet} overlaps {other} of Node {name}: pods of one of them are not reached; delete one Node and register it anew"
        ))
    }

    /// Another Node that publishes one of a Node's addresses; in words.
    pub(super) fn namesake_of(&self, own: &str) -> Option<String> {
        let ours = &self.known.get(own)?.lease.as_ref()?.attributes;
        let same = |theirs: &Attributes| -> Option<IpAddr> {
            let v4 = (theirs.public_ip == ours.public_ip && !ours.public_ip.is_unspecified())
                .then_some(IpAddr::V4(ours.public_ip));
            v4.or_else(|| {
                ours.public_ip6
                    .filter(|v6| theirs.public_ip6 == Some(*v6) && !v6.is_unspecified())
                    .map(IpAddr::V6)
            })
        };
        // Always the same one of several, so that it is not said anew.
        let others = self.known.iter().filter(|(name, _)| *name != own);
        let (name, address) = others
            .filter_map(|(name, known)| Some((name, same(&known.lease.as_ref()?.attributes)?)))
            .min()?;
        Some(format!(
            "Node {name} publishes the address of this node, {address}: peers send packets for both to one of them; delete Node {name} if it is gone, else give one of them another \
             (--iface, --public-ip, or the annotation public-ip-overwrite)"
        ))
    }

    /// A Node is gone, whatever it said at last.
    pub(super) fn remove(&mut self, name: &str, delta: &mut Delta) {
        self.set(name, None, delta);
    }

    fn set(&mut self, name: &str, lease: Option<Lease>, delta: &mut Delta) {
        let known = self.known.entry(name.to_owned()).or_default();
        if std::mem::take(&mut known.refused) {
            delta.forget(entry_of(name));
        }
        let before = std::mem::replace(&mut known.lease, lease.clone());
        if lease.is_none() {
            self.known.remove(name);
        }
        if before == lease {
            return;
        }
        let touched: BTreeSet<Subnet> = [&before, &lease]
            .into_iter()
            .flatten()
            .map(|lease| lease.subnet)
            .collect();
        let earlier: Vec<(Subnet, Vec<String>)> = touched
            .into_iter()
            .map(|subnet| (subnet, self.holders_of(&subnet)))
            .collect();
        if let Some(before) = before
            && let Some(holders) = self.holders.get_mut(&before.subnet)
        {
            holders.remove(&(before.created, name.to_owned()));
            if holders.is_empty() {
                self.holders.remove(&before.subnet);
            }
        }
        if let Some(lease) = lease {
            let holders = self.holders.entry(lease.subnet).or_default();
            holders.insert((lease.created, name.to_owned()));
        }
        // What ends is said before what begins: one Node may be in both.
        for (subnet, earlier) in &earlier {
            let now = self.holders_of(subnet);
            let rivals = now.get(1..).unwrap_or_default();
            for gone in earlier.iter().skip(1).filter(|name| !rivals.contains(name)) {
                delta.forget(rival_of(gone));
            }
        }
        for (subnet, earlier) in earlier {
            let now = self.holders_of(&subnet);
            let holder = now.first();
            if holder != earlier.first() || holder.is_some_and(|holder| holder == name) {
                let lease = holder.and_then(|holder| self.known.get(holder)?.lease.clone());
                delta.changes.push((subnet, lease));
            }
            for rival in now.iter().skip(1) {
                if let Some(holder) = holder.filter(|_| now != earlier) {
                    delta.refuse(rivalry(rival, &subnet, holder));
                }
            }
        }
    }

    /// Who has a subnet, and who would have it next.
    fn holders_of(&self, subnet: &Subnet) -> Vec<String> {
        let holders = self.holders.get(subnet).into_iter().flatten();
        holders.map(|(_, name)| name.clone()).collect()
    }

    /// Nodes that have a lease.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.values().filter(|known| known.lease.is_some()).count()
    }
}

/// What the entry of a Node is called whose subnet is another's.
fn rival_of(name: &str) -> String {
    format!("{}'s podCIDR", entry_of(name))
}

fn rivalry(name: &str, subnet: &Subnet, holder: &str) -> Rejected {
    Rejected {
        key: rival_of(name),
        reason: format!("{subnet} is also the subnet of node {holder}, which is older"),
    }
}

/// A listing under way.
pub(super) struct Listing<'a> {
    nodes: &'a mut Nodes,
    before: HashMap<String, Known>,
    rejected: Vec<Rejected>,
}

impl Listing<'_> {
    /// One of the Nodes that are listed.
    pub(super) fn take(&mut self, node: &NodeObject, network: &NetworkConfig) {
        let mut ignored = Delta::default();
        match node.lease(network) {
            Ok(lease) => self.nodes.set(&node.name, lease, &mut ignored),
            Err(rejected) => {
                let known = self.before.remove(&node.name);
                let lease = known
                    .filter(|known| known.stays(node, network))
                    .and_then(|known| known.lease);
                self.nodes.set(&node.name, lease, &mut ignored);
                self.nodes.known.entry(node.name.clone()).or_default().refused = true;
                self.rejected.push(rejected);
            }
        }
    }

    /// One of the Nodes that are listed, and cannot be read: the lease it was stays.
    pub(super) fn keep(&mut self, unread: &Unread) {
        let lease = self.before.remove(&unread.name).and_then(|known| known.lease);
        self.nodes.set(&unread.name, lease, &mut Delta::default());
        self.nodes.known.entry(unread.name.clone()).or_default().refused = true;
        self.rejected.push(Rejected {
            key: entry_of(&unread.name),
            reason: unread.reason.clone(),
        });
    }

    /// All have been listed.
    pub(super) fn end(self, revision: i64) -> Snapshot {
        let mut rejected = self.rejected;
        let mut leases = BTreeMap::new();
        for (subnet, holders) in &self.nodes.holders {
            let mut names = holders.iter().map(|(_, name)| name);
            let Some(holder) = names.next() else { continue };
            let lease = self.nodes.known.get(holder).and_then(|known| known.lease.clone());
            leases.extend(lease.map(|lease| (*subnet, lease)));
            rejected.extend(names.map(|name| rivalry(name, subnet, holder)));
        }
        Snapshot {
            revision,
            leases,
            rejected,
        }
    }
}

#[cfg(test)]
mod tests;
