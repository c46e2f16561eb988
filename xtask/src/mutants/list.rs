//! `docs/mutants.md`: mutants that no test can notice, each with its reason, and functions that only a test as root can hold. Tables
//! for people, read by us.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};

/// A mutant that lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survivor {
    /// As `crates/fabric/src/diff.rs`.
    pub file: String,
    /// The tool's words for the mutation, which name the function.
    pub mutation: String,
    /// The line of the file it is in: what tells it from the same mutation elsewhere in the function, and outlives changes above.
    pub line: String,
}

impl Survivor {
    /// Reads `FILE:LINE:COLUMN: MUTATION`; `source` gives a line of a file.
    pub fn parse(text: &str, source: &dyn Fn(&str, usize) -> Option<String>) -> Option<Survivor> {
        let (place, mutation) = text.split_once(": ")?;
        let mut place = place.splitn(3, ':');
        let (file, number) = (place.next()?, place.next()?.parse().ok()?);
        Some(Survivor {
            file: file.to_owned(),
            mutation: mutation.trim().to_owned(),
            line: source(file, number)?.trim().to_owned(),
        })
    }
}

impl Survivor {
    /// The function it is in, in the tool's words.
    fn function(&self) -> Option<&str> {
        if let Some((_, function)) = self.mutation.rsplit_once(" in ") {
            return Some(function);
        }
        let replaced = self.mutation.strip_prefix("replace ")?;
        let end = [" -> ", " with "]
            .iter()
            .filter_map(|word| replaced.find(word))
            .min()?;
        replaced.get(..end)
    }
}

impl fmt::Display for Survivor {
    /// As a row of the table, its reason still to be written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cell = |text: &str| text.replace('|', "\\|");
        let (mutation, line) = (cell(&self.mutation), cell(&self.line));
        write!(f, "| {} | {mutation} | `{line}` | |", self.file)
    }
}

/// The survivors with a reason, and the functions that tests as root hold.
#[derive(Debug, Default)]
pub struct List {
    rows: Vec<Survivor>,
    /// File and function.
    by_root: BTreeSet<(String, String)>,
}

impl List {
    /// Reads the file; a row without a reason is an error.
    pub fn read(path: &Path) -> Result<List> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        List::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<List> {
        let mut list = List::default();
        for (number, text) in text.lines().enumerate() {
            let Some(row) = text.strip_prefix("| crates/") else {
                continue;
            };
            let cells = cells(row);
            if cells.last().is_some_and(String::is_empty) {
                anyhow::bail!("line {}: no reason", number + 1);
            }
            match &cells[..] {
                [file, mutation, line, _] => list.rows.push(Survivor {
                    file: format!("crates/{file}"),
                    mutation: mutation.clone(),
                    line: line.trim_matches('`').to_owned(),
                }),
                [file, functions, _] => {
                    for function in functions.split(", ") {
                        let function = function.trim_matches('`').to_owned();
                        list.by_root.insert((format!("crates/{file}"), function));
                    }
                }
                _ => anyhow::bail!(
                    "line {}: {} cells instead of 4, or 3 for what tests as root hold",
                    number + 1,
                    cells.len()
                ),
            }
        }
        Ok(list)
    }

    /// Whether a test as root holds the function that a survivor is in, or all of its file.
    pub fn is_by_root(&self, survivor: &Survivor) -> bool {
        let holds = |function: &str| {
            let key = (survivor.file.clone(), function.to_owned());
            self.by_root.contains(&key)
        };
        holds("all") || survivor.function().is_some_and(holds)
    }

    /// Those of the survivors that are not listed. A row stands for one of them.
    pub fn lacks(&self, survivors: &[Survivor]) -> Vec<Survivor> {
        let mut rows: Vec<&Survivor> = self.rows.iter().collect();
        let mut unknown = Vec::new();
        for survivor in survivors {
            match rows.iter().position(|row| *row == survivor) {
                Some(at) => drop(rows.swap_remove(at)),
                None => unknown.push(survivor.clone()),
            }
        }
        unknown
    }
}

