//! The registry as it was last known, on disk: what a node that starts serves from while its registry does not answer.
//!
//! The file is written whole beside its place and moved there. Its first line says what it is and holds the checksum of the
//! second; the second is the [`Head`], in JSON, and holds the checksum of the rest: one line per lease, with key, create
//! revision and value. So a file that was torn, or is somebody else's, is told from ours at every length, and the head can be
//! had without reading the leases.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fabric::lease::{Lease, Snapshot, snapshot_from};
use kernel::file::{self, WriteError};
use registry::etcd::{Address, Keys};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::flags::{EtcdOptions, RegistryOptions};

/// How the file begins. Another number is another format, which is not read.
const MAGIC: &str = "flannel-cache 1 ";
/// Only the daemon reads it.
const MODE: u32 = 0o600;
/// A file larger than this is not one of ours: 10,000 leases make about 1.4 MiB.
const LARGEST: u64 = 64 << 20;
/// A head larger than this is not one of ours: most of it is the network config.
const LARGEST_HEAD: u64 = 4 << 20;
/// A wall clock that is set back by less than this was corrected; by more, it does not know what time it is.
const CORRECTION: Duration = Duration::from_secs(60);

/// What the registry was called: under another name it is another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Key of the leases' folder.
    prefix: String,
    /// Addresses of its members, without schemes: TLS makes no other registry of them.
    endpoints: Vec<String>,
}

impl Source {
    /// The registry these options lead to.
    pub fn of(options: &RegistryOptions) -> Source {
        match options {
            RegistryOptions::Etcd(etcd) => Source::of_etcd(etcd),
            // COMPAT: no key of etcd's ends like this.
            RegistryOptions::Kube(kube) => Source {
                prefix: format!("kubernetes:{}", kube.prefix),
                endpoints: vec!["kubernetes".to_owned()],
            },
        }
    }

    fn of_etcd(etcd: &EtcdOptions) -> Source {
        let address = |endpoint: &registry::etcd::Endpoint| match &endpoint.address {
            Address::Tcp { host, port } => format!("{}:{port}", host.to_ascii_lowercase()),
            Address::Unix(path) => format!("unix:{}", path.display()),
        };
        Source {
            prefix: Keys::new(&etcd.prefix).subnets().to_owned(),
            endpoints: etcd.endpoints.iter().map(address).collect(),
        }
    }

    /// A member in common makes it the same cluster: members come and go.
    fn is(&self, other: &Source) -> Result<(), Useless> {
        if self.prefix != other.prefix {
            return Err(Useless::Prefix {
                was: other.prefix.clone(),
                is: self.prefix.clone(),
            });
        }
        if !self
            .endpoints
            .iter()
            .any(|member| other.endpoints.contains(member))
        {
            return Err(Useless::Endpoints(other.endpoints.join(",")));
        }
        Ok(())
    }
}

/// A moment by every clock there is. The wall clock may be set, or wrong after a boot; the time since boot runs on through
/// suspend and is nobody's to set, but says nothing about another boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Seconds since 1970.
    pub wall: u64,
    /// Which boot.
    pub boot: String,
    /// Seconds since then.
    pub uptime: u64,
}

impl Moment {
    /// Now.
    pub fn now() -> Moment {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Moment {
            wall: wall.as_secs(),
            boot: boot.trim().to_owned(),
            uptime: u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or(0),
        }
    }

    /// Seconds since an earlier moment of the same boot.
    pub fn since_in_this_boot(&self, earlier: &Moment) -> Option<u64> {
        let same = !self.boot.is_empty() && self.boot == earlier.boot;
        self.uptime.checked_sub(earlier.uptime).filter(|_| same)
    }

    /// Seconds since an earlier moment, and whether it may be more.
    ///
    /// The time since boot is nobody's to set and decides wherever it can. Of another boot the wall clock tells, unless it knows less
    /// than it knew then: a host without a clock of its own starts in the past. Then all that is known is that this boot is younger.
    fn since(&self, earlier: &Moment) -> (u64, bool) {
        if let Some(elapsed) = self.since_in_this_boot(earlier) {
            return (elapsed, false);
        }
        let this_boot = if self.boot.is_empty() { 0 } else { self.uptime };
        let is_behind = self.wall.saturating_add(CORRECTION.as_secs()) < earlier.wall;
        (self.wall.saturating_sub(earlier.wall).max(this_boot), is_behind)
    }
}

/// What cannot be told of a cache that is served from all the same: no network at all would be the greater evil.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// What the clock says, seconds since 1970.
    pub now: u64,
    /// What it said when the cache was saved, likewise.
    pub saved: u64,
}

impl std::fmt::Display for Doubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the clock says {}, and the cache was saved at {}: whether the own lease in it has expired since cannot be told",
            utc(self.now),
            utc(self.saved)
        )
    }
}

