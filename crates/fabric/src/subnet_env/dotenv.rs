//! The dotenv dialect in which the daemon reads its own last file, as Go flannel's library understands it.

use std::collections::HashMap;

/// Values by key, the last of several winning, and the lines that made no sense.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub values: HashMap<String, String>,
    pub problems: Vec<String>,
}

/// Reads as much as can be read: a line that makes no sense is reported and the next one begins anew.
pub(super) fn parse(text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    let mut rest = text;
    while !rest.is_empty() {
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let number = || {
            1 + text
                .len()
                .checked_sub(rest.len())
                .map_or(0, |at| newlines(text, at))
        };
        rest = match statement(line) {
            Statement::Nothing => after,
            Statement::Senseless => {
                parsed
                    .problems
                    .push(format!("line {} is neither KEY=value nor a comment", number()));
                after
            }
            Statement::Quoted { key, quote, from } => {
                match quoted(rest.get(from..).unwrap_or_default(), quote) {
                    Some((value, left)) => {
                        let value = match quote {
                            '"' => expand(&unescape(value), &parsed.values),
                            _ => value.to_owned(),
                        };
                        parsed.values.insert(key.to_owned(), value);
                        left
                    }
                    None => {
                        parsed
                            .problems
                            .push(format!("line {} has no closing quote", number()));
                        after
                    }
                }
            }
            Statement::Plain { key, value } => {
                let value = expand(value, &parsed.values);
                parsed.values.insert(key.to_owned(), value);
                after
            }
        };
    }
    parsed
}

fn newlines(text: &str, before: usize) -> usize {
    text.bytes().take(before).filter(|byte| *byte == b'\n').count()
}

/// The key a line sets, if it sets one.
pub(super) fn key_of(line: &str) -> Option<&str> {
    split(line).map(|(key, _)| key)
}

enum Statement<'a> {
    Nothing,
    Senseless,
    Plain {
        key: &'a str,
        value: &'a str,
    },
    /// The value starts behind the quote at byte `from` and may go on over several lines.
    Quoted {
        key: &'a str,
        quote: char,
        from: usize,
    },
}

fn statement(line: &str) -> Statement<'_> {
    let trimmed = line.trim();
    if trimmed.is_empty() || trimmed.starts_with('#') {
        return Statement::Nothing;
    }
    let Some((key, value)) = split(line) else {
        return Statement::Senseless;
    };
    match value.chars().next() {
        Some(quote @ ('"' | '\'')) => Statement::Quoted {
            key,
            quote,
            from: line.len() - value.len() + 1,
        },
        _ => Statement::Plain {
            key,
            value: without_comment(value),
        },
    }
}

/// Key and the rest of the line behind `=` or `:` and blanks.
fn split(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_start();
    let line = match line.strip_prefix("export") {
        Some(after) if after.starts_with([' ', '\t']) => after.trim_start(),
        _ => line,
    };
    let (key, value) = line.split_once(['=', ':'])?;
    let key = key.trim_end();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    (!key.is_empty() && key.chars().all(plain)).then(|| (key, value.trim_start_matches([' ', '\t'])))
}

fn without_comment(value: &str) -> &str {
    let mut blank = true;
    for (at, c) in value.char_indices() {
        if c == '#' && blank {
            return value.get(..at).unwrap_or_default().trim();
        }
        blank = c.is_whitespace();
    }
    value.trim()
}

/// Splits at the next quote that no backslash precedes.
fn quoted(text: &str, quote: char) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if c == quote && !escaped {
            return Some((text.get(..at)?, text.get(at + c.len_utf8()..)?));
        }
        escaped = c == '\\' && !escaped;
    }
    None
}

/// Resolves backslashes but for `\$`, which [`expand`] still has to see.
fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('$') => out.push_str("\\$"),
            Some(other) => out.push(other),
            None => out.push('\\'),
        }
    }
    out
}

