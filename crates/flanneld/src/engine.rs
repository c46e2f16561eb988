//! The loop that keeps the kernel equal to the leases: observe, diff, apply, and again at every change of either side.
//!
//! It runs on a thread of its own, owns every netlink socket, and never waits for anything but its `poll`. The only feedback
//! is the next observation: a step that failed is found missing again, an object that somebody removed is found missing
//! likewise, and both are put right by the same diff.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric::diff::Part;
use fabric::lease::Update;
use fabric::object::{Key, Object, Op};
use fabric::readiness;
use fabric::world::{Touched, World};
use kernel::{Host, Interest, Kernel, KernelError, Scope, Ways};
use tracing::{info, warn};

use crate::board::Reporter;
use crate::engine::standing::Census;
use crate::engine::target::Objects;
use crate::mailbox::{Command, Mailbox, Setup};
use crate::reconcile::keeper::Letters;
use crate::reconcile::patience::{LONGEST, Pace};
use crate::reconcile::{Opponent, Reconciler, Round};
use crate::subnet_file::Order;

mod direct;
mod standing;
mod target;

/// A full dump and comparison at least this often, whatever the notifications said; up to a quarter later.
const AUDIT: Duration = Duration::from_secs(60);
/// Dumps that overruns and link changes ask for are done at most this often.
const RESYNC_PAUSE: Duration = Duration::from_millis(100);
/// And they take at most one part in this many of the time, however long one of them is.
const RESYNC_SHARE: u32 = 5;
/// A dump that failed is tried again after this.
const RETRY_DUMP: Duration = Duration::from_secs(1);
/// A disturbance is looked at this long after its first sign: the kernel tells of the entries on a deleted device before it
/// tells of the device, and putting back the ones only to hear of the other would be wasted.
const SETTLE: Duration = Duration::from_millis(5);
/// The loop shows that it is alive at least this often.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// What the leases that are worked on are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    /// None are known.
    Nothing,
    /// What an earlier process knew. What it did not know may be there all the same: absence means nothing.
    Cached,
    /// A complete listing, and what came after it.
    Listed,
}

/// What the engine tells, and whom.
pub struct Outlets {
    /// The rest of the daemon.
    pub reporter: Reporter,
    /// Whoever keeps the subnet file: it is written once the first state stands.
    pub subnet_file: Arc<Letters<Order>>,
    /// Called when the underlay changed in a way that the choice of interface, address or MTU may depend on.
    pub on_underlay: Box<dyn Fn() + Send>,
    /// Called when an admin holds the hand still, and when it may move again: for all who keep something.
    pub on_pause: Box<dyn Fn(bool) + Send>,
}

/// The engine.
pub struct Engine<H = Kernel> {
    target: Objects<H>,
    reconciler: Reconciler<Key>,
    mailbox: Arc<Mailbox>,
    outlets: Outlets,
    /// What the subnet file shall say, until whoever keeps it was told.
    env: Option<Order>,
    paused: bool,
    /// A comparison of everything has been made with what is known now.
    engaged: bool,
    /// It was made with what the registry itself has said.
    listed: bool,
    /// The registry said something that is to be passed on, though nothing has to be done.
    told: bool,
    resync: Option<Scope>,
    resync_at: Instant,
    audit_at: Instant,
    settled_at: Instant,
    /// Reading the kernel's state failed with this.
    trouble: Option<String>,
    underlay: Pace,
    routing: Pace,
    /// Where the way to others changed, since that was last looked at.
    ways: Ways,
    /// The way to this address decides which interface is chosen.
    reach: Option<IpAddr>,
    /// What was last reported of the underlay.
    underlay_report: readiness::Report,
    /// The way to some peers could not be asked for.
    direct_unknown: bool,
    census: Census,
    jitter: u64,
    /// A full listing was worked on: most of what the heap holds is free again.
    has_spare_memory: bool,
}

impl Engine<Kernel> {
    /// An engine with open sockets in the calling thread's network namespace, and nothing to do yet.
    ///
    /// # Errors
    /// When the sockets cannot be opened.
    pub fn new(mailbox: Arc<Mailbox>, outlets: Outlets, seed: u64) -> Result<Self, KernelError> {
        let kernel = Kernel::open(Interest::default())?;
        Ok(Engine::over(kernel, mailbox, outlets, seed, Instant::now()))
    }
}

