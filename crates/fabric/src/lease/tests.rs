use super::*;

fn key(text: &str) -> Subnet {
    Subnet::parse_key(text).unwrap()
}

#[test]
fn keys_when_flannel_wrote_them_read_and_print_the_same() {
    for text in [
        "172.20.97.0-24",
        "172.30.32.0-21",
        "10.42.5.0-24&2001:cafe:42:5::-64",
        "10.128.39.0-24&fd10:0:0:1e::-64",
        "0.0.0.0-0&fd10:0:0:23::-64",
        "10.0.0.4-30",
        "128.0.0.0-1",
    ] {
        assert_eq!(key(text).to_string(), text);
    }
    assert_eq!(key("0.0.0.0-0&fd10:0:0:23::-64").v4, None);
}

#[test]
fn keys_when_malformed_are_refused_by_form() {
    for text in [
        "",
        "-",
        "&",
        "10",
        "10.12.13.0",
        "10.12.13-24",
        "10.12.13.300-24",
        "10.12.13.0-24hi",
        "hi10.12.13.0-24",
        "10.12.13.00-24",
        "010.12.13.0-24",
        "10.12.13.0-32",
        "10.12.13.0-33",
        "10.12.13.0--1",
        "10.12.13.0-+4",
        "0.0.0.0-0",
        "&2001::-56",
        "10.12.13.0-24&",
        "10.12.13.0-24&:12:13:-56",
        "10.12.13.0-24&20011::-56",
        "10.12.13.0-24&2001-56",
        "10.12.13.0-24&2001::",
        "10.12.13.0-24&2001::-56hi",
        "10.12.13.0-24&2001::-128",
        "10.12.13.0-24&2001::-56&2002::-56",
        "10.12.13.0-24&::ffff:1.2.3.0-120",
        "0.0.0.0-0&::-0",
        "sub/10.12.13.0-24",
        "10.12.13.0-24\n",
        " 10.12.13.0-24",
    ] {
        assert!(
            matches!(Subnet::parse_key(text), Err(SubnetKeyError::Form(_))),
            "{text:?}: {:?}",
            Subnet::parse_key(text)
        );
    }
}

#[test]
fn keys_when_not_aligned_or_spelt_otherwise_name_the_right_key() {
    let error = |text| Subnet::parse_key(text).unwrap_err().to_string();
    assert_eq!(
        error("10.1.2.7-24"),
        r#"subnet key "10.1.2.7-24" names a host: expected "10.1.2.0-24""#
    );
    assert!(error("10.1.2.0-24&fd00::1-64").contains(r#"expected "10.1.2.0-24&fd00::-64""#));
    for (text, canonical) in [
        ("10.1.2.0-024", "10.1.2.0-24"),
        ("10.1.2.0-24&FD00::-64", "10.1.2.0-24&fd00::-64"),
        ("10.1.2.0-24&fd00:0::-64", "10.1.2.0-24&fd00::-64"),
    ] {
        assert_eq!(
            Subnet::parse_key(text),
            Err(SubnetKeyError::NotCanonical {
                key: text.into(),
                expected: canonical.into()
            })
        );
    }
}

#[test]
fn overlap_when_either_half_shares_an_address_is_true() {
    let dual = key("10.5.1.0-24&fd00:0:0:1::-64");
    assert!(dual.overlaps(&key("10.5.1.0-24")));
    assert!(dual.overlaps(&key("10.5.0.0-16")));
    assert!(dual.overlaps(&key("10.5.2.0-24&fd00:0:0:1::-64")));
    assert!(dual.overlaps(&key("0.0.0.0-0&fd00:0:0:1:8000::-65")));
    assert!(!dual.overlaps(&key("10.5.2.0-24&fd00:0:0:2::-64")));
    assert!(!key("0.0.0.0-0&fd00:0:0:2::-64").overlaps(&key("10.5.1.0-24")));
}

#[test]
fn values_when_written_by_current_flannel_read_and_print_byte_for_byte() {
    for text in [
        r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#,
        r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"host-gw"}"#,
        r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"f6:df:b4:d0:5d:72"}}"#,
        r#"{"PublicIP":"1.2.3.4","PublicIPv6":"fd00::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"f6:df:b4:d0:5d:72"},"BackendV6Data":{"VNI":1,"VtepMAC":"f6:df:b4:d0:5d:73"}}"#,
        r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::1","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"f6:df:b4:d0:5d:73"}}"#,
        r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"NnrO+/o=","Port":51820}}"#,
        r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"extension","BackendData":"a \u003c b \u0026\u0026 \"c\" \u003e\u2028d"}"#,
    ] {
        assert_eq!(Attributes::parse(text.as_bytes()).unwrap().to_json(), text);
    }
}

