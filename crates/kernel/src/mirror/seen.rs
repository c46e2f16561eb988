//! What the kernel shows, as objects.

use fabric::object::{Address, Forwarding, LinkName, Neighbour, Route};

use crate::rtnl::route::UNREACHABLE;
use crate::rtnl::{ObservedAddress, ObservedForwarding, ObservedNeighbour, ObservedRoute, RouteKind};

use super::{LOOPBACK, Mirror};

impl Mirror {
    /// An address as an object; `None` for those that come with the link (IPv6 link-local, loopback's).
    pub(crate) fn address(&self, seen: &ObservedAddress) -> Option<Address> {
        const SCOPE_LINK: u8 = 253;
        const SCOPE_HOST: u8 = 254;
        let own = seen.scope == SCOPE_HOST || (seen.scope == SCOPE_LINK && seen.address.addr().is_ipv6());
        if own {
            return None;
        }
        Some(Address {
            link: self.name(seen.link)?,
            address: seen.address,
        })
    }

    /// A neighbour as an object; `None` for learned ones.
    pub(crate) fn neighbour(&self, seen: &ObservedNeighbour) -> Option<Neighbour> {
        let mac = seen.mac.filter(|_| seen.is_permanent())?;
        Some(Neighbour {
            link: self.name(seen.link)?,
            address: seen.address,
            mac,
        })
    }

    /// A forwarding entry as an object; `None` for learned ones.
    pub(crate) fn forwarding(&self, seen: &ObservedForwarding) -> Option<Forwarding> {
        let link = self.name(seen.link).filter(|_| seen.is_permanent())?;
        Some(Forwarding {
            link,
            mac: seen.mac,
            remote: seen.remote,
        })
    }

    /// A route as an object.
    ///
    /// What [`Route`] cannot say is said by a value no plan has, so that it is seen to be in the way and replaced where it
    /// must be: several next hops or an encapsulation show the (first) link without gateway, a blackhole and its like the
    /// loopback link and a gateway that is missing on it. `unreachable` is one that [`Route::unreachable`] says.
    pub(crate) fn route(&self, seen: &ObservedRoute) -> Option<Route> {
        let object = seen
            .nexthop
            .and_then(|id| self.nexthop(id))
            .map(|nexthop| nexthop.seen);
        let plain = seen.kind == RouteKind::Unicast && !seen.compound;
        let link = match seen.kind {
            RouteKind::Unicast => seen
                .link
                .or(object.and_then(|o| o.link))
                .and_then(|index| self.name(index)),
            RouteKind::Other(_) => None,
        };
        Some(Route {
            destination: seen.destination,
            metric: seen.metric,
            gateway: seen.gateway.or(object.and_then(|o| o.gateway)).filter(|_| plain),
            link: match link {
                Some(link) => link,
                None => LinkName::new(LOOPBACK)?,
            },
            onlink: match seen.kind {
                RouteKind::Unicast => plain && (seen.onlink || object.is_some_and(|o| o.onlink)),
                RouteKind::Other(kind) => kind != UNREACHABLE,
            },
            protocol: seen.protocol,
        })
    }
}
