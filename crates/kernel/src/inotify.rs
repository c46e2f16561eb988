//! Hearing of a file that somebody replaces, changes or removes.

use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

/// A watch on one file, by way of its directory: a file that is replaced by rename is another inode under the same name.
#[derive(Debug)]
pub struct Watch {
    inotify: OwnedFd,
    path: PathBuf,
    name: OsString,
}

impl Watch {
    /// Watches a path whose directory exists.
    pub fn file(path: &Path) -> io::Result<Watch> {
        let watch = Watch {
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            path: path.to_owned(),
            name: path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned(),
        };
        watch.follow()?;
        Ok(watch)
    }

    /// What is watched.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Watches the directory that is there now: the one before may have been replaced as a whole. Where it is the same one,
    /// nothing changes. (Another instance for each look would do too, but its end waits milliseconds for the kernel.)
    pub fn follow(&self) -> io::Result<()> {
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let what = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        inotify::add_watch(&self.inotify, directory, what)?;
        Ok(())
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
        assert!(watch.follow().is_err(), "there is nothing to follow");
        std::fs::create_dir_all(&directory).unwrap();
        watch.follow().unwrap();
        std::fs::write(&file, "x").unwrap();
        assert!(watch.drain(), "written in the new directory");
        watch.follow().unwrap();
        assert!(!watch.drain(), "following the same one is nothing");
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn drain_when_anything_befalls_the_file_or_its_directory_then_it_is_heard_of() {
        let directory = std::env::temp_dir().join(format!("kernel-inotify-all-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (file, other) = (directory.join("subnet.env"), directory.join("other"));
        let mut watch = Watch::file(&file).unwrap();
        assert_eq!(watch.path(), file);
        let mut open = std::fs::File::create(&file).unwrap();
        assert!(watch.drain(), "made");
        std::io::Write::write_all(&mut open, b"x").unwrap();
        assert!(watch.drain(), "written");
        drop(open);
        assert!(watch.drain(), "closed by who wrote");
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        assert!(watch.drain(), "its mode");
        std::fs::rename(&file, &other).unwrap();
        assert!(watch.drain(), "moved away");
        std::fs::rename(&other, &file).unwrap();
        assert!(watch.drain(), "moved here");
        let flags = rustix::io::fcntl_getfd(watch.fd()).unwrap();
        assert_eq!(flags, rustix::io::FdFlags::CLOEXEC);
        let elsewhere = directory.with_extension("moved");
        std::fs::rename(&directory, &elsewhere).unwrap();
        assert!(watch.drain(), "the directory moved");
        std::fs::remove_dir_all(&elsewhere).unwrap();
        assert!(watch.drain(), "and was removed");
        assert!(Watch::file(Path::new("/")).is_err());
        assert!(
            Watch::file(Path::new("a-name-alone")).is_ok(),
            "in the present directory"
        );
    }

    #[test]
    fn drain_when_more_happened_than_is_kept_then_the_file_may_be_concerned() {
        let most: usize = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let directory = std::env::temp_dir().join(format!("kernel-inotify-many-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let mut watch = Watch::file(&directory.join("subnet.env")).unwrap();
        let (one, other) = (directory.join("one"), directory.join("other"));
        std::fs::write(&one, "x").unwrap();
        assert!(!watch.drain());
        for _ in 0..most / 4 + 1 {
            std::fs::rename(&one, &other).unwrap();
            std::fs::rename(&other, &one).unwrap();
        }
        assert!(watch.drain());
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
