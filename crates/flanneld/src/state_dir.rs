//! What must survive a reboot: former networks, devices and leases, the own subnet, and beside it the [cache](crate::cache).
//!
//! The state lies in [`DEFAULT_DIRECTORY`], or, for a daemon with another `--subnet-file`, in a folder of it that is named
//! after that file: two daemons on one host have two subnet files, and so two states. It only ever allows more: without it
//! nothing of former times is removed, and the own subnet is found in the registry. So a state that cannot be read or
//! written is one line in the log, and the daemon goes on without.

mod state;

use std::fmt::Write;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kernel::file;
use sha2::{Digest, Sha256};
use tracing::warn;

use crate::cache::Cache;
use crate::flags::table::DEFAULT_SUBNET_FILE;

pub use state::State;

/// Where the state of the daemon with the default subnet file lies.
pub const DEFAULT_DIRECTORY: &str = "/var/lib/flannel";
/// The state's name in its folder.
pub const FILE: &str = "state.json";
/// The cache's name there.
pub const CACHE: &str = "cache";
/// Only the daemon reads it.
const MODE: u32 = 0o600;
/// A state larger than this is not one of ours: 10,000 leases make about 3 MiB.
const LARGEST: u64 = 64 << 20;

/// The place of the state.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    subnet_file: PathBuf,
    /// What could not be written: it is tried again, and to us it is what is there.
    unsaved: Mutex<Option<State>>,
    /// It was read once. Until then what is saved is added to what is there: a disk that did not answer at start may have a past.
    read: AtomicBool,
}

impl StateDir {
    /// The state of the daemon with this subnet file.
    pub fn for_subnet_file(subnet_file: &Path) -> StateDir {
        StateDir::under(Path::new(DEFAULT_DIRECTORY), subnet_file)
    }

    /// As [`StateDir::for_subnet_file`], below another directory than the default.
    pub fn under(directory: &Path, subnet_file: &Path) -> StateDir {
        let subnet_file = std::path::absolute(subnet_file).unwrap_or_else(|_| subnet_file.to_owned());
        let path = if subnet_file == Path::new(DEFAULT_SUBNET_FILE) {
            directory.to_owned()
        } else {
            directory.join(folder_name(&subnet_file))
        };
        StateDir {
            path,
            subnet_file,
            unsaved: Mutex::new(None),
            read: AtomicBool::new(false),
        }
    }

    /// The file itself.
    pub fn file(&self) -> PathBuf {
        self.path.join(FILE)
    }

    /// What the registry last said.
    pub fn cache(&self) -> Cache {
        Cache::at(self.path.join(CACHE))
    }

    /// Reads the state; an empty one, with a line in the log, where there is none to be had.
    pub fn load(&self) -> State {
        if let Some(unsaved) = &*self.unsaved() {
            return unsaved.clone();
        }
        let file = self.file();
        let read = read(&file);
        self.read.store(true, Ordering::Relaxed);
        match read {
            Ok(Some(state)) => state,
            Ok(None) => State::default(),
            Err(why) => {
                warn!("state {}: {why}; starting without it", file.display());
                State::default()
            }
        }
    }

    /// Writes the state, whole or not at all. What cannot be written is kept until it can, or until there is another.
    ///
    /// # Errors
    /// Why it cannot be written, in words.
    pub fn save(&self, state: &State) -> Result<(), String> {
        let written = self.write(state);
        *self.unsaved() = written.is_err().then(|| state.clone());
        written
    }

    /// Whether the last state could not be written.
    pub fn is_unsaved(&self) -> bool {
        self.unsaved().is_some()
    }

    fn unsaved(&self) -> MutexGuard<'_, Option<State>> {
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, state: &State) -> Result<(), String> {
        let mut marked = state.clone();
        if !self.read.load(Ordering::Relaxed)
            && let Ok(Some(before)) = read(&self.file())
        {
            marked.add_earlier(before);
        }
        marked.subnet_file = self.subnet_file.to_string_lossy().into_owned();
        let text = serde_json::to_vec(&marked).map_err(|error| error.to_string())?;
        file::replace(&self.file(), &text, MODE).map_err(|error| error.to_string())
    }
}

/// The states of all daemons whose folders lie under this directory, each with its folder. One that cannot be read is given as why.
pub fn all_under(directory: &Path) -> Vec<(PathBuf, Result<State, String>)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.symlink_metadata().is_ok_and(|found| found.is_dir()))
        .collect();
    folders.sort();
    folders.insert(0, directory.to_owned());
    let states = folders.into_iter().filter_map(|folder| {
        let state = read(&folder.join(FILE)).transpose()?;
        Some((folder, state))
    });
    states.collect()
}

fn read(file: &Path) -> Result<Option<State>, String> {
    let Some(open) = file::open(file).map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    let mut text = Vec::new();
    open.take(LARGEST + 1)
        .read_to_end(&mut text)
        .map_err(|error| error.to_string())?;
    if u64::try_from(text.len()).is_ok_and(|length| length > LARGEST) {
        return Err(format!("more than the {LARGEST} bytes that are expected at most"));
    }
    let state: State = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    state.check_format()?;
    Ok(Some(state))
}

/// The first 16 hex digits of the path's SHA-256.
fn folder_name(path: &Path) -> String {
    let hash = Sha256::digest(path.as_os_str().as_bytes());
    hash.iter()
        .take(8)
        .fold(String::with_capacity(16), |mut name, byte| {
            // Writing to a String cannot fail.
            let _ = write!(name, "{byte:02x}");
            name
        })
}
