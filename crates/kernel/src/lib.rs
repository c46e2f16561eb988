//! The only place that speaks to Linux: netlink, firewall programs, sysctls, namespaces, file watches.
//!
//! Everything here is blocking and synchronous, decides nothing, and speaks `fabric`'s objects at its edge. `unsafe` is
//! allowed in this crate alone, each block with the reason why it holds.

pub mod exec;
pub mod file;
pub mod firewall;
pub mod heap;
pub mod host;
pub mod inherit;
pub mod inotify;
pub mod kind;
mod live;
pub mod lock;
pub mod memory;
mod mirror;
pub mod netns;
pub mod nl;
pub mod poll;
pub mod rtnl;
pub mod sysctl;

pub use host::{ApplyOptions, Changed, Drained, Host, Interest, KernelError, Outcome, Scope, Ways};
pub use live::Kernel;
pub use nl::NetlinkError;
