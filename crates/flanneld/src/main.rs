//! The door of the daemon: arguments in, exit status out.
#![forbid(unsafe_code)]

use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use fabric::causes::in_full;
use flanneld::flags::{self, CommandLine};
use flanneld::handover::{self, Handover};
use flanneld::service::{self, Exit};
use flanneld::{logging, seclusion};

fn main() -> ExitCode {
    kernel::heap::use_one_arena();
    // Asked for now: after an upgrade the path leads to the new program, while the kernel's own link is to the old one.
    let program = env::current_exe();
    let pid = std::process::id();
    let mut kept = Handover::default();
    let mut first = true;
    loop {
        let start = match flags::command_line(
            env::args_os(),
            |name| env::var_os(name),
            env!("CARGO_PKG_VERSION"),
        ) {
            CommandLine::Run(start) => start,
            CommandLine::Exit { code, text } => {
                logging::say(&text);
                return ExitCode::from(code);
            }
        };
        if std::mem::take(&mut first) {
            logging::start(start.options.verbosity);
            kept = Handover::take(env::var_os(handover::VARIABLE).as_deref(), pid);
            seclusion::begin();
        }
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(failure) => return fail(&failure.into()),
        };
        let exit = runtime.block_on(service::run(*start, std::mem::take(&mut kept)));
        // Whatever still looks up a name would hold up the end.
        runtime.shutdown_background();
        match exit {
            Ok(Exit::Code(code)) => return ExitCode::from(code),
            Ok(Exit::Reexec(handover)) => kept = handover,
            Err(failure) => return fail(&failure),
        }
        // Comes back only when it failed. A broken upgrade must not be the end of a daemon that works.
        match &program {
            Ok(program) => {
                let mut command = Command::new(program);
                command.args(env::args_os().skip(1));
                match kept.leave(pid) {
                    Ok(text) => command.env(handover::VARIABLE, text),
                    Err(failure) => {
                        tracing::warn!("listening sockets and locks are taken anew: {failure}");
                        command.env_remove(handover::VARIABLE)
                    }
                };
                let failure = command.exec();
                kept.stay();
                tracing::error!(
                    "{}: {failure}; going on as the program that runs",
                    program.display()
                );
            }
            Err(failure) => tracing::error!("the path of the program is not known: {failure}"),
        }
    }
}

fn fail(failure: &anyhow::Error) -> ExitCode {
    tracing::error!("{}", in_full(failure.as_ref()));
    ExitCode::FAILURE
}
