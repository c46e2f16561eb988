//! The loop that keeps the kernel equal to the leases: observe, diff, apply, and again at every change of either side.
//!
//! It runs on a thread of its own, owns every netlink socket, and never waits for anything but its `poll`. The only feedback
//! is the next observation: a step that failed is found missing again, an object that somebody removed is found missing
//! likewise, and both are put right by the same diff.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric::diff::{Conflict, Difference, Part, diff};
use fabric::lease::Update;
use fabric::node::Node;
use fabric::object::{Key, Object, Op};
use fabric::ownership::Ownership;
use fabric::plan::Backend;
use fabric::world::{Touched, World};
use ipnet::IpNet;
use kernel::{ApplyOptions, Interest, Kernel, KernelError, Outcome, Scope};
use tracing::{debug, error, info, warn};

use crate::engine::patience::Patience;
use crate::engine::report::{Engagement, Reporter};
use crate::engine::subnet_env::EnvKeeper;
use crate::mailbox::{Command, Mailbox};

pub mod patience;
pub mod report;
pub mod subnet_env;

/// A full dump and comparison at least this often, whatever the notifications said; up to a quarter later.
const AUDIT: Duration = Duration::from_secs(60);
/// Dumps that overruns and link changes ask for are done at most this often.
const RESYNC_PAUSE: Duration = Duration::from_millis(100);
/// A disturbance is looked at this long after its first sign: the kernel tells of the entries on a deleted device before it
/// tells of the device, and putting back the ones only to hear of the other would be wasted.
const SETTLE: Duration = Duration::from_millis(5);
/// The loop shows that it is alive at least this often.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// From this many peers on, routes are made through nexthop objects: IPv4 route insertion is quadratic in the number of
/// plain next hops of a device. Below it plain routes are kept, which Go flannel can remove after a roll-back.
const NEXTHOP_PEERS: usize = 1000;
/// Repairs named one by one in the log before the rest is a number.
const NAMED_REPAIRS: usize = 8;

/// What the engine works on: made anew when the lease, the config or the underlay changes.
#[derive(Debug)]
pub struct Setup {
    /// How leases become objects.
    pub backend: Box<dyn Backend>,
    /// This node.
    pub node: Node,
    /// What it may touch.
    pub ownership: Ownership,
    /// The subnet file it keeps.
    pub env: EnvKeeper,
}

/// What made keys due.
#[derive(Debug, Default)]
struct Due {
    /// Everything, because the desired state changed as a whole.
    replanned: bool,
    /// Everything, because the observed state was read anew.
    observed: bool,
    /// These, because their desired state changed.
    keys: BTreeSet<Key>,
    /// These, because somebody else changed them; with the sender's netlink port.
    disturbed: BTreeMap<Key, Option<u32>>,
}

impl Due {
    /// Whether there is more than disturbances.
    fn is_news(&self) -> bool {
        self.replanned || self.observed || !self.keys.is_empty()
    }

    fn is_empty(&self) -> bool {
        !self.is_news() && self.disturbed.is_empty()
    }
}

/// The engine.
pub struct Engine {
    kernel: Kernel,
    mailbox: Arc<Mailbox>,
    reporter: Reporter,
    world: Option<World>,
    ownership: Ownership,
    env: Option<EnvKeeper>,
    /// The first complete listing has come. Before it, absence of a lease means nothing and nothing is removed.
    listed: bool,
    paused: bool,
    due: Due,
    patience: Patience,
    /// Routes that were once ours and right since we started.
    held: BTreeSet<Key>,
    conflicts: BTreeMap<Key, Conflict>,
    resync: Option<Scope>,
    resync_at: Instant,
    audit_at: Instant,
    settled_at: Instant,
    /// Called when the underlay changed in a way that the choice of interface, address or MTU may depend on.
    on_underlay: Box<dyn Fn() + Send>,
    jitter: u64,
}

impl Engine {
    /// An engine with open sockets in the calling thread's network namespace, and nothing to do yet.
    pub fn new(
        mailbox: Arc<Mailbox>,
        reporter: Reporter,
        on_underlay: Box<dyn Fn() + Send>,
        seed: u64,
    ) -> Result<Engine, KernelError> {
        let now = Instant::now();
        Ok(Engine {
            kernel: Kernel::open(Interest::default())?,
            mailbox,
            reporter,
            world: None,
            ownership: Ownership::default(),
            env: None,
            listed: false,
            paused: false,
            due: Due::default(),
            patience: Patience::default(),
            held: BTreeSet::new(),
            conflicts: BTreeMap::new(),
            resync: None,
            resync_at: now,
            audit_at: now + AUDIT,
            settled_at: now,
            on_underlay,
            jitter: seed,
        })
    }

