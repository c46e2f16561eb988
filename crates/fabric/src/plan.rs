//! From leases to desired kernel objects: one pure plan per backend.
//!
//! A backend is a file in `plan/` and a line in [`BACKENDS`]. It says what it puts on its own host and what one peer needs;
//! who calls it, when, and what happens to failures is the same for all of them.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;

use crate::config::{NetworkConfig, RawBackend};
use crate::go_json::{GoJsonError, shorten};
use crate::lease::{Attributes, Lease, Subnet};
use crate::node::{Identity, Node, Provided, Underlay};
use crate::object::{Family, Key, LinkName, Object, Objects};

/// A backend's reading of its part of the network config.
type Parse = fn(&RawBackend) -> Result<Box<dyn Backend>, PlanError>;

/// The table: the file of each backend, which holds its `TYPE`, its `parse`, and the `KEYS` of its part of the config.
macro_rules! backends {
    ($($module:ident,)*) => {
        $(
            #[doc = concat!("`", stringify!($module), "`.")]
            pub mod $module;
        )*

        /// Every backend there is, by `Backend.Type`, with the keys it knows.
        const BACKENDS: &[(&str, Parse, &[&str])] = &[$(($module::TYPE, $module::parse, $module::KEYS),)*];
    };
}

backends! {
    vxlan,
    host_gw,
    alloc,
    ipip,
}

/// Types that the reference has or had; those that this build has not are refused by name rather than as unknown.
const OF_THE_REFERENCE: &[&str] = &[
    "vxlan",
    "host-gw",
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
    #[error("network config: Backend.Type is {0:?}: expected one of {known}", known = built())]
    UnknownType(String),
    /// A backend of the reference that is not there yet.
    #[error("network config: Backend.Type {0:?} is not built into this flannel yet; built are {known}", known = built())]
    NotBuilt(String),
    /// The config has no `Backend`, and the one that stands for that is not there.
    #[error(
        "network config: Backend is not set, which means {0:?}, and that is not built into this flannel yet: expected \
         \"Backend\":{{\"Type\":...}} with one of {known}",
        known = built()
    )]
    LeftOut(String),
    /// A key of the backend's config is wrong.
    #[error("network config: Backend.{key} is {value}: expected {expected}")]
    Config {
        /// The key.
        key: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        expected: String,
    },
    /// The backend's JSON does not decode.
    #[error("network config: {0}")]
    Json(#[from] GoJsonError),
    /// The backend carries one family, and the config has others, or not that one.
    #[error(
        "network config: Backend.Type {backend:?} carries {carried} only: expected EnableIPv4 {v4} and EnableIPv6 {v6}, or a \
         backend that carries both",
        v4 = *carried == Family::V4, v6 = *carried == Family::V6
    )]
    Family {
        /// The backend.
        backend: &'static str,
        /// The family it carries.
        carried: Family,
    },
    /// The underlay cannot carry it.
    #[error("{0}")]
    Underlay(String),
}

/// The types of all backends, for people.
pub fn built() -> String {
    BACKENDS
        .iter()
        .map(|(name, ..)| *name)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Whether there is a backend of this type.
pub fn is_built(kind: &str) -> bool {
    BACKENDS.iter().any(|(name, ..)| *name == kind)
}

/// The keys that the backend of this type knows in its part of the config, if there is one.
pub fn keys(kind: &str) -> Option<&'static [&'static str]> {
    BACKENDS
        .iter()
        .find(|(name, ..)| *name == kind)
        .map(|(.., keys)| *keys)
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
    /// Another lease, older in the registry, has addresses of a half.
    #[error("subnet {half} overlaps the older lease {holder}")]
    Overlap {
        /// Which half.
        half: IpNet,
        /// The lease that has them.
        holder: Subnet,
    },
    /// Another lease, older in the registry, wants the same object.
    #[error("{key} belongs to the older lease {holder}")]
    Contested {
        /// The object.
        key: Key,
        /// The lease that has it.
        holder: Subnet,
    },
    /// This node itself wants the same object.
    #[error("{0} is this node's own")]
    Own(Key),
}

/// What a peer needs here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerPlan {
    /// Objects, of every family that can be served.
    pub objects: Vec<Object>,
    /// Families that cannot, and why.
    pub problems: Vec<Problem>,
}

impl PeerPlan {
    /// Adds what `plan` puts down for one family. Where it gives a reason instead, that family gets no object and a problem, and
    /// the other one is left alone.
    pub fn serve(&mut self, family: Family, plan: impl FnOnce(&mut Vec<Object>) -> Result<(), String>) {
        let before = self.objects.len();
        if let Err(reason) = plan(&mut self.objects) {
            self.objects.truncate(before);
            self.refuse(family, reason);
        }
    }

    /// Notes why a family of the peer is not served.
    pub fn refuse(&mut self, family: Family, reason: String) {
        self.problems.push(Problem::half(family, reason));
    }
}

impl Problem {
    fn half(family: Family, reason: String) -> Problem {
        Problem::Half {
            family: family.to_string(),
            reason,
        }
    }
}

