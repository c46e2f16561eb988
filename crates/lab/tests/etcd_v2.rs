//! flannel as documents of etcd's v2 days set it up: three members with TLS and client certificates, the config and all looks by
//! `etcdctl set`, `mk`, `ls`, `get` of the v2 API as they are typed there; and what may happen to such a cluster, while pods ping each other.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use lab::process::Process;
use lab::rig::{executables, unique_name, vxlan_lease};
use lab::rows::{Rows, until};
use lab::witness::{Monitor, routes};
use lab::{Families, Lab, Spec};
use serde_json::Value;

#[allow(dead_code)] // The suite of the v3 API does more to it.
#[path = "etcd/cluster.rs"]
mod cluster;
#[path = "kube/pings.rs"]
mod pings;

use cluster::{Cluster, MEMBERS};
use pings::Pings;

/// What is aimed at, from the moment etcd can answer.
const AIM: Duration = Duration::from_secs(3);
/// What fails is that and this: the machine is shared.
const SHARED: Duration = Duration::from_secs(7);
/// What is waited for before a row fails.
const LIMIT: Duration = Duration::from_secs(45);
const HOSTS: usize = 3;
/// As the documents have it.
const CONFIG: &str =
    r#"{"Network":"172.20.0.0/16","SubnetLen":24,"SubnetMax":"172.20.15.0","Backend":{"Type":"vxlan"}}"#;
const KEY: &str = "/coreos.com/network/config";
const SUBNETS: &str = "/coreos.com/network/subnets";
/// Events that the v2 store remembers.
const MEMORY: usize = 1000;

struct Bed {
    daemons: Vec<Process>,
    cluster: Cluster,
    lab: Lab,
    ghosts: Vec<u8>,
    rows: Rows,
}

impl Bed {
    fn new() -> Bed {
        let mut spec = Spec::new(&unique_name(), HOSTS);
        spec.families = Families::V4;
        let lab = Lab::up(spec, &executables().unwrap(), Arc::default()).unwrap();
        let cluster = Cluster::start(&lab, &["--enable-v2"]);
        let mut bed = Bed {
            daemons: Vec::new(),
            cluster,
            lab,
            ghosts: Vec::new(),
            rows: Rows::new(SHARED, 104),
        };
        for host in 1..=HOSTS {
            let daemon = bed.daemon(host, &[]);
            bed.daemons.push(daemon);
        }
        bed
    }

    fn daemon(&self, host: usize, more: &[&str]) -> Process {
        let flags = self.cluster.flags();
        let mut words = vec!["flanneld", "--iface=eth0", "--ip-masq", "--healthz-port=8081"];
        words.extend(flags.iter().map(String::as_str));
        words.extend(more);
        self.lab.host(host).spawn("flanneld", &words).unwrap()
    }

    /// `etcdctl` of the v2 API with the flags that the documents give it, and this behind.
    fn ctl(&self, typed: &str) -> Result<String, String> {
        let folder = self.cluster.folder().display().to_string();
        let command = format!(
            "ETCDCTL_API=2 etcdctl --ca-file={folder}/ca.crt --cert-file={folder}/client.crt --key-file={folder}/client.key --endpoints=\"{}\" {typed}",
            self.cluster.endpoints()
        );
        self.lab
            .switch()
            .shell(&command)
            .map_err(|error| error.to_string())
    }

    /// The same until a member takes it: one that lost its leader may leave a request unanswered.
    fn insist(&self, typed: &str) -> String {
        let start = Instant::now();
        loop {
            match self.ctl(typed) {
                Ok(said) => return said,
                Err(why) => assert!(start.elapsed() < LIMIT, "{typed}: {why}"),
            }
        }
    }

