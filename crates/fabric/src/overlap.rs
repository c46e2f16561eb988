//! Routes of others inside our Networks: named, and left as they are.
//!
//! What a predecessor left of nodes that are gone looks the same as what an admin put there on purpose, so nobody but the
//! admin can say which it is. Until then it draws traffic of pods to somewhere no lease knows of.

use ipnet::IpNet;

use crate::node::Node;
use crate::object::{Family, Object, Objects, Route};
use crate::ownership::{Owner, Ownership};

/// `RTPROT_KERNEL` (`linux/rtnetlink.h`): the way to an interface's own prefix, such as the pods' bridge.
const PROTOCOL_KERNEL: u8 = 2;

/// Observed routes inside this node's Networks that are not ours and stand where no lease wants one.
///
/// Routes inside our own subnet are the business of whoever runs the pods here, and a route to a whole Network is one that
/// every lease's is more specific than.
pub fn foreign_routes<'a>(
    desired: &'a Objects,
    observed: &'a Objects,
    ownership: &'a Ownership,
    node: &'a Node,
) -> impl Iterator<Item = &'a Route> {
    observed.values().filter_map(move |object| match object {
        Object::Route(route)
            if route.protocol != PROTOCOL_KERNEL
                && !desired.contains_key(&object.key())
                && is_between(&route.destination, node)
                && ownership.owner(object) != Owner::Ours
                && !ownership.was_leased(route) =>
        {
            Some(route)
        }
        _ => None,
    })
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
