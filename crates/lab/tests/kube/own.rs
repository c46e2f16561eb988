//! What can happen to a daemon's own Node. Go flannel writes it once, at its start.

use serde_json::json;

use crate::bed::{AIM, Bed, HOSTS, peer_of, until};

/// The last host's: the others' pods are pinging.
const OWN: &str = "h3";

pub fn rows(bed: &mut Bed) {
    annotations(bed);
    condition(bed);
    registered_again(bed);
}

/// Byte for byte, at first and after somebody's hand.
fn annotations(bed: &mut Bed) {
    bed.row_until(
        "annotations of every host are those of Go flannel, byte for byte",
        AIM,
        |_| {},
        |bed| (1..=HOSTS).try_for_each(|host| annotated(bed, host)),
    );
    let written = bed.hosts[HOSTS - 1].annotations();
    let none: Vec<(&str, Option<&str>)> = written.iter().map(|(k, _)| (*k, None)).collect();
    let own_again = |bed: &Bed| annotated(bed, HOSTS).and_then(|()| bed.follow());
    bed.row_until(
        "the own Node's annotations are wiped: put back, and peers have it again",
        AIM,
        |bed| bed.cluster().annotate(OWN, &none).unwrap(),
        own_again,
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
            own_again,
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
            available,
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
        whole,
    );
    bed.row_until(
        "    and with others, which the cluster gives (from when it has)",
        AIM,
        |bed| {
            bed.cluster().delete_node(OWN).unwrap();
            bed.cluster().register(HOSTS, &[]).unwrap();
            let peer = peer_of(&bed.rig, HOSTS);
            assert_ne!(peer.subnets, same, "the cluster gives what was given last");
            bed.hosts[HOSTS - 1] = peer;
        },
        |bed| {
            whole(bed)?;
            until("its subnet.env", || {
                let subnets = bed.rig.lab.env(HOSTS).unwrap().subnets();
                let mut given = bed.hosts[HOSTS - 1].subnets.clone();
                given.sort();
                if subnets == given {
                    Ok(())
                } else {
                    Err(format!("{subnets:?}, and not {given:?}"))
                }
            })
        },
    );
}

/// Everything that others and Kubernetes have to find.
fn whole(bed: &Bed) -> Result<(), String> {
    annotated(bed, HOSTS)?;
    bed.follow()?;
    available(bed)
}

/// A Node has flannel's annotations exactly as Go flannel writes them, and no further one.
fn annotated(bed: &Bed, host: usize) -> Result<(), String> {
    let peer = &bed.hosts[host - 1];
    let expected: Vec<(String, String)> = peer
        .annotations()
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    until(&format!("the annotations of {}", peer.name), || {
        let now = bed.cluster().annotations(&peer.name).unwrap();
        if now == expected {
            Ok(())
        } else {
            Err(format!("{now:?}, and not {expected:?}"))
        }
    })
}

/// Pods may be put on it.
fn available(bed: &Bed) -> Result<(), String> {
    until("the condition", || {
        let node = bed.cluster().node(OWN).unwrap().unwrap_or_default();
        let all = node["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let found: Vec<_> = all.iter().filter(|c| c["type"] == "NetworkUnavailable").collect();
        match found.as_slice() {
            [one] if one["status"] == "False" && one["reason"] == "FlannelIsUp" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}
