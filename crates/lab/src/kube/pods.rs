//! Pods that Kubernetes runs on a lab's machines, with flannel as a DaemonSet among them.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::{Value, json};

use super::Cluster;
use super::nodes::IMAGE;
use crate::command::LabError;
use crate::pod::Pod;
use crate::process::{Record, all, stat};
use crate::topology::Lab;

/// The DaemonSet that has a pod on every machine, its label `app`, and its Service.
pub const PODS: &str = "lab";
/// Where flannel's manifests put it.
pub const FLANNEL_NAMESPACE: &str = "kube-flannel";
/// Flannel's DaemonSet there.
pub const SET: &str = "kube-flannel-ds";
/// Pulling takes no time here, but a busy computer does.
const PATIENCE: Duration = Duration::from_secs(120);

/// A pod that runs.
#[derive(Debug, Clone)]
pub struct RunningPod {
    /// Its name in the cluster.
    pub name: String,
    /// Number of its host, from 1.
    pub host: usize,
    /// `status.podIP`.
    pub address: IpAddr,
    /// Its first container, as containerd knows it.
    container: String,
}

/// What a pod of a web server that tells its node's name consists of.
pub fn server_spec() -> Value {
    json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "server",
            "image": IMAGE,
            "command": ["sh", "-c", "echo $NODE >/srv/name; exec httpd -f -p 80 -h /srv"],
            "env": [{ "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } }],
            "readinessProbe": { "httpGet": { "path": "/name", "port": 80 }, "periodSeconds": 1 },
        }],
    })
}

/// A set of pods (`DaemonSet`, `Deployment`) of that name and label `app`.
pub fn set_of(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": { "name": name },
        "spec": {
            "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } }, "spec": spec },
        },
    })
}

/// A Service for the pods of a label `app`, on port 80.
pub fn service_of(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": { "selector": { "app": name }, "ports": [{ "port": 80 }] },
    })
}

impl Cluster<'_> {
    /// Creates or changes objects.
    pub fn apply(&self, object: &Value) -> Result<(), LabError> {
        self.kubectl(&["apply", "-f", "-"], &object.to_string())
            .map(|_| ())
    }

    /// Objects as `kubectl get` finds them.
    pub fn list(&self, arguments: &[&str]) -> Result<Vec<Value>, LabError> {
        let mut words = vec!["get", "-o", "json"];
        words.extend(arguments);
        let text = self.kubectl(&words, "")?;
        let list = crate::witness::json("kubectl get", &text)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Pods of a namespace and label `app` that are ready, by host.
    pub fn ready_pods(&self, namespace: &str, app: &str) -> Result<Vec<RunningPod>, LabError> {
        let pods = self.list(&["pods", "-n", namespace, "-l", &format!("app={app}")])?;
        let mut found: Vec<RunningPod> = pods.iter().filter_map(ready_pod).collect();
        found.sort_by(|a, b| (a.host, &a.name).cmp(&(b.host, &b.name)));
        Ok(found)
    }

    /// Waits until a set of pods is as it has been told to be.
    pub fn wait_for_rollout(&self, namespace: &str, set: &str) -> Result<(), LabError> {
        let limit = format!("--timeout={}s", PATIENCE.as_secs());
        self.kubectl(&["-n", namespace, "rollout", "status", set, &limit], "")
            .map(|_| ())
    }
}

fn ready_pod(pod: &Value) -> Option<RunningPod> {
    let status = pod["status"]["containerStatuses"].get(0)?;
    if status["ready"] != true || !pod["metadata"]["deletionTimestamp"].is_null() {
        return None;
    }
    Some(RunningPod {
        name: pod["metadata"]["name"].as_str()?.to_owned(),
        host: pod["spec"]["nodeName"]
            .as_str()?
            .strip_prefix('h')?
            .parse()
            .ok()?,
        address: pod["status"]["podIP"].as_str()?.parse().ok()?,
        container: status["containerID"]
            .as_str()?
            .strip_prefix("containerd://")?
            .to_owned(),
    })
}

