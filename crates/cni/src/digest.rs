//! Names that are made of other names, by hashing.

use sha2::{Digest, Sha512};

/// The first characters of a text's SHA-512 in hexadecimal: what Go's plugins name chains and devices by.
pub fn sha512(text: &str, length: usize) -> String {
    let digest = Sha512::digest(text.as_bytes());
    digest
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 0xf])
        .map(|n| char::from_digit(n.into(), 16).unwrap_or('0'))
        .take(length)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_when_taken_are_the_published_ones() {
        assert_eq!(sha512("abc", 16), "ddaf35a193617aba");
        assert_eq!(sha512("", 200).len(), 128);
    }
}
