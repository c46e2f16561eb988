//! JSON as it comes in: one tree, read by name and type, written again as Go writes a map.

use std::fmt::Write as _;
use std::net::IpAddr;

pub use fabric::go_json::FieldError;
use fabric::go_json::{equal_fold, parse_cidr, shorten, write_quoted};
use ipnet::IpNet;
use serde_json::{Map, Value};

/// Reads one JSON document. Bytes that are no UTF-8 become U+FFFD, as in Go; the error is the parser's text.
///
/// # Errors
///
/// The parser's text.
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
pub struct JsonObject<'a> {
    map: Option<&'a Map<String, Value>>,
    path: String,
}

impl<'a> JsonObject<'a> {
    /// The document as an object; `null` is one without fields.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn of(document: &'a Value) -> Result<JsonObject<'a>, FieldError> {
        match document {
            Value::Object(map) => Ok(JsonObject {
                map: Some(map),
                path: String::new(),
            }),
            Value::Null => Ok(JsonObject {
                map: None,
                path: String::new(),
            }),
            other => Err(FieldError {
                field: "the document".to_owned(),
                value: shorten(&other.to_string()),
                expected: "a JSON object",
            }),
        }
    }

    /// A map that stands at `path` in its document.
    pub fn at(map: &'a Map<String, Value>, path: &str) -> JsonObject<'a> {
        JsonObject {
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
                .find(|(have, _)| equal_fold(have, name))
                .map(|(_, value)| value)
        });
        found.filter(|value| !value.is_null())
    }

    /// The object's own fields.
    pub fn map(&self) -> Option<&'a Map<String, Value>> {
        self.map
    }

    /// A string; absent is `None`.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn string(&self, name: &str) -> Result<Option<&'a str>, FieldError> {
        self.typed(name, "a string", Value::as_str)
    }

    /// `true` or `false`; absent is `false`.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn flag(&self, name: &str) -> Result<bool, FieldError> {
        Ok(self
            .typed(name, "true or false, without quotes", Value::as_bool)?
            .unwrap_or(false))
    }

    /// `true` or `false`, with a value for absence.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn flag_or(&self, name: &str, absent: bool) -> Result<bool, FieldError> {
        Ok(self
            .typed(name, "true or false, without quotes", Value::as_bool)?
            .unwrap_or(absent))
    }

    /// A whole number; absent is `None`. `1e3` and `5.0` are whole: the way through a map of Go turns them into `1000` and `5`.
    ///
    /// # Errors
    ///
    /// It is something else, or does not fit.
    pub fn whole(&self, name: &str) -> Result<Option<i64>, FieldError> {
        self.typed(name, "a whole number, without quotes", whole)
    }

    /// A nested object; absent is one without fields.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn object(&self, name: &str) -> Result<JsonObject<'a>, FieldError> {
        let map = self.typed(name, "an object", Value::as_object)?;
        Ok(JsonObject {
            map,
            path: format!("{}{name}.", self.path),
        })
    }

    /// An array; absent is empty.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn list(&self, name: &str) -> Result<&'a [Value], FieldError> {
        Ok(self
            .typed(name, "an array", |v| v.as_array().map(Vec::as_slice))?
            .unwrap_or(&[]))
    }

    /// An array of strings; absent is empty.
    ///
    /// # Errors
    ///
    /// It is something else, or one of its items is.
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
    ///
    /// # Errors
    ///
    /// It is something else, or one of its items is.
    pub fn objects(&self, name: &str) -> Result<Vec<JsonObject<'a>>, FieldError> {
        let items = self.list(name)?.iter().enumerate();
        items
            .map(|(i, item)| match item.as_object() {
                Some(map) => Ok(JsonObject {
                    map: Some(map),
                    path: format!("{}{name}[{i}].", self.path),
                }),
                None => Err(self.wrong(&format!("{name}[{i}]"), item, "an object")),
            })
            .collect()
    }

    /// An address; absent and the empty string are `None`.
    ///
    /// # Errors
    ///
    /// It is something else.
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
    ///
    /// # Errors
    ///
    /// It is something else.
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
            value: shorten(&value.to_string()),
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
        let top = JsonObject::of(&value).unwrap();
        assert_eq!(
            top.whole("mtu").unwrap_err().to_string(),
            "mtu is \"1450\": expected a whole number, without quotes"
        );
        let ranges = top.object("ipam").unwrap().objects("ranges").unwrap();
        assert_eq!(
            ranges[0].cidr("subnet").unwrap_err().to_string(),
            "ipam.ranges[0].subnet is 5: expected a string"
        );
        assert!(JsonObject::of(&Value::Bool(true)).is_err());
        assert!(JsonObject::of(&Value::Null).unwrap().get("x").is_none());
    }

    #[test]
    fn field_when_of_the_right_type_is_read_and_absence_has_its_own_value() {
        let value = parse(
            br#"{"text":"x","no":false,"yes":true,"n":-7,"list":[1],"texts":["a","b"],"inner":{"n":5},"inners":[{"n":6}],
                "ip":"::ffff:10.0.0.1","blank":"","net":"10.1.2.3/8","null":null}"#,
        )
        .unwrap();
        let top = JsonObject::of(&value).unwrap();
        assert_eq!(top.string("text"), Ok(Some("x")));
        assert_eq!(
            (top.flag("yes"), top.flag("no"), top.flag("none")),
            (Ok(true), Ok(false), Ok(false))
        );
        assert_eq!(
            [("yes", false), ("no", true), ("none", true), ("none", false)]
                .map(|(name, absent)| top.flag_or(name, absent).unwrap()),
            [true, false, true, false]
        );
        assert_eq!((top.whole("n"), top.whole("none")), (Ok(Some(-7)), Ok(None)));
        assert_eq!(top.list("list").unwrap(), [Value::from(1)]);
        assert_eq!(top.list("none").unwrap(), [Value::Null; 0]);
        assert_eq!(top.strings("texts").unwrap(), ["a", "b"]);
        assert_eq!(top.strings("none").unwrap(), Vec::<String>::new());
        assert_eq!(top.object("inner").unwrap().whole("n"), Ok(Some(5)));
        assert!(top.object("none").unwrap().map().is_none());
        let inners = top.objects("inners").unwrap();
        assert_eq!((inners.len(), inners[0].whole("n")), (1, Ok(Some(6))));
        assert_eq!(top.ip("ip"), Ok(Some("10.0.0.1".parse().unwrap())));
        assert_eq!((top.ip("blank"), top.ip("none")), (Ok(None), Ok(None)));
        assert_eq!(top.cidr("net"), Ok(Some("10.1.2.3/8".parse().unwrap())));
        assert_eq!(top.cidr("null"), Ok(None));
        assert_eq!(top.map().unwrap().len(), 12);
        let inner = Value::clone(top.get("INNER").unwrap());
        let at = JsonObject::at(inner.as_object().unwrap(), "inner");
        assert_eq!(
            at.flag("n").unwrap_err().to_string(),
            "inner.n is 5: expected true or false, without quotes"
        );
    }

    #[test]
    fn field_when_of_another_type_says_what_was_expected() {
        let value = parse(br#"{"x":{"y":1},"s":["a",5],"o":[5],"ip":"10.0.0","net":"10.0.0.0"}"#).unwrap();
        let top = JsonObject::of(&value).unwrap();
        for (error, expected) in [
            (top.string("x").err(), "x is {\"y\":1}: expected a string"),
            (
                top.flag("ip").err(),
                "ip is \"10.0.0\": expected true or false, without quotes",
            ),
            (
                top.flag_or("ip", true).err(),
                "ip is \"10.0.0\": expected true or false, without quotes",
            ),
            (
                top.strings("s").err(),
                "s is [\"a\",5]: expected an array of strings",
            ),
            (top.objects("o").err(), "o[0] is 5: expected an object"),
            (top.object("s").err(), "s is [\"a\",5]: expected an object"),
            (top.list("x").err(), "x is {\"y\":1}: expected an array"),
            (top.ip("ip").err(), "ip is \"10.0.0\": expected an IP address"),
            (
                top.cidr("net").err(),
                "net is \"10.0.0.0\": expected a CIDR such as \"10.0.0.0/8\"",
            ),
        ] {
            assert_eq!(error.unwrap().to_string(), expected);
        }
        let whole = JsonObject::of(&Value::from(5)).unwrap_err();
        assert_eq!(whole.to_string(), "the document is 5: expected a JSON object");
    }

    #[test]
    fn number_when_whole_is_one_however_it_is_written_as_far_as_floats_are_exact() {
        let whole = |text: &str| whole(&parse(text.as_bytes()).unwrap());
        assert_eq!(whole("1e3"), Some(1000));
        assert_eq!(whole("-5.0"), Some(-5));
        assert_eq!(whole("9007199254740992.0"), Some(9_007_199_254_740_992));
        assert_eq!(whole("9007199254740994.0"), None);
        assert_eq!((whole("5.5"), whole("1e300"), whole("\"5\"")), (None, None, None));
    }

    #[test]
    fn object_when_a_field_is_ready_made_is_written_with_that_text() {
        let value = parse(br#"{"b":{"x":1},"a":2}"#).unwrap();
        let map = value.as_object().unwrap();
        assert_eq!(object_text(map, Some(("b", "[READY]"))), r#"{"a":2,"b":[READY]}"#);
        assert_eq!(object_text(map, None), r#"{"a":2,"b":{"x":1}}"#);
        assert_eq!(
            parse(b"{").unwrap_err(),
            "unexpected end of JSON input",
            "in Go's words"
        );
        assert!(parse(b"{]").unwrap_err().contains("line 1"));
    }
}
