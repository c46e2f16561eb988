//! Keeping the own lease: renew in time, put it back when it is gone, yield when somebody else has the subnet.
//!
//! The own entry is looked at when the one watch tells of it, and read when there is something to do. Every write is guarded
//! by the revision it was judged at.

use std::time::Duration;

use fabric::alloc::older_rival;
use fabric::lease::Lease;
use fabric::object::Family;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::{Leases, lock};
use crate::entries::{Entries, Entry, Handle, Life, Scope, Seen, Wish, Written};
use crate::{Backoff, Held, Holding, RegistryError, Revision, Taken, Wanted};

/// Writes over an entry that keeps changing under us come at most this often.
const MEND_AFTER: Duration = Duration::from_secs(60);
/// How often it is looked whether what stands in the place of a lost entry is still there; its end is heard of by the watch too.
const OCCUPIED_LOOK: Duration = Duration::from_secs(60);
/// Looks at an entry that changes between look and write, per round.
const LOOKS: u32 = 8;

/// The own entry as the watch saw it.
#[derive(Debug, Clone)]
pub(super) struct Sighting<H> {
    /// When it was so.
    pub(super) at: Revision,
    /// `None`: it is not there.
    pub(super) entry: Option<Entry<H>>,
    /// It comes from a listing after the watch had broken, and not from an event.
    pub(super) listed: bool,
}

/// Where the watch leaves sightings: the newest counts.
pub(super) struct Follower<H> {
    pub(super) key: String,
    pub(super) newest: watch::Sender<Option<Sighting<H>>>,
}

/// Ends the following when the keeping is dropped.
struct Following<'a, E: Entries> {
    leases: &'a Leases<E>,
    newest: watch::Sender<Option<Sighting<E::Handle>>>,
    sightings: watch::Receiver<Option<Sighting<E::Handle>>>,
}

impl<'a, E: Entries> Following<'a, E> {
    fn start(leases: &'a Leases<E>, key: &str) -> Following<'a, E> {
        let (newest, sightings) = watch::channel(None);
        let follower = Follower {
            key: key.to_owned(),
            newest: newest.clone(),
        };
        *lock(&leases.follower) = Some(follower);
        Following {
            leases,
            newest,
            sightings,
        }
    }

    /// A sighting newer than `known`. Waits for it; for ever, if need be.
    ///
    /// `None`: a listing that is not newer. It may be older than our own last write, and it may be one of a store that was
    /// restored and has come as far again meanwhile: the entry is to be looked at.
    async fn newer_than(&mut self, known: Revision) -> Option<Sighting<E::Handle>> {
        loop {
            if self.sightings.changed().await.is_err() {
                // Cannot be, as we hold a sender ourselves.
                std::future::pending::<()>().await;
            }
            match self.sightings.borrow_and_update().clone() {
                Some(sighting) if sighting.at > known => return Some(sighting),
                Some(sighting) if sighting.listed => return None,
                _ => {}
            }
        }
    }
}

impl<E: Entries> Drop for Following<'_, E> {
    fn drop(&mut self) {
        let mut follower = lock(&self.leases.follower);
        follower.take_if(|follower| follower.newest.same_channel(&self.newest));
    }
}

pub(super) async fn keep<E: Entries>(
    leases: &Leases<E>,
    wanted: &Wanted<'_>,
    held: Held,
    margin: Duration,
    report: &(dyn Fn(Holding) + Send + Sync),
) -> Taken {
    let mut own = Own::new(leases, wanted, held, margin, report);
    let mut following = Following::start(leases, &own.key);
    let mut sighting = None;
    let mut failing = false;
    loop {
        let wake = match own.settle(sighting.take()).await {
            Ok(Settled::Until(wake)) => {
                failing = false;
                wake
            }
            Ok(Settled::Taken(taken)) => {
                leases.note_kept(None);
                leases.entries.give_back().await;
                return taken;
            }
            Err(error) => {
                let error = error.to_string();
                let retry_in = own.retry_in();
                if !failing {
                    warn!(subnet = %own.lease.subnet, %error, "the own lease cannot be seen to; trying on");
                    failing = true;
                }
                report(Holding::Failing {
                    error,
                    expires: own.expires,
                    retry_in,
                });
                Some(Instant::now() + retry_in)
            }
        };
        sighting = tokio::select! {
            biased;
            sighting = following.newer_than(own.known) => sighting,
            () = wait_until(wake) => None,
        };
    }
}

