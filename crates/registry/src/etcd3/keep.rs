//! Keeping the own lease: renew in time, put it back when it is gone, yield when somebody else has the subnet.
//!
//! The own entry is looked at when the one watch tells of it, and read when there is something to do. Every write is guarded
//! by the revision it was judged at.

use std::sync::PoisonError;
use std::time::Duration;

use etcd_proto::mvccpb::KeyValue;
use fabric::alloc::older_rival;
use fabric::lease::{Lease, Subnet};
use fabric::object::Family;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::Etcd3;
use super::entries::{Grant, Stamp, Write};
use super::listing::Scope;
use super::members::CallError;
use crate::chance::jitter;
use crate::{Backoff, Held, Holding, RegistryError, Taken, Wanted};

/// Writes over an entry that keeps changing under us come at most this often.
const MEND_AFTER: Duration = Duration::from_secs(60);
/// Looks at an entry that changes between look and write, per round.
const LOOKS: u32 = 8;

/// A point in the history of what answers under our endpoints.
///
/// Revisions only grow, unless the store was emptied, restored from a backup or exchanged: then an era has ended, and what was
/// known of the one before says nothing about this one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment {
    era: u32,
    revision: i64,
}

impl Moment {
    fn in_this_era(self, revision: i64) -> Moment {
        Moment { revision, ..self }
    }

    pub(crate) fn is_of_another_era(self, other: Moment) -> bool {
        self.era != other.era
    }

    pub(crate) fn revision(self) -> i64 {
        self.revision
    }
}

/// The own entry as the watch saw it.
#[derive(Debug, Clone)]
pub(crate) struct Sighting {
    /// When it was so.
    pub(crate) at: Moment,
    /// `None`: it is not there.
    pub(crate) entry: Option<KeyValue>,
}

/// Where the watch leaves sightings: the newest counts.
pub(crate) struct Follower {
    key: String,
    newest: watch::Sender<Option<Sighting>>,
}

impl Etcd3 {
    /// The key somebody wants sightings of.
    pub(crate) fn followed_key(&self) -> Option<String> {
        let follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner);
        follower.as_ref().map(|follower| follower.key.clone())
    }

    pub(crate) fn note_kept(&self, kept: Option<(Subnet, Stamp)>) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }

    /// Whether an entry is the one this process kept last: nobody has touched it since, or it lives by our etcd lease.
    ///
    /// A node whose address changed finds its lease by this. Its pods have addresses out of that subnet.
    pub(crate) fn was_kept(&self, subnet: &Subnet, stamp: &Stamp) -> bool {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().is_some_and(|(known, last)| {
            known == subnet && (last == stamp || (last.lease != 0 && last.lease == stamp.lease))
        })
    }

    /// Notes that the watch listed the store at this revision. A store that is behind what the watch has followed is not
    /// what it was.
    pub(crate) fn listed_at(&self, revision: i64) -> Moment {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if revision < followed.revision {
            followed.era = followed.era.wrapping_add(1);
        }
        followed.revision = revision;
        *followed
    }

    /// Notes how far an earlier process followed, unless this one has begun to.
    pub(crate) fn resume_at(&self, revision: i64) {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if *followed == Moment::default() {
            followed.revision = revision;
        }
    }

    /// Notes that the watch came to this revision.
    pub(crate) fn followed_to(&self, revision: i64) -> Moment {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        followed.revision = followed.revision.max(revision);
        followed.in_this_era(revision)
    }

    /// Where the watch is.
    pub(crate) fn followed(&self) -> Moment {
        *self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tell_follower(&self, key: &str, sighting: Sighting) {
        let follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(follower) = follower.as_ref().filter(|follower| follower.key == key) {
            follower.newest.send_replace(Some(sighting));
        }
    }
}

/// Ends the following when the keeping is dropped.
struct Following<'a> {
    etcd: &'a Etcd3,
    newest: watch::Sender<Option<Sighting>>,
    sightings: watch::Receiver<Option<Sighting>>,
}

