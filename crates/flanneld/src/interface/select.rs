//! The choice itself.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fabric::node::Underlay;
use fabric::object::Family;
use ipnet::Ipv4Net;

use super::address::{flaw, usable};
use super::inventory::{DefaultRoute, Inventory, LinkInfo};
use super::{Families, Held, Reach, Selected, Unserved, Wish, pattern};

/// No interface can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectError {
    /// What was tried and why it failed, in order.
    pub attempts: Vec<String>,
    /// What there is: every link with its addresses.
    pub there: String,
}

impl fmt::Display for SelectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no interface to use: {}; there is: {}",
            self.attempts.join("; "),
            self.there
        )
    }
}

impl std::error::Error for SelectError {}

/// A link, and the addresses that the way of finding it decided; the others are chosen from what the link has.
struct Found<'a> {
    link: &'a LinkInfo,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    by: String,
    warnings: Vec<String>,
    guessed: bool,
}

impl<'a> Found<'a> {
    fn new(link: &'a LinkInfo, by: impl Into<String>) -> Found<'a> {
        Found {
            link,
            v4: None,
            v6: None,
            by: by.into(),
            warnings: Vec::new(),
            guessed: false,
        }
    }

    /// With this address, whatever else the link has.
    fn with(mut self, ip: IpAddr) -> Found<'a> {
        match ip {
            IpAddr::V4(v4) => self.v4 = Some(v4),
            IpAddr::V6(v6) => self.v6 = Some(v6),
        }
        self
    }
}

/// Chooses. `reach` asks where the kernel would send a packet; it is only called for `--iface-can-reach`.
pub fn select(
    wish: &Wish,
    families: Families,
    inventory: &Inventory,
    mut reach: impl FnMut(IpAddr) -> Result<Option<Reach>, String>,
) -> Result<Selected, SelectError> {
    let mut attempts = Vec::new();
    let chooser = Chooser {
        wish,
        families,
        inventory,
    };
    let mut attempt = |found: Result<Found<'_>, String>| match found.and_then(|found| chooser.complete(found))
    {
        Ok(selected) => Some(selected),
        Err(why) => {
            attempts.push(why);
            None
        }
    };
    let asked = !wish.iface.is_empty() || !wish.iface_regex.is_empty() || wish.can_reach.is_some();
    let selected = if asked {
        let by_name = wish.iface.iter().find_map(|name| attempt(chooser.by_name(name)));
        by_name
            .or_else(|| {
                wish.iface_regex
                    .iter()
                    .find_map(|regex| attempt(chooser.by_regex(regex)))
            })
            .or_else(|| {
                wish.can_reach
                    .and_then(|ip| attempt(chooser.by_reach(ip, &mut reach)))
            })
    } else {
        attempt(chooser.by_public_address(&mut reach))
    };
    match selected {
        Some(mut selected) => {
            selected.warnings.splice(
                0..0,
                attempts.into_iter().map(|why| format!("passed over: {why}")),
            );
            Ok(selected)
        }
        None => Err(SelectError {
            attempts,
            there: describe(inventory),
        }),
    }
}

/// As [`select`]; where no interface serves both families, one for that of them which can be served, IPv4 first. The other is named:
/// it must not hold up the one.
///
/// # Errors
/// Neither can be served.
pub fn select_partly(
    wish: &Wish,
    families: Families,
    inventory: &Inventory,
    reach: &mut impl FnMut(IpAddr) -> Result<Option<Reach>, String>,
) -> Result<Selected, SelectError> {
    let failure = match select(wish, families, inventory, &mut *reach) {
        Err(failure) if families.v4 && families.v6 => failure,
        other => return other,
    };
    for (served, family) in [(Family::V4, Family::V6), (Family::V6, Family::V4)] {
        let only = Families {
            v4: served == Family::V4,
            v6: served == Family::V6,
        };
        if let Ok(selected) = select(wish, only, inventory, &mut *reach) {
            let why = failure.attempts.join("; ");
            let unserved = Some(Unserved { family, why });
            return Ok(Selected { unserved, ..selected });
        }
    }
    Err(failure)
}

/// The link that is held, where nothing happened to it but that it has another name, by which the flags do not find it.
pub fn select_renamed(
    wish: &Wish,
    families: Families,
    inventory: &Inventory,
    held: Held,
    failure: &SelectError,
) -> Option<Selected> {
    let link = inventory.link(held.index).filter(|link| link.name != held.link)?;
    let chooser = Chooser {
        wish,
        families,
        inventory,
    };
    let mut found = Found::new(link, format!("{}, which was called {}", link.name, held.link));
    found.warnings.push(format!(
        "{} is called {} now and stays in use; after a restart it would not be found: {}",
        held.link,
        link.name,
        failure.attempts.join("; ")
    ));
    chooser.complete(found).ok()
}

