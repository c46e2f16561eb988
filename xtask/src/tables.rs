//! Folders whose files macros list: their `mod` lines come from tables, so that tools which expand no macro do not find them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Below `crates`, beside the file with the table.
pub const TABLES: &[&str] = &["fabric/src/kind", "fabric/src/plan", "kernel/src/kind"];

/// The files that a table can list, by name.
pub fn files_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let is_test = path.file_stem().is_some_and(|stem| stem == "tests");
        if !is_test && path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
