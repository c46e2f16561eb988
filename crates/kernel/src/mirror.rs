//! The mirror: the objects of interest as last seen, kept by notifications, each at a cost independent of how many there
//! are.
//!
//! INVARIANT: the mirror may believe that an object is missing or different when it is not (an operation that finds it
//! there corrects that), but never for long the other way round: every change by others is followed by a notification
//! or by a request for [`Scope`] to be observed.

mod nexthops;
mod notice;
mod seen;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use fabric::object::{Key, LinkName, Mac, Object, Objects, Route};
use ipnet::{IpNet, Ipv4Net};

use crate::host::{Changed, Drained, Interest, Scope};
use crate::kind::ObservedKind;
use crate::rtnl::{ObservedLink, ObservedNexthop};

/// Who changes the mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Ourselves, or a dump: nobody has to be told.
    Own,
    /// Somebody else, by port id, or the kernel.
    Foreign(Option<u32>),
}

/// Any link of the namespace: of interest or not, routes go through it and indices mean it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    name: LinkName,
    up: bool,
    carrier: bool,
    /// Of a kind that plans make.
    made: bool,
    /// Neighbours and forwarding entries on it are mirrored.
    entries: bool,
}

impl Known {
    fn of(link: &ObservedLink) -> Known {
        Known {
            name: link.name,
            up: link.is_up(),
            carrier: link.has_carrier(),
            made: link.made_of.is_some(),
            entries: link.made_of.as_ref().is_some_and(ObservedKind::has_entries),
        }
    }
}

/// A next hop object, and how many mirrored routes use it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nexthop {
    pub(crate) seen: ObservedNexthop,
    pub(crate) uses: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Mirror {
    objects: Objects,
    watched: HashSet<LinkName>,
    networks: Vec<IpNet>,
    links: HashMap<u32, Known>,
    indices: HashMap<LinkName, u32>,
    /// What links were called when they became of interest, that are called otherwise now: what lies on them lies on the same
    /// link as before.
    renamed: HashMap<u32, LinkName>,
    /// Mirrored routes per link: most links have none, and their end must cost nothing.
    routes_on: HashMap<LinkName, u32>,
    nexthops: BTreeMap<u32, Nexthop>,
    nexthops_on: HashMap<u32, u32>,
    /// Next hop object of each mirrored route that has one.
    route_nexthop: BTreeMap<(IpNet, u32), u32>,
    /// Places of which the kernel was seen to hold several routes; the mirror shows the one it takes.
    crowded: HashSet<(IpNet, u32)>,
    /// A route went from a crowded place: what is now taken there is not known.
    uncovered: bool,
    /// What objects were before the notifications being read, and who changed them last.
    touched: BTreeMap<Key, (Option<Object>, Option<u32>)>,
    news: Drained,
    /// A link we are changing, and what was to be observed before we began.
    own: Option<(LinkName, Option<Scope>)>,
}

/// Where blackholes and their like are shown to lead.
pub(crate) const LOOPBACK: &str = "lo";

impl Mirror {
    pub(crate) fn set_interest(&mut self, interest: Interest) {
        self.watched = interest.links.into_iter().collect();
        self.networks = interest.networks;
        // Whoever says anew what is of interest speaks of the present names.
        let former: Vec<LinkName> = self.renamed.drain().map(|(_, name)| name).collect();
        for name in former {
            self.forget_carried(name);
        }
        let outside: Vec<Key> = self.objects.keys().filter(|key| !self.is_wanted(key)).collect();
        for key in outside {
            self.set(key, None, Origin::Own);
        }
    }

    /// Builds the large maps anew, which makes their nodes full.
    pub(crate) fn compact(&mut self) {
        self.objects.compact();
        self.nexthops = std::mem::take(&mut self.nexthops).into_iter().collect();
        self.route_nexthop = std::mem::take(&mut self.route_nexthop).into_iter().collect();
    }

    fn is_wanted(&self, key: &Key) -> bool {
        match key {
            Key::Route(destination, _) => self.in_networks(*destination),
            other => other.link().is_some_and(|link| self.watched.contains(&link)),
        }
    }

    pub(crate) fn in_networks(&self, destination: IpNet) -> bool {
        self.networks.iter().any(|network| network.contains(&destination))
    }

    pub(crate) fn watched(&self) -> Vec<LinkName> {
        self.watched.iter().copied().collect()
    }

