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

use crate::files;
use crate::host_local::store::Owner;
use crate::json::parse_ip;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Longest file name.
const NAME_LIMIT: usize = 255;

/// Modification time, in seconds, of a folder whose every reservation was indexed since the machine was started: a second
/// between March and October 2007, by the boot's id.
pub fn sealed_date() -> i64 {
    static DATE: OnceLock<i64> = OnceLock::new();
    *DATE.get_or_init(|| {
        let id = files::read(BOOT_ID, 64).unwrap_or_default();
        // FNV-1a; its upper bits are the better mixed.
        let hash = id.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        0x4600_0000 | (hash >> 40).cast_signed()
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
            self.forget(owner);
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
    pub fn forget(&self, owner: &Owner) {
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
