//! The bridge itself: made when it is not there, with an address of its own, and the gateways' addresses on it.

use fabric::object::{Family, LinkName, Mac};
use ipnet::IpNet;
use kernel::rtnl::Rtnl;
use kernel::rtnl::bridge::PROMISC;
use kernel::rtnl::link::{LinkChange, ObservedLink, UP};
use kernel::sysctl;

use crate::bridge::add::first_of;
use crate::bridge::config::BridgeConfig;
use crate::bridge::del::is_global;
use crate::bridge::forwarding;
use crate::doors::Doors;
use crate::failure::Failure;
use crate::files;
use crate::netns::kernel_text;
use crate::result::AddResult;

/// The bridge, up; made when there is none.
///
/// # Errors
///
/// The kernel's refusal, or a device of this name that is no bridge.
pub fn ensure_bridge(host: &mut Rtnl, config: &BridgeConfig) -> Result<ObservedLink, Failure> {
    let name = config.bridge;
    let failed =
        |why: String| Failure::internal(format!("failed to create bridge {:?}: {why}", name.as_str()));
    let said = |e: kernel::NetlinkError| failed(kernel_text(&e));
    let get = |host: &mut Rtnl| host.port_by_name(name).map_err(said);
    let seen = match get(host)? {
        Some(seen) => seen,
        None => {
            // Given with the bridge, the address is its own from the beginning and does not follow its ports.
            let mac = if config.is_gateway {
                Some(random_mac().map_err(|e| failed(files::errno_text(e)))?)
            } else {
                None
            };
            match host.add_bridge(name, config.mtu, mac) {
                Ok(()) => {}
                Err(e) if e.is_exists() => {}
                Err(e) => {
                    return Err(failed(format!(
                        "could not add {:?}: {}",
                        name.as_str(),
                        kernel_text(&e)
                    )));
                }
            }
            get(host)?.ok_or_else(|| failed("it was removed as soon as it was made".to_owned()))?
        }
    };
    let link = seen.link;
    if &*link.kind != "bridge" {
        return Err(failed(format!(
            "{:?} already exists but is not a bridge",
            name.as_str()
        )));
    }
    // We want to own the routes of this link.
    let _ = sysctl::write(&format!("net/ipv6/conf/{name}/accept_ra"), "0");
    let wanted = UP | if config.promisc { PROMISC } else { 0 };
    if link.flags & wanted != wanted {
        host.raise_flags(link.index, wanted)
            .map_err(|e| failed(kernel_text(&e)))?;
    }
    Ok(link)
}

/// Sets the bridge's hardware address to what it is, so that it stays when ports come and go.
fn keep_mac(host: &mut Rtnl, bridge: &ObservedLink) -> Result<(), Failure> {
    if has_own_mac(bridge.name, bridge) {
        return Ok(());
    }
    let failed = |why: String| {
        Failure::internal(format!(
            "failed to set bridge addr: could not set bridge's mac: {why}"
        ))
    };
    let mac = match bridge.mac.filter(|mac| mac.0 != [0; 6]) {
        Some(mac) => mac,
        None => random_mac().map_err(|e| failed(files::errno_text(e)))?,
    };
    let change = LinkChange {
        mac: Some(mac),
        ..LinkChange::default()
    };
    host.set_link(bridge.index, change)
        .map_err(|e| failed(kernel_text(&e)))
}

/// The bridge's hardware address was set and so does not change with its ports (`NET_ADDR_SET`).
///
/// Only sysfs tells, and a sysfs of another namespace may be mounted; where it does not know the bridge nothing is changed:
/// setting the address anew costs every neighbour entry of the bridge.
fn has_own_mac(name: LinkName, link: &ObservedLink) -> bool {
    const SET: &str = "3";
    if link.mac.is_none_or(|mac| mac.0 == [0; 6]) {
        return false;
    }
    let read = |what: &str| std::fs::read_to_string(format!("/sys/class/net/{name}/{what}"));
    let Ok(kind) = read("addr_assign_type") else {
        return true;
    };
    kind.trim() == SET || read("ifindex").is_ok_and(|index| index.trim() != link.index.to_string())
}

