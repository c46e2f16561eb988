//! Following the Nodes: a listing, and then one stream of what changes, for as long as it lasts.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fabric::annotations::NodeObject;
use fabric::config::NetworkConfig;
use fabric::lease::{Delta, Update};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use memchr::memchr;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::connection::{Connection, Failed, Status, in_words};
use super::listing::{is_busy, number_of, percent_encode, unread};
use super::{Kube, Own};
use crate::chance::Backoff;
use crate::{REASSERTION, STOOD, lock};

/// The server is asked to end a watch after this time, and half as long at random: all at once would come back at once.
const LASTS: Duration = Duration::from_secs(600);
/// Servers with bookmarks speak up once a minute if only to say that nothing happened. One that has been silent for so long may not be
/// there any more, and of a cluster in which nothing happens nothing is lost by asking anew.
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
struct Bookmark {
    metadata: BookmarkMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMetadata {
    #[serde(default)]
    resource_version: String,
}

/// Type and object of an event as every API server writes it, without a look into the object: of a heartbeat's sixteen kilobytes most
/// are of no interest.
fn in_two(text: &str) -> Option<(&str, &str)> {
    let rest = text.trim_end().strip_prefix(r#"{"type":""#)?;
    let (kind, rest) = rest.split_once('"')?;
    let object = rest.strip_prefix(r#","object":"#)?.strip_suffix('}')?;
    let is_word = kind.bytes().all(|byte| byte.is_ascii_uppercase());
    is_word.then_some((kind, object))
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

/// How soon to ask again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Whoever was away is back, or something ended that is to go on.
    Soon,
    /// The server has too much to do already, or says no.
    Later,
}

/// Where a watch goes on.
#[derive(Default)]
struct Place {
    /// From this version on; none: from a listing.
    version: Option<String>,
    /// What came after this version could not be read.
    stuck: Option<String>,
}

/// See [`crate::Registry::watch`].
pub(super) async fn watch(kube: &Kube, sink: &(dyn Fn(Update) + Send + Sync)) -> Infallible {
    let mut soon = Backoff::new(Duration::from_millis(100), Duration::from_secs(2), &kube.chance);
    // A server that has just started refuses what it will allow in a moment: it does not know its rules yet.
    let mut later = Backoff::new(Duration::from_millis(200), Duration::from_secs(30), &kube.chance);
    let mut network = kube.network.subscribe();
    let mut place = Place::default();
    loop {
        let wanted = network.borrow_and_update().clone();
        let round = async {
            let Some(wanted) = &wanted else {
                return std::future::pending().await;
            };
            let began = Instant::now();
            let pace = follow(kube, wanted, &mut place, sink).await;
            // One that ends at once, again and again, is not asked for as fast as that.
            if began.elapsed() > STOOD {
                soon.reset();
                later.reset();
            }
            pace
        };
        tokio::select! {
            biased;
            // Another network reads other leases out of the same Nodes.
            _ = network.changed() => place = Place::default(),
            pace = round => tokio::time::sleep(match pace {
                Pace::Soon => soon.step(),
                Pace::Later => later.step(),
            }).await,
        }
    }
}

/// Follows until something ends it, and notes what did.
async fn follow(
    kube: &Kube,
    network: &NetworkConfig,
    place: &mut Place,
    sink: &(dyn Fn(Update) + Send + Sync),
) -> Pace {
    let Ok(own) = kube.own_name().await else {
        return Pace::Soon;
    };
    let mut connection = match kube.connect().await {
        Ok(connection) => connection,
        Err(_) => {
            kube.note_away();
            return Pace::Soon;
        }
    };
    let url = connection.url().to_owned();
    let from = match begin(
        kube,
        network,
        &own,
        place.version.as_deref(),
        &mut connection,
        sink,
    )
    .await
    {
        Ok(from) => from,
        Err(failed) => {
            let pace = failed.pace();
            kube.failed("list nodes", failed, &url);
            kube.note_away();
            return pace;
        }
    };
    let mut follower = Follower {
        kube,
        network,
        own,
        version: from,
        sink,
    };
    let end = follower.stream(&mut connection).await;
    kube.state.send_modify(|state| state.watching = false);
    let Follower { version, .. } = follower;
    place.version = match &end {
        End::Expired => None,
        // What cannot be read comes again from where it came: the second time it is got round by a listing.
        End::Broken(Failed::Odd(_)) if place.stuck.as_ref() == Some(&version) => None,
        // Whatever happened meanwhile is still to be heard from there on.
        End::Over | End::Broken(_) => Some(version.clone()),
    };
    place.stuck = None;
    match end {
        End::Over => {
            debug!("the watch of Nodes has had its time; it goes on");
            Pace::Soon
        }
        End::Expired => {
            info!("the API server has forgotten what came after {version}: listing Nodes again");
            Pace::Soon
        }
        End::Broken(failed) => {
            if matches!(failed, Failed::Odd(_)) {
                place.stuck = Some(version);
            }
            let pace = failed.pace();
            kube.failed("watch nodes", failed, &url);
            kube.note_away();
            pace
        }
    }
}

/// From where on to watch: from where it was, as long as the server's store is the one that was followed, and else from a listing,
/// which is told.
async fn begin(
    kube: &Kube,
    network: &NetworkConfig,
    own: &str,
    version: Option<&str>,
    connection: &mut Connection,
    sink: &(dyn Fn(Update) + Send + Sync),
) -> Result<String, Failed> {
    // A store that was restored or exchanged would be waited for until it has come as far.
    let newest = kube.newest(connection).await?;
    let known = kube.known.load(Ordering::Relaxed);
    if newest < known {
        warn!(
            "the API server is at {newest}, before {known}: its store was restored or exchanged; nodes get a moment to say again what \
             is theirs"
        );
        tokio::time::sleep(REASSERTION).await;
    } else if let Some(version) = version {
        return Ok(version.to_owned());
    }
    let listed = kube.list(connection, network, own).await?;
    let revision = listed.snapshot.revision;
    kube.known.store(revision, Ordering::Relaxed);
    kube.state.send_modify(|state| state.revision = revision);
    sink(Update::Snapshot(listed.snapshot));
    Ok(listed.version)
}

impl Failed {
    fn pace(&self) -> Pace {
        match self {
            Failed::Unanswered(_) | Failed::Odd(_) => Pace::Soon,
            Failed::Status { .. } => Pace::Later,
        }
    }
}

/// Whether a watch cannot go on from where it was: what came after is forgotten, or is not there yet.
fn is_expired(code: u16, message: &str) -> bool {
    code == 410 || code == 504 && message.contains("Too large resource version")
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
    async fn stream(&mut self, connection: &mut Connection) -> End {
        let lasts = self.kube.chance.jitter(LASTS).as_secs();
        let mut path =
            format!("/api/v1/nodes?watch=1&allowWatchBookmarks=true&timeoutSeconds={lasts}&resourceVersion=");
        percent_encode(&mut path, &self.version);
        let body = match connection.stream(&path).await {
            Ok(body) => body,
            Err(Failed::Status { code, message }) if is_expired(code, &message) => return End::Expired,
            Err(failed) => return End::Broken(failed),
        };
        self.kube.state.send_modify(|state| state.watching = true);
        self.read(body).await
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
            while let Some(at) = memchr(b'\n', rest) {
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
                return End::Broken(Failed::Odd(large));
            }
            if buffer.is_empty() && buffer.capacity() > KEPT {
                buffer = Vec::new();
            }
        }
    }

    /// Takes one event in; why the watch is at its end, where it is.
    fn take(&mut self, line: &[u8], delta: &mut Delta) -> Option<End> {
        let broken = |reason: String| Some(End::Broken(Failed::Odd(reason)));
        let Ok(text) = std::str::from_utf8(line) else {
            return broken("an event that is no text".to_owned());
        };
        if text.trim().is_empty() {
            return None;
        }
        let event: Event<'_>;
        let (kind, object) = match in_two(text) {
            Some(parts) => parts,
            None => {
                event = match serde_json::from_str(text) {
                    Ok(event) => event,
                    Err(failure) => return broken(format!("an event that cannot be read: {failure}")),
                };
                (&*event.kind, event.object.get())
            }
        };
        match kind {
            "ADDED" | "MODIFIED" | "DELETED" => {}
            "BOOKMARK" => {
                // An object with nothing but its version.
                if let Ok(Bookmark { metadata }) = serde_json::from_str(object) {
                    self.advance(metadata.resource_version);
                }
                return None;
            }
            "ERROR" => {
                let status = serde_json::from_str::<Status>(object).ok();
                return Some(match status {
                    Some(Status { code, message }) if is_expired(code, &message) => End::Expired,
                    Some(Status { code, message }) if is_busy(code) => {
                        End::Broken(Failed::Status { code, message })
                    }
                    Some(Status { code, message }) => {
                        End::Broken(Failed::Odd(format!("error {code}: {message}")))
                    }
                    None => End::Broken(Failed::Odd("an error that cannot be read".to_owned())),
                });
            }
            other => return broken(format!("an event of type {other:?}")),
        }
        match NodeObject::read(object, &self.kube.options.prefix) {
            Ok(node) => {
                let is_gone = kind == "DELETED";
                if node.name == self.own {
                    match is_gone {
                        true => self.kube.note_own(Own::Absent),
                        false => self.kube.note_present(&node, object),
                    }
                }
                let mut nodes = lock(&self.kube.nodes);
                match is_gone {
                    true => nodes.remove(&node.name, delta),
                    false => nodes.put(&node, self.network, delta),
                }
                drop(nodes);
                self.advance(node.version);
            }
            Err(reason) => match unread(object, reason) {
                Ok(unread) if kind == "DELETED" => lock(&self.kube.nodes).remove(&unread.name, delta),
                Ok(unread) => lock(&self.kube.nodes).keep(unread, delta),
                // Of whom it was is not known: whoever it was has changed.
                Err(reason) => return broken(format!("an event whose object cannot be read: {reason}")),
            },
        }
        None
    }

    fn advance(&mut self, version: String) {
        if !version.is_empty() {
            self.kube.known.fetch_max(number_of(&version), Ordering::Relaxed);
            self.version = version;
        }
    }

    fn tell(&self, mut delta: Delta) {
        if delta.is_nothing() {
            return;
        }
        self.kube.compare_own(&self.own);
        let number = number_of(&self.version);
        delta.revision = number;
        self.kube.state.send_if_modified(|state| {
            state.revision = number;
            false
        });
        (self.sink)(Update::Delta(delta));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_when_written_as_servers_do_then_in_two_and_else_left_to_the_parser() {
        assert_eq!(
            in_two(r#"{"type":"ADDED","object":{"a":{}}}"#),
            Some(("ADDED", r#"{"a":{}}"#))
        );
        for other in [
            r#"{"object":{"a":{}},"type":"ADDED"}"#,
            r#"{"type": "ADDED","object":{}}"#,
            r#"{"type":"A\u0044DED","object":{}}"#,
            r#"{"type":"ADDED","more":1,"object":{}}"#,
            r#"{"type":"ADDED","object":{}"#,
            "",
        ] {
            let read = in_two(other);
            assert!(
                read.is_none_or(|(_, object)| serde_json::from_str::<serde_json::Value>(object).is_err()),
                "{other}: {read:?}"
            );
        }
    }
}
