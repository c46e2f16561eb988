//! Running a program: text in, text out, never longer than allowed.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// More output than this is no listing any more; the rest is thrown away.
const MOST_OUTPUT: u64 = 64 << 20;
/// How often a program that has closed its output is looked at until it ends.
const LOOK: Duration = Duration::from_millis(1);

/// What a program that was run left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output; invalid UTF-8 replaced.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Why there is no output to speak of.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It is not installed (or not in `PATH`).
    #[error("{program}: not found")]
    NotFound {
        /// Its name.
        program: String,
    },
    /// It did not end in time and was killed.
    #[error("{program}: killed after {} s without an end", .after.as_secs())]
    Timeout {
        /// Its name.
        program: String,
        /// How long it was given.
        after: Duration,
    },
    /// It ended with a failure.
    #[error("{program}: {reason}")]
    Failed {
        /// Its name.
        program: String,
        /// Its own words, or its status where it had none.
        reason: String,
        /// Its exit status; `None` when a signal ended it.
        code: Option<i32>,
    },
    /// It could not be run.
    #[error("{program}: {source}")]
    Io {
        /// Its name.
        program: String,
        /// Why.
        source: io::Error,
    },
}

/// Runs a program to its end, whatever that is.
pub fn run<A: AsRef<OsStr>>(
    program: &str,
    arguments: &[A],
    stdin: &str,
    after: Duration,
) -> Result<Output, ExecError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ExecError::NotFound {
            program: program.to_owned(),
        },
        _ => ExecError::Io {
            program: program.to_owned(),
            source,
        },
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let until = Instant::now() + after;
    thread::scope(|scope| {
        // One thread each way: a program that writes much before it reads all would otherwise wait for us for ever.
        scope.spawn(move || {
            if let Some(mut input) = input {
                // A program that does not want all of it says why by its status.
                let _ = input.write_all(stdin.as_bytes());
            }
        });
        let errors = scope.spawn(move || drain(errors));
        let output = scope.spawn(move || drain(output));
        let status = wait(&mut child, until);
        let (stdout, stderr) = (
            output.join().unwrap_or_default(),
            errors.join().unwrap_or_default(),
        );
        match status.map_err(failed)? {
            Some(status) => Ok(Output {
                status,
                stdout,
                stderr,
            }),
            None => Err(ExecError::Timeout {
                program: program.to_owned(),
                after,
            }),
        }
    })
}

/// Runs a program that must succeed; its standard output.
pub fn read<A: AsRef<OsStr>>(
    program: &str,
    arguments: &[A],
    stdin: &str,
    after: Duration,
) -> Result<String, ExecError> {
    let output = run(program, arguments, stdin, after)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = output.stderr.trim();
    let reason = if words.is_empty() {
        output.status.to_string()
    } else {
        words.replace('\n', "; ")
    };
    Err(ExecError::Failed {
        program: program.to_owned(),
        reason,
        code: output.status.code(),
    })
}

fn drain(from: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        let _ = from.by_ref().take(MOST_OUTPUT).read_to_end(&mut bytes);
        let _ = io::copy(&mut from, &mut io::sink());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for the end; kills when it does not come.
fn wait(child: &mut Child, until: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn read_when_input_is_larger_than_a_pipe_then_all_of_it_comes_back() {
        let text = "x".repeat(1 << 20);
        assert_eq!(read::<&str>("cat", &[], &text, LONG).unwrap(), text);
    }

    #[test]
    fn read_when_the_program_fails_then_its_own_words() {
        let error = read("sh", &["-c", "echo no such chain >&2; exit 4"], "", LONG).unwrap_err();
        assert_eq!(error.to_string(), "sh: no such chain");
        assert!(matches!(error, ExecError::Failed { code: Some(4), .. }));
    }

    #[test]
    fn run_when_it_does_not_end_then_killed_and_said_so() {
        let error = run("sleep", &["1000"], "", Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, ExecError::Timeout { .. }), "{error}");
    }

    #[test]
    fn run_when_there_is_no_such_program_then_named() {
        let error = run::<&str>("no-such-program", &[], "", LONG).unwrap_err();
        assert_eq!(error.to_string(), "no-such-program: not found");
    }
}