/// The own lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    /// Key text.
    pub subnet: String,
    /// The value's JSON.
    pub value: String,
    /// Seconds it had left at [`Head::saved`]; `None` for a reservation.
    pub left: Option<u64>,
}

/// All but the leases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Where it was listed.
    pub source: Source,
    /// What was spoken with it: etcd's APIs have a store each, with revisions of its own. Not said by those who knew of v3 alone.
    #[serde(default)]
    pub spoken: Option<String>,
    /// When this was the registry's last word.
    pub saved: Moment,
    /// The registry's revision.
    pub revision: i64,
    /// The network config's JSON.
    pub config: String,
    /// The own lease.
    pub own: Own,
    /// Checksum of the lines of leases.
    leases: String,
}

/// Why what was known is not to be used now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Useless {
    /// It is of another network.
    #[error("it is of {was}, and this is {is}")]
    Prefix {
        /// Its folder of leases.
        was: String,
        /// Ours.
        is: String,
    },
    /// It is of another registry.
    #[error("it is of the registry at {0}")]
    Endpoints(String),
    /// The own subnet may be another node's by now.
    #[error("the own lease {subnet} in it has expired")]
    Expired {
        /// Key text.
        subnet: String,
    },
}

/// A moment in words.
pub fn utc(seconds: u64) -> String {
    crate::logging::utc(UNIX_EPOCH + Duration::from_secs(seconds))
}

impl Head {
    /// The head of these [`lines`].
    pub fn new(
        source: Source,
        spoken: Option<&str>,
        saved: Moment,
        revision: i64,
        config: String,
        own: Own,
        lines: &[u8],
    ) -> Head {
        Head {
            source,
            spoken: spoken.map(str::to_owned),
            saved,
            revision,
            config,
            own,
            leases: checksum(lines),
        }
    }

    /// Whether its revision is one of what is spoken now.
    pub fn was_by(&self, spoken: Option<&str>) -> bool {
        // COMPAT: who does not say what it spoke with etcd, spoke v3.
        spoken.is_none_or(|spoken| self.spoken.as_deref().unwrap_or(registry::etcd3::SPOKEN) == spoken)
    }

    /// Whether it says the same, whenever it was said: the end of the own lease is a few seconds off when it is not the one it was.
    pub fn says_what(&self, other: &Head) -> bool {
        let end = |head: &Head| head.own.left.map(|left| head.saved.uptime + left);
        let ends = match (end(self), end(other)) {
            (Some(a), Some(b)) => a.abs_diff(b) <= CORRECTION.as_secs(),
            (a, b) => a == b,
        };
        ends && self.leases == other.leases
            && self.spoken == other.spoken
            && self.config == other.config
            && self.own.subnet == other.own.subnet
            && self.own.value == other.own.value
    }

    /// Whether it may be served from: it is of this registry, and the own lease is still ours as far as any clock can tell.
    ///
    /// # Errors
    /// Why it may not.
    pub fn judge(&self, source: &Source, now: &Moment) -> Result<Option<Doubt>, Useless> {
        source.is(&self.source)?;
        let (since, may_be_more) = now.since(&self.saved);
        match self.own.left {
            Some(left) if since >= left => Err(Useless::Expired {
                subnet: self.own.subnet.clone(),
            }),
            Some(_) if may_be_more => Ok(Some(Doubt {
                now: now.wall,
                saved: self.saved.wall,
            })),
            _ => Ok(None),
        }
    }

    /// Seconds the own lease has left, as far as the clocks can tell; `None` for a reservation.
    pub fn left(&self, now: &Moment) -> Option<u64> {
        let (since, _) = now.since(&self.saved);
        self.own.left.map(|left| left.saturating_sub(since))
    }

    /// Whether it was listed where this leads to.
    pub fn is_of(&self, source: &Source) -> bool {
        source.is(&self.source).is_ok()
    }
}

/// The lines of leases.
pub fn lines<'a>(leases: impl Iterator<Item = &'a Lease>) -> Vec<u8> {
    let mut text = Vec::new();
    for lease in leases {
        // Writing to memory cannot fail. Values are compact JSON, in which there is no bare newline.
        let _ = writeln!(
            text,
            "{} {} {}",
            lease.subnet,
            lease.created,
            lease.attributes.to_json()
        );
    }
    text
}

