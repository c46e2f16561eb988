//! One daemon per device: two that keep one device would erase each other's entries for ever.
//!
//! A device is known by its network namespace and its name. Whoever keeps it holds the lock of a file that says who that is; a
//! second daemon says so and waits. The kernel drops the lock with its holder; the file stays, and says whose the device was.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fabric::object::LinkName;
use kernel::lock::{Lock, LockError};
use tracing::warn;

/// Where the lock files are.
pub const FOLDER: &str = "/run/flannel";

/// Somebody else keeps a device.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "device {device} is kept by flanneld pid {}{}",
    .holder.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string()),
    if .words.is_empty() { String::new() } else { format!(" ({words})") }
)]
pub struct Kept {
    /// Its name.
    pub device: LinkName,
    /// The holder's process.
    pub holder: Option<u32>,
    /// Its subnet file and version, in its own words.
    pub words: String,
}

/// The devices this daemon keeps.
#[derive(Debug)]
pub struct DeviceLocks {
    folder: PathBuf,
    /// Begins what we sign with.
    subnet_file: String,
    held: Mutex<BTreeMap<LinkName, Lock>>,
    /// What a predecessor in this process held, and nobody has asked for yet.
    inherited: Mutex<Vec<File>>,
    /// That locks cannot be had was told.
    told: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DeviceLocks {
    /// None yet, for the daemon with this subnet file; what a predecessor held is taken up as it is asked for.
    pub fn new(folder: &Path, subnet_file: &Path, inherited: Vec<OwnedFd>) -> DeviceLocks {
        let subnet_file = std::path::absolute(subnet_file).unwrap_or_else(|_| subnet_file.to_owned());
        DeviceLocks {
            folder: folder.to_owned(),
            subnet_file: format!("subnet file {}, ", subnet_file.display()),
            held: Mutex::default(),
            inherited: Mutex::new(inherited.into_iter().map(File::from).collect()),
            told: AtomicBool::new(false),
        }
    }

    /// Takes the locks of these devices in the calling thread's network namespace; those that are held stay so. Where locks
    /// cannot be had at all, that is one line in the log, and the devices are kept without.
    ///
    /// # Errors
    /// Another daemon has one of them.
    pub fn take(&self, devices: &[LinkName]) -> Result<(), Kept> {
        devices
            .iter()
            .try_for_each(|device| self.take_one(*device, false))
    }

    /// As [`DeviceLocks::take`], for devices of former times: those that have become another daemon's in between are returned and
    /// left alone, also while that one is not running.
    pub fn take_former(&self, devices: &[LinkName]) -> Vec<Kept> {
        let taken = devices.iter().map(|device| self.take_one(*device, true));
        taken.filter_map(Result::err).collect()
    }

    fn take_one(&self, device: LinkName, former: bool) -> Result<(), Kept> {
        if lock(&self.held).contains_key(&device) {
            return Ok(());
        }
        let path = match self.path(device) {
            Ok(path) => path,
            Err(failure) => {
                self.go_without(&failure);
                return Ok(());
            }
        };
        let resumed = self.resume(&path);
        let held = match resumed.map_or_else(|| Lock::take(&path), Ok) {
            Ok(held) => held,
            Err(LockError::Held { holder, words, .. }) => {
                return Err(Kept {
                    device,
                    holder,
                    words: printable(&words),
                });
            }
            Err(failure) => {
                self.go_without(&failure);
                return Ok(());
            }
        };
        let words = held.words();
        if former && !words.is_empty() && !words.starts_with(&self.subnet_file) {
            return Err(Kept {
                device,
                holder: None,
                words: printable(&words),
            });
        }
        let signature = format!("{}version {}", self.subnet_file, env!("CARGO_PKG_VERSION"));
        if let Err(failure) = held.sign(&signature) {
            self.go_without(&failure);
        }
        lock(&self.held).insert(device, held);
        Ok(())
    }

    /// Lets go of devices that are gone.
    pub fn remove(&self, devices: &[LinkName]) {
        for device in devices {
            if let Some(held) = lock(&self.held).remove(device) {
                let _ = held.remove();
            }
        }
    }

    /// Lets go of what a predecessor held and this daemon does not need.
    pub fn drop_inherited(&self) {
        lock(&self.inherited).clear();
    }

    /// The locks, for the next program in this process.
    pub fn hand_over(&self) -> Vec<OwnedFd> {
        let (held, inherited) = (lock(&self.held), lock(&self.inherited));
        let held = held.values().map(|lock| lock.as_fd().try_clone_to_owned());
        held.chain(inherited.iter().map(|file| file.as_fd().try_clone_to_owned()))
            .filter_map(Result::ok)
            .collect()
    }

    fn resume(&self, path: &Path) -> Option<Lock> {
        let mut inherited = lock(&self.inherited);
        let mut others = Vec::new();
        let mut found = None;
        for file in inherited.drain(..) {
            match Lock::resume(path, file) {
                Ok(lock) => found = Some(lock),
                Err(file) => others.push(file),
            }
        }
        *inherited = others;
        found
    }

    fn path(&self, device: LinkName) -> io::Result<PathBuf> {
        // The namespace's inode is its identity on this host, for as long as anybody is in it.
        let namespace = fs::metadata("/proc/thread-self/ns/net")?.ino();
        Ok(self.folder.join(format!("{namespace}-{device}.lock")))
    }

    fn go_without(&self, failure: &dyn std::fmt::Display) {
        if !self.told.swap(true, Ordering::Relaxed) {
            warn!("devices are kept without a lock, no second daemon would be noticed: {failure}");
        }
    }
}

/// Words of others, in a form that a terminal shows as they are.
fn printable(words: &str) -> String {
    words
        .chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect()
            } else {
                vec![c]
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str) -> LinkName {
        LinkName::new(name).unwrap()
    }

