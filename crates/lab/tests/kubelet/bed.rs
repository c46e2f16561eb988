//! A cluster of machines, and what its pods notice of what is done to it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lab::kube::Cluster;
use lab::reach::parse_echo;
use lab::rig::{executables, traces, unique_name};
use lab::rows::{Rows, print};
use lab::store::Kind;
use lab::{Families, Lab, LabError, Spec};
use rustix::process::Signal;

use crate::trace;

/// The last host is the one that is drained, deleted and rebooted.
pub const HOSTS: usize = 3;
/// What is waited for before a row fails: the computer is shared, and kubelet takes its time.
pub const LIMIT: Duration = Duration::from_secs(120);
/// Ours.
pub const MANIFEST: &str = "deploy/kube-flannel.yml";

pub struct Bed {
    pub lab: Lab,
    rows: Rows,
}

impl Bed {
    /// Nodes without a network.
    pub fn new() -> Bed {
        let image = image();
        let began = Instant::now();
        let spec = Spec {
            machines: true,
            families: Families::V4,
            ..Spec::new(&unique_name(), HOSTS)
        };
        let mut lab = Lab::up(spec, &executables().unwrap(), Arc::default()).unwrap();
        let machines = began.elapsed();
        lab.start_store(Kind::Kube).unwrap();
        let mut bed = Bed {
            lab,
            // How long a row may take is for its deed to say.
            rows: Rows::new(Duration::ZERO, 0),
        };
        bed.rows.say(&format!(
            "\n{HOSTS} machines after {:.1} s, all of them Nodes after {:.1} s\n",
            machines.as_secs_f64(),
            began.elapsed().as_secs_f64()
        ));
        bed.lab.import_image(&image).unwrap();
        bed
    }

