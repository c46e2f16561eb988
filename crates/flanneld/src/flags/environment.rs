//! `FLANNELD_*`: a value for every flag that the command line does not give.

use std::ffi::OsString;

use super::go_value::quote;
use super::parse::{Raw, Source};
use super::table::TABLE;

/// Sets what `variable` gives and the command line did not; one line per variable that cannot be used, whose flag then
/// keeps its default. An empty variable counts as none; a list gets one element.
pub fn apply(raw: &mut Raw, variable: impl Fn(&str) -> Option<OsString>) -> Vec<String> {
    let mut errors = Vec::new();
    // `--version` was looked at before the environment, as in the reference: its variable means nothing.
    for flag in TABLE.iter().filter(|flag| flag.name != "version") {
        if raw.given.contains_key(flag.name) {
            continue;
        }
        let name = flag.variable();
        let Some(value) = variable(&name).filter(|value| !value.is_empty()) else {
            continue;
        };
        let kept = || {
            if flag.default.is_empty() {
                "none".to_owned()
            } else {
                quote(flag.default)
            }
        };
        let Ok(text) = value.into_string() else {
            errors.push(format!(
                "invalid value for {name}: not valid UTF-8; keeping the default, {}",
                kept()
            ));
            continue;
        };
        match flag.set(raw, &text) {
            Ok(()) => {
                raw.given.insert(flag.name, Source::Environment);
            }
            Err(why) => errors.push(format!(
                "invalid value {} for {name}: {why}; keeping the default, {}",
                quote(&text),
                kept()
            )),
        }
    }
    errors
}
