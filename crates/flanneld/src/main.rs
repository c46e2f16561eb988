//! The door of the daemon: arguments in, exit status out.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use flanneld::flags::{self, CommandLine};
use flanneld::logging;
use flanneld::service::{self, Exit};

fn main() -> ExitCode {
    kernel::heap::use_one_arena();
    // Asked for now: after an upgrade the path leads to the new program, while the kernel's own link is to the old one.
    let program = env::current_exe();
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
        }
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(failure) => return fail(&failure.into()),
        };
        match runtime.block_on(service::run(*start)) {
            Ok(Exit::Code(code)) => return ExitCode::from(code),
            Ok(Exit::Reexec) => {}
            Err(failure) => return fail(&failure),
        }
        drop(runtime);
        // Comes back only when it failed. A broken upgrade must not be the end of a daemon that works.
        match &program {
            Ok(program) => {
                let failure = Command::new(program).args(env::args_os().skip(1)).exec();
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
    tracing::error!("{failure:#}");
    ExitCode::FAILURE
}
