//! From what was typed to what it means: every value checked, none left as text that could still be wrong.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use super::go_value::quote;
use super::parse::{Raw, UsageError};
use super::table::{Section, TABLE};
use fabric::annotations::Prefix;
use registry::etcd::{Address, Endpoint, Keys, parse_endpoints};

use crate::interface::{Wish, pattern};
use crate::truth::RegistryName;

/// Which etcd API to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EtcdApi {
    /// The one that holds the config.
    Auto,
    /// gRPC.
    V3,
    /// The keys API over HTTP.
    V2,
}

/// A text that no log, message or debug print shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// Name and password for etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password.
    pub password: Secret,
}

/// How to reach etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdOptions {
    /// API.
    pub api: EtcdApi,
    /// Members, at least one.
    pub endpoints: Vec<Endpoint>,
    /// Key prefix as typed.
    pub prefix: String,
    /// Certificates to verify https endpoints against; the system's when `None`.
    pub cafile: Option<PathBuf>,
    /// Client certificate and its key.
    pub client: Option<ClientFiles>,
    /// Name and password.
    pub credentials: Option<Credentials>,
}

/// A client certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFiles {
    /// Certificate, PEM.
    pub certfile: PathBuf,
    /// Private key, PEM.
    pub keyfile: PathBuf,
}

/// How to reach Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeOptions {
    /// URL of the API server, in place of the kubeconfig's.
    pub url: Option<String>,
    /// A kubeconfig file.
    pub kubeconfig: Option<PathBuf>,
    /// What annotations begin with.
    pub prefix: Prefix,
    /// The network config's file.
    pub config: PathBuf,
    /// Set the node's condition `NetworkUnavailable`.
    pub sets_condition: bool,
}

/// Where leases are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryOptions {
    /// In etcd.
    Etcd(EtcdOptions),
    /// In the annotations of Kubernetes' Node objects.
    Kube(KubeOptions),
}

impl RegistryOptions {
    /// etcd, if it is that.
    pub fn etcd(&self) -> Option<&EtcdOptions> {
        match self {
            RegistryOptions::Etcd(etcd) => Some(etcd),
            RegistryOptions::Kube(_) => None,
        }
    }

    /// What it is called.
    pub fn name(&self) -> RegistryName {
        match self {
            RegistryOptions::Etcd(etcd) => RegistryName::etcd(&etcd.prefix),
            RegistryOptions::Kube(kube) => RegistryName {
                kind: "Kubernetes",
                prefix: kube.prefix.to_string(),
            },
        }
    }

    /// Where the network config lies, for people.
    pub fn config_place(&self) -> String {
        match self {
            RegistryOptions::Etcd(etcd) => format!("key {}", Keys::new(&etcd.prefix).config()),
            RegistryOptions::Kube(kube) => format!("file {}", kube.config.display()),
        }
    }

    /// How another network config is taken up, for people.
    pub fn how_to_reload(&self) -> &'static str {
        match self {
            RegistryOptions::Etcd(_) => "systemctl reload flanneld (SIGHUP)",
            RegistryOptions::Kube(_) => "a SIGHUP, or a restart of this node's flannel pod,",
        }
    }
}

/// Where health and metrics are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Address or name to bind; empty means all addresses of both families.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// The daemon's options, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The registry.
    pub registry: RegistryOptions,
    /// What the user said about interface and public addresses.
    pub interface: Wish,
    /// Path of `subnet.env`.
    pub subnet_file: PathBuf,
    /// How long before its end the own lease is renewed: 1 minute to 23 hours 59 minutes.
    pub renew_margin: Duration,
    /// Masquerade what leaves the pod network.
    pub masquerade: bool,
    /// Ask for fully random ports when masquerading, where the kernel can.
    pub fully_random: bool,
    /// Accept forwarded packets of the pod network.
    pub forward_rules: bool,
    /// Period of the firewall check, at least one second.
    pub firewall_resync: Duration,
    /// Health server, when asked for.
    pub health: Option<Health>,
    /// `-v`.
    pub verbosity: i32,
}

