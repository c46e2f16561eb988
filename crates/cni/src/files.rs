//! The plugins' small files ([`kernel::file::folder`]), and failures in the words of Go's `os` package.
//!
//! None of them is synced to disk. What they describe are network namespaces, and none of those survives the crash of a machine:
//! after one, a file that is missing or empty stands for nothing alive, and readers take it so.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use kernel::file::folder;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::notice::say;

pub use kernel::file::folder::{Unnamed, folders, names, random, read_all};

/// What is in a file's place is none: a FIFO, a device, a socket. No file system says so of a file.
const ODD: Errno = Errno::NOSTR;
/// How every file is opened for reading: without waiting for whoever would write into a FIFO, nor becoming a terminal's.
const READING: OFlags = OFlags::RDONLY
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY);

/// A failed operation on a file: `open /x: no such file or directory`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileError {
    /// What was tried (`open`, `mkdir`).
    pub operation: &'static str,
    /// With what.
    pub path: String,
    /// Why it failed.
    pub errno: Errno,
}

impl FileError {
    /// An operation on a path that failed.
    pub fn new(operation: &'static str, path: impl Into<String>, errno: Errno) -> FileError {
        FileError {
            operation,
            path: path.into(),
            errno,
        }
    }

    /// The file, or a folder on the way to it, is not there.
    pub fn is_absent(&self) -> bool {
        self.errno == Errno::NOENT || self.errno == Errno::NOTDIR
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.operation, self.path, errno_text(self.errno))
    }
}

impl std::error::Error for FileError {}

impl From<FileError> for crate::failure::Failure {
    fn from(error: FileError) -> Self {
        crate::failure::Failure::internal(error.to_string())
    }
}

/// The system's text for an error number as Go has it: without a capital and without the number.
pub fn errno_text(errno: Errno) -> String {
    if errno == ODD {
        return "not a regular file".to_owned();
    }
    let text = io::Error::from_raw_os_error(errno.raw_os_error()).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// An operation failed because what is in the file's place is no file, and no link is followed to another: what we would have
/// written there is lost. Other failures are the system's.
pub fn is_odd(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ISDIR | Errno::LOOP | Errno::NXIO | Errno::NODEV | ODD
    )
}

/// Only a regular file is read or written: a device may do something, or have no end.
///
/// # Errors
///
/// It is something else ([`is_odd`]), or cannot be asked.
pub fn check_regular(fd: &OwnedFd) -> Result<(), Errno> {
    match FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Errno::ISDIR),
        _ => Err(ODD),
    }
}

/// Reads a regular file whole, up to `limit` bytes.
///
/// # Errors
///
/// The operation that failed.
pub fn read(path: &str, limit: usize) -> Result<Vec<u8>, FileError> {
    let fd = rustix::fs::open(path, READING, Mode::empty()).map_err(|e| FileError::new("open", path, e))?;
    let read = check_regular(&fd).and_then(|()| read_all(&fd, limit));
    read.map_err(|e| FileError::new("read", path, e))
}

/// Reads a regular file in a folder whole, up to `limit` bytes; never through a symlink.
///
/// # Errors
///
/// Those of opening and reading it; it is something else ([`is_odd`]).
pub fn read_at(folder: &OwnedFd, name: &str, limit: usize) -> Result<Vec<u8>, Errno> {
    let fd = rustix::fs::openat(folder, name, READING | OFlags::NOFOLLOW, Mode::empty())?;
    check_regular(&fd)?;
    read_all(&fd, limit)
}

/// Makes a file that must not be there yet; false when it is. What is no file makes way.
///
/// # Errors
///
/// Those of making and naming it.
pub fn create_new(folder: &OwnedFd, name: &str, bytes: &[u8], mode: u32) -> Result<bool, Errno> {
    if folder::create_new(folder, name, bytes, mode)? {
        return Ok(true);
    }
    if is_file(folder, name) {
        return Ok(false);
    }
    remove(folder, name)?;
    folder::create_new(folder, name, bytes, mode)
}

/// Makes a file or puts another in its place, in one step. What is no file makes way.
///
/// # Errors
///
/// Those of making and renaming it; what was there is untouched then.
pub fn replace(folder: &OwnedFd, name: &str, bytes: &[u8], mode: u32) -> Result<(), Errno> {
    match folder::replace(folder, name, bytes, mode) {
        Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => {
            remove(folder, name)?;
            folder::replace(folder, name, bytes, mode)
        }
        other => other,
    }
}

/// Removes a file, or what is in its place; nothing there is fine. A folder with something in it is nobody's to be lost: it gets
/// another name, which no plugin reads.
///
/// # Errors
///
/// Those of `unlinkat(2)` and `renameat(2)`.
pub fn remove(folder: &OwnedFd, name: &str) -> Result<(), Errno> {
    match folder::remove(folder, name) {
        Err(Errno::ISDIR) => {}
        other => return other,
    }
    match rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(Errno::NOENT) => return Ok(()),
        other => return other,
    }
    let aside = format!(".aside-{:08x}", random()?);
    rustix::fs::renameat(folder, name, folder, &aside)?;
    say(&format!(
        "a folder with something in it is in the place of the file {name}: it is called {aside} from now on"
    ));
    Ok(())
}

