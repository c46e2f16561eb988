//! The objects of a kernel in memory and the rules by which they change.

use fabric::object::{Address, Family, Key, Link, LinkName, Mac, Object, Objects, Op, Route};
use ipnet::IpNet;
use rustix::io::Errno;

use crate::kind;

/// What the kernel tells after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notice {
    /// This key's object is this now, or gone.
    Set(Key, Option<Box<Object>>),
    /// Nothing of its own; but who knows the rules knows that routes through this link may be gone.
    Silent(LinkName),
    /// A route that no plan makes changed.
    OtherRoute(IpNet),
    /// A link's carrier came or went: the link itself is what it was.
    Carrier,
}

#[derive(Debug, Default)]
pub(super) struct State {
    objects: Objects,
    /// Devices made so far; numbers hardware addresses.
    made: u32,
}

impl State {
    pub(super) fn objects(&self) -> &Objects {
        &self.objects
    }

    fn link(&self, name: LinkName) -> Option<&Link> {
        match self.objects.get(&Key::Link(name)) {
            Some(Object::Link(link)) => Some(link),
            _ => None,
        }
    }

    pub(super) fn is_made(&self, name: LinkName) -> bool {
        self.link(name).is_some_and(|link| link.kind.is_made())
    }

    pub(super) fn has_entries(&self, name: LinkName) -> bool {
        self.link(name).is_some_and(|link| link.kind.has_entries())
    }

    fn links(&self) -> impl Iterator<Item = &Link> {
        self.objects.values().filter_map(Object::as_link)
    }

    /// Carries out one operation, or refuses it; says what is told of it.
    pub(super) fn execute(&mut self, op: &Op) -> Result<Vec<Notice>, Errno> {
        let mut told = Vec::new();
        match op {
            Op::Add(Object::Link(link)) => self.add_link(link, &mut told)?,
            Op::Change {
                to: Object::Link(link),
                ..
            } => self.change_link(link, &mut told)?,
            Op::Remove(Object::Link(link)) => {
                if self.link(link.name).is_none() {
                    return Err(Errno::NODEV);
                }
                self.remove_link(link.name, &mut told);
            }
            Op::Add(object) => self.put(object, true, &mut told)?,
            Op::Change { to, .. } => self.put(to, false, &mut told)?,
            Op::Remove(object) => self.remove(object, &mut told)?,
        }
        Ok(told)
    }

    fn set(&mut self, key: Key, object: Option<Object>, told: &mut Vec<Notice>) {
        told.push(Notice::Set(key, object.clone().map(Box::new)));
        match object {
            Some(object) => self.objects.insert(object),
            None => self.objects.remove(&key),
        };
    }

    fn add_link(&mut self, wanted: &Link, told: &mut Vec<Notice>) -> Result<(), Errno> {
        if self.link(wanted.name).is_some() {
            return Err(Errno::EXIST);
        }
        let mut link = wanted.clone();
        let lower = link.kind.lower().and_then(|lower| self.link(lower));
        kind::complete(&mut link.kind, link.mtu, lower)?;
        if self.links().any(|other| other.kind.excludes(&link.kind)) {
            return Err(Errno::EXIST);
        }
        self.made += 1;
        if kind::has_mac(&link.kind) {
            let [a, b, c, d] = self.made.to_be_bytes();
            link.mac.get_or_insert(Mac([0x02, 0xff, a, b, c, d]));
        }
        self.set(Key::Link(link.name), Some(Object::Link(Box::new(link))), told);
        Ok(())
    }

    fn change_link(&mut self, wanted: &Link, told: &mut Vec<Notice>) -> Result<(), Errno> {
        let mut link = self.link(wanted.name).ok_or(Errno::NODEV)?.clone();
        kind::become_like(&mut link.kind, &wanted.kind)?;
        let went_down = link.up && !wanted.up;
        link.mac = wanted.mac.or(link.mac);
        link.mtu = wanted.mtu;
        link.up = wanted.up;
        let name = link.name;
        self.set(Key::Link(name), Some(Object::Link(Box::new(link))), told);
        if went_down {
            self.take_down(name, told);
        }
        Ok(())
    }

    /// What goes with the state of a link: neighbours, IPv6 addresses and routes with a word, IPv4 routes without.
    fn take_down(&mut self, name: LinkName, told: &mut Vec<Notice>) {
        for key in self.keys_on(name) {
            match key {
                Key::Neighbour(..) => self.set(key, None, told),
                Key::Address(_, address) if Family::of_net(address) == Family::V6 => {
                    self.set(key, None, told)
                }
                Key::Route(destination, _) if Family::of_net(destination) == Family::V6 => {
                    self.set(key, None, told);
                }
                Key::Route(..) => {
                    self.objects.remove(&key);
                }
                Key::Link(_) | Key::Address(..) | Key::Forwarding(..) => {}
            }
        }
        told.push(Notice::Silent(name));
    }

