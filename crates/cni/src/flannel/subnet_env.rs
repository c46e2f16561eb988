//! The file in which flanneld tells what the node was given, read as strictly as Go's plugin reads it.

use fabric::go_json::parse_cidr;
use ipnet::IpNet;

use crate::files;

/// Longest line Go's scanner takes, in bytes.
const LINE_LIMIT: usize = 64 << 10;
/// Most bytes of the file that are looked at.
const FILE_LIMIT: usize = 4 << 20;

/// What flanneld has written. Families are not checked: an IPv6 subnet may stand in the IPv4 field, as in Go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// `FLANNEL_NETWORK`: prefixes in order, host bits cleared, no two equal.
    pub networks: Vec<IpNet>,
    /// `FLANNEL_SUBNET`, host bits cleared.
    pub subnet: Option<IpNet>,
    /// `FLANNEL_IPV6_NETWORK`.
    pub networks6: Vec<IpNet>,
    /// `FLANNEL_IPV6_SUBNET`.
    pub subnet6: Option<IpNet>,
    /// `FLANNEL_MTU` in bytes; 0 means the kernel's default.
    pub mtu: u32,
    /// `FLANNEL_IPMASQ` is exactly `true`: flanneld masquerades, so the bridge need not.
    pub ipmasq: bool,
}

/// Reads the file; the error is the text users search for.
pub fn load(path: &str) -> Result<SubnetEnv, String> {
    let bytes = files::read(path, FILE_LIMIT).map_err(|e| e.to_string())?;
    parse(path, &bytes)
}

/// Reads the content of the file at `path`, which only the error names.
pub fn parse(path: &str, bytes: &[u8]) -> Result<SubnetEnv, String> {
    let (mut networks, mut networks6) = (Vec::new(), Vec::new());
    let (mut subnet, mut subnet6, mut mtu, mut ipmasq) = (None, None, None, None);
    for line in bytes.split(|b| *b == b'\n') {
        if line.len() >= LINE_LIMIT {
            return Err("bufio.Scanner: token too long".to_owned());
        }
        let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
        let (key, value) = line.split_once('=').unwrap_or((&line, ""));
        match key {
            "FLANNEL_NETWORK" => networks = prefixes(value)?,
            "FLANNEL_SUBNET" => subnet = Some(prefix(value)?),
            "FLANNEL_IPV6_NETWORK" => networks6 = prefixes(value)?,
            "FLANNEL_IPV6_SUBNET" => subnet6 = Some(prefix(value)?),
            "FLANNEL_MTU" => mtu = Some(unsigned(value)?),
            "FLANNEL_IPMASQ" => ipmasq = Some(value == "true"),
            _ => {}
        }
    }
    let mut missing = Vec::new();
    if networks.is_empty() && networks6.is_empty() {
        missing.extend(["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"]);
    }
    if subnet.is_none() && subnet6.is_none() {
        missing.extend(["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"]);
    }
    match (mtu, ipmasq) {
        (Some(mtu), Some(ipmasq)) if missing.is_empty() => Ok(SubnetEnv {
            networks,
            subnet,
            networks6,
            subnet6,
            mtu,
            ipmasq,
        }),
        (mtu, ipmasq) => {
            missing.extend(mtu.is_none().then_some("FLANNEL_MTU"));
            missing.extend(ipmasq.is_none().then_some("FLANNEL_IPMASQ"));
            Err(format!("{path} is missing {}", missing.join(", ")))
        }
    }
}

fn prefix(text: &str) -> Result<IpNet, String> {
    parse_cidr(text)
        .map(|net| net.trunc())
        .ok_or_else(|| format!("invalid CIDR address: {text}"))
}

fn prefixes(text: &str) -> Result<Vec<IpNet>, String> {
    let mut found = Vec::new();
    for part in text.split(',') {
        let net = prefix(part)?;
        if !found.contains(&net) {
            found.push(net);
        }
    }
    Ok(found)
}

