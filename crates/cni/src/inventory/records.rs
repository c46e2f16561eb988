//! What others say of a container: the records of runtimes, and plugins at work.

use std::collections::BTreeSet;
use std::path::Path;

use kernel::netns::{Netns, NetnsError};
use serde_json::Value;

use super::{Folders, Said};
use crate::files;
use crate::json;

/// Most bytes of a record.
const LIMIT: usize = 4 << 20;

/// What runtimes' records say.
#[derive(Debug, Default)]
pub struct Recorded {
    /// Containers whose namespace is there.
    pub alive: Said,
    /// Those namespaces.
    pub namespaces: Vec<Netns>,
    /// Namespaces that are there and may not be looked at.
    pub hidden: Vec<String>,
}

/// Containers that have a record with a namespace that exists.
///
/// libcni keeps `<folder>/results/<network>-<container>-<interface>`, with the namespace's path since 1.2 and the interfaces'
/// `sandbox` always; Multus has such a folder of its own. The folders are only read.
pub fn living(folders: &Folders, containers: &BTreeSet<String>) -> Recorded {
    let mut recorded = Recorded::default();
    let home = [Path::new("/proc/1/ns/net"), Path::new("/proc/thread-self/ns/net")];
    let home: Vec<_> = home.iter().filter_map(|p| Netns::open(p).ok()).collect();
    for (container, path) in named(folders, containers) {
        // The path is the runtime's, whose view of the files may be another.
        let outside = format!("/proc/1/root{path}");
        for path in [&path, &outside] {
            match Netns::open(path) {
                // A process id that has been given to another since may lead to the host's own.
                Ok(netns) if home.iter().any(|own| own.identity() == netns.identity()) => {}
                Ok(netns) => {
                    let why = format!("its namespace {path} is there");
                    recorded.alive.entry(container.clone()).or_insert(why);
                    recorded.namespaces.push(netns);
                    break;
                }
                Err(NetnsError::Missing { .. } | NetnsError::NotANamespace { .. }) => {}
                Err(e) if *path != outside => recorded.hidden.push(e.to_string()),
                Err(_) => {}
            }
        }
    }
    recorded
}

/// Containers and the paths of namespaces that records name for them.
fn named(folders: &Folders, containers: &BTreeSet<String>) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let parent = Path::new(&folders.data_dir).parent();
    let folders: BTreeSet<_> = parent
        .into_iter()
        .chain([Path::new("/var/lib/cni")])
        .flat_map(|cni| [cni.join("results"), cni.join("multus/results")])
        .collect();
    for entry in folders
        .iter()
        .filter_map(|f| std::fs::read_dir(f).ok())
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let of = containers.iter().find(|c| name.contains(&format!("-{c}-")));
        let Some(container) = of else { continue };
        let path = entry.path();
        let record = path.to_str().and_then(|path| files::read(path, LIMIT).ok());
        let Some(record) = record.and_then(|bytes| json::parse(&bytes).ok()) else {
            continue;
        };
        found.extend(paths(&record).into_iter().map(|path| (container.clone(), path)));
    }
    found
}

/// Paths of namespaces in a record: `netns`, and the `sandbox` of each interface of the result.
fn paths(record: &Value) -> BTreeSet<String> {
    // Before the kind `cniCacheV1` a record was the result alone.
    let result = record.get("result").unwrap_or(record);
    let interfaces = result.get("interfaces").and_then(Value::as_array);
    let sandboxes = interfaces.into_iter().flatten().filter_map(|i| i.get("sandbox"));
    let all = record.get("netns").into_iter().chain(sandboxes);
    all.filter_map(Value::as_str)
        .filter(|path| path.starts_with('/'))
        .map(str::to_owned)
        .collect()
}

