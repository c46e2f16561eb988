//! `cargo xtask ci` and `cargo xtask dist`.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cargo::{build, cargo, executables, root, run as run_command};
use crate::tables::{TABLES, files_of};
use crate::{image, mutants, say, test};

/// Largest flanneld that may be shipped, in bytes.
const LARGEST_DAEMON: u64 = 10 * 1000 * 1000;

/// Formatting, lints, tests, and whether those of what we may touch bite; formatting and lints end it when they fail.
pub fn run(arguments: &[String]) -> Result<bool> {
    if arguments.iter().any(|a| a == "-h" || a == "--help") {
        say(
            "Usage: cargo xtask ci    (cargo fmt --check, cargo clippy -D warnings, cargo xtask test, cargo xtask mutants --fixed)",
        );
        return Ok(true);
    }
    run_command(&mut cargo(&["fmt", "--all", "--check"]))?;
    // Their own workspace, which nothing else here reads: a stale lock would be found by who wants to fuzz.
    run_command(
        cargo(&[
            "metadata",
            "--locked",
            "--quiet",
            "--format-version",
            "1",
            "--manifest-path",
            "fuzz/Cargo.toml",
        ])
        .stdout(Stdio::null()),
    )?;
    run_command(
        Command::new("rustfmt")
            .args(["--check", "--edition", "2024"])
            .args(listed_in_tables()?),
    )?;
    run_command(&mut cargo(&[
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))?;
    let passed = test::run(&[])?;
    // The rules that say what we may touch, each mistake of which has to be noticed. Cold, half of the time is the tool's compilation.
    let bite = mutants::run(&["--fixed".to_owned()])?;
    Ok(passed && bite)
}

/// The files of kinds and backends, which rustfmt does not find, and their tests.
fn listed_in_tables() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for table in TABLES {
        files.extend(files_of(&root().join("crates").join(table))?);
    }
    Ok(files)
}

const DIST_HELP: &str = "\
Builds what is shipped (profile dist: fat LTO, stripped, flannel-cni static), and prints sizes.

Usage: cargo xtask dist [--image [--platform PLATFORM ...]]

  --image          instead the container image, with static executables and programs of Debian's packages, in target/dist/image:
                   flannel-VERSION-PLATFORM.tar, for `docker load`, `podman load` and `ctr images import`, and oci, an OCI layout
                   with all platforms, for a registry. Needs no container engine
  --platform P     for amd64 or arm64 (default: this machine's); may be repeated

Examples:
  cargo xtask dist
  cargo xtask dist --image --platform amd64 --platform arm64
";

/// Builds what is shipped and prints its size.
pub fn dist(arguments: &[String]) -> Result<bool> {
    let (mut is_image, mut platforms) = (false, Vec::new());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "-h" | "--help" => {
                say(DIST_HELP);
                return Ok(true);
            }
            "--image" => is_image = true,
            "--platform" => platforms.push(rest.next().context("--platform needs a value")?.clone()),
            other => match other.strip_prefix("--platform=") {
                Some(platform) => platforms.push(platform.to_owned()),
                None => bail!("no flag {other}; `cargo xtask dist --help`"),
            },
        }
    }
    if is_image {
        image::dist(&image::platforms(&platforms)?)?;
        return Ok(true);
    }
    if !platforms.is_empty() {
        bail!("--platform is for --image");
    }
    build("dist")?;
    let mut good = true;
    for name in ["flanneld", "flannel-cni", "flannelctl"] {
        let path = executables("dist").join(name);
        let size = std::fs::metadata(&path)
            .with_context(|| path.display().to_string())?
            .len();
        let mut note = String::new();
        if name == "flanneld" {
            good = size <= LARGEST_DAEMON;
            note = format!(
                "  (budget {:.1} MB: {})",
                LARGEST_DAEMON as f64 / 1e6,
                if good { "held" } else { "MISSED" }
            );
        }
        say(&format!(
            "{:>7.2} MB  {}{note}",
            size as f64 / 1e6,
            path.display()
        ));
    }
    Ok(good)
}
