//! The server from outside: beside a real etcd, under etcdctl, and under kill -9.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod differential;
mod etcdctl;
mod killed;
mod refusals;
mod rig;
mod tls;
mod watching;
