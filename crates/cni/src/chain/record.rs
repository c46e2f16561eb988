//! A chain as it is read and as it is kept from its ADD to its DEL.

use serde_json::{Map, Value};

use crate::call::Call;
use crate::chain::entry::Entry;
use crate::failure::{Code, Failure};
use crate::json::{self, FieldError, Object};

/// The plugins after flannel and what they are told.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain {
    /// Network name.
    pub name: String,
    /// Version of the configuration.
    pub version: String,
    /// The plugins in order.
    pub entries: Vec<Entry>,
    /// Capability arguments, of all plugins together.
    pub arguments: Map<String, Value>,
    /// Result of the last plugin that has run.
    pub result: Option<Value>,
}

/// flannel's key for the plugins after it.
const KEY: &str = "chain";
const ARGUMENTS: &str = "runtimeConfig";

impl Chain {
    /// Reads a call's configuration; `None` when it has no chain.
    pub fn of(call: &Call) -> Result<Option<Chain>, Failure> {
        let fields = call.fields();
        let read = || -> Result<Option<Chain>, FieldError> {
            let entries = entries(&fields)?;
            if entries.is_empty() {
                return Ok(None);
            }
            Ok(Some(Chain {
                name: call.name.clone(),
                version: call.version.clone(),
                entries,
                arguments: fields.object(ARGUMENTS)?.map().cloned().unwrap_or_default(),
                result: None,
            }))
        };
        read().map_err(|e| Failure::new(Code::InvalidConfig, e.to_string()))
    }

    /// Reads a saved chain, with a later result than its own if there is one; `None` when it is broken.
    pub fn read(bytes: &[u8], result: Option<&[u8]>) -> Option<Chain> {
        let value = json::parse(bytes).ok()?;
        let fields = Object::of(&value).ok()?;
        let text = |name: &str| Some(fields.string(name).ok()?.unwrap_or_default().to_owned());
        Some(Chain {
            name: text("name")?,
            version: text("cniVersion")?,
            entries: entries(&fields).ok().filter(|entries| !entries.is_empty())?,
            arguments: fields.object(ARGUMENTS).ok()?.map().cloned().unwrap_or_default(),
            result: result
                .and_then(|bytes| json::parse(bytes).ok())
                .or_else(|| fields.get("result").cloned()),
        })
    }

    /// The text that is saved.
    pub fn to_text(&self) -> String {
        let entries = self.entries.iter().map(|e| Value::Object(e.config.clone()));
        let mut value = serde_json::json!({
            "name": self.name,
            "cniVersion": self.version,
            KEY: Value::Array(entries.collect()),
            ARGUMENTS: self.arguments,
        });
        if let (Some(result), Some(map)) = (&self.result, value.as_object_mut()) {
            map.insert("result".to_owned(), result.clone());
        }
        value.to_string()
    }

    /// Takes over the capability arguments that a call brings.
    pub fn take_arguments(&mut self, call: &Call) {
        let given = call.fields().object(ARGUMENTS).ok();
        if let Some(given) = given.as_ref().and_then(Object::map) {
            let given = given.iter().filter(|(_, value)| !value.is_null());
            self.arguments
                .extend(given.map(|(name, value)| (name.clone(), value.clone())));
        }
    }
}

fn entries(fields: &Object<'_>) -> Result<Vec<Entry>, FieldError> {
    let items = fields.objects(KEY)?;
    items.iter().map(Entry::read).collect()
}
