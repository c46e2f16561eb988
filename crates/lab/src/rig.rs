//! A lab with flannel running in it, ready for a test: registry, configuration, daemons.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::command::{LabError, output, words};
use crate::flannel::config;
use crate::layout::{Families, Spec};
use crate::process::{Process, all, stat, tail};
use crate::store::{Kind, SUBNETS};
use crate::topology::Lab;

/// What a test wants.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Number of hosts.
    pub hosts: usize,
    /// Of underlay and pods.
    pub families: Families,
    /// Two segments with a router between.
    pub routed: bool,
    /// The whole network configuration.
    pub config: Value,
    /// Which registry.
    pub store: Kind,
    /// Further flags of every daemon.
    pub flags: Vec<String>,
}

impl Wish {
    /// Two dual-stack hosts on a real etcd, with this backend.
    pub fn new(backend: Value) -> Wish {
        Wish::of(Families::Both, backend)
    }

    /// Two hosts of these families on a real etcd, with this backend.
    pub fn of(families: Families, backend: Value) -> Wish {
        let config = config(families, backend);
        Wish {
            hosts: 2,
            families,
            routed: false,
            config,
            store: Kind::Etcd,
            flags: Vec::new(),
        }
    }

    /// With so many hosts.
    pub fn hosts(self, hosts: usize) -> Wish {
        Wish { hosts, ..self }
    }
}

/// A lab with flannel in it. Everything goes when it is dropped.
#[derive(Debug)]
pub struct Rig {
    /// The daemons, by host.
    pub daemons: Vec<Process>,
    /// The registry's process.
    pub store: Process,
    /// The lab.
    pub lab: Lab,
}

/// Directory of the executables under test: `FLANNEL_BIN_DIR`, else where cargo puts them.
pub fn executables() -> Result<PathBuf, LabError> {
    let directory = match std::env::var_os("FLANNEL_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/debug"),
    };
    for program in ["flanneld", "flannel-cni", "flannelctl"] {
        if !directory.join(program).is_file() {
            return Err(LabError::Missing {
                what: "executable",
                name: directory.join(program).display().to_string(),
                hint: "cargo build --bins makes it; FLANNEL_BIN_DIR names another place".to_owned(),
            });
        }
    }
    directory.canonicalize().map_err(|source| LabError::File {
        path: directory.display().to_string(),
        source,
    })
}

