//! Who holds which address, answered without reading every reservation.
//!
//! `<data dir>/.owners/<network>/<container id>:<interface>` is a symlink that points nowhere; its target is the list of
//! addresses. One system call makes it whole and one reads it. Go's host-local never looks there.
//!
//! The index is only believed while nobody else has changed the folder of the reservations: after each change of ours the
//! folder's modification time is set to a date of old ([`sealed_date`]), and any file made or removed by another program moves it
//! to now. Then everything is read once and the index made anew, so it can be thrown away at any time. The date is another after
//! each boot, because a power cut may have kept some of what was written last and not the rest.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use fabric::digest::fnv1a;

use crate::files;
use crate::json::parse_ip;
use crate::owner::Owner;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Longest file name.
const NAME_LIMIT: usize = 255;

/// Modification time, in seconds, of a folder whose every reservation was indexed since the machine was started: a second
/// between March and October 2007, by the boot's id.
pub fn sealed_date() -> i64 {
    static DATE: OnceLock<i64> = OnceLock::new();
    *DATE.get_or_init(|| {
        let id = files::read(BOOT_ID, 64).unwrap_or_default();
        0x4600_0000 | (fnv1a(&id) >> 40).cast_signed()
    })
}

/// The folder's last change was ours.
pub fn is_sealed(folder: &OwnedFd) -> bool {
    rustix::fs::fstat(folder).is_ok_and(|stat| stat.st_mtime == sealed_date() && stat.st_mtime_nsec == 0)
}

/// Marks the folder's last change as ours. Where that is not possible the next call reads everything again.
pub fn seal(folder: &OwnedFd) {
    let _ = rustix::fs::futimens(
        folder,
        &Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
            last_modification: Timespec {
                tv_sec: sealed_date(),
                tv_nsec: 0,
            },
        },
    );
}

/// The index of one network.
#[derive(Debug)]
pub struct Owners {
    path: String,
    folder: Option<OwnedFd>,
}

impl Owners {
    /// The index of a network, which need not be there yet.
    pub fn open(data_dir: &str, network: &str) -> Owners {
        // A network's name does not start with a dot, so it cannot be this folder's.
        let path = format!("{data_dir}/.owners/{network}");
        let folder = files::open_folder(&path).ok();
        Owners { path, folder }
    }

    /// There is an index.
    pub fn is_there(&self) -> bool {
        self.folder.is_some()
    }

    /// The owner's name fits a file name.
    pub fn can_name(owner: &Owner) -> bool {
        let safe = |text: &str| !text.contains(['/', ':', '\0', '\n', '\r']);
        safe(&owner.container)
            && safe(&owner.ifname)
            && !owner.container.is_empty()
            && owner.container.len() + 1 + owner.ifname.len() <= NAME_LIMIT
    }

    /// What the owner holds according to the index.
    pub fn get(&self, owner: &Owner) -> Vec<IpAddr> {
        let Some(folder) = &self.folder else {
            return Vec::new();
        };
        let target = rustix::fs::readlinkat(folder, name(owner), Vec::new());
        let target = target.ok().and_then(|t| t.into_string().ok()).unwrap_or_default();
        target.split(',').filter_map(parse_ip).collect()
    }

    /// Notes what the owner holds; false when that could not be noted.
    #[must_use]
    pub fn set(&mut self, owner: &Owner, held: &[IpAddr]) -> bool {
        if held.is_empty() {
            self.remove(owner);
            return true;
        }
        if !Owners::can_name(owner) || !self.make() {
            return false;
        }
        let Some(folder) = &self.folder else { return false };
        let (name, target) = (name(owner), target(held));
        match rustix::fs::symlinkat(&target, folder, &name) {
            Err(Errno::EXIST) => {
                let _ = rustix::fs::unlinkat(folder, &name, AtFlags::empty());
                rustix::fs::symlinkat(&target, folder, &name).is_ok()
            }
            other => other.is_ok(),
        }
    }

    /// Removes the owner's note.
    pub fn remove(&self, owner: &Owner) {
        if let Some(folder) = &self.folder
            && Owners::can_name(owner)
        {
            let _ = rustix::fs::unlinkat(folder, name(owner), AtFlags::empty());
        }
    }

    /// Makes the index say exactly this; false when it does not.
    #[must_use]
    pub fn rebuild(&mut self, all: &BTreeMap<Owner, Vec<IpAddr>>) -> bool {
        if all.is_empty() && self.folder.is_none() {
            return true;
        }
        if !self.make() {
            return false;
        }
        let wanted: BTreeMap<String, &Vec<IpAddr>> = all
            .iter()
            .filter(|(owner, _)| Owners::can_name(owner))
            .map(|(owner, held)| (name(owner), held))
            .collect();
        let Some(folder) = &self.folder else { return false };
        let Ok(present) = files::names(folder) else {
            return false;
        };
        for stale in present.iter().filter(|name| !wanted.contains_key(*name)) {
            let _ = rustix::fs::unlinkat(folder, stale.as_str(), AtFlags::empty());
        }
        all.iter()
            .filter(|(owner, _)| Owners::can_name(owner))
            .all(|(owner, held)| {
                let now = rustix::fs::readlinkat(folder, name(owner), Vec::new());
                if now.is_ok_and(|now| now.to_bytes() == target(held).as_bytes()) {
                    return true;
                }
                let _ = rustix::fs::unlinkat(folder, name(owner), AtFlags::empty());
                rustix::fs::symlinkat(target(held), folder, name(owner)).is_ok()
            })
    }

