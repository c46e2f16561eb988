//! ADD: a veth pair between the container and the bridge, addresses, routes, the gateway.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::time::Duration;

use fabric::object::{Family, LinkName, Mac};
use ipnet::IpNet;
use kernel::nl::Fault;
use kernel::rtnl::Rtnl;
use kernel::rtnl::bridge::{OperState, PortOptions};
use kernel::rtnl::link::{ObservedLink, UP};
use kernel::rtnl::pod::{PodError, PodRoute, PodStep};
use kernel::rtnl::veth::VethPair;
use kernel::sysctl;

use crate::bridge::config::{BridgeConfig, Ipam};
use crate::bridge::device::{ensure_bridge, ensure_gateway};
use crate::bridge::masquerade::{self, Masquerade};
use crate::bridge::second_default;
use crate::call::Call;
use crate::call::Verb;
use crate::delegate;
use crate::failure::Failure;
use crate::files;
use crate::host_local;
use crate::host_local::config::HostLocalConfig;
use crate::links::{host_end, link_name};
use crate::netns::{self, Sides, kernel_text};
use crate::notice::say;
use crate::owner::Owner;
use crate::result::{AddResult, Interface, Route};

/// Names tried for the host's end of the pair.
const NAME_ATTEMPTS: usize = 10;
/// How long the host's end may take to be able to carry packets.
const PORT_LIMIT: Duration = Duration::from_millis(2550);
/// How long duplicate address detection may take.
const DETECTION_LIMIT: Duration = Duration::from_secs(5);

/// A failed ADD, all it had made undone again.
#[derive(Debug)]
pub struct AddFailure {
    /// Why.
    pub failure: Failure,
    /// Nothing of it is left. Otherwise a DEL has to try again.
    pub clean: bool,
}

impl From<Failure> for AddFailure {
    fn from(failure: Failure) -> Self {
        AddFailure { failure, clean: true }
    }
}

/// Attaches a container. `flannel` is the folder of saved configurations when flannel asks (see [`host_local::allocate`]).
///
/// # Errors
///
/// The step that failed, and whether anything is left of those before it.
pub fn add(call: &Call, flannel: Option<&str>) -> Result<AddResult, AddFailure> {
    let config = BridgeConfig::load(call)?;
    config.check()?;
    let mac = config.mac()?;
    let ifname = link_name(&call.env.ifname)?;
    let pod = netns::open(&call.env.netns)?.ok_or_else(|| netns::missing(&call.env.netns))?;
    let sides = Sides::new(pod)?;
    let mut host = Rtnl::open().map_err(|e| Failure::internal(e.to_string()))?;

    let bridge = ensure_bridge(&mut host, &config)?;
    let (mut pod, link, peer) = make_pair(&sides, &mut host, &config, ifname, mac, &Owner::of(call))?;
    let mut made = Made {
        call,
        ifname,
        ipam: Ipam::None,
        masquerade: None,
    };
    let mut work = || -> Result<AddResult, Failure> {
        let _ = sysctl::write(&format!("net/ipv6/conf/{peer}/accept_ra"), "0");
        let options = PortOptions {
            hairpin: config.hairpin,
            isolated: config.isolated,
        };
        host.attach_port(peer, bridge.index, options).map_err(|e| {
            Failure::internal(format!(
                "failed to connect {:?} to bridge {}: {}",
                peer.as_str(),
                config.bridge,
                kernel_text(&e)
            ))
        })?;
        let mut result = AddResult::default();
        if config.ipam == Ipam::None {
            if !config.leave_down {
                pod.raise_flags(link.index, UP).map_err(|e| {
                    Failure::internal(format!(
                        "failed to set {:?} up: {}",
                        ifname.as_str(),
                        kernel_text(&e)
                    ))
                })?;
            }
        } else {
            let ipam = run_ipam(call, &config, flannel, &mut made)?;
            (result.ips, result.routes, result.dns) = (ipam.ips, ipam.routes, ipam.dns);
            add_gateways(&config, &mut result);
            configure(&sides, &mut pod, &config, ifname, &link, &result)?;
            if config.is_default_gateway {
                second_default::warn(&mut pod, call, link.index);
            }
            if config.is_gateway {
                ensure_gateway(&mut host, &config, &bridge, &result, flannel.is_some())?;
            }
            if config.ip_masq {
                let addresses: Vec<IpNet> = result.ips.iter().map(|ip| ip.address).collect();
                let masquerade = Masquerade::of(call, config.masq_backend.clone());
                made.masquerade = Some((masquerade.clone(), addresses.clone()));
                masquerade::setup(&masquerade, &addresses)?;
            }
        }
        let lookup = |e| {
            Failure::internal(format!(
                "failed to lookup {:?}: {}",
                peer.as_str(),
                kernel_text(&e)
            ))
        };
        let (mut port, bridge) = host.port_and_bridge(peer, config.bridge).map_err(lookup)?;
        if !config.leave_down {
            if port.state != OperState::Up {
                port = host.wait_operational(peer, PORT_LIMIT).map_err(lookup)?;
            }
            if port.state != OperState::Up {
                return Err(Failure::internal(format!(
                    "bridge port in error state: {}",
                    port.state
                )));
            }
            if bridge.state != OperState::Up {
                // Its first port gives the bridge its carrier; until that has settled, the gateway does not answer.
                let _ = host.wait_operational(config.bridge, PORT_LIMIT);
            }
        }
        result.interfaces = vec![
            interface(&config.bridge, bridge.link.mac, ""),
            interface(&peer, port.link.mac, ""),
            interface(&ifname, link.mac, &call.env.netns),
        ];
        if !config.dns.is_empty() {
            result.dns = config.dns.clone();
        }
        Ok(result)
    };
    match work() {
        Ok(result) => Ok(result),
        Err(failure) => Err(AddFailure {
            failure,
            clean: made.undo(&mut pod),
        }),
    }
}

