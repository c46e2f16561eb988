//! The store's memory, and one transaction's changes to it.

use std::sync::Arc;

use etcd_proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, ResponseHeader,
};
use etcd_proto::mvccpb::KeyValue;

use super::index::{At, Found, Index};
use super::lease::{Clock, Leases};
use super::span::Span;
use crate::refusal::Refusal;

/// Everything readers and the writer share.
#[derive(Debug)]
pub struct State {
    /// Every key's versions.
    pub index: Index,
    /// All leases.
    pub leases: Leases,
    /// The newest revision the writer has made.
    pub revision: i64,
    /// The newest revision that is on the disk: what readers see. Never above `revision`.
    pub visible: i64,
    /// The last compaction, -1 = never. Never above `visible`.
    pub compacted: i64,
    /// What the leases run on.
    pub clock: Clock,
}

/// One key's change.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// When.
    pub at: At,
    /// The key went away: of `row` only key and `mod_revision` are set.
    pub tombstone: bool,
    /// What the key became.
    pub row: Arc<KeyValue>,
    /// What it was before.
    pub before: Option<(At, Arc<KeyValue>)>,
}

/// All changes of one revision, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Revision {
    /// The revision.
    pub main: i64,
    /// At least one.
    pub changes: Vec<Change>,
}

/// A transaction under way. Its changes are in the index at once, where only the writer sees them; leases follow
/// when it is finished. Dropped unfinished it would leave them there: end with [`Writing::finish`] or
/// [`Writing::undo`].
#[derive(Debug)]
#[must_use = "finish or undo it"]
pub struct Writing<'a> {
    state: &'a mut State,
    changes: Vec<Change>,
}

impl<'a> Writing<'a> {
    /// Begins at the revision after the newest.
    pub fn begin(state: &'a mut State) -> Writing<'a> {
        Writing {
            state,
            changes: Vec::new(),
        }
    }

    /// The revision reads inside this transaction see: with its own changes, once there are any.
    pub fn revision(&self) -> i64 {
        self.state.revision + i64::from(!self.changes.is_empty())
    }

    /// The memory as this transaction sees it, read at [`Writing::revision`].
    pub fn state(&self) -> &State {
        self.state
    }

    /// Puts one key. The request must have passed its checks; a lease or a previous value that went away inside
    /// this very transaction is refused here.
    pub fn put(&mut self, request: &PutRequest) -> Result<PutResponse, Refusal> {
        let before = self
            .state
            .index
            .newest(&request.key)
            .map(|(at, row)| (at, row.clone()));
        let previous = before.as_ref().map(|(_, row)| row);
        if (request.ignore_value || request.ignore_lease) && previous.is_none() {
            return Err(Refusal::KeyNotFound);
        }
        let at = self.next_place();
        let row = Arc::new(KeyValue {
            key: request.key.clone(),
            create_revision: previous.map_or(at.main, |row| row.create_revision),
            mod_revision: at.main,
            version: previous.map_or(0, |row| row.version) + 1,
            value: match previous {
                Some(row) if request.ignore_value => row.value.clone(),
                _ => request.value.clone(),
            },
            lease: match previous {
                Some(row) if request.ignore_lease => row.lease,
                _ => request.lease,
            },
        });
        let prev_kv = previous.filter(|_| request.prev_kv).map(|row| (**row).clone());
        self.state.index.push(&request.key, at, Some(row.clone()));
        self.changes.push(Change {
            at,
            tombstone: false,
            row,
            before,
        });
        Ok(PutResponse {
            header: header(at.main),
            prev_kv,
        })
    }

    /// Deletes the live keys of a range.
    pub fn delete(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let span = Span::new(&request.key, &request.range_end);
        let doomed: Vec<_> = self
            .state
            .index
            .range(&span, self.state.revision + 1)
            .filter_map(|(_, found)| match found {
                Found::Row(row) => Some(row),
                Found::Stored(_) => None,
            })
            .collect();
        for row in &doomed {
            self.delete_key(&row.key);
        }
        let prev_kvs = if request.prev_kv {
            doomed.iter().map(|row| (**row).clone()).collect()
        } else {
            Vec::new()
        };
        DeleteRangeResponse {
            header: header(self.revision()),
            deleted: i64::try_from(doomed.len()).unwrap_or(i64::MAX),
            prev_kvs,
        }
    }

    /// Deletes one key, if it is live.
    pub fn delete_key(&mut self, key: &[u8]) {
        let Some(before) = self.state.index.newest(key).map(|(at, row)| (at, row.clone())) else {
            return;
        };
        let at = self.next_place();
        self.state.index.push(key, at, None);
        let row = Arc::new(KeyValue {
            key: key.to_vec(),
            mod_revision: at.main,
            ..Default::default()
        });
        self.changes.push(Change {
            at,
            tombstone: true,
            row,
            before: Some(before),
        });
    }

    /// Ends the transaction: one revision, unless nothing changed.
    pub fn finish(self) -> Option<Revision> {
        let main = self.revision();
        let Writing { state, changes } = self;
        if changes.is_empty() {
            return None;
        }
        state.revision = main;
        for change in &changes {
            if let Some((_, before)) = &change.before {
                state.leases.detach(before.lease, &before.key);
            }
            if !change.tombstone {
                state.leases.attach(change.row.lease, &change.row.key);
            }
        }
        Some(Revision { main, changes })
    }

    /// Takes every change back.
    pub fn undo(self) {
        for change in self.changes.iter().rev() {
            self.state.index.pop(&change.row.key);
        }
    }

    fn next_place(&self) -> At {
        At {
            main: self.state.revision + 1,
            sub: i64::try_from(self.changes.len()).unwrap_or(i64::MAX),
        }
    }
}

/// A response header that carries only the revision; the service fills in who answers.
pub fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        revision,
        ..Default::default()
    })
}
