//! `cargo xtask kube-assets`: a real Kubernetes for the lab, built from Debian's source package and kept outside the tree.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cargo::{root, run as run_command};
use crate::packages::{BUILD_KUBE, ensure};
use crate::say;

const HELP: &str = "\
Builds kube-apiserver, kube-controller-manager and kubectl from Debian's source package and keeps them; what is there already is not built again.

Usage: cargo xtask kube-assets [--nodes]

  --nodes   kubelet, kube-proxy and kube-scheduler as well

They are kept in /var/cache/flannel-lab/kube-1.20.2, or in the folder that FLANNEL_KUBE_ASSETS names. About six minutes on two cores, and
2.5 GB of disk meanwhile; 250 MB stay (with --nodes 420). Of several at once one builds, and the others wait for it.
";

/// Names the folder, for the lab too.
const FOLDER: &str = "FLANNEL_KUBE_ASSETS";
/// Where they are kept otherwise. The version is that of `scripts/build-kube`.
const DEFAULT: &str = "/var/cache/flannel-lab/kube-1.20.2";

/// What a cluster without nodes consists of.
const SERVERS: &[&str] = &["kube-apiserver", "kube-controller-manager", "kubectl"];
/// What nodes need besides.
const NODES: &[&str] = &["kubelet", "kube-proxy", "kube-scheduler"];

/// `cargo xtask kube-assets ...`.
pub fn run(arguments: &[String]) -> Result<bool> {
    let mut wanted = SERVERS.to_vec();
    for argument in arguments {
        match argument.as_str() {
            "-h" | "--help" => {
                say(HELP);
                return Ok(true);
            }
            "--nodes" => wanted.extend(NODES),
            other => bail!("no flag {other}; `cargo xtask kube-assets --help`"),
        }
    }
    let folder = provide(&wanted)?;
    say(&format!("{} has {}", folder.display(), wanted.join(", ")));
    Ok(true)
}

/// Waits for the servers, and builds what nobody else is building.
pub fn servers() -> Result<PathBuf> {
    provide(SERVERS)
}

/// As [`servers`], with what nodes need besides.
pub fn nodes() -> Result<PathBuf> {
    provide(&[SERVERS, NODES].concat())
}

/// Whether the servers are there already.
pub fn are_there() -> bool {
    missing(&folder(), SERVERS).is_empty()
}

/// Whether the programs of nodes are.
pub fn nodes_are_there() -> bool {
    missing(&folder(), NODES).is_empty()
}

/// The folder in which all of these are.
fn provide(wanted: &[&str]) -> Result<PathBuf> {
    let folder = folder();
    if missing(&folder, wanted).is_empty() {
        return Ok(folder);
    }
    ensure(&[BUILD_KUBE])?;
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let path = folder.join("lock");
    let lock = File::create(&path).with_context(|| path.display().to_string())?;
    if lock.try_lock().is_err() {
        say(&format!("waiting for who is building in {}", folder.display()));
        lock.lock().with_context(|| path.display().to_string())?;
    }
    // What was missing may have been built meanwhile.
    let missing = missing(&folder, wanted);
    if !missing.is_empty() {
        let mut command = Command::new(root().join("scripts/build-kube"));
        run_command(command.arg(&folder).args(&missing).stdin(Stdio::null()))?;
    }
    Ok(folder)
}

/// Where they are kept.
fn folder() -> PathBuf {
    std::env::var_os(FOLDER).map_or_else(|| PathBuf::from(DEFAULT), PathBuf::from)
}

/// Those of `wanted` that are not there. What is there is whole: it was renamed to its place.
fn missing<'a>(folder: &Path, wanted: &[&'a str]) -> Vec<&'a str> {
    let mut missing = wanted.to_vec();
    missing.retain(|name| !folder.join(name).is_file());
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_when_a_build_was_cut_off_then_what_it_left_counts_for_nothing() {
        let folder = std::env::temp_dir().join(format!("xtask-kube-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("building")).unwrap();
        std::fs::write(folder.join("kubectl"), "").unwrap();
        std::fs::write(folder.join("kube-apiserver.new"), "").unwrap();
        let missing = missing(&folder, SERVERS);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(missing, ["kube-apiserver", "kube-controller-manager"]);
    }
}
