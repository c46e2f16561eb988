//! What can happen to a daemon's own Node. Go flannel writes it once, at its start.

use std::time::Duration;

use lab::kube::CONTROLLERS;
use serde_json::json;

use crate::bed::{AIM, Bed, HOSTS, peer_of, until};
use crate::peer::Peer;

/// The last host's: the others' pods are pinging.
const OWN: &str = "h3";
/// A podCIDR may be some seconds late, which is nothing to tell.
const EVENT: Duration = Duration::from_secs(10);

pub fn rows(bed: &mut Bed) {
    annotations(bed);
    condition(bed);
    registered_again(bed);
    events(bed);
}

/// Byte for byte, at first and after somebody's hand.
fn annotations(bed: &mut Bed) {
    bed.row_until(
        "annotations of every host are those of Go flannel, byte for byte",
        AIM,
        |_| {},
        |bed| (1..=HOSTS).try_for_each(|host| until(|| is_annotated(bed, host))),
    );
    let written = bed.hosts[HOSTS - 1].annotations();
    let none: Vec<(&str, Option<&str>)> = written.iter().map(|(k, _)| (*k, None)).collect();
    bed.row_until(
        "the own Node's annotations are wiped: put back, and peers have it again",
        AIM,
        |bed| bed.cluster().annotate(OWN, &none).unwrap(),
        |bed| until(|| is_annotated(bed, HOSTS).and_then(|()| bed.is_followed())),
    );
    for (key, other) in [
        ("public-ip", "192.0.2.1"),
        ("backend-type", "host-gw"),
        ("kube-subnet-manager", "false"),
    ] {
        bed.row_until(
            &format!("    its {key} alone is changed to {other}"),
            AIM,
            |bed| bed.cluster().annotate(OWN, &[(key, Some(other))]).unwrap(),
            |bed| until(|| is_annotated(bed, HOSTS).and_then(|()| bed.is_followed())),
        );
    }
}

/// `NetworkUnavailable` keeps pods away from a Node.
fn condition(bed: &mut Bed) {
    for (name, status) in [
        ("the own condition NetworkUnavailable is set to True", "True"),
        ("    and to Unknown", "Unknown"),
    ] {
        bed.row_until(
            name,
            AIM,
            |bed| {
                let condition =
                    json!({ "type": "NetworkUnavailable", "status": status, "reason": "Somebody" });
                let patch = json!({ "status": { "conditions": [condition] } });
                bed.cluster()
                    .patch(&format!("/api/v1/nodes/{OWN}/status"), &patch)
                    .unwrap();
            },
            |bed| until(|| is_available(bed)),
        );
    }
}

/// A Node is deleted, and its kubelet registers it again.
fn registered_again(bed: &mut Bed) {
    let same = bed.hosts[HOSTS - 1].subnets.clone();
    bed.row_until(
        "the own Node is deleted and registered again with its podCIDRs",
        AIM,
        |bed| {
            bed.cluster().delete_node(OWN).unwrap();
            bed.cluster().register(HOSTS, &same).unwrap();
        },
        |bed| until(|| is_whole(bed)),
    );
    bed.row_until(
        "    and with others, which the cluster gives (from when it has)",
        AIM,
        |bed| {
            bed.cluster().delete_node(OWN).unwrap();
            bed.cluster().register(HOSTS, &[]).unwrap();
            let given = bed.cluster().wait_for_cidrs(OWN).unwrap();
            assert_ne!(given, same, "the cluster gives what was given last");
        },
        is_taken_up,
    );
}

/// What an admin has to see is said where admins look.
fn events(bed: &mut Bed) {
    let rival = Peer {
        subnets: bed.hosts[HOSTS - 1].subnets.clone(),
        ..Peer::ghost("rival", 202)
    };
    bed.row_until(
        "a younger Node has the own podCIDRs: an Event of the own Node says so, and it keeps them",
        AIM,
        |bed| bed.cluster().add_node(&rival.node()).unwrap(),
        |bed| until(|| is_told(bed, "PodCIDROverlaps", &rival.name).and_then(|()| bed.is_followed())),
    );
    bed.cluster().delete_node(&rival.name).unwrap();

    bed.end_daemon(HOSTS);
    bed.cluster().delete_node(OWN).unwrap();
    bed.cluster().hold(CONTROLLERS).unwrap();
    bed.cluster().register(HOSTS, &[]).unwrap();
    bed.row_until(
        "nobody hands podCIDRs out: an Event of the own Node says so (from the daemon's start)",
        EVENT,
        |bed| bed.rig.restart(HOSTS, &[]).unwrap(),
        |bed| until(|| is_told(bed, "PodCIDRNotAssigned", "podCIDR")),
    );
    bed.row_until(
        "    and the cluster gives some (from when it has)",
        AIM,
        |bed| {
            bed.cluster().release(CONTROLLERS).unwrap();
            bed.cluster().wait_for_cidrs(OWN).unwrap();
        },
        is_taken_up,
    );
}

/// Waits until the daemon has taken its Node's new podCIDRs up, with other addresses of its devices as they may be.
fn is_taken_up(bed: &mut Bed) -> Result<(), String> {
    until(|| {
        bed.hosts[HOSTS - 1] = peer_of(&bed.rig, HOSTS);
        let mut given = bed.hosts[HOSTS - 1].subnets.clone();
        given.sort();
        let subnets = bed.rig.lab.env(HOSTS).unwrap().subnets();
        if subnets != given {
            return Err(format!("subnet.env has {subnets:?}, and not {given:?}"));
        }
        is_whole(bed)
    })
}

/// Everything is there that others and Kubernetes have to find.
fn is_whole(bed: &Bed) -> Result<(), String> {
    is_annotated(bed, HOSTS)?;
    bed.is_followed()?;
    is_available(bed)
}

/// A Node has flannel's annotations exactly as Go flannel writes them, and no further one.
fn is_annotated(bed: &Bed, host: usize) -> Result<(), String> {
    let peer = &bed.hosts[host - 1];
    let expected = peer
        .annotations()
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value));
    let expected: Vec<(String, String)> = expected.collect();
    let now = bed.cluster().annotations(&peer.name).unwrap();
    if now == expected {
        return Ok(());
    }
    Err(format!(
        "annotations of {}: {now:?}, and not {expected:?}",
        peer.name
    ))
}

/// Pods may be put on it.
fn is_available(bed: &Bed) -> Result<(), String> {
    let node = bed.cluster().node(OWN).unwrap().unwrap_or_default();
    let all = node["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let found: Vec<_> = all.iter().filter(|c| c["type"] == "NetworkUnavailable").collect();
    match found.as_slice() {
        [one] if one["status"] == "False" && one["reason"] == "FlannelIsUp" => Ok(()),
        other => Err(format!("condition: {other:?}")),
    }
}

/// There is an Event for this reason, which says that.
fn is_told(bed: &Bed, reason: &str, words: &str) -> Result<(), String> {
    let all = bed.cluster().events(OWN).unwrap();
    let is_there = all
        .iter()
        .any(|(found, says)| found == reason && says.contains(words));
    is_there.then_some(()).ok_or_else(|| format!("Events: {all:?}"))
}