/// Containers that a process works for at this moment, by the variables plugins are called with.
pub fn worked_for(containers: &BTreeSet<String>) -> Said {
    let mut said = Said::new();
    if containers.is_empty() {
        return said;
    }
    let own = std::process::id().to_string();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let process = entry.file_name().to_string_lossy().into_owned();
        if process == own || !process.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let Ok(variables) = std::fs::read(entry.path().join("environ")) else {
            continue;
        };
        let mut variables = variables.split(|b| *b == 0);
        let Some(id) = variables.find_map(|v| v.strip_prefix(b"CNI_CONTAINERID=")) else {
            continue;
        };
        if let Some(container) = containers.iter().find(|c| c.as_bytes() == id) {
            let why = format!("process {process} is a plugin at work for it");
            said.insert(container.clone(), why);
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_when_of_any_libcni_names_its_namespaces() {
        let paths = |text: &str| -> Vec<String> {
            paths(&json::parse(text.as_bytes()).unwrap())
                .into_iter()
                .collect()
        };
        let new = r#"{"kind":"cniCacheV1","netns":"/run/netns/a","result":{"interfaces":[{"name":"cni0"},{"sandbox":"/run/netns/b"}]}}"#;
        assert_eq!(paths(new), ["/run/netns/a", "/run/netns/b"]);
        let old = r#"{"cniVersion":"0.3.1","interfaces":[{"sandbox":"/proc/7/ns/net"}]}"#;
        assert_eq!(paths(old), ["/proc/7/ns/net"]);
        assert!(paths(r#"{"netns":"","result":{"interfaces":{}}}"#).is_empty());
    }

    use super::super::tests::Room;

    #[test]
    fn records_when_they_name_a_container_that_is_asked_for_tell_its_namespaces() {
        let room = Room::new();
        let write = |file: &str, text: &str| {
            let path = room.path(file);
            std::fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(
            "results/cbr0-nobody-a-eth0",
            r#"{"netns":"/nonexistent/a","result":{}}"#,
        );
        write(
            "multus/results/net-nobody-b-net1",
            r#"{"interfaces":[{"sandbox":"/nonexistent/b"}]}"#,
        );
        write("results/cbr0-nobody-c-eth0", "broken");
        write("results/cbr0-nobody-abc-eth0", r#"{"netns":"/nonexistent/d"}"#);
        let asked = |ids: &[&str]| {
            ids.iter()
                .map(|id| (*id).to_owned())
                .collect::<BTreeSet<String>>()
        };
        let mut found = named(&room.folders(), &asked(&["nobody-a", "nobody-b", "nobody-c"]));
        found.sort();
        let pair = |id: &str, path: &str| (id.to_owned(), path.to_owned());
        assert_eq!(
            found,
            [
                pair("nobody-a", "/nonexistent/a"),
                pair("nobody-b", "/nonexistent/b")
            ]
        );
        let recorded = living(&room.folders(), &asked(&["nobody-a", "nobody-b"]));
        assert!(recorded.alive.is_empty() && recorded.namespaces.is_empty() && recorded.hidden.is_empty());
        // The host's own namespace is nobody's, as a number that was given to another process leads there.
        write("results/cbr0-nobody-e-eth0", r#"{"netns":"/proc/self/ns/net"}"#);
        assert!(living(&room.folders(), &asked(&["nobody-e"])).alive.is_empty());
    }

    #[test]
    fn container_when_a_plugin_is_called_for_it_is_worked_for() {
        let ids: BTreeSet<String> = ["worked-for-7f3a", "nobody-7f3a"].map(str::to_owned).into();
        assert!(worked_for(&ids).is_empty() && worked_for(&BTreeSet::new()).is_empty());
        let mut plugin = std::process::Command::new("sleep")
            .arg("60")
            .env("CNI_CONTAINERID", "worked-for-7f3a")
            .spawn()
            .unwrap();
        // The system shows a program's variables a moment after it says that the program has begun.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        let said = loop {
            let said = worked_for(&ids);
            if !said.is_empty() || std::time::Instant::now() > end {
                break said;
            }
        };
        plugin.kill().unwrap();
        plugin.wait().unwrap();
        assert_eq!(said.len(), 1);
        let why = format!("process {} is a plugin at work for it", plugin.id());
        assert_eq!(said.get("worked-for-7f3a"), Some(&why));
    }
}
