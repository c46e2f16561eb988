//! Running flannel in a lab: its network configuration, its daemons, and the wait for every route everywhere.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use crate::command::LabError;
use crate::kube::{KUBECONFIG, NET_CONF};
use crate::layout::Families;
use crate::node::Node;
use crate::process::{Process, tail};
use crate::store::{CONFIG_KEY, Kind};
use crate::topology::Lab;
use crate::witness::routes;

/// IPv4 pod network of a lab.
pub const NETWORK: &str = "10.244.0.0/16";
/// IPv6 pod network of a lab.
pub const NETWORK6: &str = "fd00:10:244::/48";
/// Where a daemon writes what it was given.
pub const SUBNET_ENV: &str = "/run/flannel/subnet.env";

/// The network configuration of a lab; `backend` is the backend's JSON object.
pub fn config(families: Families, backend: Value) -> Value {
    let mut config = Map::new();
    if families == Families::V6 {
        config.insert("EnableIPv4".to_owned(), json!(false));
    } else {
        config.insert("Network".to_owned(), json!(NETWORK));
    }
    if families.v6() {
        config.insert("EnableIPv6".to_owned(), json!(true));
        config.insert("IPv6Network".to_owned(), json!(NETWORK6));
    }
    config.insert("Backend".to_owned(), backend);
    Value::Object(config)
}

/// What a daemon wrote to `subnet.env`, read by nobody's code but this.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Env {
    /// `FLANNEL_NETWORK`.
    pub network: Option<IpNet>,
    /// `FLANNEL_SUBNET`: the first address of the subnet, with its length.
    pub subnet: Option<IpNet>,
    /// `FLANNEL_IPV6_NETWORK`.
    pub network6: Option<IpNet>,
    /// `FLANNEL_IPV6_SUBNET`.
    pub subnet6: Option<IpNet>,
    /// `FLANNEL_MTU`.
    pub mtu: Option<u32>,
    /// `FLANNEL_IPMASQ`.
    pub ipmasq: Option<bool>,
}

impl Env {
    /// Reads the text of the file; lines it does not know are passed over.
    pub fn parse(text: &str) -> Env {
        let mut env = Env::default();
        for (key, value) in text.lines().filter_map(|l| l.split_once('=')) {
            match key {
                "FLANNEL_NETWORK" => env.network = value.parse().ok(),
                "FLANNEL_SUBNET" => env.subnet = value.parse().ok(),
                "FLANNEL_IPV6_NETWORK" => env.network6 = value.parse().ok(),
                "FLANNEL_IPV6_SUBNET" => env.subnet6 = value.parse().ok(),
                "FLANNEL_MTU" => env.mtu = value.parse().ok(),
                "FLANNEL_IPMASQ" => env.ipmasq = value.parse().ok(),
                _ => {}
            }
        }
        env
    }

    /// The host's subnets as prefixes.
    pub fn subnets(&self) -> Vec<IpNet> {
        self.subnet
            .iter()
            .chain(&self.subnet6)
            .map(IpNet::trunc)
            .collect()
    }

    /// The subnet of a family (4 or 6), as a prefix.
    pub fn subnet_of(&self, family: u8) -> Option<IpNet> {
        if family == 4 { self.subnet } else { self.subnet6 }.map(|s| s.trunc())
    }
}

impl Lab {
    /// Writes the network configuration.
    pub fn configure(&self, config: &Value) -> Result<(), LabError> {
        if self.store()?.kind == Kind::Kube {
            return self.configure_hosts(config);
        }
        self.put(CONFIG_KEY, &config.to_string())
    }

    /// The command line of a host's daemon.
    pub fn daemon_arguments(&self) -> Result<Vec<String>, LabError> {
        let store = self.store()?;
        let (config, kubeconfig) = (
            format!("--net-config-path={NET_CONF}"),
            format!("--kubeconfig-file={KUBECONFIG}"),
        );
        let mut words = vec!["flanneld"];
        match store.kind {
            Kind::Embedded | Kind::Etcd => words.extend(["--etcd-endpoints", &store.endpoint]),
            Kind::Kube => words.extend(["--kube-subnet-mgr", &kubeconfig, &config]),
        }
        words.extend(["--iface=eth0", "--ip-masq", "--healthz-port=8081"]);
        Ok(words.into_iter().map(str::to_owned).collect())
    }

    /// Starts the daemon of a host with the lab's command line and `more`.
    pub fn start_daemon(&mut self, host: usize, more: &[&str]) -> Result<Process, LabError> {
        let mut words = self.daemon_arguments()?;
        words.extend(more.iter().map(|w| (*w).to_owned()));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let process = self.host(host).spawn("flanneld", &words)?;
        self.state.daemons.retain(|(n, _)| *n != host);
        self.state.daemons.push((host, process.record().clone()));
        Ok(process)
    }

