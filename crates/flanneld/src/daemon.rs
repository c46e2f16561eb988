//! From options to a running fabric: config, underlay, lease, and then the parts that keep what was reached.
//!
//! Nothing here ends because something is missing: it waits, says for what in one place, and goes on by itself. What ends the
//! daemon is a signal, an input that no waiting cures, or another node that holds our subnet.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use fabric::alloc::PublicIps;
use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Subnet, Update};
use fabric::node::{Identity, Node, Underlay};
use fabric::object::{Family, LinkName, Objects};
use fabric::ownership::Ownership;
use fabric::plan::{self, Backend};
use fabric::status::{Firewall, FirewallState, OwnLease};
use fabric::subnet_env::{Previous, SubnetEnv};
use ipnet::IpNet;
use kernel::{Interest, Kernel, Scope};
use registry::{AcquireError, Backoff, Held, Holding, Registry, RegistryError, Taken, Wanted};
use tokio::sync::Notify;
use tracing::{error, info, warn};

use crate::engine::subnet_env::EnvKeeper;
use crate::engine::{Engine, Setup, report::Reporter};
use crate::firewall::{self, Rules};
use crate::flags::Options;
use crate::interface;
use crate::mailbox::{Command, Mailbox};
use crate::state_dir::{State, StateDir};
use crate::truth::{Truth, wall_clock};

/// After an underlay change its echoes are waited for before the choice is made anew.
const UNDERLAY_SETTLES: Duration = Duration::from_millis(200);

/// How often the record of leases is brought up to date, at most.
const RECORD_PERIOD: Duration = Duration::from_secs(60);

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
}

/// The choice of interface and what follows from it and the config.
struct Ground {
    network: NetworkConfig,
    backend: Box<dyn Backend>,
    underlay: Underlay,
    warnings: Vec<String>,
    mtu: u32,
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
        Ok(Daemon {
            options,
            registry,
            truth,
            mailbox,
            state_dir,
            underlay_changed,
            firewall,
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
        let network = self.network_config().await;
        let ground = self.ground(network).await?;
        self.show(&ground);
        remember_networks(&mut state, &ground, &previous_file);

        let observed = observe_links(&ground)?;
        let attributes = |subnet: &Subnet, own: Option<&Attributes>| {
            let identity = ground.backend.identity(&ground.network, subnet, &observed, own);
            ground
                .backend
                .attributes(&ground.network, &ground.underlay, &identity)
        };
        let wanted = Wanted {
            config: &ground.network,
            me: PublicIps {
                v4: ground.underlay.public4,
                v6: ground.underlay.public6,
            },
            previous: previous_subnet(&ground.network, &previous_file, &state),
            attributes: &attributes,
        };
        let held = self.acquire(&wanted).await;
        let subnet = held.lease.subnet;
        let identity =
            ground
                .backend
                .identity(&ground.network, &subnet, &observed, Some(&held.lease.attributes));
        info!(
            "holding subnet {subnet}{}",
            if held.reused { ", ours before" } else { "" }
        );
        for other in &held.also_ours {
            warn!("the registry has a further lease with our public address: {other}; it is left alone");
        }
        self.truth.update(|situation| {
            situation.lease = Some(own_lease(subnet, held.expires));
            situation.waiting = None;
        });
        state.lease = Some(subnet.to_string());
        state.lease_expires = held.expires.map(wall_clock);
        state.add_links(ground.backend.links(&ground.network));
        let mut former = Former::take(&state, &ground);
        self.state_dir.save(&state);
        drop(state);
        self.set_up(&ground, subnet, identity, former.clone())?;
        // Only the first set-up needs them.
        former.leases = BTreeMap::new();

        let sink = |update: Update| self.mailbox.update(update);
        let report = |holding: Holding| self.note(subnet, holding);
        tokio::select! {
            taken = self.registry.keep(&wanted, held, self.options.renew_margin, &report) => Ok(Ending::Taken(taken)),
            never = self.registry.watch(&sink) => match never {},
            never = self.remember() => match never {},
            changed = self.follow_underlay(&ground, subnet, identity, &former) => {
                let changed = changed?;
                // It was made from an address that may be gone.
                self.registry.reconnect().await;
                Ok(Ending::Readdressed(changed))
            }
        }
    }

    /// Waits for a network config that holds together.
    async fn network_config(&self) -> NetworkConfig {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            let (waiting, missing) = match self.registry.network_config().await {
                Ok(json) => match NetworkConfig::parse(&json) {
                    Ok(network) => {
                        self.truth.update(|situation| situation.config_missing = false);
                        return network;
                    }
                    Err(refused) => (refused.to_string(), true),
                },
                Err(missing @ RegistryError::NotFound { .. }) => (missing.to_string(), true),
                Err(failure) => (failure.to_string(), false),
            };
            self.truth.update(|situation| situation.config_missing = missing);
            self.truth.wait_for(waiting);
            tokio::time::sleep(backoff.step()).await;
        }
    }

