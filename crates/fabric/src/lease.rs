//! Leases: which node holds which subnets, and the text of both on the wire.
//!
//! A lease is one entry `<prefix>/subnets/<key>` in the registry. The key names the subnets ([`Subnet`]), the value says how
//! to reach the node ([`Attributes`]). Both are written byte for byte as Go flannel writes them, since nodes of both kinds
//! share a registry; readers take every form that Go flannel since 0.11 wrote, and no more, so that a stray entry cannot pass
//! for a lease.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::digest::fnv1a;
use crate::go_json::{Fields, GoJsonError, parse_length, shorten, write_compact, write_quoted};
use crate::object::Family;

mod backend_type;

pub use self::backend_type::BackendType;

/// Key text of the IPv4 half of a lease that has none.
const NO_V4: &str = "0.0.0.0-0";
/// Bytes of the longest key that is looked at; the longest of a lease has 62.
const LONGEST_KEY: usize = 128;
/// Bytes of the largest value that is a lease's. Backends publish some 100 to 400; the reference's extension backend whatever a
/// command prints, such as a certificate of a few thousand. Every node keeps the values of all others.
pub const LARGEST_VALUE: usize = 16 << 10;

/// The subnets of one lease: of either family or of both.
///
/// INVARIANT: at least one half is there, and host bits are clear; [`Subnet::new`] and [`Subnet::parse_key`] see to both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    /// The IPv4 half.
    pub v4: Option<Ipv4Net>,
    /// The IPv6 half.
    pub v6: Option<Ipv6Net>,
}

/// Why a key under `<prefix>/subnets/` is no subnet key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetKeyError {
    /// Not of the form `<IPv4>-<length>` or `<IPv4>-<length>&<IPv6>-<length>`.
    #[error("subnet key {0:?} is not <IPv4>-<length>, optionally followed by &<IPv6>-<length>")]
    Form(String),
    /// The address has bits set beyond the prefix length: it is no subnet, and would not be equal to the one it is in.
    #[error("subnet key {key:?} names a host: expected {expected:?}")]
    HostBits {
        /// The key.
        key: String,
        /// The key of the subnet the address lies in.
        expected: String,
    },
    /// A second spelling of a key. Two keys for one subnet could not be told apart when one of them goes.
    #[error("subnet key {key:?} is not in canonical form: expected {expected:?}")]
    NotCanonical {
        /// The key.
        key: String,
        /// How flannel writes it.
        expected: String,
    },
}

impl Subnet {
    /// A subnet of the given halves with host bits cleared; `None` when there is no half.
    pub fn new(v4: Option<Ipv4Net>, v6: Option<Ipv6Net>) -> Option<Subnet> {
        (v4.is_some() || v6.is_some()).then(|| Subnet {
            v4: v4.map(|n| n.trunc()),
            v6: v6.map(|n| n.trunc()),
        })
    }

    /// Reads the part of a registry key after `<prefix>/subnets/`.
    ///
    /// COMPAT: stricter than Go, which takes any key that *ends* like a subnet key, keeps host bits and accepts `-024`.
    /// IPv4 lengths are 1 to 31 and IPv6 lengths 1 to 127 as there; only `0.0.0.0-0&` before an IPv6 half stands for no IPv4.
    pub fn parse_key(text: &str) -> Result<Subnet, SubnetKeyError> {
        let form = || SubnetKeyError::Form(shorten(text));
        if text.len() > LONGEST_KEY {
            return Err(form());
        }
        let (v4_text, v6_text) = match text.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (text, None),
        };
        let v6 = match v6_text {
            Some(half) => Some(parse_half(half, Ipv6Addr::to_ipv4_mapped).ok_or_else(form)?),
            None => None,
        };
        let v4 = match v6 {
            Some(_) if v4_text == NO_V4 => None,
            _ => Some(parse_half(v4_text, |_: &Ipv4Addr| None).ok_or_else(form)?),
        };
        let v4 = v4
            .map(|(ip, len)| Ipv4Net::new(ip, len))
            .transpose()
            .map_err(|_| form())?;
        let v6 = v6
            .map(|(ip, len)| Ipv6Net::new(ip, len))
            .transpose()
            .map_err(|_| form())?;
        if v4.is_some_and(|n| !(1..=31).contains(&n.prefix_len()))
            || v6.is_some_and(|n| !(1..=127).contains(&n.prefix_len()))
        {
            return Err(form());
        }
        let subnet = Subnet::new(v4, v6).ok_or_else(form)?;
        let expected = subnet.to_string();
        if expected == text {
            return Ok(subnet);
        }
        let key = text.to_owned();
        if (Subnet { v4, v6 }) != subnet {
            Err(SubnetKeyError::HostBits { key, expected })
        } else {
            Err(SubnetKeyError::NotCanonical { key, expected })
        }
    }

    /// The half of a family.
    pub fn of(&self, family: Family) -> Option<IpNet> {
        match family {
            Family::V4 => self.v4.map(IpNet::V4),
            Family::V6 => self.v6.map(IpNet::V6),
        }
    }

    /// Whether any address is in both: true when the halves of either family overlap.
    pub fn overlaps(&self, other: &Subnet) -> bool {
        let v4 = matches!((self.v4, other.v4), (Some(a), Some(b)) if a.contains(&b) || b.contains(&a));
        let v6 = matches!((self.v6, other.v6), (Some(a), Some(b)) if a.contains(&b) || b.contains(&a));
        v4 || v6
    }
}

