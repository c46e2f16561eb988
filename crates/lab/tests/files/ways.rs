//! What a file can be instead of what it should: how each is made and undone, in a host's shell. `$F` is the file, `$D` its folder,
//! `$B` a file that nobody has any business with.
//!
//! Whatever reads or writes a file can be put to these: the daemon's files are in [`super::daemon`].

use std::fmt::Write as _;

/// One state of a file.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    pub name: &'static str,
    /// Makes it so.
    pub made: &'static str,
    /// Undoes it, whatever became of it meanwhile.
    pub cured: &'static str,
    /// The file system that the folder lies on.
    pub on: Disk,
    /// Nothing can be written in the place of the file as long as it lasts.
    pub is_closed: bool,
}

/// What a folder lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// Whatever it lies on.
    Any,
    /// A small one of its own.
    Small,
    /// One that can be made to hang.
    Freezable,
}

const fn way(name: &'static str, made: &'static str) -> Way {
    Way {
        name,
        made,
        cured: "if [ -e $F ] && [ ! -f $F ] || [ -L $F ]; then rm -rf $F; fi",
        on: Disk::Any,
        is_closed: false,
    }
}

const fn disk(name: &'static str, made: &'static str, cured: &'static str, on: Disk) -> Way {
    Way {
        name,
        made,
        cured,
        on,
        is_closed: true,
    }
}

/// All of them.
pub const WAYS: [Way; 12] = [
    way("absent", "rm -rf $F"),
    way("empty", "rm -rf $F; : >$F"),
    way(
        "truncated",
        "[ -f $F ] || echo 0123456789 >$F; s=$(stat -c %s $F); truncate -s $((s / 2)) $F",
    ),
    way("garbage", "rm -rf $F; head -c 5000 /dev/urandom >$F"),
    Way {
        is_closed: true,
        ..way("a directory", "rm -rf $F; mkdir $F")
    },
    way("a FIFO", "rm -rf $F; mkfifo $F"),
    way("a link", "rm -rf $F; echo precious >$B; ln -s $B $F"),
    way("/dev/zero", "rm -rf $F; mknod $F c 1 5"),
    disk(
        "on a read-only disk",
        "rm -rf $F; mount -o remount,ro $D",
        "mount -o remount,rw $D",
        Disk::Small,
    ),
    disk(
        "on a full disk",
        "rm -rf $F; cat /dev/zero 2>/dev/null >$D/fill || true",
        "rm -f $D/fill",
        Disk::Small,
    ),
    disk(
        "on a disk without inodes",
        "rm -rf $F; n=0; while true 2>/dev/null >$D/fill$n; do n=$((n + 1)); done",
        "rm -f $D/fill*",
        Disk::Small,
    ),
    disk(
        "on a hanging disk",
        "fsfreeze -f $D",
        "fsfreeze -u $D",
        Disk::Freezable,
    ),
];

/// A script with the names filled in.
pub fn script(text: &str, folder: &str, file: &str, bait: &str) -> String {
    let mut script = String::new();
    let _ = writeln!(script, "D={folder}; F={file}; B={bait}");
    script.push_str(text);
    script
}

/// Puts a folder on a disk of its own, with what was in it; `None` when that is not needed.
pub fn mount(disk: Disk, folder: &str) -> Option<String> {
    let copy = |mounted: &str| {
        format!(
            "rm -rf /run/.kept; mkdir -p {folder} /run/.kept; cp -a {folder}/. /run/.kept; {mounted}; cp -a /run/.kept/. {folder}; rm -rf /run/.kept"
        )
    };
    match disk {
        Disk::Any => None,
        Disk::Small => Some(copy(&format!(
            "mount -t tmpfs -o size=256k,nr_inodes=64,mode=755 files {folder}"
        ))),
        Disk::Freezable => {
            let image = format!("/run/{}.img", folder.replace('/', "-"));
            Some(copy(&format!(
                "truncate -s 8M {image} && mkfs.ext4 -q {image} && mount -o loop {image} {folder}"
            )))
        }
    }
}
