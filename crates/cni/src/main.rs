//! The executable `flannel-cni`; installed under the name of each plugin it is to be.

use std::process::ExitCode;

use cni::call::Environment;
use cni::plugin::{self, Plugin};

fn main() -> ExitCode {
    let program = std::env::args_os().next().unwrap_or_default();
    let env = Environment::read(|name| {
        std::env::var_os(name)
            .map(|value| value.to_string_lossy().into_owned())
            .unwrap_or_default()
    });
    let (mut stdin, mut stdout, mut stderr) = (
        std::io::stdin().lock(),
        std::io::stdout().lock(),
        std::io::stderr().lock(),
    );
    ExitCode::from(plugin::main(
        Plugin::of(&program.to_string_lossy()),
        env,
        &mut stdin,
        &mut stdout,
        &mut stderr,
    ))
}