    /// The lease of a host that is not there, as it would write it.
    fn join(&mut self, number: u8) {
        let value = vxlan_lease(
            &format!("198.18.9.{number}"),
            None,
            &format!("02:00:00:00:09:{number:02x}"),
            None,
        );
        self.insist(&format!(
            "set --ttl 86400 {SUBNETS}/172.20.{number}.0-24 '{value}'"
        ));
        self.ghosts.push(number);
    }

    fn leave(&mut self, number: u8) {
        self.insist(&format!("rm {SUBNETS}/172.20.{number}.0-24"));
        self.ghosts.retain(|ghost| *ghost != number);
    }

    fn subnet(&self, host: usize) -> Option<IpNet> {
        self.lab.env(host).ok()?.subnet_of(4)
    }

    fn is_followed(&self) -> Result<(), String> {
        (1..=HOSTS).try_for_each(|host| {
            let others = (1..=HOSTS).filter(|other| *other != host);
            let mut expected: Vec<IpNet> = others.filter_map(|other| self.subnet(other)).collect();
            if expected.len() < HOSTS - 1 {
                return Err("not every host has a subnet".to_owned());
            }
            expected.extend(
                self.ghosts
                    .iter()
                    .map(|ghost| format!("172.20.{ghost}.0/24").parse::<IpNet>().unwrap()),
            );
            expected.sort();
            let there = routes(self.lab.host(host), 4).unwrap();
            let ours = there
                .iter()
                .filter(|route| route.protocol.as_deref() == Some("241"));
            let mut now: Vec<IpNet> = ours.filter_map(|route| route.destination()).collect();
            now.sort();
            match now == expected {
                true => Ok(()),
                false => Err(format!("h{host}: {now:?} instead of {expected:?}")),
            }
        })
    }

    fn row(
        &mut self,
        name: &str,
        aim: Duration,
        deed: impl FnOnce(&mut Bed),
        is_so: impl Fn(&Bed) -> Result<(), String>,
    ) {
        deed(self);
        let done = Instant::now();
        let result = until(LIMIT, || is_so(self));
        self.rows.add(name, aim, done, result);
        for daemon in &mut self.daemons {
            assert!(
                daemon.ended().is_none(),
                "{name}: a daemon ended: {}",
                daemon.record().log.display()
            );
        }
    }
}

fn is_written_as_by_go(bed: &Bed) {
    let listed = bed.insist(&format!("ls {SUBNETS}"));
    assert_eq!(listed.lines().count(), HOSTS, "{listed}");
    for key in listed.lines() {
        let text = bed.insist(&format!("get {key}"));
        let value: Value = serde_json::from_str(&text).unwrap();
        let address = value["PublicIP"].as_str().unwrap();
        let mac = value["BackendData"]["VtepMAC"].as_str().unwrap();
        let expected = format!(
            r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        );
        assert_eq!(text.trim_end(), expected);
        let extended = bed.insist(&format!("-o extended get {key}"));
        let ttl = extended
            .lines()
            .find_map(|line| line.strip_prefix("TTL: "))
            .unwrap();
        assert!(
            (86_000..=86_400).contains(&ttl.trim().parse().unwrap()),
            "{extended}"
        );
    }
    assert!(bed.insist(&format!("get {KEY}")).contains("172.20.0.0/16"));
}

