//! Whether the rules of iptables-legacy changed, which nobody tells of: looked up without a program and without the
//! xtables lock (`linux/netfilter_ipv4/ip_tables.h`, `ip6_tables.h`, `x_tables.h`).
//!
//! A table comes as one blob, chain after chain. Only the built-in chains and ours are hashed, so
//! tens of thousands of rules that others rewrite beside ours make no difference. Counters make none either.

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use fabric::object::Family;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

const NAME: usize = 32;
/// `struct ipt_getinfo`: name, valid_hooks, hook_entry[5], underflow[5], num_entries, size.
const INFO: usize = NAME + 4 * 13;
/// `struct ipt_get_entries` before its entries: name, size, padding.
const ENTRIES_HEADER: usize = NAME + 8;
/// A table that changes between the two calls is looked at again.
const ATTEMPTS: usize = 10;
/// Far above any table that exists; the kernel has the same limit of sanity.
const MOST_BYTES: usize = 512 << 20;

/// Where the parts of an entry are, which differ between the families.
struct Layout {
    level: i32,
    get_info: i32,
    get_entries: i32,
    /// Lists the tables that exist. Asking the kernel for another one would make it.
    names: &'static str,
    /// Bytes of addresses, interfaces and protocol, before `nfcache`.
    matching: usize,
    /// Offset of `target_offset`; `next_offset` follows it.
    target_offset: usize,
    /// Bytes of the entry before its matches: ends with two counters of 8 bytes.
    header: usize,
}

const V4: Layout = Layout {
    level: 0,
    get_info: 64,
    get_entries: 65,
    names: "/proc/thread-self/net/ip_tables_names",
    matching: 84,
    target_offset: 88,
    header: 112,
};

const V6: Layout = Layout {
    level: 41,
    get_info: 64,
    get_entries: 65,
    names: "/proc/thread-self/net/ip6_tables_names",
    matching: 136,
    target_offset: 140,
    header: 168,
};

/// `struct xt_entry_target`: size u16, name of 29 bytes, revision; then, of the standard target, a verdict.
const TARGET_NAME: usize = 2;
const TARGET_NAME_LENGTH: usize = 29;
const TARGET_DATA: usize = 32;

/// What flannel's own chains begin with: those of several instances on one host are all looked at.
const OUR_CHAINS: &[u8] = b"FLANNEL-";

/// A repeated look at one table, in the network namespace of the thread that looks first.
#[derive(Debug)]
pub struct Probe {
    family: Family,
    table: &'static str,
    socket: Option<OwnedFd>,
    /// What was seen last; `None` before the first look.
    last: Option<Option<u64>>,
}

impl Probe {
    /// Looks at nothing yet.
    pub fn new(family: Family, table: &'static str) -> Probe {
        Probe {
            family,
            table,
            socket: None,
            last: None,
        }
    }

    /// Whether the table changed since the last look, or may have because it cannot be looked at. The first look finds no
    /// change.
    pub fn changed(&mut self) -> bool {
        match self.fingerprint() {
            Ok(now) => self.last.replace(now).is_some_and(|before| before != now),
            Err(_) => true,
        }
    }

    /// A number that changes when the built-in chains of the table do, or one of ours does; not when they only count.
    /// `None` when there is no such table. Needs `CAP_NET_RAW` and `CAP_NET_ADMIN`.
    pub fn fingerprint(&mut self) -> io::Result<Option<u64>> {
        let layout = self.layout();
        let exists = match fs::read_to_string(layout.names) {
            Ok(names) => names.lines().any(|name| name == self.table),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if !exists {
            return Ok(None);
        }
        let socket = match &self.socket {
            Some(socket) => socket,
            None => self.socket.insert(raw_socket(self.family)?),
        };
        for _ in 0..ATTEMPTS {
            match read(socket, layout, self.table) {
                Ok(blob) => return Ok(Some(hash(layout, &blob))),
                // Replaced between the two calls.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("table {} changes all the time", self.table),
        ))
    }

    fn layout(&self) -> &'static Layout {
        match self.family {
            Family::V4 => &V4,
            Family::V6 => &V6,
        }
    }
}

fn raw_socket(family: Family) -> io::Result<OwnedFd> {
    let domain = match family {
        Family::V4 => AddressFamily::INET,
        Family::V6 => AddressFamily::INET6,
    };
    let protocol = Some(rustix::net::ipproto::RAW);
    Ok(rustix::net::socket_with(
        domain,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        protocol,
    )?)
}

