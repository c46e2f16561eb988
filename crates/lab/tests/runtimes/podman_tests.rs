//! What podman's users do.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lab::witness::{chain, link_names};
use serde_json::json;

use crate::place::{Echo, Place};
use crate::podman::Podman;
use crate::world::{World, flannel_list, portmap, shipped_list};

/// A container that came and went: what it leaves for good (chains that all share, bridges) is there from now on.
fn warm(podman: &Podman<'_>, network: &str) -> Vec<String> {
    podman.run("first", &["--network", network, "-p", "8999:80"]);
    podman.remove("first");
    podman.0.traces()
}

fn one(place: &Place, family: u8) -> IpAddr {
    crate::world::one(place, "eth0", family)
}

#[test]
fn containers_when_podman_starts_them_on_two_hosts_talk_with_full_size_packets() {
    let world = World::start();
    world.add_network(&shipped_list());
    let (first, second) = (Podman::new(&world.machines[0]), Podman::new(&world.machines[1]));
    let before = [warm(&first, "cbr0"), warm(&second, "cbr0")];
    let one = first.run("one", &["--network", "cbr0"]);
    let two = second.run("two", &["--network", "cbr0"]);
    world.assert_talk(&one, &two);
    first.remove("one");
    second.remove("two");
    world.machines[0].assert_nothing_left(&before[0]);
    world.machines[1].assert_nothing_left(&before[1]);
}

/// What is published, and by whom it is heard.
fn assert_ports(world: &World, network: &str, name: &str) {
    let podman = Podman::new(&world.machines[0]);
    let (host4, host6) = (world.address(1, 4), world.address(1, 6));
    let only4 = format!("{host4}:7081:80");
    let only6 = format!("[{host6}]:7083:80");
    let published = ["8080:80", "9090:90/udp", "127.0.0.1:7082:80", &only4, &only6];
    let mut options = vec!["--network", network];
    for port in published {
        options.extend(["-p", port]);
    }
    let server = podman.run(name, &options);
    let neighbour = podman.run("neighbour", &["--network", network]);
    let distant = Podman::new(&world.machines[1]).place("distant");
    let echo = Echo::start(&server, 90, name);
    let (host, outside) = (world.machines[0].place(), world.outside());
    let (loopback, loopback6): (IpAddr, IpAddr) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
    let (bridge4, bridge6) = (
        crate::world::one(&host, "cni0", 4),
        crate::world::one(&host, "cni0", 6),
    );
    for (from, address, port, answers) in [
        (&outside, host4, 8080, true),
        (&outside, host6, 8080, true),
        (&host, host4, 8080, true),
        (&host, host6, 8080, true),
        (&host, bridge4, 8080, true),
        (&host, bridge6, 8080, true),
        (&host, loopback, 8080, true),
        (&neighbour, host4, 8080, true),
        (&neighbour, host6, 8080, true),
        (&neighbour, bridge4, 8080, true),
        (&distant, host4, 8080, true),
        (&distant, host6, 8080, true),
        // Hairpin: a container asks for itself by the host's address.
        (&server, host4, 8080, true),
        (&server, host6, 8080, true),
        (&server, bridge4, 8080, true),
        // Published on one address only.
        (&outside, host4, 7081, true),
        (&host, host4, 7081, true),
        (&server, host4, 7081, true),
        (&host, bridge4, 7081, false),
        (&outside, host6, 7081, false),
        (&host, loopback, 7082, true),
        (&outside, host4, 7082, false),
        (&neighbour, bridge4, 7082, false),
        (&outside, host6, 7083, true),
        (&host, host6, 7083, true),
        (&server, host6, 7083, true),
        (&host, bridge6, 7083, false),
        (&outside, host4, 7083, false),
    ] {
        let heard = from.get(address, port, "name");
        let expected = if answers { name } else { "" };
        assert_eq!(
            heard, expected,
            "{network}: from {} to {address} port {port}",
            from.name
        );
    }
    for (from, address) in [
        (&outside, host4),
        (&outside, host6),
        (&host, host4),
        (&host, host6),
        (&host, loopback),
        (&neighbour, host4),
        (&neighbour, host6),
        (&distant, host4),
        (&server, host4),
        (&server, host6),
    ] {
        assert_eq!(
            from.ask(address, 9090),
            name,
            "{network}: udp from {} to {address}",
            from.name
        );
    }
    // The kernel does not route IPv6's loopback address, whatever the rules say.
    assert_eq!(host.ask_once(loopback6, 9090), "", "{network}");
    drop(echo);
    podman.remove(name);
    podman.remove("neighbour");
    assert_eq!(outside.get(host4, 8080, "name"), "", "{network}");
}

