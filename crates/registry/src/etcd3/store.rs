//! Single entries and etcd leases: each request guarded by a comparison and safe to come twice.
//!
//! INVARIANT: a request whose answer was lost may have been carried out. So etcd lease ids are chosen by us (granting twice
//! finds the lease there), and a transaction that fails hands back the entry, which is compared with what was to be
//! written.

use std::sync::{Mutex, PoisonError};

use etcd_proto::etcdserverpb::compare::{CompareTarget, TargetUnion};
use etcd_proto::etcdserverpb::kv_client::KvClient;
use etcd_proto::etcdserverpb::lease_client::LeaseClient;
use etcd_proto::etcdserverpb::request_op::Request;
use etcd_proto::etcdserverpb::response_op::Response;
use etcd_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
};
use etcd_proto::mvccpb::KeyValue;
use fabric::go_json::shorten;
use fabric::lease::name_of;
use tokio::time::{Duration, Instant};
use tonic::Code;

use super::connection::{Connection, LARGEST_REPLY};
use super::no_config;
use crate::RegistryError;
use crate::chance::Chance;
use crate::entries::{Entry, Handle, Life, Seen, Written};
use crate::etcd::{self, Keys, Look, Members};

/// Why a call did not succeed.
pub(super) type CallError = etcd::CallError<tonic::Status>;

/// etcd's handle on an entry: which state of it we know, and the etcd lease it lives by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Revision of the last put.
    pub(crate) mod_revision: i64,
    /// 0 = none: a reservation.
    pub(crate) lease: i64,
}

impl Handle for Stamp {
    fn is_reservation(&self) -> bool {
        self.lease == 0
    }

    fn shares_life(&self, other: &Stamp) -> bool {
        self.lease == other.lease
    }
}

/// The entries below one prefix of an etcd cluster. Connects on first use and for as long as it lives goes on trying.
pub struct Store {
    pub(crate) members: Members<Connection>,
    pub(super) keys: Keys,
    pub(super) lease_ttl: i64,
    pub(super) chance: Chance,
    /// An etcd lease that was granted and holds no entry: kept from one attempt to write to the next.
    pub(super) spare: Mutex<Option<Grant>>,
}

impl Stamp {
    pub(crate) fn of(entry: &KeyValue) -> Stamp {
        Stamp {
            mod_revision: entry.mod_revision,
            lease: entry.lease,
        }
    }
}

/// An etcd lease that is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) id: i64,
    /// Counted from before the request, so never too late.
    pub(crate) expires: Instant,
}

impl Grant {
    fn new(id: i64, asked: Instant, seconds: i64) -> Grant {
        // A server that promises more than a hundred years is taken at that.
        let seconds = u64::try_from(seconds).unwrap_or(0).min(100 * 366 * 86_400);
        let expires = asked + Duration::from_secs(seconds);
        Grant { id, expires }
    }
}

/// The outcome of a guarded write.
#[derive(Debug)]
enum Write {
    /// The entry is as wanted, since this revision.
    Done(i64),
    /// It was not as expected: what is there at this revision.
    Found { revision: i64, entry: Option<KeyValue> },
    /// The etcd lease to bind it to does not exist.
    LeaseGone,
}

/// Keys in the neighbourhood of a config that is missing: so many are looked at, and named.
const LOOKED_AT: i64 = 4;
const NAMED: usize = 3;

fn kv(connection: Connection) -> KvClient<Connection> {
    let origin = connection.origin.clone();
    KvClient::with_origin(connection, origin).max_decoding_message_size(LARGEST_REPLY)
}

fn leases(connection: Connection) -> LeaseClient<Connection> {
    let origin = connection.origin.clone();
    LeaseClient::with_origin(connection, origin)
}

