//! The loop that keeps the kernel equal to the leases: observe, diff, apply, and again at every change of either side.
//!
//! It runs on a thread of its own, owns every netlink socket, and never waits for anything but its `poll`. The only feedback
//! is the next observation: a step that failed is found missing again, an object that somebody removed is found missing
//! likewise, and both are put right by the same diff.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric::diff::{Conflict, Difference, Part, diff};
use fabric::lease::Update;
use fabric::object::{Key, LinkName, Op};
use fabric::ownership::Ownership;
use fabric::world::{Touched, World};
use kernel::{Host, Interest, Kernel, KernelError, Scope};
use tracing::{error, info, warn};

use crate::engine::patience::{Pace, Patience};
use crate::engine::report::Reporter;
use crate::engine::standing::Census;
use crate::engine::subnet_env::EnvKeeper;
use crate::mailbox::{Command, Mailbox, Setup};

mod direct;
pub mod patience;
mod reconcile;
pub mod report;
mod standing;
pub mod subnet_env;

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
    /// None of the above, but the registry said something that is to be passed on.
    told: bool,
}

impl Due {
    /// Whether there is more than disturbances.
    fn is_news(&self) -> bool {
        self.replanned || self.observed || self.told || !self.keys.is_empty()
    }

    fn is_empty(&self) -> bool {
        !self.is_news() && self.disturbed.is_empty()
    }
}

/// The engine.
pub struct Engine<H = Kernel> {
    kernel: H,
    mailbox: Arc<Mailbox>,
    reporter: Reporter,
    world: Option<World>,
    ownership: Ownership,
    env: Option<EnvKeeper>,
    /// Before a complete listing has come, absence of a lease means nothing and nothing is removed.
    word: Word,
    paused: bool,
    due: Due,
    patience: Patience,
    /// Routes that were once ours and right since we started.
    held: BTreeSet<Key>,
    conflicts: BTreeMap<Key, Conflict>,
    /// Routes of others inside our Networks, as of the last comparison of everything.
    overlaps: BTreeMap<Key, String>,
    /// Links that are not as they shall be, and on which something was therefore not tried.
    withheld: BTreeSet<LinkName>,
    resync: Option<Scope>,
    resync_at: Instant,
    audit_at: Instant,
    settled_at: Instant,
    /// Reading the kernel's state failed with this; told once.
    trouble: Option<String>,
    underlay: Pace,
    /// The way to some peers could not be asked for.
    direct_unknown: bool,
    /// Called when the underlay changed in a way that the choice of interface, address or MTU may depend on.
    on_underlay: Box<dyn Fn() + Send>,
    census: Census,
    jitter: u64,
}

impl Engine<Kernel> {
    /// An engine with open sockets in the calling thread's network namespace, and nothing to do yet.
    pub fn new(
        mailbox: Arc<Mailbox>,
        reporter: Reporter,
        on_underlay: Box<dyn Fn() + Send>,
        seed: u64,
    ) -> Result<Self, KernelError> {
        let kernel = Kernel::open(Interest::default())?;
        Ok(Engine::over(
            kernel,
            mailbox,
            reporter,
            on_underlay,
            seed,
            Instant::now(),
        ))
    }
}

impl<H: Host> Engine<H> {
    /// An engine over a host.
    pub fn over(
        kernel: H,
        mailbox: Arc<Mailbox>,
        reporter: Reporter,
        on_underlay: Box<dyn Fn() + Send>,
        seed: u64,
        now: Instant,
    ) -> Self {
        Engine {
            kernel,
            mailbox,
            reporter,
            world: None,
            ownership: Ownership::default(),
            env: None,
            word: Word::Nothing,
            paused: false,
            due: Due::default(),
            patience: Patience::default(),
            held: BTreeSet::new(),
            conflicts: BTreeMap::new(),
            overlaps: BTreeMap::new(),
            withheld: BTreeSet::new(),
            resync: None,
            resync_at: now,
            audit_at: now + AUDIT,
            settled_at: now,
            trouble: None,
            underlay: Pace::default(),
            direct_unknown: false,
            on_underlay,
            census: Census::default(),
            jitter: seed,
        }
    }

    /// Runs until the mailbox says stop. What is in the kernel stays there.
    pub fn run(mut self) {
        loop {
            self.wait();
            if self.step(Instant::now()) {
                return;
            }
        }
    }

    /// The host.
    pub fn host(&mut self) -> &mut H {
        &mut self.kernel
    }

    /// One round: takes in what has come, and brings the kernel to the desired state as far as it is known to differ and the
    /// clocks allow. True when the mailbox says stop.
    pub fn step(&mut self, now: Instant) -> bool {
        self.reporter.beat();
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
        if self.is_at_work()
            && let Some(env) = &mut self.env
        {
            let fight = env.fight();
            env.keep(&self.reporter, now);
            if env.fight() != fight {
                self.engage(0, Duration::ZERO, now);
            }
        }
        self.take_census(now);
        mail.stop
    }

