//! The firewall programs, one transaction a time.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::process;

/// How long a firewall program may take, waiting for its lock included.
const LIMIT: Duration = Duration::from_secs(60);
const LOCK_FOLDER: &str = "/run/flannel";
const LOCK: &str = "/run/flannel/cni-firewall.lock";

/// Keeps other calls of ours from the firewall until dropped, and until the last program that was started meanwhile has ended.
///
/// A runtime that kills a call kills no grandchild: the program goes on, and inherits the lock with its descriptors, so that the
/// DEL that follows finds the rules it has still made. Where the lock cannot be had the work is done without.
pub fn lock() -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW;
    let open = || rustix::fs::open(LOCK, flags, Mode::from_raw_mode(0o600));
    let fd = open().or_else(|_| {
        let _ = rustix::fs::mkdir(LOCK_FOLDER, Mode::from_raw_mode(0o755));
        open()
    });
    let fd = fd.ok()?;
    rustix::io::retry_on_intr(|| rustix::fs::flock(&fd, FlockOperation::LockExclusive)).ok()?;
    Some(fd)
}

/// A firewall program is on `PATH`.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Runs a firewall program. `Ok(None)`: it is not installed.
pub fn run(program: &str, args: &[&str], stdin: &str) -> Result<Option<String>, String> {
    match process::run(Command::new(program).args(args), stdin.as_bytes(), LIMIT) {
        Ok(output) if output.status.success() => {
            Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!(
                "{program} {}: {}: {}",
                args.join(" "),
                output.ending(),
                said.trim()
            ))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("{program}: {e}")),
    }
}

/// Applies lines to the nat table, all or none, leaving alone what they do not name. `Ok(None)`: not installed.
pub fn restore(v6: bool, lines: &[String]) -> Result<Option<String>, String> {
    let text = format!("*nat\n{}\nCOMMIT\n", lines.join("\n"));
    run(
        if v6 {
            "ip6tables-restore"
        } else {
            "iptables-restore"
        },
        &["--noflush", "--wait"],
        &text,
    )
}

/// Lists the nat table. `Ok(None)`: not installed.
pub fn save(v6: bool) -> Result<Option<String>, String> {
    run(
        if v6 { "ip6tables-save" } else { "iptables-save" },
        &["-t", "nat"],
        "",
    )
}