/// As docs/operations.md has it: copied, every node restarted, finished.
fn move_to_v3(bed: &mut Bed) {
    // Nobody could take these up.
    for ghost in bed.ghosts.clone() {
        bed.leave(ghost);
    }
    bed.row(
        "they are to move to v3: what is not there is gone",
        AIM,
        |_| {},
        Bed::is_followed,
    );
    let folder = bed.cluster.folder().display().to_string();
    let migrate = |bed: &Bed, more: &str| {
        let command = format!(
            "flannelctl registry migrate --from v2 --to v3 --endpoints {} --cafile {folder}/ca.crt --certfile {folder}/client.crt --keyfile {folder}/client.key {more} 2>&1",
            bed.cluster.endpoint(0)
        );
        bed.lab.switch().shell(&command)
    };
    let planned = migrate(bed, "--dry-run").unwrap();
    assert_eq!(planned.matches("would write").count(), HOSTS + 1, "{planned}");
    let copied = migrate(bed, "").unwrap();
    assert_eq!(planned.replace("would write", "wrote      "), copied);
    let early = migrate(bed, "--finish").unwrap_err().to_string();
    assert!(early.contains("stays"), "nobody has moved yet: {early}");
    // By then who takes a lease up has prolonged it by more than the rounding of both APIs.
    std::thread::sleep(Duration::from_secs(10));
    for host in 1..=HOSTS {
        bed.row(
            &format!("    h{host} starts with --etcd-api=v3"),
            AIM,
            |bed| {
                bed.daemons[host - 1].kill();
                bed.daemons[host - 1] = bed.daemon(host, &["--etcd-api=v3"]);
            },
            |bed| {
                bed.is_followed()?;
                let text = bed.lab.host(host).shell("flannelctl status || true").unwrap();
                text.contains("etcd v3").then_some(()).ok_or(text)
            },
        );
    }
    let finished = migrate(bed, "--finish").unwrap();
    assert_eq!(finished.matches("removed").count(), HOSTS + 1, "{finished}");
    assert!(bed.ctl(&format!("get {KEY}")).is_err(), "nothing is under v2");
    assert_eq!(bed.insist(&format!("ls {SUBNETS}")).trim(), "");
    bed.row("    all are ready", AIM, |_| {}, |bed| bed.lab.all_ready());
    bed.row(
        "    and h1 without the flag",
        AIM,
        |bed| {
            bed.daemons[0].kill();
            bed.daemons[0] = bed.daemon(1, &[]);
        },
        |bed| {
            bed.is_followed()?;
            bed.lab.all_say("etcd v3")
        },
    );
}

