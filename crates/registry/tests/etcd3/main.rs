//! The etcd v3 client against a real etcd (Debian's 3.4), with etcdctl as the witness.

// Everything here is test code, the helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod acquire;
mod authority;
mod health;
mod keep;
mod listing;
mod reach;
mod rig;
