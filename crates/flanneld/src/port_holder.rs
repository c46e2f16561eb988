//! Who listens on a port: for whoever is told that it is taken.

use std::collections::BTreeSet;
use std::fs;

/// `TCP_LISTEN` of the kernel's `enum` of states, as `/proc/net/tcp` writes it.
const LISTENING: &str = "0A";

/// A process in this network namespace that listens on the port, as far as this process may see: `pid 12 (nginx)`.
///
/// Looks at the descriptors of every process.
pub fn of(port: u16) -> Option<String> {
    let sockets: BTreeSet<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listeners(&table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if sockets.is_empty() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let holder = processes
        .filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| holds(*pid, &sockets))?;
    let name = fs::read_to_string(format!("/proc/{holder}/comm")).unwrap_or_default();
    let name: String = name.trim().chars().flat_map(char::escape_default).collect();
    Some(format!("pid {holder} ({name})"))
}

/// Inodes of the sockets that listen on a port, in the kernel's table.
fn listeners(table: &str, port: u16) -> Vec<String> {
    let is_ours = |fields: &[&str]| {
        fields.get(3) == Some(&LISTENING)
            && fields
                .get(1)
                .and_then(|address| address.rsplit_once(':'))
                .is_some_and(|(_, hex)| u16::from_str_radix(hex, 16) == Ok(port))
    };
    table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| is_ours(fields))
        .filter_map(|fields| fields.get(9).map(ToString::to_string))
        .collect()
}

fn holds(pid: u32, sockets: &BTreeSet<String>) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors
        .flatten()
        .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
        .any(|target| target.to_str().is_some_and(|target| sockets.contains(target)))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn of_when_somebody_listens_then_it_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let holder = of(port).unwrap();
        assert!(
            holder.starts_with(&format!("pid {} (", std::process::id())),
            "{holder}"
        );
        assert_eq!(of(0), None);
    }

    #[test]
    fn listeners_when_a_connection_has_the_port_then_only_who_listens_counts() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0\n\
             1: 0100007F:1F91 0100007F:C000 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0\n\
             2: 0100007F:1F92 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0\n\
             torn\n";
        assert_eq!(listeners(table, 8081), ["4711"]);
    }
}
