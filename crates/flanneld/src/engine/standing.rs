//! How things stand: what is reported after a step, and what is answered when somebody asks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fabric::lease::{Lease, Subnet, place_of};
use fabric::object::{Family, Key, Object, Objects};
use fabric::readiness::{Finding, Kind, Part, Report};
use fabric::status::{Peer, PeerObject, PeerState};
use kernel::Host;

use super::{Engine, Word};
use crate::board::{self, Standing};
use crate::mailbox::Listing;

/// What takes work for every lease or object is counted at most this often.
const CENSUS: Duration = Duration::from_secs(1);

/// Numbers over all leases and objects.
#[derive(Debug, Default)]
pub(super) struct Census {
    taken: Option<Instant>,
    stale: bool,
    /// Peers that are not served in full for want of something of this host.
    failed: usize,
    objects: BTreeMap<&'static str, usize>,
}

impl Census {
    /// When the numbers are to be counted anew, if they are.
    pub(super) fn next(&self) -> Option<Instant> {
        self.taken.filter(|_| self.stale).map(|taken| taken + CENSUS)
    }
}

impl<H: Host> Engine<H> {
    /// Tells the rest of the daemon how things stand.
    pub(super) fn engage(&mut self) {
        self.census.stale = true;
        let report = self.report();
        self.outlets.reporter.publish(Part::Kernel, report);
        let Some(world) = &self.target.world else { return };
        let own = usize::from(world.leases().contains_key(&world.node().subnet));
        let standing = Standing {
            engaged: self.engaged,
            listed: self.listed,
            revision: world.revision(),
            peers: world.leases().len() - own,
            failed_peers: if self.is_clear() { 0 } else { self.census.failed },
            degraded_peers: world.problems().len(),
            rejected: world.rejected().len(),
            objects: self.census.objects.clone(),
            paused: self.paused,
        };
        self.outlets.reporter.stand(standing);
    }

    /// What of the kernel is not as the leases ask.
    fn report(&self) -> Report {
        let mut report = Report::default();
        let find = |kind, subject: &str, text: String| Finding::new(Part::Kernel, kind, subject, text);
        if self.paused {
            let text = "paused: nothing is applied or repaired".to_owned();
            report.add(find(Kind::Paused, "pause", text).hint("flannelctl resume"));
        }
        if let Some(trouble) = &self.trouble {
            report.add(find(Kind::Failure, "observation", trouble.clone()));
        }
        let Some(world) = &self.target.world else {
            return report;
        };
        report.join(&self.reconciler.report(Part::Kernel));
        for link in &self.target.withheld {
            let key = Key::Link(*link);
            if self.reconciler.conflict(&key).is_none() && self.reconciler.error(&key).is_none() {
                let text = format!("what hangs on link {link} waits for it");
                report.add(find(Kind::Pending, &key.to_string(), text));
            }
        }
        if let Some(closed) = self.census.objects.get(board::UNREACHABLE) {
            let text = format!("{closed} destinations are closed (unreachable) until their link can be had");
            report.add(find(Kind::Remark, board::UNREACHABLE, text));
        }
        for (key, overlap) in &self.target.overlaps {
            let (kind, text) = match &overlap.within {
                Some(peer) => (
                    Kind::Conflict,
                    format!("{} is not ours and draws traffic away from {peer}", overlap.text),
                ),
                None if overlap.former => (
                    Kind::Remark,
                    format!(
                        "{} was left by an earlier flannel for another network, and no lease asks for it",
                        overlap.text
                    ),
                ),
                None => (
                    Kind::Remark,
                    format!(
                        "{} lies inside the network, but no lease asks for it and it is not ours",
                        overlap.text
                    ),
                ),
            };
            report.add(find(kind, &key.to_string(), text).hint("it is left alone"));
        }
        for (key, link) in &self.target.strays {
            let subnet = world.node().subnet;
            let text = format!(
                "{link} has the subnet of {key}, which is not this host's ({subnet}): it was set up for a former one"
            );
            let hint = match link.as_str() {
                "docker0" => {
                    "docker runs with the --bip of that time: restart it with what the subnet file says now"
                }
                _ => "whoever set it up has to do so anew",
            };
            report.add(find(Kind::Remark, &format!("link {link}"), text).hint(hint));
        }
        let lease = |subnet: &Subnet, text: String| {
            let subject = format!("lease {subnet}");
            let text = format!("{subject}: {text}");
            Finding::new(Part::Registry, Kind::Degraded, subject, text)
        };
        for (subnet, problems) in world.problems() {
            report.add_with(Part::Registry, Kind::Degraded, || lease(subnet, join(problems)));
        }
        let rejected = world.rejected();
        let mut unread = rejected.subnets().len();
        for (key, reason) in rejected.named() {
            // What is known of a lease whose value cannot be read any more stays in force.
            let kind = match Subnet::parse_key(key) {
                Ok(_) => Kind::Degraded,
                Err(_) => Kind::Remark,
            };
            unread -= usize::from(kind == Kind::Degraded).min(unread);
            report.add_with(Part::Registry, kind, || {
                let place = place_of(key);
                let text = format!("registry entry {place} is no lease: {reason}");
                Finding::new(Part::Registry, kind, place.into_owned(), text)
            });
        }
        let more = rejected.len() - rejected.named().count();
        report.add_more(Part::Registry, Kind::Degraded, unread);
        report.add_more(Part::Registry, Kind::Remark, more.saturating_sub(unread));
        report
    }

