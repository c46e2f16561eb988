//! DEL, and how a delegate is run: in this process or as one of its own.

use std::net::IpAddr;

use fabric::go_json::equal_fold;
use serde_json::{Map, Value};

use super::netconf::NetConf;
use super::subnet_env;
use crate::bandwidth;
use crate::bridge;
use crate::bridge::masquerade::MasqueradeBackend;
use crate::call::{Call, Verb};
use crate::chain::Chain;
use crate::delegate::{self, exec_is_forced};
use crate::failure::Failure;
use crate::files;
use crate::host_local::HOST_LOCAL;
use crate::host_local::config::{DATA_DIR, HostLocalConfig};
use crate::host_local::store::Store;
use crate::json::{self, JsonObject};
use crate::notice::say;
use crate::owner::Owner;
use crate::portmap::gone;
use crate::saved::{Saved, SavedConfigs};

/// How a delegate is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// In this process.
    Native,
    /// As a process of its own.
    Exec,
}

/// DEL: what was saved decides; subnet.env is not needed. Nothing of it is forgotten before all of it is undone.
///
/// # Errors
///
/// What could not be undone; the saved configuration stays for another DEL then.
pub fn del(call: &Call) -> Result<(), Failure> {
    let conf = NetConf::load(call).map_err(Failure::internal)?;
    let configs = match SavedConfigs::open(&conf.data_dir, &call.env.container_id, &call.env.ifname) {
        Err(e) if e.is_absent() || files::is_odd(e.errno) => {
            let id = &call.env.container_id;
            say(&format!("{e}; cleaning up {id} by container id instead"));
            None
        }
        other => other?,
    };
    let chained = match Chain::of_attachment(call, configs.as_ref()) {
        Ok(chain) => chain.map_or(Ok(()), |chain| chain.del(call)),
        Err(failure) => Err(failure),
    };
    let Some(configs) = configs else {
        return chained.and(clean_up(call, &conf));
    };
    let saved = configs.load()?;
    let keep_legacy = match del_saved(call, &conf, &configs, &saved) {
        Ok(keep_legacy) => keep_legacy,
        Err(failure) => return chained.and(Err(failure)),
    };
    chained?;
    Ok(configs.remove(&saved, keep_legacy)?)
}

/// True when Go's file still stands for another attachment.
fn del_saved(call: &Call, conf: &NetConf, configs: &SavedConfigs, saved: &Saved) -> Result<bool, Failure> {
    let (Saved::Own(bytes) | Saved::Legacy(bytes)) = saved else {
        clean_up(call, conf)?;
        return Ok(true);
    };
    let Some((kind, config)) = read_saved(bytes) else {
        let id = &call.env.container_id;
        say(&format!(
            "the saved configuration of {id} in {} is broken; cleaning up by container id instead",
            conf.data_dir
        ));
        clean_up(call, conf)?;
        return Ok(false);
    };
    let is_legacy = matches!(saved, Saved::Legacy(_));
    if is_legacy && is_of_another_network(call, &config) {
        clean_up(call, conf)?;
        return Ok(true);
    }
    if way(call, &kind, &config) == Way::Exec {
        // Another bridge knows nothing of ports; in this process ours sees to them.
        gone::unpublish(&call.env.container_id, &reserved(call, &config))?;
    }
    run_del(call, &kind, &config, bytes)?;
    let others = configs.other_interfaces();
    // Go's one file may stand for more attachments than this one: as long as another has an address, it is needed.
    let keep = is_legacy && others_hold_addresses(call, &config, &others);
    if let Some(network) = name_of(&config) {
        bandwidth::remove_left(network, &Owner::of(call), others.is_empty() && !keep)?;
    }
    Ok(keep)
}

fn name_of(config: &Value) -> Option<&str> {
    JsonObject::of(config).ok()?.string("name").ok()?
}

pub(super) fn run_del(call: &Call, kind: &str, config: &Value, bytes: &[u8]) -> Result<(), Failure> {
    match way(call, kind, config) {
        Way::Native => bridge::del(
            &call
                .with_verb(Verb::Del)
                .delegated(config.clone(), bytes.to_vec()),
        ),
        Way::Exec => delegate::run(kind, Verb::Del, bytes, &call.env).map(drop),
    }
}

