//! Keeping a lease.

use std::sync::Arc;
use std::time::Duration;

use crate::rig::{Node, PATIENCE, Server, Watching, network, value_of, wait_until};
use registry::etcd::Options;
use registry::{Etcd3, Held, Holding, Over, Registry};
use tokio::sync::mpsc;

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;

/// A node that holds a lease, keeps it and watches.
struct Holder {
    etcd: Arc<Etcd3>,
    held: Held,
    key: String,
    reports: mpsc::UnboundedReceiver<Holding>,
    keeping: tokio::task::JoinHandle<Over>,
    _watching: Watching,
}

impl Holder {
    async fn start(server: &Server, ttl: Duration, margin: Duration) -> Holder {
        let etcd = Arc::new(
            Etcd3::new(&Options {
                lease_ttl: ttl,
                ..server.options()
            })
            .unwrap(),
        );
        let config = network(CONFIG);
        let node = Node::new("192.0.2.1");
        let held = etcd.acquire(&node.wanted(&config)).await.unwrap();
        let watching = Watching::start(&etcd);
        wait_until("the watch", || etcd.states().borrow().watching).await;
        let (sender, reports) = mpsc::unbounded_channel();
        let keeping = tokio::spawn({
            let (etcd, held) = (Arc::clone(&etcd), held.clone());
            async move {
                let report = move |holding| {
                    let _ = sender.send(holding);
                };
                etcd.keep(&node.wanted(&config), held, margin, &report).await
            }
        });
        let key = format!("/n/subnets/{}", held.lease.subnet);
        Holder {
            etcd,
            held,
            key,
            reports,
            keeping,
            _watching: watching,
        }
    }

    async fn report(&mut self) -> Holding {
        tokio::time::timeout(PATIENCE, self.reports.recv())
            .await
            .expect("a report")
            .expect("keeping goes on")
    }
}

const DAY: Duration = Options::LEASE_TTL;
const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_renewal_keeps_etcd_lease_and_value_and_the_entry_outlives_its_time() {
    let server = Server::start();
    let mut holder = Holder::start(&server, Duration::from_secs(6), Duration::from_secs(4)).await;
    let (id, value) = (server.field(&holder.key, "lease"), server.value(&holder.key));
    let first = holder.held.expires.unwrap();
    let mut last = first;
    while last < first + Duration::from_secs(6) {
        let Holding::Renewed {
            expires: Some(expires),
        } = holder.report().await
        else {
            panic!("expected a renewal");
        };
        assert!(expires > last);
        last = expires;
    }
    assert_eq!(server.field(&holder.key, "lease"), id);
    assert_eq!(server.value(&holder.key), value);
    assert_eq!(
        server.field(&holder.key, "create_revision"),
        holder.held.lease.created
    );
    assert!(
        server.field(&holder.key, "version") > 1,
        "the value is put again, for nodes that lost an event"
    );
}

#[tokio::test]
async fn a_foreign_put_of_the_same_value_is_harmless_and_its_etcd_lease_is_adopted() {
    let server = Server::start();
    let mut holder = Holder::start(&server, DAY, HOUR).await;
    let value = value_of("192.0.2.1");
    // As Go flannel renews: a new etcd lease, the same value.
    let granted = server.ctl(&["lease", "grant", "7200"]);
    let id = granted.split_whitespace().nth(1).unwrap().to_owned();
    server.ctl(&["put", "--lease", &id, &holder.key, &value]);
    let Holding::Renewed {
        expires: Some(expires),
    } = holder.report().await
    else {
        panic!("expected the other etcd lease to be adopted");
    };
    assert!(expires < tokio::time::Instant::now() + Duration::from_secs(7300));
    // etcdctl writes an id with a leading zero or without, as it falls.
    let granted = i64::from_str_radix(&id, 16).unwrap();
    assert_eq!(server.field(&holder.key, "lease"), granted);
    // As an operator makes a reservation: no etcd lease.
    server.put(&holder.key, &value);
    assert_eq!(holder.report().await, Holding::Renewed { expires: None });
    assert_eq!(server.field(&holder.key, "lease"), 0);
    assert_eq!(server.value(&holder.key), value);
    assert!(!holder.keeping.is_finished());
}

