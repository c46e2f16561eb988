//! What the daemon reads and writes.

/// A file of the daemon's.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    /// What it is called here.
    pub name: &'static str,
    pub folder: &'static str,
    /// In the folder; a pattern of the shell's.
    pub file: &'static str,
    /// The host cannot be ready without it.
    pub is_needed: bool,
}

/// Where the daemon looks after it.
const RUN: &str = "/run/flannel";
const STATE: &str = "/var/lib/flannel";

const fn named(name: &'static str, folder: &'static str, file: &'static str, is_needed: bool) -> Named {
    Named {
        name,
        folder,
        file,
        is_needed,
    }
}

pub const FILES: [Named; 5] = [
    named("subnet.env", RUN, "subnet.env", true),
    named("the status socket", RUN, "flanneld.sock", false),
    named("the device's lock", RUN, "*-flannel.1.lock", false),
    named("the state", STATE, "state.json", false),
    named("the cache", STATE, "cache", false),
];
