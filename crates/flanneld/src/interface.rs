//! Which interface carries the traffic between hosts, and by which addresses the others reach this one.
//!
//! The choice ([`select`]) is a pure function of what the user wished and what there is; [`inventory`] asks the kernel what
//! there is. It is made anew when the underlay changes, and the same input always gives the same answer: no order that the
//! kernel does not promise decides.

pub mod address;
pub mod inventory;
pub mod pattern;
mod select;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fabric::config::NetworkConfig;
use fabric::node::Underlay;
use fabric::object::Family;
use kernel::nl::NetlinkError;
use kernel::rtnl::Rtnl;

pub use inventory::{DefaultRoute, Inventory, LinkInfo};
pub use select::{SelectError, select};

/// What the user said about interface and addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// `--iface`, in order: names, addresses, or empty for the default route's.
    pub iface: Vec<String>,
    /// `--iface-regex`, in order.
    pub iface_regex: Vec<String>,
    /// `--iface-can-reach`.
    pub can_reach: Option<IpAddr>,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// `--public-ipv6`.
    pub public_ipv6: Option<Ipv6Addr>,
}

/// The families the network uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

/// Where the kernel would send a packet to some address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Index of the outgoing link.
    pub link: u32,
    /// The source address it would have.
    pub source: Option<IpAddr>,
}

/// The interface, and the addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// Link, MTU, the addresses on it, and those the other hosts are told. Of a family that is not in use there are none.
    pub underlay: Underlay,
    /// Index of the link.
    pub index: u32,
    /// What decided, in the user's words, such as `--iface=eth0` or `the default route`.
    pub by: String,
    /// What is odd about the choice, one line each.
    pub warnings: Vec<String>,
}

impl Selected {
    /// Link, MTU and addresses, in the form a plan takes.
    pub fn underlay(&self) -> Underlay {
        self.underlay.clone()
    }
}

/// Why there is no choice.
#[derive(Debug, thiserror::Error)]
pub enum ChooseError {
    /// The kernel was not to be asked.
    #[error("asking the kernel for its interfaces: {0}")]
    Kernel(#[from] NetlinkError),
    /// Nothing there fits.
    #[error(transparent)]
    Select(#[from] SelectError),
}

/// Takes stock of the calling thread's network namespace and chooses.
pub fn choose(wish: &Wish, network: &NetworkConfig) -> Result<Selected, ChooseError> {
    let mut rtnl = Rtnl::open()?;
    let found = Inventory::collect(&mut rtnl)?;
    let families = Families {
        v4: network.space(Family::V4).is_some(),
        v6: network.space(Family::V6).is_some(),
    };
    Ok(select(wish, families, &found, |to| {
        inventory::reach(&mut rtnl, to)
    })?)
}
