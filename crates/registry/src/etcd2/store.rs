//! Single entries: each write guarded by the index of the last one that is known, and safe to come twice.
//!
//! INVARIANT: a request whose answer was lost may have been carried out. So a write that finds another state than it expected looks
//! at what is there, and compares it with what was to be written.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use fabric::lease::LARGEST_VALUE;
use hyper::Method;
use tokio::time::{Instant, timeout};

use super::connection::{Ask, At, Connection};
use super::stamp::Stamp;
use super::wire::{CLEARED, COMPARE_FAILED, EXISTS, NOT_A_FILE, NOT_FOUND, Node, Refused, read};
use super::{Store, no_config};
use crate::RegistryError;
use crate::entries::{Entry, Life, Seen, Written};
use crate::etcd::{self, Look, REQUEST_DEADLINE};

/// Writes over an entry since it was seen that are looked at one by one.
const WRITTEN_OVER: u32 = 8;

/// Why a call did not succeed.
pub(super) type CallError = etcd::CallError<Refused>;

/// A node as it is, for those who have no use for the text it was read from.
struct Found {
    at: At,
    value: String,
    is_directory: bool,
    /// It tells of the end of a node.
    is_end: bool,
    created: i64,
    stamp: Stamp,
    /// The one before, and its value.
    before: Option<(Stamp, String)>,
}

impl Found {
    /// Out of an answer to what was asked at this time; `granted`: a write that gave so many seconds.
    fn read(at: At, body: &[u8], asked: Instant, granted: Option<Option<i64>>) -> Result<Found, Refused> {
        let reply = read(body)?;
        let node = &reply.node;
        let before = |node: &Node<'_>| (Stamp::of(node, asked), node.value.clone().into_owned());
        Ok(Found {
            at,
            is_directory: node.dir,
            is_end: reply.is_end(),
            created: node.created_index,
            stamp: match granted {
                Some(ttl) => Stamp::granted(node, asked, ttl),
                None => Stamp::of(node, asked),
            },
            before: reply.prev_node.as_ref().map(before),
            value: reply.node.value.into_owned(),
        })
    }
}

/// What a call was refused with, if it was by etcd itself: number and index.
fn no(error: &CallError) -> Option<(u32, i64)> {
    match error.status() {
        Some(Refused::No { code, index, .. }) => Some((*code, *index)),
        _ => None,
    }
}

fn encode(into: &mut String, text: &str, is_kept: impl Fn(u8) -> bool) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                into.push(char::from(byte))
            }
            byte if is_kept(byte) => into.push(char::from(byte)),
            // Writing to a string does not fail.
            byte => drop(write!(into, "%{byte:02X}")),
        }
    }
}

/// The path of a key, with what is asked of it.
pub(super) fn path_of(key: &str, query: &str) -> String {
    let mut path = "/v2/keys".to_owned();
    encode(&mut path, key, |byte| byte == b'/');
    if !query.is_empty() {
        path.push('?');
        path.push_str(query);
    }
    path
}

fn form_of(fields: &[(&str, &str)]) -> String {
    let mut form = String::new();
    for (name, value) in fields {
        if !form.is_empty() {
            form.push('&');
        }
        form.push_str(name);
        form.push('=');
        encode(&mut form, value, |_| false);
    }
    form
}

fn put(key: &str, query: &str, value: Option<&str>, ttl: Option<i64>) -> Ask {
    let ttl = ttl.map(|seconds| seconds.to_string());
    let mut fields: Vec<(&str, &str)> = Vec::new();
    match value {
        Some(value) => fields.push(("value", value)),
        None => fields.push(("refresh", "true")),
    }
    fields.extend(ttl.iter().map(|ttl| ("ttl", ttl.as_str())));
    Ask {
        method: Method::PUT,
        path: path_of(key, query),
        form: form_of(&fields),
    }
}

impl Store {
    /// Calls, and reads the node in the answer; of a write the seconds it gave.
    async fn node(
        &self,
        call: &'static str,
        ask: Ask,
        granted: Option<Option<i64>>,
    ) -> Result<Found, CallError> {
        let request = |line: Connection| {
            let ask = ask.clone();
            async move {
                let asked = Instant::now();
                let (at, body) = line.whole(ask).await?;
                Found::read(at, &body, asked, granted)
            }
        };
        self.members.call(call, request).await
    }

