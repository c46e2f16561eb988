//! Who holds which address on this node, and which of them are alive: for `flannelctl ipam list` and `ipam gc`.
//!
//! A reservation is alive when its address is on an interface of some network namespace; a container that has lost its namespace
//! cannot use it. One that is younger than a minute may be of an ADD under way.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kernel::netns::Netns;
use kernel::rtnl::Rtnl;

use crate::files::{self, FileError};
use crate::host_local::store::{Owner, Store};
use crate::json::parse_ip;

/// Age below which nothing is garbage.
const YOUNG: Duration = Duration::from_secs(60);

/// Whether a reservation is still needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its address is on an interface.
    Alive,
    /// Its address is on none, but it is less than a minute old.
    Young,
    /// Nobody can be using it.
    Garbage,
}

/// A reserved address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// Network name.
    pub network: String,
    /// The address.
    pub address: IpAddr,
    /// Who holds it.
    pub owner: Owner,
    /// When the reservation was written.
    pub since: SystemTime,
    /// Whether it is still needed.
    pub state: State,
}

/// Every reservation of every network below a folder such as [`crate::host_local::config::DATA_DIR`], in order of network and
/// address. Changes nothing.
pub fn list(data_dir: &str) -> Result<Vec<Reservation>, FileError> {
    let folder = match files::open_folder(data_dir) {
        Ok(folder) => folder,
        Err(e) if e.is_absent() => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let alive = addresses_in_use();
    let mut found = Vec::new();
    for network in files::folders(&folder).map_err(|e| FileError::new("read", data_dir, e))? {
        if network.starts_with('.') {
            continue;
        }
        let path = format!("{data_dir}/{network}");
        let folder = files::open_folder(&path)?;
        for name in files::names(&folder).map_err(|e| FileError::new("read", path.as_str(), e))? {
            let Some(address) = parse_ip(&name) else { continue };
            let Ok(content) = files::read_at(&folder, &name, 4096) else {
                continue;
            };
            let Some(owner) = Owner::parse(&content) else {
                continue;
            };
            let since = std::fs::metadata(format!("{path}/{name}")).and_then(|m| m.modified());
            let since = since.unwrap_or(SystemTime::UNIX_EPOCH);
            let young = since.elapsed().map_or(true, |age| age < YOUNG);
            let state = match (alive.contains(&address), young) {
                (true, _) => State::Alive,
                (false, true) => State::Young,
                (false, false) => State::Garbage,
            };
            found.push(Reservation {
                network: network.clone(),
                address,
                owner,
                since,
                state,
            });
        }
    }
    found.sort_by(|a, b| (&a.network, a.address).cmp(&(&b.network, b.address)));
    Ok(found)
}

/// Frees the garbage and returns it. Each address is looked at once more under the network's lock: what has changed hands since
/// stays.
pub fn collect(data_dir: &str) -> Result<Vec<Reservation>, FileError> {
    let mut freed = Vec::new();
    for garbage in list(data_dir)?.into_iter().filter(|r| r.state == State::Garbage) {
        let Some(mut store) = Store::open(data_dir, &garbage.network)? else {
            continue;
        };
        let held = store.held_by(&garbage.owner)?;
        let modified =
            std::fs::metadata(format!("{}/{}", store.path(), garbage.address)).and_then(|m| m.modified());
        if !held.contains(&garbage.address) || modified.is_ok_and(|at| at != garbage.since) {
            continue;
        }
        store.remove(&[garbage.address])?;
        let rest: Vec<IpAddr> = held.into_iter().filter(|ip| *ip != garbage.address).collect();
        store.index(&garbage.owner, &rest);
        freed.push(garbage);
    }
    Ok(freed)
}

/// Addresses on the interfaces of every namespace that has a process or a name.
fn addresses_in_use() -> HashSet<IpAddr> {
    let mut seen = BTreeSet::new();
    let mut used = HashSet::new();
    for path in namespaces() {
        // One that goes away meanwhile holds nothing.
        let Ok(identity) = rustix::fs::stat(&path) else {
            continue;
        };
        if !seen.insert((identity.st_dev, identity.st_ino)) {
            continue;
        }
        let Ok(netns) = Netns::open(&path) else { continue };
        let Ok(mut rtnl) = Rtnl::open_in(netns.as_fd()) else {
            continue;
        };
        for link in rtnl.links().unwrap_or_default() {
            used.extend(
                rtnl.addresses(link.index)
                    .unwrap_or_default()
                    .iter()
                    .map(|a| a.address.addr()),
            );
        }
    }
    used
}

fn namespaces() -> Vec<PathBuf> {
    let entries = |folder: &str| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let named = ["/run/netns", "/var/run/netns", "/run/docker/netns"]
        .into_iter()
        .flat_map(entries);
    let is_process = |path: &PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        name.bytes().all(|b| b.is_ascii_digit())
    };
    let of_processes = entries("/proc")
        .into_iter()
        .filter(is_process)
        .map(|path| path.join(Path::new("ns/net")));
    named.chain(of_processes).collect()
}
