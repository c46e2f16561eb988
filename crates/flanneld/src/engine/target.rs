//! The kernel's objects as a target: what the leases ask for on one side, the mirror of the kernel on the other.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use fabric::diff::{Difference, Part, diff, without_link};
use fabric::object::{Family, Key, LinkName, Object, Op, Route};
use fabric::overlap::is_foreign_inside;
use fabric::ownership::Ownership;
use fabric::readiness::Kind;
use fabric::world::World;
use ipnet::{IpNet, Ipv4Net};
use kernel::{ApplyOptions, Host, NetlinkError, Outcome};
use tracing::warn;

use super::Word;
use crate::board::Reporter;
use crate::reconcile::patience::Damage;
use crate::reconcile::{Comparison, Conflict, Done, Fate, Look, Opponent, Step, Target};

/// From this many peers on, routes are made through nexthop objects: IPv4 route insertion is quadratic in the number of
/// plain next hops of a device. Below it plain routes are kept, which Go flannel can remove after a roll-back.
const NEXTHOP_PEERS: usize = 1000;
/// Operations applied between two signs of life.
const SLICE: usize = 2048;
/// A failure that says the mirror is wrong brings the next audit this near.
const DOUBT: Duration = Duration::from_secs(1);
/// A link that is refused is tried again after this at the latest.
const LINK_RETRY: Duration = Duration::from_secs(3);
/// Before every other prefix.
const FIRST_NET: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));

/// A route of somebody else's inside our Networks that no lease asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Overlap {
    /// The route, in the words of iproute2.
    pub(super) text: String,
    /// The peer's route whose traffic it draws away, where it does.
    pub(super) within: Option<Key>,
    /// It is one that Go flannel made for a Network of former times.
    pub(super) former: bool,
}

/// Leases and kernel.
pub(super) struct Objects<H> {
    pub(super) kernel: H,
    pub(super) reporter: Reporter,
    pub(super) world: Option<World>,
    pub(super) ownership: Ownership,
    /// Before a complete listing has come, absence of a lease means nothing and nothing is removed.
    pub(super) word: Word,
    /// Routes that were once ours and right since we started.
    held: BTreeSet<Key>,
    /// Routes of others inside our Networks.
    pub(super) overlaps: BTreeMap<Key, Overlap>,
    /// Links of this host that have a subnet inside our Networks that is not this host's.
    pub(super) strays: BTreeMap<Key, LinkName>,
    /// Links that are not as they shall be, and on which something was therefore not tried.
    pub(super) withheld: BTreeSet<LinkName>,
    /// Something was not removed because it may be that of a living peer.
    pub(super) doubting: Cell<bool>,
    /// The mirror may be wrong: the kernel is to be read as a whole by then.
    pub(super) doubt: Option<Instant>,
}

impl<H: Host> Objects<H> {
    pub(super) fn new(kernel: H, reporter: Reporter) -> Objects<H> {
        Objects {
            kernel,
            reporter,
            world: None,
            ownership: Ownership::default(),
            word: Word::Nothing,
            held: BTreeSet::new(),
            overlaps: BTreeMap::new(),
            strays: BTreeMap::new(),
            withheld: BTreeSet::new(),
            doubting: Cell::new(false),
            doubt: None,
        }
    }