/// As a migration from another store leaves it, with what time was left there.
#[tokio::test]
async fn a_lease_that_was_granted_for_less_time_lives_a_whole_one_once_its_node_has_taken_it_up() {
    let server = Server::start();
    let granted = server.ctl(&["lease", "grant", "600"]);
    let id = granted.split_whitespace().nth(1).unwrap().to_owned();
    let key = "/n/subnets/10.5.7.0-24";
    server.ctl(&["put", "--lease", &id, key, &value_of("192.0.2.1")]);
    let holder = Holder::start(&server, DAY, HOUR).await;
    assert_eq!(holder.key, key, "the node's own");
    assert!(holder.held.expires.unwrap() > tokio::time::Instant::now() + DAY - HOUR);
    let id = format!("{:x}", server.field(key, "lease"));
    assert!(
        server
            .ctl(&["lease", "timetolive", &id])
            .contains("granted with TTL(86400s)")
    );
    assert_eq!(server.value(key), value_of("192.0.2.1"));
}

#[tokio::test]
async fn an_entry_written_over_for_nobody_is_put_right_on_the_etcd_lease_it_has() {
    let server = Server::start();
    let mut holder = Holder::start(&server, DAY, HOUR).await;
    let id = server.field(&holder.key, "lease");
    server.ctl(&["put", "--lease", &format!("{id:x}"), &holder.key, "junk"]);
    assert_eq!(holder.report().await, Holding::Repaired);
    assert_eq!(server.value(&holder.key), value_of("192.0.2.1"));
    assert_eq!(server.field(&holder.key, "lease"), id);
    // Without etcd lease and with our address alone: a reservation, given its attributes.
    server.put(&holder.key, r#"{"PublicIP":"192.0.2.1"}"#);
    assert_eq!(holder.report().await, Holding::Repaired);
    assert_eq!(holder.report().await, Holding::Renewed { expires: None });
    assert_eq!(server.value(&holder.key), value_of("192.0.2.1"));
    assert_eq!(server.field(&holder.key, "lease"), 0);
}

#[tokio::test]
async fn an_outage_is_reported_and_the_lease_is_good_when_it_ends() {
    let mut server = Server::start();
    let mut holder = Holder::start(&server, Duration::from_secs(20), Duration::from_secs(18)).await;
    server.kill();
    loop {
        match holder.report().await {
            Holding::Failing { error, retry_in, .. } => {
                assert!(error.contains(&server.endpoint()), "{error}");
                assert!(retry_in <= Duration::from_secs(60));
                break;
            }
            Holding::Renewed { .. } => {}
            other => panic!("expected a failure, got {other:?}"),
        }
    }
    server.start_again();
    loop {
        match holder.report().await {
            Holding::Renewed { expires: Some(_) } => break,
            Holding::Failing { .. } => {}
            other => panic!("expected a renewal, got {other:?}"),
        }
    }
    assert_eq!(server.value(&holder.key), value_of("192.0.2.1"));
}

#[tokio::test]
async fn a_node_whose_address_changed_keeps_its_subnet_and_tells_the_new_address() {
    let server = Server::start();
    let config = network(CONFIG);
    for reservation in [false, true] {
        let mut holder = Holder::start(&server, DAY, HOUR).await;
        let (key, subnet) = (holder.key.clone(), holder.held.lease.subnet);
        if reservation {
            server.put(&key, &value_of("192.0.2.1"));
            assert_eq!(holder.report().await, Holding::Renewed { expires: None });
        }
        holder.keeping.abort();
        let id = server.field(&key, "lease");
        let moved = Node::new("192.0.2.7");
        let held = holder.etcd.acquire(&moved.wanted(&config)).await.unwrap();
        assert_eq!((held.lease.subnet, held.reused), (subnet, true));
        assert_eq!(server.value(&key), value_of("192.0.2.7"));
        assert_eq!(server.field(&key, "lease"), id);
        assert_eq!(server.keys("/n/subnets/").len(), 1);
        // Another process knows nothing of this: the address decides.
        let mut stranger = Node::new("192.0.2.8");
        stranger.previous = Some(subnet);
        let other = server.client().acquire(&stranger.wanted(&config)).await.unwrap();
        assert_ne!(other.lease.subnet, subnet);
        server.ctl(&["del", "/n/subnets/", "--prefix"]);
    }
}

#[tokio::test]
async fn events_of_peers_cost_the_keeping_no_request() {
    let server = Server::start();
    let holder = Holder::start(&server, DAY, HOUR).await;
    let etcd = &holder.etcd;
    let mut before = 0;
    // The first look at the own entry may still be under way.
    wait_until("rest", || {
        std::mem::replace(&mut before, etcd.requests()) == etcd.requests()
    })
    .await;
    for n in 0..20 {
        server.put(&format!("/n/subnets/10.6.{n}.0-24"), &value_of("192.0.2.2"));
    }
    wait_until("the events", || {
        etcd.states().borrow().revision >= server.revision()
    })
    .await;
    assert_eq!(etcd.requests(), before);
}
