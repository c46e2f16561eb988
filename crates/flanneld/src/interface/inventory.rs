//! What there is to choose from.

use std::net::IpAddr;

use fabric::object::LinkName;
use kernel::nl::NetlinkError;
pub use kernel::rtnl::DefaultRoute;
use kernel::rtnl::Rtnl;

use super::Reach;
use super::address::AddressInfo;

/// A link with its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: LinkName,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Addresses of both families, in the kernel's order.
    pub addresses: Vec<AddressInfo>,
    /// Further names.
    pub other_names: Vec<Box<str>>,
}

/// Links and default routes of a network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// By index.
    pub links: Vec<LinkInfo>,
    /// IPv4 default routes of the main table, the preferred one first.
    pub default4: Vec<DefaultRoute>,
    /// IPv6 default routes, likewise.
    pub default6: Vec<DefaultRoute>,
}

impl Inventory {
    /// Asks the kernel.
    pub fn collect(rtnl: &mut Rtnl) -> Result<Inventory, NetlinkError> {
        let raw = rtnl.inventory()?;
        let links = raw
            .links
            .iter()
            .map(|link| LinkInfo {
                index: link.index,
                name: link.name,
                mtu: link.mtu,
                up: link.is_up(),
                other_names: link.other_names.clone(),
                addresses: raw
                    .addresses
                    .iter()
                    .filter(|address| address.link == link.index)
                    .map(|address| AddressInfo {
                        ip: address.address.addr(),
                        prefix: address.address.prefix_len(),
                        flags: address.flags,
                        scope: address.scope,
                    })
                    .collect(),
            })
            .collect();
        Ok(Inventory {
            links,
            default4: raw.default4,
            default6: raw.default6,
        })
    }

    /// The link of an index.
    pub fn link(&self, index: u32) -> Option<&LinkInfo> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The link of a name, as `ip` takes or prints it: its own, one of its further ones, or `bond.101@eth0`.
    pub fn named(&self, name: &str) -> Option<&LinkInfo> {
        let own = |name: &str| self.links.iter().find(|link| link.name.as_str() == name);
        let other = |name: &str| {
            let is = |link: &&LinkInfo| link.other_names.iter().any(|other| &**other == name);
            self.links.iter().find(is)
        };
        let printed = || own(name.split_once('@')?.0);
        own(name).or_else(|| other(name)).or_else(printed)
    }

    /// The link that has an address; the one of the lowest index where several have it.
    pub fn owner(&self, ip: IpAddr) -> Option<&LinkInfo> {
        self.links
            .iter()
            .find(|link| link.addresses.iter().any(|address| address.ip == ip))
    }
}

/// Asks the kernel for the way to an address, in the form that [`select`](super::select) takes.
pub fn reach(rtnl: &mut Rtnl, to: IpAddr) -> Result<Option<Reach>, String> {
    match rtnl.reach(to) {
        Ok(found) => Ok(found.map(|found| Reach {
            link: found.link,
            source: found.source,
        })),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, other: &str, ip: &str) -> LinkInfo {
        LinkInfo {
            index,
            name: LinkName::new(name).unwrap(),
            mtu: 1500,
            up: true,
            addresses: vec![AddressInfo {
                ip: ip.parse().unwrap(),
                prefix: 24,
                flags: 0,
                scope: 0,
            }],
            other_names: vec![other.into()],
        }
    }

    #[test]
    fn link_when_looked_for_then_found_by_index_any_of_its_names_or_its_address() {
        let inventory = Inventory {
            links: vec![
                link(2, "eth0", "enp3s0", "192.0.2.1"),
                link(3, "bond.101", "eth0", "192.0.2.2"),
                link(4, "wlan0", "wl", "192.0.2.2"),
            ],
            ..Inventory::default()
        };
        let index = |found: Option<&LinkInfo>| found.map(|link| link.index);
        assert_eq!(
            (index(inventory.link(3)), index(inventory.link(5))),
            (Some(3), None)
        );
        let names = [
            ("eth0", Some(2)),
            ("enp3s0", Some(2)),
            ("bond.101", Some(3)),
            ("bond.101@eth0", Some(3)),
            ("wl", Some(4)),
            ("wl@eth0", None),
            ("absent", None),
        ];
        for (name, expected) in names {
            assert_eq!(index(inventory.named(name)), expected, "{name}");
        }
        let owner = |ip: &str| index(inventory.owner(ip.parse().unwrap()));
        assert_eq!(
            (owner("192.0.2.1"), owner("192.0.2.2"), owner("192.0.2.3")),
            (Some(2), Some(3), None)
        );
    }

    #[test]
    fn inventory_when_collected_then_each_link_has_its_own_addresses() {
        let mut rtnl = Rtnl::open().unwrap();
        let inventory = Inventory::collect(&mut rtnl).unwrap();
        let lo = inventory.named("lo").unwrap();
        let own = "127.0.0.1".parse().unwrap();
        assert!(lo.up && lo.mtu > 1000);
        assert!(
            lo.addresses
                .iter()
                .any(|address| address.ip == own && address.prefix == 8)
        );
        assert_eq!(inventory.owner(own).map(|link| link.index), Some(lo.index));
        let others = inventory.links.iter().filter(|link| link.index != lo.index);
        assert!(
            others
                .flat_map(|link| &link.addresses)
                .all(|address| address.ip != own)
        );
        let way = reach(&mut rtnl, own).unwrap().unwrap();
        assert_eq!((way.link, way.source), (lo.index, Some(own)));
    }
}
