//! The last Node is drained, deleted, rebooted and joined again, and its machine loses power. Its own pods are moved or down meanwhile; those of the others
//! lose nothing.

use std::time::Duration;

use lab::store::Kind;

use crate::bed::{Bed, HOSTS};

const NODE: &str = "h3";

pub fn rows(bed: &mut Bed) {
    bed.row(
        "h3 is drained and its Node deleted, until its last pod is gone (they are moved or end)",
        &[HOSTS],
        |bed| {
            bed.kubectl(&[
                "drain",
                NODE,
                "--ignore-daemonsets",
                "--force",
                "--delete-emptydir-data",
            ]);
            bed.kubectl(&["delete", "node", NODE]);
            bed.wait("no pod on h3", |bed| {
                let left = bed.lab.host(HOSTS).shell("ctr -n k8s.io tasks ls -q").unwrap();
                (!left.is_empty()).then_some(left)
            });
        },
    );
    // What had its address of the former subnet goes with the restart; kubelet registers its Node by itself.
    bed.row(
        "    and is rebooted and joins again: its pods answer",
        &[HOSTS],
        |bed| {
            bed.lab.shut_down(HOSTS).unwrap();
            bed.lab.boot(HOSTS).unwrap();
            comes_back(bed);
        },
    );
    bed.row("h3 loses power and starts: its pods answer", &[HOSTS], |bed| {
        bed.lab.cut_power(HOSTS).unwrap();
        bed.lab.boot(HOSTS).unwrap();
        comes_back(bed);
    });
    let subnet = bed.subnet_of_last();
    let peers = bed.peers_of_last(&subnet);
    bed.row(
        "the API server is away, and h3 loses power and starts: kubelet starts no pod of its own accord",
        &[HOSTS],
        |bed| {
            bed.lab.kill_store();
            bed.lab.cut_power(HOSTS).unwrap();
            bed.lab.boot(HOSTS).unwrap();
            std::thread::sleep(Duration::from_secs(5));
            assert_eq!(
                bed.lab.host(HOSTS).shell("ctr -n k8s.io tasks ls -q").unwrap(),
                ""
            );
        },
    );
    if bed.peers_of_last(&subnet) != peers {
        bed.fail("the others no longer know h3".to_owned());
    }
    bed.row(
        "    and the API server is back: its pods answer",
        &[HOSTS],
        |bed| {
            bed.lab.start_store(Kind::Kube).unwrap();
            comes_back(bed);
        },
    );
}

/// The last machine's flannel and pods are there and all pods reach all.
fn comes_back(bed: &mut Bed) {
    bed.wait(&format!("Node {NODE}"), |bed| {
        let node = bed.cluster().node(NODE).unwrap();
        node.is_none().then(|| "none".to_owned())
    });
    bed.settle();
    bed.find_pods();
}
