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