    /// When the next [step](Engine::step) is due though nothing happens; `now` or before: at once.
    pub fn next(&self, now: Instant) -> Instant {
        if self.kernel.has_news() {
            return now;
        }
        let resync = self.resync.is_some().then_some(self.resync_at);
        let mut clocks = vec![
            Some(now + HEARTBEAT),
            resync,
            Some(self.audit_at),
            self.underlay.next(),
            self.census.next(),
        ];
        // What cannot be acted on must not wake anybody.
        if self.is_at_work() {
            let settling = !self.due.is_news() && !self.due.disturbed.is_empty();
            let gate = if settling { self.settled_at } else { now };
            clocks.push(self.patience.next().map(|at| at.max(gate)));
            clocks.push(self.env.as_ref().and_then(EnvKeeper::next));
            if !self.due.is_empty() {
                clocks.push(Some(gate));
            }
        }
        clocks.into_iter().flatten().min().unwrap_or(now)
    }

    /// Whether the kernel may be changed.
    fn is_at_work(&self) -> bool {
        self.word > Word::Nothing && !self.paused && self.world.is_some()
    }

    fn wait(&self) {
        let now = Instant::now();
        let env = self
            .env
            .as_ref()
            .filter(|_| self.is_at_work())
            .and_then(EnvKeeper::fd);
        let mut fds = vec![self.kernel.monitor_fd(), self.mailbox.waker().fd()];
        fds.extend(env);
        if let Err(failure) = kernel::poll::wait(&fds, self.next(now).saturating_duration_since(now)) {
            error!("poll: {failure}");
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
        } = setup;
        let env = EnvKeeper::new(subnet_file, env);
        let mut links = backend.links(&node.network);
        links.extend(
            ownership
                .links
                .iter()
                .copied()
                .filter(|link| !backend.links(&node.network).contains(link)),
        );
        links.push(node.underlay.link);
        self.kernel.set_interest(Interest {
            links,
            networks: ownership.networks.clone(),
        });
        // A set-up that came before anything could be done hands its record of the past on.
        if ownership.former_leases.is_empty() && self.word < Word::Listed {
            ownership.former_leases = std::mem::take(&mut self.ownership.former_leases);
        }
        self.ownership = ownership;
        self.env = Some(match self.env.take() {
            Some(before) => env.after(before),
            None => env,
        });
        match &mut self.world {
            Some(world) => world.set_node(backend, node),
            None => self.world = Some(World::new(backend, node)),
        }
        self.withheld.clear();
        if let Some(snapshot) = cached.filter(|_| self.word < Word::Listed) {
            self.update(Update::Snapshot(snapshot), Word::Cached);
        }
        self.hear(now);
        self.observe(Scope::All, now);
        self.refresh_direct();
        self.due.replanned = true;
    }

    fn update(&mut self, update: Update, word: Word) {
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
        self.due.told = true;
        if snapshot && self.word < word {
            self.word = word;
            self.due.replanned = true;
        }
        self.reporter.leases(world);
    }

    /// Reads what the kernel has to say since the last time, and dumps what is to be dumped.
    fn listen(&mut self, now: Instant) {
        self.hear(now);
        if self.underlay.take(now) {
            self.patience.hurry(now);
            self.refresh_direct();
            (self.on_underlay)();
        }
        if now >= self.audit_at {
            self.audit_at = now + AUDIT + AUDIT / 4 * self.random(100) / 100;
            self.resync = Some(Scope::All);
            self.resync_at = now;
            self.patience.forget(now);
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
        match self.kernel.drain() {
            Ok(drained) => {
                if self.due.disturbed.is_empty() {
                    self.settled_at = now + SETTLE;
                }
                self.due
                    .disturbed
                    .extend(drained.changed.iter().map(|change| (change.key, change.by)));
                if let Some(scope) = drained.resync {
                    self.ask_resync(scope);
                }
                if drained.underlay_changed {
                    self.underlay.ask();
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
        if let Err(failure) = self.kernel.observe(scope) {
            self.complain("reading the kernel's state", &failure);
            self.resync = Some(Scope::All);
            self.resync_at = now + RETRY_DUMP;
            return;
        }
        self.resync_at = now + RESYNC_PAUSE.max(started.elapsed() * RESYNC_SHARE);
        if scope == Scope::All {
            self.resync = None;
            self.reporter.audited();
        }
        if self.trouble.take().is_some() {
            info!("the kernel's state can be read again");
        }
        self.due.observed = true;
    }

    fn complain(&mut self, doing: &str, failure: &KernelError) {
        let text = format!("{doing}: {failure}");
        if self.trouble.as_ref() != Some(&text) {
            error!("{text}");
            self.trouble = Some(text);
        }
    }

    fn obey(&mut self, command: Command, now: Instant) {
        match command {
            Command::Plan(reply) => {
                self.observe(Scope::All, now);
                // Before the first listing nothing would be done, whatever is there.
                let ops = if self.word > Word::Nothing {
                    self.compare(Part::Whole).ops
                } else {
                    Vec::new()
                };
                let _ = reply.send(ops.iter().map(ToString::to_string).collect());
            }
            Command::Peers(reply) => {
                let _ = reply.send(self.peers());
            }
            Command::Routes(reply) => {
                let _ = reply.send(self.routes());
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
                self.due.observed = true;
                self.reporter.paused(paused);
            }
        }
    }

    fn compare(&self, part: Part<'_>) -> Difference {
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
        if self.word < Word::Listed {
            // What is removed to be made anew goes all the same.
            difference
                .ops
                .retain(|op| !matches!(op, Op::Remove(_)) || world.desired().contains_key(&op.key()));
        }
        difference
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
