//! What can happen to another Node's lease. Of most of it Go flannel takes no notice, ever.

use std::time::Duration;

use lab::kube::node_object;
use serde_json::json;

use crate::bed::Bed;
use crate::peer::{Peer, data};

/// Longer than anything takes that is followed.
const NOTHING_COMES: Duration = Duration::from_millis(700);

pub fn rows(bed: &mut Bed) {
    let (a, b) = (Peer::ghost("peer-a", 200), Peer::ghost("peer-b", 201));
    bed.row("a Node joins", |bed| bed.add(&a));
    annotations(bed, &a);
    halves(bed, &a);
    deletions(bed, &a, &b);
    without_annotations(bed, &a);
    daemon_was_down(bed, &a, &b);
    again_and_again(bed);
}

/// Annotations that go and come.
fn annotations(bed: &mut Bed, a: &Peer) {
    let written = a.annotations();
    let all: Vec<(&str, Option<&str>)> = written.iter().map(|(k, v)| (*k, Some(v.as_str()))).collect();
    let none: Vec<(&str, Option<&str>)> = written.iter().map(|(k, _)| (*k, None)).collect();
    bed.row("a peer's annotations are removed", |bed| {
        bed.cluster().annotate(&a.name, &none).unwrap();
        bed.forget(a);
    });
    bed.row("    and come back", |bed| {
        bed.cluster().annotate(&a.name, &all).unwrap();
        bed.replace(a);
    });
    for (name, key, other) in [
        (
            "kube-subnet-manager is set to false",
            "kube-subnet-manager",
            "false",
        ),
        (
            "its backend's type is changed to another",
            "backend-type",
            "host-gw",
        ),
    ] {
        bed.row(name, |bed| {
            bed.cluster().annotate(&a.name, &[(key, Some(other))]).unwrap();
            bed.forget(a);
        });
        bed.row("    and back", |bed| {
            bed.cluster().annotate(&a.name, &all).unwrap();
            bed.replace(a);
        });
    }
}

/// One family alone, and devices that were made anew.
fn halves(bed: &mut Bed, a: &Peer) {
    let mut now = a.clone();
    now.address6 = "fd18::ff".parse().unwrap();
    bed.row("dual stack: its IPv6 address alone is changed", |bed| {
        let text = now.address6.to_string();
        bed.cluster()
            .annotate(&a.name, &[("public-ipv6", Some(&text))])
            .unwrap();
        bed.replace(&now);
    });
    now.address4 = "198.18.0.220".parse().unwrap();
    bed.row("dual stack: its IPv4 address alone is changed", |bed| {
        let text = now.address4.to_string();
        bed.cluster()
            .annotate(&a.name, &[("public-ip", Some(&text))])
            .unwrap();
        bed.replace(&now);
    });
    now.mac4 = "02:00:00:00:0e:04".to_owned();
    bed.row(
        "its VtepMAC is changed, and the old forwarding entry goes",
        |bed| {
            let text = data(&now.mac4);
            bed.cluster()
                .annotate(&a.name, &[("backend-data", Some(&text))])
                .unwrap();
            bed.replace(&now);
        },
    );
    now.mac6 = "02:00:00:00:0e:06".to_owned();
    bed.row("    that of IPv6 alone", |bed| {
        let text = data(&now.mac6);
        bed.cluster()
            .annotate(&a.name, &[("backend-v6-data", Some(&text))])
            .unwrap();
        bed.replace(&now);
    });
}

/// Nodes that go while something else is wrong with them.
fn deletions(bed: &mut Bed, a: &Peer, b: &Peer) {
    bed.cluster()
        .annotate(&a.name, &[("public-ip", Some("no address"))])
        .unwrap();
    std::thread::sleep(NOTHING_COMES);
    bed.row("a Node whose public-ip is no address is deleted", |bed| {
        bed.delete(a)
    });

    // Another Node takes the podCIDRs over while the first is still there, and then the first goes.
    bed.row("a Node joins", |bed| bed.add(a));
    let heir = Peer {
        subnets: a.subnets.clone(),
        ..b.clone()
    };
    bed.cluster().add_node(&heir.node()).unwrap();
    std::thread::sleep(NOTHING_COMES);
    bed.row(
        "another Node has its podCIDRs, and the old one is deleted",
        |bed| {
            bed.delete(a);
            bed.ghosts.push(heir.clone());
        },
    );
    bed.row("    and the heir is deleted", |bed| bed.delete(&heir));

    bed.row("a Node joins", |bed| bed.add(a));
    bed.row(
        "a lease is removed twice (annotation, then Node), and another joins at once",
        |bed| {
            bed.cluster()
                .annotate(&a.name, &[("kube-subnet-manager", None)])
                .unwrap();
            bed.delete(a);
            bed.add(b);
        },
    );
    bed.row("    and goes", |bed| bed.delete(b));
}

