//! What to say about arguments that were never read, and about flags that do not exist.
//!
//! Go's grammar ends silently at the first argument that is no flag. Units in the field rest on that: systemd hands
//! `${FLANNEL_OPTIONS}` over as one argument, and when its value begins with a blank the daemon starts with none of the
//! flags inside. We start as well, and say it.

use super::parse::Stop;
use super::table::{self, TABLE};

/// The warning for what was left over, or `None` when nothing was. Names flags, never values.
pub fn explain(stop: &Stop) -> Option<String> {
    let rest = stop.rest();
    let first = rest.first()?;
    let mut ignored = Vec::new();
    for word in rest.iter().flat_map(|argument| argument.split_whitespace()) {
        if let Some(name) = flag_name(word) {
            let mut text = format!("--{name}");
            if table::find(name).is_none() {
                match nearest(name) {
                    Some(close) => text.push_str(&format!(" (no such flag; did you mean --{close}?)")),
                    None => text.push_str(" (no such flag)"),
                }
            }
            if !ignored.contains(&text) {
                ignored.push(text);
            }
        }
    }
    let what = match ignored.len() {
        0 => format!("{} argument(s) after the flags are not read", rest.len()),
        _ => format!("ignored: {}", ignored.join(", ")),
    };
    let several_in_one = rest.iter().any(|argument| {
        argument
            .split_whitespace()
            .filter(|w| flag_name(w).is_some())
            .count()
            > 0
            && argument.contains(char::is_whitespace)
    });
    let why = match stop {
        Stop::Terminator(_) => "flags after -- are not read".to_owned(),
        Stop::Positional { .. } if several_in_one => {
            "the flags arrived inside one argument that is no flag: in a systemd unit write $FLANNEL_OPTIONS without \
             braces, so that it is split into words"
                .to_owned()
        }
        Stop::Positional { after_boolean: Some(flag), .. } if super::go_value::boolean(first).is_ok() => {
            format!("a boolean flag takes its value after =: write --{flag}={first}")
        }
        _ => "reading stops at the first argument that is no flag".to_owned(),
    };
    Some(format!("{what}; {why}"))
}

/// The flag that `word` would set if it stood where flags are read.
fn flag_name(word: &str) -> Option<&str> {
    let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
    let name = name.split_once('=').map_or(name, |(name, _)| name);
    let usual = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(usual)).then_some(name)
}

/// The flag whose name is closest to `name`, when it is close enough that a slip of the pen explains the difference.
pub fn nearest(name: &str) -> Option<&'static str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
    let wanted = plain(name);
    TABLE
        .iter()
        .map(|flag| (distance(&wanted, &plain(flag.name)), flag.name))
        .min()
        .filter(|(steps, flag)| *steps * 5 <= flag.len().min(name.len()) * 2 && *steps <= 3)
        .map(|(_, flag)| flag)
}

/// Edits (insert, delete, replace a character) between two short texts.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut next = Vec::with_capacity(row.len());
        next.push(i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = row.get(j).copied().unwrap_or(0) + usize::from(x != *y);
            let inserted = next.last().copied().unwrap_or(0) + 1;
            let deleted = row.get(j + 1).copied().unwrap_or(0) + 1;
            next.push(replaced.min(inserted).min(deleted));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_when_seed_000_misspells_names_the_real_flag() {
        assert_eq!(nearest("etcd-ca-file"), Some("etcd-cafile"));
        assert_eq!(nearest("etcd-cert-file"), Some("etcd-certfile"));
        assert_eq!(nearest("etcd-key-file"), Some("etcd-keyfile"));
        assert_eq!(nearest("etcd-endpoint"), Some("etcd-endpoints"));
        assert_eq!(nearest("ipmasq"), Some("ip-masq"));
        assert_eq!(nearest("log-backtrace-at"), Some("log_backtrace_at"));
        assert_eq!(nearest("listen"), None);
        assert_eq!(nearest("x"), None);
        assert_eq!(nearest(""), None);
    }

    #[test]
    fn explain_when_a_password_was_left_over_does_not_repeat_it() {
        let stop = Stop::Positional {
            rest: vec!["x".into(), "--etcd-password=hunter2".into()],
            after_boolean: None,
        };
        let text = explain(&stop).unwrap();
        assert!(text.contains("--etcd-password"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}
