//! The state as data.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fabric::object::LinkName;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Format of what is written; a file of another one is not read.
const FORMAT: u32 = 1;
/// Former networks and devices kept: more than any host has seen.
const MOST_NAMES: usize = 64;

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    format: u32,
    /// The subnet file of the daemon whose state this is, for a human who looks at the folder.
    pub subnet_file: String,
    networks: Vec<IpNet>,
    links: Vec<String>,
    former_leases: BTreeMap<IpNet, Vec<IpAddr>>,
    /// Key text of the own lease: the subnet to ask for again, which the registry gives if nobody else has it.
    pub lease: Option<String>,
}

impl Default for State {
    fn default() -> State {
        State {
            format: FORMAT,
            subnet_file: String::new(),
            networks: Vec::new(),
            links: Vec::new(),
            former_leases: BTreeMap::new(),
            lease: None,
        }
    }
}

impl State {
    pub(super) fn check_format(&self) -> Result<(), String> {
        if self.format == FORMAT {
            Ok(())
        } else {
            Err(format!("format {}, expected {FORMAT}", self.format))
        }
    }

    /// Networks this host has been part of, the current one included.
    pub fn former_networks(&self) -> impl Iterator<Item = IpNet> {
        self.networks.iter().copied()
    }

    /// Records networks.
    pub fn add_networks(&mut self, networks: impl IntoIterator<Item = IpNet>) {
        add(
            &mut self.networks,
            networks.into_iter().map(|network| network.trunc()),
        );
    }

    /// Devices that were made here, the current ones included.
    pub fn former_links(&self) -> impl Iterator<Item = LinkName> {
        self.links.iter().filter_map(|name| LinkName::new(name))
    }

    /// Records devices.
    pub fn add_links(&mut self, links: impl IntoIterator<Item = LinkName>) {
        add(&mut self.links, links.into_iter().map(|link| link.to_string()));
    }

    /// Destinations that leases asked routes for, with their next hops: what allows to remove a predecessor's route.
    pub fn former_leases(&self) -> BTreeMap<IpNet, Vec<IpAddr>> {
        self.former_leases.clone()
    }

    /// Records what leases ask for now (destination and next hop), in place of what they asked for before.
    pub fn set_leases(&mut self, leases: impl IntoIterator<Item = (IpNet, IpAddr)>) {
        self.former_leases.clear();
        for (destination, hop) in leases {
            let hops = self.former_leases.entry(destination).or_default();
            if !hops.contains(&hop) {
                hops.push(hop);
            }
        }
    }

    /// Adds what was remembered before this began.
    pub(super) fn add_earlier(&mut self, earlier: State) {
        let later = std::mem::replace(self, earlier);
        add(&mut self.networks, later.networks.into_iter());
        add(&mut self.links, later.links.into_iter());
        for (destination, hops) in later.former_leases {
            add(
                self.former_leases.entry(destination).or_default(),
                hops.into_iter(),
            );
        }
        self.lease = later.lease.or(self.lease.take());
        self.subnet_file = later.subnet_file;
    }
}

/// Appends what is not there yet and forgets the oldest beyond the bound.
fn add<T: PartialEq>(known: &mut Vec<T>, news: impl Iterator<Item = T>) {
    for item in news {
        if !known.contains(&item) {
            known.push(item);
        }
    }
    if known.len() > MOST_NAMES {
        known.drain(..known.len() - MOST_NAMES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(n: usize) -> IpNet {
        format!("10.{}.{}.0/24", n / 256, n % 256).parse().unwrap()
    }

    #[test]
    fn state_when_names_are_added_then_each_once_and_the_oldest_go_beyond_the_bound() {
        let mut state = State::default();
        let odd: IpNet = "10.5.0.7/16".parse().unwrap();
        state.add_networks([odd, odd.trunc(), net(1)]);
        assert_eq!(state.former_networks().collect::<Vec<_>>(), [odd.trunc(), net(1)]);
        let mut state = State::default();
        state.add_networks((0..MOST_NAMES).map(net));
        assert_eq!(state.former_networks().next(), Some(net(0)));
        state.add_networks([net(100), net(101)]);
        let known: Vec<IpNet> = state.former_networks().collect();
        assert_eq!(
            (known.len(), known[0], known[MOST_NAMES - 1]),
            (MOST_NAMES, net(2), net(101))
        );
        let link = LinkName::new("flannel.1").unwrap();
        state.add_links([link, link]);
        assert_eq!(state.former_links().collect::<Vec<_>>(), [link]);
        assert!(state.check_format().is_ok());
        state.format += 1;
        assert!(
            state
                .check_format()
                .unwrap_err()
                .starts_with("format 2, expected 1")
        );
    }

    #[test]
    fn leases_when_set_then_in_place_of_those_before_and_what_was_earlier_is_added() {
        let hop = |n: u8| IpAddr::from([10, 5, n, 0]);
        let mut later = State::default();
        later.set_leases([(net(9), hop(9))]);
        later.set_leases([
            (net(1), hop(1)),
            (net(1), hop(1)),
            (net(1), hop(2)),
            (net(2), hop(2)),
        ]);
        let expected = BTreeMap::from([(net(1), vec![hop(1), hop(2)]), (net(2), vec![hop(2)])]);
        assert_eq!(later.former_leases(), expected);
        later.subnet_file = "/later".to_owned();
        later.add_networks([net(1)]);
        let mut earlier = State {
            lease: Some("10.5.1.0-24".to_owned()),
            subnet_file: "/earlier".to_owned(),
            ..State::default()
        };
        earlier.add_networks([net(0), net(1)]);
        earlier.add_links([LinkName::new("flannel.1").unwrap()]);
        earlier.set_leases([(net(1), hop(3))]);
        later.add_earlier(earlier.clone());
        assert_eq!(later.former_networks().collect::<Vec<_>>(), [net(0), net(1)]);
        assert_eq!(later.former_links().count(), 1);
        assert_eq!(later.former_leases()[&net(1)], [hop(3), hop(1), hop(2)]);
        assert_eq!(
            (later.lease.as_deref(), later.subnet_file.as_str()),
            (Some("10.5.1.0-24"), "/later")
        );
        let mut held = State {
            lease: Some("10.5.2.0-24".to_owned()),
            ..State::default()
        };
        held.add_earlier(earlier);
        assert_eq!(
            held.lease.as_deref(),
            Some("10.5.2.0-24"),
            "what is known later counts"
        );
    }
}
