//! Things that go wrong, by name: what a person with root does to a host, as commands.

use serde_json::Value;

use crate::command::{LabError, run_with_input, words};
use crate::node::Node;
use crate::process::send;
use crate::store::Kind;
use crate::topology::Lab;
use crate::witness::{addresses, ip, link_names, neighbours, permanent_forwarding, routes};
use rustix::process::Signal;

/// What is known of a host when a fault is aimed at it: the first of everything.
#[derive(Debug, Clone, Default)]
struct Aim {
    device: Option<String>,
    device6: Option<String>,
    address: Option<String>,
    address6: Option<String>,
    neighbour: Option<String>,
    neighbour6: Option<String>,
    forwarding: Option<(String, String)>,
    forwarding6: Option<(String, String)>,
    route: Option<String>,
    route6: Option<String>,
    iptables: Option<()>,
    nftables: Option<()>,
}

type Script = fn(&Aim) -> Option<String>;

/// A named fault.
pub struct Fault {
    /// What a person types.
    pub name: &'static str,
    /// What it is, in words.
    pub about: &'static str,
    /// Which part of the host shows the repair.
    pub part: Part,
    script: Script,
    look: Script,
}

/// Where a fault shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Links, addresses, routes, neighbours, forwarding entries.
    Kernel,
    /// iptables and nftables.
    Firewall,
    /// subnet.env.
    File,
    /// A process or the underlay: nothing that the daemon repairs.
    World,
}

/// What is done, and how to see it undone.
#[derive(Debug, Clone)]
pub struct Broken {
    /// The commands, to be run in the host.
    pub did: String,
    /// A command that shows the repair, as run in the host.
    pub look: String,
}

macro_rules! fault {
    ($name:literal, $part:ident, $about:literal, |$aim:ident| $script:expr, $look:expr) => {
        Fault {
            name: $name,
            about: $about,
            part: Part::$part,
            script: |$aim: &Aim| {
                let _ = $aim;
                Some($script)
            },
            look: |$aim: &Aim| {
                let _ = $aim;
                Some($look)
            },
        }
    };
}

const IPT: &str = "-w -t nat";

