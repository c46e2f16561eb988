//! host-gw: one route per peer, through the peer itself. Peers have to be neighbours on one segment.

use crate::config::{NetworkConfig, RawBackend};
use crate::lease::{Attributes, Subnet};
use crate::node::{Identity, Node, Underlay};
use crate::object::{LinkName, Object, Objects, ROUTE_PROTOCOL, Route};
use crate::plan::{Backend, PeerHalf, PlanError};

/// `Backend.Type` and `BackendType`.
pub const TYPE: &str = "host-gw";

#[derive(Debug)]
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

    fn identity(&self, _: &NetworkConfig, _: &Subnet, _: &Objects, _: Option<&Attributes>) -> Identity {
        Identity::default()
    }

    fn attributes(&self, network: &NetworkConfig, underlay: &Underlay, _: &Identity) -> Attributes {
        Node::base_attributes(network, underlay, TYPE)
    }

    fn own_objects(&self, _: &Node) -> Vec<Object> {
        Vec::new()
    }

    fn peer_objects(&self, node: &Node, peer: &PeerHalf<'_>) -> Result<Vec<Object>, String> {
        Ok(vec![Object::Route(Route {
            destination: peer.subnet,
            metric: peer.family.default_metric(),
            gateway: Some(peer.public),
            link: node.underlay.link,
            onlink: false,
            protocol: ROUTE_PROTOCOL,
        })])
    }
}
