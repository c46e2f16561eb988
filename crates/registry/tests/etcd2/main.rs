//! What is particular to the v2 API, against a real etcd (Debian's 3.4 with `--enable-v2`), with etcdctl of that API as the witness;
//! and how it is found out which API to speak. What both APIs have in common is tested in `conformance`.

// Everything here is test code, the helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../etcd3/authority.rs"]
mod authority;
mod choice;
mod entries;
#[path = "../conformance/ground.rs"]
#[allow(dead_code)]
mod ground;
mod reach;
mod relay;
