//! Reservations of attachments that a GC call does not list.

use std::net::IpAddr;

use crate::files::FileError;
use crate::host_local::config::DATA_DIR;
use crate::host_local::store::Store;
use crate::links;
use crate::owner::{Holding, Owner};

/// Attachments with an address in a network that are not to stay, with their addresses.
///
/// A file that names no interface is kept as long as any interface of its container is; one that is younger than a minute while the
/// container's link is there is perhaps of an ADD that the caller did not know of yet when it made its list.
///
/// # Errors
///
/// The folder cannot be read.
pub fn unlisted(store: &mut Store, valid: &[Owner]) -> Result<Vec<Holding>, FileError> {
    let all = store.all()?;
    let stays = |owner: &Owner, addresses: &[IpAddr]| {
        let listed = |v: &Owner| {
            v.container == owner.container && (owner.ifname.is_empty() || v.ifname == owner.ifname)
        };
        valid.iter().any(listed)
            || addresses.iter().any(|ip| store.is_young(*ip)) && links::has_host_end(owner)
    };
    Ok(all
        .into_iter()
        .filter(|(owner, addresses)| !stays(owner, addresses))
        .collect())
}

/// As [`unlisted`], of the folder where reservations are unless a configuration says otherwise, for plugins whose configuration
/// says nothing about addresses.
///
/// # Errors
///
/// The folder cannot be read.
pub fn unlisted_by_default_store(network: &str, valid: &[Owner]) -> Result<Vec<Holding>, FileError> {
    match Store::open(DATA_DIR, network)? {
        Some(mut store) => unlisted(&mut store, valid),
        None => Ok(Vec::new()),
    }
}
