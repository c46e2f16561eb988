//! From what is to what shall be: the ops that make the observed kernel equal to the desired one.
//!
//! Total and pure. It looks at the *union* of both key sets, so that an object which nobody wants any more is found, and it
//! touches only what [`Ownership`] says is ours.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::kind::Likeness;
use crate::object::{Key, Link, LinkName, Neighbour, Object, Objects, Op, Route};
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
        Part::Whole => union(desired, observed).take_while(|key| key.is_link()).collect(),
        Part::Keys(keys) => keys.iter().copied().filter(|key| key.is_link()).collect(),
    };
    let mut removals = Vec::new();
    for key in &links {
        walk.compare(*key, &mut removals);
    }
    // What hangs on a link that is made anew goes with it, and what leads through one that a stranger has must not be left to
    // the default route: the keys asked for are not all that is missing afterwards.
    let upset: Vec<LinkName> = walk.rebuilt.iter().chain(&walk.blocked).copied().collect();
    // A link that was not asked about may be a stranger's all the same.
    for desired in desired.links().filter(|link| !links.contains(&link.key())) {
        if observed
            .get(&desired.key())
            .is_some_and(|there| is_foreign(desired, there))
        {
            walk.blocked.push(desired.link());
        }
    }
    match part {
        Part::Whole => {
            for key in union(desired, observed).skip_while(|key| key.is_link()) {
                walk.compare(key, &mut removals);
            }
        }
        Part::Keys(keys) => {
            // Seldom: a change of a few keys costs no walk through all of them.
            let hanging =
                (!upset.is_empty()).then(|| desired.iter().filter(|(_, o)| upset.contains(&o.link())));
            let hanging = hanging.into_iter().flatten().map(|(key, _)| key);
            let dependents: BTreeSet<Key> = keys.iter().copied().chain(hanging).collect();
            for key in dependents.into_iter().filter(|key| !key.is_link()) {
                walk.compare(key, &mut removals);
            }
        }
    }
    removals.sort_by_key(|op| std::cmp::Reverse(op.key()));
    let (early, mut late): (Vec<Op>, Vec<Op>) = removals
        .into_iter()
        .partition(|op| is_in_the_way(op.object(), desired));
    let ops = &mut walk.out.ops;
    let after_addresses = ops
        .iter()
        .position(|op| !matches!(op.key(), Key::Link(_) | Key::Address(..)));
    let at = after_addresses.unwrap_or(ops.len());
    ops.splice(at..at, early);
    ops.append(&mut late);
    walk.out
}

/// Whether an address that goes is one that a peer is reached by from now on: the subnet we had is another's. The kernel takes no
/// route by a gateway that is its own address, so it goes as soon as the new address is there.
fn is_in_the_way(object: &Object, desired: &Objects) -> bool {
    match object {
        Object::Address(a) => desired.contains_key(&Key::Neighbour(a.link, a.address.addr())),
        _ => false,
    }
}