async fn wait_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

/// What is to be thought of the entry under our key.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// It says what we say.
    Intact,
    /// It names us, and says something else of us.
    Altered,
    /// It names nobody.
    Nobodys,
    /// Another node claims the subnet.
    Foreign(Lease),
}

fn judge<H>(wanted: &Wanted<'_>, lease: &Lease, entry: &Entry<H>) -> Verdict {
    let Ok(there) = Lease::read(&entry.key, &entry.value, entry.created) else {
        return Verdict::Nobodys;
    };
    let claimed = Family::BOTH
        .into_iter()
        .any(|family| there.attributes.public_ip_of(family).is_some());
    if there.attributes == lease.attributes {
        Verdict::Intact
    } else if wanted.me.own(wanted.config, &there) {
        Verdict::Altered
    } else if !claimed {
        Verdict::Nobodys
    } else {
        Verdict::Foreign(there)
    }
}

fn taken(lease: &Lease, other: Lease) -> Taken {
    let mut addresses = Family::BOTH
        .into_iter()
        .filter_map(|family| other.attributes.public_ip_of(family));
    Taken {
        subnet: lease.subnet,
        by: addresses
            .next()
            .map_or_else(|| "an unknown node".to_owned(), |ip| ip.to_string()),
        other,
    }
}

enum Settled {
    /// Nothing to do until then, or until something is seen.
    Until(Option<Instant>),
    Taken(Taken),
}

/// The lease we hold and what we know of its entry.
struct Own<'a, E: Entries> {
    leases: &'a Leases<E>,
    wanted: &'a Wanted<'a>,
    report: &'a (dyn Fn(Holding) + Send + Sync),
    margin: Duration,
    key: String,
    value: String,
    lease: Lease,
    /// `None`: not looked at yet by this process.
    handle: Option<E::Handle>,
    expires: Option<Instant>,
    renew_at: Option<Instant>,
    /// Up to when the entry is known.
    known: Revision,
    /// The loss was reported, and not yet its end.
    lost: bool,
    /// What stands in its place was reported, and not yet its end.
    occupied: bool,
    /// The entry was created anew and not yet held against older ones that overlap it.
    unchecked: bool,
    mend: Backoff,
    mend_from: Instant,
}

