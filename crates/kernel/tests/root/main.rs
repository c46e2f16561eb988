//! Against the real kernel, as root, each test in a network namespace of its own; iproute2 is the witness.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod apply;
mod beyond;
mod firewall;
mod ipip;
mod legacy;
mod monitor;
mod rtnl;
mod scratch;
