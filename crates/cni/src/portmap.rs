//! The plugin `portmap`: ports of the host lead to the container.

pub mod config;
pub mod conntrack;
pub mod gone;
pub mod iptables;
pub mod nft;
pub mod presence;

use std::net::IpAddr;

use kernel::rtnl::Rtnl;
use kernel::sysctl;

use crate::call::Call;
use crate::failure::Failure;
use crate::gc::valid_attachments;
use crate::host_local::unlisted::unlisted_by_default_store;
use crate::netfilter::{self, Firewall, FirewallError};
use crate::notice::say;
use crate::offer::{self, Offer};
use crate::owner::{Holding, Owner};
use crate::portmap::config::{Backend, Mapping, PortmapConfig};
use crate::result::AddResult;
use crate::version;

/// The plugin's verbs.
pub const OFFER: Offer = Offer {
    name: "portmap",
    versions: &version::SUPPORTED,
    add: |call| add(call)?.print(&call.version),
    del,
    check,
    status: offer::nothing,
    gc,
};

fn parse(call: &Call) -> Result<PortmapConfig, Failure> {
    PortmapConfig::load(call).map_err(|e| Failure {
        msg: format!("failed to parse config: {}", e.msg),
        ..e
    })
}

/// ADD: the rules; the result is the previous one.
///
/// # Errors
///
/// A wrong configuration, or the firewall program's words, code 11 when it or the lock took too long; the rules are gone again
/// then.
pub fn add(call: &Call) -> Result<AddResult, Failure> {
    let config = parse(call)?;
    let Some(previous) = config.previous.clone() else {
        return Err(Failure::internal("must be called as chained plugin"));
    };
    if config.mappings.is_empty() {
        return Ok(previous);
    }
    let mut firewall = Firewall::begin()?;
    if let Err(e) = forward(&firewall, &config) {
        // A failed ADD leaves nothing.
        firewall.begin_undoing();
        let _ = unforward(&firewall, &config);
        return Err(e.into());
    }
    drop(firewall);
    let families = config.addresses.iter().flatten().map(|a| a.addr().is_ipv6());
    delete_flows(&config, families);
    if let Some(address) = config
        .addresses
        .first()
        .copied()
        .flatten()
        .filter(|_| config.snat)
    {
        // So that packets from the host's 127.0.0.1 may cross to the container.
        if let Some(link) = link_towards(address.addr()) {
            sysctl::ensure(&format!("net/ipv4/conf/{link}/route_localnet"), "1")
                .map_err(|e| Failure::internal(format!("unable to enable route_localnet: {e}")))?;
        }
    }
    Ok(previous)
}

fn forward(firewall: &Firewall, config: &PortmapConfig) -> Result<(), FirewallError> {
    let addresses: Vec<ipnet::IpNet> = config.addresses.iter().flatten().copied().collect();
    match config.backend {
        Some(Backend::Iptables) => addresses
            .iter()
            .try_for_each(|address| iptables::forward(firewall, config, *address)),
        Some(Backend::Nftables) => nft::forward(firewall, config, &addresses),
        None => addresses.iter().try_for_each(|address| {
            iptables::forward(firewall, config, *address).or_else(|first| {
                // Only where nothing but nftables works; otherwise the first reason is the one to know.
                nft::forward(firewall, config, &[*address]).map_err(|_| first)
            })
        }),
    }
}

/// Removes the container's rules wherever an ADD of any configuration may have put them: today's backend and ports need not be
/// those of the ADD.
fn unforward(firewall: &Firewall, config: &PortmapConfig) -> Result<(), FirewallError> {
    // A runtime that had ports sends them again, as a rule: without any the firewall's program is only asked where there is a reason.
    let of_iptables = match config.backend {
        Some(Backend::Nftables) => iptables::may_hold(config),
        _ => !config.mappings.is_empty() || iptables::may_hold(config),
    };
    let by_iptables = match of_iptables {
        true => iptables::unforward(firewall, config),
        false => Ok(()),
    };
    // One that cannot be used matters as long as something may be there.
    let by_iptables = by_iptables.or_else(|e| {
        if iptables::may_hold(config) {
            Err(e)
        } else {
            Ok(())
        }
    });
    let by_nft = nft::unforward(firewall, config);
    by_iptables.and(by_nft)
}

