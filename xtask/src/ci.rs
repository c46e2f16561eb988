//! `cargo xtask ci` and `cargo xtask dist`.

use anyhow::{Context, Result};

use crate::cargo::{build, cargo, executables, run as run_command};
use crate::{say, test};

/// Largest flanneld that may be shipped, in bytes.
const LARGEST_DAEMON: u64 = 10 * 1000 * 1000;

/// Formatting, lints, tests; the first failure ends it.
pub fn run(arguments: &[String]) -> Result<bool> {
    if arguments.iter().any(|a| a == "-h" || a == "--help") {
        say("Usage: cargo xtask ci    (cargo fmt --check, cargo clippy -D warnings, cargo xtask test)");
        return Ok(true);
    }
    run_command(&mut cargo(&["fmt", "--all", "--check"]))?;
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
    test::run(&[])
}

/// Builds what is shipped and prints its size.
pub fn dist(arguments: &[String]) -> Result<bool> {
    if arguments.iter().any(|a| a == "-h" || a == "--help") {
        say("Usage: cargo xtask dist    (profile dist: fat LTO, stripped, flannel-cni static; prints sizes)");
        return Ok(true);
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
