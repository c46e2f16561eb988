//! The error object of the protocol: what a plugin prints on stdout when it exits with 1.

use crate::ordered::Ordered;

/// Why a call failed, as runtimes read it. The numbers are those of the CNI specification, section "Error", and of Go's
/// library where it has more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The configuration's `cniVersion` is not one of ours, or too old for the verb.
    IncompatibleVersion = 1,
    /// A field asks for something this build does not do.
    UnsupportedField = 2,
    /// A `CNI_*` variable is missing or malformed.
    InvalidEnvironment = 4,
    /// Reading stdin or writing stdout failed.
    Io = 5,
    /// stdin is no JSON.
    Decoding = 6,
    /// The configuration is JSON and wrong.
    InvalidConfig = 7,
    /// `CNI_NETNS` is the plugin's own namespace.
    InvalidNetns = 8,
    /// A passing state; the runtime may call again later.
    TryAgainLater = 11,
    /// STATUS: an ADD would fail now.
    NotAvailable = 50,
    /// STATUS: an ADD should not be tried now, and containers that are here may not reach all others.
    LimitedConnectivity = 51,
    /// Everything else; Go's library gives it to every error without a code.
    Internal = 999,
}

/// An error object. Also carries one that a delegate printed, whose code may be any number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { "; " })]
pub struct Failure {
    /// Number of the error's kind.
    pub code: u32,
    /// What happened.
    pub msg: String,
    /// More about it; left out of the object when empty.
    pub details: String,
}

impl Failure {
    /// An error of a known kind without details.
    pub fn new(code: Code, msg: impl Into<String>) -> Failure {
        Failure {
            code: code as u32,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// An error without a kind of its own (code 999).
    pub fn internal(msg: impl Into<String>) -> Failure {
        Failure::new(Code::Internal, msg)
    }

    /// The same error with details.
    pub fn with_details(mut self, details: impl Into<String>) -> Failure {
        self.details = details.into();
        self
    }

    /// The object as printed: indented by four, no newline at the end.
    pub fn to_json(&self) -> String {
        let mut fields = vec![
            ("code", Ordered::Number(i64::from(self.code))),
            ("msg", Ordered::text(&self.msg)),
        ];
        if !self.details.is_empty() {
            fields.push(("details", Ordered::text(&self.details)));
        }
        Ordered::Object(fields).indented()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_when_details_are_empty_leaves_them_out() {
        let failure = Failure::new(Code::InvalidConfig, "missing network name");
        assert_eq!(
            failure.to_json(),
            "{\n    \"code\": 7,\n    \"msg\": \"missing network name\"\n}"
        );
        let failure = failure.with_details("a<b");
        assert!(
            failure
                .to_json()
                .ends_with(",\n    \"details\": \"a\\u003cb\"\n}"),
            "{}",
            failure.to_json()
        );
    }
}