impl Lab {
    /// Applies flannel's manifest with another network configuration in it, and waits until it runs everywhere.
    pub fn deploy_flannel(&mut self, manifest: &str, config: &Value) -> Result<Duration, LabError> {
        let text = self
            .cluster()
            .kubectl(&["apply", "--dry-run=client", "-o", "json", "-f", "-"], manifest)?;
        let mut objects = crate::witness::json("kubectl apply --dry-run", &text)?;
        let mut places = objects["items"].as_array_mut().into_iter().flatten();
        let place = places.find_map(|object| object.pointer_mut("/data/net-conf.json"));
        let place = place.ok_or_else(|| LabError::Invalid("a manifest without net-conf.json".to_owned()))?;
        *place = Value::String(format!("{config:#}"));
        self.cluster().apply(&objects)?;
        self.wait_for_flannel()
    }

    /// Waits until flannel's DaemonSet runs everywhere and all Nodes are ready; notes its processes.
    pub fn wait_for_flannel(&mut self) -> Result<Duration, LabError> {
        let start = Instant::now();
        self.cluster()
            .wait_for_rollout(FLANNEL_NAMESPACE, &format!("daemonset/{SET}"))?;
        self.wait_for_nodes(PATIENCE)?;
        let took = start.elapsed();
        self.find_daemons()?;
        Ok(took)
    }

    /// Notes the daemons that run as pods of the machines.
    pub fn find_daemons(&mut self) -> Result<(), LabError> {
        let mut found = Vec::new();
        let is_daemon = |pid: u32| {
            let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let first = text.split(|b| *b == 0).next().unwrap_or_default();
            first.ends_with(b"/flanneld")
        };
        for pid in all().into_iter().filter(|pid| is_daemon(*pid)) {
            let Ok(network) = std::fs::metadata(format!("/proc/{pid}/ns/net")) else {
                continue;
            };
            for (index, host) in self.hosts().iter().enumerate() {
                if host.network_id().is_ok_and(|id| id == network.ino()) {
                    let log = self.spec.directory().join(format!("h{}-machine.log", index + 1));
                    let started = stat(pid).map_or(0, |s| s.started);
                    found.push((index + 1, Record { pid, started, log }));
                }
            }
        }
        self.state.daemons = found;
        self.save()
    }

    /// Has Kubernetes make a pod on every machine, with a Service in front of them; they are the lab's pods from then on.
    pub fn deploy_pods(&mut self) -> Result<(), LabError> {
        self.cluster().apply(&set_of("DaemonSet", PODS, &server_spec()))?;
        self.cluster().apply(&service_of(PODS))?;
        self.find_pods()
    }

    /// Finds these pods again, once there is a ready one on every machine.
    pub fn find_pods(&mut self) -> Result<(), LabError> {
        let mut pods = Vec::new();
        self.wait("a ready pod on every machine", PATIENCE, || {
            pods = self.cluster().ready_pods("default", PODS)?;
            let hosts: Vec<usize> = pods.iter().map(|pod| pod.host).collect();
            let is_there = (1..=self.spec.hosts).eq(hosts.iter().copied());
            Ok((!is_there).then(|| format!("there are pods on {hosts:?}")))
        })?;
        let mut found = Vec::new();
        for pod in &pods {
            self.name_network(pod, "p1")?;
            let subnet = self.env(pod.host)?.subnet_of(4);
            let length = subnet.map_or(32, |subnet| subnet.prefix_len());
            let address = IpNet::new(pod.address, length).map_err(|e| LabError::Invalid(e.to_string()))?;
            found.push(Pod {
                host: pod.host,
                name: "p1".to_owned(),
                addresses: vec![address],
            });
        }
        self.state.pods = found;
        self.save()
    }

    /// Gives a pod's network a name on its machine. The name is but a link, and keeps nothing alive.
    pub fn name_network(&self, pod: &RunningPod, name: &str) -> Result<(), LabError> {
        let container = &pod.container;
        let script = format!(
            "pid=$(ctr -n k8s.io tasks ls | awk '$1 == \"{container}\" {{ print $2 }}')
            own=$(stat -L -c %i /proc/$pid/ns/net)
            for file in /run/netns/cni-*; do
                [ \"$(stat -L -c %i $file)\" != $own ] || exec ln -sfn $(basename $file) /run/netns/{name}
            done
            echo no network of {container} in /run/netns >&2; exit 1"
        );
        self.host(pod.host).shell(&script).map(|_| ())
    }
}
