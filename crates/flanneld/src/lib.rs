//! The daemon, as a library: `main.rs` is only its door, so that tests reach every module.
#![forbid(unsafe_code)]

pub mod atomic_file;
pub mod cache;
pub mod daemon;
pub mod engine;
pub mod firewall;
pub mod flags;
pub mod handover;
pub mod http;
pub mod interface;
pub mod logging;
pub mod mailbox;
pub mod metrics;
pub mod notify;
pub mod service;
pub mod socket;
pub mod state_dir;
pub mod subject;
pub mod subnet_file;
pub mod truth;
