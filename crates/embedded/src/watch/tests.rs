use super::*;

use crate::store::Opened;

async fn put(opened: &Opened, key: &str, value: &str) -> i64 {
    let request = pb::PutRequest {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    };
    opened.writer.put(request).await.unwrap().header.unwrap().revision
}

fn stream(opened: &Opened) -> Stream {
    Stream {
        store: opened.store.clone(),
        inbox: Arc::default(),
        watchers: BTreeMap::new(),
        answers: VecDeque::new(),
        next_id: 0,
        progress_wanted: false,
    }
}

fn create(key: &str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: key.into(),
        ..Default::default()
    }
}

/// All that is to be sent now.
fn drain(stream: &mut Stream) -> Vec<pb::WatchResponse> {
    let mut all = Vec::new();
    while stream.has_something() {
        all.extend(stream.next().unwrap());
    }
    all
}

#[tokio::test]
async fn watcher_when_nothing_was_sent_since_the_last_tick_hears_how_far_it_is() {
    let dir = tempfile::TempDir::new().unwrap();
    let opened = Store::open(dir.path()).unwrap();
    let mut stream = stream(&opened);
    for (id, progress_notify) in [(1, true), (2, false)] {
        stream.create(pb::WatchCreateRequest {
            watch_id: id,
            progress_notify,
            ..create("a")
        });
    }
    let created = drain(&mut stream);
    assert_eq!(
        created
            .iter()
            .map(|r| (r.watch_id, r.created))
            .collect::<Vec<_>>(),
        [(1, true), (2, true)]
    );
    let ticked = |stream: &mut Stream| {
        stream.tick();
        drain(stream)
            .iter()
            .map(|r| (r.watch_id, r.header.unwrap().revision))
            .collect::<Vec<_>>()
    };
    assert_eq!(ticked(&mut stream), [(1, 1)]);
    let revision = put(&opened, "a", "1").await;
    assert_eq!(drain(&mut stream).len(), 2);
    assert_eq!(ticked(&mut stream), [], "it has just heard");
    assert_eq!(ticked(&mut stream), [(1, revision)]);
    // While something waits to be sent progress would be a lie.
    put(&opened, "a", "2").await;
    stream.tick();
    assert!(stream.answers.is_empty());
}

#[tokio::test]
async fn watchers_when_created_have_ids_of_their_own_and_wrong_ones_are_refused() {
    let dir = tempfile::TempDir::new().unwrap();
    let opened = Store::open(dir.path()).unwrap();
    let mut stream = stream(&opened);
    let made = |stream: &mut Stream, request: pb::WatchCreateRequest| {
        stream.create(request);
        let [answer] = &drain(stream)[..] else { panic!() };
        (answer.watch_id, answer.canceled, answer.cancel_reason.clone())
    };
    let with_id = |watch_id| pb::WatchCreateRequest {
        watch_id,
        ..create("a")
    };
    let fine = |id| (id, false, String::new());
    assert_eq!(made(&mut stream, create("a")), fine(0));
    assert_eq!(made(&mut stream, with_id(1)), fine(1));
    assert_eq!(made(&mut stream, create("a")), fine(2), "the next that is free");
    assert_eq!(made(&mut stream, create("a")), fine(3));
    let (id, refused, reason) = made(&mut stream, with_id(1));
    assert_eq!((id, refused), (NO_WATCHER, true));
    assert!(reason.contains("duplicate watch ID"), "{reason}");
    let empty = pb::WatchCreateRequest {
        range_end: b"a".to_vec(),
        ..create("b")
    };
    assert!(made(&mut stream, empty).2.contains("range is empty"));
    stream.cancel(1);
    stream.cancel(99);
    let [canceled] = &drain(&mut stream)[..] else {
        panic!()
    };
    assert_eq!((canceled.watch_id, canceled.canceled), (1, true));
    stream.take(pb::WatchRequest {
        request_union: Some(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})),
    });
    let [progress] = &drain(&mut stream)[..] else {
        panic!()
    };
    assert_eq!(
        (progress.watch_id, progress.header.unwrap().revision),
        (NO_WATCHER, 1)
    );
}

#[tokio::test]
async fn events_when_filtered_or_wanted_with_what_was_before_are_told_so() {
    let dir = tempfile::TempDir::new().unwrap();
    let opened = Store::open(dir.path()).unwrap();
    let mut stream = stream(&opened);
    let filters = |filter: FilterType| vec![filter as i32];
    for (watch_id, request) in [
        (
            1,
            pb::WatchCreateRequest {
                prev_kv: true,
                ..create("a")
            },
        ),
        (
            2,
            pb::WatchCreateRequest {
                filters: filters(FilterType::Noput),
                ..create("a")
            },
        ),
        (
            3,
            pb::WatchCreateRequest {
                filters: filters(FilterType::Nodelete),
                ..create("a")
            },
        ),
    ] {
        stream.create(pb::WatchCreateRequest { watch_id, ..request });
    }
    drain(&mut stream);
    put(&opened, "a", "1").await;
    put(&opened, "a", "2").await;
    put(&opened, "other", "x").await;
    let request = pb::DeleteRangeRequest {
        key: b"a".to_vec(),
        ..Default::default()
    };
    opened.writer.delete(request).await.unwrap();
    let mut told: BTreeMap<i64, Vec<(i32, String)>> = BTreeMap::new();
    for response in drain(&mut stream) {
        let of = told.entry(response.watch_id).or_default();
        of.extend(response.events.iter().map(|event| {
            let before = event
                .prev_kv
                .as_ref()
                .map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
            (event.r#type, before.unwrap_or_default())
        }));
    }
    let (put, delete) = (EventType::Put as i32, EventType::Delete as i32);
    assert_eq!(
        told[&1],
        [(put, String::new()), (put, "1".into()), (delete, "2".into())]
    );
    assert_eq!(told[&2], [(delete, String::new())]);
    assert_eq!(told[&3], [(put, String::new()), (put, String::new())]);
    // From the past, and from what is compacted.
    stream.create(pb::WatchCreateRequest {
        watch_id: 7,
        start_revision: 3,
        ..create("a")
    });
    let all = drain(&mut stream);
    assert_eq!(all.iter().map(|r| r.events.len()).collect::<Vec<_>>(), [0, 2]);
    opened
        .writer
        .compact(pb::CompactionRequest {
            revision: 4,
            physical: false,
        })
        .await
        .unwrap();
    stream.create(pb::WatchCreateRequest {
        watch_id: 8,
        start_revision: 2,
        ..create("a")
    });
    let all = drain(&mut stream);
    assert_eq!(
        (
            all[1].canceled,
            all[1].compact_revision,
            all[1].header.unwrap().revision
        ),
        (true, 4, 0)
    );
    stream.tick();
    assert!(drain(&mut stream).iter().all(|r| r.watch_id != 8));
}

#[tokio::test]
async fn stream_when_it_ends_is_noted_nothing_for_any_more() {
    let dir = tempfile::TempDir::new().unwrap();
    let opened = Store::open(dir.path()).unwrap();
    let mut stream = stream(&opened);
    stream.create(create("a"));
    let inbox = stream.inbox.clone();
    put(&opened, "a", "1").await;
    assert_eq!(inbox.next(), Some(0));
    stream.watchers[&0].tap.take_pending();
    let taps = Arc::downgrade(&stream.watchers[&0].tap);
    drop(stream);
    put(&opened, "a", "2").await;
    assert!(inbox.is_empty() && taps.upgrade().is_none());
}
