//! Reservations on disk: one file per address, as Go's host-local has them, under the same lock.
//!
//! `<data dir>/<network>/<address>` holds `<container id>\r\n<interface>`. A file appears with its content or not at all, so an
//! empty one is what a crash of somebody else left and counts as free. Reading every file to find an owner is what makes Go's
//! cost grow with the node; here [`Owners`] answers that.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::files::{self, FileError, Unnamed};
use crate::host_local::owners::{Owners, is_sealed, seal};
use crate::json::parse_ip;
use crate::owner::Owner;

/// Bytes of a reservation that are read: an id of 255, a name of 15 and white space fit.
const RESERVATION_LIMIT: usize = 4096;
/// A reservation that is not older may be of an ADD that the runtime does not know of yet.
const YOUNG: Duration = Duration::from_secs(60);
const LAST_PREFIX: &str = "last_reserved_ip.";

/// The reservations of one network, locked against every other process until dropped.
#[derive(Debug)]
pub struct Store {
    folder: OwnedFd,
    path: String,
    owners: Owners,
    /// The index knows every reservation.
    indexed: bool,
    /// Held for its flock(2).
    _lock: OwnedFd,
}

impl Store {
    /// Opens and locks a network's folder, made when it is not there.
    ///
    /// # Errors
    ///
    /// The folder cannot be made, opened or locked.
    pub fn create(data_dir: &str, network: &str) -> Result<Store, FileError> {
        let path = format!("{data_dir}/{network}");
        let folder = match files::open_folder(&path) {
            Err(e) if e.errno == Errno::NOENT => {
                files::make_folders(&path, 0o755)?;
                files::open_folder(&path)
            }
            other => other,
        }?;
        Store::lock(folder, path, data_dir, network)
    }

    /// Opens and locks a network's folder; `None` when it is not there.
    ///
    /// # Errors
    ///
    /// The folder cannot be opened or locked.
    pub fn open(data_dir: &str, network: &str) -> Result<Option<Store>, FileError> {
        let path = format!("{data_dir}/{network}");
        match files::open_folder(&path) {
            Ok(folder) => Store::lock(folder, path, data_dir, network).map(Some),
            Err(e) if e.is_absent() => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn lock(folder: OwnedFd, path: String, data_dir: &str, network: &str) -> Result<Store, FileError> {
        let fail = |operation| {
            let path = format!("{path}/lock");
            move |errno| FileError::new(operation, path, errno)
        };
        let flags = OFlags::RDONLY | OFlags::CREATE;
        let lock = open_to_change(&folder, "lock", flags, 0o750).map_err(fail("open"))?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&lock, FlockOperation::LockExclusive))
            .map_err(fail("flock"))?;
        let owners = Owners::open(data_dir, network);
        let indexed = owners.is_there() && is_sealed(&folder);
        Ok(Store {
            folder,
            path,
            owners,
            indexed,
            _lock: lock,
        })
    }

