//! The real daemon of several nodes over a registry and kernels in memory, on one clock that is moved, in one thread: a seed
//! decides what is done to them, and what must hold is looked at after every step.
//!
//! `SIM_SEED=n` runs one seed and prints what happened in it; `SIM_SEEDS=n` says how many are run.

// Everything here is test code, the helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod case;
mod host;
mod node;
mod oracle;
mod planted;
mod rest;
mod scenes;
mod witness;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use registry::memory::Client;
use registry::{Chance, Leases, Registry};

use crate::case::{Build, Outcome};

/// As many as fit into the time that CI has for them.
const SEEDS: u64 = 10_000;
/// Threads that runs are spread over.
const THREADS: u64 = 2;

fn sound(client: Client, chance: Chance) -> Arc<dyn Registry> {
    Arc::new(Leases::over(client, chance))
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn replayed(seed: u64) -> String {
    format!("SIM_SEED={seed} cargo test -p flanneld --test simulation seeds")
}

/// Runs seeds until one is violated; that one, and what was violated.
fn search(first: u64, seeds: u64, build: Build) -> Option<(u64, String)> {
    let (next, found) = (
        AtomicU64::new(first),
        std::sync::Mutex::new(None::<(u64, String)>),
    );
    let steps = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds || found.lock().unwrap().is_some() {
                        return;
                    }
                    let outcome = caught(seed, build);
                    match outcome {
                        Ok(outcome) => {
                            steps.fetch_add(outcome.steps, Ordering::Relaxed);
                        }
                        Err(what) => {
                            found.lock().unwrap().get_or_insert((seed, what));
                        }
                    }
                }
            });
        }
    });
    say(&format!(
        "{} steps of engines in {seeds} seeds",
        steps.load(Ordering::Relaxed)
    ));
    found.into_inner().unwrap()
}

/// A panic is a violation too, and belongs to its seed.
fn caught(seed: u64, build: Build) -> Result<Outcome, String> {
    let run = std::panic::AssertUnwindSafe(|| case::run(seed, build, false));
    let outcome = std::panic::catch_unwind(run).map_err(|_| "a panic".to_owned())?;
    match outcome.violation {
        Some(violation) => Err(violation),
        None => Ok(outcome),
    }
}

#[test]
fn seeds_of_a_disturbed_cluster_hold_what_must_hold_and_come_to_rest() {
    if let Some(seed) = number("SIM_SEED") {
        let outcome = case::run(seed, sound, true);
        say(&outcome.log.join("\n"));
        if let Some(violation) = outcome.violation {
            panic!("seed {seed}: {violation}");
        }
        return;
    }
    let (seeds, first) = (
        number("SIM_SEEDS").unwrap_or(SEEDS),
        number("SIM_FIRST").unwrap_or(0),
    );
    let began = Instant::now();
    if let Some((seed, violation)) = search(first, seeds, sound) {
        panic!("seed {seed}: {violation}\nreplay: {}", replayed(seed));
    }
    say(&format!(
        "{seeds} seeds in {:.1} s",
        began.elapsed().as_secs_f64()
    ));
}

#[test]
fn a_seed_goes_the_same_way_twice() {
    for seed in 0..20 {
        let run = || case::run(seed, sound, true);
        let (one, other) = (run(), run());
        let parted = one.log.iter().zip(&other.log).position(|(a, b)| a != b);
        if let Some(line) = parted {
            panic!("seed {seed}: {} / {}", one.log[line], other.log[line]);
        }
        assert_eq!((one.trace, one.steps), (other.trace, other.steps), "seed {seed}");
    }
}
