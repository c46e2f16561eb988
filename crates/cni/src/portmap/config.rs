//! The configuration of portmap, checked, with the container's addresses out of the previous result.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::call::Call;
use crate::failure::Failure;
use crate::json::{FieldError, Object, parse_ip};
use crate::netfilter;
use crate::result::AddResult;

/// Keys of the configuration that this build takes into account.
pub const KEYS: &[&str] = &[
    "cniVersion",
    "name",
    "type",
    "capabilities",
    "ipam",
    "dns",
    "prevResult",
    "args",
    "runtimeConfig",
    "backend",
    "snat",
    "masqAll",
    "markMasqBit",
    "externalSetMarkChain",
    "conditionsV4",
    "conditionsV6",
];

/// Mark bit for packets to be masqueraded; Kubernetes uses 14 and 15, Calico 20 to 31.
const MARK_BIT: i64 = 13;

/// Which firewall the rules are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// iptables.
    Iptables,
    /// nftables.
    Nftables,
}

/// One port of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Port of the host.
    pub host_port: u16,
    /// Port of the container.
    pub container_port: u16,
    /// As given: `tcp`, `udp`, `sctp`.
    pub protocol: String,
    /// Address of the host it is bound to; an unspecified one binds to all of its family.
    pub host_ip: Option<IpAddr>,
}

impl Mapping {
    /// The mapping is for addresses of this family.
    pub fn is_for(&self, v6: bool) -> bool {
        self.host_ip.is_none_or(|ip| ip.is_ipv6() == v6)
    }

    /// The one address it is bound to.
    pub fn bound_to(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Network name.
    pub network: String,
    /// Container id.
    pub container: String,
    /// The backend asked for; `None` takes iptables unless only nftables works.
    pub backend: Option<Backend>,
    /// Masquerade what returns to the container or comes from the host's loopback.
    pub snat: bool,
    /// Masquerade everything that is forwarded.
    pub masq_all: bool,
    /// The mark, one bit.
    pub mark: u32,
    /// Somebody else's chain that marks.
    pub external_chain: Option<String>,
    /// More conditions, per family.
    pub conditions: [Vec<String>; 2],
    /// The ports.
    pub mappings: Vec<Mapping>,
    /// The container's addresses: IPv4, IPv6.
    pub addresses: [Option<IpNet>; 2],
    /// The previous result, read.
    pub previous: Option<AddResult>,
}

impl Config {
    /// Reads the configuration of a call.
    pub fn load(call: &Call) -> Result<Config, Failure> {
        let fields = call.fields();
        let previous = match fields.get("prevResult") {
            Some(previous) => Some(AddResult::parse_previous(previous, &call.version)?),
            None => None,
        };
        let config = read(&fields)
            .map_err(|e| Failure::internal(format!("failed to parse network configuration: {e}")))??;
        Ok(config.of(call, previous))
    }

    /// Reads as much of the configuration of a DEL as can be read.
    pub fn load_for_del(call: &Call) -> Config {
        let fields = call.fields();
        let previous = fields.get("prevResult");
        let previous = previous.and_then(|previous| AddResult::parse_previous(previous, &call.version).ok());
        let config = read(&fields).ok().and_then(Result::ok);
        config.unwrap_or_else(Config::empty).of(call, previous)
    }

    fn of(mut self, call: &Call, previous: Option<AddResult>) -> Config {
        self.network.clone_from(&call.name);
        self.container.clone_from(&call.env.container_id);
        if let Some(previous) = &previous {
            self.addresses = addresses(previous, &call.env.ifname);
        }
        self.previous = previous;
        self
    }

    fn empty() -> Config {
        Config {
            network: String::new(),
            container: String::new(),
            backend: None,
            snat: true,
            masq_all: false,
            mark: 1 << MARK_BIT,
            external_chain: None,
            conditions: [Vec::new(), Vec::new()],
            mappings: Vec::new(),
            addresses: [None, None],
            previous: None,
        }
    }

