//! Machines of a lab: what is on their disk stays, all else goes with them, and nothing is left of them.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

use std::path::Path;
use std::sync::Arc;

use lab::rig::{traces, unique_name};
use lab::{Lab, Spec};

#[test]
fn machine_when_it_loses_power_or_is_shut_down_then_its_disk_stays_and_nothing_else() {
    let name = unique_name();
    let spec = Spec {
        machines: true,
        ..Spec::new(&name, 2)
    };
    let mut lab = Lab::up(spec, Path::new("/usr/bin"), Arc::default()).unwrap();
    assert_eq!(lab.host(1).run(&["cat", "/proc/1/comm"]).unwrap(), "systemd\n");
    assert_eq!(lab.host(2).run(&["hostname"]).unwrap(), "h2\n");
    let address = lab.spec.host4(2).to_string();
    let answers = |lab: &Lab| {
        let echo = lab
            .host_end(1)
            .ping(&["-c", "2", "-i", "0.1", "-W", "1", &address])
            .unwrap();
        echo.unwrap().received > 0
    };
    assert!(answers(&lab));
    // Nothing of the computer's own can be changed from within.
    assert!(lab.host(2).shell("echo 7 >/proc/sys/kernel/sysrq").is_err());
    lab.host(2)
        .shell("echo kept >/var/lib/kept; echo lost >/run/lost; echo lost >/tmp/lost; ip link add lost type bridge")
        .unwrap();
    lab.host(2)
        .shell("systemd-run --unit lost sleep infinity")
        .unwrap();
    lab.host(2).shell("sync").unwrap();
    lab.cut_power(2).unwrap();
    assert!(!answers(&lab), "a machine without power answers");
    assert!(!lab.switch().ip(&["link"]).unwrap().contains("p2@"));
    lab.boot(2).unwrap();
    assert_eq!(lab.host(2).read("/var/lib/kept").unwrap(), "kept\n");
    assert!(!lab.host(2).has("/run/lost") && !lab.host(2).has("/tmp/lost"));
    assert!(!lab.host(2).ip(&["link"]).unwrap().contains("lost"));
    assert!(lab.host(2).run(&["systemctl", "is-active", "lost"]).is_err());
    assert!(answers(&lab));

    lab.shut_down(2).unwrap();
    assert!(!answers(&lab));
    // Somebody else finds the lab, starts the machine, and sees what it says.
    lab.save().unwrap();
    let mut found = Lab::load(&name).unwrap();
    found.boot(2).unwrap();
    assert!(found.journal(2, None).unwrap().contains("systemd[1]"));
    assert_eq!(found.host(2).read("/var/lib/kept").unwrap(), "kept\n");
    assert!(answers(&found));
    assert!(traces(&name).unwrap().len() > 10);
    drop(lab);
    assert_eq!(traces(&name).unwrap(), [""; 0]);
}
