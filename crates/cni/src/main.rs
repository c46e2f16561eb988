//! The executable `flannel-cni`; installed under the name of each plugin it is to be.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use cni::call::Environment;
use cni::install;
use cni::plugin;

/// By this an installation knows the executable among others' plugins.
#[used]
static MARK: [u8; 40] = mark();

const fn mark() -> [u8; 40] {
    let [before, after] = install::MARK;
    let mut bytes = [install::BETWEEN; 40];
    let mut at = 0;
    while at < before.len() {
        bytes[at] = before[at];
        at += 1;
    }
    at = 0;
    while at < after.len() {
        bytes[before.len() + 1 + at] = after[at];
        at += 1;
    }
    bytes
}

#[global_allocator]
static HEAP: kernel::heap::Brief = kernel::heap::Brief::new();

fn main() -> ExitCode {
    // A linker drops what nobody looks at.
    std::hint::black_box(&MARK);
    let program = std::env::args_os().next().unwrap_or_default();
    let env = Environment::read(|name| {
        std::env::var_os(name)
            .map(|value| value.to_string_lossy().into_owned())
            .unwrap_or_default()
    });
    let (mut stdin, mut stderr) = (io::stdin().lock(), io::stderr().lock());
    ExitCode::from(plugin::main(
        plugin::named(&program.to_string_lossy()),
        env,
        &mut stdin,
        &mut Stdout,
        &mut stderr,
    ))
}

/// Standard output without a buffer: the one document of an answer is one write, which std's would split at its last newline.
struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| {
            rustix::io::write(rustix::stdio::stdout(), bytes)
        })?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