fn refuse(raw: &Raw, name: &str, value: &str, expected: &str) -> UsageError {
    UsageError {
        line: format!("invalid {}={}: {expected}", raw.spelling(name), quote(value)),
        hint: several_flags(value),
    }
}

/// The cure for several flags that arrived as the value of the first of them.
pub(super) fn several_flags(value: &str) -> Option<String> {
    value.split_whitespace().skip(1).any(|word| word.starts_with('-')).then(|| {
        "several flags arrived as one argument: write $FLANNEL_OPTIONS, not ${FLANNEL_OPTIONS}, in a systemd unit".into()
    })
}

fn file(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

fn address<T>(
    raw: &Raw,
    name: &str,
    text: &str,
    expected: &str,
    take: impl Fn(IpAddr) -> Option<T>,
) -> Result<Option<T>, UsageError> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<IpAddr>().ok().and_then(take) {
        Some(address) => Ok(Some(address)),
        None => Err(refuse(raw, name, text, expected)),
    }
}

fn public_v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address.to_canonical() {
        IpAddr::V4(v4) if !v4.is_unspecified() && !v4.is_multicast() && !v4.is_broadcast() => Some(v4),
        _ => None,
    }
}

fn public_v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_none() && !v6.is_unspecified() && !v6.is_multicast() => {
            Some(v6)
        }
        _ => None,
    }
}

impl Options {
    /// Checks what was typed. What is odd but survivable goes to `warnings`, one line each.
    pub fn check(raw: &Raw, warnings: &mut Vec<String>) -> Result<Options, UsageError> {
        refuse_unbuilt(raw)?;
        for (name, text) in [
            ("vmodule", &raw.vmodule),
            ("log_backtrace_at", &raw.log_backtrace_at),
        ] {
            if !text.is_empty() {
                warnings.push(format!(
                    "{} has no effect here; -v sets how much is logged",
                    raw.spelling(name)
                ));
            }
        }
        let margin = raw.subnet_lease_renew_margin;
        if !(1..1440).contains(&margin) {
            let expected = "expected minutes from 1 to 1439";
            return Err(refuse(
                raw,
                "subnet-lease-renew-margin",
                &margin.to_string(),
                expected,
            ));
        }
        let firewall_resync = match u32::try_from(raw.iptables_resync) {
            Ok(seconds) if seconds > 0 => Duration::from_secs(seconds.into()),
            _ => {
                let expected = "expected seconds from 1 to 4294967295";
                return Err(refuse(
                    raw,
                    "iptables-resync",
                    &raw.iptables_resync.to_string(),
                    expected,
                ));
            }
        };
        if raw.subnet_file.is_empty() || raw.subnet_file.ends_with('/') {
            return Err(refuse(
                raw,
                "subnet-file",
                &raw.subnet_file,
                "expected the path of a file",
            ));
        }
        warnings.extend(idle_flags(raw));
        let registry = match raw.kube_subnet_mgr {
            true => RegistryOptions::Kube(kube(raw)?),
            false => RegistryOptions::Etcd(etcd(raw, warnings)?),
        };
        Ok(Options {
            interface: Wish {
                registry: addresses(&registry),
                ..interface(raw)?
            },
            registry,
            subnet_file: PathBuf::from(&raw.subnet_file),
            renew_margin: Duration::from_secs(margin.unsigned_abs() * 60),
            masquerade: raw.ip_masq,
            fully_random: !raw.ip_masq_fully_random_disable,
            forward_rules: raw.iptables_forward_rules,
            firewall_resync,
            health: health(raw)?,
            verbosity: raw.v,
        })
    }
}

