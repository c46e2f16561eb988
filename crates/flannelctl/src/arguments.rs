//! A small reader of command lines: `--name value`, `--name=value`, switches, positionals.

use std::collections::BTreeMap;

/// Why a command ended without doing its work to the end.
#[derive(Debug)]
pub enum Ended {
    /// Wrong use: exit 2.
    Usage(String),
    /// It failed: exit 1.
    Failed(anyhow::Error),
    /// Help was asked for: exit 0.
    Help(&'static str),
    /// Whoever read our output stopped reading: exit 0.
    PipeClosed,
}

impl<E: Into<anyhow::Error>> From<E> for Ended {
    fn from(error: E) -> Ended {
        let error: anyhow::Error = error.into();
        let closed = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if closed == Some(std::io::ErrorKind::BrokenPipe) {
            Ended::PipeClosed
        } else {
            Ended::Failed(error)
        }
    }
}

/// What a command takes.
#[derive(Debug, Clone, Copy)]
pub struct Grammar {
    /// Shown for `--help`.
    pub help: &'static str,
    /// Flags with a value, without dashes.
    pub values: &'static [&'static str],
    /// Flags without.
    pub switches: &'static [&'static str],
    /// The first positional ends the flags: what follows belongs to another command.
    pub stop_at_positional: bool,
}

/// A command line, read.
#[derive(Debug, Default)]
pub struct Arguments {
    values: BTreeMap<&'static str, String>,
    switches: Vec<&'static str>,
    /// What is no flag, in order.
    pub positionals: Vec<String>,
}

impl Grammar {
    /// Reads; an unknown flag is refused by name.
    pub fn read(&self, arguments: &[String]) -> Result<Arguments, Ended> {
        let mut read = Arguments::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            if argument == "--" {
                read.positionals.extend(rest.cloned());
                break;
            }
            if argument == "-h" || argument == "--help" {
                return Err(Ended::Help(self.help));
            }
            let Some(flag) = argument.strip_prefix("--") else {
                read.positionals.push(argument.clone());
                if self.stop_at_positional {
                    read.positionals.extend(rest.cloned());
                    break;
                }
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if let Some(name) = self.values.iter().find(|n| **n == name) {
                let value = value.or_else(|| rest.next().cloned());
                let value = value.ok_or_else(|| Ended::Usage(format!("--{name} needs a value")))?;
                read.values.insert(name, value);
            } else if let Some(name) = self.switches.iter().find(|n| **n == name) {
                if value.is_some() {
                    return Err(Ended::Usage(format!("--{name} takes no value")));
                }
                read.switches.push(name);
            } else {
                let usage = self
                    .help
                    .lines()
                    .find(|l| l.starts_with("Usage"))
                    .unwrap_or_default();
                return Err(Ended::Usage(format!("no flag --{name}\n{usage}")));
            }
        }
        Ok(read)
    }
}

impl Arguments {
    /// Value of a flag.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// Value of a flag, or what it is when not given.
    pub fn value_or<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.value(name).unwrap_or(default)
    }

    /// A number.
    pub fn number(&self, name: &str, default: u64) -> Result<u64, Ended> {
        match self.value(name) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| Ended::Usage(format!("--{name}={text}: expected a whole number"))),
        }
    }

    /// A switch was given.
    pub fn has(&self, name: &str) -> bool {
        self.switches.contains(&name)
    }

    /// Exactly these positionals, by what they are.
    pub fn exactly<const N: usize>(&self, names: [&str; N]) -> Result<[&str; N], Ended> {
        if self.positionals.len() != N {
            let what = if N == 0 {
                "no arguments".to_owned()
            } else {
                names.join(" ")
            };
            return Err(Ended::Usage(format!(
                "expected {what}, got {:?}",
                self.positionals.join(" ")
            )));
        }
        let mut taken = [""; N];
        for (slot, value) in taken.iter_mut().zip(&self.positionals) {
            *slot = value;
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRAMMAR: Grammar = Grammar {
        help: "x\nUsage: x [--name NAME]\n",
        values: &["name", "count"],
        switches: &["json"],
        stop_at_positional: false,
    };

    fn words(text: &str) -> Vec<String> {
        text.split(' ')
            .filter(|w| !w.is_empty())
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn both_forms_of_a_value_and_positionals_between_are_read() {
        let read = GRAMMAR
            .read(&words("a --name=x b --count 7 --json -- --name"))
            .unwrap();
        assert_eq!(read.positionals, ["a", "b", "--name"]);
        assert_eq!(
            (read.value("name"), read.number("count", 1).unwrap()),
            (Some("x"), 7)
        );
        assert!(read.has("json"));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (line, word) in [
            ("--nam x", "--nam"),
            ("--name", "--name needs"),
            ("--json=1", "takes no value"),
        ] {
            let Err(Ended::Usage(text)) = GRAMMAR.read(&words(line)) else {
                panic!("{line} was accepted")
            };
            assert!(text.contains(word), "{text}");
        }
        let read = GRAMMAR.read(&words("--count=many")).unwrap();
        assert!(matches!(read.number("count", 1), Err(Ended::Usage(t)) if t.contains("many")));
        assert!(matches!(read.exactly(["HOST"]), Err(Ended::Usage(t)) if t.contains("HOST")));
    }

    #[test]
    fn first_positional_may_end_the_flags() {
        let grammar = Grammar {
            stop_at_positional: true,
            ..GRAMMAR
        };
        let read = grammar.read(&words("--name x h1 ls --all -h")).unwrap();
        assert_eq!(read.positionals, ["h1", "ls", "--all", "-h"]);
    }
}