/// A random address that is locally administered and of one station.
fn random_mac() -> Result<Mac, rustix::io::Errno> {
    let ([a, b, c, d], [e, f, ..]) = (files::random()?.to_ne_bytes(), files::random()?.to_ne_bytes());
    Ok(Mac([(a | 0x02) & 0xfe, b, c, d, e, f]))
}

/// The gateways' addresses on the bridge, and forwarding. `is_flannels`: an address of a former subnet makes way where nobody uses it.
///
/// # Errors
///
/// The kernel's refusal, or an address on the bridge that may not be replaced.
pub fn ensure_gateway(
    host: &mut Rtnl,
    config: &BridgeConfig,
    bridge: &ObservedLink,
    result: &AddResult,
    is_flannels: bool,
) -> Result<(), Failure> {
    let failed = |why: String| Failure::internal(format!("failed to set bridge addr: {why}"));
    let have = host
        .addresses(bridge.index)
        .map_err(|e| failed(format!("could not get list of IP addresses: {}", kernel_text(&e))))?;
    let have: Vec<IpNet> = have.iter().map(|a| a.address).collect();
    let all: Vec<IpNet> = result
        .ips
        .iter()
        .filter_map(|ip| IpNet::new(ip.gateway?, ip.address.prefix_len()).ok())
        .collect();
    if !all.is_empty() {
        // Also where somebody else has made the bridge and its address: it is the gateway's, which pods have learned.
        keep_mac(host, bridge)?;
    }
    for family in Family::BOTH {
        let mut gateways = all
            .iter()
            .filter(|net| Family::of_net(**net) == family)
            .peekable();
        if gateways.peek().is_none() {
            continue;
        }
        if family == Family::V6 {
            enable_ipv6(config.bridge)?;
        }
        for gateway in gateways {
            if have.contains(gateway) {
                continue;
            }
            for other in others(&have, *gateway) {
                if !(config.force_address || is_flannels && is_left_over(host, bridge, other)) {
                    let failure = failed(format!(
                        "{:?} already has an IP address different from {gateway}",
                        config.bridge.as_str()
                    ));
                    return Err(failure.with_details(cure(config.bridge, other)));
                }
                host.delete_address(bridge.index, other).map_err(|e| {
                    failed(format!(
                        "could not remove IP address from {:?}: {}",
                        config.bridge.as_str(),
                        kernel_text(&e)
                    ))
                })?;
            }
            host.add_gateway(bridge.index, *gateway).map_err(|e| {
                failed(format!(
                    "could not add IP address {gateway} to {:?}: {}",
                    config.bridge.as_str(),
                    kernel_text(&e)
                ))
            })?;
        }
        forwarding::enable(host, family)?;
    }
    Ok(())
}

/// Addresses that do not go together with a gateway's. IPv6 networks may stand beside each other as long as they do not overlap.
fn others(have: &[IpNet], gateway: IpNet) -> Vec<IpNet> {
    let family = Family::of_net(gateway);
    let apart = |other: &IpNet| !other.contains(&gateway.addr()) && !gateway.contains(&other.addr());
    have.iter()
        .copied()
        .filter(|other| Family::of_net(*other) == family && *other != gateway)
        .filter(|other| family == Family::V4 || !apart(other))
        .collect()
}

/// An address is a gateway's, the first of its network, and no container has one in that: it is of a subnet that this host had before.
fn is_left_over(host: &mut Rtnl, bridge: &ObservedLink, address: IpNet) -> bool {
    address.addr() == first_of(address) && !is_used(host, bridge.index, address)
}

/// A port of the bridge leads to an address in a network, or to where none is to be seen: a sandbox may have taken it off.
fn is_used(host: &mut Rtnl, bridge: u32, network: IpNet) -> bool {
    let look = |host: &mut Rtnl| Ok::<_, kernel::NetlinkError>((Doors::open(host)?, host.links()?));
    let Ok((doors, links)) = look(host) else {
        return true;
    };
    links
        .iter()
        .filter(|link| link.master == Some(bridge))
        .any(|port| {
            let door = doors.list.iter().find(|door| door.link.index == port.index);
            let beyond = door.and_then(|door| doors.beyond.get(&door.namespace)?.as_ref().ok());
            let addresses = beyond.into_iter().flatten().filter(|ip| is_global(**ip));
            let mut addresses = addresses.peekable();
            addresses.peek().is_none() || addresses.any(|ip| network.contains(ip))
        })
}