#[test]
fn nodes_of_a_v2_cluster_come_up_as_the_documents_say_and_follow_it_whatever_happens() {
    let mut bed = Bed::new();
    bed.row(
        "no config yet: every node says that neither API has one",
        AIM,
        |_| {},
        |bed| bed.lab.all_say("in the registry (etcd v3 and v2)"),
    );
    bed.row(
        "etcdctl set /coreos.com/network/config < flannel-config.json: every node has a subnet and all routes",
        AIM,
        |bed| {
            let file = bed.cluster.folder().join("flannel-config.json");
            std::fs::write(&file, CONFIG).unwrap();
            bed.insist(&format!("set {KEY} < {}", file.display()));
        },
        Bed::is_followed,
    );
    bed.row(
        "    and is ready, by its own word",
        AIM,
        |_| {},
        |bed| bed.lab.all_ready(),
    );
    bed.row(
        "    and says what it speaks",
        AIM,
        |_| {},
        |bed| bed.lab.all_say("etcd v2"),
    );
    is_written_as_by_go(&bed);
    assert!(bed.ctl(&format!("mk {KEY} x")).is_err(), "it is there already");

    bed.row("a node joins", AIM, |bed| bed.join(20), Bed::is_followed);
    bed.row("    and leaves", AIM, |bed| bed.leave(20), Bed::is_followed);
    let own = bed.subnet(1).unwrap();
    bed.row(
        "the lease of h1 is removed: it is there again, the same",
        AIM,
        |bed| {
            bed.insist(&format!("rm {SUBNETS}/{}", own.to_string().replace('/', "-")));
        },
        |bed| {
            bed.is_followed()?;
            bed.ctl(&format!("get {SUBNETS}/{}", own.to_string().replace('/', "-")))
                .map(|_| ())
        },
    );
    bed.lab.add_pods().unwrap();
    let mut pings = Pings::start(&bed.lab);
    let monitors: Vec<Monitor> = bed
        .lab
        .hosts()
        .iter()
        .map(|host| Monitor::start(host, "routes").unwrap())
        .collect();

    for member in 0..MEMBERS {
        let number = 30 + u8::try_from(member).unwrap();
        bed.row(
            &format!("member {member} is killed, and a node joins"),
            AIM,
            |bed| {
                bed.cluster.kill(member);
                bed.join(number);
            },
            Bed::is_followed,
        );
        bed.cluster.run_all(&bed.lab);
    }
    let leader = bed.cluster.leader(&bed.lab);
    bed.row(
        "the leader is killed, and a node joins",
        AIM,
        |bed| {
            bed.cluster.kill(leader);
            bed.join(39);
        },
        Bed::is_followed,
    );
    bed.cluster.run_all(&bed.lab);
    bed.row(
        "all members are killed: every node says that what it has is stale",
        Duration::from_secs(10),
        |bed| bed.cluster.kill_all(),
        |bed| bed.lab.all_say("stale: "),
    );
    bed.row(
        "    they are back, and a node joins",
        AIM,
        |bed| {
            bed.cluster.run_all(&bed.lab);
            bed.join(40);
        },
        Bed::is_followed,
    );
    bed.row("    all are ready", AIM, |_| {}, |bed| bed.lab.all_ready());
    bed.row(
        "more has happened than the store remembers while the daemons were held; nodes have come and gone",
        AIM,
        |bed| {
            bed.signal(rustix::process::Signal::STOP);
            bed.join(50);
            bed.leave(40);
            bed.forget();
            bed.signal(rustix::process::Signal::CONT);
        },
        Bed::is_followed,
    );
    bed.row(
        "h2's daemon is killed and starts again: the same subnet",
        AIM,
        |bed| {
            bed.daemons[1].kill();
            bed.daemons[1] = bed.daemon(2, &[]);
        },
        Bed::is_followed,
    );
    bed.row("    all are ready", AIM, |_| {}, |bed| bed.lab.all_ready());
    move_to_v3(&mut bed);
    assert_eq!(bed.subnet(1), Some(own));

    let (sent, lost) = pings.stop();
    bed.rows.say(&format!(
        "pings between the pods of h1 and h2: {sent} sent, lost: {lost:?}"
    ));
    lost.into_iter().for_each(|lost| bed.rows.fail(lost));
    for (host, monitor) in [1, 2].into_iter().zip(monitors) {
        let other = bed.subnet(3 - host).unwrap();
        let gone = monitor.seen(&["Deleted "]);
        let gone = gone
            .into_iter()
            .filter(|line| line.contains(&format!("Deleted {other} ")));
        gone.for_each(|line| bed.rows.fail(format!("h{host}: {line}")));
        monitor.stop();
    }
    let logs = bed
        .daemons
        .iter()
        .map(|daemon| lab::process::tail(&daemon.record().log, 40));
    let logs: Vec<String> = logs.collect();
    if let Some(failed) = bed.rows.failed() {
        panic!("{failed}\n{}", logs.join("\n==\n"));
    }
}

impl Bed {
    fn signal(&self, signal: rustix::process::Signal) {
        for daemon in &self.daemons {
            daemon.record().signal(signal);
        }
    }

    /// So many writes elsewhere that the store knows nothing any more of what was before.
    fn forget(&self) {
        let folder = self.cluster.folder().display().to_string();
        let url = format!("{}/v2/keys/elsewhere", self.cluster.endpoint(0));
        let script = format!(
            "cd {folder}
            for n in $(seq {}); do
                [ $n = 1 ] || echo next
                printf 'url = \"{url}\"\\ndata = \"value=x\"\\nrequest = PUT\\noutput = /dev/null\\nfail\\ncacert = ca.crt\\ncert = client.crt\\nkey = client.key\\n'
            done >writes
            curl --silent --show-error --config writes",
            MEMORY + 100
        );
        self.lab.switch().shell(&script).unwrap();
    }
}