    /// What is under a whole key; the error's index where nothing is.
    async fn get(&self, key: &str) -> Result<Result<Found, i64>, CallError> {
        let ask = Ask::get(path_of(key, "quorum=true"));
        match self.node("GET", ask, None).await {
            Ok(found) => Ok(Ok(found)),
            Err(error) => match no(&error) {
                Some((NOT_FOUND, index)) => Ok(Err(index)),
                _ => Err(error),
            },
        }
    }

    /// The network config, and the index at which it was so.
    pub(super) async fn network_config(&self) -> Result<(i64, Result<Vec<u8>, RegistryError>), CallError> {
        Ok(match self.get(self.keys.config()).await? {
            Err(index) => (index, Err(no_config(&self.keys))),
            Ok(found) => (found.at.index, self.config_in(found)),
        })
    }

    /// What this API says of the network config, asked of one member.
    pub(crate) async fn look(&self) -> Look {
        for is_last in [false, true] {
            let ask = Ask::get(path_of(self.keys.config(), "quorum=true"));
            let request = |line: Connection| {
                let ask = ask.clone();
                async move {
                    let asked = Instant::now();
                    let (at, body) = line.whole(ask).await?;
                    Found::read(at, &body, asked, None)
                }
            };
            let refused = match self.members.ask_one("GET", request).await {
                Ok(Ok(found)) => {
                    return match self.config_in(found) {
                        Ok(config) => Look::Found(config),
                        Err(missing) => Look::Missing(missing),
                    };
                }
                Ok(Err(refused)) => refused,
                Err(nobody) => return Look::Failed(nobody.into()),
            };
            match refused.status() {
                Some(Refused::No { code: NOT_FOUND, .. }) => return Look::Missing(no_config(&self.keys)),
                // Who hangs up may be about to end.
                Some(Refused::Unanswered { is_foreign: true, .. }) if !is_last => {}
                Some(status) if status.is_foreign() => return Look::Foreign,
                _ => return Look::Failed(refused.into()),
            }
        }
        Look::Foreign
    }

    fn config_in(&self, found: Found) -> Result<Vec<u8>, RegistryError> {
        match found.is_directory {
            false => Ok(found.value.into_bytes()),
            true => Err(RegistryError::NotFound {
                what: "network config",
                place: format!(
                    "{:?} in the registry (etcd v2) is a directory, expected a key",
                    self.keys.config()
                ),
            }),
        }
    }

    /// One entry, and the index at which it is so.
    pub(super) async fn entry(&self, key: &str) -> Result<Seen<Stamp>, CallError> {
        Ok(match self.get(&self.keys.at(key)).await? {
            Err(number) => Seen { number, entry: None },
            Ok(found) => Seen {
                number: found.at.index,
                entry: Some(
                    Entry {
                        key: key.to_owned(),
                        value: found.value.into_bytes(),
                        created: found.created,
                        handle: found.stamp,
                    }
                    .cut(),
                ),
            },
        })
    }

    /// Puts an entry where there is none, with a whole time to live.
    pub(super) async fn create_entry(&self, key: &str, value: &str) -> Result<Written<Stamp>, CallError> {
        let ttl = Some(self.lease_ttl);
        let ask = put(&self.keys.at(key), "prevExist=false", Some(value), ttl);
        let error = match self.node("PUT", ask, Some(ttl)).await {
            Ok(found) => return Ok(done(&found, true)),
            Err(error) => error,
        };
        if no(&error).is_none_or(|(code, _)| code != EXISTS) {
            return Err(error);
        }
        let seen = self.entry(key).await?;
        // A lost answer to the same request shows as an entry that was written once, with our words and for a time: nobody else's.
        let ours = seen.entry.as_ref().filter(|entry| {
            let once = entry.created == entry.handle.modified && entry.handle.grant.is_some();
            once && entry.value == value.as_bytes()
        });
        Ok(match ours {
            Some(entry) => Written::Done {
                number: entry.created,
                handle: entry.handle,
                expires: entry.handle.ends(),
            },
            None => Written::Found(seen),
        })
    }

