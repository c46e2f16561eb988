//! From leases to desired kernel objects: one pure plan per backend.
//!
//! A backend is a file in `plan/` and a line in [`BACKENDS`]. It says what it puts on its own host and what one peer needs;
//! who calls it, when, and what happens to failures is the same for all of them.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;

use crate::config::{NetworkConfig, RawBackend};
use crate::lease::{Attributes, Lease, Subnet};
use crate::node::{Identity, Node, Underlay};
use crate::object::{Family, LinkName, Object, Objects};

pub mod host_gw;
pub mod vxlan;

/// A backend's reading of its part of the network config.
type Parse = fn(&RawBackend) -> Result<Box<dyn Backend>, PlanError>;

/// Every backend there is, by `Backend.Type`.
pub const BACKENDS: &[(&str, Parse)] = &[(vxlan::TYPE, vxlan::parse), (host_gw::TYPE, host_gw::parse)];

/// Types that flannel knows and this build does not; refused by name rather than as unknown.
const NOT_BUILT: &[&str] = &[
    "udp",
    "wireguard",
    "ipip",
    "ipsec",
    "alloc",
    "extension",
    "tencent-vpc",
    "aws-vpc",
    "gce",
    "ali-vpc",
];

/// Why no plan can be made for this host. Nothing but a change of config, flags or underlay helps.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlanError {
    /// No such backend.
    #[error("network config: Backend.Type is {0:?}; expected one of {known}", known = known_types())]
    UnknownType(String),
    /// A backend of the reference that is not there yet.
    #[error("network config: Backend.Type {0:?} is not built into this flannel yet; built are {known}", known = known_types())]
    NotBuilt(String),
    /// A key of the backend's config is wrong.
    #[error("network config: Backend.{key} is {value}; expected {expected}")]
    Config {
        /// The key.
        key: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        expected: String,
    },
    /// The backend's JSON does not decode.
    #[error("network config: Backend: {0}")]
    Json(String),
    /// The underlay cannot carry it.
    #[error("{0}")]
    Underlay(String),
}

fn known_types() -> String {
    BACKENDS
        .iter()
        .map(|(name, _)| *name)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Why a peer (or one family of it) gets no objects. Reported per peer; all others go on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum Problem {
    /// Another backend's lease.
    #[error("lease is of backend type {found:?}, ours is {ours:?}")]
    OtherBackend {
        /// Its type.
        found: String,
        /// Ours.
        ours: &'static str,
    },
    /// A half of the lease cannot be used.
    #[error("{family}: {reason}")]
    Half {
        /// Which half.
        family: String,
        /// Why.
        reason: String,
    },
    /// Another lease, older in the registry, wants the same object.
    #[error("{key} belongs to the older lease {holder}")]
    Contested {
        /// The object.
        key: String,
        /// The lease that has it.
        holder: String,
    },
}

/// What a peer needs here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerPlan {
    /// Objects, of every family that can be served.
    pub objects: Vec<Object>,
    /// Families that cannot, and why.
    pub problems: Vec<Problem>,
}

/// How leases become kernel objects. Implementations are pure.
pub trait Backend: fmt::Debug + Send + Sync {
    /// `BackendType` in leases.
    fn name(&self) -> &'static str;

    /// Devices it makes on this host, for the families in use.
    fn links(&self, network: &NetworkConfig) -> Vec<LinkName>;

    /// `FLANNEL_MTU`, bytes: what pods may send. Also the place where an unusable underlay is refused.
    fn mtu(&self, network: &NetworkConfig, underlay: &Underlay) -> Result<u32, PlanError>;

    /// What peers will know this node by: kept from the device, else from the own lease, else derived.
    fn identity(
        &self,
        network: &NetworkConfig,
        subnet: &Subnet,
        observed: &Objects,
        own: Option<&Attributes>,
    ) -> Identity;

    /// The lease's value.
    fn attributes(&self, network: &NetworkConfig, underlay: &Underlay, identity: &Identity) -> Attributes;

