//! C7: the process is killed at every system call of an ADD and of a DEL, each in turn; one DEL later nothing is left.
//!
//! Of flannel's own two at every one. With firewall rules and limits at every one that finds another world outside the process
//! than the one before it: of a run of calls that only map memory or look at files, one stands for all.

use std::collections::BTreeMap;

use crate::rig::{Answer, Call, Host, ID};

/// A runtime that kills a call need not kill what that has started: its programs go on.
const CHILDREN_LIVE: &str = "exec";
/// One that ends a whole group or cgroup does: the tracer is the first process of a namespace, and all end with it.
const CHILDREN_DIE: &str = "exec unshare --pid --fork";

/// The call under strace with more of its options.
fn traced(host: &Host, call: &Call<'_>, fate: &str, options: &str) -> Answer {
    let file = host.folder.path().join("tracer");
    let trace = host.path("trace");
    let script = format!(
        "#!/bin/sh\n{fate} strace -qq -o {trace} {options} {}\n",
        call.program.display()
    );
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    host.run(&Call {
        program: file,
        ..call.clone()
    })
}

/// System calls that leave no trace outside the process. Killed at the one behind them it leaves what it leaves killed at them.
const WITHOUT_TRACE: &[&str] = &[
    "access",
    "arch_prctl",
    "brk",
    "fcntl",
    "fstat",
    "getcwd",
    "getdents64",
    "getpid",
    "getrandom",
    "getsockname",
    "gettid",
    "lseek",
    "madvise",
    "mmap",
    "mprotect",
    "munmap",
    "newfstatat",
    "pread64",
    "prlimit64",
    "readlink",
    "readlinkat",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "sched_getaffinity",
    "set_robust_list",
    "set_tid_address",
    "sigaltstack",
    "statx",
];

/// Which of its system calls a call is killed at.
#[derive(Debug, Clone, Copy, PartialEq)]
enum At {
    /// Every one.
    Each,
    /// Every one that finds something else outside the process than the one before.
    Distinct,
    /// Where it starts and where it collects a program.
    Programs,
}

/// The system calls to kill a call at, as the name and how many of that name there have been.
fn system_calls(host: &Host, call: &Call<'_>, at: At) -> Vec<(String, usize)> {
    traced(host, call, CHILDREN_LIVE, "").ok();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut found = Vec::new();
    let mut fresh = true;
    for line in host.read("trace").lines() {
        let Some((name, arguments)) = line.split_once('(') else {
            continue;
        };
        // After `exit_group` there is nothing left to be killed.
        if matches!(name, "exit_group" | "execve") {
            continue;
        }
        let count = counts.entry(name.to_owned()).or_default();
        *count += 1;
        let wanted = match at {
            At::Each => true,
            At::Distinct => fresh,
            At::Programs => matches!(name, "clone" | "clone3" | "vfork" | "wait4" | "waitid"),
        };
        if wanted {
            found.push((name.to_owned(), *count));
        }
        let only_opens =
            name == "openat" && !arguments.contains("O_CREAT") && !arguments.contains("O_TMPFILE");
        fresh = !WITHOUT_TRACE.contains(&name) && !only_opens;
    }
    found
}

/// Kills `call` at each of its system calls, its own children dying with it every other time and going on else. Each time `ready`
/// comes before it, one `undo` after it, and then `look`.
fn kill_at_each(
    host: &Host,
    at: At,
    (call, undo): (&Call<'_>, &Call<'_>),
    ready: &dyn Fn(),
    look: &dyn Fn(&dyn Fn() -> String),
) {
    ready();
    let calls = system_calls(host, call, at);
    host.run(undo).ok();
    assert!(calls.len() > 10, "{calls:?}");
    let mut killed = 0;
    for (i, (name, count)) in calls.iter().enumerate() {
        ready();
        let fate = if i % 2 == 0 { CHILDREN_DIE } else { CHILDREN_LIVE };
        let answer = traced(
            host,
            call,
            fate,
            &format!("-e inject={name}:signal=KILL:when={count}"),
        );
        killed += usize::from(answer.status != 0);
        let died = || format!("{} killed at {name} number {count}, {fate:?}", call.verb);
        let undone = host.run(undo);
        assert_eq!(undone.status, 0, "{}: {undone:?}", died());
        look(&died);
    }
    // A retried read more or less is the kernel's business.
    assert!(killed + 5 >= calls.len(), "{killed} of {} calls", calls.len());
}

