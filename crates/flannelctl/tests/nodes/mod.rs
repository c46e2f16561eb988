//! A node as a network namespace, pods attached by the real plugins, and `flannelctl` run on it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

#[path = "../../../cni/tests/plugins/firewall_lock.rs"]
mod firewall_lock;
use firewall_lock::FirewallLock;

pub const GO_PLUGINS: &str = "/usr/lib/cni";

/// Where the executables under test are.
pub fn executable(name: &str) -> PathBuf {
    lab::rig::executables()
        .unwrap()
        .join(name)
        .canonicalize()
        .unwrap()
}

/// A node. Everything of it is gone when this is dropped, however the test ends.
pub struct Node {
    pub name: String,
    pub folder: tempfile::TempDir,
    /// The subnet but for its last number: `10.70.3`.
    pub subnet: String,
    namespaces: Vec<String>,
    processes: Vec<Child>,
    _lock: FirewallLock,
}

impl Node {
    pub fn new() -> Node {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let name = format!("fci{process}-{count}");
        let folder = tempfile::tempdir().unwrap();
        // Addresses of its own: those of other tests are alive in their namespaces.
        let subnet = format!("10.{}.{}", 64 + process % 128, count % 256);
        let mut node = Node {
            name: name.clone(),
            folder,
            subnet,
            namespaces: Vec::new(),
            processes: Vec::new(),
            _lock: FirewallLock::new(),
        };
        std::fs::create_dir(node.folder.path().join("bin")).unwrap();
        for plugin in [
            "flannel",
            "bridge",
            "host-local",
            "portmap",
            "loopback",
            "bandwidth",
        ] {
            let place = node.folder.path().join("bin").join(plugin);
            std::os::unix::fs::symlink(executable("flannel-cni"), place).unwrap();
        }
        node.namespace(&name);
        run(&["ip", "-n", &name, "link", "set", "lo", "up"]);
        let ula = format!("fd00:{:x}", process % 65536);
        let env = format!(
            "FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET={}.1/24\nFLANNEL_IPV6_NETWORK={ula}::/32\nFLANNEL_IPV6_SUBNET={ula}:{count:x}::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
            node.subnet
        );
        std::fs::write(node.path("subnet.env"), env).unwrap();
        node
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// The id of a container: no other test's, whose plugins may be at work.
    pub fn id(&self, container: &str) -> String {
        format!("{}.{container}", self.name)
    }

    fn bare<'a>(&self, id: &'a str) -> &'a str {
        id.strip_prefix(&format!("{}.", self.name)).unwrap_or(id)
    }

    fn namespace(&mut self, name: &str) {
        run(&["ip", "netns", "add", name]);
        self.namespaces.push(name.to_owned());
    }

    /// A namespace with a name under `/run/netns`; its path.
    pub fn named(&mut self, name: &str) -> String {
        let name = format!("{}-{name}", self.name);
        self.namespace(&name);
        format!("/run/netns/{name}")
    }

    /// Takes a pod's namespace away. Its links go first: the kernel does that late where many namespaces go at once.
    pub fn remove(&mut self, path: &str) {
        let name = path.trim_start_matches("/run/netns/");
        for link in ["eth0", "net1"] {
            let _ = Command::new("ip")
                .args(["-n", name, "link", "del", link])
                .output();
        }
        run(&["ip", "netns", "del", name]);
        self.namespaces.retain(|n| n != name);
    }

    /// A process that runs until the end; waits for the line `ready`. Its id.
    pub fn process(&mut self, script: &str) -> u32 {
        let mut child = Command::new("bash")
            .args(["-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let id = child.id();
        self.processes.push(child);
        assert_eq!(line, "ready\n", "{script}");
        id
    }

    pub fn end(&mut self, id: u32) {
        let at = self.processes.iter().position(|c| c.id() == id).unwrap();
        let mut child = self.processes.remove(at);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn eventually(&self, what: &str, mut holds: impl FnMut(&Node) -> bool) {
        let deadline = SystemTime::now() + Duration::from_secs(180);
        while !holds(self) {
            assert!(SystemTime::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// flannel's configuration for a network, with more fields (`,"x":1`).
    pub fn config(&self, network: &str, more: &str) -> String {
        format!(
            r#"{{"name":"{network}","cniVersion":"1.0.0","type":"flannel","subnetFile":"{}","dataDir":"{}","ipam":{{"dataDir":"{}"}},"delegate":{{"isDefaultGateway":true}}{more}}}"#,
            self.path("subnet.env"),
            self.path("cni/flannel"),
            self.path("cni/networks")
        )
    }

    /// A call of a plugin, as a runtime makes it.
    pub fn plugin(
        &self,
        program: &str,
        verb: &str,
        container: &str,
        netns: &str,
        ifname: &str,
        stdin: &str,
    ) -> Output {
        let program = match program.contains('/') {
            true => program.to_owned(),
            false => self.path(&format!("bin/{program}")),
        };
        let mut child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg(program)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs([
                ("CNI_COMMAND", verb),
                ("CNI_CONTAINERID", &self.id(container)),
                ("CNI_NETNS", netns),
                ("CNI_IFNAME", ifname),
                ("CNI_PATH", &format!("{}:{GO_PLUGINS}", self.path("bin"))),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// An ADD to `cbr0` that has to work; its result.
    pub fn add(&self, container: &str, netns: &str) -> Value {
        let output = self.plugin(
            "flannel",
            "ADD",
            container,
            netns,
            "eth0",
            &self.config("cbr0", ""),
        );
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub fn on_node(&self, command: &[&str]) -> String {
        let netns = format!("--net=/run/netns/{}", self.name);
        let mut all = vec!["nsenter", netns.as_str()];
        all.extend(command);
        run(&all)
    }

    /// Addresses held in a network, with what is in their files.
    pub fn reservations(&self, network: &str) -> Vec<(String, String)> {
        let Ok(entries) = std::fs::read_dir(self.path(&format!("cni/networks/{network}"))) else {
            return Vec::new();
        };
        let mut found: Vec<(String, String)> = entries
            .map(|e| e.unwrap())
            .map(|e| (e.file_name().into_string().unwrap(), e.path()))
            .filter(|(name, _)| name.parse::<std::net::IpAddr>().is_ok())
            // One may go while we look.
            .filter_map(|(name, path)| Some((name, std::fs::read_to_string(path).ok()?)))
            .collect();
        found.sort();
        found
    }

    /// Containers that hold addresses in a network.
    pub fn holders(&self, network: &str) -> Vec<String> {
        let mut holders: Vec<String> = self
            .reservations(network)
            .into_iter()
            .map(|(_, content)| self.bare(content.split("\r\n").next().unwrap()).to_owned())
            .collect();
        holders.sort();
        holders.dedup();
        holders
    }

    /// Dates every reservation of a network back by an hour.
    pub fn make_old(&self, network: &str) {
        let old = SystemTime::now() - Duration::from_secs(3600);
        for (address, _) in self.reservations(network) {
            let path = self.path(&format!("cni/networks/{network}/{address}"));
            // One may go while we look.
            if let Ok(file) = std::fs::File::options().append(true).open(path) {
                file.set_modified(old).unwrap();
            }
        }
    }

    pub fn places(&self) -> Vec<String> {
        [
            ("--data-dir", "cni/networks"),
            ("--flannel-dir", "cni/flannel"),
            ("--subnet-file", "subnet.env"),
        ]
        .into_iter()
        .flat_map(|(flag, name)| [flag.to_owned(), self.path(name)])
        .collect()
    }

    /// `flannelctl ipam ...` on the node, behind these words (`nsenter ...`, `unshare ...`).
    pub fn ipam_by(&self, before: &[&str], arguments: &[&str]) -> (i32, String) {
        let (program, rest) = before.split_first().unwrap();
        let output = Command::new(program)
            .args(rest)
            .arg(executable("flannelctl"))
            .arg("ipam")
            .args(arguments)
            .args(self.places())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8(text).unwrap(),
        )
    }

    pub fn ipam(&self, arguments: &[&str]) -> (i32, String) {
        let netns = format!("--net=/run/netns/{}", self.name);
        self.ipam_by(&["nsenter", &netns], arguments)
    }

    /// States by container, as `ipam list --json` says.
    pub fn states_by(&self, before: &[&str]) -> Vec<(String, String)> {
        self.read_states(&self.ipam_by(before, &["list", "--json"]).1)
    }

    pub fn states(&self) -> Vec<(String, String)> {
        self.read_states(&self.ipam(&["list", "--json"]).1)
    }

    fn read_states(&self, text: &str) -> Vec<(String, String)> {
        let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
        let all = value["reservations"].as_array().unwrap().iter();
        let mut found: Vec<(String, String)> = all
            .map(|r| {
                let text = |name: &str| r[name].as_str().unwrap();
                (self.bare(text("container")).to_owned(), text("state").to_owned())
            })
            .collect();
        found.sort();
        found.dedup();
        found
    }

    /// Every path below the folder of the plugins' files, with its date.
    pub fn files(&self) -> Vec<(PathBuf, SystemTime)> {
        let mut found = Vec::new();
        walk(Path::new(&self.path("cni")), &mut found);
        found.sort();
        found
    }
}

pub fn expected(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
        .collect()
}

fn walk(folder: &Path, found: &mut Vec<(PathBuf, SystemTime)>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let data = path.symlink_metadata().unwrap();
        found.push((path.clone(), data.modified().unwrap()));
        if data.is_dir() {
            walk(&path, found);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for child in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
        for name in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

/// A command that has to succeed; its stdout.
pub fn run(command: &[&str]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A record of libcni's, as it keeps one for each attachment.
pub fn record(container: &str, netns: &str) -> String {
    json!({ "kind": "cniCacheV1", "containerId": container, "ifName": "eth0", "networkName": "cbr0", "netns": netns,
            "result": { "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0", "sandbox": netns }] } })
    .to_string()
}
