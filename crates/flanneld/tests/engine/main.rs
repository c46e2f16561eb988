//! The engine's loop, step by step over a kernel in memory: single cases, and random histories.

mod cases;
mod model;
mod rig;