/// All faults that are commands in one host.
#[rustfmt::skip]
pub const FAULTS: &[Fault] = &[
    fault!("link-del", Kernel, "delete the IPv4 tunnel device", |a| format!("ip link del {}", a.device.clone()?), format!("ip -d link show {}", a.device.clone()?)),
    fault!("link6-del", Kernel, "delete the IPv6 tunnel device", |a| format!("ip link del {}", a.device6.clone()?), format!("ip -d link show {}", a.device6.clone()?)),
    fault!("link-down", Kernel, "take the IPv4 tunnel device down", |a| format!("ip link set {} down", a.device.clone()?), format!("ip link show {0}; ip route show dev {0}", a.device.clone()?)),
    fault!("link6-down", Kernel, "take the IPv6 tunnel device down", |a| format!("ip link set {} down", a.device6.clone()?), format!("ip link show {0}; ip -6 route show dev {0}", a.device6.clone()?)),
    fault!("link-down-up", Kernel, "take the IPv4 tunnel device down and up: the kernel drops its routes", |a| format!("ip link set {0} down; ip link set {0} up", a.device.clone()?), format!("ip route show dev {}", a.device.clone()?)),
    fault!("mac-change", Kernel, "give the IPv4 tunnel device another MAC", |a| format!("ip link set {} address 02:00:00:00:00:99", a.device.clone()?), format!("ip link show {}", a.device.clone()?)),
    fault!("mtu-change", Kernel, "lower the IPv4 tunnel device's MTU", |a| format!("ip link set {} mtu 1300", a.device.clone()?), format!("ip link show {}", a.device.clone()?)),
    fault!("mtu6-change", Kernel, "lower the IPv6 tunnel device's MTU", |a| format!("ip link set {} mtu 1300", a.device6.clone()?), format!("ip link show {}", a.device6.clone()?)),
    fault!("addr-del", Kernel, "delete the IPv4 tunnel device's address", |a| format!("ip addr del {} dev {}", a.address.clone()?, a.device.clone()?), format!("ip addr show {}", a.device.clone()?)),
    fault!("addr6-del", Kernel, "delete the IPv6 tunnel device's address", |a| format!("ip addr del {} dev {}", a.address6.clone()?, a.device6.clone()?), format!("ip addr show {}", a.device6.clone()?)),
    fault!("addr-flush", Kernel, "flush all addresses of the IPv6 tunnel device, the link-local one too", |a| format!("ip -6 addr flush dev {} scope global", a.device6.clone()?), format!("ip addr show {}", a.device6.clone()?)),
    fault!("neigh-del", Kernel, "delete one peer's IPv4 neighbour entry", |a| format!("ip neigh del {} dev {}", a.neighbour.clone()?, a.device.clone()?), format!("ip neigh show dev {}", a.device.clone()?)),
    fault!("neigh6-del", Kernel, "delete one peer's IPv6 neighbour entry", |a| format!("ip neigh del {} dev {}", a.neighbour6.clone()?, a.device6.clone()?), format!("ip -6 neigh show dev {}", a.device6.clone()?)),
    fault!("neigh-change", Kernel, "point one peer's neighbour entry at a wrong MAC", |a| format!("ip neigh replace {} lladdr 02:00:00:00:00:98 dev {} nud permanent", a.neighbour.clone()?, a.device.clone()?), format!("ip neigh show dev {}", a.device.clone()?)),
    fault!("neigh-flush", Kernel, "flush every neighbour entry of the tunnel device", |a| format!("ip neigh flush dev {} nud permanent", a.device.clone()?), format!("ip neigh show dev {}", a.device.clone()?)),
    fault!("fdb-del", Kernel, "delete one peer's forwarding entry", |a| { let (mac, to) = a.forwarding.clone()?; format!("bridge fdb del {mac} dev {} dst {to} self", a.device.clone()?) }, format!("bridge fdb show dev {}", a.device.clone()?)),
    fault!("fdb6-del", Kernel, "delete one peer's IPv6 forwarding entry", |a| { let (mac, to) = a.forwarding6.clone()?; format!("bridge fdb del {mac} dev {} dst {to} self", a.device6.clone()?) }, format!("bridge fdb show dev {}", a.device6.clone()?)),
    fault!("fdb-change", Kernel, "point one peer's forwarding entry at a wrong host", |a| { let (mac, _) = a.forwarding.clone()?; format!("bridge fdb replace {mac} dev {} dst 198.18.15.254 self permanent", a.device.clone()?) }, format!("bridge fdb show dev {}", a.device.clone()?)),
    fault!("route-del", Kernel, "delete the IPv4 route to one peer", |a| format!("ip route del {}", a.route.clone()?), format!("ip route show {}", a.route.clone()?)),
    fault!("route6-del", Kernel, "delete the IPv6 route to one peer", |a| format!("ip -6 route del {}", a.route6.clone()?), format!("ip -6 route show {}", a.route6.clone()?)),
    fault!("route-replace", Kernel, "point the IPv4 route to one peer at a wrong gateway", |a| format!("ip route replace {} via $(ip -j route show default | sed 's/.*\"gateway\":\"\\([^\"]*\\)\".*/\\1/')", a.route.clone()?), format!("ip route show {}", a.route.clone()?)),
    fault!("route-flush", Kernel, "delete every IPv4 route to a peer", |a| { a.route.clone()?; "for r in $(ip route show proto 241 | cut -d' ' -f1); do ip route del $r; done".to_owned() }, "ip route show proto 241".to_owned()),
    fault!("masq-flush", Firewall, "flush the masquerade chain", |a| { a.iptables?; format!("iptables {IPT} -F FLANNEL-POSTRTG") }, format!("iptables {IPT} -S FLANNEL-POSTRTG")),
    fault!("masq-rule-del", Firewall, "delete one masquerade rule", |a| { a.iptables?; format!("iptables {IPT} -D FLANNEL-POSTRTG 2") }, format!("iptables {IPT} -S FLANNEL-POSTRTG")),
    // In one transaction, as below: else the daemon repairs the half of it.
    fault!("masq-order", Firewall, "move a masquerade rule to the end of the chain", |a| { a.iptables?; format!("{{ printf '*nat\\n-D FLANNEL-POSTRTG 3\\n'; iptables {IPT} -S FLANNEL-POSTRTG 3; echo COMMIT; }} | iptables-restore -w -n") }, format!("iptables {IPT} -S FLANNEL-POSTRTG")),
    fault!("masq-insert", Firewall, "put a rule of one's own first into the masquerade chain", |a| { a.iptables?; format!("iptables {IPT} -I FLANNEL-POSTRTG 1 -p tcp -j ACCEPT") }, format!("iptables {IPT} -S FLANNEL-POSTRTG")),
    fault!("forward-insert", Firewall, "put a drop first into the forward chain", |a| { a.iptables?; "iptables -w -I FLANNEL-FWD 1 -j DROP".to_owned() }, "iptables -S FLANNEL-FWD".to_owned()),
    fault!("jump-del", Firewall, "delete the jump from POSTROUTING", |a| { a.iptables?; format!("iptables {IPT} -D POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG") }, format!("iptables {IPT} -S POSTROUTING")),
    fault!("chain-del", Firewall, "delete the masquerade chain and its jump", |a| { a.iptables?; "printf '*nat\\n-D POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\\n-F FLANNEL-POSTRTG\\n-X FLANNEL-POSTRTG\\nCOMMIT\\n' | iptables-restore -w -n".to_owned() }, format!("iptables {IPT} -S")),
    fault!("forward-flush", Firewall, "flush the forward chain", |a| { a.iptables?; "iptables -w -F FLANNEL-FWD".to_owned() }, "iptables -S FLANNEL-FWD".to_owned()),
    fault!("table-flush", Firewall, "flush the whole nat table", |a| { a.iptables?; format!("iptables {IPT} -F") }, format!("iptables {IPT} -S")),
    fault!("ruleset-flush", Firewall, "nft flush ruleset, as a firewall manager does when it starts", |_a| "nft flush ruleset".to_owned(), "iptables-save; ip6tables-save".to_owned()),
    fault!("masq6-flush", Firewall, "flush the IPv6 masquerade chain", |a| { a.iptables?; a.route6.clone()?; format!("ip6tables {IPT} -F FLANNEL-POSTRTG") }, format!("ip6tables {IPT} -S FLANNEL-POSTRTG")),
    fault!("nft-table-del", Firewall, "delete the nftables table", |a| { a.nftables?; "nft delete table ip flannel-ipv4".to_owned() }, "nft list table ip flannel-ipv4".to_owned()),
    fault!("nft-chain-flush", Firewall, "flush the nftables masquerade chain", |a| { a.nftables?; "nft flush chain ip flannel-ipv4 postrtg".to_owned() }, "nft list table ip flannel-ipv4".to_owned()),
    fault!("nft-rule-del", Firewall, "delete one nftables masquerade rule", |a| { a.nftables?; "nft delete rule ip flannel-ipv4 postrtg handle $(nft -a list chain ip flannel-ipv4 postrtg | sed -n 's/.*saddr.*# handle //p' | head -1)".to_owned() }, "nft list table ip flannel-ipv4".to_owned()),
    fault!("nft-rule-insert", Firewall, "put a rule of one's own first into the nftables masquerade chain", |a| { a.nftables?; "nft insert rule ip flannel-ipv4 postrtg ip protocol tcp accept".to_owned() }, "nft list table ip flannel-ipv4".to_owned()),
    fault!("subnet-env-del", File, "delete subnet.env", |_a| "rm /run/flannel/subnet.env".to_owned(), "cat /run/flannel/subnet.env".to_owned()),
    fault!("subnet-env-change", File, "change a key of subnet.env", |_a| "sed -i s/^FLANNEL_MTU=.*/FLANNEL_MTU=9000/ /run/flannel/subnet.env".to_owned(), "cat /run/flannel/subnet.env".to_owned()),
    fault!("subnet-env-truncate", File, "empty subnet.env", |_a| ": > /run/flannel/subnet.env".to_owned(), "cat /run/flannel/subnet.env".to_owned()),
];

