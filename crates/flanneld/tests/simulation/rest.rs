//! What a cluster that nobody disturbs any more comes to: what a fresh start would make of the registry, worked out by hand.

use std::collections::BTreeSet;

use fabric::object::Object;

use crate::case::World;
use crate::node::is_ours;
use crate::oracle::node_of;

/// A lease as its text says.
struct Said {
    subnet: String,
    address: String,
    mac: String,
}

fn said(key: &str, value: &str) -> Said {
    let field = |name: &str| {
        let rest = value.split(&format!("\"{name}\":\"")).nth(1);
        rest.and_then(|rest| rest.split('"').next())
            .unwrap_or_default()
            .to_owned()
    };
    Said {
        subnet: key.replace('-', "/"),
        address: field("PublicIP"),
        mac: field("VtepMAC"),
    }
}

/// What is still not as it shall be.
pub fn unrest(world: &mut World) -> Option<String> {
    let entries = world.store.entries();
    let count = world.nodes.len();
    for number in 0..count {
        let node = &world.nodes[number];
        let Some(process) = &node.process else {
            return Some(format!("node {number} does not run"));
        };
        let reasons = process.truth.reasons();
        if !reasons.is_empty() {
            return Some(format!("node {number} is not ready: {}", reasons.join("; ")));
        }
        let belief = process.belief.lock().unwrap().clone();
        let Some(own) = belief.holds() else {
            return Some(format!("node {number} holds nothing"));
        };
        if world.oracle.rightful(own) != Some(number) {
            return Some(format!("node {number} uses {own}, which is not its own"));
        }
        let further = entries
            .iter()
            .filter(|shown| shown.key != own && node_of(shown.value.as_bytes(), count) == Some(number))
            .find(|shown| !world.oracle.is_touched(&shown.key));
        if let Some(further) = further {
            return Some(format!("node {number} has {own} and {}", further.key));
        }
        let own_net = own.replace('-', "/");
        let env = node.host.subnet_env();
        let wanted = format!(
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET={}\nFLANNEL_MTU={}\nFLANNEL_IPMASQ=false\n",
            own_net.replace(".0/", ".1/"),
            if world.vxlan { 1450 } else { 1500 }
        );
        if env != wanted {
            return Some(format!("node {number} tells of another subnet than {own}: {env}"));
        }
        if !node.host.keeps_rules_for(own_net.parse().unwrap()) {
            return Some(format!("node {number} has no rules for {own}"));
        }
        let own = own.to_owned();
        let (want, vxlan) = (expected(world, number, &own), world.vxlan);
        let address = world.nodes[number].address;
        let truth = world.nodes[number].kernel().truth();
        let have: BTreeSet<String> = truth
            .values()
            .filter(|object| is_ours(object))
            .filter(|object| !(vxlan && matches!(object, Object::Link(_))))
            .map(ToString::to_string)
            .collect();
        if let Some(lacking) = want.difference(&have).next() {
            return Some(format!("node {number} lacks: {lacking}"));
        }
        if let Some(left) = have.difference(&want).next() {
            return Some(format!("node {number} has beyond: {left}"));
        }
        if vxlan && !truth.values().any(|object| is_device(object, address)) {
            return Some(format!("node {number} has no device"));
        }
    }
    None
}

fn is_device(object: &Object, address: std::net::Ipv4Addr) -> bool {
    let text = object.to_string();
    text.starts_with("link flannel.1 mtu 1450 up address ")
        && text.contains(&format!(
            " vxlan id 1 local {address} dev eth0 dstport 8472 nolearning"
        ))
}

/// The objects of a node, but for its device, in words.
fn expected(world: &World, number: usize, own: &str) -> BTreeSet<String> {
    let mut want = BTreeSet::new();
    let address = world.nodes[number].address.to_string();
    let base = |subnet: &str| subnet.split('/').next().unwrap_or_default().to_owned();
    if world.vxlan {
        let own = own.replace('-', "/");
        want.insert(format!("address {}/32 dev flannel.1", base(&own)));
    }
    for shown in world.store.entries() {
        let peer = said(&shown.key, &shown.value);
        if shown.key == own || peer.address == address {
            continue;
        }
        if world.vxlan {
            let gateway = base(&peer.subnet);
            want.insert(format!(
                "route {} via {gateway} dev flannel.1 onlink",
                peer.subnet
            ));
            want.insert(format!(
                "neighbour {gateway} lladdr {} dev flannel.1 permanent",
                peer.mac
            ));
            want.insert(format!(
                "fdb {} dst {} dev flannel.1 self permanent",
                peer.mac, peer.address
            ));
        } else {
            want.insert(format!("route {} via {} dev eth0", peer.subnet, peer.address));
        }
    }
    want
}
