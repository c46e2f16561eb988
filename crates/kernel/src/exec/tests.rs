use std::os::fd::AsRawFd;

use super::program::above;
use super::*;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

fn shell(script: &str, stdin: &[u8], after: Duration) -> Result<Output, ExecError> {
    converse(&Program::system("sh").unwrap().args(["-c", script]), stdin, after)
}

/// A process has ended, or does before a minute is over. Whoever inherited it may take a moment to collect it.
fn assert_ends(pid: &str) {
    let until = Instant::now() + LONG;
    let stat = || fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    while !stat().is_empty() && !stat().contains(") Z ") {
        assert!(Instant::now() < until, "still there: {}", stat());
        std::thread::sleep(LOOK);
    }
}

#[test]
fn read_when_input_is_larger_than_a_pipe_then_all_of_it_comes_back() {
    let text = "x".repeat(1 << 20);
    assert_eq!(read::<&str>("cat", &[], &text, LONG).unwrap(), text);
}

#[test]
fn read_when_the_program_fails_then_its_own_words() {
    let error = read("sh", &["-c", "echo no such chain >&2; exit 4"], "", LONG).unwrap_err();
    assert_eq!(error.to_string(), "sh: no such chain");
    assert!(matches!(error, ExecError::Failed { code: Some(4), .. }));
}

#[test]
fn run_when_there_is_no_such_program_then_named() {
    let error = run::<&str>("no-such-program", &[], "", LONG).unwrap_err();
    assert_eq!(error.to_string(), "no-such-program: not found");
    let error = converse(&Program::at("/nonexistent/x"), b"", LONG).unwrap_err();
    assert!(matches!(error, ExecError::NotFound { .. }), "{error}");
}

#[test]
fn find_when_path_lacks_the_systems_folders_then_they_are_looked_into_last() {
    let folders = folders(Some("/nonexistent:/bin".into()));
    assert_eq!(
        folders,
        ["/nonexistent", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from)
    );
    let found = find_in(folders.clone(), "ldconfig").unwrap();
    assert!(found.ends_with("sbin/ldconfig"), "{found:?}");
    assert_eq!(find_in(folders.clone(), "no-such-program"), None);
    // A folder of that name is no program.
    assert_eq!(find_in(vec!["/".into()], "usr"), None);
}

#[test]
fn converse_when_it_does_not_end_and_ignores_the_polite_signal_then_killed_with_its_children() {
    let file = std::env::temp_dir().join(format!("kernel-exec-{}", std::process::id()));
    let script = format!("trap '' TERM; sleep 1000 & echo $! > {}; wait", file.display());
    let started = Instant::now();
    let error = shell(&script, b"", SHORT).unwrap_err();
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
    assert!(matches!(error, ExecError::Timeout { .. }), "{error}");
    assert_eq!(error.reason(), "gave no answer within 0 s and was killed");
    let child = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    assert_ends(&child);
}

#[test]
fn converse_when_a_grandchild_holds_the_pipe_then_output_is_taken_and_the_grandchild_killed() {
    let started = Instant::now();
    let output = shell("sleep 1000 & echo $!", b"", LONG).unwrap();
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
    assert!(output.status.success());
    assert_ends(std::str::from_utf8(&output.stdout).unwrap());
}

