//! Config, list and watch.

use std::time::Duration;

use crate::rig::{Server, Watching, attributes_of, subnet, value_of, wait_until};
use fabric::lease::Update;
use registry::etcd::Options;
use registry::{Etcd3, Registry, RegistryError};

fn keys(range: std::ops::Range<u32>) -> Vec<(String, String)> {
    let entry = |n: u32| {
        let key = format!("/n/subnets/10.{}.{}.0-24", n / 256, n % 256);
        (key, value_of(&format!("192.0.{}.{}", n / 256, n % 256)))
    };
    range.map(entry).collect()
}

#[tokio::test]
async fn network_config_is_not_found_until_it_is_there_and_then_comes_raw() {
    let server = Server::start();
    let etcd = server.client();
    let error = etcd.network_config().await.unwrap_err();
    assert!(
        matches!(&error, RegistryError::NotFound { place, .. } if place == "no key \"/n/config\" in the registry (etcd v3)"),
        "{error}"
    );
    let raw = "{ \"Network\": \"10.5.0.0/16\" , \"x\" :1}";
    server.put("/n/config", raw);
    assert_eq!(etcd.network_config().await.unwrap(), raw.as_bytes());
}

/// One key too high, a slash too many, another case: what was found is said, and no lease is.
#[tokio::test]
async fn network_config_when_it_was_put_beside_its_place_is_missing_and_what_is_there_is_named() {
    let server = Server::start();
    let options = Options {
        prefix: "/coreos.com/network".to_owned(),
        ..server.options()
    };
    let etcd = Etcd3::new(&options).unwrap();
    let said = async || etcd.network_config().await.unwrap_err().to_string();
    for (key, lease) in keys(0..40) {
        server.put(&key.replace("/n/", "/coreos.com/network/"), &lease);
    }
    assert!(!said().await.contains("near it"), "{}", said().await);
    for wrong in [
        "/coreos.com/network",
        "/coreos.com/network/config/",
        "/coreos.com/network/Config",
        "/coreos.com/networks/config",
        "/coreos.com/config",
        "coreos.com/network/config",
    ] {
        server.put(wrong, "{}");
        let text = said().await;
        assert!(
            text.ends_with(&format!("(etcd v3); near it there is {wrong:?}")),
            "{text}"
        );
        server.ctl(&["del", wrong]);
    }
    for n in 0..30 {
        server.put(&format!("/coreos.com/network-{n}"), "");
    }
    let text = said().await;
    assert_eq!(text.matches("network-").count(), 3, "{text}");
    server.put("/coreos.com/elsewhere/config", "{}");
    assert!(!said().await.contains("elsewhere"));
}

#[tokio::test]
async fn twelve_thousand_leases_are_listed_page_by_page_at_one_revision() {
    let server = Server::start();
    for chunk in keys(0..12_000).chunks(128) {
        server.put_all(chunk);
    }
    let etcd = server.client();
    let watching = Watching::start(&etcd);
    let snapshot = watching.snapshot().await;
    assert_eq!(snapshot.leases.len(), 12_000);
    assert_eq!(snapshot.revision, server.revision());
    assert!(snapshot.rejected.is_empty());
    let last = &snapshot.leases[&subnet("10.46.223.0-24")];
    assert_eq!(last.attributes, attributes_of("192.0.46.223"));
    wait_until("the watch", || etcd.states().borrow().watching).await;
    // 24 full pages, the watch, and whether the store is the one that was listed; the limit of a page is part of what is promised.
    assert_eq!(etcd.requests(), 24 + 2);
}

