//! The network config: what `<prefix>/config` or `net-conf.json` says.
//!
//! Reading has two steps, since the two sources need different ones: [`Declared::parse`] takes the JSON as Go flannel does,
//! [`Declared::validate`] checks that subnets can be allocated from it and fills in what was left out. With Kubernetes the
//! cluster hands out the subnets, and [`Declared::without_allocation`] takes the place of the second step.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::go_json::{Fields, GoJsonError};
use crate::object::Family;

mod differences;
mod idle;

pub use differences::differences;
pub use idle::without_effect;

/// Type of the backend where the config has no `Backend` key, whatever flannel's documentation says.
const DEFAULT_BACKEND: &str = "udp";
/// Bytes of the largest config that is read; every node keeps it, in memory and on disk.
const LARGEST: usize = 256 << 10;
/// What stands for the `Backend` object where there is none; one that is written as this lacks a type and is refused.
const NO_BACKEND: &str = "{}";

/// Why a network config cannot be used. Nothing but another config helps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The text or one of its fields has the wrong form.
    #[error("network config: {0}")]
    Json(#[from] GoJsonError),
    /// It is too large for one.
    #[error("network config: {0} bytes: expected at most {LARGEST}")]
    TooLarge(usize),
    /// Both families are switched off.
    #[error("network config: EnableIPv4 and EnableIPv6 are false: expected at least one to be true")]
    NoFamily,
    /// Every field is well formed, but no network comes of them.
    #[error("network config: {field} is {value}: expected {expected}")]
    Incoherent {
        /// The field to change.
        field: &'static str,
        /// What it holds, or `not set`.
        value: String,
        /// What it has to be, given the other fields.
        expected: String,
    },
}

/// The backend's part of the config, which only the backend can read. It may hold keys, so its text form shows its type only.
#[derive(Clone, PartialEq, Eq)]
pub struct RawBackend {
    /// `Backend.Type` in lower case.
    pub kind: String,
    /// The whole `Backend` object as it was written; `{}` when there is none.
    pub json: String,
}

impl RawBackend {
    /// The fields of the `Backend` object; errors name them with that in front, as in `Backend.VNI`.
    ///
    /// # Errors
    ///
    /// When it is no object.
    pub fn fields(&self) -> Result<Fields<'_>, GoJsonError> {
        Fields::parse_inside(&self.json, "Backend.".to_owned())
    }

    /// Whether the config has no `Backend` key, and so the type that stands for that.
    pub fn is_left_out(&self) -> bool {
        self.json == NO_BACKEND
    }
}

impl fmt::Debug for RawBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawBackend {:?}", self.kind)
    }
}

/// Addresses of one family and how they are cut into subnets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// `Network` or `IPv6Network`, host bits clear.
    pub network: IpNet,
    /// Prefix length of every subnet.
    pub subnet_len: u8,
    /// Base address of the first subnet that may be handed out.
    pub min: IpAddr,
    /// Base address of the last.
    pub max: IpAddr,
}

/// A network config that holds together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// IPv4, when enabled.
    pub v4: Option<Space>,
    /// IPv6, when enabled.
    pub v6: Option<Space>,
    /// nftables instead of iptables.
    pub nftables: bool,
    /// The backend's part.
    pub backend: RawBackend,
}

impl NetworkConfig {
    /// Reads and checks a config whose subnets flannel itself allocates (the registry's `config` key).
    pub fn parse(json: &[u8]) -> Result<NetworkConfig, ConfigError> {
        Declared::parse(json)?.validate()
    }

    /// The addresses of a family; `None` when it is off.
    pub fn space(&self, family: Family) -> Option<&Space> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// The families in use, IPv4 first.
    pub fn families(&self) -> impl Iterator<Item = Family> + use<> {
        let on = [self.v4.map(|_| Family::V4), self.v6.map(|_| Family::V6)];
        on.into_iter().flatten()
    }

    /// The networks of the families in use, IPv4 first.
    pub fn networks(&self) -> impl Iterator<Item = IpNet> + use<> {
        [self.v4, self.v6]
            .into_iter()
            .flatten()
            .map(|space| space.network)
    }
}

/// A config as it is written, with nothing derived: zero and absent mean "choose for me".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// `EnableIPv4`, true when absent.
    pub enable_ipv4: bool,
    /// `EnableIPv6`, false when absent.
    pub enable_ipv6: bool,
    /// `EnableNFTables`, false when absent.
    pub nftables: bool,
    /// `Network`, host bits clear.
    pub network: Option<Ipv4Net>,
    /// `IPv6Network`, host bits clear.
    pub ipv6_network: Option<Ipv6Net>,
    /// `SubnetLen`.
    pub subnet_len: Option<u32>,
    /// `IPv6SubnetLen`.
    pub ipv6_subnet_len: Option<u32>,
    /// `SubnetMin`.
    pub subnet_min: Option<Ipv4Addr>,
    /// `SubnetMax`.
    pub subnet_max: Option<Ipv4Addr>,
    /// `IPv6SubnetMin`.
    pub ipv6_subnet_min: Option<Ipv6Addr>,
    /// `IPv6SubnetMax`.
    pub ipv6_subnet_max: Option<Ipv6Addr>,
    /// `Backend`.
    pub backend: RawBackend,
}

