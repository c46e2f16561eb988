//! Objects that more than one lease may ask for: the oldest of those that do has it.
//!
//! Most objects lie inside the subnet of the lease that asks for them, and no two leases that are served share an address. The
//! others, such as the forwarding entry of a MAC, are anybody's to publish.

use std::collections::BTreeSet;

use crate::lease::Subnet;
use crate::object::{Family, Key, Object};
use crate::world::seniority::Rank;

/// Who asks for what.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// By object, the oldest first.
    all: BTreeSet<(Key, i64, Subnet)>,
}

impl Claims {
    /// All at once.
    pub(super) fn of(claims: impl Iterator<Item = (Key, Rank)>) -> Claims {
        Claims {
            all: claims
                .map(|(key, (created, subnet))| (key, created, subnet))
                .collect(),
        }
    }

    /// A lease asks for an object.
    pub(super) fn add(&mut self, key: Key, (created, subnet): Rank) {
        self.all.insert((key, created, subnet));
    }

    /// It does not any more.
    pub(super) fn remove(&mut self, key: Key, (created, subnet): Rank) {
        self.all.remove(&(key, created, subnet));
    }

    /// The leases that ask for an object, the oldest first.
    pub(super) fn on(&self, key: Key) -> impl Iterator<Item = Rank> {
        self.all
            .range((key, i64::MIN, Subnet { v4: None, v6: None })..)
            .take_while(move |claim| claim.0 == key)
            .map(|(_, created, subnet)| (*created, *subnet))
    }

    /// The lease that has an object.
    pub(super) fn holder(&self, key: Key) -> Option<Rank> {
        self.on(key).next()
    }
}

/// Whether an object lies inside a subnet, so that no lease but the one of that subnet asks for it.
pub(super) fn is_inside(object: &Object, subnet: &Subnet) -> bool {
    let mut halves = Family::BOTH.into_iter().filter_map(|family| subnet.of(family));
    match object {
        Object::Route(route) => halves.any(|half| half.contains(&route.destination)),
        Object::Neighbour(neighbour) => halves.any(|half| half.contains(&neighbour.address)),
        Object::Link(_) | Object::Address(_) | Object::Forwarding(_) => false,
    }
}
