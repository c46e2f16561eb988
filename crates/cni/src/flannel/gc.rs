//! GC: what a runtime does not list goes, with all that was ever made for it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use super::del::{Way, read_saved, run_del, way};
use super::netconf::{self, NetConf};
use super::subnet_env;
use crate::bridge;
use crate::call::{Call, Verb};
use crate::chain::{self, Chain};
use crate::companions;
use crate::failure::Failure;
use crate::gc::{all_of, valid_attachments};
use crate::host_local::config::HostLocalConfig;
use crate::host_local::store::Store;
use crate::json::JsonObject;
use crate::links;
use crate::owner::{Holding, Owner};
use crate::saved::{self, Attachment, Saved, SavedConfigs};

/// An attachment with its configuration, read.
struct Stale {
    attachment: Attachment,
    kind: String,
    config: Value,
}

/// GC: attachments of this network that are not listed are deleted as their DEL would.
///
/// # Errors
///
/// All that could not be removed, in one; the rest is.
pub fn gc(call: &Call) -> Result<(), Failure> {
    let conf = NetConf::load(call).map_err(Failure::internal)?;
    let Some(mut valid) = valid_attachments(call)? else {
        return Ok(());
    };
    let (mut stale, mut config) = (Vec::new(), None);
    for attachment in saved::all(&conf.data_dir)? {
        let Some((kind, saved)) = read_saved(&attachment.text) else {
            continue;
        };
        let name = JsonObject::of(&saved)
            .ok()
            .and_then(|o| o.string("name").ok().flatten());
        if name != Some(&call.name) {
            continue;
        }
        if kind == "bridge" {
            config = Some(saved.clone());
        }
        let listed = |owner: &Owner| {
            // Go's file does not tell which interface it is of.
            owner.container == attachment.container
                && attachment.ifname.as_ref().is_none_or(|i| owner.ifname == *i)
        };
        if valid.iter().any(listed) {
            continue;
        }
        let ifname = attachment.ifname.as_deref().unwrap_or_default();
        let owner = Owner::new(&attachment.container, ifname);
        if attachment.is_young() && links::has_host_end(&owner) {
            // Perhaps of an ADD that the caller did not know of yet when it made its list.
            valid.push(owner);
            continue;
        }
        stale.push(Stale {
            attachment,
            kind,
            config: saved,
        });
    }
    // Going on after an error, and reporting all of them.
    let mut failures = Vec::new();
    let mut held = Held::default();
    let gone: Vec<Holding> = stale
        .iter()
        .flat_map(|stale| held.of(call, stale, &valid))
        .collect();
    failures.extend(companions::remove_of(&call.name, &gone, &valid).err());
    for stale in &stale {
        let interfaces = held.of(call, stale, &valid);
        failures.extend(collect(call, &conf, stale, interfaces).err());
    }
    // Reservations and rules without a saved configuration of their own.
    let config = config.or_else(|| {
        let env = subnet_env::load(&conf.subnet_file).ok()?;
        netconf::build(&conf, &env).ok().map(|delegate| delegate.config)
    });
    if let Some(mut inner) = config.filter(|config| way(call, conf.delegate_type(), config) == Way::Native) {
        if let Some(map) = inner.as_object_mut() {
            let list = valid
                .iter()
                .map(|o| serde_json::json!({ "containerID": o.container, "ifname": o.ifname }));
            map.insert(
                "cni.dev/valid-attachments".to_owned(),
                Value::Array(list.collect()),
            );
        }
        failures.extend(bridge::gc(&call.delegated(inner, Vec::new())).err());
    }
    failures.extend(chain::gc(call, &valid).err());
    all_of(failures)
}

/// Reservations by the folder they are in, each read once.
#[derive(Default)]
struct Held(BTreeMap<String, BTreeMap<Owner, Vec<IpAddr>>>);

impl Held {
    /// The attachment with its addresses. Go's file stands for every interface that its container has in the network; without a
    /// reservation there is none to be told.
    fn of(&mut self, call: &Call, stale: &Stale, valid: &[Owner]) -> Vec<Holding> {
        let delegated = call.delegated(stale.config.clone(), Vec::new());
        let all = HostLocalConfig::load(&delegated).ok().map(|ipam| {
            self.0.entry(ipam.data_dir.clone()).or_insert_with(|| {
                let store = Store::open(&ipam.data_dir, &ipam.network).ok().flatten();
                store.and_then(|mut store| store.all().ok()).unwrap_or_default()
            })
        });
        let container = &stale.attachment.container;
        if let Some(ifname) = &stale.attachment.ifname {
            let owner = Owner::new(container, ifname);
            let addresses = all.and_then(|all| all.get(&owner).cloned()).unwrap_or_default();
            return vec![(owner, addresses)];
        }
        let theirs = all.into_iter().flat_map(|all| all.iter());
        theirs
            .filter(|(owner, _)| owner.container == *container && !valid.contains(owner))
            .map(|(owner, addresses)| (owner.clone(), addresses.clone()))
            .collect()
    }
}

fn collect(call: &Call, conf: &NetConf, stale: &Stale, interfaces: Vec<Holding>) -> Result<(), Failure> {
    let attachment = &stale.attachment;
    let mut gone = call.with_verb(Verb::Del);
    gone.env.container_id.clone_from(&attachment.container);
    // Its namespace is not known to us, and gone with the container.
    gone.env.netns = String::new();
    let ifname = attachment.ifname.as_deref().unwrap_or_default();
    let configs = SavedConfigs::open(&conf.data_dir, &attachment.container, ifname)?;
    for (owner, _) in interfaces
        .into_iter()
        .filter(|(owner, _)| !owner.ifname.is_empty())
    {
        gone.env.ifname = owner.ifname;
        let chain = match attachment.ifname {
            Some(_) => Chain::of_attachment(&gone, configs.as_ref())?,
            None => None,
        };
        let chained = chain.map_or(Ok(()), |chain| chain.del(&gone));
        chained.and(run_del(&gone, &stale.kind, &stale.config, &attachment.text))?;
    }
    let Some(configs) = configs else {
        return Ok(());
    };
    let bytes = attachment.text.clone();
    let saved = match &attachment.ifname {
        Some(_) => Saved::Own(bytes),
        None => Saved::Legacy(bytes),
    };
    Ok(configs.remove(&saved, false)?)
}
