//! Every file of the plugins, and what may be in its place: nothing, less than was written, something else than a file, a disk that
//! takes nothing. No call hangs, follows a link or says more than a line; the next one works as if nothing had been.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    dead_code,
    reason = "a test that cannot go on fails"
)]

#[path = "plugins/firewall_lock.rs"]
mod firewall_lock;
#[path = "plugins/rig.rs"]
mod rig;

use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::Command;

use rig::{Answer, Host, ID};

/// How long a call may take; none takes a hundredth of it.
const LIMIT: &str = "timeout --signal=KILL 20";

/// A call of flannel's plugin with a port and a limit, so that every file there can be is made; -1 is a call that hung.
fn call(host: &mut Host, verb: &'static str) -> Answer {
    let more = r#","runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]},"chain":[{"type":"portmap","capabilities":{"portMappings":true}}]"#;
    let stdin = host.config("cbr0", more);
    let mut call = host.call("flannel", verb, stdin);
    call.program = host.script(
        "bounded/flannel",
        &format!("exec {LIMIT} {}", call.program.display()),
    );
    let answer = host.run(&call);
    assert!(!answer.stderr.contains("panicked"), "{verb}: {answer:?}");
    assert!(
        !matches!(answer.status, 124 | 137 | -1),
        "{verb} hangs: {answer:?}"
    );
    assert!(
        answer.stderr.lines().count() <= 2,
        "{verb} says too much: {answer:?}"
    );
    assert!(
        answer.stderr.chars().all(|c| c == '\n' || !c.is_control()),
        "{verb}: {answer:?}"
    );
    answer
}

/// Every file a container's ADD makes or reads, below the host's folder.
const FILES: [&str; 11] = [
    "subnet.env",
    "subnet.env.swept",
    "flannel/ID",
    "flannel/.v2/ID",
    "flannel/.v2/ID/eth0",
    "flannel/.v2/ID/eth0:chain",
    "networks/cbr0/10.244.7.2",
    "networks/cbr0/last_reserved_ip.0",
    "networks/cbr0/lock",
    "networks/.owners/cbr0/ID:eth0",
    "run/cni-firewall.lock",
];

/// What can be in a file's place.
const STATES: [&str; 10] = [
    "absent",
    "empty",
    "truncated",
    "garbage",
    "folder",
    "full folder",
    "fifo",
    "symlink",
    "zero",
    "socket",
];

