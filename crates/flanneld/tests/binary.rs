//! The executable itself: what it prints where, and how it ends, before it touches anything.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed test is a panic"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn flanneld(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flanneld"))
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    assert!(output.stdout.is_empty(), "nothing belongs on standard output");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn flanneld_when_asked_for_help_or_version_ends_with_zero() {
    let output = flanneld(&["--version"]);
    assert_eq!(
        (output.status.code(), stderr(&output).as_str()),
        (Some(0), concat!(env!("CARGO_PKG_VERSION"), "\n"))
    );
    let output = flanneld(&["-h"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).starts_with("Usage: "));
}

#[test]
fn flanneld_when_the_command_line_cannot_be_used_says_why_first_and_ends_with_two() {
    for (arguments, line) in [
        (
            &["--etcd-ca-file=/x"][..],
            "flag provided but not defined: -etcd-ca-file (did you mean --etcd-cafile?)",
        ),
        (
            &["--ip-masq=yes"],
            "invalid boolean value \"yes\" for -ip-masq: parse error",
        ),
        (
            &["--kube-subnet-mgr"],
            "--kube-subnet-mgr=\"true\": Kubernetes as the registry is not built yet",
        ),
        (
            &["--iptables-resync=0"],
            "invalid --iptables-resync=\"0\": expected seconds from 1 to 4294967295",
        ),
    ] {
        let output = flanneld(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(stderr(&output).lines().next(), Some(line));
    }
}

#[test]
fn flanneld_when_standard_error_is_closed_does_not_panic() {
    let program = env!("CARGO_BIN_EXE_flanneld");
    for (arguments, code) in [("--version", 0), ("--nonsense", 2)] {
        let script = format!("exec '{program}' {arguments} 2>&-");
        let status = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(code), "{arguments}");
    }
}

#[test]
fn flanneld_when_its_port_or_socket_is_taken_says_so_and_ends_with_one() {
    let folder = tempfile::tempdir().unwrap();
    let subnet_file = format!("--subnet-file={}/subnet.env", folder.path().display());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let output = flanneld(&[
        &subnet_file,
        "--healthz-ip=127.0.0.1",
        &format!("--healthz-port={port}"),
    ]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let last = text.lines().last().unwrap();
    assert!(
        last.contains(&format!("cannot serve health on 127.0.0.1:{port}: ")),
        "{last}"
    );

    let _other = UnixListener::bind(folder.path().join("subnet.env.sock")).unwrap();
    let output = flanneld(&[&subnet_file]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.lines()
            .last()
            .unwrap()
            .contains("another flanneld is running"),
        "{text}"
    );
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing but the other's socket: {left:?}");
}

/// A daemon that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn flanneld_when_a_killed_predecessor_is_still_leaving_waits_for_its_port_and_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("subnet.env.sock");
    let port_of_the_dying = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = port_of_the_dying.local_addr().unwrap().port();
    let socket_of_the_dying = UnixListener::bind(&socket).unwrap();
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let mut running = Running(
        Command::new(env!("CARGO_BIN_EXE_flanneld"))
            .arg(format!("--subnet-file={}/subnet.env", folder.path().display()))
            .args(["--healthz-ip=127.0.0.1", &format!("--healthz-port={port}")])
            .arg("--etcd-endpoints=http://127.0.0.1:1")
            .env_clear()
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap(),
    );
    // However long it takes to start, it finds the port taken; should it find it free, the test shows less and passes.
    std::thread::sleep(Duration::from_millis(300));
    drop(port_of_the_dying);
    std::thread::sleep(Duration::from_millis(300));
    drop(socket_of_the_dying);

    let answers = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok(reply.starts_with("HTTP/1.") && UnixStream::connect(&socket).is_ok())
    };
    let end = Instant::now() + Duration::from_secs(60);
    while !answers().unwrap_or(false) {
        let said = || std::fs::read_to_string(folder.path().join("log")).unwrap();
        assert_eq!(running.0.try_wait().unwrap(), None, "it ended: {}", said());
        assert!(Instant::now() < end, "nobody answers: {}", said());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Asks until told to stop; the answers, and every connection that was refused.
fn ask_on<S: Read + Write>(
    connect: impl Fn() -> std::io::Result<S>,
    stop: &std::sync::atomic::AtomicBool,
) -> (usize, Vec<String>) {
    let (mut answered, mut refused) = (0, Vec::new());
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        match connect() {
            Ok(mut stream) => {
                let mut reply = String::new();
                let asked = stream
                    .write_all(b"GET /healthz HTTP/1.0\r\n\r\n")
                    .and_then(|()| stream.read_to_string(&mut reply));
                answered += usize::from(asked.is_ok() && reply.starts_with("HTTP/1."));
            }
            Err(failure) => refused.push(failure.to_string()),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    (answered, refused)
}

#[test]
fn flanneld_when_reloaded_refuses_no_connection() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("subnet.env.sock");
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let log = folder.path().join("log");
    let said = || std::fs::read_to_string(&log).unwrap();
    let running = Running(
        Command::new(env!("CARGO_BIN_EXE_flanneld"))
            .arg(format!("--subnet-file={}/subnet.env", folder.path().display()))
            .args(["--healthz-ip=127.0.0.1", &format!("--healthz-port={port}")])
            .arg("--etcd-endpoints=http://127.0.0.1:1")
            .env_clear()
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap(),
    );
    let starts = || said().matches(" starting").count();
    let wait_for = |what: &str, is_so: &dyn Fn() -> bool| {
        let end = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(Instant::now() < end, "{what}: {}", said());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait_for("the first start", &|| {
        UnixStream::connect(&socket).is_ok() && TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (by_port, by_socket) = std::thread::scope(|scope| {
        let by_port = scope.spawn(|| ask_on(|| TcpStream::connect(("127.0.0.1", port)), &stop));
        let by_socket = scope.spawn(|| ask_on(|| UnixStream::connect(&socket), &stop));
        for n in 1..=5 {
            let pid = rustix::process::Pid::from_child(&running.0);
            rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
            wait_for("another start", &|| starts() > n);
            // It has said so before it is ready to be told again.
            let now = |name: &str| std::fs::read_link(format!("/proc/{}/{name}", running.0.id()));
            assert!(now("exe").is_ok());
            std::thread::sleep(Duration::from_millis(200));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        (by_port.join().unwrap(), by_socket.join().unwrap())
    });
    for (answered, refused) in [by_port, by_socket] {
        assert_eq!(refused, Vec::<String>::new(), "{}", said());
        assert!(answered > 100, "{answered} answers");
    }
    // One listener each: the descriptors do not add up from reload to reload.
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", running.0.id())).unwrap();
    let sockets = descriptors
        .flatten()
        .filter(|entry| {
            std::fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
        })
        .count();
    assert!(sockets < 30, "{sockets} sockets");
}
