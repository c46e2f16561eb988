//! alloc: subnets are handed out, and whoever runs the hosts sees to the ways between them. Nothing is put into the kernel.

use crate::config::{NetworkConfig, RawBackend};
use crate::node::{Node, Underlay};
use crate::object::LinkName;
use crate::plan::{Backend, Peer, PeerPlan, PlanError};

/// `Backend.Type`.
pub const TYPE: &str = "alloc";
/// Its keys in `Backend`.
pub const KEYS: &[&str] = &["Type"];

struct Alloc;

/// There is nothing to configure.
pub fn parse(_: &RawBackend) -> Result<Box<dyn Backend>, PlanError> {
    Ok(Box::new(Alloc))
}

impl Backend for Alloc {
    fn name(&self) -> &'static str {
        TYPE
    }

    /// COMPAT: as in the reference, whose clouds write none either.
    fn wire_type(&self) -> &'static str {
        ""
    }

    /// Nothing is done for any peer, so none of them is one that cannot be served.
    fn serves(&self, _: &str) -> bool {
        true
    }

    fn links(&self, _: &NetworkConfig) -> Vec<LinkName> {
        Vec::new()
    }

    fn mtu(&self, network: &NetworkConfig, underlay: &Underlay) -> Result<u32, PlanError> {
        match network
            .families()
            .find(|family| underlay.public(*family).is_none())
        {
            Some(family) => Err(PlanError::Underlay(format!(
                "interface {} has no {family} address",
                underlay.link
            ))),
            None => Ok(underlay.mtu),
        }
    }

    fn plan_peer(&self, _: &Node, _: &Peer<'_>, _: &mut PeerPlan) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Identity;
    use crate::plan::tests::{lease, network, node_of};
    use crate::plan::{backend, plan_peer};

    const DUAL: &str = r#"{"Network":"10.244.0.0/16","IPv6Network":"fd00:10:244::/48","EnableIPv6":true,"Backend":{"Type":"alloc"}}"#;

    fn host(json: &str, subnet: &str) -> (Box<dyn Backend>, Node) {
        let network = network(json);
        let backend = backend(&network.backend).unwrap();
        let node = node_of(&*backend, network, subnet);
        (backend, node)
    }

    #[test]
    fn lease_when_written_then_has_the_addresses_and_no_type() {
        let v4 = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"ALLOC"}}"#;
        let (backend, node) = host(v4, "10.244.1.0-24");
        let attributes = backend.attributes(&node.network, &node.underlay, &Identity::default());
        assert_eq!(
            attributes.to_json(),
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#
        );
        assert_eq!(backend.name(), "alloc");
    }

    #[test]
    fn peer_when_of_any_type_then_no_objects_and_no_problem() {
        let (backend, node) = host(DUAL, "10.244.1.0-24&fd00:10:244:1::-64");
        for wire_type in ["", r#","BackendType":"vxlan","BackendData":{"VtepMAC":"x"}"#] {
            let value = format!(r#"{{"PublicIP":"192.0.2.2","PublicIPv6":"2001:db8::2"{wire_type}}}"#);
            let peer = lease("10.244.2.0-24&fd00:10:244:2::-64", &value, 1);
            assert_eq!(plan_peer(&*backend, &node, &peer), PeerPlan::default());
        }
        assert_eq!(backend.own_objects(&node), []);
        assert_eq!(backend.links(&node.network), []);
    }

    #[test]
    fn mtu_when_asked_then_the_underlays_and_an_address_of_each_family_is_needed() {
        let (backend, mut node) = host(DUAL, "10.244.1.0-24&fd00:10:244:1::-64");
        assert_eq!(backend.mtu(&node.network, &node.underlay), Ok(1500));
        node.underlay.public6 = None;
        let refused = backend.mtu(&node.network, &node.underlay).unwrap_err();
        assert_eq!(refused.to_string(), "interface eth0 has no IPv6 address");
    }
}
