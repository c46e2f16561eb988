//! What a daemon costs, and what it has made, by counts of the kernel that cost no process to read.

use std::fs;
use std::time::{Duration, Instant};

use crate::process::Process;
use crate::topology::Lab;

/// Longest wait for routes.
const PATIENCE: Duration = Duration::from_secs(120);

/// IPv4 prefixes in the first host's main table (`/proc/net/fib_triestat`); 0 where that cannot be read.
pub fn prefixes(lab: &Lab) -> usize {
    let pid = lab.state.holders.get(1).map_or(0, |holder| holder.pid);
    let text = fs::read_to_string(format!("/proc/{pid}/net/fib_triestat")).unwrap_or_default();
    // Without policy rules the kernel keeps the local and the main table in one trie.
    let mut main = text
        .split("Main:")
        .nth(1)
        .or_else(|| text.split("Id 254:").nth(1))
        .unwrap_or("")
        .lines();
    let line = main.find(|line| line.trim_start().starts_with("Prefixes:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    number.unwrap_or(0)
}

/// Waits until the first host has so many [`prefixes`], looking that often; how long it took, `None` after two minutes.
pub fn wait_for(lab: &Lab, wanted: usize, pause: Duration) -> Option<Duration> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if prefixes(lab) == wanted {
            return Some(start.elapsed());
        }
        std::thread::sleep(pause);
    }
    None
}

/// Processor time of all threads in seconds, resident memory and its peak in MiB.
pub fn cost(process: &Process) -> (f64, f64, f64) {
    let pid = process.pid();
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let of_task = |text: String| text.split(' ').next().and_then(|n| n.parse::<u64>().ok());
    let nanoseconds: u64 = tasks
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| of_task(fs::read_to_string(task.path().join("schedstat")).ok()?))
        .sum();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mebibytes = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
        number.unwrap_or(0.0) / 1024.0
    };
    (
        Duration::from_nanos(nanoseconds).as_secs_f64(),
        mebibytes("VmRSS:"),
        mebibytes("VmHWM:"),
    )
}

/// The middle of some figures, the upper one of two; 0 of none.
pub fn median(figures: Vec<f64>) -> f64 {
    quantile(figures, 0.5)
}

/// Below which so large a part of some figures lies; 0 of none.
pub fn quantile(mut figures: Vec<f64>, part: f64) -> f64 {
    figures.sort_by(f64::total_cmp);
    // A part of a few thousand figures.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    let at = (figures.len() as f64 * part) as usize;
    figures
        .get(at.min(figures.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0.0)
}
