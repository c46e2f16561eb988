//! The CNI plugins of flannel, in one executable that is what it is called as.
//!
//! `flannel` reads what flanneld wrote, makes a configuration for a delegate of it and runs that: `bridge` and `host-local` in this
//! very process where they can do what is asked, any other plugin as Go's flannel does. State on disk and in the kernel is that of
//! Go's plugins, so that either can undo what the other did.

pub mod args;
pub mod bandwidth;
pub mod bridge;
pub mod call;
pub mod chain;
pub mod conflist;
pub mod delegate;
pub mod failure;
pub mod files;
pub mod flannel;
pub mod gc;
pub mod host_local;
pub mod install;
pub mod inventory;
pub mod json;
pub mod loopback;
pub mod netfilter;
pub mod netns;
pub mod ordered;
pub mod plugin;
pub mod portmap;
pub mod process;
pub mod result;
pub mod sweep;
pub mod sysctl;
pub mod version;