    pub fn cluster(&self) -> Cluster<'_> {
        self.lab.cluster()
    }

    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.cluster()
            .kubectl(arguments, "")
            .unwrap_or_else(|e| panic!("{e}"))
    }

    /// One row: something is done until it is so, while the pods of all hosts but `away` ping each other.
    ///
    /// # Panics
    /// When `deed` does; the rows after it would make no sense.
    pub fn row(&mut self, name: &str, away: &[usize], deed: impl FnOnce(&mut Bed)) {
        let pings = Pings::start(&self.lab, away);
        let start = Instant::now();
        deed(self);
        let took = start.elapsed();
        let (sent, lost, paths) = pings.stop();
        self.line(name, took, &format!("{sent:>6} pings, {lost} lost"));
        if sent == 0 {
            self.fail(format!("{name}: nobody pinged"));
        }
        for path in paths {
            self.fail(format!("{name}: {path}"));
        }
    }

    /// One row in which nobody pings: something is done until it is so.
    pub fn quiet_row(&mut self, name: &str, deed: impl FnOnce(&mut Bed)) {
        let start = Instant::now();
        deed(self);
        self.line(name, start.elapsed(), "");
    }

    fn line(&mut self, name: &str, took: Duration, rest: &str) {
        let line = format!("{name:<100} {:>7.2} s  {rest}", took.as_secs_f64());
        self.rows.say(line.trim_end());
    }

    /// Something is wrong; the rows after it are still of interest.
    pub fn fail(&mut self, problem: String) {
        self.rows.fail(problem);
    }

    /// As [`Bed::until`], of what only looks.
    pub fn wait(&mut self, what: &str, mut missing: impl FnMut(&Bed) -> Option<String>) {
        self.until(what, |bed| Ok(missing(bed)));
    }

    /// What there is to see when something does not come.
    fn condition(&self) -> String {
        let show = |arguments: &[&str]| {
            self.cluster()
                .kubectl(arguments, "")
                .unwrap_or_else(|e| e.to_string())
        };
        format!(
            "{}{}{}",
            show(&["get", "nodes,pods", "-A", "-o", "wide"]),
            show(&[
                "-n",
                "kube-flannel",
                "logs",
                "-l",
                "app=flannel",
                "--all-containers",
                "--tail",
                "20"
            ]),
            show(&["get", "events", "-A"]),
        )
    }

    /// Every Node is ready, every pod of flannel's DaemonSet is the newest and ready, and there is a daemon on every machine.
    pub fn settle(&mut self) {
        self.until("flannel on every Node", |bed| {
            bed.lab.wait_for_flannel()?;
            let on: Vec<usize> = bed.lab.state.daemons.iter().map(|(host, _)| *host).collect();
            Ok((on.len() != HOSTS).then(|| format!("daemons on {on:?}")))
        });
    }

    /// Waits until `missing` names nothing; an error is something missing, too.
    fn until(&mut self, what: &str, mut missing: impl FnMut(&mut Bed) -> Result<Option<String>, LabError>) {
        let start = Instant::now();
        while let Some(lack) = missing(self).unwrap_or_else(|error| Some(error.to_string())) {
            if start.elapsed() > LIMIT {
                panic!("{what}: {lack}\n{}{}", self.rows.text(), self.condition());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends the flannel pod of a host, and waits for the next one.
    pub fn renew_flannel(&mut self, host: usize) {
        let pods = |bed: &Bed| bed.cluster().ready_pods("kube-flannel", "flannel").unwrap();
        let on_host = |bed: &Bed| {
            pods(bed)
                .into_iter()
                .find(|pod| pod.host == host)
                .map(|pod| pod.name)
        };
        let old = on_host(self).unwrap();
        self.kubectl(&["-n", "kube-flannel", "delete", "pod", &old]);
        self.wait(&format!("the next flannel pod of h{host}"), |bed| {
            let next = on_host(bed).filter(|name| *name != old);
            next.is_none().then(|| "none that is ready".to_owned())
        });
    }

    /// Finds the pods that ping, which may be others by now, and waits until they reach each other.
    pub fn find_pods(&mut self) {
        self.until("pods that reach each other", |bed| {
            // What the cluster says of a machine without power is old.
            bed.lab.find_pods()?;
            let pods = &bed.lab.state.pods;
            for from in pods {
                for to in pods.iter().filter(|to| to.host != from.host) {
                    let target = to.address(4).unwrap().to_string();
                    let echo = bed.lab.pod_end(from).ping(&["-c", "1", "-W", "1", &target])?;
                    if echo.is_none_or(|echo| echo.received == 0) {
                        return Ok(Some(format!(
                            "{} -> {}: no answer",
                            from.full_name(),
                            to.full_name()
                        )));
                    }
                }
            }
            Ok(None)
        });
    }

    /// The last host's subnet, as its daemon has written it.
    pub fn subnet_of_last(&self) -> String {
        self.lab.env(HOSTS).unwrap().subnet_of(4).unwrap().to_string()
    }

    /// What the kernels of the other hosts have for the last one, whose subnet this is.
    pub fn peers_of_last(&self, subnet: &str) -> Vec<BTreeSet<String>> {
        let address = self.lab.spec.host4(HOSTS).to_string();
        let of_last = |entry: &String| entry.contains(subnet) || entry.contains(&format!("to {address}"));
        (1..HOSTS)
            .map(|host| {
                trace::of_flannel(self.lab.host(host))
                    .into_iter()
                    .filter(of_last)
                    .collect()
            })
            .collect()
    }

    /// Takes the cluster down, of which nothing may be left.
    ///
    /// # Panics
    /// When a row failed, or something is left.
    pub fn close(self) {
        if let Some(failed) = self.rows.failed() {
            panic!("{failed}\n{}", self.condition());
        }
        let name = self.lab.spec.name.clone();
        let start = Instant::now();
        drop(self.lab);
        assert_eq!(traces(&name).unwrap(), [""; 0]);
        print(&format!(
            "\nnothing is left of it after {:.1} s",
            start.elapsed().as_secs_f64()
        ));
    }
}

/// The image's archive.
pub fn image() -> PathBuf {
    let path = std::env::var_os("FLANNEL_IMAGE");
    let path = path.unwrap_or_else(|| {
        panic!("FLANNEL_IMAGE names the image's archive; `cargo xtask test --suite kubelet` makes it and sets this")
    });
    let path = PathBuf::from(path);
    assert!(path.is_file(), "FLANNEL_IMAGE: no file {}", path.display());
    path
}

/// A file of the repository.
pub fn file(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(name)
        .display()
        .to_string()
}

/// What there is too much (+) and too little (-).
pub fn difference(now: &BTreeSet<String>, expected: &BTreeSet<String>) -> String {
    let more = now.difference(expected).map(|entry| format!("+ {entry}"));
    let less = expected.difference(now).map(|entry| format!("- {entry}"));
    more.chain(less).collect::<Vec<_>>().join("\n")
}

/// Pods that ping each other.
struct Pings(Vec<(String, Child)>);

impl Pings {
    /// Each pod each other one, 100 times a second, but for those on the hosts `away`.
    fn start(lab: &Lab, away: &[usize]) -> Pings {
        let mut running = Vec::new();
        let pods = || lab.state.pods.iter().filter(|pod| !away.contains(&pod.host));
        for from in pods() {
            for to in pods().filter(|to| to.host != from.host) {
                let target = to.address(4).unwrap().to_string();
                let end = lab.pod_end(from);
                // The first packet may wait for neighbours; the count begins after it.
                let warm = end.ping(&["-c", "3", "-i", "0.1", "-W", "3", &target]).unwrap();
                let path = format!("{} -> {}", from.full_name(), to.full_name());
                assert!(warm.is_some_and(|echo| echo.received > 0), "{path}: no answer");
                let mut command = end.command(&["ping", "-n", "-q", "-i", "0.01", "-W", "2", &target]);
                let child = command.stdout(Stdio::piped()).spawn().unwrap();
                running.push((path, child));
            }
        }
        Pings(running)
    }

    /// Ends them: how many were sent and lost, and the paths that lost some, in words.
    fn stop(mut self) -> (u32, u32, Vec<String>) {
        // The answer to the last one is under way.
        std::thread::sleep(Duration::from_millis(200));
        let (mut sent, mut lost, mut paths) = (0, 0, Vec::new());
        for (_, child) in &self.0 {
            lab::process::send(child.id(), Signal::INT);
        }
        for (path, child) in self.0.drain(..) {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let echo = parse_echo(&text).unwrap();
            sent += echo.sent;
            // That last one is ended with.
            if echo.received + 1 < echo.sent {
                lost += echo.sent - echo.received;
                paths.push(format!(
                    "{path}: {} of {} lost",
                    echo.sent - echo.received,
                    echo.sent
                ));
            }
        }
        (sent, lost, paths)
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        for (_, child) in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