    fn locks(folder: &Path, subnet_file: &str) -> DeviceLocks {
        DeviceLocks::new(folder, Path::new(subnet_file), Vec::new())
    }

    #[test]
    fn take_when_another_daemon_keeps_the_device_then_says_who_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (locks(folder.path(), "/a.env"), locks(folder.path(), "/b.env"));
        let devices = [device("flannel.1"), device("flannel-v6.1")];
        first.take(&devices).unwrap();
        first.take(&devices).unwrap();
        let kept = second.take(&devices).unwrap_err().to_string();
        let pid = std::process::id();
        assert_eq!(
            kept,
            format!(
                "device flannel.1 is kept by flanneld pid {pid} (subnet file /a.env, version {})",
                env!("CARGO_PKG_VERSION")
            )
        );
        second.take(&[device("flannel.2")]).unwrap();
        drop(first);
        second.take(&devices).unwrap();
    }

    #[test]
    fn take_former_when_it_has_become_anothers_then_it_is_left_alone_also_after_that_one_ended() {
        let folder = tempfile::tempdir().unwrap();
        let devices = [device("flannel.1"), device("flannel.7")];
        let other = locks(folder.path(), "/b.env");
        other.take(&devices[..1]).unwrap();
        let ours = locks(folder.path(), "/a.env");
        for _ in 0..2 {
            let kept = ours.take_former(&devices);
            assert_eq!(
                kept.iter().map(|kept| kept.device).collect::<Vec<_>>(),
                devices[..1]
            );
            other.held.lock().unwrap().clear();
        }
        ours.remove(&devices);
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "what was ours has gone"
        );
    }

    #[test]
    fn hand_over_when_the_next_program_takes_up_then_the_lock_was_never_free() {
        let folder = tempfile::tempdir().unwrap();
        let devices = [device("flannel.1")];
        let before = locks(folder.path(), "/a.env");
        before.take(&devices).unwrap();
        let left = before.hand_over();
        drop(before);
        let other = locks(folder.path(), "/b.env");
        assert!(other.take(&devices).is_err());
        let after = DeviceLocks::new(folder.path(), Path::new("/a.env"), left);
        assert!(other.take(&devices).is_err());
        after.take(&devices).unwrap();
        after.drop_inherited();
        assert!(other.take(&devices).is_err());
        drop(after);
        other.take(&devices).unwrap();
    }

    #[test]
    fn take_when_the_folder_cannot_be_written_then_goes_on_without() {
        locks(Path::new("/proc/nowhere"), "/a.env")
            .take(&[device("flannel.1")])
            .unwrap();
    }
}
