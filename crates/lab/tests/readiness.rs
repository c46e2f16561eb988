//! What a node says of itself while something is done to it: a row each, printed as they come.
//!
//! Whoever asks, asks all the time and from outside: `/readyz?verbose` and `/healthz` over the network, `flannelctl status` with its
//! exit status, `/metrics`, the log, and a socket in the place of the service manager's. A second is aimed at from the deed to 503; what
//! gates is wider, for the machine is shared.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

#[path = "readiness/bed.rs"]
mod bed;
#[path = "readiness/table.rs"]
mod table;
#[path = "readiness/witness.rs"]
mod witness;

#[path = "readiness/crowds.rs"]
mod crowds;
#[path = "readiness/devices.rs"]
mod devices;
#[path = "readiness/disks.rs"]
mod disks;
#[path = "readiness/noise.rs"]
mod noise;
#[path = "readiness/others.rs"]
mod others;
#[path = "readiness/registry.rs"]
mod registry;
#[path = "readiness/underlay.rs"]
mod underlay;

use std::sync::{Mutex, PoisonError};

use bed::Bed;
use table::Table;

/// Times are taken: one test after the other.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn node_when_something_is_done_to_it_then_all_that_is_said_of_it_follows_at_once() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut bed, mut table) = (Bed::new(), Table::default());
    devices::rows(&mut bed, &mut table);
    others::rows(&mut bed, &mut table);
    underlay::rows(&mut bed, &mut table);
    registry::rows(&mut bed, &mut table);
    crowds::rows(&mut bed, &mut table);
    disks::rows(&mut bed, &mut table);
    table.close();
}

#[test]
fn engine_when_others_make_noise_then_ours_is_repaired_as_fast_and_nothing_is_dumped_for_it() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    noise::table();
}
