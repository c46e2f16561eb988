//! The same calls to our server and to a real etcd, replies compared field by field.

use etcd_proto::etcdserverpb as pb;
use etcd_proto::etcdserverpb::compare::TargetUnion;
use etcd_proto::etcdserverpb::request_op::Request;
use tempfile::TempDir;
use tonic::{Response, Status};

use crate::rig::{Clients, Ours, Process, Random};

/// One call of the unary API, or one message of the keep-alive stream.
#[derive(Debug, Clone)]
pub enum Call {
    Range(pb::RangeRequest),
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    Grant(pb::LeaseGrantRequest),
    Revoke(pb::LeaseRevokeRequest),
    TimeToLive(pb::LeaseTimeToLiveRequest),
    Leases,
    KeepAlive(i64),
}

/// Text of the reply with everything taken out that may differ: who answers, the raft term, and how much of a
/// second has gone.
pub async fn reply(clients: &mut Clients, call: Call) -> String {
    match call {
        Call::Range(call) => shown(clients.kv.range(call).await, |reply| plain(&mut reply.header)),
        Call::Put(call) => shown(clients.kv.put(call).await, |reply| plain(&mut reply.header)),
        Call::Delete(call) => shown(clients.kv.delete_range(call).await, |reply| {
            plain(&mut reply.header)
        }),
        Call::Txn(call) => shown(clients.kv.txn(call).await, |reply| plain(&mut reply.header)),
        Call::Compact(call) => shown(clients.kv.compact(call).await, |reply| plain(&mut reply.header)),
        Call::Grant(call) => shown(clients.lease.lease_grant(call).await, |reply| {
            plain(&mut reply.header)
        }),
        Call::Revoke(call) => shown(clients.lease.lease_revoke(call).await, |reply| {
            plain(&mut reply.header)
        }),
        Call::TimeToLive(call) => shown(clients.lease.lease_time_to_live(call).await, |reply| {
            plain(&mut reply.header);
            reply.keys.sort();
            // Both count whole seconds of hundreds; the calls are milliseconds apart.
            reply.ttl = if reply.ttl >= 0 {
                (reply.ttl + 50) / 100 * 100
            } else {
                reply.ttl
            };
        }),
        Call::Leases => shown(
            clients.lease.lease_leases(pb::LeaseLeasesRequest {}).await,
            |reply| {
                plain(&mut reply.header);
                reply.leases.sort_by_key(|lease| lease.id);
            },
        ),
        Call::KeepAlive(id) => {
            let requests = tokio_stream::iter([pb::LeaseKeepAliveRequest { id }]);
            match clients.lease.lease_keep_alive(requests).await {
                Err(status) => failed(&status),
                Ok(stream) => match stream.into_inner().message().await {
                    Ok(Some(mut reply)) => {
                        plain(&mut reply.header);
                        format!("{reply:?}")
                    }
                    other => format!("{other:?}"),
                },
            }
        }
    }
}

fn shown<T: std::fmt::Debug>(result: Result<Response<T>, Status>, clean: impl FnOnce(&mut T)) -> String {
    match result {
        Ok(reply) => {
            let mut reply = reply.into_inner();
            clean(&mut reply);
            format!("{reply:?}")
        }
        Err(status) => failed(&status),
    }
}

fn failed(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

pub fn plain(header: &mut Option<pb::ResponseHeader>) {
    if let Some(header) = header {
        (header.cluster_id, header.member_id, header.raft_term) = (0, 0, 0);
    }
}

/// Both servers, fed alike.
pub struct Pair {
    pub ours: Clients,
    pub etcd: Clients,
    server: Ours,
    _process: Process,
    _dir: TempDir,
}

impl Pair {
    pub async fn start() -> Pair {
        let dir = TempDir::new().expect("a directory");
        let (server, process) = (Ours::start(dir.path()).await, Process::etcd().await);
        let (ours, etcd) = (
            Clients::connect(&server.url).await,
            Clients::connect(&process.url).await,
        );
        Pair {
            ours,
            etcd,
            server,
            _process: process,
            _dir: dir,
        }
    }

    /// Gives both the call; the reply, which must be the same.
    pub async fn call(&mut self, call: Call) -> String {
        let ours = reply(&mut self.ours, call.clone()).await;
        let etcd = reply(&mut self.etcd, call.clone()).await;
        assert_eq!(ours, etcd, "left ours, right etcd, for {call:?}");
        ours
    }

    pub async fn stop(self) {
        self.server.stop().await;
    }
}

pub fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    }
}

