//! The one watch: a snapshot, then deltas, then, when anything interrupts, a snapshot again.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fabric::lease::{Snapshot, Update};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::keep::Sighting;
use super::{Leases, lock};
use crate::entries::{Change, End, Entries, Mark, Scope, Seen, Told, Wish, delta};
use crate::{Backoff, REASSERTION, STOOD};

pub(super) async fn watch<E: Entries>(
    leases: &Leases<E>,
    sink: &(dyn Fn(Update) + Send + Sync),
) -> Infallible {
    leases.watched.store(true, Ordering::Relaxed);
    let mut stash = lock(&leases.stash).take();
    let mut pause = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), &leases.chance);
    let mut failing = false;
    loop {
        let began = Instant::now();
        let stood = AtomicBool::new(false);
        let end = follow(leases, stash.take(), sink, &stood).await;
        leases
            .entries
            .state()
            .send_if_modified(|state| std::mem::take(&mut state.watching));
        if stood.into_inner() {
            failing = false;
            if began.elapsed() >= STOOD {
                pause.reset();
            }
        }
        match end {
            End::Compacted => debug!("the watch's revision was compacted; listing again"),
            // Until there is a listing of it, however long that takes.
            End::Exchanged => leases.exchanged.store(true, Ordering::Relaxed),
            End::Failed(error) if !failing => {
                failing = true;
                warn!(%error, "the watch of leases broke; what is known stays in force, listing again");
            }
            End::Failed(error) => debug!(%error, "the watch of leases cannot be taken up yet"),
        }
        leases.pause(&mut pause).await;
    }
}

async fn follow<E: Entries>(
    leases: &Leases<E>,
    stash: Option<(Snapshot, Mark)>,
    sink: &(dyn Fn(Update) + Send + Sync),
    stood: &AtomicBool,
) -> End {
    // One that is behind what was followed is not to be gone by yet.
    let stash = stash.filter(|(snapshot, _)| snapshot.revision >= leases.followed().number);
    let (snapshot, mark) = match stash {
        Some((snapshot, mark)) => {
            leases.listed_at(snapshot.revision);
            (snapshot, mark)
        }
        None => match current(leases).await {
            Ok(listed) => listed,
            Err(error) => return End::Failed(error),
        },
    };
    sink(Update::Snapshot(snapshot));
    let told = |told: Told<E::Handle>| match told {
        Told::Standing => {
            stood.store(true, Ordering::Relaxed);
            leases.entries.state().send_modify(|state| state.watching = true);
        }
        Told::Progress(number) => leases.note_number(number),
        Told::Changes(changes) => apply(leases, sink, changes),
    };
    leases.entries.watch(mark, &told).await
}

/// A listing to go by.
async fn current<E: Entries>(leases: &Leases<E>) -> Result<(Snapshot, Mark), String> {
    let before = leases.followed();
    let (snapshot, mark) = listed(leases).await?;
    let now = leases.followed();
    if now.epoch == before.epoch {
        return Ok((snapshot, mark));
    }
    warn!(
        before = before.number,
        now = now.number,
        leases = snapshot.leases.len(),
        "the registry went back: it was emptied, restored or exchanged; its nodes get a moment to say again what is theirs"
    );
    sleep(REASSERTION).await;
    listed(leases).await
}

async fn listed<E: Entries>(leases: &Leases<E>) -> Result<(Snapshot, Mark), String> {
    let own = leases.followed_key();
    let wish = Wish {
        own: own.as_deref(),
        ..Wish::leases(Scope::All)
    };
    let listing = leases
        .entries
        .list(&wish)
        .await
        .map_err(|error| error.to_string())?;
    let at = leases.listed_at(listing.snapshot.revision);
    if let Some(key) = own {
        let entry = listing.own;
        let listed = true;
        leases.tell_follower(&key, Sighting { at, entry, listed });
    }
    Ok((listing.snapshot, listing.mark))
}

fn apply<E: Entries>(
    leases: &Leases<E>,
    sink: &(dyn Fn(Update) + Send + Sync),
    mut changes: Vec<(i64, Change<E::Handle>)>,
) {
    let delta = delta(&changes);
    if let Some(key) = leases.followed_key() {
        let own = |(_, change): &(i64, Change<E::Handle>)| {
            change.key() == key && !matches!(change, Change::Unclear(_))
        };
        if let Some(index) = changes.iter().rposition(own) {
            let (number, change) = changes.swap_remove(index);
            let at = leases.followed_to(number);
            let entry = match change {
                Change::Put(entry) => Some(entry),
                Change::Gone { .. } | Change::Unclear(_) => None,
            };
            let listed = false;
            leases.tell_follower(&key, Sighting { at, entry, listed });
        }
    }
    if let Some(delta) = delta {
        leases.followed_to(delta.revision);
        leases.note_number(delta.revision);
        sink(Update::Delta(delta));
    }
}

impl<H> Sighting<H> {
    /// What an answer to our own request tells, at a point of the history that is being followed.
    pub(super) fn at(known: crate::Revision, seen: Seen<H>) -> Sighting<H> {
        Sighting {
            at: known.in_this_epoch(seen.number),
            entry: seen.entry,
            listed: false,
        }
    }
}
