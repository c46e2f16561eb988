//! What a GC call lists as alive.

use crate::call::Call;
use crate::failure::{Code, Failure};
use crate::host_local::store::Owner;

/// The attachments that are to stay, and nothing when the call lists none at all (`cnitool gc` does so): then nothing is
/// known to be garbage. An empty list means that everything is.
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
