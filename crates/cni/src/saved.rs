//! The delegates' configurations, saved so that a DEL undoes what its ADD did, whatever has changed since.
//!
//! `<data dir>/<container id>` is Go's: one file per container, the last attachment wins. Beside it,
//! `<data dir>/.v2/<container id>/<interface>` has one per attachment and is what counts for us; Go's file is kept for a node that
//! is rolled back. A container id cannot start with a dot, an interface name cannot hold a colon. Where flannel ran more plugins
//! after its delegate, `<interface>:chain` and `<interface>:result` say what is to be undone of them: made after the attachment's own
//! file and removed before it.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use crate::call::is_plain_name;
use crate::files::{self, FileError};
use crate::json::{self, JsonObject};
use crate::owner::Owner;

/// Most bytes of a saved configuration that are read.
const LIMIT: usize = 4 << 20;
/// In a container's folder: the legacy file was there before our first attachment, so it is of one that Go made.
const FOREIGN: &str = ":legacy";
/// After an interface's name: the plugins that ran after the delegate.
const CHAIN: &str = ":chain";
/// After an interface's name: the result of the last of them.
const RESULT: &str = ":result";

/// Saved configurations of one container.
#[derive(Debug)]
pub struct SavedConfigs {
    folder: OwnedFd,
    path: String,
    container: String,
    ifname: String,
}

/// What is known of an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saved {
    /// Its own configuration.
    Own(Vec<u8>),
    /// The container's, saved by Go's plugin: of this attachment, or of another one.
    Legacy(Vec<u8>),
    /// Nothing.
    Missing,
}

/// A configuration about to be used by an ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// Saved; nothing was known of the attachment before.
    Fresh,
    /// Not saved yet: another ADD of the same attachment has left one, which stays until this one has worked.
    Repeated,
}

/// A reservation in a network may be flannel's: a record of that very attachment names the network. Go's one file of a container
/// does not tell its other attachments, and what cannot be read tells nothing: both may be.
pub fn may_know(data_dir: &str, owner: &Owner, network: &str) -> bool {
    if !is_plain_name(&owner.container) || owner.ifname.contains('/') {
        return false;
    }
    let saved = SavedConfigs::open(data_dir, &owner.container, &owner.ifname);
    match saved.and_then(|saved| saved.map_or(Ok(Saved::Missing), |saved| saved.load())) {
        Ok(Saved::Own(text)) => network_of(&text).is_none_or(|name| name == network),
        Ok(Saved::Missing) => false,
        Ok(Saved::Legacy(_)) | Err(_) => true,
    }
}

fn network_of(text: &[u8]) -> Option<String> {
    let config = json::parse(text).ok()?;
    Some(JsonObject::of(&config).ok()?.string("name").ok()??.to_owned())
}

/// A saved configuration, found by looking at all.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// Container id.
    pub container: String,
    /// Interface; `None` for Go's file, which does not tell.
    pub ifname: Option<String>,
    /// The configuration.
    pub text: Vec<u8>,
    /// When it was written.
    written: std::time::SystemTime,
}

impl Attachment {
    /// Written within the last minute: perhaps by an ADD that the caller does not know of yet.
    pub fn is_young(&self) -> bool {
        self.written
            .elapsed()
            .is_ok_and(|age| age < std::time::Duration::from_secs(60))
    }
}