/// Faults of processes and of the underlay, with what they do.
pub const WORLD: &[(&str, &str)] = &[
    (
        "daemon-kill",
        "kill -9 the host's flanneld (nothing starts it again)",
    ),
    ("daemon-start", "start the host's flanneld again"),
    ("daemon-hang", "SIGSTOP the host's flanneld"),
    ("daemon-continue", "SIGCONT it"),
    ("cut", "drop the host's frames at the switch; its carrier stays"),
    ("heal", "end `cut`"),
    ("unplug", "take the host's carrier away"),
    ("plug", "give it back"),
    ("registry-stop", "kill -9 the registry"),
    ("registry-start", "start it again on its data"),
];

/// A fault by its name.
pub fn find(name: &str) -> Option<&'static Fault> {
    FAULTS.iter().find(|f| f.name == name)
}

impl Fault {
    /// Aims at a host, which takes a dozen commands; `None` when the host has nothing of the kind (an IPv6 device on an
    /// IPv4 network, say).
    pub fn aim(&self, node: &Node) -> Result<Option<Broken>, LabError> {
        let aim = Aim::at(node)?;
        let (Some(did), Some(look)) = ((self.script)(&aim), (self.look)(&aim)) else {
            return Ok(None);
        };
        Ok(Some(Broken { did, look }))
    }