    /// Puts an entry over the state of it that is known.
    pub(super) async fn swap_entry(
        &self,
        key: &str,
        value: &str,
        known: &Stamp,
        life: Life,
    ) -> Result<Written<Stamp>, CallError> {
        let left = match life {
            Life::Same => known.ends().map(seconds_until),
            Life::Whole => Some(0),
        };
        let is_whole = left == Some(0);
        let ttl = if is_whole { Some(self.lease_ttl) } else { left };
        let query = format!("prevIndex={}", known.modified);
        let ask = put(&self.keys.at(key), &query, Some(value), ttl);
        let error = match self.node("PUT", ask, Some(ttl)).await {
            Ok(found) => return Ok(done(&found, is_whole)),
            Err(error) => error,
        };
        match no(&error) {
            Some((NOT_FOUND, number)) => return Ok(Written::Found(Seen { number, entry: None })),
            Some((COMPARE_FAILED | NOT_A_FILE, _)) => {}
            _ => return Err(error),
        }
        let seen = self.entry(key).await?;
        let is_wanted = |entry: &&Entry<Stamp>| {
            let later = entry.handle.modified > known.modified;
            later && entry.value == value.as_bytes() && entry.handle.grant.is_some() == ttl.is_some()
        };
        Ok(match seen.entry.as_ref().filter(is_wanted) {
            Some(entry) => Written::Done {
                number: entry.handle.modified,
                handle: entry.handle,
                expires: entry.handle.ends(),
            },
            None => Written::Found(seen),
        })
    }

    /// Deletes an entry if it is as known. Whether it is gone now: also when it was before.
    pub(super) async fn delete_entry(&self, key: &str, known: &Stamp) -> Result<bool, CallError> {
        let query = format!("prevIndex={}", known.modified);
        self.delete_if(path_of(&self.keys.at(key), &query)).await
    }

    /// Deletes the network config if it is this. Whether it is gone now.
    pub async fn delete_config(&self, known: &[u8]) -> Result<bool, RegistryError> {
        let mut query = "prevValue=".to_owned();
        encode(&mut query, &String::from_utf8_lossy(known), |_| false);
        Ok(self.delete_if(path_of(self.keys.config(), &query)).await?)
    }

