//! The etcd v3 registry.
//!
//! One entry per node below `<prefix>/subnets/`, bound to an etcd lease of 24 h. What Go flannel reads and writes, with
//! its guards missing there: every write is a transaction that compares first, an etcd lease is kept alive and not
//! replaced, and peers are followed by one watch that costs no request per event.

mod acquire;
mod connection;
mod endpoint;
mod entries;
mod keep;
mod keys;
mod listing;
mod members;
mod tls;
mod watching;
pub mod wire;

use std::convert::Infallible;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use fabric::lease::{Snapshot, Subnet, Update};
use tokio::sync::watch;

pub use self::connection::{ConnectError, Connection, key_value_client};
pub use self::endpoint::{Address, Endpoint, EndpointError, parse_endpoints};
pub use self::entries::Stamp;
pub use self::keys::Keys;
pub use self::tls::{TlsError, TlsFiles};

use self::keep::{Follower, Moment};
use self::members::Members;
use crate::state::{State, States};
use crate::{AcquireError, Held, Holding, Pending, Registry, RegistryError, Taken, Wanted};

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

/// A client of an etcd cluster. Connects on first use and for as long as it lives goes on trying.
pub struct Etcd3 {
    members: Members,
    keys: Keys,
    lease_ttl: i64,
    /// The listing a lease was acquired on, for the watch to go on from.
    stash: Mutex<Option<Snapshot>>,
    watched: AtomicBool,
    follower: Mutex<Option<Follower>>,
    /// The entry that was kept last, as it was last seen: ours, whatever address it bears.
    kept: Mutex<Option<(Subnet, Stamp)>>,
    /// How far the watch has come.
    followed: Mutex<Moment>,
}

impl Etcd3 {
    /// A client that is not connected yet. Certificate files are read when connecting, so they may come later.
    pub fn new(options: &Options) -> Result<Etcd3, OptionsError> {
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
        Ok(Etcd3 {
            members: Members::new(endpoints, options.tls.clone(), credentials, state),
            keys: Keys::new(&options.prefix),
            lease_ttl: i64::try_from(options.lease_ttl.as_secs()).unwrap_or(i64::MAX),
            stash: Mutex::new(None),
            watched: AtomicBool::new(false),
            follower: Mutex::new(None),
            kept: Mutex::new(None),
            followed: Mutex::new(Moment::default()),
        })
    }

    /// The keys this client works below.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    async fn read_config(&self) -> Result<Vec<u8>, RegistryError> {
        match self.entry(self.keys.config()).await?.1 {
            Some(entry) => Ok(entry.value),
            None => Err(RegistryError::NotFound {
                what: "network config",
                key: self.keys.config().to_owned(),
            }),
        }
    }
}

impl Registry for Etcd3 {
    fn network_config(&self) -> Pending<'_, Result<Vec<u8>, RegistryError>> {
        Box::pin(self.read_config())
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
    ) -> Pending<'a, Taken> {
        Box::pin(keep::keep(self, wanted, held, margin, report))
    }

    fn watch<'a>(&'a self, sink: &'a (dyn Fn(Update) + Send + Sync)) -> Pending<'a, Infallible> {
        Box::pin(watching::watch(self, sink))
    }

    fn resume(&self, revision: i64) {
        self.resume_at(revision);
    }

    fn reconnect(&self) -> Pending<'_, ()> {
        Box::pin(self.members.leave())
    }

    fn states(&self) -> States {
        self.members.state().subscribe()
    }

    fn requests(&self) -> u64 {
        self.members.sent()
    }
}
