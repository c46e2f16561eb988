//! What the daemon says about itself: one place that joins what its parts know, asked by `/readyz`, the status socket, the
//! metrics and systemd alike, so that they cannot contradict each other.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use fabric::lease::Subnet;
use fabric::readiness::{Finding, Kind, Part, Report};
use fabric::status::{
    Firewall, FirewallState, OwnLease, PodNetwork, Pods, Registry, RegistryState, Status, Underlay,
};
use ipnet::IpNet;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::board::{Reporter, Standing};
use crate::cache::utc;

/// Whoever is asked how things stand and has not said it by then does not answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far the daemon has come, and what it came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Situation {
    /// What it is waiting for, as a sentence; `None` when for nothing.
    pub waiting: Option<String>,
    /// Networks in use.
    pub networks: Vec<IpNet>,
    /// Backend type.
    pub backend: String,
    /// `FLANNEL_MTU`.
    pub mtu: u32,
    /// External interface.
    pub underlay: Option<Underlay>,
    /// The own lease.
    pub lease: Option<OwnLease>,
    /// When it ends, by a clock that nobody sets.
    pub lease_ends: Option<Instant>,
    /// The lease is lost, or could not be renewed in time.
    pub lease_trouble: Option<String>,
    /// A family of the network is not served, and why.
    pub unserved: Option<String>,
    /// No interface can carry the network any more.
    pub underlay_trouble: Option<String>,
    /// There is no valid network config in the registry.
    pub config_missing: bool,
    /// The network config is another than this node works by, or none any more.
    pub config_news: Option<ConfigNews>,
    /// The registry has no subnet that is free.
    pub no_subnet: bool,
    /// The state directory does not answer, and since when.
    pub state_dir: Option<String>,
    /// What of that which survives a reboot could not be written, and why.
    pub unsaved: BTreeMap<&'static str, String>,
    /// What an earlier process knew of the registry, and whether it is served from.
    pub cached: Cached,
}

/// What has become of the network config since this node took it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigNews {
    /// What, and that this node goes on without.
    pub text: String,
    /// What to do.
    pub hint: String,
}

/// What the cache is good for while the registry does not answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Cached {
    /// Nobody has asked: the registry answers, or there is no cache.
    #[default]
    Unasked,
    /// It is not served from, for this reason.
    Useless(String),
    /// It is served from.
    Served {
        /// When it was saved, seconds since 1970.
        saved: u64,
        /// The registry's revision then.
        revision: i64,
        /// What the clocks cannot tell of it.
        doubt: Option<String>,
    },
}

impl Situation {
    /// Leases are known, be it from the cache, and so is what to do with them.
    pub fn serves(&self) -> bool {
        self.waiting.is_none() || matches!(self.cached, Cached::Served { .. })
    }

    fn findings(&self) -> Vec<Finding> {
        let start = |kind, text: String| Finding::new(Part::Start, kind, text.as_str(), text.as_str());
        let mut findings = Vec::new();
        match (&self.cached, &self.waiting) {
            (Cached::Served { saved, doubt, .. }, why) => {
                findings.extend(
                    doubt
                        .iter()
                        .map(|doubt| Finding::new(Part::State, Kind::Remark, "clock", doubt.as_str())),
                );
                let why = why.as_deref().unwrap_or("the registry has not answered yet");
                let text = format!("stale: served from the cache of {}: {why}", utc(*saved));
                findings.push(Finding::new(Part::Registry, Kind::Stale, "cache", text));
            }
            (Cached::Useless(useless), Some(why)) => {
                findings.push(start(Kind::Waiting, why.clone()));
                let text = format!("the cache is not served from: {useless}");
                findings.push(Finding::new(Part::State, Kind::Waiting, "cache", text));
            }
            (_, why) => findings.extend(why.clone().map(|why| start(Kind::Waiting, why))),
        }
        let lease = self.lease_trouble.iter();
        findings.extend(lease.map(|text| Finding::new(Part::Lease, Kind::Failure, "lease", text.as_str())));
        // The fabric does without it: this host is as it should be.
        let state = self.state_dir.iter();
        findings.extend(
            state.map(|text| Finding::new(Part::State, Kind::Remark, "state directory", text.as_str())),
        );
        findings.extend(self.unsaved.iter().map(|(what, why)| {
            let text = format!("{what}: {why}; going on without, it will be missing after a reboot");
            Finding::new(Part::State, Kind::Remark, *what, text)
        }));
        // Nobody's mistake in the registry takes a node out of service that works.
        findings.extend(self.config_news.iter().map(|news| {
            Finding::new(Part::Registry, Kind::Remark, "network config", news.text.as_str())
                .hint(news.hint.as_str())
        }));
        let unserved = self.unserved.iter();
        findings.extend(
            unserved.map(|text| Finding::new(Part::Underlay, Kind::Failure, "address family", text.as_str())),
        );
        let underlay = self.underlay_trouble.iter();
        findings.extend(underlay.map(|trouble| {
            let text = format!("underlay: {trouble}");
            Finding::new(Part::Underlay, Kind::Failure, "choice of interface", text)
        }));
        findings
    }
}

