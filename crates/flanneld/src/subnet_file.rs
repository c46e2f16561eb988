//! The subnet file on disk: written whole and at once, so that no reader ever sees half of it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use fabric::subnet_env::{self, Previous, SubnetEnv};

/// Mode of a new file, whatever the umask: everybody may know the pod network.
const MODE: u32 = 0o644;

/// Outcome of [`repair`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repaired {
    /// The file said the right thing.
    Unchanged,
    /// It did not, and does now.
    Written,
}

/// What the file of an earlier run says; nothing when there is none or it cannot be read.
pub fn read_previous(path: &Path) -> Previous {
    match fs::read(path) {
        Ok(bytes) => subnet_env::read_previous(&String::from_utf8_lossy(&bytes)),
        Err(failure) if failure.kind() == io::ErrorKind::NotFound => Previous::default(),
        Err(failure) => Previous { problems: vec![failure.to_string()], ..Previous::default() },
    }
}

/// Writes the whole file.
pub fn write(path: &Path, wanted: &SubnetEnv) -> io::Result<()> {
    let text = wanted.render();
    match fs::read(path) {
        Ok(existing) if existing == text.as_bytes() => Ok(()),
        _ => replace(path, text.as_bytes()),
    }
}

/// Puts back what is missing or changed of ours; foreign lines stay.
pub fn repair(path: &Path, wanted: &SubnetEnv) -> io::Result<Repaired> {
    let existing = match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(failure) if failure.kind() == io::ErrorKind::NotFound => String::new(),
        Err(failure) => return Err(failure),
    };
    let text = subnet_env::repair(&existing, wanted);
    if text == existing {
        return Ok(Repaired::Unchanged);
    }
    replace(path, text.as_bytes())?;
    Ok(Repaired::Written)
}

/// Replaces a file by rename: the content is on disk before the name points to it, and the name is before this returns.
///
/// The mode is that of the regular file there was, else 0644. The temporary file lies in the same directory, so that the
/// rename cannot cross a mount.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    let mode = match fs::symlink_metadata(path) {
        Ok(there) if there.is_file() => there.permissions().mode() & 0o7777,
        Ok(there) if there.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
        _ => MODE,
    };
    let temporary = temporary_beside(path);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    File::open(directory)?.sync_all()
}

fn temporary_beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
    path.with_file_name(format!(".{name}{}-{nanos}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> SubnetEnv {
        SubnetEnv {
            network: "10.5.0.0/16".parse().ok(),
            subnet: "10.5.72.0/24".parse().ok(),
            network6: None,
            subnet6: None,
            mtu: 1450,
            ipmasq: true,
        }
    }

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Directory {
            let path = std::env::temp_dir().join(format!("flanneld-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Directory(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn write_when_directories_are_missing_then_made_and_mode_0644_and_nothing_else_left() {
        let directory = Directory::new("write");
        let path = directory.0.join("run/flannel/subnet.env");
        write(&path, &wanted()).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        );
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        let previous = read_previous(&path);
        assert_eq!(previous.subnet, "10.5.72.0/24".parse().ok());
    }

    #[test]
    fn write_when_a_file_is_there_then_its_mode_is_kept() {
        let directory = Directory::new("mode");
        let path = directory.0.join("subnet.env");
        fs::write(&path, "DOCKER_OPTS=\" --bip=10.5.72.1/24\"\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        write(&path, &wanted()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(fs::read_to_string(&path).unwrap().starts_with("FLANNEL_NETWORK"));
    }

    #[test]
    fn repair_when_foreign_lines_are_there_then_kept_and_ours_put_back_once() {
        let directory = Directory::new("repair");
        let path = directory.0.join("subnet.env");
        assert_eq!(repair(&path, &wanted()).unwrap(), Repaired::Written);
        assert_eq!(repair(&path, &wanted()).unwrap(), Repaired::Unchanged);
        fs::write(&path, "DOCKER_OPTS=\"--mtu=1\"\nFLANNEL_MTU=1\n").unwrap();
        assert_eq!(repair(&path, &wanted()).unwrap(), Repaired::Written);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("FLANNEL_MTU=1450\n") && text.contains("DOCKER_OPTS=\"--mtu=1\"\n"), "{text}");
    }

    #[test]
    fn write_when_the_path_is_a_directory_then_an_error_and_nothing_left() {
        let directory = Directory::new("dir");
        let path = directory.0.join("subnet.env");
        fs::create_dir(&path).unwrap();
        assert!(write(&path, &wanted()).is_err());
        assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 1);
    }
}
