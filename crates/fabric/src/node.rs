//! What a plan has to know of the host it is for.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::Ipv4Net;

use crate::config::NetworkConfig;
use crate::lease::{Attributes, Subnet};
use crate::object::{Family, LinkName};

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
    /// IPv4 prefixes of the segments that this host is connected to by whatever link: their broadcast addresses are no host's.
    pub segments: Vec<Ipv4Net>,
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

/// What this node is known by to its peers beyond its addresses, such as hardware addresses or a public key: published in the
/// lease, set on devices.
///
/// Only the backend that made it knows what is in it; everybody else keeps it and compares it. It may hold keys, so it has no
/// text form.
#[derive(Clone, Default)]
pub struct Identity(Option<Arc<dyn Content>>);

/// Anything that can be compared with another of its type.
trait Content: Any + Send + Sync {
    fn is_equal(&self, other: &dyn Any) -> bool;
    fn as_any(&self) -> &dyn Any;
}

impl<T: Any + Eq + Send + Sync> Content for T {
    fn is_equal(&self, other: &dyn Any) -> bool {
        other.downcast_ref::<T>() == Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Identity {
    /// Takes what a backend is known by.
    pub fn new<T: Any + Eq + Send + Sync>(content: T) -> Identity {
        Identity(Some(Arc::new(content)))
    }

    /// What is in it, if that is a `T`.
    pub fn open<T: Any>(&self) -> Option<&T> {
        (**self.0.as_ref()?).as_any().downcast_ref()
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Identity) -> bool {
        match (&self.0, &other.0) {
            (Some(one), Some(other)) => one.is_equal((**other).as_any()),
            (one, other) => one.is_none() && other.is_none(),
        }
    }
}

impl Eq for Identity {}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

/// What the daemon found out for the backend's [needs](crate::plan::Need).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provided {
    /// Peers that the kernel routes to without a gateway, and the link it does so through.
    pub direct: BTreeMap<IpAddr, LinkName>,
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
    /// What the backend needs to know besides.
    pub provided: Provided,
}

impl Node {
    /// Lease attributes with the advertised addresses of the families in use; the backend adds its data.
    pub fn base_attributes(network: &NetworkConfig, underlay: &Underlay, wire_type: &str) -> Attributes {
        let v4 = network.space(Family::V4).and(underlay.public4);
        let v6 = network.space(Family::V6).and(underlay.public6);
        Attributes {
            public_ip: v4.unwrap_or(Ipv4Addr::UNSPECIFIED),
            public_ip6: v6,
            backend_type: wire_type.into(),
            data: None,
            data6: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_when_compared_then_by_type_and_content_and_its_text_shows_nothing() {
        let key = Identity::new("PRIVATE".to_owned());
        assert_eq!(key, Identity::new("PRIVATE".to_owned()));
        assert_ne!(key, Identity::new("OTHER".to_owned()));
        assert_ne!(key, Identity::new(7_u32));
        assert_ne!(key, Identity::default());
        assert_ne!(Identity::default(), key);
        assert_eq!(Identity::default(), Identity::default());
        assert_eq!(key.open::<String>().map(String::as_str), Some("PRIVATE"));
        assert_eq!(key.open::<u32>(), None);
        assert_eq!(Identity::default().open::<u32>(), None);
        assert_eq!(format!("{key:?}"), "Identity");
    }
}
