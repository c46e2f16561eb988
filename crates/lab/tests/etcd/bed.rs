//! Three hosts, pods of two of them that ping each other, leases of hosts that are not there, and what is seen in the kernels.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use lab::flannel::config;
use lab::process::Process;
use lab::rig::{executables, unique_name, vxlan_lease};
use lab::rows::{self, Rows};
use lab::store::{CONFIG_KEY, SUBNETS};
use lab::witness::{Monitor, routes};
use lab::{Families, Lab, Spec};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::pings::Pings;

/// What is aimed at, from the moment etcd can answer.
pub const AIM: Duration = Duration::from_secs(3);
/// What fails is that and this: the machine is shared.
const SHARED: Duration = Duration::from_secs(6);
/// What is waited for before a row fails.
const LIMIT: Duration = Duration::from_secs(45);
/// The third byte of the highest IPv4 subnet, and the fourth word of the highest IPv6 one, that a host draws.
const HIGHEST_DRAWN: u32 = 15;
/// How many hosts: the first two have the pods that ping.
pub const HOSTS: usize = 3;

/// The network config: the hosts draw subnets below those of hosts that are not there.
pub fn network() -> Value {
    let mut network = config(Families::Both, json!({ "Type": "vxlan" }));
    network["SubnetMax"] = json!(format!("10.244.{HIGHEST_DRAWN}.0"));
    network["IPv6SubnetMax"] = json!(format!("fd00:10:244:{HIGHEST_DRAWN:x}::"));
    network
}

pub struct Bed {
    pings: Pings,
    monitors: Vec<Monitor>,
    daemons: Vec<Process>,
    pub cluster: Cluster,
    pub lab: Lab,
    /// Leases of hosts that are not there.
    ghosts: BTreeMap<String, String>,
    next: u32,
    rows: Rows,
}

impl Bed {
    pub fn new() -> Bed {
        let began = Instant::now();
        let mut lab = Lab::up(
            Spec::new(&unique_name(), HOSTS),
            &executables().unwrap(),
            Arc::default(),
        )
        .unwrap();
        let cluster = Cluster::start(&lab, &[]);
        cluster
            .ctl(&lab, &["put", CONFIG_KEY, &network().to_string()])
            .unwrap();
        let flags = cluster.flags();
        let daemons = (1..=HOSTS).map(|host| start(&lab, host, &flags)).collect();
        lab.wait_for_routes(Duration::from_secs(60)).unwrap();
        lab.add_pods().unwrap();
        let pings = Pings::start(&lab);
        let monitors = lab
            .hosts()
            .iter()
            .map(|host| Monitor::start(host, "routes").unwrap())
            .collect();
        let mut bed = Bed {
            pings,
            monitors,
            daemons,
            cluster,
            lab,
            ghosts: BTreeMap::new(),
            next: 0,
            rows: Rows::new(SHARED, 96),
        };
        bed.rows.say(&format!(
            "\n{HOSTS} hosts on three members after {:.1} s\n",
            began.elapsed().as_secs_f64()
        ));
        bed
    }

    /// Something is wrong; the rows after it are still of interest.
    pub fn fail(&mut self, problem: String) {
        self.rows.fail(problem);
    }

    /// The lease of a host that is not there, without an end; not written yet.
    pub fn ghost(&mut self) -> (String, String) {
        self.next += 1;
        let (high, low) = (self.next / 200, self.next % 200);
        let public = format!("198.18.{}.{}", 8 + high, 10 + low);
        let public6 = format!("fd18::8:{high:x}:{low:x}");
        let mac = |family: u32| format!("02:00:00:{family:02x}:{high:02x}:{low:02x}");
        let value = vxlan_lease(&public, Some(&public6), &mac(4), Some(&mac(6)));
        let key = format!(
            "10.244.{}.0-24&fd00:10:244:f{:03x}::-64",
            HIGHEST_DRAWN + 1 + self.next % (255 - HIGHEST_DRAWN),
            self.next
        );
        (format!("{SUBNETS}{key}"), value.to_string())
    }

    /// Writes leases and removes others in one transaction.
    pub fn write(&mut self, new: &[(String, String)], removed: &[String]) {
        self.cluster.write(&self.lab, new, removed);
        for key in removed {
            self.ghosts.remove(key);
        }
        self.ghosts.extend(new.iter().cloned());
    }

    /// From now on these are expected.
    pub fn expect(&mut self, ghosts: &BTreeMap<String, String>) {
        self.ghosts = ghosts.clone();
    }

    /// The leases of hosts that are not there.
    pub fn ghosts(&self) -> BTreeMap<String, String> {
        self.ghosts.clone()
    }

    /// Whether every host has routes to all others and to all ghosts, and to nobody else.
    ///
    /// # Errors
    /// What the first that does not has too much (+) and too little (-).
    pub fn is_followed(&self) -> Result<(), String> {
        (1..=HOSTS).try_for_each(|host| {
            let mut expected: Vec<IpNet> = (1..=HOSTS)
                .filter(|other| *other != host)
                .flat_map(|other| self.lab.env(other).map(|env| env.subnets()).unwrap_or_default())
                .chain(self.ghosts.keys().flat_map(|key| subnets_of(key)))
                .collect();
            expected.sort();
            let mut now: Vec<IpNet> = [4, 6]
                .iter()
                .flat_map(|family| routes(self.lab.host(host), *family).unwrap())
                .filter(|route| route.protocol.as_deref() == Some("241"))
                .filter_map(|route| route.destination())
                .collect();
            now.sort();
            if now == expected {
                return Ok(());
            }
            let more = now
                .iter()
                .filter(|net| !expected.contains(net))
                .map(|net| format!("+{net}"));
            let less = expected
                .iter()
                .filter(|net| !now.contains(net))
                .map(|net| format!("-{net}"));
            let difference: Vec<String> = more.chain(less).take(12).collect();
            Err(format!("h{host}: {}", difference.join(" ")))
        })
    }

