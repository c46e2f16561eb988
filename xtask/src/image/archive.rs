//! A tree of files as it will be in an image, and its archive: tar in the form of POSIX 1988 (ustar), which says of a file what is
//! put into it and nothing of the machine that made it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A folder.
    Folder,
    /// A file with the content of one on this machine.
    Copy(PathBuf),
    /// A file with this content.
    Text(String),
    /// A symbolic link that leads there.
    Link(String),
}

/// Something at a path, with its mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub what: What,
    /// Permissions.
    pub mode: u32,
}

/// By path below the root, without a slash in front; in the order in which they are archived.
pub type Tree = BTreeMap<String, Entry>;

/// A program of this machine's.
pub fn executable(from: PathBuf) -> Entry {
    Entry {
        what: What::Copy(from),
        mode: 0o755,
    }
}

/// A file that is made here.
pub fn text(content: &str) -> Entry {
    Entry {
        what: What::Text(content.to_owned()),
        mode: 0o644,
    }
}

/// A symbolic link.
pub fn link(to: &str) -> Entry {
    Entry {
        what: What::Link(to.to_owned()),
        mode: 0o777,
    }
}

/// A folder, with those it is in.
pub fn folder(tree: &mut Tree, path: &str, mode: u32) {
    put(
        tree,
        path,
        Entry {
            what: What::Folder,
            mode,
        },
    );
}

/// Puts something at a path, with the folders it is in.
pub fn put(tree: &mut Tree, path: &str, entry: Entry) {
    let slashes = path.match_indices('/').map(|(at, _)| at);
    for parent in slashes.filter_map(|at| path.get(..at)) {
        tree.entry(parent.to_owned()).or_insert(Entry {
            what: What::Folder,
            mode: 0o755,
        });
    }
    tree.insert(path.to_owned(), entry);
}

/// Writes a tree as an archive. Owner, group and times are zero.
pub fn write(tree: &Tree, out: &mut impl Write) -> Result<()> {
    for (path, entry) in tree {
        write_entry(path, entry, out).with_context(|| path.clone())?;
    }
    // Two empty blocks are the end.
    Ok(out.write_all(&[0; 2 * BLOCK])?)
}

const BLOCK: usize = 512;

fn write_entry(path: &str, entry: &Entry, out: &mut impl Write) -> Result<()> {
    let (kind, target) = match &entry.what {
        What::Folder => (b'5', ""),
        What::Link(target) => (b'2', target.as_str()),
        What::Copy(_) | What::Text(_) => (b'0', ""),
    };
    match &entry.what {
        What::Copy(from) => {
            let failed = || from.display().to_string();
            let mut file = std::fs::File::open(from).with_context(failed)?;
            let size = file.metadata().with_context(failed)?.len();
            out.write_all(&header(path, kind, target, entry.mode, size)?)?;
            let copied = std::io::copy(&mut (&mut file).take(size), out).with_context(failed)?;
            if copied != size {
                bail!("{} became shorter while it was read", failed());
            }
            pad(size, out)
        }
        What::Text(content) => {
            let size = u64::try_from(content.len())?;
            out.write_all(&header(path, kind, target, entry.mode, size)?)?;
            out.write_all(content.as_bytes())?;
            pad(size, out)
        }
        What::Folder => {
            let path = format!("{path}/");
            Ok(out.write_all(&header(&path, kind, target, entry.mode, 0)?)?)
        }
        What::Link(_) => Ok(out.write_all(&header(path, kind, target, entry.mode, 0)?)?),
    }
}

fn pad(size: u64, out: &mut impl Write) -> Result<()> {
    let over = usize::try_from(size % BLOCK as u64)?;
    if over > 0 {
        out.write_all(&[0; BLOCK][over..])?;
    }
    Ok(())
}

