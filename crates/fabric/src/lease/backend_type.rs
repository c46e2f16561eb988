//! The type of a backend in a lease: thousands of leases have the same few.

use std::fmt;
use std::ops::Deref;

/// Types that flannel has. They cost a lease no memory of its own.
const KNOWN: [&str; 10] = [
    "",
    "vxlan",
    "host-gw",
    "ipip",
    "wireguard",
    "udp",
    "ipsec",
    "extension",
    "alloc",
    "tencent-vpc",
];

/// `BackendType` of a lease: any text, compared as one.
#[derive(Clone, PartialEq, Eq)]
pub struct BackendType(Kept);

/// INVARIANT: a known type is never among the others, so that two are equal where their texts are.
#[derive(Clone, PartialEq, Eq)]
enum Kept {
    Known(u8),
    Other(Box<str>),
}

impl From<&str> for BackendType {
    fn from(text: &str) -> BackendType {
        let known = (0..).zip(KNOWN).find(|(_, known)| *known == text);
        BackendType(match known {
            Some((number, _)) => Kept::Known(number),
            None => Kept::Other(text.into()),
        })
    }
}

impl From<String> for BackendType {
    fn from(text: String) -> BackendType {
        text.as_str().into()
    }
}

impl Deref for BackendType {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Kept::Known(number) => KNOWN.get(usize::from(*number)).copied().unwrap_or_default(),
            Kept::Other(text) => text,
        }
    }
}

impl fmt::Debug for BackendType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_when_known_or_not_is_given_back_and_compared() {
        for text in KNOWN.into_iter().chain(["VXLAN", "gce", "vxlan "]) {
            let (kept, again) = (BackendType::from(text), BackendType::from(text.to_owned()));
            assert_eq!(&*kept, text);
            assert_eq!(format!("{kept:?}"), format!("{text:?}"));
            assert_eq!(kept, again);
            assert_ne!(kept, BackendType::from("another"));
        }
        assert_eq!(size_of::<BackendType>(), size_of::<Box<str>>());
    }
}
