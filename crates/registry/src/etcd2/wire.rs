//! From the replies of etcd's v2 API to entries. Everything here reads what others wrote: no input may panic, and no bad entry
//! may take a good one with it.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

use fabric::lease::{LARGEST_VALUE, Rejected, name_of};
use hyper::StatusCode;
use serde::Deserialize;
use tokio::time::Instant;

use super::stamp::Stamp;
use crate::entries::{Change, Entry};
use crate::etcd::Keys;

/// Bytes of a string that are kept: every byte of a value can be written as six. What is cut is larger than any lease's.
pub(super) const LONGEST: usize = 6 * (LARGEST_VALUE + 1);
/// Bytes of a foreign server's words that are repeated.
const WORDS: usize = 200;
/// Why a directory among the leases is none.
const DIRECTORY: &str = "a directory, expected a key with a lease";

/// A node of the store.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Node<'a> {
    #[serde(borrow)]
    pub(super) key: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) value: Cow<'a, str>,
    pub(super) dir: bool,
    /// When it ends, by the clock of whoever wrote it: compared with nothing, it tells one grant of time from another.
    #[serde(borrow)]
    pub(super) expiration: Cow<'a, str>,
    /// Seconds left, rounded up; 0 also where less is left.
    pub(super) ttl: i64,
    pub(super) modified_index: i64,
    pub(super) created_index: i64,
}

/// A reply, or an event.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Reply<'a> {
    #[serde(borrow)]
    pub(super) action: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) node: Node<'a>,
    #[serde(borrow)]
    pub(super) prev_node: Option<Node<'a>>,
}

impl Reply<'_> {
    /// Whether it tells of the end of a node.
    pub(super) fn is_end(&self) -> bool {
        matches!(&*self.action, "delete" | "expire" | "compareAndDelete")
    }

    /// Whether it tells of a write.
    pub(super) fn is_write(&self) -> bool {
        matches!(&*self.action, "set" | "create" | "update" | "compareAndSwap")
    }
}

/// `Key not found`.
pub(super) const NOT_FOUND: u32 = 100;
/// `Compare failed`.
pub(super) const COMPARE_FAILED: u32 = 101;
/// `Not a file`.
pub(super) const NOT_A_FILE: u32 = 102;
/// `Not a directory`.
pub(super) const NOT_A_DIRECTORY: u32 = 104;
/// `Key already exists`.
pub(super) const EXISTS: u32 = 105;
/// `The event in requested index is outdated and cleared`.
pub(super) const CLEARED: u32 = 401;

/// What came in place of what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// etcd says no.
    No {
        /// Its number for that.
        code: u32,
        /// Its words.
        message: String,
        /// The store's index.
        index: i64,
    },
    /// Somebody says no in other words than the v2 API's.
    Http {
        /// HTTP's status.
        status: u16,
        /// Their words.
        words: String,
    },
    /// No answer, or half of one.
    Unanswered {
        /// Why.
        why: String,
        /// The other side took the request and did not answer it in HTTP/1.
        is_foreign: bool,
    },
    /// What came as an answer is none.
    Odd(String),
}

/// HTTP's status for what a server does not know how to do (RFC 9110, section 15.6.2).
const NOT_IMPLEMENTED: u16 = 501;

impl Refused {
    pub(super) fn unanswered(failure: &hyper::Error) -> Refused {
        Refused::Unanswered {
            why: cause_of(failure),
            is_foreign: failure.is_parse() || failure.is_incomplete_message(),
        }
    }

