//! Getting a lease.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use registry::{AcquireError, Registry};

use crate::conform;
use crate::ground::{
    CONFIG, DAY, Ground, Node, Watching, attributes_of, beaten, network, subnet, value_of, wait_until,
};

conform! {
    a_first_lease_is_written_byte_for_byte_and_lives_as_long_as_asked_for,
    a_restart_takes_the_same_lease_again_without_a_word,
    other_attributes_are_written_to_the_lease_that_is_there,
    an_own_entry_that_lives_for_ever_stays_one,
    the_previous_subnet_is_taken_when_free_and_another_when_not,
    a_lost_race_leaves_the_winner_alone_and_ends_with_another_subnet,
    of_two_leases_that_overlap_under_different_keys_the_older_wins,
    an_own_lease_the_config_no_longer_allows_is_deleted_only_when_there_is_another,
    a_second_usable_lease_with_our_address_is_named_and_left_alone,
    thirty_nodes_at_once_get_the_thirty_subnets_there_are,
    a_range_without_a_free_subnet_is_told_and_nothing_is_left_behind,
}

async fn a_first_lease_is_written_byte_for_byte_and_lives_as_long_as_asked_for(ground: impl Ground) {
    let config = network(CONFIG);
    let node = Node::new("192.0.2.1");
    let held = ground.client(DAY).acquire(&node.wanted(&config)).await.unwrap();
    assert!(!held.reused && held.also_ours.is_empty());
    let key = held.lease.subnet.to_string();
    assert_eq!(ground.keys(), std::slice::from_ref(&key));
    assert_eq!(ground.value(&key), value_of("192.0.2.1"));
    assert_eq!(ground.created(&key), held.lease.created);
    let left = held.expires.unwrap().duration_since(tokio::time::Instant::now());
    assert!(left > DAY - Duration::from_secs(100) && left <= DAY, "{left:?}");
}

async fn a_restart_takes_the_same_lease_again_without_a_word(ground: impl Ground) {
    let config = network(CONFIG);
    let node = Node::new("192.0.2.1");
    let first = ground.client(DAY).acquire(&node.wanted(&config)).await.unwrap();
    let witness = ground.client(DAY);
    let mut watching = Watching::start(&witness);
    assert_eq!(watching.snapshot().await.leases.len(), 1);
    wait_until("the watch", || witness.states().borrow().watching).await;
    let again = ground.client(DAY).acquire(&node.wanted(&config)).await.unwrap();
    assert!(again.reused && again.expires.is_some());
    assert_eq!(again.lease, first.lease);
    ground.put("10.5.0.0-24", &value_of("192.0.2.2"));
    let told = watching.delta().await.changes;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, subnet("10.5.0.0-24"), "the first that is heard of");
}