    /// Conditions of a family.
    pub fn conditions_of(&self, v6: bool) -> &[String] {
        let [v4, of_v6] = &self.conditions;
        if v6 { of_v6 } else { v4 }
    }
}

fn read(top: &Object<'_>) -> Result<Result<Config, Failure>, FieldError> {
    let external_chain = top.string("externalSetMarkChain")?.map(str::to_owned);
    let bit = top.whole("markMasqBit")?;
    if bit.is_some() && external_chain.is_some() {
        return Ok(Err(Failure::internal(
            "Cannot specify externalSetMarkChain and markMasqBit",
        )));
    }
    let bit = bit.unwrap_or(MARK_BIT);
    if !(0..=31).contains(&bit) {
        return Ok(Err(Failure::internal("MasqMarkBit must be between 0 and 31")));
    }
    let conditions = [top.strings("conditionsV4")?, top.strings("conditionsV6")?];
    let asked = top.string("backend")?;
    let backend = match asked {
        // Where there is no iptables the conditions of nftables are no mistake.
        None if conditions
            .iter()
            .any(|list| written_for(list) == Some(Backend::Nftables))
            && !netfilter::is_installed("iptables-restore") =>
        {
            Some(Backend::Nftables)
        }
        None => None,
        Some("iptables") => Some(Backend::Iptables),
        Some("nftables") => Some(Backend::Nftables),
        Some(other) => return Ok(Err(Failure::internal(format!("unrecognized backend {other:?}")))),
    };
    if let Err(failure) = check_backend(backend, external_chain.is_some(), &conditions) {
        return Ok(Err(failure));
    }
    let mut mappings = Vec::new();
    for item in top.object("runtimeConfig")?.objects("portMappings")? {
        let port = |name: &str, what: &str| -> Result<Result<u16, Failure>, FieldError> {
            let number = item.whole(name)?.unwrap_or(0);
            if number <= 0 {
                return Ok(Err(Failure::internal(format!(
                    "Invalid {what} port number: {number}"
                ))));
            }
            u16::try_from(number)
                .map(Ok)
                .map_err(|_| item.wrong(name, &Value::from(number), "a port from 1 to 65535"))
        };
        let host_ip = match item.string("hostIP")?.filter(|text| !text.is_empty()) {
            None => None,
            Some(text) => match parse_ip(text) {
                Some(ip) => Some(ip),
                None => return Err(item.wrong_text("hostIP", text, "an IP address")),
            },
        };
        let (container_port, host_port) =
            match (port("containerPort", "container")?, port("hostPort", "host")?) {
                (Ok(container), Ok(host)) => (container, host),
                (Err(failure), _) | (_, Err(failure)) => return Ok(Err(failure)),
            };
        let protocol = item.string("protocol")?.unwrap_or_default().to_owned();
        if protocol.is_empty() || !protocol.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(item.wrong_text("protocol", &protocol, "tcp, udp or sctp"));
        }
        mappings.push(Mapping {
            host_port,
            container_port,
            protocol,
            host_ip,
        });
    }
    Ok(Ok(Config {
        network: String::new(),
        container: String::new(),
        backend,
        snat: top.flag_or("snat", true)?,
        masq_all: top.flag("masqAll")?,
        mark: 1 << bit,
        external_chain,
        conditions,
        mappings,
        addresses: [None, None],
        previous: None,
    }))
}

/// The backend that conditions are written for.
fn written_for(conditions: &[String]) -> Option<Backend> {
    let first = conditions.first().filter(|word| !word.is_empty())?;
    Some(match first.starts_with(['-', '!']) {
        true => Backend::Iptables,
        false => Backend::Nftables,
    })
}

/// Refuses options written for the other backend.
fn check_backend(
    backend: Option<Backend>,
    external: bool,
    conditions: &[Vec<String>; 2],
) -> Result<(), Failure> {
    let mut wrong: Vec<&str> = Vec::new();
    let chosen = backend.unwrap_or(Backend::Iptables);
    if external && chosen == Backend::Nftables {
        wrong.push("externalSetMarkChain");
    }
    for (list, name) in conditions.iter().zip(["conditionsV4", "conditionsV6"]) {
        if written_for(list).is_some_and(|other| other != chosen) {
            wrong.push(name);
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let (asked, other) = match chosen {
        Backend::Iptables => ("iptables", "nftables"),
        Backend::Nftables => ("nftables", "iptables"),
    };
    Err(Failure::internal(format!(
        "{asked} backend was requested but configuration contains {other}-specific options [{}]",
        wrong.join(" ")
    )))
}

/// The first address of each family that is the container's interface's, or nobody's in particular.
fn addresses(result: &AddResult, ifname: &str) -> [Option<IpNet>; 2] {
    let of_container = |index: Option<i64>| {
        let interface = index
            .and_then(|i| usize::try_from(i).ok())
            .and_then(|i| result.interfaces.get(i));
        interface.is_none_or(|i| i.name == ifname && !i.sandbox.is_empty())
    };
    let mut candidates = result
        .ips
        .iter()
        .filter(|ip| of_container(ip.interface))
        .map(|ip| ip.address);
    [
        candidates.clone().find(|a| a.addr().is_ipv4()),
        candidates.find(|a| a.addr().is_ipv6()),
    ]
}
