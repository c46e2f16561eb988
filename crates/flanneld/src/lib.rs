//! The daemon, as a library: `main.rs` is only its door, so that tests reach every module.
#![forbid(unsafe_code)]

pub mod flags;
pub mod interface;
