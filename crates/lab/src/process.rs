//! Processes of a lab: started in a host with a log file, found again later, ended by their own id.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::command::{LabError, file, line};

/// A process on record: survives the process that started it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot (`/proc/PID/stat`, field 22): tells a reused id.
    pub started: u64,
    /// Where stdout and stderr go.
    pub log: PathBuf,
}

impl Record {
    /// The process is there, is the same, and is not a zombie.
    pub fn alive(&self) -> bool {
        stat(self.pid).is_some_and(|s| s.started == self.started && s.state != 'Z')
    }

    /// Sends a signal, if it is still the same process.
    pub fn signal(&self, signal: Signal) {
        if self.alive() {
            send(self.pid, signal);
        }
    }
}

/// A process this process started. Dropping it does not end it: the lab does.
#[derive(Debug)]
pub struct Process {
    record: Record,
    child: Child,
}

impl Process {
    /// Starts detached (own session), stdin empty, stdout and stderr appended to `log`.
    pub fn start(mut command: Command, log: &Path) -> Result<Process, LabError> {
        let open = || fs::OpenOptions::new().create(true).append(true).open(log);
        command
            .stdin(Stdio::null())
            .stdout(file(log, open())?)
            .stderr(file(log, open())?);
        let child = command.spawn().map_err(|source| LabError::Start {
            command: line(&command),
            source,
        })?;
        let started = stat(child.id()).map_or(0, |s| s.started);
        Ok(Process {
            record: Record {
                pid: child.id(),
                started,
                log: log.to_owned(),
            },
            child,
        })
    }

    /// What to keep of it.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.record.pid
    }

    /// Its exit status, once it has ended.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits at most so long for its end.
    pub fn wait(&mut self, limit: Duration) -> Option<std::process::ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if start.elapsed() > limit {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// kill -9, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM; after `limit` kill -9. Gives the status.
    pub fn stop(&mut self, limit: Duration) -> Option<std::process::ExitStatus> {
        if self.ended().is_none() {
            send(self.record.pid, Signal::TERM);
        }
        let status = self.wait(limit);
        if status.is_none() {
            self.kill();
        }
        status
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.record.log).unwrap_or_default()
    }
}

/// What of `/proc/PID/stat` matters here.
#[derive(Debug, Clone, Copy)]
pub struct Stat {
    /// `R`, `S`, `Z`, ...
    pub state: char,
    /// Parent's id.
    pub parent: u32,
    /// User plus system time in clock ticks (10 ms).
    pub ticks: u64,
    /// Start time in clock ticks since boot.
    pub started: u64,
    /// Resident memory in pages.
    pub resident: u64,
}

/// Reads `/proc/PID/stat`; `None` when there is no such process.
pub fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may itself hold blanks and parentheses.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |i: usize| fields.get(i)?.parse::<u64>().ok();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: u32::try_from(number(1)?).ok()?,
        ticks: number(11)? + number(12)?,
        started: number(19)?,
        resident: number(21)?,
    })
}

/// Sends a signal; a process that is gone is no error.
pub fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// All process ids.
pub fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// Last `lines` lines of a log, for an error message.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::words;

    #[test]
    fn record_knows_the_process_until_it_ends() {
        let log = std::env::temp_dir().join(format!("flab-process-{}.log", std::process::id()));
        let mut process = Process::start(words(&["sh", "-c", "echo hello; exec sleep 60"]), &log).unwrap();
        let record = process.record().clone();
        assert!(record.alive());
        assert!(
            !Record {
                started: record.started + 1,
                ..record.clone()
            }
            .alive()
        );
        while process.log().is_empty() {
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(process.stop(Duration::from_secs(5)).is_some());
        assert!(!record.alive());
        assert_eq!(process.log(), "hello\n");
        fs::remove_file(log).unwrap();
    }
}