#[tokio::test]
async fn a_hundred_leases_in_one_transaction_arrive_as_one_delta_and_cost_no_request() {
    let server = Server::start();
    let etcd = server.client();
    let watching = Watching::start(&etcd);
    assert!(watching.snapshot().await.leases.is_empty());
    wait_until("the watch", || etcd.states().borrow().watching).await;
    let before = etcd.requests();
    server.put_all(&keys(0..100));
    let delta = watching.delta().await;
    assert_eq!(delta.changes.len(), 100);
    assert_eq!(delta.revision, server.revision());
    server.ctl(&["del", "/n/subnets/10.0.7.0-24"]);
    let delta = watching.delta().await;
    assert_eq!(delta.changes, [(subnet("10.0.7.0-24"), None)]);
    assert_eq!(etcd.states().borrow().revision, delta.revision);
    assert_eq!(etcd.requests(), before);
}

#[tokio::test]
async fn entries_that_are_no_leases_are_rejected_and_take_no_lease_away() {
    let server = Server::start();
    server.put_all(&keys(0..3));
    server.put("/n/subnets/junk", &value_of("192.0.2.1"));
    server.put("/n/subnets/10.9.9.0-24", "not JSON");
    server.put("/n/subnets/a/10.9.8.0-24", &value_of("192.0.2.2"));
    server.put("/n/subnets-backup/10.9.7.0-24", &value_of("192.0.2.3"));
    server.put("/n/subnets", "x");
    let etcd = server.client();
    let watching = Watching::start(&etcd);
    let snapshot = watching.snapshot().await;
    assert_eq!(snapshot.leases.len(), 3);
    let rejected: Vec<&str> = snapshot.rejected.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(rejected, ["10.9.9.0-24", "a/10.9.8.0-24", "junk"]);
    wait_until("the watch", || etcd.states().borrow().watching).await;

    // A good entry made unreadable: reported, not removed.
    server.put("/n/subnets/10.0.1.0-24", "{\"PublicIP\":null}");
    let delta = watching.delta().await;
    assert!(delta.changes.is_empty(), "{delta:?}");
    assert_eq!(delta.rejected[0].key, "10.0.1.0-24");
    // What is below other parents is nobody's news.
    server.put("/n/subnets-backup/10.9.6.0-24", &value_of("192.0.2.4"));
    server.ctl(&["del", "/n/subnets/junk"]);
    let delta = watching.delta().await;
    assert_eq!((delta.changes.len(), delta.gone), (0, vec!["junk".to_owned()]));
    server.put("/n/subnets/10.0.2.0-24", &value_of("192.0.2.77"));
    let delta = watching.delta().await;
    assert_eq!(delta.changes.len(), 1);
    let lease = delta.changes[0].1.as_ref().unwrap();
    assert_eq!(lease.attributes, attributes_of("192.0.2.77"));
    assert!(watching.is_quiet());
}

