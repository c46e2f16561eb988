//! Building a lab, finding it again, and removing it without a trace.

pub(crate) mod build;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::command::{LabError, file, run_with_input, words};
use crate::layout::{MARK, STATE_ROOT, Spec, directory, node_of, validate_name};
use crate::node::Node;
use crate::pod::Pod;
use crate::process::{Record, all, send, stat};
use crate::store::Store;

/// What a lab keeps on disk, so that another process can enter it and take it down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// As asked for.
    pub spec: Spec,
    /// Stays up when the process that made it ends.
    pub kept: bool,
    /// The process that made it.
    pub owner: Record,
    /// Directory of `flanneld`, `flannel-cni`, `flannelctl`.
    pub executables: PathBuf,
    /// Holder of the switch, then of every host; of a machine that is its first process, when it was last up.
    pub holders: Vec<Record>,
    /// Holder of every machine's disk, by host; none where hosts are no machines.
    #[serde(default)]
    pub disks: Vec<Record>,
    /// The registry, once it runs.
    pub store: Option<Store>,
    /// Type of the backend, for display.
    pub backend: String,
    /// Daemons by host number (from 1), as last started.
    pub daemons: Vec<(usize, Record)>,
    /// Pods in the order of their making.
    pub pods: Vec<Pod>,
}

/// A lab. Dropping it takes it down, unless it was told to [`Lab::keep`].
#[derive(Debug)]
pub struct Lab {
    /// As asked for.
    pub spec: Spec,
    /// What is on disk; call [`Lab::save`] after a change.
    pub state: State,
    switch: Node,
    hosts: Vec<Node>,
    owned: bool,
    interrupt: Arc<AtomicBool>,
}

