//! CHECK: the attachment is what its result says. Only what every implementation's ADD guarantees is looked at.

use std::net::IpAddr;

use fabric::object::Family;
use ipnet::IpNet;
use kernel::rtnl::Rtnl;
use kernel::rtnl::link::ObservedLink;

use crate::bridge::config::{BridgeConfig, Ipam};
use crate::call::{Call, Verb};
use crate::delegate;
use crate::failure::Failure;
use crate::host_local;
use crate::links::link_name;
use crate::netns::{self, Sides, kernel_text};
use crate::result::{AddResult, Interface, Route};

/// Compares an attachment with the result in its configuration.
///
/// # Errors
///
/// The first thing that is not as the result says.
pub fn check(call: &Call) -> Result<(), Failure> {
    let config = BridgeConfig::load(call)?;
    let pod = netns::open(&call.env.netns)?.ok_or_else(|| netns::missing(&call.env.netns))?;
    match &config.ipam {
        // COMPAT: Go's plugin looks for an IPAM plugin without a name; a link without addresses needs none.
        Ipam::None => {}
        Ipam::HostLocal => host_local::check(call)?,
        Ipam::Plugin(other) => drop(delegate::run(other, Verb::Check, &call.stdin, &call.env)?),
    }
    let Some(previous) = call.fields().get("prevResult") else {
        return Err(Failure::internal("Required prevResult missing"));
    };
    let result = AddResult::parse_previous(previous, &call.version)?;
    let said = |e: kernel::NetlinkError| Failure::internal(kernel_text(&e));
    let sides = Sides::new(pod)?;
    let mut host = Rtnl::open().map_err(said)?;
    let mut pod = sides.inside(Rtnl::open)?.map_err(said)?;

    let bridge_name = config.bridge.as_str();
    let of_host = |interface: &&Interface| interface.name == bridge_name;
    let bridge = check_bridge(&mut host, result.interfaces.iter().find(of_host), &config)?;
    let ours =
        |interface: &&Interface| interface.name == call.env.ifname && interface.sandbox == call.env.netns;
    let Some(recorded) = result.interfaces.iter().find(ours) else {
        return Err(Failure::internal(format!(
            "Sandbox in prevResult  doesn't match configured netns: {}",
            call.env.netns
        )));
    };
    let inner = find(&mut pod, &recorded.name)?;
    if &*inner.kind != "veth" {
        return Err(Failure::internal(format!(
            "Error: Container interface {} not of type veth",
            recorded.name
        )));
    }
    if let Some(mac) = other_mac(recorded, &inner) {
        return Err(Failure::internal(format!(
            "Interface {} Mac {} doesn't match container Mac: {mac}",
            recorded.name, recorded.mac
        )));
    }
    let candidates = result
        .interfaces
        .iter()
        .filter(|i| i.name != bridge_name && i.name != recorded.name);
    let mut attached = false;
    for candidate in candidates.filter(|i| i.sandbox.is_empty()) {
        let outer = find(&mut host, &candidate.name)?;
        // Indices of two namespaces may be equal by chance: each end has to name the other.
        if &*outer.kind != "veth"
            || outer.lower != Some(inner.index)
            || inner.lower != Some(outer.index)
            || outer.master != Some(bridge.index)
        {
            continue;
        }
        if other_mac(candidate, &outer).is_some() {
            return Err(Failure::internal(format!(
                "Interface {} Mac doesn't match: {} not found",
                candidate.name, candidate.mac
            )));
        }
        attached = true;
    }
    if !attached {
        return Err(Failure::internal(format!(
            "CNI veth created for bridge {bridge_name} was not found"
        )));
    }
    check_addresses(&mut pod, &inner, &recorded.name, &result)?;
    check_routes(&mut pod, &inner, &result)
}

fn find(rtnl: &mut Rtnl, name: &str) -> Result<ObservedLink, Failure> {
    let absent = || Failure::internal(format!("Interface name {name} is not there"));
    let link = rtnl
        .link_by_name(link_name(name)?)
        .map_err(|e| Failure::internal(kernel_text(&e)))?;
    link.ok_or_else(absent)
}

/// The link's hardware address where the result has another one.
fn other_mac(recorded: &Interface, link: &ObservedLink) -> Option<String> {
    let now = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    (!recorded.mac.is_empty() && !recorded.mac.eq_ignore_ascii_case(&now)).then_some(now)
}

