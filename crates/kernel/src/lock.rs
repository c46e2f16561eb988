//! A lock file: at most one process does what it stands for. The kernel lets go of it when the process ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

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

/// A lock that is held until this is dropped. The file stays: removing it would let two processes lock two files of one name.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock or says who has it; does not wait. Missing folders are made.
    pub fn take(path: &Path) -> Result<Lock, LockError> {
        let io = |source| LockError::Io {
            path: path.to_path_buf(),
            source,
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                return Err(LockError::Held {
                    path: path.to_path_buf(),
                    holder: text.trim().parse().ok(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
        written.map_err(io)?;
        Ok(Lock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn take_when_held_then_says_by_whom_and_after_the_end_it_is_free() {
        let folder = std::env::temp_dir().join(format!("kernel-lock-{}", std::process::id()));
        let path = folder.join("a/flannel.1.lock");
        let held = Lock::take(&path).unwrap();
        let text = Lock::take(&path).unwrap_err().to_string();
        assert!(
            text.ends_with(&format!("is locked by process {}", std::process::id())),
            "{text}"
        );
        drop(held);
        Lock::take(&path).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(matches!(
            Lock::take(Path::new("/proc/none/x")),
            Err(LockError::Io { .. })
        ));
    }
}
