//! The plugin `flannel`: makes a delegate's configuration out of what flanneld wrote, and runs the delegate.

pub mod daemon;
mod gc;
pub mod netconf;
pub mod state;
pub mod subnet_env;

use std::io::Write;

use fabric::status::PodNetwork;
use serde_json::{Map, Value};

use crate::bridge::{self, HOST_LOCAL};
use crate::call::{Call, Verb};
use crate::chain::{self, Chain};
use crate::delegate;
use crate::failure::{Code, Failure};
use crate::flannel::netconf::{Delegate, NetConf};
use crate::flannel::state::{Begun, Saved, State};
use crate::host_local;
use crate::json::{self, Object};
use crate::sweep;

pub use gc::gc;

/// Set (to anything but `0`), every delegate is a process of its own.
pub const EXEC_VARIABLE: &str = "FLANNEL_CNI_EXEC";
/// `false` in flannel's configuration does the same.
const NATIVE_KEY: &str = "nativeDelegate";

/// How a delegate is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// In this process.
    Native,
    /// As a process of its own.
    Exec,
}

/// ADD.
pub fn add(call: &Call) -> Result<String, Failure> {
    let load = |e: String| Failure::internal(format!("failed to load flannel netconf file: {e}"));
    let conf = NetConf::load(call).map_err(load)?;
    let result = attach(call, &conf)?;
    sweep::when_due(&conf);
    Ok(result)
}

fn attach(call: &Call, conf: &NetConf) -> Result<String, Failure> {
    let env = load_env(conf)?;
    let delegate = netconf::build(conf, &env)?;
    let chain = Chain::of(call)?;
    let state = State::create(&conf.data_dir, &call.env.container_id, &call.env.ifname)?;
    let legacy = matches!(state.load()?, Saved::Legacy(_));
    let begun = state.begin(&delegate.text)?;
    let run = || match way(call, &delegate.kind, &delegate.config) {
        Way::Native => add_native(call, conf, &delegate),
        Way::Exec => add_by_exec(call, &delegate, begun == Begun::Fresh && !legacy),
    };
    let outcome = match run() {
        Err((failure, true)) if host_local::is_exhaustion(&failure) && sweep::make_room(conf) => run(),
        outcome => outcome,
    };
    let outcome = match (outcome, chain) {
        (Ok(result), Some(chain)) => {
            state.commit(&begun, &delegate.text)?;
            chain.add(call, &state, &result).map_err(|failed| {
                let bytes = delegate.text.as_bytes();
                let undone = run_del(call, &delegate.kind, &delegate.config, bytes).is_ok();
                (failed.failure, failed.clean && undone)
            })
        }
        (Ok(result), None) => {
            state.commit(&begun, &delegate.text)?;
            return Ok(result);
        }
        (failed, _) => failed,
    };
    match outcome {
        Ok(result) => Ok(result),
        Err((failure, clean)) => {
            // What was there before belongs to another ADD. What is left of this one is a DEL's work.
            if clean && begun == Begun::Fresh {
                state.forget(&Saved::Own(delegate.text.into_bytes()), true)?;
            }
            Err(failure)
        }
    }
}

fn load_env(conf: &NetConf) -> Result<subnet_env::PodNetwork, Failure> {
    subnet_env::load(&conf.subnet_file).map_err(|e| {
        Failure::internal(format!(
            "failed to load flannel 'subnet.env' file: {e}. Check the flannel pod log for this node."
        ))
    })
}

/// Fails with true when nothing is left of the attempt.
fn add_native(call: &Call, conf: &NetConf, delegate: &Delegate) -> Result<String, (Failure, bool)> {
    let call = call.delegated(delegate.config.clone(), delegate.text.clone().into_bytes());
    let result = bridge::add(&call, Some(&conf.data_dir)).map_err(|e| (e.failure, e.clean))?;
    result.print(&call.version).map_err(|failure| {
        let clean = bridge::del(&call.with_verb(Verb::Del)).is_ok();
        (failure, clean)
    })
}

fn add_by_exec(call: &Call, delegate: &Delegate, ours: bool) -> Result<String, (Failure, bool)> {
    let stdin = delegate.text.as_bytes();
    let version = Object::of(&delegate.config)
        .ok()
        .and_then(|o| o.string("cniVersion").ok().flatten());
    let failure = match delegate::find(&delegate.kind, &call.env.path) {
        Err(mut failure) => {
            failure.msg = format!("failed to delegate add: {}", failure.msg);
            return Err((failure, false));
        }
        Ok(_) => match delegate::add(&delegate.kind, stdin, version.unwrap_or_default(), &call.env) {
            Ok((result, version)) => match result.print(&version) {
                Ok(text) => return Ok(text),
                Err(failure) => failure,
            },
            Err(failure) => failure,
        },
    };
    // A failed ADD is to be undone by its caller, but not where an earlier ADD may be what it stumbled over.
    let clean = ours && delegate::run(&delegate.kind, Verb::Del, stdin, &call.env).is_ok();
    Err((failure, clean))
}

