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

/// The target directory.
pub fn target() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    if target.is_absolute() {
        target
    } else {
        root().join(target)
    }
}

/// Where executables of a profile end up.
pub fn executables(profile: &str) -> PathBuf {
    target().join(if profile == "dev" { "debug" } else { profile })
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

/// For what is shipped: no path of the machine that builds in it, so that the same source gives the same bytes in every folder.
/// Rust's own sources are named by their commit already.
fn without_own_paths(command: &mut Command) {
    let home = |variable: &str, folder: &str| {
        let own = || Some(PathBuf::from(std::env::var_os("HOME")?).join(folder));
        std::env::var_os(variable).map(PathBuf::from).or_else(own)
    };
    let places = [
        (Some(root()), "/flannel"),
        (Some(target()), "/flannel/target"),
        (home("CARGO_HOME", ".cargo"), "/cargo"),
        (home("RUSTUP_HOME", ".rustup"), "/rustup"),
    ];
    let (mut rust, mut c) = (Vec::new(), Vec::new());
    for (place, name) in &places {
        let Some(place) = place else { continue };
        rust.push(format!("--remap-path-prefix={}={name}", place.display()));
        c.push(format!("-ffile-prefix-map={}={name}", place.display()));
    }
    for (variable, more, between) in [("CARGO_ENCODED_RUSTFLAGS", rust, "\u{1f}"), ("CFLAGS", c, " ")] {
        let given = std::env::var(variable).ok().filter(|given| !given.is_empty());
        command.env(
            variable,
            given.into_iter().chain(more).collect::<Vec<_>>().join(between),
        );
    }
}

/// Builds the executables of the product; the plugin by [`build_plugin`].
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
        "flannelctl",
    ]);
    if profile == "dist" {
        without_own_paths(&mut command);
    }
    run(command.args(["--profile", profile]))?;
    build_plugin(profile)?;
    Ok(executables(profile))
}

const PLUGIN: &str = "flannel-cni";

/// Builds the plugin, which starts anew for every pod: with musl when there is a standard library for it (rustup is asked), with
/// glibc linked in otherwise, and as any other executable where that is not possible either.
///
/// A start costs 0.9 ms of CPU with shared libraries, 0.5 ms with glibc linked in and 0.2 ms with musl, on a virtual machine that
/// traps the `cpuid` instructions by which glibc looks for the best `memcpy`.
fn build_plugin(profile: &str) -> Result<()> {
    let build = |verb: &str| {
        let mut command = cargo(&[verb, "--locked", "-p", "cni", "--bin", PLUGIN]);
        command.args(["--profile", profile]);
        if profile == "dist" {
            without_own_paths(&mut command);
        }
        command
    };
    if profile == "dev" {
        return run(&mut build("build"));
    }
    if let Some(target) = musl()? {
        run(build("build").args(["--target", &target]))?;
        let folder = executables(profile);
        let profiled = folder.file_name().context("a target directory without a name")?;
        let built = folder.with_file_name(&target).join(profiled).join(PLUGIN);
        // Under another name first: what is there may be running, and shares its inode with cargo's own copy.
        let (copy, place) = (folder.join(".flannel-cni.new"), folder.join(PLUGIN));
        std::fs::copy(&built, &copy).with_context(|| built.display().to_string())?;
        return std::fs::rename(&copy, &place).with_context(|| place.display().to_string());
    }
    if succeeds(build("rustc").args(["--", "-C", "target-feature=+crt-static"]))? {
        return Ok(());
    }
    crate::say("flannel-cni cannot be linked statically here; it will start more slowly");
    run(&mut build("build"))
}

/// Builds the executables of the product for a platform of the container image: with musl and linked statically, so that they need
/// nothing of what is beside them. Where they are.
///
/// `compiler` compiles C for that platform, and links. There is none for musl in Debian but on one platform; what is written in C here
/// asks for no more of a C library than both have.
pub fn build_static(platform: &str, compiler: &str) -> Result<PathBuf> {
    if !has_library(platform)? {
        bail!("Rust has no standard library for {platform} here; `rustup target add {platform}` gets it");
    }
    crate::say(&format!(
        "building flanneld, flannel-cni and flannelctl for {platform}"
    ));
    let mut command = cargo(&[
        "build",
        "--locked",
        "--bins",
        "--profile",
        "dist",
        "--target",
        platform,
    ]);
    command.args(["-p", "flanneld", "-p", "flannelctl", "-p", "cni"]);
    without_own_paths(&mut command);
    let name = platform.replace('-', "_");
    command
        .env(format!("CC_{name}"), compiler)
        .env(format!("CARGO_TARGET_{}_LINKER", name.to_uppercase()), compiler);
    run(&mut command)?;
    Ok(target().join(platform).join("dist"))
}

