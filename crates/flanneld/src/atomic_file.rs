//! Files that are whole at every moment: written aside, synced, and moved into place.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
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

/// [`stage`] and [`Staged::commit`] in one.
pub fn replace(target: &Path, content: &[u8], mode: u32) -> Result<(), WriteError> {
    stage(target, content, mode)?.commit()
}
