//! What the engine tells the rest of the daemon, in the form in which people ask for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fabric::lease::Lease;
use fabric::object::{Family, Key, Objects, Op};
use fabric::status::{Peer, PeerObject, PeerState, RejectedEntry};
use fabric::world::World;
use tokio::sync::watch;

/// How things stand after a step of the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The kernel was compared with a complete listing at least once, and every difference is gone or named below.
    pub engaged: bool,
    /// Registry revision that the kernel equals.
    pub revision: i64,
    /// Other nodes' leases.
    pub peers: usize,
    /// Those of them that are not served in full.
    pub failed_peers: usize,
    /// Observed objects by kind.
    pub objects: BTreeMap<&'static str, usize>,
    /// Steps that failed.
    pub failures: Vec<String>,
    /// Foreign objects in our places.
    pub conflicts: Vec<String>,
    /// Foreign routes inside our Networks, in nobody's place.
    pub overlaps: Vec<String>,
    /// Places that somebody fights for.
    pub fights: Vec<String>,
    /// Registry entries that are no leases.
    pub rejected: Vec<RejectedEntry>,
    /// Writing the subnet file failed.
    pub subnet_file_error: Option<String>,
    /// The subnet file is written.
    pub subnet_file_written: bool,
    /// An admin said pause.
    pub paused: bool,
    /// When the kernel was last read as a whole, seconds since 1970.
    pub last_audit: Option<u64>,
}

/// Numbers that only grow.
#[derive(Debug, Default)]
pub struct Counters {
    repairs: Mutex<BTreeMap<&'static str, u64>>,
    ops: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    /// Steps of the engine that applied something.
    pub applies: AtomicU64,
    /// Time spent in them, microseconds.
    pub apply_micros: AtomicU64,
}

/// The engine's side of the daemon's state.
#[derive(Debug)]
pub struct Board {
    standing: watch::Sender<Standing>,
    /// Numbers for metrics.
    pub counters: Counters,
    started: Instant,
    beat_millis: AtomicU64,
}

/// A handle on the board; cheap to clone.
#[derive(Debug, Clone)]
pub struct Reporter(Arc<Board>);

/// What the engine knows after a step.
pub struct Engagement<'a> {
    /// Registry revision that was worked on.
    pub revision: i64,
    /// Other nodes' leases.
    pub peers: usize,
    /// Observed objects by kind.
    pub objects: &'a BTreeMap<&'static str, usize>,
    /// Peers that are not served in full.
    pub failed_peers: usize,
    /// Steps that failed.
    pub failures: Vec<String>,
    /// Foreign objects in our places.
    pub conflicts: Vec<String>,
    /// Foreign routes inside our Networks, in nobody's place.
    pub overlaps: Vec<String>,
    /// Places that somebody fights for.
    pub fights: Vec<String>,
    /// Ops of this step.
    pub planned: usize,
    /// What it took.
    pub took: Duration,
}

/// The loop comes round every five seconds at the latest; silent for longer, it is stuck.
const LONGEST_SILENCE: Duration = Duration::from_secs(20);
/// Longest list of names in a status; there may be thousands of failures with one cause.
pub(super) const NAMED: usize = 50;

impl Default for Reporter {
    fn default() -> Self {
        Reporter(Arc::new(Board {
            standing: watch::Sender::new(Standing::default()),
            counters: Counters::default(),
            started: Instant::now(),
            beat_millis: AtomicU64::new(0),
        }))
    }
}

