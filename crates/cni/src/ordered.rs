//! JSON for output, with the key order the caller gives.
//!
//! Results up to 0.4.0 have a fixed key order and those from 1.0.0 on an alphabetical one, because Go takes the latter through
//! a map; a tree that keeps its order serves both.

use fabric::go_json::write_quoted;

/// A JSON tree whose objects keep the order of their fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ordered {
    /// A string.
    Text(String),
    /// A whole number.
    Number(i64),
    /// An array.
    List(Vec<Ordered>),
    /// An object.
    Object(Vec<(&'static str, Ordered)>),
}

impl Ordered {
    /// A string.
    pub fn text(text: impl Into<String>) -> Ordered {
        Ordered::Text(text.into())
    }

    /// The same tree with every object's fields in alphabetical order.
    pub fn sorted(self) -> Ordered {
        match self {
            Ordered::List(items) => Ordered::List(items.into_iter().map(Ordered::sorted).collect()),
            Ordered::Object(fields) => {
                let mut fields: Vec<_> = fields
                    .into_iter()
                    .map(|(name, value)| (name, value.sorted()))
                    .collect();
                fields.sort_by_key(|(name, _)| *name);
                Ordered::Object(fields)
            }
            leaf => leaf,
        }
    }

    /// The text with four blanks per level and no newline at the end (Go: `MarshalIndent(v, "", "    ")`).
    pub fn indented(&self) -> String {
        let mut out = String::with_capacity(512);
        self.write(&mut out, Some(0));
        out
    }

    /// The text without blanks.
    pub fn compact(&self) -> String {
        let mut out = String::with_capacity(256);
        self.write(&mut out, None);
        out
    }

    fn write(&self, out: &mut String, level: Option<usize>) {
        match self {
            Ordered::Text(text) => write_quoted(out, text),
            Ordered::Number(number) => out.push_str(&number.to_string()),
            Ordered::List(items) => {
                write_all(out, level, ['[', ']'], items, |out, item, inner| {
                    item.write(out, inner)
                });
            }
            Ordered::Object(fields) => {
                write_all(out, level, ['{', '}'], fields, |out, (name, value), inner| {
                    write_quoted(out, name);
                    out.push_str(if inner.is_some() { ": " } else { ":" });
                    value.write(out, inner);
                });
            }
        }
    }
}

fn write_all<T>(
    out: &mut String,
    level: Option<usize>,
    [open, close]: [char; 2],
    items: &[T],
    write: impl Fn(&mut String, &T, Option<usize>),
) {
    let inner = level.map(|level| level + 1);
    out.push(open);
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        break_line(out, inner);
        write(out, item, inner);
    }
    if !items.is_empty() {
        break_line(out, level);
    }
    out.push(close);
}

fn break_line(out: &mut String, level: Option<usize>) {
    if let Some(level) = level {
        out.push('\n');
        for _ in 0..level {
            out.push_str("    ");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tree_when_printed_has_gos_layout_for_empty_and_nested() {
        let tree = Ordered::Object(vec![
            (
                "b",
                Ordered::List(vec![Ordered::Number(1), Ordered::Object(vec![])]),
            ),
            ("a", Ordered::text("x\"&")),
        ]);
        assert_eq!(tree.compact(), r#"{"b":[1,{}],"a":"x\"\u0026"}"#);
        assert_eq!(
            tree.sorted().indented(),
            "{\n    \"a\": \"x\\\"\\u0026\",\n    \"b\": [\n        1,\n        {}\n    ]\n}"
        );
    }
}