fn read(socket: &OwnedFd, layout: &Layout, table: &str) -> io::Result<Blob> {
    let mut info = named(table, INFO)?;
    get(socket, layout.level, layout.get_info, &mut info)?;
    let number = |at: usize| read_u32(&info, at).unwrap_or(0);
    let size = number(NAME + 48) as usize;
    if size > MOST_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let valid = number(NAME);
    let hooks = (0..5)
        .filter(|hook| valid & (1 << hook) != 0)
        .map(|hook| number(NAME + 4 + 4 * hook) as usize);
    let hooks = hooks.collect();
    let mut entries = named(table, ENTRIES_HEADER + size)?;
    let length = u32::try_from(size).unwrap_or(0).to_ne_bytes();
    if let Some(place) = entries.get_mut(NAME..NAME + 4) {
        place.copy_from_slice(&length);
    }
    get(socket, layout.level, layout.get_entries, &mut entries)?;
    entries.drain(..ENTRIES_HEADER);
    Ok(Blob { entries, hooks })
}

fn get(socket: &OwnedFd, level: i32, option: i32, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = buffer.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, the size of `buffer`, and updates `length`; both live until it returns.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

struct Blob {
    entries: Vec<u8>,
    /// Offsets at which built-in chains begin.
    hooks: Vec<usize>,
}

fn named(table: &str, length: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; length];
    match buffer.get_mut(..table.len()).filter(|_| table.len() < NAME) {
        Some(place) => place.copy_from_slice(table.as_bytes()),
        None => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{table}: too long for a table"),
            ));
        }
    }
    Ok(buffer)
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// One rule, or the head of a user-defined chain.
struct Entry<'a> {
    at: usize,
    bytes: &'a [u8],
    target: &'a [u8],
}

impl<'a> Entry<'a> {
    fn target_name(&self) -> &'a [u8] {
        let name = self
            .target
            .get(TARGET_NAME..TARGET_NAME + TARGET_NAME_LENGTH)
            .unwrap_or(&[]);
        until_nul(name)
    }

    /// Of a chain's head: the chain's name.
    fn chain(&self) -> Option<&'a [u8]> {
        let is_head = self.target_name() == b"ERROR";
        is_head.then(|| until_nul(self.target.get(TARGET_DATA..).unwrap_or(&[])))
    }

    /// Of the standard target: the offset it jumps to, or a negative verdict.
    fn verdict(&self) -> Option<i32> {
        let standard = self.target_name().is_empty();
        standard
            .then(|| read_u32(self.target, TARGET_DATA).map(|v| v as i32))
            .flatten()
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or(bytes)
}

fn entries<'a>(layout: &'static Layout, bytes: &'a [u8]) -> impl Iterator<Item = Entry<'a>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = bytes.get(at..)?;
        let offset = |place: usize| {
            rest.get(place..place + 2)?
                .try_into()
                .ok()
                .map(u16::from_ne_bytes)
                .map(usize::from)
        };
        let (target, next) = (offset(layout.target_offset)?, offset(layout.target_offset + 2)?);
        // An entry is never shorter than its header: otherwise this would not end.
        let entry = Entry {
            at,
            bytes: rest.get(..next).filter(|_| next >= layout.header)?,
            target: rest.get(target..next)?,
        };
        at += next;
        Some(entry)
    })
}

fn hash(layout: &'static Layout, blob: &Blob) -> u64 {
    // Jumps are written as offsets, which move with every rule before them: names take their place.
    let mut names: HashMap<usize, &[u8]> = HashMap::new();
    let mut last_head = None;
    for entry in entries(layout, &blob.entries) {
        if let Some(head) = last_head.take() {
            names.insert(entry.at, head);
        }
        last_head = entry.chain();
    }
    let mut hasher = DefaultHasher::new();
    let mut wanted = false;
    for entry in entries(layout, &blob.entries) {
        if blob.hooks.contains(&entry.at) {
            wanted = true;
        } else if let Some(chain) = entry.chain() {
            wanted = chain.starts_with(OUR_CHAINS);
        }
        if !wanted {
            continue;
        }
        let body = layout.header..entry.bytes.len() - entry.target.len().min(entry.bytes.len());
        entry.bytes.get(..layout.matching).hash(&mut hasher);
        entry.bytes.get(body).hash(&mut hasher);
        match entry
            .verdict()
            .map(|verdict| (verdict, usize::try_from(verdict).ok().and_then(|v| names.get(&v))))
        {
            Some((_, Some(name))) => name.hash(&mut hasher),
            Some((verdict, None)) => verdict.hash(&mut hasher),
            None => entry.target.hash(&mut hasher),
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_when_walked_then_ends_without_panic() {
        for layout in [&V4, &V6] {
            for length in [0, 1, 90, 111, 112, 168, 500] {
                for byte in [0u8, 1, 112, 0x7f, 0xff] {
                    let blob = Blob {
                        entries: vec![byte; length],
                        hooks: vec![0, 7],
                    };
                    hash(layout, &blob);
                }
            }
        }
        assert!(named(&"x".repeat(40), INFO).is_err());
    }
}
