//! What a daemon remembers of former times, and what time it is now.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fabric::lease::Snapshot;
use fabric::subnet_env::Previous;
use ipnet::IpNet;
use registry::Pending;
use tracing::warn;

use crate::cache::{Cache, Head, Moment};
use crate::errand::Errands;
use crate::state_dir::{State, StateDir};
use crate::truth::Truth;

/// What a file that is read at start may take; after that the daemon goes on without.
const READING: Duration = Duration::from_secs(2);
/// A disk that has not written the cache by then is one that does not answer.
const WRITING: Duration = Duration::from_secs(10);
/// A disk that is silent for this long does not answer.
const DISK_PATIENCE: Duration = Duration::from_secs(5);
/// What is written to the cache is one kind of errand: the last word counts.
pub(super) const CACHE: &str = "cache";
/// The state, as the log and `status` name it.
const STATE: &str = "state";

/// Where a daemon writes down what the next one needs. Nothing here blocks who waits, and nothing that fails ends the daemon.
pub trait Records: Send + Sync {
    /// What time it is, by the clock on the wall and since boot.
    fn now(&self) -> Moment;

    /// What must survive a reboot; empty where there is nothing to be had.
    fn state(&self) -> Pending<'_, State>;

    /// Writes the state.
    fn save_state(&self, state: State);

    /// Writes into the state what leases ask for: destination and next hop. Whether it will be written.
    fn note_leases(&self, routes: Vec<(IpNet, IpAddr)>) -> bool;

    /// Whether there is something in the state that could not be written: then it is to be tried again.
    fn is_unsaved(&self) -> bool {
        false
    }

    /// What the subnet file says that an earlier process left.
    fn subnet_file(&self) -> Pending<'_, Previous>;

    /// The head of the cache; `None` where there is no cache.
    ///
    /// # Errors
    /// Why it cannot be had.
    fn cached_head(&self) -> Pending<'_, Result<Option<Head>, String>>;

    /// All of the cache; `None` where there is none.
    ///
    /// # Errors
    /// Why it cannot be had.
    fn cached(&self) -> Pending<'_, Result<Option<(Head, Snapshot)>, String>>;

    /// Writes the cache: its head, and one line per lease.
    ///
    /// # Errors
    /// Why it is not written.
    fn save_cache(&self, head: Head, lines: Vec<u8>) -> Pending<'_, Result<(), String>>;

    /// Removes the cache.
    fn forget_cache(&self);

    /// Why records can be neither read nor written right now.
    fn trouble(&self) -> Option<String>;

    /// Resolves when everything is written that was to be, or this time is over.
    fn done(&self, within: Duration) -> Pending<'_, ()>;
}

/// Records below the state directory, and the subnet file.
pub(super) struct Disk {
    /// Reads and writes below the state directory.
    pub(super) disk: Arc<Errands>,
    /// Reads the subnet file, which may lie on another disk.
    pub(super) host: Arc<Errands>,
    pub(super) state_dir: Arc<StateDir>,
    pub(super) subnet_file: PathBuf,
    cache: Cache,
    /// Who is told whether the state could be written.
    truth: Truth,
}

impl Disk {
    pub(super) fn new(
        disk: Arc<Errands>,
        host: Arc<Errands>,
        state_dir: StateDir,
        subnet_file: PathBuf,
        truth: Truth,
    ) -> Disk {
        Disk {
            disk,
            host,
            cache: state_dir.cache(),
            state_dir: Arc::new(state_dir),
            subnet_file,
            truth,
        }
    }
}

impl Records for Disk {
    fn now(&self) -> Moment {
        Moment::now()
    }

    fn state(&self) -> Pending<'_, State> {
        Box::pin(async {
            let place = Arc::clone(&self.state_dir);
            let read = self.disk.ask("state", READING, move || place.load()).await;
            read.unwrap_or_else(|failure| {
                warn!("state: {failure}; going on without it");
                State::default()
            })
        })
    }

    fn save_state(&self, state: State) {
        let (place, truth) = (Arc::clone(&self.state_dir), self.truth.clone());
        let save = move || truth.saved(STATE, place.save(&state));
        if let Err(failure) = self.disk.send("writing the state", save) {
            warn!("state: {failure}");
        }
    }

    fn note_leases(&self, routes: Vec<(IpNet, IpAddr)>) -> bool {
        let (place, truth) = (Arc::clone(&self.state_dir), self.truth.clone());
        let noted = self.disk.send("leases of the state", move || {
            let before = place.load();
            let mut state = before.clone();
            state.set_leases(routes);
            if state != before || place.is_unsaved() {
                truth.saved(STATE, place.save(&state));
            }
            drop((before, state));
            kernel::heap::trim();
        });
        noted.inspect_err(|failure| warn!("state: {failure}")).is_ok()
    }

    fn is_unsaved(&self) -> bool {
        self.state_dir.is_unsaved()
    }

    fn subnet_file(&self) -> Pending<'_, Previous> {
        Box::pin(async {
            let path = self.subnet_file.clone();
            let read = self.host.ask("subnet file", READING, move || {
                crate::subnet_file::read_previous(&path)
            });
            read.await.unwrap_or_else(|failure| Previous {
                problems: vec![failure.to_string()],
                ..Previous::default()
            })
        })
    }

    fn cached_head(&self) -> Pending<'_, Result<Option<Head>, String>> {
        Box::pin(async {
            let cache = self.cache.clone();
            let read = self.disk.ask("head of the cache", READING, move || cache.head());
            read.await.map_err(|failure| failure.to_string())?
        })
    }

    fn cached(&self) -> Pending<'_, Result<Option<(Head, Snapshot)>, String>> {
        Box::pin(async {
            let cache = self.cache.clone();
            let read = self.disk.ask("all of the cache", READING, move || cache.load());
            read.await.map_err(|failure| failure.to_string())?
        })
    }

    fn save_cache(&self, head: Head, lines: Vec<u8>) -> Pending<'_, Result<(), String>> {
        Box::pin(async {
            let cache = self.cache.clone();
            let saved = self.disk.ask(CACHE, WRITING, move || {
                let saved = cache.save(&head, &lines);
                drop(lines);
                kernel::heap::trim();
                saved.map_err(|failure| failure.to_string())
            });
            saved.await.unwrap_or_else(|failure| Err(failure.to_string()))
        })
    }

    fn forget_cache(&self) {
        let cache = self.cache.clone();
        let forgotten = self.disk.send(CACHE, move || {
            if let Err(failure) = cache.forget() {
                warn!("cache {}: {failure}", cache.file().display());
            }
        });
        if let Err(failure) = forgotten {
            warn!("cache {}: {failure}", self.cache.file().display());
        }
    }

    fn trouble(&self) -> Option<String> {
        self.disk.late(DISK_PATIENCE).map(|late| late.to_string())
    }

    fn done(&self, within: Duration) -> Pending<'_, ()> {
        Box::pin(self.disk.done(within))
    }
}
