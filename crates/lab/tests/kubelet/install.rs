//! From a cluster without a network to one whose pods and Services answer from everywhere.

use lab::kube::pods::{PODS, server_spec, service_of, set_of};

use crate::bed::{Bed, HOSTS, MANIFEST, SET, file};

pub fn rows(bed: &mut Bed) {
    bed.quiet_row(
        "kubectl apply -f deploy/kube-flannel.yml: flannel runs, all Nodes are ready",
        |bed| {
            bed.kubectl(&["apply", "-f", &file(MANIFEST)]);
            bed.settle();
        },
    );
    bed.quiet_row("a DaemonSet has a pod on every Node, and all ping all", |bed| {
        bed.lab.deploy_pods().unwrap();
    });
    bed.row("nothing", &[], |_| {
        std::thread::sleep(std::time::Duration::from_secs(1))
    });
}
