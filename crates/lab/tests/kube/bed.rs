//! Three hosts in a cluster, pods of two of them that ping each other, and what is seen in the kernels while something is done.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lab::kube::Cluster;
use lab::rig::{Rig, Wish};
use lab::rows::{self, Rows};
use lab::store::Kind;
use lab::witness::{ip, json};
use lab::{Families, LabError, Node};
use serde_json::{Value, json};

use crate::peer::Peer;
use crate::pings::Pings;

/// What is aimed at, from the API server's answer to the kernel.
pub const AIM: Duration = Duration::from_secs(1);
/// What fails is that and this: the machine is shared.
const SHARED: Duration = Duration::from_secs(4);
/// What is waited for before a row fails.
const LIMIT: Duration = Duration::from_secs(20);
/// How many hosts: the last is the one whose own Node is worked on.
pub const HOSTS: usize = 3;

pub struct Bed {
    pings: Pings,
    pub rig: Rig,
    /// The hosts as each other's peers.
    pub hosts: Vec<Peer>,
    /// Nodes without a host that are there.
    pub ghosts: Vec<Peer>,
    rows: Rows,
}

impl Bed {
    pub fn new() -> Bed {
        let began = Instant::now();
        let mut wish = Wish::of(Families::Both, json!({ "Type": "vxlan" })).hosts(HOSTS);
        wish.store = Kind::Kube;
        let mut rig = Rig::start(&wish).unwrap();
        rig.lab.add_pods().unwrap();
        let pings = Pings::start(&rig.lab);
        let hosts = (1..=HOSTS).map(|host| peer_of(&rig, host)).collect();
        let mut bed = Bed {
            pings,
            rig,
            hosts,
            ghosts: Vec::new(),
            rows: Rows::new(SHARED, 88),
        };
        bed.rows.say(&format!(
            "\n{HOSTS} hosts in a cluster after {:.1} s\n",
            began.elapsed().as_secs_f64()
        ));
        bed.settled("every host's objects");
        bed
    }

    /// The cluster's administrator.
    pub fn cluster(&self) -> Cluster<'_> {
        self.rig.lab.cluster()
    }

    /// What a host has to hold for the Nodes there are now.
    pub fn expected(&self, host: usize) -> BTreeSet<String> {
        let others = self
            .hosts
            .iter()
            .enumerate()
            .filter(|(index, _)| index + 1 != host);
        others
            .map(|(_, peer)| peer)
            .chain(&self.ghosts)
            .flat_map(Peer::entries)
            .collect()
    }

    /// Whether the pinging hosts hold exactly what they have to, and nothing else.
    ///
    /// # Errors
    /// What the first one that does not has too much (+) and too little (-).
    pub fn is_followed(&self) -> Result<(), String> {
        self.is_followed_on(1)?;
        self.is_followed_on(2)
    }

    /// As [`Bed::is_followed`], of one host.
    pub fn is_followed_on(&self, host: usize) -> Result<(), String> {
        let (now, expected) = (seen(self.rig.lab.host(host)).unwrap(), self.expected(host));
        if now == expected {
            return Ok(());
        }
        Err(format!("h{host}:\n{}", difference(&now, &expected)))
    }

    /// Waits for [`Bed::is_followed`].
    ///
    /// # Errors
    /// As there.
    pub fn follow(&self) -> Result<(), String> {
        until(|| self.is_followed_on(1))?;
        until(|| self.is_followed_on(2))
    }

    /// As [`Bed::follow`], where nothing else makes sense.
    pub fn settled(&self, what: &str) {
        if let Err(difference) = self.follow() {
            panic!("{what}: {difference}\n{}", self.logs());
        }
    }

    /// One row: something is done, from whose end the time is taken until both kernels are as they have to be.
    pub fn row(&mut self, name: &str, deed: impl FnOnce(&mut Bed)) {
        self.row_until(name, AIM, deed, |bed| bed.follow());
    }

    /// As [`Bed::row`], until something else is so, with another aim.
    pub fn row_until(
        &mut self,
        name: &str,
        aim: Duration,
        deed: impl FnOnce(&mut Bed),
        until: impl FnOnce(&mut Bed) -> Result<(), String>,
    ) {
        let daemons: Vec<u32> = self.rig.daemons.iter().map(|daemon| daemon.pid()).collect();
        deed(self);
        let done = Instant::now();
        let result = until(self);
        self.rows.add(name, aim, done, result);
        for (index, daemon) in self.rig.daemons.iter_mut().enumerate() {
            // A row may have started one anew; none may have ended by itself.
            if let Some(status) = daemon.ended() {
                let log = daemon.log();
                panic!(
                    "{name}: h{}'s daemon ({daemons:?}) ended: {status}\n{log}",
                    index + 1
                );
            }
        }
    }

    /// Something is wrong; the rows after it are still of interest.
    pub fn fail(&mut self, problem: String) {
        self.rows.fail(problem);
    }

    /// Ends the daemon of a host, hard.
    pub fn end_daemon(&mut self, host: usize) {
        self.rig.daemons[host - 1].kill();
    }

    /// Puts a Node without a host into the cluster.
    pub fn add(&mut self, ghost: &Peer) {
        self.cluster().add_node(&ghost.node()).unwrap();
        self.ghosts.push(ghost.clone());
    }

    /// Takes it away again.
    pub fn delete(&mut self, ghost: &Peer) {
        self.cluster().delete_node(&ghost.name).unwrap();
        self.forget(ghost);
    }

    /// From here on nothing may be left of it in a kernel.
    pub fn forget(&mut self, ghost: &Peer) {
        self.ghosts.retain(|there| there.name != ghost.name);
    }

    /// In place of the ghost of that name, this one is expected.
    pub fn replace(&mut self, ghost: &Peer) {
        self.forget(ghost);
        self.ghosts.push(ghost.clone());
    }

    fn logs(&self) -> String {
        let logs = self.rig.daemons.iter().map(|daemon| {
            let log = daemon.record().log.clone();
            format!("== {}\n{}", log.display(), lab::process::tail(&log, 15))
        });
        logs.collect::<Vec<_>>().join("\n")
    }

    /// What remains to be asked at the end.
    pub fn close(mut self) {
        let (sent, lost) = self.pings.stop();
        self.rows.say(&format!(
            "pings between the pods of h1 and h2: {sent} sent, lost: {lost:?}"
        ));
        lost.into_iter().for_each(|lost| self.rows.fail(lost));
        if let Err(error) = self.rig.wait_for_health() {
            self.rows.fail(error.to_string());
        }
        for index in 0..HOSTS {
            let text = self
                .rig
                .lab
                .host(index + 1)
                .read(&format!("/proc/{}/status", self.rig.daemons[index].pid()));
            let text = text.unwrap_or_default();
            let high = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let high = high.unwrap_or("?").trim().to_owned();
            self.rows
                .say(&format!("most memory of h{}'s daemon: {high}", index + 1));
        }
        if let Some(failed) = self.rows.failed() {
            panic!("{failed}\n{}", self.logs());
        }
    }
}

