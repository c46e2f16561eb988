//! Text of others for people: what a terminal, or who reads a log, could take for something else is shown escaped.
//!
//! Keys, values and names come from registries, kernels and files that others write. Control characters move the cursor and paint;
//! characters without a width hide, and those that turn the direction around make one thing look like another.

use std::fmt::{self, Write};

/// Whether a character shows as what it is.
pub fn is_printable(c: char) -> bool {
    // `escape_debug` knows Unicode's categories; these three it escapes for the sake of source text.
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1
}

/// A text in which everything that does not show as what it is, line ends included, is escaped as in Rust's sources.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if is_printable(c) {
                f.write_char(c)?;
            } else {
                write!(f, "{}", c.escape_debug())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_when_it_shows_as_what_it_is_then_as_it_is() {
        for text in [
            "",
            "subnets/10.5.1.0-24&fd00::-64",
            r#"a "b" 'c' \d"#,
            "größer 日本 ✓ 🦀",
        ] {
            assert_eq!(Escaped(text).to_string(), text);
        }
    }

    #[test]
    fn text_when_it_would_move_paint_hide_or_turn_around_then_escaped() {
        for (text, shown) in [
            ("\x1b[31mred\x1b[0m", r"\u{1b}[31mred\u{1b}[0m"),
            ("a\nb\r\t\0", r"a\nb\r\t\0"),
            ("\x07\x7f\u{9b}2J", r"\u{7}\u{7f}\u{9b}2J"),
            ("\u{202e}gnp.exe", r"\u{202e}gnp.exe"),
            (
                "a\u{200b}\u{2028}\u{feff}\u{ad}",
                r"a\u{200b}\u{2028}\u{feff}\u{ad}",
            ),
            ("\u{e000}\u{10ffff}\u{301}", r"\u{e000}\u{10ffff}\u{301}"),
        ] {
            assert_eq!(Escaped(text).to_string(), shown);
        }
    }
}