#[test]
fn values_when_written_by_v0_11_or_by_hand_mean_the_same() {
    let old =
        r#"{"PublicIP":"10.211.55.101","BackendType":"vxlan","BackendData":{"VtepMAC":"f6:df:b4:d0:5d:72"}}"#;
    let attributes = Attributes::parse(old.as_bytes()).unwrap();
    assert_eq!(attributes.public_ip, Ipv4Addr::new(10, 211, 55, 101));
    assert_eq!(
        attributes.data_of(Family::V4),
        Some(r#"{"VtepMAC":"f6:df:b4:d0:5d:72"}"#)
    );
    let by_hand = " {\"x\":[1], \"publicip\":\"10.211.55.101\", \"PUBLICIPV6\":null, \"backendtype\" : \"vxlan\",\n\t\"BackendDATA\" : { \"VtepMAC\" : \"f6:df:b4:d0:5d:72\" }, \"BackendV6Data\":null } ";
    assert_eq!(Attributes::parse(by_hand.as_bytes()).unwrap(), attributes);
    assert_eq!(attributes.public_ip_of(Family::V6), None);
}

#[test]
fn values_when_public_ip_is_missing_have_none() {
    let attributes = Attributes::parse(br#"{"PublicIPv6":"fd00::1"}"#).unwrap();
    assert_eq!(attributes.public_ip_of(Family::V4), None);
    assert_eq!(
        attributes.public_ip_of(Family::V6),
        Some("fd00::1".parse().unwrap())
    );
}

#[test]
fn values_when_wrong_name_field_value_and_expectation() {
    for (text, message) in [
        (
            r#"{"PublicIP":null}"#,
            "lease value: PublicIP is null: expected an IPv4 address in quotes",
        ),
        (
            r#"{"PublicIP":""}"#,
            r#"lease value: PublicIP is "": expected an IPv4 address in quotes"#,
        ),
        (
            r#"{"PublicIP":"fd00::1"}"#,
            r#"lease value: PublicIP is "fd00::1": expected an IPv4 address in quotes"#,
        ),
        (
            r#"{"PublicIPv6":""}"#,
            r#"lease value: PublicIPv6 is "": expected an IPv6 address in quotes"#,
        ),
        (
            r#"{"PublicIPv6":"1.2.3.4"}"#,
            r#"lease value: PublicIPv6 is "1.2.3.4": expected an IPv6 address in quotes"#,
        ),
        (
            r#"{"BackendType":7}"#,
            "lease value: BackendType is 7: expected a string",
        ),
        (
            "x",
            "lease value: not valid JSON: expected value at line 1 column 1",
        ),
        (
            "\"1.2.3.4\"",
            "lease value: expected a JSON object, found a string",
        ),
    ] {
        assert_eq!(
            Attributes::parse(text.as_bytes()).unwrap_err().to_string(),
            message
        );
    }
}

#[test]
fn data_when_spelt_with_markup_or_escapes_is_equal() {
    let plain = br#"{"PublicIP":"1.2.3.4","BackendData":"<&>"}"#;
    let escaped = br#"{"PublicIP":"1.2.3.4","BackendData":"\u003c\u0026\u003e"}"#;
    assert_eq!(
        Attributes::parse(plain).unwrap(),
        Attributes::parse(escaped).unwrap()
    );
}

#[test]
fn snapshot_when_some_entries_are_bad_keeps_every_good_one() {
    let good = r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#;
    let snapshot = snapshot_from(
        7,
        [
            ("10.5.1.0-24", good, 3),
            ("foo", "x", 4),
            ("10.5.1.9-24", good, 5),
            ("10.5.1.0-024", "{}", 5),
            ("10.5.2.0-24", "{\"PublicIP\":", 6),
            ("10.5.3.0-24", good, 7),
        ],
    );
    let keys: Vec<String> = snapshot.leases.keys().map(Subnet::to_string).collect();
    assert_eq!(keys, ["10.5.1.0-24", "10.5.3.0-24"]);
    assert_eq!(snapshot.leases[&key("10.5.1.0-24")].created, 3);
    let rejected: Vec<&str> = snapshot.rejected.iter().map(|r| r.key.as_str()).collect();
    assert_eq!(rejected, ["foo", "10.5.1.9-24", "10.5.1.0-024", "10.5.2.0-24"]);
    assert_eq!(snapshot.revision, 7);
}

#[test]
fn lease_when_larger_than_any_needs_then_it_is_none() {
    let value = |bytes: usize| {
        let (start, end) = (r#"{"PublicIP":"192.0.2.1","BackendData":""#, r#""}"#);
        let filling = "x".repeat(bytes - start.len() - end.len());
        format!("{start}{filling}{end}")
    };
    assert_eq!(value(LARGEST_VALUE).len(), 16_384);
    assert!(Lease::read("10.5.1.0-24", value(LARGEST_VALUE).as_bytes(), 1).is_ok());
    let rejected = Lease::read("10.5.1.0-24", value(LARGEST_VALUE + 1).as_bytes(), 1).unwrap_err();
    assert_eq!(
        rejected.reason,
        "lease value has more bytes than a lease needs: expected at most 16384"
    );
}

#[test]
fn entry_when_its_key_is_longer_than_any_leases_then_it_has_a_short_name_of_its_own() {
    let longest = "255.255.255.254-31&ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe-127";
    assert_eq!(name_of(longest), longest);
    assert!(Subnet::parse_key(longest).is_ok());
    let long = |filling: char, bytes: usize| {
        let mut key = "k".to_owned();
        key.extend(std::iter::repeat_n(filling, bytes / filling.len_utf8()));
        key
    };
    assert_eq!(name_of(&long('a', 127)), long('a', 127));
    let name = name_of(&long('a', 128)).into_owned();
    assert!(
        name.starts_with(&format!("k{}… (129 bytes, ", "a".repeat(63))),
        "{name}"
    );
    assert_ne!(name_of(&(long('a', 199) + "b")), name_of(&(long('a', 199) + "c")));
    for key in [long('a', 1 << 20), long('ä', 1001), long('\u{1f980}', 4000)] {
        let name = name_of(&key).into_owned();
        assert!(name.len() <= 128, "{name}");
        assert_eq!(name_of(&name), name);
        let rejected = Lease::read(&key, b"{}", 1).unwrap_err();
        assert_eq!(rejected.key, name);
        assert!(rejected.reason.len() < 500, "{}", rejected.reason);
    }
    // A lease's key behind a thousand zeros.
    let key = format!("10.5.1.0-{}24", "0".repeat(1000));
    assert!(Lease::read(&key, b"{}", 1).unwrap_err().reason.len() < 500);
}

/// Zeros before a length are a spelling of their own as far as keys are read at all.
#[test]
fn key_when_as_long_as_any_that_is_read_is_told_apart_from_a_longer_one() {
    let key = |length: usize| {
        let zeros = "0".repeat(length - "10.5.1.0-24".len());
        Subnet::parse_key(&format!("10.5.1.0-{zeros}24"))
    };
    assert!(matches!(key(128), Err(SubnetKeyError::NotCanonical { .. })));
    assert!(matches!(key(129), Err(SubnetKeyError::Form(_))));
}
