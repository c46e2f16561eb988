//! The step itself: compare, apply, and note what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric::diff::{Conflict, Part};
use fabric::object::{Key, LinkName, Object, Op};
use fabric::overlap::foreign_routes;
use kernel::{ApplyOptions, Host, NetlinkError, Outcome};
use tracing::{debug, info, warn};

use super::{Due, Engine, Word};

/// From this many peers on, routes are made through nexthop objects: IPv4 route insertion is quadratic in the number of
/// plain next hops of a device. Below it plain routes are kept, which Go flannel can remove after a roll-back.
const NEXTHOP_PEERS: usize = 1000;
/// Repairs named one by one in the log before the rest is a number.
const NAMED_REPAIRS: usize = 8;
/// Operations applied between two signs of life.
const SLICE: usize = 2048;
/// A failure that says the mirror is wrong brings the next audit this near.
const DOUBT: Duration = Duration::from_secs(1);

/// A step that succeeded.
struct Done {
    op: Op,
    /// It had failed before.
    retried: bool,
}

impl<H: Host> Engine<H> {
    /// Brings the kernel to the desired state as far as it is known to differ and the clocks allow.
    pub(super) fn reconcile(&mut self, now: Instant) {
        if !self.is_at_work() {
            return;
        }
        if !self.due.is_news() && !self.due.disturbed.is_empty() && now < self.settled_at {
            return;
        }
        let due = std::mem::take(&mut self.due);
        let mut keys = self.patience.due(now);
        keys.extend(due.keys.iter().chain(due.disturbed.keys()));
        let whole = due.replanned || due.observed || self.is_any_back();
        if keys.is_empty() && !whole {
            if due.told {
                self.engage(0, Duration::ZERO, now);
            }
            return;
        }
        if whole {
            self.withheld.clear();
        }
        let started = Instant::now();
        let difference = self.compare(if whole { Part::Whole } else { Part::Keys(&keys) });
        self.note_conflicts(whole, &keys, difference.conflicts);
        if self.patience.is_failing() {
            // Somebody else did what had failed, or something stands in its place, or nobody wants it any more.
            let open: BTreeSet<Key> = difference.ops.iter().map(Op::key).collect();
            self.patience
                .retain(|key| open.contains(key) || !(whole || keys.contains(key)));
        }
        if whole {
            self.note_overlaps();
        }
        let planned = difference.ops.len();
        let (done, failed) = self.carry_out(difference.ops, now);
        for key in &keys {
            self.patience.looked_at(key, now);
        }
        self.note_held(whole, &keys, &done);
        self.note_repairs(&due, &done, now);
        if planned > 0 {
            debug!(
                "applied {} of {planned} ops in {:?}",
                done.len(),
                started.elapsed()
            );
        }
        drop(done);
        self.engage(planned, started.elapsed(), now);
        if whole && !failed && self.resync.is_none() && self.word == Word::Listed {
            // A predecessor's routes have been dealt with, and no more will come while we run.
            self.ownership.former_leases = BTreeMap::new();
        }
        if whole {
            if planned > 0 {
                self.kernel.compact();
            }
            kernel::heap::trim();
        }
    }

    /// Takes the steps whose time it is; what succeeded, and whether anything did not.
    fn carry_out(&mut self, ops: Vec<Op>, now: Instant) -> (Vec<Done>, bool) {
        let planned = ops.len();
        let ops = ops.into_iter().filter(|op| self.patience.allows(&op.key(), now));
        // Links first, in a conversation of their own: when a device cannot be made, the thousands of objects that hang on
        // it are not tried, and their failure has one cause and one line in the log. A link that is removed for good goes
        // last, one that is removed to be made anew goes first.
        let world = self.world.as_ref();
        let is_wanted = |key: &Key| world.is_some_and(|world| world.desired().contains_key(key));
        let (links, mut others): (Vec<Op>, Vec<Op>) =
            ops.partition(|op| op.key().is_link() && is_wanted(&op.key()));
        let mut done = Vec::with_capacity(planned);
        self.apply(links, &mut done, now);
        others.retain(|op| {
            let link = op.object().link();
            let is_tried = matches!(op, Op::Remove(_)) || self.stands(link);
            if !is_tried {
                self.withheld.insert(link);
                // It waits for the link and for no clock of its own.
                self.patience.succeeded(&op.key());
            }
            is_tried
        });
        while !others.is_empty() {
            let rest = others.split_off(others.len().min(SLICE));
            self.apply(others, &mut done, now);
            others = rest;
            self.reporter.beat();
        }
        if self.is_any_back() {
            self.due.observed = true;
        }
        let failed = done.len() < planned;
        (done, failed)
    }

