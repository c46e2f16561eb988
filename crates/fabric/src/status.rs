//! What a daemon says about itself: the JSON of its status socket, read by `flannelctl` and the CNI plugin.
//!
//! Readers take fields they do not know for granted and miss none: every field has a default, so that a tool and a daemon
//! of different versions understand each other.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::readiness::{Finding, Kind};

/// The whole answer to `GET /status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it started, seconds since 1970, by the clock as it was then.
    pub started: u64,
    /// How long it has been running, seconds, by a clock that nobody sets.
    pub uptime: Option<u64>,
    /// Whether everything below is as it should be right now.
    pub ready: bool,
    /// What is missing for that, one sentence each; empty when ready.
    pub reasons: Vec<String>,
    /// All that is not as it should be, whatever follows from it.
    pub findings: Vec<Finding>,
    /// An admin holds the hand still: nothing is applied or repaired.
    pub paused: bool,
    /// The networks all hosts share, one per family in use.
    pub networks: Vec<IpNet>,
    /// Backend type, such as `vxlan`; empty until the config is known.
    pub backend: String,
    /// This host's lease, once it has one.
    pub lease: Option<OwnLease>,
    /// Where leases come from.
    pub registry: Registry,
    /// What carries the traffic.
    pub underlay: Option<Underlay>,
    /// Bytes of the largest packet a pod may send; 0 until known.
    pub mtu: u32,
    /// The other hosts.
    pub peers: Vec<Peer>,
    /// Masquerading and forwarding rules.
    pub firewall: Firewall,
    /// When the kernel was last read as a whole, seconds since 1970.
    pub last_audit: Option<u64>,
    /// How long that was ago, seconds, by a clock that nobody sets.
    pub last_audit_age: Option<u64>,
    /// Objects put back since the start after somebody else changed or removed them.
    pub repairs: u64,
}

impl Status {
    /// The findings of a kind.
    pub fn findings_of(&self, kind: Kind) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.kind == kind)
    }
}

/// Whether pods of this host can be part of the network: the answer to `GET /pods`, small because the CNI plugin's STATUS asks
/// it every few seconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pods {
    /// The sum of it.
    pub network: PodNetwork,
    /// What keeps the daemon from being ready, one sentence each, as in [`Status::reasons`].
    pub reasons: Vec<String>,
}

/// Whether there is a network for pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodNetwork {
    /// This host holds a lease.
    Member,
    /// The daemon does not know yet: the registry is out of reach, or nothing on this host can carry the network. What an earlier
    /// daemon has set up may be working.
    #[default]
    Unknown,
    /// The registry has answered, and there is nothing to be a part of: no valid config, or no subnet that is free.
    None,
}

/// Where the daemon with this subnet file has its status socket: beside the default file under the name everybody expects, and
/// for any other file beside it, under its name with `.sock` at the end. Expects an absolute path.
pub fn socket_of(subnet_file: &str) -> String {
    match subnet_file {
        SUBNET_FILE => SOCKET.to_owned(),
        other => format!("{other}.sock"),
    }
}

/// Where a daemon writes what the host was given, unless it is told otherwise.
pub const SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// The status socket of the daemon with the default subnet file.
pub const SOCKET: &str = "/run/flannel/flanneld.sock";

/// This host's lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnLease {
    /// Key text, such as `10.5.1.0-24`.
    pub subnet: String,
    /// When it ends if it is not renewed, seconds since 1970; `None` for a reservation.
    pub expires: Option<u64>,
    /// Seconds until then, by a clock that nobody sets.
    #[serde(default)]
    pub left: Option<u64>,
    /// The entry has no time to live: it was put there by an admin, for this host and for good.
    pub reservation: bool,
}

/// How it stands with the registry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegistryState {
    /// Not reached yet.
    #[default]
    Connecting,
    /// Reached, but there is no (valid) network config in it.
    WaitingForConfig,
    /// Listing and watching.
    Connected,
    /// It was reached before, or its cache on disk was taken; what is known may be history.
    Stale,
}

/// Where leases come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Registry {
    /// What is spoken, such as `etcd v3`.
    pub kind: String,
    /// The endpoint in use.
    pub endpoint: String,
    /// Key prefix.
    pub prefix: String,
    /// State of the connection.
    pub state: RegistryState,
    /// Revision of what is known.
    pub revision: i64,
    /// The last thing that went wrong; over when the connection is [`RegistryState::Connected`].
    pub error: Option<String>,
    /// When that was, seconds since 1970.
    #[serde(default)]
    pub failed_at: Option<u64>,
}

