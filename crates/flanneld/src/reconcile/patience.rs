//! When to try again, and when to stop fighting: the two clocks each key of a target has.
//!
//! A step that was refused is tried again with a back-off of its own, so that one broken peer costs the others nothing. A place
//! that somebody else changes again and again is put right ever more seldom, and the opponent is named; what is merely missing
//! comes back within a second, however often it goes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric::readiness::Kind;

const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest pause, of a fight and, where nothing else is said, between two attempts.
pub const LONGEST: Duration = Duration::from_secs(30);
/// The first pause in a fight; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest time for which something is left missing: with the work itself it is back within a second.
const LONGEST_MISSING: Duration = Duration::from_millis(800);
/// More repairs of one key than this within [`WINDOW`] are a fight.
const REPAIRS: usize = 3;
const WINDOW: Duration = Duration::from_secs(60);

/// What somebody else did to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// Its object is not there.
    Missing,
    /// Something else is in its place, or beside it.
    Changed,
}

#[derive(Debug)]
struct Failure {
    next: Instant,
    delay: Duration,
    kind: Kind,
    error: String,
}

/// Repairs of one sort of damage to one key.
#[derive(Debug, Default)]
struct Course {
    /// The last few; more say no more.
    repairs: VecDeque<Instant>,
    delay: Duration,
}

impl Course {
    fn repaired(&mut self, longest: Duration, now: Instant) -> Option<Instant> {
        self.repairs.push_back(now);
        let is_old = |at: &Instant| now.duration_since(*at) > WINDOW;
        while self.repairs.len() > REPAIRS + 1 || self.repairs.front().is_some_and(is_old) {
            self.repairs.pop_front();
        }
        if !self.is_fight() {
            self.delay = Duration::ZERO;
            return None;
        }
        self.delay = (self.delay * 2).clamp(FIRST_PAUSE, longest);
        Some(now + self.delay)
    }

    fn is_fight(&self) -> bool {
        self.repairs.len() > REPAIRS
    }

    fn is_recent(&self, now: Instant) -> bool {
        let last = self.repairs.back();
        last.is_some_and(|at| now.duration_since(*at) <= WINDOW)
    }
}

/// Repairs of one key, which become a fight when there are many.
#[derive(Debug, Default)]
struct Fight {
    missing: Course,
    changed: Course,
    opponent: Option<Arc<str>>,
    until: Option<Instant>,
}

impl Fight {
    fn repaired(&mut self, damage: Damage, opponent: Option<Arc<str>>, now: Instant) {
        if opponent.is_some() {
            self.opponent = opponent;
        }
        let until = match damage {
            Damage::Missing => self.missing.repaired(LONGEST_MISSING, now),
            Damage::Changed => self.changed.repaired(LONGEST, now),
        };
        self.until = until.or(self.until);
    }

    fn pause(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    fn is_one(&self) -> bool {
        self.missing.is_fight() || self.changed.is_fight()
    }

    fn is_recent(&self, now: Instant) -> bool {
        self.pause(now).is_some() || self.missing.is_recent(now) || self.changed.is_recent(now)
    }
}

/// The clocks of all keys that need one.
#[derive(Debug)]
pub struct Patience<K> {
    failures: BTreeMap<K, Failure>,
    fights: BTreeMap<K, Fight>,
    longest_retry: Duration,
}

impl<K: Copy + Ord> Patience<K> {
    /// Without any clock running. What is refused is tried again after `longest_retry` at the latest.
    pub fn new(longest_retry: Duration) -> Patience<K> {
        Patience {
            failures: BTreeMap::new(),
            fights: BTreeMap::new(),
            longest_retry,
        }
    }

    /// Whether the key may be acted on now. What is missing shortens the pause of a fight.
    pub fn allows(&mut self, key: &K, damage: Damage, now: Instant) -> bool {
        if let Some(fight) = self.fights.get_mut(key) {
            if let (Damage::Missing, Some(until)) = (damage, fight.until) {
                fight.until = Some(until.min(now + LONGEST_MISSING));
            }
            if fight.pause(now).is_some() {
                return false;
            }
        }
        self.failures.get(key).is_none_or(|f| f.next <= now)
    }

