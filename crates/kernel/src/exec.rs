//! Running a program: fed, listened to, and ended with all it has started when it takes longer than allowed.
//!
//! One thread does it all: the end of the program, its input and its two outputs are waited for together.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid};

mod program;

use program::Child;
pub use program::Program;

/// More output than this is no listing any more; the rest is thrown away.
const MOST_OUTPUT: usize = 64 << 20;
/// What a program complains of is read by people.
const MOST_COMPLAINT: usize = 64 << 10;
/// What is read of a pipe before the others have their turn.
const TURN: usize = 1 << 20;
/// Attempts to execute a file somebody is just writing, [`BUSY_PAUSE`] apart.
const BUSY_ATTEMPTS: u32 = 6;
const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// How long a killed program may take to end. One that hangs in the kernel takes longer, and nobody waits for it.
const DYING: Duration = Duration::from_secs(2);
/// How often a program is looked at where the kernel has no descriptor that tells of its end.
const LOOK: Duration = Duration::from_millis(5);
/// Where the system's programs are, also for who was started with a `PATH` of another kind.
const SYSTEM_FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];
const PATH: &str = "PATH";

/// What a program that was run left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, the first 64 MiB of it.
    pub stdout: Vec<u8>,
    /// Its standard error, the first 64 KiB of it.
    pub stderr: Vec<u8>,
    /// Its standard output was longer than what is here.
    pub is_cut: bool,
}

impl Output {
    /// How it ended, in Go's words: `exit status 1`, `signal: 9`.
    pub fn ending(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("signal: {signal}"),
            (None, None) => "ended in an unknown way".to_owned(),
        }
    }
}

/// Why there is no output to speak of.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It is not installed: neither in `PATH` nor where the system's programs are.
    #[error("{program}: not found")]
    NotFound {
        /// Its name.
        program: String,
    },
    /// It did not end in time and was killed with all it had started.
    #[error("{program}: gave no answer within {} s and was killed", .after.as_secs())]
    Timeout {
        /// Its name.
        program: String,
        /// How long it was given.
        after: Duration,
    },
    /// It ended with a failure.
    #[error("{program}: {reason}")]
    Failed {
        /// Its name.
        program: String,
        /// Its own words, or its status where it had none.
        reason: String,
        /// Its exit status; `None` when a signal ended it.
        code: Option<i32>,
    },
    /// It could not be run, or not be listened to.
    #[error("{program}: {source}")]
    Io {
        /// Its name.
        program: String,
        /// Why.
        source: io::Error,
    },
}

impl ExecError {
    /// What happened, without the program's name.
    pub fn reason(&self) -> String {
        match self {
            ExecError::NotFound { .. } => "not found".to_owned(),
            ExecError::Timeout { after, .. } => {
                format!("gave no answer within {} s and was killed", after.as_secs())
            }
            ExecError::Failed { reason, .. } => reason.clone(),
            ExecError::Io { source, .. } => source.to_string(),
        }
    }

    fn of(program: &str) -> impl Fn(io::Error) -> ExecError + use<> {
        let program = program.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::NotFound => ExecError::NotFound {
                program: program.clone(),
            },
            _ => ExecError::Io {
                program: program.clone(),
                source,
            },
        }
    }
}

/// The file of a program: the first that can be executed in the folders of `PATH`, then in `/usr/sbin` and `/sbin`. A name with
/// a slash is a path.
pub fn find(program: &str) -> Option<PathBuf> {
    find_in(folders(std::env::var_os(PATH)), program)
}

fn find_in(folders: Vec<PathBuf>, program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program));
    }
    let can_be_executed =
        |file: &PathBuf| fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    folders
        .into_iter()
        .map(|folder| folder.join(program))
        .find(can_be_executed)
}

fn folders(path: Option<OsString>) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = match path {
        Some(path) => std::env::split_paths(&path).collect(),
        None => vec![PathBuf::from("/usr/bin"), PathBuf::from("/bin")],
    };
    for folder in SYSTEM_FOLDERS.map(PathBuf::from) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

