use super::*;

fn dual() -> SubnetEnv {
    SubnetEnv {
        network: "10.42.0.0/16".parse().ok(),
        subnet: "10.42.0.0/24".parse().ok(),
        network6: "2001:cafe:42::/56".parse().ok(),
        subnet6: "2001:cafe:42::/64".parse().ok(),
        mtu: 1450,
        ipmasq: true,
    }
}

fn v4() -> SubnetEnv {
    SubnetEnv {
        network6: None,
        subnet6: None,
        ..dual()
    }
}

const DUAL: &str = "FLANNEL_NETWORK=10.42.0.0/16
FLANNEL_SUBNET=10.42.0.1/24
FLANNEL_IPV6_NETWORK=2001:cafe:42::/56
FLANNEL_IPV6_SUBNET=2001:cafe:42::1/64
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
";
const V4: &str = "FLANNEL_NETWORK=10.42.0.0/16
FLANNEL_SUBNET=10.42.0.1/24
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
";
/// What `mk-docker-opts.sh -k DOCKER_NETWORK_OPTIONS -d /run/flannel/subnet.env` leaves of the file.
const DOCKER: &str = "DOCKER_OPT_BIP=\"--bip=172.20.97.1/24\"
DOCKER_OPT_IPMASQ=\"--ip-masq=false\"
DOCKER_OPT_MTU=\"--mtu=1450\"
DOCKER_NETWORK_OPTIONS=\" --bip=172.20.97.1/24 --ip-masq=false --mtu=1450\"
";

#[test]
fn file_when_rendered_is_what_the_reference_writes_and_reads_back() {
    assert_eq!(dual().render(), DUAL);
    assert_eq!(v4().render(), V4);
    let ours = dual();
    let previous = read_previous(DUAL);
    assert_eq!(previous.problems, [""; 0]);
    assert_eq!((previous.network, previous.subnet), (ours.network, ours.subnet));
    assert_eq!(
        (previous.network6, previous.subnet6),
        (ours.network6, ours.subnet6)
    );
}

#[test]
fn previous_when_written_as_dotenv_is_understood_and_masked() {
    let text = "# a comment\n\n  export FLANNEL_NETWORK = \"10.5.0.0/16\" # why\r\nBASE=10.5.72\nFLANNEL_SUBNET: ${BASE}.1/24  # inline\n\
                FLANNEL_IPV6_NETWORK='fd00::/48'\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nNOTE=\"two\nlines\"\nFLANNEL_MTU=1450";
    let previous = read_previous(text);
    assert_eq!(previous.problems, [""; 0]);
    assert_eq!(previous.network, "10.5.0.0/16".parse().ok());
    assert_eq!(previous.subnet, "10.5.72.0/24".parse().ok());
    assert_eq!(previous.network6, "fd00::/48".parse().ok());
    assert_eq!(previous.subnet6, "fd00:0:0:1::/64".parse().ok());
}

#[test]
fn previous_when_docker_options_stand_in_the_file_is_empty_without_complaint() {
    assert_eq!(read_previous(DOCKER), Previous::default());
    assert_eq!(read_previous(""), Previous::default());
}

#[test]
fn previous_when_a_value_is_unusable_says_so_and_reads_the_rest() {
    for (line, problem) in [
        (
            "FLANNEL_SUBNET=10.5.1.0",
            "FLANNEL_SUBNET has \"10.5.1.0\": expected a CIDR",
        ),
        ("FLANNEL_SUBNET=", "FLANNEL_SUBNET has \"\": expected a CIDR"),
        (
            "FLANNEL_SUBNET=fd00::1/64",
            "FLANNEL_SUBNET is fd00::/64: expected an IPv4 CIDR",
        ),
        (
            "FLANNEL_SUBNET=10.5.1.1/24,10.5.2.1/24",
            "FLANNEL_SUBNET is \"10.5.1.1/24,10.5.2.1/24\": expected one CIDR",
        ),
        (
            "FLANNEL_IPV6_SUBNET=10.5.1.1/24",
            "FLANNEL_IPV6_SUBNET is 10.5.1.0/24: expected an IPv6 CIDR",
        ),
        ("FLANNEL_SUBNET=\"10.5.1.1/24", "line 1 has no closing quote"),
        ("what is this", "line 1 is neither KEY=value nor a comment"),
    ] {
        let previous = read_previous(&format!("{line}\nFLANNEL_NETWORK=10.5.0.0/16\n"));
        assert_eq!(previous.problems, [problem]);
        assert_eq!((previous.subnet, previous.subnet6), (None, None), "{line}");
        assert_eq!(previous.network, "10.5.0.0/16".parse().ok(), "{line}");
    }
}

#[test]
fn repair_when_the_file_is_right_changes_nothing() {
    for text in [
        V4.to_owned(),
        format!("# mine\n{V4}OTHER=1"),
        format!("{DOCKER}{V4}"),
        V4.replace('\n', "\nX=1\n"),
    ] {
        assert_eq!(repair(&text, &v4()), text);
    }
}

