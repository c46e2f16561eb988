//! vxlan on the wire: `IFLA_VXLAN_*` of `linux/if_link.h`.

use std::net::{IpAddr, Ipv4Addr};

use fabric::kind::vxlan::{DEFAULT_PORT, Vxlan};
use fabric::object::{Link, LinkName};
use rustix::io::Errno;

use crate::kind::Kind;
use crate::nl::{Attributes, Message};

const ID: u16 = 1;
const LINK: u16 = 3;
const LOCAL: u16 = 4;
const TTL: u16 = 5;
const TOS: u16 = 6;
const LEARNING: u16 = 7;
const PROXY: u16 = 11;
const RSC: u16 = 12;
const L2MISS: u16 = 13;
const L3MISS: u16 = 14;
const PORT: u16 = 15;
const LOCAL6: u16 = 17;
const UDP_ZERO_CSUM6_TX: u16 = 19;
const UDP_ZERO_CSUM6_RX: u16 = 20;
const GBP: u16 = 23;

/// What a vxlan device is made of, as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Outer source address, if set.
    pub local: Option<IpAddr>,
    /// Index of the underlay link; 0 when none is set.
    pub lower: u32,
    /// Learns forwarding entries from traffic.
    pub learning: bool,
    /// Group-based policy extension.
    pub gbp: bool,
}

impl Kind for Vxlan {
    type Observed = Observed;
    const HAS_MAC: bool = true;

    fn read(data: Attributes<'_>) -> Observed {
        let mut seen = Observed {
            vni: 0,
            port: 0,
            local: None,
            lower: 0,
            learning: false,
            gbp: false,
        };
        for attribute in data {
            match attribute.kind {
                ID => seen.vni = attribute.u32().unwrap_or(0),
                LINK => seen.lower = attribute.u32().unwrap_or(0),
                // Without a local address some kernels show the unspecified one.
                LOCAL | LOCAL6 => seen.local = attribute.ip().filter(|ip| !ip.is_unspecified()),
                LEARNING => seen.learning = attribute.u8() == Some(1),
                PORT => seen.port = attribute.be16().unwrap_or(0),
                GBP => seen.gbp = true,
                _ => {}
            }
        }
        seen
    }

    /// A device without local address has `0.0.0.0`, one without known underlay link has itself as `lower`.
    fn to_object(seen: &Observed, name: LinkName, name_of: &dyn Fn(u32) -> Option<LinkName>) -> Vxlan {
        Vxlan {
            vni: seen.vni,
            port: Some(seen.port),
            local: seen.local.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            lower: name_of(seen.lower).unwrap_or(name),
            learning: seen.learning,
            gbp: seen.gbp,
        }
    }

    /// COMPAT: attributes, their order and the explicit zeroes are what Go flannel sends.
    fn write(&self, data: Message, lower: u32) -> Message {
        let local = if self.local.is_ipv4() { LOCAL } else { LOCAL6 };
        let mut data = data
            .u32(ID, self.vni)
            .u32(LINK, lower)
            .ip(local, self.local)
            .u8(TTL, 0)
            .u8(TOS, 0)
            .u8(LEARNING, u8::from(self.learning))
            .u8(PROXY, 0)
            .u8(RSC, 0)
            .u8(L2MISS, 0)
            .u8(L3MISS, 0)
            .u8(UDP_ZERO_CSUM6_TX, 0)
            .u8(UDP_ZERO_CSUM6_RX, 0);
        if self.gbp {
            data = data.attribute(GBP, &[]);
        }
        match self.port {
            Some(port) if port > 0 => data.be16(PORT, port),
            _ => data,
        }
    }

    fn write_change(&self, data: Message) -> Message {
        data.u8(LEARNING, u8::from(self.learning))
    }

