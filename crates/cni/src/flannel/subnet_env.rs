//! The file in which flanneld tells what the node was given, from the disk to [`fabric::subnet_env::read_strict`].

pub use fabric::subnet_env::PodSettings;
use fabric::subnet_env::read_strict;

use crate::files;

/// Most bytes of the file that are looked at.
const FILE_LIMIT: usize = 4 << 20;

/// Reads the file; the error is the text users search for.
///
/// # Errors
///
/// The file cannot be read, or lacks keys: it names them.
pub fn load(path: &str) -> Result<PodSettings, String> {
    let bytes = files::read(path, FILE_LIMIT).map_err(|e| e.to_string())?;
    parse(path, &bytes)
}

/// Reads the content of the file at `path`, which only the error names.
///
/// # Errors
///
/// As [`load`].
pub fn parse(path: &str, bytes: &[u8]) -> Result<PodSettings, String> {
    read_strict(path, bytes).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipnet::IpNet;

    const V4: &str =
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";

    fn text(content: &str) -> Result<PodSettings, String> {
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
        assert!(!text(&V4.replace("=true", "=")).unwrap().ipmasq);
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
                "line 2 is \"FLANNEL_SUBNET\" alone: expected FLANNEL_SUBNET=<value>",
            ),
        ] {
            assert_eq!(text(&V4.replace(from, to)).unwrap_err(), error);
        }
        let long = format!("{V4}#{}\n", "x".repeat(70_000));
        assert_eq!(text(&long).unwrap_err(), "bufio.Scanner: token too long");
        assert_eq!(text(&format!("{V4}FLANNEL_MTU=9000\n# x\n\n")).unwrap().mtu, 9000);
    }
}
