//! Which messages an operation takes, and next hop objects for routes that are to have them.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use fabric::object::{LinkName, Object, Op, ROUTE_PROTOCOL, Route};
use rustix::io::Errno;

use crate::nl::{Message, NetlinkError, flag};
use crate::rtnl::route::Via;
use crate::rtnl::{address, forwarding, neighbour, nexthop, route};

use crate::mirror::LOOPBACK;

use super::{Kernel, refuse};

/// One message of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// Position of the operation in the slice.
    pub(super) op: usize,
    pub(super) what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// Everything that takes one message, on the link of this index.
    Plain(u32),
    /// Make this next hop object on the link of this index.
    Nexthop(u32, u32),
    /// Make or replace the route, by this next hop object.
    RouteBy(u32),
    /// Delete the route that leads this way.
    DeleteRoute(Via),
    /// Delete this next hop object.
    DeleteNexthop(u32),
}

/// Decides which messages an operation takes.
pub(super) struct Planner<'a> {
    kernel: &'a Kernel,
    nexthops: bool,
    pub(super) steps: Vec<Step>,
    /// Uses of next hop objects as they will be, where that differs from the mirror.
    uses: HashMap<u32, u32>,
    /// Numbers given to new next hop objects, by what they are for.
    taken: HashSet<u32>,
}

impl Kernel {
    /// What the kernel must be told of a mirrored route to delete exactly this one.
    pub(super) fn way_of(&self, route: &Route) -> Option<Via> {
        if let Some(id) = self.mirror.nexthop_of(route) {
            return Some(Via::Nexthop(id));
        }
        if route.gateway.is_none() && route.link.as_str() == LOOPBACK {
            return Some(Via::Nowhere);
        }
        self.mirror.index(route.link).map(Via::Link)
    }
}

