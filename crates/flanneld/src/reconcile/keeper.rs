//! Keeping a target on a thread of its own: for what takes programs or files, so that waiting for them delays no route.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kernel::poll::Waker;
use tracing::error;

use super::{Opponent, Reconciler, Round, Target};

/// Everything is compared at least this often, whatever was heard.
const AUDIT: Duration = Duration::from_secs(60);
/// Who changes something often changes more: one look for all that happens within this time.
const SETTLE: Duration = Duration::from_millis(30);
/// Waiting failed: this long until it is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// A target that others may change, and that has to be asked or listened to.
pub trait Kept: Target {
    /// What it is to keep from now on.
    type Order;

    /// Takes an order, for the next comparison.
    fn obey(&mut self, order: Self::Order);

    /// What becomes readable when there is something to [hear](Kept::hear).
    fn fds(&self) -> Vec<BorrowedFd<'_>>;

    /// How often it has to be listened to though nothing becomes readable; `None`: never.
    fn listen_every(&self) -> Option<Duration>;

    /// Takes in which places somebody changed, or may have changed, without waiting.
    fn hear(&mut self) -> Vec<(Self::Key, Option<Opponent>)>;

    /// Tells how it stands after a round, or after a change of what is allowed.
    fn report(&mut self, account: &Account<'_, Self>)
    where
        Self: Sized;
}

/// What a keeper knows when it reports.
pub struct Account<'a, T: Target> {
    /// What was refused, what is in the way, who fights.
    pub reconciler: &'a Reconciler<T::Key>,
    /// The round that just ended, if one did.
    pub round: Option<&'a Round<T::Step>>,
    /// It is the first with the present order.
    pub is_first: bool,
    /// Changes are held back by an admin.
    pub is_paused: bool,
}

#[derive(Debug)]
struct Mail<O> {
    order: Option<O>,
    paused: bool,
    stop: bool,
}

/// A keeper's letter box: of orders the latest counts.
#[derive(Debug)]
pub struct Letters<O> {
    mail: Mutex<Mail<O>>,
    waker: Waker,
}

