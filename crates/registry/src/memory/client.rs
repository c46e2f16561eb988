//! A client of the store: what [`Entries`] asks for, over calls that may be lost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::state::{Opened, Stamp, State as Held, Who, Wrote};
use super::{Fate, Passage, Passages, Store};
use crate::RegistryError;
use crate::entries::{End, Entries, Life, Listing, Mark, Scope, Seen, Told, Wish, Written};
use crate::state::{Failure, State};

/// A call without an answer is given up after this long.
const DEADLINE: Duration = Duration::from_secs(5);
/// A watch over which nothing comes is asked whether it still stands; silence ends it after this long.
const SILENCE: Duration = Duration::from_secs(15);

/// A client.
pub struct Client {
    store: Store,
    number: u32,
    ttl: Duration,
    passages: Mutex<Option<Box<Passages>>>,
    state: watch::Sender<State>,
    requests: AtomicU64,
    /// A grant of time that no entry was seen to live by: kept from one attempt to write to the next, so that a write whose
    /// answer was lost is known by it.
    spare: Mutex<Option<u64>>,
}

impl Client {
    pub(super) fn new(store: Store, number: u32, ttl: Duration) -> Client {
        Client {
            store,
            number,
            ttl,
            passages: Mutex::new(None),
            state: watch::channel(State::default()).0,
            requests: AtomicU64::new(0),
            spare: Mutex::new(None),
        }
    }

    /// The number it is known by in [deeds](super::Deed).
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Calls fare as told from now on.
    pub fn set_passages(&self, passages: Box<Passages>) {
        *self.passages.lock().unwrap_or_else(PoisonError::into_inner) = Some(passages);
    }

    /// See [`Store::cut_off`].
    pub fn cut_off(&self, cut_off: bool) {
        self.store.cut_off(self.number, cut_off);
    }

    fn is_cut_off(&self) -> bool {
        self.store.lock().cut_off.contains(&self.number)
    }

    fn passage(&self, call: &'static str) -> Passage {
        let mut passages = self.passages.lock().unwrap_or_else(PoisonError::into_inner);
        passages.as_mut().map(|decide| decide(call)).unwrap_or_default()
    }

    /// Carries out a call, as far as it arrives, and brings the answer back, as far as that does.
    async fn call<T>(
        &self,
        call: &'static str,
        deed: impl FnOnce(&mut Held) -> T,
    ) -> Result<T, RegistryError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let passage = self.passage(call);
        let end = Instant::now() + DEADLINE;
        pass(passage.there).await;
        if passage.fate == Fate::Lost || self.is_cut_off() || Instant::now() >= end {
            return Err(self.unanswered(call, end).await);
        }
        let answer = deed(&mut self.store.lock());
        self.store.0.sooner.notify_one();
        pass(passage.back).await;
        if passage.fate == Fate::Unanswered || self.is_cut_off() || Instant::now() >= end {
            return Err(self.unanswered(call, end).await);
        }
        self.state.send_if_modified(|state| {
            let news = state.endpoint.is_none();
            if news {
                state.endpoint = Some("memory".to_owned());
                state.since = Some(SystemTime::now());
            }
            news
        });
        Ok(answer)
    }

    async fn unanswered(&self, call: &'static str, end: Instant) -> RegistryError {
        tokio::time::sleep_until(end).await;
        let error = format!("memory: {call}: no answer within {} s", DEADLINE.as_secs());
        self.note_failure(&error);
        RegistryError::Unreachable(error)
    }

    fn note_failure(&self, error: &str) {
        self.state.send_modify(|state| {
            state.endpoint = None;
            state.last_failure = Some(Failure {
                at: SystemTime::now(),
                error: error.to_owned(),
            });
        });
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Option<u64>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The spare grant, or a new one. Ids are the client's own choice: two clients never choose the same.
    fn spared(&self) -> u64 {
        let chosen = || (u64::from(self.number) << 32) | self.requests.load(Ordering::Relaxed) | (1 << 63);
        *self.spare().get_or_insert_with(chosen)
    }

    fn note_seen(&self, grant: u64) {
        self.spare().take_if(|spare| *spare == grant);
    }

    /// What a write came to that was asked for at this time: a new time to live is counted from then, and so never too long.
    fn written(&self, wrote: Wrote, asked: Instant) -> Written<Stamp> {
        match wrote {
            Wrote::Done { stamp, expires } => {
                self.note_seen(stamp.grant());
                Written::Done {
                    number: stamp.modified(),
                    handle: stamp,
                    expires: expires.map(|at| at.min(asked + self.ttl)),
                }
            }
            Wrote::Found(seen) => Written::Found(self.seen(seen)),
        }
    }

    fn seen(&self, seen: Seen<Stamp>) -> Seen<Stamp> {
        if let Some(entry) = &seen.entry {
            self.note_seen(entry.handle.grant());
        }
        seen
    }

    async fn deliver(
        &self,
        watcher: u64,
        news: &tokio::sync::Notify,
        told: &(dyn Fn(Told<Stamp>) + Send + Sync),
    ) -> End {
        let mut silent_since: Option<Instant> = None;
        loop {
            let changes = {
                let mut state = self.store.lock();
                if state.cut_off.contains(&self.number) {
                    silent_since.get_or_insert_with(Instant::now);
                    Vec::new()
                } else {
                    silent_since = None;
                    if state.watcher(watcher).is_none_or(|watcher| watcher.cut) {
                        drop(state);
                        return self.broken("the watch was cut");
                    }
                    match state.news(watcher) {
                        Some(changes) => changes,
                        None => return End::Compacted,
                    }
                }
            };
            if !changes.is_empty() {
                told(Told::Changes(changes));
            }
            match silent_since {
                Some(since) => tokio::select! {
                    biased;
                    () = news.notified() => {}
                    () = tokio::time::sleep_until(since + SILENCE) => {
                        return self.broken("nothing came over the watch");
                    }
                },
                None => news.notified().await,
            }
        }
    }

    fn broken(&self, reason: &str) -> End {
        let error = format!("memory: watch: {reason}");
        self.note_failure(&error);
        End::Failed(error)
    }
}

