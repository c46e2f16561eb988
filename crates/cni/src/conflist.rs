//! The network configuration list we ship.
//!
//! libcni before 1.2 reads `cniVersion` alone and ignores `cniVersions`; since 1.2 the highest of both that it knows itself is
//! taken, whatever the plugins speak (`libcni/conf.go`). So a plugin that does not know the highest version offered would break every
//! ADD.
//!
//! Nor does it matter what the runtime knows where thin Multus stands in between: Multus 4.3 reads the list by a libcni of its own,
//! and hands the result on in the version that this takes, whatever its caller can read. The list we ship offers what every libcni
//! since 0.7 reads; [`OFFERED`] is for hosts without thin Multus, or with a runtime as new as it: one that takes 1.1.0 asks for STATUS
//! and GC.

use std::path::Path;
use std::time::Duration;

use kernel::exec::{self, Program};

use crate::call::is_plain_name;
use crate::json;

/// The list as it is shipped.
pub const SHIPPED: &str = include_str!("../../../packaging/cni/10-flannel.conflist");
/// Where runtimes look for it.
pub const PLACE: &str = "/etc/cni/net.d/10-flannel.conflist";
/// What is read of a configuration, bytes.
pub const LARGEST: u64 = 1 << 20;
/// The name of the network in it.
pub const NAME: &str = "cbr0";
/// The versions it offers, and the one that old runtimes take, which is the first.
pub const SAFE: [&str; 2] = ["0.3.1", "0.4.0"];
/// All that it can offer.
pub const OFFERED: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The plugins it names, in order.
pub const PLUGINS: [&str; 2] = ["flannel", "portmap"];

/// How long a plugin may take to say which versions it speaks.
const LIMIT: Duration = Duration::from_secs(10);

/// The list for a network of this name, with these versions of those [`OFFERED`]; the error says what a name has to be.
///
/// # Errors
///
/// What a name has to be.
pub fn text(name: &str, versions: &[&str]) -> Result<String, String> {
    if !is_plain_name(name) {
        return Err(format!(
            "a network's name is letters, digits, '_', '.' and '-', and starts with a letter or digit, not {name:?}"
        ));
    }
    let list = |versions: &[&str]| {
        let quoted: Vec<String> = versions.iter().map(|v| format!("\"{v}\"")).collect();
        format!("\"cniVersions\": [{}]", quoted.join(", "))
    };
    let text = SHIPPED.replacen(
        &format!("\"name\": \"{NAME}\""),
        &format!("\"name\": \"{name}\""),
        1,
    );
    Ok(text.replacen(&list(&SAFE), &list(versions), 1))
}

/// The versions an executable says it speaks when it is called as this plugin.
///
/// # Errors
///
/// It does not run, gives no answer in 10 s, or answers something else.
pub fn versions_of(file: &Path, plugin: &str) -> Result<Vec<String>, String> {
    // Some plugins insist on all of them.
    let program = Program::at(file)
        .called(plugin)
        .env("CNI_COMMAND", "VERSION")
        .env("CNI_CONTAINERID", "dummy")
        .env("CNI_NETNS", "dummy")
        .env("CNI_IFNAME", "dummy")
        .env("CNI_PATH", "dummy");
    let failed = |why: String| format!("{}: VERSION: {why}", file.display());
    let output =
        exec::converse(&program, br#"{"cniVersion":"1.1.0"}"#, LIMIT).map_err(|e| failed(e.reason()))?;
    let answer =
        json::parse(&output.stdout).map_err(|e| failed(format!("{} and no JSON: {e}", output.ending())))?;
    let versions = answer.get("supportedVersions").and_then(|v| v.as_array());
    let versions = versions.ok_or_else(|| failed("no supportedVersions in the answer".to_owned()))?;
    Ok(versions
        .iter()
        .filter_map(|v| v.as_str())
        .map(str::to_owned)
        .collect())
}

/// What the plugins in a folder let the list offer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spoken {
    /// Those that every plugin there speaks.
    pub versions: Vec<&'static str>,
    /// What is missing, and who speaks less.
    pub notes: Vec<String>,
}

