//! What is said on stderr, which ends in logs and on terminals: every line in one write, and nothing in it that a terminal obeys.
//! Names in it are others': of containers, of files, of networks.

use std::io::Write;

/// Says a line.
pub fn say(text: &str) {
    let mut line = printable(text);
    line.push('\n');
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// The text with what does not print written out (`\u{1b}`). Ends of lines and tabs stay.
pub fn printable(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => plain.push(c),
            c if c.is_control() || turns_text(c) => plain.extend(c.escape_unicode()),
            c => plain.push(c),
        }
    }
    plain
}

/// Changes the direction of what follows, so that a line reads as another one.
fn turns_text(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The beginning of a text, at most so many bytes of it, saying how much is left out.
pub fn beginning(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most)
        .rev()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or(0);
    let kept = text.get(..end).unwrap_or_default();
    format!("{kept}... ({} bytes more)", text.len() - kept.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_when_it_holds_what_a_terminal_obeys_is_written_out() {
        assert_eq!(printable("a\tb\nc\u{e4}"), "a\tb\nc\u{e4}");
        assert_eq!(
            printable("\u{1b}[31mred\r\u{7}\u{9b}1m\u{202e}x\0"),
            "\\u{1b}[31mred\\u{d}\\u{7}\\u{9b}1m\\u{202e}x\\u{0}"
        );
    }

    #[test]
    fn text_when_it_is_long_is_cut_between_characters_and_says_so() {
        assert_eq!(beginning("abc", 3), "abc");
        assert_eq!(beginning("abcd", 3), "abc... (1 bytes more)");
        assert_eq!(beginning("\u{e4}\u{e4}", 3), "\u{e4}... (2 bytes more)");
        assert_eq!(beginning("\u{e4}", 0), "... (2 bytes more)");
    }
}