    /// Looks at the link and the addresses the fabric leans on.
    pub(super) fn report_underlay(&mut self) {
        let Some(world) = &self.target.world else { return };
        let (underlay, objects) = (&world.node().underlay, self.target.kernel.objects());
        let link = underlay.link;
        let mut report = Report::default();
        let mut find = |text: String| {
            report.add(Finding::new(
                Part::Underlay,
                Kind::Failure,
                format!("link {link}"),
                text,
            ));
        };
        match objects.get(&Key::Link(link)) {
            Some(Object::Link(there)) if !there.up => find(format!("interface {link} is down")),
            Some(_) if self.target.kernel.has_carrier(link) == Some(false) => {
                find(format!("interface {link} has no carrier"));
            }
            Some(_) => {
                let families = world.node().network.families();
                let addresses = families.filter_map(|family| underlay.address(family));
                let has = |address: &std::net::IpAddr| {
                    let on = |object: &Object| matches!(object, Object::Address(a) if a.link == link && a.address.addr() == *address);
                    self.target.addresses_of(link).any(on)
                };
                for address in addresses.filter(|address| !has(address)) {
                    find(format!(
                        "address {address} is gone from interface {link}, and peers know this host by it"
                    ));
                }
            }
            None => find(format!("interface {link} is gone")),
        }
        if report != self.underlay_report {
            self.outlets.reporter.publish(Part::Underlay, report.clone());
            self.underlay_report = report;
        }
    }

    /// No place is known to be other than leases ask, as far as this host has a hand in it.
    fn is_clear(&self) -> bool {
        let drawn = self
            .target
            .overlaps
            .values()
            .any(|overlap| overlap.within.is_some());
        self.target.withheld.is_empty() && self.reconciler.is_clear() && !drawn
    }

    /// Counts anew when the last count is old and not true any more.
    pub(super) fn take_census(&mut self, now: Instant) {
        if self.census.taken.is_none() && self.census.stale || self.census.next().is_some_and(|at| at <= now)
        {
            self.count(now);
            self.engage();
            self.census.stale = false;
        }
    }

    fn count(&mut self, now: Instant) {
        let is_failed = |peer: &Peer| matches!(peer.state, PeerState::Failed | PeerState::Conflict);
        let failed = if self.is_clear() {
            0
        } else {
            self.peers().iter().filter(|peer| is_failed(peer)).count()
        };
        self.census = Census {
            taken: Some(now),
            stale: false,
            failed,
            objects: count(self.target.kernel.objects()),
        };
    }

    /// How each peer stands, by what its lease asks for and the kernel was seen to hold.
    pub(super) fn peers(&self) -> Vec<Peer> {
        let peers = self.target.world.iter().flat_map(|world| world.peers());
        peers.map(|lease| self.peer(lease)).collect()
    }