fn put(host: &Host, file: &str, state: &str) {
    let path = host.path(file);
    let found = Path::new(&path).symlink_metadata().unwrap();
    let content = match (found.is_symlink(), found.is_dir()) {
        (true, _) => std::fs::read_link(&path).unwrap().into_os_string().into_vec(),
        (_, true) => b"a folder".to_vec(),
        _ => std::fs::read(&path).unwrap(),
    };
    match found.is_dir() {
        true => std::fs::remove_dir_all(&path).unwrap(),
        false => std::fs::remove_file(&path).unwrap(),
    }
    match state {
        "absent" => {}
        "empty" => std::fs::write(&path, "").unwrap(),
        "truncated" => std::fs::write(&path, &content[..content.len() / 2]).unwrap(),
        "garbage" => std::fs::write(&path, b"\xff\xfe{]\x1b[31m\0not what was here\r\n").unwrap(),
        "folder" => std::fs::create_dir(&path).unwrap(),
        "full folder" => {
            std::fs::create_dir(&path).unwrap();
            std::fs::write(format!("{path}/somebodys"), "").unwrap();
        }
        "fifo" => run(Command::new("mkfifo").arg(&path)),
        "symlink" => {
            std::fs::write(host.path("target"), "untouched").unwrap();
            std::os::unix::fs::symlink(host.path("target"), &path).unwrap();
        }
        "zero" => run(Command::new("mknod").args([path.as_str(), "c", "1", "5"])),
        "socket" => drop(std::os::unix::net::UnixListener::bind(&path).unwrap()),
        other => panic!("{other}"),
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// What is left of a container, but for what was moved aside.
fn left(host: &Host) -> Vec<String> {
    let saved = host.saved();
    let mut left = saved.clone();
    let holds_aside = |path: &String| {
        saved
            .iter()
            .any(|other| other.starts_with(&format!("{path}/.aside-")))
    };
    left.retain(|path| !path.contains("/.aside-") && !path.ends_with("/.v2") && !holds_aside(path));
    let names = std::fs::read_dir(host.path("networks/cbr0"))
        .into_iter()
        .flatten();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    left.extend(names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()));
    left.extend(host.pod_links(0));
    left.extend(host.nat().into_iter().filter(|rule| rule.contains(ID)));
    left
}

#[test]
fn file_when_something_else_is_in_its_place_stops_no_del_and_not_the_next_add() {
    for file in FILES {
        // In a folder of ours that is one, every file is of an attachment.
        let states = STATES
            .into_iter()
            .filter(|state| file != "flannel/.v2/ID" || *state != "full folder");
        for state in states {
            let what = format!("{file}: {state}");
            let mut host = Host::apart();
            call(&mut host, "ADD").ok();
            let there = file.replace("ID", ID);
            put(&host, &there, state);
            let answer = call(&mut host, "DEL");
            assert_eq!(answer.status, 0, "{what}: {answer:?}");
            // A reservation that names nobody any more is nobody's: the next who comes to it takes it.
            let mut left = left(&host);
            left.retain(|it| it != "10.244.7.2" || file != "networks/cbr0/10.244.7.2");
            assert_eq!(left, Vec::<String>::new(), "{what}");
            if file == "subnet.env" {
                let (code, msg) = call(&mut host, "ADD").failure();
                assert!(
                    code == 999 && msg.contains("'subnet.env' file: "),
                    "{what}: {msg}"
                );
                assert!(!msg.contains('\u{1b}') && msg.len() < 400, "{what}: {msg}");
                let path = host.path(file);
                let _ = std::fs::remove_dir_all(&path);
                let _ = std::fs::remove_file(&path);
                host.subnet_env("10.244.0.0/16", "10.244.7.1/24", "", "", true);
            }
            let answer = call(&mut host, "ADD");
            assert_eq!(answer.status, 0, "{what}: {answer:?}");
            let answer = call(&mut host, "DEL");
            assert_eq!(answer.status, 0, "{what}: {answer:?}");
            if state == "symlink" {
                assert_eq!(host.read("target"), "untouched", "{what}");
            }
        }
    }
}

/// While the containers live: what is broken costs none of them its address.
#[test]
fn file_when_something_else_is_in_its_place_under_a_living_container_gives_its_address_to_nobody() {
    for file in FILES
        .into_iter()
        .filter(|file| !file.contains("10.244.7.2") && !file.contains("subnet.env"))
    {
        for state in STATES {
            let what = format!("{file}: {state}");
            let mut host = Host::apart();
            call(&mut host, "ADD").ok();
            put(&host, &file.replace("ID", ID), state);
            let stdin = host.config("cbr0", "");
            let mut other = host.call("flannel", "ADD", stdin);
            other.container = "other";
            other.netns = host.pod(1);
            other.program = host.script(
                "bounded/other",
                &format!("exec {LIMIT} {}", other.program.display()),
            );
            let answer = host.run(&other);
            assert_eq!(answer.status, 0, "{what}: {answer:?}");
            assert_ne!(answer.addresses(), ["10.244.7.2/24"], "{what}");
        }
    }
}

#[test]
fn namespace_when_it_is_no_namespace_is_named_and_waited_for_by_nobody() {
    let mut host = Host::new();
    for state in ["fifo", "zero", "folder", "socket", "empty"] {
        std::fs::write(host.path("netns"), "").unwrap();
        put(&host, "netns", state);
        for verb in ["ADD", "CHECK", "DEL"] {
            let stdin = host.config("cbr0", "");
            let mut call = host.call("flannel", verb, stdin);
            call.netns = host.path("netns");
            call.program = host.script(
                "bounded/flannel",
                &format!("exec {LIMIT} {}", call.program.display()),
            );
            let answer = host.run(&call);
            match verb {
                "ADD" => {
                    let (_, msg) = answer.failure();
                    assert!(msg.contains("netns"), "{state}: {msg}");
                }
                _ => assert!(answer.status <= 1, "{verb} {state}: {answer:?}"),
            }
        }
        assert_eq!(left(&host), Vec::<String>::new(), "{state}");
        let _ = std::fs::remove_dir_all(host.path("netns"));
        let _ = std::fs::remove_file(host.path("netns"));
    }
}

/// A file system of its own for a folder; it goes with the test.
struct Mounted(String);

impl Mounted {
    fn new(path: String, options: &str) -> Mounted {
        std::fs::create_dir_all(&path).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "none", &path]));
        Mounted(path)
    }

    fn remount(&self, options: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,{options}"), &self.0]));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy", &self.0]).output();
    }
}

#[test]
fn disk_when_it_takes_nothing_fails_an_add_whole_and_hinders_no_del_that_can_be() {
    for folder in ["flannel", "networks"] {
        for shortage in ["size", "inodes", "read-only"] {
            let what = format!("{folder}: {shortage}");
            let mut host = Host::apart();
            let disk = Mounted::new(host.path(folder), "size=1m,nr_inodes=100");
            call(&mut host, "ADD").ok();
            call(&mut host, "DEL").ok();
            let fill = |host: &Host| match shortage {
                "size" => {
                    let full = format!("{}/filler", host.path(folder));
                    let _ = Command::new("dd")
                        .args(["if=/dev/zero", &format!("of={full}"), "bs=4k"])
                        .output();
                }
                "inodes" => {
                    std::fs::create_dir(host.path(&format!("{folder}/.filler"))).unwrap();
                    let many = (0..200).map(|i| host.path(&format!("{folder}/.filler/{i}")));
                    assert!(
                        many.into_iter().any(|path| std::fs::write(path, "").is_err()),
                        "{what}"
                    );
                }
                _ => disk.remount("ro"),
            };
            let clear = |host: &Host| {
                if shortage == "read-only" {
                    disk.remount("rw");
                }
                let _ = std::fs::remove_file(host.path(&format!("{folder}/filler")));
                let _ = std::fs::remove_dir_all(host.path(&format!("{folder}/.filler")));
            };
            fill(&host);
            let answer = call(&mut host, "ADD");
            let (_, msg) = answer.failure();
            let reason = ["no space left on device", "read-only file system"];
            assert!(reason.iter().any(|reason| msg.contains(reason)), "{what}: {msg}");
            clear(&host);
            // Without a DEL in between, as a runtime that tries again.
            call(&mut host, "ADD").ok();
            fill(&host);
            let answer = call(&mut host, "DEL");
            assert_eq!(
                answer.status,
                i32::from(shortage == "read-only"),
                "{what}: {answer:?}"
            );
            clear(&host);
            call(&mut host, "DEL").ok();
            assert_eq!(left(&host), Vec::<String>::new(), "{what}");
        }
    }
}
