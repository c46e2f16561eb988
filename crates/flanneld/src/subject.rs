//! The daemon as HTTP sees it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fabric::status::{FirewallState, Pods, RegistryState, Status};
use registry::Registry;

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
}

impl Subject for Whole {
    fn is_alive(&self) -> bool {
        self.truth.reporter().is_alive()
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
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Numbers {
            version: status.version,
            backend: status.backend,
            ready: status.ready,
            paused: status.paused,
            started: status.started,
            peers: count(standing.peers),
            peers_failed: count(standing.failed_peers),
            rejected: count(status.rejected.len()),
            objects: standing
                .objects
                .iter()
                .map(|(kind, n)| ((*kind).to_owned(), count(*n)))
                .collect(),
            conflicts: count(status.conflicts.len()),
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
