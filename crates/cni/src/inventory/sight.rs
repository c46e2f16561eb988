//! What can be seen of the containers that hold addresses, and what cannot.
//!
//! Pods hang on this host by links, and through the link the kernel shows the addresses beyond it, whatever path or process keeps
//! the namespace: so the pods of this host's bridges are seen without knowing where runtimes keep their namespaces. Every
//! namespace that has a process, an open descriptor or a mount is looked into besides, for pods that hang on other things.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::AsFd;

use ipnet::IpNet;
use kernel::netns::Netns;
use kernel::rtnl::Rtnl;
use kernel::rtnl::link::ObservedLink;

use super::{Place, Reservation, Said, namespaces, records};
use crate::bridge;
use crate::host_local::store::Owner;

/// Inode of the machine's own pid namespace (`PROC_PID_INIT_INO`).
const MACHINE: u64 = 0xEFFF_FFFC;

/// What was seen.
#[derive(Debug, Default)]
pub struct Sight {
    /// Containers that are there.
    pub alive: Said,
    /// Containers that a plugin works for at this moment.
    pub busy: Said,
    /// Namespaces at the other end of a link that could not be looked into.
    hidden: Vec<String>,
    /// Ports of pods' bridges that lead to no container that is known.
    strangers: Vec<String>,
    /// Other namespaces of the machine that are not to be seen, and why.
    blind: Vec<String>,
    /// Networks of this namespace's bridges.
    bridges: Vec<IpNet>,
    /// Something may have been on its way out.
    passing: bool,
}

impl Sight {
    /// What speaks against calling a reservation garbage that nothing has shown alive.
    pub fn doubt_about(&self, reservation: &Reservation) -> Option<String> {
        if let Some(first) = self.hidden.first().or(self.strangers.first()) {
            return Some(first.clone());
        }
        // Every pod of a bridge hangs on a link of the namespace that the bridge is in, and all of those have been seen. The rest
        // of the machine counts where there is no such bridge: after a restart, for other kinds of links, in the wrong namespace.
        let on_bridge = self.bridges.iter().any(|net| net.contains(&reservation.address));
        self.blind.first().cloned().filter(|_| !on_bridge)
    }

    /// Everything that was not to be seen.
    pub fn doubts(&self) -> Vec<String> {
        let hidden = self.hidden.iter().chain(&self.strangers);
        hidden.chain(&self.blind).cloned().collect()
    }

    /// What stands in the way may be gone in a moment.
    pub fn is_passing(&self) -> bool {
        self.passing || !self.strangers.is_empty()
    }
}

/// A link into another namespace.
struct Door {
    link: ObservedLink,
    namespace: i32,
}

/// Looks for the containers of these reservations; no further than needed to find all but the `young` ones.
pub fn look(place: &Place, reservations: &[Reservation], young: &BTreeSet<&str>) -> Sight {
    let mut sight = Sight::default();
    let mut by_address: HashMap<IpAddr, Vec<&str>> = HashMap::new();
    for r in reservations {
        by_address.entry(r.address).or_default().push(&r.owner.container);
    }
    let pending = |sight: &Sight| -> BTreeSet<String> {
        let all = reservations.iter().map(|r| r.owner.container.as_str());
        all.filter(|c| !sight.alive.contains_key(*c) && !young.contains(c))
            .map(str::to_owned)
            .collect()
    };
    let open = || -> Result<(Rtnl, Doors), kernel::NetlinkError> {
        let mut host = Rtnl::open()?;
        let doors = open_doors(&mut host)?;
        Ok((host, doors))
    };
    let (mut host, mut doors) = match open() {
        Ok(opened) => opened,
        Err(e) => {
            sight.hidden.push(format!("this network namespace: {e}"));
            return sight;
        }
    };
    mark_behind(&doors, &mut sight, reservations, &by_address);
    let mut missing = pending(&sight);
    if missing.is_empty() {
        return sight;
    }
    // First who is at work, then the namespaces: an ADD that ends in between has its address in one of them.
    sight.busy = records::worked_for(&missing);
    match open_doors(&mut host) {
        Ok(again) => doors = again,
        Err(e) => sight.hidden.push(format!("this network namespace: {e}")),
    }
    mark_behind(&doors, &mut sight, reservations, &by_address);
    let recorded = records::living(place, &missing);
    sight.hidden.extend(recorded.hidden);
    sight.alive.extend(recorded.alive);
    let (mut seen, mut unseen) = (namespaces::Seen::default(), namespaces::Unseen::default());
    for with_descriptors in [false, true] {
        if !missing.is_empty() {
            unseen = seen.enter_all(with_descriptors, |path, netns, addresses| {
                let why = format!("in {}", path.display());
                mark(&mut sight, &by_address, addresses, &why);
                if let Some(netns) = netns {
                    doors.know(&mut host, netns, addresses);
                }
            });
            missing = pending(&sight);
        }
    }
    sight.passing = unseen.passing;
    sight.blind = blindness().into_iter().chain(unseen.why).collect();
    for (namespace, found) in &doors.beyond {
        if let Err(e) = found {
            // The kernel has no number for a namespace that has begun to go.
            sight.passing |= *namespace < 0;
            let name = doors.name_of(*namespace);
            sight.hidden.push(format!("what is behind {name}: {e}"));
        }
    }
    sight.bridges.clone_from(&doors.bridge_networks);
    let recorded = recorded.namespaces.iter();
    let recorded: BTreeSet<i32> = recorded
        .filter_map(|netns| host.number_of(netns.as_fd()).ok().flatten())
        .collect();
    sight.strangers = strangers(&doors, reservations, &recorded);
    sight
}

