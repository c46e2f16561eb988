//! Bringing what is to what shall be, the same for everything that is kept so: compare, apply, and note what came of it.
//!
//! A [`Target`] has desired and observed state under keys. What differs is a step; a step that is refused waits for its own
//! clock; a place of somebody else's is named and left alone; what others change again and again is put right ever more
//! seldom, and who does it is named. The only feedback is the next comparison.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric::readiness::{Finding, Kind, Part, Report};
use tracing::info;

use self::patience::{Damage, Patience};

pub mod keeper;
pub mod patience;

/// Repairs named one by one in the log before the rest is a number.
const NAMED: usize = 8;
const SECOND: Duration = Duration::from_secs(1);

/// Something that has desired and observed state under keys, and can be brought from one to the other.
pub trait Target {
    /// Names one place.
    type Key: Copy + Ord + fmt::Display;
    /// One change of one place.
    type Step: Step<Key = Self::Key>;

    /// Says what differs from what is desired, in the order in which it is to be changed. Changes nothing.
    fn compare(&mut self, look: Look<'_, Self::Key>) -> Comparison<Self::Step>;

    /// Takes the steps, and says what became of each.
    fn apply(&mut self, steps: Vec<Self::Step>, now: Instant) -> Vec<(Self::Step, Fate)>;

    /// Whether putting this right is part of a fight, should it happen again and again. `by` is who did it, as far as known;
    /// `disturbed` is what else was changed at the same time.
    fn is_fought(
        &self,
        step: &Self::Step,
        by: Option<&Opponent>,
        disturbed: &BTreeMap<Self::Key, Option<Opponent>>,
    ) -> bool {
        let (_, _, _) = (step, by, disturbed);
        true
    }

    /// After how long a refused step is tried again at the latest, where that is sooner than for others.
    fn longest_retry(&self, key: &Self::Key) -> Option<Duration> {
        let _ = key;
        None
    }

    /// Whether other steps may succeed now that this one has.
    fn encourages(&self, key: &Self::Key) -> bool {
        let _ = key;
        false
    }
}

/// One change of one place; its text says what is done.
pub trait Step: fmt::Display {
    /// Names the place.
    type Key;

    /// The place.
    fn key(&self) -> Self::Key;

    /// What is wrong with the place as it is.
    fn damage(&self) -> Damage;
}

/// Which places to compare.
#[derive(Debug, Clone, Copy)]
pub enum Look<'a, K> {
    /// All.
    Whole,
    /// These, and what depends on them.
    Keys(&'a BTreeSet<K>),
}

/// What a comparison found.
#[derive(Debug)]
pub struct Comparison<S: Step> {
    /// Steps, in order.
    pub steps: Vec<S>,
    /// Places in which something of somebody else's stands.
    pub conflicts: Vec<(S::Key, Conflict)>,
    /// Places that could not be looked at, and why.
    pub unreadable: Vec<(S::Key, String)>,
}

impl<S: Step> Default for Comparison<S> {
    fn default() -> Self {
        Comparison {
            steps: Vec::new(),
            conflicts: Vec::new(),
            unreadable: Vec::new(),
        }
    }
}

/// Something of somebody else's in a place of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// What is there.
    pub there: String,
    /// What has to be there.
    pub wanted: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in the place of {}", self.there, self.wanted)
    }
}

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The place is as it shall be.
    Done,
    /// Not tried: it waits for another place and has no clock of its own.
    Withheld,
    /// Refused, in the words of whoever refused it.
    Refused {
        /// [`Kind::Failure`], or [`Kind::Degraded`] where what a peer has published is the cause.
        kind: Kind,
        /// Why.
        text: String,
    },
}

/// Who changed something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opponent {
    /// The process with this number, or one of its sockets: its name is looked up when it is wanted.
    Port(u32),
    /// A process with its name.
    Process(u32, String),
}

impl fmt::Display for Opponent {
    /// Programs use their PID for their first netlink socket; ours and long-lived daemons' further sockets have other numbers,
    /// which then name nobody.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Opponent::Port(pid) => match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
                Ok(name) => write!(f, "pid {pid} ({})", name.trim_end()),
                Err(_) => write!(f, "pid {pid}"),
            },
            Opponent::Process(pid, name) => write!(f, "pid {pid} ({name})"),
        }
    }
}

/// What made places due.
#[derive(Debug)]
pub struct Due<K> {
    /// All, because the desired state changed as a whole.
    pub replanned: bool,
    /// All, because the observed state was read anew.
    pub observed: bool,
    /// These, because their desired state changed.
    pub keys: BTreeSet<K>,
    /// These, because somebody else changed them.
    pub disturbed: BTreeMap<K, Option<Opponent>>,
}

impl<K> Default for Due<K> {
    fn default() -> Self {
        Due {
            replanned: false,
            observed: false,
            keys: BTreeSet::new(),
            disturbed: BTreeMap::new(),
        }
    }
}

impl<K: Ord> Due<K> {
    /// Whether there is more than disturbances.
    pub fn is_news(&self) -> bool {
        self.replanned || self.observed || !self.keys.is_empty()
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        !self.is_news() && self.disturbed.is_empty()
    }
}

