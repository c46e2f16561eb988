//! Reading files of objects.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

pub const MANIFEST: &str = "deploy/kube-flannel.yml";

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// All documents of a YAML file that are not empty.
pub fn documents(file: &str) -> Vec<Value> {
    let read: Result<Vec<Value>, _> = serde_saphyr::from_multiple(&read(file));
    let mut documents = read.unwrap_or_else(|e| panic!("{file}: {e}"));
    documents.retain(|document| !document.is_null());
    documents
}

/// The objects of a file by kind and name; each has one API version, and there are no two of a name.
pub fn objects(file: &str) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for object in documents(file) {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str);
        let name = format!("{} {}", text("/kind").unwrap(), text("/metadata/name").unwrap());
        assert!(text("/apiVersion").is_some(), "{file}: {name}");
        assert!(
            found.insert(name.clone(), object).is_none(),
            "{file}: two of {name}"
        );
    }
    found
}

/// What is at a path of a value, which has to be there.
pub fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    value
        .pointer(path)
        .unwrap_or_else(|| panic!("nothing at {path} of {value:#}"))
}

/// The entries of a list that have names, by name.
pub fn named<'a>(value: &'a Value, path: &str) -> BTreeMap<&'a str, &'a Value> {
    let entries = value.pointer(path).and_then(Value::as_array);
    let entries = entries.into_iter().flatten();
    entries
        .map(|entry| (at(entry, "/name").as_str().unwrap(), entry))
        .collect()
}

pub fn texts(value: Option<&Value>) -> Vec<&str> {
    let entries = value.and_then(Value::as_array).into_iter().flatten();
    entries.map(|entry| entry.as_str().unwrap()).collect()
}

/// A document of JSON inside a ConfigMap.
pub fn inner(config: &Value, key: &str) -> Value {
    let text = at(config, "/data")[key]
        .as_str()
        .unwrap_or_else(|| panic!("no {key}"));
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{key}: {e}"))
}

/// Rights as `group/resource verb`.
pub fn rights(role: &Value) -> BTreeSet<String> {
    let mut rights = BTreeSet::new();
    for rule in at(role, "/rules").as_array().unwrap() {
        assert!(rule.get("nonResourceURLs").is_none() && rule.get("resourceNames").is_none());
        for group in texts(rule.get("apiGroups")) {
            for resource in texts(rule.get("resources")) {
                for verb in texts(rule.get("verbs")) {
                    rights.insert(format!("{group}/{resource} {verb}"));
                }
            }
        }
    }
    rights
}

/// The output of a program of the product, or a script of the repository.
pub fn output(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{}: {}",
        program.display(),
        output.status
    );
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

/// An executable of the product.
pub fn executable(name: &str) -> PathBuf {
    lab::rig::executables().unwrap().join(name)
}

/// The words of a text that could be flags, without dashes.
pub fn flags(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let words = text.split(|c| !is_part(c)).filter(|word| word.starts_with('-'));
    let names = words.map(|word| word.trim_start_matches('-').to_owned());
    names.filter(|name| !name.is_empty()).collect()
}

/// Where two values differ, as paths.
pub fn differences(a: &Value, b: &Value, path: &str, found: &mut BTreeSet<String>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys()) {
                let path = format!("{path}/{key}");
                differences(
                    a.get(key).unwrap_or(&Value::Null),
                    b.get(key).unwrap_or(&Value::Null),
                    &path,
                    found,
                );
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differences(a, b, &format!("{path}/{index}"), found);
            }
        }
        _ if a == b => {}
        _ => {
            found.insert(path.to_owned());
        }
    }
}
