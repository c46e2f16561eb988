//! Following the Nodes: a listing, and then one stream of what changes, for as long as it lasts.

use std::borrow::Cow;
use std::convert::Infallible;
use std::time::Duration;

use fabric::annotations::NodeObject;
use fabric::config::NetworkConfig;
use fabric::lease::{Delta, Update};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout};
use tracing::{debug, info};

use super::connection::{Connection, Failed, Status, in_words};
use super::keep::condition_in;
use super::listing::number_of;
use super::{Kube, Own, lock};
use crate::chance::Backoff;

/// The server is asked to end a watch after this time, and half as long at random: all at once would come back at once.
const LASTS: Duration = Duration::from_secs(600);
/// Servers speak up once a minute if only to say that nothing happened: one that has been silent for so long is not there any more.
const SILENCE: Duration = Duration::from_secs(150);
/// Largest event, bytes: a store takes objects of a million and a half.
const LARGEST_EVENT: usize = 16 << 20;
/// A buffer that has grown beyond this is let go of.
const KEPT: usize = 256 << 10;

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    resource_version: String,
}

/// How a watch ended.
enum End {
    /// As it was asked to; it goes on from here.
    Over,
    /// What comes next is forgotten: list again.
    Expired,
    /// It broke.
    Broken(Failed),
}

/// See [`crate::Registry::watch`].
pub(super) async fn watch(kube: &Kube, sink: &(dyn Fn(Update) + Send + Sync)) -> Infallible {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2), &kube.chance);
    let mut network = kube.network.subscribe();
    // From where on a watch goes on; none: from a listing.
    let mut version: Option<String> = None;
    loop {
        let wanted = network.borrow_and_update().clone();
        let round = async {
            let Some(wanted) = &wanted else {
                return std::future::pending().await;
            };
            follow(kube, wanted, &mut version, sink, &mut backoff).await
        };
        tokio::select! {
            biased;
            // Another network reads other leases out of the same Nodes.
            _ = network.changed() => version = None,
            () = round => tokio::time::sleep(backoff.step()).await,
        }
    }
}

/// Follows until something ends it, and notes what did.
async fn follow(
    kube: &Kube,
    network: &NetworkConfig,
    version: &mut Option<String>,
    sink: &(dyn Fn(Update) + Send + Sync),
    backoff: &mut Backoff,
) {
    let (Ok(own), Ok(mut connection)) = (kube.own_name().await, kube.connect().await) else {
        return;
    };
    let url = connection.url().to_owned();
    let known = match version.take() {
        Some(from) => match kube.newest(&mut connection).await {
            // A store that was restored or exchanged would be waited for until it has come as far.
            Ok(newest) if newest >= number_of(&from) => Some(from),
            Ok(newest) => {
                info!("the API server is at {newest}, before {from}: listing Nodes again");
                None
            }
            Err(failed) => {
                *version = Some(from);
                kube.failed("list nodes", failed, &url);
                return;
            }
        },
        None => None,
    };
    let from = match known {
        Some(from) => from,
        None => match kube.list(&mut connection, network, &own).await {
            Ok(listed) => {
                let revision = listed.snapshot.revision;
                kube.state.send_modify(|state| state.revision = revision);
                sink(Update::Snapshot(listed.snapshot));
                listed.version
            }
            Err(failed) => {
                kube.failed("list nodes", failed, &url);
                return;
            }
        },
    };
    let mut follower = Follower {
        kube,
        network,
        own,
        version: from,
        sink,
    };
    let end = follower.stream(&mut connection, backoff).await;
    kube.state.send_modify(|state| state.watching = false);
    match end {
        End::Over => {
            debug!("the watch of Nodes has had its time; it goes on");
            *version = Some(follower.version);
        }
        End::Expired => info!(
            "the API server has forgotten what came after {}: listing Nodes again",
            follower.version
        ),
        End::Broken(failed) => {
            // Whatever happened meanwhile is still to be heard from there on.
            *version = Some(follower.version);
            kube.failed("watch nodes", failed, &url);
        }
    }
}

/// Whether a watch cannot go on from where it was: what came after is forgotten (410), or is not there yet (504, of servers that say
/// so).
fn is_expired(code: u16) -> bool {
    matches!(code, 410 | 504)
}

struct Follower<'a> {
    kube: &'a Kube,
    network: &'a NetworkConfig,
    own: String,
    /// Up to here all is known.
    version: String,
    sink: &'a (dyn Fn(Update) + Send + Sync),
}

