//! The flag grammar against what Go's own packages answered.
//!
//! `data/go-flag.jsonl` was recorded once with Go 1.26's `flag`, klog v2.140.0's three flags and
//! `github.com/coreos/pkg/flagutil`, over a flag set with the reference's names and kinds: one line per command line,
//! with the values set, the arguments left over, or the error.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed test is a panic"
)]

use std::collections::BTreeMap;
use std::ffi::OsString;

use flanneld::flags::parse::{Parsed, Raw, parse};
use flanneld::flags::{TABLE, environment, table};
use serde_json::Value;

#[derive(serde::Deserialize)]
struct Recorded {
    args: Vec<String>,
    env: Option<BTreeMap<String, String>>,
    #[serde(default)]
    set: BTreeMap<String, Value>,
    #[serde(default)]
    rest: Vec<String>,
    #[serde(default)]
    error: String,
}

fn value(raw: &Raw, name: &str) -> Value {
    match name {
        "iface" => raw.iface.clone().into(),
        "iface-regex" => raw.iface_regex.clone().into(),
        "vmodule" | "log_backtrace_at" => true.into(),
        _ => {
            let text = table::find(name).unwrap().text(raw);
            match table::find(name).unwrap().kind {
                table::Kind::Bool(_) => (text == "true").into(),
                table::Kind::Int(_) | table::Kind::Level(_) => text.parse::<i64>().unwrap().into(),
                _ => text.into(),
            }
        }
    }
}

/// Go's words without the name of the function they come from: nobody who runs this has that.
fn without_go_names(error: &str) -> String {
    let Some((before, after)) = error.split_once("strconv.ParseInt: parsing ") else {
        return error.to_owned();
    };
    let reason = after.rsplit_once("\": ").map_or(after, |(_, reason)| reason);
    format!("{before}{reason}")
}

fn recorded() -> Vec<Recorded> {
    let text = include_str!("data/go-flag.jsonl");
    let all: Vec<Recorded> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(all.len() > 1000);
    all
}

#[test]
fn parse_when_given_what_go_was_given_answers_the_same() {
    for case in recorded() {
        let answer = parse(&case.args);
        let environment_error = case.error.strip_prefix("env: ");
        if environment_error.is_none() && !case.error.is_empty() {
            match answer {
                Ok(Parsed::Help) => assert_eq!(case.error, "help", "{:?}", case.args),
                Ok(other) => panic!("{:?}: Go says {}, we take it: {other:?}", case.args, case.error),
                Err(error) => assert_eq!(error.line, without_go_names(&case.error), "{:?}", case.args),
            }
            continue;
        }
        let Ok(Parsed::Flags { mut raw, stop }) = answer else {
            panic!("{:?}: Go takes it, we say {answer:?}", case.args);
        };
        assert_eq!(stop.rest(), case.rest, "{:?}", case.args);
        if let Some(variables) = &case.env {
            let errors = environment::apply(&mut raw, |name| variables.get(name).map(OsString::from));
            match environment_error {
                None => assert!(errors.is_empty(), "{variables:?}: {errors:?}"),
                Some(error) => {
                    let error = without_go_names(error);
                    assert!(
                        errors.iter().any(|e| e.starts_with(&error)),
                        "{error}: {errors:?}"
                    );
                }
            }
        }
        let given: Vec<&str> = raw.given.keys().copied().collect();
        // FLANNELD_VERSION sets the reference's variable after it was looked at: without effect. We leave it alone.
        let counts = |name: &&str| *name != "version" || case.env.is_none();
        let expected: Vec<&str> = case.set.keys().map(String::as_str).filter(counts).collect();
        assert_eq!(given, expected, "{:?}", case.args);
        for (name, expected) in case.set.iter().filter(|(name, _)| counts(&name.as_str())) {
            assert_eq!(value(&raw, name), *expected, "{:?}: {name}", case.args);
        }
    }
}

#[test]
fn table_when_compared_with_the_recording_lacks_no_flag() {
    let mut names: Vec<&str> = TABLE.iter().map(|flag| flag.name).collect();
    names.sort_unstable();
    let unique = names.len();
    names.dedup();
    assert_eq!(names.len(), unique, "a name stands twice");
    for case in recorded() {
        for name in case.set.keys() {
            assert!(names.contains(&name.as_str()), "{name}");
        }
    }
    // The flags of the reference at v0.28.9, and the one we add.
    assert_eq!(unique, 31 + 1);
}
