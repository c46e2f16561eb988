//! Getting a lease: list, decide, write with a guard, look whether somebody was faster.
//!
//! Create-if-absent guards one key. Keys that differ can overlap (dual stack sharing one half, another subnet length), so
//! after creating we list what was created since the listing: the lower create revision wins, and the loser deletes its own
//! entry and takes another subnet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use fabric::alloc::{Action, decide, is_compatible, older_rival};
use fabric::lease::{Attributes, Lease, Snapshot, Subnet};
use tracing::{debug, info, warn};

use super::{Leases, lock};
use crate::entries::{Entries, Handle, Life, Scope, Wish, Written};
use crate::{AcquireError, Backoff, Held, Wanted};

/// Attempts that may fail without anybody having got ahead. A race lost for a subnet that another node now has does not
/// count: each is one node served, and ends with the last free subnet at the latest.
const FRUITLESS_ATTEMPTS: u32 = 10;

/// How an attempt ended.
enum Attempt<H> {
    Held(Held, H),
    /// The entry was not as listed; this subnet was tried for.
    Beaten(Subnet),
}

pub(super) async fn acquire<E: Entries>(
    leases: &Leases<E>,
    wanted: &Wanted<'_>,
) -> Result<Held, AcquireError> {
    let outcome = attempts(leases, wanted).await;
    leases.entries.give_back().await;
    outcome
}

async fn attempts<E: Entries>(leases: &Leases<E>, wanted: &Wanted<'_>) -> Result<Held, AcquireError> {
    let mut previous = wanted.previous;
    let mut tried = BTreeSet::new();
    let mut fruitless = 0;
    let mut pause = Backoff::new(
        Duration::from_millis(20),
        Duration::from_millis(320),
        &leases.chance,
    );
    loop {
        let note = |_: &str, handle: &E::Handle, lease: Option<&Lease>| {
            lease.is_some_and(|lease| {
                wanted.me.own(wanted.config, lease) || leases.was_kept(&lease.subnet, handle)
            })
        };
        let wish = Wish {
            scope: Scope::All,
            note: &note,
            own: None,
        };
        let listing = leases.entries.list(&wish).await?;
        leases.note_number(listing.snapshot.revision);
        let handles: BTreeMap<Subnet, E::Handle> = listing
            .noted
            .into_iter()
            .filter_map(|(key, handle)| Some((Subnet::parse_key(&key).ok()?, handle)))
            .collect();
        let (listed, mark) = (listing.snapshot, listing.mark);
        let mut decision = decide(wanted.config, &listed, &wanted.me, previous, &mut |n| {
            leases.chance.below(n)
        })?;
        if let Some(lease) = kept_before(leases, wanted, &listed, &handles) {
            let held = Some(lease.subnet);
            if let Action::Reuse(other) = std::mem::replace(&mut decision.action, Action::Reuse(lease))
                && Some(other.subnet) != held
            {
                decision.also_ours.push(other.subnet);
            }
            decision.also_ours.retain(|subnet| Some(*subnet) != held);
        }
        let attempt = match decision.action {
            Action::Reuse(lease) => {
                // Should it slip away, we want the same subnet.
                previous = Some(lease.subnet);
                match handles.get(&lease.subnet) {
                    Some(handle) => reuse(leases, wanted, lease, handle.clone()).await?,
                    None => Attempt::Beaten(lease.subnet),
                }
            }
            Action::Take(subnet) => {
                let before = decision.also_ours.first().and_then(|own| listed.leases.get(own));
                let before = before.map(|lease| &lease.attributes);
                take(leases, wanted, subnet, before, listed.revision).await?
            }
        };
        match attempt {
            Attempt::Held(mut held, mut handle) => {
                held.also_ours = tidy(leases, wanted, &listed, &decision.also_ours, &handles).await;
                let shares = |former: &&Subnet| {
                    former.overlaps(&held.lease.subnet) && !held.also_ours.contains(*former)
                };
                if !held.reused && decision.also_ours.iter().any(|former| shares(&former)) {
                    handle = say_again(leases, &held.lease, handle).await;
                }
                leases.note_kept(Some((held.lease.subnet, handle)));
                info!(subnet = %held.lease.subnet, reused = held.reused, "lease acquired");
                if !leases.watched.load(Ordering::Relaxed) {
                    *lock(&leases.stash) = Some((listed, mark));
                }
                return Ok(held);
            }
            Attempt::Beaten(subnet) => {
                debug!(%subnet, "another node was faster; trying again");
                if !tried.insert(subnet) {
                    fruitless += 1;
                    if fruitless == FRUITLESS_ATTEMPTS {
                        return Err(AcquireError::Contended(fruitless));
                    }
                }
            }
        }
        tokio::time::sleep(pause.step()).await;
    }
}