/// What the registry is called, for those who ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryName {
    /// What it is.
    pub kind: &'static str,
    /// Where in it: before every key, or before the name of every annotation.
    pub prefix: String,
}

impl RegistryName {
    /// etcd; by which of its APIs, the registry says itself.
    pub fn etcd(prefix: &str) -> RegistryName {
        RegistryName {
            kind: "etcd",
            prefix: prefix.to_owned(),
        }
    }
}

/// The parts that know something.
#[derive(Debug, Clone)]
pub struct Truth {
    situation: watch::Sender<Situation>,
    firewall: watch::Sender<Firewall>,
    /// Kept from one question to the next, so that what changes in between is not missed.
    seen: (
        watch::Receiver<Situation>,
        watch::Receiver<Firewall>,
        watch::Receiver<BTreeMap<Part, Report>>,
    ),
    standing: watch::Receiver<Standing>,
    registry: registry::States,
    reporter: Reporter,
    name: RegistryName,
    started: u64,
    began: Instant,
}

impl Truth {
    /// At start: nothing is known yet.
    pub fn new(
        reporter: Reporter,
        registry: registry::States,
        name: RegistryName,
        firewall: Firewall,
    ) -> Truth {
        let situation = watch::Sender::new(Situation {
            waiting: Some("starting".to_owned()),
            ..Situation::default()
        });
        // Until they have spoken, nothing is known of what these keep.
        let mut first = vec![(Part::SubnetFile, "the subnet file is not written yet")];
        if firewall.state == FirewallState::Pending {
            first.push((Part::Firewall, "firewall rules are not in place yet"));
        }
        for (part, text) in first {
            let finding = Finding::new(part, Kind::Pending, part.name(), text);
            reporter.publish(part, [finding].into_iter().collect());
        }
        let firewall = watch::Sender::new(firewall);
        Truth {
            seen: (situation.subscribe(), firewall.subscribe(), reporter.reports()),
            situation,
            firewall,
            standing: reporter.standing(),
            registry,
            reporter,
            name,
            started: crate::board::now_seconds(),
            began: Instant::now(),
        }
    }

    /// The engine's side.
    pub fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    /// The engine's standing now.
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Changes the situation; readers hear of it when it differs.
    pub fn update(&self, change: impl FnOnce(&mut Situation)) {
        self.situation.send_if_modified(|situation| {
            let before = situation.clone();
            change(situation);
            *situation != before
        });
    }

    /// Says what is being waited for.
    pub fn wait_for(&self, what: impl Into<String>) {
        let what = what.into();
        self.update(|situation| situation.waiting = Some(what));
    }

    /// Says which lease is held, and until when.
    pub fn hold(&self, subnet: &Subnet, ends: Option<Instant>) {
        self.update(|situation| {
            situation.lease = Some(OwnLease {
                subnet: subnet.to_string(),
                expires: ends.map(wall_clock),
                left: None,
                reservation: ends.is_none(),
            });
            situation.lease_ends = ends;
        });
    }

    /// Says what the cache is good for.
    pub fn cached(&self, cached: Cached) {
        self.update(|situation| situation.cached = cached);
    }

