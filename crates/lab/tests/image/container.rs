//! Containers of the image, made by runc as a container engine has it made: capabilities, read-only root, mounts.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use lab::process::Process;
use serde_json::{Value, json};

use crate::rootfs::{Image, run};

/// What containerd and Docker give a container that asks for nothing.
pub const DEFAULT: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// What is to be run, as a manifest says it.
#[derive(Debug, Clone, Default)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// `command` and `args`.
    pub words: Vec<String>,
    /// Variables beside the image's.
    pub env: Vec<(String, String)>,
    /// Paths on the host and in the container.
    pub mounts: Vec<(PathBuf, String)>,
    /// All of them, without `CAP_`.
    pub capabilities: Vec<String>,
    /// Nothing but mounts can be written to.
    pub read_only: bool,
    /// No program gets more rights than it was started with.
    pub no_new_privileges: bool,
}

/// A node's network: a namespace with loopback up. It goes with the test, and whatever is in it.
pub struct Network(pub String);

impl Network {
    pub fn new() -> Network {
        let network = Network(format!("fi-{}", lab::rig::unique_name()));
        run(Command::new("ip").args(["netns", "add", &network.0]));
        run(network.command("ip").args(["link", "set", "lo", "up"]));
        network
    }

    /// A program of this machine's in it.
    pub fn command(&self, program: &str) -> Command {
        // `ip netns exec` would hide the control groups from runc.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.0)).arg(program);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

impl Container {
    /// Runs it to its end.
    pub fn run(&self, image: &Image, network: &Network) -> Output {
        let (mut command, _id) = self.command(image, network);
        command.output().unwrap()
    }

    /// Runs it to its end, which has to be a good one; what it printed.
    pub fn succeed(&self, image: &Image, network: &Network) -> String {
        let output = self.run(image, network);
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(
            output.status.success(),
            "{}: {}\n{text}",
            self.words.join(" "),
            output.status
        );
        text
    }

    /// Starts it; it is ended with what is returned.
    pub fn start(&self, image: &Image, network: &Network) -> Running {
        let (command, id) = self.command(image, network);
        let log = image.host("log").join(&id);
        Running {
            process: Process::start(command, &log).unwrap(),
            state: image.host("runc"),
            id,
        }
    }

    fn command(&self, image: &Image, network: &Network) -> (Command, String) {
        let id = format!("{}-{}", self.name, lab::rig::unique_name());
        let bundle = image.host("bundle").join(&id);
        std::fs::create_dir_all(&bundle).unwrap();
        std::fs::write(bundle.join("config.json"), self.spec(image).to_string()).unwrap();
        let mut command = network.command("runc");
        command.arg("--root").arg(image.host("runc"));
        command.args(["run", "--bundle"]).arg(&bundle).arg(&id);
        (command, id)
    }

    fn spec(&self, image: &Image) -> Value {
        let capabilities: Vec<String> = self
            .capabilities
            .iter()
            .map(|name| format!("CAP_{name}"))
            .collect();
        let mut env: Vec<String> = crate::objects::texts(image.config.pointer("/config/Env"))
            .into_iter()
            .map(str::to_owned)
            .collect();
        env.extend(self.env.iter().map(|(name, value)| format!("{name}={value}")));
        let mut mounts = vec![
            json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] }),
            json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] }),
            json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] }),
        ];
        for (from, to) in &self.mounts {
            mounts.push(
                json!({ "destination": to, "type": "bind", "source": from, "options": ["rbind", "rw"] }),
            );
        }
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": { "uid": 0, "gid": 0 },
                "args": self.words,
                "env": env,
                "cwd": "/",
                "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
                "noNewPrivileges": self.no_new_privileges,
            },
            "root": { "path": image.root(), "readonly": self.read_only },
            "mounts": mounts,
            "linux": {
                // The host's network, which is that of the test's node.
                "namespaces": [{ "type": "mount" }, { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }],
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
                "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"],
                "resources": {},
            },
        })
    }
}

/// A container that runs.
pub struct Running {
    process: Process,
    state: PathBuf,
    id: String,
}

impl Running {
    /// What it has said so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Ends it as kubelet does; its exit status.
    pub fn stop(&mut self) -> Option<i32> {
        run(Command::new("runc")
            .arg("--root")
            .arg(&self.state)
            .args(["kill", &self.id, "TERM"]));
        self.process
            .wait(Duration::from_secs(20))
            .and_then(|status| status.code())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let runc = |arguments: &[&str], state: &Path| {
            let mut command = Command::new("runc");
            let _ = command.arg("--root").arg(state).args(arguments).output();
        };
        runc(&["kill", &self.id, "KILL"], &self.state);
        self.process.kill();
        runc(&["delete", "--force", &self.id], &self.state);
    }
}
