//! `subnet.env`: what the daemon tells the rest of the host.
//!
//! Four kinds of readers exist: shells that source it, systemd's `EnvironmentFile`, the flannel CNI plugin (line by line and
//! strict, [`read_strict`]) and the daemon itself at its next start (dotenv, [`read_previous`]). The writer therefore keeps to
//! what all of them take: `KEY=value`, no quotes, no blanks. Users let other tools write into the same file, so [`repair`]
//! leaves foreign lines alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::go_json::{parse_cidr, shorten};

mod dotenv;

const NETWORK: &str = "FLANNEL_NETWORK";
const SUBNET: &str = "FLANNEL_SUBNET";
const NETWORK6: &str = "FLANNEL_IPV6_NETWORK";
const SUBNET6: &str = "FLANNEL_IPV6_SUBNET";
const MTU: &str = "FLANNEL_MTU";
const IPMASQ: &str = "FLANNEL_IPMASQ";
const KEYS: [&str; 6] = [NETWORK, SUBNET, NETWORK6, SUBNET6, MTU, IPMASQ];

/// First line length in bytes that Go's line reader refuses.
const LINE_TOO_LONG: usize = 64 * 1024;

/// What the file says when the daemon has written it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetEnv {
    /// `FLANNEL_NETWORK`; `None` with IPv4 off.
    pub network: Option<Ipv4Net>,
    /// The own subnet. The file carries its base address plus one, which is the bridge's.
    pub subnet: Option<Ipv4Net>,
    /// `FLANNEL_IPV6_NETWORK`; `None` with IPv6 off.
    pub network6: Option<Ipv6Net>,
    /// The own IPv6 subnet, in the file plus one likewise.
    pub subnet6: Option<Ipv6Net>,
    /// Bytes of the largest packet a pod may send.
    pub mtu: u32,
    /// Whether the daemon masquerades, so that nobody else needs to.
    pub ipmasq: bool,
}

impl SubnetEnv {
    /// The whole file, byte for byte as Go flannel writes it.
    pub fn render(&self) -> String {
        self.lines()
            .map(|(key, value)| format!("{key}={value}\n"))
            .collect()
    }

    fn lines(&self) -> impl Iterator<Item = (&'static str, String)> {
        let first = |net: IpNet| format!("{}/{}", first_address(net), net.prefix_len());
        let lines = [
            (NETWORK, self.network.map(|net| net.trunc().to_string())),
            (SUBNET, self.subnet.map(IpNet::V4).map(first)),
            (NETWORK6, self.network6.map(|net| net.trunc().to_string())),
            (SUBNET6, self.subnet6.map(IpNet::V6).map(first)),
            (MTU, Some(self.mtu.to_string())),
            (IPMASQ, Some(self.ipmasq.to_string())),
        ];
        lines.into_iter().filter_map(|(key, value)| Some((key, value?)))
    }
}

/// Puts the daemon's keys back where they are missing, changed, doubled or no longer apply, and keeps every foreign line.
///
/// A file that says the right thing comes back unchanged, wherever its lines stand. Otherwise ours come first, then the
/// foreign ones in their order.
pub fn repair(existing: &str, ours: &SubnetEnv) -> String {
    let wanted: Vec<String> = ours
        .lines()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let ours_in_any_form = |line: &&str| {
        let key = dotenv::key_of(line).unwrap_or(line.trim());
        KEYS.contains(&key)
    };
    let (mut own, foreign): (Vec<&str>, Vec<&str>) =
        existing.split_inclusive('\n').partition(ours_in_any_form);
    let bare = |line: &&str| line.trim_end_matches('\n').to_owned();
    own.sort_unstable();
    let mut sorted = wanted.clone();
    sorted.sort_unstable();
    if own.iter().map(bare).eq(sorted) && own.iter().all(|line| line.ends_with('\n')) {
        return existing.to_owned();
    }
    let mut out = ours.render();
    for line in foreign {
        out.push_str(line);
    }
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out
}

