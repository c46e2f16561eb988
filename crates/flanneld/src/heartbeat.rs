//! Whether every thread comes round: each has a heartbeat, and `/healthz` and the service manager's watchdog are told of all.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use crate::logging::utc;

/// A thread that has nothing to do comes round this often all the same.
pub const PERIOD: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Pulse {
    name: &'static str,
    longest: Duration,
    started: Instant,
    /// Milliseconds since `started`.
    last: AtomicU64,
    /// The thread waits for something that is not ours and has no limit, such as a disk.
    outside: AtomicBool,
}

/// One thread's heartbeat; every clone is the same one. It is watched until the last is dropped.
#[derive(Debug, Clone)]
pub struct Heartbeat(Arc<Pulse>);

impl Heartbeat {
    /// One that nobody watches.
    pub fn unwatched(name: &'static str, longest: Duration) -> Heartbeat {
        Heartbeat(Arc::new(Pulse {
            name,
            longest,
            started: Instant::now(),
            last: AtomicU64::new(0),
            outside: AtomicBool::new(false),
        }))
    }

    /// The thread has come round. Whoever runs a program, or does anything else that takes long but has a limit, says so before
    /// and after; the longest silence is above that limit.
    pub fn beat(&self) {
        let millis = u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last.store(millis, Ordering::Relaxed);
    }

    /// Time since the thread last came round.
    pub fn silence(&self) -> Duration {
        let last = Duration::from_millis(self.0.last.load(Ordering::Relaxed));
        self.0.started.elapsed().saturating_sub(last)
    }

    /// Whether the thread comes round as it should.
    pub fn is_alive(&self) -> bool {
        self.0.outside.load(Ordering::Relaxed) || self.silence() < self.0.longest
    }

    /// Does what may take any time for reasons that no restart of the daemon cures: silence meanwhile means nothing.
    pub fn outside<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.outside.store(true, Ordering::Relaxed);
        let done = work();
        self.beat();
        self.0.outside.store(false, Ordering::Relaxed);
        done
    }
}

/// A thread that does not come round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    /// Its name.
    pub thread: &'static str,
    /// How long it has not.
    pub lasts: Duration,
    /// When it last did.
    pub since: SystemTime,
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (thread, lasts) = (self.thread, self.lasts.as_secs());
        write!(
            f,
            "thread {thread} is silent for {lasts} s, since {}",
            utc(self.since)
        )
    }
}

/// The heartbeats that are watched; every clone is the same list.
#[derive(Debug, Clone, Default)]
pub struct Heartbeats(Arc<Mutex<Vec<Weak<Pulse>>>>);

impl Heartbeats {
    /// The heartbeat of a thread that is never silent for longer than this.
    pub fn watch(&self, name: &'static str, longest: Duration) -> Heartbeat {
        let heartbeat = Heartbeat::unwatched(name, longest);
        let mut watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|pulse| pulse.strong_count() > 0);
        watched.push(Arc::downgrade(&heartbeat.0));
        heartbeat
    }

    /// The thread that has been silent longest of those that are silent for too long.
    pub fn silent(&self) -> Option<Silence> {
        let watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watched
            .iter()
            .filter_map(|pulse| Some(Heartbeat(pulse.upgrade()?)))
            .filter(|heartbeat| !heartbeat.is_alive())
            .map(|heartbeat| {
                let lasts = heartbeat.silence();
                Silence {
                    thread: heartbeat.0.name,
                    lasts,
                    since: SystemTime::now()
                        .checked_sub(lasts)
                        .unwrap_or(SystemTime::UNIX_EPOCH),
                }
            })
            .max_by_key(|silence| silence.lasts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn silent_when_one_thread_does_not_come_round_then_it_is_named_until_it_beats_or_ends() {
        let all = Heartbeats::default();
        let engine = all.watch("engine", LONG);
        assert_eq!(all.silent(), None, "it has only begun");
        let firewall = all.watch("firewall", Duration::ZERO);
        let silence = all.silent().unwrap();
        assert_eq!(silence.thread, "firewall");
        assert!(
            silence
                .to_string()
                .starts_with("thread firewall is silent for 0 s, since 2")
        );
        engine.beat();
        assert!(all.silent().is_some(), "each beats for itself");
        drop(firewall);
        assert_eq!(all.silent(), None, "a thread that has ended owes nothing");
    }

    #[test]
    fn silent_when_a_thread_waits_for_what_is_not_ours_then_it_is_not_silent() {
        let all = Heartbeats::default();
        let disk = all.watch("disk", Duration::ZERO);
        disk.outside(|| assert_eq!(all.silent(), None));
        assert!(all.silent().is_some());
        assert!(disk.silence() < LONG);
    }

    #[test]
    fn silence_when_said_then_the_thread_how_long_and_since_when() {
        let silence = Silence {
            thread: "engine",
            lasts: Duration::from_millis(21_900),
            since: SystemTime::UNIX_EPOCH + Duration::from_secs(5),
        };
        assert_eq!(
            silence.to_string(),
            "thread engine is silent for 21 s, since 1970-01-01T00:00:05Z"
        );
    }
}
