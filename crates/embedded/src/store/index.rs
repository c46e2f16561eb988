//! Which key had which versions when: in memory, rebuilt from the disk at start. The newest row of each live key
//! is kept here too, so that reading the present touches no disk; older rows are read from the disk by revision.

use std::collections::BTreeMap;
use std::sync::Arc;

use etcd_proto::mvccpb::KeyValue;

use super::span::Span;

/// A point in the store's history: the revision of the transaction and the place inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// The store revision, counted up by one per writing transaction.
    pub main: i64,
    /// The position of the change inside its transaction, from 0.
    pub sub: i64,
}

/// One version of one key.
#[derive(Debug, Clone)]
struct Version {
    at: At,
    /// The key is absent from here on.
    tombstone: bool,
    /// INVARIANT: the newest version, unless a tombstone, and every version that is not on the disk yet, has
    /// its row here.
    row: Option<Arc<KeyValue>>,
}

/// Where a row of the past is found.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// In memory.
    Row(Arc<KeyValue>),
    /// On the disk, under this point in history.
    Stored(At),
}

/// All keys with their versions since the last compaction, oldest first.
#[derive(Debug, Default)]
pub struct Index {
    keys: BTreeMap<Box<[u8]>, Vec<Version>>,
}

impl Index {
    /// Appends a version; `row` is `None` for a deletion. `at` must be later than every version of the key.
    pub fn push(&mut self, key: &[u8], at: At, row: Option<Arc<KeyValue>>) {
        let version = Version {
            at,
            tombstone: row.is_none(),
            row,
        };
        match self.keys.get_mut(key) {
            Some(versions) => versions.push(version),
            None => {
                self.keys.insert(key.into(), vec![version]);
            }
        }
    }

    /// Takes the newest version of `key` back: undoing a transaction that cannot be finished.
    pub fn pop(&mut self, key: &[u8]) {
        if let Some(versions) = self.keys.get_mut(key) {
            versions.pop();
            if versions.is_empty() {
                self.keys.remove(key);
            }
        }
    }

    /// The newest row of `key`, if the key is live, and the point of its version.
    pub fn newest(&self, key: &[u8]) -> Option<(At, &Arc<KeyValue>)> {
        let version = self.keys.get(key)?.last()?;
        version.row.as_ref().map(|row| (version.at, row))
    }

    /// `key` as of revision `main`.
    pub fn get(&self, key: &[u8], main: i64) -> Option<Found> {
        as_of(self.keys.get(key)?, main)
    }

    /// The live keys of `span` as of revision `main`, in key order.
    pub fn range(&self, span: &Span, main: i64) -> impl Iterator<Item = (&[u8], Found)> {
        let bounds = span.bounds();
        bounds.into_iter().flat_map(move |bounds| {
            self.keys
                .range::<[u8], _>(bounds)
                .filter_map(move |(key, versions)| as_of(versions, main).map(|found| (&**key, found)))
        })
    }

    /// How many keys of `span` are live as of revision `main`.
    pub fn count(&self, span: &Span, main: i64) -> usize {
        let Some(bounds) = span.bounds() else { return 0 };
        self.keys
            .range::<[u8], _>(bounds)
            .filter(|(_, versions)| is_live(versions, main))
            .count()
    }

    /// Drops the row kept for an older version, once it is on the disk.
    pub fn drop_row(&mut self, key: &[u8], at: At) {
        let Some(versions) = self.keys.get_mut(key) else {
            return;
        };
        let newest = versions.last().map(|version| version.at);
        if newest != Some(at)
            && let Ok(place) = versions.binary_search_by_key(&at, |version| version.at)
            && let Some(version) = versions.get_mut(place)
        {
            version.row = None;
        }
    }

    /// Forgets what no reader at `main` or later can see, and says which rows may leave the disk.
    /// What happened *at* `main` is kept, deletions too: a watch may start there.
    pub fn compact(&mut self, main: i64) -> Vec<At> {
        let mut dropped = Vec::new();
        self.keys.retain(|_, versions| {
            let until = versions.partition_point(|version| version.at.main <= main);
            let mut place = 0;
            versions.retain(|version| {
                let last_visible = place + 1 == until;
                let keep = place >= until || version.at.main == main || (last_visible && !version.tombstone);
                place += 1;
                if !keep {
                    dropped.push(version.at);
                }
                keep
            });
            !versions.is_empty()
        });
        dropped
    }
}

fn visible(versions: &[Version], main: i64) -> Option<&Version> {
    let until = versions.partition_point(|version| version.at.main <= main);
    versions.get(until.checked_sub(1)?)
}

fn is_live(versions: &[Version], main: i64) -> bool {
    visible(versions, main).is_some_and(|version| !version.tombstone)
}

fn as_of(versions: &[Version], main: i64) -> Option<Found> {
    let version = visible(versions, main)?;
    match &version.row {
        _ if version.tombstone => None,
        Some(row) => Some(Found::Row(row.clone())),
        None => Some(Found::Stored(version.at)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &str, main: i64) -> Option<Arc<KeyValue>> {
        Some(Arc::new(KeyValue {
            key: key.into(),
            mod_revision: main,
            ..Default::default()
        }))
    }

    fn at(main: i64) -> At {
        At { main, sub: 0 }
    }

    fn live(index: &Index, main: i64) -> Vec<(String, i64)> {
        index
            .range(&Span::new(b"\0", b"\0"), main)
            .map(|(key, found)| {
                let main = match found {
                    Found::Row(row) => row.mod_revision,
                    Found::Stored(at) => at.main,
                };
                (String::from_utf8_lossy(key).into_owned(), main)
            })
            .collect()
    }

    #[test]
    fn reading_the_past_when_keys_came_and_went_shows_what_was_live_then() {
        let mut index = Index::default();
        index.push(b"a", at(2), row("a", 2));
        index.push(b"b", at(3), row("b", 3));
        index.push(b"a", at(4), None);
        index.push(b"a", at(5), row("a", 5));
        assert_eq!(live(&index, 1), vec![]);
        assert_eq!(live(&index, 3), vec![("a".into(), 2), ("b".into(), 3)]);
        assert_eq!(live(&index, 4), vec![("b".into(), 3)]);
        assert_eq!(live(&index, 9), vec![("a".into(), 5), ("b".into(), 3)]);
        assert_eq!(index.count(&Span::new(b"a", b"b"), 4), 0);
    }

    #[test]
    fn compacting_when_a_deletion_is_older_drops_it_and_keeps_what_happened_at_the_revision() {
        let mut index = Index::default();
        index.push(b"a", at(2), row("a", 2));
        index.push(b"a", at(3), row("a", 3));
        index.push(b"b", at(4), row("b", 4));
        index.push(b"b", at(5), None);
        index.push(b"c", at(6), row("c", 6));
        index.push(b"c", at(7), None);
        assert_eq!(index.compact(7), vec![at(2), at(4), at(5), at(6)]);
        assert_eq!(live(&index, 7), vec![("a".into(), 3)]);
        index.push(b"d", at(8), row("d", 8));
        assert_eq!(index.compact(8), vec![at(7)]);
    }

    #[test]
    fn dropping_a_row_when_it_is_the_newest_keeps_it() {
        let mut index = Index::default();
        index.push(b"a", at(2), row("a", 2));
        index.push(b"a", at(3), row("a", 3));
        index.drop_row(b"a", at(2));
        index.drop_row(b"a", at(3));
        assert_eq!(index.get(b"a", 2), Some(Found::Stored(at(2))));
        assert!(matches!(index.get(b"a", 3), Some(Found::Row(_))));
    }
}