    /// Does it to a host; `None` when the host has nothing of the kind.
    pub fn strike(&self, node: &Node) -> Result<Option<Broken>, LabError> {
        let Some(broken) = self.aim(node)? else {
            return Ok(None);
        };
        node.shell(&broken.did)?;
        Ok(Some(broken))
    }
}

impl Aim {
    fn at(node: &Node) -> Result<Aim, LabError> {
        let mut aim = Aim::default();
        for name in link_names(node)?.into_iter().filter(|n| n.starts_with("flannel")) {
            let slot = if name.starts_with("flannel-v6") {
                &mut aim.device6
            } else {
                &mut aim.device
            };
            slot.get_or_insert(name);
        }
        let global = |device: &str| -> Result<Option<String>, LabError> {
            let all = addresses(node, device)?;
            let found = all.iter().find(|a| a["scope"] == "global");
            Ok(found.and_then(|a| Some(format!("{}/{}", a["local"].as_str()?, a["prefixlen"]))))
        };
        let first = |entries: Vec<Value>, field: &str| {
            entries.first().and_then(|e| Some(e[field].as_str()?.to_owned()))
        };
        let pair = |entries: Vec<Value>| {
            let entry = entries.into_iter().find(|e| e["dst"].is_string())?;
            Some((
                entry["mac"].as_str()?.to_owned(),
                entry["dst"].as_str()?.to_owned(),
            ))
        };
        if let Some(device) = &aim.device {
            aim.address = global(device)?;
            aim.neighbour = first(neighbours(node, device)?, "dst");
            aim.forwarding = pair(permanent_forwarding(node, device)?);
        }
        if let Some(device) = &aim.device6 {
            aim.address6 = global(device)?;
            aim.neighbour6 = first(neighbours(node, device)?, "dst");
            aim.forwarding6 = pair(permanent_forwarding(node, device)?);
        }
        let ours = |family| -> Result<Option<String>, LabError> {
            Ok(routes(node, family)?
                .into_iter()
                .find(|r| r.protocol.as_deref() == Some("241"))
                .map(|r| r.dst))
        };
        aim.route = ours(4)?;
        aim.route6 = ours(6)?;
        aim.iptables = node
            .run(&["iptables", "-w", "-t", "nat", "-S", "FLANNEL-POSTRTG"])
            .ok()
            .map(|_| ());
        aim.nftables = node
            .run(&["nft", "list", "table", "ip", "flannel-ipv4"])
            .ok()
            .map(|_| ());
        Ok(aim)
    }
}

