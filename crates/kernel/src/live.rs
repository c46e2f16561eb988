//! The kernel of this host (of one network namespace): mirror, dumps, notifications.

mod apply;
mod device;
mod host;
mod steps;

use std::collections::HashSet;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use fabric::object::{Family, Key, LinkName, Object, Objects, ROUTE_PROTOCOL};

use rustix::io::Errno;

use crate::host::{Drained, Interest, KernelError, Scope};
use crate::mirror::{FreshRoutes, Mirror, Origin, Section};
use crate::nl::{Calls, Fault, Message, NetlinkError, Protocol, Reply, Socket};
use crate::rtnl::{ObservedRoute, RouteKind, Rtnl, forwarding, group, neighbour, route};

/// What notifications may take of memory before some are lost; a lost one costs a dump.
const MONITOR_BUFFER: usize = 8 << 20;

/// A network namespace's kernel, mirrored.
#[derive(Debug)]
pub struct Kernel {
    rtnl: Rtnl,
    monitor: Socket,
    mirror: Mirror,
    /// Next hop objects of ours that no route uses.
    orphans: Vec<u32>,
    /// The kernel knows next hop objects.
    has_nexthops: bool,
}

impl Kernel {
    /// Opens sockets in the calling thread's network namespace and subscribes, so that nothing that happens from now on is
    /// missed; the mirror is empty until [`Kernel::observe`].
    pub fn open(interest: Interest) -> Result<Kernel, KernelError> {
        let rtnl = Rtnl::open()?;
        let mut monitor = Socket::open(Protocol::Route)?;
        monitor.set_receive_buffer(MONITOR_BUFFER)?;
        // Our own changes are known from their outcomes. Where there are many of them, their echoes alone would overrun.
        monitor.ignore_port(rtnl.port())?;
        for wanted in [
            group::LINK,
            group::NEIGH,
            group::IPV4_IFADDR,
            group::IPV6_IFADDR,
            group::IPV4_ROUTE,
            group::IPV6_ROUTE,
            group::IPV4_RULE,
            group::IPV6_RULE,
        ] {
            monitor.subscribe(wanted)?;
        }
        // Missing before Linux 5.3.
        let has_nexthops = monitor.subscribe(group::NEXTHOP).is_ok();
        let mut mirror = Mirror::default();
        mirror.set_interest(interest);
        Ok(Kernel {
            rtnl,
            monitor,
            mirror,
            orphans: Vec::new(),
            has_nexthops,
        })
    }

    /// Sets what is mirrored. What is no longer of interest leaves the mirror at once; what is newly so comes with the next
    /// [`Kernel::observe`] of [`Scope::All`], which [`Kernel::drain`] will ask for.
    pub fn set_interest(&mut self, interest: Interest) {
        self.mirror.set_interest(interest);
        self.mirror.want(Scope::All);
    }

