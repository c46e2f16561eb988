//! The commands shown in the documents, run as a reader would.
//!
//! One marked `console install` is run with the system's folders below one of the test's own, its first line (a build of minutes) aside.
//! A fenced block marked `console lab` is run line by line in a lab; one marked `console help` is only checked for flags that the
//! programs do not know, since it needs machines of its own. Of one marked `console cluster`, which is for clusters and other people's
//! programs, the paths are checked. Every `console` block must be marked or be of `cargo xtask` or `scripts/xtask`.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

use std::path::{Path, PathBuf};
use std::process::Command;

use lab::rig::executables;

const DOCUMENTS: [&str; 3] = ["README.md", "docs/operations.md", "docs/kubernetes.md"];

/// Takes the documents' lab down whatever happens.
struct Down;

impl Drop for Down {
    fn drop(&mut self) {
        let _ = lab::topology::remove(&name());
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The command lines of a document's blocks, with the mark of each block.
fn commands(document: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join(document)).unwrap();
    let (mut found, mut mark) = (Vec::new(), None::<String>);
    for line in text.lines().map(str::trim_start) {
        if let Some(info) = line.strip_prefix("```") {
            mark = if mark.is_none() {
                Some(info.to_owned())
            } else {
                None
            };
        } else if let (Some(mark), Some(command)) = (&mark, line.strip_prefix("$ ")) {
            let command = command.split(" # ").next().unwrap().trim_end();
            found.push((mark.clone(), command.to_owned()));
        }
    }
    found
}

/// Not `lab`: that may be up on this machine, and somebody's.
fn name() -> String {
    format!("d{}", std::process::id() % 1_000_000)
}

fn shell(line: &str) -> std::process::Output {
    let path = format!(
        "{}:{}",
        executables().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    Command::new("sh")
        .args(["-c", line])
        .env("PATH", path)
        .env("FLANNEL_LAB_NAME", name())
        .output()
        .unwrap()
}

#[test]
fn every_block_of_commands_is_marked_for_how_it_is_tested() {
    for document in DOCUMENTS {
        let all = commands(document);
        assert!(!all.is_empty(), "{document}");
        for (mark, command) in all {
            let marks = [
                "console lab",
                "console help",
                "console install",
                "console cluster",
            ];
            let good = marks.contains(&mark.as_str()) || is_xtask(&command);
            assert!(good, "{document}: `{command}` stands in a block marked {mark:?}");
        }
    }
}

#[test]
fn commands_of_the_lab_blocks_run() {
    let _down = Down;
    let up = shell("flannelctl lab up --no-speed");
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    // Taking it down comes last, wherever a document says it.
    let lines = DOCUMENTS
        .iter()
        .flat_map(|d| commands(d))
        .filter(|c| c.0 == "console lab")
        .map(|c| c.1);
    let (last, rest): (Vec<String>, Vec<String>) = lines.partition(|l| l == "flannelctl lab down");
    assert!(!last.is_empty() && rest.len() > 10);
    for line in rest.into_iter().chain(last) {
        let output = shell(&line);
        // `plan` right after a fault may see the repair under way, and says so by its status.
        let asks = line.ends_with("flannelctl plan");
        assert!(
            output.status.success() || asks && output.status.code() == Some(1),
            "`{line}`: {} {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn flags_in_the_documents_are_known_to_the_programs() {
    let mut checked = 0;
    for (mark, line) in DOCUMENTS.iter().flat_map(|d| commands(d)) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let help = match words.as_slice() {
            ["flanneld", ..] => "flanneld --help".to_owned(),
            ["flannelctl", "lab", verb, ..] => format!("flannelctl lab {verb} --help"),
            ["flannelctl", command @ ("ipam" | "cni"), verb, ..] => {
                format!("flannelctl {command} {verb} --help")
            }
            ["flannelctl", "registry", "serve", ..] => "flannelctl registry serve --help".to_owned(),
            ["flannelctl", "registry", ..] => "flannelctl registry --help".to_owned(),
            ["etcdctl", ..] => "ETCDCTL_API=3 etcdctl --help".to_owned(),
            _ if is_xtask(&line) || ["console install", "console cluster"].contains(&mark.as_str()) => {
                continue;
            }
            _ => panic!("`{line}` in a block marked {mark:?}: of which program?"),
        };
        let output = shell(&help);
        assert!(output.status.success(), "{help}: {}", output.status);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        let own = words
            .iter()
            .take_while(|w| !w.starts_with("h1") && !w.starts_with("sw"));
        for flag in own.filter(|w| w.starts_with("--")) {
            let name = flag.trim_start_matches('-').split('=').next().unwrap();
            assert!(
                text.contains(&format!("-{name}")),
                "`{line}`: {help} does not know {flag}\n{text}"
            );
            checked += 1;
        }
    }
    assert!(checked > 10);
}

#[test]
fn paths_in_the_cluster_blocks_are_of_this_repository_or_made_by_what_they_say_before() {
    let version = env!("CARGO_PKG_VERSION");
    let mut checked = 0;
    for (mark, line) in DOCUMENTS.iter().flat_map(|d| commands(d)) {
        if mark != "console cluster" {
            continue;
        }
        for word in line.split_whitespace() {
            let path = word.trim_start_matches("oci:");
            if path.starts_with("deploy") {
                assert!(root().join(path).exists(), "`{line}`: no {path}");
                checked += 1;
            } else if path.contains("flannel-") && path.ends_with(".tar") {
                assert!(
                    path.ends_with(&format!("flannel-{version}-amd64.tar")),
                    "`{line}`"
                );
                checked += 1;
            } else if path.starts_with("target/dist/image/oci") {
                assert_eq!(path, format!("target/dist/image/oci:{version}"), "`{line}`");
                checked += 1;
            }
        }
    }
    assert!(checked > 8);
}

fn is_xtask(command: &str) -> bool {
    ["cargo xtask ", "scripts/xtask "]
        .iter()
        .any(|start| command.starts_with(start))
}

/// With the executables that the tests have, in place of those that are shipped.
#[test]
fn commands_of_the_install_blocks_put_files_where_the_units_look_for_them() {
    let folder = std::env::temp_dir().join(name());
    std::fs::create_dir_all(folder.join("usr/local/bin")).unwrap();
    let built = format!("{}/", executables().unwrap().display());
    let below = format!(" {}/", folder.display());
    let mut done = 0;
    for (mark, line) in DOCUMENTS.iter().flat_map(|d| commands(d)) {
        if mark != "console install" || is_xtask(&line) {
            continue;
        }
        let line = line.replace(" /", &below).replace("target/dist/", &built);
        let output = Command::new("sh")
            .args(["-ec", &line])
            .current_dir(root())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        done += 1;
    }
    assert!(done > 2);
    // What the units run and read that is flannel's is there.
    let mut looked_for = 0;
    for unit in ["flanneld.service", "docker-flannel.conf"] {
        let text = std::fs::read_to_string(root().join("packaging/systemd").join(unit)).unwrap();
        for line in text
            .lines()
            .filter(|line| line.starts_with("Exec") || line.starts_with("EnvironmentFile="))
        {
            let (_, value) = line.split_once('=').unwrap();
            let path = value.trim_start_matches('-').split(' ').next().unwrap();
            if path.starts_with("/usr/local/") || path.starts_with("/etc/flannel/") {
                assert!(folder.join(&path[1..]).is_file(), "{unit}: {line}");
                looked_for += 1;
            }
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(looked_for, 3);
}

#[test]
fn links_between_documents_lead_somewhere() {
    for document in [
        "README.md",
        "ARCHITECTURE.md",
        "docs/operations.md",
        "docs/kubernetes.md",
        "docs/adr/README.md",
    ] {
        let text = std::fs::read_to_string(root().join(document)).unwrap();
        for target in text.split("](").skip(1).filter_map(|t| t.split(')').next()) {
            if !target.starts_with("http") {
                let target = target.split('#').next().unwrap();
                let path = root().join(document).parent().unwrap().join(target);
                assert!(path.exists(), "{document}: {target}");
            }
        }
    }
}