    pub(super) fn broken(failure: &(dyn Error + 'static)) -> Refused {
        Refused::Unanswered {
            why: cause_of(failure),
            is_foreign: false,
        }
    }

    /// Whether another member would say the same.
    pub(super) fn is_final(&self) -> bool {
        match self {
            // 300 and 301: no leader, or none in time.
            Refused::No { code, .. } => !(300..400).contains(code),
            // A member that does not serve this API is no use, as is one that is ill.
            Refused::Http { status, .. } => (400..500).contains(status) && *status != 404,
            Refused::Unanswered { .. } | Refused::Odd(_) => false,
        }
    }

    /// Whether it says no to what was asked, and not merely that something is not there, or is of another time.
    pub(super) fn is_denial(&self) -> bool {
        match self {
            Refused::No { code, .. } => {
                !matches!(*code, NOT_FOUND | COMPARE_FAILED | NOT_A_FILE | EXISTS | CLEARED)
            }
            _ => self.is_final(),
        }
    }

    /// Whether it says that the v2 API is not spoken there, or not with us, and not merely that it cannot be now.
    pub(super) fn is_foreign(&self) -> bool {
        match self {
            // etcd's own codes end before 500; a server of its v3 API alone may say so in etcd's words.
            Refused::No { code, .. } => !(100..500).contains(code),
            Refused::Http { status, .. } => *status == NOT_IMPLEMENTED || (400..500).contains(status),
            Refused::Unanswered { is_foreign, .. } => *is_foreign,
            Refused::Odd(_) => true,
        }
    }
}

/// The cause of a failure, which hyper names one level down.
fn cause_of(failure: &(dyn Error + 'static)) -> String {
    match failure.source() {
        Some(cause) => format!("{failure}: {cause}"),
        None => failure.to_string(),
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::No { code, message, .. } => write!(f, "{message} (error {code})"),
            Refused::Http { status: 404, .. } => {
                f.write_str("HTTP 404: etcd's v2 API is not served there (etcd: --enable-v2)")
            }
            Refused::Http { status, words } => write!(f, "HTTP {status}: {words}"),
            Refused::Unanswered { why, .. } => f.write_str(why),
            Refused::Odd(why) => write!(f, "the answer is none of etcd's v2 API: {why}"),
        }
    }
}

/// Reads an answer that is no success.
pub(super) fn refusal(status: StatusCode, body: &[u8]) -> Refused {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Failure {
        error_code: u32,
        #[serde(default)]
        message: String,
        #[serde(default)]
        cause: String,
        #[serde(default)]
        index: i64,
    }
    #[derive(Deserialize)]
    struct Message {
        message: String,
    }
    if let Ok(failure) = serde_json::from_slice::<Failure>(body) {
        let cause = match failure.cause.is_empty() {
            true => String::new(),
            false => format!(": {}", short(&failure.cause)),
        };
        return Refused::No {
            code: failure.error_code,
            message: format!("{}{cause}", short(&failure.message)),
            index: failure.index,
        };
    }
    let words = match serde_json::from_slice::<Message>(body) {
        Ok(message) => message.message,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    Refused::Http {
        status: status.as_u16(),
        words: short(words.trim()).to_owned(),
    }
}

fn short(words: &str) -> &str {
    words.get(..words.floor_char_boundary(WORDS)).unwrap_or_default()
}

/// Reads a whole reply.
pub(super) fn read(body: &[u8]) -> Result<Reply<'_>, Refused> {
    serde_json::from_slice(body).map_err(|failure| Refused::Odd(failure.to_string()))
}

/// The name of a node among the leases; `None` for one that lies elsewhere, or deeper.
pub(super) fn name_below<'a>(keys: &Keys, key: &'a str) -> Option<&'a str> {
    let below = key.strip_prefix(keys.subnets())?;
    (!below.is_empty() && !below.contains('/')).then_some(below)
}

/// A node as an entry; of one that is a directory with a value that is no lease's.
pub(super) fn entry_of(keys: &Keys, node: &Node<'_>, asked: Instant) -> Option<Entry<Stamp>> {
    let entry = Entry {
        key: name_of(name_below(keys, &node.key)?).into_owned(),
        value: node.value.as_bytes().to_vec(),
        created: node.created_index,
        handle: Stamp::of(node, asked),
    };
    Some(entry.cut())
}

pub(super) fn directory(name: &str) -> Rejected {
    Rejected {
        key: name_of(name).into_owned(),
        reason: DIRECTORY.to_owned(),
    }
}

/// What an event says.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// This happened to an entry, at this index.
    Change(i64, Change<Stamp>),
    /// The leases' directory is gone, with all that was in it.
    Swept(i64),
    /// Nothing that concerns the leases, at this index.
    Elsewhere(i64),
}

impl Event {
    /// When.
    pub fn index(&self) -> i64 {
        match self {
            Event::Change(index, _) | Event::Swept(index) | Event::Elsewhere(index) => *index,
        }
    }
}

/// Reads an event on the watch of all leases.
pub(super) fn event_of(keys: &Keys, reply: &Reply<'_>, asked: Instant) -> Event {
    let node = &reply.node;
    let index = node.modified_index;
    let is_gone = reply.is_end();
    let Some(below) = node.key.strip_prefix(keys.subnets()) else {
        let parent = format!("{}/", node.key.trim_end_matches('/'));
        return match is_gone && keys.subnets().starts_with(&parent) {
            true => Event::Swept(index),
            false => Event::Elsewhere(index),
        };
    };
    let change = match below.split_once('/') {
        // In a directory, of which it is known that it is none of ours.
        Some((_, _)) if is_gone => return Event::Elsewhere(index),
        Some((name, _)) => Change::Unclear(directory(name)),
        None if is_gone => Change::Gone {
            key: name_of(below).into_owned(),
        },
        None if node.dir => Change::Unclear(directory(below)),
        None if reply.is_write() => match entry_of(keys, node, asked) {
            Some(entry) => Change::Put(entry),
            None => return Event::Elsewhere(index),
        },
        None => Change::Unclear(Rejected {
            key: name_of(below).into_owned(),
            reason: format!(
                "event of unknown action {:?}, expected one that puts or deletes",
                short(&reply.action)
            ),
        }),
    };
    Event::Change(index, change)
}
