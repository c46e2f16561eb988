//! What is in the store, byte for byte, and what becomes of it.

use std::sync::Arc;
use std::time::Duration;

use fabric::lease::Update;
use registry::etcd::Options;
use registry::{Etcd2, Registry};

use crate::ground::rig::Server;
use crate::ground::{CONFIG, DAY, EtcdV2, Holder, Node, Watching, network, subnet, v2, value_of, wait_until};
use crate::relay::{Lets, Relay};

fn server() -> Server {
    Server::start_with(None, &["--enable-v2"])
}

/// The formats of Go flannel 0.11 and of today's.
#[tokio::test]
async fn lease_when_acquired_then_key_value_and_time_are_as_go_flannel_writes_them() {
    let server = server();
    v2::ctl(&server, &["mk", "/n/config", CONFIG]);
    v2::ctl(
        &server,
        &["set", "/n/subnets/10.5.9.0-24", r#"{"PublicIP":"192.0.2.9"}"#],
    );
    let etcd = Etcd2::new(&server.options()).unwrap();
    assert_eq!(etcd.network_config().await.unwrap(), CONFIG.as_bytes());
    let (config, node) = (network(CONFIG), Node::new("192.0.2.1"));
    let held = etcd.acquire(&node.wanted(&config)).await.unwrap();
    let key = format!("/n/subnets/{}", held.lease.subnet);
    assert_eq!(v2::ctl(&server, &["get", &key]), value_of("192.0.2.1") + "\n");
    assert!((86_300..=86_400).contains(&v2::field(&server, &key, "TTL")));
    assert_eq!(v2::field(&server, &key, "Created-Index"), held.lease.created);
    let mut listed: Vec<String> = v2::ctl(&server, &["ls", "/n/subnets"])
        .lines()
        .map(str::to_owned)
        .collect();
    listed.sort();
    let mut wanted = vec![key, "/n/subnets/10.5.9.0-24".to_owned()];
    wanted.sort();
    assert_eq!(listed, wanted);
}

#[tokio::test]
async fn reservation_when_an_operator_made_one_then_it_is_ours_for_ever_and_stays_without_a_time() {
    let server = server();
    let key = "/n/subnets/10.5.42.0-24";
    v2::ctl(&server, &["set", key, &value_of("192.0.2.1")]);
    let etcd = Etcd2::new(&server.options()).unwrap();
    let (config, node) = (network(CONFIG), Node::new("192.0.2.1"));
    for _ in 0..2 {
        let held = etcd.acquire(&node.wanted(&config)).await.unwrap();
        assert_eq!(
            (held.lease.subnet, held.expires, held.reused),
            (subnet("10.5.42.0-24"), None, true)
        );
        assert_eq!(v2::field(&server, key, "TTL"), 0);
    }
}

#[tokio::test]
async fn lease_when_it_is_kept_then_it_outlives_its_time_as_the_same_entry() {
    let ground = EtcdV2::start();
    let mut holder = Holder::start(&ground, Duration::from_secs(6), Duration::from_secs(4)).await;
    holder.watching.snapshot().await;
    let key = format!("/n/subnets/{}", holder.key);
    for _ in 0..5 {
        let report = holder.report().await;
        assert!(
            matches!(report, registry::Holding::Renewed { expires: Some(_) }),
            "{report:?}"
        );
    }
    assert_eq!(
        v2::field(ground.server(), &key, "Created-Index"),
        holder.held.lease.created
    );
    let ttl = v2::field(ground.server(), &key, "TTL");
    assert!((1..=6).contains(&ttl), "{ttl}");
}

/// Longer away than the server remembers events (401 EventIndexCleared): all is listed anew, and nobody who is there goes.
#[tokio::test]
async fn watch_when_what_happened_is_forgotten_then_no_peer_that_is_there_is_ever_missing() {
    let server = server();
    let peer = subnet("10.5.7.0-24");
    v2::ctl(
        &server,
        &["set", "/n/subnets/10.5.7.0-24", &value_of("192.0.2.7")],
    );
    v2::ctl(
        &server,
        &["set", "/n/subnets/10.5.8.0-24", &value_of("192.0.2.8")],
    );
    let relay = Relay::start(server.client_port(), Lets::All).await;
    let options = Options {
        endpoints: relay.endpoint.clone(),
        lease_ttl: DAY,
        ..server.options()
    };
    let etcd = Arc::new(Etcd2::new(&options).unwrap());
    let mut watching = Watching::start(&etcd);
    assert_eq!(watching.snapshot().await.leases.len(), 2);
    wait_until("the watch", || etcd.states().borrow().watching).await;
    relay.cut(true);
    wait_until("the loss", || !etcd.states().borrow().watching).await;
    v2::ctl(&server, &["rm", "/n/subnets/10.5.8.0-24"]);
    v2::ctl(
        &server,
        &["set", "/n/subnets/10.5.9.0-24", &value_of("192.0.2.9")],
    );
    v2::write_elsewhere(&server, v2::MEMORY + 1);
    relay.cut(false);
    loop {
        match watching.next().await {
            Update::Snapshot(snapshot) => {
                assert!(snapshot.leases.contains_key(&peer), "{snapshot:?}");
                if snapshot.leases.contains_key(&subnet("10.5.9.0-24")) {
                    assert_eq!(snapshot.leases.len(), 2);
                    break;
                }
            }
            Update::Delta(delta) => {
                let gone = delta
                    .changes
                    .iter()
                    .any(|(subnet, lease)| *subnet == peer && lease.is_none());
                assert!(!gone, "{delta:?}");
            }
        }
    }
    wait_until("the watch", || etcd.states().borrow().watching).await;
    v2::ctl(
        &server,
        &["set", "/n/subnets/10.5.10.0-24", &value_of("192.0.2.10")],
    );
    assert_eq!(watching.delta().await.changes.len(), 1);
}
