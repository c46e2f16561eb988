//! DEL: the link, then the addresses, then the masquerading. Whatever is gone already is fine.

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::rtnl::Rtnl;

use crate::bridge::config::Config;
use crate::bridge::masquerade::{self, Masquerade};
use crate::bridge::{HOST_LOCAL, link_name};
use crate::call::{Call, Verb};
use crate::delegate;
use crate::failure::Failure;
use crate::host_local::{
    self,
    config::Config as HostLocal,
    store::{Owner, Store},
};
use crate::netns::{self, Sides, kernel_text};

/// Detaches a container.
pub fn del(call: &Call) -> Result<(), Failure> {
    let config = Config::load(call)?;
    let native = if config.ipam == HOST_LOCAL {
        Some(HostLocal::load(call)?)
    } else {
        None
    };
    let mut addresses = remove_link(call, config.bridge.as_str())?;
    let mut hints: Vec<IpAddr> = Vec::new();
    if let Some(ipam) = &native {
        // Known from the store also where the link is gone.
        let reserved = held(call, ipam)?;
        hints.extend(addresses.iter().map(IpNet::addr));
        let ranges = |ip: &IpAddr| ipam.sets.iter().find_map(|set| set.range_for(*ip));
        for ip in reserved.iter().filter(|ip| !hints.contains(ip)) {
            let length = ranges(ip).map_or(IpNet::from(*ip).prefix_len(), |range| range.subnet.prefix_len());
            addresses.extend(IpNet::new(*ip, length).ok());
        }
    }
    let unmasquerade = || -> Result<(), Failure> {
        if !config.ip_masq || config.ipam.is_empty() {
            return Ok(());
        }
        let others = match &native {
            Some(ipam) if addresses.is_empty() => others(call, &ipam.data_dir)?,
            _ => Vec::new(),
        };
        let masquerade = Masquerade::of(call, config.masq_backend.as_deref());
        masquerade::teardown(&masquerade, &addresses, &others)
    };
    // The reservation last: as long as it is there, whoever looks for what the dead have left finds the rest by it.
    let unmasqueraded = unmasquerade();
    if let Some(ipam) = &native {
        host_local::release(&ipam.data_dir, &ipam.network, &host_local::owner_of(call), &hints)?;
    } else if !config.ipam.is_empty() {
        delegate::run(&config.ipam, Verb::Del, &call.stdin, &call.env)?;
    }
    unmasqueraded
}

/// Removes what a container has here when its configuration is not known: reservations in a network's store, masquerading (where
/// there may be some), and the link if it is ours. That it is ours is known by a reservation, or by its other end being a port of
/// the bridge: another plugin's interface of the same name stays.
pub fn clean_up(
    call: &Call,
    data_dir: &str,
    bridge: &str,
    masquerading: Option<Option<String>>,
) -> Result<(), Failure> {
    let owner = host_local::owner_of(call);
    let reserved = match Store::open(data_dir, &call.name)? {
        Some(mut store) => store.held_by(&owner)?,
        None => Vec::new(),
    };
    let mut addresses: Vec<IpNet> = Vec::new();
    if !reserved.is_empty() || is_port_of(call, bridge)? {
        addresses = remove_link(call, bridge)?;
    }
    addresses.extend(reserved.iter().map(|ip| IpNet::from(*ip)));
    let unmasquerade = |backend: Option<String>| -> Result<(), Failure> {
        let others = match addresses.as_slice() {
            [] => others(call, data_dir)?,
            _ => Vec::new(),
        };
        masquerade::teardown(&Masquerade::of(call, backend.as_deref()), &addresses, &others)
    };
    let unmasqueraded = masquerading.map_or(Ok(()), unmasquerade);
    host_local::release(data_dir, &call.name, &owner, &[])?;
    unmasqueraded
}

/// Addresses of the container's other attachments in the network, whose masquerading has to stay.
fn others(call: &Call, data_dir: &str) -> Result<Vec<IpAddr>, Failure> {
    let own = host_local::owner_of(call);
    let Some(mut store) = Store::open(data_dir, &call.name)? else {
        return Ok(Vec::new());
    };
    let all = store.all()?.into_iter();
    let of_container = all.filter(|(owner, _)| owner.container == own.container && *owner != own);
    Ok(of_container.flat_map(|(_, ips)| ips).collect())
}

