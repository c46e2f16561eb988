use super::*;
use crate::config::Declared;

fn network(json: &str) -> NetworkConfig {
    Declared::parse(json.as_bytes())
        .unwrap()
        .without_allocation()
        .unwrap()
}

fn v4() -> NetworkConfig {
    network(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#)
}

fn dual() -> NetworkConfig {
    network(
        r#"{"Network":"10.244.0.0/16","IPv6Network":"fd00::/48","EnableIPv6":true,"Backend":{"Type":"vxlan"}}"#,
    )
}

fn prefix() -> Prefix {
    Prefix::parse("flannel.alpha.coreos.com").unwrap()
}

/// A node as an API server shows it: `annotations` and `spec` are the inside of these objects.
fn node(annotations: &str, spec: &str) -> NodeObject {
    let json = format!(
        r#"{{"kind":"Node","apiVersion":"v1","metadata":{{"name":"n1","uid":"u-1","resourceVersion":"77",
            "creationTimestamp":"2026-11-30T09:05:11Z","labels":{{"a":"b"}},
            "annotations":{{"node.alpha.kubernetes.io/ttl":"0"{annotations}}},
            "managedFields":[{{"manager":"kubelet"}}]}},
            "spec":{{{spec}}},"status":{{"images":[{{"names":["x"],"sizeBytes":3}}]}}}}"#
    );
    NodeObject::read(&json, &prefix()).unwrap()
}

/// The annotations of the reference's own worked trace (spec, A.2).
const TRACE: &str = r#",
    "flannel.alpha.coreos.com/backend-data":"{\"VNI\":1,\"VtepMAC\":\"12:c6:65:89:b4:e3\"}",
    "flannel.alpha.coreos.com/backend-type":"vxlan",
    "flannel.alpha.coreos.com/backend-v6-data":"{\"VNI\":1,\"VtepMAC\":\"22:11:65:89:b4:e4\"}",
    "flannel.alpha.coreos.com/kube-subnet-manager":"true",
    "flannel.alpha.coreos.com/public-ip":"172.18.0.2",
    "flannel.alpha.coreos.com/public-ipv6":"fc00:f853:ccd:e793::2""#;
const CIDRS: &str = r#""podCIDR":"fd00:0:0:1::/64","podCIDRs":["fd00:0:0:1::/64","10.244.1.0/24"]"#;

#[test]
fn prefix_when_written_in_any_way_that_go_takes_then_completed_and_else_refused() {
    for (text, key) in [
        ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/public-ip"),
        ("flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/public-ip"),
        ("x.y/p", "x.y/p-public-ip"),
        ("x.y/p-", "x.y/p-public-ip"),
        ("x.y/a_b-9", "x.y/a_b-9-public-ip"),
    ] {
        assert_eq!(Prefix::parse(text).unwrap().key(Name::PublicIp), key, "{text}");
    }
    for text in [
        "",
        "/",
        "org",
        "org/",
        "org/prefix",
        "a.b/c/d",
        "x.y/P",
        "X.y",
        "A.b.c",
        "x.Y",
        "x..y",
        ".y",
        "x.",
        "x.y/a.b",
        "x y.z",
    ] {
        assert!(Prefix::parse(text).is_err(), "{text}");
    }
}

#[test]
fn node_when_annotated_by_go_then_read_and_what_we_would_write_is_the_same() {
    let node = node(TRACE, CIDRS);
    assert_eq!((&*node.name, &*node.uid, &*node.version), ("n1", "u-1", "77"));
    // `date -d 2026-11-30T09:05:11Z +%s`
    assert_eq!(node.created, 1_796_029_511);
    let lease = node.lease(&dual()).unwrap().unwrap();
    assert_eq!(lease.subnet.to_string(), "10.244.1.0-24&fd00:0:0:1::-64");
    assert_eq!(
        lease.attributes.to_json(),
        r#"{"PublicIP":"172.18.0.2","PublicIPv6":"fc00:f853:ccd:e793::2","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"},"BackendV6Data":{"VNI":1,"VtepMAC":"22:11:65:89:b4:e4"}}"#
    );
    assert_eq!(node.wanted(&lease.attributes), node.annotations);
    assert_eq!(node.patch(&prefix(), &node.wanted(&lease.attributes)), None);
    // Of one family only, nothing of the other.
    let lease = node.lease(&v4()).unwrap().unwrap();
    assert_eq!(lease.subnet.to_string(), "10.244.1.0-24");
    assert_eq!(
        (lease.attributes.public_ip6, lease.attributes.data6),
        (None, None)
    );
}

