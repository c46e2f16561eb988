//! Devices and routes.

use anyhow::{Context, bail};
use fabric::object::{LinkName, Object, Op, Route};
use kernel::rtnl::Rtnl;
use kernel::{ApplyOptions, Interest, Kernel, KernelError, Outcome, Scope};

use super::{Act, Findings, Past};

/// What the names of flannel's devices begin with.
const PREFIX: &str = "flannel";

pub fn look(past: &Past, findings: &mut Findings) {
    let kernel = match mirror() {
        Ok(kernel) => kernel,
        Err(why) => {
            findings.unread.push(format!("devices and routes: {why}"));
            return;
        }
    };
    let objects = kernel.objects();
    let devices: Vec<LinkName> = objects
        .values()
        .filter_map(|object| match object {
            Object::Link(link) if link.is_flannels() => Some(link.name),
            _ => None,
        })
        .collect();
    for object in objects.values() {
        match object {
            Object::Route(route) => judge(route, object, &devices, past, findings),
            Object::Link(link) if !link.is_flannels() => {
                findings.stays.push(format!(
                    "link {} has a name of flannel's and is of another kind",
                    link.name
                ));
            }
            _ => {}
        }
    }
    // What goes through a device the kernel takes along with it.
    for object in objects.values() {
        if let Object::Link(link) = object
            && link.is_flannels()
        {
            let text = format!("device {} and what hangs on it", link.name);
            findings.add("device", text, Act::Object(Box::new(Op::Remove(object.clone()))));
        }
    }
}

fn judge(route: &Route, object: &Object, devices: &[LinkName], past: &Past, findings: &mut Findings) {
    if devices.contains(&route.link) {
        return;
    }
    let is_inside = past
        .networks
        .iter()
        .any(|network| network.contains(&route.destination));
    let was_leased = || {
        let states = past.states.iter();
        states.into_iter().any(|(_, state)| {
            let hops = state.former_leases().remove(&route.destination);
            hops.is_some_and(|hops| route.gateway.is_some_and(|gateway| hops.contains(&gateway)))
        })
    };
    let is_ours = route.is_marked() || route.is_predecessors() && was_leased();
    if is_ours && is_inside {
        let act = Act::Object(Box::new(Op::Remove(object.clone())));
        findings.add("route", object.to_string(), act);
    } else if route.is_marked() {
        findings.stays.push(format!(
            "{object} has flannel's protocol and lies in no network that flannel is known to have had here: `ip route del {}` if it is nobody's",
            route.destination
        ));
    } else if route.is_predecessors() && is_inside {
        findings.stays.push(format!(
            "{object} may be an earlier flannel's or an admin's: `ip route del {}` if it is nobody's",
            route.destination
        ));
    }
}

/// All routes of the main tables, and the links with flannel's names.
fn mirror() -> Result<Kernel, KernelError> {
    let links = Rtnl::open()?.links()?;
    let names = links.into_iter().map(|link| link.name);
    let links: Vec<LinkName> = names.filter(|name| name.as_str().starts_with(PREFIX)).collect();
    let everywhere = [
        ipnet::IpNet::V4(ipnet::Ipv4Net::default()),
        ipnet::IpNet::V6(ipnet::Ipv6Net::default()),
    ];
    let mut kernel = Kernel::open(Interest {
        links,
        networks: everywhere.to_vec(),
    })?;
    kernel.observe(Scope::All)?;
    Ok(kernel)
}

/// The kernel that things are taken out of, looked at once for all of them.
#[derive(Default)]
pub struct Remover(Option<Kernel>);

impl Remover {
    pub fn remove(&mut self, op: &Op) -> anyhow::Result<()> {
        let kernel = match &mut self.0 {
            Some(kernel) => kernel,
            none => none.insert(mirror()?),
        };
        let how = ApplyOptions {
            nexthop_objects: true,
        };
        for outcome in kernel.apply(std::slice::from_ref(op), how) {
            if let Outcome::Failed(why) = outcome {
                bail!(why);
            }
        }
        Ok(())
    }
}

pub fn remove_bridge(name: LinkName) -> anyhow::Result<()> {
    let mut rtnl = Rtnl::open().context("rtnetlink")?;
    rtnl.delete_link_by_name(name)?;
    Ok(())
}