/// flannel's ADD or DEL.
fn kill_flannel(verb: &str, masquerade: bool, more: &str) {
    let mut host = Host::apart();
    host.dual_stack();
    if masquerade {
        host.subnet_env("10.244.0.0/16", "10.244.7.1/24", "", "", false);
    }
    let stdin = host.config("cbr0", more);
    let add = host.call("flannel", "ADD", stdin.clone());
    let del = host.call("flannel", "DEL", stdin);
    // What a node has that has seen containers before.
    host.run(&add).ok();
    host.run(&del).ok();
    let shared = host.nat();
    let has_rules = masquerade || !more.is_empty();
    let look = |died: &dyn Fn() -> String| {
        // The host's end of its link goes with the container's.
        assert_eq!(host.pod_links(0), Vec::<String>::new(), "{}", died());
        assert_eq!(host.reservations("cbr0"), [], "{}", died());
        assert_eq!(host.saved(), Vec::<String>::new(), "{}", died());
        assert!(!host.exists("networks/.owners"), "{}", died());
        if has_rules {
            assert_eq!(host.nat(), shared, "{}", died());
        }
    };
    let at = if has_rules { At::Distinct } else { At::Each };
    match verb {
        "ADD" => kill_at_each(&host, at, (&add, &del), &|| {}, &look),
        _ => kill_at_each(&host, at, (&del, &del), &|| drop(host.run(&add).ok()), &look),
    }
    host.assert_nothing_left_but("cbr0", &shared);
    // The next container gets an address as if nothing had happened.
    host.run(&add).ok();
    host.run(&del).ok();
    host.assert_nothing_left_but("cbr0", &shared);
}

/// ADD or DEL of a plugin after flannel in a chain, the container being there all the time.
fn kill_chained(plugin: &str, verb: &str, more: &str, look: &dyn Fn(&Host, &dyn Fn() -> String)) {
    let mut host = Host::apart();
    let result = host.flannel("ADD").ok().stdout;
    let stdin =
        format!(r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"{plugin}","prevResult":{result}{more}}}"#);
    let add = host.call(plugin, "ADD", stdin.clone());
    let del = host.call(plugin, "DEL", stdin);
    let look = |died: &dyn Fn() -> String| look(&host, died);
    let clear = || {
        if plugin == "bandwidth" {
            // What hangs on the container's link is to go with that.
            let veth = host.links().into_iter().find(|l| l.starts_with("veth")).unwrap();
            let script = format!("tc qdisc del dev {veth} root; tc qdisc del dev {veth} ingress; true");
            host.exec(&["sh", "-c", &script]);
        }
    };
    let add_anew = || {
        clear();
        host.run(&add).ok();
    };
    // What a node has that has seen ports before.
    add_anew();
    host.run(&del).ok();
    match verb {
        "ADD" => kill_at_each(&host, At::Distinct, (&add, &del), &clear, &look),
        _ => kill_at_each(&host, At::Distinct, (&del, &del), &add_anew, &look),
    }
    add_anew();
    host.run(&del).ok();
    look(&|| "after one more of both".to_owned());
    host.flannel("DEL").ok();
    assert_eq!(host.pod_links(0), Vec::<String>::new());
}

const PORTS: &str =
    r#","runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}"#;
const LIMITS: &str = r#","runtimeConfig":{"bandwidth":{"ingressRate":8000000,"ingressBurst":800000,"egressRate":16000000,"egressBurst":1600000}}"#;

/// No rule of the container's, and each of those that containers share once at most.
fn look_at_iptables(host: &Host, died: &dyn Fn() -> String) {
    let nat = host.nat();
    assert!(
        !nat.iter().any(|rule| rule.contains("CNI-DN-")),
        "{}: {nat:#?}",
        died()
    );
    let mut once = nat.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), nat.len(), "{}: {nat:#?}", died());
}

fn look_at_nft(host: &Host, died: &dyn Fn() -> String) {
    let rules = host.exec(&["nft", "list", "ruleset"]);
    assert!(!rules.contains(ID), "{}: {rules}", died());
    let jumps = rules
        .lines()
        .filter(|line| line.contains("fib daddr type local"))
        .count();
    // One each in `prerouting` and `output`.
    assert!(jumps <= 2, "{}: {rules}", died());
}

fn look_at_devices(host: &Host, died: &dyn Fn() -> String) {
    let left: Vec<String> = host
        .links()
        .into_iter()
        .filter(|link| link.starts_with("bwp"))
        .collect();
    assert_eq!(left, Vec::<String>::new(), "{}", died());
}

