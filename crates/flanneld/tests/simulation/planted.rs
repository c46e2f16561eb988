//! Mistakes that the simulation has to find: each is a layer over what works.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fabric::lease::{Delta, Update};
use registry::entries::{End, Entries, Life, Listing, Mark, Seen, Told, Wish, Written};
use registry::memory::{Client, Stamp};
use registry::{
    AcquireError, Chance, Held, Holding, Leases, Over, Pending, Registry, RegistryError, State, States,
    Wanted,
};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::search;

/// Seeds within which each is found.
const BOUND: u64 = 3000;

/// Which mistake a store makes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mistake {
    /// A create without an answer counts as one that another node has won, and the next choice is made on the listing that is
    /// at hand.
    Unread,
    /// A renewal does not care whether the lease has expired, nor who has the subnet now.
    Late,
}

struct Mistaken {
    inner: Client,
    mistake: Mistake,
    listed: Mutex<Option<Listing<Stamp>>>,
    again: Mutex<bool>,
}

impl Entries for Mistaken {
    type Handle = Stamp;

    async fn config(&self) -> Result<Vec<u8>, RegistryError> {
        self.inner.config().await
    }

    async fn list(&self, wish: &Wish<'_, Stamp>) -> Result<Listing<Stamp>, RegistryError> {
        if std::mem::take(&mut *self.again.lock().unwrap())
            && let Some(listed) = self.listed.lock().unwrap().clone()
        {
            return Ok(listed);
        }
        let listing = self.inner.list(wish).await?;
        *self.listed.lock().unwrap() = Some(listing.clone());
        Ok(listing)
    }

    async fn read(&self, key: &str) -> Result<Seen<Stamp>, RegistryError> {
        self.inner.read(key).await
    }

    async fn create(&self, key: &str, value: &str) -> Result<Written<Stamp>, RegistryError> {
        let created = self.inner.create(key, value).await;
        if self.mistake != Mistake::Unread || created.is_ok() {
            return created;
        }
        *self.again.lock().unwrap() = true;
        let seen = Seen {
            number: 0,
            entry: None,
        };
        Ok(Written::Found(seen))
    }

    async fn swap(
        &self,
        key: &str,
        value: &str,
        known: &Stamp,
        life: Life,
    ) -> Result<Written<Stamp>, RegistryError> {
        let swapped = self.inner.swap(key, value, known, life).await?;
        let Written::Found(seen) = &swapped else {
            return Ok(swapped);
        };
        if self.mistake != Mistake::Late {
            return Ok(swapped);
        }
        match &seen.entry {
            Some(entry) => self.inner.swap(key, value, &entry.handle, Life::Whole).await,
            None => self.inner.create(key, value).await,
        }
    }

    async fn delete(&self, key: &str, known: &Stamp) -> Result<bool, RegistryError> {
        self.inner.delete(key, known).await
    }

    async fn prolong(&self, key: &str, known: &Stamp) -> Result<Option<(Stamp, Instant)>, RegistryError> {
        let prolonged = self.inner.prolong(key, known).await?;
        if self.mistake == Mistake::Late && prolonged.is_none() {
            return Ok(Some((*known, Instant::now() + crate::case::TTL)));
        }
        Ok(prolonged)
    }

    async fn expires(&self, key: &str, known: &Stamp) -> Result<Option<Instant>, RegistryError> {
        self.inner.expires(key, known).await
    }

    async fn was(&self, key: &str, known: &Stamp) -> Result<Option<bool>, RegistryError> {
        self.inner.was(key, known).await
    }

    async fn give_back(&self) {
        if self.mistake != Mistake::Unread {
            self.inner.give_back().await;
        }
    }

    async fn watch(&self, after: Mark, told: &(dyn Fn(Told<Stamp>) + Send + Sync)) -> End {
        self.inner.watch(after, told).await
    }

    async fn follow_config(&self, told: &(dyn Fn(Result<Vec<u8>, RegistryError>) + Send + Sync)) {
        self.inner.follow_config(told).await;
    }

    fn state(&self) -> &watch::Sender<State> {
        self.inner.state()
    }

    async fn reconnect(&self) {
        self.inner.reconnect().await;
    }

    fn requests(&self) -> u64 {
        self.inner.requests()
    }
}

fn mistaken(client: Client, chance: Chance, mistake: Mistake) -> Arc<dyn Registry> {
    let entries = Mistaken {
        inner: client,
        mistake,
        listed: Mutex::new(None),
        again: Mutex::new(false),
    };
    Arc::new(Leases::over(entries, chance))
}

/// Tells a snapshot as if it were what has changed.
struct Snapless(Leases<Client>);

impl Registry for Snapless {
    fn network_config(&self) -> Pending<'_, Result<Vec<u8>, RegistryError>> {
        self.0.network_config()
    }

    fn acquire<'a>(&'a self, wanted: &'a Wanted<'a>) -> Pending<'a, Result<Held, AcquireError>> {
        self.0.acquire(wanted)
    }

    fn keep<'a>(
        &'a self,
        wanted: &'a Wanted<'a>,
        held: Held,
        margin: Duration,
        report: &'a (dyn Fn(Holding) + Send + Sync),
    ) -> Pending<'a, Over> {
        self.0.keep(wanted, held, margin, report)
    }

    fn watch<'a>(&'a self, sink: &'a (dyn Fn(Update) + Send + Sync)) -> Pending<'a, Infallible> {
        Box::pin(async move {
            let first = Mutex::new(true);
            let told = |update: Update| {
                let is_first = std::mem::take(&mut *first.lock().unwrap());
                sink(match update {
                    Update::Snapshot(snapshot) if !is_first => Update::Delta(Delta {
                        revision: snapshot.revision,
                        changes: snapshot
                            .leases
                            .into_iter()
                            .map(|(subnet, lease)| (subnet, Some(lease)))
                            .collect(),
                        rejected: snapshot.rejected,
                        gone: Vec::new(),
                    }),
                    update => update,
                });
            };
            self.0.watch(&told).await
        })
    }

    fn watch_config<'a>(
        &'a self,
        sink: &'a (dyn Fn(Result<Vec<u8>, RegistryError>) + Send + Sync),
    ) -> Pending<'a, Infallible> {
        self.0.watch_config(sink)
    }

    fn resume(&self, revision: i64, spoken: Option<&str>) {
        self.0.resume(revision, spoken);
    }

    fn reconnect(&self) -> Pending<'_, ()> {
        self.0.reconnect()
    }

    fn hurry(&self) {
        self.0.hurry();
    }

    fn states(&self) -> States {
        self.0.states()
    }

    fn requests(&self) -> u64 {
        self.0.requests()
    }
}

#[test]
fn a_lost_reply_to_a_create_that_is_not_re_read_is_found() {
    let build = |client, chance| mistaken(client, chance, Mistake::Unread);
    let (seed, what) = search(0, BOUND, build).expect("a violation");
    assert!(what.contains(" while it has "), "seed {seed}: {what}");
}

#[test]
fn a_renewal_after_expiry_is_found() {
    let build = |client, chance| mistaken(client, chance, Mistake::Late);
    let (seed, what) = search(0, BOUND, build).expect("a violation");
    let named = what.contains(" wrote over ") || what.contains("which expired");
    assert!(named, "seed {seed}: {what}");
}

#[test]
fn a_snapshot_that_is_told_as_a_delta_is_found() {
    let build = |client, chance| -> Arc<dyn Registry> { Arc::new(Snapless(Leases::over(client, chance))) };
    let (seed, what) = search(0, BOUND, build).expect("a violation");
    assert!(what.contains("has beyond: route"), "seed {seed}: {what}");
}
