//! JSON as Go's `encoding/json` reads and writes it, where that differs from what serde does.
//!
//! Network config, lease values, node annotations and CNI configuration were all defined by Go structs. Their readers match
//! field names without regard to case, let the last of several equal names win and take `null` for absence; their writer
//! escapes five characters more than JSON asks for. The values stay raw text until somebody asks for a type, so that an error
//! can name the field, what it held and what was expected.

mod syntax;

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Longest piece of a value that an error message repeats, in characters.
const QUOTED: usize = 80;

/// What is wrong with a JSON text or one of its fields.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GoJsonError {
    /// The text is no JSON, is cut off, or goes on after its end.
    #[error("not valid JSON: {0}")]
    Syntax(String),
    /// The text is JSON, but no object.
    #[error("expected a JSON object, found {0}")]
    NotObject(String),
    /// A field holds something its reader cannot take.
    #[error(transparent)]
    Field(#[from] FieldError),
}

/// A field holds something its reader cannot take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}: expected {expected}")]
pub struct FieldError {
    /// The field's name as documented, with the names of the objects around it (`Backend.Type`, `ipam.ranges[0]`).
    pub field: String,
    /// The field's JSON text, shortened when long.
    pub value: String,
    /// What would have been right.
    pub expected: &'static str,
}

/// A JSON object as its fields in the order of the text, values unread.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    inside: String,
    pairs: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> Fields<'a> {
    /// Splits an object into fields. Blanks may surround it, nothing else.
    ///
    /// # Errors
    ///
    /// When the text is no JSON or no object.
    pub fn parse(text: &'a str) -> Result<Fields<'a>, GoJsonError> {
        Fields::parse_inside(text, String::new())
    }

    pub(crate) fn parse_inside(text: &'a str, inside: String) -> Result<Fields<'a>, GoJsonError> {
        let Pairs(pairs) = serde_json::from_str(text).map_err(|error| match serde_json::from_str(text) {
            Ok::<&RawValue, _>(other) if !other.get().starts_with('{') => {
                GoJsonError::NotObject(show(other.get()))
            }
            _ => syntax::refuse(text, &error),
        })?;
        Ok(Fields { inside, pairs })
    }

    /// Every field in the order of the text, duplicates and `null` included.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.pairs.iter().map(|(name, raw)| (name.as_ref(), *raw))
    }

    /// The field's JSON text with `null` told from absence: the last field of that name, case not minded.
    pub fn raw(&self, name: &str) -> Option<&'a str> {
        self.pairs
            .iter()
            .rev()
            .find(|(have, _)| equal_fold(have, name))
            .map(|(_, raw)| raw.get())
    }

    /// The field's JSON text; `null` is absence.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.raw(name).filter(|raw| *raw != "null")
    }

    /// A number without sign, point or exponent that fits 32 bits.
    ///
    /// # Errors
    ///
    /// When it is something else; absence is none.
    pub fn u32(&self, name: &str) -> Result<Option<u32>, GoJsonError> {
        self.typed(
            name,
            "a whole number from 0 to 4294967295, without quotes",
            |raw| {
                raw.bytes()
                    .all(|b| b.is_ascii_digit())
                    .then(|| raw.parse().ok())?
            },
        )
    }

    /// A whole number with an optional sign, without point or exponent, that fits 64 bits.
    ///
    /// # Errors
    ///
    /// When it is something else; absence is none.
    pub fn i64(&self, name: &str) -> Result<Option<i64>, GoJsonError> {
        self.typed(name, "a whole number, without quotes", |raw| raw.parse().ok())
    }

    /// `true` or `false`.
    ///
    /// # Errors
    ///
    /// When it is something else; absence is none.
    pub fn bool(&self, name: &str) -> Result<Option<bool>, GoJsonError> {
        self.typed(name, "true or false, without quotes", |raw| raw.parse().ok())
    }

    /// A string.
    ///
    /// # Errors
    ///
    /// When it is something else; absence is none.
    pub fn string(&self, name: &str) -> Result<Option<String>, GoJsonError> {
        self.typed(name, "a string", unquote)
    }

    /// A string that is an IP address of either family.
    ///
    /// # Errors
    ///
    /// When it is something else; absence is none.
    pub fn ip(&self, name: &str) -> Result<Option<IpAddr>, GoJsonError> {
        self.typed(name, "an IP address in quotes", |raw| unquote(raw)?.parse().ok())
    }

    /// A string that is an IPv4 address; one mapped into IPv6 (`::ffff:192.0.2.1`) is one too.
    ///
    /// # Errors
    ///
    /// When it is something else; absence is none.
    pub fn ipv4(&self, name: &str) -> Result<Option<Ipv4Addr>, GoJsonError> {
        self.typed(name, "an IPv4 address in quotes", |raw| {
            match unquote(raw)?.parse().ok()? {
                IpAddr::V4(ip) => Some(ip),
                IpAddr::V6(ip) => ip.to_ipv4_mapped(),
            }
        })
    }

    /// A string that is an IPv6 address and not an IPv4 address mapped into IPv6.
    ///
    /// # Errors
    ///
    /// When it is something else; absence is none.
    pub fn ipv6(&self, name: &str) -> Result<Option<Ipv6Addr>, GoJsonError> {
        self.typed(name, "an IPv6 address in quotes", |raw| {
            unquote(raw)?
                .parse()
                .ok()
                .filter(|ip: &Ipv6Addr| ip.to_ipv4_mapped().is_none())
        })
    }

    /// A string that is a prefix of either family, host bits kept.
    ///
    /// # Errors
    ///
    /// When it is something else; absence is none.
    pub fn cidr(&self, name: &str) -> Result<Option<IpNet>, GoJsonError> {
        self.typed(name, "a CIDR in quotes, such as \"10.0.0.0/8\"", |raw| {
            parse_cidr(&unquote(raw)?)
        })
    }

    /// A nested object, whose errors name this field too.
    ///
    /// # Errors
    ///
    /// When it is something else; absence is none.
    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>, GoJsonError> {
        let Some(raw) = self.get(name) else {
            return Ok(None);
        };
        if !raw.starts_with('{') {
            return Err(self.wrong(name, &show(raw), "an object"));
        }
        let inside = format!("{}{name}.", self.inside);
        Fields::parse_inside(raw, inside).map(Some)
    }

    /// The error for a field whose type is right and whose value is not.
    pub fn wrong(&self, name: &str, value: &str, expected: &'static str) -> GoJsonError {
        GoJsonError::Field(FieldError {
            field: format!("{}{name}", self.inside),
            value: match is_secret(name) {
                true => "not shown".to_owned(),
                false => shorten(value),
            },
            expected,
        })
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, GoJsonError> {
        let Some(raw) = self.get(name) else {
            return Ok(None);
        };
        read(raw).map(Some).ok_or_else(|| self.wrong(name, raw, expected))
    }
}

