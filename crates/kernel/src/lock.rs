//! A lock file: at most one process does what it stands for. The kernel lets go of it when the process ends, however it ends.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

mod wait;

pub use wait::lock_by;

/// More is not read of what the holder wrote, bytes.
const LONGEST_TEXT: u64 = 4096;
/// A file that is removed between being opened and being locked is made anew, this often.
const ATTEMPTS: usize = 16;

/// Why a lock cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("{} is locked by {}", path.display(), holder.map_or("another process".to_owned(), |pid| format!("process {pid}")))]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who wrote its process id there.
        holder: Option<u32>,
        /// What else it wrote.
        words: String,
    },
    /// The file cannot be made or locked.
    #[error("lock file {}: {source}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// A lock that is held until this is dropped. The file stays, and tells who had the lock last.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock or says who has it; does not wait, whatever is in its place. Missing folders are made.
    ///
    /// The file is for its owner alone: whoever can read a file can lock it.
    ///
    /// # Errors
    /// Another process has it; or there is something else than a regular file, or the folder cannot be written.
    pub fn take(path: &Path) -> Result<Lock, LockError> {
        let io = |source| LockError::Io {
            path: path.to_path_buf(),
            source,
        };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(io)?;
        }
        for _ in 0..ATTEMPTS {
            let file = open(path).map_err(io)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let (holder, words) = read(&file);
                    return Err(LockError::Held {
                        path: path.to_path_buf(),
                        holder,
                        words,
                    });
                }
                Err(TryLockError::Error(source)) => return Err(io(source)),
            }
            // INVARIANT: whoever holds the lock holds that of the file the path leads to: one that was removed meanwhile is nobody's.
            if leads_to(path, &file) {
                return Ok(Lock {
                    file,
                    path: path.to_path_buf(),
                });
            }
        }
        Err(io(io::ErrorKind::ResourceBusy.into()))
    }

    /// Goes on holding a lock whose file a predecessor in the same process left open; gives it back when it is another's.
    ///
    /// # Errors
    /// It is not the file that the path leads to, or is not locked by it.
    pub fn resume(path: &Path, file: File) -> Result<Lock, File> {
        // Locked anew by whoever has it, it stays locked; another open file of it would be refused.
        if !leads_to(path, &file) || file.try_lock().is_err() {
            return Err(file);
        }
        Ok(Lock {
            file,
            path: path.to_path_buf(),
        })
    }

    /// What the last holder wrote besides its process id.
    pub fn words(&self) -> String {
        read(&self.file).1
    }

    /// Writes our process id, for whoever finds the lock taken, and a few words more.
    ///
    /// # Errors
    /// The system's.
    pub fn sign(&self, words: &str) -> io::Result<()> {
        let mut file = &self.file;
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(format!("{}\n{words}\n", std::process::id()).as_bytes())
    }

    /// Removes the file and lets go.
    ///
    /// # Errors
    /// The system's; the lock is let go all the same.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Opens a regular file, or makes it.
fn open(path: &Path) -> io::Result<File> {
    let odd = || io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
    // Opening a device may already do something.
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(odd());
    }
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(odd())
    }
}

fn leads_to(path: &Path, file: &File) -> bool {
    match (fs::symlink_metadata(path), file.metadata()) {
        (Ok(found), Ok(held)) => (found.dev(), found.ino()) == (held.dev(), held.ino()),
        _ => false,
    }
}

/// The process id in the first line, and the rest.
fn read(mut file: &File) -> (Option<u32>, String) {
    let mut text = Vec::new();
    let _ = file.rewind();
    let _ = file.take(LONGEST_TEXT).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    (first.trim().parse().ok(), rest.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    /// A folder that goes with the test, however it ends.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let folder = std::env::temp_dir().join(format!("kernel-lock-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            Folder(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn take_when_held_then_says_by_whom_and_after_the_end_it_is_free() {
        let folder = Folder::new("held");
        let path = folder.0.join("a/flannel.1.lock");
        let held = Lock::take(&path).unwrap();
        held.sign("subnet file /x").unwrap();
        let failure = Lock::take(&path).unwrap_err();
        let text = failure.to_string();
        assert!(
            text.ends_with(&format!("is locked by process {}", std::process::id())),
            "{text}"
        );
        assert!(matches!(failure, LockError::Held { words, .. } if words == "subnet file /x"));
        drop(held);
        let again = Lock::take(&path).unwrap();
        assert_eq!(again.words(), "subnet file /x", "who had it last");
        again.remove().unwrap();
        assert!(!path.exists());
        assert!(matches!(
            Lock::take(Path::new("/proc/none/x")),
            Err(LockError::Io { .. })
        ));
    }

    #[test]
    fn take_when_something_else_is_in_its_place_then_it_is_left_alone_without_waiting() {
        let folder = Folder::new("odd");
        let (link, pipe) = (folder.0.join("link"), folder.0.join("pipe"));
        std::os::unix::fs::symlink(folder.0.join("elsewhere"), &link).unwrap();
        rustix::fs::mkfifoat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        )
        .unwrap();
        for place in [&link, &pipe, &folder.0] {
            let failure = Lock::take(place).unwrap_err();
            assert!(
                matches!(failure, LockError::Io { .. })
                    && failure.to_string().ends_with("not a regular file"),
                "{failure}"
            );
        }
        assert!(!folder.0.join("elsewhere").exists());
    }

    #[test]
    fn resume_when_it_is_the_file_of_the_path_then_it_was_never_free() {
        let folder = Folder::new("kept");
        let (path, other) = (folder.0.join("a"), folder.0.join("b"));
        let held = Lock::take(&path).unwrap();
        let kept: File = held.as_fd().try_clone_to_owned().map(OwnedFd::into).unwrap();
        drop(held);
        let kept = Lock::resume(&other, kept).unwrap_err();
        let resumed = Lock::resume(&path, kept).unwrap();
        assert!(Lock::take(&path).is_err());
        drop(resumed);
        let taken = Lock::take(&path).unwrap();
        let loser = File::open(&path).unwrap();
        assert!(Lock::resume(&path, loser).is_err(), "another has it");
        drop(taken);
    }
}
