//! The one thread that writes. Whatever is queued when it looks becomes one redb transaction and one fsync: two
//! hundred daemons that start at once cost a handful of commits.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use etcd_proto::etcdserverpb as pb;
use tokio::sync::{oneshot, watch};

use super::index::At;
use super::{Store, check};
use crate::refusal::Refusal;

mod batch;

/// The leases' clock is written at least this often while there are leases.
pub const SAVE_EVERY: Duration = Duration::from_secs(30);
type Answer<T> = oneshot::Sender<Result<T, Refusal>>;

enum Job {
    Put(pb::PutRequest, Answer<pb::PutResponse>),
    Delete(pb::DeleteRangeRequest, Answer<pb::DeleteRangeResponse>),
    Txn(pb::TxnRequest, Answer<pb::TxnResponse>),
    Compact(pb::CompactionRequest, Answer<pb::CompactionResponse>),
    Grant(pb::LeaseGrantRequest, Answer<pb::LeaseGrantResponse>),
    Revoke(pb::LeaseRevokeRequest, Answer<pb::LeaseRevokeResponse>),
    Renew(pb::LeaseKeepAliveRequest, Answer<pb::LeaseKeepAliveResponse>),
    TimeToLive(pb::LeaseTimeToLiveRequest, Answer<pb::LeaseTimeToLiveResponse>),
    Leases(Answer<pb::LeaseLeasesResponse>),
    Size(Answer<Size>),
    Defragment(Answer<()>),
    Stop(Answer<()>),
}

/// What the file takes up, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// All pages.
    pub allocated: u64,
    /// Pages that hold something.
    pub used: u64,
}

/// Gives requests to the writing thread. Every answer comes after its effect is durable.
#[derive(Debug, Clone)]
pub struct Writer {
    jobs: Sender<Job>,
    failure: watch::Receiver<Option<String>>,
}

impl Writer {
    /// Starts the thread. `removable` are rows an earlier compaction left on the disk.
    pub fn start(store: Arc<Store>, removable: Vec<At>) -> io::Result<Writer> {
        let (jobs, queue) = channel();
        let (failed, failure) = watch::channel(None);
        batch::start(store, queue, failed, removable)?;
        Ok(Writer { jobs, failure })
    }

    /// Completes with the reason when the disk has refused a write, or the thread has gone: the store then takes no
    /// more.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.clone();
        let reason = failure.wait_for(Option::is_some).await;
        reason
            .ok()
            .and_then(|reason| reason.clone())
            .unwrap_or_else(|| "the writing thread has ended".into())
    }

    /// The Put call.
    pub async fn put(&self, request: pb::PutRequest) -> Result<pb::PutResponse, Refusal> {
        check::put(&request)?;
        check::size(&request)?;
        self.ask(|answer| Job::Put(request, answer)).await
    }

    /// The DeleteRange call.
    pub async fn delete(&self, request: pb::DeleteRangeRequest) -> Result<pb::DeleteRangeResponse, Refusal> {
        check::delete(&request)?;
        check::size(&request)?;
        self.ask(|answer| Job::Delete(request, answer)).await
    }

    /// The Txn call for a transaction that may write and has passed `Store::read_txn`.
    pub async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Refusal> {
        check::txn(&request)?;
        check::size(&request)?;
        self.ask(|answer| Job::Txn(request, answer)).await
    }

    /// The Compact call.
    pub async fn compact(&self, request: pb::CompactionRequest) -> Result<pb::CompactionResponse, Refusal> {
        self.ask(|answer| Job::Compact(request, answer)).await
    }

    /// The LeaseGrant call.
    pub async fn grant(&self, request: pb::LeaseGrantRequest) -> Result<pb::LeaseGrantResponse, Refusal> {
        self.ask(|answer| Job::Grant(request, answer)).await
    }

    /// The LeaseRevoke call.
    pub async fn revoke(&self, request: pb::LeaseRevokeRequest) -> Result<pb::LeaseRevokeResponse, Refusal> {
        self.ask(|answer| Job::Revoke(request, answer)).await
    }

    /// One message of the LeaseKeepAlive call; TTL 0 when there is no such lease.
    pub async fn renew(
        &self,
        request: pb::LeaseKeepAliveRequest,
    ) -> Result<pb::LeaseKeepAliveResponse, Refusal> {
        self.ask(|answer| Job::Renew(request, answer)).await
    }

    /// The LeaseTimeToLive call; TTL -1 when there is no such lease.
    pub async fn time_to_live(
        &self,
        request: pb::LeaseTimeToLiveRequest,
    ) -> Result<pb::LeaseTimeToLiveResponse, Refusal> {
        self.ask(|answer| Job::TimeToLive(request, answer)).await
    }

    /// The LeaseLeases call.
    pub async fn leases(&self) -> Result<pb::LeaseLeasesResponse, Refusal> {
        self.ask(Job::Leases).await
    }

    /// What the file takes up.
    pub async fn size(&self) -> Result<Size, Refusal> {
        self.ask(Job::Size).await
    }

    /// Gives free pages back to the file system.
    pub async fn defragment(&self) -> Result<(), Refusal> {
        self.ask(Job::Defragment).await
    }

    /// Finishes what is queued, saves the clock and ends the thread.
    pub async fn stop(&self) -> Result<(), Refusal> {
        self.ask(Job::Stop).await
    }

    async fn ask<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<T, Refusal> {
        let (answer, reply) = oneshot::channel();
        self.jobs.send(job(answer)).map_err(|_| Refusal::Stopped)?;
        reply.await.unwrap_or(Err(Refusal::Stopped))
    }
}