/// DEL: what was saved decides; subnet.env is not needed. Nothing of it is forgotten before all of it is undone.
pub fn del(call: &Call) -> Result<(), Failure> {
    let conf = NetConf::load(call).map_err(Failure::internal)?;
    let state = State::open(&conf.data_dir, &call.env.container_id, &call.env.ifname)?;
    let chained = match Chain::of_attachment(call, state.as_ref()) {
        Ok(chain) => chain.map_or(Ok(()), |chain| chain.del(call)),
        Err(failure) => Err(failure),
    };
    let Some(state) = state else {
        return chained.and(clean_up(call, &conf));
    };
    let saved = state.load()?;
    let keep_legacy = match del_saved(call, &conf, &state, &saved) {
        Ok(keep_legacy) => keep_legacy,
        Err(failure) => return chained.and(Err(failure)),
    };
    chained?;
    Ok(state.forget(&saved, keep_legacy)?)
}

/// True when Go's file still stands for another attachment.
fn del_saved(call: &Call, conf: &NetConf, state: &State, saved: &Saved) -> Result<bool, Failure> {
    let (Saved::Own(bytes) | Saved::Legacy(bytes)) = saved else {
        clean_up(call, conf)?;
        return Ok(true);
    };
    let Some((kind, config)) = read_saved(bytes) else {
        let id = &call.env.container_id;
        let _ = writeln!(
            std::io::stderr(),
            "the saved configuration of {id} in {} is broken; cleaning up by container id instead",
            conf.data_dir
        );
        clean_up(call, conf)?;
        return Ok(false);
    };
    let is_legacy = matches!(saved, Saved::Legacy(_));
    if is_legacy && is_of_another_network(call, &config) {
        clean_up(call, conf)?;
        return Ok(true);
    }
    run_del(call, &kind, &config, bytes)?;
    // Go's one file may stand for more attachments than this one: as long as another has an address, it is needed.
    Ok(is_legacy && others_hold_addresses(call, &config, &state.other_interfaces()))
}

fn run_del(call: &Call, kind: &str, config: &Value, bytes: &[u8]) -> Result<(), Failure> {
    match way(call, kind, config) {
        Way::Native => bridge::del(
            &call
                .with_verb(Verb::Del)
                .delegated(config.clone(), bytes.to_vec()),
        ),
        Way::Exec => delegate::run(kind, Verb::Del, bytes, &call.env).map(drop),
    }
}

fn read_saved(bytes: &[u8]) -> Option<(String, Value)> {
    let config = json::parse(bytes).ok()?;
    let kind = Object::of(&config).ok()?.string("type").ok()??.to_owned();
    Some((kind, config))
}

/// Go's file was written by an attachment of the container to another network: that network has addresses of the container, but
/// none of this interface.
fn is_of_another_network(call: &Call, config: &Value) -> bool {
    let name = Object::of(config)
        .ok()
        .and_then(|o| o.string("name").ok().flatten());
    let delegated = call.delegated(config.clone(), Vec::new());
    if name == Some(&call.name) || !others_hold_addresses(call, config, &[]) {
        return false;
    }
    let holds = |ipam: host_local::config::Config| {
        let mut store = host_local::store::Store::open(&ipam.data_dir, &ipam.network).ok()??;
        store.held_by(&host_local::owner_of(call)).ok()
    };
    let held = host_local::config::Config::load(&delegated).ok().and_then(holds);
    held.is_none_or(|held| held.is_empty())
}

