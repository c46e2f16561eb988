//! The plugin `bandwidth`: limits what a container sends and receives.
//!
//! What it receives is limited on the host's end of its link, what it sends on an `ifb` device that the host's end hands it to.

pub mod shaping;

use std::collections::HashSet;

use fabric::object::LinkName;
use kernel::nl::{Message, flag};
use kernel::rtnl::Rtnl;
use kernel::rtnl::link::{self, ObservedLink};

use crate::bandwidth::shaping::{Bucket, add_bucket, bucket_of, redirect_received, ticks_per_microsecond};
use crate::call::Call;
use crate::digest::sha512;
use crate::failure::Failure;
use crate::gc::valid_attachments;
use crate::host_local::unlisted::unlisted_by_default_store;
use crate::json::{FieldError, JsonObject};
use crate::links::link_name;
use crate::netns::{self, Sides, kernel_text};
use crate::offer::{self, Offer};
use crate::owner::{Holding, Owner};
use crate::result::{AddResult, Interface};
use crate::version;

/// Keys of the configuration that this build takes into account.
pub const KEYS: &[&str] = &[
    "cniVersion",
    "name",
    "type",
    "capabilities",
    "ipam",
    "dns",
    "prevResult",
    "args",
    "runtimeConfig",
    "ingressRate",
    "ingressBurst",
    "egressRate",
    "egressBurst",
];

/// The plugin's verbs. Results without interfaces, those of the two oldest versions, say nothing to it.
pub const OFFER: Offer = Offer {
    name: "bandwidth",
    versions: version::SUPPORTED.split_at(2).1,
    add: |call| add(call)?.print(&call.version),
    del,
    check,
    status: offer::nothing,
    gc,
};

/// Limits in bits a second and bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Limits {
    /// Towards the container: rate and burst.
    ingress: Option<(u64, u64)>,
    /// From the container.
    egress: Option<(u64, u64)>,
}

struct BandwidthConfig {
    limits: Limits,
    previous: Option<AddResult>,
}

fn parse(call: &Call) -> Result<BandwidthConfig, Failure> {
    let top = call.fields();
    let wrong = |e: FieldError| Failure::internal(format!("failed to parse network configuration: {e}"));
    let names = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];
    // The configuration's own limits go before the runtime's, all of them.
    let own = names.iter().any(|name| top.get(name).is_some());
    let given = match own {
        true => top.clone(),
        false => top
            .object("runtimeConfig")
            .and_then(|r| r.object("bandwidth"))
            .map_err(wrong)?,
    };
    let pair = |given: &JsonObject<'_>, rate: &str, burst: &str| -> Result<Option<(u64, u64)>, Failure> {
        let number = |name: &str| -> Result<u64, Failure> {
            let Some(value) = given.get(name) else {
                return Ok(0);
            };
            let whole = crate::json::whole(value).and_then(|n| u64::try_from(n).ok());
            whole.ok_or_else(|| wrong(given.wrong(name, value, "a whole number of bits, not negative")))
        };
        let refused = |why: String| Err(Failure::internal(why));
        let place = if own { "" } else { "runtimeConfig.bandwidth." };
        match (number(rate)?, number(burst)?) {
            (0, 0) => Ok(None),
            (given, 0) => refused(format!(
                "if rate is set, burst must also be set: {place}{rate} is {given}, {burst} is not set"
            )),
            (0, given) => refused(format!(
                "if burst is set, rate must also be set: {place}{burst} is {given}, {rate} is not set"
            )),
            (_, given) if given / 8 >= u64::from(u32::MAX) => refused(format!(
                "burst cannot be more than 4GB: {place}{burst} is {given} bits"
            )),
            (given, _) if given < 8 => refused(format!(
                "invalid rate: {given}: {place}{rate} has to be 8 bits a second at least"
            )),
            (rate, burst) => Ok(Some((rate, burst))),
        }
    };
    let limits = Limits {
        ingress: pair(&given, "ingressRate", "ingressBurst")?,
        egress: pair(&given, "egressRate", "egressBurst")?,
    };
    let previous = match top.get("prevResult") {
        Some(previous) => Some(AddResult::parse_previous(previous, &call.version)?),
        None => None,
    };
    Ok(BandwidthConfig { limits, previous })
}

/// Names of the device for what the container sends. Go's does not tell a container's interfaces apart; the second one does, for
/// when the first is another attachment's.
fn devices(call: &Call) -> Result<[LinkName; 2], Failure> {
    devices_of(&call.name, &Owner::of(call))
}

