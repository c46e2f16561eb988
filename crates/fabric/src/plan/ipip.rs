//! ipip: one device, and per peer one onlink route whose gateway, the peer's public address, is where the packet goes. IPv4 only.

use ipnet::IpNet;

use crate::config::{NetworkConfig, RawBackend};
use crate::kind::Ipip;
use crate::node::{Node, Underlay};
use crate::object::{Address, Family, Link, LinkName, Object, ROUTE_PROTOCOL, Route};
use crate::plan::{Backend, Need, Peer, PeerPlan, PlanError, carries_only};

/// `Backend.Type` and `BackendType`.
pub const TYPE: &str = "ipip";
/// Its keys in `Backend`.
pub const KEYS: &[&str] = &["Type", "DirectRouting"];

const DEVICE: &str = "flannel.ipip";
/// Bytes of the outer IPv4 header.
const OVERHEAD: u32 = 20;
/// Smallest MTU with which the kernel runs IPv4 on a device (`ETH_MIN_MTU`).
const MIN_MTU: u32 = 68;

/// The `Backend` object of the network config.
struct Config {
    direct_routing: bool,
}

/// Reads the `Backend` object.
pub fn parse(raw: &RawBackend) -> Result<Box<dyn Backend>, PlanError> {
    let fields = raw.fields()?;
    Ok(Box::new(Config {
        direct_routing: fields.bool("DirectRouting")?.unwrap_or(false),
    }))
}

/// The device; its MTU is what the underlay leaves.
fn link(node: &Node) -> Option<Link> {
    Some(Link {
        name: LinkName::new(DEVICE)?,
        kind: Ipip {
            // The interface's own address and not the advertised one: behind NAT that is none of the host's.
            local: node.underlay.address4?,
            remote: None,
            plain: true,
        }
        .into(),
        mac: None,
        mtu: node.underlay.mtu.saturating_sub(OVERHEAD),
        up: true,
    })
}

