//! Leases and the clock they run on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{MAX_LEASE_TTL, MIN_LEASE_TTL};
use crate::refusal::Refusal;

/// Keys of a lease found at start live at least this long, so that its holder can come back and renew.
const GRACE: Duration = Duration::from_secs(10);

/// Time in milliseconds that passes only while the server runs.
///
/// COMPAT: etcd starts a lease's whole TTL again after a restart. Here what remained of it survives, and time
/// during which the server was down does not count: a holder could not have renewed then. The clock needs no
/// wall clock, so a machine whose date jumps loses no lease. Written with every commit and at least every
/// [`SAVE_EVERY`](super::writer::SAVE_EVERY): after a kill a lease lives longer by at most that.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    base_ms: u64,
    started: Instant,
}

impl Clock {
    /// Goes on from the value saved last.
    pub fn resume(saved_ms: u64) -> Clock {
        Clock {
            base_ms: saved_ms,
            started: Instant::now(),
        }
    }

    /// The present.
    pub fn now_ms(&self) -> u64 {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.base_ms.saturating_add(elapsed)
    }
}

/// One lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Seconds granted.
    pub ttl: i64,
    /// When it ends, on the store's [`Clock`].
    pub deadline_ms: u64,
    /// The keys that die with it.
    pub keys: BTreeSet<Box<[u8]>>,
}

impl Lease {
    /// Whole seconds left, as etcd counts them (cut, not rounded).
    pub fn remaining(&self, now_ms: u64) -> i64 {
        i64::try_from(self.deadline_ms.saturating_sub(now_ms) / 1000).unwrap_or(i64::MAX)
    }
}

/// All leases, by id and by the time they end.
#[derive(Debug, Default)]
pub struct Leases {
    by_id: BTreeMap<i64, Lease>,
    by_deadline: BTreeSet<(u64, i64)>,
}

impl Leases {
    /// Takes up a lease read from the disk.
    pub fn restore(&mut self, id: i64, ttl: i64, deadline_ms: u64, now_ms: u64) {
        let grace = millis(ttl).min(u64::try_from(GRACE.as_millis()).unwrap_or(u64::MAX));
        self.insert(id, ttl, deadline_ms.max(now_ms.saturating_add(grace)));
    }

    /// Grants `id` for `ttl` seconds (raised to [`MIN_LEASE_TTL`]) and returns the TTL granted.
    pub fn grant(&mut self, id: i64, ttl: i64, now_ms: u64) -> Result<i64, Refusal> {
        if ttl > MAX_LEASE_TTL {
            return Err(Refusal::LeaseTtlTooLarge);
        }
        if self.by_id.contains_key(&id) {
            return Err(Refusal::LeaseExists);
        }
        let ttl = ttl.max(MIN_LEASE_TTL);
        self.insert(id, ttl, now_ms.saturating_add(millis(ttl)));
        Ok(ttl)
    }

    /// Starts the TTL again and returns it.
    pub fn renew(&mut self, id: i64, now_ms: u64) -> Result<i64, Refusal> {
        let lease = self.by_id.get_mut(&id).ok_or(Refusal::LeaseNotFound)?;
        self.by_deadline.remove(&(lease.deadline_ms, id));
        lease.deadline_ms = now_ms.saturating_add(millis(lease.ttl));
        self.by_deadline.insert((lease.deadline_ms, id));
        Ok(lease.ttl)
    }

    /// Forgets the lease.
    pub fn remove(&mut self, id: i64) {
        if let Some(lease) = self.by_id.remove(&id) {
            self.by_deadline.remove(&(lease.deadline_ms, id));
        }
    }

    /// The lease of that id.
    pub fn get(&self, id: i64) -> Option<&Lease> {
        self.by_id.get(&id)
    }