/// Deletes UDP flows to the ports of the host in these families.
fn delete_flows(config: &PortmapConfig, families: impl Iterator<Item = bool>) {
    for v6 in families {
        let udp = |m: &&Mapping| m.protocol.eq_ignore_ascii_case("udp") && m.is_for(v6);
        let bound: Vec<(Option<IpAddr>, u16)> = config
            .mappings
            .iter()
            .filter(udp)
            .map(|m| (m.bound_to(), m.host_port))
            .collect();
        if bound.is_empty() {
            continue;
        }
        if let Err(e) = conntrack::delete_udp_flows(v6, &bound) {
            // A stale flow times out by itself.
            let family = if v6 { "IPv6" } else { "IPv4" };
            say(&format!(
                "failed to delete stale UDP conntrack entries of {family}: {e}"
            ));
        }
    }
}

/// Name of the link the host reaches an address by.
fn link_towards(ip: IpAddr) -> Option<String> {
    let mut host = Rtnl::open().ok()?;
    let index = host.lookup(ip).ok()??.link?;
    Some(host.link_by_index(index).ok()??.name.to_string())
}

/// DEL: the container's rules; none is fine.
///
/// A runtime that had mappings need not send them again: Multus has forgotten by then what a pod asked for. A configuration that an
/// ADD has refused keeps nothing from going, nor the DELs of the plugins before this one.
///
/// # Errors
///
/// The firewall program's words; code 11 when it or the lock took too long.
pub fn del(call: &Call) -> Result<(), Failure> {
    let config = PortmapConfig::load_for_del(call);
    if config.mappings.is_empty() {
        netfilter::settle();
        // Most containers have no ports. None of their DELs is to wait for those who rewrite the firewall.
        if !iptables::may_hold(&config) && !nft::has_rules(&config)? {
            return Ok(());
        }
    }
    let mut firewall = Firewall::begin()?;
    firewall.begin_undoing();
    let mut pods: Vec<IpAddr> = config.addresses.iter().flatten().map(|a| a.addr()).collect();
    if pods.is_empty() {
        if iptables::may_hold(&config) {
            pods = iptables::published_at(&firewall, &config);
        }
        pods.extend(nft::published_at(&firewall, &config.container));
    }
    unforward(&firewall, &config)?;
    drop(firewall);
    let is_udp = |m: &Mapping| m.protocol.eq_ignore_ascii_case("udp");
    if config.mappings.is_empty() || config.mappings.iter().any(is_udp) {
        gone::forget_flows(&pods);
    }
    if pods.is_empty() {
        // Nobody tells where they lead: whoever goes on sending begins anew.
        delete_flows(&config, [false, true].into_iter());
    }
    Ok(())
}

/// CHECK: every rule is there.
///
/// # Errors
///
/// The rules that are missing.
pub fn check(call: &Call) -> Result<(), Failure> {
    let config = PortmapConfig::load(call)?;
    if config.previous.is_none() {
        return Err(Failure::internal("Required prevResult missing"));
    }
    if config.mappings.is_empty() {
        return Ok(());
    }
    let firewall = Firewall::to_look_at();
    for address in config.addresses.iter().flatten() {
        let checked = match config.backend {
            Some(Backend::Nftables) => nft::check(&config, *address),
            Some(Backend::Iptables) => iptables::check(&firewall, &config, *address),
            None => iptables::check(&firewall, &config, *address)
                .or_else(|first| nft::check(&config, *address).map_err(|_| first)),
        };
        checked?;
    }
    Ok(())
}

/// GC: the rules of containers of this network that are not listed go. nftables rules do not tell a network: they go when their
/// container still has an address reserved here, where nobody has collected that yet.
///
/// # Errors
///
/// A list that cannot be read, and what could not be removed.
pub fn gc(call: &Call) -> Result<(), Failure> {
    let Some(valid) = valid_attachments(call)? else {
        return Ok(());
    };
    let gone = unlisted_by_default_store(&call.name, &valid)?;
    remove_of(&call.name, &gone, &valid)?;
    let firewall = Firewall::begin()?;
    let keep = |id: &str| valid.iter().any(|owner| owner.container == id);
    Ok(iptables::sweep(&firewall, &call.name, keep)?)
}

/// Removes the rules that publish ports of containers of which no attachment stays, in a network.
///
/// # Errors
///
/// What could not be removed.
pub fn remove_of(network: &str, gone: &[Holding], valid: &[Owner]) -> Result<(), Failure> {
    Ok(gone::remove_rules(network, &gone::Gone::among(gone, valid))?)
}

/// The bytes of a netlink attribute, for the tests of those who read them.
#[cfg(test)]
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
