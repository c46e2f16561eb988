//! Watches beside a real etcd: the same streams, the same events, in the same order, with the same answers.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_proto::etcdserverpb as pb;
use etcd_proto::etcdserverpb::request_op::Request;
use etcd_proto::etcdserverpb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use crate::differential::{Call, Pair, op, plain, put};
use crate::rig::{Clients, Ours, PATIENCE, Process};

/// One open stream.
pub struct Watching {
    requests: mpsc::Sender<pb::WatchRequest>,
    /// A real etcd answers the call itself only with the first response.
    opening: Option<JoinHandle<Result<Response<Streaming<pb::WatchResponse>>, Status>>>,
    responses: Option<Streaming<pb::WatchResponse>>,
}

impl Watching {
    pub fn open(clients: &Clients) -> Watching {
        let (requests, stream) = mpsc::channel(16);
        let mut client = clients.watch.clone();
        let opening = tokio::spawn(async move { client.watch(ReceiverStream::new(stream)).await });
        Watching {
            requests,
            opening: Some(opening),
            responses: None,
        }
    }

    pub async fn ask(&self, union: RequestUnion) {
        self.requests
            .send(pb::WatchRequest {
                request_union: Some(union),
            })
            .await
            .expect("an open stream");
    }

    pub async fn create(&self, request: pb::WatchCreateRequest) {
        self.ask(RequestUnion::CreateRequest(request)).await;
    }

    /// The next message, or how the stream ended.
    pub async fn message(&mut self) -> Result<Option<pb::WatchResponse>, Status> {
        if let Some(opening) = self.opening.take() {
            self.responses = Some(opening.await.expect("the call")?.into_inner());
        }
        self.responses.as_mut().expect("an open stream").message().await
    }

    /// The next response, cleaned of what may differ.
    pub async fn next(&mut self) -> pb::WatchResponse {
        let next = tokio::time::timeout(PATIENCE, self.message())
            .await
            .expect("a response in time");
        let mut response = next.expect("no error").expect("an open stream");
        plain(&mut response.header);
        response
    }

    /// Whether nothing comes for a while.
    pub async fn is_silent(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(300), self.message())
            .await
            .is_err()
    }

    /// Events by watcher until the watcher `sentinel` has seen `revision`. One revision's events never come in two
    /// responses of a watcher.
    pub async fn events_until(&mut self, sentinel: i64, revision: i64) -> BTreeMap<i64, Vec<String>> {
        let mut seen: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        let mut last = BTreeMap::new();
        loop {
            let response = self.next().await;
            let id = response.watch_id;
            let revisions = response
                .events
                .iter()
                .filter_map(|event| event.kv.as_ref())
                .map(|kv| kv.mod_revision);
            let (first, newest) = (revisions.clone().min(), revisions.max());
            if let (Some(first), Some(before)) = (first, last.get(&id)) {
                assert!(
                    first > *before,
                    "watcher {id} got revision {first} after {before}"
                );
            }
            if let Some(newest) = newest {
                last.insert(id, newest);
                let header = response.header.expect("a header").revision;
                assert!(header >= newest, "header {header} below its events {newest}");
            }
            seen.entry(id)
                .or_default()
                .extend(response.events.iter().map(|event| format!("{event:?}")));
            if id == sentinel && newest.is_some_and(|newest| newest >= revision) {
                return seen;
            }
        }
    }
}

fn watch(id: i64, key: &str, range_end: &str, start_revision: i64) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: key.into(),
        range_end: range_end.into(),
        start_revision,
        watch_id: id,
        ..Default::default()
    }
}

async fn create_on_both(
    ours: &mut Watching,
    etcd: &mut Watching,
    request: pb::WatchCreateRequest,
) -> pb::WatchResponse {
    ours.create(request.clone()).await;
    etcd.create(request.clone()).await;
    let (ours, etcd) = (ours.next().await, etcd.next().await);
    assert_eq!(ours, etcd, "left ours, right etcd, for {request:?}");
    ours
}