fn is_file(folder: &OwnedFd, name: &str) -> bool {
    let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

/// Opens a folder for the `…at` calls.
///
/// # Errors
///
/// The operation that failed.
pub fn open_folder(path: &str) -> Result<OwnedFd, FileError> {
    kernel::file::folder::open(path).map_err(|e| FileError::new("open", path, e))
}

/// Makes a folder and those above it; one that is there is fine. The error names the folder that could not be made.
///
/// # Errors
///
/// The folder that could not be made.
pub fn make_folders(path: &str, mode: u32) -> Result<(), FileError> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) if Path::new(path).is_dir() => Ok(()),
        Err(Errno::EXIST) => Err(FileError::new("mkdir", path, Errno::NOTDIR)),
        Err(Errno::NOENT | Errno::NOTDIR) => {
            let parent = Path::new(path)
                .parent()
                .and_then(Path::to_str)
                .filter(|p| !p.is_empty());
            let Some(parent) = parent else {
                return Err(FileError::new("mkdir", path, Errno::NOENT));
            };
            make_folders(parent, mode)?;
            match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(e) => Err(FileError::new("mkdir", path, e)),
            }
        }
        Err(e) => Err(FileError::new("mkdir", path, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, OwnedFd, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap().to_owned();
        let fd = open_folder(&path).unwrap();
        (dir, fd, path)
    }

    #[test]
    fn folders_when_not_possible_name_the_one_that_is_not_in_gos_words() {
        let (_dir, _, path) = folder();
        make_folders(&format!("{path}/a/b/c"), 0o755).unwrap();
        make_folders(&format!("{path}/a/b/c"), 0o755).unwrap();
        std::fs::write(format!("{path}/f"), "").unwrap();
        let text = |path: &str| make_folders(path, 0o700).unwrap_err().to_string();
        assert_eq!(
            text(&format!("{path}/f/x")),
            format!("mkdir {path}/f: not a directory")
        );
        assert_eq!(
            text(&format!("{path}/f")),
            format!("mkdir {path}/f: not a directory")
        );
        assert_eq!(
            text("/proc/nope/x"),
            "mkdir /proc/nope: no such file or directory"
        );
        assert_eq!(text(""), "mkdir : no such file or directory");
        assert_eq!(
            read("/nonexistent/x", 10).unwrap_err().to_string(),
            "open /nonexistent/x: no such file or directory"
        );
        assert_eq!(
            read(&path, 10).unwrap_err().to_string(),
            format!("read {path}: is a directory")
        );
    }

    #[test]
    fn read_when_file_is_long_stops_at_the_limit_and_waits_for_no_writer() {
        let (_dir, _, path) = folder();
        std::fs::write(format!("{path}/long"), vec![b'x'; 10_000]).unwrap();
        assert_eq!(read(&format!("{path}/long"), 1 << 20).unwrap().len(), 10_000);
        assert_eq!(read(&format!("{path}/long"), 3000).unwrap().len(), 3000);
        rustix::fs::mkfifoat(rustix::fs::CWD, format!("{path}/fifo"), Mode::RUSR).unwrap();
        let said = |path: &str| read(path, 10).unwrap_err().to_string();
        assert_eq!(
            said(&format!("{path}/fifo")),
            format!("read {path}/fifo: not a regular file")
        );
        assert_eq!(said("/dev/zero"), "read /dev/zero: not a regular file");
    }

    #[test]
    fn file_when_something_else_is_in_its_place_makes_way_and_a_full_folder_stays_aside() {
        let (_dir, fd, path) = folder();
        let at = |name: &str| format!("{path}/{name}");
        let odd = |name: &str| {
            let _ = std::fs::remove_file(at(name));
            match name {
                "fifo" => rustix::fs::mkfifoat(rustix::fs::CWD, at(name), Mode::RUSR).unwrap(),
                "link" => std::os::unix::fs::symlink("target", at(name)).unwrap(),
                "socket" => drop(std::os::unix::net::UnixListener::bind(at(name)).unwrap()),
                _ => std::fs::create_dir(at(name)).unwrap(),
            }
        };
        std::fs::write(at("target"), "untouched").unwrap();
        for name in ["fifo", "link", "socket", "folder"] {
            odd(name);
            assert!(is_odd(read_at(&fd, name, 10).unwrap_err()), "{name}");
            assert_eq!(create_new(&fd, name, b"new", 0o600), Ok(true), "{name}");
            assert_eq!(read_at(&fd, name, 10), Ok(b"new".to_vec()), "{name}");
            assert_eq!(create_new(&fd, name, b"more", 0o600), Ok(false), "{name}");
            odd(name);
            replace(&fd, name, b"other", 0o600).unwrap();
            assert_eq!(read_at(&fd, name, 10), Ok(b"other".to_vec()), "{name}");
            odd(name);
            remove(&fd, name).unwrap();
            remove(&fd, name).unwrap();
            assert_eq!(read_at(&fd, name, 10), Err(Errno::NOENT), "{name}");
        }
        std::fs::create_dir(at("full")).unwrap();
        std::fs::write(at("full/somebodys"), "").unwrap();
        remove(&fd, "full").unwrap();
        let aside: Vec<_> = folders(&fd).unwrap();
        assert!(aside.len() == 1 && aside[0].starts_with(".aside-"), "{aside:?}");
        assert!(std::fs::exists(at(&format!("{}/somebodys", aside[0]))).unwrap());
        assert_eq!(std::fs::read(at("target")).unwrap(), b"untouched");
    }
}