    /// Says whether something that survives a reboot could be written.
    pub fn saved(&self, what: &'static str, outcome: Result<(), String>) {
        self.update(|situation| {
            match outcome {
                Ok(()) => situation.unsaved.remove(what),
                Err(why) => situation.unsaved.insert(what, why),
            };
        });
    }

    /// The situation now.
    pub fn situation(&self) -> Situation {
        self.situation.borrow().clone()
    }

    /// Where the firewall's thread puts its state.
    pub fn firewall(&self) -> &watch::Sender<Firewall> {
        &self.firewall
    }

    /// Resolves when any part has something new to say, also if it said so since the last call.
    pub async fn changed(&mut self) {
        tokio::select! {
            _ = self.seen.0.changed() => {}
            _ = self.seen.1.changed() => {}
            _ = self.seen.2.changed() => {}
            _ = self.standing.changed() => {}
            _ = self.registry.changed() => {}
        }
    }

    /// What is not as it should be right now, from every part: what all others are told follows from this.
    pub fn report(&self) -> Report {
        let situation = self.situation.borrow().clone();
        let mut report: Report = situation.findings().into_iter().collect();
        let registry = self.registry.borrow();
        if situation.waiting.is_none() && !registry.watching {
            let text = match &registry.last_failure {
                Some(failure) => format!("stale: the registry is not reached: {}", failure.error),
                None => "the registry is not watched yet".to_owned(),
            };
            report.add(Finding::new(Part::Registry, Kind::Stale, "watch", text));
        }
        if let Some(trouble) = &registry.trouble {
            // Whoever holds a lease is served as before.
            let finding = Finding::new(Part::Registry, Kind::Remark, "registry", trouble.text.as_str());
            report.add(finding.hint(trouble.hint.as_str()));
        }
        drop(registry);
        let standing = self.standing.borrow().clone();
        let compared = match situation.cached {
            Cached::Served { .. } => standing.engaged,
            _ => standing.listed,
        };
        if situation.serves() && !compared {
            let text = "the first comparison of leases and kernel is not done";
            report.add(Finding::new(Part::Kernel, Kind::Pending, "comparison", text));
        }
        for part in self.seen.2.borrow().values() {
            report.join(part);
        }
        for (part, asked) in self.reporter.unanswered(PATIENCE) {
            let text = format!(
                "{} has given no answer for {} s: whether all is in place is not known",
                asked.what,
                PATIENCE.as_secs()
            );
            report.add(Finding::new(part, Kind::Failure, "answer", text));
        }
        report
    }

