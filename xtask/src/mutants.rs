//! `cargo xtask mutants`: whether the tests bite. Each mutant is the code with one small mistake in it; a test has to notice.
//!
//! Only tests that need no root are asked: logic that is pure has to be held by pure tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::{cargo, root, run as run_command, succeeds, target};
use crate::say;

mod list;
mod tree;

use list::{List, Survivor};

const HELP: &str = "\
Puts one mistake after the other into a copy of the code and runs the tests that need no root. Hours for a large crate.

Usage: cargo xtask mutants [CRATE|FILE ...] [--fixed] [--shard K/N]

  CRATE        all of a crate; without any: of every crate that has such tests
  FILE         one file, as crates/fabric/src/diff.rs or a pattern
  --fixed      what CI runs: the files that say what we may touch
  --shard K/N  the K-th of N parts, K from 0

Exits 1 when a mutant lives that docs/mutants.md does not list. \"by root\" are those that live here in functions of which it says
which test as root holds them; they are in no share. Logs and diffs are in target/mutants/CRATE/mutants.out
(of --fixed in target/mutants/fixed/mutants.out).

Examples:
  cargo xtask mutants --fixed
  cargo xtask mutants crates/fabric/src/world.rs
  cargo xtask mutants fabric --shard 0/8
";

/// The tool, and the version whose words for a mutation docs/mutants.md holds.
const TOOL: &str = "cargo-mutants";
const VERSION: &str = "27.1.0";

/// A crate, and the arguments of `cargo test` that choose its tests without root.
struct Tests {
    package: &'static str,
    targets: &'static [&'static str],
    /// Words for the test executables.
    filter: &'static [&'static str],
}

const TESTS: &[Tests] = &[
    Tests {
        package: "fabric",
        targets: &[
            "--lib",
            "--test",
            "diff",
            "--test",
            "golden",
            "--test",
            "properties",
            "--test",
            "mk_docker_opts",
            "--test",
            "fuzz_bodies",
        ],
        filter: &[],
    },
    Tests {
        package: "kernel",
        targets: &["--lib", "--test", "codec"],
        filter: &[],
    },
    Tests {
        package: "registry",
        // What the first two do not notice is asked of a real etcd, which takes real time: its tests wait more than they work.
        targets: &["--lib", "--test", "conformance", "--test", "etcd3"],
        filter: &[
            "--skip",
            "::etcd2::",
            "--skip",
            "::etcd3::",
            "--test-threads",
            "16",
        ],
    },
    Tests {
        package: "flanneld",
        targets: &[
            "--lib",
            "--test",
            "command_line",
            "--test",
            "go_grammar",
            "--test",
            "generated_files",
            "--test",
            "cache",
            "--test",
            "files",
            "--test",
            "engine",
            "--test",
            "keepers",
            "--test",
            "simulation",
            // Waits for its own deadlines: the last to be asked.
            "--test",
            "doors",
        ],
        // By milliseconds, which a run of hours beside other work does not have.
        filter: &["--skip", "doors_when_others_hold_connections"],
    },
    Tests {
        package: "cni",
        targets: &["--lib", "--test", "fuzz_bodies"],
        filter: &[],
    },
    Tests {
        package: "embedded",
        // The whole server in the test's process, beside a real etcd; without what takes long or needs it as a program.
        targets: &["--lib", "--test", "registry"],
        filter: &[
            "--skip",
            "killed::",
            "--skip",
            "etcdctl",
            "--skip",
            "http_1",
            "--skip",
            "random_calls",
            "--skip",
            "two_hundred",
            "--test-threads",
            "8",
        ],
    },
];

/// What CI runs, the same mutants every time: who decides what we may touch. Their own tests are in the library.
const FIXED: Tests = Tests {
    package: "fabric",
    targets: &["--lib"],
    filter: &[],
};
const FIXED_FILES: &[&str] = &[
    "crates/fabric/src/ownership.rs",
    "crates/fabric/src/overlap.rs",
    "crates/fabric/src/diff.rs",
];

