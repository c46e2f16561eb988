//! The files made from the flag table are current.
//!
//! `UPDATE=1 cargo test -p flanneld --test generated_files` writes them anew.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed test is a panic"
)]

use std::path::Path;
use std::process::{Command, Stdio};

use flanneld::flags::render;

#[test]
fn files_when_compared_with_the_table_are_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let files = [
        ("packaging/man/flanneld.8", render::man()),
        ("packaging/completion/flanneld.bash", render::bash()),
        ("packaging/completion/_flanneld", render::zsh()),
        ("packaging/completion/flanneld.fish", render::fish()),
        ("docs/flags.md", render::markdown()),
    ];
    for (path, text) in files {
        let path = root.join(path);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == text,
            "{} is not current: UPDATE=1 cargo test -p flanneld --test generated_files",
            path.display()
        );
    }
}

/// Runs bash over the completion as readline would split the words, and gives what it offers.
fn complete(words: &[&str]) -> Vec<String> {
    let script = format!(
        "{}\nCOMP_WORDS=({}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _flanneld 2>/dev/null; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        render::bash(),
        words
            .iter()
            .map(|word| format!("'{word}'"))
            .collect::<Vec<_>>()
            .join(" ")
    );
    let output = Command::new("bash")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .output()
        .expect("bash runs");
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn bash_completion_when_asked_offers_flags_and_values() {
    assert_eq!(
        complete(&["flanneld", "--etcd-c"]),
        ["--etcd-certfile=", "--etcd-cafile="]
    );
    assert_eq!(
        complete(&["flanneld", "--ip-masq-"]),
        ["--ip-masq-fully-random-disable"]
    );
    assert_eq!(complete(&["flanneld", "--etcd-api", "=", "v"]), ["v3", "v2"]);
    assert_eq!(complete(&["flanneld", "--etcd-api", "a"]), ["auto"]);
    assert_eq!(complete(&["flanneld", "--ip-masq", "=", "t"]), ["true"]);
    assert_eq!(complete(&["flanneld", "--ip-masq", "t"]), [""]);
    assert_eq!(complete(&["flanneld", "--iface", "=", "l"]), ["lo"]);
}

/// Every variable that the example names is one of the table, and its value one that the flag takes.
#[test]
fn example_environment_when_uncommented_is_accepted() {
    use std::ffi::OsString;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd");
    let text = std::fs::read_to_string(root.join("flanneld.env")).unwrap();
    let set: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.strip_prefix('#')?.split_once('='))
        .filter(|(n, _)| !n.contains(' '))
        .collect();
    let known: Vec<String> = flanneld::flags::TABLE
        .iter()
        .map(|flag| flag.variable())
        .collect();
    for (name, _) in &set {
        assert!(
            *name == "FLANNEL_OPTIONS" || known.iter().any(|variable| variable == name),
            "{name}"
        );
    }
    assert!(set.len() > 8);
    let options = set.iter().find(|(name, _)| *name == "FLANNEL_OPTIONS").unwrap().1;
    // Flags and variables both: the unit gives all of them.
    let arguments = std::iter::once("flanneld")
        .chain(options.split(' '))
        .map(OsString::from);
    let variable = |name: &str| {
        set.iter()
            .find(|(n, _)| *n == name)
            .map(|(_, value)| OsString::from(value))
    };
    match flanneld::flags::command_line(arguments, variable, "0") {
        flanneld::flags::CommandLine::Run(start) => {
            assert!(start.errors.is_empty() && start.warnings.is_empty(), "{start:?}");
            assert!(start.options.registry.etcd().unwrap().client.is_some() && start.options.masquerade);
            assert_eq!(start.options.interface.iface, ["eth1", "eth0"]);
        }
        flanneld::flags::CommandLine::Exit { text, .. } => panic!("{text}"),
    }
}