impl Declared {
    /// Reads the JSON: names in any case, unknown ones ignored, invalid UTF-8 replaced.
    ///
    /// COMPAT: `null` is an error exactly where Go makes it one (`Network`, `IPv6Network`, `SubnetMin`, `SubnetMax`) and absence
    /// elsewhere. Stricter than Go in two points: `IPv6Network` must not be IPv4, and a `Backend` without a type is refused
    /// here and not by a later lookup of the empty name.
    pub fn parse(json: &[u8]) -> Result<Declared, ConfigError> {
        if json.len() > LARGEST {
            return Err(ConfigError::TooLarge(json.len()));
        }
        let text = String::from_utf8_lossy(json);
        let fields = Fields::parse(&text)?;
        let network = cidr(&fields, "Network", "an IPv4 CIDR in quotes", |net| match net {
            IpNet::V4(net) => Some(net.trunc()),
            IpNet::V6(_) => None,
        })?;
        let ipv6_network = cidr(
            &fields,
            "IPv6Network",
            "an IPv6 CIDR in quotes",
            |net| match net {
                IpNet::V6(net) if net.addr().to_ipv4_mapped().is_none() => Some(net.trunc()),
                _ => None,
            },
        )?;
        Ok(Declared {
            enable_ipv4: fields.bool("EnableIPv4")?.unwrap_or(true),
            enable_ipv6: fields.bool("EnableIPv6")?.unwrap_or(false),
            nftables: fields.bool("EnableNFTables")?.unwrap_or(false),
            network,
            ipv6_network,
            subnet_len: fields.u32("SubnetLen")?.filter(|len| *len > 0),
            ipv6_subnet_len: fields.u32("IPv6SubnetLen")?.filter(|len| *len > 0),
            subnet_min: ipv4(&fields, "SubnetMin")?,
            subnet_max: ipv4(&fields, "SubnetMax")?,
            ipv6_subnet_min: fields.ipv6("IPv6SubnetMin")?.filter(|ip| !ip.is_unspecified()),
            ipv6_subnet_max: fields.ipv6("IPv6SubnetMax")?.filter(|ip| !ip.is_unspecified()),
            backend: backend(&fields)?,
        })
    }

    /// Checks that the fields fit together and fills in what was left out.
    pub fn validate(&self) -> Result<NetworkConfig, ConfigError> {
        let v4 = Cut {
            names: &V4_NAMES,
            network: self.network.map(IpNet::V4),
            len: self.subnet_len,
            min: self.subnet_min.map(IpAddr::V4),
            max: self.subnet_max.map(IpAddr::V4),
        };
        let v6 = Cut {
            names: &V6_NAMES,
            network: self.ipv6_network.map(IpNet::V6),
            len: self.ipv6_subnet_len,
            min: self.ipv6_subnet_min.map(IpAddr::V6),
            max: self.ipv6_subnet_max.map(IpAddr::V6),
        };
        self.assemble(v4, v6, Cut::into_space)
    }

    /// Takes the networks for subnets that come from elsewhere (`podCIDR`): length, minimum and maximum are not looked at, and
    /// every space is one subnet, its network.
    pub fn without_allocation(&self) -> Result<NetworkConfig, ConfigError> {
        let whole = |names, network| Cut {
            names,
            network,
            len: None,
            min: None,
            max: None,
        };
        let v4 = whole(&V4_NAMES, self.network.map(IpNet::V4));
        let v6 = whole(&V6_NAMES, self.ipv6_network.map(IpNet::V6));
        self.assemble(v4, v6, |cut| {
            let network = cut.network()?;
            Ok(Space {
                network,
                subnet_len: network.prefix_len(),
                min: network.addr(),
                max: network.addr(),
            })
        })
    }

    fn assemble(
        &self,
        v4: Cut,
        v6: Cut,
        space: impl Fn(Cut) -> Result<Space, ConfigError>,
    ) -> Result<NetworkConfig, ConfigError> {
        if !self.enable_ipv4 && !self.enable_ipv6 {
            return Err(ConfigError::NoFamily);
        }
        Ok(NetworkConfig {
            v4: if self.enable_ipv4 { Some(space(v4)?) } else { None },
            v6: if self.enable_ipv6 { Some(space(v6)?) } else { None },
            nftables: self.nftables,
            backend: self.backend.clone(),
        })
    }
}

fn cidr<T>(
    fields: &Fields<'_>,
    name: &str,
    expected: &'static str,
    take: impl Fn(IpNet) -> Option<T>,
) -> Result<Option<T>, GoJsonError> {
    let Some(raw) = fields.raw(name) else {
        return Ok(None);
    };
    let net = fields.cidr(name).ok().flatten().and_then(take);
    net.map(Some).ok_or_else(|| fields.wrong(name, raw, expected))
}

