//! portmap: live forwarding, many at once, beside Go's plugin, and what a repeated ADD leaves (C2, W-18).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cni::portmap::conntrack::delete_udp_flows;
use kernel::netns::Netns;
use serde_json::Value;

use crate::rig::{Call, GO_PLUGINS, Host, ID};

fn mappings(list: &str) -> String {
    format!(r#","runtimeConfig":{{"portMappings":[{list}]}}"#)
}

fn chained(host: &mut Host, verb: &'static str, result: &Value, more: &str) -> Call<'static> {
    let stdin =
        format!(r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"portmap","prevResult":{result}{more}}}"#);
    host.call("portmap", verb, stdin)
}

/// The files behind all names of iptables.
const IPTABLES: [&str; 2] = ["xtables-nft-multi", "xtables-legacy-multi"];
const TCP: &str = r#"{"hostPort":8080,"containerPort":80,"protocol":"tcp"}"#;

fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    Netns::open(format!("/run/netns/{namespace}"))
        .unwrap()
        .run(work)
        .unwrap()
}

/// Answers TCP connections to port 80 of pod 0 with a word until dropped.
struct Server(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Server {
    fn start(host: &Host) -> Server {
        let listener = inside(&format!("{}-0", host.name), || {
            TcpListener::bind("[::]:80").unwrap()
        });
        listener.set_nonblocking(true).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let ended = over.clone();
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, _)) => drop(stream.write_all(b"pong")),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Server(over, Some(thread))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        let _ = self.1.take().map(JoinHandle::join);
    }
}

/// What a connection from a namespace to port 8080 of an address hears; empty when there is none.
fn ask(namespace: &str, address: &str) -> String {
    let address: std::net::IpAddr = address.parse().unwrap();
    inside(namespace, || {
        let Ok(mut stream) = TcpStream::connect_timeout(&(address, 8080).into(), Duration::from_secs(5))
        else {
            return String::new();
        };
        let mut heard = String::new();
        let _ = stream.read_to_string(&mut heard);
        heard
    })
}