fn devices_of(network: &str, owner: &Owner) -> Result<[LinkName; 2], Failure> {
    let Owner { container, ifname } = owner;
    let shared = sha512(&format!("{network}{container}"), 12);
    let own = sha512(&format!("{network}{container}:{ifname}"), 12);
    Ok([
        link_name(&format!("bwp{shared}"))?,
        link_name(&format!("bwp{own}"))?,
    ])
}

fn said(error: kernel::NetlinkError) -> Failure {
    Failure::internal(format!("{}: {}", error.verb, kernel_text(&error)))
}

/// The host's end of the container's link, which the previous result has to know.
fn host_end(call: &Call, host: &mut Rtnl, previous: &AddResult) -> Result<ObservedLink, Failure> {
    if previous.interfaces.is_empty() {
        return Err(Failure::internal("no interfaces provided"));
    }
    let pod = netns::open(&call.env.netns)?.ok_or_else(|| netns::missing(&call.env.netns))?;
    let mut pod = Sides::new(pod)?.inside(Rtnl::open)?.map_err(said)?;
    let inner = pod.link_by_name(link_name(&call.env.ifname)?).map_err(said)?;
    let peer = inner.as_ref().and_then(|inner| inner.lower);
    let (Some(inner), Some(peer)) = (inner, peer) else {
        return Err(Failure::internal(format!(
            "container interface {} has no veth peer",
            call.env.ifname
        )));
    };
    let outer = host.link_by_index(peer).map_err(said)?;
    // Of two namespaces' indices alone nothing follows: the end has to name the container's.
    let outer = outer.filter(|outer| outer.lower == Some(inner.index));
    let Some(outer) = outer else {
        return Err(Failure::internal(format!(
            "veth peer with index {peer} is not in host ns"
        )));
    };
    let known = |i: &Interface| i.sandbox.is_empty() && i.name == outer.name.as_str();
    match previous.interfaces.iter().any(known) {
        true => Ok(outer),
        false => Err(Failure::internal(
            "no veth peer of container interface found in host ns",
        )),
    }
}

fn add_device(host: &mut Rtnl, name: LinkName, mtu: u32) -> Result<(), kernel::NetlinkError> {
    const IFLA_IFNAME: u16 = 3;
    const IFLA_MTU: u16 = 4;
    const IFLA_TXQLEN: u16 = 13;
    const IFLA_LINKINFO: u16 = 18;
    let message = Message::new("adding link", link::NEW, flag::ADD)
        .raw(&link::header(0, link::UP, link::UP))
        .text(IFLA_IFNAME, name.as_str())
        .u32(IFLA_MTU, mtu)
        .u32(IFLA_TXQLEN, 0)
        .nest(IFLA_LINKINFO, |info| info.attribute(1, b"ifb"));
    host.socket().request(&message)
}

/// ADD: the limits; the result is the previous one with the device added.
///
/// # Errors
///
/// A wrong configuration, a link that cannot be found, and what the kernel refuses; the device is gone again then.
pub fn add(call: &Call) -> Result<AddResult, Failure> {
    let config = parse(call)?;
    let Some(mut result) = config.previous else {
        return Err(Failure::internal("must be called as chained plugin"));
    };
    if config.limits == Limits::default() {
        return Ok(result);
    }
    let mut host = Rtnl::open().map_err(said)?;
    let veth = host_end(call, &mut host, &result)?;
    let ticks = ticks_per_microsecond();
    if let Some((rate, burst)) = config.limits.ingress {
        add_bucket(&mut host, veth.index, Bucket::new(rate, burst, ticks)).map_err(said)?;
    }
    let Some((rate, burst)) = config.limits.egress else {
        return Ok(result);
    };
    let [shared, own] = devices(call)?;
    let name = match add_device(&mut host, shared, veth.mtu) {
        Ok(()) => shared,
        Err(e) if e.is_exists() => {
            add_device(&mut host, own, veth.mtu).map_err(said)?;
            own
        }
        Err(e) => return Err(said(e)),
    };
    let mut limit = || -> Result<ObservedLink, kernel::NetlinkError> {
        let device = host.link_by_name(name)?.ok_or_else(|| gone(name))?;
        redirect_received(&mut host, veth.index, device.index)?;
        add_bucket(&mut host, device.index, Bucket::new(rate, burst, ticks))?;
        Ok(device)
    };
    match limit() {
        Ok(device) => {
            result.interfaces.push(Interface {
                name: name.to_string(),
                mac: device.mac.map(|mac| mac.to_string()).unwrap_or_default(),
                ..Interface::default()
            });
            Ok(result)
        }
        Err(e) => {
            // What hangs on the container's link goes with it.
            let _ = host.delete_link_by_name(name);
            Err(said(e))
        }
    }
}