    /// Path of the network's folder.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Addresses an attachment holds. Files without an interface name count when there are none with it.
    ///
    /// # Errors
    ///
    /// The folder cannot be read.
    pub fn held_by(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, FileError> {
        let exact = self.find(owner)?;
        if !exact.is_empty() || owner.ifname.is_empty() {
            return Ok(exact);
        }
        self.find(&Owner::new(&owner.container, ""))
    }

    /// Another interface of the container holds an address here; those of `except` do not count.
    ///
    /// # Errors
    ///
    /// The folder cannot be read.
    pub fn holds_another_of(&mut self, owner: &Owner, except: &[String]) -> Result<bool, FileError> {
        let all = self.scan()?;
        let counts = |ifname: &String| *ifname != owner.ifname && !except.contains(ifname);
        Ok(all
            .keys()
            .any(|other| other.container == owner.container && counts(&other.ifname)))
    }

    /// Every reservation by owner. Removes files that name none.
    ///
    /// # Errors
    ///
    /// The folder cannot be read.
    pub fn all(&mut self) -> Result<BTreeMap<Owner, Vec<IpAddr>>, FileError> {
        self.scan()
    }

    /// Reserves the first free address of those offered. `taken_elsewhere` says what not to take though it is free here.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn reserve<T>(
        &mut self,
        owner: &Owner,
        candidates: impl Iterator<Item = (IpAddr, T)>,
        mut taken_elsewhere: impl FnMut(IpAddr) -> bool,
    ) -> Result<Option<(IpAddr, T)>, FileError> {
        /// Tries of names one by one before they are all read at once.
        const TRIES: usize = 16;
        let fail = |name: &str, errno| FileError::new("open", format!("{}/{name}", self.path), errno);
        let file = Unnamed::write(self.folder.as_fd(), owner.content().as_bytes(), 0o600)
            .map_err(|e| fail("", e))?;
        let mut taken: Option<HashSet<String>> = None;
        let (mut tries, mut found) = (0, Ok(None));
        for (ip, with) in candidates {
            let name = ip.to_string();
            if taken.as_ref().is_some_and(|taken| taken.contains(&name)) || taken_elsewhere(ip) {
                continue;
            }
            match self.link(&file, &name) {
                Ok(true) => {
                    found = Ok(Some((ip, with)));
                    break;
                }
                Ok(false) => tries += 1,
                Err(e) => {
                    found = Err(fail(&name, e));
                    break;
                }
            }
            if tries == TRIES {
                taken = files::names(&self.folder)
                    .ok()
                    .map(|names| names.into_iter().collect());
            }
        }
        file.discard(self.folder.as_fd());
        found
    }