    /// Whether a fight is what holds the key back now.
    pub fn is_paused(&self, key: &K, now: Instant) -> bool {
        self.fights
            .get(key)
            .is_some_and(|fight| fight.pause(now).is_some())
    }

    /// Notes a refused step; the next attempt is due after a delay that doubles up to the longest.
    pub fn failed(&mut self, key: K, kind: Kind, error: String, now: Instant) {
        let delay = self
            .failures
            .get(&key)
            .map_or(FIRST_RETRY, |f| (f.delay * 2).min(self.longest_retry));
        self.failures.insert(
            key,
            Failure {
                next: now + delay,
                delay,
                kind,
                error,
            },
        );
    }

    /// Brings the next attempt at a refused key this near, at the latest.
    pub fn within(&mut self, key: &K, longest: Duration, now: Instant) {
        if let Some(failure) = self.failures.get_mut(key) {
            failure.delay = failure.delay.min(longest);
            failure.next = failure.next.min(now + longest);
        }
    }

    /// Notes that the key is as it shall be.
    pub fn succeeded(&mut self, key: &K) {
        self.failures.remove(key);
    }

    /// Notes a repair of something somebody else did.
    pub fn repaired(&mut self, key: K, damage: Damage, opponent: Option<Arc<str>>, now: Instant) {
        self.fights
            .entry(key)
            .or_default()
            .repaired(damage, opponent, now);
    }

    /// Forgets fights that have been over for a while.
    pub fn forget(&mut self, now: Instant) {
        self.fights.retain(|_, fight| fight.is_recent(now));
    }

    /// Makes refused keys due now: something they may have waited for has changed.
    pub fn hurry(&mut self, now: Instant, which: impl Fn(&K) -> bool) {
        for (_, failure) in self.failures.iter_mut().filter(|(key, _)| which(key)) {
            failure.next = failure.next.min(now);
            failure.delay = FIRST_RETRY;
        }
    }

    /// Whether any key was refused and is still to be tried again.
    pub fn is_failing(&self) -> bool {
        !self.failures.is_empty()
    }

    /// Drops failures of keys about which there is nothing left to do.
    pub fn retain(&mut self, open: impl Fn(&K) -> bool) {
        self.failures.retain(|key, _| open(key));
    }

