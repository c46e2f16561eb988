//! What is known of one state of one entry.

use fabric::digest::fnv1a;
use tokio::time::{Duration, Instant};

use super::wire::Node;
use crate::entries::Handle;

/// The handle of etcd's v2 API on an entry: which state of it we know, and the time it was given.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    /// Index of the last write, a refresh being one.
    pub(super) modified: i64,
    /// None: a reservation.
    pub(super) grant: Option<Grant>,
}

/// A grant of time. The API has no name for one; the moment at which it ends, to the nanosecond by the clock of the member that
/// wrote it, is as good.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grant {
    id: u64,
    /// By our clock, and not too late.
    pub(super) ends: Instant,
}

impl PartialEq for Stamp {
    fn eq(&self, other: &Stamp) -> bool {
        self.modified == other.modified && self.shares_life(other)
    }
}

impl Eq for Stamp {}

impl Handle for Stamp {
    fn is_reservation(&self) -> bool {
        self.grant.is_none()
    }

    fn shares_life(&self, other: &Stamp) -> bool {
        self.grant.map(|grant| grant.id) == other.grant.map(|grant| grant.id)
    }
}

impl Stamp {
    /// That of a node that was asked for at this time.
    pub(super) fn of(node: &Node<'_>, asked: Instant) -> Stamp {
        // It is rounded up.
        Stamp::ending(node, asked + seconds(node.ttl.saturating_sub(1)))
    }

    /// That of a node that was given so many seconds by a request sent at this time.
    pub(super) fn granted(node: &Node<'_>, asked: Instant, ttl: Option<i64>) -> Stamp {
        Stamp::ending(node, asked + seconds(ttl.unwrap_or_default()))
    }

    fn ending(node: &Node<'_>, ends: Instant) -> Stamp {
        let given = !node.expiration.is_empty();
        Stamp {
            modified: node.modified_index,
            grant: given.then(|| Grant {
                id: fnv1a(node.expiration.as_bytes()),
                ends,
            }),
        }
    }

    /// When it ends; `None`: never.
    pub(super) fn ends(&self) -> Option<Instant> {
        self.grant.map(|grant| grant.ends)
    }

    /// Tells one history of the store from another.
    pub(super) fn digest(&self) -> u64 {
        self.grant.map_or(0, |grant| grant.id)
    }
}

/// A server that promises more than a hundred years is taken at that.
fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0).min(100 * 366 * 86_400))
}
