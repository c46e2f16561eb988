//! The IPAM plugin `host-local`: addresses out of ranges, reserved in files.

pub mod config;
pub mod owners;
pub mod ranges;
pub mod resolv;
pub mod store;
pub mod unlisted;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::call::Call;
use crate::doors;
use crate::failure::{Code, Failure};
use crate::files;
use crate::gc::valid_attachments;
use crate::host_local::config::HostLocalConfig;
use crate::host_local::ranges::{Range, RangeSet};
use crate::host_local::store::Store;
use crate::host_local::unlisted::unlisted;
use crate::owner::Owner;
use crate::result::{AddResult, IpConfig};
use crate::saved;

/// Its name.
pub const HOST_LOCAL: &str = "host-local";
/// In the message of the failure of an ADD that found no address free, Go's host-local's and ours.
const EXHAUSTED: &str = "no IP addresses available in range set";
/// In the message of the failure of an ADD whose address is held, Go's and ours.
const UNAVAILABLE: &str = "is not available in range set";
/// Holders that an error about an exhausted pool names.
const HOLDERS_NAMED: usize = 5;
/// Addresses of a pool that are looked for in other networks, for that error.
const SIBLINGS_COUNTED: usize = 4096;

/// ADD: reserves one address of each range set.
///
/// # Errors
///
/// A wrong configuration, an address that is asked for and not to be had, none free, or a file that cannot be written.
pub fn add(call: &Call) -> Result<AddResult, Failure> {
    let config = HostLocalConfig::load(call)?;
    allocate(&config, &Owner::of(call), None)
}

/// DEL: releases what the attachment holds; nothing is fine.
///
/// # Errors
///
/// A wrong configuration, or a file that cannot be removed.
pub fn del(call: &Call) -> Result<(), Failure> {
    let config = HostLocalConfig::load_for_del(call)?;
    release(&config.data_dir, &config.network, &Owner::of(call), &[]).map(drop)
}

/// CHECK: the attachment holds an address.
///
/// # Errors
///
/// There is none.
pub fn check(call: &Call) -> Result<(), Failure> {
    let config = HostLocalConfig::load(call)?;
    let held = match Store::open(&config.data_dir, &config.network)? {
        Some(mut store) => store.held_by(&Owner::of(call))?,
        None => Vec::new(),
    };
    if held.is_empty() {
        let id = &call.env.container_id;
        return Err(Failure::internal(format!(
            "host-local: Failed to find address added by container {id}"
        )));
    }
    Ok(())
}

/// STATUS: at least one address of each set is free.
///
/// # Errors
///
/// Code 50 where a set is exhausted; the holders are counted in its details.
pub fn status(call: &Call) -> Result<(), Failure> {
    let config = HostLocalConfig::load(call)?;
    let Some(mut store) = Store::open(&config.data_dir, &config.network)? else {
        return Ok(());
    };
    let mut all: Option<BTreeMap<Owner, Vec<IpAddr>>> = None;
    for (i, set) in config.sets.iter().enumerate() {
        // The address behind the last one is free almost always, and one look tells.
        let last = store.last_reserved(i);
        if set.candidates(last).take(8).any(|(ip, _)| !store.is_reserved(ip)) {
            continue;
        }
        if all.is_none() {
            all = Some(store.all()?);
        }
        let all = all.iter().flatten();
        let held: std::collections::HashSet<IpAddr> = all.flat_map(|(_, ips)| ips.iter().copied()).collect();
        if set.candidates(last).all(|(ip, _)| held.contains(&ip)) {
            let msg = format!("{EXHAUSTED}: {set}");
            let hint =
                "`flannelctl ipam list` shows who holds them, `flannelctl ipam gc` frees those of dead pods";
            return Err(Failure::new(Code::NotAvailable, msg).with_details(hint));
        }
    }
    Ok(())
}

/// GC: releases what no listed attachment holds. Without a list nothing is known to be garbage.
///
/// # Errors
///
/// A wrong configuration or list, or a file that cannot be removed.
pub fn gc(call: &Call) -> Result<(), Failure> {
    let config = HostLocalConfig::load(call)?;
    let Some(valid) = valid_attachments(call)? else {
        return Ok(());
    };
    let Some(mut store) = Store::open(&config.data_dir, &config.network)? else {
        return Ok(());
    };
    for (owner, _) in unlisted(&mut store, &valid)? {
        store.release(&owner, &[])?;
    }
    Ok(())
}

/// An ADD failed because no address was free, or not the one it has to have: where the dead hold it, there is a cure.
pub fn lacks_an_address(failure: &Failure) -> bool {
    failure.msg.contains(EXHAUSTED) || failure.msg.contains(UNAVAILABLE)
}

