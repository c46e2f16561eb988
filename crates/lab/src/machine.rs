//! Hosts that are machines: a real systemd is their first process, on a disk of their own.
//!
//! ```text
//!  host-root        Debian, shared by all, never written (`cargo xtask host-root` makes it)
//!  hN-disk/         seen by the holder of the disk alone: a tmpfs with an overlay over that root, and the folders that can be on no
//!                   overlay. It stays while the machine is off
//!  systemd-nspawn   the machine: network, processes, mounts, host name and control groups of its own, /run and /tmp empty at each start
//! ```
//!
//! INVARIANT: systemd is never started where it sees the machine's own /tmp, /dev or /run: it empties the first and resets the others.

mod group;
mod system;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::command::{LabError, file, output, words};
use crate::layout::{Spec, directory};
use crate::node::mark;
use crate::process::{Process, Record, all, stat, tail};
use crate::topology::Lab;
use crate::topology::build::{make_network, remove_network};

/// Names the folder with the root of machines.
const ROOT: &str = "FLANNEL_HOST_ROOT";
/// Where `cargo xtask host-root` puts it otherwise.
const DEFAULT_ROOT: &str = "/var/cache/flannel-lab/host-root-1";
/// Folders on a disk without an overlay, for programs that make overlays there or ask what file system it is.
const PLAIN: &[&str] = &["containerd", "kubelet"];
/// For a machine to come up, or to go down in order, beside others on a busy computer.
const PATIENCE: Duration = Duration::from_secs(120);

/// The root that machines share.
fn root() -> Result<PathBuf, LabError> {
    let root = std::env::var_os(ROOT).map_or_else(|| PathBuf::from(DEFAULT_ROOT), PathBuf::from);
    if root.join("etc/debian_version").is_file() {
        return Ok(root);
    }
    Err(LabError::Missing {
        what: "root for machines",
        name: root.display().to_string(),
        hint: format!("`cargo xtask host-root` makes it; {ROOT} names another folder"),
    })
}

/// Where the holder of a disk, and nobody else, has it.
fn place(lab: &str, host: usize) -> PathBuf {
    directory(lab).join(format!("machines/h{host}"))
}

/// Control group of a machine, and its name for `systemd-nspawn`.
fn name_of(lab: &str, host: usize) -> String {
    format!("flab-{lab}-h{host}")
}

/// The holder of a machine's disk.
pub(crate) fn disk(spec: &Spec, host: usize) -> Result<Command, LabError> {
    let (root, place) = (root()?, place(&spec.name, host));
    file(&place, fs::create_dir_all(&place))?;
    let script = format!(
        "mount -t tmpfs -o mode=755 flannel-lab {place}
        cd {place}
        mkdir root upper work {plain}
        mount -t overlay -o lowerdir={root},upperdir={place}/upper,workdir={place}/work flannel-lab root
        {files}
        # What systemd-nspawn keeps for machines that are registered.
        mkdir -p /run/systemd/nspawn
        mount -t tmpfs -o mode=755 flannel-lab /run/systemd/nspawn
        echo ready
        exec sleep infinity >/dev/null 2>&1",
        place = place.display(),
        root = root.display(),
        plain = PLAIN.join(" "),
        files = system::files("root", host),
    );
    // Later namespaces of the lab are to be seen, too.
    Ok(words(&[
        "setsid",
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-ec",
        &script,
    ]))
}

impl Lab {
    /// Starts a machine that is off, and waits until it is up; its holder is another from then on.
    pub fn boot(&mut self, host: usize) -> Result<Duration, LabError> {
        let start = Instant::now();
        let machine = self.switch_on(host)?;
        self.wait_until_up(host, machine)?;
        Ok(start.elapsed())
    }

    /// Starts all machines at once.
    pub(crate) fn boot_all(&mut self) -> Result<(), LabError> {
        let mut started = Vec::new();
        for host in 1..=self.spec.hosts {
            started.push(self.switch_on(host)?);
        }
        for (index, machine) in started.into_iter().enumerate() {
            self.wait_until_up(index + 1, machine)?;
        }
        Ok(())
    }

    /// Takes the power from a machine: whatever was not on its disk is lost.
    pub fn cut_power(&mut self, host: usize) -> Result<(), LabError> {
        self.state.holders[host].signal(Signal::KILL);
        self.wait_until_off(host)
    }

    /// Lets a machine go down in order.
    pub fn shut_down(&mut self, host: usize) -> Result<(), LabError> {
        self.host(host).run(&["systemctl", "poweroff", "--no-wall"])?;
        self.wait_until_off(host)
    }

    /// What a machine has said since it was last started, of one unit or of all.
    pub fn journal(&self, host: usize, unit: Option<&str>) -> Result<String, LabError> {
        let mut words = vec!["journalctl", "--boot", "--no-pager", "--output=short-precise"];
        if let Some(unit) = unit {
            words.extend(["--unit", unit]);
        }
        self.host(host).run(&words)
    }

    fn console(&self, host: usize) -> PathBuf {
        self.spec.directory().join(format!("h{host}-machine.log"))
    }