impl<'a> Following<'a> {
    fn start(etcd: &'a Etcd3, key: &str) -> Following<'a> {
        let (newest, sightings) = watch::channel(None);
        let follower = Follower {
            key: key.to_owned(),
            newest: newest.clone(),
        };
        *etcd.follower.lock().unwrap_or_else(PoisonError::into_inner) = Some(follower);
        Following {
            etcd,
            newest,
            sightings,
        }
    }

    /// A sighting newer than `known`. Waits for it; for ever, if need be.
    async fn newer_than(&mut self, known: Moment) -> Sighting {
        loop {
            if self.sightings.changed().await.is_err() {
                // Cannot be, as we hold a sender ourselves.
                std::future::pending::<()>().await;
            }
            let newest = self.sightings.borrow_and_update().clone();
            if let Some(sighting) = newest.filter(|sighting| sighting.at > known) {
                return sighting;
            }
        }
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        let mut follower = self.etcd.follower.lock().unwrap_or_else(PoisonError::into_inner);
        follower.take_if(|follower| follower.newest.same_channel(&self.newest));
    }
}

pub(super) async fn keep(
    etcd: &Etcd3,
    wanted: &Wanted<'_>,
    held: Held,
    margin: Duration,
    report: &(dyn Fn(Holding) + Send + Sync),
) -> Taken {
    let mut own = Own::new(etcd, wanted, held, margin, report);
    let mut following = Following::start(etcd, &own.key);
    let mut sighting = None;
    let mut failing = false;
    loop {
        let wake = match own.settle(sighting.take()).await {
            Ok(Settled::Until(wake)) => {
                failing = false;
                wake
            }
            Ok(Settled::Taken(taken)) => {
                etcd.note_kept(None);
                if let Some(grant) = own.spare.take() {
                    etcd.revoke(grant.id).await;
                }
                return taken;
            }
            Err(error) => {
                let error = RegistryError::from(error).to_string();
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
            sighting = following.newer_than(own.known) => Some(sighting),
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
    /// Something else is there that claims the subnet for nobody else.
    Altered,
    /// Another node claims the subnet.
    Foreign(Lease),
}

fn judge(wanted: &Wanted<'_>, lease: &Lease, key: &str, entry: &KeyValue) -> Verdict {
    let Ok(there) = Lease::read(key, &entry.value, entry.create_revision) else {
        return Verdict::Altered;
    };
    let claimed = Family::BOTH
        .into_iter()
        .any(|family| there.attributes.public_ip_of(family).is_some());
    if there.attributes == lease.attributes {
        Verdict::Intact
    } else if wanted.me.own(wanted.config, &there) || !claimed {
        Verdict::Altered
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
struct Own<'a> {
    etcd: &'a Etcd3,
    wanted: &'a Wanted<'a>,
    report: &'a (dyn Fn(Holding) + Send + Sync),
    margin: Duration,
    key: String,
    value: String,
    lease: Lease,
    stamp: Stamp,
    expires: Option<Instant>,
    renew_at: Option<Instant>,
    /// Up to when the entry is known.
    known: Moment,
    /// The loss was reported, and not yet its end.
    lost: bool,
    /// The entry was created anew and not yet held against older ones that overlap it.
    unchecked: bool,
    /// Granted, and bound to no entry yet.
    spare: Option<Grant>,
    mend: Backoff,
    mend_from: Instant,
}

impl<'a> Own<'a> {
    fn new(
        etcd: &'a Etcd3,
        wanted: &'a Wanted<'a>,
        held: Held,
        margin: Duration,
        report: &'a (dyn Fn(Holding) + Send + Sync),
    ) -> Own<'a> {
        let mut own = Own {
            etcd,
            wanted,
            report,
            margin,
            key: etcd.keys.of(&held.lease.subnet),
            value: held.lease.attributes.to_json(),
            lease: held.lease,
            stamp: held.stamp,
            expires: None,
            renew_at: None,
            known: etcd.followed().in_this_era(held.stamp.mod_revision),
            lost: false,
            unchecked: false,
            spare: None,
            mend: Backoff::new(Duration::from_secs(1), MEND_AFTER),
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
        jitter((left / 10).clamp(Duration::from_secs(2), Duration::from_secs(60)))
    }

    /// Brings entry and lease together: from a sighting, or from the entry as it is when there is none.
    async fn settle(&mut self, sighting: Option<Sighting>) -> Result<Settled, CallError> {
        let mut sighting = match sighting {
            Some(sighting) => sighting,
            None => {
                let (revision, entry) = self.etcd.entry(&self.key).await?;
                self.seen(revision, entry)
            }
        };
        for _ in 0..LOOKS {
            self.known = self.known.max(sighting.at);
            let Some(entry) = sighting.entry else {
                sighting = self.create().await?;
                continue;
            };
            let key = self.lease.subnet.to_string();
            match judge(self.wanted, &self.lease, &key, &entry) {
                Verdict::Foreign(other) => return Ok(Settled::Taken(taken(&self.lease, other))),
                Verdict::Altered if Instant::now() < self.mend_from => {
                    return Ok(Settled::Until(Some(self.mend_from)));
                }
                Verdict::Altered => sighting = self.mend(entry).await?,
                Verdict::Intact => {
                    self.adopt(&entry).await?;
                    if let Some(rival) = self.check().await? {
                        return Ok(Settled::Taken(taken(&self.lease, rival)));
                    }
                    if self.lost {
                        self.lost = false;
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
            Instant::now() + jitter(Duration::from_secs(2)),
        )))
    }

    /// Makes ours what the intact entry says of its etcd lease, which another hand may have exchanged or taken away.
    async fn adopt(&mut self, entry: &KeyValue) -> Result<(), CallError> {
        self.lease.created = entry.create_revision;
        if entry.lease != self.stamp.lease {
            let expires = match entry.lease {
                0 => None,
                id => {
                    let found = self.etcd.time_to_live(id).await?;
                    Some(found.map_or_else(Instant::now, |grant| grant.expires))
                }
            };
            self.set_expiry(expires);
            (self.report)(Holding::Renewed { expires });
        }
        self.note_stamp(Stamp::of(entry));
        Ok(())
    }

    fn note_stamp(&mut self, stamp: Stamp) {
        self.stamp = stamp;
        self.etcd.note_kept(Some((self.lease.subnet, stamp)));
    }

    /// Keeps the etcd lease alive when that is due, and puts the same value once more, so that nodes which lost an event
    /// hear of us again. What was found, when the entry is not as known.
    async fn renew(&mut self) -> Result<Option<Sighting>, CallError> {
        let due = self.renew_at.is_some_and(|at| at <= Instant::now());
        if !due || self.stamp.lease == 0 {
            return Ok(None);
        }
        let (id, grant) = match self.etcd.keep_alive(self.stamp.lease).await? {
            Some(grant) => {
                self.set_expiry(Some(grant.expires));
                (grant.id, grant)
            }
            None => {
                let grant = self.spared().await?;
                (grant.id, grant)
            }
        };
        match self
            .etcd
            .replace(&self.key, &self.value, id, self.stamp.mod_revision)
            .await?
        {
            Write::Done(revision) => {
                self.bound(revision, grant);
                (self.report)(Holding::Renewed {
                    expires: self.expires,
                });
                Ok(None)
            }
            Write::Found { revision, entry } => Ok(Some(self.seen(revision, entry))),
            Write::LeaseGone => {
                self.spare.take_if(|grant| grant.id == id);
                let (revision, entry) = self.etcd.entry(&self.key).await?;
                Ok(Some(self.seen(revision, entry)))
            }
        }
    }

    /// Puts the lost entry back if the subnet is free. What is there then.
    async fn create(&mut self) -> Result<Sighting, CallError> {
        if !self.lost {
            self.lost = true;
            warn!(subnet = %self.lease.subnet, "the own lease is gone from the registry; asking for the same subnet again");
            (self.report)(Holding::Lost);
        }
        let grant = self.spared().await?;
        match self.etcd.create(&self.key, &self.value, grant.id).await? {
            Write::Done(revision) => {
                self.unchecked = true;
                self.bound(revision, grant);
                Ok(self.written(revision, revision))
            }
            Write::Found { revision, entry } => Ok(self.seen(revision, entry)),
            Write::LeaseGone => {
                self.spare = None;
                let (revision, entry) = self.etcd.entry(&self.key).await?;
                Ok(self.seen(revision, entry))
            }
        }
    }

    /// Writes our value over what nobody else's is, on whatever etcd lease the entry is now.
    async fn mend(&mut self, entry: KeyValue) -> Result<Sighting, CallError> {
        let now = Instant::now();
        if now.saturating_duration_since(self.mend_from) > MEND_AFTER {
            self.mend.reset();
        }
        self.mend_from = now + self.mend.step();
        let mut outcome = self
            .etcd
            .replace(&self.key, &self.value, entry.lease, entry.mod_revision)
            .await?;
        let mut grant = None;
        if matches!(outcome, Write::LeaseGone) {
            let new = self.spared().await?;
            grant = Some(new);
            outcome = self
                .etcd
                .replace(&self.key, &self.value, new.id, entry.mod_revision)
                .await?;
        }
        match outcome {
            Write::Done(revision) => {
                let subnet = self.lease.subnet;
                warn!(%subnet, "the own lease had been written over; put right");
                (self.report)(Holding::Repaired);
                match grant {
                    Some(grant) => {
                        self.bound(revision, grant);
                        Ok(self.written(revision, entry.create_revision))
                    }
                    None => {
                        let lease = entry.lease;
                        let mut written = self.written(revision, entry.create_revision);
                        if let Some(entry) = &mut written.entry {
                            entry.lease = lease;
                        }
                        Ok(written)
                    }
                }
            }
            Write::Found { revision, entry } => Ok(self.seen(revision, entry)),
            Write::LeaseGone => {
                self.spare = None;
                let (revision, entry) = self.etcd.entry(&self.key).await?;
                Ok(self.seen(revision, entry))
            }
        }
    }

    /// Holds an entry created anew against all others: an older lease that overlaps it wins, and ours is taken back.
    async fn check(&mut self) -> Result<Option<Lease>, CallError> {
        if !self.unchecked {
            return Ok(None);
        }
        let listing = self.etcd.list(Scope::All, &|_, _| false).await?;
        let rival = older_rival(
            self.wanted.config,
            &listing.snapshot,
            &self.wanted.me,
            &self.lease,
        )
        .cloned();
        if rival.is_some() {
            self.etcd.delete(&self.key, self.stamp.mod_revision).await?;
        }
        self.unchecked = false;
        Ok(rival)
    }

    async fn spared(&mut self) -> Result<Grant, CallError> {
        let alive = self.spare.filter(|grant| grant.expires > Instant::now());
        let grant = match alive {
            Some(grant) => grant,
            None => self.etcd.grant().await?,
        };
        self.spare = Some(grant);
        Ok(grant)
    }

    /// The entry lives by this etcd lease now, since this revision.
    fn bound(&mut self, revision: i64, grant: Grant) {
        self.spare.take_if(|spare| spare.id == grant.id);
        self.note_stamp(Stamp {
            mod_revision: revision,
            lease: grant.id,
        });
        self.known = self.known.max(self.known.in_this_era(revision));
        self.set_expiry(Some(grant.expires));
    }

    /// The entry as we have just written it.
    fn written(&self, revision: i64, create_revision: i64) -> Sighting {
        let entry = KeyValue {
            key: self.key.as_bytes().to_vec(),
            value: self.value.as_bytes().to_vec(),
            create_revision,
            mod_revision: revision,
            lease: self.stamp.lease,
            ..Default::default()
        };
        self.seen(revision, Some(entry))
    }

    /// The entry as an answer to our own request tells it.
    fn seen(&self, revision: i64, entry: Option<KeyValue>) -> Sighting {
        Sighting {
            at: self.known.in_this_era(revision),
            entry,
        }
    }
}
