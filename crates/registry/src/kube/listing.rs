//! All Nodes, a page at a time: each is let go of as soon as its lease is read.

use std::borrow::Cow;
use std::time::Duration;

use fabric::annotations::{NodeObject, Prefix};
use fabric::config::NetworkConfig;
use fabric::go_json::shorten;
use fabric::lease::Snapshot;
use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::warn;

use super::connection::{Connection, Failed};
use super::nodes::Unread;
use super::{Kube, Own};
use crate::chance::Backoff;
use crate::lock;

/// Nodes of a page. A page of objects of 16 KB is held in memory whole.
const PAGE: usize = 100;
/// Pages of one listing, at most: Kubernetes goes up to 5,000 Nodes, and a list that never comes to an end is none.
const PAGES: usize = 1_000;
/// How often a page is asked for again.
const PAGE_ATTEMPTS: usize = 4;

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    metadata: ListMetadata<'a>,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata<'a> {
    #[serde(borrow)]
    resource_version: Cow<'a, str>,
    #[serde(borrow, default, rename = "continue")]
    next: Cow<'a, str>,
}

impl<'a> List<'a> {
    /// INVARIANT: what is no list of Nodes is none without any: all peers would be gone by it.
    fn read(text: &'a str) -> Result<List<'a>, Failed> {
        let odd = |reason: &dyn std::fmt::Display| Failed::Odd(format!("no list of Nodes: {reason}"));
        let list: List<'a> = serde_json::from_str(text).map_err(|failure| odd(&failure))?;
        if list.kind != "NodeList" || list.metadata.resource_version.is_empty() {
            return Err(odd(&format!("its kind is {:?}", shorten(&list.kind))));
        }
        Ok(list)
    }
}

/// A listing: the leases, and from where on a watch goes on.
pub(super) struct Listed {
    pub(super) snapshot: Snapshot,
    /// As the server writes it.
    pub(super) version: String,
}

impl Kube {
    /// Lists all Nodes.
    pub(super) async fn list(
        &self,
        connection: &mut Connection,
        network: &NetworkConfig,
        own: &str,
    ) -> Result<Listed, Failed> {
        let mut read = Vec::new();
        let mut own_is_there = false;
        let take = |node: Result<NodeObject, String>, json: &str| match node {
            Ok(node) => {
                if node.name == own {
                    own_is_there = true;
                    // What it says beside its lease is asked for by who keeps it.
                    self.note_present(&node, json);
                }
                read.push(Ok(node));
            }
            Err(reason) => match unread(json, reason) {
                Ok(unread) => read.push(Err(unread)),
                Err(reason) => warn!("a Node is passed over: {reason}"),
            },
        };
        let version = self.each_node(connection, take).await?;
        if !own_is_there {
            self.note_own(Own::Absent);
        }
        let revision = number_of(&version);
        let mut nodes = lock(&self.nodes);
        let mut listing = nodes.list();
        for node in &read {
            match node {
                Ok(node) => listing.take(node, network),
                Err(unread) => listing.keep(unread),
            }
        }
        let snapshot = listing.end(revision);
        drop(nodes);
        self.compare_own(own);
        Ok(Listed { snapshot, version })
    }

    /// Takes every Node, page by page, as it was read and as it came; from which version on a watch goes on.
    async fn each_node(
        &self,
        connection: &mut Connection,
        mut take: impl FnMut(Result<NodeObject, String>, &str) + Send,
    ) -> Result<String, Failed> {
        let mut pages = Pages::default();
        loop {
            let text = self.page(connection, &pages.path()).await?;
            let list = List::read(&text)?;
            for item in list.items.iter().flatten() {
                take(NodeObject::read(item.get(), &self.options.prefix), item.get());
            }
            if pages.version.is_empty() {
                // Of the first page: what came after it is heard once more rather than not at all.
                pages.version = list.metadata.resource_version.into_owned();
            }
            pages.next = list.metadata.next.into_owned();
            pages.read += 1;
            if pages.next.is_empty() {
                return Ok(pages.version);
            }
            if pages.read == PAGES {
                return Err(Failed::Odd(format!(
                    "a list of Nodes that has more than {PAGES} pages"
                )));
            }
        }
    }