fn gone(name: LinkName) -> kernel::NetlinkError {
    kernel::NetlinkError {
        verb: format!("get link {name}").into(),
        errno: rustix::io::Errno::NODEV.raw_os_error(),
        text: Box::default(),
        offset: None,
        fault: kernel::nl::Fault::Refused,
    }
}

/// DEL: the device; none is fine. The rest goes with the container's link.
///
/// Its name says whose it is, so limits that an ADD has refused keep nothing from going.
///
/// # Errors
///
/// What the kernel refuses to remove.
pub fn del(call: &Call) -> Result<(), Failure> {
    let mut host = Rtnl::open().map_err(said)?;
    let [shared, own] = devices(call)?;
    // Which of the two it is the result of the ADD tells: the shared one may be another attachment's.
    let previous = parse(call).ok().and_then(|config| config.previous);
    if previous.is_some_and(|p| p.interfaces.iter().any(|i| i.name == own.as_str())) {
        return host.delete_link_by_name(own).map(drop).map_err(said);
    }
    if !host.delete_link_by_name(own).map_err(said)? {
        host.delete_link_by_name(shared).map_err(said)?;
    }
    Ok(())
}

/// Removes what limits have left of an attachment in a network, for a list that has lost its `bandwidth` or its name since: the device
/// that tells the container's interfaces apart, and the other one where no interface of it is left in the network.
///
/// # Errors
///
/// What the kernel refuses to remove.
pub fn remove_left(network: &str, owner: &Owner, is_last: bool) -> Result<(), Failure> {
    let mut host = Rtnl::open().map_err(said)?;
    let [shared, own] = devices_of(network, owner)?;
    for name in [Some(own), is_last.then_some(shared)].into_iter().flatten() {
        host.delete_link_by_name(name).map_err(said)?;
    }
    Ok(())
}

/// GC: devices of containers of this network that are not listed. A device does not tell a network: it goes when its container
/// still has an address reserved here, where nobody has collected that yet.
///
/// # Errors
///
/// A list that cannot be read, and what the kernel refuses to remove.
pub fn gc(call: &Call) -> Result<(), Failure> {
    let Some(valid) = valid_attachments(call)? else {
        return Ok(());
    };
    let gone = unlisted_by_default_store(&call.name, &valid)?;
    remove_of(&call.name, &gone, &valid)
}

/// Removes the devices of attachments that are gone. The one that does not tell a container's interfaces apart stays as long as
/// another attachment of the container does.
///
/// # Errors
///
/// What the kernel refuses to remove.
pub fn remove_of(network: &str, gone: &[Holding], valid: &[Owner]) -> Result<(), Failure> {
    let stays: HashSet<&str> = valid.iter().map(|owner| owner.container.as_str()).collect();
    let mut theirs = HashSet::new();
    for (owner, _) in gone {
        let [shared, own] = devices_of(network, owner)?;
        theirs.insert(own);
        if !stays.contains(owner.container.as_str()) {
            theirs.insert(shared);
        }
    }
    if theirs.is_empty() {
        return Ok(());
    }
    let mut host = Rtnl::open().map_err(said)?;
    let is_theirs = |link: &ObservedLink| &*link.kind == "ifb" && theirs.contains(&link.name);
    for link in host.links().map_err(said)?.into_iter().filter(is_theirs) {
        host.delete_link_by_name(link.name).map_err(said)?;
    }
    Ok(())
}

