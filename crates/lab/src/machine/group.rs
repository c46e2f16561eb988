//! Control groups of machines: one in every hierarchy there is, below the group of whoever makes it, so that the limits of that hold.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::command::{LabError, file};

/// A mounted hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    /// As `/proc/PID/cgroup` calls it: controllers (`cpu,cpuacct`), `name=systemd`, or nothing for the unified one.
    name: String,
}

/// Hierarchies by the text of `/proc/self/mountinfo` (proc(5)).
fn hierarchies(mounts: &str) -> Vec<Hierarchy> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        let Some((own, rest)) = line.split_once(" - ") else {
            continue;
        };
        let (own, rest): (Vec<&str>, Vec<&str>) = (own.split(' ').collect(), rest.split(' ').collect());
        let (Some(mount), Some(kind)) = (own.get(4), rest.first()) else {
            continue;
        };
        let name = match *kind {
            "cgroup2" => String::new(),
            // Of the mount's options those that are no controllers are known.
            "cgroup" => {
                let options = rest.get(2).unwrap_or(&"").split(',');
                let controllers =
                    options.filter(|o| !["rw", "ro", "xattr", "clone_children", "noprefix"].contains(o));
                controllers.collect::<Vec<_>>().join(",")
            }
            _ => continue,
        };
        let mount = PathBuf::from(mount);
        if !found.iter().any(|there: &Hierarchy| there.name == name) {
            found.push(Hierarchy { mount, name });
        }
    }
    found
}

fn read(path: &str) -> Result<String, LabError> {
    file(path, fs::read_to_string(path))
}

/// Makes a group of this name in every hierarchy; gives their folders.
pub(super) fn make(name: &str) -> Result<Vec<PathBuf>, LabError> {
    let groups = read("/proc/self/cgroup")?;
    let mut made = Vec::new();
    for hierarchy in hierarchies(&read("/proc/self/mountinfo")?) {
        // Lines of `number:controllers:path`.
        let own = groups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            (controllers == hierarchy.name).then_some(path)
        });
        let Some(own) = own else {
            continue;
        };
        let parent = hierarchy.mount.join(own.trim_start_matches('/'));
        let group = parent.join(name);
        file(&group, fs::create_dir_all(&group))?;
        // A group without these takes no process, and hands none on.
        for key in ["cpuset.cpus", "cpuset.mems"]
            .iter()
            .filter(|_| hierarchy.name == "cpuset")
        {
            let value = fs::read_to_string(parent.join(key));
            let value = file(parent.join(key), value)?;
            file(group.join(key), fs::write(group.join(key), value))?;
        }
        made.push(group);
    }
    Ok(made)
}

/// Removes groups by their names, with all below them, once their last processes are reaped.
pub(super) fn remove(is_ours: impl Fn(&str) -> bool) -> Result<(), LabError> {
    let mut found = Vec::new();
    for hierarchy in hierarchies(&read("/proc/self/mountinfo")?) {
        find(&hierarchy.mount, &is_ours, &mut found);
    }
    let start = Instant::now();
    for group in found {
        while let Err(error) = remove_tree(&group) {
            if start.elapsed() > Duration::from_secs(10) {
                return file(&group, Err(error));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn find(folder: &Path, is_ours: &impl Fn(&str) -> bool, found: &mut Vec<PathBuf>) {
    for below in folders(folder) {
        if below
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(is_ours)
        {
            found.push(below);
        } else {
            find(&below, is_ours, found);
        }
    }
}

fn remove_tree(group: &Path) -> std::io::Result<()> {
    for below in folders(group) {
        remove_tree(&below)?;
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_when_mounted_in_any_way_are_named_as_processes_name_them() {
        let text = "\
            23 27 0:22 / /sys rw,relatime - sysfs sysfs rw\n\
            30 23 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            31 23 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            32 23 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            33 23 0:28 / /mnt/again rw - cgroup2 cgroup2 rw\n";
        let of = |mount: &str, name: &str| Hierarchy {
            mount: mount.into(),
            name: name.to_owned(),
        };
        assert_eq!(
            hierarchies(text),
            [
                of("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"),
                of("/sys/fs/cgroup/systemd", "name=systemd"),
                of("/sys/fs/cgroup/unified", ""),
            ]
        );
    }
}
