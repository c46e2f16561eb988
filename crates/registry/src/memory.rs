//! A registry in memory: a store that several clients share, with the guarantees of a real one and the faults that its owner
//! asks for.
//!
//! It has revisions, times to live on tokio's clock, watches with a history that can be compacted, and clients whose calls may
//! not arrive, whose answers may be lost after the deed was done, and who may be cut off. Nothing in it is a transcript: what
//! a call comes to follows from the state.

mod client;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

pub use self::client::Client;
pub use self::state::{Backup, Deed, Shown, Stamp, Who};

use self::state::State;
use crate::Leases;

/// The leases in a store in memory.
pub type Memory = Leases<Client>;

/// What becomes of one call of a client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passage {
    /// What goes wrong.
    pub fate: Fate,
    /// Time until the call arrives.
    pub there: Duration,
    /// Time until the answer does.
    pub back: Duration,
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fate {
    /// Nothing.
    #[default]
    Answered,
    /// It does not arrive.
    Lost,
    /// It is carried out, and the answer is lost.
    Unanswered,
}

/// Decides what becomes of a client's calls, by their names.
pub type Passages = dyn FnMut(&'static str) -> Passage + Send;

/// A store that clients share. Clones are handles on the same.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Something ends earlier than was known.
    sooner: Notify,
    config: watch::Sender<Option<Vec<u8>>>,
    ttl: Duration,
}

impl Store {
    /// An empty store whose entries live this long.
    pub fn new(ttl: Duration) -> Store {
        Store(Arc::new(Shared {
            state: Mutex::new(State::default()),
            sooner: Notify::new(),
            config: watch::Sender::new(None),
            ttl,
        }))
    }

    /// The network config, and its changes.
    fn config(&self) -> watch::Receiver<Option<Vec<u8>>> {
        self.0.config.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.expire(Instant::now());
        state
    }

    /// Ends entries when their time is over, so that those who watch hear of it then. Without it they end as soon as anybody
    /// asks.
    pub async fn run(&self) -> std::convert::Infallible {
        loop {
            let next = self.lock().next_end();
            let ended = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.0.sooner.notified() => {}
                () = ended => {}
            }
        }
    }

    /// A further client, with its own connection.
    pub fn client(&self) -> Client {
        self.client_for(self.0.ttl)
    }

    /// A further client, which asks for another time to live for its entries.
    pub fn client_for(&self, ttl: Duration) -> Client {
        let number = self.lock().next_client();
        Client::new(self.clone(), number, ttl)
    }

    /// A further client, whose calls fare as told.
    pub fn client_by(&self, passages: Box<Passages>) -> Client {
        let client = self.client();
        client.set_passages(passages);
        client
    }

    /// Writes the network config, or takes it away.
    pub fn set_config(&self, config: Option<&str>) {
        let config = config.map(|text| text.as_bytes().to_vec());
        self.0
            .config
            .send_if_modified(|known| std::mem::replace(known, config.clone()) != config);
    }

    /// An operator writes an entry, with a time to live or for ever.
    pub fn put(&self, key: &str, value: &str, ttl: Option<Duration>) {
        let mut state = self.lock();
        let grant = ttl.map(|ttl| (state.next_grant(), Instant::now() + ttl));
        state.put(Who::Operator, key, value.as_bytes(), grant);
        drop(state);
        self.0.sooner.notify_one();
    }

    /// An operator deletes an entry. Whether it was there.
    pub fn delete(&self, key: &str) -> bool {
        self.lock().delete(Who::Operator, key)
    }

    /// What is there now, by key.
    pub fn entries(&self) -> Vec<Shown> {
        self.lock().shown()
    }

    /// One entry.
    pub fn entry(&self, key: &str) -> Option<Shown> {
        self.entries().into_iter().find(|shown| shown.key == key)
    }

    /// The number of the newest revision.
    pub fn number(&self) -> i64 {
        self.lock().number()
    }

    /// Everything that was done since the last call, oldest first.
    pub fn take_deeds(&self) -> Vec<Deed> {
        self.lock().take_deeds()
    }

    /// Forgets what happened up to now: watches that are not as far have to list again.
    pub fn compact(&self) {
        self.lock().compact();
    }

    /// Whether a client is cut off: nothing arrives on either side, calls under way included. Its watch stands and is silent,
    /// until it is found out.
    pub fn cut_off(&self, client: u32, cut_off: bool) {
        let mut state = self.lock();
        if cut_off {
            state.cut_off.insert(client);
        } else {
            state.cut_off.remove(&client);
        }
        state.wake(client);
    }

    /// The watch of one client breaks, or those of all, in a way that is noticed. Nothing is lost.
    pub fn cut_watches(&self, client: Option<u32>) {
        self.lock().cut_watches(client);
    }

    /// The state as it is, to come back to.
    pub fn backup(&self) -> Backup {
        self.lock().backup()
    }

    /// The store is what it was once, revision and all; every entry with a time to live has the whole of it before it. All
    /// watches break.
    pub fn restore(&self, backup: &Backup) {
        self.lock().restore(backup, Instant::now() + self.0.ttl);
        self.0.sooner.notify_one();
    }

    /// The store is empty, its revisions start anew, and the network config is what it was: an operator who sets up a new
    /// one writes that first. All watches break.
    pub fn wipe(&self) {
        self.lock().restore(&Backup::default(), Instant::now());
    }

    /// The store's clock jumps ahead: every time to live is shorter by this much.
    pub fn jump(&self, by: Duration) {
        self.lock().jump(by);
        self.0.sooner.notify_one();
    }
}