    /// Starts the daemons of all hosts at once.
    pub fn start_daemons(&mut self, more: &[&str]) -> Result<Vec<Process>, LabError> {
        let mut processes = Vec::new();
        for host in 1..=self.spec.hosts {
            processes.push(self.start_daemon(host, more)?);
        }
        self.save()?;
        Ok(processes)
    }

    /// What a host's daemon wrote.
    pub fn env(&self, host: usize) -> Result<Env, LabError> {
        Ok(Env::parse(&self.host(host).read(SUBNET_ENV)?))
    }

    /// Whether every host's `flannelctl status` has these words.
    ///
    /// # Errors
    /// What the first that does not says instead.
    pub fn all_say(&self, words: &str) -> Result<(), String> {
        self.hosts().iter().try_for_each(|host| {
            let text = host.shell("flannelctl status || true");
            let text = text.map_err(|error| error.to_string())?;
            match text.contains(words) {
                true => Ok(()),
                false => Err(format!("{} does not say {words:?}: {text}", host.name)),
            }
        })
    }

    /// Whether every host calls itself ready.
    ///
    /// # Errors
    /// What the first that does not says instead.
    pub fn all_ready(&self) -> Result<(), String> {
        self.hosts().iter().try_for_each(|host| {
            let said = host.run(&["flannelctl", "status"]);
            said.map(|_| ())
                .map_err(|error| format!("{}: {error}", host.name))
        })
    }

    /// Waits until every host has its subnet and a route to every other host's. Gives the time it took.
    pub fn wait_for_routes(&self, limit: Duration) -> Result<Duration, LabError> {
        let mut envs: Vec<Option<Env>> = vec![None; self.spec.hosts];
        let mut done = vec![false; self.spec.hosts];
        let result = self.wait("a subnet and all routes on every host", limit, || {
            for (number, daemon) in &self.state.daemons {
                if !daemon.alive() {
                    return Err(LabError::Command {
                        command: format!("flanneld on h{number}"),
                        status: "ended".to_owned(),
                        stderr: tail(&daemon.log, 5),
                    });
                }
            }
            for (index, slot) in envs.iter_mut().enumerate().filter(|(_, s)| s.is_none()) {
                match self.env(index + 1) {
                    Ok(env) if !env.subnets().is_empty() && env.mtu.is_some() => *slot = Some(env),
                    _ => return Ok(Some(format!("h{} has no {SUBNET_ENV}", index + 1))),
                }
            }
            let subnets: Vec<Vec<IpNet>> = envs
                .iter()
                .map(|e| e.as_ref().map(Env::subnets).unwrap_or_default())
                .collect();
            for (index, done) in done.iter_mut().enumerate().filter(|(_, done)| !**done) {
                if let Some(lack) = missing_route(self.host(index + 1), index, &subnets)? {
                    return Ok(Some(lack));
                }
                *done = true;
            }
            Ok(None)
        });
        match result {
            Err(LabError::Timeout {
                what,
                seconds,
                missing,
            }) => {
                let host: usize = missing
                    .trim_start_matches('h')
                    .split(' ')
                    .next()
                    .and_then(|n| n.parse().ok())
                    .unwrap_or(1);
                let log = self.spec.directory().join(format!("h{host}-flanneld.log"));
                let missing = format!("{missing}; the end of {}:\n{}", log.display(), tail(&log, 8));
                Err(LabError::Timeout {
                    what,
                    seconds,
                    missing,
                })
            }
            other => other,
        }
    }
}

/// A route to another host's subnet that a host lacks, in words.
fn missing_route(node: &Node, own: usize, subnets: &[Vec<IpNet>]) -> Result<Option<String>, LabError> {
    let mut present: Vec<IpNet> = Vec::new();
    for family in [4, 6] {
        if subnets[own].iter().any(|s| s.addr().is_ipv4() == (family == 4)) {
            present.extend(routes(node, family)?.iter().filter_map(|r| r.destination()));
        }
    }
    present.sort();
    for (_, theirs) in subnets.iter().enumerate().filter(|(i, _)| *i != own) {
        for subnet in theirs {
            if present.binary_search(subnet).is_err() {
                return Ok(Some(format!("h{} has no route to {subnet}", own + 1)));
            }
        }
    }
    Ok(None)
}

/// The gateway address of a subnet as subnet.env writes it: base plus one.
pub fn first_address(subnet: IpNet) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(a) => IpAddr::V4((u32::from(a) + 1).into()),
        IpAddr::V6(a) => IpAddr::V6((u128::from(a) + 1).into()),
    }
}
