//! What a store of entries has to be able to do, so that leases can be had, kept and followed in it.
//!
//! Acquiring, keeping and watching are written once ([`Leases`](crate::Leases)) over this trait. It is as narrow as etcd v3 and
//! etcd v2 have in common: entries with a value, a time to live and a revision, each write guarded by what is known of the entry.
//!
//! INVARIANT: a request whose answer was lost may have been carried out. Every method may be called again with the same
//! arguments; a write that finds its own earlier work done says so ([`Written::Done`]).

use std::borrow::Cow;
use std::fmt;
use std::future::Future;

use fabric::lease::{Delta, LARGEST_VALUE, Lease, Rejected, Snapshot, Subnet, name_of};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::RegistryError;
use crate::state::State;

/// A store's own handle on one state of one entry: what a guarded write is guarded by, and what the entry lives by.
pub trait Handle: Clone + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// The entry has no time to live: an operator's reservation.
    fn is_reservation(&self) -> bool;

    /// Whether two states of an entry live by the same grant of time, also when both have none.
    fn shares_life(&self, other: &Self) -> bool;
}

/// One entry below the parent of all leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<H> {
    /// The key below the parent: [`Subnet`]'s text if it is a lease's.
    pub key: String,
    /// The value; of one that is too large for a lease's only [so much](Entry::cut) that this shows.
    pub value: Vec<u8>,
    /// Number of the revision at which it was created.
    pub created: i64,
    /// This state of it.
    pub handle: H,
}

impl<H> Entry<H> {
    /// Lets go of what nobody will read: of the value beyond a lease's size.
    #[must_use]
    pub fn cut(mut self) -> Entry<H> {
        if self.value.len() > LARGEST_VALUE {
            self.value.truncate(LARGEST_VALUE + 1);
            self.value.shrink_to_fit();
        }
        self
    }
}

/// One key as it is at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen<H> {
    /// The revision's number.
    pub number: i64,
    /// `None`: nothing is there.
    pub entry: Option<Entry<H>>,
}

/// The outcome of a guarded write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written<H> {
    /// The entry is as wanted.
    Done {
        /// Since the revision of this number.
        number: i64,
        /// This state of it.
        handle: H,
        /// When it ends, where the write gave it a new time to live; `None`: when it did before.
        expires: Option<Instant>,
    },
    /// It was not as expected. What is there.
    Found(Seen<H>),
}

/// How long an entry that is written over shall live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// As long as it does: by the same grant of time, for ever where it has none. By a new one where that has just ended.
    Same,
    /// A whole time to live anew.
    Whole,
}

/// Which entries to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All.
    All,
    /// Those created after the revision of this number.
    CreatedAfter(i64),
}

/// Picks the entries of a listing that are wanted in full, by key, handle, and what they were read as.
pub type Note<'a, H> = dyn Fn(&str, &H, Option<&Lease>) -> bool + Sync + 'a;

/// What a listing of all entries leaves behind: by it a watch sees whether the store is still the one that was listed.
///
/// The number alone does not tell. A store that was emptied, restored or exchanged may have come as far by then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mark {
    /// The revision's number.
    pub number: i64,
    /// Number of the revision of the newest write among the entries; 0 without any.
    pub newest: i64,
    /// Of which history it is a part, in the store's own terms.
    pub history: u64,
}

/// Entries at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing<H> {
    /// The leases among them.
    pub snapshot: Snapshot,
    /// Where a watch goes on; of a listing of [all](Scope::All).
    pub mark: Mark,
    /// What [`Note`] picked.
    pub noted: Vec<(String, H)>,
    /// What the asked-for key holds; see [`Entries::list`].
    pub own: Option<Entry<H>>,
}

impl<H> Default for Listing<H> {
    fn default() -> Self {
        Listing {
            snapshot: Snapshot::default(),
            mark: Mark::default(),
            noted: Vec::new(),
            own: None,
        }
    }
}