impl<O> Letters<O> {
    /// An empty one.
    ///
    /// # Errors
    /// When there is no descriptor to be had.
    pub fn new() -> std::io::Result<Arc<Letters<O>>> {
        Ok(Arc::new(Letters {
            mail: Mutex::new(Mail {
                order: None,
                paused: false,
                stop: false,
            }),
            waker: Waker::new()?,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Mail<O>> {
        // A poisoned letter box holds whole letters all the same: every change to it is one assignment.
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what to keep from now on.
    pub fn set(&self, order: O) {
        self.lock().order = Some(order);
        self.waker.wake();
    }

    /// Takes the order that has not been obeyed yet.
    pub fn take(&self) -> Option<O> {
        self.lock().order.take()
    }

    /// Holds all changes back, or allows them again.
    pub fn pause(&self, paused: bool) {
        self.lock().paused = paused;
        self.waker.wake();
    }

    /// Ends the keeper after the step it is in. What it keeps stays as it is.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.waker.wake();
    }
}

/// Keeps a target.
pub struct Keeper<T: Kept> {
    target: T,
    letters: Arc<Letters<T::Order>>,
    reconciler: Reconciler<T::Key>,
    has_order: bool,
    is_first: bool,
    is_paused: bool,
    audit_at: Instant,
    settled_at: Instant,
    heard_at: Instant,
}

impl<T: Kept> Keeper<T> {
    /// A keeper without an order. What is refused is tried again after `longest_retry` at the latest.
    pub fn new(target: T, letters: Arc<Letters<T::Order>>, longest_retry: Duration, now: Instant) -> Self {
        Keeper {
            target,
            letters,
            reconciler: Reconciler::new(longest_retry),
            has_order: false,
            is_first: true,
            is_paused: false,
            audit_at: now + AUDIT,
            settled_at: now,
            heard_at: now,
        }
    }

    /// Runs until the letter box says stop; `beat` is called each time round.
    pub fn run(mut self, beat: impl Fn()) {
        loop {
            beat();
            self.wait();
            if self.step(Instant::now()) {
                return;
            }
        }
    }

    /// What is kept.
    pub fn target(&mut self) -> &mut T {
        &mut self.target
    }

    /// One round: takes in what has come and puts right what differs. True when the letter box says stop.
    pub fn step(&mut self, now: Instant) -> bool {
        self.letters.waker.clear();
        let (order, paused, stop) = {
            let mut mail = self.letters.lock();
            (mail.order.take(), mail.paused, mail.stop)
        };
        if stop {
            return true;
        }
        if let Some(order) = order {
            self.target.obey(order);
            (self.has_order, self.is_first) = (true, true);
            self.reconciler.due.replanned = true;
        }
        if std::mem::replace(&mut self.is_paused, paused) != paused {
            self.reconciler.due.observed = true;
            self.report(None);
        }
        if !self.has_order {
            return false;
        }
        self.listen(now);
        if self.is_paused || (!self.reconciler.due.is_news() && self.is_settling(now)) {
            return false;
        }
        if let Some(round) = self.reconciler.round(&mut self.target, now) {
            self.report(Some(&round));
            self.is_first &= !self.reconciler.is_clear();
        }
        false
    }

    fn is_settling(&self, now: Instant) -> bool {
        !self.reconciler.due.disturbed.is_empty() && now < self.settled_at
    }

    fn listen(&mut self, now: Instant) {
        self.heard_at = now;
        let heard = self.target.hear();
        if self.reconciler.due.disturbed.is_empty() && !heard.is_empty() {
            self.settled_at = now + SETTLE;
        }
        self.reconciler.due.disturbed.extend(heard);
        if now >= self.audit_at {
            self.audit_at = now + AUDIT;
            self.reconciler.due.observed = true;
            self.reconciler.forget(now);
        }
    }

    fn report(&mut self, round: Option<&Round<T::Step>>) {
        let account = Account {
            reconciler: &self.reconciler,
            round,
            is_first: self.is_first,
            is_paused: self.is_paused,
        };
        self.target.report(&account);
    }

    /// When the next [step](Keeper::step) is due though nothing happens.
    pub fn next(&self, now: Instant) -> Instant {
        if !self.has_order {
            return now + AUDIT;
        }
        let listen = self.target.listen_every().map(|every| self.heard_at + every);
        let mut clocks = vec![Some(self.audit_at), listen];
        // What cannot be acted on must not wake anybody.
        if !self.is_paused {
            let due = &self.reconciler.due;
            let settling = !due.is_news() && !due.disturbed.is_empty();
            let gate = if settling { self.settled_at } else { now };
            clocks.push(self.reconciler.next().map(|at| at.max(gate)));
            clocks.push((!due.is_empty()).then_some(gate));
        }
        clocks.into_iter().flatten().min().unwrap_or(now)
    }

    fn wait(&self) {
        let now = Instant::now();
        let mut fds = vec![self.letters.waker.fd()];
        fds.extend(self.target.fds());
        if let Err(failure) = kernel::poll::wait(&fds, self.next(now).saturating_duration_since(now)) {
            error!("poll: {failure}");
            std::thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt;

    use super::super::patience::{Damage, LONGEST};
    use super::super::{Comparison, Fate, Look, Step};
    use super::*;

    /// One number that shall be another.
    #[derive(Default)]
    struct Number {
        wanted: u32,
        there: u32,
        is_refused: bool,
        heard: Vec<(u8, Option<Opponent>)>,
        listen: Option<Duration>,
        compared: usize,
        /// Of each report: whether there was a round, whether it was the first, whether all is held back.
        told: Vec<(bool, bool, bool)>,
    }

    #[derive(Debug)]
    struct Put;

    impl fmt::Display for Put {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("put")
        }
    }

    impl Step for Put {
        type Key = u8;

        fn key(&self) -> u8 {
            1
        }

        fn damage(&self) -> Damage {
            Damage::Changed
        }
    }

    impl Target for Number {
        type Key = u8;
        type Step = Put;

        fn compare(&mut self, _: Look<'_, u8>) -> Comparison<Put> {
            self.compared += 1;
            let mut found = Comparison::default();
            if self.wanted != self.there {
                found.steps.push(Put);
            }
            found
        }

        fn apply(&mut self, steps: Vec<Put>, _: Instant) -> Vec<(Put, Fate)> {
            let fate = |step| {
                if self.is_refused {
                    let text = "no".to_owned();
                    let kind = fabric::readiness::Kind::Failure;
                    return (step, Fate::Refused { kind, text });
                }
                self.there = self.wanted;
                (step, Fate::Done)
            };
            steps.into_iter().map(fate).collect()
        }
    }

    impl Kept for Number {
        type Order = u32;

        fn obey(&mut self, order: u32) {
            self.wanted = order;
        }

        fn fds(&self) -> Vec<BorrowedFd<'_>> {
            Vec::new()
        }

        fn listen_every(&self) -> Option<Duration> {
            self.listen
        }

        fn hear(&mut self) -> Vec<(u8, Option<Opponent>)> {
            std::mem::take(&mut self.heard)
        }

        fn report(&mut self, account: &Account<'_, Self>) {
            self.told
                .push((account.round.is_some(), account.is_first, account.is_paused));
        }
    }

    fn keeper(now: Instant) -> (Keeper<Number>, Arc<Letters<u32>>) {
        let letters = Letters::new().unwrap();
        (
            Keeper::new(Number::default(), Arc::clone(&letters), LONGEST, now),
            letters,
        )
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn keeper_when_it_has_no_order_then_it_does_nothing_and_sleeps() {
        let now = Instant::now();
        let (mut keeper, letters) = keeper(now);
        keeper.target.heard.push((1, None));
        assert!(!keeper.step(now));
        assert_eq!(
            (keeper.target.compared, keeper.target.heard.len()),
            (0, 1),
            "it does not even listen"
        );
        assert_eq!(keeper.next(now), now + AUDIT);
        letters.set(3);
        assert_eq!(letters.take(), Some(3));
        assert_eq!(letters.take(), None);
        letters.set(4);
        letters.set(5);
        assert!(!keeper.step(now));
        assert_eq!(
            (keeper.target.there, keeper.target.told.as_slice()),
            (5, &[(true, true, false)][..])
        );
        letters.stop();
        assert!(keeper.step(now));
    }

    #[test]
    fn keeper_when_others_change_something_then_one_look_for_all_that_happens_within_a_moment() {
        let now = Instant::now();
        let (mut keeper, letters) = keeper(now);
        letters.set(5);
        keeper.step(now);
        assert_eq!(
            keeper.next(now),
            now + AUDIT,
            "nothing to do and nothing to listen for"
        );
        keeper.target.listen = Some(ms(200));
        assert_eq!(
            keeper.next(now + ms(100)),
            now + ms(200),
            "since it listened last"
        );
        keeper.target.heard.push((1, None));
        keeper.target.there = 9;
        let heard_at = now + ms(200);
        keeper.step(heard_at);
        assert_eq!(
            (keeper.target.there, keeper.next(heard_at)),
            (9, heard_at + SETTLE)
        );
        keeper.target.heard.push((1, None));
        keeper.step(heard_at + ms(20));
        assert_eq!(
            keeper.next(heard_at + ms(20)),
            heard_at + SETTLE,
            "the first counts"
        );
        keeper.step(heard_at + SETTLE);
        assert_eq!(keeper.target.there, 5);
        assert_eq!(keeper.next(heard_at + SETTLE), heard_at + SETTLE + ms(200));
        // An order does not wait for things to settle.
        keeper.target.heard.push((1, None));
        letters.set(6);
        keeper.step(heard_at + ms(1000));
        assert_eq!(keeper.target.there, 6);
    }

    #[test]
    fn keeper_when_nothing_is_heard_for_a_minute_then_everything_is_compared() {
        let now = Instant::now();
        let (mut keeper, letters) = keeper(now);
        letters.set(5);
        keeper.step(now);
        keeper.target.there = 9;
        keeper.step(now + AUDIT - ms(1));
        assert_eq!((keeper.target.there, keeper.target.compared), (9, 1));
        keeper.step(now + AUDIT);
        assert_eq!((keeper.target.there, keeper.target.compared), (5, 2));
        assert_eq!(keeper.next(now + AUDIT), now + AUDIT * 2);
    }

    #[test]
    fn keeper_when_held_back_then_it_listens_and_changes_nothing_until_it_may() {
        let now = Instant::now();
        let (mut keeper, letters) = keeper(now);
        letters.set(5);
        keeper.step(now);
        letters.pause(true);
        keeper.target.heard.push((1, None));
        keeper.target.there = 9;
        keeper.step(now);
        assert_eq!(keeper.target.told, [(true, true, false), (false, false, true)]);
        assert_eq!(
            keeper.next(now),
            now + AUDIT,
            "what cannot be acted on wakes nobody"
        );
        keeper.step(now + SETTLE);
        assert_eq!(keeper.target.there, 9);
        letters.pause(false);
        keeper.step(now + SETTLE);
        assert_eq!(keeper.target.there, 5);
        assert_eq!(
            keeper.target.told[2..],
            [(false, false, false), (true, false, false)]
        );
    }

    #[test]
    fn keeper_when_a_step_is_refused_then_it_is_the_first_round_until_it_is_not() {
        let now = Instant::now();
        let (mut keeper, letters) = keeper(now);
        keeper.target().is_refused = true;
        letters.set(5);
        keeper.step(now);
        let again = keeper.next(now);
        assert_eq!(again, now + ms(100));
        keeper.target().is_refused = false;
        keeper.step(again);
        keeper.target.there = 9;
        keeper.step(now + AUDIT);
        assert_eq!(
            keeper.target.told,
            [(true, true, false), (true, true, false), (true, false, false)]
        );
        assert_eq!(
            BTreeMap::from([(1, keeper.target.there)]),
            BTreeMap::from([(1, 5)])
        );
    }

    #[test]
    fn keeper_when_it_runs_then_it_beats_until_it_is_told_to_stop() {
        let (keeper, letters) = keeper(Instant::now());
        letters.set(5);
        let beats = std::cell::Cell::new(0);
        letters.stop();
        keeper.run(|| beats.set(beats.get() + 1));
        assert_eq!(beats.get(), 1);
    }
}