impl<'a, E: Entries> Own<'a, E> {
    fn new(
        leases: &'a Leases<E>,
        wanted: &'a Wanted<'a>,
        held: Held,
        margin: Duration,
        report: &'a (dyn Fn(Holding) + Send + Sync),
    ) -> Own<'a, E> {
        let mut own = Own {
            leases,
            wanted,
            report,
            margin,
            key: held.lease.subnet.to_string(),
            value: held.lease.attributes.to_json(),
            handle: leases.kept(&held.lease.subnet),
            known: leases.followed().in_this_epoch(held.lease.created),
            lease: held.lease,
            expires: None,
            renew_at: None,
            lost: false,
            occupied: false,
            unchecked: false,
            mend: Backoff::new(Duration::from_secs(1), MEND_AFTER, &leases.chance),
            mend_from: Instant::now(),
        };
        own.set_expiry(held.expires);
        own
    }

    /// Renewal is due `margin` before expiry, or after a third of the time where there is less than that.
    fn set_expiry(&mut self, expires: Option<Instant>) {
        let now = Instant::now();
        self.expires = expires;
        self.renew_at = expires.map(|expires| {
            let left = expires.saturating_duration_since(now);
            let wait = left.checked_sub(self.margin).filter(|wait| !wait.is_zero());
            now + wait.unwrap_or(left / 3)
        });
    }

    /// The nearer the end, the shorter.
    fn retry_in(&self) -> Duration {
        let left = match self.expires {
            Some(expires) if !self.lost => expires.saturating_duration_since(Instant::now()),
            _ => Duration::ZERO,
        };
        self.leases
            .chance
            .jitter((left / 10).clamp(Duration::from_secs(2), Duration::from_secs(60)))
    }

    /// Brings entry and lease together: from a sighting, or from the entry as it is when there is none.
    async fn settle(&mut self, sighting: Option<Sighting<E::Handle>>) -> Result<Settled, RegistryError> {
        let mut sighting = match sighting {
            Some(sighting) => sighting,
            None => self.seen(self.leases.entries.read(&self.key).await?),
        };
        for _ in 0..LOOKS {
            self.known = self.known.max(sighting.at);
            let Some(entry) = sighting.entry else {
                sighting = self.create().await?;
                continue;
            };
            match judge(self.wanted, &self.lease, &entry) {
                Verdict::Foreign(other) => return Ok(Settled::Taken(taken(&self.lease, other))),
                Verdict::Nobodys if !self.is_what_was_ours(&entry).await? => {
                    self.leave();
                    let look = Instant::now() + self.leases.chance.jitter(OCCUPIED_LOOK);
                    return Ok(Settled::Until(Some(look)));
                }
                Verdict::Altered | Verdict::Nobodys if Instant::now() < self.mend_from => {
                    return Ok(Settled::Until(Some(self.mend_from)));
                }
                Verdict::Altered | Verdict::Nobodys => sighting = self.mend(entry).await?,
                Verdict::Intact => {
                    self.adopt(&entry).await?;
                    if let Some(rival) = self.check().await? {
                        return Ok(Settled::Taken(taken(&self.lease, rival)));
                    }
                    if self.lost {
                        (self.lost, self.occupied) = (false, false);
                        info!(subnet = %self.lease.subnet, "the own lease is back");
                        (self.report)(Holding::Regained {
                            created: self.lease.created,
                            expires: self.expires,
                        });
                    }
                    match self.renew().await? {
                        Some(other) => sighting = other,
                        None => return Ok(Settled::Until(self.renew_at)),
                    }
                }
            }
        }
        // It changes faster than we can look: later.
        Ok(Settled::Until(Some(
            Instant::now() + self.leases.chance.jitter(Duration::from_secs(2)),
        )))
    }

    /// Makes ours what the intact entry says of the time it lives, which another hand may have exchanged or taken away.
    async fn adopt(&mut self, entry: &Entry<E::Handle>) -> Result<(), RegistryError> {
        self.lease.created = entry.created;
        let known = self.handle.as_ref();
        if known.is_none_or(|known| !known.shares_life(&entry.handle)) {
            let expires = self.leases.entries.expires(&self.key, &entry.handle).await?;
            self.set_expiry(expires);
            (self.report)(Holding::Renewed { expires });
        }
        self.note_handle(entry.handle.clone());
        Ok(())
    }

    fn note_handle(&mut self, handle: E::Handle) {
        self.leases.note_kept(Some((self.lease.subnet, handle.clone())));
        self.handle = Some(handle);
    }

    /// Prolongs the entry when that is due, and puts the same value once more, so that nodes which lost an event hear of us
    /// again. What was found, when the entry is not as known.
    async fn renew(&mut self) -> Result<Option<Sighting<E::Handle>>, RegistryError> {
        let due = self.renew_at.is_some_and(|at| at <= Instant::now());
        let Some(known) = self.handle.clone().filter(|known| due && !known.is_reservation()) else {
            return Ok(None);
        };
        let entries = &self.leases.entries;
        let (known, life) = match entries.prolong(&self.key, &known).await? {
            Some((prolonged, expires)) => {
                self.note_handle(prolonged.clone());
                self.set_expiry(Some(expires));
                (prolonged, Life::Same)
            }
            None => (known, Life::Whole),
        };
        match entries.swap(&self.key, &self.value, &known, life).await? {
            Written::Done {
                number,
                handle,
                expires,
            } => {
                self.wrote(number, handle, expires);
                (self.report)(Holding::Renewed {
                    expires: self.expires,
                });
                Ok(None)
            }
            Written::Found(seen) => Ok(Some(self.seen(seen))),
        }
    }

    /// Puts the lost entry back if the subnet is free. What is there then.
    async fn create(&mut self) -> Result<Sighting<E::Handle>, RegistryError> {
        if !self.lost {
            self.lost = true;
            warn!(subnet = %self.lease.subnet, "the own lease is gone from the registry; asking for the same subnet again");
            (self.report)(Holding::Lost);
        }
        match self.leases.entries.create(&self.key, &self.value).await? {
            Written::Done {
                number,
                handle,
                expires,
            } => {
                self.unchecked = true;
                self.wrote(number, handle.clone(), expires);
                Ok(self.written(number, number, handle))
            }
            Written::Found(seen) => Ok(self.seen(seen)),
        }
    }

    /// Whether the entry under our key is the one that was ours, written over since. One that was created later is not: ours was
    /// deleted, and the subnet may be another node's, whose entry this was. Nor is any once the time of ours is over. Nor one of a
    /// store that was exchanged since, in which another's may have been created under the same number.
    async fn is_what_was_ours(&self, entry: &Entry<E::Handle>) -> Result<bool, RegistryError> {
        if self.expires.is_some_and(|at| at <= Instant::now()) {
            return Ok(false);
        }
        let Some(known) = &self.handle else {
            return Ok(entry.created == self.lease.created);
        };
        let entries = &self.leases.entries;
        let descends = entries
            .descends(&self.key, known, self.lease.created, entry)
            .await?;
        Ok(descends != Some(false))
    }

    /// Leaves alone what stands in the place of the lost entry.
    fn leave(&mut self) {
        self.lost = true;
        if !std::mem::replace(&mut self.occupied, true) {
            warn!(subnet = %self.lease.subnet, "the own lease is gone from the registry, and what stands in its place is no lease");
            (self.report)(Holding::Occupied);
        }
    }

    /// Writes our value over what nobody else's is, for as long as the entry lives now.
    async fn mend(&mut self, entry: Entry<E::Handle>) -> Result<Sighting<E::Handle>, RegistryError> {
        let now = Instant::now();
        if now.saturating_duration_since(self.mend_from) > MEND_AFTER {
            self.mend.reset();
        }
        self.mend_from = now + self.mend.step();
        let entries = &self.leases.entries;
        match entries
            .swap(&self.key, &self.value, &entry.handle, Life::Same)
            .await?
        {
            Written::Done {
                number,
                handle,
                expires,
            } => {
                let subnet = self.lease.subnet;
                warn!(%subnet, "the own lease had been written over; put right");
                (self.report)(Holding::Repaired);
                if expires.is_some() {
                    self.wrote(number, handle.clone(), expires);
                }
                Ok(self.written(number, entry.created, handle))
            }
            Written::Found(seen) => Ok(self.seen(seen)),
        }
    }

    /// Holds an entry created anew against all others: an older lease that overlaps it wins, and ours is taken back.
    async fn check(&mut self) -> Result<Option<Lease>, RegistryError> {
        if !self.unchecked {
            return Ok(None);
        }
        let listing = self.leases.entries.list(&Wish::leases(Scope::All)).await?;
        self.leases.note_number(listing.snapshot.revision);
        let rival = older_rival(
            self.wanted.config,
            &listing.snapshot,
            &self.wanted.me,
            &self.lease,
        )
        .cloned();
        if rival.is_some()
            && let Some(handle) = &self.handle
        {
            self.leases.entries.delete(&self.key, handle).await?;
        }
        self.unchecked = false;
        Ok(rival)
    }

    /// The entry is as we have written it, since this revision; `expires` where it lives by a new grant of time.
    fn wrote(&mut self, number: i64, handle: E::Handle, expires: Option<Instant>) {
        self.note_handle(handle);
        self.known = self.known.max(self.known.in_this_epoch(number));
        if expires.is_some() {
            self.set_expiry(expires);
        }
    }

    /// The entry as we have just written it.
    fn written(&self, number: i64, created: i64, handle: E::Handle) -> Sighting<E::Handle> {
        self.seen(Seen {
            number,
            entry: Some(Entry {
                key: self.key.clone(),
                value: self.value.as_bytes().to_vec(),
                created,
                handle,
            }),
        })
    }

    /// The entry as an answer to our own request tells it.
    fn seen(&self, seen: Seen<E::Handle>) -> Sighting<E::Handle> {
        Sighting::at(self.known, seen)
    }
}
