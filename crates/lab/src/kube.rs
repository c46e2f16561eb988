//! Kubernetes as the registry of a lab: real `kube-apiserver` and `kube-controller-manager` beside an etcd on the switch, every host a
//! Node with a podCIDR (of a machine its own kubelet makes it), and an administrator who speaks HTTPS through `curl`, or `kubectl`.

mod nodes;
pub mod pods;
mod servers;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use ipnet::IpNet;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::command::{LabError, line, output, run_with_input};
use crate::topology::Lab;
use crate::witness::json as parse;
pub use nodes::IMAGE;

/// Where a host has the network configuration; below what each host has of its own.
pub const NET_CONF: &str = "/run/net-conf.json";
/// Where a host has the kubeconfig of its daemon.
pub const KUBECONFIG: &str = "/run/kubeconfig";
/// What flannel's annotations begin with.
pub const PREFIX: &str = "flannel.alpha.coreos.com/";
/// What a daemon may do: the user [`USER`] is bound to this role and nothing else.
pub const ROLE: &str = "flannel";
/// Who the daemons are.
pub const USER: &str = "system:serviceaccount:kube-flannel:flannel";

/// Names the folder with Kubernetes' programs.
const ASSETS: &str = "FLANNEL_KUBE_ASSETS";
/// Where `cargo xtask kube-assets` puts them otherwise.
const DEFAULT_ASSETS: &str = "/var/cache/flannel-lab/kube-1.20.2";
/// An HTTPS request that takes longer failed.
const PATIENCE: &str = "10";

const ETCD: &str = "etcd";
/// The API server.
pub const SERVER: &str = "kube-apiserver";
/// What hands podCIDRs out.
pub const CONTROLLERS: &str = "kube-controller-manager";
/// What finds nodes for pods; there where hosts are machines.
pub const SCHEDULER: &str = "kube-scheduler";

/// The folder with Kubernetes' programs.
pub(crate) fn assets() -> PathBuf {
    std::env::var_os(ASSETS).map_or_else(|| PathBuf::from(DEFAULT_ASSETS), PathBuf::from)
}

/// A program of Kubernetes.
pub fn program(name: &str) -> Result<PathBuf, LabError> {
    let path = assets().join(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(LabError::Missing {
        what: "executable",
        name: path.display().to_string(),
        hint: format!("`cargo xtask kube-assets --nodes` makes it; {ASSETS} names another folder"),
    })
}

/// A Node object as an administrator writes one: with these podCIDRs, or none where the cluster is to give them.
pub fn node_object(name: &str, cidrs: &[IpNet], annotations: &[(&str, &str)]) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name, "kubernetes.io/os": "linux" } },
    });
    if let Some(first) = cidrs.first() {
        object["spec"] = json!({ "podCIDR": first, "podCIDRs": cidrs });
    }
    for (key, value) in annotations {
        object["metadata"]["annotations"][format!("{PREFIX}{key}")] = json!(value);
    }
    object
}

/// A cluster as its administrator has it.
#[derive(Debug, Clone, Copy)]
pub struct Cluster<'a> {
    lab: &'a Lab,
}