fn interface(name: &LinkName, mac: Option<Mac>, sandbox: &str) -> Interface {
    Interface {
        name: name.to_string(),
        mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    }
}

/// What has been made so far, for taking it back.
struct Made<'a> {
    call: &'a Call,
    ifname: LinkName,
    /// IPAM plugin that has reserved addresses.
    ipam: Ipam,
    masquerade: Option<(Masquerade, Vec<IpNet>)>,
}

impl Made<'_> {
    /// Takes everything back; false when something stays.
    fn undo(self, pod: &mut Rtnl) -> bool {
        // The link first: its address must not be handed out while it answers.
        let mut clean = pod.delete_link_by_name(self.ifname).is_ok();
        if let Some((masquerade, addresses)) = &self.masquerade {
            clean &= masquerade::teardown(masquerade, addresses, &[]).is_ok();
        }
        match &self.ipam {
            Ipam::None => {}
            Ipam::HostLocal => clean &= host_local::del(self.call).is_ok(),
            Ipam::Plugin(plugin) => {
                clean &= delegate::run(plugin, Verb::Del, &self.call.stdin, &self.call.env).is_ok();
            }
        }
        clean
    }
}

/// Makes the pair and returns the container's side: netlink there, the link, and the name of the other end.
fn make_pair(
    sides: &Sides,
    host: &mut Rtnl,
    config: &BridgeConfig,
    name: LinkName,
    mac: Option<Mac>,
    owner: &Owner,
) -> Result<(Rtnl, ObservedLink, LinkName), AddFailure> {
    let made = sides.inside(|| {
        let mut pod = Rtnl::open().map_err(|e| Failure::internal(e.to_string()))?;
        let (link, peer) = find_pair(sides, &mut pod, host, config, name, mac, owner)?;
        set_detection(config, name);
        Ok((pod, link, peer))
    });
    // There may be no way back once the pair is there.
    made.map_err(|failure| AddFailure {
        failure,
        clean: false,
    })?
}

/// Makes the pair under a name for the host's end that is not taken.
fn find_pair(
    sides: &Sides,
    pod: &mut Rtnl,
    host: &mut Rtnl,
    config: &BridgeConfig,
    name: LinkName,
    mac: Option<Mac>,
    owner: &Owner,
) -> Result<(ObservedLink, LinkName), AddFailure> {
    for attempt in 0..NAME_ATTEMPTS {
        let peer = match attempt {
            0 => host_end(owner)?,
            _ => {
                let random = files::random().map_err(|e| {
                    Failure::internal(format!(
                        "failed to generate random veth name: {}",
                        files::errno_text(e)
                    ))
                })?;
                link_name(&format!("veth{random:08x}"))?
            }
        };
        let pair = VethPair {
            name,
            mac,
            peer,
            peer_netns: sides.host.as_fd(),
            mtu: config.mtu,
        };
        match pod.add_veth(&pair) {
            Ok(link) => return Ok((link, peer)),
            Err(e) if e.is_exists() => {
                if matches!(host.port_by_name(peer), Ok(Some(_))) {
                    continue;
                }
                let (name, peer) = (name.as_str(), peer.as_str());
                let msg = format!("container veth name ({name:?}) peer provided ({peer:?}) already exists");
                return Err(Failure::internal(msg).into());
            }
            Err(e) => {
                let msg = format!("failed to make veth pair: {}", kernel_text(&e));
                return Err(AddFailure {
                    failure: Failure::internal(msg),
                    // Where the answer was lost the pair may be there.
                    clean: e.fault == Fault::Refused,
                });
            }
        }
    }
    Err(Failure::internal("failed to find a unique veth name").into())
}