/// A step that succeeded.
#[derive(Debug)]
pub struct Done<S> {
    /// The step.
    pub step: S,
    /// It had been refused before.
    pub retried: bool,
}

/// What one round came to.
#[derive(Debug)]
pub struct Round<S: Step> {
    /// Steps that were found to be needed.
    pub planned: usize,
    /// Steps that succeeded.
    pub done: Vec<Done<S>>,
    /// Places that were put back after somebody else changed them.
    pub repaired: Vec<S::Key>,
    /// Everything was compared.
    pub whole: bool,
    /// What was compared, where not everything was.
    pub keys: BTreeSet<S::Key>,
}

/// Keeps a target; knows what is due, what was refused, who is in the way, and who fights.
#[derive(Debug)]
pub struct Reconciler<K> {
    /// What is to be looked at in the next round.
    pub due: Due<K>,
    patience: Patience<K>,
    conflicts: BTreeMap<K, Conflict>,
    /// Places that are wrong and left so for the moment, because somebody fights for them: who changed them last.
    paused: BTreeMap<K, Option<Opponent>>,
    said: Said,
}

/// What was said of repairs: a second names so many, and counts the others. Whoever breaks thousands of places does it over many rounds.
#[derive(Debug, Default)]
struct Said {
    since: Option<Instant>,
    named: usize,
    unnamed: usize,
}

impl Said {
    /// Whether a further repair is named.
    fn names(&mut self) -> bool {
        let names = self.named < NAMED;
        match names {
            true => self.named += 1,
            false => self.unnamed += 1,
        }
        names
    }

    /// Begins a new second where one is over; how many of those before were not named.
    fn turn(&mut self, now: Instant) -> usize {
        if self.since.is_some_and(|since| now.duration_since(since) < SECOND) {
            return 0;
        }
        self.since = Some(now);
        self.named = 0;
        std::mem::take(&mut self.unnamed)
    }
}

impl<K: Copy + Ord + fmt::Display> Reconciler<K> {
    /// One to which nothing is due. What is refused is tried again after `longest_retry` at the latest.
    pub fn new(longest_retry: Duration) -> Reconciler<K> {
        Reconciler {
            due: Due::default(),
            patience: Patience::new(longest_retry),
            conflicts: BTreeMap::new(),
            paused: BTreeMap::new(),
            said: Said::default(),
        }
    }

    /// When a place with a clock is due, though nothing happens.
    pub fn next(&self) -> Option<Instant> {
        self.patience.next()
    }

    /// What was refused in these places may succeed now.
    pub fn hurry(&mut self, now: Instant, which: impl Fn(&K) -> bool) {
        self.patience.hurry(now, which);
    }

    /// Forgets fights that have been over for a while.
    pub fn forget(&mut self, now: Instant) {
        self.patience.forget(now);
    }

    /// Whether no place is known to be other than it shall be.
    pub fn is_clear(&self) -> bool {
        self.conflicts.is_empty() && self.paused.is_empty() && !self.patience.is_failing()
    }

    /// What stands in a place of ours.
    pub fn conflict(&self, key: &K) -> Option<&Conflict> {
        self.conflicts.get(key)
    }

    /// Why the last step for a place was refused.
    pub fn error(&self, key: &K) -> Option<&str> {
        self.patience.error(key)
    }

    /// Whether what a peer has published is why the last step for a place was refused.
    pub fn is_degraded(&self, key: &K) -> bool {
        self.patience.kind(key) == Some(Kind::Degraded)
    }

    /// Whether a place is left as it is because somebody fights for it.
    pub fn is_paused(&self, key: &K) -> bool {
        self.paused.contains_key(key)
    }