async fn other_attributes_are_written_to_the_lease_that_is_there(ground: impl Ground) {
    let config = network(CONFIG);
    let mut node = Node::new("192.0.2.1");
    let first = ground.client(DAY).acquire(&node.wanted(&config)).await.unwrap();
    node.attributes = Box::new(|_, before| {
        assert_eq!(before, Some(&attributes_of("192.0.2.1")));
        let mut attributes = attributes_of("192.0.2.1");
        attributes.data = Some("{\"VNI\":1}".into());
        attributes
    });
    let changed = ground.client(DAY).acquire(&node.wanted(&config)).await.unwrap();
    let key = changed.lease.subnet.to_string();
    assert_eq!(changed.lease.subnet, first.lease.subnet);
    assert_eq!(ground.created(&key), first.lease.created);
    assert!(ground.value(&key).contains(r#""BackendData":{"VNI":1}"#));
    assert!(!ground.is_reservation(&key));
}

async fn an_own_entry_that_lives_for_ever_stays_one(ground: impl Ground) {
    let config = network(CONFIG);
    ground.put("10.5.77.0-24", r#"{"PublicIP":"192.0.2.1"}"#);
    let node = Node::new("192.0.2.1");
    let held = ground.client(DAY).acquire(&node.wanted(&config)).await.unwrap();
    assert!(held.reused);
    assert_eq!((held.lease.subnet, held.expires), (subnet("10.5.77.0-24"), None));
    assert_eq!(ground.value("10.5.77.0-24"), value_of("192.0.2.1"));
    assert!(ground.is_reservation("10.5.77.0-24"));
}

async fn the_previous_subnet_is_taken_when_free_and_another_when_not(ground: impl Ground) {
    let config = network(CONFIG);
    ground.put("10.5.9.0-24", &value_of("192.0.2.9"));
    let mut node = Node::new("192.0.2.1");
    node.previous = Some(subnet("10.5.8.0-24"));
    let held = ground.client(DAY).acquire(&node.wanted(&config)).await.unwrap();
    assert_eq!(held.lease.subnet, subnet("10.5.8.0-24"));
    let mut node = Node::new("192.0.2.2");
    node.previous = Some(subnet("10.5.9.0-24"));
    let held = ground.client(DAY).acquire(&node.wanted(&config)).await.unwrap();
    assert!(![subnet("10.5.8.0-24"), subnet("10.5.9.0-24")].contains(&held.lease.subnet));
    assert_eq!(ground.value("10.5.9.0-24"), value_of("192.0.2.9"));
}

async fn a_lost_race_leaves_the_winner_alone_and_ends_with_another_subnet(ground: impl Ground) {
    let ground = Arc::new(ground);
    let config = network(
        r#"{"Network":"10.5.0.0/22","SubnetLen":24,"SubnetMin":"10.5.2.0","Backend":{"Type":"host-gw"}}"#,
    );
    let node = beaten("192.0.2.1", &ground, |ground, key| {
        ground.put(key, &value_of("192.0.2.2"));
    });
    let held = ground.client(DAY).acquire(&node.wanted(&config)).await.unwrap();
    let mut values: Vec<String> = ground.keys().iter().map(|key| ground.value(key)).collect();
    values.sort();
    assert_eq!(values, [value_of("192.0.2.1"), value_of("192.0.2.2")]);
    assert_eq!(
        ground.value(&held.lease.subnet.to_string()),
        value_of("192.0.2.1")
    );
}

async fn of_two_leases_that_overlap_under_different_keys_the_older_wins(ground: impl Ground) {
    let ground = Arc::new(ground);
    let config = network(CONFIG);
    let node = beaten("192.0.2.1", &ground, |ground, key| {
        ground.put(&format!("{key}&fd00::-64"), &value_of("192.0.2.2"));
    });
    let held = ground.client(DAY).acquire(&node.wanted(&config)).await.unwrap();
    let (keys, own) = (ground.keys(), held.lease.subnet.to_string());
    assert_eq!(keys.len(), 2, "{keys:?}");
    let other = keys.iter().find(|key| **key != own).unwrap();
    assert!(!other.starts_with(&own), "{keys:?}");
    assert_eq!(ground.value(other), value_of("192.0.2.2"));
}

async fn an_own_lease_the_config_no_longer_allows_is_deleted_only_when_there_is_another(ground: impl Ground) {
    ground.put("10.9.1.0-24", &value_of("192.0.2.1"));
    ground.put("10.9.2.0-24", &value_of("192.0.2.2"));
    let config = network(CONFIG);
    let node = Node::new("192.0.2.1");
    let held = ground.client(DAY).acquire(&node.wanted(&config)).await.unwrap();
    let keys: BTreeSet<String> = ground.keys().into_iter().collect();
    let want = ["10.9.2.0-24".to_owned(), held.lease.subnet.to_string()];
    assert_eq!(keys, BTreeSet::from(want));
}

async fn a_second_usable_lease_with_our_address_is_named_and_left_alone(ground: impl Ground) {
    ground.put("10.5.3.0-24", &value_of("192.0.2.1"));
    ground.put("10.5.4.0-24", &value_of("192.0.2.1"));
    let (config, node) = (network(CONFIG), Node::new("192.0.2.1"));
    let held = ground.client(DAY).acquire(&node.wanted(&config)).await.unwrap();
    assert_eq!(held.lease.subnet, subnet("10.5.3.0-24"));
    assert_eq!(held.also_ours, [subnet("10.5.4.0-24")]);
    assert_eq!(ground.keys().len(), 2);
}

async fn thirty_nodes_at_once_get_the_thirty_subnets_there_are(ground: impl Ground) {
    let config = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.30.0","Backend":{"Type":"host-gw"}}"#;
    let config = Arc::new(network(config));
    let mut tasks = Vec::new();
    for n in 1..=30 {
        let (config, client) = (Arc::clone(&config), ground.client(DAY));
        tasks.push(tokio::spawn(async move {
            let node = Node::new(&format!("192.0.2.{n}"));
            let held = client.acquire(&node.wanted(&config)).await.unwrap();
            held.lease.subnet.to_string()
        }));
    }
    let mut subnets = BTreeSet::new();
    for task in tasks {
        let subnet = task.await.unwrap();
        assert!(subnets.insert(subnet.clone()), "{subnet} was given twice");
    }
    assert_eq!(ground.keys().into_iter().collect::<BTreeSet<_>>(), subnets);
}

async fn a_range_without_a_free_subnet_is_told_and_nothing_is_left_behind(ground: impl Ground) {
    let config =
        network(r#"{"Network":"10.5.0.0/22","SubnetLen":24,"SubnetMin":"10.5.1.0","SubnetMax":"10.5.1.0"}"#);
    ground.put("10.5.1.0-24", &value_of("192.0.2.3"));
    let node = Node::new("192.0.2.1");
    let error = ground
        .client(DAY)
        .acquire(&node.wanted(&config))
        .await
        .unwrap_err();
    assert!(matches!(error, AcquireError::Alloc(_)), "{error}");
    assert_eq!(ground.keys(), ["10.5.1.0-24"]);
}
