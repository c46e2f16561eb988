//! The desired state, kept current: this node, the leases, and the objects they ask for.
//!
//! A change of one lease costs the plan of that lease, and of those that it is at odds with, however many others there are.
//! Where leases overlap, and where two want the same object, the one with the lower create revision goes before and the other is
//! told so. The outcome is independent of the order in which leases came.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use self::claims::{Claims, is_inside};
use self::seniority::{Half, Rank, Seniority};
use crate::lease::{Delta, Lease, Snapshot, Subnet, Update};
use crate::node::Node;
use crate::object::{Family, Key, LinkName, Object, Objects};
use crate::plan::{Backend, PeerPlan, Problem, check_place, plan_peer_among};

mod claims;
mod refused;
mod seniority;

pub use self::refused::{Doubts, Refused};

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
    rejected: Refused,
    /// A subnet that was doubted is so no more, since this was last asked.
    settled: bool,
    /// What is there whoever the peers are; no peer's object takes the place of one.
    own: Objects,
    desired: Objects,
    problems: BTreeMap<Subnet, Vec<Problem>>,
    seniority: Seniority,
    claims: Claims,
}

/// What a change of leases touches.
#[derive(Default)]
struct Changing {
    keys: BTreeSet<Key>,
    /// Who had each object that several leases may ask for.
    holders: BTreeMap<Key, Option<Rank>>,
    /// Such objects of the leases that are planned anew.
    asked: BTreeMap<(Key, Subnet), Object>,
}

impl Changing {
    /// Notes who has an object, before the first claim on it changes.
    fn note_holder(&mut self, key: Key, claims: &Claims) {
        self.holders.entry(key).or_insert_with(|| claims.holder(key));
    }
}

