//! Reading older rows from the disk.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use etcd_proto::mvccpb::KeyValue;
use redb::{Database, ReadOnlyTable, ReadableDatabase as _};

use super::disk::{HISTORY, decode};
use super::index::At;
use crate::refusal::Refusal;

/// The open file, shared by the writer and every reader.
#[derive(Debug)]
pub struct Disk {
    /// Exclusive only while defragmenting.
    db: RwLock<Database>,
}

impl Disk {
    /// Takes over the file.
    pub fn new(db: Database) -> Disk {
        Disk { db: RwLock::new(db) }
    }

    /// The file, for reading and writing.
    pub fn shared(&self) -> RwLockReadGuard<'_, Database> {
        self.db.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file for one user alone.
    pub fn exclusive(&self) -> RwLockWriteGuard<'_, Database> {
        self.db.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A view of the rows that are on the disk now.
    pub fn history(&self) -> Result<History, Refusal> {
        let txn = self.shared().begin_read().map_err(storage)?;
        Ok(History {
            table: txn.open_table(HISTORY).map_err(storage)?,
        })
    }
}

/// The engine's failure as a refusal.
pub fn storage(error: impl Into<redb::Error>) -> Refusal {
    Refusal::Storage(error.into().to_string())
}

/// Rows as of one commit.
pub struct History {
    table: ReadOnlyTable<(i64, i64), &'static [u8]>,
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("History").finish_non_exhaustive()
    }
}

/// One change as it is on the disk.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredChange {
    /// When.
    pub at: At,
    /// The key went away; of `row` only the key is set.
    pub tombstone: bool,
    /// What the key became.
    pub row: KeyValue,
}

impl History {
    /// One row.
    pub fn row(&self, at: At) -> Result<Arc<KeyValue>, Refusal> {
        let bytes = self
            .table
            .get((at.main, at.sub))
            .map_err(storage)?
            .ok_or(Refusal::Compacted)?;
        let (_, row) = decode(bytes.value()).map_err(Refusal::Storage)?;
        Ok(Arc::new(row))
    }

    /// The changes of revisions `from` to `to`, both included, in order.
    pub fn changes(
        &self,
        from: i64,
        to: i64,
    ) -> Result<impl Iterator<Item = Result<StoredChange, Refusal>>, Refusal> {
        let rows = self.table.range((from, 0)..=(to, i64::MAX)).map_err(storage)?;
        Ok(rows.map(|row| {
            let (at, bytes) = row.map_err(storage)?;
            let (main, sub) = at.value();
            let (tombstone, row) = decode(bytes.value()).map_err(Refusal::Storage)?;
            Ok(StoredChange {
                at: At { main, sub },
                tombstone,
                row,
            })
        }))
    }
}
