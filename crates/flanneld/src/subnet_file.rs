//! `subnet.env` on disk: written whole at start, put right while running.
//!
//! What stands in it is `fabric::subnet_env`'s; here is only how it gets to disk and back.

use std::io;
use std::path::{Path, PathBuf};

use fabric::subnet_env::{self, Previous, SubnetEnv};
use kernel::file::{self, WriteError};

pub use self::folder::{Disk, Folder};
pub use self::keeper::{LOOK, Order, SubnetFile};

mod folder;
mod keeper;

/// Mode of a new file, whatever the umask: docker, the CNI plugin and shells of any user read it.
const MODE: u32 = 0o644;
/// A file larger than this is none of ours, nor docker's: both write a few lines.
const LARGEST: u64 = 1 << 20;
/// Times a repair is begun anew because somebody wrote meanwhile.
const ATTEMPTS: usize = 5;

/// Why the file could not be put right.
#[derive(Debug, thiserror::Error)]
pub enum SubnetFileError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What [`repair`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repaired {
    /// Every line of ours was there and right.
    Unchanged,
    /// Something of ours was missing or wrong, and is right again.
    Written,
}

/// The content; `None` where there is no file.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    file::read(path, LARGEST)
}

/// Makes the file say this and nothing else; one that does is not touched.
pub fn write(path: &Path, wanted: &SubnetEnv) -> Result<(), SubnetFileError> {
    let text = wanted.render();
    if read(path).ok().flatten().as_deref() != Some(text.as_bytes()) {
        file::replace(path, text.as_bytes(), MODE)?;
    }
    Ok(())
}

/// Puts back what is missing or changed of ours; foreign lines stay.
///
/// COMPAT: `mk-docker-opts.sh -d subnet.env` writes over the file while we run, line by line and not atomically. A write
/// that happens while we work is seen and taken in by beginning anew; what is left is the moment of the rename itself.
pub fn repair(path: &Path, wanted: &SubnetEnv) -> Result<Repaired, SubnetFileError> {
    let failed = |source| SubnetFileError::Read {
        path: path.to_owned(),
        source,
    };
    let mut found = match read(path) {
        Ok(found) => found,
        // No file of lines is in its place: there is none that could be kept.
        Err(error) if is_none(&error) => {
            file::replace(path, wanted.render().as_bytes(), MODE)?;
            return Ok(Repaired::Written);
        }
        Err(error) => return Err(failed(error)),
    };
    for attempt in 1.. {
        let text = found.as_deref().map(String::from_utf8_lossy);
        let right = subnet_env::repair(text.as_deref().unwrap_or(""), wanted);
        if text.as_deref() == Some(right.as_str()) {
            return Ok(Repaired::Unchanged);
        }
        let staged = file::stage(path, right.as_bytes(), MODE)?;
        let now = read(path).map_err(failed)?;
        if now == found || attempt >= ATTEMPTS {
            staged.commit()?;
            break;
        }
        found = now;
    }
    Ok(Repaired::Written)
}

/// Whether what is in the place of a file is none, or none of ours.
fn is_none(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::FileTooLarge
    )
}

/// Whether every line of ours is there and right; a file that cannot be read is not.
pub fn is_right(path: &Path, wanted: &SubnetEnv) -> bool {
    read(path).ok().flatten().is_some_and(|found| {
        let text = String::from_utf8_lossy(&found);
        subnet_env::repair(&text, wanted) == text
    })
}

/// What the file of the last run says. A missing file says nothing; one that cannot be read is a problem to log.
pub fn read_previous(path: &Path) -> Previous {
    match read(path) {
        Ok(None) => Previous::default(),
        Ok(Some(content)) => subnet_env::read_previous(&String::from_utf8_lossy(&content)),
        Err(error) => Previous {
            problems: vec![format!("cannot be read: {error}")],
            ..Previous::default()
        },
    }
}