#[test]
fn node_when_it_has_no_annotations_at_all_then_it_is_read_and_all_are_written() {
    for annotations in [r#""annotations":null,"#, "", r#""annotations":{},"#] {
        let json =
            format!(r#"{{"metadata":{{{annotations}"name":"n2"}},"spec":{{"podCIDR":"10.244.2.0/24"}}}}"#);
        let node = NodeObject::read(&json, &prefix()).unwrap();
        assert_eq!(node.lease(&v4()), Ok(None));
        assert_eq!(node.subnet(&v4()).unwrap().to_string(), "10.244.2.0-24");
        let attributes = Attributes {
            public_ip: Ipv4Addr::new(192, 0, 2, 2),
            public_ip6: None,
            backend_type: "host-gw".into(),
            data: None,
            data6: None,
        };
        assert_eq!(
            node.patch(&prefix(), &node.wanted(&attributes)).unwrap(),
            r#"{"metadata":{"annotations":{"flannel.alpha.coreos.com/backend-data":"null","flannel.alpha.coreos.com/backend-type":"host-gw","flannel.alpha.coreos.com/kube-subnet-manager":"true","flannel.alpha.coreos.com/public-ip":"192.0.2.2"}}}"#
        );
    }
    assert_eq!(
        NodeObject::read(r#"{"metadata":{"name":"n"}}"#, &prefix())
            .unwrap()
            .cidrs,
        Vec::<String>::new()
    );
    assert!(NodeObject::read(r#"{"metadata":{}}"#, &prefix()).is_err());
    assert!(NodeObject::read("[]", &prefix()).is_err());
}

#[test]
fn wanted_when_a_family_has_nothing_to_say_then_nothing_of_it_is_written() {
    let node = node("", CIDRS);
    let attributes = |v4: &str, data: Option<&str>, v6: Option<&str>, data6: Option<&str>| Attributes {
        public_ip: v4.parse().unwrap(),
        public_ip6: v6.map(|v6| v6.parse().unwrap()),
        backend_type: "x".into(),
        data: data.map(Into::into),
        data6: data6.map(Into::into),
    };
    let names = |attributes: &Attributes| -> Vec<&str> {
        let wanted = node.wanted(attributes);
        wanted.keys().map(|name| name.text()).collect()
    };
    let (always, four) = (
        ["backend-type", "kube-subnet-manager"],
        ["backend-data", "public-ip"],
    );
    let six = ["backend-v6-data", "public-ipv6"];
    let sorted = |parts: &[[&'static str; 2]]| {
        let mut all: Vec<&str> = parts.iter().flatten().copied().collect();
        all.sort_unstable();
        all
    };
    // vxlan of IPv6 alone, of both, and of IPv4 alone; host-gw of both.
    for (attributes, parts) in [
        (
            attributes("0.0.0.0", None, Some("fd00::1"), Some("{}")),
            [always, six].as_slice(),
        ),
        (
            attributes("192.0.2.1", Some("{}"), Some("fd00::1"), Some("{}")),
            &[always, four, six],
        ),
        (
            attributes("192.0.2.1", Some("{}"), Some("fd00::1"), None),
            &[always, four],
        ),
        (
            attributes("192.0.2.1", None, Some("fd00::1"), None),
            &[always, four, six],
        ),
        (attributes("192.0.2.1", None, None, None), &[always, four]),
    ] {
        assert_eq!(names(&attributes), sorted(parts), "{attributes:?}");
    }
}

#[test]
fn lease_when_annotations_are_anothers_or_say_otherwise_then_there_is_none() {
    let managed = r#","flannel.alpha.coreos.com/kube-subnet-manager":"#;
    for text in [r#""false""#, r#""True""#, r#""""#, r#""1""#] {
        assert_eq!(
            node(&format!("{managed}{text}"), CIDRS).lease(&v4()),
            Ok(None),
            "{text}"
        );
    }
    let other = r#","example.org/net2-kube-subnet-manager":"true","kube-subnet-manager":"true""#;
    assert_eq!(node(other, CIDRS).annotations, Annotations::new());
    let json = format!(
        r#"{{"metadata":{{"name":"n","annotations":{{{}}}}}}}"#,
        &other[1..]
    );
    let second = NodeObject::read(&json, &Prefix::parse("example.org/net2").unwrap()).unwrap();
    assert_eq!(
        second.annotations,
        Annotations::from([(Name::Managed, "true".to_owned())])
    );
}

#[test]
fn lease_when_something_in_it_cannot_be_read_then_the_node_is_named_with_it() {
    let with = |name: &str, text: &str| {
        format!(
            r#","flannel.alpha.coreos.com/kube-subnet-manager":"true","flannel.alpha.coreos.com/{name}":"{text}""#
        )
    };
    for (annotations, spec, words) in [
        (
            with("public-ip", "1.2.3"),
            CIDRS,
            r#"public-ip is "1.2.3": expected an IPv4 address"#,
        ),
        (
            with("public-ip", "fd00::1"),
            CIDRS,
            r#"public-ip is "fd00::1": expected an IPv4 address"#,
        ),
        (
            with("public-ipv6", "1.2.3.4"),
            CIDRS,
            r#"public-ipv6 is "1.2.3.4": expected an IPv6 address"#,
        ),
        (with("backend-data", "{"), CIDRS, "backend-data: not valid JSON"),
        (
            with("backend-v6-data", "{"),
            CIDRS,
            "backend-v6-data: not valid JSON",
        ),
        (with("public-ip", "1.2.3.4"), "", "it has no podCIDR yet"),
        (
            with("public-ip", "1.2.3.4"),
            r#""podCIDR":"""#,
            "it has no podCIDR yet",
        ),
        (
            with("public-ip", "1.2.3.4"),
            r#""podCIDR":"x""#,
            "podCIDR is x: expected an IPv4 or an IPv6 CIDR",
        ),
        (
            with("public-ip", "1.2.3.4"),
            r#""podCIDRs":["10.0.0.0/24","10.0.1.0/24","10.0.2.0/24"]"#,
            "3 pod CIDRs: expected at most two",
        ),
    ] {
        let rejected = node(&annotations, spec).lease(&dual()).unwrap_err();
        assert_eq!(rejected.key, "node n1");
        assert!(rejected.reason.starts_with(words), "{}", rejected.reason);
    }
    let six = node(&with("public-ip", "1.2.3.4"), r#""podCIDR":"fd00:0:0:1::/64""#);
    assert_eq!(
        six.lease(&v4()).unwrap_err().reason,
        "none of its pod CIDRs fd00:0:0:1::/64 is of a family in use"
    );
    let most = "1".repeat(LARGEST_VALUE);
    let data = |text: &str| node(&with("backend-data", text), CIDRS).lease(&v4());
    assert!(data(&most).is_ok());
    assert!(
        data(&(most + "1"))
            .unwrap_err()
            .reason
            .contains("expected at most 16384")
    );
    assert!(Subnet::parse_key(&entry_of("10.5.1.0-24")).is_err());
    assert_eq!(crate::lease::place_of(&entry_of("n")), "node n");
    assert_eq!(crate::lease::place_of("10.5.1.0-24"), "subnets/10.5.1.0-24");
}

#[test]
fn overwrite_when_an_operator_sets_it_then_published_and_when_it_is_no_address_or_gone_then_not() {
    let attributes = node(TRACE, CIDRS).lease(&dual()).unwrap().unwrap().attributes;
    let published = |overwrite: &str| {
        let node = node(&format!("{TRACE}{overwrite}"), CIDRS);
        let wanted = node.wanted(&attributes);
        (wanted[&Name::PublicIp].clone(), wanted[&Name::PublicIpv6].clone())
    };
    let own = ("172.18.0.2".to_owned(), "fc00:f853:ccd:e793::2".to_owned());
    assert_eq!(published(""), own);
    let four = r#","flannel.alpha.coreos.com/public-ip-overwrite":"203.0.113.7""#;
    assert_eq!(published(four), ("203.0.113.7".to_owned(), own.1.clone()));
    let six = r#","flannel.alpha.coreos.com/public-ipv6-overwrite":"2001:db8::7""#;
    assert_eq!(published(six), (own.0.clone(), "2001:db8::7".to_owned()));
    for none in ["", "x", "2001:db8::7"] {
        let text = format!(r#","flannel.alpha.coreos.com/public-ip-overwrite":"{none}""#);
        assert_eq!(published(&text), own, "{none}");
    }
}

#[test]
fn address_when_an_operator_gives_the_node_one_then_it_is_that_if_it_is_one_of_the_family() {
    let with = |name: &str, text: &str| {
        let node = node(&format!(r#","flannel.alpha.coreos.com/{name}":"{text}""#), CIDRS);
        (node.ordered(Family::V4), node.ordered(Family::V6))
    };
    let (four, six): (IpAddr, IpAddr) = ("203.0.113.7".parse().unwrap(), "2001:db8::7".parse().unwrap());
    assert_eq!(with("node-public-ip", "203.0.113.7"), (Some(four), None));
    assert_eq!(with("node-public-ipv6", "2001:db8::7"), (None, Some(six)));
    for (name, text) in [
        ("node-public-ip", ""),
        ("node-public-ip", "x"),
        ("node-public-ip", "2001:db8::7"),
        ("node-public-ipv6", "203.0.113.7"),
        ("public-ip", "203.0.113.7"),
    ] {
        assert_eq!(with(name, text), (None, None), "{name} {text}");
    }
}

#[test]
fn patch_when_some_differ_then_holds_these_alone() {
    let node = node(TRACE, CIDRS);
    let mut wanted = node.annotations.clone();
    wanted.insert(Name::PublicIp, "192.0.2.9".to_owned());
    wanted.remove(&Name::BackendType);
    assert_eq!(
        node.patch(&prefix(), &wanted).unwrap(),
        r#"{"metadata":{"annotations":{"flannel.alpha.coreos.com/public-ip":"192.0.2.9"}}}"#
    );
}
