//! Small files that appear whole or not at all, and failures in the words of Go's `os` package.
//!
//! Nothing here is synced to disk. What these files describe are network namespaces, and none of those survives the crash of a
//! machine: after one, a file that is missing or empty stands for nothing alive, and readers take it so. A crash of the process
//! alone loses nothing that was written, so all that matters is that no file is ever seen half made.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, RenameFlags};
use rustix::io::Errno;

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
    let text = io::Error::from_raw_os_error(errno.raw_os_error()).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// Reads a file whole, up to `limit` bytes.
pub fn read(path: &str, limit: usize) -> Result<Vec<u8>, FileError> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| FileError::new("open", path, e))?;
    read_all(&fd, limit).map_err(|e| FileError::new("read", path, e))
}

/// Reads a file in a folder whole, up to `limit` bytes; never through a symlink.
pub fn read_at(folder: &OwnedFd, name: &str, limit: usize) -> Result<Vec<u8>, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(folder, name, flags, Mode::empty())?;
    read_all(&fd, limit)
}

/// Reads from where the descriptor stands to the end, up to `limit` bytes.
pub fn read_all(fd: &OwnedFd, limit: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; limit.min(2048)];
    let mut length = 0;
    loop {
        if length == bytes.len() {
            if length >= limit {
                break;
            }
            bytes.resize((length * 2).min(limit), 0);
        }
        match rustix::io::read(fd, bytes.get_mut(length..).unwrap_or_default()) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Opens a folder for the `…at` calls.
pub fn open_folder(path: &str) -> Result<OwnedFd, FileError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| FileError::new("open", path, e))
}

/// Makes a folder and those above it; one that is there is fine. The error names the folder that could not be made.
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

/// A file with its content and no name yet.
#[derive(Debug)]
pub struct Unnamed {
    fd: OwnedFd,
    /// Name it has meanwhile where the file system has no files without one.
    temporary: Option<String>,
}

impl Unnamed {
    /// Writes a file into a folder without showing it there.
    pub fn write(folder: BorrowedFd<'_>, bytes: &[u8], mode: u32) -> Result<Unnamed, Errno> {
        let mode = Mode::from_raw_mode(mode);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let unnamed = match rustix::fs::openat(folder, ".", flags | OFlags::TMPFILE, mode) {
            Ok(fd) => Unnamed { fd, temporary: None },
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                // Starts with a dot: neither an address nor a container id.
                let name = format!(".tmp-{}-{:08x}", std::process::id(), random()?);
                let fd = rustix::fs::openat(folder, &name, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
                Unnamed {
                    fd,
                    temporary: Some(name),
                }
            }
            Err(e) => return Err(e),
        };
        let mut rest = bytes;
        while !rest.is_empty() {
            match rustix::io::write(&unnamed.fd, rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(e) => {
                    unnamed.discard(folder);
                    return Err(e);
                }
            }
        }
        Ok(unnamed)
    }

    /// Gives it a name that nothing has yet; `EEXIST` leaves it unnamed, for another try.
    pub fn link(&self, folder: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
        if let Some(temporary) = &self.temporary {
            return rustix::fs::linkat(folder, temporary.as_str(), folder, name, AtFlags::empty());
        }
        match rustix::fs::linkat(&self.fd, "", folder, name, AtFlags::EMPTY_PATH) {
            // Without CAP_DAC_READ_SEARCH only the long way is open.
            Err(Errno::NOENT) => {
                use std::os::fd::AsRawFd;
                let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
                rustix::fs::linkat(CWD, path, folder, name, AtFlags::SYMLINK_FOLLOW)
            }
            other => other,
        }
    }

    /// Gives up the temporary name, if there is one. To be called once the file is linked or not wanted.
    pub fn discard(&self, folder: BorrowedFd<'_>) {
        if let Some(temporary) = &self.temporary {
            let _ = rustix::fs::unlinkat(folder, temporary.as_str(), AtFlags::empty());
        }
    }
}