    pub(crate) fn is_watched(&self, link: LinkName) -> bool {
        self.watched.contains(&link)
    }

    pub(crate) fn objects(&self) -> &Objects {
        &self.objects
    }

    pub(crate) fn index(&self, link: LinkName) -> Option<u32> {
        self.indices.get(&link).copied()
    }

    fn known(&self, link: LinkName) -> Option<&Known> {
        self.index(link).and_then(|index| self.links.get(&index))
    }

    pub(crate) fn has_carrier(&self, link: LinkName) -> Option<bool> {
        self.known(link).map(|known| known.carrier)
    }

    /// Whether the link is of a kind that plans make.
    fn is_made(&self, link: LinkName) -> bool {
        self.known(link).is_some_and(|known| known.made)
    }

    /// Whether neighbours and forwarding entries of the link are mirrored, if the link is.
    pub(crate) fn has_entries(&self, link: LinkName) -> bool {
        self.known(link).is_some_and(|known| known.entries)
    }

    pub(crate) fn name(&self, index: u32) -> Option<LinkName> {
        self.links.get(&index).map(|known| known.name)
    }

    /// The name by which a link is known to what lies on it.
    fn name_below(&self, index: u32) -> Option<LinkName> {
        self.renamed.get(&index).copied().or_else(|| self.name(index))
    }

    /// Leaves out devices that are shown to lie on a link of this name: on which one is to be seen anew.
    fn forget_carried(&mut self, name: LinkName) {
        let lies_there = |object: &Object| {
            object
                .as_link()
                .is_some_and(|link| link.kind.lower() == Some(name))
        };
        let carried: Vec<Key> = self
            .objects
            .iter()
            .filter(|(key, object)| key.is_link() && lies_there(object))
            .map(|(key, _)| key)
            .collect();
        for key in carried {
            self.set(key, None, Origin::Own);
        }
    }

    pub(crate) fn has_routes(&self, link: LinkName) -> bool {
        self.routes_on.contains_key(&link)
    }

    /// Something to be told is waiting.
    pub(crate) fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    pub(crate) fn want(&mut self, scope: Scope) {
        self.news.want(scope);
    }

    /// Until [`Mirror::end_own`], what the kernel tells of this link without naming a sender is our doing.
    pub(crate) fn begin_own(&mut self, link: LinkName) {
        self.own = Some((link, self.news.resync));
    }

    /// It is we who are changing this link.
    fn is_own(&self, link: LinkName) -> bool {
        self.own.is_some_and(|(own, _)| own == link)
    }

    pub(crate) fn end_own(&mut self) {
        if let Some((link, before)) = self.own.take()
            && self.news.resync == Some(Scope::Link(link))
        {
            self.news.resync = before;
        }
    }

    /// A route was seen beside another of the same destination and metric.
    pub(crate) fn set_crowded(&mut self, key: Key) {
        if let Key::Route(destination, metric) = key {
            self.crowded.insert((destination, metric));
        }
    }

    fn is_crowded(&self, key: &Key) -> bool {
        matches!(key, Key::Route(destination, metric) if self.crowded.contains(&(*destination, *metric)))
    }

    /// All routes of a family are about to be seen: what is crowded will be seen too.
    pub(crate) fn forget_crowded(&mut self, v4: bool) {
        self.crowded
            .retain(|(destination, _)| destination.addr().is_ipv4() != v4);
    }

    /// Whether a crowded place lost the route that was known since the last call.
    pub(crate) fn take_uncovered(&mut self) -> bool {
        std::mem::take(&mut self.uncovered)
    }

    /// Ends a round of notifications: what is still different from before it goes to the news.
    pub(crate) fn settle(&mut self) {
        if self.take_uncovered() {
            self.want(Scope::All);
        }
        let own = self.own.map(|(link, _)| link);
        // What was told and not yet taken is told once.
        let told: HashMap<Key, usize> = self
            .news
            .changed
            .iter()
            .enumerate()
            .map(|(at, changed)| (changed.key, at))
            .collect();
        for (key, (before, by)) in std::mem::take(&mut self.touched) {
            if (own.is_some() && key.link() == own && by.is_none())
                || self.objects.get(&key) == before.as_ref()
            {
                continue;
            }
            match told.get(&key).and_then(|at| self.news.changed.get_mut(*at)) {
                Some(known) => known.by = by,
                None => self.news.changed.push(Changed { key, by }),
            }
        }
    }

    pub(crate) fn take_news(&mut self) -> Drained {
        std::mem::take(&mut self.news)
    }

