//! One watch of etcd's: a stream over which everything comes, at no request per event.

use etcd_proto::etcdserverpb::watch_client::WatchClient;
use etcd_proto::etcdserverpb::watch_request::RequestUnion;
use etcd_proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use etcd_proto::mvccpb::event::EventType;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status, Streaming};

use super::connection::{Connection, LARGEST_REPLY, describe};
use super::store::{Stamp, Store};
use super::wire::{Told as Response, changes_from, told as read};
use super::{health, no_config};
use crate::RegistryError;
use crate::entries::{Change, End, Mark, Told};
use crate::etcd::{Line, REQUEST_DEADLINE};

/// Events of one revision are joined from fragments up to this many; etcd allows far fewer per transaction.
const MOST_EVENTS: usize = 1 << 20;

/// Watches from the revision after a listing's.
pub(super) async fn watch(store: &Store, after: Mark, told: &(dyn Fn(Told<Stamp>) + Send + Sync)) -> End {
    let connection = match store.members.line().await {
        Ok(connection) => connection,
        Err(error) => return End::Failed(RegistryError::from(error).to_string()),
    };
    let failed = match timeout(
        REQUEST_DEADLINE,
        open(connection.clone(), all_leases(store, after.number + 1)),
    )
    .await
    {
        Err(_) => "no answer to the watch".to_owned(),
        Ok(Err(status)) => describe(&status),
        Ok(Ok((first, _))) if is_behind(&first, after.number) => return exchanged(store, &connection),
        Ok(Ok((first, mut responses))) => {
            // One that is refused says why itself.
            if !first.canceled {
                match store.has(&after).await {
                    Ok(true) => told(Told::Standing),
                    Ok(false) => return exchanged(store, &connection),
                    Err(error) if error.is_compacted() => return End::Compacted,
                    Err(error) => return End::Failed(RegistryError::from(error).to_string()),
                }
            }
            let over = tokio::select! {
                biased;
                over = deliver(store, told, first, &mut responses) => over,
                never = health::follow(store, &connection) => match never {},
            };
            match over {
                Over::Compacted => return End::Compacted,
                // The member is well; another would say the same.
                Over::Canceled(reason) => {
                    let error = format!("{}: watch: {reason}", connection.endpoint());
                    store.members.note_failure(&error, false);
                    return End::Failed(error);
                }
                Over::Broken(reason) => reason,
            }
        }
    };
    let error = format!("{}: watch: {failed}", connection.endpoint());
    store.members.give_up(&connection, &error).await;
    End::Failed(error)
}

/// The member is well, but what it holds is not what was listed.
fn exchanged(store: &Store, connection: &Connection) -> End {
    let error = format!(
        "{}: watch: the store is not the one that was listed",
        connection.endpoint()
    );
    store.members.note_failure(&error, false);
    End::Exchanged
}

/// Whether the store went back between the listing and the watch. It would keep a watch that begins in its future waiting,
/// and tell nothing of what happens until then.
fn is_behind(first: &WatchResponse, listed: i64) -> bool {
    let number = first.header.as_ref().map_or(i64::MAX, |header| header.revision);
    number < listed
}

/// Tells the network config as it is and as it becomes, until something ends that.
pub(super) async fn follow_config(
    store: &Store,
    told: &(dyn Fn(Result<Vec<u8>, RegistryError>) + Send + Sync),
) {
    let Ok((revision, entry)) = store.entry(store.keys.config()).await else {
        return;
    };
    let tell = |value: Option<Vec<u8>>| told(value.ok_or_else(|| no_config(&store.keys)));
    tell(entry.map(|entry| entry.value));
    let Ok(connection) = store.members.line().await else {
        return;
    };
    let create = WatchCreateRequest {
        key: store.keys.config().as_bytes().to_vec(),
        start_revision: revision + 1,
        ..Default::default()
    };
    // One that does not stand by then is not waited for; whether the member is well is the other watch's to find out.
    let Ok(Ok((first, mut responses))) = timeout(REQUEST_DEADLINE, open(connection, create)).await else {
        return;
    };
    if is_behind(&first, revision) {
        return;
    }
    let mut response = first;
    loop {
        match read(response) {
            Response::Compacted(_) | Response::Canceled(_) => return,
            Response::Progress(_) => {}
            Response::Events { events, .. } => {
                if let Some(event) = events.into_iter().next_back() {
                    let is_put = event.r#type() == EventType::Put;
                    tell(event.kv.filter(|_| is_put).map(|entry| entry.value));
                }
            }
        }
        response = match responses.message().await {
            Ok(Some(response)) => response,
            Ok(None) | Err(_) => return,
        };
    }
}

fn all_leases(store: &Store, start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: store.keys.subnets().as_bytes().to_vec(),
        range_end: store.keys.subnets_end(),
        start_revision,
        progress_notify: true,
        fragment: true,
        ..Default::default()
    }
}

async fn open(
    connection: Connection,
    create: WatchCreateRequest,
) -> Result<(WatchResponse, Streaming<WatchResponse>), Status> {
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
    store: &Store,
    told: &(dyn Fn(Told<Stamp>) + Send + Sync),
    first: WatchResponse,
    responses: &mut Streaming<WatchResponse>,
) -> Over {
    let mut response = first;
    let mut joined: Vec<(i64, Change<Stamp>)> = Vec::new();
    loop {
        match read(response) {
            Response::Compacted(_) => return Over::Compacted,
            Response::Canceled(reason) => return Over::Canceled(reason),
            Response::Progress(revision) => told(Told::Progress(revision)),
            Response::Events { events, more } => {
                // A backlog is told in one piece, with all the values in it: nothing but leases is kept of them.
                joined.extend(changes_from(&store.keys, events));
                if joined.len() > MOST_EVENTS {
                    return Over::Broken("a revision of more than a million events".to_owned());
                }
                if !more {
                    told(Told::Changes(std::mem::take(&mut joined)));
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
