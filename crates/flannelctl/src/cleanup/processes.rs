//! Who keeps what is here: daemons in this network namespace, also those that a container runs.

use std::path::Path;

/// The name of the daemon's process, Go's and ours alike.
const NAME: &str = "flanneld";

/// The process numbers of every flanneld that has this network namespace.
pub fn flannelds() -> Vec<u32> {
    let Ok(own) = std::fs::read_link("/proc/self/ns/net") else {
        return Vec::new();
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found: Vec<u32> = numbers
        .filter(|pid| is_flanneld(*pid))
        .filter(|pid| std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|theirs| theirs == own))
        .collect();
    found.sort_unstable();
    found
}

fn is_flanneld(pid: u32) -> bool {
    // A thread's name may be another; the process is known by its first word as well.
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let executable = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let is_named = |path: &Path| path.file_name().is_some_and(|name| name == NAME);
    comm.trim_end() == NAME || is_named(&executable)
}