/// C6: each system call of an ADD fails in turn, the disk being full, memory short or a device broken. What was done
/// fails in order, not by a panic, and one DEL later nothing is left.
#[test]
fn c6_add_when_any_system_call_fails_fails_in_order_and_one_del_removes_the_rest() {
    const ERRORS: [&str; 3] = ["EIO", "ENOMEM", "ENOSPC"];
    // The standard library ends the process without them, before anything has been done.
    const LEFT_ALONE: &[&str] = &[
        "mmap",
        "munmap",
        "mprotect",
        "brk",
        "sigaltstack",
        "rt_sigaction",
        "poll",
        // Always closes, whatever it says.
        "close",
    ];
    let mut host = Host::apart();
    let stdin = host.config("cbr0", "");
    let add = host.call("flannel", "ADD", stdin.clone());
    let del = host.call("flannel", "DEL", stdin);
    let calls = calls_to_fail(&host, &add, &del, |name| !LEFT_ALONE.contains(&name));
    let mut failed = 0;
    for (i, (name, count)) in calls.iter().enumerate() {
        let error = ERRORS[i % ERRORS.len()];
        let options = format!("-e inject={name}:error={error}:when={count}");
        let answer = traced(&host, &add, CHILDREN_LIVE, &options);
        let what = || format!("ADD: {name} number {count} fails with {error}: {answer:?}");
        assert!(!answer.stderr.contains("panicked"), "{}", what());
        // 127: not even the loader got it to run.
        assert!(matches!(answer.status, 0 | 1 | 127 | -1), "{}", what());
        if answer.status == 1 && !answer.stdout.is_empty() {
            failed += 1;
            assert!(!answer.failure().1.is_empty(), "{}", what());
        }
        assert_eq!(host.run(&del).status, 0, "{}", what());
        assert_eq!(host.pod_links(0), Vec::<String>::new(), "{}", what());
        assert_eq!(host.reservations("cbr0"), [], "{}", what());
        assert_eq!(host.saved(), Vec::<String>::new(), "{}", what());
    }
    assert!(
        failed > 20,
        "{failed} of {} calls made it fail in order",
        calls.len()
    );
    host.assert_nothing_left("cbr0");
}

/// The system calls of an ADD on a host that has had a container before, those that are `meant` to fail.
fn calls_to_fail(
    host: &Host,
    add: &Call<'_>,
    del: &Call<'_>,
    meant: impl Fn(&str) -> bool,
) -> Vec<(String, usize)> {
    host.run(add).ok();
    host.run(del).ok();
    let mut calls = system_calls(host, add, At::Each);
    calls.retain(|(name, _)| meant(name));
    host.run(del).ok();
    calls
}

/// Calls that write: files and folders, and the answer itself.
const WRITING: [&str; 10] = [
    "openat",
    "write",
    "pwrite64",
    "linkat",
    "renameat2",
    "renameat",
    "mkdir",
    "mkdirat",
    "symlinkat",
    "ftruncate",
];

/// As a runtime that tries again does, without a DEL in between.
#[test]
fn add_when_any_write_fails_works_once_the_cause_is_gone() {
    const ERRORS: [&str; 5] = ["ENOSPC", "EDQUOT", "EROFS", "EIO", "ENFILE"];
    for more in [String::new(), chain()] {
        let mut host = Host::apart();
        let stdin = host.config("cbr0", &more);
        let add = host.call("flannel", "ADD", stdin.clone());
        let del = host.call("flannel", "DEL", stdin);
        let calls = calls_to_fail(&host, &add, &del, |name| WRITING.contains(&name));
        let mut failed = 0;
        for (i, (name, count)) in calls.iter().enumerate() {
            let error = ERRORS[i % ERRORS.len()];
            let options = format!("-e inject={name}:error={error}:when={count}");
            let answer = traced(&host, &add, CHILDREN_LIVE, &options);
            let what = || format!("{name} number {count} fails with {error}: {answer:?}");
            if answer.status != 0 {
                failed += 1;
                let again = host.run(&add);
                assert_eq!(again.status, 0, "{}: then {again:?}", what());
            }
            assert_eq!(host.run(&del).status, 0, "{}", what());
            assert_eq!(host.pod_links(0), Vec::<String>::new(), "{}", what());
            assert_eq!(host.reservations("cbr0"), [], "{}", what());
            assert_eq!(host.saved(), Vec::<String>::new(), "{}", what());
        }
        assert!(failed > 5, "{failed} of {} writes made it fail", calls.len());
    }
}