    /// Binds a key to the lease.
    pub fn attach(&mut self, id: i64, key: &[u8]) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.insert(key.into());
        }
    }

    /// Unbinds a key from the lease.
    pub fn detach(&mut self, id: i64, key: &[u8]) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.remove(key);
        }
    }

    /// Ids of all leases, the one that ends first first.
    pub fn ids(&self) -> impl Iterator<Item = i64> {
        self.by_deadline.iter().map(|&(_, id)| id)
    }

    /// The lease that ends first, and when.
    pub fn first_to_end(&self) -> Option<(u64, i64)> {
        self.by_deadline.first().copied()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    fn insert(&mut self, id: i64, ttl: i64, deadline_ms: u64) {
        self.by_deadline.insert((deadline_ms, id));
        self.by_id.insert(
            id,
            Lease {
                ttl,
                deadline_ms,
                keys: BTreeSet::new(),
            },
        );
    }
}

fn millis(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restoring_a_lease_when_its_time_is_nearly_up_leaves_the_holder_a_grace() {
        let mut leases = Leases::default();
        leases.restore(1, 60, 100_000, 99_000);
        leases.restore(2, 3, 100_000, 99_000);
        leases.restore(3, 60, 150_000, 99_000);
        assert_eq!(leases.get(1).unwrap().remaining(99_000), 10);
        assert_eq!(leases.get(2).unwrap().remaining(99_000), 3);
        assert_eq!(leases.get(3).unwrap().remaining(99_000), 51);
    }

    #[test]
    fn leases_when_renewed_end_in_a_new_order() {
        let mut leases = Leases::default();
        assert_eq!(leases.grant(7, 5, 0), Ok(5));
        assert_eq!(leases.grant(8, 1, 0), Ok(MIN_LEASE_TTL));
        assert_eq!(leases.ids().collect::<Vec<_>>(), vec![8, 7]);
        assert_eq!(leases.renew(8, 10_000), Ok(2));
        assert_eq!(leases.first_to_end(), Some((5_000, 7)));
        leases.remove(7);
        assert_eq!(leases.ids().collect::<Vec<_>>(), vec![8]);
        assert_eq!(leases.renew(7, 0), Err(Refusal::LeaseNotFound));
    }

    #[test]
    fn lease_when_granted_is_bounded_and_taken_ids_are_refused() {
        let mut leases = Leases::default();
        assert!(leases.is_empty());
        assert_eq!(leases.grant(1, MAX_LEASE_TTL, 0), Ok(MAX_LEASE_TTL));
        assert_eq!(
            leases.grant(2, MAX_LEASE_TTL + 1, 0),
            Err(Refusal::LeaseTtlTooLarge)
        );
        assert_eq!(leases.grant(1, 5, 0), Err(Refusal::LeaseExists));
        assert_eq!(leases.grant(3, -5, 1000), Ok(MIN_LEASE_TTL));
        let lease = leases.get(3).unwrap();
        assert_eq!(
            (lease.deadline_ms, lease.remaining(1000), lease.remaining(1001)),
            (3000, 2, 1)
        );
        assert_eq!((lease.remaining(3000), lease.remaining(9000)), (0, 0));
        leases.attach(3, b"k");
        leases.attach(9, b"k");
        assert_eq!(leases.get(3).unwrap().keys.len(), 1);
        leases.detach(3, b"other");
        assert_eq!(leases.get(3).unwrap().keys.len(), 1);
        leases.detach(3, b"k");
        assert!(leases.get(3).unwrap().keys.is_empty() && leases.get(9).is_none());
        leases.remove(9);
        assert!(!leases.is_empty());
        leases.remove(1);
        leases.remove(3);
        assert!(leases.is_empty() && leases.first_to_end().is_none());
    }

    #[test]
    fn clock_when_resumed_goes_on_from_what_was_saved() {
        let clock = Clock::resume(5000);
        let now = clock.now_ms();
        assert!((5000..15_000).contains(&now), "{now}");
        std::thread::sleep(Duration::from_millis(5));
        assert!(clock.now_ms() >= now + 5);
        assert_eq!(Clock::resume(u64::MAX).now_ms(), u64::MAX);
    }
}