async fn busy_history(pair: &mut Pair) {
    let delete = |key: &str, end: &str| pb::DeleteRangeRequest {
        key: key.into(),
        range_end: end.into(),
        ..Default::default()
    };
    let grant = pb::LeaseGrantRequest { ttl: 500, id: 77 };
    pair.call(Call::Grant(grant)).await;
    pair.call(Call::Put(put("a/1", "one"))).await;
    pair.call(Call::Put(put("a/1", "two"))).await;
    pair.call(Call::Put(put("b", "one"))).await;
    pair.call(Call::Put(pb::PutRequest {
        lease: 77,
        ..put("a/2", "leased")
    }))
    .await;
    pair.call(Call::Put(pb::PutRequest {
        lease: 77,
        ..put("a/3", "leased")
    }))
    .await;
    pair.call(Call::Delete(delete("a/1", ""))).await;
    pair.call(Call::Delete(delete("nothing", ""))).await;
    pair.call(Call::Put(put("a/1", "again"))).await;
    let txn = pb::TxnRequest {
        success: vec![
            op(Request::RequestPut(put("a/4", "in txn"))),
            op(Request::RequestPut(put("b", "in txn"))),
            op(Request::RequestDeleteRange(delete("a/1", ""))),
        ],
        ..Default::default()
    };
    pair.call(Call::Txn(txn)).await;
    pair.call(Call::Revoke(pb::LeaseRevokeRequest { id: 77 })).await;
    pair.call(Call::Put(put("b", "last"))).await;
}

async fn revision(pair: &mut Pair) -> i64 {
    let reply = pair
        .ours
        .kv
        .range(pb::RangeRequest {
            key: b"a".to_vec(),
            ..Default::default()
        })
        .await;
    reply
        .expect("a read")
        .into_inner()
        .header
        .expect("a header")
        .revision
}

#[tokio::test]
async fn watchers_of_one_stream_when_keys_change_get_what_a_real_etcd_sends() {
    let mut pair = Pair::start().await;
    let (mut ours, mut etcd) = (Watching::open(&pair.ours), Watching::open(&pair.etcd));
    let prev = |request| pb::WatchCreateRequest {
        prev_kv: true,
        ..request
    };
    let without = |filter, request| pb::WatchCreateRequest {
        filters: vec![filter],
        ..request
    };
    for request in [
        prev(watch(0, "", "\0", 0)),
        watch(0, "a/1", "", 0),
        without(0, watch(9, "a/", "a0", 0)),
        without(1, prev(watch(0, "a/", "a0", 0))),
        watch(0, "b", "", 6),
        watch(9, "b", "", 0),
        watch(0, "b", "a", 0),
        watch(0, "b", "b", 0),
        watch(0, "", "", 0),
    ] {
        create_on_both(&mut ours, &mut etcd, request).await;
    }
    busy_history(&mut pair).await;
    // Only the first watcher sees this one: after it, all have had everything.
    pair.call(Call::Put(put("z", "sentinel"))).await;
    let newest = revision(&mut pair).await;
    let (seen, expected) = (
        ours.events_until(0, newest).await,
        etcd.events_until(0, newest).await,
    );
    assert!(
        expected.len() >= 4 && expected.values().flatten().count() > 15,
        "{expected:#?}"
    );
    assert_eq!(seen, expected, "left ours, right etcd");

    for (cancelled, answered) in [(9, true), (9, false), (1, true), (55, false)] {
        let request = RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: cancelled });
        ours.ask(request.clone()).await;
        etcd.ask(request).await;
        if answered {
            assert_eq!(
                ours.next().await,
                etcd.next().await,
                "the answer to cancelling {cancelled}"
            );
        }
    }
    for stream in [&ours, &etcd] {
        stream
            .ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}))
            .await;
    }
    assert_eq!(
        ours.next().await,
        etcd.next().await,
        "the answer to a progress request"
    );
    create_on_both(&mut ours, &mut etcd, watch(9, "a/1", "", 0)).await;
    create_on_both(&mut ours, &mut etcd, watch(0, "a/1", "", 0)).await;
    pair.call(Call::Put(put("a/1", "after"))).await;
    let (seen, expected) = (
        ours.events_until(0, newest + 1).await,
        etcd.events_until(0, newest + 1).await,
    );
    assert_eq!(seen.get(&0), expected.get(&0));
    assert!(!seen.contains_key(&1), "cancelled: {seen:?}");
    pair.stop().await;
}