#[tokio::test]
async fn a_watch_whose_revision_is_compacted_away_becomes_a_snapshot() {
    use crate::rig::{Node, network};
    let server = Server::start();
    let etcd = server.client();
    let config = network(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#);
    let node = Node::new("192.0.2.1");
    // The watch goes on from the listing of the acquisition: what follows it is compacted away.
    let held = etcd.acquire(&node.wanted(&config)).await.unwrap();
    server.put_all(&keys(0..5));
    server.ctl(&["del", "/n/subnets/10.0.0.0-24"]);
    server.put("/n/other", "x");
    server.ctl(&["compact", &server.revision().to_string()]);
    let watching = Watching::start(&etcd);
    assert!(watching.snapshot().await.leases.is_empty());
    let snapshot = watching.snapshot().await;
    assert_eq!(snapshot.leases.len(), 5);
    assert!(snapshot.leases.contains_key(&held.lease.subnet));
    assert_eq!(snapshot.revision, server.revision());
    server.put_all(&keys(9..10));
    assert_eq!(watching.delta().await.changes.len(), 1);
}

#[tokio::test]
async fn an_etcd_killed_and_started_again_gives_a_snapshot_and_a_watch_that_goes_on() {
    let mut server = Server::start();
    server.put_all(&keys(0..4));
    let etcd = server.client();
    let mut states = etcd.states();
    let watching = Watching::start(&etcd);
    assert_eq!(watching.snapshot().await.leases.len(), 4);
    wait_until("the watch", || etcd.states().borrow().watching).await;
    server.kill();
    wait_until("the loss", || states.borrow_and_update().endpoint.is_none()).await;
    assert!(!states.borrow().watching);
    let failure = states.borrow().last_failure.clone().unwrap();
    assert!(failure.error.contains(&server.endpoint()), "{failure:?}");
    server.start_again();
    server.put_all(&keys(4..5));
    assert_eq!(watching.snapshot().await.leases.len(), 5);
    wait_until("the watch", || etcd.states().borrow().watching).await;
    assert_eq!(
        states.borrow_and_update().endpoint.as_deref(),
        Some(server.endpoint().as_str())
    );
    server.put_all(&keys(5..6));
    assert_eq!(watching.delta().await.changes.len(), 1);
}

#[tokio::test]
async fn a_registry_that_was_emptied_is_believed_only_once_its_nodes_could_speak_again() {
    let mut server = Server::start();
    let peer = "/n/subnets/10.5.9.0-24";
    for n in 0..20 {
        server.put("/elsewhere", &n.to_string());
    }
    server.put(peer, &value_of("192.0.2.9"));
    server.put("/n/subnets/10.5.8.0-24", &value_of("192.0.2.8"));
    let etcd = server.client();
    let watching = Watching::start(&etcd);
    assert_eq!(watching.snapshot().await.leases.len(), 2);
    wait_until("the watch", || etcd.states().borrow().watching).await;
    server.kill();
    server.start_empty();
    // It has been listed empty by the time its peer puts its lease back.
    wait_until("the first listing", || etcd.states().borrow().revision < 10).await;
    server.put(peer, &value_of("192.0.2.9"));
    let snapshot = watching.snapshot().await;
    assert_eq!(
        snapshot.leases.keys().copied().collect::<Vec<_>>(),
        [subnet("10.5.9.0-24")],
        "the one that came back never went, the other is gone"
    );
    assert!(snapshot.revision < 10);
}

#[tokio::test]
async fn a_registry_that_is_behind_what_an_earlier_process_knew_is_believed_only_after_a_moment() {
    let server = Server::start();
    server.put("/n/subnets/10.5.8.0-24", &value_of("192.0.2.8"));
    let etcd = server.client();
    etcd.resume(1000, None);
    // Once the registry itself has spoken, it is the measure.
    let watching = Watching::start(&etcd);
    wait_until("the first listing", || etcd.states().borrow().revision > 0).await;
    etcd.resume(2000, None);
    server.put("/n/subnets/10.5.9.0-24", &value_of("192.0.2.9"));
    let snapshot = watching.snapshot().await;
    assert_eq!(
        snapshot.leases.len(),
        2,
        "what came back after the first listing is in the first that counts"
    );
}

#[tokio::test]
async fn a_member_that_hangs_is_noticed_by_the_idle_watch() {
    let server = Server::start();
    let etcd = server.client();
    let watching = Watching::start(&etcd);
    watching.snapshot().await;
    wait_until("the watch", || etcd.states().borrow().watching).await;
    server.signal("-STOP");
    wait_until("the watch to be given up", || !etcd.states().borrow().watching).await;
    server.signal("-CONT");
    let Update::Snapshot(snapshot) = watching.next().await else {
        panic!("expected a snapshot");
    };
    assert!(snapshot.leases.is_empty());
}

#[tokio::test]
async fn a_dropped_watch_asks_for_nothing_more() {
    let mut server = Server::start();
    let etcd = server.client();
    let watching = Watching::start(&etcd);
    watching.snapshot().await;
    drop(watching);
    server.kill();
    let before = etcd.requests();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(etcd.requests(), before);
}

#[tokio::test]
async fn entries_too_large_for_one_reply_are_listed_and_watched_all_the_same() {
    use crate::rig::{Node, network};
    let server = Server::start();
    let etcd = server.client();
    let config = network(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#);
    etcd.acquire(&Node::new("192.0.2.1").wanted(&config))
        .await
        .unwrap();
    let large = "x".repeat(100_000);
    let entry = |n: u32| (format!("/n/subnets/junk{n:03}"), large.clone());
    let junk: Vec<(String, String)> = (0..200).map(entry).collect();
    for chunk in junk.chunks(10) {
        server.put_all(chunk);
    }
    // Twenty megabytes of backlog come in fragments, twenty of listing in pages cut to fit.
    let watching = Watching::start(&etcd);
    assert!(watching.snapshot().await.rejected.is_empty());
    let (mut seen, mut own) = (0, 0);
    while seen < 200 {
        let delta = watching.delta().await;
        seen += delta.rejected.len();
        own += delta.changes.len();
    }
    assert_eq!((seen, own), (200, 1));
    let fresh = server.client();
    let snapshot = Watching::start(&fresh).snapshot().await;
    assert_eq!((snapshot.rejected.len(), snapshot.leases.len()), (200, 1));
}

/// Lists two pages' worth of leases, a hand being at work whenever a listing begins.
async fn listed_while(
    server: &Server,
    at_work: impl Fn(u32) + Send + Sync,
) -> (
    Result<registry::entries::Listing<registry::etcd3::Stamp>, RegistryError>,
    u32,
) {
    use registry::entries::{Entries, Scope, Wish};
    use std::sync::atomic::{AtomicU32, Ordering};
    let listings = AtomicU32::new(0);
    let first = "10.0.0.0-24";
    let note = |key: &str, _: &registry::etcd3::Stamp, _: Option<&fabric::lease::Lease>| {
        if key == first {
            at_work(listings.fetch_add(1, Ordering::Relaxed));
        }
        false
    };
    let wish = Wish {
        scope: Scope::All,
        note: &note,
        own: None,
    };
    let listing = server.client().entries().list(&wish).await;
    (listing, listings.into_inner())
}

#[tokio::test]
async fn a_listing_whose_revision_is_compacted_away_begins_again_and_not_for_ever() {
    let server = Server::start();
    for chunk in keys(0..600).chunks(100) {
        server.put_all(chunk);
    }
    let compact = || {
        server.put("/n/elsewhere", "x");
        server.ctl(&["compact", &server.revision().to_string()]);
    };
    let (listing, times) = listed_while(&server, |time| {
        if time < 2 {
            compact();
        }
    })
    .await;
    let snapshot = listing.unwrap().snapshot;
    assert_eq!(
        (snapshot.leases.len(), snapshot.revision, times),
        (600, server.revision(), 3)
    );
    let (listing, times) = listed_while(&server, |_| compact()).await;
    let error = listing.unwrap_err();
    assert!(
        matches!(&error, RegistryError::Refused { call: "Range", .. }),
        "{error}"
    );
    assert_eq!(times, 6);
}

/// A store that was exchanged may have another's entry under the number that ours had.
#[tokio::test]
async fn state_of_an_entry_when_asked_for_is_known_as_long_as_its_history_is() {
    use registry::entries::{Entries, Written};
    let mut server = Server::start();
    let etcd = server.client();
    let key = "10.5.1.0-24";
    let written = etcd.entries().create(key, &value_of("192.0.2.1")).await.unwrap();
    let Written::Done { handle, .. } = written else {
        panic!("{written:?}")
    };
    let was = async |key| etcd.entries().was(key, &handle).await.unwrap();
    assert_eq!(was(key).await, Some(true));
    assert_eq!(was("10.5.2.0-24").await, Some(false), "another's");
    server.put(&format!("/n/subnets/{key}"), "junk");
    assert_eq!(was(key).await, Some(true), "written over");
    server.ctl(&["compact", &server.revision().to_string()]);
    assert_eq!(was(key).await, None, "forgotten");
    server.kill();
    server.start_empty();
    assert_eq!(was(key).await, Some(false), "of a store that has not come as far");
    while server.revision() < 10 {
        server.put(&format!("/n/subnets/{key}"), "another's");
    }
    assert_eq!(was(key).await, Some(false), "of another store");
}