    fn explain(errno: Errno) -> Option<&'static str> {
        match errno {
            Errno::OPNOTSUPP => Some(
                "this kernel has no vxlan devices (module vxlan); `modprobe vxlan` loads the module where it is installed",
            ),
            Errno::ADDRINUSE => Some("its UDP port is taken by somebody else; `ss -lunp` names who has it"),
            _ => None,
        }
    }

    fn complete(&mut self, mtu: u32, lower: Option<&Link>) -> Result<(), Errno> {
        if mtu > lower.ok_or(Errno::NODEV)?.mtu {
            return Err(Errno::INVAL);
        }
        self.port.get_or_insert(DEFAULT_PORT);
        Ok(())
    }

    fn become_like(&mut self, wanted: &Vxlan) -> Result<(), Errno> {
        if (wanted.vni, wanted.lower, wanted.gbp) != (self.vni, self.lower, self.gbp) {
            return Err(Errno::OPNOTSUPP);
        }
        self.learning = wanted.learning;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explain_when_the_port_is_taken_or_the_module_missing_then_says_so_and_otherwise_nothing() {
        let port = Vxlan::explain(Errno::ADDRINUSE).unwrap();
        assert!(port.contains("UDP port is taken"), "{port}");
        let module = Vxlan::explain(Errno::OPNOTSUPP).unwrap();
        assert!(module.contains("modprobe vxlan"), "{module}");
        assert_eq!(
            Vxlan::explain(Errno::EXIST),
            None,
            "the kernel's own words are better"
        );
    }

    fn ours() -> Vxlan {
        Vxlan {
            vni: 1,
            port: None,
            local: "192.0.2.1".parse().unwrap(),
            lower: LinkName::new("eth0").unwrap(),
            learning: false,
            gbp: false,
        }
    }

    /// What is read of attributes as the kernel writes them.
    fn seen(data: Message) -> Observed {
        let mut bytes = Vec::new();
        data.write(0, &mut bytes);
        Vxlan::read(crate::nl::message::attributes(&bytes[16..]))
    }

    #[test]
    fn device_when_shown_then_each_of_its_settings_and_an_unspecified_address_is_none() {
        let empty = Message::new("", 16, 0);
        let nothing = seen(empty.clone());
        let expected = Observed {
            vni: 0,
            port: 0,
            local: None,
            lower: 0,
            learning: false,
            gbp: false,
        };
        assert_eq!(nothing, expected);
        let v4 = empty.clone().ip(4, "192.0.2.1".parse().unwrap()).u8(7, 0);
        assert_eq!(seen(v4).local, Some("192.0.2.1".parse().unwrap()));
        let v6 = empty.clone().ip(17, "2001:db8::1".parse().unwrap());
        assert_eq!(seen(v6).local, Some("2001:db8::1".parse().unwrap()));
        let unspecified = empty.clone().ip(4, "0.0.0.0".parse().unwrap());
        assert_eq!(seen(unspecified).local, None);
        let full = seen(
            empty
                .u32(1, 7)
                .u32(3, 5)
                .u8(7, 1)
                .be16(15, 8472)
                .attribute(23, &[]),
        );
        let expected = Observed {
            vni: 7,
            port: 8472,
            local: None,
            lower: 5,
            learning: true,
            gbp: true,
        };
        assert_eq!(full, expected);
        let name = LinkName::new("flannel.7").unwrap();
        let object = Vxlan::to_object(&full, name, &|_| None);
        assert_eq!(
            (object.lower, object.local.is_unspecified(), object.port),
            (name, true, Some(8472))
        );
        let object = Vxlan::to_object(&full, name, &|index| (index == 5).then(|| ours().lower));
        assert_eq!(
            (object.lower, object.vni, object.learning, object.gbp),
            (ours().lower, 7, true, true)
        );
    }

    #[test]
    fn device_when_made_in_memory_then_it_fits_the_link_below_and_has_the_kernels_port() {
        let below = |mtu| Link {
            name: ours().lower,
            kind: fabric::object::LinkKind::Other("".into()),
            mac: None,
            mtu,
            up: true,
        };
        let complete =
            |mut vxlan: Vxlan, mtu, lower: Option<&Link>| vxlan.complete(mtu, lower).map(|()| vxlan.port);
        assert_eq!(complete(ours(), 1450, None), Err(Errno::NODEV));
        assert_eq!(complete(ours(), 1501, Some(&below(1500))), Err(Errno::INVAL));
        for mtu in [1450, 1500] {
            assert_eq!(complete(ours(), mtu, Some(&below(1500))), Ok(Some(DEFAULT_PORT)));
        }
        let own = Vxlan {
            port: Some(4789),
            ..ours()
        };
        assert_eq!(complete(own, 1450, Some(&below(1500))), Ok(Some(4789)));
    }

    #[test]
    fn device_when_changed_in_place_then_only_its_learning() {
        let lower = LinkName::new("eth1").unwrap();
        for other in [
            Vxlan { vni: 2, ..ours() },
            Vxlan { lower, ..ours() },
            Vxlan { gbp: true, ..ours() },
        ] {
            assert_eq!(ours().become_like(&other), Err(Errno::OPNOTSUPP));
        }
        let mut device = ours();
        device
            .become_like(&Vxlan {
                learning: true,
                ..ours()
            })
            .unwrap();
        assert!(device.learning);
    }
}
