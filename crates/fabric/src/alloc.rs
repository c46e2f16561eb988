//! Which subnet a node takes: its own lease again, its previous subnet, or a free one picked at random.
//!
//! Pure: the listing, the previous subnet and the random numbers are arguments. What is decided here still has to win the
//! registry's create-if-absent, and after that the comparison with leases that overlap without sharing the key
//! ([`older_rival`]).

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::{NetworkConfig, Space, address, number};
use crate::lease::{Lease, Snapshot, Subnet, SubnetKeyError};
use crate::object::Family;

/// How many free subnets a random choice is made from; the reference's figure.
const POOL: usize = 100;

/// Why there is no subnet to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// Every subnet of the range overlaps a lease.
    #[error(
        "out of subnets: all {total} subnets of /{len} from {min} to {max} in {network} overlap one of {taken} leases; widen the range in the network config or delete leases of nodes that are gone",
        total = subnets_in(.0), len = .0.subnet_len, min = .0.min, max = .0.max, network = .0.network, taken = .1
    )]
    OutOfSubnets(Space, usize),
    /// The config enables no family.
    #[error("no address family is enabled: expected at least one")]
    NoFamily,
}

/// The addresses by which a node knows its own leases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PublicIps {
    /// What it publishes as `PublicIP`.
    pub v4: Option<Ipv4Addr>,
    /// What it publishes as `PublicIPv6`.
    pub v6: Option<Ipv6Addr>,
}

impl PublicIps {
    /// Whether a lease is this node's, under a config: by `PublicIP` when IPv4 is enabled, else by `PublicIPv6`. A lease that
    /// names no IPv4 address at all (`0.0.0.0`, made while IPv4 was off) is known by `PublicIPv6` in either case.
    pub fn own(&self, config: &NetworkConfig, lease: &Lease) -> bool {
        let attributes = &lease.attributes;
        let v6 = self.v6.is_some() && attributes.public_ip6 == self.v6;
        if config.v4.is_none() || attributes.public_ip.is_unspecified() {
            return v6;
        }
        self.v4 == Some(attributes.public_ip)
    }
}

/// What to do in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Renew this lease, which is ours, with the attributes of now.
    Reuse(Lease),
    /// Create a lease for this subnet if the key is absent.
    Take(Subnet),
}

/// The outcome of [`decide`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The lease to hold.
    pub action: Action,
    /// Further leases of ours, to be deleted once the one above is held and not before: until then peers need them.
    pub also_ours: Vec<Subnet>,
}

/// Whether a config would hand out this subnet: exactly the enabled families, the configured length, base within the range.
pub fn is_compatible(config: &NetworkConfig, subnet: &Subnet) -> bool {
    Family::BOTH
        .into_iter()
        .all(|family| match (config.space(family), subnet.of(family)) {
            (None, None) => true,
            (Some(space), Some(net)) => half_fits(space, net),
            _ => false,
        })
}

fn half_fits(space: &Space, net: IpNet) -> bool {
    net.prefix_len() == space.subnet_len
        && net.network() == net.addr()
        && space.min <= net.addr()
        && net.addr() <= space.max
}

