//! CHECK, STATUS and GC (C13, P20).

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::rig::{Answer, Call, Host, ID};

fn at_1_1(host: &Host, more: &str) -> String {
    host.config("cbr0", more).replace("1.0.0", "1.1.0")
}

fn run(host: &mut Host, verb: &'static str, more: &str) -> Answer {
    let stdin = at_1_1(host, more);
    let call = host.call("flannel", verb, stdin);
    host.run(&call)
}

#[test]
fn p20_status_when_an_add_would_fail_says_50_and_why() {
    let mut host = Host::new();
    assert_eq!(run(&mut host, "STATUS", "").ok().stdout, "");
    let path = host.path("subnet.env");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("FLANNEL_MTU", "X")).unwrap();
    let (code, msg) = run(&mut host, "STATUS", "").failure();
    assert!(code == 50 && msg.contains("is missing FLANNEL_MTU"), "{msg}");
    std::fs::remove_file(&path).unwrap();
    let (code, msg) = run(&mut host, "STATUS", "").failure();
    assert!(
        code == 50 && msg.contains(&format!("open {path}: no such file or directory")),
        "{msg}"
    );
    std::fs::write(&path, text.replace("/24", "/30")).unwrap();
    run(&mut host, "STATUS", "").ok();
    // A pool of one, which is taken.
    run(&mut host, "ADD", "").ok();
    let (code, msg) = run(&mut host, "STATUS", "").failure();
    assert!(
        code == 50 && msg.starts_with("no IP addresses available in range set: "),
        "{msg}"
    );
    run(&mut host, "DEL", "").ok();
    let (code, msg) = run(&mut host, "STATUS", r#","delegate":{"type":"nosuch"}"#).failure();
    assert!(
        code == 50 && msg.starts_with("failed to find plugin \"nosuch\""),
        "{msg}"
    );
}

/// Something that listens where flanneld would, and does with each of so many connections what it is told.
fn daemon(
    host: &Host,
    connections: usize,
    mut answer: impl FnMut(std::os::unix::net::UnixStream) + Send + 'static,
) -> std::thread::JoinHandle<()> {
    let path = host.path("subnet.env.sock");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || (0..connections).for_each(|_| answer(listener.accept().unwrap().0)))
}

fn says(text: String) -> impl FnMut(std::os::unix::net::UnixStream) + Send + 'static {
    move |mut stream| {
        let mut question = [0; 1024];
        let length = stream.read(&mut question).unwrap();
        assert!(
            question[..length].starts_with(b"GET /pods HTTP/1.1\r\n"),
            "{:?}",
            String::from_utf8_lossy(&question[..length])
        );
        // Who has heard enough may hang up.
        let _ = stream.write_all(text.as_bytes());
    }
}

fn http(body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
}