fn check_bridge(
    host: &mut Rtnl,
    recorded: Option<&Interface>,
    config: &BridgeConfig,
) -> Result<ObservedLink, Failure> {
    let name = config.bridge;
    let Some(recorded) = recorded else {
        return Err(Failure::internal("Interface name missing "));
    };
    if !recorded.sandbox.is_empty() {
        return Err(Failure::internal(format!(
            "Interface {name} should not be in sandbox"
        )));
    }
    let seen = host
        .port_by_name(name)
        .map_err(|e| Failure::internal(kernel_text(&e)))?;
    let Some(seen) = seen else {
        return Err(Failure::internal(format!("Interface name {name} is not there")));
    };
    if &*seen.link.kind != "bridge" {
        return Err(Failure::internal(format!(
            "Interface {name} does not have link type of bridge"
        )));
    }
    if other_mac(recorded, &seen.link).is_some() {
        return Err(Failure::internal(format!(
            "Bridge interface {name} Mac doesn't match: {}",
            recorded.mac
        )));
    }
    let promiscuous = seen.promiscuity != 0;
    // A bridge that others made promiscuous still serves; one that was to be and is not does not.
    if config.promisc && !promiscuous {
        return Err(Failure::internal(format!(
            "Bridge interface {name} configured Promisc Mode {} doesn't match current state: {promiscuous} ",
            config.promisc
        )));
    }
    Ok(seen.link)
}

fn check_addresses(
    pod: &mut Rtnl,
    link: &ObservedLink,
    name: &str,
    result: &AddResult,
) -> Result<(), Failure> {
    let have = pod
        .addresses(link.index)
        .map_err(|e| Failure::internal(kernel_text(&e)))?;
    let have: Vec<IpNet> = have.iter().map(|a| a.address).collect();
    compare_addresses(&have, name, result)
}

fn compare_addresses(have: &[IpNet], name: &str, result: &AddResult) -> Result<(), Failure> {
    let own = |interface: Option<i64>| {
        let index = interface.and_then(|i| usize::try_from(i).ok());
        index
            .and_then(|i| result.interfaces.get(i))
            .is_none_or(|i| i.name == name)
    };
    for ip in result.ips.iter().filter(|ip| own(ip.interface)) {
        if !have.contains(&ip.address) {
            return Err(Failure::internal(format!(
                "Failed to match addr {} on interface {name}",
                ip.address
            )));
        }
    }
    Ok(())
}

fn check_routes(pod: &mut Rtnl, link: &ObservedLink, result: &AddResult) -> Result<(), Failure> {
    for family in Family::BOTH {
        let wanted = main_routes(result, family);
        if wanted.is_empty() {
            continue;
        }
        let have = pod
            .routes(family, Some(link.index))
            .map_err(|e| Failure::internal(kernel_text(&e)))?;
        let have: Vec<(IpNet, Option<IpAddr>)> = have.iter().map(|r| (r.destination, r.gateway)).collect();
        compare_routes(&have, &wanted)?;
    }
    Ok(())
}

/// A family's routes of a result that are in the main table, with the gateways they go by.
fn main_routes(result: &AddResult, family: Family) -> Vec<(IpNet, Option<IpAddr>)> {
    let of_family = |gateway: &IpAddr| Family::of(*gateway) == family;
    let default = result.ips.iter().filter_map(|ip| ip.gateway).find(of_family);
    let is_main = |route: &&Route| {
        Family::of_net(route.dst) == family && route.table.is_none_or(|t| t == 0 || t == 254)
    };
    let wanted = result.routes.iter().filter(is_main);
    wanted.map(|route| (route.dst, route.gw.or(default))).collect()
}