/// Notes the containers whose addresses, or whose interfaces of ours, are behind the doors.
fn mark_behind(
    doors: &Doors,
    sight: &mut Sight,
    reservations: &[Reservation],
    holders: &HashMap<IpAddr, Vec<&str>>,
) {
    for (namespace, found) in &doors.beyond {
        if let Ok(addresses) = found {
            let why = format!("behind {}", doors.name_of(*namespace));
            mark(sight, holders, addresses, &why);
        }
    }
    let names: HashSet<&str> = doors.list.iter().map(|d| d.link.name.as_str()).collect();
    for r in reservations {
        if let Some(name) = host_end(&r.owner).filter(|name| names.contains(name.as_str())) {
            let why = || format!("its interface {name} is there");
            sight.alive.entry(r.owner.container.clone()).or_insert_with(why);
        }
    }
}

/// Notes the containers that hold these addresses as alive.
fn mark(sight: &mut Sight, holders: &HashMap<IpAddr, Vec<&str>>, addresses: &[IpAddr], why: &str) {
    for address in addresses {
        for container in holders.get(address).into_iter().flatten() {
            let said = || format!("{address} is {why}");
            sight.alive.entry((*container).to_owned()).or_insert_with(said);
        }
    }
}

/// Name of the host's end of an attachment that our own plugin made.
fn host_end(owner: &Owner) -> Option<String> {
    Some(bridge::host_end(owner).ok()?.as_str().to_owned())
}

/// The links of this namespace into others.
#[derive(Default)]
struct Doors {
    list: Vec<Door>,
    /// Addresses by the number of the namespace.
    beyond: BTreeMap<i32, Result<Vec<IpAddr>, String>>,
    /// Bridges by index, with the networks of their addresses.
    bridges: BTreeMap<u32, Vec<IpNet>>,
    bridge_networks: Vec<IpNet>,
}

impl Doors {
    fn name_of(&self, namespace: i32) -> String {
        let door = self.list.iter().find(|d| d.namespace == namespace);
        door.map(|d| d.link.name.to_string()).unwrap_or_default()
    }

    /// A namespace has been looked into by another way, for kernels that do not show what is behind a link.
    fn know(&mut self, host: &mut Rtnl, netns: &Netns, addresses: &[IpAddr]) {
        if self.beyond.values().all(Result::is_ok) {
            return;
        }
        if let Ok(Some(number)) = host.number_of(netns.as_fd())
            && let Some(found) = self.beyond.get_mut(&number)
        {
            *found = Ok(addresses.to_vec());
        }
    }
}