impl<H: Host> Engine<H> {
    /// An engine over a host.
    pub fn over(kernel: H, mailbox: Arc<Mailbox>, outlets: Outlets, seed: u64, now: Instant) -> Self {
        Engine {
            target: Objects::new(kernel, outlets.reporter.clone()),
            reconciler: Reconciler::new(LONGEST),
            mailbox,
            outlets,
            env: None,
            paused: false,
            engaged: false,
            listed: false,
            told: false,
            resync: None,
            resync_at: now,
            audit_at: now + AUDIT,
            settled_at: now,
            trouble: None,
            underlay: Pace::default(),
            routing: Pace::default(),
            ways: Ways::default(),
            reach: None,
            underlay_report: readiness::Report::default(),
            direct_unknown: false,
            census: Census::default(),
            jitter: seed,
            has_spare_memory: false,
        }
    }

    /// Runs until the mailbox says stop. What is in the kernel stays there.
    pub fn run(mut self) {
        let mut is_fresh = true;
        loop {
            self.wait();
            if self.step(Instant::now()) {
                return;
            }
            if std::mem::take(&mut self.has_spare_memory) {
                kernel::heap::trim();
                if std::mem::take(&mut is_fresh) {
                    kernel::heap::forget_start();
                }
            }
        }
    }

    /// The host.
    pub fn host(&mut self) -> &mut H {
        &mut self.target.kernel
    }

    /// One round: takes in what has come, and brings the kernel to the desired state as far as it is known to differ and the
    /// clocks allow. True when the mailbox says stop.
    pub fn step(&mut self, now: Instant) -> bool {
        self.outlets.reporter.beat();
        let mail = self.mailbox.take();
        if let Some(setup) = mail.setup {
            self.set_up(setup, now);
        }
        if let Some(update) = mail.update {
            self.update(update, Word::Listed);
        }
        self.listen(now);
        for command in mail.commands {
            self.obey(command, now);
        }
        self.reconcile(now);
        self.report_underlay();
        self.take_census(now);
        mail.stop
    }

    /// When the next [step](Engine::step) is due though nothing happens; `now` or before: at once.
    pub fn next(&self, now: Instant) -> Instant {
        if self.target.kernel.has_news() {
            return now;
        }
        let resync = self.resync.is_some().then_some(self.resync_at);
        let mut clocks = vec![
            Some(now + HEARTBEAT),
            resync,
            Some(self.audit_at),
            self.underlay.next(),
            self.routing.next(),
            self.census.next(),
        ];
        // What cannot be acted on must not wake anybody.
        if self.is_at_work() {
            let due = &self.reconciler.due;
            let is_news = due.is_news() || self.told;
            let settling = !is_news && !due.disturbed.is_empty();
            let gate = if settling { self.settled_at } else { now };
            clocks.push(self.reconciler.next().map(|at| at.max(gate)));
            if is_news || settling {
                clocks.push(Some(gate));
            }
        }
        clocks.into_iter().flatten().min().unwrap_or(now)
    }

    /// Whether the kernel may be changed.
    fn is_at_work(&self) -> bool {
        self.target.word > Word::Nothing && !self.paused && self.target.world.is_some()
    }

    fn wait(&self) {
        let now = Instant::now();
        let fds = [self.target.kernel.monitor_fd(), self.mailbox.waker().fd()];
        if let Err(failure) = kernel::poll::wait(&fds, self.next(now).saturating_duration_since(now)) {
            tracing::error!("poll: {failure}");
            std::thread::sleep(RESYNC_PAUSE);
        }
    }

