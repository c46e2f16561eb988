//! The executable in namespaces of its own, judged by `ip`, `bridge`, `iptables-save`, `nft` and the files it leaves.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "plugins/firewall_lock.rs"]
mod firewall_lock;
#[path = "plugins/rig.rs"]
mod rig;

#[path = "plugins/attachments.rs"]
mod attachments;
#[path = "plugins/budget.rs"]
mod budget;
#[path = "plugins/byte_results.rs"]
mod byte_results;
#[path = "plugins/calls.rs"]
mod calls;
#[path = "plugins/chain.rs"]
mod chain;
#[path = "plugins/conformance_table.rs"]
mod conformance_table;
#[path = "plugins/edges.rs"]
mod edges;
#[path = "plugins/go.rs"]
mod go;
#[path = "plugins/golden.rs"]
mod golden;
#[path = "plugins/host_local.rs"]
mod host_local;
#[path = "plugins/kill.rs"]
mod kill;
#[path = "plugins/lease_change.rs"]
mod lease_change;
#[path = "plugins/libcni.rs"]
mod libcni;
#[path = "plugins/limits.rs"]
mod limits;
#[path = "plugins/link.rs"]
mod link;
#[path = "plugins/multus.rs"]
mod multus;
#[path = "plugins/multus_pods.rs"]
mod multus_pods;
#[path = "plugins/multus_seed.rs"]
mod multus_seed;
#[path = "plugins/ports.rs"]
mod ports;
#[path = "plugins/power_cut.rs"]
mod power_cut;
#[path = "plugins/reference_suite.rs"]
mod reference_suite;
#[path = "plugins/status.rs"]
mod status;
#[path = "plugins/sweep.rs"]
mod sweep;
