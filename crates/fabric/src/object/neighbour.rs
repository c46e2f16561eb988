//! Neighbours: the hardware address of a protocol address.

use std::fmt;
use std::net::IpAddr;

use super::{Key, LinkName, Mac};

/// A permanent neighbour entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The link it is on.
    pub link: LinkName,
    /// Protocol address.
    pub address: IpAddr,
    /// Hardware address.
    pub mac: Mac,
}

impl Neighbour {
    /// Identity of the object.
    pub fn key(&self) -> Key {
        Key::Neighbour(self.link, self.address)
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "neighbour {} lladdr {} dev {} permanent",
            self.address, self.mac, self.link
        )
    }
}
