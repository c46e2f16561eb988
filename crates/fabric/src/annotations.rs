//! Leases in the annotations of Kubernetes' Node objects: a node's `spec.podCIDRs` are its subnet, annotations say the rest.
//!
//! COMPAT: names, values and the rule for the prefix are those of Go flannel's kube subnet manager, whose nodes read and write the
//! same objects. It drops whatever it cannot read; here the entry is named.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::config::NetworkConfig;
use crate::go_json::{compact, parse_cidr, shorten, write_quoted};
use crate::lease::{Attributes, LARGEST_VALUE, Lease, Rejected, Subnet};
use crate::object::Family;
use crate::utc;

/// An annotation of flannel's, without what goes before its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// JSON text of what the backend publishes for IPv4; `null` where it publishes nothing.
    BackendData,
    /// The backend's type.
    BackendType,
    /// As `backend-data`, for IPv6.
    BackendV6Data,
    /// `true`: the node has a lease.
    Managed,
    /// An operator's: as the flag `--public-ip`, which it beats.
    NodePublicIp,
    /// An operator's: as the flag `--public-ipv6`, which it beats.
    NodePublicIpv6,
    /// The IPv4 address that peers use.
    PublicIp,
    /// An operator's: is published in place of the own address.
    PublicIpOverwrite,
    /// The IPv6 address that peers use.
    PublicIpv6,
    /// An operator's: is published in place of the own address.
    PublicIpv6Overwrite,
}

impl Name {
    /// All of them.
    pub const ALL: [Name; 10] = [
        Name::BackendData,
        Name::BackendType,
        Name::BackendV6Data,
        Name::Managed,
        Name::NodePublicIp,
        Name::NodePublicIpv6,
        Name::PublicIp,
        Name::PublicIpOverwrite,
        Name::PublicIpv6,
        Name::PublicIpv6Overwrite,
    ];

    /// As it is written after the prefix.
    pub fn text(self) -> &'static str {
        match self {
            Name::BackendData => "backend-data",
            Name::BackendType => "backend-type",
            Name::BackendV6Data => "backend-v6-data",
            Name::Managed => "kube-subnet-manager",
            Name::NodePublicIp => "node-public-ip",
            Name::NodePublicIpv6 => "node-public-ipv6",
            Name::PublicIp => "public-ip",
            Name::PublicIpOverwrite => "public-ip-overwrite",
            Name::PublicIpv6 => "public-ipv6",
            Name::PublicIpv6Overwrite => "public-ipv6-overwrite",
        }
    }

    fn data(family: Family) -> Name {
        match family {
            Family::V4 => Name::BackendData,
            Family::V6 => Name::BackendV6Data,
        }
    }

    fn public(family: Family) -> Name {
        match family {
            Family::V4 => Name::PublicIp,
            Family::V6 => Name::PublicIpv6,
        }
    }

    fn overwrite(family: Family) -> Name {
        match family {
            Family::V4 => Name::PublicIpOverwrite,
            Family::V6 => Name::PublicIpv6Overwrite,
        }
    }
}

/// What goes before the name of each annotation: `flannel.alpha.coreos.com/`, or `example.org/name-` for several networks in one
/// cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(String);

/// A text that is no [`Prefix`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a domain of at least two labels in lower case, optionally followed by / and a name, as flannel.alpha.coreos.com or \
     example.org/net2"
)]
pub struct PrefixError;

impl Prefix {
    /// Completes what an operator wrote: `/` after a domain, `-` after a name.
    ///
    /// # Errors
    ///
    /// When no annotation could bear it.
    pub fn parse(text: &str) -> Result<Prefix, PrefixError> {
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
        let (domain, name) = text.split_once('/').unwrap_or((text, ""));
        let name = name.strip_suffix('-').unwrap_or(name);
        // COMPAT: stricter than Go, whose expression looks at the last two labels only: what comes before them there, an API server
        // refuses.
        let is_domain = domain.contains('.')
            && domain
                .split('.')
                .all(|label| !label.is_empty() && label.chars().all(is_word));
        if !is_domain || !name.chars().all(is_word) {
            return Err(PrefixError);
        }
        Ok(Prefix(match name {
            "" => format!("{domain}/"),
            name => format!("{domain}/{name}-"),
        }))
    }

    /// The whole name of an annotation.
    pub fn key(&self, name: Name) -> String {
        format!("{}{}", self.0, name.text())
    }

    fn name_of(&self, key: &str) -> Option<Name> {
        let rest = key.strip_prefix(&self.0)?;
        Name::ALL.into_iter().find(|name| name.text() == rest)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The annotations of flannel's that a node has, or shall have.
pub type Annotations = BTreeMap<Name, String>;

/// What of a Node object bears on its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeObject {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`: another one makes it another node of the same name.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// `metadata.creationTimestamp`, seconds since 1970; where leases overlap the older node's wins.
    pub created: i64,
    /// Its annotations, flannel's only.
    pub annotations: Annotations,
    /// `spec.podCIDRs`, or what `spec.podCIDR` holds where there are none.
    pub cidrs: Vec<String>,
}

#[derive(Default)]
struct Whole<'a> {
    metadata: Option<Metadata<'a>>,
    spec: Option<Spec>,
}