pub fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(request),
    }
}

fn delete(key: &str, range_end: &str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        prev_kv: true,
    }
}

fn range(key: &str, range_end: &str) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        ..Default::default()
    }
}

fn then(ops: Vec<pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest {
        success: ops,
        ..Default::default()
    }
}

#[tokio::test]
async fn every_error_case_when_given_to_both_is_answered_alike() {
    let mut pair = Pair::start().await;
    let big = "x".repeat(1_600_000);
    let many = |count: usize| {
        (0..count)
            .map(|i| op(Request::RequestPut(put(&format!("k{i}"), ""))))
            .collect()
    };
    let nested = |txn: pb::TxnRequest| op(Request::RequestTxn(txn));
    let puts = |key: &str| op(Request::RequestPut(put(key, "v")));
    let deletes = |key: &str, end: &str| op(Request::RequestDeleteRange(delete(key, end)));
    let either = |success, failure| pb::TxnRequest {
        compare: vec![],
        success,
        failure,
    };
    let ignoring = |key: &str, value: &str, ignore_value, ignore_lease, lease| pb::PutRequest {
        ignore_value,
        ignore_lease,
        lease,
        ..put(key, value)
    };
    let at = |revision| pb::RangeRequest {
        revision,
        ..range("a", "")
    };
    let compact = |revision| {
        Call::Compact(pb::CompactionRequest {
            revision,
            physical: false,
        })
    };
    let grant = |id, ttl| Call::Grant(pb::LeaseGrantRequest { ttl, id });
    let calls = vec![
        Call::Range(range("", "")),
        Call::Put(put("", "v")),
        Call::Delete(delete("", "\0")),
        Call::Put(put("a", "1")),
        Call::Put(ignoring("a", "", true, false, 0)),
        Call::Put(ignoring("a", "v", true, false, 0)),
        Call::Put(ignoring("a", "v", false, true, 7)),
        Call::Put(ignoring("gone", "", true, false, 0)),
        Call::Put(ignoring("gone", "", true, false, 7)),
        Call::Put(pb::PutRequest {
            lease: 7,
            ..put("a", "2")
        }),
        Call::Put(put("big", &big)),
        Call::Txn(then(vec![op(Request::RequestPut(put("big", &big)))])),
        Call::Txn(then(many(128))),
        Call::Txn(then(many(129))),
        Call::Txn(then(vec![nested(then(many(127)))])),
        Call::Txn(then(vec![nested(then(many(128)))])),
        Call::Txn(then(vec![pb::RequestOp { request: None }])),
        Call::Txn(then(vec![puts("")])),
        Call::Txn(then(vec![puts("d"), puts("d")])),
        Call::Txn(then(vec![puts("d"), deletes("c", "e")])),
        Call::Txn(then(vec![deletes("d", ""), puts("d")])),
        Call::Txn(then(vec![deletes("a", "\0"), puts("d")])),
        Call::Txn(then(vec![puts("d"), puts("f"), deletes("e", "\0")])),
        Call::Txn(then(vec![puts("d"), deletes("z", "a")])),
        Call::Txn(then(vec![nested(either(vec![puts("x")], vec![puts("x")]))])),
        Call::Txn(then(vec![
            nested(then(vec![puts("x")])),
            nested(then(vec![puts("x")])),
        ])),
        Call::Txn(then(vec![nested(then(vec![puts("x")])), puts("x")])),
        Call::Txn(then(vec![nested(then(vec![deletes("x", "")])), puts("x")])),
        Call::Txn(then(vec![
            nested(then(vec![puts("x")])),
            nested(then(vec![deletes("x", "")])),
        ])),
        Call::Txn(then(vec![
            nested(then(vec![deletes("x", "")])),
            nested(then(vec![deletes("a", "\0")])),
        ])),
        Call::Txn(either(vec![], vec![puts("x"), puts("x")])),
        Call::Txn(then(vec![op(Request::RequestPut(ignoring(
            "gone", "", true, false, 0,
        )))])),
        Call::Txn(then(vec![op(Request::RequestPut(ignoring(
            "gone", "", true, false, 9,
        )))])),
        Call::Txn(then(vec![op(Request::RequestRange(at(9999)))])),
        Call::Txn(then(vec![op(Request::RequestRange(at(9999))), puts("y")])),
        Call::Txn(then(vec![op(Request::RequestRange(at(-5)))])),
        Call::Txn(then(vec![])),
        Call::Range(at(9999)),
        Call::Range(at(-1)),
        Call::Range(range("b", "a")),
        Call::Range(range("a", "a")),
        Call::Delete(delete("z", "a")),
        compact(-1),
        compact(9999),
        compact(3),
        compact(3),
        compact(2),
        Call::Range(at(2)),
        Call::Range(at(3)),
        Call::Txn(then(vec![op(Request::RequestRange(at(2)))])),
        Call::Txn(then(vec![op(Request::RequestRange(at(2))), puts("y")])),
        Call::TimeToLive(pb::LeaseTimeToLiveRequest { id: 0, keys: true }),
        Call::TimeToLive(pb::LeaseTimeToLiveRequest { id: 9, keys: true }),
        Call::Revoke(pb::LeaseRevokeRequest { id: 9 }),
        Call::KeepAlive(9),
        Call::Leases,
        grant(9, 9_000_000_001),
        grant(9, 9_000_000_000),
        grant(9, 1000),
        grant(-4, 1000),
        grant(10, 0),
        grant(11, -10),
        Call::KeepAlive(9),
        Call::Put(pb::PutRequest {
            lease: 9,
            ..put("leased", "1")
        }),
        Call::Put(pb::PutRequest {
            lease: 9,
            ..put("leased2", "1")
        }),
        Call::Put(ignoring("leased", "2", false, true, 0)),
        Call::TimeToLive(pb::LeaseTimeToLiveRequest { id: 9, keys: true }),
        Call::Revoke(pb::LeaseRevokeRequest { id: 9 }),
        Call::Range(range("leased", "m")),
    ];
    for call in calls {
        pair.call(call).await;
    }
    pair.stop().await;
}

