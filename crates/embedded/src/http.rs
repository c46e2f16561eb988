//! One port for gRPC and for the few HTTP/1 paths of etcd; everything else is refused by its name.

use std::convert::Infallible;

use etcd_proto::etcdserverpb as pb;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service as _;

use crate::refusal::Refusal;
use crate::service::{ETCD_VERSION, Registry};
use crate::store::MAX_REQUEST_BYTES;

/// Larger messages are not even decoded.
const MAX_MESSAGE_BYTES: usize = MAX_REQUEST_BYTES + (1 << 20);

/// The generated servers, one per gRPC service.
#[derive(Debug, Clone)]
pub struct Router {
    kv: pb::kv_server::KvServer<Registry>,
    watch: pb::watch_server::WatchServer<Registry>,
    lease: pb::lease_server::LeaseServer<Registry>,
    cluster: pb::cluster_server::ClusterServer<Registry>,
    maintenance: pb::maintenance_server::MaintenanceServer<Registry>,
}

impl Router {
    /// Serves `registry`.
    pub fn new(registry: &Registry) -> Router {
        let limit = MAX_MESSAGE_BYTES;
        let registry = || registry.clone();
        Router {
            kv: pb::kv_server::KvServer::new(registry()).max_decoding_message_size(limit),
            watch: pb::watch_server::WatchServer::new(registry()).max_decoding_message_size(limit),
            lease: pb::lease_server::LeaseServer::new(registry()).max_decoding_message_size(limit),
            cluster: pb::cluster_server::ClusterServer::new(registry()).max_decoding_message_size(limit),
            maintenance: pb::maintenance_server::MaintenanceServer::new(registry())
                .max_decoding_message_size(limit),
        }
    }

    /// Answers one request of either kind.
    pub async fn answer(mut self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let grpc = request
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        if !grpc {
            return Ok(plain(&request));
        }
        let path = request.uri().path();
        match path.trim_start_matches('/').split_once('/') {
            Some(("etcdserverpb.KV", _)) if has(&["Range", "Put", "DeleteRange", "Txn", "Compact"], path) => {
                self.kv.call(request).await
            }
            Some(("etcdserverpb.Watch", "Watch")) => self.watch.call(request).await,
            Some(("etcdserverpb.Lease", _)) if has(&LEASE, path) => self.lease.call(request).await,
            Some(("etcdserverpb.Cluster", _)) if has(&CLUSTER, path) => self.cluster.call(request).await,
            Some(("etcdserverpb.Maintenance", _)) if has(&MAINTENANCE, path) => {
                self.maintenance.call(request).await
            }
            _ => Ok(unknown(path)),
        }
    }
}

const LEASE: [&str; 5] = [
    "LeaseGrant",
    "LeaseRevoke",
    "LeaseKeepAlive",
    "LeaseTimeToLive",
    "LeaseLeases",
];
const CLUSTER: [&str; 5] = [
    "MemberList",
    "MemberAdd",
    "MemberRemove",
    "MemberUpdate",
    "MemberPromote",
];
const MAINTENANCE: [&str; 7] = [
    "Alarm",
    "Status",
    "Defragment",
    "Hash",
    "HashKV",
    "Snapshot",
    "MoveLeader",
];

fn has(methods: &[&str], path: &str) -> bool {
    path.rsplit('/')
        .next()
        .is_some_and(|method| methods.contains(&method))
}

/// A gRPC method no generated server knows: `/etcdserverpb.Auth/UserAdd` is named `Auth.UserAdd`.
fn unknown(path: &str) -> Response<Body> {
    let name = path
        .trim_start_matches('/')
        .trim_start_matches("etcdserverpb.")
        .replace('/', ".");
    Status::from(Refusal::NotBuiltIn(name)).into_http()
}

/// The HTTP/1 paths of etcd.
fn plain(request: &Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    let text = match path {
        "/health" => r#"{"health":"true"}"#.to_owned(),
        "/version" => format!(
            r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{ETCD_VERSION}","server":"flannelctl registry {}"}}"#,
            env!("CARGO_PKG_VERSION")
        ),
        _ => return refuse(path),
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = json(
            StatusCode::METHOD_NOT_ALLOWED,
            r#"{"message":"Method Not Allowed"}"#.into(),
        );
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    json(StatusCode::OK, text)
}

fn refuse(path: &str) -> Response<Body> {
    let below = |prefix: &str| {
        path == prefix
            || path
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.starts_with('/'))
    };
    let what = if below("/v2") {
        "the etcd v2 API (/v2)"
    } else if below("/v3") || below("/v3beta") || below("/v3alpha") {
        "the etcd v3 JSON gateway (/v3)"
    } else {
        return json(
            StatusCode::NOT_FOUND,
            r#"{"message":"404 page not found"}"#.into(),
        );
    };
    let refusal = Refusal::NotBuiltIn(what.into());
    json(
        StatusCode::NOT_IMPLEMENTED,
        format!(r#"{{"errorCode":501,"message":"{refusal}"}}"#),
    )
}

fn json(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(Bytes::from(text))));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_when_it_is_of_an_api_left_out_is_refused_by_name_and_any_other_is_not_there() {
        for path in [
            "/v2",
            "/v2/keys/x",
            "/v3/kv/range",
            "/v3beta",
            "/v3alpha/x",
            "/v3",
        ] {
            let response = refuse(path);
            assert_eq!(response.status(), StatusCode::NOT_IMPLEMENTED, "{path}");
            assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        }
        for path in ["/", "/v2x", "/v3betas", "/healthy", "/x/v2"] {
            assert_eq!(refuse(path).status(), StatusCode::NOT_FOUND, "{path}");
        }
    }

    #[test]
    fn method_when_no_server_knows_it_is_refused_by_its_name() {
        let response = unknown("/etcdserverpb.Auth/UserAdd");
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("grpc-status"), "12");
        assert!(
            header("grpc-message").contains("Auth.UserAdd"),
            "{}",
            header("grpc-message")
        );
        assert!(has(&LEASE, "/etcdserverpb.Lease/LeaseGrant"));
        assert!(!has(&LEASE, "/etcdserverpb.Lease/LeaseCheckpoint") && !has(&CLUSTER, "/x/LeaseGrant"));
    }
}
