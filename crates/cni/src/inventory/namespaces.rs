//! Every network namespace that a process is in, holds open, or has mounted in its mount namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kernel::netns::{Netns, NetnsError};
use kernel::rtnl::Rtnl;
use rustix::io::Errno;

/// Walks until every namespace found has been entered or is gone.
const ROUNDS: u32 = 5;
/// Paths kept for each namespace: a process may end before it is opened.
const PATHS: usize = 4;

/// Namespaces that have been looked into, by inode.
#[derive(Debug, Default)]
pub struct Seen(BTreeSet<u64>);

/// What one walk found.
#[derive(Debug, Default)]
struct Walk {
    paths: BTreeMap<u64, Vec<PathBuf>>,
    /// Addresses around processes whose namespace may not be opened.
    told: Vec<(PathBuf, Vec<IpAddr>)>,
    /// Their tables, by inode: each namespace has its own.
    tables: BTreeSet<u64>,
    /// What the walk could not look at.
    hidden: Vec<String>,
}

impl Seen {
    /// Tells the addresses of every namespace not looked into before, with a path to it; returns what could not be looked into.
    pub fn enter_all(
        &mut self,
        with_descriptors: bool,
        mut tell: impl FnMut(&Path, Option<&Netns>, &[IpAddr]),
    ) -> Unseen {
        let mut unseen = Unseen::default();
        let mut gone_before = BTreeSet::new();
        for _ in 0..ROUNDS {
            let walk = walk(with_descriptors);
            unseen = Unseen {
                why: walk.hidden,
                passing: false,
            };
            for (path, addresses) in &walk.told {
                tell(path, None, addresses);
            }
            let mut gone = BTreeSet::new();
            for (inode, paths) in &walk.paths {
                if self.0.contains(inode) {
                    continue;
                }
                match enter(*inode, paths) {
                    Ok((netns, addresses)) => {
                        tell(netns.path(), Some(&netns), &addresses);
                        self.0.insert(*inode);
                    }
                    Err(Closed::Gone(why)) => {
                        gone.insert(*inode);
                        unseen.why.push(why);
                    }
                    Err(Closed::Refused(why)) => unseen.why.push(why),
                }
            }
            // What is out of reach again and again is so for good.
            unseen.passing = gone != gone_before;
            if !unseen.passing {
                break;
            }
            gone_before = gone;
        }
        unseen
    }
}

/// What could not be looked into.
#[derive(Debug, Default)]
pub struct Unseen {
    /// Each with the reason.
    pub why: Vec<String>,
    /// Some of it may have been on its way out.
    pub passing: bool,
}

enum Closed {
    /// It was there a moment ago, under a path that leads elsewhere now.
    Gone(String),
    /// It may not be looked into.
    Refused(String),
}

fn enter(inode: u64, paths: &[PathBuf]) -> Result<(Netns, Vec<IpAddr>), Closed> {
    for path in paths {
        let netns = match Netns::open(path) {
            Ok(netns) => netns,
            Err(NetnsError::Missing { .. } | NetnsError::NotANamespace { .. }) => continue,
            Err(NetnsError::Refused { errno, .. }) if errno == Errno::SRCH => continue,
            Err(e) => return Err(Closed::Refused(e.to_string())),
        };
        if rustix::fs::fstat(netns.as_fd()).map(|stat| stat.st_ino) != Ok(inode) {
            continue;
        }
        let list = || Rtnl::open_in(netns.as_fd())?.all_addresses();
        let addresses =
            list().map_err(|e| Closed::Refused(format!("network namespace {}: {e}", path.display())))?;
        let addresses = addresses.iter().map(|a| a.address.addr()).collect();
        return Ok((netns, addresses));
    }
    let first = paths.first().map(|p| p.display().to_string()).unwrap_or_default();
    Err(Closed::Gone(format!(
        "network namespace net:[{inode}] is out of reach at {first}"
    )))
}

