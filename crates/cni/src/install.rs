//! Putting the executable where runtimes look for plugins, and taking it away again.
//!
//! A plugin may be running while it is replaced, and a runtime may start it at any moment: each file is written beside its place
//! and renamed over it, whole and synced. What was in its place is kept under a name that no runtime asks for, so that a node can
//! go back; it is never one of ours, of whatever version. Only files that are ours are ever removed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation};
use rustix::io::Errno;

/// What is installed by default: the others' names stay what they are, flannel runs them in its own process.
pub const DEFAULT: &[&str] = &["flannel"];
/// What a machine without Go's plugins needs.
pub const ALL: &[&str] = &[
    "flannel",
    "bridge",
    "host-local",
    "loopback",
    "portmap",
    "bandwidth",
];

/// By this the executable is known, whatever its version: these two with [`BETWEEN`] between them, which stand together in nothing
/// else, the programs that look for it included.
pub const MARK: [&[u8]; 2] = [b"flannel-cni executable ", b"7b1f0c52e9d84a36"];
/// See [`MARK`].
pub const BETWEEN: u8 = 0x1f;

/// What an installation has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Installed {
    /// Files that are ours now.
    pub done: Vec<PathBuf>,
    /// What was in the place of some of them, and where it is kept.
    pub replaced: Vec<(PathBuf, PathBuf)>,
    /// Others' files that were left alone.
    pub kept: Vec<PathBuf>,
}

/// What a removal has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uninstalled {
    /// Places where what was there before is again.
    pub restored: Vec<PathBuf>,
    /// Places where nothing is now.
    pub removed: Vec<PathBuf>,
    /// Files from before that stay aside, since somebody has put another in their place.
    pub aside: Vec<PathBuf>,
}

/// Installs the executable under these names. A file of another plugin's name that is not ours is kept, unless `replace`.
///
/// # Errors
///
/// The file that could not be read or written; those before it are installed.
pub fn install(executable: &Path, folder: &Path, names: &[&str], replace: bool) -> io::Result<Installed> {
    std::fs::create_dir_all(folder).map_err(|e| at(folder, e))?;
    let _lock = lock(folder)?;
    let mut installed = Installed::default();
    for name in names {
        let place = folder.join(name);
        let failed = |e| at(&place, e);
        let foreign = is_there(&place) && !is_ours(&place).map_err(failed)?;
        // The name flannel is ours by right: this is how a node changes over.
        if foreign && *name != "flannel" && !replace {
            installed.kept.push(place);
            continue;
        }
        if foreign {
            let aside = before(&place);
            keep(&place, &aside).map_err(failed)?;
            installed.replaced.push((place.clone(), aside));
        }
        put(executable, &place).map_err(failed)?;
        installed.done.push(place);
    }
    File::open(folder)?.sync_all()?;
    Ok(installed)
}

/// Takes our executable away from these names, and puts back what was there before.
///
/// # Errors
///
/// The file that could not be removed or put back; those before it are done.
pub fn uninstall(folder: &Path, names: &[&str]) -> io::Result<Uninstalled> {
    let mut uninstalled = Uninstalled::default();
    if !folder.exists() {
        return Ok(uninstalled);
    }
    let _lock = lock(folder)?;
    for name in names {
        let place = folder.join(name);
        let aside = before(&place);
        let failed = |e| at(&place, e);
        // Of an installation that was killed.
        for half_made in [temporary(&place), temporary(&aside)] {
            remove_file(&half_made).map_err(failed)?;
        }
        let there = is_there(&place);
        if there && !is_ours(&place).map_err(failed)? {
            if is_there(&aside) && is_same_file(&place, &aside) {
                remove_file(&aside).map_err(failed)?;
            } else if is_there(&aside) {
                uninstalled.aside.push(aside);
            }
        } else if is_there(&aside) {
            std::fs::rename(&aside, &place).map_err(failed)?;
            uninstalled.restored.push(place);
        } else if there {
            std::fs::remove_file(&place).map_err(failed)?;
            uninstalled.removed.push(place);
        }
    }
    File::open(folder)?.sync_all()?;
    Ok(uninstalled)
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// One installation at a time.
fn lock(folder: &Path) -> io::Result<File> {
    let lock = File::open(folder).map_err(|e| at(folder, e))?;
    rustix::io::retry_on_intr(|| rustix::fs::flock(&lock, FlockOperation::LockExclusive))?;
    Ok(lock)
}

/// Beside a place: a dot before the name, so that no runtime takes it for a plugin.
fn beside(place: &Path, end: &str) -> PathBuf {
    let name = place
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    place.with_file_name(format!(".{name}.{end}"))
}

/// Where what was in a place is kept.
pub fn before(place: &Path) -> PathBuf {
    beside(place, "before")
}

fn temporary(place: &Path) -> PathBuf {
    beside(place, "new")
}

/// Something has this name, a symlink that leads nowhere included.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    let (Ok(a), Ok(b)) = (rustix::fs::lstat(a), rustix::fs::lstat(b)) else {
        return false;
    };
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Gives a file, or a symlink, a second name in one step, in place of what has that name.
fn keep(place: &Path, aside: &Path) -> io::Result<()> {
    let linked = temporary(aside);
    remove_file(&linked)?;
    match rustix::fs::linkat(CWD, place, CWD, &linked, AtFlags::empty()) {
        Ok(()) => {}
        // A file system without hard links.
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK) => copy(place, &linked)?,
        Err(e) => return Err(e.into()),
    }
    std::fs::rename(&linked, aside)?;
    // Two names of one file: such a rename does nothing.
    remove_file(&linked)
}

fn put(executable: &Path, place: &Path) -> io::Result<()> {
    let temporary = temporary(place);
    remove_file(&temporary)?;
    copy(executable, &temporary)
        .and_then(|()| std::fs::rename(&temporary, place))
        .inspect_err(|_| {
            let _ = std::fs::remove_file(&temporary);
        })
}

/// Makes a new file, whole and synced.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let absent = || io::Error::from(io::ErrorKind::NotFound);
    let opened = kernel::file::open(from).and_then(|file| file.ok_or_else(absent));
    let mut from = opened.map_err(|e| at(from, e))?;
    let mut to = File::options()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(to)?;
    io::copy(&mut from, &mut to)?;
    to.set_permissions(std::fs::Permissions::from_mode(0o755))?;
    to.flush()?;
    to.sync_all()
}

/// The file is our executable, of any version.
///
/// # Errors
///
/// It cannot be read, or is no regular file.
pub fn is_ours(path: &Path) -> io::Result<bool> {
    let Some(mut file) = kernel::file::open(path)? else {
        // A symlink that leads nowhere.
        return Ok(false);
    };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let [before, after] = MARK;
    let is_mark = |at: &[u8]| {
        let rest = at.strip_prefix(before);
        let rest = rest.and_then(|rest| rest.strip_prefix(&[BETWEEN]));
        rest.is_some_and(|rest| rest.starts_with(after))
    };
    let mut rest = bytes.as_slice();
    while let Some(at) = rest.iter().position(|b| before.first() == Some(b)) {
        rest = rest.get(at..).unwrap_or_default();
        if is_mark(rest) {
            return Ok(true);
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
