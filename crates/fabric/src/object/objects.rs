//! A set of objects by identity.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::iter::FusedIterator;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Index;

use super::{Address, Forwarding, Key, LinkName, Mac, Neighbour, Object, ROUTE_PROTOCOL, Route};

/// A set of objects by identity: a desired state or an observed one, in the order of [`Key`].
///
/// It is a map from [`Key`] to [`Object`] that keeps no keys: they follow from the objects, of which a node with thousands
/// of peers has three for each, twice.
#[derive(Clone, Default)]
pub struct Objects {
    links: BTreeMap<LinkName, Object>,
    /// INVARIANT: no links.
    others: BTreeSet<Entry>,
}

/// An object that is not a link, ordered by its key, and equal to any other with that key.
#[derive(Clone)]
struct Entry(Object);

impl Entry {
    /// Something with this key; nothing else of it is ever looked at. `None` for links.
    fn probe(key: &Key) -> Option<Entry> {
        const NO_MAC: Mac = Mac([0; 6]);
        const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Some(Entry(match *key {
            Key::Link(_) => return None,
            Key::Address(link, address) => Object::Address(Address { link, address }),
            Key::Neighbour(link, address) => Object::Neighbour(Neighbour {
                link,
                address,
                mac: NO_MAC,
            }),
            Key::Forwarding(link, mac) => Object::Forwarding(Forwarding {
                link,
                mac,
                remote: NOWHERE,
            }),
            Key::Route(destination, metric) => Object::Route(Route {
                destination,
                metric,
                gateway: None,
                link: LinkName::NONE,
                onlink: false,
                protocol: ROUTE_PROTOCOL,
            }),
        }))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> Ordering {
        match (&self.0, &other.0) {
            (Object::Address(a), Object::Address(b)) => (a.link, a.address).cmp(&(b.link, b.address)),
            (Object::Neighbour(a), Object::Neighbour(b)) => (a.link, a.address).cmp(&(b.link, b.address)),
            (Object::Forwarding(a), Object::Forwarding(b)) => (a.link, a.mac).cmp(&(b.link, b.mac)),
            (Object::Route(a), Object::Route(b)) => (a.destination, a.metric).cmp(&(b.destination, b.metric)),
            (a, b) => a.key().cmp(&b.key()),
        }
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Objects {
    /// None.
    pub fn new() -> Objects {
        Objects::default()
    }

    /// The object of a key.
    pub fn get(&self, key: &Key) -> Option<&Object> {
        match Entry::probe(key) {
            Some(probe) => self.others.get(&probe).map(|entry| &entry.0),
            None => self.links.get(&key.link()?),
        }
    }

    /// Whether there is an object of this key.
    pub fn contains_key(&self, key: &Key) -> bool {
        self.get(key).is_some()
    }

    /// Puts an object in the place of its key; what was there before.
    pub fn insert(&mut self, object: Object) -> Option<Object> {
        match &object {
            Object::Link(link) => self.links.insert(link.name, object),
            _ => self.others.replace(Entry(object)).map(|entry| entry.0),
        }
    }

    /// Takes the object of a key out.
    pub fn remove(&mut self, key: &Key) -> Option<Object> {
        match Entry::probe(key) {
            Some(probe) => self.others.take(&probe).map(|entry| entry.0),
            None => self.links.remove(&key.link()?),
        }
    }

    /// Keeps what `keep` says.
    pub fn retain(&mut self, mut keep: impl FnMut(&Object) -> bool) {
        self.links.retain(|_, object| keep(object));
        self.others.retain(|entry| keep(&entry.0));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.links.len() + self.others.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keys and objects, ascending.
    pub fn iter(&self) -> impl FusedIterator<Item = (Key, &Object)> + Clone {
        self.values().map(|object| (object.key(), object))
    }

    /// Keys, ascending.
    pub fn keys(&self) -> impl FusedIterator<Item = Key> + Clone + '_ {
        self.values().map(Object::key)
    }

    /// Objects in the order of their keys.
    pub fn values(&self) -> impl FusedIterator<Item = &Object> + Clone {
        self.links
            .values()
            .chain(self.others.iter().map(|entry| &entry.0))
    }

    /// The objects themselves, in the order of their keys.
    pub fn into_values(self) -> impl Iterator<Item = Object> {
        self.links
            .into_values()
            .chain(self.others.into_iter().map(|entry| entry.0))
    }

    /// The links, by name.
    pub fn links(&self) -> impl Iterator<Item = &Object> {
        self.links.values()
    }

    /// Keys and objects from a key on, ascending; links are not among them unless the key is a link's.
    pub fn range_from<'a>(&'a self, first: &Key) -> impl Iterator<Item = (Key, &'a Object)> + use<'a> {
        let probe = Entry::probe(first);
        let links = first
            .link()
            .filter(|_| probe.is_none())
            .map(|first| self.links.range(first..));
        let links = links.into_iter().flatten().map(|(_, object)| object);
        let (from, all) = match probe {
            Some(probe) => (Some(self.others.range(probe..)), None),
            None => (None, Some(self.others.iter())),
        };
        let others = from.into_iter().flatten().chain(all.into_iter().flatten());
        links
            .chain(others.map(|entry| &entry.0))
            .map(|object| (object.key(), object))
    }

    /// Builds it anew in one go, which makes its nodes full: after thousands of single insertions they are half empty.
    pub fn compact(&mut self) {
        self.others = std::mem::take(&mut self.others).into_iter().collect();
    }
}

impl PartialEq for Objects {
    fn eq(&self, other: &Objects) -> bool {
        self.len() == other.len() && self.values().eq(other.values())
    }
}

impl Eq for Objects {}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl FromIterator<Object> for Objects {
    fn from_iter<T: IntoIterator<Item = Object>>(objects: T) -> Objects {
        let mut out = Objects::new();
        out.extend(objects);
        out
    }
}

impl Extend<Object> for Objects {
    fn extend<T: IntoIterator<Item = Object>>(&mut self, objects: T) {
        for object in objects {
            self.insert(object);
        }
    }
}

impl<const N: usize> From<[Object; N]> for Objects {
    fn from(objects: [Object; N]) -> Objects {
        objects.into_iter().collect()
    }
}

impl Index<&Key> for Objects {
    type Output = Object;

    /// # Panics
    /// Where there is no such object: for tests.
    fn index(&self, key: &Key) -> &Object {
        match self.get(key) {
            Some(object) => object,
            None => unreachable!("there is no {key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Link, LinkKind};

    fn link(name: &str) -> LinkName {
        LinkName::new(name).unwrap()
    }

    fn device(name: &str) -> Object {
        let kind = LinkKind::Other("".into());
        Object::Link(Box::new(Link {
            name: link(name),
            kind,
            mac: None,
            mtu: 1,
            up: true,
        }))
    }

    fn neighbour(on: &str, address: &str) -> Object {
        Object::Neighbour(Neighbour {
            link: link(on),
            address: address.parse().unwrap(),
            mac: Mac([0, 0, 0, 0, 0, 9]),
        })
    }

    fn all() -> Vec<Object> {
        let route = |net: &str, metric| {
            Object::Route(Route {
                destination: net.parse().unwrap(),
                metric,
                gateway: None,
                link: link("b"),
                onlink: false,
                protocol: 4,
            })
        };
        let mac = |last| Mac([0, 0, 0, 0, 0, last]);
        let forwarding = |on: &str, last| {
            let remote = "192.0.2.1".parse().unwrap();
            Object::Forwarding(Forwarding {
                link: link(on),
                mac: mac(last),
                remote,
            })
        };
        let address = |on: &str, net: &str| {
            Object::Address(Address {
                link: link(on),
                address: net.parse().unwrap(),
            })
        };
        vec![
            route("10.1.0.0/16", 5),
            route("10.1.0.0/16", 0),
            route("10.1.0.0/24", 0),
            route("fd00::/64", 0),
            forwarding("b", 1),
            forwarding("a", 2),
            neighbour("b", "10.1.1.1"),
            neighbour("b", "fd00::1"),
            neighbour("a", "10.1.1.2"),
            address("b", "10.1.0.1/32"),
            address("a", "10.1.0.1/24"),
            device("b"),
            device("a"),
        ]
    }

    #[test]
    fn objects_when_filled_in_any_order_then_as_a_map_by_key() {
        let objects: Objects = all().into_iter().collect();
        let map: BTreeMap<Key, Object> = all().into_iter().map(|object| (object.key(), object)).collect();
        let pairs: Vec<(Key, Object)> = objects
            .iter()
            .map(|(key, object)| (key, object.clone()))
            .collect();
        assert_eq!(pairs, map.clone().into_iter().collect::<Vec<_>>());
        assert_eq!(
            objects.clone().into_values().collect::<Vec<_>>(),
            map.values().cloned().collect::<Vec<_>>()
        );
        assert_eq!(objects.len(), map.len());
        for key in map.keys() {
            assert_eq!(objects.get(key), map.get(key));
            let from: Vec<Key> = objects.range_from(key).map(|(key, _)| key).collect();
            assert_eq!(from, map.range(key..).map(|(key, _)| *key).collect::<Vec<_>>());
        }
    }

    #[test]
    fn objects_when_one_is_put_in_anothers_place_then_the_content_is_the_new_one() {
        let mut objects: Objects = all().into_iter().collect();
        let Object::Route(mut route) = all()[0] else {
            panic!()
        };
        route.protocol = 241;
        assert_eq!(objects.insert(Object::Route(route)), Some(all()[0].clone()));
        assert_ne!(objects, all().into_iter().collect::<Objects>());
        assert_eq!(objects[&all()[0].key()], Object::Route(route));
        objects.compact();
        assert_eq!(objects.remove(&all()[0].key()), Some(Object::Route(route)));
        assert_eq!(objects.remove(&all()[12].key()), Some(all()[12].clone()));
        assert_eq!(objects.len(), all().len() - 2);
    }

    #[test]
    fn objects_when_some_are_not_kept_then_the_others_stay() {
        let mut objects: Objects = all().into_iter().collect();
        assert!(!objects.is_empty() && Objects::new().is_empty());
        objects.retain(|object| !object.key().is_route() && object.key() != device("a").key());
        let expected: Objects = all().into_iter().skip(4).take(8).collect();
        assert_eq!(objects, expected);
        assert_eq!(objects.links().cloned().collect::<Vec<_>>(), [device("b")]);
        let text = format!("{:?}", Objects::from([device("b")]));
        assert!(text.starts_with("{Link(\"b\"): Link("), "{text}");
    }

    #[test]
    fn entry_when_of_the_same_key_then_equal_whatever_else_is_in_it() {
        let one = Entry(neighbour("a", "10.1.1.1"));
        let Object::Neighbour(mut changed) = neighbour("a", "10.1.1.1") else {
            panic!()
        };
        changed.mac = Mac([1; 6]);
        assert!(one == Entry(Object::Neighbour(changed)));
        let other = Entry(neighbour("a", "10.1.1.2"));
        assert!(one != other);
        assert_eq!(one.partial_cmp(&other), Some(Ordering::Less));
        assert!(Entry::probe(&device("a").key()).is_none());
    }
}
