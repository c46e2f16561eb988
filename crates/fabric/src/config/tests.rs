use super::*;

fn parse(json: &str) -> Result<NetworkConfig, ConfigError> {
    NetworkConfig::parse(json.as_bytes())
}

fn space(json: &str) -> Space {
    let config = parse(json).unwrap();
    config.v6.or(config.v4).unwrap()
}

fn error(json: &str) -> String {
    parse(json).unwrap_err().to_string()
}

#[test]
fn ipv4_when_valid_gets_the_reference_length_and_range() {
    for (fields, len, min, max) in [
        (r#""Network":"10.5.0.0/16""#, 24, "10.5.1.0", "10.5.255.0"),
        (
            r#""Network":"10.1.2.3/16","SubnetLen":21"#,
            21,
            "10.1.8.0",
            "10.1.248.0",
        ),
        (
            r#""Network":"172.20.0.0/16","SubnetMin":"172.20.10.0","SubnetMax":"172.20.254.0""#,
            24,
            "172.20.10.0",
            "172.20.254.0",
        ),
        (
            r#""Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0""#,
            20,
            "10.10.0.0",
            "10.99.0.0",
        ),
        (
            r#""Network":"10.0.0.0/16","SubnetLen":18"#,
            18,
            "10.0.64.0",
            "10.0.192.0",
        ),
        (r#""Network":"10.0.0.0/22""#, 24, "10.0.1.0", "10.0.3.0"),
        (r#""Network":"10.0.0.0/23""#, 25, "10.0.0.128", "10.0.1.128"),
        (r#""Network":"10.0.0.0/28""#, 30, "10.0.0.4", "10.0.0.12"),
        (r#""Network":"240.0.0.0/4""#, 24, "240.0.1.0", "255.255.255.0"),
        (
            r#""Network":"10.5.0.0/16","SubnetLen":0,"SubnetMin":"0.0.0.0""#,
            24,
            "10.5.1.0",
            "10.5.255.0",
        ),
        (
            r#""Network":"10.5.0.0/16","SubnetMin":"10.5.0.0""#,
            24,
            "10.5.0.0",
            "10.5.255.0",
        ),
        (r#""Network":"0.0.0.0/1""#, 24, "0.0.1.0", "127.255.255.0"),
    ] {
        let space = space(&format!("{{{fields}}}"));
        let found = (space.subnet_len, space.min.to_string(), space.max.to_string());
        assert_eq!(found, (len, min.to_owned(), max.to_owned()), "{fields}");
    }
}

#[test]
fn ipv6_when_valid_gets_the_reference_length_and_range() {
    for (network, len, min, max) in [
        ("fc00::/48", 64, "fc00:0:0:1::", "fc00:0:0:ffff::"),
        ("2001:cafe:42::/56", 64, "2001:cafe:42:1::", "2001:cafe:42:ff::"),
        ("fc00::/62", 64, "fc00:0:0:1::", "fc00:0:0:3::"),
        ("fc00::/63", 65, "fc00::8000:0:0:0", "fc00:0:0:1:8000::"),
        ("fc00::/112", 114, "fc00::4000", "fc00::c000"),
        ("fc00::/124", 126, "fc00::4", "fc00::c"),
        ("8000::/1", 64, "8000:0:0:1::", "ffff:ffff:ffff:ffff::"),
    ] {
        let json = format!("{{\"EnableIPv4\":false,\"EnableIPv6\":true,\"IPv6Network\":\"{network}\"}}");
        let space = space(&json);
        let found = (space.subnet_len, space.min.to_string(), space.max.to_string());
        assert_eq!(found, (len, min.to_owned(), max.to_owned()), "{network}");
    }
}

#[test]
fn config_when_incoherent_names_field_value_and_expectation() {
    for (fields, message) in [
        (
            "",
            "Network is not set: expected the CIDR that all subnets are part of, not all addresses",
        ),
        (
            r#""Network":"1.2.3.4/0""#,
            "Network is 0.0.0.0/0: expected the CIDR that all subnets are part of, not all addresses",
        ),
        (
            r#""Network":"10.0.0.0/29""#,
            "Network is 10.0.0.0/29: expected a CIDR of at most /28, to have room for four subnets",
        ),
        (
            r#""Network":"10.0.0.0/16","SubnetLen":31"#,
            "SubnetLen is 31: expected 18 to 30, to have room for four subnets in 10.0.0.0/16",
        ),
        (
            r#""Network":"10.0.0.0/16","SubnetLen":17"#,
            "SubnetLen is 17: expected 18 to 30, to have room for four subnets in 10.0.0.0/16",
        ),
        (
            r#""Network":"10.0.0.0/16","SubnetLen":4294967295"#,
            "SubnetLen is 4294967295: expected 18 to 30, to have room for four subnets in 10.0.0.0/16",
        ),
        (
            r#""Network":"10.0.0.0/16","SubnetMin":"10.0.5.1""#,
            "SubnetMin is 10.0.5.1: expected the base of a /24 (SubnetLen), such as 10.0.5.0",
        ),
        (
            r#""Network":"10.0.0.0/16","SubnetLen":20,"SubnetMin":"10.0.9.0""#,
            "SubnetMin is 10.0.9.0: expected the base of a /20 (SubnetLen), such as 10.0.0.0",
        ),
        (
            r#""Network":"10.0.0.0/16","SubnetMax":"10.0.9.8""#,
            "SubnetMax is 10.0.9.8: expected the base of a /24 (SubnetLen), such as 10.0.9.0",
        ),
        (
            r#""Network":"10.0.0.0/16","SubnetMin":"10.1.5.0""#,
            "SubnetMin is 10.1.5.0: expected an address in Network 10.0.0.0/16",
        ),
        (
            r#""Network":"10.0.0.0/16","SubnetMin":"10.0.9.0","SubnetMax":"10.0.8.0""#,
            "SubnetMin is 10.0.9.0: expected at most SubnetMax 10.0.8.0",
        ),
        (
            r#""Network":"10.0.0.0/16","EnableIPv6":true"#,
            "IPv6Network is not set: expected the CIDR that all subnets are part of, not all addresses",
        ),
        (
            r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/125""#,
            "IPv6Network is fc00::/125: expected a CIDR of at most /124, to have room for four subnets",
        ),
        (
            r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetLen":127"#,
            "IPv6SubnetLen is 127: expected 50 to 126, to have room for four subnets in fc00::/48",
        ),
        (
            r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetLen":49"#,
            "IPv6SubnetLen is 49: expected 50 to 126, to have room for four subnets in fc00::/48",
        ),
        (
            r#""EnableIPv4":false"#,
            "EnableIPv4 and EnableIPv6 are false: expected at least one to be true",
        ),
    ] {
        assert_eq!(
            error(&format!("{{{fields}}}")),
            format!("network config: {message}")
        );
    }
}

#[test]
fn config_when_a_field_has_the_wrong_form_names_it() {
    for (fields, message) in [
        (
            r#""Network":"010.0.0.0/16""#,
            r#"Network is "010.0.0.0/16": expected an IPv4 CIDR in quotes"#,
        ),
        (
            r#""Network":null"#,
            "Network is null: expected an IPv4 CIDR in quotes",
        ),
        (
            r#""Network":"""#,
            r#"Network is "": expected an IPv4 CIDR in quotes"#,
        ),
        (
            r#""Network":"fd00::/48""#,
            r#"Network is "fd00::/48": expected an IPv4 CIDR in quotes"#,
        ),
        (
            r#""IPv6Network":"10.0.0.0/16""#,
            r#"IPv6Network is "10.0.0.0/16": expected an IPv6 CIDR in quotes"#,
        ),
        (
            r#""IPv6Network":"::ffff:10.0.0.0/112""#,
            r#"IPv6Network is "::ffff:10.0.0.0/112": expected an IPv6 CIDR in quotes"#,
        ),
        (
            r#""SubnetMin":null"#,
            "SubnetMin is null: expected an IPv4 address in quotes",
        ),
        (
            r#""IPv6SubnetMin":"x""#,
            r#"IPv6SubnetMin is "x": expected an IPv6 address in quotes"#,
        ),
        (
            r#""EnableIPv4":"true""#,
            r#"EnableIPv4 is "true": expected true or false, without quotes"#,
        ),
        (
            r#""Backend":"vxlan""#,
            r#"Backend is a string: expected an object"#,
        ),
        (
            r#""Backend":{}"#,
            r#"Backend.Type is not set: expected the name of a backend, such as "vxlan""#,
        ),
        (
            r#""Backend":null"#,
            r#"Backend.Type is not set: expected the name of a backend, such as "vxlan""#,
        ),
        (
            r#""Backend":{"Type":""}"#,
            r#"Backend.Type is "": expected the name of a backend, such as "vxlan""#,
        ),
        (r#""Backend":{"Type":1}"#, "Backend.Type is 1: expected a string"),
        // What was quoted twice, or is a list, may hold a key.
        (
            r#""Backend":"{\"Type\":\"wireguard\",\"PSK\":\"c2VjcmV0\"}""#,
            "Backend is a string: expected an object",
        ),
        (
            r#""Backend":[{"Type":"wireguard","PSK":"c2VjcmV0"}]"#,
            "Backend is a list: expected an object",
        ),
    ] {
        assert_eq!(
            error(&format!("{{{fields}}}")),
            format!("network config: {message}")
        );
    }
    assert!(error(r#"{"Network":"10.0.0.0/16"} x"#).contains("trailing characters"));
    assert!(error("").contains("not valid JSON"));
}

#[test]
fn config_when_written_in_any_case_with_unknown_keys_is_read() {
    let config = parse(
        r#"{"enableipv6":true,"NETWORK":"10.5.0.0/16","ipv6network":"fd00::1/48","subnetlen":25,"x":{"y":[]},
            "IPv6SubnetMin":null,"IPv6SubnetMax":"::","backend":{"type":"VXLAN","VNI":7}}"#,
    )
    .unwrap();
    assert_eq!(config.families().collect::<Vec<_>>(), Family::BOTH);
    assert_eq!(config.space(Family::V4).unwrap().subnet_len, 25);
    assert_eq!(config.space(Family::V6).unwrap().network.to_string(), "fd00::/48");
    assert_eq!(
        config.space(Family::V6).unwrap().max.to_string(),
        "fd00:0:0:ffff::"
    );
    assert_eq!(config.backend.kind, "vxlan");
    assert_eq!(config.backend.json, r#"{"type":"VXLAN","VNI":7}"#);
    assert!(!config.nftables);
}

#[test]
fn backend_when_the_key_is_missing_is_udp() {
    let config = parse(r#"{"Network":"10.5.0.0/16"}"#).unwrap();
    assert_eq!(
        config.backend,
        RawBackend {
            kind: "udp".into(),
            json: "{}".into()
        }
    );
}

#[test]
fn network_when_its_family_is_off_is_not_used() {
    let config = parse(
        r#"{"EnableIPv4":false,"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","EnableNFTables":true}"#,
    )
    .unwrap();
    assert_eq!(config.v4, None);
    assert_eq!(config.families().collect::<Vec<_>>(), [Family::V6]);
    assert!(config.nftables);
}

#[test]
fn subnet_fields_when_the_cluster_allocates_are_not_looked_at() {
    let json =
        br#"{"Network":"10.244.0.0/29","SubnetLen":9,"SubnetMin":"1.2.3.4","Backend":{"Type":"vxlan"}}"#;
    assert!(NetworkConfig::parse(json).is_err());
    let config = Declared::parse(json).unwrap().without_allocation().unwrap();
    assert_eq!(config.v4.unwrap().network.to_string(), "10.244.0.0/29");
    let nothing = Declared::parse(b"{}").unwrap().without_allocation().unwrap_err();
    assert!(nothing.to_string().contains("Network is not set"));
}

#[test]
fn fields_when_zero_then_as_if_they_were_not_there() {
    let zero = r#"{"Network":"10.5.0.0/16","SubnetLen":0,"SubnetMin":"0.0.0.0","SubnetMax":"0.0.0.0"}"#;
    assert_eq!(
        parse(zero).unwrap(),
        parse(r#"{"Network":"10.5.0.0/16"}"#).unwrap()
    );
    let six = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48"MORE}"#;
    let zero = six.replace(
        "MORE",
        r#","IPv6SubnetLen":0,"IPv6SubnetMin":"::","IPv6SubnetMax":"::""#,
    );
    assert_eq!(parse(&zero).unwrap(), parse(&six.replace("MORE", "")).unwrap());
    let given = six.replace(
        "MORE",
        r#","IPv6SubnetLen":56,"IPv6SubnetMin":"fd00:0:0:1000::","IPv6SubnetMax":"fd00:0:0:2000::""#,
    );
    let space = space(&given);
    let range = (space.subnet_len, space.min.to_string(), space.max.to_string());
    assert_eq!(
        range,
        (56, "fd00:0:0:1000::".to_owned(), "fd00:0:0:2000::".to_owned())
    );
}

#[test]
fn range_when_it_is_one_subnet_then_taken() {
    let one = space(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.7.0","SubnetMax":"10.5.7.0"}"#);
    assert_eq!(
        (one.min, one.max),
        ("10.5.7.0".parse().unwrap(), "10.5.7.0".parse().unwrap())
    );
}

#[test]
fn networks_when_asked_for_then_those_of_the_families_in_use() {
    let dual = parse(r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#).unwrap();
    let texts: Vec<String> = dual.networks().map(|net| net.to_string()).collect();
    assert_eq!(texts, ["10.5.0.0/16", "fd00::/48"]);
}

#[test]
fn config_when_larger_than_any_needs_then_refused() {
    let of = |bytes: usize| {
        let (start, end) = (r#"{"Network":"10.5.0.0/16","Comment":""#, r#""}"#);
        format!("{start}{}{end}", "x".repeat(bytes - start.len() - end.len()))
    };
    assert!(NetworkConfig::parse(of(262_144).as_bytes()).is_ok());
    assert_eq!(
        NetworkConfig::parse(of(262_145).as_bytes())
            .unwrap_err()
            .to_string(),
        "network config: 262145 bytes: expected at most 262144"
    );
}
