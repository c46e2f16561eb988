//! From options to a running fabric: config, underlay, lease, and then the parts that keep what was reached.
//!
//! Nothing here ends because something is missing: it waits, says for what in one place, and goes on by itself. What ends the
//! daemon is a signal, an input that no waiting cures, or another node that holds our subnet.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Snapshot, Subnet, Update};
use fabric::node::{Identity, Node};
use fabric::object::Family;
use fabric::ownership::Ownership;
use fabric::plan;
use fabric::status::{Firewall, FirewallState, OwnLease};
use fabric::subnet_env::{Previous, SubnetEnv};
use ipnet::IpNet;
use registry::{AcquireError, Backoff, Held, Holding, Registry, RegistryError, Taken, Wanted};
use tokio::sync::Notify;
use tracing::{error, info, warn};

use crate::cache::Source;
use crate::engine::{Engine, report::Reporter};
use crate::firewall::{self, Rules};
use crate::flags::Options;
use crate::interface;
use crate::mailbox::{Command, Mailbox, Setup};
use crate::state_dir::{State, StateDir};
use crate::truth::{Cached, Truth, wall_clock};

use self::ground::{Config, Former, Ground, addresses, previous_subnet};
use self::record::Recorder;

mod ground;
mod record;
mod stand_in;

/// After an underlay change its echoes are waited for before the choice is made anew.
const UNDERLAY_SETTLES: Duration = Duration::from_millis(200);

/// How often the record of leases is brought up to date, at most.
const RECORD_PERIOD: Duration = Duration::from_secs(60);

/// The last write of the cache may take this long.
const LAST_WORD: Duration = Duration::from_secs(2);
/// And is left out when the same was written less than this ago.
const LAST_WORD_FRESH: Duration = Duration::from_secs(60);

/// Why [`Daemon::run`] came back.
#[derive(Debug)]
pub enum Ending {
    /// Another node holds our subnet: stop announcing it.
    Taken(Taken),
    /// Peers know a node by its public address; ours changed, so the lease has to be found anew. From what to what.
    Readdressed(String),
}

/// What the parts share.
pub struct Daemon {
    options: Options,
    registry: Arc<dyn Registry>,
    truth: Truth,
    mailbox: Arc<Mailbox>,
    state_dir: StateDir,
    /// The underlay changed.
    underlay_changed: Arc<Notify>,
    firewall: firewall::Handle,
    recorder: Recorder,
    /// The registry was asked and did not answer, or not as is needed.
    doubt: Notify,
}