    fn peer(&self, lease: &Lease) -> Peer {
        let Some(world) = &self.target.world else {
            return shown(lease, Vec::new(), PeerState::Failed, None);
        };
        let observed = self.target.kernel.objects();
        let asked = world.objects_of(lease);
        let is_right = |key: &Key| match (world.desired().get(key), observed.get(key)) {
            (Some(want), Some(have)) => want.is_met_by(have),
            _ => false,
        };
        let problem = world.problems().get(&lease.subnet).map(|problems| join(problems));
        // What another lease has is not missing here.
        let holder_has = |object: &Object| {
            let theirs = world.desired().get(&object.key());
            problem.is_some() && theirs.is_some_and(|theirs| theirs != object)
        };
        let wrong = asked
            .iter()
            .filter(|object| !holder_has(object))
            .find(|object| !is_right(&object.key()));
        let drawn = self.target.overlaps.values().find(|overlap| {
            let within = overlap.within.as_ref();
            within.is_some_and(|key| asked.iter().any(|object| object.key() == *key))
        });
        let (state, error) = match (wrong, drawn) {
            (Some(object), _) => self.why(object),
            (None, Some(overlap)) => (
                PeerState::Conflict,
                format!("{} draws its traffic away", overlap.text),
            ),
            (None, None) => match problem {
                Some(problem) => (PeerState::Degraded, problem),
                None => (PeerState::Ok, String::new()),
            },
        };
        let objects = asked.iter().map(|object| PeerObject {
            object: object.to_string(),
            ok: is_right(&object.key()),
        });
        let error = Some(error).filter(|error| !error.is_empty());
        shown(lease, objects.collect(), state, error)
    }

    /// Why an object that is desired is not there.
    fn why(&self, object: &Object) -> (PeerState, String) {
        let (key, link) = (object.key(), Key::Link(object.link()));
        for key in [&key, &link] {
            if let Some(conflict) = self.reconciler.conflict(key) {
                return (PeerState::Conflict, format!("{} is in the way", conflict.there));
            }
        }
        if self.reconciler.is_degraded(&key) {
            let error = self.reconciler.error(&key).unwrap_or_default();
            return (PeerState::Degraded, format!("{key}: {error}"));
        }
        let error = self.reconciler.error(&key).map(|error| format!("{key}: {error}"));
        let error = error.or_else(|| Some(format!("{link}: {}", self.reconciler.error(&link)?)));
        let fought = || {
            let paused = self.reconciler.is_paused(&key) || self.reconciler.is_paused(&link);
            paused.then(|| format!("{key} is changed again and again, and put right ever more seldom"))
        };
        let error = error
            .or_else(fought)
            .unwrap_or_else(|| format!("{key}: not there yet"));
        (PeerState::Failed, error)
    }

    /// What the registry said last; nothing while all that is known is what it said to an earlier process.
    pub(super) fn listing(&self) -> Option<Listing> {
        let is_listed = self.target.word == Word::Listed;
        let world = self.target.world.as_ref().filter(|_| is_listed)?;
        Some(Listing {
            revision: world.revision(),
            lines: crate::cache::lines(world.leases().values()),
        })
    }
}

fn join(problems: &[fabric::plan::Problem]) -> String {
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// How many objects there are of each kind.
fn count(objects: &Objects) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for object in objects.values() {
        let kind = match object {
            Object::Route(route) if route.is_marked() && route.is_unreachable() => board::UNREACHABLE,
            object => board::kind(&object.key()),
        };
        *counts.entry(kind).or_default() += 1;
    }
    counts
}

/// A peer, with how it stands.
fn shown(lease: &Lease, objects: Vec<PeerObject>, state: PeerState, error: Option<String>) -> Peer {
    let public = Family::BOTH
        .iter()
        .filter(|family| lease.subnet.of(**family).is_some())
        .filter_map(|family| lease.attributes.public_ip_of(*family))
        .collect();
    Peer {
        subnet: lease.subnet.to_string(),
        public,
        backend: lease.attributes.backend_type.to_string(),
        expected: objects.len(),
        programmed: objects.iter().filter(|object| object.ok).count(),
        state,
        error,
        objects,
    }
}
