//! The plugin `flannel`: makes a delegate's configuration out of what flanneld wrote, and runs the delegate.

pub mod daemon;
pub mod del;
pub mod detach;
pub mod gc;
pub mod netconf;
pub mod subnet_env;
pub mod sweep;

use crate::bridge;
use crate::call::{Call, Verb};
use crate::chain::{self, Chain};
use crate::delegate;
use crate::failure::{Code, Failure};
use crate::flannel::del::{Way, read_saved, run_del, way};
use crate::flannel::netconf::{Delegate, NetConf};
use crate::host_local;
use crate::json::{self, JsonObject};
use crate::saved::{Begun, Saved, SavedConfigs};
use fabric::status::{PodNetwork, Pods};
use serde_json::Value;

/// ADD.
///
/// # Errors
///
/// What is wrong with configuration or subnet.env, or the delegate's; what was made is undone, or left to a DEL where that is not
/// possible.
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
    let configs = SavedConfigs::create(&conf.data_dir, &call.env.container_id, &call.env.ifname)?;
    let legacy = matches!(configs.load()?, Saved::Legacy(_));
    let begun = configs.begin(&delegate.text)?;
    let run = || match way(call, &delegate.kind, &delegate.config) {
        Way::Native => add_native(call, conf, &delegate),
        Way::Exec => add_by_exec(call, &delegate, begun == Begun::Fresh && !legacy),
    };
    let outcome = match run() {
        Err((failure, true)) if host_local::lacks_an_address(&failure) && sweep::make_room(conf) => run(),
        outcome => outcome,
    };
    let outcome = match (outcome, chain) {
        (Ok(result), Some(chain)) => {
            configs.commit(&begun, &delegate.text)?;
            chain.add(call, &configs, &result).map_err(|failed| {
                let bytes = delegate.text.as_bytes();
                let undone = run_del(call, &delegate.kind, &delegate.config, bytes).is_ok();
                (failed.failure, failed.clean && undone)
            })
        }
        (Ok(result), None) => {
            configs.commit(&begun, &delegate.text)?;
            return Ok(result);
        }
        (failed, _) => failed,
    };
    match outcome {
        Ok(result) => Ok(result),
        Err((failure, clean)) => {
            // What was there before belongs to another ADD. What is left of this one is a DEL's work.
            if clean && begun == Begun::Fresh {
                configs.remove(&Saved::Own(delegate.text.into_bytes()), true)?;
            }
            Err(failure)
        }
    }
}

fn load_env(conf: &NetConf) -> Result<subnet_env::PodSettings, Failure> {
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
    let version = JsonObject::of(&delegate.config)
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

/// CHECK: the delegate's, with the configuration of the ADD. (Go's plugin finds everything in order, always.)
///
/// Where that configuration is lost, what an ADD would use now is the next best; without that either nothing can be said.
///
/// # Errors
///
/// The delegate's or a chained plugin's.
pub fn check(call: &Call) -> Result<(), Failure> {
    let conf = NetConf::load(call).map_err(Failure::internal)?;
    let configs = SavedConfigs::open(&conf.data_dir, &call.env.container_id, &call.env.ifname)?;
    let saved = match configs.as_ref().map(SavedConfigs::load).transpose()? {
        Some(Saved::Own(bytes)) => read_saved(&bytes),
        // Go's one file may be of another network of the container's.
        Some(Saved::Legacy(bytes)) => read_saved(&bytes).filter(|(_, config)| {
            let name = JsonObject::of(config)
                .ok()
                .and_then(|o| o.string("name").ok().flatten());
            name.is_none_or(|name| name == call.name)
        }),
        Some(Saved::Missing) | None => None,
    };
    // COMPAT: of a network that never was the container's Go's plugin has nothing to say.
    if saved.is_none() && call.fields().get("prevResult").is_none() {
        return Ok(());
    }
    let chain = Chain::of_attachment(call, configs.as_ref())?;
    check_saved(call, &conf, saved)?;
    chain.map_or(Ok(()), |chain| chain.check(call))
}

fn check_saved(call: &Call, conf: &NetConf, saved: Option<(String, Value)>) -> Result<(), Failure> {
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
///
/// # Errors
///
/// Code 50 or 51 with the reason.
pub fn status(call: &Call) -> Result<(), Failure> {
    let conf = NetConf::load(call).map_err(|e| {
        not_available(Failure::internal(format!(
            "failed to load flannel netconf file: {e}"
        )))
    })?;
    let said = daemon::ask(&conf.subnet_file);
    status_told(call, &conf, said)
}

fn not_available(failure: Failure) -> Failure {
    Failure {
        code: Code::NotAvailable as u32,
        ..failure
    }
}

/// The same, with what the daemon says of itself.
fn status_told(call: &Call, conf: &NetConf, said: Option<Pods>) -> Result<(), Failure> {
    let reasons = || {
        let reasons = said.as_ref().map(|pods| pods.reasons.join("; "));
        reasons.filter(|reasons| !reasons.is_empty())
    };
    let env = load_env(conf).map_err(|failure| match reasons() {
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
    let delegate = netconf::build(conf, &env).map_err(not_available)?;
    match way(call, &delegate.kind, &delegate.config) {
        Way::Native => {
            let call = call.delegated(delegate.config.clone(), delegate.text.into_bytes());
            bridge::check_gateways(&call).map_err(not_available)?;
            host_local::status(&call)
        }
        Way::Exec => delegate::status(&delegate.kind, delegate.text.as_bytes(), &call.env),
    }?;
    chain::status(call)
}

#[cfg(test)]
mod tests;