fn cure(bridge: LinkName, other: IpNet) -> String {
    format!(
        "{bridge} has {other}, as of a subnet that this host had before, and containers use it: once they are gone the address \
         makes way by itself; `ip address del {other} dev {bridge}` takes it from them at once, as \"forceAddress\": true does"
    )
}

/// Why every ADD would be refused: an address of the bridge that is in use and goes together with none of these gateways.
///
/// # Errors
///
/// Names the address, and the cure.
pub fn check_gateways(config: &BridgeConfig, gateways: &[IpNet]) -> Result<(), Failure> {
    if config.force_address || !config.is_gateway {
        return Ok(());
    }
    // What cannot be asked is no reason against the host.
    let Ok(mut host) = Rtnl::open() else { return Ok(()) };
    let Ok(Some(bridge)) = host.link_by_name(config.bridge) else {
        return Ok(());
    };
    let have = host.addresses(bridge.index).unwrap_or_default();
    let have: Vec<IpNet> = have.iter().map(|a| a.address).collect();
    for gateway in gateways.iter().filter(|gateway| !have.contains(gateway)) {
        for other in others(&have, *gateway) {
            let in_use = host
                .links()
                .is_ok_and(|links| links.iter().any(|l| l.master == Some(bridge.index)));
            if other.addr() != first_of(other) || in_use {
                let name = config.bridge.as_str();
                let msg = format!("{name:?} already has an IP address different from {gateway}");
                return Err(Failure::internal(msg).with_details(cure(config.bridge, other)));
            }
        }
    }
    Ok(())
}

/// The bridge takes IPv6 addresses.
fn enable_ipv6(bridge: LinkName) -> Result<(), Failure> {
    let name = format!("net/ipv6/conf/{bridge}/disable_ipv6");
    sysctl::set(&name, "0").map(drop).map_err(|e| {
        Failure::internal(format!(
            "failed to set bridge addr: IPv6 is off on {:?} and cannot be switched on (sysctl {name}): {e}",
            bridge.as_str()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_of_the_bridge_when_it_goes_together_with_the_gateway_stays() {
        let nets = |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|t| t.parse().unwrap()).collect() };
        let have = nets(&[
            "10.244.7.1/24",
            "10.9.0.1/24",
            "fd00::1/64",
            "fd00:0:0:9::1/64",
            "fd00::1/48",
        ]);
        let of = |gateway: &str| -> Vec<String> {
            others(&have, gateway.parse().unwrap())
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(of("10.244.7.1/24"), ["10.9.0.1/24"]);
        assert_eq!(of("10.244.8.1/24"), ["10.244.7.1/24", "10.9.0.1/24"]);
        // IPv6 networks stand beside each other unless one holds the other.
        assert_eq!(of("fd00::1/64"), ["fd00::1/48"]);
        assert_eq!(of("fd01::1/64"), Vec::<String>::new());
        assert_eq!(of("fd00:0:0:8::1/64"), ["fd00::1/48"]);
        assert_eq!(
            of("fd00:0:0:7::1/32"),
            ["fd00::1/64", "fd00:0:0:9::1/64", "fd00::1/48"]
        );
        let words = cure(LinkName::new("cni0").unwrap(), have[0]);
        assert!(
            words.contains("`ip address del 10.244.7.1/24 dev cni0`"),
            "{words}"
        );
    }

    #[test]
    fn hardware_address_when_random_is_locally_administered_and_of_one_station() {
        for _ in 0..64 {
            let mac = random_mac().unwrap();
            assert_eq!(mac.0[0] & 0x03, 0x02, "{mac}");
        }
        assert_ne!(random_mac(), random_mac());
    }

    #[test]
    fn hardware_address_when_unknown_or_zero_is_not_its_own_and_where_sysfs_knows_nothing_it_is_left_alone() {
        let link = |mac| ObservedLink {
            index: 2,
            name: LinkName::new("nosuchbridge0").unwrap(),
            kind: "bridge".into(),
            mac,
            mtu: 1500,
            flags: 0,
            master: None,
            lower: None,
            made_of: None,
            other_names: Vec::new(),
        };
        let own = |mac| has_own_mac(link(mac).name, &link(mac));
        assert!(!own(None) && !own(Some(Mac([0; 6]))));
        assert!(own(Some(Mac([2; 6]))));
    }
}