    /// Whether a link that we want is there, the device it shall be, and as far up as it shall be. Links that are not ours to
    /// make are nobody's reason to wait.
    fn stands(&self, link: LinkName) -> bool {
        let key = Key::Link(link);
        let Some(desired) = self.world.as_ref().and_then(|world| world.desired().get(&key)) else {
            return true;
        };
        self.kernel
            .objects()
            .get(&key)
            .is_some_and(|observed| fabric::diff::carries(desired, observed))
    }

    /// Whether a link for whose sake something was not tried can be worked on again.
    fn is_any_back(&self) -> bool {
        self.withheld.iter().any(|link| self.stands(*link))
    }

    /// Applies ops; what succeeds goes to `done`.
    fn apply(&mut self, ops: Vec<Op>, done: &mut Vec<Done>, now: Instant) {
        if ops.is_empty() {
            return;
        }
        let peers = self.world.as_ref().map_or(0, |world| world.leases().len());
        let backend_has_devices = self
            .world
            .as_ref()
            .is_some_and(|w| !w.backend().links(&w.node().network).is_empty());
        let options = ApplyOptions {
            nexthop_objects: backend_has_devices && peers > NEXTHOP_PEERS,
        };
        let (total, mut failed, mut news) = (ops.len(), 0_usize, 0_usize);
        let outcomes = self.kernel.apply(&ops, options);
        for (op, outcome) in ops.into_iter().zip(outcomes) {
            let key = op.key();
            self.reporter.op(&op, matches!(outcome, Outcome::Failed(_)));
            match outcome {
                Outcome::Done | Outcome::Already => {
                    let retried = self.patience.error(&key).is_some();
                    self.patience.succeeded(&key);
                    if key.is_link() {
                        // What had failed for want of it need not wait any longer.
                        self.patience.hurry(now);
                    }
                    done.push(Done { op, retried });
                }
                Outcome::Failed(failure) => {
                    failed += 1;
                    news += usize::from(self.patience.error(&key).is_none());
                    self.note_failure(key, &failure, failed <= NAMED_REPAIRS, now);
                }
            }
        }
        // Once for each state of affairs, and not at every further attempt.
        if failed > NAMED_REPAIRS && news > 0 {
            warn!(
                "{failed} of {total} steps failed; they are tried again, and `flannelctl status` names them"
            );
        }
    }

    fn note_failure(&mut self, key: Key, failure: &NetlinkError, named: bool, now: Instant) {
        // What the mirror says and what the kernel says do not agree: read it again soon.
        if [errno::EEXIST, errno::ENOENT, errno::ESRCH, errno::ENODEV].contains(&failure.errno) {
            self.audit_at = self.audit_at.min(now + DOUBT);
        }
        // The entries on a device go before the device does: putting them back fails until it is back, too.
        let orphan = failure.errno == errno::ENODEV && !key.is_link();
        if self.patience.error(&key).is_none() && named && !orphan {
            warn!("cannot {failure}");
        }
        self.patience.failed(key, failure.to_string(), now);
    }

    fn note_conflicts(&mut self, whole: bool, keys: &BTreeSet<Key>, found: Vec<Conflict>) {
        let before = std::mem::take(&mut self.conflicts);
        let mut named = 0;
        for conflict in found {
            let key = conflict.desired.key();
            if !before.contains_key(&key) {
                named += 1;
                if named <= NAMED_REPAIRS {
                    warn!(
                        "{} stands where {} has to be; it is not ours and is left alone",
                        conflict.observed, conflict.desired
                    );
                }
            }
            self.conflicts.insert(key, conflict);
        }
        if named > NAMED_REPAIRS {
            warn!(
                "{} more objects that are not ours stand where ours have to be",
                named - NAMED_REPAIRS
            );
        }
        if !whole {
            self.conflicts
                .extend(before.into_iter().filter(|(key, _)| !keys.contains(key)));
        }
    }