/// Asks until it is so.
///
/// # Errors
/// What it was instead at last.
pub fn until(is_so: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    rows::until(LIMIT, is_so)
}

/// What there is too much (+) and too little (-).
pub fn difference(now: &BTreeSet<String>, expected: &BTreeSet<String>) -> String {
    let more = now.difference(expected).map(|entry| format!("+ {entry}"));
    let less = expected.difference(now).map(|entry| format!("- {entry}"));
    more.chain(less).collect::<Vec<_>>().join("\n")
}

/// A host as the others have to know it: its place is the lab's, its devices' addresses are what `ip` shows there.
pub fn peer_of(rig: &Rig, host: usize) -> Peer {
    let node = rig.lab.host(host);
    let mac = |device: &str| {
        let link = lab::witness::link(node, device).unwrap().unwrap_or_default();
        link["address"].as_str().unwrap_or_default().to_owned()
    };
    Peer {
        name: format!("h{host}"),
        subnets: rig.lab.cluster().wait_for_cidrs(&format!("h{host}")).unwrap(),
        address4: rig.lab.spec.host_address(host, 4),
        address6: rig.lab.spec.host_address(host, 6),
        mac4: mac("flannel.1"),
        mac6: mac("flannel-v6.1"),
    }
}

/// What a kernel holds for peers: routes but those it made by itself, permanent neighbours and forwarding entries of our devices.
pub fn seen(node: &Node) -> Result<BTreeSet<String>, LabError> {
    let is_ours = |entry: &Value| {
        ["flannel.1", "flannel-v6.1"]
            .iter()
            .any(|device| entry["dev"] == *device)
    };
    let word = |entry: &Value, key: &str| entry[key].as_str().unwrap_or("nothing").to_owned();
    let mut found = BTreeSet::new();
    for family in ["-4", "-6"] {
        let routes = ip(node, &[family, "route", "show", "table", "main"])?;
        for route in routes.as_array().into_iter().flatten() {
            let (dst, via, dev) = (word(route, "dst"), word(route, "gateway"), word(route, "dev"));
            match route["type"].as_str() {
                Some(kind) if kind != "unicast" => {
                    found.insert(format!("{kind} {dst}"));
                }
                _ if is_ours(route) && route["protocol"] != "kernel" => {
                    found.insert(format!("route {dst} via {via} dev {dev}"));
                }
                _ => {}
            }
        }
        let neighbours = ip(node, &[family, "neigh", "show", "nud", "permanent"])?;
        for entry in neighbours.as_array().into_iter().flatten().filter(|e| is_ours(e)) {
            let (dst, mac, dev) = (word(entry, "dst"), word(entry, "lladdr"), word(entry, "dev"));
            found.insert(format!("neighbour {dst} is {mac} dev {dev}"));
        }
    }
    let text = node.bridge(&["-j", "fdb", "show"])?;
    for entry in json("bridge -j fdb", &text)?.as_array().into_iter().flatten() {
        let device = entry["ifname"].as_str().unwrap_or_default();
        if device.starts_with("flannel") && entry["state"] == "permanent" {
            let (mac, dst) = (word(entry, "mac"), word(entry, "dst"));
            found.insert(format!("forwarding {mac} to {dst} dev {device}"));
        }
    }
    Ok(found)
}
