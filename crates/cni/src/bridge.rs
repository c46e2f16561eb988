//! The plugin `bridge`: a container's link into a bridge of the host.
//!
//! The layer 3 path and everything flannel asks of it. VLANs and MAC filtering are left to Go's plugin.

pub mod add;
pub mod check;
pub mod config;
pub mod del;
pub mod device;
pub mod masquerade;
mod second_default;

use fabric::object::LinkName;

use crate::bridge::config::Config;
use crate::call::{Call, Verb};
use crate::failure::{Code, Failure};
use crate::host_local::store::{Owner, Store};
use crate::{delegate, host_local};

pub use add::{AddFailure, add};
pub use check::check;
pub use del::del;

/// The IPAM plugin that runs in this process.
pub const HOST_LOCAL: &str = "host-local";

/// A link name the kernel takes.
pub fn link_name(name: &str) -> Result<LinkName, Failure> {
    LinkName::new(name).ok_or_else(|| {
        Failure::new(
            Code::InvalidEnvironment,
            format!("{name:?} is no name for a link"),
        )
    })
}

/// Name of the host's end of an attachment's link, so that it can be found without the container's. In form it is as random as
/// any other; where it is taken another is.
pub fn host_end(owner: &Owner) -> Result<LinkName, Failure> {
    // FNV-1a: nothing here needs the SHA-512 of the chains' names, which asks the processor what it can do before it begins, and
    // on virtual machines that costs more than the sum.
    let sum = owner
        .content()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    link_name(&format!("veth{:08x}", (sum >> 32) ^ (sum & 0xffff_ffff)))
}

/// The host's end of an attachment's link is there.
pub fn has_host_end(owner: &Owner) -> bool {
    let seen = host_end(owner)
        .ok()
        .and_then(|name| kernel::rtnl::Rtnl::open().ok()?.link_by_name(name).ok()?);
    seen.is_some()
}

/// STATUS: what the IPAM plugin says.
pub fn status(call: &Call) -> Result<(), Failure> {
    match Config::load(call)?.ipam.as_str() {
        "" => Ok(()),
        HOST_LOCAL => host_local::status(call),
        other => delegate::run(other, Verb::Status, &call.stdin, &call.env).map(drop),
    }
}

/// GC: of attachments of this network that are not listed, the link, masquerading, published ports and limits, then what the IPAM
/// plugin has.
pub fn gc(call: &Call) -> Result<(), Failure> {
    let config = Config::load(call)?;
    let Some(mut valid) = crate::gc::valid_attachments(call)? else {
        return Ok(());
    };
    // Going on after an error, and reporting all of them.
    let mut failures = Vec::new();
    if config.ipam == HOST_LOCAL {
        let ipam = host_local::config::Config::load(call)?;
        if let Some(mut store) = Store::open(&ipam.data_dir, &ipam.network)? {
            let all = store.all()?;
            let gone = crate::gc::unlisted(&mut store, &valid)?;
            drop(store);
            let stays = |owner: &Owner| !gone.iter().any(|(gone, _)| gone == owner);
            valid.extend(all.into_keys().filter(stays));
            for (owner, _) in &gone {
                failures.extend(del::remove_host_end(owner, config.bridge.as_str()).err());
            }
            failures.extend(crate::gc::forget_companions(&call.name, &gone, &valid).err());
        }
    }
    // Rules may be older than the configuration, so they are looked for whatever that says now.
    failures.extend(masquerade::sweep(&call.name, &valid).err());
    // The addresses last: whoever gets one meets nothing of its former holder.
    let ipam = match config.ipam.as_str() {
        "" => Ok(()),
        HOST_LOCAL => host_local::gc(call),
        other => delegate::run(other, Verb::Gc, &call.stdin, &call.env).map(drop),
    };
    failures.extend(ipam.err());
    crate::gc::all_of(failures)
}
