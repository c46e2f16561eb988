//! What a GC call lists as alive, and what goes with an attachment that is not.

use std::net::IpAddr;

use crate::call::Call;
use crate::failure::{Code, Failure};
use crate::files::FileError;
use crate::host_local::config::DATA_DIR;
use crate::host_local::store::{Owner, Store};
use crate::portmap::forget::Gone;
use crate::{bandwidth, bridge, portmap};

/// The attachments that are to stay, and nothing when the call lists none at all (`cnitool gc` does so): then nothing is
/// known to be garbage. An empty list means that everything is.
pub fn valid_attachments(call: &Call) -> Result<Option<Vec<Owner>>, Failure> {
    let wrong = |e: crate::json::FieldError| Failure::new(Code::InvalidConfig, e.to_string());
    let fields = call.fields();
    // The second name is the one of drafts, which libcni sends beside the first.
    for name in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        if fields.get(name).is_none() {
            continue;
        }
        let mut valid = Vec::new();
        for item in fields.objects(name).map_err(wrong)? {
            let text = |name: &str| {
                item.string(name)
                    .map(|t| t.unwrap_or_default().to_owned())
                    .map_err(wrong)
            };
            valid.push(Owner {
                container: text("containerID")?,
                ifname: text("ifname")?,
            });
        }
        return Ok(Some(valid));
    }
    Ok(None)
}

/// Attachments with an address in a network that are not to stay, with their addresses.
///
/// A file that names no interface is kept as long as any interface of its container is; one that is younger than a minute while the
/// container's link is there is perhaps of an ADD that the caller did not know of yet when it made its list.
pub fn unlisted(store: &mut Store, valid: &[Owner]) -> Result<Vec<(Owner, Vec<IpAddr>)>, FileError> {
    let all = store.all()?;
    let stays = |owner: &Owner, addresses: &[IpAddr]| {
        let listed = |v: &Owner| {
            v.container == owner.container && (owner.ifname.is_empty() || v.ifname == owner.ifname)
        };
        valid.iter().any(listed)
            || addresses.iter().any(|ip| store.is_young(*ip)) && bridge::has_host_end(owner)
    };
    Ok(all
        .into_iter()
        .filter(|(owner, addresses)| !stays(owner, addresses))
        .collect())
}

/// As [`unlisted`], of the folder where reservations are unless a configuration says otherwise, for plugins whose configuration
/// says nothing about addresses.
pub fn unlisted_by_default_store(
    network: &str,
    valid: &[Owner],
) -> Result<Vec<(Owner, Vec<IpAddr>)>, FileError> {
    match Store::open(DATA_DIR, network)? {
        Some(mut store) => unlisted(&mut store, valid),
        None => Ok(Vec::new()),
    }
}

/// Removes what plugins chained after the one with the addresses have made for these attachments: published ports and limits.
pub fn forget_companions(
    network: &str,
    gone: &[(Owner, Vec<IpAddr>)],
    valid: &[Owner],
) -> Result<(), Failure> {
    let ports = portmap::forget::forget(network, &Gone::among(gone, valid)).map_err(Failure::internal);
    let limits = bandwidth::forget(network, gone.iter().map(|(owner, _)| owner), valid);
    all_of([ports.err(), limits.err()].into_iter().flatten().collect())
}

/// One failure of many: the first one's code, every message.
pub fn all_of(failures: Vec<Failure>) -> Result<(), Failure> {
    let msg = failures
        .iter()
        .map(|f| f.msg.as_str())
        .collect::<Vec<_>>()
        .join("\n");
    match failures.into_iter().next() {
        None => Ok(()),
        Some(first) => Err(Failure { msg, ..first }),
    }
}
