//! podman with its CNI backend, everything of it below the machine's own folder.

use lab::command::LabError;

use crate::machine::{HOME, Machine, ROOTFS};
use crate::place::Place;

/// Limits: root may lack the right to raise them. Control groups without controllers: none are asked for.
const CONF: &str = r#"[containers]
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
pids_limit = 0
[network]
network_backend = "cni"
network_config_dir = "/etc/cni/net.d/"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
"#;

/// podman of a machine.
pub struct Podman<'a>(pub &'a Machine);

impl<'a> Podman<'a> {
    /// Writes its configuration.
    pub fn new(machine: &'a Machine) -> Podman<'a> {
        let folder = format!("{HOME}/podman");
        std::fs::create_dir_all(machine.node.path(&folder)).unwrap();
        machine
            .node
            .write(&format!("{folder}/containers.conf"), CONF)
            .unwrap();
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{folder}/root\"\nrunroot = \"{folder}/run\"\n"
        );
        machine
            .node
            .write(&format!("{folder}/storage.conf"), &storage)
            .unwrap();
        Podman(machine)
    }

    /// `podman ARGS`.
    pub fn call(&self, arguments: &[&str]) -> Result<String, LabError> {
        let mut all = vec!["podman", "--log-level=error"];
        all.extend(arguments);
        self.0.run(&all)
    }

    /// Starts a web server that serves its own name.
    pub fn start(&self, name: &str, options: &[&str]) -> Result<(), LabError> {
        let page = self.0.add_page(name);
        let rootfs = format!("{ROOTFS}:O");
        let mut all = vec!["run", "-d", "--name", name, "--hostname", name];
        all.extend(options);
        all.extend([
            "--rootfs",
            &rootfs,
            "/bin/busybox",
            "httpd",
            "-f",
            "-p",
            "80",
            "-h",
            &page,
        ]);
        self.call(&all).map(drop)
    }

    /// As [`Podman::start`]; gives its network.
    pub fn run(&self, name: &str, options: &[&str]) -> Place {
        self.start(name, options).unwrap();
        self.place(name)
    }

    /// The network of a running container.
    pub fn place(&self, name: &str) -> Place {
        let pid = self.call(&["inspect", "-f", "{{.State.Pid}}", name]).unwrap();
        let place = self.0.place_of(name, pid.trim().parse().unwrap());
        self.0.wait_for_server(&place);
        place
    }

    /// Stops and removes one.
    pub fn remove(&self, name: &str) {
        self.call(&["rm", "-f", "-t", "0", name]).unwrap();
    }
}
