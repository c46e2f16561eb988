//! From a cluster without a network to one whose pods and Services answer from everywhere.

use std::collections::BTreeSet;

use lab::kube::pods::{PODS, server_spec, service_of, set_of};

use crate::bed::{Bed, HOSTS, MANIFEST, file};

/// The Deployment and its Service.
const DEPLOYMENT: &str = "deployed";

pub fn rows(bed: &mut Bed) {
    bed.quiet_row(
        "kubectl apply -f deploy/kube-flannel.yml: flannel runs, all Nodes are ready",
        |bed| {
            bed.kubectl(&["apply", "-f", &file(MANIFEST)]);
            bed.settle();
        },
    );
    bed.quiet_row("a DaemonSet has a ready pod on every Node", |bed| {
        bed.lab.deploy_pods().unwrap();
    });
    bed.quiet_row(
        "    and all pods and hosts reach all, with packets of full size",
        |bed| {
            let matrix = bed.lab.matrix().unwrap();
            if !matrix.good() {
                bed.fail(format!("{:?}", matrix.bad()));
            }
        },
    );
    bed.row("a Deployment with two pods for every Node is ready", &[], |bed| {
        let mut deployment = set_of("Deployment", DEPLOYMENT, &server_spec());
        deployment["spec"]["replicas"] = (2 * HOSTS).into();
        bed.cluster().apply(&deployment).unwrap();
        bed.cluster().apply(&service_of(DEPLOYMENT)).unwrap();
        bed.cluster()
            .wait_for_rollout("default", &format!("deployment/{DEPLOYMENT}"))
            .unwrap();
    });
    bed.row(
        "    and both Services answer on every host and in every pod, by pods of every Node",
        &[],
        services,
    );
}

/// Whoever asks often enough hears every Node's pods.
fn services(bed: &mut Bed) {
    let on: BTreeSet<usize> = bed
        .cluster()
        .ready_pods("default", DEPLOYMENT)
        .unwrap()
        .iter()
        .map(|pod| pod.host)
        .collect();
    for (name, hosts) in [(PODS, (1..=HOSTS).collect()), (DEPLOYMENT, on)] {
        let address = bed.kubectl(&["get", "service", name, "-o", "jsonpath={.spec.clusterIP}"]);
        let line = format!(
            "for i in $(seq 40); do curl -sS --max-time 3 http://{address}/name || echo nothing; done"
        );
        let expected: BTreeSet<String> = hosts.iter().map(|host| format!("h{host}")).collect();
        for pod in bed.lab.state.pods.clone() {
            bed.wait(
                &format!("answers of Service {name} on {} and in its pod", pod.full_name()),
                |bed| {
                    let mut wrong = None;
                    for mut command in [
                        bed.lab.host(pod.host).command(&["sh", "-c", &line]),
                        bed.lab.pod_end(&pod).command(&["sh", "-c", &line]),
                    ] {
                        let said = lab::command::run(&mut command).unwrap();
                        let heard: BTreeSet<String> = said.lines().map(str::to_owned).collect();
                        if heard != expected {
                            wrong = Some(format!("{heard:?}, and not {expected:?}"));
                        }
                    }
                    wrong
                },
            );
        }
    }
}
