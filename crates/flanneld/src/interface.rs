//! Which interface carries the traffic between hosts, and by which addresses the others reach this one.
//!
//! The choice ([`select`]) is a pure function of what the user wished and what there is; [`inventory`] asks the kernel what
//! there is. It is made anew when the underlay changes, and the same input always gives the same answer: no order that the
//! kernel does not promise decides.

pub mod address;
pub mod inventory;
pub mod pattern;
mod select;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fabric::config::NetworkConfig;
use fabric::node::Underlay;
use fabric::object::{Family, LinkName};
use kernel::nl::NetlinkError;
use kernel::rtnl::Rtnl;

pub use inventory::{DefaultRoute, Inventory, LinkInfo};
pub use select::{SelectError, select, select_partly, select_renamed};

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
    /// Addresses of the registry: where there is no default route, the way to one of them decides.
    pub registry: Vec<IpAddr>,
}

/// The link that is in use already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Its index.
    pub index: u32,
    /// What it was called when it was chosen.
    pub link: LinkName,
}

/// A family of the network that this host cannot serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unserved {
    /// Which.
    pub family: Family,
    /// Why no interface serves both.
    pub why: String,
}

impl fmt::Display for Unserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unserved { family, why } = self;
        write!(f, "{family} is in the network and not served on this host: {why}")
    }
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
    /// Nothing but what there is decided: there is no default route, and no flag says which interface is meant.
    pub guessed: bool,
    /// The other family, where only one can be served.
    pub unserved: Option<Unserved>,
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

/// Takes stock of the calling thread's network namespace and chooses. What is in use already stays in use when all that happened to
/// it is another name.
///
/// # Errors
/// The kernel was not to be asked, or nothing fits.
pub fn choose(wish: &Wish, network: &NetworkConfig, held: Option<Held>) -> Result<Selected, ChooseError> {
    let mut rtnl = Rtnl::open()?;
    let found = Inventory::collect(&mut rtnl)?;
    let families = Families {
        v4: network.space(Family::V4).is_some(),
        v6: network.space(Family::V6).is_some(),
    };
    let mut reach = |to| inventory::reach(&mut rtnl, to);
    let selected = select_partly(wish, families, &found, &mut reach);
    let selected = match (selected, held) {
        // A default route that went for a moment is no reason to move to where none ever was.
        (Ok(selected), Some(held)) if selected.guessed && selected.index != held.index => Err(SelectError {
            attempts: vec![format!("{} has no default route any more", held.link)],
            there: select::describe(&found),
        }),
        (selected, _) => selected,
    };
    let selected = selected.or_else(|failure| {
        let held = held.and_then(|held| select_renamed(wish, families, &found, held, &failure));
        held.ok_or(failure)
    });
    Ok(selected?)
}