const KEYS: [&str; 9] = ["a", "a/1", "a/2", "a/3", "b", "b/1", "c", "\u{7f}", "zz"];
const ENDS: [&str; 7] = ["", "", "\0", "b", "b0", "a/3", "a"];
const LEASES: [i64; 4] = [101, 102, 103, 104];

/// Calls drawn from a seed; it knows the newest revision roughly, to ask for past, present and future ones.
struct Draw {
    random: Random,
    revision: i64,
}

impl Draw {
    fn key(&mut self) -> Vec<u8> {
        self.random.pick(&KEYS).into()
    }

    fn end(&mut self) -> Vec<u8> {
        self.random.pick(&ENDS).into()
    }

    fn some_revision(&mut self) -> i64 {
        let back = i64::try_from(self.random.below(12)).expect("small");
        self.revision + 2 - back
    }

    fn put(&mut self, may_ignore: bool) -> pb::PutRequest {
        let ignore_value = may_ignore && self.random.chance(15);
        let ignore_lease = may_ignore && self.random.chance(15);
        let value = format!("v{}", self.random.below(4));
        let lease = self.random.pick(&[0, 0, 0, 101, 102, 103, 104]);
        pb::PutRequest {
            key: self.key(),
            value: if ignore_value && self.random.chance(90) {
                vec![]
            } else {
                value.into()
            },
            lease: if ignore_lease && self.random.chance(90) {
                0
            } else {
                lease
            },
            prev_kv: self.random.chance(50),
            ignore_value,
            ignore_lease,
        }
    }

    fn range(&mut self) -> pb::RangeRequest {
        let sorted = self.random.chance(40);
        let bounded = self.random.chance(25);
        let bound = |draw: &mut Draw| if bounded { draw.some_revision().max(0) } else { 0 };
        let (min_mod_revision, max_create_revision) = (bound(self), bound(self));
        let other = |draw: &mut Draw| {
            if draw.random.chance(10) {
                draw.some_revision().max(0)
            } else {
                0
            }
        };
        let (max_mod_revision, min_create_revision) = (other(self), other(self));
        pb::RangeRequest {
            key: self.key(),
            range_end: self.end(),
            limit: self.random.pick(&[0, 0, 0, 1, 2, 5, -1]),
            revision: if self.random.chance(30) {
                self.some_revision()
            } else {
                0
            },
            sort_order: if sorted { self.random.pick(&[0, 1, 2]) } else { 0 },
            sort_target: if sorted {
                self.random.pick(&[0, 1, 2, 3, 4])
            } else {
                0
            },
            serializable: self.random.chance(20),
            keys_only: self.random.chance(20),
            count_only: self.random.chance(10),
            min_mod_revision,
            max_mod_revision,
            min_create_revision,
            max_create_revision,
        }
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        let range_end = if self.random.chance(40) {
            self.end()
        } else {
            vec![]
        };
        pb::DeleteRangeRequest {
            key: self.key(),
            range_end,
            prev_kv: self.random.chance(50),
        }
    }