/// Something that a backend cannot plan without and only the daemon can find out; it goes into [`Node::provided`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Which peers the kernel reaches without a gateway: [`Provided::direct`].
    DirectRoutes,
}

/// How leases become kernel objects. Implementations are pure.
///
/// What a backend reads from the config may hold keys, so it has no text form: [`fmt::Debug`] shows its name.
pub trait Backend: Send + Sync {
    /// `Backend.Type` in the network config: what the backend is called.
    fn name(&self) -> &'static str;

    /// `BackendType` in leases. COMPAT: some backends of the reference write none.
    fn wire_type(&self) -> &'static str {
        self.name()
    }

    /// Whether a lease of this `BackendType` is one for [`Backend::plan_peer`]; if not, its peer is named as another backend's.
    ///
    /// A backend that can reach peers of another type in another way says so here, and tells them by [`Peer::wire_type`].
    fn serves(&self, wire_type: &str) -> bool {
        wire_type == self.wire_type()
    }

    /// What has to be known before anything can be planned.
    fn needs(&self) -> &[Need] {
        &[]
    }

    /// Devices it makes on this host, for the families in use.
    fn links(&self, network: &NetworkConfig) -> Vec<LinkName>;

    /// Refuses a config whose families it does not carry, or that no host can be given.
    ///
    /// # Errors
    /// See [`PlanError`].
    fn check(&self, _network: &NetworkConfig) -> Result<(), PlanError> {
        Ok(())
    }

    /// What in its part of the config has no effect on this underlay, one sentence each.
    fn without_effect(&self, _underlay: &Underlay) -> Vec<String> {
        Vec::new()
    }

    /// `FLANNEL_MTU`, bytes: what pods may send. Also the place where an unusable underlay is refused, after [`Backend::check`].
    fn mtu(&self, network: &NetworkConfig, underlay: &Underlay) -> Result<u32, PlanError>;

    /// What peers will know this node by: kept from the device, else from the own lease, else derived or made from what was
    /// provided.
    fn identity(
        &self,
        _network: &NetworkConfig,
        _subnet: &Subnet,
        _observed: &Objects,
        _own: Option<&Attributes>,
        _provided: &Provided,
    ) -> Identity {
        Identity::default()
    }

    /// The lease's value.
    fn attributes(&self, network: &NetworkConfig, underlay: &Underlay, _identity: &Identity) -> Attributes {
        Node::base_attributes(network, underlay, self.wire_type())
    }

    /// Objects that are there whoever the peers are.
    fn own_objects(&self, _node: &Node) -> Vec<Object> {
        Vec::new()
    }

    /// What a peer needs here, both its families at once; a family that cannot be served is [refused](PeerPlan::refuse) alone.
    fn plan_peer(&self, node: &Node, peer: &Peer<'_>, plan: &mut PeerPlan);
}

impl fmt::Debug for dyn Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backend {}", self.name())
    }
}

/// A peer's lease: those of its families that this node runs too and that passed the checks every backend relies on.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// `BackendType`, which [`Backend::serves`] said yes to.
    pub wire_type: &'a str,
    /// The IPv4 half.
    pub v4: Option<PeerHalf<'a>>,
    /// The IPv6 half.
    pub v6: Option<PeerHalf<'a>>,
}

impl<'a> Peer<'a> {
    /// The halves that are there, IPv4 first.
    pub fn halves(&self) -> impl Iterator<Item = PeerHalf<'a>> + use<'a> {
        [self.v4, self.v6].into_iter().flatten()
    }
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
    match BACKENDS.iter().find(|(name, ..)| *name == raw.kind) {
        Some((_, parse, _)) => parse(raw),
        None if raw.is_left_out() => Err(PlanError::LeftOut(raw.kind.clone())),
        None if OF_THE_REFERENCE.contains(&raw.kind.as_str()) => Err(PlanError::NotBuilt(shorten(&raw.kind))),
        None => Err(PlanError::UnknownType(shorten(&raw.kind))),
    }
}

/// What no host and no waiting can make of a network config: its backend does not exist, cannot read its part, or cannot carry it.
///
/// # Errors
/// See [`PlanError`].
pub fn check(network: &NetworkConfig) -> Result<(), PlanError> {
    backend(&network.backend)?.check(network)
}

/// For backends that carry one family: refuses a config that has another. Half a network that leads nowhere is worse than none.
pub fn carries_only(
    carried: Family,
    backend: &'static str,
    network: &NetworkConfig,
) -> Result<(), PlanError> {
    if network.families().eq([carried]) {
        Ok(())
    } else {
        Err(PlanError::Family { backend, carried })
    }
}

/// What one peer needs on this node, if it is the only one. A family that cannot be served is a problem and leaves the other
/// one alone.
pub fn plan_peer(backend: &dyn Backend, node: &Node, lease: &Lease) -> PeerPlan {
    plan_peer_among(backend, node, lease, |_| None)
}

