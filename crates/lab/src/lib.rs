//! A flannel network on one machine: hosts as network namespaces, a switch between them, pods made through the real CNI
//! executable, faults, and witnesses.
//!
//! Nothing here knows how flannel is built. The crate acts and looks through `ip`, `bridge`, `nft`, `iptables-save`,
//! `ping`, `curl` and plain sockets only, so that what it asserts is never our own code's word.
//!
//! ```text
//!  root namespace: nothing but names under /run/netns and files under /run/flannel-lab/<lab>
//!  flab-<lab>-sw   bridge(s), gateway address, the registry
//!  flab-<lab>-hN   eth0 on the bridge, private /run, /var/lib/{cni,flannel}, /etc/cni/net.d, /sys, host name
//!    pods          network namespaces pinned in the host's own /run/netns
//! ```
#![forbid(unsafe_code)]

pub mod capture;
pub mod command;
pub mod cost;
pub mod fault;
pub mod flannel;
pub mod gateway;
pub mod inside;
pub mod kube;
pub mod layout;
pub mod machine;
pub mod node;
pub mod pod;
pub mod process;
pub mod reach;
pub mod rig;
pub mod rows;
pub mod speed;
pub mod store;
pub mod topology;
pub mod witness;

pub use command::LabError;
pub use layout::{Families, Spec};
pub use node::Node;
pub use topology::Lab;
