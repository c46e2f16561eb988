//! The firewall programs, one transaction a time.

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kernel::exec::{self, ExecError, Program};
use kernel::firewall::{self, iptables};
use kernel::lock::{self, Lock, LockError};

use fabric::object::Family;
use fabric::rules;

use crate::failure::{Code, Failure};
use crate::files;

/// What all of a call's firewall work may take, waiting for its locks included: no runtime waits much longer for a DEL.
const LIMIT: Duration = Duration::from_secs(60);
/// The part of [`LIMIT`] that is kept for undoing what has failed.
const UNDOING: Duration = Duration::from_secs(10);
/// How long the program of a call that was killed may take to end: it is killed with it, and may be in the middle of a transaction.
const ENDING: Duration = Duration::from_secs(2);
const LOCK_FOLDER: &str = "/run/flannel";
const LOCK: &str = "/run/flannel/cni-firewall.lock";

/// Why the firewall is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallError {
    msg: String,
    /// Time was over. The same call may well do what it is asked for later.
    is_passing: bool,
}

impl FirewallError {
    /// It lasts.
    pub fn lasting(msg: impl Into<String>) -> FirewallError {
        FirewallError {
            msg: msg.into(),
            is_passing: false,
        }
    }

    /// Time was over.
    pub fn passing(msg: impl Into<String>) -> FirewallError {
        FirewallError {
            msg: msg.into(),
            is_passing: true,
        }
    }

    /// It may be over the next time.
    pub fn is_passing(&self) -> bool {
        self.is_passing
    }

    /// The same error with more words before it.
    pub fn within(self, words: &str) -> FirewallError {
        FirewallError {
            msg: format!("{words}: {}", self.msg),
            ..self
        }
    }

    /// Several in one: each on a line, passing if one of them is. Nothing for none.
    ///
    /// # Errors
    ///
    /// The one error, where there is any.
    pub fn all_of(errors: Vec<FirewallError>) -> Result<(), FirewallError> {
        if errors.is_empty() {
            return Ok(());
        }
        let lines: Vec<&str> = errors.iter().map(|e| e.msg.as_str()).collect();
        Err(FirewallError {
            msg: lines.join("\n"),
            is_passing: errors.iter().any(|e| e.is_passing),
        })
    }

    /// What is said of it contains these words.
    pub fn says(&self, words: &str) -> bool {
        self.msg.contains(words)
    }
}

impl fmt::Display for FirewallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)
    }
}

impl From<FirewallError> for Failure {
    fn from(error: FirewallError) -> Failure {
        match error.is_passing {
            true => Failure::new(Code::TryAgainLater, error.msg),
            false => Failure::internal(error.msg),
        }
    }
}

/// The firewall programs for a while, other calls of ours being kept from them until this is dropped.
#[derive(Debug)]
pub struct Firewall {
    _lock: Option<Lock>,
    /// Locked, and inherited by every program: as long as it is, one of them runs. Only that is learned from it.
    running: Option<OwnedFd>,
    until: Instant,
}

impl Firewall {
    /// Keeps other calls of ours away. Where there can be no lock the work is done without.
    ///
    /// The lock goes with this process, and its programs are killed with it; what a killed one was in the middle of is over when
    /// this returns, so that the DEL that follows finds the rules it has still made.
    ///
    /// # Errors
    ///
    /// A passing one when somebody has the lock all the time.
    pub fn begin() -> Result<Firewall, FirewallError> {
        Firewall::begin_at(Path::new(LOCK), deadline() - UNDOING)
    }

    fn begin_at(lock: &Path, until: Instant) -> Result<Firewall, FirewallError> {
        let lock = match Lock::wait(lock, until) {
            Ok(lock) => Some(lock),
            Err(e @ LockError::Held { .. }) => {
                return Err(FirewallError::passing(format!(
                    "no firewall program was run: {e}"
                )));
            }
            Err(LockError::Io { .. }) => None,
        };
        let running = lock.as_ref().and_then(|_| mark());
        Ok(Firewall {
            _lock: lock,
            running,
            until,
        })
    }

    /// For looking at the firewall alone: keeps nobody away.
    pub fn to_look_at() -> Firewall {
        Firewall {
            _lock: None,
            running: None,
            until: deadline(),
        }
    }

    /// The time kept for it may be used from now on: what was begun is being undone.
    pub fn begin_undoing(&mut self) {
        self.until += UNDOING;
    }

