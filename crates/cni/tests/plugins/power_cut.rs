//! C8: the power goes, and a file that was just written is empty, short or full of garbage afterwards. Containers are gone with it.
//!
//! Every file of the state in turn, each damage. Then the runtime's DEL of what it remembers, and ADDs until the subnet is full:
//! all of it works, no address is handed out twice, and none is lost.

use std::collections::BTreeSet;
use std::path::Path;

use crate::rig::{Answer, Call, Host, walk};

/// Addresses of the subnet: a /28 without its network, gateway and broadcast addresses.
const ROOM: usize = 13;

fn flannel(host: &mut Host, verb: &'static str, container: &'static str, i: usize) -> Answer {
    let stdin = host.config("cbr0", "");
    let call = Call {
        container,
        netns: host.pod(i),
        ..host.call("flannel", verb, stdin)
    };
    host.run(&call)
}

/// A node on which two containers live, the second just made.
fn node() -> Host {
    let mut host = Host::new();
    host.subnet_env("10.244.0.0/16", "10.244.7.1/28", "", "", true);
    flannel(&mut host, "ADD", "first", 0).ok();
    flannel(&mut host, "ADD", "second", 1).ok();
    host
}

/// Files and symlinks below the folders of the state, as paths below the host's folder.
fn files(host: &Host) -> Vec<String> {
    let root = host.path("");
    let mut found = Vec::new();
    for folder in ["flannel", "networks"] {
        walk(Path::new(&host.path(folder)), &mut |path| {
            if !Path::new(path).symlink_metadata().unwrap().is_dir() {
                found.push(path.strip_prefix(&root).unwrap().to_owned());
            }
        });
    }
    found.sort();
    found
}

/// What is left of a file: nothing of it, no content, half of it, zeros as long as it was, or words of something else.
const DAMAGES: [&str; 5] = ["gone", "empty", "half", "zeros", "garbage"];

fn damage(host: &Host, file: &str, how: &str) {
    let path = host.path(file);
    let is_link = Path::new(&path).symlink_metadata().unwrap().is_symlink();
    let content = match is_link {
        true => std::fs::read_link(&path)
            .unwrap()
            .into_os_string()
            .into_encoded_bytes(),
        false => std::fs::read(&path).unwrap(),
    };
    let left: Vec<u8> = match how {
        "gone" => return std::fs::remove_file(&path).unwrap(),
        "empty" => Vec::new(),
        "half" => content[..content.len() / 2].to_vec(),
        "zeros" => vec![0; content.len()],
        _ => b"\xff\xfe{]not what was here\r\n".to_vec(),
    };
    std::fs::remove_file(&path).unwrap();
    let target: Vec<u8> = left.iter().copied().filter(|byte| *byte != 0).collect();
    if is_link && !target.is_empty() {
        use std::os::unix::ffi::OsStringExt;
        std::os::unix::fs::symlink(std::ffi::OsString::from_vec(target), &path).unwrap();
    } else {
        std::fs::write(&path, left).unwrap();
    }
}

/// What a reboot takes: namespaces and links. The seal on the folder of the reservations is that of another boot afterwards.
fn reboot(host: &mut Host) {
    let other_boot = std::time::UNIX_EPOCH + std::time::Duration::from_secs(0x464c_414e);
    let folder = std::fs::File::open(host.path("networks/cbr0")).unwrap();
    folder.set_modified(other_boot).unwrap();
    for i in [0, 1] {
        host.remove_pod(i);
    }
    host.ip(&["link", "del", "cni0"]);
}

/// As many containers as the subnet has room for, each with an address of its own, and none more.
fn fill(host: &mut Host, what: &str, held: &[String]) {
    const NAMES: [&str; ROOM] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m"];
    let stdin = |host: &Host| {
        format!(
            r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"x","ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.244.7.0/28"}}]]}}}}"#,
            host.path("networks")
        )
    };
    let mut got: BTreeSet<String> = held.iter().cloned().collect();
    for container in &NAMES[..ROOM - held.len()] {
        let text = stdin(host);
        let call = Call {
            container,
            ..host.call("host-local", "ADD", text)
        };
        let answer = host.run(&call);
        assert_eq!(answer.status, 0, "{what}: {} held: {answer:?}", got.len());
        for address in answer.addresses() {
            assert!(got.insert(address.clone()), "{what}: {address} twice");
        }
    }
    assert_eq!(got.len(), ROOM, "{what}");
    let text = stdin(host);
    let call = Call {
        container: "one-too-many",
        ..host.call("host-local", "ADD", text)
    };
    let refused = host.run(&call).failure().1;
    assert!(refused.contains("no IP addresses available"), "{what}: {refused}");
}

#[test]
fn c8_files_when_damaged_by_a_power_cut_block_no_del_and_no_address() {
    let all = files(&node());
    for part in [
        "flannel/second",
        "flannel/.v2/second/eth0",
        "networks/cbr0/10.244.7.3",
        "networks/cbr0/last_reserved_ip.0",
        "networks/cbr0/lock",
        "networks/.owners/cbr0/second:eth0",
    ] {
        assert!(all.iter().any(|file| file == part), "{part} of {all:?}");
    }
    for file in &all {
        for how in DAMAGES {
            let what = format!("{file} {how}");
            let mut host = node();
            damage(&host, file, how);
            reboot(&mut host);
            for container in ["first", "second"] {
                let answer = flannel(&mut host, "DEL", container, 2);
                assert_eq!(answer.status, 0, "{what}: {answer:?}");
            }
            assert_eq!(host.saved(), Vec::<String>::new(), "{what}");
            // What names nobody any more is free; what names somebody else is that one's.
            let held = host.reservations("cbr0");
            let foreign = file.starts_with("networks/cbr0/10.") && matches!(how, "half" | "garbage");
            assert!(
                held.is_empty() || (foreign && held.len() == 1),
                "{what}: {held:?}"
            );
            let held: Vec<String> = held.iter().map(|(ip, _)| format!("{ip}/28")).collect();
            fill(&mut host, &what, &held);
        }
    }
}

#[test]
fn c8_files_when_damaged_under_living_containers_give_no_address_twice() {
    for file in files(&node()) {
        for how in DAMAGES {
            let what = format!("{file} {how}");
            let mut host = node();
            damage(&host, &file, how);
            // Not a reservation itself: with that the address is free by all that host-local can know.
            let lost = file.starts_with("networks/cbr0/10.");
            let answer = flannel(&mut host, "ADD", "third", 2);
            assert_eq!(answer.status, 0, "{what}: {answer:?}");
            let new = answer.addresses().remove(0);
            assert!(
                lost || new == "10.244.7.4/28" || new == "10.244.7.5/28",
                "{what}: {new}"
            );
            for (i, container) in ["first", "second", "third"].into_iter().enumerate() {
                let answer = flannel(&mut host, "DEL", container, i);
                assert_eq!(answer.status, 0, "{what}: {answer:?}");
                assert_eq!(host.pod_links(i), Vec::<String>::new(), "{what}");
            }
            assert_eq!(host.saved(), Vec::<String>::new(), "{what}");
        }
    }
}
