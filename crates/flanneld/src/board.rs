//! Where the daemon's parts leave what they have to say, for all who ask: reports, how far the engine is, and numbers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fabric::object::{Key, Op};
use fabric::readiness::{Part, Report};
use tokio::sync::watch;

use crate::heartbeat::{Heartbeat, Heartbeats};

/// How far the engine is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The kernel was compared with what is known of the leases at least once, and every difference is gone or reported.
    pub engaged: bool,
    /// The same, and what is known is what the registry itself has said, to this process.
    pub listed: bool,
    /// Registry revision that was worked on.
    pub revision: i64,
    /// Other nodes' leases.
    pub peers: usize,
    /// Those of them that are not served in full for want of something of this host.
    pub failed_peers: usize,
    /// Those of them that have published what cannot be served.
    pub degraded_peers: usize,
    /// Registry entries that are no leases.
    pub rejected: usize,
    /// Observed objects by kind.
    pub objects: BTreeMap<&'static str, usize>,
    /// An admin said pause.
    pub paused: bool,
}

/// Numbers that only grow.
#[derive(Debug, Default)]
pub struct Counters {
    repairs: Mutex<BTreeMap<&'static str, u64>>,
    ops: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    dumps: Mutex<BTreeMap<&'static str, u64>>,
    /// When the kernel was last read as a whole, seconds since 1970; 0: never.
    audited: AtomicU64,
    /// The same by a clock that nobody sets.
    audited_at: Mutex<Option<Instant>>,
    /// Steps of the engine that applied something.
    pub applies: AtomicU64,
    /// Time spent in them, microseconds.
    pub apply_micros: AtomicU64,
}

/// Something that a part asked for and has no answer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Whom, and for what.
    pub what: String,
    /// Since when.
    pub since: Instant,
}

/// Where the daemon's parts leave what they have to say.
#[derive(Debug)]
pub struct Board {
    standing: watch::Sender<Standing>,
    reports: watch::Sender<BTreeMap<Part, Report>>,
    /// What parts wait for right now.
    asked: Mutex<BTreeMap<Part, Asked>>,
    /// Numbers for metrics.
    pub counters: Counters,
    heartbeat: Heartbeat,
}

/// A handle on the board; cheap to clone.
#[derive(Debug, Clone)]
pub struct Reporter(Arc<Board>);

/// The loop comes round every five seconds at the latest; silent for longer, it is stuck.
const LONGEST_SILENCE: Duration = Duration::from_secs(20);

impl Default for Reporter {
    fn default() -> Self {
        Reporter::beating(Heartbeat::unwatched("engine", LONGEST_SILENCE))
    }
}

impl Reporter {
    /// One whose loop is watched.
    pub fn watched(heartbeats: &Heartbeats) -> Self {
        Reporter::beating(heartbeats.watch("engine", LONGEST_SILENCE))
    }

