//! Registries of leases: where the network config lies, which node holds which subnet, and who tells us of changes.
//!
//! A [`Registry`] is a config source, a way to acquire and to keep the own lease, and a watch that delivers
//! [`Update`]s: a whole snapshot whenever continuity cannot be proved, deltas in between. Nobody has to apply events in
//! the right order or fears to have missed one.
//!
//! Acquiring, keeping and watching exist once ([`Leases`]), over the narrow trait [`entries::Entries`]: etcd implements it by either of its
//! APIs ([`Etcd3`], [`Etcd2`]; [`EtcdAuto`] finds out which is in use), and so does a store in memory ([`memory`]). A registry that allocates itself implements [`Registry`] directly.
#![forbid(unsafe_code)]

mod chance;
mod dial;
pub mod entries;
pub mod etcd;
pub mod etcd2;
pub mod etcd3;
mod file;
pub mod kube;
mod leases;
pub mod memory;
mod names;
mod state;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fabric::alloc::{AllocError, PublicIps};
use fabric::config::{ConfigError, NetworkConfig};
use fabric::lease::{Attributes, Lease, Subnet, Update};
use tokio::time::Instant;

pub use crate::chance::{Backoff, Chance};
pub use crate::etcd::EtcdAuto;
pub use crate::etcd2::Etcd2;
pub use crate::etcd3::Etcd3;
pub use crate::kube::Kube;
pub use crate::leases::Leases;
pub use crate::state::{Failure, State, States, Trouble};

/// A watch that stood so long was no flapping one: the next break is mended without delay.
pub(crate) const STOOD: Duration = Duration::from_secs(5);
/// A store that went back in time (emptied, restored) gets this long to be told the leases again by their owners before what it
/// lists counts: until then what is known stays in force. Longer than any watch waits before it lists again.
pub(crate) const REASSERTION: Duration = Duration::from_secs(10);

/// A lock whose holder panicked holds what it held.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A future of a [`Registry`]: dropping it cancels the work, at any point.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where leases are kept.
///
/// Every method may be called again after an error and after its future was dropped. `watch` and `keep` never give up on
/// their own: they wait, say so through [`Registry::states`], and go on.
pub trait Registry: Send + Sync {
    /// The network config as it was written, fetched now. [`RegistryError::NotFound`] while there is none: the caller waits.
    fn network_config(&self) -> Pending<'_, Result<Vec<u8>, RegistryError>>;

    /// Reads a network config as far as this registry needs it: where it hands out the subnets itself, the config need not say how.
    ///
    /// # Errors
    ///
    /// Nothing but another config helps.
    fn understand(&self, json: &[u8]) -> Result<NetworkConfig, ConfigError> {
        NetworkConfig::parse(json)
    }

    /// The addresses that an operator wrote for this node in the registry, to be published in place of what the flags or the interface
    /// say; none in registries that have no place for that.
    fn ordered(&self) -> Pending<'_, Result<PublicIps, RegistryError>> {
        Box::pin(std::future::ready(Ok(PublicIps { v4: None, v6: None })))
    }

    /// Gets this node a lease: its own again, its previous subnet, or a free one.
    fn acquire<'a>(&'a self, wanted: &'a Wanted<'a>) -> Pending<'a, Result<Held, AcquireError>>;

    /// Keeps a lease until somebody else holds its subnet, or the registry gives this node another. Renews it `margin` before it expires, puts it back when it was
    /// deleted or written over without another owner, and reports what happens.
    ///
    /// Hears of changes through a [`Registry::watch`] that runs at the same time; without one it finds out when it renews.
    fn keep<'a>(
        &'a self,
        wanted: &'a Wanted<'a>,
        held: Held,
        margin: Duration,
        report: &'a (dyn Fn(Holding) + Send + Sync),
    ) -> Pending<'a, Over>;

    /// Delivers a snapshot of all leases, then what changes, for ever. The sink is called from within the future and must
    /// not block: a consumer that is slow joins updates on its side.
    fn watch<'a>(&'a self, sink: &'a (dyn Fn(Update) + Send + Sync))
    -> Pending<'a, std::convert::Infallible>;

    /// Tells the network config as it is, and again each time it is another, or there is none any more
    /// ([`RegistryError::NotFound`]), within two seconds, for ever. A registry that is away says nothing. The sink is called from
    /// within the future and must not block.
    fn watch_config<'a>(
        &'a self,
        sink: &'a (dyn Fn(Result<Vec<u8>, RegistryError>) + Send + Sync),
    ) -> Pending<'a, std::convert::Infallible>;

    /// Tells of the revision that this node knew before this process: a registry that is behind it has gone back. Says nothing
    /// once the registry itself has spoken, and of what [was spoken](State::spoken) with another.
    fn resume(&self, revision: i64, spoken: Option<&str>);

    /// The way to the registry may be another from now on, our own address being one: what is asked next goes over a new
    /// connection, instead of waiting for answers that cannot come any more.
    fn reconnect(&self) -> Pending<'_, ()>;

    /// Something about this host's network is another: who waits for long before asking a registry again that did not answer does so now.
    fn hurry(&self) {}

    /// Tells how the data path of this node stands, for registries that others ask for that.
    fn note(&self, data_path: DataPath) {
        let _ = data_path;
    }

    /// The state of the connection, and its changes.
    fn states(&self) -> States;

    /// Requests sent since start, a stream counting as one.
    fn requests(&self) -> u64;
}