    /// Sets or removes one object; all changes of objects come through here.
    pub(crate) fn set(&mut self, key: Key, object: Option<Object>, origin: Origin) {
        let new_link = object.as_ref().map(Object::link);
        let unchanged = self.objects.get(&key) == object.as_ref();
        if unchanged {
            return;
        }
        let old = match object {
            Some(object) => self.objects.insert(object),
            None => self.objects.remove(&key),
        };
        if let Key::Route(destination, metric) = key {
            if let Some(link) = old.as_ref().map(Object::link) {
                decrement(&mut self.routes_on, &link);
            }
            match new_link {
                Some(link) => *self.routes_on.entry(link).or_default() += 1,
                None => {
                    self.uncovered |= self.crowded.remove(&(destination, metric));
                    self.set_route_nexthop((destination, metric), None);
                }
            }
        }
        if let Origin::Foreign(by) = origin {
            self.touched.entry(key).or_insert((old, None)).1 = by;
        }
    }

    pub(crate) fn set_route(&mut self, route: Route, nexthop: Option<u32>, origin: Origin) {
        self.set(
            Key::Route(route.destination, route.metric),
            Some(Object::Route(route)),
            origin,
        );
        self.set_route_nexthop((route.destination, route.metric), nexthop);
    }

    /// Takes note of a link, and mirrors it if it is of interest.
    pub(crate) fn set_link(&mut self, link: &ObservedLink, origin: Origin) {
        if let Some(stale) = self
            .indices
            .insert(link.name, link.index)
            .filter(|stale| *stale != link.index)
        {
            // The name went to another link before we heard of the end of the first.
            self.forget_all_on(stale, link.name, origin);
            self.links.remove(&stale);
        }
        self.links.insert(link.index, Known::of(link));
        // The name is another's now, or the link has it back.
        let before = self.renamed.len();
        self.renamed.retain(|_, name| *name != link.name);
        if self.renamed.len() != before {
            self.want(Scope::All);
        }
        if self.watched.contains(&link.name) {
            let object = link.to_object(|index| self.name_below(index));
            self.set(Key::Link(link.name), Some(Object::Link(Box::new(object))), origin);
        }
    }

    /// Forgets a link and everything on it, as the kernel does.
    pub(crate) fn forget_link(&mut self, index: u32, origin: Origin) {
        self.renamed.remove(&index);
        let Some(known) = self.links.remove(&index) else {
            return;
        };
        if self.indices.get(&known.name) == Some(&index) {
            self.indices.remove(&known.name);
            self.forget_all_on(index, known.name, origin);
        }
    }

    fn forget_all_on(&mut self, index: u32, name: LinkName, origin: Origin) {
        for key in self.keys_on(name) {
            self.set(key, None, origin);
        }
        if self.nexthops_on.remove(&index).is_some() {
            self.nexthops
                .retain(|_, nexthop| nexthop.seen.link != Some(index));
        }
    }

    /// Every mirrored key that hangs on a link, the link's own included.
    fn keys_on(&self, name: LinkName) -> Vec<Key> {
        let mut keys: Vec<Key> = [
            Section::Link,
            Section::Address,
            Section::Neighbour,
            Section::Forwarding,
        ]
        .into_iter()
        .flat_map(|section| self.section(section, name))
        .collect();
        if self.has_routes(name) {
            keys.extend(self.routes_through(name));
        }
        keys
    }