    /// One row: something is done, from whose end the time is taken until a lease that is written then is followed everywhere.
    pub fn row(&mut self, name: &str, deed: impl FnOnce(&mut Bed)) {
        self.row_within(name, AIM, deed, Bed::is_followed);
    }

    /// As [`Bed::row`], until something else is so, with another aim.
    pub fn row_within(
        &mut self,
        name: &str,
        aim: Duration,
        deed: impl FnOnce(&mut Bed),
        is_so: impl Fn(&Bed) -> Result<(), String>,
    ) {
        deed(self);
        let done = Instant::now();
        let result = until(|| is_so(self));
        self.rows.add(name, aim, done, result);
        let ended: Vec<usize> = (1..=HOSTS)
            .filter(|host| self.daemons[host - 1].ended().is_some())
            .collect();
        assert!(
            ended.is_empty(),
            "{name}: daemons of hosts {ended:?} ended\n{}",
            self.logs()
        );
    }

    /// Looks for so long whether what the kernels hold stays as it is.
    pub fn stands(&mut self, name: &str, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            if let Err(problem) = self.is_followed() {
                self.fail(format!("{name}: {problem}"));
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// `flannelctl status --json` of a host, whatever its exit status.
    pub fn status(&self, host: usize) -> Value {
        let text = self
            .lab
            .host(host)
            .shell("flannelctl status --json 2>/dev/null || true")
            .unwrap();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// The member that a host is connected to.
    pub fn member_of(&self, host: usize) -> usize {
        let endpoint = self.status(host)["registry"]["endpoint"].clone();
        let endpoint = endpoint.as_str().unwrap_or_default();
        let found = (0..crate::cluster::MEMBERS).find(|member| self.cluster.endpoint(*member) == endpoint);
        found.unwrap_or_else(|| panic!("h{host} is connected to {endpoint:?}"))
    }

    /// Sends every daemon a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        for daemon in &self.daemons {
            daemon.record().signal(signal);
        }
    }

    /// Ends a host's daemon hard, and starts it again with these flags in place of the cluster's.
    pub fn restart(&mut self, host: usize, flags: &[String]) {
        self.daemons[host - 1].kill();
        self.daemons[host - 1] = start(&self.lab, host, flags);
    }

    fn logs(&self) -> String {
        let logs = self.daemons.iter().map(|daemon| {
            let log = daemon.record().log.clone();
            format!("== {}\n{}", log.display(), lab::process::tail(&log, 25))
        });
        logs.collect::<Vec<_>>().join("\n")
    }

    /// What remains to be asked at the end.
    pub fn close(mut self) {
        self.fresh_starts();
        let (sent, lost) = self.pings.stop();
        self.rows.say(&format!(
            "pings between the pods of h1 and h2: {sent} sent, lost: {lost:?}"
        ));
        lost.into_iter().for_each(|lost| self.rows.fail(lost));
        self.live_routes();
        if let Some(failed) = self.rows.failed() {
            panic!("{failed}\n{}", self.logs());
        }
    }

    /// What every kernel holds is what a start from nothing makes of the same leases.
    fn fresh_starts(&mut self) {
        let flags = self.cluster.flags();
        let host = HOSTS;
        let before = lab::fault::kernel_text(self.lab.host(host)).unwrap();
        self.daemons[host - 1].kill();
        self.lab
            .host(host)
            .shell("ip link del flannel.1; ip link del flannel-v6.1; rm -r /run/flannel /var/lib/flannel/*")
            .unwrap();
        self.restart(host, &flags);
        let after = until(|| {
            let after = lab::fault::kernel_text(self.lab.host(host)).unwrap();
            match after == before {
                true => Ok(()),
                false => Err(format!("before:\n{before}\nfresh:\n{after}")),
            }
        });
        if let Err(difference) = after {
            self.fail(format!("h{host} started from nothing is another: {difference}"));
        }
    }

    /// No route to a host that was there all the time was ever taken away.
    fn live_routes(&mut self) {
        let live: Vec<String> = (1..=2)
            .flat_map(|host| self.lab.env(host).unwrap().subnets())
            .map(|net| net.to_string())
            .collect();
        let mut left = Vec::new();
        for (index, monitor) in self.monitors.iter().enumerate().take(2) {
            let lines = monitor.seen(&["Deleted "]);
            left.extend(
                lines
                    .into_iter()
                    .filter(|line| live.iter().any(|net| line.contains(&format!("Deleted {net} "))))
                    .map(|line| format!("h{}: {line}", index + 1)),
            );
        }
        self.rows
            .say(&format!("routes of live hosts that left: {}", left.len()));
        left.into_iter().for_each(|left| self.rows.fail(left));
        for monitor in self.monitors.drain(..) {
            monitor.stop();
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

/// A daemon with these flags for its registry.
fn start(lab: &Lab, host: usize, flags: &[String]) -> Process {
    let mut words = vec!["flanneld", "--iface=eth0", "--ip-masq", "--healthz-port=8081"];
    words.extend(flags.iter().map(String::as_str));
    lab.host(host).spawn("flanneld", &words).unwrap()
}

/// The subnets of a lease's key.
fn subnets_of(key: &str) -> Vec<IpNet> {
    let name = key.strip_prefix(SUBNETS).unwrap_or(key);
    name.split('&')
        .filter_map(|half| half.rsplit_once('-'))
        .filter_map(|(address, length)| format!("{address}/{length}").parse().ok())
        .collect()
}