fn open_doors(host: &mut Rtnl) -> Result<Doors, kernel::NetlinkError> {
    let list = |host: &mut Rtnl| -> Result<Vec<Door>, kernel::NetlinkError> {
        let doors = host.doorways()?.into_iter();
        Ok(doors.map(|(link, namespace)| Door { link, namespace }).collect())
    };
    let mut doors = Doors {
        list: list(host)?,
        ..Doors::default()
    };
    for door in &doors.list {
        doors.beyond.entry(door.namespace).or_insert_with(|| {
            if door.namespace < 0 {
                return Err("it is being taken away; try again in a moment".to_owned());
            }
            let found = host.addresses_beyond(door.namespace);
            found
                .map(|found| found.iter().map(|a| a.address.addr()).collect())
                .map_err(|e| e.to_string())
        });
    }
    if doors.beyond.values().any(Result::is_err) {
        // One that is gone by now was a pod on its way out.
        let left: BTreeSet<(u32, i32)> = list(host)?.iter().map(|d| (d.link.index, d.namespace)).collect();
        doors.list.retain(|d| left.contains(&(d.link.index, d.namespace)));
        let still: BTreeSet<i32> = doors.list.iter().map(|d| d.namespace).collect();
        doors.beyond.retain(|namespace, _| still.contains(namespace));
    }
    let addresses = host.all_addresses()?;
    for link in host.links()?.into_iter().filter(|link| &*link.kind == "bridge") {
        let own = addresses.iter().filter(|a| a.link == link.index);
        let networks: Vec<IpNet> = own.map(|a| a.address.trunc()).collect();
        doors.bridge_networks.extend(&networks);
        doors.bridges.insert(link.index, networks);
    }
    Ok(doors)
}

/// Addresses behind the links of this namespace; `None` where some cannot be seen.
pub(crate) fn beyond_doors() -> Option<HashSet<IpAddr>> {
    let doors = open_doors(&mut Rtnl::open().ok()?).ok()?;
    let mut all = HashSet::new();
    for found in doors.beyond.into_values() {
        all.extend(found.ok()?);
    }
    Some(all)
}

/// Ports of pods' bridges behind which nothing has an address. A sandbox such as gVisor's takes its addresses off the interface, so
/// that one of the containers that seem dead may be behind one.
fn strangers(doors: &Doors, reservations: &[Reservation], recorded: &BTreeSet<i32>) -> Vec<String> {
    let ours: HashSet<String> = reservations.iter().filter_map(|r| host_end(&r.owner)).collect();
    let known = |door: &Door| {
        let beyond = doors.beyond.get(&door.namespace).and_then(|b| b.as_ref().ok());
        ours.contains(door.link.name.as_str())
            || recorded.contains(&door.namespace)
            || beyond.is_some_and(|b| b.iter().any(is_global))
    };
    let is_of_pods = |bridge: &u32| {
        let networks = doors.bridges.get(bridge).into_iter().flatten();
        let of_a_network = |net: &IpNet| reservations.iter().any(|r| net.contains(&r.address));
        let leads_to_ours = |d: &Door| d.link.master == Some(*bridge) && ours.contains(d.link.name.as_str());
        networks.into_iter().any(of_a_network) || doors.list.iter().any(leads_to_ours)
    };
    let bridges: BTreeSet<u32> = doors.bridges.keys().copied().filter(is_of_pods).collect();
    let port = |door: &&Door| door.link.master.is_some_and(|master| bridges.contains(&master));
    let unknown = doors.list.iter().filter(port).filter(|door| !known(door));
    unknown
        .map(|door| {
            format!(
                "interface {} leads to a container that shows no address: it may hold any of these",
                door.link.name
            )
        })
        .collect()
}

fn is_global(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}

/// Why not every process of the machine can be seen.
fn blindness() -> Option<String> {
    let own = std::fs::read_link("/proc/self").ok();
    let own = own.and_then(|p| p.to_str()?.parse::<u32>().ok());
    if own != Some(std::process::id()) {
        return Some("/proc is not that of this process's own pid namespace".to_owned());
    }
    let pid_namespace = rustix::fs::stat("/proc/self/ns/pid").map(|stat| stat.st_ino);
    if pid_namespace != Ok(MACHINE) {
        let why = "this is inside a container: namespaces of the machine's other processes cannot be seen \
                   (run it on the host, or in a pod with hostPID and hostNetwork)";
        return Some(why.to_owned());
    }
    None
}