/// The container's link is a veth whose other end is a port of the bridge.
fn is_port_of(call: &Call, bridge: &str) -> Result<bool, Failure> {
    let (Ok(name), Ok(bridge)) = (link_name(&call.env.ifname), link_name(bridge)) else {
        return Ok(false);
    };
    if call.env.netns.is_empty() {
        return Ok(false);
    }
    let Some(pod) = netns::open_leftover(&call.env.netns)? else {
        return Ok(false);
    };
    let said = |e: kernel::NetlinkError| Failure::internal(kernel_text(&e));
    let sides = Sides::new(pod)?;
    let inner = sides
        .inside(Rtnl::open)?
        .map_err(said)?
        .link_by_name(name)
        .map_err(said)?;
    let Some(inner) = inner.filter(|link| &*link.kind == "veth") else {
        return Ok(false);
    };
    let mut host = Rtnl::open().map_err(said)?;
    let Some(bridge) = host.link_by_name(bridge).map_err(said)? else {
        return Ok(false);
    };
    let Some(outer) = inner.lower else {
        return Ok(false);
    };
    let outer = host.link_by_index(outer).map_err(said)?;
    Ok(outer.is_some_and(|outer| {
        // Indices of different namespaces may be equal by chance: each end has to name the other.
        &*outer.kind == "veth" && outer.lower == Some(inner.index) && outer.master == Some(bridge.index)
    }))
}

fn held(call: &Call, ipam: &HostLocal) -> Result<Vec<IpAddr>, Failure> {
    match Store::open(&ipam.data_dir, &ipam.network)? {
        Some(mut store) => Ok(store.held_by(&host_local::owner_of(call))?),
        None => Ok(Vec::new()),
    }
}

/// Removes the container's link; returns the global addresses it had.
fn remove_link(call: &Call, bridge: &str) -> Result<Vec<IpNet>, Failure> {
    let name = link_name(&call.env.ifname)?;
    let said = |what: &str, e: kernel::NetlinkError| {
        Failure::internal(format!(
            "failed to {what} {:?}: {}",
            name.as_str(),
            kernel_text(&e)
        ))
    };
    let pod = if call.env.netns.is_empty() {
        None
    } else {
        netns::open_leftover(&call.env.netns)?
    };
    if let Some(pod) = pod {
        let mut pod = Sides::new(pod)?
            .inside(Rtnl::open)?
            .map_err(|e| said("look at", e))?;
        if let Some(link) = pod.link_by_name(name).map_err(|e| said("lookup", e))? {
            let addresses = pod
                .addresses(link.index)
                .map_err(|e| said("get IP addresses for", e))?;
            pod.delete_link_by_name(name).map_err(|e| said("delete", e))?;
            return Ok(addresses
                .into_iter()
                .map(|a| a.address)
                .filter(|a| is_global(a.addr()))
                .collect());
        }
    }
    remove_host_end(&host_local::owner_of(call), bridge).map(|()| Vec::new())
}

/// Removes the host's end by its name, where the container's is out of sight: a namespace that lives on under no path would keep
/// an address that is about to be handed out again.
pub(super) fn remove_host_end(owner: &Owner, bridge: &str) -> Result<(), Failure> {
    let (Ok(name), Ok(bridge)) = (super::host_end(owner), link_name(bridge)) else {
        return Ok(());
    };
    let remove = || -> Result<(), kernel::NetlinkError> {
        let mut host = Rtnl::open()?;
        let Some(link) = host.link_by_name(name)? else {
            return Ok(());
        };
        let master = host.link_by_name(bridge)?.map(|bridge| bridge.index);
        if &*link.kind == "veth" && master.is_some() && link.master == master {
            host.delete_link_by_name(name)?;
        }
        Ok(())
    };
    remove().map_err(|e| {
        Failure::internal(format!(
            "failed to delete {:?}: {}",
            name.as_str(),
            kernel_text(&e)
        ))
    })
}

fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            !v4.is_link_local() && !v4.is_loopback() && !v4.is_multicast() && !v4.is_broadcast()
        }
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_loopback() && !v6.is_multicast(),
    }
}
