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
    ///
    /// # Errors
    ///
    /// Those of the kernel, and `ResourceBusy` when the table changes all the time.
    pub fn fingerprint(&mut self) -> io::Result<Option<u64>> {
        let layout = self.layout();
        Ok(self.blob()?.map(|blob| hash(layout, &blob)))
    }

    /// The table has a chain of one of these names. `false` also when there is no such table.
    ///
    /// # Errors
    ///
    /// As [`Probe::fingerprint`].
    pub fn has_chain(&mut self, names: &[String]) -> io::Result<bool> {
        let layout = self.layout();
        Ok(self.blob()?.is_some_and(|blob| blob.has_chain(layout, names)))
    }

    /// A rule of the table holds this text, in a comment for instance. `false` also when there is no such table.
    ///
    /// # Errors
    ///
    /// As [`Probe::fingerprint`].
    pub fn holds_text(&mut self, text: &str) -> io::Result<bool> {
        Ok(self.blob()?.is_some_and(|blob| blob.holds_text(text)))
    }

    fn blob(&mut self) -> io::Result<Option<Blob>> {
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
                Ok(blob) => return Ok(Some(blob)),
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
    let (size, hooks) = size_and_hooks(&info)?;
    let mut entries = named(table, ENTRIES_HEADER + size)?;
    let length = u32::try_from(size).unwrap_or(0).to_ne_bytes();
    if let Some(place) = entries.get_mut(NAME..NAME + 4) {
        place.copy_from_slice(&length);
    }
    get(socket, layout.level, layout.get_entries, &mut entries)?;
    entries.drain(..ENTRIES_HEADER);
    Ok(Blob { entries, hooks })
}