impl World {
    /// A node without peers.
    pub fn new(backend: Box<dyn Backend>, node: Node) -> World {
        let mut world = World {
            backend,
            node,
            revision: 0,
            leases: BTreeMap::new(),
            rejected: Refused::default(),
            settled: false,
            own: Objects::new(),
            desired: Objects::new(),
            problems: BTreeMap::new(),
            seniority: Seniority::default(),
            claims: Claims::default(),
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
    pub fn rejected(&self) -> &Refused {
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
                Some(link) => self.node.provided.direct.insert(peer, link),
                None => self.node.provided.direct.remove(&peer),
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
        if self.node.provided.direct == direct {
            return false;
        }
        self.node.provided.direct = direct;
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
        let doubted: Vec<Subnet> = self.doubted().copied().collect();
        self.rejected = Refused::default();
        snapshot
            .rejected
            .into_iter()
            .for_each(|entry| self.rejected.note(entry));
        let is_same = self.leases == snapshot.leases;
        if !is_same {
            // Built in one go its nodes are full.
            self.leases = snapshot.leases.into_iter().collect();
        }
        self.settled |= doubted.iter().any(|subnet| !self.is_doubted(subnet));
        if is_same {
            return Touched::Keys(BTreeSet::new());
        }
        self.plan_all();
        Touched::Whole
    }

    fn change(&mut self, delta: Delta) -> Touched {
        self.revision = delta.revision;
        let mut doubted = Vec::new();
        if !self.rejected.is_empty() {
            let changed = delta.changes.iter().map(|(subnet, _)| subnet);
            doubted = changed
                .copied()
                .filter(|subnet| self.is_doubted(subnet))
                .collect();
            for (subnet, _) in &delta.changes {
                self.rejected.forget(&subnet.to_string());
            }
            for key in &delta.gone {
                self.rejected.forget(key);
            }
        }
        delta
            .rejected
            .into_iter()
            .for_each(|entry| self.rejected.note(entry));
        let mut keys = BTreeSet::new();
        for (subnet, lease) in delta.changes {
            if self.leases.get(&subnet) == lease.as_ref() {
                continue;
            }
            if subnet == self.node.subnet {
                match lease {
                    Some(lease) => self.leases.insert(subnet, lease),
                    None => self.leases.remove(&subnet),
                };
            } else {
                self.change_peer(subnet, lease, &mut keys);
            }
        }
        self.settled |= doubted.iter().any(|subnet| !self.is_doubted(subnet));
        Touched::Keys(keys)
    }

    /// Puts a peer's lease in the place of what it was, and plans anew what that makes a difference to.
    fn change_peer(&mut self, subnet: Subnet, lease: Option<Lease>, keys: &mut BTreeSet<Key>) {
        let mut changing = Changing::default();
        let former = match lease {
            Some(lease) => self.leases.insert(subnet, lease),
            None => self.leases.remove(&subnet),
        };
        let age = |lease: &Lease| lease.created;
        let mut before = seniority::Before::new();
        if former.as_ref().map(age) != self.leases.get(&subnet).map(age) {
            let halves: Vec<Half> = placed(&self.node, &subnet).collect();
            let out = if former.is_some() { &*halves } else { &[] };
            let put = if self.leases.contains_key(&subnet) {
                &*halves
            } else {
                &[]
            };
            before = self.seniority.change(out, put, &self.leases);
        }
        if let Some(former) = &former {
            self.withdraw(former, &before, &mut changing);
        }
        let mut affected: BTreeSet<Subnet> = before.keys().map(|half| half.1).collect();
        affected.remove(&subnet);
        // Taken out for the moment: planning looks at the rest of the world.
        let leases = std::mem::take(&mut self.leases);
        let others = || affected.iter().filter_map(|subnet| leases.get(subnet));
        for lease in others() {
            self.withdraw(lease, &before, &mut changing);
        }
        for lease in others().chain(leases.get(&subnet)) {
            self.place(lease, &mut changing);
        }
        self.settle(&leases, &changing);
        self.leases = leases;
        // `append` would build all of it anew.
        keys.extend(changing.keys);
    }

    /// Takes out what a lease asked for when it lost to those that `before` says.
    fn withdraw(&mut self, lease: &Lease, before: &seniority::Before, changing: &mut Changing) {
        let former = |half: &Half| match before.get(half) {
            Some(holder) => *holder,
            None => self.seniority.holder(half),
        };
        let plan = plan_peer_among(&*self.backend, &self.node, lease, |net| {
            former(&(net, lease.subnet))
        });
        for object in plan.objects {
            let key = object.key();
            changing.keys.insert(key);
            if self.own.contains_key(&key) {
                continue;
            }
            if is_inside(&object, &lease.subnet) {
                self.desired.remove(&key);
            } else {
                changing.note_holder(key, &self.claims);
                self.claims.remove(key, (lease.created, lease.subnet));
            }
        }
        self.problems.remove(&lease.subnet);
    }

    /// Puts in what a lease asks for now, as far as it is its own affair.
    fn place(&mut self, lease: &Lease, changing: &mut Changing) {
        let PeerPlan {
            objects,
            mut problems,
        } = self.plan(lease);
        for object in objects {
            let key = object.key();
            changing.keys.insert(key);
            if self.own.contains_key(&key) {
                problems.push(Problem::Own(key));
            } else if is_inside(&object, &lease.subnet) {
                self.desired.insert(object);
            } else {
                changing.note_holder(key, &self.claims);
                self.claims.add(key, (lease.created, lease.subnet));
                changing.asked.insert((key, lease.subnet), object);
            }
        }
        if !problems.is_empty() {
            problems.sort();
            self.problems.insert(lease.subnet, problems);
        }
    }

    /// Gives every object that several leases may ask for to the oldest of those that do.
    fn settle(&mut self, leases: &BTreeMap<Subnet, Lease>, changing: &Changing) {
        for (&key, before) in &changing.holders {
            let Some(holder) = self.claims.holder(key) else {
                self.desired.remove(&key);
                continue;
            };
            let is_another = *before != Some(holder);
            let object = match (changing.asked.get(&(key, holder.1)), leases.get(&holder.1)) {
                (Some(object), _) => Some(object.clone()),
                (None, Some(lease)) if is_another => {
                    let objects = self.plan(lease).objects;
                    objects.into_iter().find(|object| object.key() == key)
                }
                (None, _) => None,
            };
            if let Some(object) = object {
                self.desired.insert(object);
            }
            let anew = |subnet: &Subnet| changing.asked.contains_key(&(key, *subnet));
            for (_, subnet) in self.claims.on(key).filter(|(_, s)| is_another || anew(s)) {
                let problems = self.problems.entry(subnet).or_default();
                problems.retain(|problem| !matches!(problem, Problem::Contested { key: k, .. } if *k == key));
                if subnet != holder.1 {
                    problems.push(Problem::Contested {
                        key,
                        holder: holder.1,
                    });
                }
                problems.sort();
                if problems.is_empty() {
                    self.problems.remove(&subnet);
                }
            }
        }
    }

    /// Subnets of rejected entries of which nothing better is known.
    fn doubted(&self) -> impl Iterator<Item = &Subnet> {
        let subnets = self.rejected.subnets().iter();
        subnets.filter(|subnet| !self.leases.contains_key(subnet))
    }

    fn is_doubted(&self, subnet: &Subnet) -> bool {
        self.rejected.subnets().contains(subnet) && !self.leases.contains_key(subnet)
    }

    /// Which of the observed objects may be those of living peers, though nobody can say.
    pub fn doubts(&self, observed: &Objects) -> Doubts {
        Doubts::about(self.doubted(), observed)
    }

    /// Whether some of the [doubts](World::doubts) have ended since this was last asked: what was left alone for their sake is to
    /// be looked at.
    pub fn take_settled(&mut self) -> bool {
        std::mem::take(&mut self.settled)
    }

    fn plan(&self, lease: &Lease) -> PeerPlan {
        plan_peer_among(&*self.backend, &self.node, lease, |net| {
            self.seniority.holder(&(net, lease.subnet))
        })
    }

    fn plan_all(&mut self) {
        self.own = self.backend.own_objects(&self.node).into_iter().collect();
        self.desired = self.own.clone();
        self.problems.clear();
        // Our own objects come first and are nobody else's; then the older lease goes before.
        let mut order: Vec<Rank> = self
            .leases
            .values()
            .filter(|lease| lease.subnet != self.node.subnet)
            .map(|lease| (lease.created, lease.subnet))
            .collect();
        order.sort_unstable();
        let leases = std::mem::take(&mut self.leases);
        let halves = order.iter().flat_map(|(_, subnet)| placed(&self.node, subnet));
        self.seniority = Seniority::of(halves, &leases);
        let (mut claims, mut contested) = (Vec::new(), Vec::new());
        for lease in order.iter().filter_map(|(_, subnet)| leases.get(subnet)) {
            let PeerPlan {
                objects,
                mut problems,
            } = self.plan(lease);
            for object in objects {
                let key = object.key();
                if self.own.contains_key(&key) {
                    problems.push(Problem::Own(key));
                    continue;
                }
                if !is_inside(&object, &lease.subnet) {
                    claims.push((key, (lease.created, lease.subnet)));
                    if self.desired.contains_key(&key) {
                        contested.push((key, lease.subnet));
                        continue;
                    }
                }
                self.desired.insert(object);
            }
            if !problems.is_empty() {
                problems.sort();
                self.problems.insert(lease.subnet, problems);
            }
        }
        self.leases = leases;
        self.claims = Claims::of(claims.into_iter());
        for (key, subnet) in contested {
            if let Some((_, holder)) = self.claims.holder(key) {
                let problems = self.problems.entry(subnet).or_default();
                problems.push(Problem::Contested { key, holder });
                problems.sort();
            }
        }
        // Built in one go its nodes are full; insertion in ascending order leaves every one of them half empty.
        self.desired.compact();
    }
}

/// The halves of a peer's subnets that can have a place here.
fn placed<'a>(node: &'a Node, subnet: &'a Subnet) -> impl Iterator<Item = Half> + 'a {
    let halves = Family::BOTH.into_iter().filter_map(|family| subnet.of(family));
    halves
        .filter(|half| matches!(check_place(node, *half), Ok(Some(()))))
        .map(|half| (half, *subnet))
}

#[cfg(test)]
mod tests;
