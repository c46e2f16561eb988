//! The fuzz targets' bodies over thousands of mutated seeds, so that every `cargo test` runs them without libFuzzer.
//!
//! The longer runs are described in `fuzz/README.md`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

#[path = "../../../fuzz/src/cni.rs"]
mod bodies;
#[path = "../../../fuzz/src/mutated.rs"]
mod mutated;

use bodies::TARGETS;

#[test]
fn stdin_when_mutated_breaks_no_promise() {
    mutated::run(TARGETS, "cni_stdin");
}

#[test]
fn results_when_mutated_break_no_promise() {
    mutated::run(TARGETS, "cni_result");
}

#[test]
fn small_formats_when_mutated_break_no_promise() {
    for target in ["cni_reservation", "cni_subnet_env", "cni_args", "cni_daemon"] {
        mutated::run(TARGETS, target);
    }
}

#[test]
fn targets_when_listed_all_have_a_file_and_seeds() {
    for (target, _) in TARGETS {
        assert!(mutated::is_complete(target), "{target}");
    }
}
