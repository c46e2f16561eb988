//! Writing the cache: not at every event, and not when nothing is new.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fabric::lease::Lease;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::records::{CACHE, Records};
use crate::board::Reporter;
use crate::cache::{Head, Moment, Own, Source};
use crate::mailbox::{Command, Listing, Mailbox};
use crate::truth::Truth;

/// A change is written this long after it was heard of, with all that came meanwhile.
const SETTLES: Duration = Duration::from_secs(2);
/// Two writes are at least this far apart, however much happens.
const PAUSE: Duration = Duration::from_secs(10);
/// What has not changed is written again after this: the registry said so much later, and the clock may have been set.
const REFRESH: Duration = Duration::from_secs(3600);

/// The own lease as the registry granted it.
#[derive(Debug)]
struct Holding {
    config: String,
    subnet: String,
    value: String,
    /// Seconds left at the moment beside it; `None` for a reservation.
    left: Option<u64>,
    at: Moment,
    /// The registry does not have it at the moment, so that it is nothing to rely on.
    lost: bool,
}

/// Keeps the cache on disk what the registry last said.
pub struct Recorder {
    records: Arc<dyn Records>,
    source: Source,
    holding: Mutex<Option<Holding>>,
    /// What was written last, and when.
    written: Mutex<Option<(Head, Instant)>>,
    /// The own lease changed.
    changed: Notify,
    /// Who is told whether it could be written.
    truth: Truth,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    pub(super) fn new(records: Arc<dyn Records>, source: Source, truth: Truth) -> Recorder {
        Recorder {
            records,
            source,
            holding: Mutex::new(None),
            written: Mutex::new(None),
            changed: Notify::new(),
            truth,
        }
    }

    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// The lease that is held, and the config it was got for.
    pub(super) fn hold(&self, config: &str, lease: &Lease, expires: Option<Instant>) {
        *lock(&self.holding) = Some(Holding {
            config: config.to_owned(),
            subnet: lease.subnet.to_string(),
            value: lease.attributes.to_json(),
            left: left(expires),
            at: self.records.now(),
            lost: false,
        });
        self.changed.notify_one();
    }

    /// The lease is good until then.
    pub(super) fn renewed(&self, expires: Option<Instant>) {
        if let Some(holding) = &mut *lock(&self.holding) {
            holding.left = left(expires);
            holding.at = self.records.now();
            holding.lost = false;
        }
        self.changed.notify_one();
    }

    /// The lease is not ours, for the moment or for good.
    pub(super) fn lost(&self) {
        if let Some(holding) = &mut *lock(&self.holding) {
            holding.lost = true;
        }
        lock(&self.written).take();
        self.records.forget_cache();
    }

    /// Writes whenever there is something new, and not too often.
    pub(super) async fn run(&self, mailbox: &Mailbox, reporter: &Reporter) -> Infallible {
        let mut standing = reporter.standing();
        let mut known = 0;
        loop {
            tokio::select! {
                biased;
                _ = standing.wait_for(|standing| standing.engaged && standing.revision != known) => {}
                () = self.changed.notified() => {}
                () = sleep(REFRESH) => {}
            }
            sleep(SETTLES).await;
            if let Some(revision) = self.write(mailbox, REFRESH).await {
                known = revision;
            }
            sleep(PAUSE).await;
        }
    }

    /// Writes what is known now, unless it was written less than `fresh` ago; the revision it is of. `None`: it is not written.
    pub(super) async fn write(&self, mailbox: &Mailbox, fresh: Duration) -> Option<i64> {
        if lock(&self.holding).as_ref().is_none_or(|holding| holding.lost) {
            return None;
        }
        let listing = mailbox.ask(Command::Leases).await??;
        let revision = listing.revision;
        let head = self.head(&listing)?;
        let is_known = |(before, at): &(Head, Instant)| at.elapsed() < fresh && before.says_what(&head);
        if lock(&self.written).as_ref().is_some_and(is_known) {
            return Some(revision);
        }
        let saved = self.records.save_cache(head.clone(), listing.lines).await;
        let is_saved = saved.is_ok();
        self.truth.saved(CACHE, saved);
        // What could not be written is tried again.
        is_saved.then(|| {
            *lock(&self.written) = Some((head, Instant::now()));
            revision
        })
    }

    fn head(&self, listing: &Listing) -> Option<Head> {
        let holding = lock(&self.holding);
        let holding = holding.as_ref().filter(|holding| !holding.lost)?;
        let now = self.records.now();
        let elapsed = now.since_in_this_boot(&holding.at).unwrap_or(0);
        let own = Own {
            subnet: holding.subnet.clone(),
            value: holding.value.clone(),
            left: holding.left.map(|left| left.saturating_sub(elapsed)),
        };
        let config = holding.config.clone();
        Some(Head::new(
            self.source.clone(),
            self.truth.spoken(),
            now,
            listing.revision,
            config,
            own,
            &listing.lines,
        ))
    }
}

fn left(expires: Option<Instant>) -> Option<u64> {
    expires.map(|at| at.saturating_duration_since(Instant::now()).as_secs())
}
