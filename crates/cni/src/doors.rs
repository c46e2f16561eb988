//! The links of this namespace that lead into others, which containers hang on, and what is seen through them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::os::fd::AsFd;

use ipnet::IpNet;
use kernel::netns::Netns;
use kernel::rtnl::Rtnl;
use kernel::rtnl::link::ObservedLink;

/// A link into another namespace.
#[derive(Debug)]
pub struct Door {
    /// Its end here.
    pub link: ObservedLink,
    /// Number of the namespace; negative while that is being taken away.
    pub namespace: i32,
}

/// The links of this namespace into others.
#[derive(Debug, Default)]
pub struct Doors {
    /// Each link.
    pub list: Vec<Door>,
    /// Addresses by the number of the namespace.
    pub beyond: BTreeMap<i32, Result<Vec<IpAddr>, String>>,
    /// Bridges by index, with the networks of their addresses.
    pub bridges: BTreeMap<u32, Vec<IpNet>>,
    /// Those networks, of all bridges.
    pub bridge_networks: Vec<IpNet>,
}

impl Doors {
    /// Name of the link into a namespace.
    pub fn name_of(&self, namespace: i32) -> String {
        let door = self.list.iter().find(|d| d.namespace == namespace);
        door.map(|d| d.link.name.to_string()).unwrap_or_default()
    }

    /// A namespace has been looked into by another way, for kernels that do not show what is behind a link.
    pub fn know(&mut self, host: &mut Rtnl, netns: &Netns, addresses: &[IpAddr]) {
        if self.beyond.values().all(Result::is_ok) {
            return;
        }
        if let Ok(Some(number)) = host.number_of(netns.as_fd())
            && let Some(found) = self.beyond.get_mut(&number)
        {
            *found = Ok(addresses.to_vec());
        }
    }

    /// Looks.
    ///
    /// # Errors
    ///
    /// Those of listing links and addresses.
    pub fn open(host: &mut Rtnl) -> Result<Doors, kernel::NetlinkError> {
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
            let left: BTreeSet<(u32, i32)> =
                list(host)?.iter().map(|d| (d.link.index, d.namespace)).collect();
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
}

/// Addresses behind the links of this namespace; `None` where some cannot be seen.
pub fn addresses_beyond() -> Option<HashSet<IpAddr>> {
    let doors = Doors::open(&mut Rtnl::open().ok()?).ok()?;
    let mut all = HashSet::new();
    for found in doors.beyond.into_values() {
        all.extend(found.ok()?);
    }
    Some(all)
}
