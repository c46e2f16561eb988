//! The desired state, kept current: this node, the leases, and the objects they ask for.
//!
//! A change of one lease costs the plan of that lease, however many there are. Where two leases want the same object, the
//! one with the lower create revision has it and the other is told so; while that is the case every change plans anew from
//! the beginning, which makes the outcome independent of the order in which leases came.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::lease::{Delta, Lease, Rejected, Snapshot, Subnet, Update};
use crate::node::Node;
use crate::object::{Family, Key, LinkName, Object, Objects};
use crate::plan::{Backend, PeerPlan, Problem, plan_peer};

/// Which keys a change of the desired state touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// All of them: compare the whole state.
    Whole,
    /// These.
    Keys(BTreeSet<Key>),
}

/// Node, leases and what follows from them.
#[derive(Debug)]
pub struct World {
    backend: Box<dyn Backend>,
    node: Node,
    revision: i64,
    leases: BTreeMap<Subnet, Lease>,
    rejected: BTreeMap<String, String>,
    desired: Objects,
    problems: BTreeMap<Subnet, Vec<Problem>>,
    contested: bool,
}

impl World {
    /// A node without peers.
    pub fn new(backend: Box<dyn Backend>, node: Node) -> World {
        let mut world = World {
            backend,
            node,
            revision: 0,
            leases: BTreeMap::new(),
            rejected: BTreeMap::new(),
            desired: Objects::new(),
            problems: BTreeMap::new(),
            contested: false,
        };
        world.plan_all();
        world
    }

    /// The backend.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Registry revision the leases are of.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Leases of all nodes but this one.
    pub fn peers(&self) -> impl Iterator<Item = &Lease> {
        let own = self.node.subnet;
        self.leases.values().filter(move |lease| lease.subnet != own)
    }

    /// Leases of all nodes, our own included when the registry lists it.
    pub fn leases(&self) -> &BTreeMap<Subnet, Lease> {
        &self.leases
    }

    /// Registry entries that are no leases, and why.
    pub fn rejected(&self) -> &BTreeMap<String, String> {
        &self.rejected
    }

    /// Leases that cannot be served in part or at all, and why.
    pub fn problems(&self) -> &BTreeMap<Subnet, Vec<Problem>> {
        &self.problems
    }

    /// The objects that shall be in the kernel.
    pub fn desired(&self) -> &Objects {
        &self.desired
    }

    /// The objects a lease asks for.
    pub fn objects_of(&self, lease: &Lease) -> Vec<Object> {
        self.plan(lease).objects
    }

    /// Puts another node (new subnet, underlay, identity, or directly reachable peers) under the same leases.
    pub fn set_node(&mut self, backend: Box<dyn Backend>, node: Node) {
        self.backend = backend;
        self.node = node;
        self.plan_all();
    }

    /// Adds what is known of the way to peers whose leases are about to come; whether that changes the plan of leases that
    /// are there already.
    pub fn learn_direct(&mut self, found: impl Iterator<Item = (IpAddr, Option<LinkName>)>) -> bool {
        let mut changed = BTreeSet::new();
        for (peer, link) in found {
            let before = match link {
                Some(link) => self.node.direct.insert(peer, link),
                None => self.node.direct.remove(&peer),
            };
            if before != link {
                changed.insert(peer);
            }
        }
        let is_changed = |lease: &Lease| {
            let ways = Family::BOTH.map(|family| lease.attributes.public_ip_of(family));
            ways.into_iter().flatten().any(|public| changed.contains(&public))
        };
        // INVARIANT: what is desired for a lease is what planning it now gives; `change` relies on it to find the old.
        let affected = !changed.is_empty() && self.leases.values().any(is_changed);
        if affected {
            self.plan_all();
        }
        affected
    }

    /// Replaces what is known of directly reachable peers; whether that changes anything.
    pub fn set_direct(&mut self, direct: BTreeMap<IpAddr, LinkName>) -> bool {
        if self.node.direct == direct {
            return false;
        }
        self.node.direct = direct;
        self.plan_all();
        true
    }

    /// Takes what a registry delivered. A delta that is older than what we have is history, not news.
    pub fn update(&mut self, update: Update) -> Touched {
        match update {
            Update::Snapshot(snapshot) => self.replace(snapshot),
            Update::Delta(delta) if delta.revision < self.revision => Touched::Keys(BTreeSet::new()),
            Update::Delta(delta) => self.change(delta),
        }
    }