#[test]
fn converse_when_a_child_has_let_go_of_the_pipes_then_it_lives_on() {
    let output = shell("sleep 1000 </dev/null >/dev/null 2>&1 & echo $!", b"", LONG).unwrap();
    let child = String::from_utf8(output.stdout).unwrap();
    let pid = rustix::process::Pid::from_raw(child.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    assert_ends(&child);
}

#[test]
fn converse_when_stdin_is_not_read_then_the_status_counts_and_the_time_is_over_all() {
    let input = vec![b'x'; 8 << 20];
    assert!(shell("exec <&-; exit 0", &input, LONG).unwrap().status.success());
    let error = shell("exec sleep 1000", &input, SHORT).unwrap_err();
    assert!(matches!(error, ExecError::Timeout { .. }), "{error}");
}

#[test]
fn converse_when_flooded_then_the_rest_is_thrown_away_and_a_listing_refused() {
    let flood = "head -c 209715200 /dev/zero; head -c 1000000 /dev/zero >&2";
    let output = shell(flood, b"", LONG).unwrap();
    assert!(output.status.success() && output.is_cut);
    assert_eq!(output.stdout.len(), MOST_OUTPUT);
    assert_eq!(output.stderr.len(), MOST_COMPLAINT);
    let error = read("sh", &["-c", flood], "", LONG).unwrap_err();
    assert_eq!(error.to_string(), "sh: printed more than 64 MiB");
}

#[test]
fn converse_when_flooded_for_ever_then_the_time_is_kept() {
    let started = Instant::now();
    let error = shell("exec cat /dev/zero", b"", SHORT).unwrap_err();
    assert!(matches!(error, ExecError::Timeout { .. }), "{error}");
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
}

#[test]
fn converse_when_it_dies_by_a_signal_then_said_so() {
    let output = shell("kill -9 $$", b"", LONG).unwrap();
    assert_eq!(output.ending(), "signal: 9");
    assert_eq!(shell("exit 3", b"", LONG).unwrap().ending(), "exit status 3");
}

#[test]
fn converse_when_the_kernel_tells_no_end_then_it_is_looked_for() {
    let program = Program::system("sh").unwrap().args(["-c", "cat; exit 5"]);
    let mut running = Running::start(&program, Instant::now() + LONG).unwrap();
    running.ended = None;
    let heard = running.converse(b"text", Instant::now() + LONG).unwrap();
    assert!(heard.is_over && !heard.is_held);
    assert_eq!(heard.stdout.bytes, b"text");
    assert_eq!(running.collect().unwrap().unwrap().code(), Some(5));
}

#[test]
fn system_when_run_gets_no_secret_of_ours_and_speaks_english() {
    let text = read::<&str>("env", &[], "", LONG).unwrap();
    let names: Vec<&str> = text.lines().filter_map(|l| l.split('=').next()).collect();
    let known = |name: &&str| -> bool {
        matches!(*name, "PATH" | "LC_ALL" | "LD_LIBRARY_PATH")
            || name.starts_with("XTABLES_")
            || name.starts_with("IPTABLES_")
    };
    assert!(names.iter().all(known), "{names:?}");
    assert!(text.lines().any(|line| line == "LC_ALL=C"), "{text}");
    let path = text.lines().find_map(|line| line.strip_prefix("PATH=")).unwrap();
    assert!(path.split(':').any(|folder| folder == "/usr/sbin"), "{path}");
}

#[test]
fn system_when_whoever_started_it_ends_then_it_ends_too() {
    let start = || Program::system("sleep").unwrap().args(["1000"]).start().unwrap();
    let child = std::thread::spawn(start).join().unwrap();
    assert_eq!(ending(&child).signal(), Some(9));
}

/// Waits for a child's end.
fn ending(child: &Child) -> ExitStatus {
    let until = Instant::now() + LONG;
    loop {
        match child.try_wait().unwrap() {
            Some(status) => return status,
            None => assert!(Instant::now() < until, "still there"),
        }
        std::thread::sleep(LOOK);
    }
}

#[test]
fn descriptors_when_not_meant_for_it_are_not_a_programs() {
    // Above those that the listing itself may open.
    let file = fs::File::open("/proc/self/stat").unwrap();
    let file = rustix::io::fcntl_dupfd_cloexec(&file, 100).unwrap();
    let left_open = rustix::io::fcntl_dupfd_cloexec(&file, 200).unwrap();
    rustix::io::fcntl_setfd(&left_open, rustix::io::FdFlags::empty()).unwrap();
    let numbers = |program: Program| -> Vec<i32> {
        let output = converse(&program.args(["/proc/self/fd"]), b"", LONG).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut numbers: Vec<i32> = text.lines().map(|line| line.parse().unwrap()).collect();
        numbers.sort_unstable();
        numbers
    };
    let system = || Program::system("ls").unwrap();
    // The fourth is the listing's own.
    assert_eq!(numbers(system()), [0, 1, 2, 3]);
    assert_eq!(numbers(system().inherit(&file)), [0, 1, 2, 3, file.as_raw_fd()]);
    // One that is not apart has what is open over exec, as any child.
    let plain = numbers(Program::at(find("ls").unwrap()));
    assert!(
        plain.contains(&left_open.as_raw_fd()) && !plain.contains(&file.as_raw_fd()),
        "{plain:?}"
    );
}

#[test]
fn signals_when_blocked_or_handled_here_are_neither_there() {
    extern "C" fn handle(_: libc::c_int) {}
    let status = std::thread::spawn(|| {
        // SAFETY: a handler that does nothing, for a signal nobody sends, and the mask of this thread alone.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGUSR2);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            libc::signal(libc::SIGURG, handle as *const () as libc::sighandler_t);
        }
        let text = read("cat", &["/proc/self/status"], "", LONG).unwrap();
        let ours = fs::read_to_string("/proc/thread-self/status").unwrap();
        (text, ours)
    });
    let (theirs, ours) = status.join().unwrap();
    let set = |text: &str, name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let bit = |signal: libc::c_int| 1_u64 << (signal - 1);
    assert_eq!(set(&theirs, "SigBlk:"), 0);
    assert_eq!(set(&theirs, "SigCgt:"), 0);
    assert_eq!(set(&theirs, "SigIgn:") & bit(libc::SIGPIPE), 0);
    // And here all is as it was.
    assert_eq!(set(&ours, "SigBlk:"), bit(libc::SIGUSR2));
    assert_ne!(set(&ours, "SigCgt:") & bit(libc::SIGURG), 0);
    assert_ne!(set(&ours, "SigIgn:") & bit(libc::SIGPIPE), 0);
}

