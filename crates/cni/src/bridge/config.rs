//! The configuration of the bridge plugin.

use serde_json::Value;

use fabric::object::{LinkName, Mac};

use crate::args;
use crate::bridge::masquerade::MasqueradeBackend;
use crate::call::Call;
use crate::failure::{Code, Failure};
use crate::host_local::HOST_LOCAL;
use crate::json::{FieldError, JsonObject};
use crate::result::Dns;

/// Keys of the configuration that mean something to Go's bridge plugin.
pub const KEYS: &[&str] = &[
    "cniVersion",
    "name",
    "type",
    "capabilities",
    "ipam",
    "dns",
    "prevResult",
    "cni.dev/valid-attachments",
    "cni.dev/attachments",
    "args",
    "runtimeConfig",
    "bridge",
    "isGateway",
    "isDefaultGateway",
    "forceAddress",
    "ipMasq",
    "ipMasqBackend",
    "mtu",
    "hairpinMode",
    "promiscMode",
    "vlan",
    "vlanTrunk",
    "preserveDefaultVlan",
    "macspoofchk",
    "enabledad",
    "disableContainerInterface",
    "portIsolation",
];

/// Where a container's addresses come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ipam {
    /// Nowhere: a link without addresses.
    None,
    /// host-local, in this process.
    HostLocal,
    /// Another plugin, as a process of its own.
    Plugin(String),
}

impl Ipam {
    fn read(name: &str) -> Ipam {
        match name {
            "" => Ipam::None,
            HOST_LOCAL => Ipam::HostLocal,
            other => Ipam::Plugin(other.to_owned()),
        }
    }
}

/// A read configuration.
#[derive(Debug, Clone)]
pub struct BridgeConfig {
    /// The bridge.
    pub bridge: LinkName,
    /// The bridge gets the gateway's address.
    pub is_gateway: bool,
    /// The container gets a default route through it.
    pub is_default_gateway: bool,
    /// Another address of the bridge makes way.
    pub force_address: bool,
    /// Packets of the container that leave its network are masqueraded.
    pub ip_masq: bool,
    /// By which program; `None` chooses.
    pub masq_backend: Option<MasqueradeBackend>,
    /// Bytes; 0 leaves it to the kernel.
    pub mtu: u32,
    /// Packets may return by the port they came from.
    pub hairpin: bool,
    /// The bridge takes every packet.
    pub promisc: bool,
    /// IPv6 duplicate address detection in the container.
    pub detection: bool,
    /// The container's link stays down.
    pub leave_down: bool,
    /// The port speaks to no other isolated port.
    pub isolated: bool,
    /// Hardware address of the container's link, as text.
    pub mac: Option<String>,
    /// Where addresses come from.
    pub ipam: Ipam,
    /// DNS settings that go before the IPAM plugin's.
    pub dns: Dns,
    /// Keys that ask for what this build leaves to Go's plugin.
    pub unsupported: Vec<&'static str>,
}

impl BridgeConfig {
    /// Reads the configuration of a call.
    ///
    /// # Errors
    ///
    /// A field of the wrong type, or of a value that contradicts another.
    pub fn load(call: &Call) -> Result<BridgeConfig, Failure> {
        let mut config =
            read(&call.fields()).map_err(|e| Failure::internal(format!("failed to load netconf: {e}")))?;
        if let Some(vlan) = call
            .fields()
            .whole("vlan")
            .ok()
            .flatten()
            .filter(|id| !(0..=4094).contains(id))
        {
            return Err(Failure::internal(format!(
                "invalid VLAN ID {vlan} (must be between 0 and 4094)"
            )));
        }
        // The oldest way to ask for a hardware address counts least.
        let oldest = args::value(&call.env.args, "MAC")?.filter(|mac| !mac.is_empty());
        config.mac = config.mac.or_else(|| oldest.map(str::to_owned));
        Ok(config)
    }

    /// Refuses what this build does not do and what contradicts itself.
    ///
    /// # Errors
    ///
    /// The first of these, naming key and value.
    pub fn check(&self) -> Result<(), Failure> {
        if let Some(key) = self.unsupported.first() {
            return Err(Failure::new(
                Code::UnsupportedField,
                format!(
                    "{key:?} needs the bridge plugin of github.com/containernetworking/plugins: this one has no VLAN or MAC filtering"
                ),
            ));
        }
        if self.bridge.as_str().contains('%') {
            // It would make bridge after bridge, none of them found by this name.
            return Err(Failure::internal(format!(
                "bridge is {:?}: expected a link name without %, for which the kernel puts a number",
                self.bridge.as_str()
            )));
        }
        if self.ipam != Ipam::None && self.leave_down {
            return Err(Failure::internal(
                "cannot use IPAM when DisableContainerInterface flag is set",
            ));
        }
        if self.hairpin && self.promisc {
            return Err(Failure::internal(
                "cannot set hairpin mode and promiscuous mode at the same time",
            ));
        }
        Ok(())
    }

