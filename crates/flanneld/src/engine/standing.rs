//! How things stand: what is reported after a step, and what is answered when somebody asks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use fabric::object::{Key, Object};
use fabric::status::{Peer, PeerObject};
use ipnet::IpNet;
use kernel::Host;

use super::report::{self, Engagement};
use super::subnet_env::EnvKeeper;
use super::{Engine, Word};
use crate::mailbox::Listing;

/// What takes work for every lease or object is counted at most this often.
const CENSUS: Duration = Duration::from_secs(1);

/// Numbers over all leases and objects.
#[derive(Debug, Default)]
pub(super) struct Census {
    taken: Option<Instant>,
    stale: bool,
    unserved: usize,
    objects: BTreeMap<&'static str, usize>,
}

impl Census {
    /// When the numbers are to be counted anew, if they are.
    pub(super) fn next(&self) -> Option<Instant> {
        self.taken.filter(|_| self.stale).map(|taken| taken + CENSUS)
    }
}

impl<H: Host> Engine<H> {
    /// Tells the rest of the daemon how things stand.
    pub(super) fn engage(&mut self, planned: usize, took: Duration, now: Instant) {
        self.census.stale = true;
        if self.census.taken.is_none() {
            self.count(now);
        }
        let Some(world) = &self.world else { return };
        let own = usize::from(world.leases().contains_key(&world.node().subnet));
        self.reporter.engaged(Engagement {
            revision: world.revision(),
            peers: world.leases().len() - own,
            failed_peers: if self.are_all_served() {
                world.problems().len()
            } else {
                self.census.unserved
            },
            objects: &self.census.objects,
            failures: named(
                self.patience
                    .failures()
                    .map(|(key, error)| format!("{key}: {error}")),
            ),
            conflicts: named(
                self.conflicts
                    .values()
                    .map(|c| format!("{} in the place of {}", c.observed, c.desired)),
            ),
            overlaps: named(self.overlaps.values().cloned()),
            fights: named(
                self.patience
                    .fights()
                    .map(|(key, by)| {
                        let by = by.unwrap_or("somebody unknown");
                        format!("{key} is changed again and again by {by}")
                    })
                    .chain(self.env.as_ref().and_then(EnvKeeper::fight)),
            ),
            planned,
            took,
        });
    }

    /// Nothing but what leases themselves lack keeps any peer from being served.
    fn are_all_served(&self) -> bool {
        self.conflicts.is_empty() && self.withheld.is_empty() && !self.patience.is_failing()
    }

    /// Counts anew when the last count is old and not true any more.
    pub(super) fn take_census(&mut self, now: Instant) {
        if self.census.next().is_some_and(|at| at <= now) {
            self.count(now);
            self.engage(0, Duration::ZERO, now);
            self.census.stale = false;
        }
    }

    fn count(&mut self, now: Instant) {
        let unserved = if self.are_all_served() {
            0
        } else {
            self.peers().iter().filter(|peer| peer.error.is_some()).count()
        };
        self.census = Census {
            taken: Some(now),
            stale: false,
            unserved,
            objects: report::count(self.kernel.objects()),
        };
    }

    /// How each peer stands, by what its lease asks for and the kernel was seen to hold.
    pub(super) fn peers(&self) -> Vec<Peer> {
        let Some(world) = &self.world else {
            return Vec::new();
        };
        let observed = self.kernel.objects();
        world
            .peers()
            .map(|lease| {
                let asked = world.objects_of(lease);
                let keys: Vec<Key> = asked.iter().map(Object::key).collect();
                let is_right = |key: &Key| match (world.desired().get(key), observed.get(key)) {
                    (Some(want), Some(have)) => fabric::diff::equal(want, have),
                    _ => false,
                };
                let wrong: Vec<&Key> = keys.iter().filter(|key| !is_right(key)).collect();
                let error = world.problems().get(&lease.subnet).map(|problems| {
                    problems
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join("; ")
                });
                let cause = wrong.first().map(|key| match self.conflicts.get(key) {
                    Some(conflict) => format!("{} is in the way", conflict.observed),
                    None => format!("{key}: {}", self.patience.error(key).unwrap_or("not there yet")),
                });
                let conflict = wrong.iter().any(|key| self.conflicts.contains_key(key));
                let objects = asked.iter().map(|object| PeerObject {
                    object: object.to_string(),
                    ok: is_right(&object.key()),
                });
                let objects = objects.collect();
                report::peer(lease, objects, conflict, error.or(cause))
            })
            .collect()
    }

    /// What the registry said last; nothing while all that is known is what it said to an earlier process.
    pub(super) fn listing(&self) -> Option<Listing> {
        let world = self.world.as_ref().filter(|_| self.word == Word::Listed)?;
        Some(Listing {
            revision: world.revision(),
            lines: crate::cache::lines(world.leases().values()),
        })
    }

    /// Destinations and next hops of the desired routes.
    pub(super) fn routes(&self) -> Vec<(IpNet, IpAddr)> {
        let desired = self.world.iter().flat_map(|world| world.desired().values());
        desired
            .filter_map(|object| match object {
                Object::Route(route) => Some((route.destination, route.gateway?)),
                _ => None,
            })
            .collect()
    }
}

/// The first few: there may be thousands with one cause.
fn named(all: impl Iterator<Item = String>) -> Vec<String> {
    all.take(report::NAMED).collect()
}
