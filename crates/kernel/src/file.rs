//! Small files that are whole at every moment: written aside and moved into place.
//!
//! By their path they are synced as well, so that a power cut leaves the old or the new. In a folder that is open ([`folder`]) they
//! are not: what those describe does not survive such a cut either.

pub mod folder;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Which step of writing failed, on which path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {path}: {source}", path = path.display())]
pub struct WriteError {
    /// What was being done.
    pub step: &'static str,
    /// To what.
    pub path: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

fn at(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let path = path.to_owned();
    move |source| WriteError { step, path, source }
}

/// A complete temporary file beside its target. Dropped without [`Staged::commit`], it is removed.
#[derive(Debug)]
pub struct Staged {
    temporary: PathBuf,
    target: PathBuf,
    committed: bool,
}

/// The directory a path is in.
fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes `content` beside `target`, on disk when this returns. Missing directories are made (0755, less the umask).
///
/// The mode is that of the file that is there, or `mode`, whatever the umask. The temporary file lies in the target's own
/// directory, so that the move cannot cross file systems, under one fixed name, so that a crash leaves at most one behind.
///
/// # Errors
///
/// The step that failed. What was there is untouched.
pub fn stage(target: &Path, content: &[u8], mode: u32) -> Result<Staged, WriteError> {
    let name = target.file_name().ok_or_else(|| {
        at("write", target)(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not the path of a file",
        ))
    })?;
    let directory = directory(target);
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .map_err(at("make directory", directory))?;
    let mode = match fs::metadata(target) {
        Ok(found) if found.is_file() => found.permissions().mode() & 0o7777,
        Ok(found) if found.is_dir() => {
            return Err(at("write", target)(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        _ => mode,
    };
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    let temporary = directory.join(hidden);
    // Exclusive, so that a link somebody put there is not followed.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at("remove", &temporary)(error)),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode & 0o600)
        .open(&temporary)
        .map_err(at("create", &temporary))?;
    let staged = Staged {
        temporary,
        target: target.to_owned(),
        committed: false,
    };
    file.write_all(content).map_err(at("write", &staged.temporary))?;
    file.set_permissions(Permissions::from_mode(mode))
        .map_err(at("set the mode of", &staged.temporary))?;
    file.sync_all().map_err(at("sync", &staged.temporary))?;
    Ok(staged)
}

impl Staged {
    /// Moves the file into place and syncs the directory, so that a power cut leaves the old or the new, never neither.
    ///
    /// # Errors
    ///
    /// The step that failed: up to the move what was there is untouched.
    pub fn commit(mut self) -> Result<(), WriteError> {
        fs::rename(&self.temporary, &self.target).map_err(at("replace", &self.target))?;
        self.committed = true;
        let directory = directory(&self.target);
        File::open(directory)
            .and_then(|d| d.sync_all())
            .map_err(at("sync directory", directory))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Opens a file for reading; `None` where there is none. Does not wait for a writer where there is a FIFO.
///
/// # Errors
///
/// The system's; and where there is something else than a regular file.
pub fn open(path: &Path) -> io::Result<Option<File>> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(nonblocking).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(Some(file))
}

/// Reads a file whole; `None` where there is none.
///
/// # Errors
///
/// As [`open`]; and [`io::ErrorKind::FileTooLarge`] where it has more than `most` bytes, of which no more are read.
pub fn read(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = open(path)? else { return Ok(None) };
    let mut content = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut content)?;
    if u64::try_from(content.len()).is_ok_and(|length| length > most) {
        let text = format!("more than the {most} bytes that are expected at most");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(Some(content))
}

/// [`stage`] and [`Staged::commit`] in one.
///
/// # Errors
///
/// As these.
pub fn replace(target: &Path, content: &[u8], mode: u32) -> Result<(), WriteError> {
    stage(target, content, mode)?.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that goes with the test, however it ends.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let folder = std::env::temp_dir().join(format!("kernel-file-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            Folder(folder)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<_> = entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn replace_when_a_file_is_there_keeps_its_mode_and_leaves_nothing_beside_it() {
        let folder = Folder::new("replace");
        let file = folder.0.join("made/x");
        let mode = || fs::metadata(&file).unwrap().permissions().mode() & 0o7777;
        replace(&file, b"one", 0o640).unwrap();
        assert_eq!(
            (fs::read(&file).unwrap().as_slice(), mode()),
            (&b"one"[..], 0o640)
        );
        fs::set_permissions(&file, Permissions::from_mode(0o604)).unwrap();
        replace(&file, b"two", 0o640).unwrap();
        assert_eq!(
            (fs::read(&file).unwrap().as_slice(), mode()),
            (&b"two"[..], 0o604)
        );
        drop(stage(&file, b"three", 0o640).unwrap());
        assert_eq!(fs::read(&file).unwrap(), b"two");
        assert_eq!(folder.names(), ["made"]);
        assert_eq!(fs::read_dir(folder.0.join("made")).unwrap().count(), 1);
    }

    #[test]
    fn replace_when_a_link_waits_at_the_temporary_name_does_not_follow_it_and_a_folder_is_told() {
        let folder = Folder::new("odd");
        let (victim, file) = (folder.0.join("victim"), folder.0.join("x"));
        fs::write(&victim, "untouched").unwrap();
        std::os::unix::fs::symlink(&victim, folder.0.join(".x.new")).unwrap();
        replace(&file, b"one", 0o600).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"untouched");
        assert_eq!(folder.names(), ["victim", "x"]);
        let error = replace(&folder.0, b"", 0o600).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::IsADirectory);
    }

    #[test]
    fn open_when_it_is_no_regular_file_is_refused_without_waiting() {
        let folder = Folder::new("open");
        let fifo = folder.0.join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
        for odd in [fifo, folder.0.clone(), "/dev/zero".into()] {
            let error = open(&odd).unwrap_err();
            assert_eq!(error.to_string(), "not a regular file", "{odd:?}");
        }
        assert!(open(&folder.0.join("absent")).unwrap().is_none());
    }

    #[test]
    fn read_when_there_is_more_than_expected_reads_no_more_and_says_so() {
        let folder = Folder::new("read");
        let file = folder.0.join("x");
        assert_eq!(read(&file, 3).unwrap(), None);
        fs::write(&file, "abc").unwrap();
        assert_eq!(read(&file, 3).unwrap().as_deref(), Some(&b"abc"[..]));
        let error = read(&file, 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert!(error.to_string().contains("more than the 2 bytes"), "{error}");
        let device = read(Path::new("/dev/zero"), 2).unwrap_err();
        assert_eq!(device.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn replace_when_a_device_or_a_pipe_is_in_its_place_then_the_mode_is_the_wanted_one() {
        let folder = Folder::new("pipe");
        let pipe = folder.0.join("x");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::from_raw_mode(0o604)).unwrap();
        replace(&pipe, b"one", 0o640).unwrap();
        let found = fs::metadata(&pipe).unwrap();
        assert!(found.is_file());
        assert_eq!(found.permissions().mode() & 0o7777, 0o640);
    }

    #[test]
    fn write_when_a_step_fails_then_it_and_its_path_are_named() {
        let folder = Folder::new("steps");
        fs::write(folder.0.join("file"), "x").unwrap();
        let below = folder.0.join("file/below/x");
        let text = replace(&below, b"", 0o600).unwrap_err().to_string();
        assert!(text.starts_with("cannot make directory "), "{text}");
        fs::create_dir(folder.0.join(".x.new")).unwrap();
        let text = replace(&folder.0.join("x"), b"", 0o600).unwrap_err().to_string();
        assert!(
            text.starts_with("cannot remove ") && text.contains(".x.new"),
            "{text}"
        );
        let text = replace(Path::new("/"), b"", 0o600).unwrap_err().to_string();
        assert!(text.ends_with("not the path of a file"), "{text}");
        assert_eq!(directory(Path::new("x")), Path::new("."));
        assert_eq!(directory(Path::new("a/x")), Path::new("a"));
    }
}