/// `cargo xtask mutants ...`.
pub fn run(arguments: &[String]) -> Result<bool> {
    let mut wanted: Vec<&str> = Vec::new();
    let (mut fixed, mut shard) = (false, None);
    let mut rest = arguments.iter().map(String::as_str);
    while let Some(argument) = rest.next() {
        match argument {
            "-h" | "--help" => {
                say(HELP);
                return Ok(true);
            }
            "--fixed" => fixed = true,
            "--shard" => shard = Some(rest.next().context("--shard needs K/N")?),
            other if other.starts_with('-') => bail!("no flag {other}; `cargo xtask mutants --help`"),
            other => wanted.push(other),
        }
    }
    if fixed && !(wanted.is_empty() && shard.is_none()) {
        bail!("--fixed stands alone: it is the same part every time");
    }
    let jobs = match fixed {
        true => vec![(&FIXED, FIXED_FILES.to_vec())],
        false => jobs(&wanted)?,
    };
    let tool = tool()?;
    let list = List::read(&root().join("docs/mutants.md"))?;
    let tree = target().join("mutants/tree");
    tree::copy(&tree)?;
    let mut outcomes = Vec::new();
    for (tests, files) in jobs {
        let folder = target()
            .join("mutants")
            .join(if fixed { "fixed" } else { tests.package });
        try_out(&tool, &tree, tests, &files, shard, &folder)?;
        outcomes.push((tests.package, Outcome::read(&folder.join("mutants.out"), &list)?));
    }
    Ok(report(&outcomes, &list))
}

/// The crates and files that the words name.
fn jobs<'a>(wanted: &[&'a str]) -> Result<Vec<(&'static Tests, Vec<&'a str>)>> {
    if wanted.is_empty() {
        return Ok(TESTS.iter().map(|tests| (tests, Vec::new())).collect());
    }
    let mut jobs: Vec<(&'static Tests, Vec<&'a str>)> = Vec::new();
    for word in wanted {
        let path = word.strip_prefix("crates/").unwrap_or(word);
        let package = path.split('/').next().unwrap_or(path);
        let Some(tests) = TESTS.iter().find(|tests| tests.package == package) else {
            let known: Vec<&str> = TESTS.iter().map(|tests| tests.package).collect();
            bail!(
                "{word:?} is neither a crate nor a file of one with tests that need no root: {}",
                known.join(", ")
            );
        };
        let file = (path != package).then_some(*word);
        match jobs.iter_mut().find(|(known, _)| known.package == package) {
            Some((_, files)) => files.extend(file),
            None => jobs.push((tests, file.into_iter().collect())),
        }
    }
    Ok(jobs)
}

/// Runs the tool over the files of one crate, all of it when none is named.
fn try_out(
    tool: &Path,
    tree: &Path,
    tests: &Tests,
    files: &[&str],
    shard: Option<&str>,
    folder: &Path,
) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut command = Command::new(tool);
    command
        .current_dir(tree)
        .args(["mutants", "--in-place", "--package", tests.package])
        .args(["--no-shuffle", "--colors", "never"])
        // Flags have no bit in common: it is the same with these.
        .args(["--exclude-re", r"replace \| with \^"])
        // A mutant that never ends is found by the time that the tests take without one.
        .args(["--timeout-multiplier", "5", "--minimum-test-timeout", "30"])
        .arg("--output")
        .arg(folder)
        // What is compiled stays from run to run; only the mutated crate is made anew, and of it what changed.
        .env("CARGO_TARGET_DIR", target().join("mutants/build"))
        .env("CARGO_INCREMENTAL", "1")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        // The same cases for every mutant and every run: what is caught once is caught always.
        .env("PROPTEST_RNG_SEED", "1")
        .env("SIM_SEEDS", "200")
        .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true");
    for file in files {
        command.args(["--file", file]);
    }
    if let Some(shard) = shard {
        // Every so many-th: a part is a sample of all files.
        command.args(["--shard", shard, "--sharding", "round-robin"]);
    }
    // For the compilation too, which would make every test of the crate otherwise. Optimised it would take twice as long.
    let plain = format!("profile.dev.package.{}.opt-level=0", tests.package);
    for argument in tests.targets.iter().chain(&["--locked", "--config", &plain]) {
        command.arg(format!("--cargo-arg={argument}"));
    }
    if !tests.filter.is_empty() {
        command.args(["--", "--"]).args(tests.filter);
    }
    let status = command.status().with_context(|| crate::cargo::line(&command))?;
    // 2: some were missed; 3: some took too long. All else means that there is nothing to count.
    match status.code() {
        Some(0 | 2 | 3) => Ok(()),
        _ => bail!("{} ended with {status}", crate::cargo::line(&command)),
    }
}

