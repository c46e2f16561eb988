//! All leases at one index, object by object as they come: the API has no pages.

use std::collections::VecDeque;
use std::time::Duration;

use fabric::digest::fnv1a;
use tokio::time::Instant;

use super::connection::{Ask, Connection};
use super::stamp::Stamp;
use super::store::{CallError, path_of};
use super::wire::{LONGEST, NOT_FOUND, Node, Refused, directory, name_below};
use super::{Store, wire};
use crate::entries::{Listing, Mark, Scope, Wish};
use crate::lock;

/// A listing may take longer than what else is asked for: all of it comes in one reply.
const DEADLINE: Duration = Duration::from_secs(30);
/// Brackets around a node in it: the reply's, its node's, and those of the list.
const AROUND: usize = 3;
/// Listings whose watch may still be to come.
const REMEMBERED: usize = 4;

/// What is known of the store that was listed, to tell it from another.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    mark: Mark,
    pub(super) cluster: u64,
    /// The entry that was written last, and its state; none where there is none.
    pub(super) newest: Option<(String, Stamp)>,
}

impl Store {
    /// Lists the leases' directory. What is in directories within is not looked at.
    pub(super) async fn list_directory(&self, wish: &Wish<'_, Stamp>) -> Result<Listing<Stamp>, CallError> {
        // `Keys` has it with the slash at its end.
        let directory = self.keys.subnets().trim_end_matches('/');
        let ask = Ask::get(path_of(directory, "quorum=true"));
        let request = |line: Connection| {
            let ask = ask.clone();
            async move { self.read_directory(&line, ask, wish).await }
        };
        let outcome = self.members.call_within(DEADLINE, "GET", request).await;
        let (listing, listed) = match outcome {
            Ok(found) => found,
            Err(error) => match error.status() {
                Some(Refused::No {
                    code: NOT_FOUND,
                    index,
                    ..
                }) => self.nothing(*index),
                _ => return Err(error),
            },
        };
        if let (Scope::All, Some(listed)) = (wish.scope, listed) {
            self.remember(listed);
        }
        Ok(listing)
    }

    async fn read_directory(
        &self,
        line: &Connection,
        ask: Ask,
        wish: &Wish<'_, Stamp>,
    ) -> Result<(Listing<Stamp>, Option<Listed>), Refused> {
        let line = self.beside(line).await?.with_patience_of(line);
        let asked = Instant::now();
        let mut stream = line.stream(ask, AROUND, LONGEST).await?;
        let at = stream.at;
        let mut listing = Listing::default();
        listing.snapshot.revision = at.index;
        let mut newest: Option<(String, Stamp)> = None;
        let mut odd = None;
        let mut take = |piece: &[u8]| match serde_json::from_slice::<Node<'_>>(piece) {
            Ok(node) => self.take(&node, asked, wish, &mut listing, &mut newest),
            Err(failure) => odd = Some(failure.to_string()),
        };
        while stream.next(&mut take).await? {}
        // The order of a directory is any.
        listing.snapshot.rejected.sort_by(|a, b| a.key.cmp(&b.key));
        if let Some(odd) = odd {
            return Err(Refused::Odd(odd));
        }
        let around = wire::read(stream.rest())?;
        if !around.node.dir {
            let message = format!(
                "{} is a key, expected the directory of the leases",
                around.node.key
            );
            let (code, index) = (wire::NOT_A_DIRECTORY, at.index);
            return Err(Refused::No { code, message, index });
        }
        let stamp = newest.as_ref().map(|(_, stamp)| stamp);
        listing.mark = Mark {
            number: at.index,
            newest: stamp.map_or(0, |stamp| stamp.modified),
            history: at.cluster ^ stamp.map_or(0, Stamp::digest),
        };
        let listed = Listed {
            mark: listing.mark,
            cluster: at.cluster,
            newest,
        };
        Ok((listing, Some(listed)))
    }

    /// Takes one listed node in.
    fn take(
        &self,
        node: &Node<'_>,
        asked: Instant,
        wish: &Wish<'_, Stamp>,
        listing: &mut Listing<Stamp>,
        newest: &mut Option<(String, Stamp)>,
    ) {
        let Some(name) = name_below(&self.keys, &node.key) else {
            return;
        };
        let created_after = match wish.scope {
            Scope::All => i64::MIN,
            Scope::CreatedAfter(index) => index,
        };
        if node.created_index <= created_after {
            return;
        }
        if node.dir {
            listing.snapshot.rejected.push(directory(name));
            return;
        }
        let stamp = Stamp::of(node, asked);
        if newest
            .as_ref()
            .is_none_or(|(_, known)| known.modified < stamp.modified)
        {
            *newest = Some((name.to_owned(), stamp));
        }
        listing.take(
            name.into(),
            node.value.as_bytes(),
            node.created_index,
            &stamp,
            wish,
        );
    }

    /// What a store comes to in which nobody has written a lease yet.
    fn nothing(&self, index: i64) -> (Listing<Stamp>, Option<Listed>) {
        let mut listing = Listing::default();
        listing.snapshot.revision = index;
        listing.mark = Mark {
            number: index,
            newest: 0,
            history: fnv1a(b""),
        };
        let listed = Listed {
            mark: listing.mark,
            cluster: 0,
            newest: None,
        };
        (listing, Some(listed))
    }

    fn remember(&self, listed: Listed) {
        let mut all: std::sync::MutexGuard<'_, VecDeque<Listed>> = lock(&self.listed);
        all.retain(|other| other.mark != listed.mark);
        all.push_front(listed);
        all.truncate(REMEMBERED);
    }

    /// What is known of the store when it left this mark.
    pub(super) fn recall(&self, mark: &Mark) -> Option<Listed> {
        lock(&self.listed)
            .iter()
            .find(|listed| listed.mark == *mark)
            .cloned()
    }
}