#[test]
fn ports_when_mapped_answer_from_the_host_its_loopback_the_pod_itself_and_another_pod() {
    for backend in ["iptables", "nftables"] {
        let mut host = Host::new();
        host.dual_stack();
        let result = host.flannel("ADD").ok().json();
        let stdin = host.config("cbr0", "");
        let other = Call {
            container: "other",
            netns: host.pod(1),
            ..host.call("flannel", "ADD", stdin)
        };
        host.run(&other).ok();
        let more = format!(r#"{},"backend":"{backend}""#, mappings(TCP));
        let add = chained(&mut host, "ADD", &result, &more);
        assert_eq!(
            host.run(&add).ok().json(),
            result,
            "the previous result is handed on"
        );
        let server = Server::start(&host);
        let (name, pod, other) = (
            host.name.clone(),
            format!("{}-0", host.name),
            format!("{}-1", host.name),
        );
        let answers = [
            ask(&name, "10.244.7.1"),
            ask(&name, "127.0.0.1"),
            ask(&pod, "10.244.7.1"),
            ask(&other, "10.244.7.1"),
            ask(&name, "fd00:10:244:7::1"),
            ask(&other, "fd00:10:244:7::1"),
        ];
        let check = chained(&mut host, "CHECK", &result, &more);
        let checked = host.run(&check);
        let del = chained(&mut host, "DEL", &result, &more);
        host.run(&del).ok();
        let after = ask(&name, "10.244.7.1");
        drop(server);
        assert_eq!(answers, ["pong"; 6], "{backend}");
        assert_eq!(after, "", "{backend}");
        checked.ok();
        assert_eq!(host.run(&check).status, 1, "{backend}: nothing is there any more");
        host.run(&del).ok();
    }
}

#[test]
fn c2_shared_rules_when_twenty_add_the_first_ports_at_once_are_there_exactly_once() {
    const COUNT: usize = 20;
    let mut host = Host::new();
    let result = host.flannel("ADD").ok().json();
    let ids: Vec<String> = (0..COUNT).map(|i| format!("pod{i}")).collect();
    let mut calls = Vec::new();
    for (i, id) in ids.iter().enumerate() {
        let port = format!(
            r#"{{"hostPort":{},"containerPort":80,"protocol":"tcp"}}"#,
            20_000 + i
        );
        let add = chained(&mut host, "ADD", &result, &mappings(&port));
        calls.push(Call { container: id, ..add });
    }
    let running: Vec<_> = calls.iter().map(|call| host.start(call)).collect();
    for running in running {
        running.finish().ok();
    }
    let count = |host: &Host, start: &str| host.nat().iter().filter(|l| l.starts_with(start)).count();
    for shared in [
        "-A PREROUTING",
        "-A OUTPUT",
        "-A POSTROUTING",
        "-A CNI-HOSTPORT-MASQ",
        "-A CNI-HOSTPORT-SETMARK",
    ] {
        assert_eq!(count(&host, shared), 1, "{shared}: {:#?}", host.nat());
    }
    assert_eq!(count(&host, "-A CNI-HOSTPORT-DNAT"), COUNT);
    let dels: Vec<Call<'_>> = calls
        .iter()
        .map(|call| Call {
            verb: "DEL",
            ..call.clone()
        })
        .collect();
    let running: Vec<_> = dels.iter().map(|call| host.start(call)).collect();
    for running in running {
        running.finish().ok();
    }
    assert_eq!(count(&host, "-A CNI-HOSTPORT-DNAT") + count(&host, ":CNI-DN-"), 0);
}

#[test]
fn ports_when_added_by_one_are_removed_by_the_other_and_look_the_same() {
    let list = r#"{"hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostPort":53,"containerPort":53,"protocol":"udp","hostIP":"0.0.0.0"},{"hostPort":90,"containerPort":90,"protocol":"tcp","hostIP":"127.0.0.1"}"#;
    for more in [
        "",
        r#","snat":false"#,
        r#","markMasqBit":7"#,
        r#","externalSetMarkChain":"KUBE-MARK-MASQ""#,
        r#","conditionsV4":["!","-d","192.0.2.0/24"]"#,
    ] {
        let mut seen = Vec::new();
        for (adds, dels) in [("ours", "go"), ("go", "ours")] {
            let mut host = Host::new();
            host.dual_stack();
            host.exec(&["iptables", "-t", "nat", "-N", "KUBE-MARK-MASQ"]);
            host.exec(&["ip6tables", "-t", "nat", "-N", "KUBE-MARK-MASQ"]);
            let result = host.flannel("ADD").ok().json();
            let more = format!("{}{more}", mappings(list));
            let by = |host: &mut Host, whose: &str, verb: &'static str| -> Call<'static> {
                let mut call = chained(host, verb, &result, &more);
                if whose == "go" {
                    call.program = format!("{GO_PLUGINS}/portmap").into();
                }
                call
            };
            let add = by(&mut host, adds, "ADD");
            host.run(&add).ok();
            seen.push(host.nat());
            // Debian's own CHECK looks for the IPv4 rules in ip6tables and fails after either.
            let check = by(&mut host, "ours", "CHECK");
            host.run(&check).ok();
            let del = by(&mut host, dels, "DEL");
            host.run(&del).ok();
            assert!(
                !host.nat().iter().any(|l| l.contains("CNI-DN-")),
                "{more}: {:#?}",
                host.nat()
            );
        }
        assert_eq!(seen[0], seen[1], "{more}");
    }
}

#[test]
fn ports_when_added_again_are_the_new_ones_alone() {
    for backend in ["iptables", "nftables"] {
        let mut host = Host::new();
        let result = host.flannel("ADD").ok().json();
        let listed = |host: &Host| match backend {
            "iptables" => host.nat().join("\n"),
            _ => host.exec(&["nft", "list", "table", "ip", "cni_hostport"]),
        };
        for port in [1111, 2222] {
            let more = mappings(&format!(
                r#"{{"hostPort":{port},"containerPort":80,"protocol":"tcp"}}"#
            ));
            let add = chained(
                &mut host,
                "ADD",
                &result,
                &format!(r#"{more},"backend":"{backend}""#),
            );
            host.run(&add).ok();
        }
        let rules = listed(&host);
        assert!(
            rules.contains("2222") && !rules.contains("1111"),
            "{backend}: {rules}"
        );
        // Deleted with ports that were never mapped.
        let del = chained(
            &mut host,
            "DEL",
            &result,
            &format!(r#"{},"backend":"{backend}""#, mappings(TCP)),
        );
        host.run(&del).ok();
        assert!(!listed(&host).contains("2222"), "{backend}");
    }
}

/// Rules of containers, of any backend.
fn of_containers(host: &Host) -> Vec<String> {
    let nft = host.exec(&["nft", "list", "ruleset"]);
    let nft = nft
        .lines()
        .filter(|l| l.contains("dnat to") || l.contains("masquerade comment"));
    let of_iptables = ["iptables-save", "ip6tables-save"].map(|program| host.exec(&[program, "-t", "nat"]));
    let of_iptables = of_iptables.iter().flat_map(|text| text.lines());
    let of_iptables = of_iptables.filter(|l| l.contains("CNI-DN-"));
    nft.chain(of_iptables).map(|l| l.trim().to_owned()).collect()
}

#[test]
fn del_when_the_ports_or_the_backend_of_the_add_are_not_in_it_removes_the_rules_all_the_same() {
    let mut host = Host::new();
    host.dual_stack();
    let result = host.flannel("ADD").ok().json();
    for (added, deleted) in [
        ("iptables", r#","backend":"iptables""#),
        ("nftables", r#","backend":"nftables""#),
        ("iptables", r#","backend":"nftables""#),
        ("nftables", r#","backend":"iptables""#),
        ("iptables", ""),
        ("nftables", ""),
    ] {
        for ports in [String::new(), mappings(TCP)] {
            for previous in [true, false] {
                let more = format!(r#"{},"backend":"{added}""#, mappings(TCP));
                let add = chained(&mut host, "ADD", &result, &more);
                host.run(&add).ok();
                assert!(
                    of_containers(&host).len() >= 4,
                    "{added}: {:#?}",
                    of_containers(&host)
                );
                let mut del = chained(&mut host, "DEL", &result, &format!("{ports}{deleted}"));
                if !previous {
                    del.stdin = del
                        .stdin
                        .replace(&format!(r#""prevResult":{result}"#), r#""x":0"#);
                }
                host.run(&del).ok();
                let left = of_containers(&host);
                assert_eq!(left, Vec::<String>::new(), "{added} {deleted} {ports} {previous}");
                host.run(&del).ok();
            }
        }
    }
    // Where nothing is mapped no program is asked.
    let mut del = chained(&mut host, "DEL", &result, "");
    let ours = del.program.clone();
    del.program = host.without("portmap", &[IPTABLES[0], IPTABLES[1], "nft"]);
    host.run(&del).ok();
    // One that is gone while there are rules is told of, so that the runtime comes again.
    let add = chained(&mut host, "ADD", &result, &mappings(TCP));
    host.run(&add).ok();
    host.run(&del).failure();
    del.program = ours;
    host.run(&del).ok();
    assert_eq!(of_containers(&host), Vec::<String>::new());
}

#[test]
fn del_when_iptables_is_of_the_old_kind_removes_ports_that_are_not_in_it() {
    let mut host = Host::new();
    let result = host.flannel("ADD").ok().json();
    let folder = host.path("old");
    std::fs::create_dir(&folder).unwrap();
    for program in ["iptables", "ip6tables"] {
        for verb in ["", "-restore", "-save"] {
            let target = format!("/usr/sbin/{program}-legacy{verb}");
            std::os::unix::fs::symlink(target, format!("{folder}/{program}{verb}")).unwrap();
        }
    }
    let path = format!("{folder}:/usr/sbin:/usr/bin:/sbin:/bin");
    let listed = |host: &Host| host.exec(&["iptables-legacy-save", "-t", "nat"]);
    let mut add = chained(&mut host, "ADD", &result, &mappings(TCP));
    add.variables.push(("PATH", &path));
    host.run(&add).ok();
    assert!(listed(&host).contains("CNI-DN-"));
    let mut del = chained(&mut host, "DEL", &result, "");
    del.variables.push(("PATH", &path));
    host.run(&del).ok();
    assert!(!listed(&host).contains("CNI-DN-"), "{}", listed(&host));
}

/// Before 1.6.2 `iptables-restore` takes neither `--wait` nor the lock.
#[test]
fn ports_when_iptables_restore_is_older_than_its_wait_are_mapped_under_the_lock() {
    let mut host = Host::new();
    let result = host.flannel("ADD").ok().json();
    for program in ["iptables-restore", "ip6tables-restore"] {
        let body = format!(
            "case \" $* \" in *\" --wait \"*) echo \"{program}: unrecognized option '--wait'\" >&2; exit 2 ;; esac\n\
             echo called >>{calls}\nflock -n /run/xtables.lock true && echo free >>{calls}\nexec /usr/sbin/{program} \"$@\"",
            calls = host.path("calls"),
        );
        host.script(&format!("old/{program}"), &body);
    }
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", host.path("old"));
    for (verb, there) in [("ADD", true), ("CHECK", true), ("DEL", false)] {
        let mut call = chained(&mut host, verb, &result, &mappings(TCP));
        call.variables.push(("PATH", &path));
        host.run(&call).ok();
        assert_eq!(!of_containers(&host).is_empty(), there, "{verb}");
    }
    let calls = host.read("calls");
    assert!(calls.contains("called") && !calls.contains("free"), "{calls}");
}

#[test]
fn ports_when_published_on_two_attachments_of_a_container_do_not_meet_in_nftables() {
    let mut host = Host::new();
    host.dual_stack();
    let mut results = Vec::new();
    for (i, (network, ifname)) in [("cbr0", "eth0"), ("other", "net1")].into_iter().enumerate() {
        let stdin = host.config(network, "");
        let add = Call {
            ifname,
            netns: host.pod(0),
            ..host.call("flannel", "ADD", stdin)
        };
        let result = host.run(&add).ok().json();
        results.push((network, ifname, result, 8000 + i));
    }
    let call = |host: &mut Host, verb: &'static str, i: usize| {
        let (network, ifname, result, port) = &results[i];
        let port = format!(r#"{{"hostPort":{port},"containerPort":80,"protocol":"tcp"}}"#);
        let more = format!(r#"{},"backend":"nftables""#, mappings(&port));
        let mut call = chained(host, verb, result, &more);
        call.stdin = call.stdin.replace("\"cbr0\"", &format!("\"{network}\""));
        call.ifname = ifname;
        host.run(&call).ok();
    };
    for i in [0, 1, 0] {
        call(&mut host, "ADD", i);
    }
    let ports = |host: &Host, port: u16| {
        let all = of_containers(host);
        all.iter()
            .filter(|l| l.contains(&format!("dport {port} ")))
            .count()
    };
    assert_eq!((ports(&host, 8000), ports(&host, 8001)), (2, 2));
    call(&mut host, "CHECK", 0);
    call(&mut host, "DEL", 1);
    assert_eq!((ports(&host, 8000), ports(&host, 8001)), (2, 0));
    call(&mut host, "CHECK", 0);
    call(&mut host, "DEL", 0);
    assert_eq!(of_containers(&host), Vec::<String>::new());
}

#[test]
fn calls_when_wrong_are_refused_in_gos_words() {
    let mut host = Host::new();
    let result = host.flannel("ADD").ok().json();
    let refused = |host: &mut Host, more: &str| {
        let call = chained(host, "ADD", &result, more);
        host.run(&call).failure().1
    };
    for (more, msg) in [
        (r#","backend":"x""#, "unrecognized backend \"x\""),
        (r#","markMasqBit":32"#, "MasqMarkBit must be between 0 and 31"),
        (
            r#","markMasqBit":1,"externalSetMarkChain":"X""#,
            "Cannot specify externalSetMarkChain and markMasqBit",
        ),
        (
            r#","backend":"nftables","conditionsV4":["-d","1.2.3.4"]"#,
            "nftables backend was requested but configuration contains iptables-specific options [conditionsV4]",
        ),
        (
            &mappings(r#"{"hostPort":0,"containerPort":80,"protocol":"tcp"}"#),
            "Invalid host port number: 0",
        ),
        (
            &mappings(r#"{"hostPort":1,"containerPort":-1,"protocol":"tcp"}"#),
            "Invalid container port number: -1",
        ),
    ] {
        assert_eq!(refused(&mut host, more), format!("failed to parse config: {msg}"));
    }
    let call = host.call(
        "portmap",
        "ADD",
        r#"{"cniVersion":"1.0.0","name":"cbr0"}"#.to_owned(),
    );
    assert_eq!(host.run(&call).failure().1, "must be called as chained plugin");
    // Without mappings the result is handed on and nothing is made.
    let call = chained(&mut host, "ADD", &result, "");
    assert_eq!(host.run(&call).ok().json(), result);
    assert_eq!(host.nat(), Vec::<String>::new());
    // A rule the firewall refuses leaves nothing.
    let more = format!(r#"{},"conditionsV4":["-m","nonsense"]"#, mappings(TCP));
    let call = chained(&mut host, "ADD", &result, &more);
    host.run(&call).failure();
    assert!(!host.nat().iter().any(|l| l.contains("CNI-DN-")));
    assert_eq!(ID.len(), 16);
}

#[test]
fn flows_when_udp_began_before_the_mapping_are_forgotten() {
    let mut host = Host::new();
    let result = host.flannel("ADD").ok().json();
    // Tracking needs a rule that asks for it.
    host.exec(&[
        "iptables",
        "-A",
        "INPUT",
        "-m",
        "conntrack",
        "--ctstate",
        "INVALID",
        "-j",
        "DROP",
    ]);
    // An address behind the host, which a flow goes on to.
    host.exec(&["ip", "route", "add", "192.0.2.0/24", "via", "10.244.7.2"]);
    host.ip(&["addr", "add", "127.0.0.7/8", "dev", "lo"]);
    let send = |host: &Host| {
        inside(&host.name, || {
            for (from, to, port) in [
                ("127.0.0.1:5555", "127.0.0.1", 5353),
                ("127.0.0.1:5555", "127.0.0.1", 6363),
                ("127.0.0.1:5555", "127.0.0.7", 5353),
                ("0.0.0.0:5555", "192.0.2.1", 5353),
            ] {
                // A program that another test is just starting has the one before open for a moment.
                let socket = loop {
                    match UdpSocket::bind(from) {
                        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => std::thread::yield_now(),
                        other => break other.unwrap(),
                    }
                };
                // Nobody listens there, which the second attempt may be told of.
                let _ = socket.send_to(b"x", (to, port));
            }
        });
    };
    // How many there are is what forgetting them says: this kernel has no list of flows to read.
    let forget = |host: &Host, to: &str, port: u16| {
        let to = to.parse().ok();
        inside(&host.name, || delete_udp_flows(false, &[(to, port)]).unwrap())
    };
    let counts = |host: &Host| {
        [
            ("127.0.0.1", 5353),
            ("127.0.0.7", 5353),
            ("192.0.2.1", 5353),
            ("127.0.0.1", 6363),
        ]
        .map(|(to, port)| forget(host, to, port))
    };
    send(&host);
    assert_eq!(counts(&host), [1, 1, 1, 1]);
    assert_eq!(counts(&host), [0, 0, 0, 0]);
    for (bound, left) in [("", [0, 0, 1, 1]), (r#","hostIP":"127.0.0.7""#, [1, 0, 1, 1])] {
        send(&host);
        let udp = format!(r#"{{"hostPort":5353,"containerPort":53,"protocol":"udp"{bound}}}"#);
        let add = chained(&mut host, "ADD", &result, &mappings(&udp));
        assert_eq!(host.run(&add).ok().stderr, "");
        assert_eq!(counts(&host), left, "only those the mapping takes over");
        let del = chained(&mut host, "DEL", &result, &mappings(&udp));
        host.run(&del).ok();
    }
}

/// The rules are found by the container's id and lead to its address; what the network is called now, or whether the list still
/// has portmap, is nothing to them.
#[test]
fn ports_when_the_list_is_renamed_or_loses_portmap_go_with_their_container() {
    for backend in ["iptables", "nftables"] {
        for how in [
            "renamed",
            "without portmap",
            "by Go's bridge",
            "renamed, nothing saved",
        ] {
            let mut host = Host::new();
            host.dual_stack();
            let (native, path) = match how {
                "by Go's bridge" => (r#","nativeDelegate":false"#, GO_PLUGINS.to_owned()),
                _ => ("", host.path("bin")),
            };
            let stdin = host.config("cbr0", native);
            let add = Call {
                path: path.clone(),
                ..host.call("flannel", "ADD", stdin)
            };
            let result = host.run(&add).ok().json();
            let more = format!(r#"{},"backend":"{backend}""#, mappings(TCP));
            let add = chained(&mut host, "ADD", &result, &more);
            host.run(&add).ok();
            // Another network's attachment of the same container, and another container, keep theirs.
            let elsewhere = result
                .to_string()
                .replace("10.244.7.2", "10.88.0.9")
                .replace("::2/", "::9/");
            let stdin = format!(
                r#"{{"cniVersion":"1.0.0","name":"bystander","type":"portmap","prevResult":{elsewhere},"backend":"{backend}"{}}}"#,
                mappings(r#"{"hostPort":9090,"containerPort":90,"protocol":"tcp"}"#)
            );
            let bystander = host.call("portmap", "ADD", stdin);
            host.run(&bystander).ok();
            let another = Call {
                container: "another",
                ..bystander.clone()
            };
            host.run(&another).ok();
            let rules = |host: &Host| {
                let saved =
                    ["iptables-save", "ip6tables-save"].map(|program| host.exec(&[program, "-t", "nat"]));
                let text = saved.concat() + &host.exec(&["nft", "list", "ruleset"]);
                let of_pod = |l: &&str| l.contains("10.244.7.2:80") || l.contains("[fd00:10:244:7::2]:80");
                let of_others = |l: &&str| l.contains("10.88.0.9:90") || l.contains("::9]:90");
                (
                    text.lines().filter(of_pod).count(),
                    text.lines().filter(of_others).count(),
                )
            };
            let (ours, others) = rules(&host);
            assert!(ours >= 2 && others >= 4, "{ours} {others}");
            let name = if how.starts_with("renamed") {
                "new-name"
            } else {
                "cbr0"
            };
            if how.ends_with("nothing saved") {
                std::fs::remove_dir_all(host.path("flannel")).unwrap();
                std::fs::rename(host.path("networks/cbr0"), host.path("networks/new-name")).unwrap();
                std::fs::remove_dir_all(host.path("networks/.owners")).unwrap();
            }
            let stdin = host.config(name, native);
            let del = Call {
                path,
                ..host.call("flannel", "DEL", stdin)
            };
            host.run(&del).ok();
            assert_eq!(rules(&host), (0, others), "{backend} {how}");
            host.run(&del).ok();
        }
    }
}

/// A client that goes on sending to the port reaches whoever has it next, here a program of the host itself.
#[test]
fn flows_when_their_container_is_gone_are_forgotten_and_the_port_works_for_its_old_clients() {
    let ways = [
        "portmap",
        "portmap without result",
        "portmap without ports",
        "flannel alone",
        "gc",
    ];
    let all = ways
        .into_iter()
        .flat_map(|how| ["iptables", "nftables"].map(|backend| (how, backend)));
    for (how, backend) in all {
        let mut host = Host::new();
        let result = host.flannel("ADD").ok().json();
        let stdin = host.config("cbr0", "");
        let client = Call {
            container: "client",
            netns: host.pod(1),
            ..host.call("flannel", "ADD", stdin)
        };
        host.run(&client).ok();
        let udp = mappings(r#"{"hostPort":5353,"containerPort":53,"protocol":"udp"}"#);
        let udp = format!(r#"{udp},"backend":"{backend}""#);
        let add = chained(&mut host, "ADD", &result, &udp);
        host.run(&add).ok();
        let how = format!("{how}, {backend}");
        let listen = |namespace: String, port: u16| {
            let socket = inside(&namespace, || UdpSocket::bind(("0.0.0.0", port)).unwrap());
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket
        };
        let in_pod = listen(format!("{}-0", host.name), 53);
        let sender = inside(&format!("{}-1", host.name), || {
            UdpSocket::bind("0.0.0.0:5555").unwrap()
        });
        let heard = |by: &UdpSocket, word: &[u8]| {
            let mut buffer = [0; 16];
            // A packet may be lost while addresses are looked up.
            (0..3).any(|_| {
                sender.send_to(word, ("10.244.7.1", 5353)).unwrap();
                matches!(by.recv(&mut buffer), Ok(length) if &buffer[..length] == word)
            })
        };
        assert!(heard(&in_pod, b"one"), "{how}: the port leads to the container");
        let stdin = host.config("cbr0", "").replace("1.0.0", "1.1.0");
        match how.split_once(',').unwrap().0 {
            "portmap" => {
                let del = chained(&mut host, "DEL", &result, &udp);
                host.run(&del).ok();
            }
            without @ ("portmap without result" | "portmap without ports") => {
                let ports = if without.ends_with("ports") { "" } else { &udp };
                let stdin = format!(r#"{{"cniVersion":"0.3.1","name":"cbr0","type":"portmap"{ports}}}"#);
                let del = host.call("portmap", "DEL", stdin);
                host.run(&del).ok();
            }
            "flannel alone" => {
                host.flannel("DEL").ok();
            }
            _ => {
                host.pod_ip(0, &["link", "del", "eth0"]);
                let list = r#","cni.dev/valid-attachments":[{"containerID":"client","ifname":"eth0"}]}"#;
                let stdin = format!("{}{list}", stdin.strip_suffix('}').unwrap());
                let gc = host.call("flannel", "GC", stdin);
                host.run(&gc).ok();
            }
        }
        let on_host = listen(host.name.clone(), 5353);
        assert!(
            heard(&on_host, b"two"),
            "{how}: the flow still leads to the container that is gone"
        );
    }
}

#[test]
fn del_when_it_says_less_or_other_than_the_add_removes_all_of_the_container() {
    for backend in ["iptables", "nftables"] {
        for more in [
            // Without mappings, with wrong ones, with another backend, without an idea of the container.
            r#","prevResult":RESULT"#.to_owned(),
            format!(
                r#","prevResult":RESULT{}"#,
                mappings(r#"{"hostPort":0,"containerPort":80,"protocol":"tcp"}"#)
            ),
            r#","conditionsV4":5,"prevResult":RESULT"#.to_owned(),
            format!(r#","prevResult":RESULT,"backend":"iptables"{}"#, mappings(TCP)),
            format!(r#","prevResult":RESULT,"backend":"nftables"{}"#, mappings(TCP)),
            r#","prevResult":RESULT,"backend":"nftables""#.to_owned(),
            format!(r#","prevResult":7,"backend":"{backend}"{}"#, mappings(TCP)),
            format!(r#","backend":"{backend}"{}"#, mappings(TCP)),
            format!(r#","backend":"{backend}""#),
        ] {
            let mut host = Host::new();
            host.dual_stack();
            let result = host.flannel("ADD").ok().json();
            let added = format!(r#"{},"backend":"{backend}""#, mappings(TCP));
            let add = chained(&mut host, "ADD", &result, &added);
            let another = Call {
                container: "another",
                ..add.clone()
            };
            host.run(&add).ok();
            host.run(&another).ok();
            let rules = |host: &Host| {
                let programs = ["iptables-save", "ip6tables-save"].map(|program| host.exec(&[program]));
                programs.join("") + &host.exec(&["nft", "list", "ruleset"])
            };
            let marks = match backend {
                "iptables" => "-j DNAT --to-destination ",
                _ => " dnat to ",
            };
            let count = |host: &Host| rules(host).matches(marks).count();
            assert_eq!(count(&host), 4, "{backend}");
            let more = more.replace("RESULT", &result.to_string());
            let stdin = format!(r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"portmap"{more}}}"#);
            let del = host.call("portmap", "DEL", stdin);
            // Another attachment of the container, which has no ports, goes first and takes none.
            let other = result
                .to_string()
                .replace("10.244.7.2", "10.244.7.9")
                .replace("::2/", "::9/");
            let stdin =
                format!(r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"portmap","prevResult":{other}}}"#);
            let del_other = host.call("portmap", "DEL", stdin);
            host.run(&del_other).ok();
            assert_eq!(count(&host), 4, "{backend}");
            host.run(&del).ok();
            let left = rules(&host);
            assert!(!left.contains(ID), "{backend} {more}: {left}");
            assert_eq!(count(&host), 2, "{backend} {more}: {left}");
            host.run(&del).ok();
        }
    }
}

#[test]
fn conditions_when_containers_have_different_ones_are_each_their_own() {
    let mut host = Host::new();
    let result = host.flannel("ADD").ok().json();
    for (container, conditions) in [
        ("first", r#","conditionsV4":["ip","saddr","!=","192.0.2.1"]"#),
        ("second", ""),
        ("third", r#","conditionsV4":["ip","saddr","192.0.2.3"]"#),
    ] {
        let more = format!(r#"{},"backend":"nftables"{conditions}"#, mappings(TCP));
        let add = chained(&mut host, "ADD", &result, &more);
        host.run(&Call {
            container,
            ..add.clone()
        })
        .ok();
        let check = chained(&mut host, "CHECK", &result, &more);
        host.run(&Call { container, ..check }).ok();
    }
    let rules = host.exec(&["nft", "list", "table", "ip", "cni_hostport"]);
    for (count, rule) in [
        (
            1,
            "ip saddr != 192.0.2.1 tcp dport 8080 dnat to 10.244.7.2:80 comment \"first\"",
        ),
        (
            1,
            "ip saddr 192.0.2.3 tcp dport 8080 dnat to 10.244.7.2:80 comment \"third\"",
        ),
        (2, "192.0.2."),
        (2, "fib daddr type local jump hostports_all"),
    ] {
        assert_eq!(rules.matches(rule).count(), count, "{rule}: {rules}");
    }
}

#[test]
fn backend_when_only_nftables_is_installed_and_none_is_named_is_that() {
    let mut host = Host::new();
    let result = host.flannel("ADD").ok().json();
    let portmap = host.without("portmap", &IPTABLES);
    for conditions in ["", r#","conditionsV4":["ip","saddr","!=","192.0.2.1"]"#] {
        let more = format!("{}{conditions}", mappings(TCP));
        for (verb, there) in [("ADD", true), ("CHECK", true), ("DEL", false)] {
            let mut call = chained(&mut host, verb, &result, &more);
            call.program.clone_from(&portmap);
            host.run(&call).ok();
            let rules = host.exec(&["nft", "list", "table", "ip", "cni_hostport"]);
            assert_eq!(
                rules.contains("dnat to 10.244.7.2:80"),
                there,
                "{verb} {conditions}: {rules}"
            );
        }
    }
    assert_eq!(host.nat(), Vec::<String>::new());
}

#[test]
fn ports_when_path_lacks_the_systems_folders_are_mapped_all_the_same() {
    let mut host = Host::new();
    let result = host.flannel("ADD").ok().json();
    let few = host.path("few");
    std::fs::create_dir(&few).unwrap();
    std::os::unix::fs::symlink("/usr/bin/nsenter", format!("{few}/nsenter")).unwrap();
    for (verb, there) in [("ADD", true), ("CHECK", true), ("DEL", false)] {
        let mut call = chained(&mut host, verb, &result, &mappings(TCP));
        call.variables.push(("PATH", &few));
        host.run(&call).ok();
        assert_eq!(!of_containers(&host).is_empty(), there, "{verb}");
    }
}

/// Folder with an `iptables-restore` that tells its process id and never ends.
fn hanging(host: &Host) -> String {
    let told = host.path("restore-pid");
    for program in ["iptables-restore", "ip6tables-restore"] {
        let body = format!("echo $$ >> {told}\nexec sleep 1000");
        host.script(&format!("hanging/{program}"), &body);
    }
    format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", host.path("hanging"))
}

fn is_gone(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

#[test]
fn firewall_program_when_its_call_is_killed_ends_too_and_holds_nobody_up() {
    let mut host = Host::apart();
    let result = host.flannel("ADD").ok().json();
    let path = hanging(&host);
    let mut add = chained(&mut host, "ADD", &result, &mappings(TCP));
    add.variables.push(("PATH", &path));
    let running = host.start(&add);
    let until = Instant::now() + Duration::from_secs(60);
    while !host.exists("restore-pid") || host.read("restore-pid").trim().is_empty() {
        assert!(Instant::now() < until, "no program was started");
        std::thread::sleep(Duration::from_millis(10));
    }
    running.kill();
    let pid = host.read("restore-pid").trim().to_owned();
    while !is_gone(&pid) {
        assert!(Instant::now() < until, "{pid} lives on");
        std::thread::sleep(Duration::from_millis(10));
    }
    let del = chained(&mut host, "DEL", &result, &mappings(TCP));
    host.run(&del).ok();
    assert_eq!(of_containers(&host), Vec::<String>::new());
}

#[test]
fn dels_when_a_firewall_program_hangs_end_all_in_time_with_try_again() {
    let mut host = Host::apart();
    let result = host.flannel("ADD").ok().json();
    let add = chained(&mut host, "ADD", &result, &mappings(TCP));
    host.run(&add).ok();
    let path = hanging(&host);
    let mut del = chained(&mut host, "DEL", &result, &mappings(TCP));
    del.variables.push(("PATH", &path));
    let started = Instant::now();
    let dels: Vec<_> = (0..3).map(|_| host.start(&del)).collect();
    for del in dels {
        let (code, msg) = del.finish().failure();
        assert_eq!(code, 11, "{msg}");
    }
    assert!(
        started.elapsed() < Duration::from_secs(100),
        "{:?}",
        started.elapsed()
    );
    for pid in host.read("restore-pid").lines() {
        assert!(is_gone(pid), "{pid}");
    }
    del.variables.clear();
    host.run(&del).ok();
    assert_eq!(of_containers(&host), Vec::<String>::new());
}