/// Runs a program of the system to its end, whatever that is. See [`Program::system`] for what it knows of us.
///
/// # Errors
///
/// [`ExecError::NotFound`] when it is not installed, [`ExecError::Timeout`] when it did not end in time, [`ExecError::Io`] when it
/// could not be started. A failing exit status is no error.
pub fn run<A: AsRef<OsStr>>(
    program: &str,
    arguments: &[A],
    stdin: &str,
    after: Duration,
) -> Result<Output, ExecError> {
    converse(
        &Program::system(program)?.args(arguments),
        stdin.as_bytes(),
        after,
    )
}

/// Runs a program of the system that must succeed; its standard output, invalid UTF-8 replaced.
///
/// # Errors
///
/// As [`run`], and [`ExecError::Failed`] when its status is a failure or its output longer than 64 MiB: half a listing is none.
pub fn read<A: AsRef<OsStr>>(
    program: &str,
    arguments: &[A],
    stdin: &str,
    after: Duration,
) -> Result<String, ExecError> {
    let output = run(program, arguments, stdin, after)?;
    let failed = |reason: String| ExecError::Failed {
        program: program.to_owned(),
        reason,
        code: output.status.code(),
    };
    if output.status.success() {
        return match output.is_cut {
            true => Err(failed(format!("printed more than {} MiB", MOST_OUTPUT >> 20))),
            false => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        };
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(failed(match complaint.trim() {
        "" => output.status.to_string(),
        words => words.replace('\n', "; "),
    }))
}

/// Runs a program with `stdin` as its input, in a process group of its own. `after` is for all of it: when it has passed, the whole
/// group is killed. A program that has ended while something it started still holds its output is done: what has come is taken,
/// and the rest of the group killed.
///
/// # Errors
///
/// [`ExecError::NotFound`] when there is no such file, [`ExecError::Timeout`] when it did not end in time, [`ExecError::Io`] when it
/// could not be started or waited for. A failing exit status is no error.
pub fn converse(program: &Program, stdin: &[u8], after: Duration) -> Result<Output, ExecError> {
    let name = program.name();
    let failed = ExecError::of(&name);
    bury();
    let deadline = Instant::now() + after;
    let mut running = Running::start(program, deadline).map_err(&failed)?;
    let heard = running.converse(stdin, deadline);
    let is_over = matches!(heard, Ok(Heard { is_over: true, .. }));
    if !is_over || matches!(heard, Ok(Heard { is_held: true, .. })) {
        running.kill();
    }
    let status = running.collect();
    let heard = heard.map_err(&failed)?;
    match status.map_err(&failed)? {
        Some(status) if is_over => Ok(Output {
            status,
            stdout: heard.stdout.bytes,
            stderr: heard.stderr.bytes,
            is_cut: heard.stdout.is_cut,
        }),
        _ => Err(ExecError::Timeout { program: name, after }),
    }
}

/// Killed programs that had not ended when they were given up: to be collected when they have.
static DYING_YET: Mutex<VecDeque<Child>> = Mutex::new(VecDeque::new());

/// Collects what has ended of those that were given up.
fn bury() {
    let mut dying = DYING_YET.lock().unwrap_or_else(PoisonError::into_inner);
    dying.retain(|child| matches!(child.try_wait(), Ok(None)));
}

/// A child in a process group of its own.
struct Running {
    child: Child,
    /// Readable at its end; kernels before 5.3 have none.
    ended: Option<OwnedFd>,
}

/// What was heard of a program.
struct Heard {
    stdout: Capture,
    stderr: Capture,
    /// It has ended.
    is_over: bool,
    /// Somebody else holds one of its outputs still.
    is_held: bool,
}

impl Running {
    fn start(program: &Program, deadline: Instant) -> io::Result<Running> {
        let mut attempt = 1;
        let child = loop {
            match program.start() {
                Ok(child) => break child,
                Err(e)
                    if e.kind() == io::ErrorKind::ExecutableFileBusy
                        && attempt < BUSY_ATTEMPTS
                        && Instant::now() + BUSY_PAUSE < deadline =>
                {
                    attempt += 1;
                    std::thread::sleep(BUSY_PAUSE);
                }
                Err(e) => return Err(e),
            }
        };
        Ok(Running {
            ended: pidfd_open(child.pid, PidfdFlags::empty()).ok(),
            child,
        })
    }

    /// Feeds stdin and collects both outputs until the program has ended or the deadline has passed.
    fn converse(&mut self, stdin: &[u8], deadline: Instant) -> io::Result<Heard> {
        let child = &mut self.child;
        let mut input = child.stdin.take();
        let mut unsent = stdin;
        let (mut stdout, mut stderr) = (
            Capture::new(child.stdout.take(), MOST_OUTPUT)?,
            Capture::new(child.stderr.take(), MOST_COMPLAINT)?,
        );
        if let Some(input) = &input {
            set_nonblocking(input.as_fd())?;
        }
        let mut chunk = vec![0; 64 << 10];
        loop {
            if unsent.is_empty() {
                input = None;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // Known before its outputs are read: what it wrote is there by then.
            let is_over = self.wait(&input, [&stdout, &stderr], left)?;
            if let Some(pipe) = &mut input {
                match pipe.write(unsent) {
                    Ok(written) => unsent = unsent.get(written..).unwrap_or_default(),
                    Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                    // It need not read all of its input; why it does not its status tells.
                    Err(_) => unsent = &[],
                }
            }
            stdout.read(&mut chunk)?;
            stderr.read(&mut chunk)?;
            if is_over || left.is_zero() {
                return Ok(Heard {
                    is_held: stdout.pipe.is_some() || stderr.pipe.is_some(),
                    stdout,
                    stderr,
                    is_over,
                });
            }
        }
    }

    /// Waits for the end, for room in the input or for output, no longer than `left`; true when the program has ended. It is
    /// not collected, so that its number stays its group's.
    fn wait(&self, input: &Option<PipeWriter>, outputs: [&Capture; 2], left: Duration) -> io::Result<bool> {
        let mut waiting = Vec::with_capacity(4);
        if let Some(ended) = &self.ended {
            waiting.push(PollFd::new(ended, PollFlags::IN));
        }
        if let Some(input) = input {
            waiting.push(PollFd::new(input, PollFlags::OUT));
        }
        for pipe in outputs.into_iter().filter_map(|capture| capture.pipe.as_ref()) {
            waiting.push(PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN));
        }
        let left = if self.ended.is_some() {
            left
        } else {
            left.min(LOOK)
        };
        let timeout = Timespec::try_from(left).unwrap_or(Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        });
        match poll(&mut waiting, Some(&timeout)) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
        match (&self.ended, waiting.first()) {
            (Some(_), Some(end)) => Ok(!end.revents().is_empty()),
            _ => self.has_ended(),
        }
    }

    fn has_ended(&self) -> io::Result<bool> {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(self.child.pid), look) {
            Ok(status) => Ok(status.is_some()),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Kills the group. INVARIANT: the program has not been collected, or its number could be another group's by now.
    fn kill(&self) {
        let _ = kill_process_group(self.child.pid, Signal::KILL);
    }

    /// The status of a program that has ended or been killed; `None` when it does not end although it was killed.
    fn collect(self) -> io::Result<Option<ExitStatus>> {
        let until = Instant::now() + DYING;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                DYING_YET
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_back(self.child);
                return Ok(None);
            }
            self.wait(&None, [&Capture::NONE, &Capture::NONE], left)?;
        }
    }
}

