//! Ending and starting the daemon: no packet is lost, and nothing in the kernel changes.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

use std::process::Stdio;
use std::time::Duration;

use lab::flannel::SUBNET_ENV;
use lab::flannel::config;
use lab::reach::parse_echo;
use lab::rig::{Rig, Wish};
use lab::witness::{Monitor, link, picture, routes};
use lab::{Families, Lab, LabError};
use serde_json::{Value, json};

fn no_packet_is_lost(backend: serde_json::Value) {
    let mut rig = Rig::start(&Wish::new(backend)).unwrap();
    rig.lab.add_pods().unwrap();
    let pods = rig.lab.state.pods.clone();
    let mut pings = Vec::new();
    for family in [4, 6] {
        let target = pods[1].address(family).unwrap().to_string();
        // The first packet may wait for neighbours; the count begins after it.
        rig.lab
            .pod_end(&pods[0])
            .ping(&["-c", "3", "-i", "0.1", "-W", "3", &target])
            .unwrap();
        let mut command = rig
            .lab
            .pod_end(&pods[0])
            .command(&["ping", "-n", "-q", "-i", "0.01", "-c", "600", "-W", "2", &target]);
        pings.push(command.stdout(Stdio::piped()).spawn().unwrap());
    }
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(700));
        rig.restart(1, &[]).unwrap();
        std::thread::sleep(Duration::from_millis(700));
        rig.restart(2, &[]).unwrap();
    }
    for ping in pings {
        let output = ping.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let echo = parse_echo(&text).unwrap();
        assert_eq!((echo.sent, echo.received), (600, 600), "{text}");
    }
    rig.wait_for_health().unwrap();
}

#[test]
fn vxlan_kill_9_under_ping_loses_no_packet() {
    no_packet_is_lost(json!({ "Type": "vxlan" }));
}

#[test]
fn host_gw_kill_9_under_ping_loses_no_packet() {
    no_packet_is_lost(json!({ "Type": "host-gw" }));
}

#[test]
fn restart_changes_nothing_in_the_kernel() {
    for backend in [json!({ "Type": "vxlan" }), json!({ "Type": "host-gw" })] {
        let mut rig = Rig::start(&Wish::new(backend.clone()).hosts(3)).unwrap();
        rig.wait_for_health().unwrap();
        addresses_are_settled(&rig);
        let before = picture(rig.lab.host(1)).unwrap();
        let leases = rig.lab.leases().unwrap();
        let monitor = Monitor::start(rig.lab.host(1), "restart").unwrap();
        rig.restart(1, &[]).unwrap();
        rig.wait_for_health().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let seen: Vec<String> = monitor
            .seen(&["flannel", "10.244.", "fd00:10:244"])
            .into_iter()
            .filter(|line| !line.contains("lladdr") || line.contains("PERMANENT"))
            .collect();
        monitor.stop();
        assert_eq!(seen, Vec::<String>::new(), "{backend}: ip monitor saw changes");
        assert_eq!(picture(rig.lab.host(1)).unwrap(), before, "{backend}");
        assert_eq!(
            rig.lab.leases().unwrap(),
            leases,
            "{backend}: the same keys and values"
        );
    }
}

#[test]
fn hangup_executes_the_daemon_anew_in_the_same_process() {
    let rig = Rig::start(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(2)).unwrap();
    rig.wait_for_health().unwrap();
    let before = picture(rig.lab.host(1)).unwrap();
    let record = rig.daemons[0].record().clone();
    let started = || -> u64 {
        let status = rig
            .lab
            .host(1)
            .run(&["sh", "-c", "flannelctl status --json; true"])
            .unwrap_or_default();
        serde_json::from_str::<serde_json::Value>(&status).map_or(0, |s| s["started"].as_u64().unwrap_or(0))
    };
    let first = started();
    assert!(first > 0);
    std::thread::sleep(Duration::from_millis(1100));
    record.signal(rustix::process::Signal::HUP);
    rig.wait("a new start in the old process", 15, |_| {
        Ok((started() <= first).then(|| "no".to_owned()))
    })
    .unwrap();
    assert!(record.alive(), "the same process");
    rig.wait_for_health().unwrap();
    assert_eq!(picture(rig.lab.host(1)).unwrap(), before);
}

