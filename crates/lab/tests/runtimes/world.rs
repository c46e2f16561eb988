//! Two hosts with daemons and room for runtimes, a machine outside, and what containers may leave behind: nothing.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use lab::Families;
use lab::flannel::Env;
use lab::rig::{Rig, Wish};
use lab::store::Kind;
use lab::witness::{link_names, rules};
use serde_json::{Value, json};

use crate::machine::{LARGE, Machine, wait};
use crate::place::Place;

/// Goes machines first.
pub struct World {
    /// The two hosts.
    pub machines: Vec<Machine>,
    /// What runs below them.
    pub rig: Rig,
}

/// What the tests' networks are made of, so that each can be read.
pub fn portmap() -> Value {
    json!({ "type": "portmap", "capabilities": { "portMappings": true } })
}

/// The list we ship (packaging/cni), with what comes after `flannel`. Debian's runtimes do not know `cniVersions`.
pub fn flannel_list(name: &str, more: &[Value]) -> Value {
    let mut plugins =
        vec![json!({ "type": "flannel", "delegate": { "hairpinMode": true, "isDefaultGateway": true } })];
    plugins.extend(more.iter().cloned());
    let shipped = include_str!("../../../../packaging/cni/10-flannel.conflist");
    let mut list: Value = serde_json::from_str(shipped).unwrap();
    list["name"] = json!(name);
    list["plugins"] = json!(plugins);
    list
}

/// The list we ship.
pub fn shipped_list() -> Value {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../packaging/cni/10-flannel.conflist"
    );
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

impl World {
    /// Dual stack over vxlan; the plugins are ours, put over Debian's.
    pub fn start() -> World {
        let mut wish = Wish::of(Families::Both, json!({ "Type": "vxlan" }));
        wish.store = Kind::Embedded;
        let rig = Rig::start(&wish).unwrap();
        let machines: Vec<Machine> = (1..=2).map(|host| Machine::start(&rig.lab, host)).collect();
        for machine in &machines {
            machine.install_go();
            machine.install_ours(true);
            wait("a healthy daemon", || {
                machine
                    .node
                    .run(&["flannelctl", "status"])
                    .err()
                    .map(|e| e.to_string())
            });
        }
        World { machines, rig }
    }

    /// Gives every host a network.
    pub fn add_network(&self, list: &Value) {
        for machine in &self.machines {
            machine.add_network(list);
        }
    }

    /// What host N (from 1) was given.
    pub fn env(&self, host: usize) -> Env {
        self.rig.lab.env(host).unwrap()
    }

    /// A host's address on the underlay.
    pub fn address(&self, host: usize, family: u8) -> IpAddr {
        self.rig.lab.spec.host_address(host, family)
    }

    /// A machine on the underlay that knows nothing of flannel.
    pub fn outside(&self) -> Place {
        Place {
            name: "outside".to_owned(),
            netns: self.rig.lab.switch().network_file(),
        }
    }
}

impl Machine {
    /// Gives the host a network.
    pub fn add_network(&self, list: &Value) {
        let path = format!("/etc/cni/net.d/10-{}.conflist", list["name"].as_str().unwrap());
        self.node.write(&path, &list.to_string()).unwrap();
    }

    /// Links, firewall rules, network namespaces and CNI's files: all that a container can leave.
    pub fn traces(&self) -> Vec<String> {
        let mut lines: Vec<String> = link_names(&self.node).unwrap();
        for family in [4, 6] {
            lines.extend(
                rules(&self.node, family)
                    .unwrap()
                    .into_iter()
                    .map(|r| format!("{family} {r}")),
            );
        }
        let ruleset = self.node.run(&["nft", "-s", "list", "ruleset"]).unwrap();
        lines.extend(ruleset.lines().map(|l| format!("nft {}", l.trim())));
        lines.extend(self.names("/run/netns").into_iter().map(|n| format!("netns {n}")));
        add_files(&self.node.path("/var/lib/cni"), &mut lines);
        lines.sort();
        lines
    }

    /// Fails unless what is there becomes what was there: the kernel takes its time to remove a namespace.
    pub fn assert_nothing_left(&self, before: &[String]) {
        self.assert_left(before, &[]);
    }

    /// As [`Machine::assert_nothing_left`], for containers of ours that Go's plugins removed: these do not know what we keep beside
    /// their files.
    pub fn assert_only_indices_left(&self, before: &[String]) {
        self.assert_left(before, &["/flannel/.v2/", "/networks/.owners/"]);
    }

    fn assert_left(&self, before: &[String], allowed: &[&str]) {
        wait(&format!("nothing left on {}", self.node.name), || {
            let mut now = self.traces();
            now.retain(|line| !allowed.iter().any(|word| line.contains(word)));
            let difference = |a: &[String], b: &[String]| -> Vec<String> {
                a.iter().filter(|line| !b.contains(line)).cloned().collect()
            };
            (now != before).then(|| {
                let (left, missing) = (difference(&now, before), difference(before, &now));
                format!("left: {left:#?}\nmissing: {missing:#?}")
            })
        });
    }
}

/// Files below a folder but those that stay for good.
fn add_files(folder: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() {
            add_files(&path, lines);
        } else if name != "lock" && !name.starts_with("last_reserved_ip.") {
            lines.push(format!("file {}", path.display()));
        }
    }
}

/// The one global address of a family (4 or 6) on a link.
pub fn one(place: &Place, link: &str, family: u8) -> IpAddr {
    let all = place.addresses(link);
    let found = all.iter().find(|a| a.addr().is_ipv4() == (family == 4));
    found.unwrap().addr()
}

impl World {
    /// Two containers, the first on host 1, the second on host 2: addresses, MTU, and every way between them and their hosts.
    pub fn assert_talk(&self, first: &Place, second: &Place) {
        let mtu = self.env(1).mtu.unwrap();
        for (host, place) in [(1, first), (2, second)] {
            let env = self.env(host);
            assert_eq!(place.mtu("eth0"), u64::from(mtu), "{}", place.name);
            for family in [4, 6] {
                let address = one(place, "eth0", family);
                let subnet = env.subnet_of(family).unwrap();
                assert!(
                    subnet.contains(&address),
                    "{}: {address} is not of {subnet}",
                    place.name
                );
            }
        }
        for family in [4, 6] {
            for (host, from, to) in [(1, first, second), (2, second, first)] {
                let (own, target) = (one(from, "eth0", family), one(to, "eth0", family));
                let what = format!("{} to {target}", from.name);
                assert!(from.pings(target, mtu), "{what}, {mtu} bytes");
                assert!(from.is_too_much(target, mtu + 1), "{what}, {} bytes", mtu + 1);
                assert_eq!(from.get(target, 80, "name"), to.name, "{what}");
                assert_eq!(from.get(target, 80, "large").len(), LARGE, "{what}");
                let machine = self.machines[host - 1].place();
                for address in [self.address(host, family), one(&machine, "cni0", family)] {
                    assert!(
                        from.pings(address, mtu),
                        "{} to its own host's {address}",
                        from.name
                    );
                }
                assert_eq!(
                    machine.get(own, 80, "name"),
                    from.name,
                    "h{host} to its own {own}"
                );
                // The other host, and a machine outside, which sees the host's address.
                assert!(
                    from.pings(self.address(3 - host, family), mtu),
                    "{} to the other host",
                    from.name
                );
                let gateway = match family {
                    4 => IpAddr::from(self.rig.lab.spec.gateway4(0)),
                    _ => IpAddr::from(self.rig.lab.spec.gateway6(0)),
                };
                assert!(from.pings(gateway, mtu), "{} to a machine outside", from.name);
            }
        }
    }
}
