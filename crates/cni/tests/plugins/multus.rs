//! Multus as a caller: what it makes of its configuration, a pod's annotations and the definitions they name.
//!
//! Facts are of k8snetworkplumbingwg/multus-cni v4.3, `pkg/multus/multus.go` and `pkg/types/conf.go`:
//! - delegate 0 has the runtime's interface name, the others `net<position>` or the name asked for;
//! - ADD in the order of the list; when one fails, DEL from that one back to the first, errors ignored;
//! - DEL in reverse, errors collected, by the list it saved in `<cniDir>/<container id>`; without the file and the pod, nothing;
//! - the saved list has the `ips`, `mac` and routes a pod asks for, but neither its ports nor its bandwidth;
//! - `CNI_ARGS`: its own five, then every pair of its caller's again, at ADD then `MAC` and `IP` of what the pod asks for.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::libcni::{Attachment, Libcni, List, base64, unbase64};
use crate::rig::{Answer, Host};

/// What a pod's annotation says of one network.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    pub definition: &'static str,
    pub interface: &'static str,
    pub ips: &'static [&'static str],
    pub mac: &'static str,
    /// JSON of `portMappings`; empty asks for none.
    pub ports: &'static str,
    pub default_route: &'static [&'static str],
}

impl Selection {
    pub fn of(definition: &'static str) -> Selection {
        Selection {
            definition,
            ..Selection::default()
        }
    }
}

/// A pod as the registry of the cluster knows it.
#[derive(Debug, Clone)]
pub struct Pod {
    pub container: String,
    pub netns: String,
    /// `k8s.v1.cni.cncf.io/networks`.
    pub networks: Vec<Selection>,
    /// `v1.multus-cni.io/default-network`.
    pub default_network: Option<&'static str>,
}

/// One node's Multus.
#[derive(Debug, Clone)]
pub struct Multus {
    pub libcni: Libcni,
    /// The configuration of the cluster's network.
    pub cluster_network: String,
    /// NetworkAttachmentDefinitions: name and `spec.config`.
    pub definitions: BTreeMap<&'static str, String>,
    /// What the kubelet gives for every pod.
    pub runtime: Map<String, Value>,
}

/// One entry of the list Multus works through.
#[derive(Debug, Clone)]
struct Delegate {
    text: String,
    master: bool,
    interface: String,
    ips: Vec<String>,
    mac: String,
    ports: Value,
    default_route: Option<Vec<String>>,
    filter: bool,
}

impl Delegate {
    fn new(text: &str) -> Delegate {
        Delegate {
            text: text.to_owned(),
            master: false,
            interface: String::new(),
            ips: Vec::new(),
            mac: String::new(),
            ports: Value::Null,
            default_route: None,
            filter: false,
        }
    }

    fn to_saved(&self) -> Value {
        let list = List::parse(&self.text);
        json!({
            "Conf": { "name": list.name, "cniVersion": list.version },
            "Name": list.name,
            "ifnameRequest": self.interface,
            "macRequest": self.mac,
            "ipRequest": self.ips,
            "default-route": self.default_route,
            "IsFilterV4Gateway": self.filter,
            "Bytes": base64(self.text.as_bytes()),
        })
    }

    fn from_saved(value: &Value) -> Delegate {
        let word = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let words = |list: &Value| -> Vec<String> {
            let items = list.as_array().into_iter().flatten();
            items.map(|item| item.as_str().unwrap().to_owned()).collect()
        };
        Delegate {
            interface: word("ifnameRequest"),
            mac: word("macRequest"),
            ips: words(&value["ipRequest"]),
            ..Delegate::new(&String::from_utf8(unbase64(&word("Bytes"))).unwrap())
        }
    }

    fn ifname(&self, position: usize) -> String {
        match (self.interface.is_empty(), self.master) {
            (false, _) => self.interface.clone(),
            (true, true) => "eth0".to_owned(),
            (true, false) => format!("net{position}"),
        }
    }
}

impl Multus {
    pub fn of(host: &Host, cluster_network: &str) -> Multus {
        Multus {
            libcni: Libcni::of(host, "multus"),
            cluster_network: cluster_network.to_owned(),
            definitions: BTreeMap::new(),
            runtime: Map::new(),
        }
    }

    /// The configuration of a definition; one without a name gets the definition's.
    fn definition(&self, name: &str) -> String {
        let text = self.definitions.get(name).unwrap_or_else(|| panic!("no {name}"));
        let mut config: Value = serde_json::from_str(text).unwrap();
        if config["name"].as_str().unwrap_or_default().is_empty() {
            config["name"] = json!(name);
            return config.to_string();
        }
        text.clone()
    }

    fn delegates(&self, pod: &Pod) -> Vec<Delegate> {
        let first = match pod.default_network {
            Some(name) => self.definition(name),
            None => self.cluster_network.clone(),
        };
        let mut delegates = vec![Delegate {
            master: true,
            ..Delegate::new(&first)
        }];
        delegates.extend(pod.networks.iter().map(|selection| {
            let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
            Delegate {
                interface: selection.interface.to_owned(),
                ips: words(selection.ips),
                mac: selection.mac.to_owned(),
                ports: serde_json::from_str(selection.ports).unwrap_or(Value::Null),
                default_route: Some(words(selection.default_route)).filter(|list| !list.is_empty()),
                ..Delegate::new(&self.definition(selection.definition))
            }
        }));
        // Who asks for the default route gets it alone.
        if delegates.iter().any(|d| d.default_route.is_some()) {
            for delegate in &mut delegates {
                delegate.filter = delegate.default_route.is_none();
            }
        }
        delegates
    }

