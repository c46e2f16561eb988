//! vxlan becomes host-gw in a cluster whose pods go on: the manifest with one word changed, and then node by node. It ends with all pods
//! reaching all.

use crate::bed::{Bed, HOSTS, MANIFEST, file};
use crate::trace;

pub fn rows(bed: &mut Bed) {
    let manifest = std::fs::read_to_string(file(MANIFEST)).unwrap();
    let changed = manifest.replace("\"vxlan\"", "\"host-gw\"");
    assert_ne!(changed, manifest);
    bed.row(
        "sed s/vxlan/host-gw/ of the manifest is applied: nothing changes yet",
        &[],
        |bed| {
            bed.cluster().kubectl(&["apply", "-f", "-"], &changed).unwrap();
            bed.settle();
        },
    );
    for host in 1..=HOSTS {
        let name = format!("    the flannel pod of h{host} is deleted, and its next one is ready");
        // Nodes of one backend do not serve those of the other. Two that are on one side all the while lose nothing.
        let away: Vec<usize> = match (host - 1, HOSTS - host) {
            (_, 2..) => (1..=host).collect(),
            (2.., _) => (host..=HOSTS).collect(),
            _ => {
                bed.quiet_row(&name, |bed| bed.renew_flannel(host));
                continue;
            }
        };
        bed.row(&name, &away, |bed| bed.renew_flannel(host));
    }
    bed.row("    nothing of vxlan is left anywhere", &[], |bed| {
        for host in 1..=HOSTS {
            bed.wait(&format!("h{host} without vxlan"), |bed| {
                let found = trace::of_flannel(bed.lab.host(host));
                let is_of_vxlan = |entry: &&String| {
                    ["device", "neighbour", "forwarding"]
                        .iter()
                        .any(|kind| entry.starts_with(kind))
                        || entry.contains("dev flannel")
                };
                let left: Vec<&String> = found.iter().filter(is_of_vxlan).collect();
                let routes = found.iter().filter(|entry| entry.starts_with("route")).count();
                (!left.is_empty() || routes != HOSTS - 1).then(|| format!("{found:?}"))
            });
        }
        let matrix = bed.lab.matrix().unwrap();
        if !matrix.good() {
            bed.fail(format!("{:?}", matrix.bad()));
        }
    });
}
