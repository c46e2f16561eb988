//! Small files in a folder that is open: they appear whole or not at all, and links are not followed.
//!
//! Nothing here is synced to disk. A crash of the process alone loses nothing that was written, so all that matters is that no file
//! is ever seen half made.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, RenameFlags};
use rustix::io::Errno;

/// Opens a folder for the other calls.
///
/// # Errors
///
/// Those of `open(2)`.
pub fn open(path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// Reads a file in a folder whole, up to `limit` bytes; never through a symlink, nor waiting for whoever would write into a FIFO.
///
/// # Errors
///
/// Those of opening and reading it.
pub fn read_at(folder: &OwnedFd, name: &str, limit: usize) -> Result<Vec<u8>, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = rustix::fs::openat(folder, name, flags, Mode::empty())?;
    read_all(&fd, limit)
}

/// Reads from where the descriptor stands to the end, up to `limit` bytes.
///
/// # Errors
///
/// Those of reading.
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

/// A file with its content and no name yet.
#[derive(Debug)]
pub struct Unnamed {
    fd: OwnedFd,
    /// Name it has meanwhile where the file system has no files without one.
    temporary: Option<String>,
}

impl Unnamed {
    /// Writes a file into a folder without showing it there.
    ///
    /// # Errors
    ///
    /// Those of making and writing it; nothing is left of it then.
    pub fn write(folder: BorrowedFd<'_>, bytes: &[u8], mode: u32) -> Result<Unnamed, Errno> {
        let mode = Mode::from_raw_mode(mode);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let unnamed = match rustix::fs::openat(folder, ".", flags | OFlags::TMPFILE, mode) {
            Ok(fd) => Unnamed { fd, temporary: None },
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Unnamed::hidden(folder, mode)?,
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

    /// An empty one where the file system has no files without a name.
    fn hidden(folder: BorrowedFd<'_>, mode: Mode) -> Result<Unnamed, Errno> {
        // Starts with a dot: neither an address nor a container id.
        let name = format!(".tmp-{}-{:08x}", std::process::id(), random()?);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::CREATE | OFlags::EXCL;
        let fd = rustix::fs::openat(folder, &name, flags, mode)?;
        Ok(Unnamed {
            fd,
            temporary: Some(name),
        })
    }

    /// Gives it a name that nothing has yet; `EEXIST` leaves it unnamed, for another try.
    ///
    /// # Errors
    ///
    /// Those of `linkat(2)`; it can be tried again.
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
///
/// # Errors
///
/// Those of making and naming it.
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
///
/// # Errors
///
/// Those of making and renaming it; what was there is untouched then.
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
///
/// # Errors
///
/// Those of `unlinkat(2)`.
pub fn remove(folder: &OwnedFd, name: &str) -> Result<(), Errno> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Names in a folder, without those of folders.
///
/// # Errors
///
/// Those of reading the folder.
pub fn names(folder: &OwnedFd) -> Result<Vec<String>, Errno> {
    list(folder, |kind| kind != FileType::Directory)
}

/// Names of the folders in a folder, without `.` and `..`.
///
/// # Errors
///
/// Those of reading the folder.
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
///
/// # Errors
///
/// Those of `getrandom(2)`.
pub fn random() -> Result<u32, Errno> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    /// A folder that goes with the test, however it ends.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let folder = std::env::temp_dir().join(format!("kernel-folder-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            Folder(folder)
        }

        fn open(&self) -> OwnedFd {
            open(self.0.to_str().unwrap()).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn create_when_name_is_taken_leaves_what_is_there() {
        let dir = Folder::new("taken");
        let fd = dir.open();
        assert_eq!(create_new(&fd, "a", b"one", 0o600), Ok(true));
        assert_eq!(create_new(&fd, "a", b"two", 0o600), Ok(false));
        assert_eq!(read_at(&fd, "a", 100), Ok(b"one".to_vec()));
        let mode = dir.0.join("a").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        replace(&fd, "a", b"three", 0o600).unwrap();
        assert_eq!(read_at(&fd, "a", 100), Ok(b"three".to_vec()));
        assert_eq!(names(&fd), Ok(vec!["a".to_owned()]));
    }

    #[test]
    fn unnamed_when_only_a_temporary_name_is_to_be_had_links_and_cleans_up() {
        let dir = Folder::new("unnamed");
        let fd = dir.open();
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
    fn read_when_it_is_a_link_a_fifo_or_endless_neither_follows_nor_waits_nor_fills_memory() {
        let dir = Folder::new("odd");
        let fd = dir.open();
        std::fs::write(dir.0.join("long"), vec![b'x'; 10_000]).unwrap();
        assert_eq!(read_at(&fd, "long", 1 << 20).unwrap().len(), 10_000);
        assert_eq!(read_at(&fd, "long", 3000).unwrap().len(), 3000);
        std::os::unix::fs::symlink("long", dir.0.join("link")).unwrap();
        assert_eq!(read_at(&fd, "link", 10), Err(Errno::LOOP));
        rustix::fs::mkfifoat(&fd, "fifo", Mode::RUSR).unwrap();
        assert_eq!(read_at(&fd, "fifo", 10), Ok(Vec::new()));
        let devices = open("/dev").unwrap();
        assert_eq!(read_at(&devices, "zero", 5000).unwrap().len(), 5000);
    }

    #[test]
    fn file_when_made_or_read_then_its_descriptor_is_no_childs() {
        let dir = Folder::new("cloexec");
        let fd = dir.open();
        let is_closed = |fd: &OwnedFd| rustix::io::fcntl_getfd(fd).unwrap() == rustix::io::FdFlags::CLOEXEC;
        assert!(is_closed(&fd));
        let unnamed = Unnamed::write(fd.as_fd(), b"x", 0o640).unwrap();
        assert!(is_closed(&unnamed.fd));
        assert_eq!(names(&fd), Ok(Vec::new()), "no name yet");
        unnamed.link(fd.as_fd(), "a").unwrap();
        unnamed.discard(fd.as_fd());
        assert_eq!(names(&fd), Ok(vec!["a".to_owned()]));
        assert!(open(dir.0.join("a").to_str().unwrap()).is_err(), "no folder");
    }

    #[test]
    fn names_when_listed_then_folders_and_files_apart_and_removal_is_of_files_that_may_be_gone() {
        let dir = Folder::new("names");
        let fd = dir.open();
        std::fs::create_dir(dir.0.join("sub")).unwrap();
        create_new(&fd, "file", b"", 0o600).unwrap();
        assert_eq!(names(&fd), Ok(vec!["file".to_owned()]));
        assert_eq!(folders(&fd), Ok(vec!["sub".to_owned()]));
        assert_eq!(remove(&fd, "file"), Ok(()));
        assert_eq!(remove(&fd, "file"), Ok(()));
        assert!(remove(&fd, "sub").is_err());
        assert_eq!(names(&fd), Ok(Vec::new()));
        assert!(
            replace(&fd, "sub", b"x", 0o600).is_err(),
            "a folder is in its place"
        );
        assert_eq!(names(&fd), Ok(Vec::new()), "nothing is left beside it");
        let some: std::collections::BTreeSet<u32> = (0..4).map(|_| random().unwrap()).collect();
        assert!(some.len() > 1);
    }

    #[test]
    fn read_when_the_limit_is_met_exactly_then_all_of_it() {
        let dir = Folder::new("limit");
        let fd = dir.open();
        for length in [0, 1, 2047, 2048, 2049, 4096] {
            replace(&fd, "x", &vec![b'x'; length], 0o600).unwrap();
            assert_eq!(read_at(&fd, "x", length).unwrap().len(), length);
            assert_eq!(read_at(&fd, "x", length + 1).unwrap().len(), length);
        }
        assert_eq!(read_at(&fd, "absent", 10), Err(Errno::NOENT));
    }

    #[test]
    fn unnamed_when_the_file_system_has_none_then_it_is_hidden_until_it_has_its_name() {
        let dir = Folder::new("hidden");
        let fd = dir.open();
        let hidden = Unnamed::hidden(fd.as_fd(), Mode::from_raw_mode(0o640)).unwrap();
        let flags = rustix::io::fcntl_getfd(&hidden.fd).unwrap();
        assert_eq!(flags, rustix::io::FdFlags::CLOEXEC);
        rustix::io::write(&hidden.fd, b"x").unwrap();
        let [name] = &names(&fd).unwrap()[..] else {
            panic!("one name")
        };
        assert!(name.starts_with(".tmp-"), "{name}");
        assert_eq!(hidden.temporary.as_ref(), Some(name));
        hidden.link(fd.as_fd(), "a").unwrap();
        hidden.discard(fd.as_fd());
        assert_eq!(names(&fd), Ok(vec!["a".to_owned()]));
        assert_eq!(read_at(&fd, "a", 10), Ok(b"x".to_vec()));
    }
}