    fn compare(&mut self) -> pb::Compare {
        let small = i64::try_from(self.random.below(4)).expect("small");
        let (target, union) = match self.random.below(6) {
            0 => (0, Some(TargetUnion::Version(small))),
            1 => (1, Some(TargetUnion::CreateRevision(self.some_revision()))),
            2 => (2, Some(TargetUnion::ModRevision(self.some_revision()))),
            3 => (3, Some(TargetUnion::Value(format!("v{small}").into()))),
            4 => (4, Some(TargetUnion::Lease(self.random.pick(&[0, 101, 102])))),
            _ => (self.random.pick(&[0, 1, 2, 3, 4]), None),
        };
        let range_end = if self.random.chance(30) {
            self.end()
        } else {
            vec![]
        };
        let result = self.random.pick(&[0, 1, 2, 3]);
        pb::Compare {
            result,
            target,
            key: self.key(),
            range_end,
            target_union: union,
        }
    }

    fn compares(&mut self) -> Vec<pb::Compare> {
        (0..self.random.below(3)).map(|_| self.compare()).collect()
    }

    /// `deleting`: a real etcd panics on a put that keeps the value of a key deleted in the same transaction.
    fn ops(&mut self, depth: usize, deleting: bool) -> Vec<pb::RequestOp> {
        let count = self.random.below(4);
        let ops = (0..count).map(|_| {
            op(match self.random.below(if depth > 0 { 10 } else { 8 }) {
                0..=2 => Request::RequestRange(self.range()),
                3..=4 if deleting => Request::RequestDeleteRange(self.delete()),
                3..=7 => Request::RequestPut(self.put(!deleting)),
                _ => Request::RequestTxn(self.txn(depth - 1, deleting)),
            })
        });
        ops.collect()
    }

    fn txn(&mut self, depth: usize, deleting: bool) -> pb::TxnRequest {
        pb::TxnRequest {
            compare: self.compares(),
            success: self.ops(depth, deleting),
            failure: self.ops(depth, deleting),
        }
    }

    fn call(&mut self) -> Call {
        let lease = self.random.pick(&LEASES);
        match self.random.below(100) {
            0..=29 => Call::Put(self.put(true)),
            30..=49 => Call::Range(self.range()),
            50..=59 => Call::Delete(self.delete()),
            60..=81 => {
                let deleting = self.random.chance(50);
                Call::Txn(self.txn(2, deleting))
            }
            82..=87 => Call::Grant(pb::LeaseGrantRequest {
                ttl: self.random.pick(&[300, 600]),
                id: lease,
            }),
            88..=90 => Call::Revoke(pb::LeaseRevokeRequest { id: lease }),
            91..=93 => Call::TimeToLive(pb::LeaseTimeToLiveRequest {
                id: lease,
                keys: true,
            }),
            94..=95 => Call::KeepAlive(lease),
            96 => Call::Leases,
            _ => {
                let (revision, physical) = (self.some_revision() - 6, self.random.chance(50));
                Call::Compact(pb::CompactionRequest { revision, physical })
            }
        }
    }
}

#[tokio::test]
async fn random_calls_when_given_to_both_are_answered_alike() {
    for seed in [0x5eed_0001, 0x5eed_0002, 0x5eed_0003] {
        let mut pair = Pair::start().await;
        let mut draw = Draw {
            random: Random(seed),
            revision: 1,
        };
        for _ in 0..400 {
            let call = draw.call();
            pair.call(call).await;
            let header = pair
                .ours
                .kv
                .range(range("a", ""))
                .await
                .expect("a read")
                .into_inner()
                .header;
            draw.revision = header.expect("a header").revision;
        }
        assert!(
            draw.revision > 100,
            "the calls of seed {seed:x} hardly write: revision {}",
            draw.revision
        );
        pair.stop().await;
    }
}
