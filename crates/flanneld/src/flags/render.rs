//! Texts made from the table: usage, man page, Markdown, and completions for three shells.
//!
//! `packaging/` and `docs/` hold them as files; a test keeps those equal to what is printed here.

mod completion;
mod man;
mod markdown;
mod usage;

pub use completion::{bash, fish, zsh};
pub use man::man;
pub use markdown::markdown;
pub use usage::usage;

use super::table::{Flag, Section, TABLE};

/// The flags of one heading, in the order of the table.
fn of(section: Section) -> impl Iterator<Item = &'static Flag> {
    TABLE.iter().filter(move |flag| flag.section == section)
}

/// `--name`, or `-v` for a name of one letter.
fn dashed(flag: &Flag) -> String {
    if flag.name.len() == 1 {
        format!("-{}", flag.name)
    } else {
        format!("--{}", flag.name)
    }
}

/// The sentence on a flag whose feature is missing, with a blank before it; or nothing.
fn unbuilt(flag: &Flag) -> String {
    match flag.unbuilt {
        Some(feature) => format!(" Not built yet ({feature}): any value but the default is refused."),
        None => String::new(),
    }
}

/// Words that complete a flag's value, where there is a short list of them.
fn words(flag: &Flag) -> Option<Vec<&'static str>> {
    match flag.kind {
        super::Kind::Choice(words, _) => Some(words.to_vec()),
        super::Kind::Bool(_) => Some(vec!["true", "false"]),
        _ => None,
    }
}

/// True when the value is the path of a file.
fn is_file(flag: &Flag) -> bool {
    flag.name.ends_with("file") || flag.name.ends_with("-path")
}

/// The first sentence of a text, without its full stop.
fn first_sentence(text: &str) -> &str {
    text.split_once(". ")
        .map_or(text, |(first, _)| first)
        .trim_end_matches('.')
}
