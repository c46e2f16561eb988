//! The firewall's, the subnet file's and the kernel parameters' keepers, with a clock that the test moves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod firewall;
mod parameters;
mod subnet_file;

use std::time::{Duration, Instant};

use flanneld::reconcile::keeper::{Keeper, Kept};

/// More rounds than this without the clock moving is a loop that spins.
const ROUNDS_AT_ONCE: usize = 12;

/// Lets time pass: every step that falls due in it is taken. How many those were.
fn pass<T: Kept>(keeper: &mut Keeper<T>, now: &mut Instant, time: Duration) -> usize {
    let until = *now + time;
    let (mut steps, mut at_once) = (1, 0);
    keeper.step(*now);
    loop {
        let next = keeper.next(*now);
        if next > until {
            break;
        }
        at_once = if next > *now { 0 } else { at_once + 1 };
        assert!(at_once < ROUNDS_AT_ONCE, "the loop spins");
        *now = (*now).max(next);
        keeper.step(*now);
        steps += 1;
    }
    *now = until;
    steps
}
