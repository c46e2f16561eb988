//! Running other people's commands, with errors that say which command and what it said.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use thiserror::Error;

/// What can go wrong in a lab, by what the caller can do about it.
#[derive(Debug, Error)]
pub enum LabError {
    /// A command ended with a failure; its own words are kept.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status as text.
        status: String,
        /// What it wrote on stderr (or stdout, when stderr is empty), trimmed.
        stderr: String,
    },
    /// A command could not be started.
    #[error("cannot run `{command}`: {source}")]
    Start {
        /// The command line.
        command: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file or directory of the lab.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// There is a lab of that name.
    #[error("lab {0} is up; `flannelctl lab down --name {0}` takes it down")]
    Exists(String),
    /// There is no lab, host, or pod of that name.
    #[error("no {what} {name}: {hint}")]
    Missing {
        /// Lab, host, pod.
        what: &'static str,
        /// The name asked for.
        name: String,
        /// What there is instead, or how to get it.
        hint: String,
    },
    /// A name, number, or combination that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// Output that is not what the tool is known to print.
    #[error("`{command}` printed something else than expected: {problem}")]
    Output {
        /// The command line.
        command: String,
        /// What was wrong with it.
        problem: String,
    },
    /// A state that did not come within its time.
    #[error("{what} did not come within {seconds} s: {missing}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// What was still missing at the end.
        missing: String,
    },
    /// Somebody pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

/// The command line as a person would type it.
pub fn line(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        text.push(' ');
        if argument.is_empty() || argument.contains([' ', '"', '\n']) {
            text.push_str(&format!("{argument:?}"));
        } else {
            text.push_str(&argument);
        }
    }
    text
}

/// A command from words.
pub fn words<S: AsRef<OsStr>>(words: &[S]) -> Command {
    let mut words = words.iter();
    let mut command = Command::new(words.next().map_or(OsStr::new("true"), AsRef::as_ref));
    command.args(words);
    command
}

/// Runs to the end; gives its stdout.
pub fn run(command: &mut Command) -> Result<String, LabError> {
    run_with_input(command, "")
}

/// Runs to the end with `input` on stdin; gives its stdout.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String, LabError> {
    let (success, stdout, stderr, status) = output(command, input)?;
    if success {
        return Ok(stdout);
    }
    let said = if stderr.trim().is_empty() { stdout } else { stderr };
    Err(LabError::Command {
        command: line(command),
        status,
        stderr: said.trim().to_owned(),
    })
}

/// Runs to the end; whether it succeeded, stdout, stderr, and the status as text.
pub fn output(command: &mut Command, input: &str) -> Result<(bool, String, String, String), LabError> {
    let text = line(command);
    let start = |source| LabError::Start {
        command: text.clone(),
        source,
    };
    command.stdin(if input.is_empty() {
        Stdio::null()
    } else {
        Stdio::piped()
    });
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    let feeder = child.stdin.take().map(|mut pipe| {
        let input = input.to_owned();
        // A command that ends without reading everything closes the pipe; its status tells.
        std::thread::spawn(move || pipe.write_all(input.as_bytes()).is_ok())
    });
    let errors = child.stderr.take().map(|mut pipe| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = pipe.read_to_end(&mut text);
            text
        })
    });
    let mut stdout = Vec::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_end(&mut stdout).map_err(start)?;
    }
    let status = child.wait().map_err(start)?;
    let stderr = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();
    if let Some(thread) = feeder {
        let _ = thread.join();
    }
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((status.success(), text(stdout), text(stderr), status.to_string()))
}

/// Names the file in an I/O error.
pub fn file<T>(path: impl AsRef<std::path::Path>, result: std::io::Result<T>) -> Result<T, LabError> {
    result.map_err(|source| LabError::File {
        path: path.as_ref().display().to_string(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_carries_command_line_and_words() {
        let error = run(&mut words(&["sh", "-c", "echo no such thing >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no such thing") && error.contains("exit status: 3"),
            "{error}"
        );
        assert!(error.contains("sh -c \"echo no such thing"), "{error}");
    }

    #[test]
    fn input_larger_than_a_pipe_reaches_the_command() {
        let input = "x".repeat(300_000);
        assert_eq!(
            run_with_input(&mut words(&["wc", "-c"]), &input).unwrap().trim(),
            "300000"
        );
    }

    #[test]
    fn command_that_does_not_exist_is_named() {
        let error = run(&mut words(&["no-such-command-here", "a"]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("no-such-command-here a"), "{error}");
    }
}
