//! A host of a lab on which a container runtime can live: process ids, mounts and control groups of its own, so that whatever the
//! runtime leaves goes with it. Its root file system is read-only: a runtime that writes elsewhere than into its own folders fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lab::command::{LabError, run, words};
use lab::process::{Process, all, send, stat};
use lab::{Lab, Node};
use rustix::process::Signal;

use crate::place::Place;

/// Everything of the runtimes on a machine; a tmpfs.
pub const HOME: &str = "/run/machine";
/// Root file system of the containers: a static busybox.
pub const ROOTFS: &str = "/run/machine/rootfs";
/// The plugins; bound over Debian's own, where podman and ctr look without being told.
pub const PLUGIN_FILES: &str = "/run/machine/plugins";

/// A host with room for runtimes.
pub struct Machine {
    /// The host.
    pub node: Node,
    holder: Process,
    init: u32,
    group: String,
    mount: PathBuf,
}

/// Two steps, because a control group namespace begins where its first process is.
const STAND: &str = r#"
mount -t proc proc /proc
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /sys/fs/cgroup/$1
echo 0 >/sys/fs/cgroup/$1/cgroup.procs
exec unshare --cgroup sh -ec '
    umount /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mkdir /sys/fs/cgroup/init
    echo 0 >/sys/fs/cgroup/init/cgroup.procs
    mount -t tmpfs -o mode=1777 flannel-lab /dev/shm
    mount --bind /run/machine/plugins /usr/lib/cni
    mount -o remount,bind,ro /
    echo ready
    sleep infinity &
    while :; do wait; done'
"#;

impl Machine {
    /// Makes the namespaces on a host of the lab.
    pub fn start(lab: &Lab, host: usize) -> Machine {
        let node = lab.host(host).clone();
        for folder in ["plugins", "home", "tmp", "rootfs"] {
            fs::create_dir_all(node.path(&format!("{HOME}/{folder}"))).unwrap();
        }
        let mount = lab.spec.directory().join(format!("groups{host}"));
        fs::create_dir(&mount).unwrap();
        let group = format!("flannel-lab-{}-h{host}", lab.spec.name);
        // Those of a test that was killed: its lab is gone. Another test may be faster, or still at it.
        let _ = remove_groups(&mount, |name| {
            let name = name
                .strip_prefix("flannel-lab-")
                .and_then(|n| n.rsplit_once("-h"));
            name.is_some_and(|(lab, _)| !lab::layout::directory(lab).exists())
        });
        let holder = node
            .spawn(
                "machine",
                &[
                    "unshare",
                    "--mount",
                    "--pid",
                    "--fork",
                    "--kill-child",
                    "--propagation",
                    "private",
                    "sh",
                    "-ec",
                    STAND,
                    "sh",
                    &group,
                ],
            )
            .unwrap();
        let mut machine = Machine {
            node,
            holder,
            init: 0,
            group,
            mount,
        };
        wait("the machine stands", || {
            let log = machine.holder.log();
            (log != "ready\n").then_some(log)
        });
        let parent = machine.holder.pid();
        let init = all()
            .into_iter()
            .find(|pid| stat(*pid).is_some_and(|s| s.parent == parent));
        machine.init = init.unwrap();
        machine.fill_rootfs();
        machine
    }

    /// Shell, pages of a web server, a large file.
    fn fill_rootfs(&self) {
        let root = self.node.path(ROOTFS);
        for folder in ["bin", "dev", "etc", "proc", "run", "srv", "sys", "tmp"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        fs::write(root.join("srv/large"), vec![b'x'; LARGE]).unwrap();
    }

    /// A page only this container serves: its name.
    pub fn add_page(&self, container: &str) -> String {
        let folder = format!("/srv/{container}");
        let root = self.node.path(&format!("{ROOTFS}{folder}"));
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("name"), container).unwrap();
        if !root.join("large").exists() {
            std::os::unix::fs::symlink("../large", root.join("large")).unwrap();
        }
        folder
    }

