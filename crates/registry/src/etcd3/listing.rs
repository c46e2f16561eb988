//! All leases at one revision, page by page.

use etcd_proto::etcdserverpb::RangeRequest;
use etcd_proto::mvccpb::KeyValue;
use fabric::lease::{Lease, Snapshot};
use tonic::Code;

use super::Etcd3;
use super::members::CallError;
use super::wire::take_entry;

/// Entries per page: far below any reply limit with values of the usual 200 bytes.
const PAGE: i64 = 500;
/// How often a listing starts again because its revision was compacted away under it.
const RESTARTS: u32 = 5;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) snapshot: Snapshot,
    /// The entries that were asked for in full.
    pub(crate) noted: Vec<KeyValue>,
}

/// Which entries to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All.
    All,
    /// Those created after a revision.
    CreatedAfter(i64),
}

enum Outcome {
    Whole(Listing),
    Compacted(CallError),
    TooLarge(CallError),
}

impl Etcd3 {
    /// Lists leases; `note` picks entries whose etcd side is of interest.
    ///
    /// A page is turned into leases before the next is fetched: nothing of it stays.
    pub(crate) async fn list(
        &self,
        scope: Scope,
        note: &(dyn Fn(&KeyValue, Option<&Lease>) -> bool + Sync),
    ) -> Result<Listing, CallError> {
        let mut page = PAGE;
        let mut restarts = 0;
        loop {
            match self.list_by(scope, page, note).await? {
                Outcome::Whole(listing) => {
                    let revision = listing.snapshot.revision;
                    self.note_revision(revision);
                    return Ok(listing);
                }
                Outcome::TooLarge(error) if page == 1 => return Err(error),
                Outcome::TooLarge(_) => page /= 2,
                Outcome::Compacted(error) if restarts == RESTARTS => return Err(error),
                Outcome::Compacted(_) => restarts += 1,
            }
        }
    }

    async fn list_by(
        &self,
        scope: Scope,
        limit: i64,
        note: &(dyn Fn(&KeyValue, Option<&Lease>) -> bool + Sync),
    ) -> Result<Outcome, CallError> {
        let mut listing = Listing::default();
        let mut request = RangeRequest {
            key: self.keys.subnets().as_bytes().to_vec(),
            range_end: self.keys.subnets_end(),
            limit,
            min_create_revision: match scope {
                Scope::All => 0,
                Scope::CreatedAfter(revision) => revision + 1,
            },
            ..Default::default()
        };
        loop {
            let reply = match self.range(request.clone()).await {
                Ok(reply) => reply,
                Err(error) => {
                    return match error.status() {
                        Some(status) if status.message().contains("message length too large") => {
                            Ok(Outcome::TooLarge(error))
                        }
                        Some(status) if status.code() == Code::OutOfRange => Ok(Outcome::Compacted(error)),
                        _ => Err(error),
                    };
                }
            };
            if request.revision == 0 {
                request.revision = reply.header.map_or(0, |header| header.revision);
                listing.snapshot.revision = request.revision;
            }
            for entry in &reply.kvs {
                let lease = take_entry(&self.keys, entry, &mut listing.snapshot);
                if note(entry, lease) {
                    listing.noted.push(entry.clone());
                }
            }
            match reply.kvs.into_iter().next_back() {
                Some(last) if reply.more => {
                    request.key = last.key;
                    request.key.push(0);
                }
                _ => return Ok(Outcome::Whole(listing)),
            }
        }
    }

    pub(crate) fn note_revision(&self, revision: i64) {
        self.members.state().send_if_modified(|state| {
            state.revision = revision;
            false
        });
    }
}
