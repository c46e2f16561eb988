//! Two hosts, a pod on each, and everything that hears what the first one's daemon says of itself.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use lab::Families;
use lab::command::output;
use lab::inside;
use lab::process::Process;
use lab::rig::{Rig, Wish};
use rustix::process::Signal;
use serde_json::json;

use crate::witness::{Prober, request};

/// Where a program stands that is to be found before the system's.
pub const PROGRAMS: &str = "/run/programs";
const NOTIFY: &str = "/run/notify";

pub struct Bed {
    // First, so that it ends before the host does.
    pub prober: Prober,
    pub rig: Rig,
    manager: UnixDatagram,
    /// The last word to the service manager.
    said: String,
    /// READY=1 since the daemon's last start.
    readies: usize,
    /// A pod of the other host.
    pub target: String,
    /// What of the log was read.
    read: usize,
}

impl Bed {
    pub fn new() -> Bed {
        let wish = Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(2);
        let mut rig = Rig::start(&wish).unwrap();
        rig.lab.add_pods().unwrap();
        let target = rig.lab.state.pods[1].address(4).unwrap().to_string();
        let manager = UnixDatagram::bind(rig.lab.host(1).path(NOTIFY)).unwrap();
        manager.set_nonblocking(true).unwrap();
        let prober = Prober::start(rig.lab.host(1).network_file());
        let mut bed = Bed {
            prober,
            rig,
            manager,
            said: String::new(),
            readies: 0,
            target,
            read: 0,
        };
        bed.shell(&format!(
            "mkdir -p {PROGRAMS}; echo 0 >/proc/sys/net/ipv4/icmp_ratelimit"
        ));
        bed.restart(&[]);
        bed.ready();
        bed
    }

    pub fn host(&self) -> &lab::Node {
        self.rig.lab.host(1)
    }

    /// Ends the first host's daemon.
    pub fn end_daemon(&mut self) {
        self.rig.daemons[0].kill();
    }

    /// Ends the first host's daemon and starts it anew, with a service manager and a folder of programs of its own.
    pub fn restart(&mut self, more: &[&str]) {
        self.end_daemon();
        self.listen();
        self.readies = 0;
        let mut words = self.rig.lab.daemon_arguments().unwrap();
        words.extend(more.iter().map(|word| (*word).to_owned()));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let path = format!(
            "{PROGRAMS}:{}:{}",
            lab::rig::executables().unwrap().display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let environment = [("NOTIFY_SOCKET", NOTIFY), ("PATH", path.as_str())];
        let daemon = self.host().spawn_with("flanneld", &words, &environment).unwrap();
        self.read = daemon.log().len();
        self.rig.daemons[0] = daemon;
    }

    /// Waits until the daemon and its log say that all is well.
    pub fn ready(&mut self) {
        let start = Instant::now();
        if let Err(last) = self
            .prober
            .wait(start, Duration::from_secs(30), |answer| answer.code == 200)
        {
            panic!("not ready: {last}; {}", self.daemon().log());
        }
        self.until("a line of the log", |bed| bed.log().contains("ready: "));
    }

    pub fn daemon(&self) -> &Process {
        &self.rig.daemons[0]
    }

    /// What was logged since the last [`Bed::mark`].
    pub fn log(&self) -> String {
        let log = self.daemon().log();
        log.get(self.read..).unwrap_or_default().to_owned()
    }

    pub fn mark(&mut self) {
        self.read = self.daemon().log().len();
    }

    /// Waits a few seconds at most for something that the reader of this must not depend on: it is looked at afterwards.
    pub fn until(&mut self, what: &str, is_so: impl Fn(&mut Bed) -> bool) {
        let start = Instant::now();
        while !is_so(self) {
            if start.elapsed() > Duration::from_secs(5) {
                crate::table::print(&format!("    ({what} did not come within 5 s)"));
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Does something between two looks of the daemon: it stands still meanwhile. When it goes on is the answer.
    pub fn stroke(&self, script: &str) -> Instant {
        let daemon = self.daemon().record();
        daemon.signal(Signal::STOP);
        let stands = |pid: u32| {
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            threads.flatten().all(|thread| {
                let text = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
                text.rsplit_once(") ")
                    .is_some_and(|(_, rest)| rest.starts_with('T'))
            })
        };
        while !stands(daemon.pid) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let done = self.host().shell(script);
        let now = Instant::now();
        daemon.signal(Signal::CONT);
        done.unwrap();
        now
    }

    /// Runs a line in the first host; when it began is the answer.
    pub fn shell(&self, script: &str) -> Instant {
        let now = Instant::now();
        self.host().shell(script).unwrap();
        now
    }

    /// `flannelctl status`: what it prints, and its exit status.
    pub fn status(&self, socket: &str) -> (String, i32) {
        let mut command = self.host().command(&["flannelctl", "status", "--socket", socket]);
        let (success, stdout, stderr, status) = output(&mut command, "").unwrap();
        let code = if success {
            0
        } else {
            status
                .rsplit(' ')
                .next()
                .and_then(|word| word.parse().ok())
                .unwrap_or(-1)
        };
        (format!("{stdout}{stderr}"), code)
    }

    /// A line of `/metrics` without its value's name: what stands after this name; 0 where there is none.
    pub fn metric(&self, name: &str) -> u64 {
        let page = inside::run(&self.host().network_file(), || request("/metrics"));
        let (_, page) = page.unwrap();
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse::<f64>().ok())
            .map_or(0, |value| value as u64)
    }

    /// Takes in what the service manager was told; the last `STATUS=`.
    pub fn listen(&mut self) -> String {
        let mut buffer = [0; 8192];
        while let Ok(length) = self.manager.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            for line in text.lines() {
                self.readies += usize::from(line == "READY=1");
                if let Some(status) = line.strip_prefix("STATUS=") {
                    self.said = status.to_owned();
                }
            }
        }
        self.said.clone()
    }

    /// How often READY=1 was said since the daemon's last start.
    pub fn readies(&mut self) -> usize {
        self.listen();
        self.readies
    }

    /// A packet to the peer's pod: what ping says of it, whether it was answered, and after how long it came back.
    pub fn ping(&self) -> (String, bool, Duration) {
        let pod = &self.rig.lab.state.pods[0];
        let words = ["ping", "-n", "-c", "1", "-W", "2", &self.target];
        let start = Instant::now();
        let (answered, stdout, stderr, _) =
            output(&mut self.rig.lab.pod_end(pod).command(&words), "").unwrap();
        let said = format!("{stdout}{stderr}");
        let word = said
            .lines()
            .find(|line| line.contains("nreachable") || line.contains("bytes from"))
            .unwrap_or("no answer");
        (word.to_owned(), answered, start.elapsed())
    }

    /// The other host's subnet.
    pub fn peer(&self) -> String {
        self.rig.subnet(2, 4).unwrap().to_string()
    }
}