/// Reserves one address of each set, all or none, under one hold of the lock.
///
/// `flannel` is the folder of flannel's saved configurations when flannel asks: its networks share one subnet under several
/// names, so an address that a sibling network of flannel's holds is not taken (Go hands it out twice).
///
/// # Errors
///
/// As [`add`]; nothing is reserved then.
pub fn allocate(
    config: &HostLocalConfig,
    owner: &Owner,
    flannel: Option<&str>,
) -> Result<AddResult, Failure> {
    let dns = match config.resolv_conf.as_str() {
        "" => Default::default(),
        path => resolv::load(path)?,
    };
    let siblings = match flannel {
        Some(state) => Some(Siblings::lock(&config.data_dir, &config.network, state)?),
        None => None,
    };
    let mut store = Store::create(&config.data_dir, &config.network)?;
    let before = store.held_by(owner)?;
    let mut unused = config.requested.clone();
    let mut taken: Vec<(IpAddr, &Range)> = Vec::with_capacity(config.sets.len());
    let failed = |store: &mut Store, taken: &[(IpAddr, &Range)], failure: Failure| {
        let ips: Vec<IpAddr> = taken.iter().map(|(ip, _)| *ip).collect();
        let _ = store.remove(&ips);
        store.index(owner, &before);
        Err(failure)
    };
    for (i, set) in config.sets.iter().enumerate() {
        let asked = unused
            .iter()
            .position(|ip| set.range_for(*ip).is_some())
            .map(|at| unused.remove(at));
        match take(&mut store, owner, i, set, asked, &before, siblings.as_ref()) {
            Ok(found) => taken.push(found),
            Err(mut failure) => {
                failure.msg = format!("failed to allocate for range {i}: {}", failure.msg);
                return failed(&mut store, &taken, failure);
            }
        }
    }
    if !unused.is_empty() {
        let list: String = unused.iter().map(|ip| format!(" {ip}")).collect();
        let failure = Failure::internal(format!("failed to allocate all requested IPs:{list}"));
        return failed(&mut store, &taken, failure);
    }
    let held: Vec<IpAddr> = before
        .iter()
        .copied()
        .chain(taken.iter().map(|(ip, _)| *ip))
        .collect();
    store.index(owner, &held);
    let ips = taken.iter().map(|(ip, range)| IpConfig {
        interface: None,
        address: IpNet::new(*ip, range.subnet.prefix_len()).unwrap_or_else(|_| IpNet::from(*ip)),
        gateway: Some(range.gateway),
    });
    Ok(AddResult {
        ips: ips.collect(),
        routes: config.routes.clone(),
        dns,
        ..AddResult::default()
    })
}

fn take<'a>(
    store: &mut Store,
    owner: &Owner,
    index: usize,
    set: &'a RangeSet,
    asked: Option<IpAddr>,
    before: &[IpAddr],
    siblings: Option<&Siblings>,
) -> Result<(IpAddr, &'a Range), Failure> {
    let elsewhere = |ip| siblings.is_some_and(|s| s.hold(ip));
    let found = match asked {
        Some(ip) => {
            let Some(range) = set.range_for(ip) else {
                return Err(Failure::internal(format!("{ip} not in range set {set}")));
            };
            if ip == range.gateway {
                return Err(Failure::internal(format!(
                    "requested ip {ip} is subnet's gateway"
                )));
            }
            match store.reserve(owner, std::iter::once((ip, range)), elsewhere)? {
                Some(found) => found,
                None => return Err(unavailable(store, ip, set, siblings)),
            }
        }
        None => {
            if let Some(ip) = before.iter().find(|ip| set.range_for(**ip).is_some()) {
                return Err(Failure::internal(format!(
                    "{ip} has been allocated to {}, duplicate allocation is not allowed",
                    owner.container
                )));
            }
            let last = store.last_reserved(index);
            match store.reserve(owner, set.candidates(last), elsewhere)? {
                Some(found) => found,
                None => return Err(exhausted(store, set, siblings)),
            }
        }
    };
    store.set_last_reserved(index, found.0);
    Ok(found)
}

/// The error of an address that is asked for and held; its details say by whom and since when.
fn unavailable(store: &Store, ip: IpAddr, set: &RangeSet, siblings: Option<&Siblings>) -> Failure {
    let failure = Failure::internal(format!("requested IP address {ip} {UNAVAILABLE} {set}"));
    let (owner, age, place) = match store.holder(ip) {
        Some(owner) => (owner, store.age(ip), store.path().to_owned()),
        None => match siblings.and_then(|siblings| siblings.holder(ip)) {
            Some((owner, place)) => (owner, None, place),
            None => return failure,
        },
    };
    let since = age
        .map(|age| format!(" for {}", words_of(age)))
        .unwrap_or_default();
    let Owner { container, ifname } = owner;
    failure.with_details(format!(
        "{container} {ifname} has held it{since} in {place}: `flannelctl ipam list` says whether that lives, `flannelctl ipam gc` frees \
         what the dead hold"
    ))
}

