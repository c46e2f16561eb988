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
