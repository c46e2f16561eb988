//! The one file that the test hosts of a process share with the machine: the plugins' firewall lock.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

const FOLDER: &str = "/run/flannel";
const FILE: &str = "/run/flannel/cni-firewall.lock";

/// Held by each host; the last one takes file and folder along, where the first found none.
pub struct FirewallLock;

struct Found {
    hosts: usize,
    file: bool,
    folder: bool,
}

static FOUND: Mutex<Found> = Mutex::new(Found {
    hosts: 0,
    file: false,
    folder: false,
});

impl FirewallLock {
    pub fn new() -> FirewallLock {
        let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
        if found.hosts == 0 {
            found.file = Path::new(FILE).exists();
            found.folder = Path::new(FOLDER).exists();
        }
        found.hosts += 1;
        FirewallLock
    }
}

impl Drop for FirewallLock {
    fn drop(&mut self) {
        let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
        found.hosts -= 1;
        if found.hosts == 0 && !found.file {
            let _ = std::fs::remove_file(FILE);
        }
        if found.hosts == 0 && !found.folder {
            let _ = std::fs::remove_dir(FOLDER);
        }
    }
}
