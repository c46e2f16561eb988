//! What stands in a text that is no JSON, in words: the mistakes that editors, web pages and shells make unasked are named, since nobody
//! sees them in what was typed.

use super::GoJsonError;

/// What comes of a text that the parser refuses.
pub(super) fn refuse(text: &str, error: &serde_json::Error) -> GoJsonError {
    let said = error.to_string();
    GoJsonError::Syntax(match known_mistake(text, error) {
        Some(mistake) => format!("{said}: {mistake}"),
        None => said,
    })
}

fn known_mistake(text: &str, error: &serde_json::Error) -> Option<String> {
    let start = text.trim_start();
    // What is not UTF-8 has been replaced by whoever made a text of the bytes.
    let mistake = match start.chars().next() {
        None => "there is nothing in it".to_owned(),
        Some('\u{feff}') => {
            "it begins with a byte order mark (U+FEFF), which some editors write: save it as UTF-8 without"
                .to_owned()
        }
        Some('\'') => "it begins with ', a quote of the shell that has become part of it".to_owned(),
        Some('\0' | '\u{fffd}') => "it begins with bytes that are no UTF-8 text".to_owned(),
        Some('@') => format!(
            "it is the text {:?}, as if it were a file's name for curl: the file's content belongs here",
            super::shorten(start.trim_end())
        ),
        Some(_) => return found(text, error).and_then(typographic),
    };
    Some(mistake)
}

/// The character at which the parser stopped.
fn found(text: &str, error: &serde_json::Error) -> Option<char> {
    let line = text.split('\n').nth(error.line().checked_sub(1)?)?;
    // Columns are bytes, the first of them 1, and the one named may lie inside a character.
    let last = error.column().checked_sub(1)?;
    line.char_indices()
        .take_while(|(at, _)| *at <= last)
        .last()
        .map(|(_, c)| c)
}

fn typographic(found: char) -> Option<String> {
    let instead = match found {
        '\u{201c}'..='\u{201f}' | '\u{ab}' | '\u{bb}' | '\u{2033}' | '\u{2036}' => '"',
        '\u{2018}'..='\u{201b}' | '`' | '\'' => '"',
        '\u{a0}' | '\u{2007}' | '\u{202f}' | '\u{3000}' => ' ',
        _ => return None,
    };
    let code = u32::from(found);
    Some(match instead {
        ' ' => format!("there is a blank (U+{code:04X}) that is none of JSON's"),
        _ => format!("there is {found} (U+{code:04X}) where JSON wants {instead}"),
    })
}

#[cfg(test)]
mod tests {
    use crate::go_json::Fields;

    #[test]
    fn text_when_it_holds_what_nobody_typed_is_refused_with_its_name() {
        for (text, expected) in [
            (
                "{\u{201c}Network\u{201d}: 1}",
                "there is \u{201c} (U+201C) where JSON wants \"",
            ),
            (
                "{\"Network\": \u{201e}10.1.0.0/16\u{201c}}",
                "there is \u{201e} (U+201E)",
            ),
            ("{\n  \"A\": 1,\n  \u{ab}B\u{bb}: 2}", "there is \u{ab} (U+00AB)"),
            ("{'Network': 1}", "there is ' (U+0027) where JSON wants \""),
            (
                "{\u{a0}\"Network\": 1}",
                "there is a blank (U+00A0) that is none of JSON's",
            ),
            ("{\"Network\":\u{a0}1}", "there is a blank (U+00A0)"),
            ("\u{feff}{\"Network\": 1}", "a byte order mark (U+FEFF)"),
            ("'{\"Network\": 1}'", "it begins with ', a quote of the shell"),
            ("\u{fffd}\u{fffd}{\0", "no UTF-8 text"),
            ("{\0\"", "key must be a string"),
            ("@flannel-config.json\n", "\"@flannel-config.json\""),
            ("", "there is nothing in it"),
            (" \n", "there is nothing in it"),
        ] {
            let error = Fields::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn text_when_its_mistake_is_an_ordinary_one_is_refused_in_the_parsers_words_alone() {
        for text in [
            "{\"a\":1",
            "{\"a\" 1}",
            "{\"psk\":\"x\"y}",
            "{\"ä\": ö}",
            "{} \u{2014}",
        ] {
            let error = Fields::parse(text).unwrap_err().to_string();
            assert!(
                !error.contains("there is") && !error.contains("it begins"),
                "{text:?}: {error}"
            );
        }
    }
}