/// What is no object, in a message: a text or a list may hold all that an object would, keys too.
fn show(raw: &str) -> String {
    match raw.chars().next() {
        Some('"') => "a string".to_owned(),
        Some('[') if raw.len() > "[null]".len() => "a list".to_owned(),
        _ => shorten(raw),
    }
}

/// Whether a field's value is nobody's to read.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["psk", "secret", "password", "token"]
        .iter()
        .any(|word| name.contains(word))
}

/// Reads a prefix as Go's `net.ParseCIDR` does: decimal length with leading zeros allowed, host bits kept here.
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let length = parse_length(length)?;
    match address.parse().ok()? {
        IpAddr::V4(ip) => Ipv4Net::new(ip, length).ok().map(IpNet::V4),
        IpAddr::V6(ip) => Ipv6Net::new(ip, length).ok().map(IpNet::V6),
    }
}

/// Reads a prefix length: decimal digits and nothing else.
pub(crate) fn parse_length(text: &str) -> Option<u8> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// A JSON text without blanks between its tokens and with Go's escapes inside its strings: what Go makes of a raw value.
///
/// # Errors
///
/// When the text is no JSON.
pub fn compact(text: &str) -> Result<String, GoJsonError> {
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| syntax::refuse(text, &error))?;
    let mut out = String::with_capacity(raw.get().len());
    write_compact(&mut out, raw.get());
    Ok(out)
}

/// Appends valid JSON without blanks between its tokens and with Go's escapes; the same when done twice.
pub(crate) fn write_compact(out: &mut String, text: &str) {
    let (mut in_string, mut escaped) = (false, false);
    for c in text.chars() {
        if !in_string && matches!(c, ' ' | '\t' | '\n' | '\r') {
            continue;
        }
        match html_escape(c) {
            Some(escape) => out.push_str(escape),
            None => out.push(c),
        }
        if in_string && !escaped && c == '\\' {
            escaped = true;
            continue;
        }
        if c == '"' && !escaped {
            in_string = !in_string;
        }
        escaped = false;
    }
}