    /// Compares what is due, applies what differs and may be tried, and notes what came of it. `None` when nothing was due.
    pub fn round<T: Target<Key = K>>(&mut self, target: &mut T, now: Instant) -> Option<Round<T::Step>> {
        let due = std::mem::take(&mut self.due);
        let mut keys = self.patience.due(now);
        keys.extend(due.keys.iter().chain(due.disturbed.keys()));
        let whole = due.replanned || due.observed;
        if keys.is_empty() && !whole {
            return None;
        }
        let look = if whole { Look::Whole } else { Look::Keys(&keys) };
        let comparison = target.compare(look);
        self.note_conflicts(whole, &keys, comparison.conflicts);
        if self.patience.is_failing() {
            // Somebody else did what had been refused, or something stands in its place, or nobody wants it any more.
            let open: BTreeSet<K> = comparison.steps.iter().map(Step::key).collect();
            self.patience
                .retain(|key| open.contains(key) || !(whole || keys.contains(key)));
        }
        for (key, why) in comparison.unreadable {
            self.patience.failed(key, Kind::Failure, why, now);
        }
        let is_looked_at = |key: &K| whole || keys.contains(key);
        let (waited, others): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.paused)
            .into_iter()
            .partition(|(key, _)| is_looked_at(key));
        self.paused = others;
        let planned = comparison.steps.len();
        let mut steps = comparison.steps;
        steps.retain(|step| {
            let key = step.key();
            let allowed = self.patience.allows(&key, step.damage(), now);
            if !allowed && self.patience.is_paused(&key, now) {
                let by = due.disturbed.get(&key).cloned().flatten();
                let before = || waited.get(&key).cloned().flatten();
                self.paused.insert(key, by.or_else(before));
            }
            allowed
        });
        let done = self.carry_out(target, steps, now);
        for key in &keys {
            self.patience.looked_at(key, now);
        }
        let repaired = self.note_repairs(target, &due, &waited, &done, now);
        Some(Round {
            planned,
            done,
            repaired,
            whole,
            keys,
        })
    }

    fn carry_out<T: Target<Key = K>>(
        &mut self,
        target: &mut T,
        steps: Vec<T::Step>,
        now: Instant,
    ) -> Vec<Done<T::Step>> {
        if steps.is_empty() {
            return Vec::new();
        }
        let fates = target.apply(steps, now);
        let take = |(step, fate): (T::Step, Fate)| {
            let key = step.key();
            match fate {
                Fate::Done => {
                    let retried = self.patience.error(&key).is_some();
                    self.patience.succeeded(&key);
                    if target.encourages(&key) {
                        self.patience.hurry(now, |_| true);
                    }
                    return Some(Done { step, retried });
                }
                Fate::Withheld => self.patience.succeeded(&key),
                Fate::Refused { kind, text } => {
                    self.patience.failed(key, kind, text, now);
                    if let Some(longest) = target.longest_retry(&key) {
                        self.patience.within(&key, longest, now);
                    }
                }
            }
            None
        };
        // Collected in the place where they are.
        fates.into_iter().filter_map(take).collect()
    }

    fn note_conflicts(&mut self, whole: bool, keys: &BTreeSet<K>, found: Vec<(K, Conflict)>) {
        if whole {
            self.conflicts.clear();
        } else {
            self.conflicts.retain(|key, _| !keys.contains(key));
        }
        self.conflicts.extend(found);
    }

    fn note_repairs<T: Target<Key = K>>(
        &mut self,
        target: &T,
        due: &Due<K>,
        waited: &BTreeMap<K, Option<Opponent>>,
        done: &[Done<T::Step>],
        now: Instant,
    ) -> Vec<K> {
        let mut repaired = Vec::new();
        match self.said.turn(now) {
            0 => {}
            unnamed => info!("repaired {unnamed} more"),
        }
        if due.replanned {
            return repaired;
        }
        let mut names: BTreeMap<u32, Arc<str>> = BTreeMap::new();
        let mut in_fight = false;
        for Done { step, retried } in done {
            let key = step.key();
            let by = match due.disturbed.get(&key) {
                // Not a repair but news: the desired state of this place has changed.
                _ if due.keys.contains(&key) => continue,
                Some(by) => by.as_ref(),
                // It was left alone for a while.
                None if waited.contains_key(&key) => waited.get(&key).and_then(Option::as_ref),
                // It was never there.
                None if *retried => continue,
                // A look at everything finds what nobody told, or what hung on something that is gone.
                None if due.observed || !due.disturbed.is_empty() => None,
                None => continue,
            };
            repaired.push(key);
            let name = by.map(|by| match by {
                Opponent::Port(port) | Opponent::Process(port, _) => {
                    Arc::clone(names.entry(*port).or_insert_with(|| by.to_string().into()))
                }
            });
            let is_others = due.disturbed.contains_key(&key) || waited.contains_key(&key);
            if is_others && target.is_fought(step, by, &due.disturbed) {
                self.patience.repaired(key, step.damage(), name.clone(), now);
            }
            // A fight is a finding, and said once; its every blow is only counted, with all that goes along.
            in_fight |= self.patience.is_fought(&key);
            if in_fight || !self.said.names() {
                continue;
            }
            match name {
                Some(by) => info!("repaired: {step} (changed by {by})"),
                None => info!("repaired: {step}"),
            }
        }
        repaired
    }

    /// What is not as it should be. Thousands of places may have one cause: those that will not be named are not put into words.
    pub fn report(&self, part: Part) -> Report {
        let mut report = Report::default();
        for (key, conflict) in &self.conflicts {
            report.add_with(part, Kind::Conflict, || {
                Finding::new(part, Kind::Conflict, key.to_string(), conflict.to_string())
            });
        }
        for (key, kind, error) in self.patience.refusals() {
            report.add_with(part, kind, || {
                let subject = key.to_string();
                let text = format!("{subject}: {error}");
                Finding::new(part, kind, subject, text)
            });
        }
        for (key, by) in self.patience.fights() {
            let is_paused = self.paused.contains_key(key);
            let kind = if is_paused { Kind::Fight } else { Kind::Remark };
            report.add_with(part, kind, || {
                let by = by.unwrap_or("somebody unknown");
                let then = if is_paused {
                    ": it is put right ever more seldom"
                } else {
                    ""
                };
                let text = format!("{key} is changed again and again by {by}{then}");
                Finding::new(part, kind, key.to_string(), text)
            });
        }
        report
    }
}

#[cfg(test)]
mod tests;
