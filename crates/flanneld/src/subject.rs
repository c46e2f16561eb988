//! The daemon as HTTP sees it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fabric::readiness::Kind;
use fabric::status::{FirewallState, Pods, RegistryState, Status};
use registry::Registry;

use crate::heartbeat::Heartbeats;
use crate::http::{Later, Subject};
use crate::mailbox::{Command, Mailbox};
use crate::metrics::Numbers;
use crate::truth::Truth;

/// Joins what is asked of the parts.
pub struct Whole {
    /// What the parts say.
    pub truth: Truth,
    /// The engine.
    pub mailbox: Arc<Mailbox>,
    /// For its counters.
    pub registry: Arc<dyn Registry>,
    /// Of all threads.
    pub heartbeats: Heartbeats,
}

impl Subject for Whole {
    fn silence(&self) -> Option<String> {
        self.heartbeats.silent().map(|silence| silence.to_string())
    }

    fn reasons(&self) -> Vec<String> {
        self.truth.reasons()
    }

    fn pods(&self) -> Pods {
        self.truth.pods()
    }

    fn numbers(&self) -> Numbers {
        let status = self.truth.status();
        let standing = self.truth.standing();
        let counters = self.truth.reporter().counters();
        let report = self.truth.report();
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Numbers {
            version: status.version,
            backend: status.backend,
            ready: status.ready,
            paused: status.paused,
            started: status.started,
            peers: count(standing.peers),
            peers_failed: count(standing.failed_peers),
            peers_degraded: count(standing.degraded_peers),
            rejected: count(standing.rejected),
            findings: report
                .counts()
                .iter()
                .map(|((part, kind), n)| ((part.name(), kind.name()), count(*n)))
                .collect(),
            objects: standing
                .objects
                .iter()
                .map(|(kind, n)| ((*kind).to_owned(), count(*n)))
                .collect(),
            conflicts: count(report.count(Kind::Conflict)),
            repairs: counters
                .repairs()
                .into_iter()
                .map(|(kind, n)| (kind.to_owned(), n))
                .collect(),
            operations: counters
                .ops()
                .into_iter()
                .map(|((verb, outcome), n)| ((verb.to_owned(), outcome.to_owned()), n))
                .collect(),
            dumps: counters
                .dumps()
                .into_iter()
                .map(|(scope, n)| (scope.to_owned(), n))
                .collect(),
            applies: counters.applies.load(Ordering::Relaxed),
            apply_seconds: std::time::Duration::from_micros(counters.apply_micros.load(Ordering::Relaxed))
                .as_secs_f64(),
            heartbeat_age_seconds: self.truth.reporter().silence().as_secs_f64(),
            registry_connected: status.registry.state == RegistryState::Connected,
            registry_revision: status.registry.revision,
            registry_requests: BTreeMap::from([("all".to_owned(), self.registry.requests())]),
            firewall_restores: status.firewall.restores,
            firewall_ok: matches!(status.firewall.state, FirewallState::Ok | FirewallState::Off),
            lease_expiry: status.lease.and_then(|lease| lease.expires),
            last_audit: status.last_audit,
        }
    }

