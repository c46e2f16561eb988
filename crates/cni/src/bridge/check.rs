//! CHECK: the attachment is what its result says. Only what every implementation's ADD guarantees is looked at.

use std::net::IpAddr;

use fabric::object::Family;
use ipnet::IpNet;
use kernel::rtnl::Rtnl;
use kernel::rtnl::link::ObservedLink;

use crate::bridge::config::Config;
use crate::bridge::{HOST_LOCAL, link_name};
use crate::call::{Call, Verb};
use crate::delegate;
use crate::failure::Failure;
use crate::host_local;
use crate::netns::{self, Sides, kernel_text};
use crate::result::{AddResult, Interface, Route};

/// Compares an attachment with the result in its configuration.
pub fn check(call: &Call) -> Result<(), Failure> {
    let config = Config::load(call)?;
    let pod = netns::open(&call.env.netns)?.ok_or_else(|| netns::missing(&call.env.netns))?;
    match config.ipam.as_str() {
        // COMPAT: Go's plugin looks for an IPAM plugin without a name; a link without addresses needs none.
        "" => {}
        HOST_LOCAL => host_local::check(call)?,
        other => drop(delegate::run(other, Verb::Check, &call.stdin, &call.env)?),
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
    config: &Config,
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
    let own = |interface: Option<i64>| {
        let index = interface.and_then(|i| usize::try_from(i).ok());
        index
            .and_then(|i| result.interfaces.get(i))
            .is_none_or(|i| i.name == name)
    };
    for ip in result.ips.iter().filter(|ip| own(ip.interface)) {
        if !have.iter().any(|a| a.address == ip.address) {
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
        let wanted: Vec<&Route> = result
            .routes
            .iter()
            .filter(|route| {
                Family::of_net(route.dst) == family && route.table.is_none_or(|t| t == 0 || t == 254)
            })
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let have = pod
            .routes(family, Some(link.index))
            .map_err(|e| Failure::internal(kernel_text(&e)))?;
        let of_family = |gateway: &IpAddr| Family::of(*gateway) == family;
        let default = result.ips.iter().filter_map(|ip| ip.gateway).find(of_family);
        for route in wanted {
            let gateway = route.gw.or(default);
            let there =
                |destination: IpNet, via: Option<IpAddr>| destination == route.dst.trunc() && via == gateway;
            if !have.iter().any(|r| there(r.destination, r.gateway)) {
                let via = gateway.map_or_else(String::new, |gateway| format!(" via {gateway}"));
                return Err(Failure::internal(format!(
                    "Expected Route {}{via} is not in the routing table",
                    route.dst
                )));
            }
        }
    }
    Ok(())
}