/// The checksum of a text.
pub fn checksum(text: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(text)
        .iter()
        .fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

/// The file's content.
fn render(head: &Head, lines: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
    let head = serde_json::to_vec(head)?;
    let mut text = Vec::with_capacity(MAGIC.len() + 66 + head.len() + lines.len());
    text.extend_from_slice(MAGIC.as_bytes());
    text.extend_from_slice(checksum(&head).as_bytes());
    text.push(b'\n');
    text.extend_from_slice(&head);
    text.push(b'\n');
    text.extend_from_slice(lines);
    Ok(text)
}

/// Reads the first two lines.
fn read_head(from: &mut impl BufRead) -> Result<Head, String> {
    let torn = |error: io::Error| error.to_string();
    let mut first = Vec::new();
    let longest = u64::try_from(MAGIC.len()).unwrap_or(0) + 65;
    from.by_ref()
        .take(longest)
        .read_until(b'\n', &mut first)
        .map_err(torn)?;
    let sum = first
        .strip_prefix(MAGIC.as_bytes())
        .and_then(|rest| rest.strip_suffix(b"\n"))
        .ok_or_else(|| format!("it does not begin with {MAGIC:?} and a checksum"))?;
    let mut second = Vec::new();
    from.by_ref()
        .take(LARGEST_HEAD)
        .read_until(b'\n', &mut second)
        .map_err(torn)?;
    let head = second.strip_suffix(b"\n").unwrap_or_default();
    if checksum(head).as_bytes() != sum {
        return Err("its head is not what was written".to_owned());
    }
    serde_json::from_slice(head).map_err(|error| error.to_string())
}

/// Reads all of it.
pub fn parse(from: &mut impl BufRead) -> Result<(Head, Snapshot), String> {
    let head = read_head(from)?;
    let mut lines = Vec::new();
    from.by_ref()
        .take(LARGEST)
        .read_to_end(&mut lines)
        .map_err(|error| error.to_string())?;
    if checksum(&lines) != head.leases {
        return Err("its leases are not what was written".to_owned());
    }
    let entries = lines.split(|byte| *byte == b'\n').filter_map(|line| {
        let line = std::str::from_utf8(line).ok()?;
        let (key, rest) = line.split_once(' ')?;
        let (created, value) = rest.split_once(' ')?;
        Some((key, value, created.parse().ok()?))
    });
    let snapshot = snapshot_from(head.revision, entries);
    Ok((head, snapshot))
}

/// Why it was not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// It cannot be said in JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// It would not be read again.
    #[error("the leases take {0} bytes: expected at most {LARGEST}")]
    TooLarge(usize),
}

/// The place of the cache.
#[derive(Debug, Clone)]
pub struct Cache {
    file: PathBuf,
}

