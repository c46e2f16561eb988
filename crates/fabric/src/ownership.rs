//! What we may touch: the one answer to "is this kernel object ours?".
//!
//! Everything the diff removes or overwrites passes through here; what is not ours is reported and left alone.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::object::{LinkKind, LinkName, Object, ROUTE_PROTOCOL, ROUTE_PROTOCOL_BOOT, Route};

/// Whose an observed object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Made by us, or by an earlier run of us.
    Ours,
    /// Made by Go flannel, and known to be: it may be taken over, and removed where the record of former leases names it.
    Predecessor,
    /// Anybody else's.
    Foreign,
}

/// The bounds of what one daemon owns on its host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ownership {
    /// Devices the current plan makes, and those that the state file says we made under an earlier config.
    pub links: Vec<LinkName>,
    /// Our Networks and those recorded as former ones.
    pub networks: Vec<IpNet>,
    /// Destination and next hop of leases we once saw, from the state file: what allows to remove a predecessor's route.
    pub former_leases: BTreeMap<IpNet, Vec<IpAddr>>,
}

impl Ownership {
    /// Whether the prefix lies inside one of our Networks.
    pub fn covers(&self, prefix: &IpNet) -> bool {
        self.networks.iter().any(|network| network.contains(prefix))
    }

    /// Whose an observed object is.
    pub fn owner(&self, object: &Object) -> Owner {
        match object {
            Object::Link(link) if self.links.contains(&link.name) => match link.kind {
                LinkKind::Vxlan(_) => Owner::Ours,
                LinkKind::Other(_) => Owner::Foreign,
            },
            // Host addresses inside our Network are what flannel puts on its devices; an admin's own address on one of
            // them is another prefix or another network.
            Object::Address(a) if self.links.contains(&a.link) => {
                if a.address.prefix_len() == a.address.max_prefix_len() && self.covers(&a.address) {
                    Owner::Ours
                } else {
                    Owner::Foreign
                }
            }
            Object::Neighbour(n) if self.links.contains(&n.link) => Owner::Ours,
            Object::Forwarding(f) if self.links.contains(&f.link) => Owner::Ours,
            Object::Route(route) if self.covers(&route.destination) => self.route_owner(route),
            _ => Owner::Foreign,
        }
    }

    fn route_owner(&self, route: &Route) -> Owner {
        match route.protocol {
            ROUTE_PROTOCOL => Owner::Ours,
            ROUTE_PROTOCOL_BOOT if route.gateway.is_some() => Owner::Predecessor,
            _ => Owner::Foreign,
        }
    }

    /// Whether a predecessor's route is one that a lease we once saw had asked for, so that removing it is ours to do.
    pub fn was_leased(&self, route: &Route) -> bool {
        let Some(gateway) = route.gateway else {
            return false;
        };
        self.former_leases
            .get(&route.destination)
            .is_some_and(|gateways| gateways.contains(&gateway))
    }
}