fn parse_half<A: std::str::FromStr>(text: &str, refused: impl Fn(&A) -> Option<Ipv4Addr>) -> Option<(A, u8)> {
    let (address, length) = text.rsplit_once('-')?;
    let address = address.parse().ok()?;
    refused(&address)
        .is_none()
        .then_some((address, parse_length(length)?))
}

/// The key text: `10.5.1.0-24`, `10.5.1.0-24&fd00:0:0:1::-64`, or `0.0.0.0-0&fd00:0:0:1::-64` for IPv6 alone.
impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.v4 {
            Some(net) => write!(f, "{}-{}", net.addr(), net.prefix_len())?,
            None => f.write_str(NO_V4)?,
        }
        match self.v6 {
            Some(net) => write!(f, "&{}-{}", net.addr(), net.prefix_len()),
            None => Ok(()),
        }
    }
}

/// What a node tells the others about itself: the value of its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// IPv4 address at which peers reach the node; `0.0.0.0` for none.
    pub public_ip: Ipv4Addr,
    /// IPv6 address at which peers reach the node.
    pub public_ip6: Option<Ipv6Addr>,
    /// The backend's type; empty for `udp`, `alloc` and `tencent-vpc`, which never published theirs.
    pub backend_type: BackendType,
    /// What the backend needs to know of the node for IPv4: valid JSON text, compact ([`crate::go_json::compact`]).
    pub data: Option<Box<str>>,
    /// The same for IPv6.
    pub data6: Option<Box<str>>,
}

/// Why a lease value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttributesError {
    /// The value or one of its fields has the wrong form.
    #[error("lease value: {0}")]
    Json(#[from] GoJsonError),
    /// It is too large for one.
    #[error("lease value has more bytes than a lease needs: expected at most {LARGEST_VALUE}")]
    TooLarge,
}

impl Attributes {
    /// Reads a lease value in any form since v0.11: names in any case, unknown fields ignored, invalid UTF-8 replaced.
    ///
    /// A missing `PublicIP` is `0.0.0.0`, a missing or `null` `PublicIPv6` is none; anything else that is no address of that
    /// family is an error.
    pub fn parse(json: &[u8]) -> Result<Attributes, AttributesError> {
        if json.len() > LARGEST_VALUE {
            return Err(AttributesError::TooLarge);
        }
        let text = String::from_utf8_lossy(json);
        let fields = Fields::parse(&text)?;
        let public_ip = match fields.raw("PublicIP") {
            None => Ipv4Addr::UNSPECIFIED,
            Some(raw) => fields
                .ipv4("PublicIP")?
                .ok_or_else(|| fields.wrong("PublicIP", raw, "an IPv4 address in quotes"))?,
        };
        let data = |name: &str| fields.get(name).map(compact_box);
        Ok(Attributes {
            public_ip,
            public_ip6: fields.ipv6("PublicIPv6")?,
            backend_type: fields.string("BackendType")?.unwrap_or_default().into(),
            data: data("BackendData"),
            data6: data("BackendV6Data"),
        })
    }

    /// The lease value, byte for byte as Go flannel 0.28 writes it.
    pub fn to_json(&self) -> String {
        let mut out = format!("{{\"PublicIP\":\"{}\",\"PublicIPv6\":", self.public_ip);
        match self.public_ip6 {
            Some(ip) => out.push_str(&format!("\"{ip}\"")),
            None => out.push_str("null"),
        }
        if !self.backend_type.is_empty() {
            out.push_str(",\"BackendType\":");
            write_quoted(&mut out, &self.backend_type);
        }
        for (name, data) in [("BackendData", &self.data), ("BackendV6Data", &self.data6)] {
            if let Some(data) = data.as_deref().filter(|data| !data.is_empty()) {
                out.push_str(&format!(",\"{name}\":"));
                write_compact(&mut out, data);
            }
        }
        out.push('}');
        out
    }

    /// The backend's data for a family.
    pub fn data_of(&self, family: Family) -> Option<&str> {
        match family {
            Family::V4 => self.data.as_deref(),
            Family::V6 => self.data6.as_deref(),
        }
    }

    /// The address of a family at which peers reach the node.
    pub fn public_ip_of(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => Some(self.public_ip)
                .filter(|ip| !ip.is_unspecified())
                .map(IpAddr::V4),
            Family::V6 => self.public_ip6.map(IpAddr::V6),
        }
    }
}

