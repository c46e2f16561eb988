//! vxlan: a device that puts Ethernet frames into UDP. Its neighbours and forwarding entries say where to.

use std::fmt;
use std::net::IpAddr;

use crate::kind::Kind;
use crate::object::LinkName;

/// UDP port the kernel gives a device that names none (module parameter `udp_port`).
pub const DEFAULT_PORT: u16 = 8472;

/// What makes a vxlan device the device it is; a difference in any field but `learning` means a new device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port; `None` asks for the kernel's default and equals anything observed.
    pub port: Option<u16>,
    /// Outer source address.
    pub local: IpAddr,
    /// Name of the underlay link (`IFLA_VXLAN_LINK`).
    pub lower: LinkName,
    /// Learn forwarding entries from traffic.
    pub learning: bool,
    /// Group-based policy extension.
    pub gbp: bool,
}

impl Kind for Vxlan {
    const NAME: &'static str = "vxlan";
    const HAS_ENTRIES: bool = true;

    /// `flannel.<VNI>` carries IPv4, `flannel-v6.<VNI>` IPv6.
    fn bears(name: LinkName) -> bool {
        let name = name.as_str();
        let vni = name
            .strip_prefix("flannel.")
            .or_else(|| name.strip_prefix("flannel-v6."));
        vni.is_some_and(|vni| !vni.is_empty() && vni.bytes().all(|b| b.is_ascii_digit()))
    }

    fn lower(&self) -> Option<LinkName> {
        Some(self.lower)
    }

    /// The kernel cannot change VNI, port and policy extension of a living device; source address and underlay link it could,
    /// but Go flannel makes the device anew then and peers tell the two apart by nothing, so the simpler way is kept.
    fn is_same_device(&self, observed: &Vxlan) -> bool {
        self.vni == observed.vni
            && self.local == observed.local
            && self.lower == observed.lower
            && self.gbp == observed.gbp
            && self.port.is_none_or(|port| observed.port == Some(port))
    }

    fn is_met_by(&self, observed: &Vxlan) -> bool {
        self.is_same_device(observed) && self.learning == observed.learning
    }

    /// One VNI and port go to one device of each address family.
    fn excludes(&self, other: &Vxlan) -> bool {
        let port = |vxlan: &Vxlan| vxlan.port.unwrap_or(DEFAULT_PORT);
        self.vni == other.vni && port(self) == port(other) && self.local.is_ipv4() == other.local.is_ipv4()
    }
}

impl fmt::Display for Vxlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vxlan id {} local {} dev {}", self.vni, self.local, self.lower)?;
        if let Some(port) = self.port {
            write!(f, " dstport {port}")?;
        }
        f.write_str(if self.learning { " learning" } else { " nolearning" })?;
        f.write_str(if self.gbp { " gbp" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vtep() -> Vxlan {
        Vxlan {
            vni: 1,
            port: Some(8472),
            local: "192.0.2.1".parse().unwrap(),
            lower: LinkName::new("eth0").unwrap(),
            learning: false,
            gbp: false,
        }
    }

    #[test]
    fn device_when_anything_but_learning_differs_then_it_is_another() {
        let wanted = vtep();
        assert!(wanted.is_met_by(&vtep()));
        let learning = Vxlan {
            learning: true,
            ..vtep()
        };
        assert!(wanted.is_same_device(&learning) && !wanted.is_met_by(&learning));
        let others = [
            Vxlan { vni: 2, ..vtep() },
            Vxlan {
                port: Some(4789),
                ..vtep()
            },
            Vxlan {
                local: "192.0.2.2".parse().unwrap(),
                ..vtep()
            },
            Vxlan {
                lower: LinkName::new("eth1").unwrap(),
                ..vtep()
            },
            Vxlan { gbp: true, ..vtep() },
        ];
        for other in others {
            assert!(
                !wanted.is_same_device(&other) && !wanted.is_met_by(&other),
                "{other}"
            );
        }
        let any_port = Vxlan { port: None, ..vtep() };
        assert!(any_port.is_met_by(&Vxlan {
            port: Some(4789),
            ..vtep()
        }));
        assert!(!wanted.is_met_by(&any_port));
    }

    #[test]
    fn devices_when_vni_port_and_family_are_one_then_the_kernel_takes_one_of_them() {
        let there = vtep();
        let elsewhere = Vxlan {
            local: "192.0.2.9".parse().unwrap(),
            port: None,
            gbp: true,
            ..vtep()
        };
        assert!(there.excludes(&elsewhere) && elsewhere.excludes(&there));
        let beside = [
            Vxlan { vni: 2, ..vtep() },
            Vxlan {
                port: Some(4789),
                ..vtep()
            },
            Vxlan {
                local: "2001:db8::1".parse().unwrap(),
                ..vtep()
            },
        ];
        assert!(beside.iter().all(|other| !there.excludes(other)));
    }

    #[test]
    fn name_when_of_our_form_then_ours() {
        let bears = |name: &str| Vxlan::bears(LinkName::new(name).unwrap());
        assert!(
            ["flannel.1", "flannel-v6.4096", "flannel.0"]
                .into_iter()
                .all(bears)
        );
        assert!(
            ![
                "flannel.",
                "flannel.ipip",
                "flannel0",
                "flannel-v6",
                "vxlan.1",
                "flannel.1a"
            ]
            .into_iter()
            .any(bears)
        );
    }
}