impl<H: Handle> Listing<H> {
    /// Takes one listed entry in.
    pub fn take(&mut self, key: Cow<'_, str>, value: &[u8], created: i64, handle: &H, wish: &Wish<'_, H>) {
        let read = Lease::read(&key, value, created);
        if (wish.note)(&key, handle, read.as_ref().ok()) {
            self.noted.push((key.clone().into_owned(), handle.clone()));
        }
        if wish.own == Some(key.as_ref()) {
            self.own = Some(Entry {
                key: key.into_owned(),
                value: value.get(..=LARGEST_VALUE).unwrap_or(value).to_vec(),
                created,
                handle: handle.clone(),
            });
        }
        match read {
            Ok(lease) => {
                self.snapshot.leases.insert(lease.subnet, lease);
            }
            Err(rejected) => self.snapshot.rejected.push(rejected),
        }
    }
}

/// Stands for a value that is too large to be fetched: no lease's.
pub(crate) const OVERSIZE: &[u8] = &[0; LARGEST_VALUE + 1];

/// What a listing is for.
pub struct Wish<'a, H> {
    /// Which entries.
    pub scope: Scope,
    /// Whose handles are wanted beside the leases.
    pub note: &'a Note<'a, H>,
    /// The key whose entry is wanted in full.
    pub own: Option<&'a str>,
}

impl<H> Wish<'_, H> {
    /// Leases alone.
    pub fn leases(scope: Scope) -> Wish<'static, H> {
        Wish {
            scope,
            note: &|_, _, _| false,
            own: None,
        }
    }
}

/// What happened to an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<H> {
    /// It was written.
    Put(Entry<H>),
    /// It was deleted or expired.
    Gone {
        /// Its key.
        key: String,
    },
    /// Something that this client does not understand.
    Unclear(Rejected),
}

impl<H> Change<H> {
    /// The key.
    pub fn key(&self) -> &str {
        match self {
            Change::Put(entry) => &entry.key,
            Change::Gone { key } => key,
            Change::Unclear(rejected) => &rejected.key,
        }
    }
}

/// What a watch says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told<H> {
    /// The watch stands: nothing that happens from now on is missed.
    Standing,
    /// Nothing happened up to the revision of this number.
    Progress(i64),
    /// This happened, in order, each with the number of its revision; all changes of one revision come together.
    Changes(Vec<(i64, Change<H>)>),
}

/// Why a watch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// What was to be told next is forgotten. Nothing is wrong: list again.
    Compacted,
    /// The store is not the one that was listed: it was emptied, restored or exchanged since. Noted in the
    /// [state](Entries::state).
    Exchanged,
    /// This. It was noted in the [state](Entries::state).
    Failed(String),
}

