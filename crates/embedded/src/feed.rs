//! From the writer to the watchers: recent revisions in memory, and who is to be told of what.
//!
//! The writer never waits for a watcher. Publishing only notes, for each watcher an event concerns, the first
//! revision it has not seen, and wakes its stream once; the stream reads the events itself, from here or, when it
//! has fallen behind, from the disk.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::store::{Change, Revision, Span};

/// Changes kept in memory: enough for watchers that keep up.
const RECENT_CHANGES: usize = 4096;
/// Nor more than this many bytes of keys and values, unless one revision alone is larger.
const RECENT_BYTES: usize = 4 << 20;

/// The watchers of one stream that have something to read.
#[derive(Debug, Default)]
pub struct Inbox {
    due: Mutex<VecDeque<i64>>,
    wake: Notify,
}

impl Inbox {
    /// The next watcher to serve, by its id.
    pub fn next(&self) -> Option<i64> {
        lock(&self.due).pop_front()
    }

    /// Whether no watcher is due.
    pub fn is_empty(&self) -> bool {
        lock(&self.due).is_empty()
    }

    /// Waits until a watcher is due; cancel-safe.
    pub async fn filled(&self) {
        while self.is_empty() {
            self.wake.notified().await;
        }
    }

    fn push(&self, id: i64) {
        lock(&self.due).push_back(id);
        self.wake.notify_one();
    }
}

/// One watcher as the feed knows it.
#[derive(Debug)]
pub struct Tap {
    id: i64,
    span: Span,
    inbox: Arc<Inbox>,
    /// First revision not read yet, 0 = none. INVARIANT: whoever changes it from 0 puts the id into the inbox.
    pending: AtomicI64,
}

impl Tap {
    /// The keys watched.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// Takes the note of what is to be read; call before asking the feed how far it is.
    pub fn take_pending(&self) -> i64 {
        self.pending.swap(0, Ordering::AcqRel)
    }

    /// Notes that everything from `main` on is to be read.
    pub fn note(&self, main: i64) {
        if self
            .pending
            .compare_exchange(0, main, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
        {
            self.inbox.push(self.id);
        }
    }
}

#[derive(Debug)]
struct Inner {
    /// The newest revision published.
    visible: i64,
    /// Without gaps, up to `visible`.
    recent: VecDeque<Arc<Revision>>,
    changes: usize,
    bytes: usize,
    /// Watchers of one key, by key: a write touches only those it concerns.
    singles: HashMap<Box<[u8]>, Vec<Arc<Tap>>>,
    ranges: Vec<Arc<Tap>>,
}

/// See the module's words.
#[derive(Debug)]
pub struct Feed {
    inner: Mutex<Inner>,
}

impl Feed {
    /// Begins after `visible`.
    pub fn new(visible: i64) -> Feed {
        let (recent, singles, ranges) = (VecDeque::new(), HashMap::new(), Vec::new());
        Feed {
            inner: Mutex::new(Inner {
                visible,
                recent,
                changes: 0,
                bytes: 0,
                singles,
                ranges,
            }),
        }
    }

    /// The newest revision published.
    pub fn visible(&self) -> i64 {
        lock(&self.inner).visible
    }

    /// Publishes revisions that are on the disk, in order and without gaps.
    pub fn publish(&self, revisions: Vec<Revision>) {
        let mut inner = lock(&self.inner);
        for revision in revisions {
            inner.tell(&revision);
            inner.visible = revision.main;
            inner.changes += revision.changes.len();
            inner.bytes += weight(&revision);
            inner.recent.push_back(Arc::new(revision));
        }
        while (inner.changes > RECENT_CHANGES || inner.bytes > RECENT_BYTES)
            && let Some(oldest) = inner.recent.pop_front()
        {
            inner.changes -= oldest.changes.len();
            inner.bytes -= weight(&oldest);
        }
    }

    /// Adds a watcher from `start` on (0 = from now on) and returns it with the newest revision at that moment.
    pub fn watch(&self, id: i64, span: Span, start: i64, inbox: Arc<Inbox>) -> (Arc<Tap>, i64) {
        let tap = Arc::new(Tap {
            id,
            span,
            inbox,
            pending: AtomicI64::new(0),
        });
        let mut inner = lock(&self.inner);
        match tap.span.single() {
            Some(key) => inner.singles.entry(key.into()).or_default().push(tap.clone()),
            None => inner.ranges.push(tap.clone()),
        }
        if start != 0 && start <= inner.visible {
            tap.note(start);
        }
        (tap, inner.visible)
    }

    /// Removes a watcher.
    pub fn unwatch(&self, tap: &Arc<Tap>) {
        let mut inner = lock(&self.inner);
        match tap.span.single() {
            Some(key) => {
                if let Some(taps) = inner.singles.get_mut(key) {
                    taps.retain(|other| !Arc::ptr_eq(other, tap));
                    if taps.is_empty() {
                        inner.singles.remove(key);
                    }
                }
            }
            None => inner.ranges.retain(|other| !Arc::ptr_eq(other, tap)),
        }
    }

    /// Revisions from `from` on, at most `limit` of them; `None` when memory does not reach that far back.
    pub fn read(&self, from: i64, limit: usize) -> Option<Vec<Arc<Revision>>> {
        let inner = lock(&self.inner);
        if from > inner.visible {
            return Some(Vec::new());
        }
        let first = inner.recent.front()?.main;
        let skip = usize::try_from(from.checked_sub(first)?).ok()?;
        Some(inner.recent.iter().skip(skip).take(limit).cloned().collect())
    }
}

impl Inner {
    fn tell(&self, revision: &Revision) {
        for change in &revision.changes {
            let key = change.row.key.as_slice();
            for tap in self.singles.get(key).into_iter().flatten() {
                tap.note(revision.main);
            }
        }
        for tap in &self.ranges {
            if revision
                .changes
                .iter()
                .any(|change| tap.span.contains(&change.row.key))
            {
                tap.note(revision.main);
            }
        }
    }
}

fn weight(revision: &Revision) -> usize {
    let of_row = |change: &Change| {
        let before = change
            .before
            .as_ref()
            .map_or(0, |(_, row)| row.value.len() + row.key.len());
        change.row.key.len() + change.row.value.len() + before
    };
    revision.changes.iter().map(of_row).sum()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