    /// What differs from what the leases ask for.
    pub(super) fn difference(&self, part: Part<'_>) -> Difference {
        let Some(world) = &self.world else {
            return Difference::default();
        };
        let mut difference = diff(
            world.desired(),
            self.kernel.objects(),
            &self.ownership,
            &|key| self.held.contains(key),
            part,
        );
        if difference.ops.iter().any(|op| matches!(op, Op::Remove(_))) {
            let doubts = world.doubts(self.kernel.objects());
            let before = difference.ops.len();
            difference
                .ops
                .retain(|op| !matches!(op, Op::Remove(object) if doubts.cover(object)));
            if difference.ops.len() < before {
                self.doubting.set(true);
            }
        }
        if self.word < Word::Listed {
            // What is removed to be made anew goes all the same.
            difference
                .ops
                .retain(|op| !matches!(op, Op::Remove(_)) || world.desired().contains_key(&op.key()));
        }
        difference
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

    /// The mirrored addresses of a link.
    pub(super) fn addresses_of(&self, link: LinkName) -> impl Iterator<Item = &Object> {
        let objects = self.kernel.objects().range_from(&Key::Address(link, FIRST_NET));
        objects
            .take_while(move |(key, _)| matches!(key, Key::Address(..)) && key.link() == Some(link))
            .map(|(_, object)| object)
    }

    /// Whether a link that we want is there, the device it shall be, and as far up as it shall be. Links that are not ours to
    /// make are nobody's reason to wait.
    pub(super) fn stands(&self, link: LinkName) -> bool {
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
    pub(super) fn is_any_back(&self) -> bool {
        self.withheld.iter().any(|link| self.stands(*link))
    }

    /// Applies ops; the fate of each goes to `fates`.
    fn apply_ops(&mut self, ops: Vec<Op>, fates: &mut Vec<(Op, Fate)>, now: Instant) {
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
        let outcomes = self.kernel.apply(&ops, options);
        for (op, outcome) in ops.into_iter().zip(outcomes) {
            self.reporter.op(&op, matches!(outcome, Outcome::Failed(_)));
            let fate = match outcome {
                Outcome::Done | Outcome::Already => Fate::Done,
                Outcome::Failed(failure) => self.judge(&op, &failure, now),
            };
            fates.push((op, fate));
        }
    }

    /// Puts something that refuses packets in the places of routes through a link that cannot be had. They were said to be
    /// withheld, whatever comes of this; it is seen and tried again at the next comparison.
    fn close(&mut self, closing: Vec<Op>) {
        for slice in closing.chunks(SLICE) {
            let outcomes = self.kernel.apply(slice, ApplyOptions::default());
            for (op, outcome) in slice.iter().zip(outcomes) {
                self.reporter.op(op, matches!(outcome, Outcome::Failed(_)));
            }
            self.reporter.beat();
        }
    }

    fn judge(&mut self, op: &Op, failure: &NetlinkError, now: Instant) -> Fate {
        let link = op.object().link();
        // What the mirror says and what the kernel says do not agree: read it again soon.
        if [errno::EEXIST, errno::ENOENT, errno::ESRCH, errno::ENODEV].contains(&failure.errno) {
            let doubt = now + DOUBT;
            self.doubt = Some(self.doubt.map_or(doubt, |earlier| earlier.min(doubt)));
        }
        // The entries on a device go before the device does: putting them back fails until it is back, too.
        if failure.errno == errno::ENODEV && !op.key().is_link() && !self.stands(link) {
            self.withheld.insert(link);
            return Fate::Withheld;
        }
        Fate::Refused {
            kind: if self.is_by_lease(op, failure) {
                Kind::Degraded
            } else {
                Kind::Failure
            },
            text: failure.to_string(),
        }
    }

    /// Whether the kernel refuses what a peer has published: an address it cannot reach, or that can be no host's. No other host
    /// would do better, and this one is as it should be.
    fn is_by_lease(&self, op: &Op, failure: &NetlinkError) -> bool {
        let published = [errno::EINVAL, errno::EADDRNOTAVAIL];
        let unreachable = [errno::ENETUNREACH, errno::EHOSTUNREACH];
        let of_peer = match op.object() {
            Object::Route(route) => route.gateway.is_some(),
            Object::Neighbour(_) | Object::Forwarding(_) => true,
            Object::Link(_) | Object::Address(_) => false,
        };
        !matches!(op, Op::Remove(_))
            && of_peer
            && (published.contains(&failure.errno)
                || unreachable.contains(&failure.errno) && self.is_underlay_addressed(op))
    }

    /// Whether the underlay has the address that gateways are reached from: without it no peer can be reached, and that is
    /// nobody's lease's fault.
    fn is_underlay_addressed(&self, op: &Op) -> bool {
        let Some(world) = &self.world else { return false };
        let underlay = &world.node().underlay;
        let family = match op.object() {
            Object::Route(route) => Family::of_net(route.destination),
            _ => return true,
        };
        let own = |object: &Object| matches!(object, Object::Address(a) if Some(a.address.addr()) == underlay.address(family));
        self.addresses_of(underlay.link).any(own)
    }

    /// Brings the list of foreign routes inside our Networks up to date, after these keys, or all, were looked at.
    pub(super) fn note_overlaps(&mut self, whole: bool, keys: &BTreeSet<Key>) {
        let Some(world) = &self.world else { return };
        let observed = self.kernel.objects();
        let overlap = |object: &Object| {
            let Object::Route(route) = object else { return None };
            let former = is_left_over(route, world, &self.ownership);
            if !former && !is_foreign_inside(route, world.desired(), &self.ownership, world.node()) {
                return None;
            }
            let (within, text) = (draws_from(route, world), object.to_string());
            Some((object.key(), Overlap { text, within, former }))
        };
        let stray = |object: &Object| match object {
            Object::Route(route) => {
                is_stray(route, world, &self.ownership).then(|| (object.key(), route.link))
            }
            _ => None,
        };
        if whole {
            self.strays = observed.values().filter_map(stray).collect();
            self.overlaps = observed.values().filter_map(overlap).collect();
            return;
        }
        for key in keys.iter().filter(|key| matches!(key, Key::Route(..))) {
            self.strays.remove(key);
            self.overlaps.remove(key);
            let there = observed.get(key);
            self.strays.extend(there.and_then(stray));
            self.overlaps.extend(there.and_then(overlap));
            // A lease that came or went makes a difference to what lies inside its subnet.
            let Key::Route(subnet, _) = key else { continue };
            let inside = self.overlaps.range_mut(key..).take_while(
                |(other, _)| matches!(other, Key::Route(other, _) if subnet.contains(&other.addr())),
            );
            for (other, overlap) in inside {
                if let Some(Object::Route(route)) = observed.get(other) {
                    overlap.within = draws_from(route, world);
                }
            }
        }
    }

    /// Notes which places are ours and right.
    pub(super) fn note_held(&mut self, whole: bool, keys: &BTreeSet<Key>, done: &[Done<Op>]) {
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
        let touched = keys
            .iter()
            .copied()
            .chain(done.iter().map(|done| done.step.key()));
        for key in touched.filter(|key| is_route(key)) {
            if !desired.contains_key(&key) {
                self.held.remove(&key);
            } else if is_held(&key) {
                self.held.insert(key);
            }
        }
    }
}

impl<H: Host> Target for Objects<H> {
    type Key = Key;
    type Step = Op;

    fn compare(&mut self, look: Look<'_, Key>) -> Comparison<Op> {
        let part = match look {
            Look::Whole => {
                self.withheld.clear();
                Part::Whole
            }
            Look::Keys(keys) => Part::Keys(keys),
        };
        let difference = self.difference(part);
        let conflicts = difference.conflicts.into_iter().map(|conflict| {
            let key = conflict.desired.key();
            let conflict = Conflict {
                there: conflict.observed.to_string(),
                wanted: conflict.desired.to_string(),
            };
            (key, conflict)
        });
        Comparison {
            steps: difference.ops,
            conflicts: conflicts.collect(),
            unreadable: Vec::new(),
        }
    }

    // INVARIANT: of thousands of steps there is one copy at a time, and what came of them: what is taken out of them is taken in place.
    fn apply(&mut self, mut steps: Vec<Op>, now: Instant) -> Vec<(Op, Fate)> {
        let mut fates = Vec::with_capacity(steps.len());
        // Links first, in a conversation of their own: when a device cannot be made, the thousands of objects that hang on
        // it are not tried, and their failure has one cause and one line in the log. A link that is removed for good goes
        // last, one that is removed to be made anew goes first.
        let world = self.world.as_ref();
        let is_wanted = |key: &Key| world.is_some_and(|world| world.desired().contains_key(key));
        let links: Vec<Op> = steps
            .extract_if(.., |op| op.key().is_link() && is_wanted(&op.key()))
            .collect();
        for op in &links {
            if let Op::Remove(object) = op {
                warn!("{object}: not as it shall be, and made anew");
            }
        }
        self.apply_ops(links, &mut fates, now);
        // Somebody took it away before we had looked at what we made: nobody tells of that any more.
        for (op, fate) in fates.iter_mut().filter(|(_, fate)| *fate == Fate::Done) {
            if !matches!(op, Op::Remove(_)) && !self.stands(op.object().link()) {
                *fate = Fate::Refused {
                    kind: Kind::Failure,
                    text: "it is not there any more, or another one is".to_owned(),
                };
            }
        }
        let mut closing = Vec::new();
        let is_withheld = |op: &Op| !matches!(op, Op::Remove(_)) && !self.stands(op.object().link());
        let withheld: Vec<Op> = steps.extract_if(.., |op| is_withheld(op)).collect();
        for op in withheld {
            self.withheld.insert(op.object().link());
            closing.extend(without_link(&op));
            fates.push((op, Fate::Withheld));
        }
        self.close(closing);
        let mut steps = steps.into_iter();
        loop {
            let slice: Vec<Op> = steps.by_ref().take(SLICE).collect();
            if slice.is_empty() {
                return fates;
            }
            self.apply_ops(slice, &mut fates, now);
            self.reporter.beat();
        }
    }

    /// What the kernel took along with a link or an address was not fought over. It does so without naming anybody; of links,
    /// addresses and forwarding entries it never says who.
    fn is_fought(&self, op: &Op, by: Option<&Opponent>, disturbed: &BTreeMap<Key, Option<Opponent>>) -> bool {
        let key = op.key();
        let direct = by.is_some() || matches!(key, Key::Link(_) | Key::Address(..) | Key::Forwarding(..));
        let link = Key::Link(op.object().link());
        let went_along = key != link && disturbed.contains_key(&link);
        direct && !went_along
    }

    /// Who had the number or the port of a link of ours tells nobody when it lets go, and every peer waits.
    fn longest_retry(&self, key: &Key) -> Option<Duration> {
        key.is_link().then_some(LINK_RETRY)
    }

    fn encourages(&self, key: &Key) -> bool {
        key.is_link()
    }
}

impl Step for Op {
    type Key = Key;

    fn key(&self) -> Key {
        Op::key(self)
    }

    fn damage(&self) -> Damage {
        match self {
            Op::Add(_) => Damage::Missing,
            Op::Change { .. } | Op::Remove(_) => Damage::Changed,
        }
    }
}

/// errno values the engine decides by (`asm-generic/errno-base.h`, `errno.h`).
mod errno {
    pub const ENOENT: i32 = 2;
    pub const ESRCH: i32 = 3;
    pub const EEXIST: i32 = 17;
    pub const ENODEV: i32 = 19;
    pub const EINVAL: i32 = 22;
    pub const EADDRNOTAVAIL: i32 = 99;
    pub const ENETUNREACH: i32 = 101;
    pub const EHOSTUNREACH: i32 = 113;
}

/// Whether a route is one of Go flannel's on a device of ours, inside a Network of former times, and of no lease that is on record:
/// whether it may go nobody but an admin knows.
fn is_left_over(route: &Route, world: &World, ownership: &Ownership) -> bool {
    let covers = |network: &IpNet| network.contains(&route.destination);
    route.is_predecessors()
        && ownership.links.contains(&route.link)
        && ownership.networks.iter().any(covers)
        && !world.node().network.networks().any(|network| covers(&network))
        && !ownership.was_leased(route)
}

/// Whether the kernel made a route for an address that a link of this host has inside our Networks, though it is no link of ours
/// and the subnet none of this host's: a bridge that was set up for a subnet of former times.
fn is_stray(route: &Route, world: &World, ownership: &Ownership) -> bool {
    let node = world.node();
    let family = Family::of_net(route.destination);
    let is_inside = node.network.space(family).is_some_and(|space| {
        space.network.contains(&route.destination)
            && route.destination.prefix_len() > space.network.prefix_len()
    });
    let is_own = node
        .subnet
        .of(family)
        .is_some_and(|own| own.contains(&route.destination) || route.destination.contains(&own));
    let is_ours = ownership.links.contains(&route.link) || route.link == node.underlay.link;
    let is_whole = route.destination.prefix_len() < family.bits();
    route.is_kernels() && is_inside && is_whole && !is_own && !is_ours
}

/// The desired route of a peer whose subnet a foreign route's destination lies in: the kernel prefers the longer one.
fn draws_from(route: &Route, world: &World) -> Option<Key> {
    let metric = Family::of_net(route.destination).default_metric();
    let shorter = (1..route.destination.prefix_len()).rev();
    shorter
        .filter_map(|length| IpNet::new(route.destination.addr(), length).ok())
        .map(|net| Key::Route(net.trunc(), metric))
        .find(|key| world.desired().contains_key(key))
}
