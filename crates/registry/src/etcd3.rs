//! The etcd v3 registry.
//!
//! One entry per node below `<prefix>/subnets/`, bound to an etcd lease of 24 h. What Go flannel reads and writes, with
//! its guards missing there: every write is a transaction that compares first, an etcd lease is kept alive and not
//! replaced, and peers are followed by one watch that costs no request per event.

mod connection;
mod health;
mod listing;
mod store;
mod watching;
pub mod wire;

use std::sync::Mutex;

use tokio::sync::watch;
use tokio::time::{Duration, Instant};

pub use self::connection::{Connection, clients};
pub use self::store::{Stamp, Store};

use crate::RegistryError;
use crate::chance::Chance;
use crate::entries::{End, Entries, Life, Listing, Mark, Seen, Told, Wish, Written};
use crate::etcd::{Keys, Members, Options, OptionsError};
use crate::leases::Leases;
use crate::state::State;

/// What is spoken, for people.
pub const SPOKEN: &str = "etcd v3";

/// A grant of so much less than ours is as good: answers take their time.
const ROUNDING: Duration = Duration::from_secs(60);

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
            keys: Keys::new(&options.prefix),
            lease_ttl: i64::try_from(options.lease_ttl.as_secs()).unwrap_or(i64::MAX),
            chance,
            spare: Mutex::new(None),
        })
    }
}

/// The leases in an etcd cluster.
pub type Etcd3 = Leases<Store>;

impl Leases<Store> {
    /// A client that is not connected yet. Certificate files are read when connecting, so they may come later.
    pub fn new(options: &Options) -> Result<Etcd3, OptionsError> {
        Ok(Leases::over(Store::new(options)?, Chance::system()))
    }

    /// The keys this client works below.
    pub fn keys(&self) -> &Keys {
        &self.entries().keys
    }
}

fn no_config(keys: &Keys) -> RegistryError {
    RegistryError::NotFound {
        what: "network config",
        place: format!("no key {:?} in the registry (etcd v3)", keys.config()),
    }
}

impl Entries for Store {
    type Handle = Stamp;

    async fn config(&self) -> Result<Vec<u8>, RegistryError> {
        let (_, entry) = self.entry(self.keys.config()).await?;
        match entry {
            Some(entry) => Ok(entry.value),
            None => Err(self.no_config().await),
        }
    }

    async fn list(&self, wish: &Wish<'_, Stamp>) -> Result<Listing<Stamp>, RegistryError> {
        Ok(self.list_pages(wish).await?)
    }

    async fn read(&self, key: &str) -> Result<Seen<Stamp>, RegistryError> {
        let (revision, entry) = self.entry(&self.keys.at(key)).await?;
        Ok(self.seen(revision, entry))
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
        Ok(self.remove(&self.keys.at(key), known.mod_revision).await?)
    }

    async fn prolong(&self, _: &str, known: &Stamp) -> Result<Option<(Stamp, Instant)>, RegistryError> {
        let grant = self.keep_alive(known.lease).await?;
        // A grant that others made for less time lives on as that; to live as long as ours do, the entry needs another.
        let whole = Duration::from_secs(self.lease_ttl.unsigned_abs()).saturating_sub(ROUNDING);
        let is_whole = |grant: &store::Grant| grant.expires >= Instant::now() + whole;
        let grant = grant.filter(is_whole);
        Ok(grant.map(|grant| (*known, grant.expires)))
    }

    async fn expires(&self, _: &str, known: &Stamp) -> Result<Option<Instant>, RegistryError> {
        if known.lease == 0 {
            return Ok(None);
        }
        let found = self.time_to_live(known.lease).await?;
        Ok(Some(found.map_or_else(Instant::now, |grant| grant.expires)))
    }

    async fn was(&self, key: &str, known: &Stamp) -> Result<Option<bool>, RegistryError> {
        Ok(self.entry_was(&self.keys.at(key), known).await?)
    }

    async fn give_back(&self) {
        if let Some(grant) = self.take_spare() {
            self.revoke(grant.id).await;
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_knows_its_keys_before_it_is_connected() {
        let options = Options {
            prefix: "/n".to_owned(),
            ..Options::default()
        };
        let etcd = Etcd3::new(&options).unwrap();
        assert_eq!(
            (etcd.keys().config(), etcd.keys().subnets()),
            ("/n/config", "/n/subnets/")
        );
        assert_eq!(etcd.entries().lease_ttl, 86_400);
        let bad = Options {
            endpoints: "ftp://x".to_owned(),
            ..options
        };
        let error = Etcd3::new(&bad).err().unwrap().to_string();
        assert!(error.starts_with("etcd-endpoints: "), "{error}");
    }
}