impl Lab {
    /// Builds hosts, switch and links. `executables` holds the programs under test.
    ///
    /// When `interrupt` becomes true, building (and every wait of the lab) ends with [`LabError::Interrupted`], and
    /// what was built so far goes with the error.
    pub fn up(spec: Spec, executables: &Path, interrupt: Arc<AtomicBool>) -> Result<Lab, LabError> {
        spec.validate()?;
        if !rustix::process::geteuid().is_root() {
            return Err(LabError::Invalid(
                "a lab makes network namespaces: it needs root".to_owned(),
            ));
        }
        sweep();
        let directory = spec.directory();
        file(STATE_ROOT, fs::create_dir_all(STATE_ROOT))?;
        match fs::create_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(LabError::Exists(spec.name));
            }
            other => file(&directory, other)?,
        }
        // From here on, whatever happens, this takes down what is there.
        let guard = Guard {
            name: spec.name.clone(),
            armed: true,
        };
        let pid = std::process::id();
        let owner = Record {
            pid,
            started: stat(pid).map_or(0, |s| s.started),
            log: directory.join("state.json"),
        };
        let mut state = State {
            spec: spec.clone(),
            kept: false,
            owner,
            executables: executables.to_owned(),
            holders: Vec::new(),
            disks: Vec::new(),
            store: None,
            backend: String::new(),
            daemons: Vec::new(),
            pods: Vec::new(),
        };
        save(&state)?;
        build::namespaces(&spec)?;
        if interrupt.load(Ordering::Relaxed) {
            return Err(LabError::Interrupted);
        }
        state.holders = build::holders(&spec, executables)?;
        if spec.machines {
            state.disks = state.holders.split_off(1);
            state.holders.extend(state.disks.clone());
        }
        save(&state)?;
        if interrupt.load(Ordering::Relaxed) {
            return Err(LabError::Interrupted);
        }
        let mut lab = Lab::assemble(state, interrupt, true)?;
        guard.disarm();
        if lab.spec.machines {
            lab.boot_all()?;
        }
        Ok(lab)
    }

    /// Finds a lab that is up.
    pub fn load(name: &str) -> Result<Lab, LabError> {
        validate_name(name)?;
        let path = directory(name).join("state.json");
        let text = fs::read_to_string(&path).map_err(|_| LabError::Missing {
            what: "lab",
            name: name.to_owned(),
            hint: hint(),
        })?;
        let state: State = serde_json::from_str(&text).map_err(|e| LabError::Output {
            command: path.display().to_string(),
            problem: e.to_string(),
        })?;
        Lab::assemble(state, Arc::default(), false)
    }

    fn assemble(state: State, interrupt: Arc<AtomicBool>, owned: bool) -> Result<Lab, LabError> {
        let spec = state.spec.clone();
        let mut nodes = Vec::new();
        for (name, holder) in node_names(&spec).iter().zip(&state.holders) {
            nodes.push(Node::new(&spec, name, &state.executables, holder.clone()));
        }
        // A machine may be off; its disk is there.
        let held = match state.disks.as_slice() {
            [] => nodes.iter().all(|n| n.holder().alive()),
            disks => nodes.first().is_some_and(|n| n.holder().alive()) && disks.iter().all(Record::alive),
        };
        if nodes.len() != spec.hosts + 1 || !held {
            return Err(LabError::Missing {
                what: "lab",
                name: spec.name.clone(),
                hint: format!(
                    "it is half built or half gone; `flannelctl lab down --name {}`",
                    spec.name
                ),
            });
        }
        let switch = nodes.remove(0);
        Ok(Lab {
            spec,
            state,
            switch,
            hosts: nodes,
            owned,
            interrupt,
        })
    }

    /// Lets the lab stay when this process ends.
    pub fn keep(&mut self) -> Result<(), LabError> {
        self.state.kept = true;
        self.owned = false;
        self.save()
    }

    /// Writes the state to disk.
    pub fn save(&self) -> Result<(), LabError> {
        save(&self.state)
    }

    /// Host N, from 1.
    ///
    /// # Panics
    /// When there is no such host: hosts are numbered by the caller's own [`Spec`].
    pub fn host(&self, number: usize) -> &Node {
        &self.hosts[number - 1]
    }

    /// All hosts.
    pub fn hosts(&self) -> &[Node] {
        &self.hosts
    }

    /// A host has another holder from here on.
    pub(crate) fn hold_host(&mut self, host: usize, holder: Record) -> Result<(), LabError> {
        self.hosts[host - 1] = Node::new(
            &self.spec,
            &format!("h{host}"),
            &self.state.executables,
            holder.clone(),
        );
        self.state.holders[host] = holder;
        self.save()
    }

    /// The switch's namespace.
    pub fn switch(&self) -> &Node {
        &self.switch
    }

    /// A host, the switch, or the host of a pod, by the name a person types: `h2`, `2`, `sw`, `h2-p1`. Of a pod also
    /// its name inside the host.
    pub fn find(&self, name: &str) -> Result<(&Node, Option<&Pod>), LabError> {
        if name == "sw" {
            return Ok((&self.switch, None));
        }
        if let Some(pod) = self.state.pods.iter().find(|p| p.full_name() == name) {
            return Ok((self.host(pod.host), Some(pod)));
        }
        let number = name.strip_prefix('h').unwrap_or(name).parse::<usize>().ok();
        match number.filter(|n| (1..=self.hosts.len()).contains(n)) {
            Some(number) => Ok((self.host(number), None)),
            None => Err(LabError::Missing {
                what: "node or pod",
                name: name.to_owned(),
                hint: self.inventory(),
            }),
        }
    }

    fn inventory(&self) -> String {
        let mut text = format!("there are h1 to h{}, sw", self.hosts.len());
        for pod in self.state.pods.iter().take(8) {
            let _ = write!(text, ", {}", pod.full_name());
        }
        text
    }

    /// [`LabError::Interrupted`] once somebody pressed Ctrl-C.
    pub fn check(&self) -> Result<(), LabError> {
        if self.interrupt.load(Ordering::Relaxed) {
            Err(LabError::Interrupted)
        } else {
            Ok(())
        }
    }

    /// Asks `missing` until it says nothing is missing any more. Asks often: the time it took is the return value.
    pub fn wait(
        &self,
        what: &str,
        limit: Duration,
        mut missing: impl FnMut() -> Result<Option<String>, LabError>,
    ) -> Result<Duration, LabError> {
        let start = Instant::now();
        loop {
            let Some(lack) = missing()? else {
                return Ok(start.elapsed());
            };
            self.check()?;
            if start.elapsed() > limit {
                let what = what.to_owned();
                return Err(LabError::Timeout {
                    what,
                    seconds: limit.as_secs(),
                    missing: lack,
                });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Takes the switch's port of a host away (frames are dropped both ways; the host's carrier stays).
    pub fn cut(&self, host: usize) -> Result<(), LabError> {
        self.switch
            .ip(&["link", "set", &port(host), "nomaster"])
            .map(|_| ())
    }

    /// Gives it back.
    pub fn heal(&self, host: usize) -> Result<(), LabError> {
        let bridge = bridge(self.spec.segment(host));
        self.switch
            .ip(&["link", "set", &port(host), "master", &bridge])
            .map(|_| ())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.owned {
            let _ = remove(&self.spec.name);
        }
    }
}

/// Name of a host's port on the switch.
pub fn port(host: usize) -> String {
    format!("p{host}")
}

/// Name of a segment's bridge on the switch.
pub fn bridge(segment: usize) -> String {
    format!("segment{segment}")
}

/// Names of the labs there are, whole or half.
pub fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(STATE_ROOT)
        .map(|entries| {
            entries
                .filter_map(|e| e.ok()?.file_name().into_string().ok())
                .collect()
        })
        .unwrap_or_default();
    names.sort();
    names
}