/// Makes a file that must not be there yet; false when it is.
pub fn create_new(folder: &OwnedFd, name: &str, bytes: &[u8], mode: u32) -> Result<bool, Errno> {
    let unnamed = Unnamed::write(folder.as_fd(), bytes, mode)?;
    let linked = unnamed.link(folder.as_fd(), name);
    unnamed.discard(folder.as_fd());
    match linked {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Makes a file or puts another in its place, in one step.
pub fn replace(folder: &OwnedFd, name: &str, bytes: &[u8], mode: u32) -> Result<(), Errno> {
    let temporary = format!(".tmp-{}-{:08x}", std::process::id(), random()?);
    create_new(folder, &temporary, bytes, mode)?;
    rustix::fs::renameat_with(folder, temporary.as_str(), folder, name, RenameFlags::empty()).inspect_err(
        |_| {
            let _ = rustix::fs::unlinkat(folder, temporary.as_str(), AtFlags::empty());
        },
    )
}

/// Removes a file; one that is not there is fine.
pub fn remove(folder: &OwnedFd, name: &str) -> Result<(), Errno> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Names in a folder, without those of folders.
pub fn names(folder: &OwnedFd) -> Result<Vec<String>, Errno> {
    list(folder, |kind| kind != FileType::Directory)
}

/// Names of the folders in a folder, without `.` and `..`.
pub fn folders(folder: &OwnedFd) -> Result<Vec<String>, Errno> {
    let mut names = list(folder, |kind| kind == FileType::Directory)?;
    names.retain(|name| name != "." && name != "..");
    Ok(names)
}

fn list(folder: &OwnedFd, wanted: impl Fn(FileType) -> bool) -> Result<Vec<String>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listing = rustix::fs::openat(folder, ".", flags, Mode::empty())?;
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut entries = RawDir::new(&listing, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !wanted(entry.file_type()) {
            continue;
        }
        if let Ok(name) = entry.file_name().to_str() {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Thirty-two random bits.
pub fn random() -> Result<u32, Errno> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn folder() -> (tempfile::TempDir, OwnedFd, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap().to_owned();
        let fd = open_folder(&path).unwrap();
        (dir, fd, path)
    }

    #[test]
    fn create_when_name_is_taken_leaves_what_is_there() {
        let (dir, fd, _) = folder();
        assert_eq!(create_new(&fd, "a", b"one", 0o600), Ok(true));
        assert_eq!(create_new(&fd, "a", b"two", 0o600), Ok(false));
        assert_eq!(read_at(&fd, "a", 100), Ok(b"one".to_vec()));
        let mode = dir.path().join("a").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        replace(&fd, "a", b"three", 0o600).unwrap();
        assert_eq!(read_at(&fd, "a", 100), Ok(b"three".to_vec()));
        assert_eq!(names(&fd), Ok(vec!["a".to_owned()]));
    }

    #[test]
    fn unnamed_when_only_a_temporary_name_is_to_be_had_links_and_cleans_up() {
        let (_dir, fd, _) = folder();
        let file = rustix::fs::openat(
            &fd,
            ".tmp-x",
            OFlags::CREATE | OFlags::WRONLY,
            Mode::from_raw_mode(0o600),
        );
        let unnamed = Unnamed {
            fd: file.unwrap(),
            temporary: Some(".tmp-x".to_owned()),
        };
        assert_eq!(unnamed.link(fd.as_fd(), "a"), Ok(()));
        assert_eq!(unnamed.link(fd.as_fd(), "a"), Err(Errno::EXIST));
        unnamed.discard(fd.as_fd());
        assert_eq!(names(&fd), Ok(vec!["a".to_owned()]));
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
    fn read_when_file_is_long_stops_at_the_limit_and_never_follows_links() {
        let (_dir, fd, path) = folder();
        std::fs::write(format!("{path}/long"), vec![b'x'; 10_000]).unwrap();
        assert_eq!(read(&format!("{path}/long"), 1 << 20).unwrap().len(), 10_000);
        assert_eq!(read(&format!("{path}/long"), 3000).unwrap().len(), 3000);
        std::os::unix::fs::symlink("long", format!("{path}/link")).unwrap();
        assert_eq!(read_at(&fd, "link", 10), Err(Errno::LOOP));
    }
}
