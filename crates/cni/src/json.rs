//! JSON as it comes in: one tree, read by name and type, written again as Go writes a map.

use std::fmt::Write as _;
use std::net::IpAddr;

use fabric::go_json::{parse_cidr, write_quoted};
use fabric::object::Mac;
use ipnet::IpNet;
use serde_json::{Map, Value};

/// Longest piece of a value that an error message repeats, in characters.
const QUOTED: usize = 80;

/// A field holds something its reader cannot take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}: expected {expected}")]
pub struct FieldError {
    /// Path of the field, such as `ipam.ranges[0]`.
    pub field: String,
    /// Its JSON text, shortened when long.
    pub value: String,
    /// What would have been right.
    pub expected: &'static str,
}

/// Reads one JSON document. Bytes that are no UTF-8 become U+FFFD, as in Go; the error is the parser's text.
pub fn parse(bytes: &[u8]) -> Result<Value, String> {
    let text = String::from_utf8_lossy(bytes);
    serde_json::from_str(&text).map_err(|e| match e.classify() {
        serde_json::error::Category::Eof => "unexpected end of JSON input".to_owned(),
        _ => e.to_string(),
    })
}

/// A JSON object, or the absence of one, whose fields are read by name.
///
/// COMPAT: Go's decoder matches names without regard to case; the exact spelling is preferred here, any other accepted. `null`
/// is absence.
#[derive(Debug, Clone)]
pub struct Object<'a> {
    map: Option<&'a Map<String, Value>>,
    path: String,
}

impl<'a> Object<'a> {
    /// The document as an object; `null` is one without fields.
    pub fn of(document: &'a Value) -> Result<Object<'a>, FieldError> {
        match document {
            Value::Object(map) => Ok(Object {
                map: Some(map),
                path: String::new(),
            }),
            Value::Null => Ok(Object {
                map: None,
                path: String::new(),
            }),
            other => Err(FieldError {
                field: "the document".to_owned(),
                value: shorten(other),
                expected: "a JSON object",
            }),
        }
    }

    /// A map that stands at `path` in its document.
    pub fn at(map: &'a Map<String, Value>, path: &str) -> Object<'a> {
        Object {
            map: Some(map),
            path: format!("{path}."),
        }
    }

    /// The field's value unless absent or `null`.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        let map = self.map?;
        let found = map.get(name).or_else(|| {
            map.iter()
                .rev()
                .find(|(have, _)| have.eq_ignore_ascii_case(name))
                .map(|(_, value)| value)
        });
        found.filter(|value| !value.is_null())
    }

    /// The object's own fields.
    pub fn map(&self) -> Option<&'a Map<String, Value>> {
        self.map
    }

    /// A string; absent is `None`.
    pub fn string(&self, name: &str) -> Result<Option<&'a str>, FieldError> {
        self.typed(name, "a string", Value::as_str)
    }

    /// `true` or `false`; absent is `false`.
    pub fn flag(&self, name: &str) -> Result<bool, FieldError> {
        Ok(self
            .typed(name, "true or false, without quotes", Value::as_bool)?
            .unwrap_or(false))
    }

    /// `true` or `false`, with a value for absence.
    pub fn flag_or(&self, name: &str, absent: bool) -> Result<bool, FieldError> {
        Ok(self
            .typed(name, "true or false, without quotes", Value::as_bool)?
            .unwrap_or(absent))
    }

    /// A whole number; absent is `None`. `1e3` and `5.0` are whole: the way through a map of Go turns them into `1000` and `5`.
    pub fn whole(&self, name: &str) -> Result<Option<i64>, FieldError> {
        self.typed(name, "a whole number, without quotes", whole)
    }

    /// A nested object; absent is one without fields.
    pub fn object(&self, name: &str) -> Result<Object<'a>, FieldError> {
        let map = self.typed(name, "an object", Value::as_object)?;
        Ok(Object {
            map,
            path: format!("{}{name}.", self.path),
        })
    }

    /// An array; absent is empty.
    pub fn list(&self, name: &str) -> Result<&'a [Value], FieldError> {
        Ok(self
            .typed(name, "an array", |v| v.as_array().map(Vec::as_slice))?
            .unwrap_or(&[]))
    }

    /// An array of strings; absent is empty.
    pub fn strings(&self, name: &str) -> Result<Vec<String>, FieldError> {
        let read = |v: &Value| {
            v.as_array()?
                .iter()
                .map(|s| s.as_str().map(str::to_owned))
                .collect()
        };
        Ok(self.typed(name, "an array of strings", read)?.unwrap_or_default())
    }

    /// An array of objects, each knowing its place; absent is empty.
    pub fn objects(&self, name: &str) -> Result<Vec<Object<'a>>, FieldError> {
        let items = self.list(name)?.iter().enumerate();
        items
            .map(|(i, item)| match item.as_object() {
                Some(map) => Ok(Object {
                    map: Some(map),
                    path: format!("{}{name}[{i}].", self.path),
                }),
                None => Err(self.wrong(&format!("{name}[{i}]"), item, "an object")),
            })
            .collect()
    }

    /// An address; absent and the empty string are `None`.
    pub fn ip(&self, name: &str) -> Result<Option<IpAddr>, FieldError> {
        match self.string(name)? {
            None | Some("") => Ok(None),
            Some(text) => match parse_ip(text) {
                Some(ip) => Ok(Some(ip)),
                None => Err(self.wrong_text(name, text, "an IP address")),
            },
        }
    }

    /// A prefix with its host bits kept; absent is `None`.
    pub fn cidr(&self, name: &str) -> Result<Option<IpNet>, FieldError> {
        match self.string(name)? {
            None => Ok(None),
            Some(text) => match parse_cidr(text) {
                Some(net) => Ok(Some(net)),
                None => Err(self.wrong_text(name, text, "a CIDR such as \"10.0.0.0/8\"")),
            },
        }
    }

    /// The error for a field of this object.
    pub fn wrong(&self, name: &str, value: &Value, expected: &'static str) -> FieldError {
        FieldError {
            field: format!("{}{name}", self.path),
            value: shorten(value),
            expected,
        }
    }

    /// The error for a field of this object that holds a string.
    pub fn wrong_text(&self, name: &str, value: &str, expected: &'static str) -> FieldError {
        self.wrong(name, &Value::from(value), expected)
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, FieldError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        read(value)
            .map(Some)
            .ok_or_else(|| self.wrong(name, value, expected))
    }
}

