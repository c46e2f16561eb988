//! The one watch: a snapshot, then deltas, then, when anything interrupts, a snapshot again.

use std::convert::Infallible;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use etcd_proto::etcdserverpb::watch_client::WatchClient;
use etcd_proto::etcdserverpb::watch_request::RequestUnion;
use etcd_proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use etcd_proto::mvccpb::Event;
use fabric::lease::{Snapshot, Update};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status, Streaming};
use tracing::{debug, warn};

use super::connection::{Connection, LARGEST_REPLY, describe};
use super::keep::Sighting;
use super::listing::Scope;
use super::wire::{Told, delta_from, told};
use super::{Etcd3, REQUEST_DEADLINE};
use crate::{Backoff, RegistryError};

/// A watch that stood so long was no flapping one: the next break is mended without delay.
const STOOD: Duration = Duration::from_secs(5);
/// A store that went back in time (emptied, restored) gets this long to be told the leases again by their owners before what it
/// lists counts: until then what is known stays in force. Longer than any watch waits before it lists again.
const REASSERTION: Duration = Duration::from_secs(10);
/// Events of one revision are joined from fragments up to this many; etcd allows far fewer per transaction.
const MOST_EVENTS: usize = 1 << 20;

/// Why a watch ended.
enum End {
    /// Its revision was compacted away. Nothing is wrong.
    Compacted,
    /// This, and it was said to those who ask for the state.
    Failed(String),
}

pub(super) async fn watch(etcd: &Etcd3, sink: &(dyn Fn(Update) + Send + Sync)) -> Infallible {
    etcd.watched.store(true, Ordering::Relaxed);
    let mut stash = etcd.stash.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut pause = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut failing = false;
    loop {
        let began = Instant::now();
        let mut stood = false;
        let end = follow(etcd, stash.take(), sink, &mut stood).await;
        etcd.members
            .state()
            .send_if_modified(|state| std::mem::take(&mut state.watching));
        if stood {
            failing = false;
            if began.elapsed() >= STOOD {
                pause.reset();
            }
        }
        match end {
            End::Compacted => debug!("the watch's revision was compacted; listing again"),
            End::Failed(error) if !failing => {
                failing = true;
                warn!(%error, "the watch of leases broke; what is known stays in force, listing again");
            }
            End::Failed(error) => debug!(%error, "the watch of leases cannot be taken up yet"),
        }
        sleep(pause.step()).await;
    }
}

async fn follow(
    etcd: &Etcd3,
    stash: Option<Snapshot>,
    sink: &(dyn Fn(Update) + Send + Sync),
    stood: &mut bool,
) -> End {
    // One that is behind what was followed is not to be gone by yet.
    let stash = stash.filter(|snapshot| snapshot.revision >= etcd.followed().revision());
    let snapshot = match stash {
        Some(snapshot) => {
            etcd.listed_at(snapshot.revision);
            snapshot
        }
        None => match current(etcd).await {
            Ok(snapshot) => snapshot,
            Err(error) => return End::Failed(error),
        },
    };
    let next = snapshot.revision + 1;
    sink(Update::Snapshot(snapshot));
    let connection = match etcd.members.connection().await {
        Ok(connection) => connection,
        Err(error) => return End::Failed(RegistryError::from(error).to_string()),
    };
    let failed = match timeout(REQUEST_DEADLINE, open(etcd, connection.clone(), next)).await {
        Err(_) => "no answer to the watch".to_owned(),
        Ok(Err(status)) => describe(&status),
        Ok(Ok((first, mut responses))) => {
            *stood = true;
            etcd.members.state().send_modify(|state| state.watching = true);
            match deliver(etcd, sink, first, &mut responses).await {
                Over::Compacted => return End::Compacted,
                // The member is well; another would say the same.
                Over::Canceled(reason) => {
                    let error = format!("{}: watch: {reason}", connection.endpoint);
                    etcd.members.note_failure(&error, false);
                    return End::Failed(error);
                }
                Over::Broken(reason) => reason,
            }
        }
    };
    let error = format!("{}: watch: {failed}", connection.endpoint);
    etcd.members.give_up(&connection, &error).await;
    End::Failed(error)
}