struct Chooser<'a> {
    wish: &'a Wish,
    families: Families,
    inventory: &'a Inventory,
}

impl<'a> Chooser<'a> {
    fn by_name(&self, name: &str) -> Result<Found<'a>, String> {
        if name.is_empty() {
            let mut found = self
                .by_default_route()
                .map_err(|why| format!("--iface=: {why}"))?;
            found.by = format!("--iface= ({})", found.by);
            return Ok(found);
        }
        let by = format!("--iface={name}");
        if let Ok(ip) = name.parse::<IpAddr>() {
            let ip = ip.to_canonical();
            let link = self
                .inventory
                .owner(ip)
                .ok_or_else(|| format!("{by}: no interface has that address"))?;
            // Only with an address is the other family's public address looked at: a name says which interface is meant.
            let other = match ip {
                IpAddr::V4(_) => self.wish.public_ipv6.filter(|_| self.families.v6).map(IpAddr::V6),
                IpAddr::V6(_) => self.wish.public_ip.filter(|_| self.families.v4).map(IpAddr::V4),
            };
            let mut found = Found::new(link, by).with(ip);
            if let Some(public) = other
                && let Some(owner) = self.inventory.owner(public)
            {
                if owner.index != link.index {
                    let (name, owner) = (link.name, owner.name);
                    return Err(format!(
                        "{}: that is {name}, but {public} is an address of {owner}",
                        found.by
                    ));
                }
                found = found.with(public);
            }
            return Ok(found);
        }
        self.inventory
            .named(name)
            .map(|link| Found::new(link, &by))
            .ok_or_else(|| format!("{by}: no interface has that name"))
    }

    fn by_regex(&self, text: &str) -> Result<Found<'a>, String> {
        if text.is_empty() {
            let mut found = self
                .by_default_route()
                .map_err(|why| format!("--iface-regex=: {why}"))?;
            found.by = format!("--iface-regex= ({})", found.by);
            return Ok(found);
        }
        let by = format!("--iface-regex={text}");
        let regex = pattern::compile(text).map_err(|why| format!("{by}: {why}"))?;
        let matching = |link: &LinkInfo, family| {
            usable(&link.addresses, family)
                .into_iter()
                .find(|ip| regex.is_match(&ip.to_string()))
        };
        for link in &self.inventory.links {
            let v4 = matching(link, Family::V4).filter(|_| self.families.v4);
            let v6 = matching(link, Family::V6).filter(|_| self.families.v6);
            // With both families the expression has to match an address of each, on one and the same link.
            if v4.is_some() == self.families.v4 && v6.is_some() == self.families.v6 {
                return Ok(v4.into_iter().chain(v6).fold(Found::new(link, by), Found::with));
            }
        }
        let link = self
            .inventory
            .links
            .iter()
            .find(|link| regex.is_match(link.name.as_str()));
        link.map(|link| Found::new(link, &by))
            .ok_or_else(|| format!("{by}: no address and no name matches"))
    }

    fn by_reach(
        &self,
        to: IpAddr,
        reach: &mut impl FnMut(IpAddr) -> Result<Option<Reach>, String>,
    ) -> Result<Found<'a>, String> {
        let by = format!("--iface-can-reach={to}");
        if self.inventory.owner(to).is_some() || to.is_loopback() {
            return Err(format!("{by}: that is an address of this host"));
        }
        let found = reach(to).map_err(|why| format!("{by}: {why}"))?;
        let found = found.ok_or_else(|| format!("{by}: the kernel has no route to it"))?;
        let link = self.inventory.link(found.link);
        let link =
            link.ok_or_else(|| format!("{by}: routed through link {}, which is not there", found.link))?;
        // The source is of the asked address's family, whichever the network uses.
        Ok(found.source.into_iter().fold(Found::new(link, by), Found::with))
    }

    /// Without any word on the interface: the one that has the public addresses, else the default route's.
    fn by_public_address(
        &self,
        reach: &mut impl FnMut(IpAddr) -> Result<Option<Reach>, String>,
    ) -> Result<Found<'a>, String> {
        let wished = [
            (
                "--public-ip",
                self.wish.public_ip.filter(|_| self.families.v4).map(IpAddr::V4),
            ),
            (
                "--public-ipv6",
                self.wish.public_ipv6.filter(|_| self.families.v6).map(IpAddr::V6),
            ),
        ];
        let mut chosen: Option<Found<'a>> = None;
        let mut homeless = Vec::new();
        for (flag, ip) in wished {
            let Some(ip) = ip else { continue };
            let by = format!("{flag}={ip}");
            match (self.inventory.owner(ip), chosen.take()) {
                (None, before) => {
                    homeless.push(by);
                    chosen = before;
                }
                (Some(link), None) => chosen = Some(Found::new(link, by).with(ip)),
                (Some(link), Some(mut before)) if before.link.index == link.index => {
                    before.by = format!("{} {by}", before.by);
                    chosen = Some(before.with(ip));
                }
                (Some(link), Some(before)) => {
                    let (first, second) = (before.link.name, link.name);
                    return Err(format!(
                        "{} is on {first}, {by} on {second}: expected one interface",
                        before.by
                    ));
                }
            }
        }
        let mut found = match chosen {
            Some(found) => found,
            None => match self.by_default_route() {
                Ok(found) => found,
                Err(why) if self.has_default_route() => return Err(why),
                Err(why) => self.without_default_route(reach).ok_or(why)?,
            },
        };
        let name = found.link.name;
        found.warnings.extend(homeless.iter().map(|by| {
            format!("{by}: no interface has it; using {name} and telling other hosts that address")
        }));
        Ok(found)
    }

    /// Whether there is a default route of a family that the network uses.
    fn has_default_route(&self) -> bool {
        let inventory = self.inventory;
        self.families.v4 && !inventory.default4.is_empty()
            || self.families.v6 && !inventory.default6.is_empty()
    }

    /// Without a default route: the way the kernel takes to the registry, else the one interface that could be meant.
    fn without_default_route(
        &self,
        reach: &mut impl FnMut(IpAddr) -> Result<Option<Reach>, String>,
    ) -> Option<Found<'a>> {
        let is_meant = |link: &&LinkInfo| {
            let serves = |family| usable(&link.addresses, family).into_iter().any(is_routable);
            let is_machine = !["lo", "flannel", "cni", "docker", "br-", "veth", "virbr"]
                .iter()
                .any(|prefix| link.name.as_str().starts_with(prefix));
            let v4 = !self.families.v4 || serves(Family::V4);
            let v6 = !self.families.v6 || serves(Family::V6);
            is_machine && link.up && v4 && v6
        };
        let far = |to: &&IpAddr| !to.is_loopback() && self.inventory.owner(**to).is_none();
        let towards = self.wish.registry.iter().filter(far).find_map(|to| {
            let link = self.inventory.link(reach(*to).ok()??.link)?;
            is_meant(&link).then_some((link, format!("the way to the registry at {to}")))
        });
        let only = || {
            let mut meant = self.inventory.links.iter().filter(is_meant);
            let link = meant.next().filter(|_| meant.next().is_none())?;
            Some((link, "the only interface with an address".to_owned()))
        };
        let (link, by) = towards.or_else(only)?;
        let mut found = Found::new(link, by);
        found.guessed = true;
        let text = format!("there is no default route: using {}, {}", link.name, found.by);
        found.warnings.push(text);
        Some(found)
    }

    fn by_default_route(&self) -> Result<Found<'a>, String> {
        let by = "the default route";
        let (default4, default6) = (&self.inventory.default4, &self.inventory.default6);
        let link_of = |route: &DefaultRoute| route.link.and_then(|index| self.inventory.link(index));
        let chosen = |route: &DefaultRoute, link: &'a LinkInfo| {
            let mut found = Found::new(link, by);
            if route.multipath {
                found.warnings.push(format!(
                    "the default route has several next hops; using that through {}",
                    link.name
                ));
            }
            found
        };
        let first = |routes: &[DefaultRoute]| routes.iter().find_map(|route| Some((*route, link_of(route)?)));
        match (self.families.v4, self.families.v6) {
            (true, true) => {
                // The first IPv4 one whose link has an IPv6 one as well.
                let both = default4.iter().find_map(|route| {
                    let link = link_of(route)?;
                    default6
                        .iter()
                        .any(|other| other.link == route.link)
                        .then_some((*route, link))
                });
                if let Some((route, link)) = both {
                    return Ok(chosen(&route, link));
                }
                match (first(default4), first(default6)) {
                    (Some((_, a)), Some((_, b))) => {
                        let (a, b) = (a.name, b.name);
                        Err(format!(
                            "{by} of IPv4 is through {a}, that of IPv6 through {b}: expected one interface"
                        ))
                    }
                    // One family is routed, the other only used on the link: what that link has will do.
                    (Some((route, link)), None) | (None, Some((route, link))) => Ok(chosen(&route, link)),
                    (None, None) => Err("there is no default route".into()),
                }
            }
            (v4, _) => {
                let (routes, family) = if v4 {
                    (default4, Family::V4)
                } else {
                    (default6, Family::V6)
                };
                let (route, link) =
                    first(routes).ok_or_else(|| format!("there is no {family} default route"))?;
                Ok(chosen(&route, link))
            }
        }
    }

    /// Fills in the addresses that finding the link left open, and what the others are told.
    fn complete(&self, found: Found<'a>) -> Result<Selected, String> {
        let Found {
            link,
            v4,
            v6,
            by,
            mut warnings,
            guessed,
        } = found;
        let name = link.name;
        let best = |family| usable(&link.addresses, family).first().copied();
        let mut address4 = None;
        if self.families.v4 {
            let chosen = v4.or(match best(Family::V4) {
                Some(IpAddr::V4(ip)) => Some(ip),
                _ => None,
            });
            address4 = Some(chosen.ok_or_else(|| format!("{by}: {}", useless(link, Family::V4)))?);
        }
        let mut address6 = None;
        if self.families.v6 {
            let chosen = v6.or(match best(Family::V6) {
                Some(IpAddr::V6(ip)) => Some(ip),
                _ => None,
            });
            address6 = Some(chosen.ok_or_else(|| format!("{by}: {}", useless(link, Family::V6)))?);
        }
        if link.mtu == 0 {
            return Err(format!("{by}: {name} has no MTU"));
        }
        if !link.up {
            warnings.push(format!("{name} is down"));
        }
        if self.wish.public_ip.is_some() && !self.families.v4 {
            warnings.push("--public-ip has no effect: the network has no IPv4".into());
        }
        if self.wish.public_ipv6.is_some() && !self.families.v6 {
            warnings.push("--public-ipv6 has no effect: the network has no IPv6".into());
        }
        if let Some(ip) = address6.filter(|ip| ip.is_unicast_link_local() && self.wish.public_ipv6.is_none())
        {
            warnings.push(format!(
                "{ip} of {name} is link-local: only hosts on the same link reach it"
            ));
        }
        Ok(Selected {
            underlay: Underlay {
                link: name,
                mtu: link.mtu,
                address4,
                address6,
                public4: address4.map(|own| self.wish.public_ip.unwrap_or(own)),
                public6: address6.map(|own| self.wish.public_ipv6.unwrap_or(own)),
                segments: self.segments(),
            },
            index: link.index,
            by,
            warnings,
            guessed,
            unserved: None,
        })
    }

    /// The IPv4 prefixes of all links that are up.
    fn segments(&self) -> Vec<Ipv4Net> {
        let up = self.inventory.links.iter().filter(|link| link.up);
        let nets = up
            .flat_map(|link| &link.addresses)
            .filter_map(|address| match address.ip {
                IpAddr::V4(ip) => Ipv4Net::new(ip, address.prefix).ok(),
                IpAddr::V6(_) => None,
            });
        let nets: BTreeSet<Ipv4Net> = nets.map(|net| net.trunc()).collect();
        nets.into_iter().collect()
    }
}

