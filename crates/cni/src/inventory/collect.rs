//! Freeing what a dead container held.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Place, Reservation, written};
use crate::call::{Call, Environment, Verb, is_plain_name};
use crate::failure::Failure;
use crate::files::FileError;
use crate::flannel::state::{Saved, State as SavedState};
use crate::host_local::store::{Owner, Store};
use crate::{bandwidth, flannel, portmap};

/// What became of an attachment's reservations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Freed {
    /// What is free now; nothing where all has changed hands, or was released, since it was judged.
    pub addresses: Vec<IpAddr>,
    /// What could not be taken along, and why.
    pub left: Vec<String>,
}

/// Frees reservations of one attachment in one network, looked at once more under the network's lock: what has changed hands since
/// it was judged stays.
///
/// `flannels`: what flannel's plugin and its companions have made for the attachment goes along, as by a runtime's DEL: its saved
/// configuration, masquerading, published ports, limits.
pub fn free(place: &Place, attachment: &[&Reservation], flannels: bool) -> Result<Freed, FileError> {
    let Some(first) = attachment.first() else {
        return Ok(Freed::default());
    };
    let Some(mut store) = Store::open(&place.data_dir, &first.network)? else {
        return Ok(Freed::default());
    };
    let same: Vec<&Reservation> = attachment
        .iter()
        .copied()
        .filter(|it| stands(&store, it))
        .collect();
    let judged = |ip: &IpAddr| same.iter().any(|it| it.address == *ip);
    if same.is_empty() || !store.held_by(&first.owner)?.iter().all(judged) {
        // An attachment that has got another address meanwhile lives.
        return Ok(Freed::default());
    }
    let mut left = Vec::new();
    if flannels && is_plain_name(&first.owner.container) && !first.owner.ifname.is_empty() {
        // Each of these takes the lock itself. Until the reservation goes nobody can get the address, nor its holder another.
        drop(store);
        left = detach(place, &first.network, &first.owner);
        match Store::open(&place.data_dir, &first.network)? {
            Some(again) => store = again,
            None => {
                let addresses = same.iter().map(|it| it.address).collect();
                return Ok(Freed { addresses, left });
            }
        }
    }
    let rest: Vec<&Reservation> = same.iter().copied().filter(|it| stands(&store, it)).collect();
    if !rest.is_empty() {
        let gone: Vec<IpAddr> = rest.iter().map(|it| it.address).collect();
        let held = store.held_by(&first.owner)?;
        store.remove(&gone)?;
        let held: Vec<IpAddr> = held.into_iter().filter(|ip| !gone.contains(ip)).collect();
        store.index(&first.owner, &held);
    }
    let addresses = same.iter().map(|it| it.address).collect();
    Ok(Freed { addresses, left })
}

/// The reservation is the one that was judged.
fn stands(store: &Store, it: &Reservation) -> bool {
    let file = format!("{}/{}", store.path(), it.address);
    store.holder(it.address).as_ref() == Some(&it.owner) && written(&file).is_ok_and(|at| at == it.since)
}

/// Does what a runtime's DEL of the attachment would do, in the order it would; says what could not be removed.
pub fn detach(place: &Place, network: &str, owner: &Owner) -> Vec<String> {
    let plain = call(network, owner, json!({}));
    let config = json!({
        "subnetFile": place.subnet_file,
        "dataDir": place.flannel_dir,
        "ipam": { "dataDir": place.data_dir },
    });
    let done = [
        plain.clone().and_then(|call| portmap::del(&call)),
        plain.and_then(|call| bandwidth::del(&call)),
        call(network, owner, config).and_then(|call| delete(place, owner, &call)),
    ];
    let failures = done.into_iter().filter_map(Result::err);
    failures.map(|failure| failure.to_string()).collect()
}

fn call(network: &str, owner: &Owner, mut config: Value) -> Result<Call, Failure> {
    if let Some(map) = config.as_object_mut() {
        map.insert("name".to_owned(), Value::from(network));
        map.insert("cniVersion".to_owned(), Value::from("0.3.1"));
    }
    let env = Environment {
        command: Verb::Del.as_str().to_owned(),
        container_id: owner.container.clone(),
        ifname: owner.ifname.clone(),
        // Its namespace is gone.
        ..Environment::default()
    };
    Call::check(env, config.to_string().into_bytes())
}

fn delete(place: &Place, owner: &Owner, call: &Call) -> Result<(), Failure> {
    let state = SavedState::open(&place.flannel_dir, &owner.container, &owner.ifname)?;
    if let Some(Saved::Own(bytes) | Saved::Legacy(bytes)) = state.map(|state| state.load()).transpose()? {
        let saved = crate::json::parse(&bytes).unwrap_or_default();
        let kind = saved.get("type").and_then(Value::as_str).unwrap_or("bridge");
        if kind != "bridge" {
            let place = &place.flannel_dir;
            return Err(Failure::internal(format!(
                "its configuration in {place} stays: plugin {kind:?} has to be called with it"
            )));
        }
    }
    flannel::del(call)
}
