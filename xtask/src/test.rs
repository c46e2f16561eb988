//! `cargo xtask test`: everything that can fail, with what it needs.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::cargo::{Tally, cargo, executables, run as run_command, target, test};
use crate::kube_assets;
use crate::packages::{ETCD, HOST_ROOT, KUBE, LAB, Need, RUNTIMES, TESTS, check_machine, ensure};
use crate::{host_root, image, say};

const HELP: &str = "\
Installs what the tests need, builds the executables, runs every test. What cannot run is a failure, not a skip.

Usage: cargo xtask test [--suite NAME ...] [--list]

  --suite NAME  only this one, with all it prints, and with cases drawn anew where cases are drawn
  --list        the suites

All suites together draw the same cases every time (PROPTEST_RNG_SEED=1, or what it is set to), and ask up to four tests that fail
a second time, alone: what passes then is named as unsteady at the end.

Examples:
  cargo xtask test
  cargo xtask test --suite repair
";

/// A suite: its name, what it shows, and the arguments of `cargo test`.
struct Suite {
    name: &'static str,
    about: &'static str,
    arguments: &'static [&'static str],
    /// Its output is a table for people: not captured.
    shown: bool,
    /// What it runs on that is built first.
    needs: &'static [Built],
}

/// Something that is built once and kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Built {
    /// Kubernetes' own servers.
    Servers,
    /// kubelet and what belongs to it.
    Nodes,
    /// The root of machines.
    HostRoot,
    /// The container image of the executables under test: built every time, and quickly.
    Image,
}

impl Built {
    fn is_there(self) -> bool {
        match self {
            Built::Servers => kube_assets::are_there(),
            Built::Nodes => kube_assets::nodes_are_there(),
            Built::HostRoot => host_root::is_there(),
            Built::Image => true,
        }
    }

    /// What a run of everything says when it does without, for making it takes minutes; none: it makes it.
    fn lack(self) -> Option<&'static str> {
        match self {
            Built::Servers => Some("Kubernetes' servers are not here; `cargo xtask kube-assets` builds them"),
            Built::Nodes => Some(
                "Kubernetes' programs for nodes are not here; `cargo xtask kube-assets --nodes` builds them",
            ),
            Built::HostRoot => Some("the Debian of machines is not here; `cargo xtask host-root` makes it"),
            Built::Image => None,
        }
    }

    fn provide(self) -> Result<()> {
        match self {
            Built::Servers => kube_assets::servers().map(|_| ()),
            Built::Nodes => kube_assets::nodes().map(|_| ()),
            Built::HostRoot => host_root::provide().map(|_| ()),
            Built::Image => Ok(()),
        }
    }

    /// What has to be installed to use it.
    fn packages(self) -> &'static [Need] {
        match self {
            Built::Servers | Built::Nodes => KUBE,
            Built::HostRoot => HOST_ROOT,
            Built::Image => &[],
        }
    }
}

