//! One plugin of a chain.

use serde_json::{Map, Value};

use crate::call::{Call, Verb};
use crate::chain::{Chain, del_has_result};
use crate::delegate;
use crate::failure::Failure;
use crate::flannel;
use crate::json::{self, FieldError, Object};
use crate::plugin::Plugin;
use crate::{bandwidth, portmap, version};

/// A plugin's configuration as it stands in the list.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    kind: String,
    /// Capabilities it is to be given the arguments of.
    capabilities: Vec<String>,
    /// All of it.
    pub config: Map<String, Value>,
}

impl Entry {
    /// Reads an item of the list.
    pub fn read(item: &Object<'_>) -> Result<Entry, FieldError> {
        let kind = item.string("type")?.unwrap_or_default();
        if kind.is_empty() || kind == Plugin::Flannel.name() {
            let expected = "the name of a plugin that can run after flannel";
            return Err(item.wrong("type", &Value::from(kind), expected));
        }
        let capabilities = item.object("capabilities")?;
        let mut wanted = Vec::new();
        for name in capabilities.map().into_iter().flat_map(Map::keys) {
            if capabilities.flag(name)? {
                wanted.push(name.clone());
            }
        }
        Ok(Entry {
            kind: kind.to_owned(),
            capabilities: wanted,
            config: item.map().cloned().unwrap_or_default(),
        })
    }

    /// The failure as a runtime's library would tell it of a plugin of a list.
    pub fn name_in(&self, failure: Failure, verb: &str) -> Failure {
        let name = match self.config.get("name").and_then(Value::as_str) {
            Some(name) if !name.is_empty() => format!(" name={name:?}"),
            _ => String::new(),
        };
        Failure {
            msg: format!(
                "plugin type={:?}{name} failed ({verb}): {}",
                self.kind, failure.msg
            ),
            ..failure
        }
    }

    /// ADD; the result is in the version of the configuration.
    pub fn add(&self, call: &Call, chain: &Chain, result: &Value) -> Result<String, Failure> {
        let made = self.call(call, Verb::Add, chain, Some(result), &[]);
        match self.native(call) {
            Some(plugin) => run_here(plugin, &made),
            None => {
                let (result, _) = delegate::add(&self.kind, &made.stdin, &chain.version, &made.env)?;
                result.print(&made.version)
            }
        }
    }

    /// DEL; none of what is to be removed being there is fine.
    pub fn del(&self, call: &Call, chain: &Chain, result: Option<&Value>) -> Result<(), Failure> {
        // In this process there is no harm in knowing more than older versions of the protocol tell.
        let told = self.native(call).is_some() || del_has_result(&chain.version);
        self.verb(call, Verb::Del, chain, result.filter(|_| told), &[])
    }

    /// STATUS.
    pub fn status(&self, call: &Call, chain: &Chain) -> Result<(), Failure> {
        let made = self.call(call, Verb::Status, chain, None, &[]);
        match self.native(call) {
            Some(plugin) => run_here(plugin, &made).map(drop),
            None => delegate::status(&self.kind, &made.stdin, &made.env),
        }
    }

    /// A verb without an answer.
    pub fn verb(
        &self,
        call: &Call,
        verb: Verb,
        chain: &Chain,
        result: Option<&Value>,
        more: &[(&str, Value)],
    ) -> Result<(), Failure> {
        let made = self.call(call, verb, chain, result, more);
        match self.native(call) {
            Some(plugin) => run_here(plugin, &made).map(drop),
            None => delegate::run(&self.kind, verb, &made.stdin, &made.env).map(drop),
        }
    }

    /// The call a runtime's library would make.
    fn call(
        &self,
        call: &Call,
        verb: Verb,
        chain: &Chain,
        result: Option<&Value>,
        more: &[(&str, Value)],
    ) -> Call {
        let mut config = self.config.clone();
        let mut put = |name: &str, value: Value| {
            config.insert(name.to_owned(), value);
        };
        put("name", Value::from(chain.name.as_str()));
        put("cniVersion", Value::from(chain.version.as_str()));
        if let Some(result) = result {
            put("prevResult", result.clone());
        }
        if matches!(verb, Verb::Add | Verb::Del | Verb::Check) {
            let given = chain.arguments.iter();
            let given = given.filter(|(name, _)| self.capabilities.contains(name));
            let given: Map<String, Value> =
                given.map(|(name, value)| (name.clone(), value.clone())).collect();
            if !given.is_empty() {
                put("runtimeConfig", Value::Object(given));
            }
        }
        for (name, value) in more {
            put(name, value.clone());
        }
        let stdin = json::object_text(&config, None).into_bytes();
        call.with_verb(verb).delegated(Value::Object(config), stdin)
    }

    /// The plugin in this process, when there is one that knows every key or none else is to be had.
    fn native(&self, call: &Call) -> Option<Plugin> {
        let (plugin, keys) = match self.kind.as_str() {
            "portmap" => (Plugin::Portmap, portmap::config::KEYS),
            "bandwidth" => (Plugin::Bandwidth, bandwidth::KEYS),
            _ => return None,
        };
        if flannel::exec_is_forced(call) {
            return None;
        }
        let known = |name: &String| keys.iter().any(|key| key.eq_ignore_ascii_case(name));
        let fits = self.config.keys().all(known) || delegate::find(&self.kind, &call.env.path).is_err();
        fits.then_some(plugin)
    }
}

fn run_here(plugin: Plugin, call: &Call) -> Result<String, Failure> {
    // A DEL has nothing to undo for a version that no ADD takes.
    if call.verb != Verb::Del {
        version::check_supported(&call.version, plugin.versions())?;
    }
    plugin.run(call)
}