/// The keys of both maps, ascending, each once.
fn union<'a>(a: &'a Objects, b: &'a Objects) -> impl Iterator<Item = Key> + 'a {
    let (mut a, mut b) = (a.keys().peekable(), b.keys().peekable());
    std::iter::from_fn(move || {
        let order = match (a.peek(), b.peek()) {
            (Some(x), Some(y)) => x.cmp(y),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        match order {
            Ordering::Less => a.next(),
            Ordering::Greater => b.next(),
            Ordering::Equal => {
                b.next();
                a.next()
            }
        }
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
        let on_blocked = |object: &Object| self.blocked.contains(&object.link());
        let wanted = self.desired.get(&key);
        let instead = wanted.filter(|object| on_blocked(object)).and_then(instead_of);
        let desired = instead.as_ref().or(wanted);
        let observed = self
            .observed
            .get(&key)
            .filter(|o| key.is_link() || !self.rebuilt.contains(&o.link()));
        // Routes of ours that are no longer wanted are ours wherever they lead; what else is there is the stranger's.
        if desired.is_some_and(on_blocked) || (!key.is_route() && observed.is_some_and(on_blocked)) {
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
            (Some(desired), Some(observed)) if desired.is_met_by(observed) => {}
            (Some(Object::Link(desired)), Some(Object::Link(observed))) => {
                let (to, from) = (Object::Link(desired.clone()), Object::Link(observed.clone()));
                match desired.likeness(observed) {
                    Likeness::Met | Likeness::Changeable => self.change(to, from),
                    // Make before break: what cannot be made is no reason to take away what is there. That it cannot is said by the
                    // attempt.
                    Likeness::Another if self.lacks_lower(desired) => self.out.ops.push(Op::Add(to)),
                    Likeness::Another => {
                        self.out.ops.push(Op::Remove(from));
                        self.out.ops.push(Op::Add(to));
                        self.rebuilt.push(desired.name);
                    }
                    Likeness::Stranger => {
                        self.blocked.push(desired.name);
                        self.conflict(&to, &from);
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

    /// Whether the link that a desired one is to lie on is not there.
    fn lacks_lower(&self, desired: &Link) -> bool {
        let lower = desired.kind.lower();
        lower.is_some_and(|lower| !self.observed.contains_key(&Key::Link(lower)))
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
            Owner::Ours => true,
            Owner::Predecessor => self.is_taken_over(desired, observed) || (self.held)(key),
            // A permanent neighbour or forwarding entry on our device is always ours; only routes have other owners.
            Owner::Foreign => (self.held)(key) && matches!(desired, Object::Route(_)),
        }
    }

    /// Whether a predecessor's route is the one it made for the peer whose place it is in, by whichever backend, or for a lease we
    /// once saw. An admin's `ip route add` looks the same but for where it leads.
    fn is_taken_over(&self, desired: &Object, observed: &Object) -> bool {
        let (Object::Route(desired), Object::Route(observed)) = (desired, observed) else {
            return true;
        };
        let is_way = |gateway| {
            Some(gateway) == desired.gateway
                || gateway == desired.destination.network()
                || self.remote_of(desired) == Some(gateway)
        };
        observed.gateway.is_some_and(is_way) || self.ownership.was_leased(observed)
    }

    /// Where a desired tunnel takes what follows a route: the forwarding entry of its gateway's hardware address.
    fn remote_of(&self, route: &Route) -> Option<IpAddr> {
        let neighbour = self.desired.get(&Key::Neighbour(route.link, route.gateway?))?;
        let Object::Neighbour(Neighbour { mac, .. }) = neighbour else {
            return None;
        };
        match self.desired.get(&Key::Forwarding(route.link, *mac))? {
            Object::Forwarding(entry) => Some(entry.remote),
            _ => None,
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

/// What stands in the place of an object whose link cannot be had: for a route, one that refuses what is sent to it.
fn instead_of(object: &Object) -> Option<Object> {
    match object {
        Object::Route(route) => Some(Object::Route(route.unreachable())),
        _ => None,
    }
}

/// The step to take instead of one that needs a link which is not there: fail closed. `None` when there is none, or nothing is
/// left to do.
pub fn without_link(op: &Op) -> Option<Op> {
    match op {
        Op::Add(object) => instead_of(object).map(Op::Add),
        Op::Change { from, to } => instead_of(to).filter(|to| to != from).map(|to| Op::Change {
            from: from.clone(),
            to,
        }),
        Op::Remove(_) => None,
    }
}

/// A link in our link's place that is none of the kind we make.
fn is_foreign(desired: &Object, observed: &Object) -> bool {
    match (desired, observed) {
        (Object::Link(want), Object::Link(have)) => want.likeness(have) == Likeness::Stranger,
        _ => false,
    }
}

/// Whether a link, as observed, can have on it what is to hang on the desired one: it is that device, and up if it shall be.
pub fn carries(desired: &Object, observed: &Object) -> bool {
    match (desired, observed) {
        (Object::Link(want), Object::Link(have)) => want.is_carried_by(have),
        _ => false,
    }
}

/// Whether the key's object, as observed, is one of ours with the content we want: what makes a place [held](diff).
pub fn is_held(desired: &Object, observed: &Object) -> bool {
    match observed {
        Object::Route(route) => route.is_marked() && desired.is_met_by(observed),
        _ => desired.is_met_by(observed),
    }
}

#[cfg(test)]
mod tests;