    fn set_up(&mut self, setup: Setup, now: Instant) {
        let Setup {
            backend,
            node,
            mut ownership,
            subnet_file,
            env,
            cached,
            reach,
        } = setup;
        self.reach = reach;
        let mut links = backend.links(&node.network);
        links.extend(
            ownership
                .links
                .iter()
                .copied()
                .filter(|link| !backend.links(&node.network).contains(link)),
        );
        links.push(node.underlay.link);
        let target = &mut self.target;
        target.kernel.set_interest(Interest {
            links,
            networks: ownership.networks.clone(),
        });
        // A set-up that came before anything could be done hands its record of the past on.
        if ownership.former_leases.is_empty() && target.word < Word::Listed {
            ownership.former_leases = std::mem::take(&mut target.ownership.former_leases);
        }
        target.ownership = ownership;
        self.env = Some(Order {
            path: subnet_file,
            wanted: env,
        });
        match &mut target.world {
            Some(world) => world.set_node(backend, node),
            None => target.world = Some(World::new(backend, node)),
        }
        target.withheld.clear();
        if let Some(snapshot) = cached.filter(|_| self.target.word < Word::Listed) {
            self.update(Update::Snapshot(snapshot), Word::Cached);
        }
        self.hear(now);
        self.observe(Scope::All, now);
        self.refresh_direct();
        self.reconciler.due.replanned = true;
    }

    fn update(&mut self, update: Update, word: Word) {
        self.learn_direct(&update);
        let Some(world) = &mut self.target.world else {
            warn!("registry news before the set-up was dropped");
            return;
        };
        let snapshot = matches!(update, Update::Snapshot(_));
        let due = &mut self.reconciler.due;
        match world.update(update) {
            Touched::Whole => due.replanned = true,
            Touched::Keys(keys) => due.keys.extend(keys),
        }
        if world.take_settled() && self.target.doubting.take() {
            due.replanned = true;
        }
        self.told = true;
        if snapshot && self.target.word < word {
            self.target.word = word;
            self.reconciler.due.replanned = true;
        }
    }

    /// Reads what the kernel has to say since the last time, and dumps what is to be dumped.
    fn listen(&mut self, now: Instant) {
        self.hear(now);
        if self.underlay.take(now) {
            self.reconciler.hurry(now, |_| true);
            self.refresh_direct();
            (self.outlets.on_underlay)();
        }
        if self.routing.take(now) {
            let ways = std::mem::take(&mut self.ways);
            self.follow_ways(&ways);
            let Objects { world, .. } = &self.target;
            let leads = |key: &Key| world.as_ref().is_some_and(|world| leads_by(world, key, &ways));
            self.reconciler.hurry(now, leads);
            if ways.has_default() || self.reach.is_some_and(|address| ways.covers(address)) {
                (self.outlets.on_underlay)();
            }
        }
        if let Some(doubt) = self.target.doubt.take() {
            self.audit_at = self.audit_at.min(doubt);
        }
        if now >= self.audit_at {
            self.audit_at = now + AUDIT + AUDIT / 4 * self.random(100) / 100;
            self.resync = Some(Scope::All);
            self.resync_at = now;
            self.reconciler.forget(now);
            if self.direct_unknown {
                self.refresh_direct();
            }
        }
        if now >= self.resync_at
            && let Some(scope) = self.resync.take()
        {
            self.observe(scope, now);
        }
    }

    fn hear(&mut self, now: Instant) {
        match self.target.kernel.drain() {
            Ok(drained) => {
                let disturbed = &mut self.reconciler.due.disturbed;
                if disturbed.is_empty() {
                    self.settled_at = now + SETTLE;
                }
                let by = |port: Option<u32>| port.map(Opponent::Port);
                disturbed.extend(drained.changed.iter().map(|change| (change.key, by(change.by))));
                if let Some(scope) = drained.resync {
                    self.ask_resync(scope);
                }
                if drained.underlay_changed {
                    self.underlay.ask();
                }
                // Whoever had the number or the port of a device of ours may have let go of it.
                if drained.device_gone {
                    self.reconciler.hurry(now, Key::is_link);
                }
                // Somebody's routes come and go by the thousand; only those that lead to a peer are anything to us.
                if !drained.ways.is_empty() {
                    self.ways.join(&drained.ways);
                    self.routing.ask();
                }
            }
            Err(failure) => {
                self.complain("kernel notifications", &failure);
                self.ask_resync(Scope::All);
                // The descriptor stays readable: without this the loop would spin.
                std::thread::sleep(RESYNC_PAUSE);
            }
        }
    }

    fn ask_resync(&mut self, scope: Scope) {
        self.resync = Some(self.resync.map_or(scope, |earlier| earlier.and(scope)));
    }

