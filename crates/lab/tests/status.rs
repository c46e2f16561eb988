//! The CNI verb STATUS beside a real flanneld and a real registry: it says what a pod can expect, with flanneld's reason.
#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

use lab::Families;
use lab::command::output;
use lab::rig::{Rig, Wish, vxlan_lease};
use lab::store::CONFIG_KEY;
use serde_json::{Value, json};

/// STATUS on host 1: whether it is ready, and the error object otherwise.
fn status(rig: &Rig) -> (bool, Value) {
    let mut command = rig.lab.host(1).command(&["flannel-cni"]);
    command
        .env("CNI_COMMAND", "STATUS")
        .env("CNI_PATH", "/nonexistent");
    let config = json!({ "cniVersion": "1.1.0", "name": "cbr0", "type": "flannel" });
    let (ready, stdout, stderr, _) = output(&mut command, &config.to_string()).unwrap();
    assert_eq!(stderr, "", "STATUS is asked every few seconds: it does not log");
    let said = serde_json::from_str(&stdout).unwrap_or(Value::Null);
    (ready, said)
}

fn wait_until_ready(rig: &Rig) {
    rig.wait("STATUS without an error", 30, |rig| {
        let (ready, said) = status(rig);
        Ok((!ready).then(|| said.to_string()))
    })
    .unwrap();
}

/// Waits until the daemon says something of itself.
fn wait_until_told(rig: &Rig, what: &str, is_told: impl Fn(&Value) -> bool) {
    rig.wait(what, 30, |rig| {
        let mut command = rig.lab.host(1).command(&["flannelctl", "status", "--json"]);
        let (_, stdout, stderr, _) = output(&mut command, "").unwrap();
        let told = serde_json::from_str(&stdout).unwrap_or(Value::Null);
        let lack = if told.is_null() { stderr } else { stdout };
        Ok((told.is_null() || !is_told(&told)).then_some(lack))
    })
    .unwrap();
}

#[test]
fn status_when_config_peers_and_registry_come_and_go_says_what_a_pod_can_expect() {
    let wish = Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(1);
    let mut rig = Rig::bare(&wish).unwrap();
    let config = rig.lab.get(CONFIG_KEY).unwrap().unwrap();
    rig.lab.delete(CONFIG_KEY).unwrap();
    // Without a daemon there is only Go's text.
    let (ready, said) = status(&rig);
    assert!(!ready && said["code"] == 50, "{said}");
    assert!(said.get("details").is_none(), "{said}");

    // A daemon, and nothing in the registry for it.
    let daemon = rig.lab.start_daemon(1, &[]).unwrap();
    rig.daemons.push(daemon);
    rig.wait("flanneld's reason", 30, |rig| {
        let (ready, said) = status(rig);
        assert!(!ready, "{said}");
        assert_eq!(said["code"], 50, "{said}");
        let msg = said["msg"].as_str().unwrap();
        assert!(
            msg.contains("open /run/flannel/subnet.env: no such file or directory"),
            "{msg}"
        );
        let details = said["details"].as_str().unwrap_or_default();
        let named = details.starts_with("flanneld: ") && details.contains(CONFIG_KEY);
        Ok((!named).then(|| said.to_string()))
    })
    .unwrap();

    // With a config it is ready as soon as there is a subnet.
    rig.lab.put(CONFIG_KEY, &config).unwrap();
    wait_until_ready(&rig);

    // A peer that cannot be served: a route of somebody else stands in its place.
    let host = rig.lab.host(1);
    host.ip(&["route", "add", "10.244.200.0/24", "dev", "eth0"])
        .unwrap();
    rig.put_lease(
        "10.244.200.0-24",
        &vxlan_lease("198.51.100.7", None, "02:00:00:00:00:07", None),
    )
    .unwrap();
    wait_until_told(&rig, "a conflict", |told| told["peers"][0]["state"] == "conflict");
    assert_eq!(status(&rig), (true, Value::Null), "pods run here all the same");

    // The registry goes: what is there goes on working.
    rig.lab.kill_store();
    wait_until_told(&rig, "that it is away", |told| told["ready"] == false);
    assert_eq!(status(&rig), (true, Value::Null));

    // A daemon that is started meanwhile knows nothing yet; subnet.env stands.
    rig.restart(1, &[]).unwrap();
    wait_until_told(&rig, "the new daemon's lack of a lease", |told| {
        told["lease"].is_null()
    });
    assert_eq!(status(&rig), (true, Value::Null));

    // One that hangs is not waited for.
    let daemon = rig.daemons[0].record().clone();
    daemon.signal(rustix::process::Signal::STOP);
    let hung = status(&rig);
    daemon.signal(rustix::process::Signal::CONT);
    assert_eq!(hung, (true, Value::Null));

    // The registry is back, and empty where the config was: nothing new can become of this host.
    rig.lab.start_store(wish.store).unwrap();
    rig.lab.delete(CONFIG_KEY).unwrap();
    rig.restart(1, &[]).unwrap();
    rig.wait("an error with the reason", 30, |rig| {
        let (ready, said) = status(rig);
        if ready {
            return Ok(Some("ready".to_owned()));
        }
        let msg = said["msg"].as_str().unwrap_or_default();
        assert!(said["code"] == 51 && msg.contains(CONFIG_KEY), "{said}");
        Ok(None)
    })
    .unwrap();

    // Gone, it has no say any more.
    rig.daemons[0].kill();
    assert_eq!(status(&rig), (true, Value::Null));
}