/// A store of entries.
///
/// Keys are those below the parent of all leases. Whatever has a deadline has it inside: every method but
/// [`watch`](Entries::watch) comes back.
pub trait Entries: Send + Sync + 'static {
    /// The store's handle on an entry.
    type Handle: Handle;

    /// The network config as it was written. [`RegistryError::NotFound`] while there is none.
    fn config(&self) -> impl Future<Output = Result<Vec<u8>, RegistryError>> + Send;

    /// Lists entries, all of them at one revision. Values are read as leases one by one: nothing else of them is kept but what
    /// `wish` asks for.
    fn list(
        &self,
        wish: &Wish<'_, Self::Handle>,
    ) -> impl Future<Output = Result<Listing<Self::Handle>, RegistryError>> + Send;

    /// One entry.
    fn read(&self, key: &str) -> impl Future<Output = Result<Seen<Self::Handle>, RegistryError>> + Send;

    /// Puts an entry where there is none, with a whole time to live.
    fn create(
        &self,
        key: &str,
        value: &str,
    ) -> impl Future<Output = Result<Written<Self::Handle>, RegistryError>> + Send;

    /// Puts an entry over the state of it that is known.
    fn swap(
        &self,
        key: &str,
        value: &str,
        known: &Self::Handle,
        life: Life,
    ) -> impl Future<Output = Result<Written<Self::Handle>, RegistryError>> + Send;

    /// Deletes an entry if it is as known. Whether it is gone now: also when it was before.
    fn delete(
        &self,
        key: &str,
        known: &Self::Handle,
    ) -> impl Future<Output = Result<bool, RegistryError>> + Send;

    /// Gives an entry its whole time to live again, without a word to those who watch: its handle then, and when it ends. `None`
    /// when its time is over.
    fn prolong(
        &self,
        key: &str,
        known: &Self::Handle,
    ) -> impl Future<Output = Result<Option<(Self::Handle, Instant)>, RegistryError>> + Send;

    /// When an entry that somebody else wrote ends; `None` for a reservation, which never does.
    fn expires(
        &self,
        key: &str,
        known: &Self::Handle,
    ) -> impl Future<Output = Result<Option<Instant>, RegistryError>> + Send;

    /// Whether an entry was once in this state. `None` where the store has forgotten what was then.
    fn was(
        &self,
        key: &str,
        known: &Self::Handle,
    ) -> impl Future<Output = Result<Option<bool>, RegistryError>> + Send;

    /// Whether what is under a key is the entry that was once in this state, and not one that came when that was gone; it was
    /// created at the revision of this number. `None` where the store has forgotten what was then.
    fn descends(
        &self,
        key: &str,
        known: &Self::Handle,
        created: i64,
        entry: &Entry<Self::Handle>,
    ) -> impl Future<Output = Result<Option<bool>, RegistryError>> + Send {
        async move {
            match entry.created == created {
                true => self.was(key, known).await,
                false => Ok(Some(false)),
            }
        }
    }

    /// Nothing will be written for now: what was taken in reserve for it is given back.
    fn give_back(&self) -> impl Future<Output = ()> + Send;

    /// Tells of every change after a listing, until something ends it. Costs no request per change where the store can do so. A
    /// store that has not come to that revision, or has come there by another way, is [another](End::Exchanged).
    fn watch(
        &self,
        after: Mark,
        told: &(dyn Fn(Told<Self::Handle>) + Send + Sync),
    ) -> impl Future<Output = End> + Send;

    /// Tells the network config as it is, and again whenever it was written or removed, until something ends that. What cannot be
    /// asked is not told; what ended it is in the [state](Entries::state).
    fn follow_config(
        &self,
        told: &(dyn Fn(Result<Vec<u8>, RegistryError>) + Send + Sync),
    ) -> impl Future<Output = ()> + Send;

    /// Where the state of the connection is kept.
    fn state(&self) -> &watch::Sender<State>;

    /// What is asked next goes over a new connection.
    fn reconnect(&self) -> impl Future<Output = ()> + Send;

    /// Requests sent since start, a stream counting as one.
    fn requests(&self) -> u64;
}

/// What changes come to, for those who follow the leases; `None` when that is nothing.
///
/// A put that makes a good entry unreadable changes nothing: the lease that was there stays, and the entry is reported.
/// An entry that is gone and never was a lease is forgotten.
pub fn delta<H>(changes: &[(i64, Change<H>)]) -> Option<Delta> {
    let mut delta = Delta::default();
    for (number, change) in changes {
        delta.revision = delta.revision.max(*number);
        match change {
            Change::Put(entry) => match Lease::read(&entry.key, &entry.value, entry.created) {
                Ok(lease) => {
                    delta.withdraw(&entry.key);
                    delta.changes.push((lease.subnet, Some(lease)));
                }
                Err(rejected) => delta.refuse(rejected),
            },
            Change::Gone { key } => {
                let name = name_of(key);
                match Subnet::parse_key(key) {
                    Ok(subnet) => {
                        delta.withdraw(&name);
                        delta.changes.push((subnet, None));
                    }
                    Err(_) => delta.forget(name.into_owned()),
                }
            }
            Change::Unclear(rejected) => delta.refuse(rejected.clone()),
        }
    }
    (!delta.is_nothing()).then_some(delta)
}