fn walk(with_descriptors: bool) -> Walk {
    let mut walk = Walk::default();
    let mut mounts = BTreeSet::new();
    let processes = match std::fs::read_dir("/proc") {
        Ok(entries) => entries.flatten().map(|e| e.path()).filter(|p| is_process(p)),
        Err(e) => {
            walk.hidden.push(format!("/proc: {e}"));
            return walk;
        }
    };
    let mut refused = Vec::new();
    for process in processes {
        let mut seen = walk.process(&process, with_descriptors, &mut mounts);
        if matches!(&seen, Err(e) if e.kind() == io::ErrorKind::PermissionDenied) {
            seen = walk.guarded(&process);
        }
        if let Err(e) = seen
            && !is_gone(&e)
        {
            refused.push(format!("{}: {e}", process.display()));
        }
    }
    if let Some(first) = refused.first() {
        let count = refused.len();
        walk.hidden
            .push(format!("{count} processes may not be looked at ({first})"));
    }
    walk
}

fn is_process(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit())
}

/// The process has ended meanwhile.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

impl Walk {
    fn note(&mut self, inode: u64, path: PathBuf) {
        let paths = self.paths.entry(inode).or_default();
        if paths.len() < PATHS {
            paths.push(path);
        }
    }

    fn process(
        &mut self,
        process: &Path,
        with_descriptors: bool,
        mounts: &mut BTreeSet<u64>,
    ) -> io::Result<()> {
        // Each thread can be elsewhere.
        for thread in std::fs::read_dir(process.join("task"))?.flatten() {
            let path = thread.path().join("ns/net");
            match std::fs::read_link(&path) {
                Ok(target) => {
                    if let Some(inode) = inode_of(&target, "net") {
                        self.note(inode, path);
                    }
                }
                Err(e) if is_gone(&e) => {}
                Err(e) => return Err(e),
            }
        }
        let mount_namespace = std::fs::read_link(process.join("ns/mnt"))?;
        if let Some(inode) = inode_of(&mount_namespace, "mnt").filter(|inode| !mounts.contains(inode)) {
            let table = std::fs::read(process.join("mountinfo"))?;
            mounts.insert(inode);
            for (inode, point) in mounted(&String::from_utf8_lossy(&table)) {
                // Relative to the root of that process.
                self.note(inode, process.join("root").join(point.trim_start_matches('/')));
            }
        }
        if with_descriptors {
            for descriptor in std::fs::read_dir(process.join("fd"))?.flatten() {
                let path = descriptor.path();
                let target = std::fs::read_link(&path).ok();
                if let Some(inode) = target.and_then(|target| inode_of(&target, "net")) {
                    self.note(inode, path);
                }
            }
        }
        Ok(())
    }
}

impl Walk {
    /// A process with more power than ours may be asked what its threads' networks are, but not which.
    fn guarded(&mut self, process: &Path) -> io::Result<()> {
        for thread in std::fs::read_dir(process.join("task"))?.flatten() {
            let net = thread.path().join("net");
            let table = std::fs::metadata(net.join("fib_trie"))?.ino();
            if !self.tables.insert(table) {
                continue;
            }
            let read = |name: &str| std::fs::read_to_string(net.join(name));
            let mut addresses = local_addresses(&read("fib_trie")?);
            match read("if_inet6") {
                Ok(table) => addresses.extend(table.lines().filter_map(inet6_address)),
                // IPv6 is not built in or switched off.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
            self.told.push((net, addresses));
        }
        let table = std::fs::read(process.join("mountinfo"))?;
        for (inode, point) in mounted(&String::from_utf8_lossy(&table)) {
            // Its root may not be gone through; ours may be the same.
            self.note(inode, PathBuf::from(point));
        }
        Ok(())
    }
}

/// Own addresses in `/proc/<pid>/net/fib_trie`: leaves (`|-- 10.1.2.3`) with a line `/32 host LOCAL` below.
fn local_addresses(trie: &str) -> Vec<IpAddr> {
    let (mut found, mut leaf) = (Vec::new(), None);
    for line in trie.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("|-- ") {
            leaf = text.parse::<IpAddr>().ok();
        } else if line.starts_with("/32 host LOCAL") {
            found.extend(leaf);
        }
    }
    found
}

