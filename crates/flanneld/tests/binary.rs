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
            "invalid boolean value \"yes\" for -ip-masq: parse error (expected true or false)",
        ),
        (
            &["--kube-subnet-mgr", "--kube-annotation-prefix=org"],
            "invalid --kube-annotation-prefix=\"org\": expected a domain of at least two labels in lower case, optionally followed by / \
             and a name, as flannel.alpha.coreos.com or example.org/net2",
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
        last.contains(&format!("cannot serve health on 127.0.0.1:{port}: "))
            && last.contains(&format!("pid {} (", std::process::id())),
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

/// A user without rights tells by whose its files in /proc are: the kernel gives those of a process that must not be dumped to root.
#[test]
fn flanneld_when_it_runs_leaves_no_core_and_holds_nothing_that_was_left_open() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("stray"), "").unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_flanneld"), path("flanneld")).unwrap();
    let script = format!(
        "chown -R 65534 '{0}'; ulimit -c unlimited 2>/dev/null; exec setpriv --reuid=65534 --regid=65534 --clear-groups \
         '{0}/flanneld' --subnet-file='{0}/subnet.env' --etcd-endpoints=http://127.0.0.1:1 9<'{0}/stray' 7<'{0}/stray'",
        folder.path().display()
    );
    let log = std::fs::File::create(path("log")).unwrap();
    let running = Running(
        Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap(),
    );
    let end = Instant::now() + Duration::from_secs(60);
    while UnixStream::connect(path("subnet.env.sock")).is_err() {
        assert!(
            Instant::now() < end,
            "{}",
            std::fs::read_to_string(path("log")).unwrap()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let process = format!("/proc/{}", running.0.id());
    let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
    let user = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    assert!(user.contains("65534"), "{user}");
    assert_eq!(std::fs::metadata(format!("{process}/environ")).unwrap().uid(), 0);
    let limits = std::fs::read_to_string(format!("{process}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(
        core.split_whitespace().filter(|word| *word == "0").count(),
        2,
        "{core}"
    );
    let open: Vec<_> = std::fs::read_dir(format!("{process}/fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .collect();
    assert!(!open.iter().any(|file| file.ends_with("stray")), "{open:?}");
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

/// A daemon without a registry, and what it says.
struct Waiting {
    child: Running,
    folder: tempfile::TempDir,
    port: u16,
}

impl Waiting {
    /// Starts one below a folder, by way of a shell's line that ends in `"$@"`.
    fn start(folder: tempfile::TempDir, port: u16, line: &str) -> Waiting {
        let child = Command::new("sh")
            .args(["-c", line, "sh", env!("CARGO_BIN_EXE_flanneld")])
            .arg(format!(
                "--subnet-file={}/run/subnet.env",
                folder.path().display()
            ))
            .args(["--healthz-ip=127.0.0.1", &format!("--healthz-port={port}")])
            .arg("--etcd-endpoints=http://127.0.0.1:1")
            .env_clear()
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let child = Running(child);
        Waiting { child, folder, port }
    }

    fn free_port() -> u16 {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("run/subnet.env.sock")
    }

    fn answers<S: Read + Write>(&self, connected: std::io::Result<S>) -> bool {
        let Ok(mut stream) = connected else {
            return false;
        };
        let mut reply = String::new();
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").is_ok()
            && stream.read_to_string(&mut reply).is_ok()
            && reply.ends_with("flanneld is running")
    }

    fn answers_by_socket(&self) -> bool {
        self.answers(UnixStream::connect(self.socket()))
    }

    fn answers_by_port(&self) -> bool {
        self.answers(TcpStream::connect(("127.0.0.1", self.port)))
    }

    fn wait(&self, what: &str, is_so: impl Fn(&Waiting) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !is_so(self) {
            assert!(Instant::now() < end, "{what}: {}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How it ends when told to, and how long that takes.
    fn terminate(&mut self) -> (Option<i32>, Duration) {
        let told = Instant::now();
        let pid = rustix::process::Pid::from_child(&self.child.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = self.child.0.wait().unwrap();
        (status.code(), told.elapsed())
    }
}

#[test]
fn status_socket_when_it_is_removed_or_replaced_is_made_again_and_what_is_anothers_stays() {
    let folder = tempfile::tempdir().unwrap();
    // A file where its directory has to be: it cannot be made at start.
    std::fs::write(folder.path().join("run"), "").unwrap();
    let mut running = Waiting::start(folder, Waiting::free_port(), "exec \"$@\"");
    running.wait("the health port", Waiting::answers_by_port);
    running.wait("a word about the socket", |w| {
        w.said().contains("no status socket for now")
    });
    std::fs::remove_file(running.folder.path().join("run")).unwrap();
    running.wait("the socket, late", Waiting::answers_by_socket);

    std::fs::remove_file(running.socket()).unwrap();
    running.wait("the socket again", Waiting::answers_by_socket);

    std::fs::remove_file(running.socket()).unwrap();
    std::fs::write(running.socket(), "precious").unwrap();
    let name = running.socket().display().to_string();
    running.wait("the stranger's name", |w| {
        w.said()
            .lines()
            .any(|line| line.contains("no status socket for now: ") && line.contains(&name))
    });
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(std::fs::read_to_string(running.socket()).unwrap(), "precious");
    let told = running.said().matches("no status socket for now").count();
    assert_eq!(told, 2, "once for each reason: {}", running.said());
    std::fs::remove_file(running.socket()).unwrap();
    running.wait("the socket once more", Waiting::answers_by_socket);

    let (code, _) = running.terminate();
    assert_eq!(code, Some(0), "{}", running.said());
    assert!(!running.socket().exists());
}

#[test]
fn flanneld_when_out_of_descriptors_answers_probes_and_neither_spins_nor_floods_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let running = Waiting::start(folder, Waiting::free_port(), "ulimit -n 40; exec \"$@\"");
    running.wait("both doors", |w| w.answers_by_port() && w.answers_by_socket());
    let by_port = || -> Vec<TcpStream> {
        let connect = |_| TcpStream::connect(("127.0.0.1", running.port)).unwrap();
        (0..60).map(connect).collect()
    };
    let by_socket = || -> Vec<UnixStream> {
        let connect = |_| UnixStream::connect(running.socket()).unwrap();
        (0..60).map(connect).collect()
    };
    // Well within the five seconds after which a flood's connections end by themselves.
    let at_once = |answers: &dyn Fn() -> bool| {
        let asked = Instant::now();
        answers() && asked.elapsed() < Duration::from_secs(3)
    };
    // Each by itself, so that the other has nobody to send away; then both.
    let flood = by_socket();
    for _ in 0..10 {
        assert!(at_once(&|| running.answers_by_port()), "{}", running.said());
    }
    drop(flood);
    running.wait("room again", Waiting::answers_by_socket);
    let flood = by_port();
    for _ in 0..10 {
        assert!(at_once(&|| running.answers_by_socket()), "{}", running.said());
    }
    let floods = (flood, by_port(), by_socket());
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", running.child.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    // While a flood comes in, whoever came a moment ago may be closed for it; not any more once all of it is there.
    running.wait("both doors in the flood", |w| {
        w.answers_by_port() && w.answers_by_socket()
    });
    let (before, begun) = (ticks(), Instant::now());
    for _ in 0..10 {
        assert!(running.answers_by_port(), "{}", running.said());
        assert!(running.answers_by_socket(), "{}", running.said());
        std::thread::sleep(Duration::from_millis(200));
    }
    // Ticks are hundredths of a second.
    let share = (ticks() - before) as f64 / 100.0 / begun.elapsed().as_secs_f64();
    assert!(share < 0.5, "{share} of a processor");
    let told = running.said().matches("cannot accept").count();
    assert!(told < 20, "{told} lines: {}", running.said());
    drop(floods);
}

#[test]
fn flanneld_when_told_to_end_while_it_waits_for_a_predecessors_port_ends_at_once() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut running = Waiting::start(tempfile::tempdir().unwrap(), port, "exec \"$@\"");
    running.wait("its first word", |w| w.said().contains(" starting"));
    std::thread::sleep(Duration::from_millis(100));
    let (code, _) = running.terminate();
    assert_eq!(code, Some(0), "{}", running.said());
    assert!(
        running.said().contains("stopping before anything was begun"),
        "{}",
        running.said()
    );
}

#[test]
fn flanneld_when_no_thread_can_be_had_waits_and_goes_on_by_itself() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    };
    let run = folder.path().join("run");
    std::fs::create_dir(&run).unwrap();
    let program = folder.path().join("flanneld");
    std::fs::copy(env!("CARGO_BIN_EXE_flanneld"), &program).unwrap();
    [folder.path(), &run, &program].into_iter().for_each(open);
    // A user who has no other processes and may have no second thread. Root is under no such limit.
    let user = format!("{}", 0x4000_0000 + std::process::id());
    let line = format!(
        "shift; exec prlimit --nproc=1:1000 setpriv --reuid {user} --regid {user} --clear-groups '{}' \"$@\"",
        program.display()
    );
    let mut running = Waiting::start(folder, Waiting::free_port(), &line);
    running.wait("what it waits for", |w| {
        w.said().contains("waiting: starting the thread engine")
    });
    assert_eq!(running.child.0.try_wait().unwrap(), None, "{}", running.said());
    let raised = Command::new("setpriv")
        .args(["--reuid", &user, "--regid", &user, "--clear-groups", "prlimit"])
        .args(["--nproc=1000:1000", "--pid", &running.child.0.id().to_string()])
        .status()
        .unwrap();
    assert!(raised.success());
    running.wait("both doors", |w| w.answers_by_port() && w.answers_by_socket());
    let (code, took) = running.terminate();
    assert_eq!(code, Some(0), "{}", running.said());
    assert!(took < Duration::from_secs(5), "{took:?}: {}", running.said());
}
