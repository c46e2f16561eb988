//! The store in memory by itself: what tests and the simulation lean on.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use registry::entries::{Change, End, Entries, Handle, Life, Mark, Told, Written};
use registry::memory::{Fate, Passage, Stamp, Store, Who};
use tokio::time::{Instant, advance, sleep, timeout};

const DAY: Duration = Duration::from_secs(86_400);
const SECOND: Duration = Duration::from_secs(1);

fn keys(store: &Store) -> Vec<String> {
    store.entries().into_iter().map(|shown| shown.key).collect()
}

fn done(written: Written<Stamp>) -> (i64, Stamp, Option<Instant>) {
    match written {
        Written::Done {
            number,
            handle,
            expires,
        } => (number, handle, expires),
        Written::Found(seen) => panic!("found {seen:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_done_is_told_once_with_who_did_it_and_what_was_before() {
    let store = Store::new(DAY);
    store.put("a", "1", None);
    store.put("a", "2", Some(10 * SECOND));
    assert!(store.delete("a") && !store.delete("a"));
    store.put("b", "3", Some(10 * SECOND));
    let shown = store.entry("b").unwrap();
    assert_eq!((shown.created, shown.modified, shown.value.as_str()), (4, 4, "3"));
    assert_eq!(shown.expires, Some(Instant::now() + 10 * SECOND));
    advance(10 * SECOND).await;
    assert_eq!(keys(&store), Vec::<String>::new());
    let text = |bytes: &Option<Vec<u8>>| {
        bytes
            .as_ref()
            .map(|b| String::from_utf8_lossy(b).into_owned())
            .unwrap_or_default()
    };
    let deeds: Vec<String> = store
        .take_deeds()
        .iter()
        .map(|deed| {
            format!(
                "{:?} {}: {}>{}",
                deed.who,
                deed.key,
                text(&deed.before),
                text(&deed.after)
            )
        })
        .collect();
    assert_eq!(
        deeds,
        [
            "Operator a: >1",
            "Operator a: 1>2",
            "Operator a: 2>",
            "Operator b: >3",
            "Time b: 3>"
        ]
    );
    assert!(store.take_deeds().is_empty());
    assert_eq!(store.number(), 5);
}

#[tokio::test(start_paused = true)]
async fn entries_end_in_the_order_of_their_times_and_not_before() {
    let store = Store::new(DAY);
    store.put("late", "x", Some(30 * SECOND));
    store.put("early", "x", Some(10 * SECOND));
    store.put("ever", "x", None);
    advance(10 * SECOND - Duration::from_millis(1)).await;
    assert_eq!(keys(&store).len(), 3);
    advance(25 * SECOND).await;
    store.put("early", "y", Some(SECOND));
    let gone: Vec<String> = store
        .take_deeds()
        .into_iter()
        .filter(|d| d.who == Who::Time)
        .map(|d| d.key)
        .collect();
    assert_eq!(gone, ["early", "late"]);
    assert_eq!(keys(&store), ["early", "ever"]);
    store.jump(SECOND);
    assert_eq!(keys(&store), ["ever"]);
    // Whoever runs it ends them without being asked.
    store.put("soon", "x", Some(SECOND));
    let running = tokio::spawn({
        let store = store.clone();
        async move { match store.run().await {} }
    });
    sleep(2 * SECOND).await;
    store.put("sooner", "x", Some(SECOND));
    sleep(2 * SECOND).await;
    running.abort();
    let gone = store.take_deeds();
    let ends: Vec<&str> = gone
        .iter()
        .filter(|d| d.after.is_none())
        .map(|d| d.key.as_str())
        .collect();
    assert_eq!(ends, ["early", "soon", "sooner"]);
    let (soon, sooner) = (
        gone.iter().find(|d| d.key == "soon" && d.after.is_none()),
        gone.last(),
    );
    assert_eq!(sooner.unwrap().at - soon.unwrap().at, 2 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn writes_are_guarded_by_what_is_known_and_find_their_own_work_done() {
    let store = Store::new(60 * SECOND);
    let client = store.client();
    let (number, first, expires) = done(client.create("k", "1").await.unwrap());
    assert_eq!((number, expires), (1, Some(Instant::now() + 60 * SECOND)));
    assert!(!first.is_reservation() && first.shares_life(&first));
    assert!(matches!(client.create("k", "1").await.unwrap(), Written::Found(seen) if seen.number == 1));
    let (number, second, expires) = done(client.swap("k", "2", &first, Life::Same).await.unwrap());
    assert_eq!((number, expires), (2, None));
    assert!(second.shares_life(&first) && second != first);
    let again = done(client.swap("k", "2", &first, Life::Same).await.unwrap());
    assert_eq!((again.0, store.number()), (2, 2), "its own work, done before");
    assert!(matches!(
        client.swap("k", "3", &first, Life::Same).await.unwrap(),
        Written::Found(_)
    ));
    advance(30 * SECOND).await;
    let (_, third, expires) = done(client.swap("k", "3", &second, Life::Whole).await.unwrap());
    assert_eq!(expires, Some(Instant::now() + 60 * SECOND));
    assert!(!third.shares_life(&second));
    advance(30 * SECOND).await;
    let (same, until) = client.prolong("k", &third).await.unwrap().unwrap();
    assert_eq!((same, until), (third, Instant::now() + 60 * SECOND));
    assert_eq!(client.expires("k", &third).await.unwrap(), Some(until));
    assert!(!client.delete("k", &second).await.unwrap() && client.delete("k", &third).await.unwrap());
    assert!(client.delete("k", &third).await.unwrap(), "gone it is");
    assert!(client.prolong("k", &third).await.unwrap().is_none());
    assert_eq!(
        client.expires("k", &third).await.unwrap(),
        Some(Instant::now()),
        "over"
    );
    assert!(
        matches!(client.swap("k", "3", &third, Life::Same).await.unwrap(), Written::Found(seen) if seen.entry.is_none())
    );
    store.put("for ever", "x", None);
    let seen = client.read("for ever").await.unwrap().entry.unwrap();
    assert!(seen.handle.is_reservation());
    assert_eq!(client.expires("for ever", &seen.handle).await.unwrap(), None);
    let calls = client.requests();
    assert!(client.read("none").await.unwrap().entry.is_none());
    assert_eq!(client.requests(), calls + 1);
}

/// After a listing at this revision, in a store that was restored so often.
fn at(number: i64, history: u64) -> Mark {
    Mark {
        number,
        newest: 0,
        history,
    }
}

/// What a watch tells until it ends, or for a while.
async fn watched(client: &registry::memory::Client, after: Mark) -> (Vec<i64>, Option<End>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = {
        let told = Arc::clone(&told);
        move |news: Told<Stamp>| {
            if let Told::Changes(changes) = news {
                told.lock()
                    .unwrap()
                    .extend(changes.iter().map(|(number, _)| *number));
            }
        }
    };
    let end = timeout(SECOND, client.watch(after, &sink)).await.ok();
    let told = told.lock().unwrap().clone();
    (told, end)
}

#[tokio::test(start_paused = true)]
async fn a_watch_begins_where_it_is_asked_to_unless_that_is_forgotten_or_to_come() {
    let store = Store::new(DAY);
    let client = store.client();
    for value in ["1", "2", "3"] {
        store.put("k", value, None);
    }
    assert_eq!(watched(&client, at(1, 0)).await, (vec![2, 3], None));
    assert_eq!(watched(&client, at(3, 0)).await, (vec![], None));
    store.compact();
    assert_eq!(watched(&client, at(2, 0)).await.1, Some(End::Compacted));
    assert_eq!(watched(&client, at(3, 0)).await, (vec![], None));
    // So much of the history is kept.
    for n in 0..4096 {
        store.put("k", &n.to_string(), None);
    }
    assert_eq!(watched(&client, at(3, 0)).await.0.len(), 4096);
    store.put("k", "one more", None);
    assert_eq!(watched(&client, at(3, 0)).await.1, Some(End::Compacted));
    assert_eq!(watched(&client, at(4, 0)).await.0.len(), 4096);
}

#[tokio::test(start_paused = true)]
async fn watches_are_cut_for_one_or_all_and_who_is_cut_off_finds_out_by_the_silence() {
    let store = Store::new(DAY);
    let (one, two) = (Arc::new(store.client()), Arc::new(store.client()));
    assert_ne!(one.number(), two.number());
    let watch = |client: &Arc<registry::memory::Client>| {
        let client = Arc::clone(client);
        tokio::spawn(async move { client.watch(at(0, 0), &|_| {}).await })
    };
    let (first, second) = (watch(&one), watch(&two));
    sleep(SECOND).await;
    store.cut_watches(Some(one.number()));
    assert!(matches!(first.await.unwrap(), End::Failed(why) if why.contains("cut")));
    sleep(SECOND).await;
    assert!(!second.is_finished());
    store.cut_watches(None);
    assert!(matches!(second.await.unwrap(), End::Failed(_)));
    let silent = watch(&one);
    sleep(SECOND).await;
    let since = Instant::now();
    one.cut_off(true);
    assert!(one.read("k").await.is_err());
    assert_eq!(since.elapsed(), 5 * SECOND);
    assert!(one.state().borrow().endpoint.is_none() && one.state().borrow().last_failure.is_some());
    assert!(matches!(silent.await.unwrap(), End::Failed(why) if why.contains("nothing came")));
    assert_eq!(since.elapsed(), 15 * SECOND);
    one.cut_off(false);
    assert!(one.read("k").await.is_ok() && one.state().borrow().endpoint.is_some());
    // Cut off for a moment it misses nothing.
    let short = watch(&one);
    sleep(SECOND).await;
    one.cut_off(true);
    sleep(10 * SECOND).await;
    one.cut_off(false);
    sleep(10 * SECOND).await;
    one.cut_off(true);
    sleep(10 * SECOND).await;
    assert!(!short.is_finished(), "the silence began anew");
    short.abort();
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_lost_or_slow_is_given_up_and_one_that_was_unanswered_was_carried_out() {
    let store = Store::new(DAY);
    let by = |fate, there, back| store.client_by(Box::new(move |_| Passage { fate, there, back }));
    let create = async |client: registry::memory::Client, key: &str| {
        let since = Instant::now();
        let written = client.create(key, "x").await;
        (written.is_ok(), since.elapsed())
    };
    let none = Duration::ZERO;
    assert_eq!(
        create(by(Fate::Lost, none, none), "lost").await,
        (false, 5 * SECOND)
    );
    assert_eq!(
        create(by(Fate::Unanswered, none, none), "unanswered").await,
        (false, 5 * SECOND)
    );
    assert_eq!(
        create(by(Fate::Answered, SECOND, 2 * SECOND), "slow").await,
        (true, 3 * SECOND)
    );
    assert!(!create(by(Fate::Answered, 5 * SECOND, none), "late").await.0);
    assert!(!create(by(Fate::Answered, SECOND, 4 * SECOND), "too late").await.0);
    assert_eq!(keys(&store), ["slow", "too late", "unanswered"]);
}

#[tokio::test(start_paused = true)]
async fn a_store_goes_back_to_what_it_was_and_says_what_that_changed() {
    let store = Store::new(60 * SECOND);
    store.set_config(Some("{}"));
    store.put("stays", "1", None);
    store.put("changes", "1", Some(10 * SECOND));
    let backup = store.backup();
    store.put("changes", "2", None);
    store.put("goes", "1", None);
    store.take_deeds();
    store.restore(&backup);
    assert_eq!(
        (keys(&store), store.number()),
        (vec!["changes".to_owned(), "stays".to_owned()], 2)
    );
    assert_eq!(
        store.entry("changes").unwrap().expires,
        Some(Instant::now() + 60 * SECOND)
    );
    let deeds: Vec<(Who, String)> = store
        .take_deeds()
        .into_iter()
        .map(|deed| (deed.who, deed.key))
        .collect();
    assert_eq!(
        deeds,
        [
            (Who::Restore, "changes".to_owned()),
            (Who::Restore, "goes".to_owned())
        ]
    );
    let client = store.client();
    assert_eq!(watched(&client, at(2, 0)).await.1, Some(End::Exchanged));
    assert_eq!(watched(&client, at(1, 1)).await.1, Some(End::Compacted));
    assert_eq!(watched(&client, at(2, 1)).await, (vec![], None));
    store.wipe();
    assert_eq!((keys(&store).len(), store.number()), (0, 0));
    assert_eq!(client.config().await.unwrap(), b"{}");
    store.set_config(None);
    assert!(client.config().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_was_reserved_for_a_write_is_given_back_unless_an_entry_lives_by_it() {
    let store = Store::new(DAY);
    let mut lost = true;
    let client = store.client_by(Box::new(move |call| Passage {
        fate: match call {
            "create" if std::mem::take(&mut lost) => Fate::Unanswered,
            _ => Fate::Answered,
        },
        ..Passage::default()
    }));
    client.create("k", "x").await.unwrap_err();
    client.give_back().await;
    assert_eq!(keys(&store), Vec::<String>::new(), "nobody knew of it");
    client.create("k", "x").await.unwrap();
    client.give_back().await;
    assert_eq!(keys(&store), ["k"]);
    let change: Change<Stamp> = Change::Gone { key: "k".to_owned() };
    assert_eq!(change.key(), "k");
}