/// An address in one of the textual forms Go's `net.ParseIP` takes; IPv4 mapped into IPv6 is IPv4.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// A hardware address of six bytes.
pub fn parse_mac(text: &str) -> Option<Mac> {
    Mac::parse(text)
}

/// A whole number, also when it was written with a point or an exponent.
pub fn whole(value: &Value) -> Option<i64> {
    /// Below it every whole number has an exact float.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_i64().or_else(|| {
        let float = value.as_f64()?;
        (float.fract() == 0.0 && float.abs() <= EXACT).then_some(float as i64)
    })
}

/// The text Go's `json.Marshal` gives for a value that came through `map[string]interface{}`: keys sorted by bytes, `<`, `>`
/// and `&` escaped, every number a float64.
pub fn to_go_text(value: &Value) -> String {
    let mut out = String::with_capacity(512);
    write_go(&mut out, value);
    out
}

/// [`to_go_text`] of an object, with the text of one of its fields ready made.
pub fn object_text(map: &Map<String, Value>, ready: Option<(&str, &str)>) -> String {
    let mut out = String::with_capacity(512);
    write_object(&mut out, map, ready);
    out
}

fn write_object(out: &mut String, map: &Map<String, Value>, ready: Option<(&str, &str)>) {
    out.push('{');
    // Sorted here: whether serde_json's map sorts by itself depends on features any crate of the build may switch on.
    let mut fields: Vec<_> = map.iter().collect();
    fields.sort_unstable_by_key(|(name, _)| *name);
    for (i, (name, item)) in fields.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        write_quoted(out, name);
        out.push(':');
        match ready {
            Some((have, text)) if have == name => out.push_str(text),
            _ => write_go(out, item),
        }
    }
    out.push('}');
}

fn write_go(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => write_float(out, number.as_f64().unwrap_or_default()),
        Value::String(text) => write_quoted(out, text),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_go(out, item);
            }
            out.push(']');
        }
        Value::Object(map) => write_object(out, map, None),
    }
}

/// Go's float64: shortest digits that read back, plain between 1e-6 and 1e21, otherwise with an exponent that has a sign.
fn write_float(out: &mut String, float: f64) {
    let magnitude = float.abs();
    if magnitude == 0.0 || (1e-6..1e21).contains(&magnitude) {
        let _ = write!(out, "{float}");
        return;
    }
    let text = format!("{float:e}");
    match text.split_once('e') {
        Some((digits, exponent)) if !exponent.starts_with('-') => {
            let _ = write!(out, "{digits}e+{exponent}");
        }
        _ => out.push_str(&text),
    }
}

fn shorten(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_when_through_gos_map_print_as_floats() {
        for (given, expected) in [
            ("12345678901234567890", "12345678901234567000"),
            ("1e21", "1e+21"),
            ("1450", "1450"),
            ("-0", "-0"),
            ("0.000001", "0.000001"),
            ("0.00000015", "1.5e-7"),
            ("1.50", "1.5"),
            ("100000000000000000000", "100000000000000000000"),
            ("-1e400e", ""),
        ] {
            match parse(given.as_bytes()) {
                Ok(value) => assert_eq!(to_go_text(&value), expected, "{given}"),
                Err(_) => assert_eq!(expected, "", "{given}"),
            }
        }
    }

    #[test]
    fn object_when_written_is_sorted_and_escaped() {
        let value = parse(br#"{"b":"<&>","a":[1,null,{"z":true,"B":false}]}"#).unwrap();
        assert_eq!(
            to_go_text(&value),
            r#"{"a":[1,null,{"B":false,"z":true}],"b":"\u003c\u0026\u003e"}"#
        );
    }

    #[test]
    fn fields_when_of_the_wrong_type_are_named_with_their_place() {
        let value = parse(br#"{"IPAM":{"ranges":[{"subnet":5}]},"mtu":"1450"}"#).unwrap();
        let top = Object::of(&value).unwrap();
        assert_eq!(
            top.whole("mtu").unwrap_err().to_string(),
            "mtu is \"1450\": expected a whole number, without quotes"
        );
        let ranges = top.object("ipam").unwrap().objects("ranges").unwrap();
        assert_eq!(
            ranges[0].cidr("subnet").unwrap_err().to_string(),
            "ipam.ranges[0].subnet is 5: expected a string"
        );
        assert!(Object::of(&Value::Bool(true)).is_err());
        assert!(Object::of(&Value::Null).unwrap().get("x").is_none());
    }
}