#[test]
fn ports_when_podman_publishes_them_answer_from_everywhere_they_should() {
    let world = World::start();
    world.add_network(&flannel_list("cbr0", &[portmap()]));
    let mut nftables = portmap();
    nftables["backend"] = json!("nftables");
    world.add_network(&flannel_list("nft", &[nftables]));
    let podman = Podman::new(&world.machines[0]);
    Podman::new(&world.machines[1]).run("distant", &["--network", "cbr0"]);
    for (network, ours) in [("cbr0", true), ("nft", true), ("cbr0", false)] {
        let before = warm(&podman, network);
        if !ours {
            podman.0.uninstall_ours();
        }
        let name = if ours { "server" } else { "of-go" };
        assert_ports(&world, network, name);
        podman.0.assert_nothing_left(&before);
    }
}

#[test]
fn container_when_podman_attaches_it_to_several_networks_lives_through_restart_and_reload() {
    let world = World::start();
    let limits = json!({
        "type": "bandwidth", "ingressRate": 400_000_000, "ingressBurst": 40_000_000, "egressRate": 400_000_000, "egressBurst": 40_000_000
    });
    world.add_network(&flannel_list("cbr0", &[portmap()]));
    let mut second = flannel_list("second", &[portmap(), limits]);
    second["plugins"][0]["delegate"]["ipMasq"] = json!(true);
    world.add_network(&second);
    let podman = Podman::new(&world.machines[0]);
    podman
        .call(&["network", "create", "--subnet", "10.77.0.0/24", "plain"])
        .unwrap();
    warm(&podman, "plain");
    let before = warm(&podman, "cbr0,second");
    let distant = Podman::new(&world.machines[1]).run("distant", &["--network", "cbr0"]);
    let outside = world.outside();
    for networks in ["cbr0,second", "cbr0,plain"] {
        let name = networks.replace(',', "-");
        let reaches = |place: &Place| {
            let second = place.addresses("eth1");
            assert!(!second.is_empty(), "{networks}");
            for address in place.addresses("eth0").iter().chain(&second) {
                assert_eq!(
                    podman.0.place().get(address.addr(), 80, "name"),
                    name,
                    "{networks}: {address}"
                );
            }
            assert_eq!(place.get(one(&distant, 4), 80, "name"), "distant", "{networks}");
            assert_eq!(outside.get(world.address(1, 4), 8080, "name"), name, "{networks}");
            second
        };
        let place = podman.run(&name, &["--network", networks, "-p", "8080:80"]);
        let second = reaches(&place);
        assert!(place.addresses("eth0").iter().all(|a| !second.contains(a)));
        let shaped = || {
            link_names(&podman.0.node)
                .unwrap()
                .iter()
                .filter(|l| l.starts_with("bwp"))
                .count()
        };
        assert_eq!(shaped(), usize::from(networks == "cbr0,second"));
        podman.call(&["restart", "-t", "0", &name]).unwrap();
        reaches(&podman.place(&name));
        // What a firewall that is started anew does, and what podman's manual says then.
        podman
            .0
            .node
            .run(&["iptables", "-t", "nat", "-F", "CNI-HOSTPORT-DNAT"])
            .unwrap();
        let mapped = chain(&podman.0.node, 4, "CNI-HOSTPORT-DNAT").unwrap();
        assert_eq!(mapped, Vec::<String>::new());
        podman.call(&["network", "reload", &name]).unwrap();
        reaches(&podman.place(&name));
        podman.call(&["stop", "-t", "0", &name]).unwrap();
        podman.0.assert_nothing_left(&before);
        podman.remove(&name);
        podman.0.assert_nothing_left(&before);
    }
}

#[test]
fn twenty_containers_when_podman_starts_and_removes_them_at_once_leave_nothing() {
    let world = World::start();
    world.add_network(&flannel_list("cbr0", &[portmap()]));
    let podman = Podman::new(&world.machines[0]);
    let before = warm(&podman, "cbr0");
    let names: Vec<String> = (0..20).map(|i| format!("many{i}")).collect();
    let each = |work: &(dyn Fn(usize, &str) + Sync)| {
        std::thread::scope(|scope| {
            for (i, name) in names.iter().enumerate() {
                scope.spawn(move || work(i, name));
            }
        });
    };
    each(&|i, name| {
        podman
            .start(name, &["--network", "cbr0", "-p", &format!("{}:80", 8100 + i)])
            .unwrap()
    });
    let mut addresses = std::collections::BTreeSet::new();
    for (i, name) in names.iter().enumerate() {
        let place = podman.place(name);
        addresses.extend(place.addresses("eth0"));
        let heard = world.outside().get(world.address(1, 4), 8100 + i as u16, "name");
        assert_eq!(heard, *name);
    }
    assert_eq!(addresses.len(), 2 * names.len());
    each(&|_, name| podman.remove(name));
    podman.0.assert_nothing_left(&before);
}

