//! All Nodes, a page at a time: each is let go of as soon as its lease is read.

use std::borrow::Cow;

use fabric::annotations::NodeObject;
use fabric::config::NetworkConfig;
use fabric::lease::Snapshot;
use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::warn;

use super::connection::{Connection, Failed};
use super::{Kube, Own, lock};

/// Nodes of a page. A page of objects of 16 KB is held in memory whole.
const PAGE: usize = 100;
/// Pages of one listing, at most: a server that never comes to an end is none.
const PAGES: usize = 10_000;

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow, default)]
    metadata: ListMetadata<'a>,
    #[serde(borrow, default)]
    items: Vec<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct ListMetadata<'a> {
    #[serde(borrow, default)]
    resource_version: Cow<'a, str>,
    #[serde(borrow, default, rename = "continue")]
    next: Cow<'a, str>,
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
        let mut pages = Pages::default();
        let mut read = Vec::new();
        let mut own_is_there = false;
        for _ in 0..PAGES {
            let text = connection.get_page(&pages.path()).await?;
            let list: List<'_> = serde_json::from_str(&text)
                .map_err(|failure| Failed::Unanswered(format!("no list of Nodes: {failure}")))?;
            for item in &list.items {
                match NodeObject::read(item.get(), &self.options.prefix) {
                    Ok(node) if node.name == own => {
                        own_is_there = true;
                        // What it says beside its lease is asked for by who keeps it.
                        let _ = self.see_own(item.get());
                        read.push(node);
                    }
                    Ok(node) => read.push(node),
                    Err(reason) => warn!("a Node is passed over: {reason}"),
                }
            }
            pages.version = list.metadata.resource_version.into_owned();
            pages.next = list.metadata.next.into_owned();
            if pages.next.is_empty() {
                break;
            }
        }
        if !own_is_there {
            self.note_own(Own::Absent);
        }
        let revision = number_of(&pages.version);
        let mut nodes = lock(&self.nodes);
        let mut listing = nodes.list();
        for node in &read {
            listing.take(node, network);
        }
        Ok(Listed {
            snapshot: listing.end(revision),
            version: pages.version,
        })
    }
}

impl Kube {
    /// The newest version of all: asked of the store itself, at the price of one Node.
    pub(super) async fn newest(&self, connection: &mut Connection) -> Result<i64, Failed> {
        let text = connection.get_page("/api/v1/nodes?limit=1").await?;
        let list: List<'_> = serde_json::from_str(&text)
            .map_err(|failure| Failed::Unanswered(format!("no list of Nodes: {failure}")))?;
        Ok(number_of(&list.metadata.resource_version))
    }
}

/// Where a listing is.
#[derive(Default)]
struct Pages {
    version: String,
    next: String,
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
    fn page_when_the_first_or_a_further_one_then_asked_for_so() {
        let mut pages = Pages::default();
        assert_eq!(pages.path(), "/api/v1/nodes?limit=100");
        pages.next = "ey==".to_owned();
        assert_eq!(pages.path(), "/api/v1/nodes?limit=100&continue=ey%3D%3D");
    }
}