/// The tool's executable; installed into the target directory where it is not there in this version.
fn tool() -> Result<PathBuf> {
    let folder = target().join("tools");
    let path = folder.join("bin").join(TOOL);
    let version = Command::new(&path).args(["mutants", "--version"]).output();
    if version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim().ends_with(VERSION)) {
        return Ok(path);
    }
    say(&format!("installing {TOOL} {VERSION}"));
    // Without optimisation it is compiled in a third of the time, and it only waits for others.
    let mut command = cargo(&["install", "--locked", "--quiet", "--debug", TOOL]);
    let build = folder.join("build");
    command
        .args(["--version", VERSION, "--root"])
        .arg(&folder)
        .env("CARGO_TARGET_DIR", &build)
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    // A registry that is slow for a moment is no finding about the code.
    if !succeeds(&mut command)? {
        run_command(&mut command)?;
    }
    std::fs::remove_dir_all(&build).with_context(|| build.display().to_string())?;
    Ok(path)
}

/// What became of the mutants of one crate.
#[derive(Debug, Default)]
struct Outcome {
    /// By file: caught, missed, held by a test as root that is not asked here, unviable. A test that never ended has noticed.
    files: BTreeMap<String, [usize; 4]>,
    missed: Vec<Survivor>,
}

impl Outcome {
    fn read(folder: &Path, list: &List) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        for (name, column) in [("caught", 0), ("timeout", 0), ("missed", 1), ("unviable", 3)] {
            let path = folder.join(name).with_extension("txt");
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            for line in text.lines() {
                let mutant = Survivor::parse(line, &source_line)
                    .with_context(|| format!("{}: {line:?}", path.display()))?;
                let by_root = column == 1 && list.is_by_root(&mutant);
                let column = if by_root { 2 } else { column };
                outcome.files.entry(mutant.file.clone()).or_default()[column] += 1;
                if column == 1 {
                    outcome.missed.push(mutant);
                }
            }
        }
        Ok(outcome)
    }
}

/// A line of a file of the workspace, counted from 1.
fn source_line(file: &str, number: usize) -> Option<String> {
    let text = std::fs::read_to_string(root().join(file)).ok()?;
    text.lines().nth(number.checked_sub(1)?).map(str::to_owned)
}

/// Prints the table and the survivors; whether all of these are in the list.
fn report(outcomes: &[(&str, Outcome)], list: &List) -> bool {
    let mut text = format!(
        "\n{:<44} {:>6} {:>6} {:>7} {:>8} {:>8}\n",
        "", "caught", "missed", "by root", "unviable", "caught %"
    );
    let row = |text: &mut String, name: &str, [caught, missed, by_root, unviable]: [usize; 4]| {
        let share = match caught + missed {
            0 => "-".to_owned(),
            tried => format!("{:.1}", 100.0 * caught as f64 / tried as f64),
        };
        text.push_str(&format!(
            "{name:<44} {caught:>6} {missed:>6} {by_root:>7} {unviable:>8} {share:>8}\n"
        ));
    };
    let mut unknown = Vec::new();
    for (package, outcome) in outcomes {
        let mut sum = [0; 4];
        for (file, counts) in &outcome.files {
            row(&mut text, file, *counts);
            for (sum, count) in sum.iter_mut().zip(counts) {
                *sum += count;
            }
        }
        row(&mut text, package, sum);
        unknown.extend(list.lacks(&outcome.missed));
    }
    if !unknown.is_empty() {
        text.push_str("\nThese live and are not in docs/mutants.md:\n");
    }
    for survivor in &unknown {
        text.push_str(&format!("{survivor}\n"));
    }
    say(&text);
    unknown.is_empty()
}