const SUITES: &[Suite] = &[
    Suite {
        name: "unit",
        about: "every crate's own tests",
        arguments: &["--workspace", "--lib", "--bins"],
        shown: false,
        needs: &[],
    },
    Suite {
        name: "crates",
        about: "every crate from outside: namespaces, real etcd, fuzz bodies",
        arguments: &["--workspace", "--exclude", "lab", "--test", "*"],
        shown: false,
        needs: &[],
    },
    Suite {
        name: "machinery",
        about: "the lab itself",
        arguments: &["--workspace", "--test", "machinery"],
        shown: false,
        needs: &[],
    },
    Suite {
        name: "conformance",
        about: "the tables V1-V16 and H1-H3, seen by ip, bridge and iptables-save",
        arguments: &["--workspace", "--test", "conformance"],
        shown: false,
        needs: &[],
    },
    Suite {
        name: "golden",
        about: "the objects, files and keys Go flannel leaves for the same config",
        arguments: &["--workspace", "--test", "golden"],
        shown: false,
        needs: &[],
    },
    Suite {
        name: "seeds",
        about: "configurations and command lines found in the wild",
        arguments: &["--workspace", "--test", "seeds"],
        shown: false,
        needs: &[],
    },
    Suite {
        name: "files",
        about: "every file that is read or written, absent, torn, a FIFO, a link, a device, on a disk that is full or hangs",
        arguments: &["--workspace", "--test", "files"],
        shown: false,
        needs: &[],
    },
    Suite {
        name: "ipip",
        about: "ipip: tables I1 to I4, repair, take-over, restart; on a kernel without it, what is said of that",
        arguments: &["--workspace", "--test", "ipip"],
        shown: true,
        needs: &[],
    },
    Suite {
        name: "reach",
        about: "flannelctl lab up: vxlan and host-gw, both registries, full-size packets; Ctrl-C",
        arguments: &["--workspace", "--test", "reach"],
        shown: false,
        needs: &[],
    },
    Suite {
        name: "repair",
        about: "objects broken by hand, and the time until they are back",
        arguments: &["--workspace", "--test", "repair"],
        shown: true,
        needs: &[],
    },
    Suite {
        name: "readiness",
        about: "what a node says of itself, and how soon, while something is done to it; repair beside others' noise",
        arguments: &["--workspace", "--test", "readiness"],
        shown: true,
        needs: &[],
    },
    Suite {
        name: "hostile",
        about: "anything that can be written to the registry, beside an honest peer that is to notice nothing",
        arguments: &["--workspace", "--test", "hostile"],
        shown: true,
        needs: &[],
    },
    Suite {
        name: "etcd",
        about: "three members with TLS: killed, hanging, out of reach, full, restored, emptied; how soon nodes follow again, and what they say",
        arguments: &["--workspace", "--test", "etcd"],
        shown: true,
        needs: &[],
    },
    Suite {
        name: "etcd-v2",
        about: "three members with TLS, set up and looked at by etcdctl of the v2 API as the documents of its days have it",
        arguments: &["--workspace", "--test", "etcd_v2"],
        shown: true,
        needs: &[],
    },
    Suite {
        name: "cleanup",
        about: "flannelctl cleanup: a host is what it was before flannel came",
        arguments: &["--workspace", "--test", "cleanup"],
        shown: false,
        needs: &[],
    },
    Suite {
        name: "restart",
        about: "kill -9 under ping, a restart that changes nothing, two daemons on one host",
        arguments: &["--workspace", "--test", "restart"],
        shown: false,
        needs: &[],
    },
    Suite {
        name: "blocked",
        about: "a second daemon for one device, a state directory that hangs",
        arguments: &["--workspace", "--test", "blocked"],
        shown: false,
        needs: &[],
    },
    Suite {
        name: "status",
        about: "the CNI verb STATUS beside flanneld and etcd that come and go",
        arguments: &["--workspace", "--test", "status"],
        shown: false,
        needs: &[],
    },
    Suite {
        name: "crowd",
        about: "200 daemons started at once on one etcd",
        arguments: &["--workspace", "--test", "crowd"],
        shown: true,
        needs: &[],
    },
    Suite {
        name: "runtimes",
        about: "podman and containerd of Debian with our CNI plugins on two hosts",
        arguments: &["--workspace", "--test", "runtimes"],
        shown: false,
        needs: &[],
    },
    Suite {
        name: "deploy",
        about: "manifest, chart and kustomizations: names, rights, flags, copies",
        arguments: &["--workspace", "--test", "deploy"],
        shown: false,
        needs: &[],
    },
    Suite {
        name: "image",
        about: "the container image: archive, programs, and the commands of flannel's manifests in containers of it",
        arguments: &["--workspace", "--test", "image"],
        shown: false,
        needs: &[Built::Image],
    },
    Suite {
        name: "documents",
        about: "the commands shown in the documents",
        arguments: &["--workspace", "--test", "documents"],
        shown: false,
        needs: &[],
    },
    Suite {
        name: "kube",
        about: "a real API server: every change of a Node, the own one's too, and how soon it is followed",
        arguments: &["--workspace", "--test", "kube_cluster"],
        shown: true,
        needs: &[Built::Servers],
    },
    Suite {
        name: "machine",
        about: "hosts of the lab that run systemd: what stays when they lose power, and that nothing is left of them",
        arguments: &["--workspace", "--test", "machine"],
        shown: false,
        needs: &[Built::HostRoot],
    },
    Suite {
        name: "kubelet",
        about: "real kubelets: the manifest applied, restarted, deleted, swapped, nodes that go and come, and what pods notice of it",
        arguments: &["--workspace", "--test", "kubelet"],
        shown: true,
        needs: &[Built::Servers, Built::Nodes, Built::HostRoot, Built::Image],
    },
];

