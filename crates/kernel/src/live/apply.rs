//! Operations become messages, and refusals are judged: what is there already is no failure.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use fabric::object::{Family, Key, Link, LinkKind, LinkName, Object, Op, ROUTE_PROTOCOL, Route};
use rustix::io::Errno;

use crate::host::{ApplyOptions, Outcome, Scope};
use crate::mirror::Origin;
use crate::nl::{Fault, Message, NetlinkError, flag};
use crate::rtnl::route::Via;
use crate::rtnl::{LinkChange, address, forwarding, neighbour, nexthop, route};
use crate::sysctl;

use super::Kernel;

/// Operations planned at a time: bounds memory, not the number of system calls.
const SLICE: usize = 2048;

/// One message of an operation.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// Position of the operation in the slice.
    op: usize,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    /// Everything that takes one message, on the link of this index.
    Plain(u32),
    /// Make this next hop object on the link of this index.
    Nexthop(u32, u32),
    /// Make or replace the route, by this next hop object.
    RouteBy(u32),
    /// Delete the route that uses this next hop object.
    DeleteRouteBy(u32),
    /// Delete this next hop object.
    DeleteNexthop(u32),
}

impl Kernel {
    /// Applies operations in their order, in few system calls. One that is refused stops no other; those that depend on it
    /// report what the kernel says to them. The mirror shows what succeeded.
    pub fn apply(&mut self, ops: &[Op], how: ApplyOptions) -> Vec<Outcome> {
        // What is queued happened before, so it must not be taken in after. An error here comes again with `drain`.
        let _ = self.absorb();
        let mut outcomes = Vec::with_capacity(ops.len());
        let mut rest = ops;
        while let Some(first) = rest.first() {
            let is_link = |op: &Op| matches!(op.key(), Key::Link(_));
            let run = if is_link(first) {
                outcomes.push(self.apply_link(first));
                1
            } else {
                let run = rest.iter().take(SLICE).take_while(|op| !is_link(op)).count();
                self.apply_run(rest.get(..run).unwrap_or(&[]), how, &mut outcomes);
                // Forwarding entries and some deletions are echoed without our port id: read before they overrun.
                let _ = self.absorb();
                run
            };
            rest = rest.get(run..).unwrap_or(&[]);
        }
        self.remove_orphans();
        outcomes
    }

    fn apply_link(&mut self, op: &Op) -> Outcome {
        let done = match op {
            Op::Add(Object::Link(link)) => self.add_link(link),
            Op::Change {
                from: Object::Link(from),
                to: Object::Link(to),
            } => self.change_link(from, to),
            Op::Remove(Object::Link(link)) => self.remove_link(link.name),
            _ => Err(refuse(Errno::INVAL, "a change must be of one kind of object")),
        };
        done.unwrap_or_else(|error| Outcome::Failed(Box::new(error.of(op))))
    }

