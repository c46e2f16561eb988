//! Kubernetes' real API server as the registry: whatever can happen to a Node, seen in the kernels of two hosts whose pods ping each
//! other all the time, with the time until it was followed.
//!
//! `cargo xtask kube-assets` builds the servers. A second is aimed at; what gates is wider, for the machine is shared.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

#[path = "kube/bed.rs"]
mod bed;
#[path = "kube/families.rs"]
mod families;
#[path = "kube/own.rs"]
mod own;
#[path = "kube/peer.rs"]
mod peer;
#[path = "kube/peers.rs"]
mod peers;
#[path = "kube/pings.rs"]
mod pings;
#[path = "kube/server.rs"]
mod server;

use std::sync::{Mutex, PoisonError};

use bed::Bed;

/// Times are taken, and a cluster takes half a gigabyte: one test after the other.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn node_when_anything_happens_to_it_then_the_kernels_follow_and_pods_notice_nothing() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut bed = Bed::new();
    peers::rows(&mut bed);
    own::rows(&mut bed);
    server::rows(&mut bed);
    bed.close();
}

#[test]
fn annotations_when_a_cluster_has_one_family_or_two_then_they_are_those_of_go_flannel() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    families::each();
}
