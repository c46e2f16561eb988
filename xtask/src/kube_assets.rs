//! `cargo xtask kube-assets`: a real Kubernetes for the lab, built from Debian's source package and kept outside the tree.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

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

/// A build that goes on beside other work, at the lowest priority. It ends with whoever began it, however that ends.
#[derive(Debug)]
pub struct Beside(Child);

impl Beside {
    /// Begins to build the servers, if they are not there yet. `ensure` has to have been called with [`BUILD_KUBE`] before: two that
    /// install at once are in each other's way.
    pub fn begin() -> Result<Option<Beside>> {
        let folder = folder();
        if missing(&folder, SERVERS).is_empty() {
            return Ok(None);
        }
        say("building Kubernetes' servers beside the tests (cargo xtask kube-assets)");
        let own = std::env::current_exe().context("where am I?")?;
        // All its processes are in a process namespace of their own, which goes with the first of them, and that one with us.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        command.args(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["nice", "-n", "19"]).arg(own).arg("kube-assets");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().context("setpriv (util-linux)")?;
        Ok(Some(Beside(child)))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(Some(_))) {
            return;
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
        // Its namespace's processes go a little later, and with them the lock. What they leave is large.
        let folder = folder();
        for _ in 0..50 {
            // Whoever builds there now has the lock, and needs what is there.
            if let Ok(lock) = File::open(folder.join("lock"))
                && lock.try_lock().is_ok()
            {
                let _ = std::fs::remove_dir_all(folder.join("building"));
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
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
