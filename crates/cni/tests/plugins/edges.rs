//! Odd hosts: bridges and interfaces that others have made or set, addresses that the dead hold, names the kernel has its own mind about.

use serde_json::Value;

use crate::rig::{Answer, Call, Host, ID};

fn flannel(host: &mut Host, verb: &'static str, i: usize, container: &'static str, more: &str) -> Answer {
    let stdin = host.config("cbr0", more);
    let call = Call {
        container,
        netns: host.pod(i),
        ..host.call("flannel", verb, stdin)
    };
    host.run(&call)
}

fn mac_of(host: &Host, link: &str) -> String {
    let links: Value = serde_json::from_str(&host.ip(&["-j", "link", "show", "dev", link])).unwrap();
    links[0]["address"].as_str().unwrap().to_owned()
}

/// A bridge without an address of its own has that of its lowest port; every pod that comes with a lower one would be the gateway's
/// new address, of which the others know nothing.
#[test]
fn bridge_when_an_admin_made_it_with_its_address_keeps_its_mac_through_pods() {
    let mut host = Host::new();
    // sysfs shows the network namespace it was mounted in, as a host's does.
    host.ip(&["link", "add", "cni0", "type", "bridge"]);
    host.ip(&["addr", "add", "10.244.7.1/24", "dev", "cni0"]);
    host.ip(&["link", "set", "cni0", "up"]);
    let call_with_sysfs = |host: &mut Host, i: usize, container: &'static str| {
        let stdin = host.config("cbr0", "");
        let mut call = Call {
            container,
            netns: host.pod(i),
            ..host.call("flannel", "ADD", stdin)
        };
        let inner = host.script(
            "sysfs/inner",
            &format!(
                "mount -t sysfs sysfs /sys || exit 120\nexec {}",
                call.program.display()
            ),
        );
        call.program = host.script(
            "sysfs/flannel",
            &format!("exec unshare --mount {}", inner.display()),
        );
        host.run(&call).ok()
    };
    call_with_sysfs(&mut host, 0, "a");
    let mac = mac_of(&host, "cni0");
    for (i, container) in [(1, "b"), (2, "c"), (3, "d")] {
        call_with_sysfs(&mut host, i, container);
        assert_eq!(mac_of(&host, "cni0"), mac);
    }
    for (i, container) in [(0, "a"), (1, "b"), (2, "c"), (3, "d")] {
        flannel(&mut host, "DEL", i, container, "").ok();
        assert_eq!(mac_of(&host, "cni0"), mac);
    }
}

#[test]
fn bridge_when_it_is_of_a_former_subnet_is_mended_where_nobody_uses_it_and_named_where_somebody_does() {
    let mut host = Host::new();
    flannel(&mut host, "ADD", 0, "old", "").ok();
    host.subnet_env("10.244.0.0/16", "10.244.9.1/24", "", "", true);
    let status = |host: &mut Host| {
        let stdin = host.config("cbr0", "").replace("1.0.0", "1.1.0");
        let call = host.call("flannel", "STATUS", stdin);
        host.run(&call)
    };
    for answer in [flannel(&mut host, "ADD", 1, "new", ""), status(&mut host)] {
        let msg = answer.failure().1;
        assert!(
            msg.contains("\"cni0\" already has an IP address different from 10.244.9.1/24"),
            "{msg}"
        );
        let details = answer.json()["details"].as_str().unwrap().to_owned();
        assert!(
            details.contains("cni0 has 10.244.7.1/24, as of a subnet that this host had before"),
            "{details}"
        );
        assert!(
            details.contains("ip address del 10.244.7.1/24 dev cni0"),
            "{details}"
        );
    }
    assert_eq!(host.bridge_addresses(), ["10.244.7.1/24"]);
    flannel(&mut host, "DEL", 0, "old", "").ok();
    status(&mut host).ok();
    flannel(&mut host, "ADD", 1, "new", "").ok();
    assert_eq!(host.bridge_addresses(), ["10.244.9.1/24"]);
    host.pod_exec(1, &["ping", "-c1", "-W5", "10.244.9.1"]);
    flannel(&mut host, "DEL", 1, "new", "").ok();
    // Somebody's own address, which is no gateway's, stays.
    host.ip(&["addr", "flush", "dev", "cni0"]);
    host.ip(&["addr", "add", "192.0.2.77/24", "dev", "cni0"]);
    assert_eq!(status(&mut host).failure().0, 50);
    flannel(&mut host, "ADD", 1, "new", "").failure();
    assert_eq!(host.bridge_addresses(), ["192.0.2.77/24"]);
}