/// What the daemon finds of its last run, prefixes masked. `None` also where a value was unusable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Previous {
    /// `FLANNEL_NETWORK`.
    pub network: Option<Ipv4Net>,
    /// `FLANNEL_SUBNET`.
    pub subnet: Option<Ipv4Net>,
    /// `FLANNEL_IPV6_NETWORK`.
    pub network6: Option<Ipv6Net>,
    /// `FLANNEL_IPV6_SUBNET`.
    pub subnet6: Option<Ipv6Net>,
    /// What could not be read, to be logged; never a reason to stop.
    pub problems: Vec<String>,
}

/// Reads the file of an earlier run as dotenv: comments, `export`, quotes, `KEY: value`, `$VAR` of earlier lines.
///
/// Whatever else is in it (the file may hold Docker's options) is passed over.
pub fn read_previous(text: &str) -> Previous {
    let parsed = dotenv::parse(text);
    let mut problems = parsed.problems;
    let mut one = |key: &str| -> Option<IpNet> {
        let value = parsed.values.get(key)?;
        let mut nets = Vec::new();
        for item in value.split(',') {
            match parse_cidr(item) {
                Some(net) => nets.push(net.trunc()),
                None => problems.push(format!("{key} has {:?}: expected a CIDR", shorten(item))),
            }
        }
        if nets.len() > 1 {
            problems.push(format!("{key} is {:?}: expected one CIDR", shorten(value)));
        }
        nets.pop().filter(|_| nets.is_empty())
    };
    let found = KEYS.map(|key| {
        if key == MTU || key == IPMASQ {
            None
        } else {
            one(key)
        }
    });
    let mut of_family = |index: usize, v6: bool| {
        let net = found.get(index).copied().flatten()?;
        if net.addr().is_ipv6() != v6 {
            let family = if v6 { "IPv6" } else { "IPv4" };
            problems.push(format!(
                "{} is {net}: expected an {family} CIDR",
                KEYS.get(index)?
            ));
            return None;
        }
        Some(net)
    };
    let v4 = |net| match net {
        IpNet::V4(net) => Some(net),
        IpNet::V6(_) => None,
    };
    let v6 = |net| match net {
        IpNet::V6(net) => Some(net),
        IpNet::V4(_) => None,
    };
    Previous {
        network: of_family(0, false).and_then(v4),
        subnet: of_family(1, false).and_then(v4),
        network6: of_family(2, true).and_then(v6),
        subnet6: of_family(3, true).and_then(v6),
        problems,
    }
}

/// What the CNI plugin takes from the file. Families are as written: COMPAT: Go's plugin does not check them either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSettings {
    /// `FLANNEL_NETWORK`, a list: destinations to route, host bits clear, without duplicates.
    pub networks: Vec<IpNet>,
    /// `FLANNEL_IPV6_NETWORK`, likewise.
    pub networks6: Vec<IpNet>,
    /// `FLANNEL_SUBNET`, masked.
    pub subnet: Option<IpNet>,
    /// `FLANNEL_IPV6_SUBNET`, masked.
    pub subnet6: Option<IpNet>,
    /// `FLANNEL_MTU`; 0 leaves it to the kernel.
    pub mtu: u32,
    /// True iff `FLANNEL_IPMASQ` is exactly `true`.
    pub ipmasq: bool,
}

/// Why the CNI plugin cannot use the file. The texts are those users of Go's plugin search for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StrictError {
    /// A value that has to be a prefix is none.
    #[error("invalid CIDR address: {0}")]
    Cidr(String),
    /// `FLANNEL_MTU` is no number.
    #[error("strconv.ParseUint: parsing {0}: invalid syntax")]
    NumberSyntax(String),
    /// `FLANNEL_MTU` does not fit 32 bits.
    #[error("strconv.ParseUint: parsing {0}: value out of range")]
    NumberRange(String),
    /// A line of 64 KiB or more.
    #[error("bufio.Scanner: token too long")]
    LineTooLong,
    /// One of the keys stands alone. (Go's plugin panics.)
    #[error("line {line} is {key:?} alone: expected {key}=<value>")]
    NoValue {
        /// Counted from 1.
        line: usize,
        /// The key.
        key: &'static str,
    },
    /// Not all keys are there.
    #[error("{path} is missing {keys}")]
    Missing {
        /// The file.
        path: String,
        /// The missing keys; of each pair for the two families one would do.
        keys: String,
    },
}

