//! Waiting for a lock, for a time.
//!
//! The kernel's own queue cannot be waited in for a time without a signal or a thread, so a lock that somebody holds is tried again
//! and again.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Lock, LockError};

/// How long after the first look the second comes; the pauses grow to [`LAST_LOOK`].
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(10);

impl Lock {
    /// Takes the lock as soon as it is free, and signs it, or says at `until` who still has it. Missing folders are made (0755).
    ///
    /// # Errors
    /// As [`Lock::take`].
    pub fn wait(path: &Path, until: Instant) -> Result<Lock, LockError> {
        if let Some(folder) = path.parent() {
            // What cannot be made is told by what needs it.
            let _ = DirBuilder::new().recursive(true).mode(0o755).create(folder);
        }
        let lock = by(until, || match Lock::take(path) {
            Err(LockError::Held { .. }) => None,
            other => Some(other),
        });
        let lock = lock.unwrap_or_else(|| Lock::take(path))?;
        // Only for the one who finds it taken.
        let _ = lock.sign("");
        Ok(lock)
    }
}

/// Locks an open file or folder as soon as it is free; false when it was not by `until`. It stays locked as long as the descriptor
/// is open anywhere: in a program that has inherited it too.
///
/// # Errors
/// The file system has no locks.
pub fn lock_by(file: &File, until: Instant) -> io::Result<bool> {
    let locked = by(until, || match file.try_lock() {
        Ok(()) => Some(Ok(true)),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(error)) => Some(Err(error)),
    });
    locked.unwrap_or(Ok(false))
}

/// Tries until something comes of it, or it is too late.
fn by<T>(until: Instant, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let mut pause = FIRST_LOOK;
    loop {
        if let Some(done) = attempt() {
            return Some(done);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(LAST_LOOK);
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// A folder that goes with the test, however it ends.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let folder = std::env::temp_dir().join(format!("kernel-wait-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            Folder(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn wait_when_it_comes_free_takes_it_and_when_not_ends_in_time_naming_the_holder() {
        let folder = Folder::new("free");
        let path = folder.0.join("made/x.lock");
        let soon = || Instant::now() + Duration::from_millis(200);
        let held = Lock::wait(&path, soon()).unwrap();
        let started = Instant::now();
        let error = Lock::wait(&path, soon()).unwrap_err();
        assert!(matches!(error, LockError::Held { holder: Some(pid), .. } if pid == std::process::id()));
        assert!(started.elapsed() >= Duration::from_millis(200));
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || Lock::wait(&path, Instant::now() + LONG).is_ok()
        });
        drop(held);
        assert!(waiting.join().unwrap());
    }

    #[test]
    fn wait_when_a_program_outlives_its_caller_is_not_held_up_by_it() {
        let folder = Folder::new("child");
        let path = folder.0.join("x.lock");
        let held = Lock::wait(&path, Instant::now()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        drop(held);
        // Others here start programs too, which have it between their fork and their exec.
        let taken = Lock::wait(&path, Instant::now() + LONG).map(drop);
        child.kill().unwrap();
        child.wait().unwrap();
        taken.unwrap();
    }

    #[test]
    fn lock_when_a_folder_is_locked_is_had_once() {
        let folder = Folder::new("folder");
        let [one, other] = [(); 2].map(|()| File::open(&folder.0).unwrap());
        assert!(lock_by(&one, Instant::now()).unwrap());
        assert!(!lock_by(&other, Instant::now() + Duration::from_millis(20)).unwrap());
        drop(one);
        assert!(lock_by(&other, Instant::now() + LONG).unwrap());
    }
}