/// Appends a string in quotes as Go's `json.Marshal` writes it.
pub fn write_quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if u32::from(c) < 0x20 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => match html_escape(c) {
                Some(escape) => out.push_str(escape),
                None => out.push(c),
            },
        }
    }
    out.push('"');
}

fn html_escape(c: char) -> Option<&'static str> {
    match c {
        '<' => Some("\\u003c"),
        '>' => Some("\\u003e"),
        '&' => Some("\\u0026"),
        '\u{2028}' => Some("\\u2028"),
        '\u{2029}' => Some("\\u2029"),
        _ => None,
    }
}

fn unquote(raw: &str) -> Option<String> {
    serde_json::from_str(raw).ok()
}

/// Go's field name matching: ASCII case, and the two letters outside ASCII that fold into it.
pub fn equal_fold(a: &str, b: &str) -> bool {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    a.chars().map(fold).eq(b.chars().map(fold))
}

/// A value for a message: at most 80 characters, the rest as `…`.
pub fn shorten(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

struct Pairs<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Pairs<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Pairs<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some((Name(name), raw)) = map.next_entry()? {
                    pairs.push((name, raw));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// A field name that borrows from the text where it holds no escape.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field name")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_when_repeated_in_another_case_give_the_last() {
        let fields = Fields::parse(r#" {"SubnetLen":20,"x":1,"subnetLEN":21} "#).unwrap();
        assert_eq!(fields.u32("SubnetLen"), Ok(Some(21)));
        assert_eq!(fields.u32("SubnetMin"), Ok(None));
    }

    #[test]
    fn numbers_when_not_plain_digits_are_refused_with_field_value_and_expectation() {
        for bad in ["24.0", "-1", "\"24\"", "2e1", "true", "4294967296", "{}"] {
            let text = format!("{{\"SubnetLen\":{bad}}}");
            let error = Fields::parse(&text)
                .unwrap()
                .u32("SubnetLen")
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with(&format!("SubnetLen is {bad}: expected a whole number")),
                "{error}"
            );
        }
        assert_eq!(
            Fields::parse(r#"{"SubnetLen":null}"#).unwrap().u32("SubnetLen"),
            Ok(None)
        );
    }

    #[test]
    fn parse_when_text_is_no_single_object_says_what_it_is() {
        assert_eq!(
            Fields::parse("[1]").unwrap_err(),
            GoJsonError::NotObject("[1]".into())
        );
        assert_eq!(
            Fields::parse("null").unwrap_err(),
            GoJsonError::NotObject("null".into())
        );
        for bad in ["", "{", "{} x", "{\"a\":}", "{'a':1}", "\u{feff}{}"] {
            assert!(
                matches!(Fields::parse(bad), Err(GoJsonError::Syntax(_))),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn nested_objects_when_wrong_inside_name_the_whole_path() {
        let fields = Fields::parse(r#"{"Backend":{"Type":5}}"#).unwrap();
        let inner = fields.object("backend").unwrap().unwrap();
        assert_eq!(
            inner.string("Type").unwrap_err().to_string(),
            "backend.Type is 5: expected a string"
        );
        let fields = Fields::parse(r#"{"Backend":"vxlan"}"#).unwrap();
        assert!(
            fields
                .object("Backend")
                .unwrap_err()
                .to_string()
                .contains("expected an object")
        );
    }

    #[test]
    fn compact_when_given_blanks_and_markup_gives_the_bytes_go_writes() {
        let text = " { \"a b\" : \"<\\\" & >\u{2028}\\\\\" , \"n\" : [ 1 , 2.50 ] } ";
        let once = compact(text).unwrap();
        assert_eq!(
            once,
            "{\"a b\":\"\\u003c\\\" \\u0026 \\u003e\\u2028\\\\\",\"n\":[1,2.50]}"
        );
        assert_eq!(compact(&once).unwrap(), once);
        assert!(compact("{]").is_err());
    }

    #[test]
    fn quoted_when_holding_control_characters_escapes_as_go() {
        let mut out = String::new();
        write_quoted(&mut out, "a\"\\\n\r\t\u{8}\u{c}\u{1}\u{7f}<é");
        assert_eq!(out, "\"a\\\"\\\\\\n\\r\\t\\b\\f\\u0001\u{7f}\\u003cé\"");
    }

    #[test]
    fn cidr_when_host_bits_are_set_keeps_them_and_refuses_what_go_refuses() {
        assert_eq!(parse_cidr("10.1.2.3/16").unwrap().to_string(), "10.1.2.3/16");
        assert_eq!(parse_cidr("10.1.0.0/016").unwrap().prefix_len(), 16);
        for bad in [
            "010.0.0.0/16",
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "fd00::/129",
            "/8",
            "10.0/8",
        ] {
            assert_eq!(parse_cidr(bad), None, "{bad}");
        }
    }

    #[test]
    fn fields_when_asked_for_a_type_then_read_or_named() {
        let text = r#"{"n":-7,"b":false,"s":"x","ip":"192.0.2.1","six":"2001:db8::1","mapped":"::ffff:192.0.2.1",
            "net":"10.1.2.3/16","nothing":null,"o":{"a":1}}"#;
        let fields = Fields::parse(text).unwrap();
        assert_eq!(fields.i64("n"), Ok(Some(-7)));
        assert_eq!(fields.bool("b"), Ok(Some(false)));
        assert_eq!(fields.string("s"), Ok(Some("x".to_owned())));
        assert_eq!(fields.ip("ip"), Ok("192.0.2.1".parse().ok()));
        assert_eq!(fields.ip("six"), Ok("2001:db8::1".parse().ok()));
        assert_eq!(fields.ipv4("ip"), Ok("192.0.2.1".parse().ok()));
        assert_eq!(fields.ipv4("mapped"), Ok("192.0.2.1".parse().ok()));
        assert_eq!(fields.ipv6("six"), Ok("2001:db8::1".parse().ok()));
        assert_eq!(fields.cidr("net"), Ok("10.1.2.3/16".parse().ok()));
        assert_eq!(fields.object("o").unwrap().unwrap().u32("a"), Ok(Some(1)));
        assert_eq!(
            (fields.raw("NOTHING"), fields.get("nothing")),
            (Some("null"), None)
        );
        assert_eq!((fields.raw("none"), fields.get("s")), (None, Some("\"x\"")));
        for absent in ["nothing", "none"] {
            assert_eq!((fields.i64(absent), fields.bool(absent)), (Ok(None), Ok(None)));
            assert_eq!((fields.ip(absent), fields.cidr(absent)), (Ok(None), Ok(None)));
            assert!(fields.object(absent).unwrap().is_none());
        }
        let all = [
            fields.i64("s").err(),
            fields.bool("s").err(),
            fields.string("n").err(),
            fields.ip("s").err(),
            fields.ipv4("six").err(),
            fields.ipv6("mapped").err(),
            fields.cidr("ip").err(),
        ];
        let all: Vec<String> = all.into_iter().flatten().map(|error| error.to_string()).collect();
        assert_eq!(
            all,
            [
                "s is \"x\": expected a whole number, without quotes",
                "s is \"x\": expected true or false, without quotes",
                "n is -7: expected a string",
                "s is \"x\": expected an IP address in quotes",
                "six is \"2001:db8::1\": expected an IPv4 address in quotes",
                "mapped is \"::ffff:192.0.2.1\": expected an IPv6 address in quotes",
                "ip is \"192.0.2.1\": expected a CIDR in quotes, such as \"10.0.0.0/8\"",
            ]
        );
    }

    #[test]
    fn fields_when_walked_then_all_in_the_order_of_the_text() {
        let fields = Fields::parse(r#"{"b":1,"a":null,"B":"x"}"#).unwrap();
        let all: Vec<(&str, &str)> = fields.iter().map(|(name, raw)| (name, raw.get())).collect();
        assert_eq!(all, [("b", "1"), ("a", "null"), ("B", "\"x\"")]);
    }

    /// Half of a surrogate pair: an object, as far as its braces go.
    #[test]
    fn parse_when_a_name_cannot_be_read_then_it_is_the_syntax() {
        let error = Fields::parse(r#"{"\ud800":1}"#).unwrap_err();
        assert!(matches!(error, GoJsonError::Syntax(_)), "{error}");
    }

    #[test]
    fn text_when_written_then_go_escapes_five_characters_and_the_controls_and_no_more() {
        let mut out = String::new();
        write_quoted(&mut out, " !<>&\u{2028}\u{2029}\u{1f}~");
        assert_eq!(out, "\" !\\u003c\\u003e\\u0026\\u2028\\u2029\\u001f~\"");
        assert_eq!(
            compact("[\t1,\r\n\"\\\\\", \"a\\\" b\"]").unwrap(),
            "[1,\"\\\\\",\"a\\\" b\"]"
        );
    }

    #[test]
    fn value_when_long_then_cut_for_a_message() {
        let eighty = "\u{e4}".repeat(80);
        assert_eq!(shorten(&eighty), eighty);
        assert_eq!(shorten(&format!("{eighty}x")), format!("{eighty}\u{2026}"));
    }
}
