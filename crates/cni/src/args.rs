//! `CNI_ARGS`: `K=V;K2=V2`.

use crate::failure::Failure;

/// The value of the one key a plugin knows besides `IgnoreUnknown`, and nothing when the variable or the key is not there.
///
/// Keys match exactly. A pair without exactly one `=` is an error, and so is an unknown key unless `IgnoreUnknown` is true.
/// Of a key given twice the last counts.
///
/// # Errors
///
/// A pair without `=`, or with more than one, when the rest is not to be ignored.
pub fn value<'a>(args: &'a str, key: &str) -> Result<Option<&'a str>, Failure> {
    if args.is_empty() {
        return Ok(None);
    }
    let (mut found, mut unknown, mut ignore) = (None, Vec::new(), false);
    for pair in args.split(';') {
        let Some((name, text)) = pair.split_once('=').filter(|(_, text)| !text.contains('=')) else {
            return Err(Failure::internal(format!("ARGS: invalid pair {pair:?}")));
        };
        if name == key {
            found = Some(text);
        } else if name == "IgnoreUnknown" {
            ignore = match text.to_lowercase().as_str() {
                "1" | "true" => true,
                "0" | "false" => false,
                other => {
                    return Err(Failure::internal(format!(
                        "ARGS: error parsing value of pair {pair:?}: boolean unmarshal error: invalid input {other}"
                    )));
                }
            };
        } else {
            unknown.push(format!("{pair:?}"));
        }
    }
    if !unknown.is_empty() && !ignore {
        return Err(Failure::internal(format!(
            "ARGS: unknown args [{}]",
            unknown.join(" ")
        )));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_when_pairs_are_malformed_or_unknown_is_refused_in_gos_words() {
        fn failed(args: &str) -> Result<Option<&str>, String> {
            value(args, "MAC").map_err(|f| f.msg)
        }
        assert_eq!(failed(""), Ok(None));
        assert_eq!(failed("MAC=a;IgnoreUnknown=0;MAC=b"), Ok(Some("b")));
        assert_eq!(failed("IgnoreUnknown=True;K8S_POD_NAME=x;mac=y"), Ok(None));
        assert_eq!(failed("A=b"), Err("ARGS: unknown args [\"A=b\"]".into()));
        assert_eq!(
            failed("A=b;C=d"),
            Err("ARGS: unknown args [\"A=b\" \"C=d\"]".into())
        );
        assert_eq!(failed("x"), Err("ARGS: invalid pair \"x\"".into()));
        assert_eq!(failed("IgnoreUnknown=1;"), Err("ARGS: invalid pair \"\"".into()));
        assert_eq!(failed("MAC=a=b"), Err("ARGS: invalid pair \"MAC=a=b\"".into()));
        assert!(
            failed("IgnoreUnknown=maybe")
                .unwrap_err()
                .contains("boolean unmarshal error: invalid input maybe")
        );
    }
}
