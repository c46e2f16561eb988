//! What is known of the cluster's Nodes: of each the lease that it is, by the Node's name.
//!
//! INVARIANT: a Node's state is kept under its name, not under its subnet: a Node that is gone, changes its subnet or stops being
//! flannel's takes away what it had and nothing of another's, in whatever order that is heard.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fabric::annotations::{NodeObject, entry_of};
use fabric::config::NetworkConfig;
use fabric::lease::{Delta, Lease, Rejected, Snapshot, Subnet};

/// A Node's place among those that have one subnet: the oldest has it.
type Seniority = (i64, String);

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