/// Decides how a node gets its lease, from a listing of all leases.
///
/// `previous` is the subnet the node had last, from subnet.env or its own record. `random(n)` gives a number below `n`.
pub fn decide(
    config: &NetworkConfig,
    listing: &Snapshot,
    me: &PublicIps,
    previous: Option<Subnet>,
    random: &mut dyn FnMut(usize) -> usize,
) -> Result<Decision, AllocError> {
    let ours: Vec<&Lease> = listing
        .leases
        .values()
        .filter(|lease| me.own(config, lease))
        .collect();
    let usable = |lease: &&&Lease| {
        is_compatible(config, &lease.subnet) && older_rival(config, listing, me, lease).is_none()
    };
    let kept = ours
        .iter()
        .filter(usable)
        .min_by_key(|lease| (Some(lease.subnet) != previous, lease.created, lease.subnet));
    let also_ours = |kept: Option<Subnet>| {
        ours.iter()
            .map(|lease| lease.subnet)
            .filter(|subnet| Some(*subnet) != kept)
            .collect()
    };
    if let Some(lease) = kept {
        let action = Action::Reuse(Lease::clone(lease));
        return Ok(Decision {
            action,
            also_ours: also_ours(Some(lease.subnet)),
        });
    }
    // An incompatible lease of ours still counts as taken, and so do entries that only look like leases: the reference
    // would forward to the first, and creating the key of the second would fail.
    let unusable = listing.rejected.iter().filter_map(|entry| claimed_by(&entry.key));
    let others = listing.leases.values().filter(|lease| !me.own(config, lease));
    // But for the halves of ours that still fit: a family that comes or goes leaves the other as it is, and the pods in it.
    let kept = halves_kept(config, &ours, previous);
    let rest = ours.iter().filter_map(|lease| {
        let differs = |family| {
            lease
                .subnet
                .of(family)
                .filter(|net| kept.and_then(|k| k.of(family)) != Some(*net))
        };
        Subnet::new(v4_of(differs(Family::V4)), v6_of(differs(Family::V6)))
    });
    let all = others.map(|lease| lease.subnet).chain(rest).chain(unusable);
    let taken: Vec<Subnet> = all.filter_map(|subnet| inside(config, &subnet)).collect();
    let subnet = choose(config, &taken, kept.or(previous), random)?;
    Ok(Decision {
        action: Action::Take(subnet),
        also_ours: also_ours(None),
    })
}

/// The half of each family that a node keeps: that of its previous subnet, else that of its oldest lease, where it fits the config.
fn halves_kept(config: &NetworkConfig, ours: &[&Lease], previous: Option<Subnet>) -> Option<Subnet> {
    let mut by_age: Vec<&&Lease> = ours.iter().collect();
    by_age.sort_by_key(|lease| (lease.created, lease.subnet));
    let kept = |family| {
        let space = config.space(family)?;
        let leased = by_age.iter().map(|lease| lease.subnet);
        let halves = previous
            .into_iter()
            .chain(leased)
            .filter_map(|subnet| subnet.of(family));
        halves.into_iter().find(|net| half_fits(space, *net))
    };
    Subnet::new(v4_of(kept(Family::V4)), v6_of(kept(Family::V6)))
}

fn v4_of(net: Option<IpNet>) -> Option<Ipv4Net> {
    match net {
        Some(IpNet::V4(net)) => Some(net),
        _ => None,
    }
}

fn v6_of(net: Option<IpNet>) -> Option<Ipv6Net> {
    match net {
        Some(IpNet::V6(net)) => Some(net),
        _ => None,
    }
}

/// The lease of another node that overlaps `lease` and was created before it: the one that wins.
///
/// Create-if-absent guards one key, and two keys can overlap: dual stack sharing one half, another `SubnetLen`.
pub fn older_rival<'a>(
    config: &NetworkConfig,
    listing: &'a Snapshot,
    me: &PublicIps,
    lease: &Lease,
) -> Option<&'a Lease> {
    let rank = |lease: &Lease| (lease.created, lease.subnet);
    listing.leases.values().find(|other| {
        rank(other) < rank(lease)
            && inside(config, &other.subnet).is_some_and(|other| other.overlaps(&lease.subnet))
            && !me.own(config, other)
    })
}

/// Those halves of a subnet that are parts of their Network. What is all of it or more is served by nobody: one such entry must
/// not keep every node from its subnet.
fn inside(config: &NetworkConfig, subnet: &Subnet) -> Option<Subnet> {
    let is_part = |half: IpNet| {
        let space = config.space(Family::of_net(half));
        space.is_some_and(|Space { network, .. }| {
            network.contains(&half) && network.prefix_len() < half.prefix_len()
        })
    };
    Subnet::new(
        subnet.v4.filter(|half| is_part(IpNet::V4(*half))),
        subnet.v6.filter(|half| is_part(IpNet::V6(*half))),
    )
}

/// The subnet a key claims, also where the key is not spelt as it must be.
fn claimed_by(key: &str) -> Option<Subnet> {
    match Subnet::parse_key(key) {
        Ok(subnet) => Some(subnet),
        Err(SubnetKeyError::HostBits { expected, .. } | SubnetKeyError::NotCanonical { expected, .. }) => {
            Subnet::parse_key(&expected).ok()
        }
        Err(SubnetKeyError::Form(_)) => None,
    }
}

