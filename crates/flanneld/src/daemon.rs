//! From options to a running fabric: config, underlay, lease, and then the parts that keep what was reached.
//!
//! Nothing here ends because something is missing: it waits, says for what in one place, and goes on by itself. What ends the
//! daemon is a signal, an input that no waiting cures, or another node that holds our subnet.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fabric::alloc::PublicIps;
use fabric::lease::{Attributes, Snapshot, Subnet, Update};
use fabric::node::{Identity, Node, Provided};
use fabric::object::Family;
use fabric::ownership::Ownership;
use fabric::plan;
use fabric::subnet_env::SubnetEnv;
use ipnet::IpNet;
use registry::{Chance, Holding, Over, Registry, Taken, Wanted};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::board::Reporter;
use crate::cache::Source;
use crate::firewall::{self, Rules};
use crate::flags::Options;
use crate::interface::Wish;
use crate::mailbox::{Command, Mailbox, Setup};
use crate::truth::{Cached, RegistryName, Truth};

use self::crew::Crew;
use self::ground::{Config, Former, Ground};
use self::machine::{Claimed, Machine, Unfit};
use self::record::Recorder;
use self::records::Records;

mod crew;
mod ground;
mod holding;
mod join;
pub mod machine;
mod outlook;
mod record;
pub mod records;
mod stand_in;
mod underlay;

/// How often it is looked whether the disk answers.
const DISK_LOOK: Duration = Duration::from_secs(1);

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
    /// Peers know a node by its public address; ours changed, or a family has come, or the registry gives us another subnet: the lease
    /// has to be found anew. What happened.
    Readdressed(String),
}

/// What a daemon works with.
pub struct Parts {
    /// What the flags say.
    pub options: Options,
    /// Where leases are kept.
    pub registry: Arc<dyn Registry>,
    /// What it is called, for those who ask.
    pub name: RegistryName,
    /// The machine it runs on.
    pub machine: Arc<dyn Machine>,
    /// What it remembers.
    pub records: Arc<dyn Records>,
    /// Where the engine says how things stand.
    pub reporter: Reporter,
    /// The engine's letter box.
    pub mailbox: Arc<Mailbox>,
    /// The engine heard that the underlay changed.
    pub underlay_changed: Arc<Notify>,
    /// For waiting times.
    pub chance: Chance,
}

/// What the parts share.
pub struct Daemon {
    options: Options,
    registry: Arc<dyn Registry>,
    truth: Truth,
    mailbox: Arc<Mailbox>,
    machine: Arc<dyn Machine>,
    records: Arc<dyn Records>,
    underlay_changed: Arc<Notify>,
    recorder: Recorder,
    chance: Chance,
    /// The registry was asked and did not answer, or not as is needed.
    doubt: Notify,
    /// Addresses that the registry has for this node.
    ordered: Mutex<PublicIps>,
    /// The network config that the fabric stands on.
    standing: Mutex<Option<Config>>,
    /// None in a daemon that was given what it works with.
    crew: Option<Crew>,
}

impl Daemon {
    /// A daemon that is given what it works with, and starts nothing.
    pub fn over(parts: Parts) -> Daemon {
        let source = Source::of(&parts.options.registry);
        let truth = Daemon::truth_of(&parts.options, &*parts.registry, parts.name, parts.reporter);
        Daemon {
            recorder: Recorder::new(Arc::clone(&parts.records), source, truth.clone()),
            truth,
            options: parts.options,
            registry: parts.registry,
            mailbox: parts.mailbox,
            machine: parts.machine,
            records: parts.records,
            underlay_changed: parts.underlay_changed,
            chance: parts.chance,
            doubt: Notify::new(),
            ordered: Mutex::new(PublicIps { v4: None, v6: None }),
            standing: Mutex::default(),
            crew: None,
        }
    }

    fn truth_of(options: &Options, registry: &dyn Registry, name: RegistryName, reporter: Reporter) -> Truth {
        let firewall = firewall::Wanted::of(options).at_first();
        Truth::new(reporter, registry.states(), name, firewall)
    }

    /// What the daemon says about itself.
    pub fn truth(&self) -> &Truth {
        &self.truth
    }

    /// The engine's letter box.
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// Reports when the state directory does not answer, and when it does again.
    pub async fn watch_disk(&self) -> Infallible {
        loop {
            tokio::time::sleep(DISK_LOOK).await;
            let late = self.records.trouble();
            let before = self.truth.situation().state_dir;
            // The text stays: since when does not change.
            self.truth
                .update(|situation| situation.state_dir = late.map(|late| before.unwrap_or(late)));
        }
    }

    /// What is wished of the interface: what the flags say, but for the addresses that the registry has for this node.
    fn wish(&self) -> Wish {
        let ordered = *self.ordered.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wish = self.options.interface.clone();
        wish.public_ip = ordered.v4.or(wish.public_ip);
        wish.public_ipv6 = ordered.v6.or(wish.public_ipv6);
        wish
    }