    /// Runs until the mailbox says stop. What is in the kernel stays there.
    pub fn run(mut self) {
        loop {
            self.wait();
            self.reporter.beat();
            let mail = self.mailbox.take();
            if let Some(setup) = mail.setup {
                self.set_up(setup);
            }
            if let Some(update) = mail.update {
                self.update(update);
            }
            self.listen();
            for command in mail.commands {
                self.obey(command);
            }
            self.reconcile();
            if let Some(env) = &mut self.env
                && self.listed
                && !self.paused
            {
                env.keep(&self.reporter);
            }
            if mail.stop {
                return;
            }
        }
    }

    fn wait(&mut self) {
        let now = Instant::now();
        let mut until = now + HEARTBEAT;
        let resync = self.resync.is_some().then_some(self.resync_at);
        let clocks = [self.patience.next(), resync, Some(self.audit_at)];
        for at in clocks.into_iter().flatten() {
            until = until.min(at);
        }
        if !self.due.is_empty() && !self.paused && self.listed {
            until = if self.due.is_news() { now } else { until.min(self.settled_at) };
        }
        let env = self.env.as_ref().and_then(EnvKeeper::fd);
        let mut fds = vec![self.kernel.monitor_fd(), self.mailbox.waker().fd()];
        fds.extend(env);
        if let Err(failure) = kernel::poll::wait(&fds, until.saturating_duration_since(now)) {
            error!("poll: {failure}");
            std::thread::sleep(RESYNC_PAUSE);
        }
    }

    fn set_up(&mut self, setup: Setup) {
        let Setup { backend, node, ownership, env } = setup;
        let mut links = backend.links(&node.network);
        links.extend(ownership.links.iter().copied().filter(|link| !backend.links(&node.network).contains(link)));
        links.push(node.underlay.link);
        self.kernel.set_interest(Interest { links, networks: ownership.networks.clone() });
        self.ownership = ownership;
        self.env = Some(env);
        match &mut self.world {
            Some(world) => world.set_node(backend, node),
            None => self.world = Some(World::new(backend, node)),
        }
        self.held.clear();
        self.observe(Scope::All);
        self.refresh_direct();
        self.due.replanned = true;
    }

    fn update(&mut self, update: Update) {
        self.learn_direct(&update);
        let Some(world) = &mut self.world else {
            warn!("registry news before the set-up was dropped");
            return;
        };
        let snapshot = matches!(update, Update::Snapshot(_));
        match world.update(update) {
            Touched::Whole => self.due.replanned = true,
            Touched::Keys(keys) => self.due.keys.extend(keys),
        }
        if snapshot && !self.listed {
            self.listed = true;
            self.due.replanned = true;
        }
        self.reporter.leases(world);
    }

    /// Reads what the kernel has to say since the last time.
    fn listen(&mut self) {
        match self.kernel.drain() {
            Ok(drained) => {
                if self.due.disturbed.is_empty() {
                    self.settled_at = Instant::now() + SETTLE;
                }
                for change in drained.changed {
                    self.due.disturbed.insert(change.key, change.by);
                }
                if let Some(scope) = drained.resync {
                    self.ask_resync(scope);
                }
                if drained.underlay_changed {
                    self.patience.hurry(Instant::now());
                    self.refresh_direct();
                    (self.on_underlay)();
                }
            }
            Err(failure) => {
                error!("kernel notifications: {failure}");
                self.ask_resync(Scope::All);
            }
        }
        let now = Instant::now();
        if now >= self.audit_at {
            self.audit_at = now + AUDIT + AUDIT / 4 * self.random(100) / 100;
            self.resync = Some(Scope::All);
            self.resync_at = now;
            self.patience.forget(now);
            self.reporter.audited();
        }
        if now >= self.resync_at
            && let Some(scope) = self.resync.take()
        {
            self.observe(scope);
            self.resync_at = now + RESYNC_PAUSE;
        }
    }