    /// Runs a firewall program. `Ok(None)`: it is not installed.
    ///
    /// # Errors
    ///
    /// Its own words and its status, and a passing one when the time is over.
    pub fn run(&self, program: &str, args: &[&str], stdin: &str) -> Result<Option<String>, FirewallError> {
        let lasting = |e: &ExecError| FirewallError::lasting(format!("{program}: {}", e.reason()));
        let Ok(mut call) = Program::system(program) else {
            return Ok(None);
        };
        if let Some(running) = &self.running {
            call = call.inherit(running);
        }
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let spent = LIMIT.as_secs();
            return Err(FirewallError::passing(format!(
                "{program}: not run, the {spent} s of this call for the firewall being over"
            )));
        }
        match exec::converse(&call.args(args), stdin.as_bytes(), left) {
            Ok(output) if output.status.success() => {
                Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
            }
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                Err(FirewallError::lasting(format!(
                    "{program} {}: {}: {}",
                    args.join(" "),
                    output.ending(),
                    said.trim()
                )))
            }
            Err(ExecError::NotFound { .. }) => Ok(None),
            Err(e @ ExecError::Timeout { .. }) => Err(FirewallError::passing(e.to_string())),
            Err(e) => Err(lasting(&e)),
        }
    }

    /// Applies lines to the nat table, all or none, leaving alone what they do not name. `Ok(None)`: not installed.
    ///
    /// # Errors
    ///
    /// As [`Firewall::run`].
    pub fn restore(&self, v6: bool, lines: &[String]) -> Result<Option<String>, FirewallError> {
        let text = format!("*nat\n{}\nCOMMIT\n", lines.join("\n"));
        let program = iptables(family(v6), "-restore");
        match self.run(&program, &["--noflush", "--wait"], &text) {
            // COMPAT: before 1.6.2 it knew no `--wait` and took no lock: then it is we who hold the lock meanwhile.
            Err(e)
                if ["unrecognized option", "unknown option"]
                    .iter()
                    .any(|words| e.says(words)) =>
            {
                let _lock = firewall::xtables_lock(&program, self.until)
                    .map_err(|e| FirewallError::passing(e.to_string()))?;
                self.run(&program, &["--noflush"], &text)
            }
            done => done,
        }
    }

    /// Lists some chains of the nat table in the form of [`Firewall::save`]; those that are not there are left out. `Ok(None)`:
    /// not installed.
    ///
    /// Costs what these chains hold. Listing the table means half a second and more where a service proxy has 20,000 rules in it.
    ///
    /// # Errors
    ///
    /// As [`Firewall::run`].
    pub fn list(&self, v6: bool, chains: &[&str]) -> Result<Option<String>, FirewallError> {
        let program = iptables(family(v6), "");
        let mut text = String::new();
        for name in chains {
            match self.run(&program, &["--wait", "-t", "nat", "-S", name], "") {
                Ok(Some(listed)) => text.push_str(&restate(&listed)),
                Ok(None) => return Ok(None),
                Err(e) if is_absent(&e, name) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Some(text))
    }

    /// Lists the nat table. `Ok(None)`: not installed.
    ///
    /// # Errors
    ///
    /// As [`Firewall::run`].
    pub fn save(&self, v6: bool) -> Result<Option<String>, FirewallError> {
        let program = iptables(family(v6), "-save");
        let saved = self.run(&program, &["-t", "nat"], "")?;
        match &saved {
            Some(text) if !rules::iptables::is_whole(text) => Err(FirewallError::lasting(format!(
                "{program} -t nat: its listing has no end"
            ))),
            _ => Ok(saved),
        }
    }
}

/// When this process has had its time. A process is one call: of an executable of ours that does more, all share one time.
fn deadline() -> Instant {
    static DEADLINE: OnceLock<Instant> = OnceLock::new();
    *DEADLINE.get_or_init(|| Instant::now() + LIMIT)
}

/// The folder itself, and nothing else that may be in its place.
fn lock_folder() -> Option<File> {
    files::open_folder(LOCK_FOLDER).ok().map(File::from)
}

/// Marks that programs may run from now on, once those of a call that was killed have ended. The mark is a lock on the folder, which
/// is everybody's and not removed.
fn mark() -> Option<OwnedFd> {
    let folder = lock_folder()?;
    lock::lock_by(&folder, Instant::now() + ENDING)
        .ok()?
        .then(|| folder.into())
}

