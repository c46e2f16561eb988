//! `cargo xtask host-root`: the Debian that the lab's machines share, made by debootstrap and kept outside the tree.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cargo::{root, run as run_command};
use crate::packages::{HOST_ROOT, IN_HOST_ROOT, ensure};
use crate::say;

const HELP: &str = "\
Makes the root file system of the lab's machines, a Debian with systemd and containerd, and keeps it; one that is there is not made again.

Usage: cargo xtask host-root

It is kept in /var/cache/flannel-lab/host-root-1, or in the folder that FLANNEL_HOST_ROOT names. About a minute, and 230 MB. Of several at
once one makes it, and the others wait for it.
";

/// Names the folder, for the lab too.
const FOLDER: &str = "FLANNEL_HOST_ROOT";
/// Where it is kept otherwise. Another list of packages is another number, here and in `crates/lab/src/machine.rs`: machines may be
/// running on the older one.
const DEFAULT: &str = "/var/cache/flannel-lab/host-root-1";

/// `cargo xtask host-root ...`.
pub fn run(arguments: &[String]) -> Result<bool> {
    match arguments.first().map(String::as_str) {
        Some("-h" | "--help") => say(HELP),
        Some(other) => bail!("no flag {other}; `cargo xtask host-root --help`"),
        None => say(&format!("{} is there", provide()?.display())),
    }
    Ok(true)
}

/// Whether it is there already.
pub fn is_there() -> bool {
    folder().is_dir()
}

/// Waits for it, and makes it when nobody else does.
pub fn provide() -> Result<PathBuf> {
    let folder = folder();
    if folder.is_dir() {
        return Ok(folder);
    }
    ensure(&[HOST_ROOT])?;
    let parent = folder
        .parent()
        .context("FLANNEL_HOST_ROOT has no parent folder")?;
    std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let path = folder.with_extension("lock");
    let lock = File::create(&path).with_context(|| path.display().to_string())?;
    if lock.try_lock().is_err() {
        say(&format!("waiting for who is making {}", folder.display()));
        lock.lock().with_context(|| path.display().to_string())?;
    }
    if !folder.is_dir() {
        let mut command = Command::new(root().join("scripts/build-host-root"));
        run_command(command.arg(&folder).args(IN_HOST_ROOT).stdin(Stdio::null()))?;
    }
    Ok(folder)
}

/// Where it is kept. It appears whole: it is renamed to its place.
fn folder() -> PathBuf {
    std::env::var_os(FOLDER).map_or_else(|| PathBuf::from(DEFAULT), PathBuf::from)
}