    fn beating(heartbeat: Heartbeat) -> Self {
        Reporter(Arc::new(Board {
            standing: watch::Sender::new(Standing::default()),
            reports: watch::Sender::new(BTreeMap::new()),
            asked: Mutex::default(),
            counters: Counters::default(),
            heartbeat,
        }))
    }

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
        self.0.heartbeat.beat();
    }

    /// Time since the loop last came round.
    pub fn silence(&self) -> Duration {
        self.0.heartbeat.silence()
    }

    /// What each part has to say, and its changes.
    pub fn reports(&self) -> watch::Receiver<BTreeMap<Part, Report>> {
        self.0.reports.subscribe()
    }

    /// Puts what a part has to say in the place of what it said before.
    pub fn publish(&self, part: Part, report: Report) {
        self.0.reports.send_if_modified(|reports| {
            let is_news = reports.get(&part) != Some(&report);
            if is_news {
                reports.insert(part, report);
            }
            is_news
        });
    }

    /// Says how far the engine is.
    pub fn stand(&self, standing: Standing) {
        self.0.standing.send_if_modified(|known| {
            let is_news = *known != standing;
            *known = standing;
            is_news
        });
    }

    /// The kernel was read as a whole just now.
    pub fn audited(&self) {
        self.0.counters.audited.store(now_seconds(), Ordering::Relaxed);
        *lock(&self.0.counters.audited_at) = Some(Instant::now());
    }

    /// Says that a part asks somebody for something from now on, and waits for it.
    pub fn asks(&self, part: Part, what: String, since: Instant) {
        lock(&self.0.asked).insert(part, Asked { what, since });
    }

    /// The part has its answer.
    pub fn answered(&self, part: Part) {
        lock(&self.0.asked).remove(&part);
    }

    /// Who has waited for an answer for so long or longer, and for what.
    pub fn unanswered(&self, longest: Duration) -> Vec<(Part, Asked)> {
        let asked = lock(&self.0.asked);
        let late = asked.iter().filter(|(_, asked)| asked.since.elapsed() >= longest);
        late.map(|(part, asked)| (*part, asked.clone())).collect()
    }

    /// Counts a reading of the kernel's state that is not one object's: of all, of one link, or of the interfaces to choose from.
    pub fn dumped(&self, scope: &'static str) {
        *lock(&self.0.counters.dumps).entry(scope).or_default() += 1;
    }

    /// A round that applied something took so long.
    pub fn applied(&self, took: Duration) {
        self.0.counters.applies.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.0.counters.apply_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Counts a step by verb and outcome.
    pub fn op(&self, op: &Op, failed: bool) {
        let verb = match op {
            Op::Add(_) => "add",
            Op::Change { .. } => "change",
            Op::Remove(_) => "remove",
        };
        let outcome = if failed { "failed" } else { "done" };
        *lock(&self.0.counters.ops).entry((verb, outcome)).or_default() += 1;
    }

    /// Counts a repair of an object.
    pub fn repaired(&self, key: &Key) {
        self.repaired_kind(kind(key));
    }

    /// Counts a repair of anything the daemon keeps.
    pub fn repaired_kind(&self, kind: &'static str) {
        *lock(&self.0.counters.repairs).entry(kind).or_default() += 1;
    }
}

impl Counters {
    /// Repairs by kind of object.
    pub fn repairs(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.repairs).clone()
    }

    /// When the kernel was last read as a whole, seconds since 1970.
    pub fn last_audit(&self) -> Option<u64> {
        Some(self.audited.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }

    /// How long that was ago, seconds.
    pub fn last_audit_age(&self) -> Option<u64> {
        lock(&self.audited_at).map(|at| at.elapsed().as_secs())
    }

    /// Readings of the kernel's state by scope.
    pub fn dumps(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.dumps).clone()
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

/// Routes of ours that refuse what is sent to them, as a kind of object.
pub const UNREACHABLE: &str = "unreachable";

/// The kind of an object, as metrics name it.
pub fn kind(key: &Key) -> &'static str {
    match key {
        Key::Link(_) => "link",
        Key::Address(..) => "address",
        Key::Neighbour(..) => "neighbour",
        Key::Forwarding(..) => "fdb",
        Key::Route(..) => "route",
    }
}

#[cfg(test)]
mod tests {
    use fabric::object::{Address, LinkName, Mac, Object};
    use fabric::readiness::{Finding, Kind};

    use super::*;

    #[test]
    fn board_when_something_is_said_then_readers_hear_of_it_once() {
        let reporter = Reporter::default();
        let (mut standing, mut reports) = (reporter.standing(), reporter.reports());
        reporter.stand(Standing::default());
        assert!(!standing.has_changed().unwrap());
        let at_work = Standing {
            peers: 3,
            ..Standing::default()
        };
        for is_news in [true, false] {
            reporter.stand(at_work.clone());
            assert_eq!(standing.has_changed().unwrap(), is_news);
            assert_eq!(*standing.borrow_and_update(), at_work);
        }
        let report = || Report::from_iter([Finding::new(Part::Kernel, Kind::Failure, "x", "x")]);
        for is_news in [true, false] {
            reporter.publish(Part::Kernel, report());
            assert_eq!(reports.has_changed().unwrap(), is_news);
            assert_eq!(reports.borrow_and_update().get(&Part::Kernel), Some(&report()));
        }
    }

