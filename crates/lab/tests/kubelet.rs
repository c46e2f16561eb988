//! Kubernetes as it is run: on every host a real systemd with containerd, kubelet and kube-proxy, scheduler and controllers beside the API
//! server, and our DaemonSet from our image. Pods of all hosts ping each other 100 times a second while something is done; each row says
//! how many packets were lost and how long it took.
//!
//! `cargo xtask test --suite kubelet` makes what it needs: Kubernetes' programs, the machines' root, and the image (`FLANNEL_IMAGE`).

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

#[path = "kubelet/backend.rs"]
mod backend;
#[path = "kubelet/bed.rs"]
mod bed;
#[path = "kubelet/failures.rs"]
mod failures;
#[path = "kubelet/flannels.rs"]
mod flannels;
#[path = "kubelet/install.rs"]
mod install;
#[path = "kubelet/nodes.rs"]
mod nodes;
#[path = "kubelet/person.rs"]
mod person;
#[path = "kubelet/restarts.rs"]
mod restarts;
#[path = "kubelet/swap.rs"]
mod swap;
#[path = "kubelet/trace.rs"]
mod trace;

use std::sync::{Mutex, MutexGuard, PoisonError};

use bed::Bed;

/// Two clusters at once would be late for each other.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn pods_when_anything_is_done_to_flannel_or_its_nodes_then_they_lose_nothing_they_need_not_lose() {
    let _alone = alone();
    let mut bed = Bed::new();
    install::rows(&mut bed);
    restarts::rows(&mut bed);
    failures::rows(&mut bed);
    swap::rows(&mut bed);
    nodes::rows(&mut bed);
    backend::rows(&mut bed);
    bed.close();
}

#[test]
fn lab_up_when_kubelets_are_asked_for_then_it_is_a_cluster_to_look_at_and_goes_whole() {
    let _alone = alone();
    person::looks();
}
