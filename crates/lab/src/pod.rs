//! Pods: network namespaces of a host, wired by the real CNI executable the way a container runtime drives it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::command::{LabError, line, output, words};
use crate::node::Node;
use crate::topology::Lab;

/// Where a host's CNI executables are.
pub const CNI_BIN: &str = "/run/cni-bin";
/// Where a host's network configuration list is.
pub const CONFLIST: &str = "/etc/cni/net.d/10-flannel.conflist";

/// A pod on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Number of its host, from 1.
    pub host: usize,
    /// Name inside the host: `p1`, ...
    pub name: String,
    /// Addresses with the prefix length of the pod's subnet, as the CNI result named them.
    pub addresses: Vec<IpNet>,
}

impl Pod {
    /// `h1-p1`.
    pub fn full_name(&self) -> String {
        format!("h{}-{}", self.host, self.name)
    }

    /// Its address of a family (4 or 6).
    pub fn address(&self, family: u8) -> Option<IpAddr> {
        self.addresses
            .iter()
            .map(IpNet::addr)
            .find(|a| a.is_ipv4() == (family == 4))
    }
}

/// The configuration list flannel's manifest installs; `portmap` is in it where the host has one.
pub fn conflist(portmap: bool) -> String {
    let mut plugins = vec![json!({
        "type": "flannel",
        "delegate": { "hairpinMode": true, "isDefaultGateway": true }
    })];
    if portmap {
        plugins.push(json!({ "type": "portmap", "capabilities": { "portMappings": true } }));
    }
    format!(
        "{:#}\n",
        json!({ "name": "cbr0", "cniVersion": "0.3.1", "plugins": plugins })
    )
}

/// One verb of one plugin, as a runtime calls it: exit code zero, and the JSON on stdout.
pub fn call(
    node: &Node,
    verb: &str,
    pod: &str,
    interface: &str,
    plugin: &str,
    config: &Value,
) -> Result<Value, LabError> {
    let executable = format!("{CNI_BIN}/{plugin}");
    let mut command = node.command(&[executable.as_str()]);
    command
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", format!("lab-{pod}"));
    command
        .env("CNI_NETNS", format!("/run/netns/{pod}"))
        .env("CNI_IFNAME", interface);
    command.env("CNI_PATH", CNI_BIN).env_remove("CNI_ARGS");
    let (success, stdout, stderr, status) = output(&mut command, &config.to_string())?;
    let command = format!("CNI_COMMAND={verb} {}", line(&command));
    if !success {
        let stderr = format!("{} {}", stdout.trim(), stderr.trim());
        return Err(LabError::Command {
            command,
            status,
            stderr,
        });
    }
    if stdout.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&stdout).map_err(|e| LabError::Output {
        command,
        problem: format!("{e}: {stdout}"),
    })
}

impl Lab {
    /// Makes the next pod of a host.
    pub fn add_pod(&mut self, host: usize) -> Result<Pod, LabError> {
        let number = self.state.pods.iter().filter(|p| p.host == host).count() + 1;
        let pod = wire(self.host(host), host, &format!("p{number}"))?;
        self.state.pods.push(pod.clone());
        self.save()?;
        Ok(pod)
    }

    /// Makes one pod on every host, hosts side by side.
    pub fn add_pods(&mut self) -> Result<(), LabError> {
        let numbers: Vec<usize> = (1..=self.spec.hosts).collect();
        let mut made = Vec::new();
        for batch in numbers.chunks(8) {
            self.check()?;
            let lab = &*self;
            let results: Vec<Result<Pod, LabError>> = std::thread::scope(|scope| {
                let threads: Vec<_> = batch
                    .iter()
                    .map(|&n| scope.spawn(move || wire(lab.host(n), n, "p1")))
                    .collect();
                threads.into_iter().filter_map(|t| t.join().ok()).collect()
            });
            for result in results {
                made.push(result?);
            }
        }
        self.state.pods.extend(made);
        self.save()
    }

