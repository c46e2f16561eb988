//! Looking at a daemon from outside, all the time: its memory, and how long `/healthz` takes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lab::inside::enter;
use lab::process::stat;

const PORT: u16 = 8081;
const PERIOD: Duration = Duration::from_millis(20);
/// KiB of a page.
const PAGE: u64 = 4;

/// What was seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Found {
    /// Resident memory in quiet, KiB.
    pub quiet: u64,
    /// At most, KiB.
    pub memory: u64,
    /// The longest that an answer took.
    pub slowest: Duration,
    /// Answers other than 200.
    pub refusals: usize,
}

/// Who looks.
pub struct Watcher {
    pid: Arc<AtomicU32>,
    /// Since the last row, and altogether.
    found: Arc<Mutex<[Found; 2]>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Watcher {
    pub fn start(netns: PathBuf, pid: u32) -> Watcher {
        let pid = Arc::new(AtomicU32::new(pid));
        let (found, stop) = (Arc::<Mutex<[Found; 2]>>::default(), Arc::<AtomicBool>::default());
        let (of, results, end) = (Arc::clone(&pid), Arc::clone(&found), Arc::clone(&stop));
        let memory = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let resident = stat(of.load(Ordering::Relaxed)).map_or(0, |stat| stat.resident * PAGE);
                for found in results.lock().unwrap().iter_mut() {
                    found.memory = found.memory.max(resident);
                }
                std::thread::sleep(PERIOD / 4);
            }
        });
        let (results, end) = (Arc::clone(&found), Arc::clone(&stop));
        let answers = std::thread::spawn(move || {
            enter(&netns).unwrap();
            while !end.load(Ordering::Relaxed) {
                let asked = Instant::now();
                // A daemon that is not there, because it starts, does not answer.
                if let Ok(is_well) = ask() {
                    for found in results.lock().unwrap().iter_mut() {
                        found.slowest = found.slowest.max(asked.elapsed());
                        found.refusals += usize::from(!is_well);
                    }
                }
                std::thread::sleep(PERIOD);
            }
        });
        Watcher {
            pid,
            found,
            stop,
            threads: vec![memory, answers],
        }
    }

    /// Looks at another process from now on.
    pub fn follow(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// What memory is now is what it is in quiet; what was before does not count.
    pub fn note_quiet(&self) {
        let resident = stat(self.pid.load(Ordering::Relaxed)).unwrap().resident * PAGE;
        let fresh = Found {
            quiet: resident,
            memory: resident,
            ..Found::default()
        };
        *self.found.lock().unwrap() = [fresh; 2];
    }

    /// What was seen since this was last asked.
    pub fn since_last(&self) -> Found {
        std::mem::take(&mut self.found.lock().unwrap()[0])
    }

    /// What was seen since [`Watcher::note_quiet`].
    pub fn whole(&self) -> Found {
        self.found.lock().unwrap()[1]
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Whether the answer was 200.
fn ask() -> std::io::Result<bool> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let patience = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    if text.is_empty() {
        // Killed while it read the question.
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(text.starts_with("HTTP/1.1 200"))
}

/// Lines of a log in the minute that has most; each begins with its time, as `2026-01-31T23:59:59.999Z`.
pub fn most_in_a_minute(log: &str) -> usize {
    let seconds = |line: &str| -> Option<u64> {
        let number = |range: std::ops::Range<usize>| line.get(range)?.parse::<u64>().ok();
        let days = number(8..10)?;
        Some(((days * 24 + number(11..13)?) * 60 + number(14..16)?) * 60 + number(17..19)?)
    };
    let times: Vec<u64> = log.lines().filter_map(seconds).collect();
    let within = |start: u64| {
        times
            .iter()
            .filter(|time| (start..start + 60).contains(*time))
            .count()
    };
    times.iter().map(|start| within(*start)).max().unwrap_or(0)
}