/// Chooses a subnet that overlaps none of `taken`: each half of the previous one where it fits and is free, else one of the
/// first hundred free at random.
pub fn choose(
    config: &NetworkConfig,
    taken: &[Subnet],
    previous: Option<Subnet>,
    random: &mut dyn FnMut(usize) -> usize,
) -> Result<Subnet, AllocError> {
    let mut half = |family: Family| -> Result<Option<IpNet>, AllocError> {
        let Some(space) = config.space(family) else {
            return Ok(None);
        };
        let busy = Busy::new(space, taken.iter().filter_map(|subnet| subnet.of(family)));
        if let Some(net) = previous.and_then(|subnet| subnet.of(family))
            && half_fits(space, net)
            && !busy.overlaps(number(net.addr()), size_of(space))
        {
            return Ok(Some(net));
        }
        let free = busy.first_free(space, POOL);
        if free.is_empty() {
            return Err(AllocError::OutOfSubnets(*space, busy.leases));
        }
        let index = random(free.len()) % free.len();
        let base = free.get(index).map(|base| address(family, *base));
        Ok(base.and_then(|base| IpNet::new(base, space.subnet_len).ok()))
    };
    let v4 = v4_of(half(Family::V4)?);
    let v6 = v6_of(half(Family::V6)?);
    Subnet::new(v4, v6).ok_or(AllocError::NoFamily)
}

fn size_of(space: &Space) -> u128 {
    let bits = Family::of_net(space.network).bits();
    1_u128
        .checked_shl(u32::from(bits.saturating_sub(space.subnet_len)))
        .unwrap_or(u128::MAX)
}

fn subnets_in(space: &Space) -> u128 {
    number(space.max).saturating_sub(number(space.min)) / size_of(space) + 1
}

/// The taken parts of a range: intervals (first, last), sorted and disjoint, so that a walk over them costs their number and
/// not that of the subnets they hold.
struct Busy {
    intervals: Vec<(u128, u128)>,
    /// How many leases lie in the range.
    leases: usize,
}

impl Busy {
    fn new(space: &Space, taken: impl Iterator<Item = IpNet>) -> Busy {
        let first = number(space.min);
        let last = number(space.max).saturating_add(size_of(space) - 1);
        let mut all: Vec<(u128, u128)> = taken
            .map(|net| (number(net.network()), number(net.broadcast())))
            .filter(|(from, to)| *from <= last && *to >= first)
            .collect();
        all.sort_unstable();
        let leases = all.len();
        let mut intervals: Vec<(u128, u128)> = Vec::with_capacity(leases);
        for (from, to) in all {
            match intervals.last_mut() {
                Some((_, end)) if from <= end.saturating_add(1) => *end = to.max(*end),
                _ => intervals.push((from, to)),
            }
        }
        Busy { intervals, leases }
    }

    fn overlaps(&self, base: u128, size: u128) -> bool {
        let after = self.intervals.partition_point(|(_, to)| *to < base);
        self.intervals
            .get(after)
            .is_some_and(|(from, _)| *from <= base.saturating_add(size - 1))
    }

    /// Bases of the first free subnets, at most `limit`.
    fn first_free(&self, space: &Space, limit: usize) -> Vec<u128> {
        let (size, max) = (size_of(space), number(space.max));
        let mut free = Vec::new();
        let mut busy = self.intervals.iter().peekable();
        let mut next = Some(number(space.min));
        while let Some(base) = next.filter(|base| *base <= max && free.len() < limit) {
            while busy.next_if(|(_, to)| *to < base).is_some() {}
            next = match busy.peek() {
                Some((from, to)) if *from <= base.saturating_add(size - 1) => to
                    .checked_add(1)
                    .and_then(|after| after.checked_next_multiple_of(size)),
                _ => {
                    free.push(base);
                    base.checked_add(size)
                }
            };
        }
        free
    }
}

#[cfg(test)]
mod tests;