    fn ask_resync(&mut self, scope: Scope) {
        self.resync = Some(match self.resync.take() {
            None => scope,
            Some(earlier) if earlier == scope => scope,
            Some(_) => Scope::All,
        });
    }

    fn observe(&mut self, scope: Scope) {
        if let Err(failure) = self.kernel.observe(scope) {
            error!("reading the kernel's state: {failure}");
            self.resync = Some(Scope::All);
            self.resync_at = Instant::now() + Duration::from_secs(1);
            return;
        }
        self.due.observed = true;
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Plan(reply) => {
                self.observe(Scope::All);
                let ops = self.compare(Part::Whole).ops;
                let _ = reply.send(ops.iter().map(ToString::to_string).collect());
            }
            Command::Peers(reply) => {
                let _ = reply.send(self.peers());
            }
            Command::Routes(reply) => {
                let _ = reply.send(self.routes());
            }
            Command::Pause(paused) => {
                info!("{}", if paused { "paused: the kernel is left as it is" } else { "resumed" });
                self.paused = paused;
                self.due.observed = true;
                self.reporter.paused(paused);
            }
        }
    }

    fn compare(&self, part: Part<'_>) -> Difference {
        let Some(world) = &self.world else { return Difference::default() };
        diff(world.desired(), self.kernel.objects(), &self.ownership, &|key| self.held.contains(key), part)
    }

    /// Brings the kernel to the desired state as far as it is known to differ and the clocks allow.
    fn reconcile(&mut self) {
        let now = Instant::now();
        if self.paused || !self.listed || self.world.is_none() {
            return;
        }
        if !self.due.is_news() && !self.due.disturbed.is_empty() && now < self.settled_at {
            return;
        }
        let due = std::mem::take(&mut self.due);
        let mut keys = self.patience.due(now);
        keys.extend(due.keys.iter().chain(due.disturbed.keys()));
        let whole = due.replanned || due.observed;
        if keys.is_empty() && !whole {
            return;
        }
        let started = Instant::now();
        let difference = self.compare(if whole { Part::Whole } else { Part::Keys(&keys) });
        self.note_conflicts(whole, &keys, difference.conflicts);

        let ops: Vec<Op> =
            difference.ops.into_iter().filter(|op| self.patience.allows(&op.key(), now)).collect();
        for key in &keys {
            self.patience.looked_at(key, now);
        }
        let planned = ops.len();
        let mut done = Vec::new();
        // Links first, in a conversation of their own: when a device cannot be made, the thousands of objects that hang on
        // it are not tried, and their failure has one cause and one line in the log.
        let built: BTreeSet<Key> =
            ops.iter().filter(|op| op.key().is_link() && !matches!(op, Op::Remove(_))).map(Op::key).collect();
        // A link that is removed for good goes last, one that is removed to be made anew goes first.
        let (links, mut others): (Vec<Op>, Vec<Op>) = ops.into_iter().partition(|op| built.contains(&op.key()));
        let lost = self.apply(&links, &mut done, now);
        if !lost.is_empty() {
            others.retain(|op| matches!(op, Op::Remove(_)) || !hangs_on(op, &lost));
        }
        self.apply(&others, &mut done, now);
        self.note_held(whole, &keys, &done);
        self.note_repairs(&due, &done, now);
        if planned > 0 {
            debug!("applied {} of {planned} ops in {:?}", done.len(), started.elapsed());
        }
        if whole && let Some(world) = &self.world {
            let desired = world.desired();
            self.patience.retain(|key| desired.contains_key(key));
        }
        self.engage(planned, started.elapsed());
        if whole {
            // A predecessor's routes have been dealt with, and no more will come while we run.
            self.ownership.former_leases = BTreeMap::new();
        }
        if whole && planned > 0 {
            self.kernel.compact();
            kernel::heap::trim();
        }
    }

    /// Applies ops; returns the links that could not be built.
    fn apply(&mut self, ops: &[Op], done: &mut Vec<Op>, now: Instant) -> Vec<Key> {
        let mut lost = Vec::new();
        if ops.is_empty() {
            return lost;
        }
        let peers = self.world.as_ref().map_or(0, |world| world.leases().len());
        let backend_has_devices =
            self.world.as_ref().is_some_and(|w| !w.backend().links(&w.node().network).is_empty());
        let options = ApplyOptions { nexthop_objects: backend_has_devices && peers > NEXTHOP_PEERS };
        let mut failed = 0_usize;
        for (op, outcome) in ops.iter().zip(self.kernel.apply(ops, options)) {
            let key = op.key();
            self.reporter.op(op, matches!(outcome, Outcome::Failed(_)));
            match outcome {
                Outcome::Done | Outcome::Already => {
                    self.patience.succeeded(&key);
                    if key.is_link() {
                        // What had failed for want of it need not wait any longer.
                        self.patience.hurry(now);
                    }
                    done.push(op.clone());
                }
                Outcome::Failed(failure) => {
                    failed += 1;
                    // What the mirror says and what the kernel says do not agree: read it again soon.
                    if [libc_errno::EEXIST, libc_errno::ENOENT, libc_errno::ESRCH, libc_errno::ENODEV]
                        .contains(&failure.errno)
                    {
                        self.audit_at = self.audit_at.min(now + Duration::from_secs(1));
                    }
                    // The entries on a device go before the device does: putting them back fails until it is back, too.
                    let orphan = failure.errno == libc_errno::ENODEV && !key.is_link();
                    if self.patience.error(&key).is_none() && failed <= NAMED_REPAIRS && !orphan {
                        warn!("cannot {failure}");
                    }
                    self.patience.failed(key, failure.to_string(), now);
                    if key.is_link() {
                        lost.push(key);
                    }
                }
            }
        }
        if failed > NAMED_REPAIRS {
            warn!("{failed} of {} steps failed; they are tried again, and `flannelctl status` names them", ops.len());
        }
        lost
    }

    fn note_conflicts(&mut self, whole: bool, keys: &BTreeSet<Key>, found: Vec<Conflict>) {
        let before = std::mem::take(&mut self.conflicts);
        if !whole {
            self.conflicts.extend(before.iter().filter(|(key, _)| !keys.contains(key)).map(|(k, c)| (*k, c.clone())));
        }
        for conflict in found {
            let key = conflict.desired.key();
            if !before.contains_key(&key) {
                warn!(
                    "{} stands where {} has to be; it is not ours and is left alone",
                    conflict.observed, conflict.desired
                );
            }
            self.conflicts.insert(key, conflict);
        }
    }

    fn note_held(&mut self, whole: bool, keys: &BTreeSet<Key>, done: &[Op]) {
        let Some(world) = &self.world else { return };
        let (desired, observed) = (world.desired(), self.kernel.objects());
        let is_held = |key: &Key| {
            matches!((desired.get(key), observed.get(key)), (Some(d), Some(o)) if fabric::diff::is_held(d, o))
        };
        let routes = |key: &&Key| matches!(key, Key::Route(..));
        if whole {
            self.held = desired.keys().filter(routes).filter(|key| is_held(key)).copied().collect();
            return;
        }
        for key in keys.iter().filter(routes).copied().chain(done.iter().map(Op::key)) {
            if !desired.contains_key(&key) {
                self.held.remove(&key);
            } else if matches!(key, Key::Route(..)) && is_held(&key) {
                self.held.insert(key);
            }
        }
    }

    fn note_repairs(&mut self, due: &Due, done: &[Op], now: Instant) {
        if due.replanned {
            return;
        }
        let mut named = 0;
        for op in done {
            let key = op.key();
            let by = match due.disturbed.get(&key) {
                // Not a repair but news: the desired state of this key has changed.
                _ if due.keys.contains(&key) => continue,
                Some(by) => by.map(opponent),
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

    /// Tells the rest of the daemon how things stand.
    fn engage(&self, planned: usize, took: Duration) {
        let Some(world) = &self.world else { return };
        let failed_peers = if self.conflicts.is_empty() && self.patience.failures().next().is_none() {
            world.problems().len()
        } else {
            self.peers().iter().filter(|peer| peer.error.is_some()).count()
        };
        self.reporter.engaged(Engagement {
            world,
            objects: self.kernel.objects(),
            failed_peers,
            failures: self.patience.failures().map(|(key, error)| format!("{key}: {error}")).collect(),
            conflicts: self.conflicts.values().map(|c| format!("{} in the place of {}", c.observed, c.desired)).collect(),
            fights: self
                .patience
                .fights()
                .map(|(key, by)| format!("{key} is changed again and again by {}", by.unwrap_or("somebody unknown")))
                .collect(),
            planned,
            took,
        });
    }

    /// How each peer stands, by what its lease asks for and the kernel was seen to hold.
    fn peers(&self) -> Vec<fabric::status::Peer> {
        let Some(world) = &self.world else { return Vec::new() };
        let observed = self.kernel.objects();
        world
            .peers()
            .map(|lease| {
                let keys = world.keys_of(lease);
                let is_right = |key: &Key| match (world.desired().get(key), observed.get(key)) {
                    (Some(want), Some(have)) => fabric::diff::equal(want, have),
                    _ => false,
                };
                let wrong: Vec<&Key> = keys.iter().filter(|key| !is_right(key)).collect();
                let error = world.problems().get(&lease.subnet).map(|problems| {
                    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
                });
                let cause = wrong.first().map(|key| match self.conflicts.get(key) {
                    Some(conflict) => format!("{} is in the way", conflict.observed),
                    None => format!("{key}: {}", self.patience.error(key).unwrap_or("not there yet")),
                });
                let conflict = wrong.iter().any(|key| self.conflicts.contains_key(key));
                report::peer(lease, keys.len(), keys.len() - wrong.len(), conflict, error.or(cause))
            })
            .collect()
    }

    /// Destinations and next hops of the desired routes.
    fn routes(&self) -> Vec<(IpNet, IpAddr)> {
        let desired = self.world.iter().flat_map(|world| world.desired().values());
        desired
            .filter_map(|object| match object {
                Object::Route(route) => Some((route.destination, route.gateway?)),
                _ => None,
            })
            .collect()
    }

    /// Asks the kernel which of the new peers it reaches without a gateway, before the plan that depends on it.
    fn learn_direct(&mut self, update: &Update) {
        let Some(world) = &mut self.world else { return };
        if !world.backend().wants_direct() {
            return;
        }
        let leases: Vec<&fabric::lease::Lease> = match update {
            Update::Snapshot(snapshot) => snapshot.leases.values().collect(),
            Update::Delta(delta) => delta.changes.iter().filter_map(|(_, lease)| lease.as_ref()).collect(),
        };
        let peers = public_addresses(leases.into_iter());
        match self.kernel.direct(&peers) {
            Ok(found) => world.learn_direct(peers.into_iter().zip(found)),
            Err(failure) => warn!("asking the kernel for the way to {} peers: {failure}", peers.len()),
        }
    }

    /// Asks anew for all peers: the underlay's routes or addresses changed.
    fn refresh_direct(&mut self) {
        let Some(world) = &mut self.world else { return };
        if !world.backend().wants_direct() {
            return;
        }
        let peers = public_addresses(world.peers());
        match self.kernel.direct(&peers) {
            Ok(found) => {
                let direct = peers.into_iter().zip(found).filter_map(|(ip, link)| Some((ip, link?))).collect();
                if world.set_direct(direct) {
                    self.due.replanned = true;
                }
            }
            Err(failure) => warn!("asking the kernel for the way to {} peers: {failure}", peers.len()),
        }
    }

    /// A number below `bound`; only spreads timers of many hosts, so a linear congruence will do.
    fn random(&mut self, bound: u32) -> u32 {
        self.jitter = self.jitter.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(self.jitter >> 33).unwrap_or(0) % bound.max(1)
    }
}

/// errno values the engine decides by (`asm-generic/errno-base.h`).
mod libc_errno {
    pub const ENOENT: i32 = 2;
    pub const ESRCH: i32 = 3;
    pub const EEXIST: i32 = 17;
    pub const ENODEV: i32 = 19;
}

fn public_addresses<'a>(leases: impl Iterator<Item = &'a fabric::lease::Lease>) -> Vec<IpAddr> {
    let set: BTreeSet<IpAddr> = leases
        .flat_map(|lease| fabric::object::Family::BOTH.map(|family| lease.attributes.public_ip_of(family)))
        .flatten()
        .filter(|ip| !ip.is_unspecified())
        .collect();
    set.into_iter().collect()
}

fn hangs_on(op: &Op, lost: &[Key]) -> bool {
    lost.contains(&Key::Link(op.object().link()))
}

/// Names the process behind a netlink port id. Programs use their PID for their first socket; ours and long-lived daemons'
/// further sockets have other numbers, which then name nobody.
fn opponent(port: u32) -> String {
    match std::fs::read_to_string(format!("/proc/{port}/comm")) {
        Ok(name) => format!("pid {port} ({})", name.trim_end()),
        Err(_) => format!("pid {port}"),
    }
}