    fn note_overlaps(&mut self) {
        let before = std::mem::take(&mut self.overlaps);
        let Some(world) = &self.world else { return };
        let found = foreign_routes(
            world.desired(),
            self.kernel.objects(),
            &self.ownership,
            world.node(),
        );
        let mut named = 0;
        for route in found {
            let route = Object::Route(*route);
            let (key, text) = (route.key(), route.to_string());
            if before.get(&key) != Some(&text) {
                named += 1;
                if named <= NAMED_REPAIRS {
                    warn!(
                        "{text} lies inside the network, but no lease asks for it and it is not ours; it is left alone"
                    );
                }
            }
            self.overlaps.insert(key, text);
        }
        if named > NAMED_REPAIRS {
            warn!(
                "{} more routes inside the network are not ours",
                named - NAMED_REPAIRS
            );
        }
    }

    fn note_held(&mut self, whole: bool, keys: &BTreeSet<Key>, done: &[Done]) {
        let Some(world) = &self.world else { return };
        let (desired, observed) = (world.desired(), self.kernel.objects());
        let is_held = |key: &Key| matches!((desired.get(key), observed.get(key)), (Some(d), Some(o)) if fabric::diff::is_held(d, o));
        let is_route = |key: &Key| matches!(key, Key::Route(..));
        if whole {
            // What was ours before stays so, whoever is there at the moment.
            let held = desired
                .keys()
                .filter(is_route)
                .filter(|key| self.held.contains(key) || is_held(key));
            self.held = held.collect();
            return;
        }
        let touched = keys.iter().copied().chain(done.iter().map(|done| done.op.key()));
        for key in touched.filter(|key| is_route(key)) {
            if !desired.contains_key(&key) {
                self.held.remove(&key);
            } else if is_held(&key) {
                self.held.insert(key);
            }
        }
    }

    fn note_repairs(&mut self, due: &Due, done: &[Done], now: Instant) {
        if due.replanned {
            return;
        }
        let mut named = 0;
        let mut opponents: BTreeMap<u32, Arc<str>> = BTreeMap::new();
        for Done { op, retried } in done {
            let key = op.key();
            let by = match due.disturbed.get(&key) {
                // Not a repair but news: the desired state of this key has changed.
                _ if due.keys.contains(&key) => continue,
                Some(by) => {
                    by.map(|port| Arc::clone(opponents.entry(port).or_insert_with(|| opponent(port))))
                }
                // It was never there.
                None if *retried => continue,
                // A comparison after a dump finds what notifications did not tell, or what hung on a link that is gone.
                None if due.observed || !due.disturbed.is_empty() => None,
                None => continue,
            };
            named += 1;
            if named <= NAMED_REPAIRS {
                match &by {
                    Some(by) => info!("repaired: {op} (changed by {by})"),
                    None => info!("repaired: {op}"),
                }
            }
            self.reporter.repaired(&key);
            // What the kernel took along with a link or an address was not fought over. It does so without naming anybody;
            // of links, addresses and forwarding entries it never says who.
            let direct = by.is_some() || matches!(key, Key::Link(_) | Key::Address(..) | Key::Forwarding(..));
            let link = Key::Link(op.object().link());
            let went_along = key != link && due.disturbed.contains_key(&link);
            if due.disturbed.contains_key(&key) && direct && !went_along {
                self.patience.repaired(key, by, now);
            }
        }
        if named > NAMED_REPAIRS {
            info!("repaired {} more objects", named - NAMED_REPAIRS);
        }
    }
}

/// errno values the engine decides by (`asm-generic/errno-base.h`).
mod errno {
    pub const ENOENT: i32 = 2;
    pub const ESRCH: i32 = 3;
    pub const EEXIST: i32 = 17;
    pub const ENODEV: i32 = 19;
}

/// Names the process behind a netlink port id. Programs use their PID for their first socket; ours and long-lived daemons'
/// further sockets have other numbers, which then name nobody.
fn opponent(port: u32) -> Arc<str> {
    match std::fs::read_to_string(format!("/proc/{port}/comm")) {
        Ok(name) => format!("pid {port} ({})", name.trim_end()).into(),
        Err(_) => format!("pid {port}").into(),
    }
}