    /// Gives the file an address's name; a file of that name that is empty makes way.
    fn link(&self, file: &Unnamed, name: &str) -> Result<bool, Errno> {
        match file.link(self.folder.as_fd(), name) {
            Err(Errno::EXIST) => {}
            other => return other.map(|()| true),
        }
        match files::read_at(&self.folder, name, RESERVATION_LIMIT) {
            Ok(content) if Owner::parse(&content).is_none() => {}
            Err(e) if files::is_odd(e) => {}
            _ => return Ok(false),
        }
        files::remove(&self.folder, name)?;
        match file.link(self.folder.as_fd(), name) {
            Err(Errno::EXIST) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// There is a file for the address that says who holds it.
    pub fn is_reserved(&self, ip: IpAddr) -> bool {
        self.holder(ip).is_some()
    }

    /// Who holds an address.
    pub fn holder(&self, ip: IpAddr) -> Option<Owner> {
        let content = files::read_at(&self.folder, &ip.to_string(), RESERVATION_LIMIT);
        Owner::parse(&content.ok()?)
    }

    /// The reservation was written within the last minute.
    pub fn is_young(&self, ip: IpAddr) -> bool {
        self.written(ip)
            .is_some_and(|at| at.elapsed().map_or(true, |age| age < YOUNG))
    }

    /// How long ago the reservation was written; nothing where that is in the future.
    pub fn age(&self, ip: IpAddr) -> Option<Duration> {
        self.written(ip)?.elapsed().ok()
    }

    fn written(&self, ip: IpAddr) -> Option<SystemTime> {
        let stat = rustix::fs::statat(&self.folder, ip.to_string(), AtFlags::SYMLINK_NOFOLLOW);
        let seconds = u64::try_from(stat.ok()?.st_mtime).ok()?;
        Some(UNIX_EPOCH + Duration::from_secs(seconds))
    }

    /// Address last handed out of a range set.
    pub fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        let content = files::read_at(&self.folder, &format!("{LAST_PREFIX}{set}"), 64).ok()?;
        parse_ip(String::from_utf8_lossy(&content).trim())
    }

    /// Notes the address last handed out of a range set. Only a hint where to look first the next time: one that cannot be written
    /// is none.
    pub fn set_last_reserved(&self, set: usize, ip: IpAddr) {
        let name = format!("{LAST_PREFIX}{set}");
        let text = ip.to_string();
        // In place: truncating first makes ext4 flush the file when it is closed.
        let write = || -> Result<(), Errno> {
            let fd = open_to_change(&self.folder, &name, OFlags::WRONLY | OFlags::CREATE, 0o600)?;
            rustix::io::pwrite(&fd, text.as_bytes(), 0)?;
            rustix::fs::ftruncate(&fd, text.len() as u64)
        };
        let _ = write();
    }

    /// Notes what an attachment holds now, all of it. To be called at the end of a change.
    pub fn index(&mut self, owner: &Owner, held: &[IpAddr]) {
        self.indexed = self.indexed && self.owners.set(owner, held);
        self.finish();
    }

    /// Removes an attachment's reservations; returns how many there were. `hints` are addresses it may hold that are looked at
    /// even if the index knows nothing of them.
    ///
    /// # Errors
    ///
    /// A file cannot be removed.
    pub fn release(&mut self, owner: &Owner, hints: &[IpAddr]) -> Result<usize, FileError> {
        let mut held = self.held_by(owner)?;
        for hint in hints {
            if !held.contains(hint) && self.belongs(*hint, owner) {
                held.push(*hint);
            }
        }
        self.remove(&held)?;
        for gone in [owner, &Owner::new(&owner.container, "")] {
            self.owners.remove(gone);
        }
        self.owners.tidy();
        self.finish();
        Ok(held.len())
    }

    /// Removes reservations whoever holds them.
    ///
    /// # Errors
    ///
    /// A file cannot be removed.
    pub fn remove(&mut self, ips: &[IpAddr]) -> Result<(), FileError> {
        for ip in ips {
            let name = ip.to_string();
            files::remove(&self.folder, &name)
                .map_err(|e| FileError::new("remove", format!("{}/{name}", self.path), e))?;
        }
        Ok(())
    }

    /// Marks the folder as fully indexed, if it is.
    fn finish(&self) {
        if self.indexed {
            seal(&self.folder);
        }
    }

    fn belongs(&self, ip: IpAddr, owner: &Owner) -> bool {
        let content = files::read_at(&self.folder, &ip.to_string(), RESERVATION_LIMIT);
        content.is_ok_and(|content| Owner::parse(&content).as_ref() == Some(owner))
    }

    fn find(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, FileError> {
        if !self.indexed || !Owners::can_name(owner) {
            return Ok(self.scan()?.remove(owner).unwrap_or_default());
        }
        let mut held = self.owners.get(owner);
        held.retain(|ip| {
            // An emptied file is still what the index says it was.
            let content = files::read_at(&self.folder, &ip.to_string(), RESERVATION_LIMIT);
            content.is_ok_and(|content| Owner::parse(&content).is_none_or(|found| found == *owner))
        });
        Ok(held)
    }

    /// Reads every reservation, removes those that name nobody, and makes the index anew.
    fn scan(&mut self) -> Result<BTreeMap<Owner, Vec<IpAddr>>, FileError> {
        let fail = |errno| FileError::new("read", self.path.clone(), errno);
        let mut all: BTreeMap<Owner, Vec<IpAddr>> = BTreeMap::new();
        for name in files::names(&self.folder).map_err(fail)? {
            let Some(ip) = parse_ip(&name) else { continue };
            let owner = match files::read_at(&self.folder, &name, RESERVATION_LIMIT) {
                Ok(content) => Owner::parse(&content),
                Err(e) if files::is_odd(e) => None,
                Err(_) => continue,
            };
            match owner {
                Some(owner) => all.entry(owner).or_default().push(ip),
                None => {
                    let _ = rustix::fs::unlinkat(&self.folder, name.as_str(), AtFlags::empty());
                }
            }
        }
        for held in all.values_mut() {
            held.sort_unstable();
        }
        self.indexed = self.owners.rebuild(&all);
        self.finish();
        Ok(all)
    }
}

/// Opens a file in a folder, made when it is not there. What is no file makes way: opening a FIFO may wait for ever.
fn open_to_change(folder: &OwnedFd, name: &str, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let open = || {
        let fd = rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(mode))?;
        files::check_regular(&fd)?;
        Ok(fd)
    };
    match open() {
        Err(e) if files::is_odd(e) => {
            files::remove(folder, name)?;
            open()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests;