fn header(path: &str, kind: u8, target: &str, mode: u32, size: u64) -> Result<[u8; BLOCK]> {
    let (prefix, name) = split(path)?;
    let mut block = [0; BLOCK];
    let mut field = |at: usize, width: usize, value: &[u8]| -> Result<()> {
        let place = block.get_mut(at..at + width).context("no such field")?;
        let place = place.get_mut(..value.len());
        place
            .with_context(|| format!("{:?} is too long", String::from_utf8_lossy(value)))?
            .copy_from_slice(value);
        Ok(())
    };
    field(0, 100, name.as_bytes())?;
    field(100, 8, format!("{mode:07o}").as_bytes())?;
    field(108, 8, b"0000000")?;
    field(116, 8, b"0000000")?;
    field(124, 12, format!("{size:011o}").as_bytes())?;
    field(136, 12, b"00000000000")?;
    // The sum is made with blanks in its own place.
    field(148, 8, b"        ")?;
    field(156, 1, &[kind])?;
    field(157, 100, target.as_bytes())?;
    field(257, 8, b"ustar\x0000")?;
    field(265, 32, b"root")?;
    field(297, 32, b"root")?;
    field(345, 155, prefix.as_bytes())?;
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    if let Some(place) = block.get_mut(148..156) {
        place.copy_from_slice(sum.as_bytes());
    }
    Ok(block)
}

/// A path in the two fields there are for it.
fn split(path: &str) -> Result<(&str, &str)> {
    if path.len() <= 100 {
        return Ok(("", path));
    }
    let mut slashes = path.match_indices('/').map(|(at, _)| at);
    let cut = slashes.rfind(|at| *at <= 155 && path.len() - at - 1 <= 100);
    match cut.and_then(|at| Some((path.get(..at)?, path.get(at + 1..)?))) {
        Some(parts) => Ok(parts),
        None => bail!("the path is too long for an archive"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// What tar itself reads in an archive.
    fn listed(tree: &Tree) -> String {
        let mut bytes = Vec::new();
        write(tree, &mut bytes).unwrap();
        let mut tar = Command::new("tar")
            .args(["--list", "--verbose", "--numeric-owner", "--utc", "--file", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        tar.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = tar.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        text.lines().map(words).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn archive_when_read_by_tar_has_what_was_put_in_and_nothing_of_this_machine() {
        let mut tree = Tree::new();
        put(&mut tree, "usr/bin/b", text("1234567"));
        put(&mut tree, "usr/bin/a", link("b"));
        put(&mut tree, "c", executable("/bin/true".into()));
        folder(&mut tree, "tmp", 0o1777);
        let size = std::fs::metadata("/bin/true").unwrap().len();
        let expected = [
            format!("-rwxr-xr-x 0/0 {size} 1970-01-01 00:00 c"),
            "drwxrwxrwt 0/0 0 1970-01-01 00:00 tmp/".to_owned(),
            "drwxr-xr-x 0/0 0 1970-01-01 00:00 usr/".to_owned(),
            "drwxr-xr-x 0/0 0 1970-01-01 00:00 usr/bin/".to_owned(),
            "lrwxrwxrwx 0/0 0 1970-01-01 00:00 usr/bin/a -> b".to_owned(),
            "-rw-r--r-- 0/0 7 1970-01-01 00:00 usr/bin/b".to_owned(),
        ];
        assert_eq!(listed(&tree), expected.join("\n"));
    }

    #[test]
    fn path_when_long_is_cut_at_a_slash_and_one_that_cannot_be_is_refused() {
        let (folder, file) = ("f".repeat(90), "n".repeat(90));
        let path = format!("{folder}/{file}");
        assert_eq!(split(&path).unwrap(), (folder.as_str(), file.as_str()));
        let mut tree = Tree::new();
        tree.insert(path.clone(), text(""));
        assert!(listed(&tree).ends_with(&path));
        assert!(split(&"n".repeat(101)).is_err());
        assert!(split(&format!("{}/{file}", "f".repeat(200))).is_err());
    }
}
