//! One plugin of a chain.

use serde_json::{Map, Value};

use fabric::go_json::equal_fold;

use crate::call::{Call, Verb};
use crate::companions::{self, Companion};
use crate::delegate::{self, exec_is_forced};
use crate::failure::Failure;
use crate::json::{self, FieldError, JsonObject};
use crate::offer::Offer;
use crate::version;

/// The plugin that has the list, which cannot stand in it.
const FLANNEL: &str = "flannel";

/// What all plugins of a chain are told.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// Network name.
    pub name: String,
    /// Version of the configuration.
    pub version: String,
    /// Capability arguments, of all plugins together.
    pub arguments: Map<String, Value>,
}

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
    ///
    /// # Errors
    ///
    /// A type that is missing or flannel's, or a capability that is neither true nor false.
    pub fn read(item: &JsonObject<'_>) -> Result<Entry, FieldError> {
        let kind = item.string("type")?.unwrap_or_default();
        if kind.is_empty() || kind == FLANNEL {
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
    ///
    /// # Errors
    ///
    /// The plugin's.
    pub fn add(&self, call: &Call, head: &Head, result: &Value) -> Result<String, Failure> {
        let made = self.call(call, Verb::Add, head, Some(result), &[]);
        match self.native(call) {
            Some(plugin) => run_here(plugin, &made),
            None => {
                let (result, _) = delegate::add(&self.kind, &made.stdin, &head.version, &made.env)?;
                result.print(&made.version)
            }
        }
    }

    /// DEL; none of what is to be removed being there is fine.
    ///
    /// # Errors
    ///
    /// The plugin's.
    pub fn del(&self, call: &Call, head: &Head, result: Option<&Value>) -> Result<(), Failure> {
        // In this process there is no harm in knowing more than older versions of the protocol tell.
        let told = self.native(call).is_some() || del_has_result(&head.version);
        self.verb(call, Verb::Del, head, result.filter(|_| told), &[])
    }

    /// STATUS.
    ///
    /// # Errors
    ///
    /// The plugin's.
    pub fn status(&self, call: &Call, head: &Head) -> Result<(), Failure> {
        let made = self.call(call, Verb::Status, head, None, &[]);
        match self.native(call) {
            Some(plugin) => run_here(plugin, &made).map(drop),
            None => delegate::status(&self.kind, &made.stdin, &made.env),
        }
    }

    /// A verb without an answer.
    ///
    /// # Errors
    ///
    /// The plugin's.
    pub fn verb(
        &self,
        call: &Call,
        verb: Verb,
        head: &Head,
        result: Option<&Value>,
        more: &[(&str, Value)],
    ) -> Result<(), Failure> {
        let made = self.call(call, verb, head, result, more);
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
        head: &Head,
        result: Option<&Value>,
        more: &[(&str, Value)],
    ) -> Call {
        let mut config = self.config.clone();
        let mut put = |name: &str, value: Value| {
            config.insert(name.to_owned(), value);
        };
        put("name", Value::from(head.name.as_str()));
        put("cniVersion", Value::from(head.version.as_str()));
        if let Some(result) = result {
            put("prevResult", result.clone());
        }
        if matches!(verb, Verb::Add | Verb::Del | Verb::Check) {
            let given = head.arguments.iter();
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
    fn native(&self, call: &Call) -> Option<&'static Offer> {
        let Companion { offer, keys, .. } = companions::named(&self.kind)?;
        if exec_is_forced(call) {
            return None;
        }
        let known = |name: &String| keys.iter().any(|key| equal_fold(key, name));
        let fits = self.config.keys().all(known) || delegate::find(&self.kind, &call.env.path).is_err();
        fits.then_some(offer)
    }
}

fn run_here(offer: &Offer, call: &Call) -> Result<String, Failure> {
    // A DEL has nothing to undo for a version that no ADD takes.
    if call.verb != Verb::Del {
        version::check_supported(&call.version, offer.versions)?;
    }
    offer.run(call)
}

/// A DEL of this version of a configuration brings a previous result.
fn del_has_result(config_version: &str) -> bool {
    version::parse(config_version).is_ok_and(|have| have >= (0, 4, 0))
}
