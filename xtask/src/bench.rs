//! `cargo xtask bench`: figures beside their budgets.

use anyhow::{Result, bail};

use crate::cargo::{build, cargo, succeeds};
use crate::packages::{ETCD, LAB, TESTS, check_machine, ensure};
use crate::{kube_assets, say};

const HELP: &str = "\
Measures, and prints figures beside their budgets. Quiet machines give better figures.

Usage: cargo xtask bench scale|cni|kube|path [--json] [more]

  scale   100 to 10,000 leases in a real etcd: seconds, CPU, memory, system calls, requests
  cni     ADD and DEL: one at a time, fifty at once, on a full node while 20,000 rules are rewritten, beside the plugins of Debian;
          `--part calls` or `--part node` runs half of it
  kube    5,000 Nodes of 16 KB on a real API server: seconds beside a bare read of them, CPU, memory, heartbeats, changes
  path    pod to pod beside the bare underlay

Examples:
  cargo xtask bench scale
  cargo xtask bench path --json
";

/// `cargo xtask bench ...`.
pub fn run(arguments: &[String]) -> Result<bool> {
    let (what, rest) = match arguments.split_first() {
        Some((what, rest)) => (what.as_str(), rest),
        None => bail!("what? scale, cni, kube or path"),
    };
    if ["-h", "--help"].contains(&what) {
        say(HELP);
        return Ok(true);
    }
    check_machine()?;
    ensure(&[LAB, ETCD, TESTS])?;
    if what == "kube" {
        kube_assets::servers()?;
    }
    let executables = build("release")?;
    let mut command = match what {
        "scale" | "kube" | "path" => cargo(&["bench", "--locked", "-p", "lab", "--bench", what, "--"]),
        "cni" => cargo(&[
            "run",
            "--locked",
            "--release",
            "-p",
            "cni",
            "--example",
            "bench",
            "--",
        ]),
        other => bail!("no bench {other:?}: scale, cni, kube or path"),
    };
    succeeds(command.args(rest).env("FLANNEL_BIN_DIR", executables))
}