#[test]
fn repair_when_keys_are_missing_changed_doubled_or_unwanted_restores_ours_and_keeps_foreign_lines() {
    assert_eq!(repair("", &v4()), V4);
    assert_eq!(repair(DOCKER, &v4()), format!("{V4}{DOCKER}"));
    for broken in [
        V4.replace("1450", "1500"),
        V4.replace("1450", "\"1450\""),
        V4.replace('\n', "\r\n"),
        V4.replace("FLANNEL_MTU=1450\n", ""),
        format!("{V4}FLANNEL_MTU=1450\n"),
        format!("{V4}export FLANNEL_MTU=1500\n"),
        format!("{V4}FLANNEL_MTU\n"),
        DUAL.to_owned(),
    ] {
        assert_eq!(repair(&broken, &v4()), V4, "{broken:?}");
        let mixed = format!("A=1\n{broken}\n");
        let repaired = repair(&mixed, &v4());
        assert!(
            repaired.starts_with(V4) && repaired[V4.len()..].starts_with("A=1\n"),
            "{repaired:?}"
        );
        assert_eq!(repair(&repaired, &v4()), repaired);
    }
    assert_eq!(repair(V4.trim_end(), &v4()), V4);
    assert_eq!(repair("A=1", &v4()), format!("{V4}A=1\n"));
}

#[test]
fn strict_when_the_daemon_wrote_it_gives_masked_values() {
    let network = read_strict("f", DUAL.as_bytes()).unwrap();
    assert_eq!(network.networks, ["10.42.0.0/16".parse().unwrap()]);
    assert_eq!(network.networks6, ["2001:cafe:42::/56".parse().unwrap()]);
    assert_eq!(network.subnet, "10.42.0.0/24".parse().ok());
    assert_eq!(network.subnet6, "2001:cafe:42::/64".parse().ok());
    assert_eq!((network.mtu, network.ipmasq), (1450, true));
}

#[test]
fn strict_when_lists_duplicates_crlf_or_crossed_families_stand_in_it_reads_as_go() {
    let text = "# x\r\nFLANNEL_NETWORK=10.1.2.3/16,192.168.0.0/16,10.1.0.0/16\r\nFLANNEL_SUBNET=fd00::1/64\r\n\
                FLANNEL_MTU=007\r\nFLANNEL_MTU=0\r\nFLANNEL_IPMASQ=TRUE\r\nexport FLANNEL_MTU=1\r\n FLANNEL_MTU=2\r\nfoo";
    let network = read_strict("f", text.as_bytes()).unwrap();
    assert_eq!(
        network.networks,
        ["10.1.0.0/16".parse().unwrap(), "192.168.0.0/16".parse().unwrap()]
    );
    assert_eq!(network.subnet, "fd00::/64".parse().ok());
    assert_eq!((network.mtu, network.ipmasq), (0, false));
}

#[test]
fn strict_when_unusable_gives_the_texts_of_gos_plugin() {
    let all = "FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ";
    for (text, message) in [
        ("foo=bar", format!("/run/x is missing {all}")),
        ("", format!("/run/x is missing {all}")),
        (
            "FLANNEL_NETWORK=10.1.0.0/16\n",
            "/run/x is missing FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ".into(),
        ),
        (
            "FLANNEL_SUBNET=10.244.0.0",
            "invalid CIDR address: 10.244.0.0".into(),
        ),
        ("FLANNEL_NETWORK=10.244.0.0/16,", "invalid CIDR address: ".into()),
        (
            "FLANNEL_NETWORK=10.244.0.0/16, 10.1.0.0/16",
            "invalid CIDR address:  10.1.0.0/16".into(),
        ),
        (
            "FLANNEL_NETWORK=\"10.244.0.0/16\"",
            "invalid CIDR address: \"10.244.0.0/16\"".into(),
        ),
        (
            "FLANNEL_MTU=1450 ",
            "strconv.ParseUint: parsing \"1450 \": invalid syntax".into(),
        ),
        (
            "FLANNEL_MTU=",
            "strconv.ParseUint: parsing \"\": invalid syntax".into(),
        ),
        (
            "FLANNEL_MTU=+1",
            "strconv.ParseUint: parsing \"+1\": invalid syntax".into(),
        ),
        (
            "FLANNEL_MTU=\"1\t\"",
            "strconv.ParseUint: parsing \"\\\"1\\t\\\"\": invalid syntax".into(),
        ),
        (
            "FLANNEL_MTU=\u{1}\u{7f}",
            "strconv.ParseUint: parsing \"\\x01\\x7f\": invalid syntax".into(),
        ),
        (
            "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
            "/run/x is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET"
                .into(),
        ),
        (
            "FLANNEL_MTU=4294967296",
            "strconv.ParseUint: parsing \"4294967296\": value out of range".into(),
        ),
        (
            "FLANNEL_MTU=99999999999x",
            "strconv.ParseUint: parsing \"99999999999x\": value out of range".into(),
        ),
        (
            "\nFLANNEL_MTU",
            "line 2 is \"FLANNEL_MTU\" alone: expected FLANNEL_MTU=<value>".into(),
        ),
    ] {
        assert_eq!(
            read_strict("/run/x", text.as_bytes()).unwrap_err().to_string(),
            message
        );
    }
    let long = format!("{DUAL}#{}\n", "x".repeat(65_535));
    assert_eq!(read_strict("f", long.as_bytes()), Err(StrictError::LineTooLong));
    let long = format!("{DUAL}#{}\n", "x".repeat(65_534));
    assert!(read_strict("f", long.as_bytes()).is_ok());
}