    /// What is spoken with the registry, where that is found out.
    pub fn spoken(&self) -> Option<&'static str> {
        self.registry.borrow().spoken
    }

    /// What keeps the daemon from being ready right now, one sentence each.
    pub fn reasons(&self) -> Vec<String> {
        self.report().reasons()
    }

    /// Whether pods of this host can be part of the network.
    ///
    /// A lease that was held once stands for the network as long as no other node has it: what comes after (the registry out of
    /// reach, a peer or a rule that cannot be put in place) leaves pods able to run here.
    pub fn pods(&self) -> Pods {
        let situation = self.situation.borrow();
        // Out of the cache it was held by an earlier process: a registry that has no subnet left has given it to another.
        let disowned = situation.no_subnet && matches!(situation.cached, Cached::Served { .. });
        let network = match (&situation.lease, situation.config_missing || situation.no_subnet) {
            (Some(_), _) if disowned => PodNetwork::None,
            (Some(_), _) => PodNetwork::Member,
            (None, true) => PodNetwork::None,
            (None, false) => PodNetwork::Unknown,
        };
        drop(situation);
        Pods {
            network,
            reasons: self.reasons(),
        }
    }

    /// One line for the service manager of a [report](Truth::report) made just now.
    pub fn line(&self, report: &Report) -> String {
        if let Some(reason) = report.reasons().into_iter().next() {
            return reason;
        }
        let situation = self.situation.borrow();
        let standing = self.standing.borrow();
        let subnet = situation
            .lease
            .as_ref()
            .map_or("no lease", |lease| lease.subnet.as_str());
        let degraded = match standing.degraded_peers {
            0 => String::new(),
            n => format!(", {n} degraded"),
        };
        format!(
            "{} {subnet}: {} peers{degraded}",
            situation.backend, standing.peers
        )
    }

    /// Everything, but for the list of peers, which the engine has.
    pub fn status(&self) -> Status {
        let report = self.report();
        let situation = self.situation.borrow().clone();
        let standing = self.standing.borrow().clone();
        let state = self.registry.borrow().clone();
        let registry_state = match (&state.endpoint, state.watching) {
            (_, true) => RegistryState::Connected,
            (Some(_), false) if situation.config_missing => RegistryState::WaitingForConfig,
            _ if state.revision > 0 => RegistryState::Stale,
            _ if matches!(situation.cached, Cached::Served { .. }) => RegistryState::Stale,
            _ => RegistryState::Connecting,
        };
        let revision = match situation.cached {
            Cached::Served { revision, .. } if state.revision == 0 => revision,
            _ => state.revision,
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: self.started,
            ready: report.is_ready(),
            reasons: report.reasons(),
            findings: report.findings().to_vec(),
            paused: standing.paused,
            networks: situation.networks,
            backend: situation.backend,
            uptime: Some(self.began.elapsed().as_secs()),
            lease: situation.lease.map(|lease| OwnLease {
                expires: situation.lease_ends.map(wall_clock).or(lease.expires),
                left: situation
                    .lease_ends
                    .map(|ends| ends.saturating_duration_since(Instant::now()).as_secs()),
                ..lease
            }),
            registry: Registry {
                kind: state.spoken.unwrap_or(self.name.kind).to_owned(),
                endpoint: state.endpoint.unwrap_or_default(),
                prefix: self.name.prefix.clone(),
                state: registry_state,
                revision,
                failed_at: state.last_failure.as_ref().map(|failure| {
                    let since = failure.at.duration_since(SystemTime::UNIX_EPOCH);
                    since.unwrap_or_default().as_secs()
                }),
                error: state.last_failure.map(|failure| failure.error),
            },
            underlay: situation.underlay,
            mtu: situation.mtu,
            peers: Vec::new(),
            firewall: self.firewall.borrow().clone(),
            last_audit: self.reporter.counters().last_audit(),
            last_audit_age: self.reporter.counters().last_audit_age(),
            repairs: self.reporter.counters().repairs().values().sum(),
        }
    }
}

