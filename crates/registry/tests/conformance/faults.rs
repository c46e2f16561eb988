//! What only a store in memory can be told to do: lose single calls and answers, and go back between two of them.

use std::time::Duration;

use registry::memory::{Fate, Passage, Who};
use registry::{Holding, Registry};

use crate::ground::{
    CONFIG, DAY, Ground, HOUR, Holder, InMemory, Node, Watching, network, value_of, wait_until,
};

/// Calls of this name fare like this, the first so many times.
fn losing(call: &'static str, fate: Fate, mut times: u32) -> Box<registry::memory::Passages> {
    Box::new(move |name| {
        let hit = name == call && times > 0;
        times -= u32::from(hit);
        Passage {
            fate: if hit { fate } else { Fate::Answered },
            ..Passage::default()
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_create_that_was_carried_out_and_not_answered_makes_no_second_lease() {
    let ground = InMemory::start();
    let client = ground.store().client_by(losing("create", Fate::Unanswered, 1));
    let (config, node) = (network(CONFIG), Node::new("192.0.2.1"));
    let registry = ground.over(client);
    registry.acquire(&node.wanted(&config)).await.unwrap_err();
    let held = registry.acquire(&node.wanted(&config)).await.unwrap();
    assert_eq!(ground.keys(), [held.lease.subnet.to_string()]);
}

#[tokio::test(start_paused = true)]
async fn a_create_whose_answer_and_revocation_are_lost_is_found_as_the_own_lease() {
    let ground = InMemory::start();
    let mut lost = 0;
    let client = ground.store().client_by(Box::new(move |call| {
        let hit = matches!(call, "create" | "give back") && lost < 2;
        lost += u32::from(hit);
        let fate = match call {
            _ if !hit => Fate::Answered,
            "create" => Fate::Unanswered,
            _ => Fate::Lost,
        };
        Passage {
            fate,
            ..Passage::default()
        }
    }));
    let (config, node) = (network(CONFIG), Node::new("192.0.2.1"));
    let registry = ground.over(client);
    registry.acquire(&node.wanted(&config)).await.unwrap_err();
    assert_eq!(ground.keys().len(), 1);
    let held = registry.acquire(&node.wanted(&config)).await.unwrap();
    assert!(held.reused);
    assert_eq!(ground.keys(), [held.lease.subnet.to_string()]);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_whose_answer_was_lost_is_made_good_and_the_entry_is_never_gone() {
    let ground = InMemory::start();
    let mut holder = Holder::start(&ground, Duration::from_secs(60), Duration::from_secs(40)).await;
    for call in ["prolong", "swap", "read"] {
        let passages = losing(call, Fate::Unanswered, 1);
        holder.registry.entries().set_passages(passages);
        assert!(matches!(holder.report().await, Holding::Failing { .. }), "{call}");
        assert!(matches!(holder.report().await, Holding::Renewed { .. }), "{call}");
    }
    let gone = |deed: &registry::memory::Deed| deed.after.is_none();
    assert!(!ground.store().take_deeds().iter().any(gone));
}

#[tokio::test(start_paused = true)]
async fn an_expired_lease_that_another_node_took_is_not_taken_back() {
    let ground = InMemory::start();
    let holder = Holder::start(&ground, Duration::from_secs(60), Duration::from_secs(30)).await;
    let key = holder.key.clone();
    holder.registry.entries().cut_off(true);
    wait_until("the expiry", || ground.keys().is_empty()).await;
    ground.put_for(&key, &value_of("192.0.2.2"), DAY);
    holder.registry.entries().cut_off(false);
    assert_eq!(holder.taken().await.by, "192.0.2.2");
    let deeds = ground.store().take_deeds();
    let last = deeds.last().unwrap();
    assert_eq!((last.who, last.key.as_str()), (Who::Operator, key.as_str()));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_goes_back_between_listing_and_watch_is_not_waited_for() {
    let ground = InMemory::start();
    for n in 0..20 {
        ground.put("10.5.9.0-24", &value_of(&format!("192.0.2.{}", 100 + n)));
    }
    let store = ground.store().clone();
    let mut done = false;
    let client = ground.store().client_by(Box::new(move |call| {
        if call == "watch" && !std::mem::replace(&mut done, true) {
            store.wipe();
            store.put("10.5.8.0-24", &value_of("192.0.2.8"), None);
        }
        Passage::default()
    }));
    let registry = ground.over(client);
    let mut watching = Watching::start(&registry);
    assert_eq!(watching.snapshot().await.revision, 20);
    let snapshot = watching.snapshot().await;
    assert_eq!((snapshot.revision, snapshot.leases.len()), (1, 1));
    ground.put("10.5.7.0-24", &value_of("192.0.2.7"));
    assert_eq!(watching.delta().await.changes.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_restored_store_has_its_entries_for_a_whole_time_to_live_and_breaks_its_watches() {
    let ground = InMemory::start();
    let mut holder = Holder::start(&ground, DAY, HOUR).await;
    holder.watching.snapshot().await;
    holder.watching.delta().await;
    let backup = ground.store().backup();
    ground.put("10.6.1.0-24", &value_of("192.0.2.2"));
    assert_eq!(holder.watching.delta().await.changes.len(), 1);
    ground.store().restore(&backup);
    let snapshot = holder.watching.snapshot().await;
    assert_eq!(snapshot.leases.len(), 1);
    let left = ground.store().entry(&holder.key).unwrap().expires.unwrap();
    assert!(left > tokio::time::Instant::now() + DAY - HOUR);
    assert!(!holder.keeping.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_ahead_ends_leases_early_and_they_are_put_back() {
    let ground = InMemory::start();
    let mut holder = Holder::start(&ground, DAY, HOUR).await;
    ground.store().jump(DAY);
    assert_eq!(holder.report().await, Holding::Lost);
    assert!(matches!(holder.report().await, Holding::Regained { .. }));
    assert_eq!(ground.value(&holder.key), value_of("192.0.2.1"));
}

#[tokio::test(start_paused = true)]
async fn a_reservation_that_a_restored_store_has_not_is_put_back_though_its_revision_has_come_as_far_again() {
    let ground = InMemory::start();
    let mut holder = Holder::start(&ground, DAY, HOUR).await;
    let key = holder.key.clone();
    ground.delete(&key);
    let backup = ground.store().backup();
    assert_eq!(holder.report().await, Holding::Lost);
    assert!(matches!(holder.report().await, Holding::Regained { .. }));
    ground.put(&key, &value_of("192.0.2.1"));
    assert_eq!(holder.report().await, Holding::Renewed { expires: None });
    let before = ground.revision();
    ground.store().restore(&backup);
    while ground.revision() < before {
        ground.put("10.6.1.0-24", &value_of("192.0.2.2"));
    }
    assert_eq!(holder.report().await, Holding::Lost);
    assert!(matches!(holder.report().await, Holding::Regained { .. }));
    assert_eq!(ground.value(&key), value_of("192.0.2.1"));
}

/// Waits, through failures, for the word that what stands in the place of the entry is left alone.
async fn left_alone(holder: &mut Holder<InMemory>) {
    loop {
        match holder.report().await {
            Holding::Occupied => return,
            Holding::Failing { .. } => {}
            other => panic!("expected it to be left alone, got {other:?}"),
        }
    }
}

/// Seed 50143 of the simulation: while a node is away its entry goes, another node takes the subnet, and somebody spoils that
/// entry. It names nobody then, and is not the one that was ours either.
#[tokio::test(start_paused = true)]
async fn what_came_into_our_place_while_we_were_away_is_left_alone_until_it_is_removed() {
    let mut ground = InMemory::start();
    let mut holder = Holder::start(&ground, DAY, HOUR).await;
    let key = holder.key.clone();
    ground.stop();
    ground.delete(&key);
    ground.put(&key, &value_of("192.0.2.2"));
    ground.put(&key, "junk");
    ground.compact();
    ground.go_on();
    left_alone(&mut holder).await;
    tokio::time::sleep(HOUR).await;
    assert_eq!(ground.value(&key), "junk");
    ground.delete(&key);
    assert!(matches!(holder.report().await, Holding::Regained { .. }));
    assert_eq!(ground.value(&key), value_of("192.0.2.1"));
}

/// The same where the time of ours is over: whatever is there now is not it.
#[tokio::test(start_paused = true)]
async fn what_stands_in_our_place_after_our_time_is_left_alone_though_it_looks_as_old_as_ours() {
    let mut ground = InMemory::start();
    let mut holder = Holder::start(&ground, 4 * HOUR, HOUR).await;
    let (key, created) = (holder.key.clone(), ground.created(&holder.key));
    ground.stop();
    ground.empty();
    while ground.revision() < created - 1 {
        ground.put("elsewhere", "x");
    }
    ground.put(&key, "junk");
    assert_eq!(ground.created(&key), created);
    tokio::time::sleep(5 * HOUR).await;
    ground.go_on();
    left_alone(&mut holder).await;
    assert_eq!(ground.value(&key), "junk");
}
