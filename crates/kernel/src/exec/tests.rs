use super::*;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

fn shell(script: &str, stdin: &[u8], after: Duration) -> Result<Output, ExecError> {
    converse(system("sh").unwrap().args(["-c", script]), stdin, after)
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
    let error = converse(&mut Command::new("/nonexistent/x"), b"", LONG).unwrap_err();
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
    let pid = Pid::from_raw(child.trim().parse().unwrap()).unwrap();
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
    let mut command = system("sh").unwrap();
    let mut running = Running::start(command.args(["-c", "cat; exit 5"]), Instant::now() + LONG).unwrap();
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
    let start = || system("sleep").unwrap().arg("1000").spawn().unwrap();
    let mut child = std::thread::spawn(start).join().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

#[test]
fn descriptors_when_not_meant_for_it_are_not_a_programs() {
    let file = OwnedFd::from(fs::File::open("/proc/self/stat").unwrap());
    let numbers = |command: &mut Command| -> Vec<i32> {
        let output = converse(command.arg("/proc/self/fd"), b"", LONG).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    };
    // The fourth is the listing's own.
    let plain = numbers(&mut system("ls").unwrap());
    assert_eq!(plain.len(), 4, "{plain:?}");
    assert!(plain.iter().all(|n| *n <= 3), "{plain:?}");
    let mut command = system("ls").unwrap();
    inherit(&mut command, &file);
    let number = file.as_raw_fd();
    assert!(number <= 3 || numbers(&mut command).contains(&number));
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
