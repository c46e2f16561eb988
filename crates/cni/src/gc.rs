//! What a GC call lists as alive, and what it says of many failures.

use crate::call::Call;
use crate::failure::{Code, Failure};
use crate::owner::Owner;

/// The attachments that are to stay, and nothing when the call lists none at all (`cnitool gc` does so): then nothing is
/// known to be garbage. An empty list means that everything is.
///
/// # Errors
///
/// Code 7 for a list that is malformed.
pub fn valid_attachments(call: &Call) -> Result<Option<Vec<Owner>>, Failure> {
    let wrong = |e: crate::json::FieldError| Failure::new(Code::InvalidConfig, e.to_string());
    let fields = call.fields();
    // The second name is the one of drafts, which libcni sends beside the first.
    for name in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        if fields.get(name).is_none() {
            continue;
        }
        let mut valid = Vec::new();
        for item in fields.objects(name).map_err(wrong)? {
            let text = |name: &str| {
                item.string(name)
                    .map(|t| t.unwrap_or_default().to_owned())
                    .map_err(wrong)
            };
            valid.push(Owner {
                container: text("containerID")?,
                ifname: text("ifname")?,
            });
        }
        return Ok(Some(valid));
    }
    Ok(None)
}

/// One failure of many: the first one's code, every message.
///
/// # Errors
///
/// The one failure, where there is any.
pub fn all_of(failures: Vec<Failure>) -> Result<(), Failure> {
    let msg = failures
        .iter()
        .map(|f| f.msg.as_str())
        .collect::<Vec<_>>()
        .join("\n");
    match failures.into_iter().next() {
        None => Ok(()),
        Some(first) => Err(Failure { msg, ..first }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::call::Environment;

    fn valid(more: &str) -> Result<Option<Vec<Owner>>, Failure> {
        let env = Environment {
            command: "GC".into(),
            ..Environment::default()
        };
        let stdin = format!(r#"{{"name":"n","cniVersion":"1.1.0"{more}}}"#);
        valid_attachments(&Call::check(env, stdin.into_bytes()).unwrap())
    }

    #[test]
    fn attachments_when_listed_are_read_and_no_list_is_told_from_an_empty_one() {
        assert_eq!(valid(""), Ok(None));
        assert_eq!(valid(r#","cni.dev/valid-attachments":null"#), Ok(None));
        assert_eq!(valid(r#","cni.dev/valid-attachments":[]"#), Ok(Some(vec![])));
        let one = r#"[{"containerID":"c1","ifname":"eth0"},{"containerID":"c2"}]"#;
        let owners = vec![Owner::new("c1", "eth0"), Owner::new("c2", "")];
        for name in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            assert_eq!(valid(&format!(r#","{name}":{one}"#)), Ok(Some(owners.clone())));
        }
        // Both are sent by libcni; the first counts.
        let both = format!(r#","cni.dev/attachments":[],"cni.dev/valid-attachments":{one}"#);
        assert_eq!(valid(&both), Ok(Some(owners)));
        let wrong = valid(r#","cni.dev/attachments":[{"ifname":5}]"#).unwrap_err();
        assert_eq!(wrong.code, 7);
        assert!(wrong.msg.contains("ifname is 5"), "{wrong}");
    }

    #[test]
    fn failures_when_many_are_one_with_the_first_code_and_every_message() {
        assert_eq!(all_of(Vec::new()), Ok(()));
        let first = Failure::new(Code::TryAgainLater, "a").with_details("d");
        let all = all_of(vec![first, Failure::internal("b")]).unwrap_err();
        assert_eq!(
            (all.code, all.msg.as_str(), all.details.as_str()),
            (11, "a\nb", "d")
        );
    }
}
