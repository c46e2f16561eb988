//! Files and folders of the daemons.

use std::path::{Path, PathBuf};

use flanneld::{device_lock, socket, state_dir};

use super::{Act, Findings, Past};

pub fn look(past: &Past, findings: &mut Findings) {
    let mut known: Vec<PathBuf> = Vec::new();
    for file in past.subnet_files() {
        known.push(socket::path_for(&file));
        known.push(file);
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
    let mut folders: Vec<PathBuf> = states.chain([run.to_owned()]).collect();
    let top = PathBuf::from(state_dir::DEFAULT_DIRECTORY);
    if !folders.contains(&top) {
        folders.push(top);
    }
    let mut gone: Vec<PathBuf> = known;
    for folder in folders.into_iter().filter(|folder| folder.is_dir()) {
        let left: Vec<PathBuf> = inside(&folder)
            .into_iter()
            .filter(|path| !gone.contains(path))
            .collect();
        if left.is_empty() {
            gone.push(folder.clone());
            let text = folder.display().to_string();
            findings.add("folder", text, Act::EmptyFolder(folder));
        } else {
            findings.stays.extend(
                left.iter()
                    .map(|path| format!("{}: not a file of flannel's that is known", path.display())),
            );
        }
    }
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
