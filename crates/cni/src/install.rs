//! Putting the executable where runtimes look for plugins, and taking it away again.
//!
//! A plugin may be running while it is replaced, and a runtime may start it at any moment: each file is written beside its place
//! and renamed over it, whole and synced. Only files that are ours are ever removed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

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

/// Installs the executable under these names. A file of another plugin's name that is not ours is kept, unless `replace`; the
/// names that were left alone are returned.
pub fn install(executable: &Path, folder: &Path, names: &[&str], replace: bool) -> io::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder)?;
    let mut kept = Vec::new();
    for name in names {
        let place = folder.join(name);
        // The name flannel is ours by right: this is how a node changes over.
        let foreign = *name != "flannel" && place.exists() && !is_ours(executable, &place)?;
        if foreign && !replace {
            kept.push(place);
            continue;
        }
        put(executable, &place).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", place.display())))?;
    }
    File::open(folder)?.sync_all()?;
    Ok(kept)
}

/// Removes the files among these names that are the executable; returns them.
pub fn uninstall(executable: &Path, folder: &Path, names: &[&str]) -> io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for name in names {
        let place = folder.join(name);
        if place.exists() && is_ours(executable, &place)? {
            std::fs::remove_file(&place)?;
            removed.push(place);
        }
    }
    Ok(removed)
}

fn put(executable: &Path, place: &Path) -> io::Result<()> {
    // A dot before the name: no runtime takes it for a plugin.
    let name = place
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let temporary = place.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = (|| {
        let mut from = File::open(executable)?;
        let mut to = File::options()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(&temporary)?;
        io::copy(&mut from, &mut to)?;
        to.set_permissions(std::fs::Permissions::from_mode(0o755))?;
        to.flush()?;
        to.sync_all()
    })();
    written
        .and_then(|()| std::fs::rename(&temporary, place))
        .inspect_err(|_| {
            let _ = std::fs::remove_file(&temporary);
        })
}

/// The two files hold the same bytes.
fn is_ours(executable: &Path, other: &Path) -> io::Result<bool> {
    let (mut a, mut b) = (File::open(executable)?, File::open(other)?);
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let length = a.read(&mut left)?;
        let (Some(left), Some(right)) = (left.get(..length), right.get_mut(..length)) else {
            return Ok(false);
        };
        b.read_exact(right)?;
        if left != right {
            return Ok(false);
        }
        if length == 0 {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn install_when_others_are_there_keeps_them_and_uninstall_removes_only_ours() {
        let room = tempfile::tempdir().unwrap();
        let (executable, bin) = (room.path().join("flannel-cni"), room.path().join("opt/cni/bin"));
        std::fs::write(&executable, "ours").unwrap();
        std::fs::create_dir_all(&bin).unwrap();
        for foreign in ["bridge", "flannel", "macvlan"] {
            std::fs::write(bin.join(foreign), "another's").unwrap();
        }
        assert_eq!(
            install(&executable, &bin, DEFAULT, false).unwrap(),
            Vec::<PathBuf>::new()
        );
        assert_eq!(std::fs::read(bin.join("flannel")).unwrap(), b"ours");
        assert_eq!(
            bin.join("flannel").metadata().unwrap().permissions().mode() & 0o777,
            0o755
        );
        assert_eq!(
            install(&executable, &bin, ALL, false).unwrap(),
            [bin.join("bridge")]
        );
        assert_eq!(std::fs::read(bin.join("bridge")).unwrap(), b"another's");
        assert_eq!(uninstall(&executable, &bin, ALL).unwrap().len(), 5);
        let mut left: Vec<_> = std::fs::read_dir(&bin)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["bridge", "macvlan"]);
        assert!(install(&executable, &bin, ALL, true).unwrap().is_empty());
        assert_eq!(std::fs::read(bin.join("bridge")).unwrap(), b"ours");
    }
}
