//! What must survive a reboot: former networks, devices and leases, the own subnet, and beside it the [cache](crate::cache).
//!
//! The state lies in [`DEFAULT_DIRECTORY`], or, for a daemon with another `--subnet-file`, in a folder of it that is named
//! after that file: two daemons on one host have two subnet files, and so two states. It only ever allows more: without it
//! nothing of former times is removed, and the own subnet is found in the registry. So a state that cannot be read or
//! written is one line in the log, and the daemon goes on without.

mod state;

use std::fmt::Write;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};
use tracing::{info, warn};

use crate::atomic_file;
use crate::cache::Cache;
use crate::flags::table::DEFAULT_SUBNET_FILE;

pub use state::State;

/// Where the state of the daemon with the default subnet file lies.
pub const DEFAULT_DIRECTORY: &str = "/var/lib/flannel";
const FILE: &str = "state.json";
const CACHE: &str = "cache";
/// Only the daemon reads it.
const MODE: u32 = 0o600;
/// A state larger than this is not one of ours: 10,000 leases make about 3 MiB.
const LARGEST: u64 = 64 << 20;

/// The place of the state.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    subnet_file: PathBuf,
    /// Saving failed and was told: it is told again only after it worked in between.
    told: AtomicBool,
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
            told: AtomicBool::new(false),
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
        let file = self.file();
        match self.read(&file) {
            Ok(Some(state)) => state,
            Ok(None) => State::default(),
            Err(why) => {
                warn!("state {}: {why}; starting without it", file.display());
                State::default()
            }
        }
    }

    fn read(&self, file: &Path) -> Result<Option<State>, String> {
        let length = match std::fs::metadata(file) {
            Ok(found) => found.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        if length > LARGEST {
            return Err(format!("{length} bytes, expected at most {LARGEST}"));
        }
        let text = std::fs::read(file).map_err(|error| error.to_string())?;
        let state: State = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        state.check_format()?;
        Ok(Some(state))
    }

    /// Writes the state, whole or not at all. Failures are logged once until it works again.
    pub fn save(&self, state: &State) {
        match self.write(state) {
            Ok(()) => {
                if self.told.swap(false, Ordering::Relaxed) {
                    info!("state {}: written again", self.file().display());
                }
            }
            Err(why) => {
                if !self.told.swap(true, Ordering::Relaxed) {
                    warn!("state: {why}; going on without, it will be missing after a reboot");
                }
            }
        }
    }

    fn write(&self, state: &State) -> Result<(), String> {
        let mut marked = state.clone();
        marked.subnet_file = self.subnet_file.to_string_lossy().into_owned();
        let text = serde_json::to_vec(&marked).map_err(|error| error.to_string())?;
        atomic_file::replace(&self.file(), &text, MODE).map_err(|error| error.to_string())
    }
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
