//! Getting a lease: list, decide, write with a guard, look whether somebody was faster.
//!
//! Create-if-absent guards one key. Keys that differ can overlap (dual stack sharing one half, another subnet length), so
//! after creating we list what was created since the listing: the lower create revision wins, and the loser deletes its own
//! entry and takes another subnet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use etcd_proto::mvccpb::KeyValue;
use fabric::alloc::{Action, decide, is_compatible, older_rival};
use fabric::lease::{Attributes, Lease, Snapshot, Subnet};
use tracing::{debug, info, warn};

use super::Etcd3;
use super::entries::{Grant, Stamp, Write};
use super::listing::Scope;
use super::members::CallError;
use crate::chance::below;
use crate::{AcquireError, Backoff, Held, RegistryError, Wanted};

/// Attempts that may fail without anybody having got ahead. A race lost for a subnet that another node now has does not
/// count: each is one node served, and ends with the last free subnet at the latest.
const FRUITLESS_ATTEMPTS: u32 = 10;

impl From<CallError> for AcquireError {
    fn from(error: CallError) -> AcquireError {
        AcquireError::Registry(RegistryError::from(error))
    }
}

/// How an attempt ended.
enum Attempt {
    Held(Held),
    /// The entry was not as listed; this subnet was tried for.
    Beaten(Subnet),
}

pub(super) async fn acquire(etcd: &Etcd3, wanted: &Wanted<'_>) -> Result<Held, AcquireError> {
    let mut spare = None;
    let outcome = attempts(etcd, wanted, &mut spare).await;
    if let Some(grant) = spare {
        etcd.revoke(grant.id).await;
    }
    outcome
}

