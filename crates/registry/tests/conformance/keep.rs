//! Keeping a lease.

use std::time::Duration;

use registry::{Holding, Registry};
use tokio::time::Instant;

use crate::conform;
use crate::ground::{CONFIG, DAY, Ground, HOUR, Holder, Node, network, value_of};

conform! {
    a_renewal_keeps_the_entry_beyond_its_time_and_says_the_same_again,
    a_deleted_entry_is_reported_and_put_back_for_the_same_subnet,
    an_entry_whose_time_was_ended_comes_back_with_a_new_one,
    a_subnet_taken_by_another_node_ends_the_keeping_and_is_not_fought_for,
    an_entry_deleted_and_then_taken_by_another_node_ends_the_keeping,
    a_lost_entry_is_not_put_back_over_an_older_one_that_overlaps,
    a_foreign_put_of_the_same_value_is_harmless_and_its_time_is_adopted,
    an_entry_written_over_for_nobody_is_put_right_and_lives_as_it_did,
    an_outage_is_reported_and_the_lease_is_good_when_it_ends,
    a_node_whose_address_changed_keeps_its_subnet_and_tells_the_new_address,
    a_registry_that_was_emptied_gets_the_lease_back_at_once,
}

async fn a_renewal_keeps_the_entry_beyond_its_time_and_says_the_same_again(ground: impl Ground) {
    let mut holder = Holder::start(&ground, Duration::from_secs(6), Duration::from_secs(4)).await;
    let (value, revision) = (ground.value(&holder.key), ground.revision());
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
    assert_eq!(ground.value(&holder.key), value);
    assert_eq!(ground.created(&holder.key), holder.held.lease.created);
    assert!(
        ground.revision() > revision,
        "it is said again, for nodes that lost an event"
    );
}

async fn a_deleted_entry_is_reported_and_put_back_for_the_same_subnet(ground: impl Ground) {
    let mut holder = Holder::start(&ground, DAY, HOUR).await;
    ground.delete(&holder.key);
    assert_eq!(holder.report().await, Holding::Lost);
    let Holding::Regained { created, expires } = holder.report().await else {
        panic!("expected the entry to be back");
    };
    assert_eq!(ground.created(&holder.key), created);
    assert!(created > holder.held.lease.created && expires.is_some());
    assert_eq!(ground.value(&holder.key), value_of("192.0.2.1"));
    assert!(!ground.is_reservation(&holder.key));
}

async fn an_entry_whose_time_was_ended_comes_back_with_a_new_one(ground: impl Ground) {
    let mut holder = Holder::start(&ground, DAY, HOUR).await;
    ground.end(&holder.key);
    assert_eq!(holder.report().await, Holding::Lost);
    assert!(matches!(holder.report().await, Holding::Regained { .. }));
    assert!(!ground.is_reservation(&holder.key));
}

async fn a_subnet_taken_by_another_node_ends_the_keeping_and_is_not_fought_for(ground: impl Ground) {
    let holder = Holder::start(&ground, DAY, HOUR).await;
    let (key, subnet) = (holder.key.clone(), holder.held.lease.subnet);
    ground.put(&key, &value_of("192.0.2.2"));
    let taken = holder.taken().await;
    assert_eq!((taken.subnet, taken.by.as_str()), (subnet, "192.0.2.2"));
    assert_eq!(ground.value(&key), value_of("192.0.2.2"));
}

async fn an_entry_deleted_and_then_taken_by_another_node_ends_the_keeping(ground: impl Ground) {
    let mut holder = Holder::start(&ground, DAY, HOUR).await;
    let key = holder.key.clone();
    ground.delete(&key);
    assert_eq!(holder.report().await, Holding::Lost);
    ground.put(&key, &value_of("192.0.2.2"));
    assert_eq!(holder.taken().await.by, "192.0.2.2");
    assert_eq!(ground.value(&key), value_of("192.0.2.2"));
}

async fn a_lost_entry_is_not_put_back_over_an_older_one_that_overlaps(ground: impl Ground) {
    let mut holder = Holder::start(&ground, DAY, HOUR).await;
    let key = holder.key.clone();
    let twin = format!("{key}&fd00::-64");
    // The twin comes while we hold the subnet: ours is older, so nothing happens until ours is gone.
    ground.put(&twin, &value_of("192.0.2.2"));
    ground.delete(&key);
    assert_eq!(holder.report().await, Holding::Lost);
    let taken = holder.taken().await;
    assert_eq!(
        (taken.by.as_str(), taken.other.subnet.to_string()),
        ("192.0.2.2", twin.clone())
    );
    assert_eq!(ground.keys(), [twin]);
}

