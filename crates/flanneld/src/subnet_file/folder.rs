//! Where a subnet file lies.

use std::os::fd::BorrowedFd;
use std::path::Path;

use fabric::subnet_env::SubnetEnv;
use kernel::inotify::Watch;

use super::{SubnetFileError, is_right, repair, write};

/// The folder of a subnet file: what tells of changes in it, and what puts it right.
pub trait Folder {
    /// Watches the folder that is there now, as far as it can be watched: the one before may have been replaced as a whole.
    fn follow(&mut self, path: &Path);

    /// Whether changes are told of.
    fn is_watched(&self) -> bool;

    /// What becomes readable when something changes.
    fn fds(&self) -> Vec<BorrowedFd<'_>>;

    /// Whether the file may have changed since this was last asked.
    fn take_touched(&mut self) -> bool;

    /// As [`is_right`](super::is_right).
    fn is_right(&self, path: &Path, wanted: &SubnetEnv) -> bool;

    /// As [`write`](super::write).
    ///
    /// # Errors
    /// The folder's.
    fn write(&mut self, path: &Path, wanted: &SubnetEnv) -> Result<(), SubnetFileError>;

    /// As [`repair`](super::repair).
    ///
    /// # Errors
    /// The folder's.
    fn repair(&mut self, path: &Path, wanted: &SubnetEnv) -> Result<(), SubnetFileError>;
}

/// A folder of the system's.
#[derive(Debug, Default)]
pub struct Disk {
    watch: Option<Watch>,
}

impl Folder for Disk {
    fn follow(&mut self, path: &Path) {
        self.watch = match self.watch.take().filter(|watch| watch.path() == path) {
            Some(watch) => watch.follow().ok().map(|()| watch),
            None => Watch::file(path).ok(),
        };
    }

    fn is_watched(&self) -> bool {
        self.watch.is_some()
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.watch.iter().map(Watch::fd).collect()
    }

    fn take_touched(&mut self) -> bool {
        self.watch.as_mut().is_some_and(Watch::drain)
    }

    fn is_right(&self, path: &Path, wanted: &SubnetEnv) -> bool {
        is_right(path, wanted)
    }

    fn write(&mut self, path: &Path, wanted: &SubnetEnv) -> Result<(), SubnetFileError> {
        write(path, wanted)
    }

    fn repair(&mut self, path: &Path, wanted: &SubnetEnv) -> Result<(), SubnetFileError> {
        repair(path, wanted).map(|_| ())
    }
}
