//! C7: the process is killed at every system call of an ADD and of a DEL, each in turn; one DEL later nothing is left.

use std::collections::BTreeMap;

use crate::rig::{Answer, Call, Host};

/// The call under strace with more of its options.
fn traced(host: &Host, call: &Call<'_>, options: &str) -> Answer {
    let file = host.folder.path().join("tracer");
    let trace = host.path("trace");
    let script = format!(
        "#!/bin/sh\nexec strace -qq -o {trace} {options} {}\n",
        call.program.display()
    );
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    host.run(&Call {
        program: file,
        ..call.clone()
    })
}

/// Every system call of a call, as its name and how many of that name there have been.
fn system_calls(host: &Host, call: &Call<'_>) -> Vec<(String, usize)> {
    traced(host, call, "").ok();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let trace = host.read("trace");
    // After `exit_group` there is nothing left to be killed.
    let names = trace
        .lines()
        .filter_map(|line| line.split_once('('))
        .map(|(name, _)| name.to_owned());
    let names = names.filter(|name| name != "exit_group" && name != "execve");
    names
        .map(|name| {
            let count = counts.entry(name.clone()).or_default();
            *count += 1;
            (name, *count)
        })
        .collect()
}

fn every_call(masquerade: bool, more: &str, skip: usize) {
    let mut host = Host::new();
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
    let of_add = system_calls(&host, &add);
    let of_del = system_calls(&host, &del);
    for (verb, call, calls) in [("ADD", &add, of_add), ("DEL", &del, of_del)] {
        assert!(calls.len() > 100, "{calls:?}");
        let mut killed = 0;
        for (name, count) in calls.iter().skip(skip) {
            if verb == "DEL" {
                host.run(&add).ok();
            }
            let answer = traced(&host, call, &format!("-e inject={name}:signal=KILL:when={count}"));
            killed += usize::from(answer.status != 0);
            let died = || format!("{verb} killed at {name} number {count}");
            assert_eq!(host.run(&del).status, 0, "{}", died());
            assert_eq!(host.pod_links(0), Vec::<String>::new(), "{}", died());
            host.assert_nothing_left_but("cbr0", &shared);
        }
        // A retried read more or less is the kernel's business.
        assert!(
            killed + 5 >= calls.len() - skip,
            "{killed} of {} calls",
            calls.len() - skip
        );
    }
    // The next container gets an address as if nothing had happened.
    host.run(&add).ok();
    host.run(&del).ok();
    host.assert_nothing_left_but("cbr0", &shared);
}

#[test]
fn c7_add_and_del_when_killed_at_every_system_call_leave_nothing_after_one_del() {
    every_call(false, "", 0);
}

#[test]
fn c7_masquerade_when_killed_at_every_system_call_leaves_nothing_after_one_del() {
    // Those before are the same as in the other test.
    every_call(true, "", 80);
}

#[test]
fn c7_chain_when_killed_at_every_system_call_leaves_nothing_after_one_del() {
    let arguments = r#","runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}],"bandwidth":{"ingressRate":8000000,"ingressBurst":800000,"egressRate":16000000,"egressBurst":1600000}}"#;
    let chain = r#","chain":[{"type":"portmap","capabilities":{"portMappings":true}},{"type":"bandwidth","capabilities":{"bandwidth":true}}]"#;
    // Those before are the same as in the first test.
    every_call(false, &format!("{arguments}{chain}"), 80);
}
