//! The domain of flannel, pure: from leases and a network config to the kernel objects that realise them.
//!
//! Nothing here touches the system: no clock, no randomness, no files, no network, no logging. Time, random numbers and
//! observations are arguments.
#![forbid(unsafe_code)]

pub mod alloc;
pub mod annotations;
pub mod causes;
pub mod config;
pub mod diff;
pub mod digest;
pub mod go_json;
pub mod kind;
pub mod lease;
pub mod node;
pub mod object;
pub mod overlap;
pub mod ownership;
pub mod parameter;
pub mod plan;
pub mod printable;
pub mod readiness;
pub mod rules;
pub mod status;
pub mod subnet_env;
pub mod utc;
pub mod world;