impl Reporter {
    /// How things stand, and its changes.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.0.standing.subscribe()
    }

    /// Numbers for metrics.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// The loop has come round.
    pub fn beat(&self) {
        let millis = u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.beat_millis.store(millis, Ordering::Relaxed);
    }

    /// Time since the loop last came round.
    pub fn silence(&self) -> Duration {
        let beat = Duration::from_millis(self.0.beat_millis.load(Ordering::Relaxed));
        self.0.started.elapsed().saturating_sub(beat)
    }

    /// Whether the loop comes round as it should.
    pub fn is_alive(&self) -> bool {
        self.silence() < LONGEST_SILENCE
    }

    fn change(&self, change: impl FnOnce(&mut Standing)) {
        self.0.standing.send_if_modified(|standing| {
            let before = standing.clone();
            change(standing);
            *standing != before
        });
    }

    pub(super) fn leases(&self, world: &World) {
        let rejected: Vec<RejectedEntry> = world
            .rejected()
            .iter()
            .map(|(key, reason)| RejectedEntry {
                key: key.clone(),
                reason: reason.clone(),
            })
            .take(NAMED)
            .collect();
        self.change(|standing| {
            for entry in rejected.iter().filter(|entry| !standing.rejected.contains(entry)) {
                tracing::warn!(
                    "registry entry subnets/{} is ignored: {}",
                    entry.key,
                    entry.reason
                );
            }
            standing.rejected = rejected;
        });
    }

    pub(super) fn audited(&self) {
        self.change(|standing| standing.last_audit = Some(now_seconds()));
    }

    pub(super) fn paused(&self, paused: bool) {
        self.change(|standing| standing.paused = paused);
    }

    pub(super) fn subnet_file(&self, result: Result<(), String>) {
        self.change(|standing| {
            standing.subnet_file_written = result.is_ok();
            standing.subnet_file_error = result.err();
        });
    }

    pub(super) fn op(&self, op: &Op, failed: bool) {
        let verb = match op {
            Op::Add(_) => "add",
            Op::Change { .. } => "change",
            Op::Remove(_) => "remove",
        };
        let outcome = if failed { "failed" } else { "done" };
        *lock(&self.0.counters.ops).entry((verb, outcome)).or_default() += 1;
    }

    /// Counts a repair of an object.
    pub(super) fn repaired(&self, key: &Key) {
        self.repaired_kind(kind(key));
    }

    /// Counts a repair of anything the daemon keeps.
    pub fn repaired_kind(&self, kind: &'static str) {
        *lock(&self.0.counters.repairs).entry(kind).or_default() += 1;
    }

    pub(super) fn engaged(&self, engagement: Engagement<'_>) {
        if engagement.planned > 0 {
            self.0.counters.applies.fetch_add(1, Ordering::Relaxed);
            let micros = u64::try_from(engagement.took.as_micros()).unwrap_or(u64::MAX);
            self.0.counters.apply_micros.fetch_add(micros, Ordering::Relaxed);
        }
        self.change(|standing| {
            standing.engaged = true;
            standing.revision = engagement.revision;
            standing.peers = engagement.peers;
            standing.failed_peers = engagement.failed_peers;
            standing.failures = engagement.failures;
            standing.conflicts = engagement.conflicts;
            standing.overlaps = engagement.overlaps;
            standing.fights = engagement.fights;
            standing.objects.clone_from(engagement.objects);
        });
    }
}

impl Counters {
    /// Repairs by kind of object.
    pub fn repairs(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.repairs).clone()
    }

    /// Ops by verb and outcome.
    pub fn ops(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        lock(&self.ops).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seconds since 1970.
pub fn now_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

fn kind(key: &Key) -> &'static str {
    match key {
        Key::Link(_) => "link",
        Key::Address(..) => "address",
        Key::Neighbour(..) => "neighbour",
        Key::Forwarding(..) => "fdb",
        Key::Route(..) => "route",
    }
}

/// How many objects there are of each kind.
pub(super) fn count(objects: &Objects) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for key in objects.keys() {
        *counts.entry(kind(&key)).or_default() += 1;
    }
    counts
}

/// How a peer stands.
pub(super) fn peer(lease: &Lease, objects: Vec<PeerObject>, conflict: bool, error: Option<String>) -> Peer {
    let public = Family::BOTH
        .iter()
        .filter(|family| lease.subnet.of(**family).is_some())
        .filter_map(|family| lease.attributes.public_ip_of(*family))
        .collect();
    let state = match (&error, conflict) {
        (_, true) => PeerState::Conflict,
        (Some(_), false) => PeerState::Failed,
        (None, false) => PeerState::Ok,
    };
    Peer {
        subnet: lease.subnet.to_string(),
        public,
        backend: lease.attributes.backend_type.to_string(),
        expected: objects.len(),
        programmed: objects.iter().filter(|object| object.ok).count(),
        state,
        error,
        objects,
    }
}
