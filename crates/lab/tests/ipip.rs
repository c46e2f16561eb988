//! ipip on hosts: tables I1 to I4, repair, take-over, restart, beside direct routes. Where this machine's kernel has no ipip, what a
//! node says of that and what it serves all the same. Which of the two was tested is printed.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use lab::capture::Capture;
use lab::fault::kernel_text;
use lab::reach::parse_echo;
use lab::rig::{Rig, Wish};
use lab::store::Kind;
use lab::witness::{addresses, has_kind, link, route};
use lab::{Families, LabError};
use serde_json::{Value, json};

const DEVICE: &str = "flannel.ipip";

fn wish(backend: Value) -> Wish {
    let mut wish = Wish::of(Families::V4, backend);
    wish.store = Kind::Embedded;
    wish
}

/// Hosts with daemons, and whether the kernel has ipip.
fn start(wish: &Wish) -> (Rig, bool) {
    let mut rig = Rig::bare(wish).unwrap();
    let has_ipip = has_ipip(&rig);
    rig.daemons = rig.lab.start_daemons(&[]).unwrap();
    (rig, has_ipip)
}

fn has_ipip(rig: &Rig) -> bool {
    let has_ipip = has_kind(rig.lab.host(1), "ipip", &["local", "192.0.2.99"]).unwrap();
    let found = if has_ipip { "has it" } else { "has none" };
    println(&format!("ipip: this kernel {found}"));
    has_ipip
}

