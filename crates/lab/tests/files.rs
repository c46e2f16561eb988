//! Every file that the product reads or writes, in every state that a file can be in as a program starts: no hang, no panic, no link
//! followed in writing, a line in the log, and all as it should be once the cause is gone.
//!
//! One host for each file, all at once.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use lab::process::Process;
use lab::rig::{Rig, Wish};
use lab::{Families, Node, inside};
use serde_json::json;

use self::daemon::{FILES, Named};
use self::ways::{WAYS, Way};

#[path = "files/daemon.rs"]
mod daemon;
#[path = "files/ways.rs"]
mod ways;

/// Where the daemons of a lab serve health.
const PORT: u16 = 8081;
/// A daemon that starts answers by then, whatever its files are.
const ANSWER: Duration = Duration::from_secs(8);
/// After the cure all is as it should be by then.
const RECOVERY: Duration = Duration::from_secs(20);
/// A state of affairs is said once, and once more when it is over.
const MOST_LINES: usize = 4;
/// What no file leads to.
const BAIT: &str = "/run/bait";

/// The status code of `/healthz` or `/readyz` and the answer's text.
fn ask(host: &Node, path: &str) -> Option<(u16, String)> {
    let asked = inside::run(&host.network_file(), || {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3))?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    let text = asked.ok()?;
    let code = text.split(' ').nth(1)?.parse().ok()?;
    Some((code, text))
}

/// Waits until something holds; what was seen last where it does not.
fn until(limit: Duration, mut look: impl FnMut() -> Result<(), String>) -> Result<Duration, String> {
    let start = Instant::now();
    loop {
        match look() {
            Ok(()) => return Ok(start.elapsed()),
            Err(last) if start.elapsed() > limit => return Err(last),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn is(host: &Node, path: &str, wanted: u16) -> Result<(), String> {
    match ask(host, path) {
        Some((code, _)) if code == wanted => Ok(()),
        other => Err(format!("{path}: {other:?}")),
    }
}

/// A host's daemon, and one of its files.
struct Subject<'a> {
    host: &'a Node,
    daemon: &'a mut Process,
    arguments: Vec<String>,
    named: Named,
    file: String,
}

impl Subject<'_> {
    fn shell(&self, text: &str) -> Result<(), String> {
        let script = ways::script(text, self.named.folder, &self.file, BAIT);
        self.host.shell(&script).map(drop).map_err(|e| e.to_string())
    }

    fn start(&mut self) {
        let words: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        *self.daemon = self.host.spawn("flanneld", &words).unwrap();
    }

    /// Every way, one after the other; what went wrong with each.
    fn go(&mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        for way in WAYS {
            self.daemon.kill();
            let disk = ways::mount(way.on, self.named.folder);
            if let Some(mount) = &disk {
                self.host.shell(mount).unwrap();
            }
            let result = self.one(way);
            // What hangs is let go first: it could not be killed.
            if result.is_err() {
                let _ = self.shell(way.cured);
            }
            self.daemon.kill();
            if disk.is_some() {
                self.host
                    .shell(&format!("umount -l {}", self.named.folder))
                    .unwrap();
            }
            if let Err(text) = result {
                wrong.push(format!("{} {}: {text}", self.named.name, way.name));
            }
        }
        wrong
    }

    fn one(&mut self, way: Way) -> Result<(), String> {
        self.shell(way.made)?;
        let before = self.daemon.log().len();
        self.start();
        until(ANSWER, || is(self.host, "/healthz", 200))?;
        // With what it needs out of reach it says so, and is ready without the rest.
        let is_missed = self.named.is_needed && way.is_closed;
        let is_hung = way.name == "on a hanging disk";
        if !is_hung {
            let wanted = if is_missed { 503 } else { 200 };
            until(RECOVERY, || {
                is(self.host, "/readyz", wanted)?;
                let (_, text) = ask(self.host, "/readyz?verbose").unwrap_or_default();
                match is_missed && !text.contains("subnet.env") {
                    true => Err(text),
                    false => Ok(()),
                }
            })?;
        }
        is(self.host, "/healthz", 200)?;
        if way.name == "a link" {
            let bait = self
                .host
                .shell(&format!("cat {BAIT}"))
                .map_err(|e| e.to_string())?;
            if bait != "precious\n" {
                return Err(format!("the link was followed: {bait:?}"));
            }
        }
        self.shell(way.cured)?;
        until(RECOVERY, || is(self.host, "/readyz", 200))?;
        if self.named.is_needed {
            until(RECOVERY, || {
                let text = self.host.read(&self.file).unwrap_or_default();
                match text.contains("FLANNEL_SUBNET=") && text.contains("FLANNEL_MTU=") {
                    true => Ok(()),
                    false => Err(text),
                }
            })?;
        }
        if let Some(status) = self.daemon.ended() {
            return Err(format!("it ended: {status}"));
        }
        let log = self.daemon.log();
        let log = log.get(before..).unwrap_or(&log);
        let name = self.file.rsplit('/').next().unwrap_or_default();
        let lines: Vec<&str> = log
            .lines()
            .filter(|line| line.contains(name) && (line.contains("WARN") || line.contains("ERROR")))
            .collect();
        if lines.len() > MOST_LINES || log.contains("panicked") {
            return Err(format!("it was said too often: {lines:#?}"));
        }
        Ok(())
    }
}

#[test]
fn daemon_when_any_of_its_files_is_anything_then_it_serves_says_so_and_recovers_by_itself() {
    let wish = Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(FILES.len());
    let mut rig = Rig::start(&wish).unwrap();
    for number in 1..=FILES.len() {
        until(RECOVERY, || is(rig.lab.host(number), "/readyz", 200)).unwrap();
    }
    // The cache is written in the end.
    let all = "test -s /var/lib/flannel/state.json && test -s /var/lib/flannel/cache";
    until(RECOVERY, || {
        rig.lab.host(5).shell(all).map(drop).map_err(|e| e.to_string())
    })
    .unwrap();
    let arguments = rig.lab.daemon_arguments().unwrap();
    let lab = &rig.lab;
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = FILES
            .into_iter()
            .zip(&mut rig.daemons)
            .enumerate()
            .map(|(at, (named, daemon))| {
                let host = lab.host(at + 1);
                let pattern = format!("ls -d {}/{}", named.folder, named.file);
                let file = host.shell(&pattern).unwrap().trim().to_owned();
                let mut subject = Subject {
                    host,
                    daemon,
                    arguments: arguments.clone(),
                    named,
                    file,
                };
                scope.spawn(move || subject.go())
            })
            .collect();
        let all = threads.into_iter().map(|thread| thread.join().unwrap());
        all.flatten().collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