fn run_ipam(
    call: &Call,
    config: &BridgeConfig,
    flannel: Option<&str>,
    made: &mut Made<'_>,
) -> Result<AddResult, Failure> {
    let result = match &config.ipam {
        Ipam::None => AddResult::default(),
        Ipam::HostLocal => host_local::allocate(&HostLocalConfig::load(call)?, &Owner::of(call), flannel)?,
        Ipam::Plugin(plugin) => delegate::add(plugin, &call.stdin, &call.version, &call.env)?.0,
    };
    made.ipam = config.ipam.clone();
    if result.ips.is_empty() {
        return Err(Failure::internal("IPAM plugin returned missing IP config"));
    }
    Ok(result)
}

/// Fills in gateways and default routes, and says which link the addresses are of.
fn add_gateways(config: &BridgeConfig, result: &mut AddResult) {
    let mut has_default = [false, false];
    for ip in &mut result.ips {
        ip.interface = Some(2);
        if ip.gateway.is_none() && config.is_gateway {
            ip.gateway = Some(first_of(ip.address));
        }
        let family = Family::of_net(ip.address);
        let (Some(done), default) = (has_default.get_mut(family as usize), default_of(family)) else {
            continue;
        };
        if config.is_default_gateway && !*done {
            // A default route without a next hop goes through the same gateway: adding another would be refused.
            if !result.routes.iter().any(|route| route.dst == default) {
                result.routes.push(Route::to(default, ip.gateway));
            }
            *done = true;
        }
    }
}