impl Follower<'_> {
    async fn stream(&mut self, connection: &mut Connection, backoff: &mut Backoff) -> End {
        let lasts = self.kube.chance.jitter(LASTS).as_secs();
        let path = format!(
            "/api/v1/nodes?watch=1&allowWatchBookmarks=true&timeoutSeconds={lasts}&resourceVersion={}",
            self.version
        );
        let body = match connection.stream(&path).await {
            Ok(body) => body,
            Err(Failed::Status { code, .. }) if is_expired(code) => return End::Expired,
            Err(failed) => return End::Broken(failed),
        };
        self.kube.state.send_modify(|state| state.watching = true);
        let began = Instant::now();
        let end = self.read(body).await;
        // One that ends at once, again and again, is not asked for as fast as that.
        if began.elapsed() > Duration::from_secs(5) {
            backoff.reset();
        }
        end
    }

    async fn read(&mut self, mut body: Incoming) -> End {
        let mut buffer: Vec<u8> = Vec::new();
        loop {
            let frame = match timeout(SILENCE, body.frame()).await {
                Err(_) => {
                    let silent = format!("nothing was heard for {} s", SILENCE.as_secs());
                    return End::Broken(Failed::Unanswered(silent));
                }
                Ok(None) => return End::Over,
                Ok(Some(Err(failure))) => return End::Broken(Failed::Unanswered(in_words(&failure))),
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            let mut rest: &[u8] = &data;
            let mut delta = Delta::default();
            let mut end = None;
            while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
                let (line, after) = rest.split_at(at);
                rest = after.get(1..).unwrap_or_default();
                // Most lines come in one piece, and need no copy.
                let whole: &[u8] = if buffer.is_empty() {
                    line
                } else {
                    buffer.extend_from_slice(line);
                    &buffer
                };
                end = self.take(whole, &mut delta);
                buffer.clear();
                if end.is_some() {
                    break;
                }
            }
            self.tell(delta);
            if let Some(end) = end {
                return end;
            }
            buffer.extend_from_slice(rest);
            if buffer.len() > LARGEST_EVENT {
                let large = format!("an event of more than {LARGEST_EVENT} bytes");
                return End::Broken(Failed::Unanswered(large));
            }
            if buffer.is_empty() && buffer.capacity() > KEPT {
                buffer = Vec::new();
            }
        }
    }

    /// Takes one event in; why the watch is at its end, where it is.
    fn take(&mut self, line: &[u8], delta: &mut Delta) -> Option<End> {
        let broken = |reason: String| Some(End::Broken(Failed::Unanswered(reason)));
        let Ok(text) = std::str::from_utf8(line) else {
            return broken("an event that is no text".to_owned());
        };
        if text.trim().is_empty() {
            return None;
        }
        let event: Event<'_> = match serde_json::from_str(text) {
            Ok(event) => event,
            Err(failure) => return broken(format!("an event that cannot be read: {failure}")),
        };
        let object = event.object.get();
        match &*event.kind {
            "ADDED" | "MODIFIED" | "DELETED" => {}
            "BOOKMARK" => {
                self.advance(object);
                return None;
            }
            "ERROR" => {
                let status = serde_json::from_str::<Status>(object).ok();
                return Some(match status {
                    Some(Status { code, .. }) if is_expired(code) => End::Expired,
                    Some(Status { code, message }) => End::Broken(Failed::Status { code, message }),
                    None => End::Expired,
                });
            }
            other => return broken(format!("an event of type {other:?}")),
        }
        match NodeObject::read(object, &self.kube.options.prefix) {
            Ok(node) => {
                let is_gone = event.kind == "DELETED";
                self.note_own(&node, object, is_gone);
                let mut nodes = lock(&self.kube.nodes);
                match is_gone {
                    true => nodes.remove(&node.name, delta),
                    false => nodes.put(&node, self.network, delta),
                }
            }
            Err(reason) => tracing::warn!("a Node is passed over: {reason}"),
        }
        self.advance(object);
        None
    }

    fn note_own(&self, node: &NodeObject, object: &str, is_gone: bool) {
        if node.name == self.own {
            self.kube.note_own(match is_gone {
                true => Own::Absent,
                false => Own::Present {
                    node: Box::new(node.clone()),
                    condition: condition_in(object),
                },
            });
        }
    }

    fn advance(&mut self, object: &str) {
        if let Ok(Object { metadata }) = serde_json::from_str(object)
            && !metadata.resource_version.is_empty()
        {
            self.version = metadata.resource_version;
        }
    }

    fn tell(&self, mut delta: Delta) {
        let is_nothing = delta.changes.is_empty() && delta.rejected.is_empty() && delta.gone.is_empty();
        if is_nothing {
            return;
        }
        let number = number_of(&self.version);
        delta.revision = number;
        self.kube.state.send_if_modified(|state| {
            state.revision = number;
            false
        });
        (self.sink)(Update::Delta(delta));
    }
}
