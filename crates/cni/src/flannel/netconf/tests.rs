use super::*;
use crate::call::Environment;
use crate::flannel::subnet_env;

const V4: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n";
const V6: &str = "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\n";
const MULTI: &str = "FLANNEL_NETWORK=10.1.0.0/16,192.168.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n";

fn call(stdin: &str) -> Call {
    let env = Environment {
        command: "ADD".into(),
        ..Environment::default()
    };
    Call::check(env, stdin.as_bytes().to_vec()).unwrap()
}

fn env(families: &str) -> PodSettings {
    let text = format!("{families}FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n");
    subnet_env::parse("x", text.as_bytes()).unwrap()
}

fn built(stdin: &str, families: &str) -> Result<Delegate, String> {
    build(&NetConf::load(&call(stdin)).unwrap(), &env(families)).map_err(|f| f.msg)
}

const MINIMAL: &str = r#"{"name":"cni-flannel","type":"flannel","subnetFile":"/x","dataDir":"/y"}"#;

#[test]
fn t1_to_t4_t18_delegate_when_config_is_minimal_is_gos_for_each_family() {
    for (families, ranges, routes) in [
        (
            V4,
            r#"[[{"subnet":"10.1.17.0/24"}]]"#,
            r#"[{"dst":"10.1.0.0/16"}]"#,
        ),
        (
            MULTI,
            r#"[[{"subnet":"10.1.17.0/24"}]]"#,
            r#"[{"dst":"10.1.0.0/16"},{"dst":"192.168.0.0/16"}]"#,
        ),
        (V6, r#"[[{"subnet":"fc00::/64"}]]"#, r#"[{"dst":"fc00::/48"}]"#),
        (
            &format!("{V4}{V6}"),
            r#"[[{"subnet":"10.1.17.0/24"}],[{"subnet":"fc00::/64"}]]"#,
            r#"[{"dst":"10.1.0.0/16"},{"dst":"fc00::/48"}]"#,
        ),
    ] {
        let expected = format!(
            r#"{{"ipMasq":false,"ipam":{{"ranges":{ranges},"routes":{routes},"type":"host-local"}},"isGateway":true,"mtu":1472,"name":"cni-flannel","type":"bridge"}}"#
        );
        let delegate = built(MINIMAL, families).unwrap();
        assert_eq!(delegate.text, expected);
        assert_eq!(
            json::to_go_text(&delegate.config),
            expected,
            "tree and text agree"
        );
    }
}

#[test]
fn t5_to_t10_config_when_read_has_its_paths_or_the_defaults() {
    let conf = NetConf::load(&call(MINIMAL)).unwrap();
    assert_eq!((conf.subnet_file.as_str(), conf.data_dir.as_str()), ("/x", "/y"));
    let conf = NetConf::load(&call(r#"{"name":"n","type":"flannel"}"#)).unwrap();
    assert_eq!(
        (conf.subnet_file.as_str(), conf.data_dir.as_str()),
        (SUBNET_FILE, DATA_DIR)
    );
    let conf = NetConf::load(&call(
        r#"{"name":"n","subnetFile":"","dataDir":"","delegate":null}"#,
    ))
    .unwrap();
    assert_eq!(
        (conf.subnet_file.as_str(), conf.data_dir.as_str(), conf.delegate),
        ("", "", None)
    );
    let error = NetConf::load(&call(r#"{"name":"n","delegate":[1]}"#)).unwrap_err();
    assert_eq!(
        error,
        "failed to load netconf: delegate is [1]: expected an object"
    );
}

#[test]
fn seed_config_when_built_gives_gos_exact_bytes() {
    let env = subnet_env::parse(
        "x",
        b"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
    )
    .unwrap();
    let stdin = r#"{"name":"cbr0","cniVersion":"0.3.1","type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}}"#;
    let delegate = build(&NetConf::load(&call(stdin)).unwrap(), &env).unwrap();
    assert_eq!(
        delegate.text,
        r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.7.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#
    );
}

#[test]
fn t17_t19_to_t23_ipam_when_given_keeps_type_and_unknown_keys_and_its_routes_come_first() {
    for (kind, families, ranges, routes) in [
        (
            r#""type":"my-ipam","#,
            V4,
            r#"[[{"subnet":"10.1.17.0/24"}]]"#,
            r#"{"dst":"10.1.0.0/16"}"#,
        ),
        (
            "",
            V4,
            r#"[[{"subnet":"10.1.17.0/24"}]]"#,
            r#"{"dst":"10.1.0.0/16"}"#,
        ),
        (
            r#""type":"my-ipam","#,
            V6,
            r#"[[{"subnet":"fc00::/64"}]]"#,
            r#"{"dst":"fc00::/48"}"#,
        ),
        ("", V6, r#"[[{"subnet":"fc00::/64"}]]"#, r#"{"dst":"fc00::/48"}"#),
        (
            "",
            &format!("{V4}{V6}"),
            r#"[[{"subnet":"10.1.17.0/24"}],[{"subnet":"fc00::/64"}]]"#,
            r#"{"dst":"10.1.0.0/16"},{"dst":"fc00::/48"}"#,
        ),
    ] {
        let stdin = format!(
            r#"{{"name":"n","ipam":{{{kind}"unknown-param":"u","routes":[{{"dst":"10.96.0.0/12"}},{{"gw":"10.1.17.20","dst":"192.168.244.0/24","scope":0,"mtu":1400,"x":1}}],"ranges":[[{{"subnet":"1.2.3.0/24"}}]]}}}}"#
        );
        let kind = if kind.is_empty() { "host-local" } else { "my-ipam" };
        let expected = format!(
            r#""ipam":{{"ranges":{ranges},"routes":[{{"dst":"10.96.0.0/12"}},{{"dst":"192.168.244.0/24","gw":"10.1.17.20","mtu":1400,"scope":0}},{routes}],"type":"{kind}","unknown-param":"u"}}"#
        );
        let text = built(&stdin, families).unwrap().text;
        assert!(text.contains(&expected), "{text}\n{expected}");
    }
}

#[test]
fn p7_delegate_when_it_sets_what_flannel_sets_is_refused_in_order() {
    let refused =
        |delegate: &str| built(&format!(r#"{{"name":"n","delegate":{delegate}}}"#), V4).unwrap_err();
    let kind = "'delegate' dictionary, if present, must have (string) 'type' field";
    assert_eq!(refused(r#"{"type":5,"name":"x"}"#), kind);
    assert_eq!(refused(r#"{"type":null}"#), kind);
    let name = "'delegate' dictionary must not have 'name' field, it'll be set by flannel";
    assert_eq!(refused(r#"{"name":"x","ipam":{}}"#), name);
    let ipam = "'delegate' dictionary must not have 'ipam' field, it'll be set by flannel";
    assert_eq!(refused(r#"{"ipam":{}}"#), ipam);
    assert_eq!(
        built(r#"{"name":"n","ipam":{"routes":[{"dst":"nope"}]}}"#, V4).unwrap_err(),
        "failed to assemble Delegate IPAM: failed to read IPAM routes: failed to parse ipam.routes: invalid CIDR address: nope"
    );
}

#[test]
fn p8_to_p11_delegate_when_keys_are_given_keeps_them_and_drops_what_go_drops() {
    let text = built(
        r#"{"name":"n","cniVersion":"1.0.0","delegate":{"mtu":1300,"ipMasq":true,"isGateway":false,"cniVersion":"0.1.0","z":12345678901234567890,"s":"<&>"},
            "runtimeConfig":{"mac":"02:11:22:33:44:55"},"args":{"cni":{"mac":"x"}},"dns":{"domain":"d"},"capabilities":{"mac":true},"unknown":1}"#,
        V4,
    )
    .unwrap()
    .text;
    assert_eq!(
        text,
        r#"{"cniVersion":"1.0.0","ipMasq":true,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"}],"type":"host-local"},"isGateway":false,"mtu":1300,"name":"n","runtimeConfig":{"mac":"02:11:22:33:44:55"},"s":"\u003c\u0026\u003e","type":"bridge","z":12345678901234567000}"#
    );
    let other = built(r#"{"name":"n","delegate":{"type":"ipvlan","mtu":null}}"#, V4).unwrap();
    assert!(
        !other.text.contains("isGateway") && other.text.contains(r#""mtu":null"#),
        "{}",
        other.text
    );
    assert_eq!(other.kind, "ipvlan");
    // Masquerading is the bridge's where it is not flanneld's.
    let without = subnet_env::parse(
        "x",
        format!("{V4}FLANNEL_MTU=0\nFLANNEL_IPMASQ=TRUE\n").as_bytes(),
    )
    .unwrap();
    let text = build(&NetConf::load(&call(r#"{"name":"n"}"#)).unwrap(), &without)
        .unwrap()
        .text;
    assert!(
        text.contains(r#""ipMasq":true"#) && text.contains(r#""mtu":0"#),
        "{text}"
    );
}