/// The address in a line of `/proc/<pid>/net/if_inet6`: 32 digits.
fn inet6_address(line: &str) -> Option<IpAddr> {
    let bits = u128::from_str_radix(line.split(' ').next()?, 16).ok()?;
    Some(Ipv6Addr::from_bits(bits).into())
}

/// The number in `net:[4026531833]`.
fn inode_of(target: &Path, kind: &str) -> Option<u64> {
    let text = target.to_str()?.strip_prefix(kind)?.strip_prefix(":[")?;
    text.strip_suffix(']')?.parse().ok()
}

/// Network namespaces that are mounted, with where; format of `/proc/<pid>/mountinfo`: id, parent, device, root, mount point,
/// options, optional fields, `-`, type, source, options.
fn mounted(table: &str) -> Vec<(u64, String)> {
    let of_line = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        if after.split(' ').next() != Some("nsfs") {
            return None;
        }
        let mut fields = before.split(' ').skip(3);
        let inode = inode_of(Path::new(fields.next()?), "net")?;
        Some((inode, unescape(fields.next()?)))
    };
    table.lines().filter_map(of_line).collect()
}

/// Undoes `\040` and the like.
fn unescape(text: &str) -> String {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let number = more.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match number {
            Some(byte) => {
                plain.push(byte);
                rest = more.get(3..).unwrap_or_default();
            }
            None => {
                plain.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_proc_when_read_give_mounted_networks_and_own_addresses() {
        let table = "\
25 30 0:23 / /proc rw,nosuid shared:14 - proc proc rw
330 27 0:4 net:[4026532201] /run/netns/a rw shared:5 - nsfs nsfs rw
331 27 0:4 net:[4026532301] /run/docker/netns/with\\040blank rw - nsfs nsfs rw
332 27 0:4 mnt:[4026532400] /run/mnt rw - nsfs nsfs rw
333 27 8:1 /net:[7] /data rw - ext4 /dev/sda rw
334 27 0:4 net:[x] /run/y rw - nsfs nsfs rw
broken
";
        assert_eq!(
            mounted(table),
            [
                (4_026_532_201, "/run/netns/a".to_owned()),
                (4_026_532_301, "/run/docker/netns/with blank".to_owned()),
            ]
        );
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 127.0.0.0\n        /8 host LOCAL\n     |-- 10.1.2.3\n        /32 link UNICAST\n        /32 host LOCAL\n     |-- 10.1.2.255\n        /32 link BROADCAST\n";
        assert_eq!(local_addresses(trie), ["10.1.2.3".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            inet6_address("fd000000000000000000000000000002 04 40 00 82     eth0"),
            Some("fd00::2".parse().unwrap())
        );
        assert_eq!(unescape("a\\134b\\"), "a\\b\\");
        assert_eq!(unescape("\\999"), "\\999");
    }

    #[test]
    fn process_when_it_ends_meanwhile_is_told_from_one_that_may_not_be_seen() {
        assert!(is_process(Path::new("/proc/12")));
        for other in ["/proc/self", "/proc/1a", "/"] {
            assert!(!is_process(Path::new(other)), "{other}");
        }
        assert!(is_gone(&io::Error::from(io::ErrorKind::NotFound)));
        assert!(is_gone(&io::Error::from_raw_os_error(Errno::SRCH.raw_os_error())));
        assert!(!is_gone(&io::Error::from(io::ErrorKind::PermissionDenied)));
        assert_eq!(
            inode_of(Path::new("net:[4026531833]"), "net"),
            Some(4_026_531_833)
        );
        for other in ["mnt:[1]", "net:[x]", "net:[1", "/run/netns/x"] {
            assert_eq!(inode_of(Path::new(other), "net"), None, "{other}");
        }
    }

    #[test]
    fn namespace_when_it_is_met_again_and_again_keeps_some_of_its_paths() {
        let mut walk = Walk::default();
        for n in 0..10 {
            walk.note(7, PathBuf::from(format!("/{n}")));
        }
        walk.note(8, PathBuf::from("/x"));
        assert_eq!(walk.paths[&7], ["/0", "/1", "/2", "/3"].map(PathBuf::from));
        assert_eq!(walk.paths[&8], [PathBuf::from("/x")]);
    }
}
