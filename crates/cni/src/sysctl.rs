//! Kernel parameters of the calling thread's network namespace.

use std::io::{self, Read, Write};

/// Writes a parameter without looking at it first: one is as cheap as the other.
pub fn write(name: &str, value: &str) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .open(format!("/proc/sys/{name}"))?;
    file.write_all(value.as_bytes())
}

/// Makes sure that a parameter has a value; one that has it is not written, as `/proc/sys` may be read-only.
pub fn ensure(name: &str, value: &str) -> io::Result<()> {
    if read(name)? == value {
        Ok(())
    } else {
        write(name, value)
    }
}

/// Reads a parameter without its newline.
pub fn read(name: &str) -> io::Result<String> {
    let mut buffer = [0; 64];
    let length = std::fs::File::open(format!("/proc/sys/{name}"))?.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default())
        .trim_end()
        .to_owned())
}
