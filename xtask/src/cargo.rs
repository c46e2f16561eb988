//! Running cargo, and where it puts things.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The workspace's directory.
pub fn root() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map(PathBuf::from).unwrap_or(own)
}

/// Where executables of a profile end up.
pub fn executables(profile: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let target = if target.is_absolute() {
        target
    } else {
        root().join(target)
    };
    target.join(if profile == "dev" { "debug" } else { profile })
}

/// A cargo command in the workspace.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Runs a command with its output passed through; an error when it fails.
pub fn run(command: &mut Command) -> Result<()> {
    if succeeds(command)? {
        return Ok(());
    }
    bail!("{} failed", line(command))
}

/// Runs a command with its output passed through; whether it succeeded.
pub fn succeeds(command: &mut Command) -> Result<bool> {
    Ok(command.status().with_context(|| line(command))?.success())
}

/// Builds the executables of the product.
pub fn build(profile: &str) -> Result<PathBuf> {
    crate::say(&format!(
        "building flanneld, flannel-cni and flannelctl ({profile})"
    ));
    let mut command = cargo(&[
        "build",
        "--locked",
        "--bins",
        "-p",
        "flanneld",
        "-p",
        "cni",
        "-p",
        "flannelctl",
    ]);
    run(command.args(["--profile", profile]))?;
    Ok(executables(profile))
}

/// What a test run came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Test functions that passed.
    pub passed: u64,
    /// That failed.
    pub failed: u64,
    /// That were not run.
    pub ignored: u64,
    /// The command itself succeeded.
    pub good: bool,
}

/// Runs `cargo test ...`, passes its output through, and adds up its `test result` lines.
pub fn test(command: &mut Command) -> Result<Tally> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| line(command))?;
    let mut tally = Tally::default();
    if let Some(pipe) = child.stdout.take() {
        for text in BufReader::new(pipe).lines() {
            let text = text?;
            if let Some(result) = text.strip_prefix("test result: ") {
                let count = |what: &str| {
                    let mut parts = result.split(['.', ';']);
                    let part = parts.find(|p| p.trim_end().ends_with(what));
                    part.and_then(|p| p.trim().split(' ').next()?.parse::<u64>().ok())
                        .unwrap_or(0)
                };
                tally.passed += count("passed");
                tally.failed += count("failed");
                tally.ignored += count("ignored");
            }
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{text}");
        }
    }
    tally.good = child.wait()?.success();
    Ok(tally)
}

/// The command line as a person would type it.
pub fn line(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}
