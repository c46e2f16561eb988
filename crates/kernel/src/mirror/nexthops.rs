//! Next hop objects: an encoding of routes, invisible in their [`Object`](fabric::object::Object)s.

use std::collections::HashSet;

use fabric::object::Route;
use ipnet::IpNet;

use crate::rtnl::ObservedNexthop;

use super::{Mirror, Nexthop, decrement};

impl Mirror {
    pub(crate) fn nexthop_of(&self, route: &Route) -> Option<u32> {
        self.route_nexthop
            .get(&(route.destination, route.metric))
            .copied()
    }

    pub(crate) fn nexthop(&self, id: u32) -> Option<&Nexthop> {
        self.nexthops.get(&id)
    }

    pub(crate) fn nexthops(&self) -> impl Iterator<Item = &Nexthop> {
        self.nexthops.values()
    }

    pub(super) fn set_route_nexthop(&mut self, route: (IpNet, u32), id: Option<u32>) {
        let old = match id {
            Some(id) => self.route_nexthop.insert(route, id),
            None => self.route_nexthop.remove(&route),
        };
        if old == id {
            return;
        }
        if let Some(nexthop) = old.and_then(|old| self.nexthops.get_mut(&old)) {
            nexthop.uses = nexthop.uses.saturating_sub(1);
        }
        if let Some(nexthop) = id.and_then(|id| self.nexthops.get_mut(&id)) {
            nexthop.uses += 1;
        }
    }

    /// Makes the next hop objects, or those through one link, exactly `fresh`.
    pub(crate) fn replace_nexthops(&mut self, through: Option<u32>, fresh: &[ObservedNexthop]) {
        let ids: HashSet<u32> = fresh.iter().map(|nexthop| nexthop.id).collect();
        let in_scope = |nexthop: &Nexthop| through.is_none() || nexthop.seen.link == through;
        let stale: Vec<u32> = self
            .nexthops
            .values()
            .filter(|nexthop| in_scope(nexthop) && !ids.contains(&nexthop.seen.id))
            .map(|nexthop| nexthop.seen.id)
            .collect();
        for id in stale {
            self.forget_nexthop(id);
        }
        for nexthop in fresh {
            self.set_nexthop(*nexthop);
        }
    }

    pub(crate) fn set_nexthop(&mut self, seen: ObservedNexthop) {
        let uses = self.forget_nexthop(seen.id).map_or(0, |old| old.uses);
        if let Some(link) = seen.link {
            *self.nexthops_on.entry(link).or_default() += 1;
        }
        self.nexthops.insert(seen.id, Nexthop { seen, uses });
    }

    pub(crate) fn forget_nexthop(&mut self, id: u32) -> Option<Nexthop> {
        let old = self.nexthops.remove(&id)?;
        if let Some(link) = old.seen.link {
            decrement(&mut self.nexthops_on, &link);
        }
        Some(old)
    }
}
