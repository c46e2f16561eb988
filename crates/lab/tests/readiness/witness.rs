//! Asking a daemon from outside, all the time: when its word on readiness changed, and how long an answer took.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lab::inside::enter;

pub const PORT: u16 = 8081;
/// Between two questions.
const PERIOD: Duration = Duration::from_millis(10);
/// A daemon that is stopped, or not there, does not answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// One answer to `/readyz?verbose`.
#[derive(Debug, Clone)]
pub struct Answer {
    /// When it was asked.
    pub asked: Instant,
    /// When it had answered.
    pub answered: Instant,
    /// Its status code.
    pub code: u16,
    /// What is missing, one sentence each.
    pub reasons: Vec<String>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Answers that differ from the one before.
    changes: Vec<Answer>,
    latest: Option<Answer>,
    /// The longest time an answer took since it was last asked for.
    slowest: Duration,
}

/// Somebody who asks `/readyz?verbose` and `/healthz` in a host all the time.
pub struct Prober {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    rest: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A request from inside the network namespace the calling thread is in: status code and body.
pub fn request(path: &str) -> std::io::Result<(u16, String)> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let bad = || std::io::Error::new(std::io::ErrorKind::InvalidData, text.clone());
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(bad)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.ok_or_else(bad)?, body.to_owned()))
}

impl Prober {
    pub fn start(netns: PathBuf) -> Prober {
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let (results, end) = (Arc::clone(&seen), Arc::clone(&stop));
        let rest = Arc::<AtomicBool>::default();
        let rests = Arc::clone(&rest);
        let thread = std::thread::spawn(move || {
            enter(&netns).unwrap();
            while !end.load(Ordering::Relaxed) {
                if rests.load(Ordering::Relaxed) {
                    std::thread::sleep(PERIOD);
                    continue;
                }
                let asked = Instant::now();
                let answer = request("/readyz?verbose");
                let answered = Instant::now();
                let alive = request("/healthz");
                let slowest = (answered - asked).max(answered.elapsed());
                if let (Ok((code, body)), Ok((health, _))) = (answer, alive) {
                    let mut seen = results.lock().unwrap();
                    seen.slowest = seen.slowest.max(slowest);
                    let reasons: Vec<String> = body.lines().skip(1).map(str::to_owned).collect();
                    // A daemon that is dead to its supervisor is not ready either, whatever it says.
                    let code = if health == 200 { code } else { health };
                    let answer = Answer {
                        asked,
                        answered,
                        code,
                        reasons,
                    };
                    let is_news = seen
                        .latest
                        .as_ref()
                        .is_none_or(|last| (last.code, &last.reasons) != (answer.code, &answer.reasons));
                    if is_news {
                        seen.changes.push(answer.clone());
                    }
                    seen.latest = Some(answer);
                }
                std::thread::sleep(PERIOD);
            }
        });
        Prober {
            seen,
            stop,
            rest,
            thread: Some(thread),
        }
    }

    /// Does not ask for a while (true), or does again: answering costs, too.
    pub fn rest(&self, rests: bool) {
        self.rest.store(rests, Ordering::Relaxed);
    }

    /// The first answer to a question asked after `since` that is as it should be, or the last one that was not.
    pub fn wait(
        &self,
        since: Instant,
        limit: Duration,
        is_right: impl Fn(&Answer) -> bool,
    ) -> Result<Answer, String> {
        let start = Instant::now();
        loop {
            let latest = {
                let seen = self.seen.lock().unwrap();
                let later = seen.changes.iter().filter(|answer| answer.asked >= since);
                let all = later.chain(seen.latest.iter().filter(|answer| answer.asked >= since));
                if let Some(found) = all.into_iter().find(|answer| is_right(answer)) {
                    return Ok(found.clone());
                }
                seen.latest.clone()
            };
            if start.elapsed() > limit {
                return Err(latest.map_or("no answer".to_owned(), |last| {
                    format!("the last answer: {} {:?}", last.code, last.reasons)
                }));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Answers with another code than this, between two moments.
    pub fn others(&self, code: u16, since: Instant, until: Instant) -> Vec<Answer> {
        let seen = self.seen.lock().unwrap();
        let during = |answer: &&Answer| answer.asked >= since && answer.answered <= until;
        let others = seen.changes.iter().filter(during);
        others.filter(|answer| answer.code != code).cloned().collect()
    }

    /// The longest time an answer took since this was last asked.
    pub fn slowest(&self) -> Duration {
        std::mem::take(&mut self.seen.lock().unwrap().slowest)
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
