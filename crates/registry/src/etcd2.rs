//! The etcd v2 registry: the keys API over HTTP, as etcd 2 speaks it and etcd 3.0 to 3.5 with `--enable-v2`.
//!
//! One entry per node in the directory `<prefix>/subnets`, with a time to live of 24 h of its own. What Go flannel 0.17 and older
//! reads and writes, with its guards missing there: every write compares first. The API has no transactions, so a guard is over
//! one key; no leases beside the entries, so a grant of time is known by when it ends; no pages, so a listing is read object by
//! object as it comes; and remembers a thousand events, so a watch that was away longer lists again.

mod connection;
mod cutter;
mod listing;
mod stamp;
mod store;
mod watching;
mod wire;

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use tokio::sync::watch;
use tokio::time::Instant;

pub use self::stamp::Stamp;

use self::connection::Connection;
use self::listing::Listed;
use crate::RegistryError;
use crate::chance::Chance;
use crate::entries::{End, Entries, Entry, Life, Listing, Mark, Seen, Told, Wish, Written};
use crate::etcd::{Keys, Members, Options, OptionsError};
use crate::leases::Leases;
use crate::state::State;

/// What is spoken, for people.
pub const SPOKEN: &str = "etcd v2";

/// The entries below one prefix of a store of etcd's v2 API. Connects on first use and for as long as it lives goes on trying.
pub struct Store {
    pub(crate) members: Members<Connection>,
    keys: Keys,
    /// Seconds.
    lease_ttl: i64,
    chance: Chance,
    /// The last listings, for the watches that go on from them.
    listed: Mutex<VecDeque<Listed>>,
    /// The server knows how to prolong without a word to those who watch.
    refreshes: AtomicBool,
}

impl Store {
    /// A client that is not connected yet. Certificate files are read when connecting, so they may come later.
    pub fn new(options: &Options) -> Result<Store, OptionsError> {
        options.warn();
        let state = State {
            spoken: Some(SPOKEN),
            ..State::default()
        };
        Store::reporting(options, watch::Sender::new(state), false)
    }

    /// The same, with a state that is shared; `silent` until it is found that this API is the one to be spoken.
    pub(crate) fn reporting(
        options: &Options,
        state: watch::Sender<State>,
        silent: bool,
    ) -> Result<Store, OptionsError> {
        let chance = Chance::system();
        Ok(Store {
            members: Members::of(options, state, silent, &chance)?,
            // All keys of this API are below `/`.
            keys: Keys::new(&format!("/{}", options.prefix)),
            lease_ttl: i64::try_from(options.lease_ttl.as_secs()).unwrap_or(i64::MAX),
            chance,
            listed: Mutex::default(),
            refreshes: AtomicBool::new(true),
        })
    }
}

/// The leases in a store of etcd's v2 API.
pub type Etcd2 = Leases<Store>;

impl Leases<Store> {
    /// A client that is not connected yet. Certificate files are read when connecting, so they may come later.
    pub fn new(options: &Options) -> Result<Etcd2, OptionsError> {
        Ok(Leases::over(Store::new(options)?, Chance::system()))
    }
}

fn no_config(keys: &Keys) -> RegistryError {
    RegistryError::NotFound {
        what: "network config",
        place: format!("no key {:?} in the registry (etcd v2)", keys.config()),
    }
}

impl Entries for Store {
    type Handle = Stamp;

    async fn config(&self) -> Result<Vec<u8>, RegistryError> {
        self.network_config().await?.1
    }

    async fn list(&self, wish: &Wish<'_, Stamp>) -> Result<Listing<Stamp>, RegistryError> {
        Ok(self.list_directory(wish).await?)
    }

    async fn read(&self, key: &str) -> Result<Seen<Stamp>, RegistryError> {
        Ok(self.entry(key).await?)
    }

    async fn create(&self, key: &str, value: &str) -> Result<Written<Stamp>, RegistryError> {
        Ok(self.create_entry(key, value).await?)
    }

    async fn swap(
        &self,
        key: &str,
        value: &str,
        known: &Stamp,
        life: Life,
    ) -> Result<Written<Stamp>, RegistryError> {
        Ok(self.swap_entry(key, value, known, life).await?)
    }

    async fn delete(&self, key: &str, known: &Stamp) -> Result<bool, RegistryError> {
        Ok(self.delete_entry(key, known).await?)
    }

    async fn prolong(&self, key: &str, known: &Stamp) -> Result<Option<(Stamp, Instant)>, RegistryError> {
        Ok(self.prolong_entry(key, known).await?)
    }

    async fn expires(&self, key: &str, known: &Stamp) -> Result<Option<Instant>, RegistryError> {
        Ok(self.entry_ends(key, known).await?)
    }

    async fn was(&self, key: &str, known: &Stamp) -> Result<Option<bool>, RegistryError> {
        Ok(self.entry_was(key, known).await?)
    }

    async fn descends(
        &self,
        key: &str,
        known: &Stamp,
        created: i64,
        entry: &Entry<Stamp>,
    ) -> Result<Option<bool>, RegistryError> {
        Ok(match entry.created == created {
            true => self.entry_was(key, known).await?,
            false => Some(self.was_written_over(key, known, entry).await?),
        })
    }

    async fn give_back(&self) {}

    async fn watch(&self, after: Mark, told: &(dyn Fn(Told<Stamp>) + Send + Sync)) -> End {
        watching::watch(self, after, told).await
    }

    async fn follow_config(&self, told: &(dyn Fn(Result<Vec<u8>, RegistryError>) + Send + Sync)) {
        watching::follow_config(self, told).await;
    }

    fn state(&self) -> &watch::Sender<State> {
        self.members.state()
    }

    async fn reconnect(&self) {
        self.members.leave().await;
    }

    fn requests(&self) -> u64 {
        self.members.sent()
    }
}