    /// Waits for an underlay that can carry the network.
    async fn ground(&self, network: NetworkConfig) -> anyhow::Result<Ground> {
        let backend = plan::backend(&network.backend)?;
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            match interface::choose(&self.options.interface, &network) {
                Ok(selected) => {
                    let underlay = selected.underlay();
                    let mtu = backend.mtu(&network, &underlay)?;
                    return Ok(Ground {
                        network,
                        backend,
                        underlay,
                        warnings: selected.warnings,
                        mtu,
                    });
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
    ) -> anyhow::Result<()> {
        let node = Node {
            network: ground.network.clone(),
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
            nftables: ground.network.nftables,
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
            env: EnvKeeper::new(self.options.subnet_file.clone(), env),
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
            let selected = match interface::choose(&self.options.interface, &ground.network) {
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
            let mtu = match ground.backend.mtu(&ground.network, &underlay) {
                Ok(mtu) => mtu,
                Err(failure) => {
                    error!("{failure}");
                    continue;
                }
            };
            info!(
                "underlay changed: {} MTU {} ({})",
                underlay.link,
                underlay.mtu,
                addresses(&underlay)
            );
            let ground = Ground {
                network: ground.network.clone(),
                backend: plan::backend(&ground.network.backend)?,
                underlay: underlay.clone(),
                warnings: selected.warnings,
                mtu,
            };
            self.show(&ground);
            self.set_up(&ground, subnet, identity, former.clone())?;
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
                let mut state = self.state_dir.load();
                state.set_leases(routes);
                self.state_dir.save(&state);
                known = revision;
                drop(state);
                kernel::heap::trim();
            }
        }
    }

    fn show(&self, ground: &Ground) {
        let underlay = &ground.underlay;
        for warning in &ground.warnings {
            warn!("{warning}");
        }
        self.truth.update(|situation| {
            situation.networks = ground.network.networks().collect();
            situation.backend = ground.backend.name().to_owned();
            situation.mtu = ground.mtu;
            situation.underlay = Some(fabric::status::Underlay {
                link: underlay.link.to_string(),
                mtu: underlay.mtu,
                addresses: Family::BOTH.iter().filter_map(|f| underlay.address(*f)).collect(),
                public: Family::BOTH.iter().filter_map(|f| underlay.public(*f)).collect(),
                warnings: ground.warnings.clone(),
            });
        });
    }

    fn note(&self, subnet: Subnet, holding: Holding) {
        match holding {
            Holding::Renewed { expires } => {
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
                warn!("lease {subnet} is gone from the registry; asking for it again");
                self.truth.update(|situation| {
                    situation.lease_trouble = Some(format!("lease {subnet} is gone from the registry"));
                });
            }
            Holding::Regained { expires, .. } => {
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

fn addresses(underlay: &Underlay) -> String {
    let all: Vec<String> = Family::BOTH
        .iter()
        .filter_map(|f| underlay.public(*f))
        .map(|ip| ip.to_string())
        .collect();
    all.join(", ")
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

/// The devices of the plan as they are now: an identity is first of all what the device has.
fn observe_links(ground: &Ground) -> anyhow::Result<Objects> {
    let links = ground.backend.links(&ground.network);
    let mut kernel = Kernel::open(Interest {
        links,
        networks: Vec::new(),
    })?;
    kernel.observe(Scope::All)?;
    Ok(kernel.objects().clone())
}

/// The subnet this node had last: what the subnet file says, else what the state file says.
fn previous_subnet(network: &NetworkConfig, file: &Previous, state: &State) -> Option<Subnet> {
    let v4 = file.subnet.filter(|_| network.v4.is_some());
    let v6 = file.subnet6.filter(|_| network.v6.is_some());
    let complete = v4.is_some() == network.v4.is_some() && v6.is_some() == network.v6.is_some();
    let from_file = if complete { Subnet::new(v4, v6) } else { None };
    from_file.or_else(|| Subnet::parse_key(state.lease.as_deref()?).ok())
}

/// What this host was before, as far as it bears on what is ours now.
#[derive(Debug, Clone)]
struct Former {
    links: Vec<LinkName>,
    networks: Vec<IpNet>,
    leases: BTreeMap<IpNet, Vec<IpAddr>>,
}

impl Former {
    /// What the record has beyond the present.
    fn take(state: &State, ground: &Ground) -> Former {
        let links = ground.backend.links(&ground.network);
        let networks: Vec<IpNet> = ground.network.networks().collect();
        Former {
            links: state
                .former_links()
                .filter(|link| !links.contains(link))
                .collect(),
            networks: state
                .former_networks()
                .filter(|network| !networks.contains(network))
                .collect(),
            leases: state.former_leases(),
        }
    }
}

fn remember_networks(state: &mut State, ground: &Ground, previous: &Previous) {
    let now = ground.network.networks();
    let before = [
        previous.network.map(Into::into),
        previous.network6.map(Into::into),
    ];
    state.add_networks(now.chain(before.into_iter().flatten()));
}

/// Spreads the timers of many hosts that start at once.
fn seed() -> u64 {
    let time = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.subsec_nanos());
    u64::from(time) ^ (u64::from(std::process::id()) << 32)
}
