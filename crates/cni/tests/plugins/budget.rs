//! C15: an ADD and a DEL of a single stack without masquerading are one program and no other; a port costs two.
//!
//! Times are measured by `cargo xtask bench cni`; counts do not depend on the machine.

use crate::rig::{Call, Host};

/// Programs executed by a call, its own included, and processes or threads started by it.
fn count(host: &Host, call: &Call<'_>) -> (usize, usize) {
    let (file, trace) = (host.path("counter"), host.path("trace"));
    let script = format!(
        "#!/bin/sh\nexec strace -f -qq -e trace=execve,execveat,clone,clone3,fork,vfork -o {trace} {}\n",
        call.program.display()
    );
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    host.run(&Call {
        program: file.into(),
        ..call.clone()
    })
    .ok();
    let trace = host.read("trace");
    let of = |names: [&str; 2]| {
        let calls = trace.lines().filter(|line| !line.contains("resumed"));
        let calls = calls.filter(|line| names.iter().any(|name| line.contains(&format!(" {name}"))));
        calls.filter(|line| !line.contains("ENOENT")).count()
    };
    (of(["execve(", "execveat("]), of(["clone", "vfork("]))
}

#[test]
fn c15_add_and_del_when_nothing_is_masqueraded_start_no_other_program() {
    let mut host = Host::new();
    // Not the first on the node, as nearly all are.
    host.flannel("ADD").ok();
    host.flannel("DEL").ok();
    for families in ["v4", "dual"] {
        if families == "dual" {
            host.dual_stack();
        }
        for verb in ["ADD", "DEL"] {
            let stdin = host.config("cbr0", "");
            let call = host.call("flannel", verb, stdin);
            assert_eq!(count(&host, &call), (1, 0), "{families} {verb}");
        }
    }
    host.assert_nothing_left("cbr0");
}

#[test]
fn c15_portmap_when_a_port_is_mapped_runs_one_firewall_program_each_way() {
    let mut host = Host::new();
    let result = host.flannel("ADD").ok().stdout;
    let port = r#"{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}"#;
    let stdin = format!(
        r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"portmap","prevResult":{result},"runtimeConfig":{port}}}"#
    );
    let [add, del] = ["ADD", "DEL"].map(|verb| host.call("portmap", verb, stdin.clone()));
    // The first ever makes the chains that all share.
    host.run(&add).ok();
    host.run(&del).ok();
    assert_eq!(count(&host, &add).0, 2, "itself and iptables-restore");
    assert_eq!(count(&host, &del).0, 2, "itself and iptables-restore");
}

#[test]
fn c15_portmap_del_when_no_port_is_recorded_runs_no_program_and_waits_for_nobody() {
    let mut host = Host::apart();
    let result = host.flannel("ADD").ok().stdout;
    let stdin = format!(r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"portmap","prevResult":{result}}}"#);
    let del = host.call("portmap", "DEL", stdin);
    // The old iptables in use, which keeps its rules elsewhere.
    host.exec(&["iptables-legacy", "-t", "nat", "-N", "SOMEBODYS"]);
    let _held = kernel::lock::Lock::wait(
        std::path::Path::new(&host.path("run/cni-firewall.lock")),
        std::time::Instant::now() + std::time::Duration::from_secs(60),
    )
    .unwrap();
    let started = std::time::Instant::now();
    assert_eq!(count(&host, &del).0, 1, "itself");
    assert!(started.elapsed() < std::time::Duration::from_secs(30));
}