    fn switch_on(&self, host: usize) -> Result<Process, LabError> {
        let Some(disk) = self.state.disks.get(host - 1) else {
            return Err(LabError::Invalid(format!("h{host} of this lab is no machine")));
        };
        make_network(&self.spec, host)?;
        let name = name_of(&self.spec.name, host);
        let groups = group::make(&name)?;
        let place = place(&self.spec.name, host);
        let mut command = words(&["setsid", "nsenter", "-t", &disk.pid.to_string(), "-m", "--"]);
        let enter: String = groups
            .iter()
            .map(|group| format!("echo 0 >{}/cgroup.procs\n", group.display()))
            .collect();
        command.args([
            "sh",
            "-ec",
            &format!("{enter}exec \"$@\""),
            "sh",
            "systemd-nspawn",
        ]);
        command.args([
            "--quiet",
            "--boot",
            "--register=no",
            "--keep-unit",
            "--console=read-only",
        ]);
        command.args(["--resolv-conf=off", "--timezone=off", "--link-journal=no"]);
        command
            .arg(format!("--machine={name}"))
            .arg(format!("--hostname=h{host}"));
        command.arg(format!("--directory={}", place.join("root").display()));
        command.arg(format!(
            "--network-namespace-path={}",
            self.host(host).network_file().display()
        ));
        // Container runtimes need nearly all; modules and the clock are the computer's.
        command.args([
            "--capability=all",
            "--drop-capability=CAP_SYS_MODULE,CAP_SYS_TIME",
        ]);
        command.arg("--system-call-filter=@mount @keyring bpf");
        for folder in PLAIN {
            command.arg(format!(
                "--bind={}:/var/lib/{folder}",
                place.join(folder).display()
            ));
        }
        // Programs that are on no disk, at the place they have on the computer.
        let root = root()?;
        for folder in [&self.state.executables, &crate::kube::assets()] {
            let is_covered = root.join(folder.strip_prefix("/").unwrap_or(folder)).exists();
            if folder.exists() && !is_covered {
                command.arg(format!("--bind-ro={}", folder.display()));
            }
        }
        mark(&mut command, &self.spec.name);
        // The machine's parameters of its own network can be written, the computer's cannot.
        command.env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network");
        Process::start(command, &self.console(host))
    }

    fn wait_until_up(&mut self, host: usize, mut machine: Process) -> Result<(), LabError> {
        let mut found = None;
        let what = format!("h{host} being up");
        let result = self.wait(&what, PATIENCE, || {
            if let Some(status) = machine.ended() {
                return Err(LabError::Command {
                    command: format!("systemd-nspawn of h{host}"),
                    status: status.to_string(),
                    stderr: tail(&machine.record().log, 10),
                });
            }
            let Some(init) = first_process(machine.pid()) else {
                return Ok(Some("its first process is not there".to_owned()));
            };
            let mut ask = words(&["nsenter", "-t", &init.to_string(), "-m", "-p", "--"]);
            let (_, said, ..) = output(ask.args(["systemctl", "is-system-running"]), "")?;
            if ["running\n", "degraded\n"].contains(&said.as_str()) {
                found = Some(init);
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(50));
            Ok(Some(format!("{said}{}", tail(&machine.record().log, 3))))
        });
        result?;
        let pid = found.unwrap_or_default();
        let holder = Record {
            pid,
            started: stat(pid).map_or(0, |s| s.started),
            log: self.console(host),
        };
        self.hold_host(host, holder)
    }

    /// Waits for the end of a machine, and takes away what the kernel had of it.
    fn wait_until_off(&mut self, host: usize) -> Result<(), LabError> {
        let holder = self.state.holders[host].clone();
        self.wait(&format!("the end of h{host}"), PATIENCE, || {
            let left = holder.alive().then(|| "its first process is there".to_owned());
            Ok(left.or_else(|| nspawn_of(&self.spec.name, host).map(|pid| format!("systemd-nspawn {pid}"))))
        })?;
        remove_network(&self.spec, host)?;
        let name = name_of(&self.spec.name, host);
        group::remove(|group| group == name)
    }
}

/// The first process of a machine, by that of its `systemd-nspawn`.
fn first_process(nspawn: u32) -> Option<u32> {
    all().into_iter().find(|pid| {
        let is_first = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            ids.is_some_and(|ids| ids.split_whitespace().skip(1).last() == Some("1"))
        };
        stat(*pid).is_some_and(|s| s.parent == nspawn && s.state != 'Z') && is_first()
    })
}

/// The `systemd-nspawn` of a machine.
fn nspawn_of(lab: &str, host: usize) -> Option<u32> {
    let word = format!("--machine={}", name_of(lab, host));
    all().into_iter().find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).any(|w| w == word.as_bytes()) && stat(*pid).is_some_and(|s| s.state != 'Z')
    })
}

/// Removes the control groups of a lab's machines, whose processes are gone.
pub(crate) fn remove_groups(lab: &str) -> Result<(), LabError> {
    if !Path::new(&directory(lab)).join("machines").exists() {
        return Ok(());
    }
    group::remove(|group| crate::layout::node_of(group, lab).is_some())
}
