//! The store against the simplest thing that could be right: a copy of all rows for every revision.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use etcd_proto::etcdserverpb as pb;
use etcd_proto::etcdserverpb::request_op::Request;
use etcd_proto::mvccpb::KeyValue;
use proptest::prelude::*;

use super::{Closed, Opened, Store, Writer};
use crate::refusal::Refusal;

type Rows = BTreeMap<Vec<u8>, KeyValue>;

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8, bool),
    Delete(u8, u8),
    /// Puts and a deletion of other keys, in one revision.
    Both(u8, u8, u8),
    Grant,
    Revoke,
    /// So many revisions back.
    Compact(i64),
    /// Stop and open again: all that counts is on the disk.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..6u8;
    prop_oneof![
        6 => (key.clone(), any::<u8>(), any::<bool>()).prop_map(|(key, value, leased)| Step::Put(key, value, leased)),
        2 => (key.clone(), key.clone()).prop_map(|(from, to)| Step::Delete(from, to)),
        2 => (key.clone(), key, any::<u8>()).prop_map(|(put, delete, value)| Step::Both(put, delete, value)),
        1 => Just(Step::Grant),
        1 => Just(Step::Revoke),
        1 => (0..6i64).prop_map(Step::Compact),
        1 => Just(Step::Reopen),
    ]
}

/// Every revision's rows since 1, and the lease's state.
#[derive(Debug)]
struct Model {
    revisions: BTreeMap<i64, Rows>,
    compacted: i64,
    leased: bool,
}

const LEASE: i64 = 7;

impl Model {
    fn new() -> Model {
        Model {
            revisions: BTreeMap::from([(1, Rows::new())]),
            compacted: -1,
            leased: false,
        }
    }

    fn newest(&self) -> (i64, Rows) {
        let (revision, rows) = self.revisions.last_key_value().expect("revision 1");
        (*revision, rows.clone())
    }

    fn change(&mut self, change: impl FnOnce(i64, &mut Rows)) {
        let (revision, before) = self.newest();
        let mut rows = before.clone();
        change(revision + 1, &mut rows);
        if rows != before {
            self.revisions.insert(revision + 1, rows);
        }
    }

    fn put(rows: &mut Rows, revision: i64, key: &[u8], value: u8, lease: i64) {
        let before = rows.get(key);
        let row = KeyValue {
            key: key.to_vec(),
            create_revision: before.map_or(revision, |row| row.create_revision),
            mod_revision: revision,
            version: before.map_or(0, |row| row.version) + 1,
            value: vec![value],
            lease,
        };
        rows.insert(key.to_vec(), row);
    }

    /// The changes that lead to `revision`: keys put and keys gone.
    fn events(&self, revision: i64) -> Vec<(Vec<u8>, bool)> {
        let (before, after) = (&self.revisions[&(revision - 1)], &self.revisions[&revision]);
        let gone = before
            .keys()
            .filter(|key| !after.contains_key(*key))
            .map(|key| (key.clone(), true));
        let put = after
            .iter()
            .filter(|(_, row)| row.mod_revision == revision)
            .map(|(key, _)| (key.clone(), false));
        gone.chain(put).collect()
    }
}

fn key(number: u8) -> Vec<u8> {
    vec![b'k', number]
}

struct Tested {
    store: Arc<Store>,
    writer: Writer,
    closed: Closed,
}

impl Tested {
    fn open(dir: &Path) -> Tested {
        let Opened {
            store,
            writer,
            closed,
        } = Store::open(dir).expect("the store opens");
        Tested {
            store,
            writer,
            closed,
        }
    }

    async fn close(self) {
        let Tested {
            store,
            writer,
            closed,
        } = self;
        writer.stop().await.expect("a clean stop");
        drop(store);
        closed.wait().await;
    }

