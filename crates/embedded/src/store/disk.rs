//! The file: three redb tables, and how the store is read back from them.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use etcd_proto::mvccpb::KeyValue;
use prost::Message as _;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::acknowledged::{Acknowledged, refuse_odd};
use super::index::{At, Index};
use super::lease::{Clock, Leases};

/// Every version of every key since the last compaction: (revision, place in the transaction) → tag byte
/// ([`PUT`] or [`TOMBSTONE`]) and an `mvccpb.KeyValue`.
pub const HISTORY: TableDefinition<(i64, i64), &[u8]> = TableDefinition::new("history");
/// Lease id → (seconds granted, deadline in milliseconds of the store's clock).
pub const LEASES: TableDefinition<i64, (i64, u64)> = TableDefinition::new("leases");
/// Single numbers by name: the constants below.
pub const META: TableDefinition<&str, i64> = TableDefinition::new("meta");

/// The newest store revision.
pub const REVISION: &str = "revision";
/// The last compaction's revision.
pub const COMPACTED: &str = "compacted";
/// The leases' clock, milliseconds.
pub const CLOCK: &str = "clock";
/// The store's file.
const STORE: &str = "registry.redb";
const FORMAT: &str = "format";
const FORMAT_NOW: i64 = 1;
const CLUSTER_ID: &str = "cluster-id";
const MEMBER_ID: &str = "member-id";

const PUT: u8 = 0;
const TOMBSTONE: u8 = 1;
/// redb's own cache; the newest rows are in memory anyway.
const CACHE_BYTES: usize = 4 << 20;

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be made or used.
    #[error("data directory {}: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process holds the file.
    #[error("data directory {}: another registry is running on it", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The directory belongs to a real etcd.
    #[error("data directory {}: it holds a real etcd's data (member/), not this registry's; name another", path.display())]
    RealEtcd {
        /// The directory.
        path: PathBuf,
    },
    /// The content is not what this program wrote.
    #[error("store {}: damaged or not a registry's ({reason}); move it away to start empty, or restore a copy", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Any other failure of the storage engine.
    #[error("store {}: {reason}", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// What the engine said.
        reason: String,
    },
}

/// All that is read back at start.
#[derive(Debug)]
pub struct Loaded {
    /// The open file.
    pub db: Database,
    /// Held for as long as the server runs.
    pub lock: File,
    /// Every key's versions.
    pub index: Index,
    /// Leases with their keys attached.
    pub leases: Leases,
    /// The newest revision.
    pub revision: i64,
    /// Commits that were acknowledged and are gone.
    pub lost: Option<Lost>,
    /// Where the newest revision is noted.
    pub acknowledged: Acknowledged,
    /// The last compaction, -1 = never.
    pub compacted: i64,
    /// The leases' clock, running.
    pub clock: Clock,
    /// Rows that a compaction meant to remove and did not get to.
    pub removable: Vec<At>,
    /// Chosen at random when the store was made.
    pub cluster_id: u64,
    /// Likewise.
    pub member_id: u64,
}

/// Commits that were acknowledged and are not in the store: its newer header was damaged, and the engine has gone on with the one
/// before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The newest revision that is there.
    pub kept: i64,
    /// The newest that was acknowledged; none up to it is given away again.
    pub acknowledged: i64,
}

/// Opens `dir`/registry.redb, making both where missing, and verifies every page's checksum.
pub fn open(dir: &Path) -> Result<Loaded, OpenError> {
    let directory_error = |source| OpenError::Directory {
        path: dir.to_owned(),
        source,
    };
    make_private_directory(dir).map_err(directory_error)?;
    if dir.join("member").is_dir() {
        return Err(OpenError::RealEtcd { path: dir.to_owned() });
    }
    for name in ["lock", STORE] {
        refuse_odd(dir, name).map_err(directory_error)?;
    }
    let lock = File::create(dir.join("lock")).map_err(directory_error)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path: dir.to_owned() }),
        Err(TryLockError::Error(error)) => return Err(directory_error(error)),
    }
    let path = dir.join(STORE);
    let opening = Opening { dir, path: &path };
    if !path.try_exists().map_err(directory_error)? {
        create(&opening)?;
    }
    let mut db = engine().open(&path).map_err(|error| opening.database(error))?;
    db.check_integrity().map_err(|error| opening.database(error))?;
    let (acknowledged, noted) = Acknowledged::open(dir).map_err(directory_error)?;
    let mut loaded = load(db, lock, acknowledged, &opening)?;
    if let Some(noted) = noted.filter(|noted| *noted > loaded.revision) {
        loaded.lost = Some(Lost {
            kept: loaded.revision,
            acknowledged: noted,
        });
        loaded.revision = noted;
    }
    Ok(loaded)
}

fn engine() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Makes the file under another name first: a process killed half-way leaves nothing that looks like a store.
fn create(opening: &Opening<'_>) -> Result<(), OpenError> {
    let directory_error = |source| OpenError::Directory {
        path: opening.dir.to_owned(),
        source,
    };
    let unfinished = opening.dir.join("registry.redb.new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(directory_error(error)),
        _ => {}
    }
    let db = engine()
        .create(&unfinished)
        .map_err(|error| opening.database(error))?;
    initialise(&db).map_err(|error| opening.failed(error))?;
    drop(db);
    fs::rename(&unfinished, opening.path).map_err(directory_error)?;
    File::open(opening.dir)
        .and_then(|dir| dir.sync_all())
        .map_err(directory_error)
}

struct Opening<'a> {
    dir: &'a Path,
    path: &'a Path,
}