    fn replace(&mut self, mut snapshot: Snapshot) -> Touched {
        self.revision = snapshot.revision;
        // An entry that cannot be read any more is not one that is gone: the lease it was stays in force.
        for subnet in snapshot
            .rejected
            .iter()
            .filter_map(|entry| Subnet::parse_key(&entry.key).ok())
        {
            if let Some(lease) = self.leases.get(&subnet) {
                snapshot.leases.entry(subnet).or_insert_with(|| lease.clone());
            }
        }
        self.rejected.clear();
        self.note_rejected(snapshot.rejected);
        if self.leases == snapshot.leases {
            return Touched::Keys(BTreeSet::new());
        }
        // Built in one go its nodes are full.
        self.leases = snapshot.leases.into_iter().collect();
        self.plan_all();
        Touched::Whole
    }

    fn change(&mut self, delta: Delta) -> Touched {
        self.revision = delta.revision;
        if !self.rejected.is_empty() {
            for (subnet, _) in &delta.changes {
                self.rejected.remove(&subnet.to_string());
            }
        }
        self.note_rejected(delta.rejected);
        let mut keys = BTreeSet::new();
        for (subnet, lease) in delta.changes {
            let before = self.leases.get(&subnet);
            if before == lease.as_ref() {
                continue;
            }
            if subnet != self.node.subnet {
                for object in before.map(|lease| self.plan(lease)).unwrap_or_default().objects {
                    keys.insert(object.key());
                    self.desired.remove(&object.key());
                }
            }
            self.problems.remove(&subnet);
            match lease {
                Some(lease) => {
                    if subnet != self.node.subnet {
                        let plan = self.plan(&lease);
                        keys.extend(plan.objects.iter().map(|object| object.key()));
                        self.take(&lease, plan);
                    }
                    self.leases.insert(subnet, lease);
                }
                None => {
                    self.leases.remove(&subnet);
                }
            }
        }
        if self.contested {
            self.plan_all();
            return Touched::Whole;
        }
        Touched::Keys(keys)
    }

    fn note_rejected(&mut self, rejected: Vec<Rejected>) {
        self.rejected
            .extend(rejected.into_iter().map(|entry| (entry.key, entry.reason)));
    }

    fn plan(&self, lease: &Lease) -> PeerPlan {
        plan_peer(&*self.backend, &self.node, lease)
    }

    fn plan_all(&mut self) {
        self.desired = self.backend.own_objects(&self.node).into_iter().collect();
        self.problems.clear();
        self.contested = false;
        // Our own objects come first and are nobody else's; then the older lease wins.
        let mut order: Vec<(i64, Subnet)> = self
            .leases
            .values()
            .map(|lease| (lease.created, lease.subnet))
            .collect();
        order.sort_unstable();
        let leases = std::mem::take(&mut self.leases);
        for lease in order.iter().filter_map(|(_, subnet)| leases.get(subnet)) {
            if lease.subnet != self.node.subnet {
                let plan = self.plan(lease);
                self.take(lease, plan);
            }
        }
        self.leases = leases;
        // Built in one go its nodes are full; insertion in ascending order leaves every one of them half empty.
        self.desired.compact();
        if self.contested {
            self.name_holders();
        }
    }

    /// Adds a peer's objects; the first to come has a key.
    fn take(&mut self, lease: &Lease, plan: PeerPlan) {
        let mut problems = plan.problems;
        for object in plan.objects {
            let key = object.key();
            if self.desired.contains_key(&key) {
                self.contested = true;
                problems.push(Problem::Contested {
                    key: key.to_string(),
                    holder: String::new(),
                });
            } else {
                self.desired.insert(object);
            }
        }
        if !problems.is_empty() {
            self.problems.insert(lease.subnet, problems);
        }
    }

    /// Says of every contested object which lease has it. Only runs while there is one, so it may look at all leases.
    fn name_holders(&mut self) {
        let wanted: BTreeSet<String> = self
            .problems
            .values()
            .flatten()
            .filter_map(|problem| match problem {
                Problem::Contested { key, .. } => Some(key.clone()),
                _ => None,
            })
            .collect();
        let mut holders: BTreeMap<String, (i64, Subnet)> = BTreeMap::new();
        for lease in self
            .leases
            .values()
            .filter(|lease| lease.subnet != self.node.subnet)
        {
            for object in self.plan(lease).objects {
                let key = object.key().to_string();
                if wanted.contains(&key) {
                    let candidate = (lease.created, lease.subnet);
                    holders
                        .entry(key)
                        .and_modify(|held| *held = (*held).min(candidate))
                        .or_insert(candidate);
                }
            }
        }
        for problem in self.problems.values_mut().flatten() {
            if let Problem::Contested { key, holder } = problem {
                *holder = holders
                    .get(key)
                    .map_or_else(|| "of this node".to_owned(), |(_, subnet)| subnet.to_string());
            }
        }
    }
}