fn hint() -> String {
    let names = names();
    if names.is_empty() {
        "`flannelctl lab up` makes one".to_owned()
    } else {
        format!("there is {}; use --name", names.join(", "))
    }
}

/// Removes labs whose maker was killed before it could.
fn sweep() {
    for name in names() {
        let state = fs::read_to_string(directory(&name).join("state.json")).ok();
        let state = state.and_then(|text| serde_json::from_str::<State>(&text).ok());
        if state.is_some_and(|s| !s.kept && !s.owner.alive()) {
            let _ = remove(&name);
        }
    }
}

struct Guard {
    name: String,
    armed: bool,
}

impl Guard {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.armed {
            let _ = remove(&self.name);
        }
    }
}

/// Ends every process of a lab, removes its namespaces and files. What is already gone is no error; the answer is
/// whether there was anything.
pub fn remove(name: &str) -> Result<bool, LabError> {
    validate_name(name)?;
    let spaces: Vec<String> = fs::read_dir("/run/netns")
        .map(|entries| {
            let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
            names.filter(|n| node_of(n, name).is_some()).collect()
        })
        .unwrap_or_default();
    let directory = directory(name);
    let ended = end_processes(name, &spaces)?;
    if !spaces.is_empty() {
        let lines: String = spaces.iter().map(|s| format!("netns del {s}\n")).collect();
        run_with_input(&mut words(&["ip", "-force", "-batch", "-"]), &lines)?;
    }
    crate::machine::remove_groups(name)?;
    let found = ended > 0 || !spaces.is_empty() || directory.exists();
    if directory.exists() {
        file(&directory, fs::remove_dir_all(&directory))?;
    }
    // The last lab takes the parent with it.
    let _ = fs::remove_dir(STATE_ROOT);
    Ok(found)
}

/// Kills until there is nothing left: what carries the lab's mark or lives in one of its network namespaces.
fn end_processes(name: &str, spaces: &[String]) -> Result<usize, LabError> {
    let inodes: BTreeSet<u64> = spaces
        .iter()
        .filter_map(|s| Some(fs::metadata(Path::new("/run/netns").join(s)).ok()?.ino()))
        .collect();
    let marker = format!("{MARK}={name}");
    let (me, start) = (std::process::id(), Instant::now());
    let mut seen = BTreeSet::new();
    loop {
        let mut left = Vec::new();
        for pid in all() {
            if pid == me || stat(pid).is_none_or(|s| s.state == 'Z') {
                continue;
            }
            let inside = fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|m| inodes.contains(&m.ino()));
            if inside || carries(pid, &marker) {
                left.push(pid);
            }
        }
        if left.is_empty() {
            return Ok(seen.len());
        }
        if start.elapsed() > Duration::from_secs(10) {
            return Err(LabError::Timeout {
                what: format!("the end of the processes of lab {name}"),
                seconds: 10,
                missing: format!("processes {left:?} do not die"),
            });
        }
        for pid in left {
            seen.insert(pid);
            send(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn carries(pid: u32, marker: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ")).is_ok_and(|text| {
        text.split(|b| *b == 0)
            .any(|variable| variable == marker.as_bytes())
    })
}

fn save(state: &State) -> Result<(), LabError> {
    let path = state.spec.directory().join("state.json");
    let new = path.with_extension("new");
    let text = serde_json::to_string_pretty(state).map_err(|e| LabError::Output {
        command: path.display().to_string(),
        problem: e.to_string(),
    })?;
    file(&new, fs::write(&new, text))?;
    file(&path, fs::rename(&new, &path))
}

fn node_names(spec: &Spec) -> Vec<String> {
    std::iter::once("sw".to_owned())
        .chain((1..=spec.hosts).map(|n| format!("h{n}")))
        .collect()
}
