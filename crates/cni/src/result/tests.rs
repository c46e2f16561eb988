use super::*;
use crate::json;

fn sample() -> AddResult {
    AddResult {
        interfaces: vec![
            Interface {
                name: "cni0".into(),
                mac: "aa:bb:cc:dd:ee:ff".into(),
                ..Interface::default()
            },
            Interface {
                name: "eth0".into(),
                sandbox: "/run/netns/x".into(),
                mtu: 1450,
                ..Interface::default()
            },
        ],
        ips: vec![
            IpConfig {
                interface: Some(1),
                address: "10.244.7.3/24".parse().unwrap(),
                gateway: Some("10.244.7.1".parse().unwrap()),
            },
            IpConfig {
                interface: Some(1),
                address: "fd00::3/64".parse().unwrap(),
                gateway: None,
            },
        ],
        routes: vec![
            Route::to("10.244.0.0/16".parse().unwrap(), None),
            Route {
                table: Some(7),
                ..Route::to("::/0".parse().unwrap(), Some("fd00::1".parse().unwrap()))
            },
        ],
        dns: Dns::default(),
    }
}

fn squeeze(text: &str) -> String {
    text.lines().map(|l| l.trim().replace("\": ", "\":")).collect()
}

#[test]
fn print_when_0_4_0_keeps_the_old_key_order_versions_and_empty_dns() {
    let text = sample().print("0.4.0").unwrap();
    assert!(
        text.starts_with("{\n    \"cniVersion\": \"0.4.0\",\n    \"interfaces\": [\n        {\n"),
        "{text}"
    );
    assert_eq!(
        squeeze(&text),
        r#"{"cniVersion":"0.4.0","interfaces":[{"name":"cni0","mac":"aa:bb:cc:dd:ee:ff"},{"name":"eth0","sandbox":"/run/netns/x"}],"ips":[{"version":"4","interface":1,"address":"10.244.7.3/24","gateway":"10.244.7.1"},{"version":"6","interface":1,"address":"fd00::3/64"}],"routes":[{"dst":"10.244.0.0/16"},{"dst":"::/0","gw":"fd00::1","table":7}],"dns":{}}"#
    );
}

#[test]
fn print_when_1_0_0_sorts_every_level_and_drops_empty_dns() {
    assert_eq!(
        squeeze(&sample().print("1.0.0").unwrap()),
        r#"{"cniVersion":"1.0.0","interfaces":[{"mac":"aa:bb:cc:dd:ee:ff","name":"cni0"},{"mtu":1450,"name":"eth0","sandbox":"/run/netns/x"}],"ips":[{"address":"10.244.7.3/24","gateway":"10.244.7.1","interface":1},{"address":"fd00::3/64","interface":1}],"routes":[{"dst":"10.244.0.0/16"},{"dst":"::/0","gw":"fd00::1","table":7}]}"#
    );
}

#[test]
fn print_when_0_2_0_gives_one_block_per_family_with_plain_routes() {
    assert_eq!(
        squeeze(&sample().print("0.2.0").unwrap()),
        r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.244.7.3/24","gateway":"10.244.7.1","routes":[{"dst":"10.244.0.0/16"}]},"ip6":{"ip":"fd00::3/64","routes":[{"dst":"::/0","gw":"fd00::1"}]},"dns":{}}"#
    );
    assert_eq!(
        AddResult::default().print("").unwrap_err().msg,
        "cannot convert: no valid IP addresses"
    );
    assert!(
        AddResult::default()
            .print("2.0.0")
            .unwrap_err()
            .msg
            .contains("no converter")
    );
}

#[test]
fn parse_when_given_what_print_wrote_gives_the_result_back() {
    let result = sample();
    for version in ["1.0.0", "1.1.0"] {
        let value = json::parse(result.print(version).unwrap().as_bytes()).unwrap();
        assert_eq!(AddResult::parse(&value, version).unwrap(), result);
    }
    let value = json::parse(result.print("0.1.0").unwrap().as_bytes()).unwrap();
    let back = AddResult::parse(&value, "0.1.0").unwrap();
    assert_eq!(back.print("0.1.0"), result.print("0.1.0"));
}

