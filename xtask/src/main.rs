//! The verbs of the README: `cargo xtask lab`, `test`, `mutants`, `bench`, `dist`, `ci`.
//!
//! Builds in seconds and needs nothing installed: it is what installs the rest.
#![forbid(unsafe_code)]

mod bench;
mod cargo;
mod ci;
mod host_root;
mod image;
mod kube_assets;
mod lab;
mod mutants;
mod packages;
mod tables;
mod test;

use std::io::Write;
use std::process::ExitCode;

const HELP: &str = "\
Usage: cargo xtask VERB ...

  lab     build, then three hosts with pods on this machine; ends with the lab up
  test    install what the tests need, build, run all of them; --suite NAME runs one, --list names them
  mutants whether the tests bite: one mistake after the other put into the code; hours
  kube-assets  Kubernetes' own servers for the tests, from Debian's source package; kept, six minutes the first time
  host-root    the Debian of hosts that run systemd; kept, a minute the first time
  bench   scale, cni, path: figures beside their budgets
  dist    what is shipped, with its size; --image: the container image
  ci      what .ci/run runs: formatting, lints, tests, the fixed part of mutants

`cargo xtask VERB --help` says more. All verbs but mutants and dist need root: they make network namespaces.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (verb, rest) = match arguments.split_first() {
        Some((verb, rest)) => (verb.as_str(), rest),
        None => ("", &[][..]),
    };
    let result = match verb {
        "lab" => lab::run(rest),
        "test" => test::run(rest),
        "mutants" => mutants::run(rest),
        "bench" => bench::run(rest),
        "dist" => ci::dist(rest),
        "kube-assets" => kube_assets::run(rest),
        "host-root" => host_root::run(rest),
        "ci" => ci::run(rest),
        "help" | "-h" | "--help" => {
            say(HELP);
            Ok(true)
        }
        other => {
            say(&format!("xtask: no verb {other:?}\n\n{HELP}"));
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("xtask {verb}: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// One message on stderr.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", text.trim_end());
}
