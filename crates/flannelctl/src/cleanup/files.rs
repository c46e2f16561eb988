//! Files and folders of the daemons.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cni::flannel::sweep;
use fabric::status::SUBNET_FILE;
use flanneld::{device_lock, socket, state_dir};

use super::{Act, Findings, Past};

/// Bytes of a subnet file that are looked at: one is much smaller.
const LARGEST: u64 = 1 << 20;

pub fn look(past: &Past, findings: &mut Findings) {
    let mut known: Vec<PathBuf> = Vec::new();
    for file in past.subnet_files() {
        known.push(socket::path_for(&file));
        let mut swept = file.clone().into_os_string();
        swept.push(sweep::MARK);
        known.push(PathBuf::from(swept));
        // A name that stands in a record is no proof of what is there now.
        if file.as_path() == Path::new(SUBNET_FILE) || is_subnet_file(&file) {
            known.push(file);
        } else if file.exists() {
            findings.stays.push(format!(
                "{}: named in a state, but no subnet file",
                file.display()
            ));
        }
    }
    let run = Path::new(device_lock::FOLDER);
    known.extend(inside(run).into_iter().filter(|path| is_lock(path)));
    for (folder, _) in &past.states {
        known.push(folder.join(state_dir::FILE));
        known.push(folder.join(state_dir::CACHE));
    }
    known.retain(|path| path.symlink_metadata().is_ok_and(|found| !found.is_dir()));
    known.sort();
    known.dedup();
    for path in &known {
        findings.add("file", path.display().to_string(), Act::File(path.clone()));
    }
    // The innermost first.
    let states = past.states.iter().rev().map(|(folder, _)| folder.clone());
    let own = states.chain([run.to_owned(), PathBuf::from(state_dir::DEFAULT_DIRECTORY)]);
    let mut looked_at: Vec<PathBuf> = Vec::new();
    for folder in own {
        if looked_at.contains(&folder) {
            continue;
        }
        let left = look_at_folder(&folder, findings);
        let named = left.iter().map(|path| {
            let path = path.display();
            format!("{path}: not a file of flannel's that is known")
        });
        findings.stays.extend(named);
        looked_at.push(folder);
    }
    // Of every CNI plugin.
    for shared in ["/var/lib/cni/networks", "/var/lib/cni"] {
        look_at_folder(Path::new(shared), findings);
    }
}

/// A folder goes where all that is in it goes; what does not.
fn look_at_folder(folder: &Path, findings: &mut Findings) -> Vec<PathBuf> {
    let goes = |path: &PathBuf| findings.items.iter().any(|item| item.path() == Some(path));
    let inside = inside(folder);
    let is_used = inside.iter().any(goes);
    let left: Vec<PathBuf> = inside.iter().filter(|path| !goes(path)).cloned().collect();
    let is_ours = is_used
        || folder.starts_with(state_dir::DEFAULT_DIRECTORY)
        || folder == Path::new(device_lock::FOLDER);
    if left.is_empty() && is_ours && folder.is_dir() && !is_mount(folder) {
        let text = folder.display().to_string();
        findings.add("folder", text, Act::EmptyFolder(folder.to_owned()));
    }
    left
}

fn is_subnet_file(file: &Path) -> bool {
    let text = kernel::file::read(file, LARGEST)
        .ok()
        .flatten()
        .unwrap_or_default();
    String::from_utf8_lossy(&text).contains("FLANNEL_")
}

fn inside(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn is_lock(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "lock")
}

/// A folder that something is mounted on: of a container, or an admin's choice.
fn is_mount(folder: &Path) -> bool {
    let device = |path: &Path| path.symlink_metadata().map(|found| found.dev()).ok();
    folder
        .parent()
        .is_some_and(|parent| device(parent) != device(folder))
}