    fn status(&self) -> Later<'_, Status> {
        Box::pin(async {
            let mut status = self.truth.status();
            match self.mailbox.ask(Command::Peers).await {
                Some(peers) => status.peers = peers,
                None => {
                    status.ready = false;
                    status.reasons.push("the engine does not answer".to_owned());
                }
            }
            status
        })
    }

    fn plan(&self) -> Later<'_, Result<Vec<String>, String>> {
        Box::pin(async {
            let situation = self.truth.situation();
            if let Some(waiting) = situation.waiting.clone().filter(|_| !situation.serves()) {
                return Err(format!("nothing to plan yet: {waiting}"));
            }
            self.mailbox
                .ask(Command::Plan)
                .await
                .ok_or_else(|| "the engine does not answer".to_owned())
        })
    }

    fn pause(&self, paused: bool) {
        self.mailbox.command(Command::Pause(paused));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fabric::lease::Subnet;
    use fabric::readiness::{Finding, Part, Report};
    use fabric::status::{Firewall, PodNetwork};

    use super::*;
    use crate::board::{Reporter, Standing};
    use crate::truth::Cached;

    fn whole() -> Whole {
        let states = tokio::sync::watch::Sender::new(registry::State {
            watching: true,
            revision: 9,
            endpoint: Some("memory".to_owned()),
            ..registry::State::default()
        });
        let firewall = Firewall {
            state: FirewallState::Ok,
            restores: 4,
            ..Firewall::default()
        };
        let reporter = Reporter::default();
        let store = registry::memory::Store::new(Duration::from_secs(60));
        Whole {
            truth: Truth::new(
                reporter,
                states.subscribe(),
                crate::truth::RegistryName::etcd("/n"),
                firewall,
            ),
            mailbox: Mailbox::new().unwrap(),
            registry: Arc::new(registry::Leases::over(
                store.client(),
                registry::Chance::seeded(1),
            )),
            heartbeats: Heartbeats::default(),
        }
    }

    #[tokio::test]
    async fn numbers_when_asked_then_those_of_every_part() {
        let whole = whole();
        let reporter = whole.truth.reporter().clone();
        reporter.publish(Part::SubnetFile, Report::default());
        let conflict = Finding::new(Part::Kernel, Kind::Conflict, "x", "x");
        reporter.publish(Part::Kernel, Report::from_iter([conflict.clone(), conflict]));
        reporter.stand(Standing {
            engaged: true,
            listed: true,
            peers: 5,
            failed_peers: 2,
            degraded_peers: 3,
            rejected: 1,
            paused: true,
            objects: BTreeMap::from([("route", 7)]),
            ..Standing::default()
        });
        reporter.repaired_kind("route");
        reporter.dumped("all");
        reporter.applied(Duration::from_millis(1500));
        reporter.audited();
        whole.truth.update(|situation| {
            situation.waiting = None;
            situation.backend = "vxlan".to_owned();
        });
        let subnet = Subnet::parse_key("10.5.1.0-24").unwrap();
        whole.truth.hold(
            &subnet,
            Some(tokio::time::Instant::now() + Duration::from_secs(100)),
        );
        let numbers = whole.numbers();
        assert_eq!(
            (
                numbers.peers,
                numbers.peers_failed,
                numbers.peers_degraded,
                numbers.rejected
            ),
            (5, 2, 3, 1)
        );
        assert_eq!(
            (numbers.ready, numbers.paused, numbers.conflicts),
            (false, true, 2)
        );
        assert_eq!(
            (numbers.backend.as_str(), numbers.version.as_str()),
            ("vxlan", env!("CARGO_PKG_VERSION"))
        );
        assert_eq!(numbers.findings.values().sum::<u64>(), 2);
        assert_eq!(numbers.objects.get("route"), Some(&7));
        assert_eq!(numbers.repairs.get("route"), Some(&1));
        assert_eq!(numbers.dumps.get("all"), Some(&1));
        assert_eq!((numbers.applies, numbers.apply_seconds), (1, 1.5));
        assert_eq!((numbers.registry_connected, numbers.registry_revision), (true, 9));
        assert_eq!((numbers.firewall_ok, numbers.firewall_restores), (true, 4));
        assert_eq!(numbers.registry_requests.len(), 1);
        assert!(numbers.lease_expiry.is_some() && numbers.last_audit.is_some() && numbers.started > 0);
        assert!(numbers.operations.is_empty() && numbers.heartbeat_age_seconds < 60.0);
        whole
            .truth
            .firewall()
            .send_modify(|firewall| firewall.state = FirewallState::Failed);
        assert!(!whole.numbers().firewall_ok);
        whole
            .truth
            .firewall()
            .send_modify(|firewall| firewall.state = FirewallState::Off);
        assert!(whole.numbers().firewall_ok);
        assert_eq!(
            (whole.pods().network, whole.reasons()),
            (PodNetwork::Member, whole.truth.reasons())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn engine_when_it_does_not_answer_then_that_is_said_and_the_host_is_not_ready() {
        let whole = whole();
        assert_eq!(
            whole.plan().await,
            Err("nothing to plan yet: starting".to_owned())
        );
        whole.truth.cached(Cached::Served {
            saved: 0,
            revision: 1,
            doubt: None,
        });
        assert_eq!(whole.plan().await, Err("the engine does not answer".to_owned()));
        let status = whole.status().await;
        assert!(!status.ready && status.reasons.contains(&"the engine does not answer".to_owned()));
        let mail = whole.mailbox.take();
        assert!(matches!(
            mail.commands.as_slice(),
            [Command::Plan(_), Command::Peers(_)]
        ));
        whole.pause(true);
        whole.pause(false);
        let commands = whole.mailbox.take().commands;
        assert!(matches!(
            commands.as_slice(),
            [Command::Pause(true), Command::Pause(false)]
        ));
        let answer = async {
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                for command in whole.mailbox.take().commands {
                    match command {
                        Command::Plan(reply) => drop(reply.send(vec!["add x".to_owned()])),
                        Command::Peers(reply) => drop(reply.send(Vec::new())),
                        _ => {}
                    }
                }
            }
        };
        tokio::select! {
            () = answer => {}
            plan = whole.plan() => assert_eq!(plan, Ok(vec!["add x".to_owned()])),
        }
    }

    #[test]
    fn silence_when_a_thread_hangs_then_it_is_named() {
        let whole = whole();
        assert_eq!(whole.silence(), None);
        let _stuck = whole.heartbeats.watch("stuck", Duration::ZERO);
        assert!(
            whole
                .silence()
                .is_some_and(|text| text.starts_with("thread stuck is silent"))
        );
    }
}