#[test]
fn previous_when_of_another_family_of_versions_is_refused_in_gos_words() {
    let value = json::parse(br#"{"cniVersion":"0.4.0","ips":[]}"#).unwrap();
    assert_eq!(
        AddResult::parse_previous(&value, "1.0.0").unwrap_err().msg,
        "could not parse prevResult: result type supports [1.0.0 1.1.0] but unmarshalled CNIVersion is \"0.4.0\""
    );
    assert!(AddResult::parse_previous(&value, "0.3.1").is_ok());
    let value = json::parse(br#"{"ips":[{"address":"x"}]}"#).unwrap();
    let failure = AddResult::parse_previous(&value, "1.0.0").unwrap_err();
    assert!(failure.msg.contains("ips[0].address is \"x\""), "{failure}");
}

#[test]
fn result_when_everything_is_set_comes_back_in_the_versions_that_have_it() {
    let text = |text: &str| vec![text.to_owned()];
    let mut result = sample();
    result.interfaces[1].socket_path = "/run/s".into();
    result.interfaces[1].pci_id = "0000:00:01.0".into();
    result.routes[1] = Route {
        mtu: 1400,
        advmss: 1360,
        priority: 5,
        table: Some(7),
        scope: Some(253),
        ..result.routes[1].clone()
    };
    result.dns = Dns {
        nameservers: text("10.0.0.1"),
        domain: "d".into(),
        search: text("s"),
        options: text("ndots:5"),
    };
    assert!(!result.dns.is_empty() && Dns::default().is_empty());
    let back = |version: &str| {
        let value = json::parse(result.print(version).unwrap().as_bytes()).unwrap();
        (AddResult::parse(&value, version).unwrap(), value)
    };
    assert_eq!(back("1.1.0").0, result);
    let (old, value) = back("0.4.0");
    assert_eq!(
        value["routes"][1],
        serde_json::json!({"dst": "::/0", "gw": "fd00::1", "mtu": 1400, "advmss": 1360, "priority": 5, "table": 7, "scope": 253})
    );
    assert_eq!(value["routes"][1], result.routes[1].to_value());
    assert_eq!(value["routes"][0], result.routes[0].to_value());
    assert_eq!(
        (old.dns.clone(), old.ips, old.routes),
        (result.dns.clone(), result.ips.clone(), result.routes.clone())
    );
    assert_eq!(
        (old.interfaces[1].mtu, old.interfaces[1].pci_id.as_str()),
        (0, "")
    );
    assert_eq!(back("0.2.0").0.dns, result.dns);
    let value = json::parse(br#"{"ip4":{},"dns":{}}"#).unwrap();
    assert!(
        AddResult::parse(&value, "0.2.0")
            .unwrap_err()
            .msg
            .contains("ip4.ip is null")
    );
}

#[test]
fn version_when_a_result_names_none_is_its_configurations() {
    let of = |text: &str, config: &str| version_of(&json::parse(text.as_bytes()).unwrap(), config);
    assert_eq!(of(r#"{"cniVersion":"0.4.0"}"#, "1.0.0"), "0.4.0");
    assert_eq!(of(r#"{"cniVersion":""}"#, "1.0.0"), "1.0.0");
    assert_eq!(of("{}", ""), "0.1.0");
    assert_eq!(of("[]", "1.0.0"), "1.0.0");
    let value = json::parse(b"{}").unwrap();
    assert_eq!(
        AddResult::parse(&value, "9.9.9").unwrap_err().msg,
        "unsupported CNI result version \"9.9.9\""
    );
    for (config, family) in [("0.2.0", "[ 0.1.0 0.2.0]"), ("0.3.1", "[0.3.0 0.3.1 0.4.0]")] {
        let value = json::parse(br#"{"cniVersion":"1.0.0"}"#).unwrap();
        let failure = AddResult::parse_previous(&value, config).unwrap_err();
        assert!(failure.msg.contains(&format!("supports {family}")), "{failure}");
    }
}