impl Cluster<'_> {
    /// `kubectl ARGS` as administrator, with `input` on stdin; gives its stdout.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String, LabError> {
        run_with_input(self.kubectl_command()?.args(arguments), input)
    }

    /// `kubectl` as a person calls it, with what to do still to be said.
    pub fn entry(&self) -> Result<String, LabError> {
        Ok(line(&self.kubectl_command()?))
    }

    fn kubectl_command(&self) -> Result<Command, LabError> {
        let folder = self.lab.kube_folder();
        let program = program("kubectl")?.display().to_string();
        let kubeconfig = format!("--kubeconfig={}", folder.join("admin.conf").display());
        let cache = format!("--cache-dir={}", folder.join("cache").display());
        Ok(self
            .lab
            .switch()
            .network_command(&[&program, &kubeconfig, &cache]))
    }

    /// One request as administrator: the status, and what came.
    fn request(&self, verb: &str, path: &str, body: &str) -> Result<(u32, String), LabError> {
        let folder = self.lab.kube_folder();
        let of = |name: &str| folder.join(name).display().to_string();
        let url = format!("{}{path}", self.lab.server_url());
        // Annotations and conditions are merged as kubelet and kubectl have them merged.
        let kind = if verb == "PATCH" {
            "Content-Type: application/strategic-merge-patch+json"
        } else {
            "Content-Type: application/json"
        };
        let (authority, certificate, key) = (of("ca.crt"), of("admin.crt"), of("admin.key"));
        let mut command = vec!["curl", "-gsS", "--max-time", PATIENCE, "-w", "\n%{http_code}"];
        command.extend(["--cacert", &authority, "--cert", &certificate, "--key", &key]);
        command.extend(["-X", verb, "-H", kind]);
        if !body.is_empty() {
            command.extend(["--data-binary", "@-"]);
        }
        command.push(&url);
        let mut command = self.lab.switch().network_command(&command);
        let (success, stdout, stderr, status) = output(&mut command, body)?;
        if !success {
            return Err(LabError::Command {
                command: format!("curl -X {verb} {url}"),
                status,
                stderr,
            });
        }
        let (text, code) = stdout.rsplit_once('\n').unwrap_or(("", &stdout));
        let code = code.parse().map_err(|_| LabError::Output {
            command: line(&command),
            problem: stdout.clone(),
        })?;
        Ok((code, text.to_owned()))
    }

    /// A request that has to succeed; gives the text of the answer.
    fn succeed(&self, verb: &str, path: &str, body: &str) -> Result<String, LabError> {
        let (code, text) = self.request(verb, path, body)?;
        if (200..300).contains(&code) {
            return Ok(text);
        }
        Err(LabError::Command {
            command: format!("{verb} {path}"),
            status: code.to_string(),
            stderr: text,
        })
    }

    /// What the server says at a path.
    pub fn text(&self, path: &str) -> Result<String, LabError> {
        self.succeed("GET", path, "")
    }

    /// Makes an object, where objects of its kind are (`/api/v1/nodes`).
    pub fn create(&self, path: &str, object: &Value) -> Result<(), LabError> {
        self.succeed("POST", path, &object.to_string()).map(|_| ())
    }

    /// Merges a patch into an object; `null` takes away.
    pub fn patch(&self, path: &str, patch: &Value) -> Result<(), LabError> {
        self.succeed("PATCH", path, &patch.to_string()).map(|_| ())
    }

    /// Removes an object.
    pub fn delete(&self, path: &str) -> Result<(), LabError> {
        self.succeed("DELETE", path, "").map(|_| ())
    }

    /// A Node; `None` where there is none of that name.
    pub fn node(&self, name: &str) -> Result<Option<Value>, LabError> {
        let path = format!("/api/v1/nodes/{name}");
        match self.request("GET", &path, "")? {
            (200, text) => parse(&path, &text).map(Some),
            (404, _) => Ok(None),
            (code, text) => Err(LabError::Command {
                command: format!("GET {path}"),
                status: code.to_string(),
                stderr: text,
            }),
        }
    }

    /// Flannel's annotations of a Node, without their prefix, in order.
    pub fn annotations(&self, name: &str) -> Result<Vec<(String, String)>, LabError> {
        let node = self.node(name)?.unwrap_or_default();
        let all = node["metadata"]["annotations"].as_object().into_iter().flatten();
        let ours = all.filter_map(|(key, value)| {
            let value = value.as_str().unwrap_or_default();
            Some((key.strip_prefix(PREFIX)?.to_owned(), value.to_owned()))
        });
        Ok(ours.collect())
    }

    /// Sets flannel's annotations of a Node, named without their prefix; `None` takes one away.
    pub fn annotate(&self, name: &str, annotations: &[(&str, Option<&str>)]) -> Result<(), LabError> {
        let mut patch = json!({});
        for (key, value) in annotations {
            patch["metadata"]["annotations"][format!("{PREFIX}{key}")] = json!(value);
        }
        self.patch(&format!("/api/v1/nodes/{name}"), &patch)
    }

    /// Makes a Node.
    pub fn add_node(&self, node: &Value) -> Result<(), LabError> {
        self.create("/api/v1/nodes", node)
    }

    /// Removes a Node.
    pub fn delete_node(&self, name: &str) -> Result<(), LabError> {
        self.delete(&format!("/api/v1/nodes/{name}"))
    }

    /// Makes a Node of a host, as a kubelet registers itself: then with its addresses, and ready. The cluster gives the podCIDRs
    /// where none are asked for.
    pub fn register(&self, host: usize, cidrs: &[IpNet]) -> Result<(), LabError> {
        let name = format!("h{host}");
        let mut object = node_object(&name, cidrs, &[]);
        object["metadata"]["annotations"] =
            json!({ "volumes.kubernetes.io/controller-managed-attach-detach": "true" });
        self.add_node(&object)?;
        let mut addresses = vec![json!({ "type": "Hostname", "address": name })];
        for family in self.lab.spec.families.each() {
            let address = self.lab.spec.host_address(host, family);
            addresses.push(json!({ "type": "InternalIP", "address": address }));
        }
        let status = json!({ "status": {
            "addresses": addresses,
            "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }],
        } });
        self.patch(&format!("/api/v1/nodes/{name}/status"), &status)
    }

    /// The podCIDRs of a Node, once the cluster has given some.
    pub fn wait_for_cidrs(&self, name: &str) -> Result<Vec<IpNet>, LabError> {
        let mut cidrs = Vec::new();
        self.lab
            .wait(&format!("podCIDRs of {name}"), Duration::from_secs(60), || {
                let node = self.node(name)?.unwrap_or_default();
                let all = node["spec"]["podCIDRs"].as_array().into_iter().flatten();
                cidrs = all.filter_map(|cidr| cidr.as_str()?.parse().ok()).collect();
                Ok(cidrs.is_empty().then(|| "none".to_owned()))
            })?;
        Ok(cidrs)
    }

    /// The reasons of the Events about a Node, and what they say.
    pub fn events(&self, name: &str) -> Result<Vec<(String, String)>, LabError> {
        let path = "/api/v1/namespaces/default/events";
        let list = parse(path, &self.text(path)?)?;
        let all = list["items"].as_array().into_iter().flatten();
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(all
            .filter(|event| {
                event["involvedObject"]["name"] == name && event["involvedObject"]["kind"] == "Node"
            })
            .map(|event| (word(&event["reason"]), word(&event["message"])))
            .collect())
    }

    /// Gives daemons the rights they need, and no other.
    fn allow_daemons(&self) -> Result<(), LabError> {
        let group = "rbac.authorization.k8s.io";
        let role = json!({
            "apiVersion": format!("{group}/v1"), "kind": "ClusterRole", "metadata": { "name": ROLE },
            "rules": [
                { "apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"] },
                { "apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"] },
                { "apiGroups": [""], "resources": ["events"], "verbs": ["create"] },
            ],
        });
        let binding = json!({
            "apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding", "metadata": { "name": ROLE },
            "roleRef": { "apiGroup": group, "kind": "ClusterRole", "name": ROLE },
            "subjects": [{ "apiGroup": group, "kind": "User", "name": USER }],
        });
        self.create(&format!("/apis/{group}/v1/clusterroles"), &role)?;
        self.create(&format!("/apis/{group}/v1/clusterrolebindings"), &binding)
    }

    /// Holds one of the programs: it is there, and answers nobody.
    pub fn hold(&self, program: &str) -> Result<(), LabError> {
        self.signal(program, Signal::STOP)
    }

    /// Lets it go on.
    pub fn release(&self, program: &str) -> Result<(), LabError> {
        self.signal(program, Signal::CONT)
    }

    fn signal(&self, program: &str, signal: Signal) -> Result<(), LabError> {
        let store = self.lab.store()?;
        let beside = store.beside.iter().find(|(name, _)| name == program);
        let record = match beside {
            Some((_, record)) => record,
            None if program == SERVER => &store.process,
            None => {
                return Err(LabError::Missing {
                    what: "program of the cluster",
                    name: program.to_owned(),
                    hint: format!("there are {SERVER}, {CONTROLLERS}, {ETCD}, and with machines {SCHEDULER}"),
                });
            }
        };
        record.signal(signal);
        Ok(())
    }
}
