//! What can be seen of the containers that hold addresses, and what cannot.
//!
//! Pods hang on this host by links, and through the link the kernel shows the addresses beyond it, whatever path or process keeps
//! the namespace: so the pods of this host's bridges are seen without knowing where runtimes keep their namespaces. Every
//! namespace that has a process, an open descriptor or a mount is looked into besides, for pods that hang on other things.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::AsFd;

use ipnet::IpNet;
use kernel::rtnl::Rtnl;

use super::{Folders, Reservation, Said, namespaces, records};
use crate::doors::{Door, Doors};
use crate::links;
use crate::owner::Owner;

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

/// Looks for the containers of these reservations; no further than needed to find all but the `young` ones.
pub fn look(folders: &Folders, reservations: &[Reservation], young: &BTreeSet<&str>) -> Sight {
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
        let doors = Doors::open(&mut host)?;
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
    match Doors::open(&mut host) {
        Ok(again) => doors = again,
        Err(e) => sight.hidden.push(format!("this network namespace: {e}")),
    }
    mark_behind(&doors, &mut sight, reservations, &by_address);
    let recorded = records::living(folders, &missing);
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
    Some(links::host_end(owner).ok()?.as_str().to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    use super::super::Fate;
    use fabric::object::LinkName;
    use kernel::rtnl::link::ObservedLink;
    use std::time::SystemTime;

    fn door(name: &str, master: Option<u32>, namespace: i32) -> Door {
        Door {
            link: ObservedLink {
                index: 10,
                name: LinkName::new(name).unwrap(),
                kind: "veth".into(),
                mac: None,
                mtu: 1500,
                flags: 0,
                master,
                lower: None,
                made_of: None,
                other_names: Vec::new(),
            },
            namespace,
        }
    }

    fn reservation(container: &str, ip: &str) -> Reservation {
        Reservation {
            network: "n".into(),
            address: ip.parse().unwrap(),
            owner: Owner::new(container, "eth0"),
            since: SystemTime::UNIX_EPOCH,
            fate: Fate::Unknown,
            why: String::new(),
        }
    }

    fn ips(texts: &[&str]) -> Result<Vec<IpAddr>, String> {
        Ok(texts.iter().map(|t| t.parse().unwrap()).collect())
    }

    #[test]
    fn container_when_its_address_or_its_interface_is_behind_a_door_is_alive() {
        let reservations = [
            reservation("c1", "10.244.7.2"),
            reservation("c2", "10.244.7.3"),
            reservation("c3", "10.244.7.4"),
        ];
        let mut holders: HashMap<IpAddr, Vec<&str>> = HashMap::new();
        for r in &reservations {
            holders.entry(r.address).or_default().push(&r.owner.container);
        }
        let own = host_end(&reservations[1].owner).unwrap();
        assert!(own.starts_with("veth"));
        let doors = Doors {
            list: vec![door("veth1", Some(5), 1), door(&own, Some(5), 2)],
            beyond: [(1, ips(&["10.244.7.2", "fe80::1"])), (2, Err("x".to_owned()))].into(),
            ..Doors::default()
        };
        assert_eq!(
            (doors.name_of(1).as_str(), doors.name_of(9).as_str()),
            ("veth1", "")
        );
        let mut sight = Sight::default();
        mark_behind(&doors, &mut sight, &reservations, &holders);
        assert_eq!(sight.alive.len(), 2);
        assert_eq!(sight.alive["c1"], "10.244.7.2 is behind veth1");
        assert_eq!(sight.alive["c2"], format!("its interface {own} is there"));
    }

    #[test]
    fn port_when_of_a_pods_bridge_and_without_an_address_is_a_strangers() {
        let reservations = [reservation("c1", "10.244.7.2")];
        let own = host_end(&reservations[0].owner).unwrap();
        let list = |names: &[(&str, Option<u32>, i32)]| {
            names
                .iter()
                .map(|(name, master, ns)| door(name, *master, *ns))
                .collect::<Vec<_>>()
        };
        let of = |names: &[(&str, Option<u32>, i32)], recorded: &[i32]| {
            let doors = Doors {
                list: list(names),
                beyond: [
                    (1, ips(&["10.244.7.9"])),
                    (2, ips(&["fe80::1", "127.0.0.1"])),
                    (3, Err("x".to_owned())),
                ]
                .into(),
                bridges: [
                    (5, vec!["10.244.7.0/24".parse().unwrap()]),
                    (6, vec!["10.9.0.0/24".parse().unwrap()]),
                ]
                .into(),
                bridge_networks: Vec::new(),
            };
            strangers(&doors, &reservations, &recorded.iter().copied().collect())
        };
        let said = |name: &str| {
            format!("interface {name} leads to a container that shows no address: it may hold any of these")
        };
        assert_eq!(
            of(
                &[
                    ("a", Some(5), 1),
                    ("b", Some(5), 2),
                    ("c", Some(5), 3),
                    ("d", Some(5), 4)
                ],
                &[]
            ),
            ["b", "c", "d"].map(said)
        );
        assert_eq!(of(&[("b", Some(5), 2), ("c", Some(5), 3)], &[3]), [said("b")]);
        assert_eq!(of(&[(&own, Some(5), 2)], &[]), Vec::<String>::new());
        assert_eq!(
            of(&[("b", Some(6), 2), ("e", None, 2)], &[]),
            Vec::<String>::new(),
            "no bridge of pods"
        );
        assert_eq!(
            of(&[("b", Some(6), 2), (&own, Some(6), 3)], &[]),
            [said("b")],
            "ours is on it"
        );
    }

    #[test]
    fn doubt_when_nothing_hides_is_none_and_what_a_bridge_shows_needs_no_more() {
        let reservation = reservation("c1", "10.244.7.2");
        let doubt = |sight: &Sight| sight.doubt_about(&reservation);
        let text = |text: &str| vec![text.to_owned()];
        let mut sight = Sight::default();
        assert_eq!(
            (doubt(&sight), sight.doubts(), sight.is_passing()),
            (None, vec![], false)
        );
        sight.blind = text("blind");
        assert_eq!(doubt(&sight).as_deref(), Some("blind"));
        sight.bridges = vec!["10.244.7.1/24".parse().unwrap()];
        assert_eq!(doubt(&sight), None);
        sight.strangers = text("stranger");
        assert_eq!(doubt(&sight).as_deref(), Some("stranger"));
        assert!(sight.is_passing());
        sight.hidden = text("hidden");
        assert_eq!(doubt(&sight).as_deref(), Some("hidden"));
        assert_eq!(sight.doubts(), ["hidden", "stranger", "blind"]);
        sight.strangers.clear();
        assert!(!sight.is_passing());
        sight.passing = true;
        assert!(sight.is_passing());
        for (ip, global) in [
            ("10.0.0.1", true),
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("fd00::1", true),
            ("::1", false),
            ("fe80::1", false),
        ] {
            assert_eq!(is_global(&ip.parse().unwrap()), global, "{ip}");
        }
    }
}
