//! What the fabric of this host stands on: the config, the choice of interface, and what the host was before.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fabric::alloc::PublicIps;
use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Subnet};
use fabric::node::{Identity, Provided, Underlay};
use fabric::object::{Family, LinkName, Objects};
use fabric::plan::{self, Backend};
use fabric::subnet_env::Previous;
use ipnet::IpNet;

use super::machine::Place;
use crate::interface::{Held, Selected, Unserved};
use crate::state_dir::State;

/// A network config, as it was written and as it is understood.
#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) text: String,
    pub(super) network: NetworkConfig,
}

/// The choice of interface and what follows from it and the config.
pub(super) struct Ground {
    pub(super) config: Config,
    pub(super) backend: Box<dyn Backend>,
    pub(super) underlay: Underlay,
    pub(super) warnings: Vec<String>,
    pub(super) mtu: u32,
    /// The link below.
    pub(super) held: Held,
    /// The network as the config has it.
    asked: NetworkConfig,
    /// The family of it that is not served here: in all else here the network is without it.
    pub(super) unserved: Option<Unserved>,
    /// The devices of the plan as they were at start: an identity is first of all what the device has.
    observed: Objects,
}

impl Ground {
    /// Config and machine as they are now.
    ///
    /// # Errors
    /// The config asks for what no waiting will bring.
    pub(super) fn new(config: Config, place: Place) -> anyhow::Result<Ground> {
        Ground::over(config, place.selected, place.devices)
    }

    fn over(mut config: Config, selected: Selected, observed: Objects) -> anyhow::Result<Ground> {
        let asked = config.network.clone();
        if let Some(unserved) = &selected.unserved {
            leave_out(&mut config.network, unserved.family);
        }
        let held = Held {
            index: selected.index,
            link: selected.underlay.link,
        };
        let backend = plan::backend(&config.network.backend)?;
        let underlay = selected.underlay();
        let mtu = backend.mtu(&config.network, &underlay)?;
        let mut warnings = selected.warnings;
        warnings.extend(backend.without_effect(&underlay));
        Ok(Ground {
            config,
            backend,
            underlay,
            warnings,
            mtu,
            held,
            asked,
            unserved: selected.unserved,
            observed,
        })
    }

    /// The same on another choice of interface.
    pub(super) fn moved(&self, selected: Selected) -> anyhow::Result<Ground> {
        let config = Config {
            text: self.config.text.clone(),
            network: self.asked.clone(),
        };
        let moved = Ground::over(config, selected, self.observed.clone())?;
        // A link that was renamed goes on being known by the name it was chosen by: by the new one the flags do not find it.
        let held = if moved.held.index == self.held.index {
            self.held
        } else {
            moved.held
        };
        Ok(Ground { held, ..moved })
    }

    /// What the config asks for, whether it can be served here or not.
    pub(super) fn asked(&self) -> &NetworkConfig {
        &self.asked
    }

    /// A subnet without the half that is not served here; `None` when nothing of it is.
    pub(super) fn served(&self, subnet: Subnet) -> Option<Subnet> {
        let network = self.network();
        let v4 = subnet.v4.filter(|_| network.v4.is_some());
        Subnet::new(v4, subnet.v6.filter(|_| network.v6.is_some()))
    }

    pub(super) fn network(&self) -> &NetworkConfig {
        &self.config.network
    }

    /// What peers know this host by.
    pub(super) fn me(&self) -> PublicIps {
        PublicIps {
            v4: self.underlay.public4,
            v6: self.underlay.public6,
        }
    }

    pub(super) fn identity(&self, subnet: &Subnet, own: Option<&Attributes>) -> Identity {
        let provided = Provided::default();
        self.backend
            .identity(self.network(), subnet, &self.observed, own, &provided)
    }

    pub(super) fn attributes(&self, subnet: &Subnet, own: Option<&Attributes>) -> Attributes {
        let identity = self.identity(subnet, own);
        self.backend.attributes(self.network(), &self.underlay, &identity)
    }
}

fn leave_out(network: &mut NetworkConfig, family: Family) {
    match family {
        Family::V4 => network.v4 = None,
        Family::V6 => network.v6 = None,
    }
}

/// The addresses peers are told, in words.
pub(super) fn addresses(underlay: &Underlay) -> String {
    let all: Vec<String> = Family::BOTH
        .iter()
        .filter_map(|f| underlay.public(*f))
        .map(|ip| ip.to_string())
        .collect();
    all.join(", ")
}

/// The subnet this node had last: what the subnet file says, else what the state file says, else what half of it the subnet file
/// does say.
pub(super) fn previous_subnet(network: &NetworkConfig, file: &Previous, state: &State) -> Option<Subnet> {
    let v4 = file.subnet.filter(|_| network.v4.is_some());
    let v6 = file.subnet6.filter(|_| network.v6.is_some());
    let complete = v4.is_some() == network.v4.is_some() && v6.is_some() == network.v6.is_some();
    let from_file = if complete { Subnet::new(v4, v6) } else { None };
    from_file
        .or_else(|| Subnet::parse_key(state.lease.as_deref()?).ok())
        .or_else(|| Subnet::new(v4, v6))
}

/// What this host was before, as far as it bears on what is ours now.
#[derive(Debug, Clone)]
pub(super) struct Former {
    pub(super) links: Vec<LinkName>,
    pub(super) networks: Vec<IpNet>,
    pub(super) leases: BTreeMap<IpNet, Vec<IpAddr>>,
}

impl Former {
    /// Adds the present to the record; what the record has beyond it.
    pub(super) fn take(state: &mut State, ground: &Ground, previous: &Previous) -> Former {
        let links = ground.backend.links(ground.network());
        let networks: Vec<IpNet> = ground.network().networks().collect();
        let before = [
            previous.network.map(Into::into),
            previous.network6.map(Into::into),
        ];
        state.add_networks(networks.iter().copied().chain(before.into_iter().flatten()));
        state.add_links(links.iter().copied());
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
