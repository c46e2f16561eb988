//! What `ctr run --cni` does. It hands on no port mappings and calls DEL when the network namespace is gone.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::containerd::{Container, Containerd};
use crate::machine::wait;
use crate::place::Place;
use crate::world::{World, flannel_list, one, portmap, shipped_list};

/// Ports that no runtime gives but the list itself: libcni leaves what is there when it has nothing to put.
fn fixed_ports() -> Value {
    json!({
        "type": "portmap",
        "capabilities": { "portMappings": true },
        "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] }
    })
}

fn warm(containerd: &Containerd<'_>, world: &World, host: usize) -> Vec<String> {
    let first = containerd.run("first");
    containerd.end(vec![first]);
    world.machines[host - 1].traces()
}

#[test]
fn containers_when_ctr_starts_them_on_two_hosts_talk_and_their_ports_answer() {
    let world = World::start();
    world.add_network(&flannel_list("cbr0", &[fixed_ports()]));
    let (first, second) = (
        Containerd::start(&world.machines[0]),
        Containerd::start(&world.machines[1]),
    );
    let before = [warm(&first, &world, 1), warm(&second, &world, 2)];
    let (one, two) = (first.run("one"), second.run("two"));
    world.assert_talk(&one.place, &two.place);
    let (host, outside) = (world.machines[0].place(), world.outside());
    let (host4, host6) = (world.address(1, 4), world.address(1, 6));
    for (from, address) in [
        (&outside, host4),
        (&outside, host6),
        (&host, host4),
        (&host, host6),
        (&host, IpAddr::from([127, 0, 0, 1])),
        (&one.place, host4),
        (&one.place, host6),
        (&two.place, host4),
    ] {
        assert_eq!(
            from.get(address, 8080, "name"),
            "one",
            "from {} to {address}",
            from.name
        );
    }
    first.end(vec![one]);
    second.end(vec![two]);
    world.machines[0].assert_nothing_left(&before[0]);
    world.machines[1].assert_nothing_left(&before[1]);
    assert_eq!(outside.get(host4, 8080, "name"), "");
}

#[test]
fn twenty_containers_when_ctr_starts_and_ends_them_at_once_leave_nothing_nor_does_a_killed_shim() {
    let world = World::start();
    let limits = json!({ "type": "bandwidth", "ingressRate": 400_000_000, "ingressBurst": 40_000_000,
        "egressRate": 400_000_000, "egressBurst": 40_000_000 });
    world.add_network(&flannel_list("cbr0", &[portmap(), limits]));
    let machine = &world.machines[0];
    let containerd = Containerd::start(machine);
    let before = warm(&containerd, &world, 1);
    let names: Vec<String> = (0..20).map(|i| format!("many{i}")).collect();
    let started: Vec<_> = names.iter().map(|name| containerd.spawn(name)).collect();
    let containers: Vec<Container> = names
        .iter()
        .zip(started)
        .map(|(name, ctr)| containerd.wait_for(name, ctr))
        .collect();
    let mut addresses = std::collections::BTreeSet::new();
    for container in &containers {
        assert_eq!(
            machine.place().get(one(&container.place, "eth0", 4), 80, "name"),
            container.name
        );
        addresses.extend(container.place.addresses("eth0"));
    }
    assert_eq!(addresses.len(), 2 * containers.len());
    containerd.end(containers);
    machine.assert_nothing_left(&before);
    let (victim, other) = (containerd.run("victim"), containerd.run("other"));
    machine.kill(&["containerd-shim", "-id victim "]);
    let said = victim.done_with_words();
    assert!(said.contains("ttrpc: closed"), "{said}");
    let address = one(&other.place, "eth0", 4);
    assert_eq!(machine.place().get(address, 80, "name"), "other");
    containerd.end(vec![other]);
    machine.assert_nothing_left(&before);
}