    fn add_link(&mut self, link: &Link) -> Result<Outcome, NetlinkError> {
        let LinkKind::Vxlan(vxlan) = &link.kind else {
            return Err(refuse(Errno::OPNOTSUPP, "links of this kind are not made by us"));
        };
        let lower = match self.mirror.index(vxlan.lower) {
            Some(index) => index,
            None => match self.rtnl.link_by_name(vxlan.lower)? {
                Some(lower) => lower.index,
                None => {
                    return Err(refuse(
                        Errno::NODEV,
                        format!("there is no link {} below it", vxlan.lower),
                    ));
                }
            },
        };
        match self.rtnl.add_vxlan(link, vxlan, lower) {
            Ok(()) => {
                let _ = self.absorb_own(link.name);
                self.observe_own_link(link.name)?;
                // The addresses of a router's advertisements are not for a tunnel. Not worth failing for.
                let _ = sysctl::set(&format!("net/ipv6/conf/{}/accept_ra", link.name), "0");
                Ok(Outcome::Done)
            }
            Err(error) if error.is_exists() => {
                self.observe_own_link(link.name)?;
                match self.mirror.objects().get(&Key::Link(link.name)) {
                    Some(Object::Link(there)) if same_link(there, link) => Ok(Outcome::Already),
                    _ => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    fn change_link(&mut self, from: &Link, to: &Link) -> Result<Outcome, NetlinkError> {
        let learning = match (&from.kind, &to.kind) {
            (LinkKind::Vxlan(from), LinkKind::Vxlan(to)) => {
                let mut same = from.clone();
                same.learning = to.learning;
                if same != *to && !(to.port.is_none() && same.port.is_some() && same_but_port(&same, to)) {
                    return Err(refuse(
                        Errno::OPNOTSUPP,
                        "what makes a vxlan device cannot be changed in place",
                    ));
                }
                (from.learning != to.learning).then_some(to.learning)
            }
            (from, to) if from == to => None,
            _ => {
                return Err(refuse(
                    Errno::OPNOTSUPP,
                    "the kind of a link cannot be changed in place",
                ));
            }
        };
        let Some(index) = self.mirror.index(to.name) else {
            return Err(refuse(Errno::NODEV, "there is no such link"));
        };
        if let Some(learning) = learning {
            self.rtnl.set_vxlan_learning(index, learning)?;
        }
        let change = LinkChange {
            mtu: (from.mtu != to.mtu).then_some(to.mtu),
            mac: to.mac.filter(|mac| from.mac != Some(*mac)),
            up: (from.up != to.up).then_some(to.up),
        };
        if change != LinkChange::default() {
            match self.rtnl.set_link(index, change) {
                // Some kinds of links change their address only while down.
                Err(error) if error.is(Errno::BUSY) && change.mac.is_some() => {
                    self.rtnl.set_link(
                        index,
                        LinkChange {
                            up: Some(false),
                            ..LinkChange::default()
                        },
                    )?;
                    self.rtnl.set_link(
                        index,
                        LinkChange {
                            up: Some(to.up),
                            ..change
                        },
                    )?;
                }
                other => other?,
            }
        }
        // Neighbours go with the address, routes with the state: what went must be known, and told.
        self.observe_link_after_change(to.name)?;
        Ok(Outcome::Done)
    }

    fn remove_link(&mut self, name: LinkName) -> Result<Outcome, NetlinkError> {
        let Some(index) = self.mirror.index(name) else {
            return Ok(Outcome::Already);
        };
        match self.rtnl.delete_link(index) {
            Ok(()) => {
                self.mirror.forget_link(index, Origin::Own);
                let _ = self.absorb_own(name);
                Ok(Outcome::Done)
            }
            Err(error) if error.is_absent() => {
                self.mirror.forget_link(index, Origin::Own);
                Ok(Outcome::Already)
            }
            Err(error) => Err(error),
        }
    }

    fn observe_own_link(&mut self, name: LinkName) -> Result<(), NetlinkError> {
        self.observe_link(name, Origin::Own)
            .map_err(|crate::host::KernelError::Netlink(error)| error)
    }

    fn observe_link_after_change(&mut self, name: LinkName) -> Result<(), NetlinkError> {
        if let Some(seen) = self.rtnl.link_by_name(name)? {
            self.mirror.set_link(&seen, Origin::Own);
        }
        let _ = self.absorb();
        if let Some(seen) = self.rtnl.link_by_name(name)? {
            self.mirror.set_link(&seen, Origin::Own);
        }
        self.observe_link(name, Origin::Foreign(None))
            .map_err(|crate::host::KernelError::Netlink(error)| error)
    }

    /// Applies operations none of which is about a link.
    fn apply_run(&mut self, ops: &[Op], how: ApplyOptions, outcomes: &mut Vec<Outcome>) {
        let base = outcomes.len();
        outcomes.extend(ops.iter().map(|_| Outcome::Done));
        let mut planner = Planner {
            kernel: self,
            nexthops: how.nexthop_objects,
            steps: Vec::new(),
            uses: HashMap::new(),
            taken: HashSet::new(),
        };
        for (position, op) in ops.iter().enumerate() {
            if let Err(error) = planner.plan(position, op)
                && let Some(outcome) = outcomes.get_mut(base + position)
            {
                *outcome = Outcome::Failed(Box::new(error.of(op)));
            }
        }
        let steps = planner.steps;
        let results = self.rtnl.socket().pipeline(
            steps
                .iter()
                .filter_map(|step| message(ops.get(step.op)?, step.what, None)),
        );
        let mut verdict = Verdict::default();
        for (step, result) in steps.iter().zip(results) {
            if let (Some(op), Some(outcome)) = (ops.get(step.op), outcomes.get_mut(base + step.op)) {
                self.judge(op, *step, result, outcome, &mut verdict);
            }
        }
        self.retry_without_nexthops(ops, &verdict, outcomes, base);
        self.compare_taken(ops, &verdict, outcomes, base);
        for link in verdict.stale_links {
            // Routes went with the address, without a word.
            if self.observe_link(link, Origin::Foreign(None)).is_err() {
                self.mirror.want(Scope::Link(link));
            }
        }
    }

    fn judge(
        &mut self,
        op: &Op,
        step: Step,
        result: Result<(), NetlinkError>,
        outcome: &mut Outcome,
        verdict: &mut Verdict,
    ) {
        match (step.what, result) {
            (What::Nexthop(id, index), Ok(())) => self.note_nexthop(op, id, index),
            (What::Nexthop(..), Err(error)) => {
                self.has_nexthops &= !error.is_unsupported();
                verdict.without_nexthop.insert(step.op, false);
            }
            (What::DeleteNexthop(id), Ok(())) => {
                self.mirror.forget_nexthop(id);
            }
            // Still used by somebody's route, or gone: the next full observation knows.
            (What::DeleteNexthop(_), Err(_)) => {}
            (What::RouteBy(_), result) if verdict.without_nexthop.contains_key(&step.op) => {
                // Without the object this route went wrong, or through a stranger's object of the same number.
                verdict.without_nexthop.insert(step.op, result.is_ok());
            }
            (what, Ok(())) => {
                let nexthop = if let What::RouteBy(id) = what {
                    Some(id)
                } else {
                    None
                };
                self.note_done(op, nexthop, verdict);
            }
            // EINVAL: its next hop object is not there, so neither is the route.
            (what, Err(error))
                if matches!(op, Op::Remove(_))
                    && (error.is_absent()
                        || matches!(what, What::DeleteRouteBy(_)) && error.is(Errno::INVAL)) =>
            {
                self.mirror.set(op.key(), None, Origin::Own);
                *outcome = Outcome::Already;
            }
            (_, Err(error)) => {
                if error.is_exists() && matches!(op, Op::Add(_)) {
                    verdict.taken.push(step.op);
                }
                *outcome = Outcome::Failed(Box::new(error.of(op)));
            }
        }
    }

    fn note_nexthop(&mut self, op: &Op, id: u32, index: u32) {
        let (Op::Add(Object::Route(route))
        | Op::Change {
            to: Object::Route(route),
            ..
        }) = op
        else {
            return;
        };
        self.mirror.set_nexthop(crate::rtnl::ObservedNexthop {
            id,
            link: Some(index),
            gateway: route.gateway,
            onlink: route.onlink,
            protocol: ROUTE_PROTOCOL,
        });
    }

    fn note_done(&mut self, op: &Op, nexthop: Option<u32>, verdict: &mut Verdict) {
        match op {
            Op::Add(object) | Op::Change { to: object, .. } => match object {
                Object::Route(route) => self.mirror.set_route(*route, nexthop, Origin::Own),
                other => self.mirror.set(other.key(), Some(other.clone()), Origin::Own),
            },
            Op::Remove(object) => {
                self.mirror.set(object.key(), None, Origin::Own);
                if let Object::Address(address) = object
                    && self.mirror.has_routes(address.link)
                {
                    verdict.stale_links.insert(address.link);
                }
            }
        }
    }

    /// Routes whose next hop object could not be made are made without.
    fn retry_without_nexthops(
        &mut self,
        ops: &[Op],
        verdict: &Verdict,
        outcomes: &mut [Outcome],
        base: usize,
    ) {
        let mut steps: Vec<(Step, bool)> = Vec::new();
        for (position, strange) in &verdict.without_nexthop {
            let index = ops
                .get(*position)
                .and_then(|op| self.mirror.index(target(op)?.link()));
            if let Some(index) = index {
                steps.push((
                    Step {
                        op: *position,
                        what: What::Plain(index),
                    },
                    *strange,
                ));
            }
        }
        steps.sort_unstable_by_key(|(step, _)| step.op);
        let messages = steps.iter().filter_map(|(step, strange)| {
            message(ops.get(step.op)?, step.what, strange.then_some(flag::PUT))
        });
        let results = self.rtnl.socket().pipeline(messages);
        let mut ignored = Verdict::default();
        for ((step, _), result) in steps.iter().zip(results) {
            if let (Some(op), Some(outcome)) = (ops.get(step.op), outcomes.get_mut(base + step.op)) {
                self.judge(op, *step, result, outcome, &mut ignored);
            }
        }
        self.compare_taken(ops, &ignored, outcomes, base);
    }

    /// Additions refused because the place is taken: where an equal object takes it, there was nothing to do.
    fn compare_taken(&mut self, ops: &[Op], verdict: &Verdict, outcomes: &mut [Outcome], base: usize) {
        let mut looked = HashSet::new();
        for position in &verdict.taken {
            let Some(Op::Add(object)) = ops.get(*position) else {
                continue;
            };
            let (place, found) = match object {
                Object::Route(route) => {
                    let family = Family::of_net(route.destination);
                    (Place::Routes(family), looked.contains(&Place::Routes(family)))
                }
                other => (
                    Place::Link(other.link()),
                    looked.contains(&Place::Link(other.link())),
                ),
            };
            if !found {
                looked.insert(place);
                let seen = match place {
                    Place::Routes(family) => self.observe_routes(family, None, Origin::Own).map(|_| ()),
                    Place::Link(link) => self.observe_link(link, Origin::Own),
                };
                if seen.is_err() {
                    self.mirror.want(Scope::All);
                    return;
                }
            }
            let there = self.mirror.objects().get(&object.key());
            if let Some(outcome) = outcomes.get_mut(base + position) {
                if there == Some(object) {
                    *outcome = Outcome::Already;
                } else if let (Some(there), Outcome::Failed(error)) = (there, outcome)
                    && error.text.is_empty()
                {
                    error.text = format!("its place is taken by {there}").into();
                }
            }
        }
    }

    /// Next hop objects of ours that no route uses, left by a process that was killed between the two.
    fn remove_orphans(&mut self) {
        let orphans: Vec<u32> = std::mem::take(&mut self.orphans)
            .into_iter()
            .filter(|id| self.mirror.nexthop(*id).is_some_and(|nexthop| nexthop.uses == 0))
            .collect();
        let results = self
            .rtnl
            .socket()
            .pipeline(orphans.iter().map(|id| nexthop::delete_message(*id)));
        for (id, result) in orphans.iter().zip(results) {
            if result.is_ok() {
                self.mirror.forget_nexthop(*id);
            }
        }
    }
}

/// What the results of a pipeline leave to do.
#[derive(Debug, Default)]
struct Verdict {
    /// Operations whose next hop object could not be made, and whether their route was made all the same.
    without_nexthop: HashMap<usize, bool>,
    /// Additions refused with `EEXIST`.
    taken: Vec<usize>,
    /// Links that lost an address and may have lost routes with it.
    stale_links: HashSet<LinkName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Routes(Family),
    Link(LinkName),
}

/// Decides which messages an operation takes.
struct Planner<'a> {
    kernel: &'a Kernel,
    nexthops: bool,
    steps: Vec<Step>,
    /// Uses of next hop objects as they will be, where that differs from the mirror.
    uses: HashMap<u32, u32>,
    /// Numbers given to new next hop objects, by what they are for.
    taken: HashSet<u32>,
}

impl Planner<'_> {
    fn plan(&mut self, op: usize, what: &Op) -> Result<(), NetlinkError> {
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
            match old {
                Some(id) => self.steps.push(Step {
                    op,
                    what: What::DeleteRouteBy(id),
                }),
                None => self.steps.push(Step {
                    op,
                    what: What::Plain(index),
                }),
            }
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

fn target(op: &Op) -> Option<&Object> {
    match op {
        Op::Add(object) | Op::Change { to: object, .. } => Some(object),
        Op::Remove(_) => None,
    }
}

/// The message of a step. Additions of neighbours and forwarding entries take the place of learned ones, which no mirror
/// shows, so only addresses and routes are added exclusively.
fn message(op: &Op, what: What, flags: Option<u16>) -> Option<Message> {
    let is_add = matches!(op, Op::Add(_));
    let exclusive = flags.unwrap_or(if is_add { flag::ADD } else { flag::PUT });
    Some(match (op, what) {
        (_, What::DeleteNexthop(id)) => nexthop::delete_message(id),
        (Op::Remove(Object::Route(r)), What::DeleteRouteBy(id)) => route::delete_message(r, Via::Nexthop(id)),
        (Op::Remove(object), What::Plain(index)) => match object {
            Object::Address(a) => address::delete_message(index, a.address),
            Object::Neighbour(n) => neighbour::delete_message(index, n.address),
            Object::Forwarding(f) => forwarding::delete_message(index, f.mac, f.remote),
            Object::Route(r) => route::delete_message(r, Via::Link(index)),
            Object::Link(_) => return None,
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

/// Equal as far as asked: a vxlan device without a port has the kernel's default.
fn same_link(there: &Link, wanted: &Link) -> bool {
    let kinds = match (&there.kind, &wanted.kind) {
        (LinkKind::Vxlan(there), LinkKind::Vxlan(wanted)) => {
            there == wanted || (wanted.port.is_none() && same_but_port(there, wanted))
        }
        (there, wanted) => there == wanted,
    };
    let mac = wanted.mac.is_none() || there.mac == wanted.mac;
    kinds && mac && there.mtu == wanted.mtu && there.up == wanted.up
}

fn same_but_port(one: &fabric::object::Vxlan, other: &fabric::object::Vxlan) -> bool {
    let mut one = one.clone();
    one.port = other.port;
    one == *other
}

fn refuse(errno: Errno, text: impl Into<Box<str>>) -> NetlinkError {
    NetlinkError::new("apply", Fault::Refused, errno, text)
}
