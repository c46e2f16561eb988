//! The lab itself, without flannel: what it builds stands, and what it takes down is gone.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use lab::pod::wire_by_hand;
use lab::{Families, Lab, LabError, Spec};

fn up(name: &str, hosts: usize) -> Lab {
    let name = format!("{name}{}", std::process::id() % 100_000);
    Lab::up(Spec::new(&name, hosts), Path::new("/usr/bin"), Arc::default()).unwrap()
}

/// Everything on this machine that carries the lab's name.
fn traces(name: &str) -> Vec<String> {
    let mut traces = Vec::new();
    let spaces = std::fs::read_dir("/run/netns").unwrap();
    traces.extend(
        spaces
            .filter_map(|e| e.unwrap().file_name().into_string().ok())
            .filter(|n| n.contains(name)),
    );
    if lab::layout::directory(name).exists() {
        traces.push("directory".to_owned());
    }
    let mark = format!("FLANNEL_LAB={name}");
    for pid in lab::process::all() {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if environment.split(|b| *b == 0).any(|v| v == mark.as_bytes())
            && lab::process::stat(pid).is_some_and(|s| s.state != 'Z')
        {
            traces.push(format!("process {pid}"));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    traces.extend(mounts.lines().filter(|l| l.contains(name)).map(str::to_owned));
    traces
}

#[test]
fn hosts_reach_each_other_and_nothing_is_left_when_the_lab_goes() {
    let start = Instant::now();
    let lab = up("m", 3);
    let took = start.elapsed();
    let name = lab.spec.name.clone();
    for family in [4, 6] {
        let address = lab.spec.host_address(3, family).to_string();
        let echo = lab
            .host_end(1)
            .ping(&["-c", "2", "-i", "0.01", &address])
            .unwrap()
            .unwrap();
        assert_eq!(echo.received, 2);
    }
    assert_eq!(lab.host(2).run(&["hostname"]).unwrap(), "h2\n");
    assert_ne!(
        lab.host(1).network_id().unwrap(),
        lab.host(2).network_id().unwrap()
    );
    lab.host(1).write("/run/flannel/x", "1").unwrap();
    assert!(lab.host(1).has("/run/flannel/x") && !lab.host(2).has("/run/flannel/x"));
    assert!(!Path::new("/run/flannel/x").exists());
    for directory in ["/var/lib/cni", "/var/lib/flannel", "/etc/cni/net.d"] {
        assert_eq!(
            lab.host(1).run(&["ls", "-A", directory]).unwrap(),
            "",
            "{directory} is private and empty"
        );
    }
    let sleeper = lab.host(1).spawn("sleeper", &["sleep", "1000"]).unwrap();
    // One that changed its environment and session, but stays in the network namespace.
    let hidden = lab
        .host(2)
        .shell("setsid env -i sleep 1001 >/dev/null 2>&1 & echo $!")
        .unwrap();
    assert!(traces(&name).len() >= 4 + 1 + 4);
    drop(lab);
    assert_eq!(traces(&name), Vec::<String>::new());
    assert!(!sleeper.record().alive());
    let hidden = lab::process::stat(hidden.trim().parse().unwrap());
    assert!(hidden.is_none_or(|s| s.state == 'Z'), "{hidden:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(!lab::topology::remove(&name).unwrap(), "down again finds nothing");
}

#[test]
fn panic_takes_the_lab_down() {
    let name = format!("p{}", std::process::id() % 100_000);
    let result = std::panic::catch_unwind(|| {
        let _lab = up("p", 2);
        panic!("a test that fails");
    });
    assert!(result.is_err());
    assert_eq!(traces(&name), Vec::<String>::new());
}

#[test]
fn interrupted_build_leaves_nothing() {
    let name = format!("i{}", std::process::id() % 100_000);
    let interrupt = Arc::new(AtomicBool::new(true));
    let error = Lab::up(Spec::new(&name, 2), Path::new("/usr/bin"), interrupt).unwrap_err();
    assert!(matches!(error, LabError::Interrupted));
    assert_eq!(traces(&name), Vec::<String>::new());
}

#[test]
fn second_lab_of_a_name_is_refused_and_the_first_stays() {
    let lab = up("s", 1);
    let error = Lab::up(lab.spec.clone(), Path::new("/usr/bin"), Arc::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("lab down --name"), "{error}");
    let found = Lab::load(&lab.spec.name).unwrap();
    assert_eq!(found.host(1).run(&["hostname"]).unwrap(), "h1\n");
    assert!(found.find("h2").unwrap_err().to_string().contains("h1"));
    drop(found);
    assert!(
        lab.host(1).run(&["true"]).is_ok(),
        "a lab that was only looked up does not go with the looker"
    );
}

#[test]
fn matrix_finds_full_size_packets_and_the_path_that_cannot_carry_them() {
    let mut lab = up("x", 2);
    for host in [1, 2] {
        let subnet = format!("10.9.{host}.0/24").parse().unwrap();
        let pod = wire_by_hand(lab.host(host), host, "p1", subnet, 1500).unwrap();
        lab.state.pods.push(pod);
        let other = 3 - host;
        let via = lab.spec.host4(other).to_string();
        lab.host(host)
            .ip(&["route", "add", &format!("10.9.{other}.0/24"), "via", &via])
            .unwrap();
    }
    let matrix = lab.matrix().unwrap();
    assert!(matrix.good(), "{:?}", matrix.bad());
    assert_eq!(matrix.cells.len(), 2 + 4);
    assert_eq!(matrix.cells[0].largest, Some(1500));
    let speed = lab.speeds(Duration::from_millis(200)).unwrap();
    assert_eq!(speed.len(), 3);
    assert!(
        speed.iter().all(|s| s.gbit_s > 0.01 && s.rtt_ms.is_some()),
        "{speed:?}"
    );

    lab.host(1)
        .ip(&[
            "route",
            "change",
            "10.9.2.0/24",
            "via",
            &lab.spec.host4(2).to_string(),
            "mtu",
            "1400",
        ])
        .unwrap();
    let matrix = lab.matrix().unwrap();
    assert!(!matrix.good());
    let cell = matrix.cells.iter().find(|c| c.from == "h1-p1").unwrap();
    assert_eq!((cell.reachable, cell.largest), (true, Some(1400)));

    lab.cut(2).unwrap();
    let echo = lab
        .host_end(1)
        .ping(&["-c", "1", "-W", "1", &lab.spec.host4(2).to_string()])
        .unwrap()
        .unwrap();
    assert_eq!(echo.received, 0);
    lab.heal(2).unwrap();
}

#[test]
fn routed_lab_has_two_segments_and_a_way_between() {
    let name = format!("r{}", std::process::id() % 100_000);
    let spec = Spec {
        routed: true,
        families: Families::Both,
        ..Spec::new(&name, 2)
    };
    let lab = Lab::up(spec, Path::new("/usr/bin"), Arc::default()).unwrap();
    for family in [4, 6] {
        let address = lab.spec.host_address(2, family).to_string();
        let echo = lab
            .host_end(1)
            .ping(&["-c", "2", "-i", "0.01", "-W", "2", &address])
            .unwrap()
            .unwrap();
        assert!(echo.received > 0, "{address}");
        let get = lab.host(1).ip(&["route", "get", &address]).unwrap();
        assert!(get.contains(" via "), "{get}");
    }
}