#[tokio::test]
async fn watching_when_the_start_is_in_the_past_or_compacted_is_answered_as_a_real_etcd_does() {
    let mut pair = Pair::start().await;
    busy_history(&mut pair).await;
    let newest = revision(&mut pair).await;
    for compacted in [None, Some(4), Some(6), Some(newest)] {
        if let Some(revision) = compacted {
            pair.call(Call::Compact(pb::CompactionRequest {
                revision,
                physical: true,
            }))
            .await;
        }
        for start in 1..=newest {
            let (mut ours, mut etcd) = (Watching::open(&pair.ours), Watching::open(&pair.etcd));
            let request = pb::WatchCreateRequest {
                prev_kv: true,
                ..watch(0, "a", "c", start)
            };
            create_on_both(&mut ours, &mut etcd, request).await;
            if compacted.is_some_and(|compacted| start < compacted) {
                let (ours, etcd) = (ours.next().await, etcd.next().await);
                assert_eq!(ours, etcd, "from {start}, compacted at {compacted:?}");
                assert!(ours.canceled && ours.compact_revision == compacted.expect("compacted"));
                continue;
            }
            let (seen, expected) = (
                ours.events_until(0, newest).await,
                etcd.events_until(0, newest).await,
            );
            let (seen, mut expected) = (seen[&0].clone(), expected[&0].clone());
            // COMPAT: etcd 3.4 loses deletions that happened at exactly the compacted revision; ours does not.
            let lost = seen.len() - expected.len();
            if lost > 0 {
                assert_eq!(Some(start), compacted, "{seen:?}");
                expected.splice(0..0, seen[..lost].iter().cloned());
            }
            assert_eq!(seen, expected, "from {start}, compacted at {compacted:?}");
        }
    }
    pair.stop().await;
}

#[tokio::test]
async fn a_watcher_when_it_does_not_read_holds_up_no_writer_and_loses_nothing() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let server = Ours::start(dir.path()).await;
    let mut clients = Clients::connect(&server.url).await;
    let mut slow = Watching::open(&clients);
    slow.create(watch(0, "k", "l", 0)).await;
    assert!(slow.next().await.created);
    // More than all windows, queues and the feed's memory hold together.
    let value = "v".repeat(16 << 10);
    let count = 1500;
    for i in 0..count {
        let request = pb::PutRequest {
            value: value.clone().into(),
            ..put(&format!("k{}", i % 7), "")
        };
        tokio::time::timeout(PATIENCE, clients.kv.put(request))
            .await
            .expect("no writer waits")
            .expect("a put");
    }
    let seen = slow.events_until(0, 1 + count).await;
    assert_eq!(i64::try_from(seen[&0].len()), Ok(count));

    // Behind the last compaction it is told so, and only then.
    let mut late = Watching::open(&clients);
    late.create(watch(0, "k", "l", 2)).await;
    let compaction = pb::CompactionRequest {
        revision: count,
        physical: true,
    };
    assert!(late.next().await.created);
    let mut seen = 0;
    clients.kv.compact(compaction).await.expect("a compaction");
    let last = loop {
        let response = late.next().await;
        seen += i64::try_from(response.events.len()).expect("few");
        if response.canceled || seen == count {
            break response;
        }
    };
    assert!(
        last.canceled && last.compact_revision == count && seen < count,
        "{seen} events, then {last:?}"
    );
    server.stop().await;
}

#[tokio::test]
async fn a_stream_when_the_server_stops_ends_and_the_next_server_goes_on_from_its_revision() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let server = Ours::start(dir.path()).await;
    let mut clients = Clients::connect(&server.url).await;
    let mut stream = Watching::open(&clients);
    stream.create(watch(0, "k", "l", 0)).await;
    assert!(stream.next().await.created);
    clients.kv.put(put("k1", "before")).await.expect("a put");
    assert_eq!(stream.next().await.events.len(), 1);
    server.stop().await;
    let ended = tokio::time::timeout(PATIENCE, stream.message())
        .await
        .expect("an end in time");
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");

    let server = Ours::start(dir.path()).await;
    let mut clients = Clients::connect(&server.url).await;
    clients.kv.put(put("k2", "after")).await.expect("a put");
    let mut stream = Watching::open(&clients);
    stream.create(watch(0, "k", "l", 2)).await;
    assert!(stream.next().await.created);
    let seen = stream.events_until(0, 3).await;
    assert_eq!(seen[&0].len(), 2);
    assert!(stream.is_silent().await);
    server.stop().await;
}

