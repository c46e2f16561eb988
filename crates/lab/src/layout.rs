//! What a lab is made of: names and addresses, all computed, nothing looked up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::command::LabError;

/// Where labs keep their state: one directory a lab.
pub const STATE_ROOT: &str = "/run/flannel-lab";
/// Every process of a lab carries its name in this variable, which is how `down` finds it.
pub const MARK: &str = "FLANNEL_LAB";
/// Largest number of hosts: the /20 of a segment, less the low addresses.
pub const MAX_HOSTS: usize = 4000;

/// IP families of underlay and pod network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Families {
    /// IPv4 only.
    #[serde(rename = "4")]
    V4,
    /// IPv6 only, on the underlay too.
    #[serde(rename = "6")]
    V6,
    /// Both.
    #[serde(rename = "46")]
    Both,
}

impl Families {
    /// Reads `4`, `6` or `46`.
    pub fn parse(text: &str) -> Result<Families, LabError> {
        match text {
            "4" => Ok(Families::V4),
            "6" => Ok(Families::V6),
            "46" | "64" => Ok(Families::Both),
            other => Err(LabError::Invalid(format!(
                "family {other:?}: expected 4, 6 or 46"
            ))),
        }
    }

    /// IPv4 is among them.
    pub fn v4(self) -> bool {
        self != Families::V6
    }

    /// IPv6 is among them.
    pub fn v6(self) -> bool {
        self != Families::V4
    }

    /// The families as 4 and 6.
    pub fn each(self) -> Vec<u8> {
        [(self.v4(), 4), (self.v6(), 6)]
            .into_iter()
            .filter(|f| f.0)
            .map(|f| f.1)
            .collect()
    }
}

impl std::fmt::Display for Families {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Families::V4 => "4",
            Families::V6 => "6",
            Families::Both => "46",
        })
    }
}

/// A lab as asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// 1 to 12 of `a-z0-9-`.
    pub name: String,
    /// Number of hosts.
    pub hosts: usize,
    /// Of the underlay.
    pub families: Families,
    /// Of the underlay, in bytes.
    pub mtu: u32,
    /// Two layer-3 segments with the switch as router between: odd hosts on the first, even ones on the second.
    pub routed: bool,
    /// Every host is a machine with systemd ([`crate::machine`]).
    #[serde(default)]
    pub machines: bool,
}

impl Spec {
    /// A dual-stack lab on one segment with MTU 1500.
    pub fn new(name: &str, hosts: usize) -> Spec {
        Spec {
            name: name.to_owned(),
            hosts,
            families: Families::Both,
            mtu: 1500,
            routed: false,
            machines: false,
        }
    }

    /// Refuses names and numbers that could not be built.
    pub fn validate(&self) -> Result<(), LabError> {
        validate_name(&self.name)?;
        if self.hosts == 0 || self.hosts > MAX_HOSTS {
            return Err(LabError::Invalid(format!(
                "number of nodes {}: expected 1 to {MAX_HOSTS}",
                self.hosts
            )));
        }
        let least = if self.families.v6() { 1280 } else { 576 };
        if self.mtu < least || self.mtu > 65535 {
            return Err(LabError::Invalid(format!(
                "mtu {}: expected {least} to 65535",
                self.mtu
            )));
        }
        Ok(())
    }

    /// Which segment a host is on: 0 or 1.
    pub fn segment(&self, host: usize) -> usize {
        usize::from(self.routed && host.is_multiple_of(2))
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        if self.routed { 2 } else { 1 }
    }

    /// IPv4 address of host N (from 1) on the underlay.
    pub fn host4(&self, host: usize) -> Ipv4Addr {
        address4(self.segment(host), 10 + host)
    }

    /// IPv6 address of host N (from 1) on the underlay.
    pub fn host6(&self, host: usize) -> Ipv6Addr {
        address6(self.segment(host), 10 + host)
    }

