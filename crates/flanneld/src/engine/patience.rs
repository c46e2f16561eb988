//! When to try again, and when to stop fighting: the two clocks each key of the kernel state has.
//!
//! A step that failed is tried again with a back-off of its own, so that one broken peer costs the others nothing. A place
//! that somebody else changes again and again is put right ever more slowly, and the opponent is named.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric::object::Key;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);
/// The first pause in a fight; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// More repairs of one key than this within [`WINDOW`] are a fight.
const REPAIRS: usize = 3;
const WINDOW: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Failure {
    next: Instant,
    delay: Duration,
    error: String,
}

/// Repairs of one thing, which become a fight when there are many.
#[derive(Debug, Default)]
pub struct Fight {
    repairs: VecDeque<Instant>,
    opponent: Option<Arc<str>>,
    until: Option<Instant>,
    delay: Duration,
}

impl Fight {
    /// Notes a repair of something somebody else did.
    pub fn repaired(&mut self, opponent: Option<Arc<str>>, now: Instant) {
        self.repairs.push_back(now);
        while self
            .repairs
            .front()
            .is_some_and(|at| now.duration_since(*at) > WINDOW)
        {
            self.repairs.pop_front();
        }
        if opponent.is_some() {
            self.opponent = opponent;
        }
        if self.is_one() {
            self.delay = (self.delay * 2).clamp(FIRST_PAUSE, LONGEST);
            self.until = Some(now + self.delay);
        }
    }

    /// The end of the pause that is under way.
    pub fn pause(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    /// Whether there were more repairs of late than chance makes.
    pub fn is_one(&self) -> bool {
        self.repairs.len() > REPAIRS
    }

    /// Whether it is still to be remembered.
    pub fn is_recent(&self, now: Instant) -> bool {
        self.pause(now).is_some()
            || self
                .repairs
                .back()
                .is_some_and(|at| now.duration_since(*at) <= WINDOW)
    }
}

/// The clocks of all keys that need one.
#[derive(Debug, Default)]
pub struct Patience {
    failures: BTreeMap<Key, Failure>,
    fights: BTreeMap<Key, Fight>,
}

impl Patience {
    /// Whether the key may be acted on now.
    pub fn allows(&self, key: &Key, now: Instant) -> bool {
        self.failures.get(key).is_none_or(|f| f.next <= now)
            && self.fights.get(key).and_then(|f| f.pause(now)).is_none()
    }

    /// Notes a failed step; the next attempt is due after a delay that doubles up to 30 s.
    pub fn failed(&mut self, key: Key, error: String, now: Instant) {
        let delay = self
            .failures
            .get(&key)
            .map_or(FIRST_RETRY, |f| (f.delay * 2).min(LONGEST));
        self.failures.insert(
            key,
            Failure {
                next: now + delay,
                delay,
                error,
            },
        );
    }

    /// Notes that the key is as it shall be.
    pub fn succeeded(&mut self, key: &Key) {
        self.failures.remove(key);
    }

    /// Notes a repair of something somebody else did.
    pub fn repaired(&mut self, key: Key, opponent: Option<Arc<str>>, now: Instant) {
        self.fights.entry(key).or_default().repaired(opponent, now);
    }

    /// Forgets fights that have been over for a while.
    pub fn forget(&mut self, now: Instant) {
        self.fights.retain(|_, fight| fight.is_recent(now));
    }

    /// Makes every failed key due now: something it may have waited for has changed.
    pub fn hurry(&mut self, now: Instant) {
        for failure in self.failures.values_mut() {
            failure.next = failure.next.min(now);
            failure.delay = FIRST_RETRY;
        }
    }

    /// Whether any key failed and is still to be tried again.
    pub fn is_failing(&self) -> bool {
        !self.failures.is_empty()
    }

    /// Drops failures of keys about which there is nothing left to do.
    pub fn retain(&mut self, open: impl Fn(&Key) -> bool) {
        self.failures.retain(|key, _| open(key));
    }

    /// When each key with a clock is due; one with both waits for the later.
    fn clocks(&self) -> impl Iterator<Item = (&Key, Instant)> {
        let failures = self.failures.iter().map(|(key, failure)| {
            let until = self.fights.get(key).and_then(|fight| fight.until);
            (key, until.map_or(failure.next, |until| until.max(failure.next)))
        });
        let fights = self
            .fights
            .iter()
            .filter(|(key, _)| !self.failures.contains_key(key));
        failures.chain(fights.filter_map(|(key, fight)| Some((key, fight.until?))))
    }

    /// Keys whose time has come.
    pub fn due(&self, now: Instant) -> BTreeSet<Key> {
        self.clocks()
            .filter(|(_, at)| *at <= now)
            .map(|(key, _)| *key)
            .collect()
    }

    /// A fight's pause is over and the key was looked at.
    pub fn looked_at(&mut self, key: &Key, now: Instant) {
        if let Some(fight) = self.fights.get_mut(key)
            && fight.until.is_some_and(|until| until <= now)
        {
            fight.until = None;
        }
    }

    /// When the next key is due.
    pub fn next(&self) -> Option<Instant> {
        self.clocks().map(|(_, at)| at).min()
    }

    /// Why the key is not as it shall be, when the last step failed.
    pub fn error(&self, key: &Key) -> Option<&str> {
        self.failures.get(key).map(|f| f.error.as_str())
    }

    /// Keys that failed, and why.
    pub fn failures(&self) -> impl Iterator<Item = (&Key, &str)> {
        self.failures
            .iter()
            .map(|(key, failure)| (key, failure.error.as_str()))
    }

    /// Keys that are fought over, with the opponent as far as known.
    pub fn fights(&self) -> impl Iterator<Item = (&Key, Option<&str>)> {
        self.fights
            .iter()
            .filter(|(_, fight)| fight.is_one())
            .map(|(key, f)| (key, f.opponent.as_deref()))
    }
}

/// Lets something be done at once, and ever more seldom while it is asked for again and again.
#[derive(Debug, Default)]
pub struct Pace {
    asked: bool,
    done: Option<Instant>,
    pause: Duration,
}

const FIRST_STEP: Duration = Duration::from_millis(50);
const LONGEST_STEP: Duration = Duration::from_secs(1);

impl Pace {
    /// Asks for it to be done.
    pub fn ask(&mut self) {
        self.asked = true;
    }

    /// When it is to be done, if it was asked for; a moment that is over means at once.
    pub fn next(&self) -> Option<Instant> {
        let done = self.done.filter(|_| self.asked)?;
        Some(done + self.pause)
    }

    /// Whether it is to be done now; the caller does it.
    pub fn take(&mut self, now: Instant) -> bool {
        if !self.asked || self.next().is_some_and(|at| at > now) {
            return false;
        }
        let quiet = self
            .done
            .is_none_or(|done| now.duration_since(done) > LONGEST_STEP * 2);
        self.pause = if quiet {
            FIRST_STEP
        } else {
            (self.pause * 2).min(LONGEST_STEP)
        };
        self.asked = false;
        self.done = Some(now);
        true
    }
}