#[test]
fn container_when_its_conmon_is_killed_is_removed_whole() {
    let world = World::start();
    world.add_network(&flannel_list("cbr0", &[portmap()]));
    let podman = Podman::new(&world.machines[0]);
    let before = warm(&podman, "cbr0");
    let place = podman.run("victim", &["--network", "cbr0", "-p", "8080:80"]);
    podman.0.kill(&["conmon", "-n victim"]);
    assert_eq!(place.get(one(&place, 4), 80, "name"), "victim");
    podman.remove("victim");
    podman.0.assert_nothing_left(&before);
    // The container's own process: conmon then calls podman's cleanup by itself.
    podman.run("gone", &["--network", "cbr0", "-p", "8080:80"]);
    podman.0.kill(&["httpd", "/srv/gone"]);
    podman.0.assert_nothing_left(&before);
}

#[test]
fn containers_when_plugins_are_changed_under_them_stay_reachable_and_are_removed_by_the_others() {
    let world = World::start();
    world.add_network(&shipped_list());
    let distant = Podman::new(&world.machines[1]).run("distant", &["--network", "cbr0"]);
    let podman = Podman::new(&world.machines[0]);
    let (machine, outside) = (podman.0, world.outside());
    let before = warm(&podman, "cbr0");
    // What Go's leave of our index stays: those rounds are the last.
    for (ours_come, all) in [(true, true), (true, false), (false, true), (false, false)] {
        match ours_come {
            true => machine.uninstall_ours(),
            false => machine.install_ours(all),
        }
        let old = podman.run("old", &["--network", "cbr0", "-p", "8180:80"]);
        let older = podman.run("older", &["--network", "cbr0", "-p", "8181:80"]);
        match ours_come {
            true => machine.install_ours(all),
            false => machine.uninstall_ours(),
        }
        let new = podman.run("new", &["--network", "cbr0", "-p", "8182:80"]);
        for (place, port) in [(&old, 8180), (&older, 8181), (&new, 8182)] {
            for family in [4, 6] {
                let what = format!(
                    "{} in family {family}, ours come: {ours_come}, all: {all}",
                    place.name
                );
                assert_eq!(distant.get(one(place, family), 80, "name"), place.name, "{what}");
                let heard = outside.get(world.address(1, family), port, "name");
                assert_eq!(heard, place.name, "{what}");
            }
        }
        assert_ne!(one(&old, 4), one(&new, 4));
        // Stopped by those that did not make it, started by them, stopped by them.
        podman.call(&["restart", "-t", "0", "older"]).unwrap();
        let older = podman.place("older");
        assert_eq!(distant.get(one(&older, 4), 80, "name"), "older");
        for name in ["old", "older", "new"] {
            podman.remove(name);
        }
        match ours_come {
            true => machine.assert_nothing_left(&before),
            false => machine.assert_only_indices_left(&before),
        }
    }
}

#[test]
fn plugins_when_podman_looks_at_a_network_are_asked_for_their_versions() {
    let world = World::start();
    let limits = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } });
    let podman = Podman::new(&world.machines[0]);
    podman.0.add_network(&flannel_list("cbr0", &[portmap(), limits]));
    let mut list = flannel_list("by-hand", &[]);
    list["cniVersion"] = json!("1.0.0");
    list["plugins"] = json!([{ "type": "bridge", "bridge": "other0", "isGateway": true,
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.88.0.0/24" }]] } }]);
    podman.0.add_network(&list);
    podman.0.install_recorder();
    let listed = podman.call(&["network", "ls", "--format", "{{.Name}}"]).unwrap();
    for name in ["cbr0", "by-hand"] {
        assert!(listed.lines().any(|l| l == name), "{listed}");
    }
    let calls = podman.0.calls();
    for plugin in ["flannel", "portmap", "bandwidth", "bridge"] {
        assert!(calls.contains(&format!("VERSION {plugin} dummy")), "{calls:?}");
    }
    podman.run("recorded", &["--network", "cbr0", "-p", "8080:80"]);
    podman.remove("recorded");
    let calls = podman.0.calls();
    let of = |verb: &str| -> Vec<&String> { calls.iter().filter(|c| c.starts_with(verb)).collect() };
    assert_eq!(
        of("ADD"),
        ["ADD flannel eth0", "ADD portmap eth0", "ADD bandwidth eth0"]
    );
    assert_eq!(
        of("DEL")[..3],
        ["DEL bandwidth eth0", "DEL portmap eth0", "DEL flannel eth0"]
    );
}
