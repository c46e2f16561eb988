//! A chain as it is read and as it is kept from its ADD to its DEL.

use serde_json::Value;

use super::entry::{Entry, Head};
use crate::call::Call;
use crate::failure::{Code, Failure};
use crate::json::{self, FieldError, JsonObject};

/// The plugins after flannel and what they are told.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain {
    /// What each of them is told.
    pub head: Head,
    /// The plugins in order.
    pub entries: Vec<Entry>,
    /// Result of the last plugin that has run.
    pub result: Option<Value>,
}

/// flannel's key for the plugins after it.
const KEY: &str = "chain";
const ARGUMENTS: &str = "runtimeConfig";

impl Chain {
    /// Reads a call's configuration; `None` when it has no chain.
    ///
    /// # Errors
    ///
    /// The first field that is wrong, by its place in the list.
    pub fn of(call: &Call) -> Result<Option<Chain>, Failure> {
        let fields = call.fields();
        let read = || -> Result<Option<Chain>, FieldError> {
            let entries = entries(&fields)?;
            if entries.is_empty() {
                return Ok(None);
            }
            Ok(Some(Chain {
                head: Head {
                    name: call.name.clone(),
                    version: call.version.clone(),
                    arguments: fields.object(ARGUMENTS)?.map().cloned().unwrap_or_default(),
                },
                entries,
                result: None,
            }))
        };
        read().map_err(|e| Failure::new(Code::InvalidConfig, e.to_string()))
    }

    /// Reads a saved chain, with a later result than its own if there is one; `None` when it is broken.
    pub fn read(bytes: &[u8], result: Option<&[u8]>) -> Option<Chain> {
        let value = json::parse(bytes).ok()?;
        let fields = JsonObject::of(&value).ok()?;
        let text = |name: &str| Some(fields.string(name).ok()?.unwrap_or_default().to_owned());
        Some(Chain {
            head: Head {
                name: text("name")?,
                version: text("cniVersion")?,
                arguments: fields.object(ARGUMENTS).ok()?.map().cloned().unwrap_or_default(),
            },
            entries: entries(&fields).ok().filter(|entries| !entries.is_empty())?,
            result: result
                .and_then(|bytes| json::parse(bytes).ok())
                .or_else(|| fields.get("result").cloned()),
        })
    }

    /// The text that is saved.
    pub fn to_text(&self) -> String {
        let entries = self.entries.iter().map(|e| Value::Object(e.config.clone()));
        let mut value = serde_json::json!({
            "name": self.head.name,
            "cniVersion": self.head.version,
            KEY: Value::Array(entries.collect()),
            ARGUMENTS: self.head.arguments,
        });
        if let (Some(result), Some(map)) = (&self.result, value.as_object_mut()) {
            map.insert("result".to_owned(), result.clone());
        }
        value.to_string()
    }

    /// Takes over the capability arguments that a call brings.
    pub fn take_arguments(&mut self, call: &Call) {
        let given = call.fields().object(ARGUMENTS).ok();
        if let Some(given) = given.as_ref().and_then(JsonObject::map) {
            let given = given.iter().filter(|(_, value)| !value.is_null());
            self.head
                .arguments
                .extend(given.map(|(name, value)| (name.clone(), value.clone())));
        }
    }
}

fn entries(fields: &JsonObject<'_>) -> Result<Vec<Entry>, FieldError> {
    let items = fields.objects(KEY)?;
    items.iter().map(Entry::read).collect()
}