    /// One page. A server that has too much to do is asked for the same page again, not for all of them from the first.
    async fn page(&self, connection: &mut Connection, path: &str) -> Result<String, Failed> {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(8), &self.chance);
        for _ in 0..PAGE_ATTEMPTS {
            match connection.get_page(path).await {
                Err(Failed::Status { code, .. }) if is_busy(code) => tokio::time::sleep(backoff.step()).await,
                other => return other,
            }
        }
        connection.get_page(path).await
    }

    /// The newest version of all: asked of the store itself, at the price of one Node.
    pub(super) async fn newest(&self, connection: &mut Connection) -> Result<i64, Failed> {
        let text = connection.get_page("/api/v1/nodes?limit=1").await?;
        Ok(number_of(&List::read(&text)?.metadata.resource_version))
    }
}

/// The Nodes of a first page, `None` for one that cannot be read, and whether these are all.
pub(super) fn sample_of(text: &str, prefix: &Prefix) -> Option<(Vec<Option<NodeObject>>, bool)> {
    let list = List::read(text).ok()?;
    let items = list.items.iter().flatten();
    let nodes = items
        .map(|item| NodeObject::read(item.get(), prefix).ok())
        .collect();
    Some((nodes, list.metadata.next.is_empty()))
}

/// A Node object that cannot be read, of which the name can; else why.
pub(super) fn unread(json: &str, reason: String) -> Result<Unread, String> {
    #[derive(Deserialize)]
    struct Named {
        metadata: NameAlone,
    }
    #[derive(Deserialize)]
    struct NameAlone {
        name: String,
    }
    match serde_json::from_str::<Named>(json) {
        Ok(Named { metadata }) if !metadata.name.is_empty() => Ok(Unread {
            name: metadata.name,
            reason,
        }),
        _ => Err(reason),
    }
}

/// Whether a server says that it has too much to do, or something behind it does.
pub(super) fn is_busy(code: u16) -> bool {
    code == 429 || (500..600).contains(&code)
}

/// Where a listing is.
#[derive(Default)]
struct Pages {
    version: String,
    next: String,
    read: usize,
}

impl Pages {
    fn path(&self) -> String {
        let mut path = format!("/api/v1/nodes?limit={PAGE}");
        if !self.next.is_empty() {
            path.push_str("&continue=");
            percent_encode(&mut path, &self.next);
        }
        path
    }
}

/// COMPAT: a resource version is opaque by contract. Every server that there is counts, and what is not a number only means that
/// nothing can be said of what is newer.
pub(super) fn number_of(version: &str) -> i64 {
    version.parse().unwrap_or_default()
}

/// Appends a value of a query (RFC 3986).
pub(super) fn percent_encode(path: &mut String, value: &str) {
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                path.push(char::from(byte))
            }
            byte => path.push_str(&format!("%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_when_it_has_signs_of_a_query_then_they_are_written_otherwise() {
        let mut path = String::new();
        percent_encode(&mut path, "aZ9-._~=/&+ é");
        assert_eq!(path, "aZ9-._~%3D%2F%26%2B%20%C3%A9");
    }

    #[test]
    fn list_when_it_is_none_of_nodes_then_refused_and_not_taken_for_an_empty_one() {
        let good = r#"{"kind":"NodeList","metadata":{"resourceVersion":"7"},"items":null}"#;
        assert!(List::read(good).is_ok_and(|list| list.items.is_none()));
        for odd in [
            "{}",
            "[]",
            "",
            r#"{"kind":"Status","metadata":{},"code":200}"#,
            r#"{"kind":"PodList","metadata":{"resourceVersion":"7"},"items":[]}"#,
            r#"{"kind":"NodeList","metadata":{"resourceVersion":""},"items":[]}"#,
            r#"{"kind":"NodeList","metadata":{},"items":[]}"#,
            r#"{"kind":"NodeList","items":[]}"#,
        ] {
            assert!(matches!(List::read(odd), Err(Failed::Odd(_))), "{odd}");
        }
        assert!(
            [429, 500, 503, 504].into_iter().all(is_busy) && ![200, 401, 403, 410].into_iter().any(is_busy)
        );
    }

    #[test]
    fn page_when_the_first_or_a_further_one_then_asked_for_so() {
        let mut pages = Pages::default();
        assert_eq!(pages.path(), "/api/v1/nodes?limit=100");
        pages.next = "ey==".to_owned();
        assert_eq!(pages.path(), "/api/v1/nodes?limit=100&continue=ey%3D%3D");
    }
}
