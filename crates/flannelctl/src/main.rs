//! `flannelctl`: the operator's tool.
#![forbid(unsafe_code)]

mod arguments;
mod cleanup;
mod ipam;
mod labs;
mod migrate;
mod output;
mod plugins;
mod registry;
mod socket;
mod status;
mod store;

use std::path::Path;
use std::process::ExitCode;

use crate::arguments::Ended;
use crate::output::{Out, report};

const HELP: &str = "\
flannelctl: look at flannel, and try it on one machine

Usage: flannelctl COMMAND ...

  status      peers of this host and their kernel objects, as its daemon sees them
  plan        what the daemon would change in the kernel now; nothing on a healthy host
  pause       hold the daemon's hand still, to change something in peace; `resume` ends it
  cleanup     take what flannel has made on this host away
  cni         the CNI plugins of this host: install, uninstall, and the configuration for runtimes
  ipam        which pod holds which address of this host; free those of dead ones: list, gc
  lab         a whole network of hosts and pods on this machine: up, status, exec, break, down
  registry    serve, get, put, ls, del, migrate: an etcd v3 API server for one machine, and a small client

`flannelctl COMMAND --help` says more. Exit status: 0 good, 1 not good or failed, 2 wrong use.
";

fn main() -> ExitCode {
    let mut words = std::env::args_os().map(|a| a.to_string_lossy().into_owned());
    let program = words.next().unwrap_or_default();
    let mut arguments: Vec<String> = words.collect();
    if Path::new(&program).ends_with(plugins::INSTALL_CONF) {
        arguments.splice(0..0, ["cni".to_owned(), plugins::INSTALL_CONF.to_owned()]);
    }
    let mut out = Out::new();
    let result = run(&arguments, &mut out).and_then(|code| out.flush().map(|()| code));
    report(result)
}

fn run(arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => return Err(Ended::Usage(format!("no command\n\n{HELP}"))),
    };
    match command {
        "status" => status::status(rest, out),
        "plan" => status::plan(rest, out),
        "pause" => status::pause("pause", rest, out),
        "resume" => status::pause("resume", rest, out),
        "cleanup" => cleanup::run(rest, out),
        "cni" => plugins::run(rest, out),
        "ipam" => ipam::run(rest, out),
        "lab" => labs::run(rest, out),
        "registry" => store::run(rest, out),
        "help" | "-h" | "--help" => out.text(HELP).map(|()| ExitCode::SUCCESS),
        "version" | "--version" => out
            .text(&format!("flannelctl {}\n", env!("CARGO_PKG_VERSION")))
            .map(|()| ExitCode::SUCCESS),
        other => Err(Ended::Usage(format!("no command {other:?}\n\n{HELP}"))),
    }
}