    /// A command on the machine.
    pub fn command(&self, program: &[&str]) -> Command {
        let init = self.init.to_string();
        let mut all = vec!["nsenter", "-t", &init, "-m", "-p", "-C", "--", "sh", "-c"];
        all.push("echo 0 >/sys/fs/cgroup/init/cgroup.procs; cd /; exec \"$@\"");
        all.push("sh");
        all.extend(program);
        let mut command = self.node.command(&all);
        for (name, path) in [
            ("HOME", "home"),
            ("TMPDIR", "tmp"),
            ("CONTAINERS_CONF", "podman/containers.conf"),
            ("CONTAINERS_STORAGE_CONF", "podman/storage.conf"),
            ("CONTAINERD_ADDRESS", "containerd/socket"),
        ] {
            command.env(name, format!("{HOME}/{path}"));
        }
        for name in ["XDG_RUNTIME_DIR", "CONTAINER_HOST", "CONTAINERD_NAMESPACE"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs one to its end; gives its stdout.
    pub fn run(&self, program: &[&str]) -> Result<String, LabError> {
        run(&mut self.command(program))
    }

    /// Starts one; the log is the lab's `hN-LABEL.log`.
    pub fn spawn(&self, label: &str, program: &[&str]) -> Process {
        let log = self
            .mount
            .with_file_name(format!("{}-{label}.log", self.node.name));
        Process::start(self.command(program), &log).unwrap()
    }

    /// The network of a process, by its id on the machine.
    pub fn place_of(&self, name: &str, pid: u32) -> Place {
        Place {
            name: name.to_owned(),
            netns: format!("/proc/{}/root/proc/{pid}/ns/net", self.init).into(),
        }
    }

    /// Waits until the web server of a container is up, as the container itself sees it.
    pub fn wait_for_server(&self, place: &Place) {
        wait("a web server", || {
            let heard = place.get([127, 0, 0, 1].into(), 80, "name");
            (heard != place.name).then(|| format!("{} heard {heard:?}", place.name))
        });
    }

    /// The host itself.
    pub fn place(&self) -> Place {
        Place {
            name: self.node.name.clone(),
            netns: self.node.network_file(),
        }
    }

    /// kill -9 to the processes of the machine and its containers whose command line has all of these words: one at least.
    pub fn kill(&self, having: &[&str]) {
        let found = self.processes(having);
        assert!(!found.is_empty(), "no process with {having:?}");
        for pid in found {
            send(pid, Signal::KILL);
        }
        wait("the end of processes", || {
            let left = self.processes(having);
            (!left.is_empty()).then(|| format!("{having:?}: {left:?}"))
        });
    }

    fn processes(&self, having: &[&str]) -> Vec<u32> {
        let mut found = all();
        found.retain(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let group = || fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            having.iter().all(|word| line.contains(word)) && group().contains(&self.group)
        });
        found
    }

    /// Names in a folder as the machine sees it.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let path = format!("/proc/{}/root{folder}", self.init);
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The first process of the machine takes all others with it, wherever their namespaces and groups are.
        if self.init != 0 {
            send(self.init, Signal::KILL);
            let _ = self.holder.wait(Duration::from_secs(10));
        }
        self.holder.kill();
        let start = Instant::now();
        // A group is busy until its last process is reaped.
        while let Err(e) = remove_groups(&self.mount, |name| name == self.group) {
            if start.elapsed() > Duration::from_secs(10) {
                assert!(
                    std::thread::panicking(),
                    "control group {} stays: {e}",
                    self.group
                );
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Removes control groups by their names, in the hierarchy that the kernel has whatever is mounted here.
fn remove_groups(mount: &Path, is_ours: impl Fn(&str) -> bool) -> Result<(), LabError> {
    let mount = mount.display().to_string();
    let within = |script: &str, arguments: &[&str]| {
        let script = format!("mount -t cgroup2 cgroup2 $1; cd $1; shift; {script}");
        let mut command = words(&[
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-ec",
            &script,
            "sh",
            &mount,
        ]);
        run(command.args(arguments))
    };
    let names = within("ls", &[])?;
    let ours: Vec<&str> = names.lines().filter(|name| is_ours(name)).collect();
    match ours.is_empty() {
        true => Ok(()),
        false => within("find \"$@\" -depth -type d -exec rmdir {} +", &ours).map(drop),
    }
}

/// Bytes of the large file every container serves.
pub const LARGE: usize = 1_000_000;

/// Waits until nothing is missing any more: generously, because other tests run beside.
pub fn wait(what: &str, mut missing: impl FnMut() -> Option<String>) {
    let start = Instant::now();
    while let Some(lack) = missing() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}: {lack}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