fn others_hold_addresses(call: &Call, config: &Value, except: &[String]) -> bool {
    let delegated = call.delegated(config.clone(), Vec::new());
    let Ok(ipam) = host_local::config::Config::load(&delegated) else {
        return false;
    };
    match host_local::store::Store::open(&ipam.data_dir, &ipam.network) {
        Ok(Some(mut store)) => store
            .holds_another_of(&host_local::owner_of(call), except)
            .unwrap_or(false),
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
    let data_dir = data_dir.unwrap_or_else(|| host_local::config::DATA_DIR.to_owned());
    let empty = Map::new();
    let delegate = conf.delegate.as_ref().unwrap_or(&empty);
    let bridge = text(delegate, "bridge").unwrap_or_else(|| "cni0".to_owned());
    let masquerades = match delegate.get("ipMasq").and_then(Value::as_bool) {
        Some(given) => given,
        None => subnet_env::load(&conf.subnet_file).is_ok_and(|env| !env.ipmasq),
    };
    let backend = text(delegate, "ipMasqBackend");
    bridge::del::clean_up(call, &data_dir, &bridge, masquerades.then_some(backend))
}

/// In this process when the delegate is a bridge with host-local and every key is one we know; otherwise the plugin on
/// `CNI_PATH`, and ours after all when there is none there.
fn way(call: &Call, kind: &str, config: &Value) -> Way {
    if kind != "bridge" || exec_is_forced(call) {
        return Way::Exec;
    }
    if knows_all(config) || delegate::find(kind, &call.env.path).is_err() {
        Way::Native
    } else {
        Way::Exec
    }
}

/// Every plugin behind flannel is to be a process of its own.
pub fn exec_is_forced(call: &Call) -> bool {
    let native = call.fields().flag_or(NATIVE_KEY, true);
    native.is_ok_and(|native| !native)
        || std::env::var_os(EXEC_VARIABLE).is_some_and(|value| !value.is_empty() && value != "0")
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
    let known = |keys: &[&str], name: &str| keys.iter().any(|key| key.eq_ignore_ascii_case(name));
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

/// CHECK: the delegate's, with the configuration of the ADD. (Go's plugin finds everything in order, always.)
///
/// Where that configuration is lost, what an ADD would use now is the next best; without that either nothing can be said.
pub fn check(call: &Call) -> Result<(), Failure> {
    let conf = NetConf::load(call).map_err(Failure::internal)?;
    let state = State::open(&conf.data_dir, &call.env.container_id, &call.env.ifname)?;
    let chain = Chain::of_attachment(call, state.as_ref())?;
    check_saved(call, &conf, state.as_ref())?;
    chain.map_or(Ok(()), |chain| chain.check(call))
}

fn check_saved(call: &Call, conf: &NetConf, state: Option<&State>) -> Result<(), Failure> {
    let saved = match state.map(State::load).transpose()? {
        Some(Saved::Own(bytes) | Saved::Legacy(bytes)) => read_saved(&bytes),
        Some(Saved::Missing) | None => None,
    };
    let known = saved.or_else(|| {
        let env = subnet_env::load(&conf.subnet_file).ok()?;
        netconf::build(conf, &env)
            .ok()
            .map(|delegate| (delegate.kind, delegate.config))
    });
    let Some((kind, mut config)) = known else {
        return Ok(());
    };
    if let (Some(previous), Some(map)) = (call.fields().get("prevResult"), config.as_object_mut()) {
        map.insert("prevResult".to_owned(), previous.clone());
    }
    let text = json::to_go_text(&config).into_bytes();
    match way(call, &kind, &config) {
        Way::Native => bridge::check(&call.delegated(config, text)),
        Way::Exec => delegate::run(&kind, Verb::Check, &text, &call.env).map(drop),
    }
}

/// STATUS: an ADD could work: subnet.env is there and whole, the host has a place in the network as far as flanneld can tell, the
/// delegate is ready, and an address is free.
///
/// Every runtime takes any error for "no pod on this node", so what only makes some traffic suffer is none: a peer that cannot be
/// reached, a registry that is away, a daemon that has stopped (`docs/adr/0011`).
pub fn status(call: &Call) -> Result<(), Failure> {
    let not_available = |failure: Failure| Failure {
        code: Code::NotAvailable as u32,
        ..failure
    };
    let conf = NetConf::load(call).map_err(|e| {
        not_available(Failure::internal(format!(
            "failed to load flannel netconf file: {e}"
        )))
    })?;
    let said = daemon::ask(&conf.subnet_file);
    let reasons = || {
        let reasons = said.as_ref().map(|pods| pods.reasons.join("; "));
        reasons.filter(|reasons| !reasons.is_empty())
    };
    let env = load_env(&conf).map_err(|failure| match reasons() {
        Some(reasons) => not_available(failure).with_details(format!("flanneld: {reasons}")),
        None => not_available(failure),
    })?;
    if said.as_ref().is_some_and(|pods| pods.network == PodNetwork::None) {
        let reasons = reasons().unwrap_or_else(|| "no reason given".to_owned());
        return Err(Failure::new(
            Code::LimitedConnectivity,
            format!("this host has no place in the flannel network: {reasons}"),
        ));
    }
    let delegate = netconf::build(&conf, &env).map_err(not_available)?;
    match way(call, &delegate.kind, &delegate.config) {
        Way::Native => {
            host_local::status(&call.delegated(delegate.config.clone(), delegate.text.into_bytes()))
        }
        Way::Exec => delegate::status(&delegate.kind, delegate.text.as_bytes(), &call.env),
    }?;
    chain::status(call)
}