impl Lab {
    /// Whether the switch's port of a host is already as this fault leaves it.
    fn is_port(&self, host: usize, fault: &str) -> Result<bool, LabError> {
        let port = crate::topology::port(host);
        let found = ip(self.switch(), &["link", "show", &port])?;
        let is_up = found[0]["flags"]
            .as_array()
            .is_some_and(|flags| flags.iter().any(|flag| flag == "UP"));
        let has_master = found[0]["master"].is_string();
        Ok(match fault {
            "cut" => !has_master,
            "heal" => has_master,
            "unplug" => !is_up,
            _ => is_up,
        })
    }

    /// What the daemon of a host has logged, as it was last started.
    pub fn log_of(&self, host: usize) -> String {
        let daemon = self.state.daemons.iter().find(|(number, _)| *number == host);
        daemon
            .and_then(|(_, process)| std::fs::read(&process.log).ok())
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// Does a fault, of either kind, to a host by number.
    pub fn strike(&mut self, host: usize, name: &str) -> Result<Broken, LabError> {
        if let Some(fault) = find(name) {
            return fault.strike(self.host(host))?.ok_or_else(|| {
                LabError::Invalid(format!(
                    "{name} ({}): h{host} has nothing of the kind",
                    fault.about
                ))
            });
        }
        let broken = |did: String, look: &str| {
            Ok(Broken {
                did,
                look: look.to_owned(),
            })
        };
        let status = "flannelctl status";
        let daemon = self
            .state
            .daemons
            .iter()
            .find(|(n, _)| *n == host)
            .map(|(_, r)| r.clone());
        let daemon = || {
            daemon
                .clone()
                .filter(crate::process::Record::alive)
                .ok_or_else(|| LabError::Missing {
                    what: "running flanneld on host",
                    name: format!("h{host}"),
                    hint: "start it with `daemon-start`".to_owned(),
                })
        };
        let signal = |number: Signal, text: &str| {
            let pid = daemon()?.pid;
            let is_stopped = crate::process::stat(pid).is_some_and(|stat| stat.state == 'T');
            let idle = match number {
                Signal::STOP => is_stopped,
                Signal::CONT => !is_stopped,
                _ => false,
            };
            if idle {
                let state = if is_stopped {
                    "stopped already"
                } else {
                    "not stopped"
                };
                return Err(LabError::Invalid(format!(
                    "flanneld on h{host} (pid {pid}) is {state}"
                )));
            }
            send(pid, number);
            broken(format!("kill -{text} {pid}"), status)
        };
        let port = crate::topology::port(host);
        match name {
            "daemon-kill" => signal(Signal::KILL, "KILL"),
            "daemon-hang" => signal(Signal::STOP, "STOP"),
            "daemon-continue" => signal(Signal::CONT, "CONT"),
            "daemon-start" => {
                if daemon().is_ok() {
                    return Err(LabError::Invalid(format!("flanneld runs on h{host}")));
                }
                self.start_daemon(host, &[])?;
                self.save()?;
                broken(self.daemon_arguments()?.join(" "), status)
            }
            // What is that way already is not done once more: it would be told as done.
            "cut" | "heal" | "unplug" | "plug" if self.is_port(host, name)? => Err(LabError::Invalid(
                format!("h{host}: `{name}` has been done already"),
            )),
            "cut" => {
                self.cut(host)?;
                broken(format!("on sw: ip link set {port} nomaster"), status)
            }
            "heal" => {
                self.heal(host)?;
                let bridge = crate::topology::bridge(self.spec.segment(host));
                broken(format!("on sw: ip link set {port} master {bridge}"), status)
            }
            "unplug" | "plug" => {
                let way = if name == "plug" { "up" } else { "down" };
                self.switch().ip(&["link", "set", &port, way])?;
                broken(
                    format!("on sw: ip link set {port} {way}"),
                    "ip link show eth0; ip route",
                )
            }
            "registry-stop" => {
                if !self.store()?.process.alive() {
                    let text = "the registry does not run; `registry-start` starts it";
                    return Err(LabError::Invalid(text.to_owned()));
                }
                self.kill_store();
                let process = &self.store()?.process;
                // Killed is not gone yet; `registry-start` may be the next thing said.
                let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
                while process.alive() && std::time::Instant::now() < deadline {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                broken(format!("kill -KILL {}", process.pid), status)
            }
            "registry-start" => {
                let kind = self.state.store.as_ref().map_or(Kind::Embedded, |s| s.kind);
                if self.state.store.as_ref().is_some_and(|s| s.process.alive()) {
                    return Err(LabError::Invalid("the registry runs".to_owned()));
                }
                self.start_store(kind)?;
                broken("started the registry on its data".to_owned(), status)
            }
            other => Err(LabError::Invalid(format!(
                "no fault {other:?}; `flannelctl lab break --list` names them"
            ))),
        }
    }
}

/// A host's kernel objects as text without indices: equal before and after a repair. Three processes, so that it is quick
/// enough to time a repair with.
pub fn kernel_text(node: &Node) -> Result<String, LabError> {
    let mut lines = Vec::new();
    for (options, shows) in [
        (
            &["-o", "-d"][..],
            "link show\naddr show\nroute show table main\nneigh show nud permanent\n",
        ),
        (&["-o", "-6"][..], "route show table main\n"),
    ] {
        let mut command = words(&["ip", "-n", &node.netns]);
        command.args(options).args(["-batch", "-"]);
        lines.extend(run_with_input(&mut command, shows)?.lines().filter_map(settled));
    }
    lines.extend(node.bridge(&["fdb", "show"])?.lines().filter_map(settled));
    lines.sort();
    Ok(lines.join("\n"))
}

/// A line without what changes by itself; `None` for what is learned.
fn settled(line: &str) -> Option<String> {
    let line = match line.split_once(": ") {
        Some((index, rest)) if index.bytes().all(|b| b.is_ascii_digit()) => rest,
        _ => line,
    };
    // A bridge's own timers run; learned forwarding entries come and go.
    if line.starts_with("cni0") && line.contains("gc_timer")
        || line.starts_with("veth") && line.contains("timer")
    {
        return None;
    }
    if line.contains(" master cni0") && !line.contains(" permanent") {
        return None;
    }
    let mut line = line.replace(" tentative", "").replace(" dadfailed", "");
    for word in [" nhid "] {
        if let Some((head, tail)) = line.clone().split_once(word) {
            let tail = tail.split_once(' ').map_or("", |t| t.1);
            line = format!("{head} {tail}");
        }
    }
    Some(line.trim_end().to_owned())
}

/// What of a host's firewall is flannel's, as text without counters: lines of its iptables chains and jumps with their
/// tables, in order within each, and its nftables tables.
pub fn firewall_text(node: &Node) -> Result<String, LabError> {
    let text = node.shell(
        "iptables-save | sed s/^/4/; ip6tables-save | sed s/^/6/; \
         for f in 'ip flannel-ipv4' 'ip6 flannel-ipv6'; do nft list table $f 2>/dev/null | sed s/^/n/; done; true",
    )?;
    let (mut lines, mut table) = (Vec::new(), "");
    for line in text.lines() {
        if line.get(1..2) == Some("*") {
            table = line;
        } else if line.starts_with('n') {
            lines.push((String::new(), line.to_owned()));
        } else if line.contains("FLANNEL") {
            let line = if line.get(1..2) == Some(":") {
                line.split(" [").next().unwrap_or(line)
            } else {
                line
            };
            lines.push((table.to_owned(), line.to_owned()));
        }
    }
    // Which table comes first is nobody's business; a stable sort keeps the order within each.
    lines.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(lines
        .into_iter()
        .map(|(table, line)| format!("{table} {line}"))
        .collect::<Vec<_>>()
        .join("\n"))
}

/// The part of a host where a fault shows, as text.
pub fn part_text(node: &Node, part: Part) -> Result<String, LabError> {
    match part {
        Part::Kernel => kernel_text(node),
        Part::Firewall => firewall_text(node),
        Part::File => Ok(node.read("/run/flannel/subnet.env").unwrap_or_default()),
        Part::World => Ok(String::new()),
    }
}

/// The link a host's default route leaves by.
pub fn underlay_link(node: &Node) -> Result<String, LabError> {
    let default = ip(node, &["route", "show", "default"])?;
    Ok(default[0]["dev"].as_str().unwrap_or("eth0").to_owned())
}