    /// A host's underlay address of a family (4 or 6).
    pub fn host_address(&self, host: usize, family: u8) -> IpAddr {
        if family == 4 {
            self.host4(host).into()
        } else {
            self.host6(host).into()
        }
    }

    /// The switch's address on a segment: default gateway there, and where the registry listens (segment 0).
    pub fn gateway4(&self, segment: usize) -> Ipv4Addr {
        address4(segment, 1)
    }

    /// As [`Spec::gateway4`].
    pub fn gateway6(&self, segment: usize) -> Ipv6Addr {
        address6(segment, 1)
    }

    /// Where the registry listens: IPv4 where there is IPv4.
    pub fn registry_socket(&self, port: u16) -> String {
        if self.families.v4() {
            format!("{}:{port}", self.gateway4(0))
        } else {
            format!("[{}]:{port}", self.gateway6(0))
        }
    }

    /// Name of the network namespace of `sw` or `hN`.
    pub fn netns(&self, node: &str) -> String {
        format!("flab-{}-{node}", self.name)
    }

    /// Directory of this lab's state, logs and data.
    pub fn directory(&self) -> PathBuf {
        directory(&self.name)
    }
}

/// Directory of a lab's state.
pub fn directory(name: &str) -> PathBuf {
    PathBuf::from(STATE_ROOT).join(name)
}

/// A lab's name becomes part of file and namespace names.
pub fn validate_name(name: &str) -> Result<(), LabError> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.is_empty() || name.len() > 12 || !name.bytes().all(good) || name.starts_with('-') {
        return Err(LabError::Invalid(format!(
            "lab name {name:?}: expected 1 to 12 of a-z, 0-9 and -, not beginning with -"
        )));
    }
    Ok(())
}

/// The part of a namespace's name after the lab's, when the namespace belongs to that lab.
pub fn node_of<'a>(netns: &'a str, lab: &str) -> Option<&'a str> {
    let node = netns
        .strip_prefix("flab-")?
        .strip_prefix(lab)?
        .strip_prefix('-')?;
    let numbered = node
        .strip_prefix('h')
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    (node == "sw" || numbered).then_some(node)
}

fn address4(segment: usize, low: usize) -> Ipv4Addr {
    Ipv4Addr::from(0xC612_0000 + ((segment as u32) << 12) + low as u32)
}

fn address6(segment: usize, low: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd18, 0, 0, segment as u16, 0, 0, 0, low as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_of_another_lab_with_a_longer_name_is_not_ours() {
        assert_eq!(node_of("flab-a-h1", "a"), Some("h1"));
        assert_eq!(node_of("flab-a-sw", "a"), Some("sw"));
        assert_eq!(node_of("flab-a-h1-sw", "a"), None);
        assert_eq!(node_of("flab-a-h1-sw", "a-h1"), Some("sw"));
        assert_eq!(node_of("flab-ab-h1", "a"), None);
        assert_eq!(node_of("flab-a-h", "a"), None);
    }

    #[test]
    fn addresses_stay_inside_their_segment() {
        let mut spec = Spec::new("x", MAX_HOSTS);
        assert_eq!(spec.host4(1).to_string(), "198.18.0.11");
        assert_eq!(spec.host4(MAX_HOSTS).to_string(), "198.18.15.170");
        spec.routed = true;
        assert_eq!(spec.host4(2).to_string(), "198.18.16.12");
        assert_eq!(spec.host6(2).to_string(), "fd18:0:0:1::c");
    }

    #[test]
    fn spec_that_cannot_be_built_is_refused_by_field() {
        for (name, hosts, mtu, field) in [
            ("", 1, 1500, "name"),
            ("A", 1, 1500, "name"),
            ("x", 0, 1500, "nodes"),
            ("x", 1, 1200, "mtu"),
        ] {
            let mut spec = Spec::new(name, hosts);
            spec.mtu = mtu;
            assert!(spec.validate().unwrap_err().to_string().contains(field));
        }
    }
}
