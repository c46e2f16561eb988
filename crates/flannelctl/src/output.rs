//! Writing to people and to programs: a stdout that survives a closed pipe, colour only on a terminal.
//!
//! Most of what is shown others have written. It is [escaped](Escaped) here, at the one place that prints; nobody else has to
//! think of it.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{IsTerminal, Stdout, Write};
use std::process::ExitCode;
use std::time::Instant;

use fabric::causes::in_full;
use fabric::printable::{Escaped, is_printable};

use crate::arguments::Ended;

/// Standard output.
pub struct Out {
    stdout: Stdout,
    colour: bool,
    terminal: bool,
    /// Stands around painted words until they are written, as `<mark><letter>word<mark>0`. It is one of thousands, drawn when the
    /// process starts, so that no text of others paints.
    mark: char,
}

/// Characters that are nobody's: the supplementary private use area A.
const MARKS: std::ops::RangeInclusive<u32> = 0xf_0000..=0xf_fffd;

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

impl Mood {
    fn letter(self) -> char {
        match self {
            Mood::Good => 'g',
            Mood::Warn => 'w',
            Mood::Bad => 'b',
            Mood::Faint => 'f',
            Mood::Strong => 's',
        }
    }

    /// How a terminal is told, by the letter; `0` ends it.
    fn code(letter: char) -> Option<&'static str> {
        match letter {
            'g' => Some("32"),
            'w' => Some("33"),
            'b' => Some("31;1"),
            'f' => Some("2"),
            's' => Some("1"),
            '0' => Some("0"),
            _ => None,
        }
    }
}

impl Out {
    /// Takes stdout.
    pub fn new() -> Out {
        let stdout = std::io::stdout();
        let terminal = stdout.is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        let many = u64::from(MARKS.end() - MARKS.start());
        let drawn = u32::try_from(RandomState::new().hash_one(0) % many).unwrap_or(0);
        Out {
            stdout,
            colour,
            terminal,
            mark: char::from_u32(MARKS.start() + drawn).unwrap_or('\u{f0000}'),
        }
    }

    /// Writes text of our own, of any number of lines.
    pub fn text(&mut self, text: &str) -> Result<(), Ended> {
        Ok(self.stdout.lock().write_all(text.as_bytes())?)
    }

    /// Writes one line.
    pub fn line(&mut self, text: &str) -> Result<(), Ended> {
        let mut line = self.shown(text);
        line.push('\n');
        self.text(&line)
    }

    /// Writes a value and a line end: to a terminal as something to look at, to anything else byte for byte.
    pub fn value(&mut self, value: &[u8]) -> Result<(), Ended> {
        if self.terminal {
            return self.line(&String::from_utf8_lossy(value));
        }
        self.stdout.lock().write_all(value)?;
        self.text("\n")
    }

    /// Writes a value as JSON.
    pub fn json(&mut self, value: &impl serde::Serialize) -> Result<(), Ended> {
        let text = serde_json::to_string_pretty(value)?;
        let mut shown = String::with_capacity(text.len() + 1);
        for c in text.chars() {
            if c == '\n' || is_printable(c) {
                shown.push(c);
            } else {
                // What is left of these stands in strings.
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    shown.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
        shown.push('\n');
        self.text(&shown)
    }

    /// A word in its colour.
    pub fn paint(&self, mood: Mood, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let (mark, letter) = (self.mark, mood.letter());
        format!("{mark}{letter}{text}{mark}0")
    }

    /// A text with its colours, and without what a terminal must not see.
    fn shown(&self, text: &str) -> String {
        let mut parts = text.split(self.mark);
        let mut shown = Escaped(parts.next().unwrap_or_default()).to_string();
        for part in parts {
            let mut rest = part.chars();
            let code = rest.next().and_then(Mood::code);
            if let Some(code) = code.filter(|_| self.colour) {
                shown.push_str(&format!("\u{1b}[{code}m"));
            }
            shown.push_str(&Escaped(rest.as_str()).to_string());
        }
        shown
    }

    /// Rows in columns; the first row is the heading. A cell's mood colours it.
    pub fn table(&mut self, rows: &[Vec<(String, Option<Mood>)>]) -> Result<(), Ended> {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let shown = |cell: &(String, Option<Mood>)| Escaped(&cell.0).to_string().chars().count();
        let width = |column: usize| {
            rows.iter()
                .filter_map(|r| r.get(column))
                .map(shown)
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in rows {
            let mut line = String::new();
            for (index, all) in row.iter().enumerate() {
                let (cell, mood) = all;
                let room = widths.get(index).copied().unwrap_or(0).saturating_sub(shown(all));
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

/// Lines on stderr; nobody may be listening.
pub fn say(text: &str) {
    let lines: Vec<String> = text.split('\n').map(|line| Escaped(line).to_string()).collect();
    let _ = writeln!(std::io::stderr().lock(), "{}", lines.join("\n"));
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
            say(&format!("flannelctl: {}", in_full(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(colour: bool) -> Out {
        Out { colour, ..Out::new() }
    }

    #[test]
    fn text_when_it_is_others_then_escaped_and_only_what_we_paint_has_colour() {
        let theirs = "\x1b[31mred\x07\nnext \u{202e}";
        let escaped = r"\u{1b}[31mred\u{7}\nnext \u{202e}";
        for colour in [false, true] {
            let out = out(colour);
            assert_eq!(out.shown(theirs), escaped);
            let painted = out.shown(&format!("a {} b", out.paint(Mood::Bad, theirs)));
            let (on, off) = if colour {
                ("\x1b[31;1m", "\x1b[0m")
            } else {
                ("", "")
            };
            assert_eq!(painted, format!("a {on}{escaped}{off} b"));
        }
        // Other marks than this process's are nobody's.
        let out = out(true);
        let other = MARKS
            .filter_map(char::from_u32)
            .find(|mark| *mark != out.mark)
            .unwrap();
        assert!(!out.shown(&format!("{other}gx")).contains('\x1b'));
    }

    #[test]
    fn moods_when_painted_then_each_in_a_colour_of_its_own() {
        let all = [Mood::Good, Mood::Warn, Mood::Bad, Mood::Faint, Mood::Strong];
        let codes = all.map(|mood| Mood::code(mood.letter()).unwrap());
        assert_eq!(codes, ["32", "33", "31;1", "2", "1"]);
        assert_eq!(Mood::code('x'), None);
    }
}