    fn observe(&mut self, scope: Scope, now: Instant) {
        let started = Instant::now();
        self.outlets.reporter.dumped(match scope {
            Scope::All => "all",
            Scope::Link(_) => "link",
        });
        if let Err(failure) = self.target.kernel.observe(scope) {
            self.complain("reading the kernel's state", &failure);
            self.resync = Some(Scope::All);
            self.resync_at = now + RETRY_DUMP;
            return;
        }
        self.resync_at = now + RESYNC_PAUSE.max(started.elapsed() * RESYNC_SHARE);
        if scope == Scope::All {
            self.resync = None;
            self.outlets.reporter.audited();
        }
        self.trouble = None;
        self.reconciler.due.observed = true;
    }

    fn complain(&mut self, doing: &str, failure: &KernelError) {
        let text = format!("{doing}: {failure}");
        if self.trouble.as_ref() != Some(&text) {
            self.trouble = Some(text);
            self.engage();
        }
    }

    fn obey(&mut self, command: Command, now: Instant) {
        match command {
            Command::Plan(reply) => {
                self.observe(Scope::All, now);
                // Before the first listing nothing would be done, whatever is there.
                let ops = if self.target.word > Word::Nothing {
                    self.target.difference(Part::Whole).ops
                } else {
                    Vec::new()
                };
                let _ = reply.send(ops.iter().map(ToString::to_string).collect());
            }
            Command::Peers(reply) => {
                let _ = reply.send(self.peers());
            }
            Command::Routes(reply) => {
                let _ = reply.send(self.target.routes());
            }
            Command::Leases(reply) => {
                let _ = reply.send(self.listing());
            }
            Command::Pause(paused) => {
                info!(
                    "{}",
                    if paused {
                        "paused: the kernel is left as it is"
                    } else {
                        "resumed"
                    }
                );
                self.paused = paused;
                self.reconciler.due.observed = true;
                (self.outlets.on_pause)(paused);
                self.engage();
            }
        }
    }

    /// Brings the kernel to the desired state as far as it is known to differ and the clocks allow.
    fn reconcile(&mut self, now: Instant) {
        if !self.is_at_work() {
            return;
        }
        let due = &mut self.reconciler.due;
        if !due.is_news() && !self.told && !due.disturbed.is_empty() && now < self.settled_at {
            return;
        }
        due.observed |= self.target.is_any_back();
        let told = std::mem::take(&mut self.told);
        let started = Instant::now();
        let Some(round) = self.reconciler.round(&mut self.target, now) else {
            if told {
                self.engage();
            }
            return;
        };
        self.settle(round, started.elapsed());
    }

    /// What follows from a round.
    fn settle(&mut self, round: Round<Op>, took: Duration) {
        let Round {
            planned,
            done,
            repaired,
            whole,
            keys,
        } = round;
        let failed = done.len() < planned;
        if planned > 0 {
            tracing::debug!("applied {} of {planned} ops in {took:?}", done.len());
            self.outlets.reporter.applied(took);
        }
        self.target.note_held(whole, &keys, &done);
        self.target.note_overlaps(whole, &keys);
        for key in &repaired {
            self.outlets.reporter.repaired(key);
        }
        drop(done);
        if self.target.is_any_back() {
            self.reconciler.due.observed = true;
        }
        self.engaged |= whole;
        self.listed |= whole && self.target.word == Word::Listed;
        self.engage();
        if let Some(order) = self.env.take_if(|_| self.engaged) {
            self.outlets.subnet_file.set(order);
        }
        if whole && !failed && self.resync.is_none() && self.target.word == Word::Listed {
            // A predecessor's routes have been dealt with, and no more will come while we run.
            self.target.ownership.former_leases.clear();
        }
        if whole {
            if planned > 0 {
                self.target.kernel.compact();
            }
            self.has_spare_memory = true;
        }
    }

    /// A number below `bound`; only spreads timers of many hosts, so a linear congruence will do.
    fn random(&mut self, bound: u32) -> u32 {
        self.jitter = self
            .jitter
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(self.jitter >> 33).unwrap_or(0) % bound.max(1)
    }
}

/// Whether a desired route's next hop is among those to whom the way changed.
fn leads_by(world: &World, key: &Key, ways: &Ways) -> bool {
    match world.desired().get(key) {
        Some(Object::Route(route)) => route.gateway.is_some_and(|gateway| ways.covers(gateway)),
        _ => false,
    }
}
