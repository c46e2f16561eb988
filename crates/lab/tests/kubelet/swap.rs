//! From our manifest to flannel's own with its image replaced by ours, and back.

use std::collections::BTreeSet;

use crate::bed::{Bed, HOSTS, MANIFEST, difference, file};
use crate::{flannels, trace};

pub fn rows(bed: &mut Bed) {
    let flannels = flannels::objects(&image());
    let before = objects(bed);
    let kernels = kernels(bed);
    bed.row(
        "flannel's v0.28 manifest with our image is applied over ours",
        &[],
        |bed| {
            bed.cluster().apply(&flannels).unwrap();
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

/// The image of our manifest.
fn image() -> String {
    let manifest = std::fs::read_to_string(file(MANIFEST)).unwrap();
    let mut lines = manifest.lines();
    let image = lines.find_map(|line| line.trim().strip_prefix("image: "));
    image.unwrap().to_owned()
}

/// No object of one is left beside those of the other, and no kernel holds anything else.
fn same(bed: &mut Bed, objects_before: &BTreeSet<String>, kernels_before: &[BTreeSet<String>]) {
    let now = objects(bed);
    if now != *objects_before {
        bed.fail(format!("objects: {}", difference(&now, objects_before)));
    }
    for (index, (now, before)) in kernels(bed).iter().zip(kernels_before).enumerate() {
        if now != before {
            bed.fail(format!("h{}: {}", index + 1, difference(now, before)));
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
