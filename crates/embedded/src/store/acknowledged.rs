//! The newest revision that somebody was told of, beside the store.
//!
//! The engine keeps two headers and, where a crash or the disk has damaged the newer one, goes on with the one before it, without a
//! word: a commit is gone that was acknowledged, and its revision would be given away a second time. A client that has seen it would
//! never hear of what comes under it then. This number is written after every commit and before its answers. It is not synced, so that
//! it costs no time: after a power cut it may be older than the store, and then says nothing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const NAME: &str = "acknowledged";

/// The file, open.
#[derive(Debug)]
pub struct Acknowledged(File);

impl Acknowledged {
    /// Opens or makes the file in `dir`; with it comes the revision in it, if there is one.
    ///
    /// # Errors
    ///
    /// Those of opening it, and something else than a regular file in its place.
    pub fn open(dir: &Path) -> io::Result<(Acknowledged, Option<i64>)> {
        refuse_odd(dir, NAME)?;
        let path = dir.join(NAME);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let mut bytes = [0; 16];
        let read = file.read_exact_at(&mut bytes, 0);
        let revision = read.ok().and_then(|()| parse(bytes));
        Ok((Acknowledged(file), revision))
    }

    /// Notes a revision. One that cannot be noted is one that cannot be missed: what is said is no less true.
    pub fn note(&self, revision: i64) {
        let _ = self.0.write_all_at(&render(revision), 0);
    }
}

/// Refuses what is there and is not a regular file: a FIFO would be waited for, a link followed. The folder is its owner's alone, so
/// that nobody else changes it in between.
pub fn refuse_odd(dir: &Path, name: &str) -> io::Result<()> {
    match dir.join(name).symlink_metadata() {
        Ok(found) if !found.is_file() => Err(io::Error::other(format!("{name} is not a regular file"))),
        _ => Ok(()),
    }
}

/// The number and its complement: half of it written, or zeros, are nothing.
fn render(revision: i64) -> [u8; 16] {
    let mut bytes = [0; 16];
    let (number, complement) = bytes.split_at_mut(8);
    number.copy_from_slice(&revision.to_be_bytes());
    complement.copy_from_slice(&(!revision).to_be_bytes());
    bytes
}

fn parse(bytes: [u8; 16]) -> Option<i64> {
    let (number, complement) = bytes.split_at(8);
    let read = |half: &[u8]| Some(i64::from_be_bytes(half.try_into().ok()?));
    let revision = read(number)?;
    (read(complement)? == !revision).then_some(revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_when_it_was_written_whole_is_read_and_else_is_none() {
        for revision in [1, 42, i64::MAX] {
            assert_eq!(parse(render(revision)), Some(revision));
        }
        assert_eq!(parse([0; 16]), None);
        let mut torn = render(42);
        torn[15] ^= 1;
        assert_eq!(parse(torn), None);
    }

    #[test]
    fn file_when_it_is_new_short_or_no_file_says_nothing_or_is_refused() {
        let dir = tempfile::TempDir::new().unwrap();
        let (file, none) = Acknowledged::open(dir.path()).unwrap();
        assert_eq!(none, None);
        file.note(7);
        assert_eq!(Acknowledged::open(dir.path()).unwrap().1, Some(7));
        std::fs::write(dir.path().join(NAME), "short").unwrap();
        assert_eq!(Acknowledged::open(dir.path()).unwrap().1, None);
        std::fs::remove_file(dir.path().join(NAME)).unwrap();
        std::os::unix::fs::symlink("elsewhere", dir.path().join(NAME)).unwrap();
        assert!(Acknowledged::open(dir.path()).is_err());
        assert!(!dir.path().join("elsewhere").exists());
    }

    #[test]
    fn store_when_something_else_than_a_file_is_in_its_place_is_refused_by_name() {
        for name in ["lock", "registry.redb", NAME] {
            let dir = tempfile::TempDir::new().unwrap();
            drop(super::super::disk::open(dir.path()).unwrap());
            std::fs::remove_file(dir.path().join(name)).unwrap();
            std::os::unix::fs::symlink("elsewhere", dir.path().join(name)).unwrap();
            let refused = super::super::disk::open(dir.path()).map(drop).unwrap_err();
            assert!(
                refused
                    .to_string()
                    .contains(&format!("{name} is not a regular file")),
                "{refused}"
            );
            assert!(!dir.path().join("elsewhere").exists());
        }
    }
}
