//! From what is to what shall be: the ops that make the observed kernel equal to the desired one.
//!
//! Total and pure. It looks at the *union* of both key sets, so that an object which nobody wants any more is found, and it
//! touches only what [`Ownership`] says is ours.

use std::collections::BTreeSet;

use crate::object::{Key, LinkKind, LinkName, Object, Objects, Op, ROUTE_PROTOCOL, Vxlan};
use crate::ownership::{Owner, Ownership};

/// A foreign object that stands where one of ours has to be. It is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// What we want there.
    pub desired: Object,
    /// What is there.
    pub observed: Object,
}

/// What to do, and what stands in the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Steps in the order in which they must be taken: additions and changes from links to routes, then removals from
    /// routes to links, so that a packet always finds either the old path or the new one.
    pub ops: Vec<Op>,
    /// Foreign objects in our places.
    pub conflicts: Vec<Conflict>,
}

/// Which part of the two states to compare.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// Everything.
    Whole,
    /// These keys, and where a link among them has to be made anew, all that hangs on it.
    Keys(&'a BTreeSet<Key>),
}

/// Compares desired and observed state.
///
/// `held` tells of a key whether we have seen our own object there since we started: such a place is taken back from
/// whoever put another object into it, while a foreign object that was there before us is a [`Conflict`].
pub fn diff(
    desired: &Objects,
    observed: &Objects,
    ownership: &Ownership,
    held: &dyn Fn(&Key) -> bool,
    part: Part<'_>,
) -> Difference {
    let mut walk = Walk {
        desired,
        observed,
        ownership,
        held,
        out: Difference::default(),
        rebuilt: Vec::new(),
        blocked: Vec::new(),
    };
    let links: BTreeSet<Key> = match part {
        Part::Whole => union(desired, observed)
            .take_while(|key| matches!(key, Key::Link(_)))
            .collect(),
        Part::Keys(keys) => keys
            .iter()
            .copied()
            .filter(|key| matches!(key, Key::Link(_)))
            .collect(),
    };
    let mut removals = Vec::new();
    for key in &links {
        walk.compare(*key, &mut removals);
    }
    // A link that was not asked about may be a stranger's all the same.
    for desired in desired.links().filter(|link| !links.contains(&link.key())) {
        if observed
            .get(&desired.key())
            .is_some_and(|there| is_foreign(desired, there))
        {
            walk.blocked.push(desired.link());
        }
    }
    // Removing a link takes everything on it along: the keys asked for are not all that is missing afterwards.
    let dependents: BTreeSet<Key> = match part {
        Part::Keys(keys) if walk.rebuilt.is_empty() && walk.blocked.is_empty() => {
            keys.difference(&links).copied().collect()
        }
        Part::Keys(keys) => {
            let hanging = desired
                .iter()
                .filter(|(_, o)| walk.rebuilt.contains(&o.link()))
                .map(|(key, _)| key);
            keys.iter()
                .copied()
                .chain(hanging)
                .filter(|key| !matches!(key, Key::Link(_)))
                .collect()
        }
        Part::Whole => BTreeSet::new(),
    };
    match part {
        Part::Whole => {
            for key in union(desired, observed).skip_while(|key| matches!(key, Key::Link(_))) {
                walk.compare(key, &mut removals);
            }
        }
        Part::Keys(_) => {
            for key in dependents {
                walk.compare(key, &mut removals);
            }
        }
    }
    removals.sort_by_key(|op| std::cmp::Reverse(op.key()));
    walk.out.ops.append(&mut removals);
    walk.out
}

/// The keys of both maps, ascending, each once.
fn union<'a>(a: &'a Objects, b: &'a Objects) -> impl Iterator<Item = Key> + 'a {
    let (mut a, mut b) = (a.keys().peekable(), b.keys().peekable());
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some(x), Some(y)) if x == y => {
            b.next();
            a.next()
        }
        (Some(x), Some(y)) if x < y => a.next(),
        (Some(_), None) => a.next(),
        _ => b.next(),
    })
}

struct Walk<'a> {
    desired: &'a Objects,
    observed: &'a Objects,
    ownership: &'a Ownership,
    held: &'a dyn Fn(&Key) -> bool,
    out: Difference,
    /// Links that are made anew: whatever was seen on them is gone by the time the next op runs.
    rebuilt: Vec<LinkName>,
    /// Links in whose place stands a foreign one: nothing can be put on them.
    blocked: Vec<LinkName>,
}

