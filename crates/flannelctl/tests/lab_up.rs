//! `flannelctl lab up` with flags that do not go together: one line that says which, and nothing is made.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::process::Command;

/// The first line of what is said about flags, with the exit status.
fn refusal(flags: &[&str]) -> (String, Option<i32>) {
    let output = Command::new(env!("CARGO_BIN_EXE_flannelctl"))
        .args(["lab", "up"])
        .args(flags)
        .output()
        .expect("flannelctl starts");
    let text = String::from_utf8_lossy(&output.stderr);
    (
        text.lines().next().unwrap_or_default().to_owned(),
        output.status.code(),
    )
}

#[test]
fn flags_when_they_do_not_go_together_then_the_line_says_which_and_what_is_expected() {
    let archive = std::env::current_exe()
        .expect("this test is a file")
        .display()
        .to_string();
    let kubelet = ["--kube", "--kubelet", "--image", &archive];
    for (flags, expected) in [
        (
            &["--etcd", "--kube"][..],
            "--etcd and --kube: expected one of them",
        ),
        (
            &["--kubelet", "--image", &archive],
            "--kubelet: expected --kube beside it",
        ),
        (&["--etcd", "--kubelet"], "--kubelet: expected --kube beside it"),
        (
            &["--kube", "--kubelet"],
            "--kubelet: expected --image FILE beside it",
        ),
        (
            &["--kube", "--image", &archive],
            "--image: expected --kubelet beside it",
        ),
        (
            &["--kube", "--kubelet", "--image", "/no/such.tar"],
            "--image /no/such.tar: expected the archive of an image",
        ),
        (
            &[&kubelet[..], &["--family", "46"]].concat(),
            "--family 46: expected 4 with --kubelet",
        ),
        (
            &[&kubelet[..], &["--family", "6"]].concat(),
            "--family 6: expected 4 with --kubelet",
        ),
        (&["--family", "5"], "family \"5\": expected 4, 6 or 46"),
        (&["--kubelets"], "no flag --kubelets"),
    ] {
        let (line, status) = refusal(flags);
        assert!(line.contains(expected), "{flags:?}: {line}");
        assert_eq!(status, Some(2), "{flags:?}");
    }
}
