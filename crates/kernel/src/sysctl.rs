//! Kernel parameters below `/proc/sys`, of the calling thread's network namespace.
//!
//! A parameter is named by its path there, e.g. `net/ipv6/conf/flannel.1/accept_ra`: a dot may be part of a link's name.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

/// The kernel gives the whole of a value in one read, and none is longer.
const MOST_BYTES: usize = 4096;

/// Reads a parameter, without its final newline; `None` when it does not exist.
///
/// # Errors
///
/// Those of opening and reading it, but for its absence.
pub fn get(name: &str) -> io::Result<Option<String>> {
    match read(name) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets a parameter; returns whether it had to be written.
///
/// It is read first: `/proc/sys` is often mounted read-only, which is no hindrance where the value is right already. A
/// parameter that does not exist (IPv6 switched off) is left out: `Ok(false)`.
///
/// # Errors
///
/// Those of reading and writing it, naming its file.
pub fn set(name: &str, value: &str) -> io::Result<bool> {
    match ensure(name, value) {
        Ok(written) => Ok(written),
        // Also when the link it belongs to has gone in between.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io::Error::new(error.kind(), format!("/proc/sys/{name}: {error}"))),
    }
}

/// Sets a parameter that has to exist; returns whether it had to be written. It is read first, as by [`set`].
///
/// # Errors
///
/// Those of reading and writing it, its absence among them.
pub fn ensure(name: &str, value: &str) -> io::Result<bool> {
    if read(name)? == value {
        return Ok(false);
    }
    write(name, value)?;
    Ok(true)
}

/// Writes a parameter without looking at it first: one is as cheap as the other.
///
/// # Errors
///
/// Those of opening and writing it, its absence among them.
pub fn write(name: &str, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(format!("/proc/sys/{name}"))?;
    file.write_all(value.as_bytes())
}

/// Reads a parameter that has to exist, without its final newline.
///
/// # Errors
///
/// Those of opening and reading it, its absence among them.
pub fn read(name: &str) -> io::Result<String> {
    let mut buffer = [0; MOST_BYTES];
    let length = File::open(format!("/proc/sys/{name}"))?.read(&mut buffer)?;
    let value = buffer.get(..length).unwrap_or_default();
    Ok(String::from_utf8_lossy(value).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_when_it_has_the_value_is_not_written_and_when_absent_left_out() {
        // Read-only, so that writing it would fail.
        let name = "kernel/ostype";
        assert_eq!(get(name).unwrap().as_deref(), Some("Linux"));
        assert!(!set(name, "Linux").unwrap() && !ensure(name, "Linux").unwrap());
        let error = set(name, "Other").unwrap_err().to_string();
        assert!(error.starts_with("/proc/sys/kernel/ostype: "), "{error}");
        let absent = "net/ipv6/conf/no-such-link/accept_ra";
        assert_eq!(get(absent).unwrap(), None);
        assert!(!set(absent, "0").unwrap());
        assert_eq!(ensure(absent, "0").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
