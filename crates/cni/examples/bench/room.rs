//! Where plugins are called: namespaces, files, one call at a time, and what it took.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kernel::netns::Netns;

use crate::Outcome;

/// Namespaces and files of a run; all gone when dropped.
pub struct Room {
    prefix: String,
    /// Executables, and all that is no state of a plugin.
    folder: PathBuf,
    /// What plugins write.
    state: PathBuf,
    pods: usize,
    home: Netns,
}

impl Room {
    /// Namespaces for a host and its pods; the caller is in the host's from now on, until the room is dropped.
    pub fn new(name: &str, pods: usize, state: &Path) -> Outcome<Room> {
        let prefix = format!("cnib{}{name}", std::process::id());
        let room = Room {
            folder: std::env::temp_dir().join(&prefix),
            state: state.join(format!("{prefix}-state")),
            prefix,
            pods,
            home: Netns::current()?,
        };
        std::fs::create_dir_all(room.folder.join("bin"))?;
        std::fs::create_dir_all(&room.state)?;
        for name in std::iter::once(room.host()).chain((0..pods).map(|i| room.pod(i))) {
            ip(&["netns", "add", &name])?;
        }
        ip(&["-n", &room.host(), "link", "set", "lo", "up"])?;
        Netns::open(format!("/run/netns/{}", room.host()))?.enter()?;
        Ok(room)
    }
    pub fn host(&self) -> String {
        format!("{}-h", self.prefix)
    }
    pub fn pod(&self, i: usize) -> String {
        format!("{}-c{i}", self.prefix)
    }
    pub fn file(&self, name: &str) -> PathBuf {
        self.state.join(name)
    }
    /// A file that can be executed.
    pub fn executable(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }
    pub fn path(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }
    /// Bridge and reservations as on a new node.
    pub fn clear(&self) -> Outcome<()> {
        let _ = Command::new("ip")
            .args(["link", "del", "cni0"])
            .stderr(Stdio::null())
            .status();
        for name in ["networks", "flannel"] {
            let _ = std::fs::remove_dir_all(self.file(name));
        }
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = self.home.enter();
        for name in std::iter::once(self.host()).chain((0..self.pods).map(|i| self.pod(i))) {
            let _ = ip(&["netns", "del", &name]);
        }
        for folder in [&self.folder, &self.state] {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

pub fn ip(args: &[&str]) -> Outcome<()> {
    let output = Command::new("ip").args(args).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "ip {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    )
    .into())
}

/// A plugin and its configuration.
#[derive(Clone)]
pub struct Subject<'a> {
    /// Where.
    pub room: &'a Room,
    /// The plugin's file.
    pub program: PathBuf,
    /// The configuration's.
    pub config: PathBuf,
    /// `CNI_PATH`.
    pub plugins: PathBuf,
}

impl Subject<'_> {
    pub fn spawn(&self, verb: &str, pod: usize, container: &str) -> Outcome<Child> {
        let netns = format!("/run/netns/{}", self.room.pod(pod));
        let log = self.room.file(&format!("out-{pod}"));
        Ok(Command::new(&self.program)
            .env_clear()
            .envs([
                ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
                ("CNI_COMMAND", verb),
                ("CNI_CONTAINERID", container),
                ("CNI_NETNS", &netns),
                ("CNI_IFNAME", "eth0"),
                ("CNI_PATH", &self.plugins.display().to_string()),
            ])
            .stdin(File::open(&self.config)?)
            .stdout(File::create(&log)?)
            .stderr(Stdio::null())
            .spawn()?)
    }

    pub fn finish(&self, verb: &str, pod: usize, mut child: Child) -> Outcome<()> {
        if child.wait()?.success() {
            return Ok(());
        }
        let said = std::fs::read_to_string(self.room.file(&format!("out-{pod}")))?;
        Err(format!("{} {verb}: {said}", self.program.display()).into())
    }

    pub fn once(&self, verb: &str, pod: usize, container: &str) -> Outcome<Duration> {
        let started = Instant::now();
        let child = self.spawn(verb, pod, container)?;
        self.finish(verb, pod, child)?;
        Ok(started.elapsed())
    }
}

pub fn container(i: usize) -> String {
    format!("{i:064x}")
}

/// Latencies in milliseconds, and CPU per operation.
#[derive(Default)]
pub struct Series(pub Vec<f64>);

impl Series {
    pub fn push(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e3);
    }
    pub fn at(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let index = ((sorted.len().saturating_sub(1)) as f64 * share).round() as usize;
        sorted.get(index).copied().unwrap_or(f64::NAN)
    }
}

/// CPU time of ended children so far, in milliseconds.
pub fn children_cpu() -> Outcome<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat
        .rsplit_once(") ")
        .map(|(_, rest)| rest.split(' ').collect())
        .unwrap_or_default();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    let hertz = rustix::param::clock_ticks_per_second() as f64;
    Ok((ticks(13) + ticks(14)) * 1e3 / hertz)
}

/// The system calls of one operation and its children, seen by strace; lines of process, call.
pub fn trace(subject: &Subject<'_>, verb: &str, pod: usize, id: &str) -> Outcome<String> {
    let log = subject.room.file("trace");
    let netns = format!("/run/netns/{}", subject.room.pod(pod));
    let status = Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .arg(&log)
        .arg(&subject.program)
        .env_clear()
        .envs([
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", &subject.plugins.display().to_string()),
        ])
        .stdin(File::open(&subject.config)?)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if !status.success() {
        return Err(format!("strace of {} {verb} failed", subject.program.display()).into());
    }
    Ok(std::fs::read_to_string(&log)?)
}

pub fn count_of(trace: &str, wanted: &[&str]) -> f64 {
    let call = |line: &str| line.split_whitespace().nth(1).unwrap_or_default().to_owned();
    // One that fails is a search of the path, not a program.
    let hit =
        |line: &&str| !line.ends_with(')') && wanted.iter().any(|w| call(line).starts_with(&format!("{w}(")));
    trace.lines().filter(hit).count() as f64
}