fn println(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// What a daemon says of itself.
fn status(rig: &Rig, host: usize) -> Result<Value, LabError> {
    let said = rig
        .lab
        .host(host)
        .run(&["sh", "-c", "flannelctl status --json; true"])?;
    Ok(serde_json::from_str(&said).unwrap_or(Value::Null))
}

/// A node without a tunnel: it lives, has its subnet, and says once and in one line what is missing and what helps.
fn refused(rig: &mut Rig) {
    let words = "this kernel has no ipip tunnels (module ipip); `modprobe ipip`";
    rig.wait("the refusal in status", 20, |rig| {
        let status = status(rig, 1)?;
        let said = status["ready"] == false && status["reasons"].to_string().contains(words);
        Ok((!said).then(|| format!("{status:#}")))
    })
    .unwrap_or_else(|e| panic!("{e}"));
    rig.wait("subnet.env", 10, |rig| {
        let mtu = rig.lab.env(1).ok().and_then(|env| env.mtu);
        Ok((mtu != Some(1480)).then(|| format!("MTU {mtu:?}")))
    })
    .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(link(rig.lab.host(1), DEVICE).unwrap(), None);
    // Several attempts later.
    std::thread::sleep(Duration::from_secs(3));
    assert!(rig.daemons[0].ended().is_none(), "the daemon goes on");
    let log = rig.daemons[0].log();
    let is_warning = |line: &&str| line.contains(" WARN ") && line.contains("no ipip tunnels");
    let warnings: Vec<&str> = log.lines().filter(is_warning).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert!(warnings[0].contains("add link flannel.ipip"), "{}", warnings[0]);
}

/// The route to a host's subnet, without what all of ours have.
fn route_to(rig: &Rig, host: usize) -> Result<Value, LabError> {
    let subnet = rig.subnet(host, 4)?;
    let mut found = route(rig.lab.host(1), subnet)?;
    let Some(first) = found.get_mut(0).and_then(Value::as_object_mut) else {
        return Ok(Value::Null);
    };
    assert_eq!(first.remove("protocol"), Some(json!("241")));
    first.remove("dst");
    Ok(found)
}

fn settle_route(rig: &Rig, host: usize, expected: Value) {
    rig.settle(&format!("the route to h{host}"), &json!([expected]), |_| {
        Ok(route_to(rig, host).unwrap_or_default())
    })
    .unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn device_address_and_route_when_two_hosts_run_then_those_of_the_tables_i1_i2_and_i4() {
    let (mut rig, has_ipip) = start(&wish(json!({ "Type": "ipip" })));
    if !has_ipip {
        return refused(&mut rig);
    }
    rig.lab.wait_for_routes(Duration::from_secs(60)).unwrap();
    let host = rig.lab.host(1);
    let shown = link(host, DEVICE).unwrap().unwrap();
    let data = &shown["linkinfo"]["info_data"];
    for (what, found, expected) in [
        ("kind", &shown["linkinfo"]["info_kind"], json!("ipip")),
        ("link type", &shown["link_type"], json!("ipip")),
        ("proto", &data["proto"], json!("any")),
        ("remote", &data["remote"], json!("any")),
        ("local", &data["local"], json!("198.18.0.11")),
        ("ttl", &data["ttl"], json!(0)),
        ("pmtudisc", &data["pmtudisc"], json!(false)),
        ("mtu", &shown["mtu"], json!(1480)),
    ] {
        assert_eq!(found, &expected, "{what}: {shown}");
    }
    for flag in ["NOARP", "UP"] {
        assert!(
            shown["flags"].as_array().unwrap().contains(&json!(flag)),
            "{flag}: {shown}"
        );
    }
    let own = rig.subnet(1, 4).unwrap();
    let all = addresses(host, DEVICE).unwrap();
    let v4: Vec<&Value> = all.iter().filter(|a| a["family"] == "inet").collect();
    assert_eq!(v4.len(), 1, "{all:?}");
    assert_eq!(
        (&v4[0]["local"], &v4[0]["prefixlen"]),
        (&json!(own.addr().to_string()), &json!(32))
    );
    settle_route(
        &rig,
        2,
        json!({ "gateway": "198.18.0.12", "dev": DEVICE, "flags": ["onlink"] }),
    );
    assert_eq!(rig.lab.env(1).unwrap().mtu, Some(1480));

    // IP protocol 4 between the hosts, and packets of full size.
    rig.lab.add_pods().unwrap();
    let pods = rig.lab.state.pods.clone();
    let target = pods[1].address(4).unwrap().to_string();
    let capture = Capture::start(rig.lab.host(1), "ipip", "eth0", "ip proto 4").unwrap();
    let echo = rig
        .lab
        .pod_end(&pods[0])
        .ping(&[
            "-c", "3", "-i", "0.2", "-W", "5", "-M", "do", "-s", "1452", &target,
        ])
        .unwrap()
        .unwrap();
    assert_eq!((echo.sent, echo.received), (3, 3));
    let packets = capture.stop();
    let there = packets
        .iter()
        .filter(|line| line.contains("198.18.0.11 > 198.18.0.12"));
    assert_eq!(there.count(), 3, "{packets:#?}");
}

#[test]
fn objects_when_broken_by_hand_then_back_each_time() {
    let (mut rig, has_ipip) = start(&wish(json!({ "Type": "ipip" })));
    if !has_ipip {
        return refused(&mut rig);
    }
    rig.lab.wait_for_routes(Duration::from_secs(60)).unwrap();
    let own = rig.subnet(1, 4).unwrap().addr();
    let peer = rig.subnet(2, 4).unwrap();
    let faults = [
        "ip link del flannel.ipip".to_owned(),
        "ip link set flannel.ipip down".to_owned(),
        "ip link set flannel.ipip down; ip link set flannel.ipip up".to_owned(),
        "ip link set flannel.ipip mtu 1300".to_owned(),
        "ip link set flannel.ipip type ipip local 198.18.0.11 ttl 7 pmtudisc".to_owned(),
        "ip link set flannel.ipip type ipip local 198.18.0.99 ttl 0 nopmtudisc".to_owned(),
        format!("ip addr del {own}/32 dev flannel.ipip"),
        format!("ip route del {peer}"),
        format!("ip route replace {peer} via 198.18.0.1 proto 241"),
    ];
    for fault in faults {
        // What is repaired again and again is repaired more and more slowly.
        rig.restart(1, &[]).unwrap();
        rig.wait_for_health().unwrap();
        let before = kernel_text(rig.lab.host(1)).unwrap();
        let start = Instant::now();
        rig.lab.host(1).shell(&fault).unwrap();
        rig.wait(&fault, 12, |rig| {
            let now = kernel_text(rig.lab.host(1))?;
            Ok((now != before).then(|| format!("\nbefore:\n{before}\nnow:\n{now}")))
        })
        .unwrap_or_else(|e| panic!("{e}"));
        println(&format!("{:>7.3} s  {fault}", start.elapsed().as_secs_f64()));
        let repairs = status(&rig, 1).unwrap()["repairs"].as_u64();
        assert!(repairs > Some(0), "{fault}: nothing was broken");
    }
}

#[test]
fn device_when_it_is_there_before_us_then_reused_made_anew_or_left_to_whose_it_is() {
    let mut rig = Rig::bare(&wish(json!({ "Type": "ipip" })).hosts(1)).unwrap();
    if !has_ipip(&rig) {
        rig.daemons = rig.lab.start_daemons(&[]).unwrap();
        return refused(&mut rig);
    }
    let index = |rig: &Rig| link(rig.lab.host(1), DEVICE).unwrap().unwrap()["ifindex"].clone();
    // How it was before, and whether it is to be the same device afterwards.
    for (options, same) in [
        ("local 198.18.0.11", true),
        ("local 198.18.0.11 ttl 64", true),
        ("local 198.18.0.11 dev eth0", true),
        ("local 198.18.0.99", false),
        // Bound to a link, for the kernel's own tunl0 has neither ends nor a link.
        ("dev eth0", false),
        ("local 198.18.0.11 remote 198.18.0.12", false),
        ("external", false),
    ] {
        rig.lab
            .host(1)
            .shell(&format!("ip link add {DEVICE} type ipip {options}"))
            .unwrap();
        let before = index(&rig);
        let daemon = rig.lab.start_daemon(1, &[]).unwrap();
        rig.daemons = vec![daemon];
        rig.wait_for_health().unwrap();
        let shown = link(rig.lab.host(1), DEVICE).unwrap().unwrap();
        let data = &shown["linkinfo"]["info_data"];
        assert_eq!(
            (&data["local"], &data["remote"], &data["ttl"], &shown["mtu"]),
            (&json!("198.18.0.11"), &json!("any"), &json!(0), &json!(1480)),
            "{options}: {shown}"
        );
        assert_eq!(index(&rig) == before, same, "{options}");
        rig.daemons[0].kill();
        rig.lab.host(1).ip(&["link", "del", DEVICE]).unwrap();
    }

    // One of another kind is nobody's to remove but the operator's.
    let host = rig.lab.host(1);
    host.ip(&["link", "add", DEVICE, "type", "bridge"]).unwrap();
    let before = index(&rig);
    let daemon = rig.lab.start_daemon(1, &[]).unwrap();
    rig.daemons = vec![daemon];
    rig.wait("the conflict in status", 20, |rig| {
        let status = status(rig, 1)?;
        let named = |finding: &Value| finding["kind"] == "conflict" && finding.to_string().contains(DEVICE);
        let findings = status["findings"].as_array();
        Ok((!findings.is_some_and(|all| all.iter().any(named))).then(|| format!("{status:#}")))
    })
    .unwrap_or_else(|e| panic!("{e}"));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(index(&rig), before, "it stays");
    rig.lab.host(1).ip(&["link", "del", DEVICE]).unwrap();
    rig.wait_for_health().unwrap();
    let shown = link(rig.lab.host(1), DEVICE).unwrap().unwrap();
    assert_eq!(shown["linkinfo"]["info_kind"], "ipip");
}

#[test]
fn config_when_changed_from_vxlan_then_its_device_goes_with_all_that_hung_on_it() {
    let vxlan = wish(json!({ "Type": "vxlan" }));
    let mut rig = Rig::bare(&vxlan).unwrap();
    let has_ipip = has_ipip(&rig);
    rig.daemons = rig.lab.start_daemons(&[]).unwrap();
    rig.lab.wait_for_routes(Duration::from_secs(60)).unwrap();
    assert!(link(rig.lab.host(1), "flannel.1").unwrap().is_some());
    let subnet = rig.subnet(1, 4).unwrap();
    rig.reconfigure(&wish(json!({ "Type": "ipip" })).config).unwrap();
    for host in [1, 2] {
        rig.restart(host, &[]).unwrap();
    }
    rig.wait("the end of flannel.1", 20, |rig| {
        let left = rig.lab.host(1).shell("ip link; ip route; ip neigh")?;
        Ok(left.contains("flannel.1").then_some(left))
    })
    .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(rig.subnet(1, 4).unwrap(), subnet);
    if !has_ipip {
        return refused(&mut rig);
    }
    settle_route(
        &rig,
        2,
        json!({ "gateway": "198.18.0.12", "dev": DEVICE, "flags": ["onlink"] }),
    );
    rig.wait_for_health().unwrap();
}

/// h1 and h3 are on one segment, h2 is behind a router.
#[test]
fn peers_when_direct_routing_then_each_by_its_way_and_a_kill_9_under_ping_loses_nothing() {
    let mut wish = wish(json!({ "Type": "ipip", "DirectRouting": true })).hosts(3);
    wish.routed = true;
    let (mut rig, has_ipip) = start(&wish);
    if !has_ipip {
        refused(&mut rig);
        // Whom the tunnel is not needed for is served; what is sent to the others does not leave by the default route.
        let direct = json!({ "gateway": "198.18.0.13", "dev": "eth0", "flags": ["onlink"] });
        settle_route(&rig, 3, direct);
        settle_route(&rig, 2, json!({ "type": "unreachable", "flags": [] }));
        return;
    }
    rig.lab.wait_for_routes(Duration::from_secs(60)).unwrap();
    settle_route(
        &rig,
        2,
        json!({ "gateway": "198.18.16.12", "dev": DEVICE, "flags": ["onlink"] }),
    );
    // Table I3.
    settle_route(
        &rig,
        3,
        json!({ "gateway": "198.18.0.13", "dev": "eth0", "flags": ["onlink"] }),
    );
    rig.lab.add_pods().unwrap();
    let pods = rig.lab.state.pods.clone();
    let mut pings = Vec::new();
    for pod in [1, 2] {
        let target = pods[pod].address(4).unwrap().to_string();
        let end = rig.lab.pod_end(&pods[0]);
        // The first packet may wait for neighbours; the count begins after it.
        end.ping(&["-c", "3", "-i", "0.2", "-W", "5", &target]).unwrap();
        let mut command = end.command(&["ping", "-n", "-q", "-i", "0.05", "-c", "200", "-W", "5", &target]);
        pings.push(command.stdout(Stdio::piped()).spawn().unwrap());
    }
    for host in [1, 2, 1, 3] {
        std::thread::sleep(Duration::from_secs(1));
        rig.restart(host, &[]).unwrap();
    }
    for ping in pings {
        let output = ping.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let echo = parse_echo(&text).unwrap();
        println(&format!("{} sent, {} received", echo.sent, echo.received));
        assert_eq!((echo.sent, echo.received), (200, 200), "{text}");
    }
    rig.wait_for_health().unwrap();
}