/// Seconds since 1970 of a moment on the monotonic clock.
pub fn wall_clock(at: Instant) -> u64 {
    let now = Instant::now();
    let today = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let at = if at >= now {
        today + (at - now)
    } else {
        today.saturating_sub(now - at)
    };
    at.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth_over(registry: registry::States) -> Truth {
        Truth::new(
            Reporter::default(),
            registry,
            RegistryName::etcd("/n"),
            Firewall::default(),
        )
    }

    #[test]
    fn report_when_a_part_waits_for_an_answer_then_says_so_until_it_has_one() {
        let (_states, registry) = watch::channel(registry::State::default());
        let truth = truth_over(registry);
        let said = || truth.report().texts_of(Kind::Failure);
        let now = std::time::Instant::now();
        let asks = |ago| {
            let since = now.checked_sub(ago).unwrap();
            let what = "iptables-save (IPv4 nat)".to_owned();
            truth.reporter().asks(Part::Firewall, what, since);
        };
        asks(PATIENCE / 2);
        assert!(said().is_empty(), "{:?}", said());
        asks(PATIENCE);
        let text =
            "iptables-save (IPv4 nat) has given no answer for 5 s: whether all is in place is not known";
        assert_eq!(said(), [text]);
        truth.reporter().answered(Part::Firewall);
        assert!(said().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn status_when_the_lease_is_held_then_its_time_is_by_the_clock_that_nobody_sets() {
        let (_states, registry) = watch::channel(registry::State::default());
        let truth = truth_over(registry);
        let subnet = Subnet::parse_key("10.5.1.0-24").unwrap();
        truth.hold(&subnet, Some(Instant::now() + Duration::from_secs(100)));
        tokio::time::advance(Duration::from_secs(40)).await;
        let status = truth.status();
        assert_eq!(status.uptime, Some(40));
        assert_eq!(status.lease.unwrap().left, Some(60));
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(truth.status().lease.unwrap().left, Some(0));
        truth.hold(&subnet, None);
        let lease = truth.status().lease.unwrap();
        assert_eq!((lease.left, lease.expires, lease.reservation), (None, None, true));
    }

    #[test]
    fn report_when_what_survives_a_reboot_cannot_be_written_then_the_host_is_ready_and_it_is_named_until_it_can()
     {
        let (states, registry) = watch::channel(registry::State::default());
        states.send_modify(|state| state.watching = true);
        let truth = truth_over(registry);
        truth.reporter().publish(Part::SubnetFile, Report::default());
        truth.update(|situation| situation.waiting = None);
        truth.saved("state", Err("no room".to_owned()));
        truth.saved("cache", Err("no room".to_owned()));
        truth.saved("cache", Ok(()));
        let report = truth.report();
        let text = "state: no room; going on without, it will be missing after a reboot";
        assert_eq!(report.texts_of(Kind::Remark), [text]);
        assert_eq!(report.count(Kind::Failure), 0);
        truth.saved("state", Ok(()));
        assert_eq!(truth.report().count(Kind::Remark), 0);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn changed_when_something_changed_before_it_was_asked_then_it_says_so() {
        let (_states, registry) = watch::channel(registry::State::default());
        let mut truth = truth_over(registry);
        let quiet = tokio::time::timeout(Duration::from_millis(20), truth.changed()).await;
        assert!(quiet.is_err(), "nothing has changed");
        // The firewall's thread may speak between two questions.
        truth.firewall().send_modify(|firewall| firewall.restores += 1);
        tokio::time::timeout(Duration::from_secs(60), truth.changed())
            .await
            .unwrap();
        truth.update(|situation| situation.mtu = 1450);
        tokio::time::timeout(Duration::from_secs(60), truth.changed())
            .await
            .unwrap();
    }

    fn said(truth: &Truth) -> Vec<(Part, Kind, String)> {
        let report = truth.report();
        let findings = report.findings().iter();
        findings
            .map(|finding| (finding.part, finding.kind, finding.text.clone()))
            .collect()
    }

    /// A daemon that has come as far as it can: its registry answers, its lease is held, all is in place.
    fn truth_at_work(states: &watch::Sender<registry::State>) -> Truth {
        states.send_modify(|state| {
            state.watching = true;
            state.revision = 9;
            state.endpoint = Some("http://192.0.2.1:2379".to_owned());
        });
        let truth = truth_over(states.subscribe());
        for part in [Part::SubnetFile, Part::Firewall] {
            truth.reporter().publish(part, Report::default());
        }
        truth.update(|situation| {
            situation.waiting = None;
            situation.backend = "vxlan".to_owned();
        });
        truth.reporter().stand(Standing {
            engaged: true,
            listed: true,
            peers: 3,
            ..Standing::default()
        });
        truth
    }

    #[test]
    fn report_when_nothing_is_known_yet_then_the_start_is_waited_for_and_what_is_to_come_is_pending() {
        let (_states, registry) = watch::channel(registry::State::default());
        let of = |state| {
            let firewall = Firewall {
                state,
                ..Firewall::default()
            };
            Truth::new(
                Reporter::default(),
                registry.clone(),
                RegistryName::etcd("/n"),
                firewall,
            )
        };
        let expected = [
            (Part::Start, Kind::Waiting, "starting"),
            (
                Part::Firewall,
                Kind::Pending,
                "firewall rules are not in place yet",
            ),
            (
                Part::SubnetFile,
                Kind::Pending,
                "the subnet file is not written yet",
            ),
        ];
        let expected = expected.map(|(part, kind, text)| (part, kind, text.to_owned()));
        assert_eq!(said(&of(FirewallState::Pending)), expected);
        let truth = of(FirewallState::Off);
        assert!(said(&truth).iter().all(|(part, ..)| *part != Part::Firewall));
        assert_eq!(truth.line(&truth.report()), "starting");
        truth.wait_for("a network config");
        assert_eq!(truth.reasons()[0], "a network config");
        assert_eq!(truth.situation().waiting.as_deref(), Some("a network config"));
    }

    #[test]
    fn report_when_all_is_in_place_then_ready_until_the_registry_or_the_comparison_is_wanting() {
        let states = watch::Sender::new(registry::State::default());
        let truth = truth_at_work(&states);
        assert_eq!(said(&truth), []);
        let subnet = Subnet::parse_key("10.5.1.0-24").unwrap();
        assert_eq!(truth.line(&truth.report()), "vxlan no lease: 3 peers");
        truth.hold(&subnet, None);
        assert_eq!(truth.line(&truth.report()), "vxlan 10.5.1.0-24: 3 peers");
        let mut standing = truth.standing();
        standing.degraded_peers = 2;
        standing.listed = false;
        truth.reporter().stand(standing.clone());
        assert_eq!(
            truth.reasons(),
            ["the first comparison of leases and kernel is not done"]
        );
        standing.listed = true;
        truth.reporter().stand(standing);
        assert_eq!(
            truth.line(&truth.report()),
            "vxlan 10.5.1.0-24: 3 peers, 2 degraded"
        );
        states.send_modify(|state| state.watching = false);
        assert_eq!(truth.reasons(), ["the registry is not watched yet"]);
        states.send_modify(|state| {
            state.last_failure = Some(registry::Failure {
                at: SystemTime::UNIX_EPOCH + Duration::from_secs(7),
                error: "refused".to_owned(),
            });
        });
        assert_eq!(truth.reasons(), ["stale: the registry is not reached: refused"]);
        let registry = truth.status().registry;
        assert_eq!(
            (registry.failed_at, registry.error.as_deref()),
            (Some(7), Some("refused"))
        );
    }

    #[test]
    fn report_when_served_from_the_cache_then_stale_and_the_engine_need_not_have_heard_the_registry() {
        let states = watch::Sender::new(registry::State::default());
        let truth = truth_at_work(&states);
        let serve = |doubt: Option<&str>| {
            let doubt = doubt.map(str::to_owned);
            truth.cached(Cached::Served {
                saved: 0,
                revision: 4,
                doubt,
            });
        };
        truth.wait_for("the registry");
        serve(Some("what time it is"));
        assert!(truth.situation().serves());
        truth.reporter().stand(Standing {
            engaged: true,
            ..Standing::default()
        });
        let found = said(&truth);
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0],
            (Part::State, Kind::Remark, "what time it is".to_owned())
        );
        assert_eq!((found[1].0, found[1].1), (Part::Registry, Kind::Stale));
        assert!(found[1].2.ends_with(": the registry"), "{}", found[1].2);
        truth.update(|situation| situation.waiting = None);
        serve(None);
        assert!(truth.reasons()[0].ends_with(": the registry has not answered yet"));
        truth.reporter().stand(Standing::default());
        assert_eq!(truth.report().count(Kind::Pending), 1, "nothing was compared");
        truth.wait_for("the registry");
        truth.cached(Cached::Useless("too old".to_owned()));
        assert!(!truth.situation().serves());
        assert_eq!(
            truth.reasons(),
            ["the registry", "the cache is not served from: too old"]
        );
        truth.update(|situation| situation.waiting = None);
        assert!(truth.situation().serves());
        assert_eq!(truth.report().count(Kind::Waiting), 0, "the registry answers");
    }

    #[test]
    fn report_when_something_is_wrong_with_the_host_then_each_is_a_finding_of_its_part() {
        let states = watch::Sender::new(registry::State::default());
        let truth = truth_at_work(&states);
        truth.update(|situation| {
            situation.lease_trouble = Some("the lease is lost".to_owned());
            situation.state_dir = Some("the disk hangs".to_owned());
            situation.unserved = Some("no IPv6".to_owned());
            situation.underlay_trouble = Some("no interface".to_owned());
        });
        let expected = [
            (Part::Lease, Kind::Failure, "the lease is lost"),
            (Part::State, Kind::Remark, "the disk hangs"),
            (Part::Underlay, Kind::Failure, "no IPv6"),
            (Part::Underlay, Kind::Failure, "underlay: no interface"),
        ];
        assert_eq!(
            said(&truth),
            expected.map(|(part, kind, text)| (part, kind, text.to_owned()))
        );
    }

    #[test]
    fn pods_when_a_lease_was_held_then_they_are_of_the_network_until_another_may_have_it() {
        let states = watch::Sender::new(registry::State::default());
        let truth = truth_at_work(&states);
        let network = || truth.pods().network;
        assert_eq!(network(), PodNetwork::Unknown);
        truth.update(|situation| situation.config_missing = true);
        assert_eq!(network(), PodNetwork::None);
        truth.update(|situation| (situation.config_missing, situation.no_subnet) = (false, true));
        assert_eq!(network(), PodNetwork::None);
        truth.hold(&Subnet::parse_key("10.5.1.0-24").unwrap(), None);
        assert_eq!(network(), PodNetwork::Member);
        truth.cached(Cached::Served {
            saved: 0,
            revision: 1,
            doubt: None,
        });
        assert_eq!(
            network(),
            PodNetwork::None,
            "an earlier process's lease, and there is none left"
        );
        assert_eq!(truth.pods().reasons, truth.reasons());
        truth.update(|situation| situation.no_subnet = false);
        assert_eq!(network(), PodNetwork::Member);
    }

    #[test]
    fn status_when_asked_then_the_registry_is_what_it_was_last_seen_to_be() {
        let states = watch::Sender::new(registry::State::default());
        let truth = truth_over(states.subscribe());
        let seen = || {
            let registry = truth.status().registry;
            (registry.state, registry.revision)
        };
        assert_eq!(seen(), (RegistryState::Connecting, 0));
        truth.cached(Cached::Served {
            saved: 0,
            revision: 4,
            doubt: None,
        });
        assert_eq!(seen(), (RegistryState::Stale, 4));
        truth.cached(Cached::Unasked);
        states.send_modify(|state| state.endpoint = Some("http://192.0.2.1:2379".to_owned()));
        assert_eq!(seen(), (RegistryState::Connecting, 0));
        truth.update(|situation| situation.config_missing = true);
        assert_eq!(seen(), (RegistryState::WaitingForConfig, 0));
        states.send_modify(|state| (state.watching, state.revision) = (true, 9));
        assert_eq!(seen(), (RegistryState::Connected, 9));
        truth.cached(Cached::Served {
            saved: 0,
            revision: 4,
            doubt: None,
        });
        assert_eq!(
            seen(),
            (RegistryState::Connected, 9),
            "the registry itself knows better"
        );
        states.send_modify(|state| (state.watching, state.endpoint) = (false, None));
        assert_eq!(seen(), (RegistryState::Stale, 9));
        let status = truth.status();
        assert_eq!(
            (status.registry.kind.as_str(), status.registry.prefix.as_str()),
            ("etcd", "/n")
        );
        states.send_modify(|state| state.spoken = Some(registry::etcd3::SPOKEN));
        assert_eq!(truth.status().registry.kind, "etcd v3");
        assert_eq!((status.pid, status.ready), (std::process::id(), false));
        assert_eq!(status.reasons, truth.reasons());
        truth.reporter().repaired_kind("a");
        truth.reporter().repaired_kind("b");
        assert_eq!(truth.status().repairs, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn moment_when_told_by_the_wall_clock_then_as_far_from_now_as_it_is() {
        tokio::time::advance(Duration::from_secs(1000)).await;
        let (now, today) = (Instant::now(), crate::board::now_seconds());
        let near = |told: u64, wanted: u64| told.abs_diff(wanted) <= 2;
        assert!(near(wall_clock(now), today));
        assert!(near(wall_clock(now + Duration::from_secs(500)), today + 500));
        assert!(near(wall_clock(now - Duration::from_secs(500)), today - 500));
    }

    #[test]
    fn update_when_nothing_is_different_then_nobody_is_told() {
        let (_states, registry) = watch::channel(registry::State::default());
        let truth = truth_over(registry);
        let mut seen = truth.situation.subscribe();
        truth.update(|situation| situation.mtu = 0);
        assert!(!seen.has_changed().unwrap());
        truth.update(|situation| situation.mtu = 1450);
        assert!(seen.has_changed().unwrap());
        seen.mark_unchanged();
        truth.wait_for("starting");
        assert!(!seen.has_changed().unwrap());
    }
}