fn compare_routes(
    have: &[(IpNet, Option<IpAddr>)],
    wanted: &[(IpNet, Option<IpAddr>)],
) -> Result<(), Failure> {
    for (dst, gateway) in wanted {
        if !have.contains(&(dst.trunc(), *gateway)) {
            let via = gateway.map_or_else(String::new, |gateway| format!(" via {gateway}"));
            return Err(Failure::internal(format!(
                "Expected Route {dst}{via} is not in the routing table"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::result::IpConfig;
    use fabric::object::{LinkName, Mac};

    fn result() -> AddResult {
        let interface = |name: &str| Interface {
            name: name.into(),
            ..Interface::default()
        };
        let ip = |interface, address: &str, gateway: &str| IpConfig {
            interface,
            address: address.parse().unwrap(),
            gateway: gateway.parse().ok(),
        };
        let route = |dst: &str, gw: &str, table| Route {
            table,
            ..Route::to(dst.parse().unwrap(), gw.parse().ok())
        };
        AddResult {
            interfaces: vec![interface("cni0"), interface("eth0")],
            ips: vec![
                ip(Some(1), "10.244.7.2/24", "10.244.7.1"),
                ip(None, "fd00::2/64", "fd00::1"),
                ip(Some(0), "10.244.7.1/24", ""),
                ip(Some(9), "10.9.0.2/24", ""),
            ],
            routes: vec![
                route("10.244.9.9/16", "", None),
                route("192.0.2.0/24", "10.244.7.9", Some(254)),
                route("198.51.100.0/24", "", Some(7)),
                route("203.0.113.0/24", "", Some(0)),
                route("fd00::/48", "", None),
            ],
            ..AddResult::default()
        }
    }

    #[test]
    fn addresses_when_the_interfaces_own_are_all_there_are_in_order() {
        let nets = |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|t| t.parse().unwrap()).collect() };
        let all = nets(&["fd00::2/64", "10.9.0.2/24", "10.244.7.2/24"]);
        assert_eq!(compare_addresses(&all, "eth0", &result()), Ok(()));
        let failure = compare_addresses(&all[..2], "eth0", &result()).unwrap_err();
        assert_eq!(
            failure.msg,
            "Failed to match addr 10.244.7.2/24 on interface eth0"
        );
        assert!(compare_addresses(&all[..1], "eth0", &result()).is_err());
        assert!(
            compare_addresses(
                &nets(&["10.244.7.2/16", "fd00::2/64", "10.9.0.2/24"]),
                "eth0",
                &result()
            )
            .is_err()
        );
    }

    #[test]
    fn routes_when_of_the_main_table_are_compared_by_destination_and_gateway() {
        let text = |routes: &[(IpNet, Option<IpAddr>)]| -> Vec<String> {
            routes
                .iter()
                .map(|(dst, gw)| format!("{dst} {}", gw.unwrap()))
                .collect()
        };
        let v4 = main_routes(&result(), Family::V4);
        assert_eq!(
            text(&v4),
            [
                "10.244.9.9/16 10.244.7.1",
                "192.0.2.0/24 10.244.7.9",
                "203.0.113.0/24 10.244.7.1"
            ]
        );
        assert_eq!(text(&main_routes(&result(), Family::V6)), ["fd00::/48 fd00::1"]);
        let have: Vec<(IpNet, Option<IpAddr>)> = v4.iter().map(|(dst, gw)| (dst.trunc(), *gw)).collect();
        assert_eq!(compare_routes(&have, &v4), Ok(()));
        let failure = compare_routes(&have[..1], &v4).unwrap_err();
        assert_eq!(
            failure.msg,
            "Expected Route 192.0.2.0/24 via 10.244.7.9 is not in the routing table"
        );
        let without = compare_routes(&have, &[(have[0].0, None)]).unwrap_err();
        assert_eq!(
            without.msg,
            "Expected Route 10.244.0.0/16 is not in the routing table"
        );
    }

    #[test]
    fn hardware_address_when_another_than_recorded_is_told() {
        let link = ObservedLink {
            index: 2,
            name: LinkName::new("eth0").unwrap(),
            kind: "veth".into(),
            mac: Some(Mac([2, 0, 0, 0, 0, 0xa])),
            mtu: 1450,
            flags: 0,
            master: None,
            lower: None,
            made_of: None,
            other_names: Vec::new(),
        };
        let other = |mac: &str| {
            let recorded = Interface {
                mac: mac.into(),
                ..Interface::default()
            };
            other_mac(&recorded, &link)
        };
        assert_eq!((other(""), other("02:00:00:00:00:0A")), (None, None));
        assert_eq!(other("02:00:00:00:00:0b").as_deref(), Some("02:00:00:00:00:0a"));
    }
}
