//! How Go reads a value: `strconv.ParseInt`, `strconv.ParseBool`, and klog's three flags.
//!
//! COMPAT: error texts are those of Go, because people search for them, without the names of its functions.

/// Why Go refused a number or a boolean; the texts of package `flag`.
pub const PARSE_ERROR: &str = "parse error";
/// A number outside 64 bits; the text of package `flag`.
pub const RANGE_ERROR: &str = "value out of range";

/// Reads a boolean as `strconv.ParseBool`.
pub fn boolean(text: &str) -> Result<bool, &'static str> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(PARSE_ERROR),
    }
}

/// Reads an integer as `strconv.ParseInt(text, 0, 64)`: sign, `0x`, `0o`, `0b`, leading-zero octal, and `_` between
/// digits or right after the prefix.
pub fn integer(text: &str) -> Result<i64, &'static str> {
    let (negative, unsigned) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = unsigned.to_ascii_lowercase();
    let (radix, digits, prefixed) = if let Some(rest) = lower.strip_prefix("0x") {
        (16, rest, true)
    } else if let Some(rest) = lower.strip_prefix("0o") {
        (8, rest, true)
    } else if let Some(rest) = lower.strip_prefix("0b") {
        (2, rest, true)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..], true)
    } else {
        (10, lower.as_str(), false)
    };
    if !digit_text(digits, radix, prefixed) {
        return Err(PARSE_ERROR);
    }
    magnitude(digits, radix, negative)
}

/// True when `digits` holds at least one digit, only digits of `radix`, and `_` only between digits; the prefix of a
/// prefixed number counts as a digit.
fn digit_text(digits: &str, radix: u32, prefixed: bool) -> bool {
    let mut after_digit = prefixed;
    let mut any = false;
    for c in digits.chars() {
        if c == '_' {
            if !after_digit {
                return false;
            }
            after_digit = false;
        } else if c.is_digit(radix) {
            after_digit = true;
            any = true;
        } else {
            return false;
        }
    }
    any && after_digit
}

fn magnitude(digits: &str, radix: u32, negative: bool) -> Result<i64, &'static str> {
    let mut value: i64 = 0;
    for digit in digits.chars().filter_map(|c| c.to_digit(radix)) {
        // Built up on the negative side, which reaches one further.
        value = value
            .checked_mul(i64::from(radix))
            .and_then(|v| v.checked_sub(i64::from(digit)))
            .ok_or(RANGE_ERROR)?;
    }
    if negative {
        Ok(value)
    } else {
        value.checked_neg().ok_or(RANGE_ERROR)
    }
}

/// Reads `-v`: a signed decimal of 32 bits (`strconv.ParseInt(text, 10, 32)`).
///
/// Decimal digits with an optional sign, nothing else.
pub fn level(text: &str) -> Result<i32, &'static str> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err("invalid syntax");
    }
    text.parse().map_err(|_| RANGE_ERROR)
}

/// Checks `-vmodule`: `pattern=N` with commas between, N not negative; empty items are ignored.
pub fn modules(text: &str) -> Result<(), &'static str> {
    const SYNTAX: &str = "syntax error: expect comma-separated list of filename=N";
    for item in text.split(',').filter(|item| !item.is_empty()) {
        let mut parts = item.split('=');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(pattern), Some(number), None) if !pattern.is_empty() => match level(number) {
                Ok(number) if number < 0 => return Err("negative value for vmodule level"),
                Ok(_) => {}
                Err(_) => return Err(SYNTAX),
            },
            _ => return Err(SYNTAX),
        }
    }
    Ok(())
}

/// Checks `-log_backtrace_at`: `file.go:N` with N above 0, or nothing.
pub fn location(text: &str) -> Result<(), &'static str> {
    const SYNTAX: &str = "syntax error: expect file.go:234";
    if text.is_empty() {
        return Ok(());
    }
    let mut parts = text.split(':');
    let (Some(file), Some(line), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(SYNTAX);
    };
    let digits = line.strip_prefix(['+', '-']).unwrap_or(line);
    if !file.contains('.') || digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(SYNTAX);
    }
    match line.parse::<i64>() {
        Ok(line) if line <= 0 => Err("negative or zero value for level"),
        Ok(_) => Ok(()),
        Err(_) => Err(SYNTAX),
    }
}

/// Quotes as Go's `%q` does for text that is valid UTF-8.
pub fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{b}' => quoted.push_str("\\v"),
            '\u{c}' => quoted.push_str("\\f"),
            c if c.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn integer_when_written_in_any_go_base_reads_it() {
        for (text, value) in [
            ("010", 8),
            ("0x1F", 31),
            ("0b101", 5),
            ("1_000", 1000),
            ("0x_1", 1),
            ("-0", 0),
        ] {
            assert_eq!(integer(text), Ok(value), "{text}");
        }
        for text in ["", "_1", "1_", "1__0", "08", "0x", "1.0", " 1"] {
            assert_eq!(integer(text), Err(PARSE_ERROR), "{text}");
        }
        assert_eq!(integer("9223372036854775808"), Err(RANGE_ERROR));
        assert_eq!(integer("-9223372036854775808"), Ok(i64::MIN));
    }

    proptest! {
        #[test]
        fn integer_when_printed_in_any_base_reads_back(value: i64) {
            let sign = if value < 0 { "-" } else { "" };
            let size = value.unsigned_abs();
            for text in [format!("{value}"), format!("{sign}{size:#x}"), format!("{sign}{size:#o}"),
                         format!("{sign}{size:#b}"), format!("{sign}0{size:o}")] {
                prop_assert_eq!(integer(&text), Ok(value), "{}", text);
            }
        }

        #[test]
        fn values_when_anything_is_given_never_panic(text in ".{0,24}") {
            let _ = (integer(&text), boolean(&text), level(&text), modules(&text), location(&text), quote(&text));
        }
    }
}