fn default_of(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::new_assert(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        Family::V6 => IpNet::new_assert(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
    }
}

/// The network's address plus one.
pub(super) fn first_of(address: IpNet) -> IpAddr {
    match address.network() {
        IpAddr::V4(network) => IpAddr::V4(Ipv4Addr::from(u32::from(network).wrapping_add(1))),
        IpAddr::V6(network) => IpAddr::V6(Ipv6Addr::from(u128::from(network).wrapping_add(1))),
    }
}

/// The gateway of a family: that of its first address that has one.
fn gateway_of(result: &AddResult, family: Family) -> Option<IpAddr> {
    let of_family = |gateway: &IpAddr| Family::of(*gateway) == family;
    result.ips.iter().filter_map(|ip| ip.gateway).find(of_family)
}

/// The result's routes as the kernel is to be asked for them, each once.
fn routes_of(result: &AddResult) -> Vec<(&Route, PodRoute)> {
    let mut seen = BTreeSet::new();
    let mut routes = Vec::with_capacity(result.routes.len());
    for route in &result.routes {
        let number = |value: i64| u32::try_from(value).unwrap_or(0);
        let via = route.gw.or_else(|| gateway_of(result, Family::of_net(route.dst)));
        // Two ways to say the same route are one route.
        if !seen.insert((route.dst.trunc(), via, route.priority, route.table)) {
            continue;
        }
        routes.push((
            route,
            PodRoute {
                destination: route.dst,
                gateway: via,
                priority: number(route.priority),
                table: route.table.map(number).filter(|table| *table != 0),
                scope: route
                    .scope
                    .and_then(|scope| u8::try_from(scope).ok())
                    .unwrap_or(0),
                mtu: number(route.mtu),
                advmss: number(route.advmss),
            },
        ));
    }
    routes
}

/// Addresses, up and routes of the container's link.
fn configure(
    sides: &Sides,
    pod: &mut Rtnl,
    config: &BridgeConfig,
    ifname: LinkName,
    link: &ObservedLink,
    result: &AddResult,
) -> Result<(), Failure> {
    let addresses: Vec<IpNet> = result.ips.iter().map(|ip| ip.address).collect();
    let v6 = addresses.iter().any(|a| a.addr().is_ipv6());
    if v6 {
        sides.inside(|| enable_ipv6(ifname))??;
    }
    let routes = routes_of(result);
    let asked: Vec<PodRoute> = routes.iter().map(|(_, route)| *route).collect();
    let explain = |PodError { step, error }: PodError| {
        let why = kernel_text(&error);
        Failure::internal(match step {
            PodStep::Address(i) => {
                let address = addresses.get(i).map(ToString::to_string).unwrap_or_default();
                format!("failed to add IP addr {address} to {:?}: {why}", ifname.as_str())
            }
            PodStep::Up => format!("failed to set {:?} UP: {why}", ifname.as_str()),
            PodStep::Route(i) => match routes.get(i) {
                Some((route, asked)) => {
                    format!("failed to add route '{}': {why}", describe(route, asked, ifname))
                }
                None => why,
            },
        })
    };
    pod.configure_pod(link.index, &addresses, &asked, config.detection)
        .map_err(explain)?;
    if config.detection && gateway_of(result, Family::V6).is_some() {
        let waited = pod.wait_detected(link.index, DETECTION_LIMIT).map_err(|e| {
            Failure::internal(format!(
                "failed to settle addresses for {:?}: {}",
                ifname.as_str(),
                kernel_text(&e)
            ))
        })?;
        if let Some((address, duplicate)) = waited {
            let why = match duplicate {
                true => format!("link {ifname} has address {} in DADFAILED state", address.addr()),
                false => format!(
                    "link {ifname} still has tentative addresses after {} seconds",
                    DETECTION_LIMIT.as_secs()
                ),
            };
            return Err(Failure::internal(format!(
                "failed to settle addresses for {:?}: {why}",
                ifname.as_str()
            )));
        }
    }
    Ok(())
}

/// A route as Go's plugin names it in errors.
fn describe(route: &Route, asked: &PodRoute, ifname: LinkName) -> String {
    let mask: String = match route.dst.netmask() {
        IpAddr::V4(mask) => mask.octets().iter().map(|b| format!("{b:02x}")).collect(),
        IpAddr::V6(mask) => mask.octets().iter().map(|b| format!("{b:02x}")).collect(),
    };
    let via = asked
        .gateway
        .map_or_else(|| "<nil>".to_owned(), |gateway| gateway.to_string());
    format!(
        "{{{} {mask}}} via {via} dev {ifname} metric {} (Scope: {}, Table: {})",
        route.dst.addr(),
        asked.priority,
        asked.scope,
        asked.table.unwrap_or(0)
    )
}

/// Duplicate address detection of the container's link, and no routers but the bridge; to be called in its namespace.
fn set_detection(config: &BridgeConfig, ifname: LinkName) {
    // Without IPv6 in the kernel these do not exist, which is no hindrance.
    if config.ipam == Ipam::None {
        return;
    }
    // Another container's advertisements are no router's: one of them would take over all that its neighbours send by IPv6.
    let _ = sysctl::write(&format!("net/ipv6/conf/{ifname}/accept_ra"), "0");
    if config.detection {
        let _ = sysctl::write(&format!("net/ipv6/conf/{ifname}/enhanced_dad"), "1");
        let _ = sysctl::write(&format!("net/ipv6/conf/{ifname}/accept_dad"), "1");
    } else {
        let _ = sysctl::write(&format!("net/ipv6/conf/{ifname}/accept_dad"), "0");
    }
}

/// Readies the container's link for IPv6 addresses; to be called in its namespace.
fn enable_ipv6(ifname: LinkName) -> Result<(), Failure> {
    for link in ["lo", ifname.as_str()] {
        let name = format!("net/ipv6/conf/{link}/disable_ipv6");
        match sysctl::read(&name) {
            Ok(value) if value == "0" => {}
            Ok(value) => sysctl::write(&name, "0").map_err(|e| {
                Failure::internal(format!(
                    "failed to enable IPv6 for interface {link:?} ({name}={value}): {e}"
                ))
            })?,
            Err(e) => {
                say(&format!("cannot read sysctl {name}: {e}"));
            }
        }
    }
    let name = format!("net/ipv6/conf/{ifname}/keep_addr_on_down");
    sysctl::write(&name, "1").map_err(|e| {
        Failure::internal(format!(
            "failed to enable keep_addr_on_down for interface {:?}: {e}",
            ifname.as_str()
        ))
    })
}

#[cfg(test)]
mod tests;
