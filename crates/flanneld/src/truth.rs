//! What the daemon says about itself: one place that joins what its parts know, asked by `/readyz`, the status socket, the
//! metrics and systemd alike, so that they cannot contradict each other.

use std::time::SystemTime;

use fabric::status::{
    Firewall, FirewallState, OwnLease, PodNetwork, Pods, Registry, RegistryState, Status, Underlay,
};
use ipnet::IpNet;
use tokio::sync::watch;

use crate::cache::utc;
use crate::engine::report::{Reporter, Standing};

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
    /// The lease is lost, or could not be renewed in time.
    pub lease_trouble: Option<String>,
    /// There is no valid network config in the registry.
    pub config_missing: bool,
    /// The registry has no subnet that is free.
    pub no_subnet: bool,
    /// What an earlier process knew of the registry, and whether it is served from.
    pub cached: Cached,
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
    },
}

impl Situation {
    /// Leases are known, be it from the cache, and so is what to do with them.
    pub fn serves(&self) -> bool {
        self.waiting.is_none() || matches!(self.cached, Cached::Served { .. })
    }
}

/// The parts that know something.
#[derive(Debug, Clone)]
pub struct Truth {
    situation: watch::Sender<Situation>,
    firewall: watch::Sender<Firewall>,
    /// Kept from one question to the next, so that what changes in between is not missed.
    seen: (watch::Receiver<Situation>, watch::Receiver<Firewall>),
    standing: watch::Receiver<Standing>,
    registry: registry::States,
    reporter: Reporter,
    prefix: String,
    started: u64,
}

impl Truth {
    /// At start: nothing is known yet.
    pub fn new(reporter: Reporter, registry: registry::States, prefix: String, firewall: Firewall) -> Truth {
        let situation = watch::Sender::new(Situation {
            waiting: Some("starting".to_owned()),
            ..Situation::default()
        });
        let firewall = watch::Sender::new(firewall);
        Truth {
            seen: (situation.subscribe(), firewall.subscribe()),
            situation,
            firewall,
            standing: reporter.standing(),
            registry,
            reporter,
            prefix,
            started: crate::engine::report::now_seconds(),
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

    /// Says what is being waited for. Logged once, when it changes.
    pub fn wait_for(&self, what: impl Into<String>) {
        let what = what.into();
        if self.situation.borrow().waiting.as_ref() != Some(&what) {
            tracing::warn!("waiting: {what}");
        }
        self.update(|situation| situation.waiting = Some(what));
    }

    /// Says what the cache is good for. Why it is good for nothing is logged once, when it changes.
    pub fn cached(&self, cached: Cached) {
        if let Cached::Useless(why) = &cached
            && self.situation.borrow().cached != cached
        {
            tracing::warn!("the cache is not served from: {why}");
        }
        self.update(|situation| situation.cached = cached);
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
            _ = self.standing.changed() => {}
            _ = self.registry.changed() => {}
        }
    }

    /// What keeps the daemon from being ready right now, one sentence each.
    pub fn reasons(&self) -> Vec<String> {
        let situation = self.situation.borrow();
        let registry = self.registry.borrow();
        let mut reasons = Vec::new();
        match (&situation.cached, &situation.waiting) {
            (Cached::Served { saved, .. }, why) => {
                let why = why.as_deref().unwrap_or("the registry has not answered yet");
                reasons.push(format!("stale: served from the cache of {}: {why}", utc(*saved)));
            }
            (Cached::Useless(useless), Some(why)) => {
                reasons.extend([why.clone(), format!("the cache is not served from: {useless}")]);
            }
            (_, why) => reasons.extend(why.clone()),
        }
        reasons.extend(situation.lease_trouble.clone());
        if situation.waiting.is_none() && !registry.watching {
            reasons.push(match &registry.last_failure {
                Some(failure) => format!("stale: the registry is not reached: {}", failure.error),
                None => "the registry is not watched yet".to_owned(),
            });
        }
        drop((situation, registry));
        reasons.extend(self.lacks());
        reasons
    }

    /// What keeps the host from being what is known of the leases, whether that is news or history.
    fn lacks(&self) -> Vec<String> {
        let situation = self.situation.borrow();
        let standing = self.standing.borrow();
        let firewall = self.firewall.borrow();
        let mut reasons = Vec::new();
        if situation.serves() && !standing.engaged {
            reasons.push("the first comparison of leases and kernel is not done".to_owned());
        }
        match firewall.state {
            FirewallState::Off | FirewallState::Ok => {}
            FirewallState::Pending => reasons.push("firewall rules are not in place yet".to_owned()),
            FirewallState::Failed => {
                reasons.push(format!(
                    "firewall rules: {}",
                    firewall.error.as_deref().unwrap_or("not in place")
                ));
            }
        }
        if standing.engaged && !standing.subnet_file_written {
            reasons.push(match &standing.subnet_file_error {
                Some(error) => format!("subnet file: {error}"),
                None => "the subnet file is not written yet".to_owned(),
            });
        }
        reasons
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

    /// Whether the host is what is known of the leases, be it from the cache: then services that wait for us need not any more.
    pub fn is_served(&self) -> bool {
        self.situation.borrow().serves() && self.lacks().is_empty()
    }

    /// One line for systemd.
    pub fn line(&self) -> String {
        let reasons = self.reasons();
        if let Some(reason) = reasons.first() {
            return reason.clone();
        }
        let situation = self.situation.borrow();
        let standing = self.standing.borrow();
        let subnet = situation
            .lease
            .as_ref()
            .map_or("no lease", |lease| lease.subnet.as_str());
        let failed = match standing.failed_peers {
            0 => String::new(),
            n => format!(", {n} not served in full"),
        };
        format!("{} {subnet}: {} peers{failed}", situation.backend, standing.peers)
    }

    /// Everything, but for the list of peers, which the engine has.
    pub fn status(&self) -> Status {
        let reasons = self.reasons();
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
            ready: reasons.is_empty(),
            reasons,
            paused: standing.paused,
            networks: situation.networks,
            backend: situation.backend,
            lease: situation.lease,
            registry: Registry {
                kind: "etcd v3".to_owned(),
                endpoint: state.endpoint.unwrap_or_default(),
                prefix: self.prefix.clone(),
                state: registry_state,
                revision,
                error: state.last_failure.map(|failure| failure.error),
            },
            underlay: situation.underlay,
            mtu: situation.mtu,
            peers: Vec::new(),
            rejected: standing.rejected,
            conflicts: standing.conflicts,
            overlaps: standing.overlaps,
            failures: standing.failures,
            fights: standing.fights,
            firewall: self.firewall.borrow().clone(),
            last_audit: standing.last_audit,
            repairs: self.reporter.counters().repairs().values().sum(),
        }
    }
}

/// Seconds since 1970 of a moment on the monotonic clock.
pub fn wall_clock(at: tokio::time::Instant) -> u64 {
    let now = tokio::time::Instant::now();
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
    use std::time::Duration;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn changed_when_something_changed_before_it_was_asked_then_it_says_so() {
        let (_states, registry) = watch::channel(registry::State::default());
        let mut truth = Truth::new(
            Reporter::default(),
            registry,
            "/n".to_owned(),
            Firewall::default(),
        );
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
}
