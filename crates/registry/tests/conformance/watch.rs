//! Following the leases.

use registry::{Registry, RegistryError};

use crate::conform;
use crate::ground::{
    CONFIG, DAY, Ground, Node, Watching, attributes_of, network, subnet, value_of, wait_until,
};

conform! {
    a_config_that_is_not_there_is_not_found,
    a_config_is_told_as_it_is_and_whenever_it_is_another_over_an_outage_and_a_new_history,
    changes_come_as_deltas_and_cost_no_request,
    entries_that_are_no_leases_are_rejected_and_take_no_lease_away,
    after_acquiring_the_watch_goes_on_from_the_same_listing_and_sees_the_own_lease_come,
    a_watch_whose_revision_is_compacted_away_becomes_a_snapshot,
    an_outage_ends_with_a_snapshot_and_a_watch_that_goes_on,
    a_registry_that_was_emptied_is_believed_only_once_its_nodes_could_speak_again,
    a_store_that_is_exchanged_before_the_watch_is_noticed_though_it_has_come_as_far,
    a_registry_that_is_behind_what_an_earlier_process_knew_is_believed_only_after_a_moment,
}

async fn a_config_that_is_not_there_is_not_found(ground: impl Ground) {
    let error = ground.client(DAY).network_config().await.unwrap_err();
    assert!(matches!(&error, RegistryError::NotFound { .. }), "{error}");
}

async fn a_config_is_told_as_it_is_and_whenever_it_is_another_over_an_outage_and_a_new_history(
    mut ground: impl Ground,
) {
    let registry = ground.client(DAY);
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let task = tokio::spawn({
        let registry = std::sync::Arc::clone(&registry);
        async move {
            let sink = move |read: Result<Vec<u8>, RegistryError>| {
                let told = match read {
                    Ok(json) => Some(String::from_utf8(json).unwrap()),
                    Err(RegistryError::NotFound { .. }) => None,
                    Err(failure) => panic!("{failure}"),
                };
                let _ = sender.send(told);
            };
            match registry.watch_config(&sink).await {}
        }
    });
    // After an outage it may be told again what it is.
    let mut last = Some("nothing yet".to_owned());
    let mut next = async |wanted: Option<&str>| {
        while last.as_deref() != wanted {
            let heard = tokio::time::timeout(crate::ground::PATIENCE, heard.recv()).await;
            last = heard.expect("a word").expect("it goes on");
        }
    };
    next(None).await;
    ground.set_config(Some("{}"));
    next(Some("{}")).await;
    let before = registry.requests();
    ground.set_config(Some(CONFIG));
    next(Some(CONFIG)).await;
    assert_eq!(registry.requests(), before, "a change costs no request");
    ground.set_config(None);
    next(None).await;
    ground.stop();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    ground.go_on();
    ground.set_config(Some("1"));
    next(Some("1")).await;
    ground.empty();
    ground.set_config(Some("2"));
    next(Some("2")).await;
    task.abort();
}

async fn changes_come_as_deltas_and_cost_no_request(ground: impl Ground) {
    let registry = ground.client(DAY);
    let mut watching = Watching::start(&registry);
    assert!(watching.snapshot().await.leases.is_empty());
    wait_until("the watch", || registry.states().borrow().watching).await;
    let before = registry.requests();
    ground.put("10.5.1.0-24", &value_of("192.0.2.1"));
    let delta = watching.delta().await;
    assert_eq!((delta.changes.len(), delta.revision), (1, ground.revision()));
    ground.delete("10.5.1.0-24");
    let delta = watching.delta().await;
    assert_eq!(delta.changes, [(subnet("10.5.1.0-24"), None)]);
    assert_eq!(registry.states().borrow().revision, delta.revision);
    assert_eq!(registry.requests(), before);
}

async fn entries_that_are_no_leases_are_rejected_and_take_no_lease_away(ground: impl Ground) {
    for n in 1..=3 {
        ground.put(&format!("10.5.{n}.0-24"), &value_of(&format!("192.0.2.{n}")));
    }
    ground.put("junk", &value_of("192.0.2.1"));
    ground.put("10.9.9.0-24", "not JSON");
    let registry = ground.client(DAY);
    let mut watching = Watching::start(&registry);
    let snapshot = watching.snapshot().await;
    assert_eq!(snapshot.leases.len(), 3);
    let rejected: Vec<&str> = snapshot.rejected.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(rejected, ["10.9.9.0-24", "junk"]);
    wait_until("the watch", || registry.states().borrow().watching).await;
    // A good entry made unreadable: reported, not removed.
    ground.put("10.5.1.0-24", "{\"PublicIP\":null}");
    let delta = watching.delta().await;
    assert!(delta.changes.is_empty(), "{delta:?}");
    assert_eq!(delta.rejected[0].key, "10.5.1.0-24");
    // What is gone is forgotten, and is not what it claimed to be.
    ground.delete("junk");
    let delta = watching.delta().await;
    assert_eq!((delta.changes.len(), delta.gone), (0, vec!["junk".to_owned()]));
    ground.put("10.5.2.0-24", &value_of("192.0.2.77"));
    let delta = watching.delta().await;
    let (changed, lease) = &delta.changes[0];
    assert_eq!((delta.changes.len(), *changed), (1, subnet("10.5.2.0-24")));
    assert_eq!(lease.as_ref().unwrap().attributes, attributes_of("192.0.2.77"));
}

