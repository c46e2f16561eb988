//! kill -9 at any moment: what was acknowledged is there, and no transaction is there by half.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use etcd_proto::etcdserverpb as pb;
use etcd_proto::etcdserverpb::request_op::Request;
use tempfile::TempDir;

use crate::differential::{op, put};
use crate::rig::{Clients, Ours, PATIENCE, Process, Random};

const WRITERS: usize = 4;
const ROUNDS: i64 = 10;

/// Counts up in two keys at once until the server is gone; the last count that was acknowledged.
async fn count(mut clients: Clients, writer: usize, mut counted: u64) -> u64 {
    loop {
        let half = |half: &str| {
            op(Request::RequestPut(put(
                &format!("{half}/{writer}"),
                &(counted + 1).to_string(),
            )))
        };
        let txn = pb::TxnRequest {
            success: vec![half("left"), half("right")],
            ..Default::default()
        };
        if clients.kv.txn(txn).await.is_err() {
            return counted;
        }
        counted += 1;
    }
}

async fn read_all(clients: &mut Clients) -> (i64, BTreeMap<String, String>) {
    let all = pb::RangeRequest {
        key: vec![0],
        range_end: vec![0],
        ..Default::default()
    };
    let reply = clients.kv.range(all).await.expect("a read").into_inner();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    let rows = reply
        .kvs
        .into_iter()
        .map(|kv| (text(kv.key), text(kv.value)))
        .collect();
    (reply.header.expect("a header").revision, rows)
}

