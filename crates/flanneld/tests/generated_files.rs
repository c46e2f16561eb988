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
