//! All leases at one revision, page by page.

use etcd_proto::etcdserverpb::{RangeRequest, RangeResponse};
use fabric::digest::fnv1a;

use super::store::{CallError, Stamp, Store};
use crate::entries::{Listing, Mark, OVERSIZE, Scope, Wish};

/// Entries per page: far below [`LARGEST_PAGE`] with values of the usual 200 bytes.
const PAGE: i64 = 500;
/// Bytes of a page: what of somebody's large values is in memory at once.
const LARGEST_PAGE: usize = 4 << 20;
/// How often a listing starts again because its revision was compacted away under it.
const RESTARTS: u32 = 5;

/// What a listing comes to, as far as it tells one history from another.
#[derive(Debug, Default)]
struct History {
    entries: i64,
    newest: i64,
    /// Of the newest writes, whatever order they come in.
    sum: u64,
}

impl History {
    fn take(&mut self, stamp: &Stamp) {
        self.entries += 1;
        if stamp.mod_revision > self.newest {
            (self.newest, self.sum) = (stamp.mod_revision, 0);
        }
        if stamp.mod_revision == self.newest {
            self.sum = self.sum.wrapping_add(fnv1a(&stamp.lease.to_be_bytes()));
        }
    }

    fn mark(&self, number: i64) -> Mark {
        Mark {
            number,
            newest: self.newest,
            history: self.sum ^ fnv1a(&self.entries.to_be_bytes()),
        }
    }
}

enum Outcome {
    Whole(Listing<Stamp>),
    Compacted(CallError),
}

impl Store {
    /// Lists leases.
    ///
    /// A page is turned into leases before the next is fetched: nothing of it stays.
    pub(super) async fn list_pages(&self, wish: &Wish<'_, Stamp>) -> Result<Listing<Stamp>, CallError> {
        let mut restarts = 0;
        loop {
            match self.list(wish).await? {
                Outcome::Whole(listing) => {
                    return Ok(listing);
                }
                Outcome::Compacted(error) if restarts == RESTARTS => return Err(error),
                Outcome::Compacted(_) => restarts += 1,
            }
        }
    }

    async fn list(&self, wish: &Wish<'_, Stamp>) -> Result<Outcome, CallError> {
        let mut listing = Listing::default();
        let mut history = History::default();
        let mut request = RangeRequest {
            key: self.keys.subnets().as_bytes().to_vec(),
            range_end: self.keys.subnets_end(),
            limit: PAGE,
            min_create_revision: match wish.scope {
                Scope::All => 0,
                Scope::CreatedAfter(revision) => revision + 1,
            },
            ..Default::default()
        };
        loop {
            let reply = match self.page(&mut request).await {
                Ok(reply) => reply,
                Err(error) => {
                    return match error.is_compacted() {
                        true => Ok(Outcome::Compacted(error)),
                        false => Err(error),
                    };
                }
            };
            if request.revision == 0 {
                request.revision = reply.header.map_or(0, |header| header.revision);
                listing.snapshot.revision = request.revision;
            }
            for entry in &reply.kvs {
                history.take(&Stamp::of(entry));
                if let Some(key) = self.keys.below(&entry.key) {
                    self.note_seen(entry.lease);
                    let value = if request.keys_only { OVERSIZE } else { &entry.value };
                    listing.take(key, value, entry.create_revision, &Stamp::of(entry), wish);
                }
            }
            match reply.kvs.into_iter().next_back() {
                Some(last) if reply.more => {
                    request.key = last.key;
                    request.key.push(0);
                    request.keys_only = false;
                    request.limit = (request.limit * 2).min(PAGE);
                }
                _ => {
                    listing.mark = history.mark(request.revision);
                    return Ok(Outcome::Whole(listing));
                }
            }
        }
    }

    /// Whether the store was at a mark's revision what it was when it was listed.
    ///
    /// An etcd lease's id is random, so the newest write of one history is in no other that parted from it earlier.
    pub(super) async fn has(&self, mark: &Mark) -> Result<bool, CallError> {
        let request = RangeRequest {
            key: self.keys.subnets().as_bytes().to_vec(),
            range_end: self.keys.subnets_end(),
            revision: mark.number,
            min_mod_revision: mark.newest,
            keys_only: true,
            ..Default::default()
        };
        let reply = self.range(request).await?;
        let mut history = History::default();
        for entry in &reply.kvs {
            history.take(&Stamp::of(entry));
        }
        // All of them, not only those that were asked for.
        history.entries = reply.count;
        Ok(history.mark(mark.number) == *mark)
    }

    /// The next page: as many entries as fit, and of one that does not fit alone its key.
    async fn page(&self, request: &mut RangeRequest) -> Result<RangeResponse, CallError> {
        loop {
            let reply = self.range_within(request.clone(), LARGEST_PAGE).await;
            match &reply {
                Err(error) if is_too_large(error) && !request.keys_only => {
                    request.keys_only = request.limit == 1;
                    request.limit = (request.limit / 4).max(1);
                }
                _ => return reply,
            }
        }
    }
}

fn is_too_large(error: &CallError) -> bool {
    error
        .status()
        .is_some_and(|status| status.message().contains("message length too large"))
}
