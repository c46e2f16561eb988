//! Single entries and etcd leases: each request guarded by a comparison and safe to come twice.
//!
//! INVARIANT: a request whose answer was lost may have been carried out. So etcd lease ids are chosen by us (granting twice
//! finds the lease there), and a transaction that fails hands back the entry, which is compared with what was to be
//! written.

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
use tokio::time::{Duration, Instant};
use tonic::Code;

use super::Etcd3;
use super::connection::{Connection, LARGEST_REPLY};
use super::members::CallError;
use crate::chance::bits;

/// etcd's handle on an entry: which state of it we know, and the etcd lease it lives by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Revision of the last put.
    pub(crate) mod_revision: i64,
    /// 0 = none: a reservation.
    pub(crate) lease: i64,
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
pub(crate) enum Write {
    /// The entry is as wanted, since this revision.
    Done(i64),
    /// It was not as expected: what is there at this revision.
    Found { revision: i64, entry: Option<KeyValue> },
    /// The etcd lease to bind it to does not exist.
    LeaseGone,
}

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

fn is_lease_gone(error: &CallError) -> bool {
    error
        .status()
        .is_some_and(|status| status.code() == Code::NotFound)
}

impl Etcd3 {
    pub(crate) async fn range(&self, request: RangeRequest) -> Result<RangeResponse, CallError> {
        let call = |connection| {
            let request = request.clone();
            async move { Ok(kv(connection).range(request).await?.into_inner()) }
        };
        self.members.call("Range", call).await
    }

    /// One entry, and the revision at which it is so.
    pub(crate) async fn entry(&self, key: &str) -> Result<(i64, Option<KeyValue>), CallError> {
        let reply = self.range(get(key)).await?;
        let revision = reply.header.map_or(0, |header| header.revision);
        Ok((revision, reply.kvs.into_iter().next()))
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, CallError> {
        let call = |connection| {
            let request = request.clone();
            async move { Ok(kv(connection).txn(request).await?.into_inner()) }
        };
        self.members.call("Txn", call).await
    }

    /// Puts an entry where there is none.
    pub(crate) async fn create(&self, key: &str, value: &str, lease: i64) -> Result<Write, CallError> {
        let guard = revision_is(key, CompareTarget::Version, TargetUnion::Version(0));
        self.put_if(guard, key, value, lease, true).await
    }

    /// Puts an entry over the state of it that is known.
    pub(crate) async fn replace(
        &self,
        key: &str,
        value: &str,
        lease: i64,
        known: i64,
    ) -> Result<Write, CallError> {
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
    pub(crate) async fn delete(&self, key: &str, known: i64) -> Result<bool, CallError> {
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
    pub(crate) async fn grant(&self) -> Result<Grant, CallError> {
        let id = i64::try_from(bits() >> 1).unwrap_or(i64::MAX).max(1);
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
    pub(crate) async fn revoke(&self, id: i64) {
        let call = |connection| async move {
            leases(connection).lease_revoke(LeaseRevokeRequest { id }).await?;
            Ok(())
        };
        if let Err(error) = self.members.call("LeaseRevoke", call).await {
            tracing::debug!(?error, "an unused etcd lease was not revoked and will expire");
        }
    }
}