fn ipv4(fields: &Fields<'_>, name: &str) -> Result<Option<Ipv4Addr>, GoJsonError> {
    match fields.raw(name) {
        Some(raw @ "null") => Err(fields.wrong(name, raw, "an IPv4 address in quotes")),
        _ => Ok(fields.ipv4(name)?.filter(|ip| !ip.is_unspecified())),
    }
}

fn backend(fields: &Fields<'_>) -> Result<RawBackend, GoJsonError> {
    let Some(json) = fields.raw("Backend") else {
        return Ok(RawBackend {
            kind: DEFAULT_BACKEND.to_owned(),
            json: NO_BACKEND.to_owned(),
        });
    };
    const EXPECTED: &str = "the name of a backend, such as \"vxlan\"";
    let Some(inner) = fields.object("Backend")? else {
        return Err(fields.wrong("Backend.Type", "not set", EXPECTED));
    };
    let kind = inner.string("Type")?.unwrap_or_default().to_lowercase();
    if kind.is_empty() {
        return Err(fields.wrong("Backend.Type", inner.raw("Type").unwrap_or("not set"), EXPECTED));
    }
    Ok(RawBackend {
        kind,
        json: json.to_owned(),
    })
}

/// What the fields of one family are called, and the limits that depend on it.
struct Names {
    network: &'static str,
    len: &'static str,
    min: &'static str,
    max: &'static str,
    /// Length of subnets where the network has room for four of them.
    preferred_len: u8,
}

const V4_NAMES: Names = Names {
    network: "Network",
    len: "SubnetLen",
    min: "SubnetMin",
    max: "SubnetMax",
    preferred_len: 24,
};
const V6_NAMES: Names = Names {
    network: "IPv6Network",
    len: "IPv6SubnetLen",
    min: "IPv6SubnetMin",
    max: "IPv6SubnetMax",
    preferred_len: 64,
};

/// One family of a declared config on its way to a [`Space`].
struct Cut {
    names: &'static Names,
    network: Option<IpNet>,
    len: Option<u32>,
    min: Option<IpAddr>,
    max: Option<IpAddr>,
}

impl Cut {
    fn network(&self) -> Result<IpNet, ConfigError> {
        let wrong = |value: String| {
            incoherent(
                self.names.network,
                value,
                "the CIDR that all subnets are part of, not all addresses".into(),
            )
        };
        match self.network {
            None => Err(wrong("not set".into())),
            Some(net) if net.prefix_len() == 0 => Err(wrong(net.to_string())),
            Some(net) => Ok(net),
        }
    }

    fn into_space(self) -> Result<Space, ConfigError> {
        let names = self.names;
        let network = self.network()?;
        let family = Family::of_net(network);
        let subnet_len = self.subnet_len(network)?;
        let size = 1_u128 << (family.bits() - subnet_len);
        let first = number(network.addr());
        let last = number(network.broadcast()) - (size - 1);
        let inside = |field, given: Option<IpAddr>, default: u128| match given {
            None => Ok(default),
            Some(ip) if !network.contains(&ip) => Err(incoherent(
                field,
                ip.to_string(),
                format!("an address in {} {network}", names.network),
            )),
            Some(ip) if !number(ip).is_multiple_of(size) => Err(incoherent(
                field,
                ip.to_string(),
                format!(
                    "the base of a /{subnet_len} ({}), such as {}",
                    names.len,
                    address(family, number(ip) / size * size)
                ),
            )),
            Some(ip) => Ok(number(ip)),
        };
        // The first subnet is left out unless asked for: its base is the network's own address.
        let min = inside(names.min, self.min, first + size)?;
        let max = inside(names.max, self.max, last)?;
        if min > max {
            let (min, max) = (address(family, min), address(family, max));
            return Err(incoherent(
                names.min,
                min.to_string(),
                format!("at most {} {max}", names.max),
            ));
        }
        Ok(Space {
            network,
            subnet_len,
            min: address(family, min),
            max: address(family, max),
        })
    }

    fn subnet_len(&self, network: IpNet) -> Result<u8, ConfigError> {
        let names = self.names;
        let bits = Family::of_net(network).bits();
        // A subnet needs a tunnel and a bridge address; a network needs four subnets, as the first one is not used.
        let (shortest, longest) = (network.prefix_len() + 2, bits - 2);
        if shortest > longest {
            let expected = format!("a CIDR of at most /{}, to have room for four subnets", bits - 4);
            return Err(incoherent(names.network, network.to_string(), expected));
        }
        let Some(given) = self.len else {
            return Ok(shortest.max(names.preferred_len));
        };
        match u8::try_from(given) {
            Ok(len) if (shortest..=longest).contains(&len) => Ok(len),
            _ => {
                let expected = format!("{shortest} to {longest}, to have room for four subnets in {network}");
                Err(incoherent(names.len, given.to_string(), expected))
            }
        }
    }
}

fn incoherent(field: &'static str, value: String, expected: String) -> ConfigError {
    ConfigError::Incoherent {
        field,
        value,
        expected,
    }
}

/// An address as a number, in the low 32 bits for IPv4.
pub(crate) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

/// The address of a number; what does not fit IPv4 wraps around.
pub(crate) fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(number as u32)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

#[cfg(test)]
mod tests;
