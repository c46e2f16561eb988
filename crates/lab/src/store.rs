//! The registry of a lab: the embedded server or Debian's etcd, on the switch, spoken to through its command line client; or
//! Kubernetes (`crate::kube`).

use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::command::LabError;
use crate::process::{Process, Record, tail};
use crate::topology::Lab;

/// Which program keeps the leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `flannelctl registry serve`.
    Embedded,
    /// `etcd`.
    Etcd,
    /// `kube-apiserver` and what belongs to it.
    Kube,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Embedded => "embedded registry",
            Kind::Etcd => "etcd",
            Kind::Kube => "Kubernetes",
        })
    }
}

/// A registry that was started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Store {
    /// Which program.
    pub kind: Kind,
    /// `http://address:port` (Kubernetes: `https`), reachable from every host.
    pub endpoint: String,
    /// The process.
    pub process: Record,
    /// What it works with besides, by name.
    #[serde(default)]
    pub beside: Vec<(String, Record)>,
}

/// Key of the network configuration below the default prefix.
pub const CONFIG_KEY: &str = "/coreos.com/network/config";
/// Prefix of the leases.
pub const SUBNETS: &str = "/coreos.com/network/subnets/";

impl Lab {
    /// Starts the registry on the switch, on the data of an earlier start if there was one, and waits until it answers.
    pub fn start_store(&mut self, kind: Kind) -> Result<Process, LabError> {
        let socket = self.spec.registry_socket(2379);
        let endpoint = format!("http://{socket}");
        let data = self.spec.directory().join("registry");
        let data = data.display().to_string();
        let process = match kind {
            Kind::Embedded => self.switch().spawn(
                "registry",
                &[
                    "flannelctl",
                    "registry",
                    "serve",
                    "--listen",
                    &socket,
                    "--data-dir",
                    &data,
                    "--insecure",
                ],
            )?,
            Kind::Etcd => self.spawn_etcd(&endpoint, &[])?,
            Kind::Kube => return self.start_cluster(),
        };
        self.state.store = Some(Store {
            kind,
            endpoint,
            process: process.record().clone(),
            beside: Vec::new(),
        });
        self.save()?;
        let mut process = process;
        let lab = &*self;
        lab.wait("an answer of the registry", Duration::from_secs(20), || {
            if let Some(status) = process.ended() {
                return Err(LabError::Command {
                    command: "the registry".to_owned(),
                    status: status.to_string(),
                    stderr: tail(&process.record().log, 5),
                });
            }
            Ok(lab.keys("/").err().map(|e| e.to_string()))
        })?;
        Ok(process)
    }

    /// Starts etcd on the switch, for clients at `endpoint`; waits for nothing.
    pub(crate) fn spawn_etcd(&self, endpoint: &str, more: &[&str]) -> Result<Process, LabError> {
        let data = self.spec.directory().join("registry").display().to_string();
        let peer = "http://127.0.0.1:2380";
        let cluster = format!("default={peer}");
        let mut words = vec!["etcd", "--data-dir", &data];
        words.extend([
            "--listen-client-urls",
            endpoint,
            "--advertise-client-urls",
            endpoint,
        ]);
        words.extend(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
        words.extend(["--initial-cluster", &cluster]);
        words.extend(more);
        self.switch().spawn("registry", &words)
    }

    /// Ends the registry's process, hard; its data stays.
    pub fn kill_store(&self) {
        if let Some(store) = &self.state.store {
            store.process.signal(Signal::KILL);
        }
    }

    /// The started registry.
    pub fn store(&self) -> Result<&Store, LabError> {
        self.state.store.as_ref().ok_or_else(|| LabError::Missing {
            what: "registry",
            name: self.spec.name.clone(),
            hint: "it was not started".to_owned(),
        })
    }

    /// Runs the client: `etcdctl` against etcd, `flannelctl registry` against the embedded server. Verbs `put`, `get`,
    /// `ls`, `del` are the same in effect.
    fn client(&self, verb: &str, arguments: &[&str]) -> Result<String, LabError> {
        let store = self.store()?;
        let mut command = match store.kind {
            Kind::Kube => {
                return Err(LabError::Invalid(
                    "leases of this lab are in Node objects, not under keys".to_owned(),
                ));
            }
            Kind::Etcd => {
                let mut words = vec!["etcdctl", "--endpoints", &store.endpoint, "--dial-timeout=1s"];
                words.push(if verb == "ls" { "get" } else { verb });
                words.extend(arguments);
                match verb {
                    "ls" => words.extend(["--prefix", "--keys-only"]),
                    "get" => words.push("--print-value-only"),
                    _ => {}
                }
                self.switch().command(&words)
            }
            Kind::Embedded => {
                let mut words = vec!["flannelctl", "registry", verb, "--endpoints", &store.endpoint];
                words.extend(arguments);
                self.switch().command(&words)
            }
        };
        command.env("ETCDCTL_API", "3");
        crate::command::run(&mut command)
    }

    /// Writes a key.
    pub fn put(&self, key: &str, value: &str) -> Result<(), LabError> {
        self.client("put", &[key, value]).map(|_| ())
    }

    /// Reads a key; `None` when it is not there.
    pub fn get(&self, key: &str) -> Result<Option<String>, LabError> {
        let text = self.client("get", &[key])?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }

    /// Removes a key.
    pub fn delete(&self, key: &str) -> Result<(), LabError> {
        self.client("del", &[key]).map(|_| ())
    }

    /// All keys that begin with `prefix`, sorted.
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>, LabError> {
        let text = self.client("ls", &[prefix])?;
        Ok(text
            .lines()
            .filter(|l| !l.is_empty())
            .map(str::to_owned)
            .collect())
    }

    /// All leases: key below the subnets prefix, and value.
    pub fn leases(&self) -> Result<Vec<(String, String)>, LabError> {
        let mut leases = Vec::new();
        for key in self.keys(SUBNETS)? {
            let value = self.get(&key)?.unwrap_or_default();
            leases.push((key[SUBNETS.len()..].to_owned(), value));
        }
        Ok(leases)
    }
}