/// The lease this process kept until its address changed: still there, still good for the network, and still ours.
fn kept_before<E: Entries>(
    leases: &Leases<E>,
    wanted: &Wanted<'_>,
    listed: &Snapshot,
    handles: &BTreeMap<Subnet, E::Handle>,
) -> Option<Lease> {
    let (subnet, _) = handles
        .iter()
        .find(|(subnet, handle)| leases.was_kept(subnet, handle))?;
    let lease = listed.leases.get(subnet)?;
    let good = is_compatible(wanted.config, subnet)
        && older_rival(wanted.config, listed, &wanted.me, lease).is_none();
    good.then(|| lease.clone())
}

/// Takes a lease up again that is ours: by the grant of time it has, prolonged; written only if there is something to say.
async fn reuse<E: Entries>(
    leases: &Leases<E>,
    wanted: &Wanted<'_>,
    lease: Lease,
    mut handle: E::Handle,
) -> Result<Attempt<E::Handle>, AcquireError> {
    let subnet = lease.subnet;
    let key = subnet.to_string();
    let attributes = (wanted.attributes)(&subnet, Some(&lease.attributes));
    let held = |expires| Held {
        lease: Lease {
            attributes: attributes.clone(),
            ..lease.clone()
        },
        expires,
        reused: true,
        also_ours: Vec::new(),
    };
    let (mut ends, mut life) = (None, Life::Same);
    if !handle.is_reservation() {
        match leases.entries.prolong(&key, &handle).await? {
            Some((prolonged, expires)) => (handle, ends) = (prolonged, Some(expires)),
            None => life = Life::Whole,
        }
    }
    if life == Life::Same && attributes == lease.attributes {
        return Ok(Attempt::Held(held(ends), handle));
    }
    match leases
        .entries
        .swap(&key, &attributes.to_json(), &handle, life)
        .await?
    {
        Written::Done { handle, expires, .. } => Ok(Attempt::Held(held(expires.or(ends)), handle)),
        Written::Found(_) => Ok(Attempt::Beaten(subnet)),
    }
}

/// Creates an entry and holds it against those that overlap.
async fn take<E: Entries>(
    leases: &Leases<E>,
    wanted: &Wanted<'_>,
    subnet: Subnet,
    before: Option<&Attributes>,
    listed: i64,
) -> Result<Attempt<E::Handle>, AcquireError> {
    let attributes = (wanted.attributes)(&subnet, before);
    let key = subnet.to_string();
    let (created, handle, expires) = match leases.entries.create(&key, &attributes.to_json()).await? {
        Written::Done {
            number,
            handle,
            expires,
        } => (number, handle, expires),
        Written::Found(_) => return Ok(Attempt::Beaten(subnet)),
    };
    let lease = Lease {
        subnet,
        attributes,
        created,
    };
    // What was listed says nothing of a store that has gone back since.
    let scope = if created > listed {
        Scope::CreatedAfter(listed)
    } else {
        Scope::All
    };
    let newer = leases.entries.list(&Wish::leases(scope)).await?;
    leases.note_number(newer.snapshot.revision);
    if let Some(rival) = older_rival(wanted.config, &newer.snapshot, &wanted.me, &lease) {
        info!(%subnet, rival = %rival.subnet, "an older lease overlaps the new one, which is given back");
        leases.entries.delete(&key, &handle).await?;
        return Ok(Attempt::Beaten(subnet));
    }
    let held = Held {
        lease,
        expires,
        reused: false,
        also_ours: Vec::new(),
    };
    Ok(Attempt::Held(held, handle))
}

/// Writes the new lease once more as it is.
///
/// COMPAT: to Go flannel the end of the former lease is the end of the routes to the half that both share. It puts them back when
/// the new lease is written.
async fn say_again<E: Entries>(leases: &Leases<E>, lease: &Lease, handle: E::Handle) -> E::Handle {
    let (key, value) = (lease.subnet.to_string(), lease.attributes.to_json());
    match leases.entries.swap(&key, &value, &handle, Life::Same).await {
        Ok(Written::Done { handle, .. }) => handle,
        // Whoever keeps the lease finds out, and writes it again every time it renews it.
        Ok(Written::Found(_)) | Err(_) => handle,
    }
}

/// Deletes what was ours and cannot be used (the config changed, or an older lease overlaps it), now that there is another.
/// What could be used is left to its owner's operator, and named.
async fn tidy<E: Entries>(
    leases: &Leases<E>,
    wanted: &Wanted<'_>,
    listed: &Snapshot,
    also_ours: &[Subnet],
    handles: &BTreeMap<Subnet, E::Handle>,
) -> Vec<Subnet> {
    let mut left = Vec::new();
    for subnet in also_ours {
        let (Some(lease), Some(handle)) = (listed.leases.get(subnet), handles.get(subnet)) else {
            continue;
        };
        let beaten = older_rival(wanted.config, listed, &wanted.me, lease).is_some();
        if is_compatible(wanted.config, subnet) && !beaten {
            left.push(*subnet);
            continue;
        }
        match leases.entries.delete(&subnet.to_string(), handle).await {
            Ok(true) => info!(%subnet, "former lease of this node deleted"),
            Ok(false) => left.push(*subnet),
            Err(error) => {
                warn!(%subnet, %error, "former lease of this node not deleted");
                left.push(*subnet);
            }
        }
    }
    left
}
