//! The subnet file as one more object the engine keeps: written when the first state stands, put back when it changes.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fabric::subnet_env::SubnetEnv;
use kernel::inotify::Watch;
use tracing::{info, warn};

use crate::engine::patience::Fight;
use crate::engine::report::Reporter;
use crate::subnet_file::{self, Repaired};

/// A write that failed is tried again after this, though nobody touched the file: a disk may have room again.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps one subnet file.
#[derive(Debug)]
pub struct EnvKeeper {
    path: PathBuf,
    wanted: SubnetEnv,
    written: bool,
    /// What shall stand in it is something else than what was written.
    changed: bool,
    /// The error last told, so that a full disk is one line and not one per second.
    told: Option<String>,
    watch: Option<Watch>,
    /// When to try again what failed, or to go on with what is fought over.
    retry: Option<Instant>,
    fight: Fight,
}

impl EnvKeeper {
    /// A keeper that has not written yet.
    pub fn new(path: PathBuf, wanted: SubnetEnv) -> EnvKeeper {
        EnvKeeper {
            path,
            wanted,
            written: false,
            changed: false,
            told: None,
            watch: None,
            retry: None,
            fight: Fight::default(),
        }
    }

    /// Goes on where another keeper was: a file that was written once is not written whole again, others may have lines in it.
    pub fn after(self, before: EnvKeeper) -> EnvKeeper {
        if before.path != self.path || !before.written {
            return self;
        }
        if before.wanted == self.wanted {
            return before;
        }
        EnvKeeper {
            written: true,
            changed: true,
            ..self
        }
    }

    /// What is fought over, in words.
    pub fn fight(&self) -> Option<String> {
        let path = self.path.display();
        self.fight
            .is_one()
            .then(|| format!("subnet file {path} is changed again and again by somebody unknown"))
    }

    /// Becomes readable when something happened to the file.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(Watch::fd)
    }

    /// When the next look is due though nothing happened to the file.
    pub fn next(&self) -> Option<Instant> {
        self.retry
    }

    /// Writes the file the first time, whole: another program may have written over all of it. Later only what is missing or
    /// changed of ours is put back, and foreign lines stay.
    pub fn keep(&mut self, reporter: &Reporter, now: Instant) {
        let touched = match (&mut self.watch, self.retry) {
            (Some(watch), retry) => watch.drain() || retry.is_some_and(|at| at <= now),
            // Without a watch there are looks instead.
            (None, Some(at)) => at <= now,
            (None, None) => true,
        };
        if !touched {
            if !self.fight.is_recent(now) {
                self.fight = Fight::default();
            }
            return;
        }
        if let Some(until) = self.fight.pause(now) {
            self.retry = Some(until);
            if !subnet_file::is_right(&self.path, &self.wanted) {
                let text = "it is changed again and again by somebody else, and put right ever more seldom";
                reporter.subnet_file(Err(text.to_owned()));
            }
            return;
        }
        let mut result = if self.written {
            subnet_file::repair(&self.path, &self.wanted)
        } else {
            subnet_file::write(&self.path, &self.wanted).map(|()| Repaired::Unchanged)
        };
        // A watch is on a directory, which may have been replaced as a whole: a new one each time, and another look for what
        // happened before it was there.
        self.watch = Watch::file(&self.path).ok();
        if let Ok(Repaired::Unchanged) = result
            && self.watch.is_some()
        {
            result = subnet_file::repair(&self.path, &self.wanted);
        }
        match &result {
            Ok(Repaired::Unchanged) => {}
            Ok(Repaired::Written) if self.changed => info!("subnet file {}: written", self.path.display()),
            Ok(Repaired::Written) => {
                info!("repaired: subnet file {}", self.path.display());
                reporter.repaired_kind("subnet_file");
                self.fight.repaired(None, now);
            }
            Err(failure) => {
                let text = failure.to_string();
                if self.told.as_ref() != Some(&text) {
                    warn!("subnet file {}: {text}", self.path.display());
                    self.told = Some(text);
                }
            }
        }
        if result.is_ok() {
            self.told = None;
            self.written = true;
            self.changed = false;
        }
        self.retry = (result.is_err() || self.watch.is_none()).then(|| now + RETRY);
        reporter.subnet_file(result.map(|_| ()).map_err(|failure| failure.to_string()));
    }
}
