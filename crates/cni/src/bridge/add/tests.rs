use super::*;

use crate::call::Environment;
use crate::result::IpConfig;

fn config(more: &str) -> BridgeConfig {
    let env = Environment {
        command: "ADD".into(),
        ..Environment::default()
    };
    let call = Call::check(env, format!(r#"{{"name":"n"{more}}}"#).into_bytes()).unwrap();
    BridgeConfig::load(&call).unwrap()
}

fn result(addresses: &[(&str, &str)], routes: &[&str]) -> AddResult {
    let ip = |(address, gateway): &(&str, &str)| IpConfig {
        interface: None,
        address: address.parse().unwrap(),
        gateway: gateway.parse().ok(),
    };
    AddResult {
        ips: addresses.iter().map(ip).collect(),
        routes: routes
            .iter()
            .map(|dst| Route::to(dst.parse().unwrap(), None))
            .collect(),
        ..AddResult::default()
    }
}

#[test]
fn gateways_when_the_bridge_is_one_are_the_first_addresses_and_default_routes_only_where_asked_for() {
    let dual = [
        ("10.244.7.2/24", ""),
        ("fd00::2/64", "fd00::9"),
        ("10.244.8.2/24", ""),
    ];
    let filled = |more: &str, routes: &[&str]| {
        let mut result = result(&dual, routes);
        add_gateways(&config(more), &mut result);
        assert!(result.ips.iter().all(|ip| ip.interface == Some(2)));
        let gateways: Vec<String> = result
            .ips
            .iter()
            .map(|ip| ip.gateway.map(|g| g.to_string()).unwrap_or_default())
            .collect();
        let routes: Vec<String> = result
            .routes
            .iter()
            .map(|r| format!("{} {}", r.dst, r.gw.map(|g| g.to_string()).unwrap_or_default()))
            .collect();
        (gateways.join(" "), routes)
    };
    assert_eq!(filled("", &[]), (" fd00::9 ".into(), vec![]));
    let gateways = "10.244.7.1 fd00::9 10.244.8.1".to_owned();
    assert_eq!(filled(r#","isGateway":true"#, &[]), (gateways.clone(), vec![]));
    let default = r#","isDefaultGateway":true"#;
    let routes = vec!["0.0.0.0/0 10.244.7.1".to_owned(), "::/0 fd00::9".to_owned()];
    assert_eq!(filled(default, &[]), (gateways.clone(), routes));
    let own = vec!["0.0.0.0/0 ".to_owned(), "::/0 fd00::9".to_owned()];
    assert_eq!(filled(default, &["0.0.0.0/0"]), (gateways, own));
    assert_eq!(
        first_of("fd00::9/64".parse().unwrap()),
        "fd00::1".parse::<IpAddr>().unwrap()
    );
}

#[test]
fn routes_when_asked_for_go_by_their_familys_gateway_and_are_asked_for_once() {
    let mut result = result(
        &[("10.244.7.2/24", "10.244.7.1"), ("fd00::2/64", "fd00::1")],
        &["10.244.0.0/16", "10.244.9.9/16", "fd00::/48", "192.0.2.0/24"],
    );
    result.routes[3] = Route {
        gw: Some("10.244.7.9".parse().unwrap()),
        mtu: 1400,
        advmss: 1360,
        priority: 7,
        table: Some(0),
        scope: Some(253),
        ..result.routes[3].clone()
    };
    let asked = routes_of(&result);
    let text = |route: &PodRoute| format!("{} {}", route.destination, route.gateway.unwrap());
    assert_eq!(
        asked.iter().map(|(_, route)| text(route)).collect::<Vec<_>>(),
        [
            "10.244.0.0/16 10.244.7.1",
            "fd00::/48 fd00::1",
            "192.0.2.0/24 10.244.7.9"
        ]
    );
    let last = &asked[2].1;
    assert_eq!(
        (last.mtu, last.advmss, last.priority, last.table, last.scope),
        (1400, 1360, 7, None, 253)
    );
    let name = LinkName::new("eth0").unwrap();
    assert_eq!(
        describe(asked[2].0, last, name),
        "{192.0.2.0 ffffff00} via 10.244.7.9 dev eth0 metric 7 (Scope: 253, Table: 0)"
    );
    let bare = PodRoute {
        gateway: None,
        table: Some(5),
        ..asked[1].1
    };
    assert!(
        describe(asked[1].0, &bare, name)
            .starts_with("{fd00:: ffffffffffff00000000000000000000} via <nil> dev eth0 ")
    );
    assert!(describe(asked[1].0, &bare, name).ends_with("Table: 5)"));
}

#[test]
fn interface_when_told_has_its_name_address_and_place() {
    let mac = Mac([2, 0, 0, 0, 0, 1]);
    let told = interface(&LinkName::new("eth0").unwrap(), Some(mac), "/ns");
    assert_eq!(
        (told.name.as_str(), told.mac.as_str(), told.sandbox.as_str()),
        ("eth0", "02:00:00:00:00:01", "/ns")
    );
}