    /// Objects that are there whoever the peers are.
    fn own_objects(&self, node: &Node) -> Vec<Object>;

    /// Whether plans depend on [`Node::direct`].
    fn wants_direct(&self) -> bool {
        false
    }

    /// Objects for one family of one peer.
    fn peer_objects(&self, node: &Node, peer: &PeerHalf<'_>) -> Result<Vec<Object>, String>;
}

/// One family of a peer's lease, checked for what every backend relies on.
#[derive(Debug, Clone, Copy)]
pub struct PeerHalf<'a> {
    /// The family.
    pub family: Family,
    /// The peer's pod subnet.
    pub subnet: IpNet,
    /// Its advertised address.
    pub public: IpAddr,
    /// Backend data, if any.
    pub data: Option<&'a str>,
}

/// Chooses the backend that a network config names.
pub fn backend(raw: &RawBackend) -> Result<Box<dyn Backend>, PlanError> {
    match BACKENDS.iter().find(|(name, _)| *name == raw.kind) {
        Some((_, parse)) => parse(raw),
        None if NOT_BUILT.contains(&raw.kind.as_str()) => Err(PlanError::NotBuilt(raw.kind.clone())),
        None => Err(PlanError::UnknownType(raw.kind.clone())),
    }
}

/// What one peer needs on this node. A family that cannot be served is a problem and leaves the other one alone.
pub fn plan_peer(backend: &dyn Backend, node: &Node, lease: &Lease) -> PeerPlan {
    let mut out = PeerPlan::default();
    if &*lease.attributes.backend_type != backend.name() {
        out.problems.push(Problem::OtherBackend {
            found: lease.attributes.backend_type.to_string(),
            ours: backend.name(),
        });
        return out;
    }
    for family in Family::BOTH {
        // The effective families are those of this node *and* of the peer; a half that we do not run is no problem.
        let (Some(space), Some(own), Some(subnet)) = (
            node.network.space(family),
            node.subnet.of(family),
            lease.subnet.of(family),
        ) else {
            continue;
        };
        let objects = check_half(node, lease, family, &space.network, &own, subnet)
            .and_then(|half| backend.peer_objects(node, &half));
        match objects {
            Ok(mut objects) => out.objects.append(&mut objects),
            Err(reason) => out.problems.push(Problem::Half {
                family: family.to_string(),
                reason,
            }),
        }
    }
    out
}

fn check_half<'a>(
    node: &Node,
    lease: &'a Lease,
    family: Family,
    network: &IpNet,
    own: &IpNet,
    subnet: IpNet,
) -> Result<PeerHalf<'a>, String> {
    if !network.contains(&subnet) || subnet.prefix_len() == network.prefix_len() {
        return Err(format!("subnet {subnet} is not inside Network {network}"));
    }
    // A route for a part of our own subnet would take our pods' traffic away from their bridge.
    if own.contains(&subnet) || subnet.contains(own) {
        return Err(format!("subnet {subnet} overlaps our own {own}"));
    }
    let public = lease
        .attributes
        .public_ip_of(family)
        .filter(|ip| !ip.is_unspecified())
        .ok_or_else(|| format!("lease has no {}", public_ip_field(family)))?;
    if public.is_multicast() || public.is_loopback() {
        return Err(format!(
            "{} {public} is not a host's address",
            public_ip_field(family)
        ));
    }
    if Some(public) == node.underlay.public(family) || Some(public) == node.underlay.address(family) {
        return Err(format!("{} {public} is our own", public_ip_field(family)));
    }
    Ok(PeerHalf {
        family,
        subnet,
        public,
        data: lease.attributes.data_of(family),
    })
}

fn public_ip_field(family: Family) -> &'static str {
    match family {
        Family::V4 => "PublicIP",
        Family::V6 => "PublicIPv6",
    }
}

#[cfg(test)]
pub(crate) mod tests;