fn no_config() -> RegistryError {
    RegistryError::NotFound {
        what: "network config",
        place: "no key \"config\"".to_owned(),
    }
}

async fn pass(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}

/// Ends the watch in the store when the watching is dropped.
struct Watched<'a> {
    store: &'a Store,
    watcher: u64,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.store.lock().unwatch(self.watcher);
    }
}

impl Entries for Client {
    type Handle = Stamp;

    async fn config(&self) -> Result<Vec<u8>, RegistryError> {
        let config = self.call("config", |_| self.store.config().borrow().clone());
        config.await?.ok_or_else(no_config)
    }

    async fn list(&self, wish: &Wish<'_, Stamp>) -> Result<Listing<Stamp>, RegistryError> {
        let list = |state: &mut Held| {
            let mut listing = Listing::default();
            listing.snapshot.revision = state.number();
            listing.mark = state.mark();
            state.visit(|key, value, created, stamp| {
                let wanted = match wish.scope {
                    Scope::All => true,
                    Scope::CreatedAfter(number) => created > number,
                };
                if wanted {
                    self.note_seen(stamp.grant());
                    listing.take(key.into(), value, created, &stamp, wish);
                }
            });
            listing
        };
        self.call("list", list).await
    }

    async fn read(&self, key: &str) -> Result<Seen<Stamp>, RegistryError> {
        let seen = self.call("read", |state| state.seen(key)).await?;
        Ok(self.seen(seen))
    }

    async fn create(&self, key: &str, value: &str) -> Result<Written<Stamp>, RegistryError> {
        let (who, grant, asked) = (Who::Client(self.number), self.spared(), Instant::now());
        let create = |state: &mut Held| {
            let grant = (grant, Instant::now() + self.ttl);
            state.create(who, key, value.as_bytes(), grant)
        };
        let wrote = self.call("create", create).await?;
        Ok(self.written(wrote, asked))
    }

    async fn swap(
        &self,
        key: &str,
        value: &str,
        known: &Stamp,
        life: Life,
    ) -> Result<Written<Stamp>, RegistryError> {
        let (who, asked) = (Who::Client(self.number), Instant::now());
        let grant = match life {
            Life::Same => 0,
            Life::Whole => self.spared(),
        };
        let swap = |state: &mut Held| {
            let grant = (grant, Instant::now() + self.ttl);
            state.swap(who, key, value.as_bytes(), known, life, grant)
        };
        let wrote = self.call("swap", swap).await?;
        Ok(self.written(wrote, asked))
    }

    async fn delete(&self, key: &str, known: &Stamp) -> Result<bool, RegistryError> {
        let who = Who::Client(self.number);
        self.call("delete", |state| state.remove(who, key, known)).await
    }

    async fn prolong(&self, _: &str, known: &Stamp) -> Result<Option<(Stamp, Instant)>, RegistryError> {
        let (grant, asked) = (known.grant(), Instant::now());
        let prolong = |state: &mut Held| state.prolong(grant, Instant::now() + self.ttl);
        let alive = self.call("prolong", prolong).await?;
        Ok(alive.then_some((*known, asked + self.ttl)))
    }

    async fn expires(&self, _: &str, known: &Stamp) -> Result<Option<Instant>, RegistryError> {
        let grant = known.grant();
        if grant == 0 {
            return Ok(None);
        }
        let expires = self.call("expires", |state| state.expires(grant)).await?;
        Ok(Some(expires.unwrap_or_else(Instant::now)))
    }

    async fn was(&self, key: &str, known: &Stamp) -> Result<Option<bool>, RegistryError> {
        self.call("was", |state| state.was(key, known)).await
    }

    async fn give_back(&self) {
        let spare = self.spare().take();
        if let Some(grant) = spare {
            let who = Who::Client(self.number);
            // What is not given back ends by itself.
            let _ = self.call("give back", |state| state.revoke(who, grant)).await;
        }
    }

    async fn watch(&self, after: Mark, told: &(dyn Fn(Told<Stamp>) + Send + Sync)) -> End {
        let opened = self.call("watch", |state| state.watch(self.number, after)).await;
        let (watcher, news) = match opened {
            Ok(Opened::Standing(watcher, news)) => (watcher, news),
            Ok(Opened::Compacted) => return End::Compacted,
            Ok(Opened::Exchanged) => {
                self.note_failure("memory: watch: the store is not the one that was listed");
                return End::Exchanged;
            }
            Err(error) => return End::Failed(error.to_string()),
        };
        let _watched = Watched {
            store: &self.store,
            watcher,
        };
        told(Told::Standing);
        self.deliver(watcher, &news, told).await
    }

    async fn follow_config(&self, told: &(dyn Fn(Result<Vec<u8>, RegistryError>) + Send + Sync)) {
        let mut config = self.store.config();
        if self.call("watch config", |_| ()).await.is_err() {
            return;
        }
        loop {
            // Whoever is cut off hears of it later.
            while self.is_cut_off() {
                sleep(SILENCE).await;
            }
            let now = config.borrow_and_update().clone();
            told(now.ok_or_else(no_config));
            if config.changed().await.is_err() {
                return;
            }
        }
    }

    fn state(&self) -> &watch::Sender<State> {
        &self.state
    }

    async fn reconnect(&self) {}

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}