fn refuse_unbuilt(raw: &Raw) -> Result<(), UsageError> {
    let defaults = Raw::default();
    for flag in TABLE {
        let Some(feature) = flag.unbuilt else { continue };
        let value = flag.text(raw);
        if value != flag.text(&defaults) {
            let line = format!(
                "{}={}: {feature} is not built yet",
                raw.spelling(flag.name),
                quote(&value)
            );
            return Err(UsageError { line, hint: None });
        }
    }
    Ok(())
}

/// The addresses among the registry's endpoints.
fn addresses(registry: &RegistryOptions) -> Vec<IpAddr> {
    let RegistryOptions::Etcd(etcd) = registry else {
        return Vec::new();
    };
    let of = |endpoint: &Endpoint| match &endpoint.address {
        Address::Tcp { host, .. } => host.parse().ok(),
        Address::Unix(_) => None,
    };
    etcd.endpoints.iter().filter_map(of).collect()
}

fn etcd(raw: &Raw, warnings: &mut Vec<String>) -> Result<EtcdOptions, UsageError> {
    let api = match raw.etcd_api.as_str() {
        "v2" => EtcdApi::V2,
        "v3" => EtcdApi::V3,
        _ => EtcdApi::Auto,
    };
    let client = match (file(&raw.etcd_certfile), file(&raw.etcd_keyfile)) {
        (Some(certfile), Some(keyfile)) => Some(ClientFiles { certfile, keyfile }),
        (None, None) => None,
        (certfile, _) => {
            let (has, lacks) = if certfile.is_some() {
                ("certfile", "keyfile")
            } else {
                ("keyfile", "certfile")
            };
            let given = raw.spelling(&format!("etcd-{has}"));
            warnings.push(format!(
                "{given} without --etcd-{lacks}: no client certificate will be shown to etcd"
            ));
            None
        }
    };
    let cafile = file(&raw.etcd_cafile);
    let tls_by_default = cafile.is_some() || client.is_some();
    let endpoints = parse_endpoints(&raw.etcd_endpoints, tls_by_default).map_err(|wrong| {
        let hint = several_flags(&raw.etcd_endpoints);
        // It says itself which entry is wrong, and does not show one that holds a password.
        let line = format!("invalid {}: {wrong}", raw.spelling("etcd-endpoints"));
        UsageError { line, hint }
    })?;
    if tls_by_default && endpoints.iter().all(|endpoint| !endpoint.tls) {
        warnings.push(
            "certificates are given, but every endpoint is http://: the connection is not encrypted".into(),
        );
    }
    let credentials = match (raw.etcd_username.is_empty(), raw.etcd_password.is_empty()) {
        (false, false) => Some(Credentials {
            username: raw.etcd_username.clone(),
            password: Secret::new(&raw.etcd_password),
        }),
        (true, true) => None,
        (no_name, _) => {
            let (has, lacks) = if no_name {
                ("password", "username")
            } else {
                ("username", "password")
            };
            let given = raw.spelling(&format!("etcd-{has}"));
            warnings.push(format!(
                "{given} without --etcd-{lacks}: etcd is used without authentication"
            ));
            None
        }
    };
    Ok(EtcdOptions {
        api,
        endpoints,
        prefix: raw.etcd_prefix.clone(),
        cafile,
        client,
        credentials,
    })
}

/// Flags that were given for the registry that is not used.
fn idle_flags(raw: &Raw) -> Vec<String> {
    let (idle, why) = match raw.kube_subnet_mgr {
        true => (Section::Registry, "with --kube-subnet-mgr"),
        false => (Section::Kubernetes, "without --kube-subnet-mgr"),
    };
    TABLE
        .iter()
        .filter(|flag| flag.section == idle && flag.name != "kube-subnet-mgr")
        .filter(|flag| raw.given.contains_key(flag.name))
        .map(|flag| format!("{} has no effect {why}", raw.spelling(flag.name)))
        .collect()
}