/// What one peer needs on this node, where an older lease may have the addresses of a half: `holder` says which.
pub fn plan_peer_among(
    backend: &dyn Backend,
    node: &Node,
    lease: &Lease,
    holder: impl Fn(IpNet) -> Option<Subnet>,
) -> PeerPlan {
    let mut plan = PeerPlan::default();
    let wire_type = &*lease.attributes.backend_type;
    if !backend.serves(wire_type) {
        plan.problems.push(Problem::OtherBackend {
            found: shorten(wire_type),
            ours: backend.name(),
        });
        return plan;
    }
    let mut half = |family: Family| {
        let subnet = lease.subnet.of(family)?;
        let found = check_place(node, subnet)
            .transpose()?
            .and_then(|()| match holder(subnet) {
                Some(holder) => Err(Problem::Overlap { half: subnet, holder }),
                None => check_half(node, lease, family, subnet),
            });
        found.map_err(|problem| plan.problems.push(problem)).ok()
    };
    let peer = Peer {
        wire_type,
        v4: half(Family::V4),
        v6: half(Family::V6),
    };
    backend.plan_peer(node, &peer, &mut plan);
    plan
}

/// Whether a peer can have a half here: `None` where this node does not run its family.
///
/// The effective families are those of this node *and* of the peer; a half that we do not run is no problem.
pub(crate) fn check_place(node: &Node, subnet: IpNet) -> Result<Option<()>, Problem> {
    let family = Family::of_net(subnet);
    let (Some(space), Some(own)) = (node.network.space(family), node.subnet.of(family)) else {
        return Ok(None);
    };
    let network = space.network;
    let reason = if !network.contains(&subnet) || subnet.prefix_len() == network.prefix_len() {
        format!("subnet {subnet} is not inside Network {network}")
    } else if own.contains(&subnet) || subnet.contains(&own) {
        // A route for a part of our own subnet would take our pods' traffic away from their bridge.
        format!("subnet {subnet} overlaps our own {own}")
    } else {
        return Ok(Some(()));
    };
    Err(Problem::half(family, reason))
}

fn check_half<'a>(
    node: &Node,
    lease: &'a Lease,
    family: Family,
    subnet: IpNet,
) -> Result<PeerHalf<'a>, Problem> {
    let field = public_ip_field(family);
    let public = lease
        .attributes
        .public_ip_of(family)
        .filter(|ip| !ip.is_unspecified())
        .ok_or_else(|| Problem::half(family, format!("lease has no {field}")))?;
    if let Some(what) = why_no_host(node, subnet, public) {
        return Err(Problem::half(family, format!("{field} {public} {what}")));
    }
    Ok(PeerHalf {
        family,
        subnet,
        public,
        data: lease.attributes.data_of(family),
    })
}

/// Why no other host can be reached at an address, if that is so.
///
/// COMPAT: link-local addresses are hosts': Go flannel publishes one where an interface has no other.
fn why_no_host(node: &Node, subnet: IpNet, public: IpAddr) -> Option<String> {
    let family = Family::of(public);
    if Some(public) == node.underlay.public(family) || Some(public) == node.underlay.address(family) {
        return Some("is our own".to_owned());
    }
    let is_special = match public {
        // 0/8 is "this network" (RFC 791), 240/4 reserved (RFC 1112) but for the broadcast address.
        IpAddr::V4(ip) => {
            ip.octets()[0] == 0 || ip.octets()[0] >= 240 || ip.is_loopback() || ip.is_multicast()
        }
        // What is left of IPv4 in IPv6: ::/96 and ::ffff:0:0/96 (RFC 4291) are no addresses on any wire.
        IpAddr::V6(ip) => {
            let embeds_v4 = ip.segments()[..5] == [0; 5] && [0, 0xffff].contains(&ip.segments()[5]);
            embeds_v4 || ip.is_loopback() || ip.is_multicast()
        }
    };
    if is_special {
        return Some("is not a host's address".to_owned());
    }
    if let Some(segment) = node
        .underlay
        .segments
        .iter()
        .find(|segment| segment.prefix_len() < 31 && IpAddr::V4(segment.broadcast()) == public)
    {
        return Some(format!(
            "is not a host's address but the broadcast address of {segment}"
        ));
    }
    // Packets to it would go into the tunnel that they come out of.
    let pods = [Some(subnet), node.subnet.of(family)].into_iter().flatten();
    if let Some(pods) = pods.into_iter().find(|pods| pods.contains(&public)) {
        return Some(format!("is not a host's address but one of the pods of {pods}"));
    }
    // A Network that covers the hosts is bad enough, but with it they are where they are.
    let network = node.network.space(family)?.network;
    let is_among_hosts = node
        .underlay
        .address(family)
        .is_some_and(|own| network.contains(&own))
        || node
            .underlay
            .segments
            .iter()
            .any(|segment| IpNet::V4(*segment).contains(&public));
    let inside = network.contains(&public) && !is_among_hosts;
    inside.then(|| format!("is not a host's address but one inside Network {network}"))
}

fn public_ip_field(family: Family) -> &'static str {
    match family {
        Family::V4 => "PublicIP",
        Family::V6 => "PublicIPv6",
    }
}

#[cfg(test)]
pub(crate) mod tests;
