//! Kernel parameters below `/proc/sys`, of the calling thread's network namespace.

use std::fs;
use std::io;

/// Sets a parameter, e.g. `net/ipv6/conf/flannel.1/accept_ra` to `0`; returns whether it had to be written.
///
/// It is read first: `/proc/sys` is often mounted read-only, which is no hindrance where the value is right already. A
/// parameter that does not exist (IPv6 switched off) is left out: `Ok(false)`.
pub fn set(name: &str, value: &str) -> io::Result<bool> {
    let path = format!("/proc/sys/{name}");
    let annotate = |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
    match fs::read_to_string(&path) {
        Ok(now) if now.trim() == value => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(annotate(error)),
    }
    match fs::write(&path, value) {
        Ok(()) => Ok(true),
        // The link it belongs to has gone in between.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(annotate(error)),
    }
}

/// Reads a parameter, without its final newline; `None` when it does not exist.
pub fn get(name: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(format!("/proc/sys/{name}")) {
        Ok(value) => Ok(Some(value.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