/// Two networks on the same hosts: other prefix, Network, VNI, subnet file.
#[test]
fn two_daemons_on_one_host_do_not_touch_each_other() {
    let mut rig = Rig::start(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(2)).unwrap();
    let mut second = config(Families::V4, json!({ "Type": "vxlan", "VNI": 2 }));
    second["Network"] = json!("10.99.0.0/16");
    rig.lab
        .put("/second/network/config", &second.to_string())
        .unwrap();
    let endpoint = rig.lab.store().unwrap().endpoint.clone();
    let start = |lab: &Lab, host: usize| {
        let flags = [
            "flanneld",
            "--etcd-endpoints",
            &endpoint,
            "--etcd-prefix=/second/network",
            "--iface=eth0",
            "--ip-masq",
            "--subnet-file=/run/flannel/second.env",
        ];
        lab.host(host).spawn("second", &flags).unwrap()
    };
    let mut seconds = [start(&rig.lab, 1), start(&rig.lab, 2)];
    let env = |lab: &Lab, host: usize| {
        lab.host(host)
            .read("/run/flannel/second.env")
            .ok()
            .map(|t| lab::flannel::Env::parse(&t))
            .and_then(|e| e.subnet)
    };
    rig.wait("the second network", 20, |rig| {
        let (Some(_), Some(other)) = (env(&rig.lab, 1), env(&rig.lab, 2)) else {
            return Ok(Some(format!("a subnet: {}", seconds_log(&rig.lab))));
        };
        let route = routes(rig.lab.host(1), 4)?
            .into_iter()
            .find(|r| r.destination() == Some(other.trunc()));
        Ok(route
            .is_none_or(|r| r.dev != "flannel.2")
            .then(|| format!("a route to {other}: {}", seconds_log(&rig.lab))))
    })
    .unwrap();
    // The firewall of both settles, then everything holds still, whatever resyncs run and whoever restarts.
    let rules = |lab: &Lab| lab::fault::firewall_text(lab.host(1));
    rig.wait("rules of both networks", 15, |rig| {
        let text = rules(&rig.lab)?;
        let both = ["10.244.0.0/16", "10.99.0.0/16"].iter().all(|n| text.contains(n));
        Ok((!both).then_some(text))
    })
    .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let before = picture(rig.lab.host(1)).unwrap();
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(
        picture(rig.lab.host(1)).unwrap(),
        before,
        "nothing moves while both run"
    );
    rig.restart(1, &[]).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(picture(rig.lab.host(1)).unwrap(), before, "the first restarts");
    seconds[0].kill();
    seconds[0] = start(&rig.lab, 1);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(picture(rig.lab.host(1)).unwrap(), before, "the second restarts");
    // What is broken of one is repaired by that one.
    rig.lab.host(1).ip(&["link", "del", "flannel.2"]).unwrap();
    rig.wait("flannel.2 again, with its route", 10, |rig| {
        let there = link(rig.lab.host(1), "flannel.2")?.is_some();
        let routed = routes(rig.lab.host(1), 4)?.iter().any(|r| r.dev == "flannel.2");
        Ok((!(there && routed)).then(|| seconds_log(&rig.lab)))
    })
    .unwrap();
}

fn seconds_log(lab: &Lab) -> String {
    lab::process::tail(&lab.spec.directory().join("h1-second.log"), 8)
}

/// Where a daemon with the default subnet file keeps what the registry last said.
const CACHE: &str = "/var/lib/flannel/cache";

/// The kernel's state but for the numbers of links, which are other ones after a reboot.
fn state(lab: &Lab) -> Result<Vec<String>, LabError> {
    let unnumbered = |line: String| match line.strip_prefix("link ").and_then(|rest| rest.split_once(' ')) {
        Some((_, rest)) => format!("link {rest}"),
        None => line,
    };
    let mut lines: Vec<String> = picture(lab.host(1))?.into_iter().map(unnumbered).collect();
    lines.sort();
    Ok(lines)
}

fn status(rig: &Rig, host: usize) -> Value {
    let text = rig
        .lab
        .host(host)
        .run(&["sh", "-c", "flannelctl status --json; true"])
        .unwrap_or_default();
    serde_json::from_str(&text).unwrap_or(Value::Null)
}

fn reasons(rig: &Rig, host: usize) -> String {
    status(rig, host)["reasons"].to_string()
}

/// The kernel's own link-local addresses become valid a second or two after their devices came up.
fn addresses_are_settled(rig: &Rig) {
    rig.settle("no tentative address", &String::new(), |lab| {
        lab.host(1).ip(&["-6", "addr", "show", "tentative"])
    })
    .unwrap();
}

