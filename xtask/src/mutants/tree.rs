//! The copy of the workspace that mistakes are put into: in one place, so that what is compiled of it stays.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cargo::root;
use crate::tables::TABLES;

/// Makes the folder equal to the working tree, as far as git knows or would know it. What is equal is not written again.
pub fn copy(to: &Path) -> Result<()> {
    let files = listed()?;
    for file in &files {
        let mut bytes = std::fs::read(root().join(file)).with_context(|| file.display().to_string())?;
        bytes.extend_from_slice(modules_of_table(file)?.as_bytes());
        let place = to.join(file);
        if std::fs::read(&place).is_ok_and(|there| there == bytes) {
            continue;
        }
        if let Some(folder) = place.parent() {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        std::fs::write(&place, bytes).with_context(|| place.display().to_string())?;
    }
    remove_others(to, to, &files)
}

/// The files of the working tree, without those that git ignores.
fn listed() -> Result<BTreeSet<PathBuf>> {
    let output = std::process::Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .context("git ls-files")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    }
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    let files = names
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from);
    // Removed, and not yet told to git; or a link, which no crate here is made of.
    Ok(files.filter(|file| is_file(&root().join(file))).collect())
}

fn is_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|data| data.is_file())
}

/// For a file whose macro writes `mod` lines from a table: those lines, so that the tool, which expands no macro, finds the files.
/// They are compiled by nobody.
fn modules_of_table(file: &Path) -> Result<String> {
    let folder = file.with_extension("");
    let mut lines = String::new();
    if TABLES
        .iter()
        .any(|table| folder == Path::new("crates").join(table))
    {
        for path in crate::tables::files_of(&root().join(&folder))? {
            if let Some(name) = path.file_stem() {
                lines.push_str(&format!("#[cfg(any())]\nmod {};\n", name.to_string_lossy()));
            }
        }
    }
    Ok(lines)
}

fn remove_others(top: &Path, folder: &Path, keep: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            remove_others(top, &path, keep)?;
        } else if path.strip_prefix(top).is_ok_and(|file| !keep.contains(file)) {
            std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}
