//! Leases in a store of entries: how they are had, kept and followed, whatever the store is.

mod acquire;
mod keep;
mod watching;

use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fabric::lease::{Snapshot, Subnet, Update};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use self::keep::{Follower, Sighting};
use crate::chance::{Backoff, Chance};
use crate::entries::{Entries, Handle, Mark};
use crate::etcd3;
use crate::state::States;
use crate::{
    AcquireError, Held, Holding, Over, Pending, Registry, RegistryError, Revision, STOOD, Wanted, lock,
};

/// Between two attempts, whatever there is to hurry for: pods come and go all the time.
const LEAST: Duration = Duration::from_millis(500);

/// The registry of leases that a store of entries makes.
pub struct Leases<E: Entries> {
    entries: E,
    chance: Chance,
    /// The listing a lease was acquired on, for the watch to go on from.
    stash: Mutex<Option<(Snapshot, Mark)>>,
    watched: AtomicBool,
    /// The store is another than was listed last.
    exchanged: AtomicBool,
    follower: Mutex<Option<Follower<E::Handle>>>,
    /// The entry that was kept last, as it was last seen: ours, whatever address it bears.
    kept: Mutex<Option<(Subnet, E::Handle)>>,
    /// How far the watch has come.
    followed: Mutex<Revision>,
    hurry: Notify,
}

impl<E: Entries> Leases<E> {
    /// Over a store; waiting times and choices among free subnets come from `chance`.
    pub fn over(entries: E, chance: Chance) -> Leases<E> {
        Leases {
            entries,
            chance,
            stash: Mutex::new(None),
            watched: AtomicBool::new(false),
            exchanged: AtomicBool::new(false),
            follower: Mutex::new(None),
            kept: Mutex::new(None),
            followed: Mutex::new(Revision::default()),
            hurry: Notify::new(),
        }
    }

    /// The store.
    pub fn entries(&self) -> &E {
        &self.entries
    }

    /// The key somebody wants sightings of.
    fn followed_key(&self) -> Option<String> {
        lock(&self.follower).as_ref().map(|follower| follower.key.clone())
    }

    fn tell_follower(&self, key: &str, sighting: Sighting<E::Handle>) {
        let follower = lock(&self.follower);
        if let Some(follower) = follower.as_ref().filter(|follower| follower.key == key) {
            follower.newest.send_replace(Some(sighting));
        }
    }

    fn note_kept(&self, kept: Option<(Subnet, E::Handle)>) {
        *lock(&self.kept) = kept;
    }

    /// The handle of the entry that was kept last, if it was that of this subnet.
    fn kept(&self, subnet: &Subnet) -> Option<E::Handle> {
        let kept = lock(&self.kept);
        kept.as_ref()
            .filter(|(known, _)| known == subnet)
            .map(|(_, handle)| handle.clone())
    }

    /// Whether an entry is the one this process kept last: nobody has touched it since, or it lives by our grant of time.
    ///
    /// A node whose address changed finds its lease by this. Its pods have addresses out of that subnet.
    fn was_kept(&self, subnet: &Subnet, handle: &E::Handle) -> bool {
        self.kept(subnet)
            .is_some_and(|last| last == *handle || (!last.is_reservation() && last.shares_life(handle)))
    }

    /// Notes that the store was listed at this revision. A store that is behind what the watch has followed is not what it was, nor
    /// is one of which the watch has said so.
    fn listed_at(&self, number: i64) -> Revision {
        let followed = {
            let mut followed = lock(&self.followed);
            let exchanged = self.exchanged.swap(false, Ordering::Relaxed);
            if exchanged || number < followed.number {
                followed.epoch = followed.epoch.wrapping_add(1);
            }
            followed.number = number;
            *followed
        };
        self.note_number(number);
        followed
    }

    /// Notes how far an earlier process followed, unless this one has begun to.
    fn resume_at(&self, number: i64) {
        let mut followed = lock(&self.followed);
        if *followed == Revision::default() {
            followed.number = number;
        }
    }

    /// Notes that the watch came to this revision.
    fn followed_to(&self, number: i64) -> Revision {
        let mut followed = lock(&self.followed);
        followed.number = followed.number.max(number);
        followed.in_this_epoch(number)
    }

    /// Waits before the next attempt, or until there is reason to hurry.
    async fn pause(&self, backoff: &mut Backoff) {
        let step = backoff.step();
        let least = step.min(LEAST);
        sleep(least).await;
        tokio::select! {
            biased;
            () = self.hurry.notified() => backoff.reset(),
            () = sleep(step - least) => {}
        }
    }

    /// Where the watch is.
    fn followed(&self) -> Revision {
        *lock(&self.followed)
    }

    fn note_number(&self, number: i64) {
        self.entries.state().send_if_modified(|state| {
            state.revision = number;
            false
        });
    }
}

impl<E: Entries> Registry for Leases<E> {
    fn network_config(&self) -> Pending<'_, Result<Vec<u8>, RegistryError>> {
        Box::pin(self.entries.config())
    }

    fn acquire<'a>(&'a self, wanted: &'a Wanted<'a>) -> Pending<'a, Result<Held, AcquireError>> {
        Box::pin(acquire::acquire(self, wanted))
    }

    fn keep<'a>(
        &'a self,
        wanted: &'a Wanted<'a>,
        held: Held,
        margin: Duration,
        report: &'a (dyn Fn(Holding) + Send + Sync),
    ) -> Pending<'a, Over> {
        Box::pin(async move { Over::Taken(keep::keep(self, wanted, held, margin, report).await) })
    }

    fn watch<'a>(&'a self, sink: &'a (dyn Fn(Update) + Send + Sync)) -> Pending<'a, Infallible> {
        Box::pin(watching::watch(self, sink))
    }

    fn watch_config<'a>(
        &'a self,
        sink: &'a (dyn Fn(Result<Vec<u8>, RegistryError>) + Send + Sync),
    ) -> Pending<'a, Infallible> {
        Box::pin(async move {
            let mut pause = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), &self.chance);
            loop {
                let began = Instant::now();
                self.entries.follow_config(sink).await;
                if began.elapsed() >= STOOD {
                    pause.reset();
                }
                sleep(pause.step()).await;
            }
        })
    }

    fn resume(&self, revision: i64, spoken: Option<&str>) {
        // COMPAT: who does not say what it spoke, spoke etcd's v3 API.
        let was = spoken.unwrap_or(etcd3::SPOKEN);
        let is = self.entries.state().borrow().spoken;
        if is.is_none_or(|is| is == was) {
            self.resume_at(revision);
        }
    }

    fn reconnect(&self) -> Pending<'_, ()> {
        Box::pin(self.entries.reconnect())
    }

    fn hurry(&self) {
        self.hurry.notify_one();
    }

    fn states(&self) -> States {
        self.entries.state().subscribe()
    }

    fn requests(&self) -> u64 {
        self.entries.requests()
    }
}
