//! Starting the servers of a cluster, and what they and their clients know each other by.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::{CONTROLLERS, Cluster, ETCD, KUBECONFIG, NET_CONF, SCHEDULER, SERVER, USER, program};
use crate::command::{LabError, file, run, words};
use crate::flannel::{NETWORK, NETWORK6};
use crate::layout::Families;
use crate::process::{Process, Record, tail};
use crate::store::{Kind, Store};
use crate::topology::Lab;

/// Of the Service that stands for the API server in pods: the first of [`services`].
const SERVICE_ADDRESS: &str = "10.96.0.1";

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
        if is_new && !self.spec.machines {
            cluster.allow_daemons()?;
        }
        if !runs(&beside, CONTROLLERS) {
            let controllers = self.spawn_controllers()?;
            beside.push((CONTROLLERS.to_owned(), controllers.record().clone()));
        }
        if self.spec.machines && !runs(&beside, SCHEDULER) {
            let scheduler = self.spawn_scheduler()?;
            beside.push((SCHEDULER.to_owned(), scheduler.record().clone()));
        }
        if let Some(store) = &mut self.state.store {
            store.beside = beside;
        }
        self.save()?;
        if is_new && self.spec.machines {
            self.join_machines()?;
        } else if is_new {
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

    pub(super) fn kube_folder(&self) -> PathBuf {
        self.spec.directory().join("kube")
    }

    pub(super) fn server_url(&self) -> String {
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
            printf 'subjectAltName=IP:127.0.0.1,IP:{address},IP:{SERVICE_ADDRESS},DNS:localhost,DNS:kubernetes\nextendedKeyUsage=serverAuth,clientAuth\n' >extensions
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
            certify flannel /CN={USER}
            certify scheduler /CN=system:kube-scheduler
            certify proxy /CN=system:kube-proxy
            for host in $(seq {machines}); do certify h$host /O=system:nodes/CN=system:node:h$host; done"#,
            machines = if self.spec.machines { self.spec.hosts } else { 0 },
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
            "--allow-privileged".to_owned(),
        ];
        if self.spec.machines {
            arguments.extend([
                format!("--kubelet-client-certificate={folder}/admin.crt"),
                format!("--kubelet-client-key={folder}/admin.key"),
                "--kubelet-preferred-address-types=InternalIP".to_owned(),
            ]);
        } else {
            // There is no controller that makes them.
            arguments.push("--disable-admission-plugins=ServiceAccount".to_owned());
        }
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
            "--allocate-node-cidrs".to_owned(),
            format!("--cluster-cidr={networks}"),
            "--leader-elect=false".to_owned(),
            "--port=0".to_owned(),
            "--secure-port=0".to_owned(),
        ];
        if self.spec.machines {
            arguments.extend([
                format!("--service-account-private-key-file={folder}/accounts.key"),
                format!("--root-ca-file={folder}/ca.crt"),
            ]);
        } else {
            // Nobody reports for the Nodes here, so nobody may judge them by that.
            arguments.push("--controllers=nodeipam".to_owned());
        }
        arguments.extend(masks.iter().map(|mask| (*mask).to_owned()));
        arguments.extend(self.feature_gates());
        self.switch().spawn(CONTROLLERS, &strings(&arguments))
    }

    fn spawn_scheduler(&self) -> Result<Process, LabError> {
        let kubeconfig = format!(
            "--kubeconfig={}",
            self.kube_folder().join("scheduler.conf").display()
        );
        let program = program(SCHEDULER)?.display().to_string();
        let arguments = [
            &program,
            &kubeconfig,
            "--leader-elect=false",
            "--port=0",
            "--secure-port=0",
        ];
        self.switch().spawn(SCHEDULER, &arguments)
    }

    /// This release has two families as a feature that has to be asked for.
    fn feature_gates(&self) -> Option<String> {
        (self.spec.families == Families::Both).then(|| "--feature-gates=IPv6DualStack=true".to_owned())
    }
}

fn strings(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}