    /// Removes an index that holds nothing, and the folder of indices with the last of them.
    pub fn tidy(&mut self) {
        if self.folder.is_some() {
            if rustix::fs::rmdir(&self.path).is_err() {
                return;
            }
            self.folder = None;
        }
        if let Some(parent) = std::path::Path::new(&self.path).parent() {
            let _ = rustix::fs::rmdir(parent);
        }
    }

    fn make(&mut self) -> bool {
        if self.folder.is_none() && files::make_folders(&self.path, 0o755).is_ok() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            self.folder = rustix::fs::open(&self.path, flags, Mode::empty()).ok();
        }
        self.folder.is_some()
    }
}

fn name(owner: &Owner) -> String {
    // Neither id nor interface can hold a colon.
    format!("{}:{}", owner.container, owner.ifname)
}

fn target(held: &[IpAddr]) -> String {
    held.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn owner_when_its_name_would_be_no_file_name_is_not_noted() {
        let can = |container: &str, ifname: &str| Owners::can_name(&Owner::new(container, ifname));
        assert!(can("c1", "eth0") && can("c1", ""));
        assert!(!can("", "eth0") && !can("a/b", "eth0") && !can("c1", "a:b") && !can("c1", "a\nb"));
        assert!(can(&"x".repeat(250), "eth0") && !can(&"x".repeat(251), "eth0"));
        assert!(can(&"x".repeat(253), "e") && !can(&"x".repeat(254), "e"));
    }

    #[test]
    fn index_when_written_is_read_by_the_next_and_goes_with_its_last_entry() {
        let room = tempfile::tempdir().unwrap();
        let dir = room.path().to_str().unwrap();
        let (one, two) = (Owner::new("c1", "eth0"), Owner::new("c2", "eth0"));
        let mut owners = Owners::open(dir, "n");
        assert!(!owners.is_there() && owners.get(&one).is_empty());
        assert!(owners.set(&one, &[]) && owners.rebuild(&BTreeMap::new()));
        assert!(!owners.is_there(), "nothing is made for nothing");
        assert!(owners.set(&one, &[ip("10.0.0.2"), ip("fd00::2")]) && owners.is_there());
        assert!(owners.set(&two, &[ip("10.0.0.3")]) && owners.set(&two, &[ip("10.0.0.4")]));
        assert!(!owners.set(&Owner::new("a/b", "eth0"), &[ip("10.0.0.5")]));
        let mut again = Owners::open(dir, "n");
        assert!(again.is_there());
        assert_eq!(again.get(&one), [ip("10.0.0.2"), ip("fd00::2")]);
        assert_eq!(again.get(&two), [ip("10.0.0.4")]);
        let wanted = BTreeMap::from([
            (two.clone(), vec![ip("10.0.0.9")]),
            (Owner::new("", "x"), vec![ip("10.0.0.8")]),
        ]);
        assert!(again.rebuild(&wanted));
        assert_eq!((again.get(&one), again.get(&two)), (vec![], vec![ip("10.0.0.9")]));
        // As it is, nothing is written.
        assert!(again.rebuild(&wanted));
        again.tidy();
        assert!(again.is_there() && room.path().join(".owners/n").exists());
        assert!(again.set(&two, &[]) && again.get(&two).is_empty());
        again.tidy();
        assert!(!again.is_there() && !room.path().join(".owners").exists());
        again.tidy();
    }

    #[test]
    fn folder_when_its_last_change_was_ours_is_sealed_until_the_next() {
        let room = tempfile::tempdir().unwrap();
        let folder = files::open_folder(room.path().to_str().unwrap()).unwrap();
        assert!(!is_sealed(&folder));
        seal(&folder);
        assert!(is_sealed(&folder));
        assert_eq!(sealed_date() >> 24, 0x46, "between March and October 2007");
        // The same second, as a file system without parts of seconds would have it, and another one.
        let set = |seconds, nanos| {
            let at = Timespec {
                tv_sec: seconds,
                tv_nsec: nanos,
            };
            let times = Timestamps {
                last_access: at,
                last_modification: at,
            };
            rustix::fs::futimens(&folder, &times).unwrap();
        };
        set(sealed_date(), 5);
        assert!(!is_sealed(&folder));
        set(sealed_date() + 1, 0);
        assert!(!is_sealed(&folder));
    }
}
