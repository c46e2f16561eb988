//! A Node of the cluster: what is written of it, and what a kernel has to hold for it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use lab::kube::node_object;
use serde_json::{Value, json};

/// A Node with a lease of a vxlan network with both families.
#[derive(Debug, Clone)]
pub struct Peer {
    pub name: String,
    /// Its podCIDRs.
    pub subnets: Vec<IpNet>,
    /// Where it is, by family.
    pub address4: IpAddr,
    pub address6: IpAddr,
    /// Its devices' addresses, by family.
    pub mac4: String,
    pub mac6: String,
}

impl Peer {
    /// One that is nowhere: only its Node is there. All that it has is made of its number.
    pub fn ghost(name: &str, number: u8) -> Peer {
        Peer {
            name: name.to_owned(),
            subnets: vec![
                format!("10.244.{number}.0/24").parse().unwrap(),
                format!("fd00:10:244:{number:x}::/64").parse().unwrap(),
            ],
            address4: format!("198.18.0.{number}").parse().unwrap(),
            address6: format!("fd18::{number:x}").parse().unwrap(),
            mac4: format!("02:00:00:00:04:{number:02x}"),
            mac6: format!("02:00:00:00:06:{number:02x}"),
        }
    }

    /// Flannel's annotations as its daemon would write them: byte for byte those of Go flannel.
    pub fn annotations(&self) -> Vec<(&'static str, String)> {
        vec![
            ("backend-data", data(&self.mac4)),
            ("backend-type", "vxlan".to_owned()),
            ("backend-v6-data", data(&self.mac6)),
            ("kube-subnet-manager", "true".to_owned()),
            ("public-ip", self.address4.to_string()),
            ("public-ipv6", self.address6.to_string()),
        ]
    }

    /// Its Node.
    pub fn node(&self) -> Value {
        let annotations = self.annotations();
        let annotations: Vec<(&str, &str)> = annotations.iter().map(|(k, v)| (*k, v.as_str())).collect();
        node_object(&self.name, &self.subnets, &annotations)
    }

    /// Its Node without an annotation.
    pub fn bare_node(&self) -> Value {
        node_object(&self.name, &self.subnets, &[])
    }

    /// What a host that follows it has in its kernel, as [`crate::bed::seen`] names it.
    pub fn entries(&self) -> BTreeSet<String> {
        let mut entries = BTreeSet::new();
        for subnet in &self.subnets {
            let (device, mac, address) = match subnet {
                IpNet::V4(_) => ("flannel.1", &self.mac4, self.address4),
                IpNet::V6(_) => ("flannel-v6.1", &self.mac6, self.address6),
            };
            let gateway = subnet.network();
            entries.insert(format!("route {subnet} via {gateway} dev {device}"));
            entries.insert(format!("neighbour {gateway} is {mac} dev {device}"));
            entries.insert(format!("forwarding {mac} to {address} dev {device}"));
        }
        entries
    }
}

/// The value of `backend-data`, as Go writes it: `serde_json` would sort the keys otherwise.
pub fn data(mac: &str) -> String {
    format!(r#"{{"VNI":1,"VtepMAC":{}}}"#, json!(mac))
}
