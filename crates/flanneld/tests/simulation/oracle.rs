//! What must hold, known from what was done and not from the code that is tested.

use std::collections::{BTreeMap, BTreeSet};

use registry::memory::{Deed, Who};
use tokio::time::Instant;

/// What the registry's history says of one key.
#[derive(Debug, Clone)]
struct Right {
    /// The node whose lease it is; `None` for a peer that is no node of ours.
    node: Option<usize>,
    value: Vec<u8>,
    /// Since when it has been this lease, without a gap.
    since: Instant,
    /// It was put there by a hand other than its owner's.
    by_hand: bool,
}

/// The registry's history, as far as it says who may use what.
#[derive(Default)]
pub struct Oracle {
    clients: BTreeMap<u32, usize>,
    rights: BTreeMap<String, Right>,
    /// The subnet of a node whose lease ended by its own time, and was not taken again since.
    expired: BTreeMap<usize, String>,
    /// Times to live have been shortened behind the nodes' backs.
    jumped: bool,
    /// Leases that somebody has written over with what is none, and since when.
    spoilt: BTreeMap<String, Instant>,
    /// Keys that an operator or a restore has touched.
    touched: BTreeSet<String>,
    /// Those that an operator or a restore has written, for a time to live of its own, since they were created.
    timed_by_hand: BTreeSet<String>,
}

/// The node that a value names, by the addresses that nodes have here.
pub fn node_of(value: &[u8], nodes: usize) -> Option<usize> {
    let text = std::str::from_utf8(value).ok()?;
    let rest = text.split("\"PublicIP\":\"192.0.2.").nth(1)?;
    let number: usize = rest.split('"').next()?.parse().ok()?;
    (1..=nodes).contains(&number).then(|| number - 1)
}

fn is_lease(value: &[u8]) -> bool {
    value.starts_with(b"{\"PublicIP\":\"")
}

impl Oracle {
    pub fn know(&mut self, client: u32, node: usize) {
        self.clients.insert(client, node);
    }

    pub fn jump(&mut self) {
        self.jumped = true;
    }

    /// Takes in what was done; what may not be.
    pub fn take(&mut self, deed: &Deed, nodes: usize) -> Result<(), String> {
        let key = &deed.key;
        let doer = match deed.who {
            Who::Client(client) => self.clients.get(&client).copied(),
            _ => None,
        };
        let owner = self.rights.get(key).and_then(|right| right.node);
        match deed.who {
            Who::Client(client) => {
                let doer = doer.ok_or_else(|| format!("client {client} is nobody's"))?;
                self.by_a_node(deed, doer, owner, nodes)?;
            }
            Who::Operator | Who::Restore => {
                self.touched.insert(key.clone());
            }
            Who::Time => {
                // A time that another hand gave it is none that its node has heard of, if it was away meanwhile.
                let is_known = !self.jumped && !self.timed_by_hand.contains(key);
                if let Some(owner) = owner.filter(|_| is_known) {
                    self.expired.insert(owner, key.clone());
                }
            }
        }
        // Also after its node has written it again: until that has its answer it does not know for how long.
        match (deed.who, &deed.before, &deed.after) {
            (Who::Operator | Who::Restore, _, Some(_)) => self.timed_by_hand.insert(key.clone()),
            (_, None, _) | (_, _, None) => self.timed_by_hand.remove(key),
            _ => false,
        };
        match &deed.after {
            // What is no lease takes none away.
            Some(value) if !is_lease(value) && self.rights.contains_key(key) => {
                self.spoilt.entry(key.clone()).or_insert(deed.at);
            }
            Some(value) => {
                self.spoilt.remove(key);
                let same = self.rights.get(key).is_some_and(|right| right.value == *value);
                if let Some(node) = node_of(value, nodes)
                    && self.expired.get(&node) == Some(key)
                {
                    self.expired.remove(&node);
                }
                if !same && is_lease(value) {
                    let right = Right {
                        node: node_of(value, nodes),
                        value: value.clone(),
                        since: deed.at,
                        by_hand: doer.is_none(),
                    };
                    self.rights.insert(key.clone(), right);
                }
            }
            None => {
                self.spoilt.remove(key);
                self.rights.remove(key);
            }
        }
        Ok(())
    }

    fn by_a_node(
        &mut self,
        deed: &Deed,
        doer: usize,
        owner: Option<usize>,
        nodes: usize,
    ) -> Result<(), String> {
        let key = &deed.key;
        if let Some(owner) = owner.filter(|owner| *owner != doer) {
            let done = if deed.after.is_some() {
                "wrote over"
            } else {
                "deleted"
            };
            return Err(format!("node {doer} {done} {key}, which is node {owner}'s"));
        }
        match (&deed.before, &deed.after) {
            (Some(before), _) if is_lease(before) && owner.is_none() => {
                Err(format!("node {doer} touched {key}, the lease of a peer"))
            }
            (None, Some(value)) => {
                if node_of(value, nodes) != Some(doer) {
                    return Err(format!("node {doer} wrote {key} in another's name"));
                }
                // When a family comes or goes the half that stays is in both for a moment.
                let is_same = |other: &str| key.split('&').any(|half| other.split('&').any(|o| o == half));
                let second = self.rights.iter().find(|(other, right)| {
                    right.node == Some(doer) && !self.touched.contains(*other) && !is_same(other)
                });
                if let Some((second, _)) = second {
                    return Err(format!("node {doer} took {key} while it has {second}"));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether any lease of a node has ended by its own time.
    pub fn is_any_expired(&self) -> bool {
        !self.expired.is_empty()
    }

    /// A process that uses a subnet was told that it may.
    pub fn check_belief(&self, node: usize, subnet: &str) -> Result<(), String> {
        match self.expired.get(&node) {
            Some(expired) if expired == subnet => Err(format!(
                "node {node} believes that it holds {subnet}, which expired"
            )),
            _ => Ok(()),
        }
    }

    /// A route to a peer's subnet that stood since then may go: the lease was away in between, or is. A process that
    /// heard of the leases first when it was written over already knows nothing of it.
    pub fn may_forget(&self, key: &str, since: Instant, heard: Instant) -> bool {
        let is_unheard_of = self.spoilt.get(key).is_some_and(|at| *at <= heard);
        is_unheard_of || self.rights.get(key).is_none_or(|right| right.since >= since)
    }

    /// Who may use what, of the nodes.
    pub fn rightful(&self, key: &str) -> Option<usize> {
        self.rights.get(key)?.node
    }

    /// Whether a hand other than a node's has been at a key.
    pub fn is_touched(&self, key: &str) -> bool {
        self.touched.contains(key) || self.rights.get(key).is_some_and(|right| right.by_hand)
    }
}
