//! The plugin `bridge`: a container's link into a bridge of the host.
//!
//! The layer 3 path and everything flannel asks of it. VLANs and MAC filtering are left to Go's plugin.

pub mod add;
pub mod check;
pub mod config;
pub mod del;
pub mod device;
mod forwarding;
pub mod masquerade;
mod second_default;

use ipnet::IpNet;

use crate::bridge::config::{BridgeConfig, Ipam};
use crate::call::{Call, Verb};
use crate::companions;
use crate::delegate;
use crate::failure::Failure;
use crate::gc::{all_of, valid_attachments};
use crate::host_local;
use crate::host_local::config::HostLocalConfig;
use crate::host_local::store::Store;
use crate::host_local::unlisted::unlisted;
use crate::owner::Owner;

pub use add::{AddFailure, add};
pub use check::check;
pub use del::del;

/// Whether the gateways of a configuration's ranges can be given to its bridge.
///
/// # Errors
///
/// As [`device::check_gateways`], and a wrong configuration.
pub fn check_gateways(call: &Call) -> Result<(), Failure> {
    let config = BridgeConfig::load(call)?;
    let ipam = HostLocalConfig::load(call)?;
    let ranges = ipam.sets.iter().flat_map(|set| set.ranges());
    let gateways = ranges.filter_map(|range| IpNet::new(range.gateway, range.subnet.prefix_len()).ok());
    device::check_gateways(&config, &gateways.collect::<Vec<_>>())
}

/// STATUS: what the IPAM plugin says.
///
/// # Errors
///
/// The IPAM plugin's: no address free, or a wrong configuration.
pub fn status(call: &Call) -> Result<(), Failure> {
    match BridgeConfig::load(call)?.ipam {
        Ipam::None => Ok(()),
        Ipam::HostLocal => host_local::status(call),
        Ipam::Plugin(other) => delegate::run(&other, Verb::Status, &call.stdin, &call.env).map(drop),
    }
}

/// GC: of attachments of this network that are not listed, the link, masquerading, published ports and limits, then what the IPAM
/// plugin has.
///
/// # Errors
///
/// All that could not be removed, in one; the rest is.
pub fn gc(call: &Call) -> Result<(), Failure> {
    let config = BridgeConfig::load(call)?;
    let Some(mut valid) = valid_attachments(call)? else {
        return Ok(());
    };
    // Going on after an error, and reporting all of them.
    let mut failures = Vec::new();
    if config.ipam == Ipam::HostLocal {
        let ipam = HostLocalConfig::load(call)?;
        if let Some(mut store) = Store::open(&ipam.data_dir, &ipam.network)? {
            let all = store.all()?;
            let gone = unlisted(&mut store, &valid)?;
            drop(store);
            let stays = |owner: &Owner| !gone.iter().any(|(gone, _)| gone == owner);
            valid.extend(all.into_keys().filter(stays));
            for (owner, _) in &gone {
                failures.extend(del::remove_host_end(owner, config.bridge.as_str()).err());
            }
            failures.extend(companions::remove_of(&call.name, &gone, &valid).err());
        }
    }
    // Rules may be older than the configuration, so they are looked for whatever that says now.
    failures.extend(masquerade::sweep(&call.name, &valid).err());
    // The addresses last: whoever gets one meets nothing of its former holder.
    let ipam = match &config.ipam {
        Ipam::None => Ok(()),
        Ipam::HostLocal => host_local::gc(call),
        Ipam::Plugin(other) => delegate::run(other, Verb::Gc, &call.stdin, &call.env).map(drop),
    };
    failures.extend(ipam.err());
    all_of(failures)
}