    /// Readable when notifications wait; to be polled.
    pub fn monitor_fd(&self) -> BorrowedFd<'_> {
        self.monitor.as_fd()
    }

    /// [`Kernel::drain`] has something to say although [`Kernel::monitor_fd`] may not be readable: it was read while
    /// observing or applying.
    pub fn has_news(&self) -> bool {
        self.mirror.has_news()
    }

    /// The mirror: what of the kernel's state is of interest, as far as known. Learned neighbours and forwarding entries
    /// are not in it.
    pub fn objects(&self) -> &Objects {
        self.mirror.objects()
    }

    /// Index of a link, of interest or not.
    pub fn link_index(&self, name: LinkName) -> Option<u32> {
        self.mirror.index(name)
    }

    /// System calls made on the sockets so far: those of requests, those of notifications.
    pub fn calls(&mut self) -> (Calls, Calls) {
        (self.rtnl.socket().calls(), self.monitor.calls())
    }

    /// Limits what notifications may take of memory.
    pub fn set_monitor_buffer(&mut self, bytes: usize) -> Result<(), KernelError> {
        Ok(self.monitor.set_receive_buffer(bytes)?)
    }

    /// Reads all that is waiting into the mirror, without blocking.
    pub fn drain(&mut self) -> Result<Drained, KernelError> {
        self.absorb()?;
        Ok(self.mirror.take_news())
    }

    fn absorb(&mut self) -> Result<(), KernelError> {
        loop {
            let mirror = &mut self.mirror;
            let ended = self.monitor.notifications(|reply| mirror.notice(reply));
            mirror.settle();
            match ended {
                Ok(_) => return Ok(()),
                // Something was lost; what is still queued is read all the same, for a full queue loses more.
                Err(error) if matches!(error.fault, Fault::Overrun | Fault::Truncated) => {
                    mirror.want(Scope::All)
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// As [`Kernel::absorb`] after we changed a link: what the kernel says of it on its own account is our doing, and no news.
    ///
    /// It must come before the link is looked at: some of our echoes are filtered and others are not, so that the last one
    /// queued need not be the present state.
    fn absorb_own(&mut self, link: LinkName) -> Result<(), KernelError> {
        self.mirror.begin_own(link);
        let absorbed = self.absorb();
        self.mirror.end_own();
        absorbed
    }

    /// Dumps a scope into the mirror.
    pub fn observe(&mut self, scope: Scope) -> Result<(), KernelError> {
        // What is queued happened before the dump, so it must not be taken in after it.
        self.absorb()?;
        match scope {
            Scope::All => self.observe_all(),
            Scope::Link(name) => self.observe_link(name, Origin::Own),
        }
    }

    /// Packs the mirror: after thousands of single insertions its nodes are half empty.
    pub fn compact(&mut self) {
        self.mirror.compact();
    }

    fn observe_all(&mut self) -> Result<(), KernelError> {
        let links = self.rtnl.links()?;
        self.mirror.replace_links(&links);
        drop(links);
        for name in self.mirror.watched() {
            if let Some(index) = self.mirror.index(name) {
                self.observe_on(name, index, Origin::Own)?;
            }
        }
        self.observe_nexthops(None)?;
        let mut used = HashSet::new();
        for family in Family::BOTH {
            used.extend(self.observe_routes(family, None, Origin::Own)?);
        }
        // All places have been seen.
        self.mirror.take_uncovered();
        self.orphans.clear();
        for nexthop in self.mirror.nexthops() {
            let ours = nexthop.seen.protocol == ROUTE_PROTOCOL
                && nexthop
                    .seen
                    .link
                    .and_then(|i| self.mirror.name(i))
                    .is_some_and(|n| self.mirror.is_watched(n));
            if ours && nexthop.uses == 0 && !used.contains(&nexthop.seen.id) {
                self.orphans.push(nexthop.seen.id);
            }
        }
        Ok(())
    }

    fn observe_link(&mut self, name: LinkName, origin: Origin) -> Result<(), KernelError> {
        let seen = self.rtnl.link_by_name(name)?;
        if let Some(old) = self
            .mirror
            .index(name)
            .filter(|old| seen.as_ref().is_none_or(|s| s.index != *old))
        {
            self.mirror.forget_link(old, origin);
        }
        if let Some(seen) = seen {
            self.mirror.rename(&seen, origin);
            self.mirror.set_link(&seen, origin);
            if self.mirror.is_watched(name) {
                self.observe_on(name, seen.index, origin)?;
            }
            self.observe_nexthops(Some(seen.index))?;
            for family in Family::BOTH {
                self.observe_routes(family, Some((name, seen.index)), origin)?;
            }
        }
        if self.mirror.take_uncovered() {
            self.observe_all()?;
        }
        self.mirror.settle();
        Ok(())
    }

    /// The end of a link's next hop objects, with its state or itself, is silent.
    fn observe_nexthops(&mut self, through: Option<u32>) -> Result<(), KernelError> {
        if self.has_nexthops {
            match self.rtnl.nexthops(through) {
                Ok(nexthops) => self.mirror.replace_nexthops(through, &nexthops),
                Err(error) if error.is_unsupported() => self.has_nexthops = false,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Addresses, and on devices whose kind has them neighbours and forwarding entries.
    fn observe_on(&mut self, name: LinkName, index: u32, origin: Origin) -> Result<(), KernelError> {
        let addresses = self.rtnl.addresses(index)?;
        let fresh: Objects = addresses
            .iter()
            .filter_map(|a| self.mirror.address(a))
            .map(Object::Address)
            .collect();
        self.mirror.replace_section(Section::Address, name, fresh, origin);
        if !self.mirror.has_entries(name) {
            // Only its neighbours and forwarding entries are left out: a device with some may have had the name before.
            self.mirror
                .replace_section(Section::Neighbour, name, Objects::new(), origin);
            self.mirror
                .replace_section(Section::Forwarding, name, Objects::new(), origin);
            return Ok(());
        }
        let fresh = self.entries(
            Section::Neighbour,
            name,
            &neighbour::list_message(index),
            |mirror, reply| {
                let seen = neighbour::read(reply).filter(|seen| seen.link == index)?;
                mirror.neighbour(&seen).map(Object::Neighbour)
            },
        )?;
        self.mirror
            .replace_section(Section::Neighbour, name, fresh, origin);
        let fresh = self.entries(
            Section::Forwarding,
            name,
            &forwarding::list_message(index),
            |mirror, reply| {
                let seen = forwarding::read(reply).filter(|seen| seen.link == index)?;
                mirror.forwarding(&seen).map(Object::Forwarding)
            },
        )?;
        self.mirror
            .replace_section(Section::Forwarding, name, fresh, origin);
        Ok(())
    }

    /// Dumps a device's neighbours or forwarding entries. A table that grows or shrinks meanwhile may be shown with gaps, of which the
    /// kernel does not tell here: where something known is missing, a second dump has to miss it too.
    fn entries(
        &mut self,
        section: Section,
        name: LinkName,
        request: &Message,
        read: impl Fn(&Mirror, &Reply<'_>) -> Option<Object>,
    ) -> Result<Objects, NetlinkError> {
        let mut fresh = Objects::new();
        for _ in 0..2 {
            let mirror = &self.mirror;
            let seen = self.rtnl.socket().dump(request, Objects::new, |seen, reply| {
                seen.extend(read(mirror, reply))
            })?;
            fresh.extend(seen.into_values());
            if !self.mirror.knows_more(section, name, &fresh) {
                break;
            }
        }
        Ok(fresh)
    }

    /// Dumps routes; returns the numbers of the next hop objects that routes outside the networks use.
    fn observe_routes(
        &mut self,
        family: Family,
        through: Option<(LinkName, u32)>,
        origin: Origin,
    ) -> Result<HashSet<u32>, KernelError> {
        if through.is_none() {
            self.mirror.forget_crowded(family == Family::V4);
        }
        let mirror = &self.mirror;
        let index = through.map(|(_, index)| index);
        let Found { fresh, crowded, used } =
            self.rtnl
                .fold_routes(family, index, Found::default, |found, seen: &ObservedRoute| {
                    if !mirror.in_networks(seen.destination) {
                        found.used.extend(seen.nexthop);
                    } else if let Some(object) = mirror.route(seen) {
                        let key = Key::Route(object.destination, object.metric);
                        // Of several with one key the kernel lists, and takes, the first one first.
                        match found.fresh.entry(key) {
                            Entry::Vacant(place) => {
                                place.insert((object, seen.nexthop));
                            }
                            Entry::Occupied(_) => found.crowded.push(key),
                        }
                    }
                })?;
        self.mirror
            .replace_routes(family == Family::V4, through.map(|(name, _)| name), fresh, origin);
        crowded.into_iter().for_each(|key| self.mirror.set_crowded(key));
        Ok(used)
    }

    /// Asks the kernel how it would reach each address: `Some(link)` if without a gateway.
    pub fn direct(&mut self, peers: &[IpAddr]) -> Result<Vec<Option<LinkName>>, KernelError> {
        let mut links = vec![None; peers.len()];
        let outcomes = self.rtnl.socket().pipeline_get(
            peers.iter().map(|peer| route::lookup_message(*peer)),
            |at, reply| {
                let seen = route::read(reply)
                    .filter(|r| r.kind == RouteKind::Unicast && r.gateway.is_none() && !r.compound);
                if let (Some(slot), Some(seen)) = (links.get_mut(at), seen) {
                    *slot = seen.link;
                }
            },
        );
        // A refusal is an answer: no route leads there. Anything else says nothing about any peer.
        if let Some(error) = outcomes
            .into_iter()
            .filter_map(Result::err)
            .find(|e| e.fault != Fault::Refused)
        {
            return Err(error.into());
        }
        let mut names = Vec::with_capacity(links.len());
        for link in links {
            names.push(match link {
                Some(index) => self.name_of(index)?,
                None => None,
            });
        }
        Ok(names)
    }

    fn name_of(&mut self, index: u32) -> Result<Option<LinkName>, NetlinkError> {
        match self.mirror.name(index) {
            Some(name) => Ok(Some(name)),
            None => Ok(self.rtnl.link_by_index(index)?.map(|link| link.name)),
        }
    }
}

fn refuse(errno: Errno, text: impl Into<Box<str>>) -> NetlinkError {
    NetlinkError::new("apply", Fault::Refused, errno, text)
}

/// What a dump of routes holds.
#[derive(Default)]
struct Found {
    fresh: FreshRoutes,
    /// Places with more than one route.
    crowded: Vec<Key>,
    /// Next hop objects used by routes outside the networks.
    used: HashSet<u32>,
}

#[cfg(test)]
mod tests;