    /// Deletes what a path with its guard names. Whether it is gone now.
    async fn delete_if(&self, path: String) -> Result<bool, CallError> {
        let ask = Ask {
            method: Method::DELETE,
            path,
            form: String::new(),
        };
        match self.node("DELETE", ask, None).await {
            Ok(_) => Ok(true),
            Err(error) => match no(&error) {
                Some((NOT_FOUND, _)) => Ok(true),
                Some((COMPARE_FAILED | NOT_A_FILE, _)) => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// Gives an entry its whole time to live again, if it is as known.
    pub(super) async fn prolong_entry(
        &self,
        key: &str,
        known: &Stamp,
    ) -> Result<Option<(Stamp, Instant)>, CallError> {
        let query = format!("prevExist=true&prevIndex={}", known.modified);
        let ttl = Some(self.lease_ttl);
        let whole = self.keys.at(key);
        let mut value = None;
        if !self.refreshes.load(Ordering::Relaxed) {
            let seen = self.entry(key).await?.entry;
            match seen.and_then(|entry| String::from_utf8(entry.value).ok()) {
                Some(text) if text.len() <= LARGEST_VALUE => value = Some(text),
                _ => return Ok(None),
            }
        }
        let is_refresh = value.is_none();
        let found = match self
            .node("PUT", put(&whole, &query, value.as_deref(), ttl), Some(ttl))
            .await
        {
            Ok(found) => found,
            Err(error) => match no(&error) {
                Some((NOT_FOUND | COMPARE_FAILED, _)) => return Ok(None),
                _ => return Err(error),
            },
        };
        let lost = found
            .before
            .filter(|(_, before)| is_refresh && *before != found.value);
        let stamp = match lost {
            None => found.stamp,
            // COMPAT: an etcd before 2.3 knows no refresh, and takes it for an empty value.
            Some((_, before)) => {
                self.refreshes.store(false, Ordering::Relaxed);
                match self.swap_entry(key, &before, &found.stamp, Life::Whole).await? {
                    Written::Done { handle, .. } => handle,
                    Written::Found(_) => return Ok(None),
                }
            }
        };
        Ok(stamp.ends().map(|ends| (stamp, ends)))
    }

    /// When an entry ends, asked now: an event may have been told late.
    pub(super) async fn entry_ends(&self, key: &str, known: &Stamp) -> Result<Option<Instant>, CallError> {
        if known.grant.is_none() {
            return Ok(None);
        }
        let there = self.entry(key).await?.entry;
        // What it has become is told of; that it is gone, too.
        Ok(there.map_or_else(|| Some(Instant::now()), |entry| entry.handle.ends()))
    }

    /// Whether an entry was once in this state; `None` when what was then is forgotten.
    pub(super) async fn entry_was(&self, key: &str, known: &Stamp) -> Result<Option<bool>, CallError> {
        let whole = self.keys.at(key);
        let index = match self.get(&whole).await? {
            Ok(found) if found.stamp.modified == known.modified => return Ok(Some(found.stamp == *known)),
            Ok(found) => found.stamp.modified,
            Err(index) => index,
        };
        if index < known.modified {
            return Ok(Some(false));
        }
        self.history(&whole, known).await
    }

    /// The same, of an entry that has changed since: what the first event from then on tells.
    async fn history(&self, whole: &str, known: &Stamp) -> Result<Option<bool>, CallError> {
        let Some(past) = self.past(whole, known.modified).await? else {
            return Ok(None);
        };
        if past.stamp.modified == known.modified {
            return Ok(Some(past.stamp == *known));
        }
        Ok(match past.before {
            None => Some(false),
            // A refresh is no event: there was one in between.
            Some((before, _)) if before.modified > known.modified => None,
            Some((before, _)) => Some(before == *known),
        })
    }

    /// Whether an entry stands where the one in this state stood without ever having been gone.
    ///
    /// COMPAT: to etcd a `set` makes a new node, with a new index of creation, also where it writes over an old one. Go flannel and
    /// operators set.
    pub(super) async fn was_written_over(
        &self,
        key: &str,
        known: &Stamp,
        entry: &Entry<Stamp>,
    ) -> Result<bool, CallError> {
        let whole = self.keys.at(key);
        let mut last = *known;
        for _ in 0..WRITTEN_OVER {
            let Some(past) = self.past(&whole, last.modified + 1).await? else {
                return Ok(false);
            };
            // Of one that was gone the last event is that, and of the next nothing was before.
            if past.before.is_none_or(|(before, _)| before != last) || past.is_end {
                return Ok(false);
            }
            if past.created == entry.created {
                return Ok(true);
            }
            last = past.stamp;
        }
        Ok(false)
    }

    /// The first event on a key from this index on; `None` where the store has forgotten, or has nothing to tell.
    async fn past(&self, whole: &str, index: i64) -> Result<Option<Found>, CallError> {
        let ask = Ask::get(path_of(whole, &format!("wait=true&waitIndex={index}")));
        let request = |line: Connection| {
            let ask = ask.clone();
            async move {
                let line = self.beside(&line).await?;
                let asked = Instant::now();
                // Where there is nothing to tell of what was, it waits for what will be.
                match timeout(REQUEST_DEADLINE / 2, line.whole(ask)).await {
                    Ok(answer) => {
                        let (at, body) = answer?;
                        Ok(Some(Found::read(at, &body, asked, None)?))
                    }
                    Err(_) => Ok(None),
                }
            }
        };
        match self.members.call("GET", request).await {
            Err(error) if no(&error).is_some_and(|(code, _)| code == CLEARED) => Ok(None),
            other => other,
        }
    }

    /// A connection of one's own to the same member.
    pub(super) async fn beside(&self, line: &Connection) -> Result<Connection, Refused> {
        let opened = self.members.beside(line).await;
        opened.map_err(|why| Refused::Unanswered {
            why,
            is_foreign: false,
        })
    }
}

fn done(found: &Found, is_whole: bool) -> Written<Stamp> {
    Written::Done {
        number: found.stamp.modified,
        handle: found.stamp,
        expires: found.stamp.ends().filter(|_| is_whole),
    }
}

/// Whole seconds, rounded up; 0 when it is over.
fn seconds_until(ends: Instant) -> i64 {
    let left = ends.saturating_duration_since(Instant::now());
    i64::try_from(left.as_millis().div_ceil(1000)).unwrap_or(i64::MAX)
}
