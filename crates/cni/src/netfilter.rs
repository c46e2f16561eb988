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

/// Lists some chains of the nat table in the form of [`save`]; those that are not there are left out. `Ok(None)`: not installed.
///
/// Costs what these chains hold. Listing the table means half a second and more where a service proxy has 20,000 rules in it.
pub fn list(v6: bool, chains: &[&str]) -> Result<Option<String>, String> {
    let program = if v6 { "ip6tables" } else { "iptables" };
    let mut text = String::new();
    for name in chains {
        match run(program, &["--wait", "-t", "nat", "-S", name], "") {
            Ok(Some(listed)) => text.push_str(&restate(&listed)),
            Ok(None) => return Ok(None),
            Err(e) if is_absent(&e, name) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(Some(text))
}

/// A listing of one chain with its first line as [`save`] has it.
fn restate(listed: &str) -> String {
    let mut text = String::with_capacity(listed.len() + 8);
    for line in listed.lines() {
        match line.strip_prefix("-N ").or_else(|| line.strip_prefix("-P ")) {
            Some(rest) => {
                let (name, policy) = rest.split_once(' ').unwrap_or((rest, "-"));
                text.push_str(&format!(":{name} {policy} [0:0]\n"));
            }
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

/// What iptables says of a chain that is not there; that of nf_tables takes it for one it cannot read.
fn is_absent(error: &str, chain: &str) -> bool {
    error.contains("No chain/target/match by that name")
        || error.contains(&format!("chain `{chain}' in table `nat' is incompatible"))
}

/// Lists the nat table. `Ok(None)`: not installed.
pub fn save(v6: bool) -> Result<Option<String>, String> {
    run(
        if v6 { "ip6tables-save" } else { "iptables-save" },
        &["-t", "nat"],
        "",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listing_when_restated_has_the_form_of_a_saved_table() {
        let listed = "-N CNI-a\n-A CNI-a -d 10.0.0.0/8 -m comment --comment \"-N x\" -j ACCEPT\n";
        assert_eq!(
            restate(listed),
            ":CNI-a - [0:0]\n-A CNI-a -d 10.0.0.0/8 -m comment --comment \"-N x\" -j ACCEPT\n"
        );
        assert_eq!(restate("-P POSTROUTING ACCEPT\n"), ":POSTROUTING ACCEPT [0:0]\n");
    }

    #[test]
    fn error_when_it_is_about_another_thing_is_no_missing_chain() {
        let error = |text: &str| format!("iptables --wait -t nat -S CNI-a: exit status 1: {text}");
        assert!(is_absent(
            &error("iptables: No chain/target/match by that name."),
            "CNI-a"
        ));
        let nft =
            "iptables v1.8.9 (nf_tables): chain `CNI-a' in table `nat' is incompatible, use 'nft' tool.";
        assert!(is_absent(&error(nft), "CNI-a"));
        assert!(!is_absent(&error(nft), "CNI-b"));
        assert!(!is_absent(
            &error("Permission denied (you must be root)."),
            "CNI-a"
        ));
    }
}
