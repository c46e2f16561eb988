//! Forwarding entries: the outer destination of an inner hardware address.

use std::fmt;
use std::net::IpAddr;

use super::{Key, LinkName, Mac};

/// A permanent forwarding entry of a tunnel device (`AF_BRIDGE`, `NTF_SELF`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwarding {
    /// The device.
    pub link: LinkName,
    /// Inner destination.
    pub mac: Mac,
    /// Outer destination.
    pub remote: IpAddr,
}

impl Forwarding {
    /// Identity of the object.
    pub fn key(&self) -> Key {
        Key::Forwarding(self.link, self.mac)
    }
}

impl fmt::Display for Forwarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "fdb {} dst {} dev {} self permanent",
            self.mac, self.remote, self.link
        )
    }
}