/// Suites that only run when they are asked for: their tests are marked `ignore`.
const LONG: &[Suite] = &[Suite {
    name: "hostile-long",
    about: "60,000 leases and floods of minutes beside an honest peer; only when asked for",
    arguments: &["--workspace", "--test", "hostile"],
    shown: true,
    needs: &[],
}];

/// `cargo xtask test ...`.
pub fn run(arguments: &[String]) -> Result<bool> {
    let mut chosen: Vec<&Suite> = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let name = match argument.as_str() {
            "-h" | "--help" => {
                say(HELP);
                return Ok(true);
            }
            "--list" => {
                for suite in SUITES.iter().chain(LONG) {
                    say(&format!("{:<12} {}", suite.name, suite.about));
                }
                return Ok(true);
            }
            "--suite" => rest.next().map(String::as_str).unwrap_or_default(),
            other => match other.strip_prefix("--suite=") {
                Some(name) => name,
                None => bail!("no flag {other}; `cargo xtask test --help`"),
            },
        };
        match SUITES.iter().chain(LONG).find(|s| s.name == name) {
            Some(suite) => chosen.push(suite),
            None => bail!("no suite {name:?}; `cargo xtask test --list` names them"),
        }
    }
    let focused = !chosen.is_empty();
    if !focused {
        chosen = SUITES.iter().collect();
    }
    check_machine()?;
    ensure(&[LAB, ETCD, TESTS, RUNTIMES])?;
    // Minutes of building that a run of everything has no time for. What is not run is named at the end.
    let mut unsupported = Vec::new();
    if !focused {
        chosen.retain(|suite| {
            let lack = lack_of(suite, Built::is_there);
            unsupported.extend(lack.map(|lack| (suite.name, lack)));
            lack.is_none()
        });
    }
    let needs = || chosen.iter().flat_map(|suite| suite.needs);
    ensure(&needs().map(|need| need.packages()).collect::<Vec<_>>())?;
    // Compiled first and together, so that no suite's time is a compiler's. Always the whole workspace: a part of it would have
    // other features of its dependencies, which are then compiled once more.
    run_command(&mut cargo(&["build", "--locked", "--workspace", "--bins"]))?;
    run_command(&mut cargo(&[
        "test",
        "--locked",
        "--workspace",
        "--no-run",
        "--quiet",
    ]))?;
    let image = if needs().any(|need| *need == Built::Image) {
        Some(image::of(&executables("dev"), &target().join("image"))?)
    } else {
        None
    };
    let mut results = Vec::new();
    let mut twice = Vec::new();
    for suite in chosen {
        say(&format!("\n== {}: {}", suite.name, suite.about));
        if let Err(error) = suite.needs.iter().try_for_each(|need| need.provide()) {
            say(&format!("nothing to test with: {error:#}"));
            let failed = Tally {
                failed: 1,
                ..Tally::default()
            };
            results.push((suite.name, failed, 0.0));
            continue;
        }
        let start = Instant::now();
        let mut tally = test(&mut command_of(suite, focused, image.as_deref()))?;
        if !focused && may_be_asked_again(&tally, twice.len()) {
            let names = std::mem::take(&mut tally.failures);
            say(&format!(
                "\n== {}: once more, and alone: {}",
                suite.name,
                names.join(", ")
            ));
            let mut command = command_of(suite, focused, image.as_deref());
            let again = test(command.args(["--test-threads=1", "--exact"]).args(&names))?;
            if again.good {
                tally.passed += tally.failed;
                tally.failed = 0;
                tally.good = true;
            }
            twice.extend(names.into_iter().map(|name| (suite.name, name, again.good)));
        }
        results.push((suite.name, tally, start.elapsed().as_secs_f64()));
    }
    let good = summary(&results, &twice);
    for (name, lack) in unsupported {
        say(&format!(
            "suite {name} ... NOT RUN: {lack}, `cargo xtask test --suite {name}` runs it"
        ));
    }
    Ok(good)
}

/// What keeps a suite from being part of a run of everything.
fn lack_of(suite: &Suite, is_there: impl Fn(Built) -> bool) -> Option<&'static str> {
    let mut needs = suite.needs.iter().filter(|need| !is_there(**need));
    needs.find_map(|need| need.lack())
}

/// What draws the cases of tests by property.
const SEED: &str = "PROPTEST_RNG_SEED";

/// Tests of one run that are given a second chance; more that fail are no accident.
const SECOND_CHANCES: usize = 4;

