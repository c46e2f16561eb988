//! What must survive a reboot: former Networks, devices and leases, and the own subnet. One small JSON file.
//!
//! It only ever allows more: without it nothing of former times is removed, and the own subnet is found in the registry. So
//! a file that is missing, damaged or cannot be written is one line in the log, and no more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use fabric::object::LinkName;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::subnet_file::replace;

/// Where the one daemon of a host keeps its state.
const DEFAULT: &str = "/var/lib/flannel";
/// The subnet file of that one.
const DEFAULT_SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// More former entries than this are not a history any more but somebody's script.
const REMEMBERED: usize = 16;

/// The state file of one daemon.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

/// What is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Key text of the own subnet.
    pub lease: Option<String>,
    /// Networks this host was ever part of, newest last.
    networks: Vec<IpNet>,
    /// Names of devices we made, newest last.
    links: Vec<String>,
    /// Routes that leases once asked for: destination, and next hops.
    leases: BTreeMap<IpNet, BTreeSet<IpAddr>>,
}

impl StateDir {
    /// The state of the daemon that writes this subnet file: two daemons on one host have two subnet files, and so two
    /// states. The default file's lies in `/var/lib/flannel`, any other's in a folder there named after the file's path.
    pub fn for_subnet_file(subnet_file: &Path) -> StateDir {
        let root = Path::new(DEFAULT);
        if subnet_file == Path::new(DEFAULT_SUBNET_FILE) {
            return StateDir { path: root.join("state.json") };
        }
        let name: String = subnet_file
            .to_string_lossy()
            .trim_start_matches('/')
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' })
            .collect();
        StateDir { path: root.join(name).join("state.json") }
    }

    /// Reads the state; an empty one where there is none that can be read.
    pub fn load(&self) -> State {
        match fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|failure| {
                warn!("state file {} is damaged and not used: {failure}", self.path.display());
                State::default()
            }),
            Err(failure) if failure.kind() == io::ErrorKind::NotFound => State::default(),
            Err(failure) => {
                warn!("state file {}: {failure}", self.path.display());
                State::default()
            }
        }
    }

    /// Writes the state.
    pub fn save(&self, state: &State) {
        let written = serde_json::to_vec(state).map_err(io::Error::from).and_then(|text| replace(&self.path, &text));
        if let Err(failure) = written {
            warn!("state file {}: {failure}; going on without", self.path.display());
        }
    }
}

impl State {
    /// Notes Networks, and says nothing of those it knows.
    pub fn add_networks(&mut self, networks: impl Iterator<Item = IpNet>) {
        add(&mut self.networks, networks);
    }

    /// Notes devices.
    pub fn add_links(&mut self, links: impl IntoIterator<Item = LinkName>) {
        add(&mut self.links, links.into_iter().map(|link| link.to_string()));
    }

    /// Notes what leases ask for now, in place of what they asked for before.
    pub fn set_leases(&mut self, leases: impl Iterator<Item = (IpNet, IpAddr)>) {
        self.leases.clear();
        for (destination, gateway) in leases {
            self.leases.entry(destination).or_default().insert(gateway);
        }
    }

    /// Every Network it knows.
    pub fn former_networks(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.networks.iter().copied()
    }

    /// Every device it knows.
    pub fn former_links(&self) -> impl Iterator<Item = LinkName> + '_ {
        self.links.iter().filter_map(|name| LinkName::new(name))
    }

    /// Destinations and next hops of leases it knows.
    pub fn former_leases(&self) -> BTreeMap<IpNet, Vec<IpAddr>> {
        self.leases.iter().map(|(net, gateways)| (*net, gateways.iter().copied().collect())).collect()
    }
}

/// Puts items that are not there at the end; the oldest go when there are too many.
fn add<T: PartialEq>(to: &mut Vec<T>, items: impl Iterator<Item = T>) {
    for item in items {
        to.retain(|known| *known != item);
        to.push(item);
    }
    let surplus = to.len().saturating_sub(REMEMBERED);
    to.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> StateDir {
        let path = std::env::temp_dir().join(format!("flanneld-state-{name}-{}", std::process::id())).join("state.json");
        StateDir { path }
    }

    #[test]
    fn load_when_saved_then_the_same() {
        let dir = scratch("same");
        let mut state = State { lease: Some("10.5.1.0-24".to_owned()), ..State::default() };
        state.add_networks(["10.5.0.0/16", "10.6.0.0/16", "10.5.0.0/16"].map(|n| n.parse().unwrap()).into_iter());
        state.add_links(LinkName::new("flannel.1"));
        state.set_leases(std::iter::once(("10.5.2.0/24".parse().unwrap(), "10.5.2.0".parse().unwrap())));
        dir.save(&state);
        assert_eq!(dir.load(), state);
        assert_eq!(state.former_networks().count(), 2);
        fs::remove_dir_all(dir.path.parent().unwrap()).unwrap();
    }

    #[test]
    fn load_when_the_file_is_damaged_truncated_or_missing_then_empty() {
        let dir = scratch("damaged");
        assert_eq!(dir.load(), State::default());
        fs::create_dir_all(dir.path.parent().unwrap()).unwrap();
        for text in ["", "{", "[]", "{\"links\":[1]}", "\u{0}"] {
            fs::write(&dir.path, text).unwrap();
            assert_eq!(dir.load(), State::default(), "{text:?}");
        }
        fs::remove_dir_all(dir.path.parent().unwrap()).unwrap();
    }

    #[test]
    fn for_subnet_file_when_two_daemons_share_a_host_then_two_states() {
        let path = |file: &str| StateDir::for_subnet_file(Path::new(file)).path;
        assert_eq!(path("/run/flannel/subnet.env"), Path::new("/var/lib/flannel/state.json"));
        assert_ne!(path("/vxlan.env"), path("/host-gw.env"));
    }
}