impl Cache {
    /// In this file.
    pub fn at(file: PathBuf) -> Cache {
        Cache { file }
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    fn open(&self) -> Result<Option<BufReader<File>>, String> {
        let file = file::open(&self.file).map_err(|error| error.to_string())?;
        Ok(file.map(|file| BufReader::with_capacity(64 << 10, file)))
    }

    /// All but the leases; `None` where there is no cache. The error says why what is there is none.
    pub fn head(&self) -> Result<Option<Head>, String> {
        let Some(mut file) = self.open()? else {
            return Ok(None);
        };
        read_head(&mut file).map(Some)
    }

    /// All of it; `None` where there is none.
    pub fn load(&self) -> Result<Option<(Head, Snapshot)>, String> {
        let Some(mut file) = self.open()? else {
            return Ok(None);
        };
        parse(&mut file).map(Some)
    }

    /// Writes it, whole or not at all.
    pub fn save(&self, head: &Head, lines: &[u8]) -> Result<(), SaveError> {
        if u64::try_from(lines.len()).is_ok_and(|bytes| bytes > LARGEST) {
            return Err(SaveError::TooLarge(lines.len()));
        }
        Ok(file::replace(&self.file, &render(head, lines)?, MODE)?)
    }

    /// Removes it: what it says is ours is not ours any more.
    pub fn forget(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(wall: u64, boot: &str, uptime: u64) -> Moment {
        Moment {
            wall,
            boot: boot.to_owned(),
            uptime,
        }
    }

    #[test]
    fn time_when_it_has_passed_then_by_the_boot_where_it_is_the_same_and_else_by_the_wall() {
        let earlier = moment(1000, "a", 100);
        let same = moment(5, "a", 130);
        assert_eq!(
            (same.since_in_this_boot(&earlier), same.since(&earlier)),
            (Some(30), (30, false))
        );
        assert_eq!(
            moment(2000, "a", 99).since_in_this_boot(&earlier),
            None,
            "it cannot be"
        );
        assert_eq!(moment(2000, "a", 100).since_in_this_boot(&earlier), Some(0));
        assert_eq!(moment(2000, "b", 7).since(&earlier), (1000, false));
        assert_eq!(
            moment(1005, "b", 70).since(&earlier),
            (70, false),
            "this boot alone is longer"
        );
        assert_eq!(moment(940, "b", 7).since(&earlier), (7, false), "a correction");
        assert_eq!(moment(939, "b", 7).since(&earlier), (7, true));
        let nameless = moment(1005, "", 70);
        assert_eq!(nameless.since_in_this_boot(&moment(1000, "", 1)), None);
        assert_eq!(nameless.since(&moment(1000, "", 1)), (5, false));
        let now = Moment::now();
        assert!(!now.boot.is_empty() && now.boot == now.boot.trim() && now.wall > 1_600_000_000);
        assert!(
            Moment::now()
                .since_in_this_boot(&now)
                .is_some_and(|since| since < 60)
        );
    }

    fn head(left: Option<u64>, uptime: u64, lines: &[u8]) -> Head {
        let source = Source {
            prefix: "/n/subnets/".to_owned(),
            endpoints: vec!["a:1".to_owned(), "b:2".to_owned()],
        };
        let own = Own {
            subnet: "10.5.1.0-24".to_owned(),
            value: "{}".to_owned(),
            left,
        };
        Head::new(
            source,
            None,
            moment(1000, "a", uptime),
            9,
            "{}".to_owned(),
            own,
            lines,
        )
    }

    #[test]
    fn head_when_it_says_the_same_then_whenever_that_was_and_within_a_correction() {
        let first = head(Some(1000), 100, b"x");
        for (left, uptime, is_same) in [
            (Some(1000), 100, true),
            (Some(900), 200, true),
            (Some(1060), 100, true),
            (Some(940), 100, true),
            (Some(1061), 100, false),
            (None, 100, false),
        ] {
            assert_eq!(
                head(left, uptime, b"x").says_what(&first),
                is_same,
                "{left:?} {uptime}"
            );
        }
        assert!(head(None, 100, b"x").says_what(&head(None, 900, b"x")));
        let differ: [fn(&mut Head); 4] = [
            |head| head.config.push(' '),
            |head| head.own.subnet.push(' '),
            |head| head.own.value.push(' '),
            |head| head.leases.push(' '),
        ];
        for differ in differ {
            let mut other = first.clone();
            differ(&mut other);
            assert!(!other.says_what(&first));
        }
        assert!(!head(Some(1000), 100, b"y").says_what(&first));
    }

    #[test]
    fn lease_when_time_has_passed_then_so_much_less_is_left_and_at_its_end_it_is_useless() {
        let head = head(Some(50), 100, b"");
        let at = |uptime| moment(0, "a", uptime);
        assert_eq!(
            (head.left(&at(100)), head.left(&at(149)), head.left(&at(200))),
            (Some(50), Some(1), Some(0))
        );
        let source = head.source.clone();
        assert_eq!(head.judge(&source, &at(149)), Ok(None));
        assert!(matches!(
            head.judge(&source, &at(150)),
            Err(Useless::Expired { .. })
        ));
        let doubt = head.judge(&source, &moment(0, "b", 7)).unwrap().unwrap();
        assert_eq!((doubt.now, doubt.saved), (0, 1000));
        let text = doubt.to_string();
        assert!(
            text.contains("1970-01-01T00:00:00Z") && text.contains("1970-01-01T00:16:40Z"),
            "{text}"
        );
        let mut other = source.clone();
        other.endpoints = vec!["c:3".to_owned(), "b:2".to_owned()];
        assert!(head.is_of(&other), "a member in common");
        other.endpoints.pop();
        assert!(!head.is_of(&other));
        assert_eq!(
            head.judge(&other, &at(100)),
            Err(Useless::Endpoints("a:1,b:2".to_owned()))
        );
        other.prefix.push('x');
        assert!(
            matches!(head.judge(&other, &at(100)), Err(Useless::Prefix { was, is }) if was == source.prefix && is == other.prefix)
        );
    }

    #[test]
    fn cache_when_saved_then_had_again_and_when_forgotten_or_too_large_then_not() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("cache"));
        assert_eq!((cache.head(), cache.load()), (Ok(None), Ok(None)));
        let head = head(None, 1, b"");
        cache.save(&head, b"").unwrap();
        assert_eq!(cache.head(), Ok(Some(head.clone())));
        assert_eq!(cache.load().unwrap().map(|(head, _)| head), Some(head.clone()));
        assert_eq!(cache.file(), folder.path().join("cache"));
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(cache.file()).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        cache.forget().unwrap();
        cache.forget().unwrap();
        assert_eq!(cache.head(), Ok(None));
        assert!(Cache::at(folder.path().to_owned()).forget().is_err());
        let large = vec![b'x'; usize::try_from(LARGEST).unwrap() + 1];
        assert!(matches!(cache.save(&head, &large), Err(SaveError::TooLarge(_))));
        assert!(!cache.file().exists());
    }
}
