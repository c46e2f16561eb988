//! The network configuration list we ship.
//!
//! libcni before 1.2 reads `cniVersion` alone and ignores `cniVersions`; since 1.2 the highest of both that it knows itself is
//! taken, whatever the plugins speak (`libcni/conf.go`). So a runtime that knows 1.1.0 asks for STATUS and GC by this list, an
//! older one goes on with 0.3.1, and a plugin that does not know the highest version offered would break every ADD.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::call::is_plain_name;
use crate::json;
use crate::process;

/// The list as it is shipped.
pub const SHIPPED: &str = include_str!("../../../packaging/cni/10-flannel.conflist");
/// Where runtimes look for it.
pub const PLACE: &str = "/etc/cni/net.d/10-flannel.conflist";
/// The name of the network in it.
pub const NAME: &str = "cbr0";
/// The versions it offers, and the one that old runtimes take, which is the first.
pub const OFFERED: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The plugins it names, in order.
pub const PLUGINS: [&str; 2] = ["flannel", "portmap"];

/// How long a plugin may take to say which versions it speaks.
const LIMIT: Duration = Duration::from_secs(10);

/// The list for a network of this name, with these versions of those [`OFFERED`]; the error says what a name has to be.
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
    Ok(text.replacen(&list(&OFFERED), &list(versions), 1))
}

/// The versions a plugin's executable says it speaks.
pub fn versions_of(plugin: &Path) -> Result<Vec<String>, String> {
    let mut command = Command::new(plugin);
    // Some plugins insist on all of them.
    command
        .env("CNI_COMMAND", "VERSION")
        .env("CNI_CONTAINERID", "dummy")
        .env("CNI_NETNS", "dummy")
        .env("CNI_IFNAME", "dummy")
        .env("CNI_PATH", "dummy");
    let failed = |why: String| format!("{}: VERSION: {why}", plugin.display());
    let output =
        process::run(&mut command, br#"{"cniVersion":"1.1.0"}"#, LIMIT).map_err(|e| failed(e.to_string()))?;
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
    /// Those of [`OFFERED`] that every plugin there speaks.
    pub versions: Vec<&'static str>,
    /// What is missing, and who speaks less.
    pub notes: Vec<String>,
}

/// Asks the list's plugins in a folder. One that is not there is noted, and taken for one of ours to come.
pub fn spoken(folder: &Path) -> Spoken {
    let mut spoken = Spoken {
        versions: OFFERED.to_vec(),
        notes: Vec::new(),
    };
    for plugin in PLUGINS {
        let file = folder.join(plugin);
        if !file.is_file() {
            let folder = folder.display();
            spoken.notes.push(format!("there is no {plugin} in {folder}"));
            continue;
        }
        match versions_of(&file) {
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
        assert_eq!(text(NAME, &OFFERED).unwrap(), SHIPPED);
        let shipped = json::parse(SHIPPED.as_bytes()).unwrap();
        let plugins = shipped["plugins"].as_array().unwrap();
        let types: Vec<_> = plugins.iter().map(|p| p["type"].as_str().unwrap()).collect();
        assert_eq!(types, PLUGINS);
        assert_eq!(shipped["cniVersion"], OFFERED[0]);
        let mut expected = shipped;
        expected["name"] = json!("pods");
        expected["cniVersions"] = json!(["0.3.1", "1.0.0"]);
        let made = text("pods", &["0.3.1", "1.0.0"]).unwrap();
        assert_eq!(json::parse(made.as_bytes()).unwrap(), expected);
        for wrong in ["", "a/b", "../x", "a\"b", "-a"] {
            assert!(text(wrong, &OFFERED).is_err(), "{wrong}");
        }
    }
}