#[tokio::test]
async fn a_lease_when_its_time_is_up_takes_its_keys_with_it_in_one_revision_as_in_a_real_etcd() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let (server, etcd) = (Ours::start(dir.path()).await, Process::etcd().await);
    let mut seen = Vec::new();
    for url in [&server.url, &etcd.url] {
        let mut clients = Clients::connect(url).await;
        let mut stream = Watching::open(&clients);
        stream
            .create(pb::WatchCreateRequest {
                prev_kv: true,
                ..watch(0, "k", "l", 0)
            })
            .await;
        stream.next().await;
        let grant = clients
            .lease
            .lease_grant(pb::LeaseGrantRequest { ttl: 1, id: 5 })
            .await
            .expect("a lease");
        assert_eq!(grant.into_inner().ttl, 2);
        for key in ["k2", "k1", "k3"] {
            clients
                .kv
                .put(pb::PutRequest {
                    lease: 5,
                    ..put(key, "v")
                })
                .await
                .expect("a put");
        }
        clients
            .kv
            .put(put("k3", "no longer leased"))
            .await
            .expect("a put");
        for _ in 0..4 {
            assert_eq!(stream.next().await.events.len(), 1);
        }
        let expiry = stream.next().await;
        let ttl = clients
            .lease
            .lease_time_to_live(pb::LeaseTimeToLiveRequest { id: 5, keys: true })
            .await;
        assert_eq!(ttl.expect("an answer").into_inner().ttl, -1);
        seen.push(expiry);
    }
    assert_eq!(seen[0].events.len(), 2);
    assert_eq!(seen[0], seen[1], "left ours, right etcd");
    server.stop().await;
}

/// What two hundred daemons do when a lab starts: each a connection, a lease, a key of its own, everything listed in
/// pages at one revision, and a watch from there.
#[tokio::test]
async fn two_hundred_clients_when_they_start_at_once_all_see_each_other() {
    const CLIENTS: usize = 200;
    let dir = tempfile::TempDir::new().expect("a directory");
    let server = Process::ours(dir.path());
    let mut clients = Clients::connect(&server.url).await;
    for i in 0..1000 {
        clients
            .kv
            .put(put(&format!("s/old-{i:04}"), &"x".repeat(150)))
            .await
            .expect("a put");
    }
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        let url = server.url.clone();
        tasks.spawn(async move {
            let mut clients = Clients::connect(&url).await;
            let grant = pb::LeaseGrantRequest { ttl: 86400, id: 0 };
            let lease = clients
                .lease
                .lease_grant(grant)
                .await
                .expect("a lease")
                .into_inner()
                .id;
            let key = format!("s/new-{number:03}");
            let absent = pb::Compare {
                key: key.clone().into(),
                ..Default::default()
            };
            let create = op(Request::RequestPut(pb::PutRequest {
                lease,
                ..put(&key, "mine")
            }));
            let txn = pb::TxnRequest {
                compare: vec![absent],
                success: vec![create],
                ..Default::default()
            };
            assert!(
                clients
                    .kv
                    .txn(txn)
                    .await
                    .expect("a transaction")
                    .into_inner()
                    .succeeded
            );

            let (mut next, mut revision, mut seen) = (b"s/".to_vec(), 0, 0);
            loop {
                let range_end = b"s0".to_vec();
                let page = pb::RangeRequest {
                    key: next,
                    range_end,
                    limit: 300,
                    revision,
                    ..Default::default()
                };
                let page = clients.kv.range(page).await.expect("a page").into_inner();
                revision = if revision == 0 {
                    page.header.expect("a header").revision
                } else {
                    revision
                };
                seen += page.kvs.len();
                next = page
                    .kvs
                    .last()
                    .map(|kv| [kv.key.as_slice(), &[0]].concat())
                    .unwrap_or_default();
                if !page.more {
                    break;
                }
            }
            let mut stream = Watching::open(&clients);
            stream.create(watch(0, "s/", "s0", revision + 1)).await;
            stream.next().await;
            while seen < 1000 + CLIENTS {
                seen += stream.next().await.events.len();
            }
            assert_eq!(seen, 1000 + CLIENTS);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("every client sees every other once");
    }
}