/// A name no other test uses: labs of tests live side by side.
pub fn unique_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!(
        "t{}-{}",
        std::process::id() % 1_000_000,
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Whatever this computer has of a lab by its name: files, namespaces, control groups, and processes with its mark, a mount or a group
/// of it. After its end that is nothing.
pub fn traces(lab: &str) -> Result<Vec<String>, LabError> {
    let pattern = format!("*{lab}*");
    let mut find = words(&["find", "/sys/fs/cgroup", "/run", "-name", &pattern]);
    // Folders come and go while it looks, which its status tells.
    let (_, found, ..) = output(&mut find, "")?;
    let mut traces: Vec<String> = found.lines().map(str::to_owned).collect();
    let is_alive = |pid: u32| stat(pid).is_some_and(|stat| stat.state != 'Z');
    for pid in all().into_iter().filter(|pid| is_alive(*pid)) {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let names_it = |file: &str| String::from_utf8_lossy(&read(file)).contains(lab);
        let mut files = ["mountinfo", "environ", "cgroup"].into_iter();
        if let Some(file) = files.find(|file| names_it(file)) {
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            traces.push(format!("{file} of process {pid}: {command}"));
        }
    }
    Ok(traces)
}

impl Rig {
    /// Hosts, registry and configuration; no daemon yet.
    pub fn bare(wish: &Wish) -> Result<Rig, LabError> {
        let mut spec = Spec::new(&unique_name(), wish.hosts);
        spec.families = wish.families;
        spec.routed = wish.routed;
        let mut lab = Lab::up(spec, &executables()?, Arc::default())?;
        let store = lab.start_store(wish.store)?;
        lab.configure(&wish.config)?;
        Ok(Rig {
            daemons: Vec::new(),
            store,
            lab,
        })
    }

    /// All of it, and every route on every host.
    pub fn start(wish: &Wish) -> Result<Rig, LabError> {
        let mut rig = Rig::bare(wish)?;
        let flags: Vec<&str> = wish.flags.iter().map(String::as_str).collect();
        rig.daemons = rig.lab.start_daemons(&flags)?;
        rig.lab.wait_for_routes(Duration::from_secs(30))?;
        Ok(rig)
    }

    /// A daemon on the first host only; the others are there, but silent.
    pub fn alone(wish: &Wish) -> Result<Rig, LabError> {
        let mut rig = Rig::bare(wish)?;
        let flags: Vec<&str> = wish.flags.iter().map(String::as_str).collect();
        let daemon = rig.lab.start_daemon(1, &flags)?;
        rig.daemons.push(daemon);
        rig.wait("subnet.env on h1", 30, |rig| {
            Ok(rig
                .lab
                .env(1)
                .ok()
                .filter(|e| e.mtu.is_some())
                .is_none()
                .then(|| "the file".to_owned()))
        })?;
        Ok(rig)
    }

    /// Waits until h1 is well by its own word.
    ///
    /// # Errors
    /// What it still says after 30 s.
    pub fn wait_for_health(&self) -> Result<Duration, LabError> {
        self.wait("a healthy h1 by its own word", 30, |rig| {
            let said = rig.lab.host(1).run(&["flannelctl", "status"]);
            Ok(said.err().map(|e| e.to_string()))
        })
    }

    /// Waits until `missing` names nothing any more; the end of the first daemon's log comes with the failure.
    pub fn wait(
        &self,
        what: &str,
        seconds: u64,
        mut missing: impl FnMut(&Rig) -> Result<Option<String>, LabError>,
    ) -> Result<Duration, LabError> {
        let result = self
            .lab
            .wait(what, Duration::from_secs(seconds), || missing(self));
        match result {
            Err(LabError::Timeout {
                what,
                seconds,
                missing,
            }) => {
                let log = self.lab.spec.directory().join("h1-flanneld.log");
                let missing = format!("{missing}\nthe end of h1's log:\n{}", tail(&log, 12));
                Err(LabError::Timeout {
                    what,
                    seconds,
                    missing,
                })
            }
            other => other,
        }
    }

    /// Waits until a value is what it should be, and says both when it does not become so.
    pub fn settle<T: PartialEq + std::fmt::Debug>(
        &self,
        what: &str,
        expected: &T,
        mut observe: impl FnMut(&Lab) -> Result<T, LabError>,
    ) -> Result<Duration, LabError> {
        self.wait(what, 15, |rig| {
            let observed = observe(&rig.lab)?;
            Ok((observed != *expected).then(|| format!("\nexpected {expected:?}\nobserved {observed:?}")))
        })
    }

    /// Writes a lease as another host's daemon would.
    pub fn put_lease(&self, key: &str, value: &Value) -> Result<(), LabError> {
        self.lab.put(&format!("{SUBNETS}{key}"), &value.to_string())
    }

    /// Removes a lease.
    pub fn delete_lease(&self, key: &str) -> Result<(), LabError> {
        self.lab.delete(&format!("{SUBNETS}{key}"))
    }

    /// A host's subnet of a family (4 or 6).
    pub fn subnet(&self, host: usize, family: u8) -> Result<IpNet, LabError> {
        self.lab
            .env(host)?
            .subnet_of(family)
            .ok_or_else(|| LabError::Missing {
                what: "IPv4 or IPv6 subnet in subnet.env of host",
                name: format!("h{host}"),
                hint: format!("family {family}"),
            })
    }

    /// Ends a host's daemon hard and starts it again with the same command line; waits for nothing.
    pub fn restart(&mut self, host: usize, flags: &[&str]) -> Result<(), LabError> {
        if let Some(daemon) = self.daemons.get_mut(host - 1) {
            daemon.kill();
        }
        let daemon = self.lab.start_daemon(host, flags)?;
        if let Some(slot) = self.daemons.get_mut(host - 1) {
            *slot = daemon;
        }
        Ok(())
    }

    /// Replaces the network configuration.
    pub fn reconfigure(&self, config: &Value) -> Result<(), LabError> {
        self.lab.configure(config)
    }
}

/// The value of a vxlan lease with fixed addresses, as a peer that is not there would write it.
pub fn vxlan_lease(public: &str, public6: Option<&str>, mac: &str, mac6: Option<&str>) -> Value {
    let mut value = json!({
        "PublicIP": public, "PublicIPv6": public6, "BackendType": "vxlan",
        "BackendData": { "VNI": 1, "VtepMAC": mac },
    });
    if let Some(mac6) = mac6 {
        value["BackendV6Data"] = json!({ "VNI": 1, "VtepMAC": mac6 });
    }
    value
}
