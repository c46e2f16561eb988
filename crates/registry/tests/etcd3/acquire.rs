//! Getting a lease.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::rig::{Node, Server, attributes_of, network, subnet, value_of};
use registry::etcd::Options;
use registry::{AcquireError, Etcd3, Registry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;

#[tokio::test]
async fn a_first_lease_is_written_byte_for_byte_and_bound_to_a_day() {
    let server = Server::start();
    let config = network(CONFIG);
    let etcd = server.client();
    let node = Node::new("192.0.2.1");
    let held = etcd.acquire(&node.wanted(&config)).await.unwrap();
    assert!(!held.reused && held.also_ours.is_empty());
    let key = format!("/n/subnets/{}", held.lease.subnet);
    assert_eq!(server.keys("/n/"), std::slice::from_ref(&key));
    assert_eq!(server.value(&key), value_of("192.0.2.1"));
    assert_eq!(server.field(&key, "create_revision"), held.lease.created);
    let id = format!("{:x}", server.field(&key, "lease"));
    let ttl = server.ctl(&["lease", "timetolive", &id]);
    assert!(ttl.contains("granted with TTL(86400s)"), "{ttl}");
    let left = held.expires.unwrap().duration_since(tokio::time::Instant::now());
    assert!(
        left > Duration::from_secs(86_300) && left <= Duration::from_secs(86_400),
        "{left:?}"
    );
}

#[tokio::test]
async fn a_restart_takes_the_same_lease_again_without_a_write() {
    let server = Server::start();
    let config = network(CONFIG);
    let node = Node::new("192.0.2.1");
    let first = server.client().acquire(&node.wanted(&config)).await.unwrap();
    let key = format!("/n/subnets/{}", first.lease.subnet);
    let (revision, id) = (server.revision(), server.field(&key, "lease"));
    let again = server.client().acquire(&node.wanted(&config)).await.unwrap();
    assert!(again.reused);
    assert_eq!(again.lease, first.lease);
    assert_eq!(
        server.revision(),
        revision,
        "nothing is written when there is nothing to say"
    );
    assert_eq!(server.field(&key, "lease"), id);
    assert_eq!(
        server.ctl(&["lease", "list"]).lines().count(),
        2,
        "one etcd lease, one heading"
    );

    // Other attributes: one put on the same etcd lease, the old attributes handed over.
    let mut node = Node::new("192.0.2.1");
    node.attributes = Box::new(|_, before| {
        assert_eq!(before, Some(&attributes_of("192.0.2.1")));
        let mut attributes = attributes_of("192.0.2.1");
        attributes.data = Some("{\"VNI\":1}".into());
        attributes
    });
    let changed = server.client().acquire(&node.wanted(&config)).await.unwrap();
    assert_eq!(changed.lease.subnet, first.lease.subnet);
    assert!(server.value(&key).contains(r#""BackendData":{"VNI":1}"#));
    assert_eq!(server.field(&key, "lease"), id);
    assert_eq!(server.field(&key, "version"), 2);
}

#[tokio::test]
async fn an_own_lease_without_etcd_lease_is_a_reservation_and_stays_one() {
    let server = Server::start();
    let config = network(CONFIG);
    let key = "/n/subnets/10.5.77.0-24";
    server.put(key, r#"{"PublicIP":"192.0.2.1"}"#);
    let node = Node::new("192.0.2.1");
    let held = server.client().acquire(&node.wanted(&config)).await.unwrap();
    assert!(held.reused);
    assert_eq!(held.lease.subnet, subnet("10.5.77.0-24"));
    assert_eq!(held.expires, None);
    assert_eq!(server.value(key), value_of("192.0.2.1"));
    assert_eq!(server.field(key, "lease"), 0);
    assert_eq!(
        server.ctl(&["lease", "list"]).lines().count(),
        1,
        "the heading alone"
    );
}

#[tokio::test]
async fn the_previous_subnet_is_taken_when_free_and_another_when_not() {
    let server = Server::start();
    let config = network(CONFIG);
    server.put("/n/subnets/10.5.9.0-24", &value_of("192.0.2.9"));
    let mut node = Node::new("192.0.2.1");
    node.previous = Some(subnet("10.5.8.0-24"));
    let held = server.client().acquire(&node.wanted(&config)).await.unwrap();
    assert_eq!(held.lease.subnet, subnet("10.5.8.0-24"));
    let mut node = Node::new("192.0.2.2");
    node.previous = Some(subnet("10.5.9.0-24"));
    let held = server.client().acquire(&node.wanted(&config)).await.unwrap();
    assert!(![subnet("10.5.8.0-24"), subnet("10.5.9.0-24")].contains(&held.lease.subnet));
    assert_eq!(server.value("/n/subnets/10.5.9.0-24"), value_of("192.0.2.9"));
}

/// A node in whose way `put` comes, once, between its listing and its write.
fn beaten(
    public_ip: &str,
    server: &Arc<Server>,
    put: impl Fn(&Server, &str) + Send + Sync + 'static,
) -> Node {
    let mut node = Node::new(public_ip);
    let (server, done) = (Arc::clone(server), AtomicBool::new(false));
    let attributes = attributes_of(public_ip);
    node.attributes = Box::new(move |subnet, _| {
        if !done.swap(true, Ordering::SeqCst) {
            put(&server, &format!("/n/subnets/{subnet}"));
        }
        attributes.clone()
    });
    node
}

#[tokio::test]
async fn a_lost_race_leaves_the_winner_alone_and_ends_with_another_subnet() {
    let server = Arc::new(Server::start());
    let config = network(
        r#"{"Network":"10.5.0.0/22","SubnetLen":24,"SubnetMin":"10.5.2.0","Backend":{"Type":"host-gw"}}"#,
    );
    let node = beaten("192.0.2.1", &server, |server, key| {
        server.put(key, &value_of("192.0.2.2"))
    });
    let held = server.client().acquire(&node.wanted(&config)).await.unwrap();
    let mut values: Vec<String> = server
        .keys("/n/subnets/")
        .iter()
        .map(|key| server.value(key))
        .collect();
    values.sort();
    assert_eq!(values, [value_of("192.0.2.1"), value_of("192.0.2.2")]);
    assert_eq!(
        server.value(&format!("/n/subnets/{}", held.lease.subnet)),
        value_of("192.0.2.1")
    );
    // The etcd lease granted for the first try served for the second.
    assert_eq!(server.ctl(&["lease", "list"]).lines().count(), 2);
}

#[tokio::test]
async fn of_two_leases_that_overlap_under_different_keys_the_older_wins() {
    let server = Arc::new(Server::start());
    let config = network(CONFIG);
    let twin = |server: &Server, key: &str| server.put(&format!("{key}&fd00::-64"), &value_of("192.0.2.2"));
    let node = beaten("192.0.2.1", &server, twin);
    let held = server.client().acquire(&node.wanted(&config)).await.unwrap();
    let keys = server.keys("/n/subnets/");
    assert_eq!(keys.len(), 2, "{keys:?}");
    let own = format!("/n/subnets/{}", held.lease.subnet);
    let other = keys.iter().find(|key| **key != own).unwrap();
    assert!(!other.starts_with(&own), "{keys:?}");
    assert_eq!(server.value(other), value_of("192.0.2.2"));
}

#[tokio::test]
async fn an_own_lease_the_config_no_longer_allows_is_deleted_only_when_there_is_another() {
    let server = Server::start();
    server.put("/n/subnets/10.9.1.0-24", &value_of("192.0.2.1"));
    server.put("/n/subnets/10.9.2.0-24", &value_of("192.0.2.2"));
    let full =
        network(r#"{"Network":"10.5.0.0/22","SubnetLen":24,"SubnetMin":"10.5.1.0","SubnetMax":"10.5.1.0"}"#);
    server.put("/n/subnets/10.5.1.0-24", &value_of("192.0.2.3"));
    let node = Node::new("192.0.2.1");
    let error = server.client().acquire(&node.wanted(&full)).await.unwrap_err();
    assert!(matches!(error, AcquireError::Alloc(_)), "{error}");
    assert_eq!(server.keys("/n/subnets/").len(), 3);
    assert_eq!(
        server.ctl(&["lease", "list"]).lines().count(),
        1,
        "nothing granted is left behind"
    );
    let config = network(CONFIG);
    let held = server.client().acquire(&node.wanted(&config)).await.unwrap();
    let keys: BTreeSet<String> = server.keys("/n/subnets/").into_iter().collect();
    let want = [
        "/n/subnets/10.5.1.0-24".to_owned(),
        "/n/subnets/10.9.2.0-24".to_owned(),
        format!("/n/subnets/{}", held.lease.subnet),
    ];
    assert_eq!(keys, BTreeSet::from(want));
}

#[tokio::test]
async fn a_second_usable_lease_with_our_address_is_named_and_left_alone() {
    let server = Server::start();
    server.put("/n/subnets/10.5.3.0-24", &value_of("192.0.2.1"));
    server.put("/n/subnets/10.5.4.0-24", &value_of("192.0.2.1"));
    let config = network(CONFIG);
    let held = server
        .client()
        .acquire(&Node::new("192.0.2.1").wanted(&config))
        .await
        .unwrap();
    assert_eq!(held.lease.subnet, subnet("10.5.3.0-24"));
    assert_eq!(held.also_ours, [subnet("10.5.4.0-24")]);
    assert_eq!(server.keys("/n/subnets/").len(), 2);
}

async fn race(server: &Server, nodes: usize, config: &str) {
    let config = Arc::new(network(config));
    let mut tasks = Vec::new();
    for n in 0..nodes {
        let (config, etcd) = (Arc::clone(&config), server.client());
        tasks.push(tokio::spawn(async move {
            let node = Node::new(&format!("192.0.{}.{}", n / 250, n % 250 + 1));
            let held = etcd.acquire(&node.wanted(&config)).await;
            held.map(|held| held.lease.subnet)
        }));
    }
    let mut subnets = BTreeSet::new();
    for task in tasks {
        let subnet = task.await.unwrap().unwrap();
        assert!(subnets.insert(subnet.to_string()), "{subnet} was given twice");
    }
    let keys = server.keys("/n/subnets/");
    let held: BTreeSet<String> = keys
        .iter()
        .map(|key| key.rsplit('/').next().unwrap().to_owned())
        .collect();
    assert_eq!(held, subnets);
}

#[tokio::test]
async fn fifty_nodes_at_once_get_fifty_subnets() {
    race(&Server::start(), 50, CONFIG).await;
}

#[tokio::test]
async fn two_hundred_nodes_at_once_get_the_two_hundred_subnets_there_are() {
    let config = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.200.0","Backend":{"Type":"host-gw"}}"#;
    race(&Server::start(), 200, config).await;
}

#[tokio::test]
async fn ipv6_only_nodes_do_not_take_each_others_lease() {
    let server = Server::start();
    let config = network(
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"host-gw"}}"#,
    );
    let mut held = Vec::new();
    for n in 1..=2 {
        let mut node = Node::new("0.0.0.0");
        node.me.v4 = None;
        node.me.v6 = Some(format!("fd00::{n}").parse().unwrap());
        let mut attributes = attributes_of("0.0.0.0");
        attributes.public_ip6 = node.me.v6;
        node.attributes = Box::new(move |_, _| attributes.clone());
        held.push(server.client().acquire(&node.wanted(&config)).await.unwrap());
    }
    assert_ne!(held[0].lease.subnet, held[1].lease.subnet);
    let key = format!("/n/subnets/{}", held[0].lease.subnet);
    assert!(key.starts_with("/n/subnets/0.0.0.0-0&fd00:5:"), "{key}");
    let value = r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::1","BackendType":"host-gw"}"#;
    assert_eq!(server.value(&key), value);
}

#[tokio::test]
async fn an_acquisition_without_etcd_says_so_and_succeeds_when_asked_again() {
    let mut server = Server::start();
    let config = network(CONFIG);
    let node = Node::new("192.0.2.1");
    let etcd = Etcd3::new(&Options { ..server.options() }).unwrap();
    server.kill();
    let error = etcd.acquire(&node.wanted(&config)).await.unwrap_err().to_string();
    assert!(
        error.contains(&server.endpoint()) && error.contains("refused"),
        "{error}"
    );
    server.start_again();
    etcd.acquire(&node.wanted(&config)).await.unwrap();
}

/// Forwards to etcd. Once for each of `patterns`, in order, it passes a request that contains it on and then closes the
/// connection, so that the answer is lost.
async fn lossy_relay(server_port: u16, patterns: Vec<Vec<u8>>) -> (u16, Arc<Mutex<VecDeque<Vec<u8>>>>) {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let patterns = Arc::new(Mutex::new(VecDeque::from(patterns)));
    let left = Arc::clone(&patterns);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            tokio::spawn(relay(near, server_port, Arc::clone(&patterns)));
        }
    });
    (port, left)
}