#[test]
fn bridge_when_ipv6_is_off_on_it_serves_ipv6_pods_all_the_same() {
    let mut host = Host::new();
    host.dual_stack();
    host.ip(&["link", "add", "cni0", "type", "bridge"]);
    host.exec(&["sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/cni0/disable_ipv6"]);
    flannel(&mut host, "ADD", 0, ID, "").ok();
    assert_eq!(host.sysctl("ipv6/conf/cni0/disable_ipv6"), "0");
    host.pod_exec(0, &["ping", "-c1", "-W5", "fd00:10:244:7::1"]);
}

/// With forwarding on, the kernel forgets what it has from routers and hears no more of them, unless an interface has 2.
#[test]
fn host_when_its_first_ipv6_pod_comes_keeps_the_routes_it_has_from_router_advertisements() {
    let mut host = Host::new();
    host.dual_stack();
    host.exec(&["sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding"]);
    for (link, accept) in [("up0", "1"), ("quiet0", "1"), ("never0", "0")] {
        let peer = format!("{link}-peer");
        host.ip(&["link", "add", link, "type", "veth", "peer", "name", &peer]);
        for end in [link, &peer] {
            host.ip(&["link", "set", end, "up"]);
        }
        let path = format!("/proc/sys/net/ipv6/conf/{link}/accept_ra");
        host.exec(&["sh", "-c", &format!("echo {accept} > {path}")]);
    }
    for link in ["up0", "never0"] {
        host.ip(&[
            "-6",
            "route",
            "add",
            "default",
            "via",
            "fe80::1",
            "dev",
            link,
            "proto",
            "ra",
            "metric",
            if link == "up0" { "1024" } else { "2048" },
        ]);
    }
    flannel(&mut host, "ADD", 0, ID, "").ok();
    assert_eq!(host.sysctl("ipv6/conf/all/forwarding"), "1");
    let accepts =
        ["up0", "quiet0", "never0", "cni0"].map(|link| host.sysctl(&format!("ipv6/conf/{link}/accept_ra")));
    assert_eq!(accepts, ["2", "1", "0", "0"]);
    // Nor does one pod's advertisement reach its neighbours.
    assert_eq!(
        host.pod_exec(0, &["cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra"])
            .trim(),
        "0"
    );
}

#[test]
fn interface_when_its_name_is_a_template_of_the_kernels_is_refused_and_nothing_is_made() {
    let mut host = Host::new();
    let stdin = host.config("cbr0", "");
    for ifname in ["eth%d", "a%", "%"] {
        let call = Call {
            ifname,
            ..host.call("flannel", "ADD", stdin.clone())
        };
        let (code, msg) = host.run(&call).failure();
        assert!(code == 4 && msg.contains('%'), "{ifname}: {msg}");
        let call = Call {
            ifname,
            ..host.call("flannel", "DEL", stdin.clone())
        };
        host.run(&call).ok();
    }
    let stdin = host.config("cbr0", r#","delegate":{"isDefaultGateway":true,"bridge":"br%d"}"#);
    let call = host.call("flannel", "ADD", stdin);
    let (_, msg) = host.run(&call).failure();
    assert!(
        msg.contains("bridge is \"br%d\": expected a link name without %"),
        "{msg}"
    );
    assert_eq!(host.links(), Vec::<String>::new());
    assert_eq!(host.pod_links(0), Vec::<String>::new());
    host.assert_nothing_left("cbr0");
}

#[test]
fn check_when_the_network_never_was_the_containers_answers_as_gos() {
    let mut host = Host::new();
    flannel(&mut host, "ADD", 0, ID, "").ok();
    // Saved by ours, by Go's for another network, and nothing at all.
    for (name, ifname, container) in [("other", "net1", ID), ("cbr0", "eth0", "nobody")] {
        let stdin = host.config(name, "");
        let call = Call {
            container,
            ifname,
            ..host.call("flannel", "CHECK", stdin)
        };
        host.run(&call).ok();
    }
    // Its own is looked at.
    host.pod_ip(0, &["link", "del", "eth0"]);
    flannel(&mut host, "CHECK", 0, ID, "").failure();
}

/// A reservation as a container that is gone has left it.
fn hold(host: &Host, address: &str, container: &str) {
    let path = host.path(&format!("networks/cbr0/{address}"));
    std::fs::create_dir_all(host.path("networks/cbr0")).unwrap();
    std::fs::write(&path, format!("{container}\r\neth0")).unwrap();
    host.exec(&["touch", "-d", "3 hours ago", &path]);
}

#[test]
fn requested_address_when_a_dead_container_holds_it_is_freed_and_given() {
    let mut host = Host::new();
    host.subnet_env("10.244.0.0/16", "10.244.67.1/24", "", "", true);
    // Where the machine's processes are out of sight, the links of those that live say who does not.
    flannel(&mut host, "ADD", 2, "first", "").ok();
    hold(&host, "10.244.67.50", "dead");
    let more = r#","runtimeConfig":{"ips":["10.244.67.50"]}"#;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let added = loop {
        // Where other tests' containers are just coming or going, it cannot tell.
        let answer = flannel(&mut host, "ADD", 0, ID, more);
        if answer.status == 0 || std::time::Instant::now() > deadline {
            break answer.ok();
        }
    };
    assert_eq!(added.addresses(), ["10.244.67.50/24"]);
    // Held by one that lives it is refused, with the name of that one.
    let answer = flannel(&mut host, "ADD", 1, "second", more);
    let msg = answer.failure().1;
    assert!(
        msg.contains("requested IP address 10.244.67.50 is not available in range set"),
        "{msg}"
    );
    let details = answer.json()["details"].as_str().unwrap().to_owned();
    assert!(
        details.contains(&format!("{ID} eth0 has held it for ")),
        "{details}"
    );
    // host-local by itself frees nobody's, and says since when.
    hold(&host, "10.244.67.51", "old");
    let stdin = format!(
        r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"x","ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.244.67.0/24"}}]]}}}}"#,
        host.path("networks")
    );
    let call = Call {
        container: "third",
        args: "IP=10.244.67.51",
        ..host.call("host-local", "ADD", stdin)
    };
    let details = host.run(&call).json()["details"].as_str().unwrap().to_owned();
    assert!(details.contains("old eth0 has held it for 3 h in "), "{details}");
}

