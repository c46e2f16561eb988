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
#[path = "kubelet/restarts.rs"]
mod restarts;
#[path = "kubelet/swap.rs"]
mod swap;
#[path = "kubelet/trace.rs"]
mod trace;

use bed::Bed;

#[test]
fn pods_when_anything_is_done_to_flannel_or_its_nodes_then_they_lose_nothing_they_need_not_lose() {
    let mut bed = Bed::new();
    install::rows(&mut bed);
    restarts::rows(&mut bed);
    failures::rows(&mut bed);
    swap::rows(&mut bed);
    nodes::rows(&mut bed);
    backend::rows(&mut bed);
    bed.close();
}