async fn after_acquiring_the_watch_goes_on_from_the_same_listing_and_sees_the_own_lease_come(
    ground: impl Ground,
) {
    ground.put("10.5.1.0-24", &value_of("192.0.2.1"));
    let registry = ground.client(DAY);
    let (config, node) = (network(CONFIG), Node::new("198.51.100.1"));
    let held = registry.acquire(&node.wanted(&config)).await.unwrap();
    let before = registry.requests();
    let mut watching = Watching::start(&registry);
    assert_eq!(watching.snapshot().await.leases.len(), 1);
    let delta = watching.delta().await;
    assert_eq!(delta.changes, [(held.lease.subnet, Some(held.lease.clone()))]);
    let asked = registry.requests() - before;
    assert!(
        asked <= 2,
        "{asked}: the watch, and whether the store is the one that was listed"
    );
}

async fn a_watch_whose_revision_is_compacted_away_becomes_a_snapshot(ground: impl Ground) {
    let registry = ground.client(DAY);
    let (config, node) = (network(CONFIG), Node::new("192.0.2.1"));
    let held = registry.acquire(&node.wanted(&config)).await.unwrap();
    ground.put("10.6.1.0-24", &value_of("192.0.2.2"));
    ground.put("10.6.2.0-24", &value_of("192.0.2.3"));
    ground.delete("10.6.1.0-24");
    ground.put("10.6.3.0-24", &value_of("192.0.2.4"));
    ground.compact();
    let mut watching = Watching::start(&registry);
    assert!(
        watching.snapshot().await.leases.is_empty(),
        "the listing that was acquired on"
    );
    let snapshot = watching.snapshot().await;
    assert_eq!(snapshot.leases.len(), 3);
    assert!(snapshot.leases.contains_key(&held.lease.subnet));
    ground.put("10.6.4.0-24", &value_of("192.0.2.5"));
    assert_eq!(watching.delta().await.changes.len(), 1);
}

async fn an_outage_ends_with_a_snapshot_and_a_watch_that_goes_on(mut ground: impl Ground) {
    ground.put("10.5.1.0-24", &value_of("192.0.2.1"));
    let registry = ground.client(DAY);
    let mut watching = Watching::start(&registry);
    assert_eq!(watching.snapshot().await.leases.len(), 1);
    wait_until("the watch", || registry.states().borrow().watching).await;
    ground.stop();
    wait_until("the loss", || !registry.states().borrow().watching).await;
    assert!(registry.states().borrow().last_failure.is_some());
    ground.go_on();
    ground.put("10.5.2.0-24", &value_of("192.0.2.2"));
    assert_eq!(watching.snapshot().await.leases.len(), 2);
    wait_until("the watch", || registry.states().borrow().watching).await;
    ground.put("10.5.3.0-24", &value_of("192.0.2.3"));
    assert_eq!(watching.delta().await.changes.len(), 1);
}

async fn a_registry_that_was_emptied_is_believed_only_once_its_nodes_could_speak_again(
    mut ground: impl Ground,
) {
    for n in 0..20 {
        ground.put("10.5.9.0-24", &value_of(&format!("192.0.2.{}", 100 + n)));
    }
    ground.put("10.5.8.0-24", &value_of("192.0.2.8"));
    let registry = ground.client(DAY);
    let mut watching = Watching::start(&registry);
    assert_eq!(watching.snapshot().await.leases.len(), 2);
    wait_until("the watch", || registry.states().borrow().watching).await;
    ground.empty();
    // It has been listed empty by the time its peer puts its lease back.
    wait_until("the first listing", || registry.states().borrow().revision < 10).await;
    ground.put("10.5.9.0-24", &value_of("192.0.2.119"));
    let snapshot = watching.snapshot().await;
    assert_eq!(
        snapshot.leases.keys().copied().collect::<Vec<_>>(),
        [subnet("10.5.9.0-24")],
        "the one that came back never went, the other is gone"
    );
}

async fn a_store_that_is_exchanged_before_the_watch_is_noticed_though_it_has_come_as_far(
    mut ground: impl Ground,
) {
    ground.put("10.5.7.0-24", &value_of("192.0.2.7"));
    ground.put("10.5.8.0-24", &value_of("192.0.2.8"));
    let registry = ground.client(DAY);
    let (config, node) = (network(CONFIG), Node::new("198.51.100.1"));
    let held = registry.acquire(&node.wanted(&config)).await.unwrap();
    let number = ground.revision();
    ground.empty();
    // As many entries, and as many writes.
    ground.put("10.5.9.0-24", &value_of("192.0.2.9"));
    ground.put(&held.lease.subnet.to_string(), &value_of("198.51.100.1"));
    while ground.revision() <= number {
        ground.put("10.5.8.0-24", &value_of("192.0.2.8"));
    }
    let mut watching = Watching::start(&registry);
    assert_eq!(watching.snapshot().await.leases.len(), 2, "what was listed");
    let snapshot = watching.snapshot().await;
    assert_eq!(snapshot.leases.len(), 3);
    assert!(snapshot.leases.contains_key(&subnet("10.5.9.0-24")));
    wait_until("the watch", || registry.states().borrow().watching).await;
    ground.put("10.5.10.0-24", &value_of("192.0.2.10"));
    assert_eq!(watching.delta().await.changes.len(), 1);
}

async fn a_registry_that_is_behind_what_an_earlier_process_knew_is_believed_only_after_a_moment(
    ground: impl Ground,
) {
    ground.put("10.5.8.0-24", &value_of("192.0.2.8"));
    let registry = ground.client(DAY);
    let spoken = registry.states().borrow().spoken;
    registry.resume(1000, spoken);
    let mut watching = Watching::start(&registry);
    wait_until("the first listing", || registry.states().borrow().revision > 0).await;
    registry.resume(2000, spoken);
    ground.put("10.5.9.0-24", &value_of("192.0.2.9"));
    assert_eq!(watching.snapshot().await.leases.len(), 2);
}
