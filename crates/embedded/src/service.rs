//! etcd's gRPC services over the store.

use std::pin::Pin;
use std::sync::Arc;

use etcd_proto::etcdserverpb as pb;
use etcd_proto::etcdserverpb::alarm_request::AlarmAction;
use tokio::sync::{mpsc, watch as signal};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::refusal::Refusal;
use crate::store::{Store, TERM, Writer};
use crate::watch;

/// The API level spoken, as clients compare it.
pub const ETCD_VERSION: &str = "3.4.0";

/// What every service needs.
#[derive(Debug)]
pub struct Shared {
    /// Readers' side.
    pub store: Arc<Store>,
    /// Writers' side.
    pub writer: Writer,
    /// What MemberList shows, such as `http://127.0.0.1:2379`.
    pub client_urls: Vec<String>,
    /// True when the server goes down: streams end.
    pub stopping: signal::Receiver<bool>,
}

/// A handle that the generated servers share.
#[derive(Debug, Clone)]
pub struct Registry(pub Arc<Shared>);

/// Refuses a method this server does not have, by its name.
fn not_built_in<T>(method: &str) -> Result<Response<T>, Status> {
    Err(Refusal::NotBuiltIn(method.into()).into())
}

impl Registry {
    fn store(&self) -> &Store {
        &self.0.store
    }

    fn present(&self) -> pb::ResponseHeader {
        self.store().header(self.store().visible())
    }

    /// Says who answers; the store only knows the revision.
    fn sign(&self, header: &mut Option<pb::ResponseHeader>) {
        let revision = header.map_or_else(|| self.store().visible(), |header| header.revision);
        *header = Some(self.store().header(revision));
    }
}

#[tonic::async_trait]
impl pb::kv_server::Kv for Registry {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let mut response = self.store().range(request.get_ref())?;
        self.sign(&mut response.header);
        Ok(Response::new(response))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let mut response = self.0.writer.put(request.into_inner()).await?;
        self.sign(&mut response.header);
        Ok(Response::new(response))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let mut response = self.0.writer.delete(request.into_inner()).await?;
        self.sign(&mut response.header);
        Ok(Response::new(response))
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let mut response = match self.store().read_txn(request.get_ref())? {
            Some(response) => response,
            None => self.0.writer.txn(request.into_inner()).await?,
        };
        self.sign(&mut response.header);
        Ok(Response::new(response))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let mut response = self.0.writer.compact(request.into_inner()).await?;
        self.sign(&mut response.header);
        Ok(Response::new(response))
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl pb::watch_server::Watch for Registry {
    type WatchStream = Responses<pb::WatchResponse>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, receiver) = mpsc::channel(4);
        let (store, stopping) = (self.0.store.clone(), self.0.stopping.clone());
        tokio::spawn(watch::serve(store, request.into_inner(), sender, stopping));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[tonic::async_trait]
impl pb::lease_server::Lease for Registry {
    type LeaseKeepAliveStream = Responses<pb::LeaseKeepAliveResponse>;

    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let mut response = self.0.writer.grant(request.into_inner()).await?;
        self.sign(&mut response.header);
        Ok(Response::new(response))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let mut response = self.0.writer.revoke(request.into_inner()).await?;
        self.sign(&mut response.header);
        Ok(Response::new(response))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(keep_alive(self.clone(), request.into_inner(), sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let mut response = self.0.writer.time_to_live(request.into_inner()).await?;
        self.sign(&mut response.header);
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        _: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let mut response = self.0.writer.leases().await?;
        self.sign(&mut response.header);
        Ok(Response::new(response))
    }
}

/// Renews in the order asked until the client leaves or the server stops.
async fn keep_alive(
    registry: Registry,
    mut requests: Streaming<pb::LeaseKeepAliveRequest>,
    responses: mpsc::Sender<Result<pb::LeaseKeepAliveResponse, Status>>,
) {
    let mut stopping = registry.0.stopping.clone();
    loop {
        let request = tokio::select! {
            request = requests.message() => request,
            () = responses.closed() => return,
            _ = stopping.wait_for(|stop| *stop) => Err(Refusal::Stopped.into()),
        };
        let response = match request {
            Ok(Some(request)) => registry.0.writer.renew(request).await.map_err(Status::from),
            Ok(None) => return,
            Err(status) => Err(status),
        };
        let response = response.map(|mut response| {
            registry.sign(&mut response.header);
            response
        });
        let last = response.is_err();
        if responses.send(response).await.is_err() || last {
            return;
        }
    }
}

#[tonic::async_trait]
impl pb::maintenance_server::Maintenance for Registry {
    type SnapshotStream = Responses<pb::SnapshotResponse>;

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let size = self.0.writer.size().await?;
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let header = self.present();
        // There is no log: the revision stands for its index.
        let index = header.revision.unsigned_abs();
        Ok(Response::new(pb::StatusResponse {
            header: Some(header),
            version: ETCD_VERSION.into(),
            db_size: bytes(size.allocated),
            db_size_in_use: bytes(size.used),
            leader: header.member_id,
            raft_index: index,
            raft_applied_index: index,
            raft_term: TERM,
            ..Default::default()
        }))
    }

    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        if request.get_ref().action == AlarmAction::Activate as i32 {
            return not_built_in("Maintenance.Alarm ACTIVATE");
        }
        // COMPAT: etcd's reply to this call carries no header.
        Ok(Response::new(pb::AlarmResponse::default()))
    }

    async fn defragment(
        &self,
        _: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.0.writer.defragment().await?;
        Ok(Response::new(pb::DefragmentResponse { header: None }))
    }

    async fn hash(&self, _: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        not_built_in("Maintenance.Hash")
    }

    async fn hash_kv(&self, _: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        not_built_in("Maintenance.HashKV")
    }

    async fn snapshot(
        &self,
        _: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        not_built_in("Maintenance.Snapshot")
    }

    async fn move_leader(
        &self,
        _: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        not_built_in("Maintenance.MoveLeader")
    }
}

#[tonic::async_trait]
impl pb::cluster_server::Cluster for Registry {
    async fn member_list(
        &self,
        _: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let member = pb::Member {
            id: self.store().member_id,
            name: "flannelctl-registry".into(),
            client_ur_ls: self.0.client_urls.clone(),
            ..Default::default()
        };
        // COMPAT: etcd's reply to this call carries no revision.
        let header = Some(self.store().header(0));
        Ok(Response::new(pb::MemberListResponse {
            header,
            members: vec![member],
        }))
    }

    async fn member_add(
        &self,
        _: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        not_built_in("Cluster.MemberAdd")
    }

    async fn member_remove(
        &self,
        _: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        not_built_in("Cluster.MemberRemove")
    }

    async fn member_update(
        &self,
        _: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        not_built_in("Cluster.MemberUpdate")
    }

    async fn member_promote(
        &self,
        _: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        not_built_in("Cluster.MemberPromote")
    }
}
