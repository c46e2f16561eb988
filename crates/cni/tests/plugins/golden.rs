//! The same calls as were made to Go's plugins give the same exit, result and state.
//!
//! Beyond Go's files ours keep two things in folders whose names start with a dot (`.v2`, `.owners`); both are gone after DEL.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::rig::{Host, ID, walk};

/// Values that differ from run to run: what follows these words.
const RUNNING: &[&str] = &[
    "bridge_id",
    "designated_root",
    "designated_bridge",
    "hello_timer",
    "tcn_timer",
    "topology_change_timer",
    "gc_timer",
    "hold_timer",
    "message_age_timer",
    "forward_delay_timer",
];
/// Hardware addresses that are not random.
const FIXED: &[&str] = &[
    "ff:ff:ff:ff:ff:ff",
    "00:00:00:00:00:00",
    "01:80:c2:00:00:00",
    "02:11:22:33:44:55",
];

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(case)
}

fn is_mac(text: &str) -> bool {
    text.len() == 17
        && text.split(':').count() == 6
        && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b':')
}

/// A line without what is random or a matter of time.
fn normalise(line: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in line.split_whitespace() {
        let word = match words.last() {
            Some(last) if RUNNING.contains(&last.as_str()) => "*",
            // Whether detection is over yet is a matter of time; the test of the container's own addresses is elsewhere.
            // COMPAT: the gateway's address skips it, so that the first pod's ADD returns to a gateway that answers.
            _ if word == "tentative" || word == "nodad" => continue,
            // The kernel takes up to a second to notice that a bridge without ports has no carrier.
            _ if word == "linkdown" => continue,
            _ if word.starts_with("fe80::") && word.len() > 9 => "fe80::*/64",
            _ if is_mac(word) && !FIXED.contains(&word) => "MAC",
            _ => word,
        };
        words.push(word.to_owned());
    }
    words.join(" ")
}

/// The captured sections: title and lines.
fn sections(text: &str) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("== "), found.last_mut()) {
            (Some(title), _) => found.push((title.to_owned(), Vec::new())),
            (None, Some((_, lines))) => lines.push(line.to_owned()),
            (None, None) => panic!("text before the first section: {line}"),
        }
    }
    found
}

/// Text between quotes as it was printed, escapes undone.
fn unescape(text: &str) -> String {
    text.replace("\\n", "\n")
        .replace("\\'", "'")
        .replace("\\\\", "\\")
}

/// Files as the capture lists them: mode, path, content; without those that only ours keep.
fn list_files(host: &Host) -> Vec<String> {
    use std::os::unix::fs::PermissionsExt;
    let root = host.path("");
    let mut lines = Vec::new();
    for top in ["flannel", "networks", "subnet.env"] {
        let mut paths = vec![host.path(top)];
        walk(Path::new(&host.path(top)), &mut |path| {
            paths.push(path.to_owned())
        });
        for path in paths {
            let Ok(data) = std::fs::symlink_metadata(&path) else {
                continue;
            };
            let name = path.strip_prefix(&root).unwrap();
            if name.split('/').any(|part| part.starts_with('.')) {
                continue;
            }
            let mode = data.permissions().mode() & 0o7777;
            if data.is_dir() {
                lines.push(format!("0o{mode:o} DIR/{name}/"));
            } else {
                let content = std::fs::read_to_string(&path).unwrap().replace("\r\n", "\n");
                lines.push(
                    format!("0o{mode:o} DIR/{name} {content:?}").replace(root.trim_end_matches('/'), "DIR"),
                );
            }
        }
    }
    lines.sort();
    lines
}

struct Case {
    host: Host,
    name: &'static str,
    result: Value,
    veth: String,
}

impl Case {
    fn open(name: &'static str, subnet_env: Option<&str>) -> Case {
        let mut host = Host::new();
        host.pod(0);
        let text = match subnet_env {
            Some(text) => text.to_owned(),
            None => {
                let captured = std::fs::read_to_string(folder(name).join("after-add.txt")).unwrap();
                let line = captured
                    .lines()
                    .find(|l| l.contains("DIR/subnet.env"))
                    .unwrap()
                    .to_owned();
                unescape(line.split_once(" '").unwrap().1.trim_end_matches('\''))
            }
        };
        std::fs::write(host.path("subnet.env"), text).unwrap();
        // As on the host of the capture.
        host.exec(&[
            "sh",
            "-c",
            "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
        ]);
        Case {
            host,
            name,
            result: Value::Null,
            veth: String::new(),
        }
    }

    fn normalise(&self, text: &str) -> String {
        let (pod, host) = (format!("{}-0", self.host.name), &self.host.name);
        let text = text.replace(&pod, "POD").replace(host.as_str(), "HOST");
        let text = text.replace(self.host.path("").trim_end_matches('/'), "DIR");
        if self.veth.is_empty() {
            text
        } else {
            text.replace(&self.veth, "vethHOST0")
        }
    }

    /// Makes every recorded call; stops for a look at the state after the last ADD.
    fn run(&mut self) {
        let calls = std::fs::read_to_string(folder(self.name).join("calls.json")).unwrap();
        let calls: Vec<Value> = serde_json::from_str(&calls).unwrap();
        let last_add = calls.iter().rposition(|c| c["verb"] == "ADD").unwrap();
        for (i, call) in calls.iter().enumerate() {
            self.make(call);
            if i == last_add && folder(self.name).join("after-add.txt").exists() {
                self.compare("after-add.txt");
            }
        }
        if folder(self.name).join("after-del.txt").exists() {
            self.compare("after-del.txt");
            if !self.name.starts_with("portmap") {
                // portmap's shared chains stay; the comparison has seen that nothing of the container does.
                self.host.assert_nothing_left("cbr0");
            }
        }
    }