/// Replaces `$NAME` and `${NAME}` by what an earlier line set, or by nothing.
fn expand(value: &str, known: &HashMap<String, String>) -> String {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('$') {
        if let Some(before) = before.strip_suffix('\\') {
            out.push_str(before);
            out.push('$');
            rest = after;
            continue;
        }
        out.push_str(before);
        let braced = after.strip_prefix('{');
        let name_on = braced.unwrap_or(after);
        let end = name_on
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(name_on.len());
        let (name, left) = name_on.split_at(end);
        if name.is_empty() {
            out.push('$');
            rest = after;
            continue;
        }
        out.push_str(known.get(name).map_or("", String::as_str));
        rest = match braced {
            Some(_) => left.strip_prefix('}').unwrap_or(left),
            None => left,
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Option<String> {
        let parsed = parse(&format!("A=1\nB_2=two\n{text}\n"));
        assert_eq!(parsed.problems, Vec::<String>::new(), "{text}");
        parsed.values.get("X").cloned()
    }

    #[test]
    fn value_when_plain_then_up_to_a_comment_and_without_the_blanks_around() {
        for (text, expected) in [
            ("X=a b", "a b"),
            ("X =  a  ", "a"),
            ("X: a", "a"),
            ("X=", ""),
            ("X=a#b", "a#b"),
            ("X=a #b", "a"),
            ("X=#b", ""),
            ("X=a'b'", "a'b'"),
            ("\texport X=a", "a"),
            ("export\tX=a", "a"),
            ("X=a\nX=b", "b"),
        ] {
            assert_eq!(value(text).as_deref(), Some(expected), "{text:?}");
        }
        for text in ["", "# X=a", "  # X", "exportX=a", "x=a"] {
            assert_eq!(value(text), None, "{text:?}");
        }
    }

    #[test]
    fn value_when_quoted_then_escapes_and_variables_count_in_double_quotes_only() {
        for (text, expected) in [
            (r#"X="a # b""#, "a # b"),
            ("X=\"a\nb\"", "a\nb"),
            (r#"X="a\nb\rc\td\\e\"f""#, "a\nb\rctd\\e\"f"),
            (r#"X="\\""#, "\\"),
            (r#"X="$A-${B_2}""#, "1-two"),
            (r#"X="\$A""#, "$A"),
            (r"X='$A\n'", r"$A\n"),
            (r#"X = "a" # b"#, "a"),
        ] {
            assert_eq!(value(text).as_deref(), Some(expected), "{text:?}");
        }
    }

    #[test]
    fn variables_when_named_then_what_an_earlier_line_set_or_nothing() {
        for (text, expected) in [
            ("X=$A", "1"),
            ("X=<$B_2>", "<two>"),
            ("X=${A}0", "10"),
            ("X=$A.$A", "1.1"),
            ("X=$A0", ""),
            ("X=${A", "1"),
            ("X=a$", "a$"),
            ("X=$$A", "$1"),
            ("X=$-", "$-"),
            (r"X=\$A", "$A"),
            ("X=$LATER\nLATER=1", ""),
        ] {
            assert_eq!(value(text).as_deref(), Some(expected), "{text:?}");
        }
    }

    #[test]
    fn line_when_it_makes_no_sense_then_its_number_is_said_and_the_next_begins_anew() {
        let parsed = parse("A=1\n\nwhat is this\nB=\"x\nC=3\n=4\na-b=5\nD.e_f=6");
        assert_eq!(
            parsed.problems,
            [
                "line 3 is neither KEY=value nor a comment",
                "line 4 has no closing quote",
                "line 6 is neither KEY=value nor a comment",
                "line 7 is neither KEY=value nor a comment",
            ]
        );
        let mut keys: Vec<&str> = parsed.values.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["A", "C", "D.e_f"]);
        assert_eq!(key_of(" export A.b_C : 1"), Some("A.b_C"));
        assert_eq!(key_of("exported=1"), Some("exported"));
        assert_eq!(key_of("no key"), None);
    }
}