    /// What there is to stand on, with the config and the machine as they are.
    async fn find(&self, kind: &'static str, config: Config) -> Result<Ground, Unfit> {
        let place = self.machine.place(kind, &self.wish(), &config.network).await?;
        Ground::new(config, place).map_err(Unfit::Broken)
    }

    /// Leaves out of the past what is gone or has become another daemon's.
    async fn claim(&self, former: &mut Former) {
        if former.links.is_empty() {
            return;
        }
        match self.machine.claim(former.links.clone()).await {
            Ok(Claimed { left, kept }) => {
                for kept in kept {
                    info!("{kept}, and not of former times: it is left alone");
                }
                former.links = left;
            }
            // Nothing is ours that is not known to be.
            Err(failure) => {
                warn!("devices of former times: {failure}");
                former.links.clear();
            }
        }
    }

    /// Runs the fabric until its subnet is another's, or an input turns out to be beyond cure.
    pub async fn run(&self) -> anyhow::Result<Ending> {
        let mut state = self.records.state().await;
        let previous_file = self.records.subnet_file().await;
        // A file that is none of ours has something wrong with every line.
        if let Some((first, more)) = previous_file.problems.split_first() {
            let file = self.options.subnet_file.display();
            match more.len() {
                0 => warn!("{file}: {first}"),
                more => warn!("{file}: {first}; and {more} more like it"),
            }
        }
        if let Ok(Some(head)) = self.records.cached_head().await
            && head.is_of(self.recorder.source())
        {
            self.registry.resume(head.revision, head.spoken.as_deref());
        }
        let (ground, held) = tokio::select! {
            biased;
            joined = self.join(&previous_file, &state) => joined?,
            never = self.stand_in(&previous_file) => match never? {},
        };
        let served = matches!(self.truth.situation().cached, Cached::Served { .. });
        if served {
            state = self.records.state().await;
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
        let history = if served { None } else { self.history(&ground).await };
        state.lease = Some(subnet.to_string());
        let mut former = Former::take(&mut state, &ground, &previous_file);
        self.records.save_state(state);
        self.claim(&mut former).await;
        // INVARIANT: nothing is waited for from here to the set-up: what is said is said of the set-up that stands.
        self.show(&ground);
        self.truth.hold(&subnet, held.expires);
        self.truth.update(|situation| {
            situation.waiting = None;
            situation.cached = Cached::Unasked;
            // Of a lease that was another.
            situation.lease_trouble = None;
        });
        self.recorder.hold(&ground.config.text, &held.lease, held.expires);
        self.set_up(&ground, subnet, identity.clone(), former.clone(), history)?;
        self.machine.settled();
        // Only the first set-up needs them.
        former.leases = BTreeMap::new();

        let sink = |update: Update| self.mailbox.update(update);
        let report = |holding: Holding| self.note(subnet, holding);
        tokio::select! {
            biased;
            over = self.registry.keep(&wanted, held, self.options.renew_margin, &report) => {
                self.recorder.lost();
                Ok(match over {
                    Over::Taken(taken) => Ending::Taken(taken),
                    Over::Moved(why) => Ending::Readdressed(why),
                })
            }
            never = self.registry.watch(&sink) => match never {},
            never = self.follow_config(&ground, subnet) => match never {},
            never = self.remember() => match never {},
            never = self.recorder.run(&self.mailbox, self.truth.reporter()) => match never {},
            changed = self.follow_underlay(&ground, subnet, identity, former) => {
                let changed = changed?;
                // It was made from an address that may be gone.
                self.registry.reconnect().await;
                Ok(Ending::Readdressed(changed))
            }
        }
    }

    /// Writes the cache if there is news, and waits for all that is being written: the last thing a daemon does.
    pub async fn note_for_the_next(&self) {
        let written = async {
            self.recorder.write(&self.mailbox, LAST_WORD_FRESH).await;
            self.records.done(LAST_WORD).await;
        };
        let _ = tokio::time::timeout(LAST_WORD, written).await;
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
            provided: Provided::default(),
        };
        let networks: Vec<_> = node.network.networks().collect();
        let mut ownership = Ownership {
            links: ground.backend.links(&node.network),
            networks: networks.clone(),
            former_leases: former.leases,
        };
        ownership.links.extend(former.links);
        ownership.networks.extend(former.networks.iter());
        self.machine.keep_parameters(ownership.links.clone());
        self.machine.keep_rules(Rules {
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
            reach: self.options.interface.can_reach,
        });
        Ok(())
    }

    /// Keeps the record of what leases ask for: what allows, after a roll-back to Go flannel and back, to tell its left-over
    /// routes from an admin's.
    async fn remember(&self) -> Infallible {
        let mut known = 0;
        loop {
            tokio::time::sleep(RECORD_PERIOD).await;
            let revision = self.truth.standing().revision;
            if revision == known && !self.records.is_unsaved() {
                continue;
            }
            if let Some(routes) = self.mailbox.ask(Command::Routes).await {
                if !self.records.note_leases(routes) {
                    continue;
                }
                known = revision;
            }
        }
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
