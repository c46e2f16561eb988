//! The plugins after flannel, run by flannel itself when its configuration has them: `chain`, a list as in the `plugins` of a conflist.
//!
//! What a runtime's library does with such a list is done here: name, version, previous result and each plugin's own capability
//! arguments are put in, results handed on, and a failed ADD undone backwards. `portmap` and `bandwidth` run in this process.

mod entry;
mod record;

use serde_json::Value;

use crate::call::{Call, Verb};
use crate::failure::{Code, Failure};
use crate::gc::all_of;
use crate::json;
use crate::owner::Owner;
use crate::result::{AddResult, version_of};
use crate::saved::SavedConfigs;

pub use record::Chain;

/// A failed ADD.
#[derive(Debug)]
pub struct AddFailure {
    /// Why.
    pub failure: Failure,
    /// Nothing of the plugins after flannel is left. Otherwise a DEL has to try again.
    pub clean: bool,
}

impl Chain {
    /// The chain of an attachment's ADD if that was saved, otherwise the call's own. A capability argument of the call goes before
    /// the saved one.
    ///
    /// # Errors
    ///
    /// The call's own chain is malformed.
    pub fn of_attachment(call: &Call, configs: Option<&SavedConfigs>) -> Result<Option<Chain>, Failure> {
        let saved = configs.and_then(SavedConfigs::chain);
        let saved = saved.and_then(|(bytes, result)| Chain::read(&bytes, result.as_deref()));
        let Some(mut chain) = saved else {
            return Chain::of(call);
        };
        chain.take_arguments(call);
        Ok(Some(chain))
    }

    /// ADD of each plugin after flannel's own, whose result is `first`. What a DEL needs is saved before anything is done.
    ///
    /// # Errors
    ///
    /// The plugin that failed, by its name, and whether anything is left of the chain.
    pub fn add(mut self, call: &Call, configs: &SavedConfigs, first: &str) -> Result<String, AddFailure> {
        let untouched = |failure| AddFailure { failure, clean: true };
        let mut text = restate(first, &call.version).map_err(untouched)?;
        let mut result = read(&text).map_err(untouched)?;
        self.result = Some(result.clone());
        configs
            .save_chain(&self.to_text())
            .map_err(|e| untouched(e.into()))?;
        for (i, entry) in self.entries.iter().enumerate() {
            let added = entry
                .add(call, &self.head, &result)
                .and_then(|text| Ok((read(&text)?, text)));
            match added {
                Ok(added) => (result, text) = added,
                Err(failure) => {
                    let failure = entry.name_in(failure, "add");
                    // The one that failed as well: it may have got half way.
                    let clean = self.undo(call, i + 1, Some(&result)).is_ok();
                    return Err(AddFailure { failure, clean });
                }
            }
        }
        if self.result.as_ref() != Some(&result)
            && let Err(e) = configs.save_result(&text)
        {
            let clean = self.undo(call, self.entries.len(), Some(&result)).is_ok();
            let failure = e.into();
            return Err(AddFailure { failure, clean });
        }
        Ok(text)
    }

    /// DEL of every plugin, the last one first. One that fails keeps no other from its DEL; the first failure is the answer.
    ///
    /// # Errors
    ///
    /// The first plugin's that failed.
    pub fn del(&self, call: &Call) -> Result<(), Failure> {
        let result = self.result.clone();
        let result = result.or_else(|| call.fields().get("prevResult").cloned());
        self.undo(call, self.entries.len(), result.as_ref())
    }

    fn undo(&self, call: &Call, count: usize, result: Option<&Value>) -> Result<(), Failure> {
        let mut outcome = Ok(());
        for entry in self.entries.iter().take(count).rev() {
            let deleted = entry
                .del(call, &self.head, result)
                .map_err(|failure| entry.name_in(failure, "delete"));
            outcome = outcome.and(deleted);
        }
        outcome
    }

    /// CHECK of each plugin; the first failure ends it.
    ///
    /// # Errors
    ///
    /// The first plugin's that failed.
    pub fn check(&self, call: &Call) -> Result<(), Failure> {
        // What is saved is in the version of the ADD, and so is what the plugins are told.
        let given = call.fields().get("prevResult");
        let given = given.filter(|_| self.head.version == call.version);
        let result = given.or(self.result.as_ref());
        for entry in &self.entries {
            entry
                .verb(call, Verb::Check, &self.head, result, &[])
                .map_err(|failure| entry.name_in(failure, "check"))?;
        }
        Ok(())
    }
}

/// STATUS of each plugin of a call's chain; the first failure ends it.
///
/// # Errors
///
/// The first plugin's that failed.
pub fn status(call: &Call) -> Result<(), Failure> {
    let not_available = |failure: Failure| Failure {
        code: Code::NotAvailable as u32,
        ..failure
    };
    let Some(chain) = Chain::of(call).map_err(not_available)? else {
        return Ok(());
    };
    for entry in &chain.entries {
        entry
            .status(call, &chain.head)
            .map_err(|failure| entry.name_in(failure, "status"))?;
    }
    Ok(())
}

/// GC of each plugin of a call's chain with the attachments that are to stay; all of them, whatever fails.
///
/// # Errors
///
/// All of them in one.
pub fn gc(call: &Call, valid: &[Owner]) -> Result<(), Failure> {
    let Some(chain) = Chain::of(call)? else {
        return Ok(());
    };
    let list = valid
        .iter()
        .map(|o| serde_json::json!({ "containerID": o.container, "ifname": o.ifname }));
    let list = Value::Array(list.collect());
    let more = [
        ("cni.dev/valid-attachments", list.clone()),
        ("cni.dev/attachments", list),
    ];
    let failures = chain.entries.iter().filter_map(|entry| {
        let collected = entry.verb(call, Verb::Gc, &chain.head, None, &more);
        collected.err().map(|failure| entry.name_in(failure, "gc"))
    });
    all_of(failures.collect())
}

/// A result in a version's shape: what is handed on has to be in that of the configuration.
fn restate(text: &str, version: &str) -> Result<String, Failure> {
    let value = read(text)?;
    let own = version_of(&value, version);
    if own == version {
        return Ok(text.to_owned());
    }
    AddResult::parse(&value, &own)?.print(version)
}

fn read(text: &str) -> Result<Value, Failure> {
    json::parse(text.as_bytes()).map_err(|e| Failure::internal(format!("a result is no JSON: {e}")))
}

#[cfg(test)]
mod tests;
