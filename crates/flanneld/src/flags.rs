//! The command line and the environment: one table of flags, and everything that follows from it.
//!
//! [`TABLE`] is the only place that knows a flag. The parser (Go's `flag` grammar, [`parse`]), the environment
//! ([`environment`]), the usage text, the man page, the completions and `docs/flags.md` ([`render`]) are made from its
//! rows. What was typed is a [`Raw`]; what it means, checked, is an [`Options`]. Nothing here touches the system:
//! arguments and variables come in as values, text and exit codes go out as values.

pub mod environment;
pub mod go_value;
pub mod leftover;
pub mod options;
pub mod parse;
pub mod render;
pub mod table;

use std::ffi::OsString;

pub use options::{Credentials, EtcdApi, EtcdOptions, Health, KubeOptions, Options, RegistryOptions, Secret};
pub use parse::{Parsed, Raw, Stop, UsageError};
pub use table::{Flag, Kind, Section, TABLE};

/// What a command line comes to.
#[derive(Debug)]
pub enum CommandLine {
    /// Run the daemon.
    Run(Box<Start>),
    /// Print `text` to standard error and leave with `code`: 0 for help and version, 2 for a mistake.
    Exit {
        /// Exit status of the process.
        code: u8,
        /// Complete text, newline at its end.
        text: String,
    },
}

/// A checked command line, with what there is to say about it once logging works.
#[derive(Debug)]
pub struct Start {
    /// The options.
    pub options: Options,
    /// Mistakes in the environment that were survived: one line each, to be logged as errors.
    pub errors: Vec<String>,
    /// What was accepted but does not do what its writer thought: one line each, to be logged as warnings.
    pub warnings: Vec<String>,
}

/// Reads the arguments (`argv[0]` first) and the environment.
///
/// `variable` is the environment; `version` is what `--version` prints. Help and version go to standard error, as in
/// the reference, and end with 0; every mistake ends with 2.
pub fn command_line(
    arguments: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
    version: &str,
) -> CommandLine {
    let mut arguments = arguments.into_iter();
    let program = arguments
        .next()
        .map_or_else(|| "flanneld".to_owned(), |a| a.to_string_lossy().into_owned());
    // A hundred lines of usage would only hide the one that matters.
    let mistake = |error: &UsageError| CommandLine::Exit {
        code: 2,
        text: format!("{error}\nUsage: {program} [OPTION]... (--help lists them)\n"),
    };
    let mut texts = Vec::new();
    for (index, argument) in arguments.enumerate() {
        match argument.into_string() {
            Ok(text) => texts.push(text),
            Err(raw) => {
                let line = format!(
                    "argument {} is not valid UTF-8: {}",
                    index + 1,
                    parse::printable(&raw.to_string_lossy())
                );
                return mistake(&UsageError { line, hint: None });
            }
        }
    }
    let (mut raw, stop) = match parse::parse(&texts) {
        Ok(Parsed::Flags { raw, stop }) => (raw, stop),
        Ok(Parsed::Help) => {
            return CommandLine::Exit {
                code: 0,
                text: render::usage(&program),
            };
        }
        Err(error) => return mistake(&error),
    };
    if raw.version {
        return CommandLine::Exit {
            code: 0,
            text: format!("{version}\n"),
        };
    }
    let errors = environment::apply(&mut raw, variable);
    let mut warnings = Vec::new();
    warnings.extend(leftover::explain(&stop));
    match Options::check(&raw, &mut warnings) {
        Ok(options) => CommandLine::Run(Box::new(Start {
            options,
            errors,
            warnings,
        })),
        Err(error) => mistake(&error),
    }
}
