//! What a plan has to know of the host it is for.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::NetworkConfig;
use crate::lease::{Attributes, Subnet};
use crate::object::{Family, LinkName, Mac};

/// The link and addresses the fabric leans on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// The external interface.
    pub link: LinkName,
    /// Its MTU, bytes.
    pub mtu: u32,
    /// IPv4 address on it.
    pub address4: Option<Ipv4Addr>,
    /// IPv6 address on it.
    pub address6: Option<Ipv6Addr>,
    /// IPv4 address that peers use; differs from the interface's behind NAT.
    pub public4: Option<Ipv4Addr>,
    /// IPv6 address that peers use.
    pub public6: Option<Ipv6Addr>,
}

impl Underlay {
    /// The interface's own address of a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.address4.map(IpAddr::V4),
            Family::V6 => self.address6.map(IpAddr::V6),
        }
    }

    /// The advertised address of a family.
    pub fn public(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.public4.map(IpAddr::V4),
            Family::V6 => self.public6.map(IpAddr::V6),
        }
    }
}

/// What this node is known by to its peers beyond its addresses, per family: published in the lease, set on the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Identity {
    /// VTEP MAC of the IPv4 device.
    pub mac4: Option<Mac>,
    /// VTEP MAC of the IPv6 device.
    pub mac6: Option<Mac>,
}

impl Identity {
    /// The VTEP MAC of a family's device.
    pub fn mac(&self, family: Family) -> Option<Mac> {
        match family {
            Family::V4 => self.mac4,
            Family::V6 => self.mac6,
        }
    }
}

/// A node of the fabric: this host, with the subnet it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The network all nodes share.
    pub network: NetworkConfig,
    /// What carries it here.
    pub underlay: Underlay,
    /// The subnet we hold.
    pub subnet: Subnet,
    /// What our lease says of us.
    pub identity: Identity,
    /// Peers that the kernel routes to without a gateway, and the link it does so through. Asked of the kernel, and only
    /// when the backend [wants it](crate::plan::Backend::wants_direct).
    pub direct: BTreeMap<IpAddr, LinkName>,
}

impl Node {
    /// Lease attributes with the advertised addresses of the families in use; the backend adds its data.
    pub fn base_attributes(network: &NetworkConfig, underlay: &Underlay, backend_type: &str) -> Attributes {
        let v4 = network.space(Family::V4).and(underlay.public4);
        let v6 = network.space(Family::V6).and(underlay.public6);
        Attributes {
            public_ip: v4.unwrap_or(Ipv4Addr::UNSPECIFIED),
            public_ip6: v6,
            backend_type: backend_type.into(),
            data: None,
            data6: None,
        }
    }
}