/// Go's `strconv.ParseUint(text, 10, 32)`.
fn unsigned(text: &str) -> Result<u32, String> {
    let failed = |why: &str| Err(format!("strconv.ParseUint: parsing {text:?}: {why}"));
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return failed("invalid syntax");
    }
    match text.parse() {
        Ok(number) => Ok(number),
        Err(_) => failed("value out of range"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str =
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";

    fn text(content: &str) -> Result<SubnetEnv, String> {
        parse("/run/x", content.as_bytes())
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn t11_to_t13_file_when_v4_v6_or_dual_is_read_with_masked_subnets() {
        let v4 = text(V4).unwrap();
        assert_eq!(
            (v4.networks, v4.subnet),
            (nets(&["10.1.0.0/16"]), Some("10.1.17.0/24".parse().unwrap()))
        );
        assert_eq!((v4.mtu, v4.ipmasq), (1472, true));
        let v6 = text("FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true")
            .unwrap();
        assert_eq!(
            (v6.networks6, v6.subnet6),
            (nets(&["fc00::/48"]), Some("fc00::/64".parse().unwrap()))
        );
        assert!(v6.networks.is_empty() && v6.subnet.is_none());
        let dual = text(&format!(
            "{V4}FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64"
        ))
        .unwrap();
        assert!(dual.subnet.is_some() && dual.subnet6.is_some());
    }

    #[test]
    fn t14_p2_file_when_keys_are_missing_lists_them_in_order() {
        assert_eq!(
            text("foo=bar").unwrap_err(),
            "/run/x is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ"
        );
        for key in ["FLANNEL_MTU", "FLANNEL_IPMASQ"] {
            let without: String = V4
                .lines()
                .filter(|l| !l.starts_with(key))
                .map(|l| format!("{l}\n"))
                .collect();
            assert_eq!(text(&without).unwrap_err(), format!("/run/x is missing {key}"));
        }
        // A blank before the key or `export` makes it another key.
        assert!(
            text(&V4.replace("FLANNEL_MTU", " FLANNEL_MTU"))
                .unwrap_err()
                .ends_with("missing FLANNEL_MTU")
        );
    }

    #[test]
    fn p3_to_p6_values_when_odd_are_taken_or_refused_as_in_go() {
        assert_eq!(text(&V4.replace('\n', "\r\n")), text(V4));
        assert!(!text(&V4.replace("=true", "=TRUE")).unwrap().ipmasq);
        assert!(!text(&V4.replace("=true", "")).unwrap().ipmasq);
        assert_eq!(
            text(&V4.replace("10.1.0.0/16", "10.1.9.9/16,192.168.0.0/16,10.1.0.0/16"))
                .unwrap()
                .networks,
            nets(&["10.1.0.0/16", "192.168.0.0/16"])
        );
        for (from, to, error) in [
            ("10.1.0.0/16", "10.1.0.0/16,", "invalid CIDR address: "),
            (
                "10.1.0.0/16",
                "10.1.0.0/16, 10.2.0.0/16",
                "invalid CIDR address:  10.2.0.0/16",
            ),
            ("10.1.17.1/24", "10.244.0.0", "invalid CIDR address: 10.244.0.0"),
            (
                "1472",
                "1450 ",
                "strconv.ParseUint: parsing \"1450 \": invalid syntax",
            ),
            ("1472", "-1", "strconv.ParseUint: parsing \"-1\": invalid syntax"),
            (
                "1472",
                "4294967296",
                "strconv.ParseUint: parsing \"4294967296\": value out of range",
            ),
            (
                "FLANNEL_SUBNET=10.1.17.1/24",
                "FLANNEL_SUBNET",
                "invalid CIDR address: ",
            ),
        ] {
            assert_eq!(text(&V4.replace(from, to)).unwrap_err(), error);
        }
        let long = format!("{V4}#{}\n", "x".repeat(70_000));
        assert_eq!(text(&long).unwrap_err(), "bufio.Scanner: token too long");
        assert_eq!(text(&format!("{V4}FLANNEL_MTU=9000\n# x\n\n")).unwrap().mtu, 9000);
    }
}
