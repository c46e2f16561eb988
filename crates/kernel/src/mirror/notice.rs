//! What each notification means for the mirror.

use fabric::object::{Key, LinkName, Object, Route};
use ipnet::IpNet;

use crate::host::Scope;
use crate::nl::{Reply, flag};
use crate::rtnl::{
    AF_BRIDGE, ObservedAddress, ObservedLink, ObservedRoute, address, forwarding, link, neighbour, nexthop,
    route,
};

use super::{Mirror, Origin};

/// `RTM_NEWRULE`.
const RULE_NEW: u16 = 32;
/// `RTM_DELRULE`.
const RULE_DEL: u16 = 33;

impl Mirror {
    /// Takes in one notification.
    pub(crate) fn notice(&mut self, reply: &Reply<'_>) {
        let origin = Origin::Foreign(Some(reply.port).filter(|port| *port != 0));
        match reply.kind {
            link::NEW | link::DEL => {
                if let Some(seen) = link::read(reply) {
                    self.notice_link(&seen, reply.kind == link::NEW, origin);
                }
            }
            address::NEW | address::DEL => {
                if let Some(seen) = address::read(reply) {
                    self.notice_address(&seen, reply.kind == address::NEW, origin);
                }
            }
            neighbour::NEW | neighbour::DEL => self.notice_neighbour(reply, origin),
            route::NEW | route::DEL => {
                let Some(seen) = route::read(reply) else { return };
                if seen.is_main() {
                    self.notice_route(&seen, reply, origin);
                } else if seen.is_of_further_table() && !self.in_networks(seen.destination) {
                    self.note_way(&seen);
                }
            }
            // A rule may lead any packet another way.
            RULE_NEW | RULE_DEL => self.news.ways.note_all(),
            nexthop::NEW | nexthop::DEL => self.notice_nexthop(reply),
            _ => {}
        }
    }

    fn notice_link(&mut self, seen: &ObservedLink, is_new: bool, origin: Origin) {
        let before = self.links.get(&seen.index).copied();
        let name = before.map_or(seen.name, |known| known.name);
        let object = self.objects.get(&Key::Link(name)).cloned();
        if !is_new {
            self.underlay_may_have_changed(name);
            self.news.device_gone |= before.is_some_and(|known| known.made) && !self.is_own(name);
            self.forget_link(seen.index, origin);
            return;
        }
        let had_routes = self.has_routes(name);
        let carried = name != seen.name && self.carries_watched(name);
        if self.rename(seen, origin) {
            self.news.underlay_changed |= self.is_watched(name);
            if carried {
                self.want(Scope::All);
            } else if had_routes || self.is_watched(seen.name) {
                self.want(Scope::Link(seen.name));
            }
        }
        self.set_link(seen, origin);
        if before.is_none_or(|known| known.name != seen.name)
            || object.as_ref() != self.objects.get(&Key::Link(seen.name))
        {
            self.underlay_may_have_changed(seen.name);
        }
        // A link that goes down takes its IPv4 routes with it, without a word.
        let went_down = before.is_some_and(|known| known.up) && !seen.is_up();
        if went_down && (self.is_watched(seen.name) || self.has_routes(seen.name)) {
            self.want(Scope::Link(seen.name));
        }
    }

    fn underlay_may_have_changed(&mut self, link: LinkName) {
        self.news.underlay_changed |= self.is_watched(link) && !self.is_made(link);
    }

    fn notice_address(&mut self, seen: &ObservedAddress, is_new: bool, origin: Origin) {
        let Some(address) = self.address(seen) else { return };
        let key = Key::Address(address.link, address.address);
        // So do IPv4 routes when the last address of their link, or the one they prefer as a source, goes.
        if !is_new && address.address.addr().is_ipv4() && self.has_routes(address.link) {
            self.want(Scope::Link(address.link));
        }
        if !self.is_watched(address.link) {
            return;
        }
        let object = is_new.then_some(Object::Address(address));
        if self.objects.get(&key) != object.as_ref() {
            self.underlay_may_have_changed(address.link);
            self.set(key, object, origin);
        }
    }