impl<'a> Planner<'a> {
    pub(super) fn new(kernel: &'a Kernel, nexthops: bool) -> Planner<'a> {
        Planner {
            kernel,
            nexthops,
            steps: Vec::new(),
            uses: HashMap::new(),
            taken: HashSet::new(),
        }
    }

    pub(super) fn plan(&mut self, op: usize, what: &Op) -> Result<(), NetlinkError> {
        let target = match what {
            Op::Add(object) | Op::Remove(object) => object,
            Op::Change { to, .. } => to,
        };
        let Some(index) = self.kernel.mirror.index(target.link()) else {
            return Err(refuse(
                Errno::NODEV,
                format!("there is no link {}", target.link()),
            ));
        };
        let Object::Route(route) = target else {
            self.steps.push(Step {
                op,
                what: What::Plain(index),
            });
            return Ok(());
        };
        let old = self.kernel.mirror.nexthop_of(route);
        if matches!(what, Op::Remove(_)) {
            let what = What::DeleteRoute(self.kernel.way_of(route).unwrap_or(Via::Link(index)));
            self.steps.push(Step { op, what });
        } else {
            self.plan_route(op, route, index);
        }
        if let Some(id) = old {
            self.release(op, id);
        }
        Ok(())
    }

    fn plan_route(&mut self, op: usize, route: &Route, index: u32) {
        let gateway = route
            .gateway
            .filter(|g| g.is_ipv4() == route.destination.addr().is_ipv4());
        let (Some(gateway), true) = (gateway, self.nexthops && self.kernel.has_nexthops) else {
            self.steps.push(Step {
                op,
                what: What::Plain(index),
            });
            return;
        };
        let (id, is_new) = self.choose(route, index, gateway);
        if is_new {
            self.steps.push(Step {
                op,
                what: What::Nexthop(id, index),
            });
        }
        *self
            .uses
            .entry(id)
            .or_insert_with(|| self.kernel.mirror.nexthop(id).map_or(0, |n| n.uses)) += 1;
        self.steps.push(Step {
            op,
            what: What::RouteBy(id),
        });
    }

    /// The number of the next hop object for a gateway, and whether it is still to be made. Numbers follow from link and
    /// gateway, so that the object of another run is found again; a number that is taken leads to the next.
    fn choose(&mut self, route: &Route, index: u32, gateway: IpAddr) -> (u32, bool) {
        let mut id = number_of(route.link, gateway);
        loop {
            match self.kernel.mirror.nexthop(id) {
                Some(nexthop) => {
                    let seen = nexthop.seen;
                    let same = seen.link == Some(index) && seen.gateway == Some(gateway);
                    if same
                        && seen.onlink == route.onlink
                        && seen.protocol == ROUTE_PROTOCOL
                        && self.is_kept(id)
                    {
                        return (id, false);
                    }
                }
                // Planned before in this run: for the same gateway or not, a number of its own is right.
                None if self.taken.insert(id) => return (id, true),
                None => {}
            }
            id = FIRST_NUMBER | (id.wrapping_add(1) & NUMBERS);
        }
    }

    /// The object is not one that this run deletes.
    fn is_kept(&self, id: u32) -> bool {
        self.uses.get(&id).is_none_or(|uses| *uses > 0)
    }

    /// A route stops using an object: the last one takes it along.
    fn release(&mut self, op: usize, id: u32) {
        let Some(nexthop) = self.kernel.mirror.nexthop(id) else {
            return;
        };
        let uses = self.uses.entry(id).or_insert(nexthop.uses);
        *uses = uses.saturating_sub(1);
        if *uses == 0 && nexthop.seen.protocol == ROUTE_PROTOCOL {
            self.steps.push(Step {
                op,
                what: What::DeleteNexthop(id),
            });
        }
    }
}

const FIRST_NUMBER: u32 = 0x4000_0000;
const NUMBERS: u32 = 0x3fff_ffff;

/// Far above those that routing daemons count up from 1. FNV-1a of the link's name and the gateway.
fn number_of(link: LinkName, gateway: IpAddr) -> u32 {
    let fold = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    let hash = link.as_str().as_bytes().iter().fold(0x811c_9dc5, fold);
    let hash = match gateway {
        IpAddr::V4(v4) => v4.octets().iter().fold(hash, fold),
        IpAddr::V6(v6) => v6.octets().iter().fold(hash, fold),
    };
    FIRST_NUMBER | (hash & NUMBERS)
}

pub(super) fn target(op: &Op) -> Option<&Object> {
    match op {
        Op::Add(object) | Op::Change { to: object, .. } => Some(object),
        Op::Remove(_) => None,
    }
}

/// The message of a step. Additions of neighbours and forwarding entries take the place of learned ones, which no mirror
/// shows, so only addresses and routes are added exclusively.
pub(super) fn message(op: &Op, what: What, flags: Option<u16>) -> Option<Message> {
    let is_add = matches!(op, Op::Add(_));
    let exclusive = flags.unwrap_or(if is_add { flag::ADD } else { flag::PUT });
    Some(match (op, what) {
        (_, What::DeleteNexthop(id)) => nexthop::delete_message(id),
        (Op::Remove(Object::Route(r)), What::DeleteRoute(via)) => route::delete_message(r, via),
        (Op::Remove(object), What::Plain(index)) => match object {
            Object::Address(a) => address::delete_message(index, a.address),
            Object::Neighbour(n) => neighbour::delete_message(index, n.address),
            Object::Forwarding(f) => forwarding::delete_message(index, f.mac, f.remote),
            Object::Route(_) | Object::Link(_) => return None,
        },
        (Op::Add(object) | Op::Change { to: object, .. }, what) => match (object, what) {
            (Object::Address(a), What::Plain(index)) => address::add_message(index, a.address),
            (Object::Neighbour(n), What::Plain(index)) => {
                neighbour::add_message(flag::PUT, index, n.address, n.mac)
            }
            (Object::Forwarding(f), What::Plain(index)) => {
                forwarding::add_message(flag::PUT, index, f.mac, f.remote)
            }
            (Object::Route(r), What::Plain(index)) => route::add_message(exclusive, r, Via::Link(index)),
            (Object::Route(r), What::RouteBy(id)) => route::add_message(exclusive, r, Via::Nexthop(id)),
            (Object::Route(r), What::Nexthop(id, index)) => {
                nexthop::add_message(id, index, r.gateway?, r.onlink, ROUTE_PROTOCOL)
            }
            _ => return None,
        },
        _ => return None,
    })
}
