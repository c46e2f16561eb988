//! Routes of others inside our Networks: named, and left as they are.
//!
//! What a predecessor left of nodes that are gone looks the same as what an admin put there on purpose, so nobody but the
//! admin can say which it is. Until then it draws traffic of pods to somewhere no lease knows of.

use ipnet::IpNet;

use crate::node::Node;
use crate::object::{Family, Object, Objects, Route};
use crate::ownership::{Owner, Ownership};

/// Whether an observed route lies inside this node's Networks, is not ours, and stands where no lease wants one.
///
/// Routes inside our own subnet are the business of whoever runs the pods here, and a route to a whole Network is one that
/// every lease's is more specific than.
pub fn is_foreign_inside(route: &Route, desired: &Objects, ownership: &Ownership, node: &Node) -> bool {
    !route.is_kernels()
        && is_between(&route.destination, node)
        && !desired.contains_key(&route.key())
        && ownership.owner(&Object::Route(*route)) != Owner::Ours
        && !ownership.was_leased(route)
}

/// Whether a prefix lies inside one of the Networks, is not all of it, and is not inside our own subnet.
fn is_between(destination: &IpNet, node: &Node) -> bool {
    let family = Family::of_net(*destination);
    let inside = node.network.space(family).is_some_and(|space| {
        space.network.contains(destination) && space.network.prefix_len() < destination.prefix_len()
    });
    let own = node
        .subnet
        .of(family)
        .is_some_and(|own| own.contains(destination));
    inside && !own
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NetworkConfig;
    use crate::lease::Subnet;
    use crate::node::{Identity, Provided, Underlay};
    use crate::object::{LinkName, ROUTE_PROTOCOL, ROUTE_PROTOCOL_BOOT};

    const KERNEL: u8 = 2;
    const STATIC: u8 = 4;

    fn net(net: &str) -> IpNet {
        net.parse().unwrap()
    }

    fn node() -> Node {
        let config =
            br#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan"}}"#;
        Node {
            network: NetworkConfig::parse(config).unwrap(),
            underlay: Underlay {
                link: LinkName::new("eth0").unwrap(),
                mtu: 1500,
                address4: None,
                address6: None,
                public4: None,
                public6: None,
                segments: Vec::new(),
            },
            subnet: Subnet::parse_key("10.244.1.0-24&fd00:244:0:1::-64").unwrap(),
            identity: Identity::default(),
            provided: Provided::default(),
        }
    }

    fn ownership() -> Ownership {
        Ownership {
            links: vec![LinkName::new("flannel.1").unwrap()],
            networks: vec![net("10.244.0.0/16"), net("fd00:244::/48")],
            former_leases: [(net("10.244.9.0/24"), vec!["192.0.2.9".parse().unwrap()])].into(),
        }
    }

    fn route(destination: &str, protocol: u8) -> Route {
        let gateway = if destination.contains(':') {
            "2001:db8::9"
        } else {
            "192.0.2.9"
        };
        Route {
            destination: net(destination),
            metric: 0,
            gateway: Some(gateway.parse().unwrap()),
            link: LinkName::new("eth0").unwrap(),
            onlink: false,
            protocol,
        }
    }

    fn is_named(route: &Route) -> bool {
        is_foreign_inside(route, &Objects::new(), &ownership(), &node())
    }

    #[test]
    fn route_when_of_others_inside_the_network_then_named() {
        for destination in [
            "10.244.7.0/24",
            "10.244.7.7/32",
            "10.244.0.0/17",
            "10.244.0.0/23",
            "fd00:244:0:7::/64",
        ] {
            assert!(is_named(&route(destination, STATIC)), "{destination}");
        }
        assert!(
            is_named(&route("10.244.7.0/24", ROUTE_PROTOCOL_BOOT)),
            "in nobody's record"
        );
    }

    #[test]
    fn route_when_not_between_the_network_and_our_subnet_then_not_named() {
        let elsewhere = [
            "172.30.0.0/24",
            "10.0.0.0/8",
            "0.0.0.0/0",
            "fd00:245::/64",
            "::/0",
        ];
        let whole = ["10.244.0.0/16", "fd00:244::/48"];
        let own = [
            "10.244.1.0/24",
            "10.244.1.128/25",
            "10.244.1.7/32",
            "fd00:244:0:1::/64",
            "fd00:244:0:1::7/128",
        ];
        for destination in elsewhere.iter().chain(&whole).chain(&own) {
            assert!(!is_named(&route(destination, STATIC)), "{destination}");
        }
    }

    #[test]
    fn route_when_the_kernels_or_ours_or_a_recorded_lease_then_not_named() {
        assert!(!is_named(&route("10.244.7.0/24", KERNEL)));
        assert!(!is_named(&route("10.244.7.0/24", ROUTE_PROTOCOL)));
        assert!(!is_named(&route("10.244.9.0/24", ROUTE_PROTOCOL_BOOT)));
    }

    #[test]
    fn route_when_it_stands_where_we_want_one_then_it_is_a_conflict_and_not_named_here() {
        let ours = route("10.244.7.0/24", ROUTE_PROTOCOL);
        let desired: Objects = [Object::Route(ours)].into();
        let named = |route: &Route| is_foreign_inside(route, &desired, &ownership(), &node());
        assert!(!named(&route("10.244.7.0/24", STATIC)));
        assert!(named(&route("10.244.8.0/24", STATIC)));
        let beside = Route {
            metric: 7,
            ..route("10.244.7.0/24", STATIC)
        };
        assert!(named(&beside), "another metric is another place");
    }
}