    fn attachment(&self, pod: &Pod, delegate: &Delegate, position: usize) -> Attachment {
        let mut to = Attachment::of(&pod.container, &pod.netns, &delegate.ifname(position));
        let of_pod = [
            ("K8S_POD_NAMESPACE", "net".to_owned()),
            ("K8S_POD_NAME", format!("pod-{}", &pod.container[..4])),
            ("K8S_POD_INFRA_CONTAINER_ID", pod.container.clone()),
            ("K8S_POD_UID", "a4f1b2ac-0000-4000-8000-000000000000".to_owned()),
        ];
        for ignore in ["true", "1"] {
            to.args.push(("IgnoreUnknown".to_owned(), ignore.to_owned()));
            to.args.extend(
                of_pod
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), value.clone())),
            );
        }
        to.capabilities.clone_from(&self.runtime);
        if !delegate.master {
            let asked = [
                ("ips", !delegate.ips.is_empty(), json!(delegate.ips)),
                ("mac", !delegate.mac.is_empty(), json!(delegate.mac)),
                ("portMappings", !delegate.ports.is_null(), delegate.ports.clone()),
            ];
            for (name, _, value) in asked.into_iter().filter(|(_, is_asked, _)| *is_asked) {
                to.capabilities.insert(name.to_owned(), value);
            }
        }
        to
    }

    fn saved(&self, pod: &Pod) -> std::path::PathBuf {
        self.libcni.cache.join(&pod.container)
    }

    /// ADD: one answer per delegate, or the failure of one after the DELs it led to.
    pub fn add(&self, host: &Host, pod: &Pod) -> Result<Vec<Answer>, String> {
        let delegates = self.delegates(pod);
        let saved: Vec<Value> = delegates.iter().map(Delegate::to_saved).collect();
        std::fs::create_dir_all(&self.libcni.cache).unwrap();
        std::fs::write(self.saved(pod), json!(saved).to_string()).unwrap();
        let mut answers = Vec::new();
        for (i, delegate) in delegates.iter().enumerate() {
            let mut to = self.attachment(pod, delegate, i);
            if !delegate.mac.is_empty() {
                to.args.push(("MAC".to_owned(), delegate.mac.clone()));
            }
            if !delegate.ips.is_empty() {
                to.args.push(("IP".to_owned(), delegate.ips.join(",")));
            }
            let there = is_there(pod, &to.ifname);
            let answer = if there {
                Err(format!(
                    "validateIfName: interface name {} already exists",
                    to.ifname
                ))
            } else {
                let answer = self.libcni.add(host, &List::parse(&delegate.text), &to);
                match answer.status {
                    0 => Ok(answer),
                    _ => Err(format!("{answer:?}")),
                }
            };
            match answer {
                Ok(answer) => answers.push(answer),
                Err(e) => {
                    let _ = self.del_from(host, pod, &delegates, i);
                    return Err(e);
                }
            }
            self.move_default_route(pod, delegate, &to.ifname);
        }
        Ok(answers)
    }

    fn move_default_route(&self, pod: &Pod, delegate: &Delegate, ifname: &str) {
        if delegate.filter || delegate.default_route.is_some() {
            for family in ["-4", "-6"] {
                let _ = ip_in(&pod.netns, &[family, "route", "del", "default", "dev", ifname]);
            }
        }
        for gateway in delegate.default_route.iter().flatten() {
            ip_in(
                &pod.netns,
                &["route", "add", "default", "via", gateway, "dev", ifname],
            )
            .unwrap();
        }
    }

    fn del_from(&self, host: &Host, pod: &Pod, delegates: &[Delegate], last: usize) -> Result<(), String> {
        let mut errors = Vec::new();
        for (i, delegate) in delegates.iter().enumerate().take(last + 1).rev() {
            let to = self.attachment(pod, delegate, i);
            errors.extend(self.libcni.del(host, &List::parse(&delegate.text), &to).err());
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(format!("errors: {}", errors.join(" / ")))
        }
    }

    /// DEL by what was saved; where that is lost, by the annotations if the pod is still `known`.
    pub fn del(&self, host: &Host, pod: &Pod, known: bool) -> Result<(), String> {
        let saved = std::fs::read_to_string(self.saved(pod)).ok();
        let saved: Option<Value> = saved.and_then(|text| serde_json::from_str(&text).ok());
        let mut delegates: Vec<Delegate> = match saved {
            Some(list) => list
                .as_array()
                .unwrap()
                .iter()
                .map(Delegate::from_saved)
                .collect(),
            None if known => self.delegates(pod),
            None => return Ok(()),
        };
        delegates[0].master = true;
        let done = self.del_from(host, pod, &delegates, delegates.len() - 1);
        let _ = std::fs::remove_file(self.saved(pod));
        done
    }

    /// Nothing of Multus' own is left.
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.libcni.cached(), Vec::<String>::new());
        let files = std::fs::read_dir(&self.libcni.cache).unwrap();
        let files: Vec<_> = files.map(|f| f.unwrap().file_name()).collect();
        assert_eq!(files, ["results"]);
    }
}

fn is_there(pod: &Pod, ifname: &str) -> bool {
    ip_in(&pod.netns, &["link", "show", "dev", ifname]).is_ok()
}

/// `ip` in the namespace of a path.
fn ip_in(netns: &str, args: &[&str]) -> Result<String, String> {
    let name = netns.rsplit('/').next().unwrap();
    let output = std::process::Command::new("ip")
        .args(["-n", name])
        .args(args)
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}