/// The cells of a row up to its last `|`, trimmed; `\|` is a `|` inside one.
fn cells(row: &str) -> Vec<String> {
    let mut cells = vec![String::new()];
    let mut characters = row.trim_end().chars().peekable();
    while let Some(character) = characters.next() {
        match (character, cells.last_mut()) {
            ('|', _) => cells.push(String::new()),
            ('\\', Some(cell)) if characters.peek() == Some(&'|') => {
                characters.next();
                cell.push('|');
            }
            (other, Some(cell)) => cell.push(other),
            (_, None) => {}
        }
    }
    cells.pop();
    cells.iter().map(|cell| cell.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn survivor(line: &str) -> Survivor {
        let text = "crates/a/src/b.rs:7:13: replace || with && in c::d";
        Survivor::parse(text, &|file, number| {
            assert_eq!((file, number), ("crates/a/src/b.rs", 7));
            Some(format!("    {line}"))
        })
        .unwrap()
    }

    #[test]
    fn list_when_it_holds_a_survivor_then_once_a_row_and_only_with_a_reason() {
        let lives = survivor("x || y");
        let row = lives.to_string();
        assert_eq!(
            row,
            "| crates/a/src/b.rs | replace \\|\\| with && in c::d | `x \\|\\| y` | |"
        );
        assert!(List::parse(&row).is_err());
        let list = List::parse(&format!(
            "# Title\n\n| file | and so on |\n|---|---|\n{row}equivalent |\n"
        ));
        assert!(list.is_err(), "five cells");
        let row = row.replace("| |", "| equivalent |");
        let list = List::parse(&row).unwrap();
        assert_eq!(list.lacks(std::slice::from_ref(&lives)), []);
        let other = survivor("x || z");
        assert_eq!(
            list.lacks(&[lives.clone(), lives.clone(), other.clone()]),
            [lives, other]
        );
    }

    #[test]
    fn list_when_a_test_as_root_holds_a_function_then_its_mutants_and_no_others() {
        let list = List::parse("| crates/a/src/b.rs | `<impl A for B>::c`, `d` | root: e |").unwrap();
        let is_held = |file: &str, mutation: &str| {
            let text = format!("{file}:7:13: {mutation}");
            let survivor = Survivor::parse(&text, &|_, _| Some(String::new())).unwrap();
            list.is_by_root(&survivor)
        };
        let file = "crates/a/src/b.rs";
        for mutation in [
            "replace <impl A for B>::c -> Result<(), E> with Ok(())",
            "replace <impl A for B>::c with ()",
            "replace || with && in <impl A for B>::c",
            "delete match arm (X(in), _) in d",
            "delete field f from struct S expression in d",
        ] {
            assert!(is_held(file, mutation), "{mutation}");
            assert!(!is_held("crates/a/src/c.rs", mutation), "{mutation}");
        }
        assert!(!is_held(file, "replace de -> bool with true") && !is_held(file, "delete ! in B::d"));
        assert!(List::parse("| crates/a/src/b.rs | `d` | |").is_err(), "no test");
    }

    #[test]
    fn list_as_it_stands_is_read_and_names_files_and_functions_that_are_there() {
        let root = crate::cargo::root();
        let list = List::read(&root.join("docs/mutants.md")).unwrap();
        let text = |file: &str| std::fs::read_to_string(root.join(file)).expect(file);
        for row in &list.rows {
            let lines = text(&row.file);
            assert!(lines.lines().any(|line| line.trim() == row.line), "{row}");
        }
        for (file, function) in &list.by_root {
            let name = function.rsplit("::").next().unwrap_or(function);
            let is_there = name == "all" || text(file).contains(&format!("fn {name}"));
            assert!(is_there, "{file}: {function}");
        }
    }
}
