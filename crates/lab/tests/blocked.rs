//! What a daemon must not be held up by, and what it must not touch: a disk that hangs, and another daemon's device.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::flannel::config;
use lab::process::Process;
use lab::rig::{Rig, Wish};
use lab::witness::{link, picture};
use lab::{Families, Lab};
use rustix::process::Signal;
use serde_json::json;

const SECOND_ENV: &str = "/run/flannel/second.env";

/// A daemon of another network that has the same VNI, and so the same device.
fn second(lab: &Lab) -> Process {
    let endpoint = lab.store().unwrap().endpoint.clone();
    let flags = [
        "flanneld",
        "--etcd-endpoints",
        &endpoint,
        "--etcd-prefix=/second/network",
        "--iface=eth0",
        "--subnet-file=/run/flannel/second.env",
    ];
    lab.host(1).spawn("second", &flags).unwrap()
}

#[test]
fn second_daemon_for_one_device_waits_says_whose_it_is_and_takes_over_when_that_one_is_killed() {
    let mut rig = Rig::start(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(2)).unwrap();
    rig.wait_for_health().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let before = picture(rig.lab.host(1)).unwrap();
    let first = rig.daemons[0].pid();
    let mut other = config(Families::V4, json!({ "Type": "vxlan" }));
    other["Network"] = json!("10.99.0.0/16");
    rig.lab.put("/second/network/config", &other.to_string()).unwrap();
    let second = second(&rig.lab);
    let reason = format!(
        "device flannel.1 is kept by flanneld pid {first} (subnet file /run/flannel/subnet.env, version "
    );
    let said = |lab: &Lab| {
        let ask = format!("flannelctl status --socket {SECOND_ENV}.sock; true");
        lab.host(1).run(&["sh", "-c", &ask]).unwrap_or_default()
    };
    rig.wait("the second's reason to wait", 20, |rig| {
        let said = said(&rig.lab);
        Ok((!said.contains(&reason)).then(|| format!("{said}; {}", second.log())))
    })
    .unwrap();
    // A reload leaves no gap through which the second could slip.
    for _ in 0..3 {
        rig.daemons[0].record().signal(Signal::HUP);
        std::thread::sleep(Duration::from_secs(2));
        rig.wait_for_health().unwrap();
    }
    assert!(said(&rig.lab).contains(&reason), "{}", said(&rig.lab));
    assert_eq!(
        picture(rig.lab.host(1)).unwrap(),
        before,
        "no entry of the first is touched"
    );
    assert!(!rig.lab.host(1).has(SECOND_ENV), "it has no subnet");
    let told = second.log().matches("waiting: device").count();
    assert_eq!(told, 1, "{}", second.log());

    let killed = Instant::now();
    rig.daemons[0].kill();
    rig.wait("the second at work", 20, |rig| {
        Ok((!rig.lab.host(1).has(SECOND_ENV)).then(|| second.log()))
    })
    .unwrap();
    let after = killed.elapsed();
    assert!(after < Duration::from_secs(5), "{after:?}");
    let addresses = rig.lab.host(1).ip(&["addr", "show", "flannel.1"]).unwrap();
    assert!(addresses.contains("inet 10.99."), "{addresses}");
}

#[test]
fn device_of_former_times_is_removed_and_let_go_so_that_another_daemon_may_have_it() {
    let rig = Rig::start(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(1)).unwrap();
    rig.wait_for_health().unwrap();
    let locks = |lab: &Lab| lab.host(1).run(&["ls", "/run/flannel"]).unwrap();
    assert!(locks(&rig.lab).contains("-flannel.1.lock"), "{}", locks(&rig.lab));
    rig.lab
        .put(
            lab::store::CONFIG_KEY,
            &config(Families::V4, json!({ "Type": "vxlan", "VNI": 2 })).to_string(),
        )
        .unwrap();
    rig.daemons[0].record().signal(Signal::HUP);
    rig.wait("flannel.2 for flannel.1", 20, |rig| {
        let there = |name| Ok::<_, lab::LabError>(link(rig.lab.host(1), name)?.is_some());
        let done =
            there("flannel.2")? && !there("flannel.1")? && !locks(&rig.lab).contains("-flannel.1.lock");
        Ok((!done).then(|| format!("{}; {}", locks(&rig.lab), rig.daemons[0].log())))
    })
    .unwrap();
    let other = config(Families::V4, json!({ "Type": "vxlan" }));
    let other = other.to_string().replace("10.244.", "10.99.");
    rig.lab.put("/second/network/config", &other).unwrap();
    let second = second(&rig.lab);
    rig.wait("the second at work", 20, |rig| {
        Ok((!rig.lab.host(1).has(SECOND_ENV)).then(|| second.log()))
    })
    .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let before = picture(rig.lab.host(1)).unwrap();
    // Neither an audit by hand nor a reload makes the first take it for its own again.
    rig.lab.host(1).run(&["flannelctl", "plan"]).unwrap();
    rig.daemons[0].record().signal(Signal::HUP);
    std::thread::sleep(Duration::from_secs(4));
    rig.wait_for_health().unwrap();
    assert_eq!(
        picture(rig.lab.host(1)).unwrap(),
        before,
        "{}",
        rig.daemons[0].log()
    );
}