/// The host's target with musl in place of glibc, if it can be built for.
fn musl() -> Result<Option<String>> {
    let version = rustc(&["--version", "--verbose"])?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let Some(target) = host
        .and_then(|h| h.strip_suffix("-gnu"))
        .map(|h| format!("{h}-musl"))
    else {
        return Ok(None);
    };
    Ok(has_library(&target)?.then_some(target))
}

fn rustc(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("rustc");
    command.args(arguments).current_dir(root());
    let output = command.output().with_context(|| line(&command))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether there is a standard library for a target; rustup is asked for one that is not there.
fn has_library(target: &str) -> Result<bool> {
    let is_there = || -> Result<bool> {
        let folder = rustc(&["--print", "target-libdir", "--target", target])?;
        Ok(!folder.is_empty() && PathBuf::from(folder.trim()).is_dir())
    };
    if !is_there()? {
        crate::say(&format!("asking rustup for {target}"));
        let mut rustup = Command::new("rustup");
        rustup.args(["target", "add", target]).current_dir(root());
        // Not everybody has rustup, or the network.
        let _ = rustup.status();
    }
    is_there()
}

/// What a test run came to.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Test functions that passed.
    pub passed: u64,
    /// That failed.
    pub failed: u64,
    /// That were not run.
    pub ignored: u64,
    /// The command itself succeeded.
    pub good: bool,
    /// Names of those that failed.
    pub failures: Vec<String>,
    /// Executables that began and said nothing at the end: something ended them.
    pub broken_off: u64,
}

impl Tally {
    /// Takes in a line that a test executable prints; `listed` are the failures it has named so far.
    fn read(&mut self, text: &str, listed: &mut Vec<String>) {
        if text == "failures:" {
            // It comes twice: before what they printed, and before their names.
            listed.clear();
        } else if let Some(name) = text.strip_prefix("    ") {
            listed.push(name.to_owned());
        } else if text.starts_with("running ") && (text.ends_with(" tests") || text.ends_with(" test")) {
            self.broken_off += 1;
        } else if let Some(result) = text.strip_prefix("test result: ") {
            let count = |what: &str| {
                let mut parts = result.split(['.', ';']);
                let part = parts.find(|p| p.trim_end().ends_with(what));
                part.and_then(|p| p.trim().split(' ').next()?.parse::<u64>().ok())
                    .unwrap_or(0)
            };
            self.passed += count("passed");
            self.failed += count("failed");
            self.ignored += count("ignored");
            self.broken_off = self.broken_off.saturating_sub(1);
            let listed = std::mem::take(listed);
            if result.starts_with("FAILED") {
                self.failures.extend(listed);
            }
        }
    }
}

/// Runs `cargo test ...`, passes its output through, and adds up its `test result` lines.
pub fn test(command: &mut Command) -> Result<Tally> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| line(command))?;
    let mut tally = Tally::default();
    let mut listed = Vec::new();
    if let Some(pipe) = child.stdout.take() {
        for text in BufReader::new(pipe).lines() {
            let text = text?;
            tally.read(&text, &mut listed);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(text: &str) -> Tally {
        let (mut tally, mut listed) = (Tally::default(), Vec::new());
        text.lines().for_each(|line| tally.read(line, &mut listed));
        tally
    }

    #[test]
    fn tally_when_tests_fail_then_they_are_counted_and_named_and_what_they_printed_is_not() {
        let read = tally(
            "
running 2 tests
test a::works ... ok
test b::fails ... FAILED

failures:

---- b::fails stdout ----
    left: 1
   right: 2

failures:
    b::fails

test result: FAILED. 1 passed; 1 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.00s

running 1 test
    a word of its own
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
",
        );
        assert_eq!((read.passed, read.failed, read.ignored), (2, 1, 3));
        assert_eq!(read.failures, ["b::fails"]);
        assert_eq!(read.broken_off, 0);
    }

    #[test]
    fn tally_when_an_executable_is_killed_then_that_is_seen() {
        let read = tally(
            "running 2 tests\ntest a ... ok\n\nrunning 0 tests\n\ntest result: ok. 0 passed; 0 failed\n",
        );
        assert_eq!((read.broken_off, read.failures.len()), (1, 0));
    }
}