    /// The entries of a device are told of before the device; its IPv4 routes are not told of.
    fn remove_link(&mut self, name: LinkName, told: &mut Vec<Notice>) {
        let above: Vec<LinkName> = self
            .links()
            .filter(|link| link.kind.lower() == Some(name))
            .map(|link| link.name)
            .collect();
        for upper in above {
            self.remove_link(upper, told);
        }
        for key in self.keys_on(name) {
            match key {
                Key::Route(destination, _) if Family::of_net(destination) == Family::V4 => {
                    self.objects.remove(&key);
                }
                Key::Link(_) => {}
                _ => self.set(key, None, told),
            }
        }
        told.push(Notice::Silent(name));
        self.set(Key::Link(name), None, told);
    }

    fn keys_on(&self, name: LinkName) -> Vec<Key> {
        self.objects
            .iter()
            .filter(|(_, object)| object.link() == name)
            .map(|(key, _)| key)
            .collect()
    }

    fn put(&mut self, object: &Object, exclusive: bool, told: &mut Vec<Notice>) -> Result<(), Errno> {
        let key = object.key();
        if let Object::Route(route) = object
            && route.is_unreachable()
        {
            if exclusive && self.objects.contains_key(&key) {
                return Err(Errno::EXIST);
            }
            self.set(key, Some(object.clone()), told);
            return Ok(());
        }
        let link = self.link(object.link()).ok_or(Errno::NODEV)?;
        match object {
            Object::Link(_) => return Err(Errno::INVAL),
            Object::Address(_) if self.objects.contains_key(&key) => return Err(Errno::EXIST),
            Object::Address(_) | Object::Neighbour(_) => {}
            Object::Forwarding(_) if !link.kind.has_entries() => return Err(Errno::OPNOTSUPP),
            Object::Forwarding(_) => {}
            Object::Route(route) => {
                self.check_route(route, link)?;
                if exclusive && self.objects.contains_key(&key) {
                    return Err(Errno::EXIST);
                }
            }
        }
        self.set(key, Some(object.clone()), told);
        Ok(())
    }

    fn check_route(&self, route: &Route, link: &Link) -> Result<(), Errno> {
        if !link.up {
            return Err(Errno::NETDOWN);
        }
        let is_own =
            |object: &Object| matches!(object, Object::Address(a) if Some(a.address.addr()) == route.gateway);
        if self.objects.values().any(is_own) {
            return Err(Errno::INVAL);
        }
        let Some(gateway) = route.gateway.filter(|_| !route.onlink) else {
            return Ok(());
        };
        let on_link = |object: &Object| matches!(object, Object::Address(a) if a.link == link.name && a.address.contains(&gateway));
        if self.objects.values().any(on_link) {
            Ok(())
        } else {
            Err(Errno::NETUNREACH)
        }
    }

    fn remove(&mut self, object: &Object, told: &mut Vec<Notice>) -> Result<(), Errno> {
        let key = object.key();
        let there = self.objects.get(&key);
        match object {
            Object::Address(_) if there.is_none() => return Err(Errno::ADDRNOTAVAIL),
            // The kernel deletes the route that is described, not the one that has its place.
            Object::Route(_) if there != Some(object) => return Err(Errno::SRCH),
            _ if there.is_none() => return Err(Errno::NOENT),
            _ => {}
        }
        self.set(key, None, told);
        if let Object::Address(address) = object {
            self.forsake(address, told);
        }
        Ok(())
    }

    /// With its last IPv4 address a link loses its IPv4 routes.
    fn forsake(&mut self, gone: &Address, told: &mut Vec<Notice>) {
        let is_v4 = |key: &Key| match key {
            Key::Address(_, net) | Key::Route(net, _) => Family::of_net(*net) == Family::V4,
            _ => false,
        };
        let on_link = self.keys_on(gone.link);
        if Family::of_net(gone.address) == Family::V6
            || on_link
                .iter()
                .any(|key| matches!(key, Key::Address(..)) && is_v4(key))
        {
            return;
        }
        for key in on_link
            .iter()
            .filter(|key| matches!(key, Key::Route(..)) && is_v4(key))
        {
            self.objects.remove(key);
        }
        told.push(Notice::Silent(gone.link));
    }
}
