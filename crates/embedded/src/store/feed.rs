//! From the writer to the watchers: recent revisions in memory, and who is to be told of what.
//!
//! The writer never waits for a watcher. Publishing only notes, for each watcher an event concerns, the first
//! revision it has not seen, and wakes its stream once; the stream reads the events itself, from here or, when it
//! has fallen behind, from the disk.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::span::Span;
use super::state::{Change, Revision};

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

#[cfg(test)]
mod tests {
    use super::*;

    use super::super::index::At;
    use etcd_proto::mvccpb::KeyValue;

    fn change(main: i64, key: &str, bytes: usize) -> Change {
        let row = KeyValue {
            key: key.into(),
            value: vec![0; bytes],
            mod_revision: main,
            ..Default::default()
        };
        Change {
            at: At { main, sub: 0 },
            tombstone: false,
            row: Arc::new(row),
            before: None,
        }
    }

    fn revision(main: i64, key: &str, bytes: usize) -> Revision {
        Revision {
            main,
            changes: vec![change(main, key, bytes)],
        }
    }

    fn read(feed: &Feed, from: i64, limit: usize) -> Option<Vec<i64>> {
        let revisions = feed.read(from, limit)?;
        Some(revisions.iter().map(|revision| revision.main).collect())
    }

    #[test]
    fn revisions_when_published_are_read_from_where_memory_reaches() {
        let feed = Feed::new(4);
        assert_eq!((feed.visible(), read(&feed, 5, 9)), (4, Some(vec![])));
        assert_eq!(read(&feed, 4, 9), None, "before this feed began");
        feed.publish((5..=9).map(|main| revision(main, "a", 1)).collect());
        assert_eq!(feed.visible(), 9);
        assert_eq!(read(&feed, 5, 9), Some(vec![5, 6, 7, 8, 9]));
        assert_eq!(read(&feed, 7, 2), Some(vec![7, 8]));
        assert_eq!((read(&feed, 10, 9), read(&feed, 4, 9)), (Some(vec![]), None));
    }

    #[test]
    fn memory_when_there_is_more_keeps_the_newest_changes_and_bytes() {
        let feed = Feed::new(1);
        let most = i64::try_from(RECENT_CHANGES).unwrap();
        feed.publish((2..most + 2).map(|main| revision(main, "a", 1)).collect());
        assert!(read(&feed, 2, 1).is_some());
        feed.publish(vec![revision(most + 2, "a", 1)]);
        assert_eq!((read(&feed, 2, 1), read(&feed, 3, 1)), (None, Some(vec![3])));
        // So many bytes, their keys counted, and one more.
        let feed = Feed::new(1);
        let half = RECENT_BYTES / 2 - 1;
        feed.publish(vec![revision(2, "a", half), revision(3, "a", half)]);
        assert_eq!(read(&feed, 2, 9), Some(vec![2, 3]));
        feed.publish(vec![revision(4, "a", 0)]);
        assert_eq!((read(&feed, 2, 9), read(&feed, 3, 9)), (None, Some(vec![3, 4])));
        feed.publish(vec![revision(5, "a", half)]);
        assert_eq!(
            (read(&feed, 3, 9), read(&feed, 4, 9)),
            (None, Some(vec![4, 5])),
            "what has gone counts no more"
        );
        let mut large = revision(6, "a", 10);
        large.changes[0].before = Some((At { main: 5, sub: 0 }, change(5, "key", 100).row));
        assert_eq!(weight(&large), 1 + 10 + 3 + 100);
    }

    #[test]
    fn watchers_when_something_concerns_them_are_due_once_until_they_have_looked() {
        let feed = Feed::new(5);
        let inbox = Arc::new(Inbox::default());
        let watch =
            |id, key: &[u8], end: &[u8], start| feed.watch(id, Span::new(key, end), start, inbox.clone());
        let (one, visible) = watch(1, b"a", b"", 0);
        let (range, _) = watch(2, b"b", b"d", 0);
        let (late, _) = watch(3, b"z", b"", 5);
        let (future, _) = watch(4, b"z", b"", 6);
        assert_eq!(
            (visible, inbox.next(), late.take_pending(), future.take_pending()),
            (5, Some(3), 5, 0)
        );
        assert!(inbox.is_empty());
        feed.publish(vec![revision(6, "a", 1), revision(7, "a", 1)]);
        assert_eq!((inbox.next(), inbox.next()), (Some(1), None));
        assert_eq!((one.take_pending(), one.take_pending()), (6, 0));
        feed.publish(vec![revision(8, "c", 1), revision(9, "d", 1)]);
        assert_eq!(
            (inbox.next(), inbox.next(), range.take_pending()),
            (Some(2), None, 8)
        );
        feed.unwatch(&one);
        feed.unwatch(&range);
        feed.publish(vec![revision(10, "a", 1), revision(11, "c", 1)]);
        assert!(inbox.is_empty());
        let (again, _) = watch(5, b"a", b"", 0);
        let (other, _) = watch(6, b"a", b"", 0);
        feed.unwatch(&again);
        feed.publish(vec![revision(12, "a", 1)]);
        assert_eq!(
            (inbox.next(), other.take_pending(), again.take_pending()),
            (Some(6), 12, 0)
        );
    }

    #[tokio::test]
    async fn inbox_when_it_is_waited_for_wakes_who_waits() {
        let inbox = Arc::new(Inbox::default());
        let waiting = tokio::spawn({
            let inbox = inbox.clone();
            async move { inbox.filled().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        inbox.push(7);
        waiting.await.unwrap();
        assert_eq!(inbox.next(), Some(7));
    }
}