    async fn take(&self, step: &Step, model: &mut Model) {
        let put = |number: u8, value: u8, lease| pb::PutRequest {
            key: key(number),
            value: vec![value],
            lease,
            ..Default::default()
        };
        match *step {
            Step::Put(number, value, leased) => {
                let lease = if leased { LEASE } else { 0 };
                let reply = self.writer.put(put(number, value, lease)).await;
                if leased && !model.leased {
                    assert_eq!(reply.expect_err("no such lease"), Refusal::LeaseNotFound);
                    return;
                }
                model.change(|revision, rows| Model::put(rows, revision, &key(number), value, lease));
                assert_eq!(
                    reply.expect("a put").header.expect("a header").revision,
                    model.newest().0
                );
            }
            Step::Delete(from, to) => {
                let request = pb::DeleteRangeRequest {
                    key: key(from),
                    range_end: key(to),
                    ..Default::default()
                };
                let reply = self.writer.delete(request).await.expect("a deletion");
                let before = model.newest().1.len();
                model.change(|_, rows| rows.retain(|k, _| !(*k >= key(from) && *k < key(to))));
                assert_eq!(
                    usize::try_from(reply.deleted),
                    Ok(before - model.newest().1.len())
                );
            }
            Step::Both(number, gone, value) => {
                let delete = pb::DeleteRangeRequest {
                    key: key(gone),
                    ..Default::default()
                };
                let ops = [
                    Request::RequestDeleteRange(delete),
                    Request::RequestPut(put(number, value, 0)),
                ];
                let success = ops.map(|op| pb::RequestOp { request: Some(op) }).to_vec();
                let reply = self
                    .writer
                    .txn(pb::TxnRequest {
                        success,
                        ..Default::default()
                    })
                    .await;
                if number == gone {
                    assert_eq!(reply.expect_err("one key twice"), Refusal::DuplicateKey);
                    return;
                }
                model.change(|revision, rows| {
                    rows.remove(&key(gone));
                    Model::put(rows, revision, &key(number), value, 0);
                });
                reply.expect("a transaction");
            }
            Step::Grant => {
                let reply = self
                    .writer
                    .grant(pb::LeaseGrantRequest { ttl: 1000, id: LEASE })
                    .await;
                assert_eq!(reply.is_ok(), !model.leased);
                model.leased = true;
            }
            Step::Revoke => {
                let reply = self.writer.revoke(pb::LeaseRevokeRequest { id: LEASE }).await;
                assert_eq!(reply.is_ok(), model.leased);
                model.leased = false;
                model.change(|_, rows| rows.retain(|_, row| row.lease != LEASE));
            }
            Step::Compact(back) => {
                let revision = model.newest().0 - back;
                let request = pb::CompactionRequest {
                    revision,
                    physical: back % 2 == 0,
                };
                let reply = self.writer.compact(request).await;
                assert_eq!(reply.is_ok(), revision > model.compacted);
                model.compacted = model.compacted.max(revision);
            }
            Step::Reopen => {}
        }
    }

    fn verify(&self, model: &Model) {
        let all = |revision| pb::RangeRequest {
            key: vec![0],
            range_end: vec![0],
            revision,
            ..Default::default()
        };
        let newest = model.newest().0;
        for (revision, rows) in &model.revisions {
            let read = self.store.range(&all(*revision));
            if *revision < model.compacted {
                assert_eq!(read.expect_err("compacted"), Refusal::Compacted);
                continue;
            }
            let read = read.expect("a read");
            assert_eq!(
                read.kvs,
                rows.values().cloned().collect::<Vec<_>>(),
                "at revision {revision}"
            );
            assert_eq!(read.header.expect("a header").revision, newest);
        }
        assert_eq!(
            self.store.range(&all(newest + 1)).expect_err("the future"),
            Refusal::FutureRevision
        );

        let mut next = model.compacted.max(2);
        while next <= newest {
            let (revisions, last) = self.store.revisions(next).expect("the history");
            for revision in revisions {
                let mut seen: Vec<_> = revision
                    .changes
                    .iter()
                    .map(|change| (change.row.key.clone(), change.tombstone))
                    .collect();
                seen.sort();
                let mut expected = model.events(revision.main);
                expected.sort();
                assert_eq!((revision.main, seen), (next, expected));
                next += 1;
            }
            assert_eq!(last + 1, next, "no revision is left out");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_revision_when_read_again_is_what_was_written(steps in prop::collection::vec(step(), 1..60)) {
        let dir = tempfile::TempDir::new().expect("a directory");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut model = Model::new();
            let mut tested = Tested::open(dir.path());
            for step in &steps {
                tested.take(step, &mut model).await;
                if matches!(step, Step::Reopen) {
                    tested.close().await;
                    tested = Tested::open(dir.path());
                    tested.verify(&model);
                }
            }
            tested.verify(&model);
            tested.close().await;
        });
    }
}
