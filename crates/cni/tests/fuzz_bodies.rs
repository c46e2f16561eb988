//! The fuzz targets' bodies over thousands of mutated seeds, so that every `cargo test` runs them without libFuzzer.
//!
//! The sequence is fixed: a failure comes again, and prints its input. `CNI_FUZZ_CASES` asks for longer runs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;

use proptest::prelude::*;

#[path = "../../../fuzz/src/cni.rs"]
mod bodies;

const CASES: usize = 4_000;
/// What the formats are made of, inserted more often than other bytes.
const PUNCTUATION: &[u8] = b"\"'\\\n=:,/#-!{}[]$0 ";

/// Xorshift: enough to mutate with.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides.max(1) as u64) as usize
    }
}

fn mutate(seeds: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut data = seeds[dice.roll(seeds.len())].clone();
    for _ in 0..dice.roll(6) {
        let at = dice.roll(data.len() + 1);
        match dice.roll(6) {
            0 if at < data.len() => data[at] = dice.roll(256) as u8,
            1 if at < data.len() => data[at] = b"0123456789"[dice.roll(10)],
            2 => data.truncate(at),
            3 => data.insert(at, PUNCTUATION[dice.roll(PUNCTUATION.len())]),
            4 => {
                let other = &seeds[dice.roll(seeds.len())];
                let from = dice.roll(other.len() + 1);
                let to = from + dice.roll(other.len() - from + 1);
                data.splice(at..at, other[from..to].iter().copied());
            }
            _ => {
                let to = at + dice.roll(data.len() - at + 1).min(16);
                data.drain(at..to);
            }
        }
    }
    data
}

fn run(target: &str) {
    let (_, body) = bodies::TARGETS.iter().find(|(name, _)| *name == target).unwrap();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/seeds")
        .join(target);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    let seeds: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(!seeds.is_empty(), "{folder:?} holds no seeds");
    let cases = std::env::var("CNI_FUZZ_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(CASES);
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let inputs = seeds
        .clone()
        .into_iter()
        .chain((0..cases).map(|_| mutate(&seeds, &mut dice)));
    for input in inputs {
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| body(&input)));
        assert!(
            outcome.is_ok(),
            "{target} fails on {:?}",
            String::from_utf8_lossy(&input)
        );
    }
}

#[test]
fn stdin_when_mutated_breaks_no_promise() {
    run("cni_stdin");
}

#[test]
fn results_when_mutated_break_no_promise() {
    run("cni_result");
}

#[test]
fn small_formats_when_mutated_break_no_promise() {
    for target in ["cni_reservation", "cni_subnet_env", "cni_args"] {
        run(target);
    }
}

proptest! {
    #[test]
    fn anything_when_given_to_any_body_is_answered(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        for (_, body) in bodies::TARGETS {
            body(&data);
        }
    }
}