/// A length of time in its largest unit.
fn words_of(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// The error of a pool without a free address; its details say who holds it, and how to get rid of the dead.
fn exhausted(store: &mut Store, set: &RangeSet, siblings: Option<&Siblings>) -> Failure {
    let failure = Failure::internal(format!("{EXHAUSTED}: {set}"));
    let Ok(all) = store.all() else { return failure };
    let held = all
        .iter()
        .flat_map(|(owner, ips)| ips.iter().map(move |ip| (*ip, owner)));
    let mut held: Vec<_> = held.filter(|(ip, _)| set.range_for(*ip).is_some()).collect();
    held.sort_unstable_by_key(|(ip, _)| *ip);
    let names: Vec<String> = held
        .iter()
        .take(HOLDERS_NAMED)
        .map(|(ip, owner)| {
            format!("{ip} by {} {}", owner.container, owner.ifname)
                .trim_end()
                .to_owned()
        })
        .collect();
    let mut details = format!("{} held in {}: {}", held.len(), store.path(), names.join(", "));
    let more = held.len().saturating_sub(names.len());
    if more > 0 {
        details.push_str(&format!(" and {more} more"));
    }
    let is_held = |ip: &IpAddr| held.binary_search_by_key(ip, |(ip, _)| *ip).is_ok();
    let elsewhere = siblings.map_or(0, |siblings| {
        let ips = set.candidates(None).map(|(ip, _)| ip).take(SIBLINGS_COUNTED);
        ips.filter(|ip| !is_held(ip) && siblings.hold(*ip)).count()
    });
    if elsewhere > 0 {
        details.push_str(&format!("; {elsewhere} in other networks of flannel's"));
    }
    // Of flannel's pods it takes no walk through the machine: each hangs on a link of this host.
    let seen = siblings.and_then(|_| doors::addresses_beyond());
    details.push_str(&match seen {
        Some(seen) => match held.iter().filter(|(ip, _)| !seen.contains(ip)).count() {
            0 => "; none of them looks dead (`flannelctl ipam list` says more)".to_owned(),
            dead => format!(
                "; {dead} of them look dead: `flannelctl ipam list` shows which, `flannelctl ipam gc` frees them"
            ),
        },
        None => "; `flannelctl ipam list` shows which are dead, `flannelctl ipam gc` frees those".to_owned(),
    });
    failure.with_details(details)
}

/// Releases what an attachment holds in a network; returns how many addresses that were.
///
/// # Errors
///
/// A file that cannot be read or removed.
pub fn release(data_dir: &str, network: &str, owner: &Owner, hints: &[IpAddr]) -> Result<usize, Failure> {
    match Store::open(data_dir, network)? {
        Some(mut store) => Ok(store.release(owner, hints)?),
        None => Ok(0),
    }
}

/// The other networks beside one, locked against other allocations for flannel.
struct Siblings {
    data_dir: String,
    names: Vec<String>,
    flannel: String,
    _lock: std::os::fd::OwnedFd,
}

impl Siblings {
    fn lock(data_dir: &str, own: &str, flannel: &str) -> Result<Siblings, Failure> {
        let folder = match files::open_folder(data_dir) {
            Err(e) if e.is_absent() => {
                files::make_folders(data_dir, 0o755)?;
                files::open_folder(data_dir)
            }
            other => other,
        }?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&folder, rustix::fs::FlockOperation::LockExclusive))
            .map_err(|e| files::FileError::new("flock", data_dir, e))?;
        let names = files::folders(&folder).map_err(|e| files::FileError::new("read", data_dir, e))?;
        let names = names
            .into_iter()
            .filter(|name| name != own && !name.starts_with('.'))
            .collect();
        Ok(Siblings {
            data_dir: data_dir.to_owned(),
            names,
            flannel: flannel.to_owned(),
            _lock: folder,
        })
    }

    /// An attachment of flannel's holds the address in another network.
    fn hold(&self, ip: IpAddr) -> bool {
        self.holder(ip).is_some()
    }

    /// Which attachment that is, and the folder of its network.
    fn holder(&self, ip: IpAddr) -> Option<(Owner, String)> {
        self.names.iter().find_map(|name| {
            let folder = format!("{}/{name}", self.data_dir);
            let content = files::read(&format!("{folder}/{ip}"), 4096).ok()?;
            let owner = Owner::parse(&content)?;
            saved::may_know(&self.flannel, &owner, name).then_some((owner, folder))
        })
    }
}

#[cfg(test)]
mod tests;
