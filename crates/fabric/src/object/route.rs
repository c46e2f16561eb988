//! Routes of the main table.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Key, LinkName};

/// Route protocol that marks a route or nexthop object as ours (`rtm_protocol`, `nh_protocol`).
pub const ROUTE_PROTOCOL: u8 = 241;
/// Route protocol of routes made by Go flannel and by `ip route add` without `proto` (`RTPROT_BOOT`).
pub const ROUTE_PROTOCOL_BOOT: u8 = 3;
/// `RTPROT_KERNEL` (`linux/rtnetlink.h`): the way to an interface's own prefix, such as the pods' bridge.
const ROUTE_PROTOCOL_KERNEL: u8 = 2;
/// Metric the kernel gives an IPv6 route that names none (`IP6_RT_PRIO_USER`); part of its identity.
pub const IPV6_DEFAULT_METRIC: u32 = 1024;

/// The loopback link: where routes lead that lead nowhere.
const LOOPBACK: &str = "lo";

/// A route of the main table: unicast, or `unreachable`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Destination prefix, host bits clear.
    pub destination: IpNet,
    /// Priority; IPv6 routes without one have 1024.
    pub metric: u32,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Outgoing link.
    pub link: LinkName,
    /// The gateway is taken to be on the link without a route that says so (`RTNH_F_ONLINK`).
    pub onlink: bool,
    /// `rtm_protocol`; [`ROUTE_PROTOCOL`] on what we want.
    pub protocol: u8,
}

impl Route {
    /// Identity of the object.
    pub fn key(&self) -> Key {
        Key::Route(self.destination, self.metric)
    }

    /// The same destination, refused to senders (`RTN_UNREACHABLE`): what stands in the place of a route through a tunnel that
    /// cannot be had. Without it packets would follow the default route and leave the host in the clear.
    ///
    /// It is written as a route to the loopback link without a gateway, and that is how the kernel shows it for IPv6.
    #[must_use]
    pub fn unreachable(&self) -> Route {
        Route {
            gateway: None,
            link: LinkName::new(LOOPBACK).unwrap_or(LinkName::NONE),
            onlink: false,
            ..*self
        }
    }

    /// Whether it refuses what is sent to it.
    pub fn is_unreachable(&self) -> bool {
        self.gateway.is_none() && !self.onlink && self.link.as_str() == LOOPBACK
    }

    /// Whether it carries our mark.
    pub fn is_marked(&self) -> bool {
        self.protocol == ROUTE_PROTOCOL
    }

    /// Whether it is of the form of those that Go flannel makes.
    pub fn is_predecessors(&self) -> bool {
        self.protocol == ROUTE_PROTOCOL_BOOT && self.gateway.is_some()
    }

    /// Whether the kernel made it, along with an address.
    pub fn is_kernels(&self) -> bool {
        self.protocol == ROUTE_PROTOCOL_KERNEL
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_unreachable() {
            return write!(f, "unreachable {}", self.destination);
        }
        write!(f, "route {}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        write!(f, " dev {}", self.link)?;
        f.write_str(if self.onlink { " onlink" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route() -> Route {
        Route {
            destination: "10.244.2.0/24".parse().unwrap(),
            metric: 7,
            gateway: Some("10.244.2.0".parse().unwrap()),
            link: LinkName::new("flannel.1").unwrap(),
            onlink: true,
            protocol: ROUTE_PROTOCOL,
        }
    }

    #[test]
    fn route_when_it_leads_to_loopback_and_nowhere_else_then_it_refuses() {
        let refused = route().unreachable();
        assert!(refused.is_unreachable() && !route().is_unreachable());
        assert_eq!((refused.key(), refused.protocol), (route().key(), ROUTE_PROTOCOL));
        assert_eq!(refused.to_string(), "unreachable 10.244.2.0/24");
        let others = [
            Route {
                gateway: route().gateway,
                ..refused
            },
            Route {
                onlink: true,
                ..refused
            },
            Route {
                link: route().link,
                ..refused
            },
        ];
        for other in others {
            assert!(!other.is_unreachable(), "{other:?}");
        }
    }

    #[test]
    fn route_when_asked_whose_then_by_protocol_and_go_flannels_only_with_a_gateway() {
        let of = |protocol| {
            let route = Route { protocol, ..route() };
            (route.is_marked(), route.is_predecessors(), route.is_kernels())
        };
        assert_eq!(of(241), (true, false, false));
        assert_eq!(of(3), (false, true, false));
        assert_eq!(of(2), (false, false, true));
        assert_eq!(of(4), (false, false, false));
        let unguided = Route {
            protocol: ROUTE_PROTOCOL_BOOT,
            gateway: None,
            ..route()
        };
        assert!(!unguided.is_predecessors());
    }
}