/// One output pipe and what came out of it.
struct Capture {
    pipe: Option<Box<dyn Pipe>>,
    bytes: Vec<u8>,
    most: usize,
    is_cut: bool,
}

trait Pipe: Read + AsFd {}
impl<T: Read + AsFd> Pipe for T {}

impl Capture {
    const NONE: Capture = Capture {
        pipe: None,
        bytes: Vec::new(),
        most: 0,
        is_cut: false,
    };

    fn new(pipe: Option<impl Pipe + 'static>, most: usize) -> io::Result<Capture> {
        if let Some(pipe) = &pipe {
            set_nonblocking(pipe.as_fd())?;
        }
        Ok(Capture {
            pipe: pipe.map(|p| Box::new(p) as Box<dyn Pipe>),
            most,
            ..Capture::NONE
        })
    }

    /// Reads what is there, so much that it holds more than a pipe does; drops the pipe at its end.
    fn read(&mut self, chunk: &mut [u8]) -> io::Result<()> {
        let mut turn = 0;
        while turn < TURN
            && let Some(pipe) = &mut self.pipe
        {
            match pipe.read(chunk) {
                Ok(0) => self.pipe = None,
                Ok(length) => {
                    turn += length;
                    let room = self.most.saturating_sub(self.bytes.len());
                    self.is_cut |= length > room;
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

#[cfg(test)]
mod tests;