/// Every saved configuration. Go's file of a container is left out when one of ours says the same.
///
/// # Errors
///
/// A folder that is there cannot be read.
pub fn all(data_dir: &str) -> Result<Vec<Attachment>, FileError> {
    let fail = |e| FileError::new("read", data_dir, e);
    let folder = match files::open_folder(data_dir) {
        Ok(folder) => folder,
        Err(e) if e.is_absent() => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found: Vec<Attachment> = Vec::new();
    let read = |folder: &OwnedFd, container: &str, ifname: Option<&str>| -> Option<Attachment> {
        let name = ifname.unwrap_or(container);
        let text = files::read_at(folder, name, LIMIT).ok()?;
        let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let age = std::time::Duration::from_secs(u64::try_from(stat.st_mtime).ok()?);
        Some(Attachment {
            container: container.to_owned(),
            ifname: ifname.map(str::to_owned),
            text,
            written: std::time::UNIX_EPOCH + age,
        })
    };
    if let Ok(own) = files::open_folder(&format!("{data_dir}/.v2")) {
        let mut containers = files::folders(&own).map_err(fail)?;
        containers.retain(|name| !name.starts_with('.'));
        for container in containers {
            let Ok(folder) = files::open_folder(&format!("{data_dir}/.v2/{container}")) else {
                continue;
            };
            for ifname in files::names(&folder).map_err(fail)? {
                if !ifname.contains(':') && !ifname.starts_with(".tmp-") {
                    found.extend(read(&folder, &container, Some(&ifname)));
                }
            }
        }
    }
    for container in files::names(&folder).map_err(fail)? {
        if container.starts_with('.') {
            continue;
        }
        let Some(legacy) = read(&folder, &container, None) else {
            continue;
        };
        if !found
            .iter()
            .any(|own| own.container == container && own.text == legacy.text)
        {
            found.push(legacy);
        }
    }
    Ok(found)
}

impl SavedConfigs {
    /// Opens the folder for an ADD, made when it is not there.
    ///
    /// # Errors
    ///
    /// The folder cannot be made or opened.
    pub fn create(data_dir: &str, container: &str, ifname: &str) -> Result<SavedConfigs, FileError> {
        match SavedConfigs::open(data_dir, container, ifname)? {
            Some(state) => Ok(state),
            None => {
                files::make_folders(data_dir, 0o700)?;
                let folder = files::open_folder(data_dir)?;
                Ok(SavedConfigs::at(folder, data_dir, container, ifname))
            }
        }
    }

    /// Opens the folder; `None` when it is not there.
    ///
    /// # Errors
    ///
    /// The folder cannot be opened.
    pub fn open(data_dir: &str, container: &str, ifname: &str) -> Result<Option<SavedConfigs>, FileError> {
        match files::open_folder(data_dir) {
            Ok(folder) => Ok(Some(SavedConfigs::at(folder, data_dir, container, ifname))),
            Err(e) if e.errno == Errno::NOENT => Ok(None),
            // COMPAT: what is no folder fails as making it would.
            Err(e) => Err(FileError::new("mkdir", data_dir, e.errno)),
        }
    }

    fn at(folder: OwnedFd, path: &str, container: &str, ifname: &str) -> SavedConfigs {
        SavedConfigs {
            folder,
            path: path.to_owned(),
            container: container.to_owned(),
            ifname: ifname.to_owned(),
        }
    }

    /// Saves a configuration before the delegate runs, unless one is there.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn begin(&self, text: &str) -> Result<Begun, FileError> {
        let own = self.locked_folder(true)?;
        let Some(own) = own else {
            return Err(self.fail("open", &self.container, Errno::NOENT));
        };
        let fresh = files::create_new(&own, &self.ifname, text.as_bytes(), 0o600)
            .map_err(|e| self.fail("open", &self.container, e))?;
        if !fresh {
            let legacy = rustix::fs::statat(&self.folder, &self.container, AtFlags::SYMLINK_NOFOLLOW);
            if legacy.err() != Some(Errno::NOENT) {
                return Ok(Begun::Repeated);
            }
            // Go's plugin has deleted what we had added, and it knows its own file only.
            let fail = |e| self.fail("open", &self.container, e);
            self.remove_chain()?;
            files::remove(&own, FOREIGN).map_err(fail)?;
            files::remove(&own, &self.ifname).map_err(fail)?;
            files::create_new(&own, &self.ifname, text.as_bytes(), 0o600).map_err(fail)?;
        }
        let made = files::create_new(&self.folder, &self.container, text.as_bytes(), 0o600)
            .map_err(|e| self.fail("open", &self.container, e))?;
        if made {
            return Ok(Begun::Fresh);
        }
        let others = self.others(&own);
        if others.is_empty() {
            // Nobody of ours has written the legacy file. An empty or broken one helps nobody, Go's plugin included.
            match files::read_at(&self.folder, &self.container, LIMIT) {
                Ok(content) if crate::json::parse(&content).is_ok_and(|v| v.is_object()) => {
                    let _ = files::create_new(&own, FOREIGN, b"", 0o600);
                }
                _ => files::replace(&self.folder, &self.container, text.as_bytes(), 0o600)
                    .map_err(|e| self.fail("open", &self.container, e))?,
            }
        }
        Ok(Begun::Fresh)
    }

    /// The ADD has worked.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn commit(&self, begun: &Begun, text: &str) -> Result<(), FileError> {
        if *begun == Begun::Fresh {
            return Ok(());
        }
        let Some(own) = self.locked_folder(true)? else {
            return Ok(());
        };
        let before = files::read_at(&own, &self.ifname, LIMIT).unwrap_or_default();
        let fail = |e| self.fail("open", &self.container, e);
        if before == text.as_bytes() {
            return Ok(());
        }
        files::replace(&own, &self.ifname, text.as_bytes(), 0o600).map_err(fail)?;
        if files::read_at(&self.folder, &self.container, LIMIT).is_ok_and(|legacy| legacy == before) {
            files::replace(&self.folder, &self.container, text.as_bytes(), 0o600).map_err(fail)?;
        }
        Ok(())
    }

    /// Saves what a DEL needs of the plugins that run after the delegate, before they do. What an earlier ADD has left goes first.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn save_chain(&self, text: &str) -> Result<(), FileError> {
        self.remove_chain()?;
        self.save_beside(CHAIN, text)
    }

    /// Saves the result of the last of those plugins.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn save_result(&self, text: &str) -> Result<(), FileError> {
        self.save_beside(RESULT, text)
    }

    /// What was saved of the plugins after the delegate, and the result of the last one.
    pub fn chain(&self) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
        let own = self.own_folder(false).ok()??;
        let read = |suffix| files::read_at(&own, &self.beside(suffix), LIMIT).ok();
        Some((read(CHAIN)?, read(RESULT)))
    }

    fn save_beside(&self, suffix: &str, text: &str) -> Result<(), FileError> {
        let name = self.beside(suffix);
        let own = self.own_folder(true)?;
        let own = own.ok_or_else(|| self.fail("open", &self.container, Errno::NOENT))?;
        // Not replaced: a crash in between would leave a temporary name that keeps the folder from going.
        files::create_new(&own, &name, text.as_bytes(), 0o600)
            .map_err(|e| self.fail("open", &name, e))
            .map(drop)
    }

    fn remove_chain(&self) -> Result<(), FileError> {
        if let Some(own) = self.own_folder(false)? {
            for suffix in [RESULT, CHAIN] {
                let name = self.beside(suffix);
                files::remove(&own, &name).map_err(|e| self.fail("remove", &name, e))?;
            }
        }
        Ok(())
    }

    fn beside(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.ifname)
    }

    /// What is known of the attachment.
    ///
    /// # Errors
    ///
    /// A file that is there cannot be read.
    pub fn load(&self) -> Result<Saved, FileError> {
        let own = self.own_folder(false)?;
        if let Some(own) = &own {
            match files::read_at(own, &self.ifname, LIMIT) {
                Ok(bytes) => return Ok(Saved::Own(bytes)),
                Err(Errno::NOENT) => {}
                // What was there is lost.
                Err(e) if files::is_odd(e) => return Ok(Saved::Own(Vec::new())),
                Err(e) => {
                    return Err(self.fail("open", &format!(".v2/{}/{}", self.container, self.ifname), e));
                }
            }
            // Others of ours are left and the legacy file is a copy of one of them.
            if !self.others(own).is_empty() && !self.is_foreign(own) {
                return Ok(Saved::Missing);
            }
        }
        match files::read_at(&self.folder, &self.container, LIMIT) {
            Ok(bytes) => Ok(Saved::Legacy(bytes)),
            Err(Errno::NOENT) => Ok(Saved::Missing),
            Err(e) if files::is_odd(e) => Ok(Saved::Legacy(Vec::new())),
            Err(e) => Err(self.fail("open", &self.container, e)),
        }
    }

    /// Interfaces of the container's other attachments that have a configuration of their own.
    pub fn other_interfaces(&self) -> Vec<String> {
        let own = self.own_folder(false).ok().flatten();
        own.map(|own| self.others(&own)).unwrap_or_default()
    }

    /// Removes the attachment, whose configuration was `saved`. `keep_legacy`: Go's file still stands for another one.
    ///
    /// # Errors
    ///
    /// A file cannot be removed.
    pub fn remove(&self, saved: &Saved, keep_legacy: bool) -> Result<(), FileError> {
        let fail = |e| self.fail("remove", &self.container, e);
        self.remove_chain()?;
        let own = self.locked_folder(false)?;
        match saved {
            Saved::Own(bytes) => {
                if let Some(own) = &own {
                    self.hand_over(own, bytes)?;
                }
            }
            Saved::Legacy(_) if !keep_legacy => {
                if let Some(own) = &own {
                    files::remove(own, FOREIGN).map_err(fail)?;
                    let others = self.others(own);
                    match others
                        .first()
                        .and_then(|other| files::read_at(own, other, LIMIT).ok())
                    {
                        Some(text) => {
                            files::replace(&self.folder, &self.container, &text, 0o600).map_err(fail)?
                        }
                        None => files::remove(&self.folder, &self.container).map_err(fail)?,
                    }
                } else {
                    files::remove(&self.folder, &self.container).map_err(fail)?;
                }
                self.remove_own_folder();
            }
            Saved::Legacy(_) | Saved::Missing => {
                self.remove_own_folder();
            }
        }
        let _ = rustix::fs::unlinkat(&self.folder, ".v2", AtFlags::REMOVEDIR);
        Ok(())
    }

    /// An attachment of ours is gone, and its file with it: the legacy file becomes a copy of another one's, goes with the last, or stays
    /// if it is Go's.
    ///
    /// In such an order that whoever comes after a DEL which is killed in between takes nothing of ours for Go's, nor Go's for ours.
    fn hand_over(&self, own: &OwnedFd, gone: &[u8]) -> Result<(), FileError> {
        let fail = |e| self.fail("open", &self.container, e);
        let remove_own =
            || files::remove(own, &self.ifname).map_err(|e| self.fail("remove", &self.container, e));
        let foreign = self.is_foreign(own);
        let others = self.others(own);
        if foreign {
            remove_own()?;
            if others.is_empty() {
                files::remove(own, FOREIGN).map_err(fail)?;
                self.remove_own_folder();
            }
            return Ok(());
        }
        let Some(other) = others.first() else {
            files::remove(&self.folder, &self.container).map_err(fail)?;
            remove_own()?;
            self.remove_own_folder();
            return Ok(());
        };
        // One that cannot be read is no copy worth having.
        if let Ok(text) = files::read_at(own, other, LIMIT) {
            let legacy = files::read_at(&self.folder, &self.container, LIMIT);
            if text != gone && legacy.is_ok_and(|legacy| legacy == gone) {
                files::replace(&self.folder, &self.container, &text, 0o600).map_err(fail)?;
            }
        }
        remove_own()
    }

    /// Removes the container's folder if nothing is in it.
    fn remove_own_folder(&self) {
        let path = format!(".v2/{}", self.container);
        let _ = rustix::fs::unlinkat(&self.folder, path, AtFlags::REMOVEDIR);
    }

    /// The container's folder, locked against ADDs and DELs of its other attachments until dropped: runtimes make them at the same
    /// time.
    fn locked_folder(&self, create: bool) -> Result<Option<OwnedFd>, FileError> {
        let path = format!(".v2/{}", self.container);
        for _ in 0..64 {
            let Some(own) = self.own_folder(create)? else {
                return Ok(None);
            };
            let locked = rustix::io::retry_on_intr(|| {
                rustix::fs::flock(&own, rustix::fs::FlockOperation::LockExclusive)
            });
            locked.map_err(|e| self.fail("flock", &path, e))?;
            // Whoever held the lock may have removed the folder.
            let there = rustix::fs::statat(&self.folder, &path, AtFlags::SYMLINK_NOFOLLOW);
            let same = rustix::fs::fstat(&own).is_ok_and(|mine| {
                there.is_ok_and(|there| (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino))
            });
            if same {
                return Ok(Some(own));
            }
        }
        Err(self.fail("flock", &path, Errno::AGAIN))
    }

    fn own_folder(&self, create: bool) -> Result<Option<OwnedFd>, FileError> {
        use rustix::fs::OFlags;
        let path = format!(".v2/{}", self.container);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        // A DEL of the container's last attachment may remove a folder between the two steps.
        for _ in 0..8 {
            match rustix::fs::openat(&self.folder, &path, flags, Mode::empty()) {
                Ok(folder) => return Ok(Some(folder)),
                Err(Errno::NOENT) if !create => return Ok(None),
                Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR | Errno::LOOP) => self.make_way(&path)?,
                Err(e) => return Err(self.fail("open", &path, e)),
            }
            for made in [".v2", &path] {
                match rustix::fs::mkdirat(&self.folder, made, Mode::from_raw_mode(0o700)) {
                    Ok(()) | Err(Errno::EXIST | Errno::NOENT) => {}
                    Err(e) => return Err(self.fail("mkdir", made, e)),
                }
            }
        }
        Ok(None)
    }

    /// Removes what is in the place of a folder of ours and is none.
    fn make_way(&self, path: &str) -> Result<(), FileError> {
        for place in [".v2", path] {
            let found = rustix::fs::statat(&self.folder, place, AtFlags::SYMLINK_NOFOLLOW);
            if found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode) != FileType::Directory) {
                return files::remove(&self.folder, place).map_err(|e| self.fail("remove", place, e));
            }
        }
        Ok(())
    }

    /// Other attachments of ours.
    fn others(&self, own: &OwnedFd) -> Vec<String> {
        let mut names = files::names(own).unwrap_or_default();
        names.retain(|name| *name != self.ifname && !name.contains(':') && !name.starts_with(".tmp-"));
        names.sort_unstable();
        names
    }

    fn is_foreign(&self, own: &OwnedFd) -> bool {
        rustix::fs::statat(own, FOREIGN, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    fn fail(&self, operation: &'static str, name: &str, errno: Errno) -> FileError {
        FileError::new(operation, format!("{}/{name}", self.path), errno)
    }
}

#[cfg(test)]
mod tests;