/// Reads `struct ipt_getinfo`: the bytes of all entries, and the offsets at which built-in chains begin.
fn size_and_hooks(info: &[u8]) -> io::Result<(usize, Vec<usize>)> {
    let number = |at: usize| read_u32(info, at).unwrap_or(0);
    let size = number(NAME + 48) as usize;
    if size > MOST_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let valid = number(NAME);
    let hooks = (0..5)
        .filter(|hook| valid & (1 << hook) != 0)
        .map(|hook| number(NAME + 4 + 4 * hook) as usize);
    Ok((size, hooks.collect()))
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

impl Blob {
    fn has_chain(&self, layout: &'static Layout, names: &[String]) -> bool {
        let is_one = |chain: &[u8]| names.iter().any(|name| name.as_bytes() == chain);
        entries(layout, &self.entries).any(|entry| entry.chain().is_some_and(is_one))
    }

    fn holds_text(&self, text: &str) -> bool {
        let wanted = text.as_bytes();
        self.entries
            .windows(wanted.len().max(1))
            .any(|window| window == wanted)
    }
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

    /// What a rule's target is.
    enum To<'a> {
        /// A verdict, or the offset of a chain.
        Verdict(i32),
        /// The head of this chain.
        Head(&'a str),
        /// A target by name, with its data.
        Named(&'a str, u8),
    }

    /// One entry as in `linux/netfilter_ipv4/ip_tables.h`, or `ip6_tables.h`: addresses (`mark` in them), counters (`count` in
    /// them), a match that holds `text`, the target.
    fn entry(v6: bool, mark: u8, count: u8, text: &str, to: &To<'_>) -> Vec<u8> {
        let (matching, header) = if v6 { (136, 168) } else { (84, 112) };
        let mut target = vec![0; 32];
        match to {
            To::Verdict(verdict) => {
                target.extend(verdict.to_ne_bytes());
                target.extend([0; 4]);
            }
            To::Head(name) => {
                target[2..7].copy_from_slice(b"ERROR");
                let mut held = name.as_bytes().to_vec();
                held.resize(32, 0);
                target.extend(held);
            }
            To::Named(name, data) => {
                target[2..2 + name.len()].copy_from_slice(name.as_bytes());
                target.extend([*data; 8]);
            }
        }
        let length = target.len() as u16;
        target[..2].copy_from_slice(&length.to_ne_bytes());
        let mut text = text.as_bytes().to_vec();
        text.resize(text.len().next_multiple_of(8), 0);
        let mut bytes = vec![0; header];
        bytes[0] = mark;
        bytes[matching - 1] = mark;
        let offset = (header + text.len()) as u16;
        bytes[matching + 4..matching + 6].copy_from_slice(&offset.to_ne_bytes());
        bytes[matching + 6..matching + 8].copy_from_slice(&(offset + length).to_ne_bytes());
        bytes[header - 16] = count;
        bytes[header - 1] = count;
        bytes.extend(text);
        bytes.extend(target);
        bytes
    }

    /// A table: a built-in chain with a rule and a jump to ours; ours with a rule; another's with rules.
    struct Table {
        v6: bool,
        built_in: u8,
        count: u8,
        ours: u8,
        text: &'static str,
        others: usize,
        verdict: i32,
    }

    const TABLE: Table = Table {
        v6: false,
        built_in: 1,
        count: 0,
        ours: 2,
        text: "flanneld masq",
        others: 1,
        verdict: -5,
    };

    impl Table {
        fn layout(&self) -> &'static Layout {
            if self.v6 { &V6 } else { &V4 }
        }

        fn blob(&self) -> Blob {
            let entry = |mark, text, to| entry(self.v6, mark, self.count, text, &to);
            let mut other = entry(0, "", To::Head("KUBE-SERVICES"));
            for n in 0..self.others {
                other.extend(entry(n as u8, "somebody", To::Verdict(-1)));
            }
            let first = entry(self.built_in, "", To::Verdict(-1));
            let jump = |to: usize| entry(0, "", To::Verdict(i32::try_from(to).unwrap()));
            let head = entry(0, "", To::Head("FLANNEL-POSTRTG"));
            let own = first.len() + jump(0).len() + other.len() + head.len();
            let mut entries = first;
            entries.extend(jump(own));
            entries.extend(other);
            entries.extend(head);
            entries.extend(entry(self.ours, self.text, To::Verdict(self.verdict)));
            entries.extend(entry(0, "", To::Named("MASQUERADE", self.ours)));
            entries.extend(entry(0, "", To::Head("ERROR")));
            Blob {
                entries,
                hooks: vec![0],
            }
        }

        fn hash(&self) -> u64 {
            hash(self.layout(), &self.blob())
        }
    }

    #[test]
    fn hash_when_a_built_in_chain_or_ours_changes_then_another_and_otherwise_the_same() {
        for v6 in [false, true] {
            let table = || Table { v6, ..TABLE };
            let before = table().hash();
            assert_eq!(table().hash(), before);
            for same in [
                Table { count: 9, ..table() },
                Table { others: 0, ..table() },
                Table { others: 7, ..table() },
            ] {
                assert_eq!(same.hash(), before, "v6 {v6}");
            }
            let changes = [
                Table {
                    built_in: 7,
                    ..table()
                },
                Table { ours: 7, ..table() },
                Table {
                    text: "flanneld mask",
                    ..table()
                },
                Table {
                    verdict: -1,
                    ..table()
                },
            ];
            for changed in changes {
                assert_ne!(changed.hash(), before, "v6 {v6}");
            }
            let mut blob = table().blob();
            blob.hooks = vec![1];
            assert_ne!(hash(table().layout(), &blob), before, "no chain begins there");
        }
    }

    #[test]
    fn entries_when_walked_then_each_with_what_it_is() {
        for v6 in [false, true] {
            let table = Table { v6, ..TABLE };
            let blob = table.blob();
            let seen: Vec<(Option<&str>, Option<i32>)> = entries(table.layout(), &blob.entries)
                .map(|e| {
                    (
                        e.chain().map(|c| std::str::from_utf8(c).unwrap()),
                        e.verdict().filter(|v| *v < 0),
                    )
                })
                .collect();
            let expected = [
                (None, Some(-1)),
                (None, None),
                (Some("KUBE-SERVICES"), None),
                (None, Some(-1)),
                (Some("FLANNEL-POSTRTG"), None),
                (None, Some(-5)),
                (None, None),
                (Some("ERROR"), None),
            ];
            assert_eq!(seen, expected, "v6 {v6}");
            let last = entries(table.layout(), &blob.entries).nth(6).unwrap();
            assert_eq!(last.target_name(), b"MASQUERADE");
            let chain = |name: &str| blob.has_chain(table.layout(), &["X".to_owned(), name.to_owned()]);
            assert!(chain("KUBE-SERVICES") && chain("FLANNEL-POSTRTG"));
            assert!(!chain("FLANNEL-POST") && !chain("MASQUERADE") && !chain(""));
        }
        let blob = TABLE.blob();
        assert!(blob.holds_text("flanneld masq") && blob.holds_text("body"));
        assert!(!blob.holds_text("flannel masq") && !blob.holds_text(""));
    }

    #[test]
    fn info_when_read_then_the_size_and_the_hooks_that_are_valid() {
        let mut info = vec![0; 84];
        let mut set = |at: usize, value: u32| info[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        set(32, 0b1_1010);
        for hook in 0..5 {
            set(36 + 4 * hook, 100 * (hook as u32 + 1));
            set(56 + 4 * hook, 7);
        }
        set(76, 8);
        set(80, 4096);
        assert_eq!(size_and_hooks(&info).unwrap(), (4096, vec![200, 400, 500]));
        info[80..84].copy_from_slice(&(512u32 << 20).to_ne_bytes());
        assert!(size_and_hooks(&info).is_ok());
        info[80..84].copy_from_slice(&((512u32 << 20) + 1).to_ne_bytes());
        assert_eq!(
            size_and_hooks(&info).unwrap_err().kind(),
            io::ErrorKind::FileTooLarge
        );
        let named = named("nat", INFO).unwrap();
        assert_eq!((named.len(), &named[..4]), (84, &b"nat\0"[..]));
        assert!(super::named(&"x".repeat(32), INFO).is_err());
        assert!(super::named(&"x".repeat(31), INFO).is_ok());
    }

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