/// Whether an address is more than one of a link.
fn is_routable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    }
}

/// Why a link has no address of a family that other hosts could use: those it has, and what is wrong with each.
fn useless(link: &LinkInfo, family: Family) -> String {
    let of_family = link
        .addresses
        .iter()
        .filter(|address| Family::of(address.ip) == family);
    let flaws: Vec<String> = of_family
        .map(|address| format!("{} is {}", address.ip, flaw(address).unwrap_or("of no use")))
        .collect();
    let name = link.name;
    match flaws.is_empty() {
        true => format!("{name} has no {family} address"),
        false => format!("{name} has no usable {family} address: {}", flaws.join(", ")),
    }
}

/// Links with their addresses, for an error; those without addresses (and of many, the last) are only counted.
pub(super) fn describe(inventory: &Inventory) -> String {
    const MOST: usize = 16;
    let with: Vec<String> = inventory
        .links
        .iter()
        .filter(|link| !link.addresses.is_empty())
        .map(|link| {
            let addresses: Vec<String> = link
                .addresses
                .iter()
                .map(|address| match flaw(address) {
                    Some(flaw) => format!("{} ({flaw})", address.ip),
                    None => address.ip.to_string(),
                })
                .collect();
            format!(
                "{}{} [{}]",
                link.name,
                if link.up { "" } else { " (down)" },
                addresses.join(" ")
            )
        })
        .collect();
    let rest = inventory.links.len() - with.len().min(MOST);
    let mut text = with.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    if text.is_empty() {
        text.push_str("no interface with an address");
    }
    if rest > 0 {
        text.push_str(&format!(", and {rest} more"));
    }
    text
}

#[cfg(test)]
mod tests;
