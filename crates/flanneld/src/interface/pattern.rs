//! Regular expressions as Go (RE2) reads them.
//!
//! Crate `regex` is of the same family: linear time, no look-around, unanchored search. Two spellings differ and are
//! translated: `\Q…\E` (literal text), and `{,n}`, which RE2 takes literally.

use regex::Regex;

/// Compiles a pattern; the error is one line.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    Regex::new(&translate(pattern)).map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => "the compiled expression is too large".to_owned(),
        // The text is a drawing of several lines whose last one says what is wrong.
        other => {
            let text = other.to_string();
            let last = text.lines().last().unwrap_or("not a regular expression").trim();
            last.strip_prefix("error: ").unwrap_or(last).to_owned()
        }
    })
}

fn translate(pattern: &str) -> String {
    let mut translated = String::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some(at) = rest.find(['\\', '{']) {
        let (before, special) = rest.split_at(at);
        translated.push_str(before);
        if let Some(literal) = special.strip_prefix("\\Q") {
            let (text, after) = literal.split_once("\\E").unwrap_or((literal, ""));
            translated.push_str(&regex::escape(text));
            rest = after;
        } else if let Some(after) = special.strip_prefix("{,") {
            translated.push_str("\\{,");
            rest = after;
        } else {
            let length = special
                .chars()
                .take(if special.starts_with('\\') { 2 } else { 1 })
                .map(char::len_utf8)
                .sum();
            let (kept, after) = special.split_at(length);
            translated.push_str(kept);
            rest = after;
        }
    }
    translated.push_str(rest);
    translated
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(serde::Deserialize)]
    struct Recorded {
        pattern: String,
        matches: Option<Vec<String>>,
    }

    /// What Go's package `regexp` matched of these texts, per pattern; no list where it refused the pattern.
    #[test]
    fn compile_when_go_takes_a_pattern_matches_what_go_matched() {
        let texts = [
            "eth0",
            "eth10",
            "ens192",
            "10.0.0.1",
            "10.0.0.255",
            "172.18.0.5",
            "172x18x5",
            "fd00::1",
            "fe80::1",
            "lo",
            "",
            "docker0",
        ];
        let recorded = include_str!("../../tests/data/go-regexp.jsonl");
        let mut compared = 0;
        for line in recorded.lines() {
            let case: Recorded = serde_json::from_str(line).unwrap();
            let Some(expected) = case.matches else { continue };
            let regex = compile(&case.pattern).unwrap();
            let found: Vec<&str> = texts.into_iter().filter(|text| regex.is_match(text)).collect();
            assert_eq!(found, expected, "{}", case.pattern);
            compared += 1;
        }
        assert!(compared > 25);
    }

    #[test]
    fn compile_when_it_is_no_pattern_says_why_on_one_line() {
        for pattern in ["[", "(", "(?=e)", "\\1", "eth{2,1}", "\\"] {
            let why = compile(pattern).unwrap_err();
            assert!(!why.contains('\n') && !why.is_empty(), "{why}");
        }
    }

    proptest! {
        #[test]
        fn compile_when_given_anything_never_panics(pattern in "(?s).{0,20}") {
            let _ = compile(&pattern);
        }

        #[test]
        fn compile_when_text_is_quoted_finds_it(text in "[ -~]{0,12}") {
            prop_assume!(!text.contains("\\E") && !text.ends_with('\\'));
            let regex = compile(&format!("^\\Q{text}\\E$")).unwrap();
            prop_assert!(regex.is_match(&text));
        }
    }
}
