//! Addresses of links.

use std::fmt;

use ipnet::IpNet;

use super::{Key, LinkName};

/// An address of a link. Scope global, no broadcast, IPv6 without duplicate address detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The link that holds it.
    pub link: LinkName,
    /// Address and prefix length.
    pub address: IpNet,
}

impl Address {
    /// Identity of the object.
    pub fn key(&self) -> Key {
        Key::Address(self.link, self.address)
    }

    /// Whether it is of the form of those that flannel puts on its devices: a host's, without a prefix around it.
    pub fn is_host(&self) -> bool {
        self.address.prefix_len() == self.address.max_prefix_len()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address {} dev {}", self.address, self.link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_when_it_has_no_prefix_around_it_then_a_hosts() {
        let is_host = |address: &str| {
            let address = address.parse().unwrap();
            let link = LinkName::new("flannel.1").unwrap();
            Address { link, address }.is_host()
        };
        assert!(is_host("10.244.1.0/32") && is_host("fd00::/128"));
        assert!(!is_host("10.244.1.0/31") && !is_host("fd00::/32"));
    }
}
