//! DEL: the link, then the addresses, then the masquerading. Whatever is gone already is fine.

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::rtnl::Rtnl;

use crate::bridge::config::{BridgeConfig, Ipam};
use crate::bridge::masquerade::{self, Masquerade, MasqueradeBackend};
use crate::call::{Call, Verb};
use crate::delegate;
use crate::failure::Failure;
use crate::host_local;
use crate::host_local::config::HostLocalConfig;
use crate::host_local::store::Store;
use crate::links::{host_end, link_name};
use crate::netns::{self, Sides, kernel_text};
use crate::owner::Owner;
use crate::portmap::gone;

/// Detaches a container.
///
/// # Errors
///
/// What could not be removed. The reservation goes last, so that another DEL finds what is left.
pub fn del(call: &Call) -> Result<(), Failure> {
    let config = BridgeConfig::load(call)?;
    let native = if config.ipam == Ipam::HostLocal {
        Some(HostLocalConfig::load_for_del(call)?)
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
        if !config.ip_masq || config.ipam == Ipam::None {
            return Ok(());
        }
        let others = match &native {
            Some(ipam) if addresses.is_empty() => others(call, &ipam.data_dir)?,
            _ => Vec::new(),
        };
        let masquerade = Masquerade::of(call, config.masq_backend.clone());
        masquerade::teardown(&masquerade, &addresses, &others)
    };
    let ips: Vec<IpAddr> = addresses.iter().map(IpNet::addr).collect();
    gone::unpublish(&call.env.container_id, &ips)?;
    // The reservation last: as long as it is there, whoever looks for what the dead have left finds the rest by it.
    let unmasqueraded = unmasquerade();
    if let Some(ipam) = &native {
        host_local::release(&ipam.data_dir, &ipam.network, &Owner::of(call), &hints)?;
    } else if let Ipam::Plugin(plugin) = &config.ipam {
        delegate::run(plugin, Verb::Del, &call.stdin, &call.env)?;
    }
    unmasqueraded
}

/// Removes what a container has here when its configuration is not known: reservations in a network's store, masquerading (where
/// there may be some), and the link if it is ours. That it is ours is known by a reservation, or by its other end being a port of
/// the bridge: another plugin's interface of the same name stays.
///
/// # Errors
///
/// What could not be removed.
pub fn clean_up(
    call: &Call,
    data_dir: &str,
    bridge: &str,
    masquerading: Option<Option<MasqueradeBackend>>,
) -> Result<(), Failure> {
    let owner = Owner::of(call);
    let reserved = match Store::open(data_dir, &call.name)? {
        Some(mut store) => store.held_by(&owner)?,
        None => Vec::new(),
    };
    let mut addresses: Vec<IpNet> = Vec::new();
    if !reserved.is_empty() || is_port_of(call, bridge)? {
        addresses = remove_link(call, bridge)?;
    }
    addresses.extend(reserved.iter().map(|ip| IpNet::from(*ip)));
    let unmasquerade = |backend: Option<MasqueradeBackend>| -> Result<(), Failure> {
        let others = match addresses.as_slice() {
            [] => others(call, data_dir)?,
            _ => Vec::new(),
        };
        masquerade::teardown(&Masquerade::of(call, backend), &addresses, &others)
    };
    let ips: Vec<IpAddr> = addresses.iter().map(IpNet::addr).collect();
    gone::unpublish(&call.env.container_id, &ips)?;
    let unmasqueraded = masquerading.map_or(Ok(()), unmasquerade);
    host_local::release(data_dir, &call.name, &owner, &[])?;
    unmasqueraded
}

/// Addresses of the container's other attachments in the network, whose masquerading has to stay.
fn others(call: &Call, data_dir: &str) -> Result<Vec<IpAddr>, Failure> {
    let own = Owner::of(call);
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

fn held(call: &Call, ipam: &HostLocalConfig) -> Result<Vec<IpAddr>, Failure> {
    match Store::open(&ipam.data_dir, &ipam.network)? {
        Some(mut store) => Ok(store.held_by(&Owner::of(call))?),
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
    remove_host_end(&Owner::of(call), bridge).map(|()| Vec::new())
}

/// Removes the host's end by its name, where the container's is out of sight: a namespace that lives on under no path would keep
/// an address that is about to be handed out again.
pub(super) fn remove_host_end(owner: &Owner, bridge: &str) -> Result<(), Failure> {
    let (Ok(name), Ok(bridge)) = (host_end(owner), link_name(bridge)) else {
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

pub(super) fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            !v4.is_link_local() && !v4.is_loopback() && !v4.is_multicast() && !v4.is_broadcast()
        }
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_loopback() && !v6.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::call::Environment;

    #[test]
    fn address_when_a_container_can_have_it_among_others_is_global() {
        for (ip, global) in [
            ("10.244.7.2", true),
            ("169.254.1.1", false),
            ("127.0.0.1", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("fd00::2", true),
            ("2001:db8::1", true),
            ("fe80::1", false),
            ("::1", false),
            ("ff02::1", false),
        ] {
            assert_eq!(is_global(ip.parse().unwrap()), global, "{ip}");
        }
    }

    fn call(folder: &tempfile::TempDir, netns: &str) -> Call {
        let env = Environment {
            command: "DEL".into(),
            container_id: "c1".into(),
            ifname: "eth0".into(),
            netns: netns.into(),
            ..Environment::default()
        };
        let dir = folder.path().display();
        let stdin = format!(
            r#"{{"name":"n","cniVersion":"1.0.0","ipam":{{"type":"host-local","dataDir":"{dir}","ranges":[[{{"subnet":"10.0.0.0/24"}}]]}}}}"#
        );
        Call::check(env, stdin.into_bytes()).unwrap()
    }

    #[test]
    fn addresses_when_held_are_told_apart_by_attachment() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().to_str().unwrap();
        let call = call(&folder, "");
        let ipam = HostLocalConfig::load(&call).unwrap();
        assert!(held(&call, &ipam).unwrap().is_empty() && others(&call, dir).unwrap().is_empty());
        for (container, ifname, ip) in [
            ("c1", "eth0", "10.0.0.2"),
            ("c1", "net1", "10.0.0.3"),
            ("c2", "eth0", "10.0.0.4"),
        ] {
            let mut store = Store::create(dir, "n").unwrap();
            let candidates = std::iter::once((ip.parse().unwrap(), ()));
            store
                .reserve(&Owner::new(container, ifname), candidates, |_| false)
                .unwrap();
        }
        let ips = |ips: Vec<IpAddr>| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(ips(held(&call, &ipam).unwrap()), ["10.0.0.2"]);
        assert_eq!(ips(others(&call, dir).unwrap()), ["10.0.0.3"]);
    }

    #[test]
    fn link_when_its_namespace_is_not_there_is_no_port_of_any_bridge() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(is_port_of(&call(&folder, ""), "cni0"), Ok(false));
        assert_eq!(is_port_of(&call(&folder, "/nonexistent/ns"), "cni0"), Ok(false));
        assert_eq!(is_port_of(&call(&folder, ""), "a/b"), Ok(false));
        assert_eq!(
            remove_host_end(&Owner::new("nobody-has-this-id", "eth0"), "cni0"),
            Ok(())
        );
        assert_eq!(
            remove_link(&call(&folder, "/nonexistent/ns"), "nosuch0"),
            Ok(Vec::new())
        );
    }
}
