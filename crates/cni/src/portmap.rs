//! The plugin `portmap`: ports of the host lead to the container.

pub mod config;
pub mod conntrack;
pub mod forget;
pub mod iptables;
pub mod nft;
pub mod presence;

use std::io::Write;
use std::net::IpAddr;

use kernel::rtnl::Rtnl;

use crate::call::Call;
use crate::failure::Failure;
use crate::netfilter;
use crate::portmap::config::{Backend, Config, Mapping};
use crate::result::AddResult;
use crate::sysctl;

fn parse(call: &Call) -> Result<Config, Failure> {
    Config::load(call).map_err(|e| Failure {
        msg: format!("failed to parse config: {}", e.msg),
        ..e
    })
}

/// ADD: the rules; the result is the previous one.
pub fn add(call: &Call) -> Result<AddResult, Failure> {
    let config = parse(call)?;
    let Some(previous) = config.previous.clone() else {
        return Err(Failure::internal("must be called as chained plugin"));
    };
    if config.mappings.is_empty() {
        return Ok(previous);
    }
    let lock = netfilter::lock();
    if let Err(e) = forward(&config) {
        // A failed ADD leaves nothing.
        let _ = unforward(&config);
        return Err(Failure::internal(e));
    }
    drop(lock);
    forget_flows(&config);
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

fn forward(config: &Config) -> Result<(), String> {
    let addresses: Vec<ipnet::IpNet> = config.addresses.iter().flatten().copied().collect();
    match config.backend {
        Some(Backend::Iptables) => addresses
            .iter()
            .try_for_each(|address| iptables::forward(config, *address)),
        Some(Backend::Nftables) => nft::forward(config, &addresses),
        None => addresses.iter().try_for_each(|address| {
            iptables::forward(config, *address).or_else(|first| {
                // Only where nothing but nftables works; otherwise the first reason is the one to know.
                nft::forward(config, &[*address]).map_err(|_| first)
            })
        }),
    }
}

/// Removes the container's rules wherever an ADD of any configuration may have put them: today's backend and ports need not be
/// those of the ADD.
fn unforward(config: &Config) -> Result<(), String> {
    // A runtime that had ports sends them again, as a rule: without any the firewall's program is only asked where there is a reason.
    let of_iptables = match config.backend {
        Some(Backend::Nftables) => iptables::may_hold(config),
        _ => !config.mappings.is_empty() || iptables::may_hold(config),
    };
    let by_iptables = match of_iptables {
        true => iptables::unforward(config),
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
    let by_nft = nft::unforward(config);
    by_iptables.and(by_nft)
}

fn forget_flows(config: &Config) {
    for address in config.addresses.iter().flatten() {
        let v6 = address.addr().is_ipv6();
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
        if let Err(e) = conntrack::forget_udp(v6, &bound) {
            // A stale flow times out by itself.
            let _ = writeln!(
                std::io::stderr(),
                "failed to delete stale UDP conntrack entries for {}: {e}",
                address.addr()
            );
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
pub fn del(call: &Call) -> Result<(), Failure> {
    let config = Config::load_for_del(call);
    let _lock = netfilter::lock();
    unforward(&config).map_err(Failure::internal)
}

/// CHECK: every rule is there.
pub fn check(call: &Call) -> Result<(), Failure> {
    let config = Config::load(call)?;
    if config.previous.is_none() {
        return Err(Failure::internal("Required prevResult missing"));
    }
    if config.mappings.is_empty() {
        return Ok(());
    }
    for address in config.addresses.iter().flatten() {
        let checked = match config.backend {
            Some(Backend::Nftables) => nft::check(&config, *address),
            Some(Backend::Iptables) => iptables::check(&config, *address),
            None => iptables::check(&config, *address)
                .or_else(|first| nft::check(&config, *address).map_err(|_| first)),
        };
        checked.map_err(Failure::internal)?;
    }
    Ok(())
}

/// GC: the rules of containers of this network that are not listed go. nftables rules do not tell a network: they go when their
/// container still has an address reserved here, where nobody has collected that yet.
pub fn gc(call: &Call) -> Result<(), Failure> {
    let Some(valid) = crate::gc::valid_attachments(call)? else {
        return Ok(());
    };
    let gone = crate::gc::unlisted_by_default_store(&call.name, &valid)?;
    forget::forget(&call.name, &forget::Gone::among(&gone, &valid)).map_err(Failure::internal)?;
    let _lock = netfilter::lock();
    iptables::sweep(&call.name, |id| valid.iter().any(|owner| owner.container == id))
        .map_err(Failure::internal)
}