#[tokio::test]
async fn a_server_when_killed_under_writes_has_every_acknowledged_one_after_restart() {
    let dir = TempDir::new().expect("a directory");
    let mut random = Random(0xdead_beef);
    let mut counted = [0u64; WRITERS];
    let mut newest = 0;
    for round in 0..ROUNDS {
        let server = Process::ours(dir.path());
        let mut clients = Clients::connect(&server.url).await;
        let (revision, rows) = read_all(&mut clients).await;
        assert!(revision >= newest, "revision {revision} after {newest}");
        newest = revision;
        for (writer, counted) in counted.iter_mut().enumerate().filter(|_| round > 0) {
            let halves = ["left", "right"].map(|half| rows.get(&format!("{half}/{writer}")));
            assert_eq!(halves[0], halves[1], "a transaction is there by half");
            let found: u64 = halves[0].map_or(0, |text| text.parse().expect("a number"));
            // The write under way when the server died may have happened.
            assert!(
                found == *counted || found == *counted + 1,
                "found {found}, acknowledged {counted}"
            );
            *counted = found;
        }
        let compaction = pb::CompactionRequest {
            revision: revision - 5,
            physical: false,
        };
        if revision > 20 && random.chance(50) {
            clients.kv.compact(compaction).await.expect("a compaction");
        }
        let long = pb::LeaseGrantRequest {
            ttl: 1000,
            id: 1000 + round,
        };
        let short = pb::LeaseGrantRequest {
            ttl: 2,
            id: 2000 + round,
        };
        for (lease, key) in [(long, "long"), (short, "short")] {
            clients.lease.lease_grant(lease).await.expect("a lease");
            let leased = pb::PutRequest {
                lease: lease.id,
                ..put(&format!("{key}/{round}"), "leased")
            };
            clients.kv.put(leased).await.expect("a put");
        }
        let mut writers = Vec::new();
        for (writer, counted) in counted.iter().enumerate() {
            let clients = Clients::connect(&server.url).await;
            writers.push(tokio::spawn(count(clients, writer, *counted)));
        }
        tokio::time::sleep(Duration::from_millis(
            20 + u64::try_from(random.below(100)).expect("small"),
        ))
        .await;
        server.kill();
        for (writer, counted) in writers.into_iter().zip(&mut counted) {
            *counted = writer.await.expect("a count");
        }
    }
    assert!(
        counted.iter().all(|counted| *counted > 20),
        "hardly anything was written: {counted:?}"
    );

    // Leases of every round go on: the short ones end, with their keys, and the long ones do not.
    let server = Process::ours(dir.path());
    let mut clients = Clients::connect(&server.url).await;
    let started = Instant::now();
    let rows = loop {
        let (_, rows) = read_all(&mut clients).await;
        if !rows.keys().any(|key| key.starts_with("short/")) {
            break rows;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "leases do not end after a kill: {:?}",
            rows.keys()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    for round in 0..ROUNDS {
        assert_eq!(
            rows.get(&format!("long/{round}")).map(String::as_str),
            Some("leased")
        );
    }
}

#[tokio::test]
async fn a_server_when_the_disk_is_full_acknowledges_nothing_more_and_ends() {
    let dir = TempDir::new().expect("a directory");
    let server = Process::ours_on_a_small_disk(dir.path(), 4096);
    let mut clients = Clients::connect(&server.url).await;
    let value = "x".repeat(100_000);
    let mut acknowledged = 0;
    let status = loop {
        match clients.kv.put(put(&format!("k{acknowledged:03}"), &value)).await {
            Ok(_) => acknowledged += 1,
            Err(status) => break status,
        }
        assert!(acknowledged < 100, "10 MB fit into 4");
    };
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
    assert!(status.message().contains("the store failed"), "{status}");
    let (code, text) = server.ended();
    assert!(
        code == Some(1) && text.contains("File too large"),
        "{code:?}: {text}"
    );
    assert!(acknowledged > 5, "only {acknowledged} fitted");

    let server = Process::ours(dir.path());
    let (_, rows) = read_all(&mut Clients::connect(&server.url).await).await;
    assert!(
        rows.len() >= acknowledged,
        "{} of {acknowledged} are there",
        rows.len()
    );
    assert!(rows.values().all(|found| *found == value));
}

#[tokio::test]
async fn a_server_when_killed_while_it_makes_its_store_starts_again() {
    let mut random = Random(0xfee1_dead);
    for _ in 0..12 {
        let dir = TempDir::new().expect("a directory");
        Process::killed_after(
            dir.path(),
            Duration::from_micros(u64::try_from(random.below(12_000)).expect("small")),
        );
        let server = Process::ours(dir.path());
        let mut clients = Clients::connect(&server.url).await;
        assert_eq!(read_all(&mut clients).await, (1, BTreeMap::new()));
    }
}

#[tokio::test]
async fn a_lease_when_the_server_restarts_keeps_what_remained_of_its_time() {
    let dir = TempDir::new().expect("a directory");
    let server = Ours::start(dir.path()).await;
    let mut clients = Clients::connect(&server.url).await;
    for id in [1, 2] {
        clients
            .lease
            .lease_grant(pb::LeaseGrantRequest { ttl: 1000, id })
            .await
            .expect("a lease");
    }
    clients
        .kv
        .put(pb::PutRequest {
            lease: 1,
            ..put("leased", "v")
        })
        .await
        .expect("a put");
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let renew = tokio_stream::iter([pb::LeaseKeepAliveRequest { id: 2 }]);
    let mut renewed = clients
        .lease
        .lease_keep_alive(renew)
        .await
        .expect("a stream")
        .into_inner();
    assert_eq!(
        renewed.message().await.expect("no error").expect("an answer").ttl,
        1000
    );
    drop((clients, renewed));
    server.stop().await;

    let server = Ours::start(dir.path()).await;
    let mut clients = Clients::connect(&server.url).await;
    let mut left = Vec::new();
    for id in [1, 2] {
        let ask = pb::LeaseTimeToLiveRequest { id, keys: true };
        left.push(
            clients
                .lease
                .lease_time_to_live(ask)
                .await
                .expect("an answer")
                .into_inner(),
        );
    }
    assert!(left[0].ttl <= 997 && left[0].ttl > 900, "{left:?}");
    assert!(
        left[1].ttl > left[0].ttl && left[1].granted_ttl == 1000,
        "{left:?}"
    );
    assert_eq!(left[0].keys, [b"leased"]);
    server.stop().await;
}

/// A header that the disk has damaged: the engine goes back to the one before it, with a commit less than was acknowledged.
#[tokio::test]
async fn a_store_when_its_newer_header_is_damaged_says_what_is_lost_and_gives_no_revision_twice() {
    use std::os::unix::fs::FileExt as _;
    /// Of redb's file: the byte whose lowest bit tells the newer of two commit slots, where these begin, and their length.
    const WHICH: u64 = 9;
    const SLOTS: u64 = 64;
    const SLOT: u64 = 128;
    let dir = TempDir::new().expect("a directory");
    let server = Process::ours(dir.path());
    let mut clients = Clients::connect(&server.url).await;
    let mut acknowledged = 0;
    for i in 0..5 {
        let reply = clients.kv.put(put("key", &i.to_string())).await.expect("a put");
        acknowledged = reply.into_inner().header.expect("a header").revision;
    }
    server.kill();
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(dir.path().join("registry.redb"))
        .expect("the store");
    let mut which = [0];
    file.read_exact_at(&mut which, WHICH).expect("a byte");
    let slot = SLOTS + SLOT * u64::from(which[0] & 1);
    let mut byte = [0];
    file.read_exact_at(&mut byte, slot + 20).expect("a byte");
    file.write_all_at(&[byte[0] ^ 0xff], slot + 20).expect("damage");
    drop(file);

    let server = Process::ours_heard(dir.path());
    let mut clients = Clients::connect(&server.url).await;
    let (revision, rows) = read_all(&mut clients).await;
    assert_eq!(
        rows.get("key").map(String::as_str),
        Some("3"),
        "the last commit is gone"
    );
    assert_eq!(
        revision, acknowledged,
        "and its revision is not there for another"
    );
    let reply = clients.kv.put(put("key", "new")).await.expect("a put");
    let next = reply.into_inner().header.expect("a header").revision;
    assert_eq!(next, acknowledged + 1);
    let said = server.said();
    assert!(
        said.contains(&format!("lost: {} of {acknowledged}", acknowledged - 1)),
        "{said}"
    );

    // Once there is a commit behind what was lost, nothing is missing any more.
    let server = Process::ours_heard(dir.path());
    let mut clients = Clients::connect(&server.url).await;
    let (revision, rows) = read_all(&mut clients).await;
    assert_eq!(
        (revision, rows.get("key").map(String::as_str)),
        (next, Some("new"))
    );
    assert_eq!(server.said(), "");
}
