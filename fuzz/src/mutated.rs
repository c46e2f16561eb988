//! A body over mutated seeds, without libFuzzer: what the crates' tests run with every `cargo test`.
//!
//! The sequence is fixed, so a failure comes again, and it prints its input. `FUZZ_CASES` asks for longer runs.

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

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

    fn byte(&mut self) -> u8 {
        self.roll(256) as u8
    }
}

/// Whether the target's own executable and its seeds are there.
pub fn is_complete(target: &str) -> bool {
    root().join(format!("fuzz_targets/{target}.rs")).is_file() && !seeds(target).is_empty()
}

/// A body over any bytes.
type Body = fn(&[u8]);

/// Runs the body over the seeds, over mutations of them, and over random bytes; panics with the input it fails on.
pub fn run(targets: &[(&str, Body)], target: &str) {
    let (_, body) = targets.iter().find(|(name, _)| *name == target).unwrap();
    let seeds = seeds(target);
    let asked = std::env::var("FUZZ_CASES").ok();
    let cases = asked.map_or(CASES, |n| n.parse().expect("FUZZ_CASES is a number"));
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let made = (0..cases).map(|case| match case % 5 {
        0 => (0..dice.roll(64)).map(|_| dice.byte()).collect(),
        _ => mutate(&seeds, &mut dice),
    });
    for input in seeds.iter().cloned().chain(made) {
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| body(&input)));
        let text = String::from_utf8_lossy(&input);
        assert!(outcome.is_ok(), "{target} fails on {text:?}");
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = root().join("seeds").join(target);
    let entries = fs::read_dir(&folder).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{folder:?} holds no seeds");
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn mutate(seeds: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut data = seeds[dice.roll(seeds.len())].clone();
    for _ in 0..dice.roll(6) {
        let at = dice.roll(data.len() + 1);
        match dice.roll(7) {
            0 if at < data.len() => data[at] = dice.byte(),
            1 if at < data.len() => data[at] ^= 1 << dice.roll(8),
            2 if at < data.len() => data[at] = b"0123456789"[dice.roll(10)],
            3 => data.truncate(at),
            4 => data.insert(at, PUNCTUATION[dice.roll(PUNCTUATION.len())]),
            5 => {
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
