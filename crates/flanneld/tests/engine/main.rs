//! The engine's loop, step by step over a kernel in memory: single cases, and random histories.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cases;
mod limits;
mod model;
mod rig;
mod strangers;