fn compact_box(raw: &str) -> Box<str> {
    let mut out = String::with_capacity(raw.len());
    write_compact(&mut out, raw);
    out.into_boxed_str()
}

/// One node's entry in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its subnets, which are its identity.
    pub subnet: Subnet,
    /// What the node published.
    pub attributes: Attributes,
    /// Registry revision at which the key was created; where leases overlap the lowest wins.
    pub created: i64,
}

impl Lease {
    /// Reads one registry entry: the key text after `<prefix>/subnets/`, the value and the create revision.
    pub fn read(key: &str, value: &[u8], created: i64) -> Result<Lease, Rejected> {
        let rejected = |reason: String| Rejected {
            key: name_of(key).into_owned(),
            reason,
        };
        let subnet = Subnet::parse_key(key).map_err(|e| rejected(e.to_string()))?;
        let attributes = Attributes::parse(value).map_err(|e| rejected(e.to_string()))?;
        Ok(Lease {
            subnet,
            attributes,
            created,
        })
    }
}

/// What an entry is called: its key, and where that is longer than any lease's its beginning with a digest of it. A name's name
/// is the same.
pub fn name_of(key: &str) -> Cow<'_, str> {
    if key.len() <= LONGEST_KEY {
        return Cow::Borrowed(key);
    }
    let begins = key
        .get(..key.floor_char_boundary(LONGEST_KEY / 2))
        .unwrap_or_default();
    let digest = fnv1a(key.as_bytes());
    Cow::Owned(format!("{begins}… ({} bytes, {digest:016x})", key.len()))
}

/// Where in the registry an entry is, by what it is [called](name_of): a key lies under `subnets/`, a Node by itself.
pub fn place_of(name: &str) -> Cow<'_, str> {
    match name.starts_with("node ") {
        true => Cow::Borrowed(name),
        false => Cow::Owned(format!("subnets/{name}")),
    }
}

/// An entry among the leases that is none. It is reported and otherwise left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// What it is [called](name_of).
    pub key: String,
    /// What is wrong with the key or the value.
    pub reason: String,
}

/// All leases at one revision of the registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The registry's revision.
    pub revision: i64,
    /// Every lease, own included.
    pub leases: BTreeMap<Subnet, Lease>,
    /// Entries that are no leases. They say nothing about the others: absence is only what is in neither list.
    pub rejected: Vec<Rejected>,
}

/// Changes from one revision to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// The registry's revision after the changes.
    pub revision: i64,
    /// In order; `None` for a lease that is gone.
    pub changes: Vec<(Subnet, Option<Lease>)>,
    /// Entries that changed and are no leases.
    pub rejected: Vec<Rejected>,
    /// Entries that are gone and were no leases, by what they are [called](name_of).
    pub gone: Vec<String>,
}

impl Delta {
    /// An entry is no lease: what was said of it earlier is not so any more.
    pub fn refuse(&mut self, rejected: Rejected) {
        self.gone.retain(|earlier| *earlier != rejected.key);
        self.withdraw(&rejected.key);
        self.rejected.push(rejected);
    }

    /// An entry was said to be no lease, and is not refused any longer.
    pub fn withdraw(&mut self, name: &str) {
        self.rejected.retain(|earlier| earlier.key != name);
    }

    /// An entry that was no lease is gone.
    pub fn forget(&mut self, name: String) {
        self.withdraw(&name);
        self.gone.push(name);
    }

    /// Whether it says nothing.
    pub fn is_nothing(&self) -> bool {
        self.changes.is_empty() && self.rejected.is_empty() && self.gone.is_empty()
    }
}

/// What a registry delivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// The whole truth, replacing all that was known.
    Snapshot(Snapshot),
    /// What changed since the update before.
    Delta(Delta),
}

/// Makes a snapshot of a listing: (key text after `<prefix>/subnets/`, value, create revision) of every entry.
///
/// A bad entry lands in `rejected` and never takes a good one with it.
pub fn snapshot_from<K, V>(revision: i64, entries: impl IntoIterator<Item = (K, V, i64)>) -> Snapshot
where
    K: AsRef<str>,
    V: AsRef<[u8]>,
{
    let mut snapshot = Snapshot {
        revision,
        ..Snapshot::default()
    };
    for (key, value, created) in entries {
        match Lease::read(key.as_ref(), value.as_ref(), created) {
            Ok(lease) => match snapshot.leases.entry(lease.subnet) {
                Entry::Vacant(entry) => {
                    entry.insert(lease);
                }
                Entry::Occupied(_) => snapshot.rejected.push(Rejected {
                    key: name_of(key.as_ref()).into_owned(),
                    reason: "listed twice; the first is used".to_owned(),
                }),
            },
            Err(rejected) => snapshot.rejected.push(rejected),
        }
    }
    snapshot
}

#[cfg(test)]
mod tests;