/// What carries the traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Underlay {
    /// External interface.
    pub link: String,
    /// Its MTU, bytes.
    pub mtu: u32,
    /// Addresses on it that are used, one per family.
    pub addresses: Vec<IpAddr>,
    /// Addresses that other hosts are told.
    pub public: Vec<IpAddr>,
    /// What is odd about the choice.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// How it stands with a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerState {
    /// Every object it asks for is in the kernel.
    Ok,
    /// Some are not, for want of something of this host: `error` says why.
    Failed,
    /// An object of somebody else stands in the place of one, or draws its traffic away.
    Conflict,
    /// What it has published cannot be served, in part or at all: `error` says why. Nothing is wrong with this host.
    Degraded,
}

/// Another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Key text of its lease.
    pub subnet: String,
    /// Addresses it is reached at, one per family.
    pub public: Vec<IpAddr>,
    /// Backend type of its lease.
    #[serde(default)]
    pub backend: String,
    /// Kernel objects its lease asks for.
    pub expected: usize,
    /// How many of them are in the kernel, and right.
    pub programmed: usize,
    /// The sum of it.
    pub state: PeerState,
    /// What is wrong.
    pub error: Option<String>,
    /// The objects one by one.
    #[serde(default)]
    pub objects: Vec<PeerObject>,
}

/// A kernel object that a peer's lease asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerObject {
    /// What it is, in the words of iproute2.
    pub object: String,
    /// It is in the kernel, and right.
    pub ok: bool,
}

/// How it stands with the firewall rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirewallState {
    /// No rules were asked for.
    #[default]
    Off,
    /// Not applied yet.
    Pending,
    /// In place.
    Ok,
    /// Could not be put in place: `error` says why.
    Failed,
}

/// Masquerading and forwarding rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Firewall {
    /// `iptables` or `nftables`; empty when off.
    pub kind: String,
    /// Sum of it.
    pub state: FirewallState,
    /// The program's words.
    pub error: Option<String>,
    /// Times the rules were put back.
    pub restores: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_when_written_by_another_version_is_still_read() {
        let text = r#"{"version":"9","ready":true,"news":{"a":1},"registry":{"state":"connected","x":2}}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        assert!(status.ready);
        assert_eq!(status.registry.state, RegistryState::Connected);
        assert_eq!(status.firewall.state, FirewallState::Off);
    }

    #[test]
    fn pods_when_written_by_an_older_version_are_unknown_without_reasons() {
        assert_eq!(serde_json::from_str::<Pods>("{}").unwrap(), Pods::default());
        let text = r#"{"network":"none","reasons":["x"],"news":1}"#;
        let pods: Pods = serde_json::from_str(text).unwrap();
        assert_eq!((pods.network, pods.reasons.len()), (PodNetwork::None, 1));
    }

    #[test]
    fn status_when_written_and_read_is_the_same() {
        let status = Status {
            networks: vec!["10.5.0.0/16".parse().unwrap()],
            lease: Some(OwnLease {
                left: Some(86_000),
                subnet: "10.5.1.0-24".into(),
                expires: Some(1),
                reservation: false,
            }),
            peers: vec![Peer {
                subnet: "10.5.2.0-24".into(),
                public: vec!["192.0.2.1".parse().unwrap()],
                backend: "vxlan".into(),
                expected: 3,
                programmed: 2,
                state: PeerState::Failed,
                error: Some("x".into()),
                objects: vec![PeerObject {
                    object: "route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink".into(),
                    ok: false,
                }],
            }],
            ..Status::default()
        };
        let text = serde_json::to_string(&status).unwrap();
        assert!(text.contains(r#""state":"failed""#), "{text}");
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
    }

    #[test]
    fn findings_when_asked_of_a_kind_then_only_those() {
        use crate::readiness::Part;
        let finding = |kind, text: &str| Finding::new(Part::Kernel, kind, text, text);
        let status = Status {
            findings: vec![
                finding(Kind::Failure, "a"),
                finding(Kind::Conflict, "b"),
                finding(Kind::Failure, "c"),
            ],
            ..Status::default()
        };
        let texts = |kind| {
            status
                .findings_of(kind)
                .map(|f| f.text.as_str())
                .collect::<Vec<_>>()
        };
        assert_eq!(texts(Kind::Failure), ["a", "c"]);
        assert_eq!(texts(Kind::Conflict), ["b"]);
        assert_eq!(texts(Kind::Stale), Vec::<&str>::new());
    }

    #[test]
    fn socket_when_the_subnet_file_is_another_then_beside_it() {
        assert_eq!(socket_of("/run/flannel/subnet.env"), "/run/flannel/flanneld.sock");
        assert_eq!(socket_of("/run/two/subnet.env"), "/run/two/subnet.env.sock");
    }
}
