//! What we may touch: the one answer to "is this kernel object ours?".
//!
//! Everything the diff removes or overwrites passes through here; what is not ours is reported and left alone.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::object::{LinkName, Object, Route};

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
            Object::Link(link) if self.links.contains(&link.name) && link.is_flannels() => Owner::Ours,
            // Host addresses inside our Network are what flannel puts on its devices; an admin's own address on one of
            // them is another prefix or another network.
            Object::Address(a) if self.links.contains(&a.link) && a.is_host() && self.covers(&a.address) => {
                Owner::Ours
            }
            Object::Neighbour(n) if self.links.contains(&n.link) => Owner::Ours,
            Object::Forwarding(f) if self.links.contains(&f.link) => Owner::Ours,
            Object::Route(route) if self.covers(&route.destination) && route.is_marked() => Owner::Ours,
            Object::Route(route) if self.covers(&route.destination) && route.is_predecessors() => {
                Owner::Predecessor
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::{LinkKind, Vxlan};
    use crate::object::{Address, Forwarding, Link, Mac, Neighbour, ROUTE_PROTOCOL, ROUTE_PROTOCOL_BOOT};

    const STATIC: u8 = 4;
    const MAC: Mac = Mac([0x0a, 0, 0, 0, 0, 1]);

    /// Of a daemon that has made `flannel.1` and `flannel-v6.1`.
    fn ours() -> Ownership {
        Ownership {
            links: vec![name("flannel.1"), name("flannel-v6.1")],
            networks: vec![net("10.244.0.0/16"), net("fd00:244::/48")],
            former_leases: [(
                net("10.244.9.0/24"),
                vec![ip("10.244.9.0").unwrap(), ip("192.0.2.9").unwrap()],
            )]
            .into(),
        }
    }

    fn name(name: &str) -> LinkName {
        LinkName::new(name).unwrap()
    }

    fn net(net: &str) -> IpNet {
        net.parse().unwrap()
    }

    fn ip(ip: &str) -> Option<IpAddr> {
        Some(ip.parse().unwrap())
    }

    fn device(link: &str, kind: LinkKind) -> Object {
        Object::Link(Box::new(Link {
            name: name(link),
            kind,
            mac: Some(MAC),
            mtu: 1450,
            up: true,
        }))
    }

    fn vxlan() -> LinkKind {
        LinkKind::from(Vxlan {
            vni: 1,
            port: Some(8472),
            local: "192.0.2.1".parse().unwrap(),
            lower: name("eth0"),
            learning: false,
            gbp: false,
        })
    }

    fn address(link: &str, address: &str) -> Object {
        Object::Address(Address {
            link: name(link),
            address: net(address),
        })
    }

    fn neighbour(link: &str) -> Object {
        Object::Neighbour(Neighbour {
            link: name(link),
            address: "10.244.5.0".parse().unwrap(),
            mac: MAC,
        })
    }

    fn forwarding(link: &str) -> Object {
        Object::Forwarding(Forwarding {
            link: name(link),
            mac: MAC,
            remote: "192.0.2.5".parse().unwrap(),
        })
    }

    fn route(destination: &str, gateway: Option<&str>, link: &str, protocol: u8) -> Route {
        Route {
            destination: net(destination),
            metric: 0,
            gateway: gateway.and_then(ip),
            link: name(link),
            onlink: false,
            protocol,
        }
    }

    #[test]
    fn owner_when_of_our_making_then_ours() {
        let all = [
            device("flannel.1", vxlan()),
            device("flannel-v6.1", vxlan()),
            address("flannel.1", "10.244.1.0/32"),
            address("flannel-v6.1", "fd00:244:0:1::/128"),
            neighbour("flannel.1"),
            neighbour("flannel-v6.1"),
            forwarding("flannel.1"),
            forwarding("flannel-v6.1"),
            Object::Route(route(
                "10.244.5.0/24",
                Some("10.244.5.0"),
                "flannel.1",
                ROUTE_PROTOCOL,
            )),
            Object::Route(route(
                "fd00:244:0:5::/64",
                Some("fd00:244:0:5::"),
                "flannel-v6.1",
                ROUTE_PROTOCOL,
            )),
            // Wherever it leads: the mark and the place make it ours.
            Object::Route(route("10.244.5.0/24", Some("192.0.2.5"), "eth0", ROUTE_PROTOCOL)),
            Object::Route(route("10.244.5.0/24", None, "lo", ROUTE_PROTOCOL)),
        ];
        for object in all {
            assert_eq!(ours().owner(&object), Owner::Ours, "{object}");
        }
    }

    /// Each looks like one of ours but for one thing.
    #[test]
    fn owner_when_of_anybody_elses_making_then_foreign() {
        let all = [
            device("flannel.9", vxlan()),
            device("flannel.1", LinkKind::Other("bridge".into())),
            device("flannel.1", LinkKind::Other("".into())),
            address("eth0", "10.244.1.0/32"),
            address("flannel.9", "10.244.1.0/32"),
            address("flannel.1", "10.244.1.1/24"),
            address("flannel-v6.1", "fd00:244:0:1::/64"),
            address("flannel.1", "172.30.0.1/32"),
            neighbour("eth0"),
            neighbour("flannel.9"),
            forwarding("eth0"),
            forwarding("flannel.9"),
            Object::Route(route(
                "172.30.5.0/24",
                Some("10.244.5.0"),
                "flannel.1",
                ROUTE_PROTOCOL,
            )),
            Object::Route(route(
                "10.0.0.0/8",
                Some("10.244.5.0"),
                "flannel.1",
                ROUTE_PROTOCOL,
            )),
            Object::Route(route(
                "fd00::/16",
                Some("fd00:244:0:5::"),
                "flannel-v6.1",
                ROUTE_PROTOCOL,
            )),
            Object::Route(route("10.244.5.0/24", Some("10.244.5.0"), "flannel.1", STATIC)),
            Object::Route(route(
                "172.30.5.0/24",
                Some("10.244.5.0"),
                "flannel.1",
                ROUTE_PROTOCOL_BOOT,
            )),
            Object::Route(route("10.244.5.0/24", None, "flannel.1", ROUTE_PROTOCOL_BOOT)),
        ];
        for object in all {
            assert_eq!(ours().owner(&object), Owner::Foreign, "{object}");
        }
    }

    #[test]
    fn owner_when_a_route_is_as_go_flannel_makes_them_then_the_predecessors() {
        for route in [
            route(
                "10.244.5.0/24",
                Some("10.244.5.0"),
                "flannel.1",
                ROUTE_PROTOCOL_BOOT,
            ),
            route("10.244.5.0/24", Some("192.0.2.5"), "eth0", ROUTE_PROTOCOL_BOOT),
        ] {
            assert_eq!(ours().owner(&Object::Route(route)), Owner::Predecessor, "{route}");
        }
    }

    #[test]
    fn owner_when_nothing_is_ours_then_all_is_foreign() {
        let nobody = Ownership::default();
        for object in [
            device("flannel.1", vxlan()),
            address("flannel.1", "10.244.1.0/32"),
            neighbour("flannel.1"),
            forwarding("flannel.1"),
            Object::Route(route(
                "10.244.5.0/24",
                Some("10.244.5.0"),
                "flannel.1",
                ROUTE_PROTOCOL,
            )),
        ] {
            assert_eq!(nobody.owner(&object), Owner::Foreign, "{object}");
        }
    }

    #[test]
    fn covers_when_a_prefix_is_all_of_a_network_or_inside_then_and_only_then() {
        for inside in [
            "10.244.0.0/16",
            "10.244.255.0/24",
            "10.244.7.7/32",
            "fd00:244::/48",
            "fd00:244:0:1::/64",
        ] {
            assert!(ours().covers(&net(inside)), "{inside}");
        }
        for outside in [
            "10.245.0.0/16",
            "10.244.0.0/15",
            "0.0.0.0/0",
            "10.243.255.0/24",
            "fd00:245::/48",
            "::/0",
        ] {
            assert!(!ours().covers(&net(outside)), "{outside}");
        }
        assert!(!Ownership::default().covers(&net("10.244.0.0/16")));
    }

    #[test]
    fn was_leased_when_destination_and_next_hop_are_in_the_record_then_and_only_then() {
        let recorded = |destination, gateway| {
            ours().was_leased(&route(destination, gateway, "flannel.1", ROUTE_PROTOCOL_BOOT))
        };
        assert!(recorded("10.244.9.0/24", Some("10.244.9.0")));
        assert!(recorded("10.244.9.0/24", Some("192.0.2.9")));
        assert!(!recorded("10.244.9.0/24", Some("192.0.2.10")));
        assert!(!recorded("10.244.9.0/24", None));
        assert!(!recorded("10.244.8.0/24", Some("10.244.9.0")));
        assert!(!recorded("10.244.9.0/25", Some("10.244.9.0")));
    }
}
