//! A child process that is fed, listened to, and ended when it takes too long.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// Attempts to execute a file somebody is just writing, one second apart.
const BUSY_ATTEMPTS: u32 = 6;
/// Most bytes kept of stdout and stderr each; the rest is read and dropped.
const OUTPUT_LIMIT: usize = 64 << 20;

/// What a process left.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// All it printed.
    pub stdout: Vec<u8>,
    /// All it complained.
    pub stderr: Vec<u8>,
}

impl Output {
    /// How it ended, in Go's words: `exit status 1`.
    pub fn ending(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("signal: {signal}"),
            (None, None) => "ended in an unknown way".to_owned(),
        }
    }
}

/// Runs a command with `stdin` as its input. At the limit it is killed with all it has started.
pub fn run(command: &mut Command, stdin: &[u8], limit: Duration) -> io::Result<Output> {
    let mut attempt = 1;
    let mut child = loop {
        let spawned = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that what it started can be ended with it.
            .process_group(0)
            .spawn();
        match spawned {
            Ok(child) => break child,
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && attempt < BUSY_ATTEMPTS => {
                attempt += 1;
                std::thread::sleep(Duration::from_secs(1));
            }
            Err(e) => return Err(e),
        }
    };
    let talked = converse(&mut child, stdin, Instant::now() + limit);
    if !matches!(talked, Ok((_, _, true)))
        && let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
    {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let status = child.wait()?;
    match talked? {
        (stdout, stderr, true) => Ok(Output {
            status,
            stdout,
            stderr,
        }),
        _ => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("gave no answer within {} s and was killed", limit.as_secs()),
        )),
    }
}

/// Feeds stdin and collects both outputs until the process has ended (true) or the deadline has passed (false).
fn converse(child: &mut Child, stdin: &[u8], deadline: Instant) -> io::Result<(Vec<u8>, Vec<u8>, bool)> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let ended = pidfd_open(pid.ok_or(io::ErrorKind::NotFound)?, PidfdFlags::empty())?;
    let (mut input, mut unsent) = (child.stdin.take(), stdin);
    let mut output = [
        Capture::new(child.stdout.take())?,
        Capture::new(child.stderr.take())?,
    ];
    if let Some(input) = &input {
        set_nonblocking(input.as_fd())?;
    }
    loop {
        let mut waiting = vec![PollFd::new(&ended, PollFlags::IN)];
        if let Some(input) = &input {
            waiting.push(PollFd::new(input, PollFlags::OUT));
        }
        for capture in &output {
            if let Some(pipe) = &capture.pipe {
                waiting.push(PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN));
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or(Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        });
        match poll(&mut waiting, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
            Ok(_) => {}
        }
        let over = waiting.first().is_some_and(|fd| !fd.revents().is_empty());
        drop(waiting);
        if let Some(pipe) = &mut input {
            match pipe.write(unsent) {
                Ok(written) => unsent = unsent.get(written..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // It need not read all of its configuration.
                Err(_) => unsent = &[],
            }
            if unsent.is_empty() {
                input = None;
            }
        }
        for capture in &mut output {
            capture.read()?;
        }
        if over || left.is_zero() {
            let [stdout, stderr] = output;
            return Ok((stdout.bytes, stderr.bytes, over));
        }
    }
}

/// One output pipe and what came out of it.
struct Capture {
    pipe: Option<Box<dyn Pipe>>,
    bytes: Vec<u8>,
}

trait Pipe: Read + AsFd {}
impl<T: Read + AsFd> Pipe for T {}

impl Capture {
    fn new(pipe: Option<impl Pipe + 'static>) -> io::Result<Capture> {
        if let Some(pipe) = &pipe {
            set_nonblocking(pipe.as_fd())?;
        }
        Ok(Capture {
            pipe: pipe.map(|p| Box::new(p) as Box<dyn Pipe>),
            bytes: Vec::new(),
        })
    }

    /// Reads what is there; drops the pipe at its end.
    fn read(&mut self) -> io::Result<()> {
        let mut chunk = [0; 8192];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut chunk) {
                Ok(0) => self.pipe = None,
                Ok(length) => {
                    let room = OUTPUT_LIMIT.saturating_sub(self.bytes.len());
                    self.bytes
                        .extend_from_slice(chunk.get(..length.min(room)).unwrap_or_default());
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}
