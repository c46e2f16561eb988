//! Files that an operator or somebody else wrote.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

/// Reads a regular file of at most so many bytes: a FIFO would be waited for, and a device has no end.
pub(crate) fn read_regular(path: &Path, largest: u64) -> io::Result<Vec<u8>> {
    let odd = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
    // Before it is opened, for that waits, and after, for it may be another by then.
    let is_file = |found: fs::Metadata| {
        found
            .is_file()
            .then_some(())
            .ok_or_else(|| odd("not a regular file".to_owned()))
    };
    is_file(fs::metadata(path)?)?;
    let file = fs::File::open(path)?;
    is_file(file.metadata()?)?;
    let mut bytes = Vec::new();
    file.take(largest + 1).read_to_end(&mut bytes)?;
    match u64::try_from(bytes.len()) {
        Ok(length) if length <= largest => Ok(bytes),
        _ => Err(odd(format!(
            "more than the {} MiB that are expected at most",
            largest >> 20
        ))),
    }
}
