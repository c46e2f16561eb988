//! Operations become messages, and refusals are judged: what is there already is no failure.

use std::collections::{HashMap, HashSet};

use fabric::object::{Family, Key, LinkName, Object, Op, ROUTE_PROTOCOL};
use rustix::io::Errno;

use crate::host::{ApplyOptions, Outcome, Scope};
use crate::mirror::Origin;
use crate::nl::{NetlinkError, flag};
use crate::rtnl::route::Via;
use crate::rtnl::{ObservedNexthop, nexthop, route};

use super::Kernel;
use super::steps::{Planner, Step, What, message, target};

/// Operations planned at a time: bounds memory, not the number of system calls.
const SLICE: usize = 2048;

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

    /// Applies operations none of which is about a link.
    fn apply_run(&mut self, ops: &[Op], how: ApplyOptions, outcomes: &mut Vec<Outcome>) {
        let base = outcomes.len();
        outcomes.extend(ops.iter().map(|_| Outcome::Done));
        let mut planner = Planner::new(self, how.nexthop_objects);
        for (position, op) in ops.iter().enumerate() {
            if let Err(error) = planner.plan(position, op)
                && let Some(outcome) = outcomes.get_mut(base + position)
            {
                // Nothing hangs on a link that is not there.
                let gone = matches!(op, Op::Remove(_)) && error.is_absent();
                *outcome = if gone {
                    Outcome::Already
                } else {
                    Outcome::Failed(Box::new(error.of(op)))
                };
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
        self.remake(ops, &verdict, outcomes, base);
        for link in verdict.stale_links {
            // Routes went with the address, without a word.
            if self.observe_link(link, Origin::Foreign(None)).is_err() {
                self.mirror.want(Scope::Link(link));
            }
        }
    }

    pub(super) fn judge(
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
                        || matches!(what, What::DeleteRoute(Via::Nexthop(_))) && error.is(Errno::INVAL)) =>
            {
                self.mirror.set(op.key(), None, Origin::Own);
                *outcome = Outcome::Already;
            }
            (_, Err(error)) => {
                if error.is_exists() && matches!(op, Op::Add(_)) {
                    verdict.taken.push(step.op);
                }
                if needs_remaking(op, &error) {
                    verdict.remade.push(step.op);
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
        self.mirror.set_nexthop(ObservedNexthop {
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
        self.remake(ops, &ignored, outcomes, base);
    }

    /// Changes that the kernel does not make in place: the old route goes first. Both messages are in one send.
    fn remake(&mut self, ops: &[Op], verdict: &Verdict, outcomes: &mut [Outcome], base: usize) {
        for position in &verdict.remade {
            let Some(Op::Change {
                from: Object::Route(from),
                to: Object::Route(to),
            }) = ops.get(*position)
            else {
                continue;
            };
            let (Some(old), Some(new)) = (self.way_of(from), self.mirror.index(to.link)) else {
                continue;
            };
            let messages = [
                route::delete_message(from, old),
                route::add_message(flag::PUT, to, Via::Link(new)),
            ];
            let mut results = self.rtnl.socket().pipeline(messages).into_iter();
            if results.next().is_some_and(|deleted| deleted.is_ok()) {
                self.mirror
                    .set(Key::Route(from.destination, from.metric), None, Origin::Own);
            }
            let outcome = match results.next() {
                Some(Err(error)) => Outcome::Failed(Box::new(
                    error.of(format_args!("remake route {}", to.destination)),
                )),
                _ => {
                    self.mirror.set_route(*to, None, Origin::Own);
                    Outcome::Done
                }
            };
            if let Some(place) = outcomes.get_mut(base + position) {
                *place = outcome;
            }
        }
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
pub(super) struct Verdict {
    /// Operations whose next hop object could not be made, and whether their route was made all the same.
    pub(super) without_nexthop: HashMap<usize, bool>,
    /// Additions refused with `EEXIST`.
    pub(super) taken: Vec<usize>,
    /// Changes of routes that are not made in place.
    pub(super) remade: Vec<usize>,
    /// Links that lost an address and may have lost routes with it.
    pub(super) stale_links: HashSet<LinkName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Routes(Family),
    Link(LinkName),
}

/// Two cases in which the kernel does not put one route in another's place: an IPv6 gateway that the old route leads to, and
/// an equal IPv4 route that is there already, hidden behind the old one.
pub(super) fn needs_remaking(op: &Op, error: &NetlinkError) -> bool {
    match op {
        Op::Change {
            from: Object::Route(from),
            to: Object::Route(to),
        } => {
            let misled = to.destination.addr().is_ipv6() && to.onlink && from.link != to.link;
            error.is_exists() || (misled && error.is(Errno::INVAL))
        }
        _ => false,
    }
}
