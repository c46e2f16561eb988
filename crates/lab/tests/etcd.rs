//! A cluster of three etcd members with TLS, and whatever can happen to it, while pods of two hosts ping each other: how soon the kernels
//! of all hosts follow again, what is said meanwhile, and that no route of a live lease ever leaves.
//!
//! Three seconds are aimed at from the moment etcd can answer; what gates is wider, for the machine is shared.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

#[path = "etcd/bed.rs"]
mod bed;
#[path = "etcd/cluster.rs"]
mod cluster;
#[path = "etcd/members.rs"]
mod members;
#[path = "kube/pings.rs"]
mod pings;
#[path = "etcd/reach.rs"]
mod reach;
#[path = "etcd/state.rs"]
mod state;

use bed::Bed;

#[test]
fn nodes_when_anything_happens_to_etcd_then_their_kernels_follow_and_pods_notice_nothing() {
    let mut bed = Bed::new();
    members::rows(&mut bed);
    reach::rows(&mut bed);
    state::rows(&mut bed);
    bed.close();
}