impl Opening<'_> {
    fn database(&self, error: redb::DatabaseError) -> OpenError {
        let path = self.path.to_owned();
        match error {
            redb::DatabaseError::DatabaseAlreadyOpen => OpenError::InUse {
                path: self.dir.to_owned(),
            },
            redb::DatabaseError::Storage(redb::StorageError::Io(error))
                if error.kind() != std::io::ErrorKind::InvalidData =>
            {
                OpenError::Failed {
                    path,
                    reason: error.to_string(),
                }
            }
            other => OpenError::Damaged {
                path,
                reason: other.to_string(),
            },
        }
    }

    fn failed(&self, error: impl Into<redb::Error>) -> OpenError {
        let path = self.path.to_owned();
        match error.into() {
            redb::Error::Io(error) => OpenError::Failed {
                path,
                reason: error.to_string(),
            },
            other => OpenError::Damaged {
                path,
                reason: other.to_string(),
            },
        }
    }

    fn damaged(&self, reason: String) -> OpenError {
        OpenError::Damaged {
            path: self.path.to_owned(),
            reason,
        }
    }
}

fn make_private_directory(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn initialise(db: &Database) -> Result<(), redb::Error> {
    let txn = db.begin_write()?;
    {
        txn.open_table(HISTORY)?;
        txn.open_table(LEASES)?;
        let mut meta = txn.open_table(META)?;
        meta.insert(FORMAT, FORMAT_NOW)?;
        meta.insert(REVISION, 1)?;
        meta.insert(CLUSTER_ID, random_id())?;
        meta.insert(MEMBER_ID, random_id())?;
    }
    txn.commit()?;
    Ok(())
}

/// A random positive number; uniqueness, not secrecy, is what ids need.
pub fn random_id() -> i64 {
    use std::hash::{BuildHasher as _, RandomState};
    let random = RandomState::new().hash_one(std::time::SystemTime::now());
    i64::try_from(random >> 1).unwrap_or(i64::MAX).max(1)
}

fn load(
    db: Database,
    lock: File,
    acknowledged: Acknowledged,
    opening: &Opening<'_>,
) -> Result<Loaded, OpenError> {
    let txn = db.begin_read().map_err(|error| opening.failed(error))?;
    let meta = txn.open_table(META).map_err(|error| opening.failed(error))?;
    let number = |name: &str| -> Result<Option<i64>, OpenError> {
        Ok(meta
            .get(name)
            .map_err(|error| opening.failed(error))?
            .map(|value| value.value()))
    };
    let required =
        |name: &str| number(name)?.ok_or_else(|| opening.damaged(format!("meta value {name} is missing")));
    let format = required(FORMAT)?;
    if format != FORMAT_NOW {
        return Err(opening.damaged(format!("format {format}, this program reads {FORMAT_NOW}")));
    }
    let revision = required(REVISION)?;
    let compacted = number(COMPACTED)?.unwrap_or(-1);
    let clock = Clock::resume(u64::try_from(number(CLOCK)?.unwrap_or(0)).unwrap_or(0));
    let cluster_id = required(CLUSTER_ID)?.unsigned_abs();
    let member_id = required(MEMBER_ID)?.unsigned_abs();

    let mut leases = Leases::default();
    let now_ms = clock.now_ms();
    let table = txn.open_table(LEASES).map_err(|error| opening.failed(error))?;
    for row in table.iter().map_err(|error| opening.failed(error))? {
        let (id, terms) = row.map_err(|error| opening.failed(error))?;
        let (ttl, deadline_ms) = terms.value();
        leases.restore(id.value(), ttl, deadline_ms, now_ms);
    }

    let mut index = Index::default();
    let table = txn.open_table(HISTORY).map_err(|error| opening.failed(error))?;
    for row in table.iter().map_err(|error| opening.failed(error))? {
        let (at, bytes) = row.map_err(|error| opening.failed(error))?;
        let (main, sub) = at.value();
        let at = At { main, sub };
        if main > revision {
            return Err(opening.damaged(format!("history reaches revision {main}, beyond {revision}")));
        }
        let (tombstone, row) = decode(bytes.value())
            .map_err(|reason| opening.damaged(format!("revision {main}.{sub}: {reason}")))?;
        let replaced = index.newest(&row.key).map(|(at, row)| (at, row.lease));
        if let Some((_, lease)) = replaced {
            leases.detach(lease, &row.key);
        }
        let key = row.key.clone();
        if tombstone {
            index.push(&key, at, None);
        } else {
            leases.attach(row.lease, &key);
            index.push(&key, at, Some(Arc::new(row)));
        }
        if let Some((at, _)) = replaced {
            index.drop_row(&key, at);
        }
    }
    let removable = index.compact(compacted);
    drop(table);
    drop(meta);
    drop(txn);
    Ok(Loaded {
        db,
        lock,
        index,
        leases,
        revision,
        lost: None,
        acknowledged,
        compacted,
        clock,
        removable,
        cluster_id,
        member_id,
    })
}

/// A row as it is kept on the disk.
pub fn encode(tombstone: bool, row: &KeyValue) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + row.encoded_len());
    bytes.push(if tombstone { TOMBSTONE } else { PUT });
    row.encode_raw(&mut bytes);
    bytes
}

/// The reverse of [`encode`]: whether it is a tombstone, and the row.
pub fn decode(bytes: &[u8]) -> Result<(bool, KeyValue), String> {
    let (tag, rest) = bytes.split_first().ok_or("an empty row")?;
    let row = KeyValue::decode(rest).map_err(|error| error.to_string())?;
    match *tag {
        PUT => Ok((false, row)),
        TOMBSTONE => Ok((true, row)),
        other => Err(format!("row tag {other}, expected {PUT} or {TOMBSTONE}")),
    }
}
