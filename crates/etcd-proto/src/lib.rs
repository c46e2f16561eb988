//! etcd's v3 API as Rust types and gRPC stubs, generated once from `proto/` and checked in: building needs neither
//! protoc nor a build script. How to generate again, and what was left out, is in the package's README.
//!
//! The feature `client` carries the calling half, `server` the answering half; the messages are always there.
#![forbid(unsafe_code)]

use std::fmt;

/// Keys, values and events (package `mvccpb`).
#[allow(missing_docs, clippy::all)]
#[rustfmt::skip]
#[path = "generated/mvccpb.rs"]
pub mod mvccpb;

/// Requests, responses and services (package `etcdserverpb`).
#[allow(missing_docs, clippy::all)]
#[rustfmt::skip]
#[path = "generated/etcdserverpb.rs"]
pub mod etcdserverpb;

impl fmt::Debug for etcdserverpb::AuthenticateRequest {
    /// INVARIANT: the password is never shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthenticateRequest")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for etcdserverpb::AuthenticateResponse {
    /// INVARIANT: the token is never shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthenticateResponse")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}
