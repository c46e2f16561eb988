//! Debian's container runtimes drive the plugins: podman with its CNI networks, containerd by `ctr run --cni`
//! and as Kubernetes asks it. Two hosts with real
//! daemons; what is asserted is seen from the containers, the hosts, and a machine outside.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "runtimes/machine.rs"]
mod machine;
#[path = "runtimes/place.rs"]
mod place;
#[path = "runtimes/plugins.rs"]
mod plugins;
#[path = "runtimes/world.rs"]
mod world;

#[path = "runtimes/containerd.rs"]
mod containerd;
#[path = "runtimes/kubernetes.rs"]
mod kubernetes;
#[path = "runtimes/podman.rs"]
mod podman;

#[path = "runtimes/containerd_tests.rs"]
mod containerd_tests;
#[path = "runtimes/kubernetes_tests.rs"]
mod kubernetes_tests;
#[path = "runtimes/podman_tests.rs"]
mod podman_tests;
