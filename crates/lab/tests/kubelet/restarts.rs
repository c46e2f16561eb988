//! Flannel, its node's programs and the API server go and come back. No packet may be lost in any of it.

use std::time::Duration;

use lab::kube::pods::{SET, server_spec};
use lab::store::Kind;
use rustix::process::Signal;
use serde_json::json;

use crate::bed::{Bed, HOSTS, MANIFEST, file};

/// How long something is away.
const AWAY: Duration = Duration::from_secs(5);
/// Label `app` of pods that are made to see whether they start.
const PROBE: &str = "probe";

pub fn rows(bed: &mut Bed) {
    bed.row("kubectl rollout restart of our DaemonSet", &[], |bed| {
        bed.kubectl(&["-n", "kube-flannel", "rollout", "restart", "daemonset", SET]);
        bed.settle();
    });
    bed.row("kubectl delete -f, and flannel is away for 5 s", &[], |bed| {
        bed.kubectl(&["delete", "-f", &file(MANIFEST)]);
        std::thread::sleep(AWAY);
    });
    bed.row("    and apply again", &[], |bed| {
        bed.kubectl(&["apply", "-f", &file(MANIFEST)]);
        bed.settle();
    });
    bed.row("kill -9 of every flanneld", &[], |bed| {
        let before: Vec<u32> = bed
            .lab
            .state
            .daemons
            .iter()
            .map(|(_, record)| record.pid)
            .collect();
        assert_eq!(before.len(), HOSTS);
        for pid in &before {
            lab::process::send(*pid, Signal::KILL);
        }
        // Of the cluster's word that all is well some may be older.
        let mut others = 0;
        let start = std::time::Instant::now();
        while others < HOSTS && start.elapsed() < crate::bed::LIMIT {
            bed.lab.find_daemons().unwrap();
            let now = bed.lab.state.daemons.iter();
            others = now.filter(|(_, record)| !before.contains(&record.pid)).count();
            std::thread::sleep(Duration::from_millis(50));
        }
        bed.settle();
    });
    for unit in ["kubelet", "containerd", "kube-proxy"] {
        bed.row(
            &format!("{unit} is restarted on every Node, and pods start there"),
            &[],
            |bed| {
                for host in bed.lab.hosts() {
                    host.run(&["systemctl", "restart", unit]).unwrap();
                }
                pods_start(bed, unit);
            },
        );
    }
    bed.row(
        "the API server is away for 5 s, and pods start again",
        &[],
        |bed| {
            bed.lab.kill_store();
            std::thread::sleep(AWAY);
            bed.lab.start_store(Kind::Kube).unwrap();
            pods_start(bed, "server");
            bed.settle();
        },
    );
    bed.row(
        "    and the pods that were started meanwhile are gone",
        &[],
        |bed| {
            bed.wait("no such pod", |bed| {
                let left = bed
                    .cluster()
                    .list(&["pods", "-l", &format!("app={PROBE}")])
                    .unwrap();
                (!left.is_empty()).then(|| format!("{} of them", left.len()))
            });
        },
    );
}

/// On every Node a pod starts, answers a pod of another, and is deleted.
fn pods_start(bed: &mut Bed, occasion: &str) {
    for host in 1..=HOSTS {
        let mut spec = server_spec();
        spec["nodeName"] = format!("h{host}").into();
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": format!("probe-{occasion}-{host}"), "labels": { "app": PROBE } },
            "spec": spec,
        });
        bed.cluster().apply(&object).unwrap();
    }
    let probes = |bed: &Bed| bed.cluster().ready_pods("default", PROBE).unwrap();
    bed.wait("a new pod on every Node", |bed| {
        let pods = probes(bed);
        (pods.len() != HOSTS).then(|| format!("{} of {HOSTS}", pods.len()))
    });
    for pod in probes(bed) {
        let mut others = bed.lab.state.pods.iter();
        let from = others.find(|other| other.host != pod.host).unwrap();
        let address = pod.address.to_string();
        let echo = bed
            .lab
            .pod_end(from)
            .ping(&["-c", "3", "-i", "0.1", "-W", "3", &address])
            .unwrap();
        assert!(
            echo.is_some_and(|echo| echo.received > 0),
            "{}: no answer",
            pod.name
        );
    }
    // A kubelet that was started again takes a minute to say that such a pod has ended.
    bed.kubectl(&["delete", "pods", "-l", &format!("app={PROBE}"), "--wait=false"]);
}