    /// The hardware address asked for.
    ///
    /// # Errors
    ///
    /// A text that is no address of six bytes.
    pub fn mac(&self) -> Result<Option<Mac>, Failure> {
        let Some(text) = &self.mac else { return Ok(None) };
        match Mac::parse(text) {
            Some(mac) => Ok(Some(mac)),
            None => Err(Failure::internal(format!(
                "failed to make veth pair: address {text}: invalid MAC address"
            ))),
        }
    }
}

fn read(top: &JsonObject<'_>) -> Result<BridgeConfig, FieldError> {
    let bridge = top.string("bridge")?.unwrap_or("cni0");
    let bridge = LinkName::new(bridge).ok_or_else(|| {
        top.wrong_text(
            "bridge",
            bridge,
            "a link name: 1 to 15 bytes without blanks, / and :",
        )
    })?;
    let mtu = top.whole("mtu")?.unwrap_or(0).max(0);
    let mtu = u32::try_from(mtu)
        .map_err(|_| top.wrong("mtu", &Value::from(mtu), "a number of bytes below 4294967296"))?;
    let asked = |object: &JsonObject<'_>| -> Result<Option<String>, FieldError> {
        Ok(object
            .string("mac")?
            .filter(|mac| !mac.is_empty())
            .map(str::to_owned))
    };
    let runtime = asked(&top.object("runtimeConfig")?)?;
    let network_args = asked(&top.object("args")?.object("cni")?)?;
    let is_default_gateway = top.flag("isDefaultGateway")?;
    let mut unsupported = Vec::new();
    for (key, set) in [
        ("vlan", top.whole("vlan")?.unwrap_or(0) != 0),
        ("vlanTrunk", !top.list("vlanTrunk")?.is_empty()),
        ("macspoofchk", top.flag("macspoofchk")?),
    ] {
        unsupported.extend(set.then_some(key));
    }
    Ok(BridgeConfig {
        bridge,
        is_gateway: top.flag("isGateway")? || is_default_gateway,
        is_default_gateway,
        force_address: top.flag("forceAddress")?,
        ip_masq: top.flag("ipMasq")?,
        masq_backend: top.string("ipMasqBackend")?.map(MasqueradeBackend::read),
        mtu,
        hairpin: top.flag("hairpinMode")?,
        promisc: top.flag("promiscMode")?,
        detection: top.flag("enabledad")?,
        leave_down: top.flag("disableContainerInterface")?,
        isolated: top.flag("portIsolation")?,
        mac: runtime.or(network_args),
        ipam: Ipam::read(top.object("ipam")?.string("type")?.unwrap_or_default()),
        dns: Dns::parse(&top.object("dns")?)?,
        unsupported,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Environment;

    fn load(args: &str, rest: &str) -> Result<BridgeConfig, String> {
        let env = Environment {
            command: "ADD".into(),
            args: args.into(),
            ..Environment::default()
        };
        let stdin = format!(r#"{{"name":"n","cniVersion":"1.0.0"{rest}}}"#);
        let call = Call::check(env, stdin.into_bytes()).unwrap();
        BridgeConfig::load(&call).map_err(|f| f.msg)
    }

    #[test]
    fn config_when_default_gateway_is_asked_for_is_a_gateway() {
        let config = load("", r#","isDefaultGateway":true,"mtu":1450,"hairpinMode":true"#).unwrap();
        assert!(config.is_gateway && config.hairpin && !config.ip_masq);
        assert_eq!(
            (config.bridge.as_str(), config.mtu, &config.ipam),
            ("cni0", 1450, &Ipam::None)
        );
        assert_eq!(load("", "").unwrap().check(), Ok(()));
    }

    #[test]
    fn mac_when_given_three_ways_prefers_runtime_then_args_then_environment() {
        let mac = |env: &str, rest: &str| load(env, rest).unwrap().mac;
        let (args, runtime) = (
            r#","args":{"cni":{"mac":"a"}}"#,
            r#","runtimeConfig":{"mac":"r"}"#,
        );
        assert_eq!(mac("MAC=e", &format!("{args}{runtime}")).as_deref(), Some("r"));
        assert_eq!(mac("MAC=e", args).as_deref(), Some("a"));
        assert_eq!(mac("MAC=e", "").as_deref(), Some("e"));
        assert_eq!(mac("MAC=", ""), None);
        assert_eq!(
            load("MAC=nope", "").unwrap().mac().unwrap_err().msg,
            "failed to make veth pair: address nope: invalid MAC address"
        );
    }

    #[test]
    fn config_when_wrong_says_what_and_why() {
        assert_eq!(
            load("", r#","mtu":"1500""#).unwrap_err(),
            "failed to load netconf: mtu is \"1500\": expected a whole number, without quotes"
        );
        assert_eq!(
            load("", r#","vlan":5000"#).unwrap_err(),
            "invalid VLAN ID 5000 (must be between 0 and 4094)"
        );
        assert!(
            load("", r#","bridge":"a b""#)
                .unwrap_err()
                .contains("bridge is \"a b\"")
        );
        let both = load("", r#","hairpinMode":true,"promiscMode":true"#).unwrap();
        assert_eq!(
            both.check().unwrap_err().msg,
            "cannot set hairpin mode and promiscuous mode at the same time"
        );
        let vlan = load("", r#","vlan":7"#).unwrap().check().unwrap_err();
        assert_eq!(vlan.code, 2);
        assert!(vlan.msg.starts_with("\"vlan\" needs"), "{}", vlan.msg);
        assert_eq!(
            load("", r#","vlan":0,"vlanTrunk":null,"preserveDefaultVlan":true"#)
                .unwrap()
                .check(),
            Ok(())
        );
    }

    #[test]
    fn config_when_it_contradicts_itself_is_refused_and_otherwise_not() {
        let check = |rest: &str| load("", rest).unwrap().check().map_err(|f| f.msg);
        let ipam = r#","ipam":{"type":"host-local"}"#;
        let down = r#","disableContainerInterface":true"#;
        assert_eq!((check(ipam), check(down)), (Ok(()), Ok(())));
        assert_eq!(
            check(&format!("{ipam}{down}")),
            Err("cannot use IPAM when DisableContainerInterface flag is set".into())
        );
        assert_eq!(
            (check(r#","hairpinMode":true"#), check(r#","promiscMode":true"#)),
            (Ok(()), Ok(()))
        );
        assert!(
            check(r#","bridge":"br%d""#)
                .unwrap_err()
                .starts_with("bridge is \"br%d\"")
        );
        for key in [r#""vlanTrunk":[{"id":1}]"#, r#""macspoofchk":true"#] {
            assert!(
                check(&format!(",{key}"))
                    .unwrap_err()
                    .contains("no VLAN or MAC filtering"),
                "{key}"
            );
        }
    }

    #[test]
    fn config_when_every_key_is_given_is_read_as_it_stands() {
        let config = load(
            "MAC=02:00:00:00:00:01",
            r#","bridge":"br0","isGateway":true,"forceAddress":true,"ipMasq":true,"ipMasqBackend":"nftables","mtu":-5,"enabledad":true,
               "portIsolation":true,"ipam":{"type":"dhcp"},"dns":{"domain":"d"}"#,
        )
        .unwrap();
        assert!(config.is_gateway && !config.is_default_gateway && config.force_address && config.ip_masq);
        assert!(config.detection && config.isolated && !config.leave_down);
        assert_eq!(
            (config.mtu, config.dns.domain.as_str(), &config.ipam),
            (0, "d", &Ipam::Plugin("dhcp".into()))
        );
        assert_eq!(config.masq_backend, Some(MasqueradeBackend::Nftables));
        assert_eq!(config.mac(), Ok(Mac::parse("02:00:00:00:00:01")));
        assert_eq!(load("", "").unwrap().mac(), Ok(None));
        assert!(
            load("", r#","mtu":4294967296"#)
                .unwrap_err()
                .contains("a number of bytes below 4294967296")
        );
        assert_eq!(
            load("", r#","vlan":4095"#).unwrap_err(),
            "invalid VLAN ID 4095 (must be between 0 and 4094)"
        );
        assert!(load("", r#","vlan":4094"#).is_ok() && load("", r#","vlan":-1"#).is_err());
        assert_eq!(
            load("", r#","runtimeConfig":{"mac":""},"args":{"cni":{"mac":"a"}}"#)
                .unwrap()
                .mac
                .as_deref(),
            Some("a")
        );
        assert_eq!(
            load("", r#","ipam":{"type":"host-local"}"#).unwrap().ipam,
            Ipam::HostLocal
        );
    }
}
