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
    let start = match flags::command_line(env::args_os(), |name| env::var_os(name), env!("CARGO_PKG_VERSION")) {
        CommandLine::Run(start) => start,
        CommandLine::Exit { code, text } => {
            logging::say(&text);
            return ExitCode::from(code);
        }
    };
    logging::start(start.options.verbosity);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(failure) => return fail(&failure.into()),
    };
    match runtime.block_on(service::run(*start)) {
        Ok(Exit::Code(code)) => ExitCode::from(code),
        Ok(Exit::Reexec) => {
            let program = match program {
                Ok(program) => program,
                Err(failure) => return fail(&failure.into()),
            };
            let failure = Command::new(&program).args(env::args_os().skip(1)).exec();
            fail(&anyhow::Error::from(failure).context(format!("executing {}", program.display())))
        }
        Err(failure) => fail(&failure),
    }
}

fn fail(failure: &anyhow::Error) -> ExitCode {
    tracing::error!("{failure:#}");
    ExitCode::FAILURE
}