/// Asks the list's plugins in a folder which of these versions they speak. One that is not there is noted, and taken for one of ours
/// to come.
pub fn spoken(folder: &Path, offered: &[&'static str]) -> Spoken {
    let mut spoken = Spoken {
        versions: offered.to_vec(),
        notes: Vec::new(),
    };
    for plugin in PLUGINS {
        let file = folder.join(plugin);
        if !file.is_file() {
            let folder = folder.display();
            spoken.notes.push(format!("there is no {plugin} in {folder}"));
            continue;
        }
        match versions_of(&file, plugin) {
            Ok(known) => {
                let (kept, lost): (Vec<_>, Vec<_>) = spoken
                    .versions
                    .iter()
                    .partition(|v| known.iter().any(|k| k == **v));
                if !lost.is_empty() {
                    let (file, lost) = (file.display(), lost.join(", "));
                    spoken
                        .notes
                        .push(format!("{file} does not speak {lost}: not offered"));
                }
                spoken.versions = kept;
            }
            Err(why) => spoken.notes.push(why),
        }
    }
    spoken
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn list_when_made_for_another_name_or_fewer_versions_differs_in_those_alone() {
        assert_eq!(text(NAME, &SAFE).unwrap(), SHIPPED);
        let shipped = json::parse(SHIPPED.as_bytes()).unwrap();
        let plugins = shipped["plugins"].as_array().unwrap();
        let types: Vec<_> = plugins.iter().map(|p| p["type"].as_str().unwrap()).collect();
        assert_eq!(types, PLUGINS);
        assert_eq!(shipped["cniVersion"], OFFERED[0]);
        assert_eq!(shipped["cniVersions"], json!(SAFE));
        assert_eq!(SAFE, OFFERED[..2]);
        let mut expected = shipped;
        expected["name"] = json!("pods");
        expected["cniVersions"] = json!(["0.3.1", "1.0.0"]);
        let made = text("pods", &["0.3.1", "1.0.0"]).unwrap();
        assert_eq!(json::parse(made.as_bytes()).unwrap(), expected);
        for wrong in ["", "a/b", "../x", "a\"b", "-a"] {
            assert!(text(wrong, &OFFERED).is_err(), "{wrong}");
        }
    }

    fn plugin(folder: &Path, name: &str, answer: &str) {
        use std::os::unix::fs::PermissionsExt;
        let file = folder.join(name);
        std::fs::write(&file, format!("#!/bin/sh\ncat > /dev/null\n{answer}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn versions_when_a_plugin_is_asked_are_what_it_says_and_else_why_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flannel");
        let ask = |answer: &str| {
            plugin(folder.path(), "flannel", answer);
            versions_of(&file, "flannel")
        };
        let said = r#"[ "$CNI_COMMAND" = VERSION ] && echo '{"supportedVersions":["0.3.1","0.4.0",7]}'"#;
        assert_eq!(ask(said).unwrap(), ["0.3.1", "0.4.0"]);
        for (answer, why) in [
            ("exit 3", "VERSION: exit status 3 and no JSON"),
            ("echo '{}'", "VERSION: no supportedVersions in the answer"),
            ("echo '{\"supportedVersions\":\"x\"}'", "no supportedVersions"),
        ] {
            let error = ask(answer).unwrap_err();
            assert!(error.contains(why) && error.contains("/flannel: "), "{error}");
        }
        assert!(versions_of(&folder.path().join("none"), "none").is_err());
    }

    #[test]
    fn versions_when_some_plugin_speaks_less_are_those_that_all_speak() {
        let folder = tempfile::tempdir().unwrap();
        let spoken = || spoken(folder.path(), &OFFERED);
        let all = OFFERED.map(|v| format!("\"{v}\"")).join(",");
        assert_eq!(spoken().versions, OFFERED);
        assert_eq!(spoken().notes.len(), 2, "neither is there");
        plugin(
            folder.path(),
            "flannel",
            &format!("echo '{{\"supportedVersions\":[{all}]}}'"),
        );
        let only_portmap = spoken();
        assert_eq!(only_portmap.versions, OFFERED);
        assert_eq!(
            only_portmap.notes,
            [format!("there is no portmap in {}", folder.path().display())]
        );
        plugin(
            folder.path(),
            "portmap",
            r#"echo '{"supportedVersions":["0.3.1","1.0.0","9.9.9"]}'"#,
        );
        let less = spoken();
        assert_eq!(less.versions, ["0.3.1", "1.0.0"]);
        let file = folder.path().join("portmap");
        assert_eq!(
            less.notes,
            [format!(
                "{} does not speak 0.4.0, 1.1.0: not offered",
                file.display()
            )]
        );
        plugin(
            folder.path(),
            "portmap",
            &format!("echo '{{\"supportedVersions\":[{all}]}}'"),
        );
        assert_eq!(
            spoken(),
            Spoken {
                versions: OFFERED.to_vec(),
                notes: Vec::new()
            }
        );
    }
}