impl Backend for Config {
    fn name(&self) -> &'static str {
        TYPE
    }

    fn needs(&self) -> &[Need] {
        if self.direct_routing {
            &[Need::DirectRoutes]
        } else {
            &[]
        }
    }

    fn links(&self, _: &NetworkConfig) -> Vec<LinkName> {
        LinkName::new(DEVICE).into_iter().collect()
    }

    fn check(&self, network: &NetworkConfig) -> Result<(), PlanError> {
        carries_only(Family::V4, TYPE, network)
    }

    fn mtu(&self, network: &NetworkConfig, underlay: &Underlay) -> Result<u32, PlanError> {
        self.check(network)?;
        if underlay.address4.is_none() {
            return Err(PlanError::Underlay(format!(
                "interface {} has no IPv4 address",
                underlay.link
            )));
        }
        let mtu = underlay.mtu.saturating_sub(OVERHEAD);
        if mtu < MIN_MTU {
            return Err(PlanError::Underlay(format!(
                "MTU {} of interface {} leaves {mtu} bytes inside ipip; at least {MIN_MTU} are needed",
                underlay.mtu, underlay.link
            )));
        }
        Ok(mtu)
    }

    fn own_objects(&self, node: &Node) -> Vec<Object> {
        let (Some(link), Some(subnet)) = (link(node), node.subnet.of(Family::V4)) else {
            return Vec::new();
        };
        let address = Address {
            link: link.name,
            address: IpNet::from(subnet.network()),
        };
        vec![Object::Address(address), Object::Link(Box::new(link))]
    }

    fn plan_peer(&self, node: &Node, peer: &Peer<'_>, plan: &mut PeerPlan) {
        let Some(half) = peer.v4 else { return };
        let direct = node
            .provided
            .direct
            .get(&half.public)
            .filter(|_| self.direct_routing)
            .copied();
        let Some(link) = direct.or_else(|| LinkName::new(DEVICE)) else {
            return;
        };
        plan.objects.push(Object::Route(Route {
            destination: half.subnet,
            metric: half.family.default_metric(),
            gateway: Some(half.public),
            link,
            // COMPAT: Go flannel says so of direct routes too.
            onlink: true,
            protocol: ROUTE_PROTOCOL,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Identity, Provided};
    use crate::object::Objects;
    use crate::plan::tests::{lease, network, node_of};
    use crate::plan::{backend, plan_peer};

    const CONFIG: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"ipip","directrouting":true}}"#;
    const PEER: &str = r#"{"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"ipip"}"#;

    fn host(json: &str) -> (Box<dyn Backend>, Node) {
        let network = network(json);
        let backend = backend(&network.backend).unwrap();
        let node = node_of(&*backend, network, "10.244.1.0-24");
        (backend, node)
    }

    fn texts(objects: &[Object]) -> Vec<String> {
        objects.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn host_when_planned_then_the_device_of_table_i1_and_its_address() {
        let (backend, mut node) = host(CONFIG);
        let expected = [
            "address 10.244.1.0/32 dev flannel.ipip",
            "link flannel.ipip mtu 1480 up ipip local 192.0.2.1",
        ];
        assert_eq!(texts(&backend.own_objects(&node)), expected);
        // Behind NAT: what peers are told is not what packets are sent from.
        node.underlay.public4 = "203.0.113.1".parse().ok();
        assert_eq!(texts(&backend.own_objects(&node)), expected);
        let attributes = backend.attributes(&node.network, &node.underlay, &Identity::default());
        assert_eq!(
            attributes.to_json(),
            r#"{"PublicIP":"203.0.113.1","PublicIPv6":null,"BackendType":"ipip"}"#
        );
        let links = backend.links(&node.network);
        assert_eq!(links, [LinkName::new("flannel.ipip").unwrap()]);
        let identity = backend.identity(
            &node.network,
            &node.subnet,
            &Objects::new(),
            None,
            &Provided::default(),
        );
        assert_eq!(identity, Identity::default());
    }

    #[test]
    fn peer_when_behind_a_router_then_through_the_tunnel_else_through_the_link_it_is_on() {
        let (backend, mut node) = host(CONFIG);
        let peer = lease("10.244.2.0-24", PEER, 1);
        assert_eq!(
            texts(&plan_peer(&*backend, &node, &peer).objects),
            ["route 10.244.2.0/24 via 192.0.2.2 dev flannel.ipip onlink"]
        );
        let lan = LinkName::new("eth1").unwrap();
        node.provided.direct.insert("192.0.2.2".parse().unwrap(), lan);
        assert_eq!(
            texts(&plan_peer(&*backend, &node, &peer).objects),
            ["route 10.244.2.0/24 via 192.0.2.2 dev eth1 onlink"]
        );
        assert_eq!(backend.needs(), [Need::DirectRoutes]);
        let (plain, _) = host(&CONFIG.replace("true", "false"));
        assert_eq!(plain.needs(), []);
        assert_eq!(
            texts(&plan_peer(&*plain, &node, &peer).objects),
            ["route 10.244.2.0/24 via 192.0.2.2 dev flannel.ipip onlink"],
            "not asked for"
        );
    }

    #[test]
    fn peer_when_its_lease_has_ipv6_too_then_the_half_we_run_is_served() {
        let (backend, node) = host(CONFIG);
        let both = PEER.replace("null", "\"2001:db8::2\"");
        let plan = plan_peer(&*backend, &node, &lease("10.244.2.0-24&fd00::-64", &both, 1));
        assert_eq!((plan.objects.len(), plan.problems.len()), (1, 0));
    }

    #[test]
    fn mtu_when_ipv6_is_on_or_the_underlay_is_too_narrow_then_refused_by_name() {
        let (backend, mut node) = host(CONFIG);
        assert_eq!(backend.mtu(&node.network, &node.underlay), Ok(1480));
        let dual = network(
            r#"{"Network":"10.244.0.0/16","IPv6Network":"fd00::/48","EnableIPv6":true,"Backend":{"Type":"ipip"}}"#,
        );
        let refused = backend.mtu(&dual, &node.underlay).unwrap_err().to_string();
        assert!(
            refused.contains("\"ipip\" carries IPv4 only: expected EnableIPv4 true and EnableIPv6 false"),
            "{refused}"
        );
        node.underlay.mtu = 88;
        assert_eq!(backend.mtu(&node.network, &node.underlay), Ok(68));
        node.underlay.mtu = 87;
        let refused = backend.mtu(&node.network, &node.underlay).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "MTU 87 of interface eth0 leaves 67 bytes inside ipip; at least 68 are needed"
        );
        node.underlay.address4 = None;
        let refused = backend.mtu(&node.network, &node.underlay).unwrap_err();
        assert_eq!(refused.to_string(), "interface eth0 has no IPv4 address");
    }

    #[test]
    fn config_when_direct_routing_is_no_bool_then_refused_by_name() {
        let bad = network(&CONFIG.replace("true", "\"yes\""));
        let refused = crate::plan::backend(&bad.backend).err().unwrap().to_string();
        assert!(refused.contains("irect"), "{refused}");
    }
}
