//! Why a request is refused. Texts and gRPC codes are etcd 3.4's (`etcdserver/api/v3rpc/rpctypes/error.go`):
//! clients compare the texts.

use tonic::{Code, Status};

/// What a caller did wrong, or why this server cannot answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An empty key.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// `ignore_value` or `ignore_lease` on a key that is not there, or an empty operation in a transaction.
    #[error("etcdserver: key not found")]
    KeyNotFound,
    /// `ignore_value` together with a value.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// `ignore_lease` together with a lease.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// More operations in one transaction than [`MAX_TXN_OPS`](crate::store::MAX_TXN_OPS).
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    /// A transaction that would write one key twice.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// A request larger than [`MAX_REQUEST_BYTES`](crate::store::MAX_REQUEST_BYTES).
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    /// The revision asked for is gone.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    /// The revision asked for has not happened yet.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    /// No such lease.
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    /// The lease id asked for is taken.
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    /// A TTL beyond [`MAX_LEASE_TTL`](crate::store::MAX_LEASE_TTL).
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    /// The server is going down; nothing is known about the request's fate.
    #[error("etcdserver: server stopped")]
    Stopped,
    /// The disk refused a write: nothing of this request's batch is acknowledged, and the server stops.
    #[error("flannelctl registry: the store failed: {0}")]
    Storage(String),
    /// A method of etcd's API that this server leaves out.
    #[error("flannelctl registry: {0} is not built in; use a real etcd")]
    NotBuiltIn(String),
}

impl Refusal {
    /// The gRPC code etcd uses for this refusal.
    pub fn code(&self) -> Code {
        match self {
            Refusal::EmptyKey
            | Refusal::KeyNotFound
            | Refusal::ValueProvided
            | Refusal::LeaseProvided
            | Refusal::TooManyOps
            | Refusal::DuplicateKey
            | Refusal::RequestTooLarge => Code::InvalidArgument,
            Refusal::Compacted | Refusal::FutureRevision | Refusal::LeaseTtlTooLarge => Code::OutOfRange,
            Refusal::LeaseNotFound => Code::NotFound,
            Refusal::LeaseExists => Code::FailedPrecondition,
            Refusal::Stopped | Refusal::Storage(_) => Code::Unavailable,
            Refusal::NotBuiltIn(_) => Code::Unimplemented,
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        Status::new(refusal.code(), refusal.to_string())
    }
}
