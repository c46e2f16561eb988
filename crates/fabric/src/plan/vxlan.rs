//! vxlan: one device per family, and per peer one neighbour, one forwarding entry and one onlink route.
//!
//! The route's gateway is the peer's subnet base on the device, the neighbour gives it the peer's VTEP MAC, and the
//! forwarding entry gives that MAC the peer's public address.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{NetworkConfig, RawBackend};
use crate::go_json::{Fields, shorten};
use crate::kind::Vxlan;
use crate::lease::{Attributes, Subnet};
use crate::node::{Identity, Node, Provided, Underlay};
use crate::object::{
    Address, Family, Forwarding, Key, Link, LinkKind, LinkName, Mac, Neighbour, Object, Objects,
    ROUTE_PROTOCOL, Route,
};
use crate::plan::{Backend, Need, Peer, PeerHalf, PeerPlan, PlanError};

/// `Backend.Type` and `BackendType`.
pub const TYPE: &str = "vxlan";

/// Its keys in `Backend`. `MacPrefix` and `Name` are for the Windows nodes of a cluster.
pub const KEYS: &[&str] = &[
    "Type",
    "VNI",
    "Port",
    "MTU",
    "GBP",
    "Learning",
    "DirectRouting",
    "MacPrefix",
    "Name",
];

/// Smallest MTU with which the kernel runs IPv4 (`ETH_MIN_MTU`) and IPv6 (RFC 8200) on a device.
const MIN_MTU: [u32; 2] = [68, 1280];

/// The `Backend` object of the network config.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Config {
    vni: u32,
    port: Option<u16>,
    /// MTU of the underlay, bytes; the devices get less by the encapsulation.
    mtu: Option<u32>,
    gbp: bool,
    learning: bool,
    direct_routing: bool,
}

/// Reads the `Backend` object. `MacPrefix` (of Windows nodes) is accepted and unused.
pub fn parse(raw: &RawBackend) -> Result<Box<dyn Backend>, PlanError> {
    let fields = raw.fields()?;
    let vni = fields.u32("VNI")?.unwrap_or(1);
    // A device name has 15 bytes: `flannel-v6.9999` is the longest that fits, `flannel.9999999` for IPv4 alone.
    if vni >= 1 << 24 {
        return Err(PlanError::Config {
            key: "VNI",
            value: vni.to_string(),
            expected: "0 to 16777215".to_owned(),
        });
    }
    let port = fields.u32("Port")?.unwrap_or(0);
    let port = u16::try_from(port).map_err(|_| PlanError::Config {
        key: "Port",
        value: port.to_string(),
        expected: "a UDP port, 0 (kernel default) to 65535".to_owned(),
    })?;
    let mtu = fields.u32("MTU")?;
    if let Some(mtu) = mtu.filter(|mtu| !(118..=65535).contains(mtu)) {
        return Err(PlanError::Config {
            key: "MTU",
            value: mtu.to_string(),
            expected: "bytes of the underlay's largest packet, 118 to 65535".to_owned(),
        });
    }
    Ok(Box::new(Config {
        vni,
        port: (port != 0).then_some(port),
        mtu,
        gbp: fields.bool("GBP")?.unwrap_or(false),
        learning: fields.bool("Learning")?.unwrap_or(false),
        direct_routing: fields.bool("DirectRouting")?.unwrap_or(false),
    }))
}

/// What peers know this node by: the VTEP MAC of each family's device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Macs {
    pub(super) v4: Option<Mac>,
    pub(super) v6: Option<Mac>,
}

impl Macs {
    fn of(identity: &Identity, family: Family) -> Option<Mac> {
        let macs = identity.open::<Macs>()?;
        match family {
            Family::V4 => macs.v4,
            Family::V6 => macs.v6,
        }
    }
}