    fn notice_neighbour(&mut self, reply: &Reply<'_>, origin: Origin) {
        let is_new = reply.kind == neighbour::NEW;
        if reply.body.first() == Some(&AF_BRIDGE) {
            let Some(seen) = forwarding::read(reply) else {
                return;
            };
            let Some(link) = self.name(seen.link).filter(|link| self.mirrors_neighbours(*link)) else {
                return;
            };
            let key = Key::Forwarding(link, seen.mac);
            let entry = self.forwarding(&seen).filter(|_| is_new);
            let other = match self.objects.get(&key) {
                Some(Object::Forwarding(known)) => known.remote != seen.remote,
                _ => false,
            };
            // The end of a destination that was replaced before says nothing about the present one.
            if is_new || !other {
                self.set(key, entry.map(Object::Forwarding), origin);
            }
        } else {
            let Some(seen) = neighbour::read(reply) else {
                return;
            };
            let Some(link) = self.name(seen.link).filter(|link| self.mirrors_neighbours(*link)) else {
                return;
            };
            let entry = self.neighbour(&seen).filter(|_| is_new);
            self.set(
                Key::Neighbour(link, seen.address),
                entry.map(Object::Neighbour),
                origin,
            );
        }
    }

    fn mirrors_neighbours(&self, link: LinkName) -> bool {
        self.is_watched(link) && self.has_entries(link)
    }

    fn notice_route(&mut self, seen: &ObservedRoute, reply: &Reply<'_>, origin: Origin) {
        if !self.in_networks(seen.destination) {
            self.note_way(seen);
            return;
        }
        let Some(fresh) = self.route(seen) else { return };
        let key = Key::Route(fresh.destination, fresh.metric);
        let known = match self.objects.get(&key) {
            Some(Object::Route(known)) => Some(*known),
            _ => None,
        };
        if reply.kind == route::DEL {
            match known {
                Some(known) if known == fresh => self.set(key, None, origin),
                // One of several of this key, or one leg of it: what is left cannot be known from this.
                Some(known) => self.want(Scope::Link(known.link).and(Scope::Link(fresh.link))),
                None => {}
            }
            return;
        }
        // The first of a place is replaced, but those behind it are spoken of in the same way.
        let replaces = reply.flags & flag::REPLACE != 0 && !self.is_crowded(&key);
        let same = |known: &Route| *known == fresh && self.nexthop_of(known) == seen.nexthop;
        if let Some(known) = known.filter(|known| !same(known) && !replaces) {
            // A second one beside the first: only the kernel knows which of them is taken.
            self.set_crowded(key);
            self.want(Scope::Link(known.link).and(Scope::Link(fresh.link)));
            if reply.flags & flag::APPEND != 0 && !seen.compound {
                return;
            }
        }
        self.set_route(fresh, seen.nexthop, origin);
    }

    /// Routes to link-local addresses come with every link that comes up; nothing is chosen by them.
    fn note_way(&mut self, seen: &ObservedRoute) {
        if !is_link_local(seen.destination) {
            self.news.ways.note(seen.destination);
        }
    }

    fn notice_nexthop(&mut self, reply: &Reply<'_>) {
        let Some(seen) = nexthop::read(reply) else { return };
        let known = self.nexthop(seen.id).copied();
        if reply.kind == nexthop::NEW {
            self.set_nexthop(seen);
        } else {
            self.forget_nexthop(seen.id);
        }
        // Its routes go, or change, without a word.
        if let Some(known) = known.filter(|k| k.uses > 0 && (reply.kind == nexthop::DEL || k.seen != seen)) {
            let scope = known
                .seen
                .link
                .and_then(|index| self.name(index))
                .map_or(Scope::All, Scope::Link);
            self.want(scope);
        }
    }
}

fn is_link_local(destination: IpNet) -> bool {
    match destination {
        IpNet::V6(net) => net.addr().is_unicast_link_local() || net.addr().is_multicast(),
        IpNet::V4(_) => false,
    }
}
