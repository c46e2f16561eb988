//! The fuzz targets' bodies over thousands of mutated seeds, so that every `cargo test` runs them without libFuzzer.
//!
//! The longer runs are described in `fuzz/README.md`. The sequence is fixed: a failure comes again, and prints its input.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;

#[path = "../../../fuzz/src/fabric.rs"]
mod bodies;

const CASES: usize = 3_000;
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

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/seeds")
        .join(target);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{folder:?} holds no seeds");
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn mutate(seeds: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut data = seeds[dice.roll(seeds.len())].clone();
    for _ in 0..dice.roll(6) {
        let at = dice.roll(data.len() + 1);
        match dice.roll(6) {
            0 if at < data.len() => data[at] = dice.roll(256) as u8,
            1 if at < data.len() => data[at] ^= 1 << dice.roll(8),
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

fn random(dice: &mut Dice) -> Vec<u8> {
    (0..dice.roll(64)).map(|_| dice.roll(256) as u8).collect()
}

fn run(target: &str) {
    let (_, body) = bodies::TARGETS.iter().find(|(name, _)| *name == target).unwrap();
    let seeds = seeds(target);
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for seed in &seeds {
        body(seed);
    }
    for case in 0..CASES {
        let data = if case % 5 == 0 {
            random(&mut dice)
        } else {
            mutate(&seeds, &mut dice)
        };
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| body(&data)));
        assert!(
            outcome.is_ok(),
            "{target}, case {case}: {:?}",
            String::from_utf8_lossy(&data)
        );
    }
}

#[test]
fn lease_key_when_given_any_bytes_holds_its_promises() {
    run("lease_key");
}

#[test]
fn attributes_when_given_any_bytes_hold_their_promises() {
    run("attributes");
}

#[test]
fn go_json_when_given_any_bytes_holds_its_promises() {
    run("go_json");
}

#[test]
fn config_when_given_any_bytes_holds_its_promises() {
    run("config");
}

#[test]
fn subnet_env_when_given_any_bytes_holds_its_promises() {
    run("subnet_env");
}

#[test]
fn iptables_save_when_given_any_bytes_holds_its_promises() {
    run("iptables_save");
}

#[test]
fn nft_list_when_given_any_bytes_holds_its_promises() {
    run("nft_list");
}

#[test]
fn targets_when_listed_all_have_a_file_and_seeds() {
    for (target, _) in bodies::TARGETS {
        let file =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../fuzz/fuzz_targets/{target}.rs"));
        assert!(file.is_file() && !seeds(target).is_empty(), "{target}");
    }
}
