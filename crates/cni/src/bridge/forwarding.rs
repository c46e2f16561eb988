//! Forwarding between containers and the rest of the world.
//!
//! A host that forwards IPv6 no longer listens to routers: the kernel forgets the default routes it has from them, unless the
//! interface has `accept_ra=2` (`Documentation/networking/ip-sysctl.rst`). An interface that lives from router advertisements is given
//! that before forwarding is switched on.

use std::collections::BTreeSet;

use fabric::object::{Family, LinkName};
use kernel::rtnl::Rtnl;
use kernel::sysctl;

use crate::failure::Failure;
use crate::notice::say;

const V6: &str = "net/ipv6/conf/all/forwarding";
/// `RTPROT_RA` of `linux/rtnetlink.h`: made of a router's advertisement.
const ADVERTISED: u8 = 9;

/// Switches a family's forwarding on, where it is off.
///
/// # Errors
///
/// The parameter cannot be written.
pub fn enable(host: &mut Rtnl, family: Family) -> Result<(), Failure> {
    let name = match family {
        Family::V4 => "net/ipv4/ip_forward",
        Family::V6 => V6,
    };
    if family == Family::V6 && sysctl::read(V6).is_ok_and(|value| value == "0") {
        keep_listening(host);
    }
    sysctl::ensure(name, "1").map_err(|e| Failure::internal(format!("failed to enable forwarding: {e}")))?;
    Ok(())
}

/// Interfaces that have routes of advertisements, and listen as long as nothing is forwarded, go on listening.
fn keep_listening(host: &mut Rtnl) {
    let Ok(routes) = host.routes(Family::V6, None) else {
        return;
    };
    let advertised = routes.iter().filter(|route| route.protocol == ADVERTISED);
    let links: BTreeSet<u32> = advertised.filter_map(|route| route.link).collect();
    for index in links {
        if let Ok(Some(link)) = host.link_by_index(index) {
            keep_one_listening(link.name);
        }
    }
}

fn keep_one_listening(link: LinkName) {
    let name = format!("net/ipv6/conf/{link}/accept_ra");
    // Whoever has said 0 does not want advertisements, though there are routes of earlier ones.
    if sysctl::read(&name).is_ok_and(|value| value == "1")
        && let Err(e) = sysctl::write(&name, "2")
    {
        say(&format!(
            "{link} has its routes from router advertisements, which it hears no more with IPv6 forwarding on: {name} cannot be set to 2: {e}"
        ));
    }
}