    fn make(&mut self, call: &Value) {
        let plugin = call["plugin"].as_str().unwrap();
        let mut stdin = call["stdin"].clone();
        if stdin.get("prevResult").is_some() {
            stdin["prevResult"] = self.result.clone();
        }
        let root = self.host.path("");
        let stdin = stdin.to_string().replace("DIR/", &root);
        let mut made = self.host.call(plugin, "ADD", stdin);
        let verb = call["verb"].as_str().unwrap();
        made.verb = verb;
        let answer = self.host.run(&made);
        assert_eq!(
            answer.status,
            call["exit"].as_i64().unwrap() as i32,
            "{} {verb}: {answer:?}",
            self.name
        );
        let expected = &call["stdout"];
        if expected.is_string() {
            assert_eq!(answer.stdout, expected.as_str().unwrap(), "{} {verb}", self.name);
            return;
        }
        if verb == "ADD" && answer.status == 0 {
            self.result = answer.json();
            self.veth = self.result["interfaces"][1]["name"].as_str().unwrap().to_owned();
        }
        let said = self.normalise(&answer.stdout);
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(
            without_macs(said),
            without_macs(expected.clone()),
            "{} {verb}",
            self.name
        );
    }

    fn compare(&self, file: &str) {
        let captured = std::fs::read_to_string(folder(self.name).join(file)).unwrap();
        for (title, expected) in sections(&captured) {
            let seen = self.look(&title, &expected);
            let settle = |line: String| match file {
                "after-del.txt" => line.replace("NO-CARRIER,", "").replace("state DOWN", "state UP"),
                _ => line,
            };
            let clean = |lines: Vec<String>| -> Vec<String> {
                let lines = lines.into_iter().map(|l| settle(normalise(&self.normalise(&l))));
                // A container without addresses has no IPv6 routes, and a table nobody has used yet is not listed.
                lines.filter(|l| !l.is_empty() && !l.starts_with('#')).collect()
            };
            let expected: Vec<String> = match title.as_str() {
                "files" => expected.iter().map(|l| to_listing(l)).collect(),
                // A pod of Go's takes its neighbours' router advertisements, a pod of ours none.
                "pod: sysctl -a" => {
                    let ours = |l: &String| l.replace("conf/eth0/accept_ra:1", "conf/eth0/accept_ra:0");
                    expected.iter().map(ours).collect()
                }
                _ => expected,
            };
            let (mut seen, mut expected) = (clean(seen), clean(expected));
            if title.ends_with("route") || title.ends_with("addr") || title == "files" {
                // Link-local ones come in the order in which links happened to get ready, files in that of a folder.
                seen.sort();
                expected.sort();
            }
            assert_eq!(
                seen, expected,
                "{} {file}: {title}\n{seen:#?}\n{expected:#?}",
                self.name
            );
        }
    }

    fn look(&self, title: &str, expected: &[String]) -> Vec<String> {
        let lines = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
        if title == "files" {
            return list_files(&self.host);
        }
        let (place, command) = title.split_once(": ").unwrap();
        let run = |command: &[&str]| match place {
            "host" => self.host.exec(command),
            _ => self.host.pod_exec(0, command),
        };
        if command.starts_with("sysctl") {
            return expected
                .iter()
                .map(|line| {
                    let name = line.split_once(':').unwrap().0.replace("vethHOST0", &self.veth);
                    format!(
                        "{name}:{}",
                        run(&["cat", &format!("/proc/sys/net/{name}")]).trim()
                    )
                })
                .collect();
        }
        if command == "iptables-save" || command == "ip6tables-save" {
            return lines(run(&[command, "-t", "nat"]));
        }
        lines(run(&command.split(' ').collect::<Vec<_>>()))
    }
}

/// A captured line of the file list in the form of [`list_files`].
fn to_listing(line: &str) -> String {
    match line.split_once(" '") {
        Some((head, content)) => format!("{head} {:?}", unescape(content.strip_suffix('\'').unwrap())),
        None => line.to_owned(),
    }
}

fn without_macs(mut result: Value) -> Value {
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        if let Some(mac) = interface.get_mut("mac")
            && !FIXED.contains(&mac.as_str().unwrap())
        {
            assert!(is_mac(mac.as_str().unwrap()));
            *mac = Value::from("MAC");
        }
    }
    result
}

macro_rules! golden {
    ($($test:ident $case:literal,)*) => {$(
        #[test]
        fn $test() {
            Case::open($case, None).run();
        }
    )*};
}

golden! {
    golden_no_delegate "no-delegate",
    golden_version_0_3_1 "version-0.3.1",
    golden_version_0_4_0 "version-0.4.0",
    golden_version_1_0_0 "version-1.0.0",
    golden_version_1_1_0 "version-1.1.0",
    golden_dual_stack "dual-stack",
    golden_ipv6_only "ipv6-only",
    golden_mac_and_mtu "mac-and-mtu",
    golden_two_networks "two-networks",
    golden_ipmasq_by_bridge "ipmasq-by-bridge",
    golden_ipmasq_by_bridge_nft "ipmasq-by-bridge-nft",
    golden_portmap_iptables "portmap-iptables",
    golden_portmap_dual_iptables "portmap-dual-iptables",
    golden_portmap_nft "portmap-nft",
    golden_bandwidth "bandwidth",
}

#[test]
fn golden_bad_subnet_env() {
    Case::open("bad-subnet-env", Some("FLANNEL_NETWORK=10.244.0.0/16\n")).run();
}

#[test]
fn golden_delegate_with_ipam() {
    let env = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    let mut case = Case::open("delegate-with-ipam", Some(env));
    case.run();
    assert_eq!(case.host.saved(), Vec::<String>::new(), "a refusal saves nothing");
    assert_eq!(ID.len(), 16);
}