/// Whether what failed is asked a second time.
///
/// Hundreds of these tests share two cores with a kernel, servers and other people's programs, and say how soon something has
/// happened. One that fails and passes when it is asked again, alone, is named at the end: it is to be looked at, and does not hold up
/// what it has nothing to do with.
fn may_be_asked_again(tally: &Tally, asked: usize) -> bool {
    let named = u64::try_from(tally.failures.len()) == Ok(tally.failed);
    !tally.good
        && named
        && tally.broken_off == 0
        && (1..=SECOND_CHANCES.saturating_sub(asked)).contains(&tally.failures.len())
}

fn command_of(suite: &Suite, focused: bool, image: Option<&Path>) -> Command {
    let mut command = cargo(&["test", "--locked"]);
    if let Some(image) = image {
        command.env("FLANNEL_IMAGE", image);
    }
    command
        .args(suite.arguments)
        .env("FLANNEL_BIN_DIR", executables("dev"));
    if !focused {
        command.arg("--no-fail-fast");
        // The same cases every time: what a change is judged by is the change, not the draw. Whoever looks for new cases draws
        // others: by a suite's name, or with the variable set.
        if std::env::var_os(SEED).is_none() {
            command.env(SEED, "1");
        }
    }
    command.arg("--");
    if suite.shown || focused {
        command.arg("--nocapture");
    }
    if LONG.iter().any(|long| long.name == suite.name) {
        command.arg("--ignored");
    }
    command
}

/// Prints what came of each suite and of those that were asked `twice` (suite, name, whether it passed then).
fn summary(results: &[(&str, Tally, f64)], twice: &[(&str, String, bool)]) -> bool {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let mut sum = Tally {
        good: true,
        ..Tally::default()
    };
    let _ = writeln!(out);
    for (name, tally, seconds) in results {
        let word = if tally.good { "ok" } else { "FAILED" };
        let _ = writeln!(
            out,
            "suite {name} ... {word} ({} passed, {} failed, {} ignored, {seconds:.1} s)",
            tally.passed, tally.failed, tally.ignored
        );
        sum.passed += tally.passed;
        sum.failed += tally.failed;
        sum.ignored += tally.ignored;
        sum.good &= tally.good;
    }
    for (suite, name, passed) in twice {
        let then = if *passed {
            "UNSTEADY: passed"
        } else {
            "failed again"
        };
        let _ = writeln!(out, "{name} of suite {suite} failed, and was asked again: {then}");
    }
    let word = if sum.good { "ok" } else { "FAILED" };
    let _ = writeln!(
        out,
        "\ntest result: {word}. {} passed; {} failed; {} ignored; 0 measured; 0 filtered out",
        sum.passed, sum.failed, sum.ignored
    );
    sum.good
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_chance_when_few_fail_by_name_then_given_and_else_not() {
        let failed = |named: usize, failed: u64, broken_off: u64| Tally {
            failed,
            broken_off,
            failures: vec!["a".to_owned(); named],
            ..Tally::default()
        };
        assert!(may_be_asked_again(&failed(1, 1, 0), 0));
        assert!(may_be_asked_again(&failed(4, 4, 0), 0));
        assert!(may_be_asked_again(&failed(1, 1, 0), 3));
        assert!(!may_be_asked_again(&failed(5, 5, 0), 0));
        assert!(!may_be_asked_again(&failed(1, 1, 0), 4));
        // One whose name is not known, an executable that was killed, a failure that is no test's, and none.
        assert!(!may_be_asked_again(&failed(1, 2, 0), 0));
        assert!(!may_be_asked_again(&failed(1, 1, 1), 0));
        assert!(!may_be_asked_again(&failed(0, 0, 0), 0));
        let good = Tally {
            good: true,
            ..Tally::default()
        };
        assert!(!may_be_asked_again(&good, 0));
    }

    #[test]
    fn run_of_everything_when_something_is_not_built_then_it_is_without_what_needs_that() {
        let left_out = |is_there: fn(Built) -> bool| -> Vec<&str> {
            let out = SUITES.iter().filter(|suite| lack_of(suite, is_there).is_some());
            out.map(|suite| suite.name).collect()
        };
        assert_eq!(left_out(|_| false), ["kube", "machine", "kubelet"]);
        assert_eq!(left_out(|built| built == Built::Servers), ["machine", "kubelet"]);
        assert_eq!(left_out(|_| true), [""; 0]);
    }
}
