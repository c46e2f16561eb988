//! Who holds which address on this node, and who of them is alive: for `flannelctl ipam list` and `ipam gc`.
//!
//! A container is alive when anything says so: an address of its is on an interface of some network namespace, its host end of
//! ours is there, a runtime's record names a namespace that exists. It is dead only when everything there is to see has been seen
//! and nothing said so; what cannot be seen makes it unknown, and nothing unknown is garbage. A reservation that is younger than a
//! minute, or whose container a plugin is working for, may be of an ADD under way. All of a container's reservations share its
//! fate.

mod collect;
mod namespaces;
mod networks;
mod records;
mod sight;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;

use crate::files::{self, FileError};
use crate::flannel::netconf;
use crate::host_local::config::DATA_DIR;
use crate::json::parse_ip;
use crate::owner::Owner;

pub use collect::{Detach, Freed, free};
pub use networks::{Network, Pool, network_of};

/// Age below which nothing is garbage.
const YOUNG: Duration = Duration::from_secs(60);
/// Looks at what may be passing: a pod that is just being made or taken away.
const LOOKS: u32 = 6;
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);
/// Bytes of a reservation that are read.
const LIMIT: usize = 4096;

/// Where a node's plugins keep what they know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folders {
    /// Folder with one folder of reservations per network.
    pub data_dir: String,
    /// Folder of flannel's saved configurations.
    pub flannel_dir: String,
    /// What flanneld wrote about this node's subnet.
    pub subnet_file: String,
}

impl Default for Folders {
    fn default() -> Self {
        Folders {
            data_dir: DATA_DIR.to_owned(),
            flannel_dir: netconf::DATA_DIR.to_owned(),
            subnet_file: netconf::SUBNET_FILE.to_owned(),
        }
    }
}

/// Whether a reservation is still needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Its container is there.
    Alive,
    /// Perhaps of an ADD under way.
    Young,
    /// Nobody can be using it.
    Garbage,
    /// Not to be seen from here.
    Unknown,
}

impl Fate {
    /// One word.
    pub fn as_str(self) -> &'static str {
        match self {
            Fate::Alive => "alive",
            Fate::Young => "young",
            Fate::Garbage => "garbage",
            Fate::Unknown => "unknown",
        }
    }
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
    pub fate: Fate,
    /// What says so.
    pub why: String,
}

/// Every reservation, judged.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inventory {
    /// In order of network and address.
    pub reservations: Vec<Reservation>,
    /// The networks that have a folder.
    pub networks: Vec<Network>,
    /// What could not be seen, where that mattered.
    pub doubts: Vec<String>,
}

/// Takes stock. Changes nothing. Where a pod is just being made or taken away it looks again, for a second at most.
///
/// # Errors
///
/// A folder that is there cannot be read.
pub fn look(folders: &Folders) -> Result<Inventory, FileError> {
    look_up_to(LOOKS, folders)
}

/// As [`look`], once: what is passing stays unknown.
///
/// # Errors
///
/// As [`look`].
pub fn glance(folders: &Folders) -> Result<Inventory, FileError> {
    look_up_to(1, folders)
}

fn look_up_to(most: u32, folders: &Folders) -> Result<Inventory, FileError> {
    let mut looks = 1;
    loop {
        let (names, mut reservations) = read(&folders.data_dir)?;
        let judged = judge(folders, &mut reservations);
        if judged.passing && looks < most {
            looks += 1;
            std::thread::sleep(BETWEEN_LOOKS);
            continue;
        }
        let networks = networks::all(folders, names, &reservations);
        return Ok(Inventory {
            reservations,
            networks,
            doubts: judged.doubts,
        });
    }
}

/// Names of networks, and every reservation, not judged yet.
fn read(data_dir: &str) -> Result<(Vec<String>, Vec<Reservation>), FileError> {
    let folder = match files::open_folder(data_dir) {
        Ok(folder) => folder,
        Err(e) if e.is_absent() => return Ok((Vec::new(), Vec::new())),
        Err(e) => return Err(e),
    };
    let mut names = files::folders(&folder).map_err(|e| FileError::new("read", data_dir, e))?;
    names.retain(|name| !name.starts_with('.'));
    names.sort_unstable();
    let mut found = Vec::new();
    for network in &names {
        let path = format!("{data_dir}/{network}");
        let folder = match files::open_folder(&path) {
            Ok(folder) => folder,
            Err(e) if e.is_absent() => continue,
            Err(e) => return Err(e),
        };
        for name in files::names(&folder).map_err(|e| FileError::new("read", path.as_str(), e))? {
            let Some(address) = parse_ip(&name) else { continue };
            let file = format!("{path}/{name}");
            let content = match files::read_at(&folder, &name, LIMIT) {
                Ok(content) => content,
                Err(Errno::NOENT) => continue,
                // Nobody's: the next ADD that gets there clears it away.
                Err(e) if files::is_odd(e) => continue,
                Err(e) => return Err(FileError::new("open", file, e)),
            };
            let (Some(owner), Ok(since)) = (Owner::parse(&content), written(&file)) else {
                continue;
            };
            found.push(Reservation {
                network: network.clone(),
                address,
                owner,
                since,
                fate: Fate::Unknown,
                why: String::new(),
            });
        }
    }
    found.sort_by(|a, b| (&a.network, a.address).cmp(&(&b.network, b.address)));
    Ok((names, found))
}

fn written(file: &str) -> std::io::Result<SystemTime> {
    std::fs::symlink_metadata(file)?.modified()
}

/// What a judgement leaves open.
struct Judged {
    doubts: Vec<String>,
    /// What stood in the way may be gone in a moment.
    passing: bool,
}

fn judge(folders: &Folders, reservations: &mut [Reservation]) -> Judged {
    let is_young = |since: SystemTime| since.elapsed().map_or(true, |age| age < YOUNG);
    let young: BTreeSet<&str> = reservations
        .iter()
        .filter(|r| is_young(r.since))
        .map(|r| r.owner.container.as_str())
        .collect();
    let sight = sight::look(folders, reservations, &young);
    let fate = |r: &Reservation| -> (Fate, String) {
        let container = r.owner.container.as_str();
        if let Some(why) = sight.alive.get(container) {
            return (Fate::Alive, why.clone());
        }
        if let Some(why) = sight.busy.get(container) {
            return (Fate::Young, why.clone());
        }
        if young.contains(container) {
            let why = match r.since.elapsed() {
                Err(_) => "its date is in the future",
                Ok(_) => "less than a minute old",
            };
            return (Fate::Young, why.to_owned());
        }
        match sight.doubt_about(r) {
            Some(doubt) => (Fate::Unknown, doubt),
            None => (Fate::Garbage, "its address is in no network namespace".to_owned()),
        }
    };
    let fates: Vec<(Fate, String)> = reservations.iter().map(fate).collect();
    let doubtful = fates.iter().any(|(fate, _)| *fate == Fate::Unknown);
    let judged = Judged {
        doubts: if doubtful { sight.doubts() } else { Vec::new() },
        passing: doubtful && sight.is_passing(),
    };
    for (reservation, (fate, why)) in reservations.iter_mut().zip(fates) {
        reservation.fate = fate;
        reservation.why = why;
    }
    judged
}

/// Containers that something says is alive or being worked for, and what says so.
type Said = HashMap<String, String>;

#[cfg(test)]
mod tests;
