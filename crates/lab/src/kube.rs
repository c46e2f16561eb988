//! Kubernetes as the registry of a lab: real `kube-apiserver` and `kube-controller-manager` beside an etcd on the switch, every host a
//! Node with a podCIDR, and an administrator who speaks HTTPS through `curl`, or `kubectl`.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::command::{LabError, file, line, output, run, run_with_input, words};
use crate::flannel::{NETWORK, NETWORK6};
use crate::layout::Families;
use crate::process::{Process, Record, tail};
use crate::store::{Kind, Store};
use crate::topology::Lab;
use crate::witness::json as parse;

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

/// A program of Kubernetes.
pub fn program(name: &str) -> Result<PathBuf, LabError> {
    let folder = std::env::var_os(ASSETS).map_or_else(|| PathBuf::from(DEFAULT_ASSETS), PathBuf::from);
    let path = folder.join(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(LabError::Missing {
        what: "executable",
        name: path.display().to_string(),
        hint: format!("`cargo xtask kube-assets` makes it; {ASSETS} names another folder"),
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

impl Lab {
    /// Starts what does not run of etcd, API server and controller manager. The first time every host becomes a Node, and has its
    /// podCIDRs when this returns.
    pub(crate) fn start_cluster(&mut self) -> Result<Process, LabError> {
        let folder = self.kube_folder();
        let is_new = !folder.exists();
        if is_new {
            self.make_credentials()?;
        }
        let mut beside: Vec<(String, Record)> = self
            .state
            .store
            .take()
            .map(|store| store.beside)
            .unwrap_or_default();
        beside.retain(|(_, record)| record.alive());
        let runs = |beside: &[(String, Record)], name| beside.iter().any(|(there, _)| there == name);
        if !runs(&beside, ETCD) {
            let etcd = self.spawn_etcd("http://127.0.0.1:2379", &["--unsafe-no-fsync"])?;
            beside.push((ETCD.to_owned(), etcd.record().clone()));
        }
        let mut server = self.spawn_server()?;
        self.state.store = Some(Store {
            kind: Kind::Kube,
            endpoint: self.server_url(),
            process: server.record().clone(),
            beside: beside.clone(),
        });
        self.save()?;
        let cluster = self.cluster();
        self.wait("a ready API server", Duration::from_secs(60), || {
            if let Some(status) = server.ended() {
                return Err(LabError::Command {
                    command: SERVER.to_owned(),
                    status: status.to_string(),
                    stderr: tail(&server.record().log, 5),
                });
            }
            Ok(cluster.text("/readyz").err().map(|error| error.to_string()))
        })?;
        if is_new {
            cluster.allow_daemons()?;
        }
        if !runs(&beside, CONTROLLERS) {
            let controllers = self.spawn_controllers()?;
            beside.push((CONTROLLERS.to_owned(), controllers.record().clone()));
        }
        if let Some(store) = &mut self.state.store {
            store.beside = beside;
        }
        self.save()?;
        if is_new {
            self.join_hosts()?;
        }
        Ok(server)
    }

    /// The cluster, as its administrator has it.
    pub fn cluster(&self) -> Cluster<'_> {
        Cluster { lab: self }
    }

    /// Writes the network configuration where the daemons are told to look for it.
    pub(crate) fn configure_hosts(&self, config: &Value) -> Result<(), LabError> {
        for host in self.hosts() {
            host.write(NET_CONF, &format!("{config:#}\n"))?;
        }
        Ok(())
    }

    /// Makes a Node of every host, and waits for their podCIDRs.
    fn join_hosts(&self) -> Result<(), LabError> {
        let kubeconfig = fs::read_to_string(self.kube_folder().join("flannel.conf"));
        let kubeconfig = file("flannel.conf", kubeconfig)?;
        for host in 1..=self.spec.hosts {
            self.host(host).write(KUBECONFIG, &kubeconfig)?;
            self.cluster().register(host, &[])?;
        }
        for host in 1..=self.spec.hosts {
            self.cluster().wait_for_cidrs(&format!("h{host}"))?;
        }
        Ok(())
    }

    fn kube_folder(&self) -> PathBuf {
        self.spec.directory().join("kube")
    }

    fn server_url(&self) -> String {
        format!("https://{}", self.spec.registry_socket(6443))
    }

    fn server_address(&self) -> String {
        if self.spec.families.v4() {
            self.spec.gateway4(0).to_string()
        } else {
            self.spec.gateway6(0).to_string()
        }
    }

    /// A certificate authority, and what it says of server, administrator and daemons.
    fn make_credentials(&self) -> Result<(), LabError> {
        let folder = self.kube_folder();
        file(&folder, fs::create_dir_all(&folder))?;
        let script = format!(
            r#"cd {folder}
            exec 2>openssl.log
            key() {{ openssl req "$@" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes; }}
            key -x509 -days 2 -subj /CN=lab -keyout ca.key -out ca.crt
            openssl genrsa -out accounts.key 2048
            printf 'subjectAltName=IP:127.0.0.1,IP:{address},DNS:localhost,DNS:kubernetes\nextendedKeyUsage=serverAuth,clientAuth\n' >extensions
            certify() {{
                key -subj "$2" -keyout $1.key -out $1.csr
                openssl x509 -req -in $1.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out $1.crt -extfile extensions
                cat >$1.conf <<CONF
apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster:
    server: {url}
    certificate-authority-data: $(base64 -w0 <ca.crt)
users:
- name: $1
  user:
    client-certificate-data: $(base64 -w0 <$1.crt)
    client-key-data: $(base64 -w0 <$1.key)
contexts:
- name: lab
  context:
    cluster: lab
    user: $1
current-context: lab
CONF
            }}
            certify server /CN=kube-apiserver
            certify admin /O=system:masters/CN=admin
            certify flannel /CN={USER}"#,
            folder = folder.display(),
            address = self.server_address(),
            url = self.server_url(),
        );
        match run(&mut words(&["sh", "-ec", &script])) {
            Err(LabError::Command { status, .. }) => Err(LabError::Command {
                command: "openssl".to_owned(),
                status,
                stderr: tail(&folder.join("openssl.log"), 5),
            }),
            other => other.map(|_| ()),
        }
    }

    fn spawn_server(&self) -> Result<Process, LabError> {
        let folder = self.kube_folder().display().to_string();
        let (address, services) = (
            self.server_address(),
            match self.spec.families {
                Families::V6 => "fd00:10:96::/112",
                _ => "10.96.0.0/16",
            },
        );
        let mut arguments = vec![
            program(SERVER)?.display().to_string(),
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--bind-address={address}"),
            format!("--advertise-address={address}"),
            "--secure-port=6443".to_owned(),
            format!("--cert-dir={folder}"),
            format!("--client-ca-file={folder}/ca.crt"),
            format!("--tls-cert-file={folder}/server.crt"),
            format!("--tls-private-key-file={folder}/server.key"),
            "--authorization-mode=Node,RBAC".to_owned(),
            format!("--service-cluster-ip-range={services}"),
            "--service-account-issuer=https://lab".to_owned(),
            format!("--service-account-key-file={folder}/accounts.key"),
            format!("--service-account-signing-key-file={folder}/accounts.key"),
            // There is no controller that makes them.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--allow-privileged".to_owned(),
        ];
        arguments.extend(self.feature_gates());
        self.switch().spawn(SERVER, &strings(&arguments))
    }

    fn spawn_controllers(&self) -> Result<Process, LabError> {
        let folder = self.kube_folder().display().to_string();
        let (networks, masks): (_, &[&str]) = match self.spec.families {
            Families::V4 => (NETWORK.to_owned(), &["--node-cidr-mask-size=24"]),
            Families::V6 => (NETWORK6.to_owned(), &["--node-cidr-mask-size=64"]),
            Families::Both => (
                format!("{NETWORK},{NETWORK6}"),
                &["--node-cidr-mask-size-ipv4=24", "--node-cidr-mask-size-ipv6=64"],
            ),
        };
        let mut arguments = vec![
            program(CONTROLLERS)?.display().to_string(),
            format!("--kubeconfig={folder}/admin.conf"),
            // Nobody reports for the Nodes here, so nobody may judge them by that.
            "--controllers=nodeipam".to_owned(),
            "--allocate-node-cidrs".to_owned(),
            format!("--cluster-cidr={networks}"),
            "--leader-elect=false".to_owned(),
            "--port=0".to_owned(),
            "--secure-port=0".to_owned(),
        ];
        arguments.extend(masks.iter().map(|mask| (*mask).to_owned()));
        arguments.extend(self.feature_gates());
        self.switch().spawn(CONTROLLERS, &strings(&arguments))
    }

    /// This release has two families as a feature that has to be asked for.
    fn feature_gates(&self) -> Option<String> {
        (self.spec.families == Families::Both).then(|| "--feature-gates=IPv6DualStack=true".to_owned())
    }
}

fn strings(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// A cluster as its administrator has it.
#[derive(Debug, Clone, Copy)]
pub struct Cluster<'a> {
    lab: &'a Lab,
}

impl Cluster<'_> {
    /// `kubectl ARGS` as administrator, with `input` on stdin; gives its stdout.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String, LabError> {
        let folder = self.lab.kube_folder();
        let mut command = vec![program("kubectl")?.display().to_string()];
        command.push(format!("--kubeconfig={}", folder.join("admin.conf").display()));
        command.push(format!("--cache-dir={}", folder.join("cache").display()));
        command.extend(arguments.iter().map(|word| (*word).to_owned()));
        let mut command = self.lab.switch().network_command(&strings(&command));
        run_with_input(&mut command, input)
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
                    hint: format!("there are {SERVER}, {CONTROLLERS} and {ETCD}"),
                });
            }
        };
        record.signal(signal);
        Ok(())
    }
}