impl Daemon {
    /// Starts the threads. Nothing is asked of the registry yet.
    pub fn start(options: Options, registry: Arc<dyn Registry>, prefix: String) -> anyhow::Result<Daemon> {
        let reporter = Reporter::default();
        let mailbox = Mailbox::new().context("making the engine's letter box")?;
        let off = !options.masquerade && !options.forward_rules;
        let firewall_state = Firewall {
            state: if off {
                FirewallState::Off
            } else {
                FirewallState::Pending
            },
            ..Firewall::default()
        };
        let truth = Truth::new(reporter.clone(), registry.states(), prefix, firewall_state);
        let underlay_changed = Arc::new(Notify::new());
        let notify = Arc::clone(&underlay_changed);
        let on_underlay = Box::new(move || notify.notify_one());
        let engine = Engine::new(Arc::clone(&mailbox), reporter.clone(), on_underlay, seed())
            .context("opening the engine's netlink sockets")?;
        std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || engine.run())
            .context("starting the engine")?;
        let firewall = firewall::start(&options, truth.firewall().clone(), reporter)
            .context("starting the firewall's thread")?;
        let state_dir = StateDir::for_subnet_file(&options.subnet_file);
        let recorder = Recorder::new(state_dir.cache(), Source::of(&options.etcd));
        Ok(Daemon {
            options,
            registry,
            truth,
            mailbox,
            state_dir,
            underlay_changed,
            firewall,
            recorder,
            doubt: Notify::new(),
        })
    }

    /// What the daemon says about itself.
    pub fn truth(&self) -> &Truth {
        &self.truth
    }

    /// The engine's letter box.
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// Ends the threads after the step they are in. The data path stays as it is.
    pub fn stop(&self) {
        self.mailbox.stop();
        self.firewall.stop();
    }

    /// Runs the fabric until its subnet is another's, or an input turns out to be beyond cure.
    pub async fn run(&self) -> anyhow::Result<Ending> {
        let mut state = self.state_dir.load();
        let previous_file = crate::subnet_file::read_previous(&self.options.subnet_file);
        for problem in &previous_file.problems {
            warn!("{}: {problem}", self.options.subnet_file.display());
        }
        if let Ok(Some(head)) = self.recorder.cache().head()
            && head.is_of(self.recorder.source())
        {
            self.registry.resume(head.revision);
        }
        let (ground, held) = tokio::select! {
            joined = self.join(&previous_file, &state) => joined?,
            never = self.stand_in(&previous_file) => match never? {},
        };
        let served = matches!(self.truth.situation().cached, Cached::Served { .. });
        if served {
            state = self.state_dir.load();
            info!("the registry answers: what it says replaces what the cache said");
            let before = self.truth.situation().lease.map(|lease| lease.subnet);
            if let Some(lost) = before.filter(|before| *before != held.lease.subnet.to_string()) {
                warn!(
                    "subnet {lost}, served from the cache, is not ours any more; pods with its addresses are cut off"
                );
            }
        }
        let attributes = |subnet: &Subnet, own: Option<&Attributes>| ground.attributes(subnet, own);
        let wanted = Wanted {
            config: ground.network(),
            me: ground.me(),
            previous: Some(held.lease.subnet),
            attributes: &attributes,
        };
        let subnet = held.lease.subnet;
        let identity = ground.identity(&subnet, Some(&held.lease.attributes));
        info!(
            "holding subnet {subnet}{}",
            if held.reused { ", ours before" } else { "" }
        );
        for other in &held.also_ours {
            warn!("the registry has a further lease with our public address: {other}; it is left alone");
        }
        let history = if served { None } else { self.history(&ground) };
        self.show(&ground);
        self.truth.update(|situation| {
            situation.lease = Some(own_lease(subnet, held.expires));
            situation.waiting = None;
            situation.cached = Cached::Unasked;
        });
        self.recorder.hold(&ground.config.text, &held.lease, held.expires);
        state.lease = Some(subnet.to_string());
        let mut former = Former::take(&mut state, &ground, &previous_file);
        self.state_dir.save(&state);
        drop(state);
        self.set_up(&ground, subnet, identity, former.clone(), history)?;
        // Only the first set-up needs them.
        former.leases = BTreeMap::new();

        let sink = |update: Update| self.mailbox.update(update);
        let report = |holding: Holding| self.note(subnet, holding);
        tokio::select! {
            taken = self.registry.keep(&wanted, held, self.options.renew_margin, &report) => {
                self.recorder.lost();
                Ok(Ending::Taken(taken))
            }
            never = self.registry.watch(&sink) => match never {},
            never = self.remember() => match never {},
            never = self.recorder.run(&self.mailbox, self.truth.reporter()) => match never {},
            changed = self.follow_underlay(&ground, subnet, identity, &former) => {
                let changed = changed?;
                // It was made from an address that may be gone.
                self.registry.reconnect().await;
                Ok(Ending::Readdressed(changed))
            }
        }
    }

    /// Writes the cache if there is news: the last thing a daemon does.
    pub async fn note_for_the_next(&self) {
        let written = self.recorder.write(&self.mailbox, LAST_WORD_FRESH);
        let _ = tokio::time::timeout(LAST_WORD, written).await;
    }

    /// Waits for what only the registry can give: the config, and, on the ground that it makes, a lease.
    async fn join(&self, previous: &Previous, state: &State) -> anyhow::Result<(Ground, Held)> {
        let config = self.network_config().await;
        let ground = self.ground(config).await?;
        let attributes = |subnet: &Subnet, own: Option<&Attributes>| ground.attributes(subnet, own);
        let wanted = Wanted {
            config: ground.network(),
            me: ground.me(),
            previous: previous_subnet(ground.network(), previous, state),
            attributes: &attributes,
        };
        let held = self.acquire(&wanted).await;
        Ok((ground, held))
    }

    /// Waits for a network config that holds together.
    async fn network_config(&self) -> Config {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            let (waiting, missing) = match self.registry.network_config().await {
                Ok(json) => match NetworkConfig::parse(&json) {
                    Ok(network) => {
                        self.truth.update(|situation| situation.config_missing = false);
                        let text = String::from_utf8_lossy(&json).into_owned();
                        return Config { text, network };
                    }
                    Err(refused) => (refused.to_string(), true),
                },
                Err(missing @ RegistryError::NotFound { .. }) => (missing.to_string(), true),
                Err(failure) => (failure.to_string(), false),
            };
            self.truth.update(|situation| situation.config_missing = missing);
            self.truth.wait_for(waiting);
            self.doubt.notify_one();
            tokio::time::sleep(backoff.step()).await;
        }
    }

    /// Waits for an underlay that can carry the network.
    async fn ground(&self, config: Config) -> anyhow::Result<Ground> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            match interface::choose(&self.options.interface, &config.network) {
                Ok(selected) => {
                    let ground = Ground::new(config, selected)?;
                    if !self.truth.situation().serves() {
                        self.show(&ground);
                    }
                    return Ok(ground);
                }
                Err(failure) => self.truth.wait_for(failure.to_string()),
            }
            tokio::time::sleep(backoff.step()).await;
        }
    }

    async fn acquire(&self, wanted: &Wanted<'_>) -> Held {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            match self.registry.acquire(wanted).await {
                Ok(held) => return held,
                Err(failure) => {
                    let no_subnet = matches!(failure, AcquireError::Alloc(_));
                    self.truth.update(|situation| situation.no_subnet = no_subnet);
                    self.truth.wait_for(format!("no lease yet: {failure}"));
                }
            }
            self.doubt.notify_one();
            tokio::time::sleep(backoff.step()).await;
        }
    }

    /// Hands engine and firewall what they work on.
    fn set_up(
        &self,
        ground: &Ground,
        subnet: Subnet,
        identity: Identity,
        former: Former,
        cached: Option<Snapshot>,
    ) -> anyhow::Result<()> {
        let node = Node {
            network: ground.network().clone(),
            underlay: ground.underlay.clone(),
            subnet,
            identity,
            direct: BTreeMap::new(),
        };
        let networks: Vec<_> = node.network.networks().collect();
        let mut ownership = Ownership {
            links: ground.backend.links(&node.network),
            networks: networks.clone(),
            former_leases: former.leases,
        };
        ownership.links.extend(former.links);
        ownership.networks.extend(former.networks.iter());
        self.firewall.set(Rules {
            nftables: ground.network().nftables,
            halves: node
                .network
                .families()
                .filter_map(|f| Some((node.network.space(f)?.network, node.subnet.of(f)?)))
                .collect(),
            former: former.networks,
        });
        let env = SubnetEnv {
            network: v4(node.network.space(Family::V4).map(|space| space.network)),
            subnet: subnet.v4.filter(|_| node.network.v4.is_some()),
            network6: v6(node.network.space(Family::V6).map(|space| space.network)),
            subnet6: subnet.v6.filter(|_| node.network.v6.is_some()),
            mtu: ground.mtu,
            ipmasq: self.options.masquerade,
        };
        self.mailbox.set_up(Setup {
            backend: plan::backend(&node.network.backend)?,
            node,
            ownership,
            subnet_file: self.options.subnet_file.clone(),
            env,
            cached,
        });
        Ok(())
    }

    /// Makes the choice of interface anew when the underlay changes, and sets everything up for what comes of it.
    async fn follow_underlay(
        &self,
        ground: &Ground,
        subnet: Subnet,
        identity: Identity,
        former: &Former,
    ) -> anyhow::Result<String> {
        let mut current = ground.underlay.clone();
        loop {
            self.underlay_changed.notified().await;
            tokio::time::sleep(UNDERLAY_SETTLES).await;
            let selected = match interface::choose(&self.options.interface, ground.network()) {
                Ok(selected) => selected,
                // The link may be gone for a moment; the engine keeps trying what can be tried without it.
                Err(failure) => {
                    self.truth
                        .update(|situation| situation.lease_trouble = Some(format!("underlay: {failure}")));
                    continue;
                }
            };
            self.truth.update(|situation| {
                situation
                    .lease_trouble
                    .take_if(|trouble| trouble.starts_with("underlay:"));
            });
            let underlay = selected.underlay();
            if underlay == current {
                continue;
            }
            if (underlay.public4, underlay.public6) != (current.public4, current.public6) {
                return Ok(format!(
                    "from {} to {}",
                    addresses(&current),
                    addresses(&underlay)
                ));
            }
            let ground = match ground.moved(selected) {
                Ok(ground) => ground,
                Err(failure) => {
                    error!("{failure:#}");
                    continue;
                }
            };
            info!(
                "underlay changed: {} MTU {} ({})",
                underlay.link,
                underlay.mtu,
                addresses(&underlay)
            );
            self.show(&ground);
            self.set_up(&ground, subnet, identity, former.clone(), None)?;
            current = underlay;
        }
    }

    /// Keeps the record of what leases ask for: what allows, after a roll-back to Go flannel and back, to tell its left-over
    /// routes from an admin's.
    async fn remember(&self) -> Infallible {
        let mut known = 0;
        loop {
            tokio::time::sleep(RECORD_PERIOD).await;
            let revision = self.truth.standing().revision;
            if revision == known {
                continue;
            }
            if let Some(routes) = self.mailbox.ask(Command::Routes).await {
                let before = self.state_dir.load();
                let mut state = before.clone();
                state.set_leases(routes);
                if state != before {
                    self.state_dir.save(&state);
                }
                known = revision;
                drop((before, state));
                kernel::heap::trim();
            }
        }
    }

    fn show(&self, ground: &Ground) {
        let underlay = &ground.underlay;
        let shown = fabric::status::Underlay {
            link: underlay.link.to_string(),
            mtu: underlay.mtu,
            addresses: Family::BOTH.iter().filter_map(|f| underlay.address(*f)).collect(),
            public: Family::BOTH.iter().filter_map(|f| underlay.public(*f)).collect(),
            warnings: ground.warnings.clone(),
        };
        if self.truth.situation().underlay.as_ref() != Some(&shown) {
            for warning in &ground.warnings {
                warn!("{warning}");
            }
        }
        self.truth.update(|situation| {
            situation.networks = ground.network().networks().collect();
            situation.backend = ground.backend.name().to_owned();
            situation.mtu = ground.mtu;
            situation.underlay = Some(shown);
        });
    }

    fn note(&self, subnet: Subnet, holding: Holding) {
        match holding {
            Holding::Renewed { expires } => {
                self.recorder.renewed(expires);
                self.truth.update(|situation| {
                    situation.lease = Some(own_lease(subnet, expires));
                    situation.lease_trouble = None;
                });
            }
            Holding::Failing {
                error,
                expires,
                retry_in,
            } => {
                warn!(
                    "lease {subnet} could not be renewed: {error}; next try in {} s",
                    retry_in.as_secs()
                );
                let ended = expires.is_some_and(|at| at <= tokio::time::Instant::now());
                self.truth.update(|situation| {
                    situation.lease_trouble = ended.then(|| format!("lease {subnet} has expired: {error}"));
                });
            }
            Holding::Lost => {
                self.recorder.lost();
                warn!("lease {subnet} is gone from the registry; asking for it again");
                self.truth.update(|situation| {
                    situation.lease_trouble = Some(format!("lease {subnet} is gone from the registry"));
                });
            }
            Holding::Regained { expires, .. } => {
                self.recorder.renewed(expires);
                info!("lease {subnet} is ours again");
                self.truth.update(|situation| {
                    situation.lease = Some(own_lease(subnet, expires));
                    situation.lease_trouble = None;
                });
            }
            Holding::Repaired => info!("lease {subnet} had been written over; its value is ours again"),
        }
    }
}

fn own_lease(subnet: Subnet, expires: Option<tokio::time::Instant>) -> OwnLease {
    OwnLease {
        subnet: subnet.to_string(),
        expires: expires.map(wall_clock),
        reservation: expires.is_none(),
    }
}

fn v4(net: Option<IpNet>) -> Option<ipnet::Ipv4Net> {
    match net {
        Some(IpNet::V4(net)) => Some(net),
        _ => None,
    }
}

fn v6(net: Option<IpNet>) -> Option<ipnet::Ipv6Net> {
    match net {
        Some(IpNet::V6(net)) => Some(net),
        _ => None,
    }
}

/// The revision of what the registry last said.
fn listed_at(registry: &dyn Registry) -> i64 {
    registry.states().borrow().revision
}

/// Spreads the timers of many hosts that start at once.
fn seed() -> u64 {
    let time = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.subsec_nanos());
    u64::from(time) ^ (u64::from(std::process::id()) << 32)
}
