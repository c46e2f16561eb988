//! A default route beside another one: made as Go's plugin makes it, and said.
//!
//! A definition that is right for a pod's only network asks for the default gateway; used for a pod's second interface it takes
//! the traffic away from the first. IPv4 prefers the route made last, IPv6 uses both.

use std::net::IpAddr;

use fabric::object::Family;
use kernel::rtnl::{ObservedRoute, Rtnl};

use crate::call::Call;
use crate::notice::say;

/// Index of the first link of a namespace behind `lo`: a link with it has none before it.
const FIRST_LINK: u32 = 2;

/// Tells on stderr which other link of the container has a default route.
pub fn warn(pod: &mut Rtnl, call: &Call, ours: u32) {
    if ours <= FIRST_LINK {
        return;
    }
    let is_other = |route: &ObservedRoute| {
        route.is_main() && route.destination.prefix_len() == 0 && route.link.is_some_and(|link| link != ours)
    };
    let families = [Family::V4, Family::V6].into_iter();
    let mut routes = families
        .filter_map(|family| pod.routes(family, None).ok())
        .flatten();
    let Some(route) = routes.find(is_other) else {
        return;
    };
    drop(routes);
    let link = route
        .link
        .and_then(|index| pod.link_by_index(index).ok().flatten());
    let (ifname, network) = (&call.env.ifname, &call.name);
    let other = link.map_or_else(|| "another link".to_owned(), |link| link.name.to_string());
    let whither = match route.destination.addr() {
        IpAddr::V4(_) => format!("{ifname} is used from now on"),
        IpAddr::V6(_) => "both are used from now on".to_owned(),
    };
    say(&format!(
        "{ifname}: isDefaultGateway of network {network:?} makes a default route where there is one by {other}: {whither}. \
         Leave isDefaultGateway out of a network that is attached beside another, or have Multus choose by \"default-route\"."
    ));
}
