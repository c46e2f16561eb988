//! The cluster that `flannelctl lab up --kube --kubelet` makes, looked at by what docs/kubernetes.md names.

use std::process::{Command, Output};

use lab::rig::{executables, traces, unique_name};
use serde_json::Value;

use crate::bed::image;

/// Takes the lab down whatever happens.
struct Down(String);

impl Drop for Down {
    fn drop(&mut self) {
        let _ = lab::topology::remove(&self.0);
    }
}

fn flannelctl(arguments: &[&str]) -> Output {
    Command::new(executables().unwrap().join("flannelctl"))
        .arg("lab")
        .args(arguments)
        .output()
        .unwrap()
}

/// What a command says that succeeds.
fn said(arguments: &[&str]) -> String {
    let output = flannelctl(arguments);
    let (said, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{arguments:?}: {said}{errors}");
    said.into_owned()
}

pub fn looks() {
    let (name, image) = (unique_name(), image().display().to_string());
    let _down = Down(name.clone());
    let shown = said(&[
        "up",
        "--name",
        &name,
        "--nodes",
        "2",
        "--backend",
        "host-gw",
        "--kube",
        "--kubelet",
        "--image",
        &image,
        "--no-speed",
    ]);
    let status = said(&["status", "--name", &name, "--matrix", "--json"]);
    let result: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(result["good"], true, "{result:#}");
    // Each of two pods reaches the other, each of two hosts both.
    let cells = result["matrix"]["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 6, "{cells:#?}");
    for cell in cells {
        assert_eq!(cell["largest"], cell["expected"], "{cell}");
        assert_eq!(cell["expected"], 1500, "{cell}");
    }
    let exec = |node: &str, line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        said(&[&["exec", "--name", &name, node][..], &words].concat())
    };
    assert_eq!(
        exec("h1", "systemctl is-active containerd kubelet kube-proxy"),
        "active\n".repeat(3)
    );
    assert!(exec("h2", "journalctl -u kubelet --no-pager").contains("Started kubelet.service"));
    assert!(exec("h2", "ctr -n k8s.io containers ls").contains("localhost/flannel:"));
    assert!(exec("h1", "flannelctl status").contains("host-gw"));
    assert!(exec("h1-p1", "ip -4 addr show eth0").contains("10.244."));
    let line = shown.lines().find_map(|line| line.strip_prefix("kubectl:"));
    let kubectl = format!("{} get nodes -o name", line.unwrap_or_else(|| panic!("{shown}")));
    let nodes = Command::new("sh").args(["-c", &kubectl]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&nodes.stdout), "node/h1\nnode/h2\n");
    said(&["down", "--name", &name]);
    assert_eq!(traces(&name).unwrap(), [""; 0]);
}