/// `spare` is an etcd lease that was granted and holds no entry: kept from attempt to attempt.
async fn attempts(
    etcd: &Etcd3,
    wanted: &Wanted<'_>,
    spare: &mut Option<Grant>,
) -> Result<Held, AcquireError> {
    let mut previous = wanted.previous;
    let mut tried = BTreeSet::new();
    let mut fruitless = 0;
    let mut pause = Backoff::new(Duration::from_millis(20), Duration::from_millis(320));
    loop {
        let own = |lease: Option<&Lease>| lease.is_some_and(|lease| wanted.me.own(wanted.config, lease));
        let kept = |entry: &KeyValue, lease: Option<&Lease>| {
            lease.is_some_and(|lease| etcd.was_kept(&lease.subnet, &Stamp::of(entry)))
        };
        let listing = etcd
            .list(Scope::All, &|entry, lease| own(lease) || kept(entry, lease))
            .await?;
        let stamps: BTreeMap<Subnet, Stamp> = listing
            .noted
            .iter()
            .filter_map(|entry| {
                let key = etcd.keys.below(&entry.key)?;
                Some((Subnet::parse_key(&key).ok()?, Stamp::of(entry)))
            })
            .collect();
        let listed = listing.snapshot;
        let mut decision = decide(wanted.config, &listed, &wanted.me, previous, &mut below)?;
        if let Some(lease) = kept_before(etcd, wanted, &listed, &stamps) {
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
                match stamps.get(&lease.subnet) {
                    Some(stamp) => reuse(etcd, wanted, lease, *stamp, spare).await?,
                    None => Attempt::Beaten(lease.subnet),
                }
            }
            Action::Take(subnet) => {
                let before = decision.also_ours.first().and_then(|own| listed.leases.get(own));
                let before = before.map(|lease| &lease.attributes);
                take(etcd, wanted, subnet, before, listed.revision, spare).await?
            }
        };
        match attempt {
            Attempt::Held(mut held) => {
                held.also_ours = tidy(etcd, wanted, &listed, &decision.also_ours, &stamps).await;
                etcd.note_kept(Some((held.lease.subnet, held.stamp)));
                info!(subnet = %held.lease.subnet, reused = held.reused, "lease acquired");
                if !etcd.watched.load(Ordering::Relaxed) {
                    let mut stash = etcd.stash.lock().unwrap_or_else(PoisonError::into_inner);
                    *stash = Some(listed);
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
fn kept_before(
    etcd: &Etcd3,
    wanted: &Wanted<'_>,
    listed: &Snapshot,
    stamps: &BTreeMap<Subnet, Stamp>,
) -> Option<Lease> {
    let (subnet, _) = stamps
        .iter()
        .find(|(subnet, stamp)| etcd.was_kept(subnet, stamp))?;
    let lease = listed.leases.get(subnet)?;
    let good = is_compatible(wanted.config, subnet)
        && older_rival(wanted.config, listed, &wanted.me, lease).is_none();
    good.then(|| lease.clone())
}

/// Takes a lease up again that is ours: the same etcd lease, kept alive; a put only if there is something to say.
async fn reuse(
    etcd: &Etcd3,
    wanted: &Wanted<'_>,
    lease: Lease,
    stamp: Stamp,
    spare: &mut Option<Grant>,
) -> Result<Attempt, AcquireError> {
    let subnet = lease.subnet;
    let attributes = (wanted.attributes)(&subnet, Some(&lease.attributes));
    let alive = match stamp.lease {
        0 => None,
        id => etcd.keep_alive(id).await?,
    };
    let grant = match alive {
        None if stamp.lease != 0 => Some(spared(etcd, spare).await?),
        alive => alive,
    };
    let id = grant.map_or(0, |grant| grant.id);
    let held = |mod_revision| {
        let lease = Lease {
            attributes: attributes.clone(),
            ..lease.clone()
        };
        Attempt::Held(Held {
            lease,
            expires: grant.map(|grant| grant.expires),
            reused: true,
            also_ours: Vec::new(),
            stamp: Stamp {
                mod_revision,
                lease: id,
            },
        })
    };
    if id == stamp.lease && attributes == lease.attributes {
        return Ok(held(stamp.mod_revision));
    }
    let key = etcd.keys.of(&subnet);
    match etcd
        .replace(&key, &attributes.to_json(), id, stamp.mod_revision)
        .await?
    {
        Write::Done(revision) => {
            spare.take_if(|grant| grant.id == id);
            Ok(held(revision))
        }
        Write::LeaseGone => {
            spare.take_if(|grant| grant.id == id);
            Ok(Attempt::Beaten(subnet))
        }
        Write::Found { .. } => Ok(Attempt::Beaten(subnet)),
    }
}

/// Creates an entry and holds it against those that overlap.
async fn take(
    etcd: &Etcd3,
    wanted: &Wanted<'_>,
    subnet: Subnet,
    before: Option<&Attributes>,
    listed: i64,
    spare: &mut Option<Grant>,
) -> Result<Attempt, AcquireError> {
    let attributes = (wanted.attributes)(&subnet, before);
    let grant = spared(etcd, spare).await?;
    let key = etcd.keys.of(&subnet);
    let created = match etcd.create(&key, &attributes.to_json(), grant.id).await? {
        Write::Done(revision) => revision,
        Write::Found { .. } => return Ok(Attempt::Beaten(subnet)),
        Write::LeaseGone => {
            *spare = None;
            return Ok(Attempt::Beaten(subnet));
        }
    };
    let lease = Lease {
        subnet,
        attributes,
        created,
    };
    let newer = etcd.list(Scope::CreatedAfter(listed), &|_, _| false).await?;
    if let Some(rival) = older_rival(wanted.config, &newer.snapshot, &wanted.me, &lease) {
        info!(%subnet, rival = %rival.subnet, "an older lease overlaps the new one, which is given back");
        etcd.delete(&key, created).await?;
        return Ok(Attempt::Beaten(subnet));
    }
    *spare = None;
    Ok(Attempt::Held(Held {
        lease,
        expires: Some(grant.expires),
        reused: false,
        also_ours: Vec::new(),
        stamp: Stamp {
            mod_revision: created,
            lease: grant.id,
        },
    }))
}

async fn spared(etcd: &Etcd3, spare: &mut Option<Grant>) -> Result<Grant, CallError> {
    let grant = match *spare {
        Some(grant) => grant,
        None => etcd.grant().await?,
    };
    *spare = Some(grant);
    Ok(grant)
}

/// Deletes what was ours and cannot be used (the config changed, or an older lease overlaps it), now that there is another.
/// What could be used is left to its owner's operator, and named.
async fn tidy(
    etcd: &Etcd3,
    wanted: &Wanted<'_>,
    listed: &Snapshot,
    also_ours: &[Subnet],
    stamps: &BTreeMap<Subnet, Stamp>,
) -> Vec<Subnet> {
    let mut left = Vec::new();
    for subnet in also_ours {
        let (Some(lease), Some(stamp)) = (listed.leases.get(subnet), stamps.get(subnet)) else {
            continue;
        };
        let beaten = older_rival(wanted.config, listed, &wanted.me, lease).is_some();
        if is_compatible(wanted.config, subnet) && !beaten {
            left.push(*subnet);
            continue;
        }
        match etcd.delete(&etcd.keys.of(subnet), stamp.mod_revision).await {
            Ok(true) => info!(%subnet, "former lease of this node deleted"),
            Ok(false) => left.push(*subnet),
            Err(error) => {
                let error = RegistryError::from(error);
                warn!(%subnet, %error, "former lease of this node not deleted");
                left.push(*subnet);
            }
        }
    }
    left
}