/// Nodes as a kubelet registers them, with nothing of flannel's.
fn without_annotations(bed: &mut Bed, a: &Peer) {
    bed.row(
        "a Node without any annotation joins: nothing comes of it",
        |bed| {
            bed.cluster().add_node(&a.bare_node()).unwrap();
            std::thread::sleep(NOTHING_COMES);
        },
    );
    bed.row("    and is annotated", |bed| {
        let written = a.annotations();
        let all: Vec<(&str, Option<&str>)> = written.iter().map(|(k, v)| (*k, Some(v.as_str()))).collect();
        bed.cluster().annotate(&a.name, &all).unwrap();
        bed.ghosts.push(a.clone());
    });
    bed.row("    and its annotations are removed, all there are", |bed| {
        bed.cluster()
            .patch(
                &format!("/api/v1/nodes/{}", a.name),
                &json!({ "metadata": { "annotations": null } }),
            )
            .unwrap();
        bed.forget(a);
    });
    bed.cluster().delete_node(&a.name).unwrap();
    bed.row(
        "a Node without podCIDRs joins, gets them from the cluster, and goes: nothing comes of it",
        |bed| {
            bed.cluster().add_node(&node_object("peer-c", &[], &[])).unwrap();
            bed.cluster().wait_for_cidrs("peer-c").unwrap();
            bed.cluster().delete_node("peer-c").unwrap();
        },
    );
}

/// What happened while nobody looked: from the daemon's start.
fn daemon_was_down(bed: &mut Bed, a: &Peer, b: &Peer) {
    bed.row("a Node joins", |bed| bed.add(a));
    let mut moved = a.clone();
    moved.mac4 = "02:00:00:00:0f:04".to_owned();
    bed.row(
        "a Node is deleted while our daemon is down (from its start)",
        |bed| {
            bed.end_daemon(1);
            bed.delete(a);
            bed.rig.restart(1, &[]).unwrap();
        },
    );
    bed.row("    two Nodes join", |bed| {
        bed.add(a);
        bed.add(b);
    });
    bed.row(
        "    one changes its VtepMAC and one goes while it is down",
        |bed| {
            bed.end_daemon(1);
            let text = data(&moved.mac4);
            bed.cluster()
                .annotate(&a.name, &[("backend-data", Some(&text))])
                .unwrap();
            bed.replace(&moved);
            bed.delete(b);
            bed.rig.restart(1, &[]).unwrap();
        },
    );
    bed.row("    and the other is deleted", |bed| bed.delete(&moved));
}

/// One Node, made again and again with other podCIDRs, addresses and devices.
fn again_and_again(bed: &mut Bed) {
    let generation = |number: u8| Peer {
        name: "phoenix".to_owned(),
        ..Peer::ghost("", 210 + number)
    };
    bed.row("a Node joins", |bed| bed.add(&generation(0)));
    bed.row(
        "it is deleted and made anew 20 times in a row, each time another",
        |bed| {
            for number in 1..=20 {
                bed.delete(&generation(number - 1));
                bed.add(&generation(number));
            }
        },
    );
    bed.row(
        "    and 20 times with the same podCIDRs, other addresses and devices",
        |bed| {
            for number in 1..=20 {
                let now = Peer {
                    subnets: generation(20).subnets,
                    ..generation(number)
                };
                bed.delete(&now);
                bed.add(&now);
            }
        },
    );
    bed.row("    and is deleted", |bed| bed.delete(&generation(20)));
}