/// Bytes that encapsulation adds on an underlay of this family: outer IP, UDP 8, VXLAN 8, inner Ethernet 14.
fn overhead(family: Family) -> u32 {
    match family {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

impl Config {
    fn link_name(&self, family: Family) -> Option<LinkName> {
        LinkName::new(&match family {
            Family::V4 => format!("flannel.{}", self.vni),
            Family::V6 => format!("flannel-v6.{}", self.vni),
        })
    }

    /// MTU of one family's device. An `MTU` above the underlay's would be clamped by the kernel; we say what it does.
    fn device_mtu(&self, family: Family, underlay: &Underlay) -> u32 {
        self.mtu
            .unwrap_or(underlay.mtu)
            .min(underlay.mtu)
            .saturating_sub(overhead(family))
    }

    /// The device that carries a family, if it can be named.
    fn link(&self, family: Family, node: &Node) -> Option<Link> {
        Some(Link {
            name: self.link_name(family)?,
            kind: LinkKind::Vxlan(Box::new(Vxlan {
                vni: self.vni,
                port: self.port,
                // COMPAT: Go since 0.27.4 binds the *advertised* address, which behind NAT is none of the host's own and
                // stops all traffic; the interface's own is what every other version uses.
                local: node.underlay.address(family)?,
                lower: node.underlay.link,
                learning: self.learning,
                gbp: self.gbp,
            })),
            mac: Macs::of(&node.identity, family),
            mtu: self.device_mtu(family, &node.underlay),
            up: true,
        })
    }

    /// What one family of a peer needs.
    fn plan_half(&self, node: &Node, peer: &PeerHalf<'_>, objects: &mut Vec<Object>) -> Result<(), String> {
        let route = |gateway, link, onlink| Route {
            destination: peer.subnet,
            metric: peer.family.default_metric(),
            gateway: Some(gateway),
            link,
            onlink,
            protocol: ROUTE_PROTOCOL,
        };
        if self.direct_routing
            && let Some(link) = node.provided.direct.get(&peer.public)
        {
            objects.push(Object::Route(route(peer.public, *link, false)));
            return Ok(());
        }
        let mac = peer_mac(peer.data)?;
        if Some(mac) == Macs::of(&node.identity, peer.family) {
            return Err(format!("VtepMAC {mac} is our own: was this machine cloned?"));
        }
        let link = self.link_name(peer.family).ok_or("device cannot be named")?;
        let gateway: IpAddr = peer.subnet.network();
        objects.extend([
            Object::Neighbour(Neighbour {
                link,
                address: gateway,
                mac,
            }),
            Object::Forwarding(Forwarding {
                link,
                mac,
                remote: peer.public,
            }),
            Object::Route(route(gateway, link, true)),
        ]);
        Ok(())
    }
}

impl Backend for Config {
    fn name(&self) -> &'static str {
        TYPE
    }

    fn links(&self, network: &NetworkConfig) -> Vec<LinkName> {
        network
            .families()
            .filter_map(|family| self.link_name(family))
            .collect()
    }

    fn check(&self, network: &NetworkConfig) -> Result<(), PlanError> {
        match network
            .families()
            .find(|family| self.link_name(*family).is_none())
        {
            None => Ok(()),
            Some(family) => Err(PlanError::Config {
                key: "VNI",
                value: self.vni.to_string(),
                expected: format!(
                    "at most 9999999 for IPv4 and 9999 for IPv6: the {family} device's name has 15 characters"
                ),
            }),
        }
    }

    fn without_effect(&self, underlay: &Underlay) -> Vec<String> {
        let larger = self.mtu.filter(|mtu| *mtu > underlay.mtu);
        let said = larger.map(|mtu| {
            format!(
                "Backend.MTU is {mtu}: it has no effect, since interface {} carries packets of {} bytes at most",
                underlay.link, underlay.mtu
            )
        });
        said.into_iter().collect()
    }

    fn mtu(&self, network: &NetworkConfig, underlay: &Underlay) -> Result<u32, PlanError> {
        self.check(network)?;
        let mut smallest = u32::MAX;
        for family in network.families() {
            if underlay.address(family).is_none() {
                return Err(PlanError::Underlay(format!(
                    "interface {} has no {family} address",
                    underlay.link
                )));
            }
            let mtu = self.device_mtu(family, underlay);
            let least = MIN_MTU[usize::from(family == Family::V6)];
            if mtu < least {
                return Err(PlanError::Underlay(format!(
                    "MTU {} of interface {} leaves {mtu} bytes for {family} inside vxlan; at least {least} are needed",
                    self.mtu.unwrap_or(underlay.mtu).min(underlay.mtu),
                    underlay.link
                )));
            }
            smallest = smallest.min(mtu);
        }
        Ok(smallest)
    }

    fn identity(
        &self,
        network: &NetworkConfig,
        subnet: &Subnet,
        observed: &Objects,
        own: Option<&Attributes>,
        _: &Provided,
    ) -> Identity {
        let mac = |family: Family| {
            let space = network.space(family)?;
            let device = self
                .link_name(family)
                .filter(|name| is_of(*name, subnet.of(family), observed))
                .and_then(|name| match observed.get(&Key::Link(name)) {
                    Some(Object::Link(link)) if matches!(link.kind, LinkKind::Vxlan(_)) => link.mac,
                    _ => None,
                });
            let published = || peer_mac(own?.data_of(family)).ok();
            let derived = || Some(derive_mac(&space.network, &subnet.of(family)?, self.vni, family));
            device.filter(is_usable).or_else(published).or_else(derived)
        };
        Identity::new(Macs {
            v4: mac(Family::V4),
            v6: mac(Family::V6),
        })
    }

    fn attributes(&self, network: &NetworkConfig, underlay: &Underlay, identity: &Identity) -> Attributes {
        // COMPAT: field order and the missing blanks matter: a Go node reads its own MAC back by splitting this text.
        let data = |family: Family| {
            network.space(family)?;
            let mac = Macs::of(identity, family)?;
            Some(format!("{{\"VNI\":{},\"VtepMAC\":\"{mac}\"}}", self.vni).into_boxed_str())
        };
        let mut attributes = Node::base_attributes(network, underlay, self.wire_type());
        attributes.data = data(Family::V4);
        attributes.data6 = data(Family::V6);
        attributes
    }

    fn own_objects(&self, node: &Node) -> Vec<Object> {
        let mut objects = Vec::new();
        for family in node.network.families() {
            let (Some(link), Some(subnet)) = (self.link(family, node), node.subnet.of(family)) else {
                continue;
            };
            let Ok(address) = IpNet::new(subnet.network(), family.bits()) else {
                continue;
            };
            objects.push(Object::Address(Address {
                link: link.name,
                address,
            }));
            objects.push(Object::Link(Box::new(link)));
        }
        objects
    }

    fn needs(&self) -> &[Need] {
        if self.direct_routing {
            &[Need::DirectRoutes]
        } else {
            &[]
        }
    }

    fn plan_peer(&self, node: &Node, peer: &Peer<'_>, plan: &mut PeerPlan) {
        for half in peer.halves() {
            plan.serve(half.family, |objects| self.plan_half(node, &half, objects));
        }
    }
}

/// The VTEP MAC in a lease's data: `{"VNI":1,"VtepMAC":"aa:…"}`, before 0.13.1 without `VNI`.
///
/// The VNI of a peer is not looked at: one Network has one.
fn peer_mac(data: Option<&str>) -> Result<Mac, String> {
    let data = data
        .filter(|data| *data != "null" && !data.is_empty())
        .ok_or("lease has no vxlan data")?;
    let fields = Fields::parse(data).map_err(|error| format!("vxlan data: {error}"))?;
    let text = fields
        .string("VtepMAC")
        .map_err(|error| format!("vxlan data: {error}"))?
        .unwrap_or_default();
    if text.is_empty() {
        return Err("the peer has not published its VtepMAC yet".to_owned());
    }
    Mac::parse(&text).filter(is_usable).ok_or_else(|| {
        format!(
            "vxlan data: VtepMAC is {:?}; expected a unicast MAC address of 6 bytes",
            shorten(&text)
        )
    })
}

/// Whether a device has the address that says it is this subnet's.
///
/// What has another, or none any more, may be left from a subnet that this node had before. Its MAC stays behind with that
/// subnet: whoever holds it next may derive the same one, and two nodes with one MAC cannot both be reached.
fn is_of(name: LinkName, subnet: Option<IpNet>, observed: &Objects) -> bool {
    let address = subnet.and_then(|subnet| IpNet::new(subnet.network(), subnet.max_prefix_len()).ok());
    address.is_some_and(|address| observed.contains_key(&Key::Address(name, address)))
}

/// Whether a device can have this MAC: unicast and not all zero.
fn is_usable(mac: &Mac) -> bool {
    mac.0[0] & 1 == 0 && mac.0 != [0; 6]
}

/// A MAC that is the same each time this node comes up with this subnet, and another one for every subnet, VNI and family.
///
/// FNV-1a over the text with a finaliser (splitmix64): stable across versions and machines, which is all that is asked of
/// it. Locally administered, unicast.
fn derive_mac(network: &IpNet, subnet: &IpNet, vni: u32, family: Family) -> Mac {
    let mut hash = crate::digest::fnv1a(format!("{network} {subnet} {vni} {family}").as_bytes());
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let [_, _, a, b, c, d, e, f] = (hash ^ (hash >> 31)).to_be_bytes();
    Mac([(a & 0xfe) | 0x02, b, c, d, e, f])
}

#[cfg(test)]
mod tests;
