//! The configuration of portmap, checked, with the container's addresses out of the previous result.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::call::Call;
use crate::failure::Failure;
use crate::json::{FieldError, JsonObject, parse_ip};
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
pub struct PortmapConfig {
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

impl PortmapConfig {
    /// Reads the configuration of a call.
    ///
    /// # Errors
    ///
    /// The first field that is wrong, in Go's words where Go has some.
    pub fn load(call: &Call) -> Result<PortmapConfig, Failure> {
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
    pub fn load_for_del(call: &Call) -> PortmapConfig {
        let fields = call.fields();
        let previous = fields.get("prevResult");
        let previous = previous.and_then(|previous| AddResult::parse_previous(previous, &call.version).ok());
        let config = read(&fields).ok().and_then(Result::ok);
        config.unwrap_or_else(PortmapConfig::empty).of(call, previous)
    }

    fn of(mut self, call: &Call, previous: Option<AddResult>) -> PortmapConfig {
        self.network.clone_from(&call.name);
        self.container.clone_from(&call.env.container_id);
        if let Some(previous) = &previous {
            self.addresses = addresses(previous, &call.env.ifname);
        }
        self.previous = previous;
        self
    }

    fn empty() -> PortmapConfig {
        PortmapConfig {
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

fn read(top: &JsonObject<'_>) -> Result<Result<PortmapConfig, Failure>, FieldError> {
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
    Ok(Ok(PortmapConfig {
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

#[cfg(test)]
mod tests {
    use super::*;

    use crate::call::Environment;

    fn call(more: &str) -> Call {
        let env = Environment {
            command: "ADD".into(),
            container_id: "c1".into(),
            ifname: "eth0".into(),
            ..Environment::default()
        };
        Call::check(
            env,
            format!(r#"{{"name":"cbr0","cniVersion":"1.0.0"{more}}}"#).into_bytes(),
        )
        .unwrap()
    }

    fn load(more: &str) -> Result<PortmapConfig, String> {
        PortmapConfig::load(&call(more)).map_err(|failure| failure.msg)
    }

    fn mapping(fields: &str) -> Result<Mapping, String> {
        let config = load(&format!(r#","runtimeConfig":{{"portMappings":[{{{fields}}}]}}"#))?;
        Ok(config.mappings[0].clone())
    }

    #[test]
    fn config_when_it_says_nothing_has_gos_defaults() {
        let config = load("").unwrap();
        assert_eq!(
            (config.network.as_str(), config.container.as_str()),
            ("cbr0", "c1")
        );
        assert_eq!(
            (config.backend, config.snat, config.masq_all, config.mark),
            (None, true, false, 0x2000)
        );
        assert!(config.mappings.is_empty() && config.external_chain.is_none() && config.previous.is_none());
        let empty = PortmapConfig::empty();
        assert_eq!((empty.mark, empty.snat, empty.backend), (config.mark, true, None));
        let config = load(r#","markMasqBit":0,"snat":false,"masqAll":true,"conditionsV4":["-d","x"],"conditionsV6":["!","y"]"#).unwrap();
        assert_eq!((config.snat, config.masq_all, config.mark), (false, true, 1));
        assert_eq!(
            (config.conditions_of(false), config.conditions_of(true)),
            (
                &["-d".to_owned(), "x".into()][..],
                &["!".to_owned(), "y".into()][..]
            )
        );
        assert_eq!(load(r#","markMasqBit":31"#).unwrap().mark, 1 << 31);
    }

    #[test]
    fn config_when_it_contradicts_itself_is_refused_in_gos_words() {
        for (more, words) in [
            (r#","markMasqBit":32"#, "MasqMarkBit must be between 0 and 31"),
            (r#","markMasqBit":-1"#, "MasqMarkBit must be between 0 and 31"),
            (
                r#","markMasqBit":5,"externalSetMarkChain":"X""#,
                "Cannot specify externalSetMarkChain and markMasqBit",
            ),
            (r#","backend":"ipfw""#, "unrecognized backend \"ipfw\""),
            (
                r#","backend":"nftables","externalSetMarkChain":"X","conditionsV4":["-d","x"],"conditionsV6":["ip6","x"]"#,
                "nftables backend was requested but configuration contains iptables-specific options [externalSetMarkChain conditionsV4]",
            ),
            (
                r#","backend":"iptables","conditionsV6":["ip6","x"]"#,
                "iptables backend was requested but configuration contains nftables-specific options [conditionsV6]",
            ),
            (r#","snat":5"#, "failed to parse network configuration: snat is 5"),
        ] {
            let error = load(more).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        assert!(load(r#","backend":"iptables","externalSetMarkChain":"X","conditionsV4":["!","x"]"#).is_ok());
        assert!(load(r#","backend":"nftables","conditionsV4":["ip","x"],"conditionsV6":[""]"#).is_ok());
        assert_eq!(
            load(r#","backend":"nftables""#).unwrap().backend,
            Some(Backend::Nftables)
        );
    }

    #[test]
    fn mapping_when_read_has_its_ports_and_where_it_is_bound() {
        let tcp = mapping(r#""hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"""#).unwrap();
        assert_eq!(
            (
                tcp.host_port,
                tcp.container_port,
                tcp.protocol.as_str(),
                tcp.host_ip
            ),
            (8080, 80, "tcp", None)
        );
        assert!(tcp.is_for(true) && tcp.is_for(false) && tcp.bound_to().is_none());
        let bound = |ip: &str| {
            mapping(&format!(
                r#""hostPort":1,"containerPort":1,"protocol":"tcp","hostIP":"{ip}""#
            ))
            .unwrap()
        };
        let v4 = bound("192.0.2.1");
        assert!(v4.is_for(false) && !v4.is_for(true));
        assert_eq!(v4.bound_to(), Some("192.0.2.1".parse().unwrap()));
        let any = bound("::");
        assert!(any.is_for(true) && !any.is_for(false) && any.bound_to().is_none());
        for (fields, words) in [
            (
                r#""containerPort":80,"protocol":"tcp""#,
                "Invalid host port number: 0",
            ),
            (
                r#""hostPort":80,"protocol":"tcp""#,
                "Invalid container port number: 0",
            ),
            (
                r#""hostPort":-1,"containerPort":80,"protocol":"tcp""#,
                "Invalid host port number: -1",
            ),
            (
                r#""hostPort":65536,"containerPort":80,"protocol":"tcp""#,
                "expected a port from 1 to 65535",
            ),
            (r#""hostPort":1,"containerPort":1"#, "expected tcp, udp or sctp"),
            (
                r#""hostPort":1,"containerPort":1,"protocol":"t p""#,
                "expected tcp, udp or sctp",
            ),
            (
                r#""hostPort":1,"containerPort":1,"protocol":"tcp","hostIP":"x""#,
                "expected an IP address",
            ),
        ] {
            let error = mapping(fields).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn addresses_when_taken_from_the_result_are_the_containers_first_of_each_family() {
        let previous = |ips: &str| {
            format!(
                r#","prevResult":{{"cniVersion":"1.0.0","interfaces":[{{"name":"cni0"}},{{"name":"eth0","sandbox":"/ns"}},
                    {{"name":"eth0"}},{{"name":"net1","sandbox":"/ns"}}],"ips":[{ips}]}}"#
            )
        };
        let ip =
            |interface: &str, address: &str| format!(r#"{{"interface":{interface},"address":"{address}"}}"#);
        let of = |ips: &[String]| {
            let config = load(&previous(&ips.join(","))).unwrap();
            assert!(config.previous.is_some());
            config.addresses.map(|net| net.map(|net| net.to_string()))
        };
        let others = [
            ip("0", "10.0.0.1/24"),
            ip("2", "10.0.0.2/24"),
            ip("3", "10.0.0.3/24"),
        ];
        assert_eq!(of(&others), [None, None]);
        let ours = [
            ip("1", "fd00::2/64"),
            ip("1", "10.0.0.4/24"),
            ip("1", "10.0.0.5/24"),
        ];
        let all = [&others[..], &ours].concat();
        assert_eq!(of(&all), [Some("10.0.0.4/24".into()), Some("fd00::2/64".into())]);
        assert_eq!(
            of(&[ip("null", "10.0.0.9/24")]),
            [Some("10.0.0.9/24".into()), None]
        );
    }

    #[test]
    fn config_of_a_del_when_it_cannot_be_read_is_as_much_as_can_be() {
        let del = PortmapConfig::load_for_del(&call(
            r#","backend":"ipfw","prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.9/24"}]}"#,
        ));
        assert_eq!(
            (del.network.as_str(), del.container.as_str(), del.backend),
            ("cbr0", "c1", None)
        );
        assert!(del.addresses[0].is_some());
        let del = PortmapConfig::load_for_del(&call(r#","backend":"nftables","prevResult":{"ips":5}"#));
        assert_eq!(
            (del.backend, del.addresses),
            (Some(Backend::Nftables), [None, None])
        );
    }
}
