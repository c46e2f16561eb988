//! Writing to people and to programs: a stdout that survives a closed pipe, colour only on a terminal.

use std::io::{IsTerminal, Stdout, Write};
use std::process::ExitCode;
use std::time::Instant;

use crate::arguments::Ended;

/// Standard output.
pub struct Out {
    stdout: Stdout,
    colour: bool,
}

/// What a word means; a terminal shows it as colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// As it should be.
    Good,
    /// Worth a look.
    Warn,
    /// Not as it should be.
    Bad,
    /// Said beside.
    Faint,
    /// A heading.
    Strong,
}

impl Out {
    /// Takes stdout.
    pub fn new() -> Out {
        let stdout = std::io::stdout();
        let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Out { stdout, colour }
    }

    /// Writes text as it is.
    pub fn text(&mut self, text: &str) -> Result<(), Ended> {
        Ok(self.stdout.lock().write_all(text.as_bytes())?)
    }

    /// Writes one line.
    pub fn line(&mut self, text: &str) -> Result<(), Ended> {
        self.text(text)?;
        self.text("\n")
    }

    /// Writes a value as JSON.
    pub fn json(&mut self, value: &impl serde::Serialize) -> Result<(), Ended> {
        let text = serde_json::to_string_pretty(value)?;
        self.line(&text)
    }

    /// A word in its colour.
    pub fn paint(&self, mood: Mood, text: &str) -> String {
        let code = match mood {
            Mood::Good => "32",
            Mood::Warn => "33",
            Mood::Bad => "31;1",
            Mood::Faint => "2",
            Mood::Strong => "1",
        };
        if self.colour {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    /// Rows in columns; the first row is the heading. A cell's mood colours it.
    pub fn table(&mut self, rows: &[Vec<(String, Option<Mood>)>]) -> Result<(), Ended> {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            rows.iter()
                .filter_map(|r| r.get(column))
                .map(|c| c.0.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in rows {
            let mut line = String::new();
            for (index, (cell, mood)) in row.iter().enumerate() {
                let room = widths
                    .get(index)
                    .copied()
                    .unwrap_or(0)
                    .saturating_sub(cell.chars().count());
                line.push_str(&mood.map_or_else(|| cell.clone(), |m| self.paint(m, cell)));
                if index + 1 < row.len() {
                    line.push_str(&" ".repeat(room + 2));
                }
            }
            self.line(line.trim_end())?;
        }
        Ok(())
    }

    /// Sees to it that all was written.
    pub fn flush(&mut self) -> Result<(), Ended> {
        Ok(self.stdout.lock().flush()?)
    }
}

/// A plain cell.
pub fn cell(text: impl Into<String>) -> (String, Option<Mood>) {
    (text.into(), None)
}

/// A coloured cell.
pub fn mood(mood: Mood, text: impl Into<String>) -> (String, Option<Mood>) {
    (text.into(), Some(mood))
}

/// A row of headings.
pub fn heading(names: &[&str]) -> Vec<(String, Option<Mood>)> {
    names
        .iter()
        .map(|n| ((*n).to_owned(), Some(Mood::Strong)))
        .collect()
}

/// Says on stderr what is going on, with the time since the start.
pub struct Progress {
    start: Instant,
    quiet: bool,
}

impl Progress {
    /// Starts the clock.
    pub fn new(quiet: bool) -> Progress {
        Progress {
            start: Instant::now(),
            quiet,
        }
    }

    /// One step begins.
    pub fn step(&self, text: &str) {
        if !self.quiet {
            say(&format!("{:6.2} s  {text}", self.seconds()));
        }
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}

/// One line on stderr; nobody may be listening.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Turns the end of a command into the process's.
pub fn report(result: Result<ExitCode, Ended>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(Ended::PipeClosed) => ExitCode::SUCCESS,
        Err(Ended::Help(text)) => {
            let mut out = Out::new();
            let _ = out.text(text).and_then(|()| out.flush());
            ExitCode::SUCCESS
        }
        Err(Ended::Usage(text)) => {
            say(&format!("flannelctl: {}", text.trim_end()));
            ExitCode::from(2)
        }
        Err(Ended::Failed(error)) => {
            say(&format!("flannelctl: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
