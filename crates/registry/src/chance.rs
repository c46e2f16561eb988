//! Random numbers for jitter and for the choice among free subnets, and the back-off that uses them.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// 64 random bits. The standard library's hash keys come from the system's random source.
pub(crate) fn bits() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A number below `n`, 0 when `n` is 0.
pub(crate) fn below(n: usize) -> usize {
    let n = u64::try_from(n).unwrap_or(u64::MAX).max(1);
    usize::try_from(bits() % n).unwrap_or(0)
}

/// Between half of a duration and all of it.
pub(crate) fn jitter(whole: Duration) -> Duration {
    let half = whole / 2;
    let part = u32::try_from(bits() % 1024).unwrap_or(0);
    half + half * part / 1024
}

/// Waiting times that double from `first` to `most`, jittered so that a thousand nodes do not come at once.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `first`.
    pub fn new(first: Duration, most: Duration) -> Backoff {
        Backoff {
            first,
            most,
            next: first,
        }
    }

    /// How long to wait now: between half of the current step and all of it. The step doubles.
    pub fn step(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.most);
        jitter(now)
    }

    /// Starts again at the first step.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_to_its_limit_and_starts_again_after_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        for whole in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let step = backoff.step().as_millis();
            assert!((whole / 2..=whole).contains(&step), "{step} for {whole}");
        }
        backoff.reset();
        assert!(backoff.step() <= Duration::from_millis(100));
    }

    #[test]
    fn below_stays_in_range_and_spreads() {
        let mut seen = [0_u32; 10];
        for _ in 0..1000 {
            seen[below(10)] += 1;
        }
        assert!(seen.iter().all(|n| *n > 20), "{seen:?}");
        assert_eq!(below(0), 0);
        assert_eq!(below(1), 0);
    }
}