#[test]
fn container_when_containerd_itself_is_killed_loses_its_network_and_leaves_nothing() {
    let world = World::start();
    world.add_network(&flannel_list("cbr0", &[portmap()]));
    let machine = &world.machines[0];
    let containerd = Containerd::start(machine);
    let before = warm(&containerd, &world, 1);
    let orphan = containerd.run("orphan");
    machine.kill(&["containerd -c "]);
    // ctr calls DEL while the container lives on, without saying where.
    orphan.done_with_words();
    let containerd = Containerd::start(machine);
    let listed = containerd.call(&["task", "ls"]);
    assert!(
        listed.contains("orphan") && listed.contains("RUNNING"),
        "{listed}"
    );
    let next = containerd.run("next");
    containerd.call(&["task", "rm", "-f", "orphan"]);
    containerd.call(&["container", "rm", "orphan"]);
    assert_eq!(
        machine.place().get(one(&next.place, "eth0", 4), 80, "name"),
        "next"
    );
    containerd.end(vec![next]);
    machine.assert_nothing_left(&before);
}

/// Nobody calls DEL for a container whose `ctr` was killed.
#[test]
fn container_when_nobody_deletes_its_network_is_kept_while_it_lives_and_collected_by_hand_after() {
    let world = World::start();
    let limits = json!({ "type": "bandwidth", "ingressRate": 400_000_000, "ingressBurst": 40_000_000,
        "egressRate": 400_000_000, "egressBurst": 40_000_000 });
    world.add_network(&flannel_list("cbr0", &[fixed_ports(), limits]));
    let machine = &world.machines[0];
    let containerd = Containerd::start(machine);
    let before = warm(&containerd, &world, 1);
    let (leaked, other) = (containerd.run("leaked"), containerd.run("other"));
    machine.kill(&["ctr", "run --rm", " leaked"]);
    leaked.done_with_words();
    let ipam = |arguments: &[&str]| {
        // Older than the minute in which nothing is garbage.
        let touch = "touch -d '1 hour ago' /var/lib/cni/networks/cbr0/*";
        machine.node.run(&["sh", "-c", touch]).unwrap();
        let words = [&["flannelctl", "ipam"], arguments].concat();
        machine.node.run(&words).unwrap()
    };
    assert!(ipam(&["list"]).contains("cbr0: 4 held (4 alive)"));
    assert_eq!(ipam(&["gc"]), "nothing to free\n");
    containerd.call(&["task", "rm", "-f", "leaked"]);
    containerd.call(&["container", "rm", "leaked"]);
    let mut said = String::new();
    wait("its namespace to be gone", || {
        said.push_str(&ipam(&["gc"]));
        (!said.contains("freed ")).then(|| said.clone())
    });
    assert_eq!(said.matches("freed ").count(), 2, "{said}");
    assert!(ipam(&["list"]).contains("cbr0: 2 held (2 alive)"));
    let address = one(&other.place, "eth0", 4);
    assert_eq!(machine.place().get(address, 80, "name"), "other");
    containerd.end(vec![other]);
    // What runtimes remember is theirs.
    machine
        .node
        .run(&["sh", "-c", "rm -f /var/lib/cni/results/*leaked*"])
        .unwrap();
    machine.assert_nothing_left(&before);
}

#[test]
fn containers_when_plugins_are_changed_under_ctr_stay_reachable_and_are_removed_by_the_others() {
    let world = World::start();
    world.add_network(&shipped_list());
    let machine = &world.machines[0];
    let (containerd, distant) = (Containerd::start(machine), Containerd::start(&world.machines[1]));
    let distant = distant.run("distant");
    let before = warm(&containerd, &world, 1);
    let reachable = |place: &Place| {
        for family in [4, 6] {
            let address = one(place, "eth0", family);
            assert_eq!(
                distant.place.get(address, 80, "name"),
                place.name,
                "family {family}"
            );
        }
    };
    // What Go's leave of our index stays: those rounds are the last.
    for (ours_come, all) in [(true, true), (true, false), (false, true), (false, false)] {
        match ours_come {
            true => machine.uninstall_ours(),
            false => machine.install_ours(all),
        }
        let old = containerd.run("old");
        match ours_come {
            true => machine.install_ours(all),
            false => machine.uninstall_ours(),
        }
        let new = containerd.run("new");
        reachable(&old.place);
        reachable(&new.place);
        containerd.end(vec![old, new]);
        match ours_come {
            true => machine.assert_nothing_left(&before),
            false => machine.assert_only_indices_left(&before),
        }
    }
}