/// A listing to go by.
async fn current(etcd: &Etcd3) -> Result<Snapshot, String> {
    let before = etcd.followed();
    let snapshot = listed(etcd).await?;
    let now = etcd.followed();
    if !now.is_of_another_era(before) {
        return Ok(snapshot);
    }
    warn!(
        before = before.revision(),
        now = now.revision(),
        leases = snapshot.leases.len(),
        "the registry went back: it was emptied, restored or exchanged; its nodes get a moment to say again what is theirs"
    );
    sleep(REASSERTION).await;
    listed(etcd).await
}

async fn listed(etcd: &Etcd3) -> Result<Snapshot, String> {
    let own = etcd.followed_key();
    let note =
        |entry: &etcd_proto::mvccpb::KeyValue| own.as_ref().is_some_and(|key| entry.key == key.as_bytes());
    let listing = match etcd.list(Scope::All, &|entry, _| note(entry)).await {
        Ok(listing) => listing,
        Err(error) => return Err(RegistryError::from(error).to_string()),
    };
    let at = etcd.listed_at(listing.snapshot.revision);
    if let Some(key) = own {
        let entry = listing.noted.into_iter().next();
        etcd.tell_follower(&key, Sighting { at, entry });
    }
    Ok(listing.snapshot)
}

async fn open(
    etcd: &Etcd3,
    connection: Connection,
    start_revision: i64,
) -> Result<(WatchResponse, Streaming<WatchResponse>), Status> {
    let create = WatchCreateRequest {
        key: etcd.keys.subnets().as_bytes().to_vec(),
        range_end: etcd.keys.subnets_end(),
        start_revision,
        progress_notify: true,
        fragment: true,
        ..Default::default()
    };
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    // The request side stays open for as long as the watch does.
    let requests = tokio_stream::once(create).chain(tokio_stream::pending());
    let mut request = Request::new(requests);
    // A member cut off from the others must end the watch rather than stay silent.
    request
        .metadata_mut()
        .insert("hasleader", MetadataValue::from_static("true"));
    let origin = connection.origin.clone();
    let mut client = WatchClient::with_origin(connection, origin).max_decoding_message_size(LARGEST_REPLY);
    let mut responses = client.watch(request).await?.into_inner();
    match responses.message().await? {
        Some(first) => Ok((first, responses)),
        None => Err(Status::unavailable("the server ended the watch at once")),
    }
}

enum Over {
    Compacted,
    Canceled(String),
    Broken(String),
}

async fn deliver(
    etcd: &Etcd3,
    sink: &(dyn Fn(Update) + Send + Sync),
    first: WatchResponse,
    responses: &mut Streaming<WatchResponse>,
) -> Over {
    let mut response = first;
    let mut joined: Vec<Event> = Vec::new();
    loop {
        match told(response) {
            Told::Compacted(_) => return Over::Compacted,
            Told::Canceled(reason) => return Over::Canceled(reason),
            Told::Progress(revision) => etcd.note_revision(revision),
            Told::Events { events, more } => {
                joined.extend(events);
                if joined.len() > MOST_EVENTS {
                    return Over::Broken("a revision of more than a million events".to_owned());
                }
                if !more {
                    apply(etcd, sink, &std::mem::take(&mut joined));
                }
            }
        }
        response = match responses.message().await {
            Ok(Some(response)) => response,
            Ok(None) => return Over::Broken("the server ended the stream".to_owned()),
            Err(status) => return Over::Broken(describe(&status)),
        };
    }
}

fn apply(etcd: &Etcd3, sink: &(dyn Fn(Update) + Send + Sync), events: &[Event]) {
    if let Some(key) = etcd.followed_key() {
        let own = |event: &&Event| event.kv.as_ref().is_some_and(|entry| entry.key == key.as_bytes());
        if let Some(event) = events.iter().rfind(own)
            && let Some(entry) = &event.kv
        {
            let put = event.r#type == 0;
            let at = etcd.followed_to(entry.mod_revision);
            let entry = put.then(|| entry.clone());
            etcd.tell_follower(&key, Sighting { at, entry });
        }
    }
    if let Some(delta) = delta_from(&etcd.keys, events) {
        etcd.followed_to(delta.revision);
        etcd.note_revision(delta.revision);
        sink(Update::Delta(delta));
    }
}