/// CHECK: both limits are what they were set to.
///
/// # Errors
///
/// The first limit that is not as it was set, or what keeps from looking.
pub fn check(call: &Call) -> Result<(), Failure> {
    let config = parse(call)?;
    let Some(previous) = config.previous else {
        return Err(Failure::internal("must be called as a chained plugin"));
    };
    let mut host = Rtnl::open().map_err(said)?;
    let veth = host_end(call, &mut host, &previous)?;
    let ticks = ticks_per_microsecond();
    let mut compare = |link: u32, (rate, burst): (u64, u64)| -> Result<(), Failure> {
        let wanted = Bucket::new(rate, burst, ticks);
        let Some(have) = bucket_of(&mut host, link).map_err(said)? else {
            return Err(Failure::internal("Failed to find qdisc"));
        };
        for (same, what) in [
            (have.rate == wanted.rate, "Rate"),
            (have.limit == wanted.limit, "Limit"),
            (have.buffer == wanted.buffer, "Buffer"),
        ] {
            if !same {
                return Err(Failure::internal(format!("{what} doesn't match")));
            }
        }
        Ok(())
    };
    if let Some(limits) = config.limits.ingress {
        compare(veth.index, limits)?;
    }
    if let Some(limits) = config.limits.egress {
        let names = devices(call)?;
        let listed = |name: &&LinkName| previous.interfaces.iter().any(|i| i.name == name.as_str());
        let name = *names.iter().find(listed).unwrap_or(&names[0]);
        let device = Rtnl::open()
            .and_then(|mut host| host.link_by_name(name))
            .map_err(said)?;
        let Some(device) = device else {
            return Err(Failure::internal(format!("get ifb device: {name} is gone")));
        };
        compare(device.index, limits)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::call::Environment;

    fn call(more: &str) -> Call {
        let env = Environment {
            command: "ADD".into(),
            container_id: "c1".into(),
            ifname: "eth0".into(),
            netns: "/nonexistent/ns".into(),
            ..Environment::default()
        };
        Call::check(
            env,
            format!(r#"{{"name":"cbr0","cniVersion":"1.0.0"{more}}}"#).into_bytes(),
        )
        .unwrap()
    }

    fn limits(more: &str) -> Result<Limits, String> {
        parse(&call(more)).map(|config| config.limits).map_err(|f| f.msg)
    }

    #[test]
    fn limits_when_given_twice_are_the_configurations_own_and_none_is_none() {
        assert_eq!(limits(""), Ok(Limits::default()));
        let runtime = r#","runtimeConfig":{"bandwidth":{"ingressRate":8,"ingressBurst":16,"egressRate":24,"egressBurst":32}}"#;
        let both = Limits {
            ingress: Some((8, 16)),
            egress: Some((24, 32)),
        };
        assert_eq!(limits(runtime), Ok(both));
        let own = Limits {
            ingress: None,
            egress: Some((1000, 2000)),
        };
        assert_eq!(
            limits(&format!(r#"{runtime},"egressRate":1000,"egressBurst":2000"#)),
            Ok(own)
        );
    }

    #[test]
    fn limits_when_one_of_a_pair_is_missing_or_out_of_bounds_are_refused_in_gos_words() {
        let egress =
            |rate: &str, burst: &str| limits(&format!(r#","egressRate":{rate},"egressBurst":{burst}"#));
        for (rate, burst, words) in [
            (
                "8",
                "0",
                "if rate is set, burst must also be set: egressRate is 8, egressBurst is not set",
            ),
            (
                "0",
                "8",
                "if burst is set, rate must also be set: egressBurst is 8, egressRate is not set",
            ),
            (
                "8",
                "34359738360",
                "burst cannot be more than 4GB: egressBurst is 34359738360 bits",
            ),
            (
                "7",
                "8",
                "invalid rate: 7: egressRate has to be 8 bits a second at least",
            ),
            (
                "-1",
                "8",
                "egressRate is -1: expected a whole number of bits, not negative",
            ),
        ] {
            let error = egress(rate, burst).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(
            egress("8", "34359738359").unwrap().egress,
            Some((8, 34_359_738_359))
        );
        let runtime = limits(r#","runtimeConfig":{"bandwidth":{"ingressRate":8}}"#).unwrap_err();
        assert!(
            runtime.contains("runtimeConfig.bandwidth.ingressRate is 8"),
            "{runtime}"
        );
    }

    #[test]
    fn call_when_it_comes_first_or_limits_nothing_asks_the_kernel_for_nothing() {
        assert_eq!(
            add(&call("")).unwrap_err().msg,
            "must be called as chained plugin"
        );
        assert_eq!(
            check(&call("")).unwrap_err().msg,
            "must be called as a chained plugin"
        );
        let previous = r#","prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]}"#;
        assert_eq!(add(&call(previous)).unwrap().ips.len(), 1);
        let limited = format!(r#"{previous},"egressRate":8,"egressBurst":8"#);
        assert_eq!(add(&call(&limited)).unwrap_err().msg, "no interfaces provided");
    }

    /// Go's DEL finds the first by its name.
    #[test]
    fn devices_when_named_tell_container_and_network_and_the_second_the_interface() {
        let names = |network: &str, container: &str, ifname: &str| {
            devices_of(network, &Owner::new(container, ifname))
                .unwrap()
                .map(|name| name.to_string())
        };
        assert_eq!(
            names("cbr0", "c1", "eth0"),
            ["bwp68f1f1eeb62c", "bwp6980c46e3ebf"]
        );
        assert_eq!(
            devices(&call("")).unwrap().map(|n| n.to_string()),
            names("cbr0", "c1", "eth0")
        );
        let other = names("cbr0", "c1", "net1");
        assert_eq!(other[0], "bwp68f1f1eeb62c");
        assert_ne!(other[1], names("cbr0", "c1", "eth0")[1]);
    }
}