    fn routes_through(&self, name: LinkName) -> impl Iterator<Item = Key> + '_ {
        let through = move |object: &Object| object.link() == name;
        self.objects
            .range_from(&FIRST_ROUTE)
            .filter(move |(_, object)| through(object))
            .map(|(key, _)| key)
    }

    fn section(&self, section: Section, name: LinkName) -> Vec<Key> {
        let (first, is_in): (Key, fn(&Key) -> bool) = match section {
            Section::Link => (Key::Link(name), |key| matches!(key, Key::Link(_))),
            Section::Address => (Key::Address(name, FIRST_NET), |key| {
                matches!(key, Key::Address(..))
            }),
            Section::Neighbour => (Key::Neighbour(name, FIRST_IP), |key| {
                matches!(key, Key::Neighbour(..))
            }),
            Section::Forwarding => (Key::Forwarding(name, Mac([0; 6])), |key| {
                matches!(key, Key::Forwarding(..))
            }),
        };
        self.objects
            .range_from(&first)
            .map(|(key, _)| key)
            .take_while(|key| is_in(key) && key.link() == Some(name))
            .collect()
    }

    /// Whether a section of a link's objects is known to hold what is not in `fresh`.
    pub(crate) fn knows_more(&self, section: Section, name: LinkName, fresh: &Objects) -> bool {
        self.section(section, name)
            .iter()
            .any(|key| !fresh.contains_key(key))
    }

    /// Makes a section of a link's objects exactly `fresh`.
    pub(crate) fn replace_section(
        &mut self,
        section: Section,
        name: LinkName,
        fresh: Objects,
        origin: Origin,
    ) {
        let stale = self.section(section, name);
        self.replace(stale, fresh, origin);
    }

    fn replace(&mut self, known: Vec<Key>, fresh: Objects, origin: Origin) {
        for key in known {
            if !fresh.contains_key(&key) {
                self.set(key, None, origin);
            }
        }
        for object in fresh.into_values() {
            self.set(object.key(), Some(object), origin);
        }
    }

    /// Makes the routes of a family, or those of it through one link, exactly `fresh` (with their next hop objects).
    pub(crate) fn replace_routes(
        &mut self,
        v4: bool,
        through: Option<LinkName>,
        fresh: FreshRoutes,
        origin: Origin,
    ) {
        let of_family =
            |key: &Key| matches!(key, Key::Route(destination, _) if destination.addr().is_ipv4() == v4);
        if through.is_some() {
            // Whoever sees one link only cannot tell which of several is taken.
            self.uncovered |= fresh.iter().any(|(key, (route, _))| {
                self.is_crowded(key)
                    || self
                        .objects
                        .get(key)
                        .is_some_and(|known| known.link() != route.link)
            });
        }
        let stale: Vec<Key> = self
            .objects
            .range_from(&FIRST_ROUTE)
            .filter(|(key, object)| of_family(key) && through.is_none_or(|link| object.link() == link))
            .map(|(key, _)| key)
            .filter(|key| !fresh.contains_key(key))
            .collect();
        for key in stale {
            self.set(key, None, origin);
        }
        for (route, nexthop) in fresh.into_values() {
            self.set_route(route, nexthop, origin);
        }
    }

    /// Makes the links exactly `fresh`; what hung on others goes with them.
    pub(crate) fn replace_links(&mut self, fresh: &[ObservedLink]) {
        let indices: HashSet<u32> = fresh.iter().map(|link| link.index).collect();
        let stale: Vec<u32> = self
            .links
            .keys()
            .filter(|index| !indices.contains(index))
            .copied()
            .collect();
        for index in stale {
            self.forget_link(index, Origin::Own);
        }
        for link in fresh {
            self.rename(link, Origin::Own);
        }
        // Twice: a device may come before the link below it, whose name it wants.
        for link in fresh {
            self.set_link(link, Origin::Own);
        }
    }

    /// Forgets what hung on a link's former name; true when it had one.
    pub(crate) fn rename(&mut self, link: &ObservedLink, origin: Origin) -> bool {
        let before = self.links.get(&link.index).map(|known| known.name);
        let before = before.filter(|before| *before != link.name);
        let renamed = before.is_some();
        if let Some(before) = before {
            let first = self.renamed.get(&link.index).copied().unwrap_or(before);
            self.forget_link(link.index, origin);
            if self.watched.contains(&first) && link.made_of.is_none() {
                self.renamed.insert(link.index, first);
            }
        }
        self.links.entry(link.index).or_insert_with(|| Known::of(link));
        renamed
    }

    /// A watched device lies on the link of this name.
    fn carries_watched(&self, name: LinkName) -> bool {
        self.watched.iter().any(|link| {
            let object = self.objects.get(&Key::Link(*link)).and_then(Object::as_link);
            object.is_some_and(|object| object.kind.lower() == Some(name))
        })
    }
}

/// Routes with the number of the next hop object each uses.
pub(crate) type FreshRoutes = BTreeMap<Key, (Route, Option<u32>)>;

/// Kinds of objects that are listed per link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Link,
    Address,
    Neighbour,
    Forwarding,
}

const FIRST_IP: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const FIRST_NET: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));
const FIRST_ROUTE: Key = Key::Route(FIRST_NET, 0);

fn decrement<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, of: &K) {
    if let Some(count) = counts.get_mut(of) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(of);
        }
    }
}

#[cfg(test)]
mod tests;
