//! The firewall by way of its own programs: text in, text out. What the text means is for others to know.

pub mod legacy;
pub mod monitor;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use fabric::object::Family;
use fabric::rules::{self, Table};
use rustix::fs::OFlags;

use crate::exec::{self, ExecError};
use crate::lock;

/// `iptables` waits for the xtables lock, and so may have to wait for somebody who rewrites 20,000 rules.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long `iptables-restore` itself waits for the lock, seconds; below [`PATIENCE`], so that it is the one to complain.
const LOCK_SECONDS: &str = "20";
/// The same where it is we who wait.
const LOCK_TIME: Duration = Duration::from_secs(20);
/// The file that iptables itself locks.
const XTABLES_LOCK: &str = "/run/xtables.lock";

/// Name of a family's program: `iptables`, or with a suffix `iptables-save`, `iptables-restore`; likewise `ip6tables`.
pub fn iptables(family: Family, suffix: &str) -> String {
    let program = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    format!("{program}{suffix}")
}

/// Version line of a family's iptables, such as `iptables v1.8.9 (nf_tables)`.
///
/// # Errors
///
/// When the program is not installed, does not answer in time or fails.
pub fn iptables_version(family: Family) -> Result<String, ExecError> {
    exec::read(&iptables(family, ""), &["--version"], "", PATIENCE)
}

/// Whether a version line is of the variant on top of nftables, whose changes are told by notification.
pub fn is_nft_variant(version: &str) -> bool {
    version.contains("nf_tables")
}

/// `iptables-save -t <table>`; empty where the kernel has no such table.
///
/// # Errors
///
/// When the program is not installed, does not answer in time or fails.
pub fn iptables_save(family: Family, table: Table) -> Result<String, ExecError> {
    exec::read(&iptables(family, "-save"), &["-t", table.name()], "", PATIENCE)
}

/// What the variant of iptables that is not in use here holds in a table, and the name of the program that prints it; `None` where
/// there is no such program, or it holds nothing.
pub fn other_variant(family: Family, table: Table) -> Option<(String, String)> {
    let version = iptables_version(family).ok()?;
    let program = if is_nft_variant(&version) {
        // Asked for a table that the kernel has not got yet, it would make it.
        let names = match family {
            Family::V4 => "/proc/net/ip_tables_names",
            Family::V6 => "/proc/net/ip6_tables_names",
        };
        let there = std::fs::read_to_string(names).ok()?;
        there.lines().find(|name| *name == table.name())?;
        iptables(family, "-legacy-save")
    } else {
        iptables(family, "-nft-save")
    };
    exec::find(&program)?;
    let listing = exec::read(&program, &["-t", table.name()], "", PATIENCE).ok()?;
    Some((program, listing))
}

/// One `iptables-restore --noflush` transaction.
///
/// COMPAT: before 1.6.2 `iptables-restore` knew no `-w` and took no lock: then it is we who hold the lock meanwhile.
///
/// # Errors
///
/// When the program is not installed, does not answer in time or refuses the rules; then none is applied.
pub fn iptables_restore(family: Family, payload: &str) -> Result<(), ExecError> {
    restore_by(&iptables(family, "-restore"), family, payload)
}

/// As [`iptables_restore`], with the variant of iptables whose listing program [`other_variant`] has named.
///
/// # Errors
///
/// As [`iptables_restore`].
pub fn other_restore(lister: &str, family: Family, payload: &str) -> Result<(), ExecError> {
    restore_by(&lister.replace("-save", "-restore"), family, payload)
}

fn restore_by(program: &str, family: Family, payload: &str) -> Result<(), ExecError> {
    let waits = iptables_version(family).map_or(true, |version| rules::iptables::knows_wait(&version));
    let lock;
    let arguments = if waits {
        lock = None;
        vec!["--noflush", "-w", LOCK_SECONDS]
    } else {
        lock = Some(xtables_lock(program, Instant::now() + LOCK_TIME)?);
        vec!["--noflush"]
    };
    let restored = exec::read(program, &arguments, payload, PATIENCE).map(|_| ());
    drop(lock);
    restored
}

/// Takes the lock that iptables takes, for a `program` that takes none itself; it is let go of with the file.
///
/// # Errors
///
/// Somebody else has it until then, or there is no such file to be had.
pub fn xtables_lock(program: &str, until: Instant) -> Result<File, ExecError> {
    let failed = |source| ExecError::Io {
        program: program.to_owned(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(XTABLES_LOCK)
        .map_err(failed)?;
    match lock::lock_by(&file, until).map_err(failed)? {
        true => Ok(file),
        false => {
            let text = format!("another program holds the xtables lock {XTABLES_LOCK}");
            Err(failed(io::Error::new(io::ErrorKind::WouldBlock, text)))
        }
    }
}

/// `nft list table <family> <name>`; empty where there is no such table.
///
/// `table` is the table as nft names it, such as `ip flannel-ipv4`.
///
/// # Errors
///
/// When nft is not installed, does not answer in time or fails.
pub fn nft_list(table: &str) -> Result<String, ExecError> {
    let arguments: Vec<&str> = ["list", "table"].into_iter().chain(table.split(' ')).collect();
    match exec::read("nft", &arguments, "", PATIENCE) {
        Err(ExecError::Failed { reason, .. }) if reason.contains("No such file or directory") => {
            Ok(String::new())
        }
        other => other,
    }
}

/// One `nft -f -` transaction.
///
/// # Errors
///
/// When nft is not installed, does not answer in time or refuses the script; then none of it is applied.
pub fn nft_apply(script: &str) -> Result<(), ExecError> {
    exec::read("nft", &["-f", "-"], script, PATIENCE).map(|_| ())
}

/// Whether nft and the kernel would take a script; nothing is changed.
pub fn nft_would_take(script: &str) -> bool {
    exec::read("nft", &["--check", "-f", "-"], script, PATIENCE).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_when_named_then_by_family_and_variant() {
        assert_eq!(iptables(Family::V4, ""), "iptables");
        assert_eq!(iptables(Family::V6, "-restore"), "ip6tables-restore");
        assert!(is_nft_variant("iptables v1.8.9 (nf_tables)"));
        assert!(!is_nft_variant("iptables v1.8.9 (legacy)") && !is_nft_variant("iptables v1.6.1"));
    }
}