    /// When each key with a clock is due; one with both waits for the later.
    fn clocks(&self) -> impl Iterator<Item = (&K, Instant)> {
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
    pub fn due(&self, now: Instant) -> BTreeSet<K> {
        self.clocks()
            .filter(|(_, at)| *at <= now)
            .map(|(key, _)| *key)
            .collect()
    }

    /// A fight's pause is over and the key was looked at.
    pub fn looked_at(&mut self, key: &K, now: Instant) {
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

    /// Why the key is not as it shall be, when the last step was refused.
    pub fn error(&self, key: &K) -> Option<&str> {
        self.failures.get(key).map(|f| f.error.as_str())
    }

    /// What kind of finding the last refusal is.
    pub fn kind(&self, key: &K) -> Option<Kind> {
        self.failures.get(key).map(|f| f.kind)
    }

    /// Keys that were refused, what kind of finding that is, and why.
    pub fn refusals(&self) -> impl Iterator<Item = (&K, Kind, &str)> {
        self.failures
            .iter()
            .map(|(key, failure)| (key, failure.kind, failure.error.as_str()))
    }

    /// Whether a key is fought over.
    pub fn is_fought(&self, key: &K) -> bool {
        self.fights.get(key).is_some_and(Fight::is_one)
    }

    /// Keys that are fought over, with the opponent as far as known.
    pub fn fights(&self) -> impl Iterator<Item = (&K, Option<&str>)> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks one key as soon as it was repaired, for two minutes; the longest time it stayed broken.
    fn longest_wait(damage: Damage) -> Duration {
        let start = Instant::now();
        let (mut now, mut patience, mut longest) = (start, Patience::new(LONGEST), Duration::ZERO);
        while now < start + Duration::from_secs(120) {
            let broken = now;
            while !patience.allows(&7, damage, now) {
                now += Duration::from_millis(5);
            }
            patience.looked_at(&7, now);
            patience.repaired(7, damage, None, now);
            longest = longest.max(now - broken);
            now += Duration::from_millis(1);
        }
        longest
    }

    #[test]
    fn patience_when_something_goes_missing_without_end_then_it_is_back_within_a_second_each_time() {
        let longest = longest_wait(Damage::Missing);
        assert!(longest < Duration::from_secs(1), "{longest:?}");
    }

    #[test]
    fn patience_when_something_is_changed_without_end_then_it_waits_longer_and_longer_up_to_thirty_seconds() {
        let longest = longest_wait(Damage::Changed);
        let bounds = Duration::from_secs(20)..=LONGEST + Duration::from_millis(5);
        assert!(bounds.contains(&longest), "{longest:?}");
    }

    #[test]
    fn patience_when_it_goes_missing_in_the_pause_of_a_fight_then_the_pause_is_cut_once() {
        let (mut patience, start) = (Patience::new(LONGEST), Instant::now());
        for _ in 0..12 {
            patience.repaired('k', Damage::Changed, None, start);
        }
        let later = start + Duration::from_secs(2);
        assert!(!patience.allows(&'k', Damage::Changed, later));
        assert!(!patience.allows(&'k', Damage::Missing, later));
        let next = patience.next().unwrap();
        assert!(next <= later + LONGEST_MISSING, "{:?}", next - later);
        // Looked at again meanwhile: the clock it has does not move.
        assert!(!patience.allows(&'k', Damage::Missing, later + Duration::from_millis(500)));
        assert_eq!(patience.next(), Some(next));
        assert!(patience.allows(&'k', Damage::Missing, next));
    }

    #[test]
    fn patience_when_a_fight_was_long_ago_then_the_next_damage_is_mended_at_once() {
        let (mut patience, start) = (Patience::new(LONGEST), Instant::now());
        for _ in 0..5 {
            patience.repaired('k', Damage::Changed, Some("pid 7".into()), start);
        }
        assert_eq!(patience.fights().collect::<Vec<_>>(), [(&'k', Some("pid 7"))]);
        let later = start + WINDOW * 2;
        patience.forget(later);
        assert!(patience.allows(&'k', Damage::Changed, later) && patience.fights().next().is_none());
    }

    #[test]
    fn patience_when_a_key_is_to_be_tried_within_a_time_then_its_back_off_ends_there_and_no_others() {
        let (mut patience, start) = (Patience::new(LONGEST), Instant::now());
        for _ in 0..9 {
            for key in ['a', 'b'] {
                patience.failed(key, Kind::Failure, "no".to_owned(), start);
            }
            patience.within(&'a', Duration::from_secs(3), start);
        }
        assert_eq!(patience.next(), Some(start + Duration::from_secs(3)));
        assert!(patience.allows(&'a', Damage::Missing, start + Duration::from_secs(3)));
        assert!(!patience.allows(&'b', Damage::Missing, start + Duration::from_secs(20)));
    }

    #[test]
    fn patience_when_hurried_then_every_refused_key_is_due_and_its_back_off_begins_anew() {
        let (mut patience, start) = (Patience::new(LONGEST), Instant::now());
        for _ in 0..9 {
            patience.failed('k', Kind::Failure, "no".to_owned(), start);
        }
        assert!(!patience.allows(&'k', Damage::Missing, start + Duration::from_secs(20)));
        patience.hurry(start, |key| *key == 'x');
        assert!(!patience.allows(&'k', Damage::Missing, start + Duration::from_secs(1)));
        patience.hurry(start + Duration::from_secs(1), |_| true);
        assert!(patience.allows(&'k', Damage::Missing, start + Duration::from_secs(1)));
        patience.failed('k', Kind::Failure, "no".to_owned(), start);
        assert_eq!(patience.next(), Some(start + FIRST_RETRY * 2));
        assert_eq!(patience.error(&'k'), Some("no"));
        patience.succeeded(&'k');
        assert!(!patience.is_failing() && patience.next().is_none());
    }

    #[test]
    fn patience_when_a_step_is_refused_again_and_again_then_each_pause_is_twice_the_last_up_to_its_own_longest()
     {
        let (longest, start) = (Duration::from_millis(350), Instant::now());
        let mut patience = Patience::new(longest);
        for pause in [100, 200, 350, 350].map(Duration::from_millis) {
            patience.failed('k', Kind::Degraded, "no".to_owned(), start);
            assert_eq!(patience.next(), Some(start + pause));
            assert!(!patience.allows(&'k', Damage::Missing, start + pause - Duration::from_millis(1)));
            assert!(patience.allows(&'k', Damage::Missing, start + pause));
            assert!(patience.due(start + pause - Duration::from_millis(1)).is_empty());
            assert_eq!(patience.due(start + pause), BTreeSet::from(['k']));
        }
        assert_eq!(patience.kind(&'k'), Some(Kind::Degraded));
        assert_eq!((patience.kind(&'x'), patience.error(&'x')), (None, None));
        let refusals: Vec<_> = patience.refusals().collect();
        assert_eq!(refusals, [(&'k', Kind::Degraded, "no")]);
        assert!(patience.allows(&'x', Damage::Missing, start) && !patience.is_paused(&'k', start));
        patience.retain(|key| *key == 'k');
        assert!(patience.is_failing());
        patience.retain(|key| *key != 'k');
        assert!(!patience.is_failing());
        patience.within(&'k', longest, start);
        assert!(patience.next().is_none(), "what was not refused has no clock");
    }

    #[test]
    fn patience_when_repairs_are_few_or_far_between_then_there_is_no_fight_and_no_pause() {
        let (mut patience, start) = (Patience::new(LONGEST), Instant::now());
        for n in 0..3 {
            patience.repaired('k', Damage::Changed, Some("pid 7".into()), start + WINDOW / 4 * n);
        }
        assert!(!patience.is_fought(&'k') && patience.fights().next().is_none() && patience.next().is_none());
        // The first of them is just within the time of the fourth, and after that is not.
        let mut other = Patience::new(LONGEST);
        for at in [Duration::ZERO, WINDOW / 2, WINDOW / 2, WINDOW] {
            other.repaired('k', Damage::Changed, None, start + at);
        }
        assert!(other.is_fought(&'k'));
        let late = start + WINDOW + Duration::from_millis(1);
        patience.repaired('k', Damage::Changed, None, late);
        assert!(!patience.is_fought(&'k') && !patience.is_paused(&'k', late));
        // Two sorts of damage are two courses.
        patience.repaired('k', Damage::Missing, None, late);
        patience.repaired('k', Damage::Missing, None, late);
        assert!(!patience.is_fought(&'k') && !patience.is_fought(&'x'));
        patience.repaired('k', Damage::Changed, None, late);
        assert!(patience.is_fought(&'k'));
        assert_eq!(
            patience.fights().collect::<Vec<_>>(),
            [(&'k', Some("pid 7"))],
            "who was last known"
        );
        assert!(patience.is_paused(&'k', late));
        assert_eq!(patience.next(), Some(late + FIRST_PAUSE));
        assert!(!patience.is_paused(&'k', late + FIRST_PAUSE));
    }

    #[test]
    fn patience_when_a_fight_goes_on_then_each_pause_is_twice_the_last_and_after_a_while_begins_anew() {
        let (mut patience, start) = (Patience::new(LONGEST), Instant::now());
        for _ in 0..3 {
            patience.repaired('k', Damage::Changed, None, start);
        }
        let mut now = start;
        for pause in [200, 400, 800, 1600].map(Duration::from_millis) {
            patience.repaired('k', Damage::Changed, None, now);
            assert_eq!(patience.next(), Some(now + pause));
            now += pause;
            patience.looked_at(&'k', now - Duration::from_millis(1));
            assert_eq!(patience.due(now), BTreeSet::from(['k']), "not looked at in time");
            patience.looked_at(&'k', now);
            assert!(patience.next().is_none());
        }
        // A single repair a minute later begins no fight, and the next fight begins with its first pause.
        now += WINDOW * 2;
        patience.repaired('k', Damage::Changed, None, now);
        assert!(!patience.is_fought(&'k') && patience.next().is_none());
        for _ in 0..3 {
            patience.repaired('k', Damage::Changed, None, now);
        }
        assert_eq!(patience.next(), Some(now + FIRST_PAUSE));
    }

    #[test]
    fn patience_when_fights_are_forgotten_then_only_those_that_are_over() {
        let (mut patience, start) = (Patience::new(LONGEST), Instant::now());
        patience.repaired('m', Damage::Missing, None, start);
        patience.repaired('c', Damage::Changed, None, start);
        let count = |patience: &Patience<char>| patience.fights.len();
        patience.forget(start + WINDOW);
        assert_eq!(count(&patience), 2);
        patience.forget(start + WINDOW + Duration::from_millis(1));
        assert_eq!(count(&patience), 0);
        // A pause that is not over is remembered, however long ago the blows were.
        for _ in 0..5 {
            patience.repaired('p', Damage::Changed, None, start);
        }
        patience.fights.get_mut(&'p').unwrap().until = Some(start + WINDOW * 3);
        patience.forget(start + WINDOW * 2);
        assert_eq!(count(&patience), 1);
    }

    #[test]
    fn patience_when_a_key_both_fails_and_is_fought_over_then_the_later_clock_counts() {
        let (mut patience, start) = (Patience::new(LONGEST), Instant::now());
        for _ in 0..4 {
            patience.repaired('k', Damage::Changed, None, start);
        }
        patience.failed('k', Kind::Failure, "no".to_owned(), start);
        assert_eq!(patience.next(), Some(start + FIRST_PAUSE));
        let later = start + FIRST_PAUSE;
        patience.failed('k', Kind::Failure, "no".to_owned(), later);
        assert_eq!(patience.next(), Some(later + FIRST_RETRY * 2));
        assert!(patience.due(later).is_empty());
        assert_eq!(patience.due(later + FIRST_RETRY * 2), BTreeSet::from(['k']));
    }

    #[test]
    fn pace_when_asked_again_and_again_then_at_once_and_ever_more_seldom_up_to_a_second() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        assert!(!pace.take(start) && pace.next().is_none(), "nobody asked");
        pace.ask();
        assert!(pace.next().is_none(), "at once: it was never done");
        assert!(pace.take(start) && !pace.take(start));
        let mut now = start;
        for pause in [50, 100, 200, 400, 800, 1000, 1000].map(Duration::from_millis) {
            pace.ask();
            assert_eq!(pace.next(), Some(now + pause));
            assert!(!pace.take(now + pause - Duration::from_millis(1)));
            now += pause;
            assert!(pace.take(now), "{pause:?}");
        }
        now += LONGEST_STEP * 2;
        pace.ask();
        assert!(pace.take(now));
        pace.ask();
        assert_eq!(
            pace.next(),
            Some(now + LONGEST_STEP),
            "not yet quiet for long enough"
        );
        now += LONGEST_STEP * 2 + Duration::from_millis(1);
        assert!(pace.take(now));
        pace.ask();
        assert_eq!(pace.next(), Some(now + FIRST_STEP));
    }
}
