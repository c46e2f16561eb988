//! A table of what was done and how soon something was so again: printed row by row, and gathered, with what was wrong.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// The table.
#[derive(Debug)]
pub struct Rows {
    /// Beyond what a row aims at, so much is not a failure: the machine is shared.
    shared: Duration,
    /// Width of the column of names, in characters.
    width: usize,
    text: String,
    failures: Vec<String>,
}

/// Asks every few milliseconds until it is so, for no longer than `limit`.
///
/// # Errors
/// What it was instead at last.
pub fn until(limit: Duration, mut is_so: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    let start = Instant::now();
    loop {
        let result = is_so();
        if result.is_ok() || start.elapsed() > limit {
            return result;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A line on standard output, of a test whose output is shown as it comes.
pub fn print(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

impl Rows {
    /// An empty one.
    pub fn new(shared: Duration, width: usize) -> Rows {
        Rows {
            shared,
            width,
            text: String::new(),
            failures: Vec::new(),
        }
    }

    /// A line of its own.
    pub fn say(&mut self, text: &str) {
        print(text);
        let _ = writeln!(self.text, "{text}");
    }

    /// Something is wrong; the rows after it are still of interest.
    pub fn fail(&mut self, problem: String) {
        self.say(&format!("    FAILED: {problem}"));
        self.failures.push(problem);
    }

    /// One row: what came of waiting since `done`.
    pub fn add(&mut self, name: &str, aim: Duration, done: Instant, result: Result<(), String>) {
        let took = done.elapsed();
        let note = match took > aim {
            true => format!("  (aimed at {} s)", aim.as_secs()),
            false => String::new(),
        };
        let width = self.width;
        self.say(&format!("{name:<width$} {:>7.3} s{note}", took.as_secs_f64()));
        if let Err(problem) = result {
            self.fail(format!("{name}: {problem}"));
        } else if took > aim + self.shared {
            self.fail(format!("{name}: only after {took:?}"));
        }
    }

    /// The table so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// All that was wrong, behind the whole table; `None` where nothing was.
    pub fn failed(&self) -> Option<String> {
        let all = self.failures.join("\n");
        (!self.failures.is_empty()).then(|| format!("{}\n{all}", self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_when_something_is_wrong_or_late_fail_and_name_it() {
        let mut rows = Rows::new(Duration::from_secs(5), 10);
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
        rows.add("good", Duration::from_secs(1), Instant::now(), Ok(()));
        rows.add("slow", Duration::from_secs(1), ago(3), Ok(()));
        assert_eq!(rows.failed(), None);
        rows.add("late", Duration::from_secs(1), ago(7), Ok(()));
        rows.add(
            "wrong",
            Duration::from_secs(1),
            Instant::now(),
            Err("no route".to_owned()),
        );
        let failed = rows.failed().unwrap();
        assert!(
            failed.contains("good         0.0") && failed.contains("3.0"),
            "{failed}"
        );
        assert!(failed.contains("(aimed at 1 s)"), "{failed}");
        assert!(failed.contains("\nlate: only after 7."), "{failed}");
        assert!(failed.ends_with("\nwrong: no route"), "{failed}");
    }
}