impl<'a> Whole<'a> {
    /// Reads an object as far as it has to be: most of a Node is its status, which comes last and changes with every heartbeat.
    fn read(json: &'a str) -> Result<Whole<'a>, serde_json::Error> {
        let mut whole = Whole::default();
        let read = AsFarAsNeeded(&mut whole).deserialize(&mut serde_json::Deserializer::from_str(json));
        match read {
            Err(failure) if !whole.is_complete() => Err(failure),
            _ => Ok(whole),
        }
    }

    fn is_complete(&self) -> bool {
        self.metadata.is_some() && self.spec.is_some()
    }
}

/// Reads fields into what it has, until that is complete. What is left of the object then is refused by the parser, not read.
struct AsFarAsNeeded<'b, 'a>(&'b mut Whole<'a>);

impl<'de> DeserializeSeed<'de> for AsFarAsNeeded<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for AsFarAsNeeded<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while !self.0.is_complete()
            && let Some(key) = map.next_key::<Cow<'de, str>>()?
        {
            match &*key {
                "metadata" => self.0.metadata = Some(map.next_value()?),
                "spec" => self.0.spec = Some(map.next_value()?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(default)]
    name: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    creation_timestamp: Option<String>,
    #[serde(borrow, default)]
    annotations: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default, rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

impl NodeObject {
    /// Reads a Node object; all that does not matter for leases is passed over.
    ///
    /// # Errors
    ///
    /// When it is none; in words.
    pub fn read(json: &str, prefix: &Prefix) -> Result<NodeObject, String> {
        let whole = Whole::read(json).map_err(|failure| format!("no Node object: {failure}"))?;
        let metadata = whole.metadata.ok_or("no Node object: it has no metadata")?;
        let spec = whole.spec.unwrap_or_default();
        if metadata.name.is_empty() {
            return Err("a Node object without a name".to_owned());
        }
        let annotations = match metadata.annotations {
            None => Annotations::new(),
            Some(raw) => serde_json::Deserializer::from_str(raw.get())
                .deserialize_option(OfPrefix(prefix))
                .map_err(|failure| format!("annotations of node {}: {failure}", metadata.name))?,
        };
        let mut cidrs = spec.pod_cidrs.unwrap_or_default();
        if cidrs.is_empty() {
            cidrs.extend(spec.pod_cidr);
        }
        cidrs.retain(|cidr| !cidr.is_empty());
        Ok(NodeObject {
            name: metadata.name,
            uid: metadata.uid,
            version: metadata.resource_version,
            created: metadata
                .creation_timestamp
                .as_deref()
                .and_then(utc::read)
                .unwrap_or_default(),
            annotations,
            cidrs,
        })
    }

    /// The text of an annotation, if it has one that is not empty.
    pub fn text(&self, name: Name) -> Option<&str> {
        self.annotations
            .get(&name)
            .map(String::as_str)
            .filter(|text| !text.is_empty())
    }

    /// The subnet that Kubernetes gave it, of the families in use.
    ///
    /// # Errors
    ///
    /// In words: there is none, or what there is cannot be read.
    pub fn subnet(&self, network: &NetworkConfig) -> Result<Subnet, String> {
        if self.cidrs.len() > 2 {
            return Err(format!("{} pod CIDRs: expected at most two", self.cidrs.len()));
        }
        let (mut v4, mut v6) = (None, None);
        for text in &self.cidrs {
            match parse_cidr(text) {
                Some(IpNet::V4(net)) => v4 = v4.or(Some(net)),
                Some(IpNet::V6(net)) => v6 = v6.or(Some(net)),
                None => {
                    return Err(format!(
                        "podCIDR is {}: expected an IPv4 or an IPv6 CIDR",
                        shorten(text)
                    ));
                }
            }
        }
        let (v4, v6) = (
            v4.filter(|_| network.v4.is_some()),
            v6.filter(|_| network.v6.is_some()),
        );
        Subnet::new(v4, v6).ok_or_else(|| match self.cidrs.is_empty() {
            true => "it has no podCIDR yet".to_owned(),
            false => format!(
                "none of its pod CIDRs {} is of a family in use",
                self.cidrs.join(", ")
            ),
        })
    }

    /// The lease that it is; `None` where it is none of flannel's.
    ///
    /// # Errors
    ///
    /// It claims to be one and cannot be read.
    pub fn lease(&self, network: &NetworkConfig) -> Result<Option<Lease>, Rejected> {
        if self.text(Name::Managed) != Some("true") {
            return Ok(None);
        }
        let rejected = |reason: String| Rejected {
            key: entry_of(&self.name),
            reason,
        };
        let subnet = self.subnet(network).map_err(rejected)?;
        let attributes = self.attributes(network).map_err(rejected)?;
        Ok(Some(Lease {
            subnet,
            attributes,
            created: self.created,
        }))
    }

    /// What it says of the way to it.
    fn attributes(&self, network: &NetworkConfig) -> Result<Attributes, String> {
        let address = |family: Family| -> Result<Option<IpAddr>, String> {
            let name = Name::public(family);
            let Some(text) = self.text(name).filter(|_| network.space(family).is_some()) else {
                return Ok(None);
            };
            match text.parse::<IpAddr>() {
                Ok(address) if Family::of(address) == family => Ok(Some(address)),
                _ => Err(format!(
                    "{} is {:?}: expected an {family} address",
                    name.text(),
                    shorten(text)
                )),
            }
        };
        let data = |family: Family| -> Result<Option<Box<str>>, String> {
            let name = Name::data(family);
            let Some(text) = self.text(name).filter(|_| network.space(family).is_some()) else {
                return Ok(None);
            };
            if text.len() > LARGEST_VALUE {
                return Err(format!(
                    "{} has {} bytes: expected at most {LARGEST_VALUE}",
                    name.text(),
                    text.len()
                ));
            }
            let data = compact(text).map_err(|failure| format!("{}: {failure}", name.text()))?;
            Ok((data != "null").then(|| data.into()))
        };
        Ok(Attributes {
            public_ip: match address(Family::V4)? {
                Some(IpAddr::V4(address)) => address,
                _ => Ipv4Addr::UNSPECIFIED,
            },
            public_ip6: match address(Family::V6)? {
                Some(IpAddr::V6(address)) => Some(address),
                _ => None,
            },
            backend_type: self.text(Name::BackendType).unwrap_or_default().into(),
            data: data(Family::V4)?,
            data6: data(Family::V6)?,
        })
    }

    /// What it has to say for peers to find these attributes, as Go writes them; an operator's overwriting address in place of the
    /// own one, where it is an address.
    pub fn wanted(&self, attributes: &Attributes) -> Annotations {
        let mut wanted = Annotations::from([
            (Name::BackendType, attributes.backend_type.to_string()),
            (Name::Managed, "true".to_owned()),
        ]);
        for family in Family::BOTH {
            let (own, other) = match family {
                Family::V4 => (
                    Some(IpAddr::V4(attributes.public_ip)),
                    attributes.data6.as_deref(),
                ),
                Family::V6 => (attributes.public_ip6.map(IpAddr::V6), attributes.data.as_deref()),
            };
            let Some(own) = own else { continue };
            let data = attributes.data_of(family);
            // A backend that publishes something publishes it for every family it serves.
            if data.is_none() && other.is_some() {
                continue;
            }
            // As the operator wrote it.
            let overwrite = self.text(Name::overwrite(family));
            let public = match overwrite.filter(|_| self.overwrite(family).is_some()) {
                Some(text) => text.to_owned(),
                None => own.to_string(),
            };
            wanted.insert(Name::public(family), public);
            wanted.insert(Name::data(family), data.unwrap_or("null").to_owned());
        }
        wanted
    }

    /// The address that an operator wants published for a family.
    pub fn overwrite(&self, family: Family) -> Option<IpAddr> {
        self.address(Name::overwrite(family), family)
    }

    /// The address that an operator gives the node for a family: what the flags say gives way to it.
    pub fn ordered(&self, family: Family) -> Option<IpAddr> {
        let name = match family {
            Family::V4 => Name::NodePublicIp,
            Family::V6 => Name::NodePublicIpv6,
        };
        self.address(name, family)
    }

    fn address(&self, name: Name, family: Family) -> Option<IpAddr> {
        let address: IpAddr = self.text(name)?.parse().ok()?;
        (Family::of(address) == family).then_some(address)
    }

    /// The body of a merge patch that makes its annotations as wanted; `None` where they are.
    pub fn patch(&self, prefix: &Prefix, wanted: &Annotations) -> Option<String> {
        let mut changed = wanted
            .iter()
            .filter(|(name, text)| self.annotations.get(name) != Some(text))
            .peekable();
        changed.peek()?;
        let mut body = r#"{"metadata":{"annotations":{"#.to_owned();
        for (n, (name, text)) in changed.enumerate() {
            if n > 0 {
                body.push(',');
            }
            write_quoted(&mut body, &prefix.key(*name));
            body.push(':');
            write_quoted(&mut body, text);
        }
        body.push_str("}}}");
        Some(body)
    }
}

/// What the entry of a node is called. No subnet's key reads like this, whatever the node's name is.
pub fn entry_of(node: &str) -> String {
    format!("node {}", shorten(node))
}

/// Reads annotations and keeps those with the prefix.
struct OfPrefix<'p>(&'p Prefix);

impl<'de> Visitor<'de> for OfPrefix<'_> {
    type Value = Annotations;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of texts")
    }

    fn visit_none<E>(self) -> Result<Annotations, E> {
        Ok(Annotations::new())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Annotations, D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
        let mut found = Annotations::new();
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            match self.0.name_of(&key) {
                Some(name) => {
                    found.insert(name, map.next_value()?);
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