/// How the data path of this node stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DataPath {
    /// It is being set up, or held back, or goes by what may be history: nothing to be said of it.
    #[default]
    Unknown,
    /// It is as it should be.
    Stands,
    /// It is not, for this reason.
    Broken(String),
}

/// A point in the history of what answers for a registry.
///
/// Numbers only grow, unless the registry was emptied, restored from a backup or exchanged: then an epoch has ended, and what
/// was known of the one before says nothing about this one. Epochs are counted by who watches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// How often the registry was seen to go back.
    pub epoch: u32,
    /// The registry's own count of changes.
    pub number: i64,
}

impl Revision {
    pub(crate) fn in_this_epoch(self, number: i64) -> Revision {
        Revision { number, ..self }
    }
}

/// What a lease is wanted for.
pub struct Wanted<'a> {
    /// The network, for the range of subnets.
    pub config: &'a NetworkConfig,
    /// The addresses by which this node knows its own leases.
    pub me: PublicIps,
    /// The subnet this node had last.
    pub previous: Option<Subnet>,
    /// What to publish for a subnet. Gets the attributes of the own lease where there is one, since parts of an identity
    /// may be taken over from it, and is asked only once the subnet is known, since parts may follow from that.
    pub attributes: &'a (dyn Fn(&Subnet, Option<&Attributes>) -> Attributes + Send + Sync),
}

/// A lease that is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Subnet and attributes as they are in the registry.
    pub lease: Lease,
    /// When it ends unless it is renewed; `None` for a reservation, which never does.
    pub expires: Option<Instant>,
    /// It was ours before we asked.
    pub reused: bool,
    /// Further leases that bear our public IP and are left alone: an operator's business.
    pub also_ours: Vec<Subnet>,
}

/// What happens to the lease in [`Registry::keep`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holding {
    /// Renewed, or found to be good, until this time (`None`: it has become a reservation).
    Renewed {
        /// When it ends now.
        expires: Option<Instant>,
    },
    /// Renewing failed and is tried again.
    Failing {
        /// Why.
        error: String,
        /// When the lease ends; may have passed.
        expires: Option<Instant>,
        /// Time until the next try.
        retry_in: Duration,
    },
    /// What the registry is to say of this node could not be written, and is tried again: peers may not find it.
    Unwritten {
        /// What.
        what: &'static str,
        /// Why.
        error: String,
        /// Time until the next try.
        retry_in: Duration,
    },
    /// The entry is gone from the registry, deleted or expired. The same subnet is asked for again at once.
    Lost,
    /// The entry is gone, and in its place stands one that came later, is no lease and may have been another node's: it is left
    /// alone, and once it is removed the subnet is asked for again.
    Occupied,
    /// The entry is in the registry again, for the same subnet.
    Regained {
        /// Its create revision, which is a new one.
        created: i64,
        /// When it ends.
        expires: Option<Instant>,
    },
    /// Somebody had written something else over the entry without claiming the subnet; our attributes are back.
    Repaired,
}

/// Why a lease is not kept any longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Over {
    /// Its subnet is another node's.
    Taken(Taken),
    /// The registry has given this node another subnet, or is about to: acquire anew. What happened.
    Moved(String),
}

/// Another node holds our subnet, or one that overlaps it and is older: ours is lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("subnet {subnet} is now held by {by} as {}", .other.subnet)]
pub struct Taken {
    /// The subnet that was ours.
    pub subnet: Subnet,
    /// Public address of the other owner, as text.
    pub by: String,
    /// The other owner's lease.
    pub other: Lease,
}

/// Why a registry did not do as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Nobody answers. Nothing is known of the request's fate; ask again later.
    #[error("no registry endpoint answers: {0}")]
    Unreachable(String),
    /// The registry answers and says no: permissions, credentials, a full disk. Asking again helps once an operator acted.
    #[error("{endpoint} refuses {call}: {reason}")]
    Refused {
        /// Who.
        endpoint: String,
        /// Which request.
        call: &'static str,
        /// Its own words.
        reason: String,
    },
    /// What was asked for is not there.
    #[error("{what} not found: {place}")]
    NotFound {
        /// What it would be.
        what: &'static str,
        /// Where it would be, and what is there instead.
        place: String,
    },
}

/// Why no lease could be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcquireError {
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// No subnet is free.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// Lost every race, though the subnets tried stayed free.
    #[error("no lease after {0} attempts: the registry changes faster than it can be read")]
    Contended(u32),
}
