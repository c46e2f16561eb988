//! host-gw: one route per peer, through the peer itself. Peers have to be neighbours on one segment.

use crate::config::{NetworkConfig, RawBackend};
use crate::node::{Node, Underlay};
use crate::object::{LinkName, Object, ROUTE_PROTOCOL, Route};
use crate::plan::{Backend, Peer, PeerPlan, PlanError};

/// `Backend.Type` and `BackendType`.
pub const TYPE: &str = "host-gw";
/// Its keys in `Backend`. `Name` and `MacPrefix` are for the Windows nodes of a cluster.
pub const KEYS: &[&str] = &["Type", "Name", "MacPrefix"];

struct HostGw;

/// There is nothing to configure.
pub fn parse(_: &RawBackend) -> Result<Box<dyn Backend>, PlanError> {
    Ok(Box::new(HostGw))
}

impl Backend for HostGw {
    fn name(&self) -> &'static str {
        TYPE
    }

    fn links(&self, _: &NetworkConfig) -> Vec<LinkName> {
        Vec::new()
    }

    fn mtu(&self, network: &NetworkConfig, underlay: &Underlay) -> Result<u32, PlanError> {
        for family in network.families() {
            let (address, public) = (underlay.address(family), underlay.public(family));
            let Some(address) = address else {
                return Err(PlanError::Underlay(format!(
                    "interface {} has no {family} address",
                    underlay.link
                )));
            };
            if public != Some(address) {
                let public = public.map_or_else(|| "none".to_owned(), |ip| ip.to_string());
                return Err(PlanError::Underlay(format!(
                    "host-gw: public address {public} is not interface {}'s own {address}; peers route to it directly, so it \
                     cannot be behind NAT",
                    underlay.link
                )));
            }
        }
        Ok(underlay.mtu)
    }

    fn plan_peer(&self, node: &Node, peer: &Peer<'_>, plan: &mut PeerPlan) {
        for half in peer.halves() {
            plan.objects.push(Object::Route(Route {
                destination: half.subnet,
                metric: half.family.default_metric(),
                gateway: Some(half.public),
                link: node.underlay.link,
                onlink: false,
                protocol: ROUTE_PROTOCOL,
            }));
        }
    }
}