/// Reads the file as Go's CNI plugin does. `path` is named in the error for missing keys.
///
/// # Errors
///
/// The keys that are missing or malformed, in the words users search for.
pub fn read_strict(path: &str, content: &[u8]) -> Result<PodSettings, StrictError> {
    let (mut networks, mut networks6) = (Vec::new(), Vec::new());
    let (mut subnet, mut subnet6, mut mtu, mut ipmasq) = (None, None, None, None);
    for (index, line) in content.split(|byte| *byte == b'\n').enumerate() {
        if line.len() >= LINE_TOO_LONG {
            return Err(StrictError::LineTooLong);
        }
        let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
        let (key, value) = match line.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (&*line, None),
        };
        let Some(key) = KEYS.into_iter().find(|known| *known == key) else {
            continue;
        };
        let value = value.ok_or(StrictError::NoValue { line: index + 1, key })?;
        match key {
            NETWORK => networks = strict_list(value)?,
            NETWORK6 => networks6 = strict_list(value)?,
            SUBNET => subnet = Some(strict_cidr(value)?),
            SUBNET6 => subnet6 = Some(strict_cidr(value)?),
            MTU => mtu = Some(strict_u32(value)?),
            _ => ipmasq = Some(value == "true"),
        }
    }
    let mut missing = Vec::new();
    if networks.is_empty() && networks6.is_empty() {
        missing.extend([NETWORK, NETWORK6]);
    }
    if subnet.is_none() && subnet6.is_none() {
        missing.extend([SUBNET, SUBNET6]);
    }
    if mtu.is_none() {
        missing.push(MTU);
    }
    if ipmasq.is_none() {
        missing.push(IPMASQ);
    }
    match (mtu, ipmasq) {
        (Some(mtu), Some(ipmasq)) if missing.is_empty() => Ok(PodSettings {
            networks,
            networks6,
            subnet,
            subnet6,
            mtu,
            ipmasq,
        }),
        _ => Err(StrictError::Missing {
            path: path.to_owned(),
            keys: missing.join(", "),
        }),
    }
}

fn strict_list(value: &str) -> Result<Vec<IpNet>, StrictError> {
    let mut nets = Vec::new();
    for item in value.split(',') {
        let net = strict_cidr(item)?;
        if !nets.contains(&net) {
            nets.push(net);
        }
    }
    Ok(nets)
}

fn strict_cidr(value: &str) -> Result<IpNet, StrictError> {
    parse_cidr(value)
        .map(|net| net.trunc())
        .ok_or_else(|| StrictError::Cidr(value.to_owned()))
}

fn strict_u32(value: &str) -> Result<u32, StrictError> {
    if value.is_empty() {
        return Err(StrictError::NumberSyntax(go_quote(value)));
    }
    // Digit by digit, since the first thing wrong from the left decides between the two errors.
    value.chars().try_fold(0_u32, |number, c| {
        let digit = c
            .to_digit(10)
            .ok_or_else(|| StrictError::NumberSyntax(go_quote(value)))?;
        let number = number.checked_mul(10).and_then(|n| n.checked_add(digit));
        number.ok_or_else(|| StrictError::NumberRange(go_quote(value)))
    })
}

/// A string in quotes as Go's `%q` prints it, for printable text and ASCII control characters.
fn go_quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The first usable address of a subnet (base plus one): what the file names and a bridge carries.
pub fn first_address(subnet: IpNet) -> IpAddr {
    match subnet {
        IpNet::V4(net) => IpAddr::V4(Ipv4Addr::from(u32::from(net.network()).wrapping_add(1))),
        IpNet::V6(net) => IpAddr::V6(Ipv6Addr::from(u128::from(net.network()).wrapping_add(1))),
    }
}

#[cfg(test)]
mod tests;
