//! From our manifest to flannel's own with its image replaced by ours, and back.

use std::collections::BTreeSet;

use crate::bed::{Bed, HOSTS, MANIFEST, file};
use crate::trace;

/// As flannel v0.28 has it, with our image.
const FLANNELS: &str = "crates/lab/tests/kubelet/flannel-0.28.yml";

pub fn rows(bed: &mut Bed) {
    let before = objects(bed);
    let kernels = kernels(bed);
    bed.row(
        "flannel's v0.28 manifest with our image is applied over ours",
        &[],
        |bed| {
            bed.kubectl(&["apply", "-f", &file(FLANNELS)]);
            bed.settle();
        },
    );
    same(bed, &before, &kernels);
    bed.row("    and ours over it", &[], |bed| {
        bed.kubectl(&["apply", "-f", &file(MANIFEST)]);
        bed.settle();
    });
    same(bed, &before, &kernels);
}

/// No object of one is left beside those of the other, and no kernel holds anything else.
fn same(bed: &mut Bed, objects_before: &BTreeSet<String>, kernels_before: &[BTreeSet<String>]) {
    let now = objects(bed);
    if now != *objects_before {
        bed.fail(format!(
            "objects: {}",
            crate::bed::difference(&now, objects_before)
        ));
    }
    for (index, (now, before)) in kernels(bed).iter().zip(kernels_before).enumerate() {
        if now != before {
            let difference = crate::bed::difference(now, before);
            bed.fail(format!("h{}: {difference}", index + 1));
        }
    }
}

/// Flannel's objects by kind and name; pods and what belongs to them have names of their own.
fn objects(bed: &Bed) -> BTreeSet<String> {
    let all = [
        bed.kubectl(&[
            "get",
            "namespaces,clusterroles,clusterrolebindings",
            "-l",
            "k8s-app=flannel",
            "-o",
            "name",
        ]),
        bed.kubectl(&[
            "-n",
            "kube-flannel",
            "get",
            "configmaps,serviceaccounts,daemonsets,deployments,services",
            "-o",
            "name",
        ]),
    ];
    all.iter()
        .flat_map(|text| text.lines())
        .map(str::to_owned)
        .collect()
}

fn kernels(bed: &Bed) -> Vec<BTreeSet<String>> {
    (1..=HOSTS)
        .map(|host| trace::of_flannel(bed.lab.host(host)))
        .collect()
}