    #[test]
    fn numbers_when_counted_then_by_what_they_are_of() {
        let reporter = Reporter::default();
        let link = LinkName::new("flannel.1").unwrap();
        let address = "10.5.1.0/32".parse().unwrap();
        let object = || Object::Address(Address { link, address });
        let change = || Op::Change {
            from: object(),
            to: object(),
        };
        for (op, failed) in [
            (Op::Add(object()), false),
            (Op::Add(object()), false),
            (Op::Add(object()), true),
            (change(), false),
            (Op::Remove(object()), true),
        ] {
            reporter.op(&op, failed);
        }
        let counters = reporter.counters();
        let expected = [
            (("add", "done"), 2),
            (("add", "failed"), 1),
            (("change", "done"), 1),
            (("remove", "failed"), 1),
        ];
        assert_eq!(counters.ops(), BTreeMap::from(expected));
        let ip = "10.5.2.0".parse().unwrap();
        let keys = [
            (Key::Link(link), "link"),
            (Key::Address(link, address), "address"),
            (Key::Neighbour(link, ip), "neighbour"),
            (Key::Forwarding(link, Mac([2; 6])), "fdb"),
            (Key::Route(address, 0), "route"),
        ];
        for (key, kind) in &keys {
            reporter.repaired(key);
            reporter.repaired(key);
            assert_eq!(counters.repairs().get(kind), Some(&2));
        }
        reporter.dumped("all");
        reporter.dumped("all");
        reporter.dumped("link");
        assert_eq!(counters.dumps(), BTreeMap::from([("all", 2), ("link", 1)]));
        reporter.applied(Duration::from_micros(7));
        reporter.applied(Duration::from_micros(5));
        let took = counters.apply_micros.load(Ordering::Relaxed);
        assert_eq!((counters.applies.load(Ordering::Relaxed), took), (2, 12));
        assert_eq!((counters.last_audit(), counters.last_audit_age()), (None, None));
        reporter.audited();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(counters.last_audit().is_some_and(|at| now.abs_diff(at) <= 5));
        assert!(counters.last_audit_age().is_some_and(|age| age <= 5));
        assert!(now_seconds().abs_diff(now) <= 5);
    }

    #[test]
    fn question_when_it_has_no_answer_for_long_then_it_is_known_which() {
        let reporter = Reporter::default();
        let since = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        reporter.asks(Part::Firewall, "nft".to_owned(), since);
        reporter.asks(Part::Sysctl, "sysctl".to_owned(), Instant::now());
        let late: Vec<Part> = (reporter.unanswered(Duration::from_secs(5)).into_iter())
            .map(|(part, _)| part)
            .collect();
        assert_eq!(late, [Part::Firewall]);
        assert_eq!(reporter.unanswered(Duration::ZERO).len(), 2);
        reporter.answered(Part::Firewall);
        assert_eq!(reporter.unanswered(Duration::ZERO).len(), 1);
    }

    #[test]
    fn heartbeat_when_the_loop_comes_round_then_it_is_heard_and_watched_where_asked() {
        let heartbeats = Heartbeats::default();
        let reporter = Reporter::watched(&heartbeats);
        std::thread::sleep(Duration::from_millis(30));
        assert!(reporter.silence() >= Duration::from_millis(20));
        reporter.beat();
        assert!(reporter.silence() < Duration::from_millis(20));
        assert!(heartbeats.silent().is_none());
    }
}
