//! `cargo xtask lab`: the main job on one machine, from nothing.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::{build, succeeds, target};
use crate::packages::{ETCD, HOST_ROOT, KUBE, LAB, check_machine, ensure};
use crate::{host_root, image, kube_assets, say};

const HELP: &str = "\
Installs what is missing, builds, makes a lab, proves that every pod reaches every pod, and leaves the lab up.

Usage: cargo xtask lab [--profile PROFILE] [--down] [--replace] [flags of `flannelctl lab up`]

  --profile P   how to build: lab (default: optimized, quick to link), release, or dev
  --down        take the lab down again after the proof
  --keep        leave it up (default)
  --replace     take a lab of that name down first, where one is up
  the rest      --nodes N --backend vxlan|host-gw --family 4|6|46 --etcd --kube --kubelet --name NAME --json ...
                (with --kubelet the image is made, too)

Examples:
  cargo xtask lab
  cargo xtask lab --backend host-gw --family 4 --etcd
  cargo xtask lab --kube --kubelet
";

/// `cargo xtask lab ...`.
pub fn run(arguments: &[String]) -> Result<bool> {
    let (mut profile, mut down, mut replace) = ("lab".to_owned(), false, false);
    let mut name = std::env::var("FLANNEL_LAB_NAME").unwrap_or_else(|_| "lab".to_owned());
    let mut passed: Vec<String> = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "-h" | "--help" => {
                say(HELP);
                return Ok(true);
            }
            "--down" => down = true,
            "--keep" => down = false,
            "--replace" => replace = true,
            "--profile" => profile = rest.next().context("--profile needs a value")?.clone(),
            "--name" => {
                name = rest.next().context("--name needs a value")?.clone();
                passed.extend(["--name".to_owned(), name.clone()]);
            }
            other => {
                if let Some(value) = other.strip_prefix("--name=") {
                    name = value.to_owned();
                }
                passed.push(argument.clone());
            }
        }
    }
    check_machine()?;
    let has = |flag: &str| passed.iter().any(|argument| argument == flag);
    ensure(&match (has("--kube"), has("--etcd")) {
        (true, _) => vec![LAB, ETCD, KUBE],
        (false, true) => vec![LAB, ETCD],
        (false, false) => vec![LAB],
    })?;
    if has("--kube") {
        kube_assets::servers()?;
    }
    let is_kubelet = has("--kubelet");
    if is_kubelet {
        ensure(&[HOST_ROOT])?;
        kube_assets::nodes()?;
        host_root::provide()?;
    }
    let executables = build(&profile)?;
    if is_kubelet && !passed.iter().any(|argument| argument.starts_with("--image")) {
        let image = image::of(&executables, &target().join("image"))?;
        passed.extend(["--image".to_owned(), image.display().to_string()]);
    }
    let flannelctl = executables.join("flannelctl");
    if !flannelctl.is_file() {
        bail!("cargo built no {}", flannelctl.display());
    }
    // Somebody may be at work in a lab of that name. One that is half gone is nobody's, and makes way.
    let is_up = succeeds(
        Command::new(&flannelctl)
            .args(["lab", "exec", "--name", &name, "sw", "true"])
            .stderr(std::process::Stdio::null()),
    )?;
    if is_up && !replace {
        bail!(
            "a lab {name:?} is up: --replace takes it down first, --name makes another, and {} lab status --name {name} shows it",
            flannelctl.display()
        );
    }
    if is_up {
        say(&format!("taking lab {name:?} down first (--replace)"));
    }
    succeeds(
        Command::new(&flannelctl)
            .args(["lab", "down", "--name", &name])
            .stdout(std::process::Stdio::null()),
    )?;
    let good = succeeds(Command::new(&flannelctl).args(["lab", "up"]).args(&passed))?;
    if down {
        succeeds(Command::new(&flannelctl).args(["lab", "down", "--name", &name]))?;
    }
    Ok(good)
}
