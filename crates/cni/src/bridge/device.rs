//! The bridge itself: made when it is not there, with an address of its own, and the gateways' addresses on it.

use fabric::object::{Family, LinkName, Mac};
use ipnet::IpNet;
use kernel::rtnl::Rtnl;
use kernel::rtnl::bridge::PROMISC;
use kernel::rtnl::link::{LinkChange, ObservedLink, UP};

use crate::bridge::config::Config;
use crate::failure::Failure;
use crate::files;
use crate::netns::kernel_text;
use crate::result::AddResult;
use crate::sysctl;

/// The bridge, up; made when there is none.
pub fn ensure_bridge(host: &mut Rtnl, config: &Config) -> Result<ObservedLink, Failure> {
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

/// The gateways' addresses on the bridge, and forwarding.
pub fn ensure_gateway(
    host: &mut Rtnl,
    config: &Config,
    bridge: &ObservedLink,
    result: &AddResult,
) -> Result<(), Failure> {
    let failed = |why: String| Failure::internal(format!("failed to set bridge addr: {why}"));
    let have = host
        .addresses(bridge.index)
        .map_err(|e| failed(format!("could not get list of IP addresses: {}", kernel_text(&e))))?;
    for family in Family::BOTH {
        let of_family = |net: &IpNet| Family::of_net(*net) == family;
        let gateways = result
            .ips
            .iter()
            .filter_map(|ip| IpNet::new(ip.gateway?, ip.address.prefix_len()).ok());
        let gateways: Vec<IpNet> = gateways.filter(of_family).collect();
        for gateway in &gateways {
            let present = || have.iter().map(|a| a.address).filter(of_family);
            if present().any(|address| address == *gateway) {
                continue;
            }
            for other in present() {
                // IPv6 networks may stand beside each other as long as they do not overlap.
                if family == Family::V6
                    && !other.contains(&gateway.addr())
                    && !gateway.contains(&other.addr())
                {
                    continue;
                }
                if !config.force_address {
                    return Err(failed(format!(
                        "{:?} already has an IP address different from {gateway}",
                        config.bridge.as_str()
                    )));
                }
                host.delete_address(bridge.index, other).map_err(|e| {
                    failed(format!(
                        "could not remove IP address from {:?}: {}",
                        config.bridge.as_str(),
                        kernel_text(&e)
                    ))
                })?;
            }
            keep_mac(host, bridge)?;
            host.add_gateway(bridge.index, *gateway).map_err(|e| {
                failed(format!(
                    "could not add IP address {gateway} to {:?}: {}",
                    config.bridge.as_str(),
                    kernel_text(&e)
                ))
            })?;
        }
        if gateways.is_empty() {
            continue;
        }
        let forwarding = match family {
            Family::V4 => "net/ipv4/ip_forward",
            Family::V6 => "net/ipv6/conf/all/forwarding",
        };
        sysctl::ensure(forwarding, "1")
            .map_err(|e| Failure::internal(format!("failed to enable forwarding: {e}")))?;
    }
    Ok(())
}