#[test]
fn status_when_flanneld_has_no_network_says_its_reason_and_when_it_has_one_nothing() {
    let mut host = Host::new();
    let none = http(r#"{"network":"none","reasons":["no config","and more"]}"#);
    let serving = daemon(&host, 2, says(none));
    assert_eq!(
        run(&mut host, "STATUS", "").failure(),
        (
            51,
            "this host has no place in the flannel network: no config; and more".to_owned()
        )
    );
    // Go's text comes first, the daemon's after it.
    std::fs::rename(host.path("subnet.env"), host.path("away")).unwrap();
    let answer = run(&mut host, "STATUS", "");
    let (code, msg) = answer.failure();
    assert!(
        code == 50 && msg.starts_with("failed to load flannel 'subnet.env' file: open "),
        "{msg}"
    );
    assert_eq!(answer.json()["details"], "flanneld: no config; and more");
    serving.join().unwrap();
    std::fs::rename(host.path("away"), host.path("subnet.env")).unwrap();
    for network in ["member", "unknown"] {
        let body = format!(r#"{{"network":"{network}","reasons":["stale: the registry is not reached"]}}"#);
        let serving = daemon(&host, 1, says(http(&body)));
        assert_eq!(run(&mut host, "STATUS", "").ok().stdout, "");
        serving.join().unwrap();
    }
    // Nobody listens any more.
    run(&mut host, "STATUS", "").ok();
}

#[test]
fn status_when_what_answers_is_not_understood_or_hangs_is_subnet_envs_word_in_bounded_time() {
    let mut host = Host::new();
    for text in [
        String::new(),
        "\0\u{ffff}garbage".repeat(20_000),
        "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
        http(r#"{"network":"none","reasons":[""#),
        http(r#"{"network":"nonesuch"}"#),
        "HTTP/1.1 200 OK\r\ncontent-length: 4000000\r\n\r\n".to_owned() + &" ".repeat(200_000),
    ] {
        let serving = daemon(&host, 1, says(text));
        run(&mut host, "STATUS", "").ok();
        serving.join().unwrap();
    }
    // Accepts and says nothing, or the beginning of an answer, for as long as it takes the other side to give up.
    for beginning in ["", "HTTP/1.1 200 OK\r\n"] {
        let serving = daemon(&host, 1, move |mut stream| {
            let _ = stream.write_all(beginning.as_bytes());
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all);
        });
        let begun = Instant::now();
        run(&mut host, "STATUS", "").ok();
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        serving.join().unwrap();
    }
    // Listens and does not even accept; then its queue is full.
    let path = host.path("subnet.env.sock");
    std::fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let begun = Instant::now();
    run(&mut host, "STATUS", "").ok();
    rustix::net::listen(&listener, 0).unwrap();
    run(&mut host, "STATUS", "").ok();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn status_when_the_delegate_is_another_plugin_is_that_plugins_word() {
    let mut host = Host::new();
    let script = |host: &Host, text: &str| {
        let file = host.path("bin/other");
        std::fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    let mut status = |text: &str| {
        script(&host, text);
        run(&mut host, "STATUS", r#","delegate":{"type":"other"}"#)
    };
    status("test \"$CNI_COMMAND\" = STATUS && grep -q FLANNEL /dev/stdin || exit 0").ok();
    let failing = |code: u32, msg: &str| format!("echo '{{\"code\":{code},\"msg\":\"{msg}\"}}'; exit 1");
    status(&failing(4, "unknown CNI_COMMAND: STATUS")).ok();
    assert_eq!(status(&failing(51, "limited")).failure(), (51, "limited".into()));
    assert_eq!(status(&failing(999, "broken")).failure(), (50, "broken".into()));
    assert_eq!(
        status(&failing(1, "incompatible CNI versions")).failure(),
        (50, "incompatible CNI versions".into())
    );
}

#[test]
fn c13_gc_when_given_a_list_deletes_the_others_and_without_one_nothing() {
    let mut host = Host::new();
    host.subnet_env("10.244.0.0/16", "10.244.7.1/24", "", "", false);
    let ids = ["a", "b", "c"];
    for (i, id) in ids.iter().enumerate() {
        let stdin = at_1_1(&host, "");
        let call = Call {
            container: id,
            netns: host.pod(i),
            ..host.call("flannel", "ADD", stdin)
        };
        host.run(&call).ok();
    }
    let held = |host: &Host| host.reservations("cbr0").len();
    run(&mut host, "GC", "").ok();
    assert_eq!(held(&host), 3, "no list says nothing about anybody");
    // b's container is gone without a DEL; c's is so young that the list may just not have it yet.
    host.pod_ip(1, &["link", "del", "eth0"]);
    let list = r#","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]"#;
    run(&mut host, "GC", list).ok();
    let contents: Vec<String> = host
        .reservations("cbr0")
        .into_iter()
        .map(|(_, content)| content)
        .collect();
    assert_eq!(contents, ["a\r\neth0", "c\r\neth0"]);
    assert!(!host.exists("flannel/b") && host.exists("flannel/c"));
    assert_eq!(
        host.nat()
            .iter()
            .filter(|l| l.starts_with("-A POSTROUTING"))
            .count(),
        2
    );
    // An empty list: all that are not young and alive.
    host.pod_ip(0, &["link", "del", "eth0"]);
    host.pod_ip(2, &["link", "del", "eth0"]);
    run(&mut host, "GC", r#","cni.dev/valid-attachments":[]"#).ok();
    host.assert_nothing_left("cbr0");
}

#[test]
fn gc_when_nothing_was_saved_frees_reservations_and_rules_of_the_unlisted() {
    let mut host = Host::new();
    host.subnet_env("10.244.0.0/16", "10.244.7.1/24", "", "", false);
    host.flannel("ADD").ok();
    std::fs::remove_dir_all(host.path("flannel")).unwrap();
    host.pod_ip(0, &["link", "del", "eth0"]);
    assert!(!host.nat().is_empty());
    run(&mut host, "GC", r#","cni.dev/valid-attachments":[]"#).ok();
    host.assert_nothing_left("cbr0");
}

#[test]
fn check_when_something_of_the_attachment_is_gone_names_it() {
    let mut host = Host::new();
    let result = host.flannel("ADD").ok().json();
    let of_flannel = |host: &mut Host| -> Answer {
        let stdin = host.config("cbr0", &format!(r#","prevResult":{result}"#));
        let call = host.call("flannel", "CHECK", stdin);
        host.run(&call)
    };
    of_flannel(&mut host).ok();
    let delegate: Value = serde_json::from_str(&host.read(&format!("flannel/{ID}"))).unwrap();
    let check = |host: &mut Host| -> Answer {
        let mut stdin = delegate.clone();
        stdin["prevResult"] = result.clone();
        let call = host.call("bridge", "CHECK", stdin.to_string());
        host.run(&call)
    };
    check(&mut host).ok();
    host.pod_ip(0, &["route", "del", "10.244.0.0/16"]);
    assert_eq!(
        check(&mut host).failure().1,
        "Expected Route 10.244.0.0/16 via 10.244.7.1 is not in the routing table"
    );
    assert_eq!(
        of_flannel(&mut host).failure(),
        check(&mut host).failure(),
        "flannel asks its delegate"
    );
    host.pod_ip(0, &["addr", "flush", "dev", "eth0"]);
    assert_eq!(
        check(&mut host).failure().1,
        "Failed to match addr 10.244.7.2/24 on interface eth0"
    );
    let veth = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
    host.ip(&["link", "set", &veth, "nomaster"]);
    assert_eq!(
        check(&mut host).failure().1,
        "CNI veth created for bridge cni0 was not found"
    );
    std::fs::remove_file(host.path("networks/cbr0/10.244.7.2")).unwrap();
    let msg = format!("host-local: Failed to find address added by container {ID}");
    assert_eq!(check(&mut host).failure().1, msg);
}

#[test]
fn del_when_the_namespace_lives_on_without_a_path_takes_the_link_with_the_address() {
    let mut host = Host::new();
    host.flannel("ADD").ok();
    let stdin = host.config("cbr0", "");
    let mut del = host.call("flannel", "DEL", stdin);
    del.netns = String::new();
    host.run(&del).ok();
    assert_eq!(host.pod_links(0), Vec::<String>::new());
    host.assert_nothing_left("cbr0");
}
