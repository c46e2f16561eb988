//! Versions of the CNI specification.

use crate::failure::{Code, Failure};
use crate::ordered::Ordered;

/// Every version we take a configuration in and answer in, oldest first.
pub const SUPPORTED: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The newest of them.
pub const CURRENT: &str = "1.1.0";

/// A version by number; comparing is by rank.
pub type Number = (u64, u64, u64);

/// Reads `1.0.0`, `1.0` or `1`; the empty text is 0.1.0.
///
/// # Errors
///
/// What is no number, in Go's words.
pub fn parse(text: &str) -> Result<Number, String> {
    if text.is_empty() {
        return Ok((0, 1, 0));
    }
    let parts: Vec<&str> = text.split('.').collect();
    if parts.len() >= 4 {
        return Err(format!("invalid version {text:?}: too many parts"));
    }
    let part = |i: usize, name: &str| {
        match parts.get(i) {
        None => Ok(0),
        Some(digits) => digits.parse::<u64>().map_err(|_| {
            format!("failed to convert {name} version part {digits:?}: strconv.Atoi: parsing {digits:?}: invalid syntax")
        }),
    }
    };
    Ok((part(0, "major")?, part(1, "minor")?, part(2, "micro")?))
}

/// Refuses a configuration whose version is not literally one of these.
///
/// # Errors
///
/// Code 1, naming the versions that are.
pub fn check_supported(version: &str, supported: &[&str]) -> Result<(), Failure> {
    if supported.contains(&version) {
        return Ok(());
    }
    let list: Vec<String> = supported.iter().map(|v| format!("{v:?}")).collect();
    Err(
        Failure::new(Code::IncompatibleVersion, "incompatible CNI versions").with_details(format!(
            "config is {version:?}, plugin supports [{}]",
            list.join(" ")
        )),
    )
}

/// Refuses a verb that the configuration's version does not have.
///
/// # Errors
///
/// Code 1.
pub fn check_verb(version: &str, verb: &str, since: &str) -> Result<(), Failure> {
    let decoding = |text| Failure::new(Code::Decoding, text);
    let have = parse(version).map_err(decoding)?;
    if have < parse(since).map_err(decoding)? {
        return Err(Failure::new(
            Code::IncompatibleVersion,
            format!("config version does not allow {verb}"),
        ));
    }
    if have > parse(CURRENT).map_err(decoding)? {
        return Err(Failure::new(
            Code::IncompatibleVersion,
            format!("plugin version does not allow {verb}"),
        ));
    }
    check_supported(version, &SUPPORTED)
}

/// The VERSION answer of a plugin that speaks these versions: one line with its newline.
pub fn answer(supported: &[&str]) -> String {
    let list = supported.iter().map(|v| Ordered::text(*v)).collect();
    let fields = vec![
        ("cniVersion", Ordered::text(CURRENT)),
        ("supportedVersions", Ordered::List(list)),
    ];
    Ordered::Object(fields).compact() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_when_asked_is_one_line_of_gos_bytes() {
        assert_eq!(
            answer(&SUPPORTED),
            "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n"
        );
    }

    #[test]
    fn check_when_version_is_not_literally_ours_lists_what_is() {
        let failure = check_supported("1.0", &SUPPORTED).unwrap_err();
        assert_eq!(
            (failure.code, failure.msg.as_str()),
            (1, "incompatible CNI versions")
        );
        assert_eq!(
            failure.details,
            r#"config is "1.0", plugin supports ["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]"#
        );
    }

    #[test]
    fn verb_when_too_old_too_new_or_unreadable_is_told_apart() {
        assert_eq!(
            check_verb("0.3.1", "CHECK", "0.4.0").unwrap_err().msg,
            "config version does not allow CHECK"
        );
        assert_eq!(
            check_verb("9.9.9", "GC", "1.1.0").unwrap_err().msg,
            "plugin version does not allow GC"
        );
        assert_eq!(check_verb("x", "GC", "1.1.0").unwrap_err().code, 6);
        assert_eq!(check_verb("1.0.0", "CHECK", "0.4.0"), Ok(()));
        assert_eq!(
            check_verb("0.4.1", "CHECK", "0.4.0").unwrap_err().msg,
            "incompatible CNI versions"
        );
    }

    #[test]
    fn version_when_it_has_one_to_three_parts_is_read_and_more_or_other_are_not() {
        for (text, number) in [
            ("", (0, 1, 0)),
            ("1", (1, 0, 0)),
            ("1.2", (1, 2, 0)),
            ("1.2.3", (1, 2, 3)),
        ] {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        assert_eq!(
            parse("1.2.3.4"),
            Err("invalid version \"1.2.3.4\": too many parts".into())
        );
        for (text, part) in [
            ("x", "major"),
            ("1.x", "minor"),
            ("1.1.x", "micro"),
            ("1.", "minor"),
        ] {
            assert!(
                parse(text)
                    .unwrap_err()
                    .contains(&format!("convert {part} version")),
                "{text}"
            );
        }
    }

    #[test]
    fn verb_when_of_the_first_or_the_newest_version_that_has_it_is_allowed() {
        assert_eq!(check_verb("0.4.0", "CHECK", "0.4.0"), Ok(()));
        assert_eq!(check_verb(CURRENT, "GC", "1.1.0"), Ok(()));
        assert_eq!(check_verb("1.0.0", "GC", "1.1.0").unwrap_err().code, 1);
    }
}
