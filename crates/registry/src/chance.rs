//! Random numbers for jitter and for the choice among free subnets, and the back-off that uses them.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Where random numbers come from: the system, or a seed that gives the same numbers each time. Clones of a seeded one draw
/// from the same sequence.
#[derive(Debug, Clone, Default)]
pub struct Chance(Option<Arc<AtomicU64>>);

/// The step between two states of a seeded sequence: 2^64 divided by the golden ratio (SplitMix64).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Chance {
    /// The system's randomness. The standard library's hash keys come from there.
    pub fn system() -> Chance {
        Chance(None)
    }

    /// The sequence of a seed.
    pub fn seeded(seed: u64) -> Chance {
        Chance(Some(Arc::new(AtomicU64::new(seed))))
    }

    /// 64 random bits.
    pub fn bits(&self) -> u64 {
        let Some(state) = &self.0 else {
            return RandomState::new().build_hasher().finish();
        };
        let mut bits = state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `n`, 0 when `n` is 0.
    pub fn below(&self, n: usize) -> usize {
        let n = u64::try_from(n).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.bits() % n).unwrap_or(0)
    }

    /// Between half of a duration and all of it.
    pub fn jitter(&self, whole: Duration) -> Duration {
        let half = whole / 2;
        let part = u32::try_from(self.bits() % 1024).unwrap_or(0);
        half + half * part / 1024
    }
}

/// Waiting times that double from `first` to `most`, jittered so that a thousand nodes do not come at once.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
    chance: Chance,
}

impl Backoff {
    /// Starts at `first`.
    pub fn new(first: Duration, most: Duration, chance: &Chance) -> Backoff {
        Backoff {
            first,
            most,
            next: first,
            chance: chance.clone(),
        }
    }

    /// How long to wait now: between half of the current step and all of it. The step doubles.
    pub fn step(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.most);
        self.chance.jitter(now)
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
        let mut backoff = Backoff::new(
            Duration::from_millis(100),
            Duration::from_secs(5),
            &Chance::system(),
        );
        for whole in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let step = backoff.step().as_millis();
            assert!((whole / 2..=whole).contains(&step), "{step} for {whole}");
        }
        backoff.reset();
        assert!(backoff.step() <= Duration::from_millis(100));
    }

    #[test]
    fn below_stays_in_range_and_spreads() {
        for chance in [Chance::system(), Chance::seeded(7)] {
            let mut seen = [0_u32; 10];
            for _ in 0..1000 {
                seen[chance.below(10)] += 1;
            }
            assert!(seen.iter().all(|n| *n > 20), "{seen:?}");
            assert_eq!(chance.below(0), 0);
            assert_eq!(chance.below(1), 0);
        }
    }

    #[test]
    fn a_seed_gives_the_same_numbers_again_and_another_seed_gives_others() {
        let draw = |seed| {
            let chance = Chance::seeded(seed);
            [chance.bits(), chance.clone().bits(), chance.bits()]
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_ne!(draw(1)[0], draw(1)[1]);
    }

    /// The simulation's seeds mean the same in every version. The numbers are those of SplitMix64's authors.
    #[test]
    fn a_seed_gives_the_published_numbers() {
        let chance = Chance::seeded(1_234_567);
        let drawn = [(); 3].map(|()| chance.bits());
        assert_eq!(
            drawn,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn jitter_is_spread_over_the_upper_half() {
        let chance = Chance::seeded(7);
        let whole = Duration::from_secs(2);
        let drawn: Vec<Duration> = (0..200).map(|_| chance.jitter(whole)).collect();
        assert!(drawn.iter().all(|time| (whole / 2..whole).contains(time)));
        assert!(drawn.iter().any(|time| *time < Duration::from_millis(1100)));
        assert!(drawn.iter().any(|time| *time > Duration::from_millis(1900)));
    }
}
