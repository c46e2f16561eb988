//! A host that has no thread to give: the executable waits, says so, goes on when there are some, and ends when it is told to.
//! Needs root, and `prlimit` and `setpriv` of util-linux.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed test is a panic"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A user who has no other process; further cases take the numbers after it.
const FIRST_USER: u32 = 61_811;
/// From not even one thread beside the first to more than are needed.
const LIMITS: std::ops::RangeInclusive<u32> = 1..=10;

struct Running {
    child: Child,
    folder: PathBuf,
    threads: u32,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn start(program: &Path, folder: PathBuf, threads: u32) -> Running {
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let user = FIRST_USER + threads;
        let child = Command::new("prlimit")
            .arg(format!("--nproc={threads}:1000"))
            .arg("setpriv")
            .args([
                format!("--reuid={user}"),
                format!("--regid={user}"),
                "--clear-groups".to_owned(),
            ])
            .arg(program)
            .arg(format!("--subnet-file={}/subnet.env", folder.display()))
            // A name, so that it has to be looked up.
            .arg("--etcd-endpoints=http://localhost:1")
            .arg("--healthz-port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Running {
            child,
            folder,
            threads,
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    fn assert_alive(&mut self) {
        let ended = self.child.try_wait().unwrap();
        let log = self.log();
        assert_eq!(ended, None, "with {} threads it ended: {log}", self.threads);
        assert!(!log.contains("panicked"), "with {} threads: {log}", self.threads);
    }

    fn until(&mut self, what: &str, holds: impl Fn(&Running) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !holds(self) {
            self.assert_alive();
            let log = self.log();
            assert!(
                Instant::now() < end,
                "with {} threads, waited in vain for {what}: {log}",
                self.threads
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn flanneld_when_there_are_too_few_threads_waits_says_so_and_goes_on_when_there_are_more() {
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = place.path().join("flanneld");
    fs::copy(env!("CARGO_BIN_EXE_flanneld"), &program).unwrap();
    let mut all: Vec<Running> = LIMITS
        .map(|threads| Running::start(&program, place.path().join(threads.to_string()), threads))
        .collect();
    for running in &mut all {
        running.until("its first words", |running| running.log().contains("starting"));
    }
    // Long enough for every thread to be wanted, and the registry to be asked for by name.
    std::thread::sleep(Duration::from_secs(3));
    all.iter_mut().for_each(Running::assert_alive);
    let log = all[0].log();
    let lines = log.lines().filter(|line| line.contains("thread")).count();
    assert!((1..=20).contains(&lines), "said, and not all the time: {log}");
    for running in &mut all {
        // By its own user: root may lack the capability for other users' processes.
        let user = FIRST_USER + running.threads;
        let raised = Command::new("setpriv")
            .args([
                format!("--reuid={user}"),
                format!("--regid={user}"),
                "--clear-groups".to_owned(),
            ])
            .arg("prlimit")
            .arg(format!("--pid={}", running.child.id()))
            .arg("--nproc=1000:1000")
            .status()
            .unwrap();
        assert!(raised.success());
        running.until("the status socket", |running| {
            running.folder.join("subnet.env.sock").exists()
        });
        // It has come as far as asking the registry.
        running.until("the registry's refusal", |running| {
            running.log().contains("onnection refused")
        });
        let id = i32::try_from(running.child.id()).unwrap();
        let pid = rustix::process::Pid::from_raw(id).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }
    for running in &mut all {
        let end = Instant::now() + Duration::from_secs(20);
        let status = loop {
            if let Some(status) = running.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end, "it does not end: {}", running.log());
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(status.code(), Some(0), "{}", running.log());
    }
}