/// What a DEL that was cut off has left of its container's files is not taken for Go's by an ADD of the same id.
#[test]
fn del_when_killed_among_its_removals_leaves_nothing_that_an_add_takes_for_gos() {
    let mut host = Host::apart();
    let stdin = host.config("cbr0", "");
    let add = host.call("flannel", "ADD", stdin.clone());
    let del = host.call("flannel", "DEL", stdin);
    host.run(&add).ok();
    let mut calls = system_calls(&host, &del, At::Each);
    calls.retain(|(name, _)| matches!(name.as_str(), "unlinkat" | "unlink" | "renameat2" | "rmdir"));
    assert!(calls.len() >= 4, "{calls:?}");
    for (name, count) in &calls {
        host.run(&add).ok();
        traced(
            &host,
            &del,
            CHILDREN_LIVE,
            &format!("-e inject={name}:signal=KILL:when={count}"),
        );
        let what = format!("DEL killed at {name} number {count}");
        let again = host.run(&add);
        if again.status != 0 {
            // Its reservation was still there: a runtime calls DEL before it uses an id again.
            host.run(&del).ok();
            host.run(&add).ok();
        }
        assert!(!host.exists(&format!("flannel/.v2/{ID}/:legacy")), "{what}");
        host.run(&del).ok();
        assert_eq!(host.saved(), Vec::<String>::new(), "{what}");
    }
}

#[test]
fn c7_add_when_killed_at_every_system_call_leaves_nothing_after_one_del() {
    kill_flannel("ADD", false, "");
}

#[test]
fn c7_del_when_killed_at_every_system_call_leaves_nothing_after_one_del() {
    kill_flannel("DEL", false, "");
}

#[test]
fn c7_masquerading_add_when_killed_at_every_distinct_call_leaves_nothing_after_one_del() {
    kill_flannel("ADD", true, "");
}

#[test]
fn c7_masquerading_del_when_killed_at_every_distinct_call_leaves_nothing_after_one_del() {
    kill_flannel("DEL", true, "");
}

/// The plugins after flannel in one call with it.
fn chain() -> String {
    let arguments = r#","runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}],"bandwidth":{"ingressRate":8000000,"ingressBurst":800000,"egressRate":16000000,"egressBurst":1600000}}"#;
    let plugins = r#","chain":[{"type":"portmap","capabilities":{"portMappings":true}},{"type":"bandwidth","capabilities":{"bandwidth":true}}]"#;
    format!("{arguments}{plugins}")
}

#[test]
fn c7_chain_add_when_killed_at_every_distinct_call_leaves_nothing_after_one_del() {
    kill_flannel("ADD", false, &chain());
}

#[test]
fn c7_chain_del_when_killed_at_every_distinct_call_leaves_nothing_after_one_del() {
    kill_flannel("DEL", false, &chain());
}

#[test]
fn c7_ports_add_when_killed_at_every_distinct_call_leaves_nothing_after_one_del() {
    kill_chained("portmap", "ADD", PORTS, &look_at_iptables);
}

#[test]
fn c7_ports_del_when_killed_at_every_distinct_call_leaves_nothing_after_one_del() {
    kill_chained("portmap", "DEL", PORTS, &look_at_iptables);
}

#[test]
fn c7_nftables_ports_add_when_killed_at_every_distinct_call_leaves_nothing_after_one_del() {
    let more = format!(r#"{PORTS},"backend":"nftables""#);
    kill_chained("portmap", "ADD", &more, &look_at_nft);
}

#[test]
fn c7_nftables_ports_del_when_killed_at_every_distinct_call_leaves_nothing_after_one_del() {
    let more = format!(r#"{PORTS},"backend":"nftables""#);
    kill_chained("portmap", "DEL", &more, &look_at_nft);
}

#[test]
fn c7_first_ports_when_killed_between_programs_leave_nothing_and_shared_rules_come_once() {
    let mut host = Host::apart();
    let result = host.flannel("ADD").ok().stdout;
    let stdin =
        format!(r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"portmap","prevResult":{result}{PORTS}}}"#);
    let add = host.call("portmap", "ADD", stdin.clone());
    let del = host.call("portmap", "DEL", stdin);
    let forget_all = || drop(host.exec(&["sh", "-c", "printf '*nat\\nCOMMIT\\n' | iptables-restore"]));
    let look = |died: &dyn Fn() -> String| {
        look_at_iptables(&host, died);
        host.run(&add).ok();
        let nat = host.nat();
        for shared in [
            "-A PREROUTING",
            "-A OUTPUT",
            "-A POSTROUTING",
            "-A CNI-HOSTPORT-MASQ",
        ] {
            let count = nat.iter().filter(|rule| rule.starts_with(shared)).count();
            assert_eq!(count, 1, "{}: {shared}: {nat:#?}", died());
        }
        host.run(&del).ok();
    };
    kill_at_each(&host, At::Programs, (&add, &del), &forget_all, &look);
}

#[test]
fn c7_limits_add_when_killed_at_every_distinct_call_leaves_nothing_after_one_del() {
    kill_chained("bandwidth", "ADD", LIMITS, &look_at_devices);
}

#[test]
fn c7_limits_del_when_killed_at_every_distinct_call_leaves_nothing_after_one_del() {
    kill_chained("bandwidth", "DEL", LIMITS, &look_at_devices);
}
