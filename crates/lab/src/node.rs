//! One host of a lab (or its switch): a way in for commands, files and processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{LabError, file, line, run, run_with_input, words};
use crate::layout::{MARK, Spec};
use crate::process::{Process, Record};

/// A host or the switch.
#[derive(Debug, Clone)]
pub struct Node {
    /// `h1`, `h2`, ... or `sw`.
    pub name: String,
    /// Name of its network namespace.
    pub netns: String,
    lab: String,
    directory: PathBuf,
    executables: PathBuf,
    holder: Record,
    is_machine: bool,
}

impl Node {
    pub(crate) fn new(spec: &Spec, name: &str, executables: &Path, holder: Record) -> Node {
        Node {
            name: name.to_owned(),
            netns: spec.netns(name),
            lab: spec.name.clone(),
            directory: spec.directory(),
            executables: executables.to_owned(),
            holder,
            is_machine: spec.machines && name != "sw",
        }
    }

    /// The process that holds the node's mount namespace open.
    pub(crate) fn holder(&self) -> &Record {
        &self.holder
    }

    /// A command inside the node: its network, files and host name; of a machine also its processes.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, program: &[S]) -> Command {
        let mut command = words(&["nsenter", "-t", &self.holder.pid.to_string(), "-n", "-m", "-u"]);
        if self.is_machine {
            command.args(["-i", "-p", "-C"]);
        }
        command.arg("--").args(program);
        self.environment(&mut command);
        command
    }

    /// A command inside the network namespace that `path` names, with this node's environment but the caller's files.
    fn in_network(&self, path: &Path, program: &[&str]) -> Command {
        let mut command = words(&["nsenter", &format!("--net={}", path.display()), "--"]);
        command.args(program);
        self.environment(&mut command);
        command
    }

    fn environment(&self, command: &mut Command) {
        mark(command, &self.lab);
        let path = std::env::var("PATH").ok().filter(|_| !self.is_machine);
        let path =
            path.unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        command.env("PATH", format!("{}:{path}", self.executables.display()));
        command.env("NODE_NAME", &self.name);
    }

    /// Runs a command in the node to its end; gives its stdout.
    pub fn run(&self, program: &[&str]) -> Result<String, LabError> {
        run(&mut self.command(program))
    }

    /// As [`Node::run`], with `input` on stdin.
    pub fn run_with_input(&self, program: &[&str], input: &str) -> Result<String, LabError> {
        run_with_input(&mut self.command(program), input)
    }

    /// Runs a shell line in the node.
    pub fn shell(&self, text: &str) -> Result<String, LabError> {
        self.run(&["sh", "-ec", text])
    }

    /// Starts a process in the node. Its log is `<lab>/<node>-<label>.log`.
    pub fn spawn(&self, label: &str, program: &[&str]) -> Result<Process, LabError> {
        self.spawn_with(label, program, &[])
    }

    /// As [`Node::spawn`], with environment variables.
    pub fn spawn_with(
        &self,
        label: &str,
        program: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Process, LabError> {
        // Not a group leader, so setsid runs the rest in place and the id stays that of the child.
        let mut command = words(&["setsid"]);
        let inner = self.command(program);
        command.arg(inner.get_program()).args(inner.get_args());
        self.environment(&mut command);
        command.envs(environment.iter().copied());
        Process::start(
            command,
            &self.directory.join(format!("{}-{label}.log", self.name)),
        )
    }

    /// Runs a command in the network of a pod of this node (files are the caller's).
    pub fn pod_run(&self, pod: &str, program: &[&str]) -> Result<String, LabError> {
        run(&mut self.pod_command(pod, program))
    }

    /// A command in the network of a pod of this node (files are the caller's).
    pub fn pod_command(&self, pod: &str, program: &[&str]) -> Command {
        self.in_network(&self.pod_netns(pod), program)
    }

    /// A command in this node's network, with the caller's files.
    pub fn network_command(&self, program: &[&str]) -> Command {
        self.in_network(&self.network_file(), program)
    }

    /// Runs one in this node's network, with the caller's files.
    pub fn network_run(&self, program: &[&str]) -> Result<String, LabError> {
        run(&mut self.network_command(program))
    }

    /// The file that stands for this node's network namespace.
    pub fn network_file(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.netns)
    }

    /// The file that stands for a pod's network namespace, as this process can open it.
    pub fn pod_netns(&self, pod: &str) -> PathBuf {
        self.path(&format!("/run/netns/{pod}"))
    }

    /// A path inside the node, as this process can open it.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.holder.pid)).join(inside.trim_start_matches('/'))
    }

    /// Reads a file of the node.
    pub fn read(&self, inside: &str) -> Result<String, LabError> {
        file(
            format!("{}:{inside}", self.name),
            fs::read_to_string(self.path(inside)),
        )
    }

    /// Writes a file of the node.
    pub fn write(&self, inside: &str, text: &str) -> Result<(), LabError> {
        file(
            format!("{}:{inside}", self.name),
            fs::write(self.path(inside), text),
        )
    }

    /// Whether a file is there.
    pub fn has(&self, inside: &str) -> bool {
        self.path(inside).exists()
    }

    /// `ip ARGS` in the node's network.
    pub fn ip(&self, arguments: &[&str]) -> Result<String, LabError> {
        let mut command = words(&["ip", "-n", &self.netns]);
        run(command.args(arguments))
    }

    /// `bridge ARGS` in the node's network.
    pub fn bridge(&self, arguments: &[&str]) -> Result<String, LabError> {
        let mut command = words(&["bridge", "-n", &self.netns]);
        run(command.args(arguments))
    }

    /// One `ip -batch` in the node's network.
    pub fn ip_batch(&self, lines: &str) -> Result<(), LabError> {
        let mut command = words(&["ip", "-n", &self.netns, "-batch", "-"]);
        run_with_input(&mut command, lines).map(|_| ())
    }

    /// The command line a person uses for the same.
    pub fn entry(&self) -> String {
        line(&self.command(&["bash"]))
    }

    /// The network namespace's inode: two nodes never share it.
    pub fn network_id(&self) -> Result<u64, LabError> {
        use std::os::unix::fs::MetadataExt;
        let path = self.network_file();
        Ok(file(&path, fs::metadata(&path))?.ino())
    }
}

/// Marks a command's process, and so its descendants, as belonging to a lab, and keeps the caller's settings for
/// daemons away from it.
pub(crate) fn mark(command: &mut Command, lab: &str) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FLANNELD_") || name == "NOTIFY_SOCKET" {
            command.env_remove(name);
        }
    }
    command.env(MARK, lab);
}