impl Walk<'_> {
    fn compare(&mut self, key: Key, removals: &mut Vec<Op>) {
        let desired = self.desired.get(&key);
        let observed = self
            .observed
            .get(&key)
            .filter(|o| key.is_link() || !self.rebuilt.contains(&o.link()));
        // Routes of ours that are no longer wanted are ours wherever they lead; what else is there is the stranger's.
        let on_blocked = |object: &Object| self.blocked.contains(&object.link());
        if desired.is_some_and(on_blocked)
            || (!matches!(key, Key::Route(..)) && observed.is_some_and(on_blocked))
        {
            return;
        }
        match (desired, observed) {
            (None, None) => {}
            (Some(desired), None) => {
                if let Object::Link(link) = desired {
                    self.rebuilt.push(link.name);
                }
                self.out.ops.push(Op::Add(desired.clone()));
            }
            (None, Some(observed)) => {
                if self.may_remove(observed) {
                    removals.push(Op::Remove(observed.clone()));
                }
            }
            (Some(desired), Some(observed)) if equal(desired, observed) => {}
            (Some(Object::Link(desired)), Some(Object::Link(observed))) => {
                match (&desired.kind, &observed.kind) {
                    (LinkKind::Vxlan(want), LinkKind::Vxlan(have)) if is_same_device(want, have) => {
                        self.change(Object::Link(desired.clone()), Object::Link(observed.clone()));
                    }
                    (LinkKind::Vxlan(_), LinkKind::Vxlan(_)) => {
                        self.out.ops.push(Op::Remove(Object::Link(observed.clone())));
                        self.out.ops.push(Op::Add(Object::Link(desired.clone())));
                        self.rebuilt.push(desired.name);
                    }
                    _ => {
                        self.blocked.push(desired.name);
                        self.conflict(&Object::Link(desired.clone()), &Object::Link(observed.clone()));
                    }
                }
            }
            (Some(desired), Some(observed)) => {
                if self.may_replace(desired, observed, &key) {
                    self.change(desired.clone(), observed.clone());
                } else {
                    self.conflict(desired, observed);
                }
            }
        }
    }

    fn may_remove(&self, observed: &Object) -> bool {
        match (self.ownership.owner(observed), observed) {
            (Owner::Ours, _) => true,
            (Owner::Predecessor, Object::Route(route)) => self.ownership.was_leased(route),
            _ => false,
        }
    }

    fn may_replace(&self, desired: &Object, observed: &Object, key: &Key) -> bool {
        match self.ownership.owner(observed) {
            Owner::Ours | Owner::Predecessor => true,
            // A permanent neighbour or forwarding entry on our device is always ours; only routes have other owners.
            Owner::Foreign => (self.held)(key) && matches!(desired, Object::Route(_)),
        }
    }

    fn change(&mut self, to: Object, from: Object) {
        self.out.ops.push(Op::Change { from, to });
    }

    fn conflict(&mut self, desired: &Object, observed: &Object) {
        self.out.conflicts.push(Conflict {
            desired: desired.clone(),
            observed: observed.clone(),
        });
    }
}

/// A link in our link's place that is none of the kind we make.
fn is_foreign(desired: &Object, observed: &Object) -> bool {
    match (desired, observed) {
        (Object::Link(want), Object::Link(have)) => {
            !matches!((&want.kind, &have.kind), (LinkKind::Vxlan(_), LinkKind::Vxlan(_)))
        }
        _ => false,
    }
}

/// Whether the observed object does what the desired one asks for.
pub fn equal(desired: &Object, observed: &Object) -> bool {
    match (desired, observed) {
        (Object::Link(want), Object::Link(have)) => {
            let kind = match (&want.kind, &have.kind) {
                (LinkKind::Vxlan(a), LinkKind::Vxlan(b)) => is_same_device(a, b) && a.learning == b.learning,
                (a, b) => a == b,
            };
            kind && want.mtu == have.mtu && want.up == have.up && (want.mac.is_none() || want.mac == have.mac)
        }
        (a, b) => a == b,
    }
}

/// Whether a link, as observed, can have on it what is to hang on the desired one: it is that device, and up if it shall be.
pub fn carries(desired: &Object, observed: &Object) -> bool {
    match (desired, observed) {
        (Object::Link(want), Object::Link(have)) => {
            let same = match (&want.kind, &have.kind) {
                (LinkKind::Vxlan(want), LinkKind::Vxlan(have)) => is_same_device(want, have),
                (want, have) => want == have,
            };
            same && (have.up || !want.up)
        }
        _ => false,
    }
}

/// Whether a vxlan device can be turned into the wanted one in place.
///
/// The kernel cannot change VNI, port and policy extension of a living device; source address and underlay link it could,
/// but Go flannel makes the device anew then and peers tell the two apart by nothing, so the simpler way is kept.
fn is_same_device(want: &Vxlan, have: &Vxlan) -> bool {
    want.vni == have.vni
        && want.local == have.local
        && want.lower == have.lower
        && want.gbp == have.gbp
        && want.port.is_none_or(|port| have.port == Some(port))
}

/// Whether the key's object, as observed, is one of ours with the content we want: what makes a place [held](diff).
pub fn is_held(desired: &Object, observed: &Object) -> bool {
    match observed {
        Object::Route(route) => route.protocol == ROUTE_PROTOCOL && equal(desired, observed),
        _ => equal(desired, observed),
    }
}
