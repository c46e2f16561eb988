//! The firewall by way of its own programs: text in, text out. What the text means is for others to know.

pub mod legacy;
pub mod monitor;

use std::time::Duration;

use fabric::object::Family;
use fabric::rules::Table;

use crate::exec::{self, ExecError};

/// `iptables` waits for the xtables lock, and so may have to wait for somebody who rewrites 20,000 rules.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long `iptables-restore` itself waits for the lock, seconds; below [`PATIENCE`], so that it is the one to complain.
const LOCK_SECONDS: &str = "20";

fn iptables(family: Family, suffix: &str) -> String {
    let program = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    format!("{program}{suffix}")
}

/// Version line of a family's iptables, such as `iptables v1.8.9 (nf_tables)`.
pub fn iptables_version(family: Family) -> Result<String, ExecError> {
    exec::read(&iptables(family, ""), &["--version"], "", PATIENCE)
}

/// Whether a version line is of the variant on top of nftables, whose changes are told by notification.
pub fn is_nft_variant(version: &str) -> bool {
    version.contains("nf_tables")
}

/// `iptables-save -t <table>`; empty where the kernel has no such table.
pub fn iptables_save(family: Family, table: Table) -> Result<String, ExecError> {
    exec::read(&iptables(family, "-save"), &["-t", table.name()], "", PATIENCE)
}

/// One `iptables-restore --noflush` transaction.
pub fn iptables_restore(family: Family, payload: &str) -> Result<(), ExecError> {
    let arguments = ["--noflush", "-w", LOCK_SECONDS];
    exec::read(&iptables(family, "-restore"), &arguments, payload, PATIENCE).map(|_| ())
}

/// `nft list table <family> <name>`; empty where there is no such table.
///
/// `table` is the table as nft names it, such as `ip flannel-ipv4`.
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
pub fn nft_apply(script: &str) -> Result<(), ExecError> {
    exec::read("nft", &["-f", "-"], script, PATIENCE).map(|_| ())
}

/// Whether nft and the kernel would take a script; nothing is changed.
pub fn nft_would_take(script: &str) -> bool {
    exec::read("nft", &["--check", "-f", "-"], script, PATIENCE).is_ok()
}