async fn relay(mut near: TcpStream, server_port: u16, patterns: Arc<Mutex<VecDeque<Vec<u8>>>>) {
    let mut far = TcpStream::connect(("127.0.0.1", server_port)).await.unwrap();
    let (mut up, mut down) = (vec![0; 65536], vec![0; 65536]);
    loop {
        tokio::select! {
            read = near.read(&mut up) => {
                let Ok(read @ 1..) = read else { return };
                far.write_all(&up[..read]).await.unwrap();
                let hit = {
                    let mut patterns = patterns.lock().unwrap();
                    let hit = patterns.front().is_some_and(|pattern| {
                        up[..read].windows(pattern.len()).any(|window| window == pattern)
                    });
                    if hit {
                        patterns.pop_front();
                    }
                    hit
                };
                if hit {
                    // Time for etcd to carry it out; should it not, the test still holds, with less to say.
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    return;
                }
            }
            read = far.read(&mut down) => {
                let Ok(read @ 1..) = read else { return };
                if near.write_all(&down[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[tokio::test]
async fn answers_lost_on_the_way_make_no_second_lease() {
    let server = Server::start();
    let config = network(CONFIG);
    // The grant (TTL 86400 as a varint), then the transaction that carries the value.
    let patterns = vec![vec![0x08, 0x80, 0xa3, 0x05, 0x10], b"PublicIP".to_vec()];
    let (port, left) = lossy_relay(server.client_port(), patterns).await;
    let options = Options {
        endpoints: format!("http://127.0.0.1:{port}"),
        ..server.options()
    };
    let etcd = Etcd3::new(&options).unwrap();
    let node = Node::new("192.0.2.1");
    let held = etcd.acquire(&node.wanted(&config)).await.unwrap();
    assert!(left.lock().unwrap().is_empty(), "both answers were lost");
    assert!(!held.reused);
    let key = format!("/n/subnets/{}", held.lease.subnet);
    assert_eq!(server.keys("/n/"), std::slice::from_ref(&key));
    assert_eq!(server.field(&key, "version"), 1);
    assert_eq!(server.field(&key, "create_revision"), held.lease.created);
    assert_eq!(
        server.ctl(&["lease", "list"]).lines().count(),
        2,
        "one etcd lease, one heading"
    );
}