/// What a killed call's program was in the middle of is over, unless another call is at work: that has waited for it, or does.
/// To be asked before the kernel is asked whether there is anything to remove, without keeping others from the firewall.
pub fn settle() {
    // Where there is no folder no program has ever run.
    let Some(folder) = lock_folder() else {
        return;
    };
    let now = Instant::now();
    if matches!(lock::lock_by(&folder, now), Ok(false)) && Lock::wait(Path::new(LOCK), now).is_ok() {
        let _ = lock::lock_by(&folder, now + ENDING);
    }
}

/// A firewall program is installed.
pub fn is_installed(program: &str) -> bool {
    exec::find(program).is_some()
}

fn family(v6: bool) -> Family {
    if v6 { Family::V6 } else { Family::V4 }
}

/// A listing of one chain with its first line as [`Firewall::save`] has it.
fn restate(listed: &str) -> String {
    let mut text = String::with_capacity(listed.len() + 8);
    for line in listed.lines() {
        match line.strip_prefix("-N ").or_else(|| line.strip_prefix("-P ")) {
            Some(rest) => {
                let (name, policy) = rest.split_once(' ').unwrap_or((rest, "-"));
                text.push_str(&format!(":{name} {policy} [0:0]\n"));
            }
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

/// What iptables says of a chain that is not there; that of nf_tables takes it for one it cannot read.
fn is_absent(error: &FirewallError, chain: &str) -> bool {
    error.says("No chain/target/match by that name")
        || error.says(&format!("chain `{chain}' in table `nat' is incompatible"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listing_when_restated_has_the_form_of_a_saved_table() {
        let listed = "-N CNI-a\n-A CNI-a -d 10.0.0.0/8 -m comment --comment \"-N x\" -j ACCEPT\n";
        assert_eq!(
            restate(listed),
            ":CNI-a - [0:0]\n-A CNI-a -d 10.0.0.0/8 -m comment --comment \"-N x\" -j ACCEPT\n"
        );
        assert_eq!(restate("-P POSTROUTING ACCEPT\n"), ":POSTROUTING ACCEPT [0:0]\n");
    }

    #[test]
    fn error_when_it_is_about_another_thing_is_no_missing_chain() {
        let error = |text: &str| {
            FirewallError::lasting(format!("iptables --wait -t nat -S CNI-a: exit status 1: {text}"))
        };
        assert!(is_absent(
            &error("iptables: No chain/target/match by that name."),
            "CNI-a"
        ));
        let nft =
            "iptables v1.8.9 (nf_tables): chain `CNI-a' in table `nat' is incompatible, use 'nft' tool.";
        assert!(is_absent(&error(nft), "CNI-a"));
        assert!(!is_absent(&error(nft), "CNI-b"));
        assert!(!is_absent(
            &error("Permission denied (you must be root)."),
            "CNI-a"
        ));
    }

    #[test]
    fn failure_when_time_was_over_is_to_be_tried_again() {
        let code = |error: FirewallError| Failure::from(error).code;
        assert_eq!(code(FirewallError::passing("x")), 11);
        assert_eq!(code(FirewallError::lasting("x")), 999);
        let both = vec![
            FirewallError::lasting("a"),
            FirewallError::passing("b").within("c"),
        ];
        let both = Failure::from(FirewallError::all_of(both).unwrap_err());
        assert_eq!((both.code, both.msg.as_str()), (11, "a\nc: b"));
        assert_eq!(FirewallError::all_of(Vec::new()), Ok(()));
    }

    #[test]
    fn firewall_when_time_is_over_gives_up_in_time_and_says_who_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let lock = folder.path().join("lock");
        let held = Lock::wait(&lock, Instant::now()).unwrap();
        let soon = Instant::now() + Duration::from_millis(50);
        let error = Firewall::begin_at(&lock, soon).unwrap_err();
        assert!(error.is_passing());
        assert!(
            error.says(&format!("is locked by process {}", std::process::id())),
            "{error}"
        );
        drop(held);
        let firewall = Firewall {
            _lock: None,
            running: None,
            until: Instant::now() + Duration::from_millis(50),
        };
        let error = firewall.run("sleep", &["1000"], "").unwrap_err();
        assert!(error.is_passing() && error.says("was killed"), "{error}");
        let error = firewall.run("sleep", &["0"], "").unwrap_err();
        assert!(error.is_passing() && error.says("not run"), "{error}");
        assert_eq!(firewall.run("no-such-program", &[], ""), Ok(None));
        let failed = Firewall::to_look_at()
            .run("sh", &["-c", "echo no >&2; exit 4"], "")
            .unwrap_err();
        assert_eq!(failed.to_string(), "sh -c echo no >&2; exit 4: exit status 4: no");
        assert!(!failed.is_passing());
    }
}
