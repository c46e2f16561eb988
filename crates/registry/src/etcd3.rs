//! The etcd v3 registry.
//!
//! One entry per node below `<prefix>/subnets/`, bound to an etcd lease of 24 h. What Go flannel reads and writes, with
//! its guards missing there: every write is a transaction that compares first, an etcd lease is kept alive and not
//! replaced, and peers are followed by one watch that costs no request per event.

mod connection;
mod endpoint;
mod health;
mod keys;
mod listing;
mod members;
mod store;
mod tls;
mod watching;
pub mod wire;

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

pub use self::connection::{ConnectError, Connection, key_value_client};
pub use self::endpoint::{Address, Endpoint, EndpointError, parse_endpoints};
pub use self::keys::Keys;
pub use self::store::{Stamp, Store};
pub use self::tls::{TlsError, TlsFiles};

use self::members::Members;
use crate::RegistryError;
use crate::chance::Chance;
use crate::entries::{End, Entries, Life, Listing, Mark, Seen, Told, Wish, Written};
use crate::leases::Leases;
use crate::state::State;

/// Every request but a watch is answered within this time, or counts as failed.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// How to reach etcd and where to look there: the values of the `--etcd-*` flags.
#[derive(Clone)]
pub struct Options {
    /// `--etcd-endpoints`: comma-separated URLs.
    pub endpoints: String,
    /// `--etcd-prefix`.
    pub prefix: String,
    /// `--etcd-cafile`, `--etcd-certfile`, `--etcd-keyfile`.
    pub tls: TlsFiles,
    /// `--etcd-username`; counts only with a password.
    pub username: String,
    /// `--etcd-password`.
    pub password: String,
    /// Time to live of a node's etcd lease, in whole seconds. [`Options::LEASE_TTL`] in every flannel; tests want less.
    pub lease_ttl: Duration,
}

impl Options {
    /// What every flannel asks for: 24 h.
    pub const LEASE_TTL: Duration = Duration::from_secs(86_400);
}

impl Default for Options {
    /// The defaults of the flags.
    fn default() -> Options {
        Options {
            endpoints: "http://127.0.0.1:4001,http://127.0.0.1:2379".to_owned(),
            prefix: "/coreos.com/network".to_owned(),
            tls: TlsFiles::default(),
            username: String::new(),
            password: String::new(),
            lease_ttl: Options::LEASE_TTL,
        }
    }
}

/// INVARIANT: the password is never shown.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("prefix", &self.prefix)
            .field("tls", &self.tls)
            .field("username", &self.username)
            .field("lease_ttl", &self.lease_ttl)
            .finish_non_exhaustive()
    }
}

/// Why there cannot be a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// `--etcd-endpoints` cannot be read.
    #[error("etcd-endpoints: {0}")]
    Endpoints(#[from] EndpointError),
}

/// A user to log in as. No `Debug`: it must not reach a log.
#[derive(Clone)]
pub(crate) struct Credentials {
    username: String,
    password: String,
}

impl Store {
    /// A client that is not connected yet. Certificate files are read when connecting, so they may come later.
    pub fn new(options: &Options) -> Result<Store, OptionsError> {
        let endpoints = parse_endpoints(&options.endpoints, options.tls.any())?;
        if options.tls.certfile.is_some() != options.tls.keyfile.is_some() {
            tracing::warn!(
                "etcd-certfile and etcd-keyfile count only together: no client certificate is presented"
            );
        }
        if options.tls.any() && endpoints.iter().all(|endpoint| !endpoint.tls) {
            tracing::warn!("no endpoint in etcd-endpoints is https: certificate files are not used");
        }
        let credentials =
            (!options.username.is_empty() && !options.password.is_empty()).then(|| Credentials {
                username: options.username.clone(),
                password: options.password.clone(),
            });
        let (state, _) = watch::channel(State::default());
        let chance = Chance::system();
        Ok(Store {
            members: Members::new(endpoints, options.tls.clone(), credentials, state, &chance),
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
        entry
            .map(|entry| entry.value)
            .ok_or_else(|| no_config(&self.keys))
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
        Ok(grant.map(|grant| (*known, grant.expires)))
    }

    async fn expires(&self, known: &Stamp) -> Result<Option<Instant>, RegistryError> {
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

    #[test]
    fn options_when_shown_never_show_the_password() {
        let options = Options {
            username: "u".to_owned(),
            password: "s3cret".to_owned(),
            ..Options::default()
        };
        let shown = format!("{options:?}");
        assert!(shown.contains("/coreos.com/network") && shown.contains("\"u\"") && shown.contains("86400s"));
        assert!(!shown.contains("s3cret"), "{shown}");
    }

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