pub(super) fn read_saved(bytes: &[u8]) -> Option<(String, Value)> {
    let config = json::parse(bytes).ok()?;
    let kind = JsonObject::of(&config).ok()?.string("type").ok()??.to_owned();
    Some((kind, config))
}

/// Go's file was written by an attachment of the container to another network: that network has addresses of the container, but
/// none of this interface.
pub(super) fn is_of_another_network(call: &Call, config: &Value) -> bool {
    let name = name_of(config);
    if name == Some(&call.name) || !others_hold_addresses(call, config, &[]) {
        return false;
    }
    reserved(call, config).is_empty()
}

/// What the attachment holds in the network of a saved configuration, as far as that can be told.
fn reserved(call: &Call, config: &Value) -> Vec<IpAddr> {
    let held = || {
        let delegated = call.delegated(config.clone(), Vec::new());
        let ipam = HostLocalConfig::load_for_del(&delegated).ok()?;
        let mut store = Store::open(&ipam.data_dir, &ipam.network).ok()??;
        store.held_by(&Owner::of(call)).ok()
    };
    held().unwrap_or_default()
}

fn others_hold_addresses(call: &Call, config: &Value, except: &[String]) -> bool {
    let delegated = call.delegated(config.clone(), Vec::new());
    let Ok(ipam) = HostLocalConfig::load(&delegated) else {
        return false;
    };
    match Store::open(&ipam.data_dir, &ipam.network) {
        Ok(Some(mut store)) => store.holds_another_of(&Owner::of(call), except).unwrap_or(false),
        _ => false,
    }
}

/// DEL without a saved configuration: name, container id and what the call itself says are enough for the bridge.
///
/// The link is only removed when it is one of ours: an address is reserved for it, or its other end is a port of the bridge.
fn clean_up(call: &Call, conf: &NetConf) -> Result<(), Failure> {
    if conf.delegate_type() != "bridge" {
        return Ok(());
    }
    let text =
        |map: &Map<String, Value>, name: &str| map.get(name).and_then(Value::as_str).map(str::to_owned);
    let data_dir = text(&conf.ipam, "dataDir").filter(|dir| !dir.is_empty());
    let data_dir = data_dir.unwrap_or_else(|| DATA_DIR.to_owned());
    let empty = Map::new();
    let delegate = conf.delegate.as_ref().unwrap_or(&empty);
    let bridge = text(delegate, "bridge").unwrap_or_else(|| "cni0".to_owned());
    let masquerades = match delegate.get("ipMasq").and_then(Value::as_bool) {
        Some(given) => given,
        None => subnet_env::load(&conf.subnet_file).is_ok_and(|env| !env.ipmasq),
    };
    let backend = text(delegate, "ipMasqBackend").map(|name| MasqueradeBackend::read(&name));
    bridge::del::clean_up(call, &data_dir, &bridge, masquerades.then_some(backend))
}

/// In this process when the delegate is a bridge with host-local and every key is one we know; otherwise the plugin on
/// `CNI_PATH`, and ours after all when there is none there.
pub(super) fn way(call: &Call, kind: &str, config: &Value) -> Way {
    if kind != "bridge" || exec_is_forced(call) {
        return Way::Exec;
    }
    if knows_all(config) || delegate::find(kind, &call.env.path).is_err() {
        Way::Native
    } else {
        Way::Exec
    }
}

fn knows_all(config: &Value) -> bool {
    const IPAM_KEYS: &[&str] = &[
        "type",
        "ranges",
        "routes",
        "dataDir",
        "resolvConf",
        "subnet",
        "rangeStart",
        "rangeEnd",
        "gateway",
    ];
    const UNSUPPORTED: &[&str] = &["vlan", "vlanTrunk", "macspoofchk"];
    let Some(top) = config.as_object() else {
        return false;
    };
    let Some(ipam) = top.get("ipam").and_then(Value::as_object) else {
        return false;
    };
    let known = |keys: &[&str], name: &str| keys.iter().any(|key| equal_fold(key, name));
    let is_set = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    };
    ipam.get("type").and_then(Value::as_str) == Some(HOST_LOCAL)
        && ipam.keys().all(|name| known(IPAM_KEYS, name))
        && top.iter().all(|(name, value)| {
            known(bridge::config::KEYS, name) && !(known(UNSUPPORTED, name) && is_set(value))
        })
}
