//! The daemon, as a library: `main.rs` is only its door, so that tests reach every module.
#![forbid(unsafe_code)]

pub mod board;
pub mod cache;
pub mod daemon;
mod data_path;
pub mod device_lock;
pub mod engine;
pub mod errand;
pub mod firewall;
pub mod flags;
pub mod handover;
pub mod heartbeat;
pub mod http;
pub mod interface;
pub mod journal;
pub mod logging;
pub mod mailbox;
pub mod metrics;
pub mod notify;
pub mod parameters;
pub mod port_holder;
pub mod reconcile;
pub mod seclusion;
pub mod service;
pub mod socket;
pub mod state_dir;
pub mod subject;
pub mod subnet_file;
pub mod threads;
pub mod truth;
