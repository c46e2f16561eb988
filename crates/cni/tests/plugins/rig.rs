//! A host and its containers as namespaces, and the executable called as a runtime calls it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::firewall_lock::FirewallLock;

pub const EXECUTABLE: &str = env!("CARGO_BIN_EXE_flannel-cni");
pub const GO_PLUGINS: &str = "/usr/lib/cni";
pub const ID: &str = "c0ffee0123456789";

/// One host. Everything of it is gone when this is dropped, however the test ends.
pub struct Host {
    pub name: String,
    pub folder: tempfile::TempDir,
    /// `/run/flannel` is a folder of its own (`run`), and the plugins' firewall lock in it no other host's.
    apart: bool,
    namespaces: Vec<String>,
    _lock: FirewallLock,
}

/// What a call gave back.
#[derive(Debug)]
pub struct Answer {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {self:?}"))
    }
    /// The result of a call that is expected to work.
    pub fn ok(self) -> Answer {
        assert_eq!(self.status, 0, "{self:?}");
        self
    }
    /// Code and message of a call that is expected to fail.
    pub fn failure(&self) -> (u64, String) {
        assert_eq!(self.status, 1, "{self:?}");
        let object = self.json();
        (
            object["code"].as_u64().unwrap(),
            object["msg"].as_str().unwrap().to_owned(),
        )
    }
    pub fn addresses(&self) -> Vec<String> {
        let ips = self.json()["ips"].as_array().unwrap().clone();
        ips.iter()
            .map(|ip| ip["address"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// A call to be made.
#[derive(Clone)]
pub struct Call<'a> {
    pub program: PathBuf,
    pub verb: &'a str,
    pub container: &'a str,
    pub netns: String,
    pub ifname: &'a str,
    pub args: &'a str,
    pub path: String,
    pub stdin: String,
    pub variables: Vec<(&'a str, &'a str)>,
}

impl Host {
    pub fn new() -> Host {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "cnit{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bin")).unwrap();
        for plugin in [
            "flannel",
            "bridge",
            "host-local",
            "loopback",
            "portmap",
            "bandwidth",
        ] {
            std::os::unix::fs::symlink(EXECUTABLE, folder.path().join("bin").join(plugin)).unwrap();
        }
        let mut host = Host {
            name: name.clone(),
            folder,
            apart: false,
            namespaces: Vec::new(),
            _lock: FirewallLock::new(),
        };
        host.add_namespace(&name);
        host.ip(&["link", "set", "lo", "up"]);
        host.subnet_env("10.244.0.0/16", "10.244.7.1/24", "", "", true);
        host
    }

    /// A host whose calls wait for no other's.
    pub fn apart() -> Host {
        let mut host = Host::new();
        std::fs::create_dir(host.path("run")).unwrap();
        host.apart = true;
        host
    }

    fn add_namespace(&mut self, name: &str) {
        let added = Command::new("ip").args(["netns", "add", name]).output().unwrap();
        assert!(added.status.success(), "{added:?}");
        self.namespaces.push(name.to_owned());
    }

    /// Makes the namespace of a container and returns its path.
    pub fn pod(&mut self, i: usize) -> String {
        let name = format!("{}-{i}", self.name);
        if !self.namespaces.contains(&name) {
            self.add_namespace(&name);
        }
        format!("/run/netns/{name}")
    }

    pub fn remove_pod(&mut self, i: usize) {
        let name = format!("{}-{i}", self.name);
        Command::new("ip").args(["netns", "del", &name]).status().unwrap();
        self.namespaces.retain(|have| *have != name);
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn exists(&self, name: &str) -> bool {
        Path::new(&self.path(name)).symlink_metadata().is_ok()
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Writes what flanneld would; empty texts leave a family out.
    pub fn subnet_env(&self, network: &str, subnet: &str, network6: &str, subnet6: &str, ipmasq: bool) {
        let mut text = String::new();
        for (key, value) in [
            ("FLANNEL_NETWORK", network),
            ("FLANNEL_SUBNET", subnet),
            ("FLANNEL_IPV6_NETWORK", network6),
            ("FLANNEL_IPV6_SUBNET", subnet6),
            ("FLANNEL_MTU", "1450"),
            ("FLANNEL_IPMASQ", if ipmasq { "true" } else { "false" }),
        ] {
            if !value.is_empty() {
                text.push_str(&format!("{key}={value}\n"));
            }
        }
        std::fs::write(self.path("subnet.env"), text).unwrap();
    }

    pub fn dual_stack(&self) {
        self.subnet_env(
            "10.244.0.0/16",
            "10.244.7.1/24",
            "fd00:10:244::/56",
            "fd00:10:244:7::1/64",
            true,
        );
    }

    /// flannel's configuration as seeds have it, with the folders of this host and more fields (`,"x":1`).
    pub fn config(&self, name: &str, more: &str) -> String {
        let delegate = r#","delegate":{"hairpinMode":true,"isDefaultGateway":true}"#;
        let delegate = if more.contains("\"delegate\"") {
            ""
        } else {
            delegate
        };
        format!(
            r#"{{"cniVersion":"1.0.0","name":"{name}","type":"flannel","subnetFile":"{}","dataDir":"{}","ipam":{{"dataDir":"{}"}}{delegate}{more}}}"#,
            self.path("subnet.env"),
            self.path("flannel"),
            self.path("networks")
        )
    }

    /// A call of a plugin of ours for container `c0ffee…` and `eth0` in pod 0.
    pub fn call(&mut self, plugin: &str, verb: &'static str, stdin: String) -> Call<'static> {
        Call {
            program: self.folder.path().join("bin").join(plugin),
            verb,
            container: ID,
            netns: self.pod(0),
            ifname: "eth0",
            args: "",
            path: self.path("bin"),
            stdin,
            variables: Vec::new(),
        }
    }

    pub fn flannel(&mut self, verb: &'static str) -> Answer {
        let stdin = self.config("cbr0", "");
        let call = self.call("flannel", verb, stdin);
        self.run(&call)
    }

    fn command(&self, call: &Call<'_>) -> Command {
        let mut command = Command::new(if self.apart { "unshare" } else { "nsenter" });
        if self.apart {
            let enter = r#"mkdir -p /run/flannel && mount --bind "$0" /run/flannel && exec nsenter "$@""#;
            let run = self.path("run");
            command.args(["--mount", "sh", "-c", enter, &run]);
        }
        command
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg(&call.program)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs([
                ("CNI_COMMAND", call.verb),
                ("CNI_CONTAINERID", call.container),
                ("CNI_NETNS", &call.netns),
                ("CNI_IFNAME", call.ifname),
                ("CNI_ARGS", call.args),
                ("CNI_PATH", &call.path),
            ])
            .envs(call.variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, call: &Call<'_>) -> Answer {
        loop {
            let answer = self.start(call).finish();
            // A script that was just written is open for writing in whatever another test is starting at this moment.
            if answer.status != 126 || !answer.stderr.contains("Text file busy") {
                return answer;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Starts a call without waiting for it.
    pub fn start(&self, call: &Call<'_>) -> Running {
        use std::io::Write;
        let mut child = self.command(call).spawn().unwrap();
        match child.stdin.take().unwrap().write_all(call.stdin.as_bytes()) {
            // It was killed, or refused the call, before it read any of it.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
            other => other.unwrap(),
        }
        Running(child)
    }

    /// Makes a shell script that can be executed.
    pub fn script(&self, name: &str, body: &str) -> PathBuf {
        let file = self.folder.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        file
    }

    /// A plugin of ours on a host that lacks some firewall programs.
    pub fn without(&self, plugin: &str, programs: &[&str]) -> PathBuf {
        let mut body = String::new();
        for program in programs {
            body.push_str(&format!(
                "mount --bind /dev/null /usr/sbin/{program} || exit 120\n"
            ));
        }
        body.push_str(&format!("exec {}", self.path(&format!("bin/{plugin}"))));
        let inner = self.script(&format!("lacking/{plugin}"), &body);
        let unshare = format!("exec unshare --mount {}", inner.display());
        self.script(&format!("without/{plugin}"), &unshare)
    }

    /// A program in the host's namespace, which has to succeed.
    pub fn exec(&self, command: &[&str]) -> String {
        run_in(&self.name, command)
    }

    pub fn ip(&self, args: &[&str]) -> String {
        output(Command::new("ip").args(["-n", &self.name]).args(args))
    }

    pub fn pod_exec(&self, i: usize, command: &[&str]) -> String {
        run_in(&format!("{}-{i}", self.name), command)
    }

    pub fn pod_ip(&self, i: usize, args: &[&str]) -> String {
        output(
            Command::new("ip")
                .args(["-n", &format!("{}-{i}", self.name)])
                .args(args),
        )
    }

    pub fn sysctl(&self, name: &str) -> String {
        self.exec(&["cat", &format!("/proc/sys/net/{name}")])
            .trim()
            .to_owned()
    }

    /// Names of the host's links but for `lo`.
    pub fn links(&self) -> Vec<String> {
        link_names(&self.ip(&["-j", "link"]))
    }

    pub fn pod_links(&self, i: usize) -> Vec<String> {
        link_names(&self.pod_ip(i, &["-j", "link"]))
    }

    /// IPv4 addresses of cni0.
    pub fn bridge_addresses(&self) -> Vec<String> {
        let links: Value =
            serde_json::from_str(&self.ip(&["-j", "-4", "addr", "show", "dev", "cni0"])).unwrap();
        let infos = links[0]["addr_info"].as_array().unwrap().iter();
        infos
            .map(|info| format!("{}/{}", info["local"].as_str().unwrap(), info["prefixlen"]))
            .collect()
    }

    /// Reservations of a network: address and content.
    pub fn reservations(&self, network: &str) -> Vec<(String, String)> {
        let folder = self.path(&format!("networks/{network}"));
        let Ok(entries) = std::fs::read_dir(folder) else {
            return Vec::new();
        };
        let entries = entries.map(|e| e.unwrap());
        let entries = entries.filter(|e| {
            e.file_name()
                .to_str()
                .unwrap()
                .parse::<std::net::IpAddr>()
                .is_ok()
        });
        let mut found: Vec<_> = entries
            .map(|e| {
                (
                    e.file_name().into_string().unwrap(),
                    String::from_utf8_lossy(&std::fs::read(e.path()).unwrap()).into_owned(),
                )
            })
            .collect();
        found.sort();
        found
    }

    /// Everything of flannel's own state.
    pub fn saved(&self) -> Vec<String> {
        let mut found = Vec::new();
        walk(Path::new(&self.path("flannel")), &mut |path| {
            found.push(path.to_owned())
        });
        found.sort();
        found
    }

    pub fn nat(&self) -> Vec<String> {
        let text = self.exec(&["iptables-save", "-t", "nat"]);
        text.lines()
            .filter(|l| l.starts_with("-A") || l.starts_with(":CNI"))
            .map(str::to_owned)
            .collect()
    }

    /// Nothing of any container is left: no veth, no reservation, no saved configuration, no rule.
    pub fn assert_nothing_left(&self, network: &str) {
        self.assert_nothing_left_but(network, &[]);
    }

    /// As [`Host::assert_nothing_left`] but for rules that all containers share.
    pub fn assert_nothing_left_but(&self, network: &str, shared: &[String]) {
        // A namespace that is removed takes its links with it later, by a worker of the kernel.
        let veths = || -> Vec<String> {
            self.links()
                .into_iter()
                .filter(|l| l.starts_with("veth") || l.starts_with("bwp"))
                .collect()
        };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !veths().is_empty() && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let veths = veths();
        assert_eq!(veths, Vec::<String>::new());
        assert_eq!(self.reservations(network), []);
        assert_eq!(self.saved(), Vec::<String>::new());
        assert!(!self.exists("networks/.owners"), "index left");
        assert_eq!(self.nat(), shared);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for name in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

/// A call under way.
pub struct Running(std::process::Child);

impl Running {
    /// Kills it, and nothing that it has started.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub fn finish(self) -> Answer {
        let output = self.0.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Answer {
            status: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

pub fn walk(folder: &Path, visit: &mut impl FnMut(&str)) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.map(|e| e.unwrap()) {
        let path = entry.path();
        visit(path.to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            walk(&path, visit);
        }
    }
}

fn link_names(json: &str) -> Vec<String> {
    let links: Value = serde_json::from_str(json).unwrap();
    let names = links
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["ifname"].as_str().unwrap_or("").to_owned());
    names.filter(|name| name != "lo" && !name.is_empty()).collect()
}

fn run_in(namespace: &str, command: &[&str]) -> String {
    output(
        Command::new("nsenter")
            .arg(format!("--net=/run/netns/{namespace}"))
            .args(command),
    )
}

fn output(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    assert!(
        status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&stderr)
    );
    String::from_utf8(stdout).unwrap()
}