/// Waits until what h1 would serve from is what the registry has now.
fn cached(rig: &Rig) {
    let keys: Vec<String> = rig
        .lab
        .leases()
        .unwrap()
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    rig.wait("every lease in h1's cache", 30, |rig| {
        let text = rig.lab.host(1).read(CACHE).unwrap_or_default();
        let lacks = keys.iter().find(|key| !text.contains(&format!("\n{key} ")));
        Ok(lacks.map(|key| format!("{key} in {text:?}")))
    })
    .unwrap();
}

/// What a reboot leaves of flannel: files on disk.
fn reboot(rig: &mut Rig) {
    rig.daemons[0].kill();
    rig.lab
        .host(1)
        .shell(
            "for link in flannel.1 flannel-v6.1; do ip link del $link 2>/dev/null || true; done
             ip -4 route flush proto 241; ip -6 route flush proto 241
             for tables in iptables ip6tables; do
               $tables -t nat -F; $tables -t nat -X; $tables -F; $tables -X
             done
             rm -rf /run/flannel/*",
        )
        .unwrap();
}

fn kernel_holds_still(rig: &Rig, monitor: Monitor) {
    let seen: Vec<String> = monitor
        .seen(&["flannel", "10.244.", "fd00:10:244"])
        .into_iter()
        .filter(|line| !line.contains("lladdr") || line.contains("PERMANENT"))
        .collect();
    monitor.stop();
    assert_eq!(
        seen,
        Vec::<String>::new(),
        "ip monitor saw changes; {}",
        rig.daemons[0].log()
    );
}

fn a_reboot_without_the_registry_serves_from_the_cache(backend: Value, blackhole: bool) {
    let mut rig = Rig::start(&Wish::new(backend).hosts(3)).unwrap();
    rig.lab.add_pods().unwrap();
    let pods = rig.lab.state.pods.clone();
    rig.wait_for_health().unwrap();
    cached(&rig);
    addresses_are_settled(&rig);
    let before = state(&rig.lab).unwrap();
    let env = rig.lab.host(1).read(SUBNET_ENV).unwrap();
    let leases = rig.lab.leases().unwrap();
    if blackhole {
        // Nobody says no: the registry's host is gone, or a firewall in between.
        let registry = rig.lab.store().unwrap().endpoint.clone();
        let registry = registry
            .trim_start_matches("http://")
            .split(':')
            .next()
            .unwrap()
            .to_owned();
        rig.lab.host(1).shell(&format!("nft 'add table ip away; add chain ip away out {{ type filter hook output priority 0; }}; add rule ip away out ip daddr {registry} drop'")).unwrap();
    } else {
        rig.lab.kill_store();
    }
    reboot(&mut rig);
    rig.restart(1, &[]).unwrap();
    for pod in &pods[1..] {
        for family in [4, 6] {
            let target = pod.address(family).unwrap().to_string();
            rig.wait("an answer of a pod of a known peer", 15, |rig| {
                let ping = ["-c", "1", "-W", "1", target.as_str()];
                Ok(rig.lab.pod_end(&pods[0]).ping(&ping).err().map(|e| e.to_string()))
            })
            .unwrap();
        }
    }
    rig.settle("the kernel as it was", &before, state).unwrap();
    assert_eq!(rig.lab.host(1).read(SUBNET_ENV).unwrap(), env);
    let said = status(&rig, 1);
    assert_eq!(
        (said["ready"].as_bool(), said["registry"]["state"].as_str()),
        (Some(false), Some("stale")),
        "{said}"
    );
    assert!(
        reasons(&rig, 1).contains("stale: served from the cache of 20"),
        "{said}"
    );
    assert!(
        rig.daemons[0].log().contains("ready"),
        "whoever waits for us need not"
    );

    addresses_are_settled(&rig);
    let monitor = Monitor::start(rig.lab.host(1), "registry-back").unwrap();
    if blackhole {
        rig.lab.host(1).shell("nft delete table ip away").unwrap();
    } else {
        let kind = rig.lab.store().unwrap().kind;
        rig.store = rig.lab.start_store(kind).unwrap();
    }
    rig.wait_for_health().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    kernel_holds_still(&rig, monitor);
    assert_eq!(state(&rig.lab).unwrap(), before);
    assert_eq!(rig.lab.host(1).read(SUBNET_ENV).unwrap(), env);
    assert_eq!(rig.lab.leases().unwrap(), leases, "the same keys and values");
}

#[test]
fn vxlan_reboot_with_the_registry_down_serves_from_the_cache() {
    a_reboot_without_the_registry_serves_from_the_cache(json!({ "Type": "vxlan" }), false);
}

#[test]
fn host_gw_reboot_with_the_registry_unreachable_serves_from_the_cache() {
    a_reboot_without_the_registry_serves_from_the_cache(json!({ "Type": "host-gw" }), true);
}

#[test]
fn registry_that_comes_back_empty_is_told_the_leases_again_and_no_route_goes() {
    let mut rig = Rig::start(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(3)).unwrap();
    rig.wait_for_health().unwrap();
    cached(&rig);
    let before = state(&rig.lab).unwrap();
    let key = |(key, _): (String, String)| key;
    let keys: Vec<String> = rig.lab.leases().unwrap().into_iter().map(key).collect();
    let config = rig.lab.get(lab::store::CONFIG_KEY).unwrap().unwrap();
    rig.lab.kill_store();
    reboot(&mut rig);
    rig.restart(1, &[]).unwrap();
    rig.settle("the kernel as it was", &before, state).unwrap();
    std::fs::remove_dir_all(rig.lab.spec.directory().join("registry")).unwrap();
    addresses_are_settled(&rig);
    let monitor = Monitor::start(rig.lab.host(1), "emptied").unwrap();
    let kind = rig.lab.store().unwrap().kind;
    rig.store = rig.lab.start_store(kind).unwrap();
    // It answers, and has nothing: another thing than silence, and said so. What stands goes on standing.
    rig.wait("the truth about an empty registry", 20, |rig| {
        let said = reasons(rig, 1);
        let is_true = said.contains("served from the cache") && said.contains("network config not found");
        Ok((!is_true).then_some(said))
    })
    .unwrap();
    assert_eq!(status(&rig, 1)["registry"]["state"], "waiting-for-config");
    rig.lab.put(lab::store::CONFIG_KEY, &config).unwrap();
    rig.wait("the same leases again", 30, |rig| {
        let now: Vec<String> = rig.lab.leases()?.into_iter().map(key).collect();
        Ok((now != keys).then(|| format!("{now:?} for {keys:?}")))
    })
    .unwrap();
    rig.wait_for_health().unwrap();
    kernel_holds_still(&rig, monitor);
    assert_eq!(state(&rig.lab).unwrap(), before);
}

#[test]
fn cache_of_another_network_or_address_is_not_served_from() {
    let mut rig = Rig::start(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(2)).unwrap();
    rig.wait_for_health().unwrap();
    cached(&rig);
    rig.lab.kill_store();
    reboot(&mut rig);
    for (flags, word) in [
        (
            &["--etcd-prefix=/other/network"][..],
            "/coreos.com/network/subnets/",
        ),
        (&["--public-ip=198.18.99.99"], "is of another address"),
        (
            &["--etcd-endpoints=http://198.18.0.1:2999"],
            "is of the registry at",
        ),
    ] {
        rig.restart(1, flags).unwrap();
        rig.wait("why not", 15, |rig| {
            let said = reasons(rig, 1);
            let why = said.contains("the cache is not served from") && said.contains(word);
            Ok((!why).then_some(said))
        })
        .unwrap();
        assert!(link(rig.lab.host(1), "flannel.1").unwrap().is_none(), "{word}");
        assert!(rig.lab.host(1).read(SUBNET_ENV).is_err(), "{word}");
    }
    // The right flags again.
    rig.restart(1, &[]).unwrap();
    rig.wait("flannel.1", 15, |rig| {
        Ok(link(rig.lab.host(1), "flannel.1")?
            .is_none()
            .then(|| reasons(rig, 1)))
    })
    .unwrap();
}

#[test]
fn subnet_out_of_the_cache_is_yielded_when_the_registry_says_that_it_is_anothers() {
    let mut rig = Rig::start(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(1)).unwrap();
    rig.wait_for_health().unwrap();
    cached(&rig);
    let subnet = rig.subnet(1, 4).unwrap();
    let host = rig.lab.host(1);
    host.shell("nft 'add table ip away; add chain ip away out { type filter hook output priority 0; }; add rule ip away out tcp dport 2379 drop'").unwrap();
    reboot(&mut rig);
    rig.restart(1, &[]).unwrap();
    rig.settle("the same subnet", &Some(subnet), |lab| {
        Ok(lab.env(1).ok().and_then(|env| env.subnet_of(4)))
    })
    .unwrap();
    // The lease ended while this host was away, as far as the registry is concerned, and another host was given it.
    let other = lab::rig::vxlan_lease("198.18.0.77", None, "02:00:00:00:00:77", None);
    let key = format!("{}-{}", subnet.addr(), subnet.prefix_len());
    rig.put_lease(&key, &other).unwrap();
    rig.lab.host(1).shell("nft delete table ip away").unwrap();
    rig.wait_for_health().unwrap();
    assert_ne!(rig.subnet(1, 4).unwrap(), subnet);
    let route = routes(rig.lab.host(1), 4)
        .unwrap()
        .into_iter()
        .find(|r| r.destination() == Some(subnet));
    assert_eq!(
        route.map(|r| r.dev),
        Some("flannel.1".to_owned()),
        "it leads to its new owner"
    );
    assert!(rig.daemons[0].log().contains("is not ours any more"));
}

#[test]
fn cache_is_written_seldom_while_leases_change_often() {
    let rig = Rig::alone(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(1)).unwrap();
    rig.wait_for_health().unwrap();
    cached(&rig);
    let endpoint = rig.lab.store().unwrap().endpoint.clone();
    let mut gateway = lab::gateway::Gateway::connect(rig.lab.switch(), &endpoint).unwrap();
    let file = rig.lab.host(1).path(CACHE);
    let began = std::time::Instant::now();
    let mut versions = std::collections::BTreeSet::new();
    let mut events = 0;
    while began.elapsed() < Duration::from_secs(15) {
        let value = lab::rig::vxlan_lease("198.18.0.77", None, "02:00:00:00:00:01", None).to_string();
        let key = format!("{}10.244.{}.0-24", lab::store::SUBNETS, 200 + events % 50);
        gateway.put(&[(key, value)]).unwrap();
        events += 1;
        if let Ok(found) = std::fs::metadata(&file) {
            use std::os::unix::fs::MetadataExt;
            versions.insert((found.ino(), found.mtime(), found.mtime_nsec()));
        }
        std::thread::sleep(Duration::from_millis(9));
    }
    // At most one per ten seconds, and the one that was there.
    assert!(events > 200, "{events} events");
    assert!(
        (2..=3).contains(&versions.len()),
        "{} versions of the cache in {events} events",
        versions.len()
    );
}

/// Pods have addresses out of it: a node keeps the IPv4 subnet it has when the network becomes dual-stack, also where IPv6 cannot
/// be served.
#[test]
fn node_keeps_its_ipv4_subnet_when_the_network_becomes_dual_stack_also_where_ipv6_is_off() {
    let backend = json!({ "Type": "vxlan" });
    let mut wish = Wish::new(backend.clone());
    wish.config = lab::flannel::config(Families::V4, backend.clone());
    let mut rig = Rig::start(&wish).unwrap();
    let routed = |rig: &Rig, family: u8| {
        rig.wait("a route each", 30, |rig| {
            for (host, peer) in [(1, 2), (2, 1)] {
                let Ok(subnet) = rig.subnet(peer, family) else {
                    return Ok(Some(format!("h{peer} has no subnet")));
                };
                let there = lab::witness::routes(rig.lab.host(host), family)?;
                if !there.iter().any(|route| route.destination() == Some(subnet)) {
                    return Ok(Some(format!("{subnet} on h{host}")));
                }
            }
            Ok(None)
        })
        .unwrap();
    };
    let before = [rig.subnet(1, 4).unwrap(), rig.subnet(2, 4).unwrap()];
    let off = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1";
    rig.lab.host(2).shell(off).unwrap();
    let dual = lab::flannel::config(Families::Both, backend);
    rig.reconfigure(&dual).unwrap();
    for host in [1, 2] {
        rig.restart(host, &[]).unwrap();
    }
    rig.wait("a subnet of each family on h1", 30, |rig| {
        Ok(rig.subnet(1, 6).err().map(|e| e.to_string()))
    })
    .unwrap();
    routed(&rig, 4);
    assert_eq!([rig.subnet(1, 4).unwrap(), rig.subnet(2, 4).unwrap()], before);
    rig.wait("a word of h2 on IPv6", 20, |rig| {
        let said = status(rig, 2).to_string();
        Ok((!said.contains("IPv6")).then_some(said))
    })
    .unwrap();
    rig.lab.host(2).shell(&off.replace("=1", "=0")).unwrap();
    rig.lab
        .host(2)
        .shell("ip link set eth0 down; ip link set eth0 up")
        .unwrap();
    let address = rig.lab.spec.host6(2);
    rig.lab
        .host(2)
        .shell(&format!("ip -6 address replace {address}/64 dev eth0 nodad"))
        .unwrap();
    rig.restart(2, &[]).unwrap();
    routed(&rig, 6);
    routed(&rig, 4);
    assert_eq!([rig.subnet(1, 4).unwrap(), rig.subnet(2, 4).unwrap()], before);
}