#[test]
fn start_when_the_file_is_no_program_or_an_argument_none_then_why_and_no_child_is_left() {
    let errno = |program: Program| program.start().unwrap_err();
    assert_eq!(errno(Program::at("/dev/null")).raw_os_error(), Some(libc::EACCES));
    assert_eq!(
        errno(Program::at("/nonexistent")).raw_os_error(),
        Some(libc::ENOENT)
    );
    let program = Program::system("true").unwrap().args(["a\0b"]);
    assert_eq!(errno(program).kind(), io::ErrorKind::InvalidInput);
    let children = fs::read_to_string("/proc/thread-self/children").unwrap();
    assert_eq!(children.trim(), "");
}

#[test]
fn environment_when_a_variable_is_given_twice_then_the_last_counts_and_all_of_ours_is_there() {
    let program = Program::at(find("env").unwrap());
    let output = converse(&program.env("A", "1").env("A", "2"), b"", LONG).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let those_of_a: Vec<&str> = text.lines().filter(|line| line.starts_with("A=")).collect();
    assert_eq!(those_of_a, ["A=2"]);
    let of_one_line = |(_, value): &(String, String)| !value.contains('\n');
    for (name, value) in std::env::vars().filter(of_one_line) {
        assert!(
            text.lines().any(|line| line == format!("{name}={value}")),
            "{name}: {text}"
        );
    }
}

#[test]
fn called_when_given_is_the_name_it_knows_itself_by() {
    let program = Program::at(find("sh").unwrap())
        .called("name")
        .args(["-c", "echo $0"]);
    let output = converse(&program, b"", LONG).unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "name\n");
}

#[test]
fn descriptor_when_it_has_a_standard_ones_number_then_it_gets_another() {
    let null = OwnedFd::from(fs::File::open("/dev/null").unwrap());
    let number = null.as_raw_fd();
    assert_eq!(above(null, number).unwrap().as_raw_fd(), number);
    let null = OwnedFd::from(fs::File::open("/dev/null").unwrap());
    let moved = above(null, 300).unwrap();
    assert!(moved.as_raw_fd() >= 300);
    assert!(
        rustix::io::fcntl_getfd(&moved)
            .unwrap()
            .contains(rustix::io::FdFlags::CLOEXEC)
    );
}

#[test]
fn pipe_when_it_is_set_not_to_block_twice_then_it_does_not() {
    let (read, _write) = std::io::pipe().unwrap();
    for _ in 0..2 {
        set_nonblocking(read.as_fd()).unwrap();
        let flags = rustix::fs::fcntl_getfl(&read).unwrap();
        assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
    }
}
