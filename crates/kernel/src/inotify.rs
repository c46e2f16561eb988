//! Hearing of a file that somebody replaces, changes or removes.

use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

/// A watch on one file, by way of its directory: a file that is replaced by rename is another inode under the same name.
#[derive(Debug)]
pub struct Watch {
    inotify: OwnedFd,
    name: OsString,
}

impl Watch {
    /// Watches a path whose directory exists.
    pub fn file(path: &Path) -> io::Result<Watch> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let what = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        inotify::add_watch(&inotify, directory, what)?;
        Ok(Watch { inotify, name })
    }

    /// Becomes readable when something happened in the directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Takes what happened; whether any of it concerns the file (or the directory as a whole, or more was lost).
    pub fn drain(&mut self) -> bool {
        let mut touched = false;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            let whole = event.events().intersects(
                ReadFlags::QUEUE_OVERFLOW
                    | ReadFlags::DELETE_SELF
                    | ReadFlags::MOVE_SELF
                    | ReadFlags::IGNORED,
            );
            touched |= whole
                || event
                    .file_name()
                    .is_some_and(|name| name.to_bytes() == self.name.as_bytes());
        }
        touched
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drain_when_the_file_is_replaced_removed_or_written_then_true_and_else_false() {
        let directory = std::env::temp_dir().join(format!("kernel-inotify-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (file, other) = (directory.join("subnet.env"), directory.join("other"));
        let mut watch = Watch::file(&file).unwrap();
        std::fs::write(&other, "x").unwrap();
        assert!(!watch.drain(), "another file");
        std::fs::write(&file, "x").unwrap();
        assert!(watch.drain(), "written");
        assert!(!watch.drain(), "told once");
        std::fs::rename(&other, &file).unwrap();
        assert!(watch.drain(), "replaced");
        std::fs::remove_file(&file).unwrap();
        assert!(watch.drain(), "removed");
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(watch.drain(), "directory gone");
    }
}
