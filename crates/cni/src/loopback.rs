//! The plugin `loopback`: sets `lo` up, whatever interface the call names.

use fabric::object::{Family, LinkName};
use ipnet::IpNet;
use kernel::rtnl::Rtnl;
use kernel::rtnl::link::{LinkChange, ObservedLink, UP};

use crate::call::{Call, Verb};
use crate::failure::Failure;
use crate::links::link_name;
use crate::netns::{self, Sides, kernel_text};
use crate::result::{AddResult, Interface, IpConfig};

/// ADD: `lo` up; the result is the previous one, or `lo` with its addresses.
///
/// # Errors
///
/// There is no namespace, or `lo` has an address of another kind.
pub fn add(call: &Call) -> Result<AddResult, Failure> {
    let previous = previous(call)?;
    let (mut pod, link) = open(call)?.ok_or_else(|| netns::missing(&call.env.netns))?;
    pod.raise_flags(link.index, UP).map_err(said)?;
    let addresses = pod.addresses(link.index).map_err(said)?;
    if let Some(other) = addresses.iter().find(|a| !a.address.addr().is_loopback()) {
        return Err(Failure::internal(format!(
            "loopback interface found with non-loopback address {:?}",
            other.address.addr().to_string()
        )));
    }
    if let Some(previous) = previous {
        return Ok(previous);
    }
    let first = |family: Family| -> Option<IpNet> {
        addresses
            .iter()
            .map(|a| a.address)
            .find(|a| Family::of_net(*a) == family)
    };
    let ips = Family::BOTH.into_iter().filter_map(first);
    Ok(AddResult {
        interfaces: vec![Interface {
            name: "lo".to_owned(),
            mac: "00:00:00:00:00:00".to_owned(),
            sandbox: call.env.netns.clone(),
            ..Interface::default()
        }],
        ips: ips
            .map(|address| IpConfig {
                interface: Some(0),
                address,
                gateway: None,
            })
            .collect(),
        ..AddResult::default()
    })
}

/// DEL: `lo` down; no namespace is fine.
///
/// # Errors
///
/// The kernel's refusal.
pub fn del(call: &Call) -> Result<(), Failure> {
    if call.env.netns.is_empty() {
        return Ok(());
    }
    let Some((mut pod, link)) = open(call)? else {
        return Ok(());
    };
    let down = LinkChange {
        up: Some(false),
        ..LinkChange::default()
    };
    pod.set_link(link.index, down).map_err(said)
}

/// CHECK: `lo` is up.
///
/// # Errors
///
/// It is down, or cannot be looked at.
pub fn check(call: &Call) -> Result<(), Failure> {
    let (_, link) = open(call)?.ok_or_else(|| netns::missing(&call.env.netns))?;
    if link.is_up() {
        Ok(())
    } else {
        Err(Failure::internal("loopback interface is down"))
    }
}

fn previous(call: &Call) -> Result<Option<AddResult>, Failure> {
    let Some(previous) = call.fields().get("prevResult") else {
        return Ok(None);
    };
    AddResult::parse_previous(previous, &call.version)
        .map(Some)
        .map_err(|e| Failure::internal(format!("failed to parse prevResult: {}", e.msg)))
}

/// Netlink in the container's namespace, and its `lo`; `None` when the namespace is gone.
fn open(call: &Call) -> Result<Option<(Rtnl, ObservedLink)>, Failure> {
    let open_netns = if call.verb == Verb::Del {
        netns::open_leftover
    } else {
        netns::open
    };
    let Some(pod) = open_netns(&call.env.netns)? else {
        return Ok(None);
    };
    let lo: LinkName = link_name("lo")?;
    let mut pod = Sides::new(pod)?.inside(Rtnl::open)?.map_err(said)?;
    match pod.link_by_name(lo).map_err(said)? {
        Some(link) => Ok(Some((pod, link))),
        None => Err(Failure::internal("this namespace has no link lo")),
    }
}

fn said(error: kernel::NetlinkError) -> Failure {
    Failure::internal(kernel_text(&error))
}