async fn a_foreign_put_of_the_same_value_is_harmless_and_its_time_is_adopted(ground: impl Ground) {
    let mut holder = Holder::start(&ground, DAY, HOUR).await;
    let value = value_of("192.0.2.1");
    // As Go flannel renews: the same value, with another time to live.
    ground.put_for(&holder.key, &value, Duration::from_secs(7200));
    let Holding::Renewed {
        expires: Some(expires),
    } = holder.report().await
    else {
        panic!("expected the other time to be adopted");
    };
    assert!(expires < Instant::now() + Duration::from_secs(7300));
    // As an operator makes a reservation.
    ground.put(&holder.key, &value);
    assert_eq!(holder.report().await, Holding::Renewed { expires: None });
    assert!(ground.is_reservation(&holder.key));
    assert_eq!(ground.value(&holder.key), value);
    assert!(!holder.keeping.is_finished());
}

async fn an_entry_written_over_for_nobody_is_put_right_and_lives_as_it_did(ground: impl Ground) {
    let mut holder = Holder::start(&ground, DAY, HOUR).await;
    ground.put_for(&holder.key, "junk", HOUR);
    assert_eq!(holder.report().await, Holding::Repaired);
    assert!(matches!(
        holder.report().await,
        Holding::Renewed { expires: Some(_) }
    ));
    assert_eq!(ground.value(&holder.key), value_of("192.0.2.1"));
    assert!(!ground.is_reservation(&holder.key));
    // For ever and with our address alone: a reservation, given its attributes.
    ground.put(&holder.key, r#"{"PublicIP":"192.0.2.1"}"#);
    assert_eq!(holder.report().await, Holding::Repaired);
    assert_eq!(holder.report().await, Holding::Renewed { expires: None });
    assert_eq!(ground.value(&holder.key), value_of("192.0.2.1"));
    assert!(ground.is_reservation(&holder.key));
}

async fn an_outage_is_reported_and_the_lease_is_good_when_it_ends(mut ground: impl Ground) {
    let mut holder = Holder::start(&ground, Duration::from_secs(20), Duration::from_secs(18)).await;
    ground.stop();
    loop {
        match holder.report().await {
            Holding::Failing { retry_in, .. } => {
                assert!(retry_in <= Duration::from_secs(60));
                break;
            }
            Holding::Renewed { .. } => {}
            other => panic!("expected a failure, got {other:?}"),
        }
    }
    ground.go_on();
    loop {
        match holder.report().await {
            Holding::Renewed { expires: Some(_) } => break,
            Holding::Failing { .. } => {}
            other => panic!("expected a renewal, got {other:?}"),
        }
    }
    assert_eq!(ground.value(&holder.key), value_of("192.0.2.1"));
}

async fn a_node_whose_address_changed_keeps_its_subnet_and_tells_the_new_address(ground: impl Ground) {
    let config = network(CONFIG);
    for reservation in [false, true] {
        let mut holder = Holder::start(&ground, DAY, HOUR).await;
        let (key, subnet) = (holder.key.clone(), holder.held.lease.subnet);
        if reservation {
            ground.put(&key, &value_of("192.0.2.1"));
            assert_eq!(holder.report().await, Holding::Renewed { expires: None });
        }
        holder.keeping.abort();
        let moved = Node::new("192.0.2.7");
        let held = holder.registry.acquire(&moved.wanted(&config)).await.unwrap();
        assert_eq!((held.lease.subnet, held.reused), (subnet, true));
        assert_eq!(ground.value(&key), value_of("192.0.2.7"));
        assert_eq!(ground.keys().len(), 1);
        // Another process knows nothing of this: the address decides.
        let mut stranger = Node::new("192.0.2.8");
        stranger.previous = Some(subnet);
        let client = ground.client(DAY);
        let other = client.acquire(&stranger.wanted(&config)).await.unwrap();
        assert_ne!(other.lease.subnet, subnet);
        for key in ground.keys() {
            ground.delete(&key);
        }
    }
}

async fn a_registry_that_was_emptied_gets_the_lease_back_at_once(mut ground: impl Ground) {
    for n in 0..20 {
        ground.put("10.5.250.0-24", &value_of(&format!("192.0.2.{}", 100 + n)));
    }
    let mut holder = Holder::start(&ground, DAY, HOUR).await;
    let before = ground.revision();
    ground.empty();
    assert_eq!(holder.report().await, Holding::Lost);
    assert!(matches!(holder.report().await, Holding::Regained { .. }));
    assert!(
        ground.revision() < before,
        "or this shows nothing about a store that went back"
    );
    assert_eq!(ground.value(&holder.key), value_of("192.0.2.1"));
    // And what happens to it in the new store is heard of.
    ground.delete(&holder.key);
    assert_eq!(holder.report().await, Holding::Lost);
    assert!(matches!(holder.report().await, Holding::Regained { .. }));
}
