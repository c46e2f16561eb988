//! What kubelet asks of containerd, and what containerd then asks of the plugins: `lo` and the first list side by side, with port
//! mappings and limits as capabilities, and a CNI namespace that outlives the pod's process.

use lab::witness::link_names;
use serde_json::{Value, json};

use crate::kubernetes::Kubernetes;
use crate::machine::{Machine, wait};
use crate::place::Echo;
use crate::world::{World, flannel_list, one, portmap};

fn limits() -> Value {
    json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } })
}

const LIMITED: [(&str, &str); 2] = [
    ("kubernetes.io/ingress-bandwidth", "400M"),
    ("kubernetes.io/egress-bandwidth", "300M"),
];

fn warm(kubernetes: &Kubernetes<'_>, machine: &Machine) -> Vec<String> {
    let first = kubernetes.run_pod("first", &[(0, 80, 8999)], &[]);
    kubernetes.end_pod(&first.id);
    machine.traces()
}

#[test]
fn pods_when_kubernetes_runs_them_have_addresses_ports_and_limits_and_leave_nothing() {
    let world = World::start();
    let machine = &world.machines[0];
    let kubernetes = [Kubernetes::start(machine), Kubernetes::start(&world.machines[1])];
    assert!(!kubernetes[0].has_network());
    world.add_network(&flannel_list("cbr0", &[portmap(), limits()]));
    // containerd watches the folder.
    for kubernetes in &kubernetes {
        wait("a network in the eyes of containerd", || {
            (!kubernetes.has_network()).then(String::new)
        });
    }
    let before = warm(&kubernetes[0], machine);
    let pod = kubernetes[0].run_pod("one", &[(0, 80, 8080), (1, 90, 9090)], &LIMITED);
    let distant = kubernetes[1].run_pod("two", &[], &[]);
    let addresses: Vec<_> = pod.place.addresses("eth0").iter().map(|a| a.addr()).collect();
    assert!(kubernetes[0].knows_addresses(&pod, &addresses), "{addresses:?}");
    world.assert_talk(&pod.place, &distant.place);
    let echo = Echo::start(&pod.place, 90, "one");
    let (host, outside) = (machine.place(), world.outside());
    for from in [&outside, &host, &pod.place, &distant.place] {
        for family in [4, 6] {
            let address = world.address(1, family);
            assert_eq!(
                from.get(address, 8080, "name"),
                "one",
                "from {} to {address}",
                from.name
            );
            assert_eq!(
                from.ask(address, 9090),
                "one",
                "udp from {} to {address}",
                from.name
            );
        }
    }
    assert_eq!(host.get([127, 0, 0, 1].into(), 8080, "name"), "one");
    let shaped = machine.node.run(&["tc", "qdisc", "show"]).unwrap();
    let of = |link: &str, rate: &str| {
        shaped
            .lines()
            .any(|l| l.starts_with("qdisc tbf") && l.contains(&format!("dev {link}")) && l.contains(rate))
    };
    assert!(
        of("veth", "rate 400Mbit") && of("bwp", "rate 300Mbit"),
        "{shaped}"
    );
    drop(echo);
    kubernetes[0].end_pod(&pod.id);
    machine.assert_nothing_left(&before);
}

#[test]
fn twenty_pods_when_kubernetes_runs_and_ends_them_at_once_leave_nothing() {
    let world = World::start();
    let machine = &world.machines[0];
    world.add_network(&flannel_list("cbr0", &[portmap(), limits()]));
    let kubernetes = Kubernetes::start(machine);
    let before = warm(&kubernetes, machine);
    let (mut addresses, mut ids) = (std::collections::BTreeSet::new(), Vec::new());
    std::thread::scope(|scope| {
        let kubernetes = &kubernetes;
        let start = |i: u64| {
            let name = format!("many{i}");
            (
                kubernetes
                    .start_pod(&name, &[(0, 80, 8100 + i)], &LIMITED)
                    .unwrap(),
                name,
            )
        };
        let threads: Vec<_> = (0..20).map(|i| scope.spawn(move || start(i))).collect();
        for (i, thread) in threads.into_iter().enumerate() {
            let (id, name) = thread.join().unwrap();
            let pod = kubernetes.pod(&name, id);
            addresses.extend(pod.place.addresses("eth0"));
            assert_eq!(
                world.outside().get(world.address(1, 4), 8100 + i as u16, "name"),
                name
            );
            ids.push(pod.id);
        }
    });
    assert_eq!(addresses.len(), 40);
    std::thread::scope(|scope| {
        for id in &ids {
            scope.spawn(|| kubernetes.end_pod(id));
        }
    });
    machine.assert_nothing_left(&before);
}

#[test]
fn pods_when_containerd_is_killed_and_plugins_are_changed_meanwhile_are_removed_whole() {
    let world = World::start();
    let machine = &world.machines[0];
    world.add_network(&flannel_list("cbr0", &[portmap(), limits()]));
    machine.uninstall_ours();
    let kubernetes = Kubernetes::start(machine);
    let before = warm(&kubernetes, machine);
    let pods = [
        kubernetes.run_pod("one", &[(0, 80, 8201)], &LIMITED),
        kubernetes.run_pod("two", &[], &[]),
        kubernetes.run_pod("three", &[(1, 80, 8203)], &LIMITED),
    ];
    let links = link_names(&machine.node).unwrap();
    assert_eq!(links.iter().filter(|l| l.starts_with("bwp")).count(), 2);
    // One pod loses its shim, then all of them containerd.
    machine.kill(&["containerd-shim", &pods[1].id]);
    machine.kill(&["containerd -c "]);
    machine.install_ours(false);
    let kubernetes = Kubernetes::start(machine);
    let address = one(&pods[0].place, "eth0", 6);
    assert_eq!(machine.place().get(address, 80, "name"), "one");
    for pod in &pods {
        kubernetes.end_pod(&pod.id);
    }
    machine.assert_nothing_left(&before);
}