#[test]
fn ranges_when_they_cannot_work_are_refused_by_key_and_value_and_keep_nothing_from_being_released() {
    let mut host = Host::new();
    for (range, msg) in [
        (
            r#""rangeStart":"10.0.0.255""#,
            "invalid range set 0: rangeStart 10.0.0.255 comes after rangeEnd 10.0.0.254, the default in network 10.0.0.0/24",
        ),
        (
            r#""rangeStart":"10.0.0.9","rangeEnd":"10.0.0.8""#,
            "invalid range set 0: rangeStart 10.0.0.9 comes after rangeEnd 10.0.0.8 in network 10.0.0.0/24",
        ),
        (
            r#""rangeStart":"10.0.0.1","rangeEnd":"10.0.0.1""#,
            "invalid range set 0: range 10.0.0.1-10.0.0.1 of 10.0.0.0/24 holds no address but the gateway 10.0.0.1",
        ),
        (
            r#""gateway":"10.0.0.0""#,
            "invalid range set 0: gateway 10.0.0.0 is the network address of 10.0.0.0/24",
        ),
        (
            r#""gateway":"10.0.0.255""#,
            "invalid range set 0: gateway 10.0.0.255 is the broadcast address of 10.0.0.0/24",
        ),
    ] {
        let stdin = format!(
            r#"{{"cniVersion":"1.0.0","name":"ranged","type":"x","ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.0.0.0/24",{range}}}]]}}}}"#,
            host.path("networks")
        );
        let call = host.call("host-local", "ADD", stdin.clone());
        assert_eq!(host.run(&call).failure().1, msg);
        // What a version that took it has reserved is released.
        std::fs::create_dir_all(host.path("networks/ranged")).unwrap();
        std::fs::write(host.path("networks/ranged/10.0.0.255"), format!("{ID}\r\neth0")).unwrap();
        let call = host.call("host-local", "DEL", stdin);
        host.run(&call).ok();
        assert_eq!(host.reservations("ranged"), []);
    }
}

/// Somebody holds the namespace, and its path is gone: the address would be handed out while the old pod still has it.
#[test]
fn del_when_the_namespace_lives_on_under_no_path_takes_its_link_away_by_the_hosts_end() {
    let mut host = Host::new();
    flannel(&mut host, "ADD", 0, ID, "").ok();
    let space = host.pod(0);
    let mut held = std::process::Command::new("nsenter")
        .args([&format!("--net={space}"), "sleep", "1000"])
        .spawn()
        .unwrap();
    // Its process is inside before the path goes.
    let inside = format!("/proc/{}/ns/net", held.id());
    let wanted = std::fs::metadata(&space).unwrap();
    let is_inside = || {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(&inside).is_ok_and(|found| found.ino() == wanted.ino())
    };
    while !is_inside() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let ports = |host: &Host| {
        host.links()
            .into_iter()
            .filter(|name| name.starts_with("veth"))
            .count()
    };
    assert_eq!(ports(&host), 1);
    host.remove_pod(0);
    assert_eq!(ports(&host), 1, "the namespace lives on");
    let stdin = host.config("cbr0", "");
    for netns in [space, String::new()] {
        let del = Call {
            netns,
            ..host.call("flannel", "DEL", stdin.clone())
        };
        let answer = host.run(&del);
        let left = ports(&host);
        if left != 0 {
            held.kill().unwrap();
            held.wait().unwrap();
        }
        answer.ok();
        assert_eq!(left, 0);
    }
    held.kill().unwrap();
    held.wait().unwrap();
}
