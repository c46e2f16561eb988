//! The CNI plugins of flannel, in one executable that is what it is called as.
//!
//! `flannel` reads what flanneld wrote, makes a configuration for a delegate of it and runs that: `bridge` and `host-local` in this
//! very process where they can do what is asked, any other plugin as Go's flannel does. State on disk and in the kernel is that of
//! Go's plugins, so that either can undo what the other did.
#![forbid(unsafe_code)]

pub mod args;
pub mod bandwidth;
pub mod bridge;
pub mod call;
pub mod chain;
pub mod companions;
pub mod conflist;
pub mod delegate;
pub mod digest;
pub mod doors;
pub mod failure;
pub mod files;
pub mod flannel;
pub mod gc;
pub mod host_local;
pub mod install;
pub mod inventory;
pub mod json;
pub mod links;
pub mod loopback;
pub mod netfilter;
pub mod netns;
pub mod notice;
pub mod offer;
pub mod ordered;
pub mod owner;
pub mod plugin;
pub mod portmap;
pub mod result;
pub mod saved;
pub mod version;
