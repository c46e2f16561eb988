//! The store: etcd's multi-version keys, transactions and leases on a redb file.
//!
//! One thread writes ([`writer`]), many read. The writer applies queued requests to the memory ([`state`]), puts all
//! of them into one redb transaction, makes it durable, and only then shows the result to readers and answers.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use etcd_proto::etcdserverpb as pb;
use tokio::sync::oneshot;

use crate::refusal::Refusal;

mod acknowledged;
mod check;
mod disk;
mod feed;
mod history;
mod index;
mod lease;
#[cfg(test)]
mod model;
mod range;
mod span;
mod state;
mod txn;
mod writer;

pub use disk::{Lost, OpenError};
pub use feed::{Inbox, Tap};
pub use span::Span;
pub use state::{Change, Revision};
pub use writer::Writer;

use acknowledged::Acknowledged;
use feed::Feed;
use history::Disk;
use state::State;

/// The only term there ever is; a real etcd's first is 2 as well.
pub const TERM: u64 = 2;

/// Operations in one level of a transaction (etcd's `--max-txn-ops`).
pub const MAX_TXN_OPS: usize = 128;
/// Bytes of one writing request (etcd's `--max-request-bytes`).
pub const MAX_REQUEST_BYTES: usize = 3 << 19;
/// Seconds.
pub const MAX_LEASE_TTL: i64 = 9_000_000_000;
/// Seconds; shorter ones are raised to it (etcd's with its default election timeout).
pub const MIN_LEASE_TTL: i64 = 2;
/// Bytes of rows read from the disk at once for a watcher that is behind.
const CATCH_UP_BYTES: usize = 1 << 20;

/// What readers and the writer share. Every response's header carries only the revision.
#[derive(Debug)]
pub struct Store {
    state: RwLock<State>,
    disk: Disk,
    /// What watchers read.
    pub feed: Feed,
    /// Chosen at random when the store was made.
    pub cluster_id: u64,
    /// Likewise.
    pub member_id: u64,
    /// Commits that are gone, if some are.
    pub lost: Option<Lost>,
    acknowledged: Acknowledged,
    /// INVARIANT: the last two fields, so that whoever sees `_open` gone may open the directory again.
    _lock: File,
    _open: oneshot::Sender<()>,
}

/// A store that was just opened.
#[derive(Debug)]
pub struct Opened {
    /// Readers' side.
    pub store: Arc<Store>,
    /// Writers' side.
    pub writer: Writer,
    /// Says when the last user of the store has gone and its directory is free.
    pub closed: Closed,
}

/// See [`Opened::closed`].
#[derive(Debug)]
pub struct Closed(oneshot::Receiver<()>);

impl Closed {
    /// Completes when the directory is free.
    pub async fn wait(self) {
        // Nothing is ever sent: the sender going is the news.
        let _ = self.0.await;
    }
}

impl Store {
    /// Opens or makes the store in `dir` and starts its writer.
    pub fn open(dir: &Path) -> Result<Opened, OpenError> {
        let (open, closed) = oneshot::channel();
        let loaded = disk::open(dir)?;
        let state = State {
            index: loaded.index,
            leases: loaded.leases,
            revision: loaded.revision,
            visible: loaded.revision,
            compacted: loaded.compacted,
            clock: loaded.clock,
        };
        let store = Arc::new(Store {
            state: RwLock::new(state),
            disk: Disk::new(loaded.db),
            feed: Feed::new(loaded.revision),
            cluster_id: loaded.cluster_id,
            member_id: loaded.member_id,
            lost: loaded.lost,
            acknowledged: loaded.acknowledged,
            _lock: loaded.lock,
            _open: open,
        });
        let writer =
            Writer::start(store.clone(), loaded.removable).map_err(|source| OpenError::Directory {
                path: dir.to_owned(),
                source,
            })?;
        Ok(Opened {
            store,
            writer,
            closed: Closed(closed),
        })
    }

    /// A header with everything in it.
    pub fn header(&self, revision: i64) -> pb::ResponseHeader {
        pb::ResponseHeader {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
            revision,
            raft_term: TERM,
        }
    }

    /// The newest revision readers see.
    pub fn visible(&self) -> i64 {
        self.read_state().visible
    }

    /// The last compaction's revision, -1 = never compacted.
    pub fn compacted(&self) -> i64 {
        self.read_state().compacted
    }

    /// The Range call.
    pub fn range(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Refusal> {
        check::range(request)?;
        let picked = {
            let state = self.read_state();
            range::pick(&state, &self.disk, request, state.visible)?
        };
        range::finish(picked, request)
    }

    /// The Txn call, when it only reads; `None` when it may write.
    pub fn read_txn(&self, request: &pb::TxnRequest) -> Result<Option<pb::TxnResponse>, Refusal> {
        check::txn(request)?;
        if !txn::is_read_only(request) {
            return Ok(None);
        }
        let state = self.read_state();
        let chosen = txn::choose(&state, &self.disk, request, state.visible)?;
        chosen.read(&state, &self.disk, state.visible).map(Some)
    }

    /// Revisions from `from` on for a watcher, oldest first, and the last one looked at: from memory, or from the
    /// disk in portions. Below the last compaction it is refused.
    pub fn revisions(&self, from: i64) -> Result<(Vec<Arc<Revision>>, i64), Refusal> {
        const PORTION: usize = 1000;
        let (visible, history) = {
            let state = self.read_state();
            if from < state.compacted {
                return Err(Refusal::Compacted);
            }
            if let Some(recent) = self.feed.read(from, PORTION) {
                let last = recent.last().map_or(from - 1, |revision| revision.main);
                return Ok((recent, last));
            }
            (self.feed.visible(), self.disk.history()?)
        };
        let mut revisions: Vec<Revision> = Vec::new();
        let mut bytes = 0;
        let mut last = visible;
        for change in history.changes(from, visible)? {
            let change = change?;
            let main = change.at.main;
            let begins = revisions.last().is_none_or(|revision| revision.main != main);
            if begins && (revisions.len() >= PORTION || bytes >= CATCH_UP_BYTES) {
                last = main - 1;
                break;
            }
            bytes += change.row.key.len() + change.row.value.len();
            let mut row = change.row;
            row.mod_revision = main;
            let change = Change {
                at: change.at,
                tombstone: change.tombstone,
                row: Arc::new(row),
                before: None,
            };
            match revisions.last_mut() {
                Some(revision) if !begins => revision.changes.push(change),
                _ => revisions.push(Revision {
                    main,
                    changes: vec![change],
                }),
            }
        }
        Ok((revisions.into_iter().map(Arc::new).collect(), last))
    }

    /// What `change`'s key was before it, unless it was absent or that is compacted.
    pub fn before(&self, change: &Change) -> Option<Arc<etcd_proto::mvccpb::KeyValue>> {
        let main = change.at.main - 1;
        let (found, history) = {
            let state = self.read_state();
            if main < state.compacted {
                return None;
            }
            if let Some((at, row)) = &change.before
                && at.main <= main
            {
                return Some(row.clone());
            }
            match state.index.get(&change.row.key, main)? {
                index::Found::Row(row) => return Some(row),
                index::Found::Stored(at) => (at, self.disk.history().ok()?),
            }
        };
        history.row(found).ok()
    }

    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}