/// The state directory on a file system that can be frozen: whatever writes there hangs.
struct Freezer {
    freeze: Command,
    thaw: Command,
    unmount: Command,
}

impl Freezer {
    fn put_under(lab: &Lab) -> Freezer {
        let host = lab.host(1);
        host.shell(
            "mkdir -p /var/lib/flannel && truncate -s 16M /run/state.img && mkfs.ext4 -q /run/state.img &&
             mount -o loop /run/state.img /var/lib/flannel",
        )
        .unwrap();
        Freezer {
            freeze: host.command(&["fsfreeze", "-f", "/var/lib/flannel"]),
            thaw: host.command(&["fsfreeze", "-u", "/var/lib/flannel"]),
            unmount: host.command(&["umount", "-l", "/var/lib/flannel"]),
        }
    }

    fn freeze(&mut self) {
        assert!(self.freeze.status().unwrap().success());
    }

    fn thaw(&mut self) {
        let _ = self.thaw.stderr(Stdio::null()).status();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        // Whatever hangs could not be killed.
        self.thaw();
        let _ = self.unmount.status();
    }
}

#[test]
fn state_directory_that_hangs_delays_neither_repair_nor_probes_nor_the_lease_nor_the_end() {
    let wish = Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(2);
    let mut rig = Rig::start(&wish).unwrap();
    rig.daemons[0].stop(Duration::from_secs(20)).unwrap();
    let mut freezer = Freezer::put_under(&rig.lab);
    freezer.freeze();
    // It starts without its past, and joins.
    rig.restart(1, &["--healthz-port=8081"]).unwrap();
    rig.wait_for_health().unwrap();
    let probe = |lab: &Lab| {
        let ask = "exec 3<>/dev/tcp/127.0.0.1/8081; printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3; timeout 2 cat <&3";
        lab.host(1).run(&["bash", "-c", ask])
    };
    rig.wait("a word about the disk", 20, |rig| {
        let said = rig.daemons[0].log();
        let is_said = said.contains("the state directory does not answer since");
        Ok((!is_said).then_some(said))
    })
    .unwrap();
    let status = rig.lab.host(1).run(&["flannelctl", "status", "--json"]).unwrap();
    assert!(
        status.contains("the state directory does not answer since"),
        "{status}"
    );
    for _ in 0..3 {
        rig.lab.host(1).ip(&["link", "del", "flannel.1"]).unwrap();
        rig.wait("flannel.1 again", 5, |rig| {
            Ok(link(rig.lab.host(1), "flannel.1")?
                .is_none()
                .then(|| "no".to_owned()))
        })
        .unwrap();
        let answer = probe(&rig.lab).unwrap();
        assert!(answer.contains("flanneld is running"), "{answer}");
    }
    rig.wait_for_health().unwrap();
    let record = rig.daemons[0].record().clone();
    let told = Instant::now();
    record.signal(Signal::TERM);
    rig.wait("its last word", 10, |rig| {
        let said = rig.daemons[0].log();
        let is_said = said.contains("thread disk does not end: it is left behind");
        Ok((!is_said).then_some(said))
    })
    .unwrap();
    assert!(told.elapsed() < Duration::from_secs(7));
    // The kernel does not let go of a process whose thread hangs in it.
    freezer.thaw();
    assert!(rig.daemons[0].wait(Duration::from_secs(20)).is_some());
}