fn kube(raw: &Raw) -> Result<KubeOptions, UsageError> {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    if !raw.kube_api_url.is_empty() {
        registry::kube::check_url(&raw.kube_api_url).map_err(|_| {
            refuse(
                raw,
                "kube-api-url",
                &registry::kube::without_userinfo(&raw.kube_api_url),
                "expected http:// or https:// and a host",
            )
        })?;
    }
    let prefix = &raw.kube_annotation_prefix;
    Ok(KubeOptions {
        url: text(&raw.kube_api_url),
        kubeconfig: file(&raw.kubeconfig_file),
        prefix: Prefix::parse(prefix)
            .map_err(|wrong| refuse(raw, "kube-annotation-prefix", prefix, &wrong.to_string()))?,
        config: file(&raw.net_config_path).ok_or_else(|| {
            refuse(
                raw,
                "net-config-path",
                &raw.net_config_path,
                "expected the path of a file",
            )
        })?,
        sets_condition: raw.set_node_network_unavailable,
    })
}

fn interface(raw: &Raw) -> Result<Wish, UsageError> {
    let v4 = "expected an IPv4 address of a host";
    let v6 = "expected an IPv6 address of a host";
    let any = "expected an IP address";
    for text in raw.iface_regex.iter().filter(|text| !text.is_empty()) {
        if let Err(why) = pattern::compile(text) {
            let expected = format!("expected a regular expression: {why}");
            return Err(refuse(raw, "iface-regex", text, &expected));
        }
    }
    Ok(Wish {
        registry: Vec::new(),
        iface: raw.iface.clone(),
        iface_regex: raw.iface_regex.clone(),
        can_reach: address(raw, "iface-can-reach", &raw.iface_can_reach, any, |a| {
            Some(a.to_canonical())
        })?,
        public_ip: address(raw, "public-ip", &raw.public_ip, v4, public_v4)?,
        public_ipv6: address(raw, "public-ipv6", &raw.public_ipv6, v6, public_v6)?,
    })
}

fn health(raw: &Raw) -> Result<Option<Health>, UsageError> {
    if raw.healthz_port <= 0 {
        return Ok(None);
    }
    let Ok(port) = u16::try_from(raw.healthz_port) else {
        let expected = "expected a port of 0 (none) to 65535";
        return Err(refuse(
            raw,
            "healthz-port",
            &raw.healthz_port.to_string(),
            expected,
        ));
    };
    let host = raw.healthz_ip.clone();
    if host.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/') {
        return Err(refuse(raw, "healthz-ip", &host, "expected an IP address"));
    }
    Ok(Some(Health { host, port }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_address_when_no_host_can_have_it_then_refused() {
        let v4 = |text: &str| public_v4(text.parse().unwrap()).map(|ip| ip.to_string());
        for good in ["192.0.2.1", "10.0.0.1", "127.0.0.1"] {
            assert_eq!(v4(good).as_deref(), Some(good));
        }
        assert_eq!(v4("::ffff:192.0.2.1").as_deref(), Some("192.0.2.1"));
        for bad in [
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "2001:db8::1",
            "::ffff:0.0.0.0",
        ] {
            assert_eq!(v4(bad), None, "{bad}");
        }
        let v6 = |text: &str| public_v6(text.parse().unwrap()).map(|ip| ip.to_string());
        for good in ["2001:db8::1", "fd00::1", "::1"] {
            assert_eq!(v6(good).as_deref(), Some(good));
        }
        for bad in ["::", "ff02::1", "::ffff:192.0.2.1", "192.0.2.1"] {
            assert_eq!(v6(bad), None, "{bad}");
        }
    }

    #[test]
    fn flags_when_they_arrive_as_one_argument_then_the_cure_is_named() {
        assert!(several_flags("/x --ip-masq").is_some_and(|cure| cure.contains("$FLANNEL_OPTIONS")));
        for plain in ["", "/x", "--ip-masq", "/x y"] {
            assert_eq!(several_flags(plain), None, "{plain}");
        }
        assert_eq!((file(""), file("/x")), (None, Some(PathBuf::from("/x"))));
    }
}