fn op(request: Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

fn get(key: &str) -> RangeRequest {
    RangeRequest {
        key: key.as_bytes().to_vec(),
        ..Default::default()
    }
}

fn revision_is(key: &str, target: CompareTarget, revision: TargetUnion) -> Compare {
    Compare {
        target: target.into(),
        key: key.as_bytes().to_vec(),
        target_union: Some(revision),
        ..Default::default()
    }
}

/// The first key behind all that begin with this.
fn end_of(start: &[u8]) -> Vec<u8> {
    let mut end = start.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // To etcd: all that come after the start.
    vec![0]
}

/// A server that speaks HTTP/2 and knows nothing of etcd's v3 API answers with HTTP's 404.
fn is_foreign(status: &tonic::Status) -> bool {
    status.code() == Code::Unimplemented
}

fn is_lease_gone(error: &CallError) -> bool {
    error
        .status()
        .is_some_and(|status| status.code() == Code::NotFound)
}

impl Store {
    pub(crate) async fn range(&self, request: RangeRequest) -> Result<RangeResponse, CallError> {
        self.range_within(request, LARGEST_REPLY).await
    }

    /// The same, where the reply has no more than so many bytes.
    pub(super) async fn range_within(
        &self,
        request: RangeRequest,
        largest: usize,
    ) -> Result<RangeResponse, CallError> {
        let call = |connection| {
            let request = request.clone();
            async move {
                let mut client = kv(connection).max_decoding_message_size(largest);
                Ok(client.range(request).await?.into_inner())
            }
        };
        self.members.call("Range", call).await
    }

    /// One entry, and the revision at which it is so.
    pub(crate) async fn entry(&self, key: &str) -> Result<(i64, Option<KeyValue>), CallError> {
        let reply = self.range(get(key)).await?;
        let revision = reply.header.map_or(0, |header| header.revision);
        Ok((revision, reply.kvs.into_iter().next()))
    }

    /// What this API says of the network config, asked of one member.
    pub(crate) async fn look(&self) -> Look {
        let request = |connection| async move {
            let mut client = kv(connection);
            Ok(client.range(get(self.keys.config())).await?.into_inner())
        };
        match self.members.ask_one("Range", request).await {
            Ok(Ok(reply)) => match reply.kvs.into_iter().next() {
                Some(entry) => Look::Found(entry.value),
                None => Look::Missing(self.no_config().await),
            },
            Ok(Err(refused)) if refused.status().is_some_and(is_foreign) => Look::Foreign,
            Ok(Err(failed)) | Err(failed) => Look::Failed(failed.into()),
        }
    }

    /// That there is no network config, and what there is in its neighbourhood: it may have been put beside its place.
    pub(super) async fn no_config(&self) -> RegistryError {
        let mut missing = no_config(&self.keys);
        let near = self.neighbours().await;
        if let RegistryError::NotFound { place, .. } = &mut missing
            && !near.is_empty()
        {
            let named: Vec<String> = near.iter().map(|key| format!("{key:?}")).collect();
            place.push_str("; near it there is ");
            place.push_str(&named.join(", "));
        }
        missing
    }

    /// A few keys that are no leases, of what is called like the prefix or like a mistaken config. None where they may not be read,
    /// which is no failure of anything.
    async fn neighbours(&self) -> Vec<String> {
        let prefix = self.keys.prefix().as_bytes();
        let within = |key: &[u8], range_end: &[u8]| RangeRequest {
            key: key.to_vec(),
            range_end: range_end.to_vec(),
            limit: LOOKED_AT,
            ..Default::default()
        };
        // Before all leases, and behind them.
        let around = [
            within(prefix, self.keys.subnets().as_bytes()),
            within(&self.keys.subnets_end(), &end_of(prefix)),
        ];
        let mistaken = self.keys.mistaken_configs();
        let ranges = mistaken.iter().map(|key| get(key)).chain(around);
        let success = ranges.map(|range| RangeRequest {
            keys_only: true,
            ..range
        });
        let wanted = TxnRequest {
            success: success.map(|range| op(Request::RequestRange(range))).collect(),
            ..Default::default()
        };
        let request = |connection| {
            let wanted = wanted.clone();
            async move { Ok(kv(connection).txn(wanted).await?.into_inner()) }
        };
        let Ok(Ok(reply)) = self.members.ask_one("Txn", request).await else {
            return Vec::new();
        };
        let mut near: Vec<String> = Vec::new();
        for response in reply.responses {
            let Some(Response::ResponseRange(found)) = response.response else {
                continue;
            };
            let keys = found
                .kvs
                .iter()
                .filter(|entry| self.keys.below(&entry.key).is_none());
            let names = keys.map(|entry| shorten(&String::from_utf8_lossy(&entry.key)));
            for name in names {
                if near.len() < NAMED && !near.contains(&name) {
                    near.push(name);
                }
            }
        }
        near
    }

    /// Whether an entry was once in this state; `None` when that revision is compacted away.
    pub(super) async fn entry_was(&self, key: &str, known: &Stamp) -> Result<Option<bool>, CallError> {
        let request = RangeRequest {
            revision: known.mod_revision,
            keys_only: true,
            ..get(key)
        };
        match self.range(request).await {
            Ok(reply) => Ok(Some(reply.kvs.first().map(Stamp::of) == Some(*known))),
            Err(error) if error.is_future() => Ok(Some(false)),
            Err(error) if error.is_compacted() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, CallError> {
        let call = |connection| {
            let request = request.clone();
            async move { Ok(kv(connection).txn(request).await?.into_inner()) }
        };
        self.members.call("Txn", call).await
    }

    /// Puts an entry where there is none.
    async fn put_new(&self, key: &str, value: &str, lease: i64) -> Result<Write, CallError> {
        let guard = revision_is(key, CompareTarget::Version, TargetUnion::Version(0));
        self.put_if(guard, key, value, lease, true).await
    }

    /// Puts an entry over the state of it that is known.
    async fn replace(&self, key: &str, value: &str, lease: i64, known: i64) -> Result<Write, CallError> {
        let guard = revision_is(key, CompareTarget::Mod, TargetUnion::ModRevision(known));
        self.put_if(guard, key, value, lease, false).await
    }

    async fn put_if(
        &self,
        guard: Compare,
        key: &str,
        value: &str,
        lease: i64,
        new: bool,
    ) -> Result<Write, CallError> {
        let put = PutRequest {
            key: key.as_bytes().to_vec(),
            value: value.as_bytes().to_vec(),
            lease,
            ..Default::default()
        };
        let request = TxnRequest {
            compare: vec![guard],
            success: vec![op(Request::RequestPut(put))],
            failure: vec![op(Request::RequestRange(get(key)))],
        };
        let reply = match self.txn(request).await {
            Err(error) if is_lease_gone(&error) => return Ok(Write::LeaseGone),
            reply => reply?,
        };
        let revision = reply.header.map_or(0, |header| header.revision);
        if reply.succeeded {
            return Ok(Write::Done(revision));
        }
        let entry = reply
            .responses
            .into_iter()
            .find_map(|response| match response.response {
                Some(Response::ResponseRange(range)) => range.kvs.into_iter().next(),
                _ => None,
            });
        // A lost answer to the same request shows as an entry that is just as we want it. For a new entry only an etcd
        // lease of our own choosing proves that it was us.
        let ours = |entry: &KeyValue| {
            let same = entry.value == value.as_bytes() && entry.lease == lease;
            same && (lease != 0 || !new)
        };
        match entry {
            Some(entry) if ours(&entry) => Ok(Write::Done(entry.mod_revision)),
            entry => Ok(Write::Found { revision, entry }),
        }
    }

    /// Deletes an entry if it is as known. Whether it is gone now: also when it was before.
    pub(super) async fn remove(&self, key: &str, known: i64) -> Result<bool, CallError> {
        let guard = revision_is(key, CompareTarget::Mod, TargetUnion::ModRevision(known));
        let delete = DeleteRangeRequest {
            key: key.as_bytes().to_vec(),
            ..Default::default()
        };
        let request = TxnRequest {
            compare: vec![guard],
            success: vec![op(Request::RequestDeleteRange(delete))],
            failure: vec![op(Request::RequestRange(get(key)))],
        };
        let reply = self.txn(request).await?;
        let left = reply
            .responses
            .into_iter()
            .any(|response| match response.response {
                Some(Response::ResponseRange(range)) => !range.kvs.is_empty(),
                _ => false,
            });
        Ok(reply.succeeded || !left)
    }

    /// A new etcd lease.
    async fn grant(&self) -> Result<Grant, CallError> {
        let id = i64::try_from(self.chance.bits() >> 1).unwrap_or(i64::MAX).max(1);
        let ttl = self.lease_ttl;
        let asked = Instant::now();
        let call = |connection| async move {
            let request = LeaseGrantRequest { ttl, id };
            Ok(leases(connection).lease_grant(request).await?.into_inner())
        };
        match self.members.call("LeaseGrant", call).await {
            Ok(reply) => Ok(Grant::new(reply.id, asked, reply.ttl)),
            Err(error)
                if error.status().is_some_and(|status| {
                    status.code() == Code::FailedPrecondition
                        && status.message().contains("lease already exists")
                }) =>
            {
                Ok(Grant::new(id, asked, ttl))
            }
            Err(error) => Err(error),
        }
    }

    /// Gives an etcd lease its whole time to live again; `None` when it is gone.
    pub(crate) async fn keep_alive(&self, id: i64) -> Result<Option<Grant>, CallError> {
        let asked = Instant::now();
        let call = |connection| async move {
            let requests = tokio_stream::once(LeaseKeepAliveRequest { id });
            let mut replies = leases(connection).lease_keep_alive(requests).await?.into_inner();
            match replies.message().await? {
                Some(reply) => Ok(reply.ttl),
                None => Err(tonic::Status::unavailable("the stream ended without an answer")),
            }
        };
        match self.members.call("LeaseKeepAlive", call).await {
            Ok(ttl) if ttl > 0 => Ok(Some(Grant::new(id, asked, ttl))),
            Ok(_) => Ok(None),
            Err(error) if is_lease_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How long somebody else's etcd lease lasts; `None` when it is gone.
    pub(crate) async fn time_to_live(&self, id: i64) -> Result<Option<Grant>, CallError> {
        let asked = Instant::now();
        let call = |connection| async move {
            let request = LeaseTimeToLiveRequest { id, keys: false };
            Ok(leases(connection).lease_time_to_live(request).await?.into_inner())
        };
        match self.members.call("LeaseTimeToLive", call).await {
            Ok(reply) if reply.ttl > 0 => Ok(Some(Grant::new(id, asked, reply.ttl))),
            Ok(_) => Ok(None),
            Err(error) if is_lease_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Ends an etcd lease that no entry of ours lives by any more; that it cannot be done costs nothing but its time to live.
    pub(super) async fn revoke(&self, id: i64) {
        let call = |connection| async move {
            leases(connection).lease_revoke(LeaseRevokeRequest { id }).await?;
            Ok(())
        };
        if let Err(error) = self.members.call("LeaseRevoke", call).await {
            tracing::debug!(?error, "an unused etcd lease was not revoked and will expire");
        }
    }

    fn lock_spare(&self) -> std::sync::MutexGuard<'_, Option<Grant>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The spare etcd lease, or a new one.
    async fn spared(&self) -> Result<Grant, CallError> {
        let alive = self.lock_spare().filter(|grant| grant.expires > Instant::now());
        let grant = match alive {
            Some(grant) => grant,
            None => self.grant().await?,
        };
        *self.lock_spare() = Some(grant);
        Ok(grant)
    }

    /// Takes the spare etcd lease away, be it bound or gone.
    pub(super) fn take_spare(&self) -> Option<Grant> {
        self.lock_spare().take()
    }

    /// Puts an entry where there is none, on the spare etcd lease.
    pub(super) async fn create_entry(&self, key: &str, value: &str) -> Result<Written<Stamp>, CallError> {
        let grant = self.spared().await?;
        let key = self.keys.at(key);
        match self.put_new(&key, value, grant.id).await? {
            Write::Done(revision) => Ok(self.bound(revision, grant)),
            Write::Found { revision, entry } => Ok(Written::Found(self.seen(revision, entry))),
            Write::LeaseGone => {
                self.take_spare();
                self.found(&key).await
            }
        }
    }

    /// Puts an entry over the state of it that is known; on the spare etcd lease where the life shall be a new one, or the
    /// one it had is over.
    pub(super) async fn swap_entry(
        &self,
        key: &str,
        value: &str,
        known: &Stamp,
        life: Life,
    ) -> Result<Written<Stamp>, CallError> {
        let key = self.keys.at(key);
        if life == Life::Same {
            match self.replace(&key, value, known.lease, known.mod_revision).await? {
                Write::Done(mod_revision) => {
                    let lease = known.lease;
                    return Ok(Written::Done {
                        number: mod_revision,
                        handle: Stamp { mod_revision, lease },
                        expires: None,
                    });
                }
                Write::Found { revision, entry } => return Ok(Written::Found(self.seen(revision, entry))),
                Write::LeaseGone => {}
            }
        }
        let grant = self.spared().await?;
        match self.replace(&key, value, grant.id, known.mod_revision).await? {
            Write::Done(revision) => Ok(self.bound(revision, grant)),
            Write::Found { revision, entry } => Ok(Written::Found(self.seen(revision, entry))),
            Write::LeaseGone => {
                self.take_spare();
                self.found(&key).await
            }
        }
    }

    /// An entry lives by this etcd lease now, since this revision: it is none to spare any more.
    fn bound(&self, revision: i64, grant: Grant) -> Written<Stamp> {
        self.note_seen(grant.id);
        Written::Done {
            number: revision,
            handle: Stamp {
                mod_revision: revision,
                lease: grant.id,
            },
            expires: Some(grant.expires),
        }
    }

    async fn found(&self, key: &str) -> Result<Written<Stamp>, CallError> {
        let (revision, entry) = self.entry(key).await?;
        Ok(Written::Found(self.seen(revision, entry)))
    }

    /// Notes which etcd lease an entry was seen to live by. A write whose answer was lost may have bound the spare one.
    ///
    /// INVARIANT: no etcd lease holds two entries, and none is revoked that holds one: either would end an entry that nobody
    /// gave up.
    pub(super) fn note_seen(&self, lease: i64) {
        self.lock_spare().take_if(|spare| spare.id == lease);
    }

    /// An entry of etcd's as one below the parent of all leases.
    pub(super) fn seen(&self, number: i64, entry: Option<KeyValue>) -> Seen<Stamp> {
        if let Some(entry) = &entry {
            self.note_seen(entry.lease);
        }
        Seen {
            number,
            entry: entry.and_then(|entry| entry_of(&self.keys, entry)),
        }
    }
}

/// `None` for a key that lies elsewhere.
pub(super) fn entry_of(keys: &Keys, entry: KeyValue) -> Option<Entry<Stamp>> {
    let all = Entry {
        key: name_of(&keys.below(&entry.key)?).into_owned(),
        created: entry.create_revision,
        handle: Stamp::of(&entry),
        value: entry.value,
    };
    Some(all.cut())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_ends_when_promised_and_never_beyond_a_hundred_years() {
        let asked = Instant::now();
        let left = |seconds| Grant::new(7, asked, seconds).expires - asked;
        assert_eq!(left(60), Duration::from_secs(60));
        assert_eq!((left(0), left(-5)), (Duration::ZERO, Duration::ZERO));
        let most = Duration::from_secs(100 * 366 * 86_400);
        assert_eq!((left(i64::MAX), left(3_162_240_000)), (most, most));
        assert_eq!(left(3_162_239_999), most - Duration::from_secs(1));
    }

    #[test]
    fn a_stamp_is_a_reservations_without_an_etcd_lease() {
        let stamp = |mod_revision, lease| Stamp { mod_revision, lease };
        assert!(stamp(5, 0).is_reservation() && !stamp(5, 7).is_reservation());
        assert!(stamp(5, 7).shares_life(&stamp(6, 7)) && !stamp(5, 7).shares_life(&stamp(5, 8)));
        let entry = KeyValue {
            mod_revision: 5,
            lease: 7,
            ..KeyValue::default()
        };
        assert_eq!(Stamp::of(&entry), stamp(5, 7));
    }

    #[test]
    fn an_etcd_lease_is_gone_when_it_is_not_found_and_not_when_nobody_answers() {
        let status = |status| CallError::Status {
            endpoint: String::new(),
            call: "x",
            status,
        };
        assert!(is_lease_gone(&status(tonic::Status::not_found(""))));
        assert!(!is_lease_gone(&status(tonic::Status::unavailable(""))));
        assert!(!is_lease_gone(&CallError::Unreachable(String::new())));
    }
}