    /// Takes a pod away again: DEL in reverse order, then its namespace.
    pub fn remove_pod(&mut self, full_name: &str) -> Result<(), LabError> {
        let (node, pod) = self.find(full_name)?;
        let Some(pod) = pod else {
            return Err(LabError::Invalid(format!("{full_name} is not a pod")));
        };
        for (plugin, config) in plugins(node)?.into_iter().rev() {
            call(node, "DEL", &pod.name, "eth0", &plugin, &config)?;
        }
        node.run(&["ip", "netns", "del", &pod.name])?;
        self.state.pods.retain(|p| p.full_name() != full_name);
        self.save()
    }
}

/// The plugins of the host's list, each with the configuration a runtime hands it.
fn plugins(node: &Node) -> Result<Vec<(String, Value)>, LabError> {
    let text = node.read(CONFLIST)?;
    let bad = |problem: String| LabError::Output {
        command: format!("{}:{CONFLIST}", node.name),
        problem,
    };
    let list: Value = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    let mut plugins = Vec::new();
    for plugin in list["plugins"].as_array().into_iter().flatten() {
        let mut config = plugin.clone();
        config["name"] = list["name"].clone();
        config["cniVersion"] = list["cniVersion"].clone();
        if let Some(object) = config.as_object_mut() {
            object.remove("capabilities");
        }
        let kind = plugin["type"]
            .as_str()
            .ok_or_else(|| bad("a plugin has no type".to_owned()))?;
        plugins.push((kind.to_owned(), config));
    }
    Ok(plugins)
}

fn wire(node: &Node, host: usize, name: &str) -> Result<Pod, LabError> {
    if !node.has(CONFLIST) {
        node.write(CONFLIST, &conflist(node.has(&format!("{CNI_BIN}/portmap"))))?;
    }
    node.run(&["ip", "netns", "add", name])?;
    call(
        node,
        "ADD",
        name,
        "lo",
        "loopback",
        &json!({ "cniVersion": "0.3.1", "name": "lo", "type": "loopback" }),
    )?;
    let mut result = Value::Null;
    for (plugin, mut config) in plugins(node)? {
        if !result.is_null() {
            config["prevResult"] = result;
        }
        result = call(node, "ADD", name, "eth0", &plugin, &config)?;
    }
    let mut addresses = Vec::new();
    for ip in result["ips"].as_array().into_iter().flatten() {
        let text = ip["address"].as_str().unwrap_or_default();
        addresses.push(text.parse::<IpNet>().map_err(|_| LabError::Output {
            command: format!("CNI ADD for h{host}-{name}"),
            problem: format!("ips[].address {text:?} is no address with a prefix length"),
        })?);
    }
    if addresses.is_empty() {
        let command = format!("CNI ADD for h{host}-{name}");
        return Err(LabError::Output {
            command,
            problem: format!("no address in {result}"),
        });
    }
    Ok(Pod {
        host,
        name: name.to_owned(),
        addresses,
    })
}

/// A pod without any CNI plugin, for tests of the lab itself: a veth pair behind a bridge `cni0`.
pub fn wire_by_hand(node: &Node, host: usize, name: &str, subnet: IpNet, mtu: u32) -> Result<Pod, LabError> {
    let (gateway, address) = {
        let mut hosts = subnet.hosts();
        let first = hosts.next().unwrap_or(subnet.addr());
        (first, hosts.next().unwrap_or(first))
    };
    let (length, netns) = (subnet.prefix_len(), node.pod_netns(name));
    node.run(&["ip", "netns", "add", name])?;
    node.shell(&format!(
        "ip link add cni0 mtu {mtu} type bridge 2>/dev/null || true
        ip addr replace {gateway}/{length} dev cni0 nodad; ip link set cni0 up
        ip link add v-{name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {name}
        ip link set v-{name} master cni0 up
        ip -n {name} link set lo up; ip -n {name} link set eth0 up
        ip -n {name} addr add {address}/{length} dev eth0 nodad; ip -n {name} route add default via {gateway}"
    ))?;
    crate::command::run(&mut words(&["test", "-e", &netns.display().to_string()]))?;
    let address = IpNet::new(address, length).map_err(|e| LabError::Invalid(e.to_string()))?;
    Ok(Pod {
        host,
        name: name.to_owned(),
        addresses: vec![address],
    })
}
