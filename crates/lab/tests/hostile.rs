//! What the registry holds is anybody's: a node that runs, an honest peer, and everything else that can be written there.
//!
//! Whoever looks does so from outside and all the time: a ping between pods of the two, `/healthz` over the network, the daemon's
//! memory in `/proc`, its log. A line for each deed is printed as it is done.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

#[path = "hostile/content.rs"]
mod content;
#[path = "hostile/watcher.rs"]
mod watcher;

use std::collections::BTreeSet;
use std::io::Read;
use std::process::{Child, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use lab::Families;
use lab::gateway::Gateway;
use lab::reach::parse_echo;
use lab::rig::{Rig, Wish};
use lab::store::{CONFIG_KEY, SUBNETS};
use lab::witness::{forwarding, routes};
use rustix::process::Signal;
use serde_json::{Value, json};

use content::Content;
use watcher::Watcher;

/// Memory under attack, in parts of what it is in quiet.
const MEMORY: f64 = 2.0;
/// Lines of log in any minute.
const LINES: usize = 100;
/// A tenth of a second is aimed at; what gates is wider, for the machine is shared.
const SLOWEST: Duration = Duration::from_secs(1);
/// Packets, of one each 10 ms.
const IN_FLIGHT: u32 = 10;
/// A megabyte.
const MEGABYTE: usize = 1 << 20;

/// The node, its honest peer, and who looks.
struct Bed {
    rig: Rig,
    registry: Gateway,
    watcher: Watcher,
    ping: Child,
    /// What ping prints.
    answers: JoinHandle<std::io::Result<String>>,
    honest: IpNet,
    /// A line of table for each deed.
    table: Vec<String>,
}

impl Bed {
    fn new(config: Value) -> Bed {
        let wish = Wish {
            config,
            ..Wish::of(Families::V4, json!({ "Type": "vxlan" }))
        };
        let mut rig = Rig::start(&wish).unwrap();
        rig.lab.add_pods().unwrap();
        let pods = rig.lab.state.pods.clone();
        let target = pods[1].address(4).unwrap().to_string();
        let from = rig.lab.pod_end(&pods[0]);
        from.ping(&["-c", "3", "-i", "0.1", "-W", "3", &target]).unwrap();
        let mut ping = from.command(&["ping", "-n", "-i", "0.01", "-W", "2", &target]);
        let mut ping = ping.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = ping.stdout.take().unwrap();
        let answers = std::thread::spawn(move || {
            let mut text = String::new();
            output.read_to_string(&mut text).map(|_| text)
        });
        let registry = Gateway::connect(rig.lab.switch(), &rig.lab.store().unwrap().endpoint).unwrap();
        let honest = rig.subnet(2, 4).unwrap();
        let watcher = Watcher::start(rig.lab.host(1).network_file(), rig.daemons[0].pid());
        // What is measured is a daemon that has come to rest.
        std::thread::sleep(Duration::from_secs(3));
        watcher.note_quiet();
        Bed {
            rig,
            registry,
            watcher,
            ping,
            answers,
            honest,
            table: Vec::new(),
        }
    }

    fn put(&mut self, pairs: &[(String, String)]) {
        let pairs: Vec<(String, String)> = pairs
            .iter()
            .map(|(key, value)| (format!("{SUBNETS}{key}"), value.clone()))
            .collect();
        for some in pairs.chunks(100) {
            self.registry.put(some).unwrap();
        }
    }

    fn delete(&mut self, keys: &[String]) {
        for key in keys {
            self.registry.delete(&format!("{SUBNETS}{key}")).unwrap();
        }
    }

    /// Does something, and says what it came to.
    fn row(&mut self, what: &str, deed: impl FnOnce(&mut Bed)) {
        let before = self.rig.daemons[0].log().lines().count();
        let start = Instant::now();
        deed(self);
        let found = self.watcher.since_last();
        let lines = self.rig.daemons[0].log().lines().count() - before;
        let row = format!(
            "{what:<58} {:5.1} s  RSS {:5.1} MiB  /healthz {:4} ms  {lines:3} lines",
            start.elapsed().as_secs_f64(),
            found.memory as f64 / 1024.0,
            found.slowest.as_millis(),
        );
        say(&row);
        self.table.push(row);
    }

    /// What the daemon says of itself; waits for one that starts.
    fn status(&self) -> Value {
        let start = Instant::now();
        loop {
            let text = self
                .rig
                .lab
                .host(1)
                .shell("flannelctl status --json || true")
                .unwrap();
            match serde_json::from_str(&text) {
                Ok(status) => return status,
                Err(error) => assert!(start.elapsed() < Duration::from_secs(20), "{error}: {text}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What is found of leases and other entries.
    fn findings(&self) -> Vec<String> {
        let status = self.status();
        let findings = status["findings"].as_array().cloned().unwrap_or_default();
        findings
            .iter()
            .filter(|finding| finding["part"] == "registry")
            .map(|finding| finding["text"].to_string())
            .collect()
    }

    fn wait_until_forgotten(&self) {
        let wait = self.rig.wait("the end of all that was said of them", 20, |_| {
            Ok(self.findings().into_iter().next())
        });
        wait.unwrap();
    }

    /// Nothing lies in, or around, the honest peer's subnet but its own route, and its device leads to it alone.
    fn check_honest(&self) {
        let host = self.rig.lab.host(1);
        let all = routes(host, 4).unwrap();
        let within: Vec<_> = all
            .iter()
            .filter(|route| route.protocol.as_deref() == Some("241"))
            .filter_map(|route| route.destination())
            .filter(|net| net.contains(&self.honest) || self.honest.contains(net))
            .collect();
        assert_eq!(within, [self.honest]);
        let entries = forwarding(host, "flannel.1").unwrap();
        let peer = self.rig.lab.spec.host4(2).to_string();
        assert_eq!(
            entries
                .iter()
                .filter(|entry| entry["dst"] == peer.as_str())
                .count(),
            1,
            "{entries:?}"
        );
    }

    /// The end of the attack: what the honest peer noticed of it.
    fn close(mut self, memory: Option<f64>) {
        lab::process::send(self.ping.id(), Signal::INT);
        self.ping.wait().unwrap();
        let text = self.answers.join().unwrap().unwrap();
        let sent = parse_echo(&text).unwrap().sent;
        let answered: BTreeSet<u32> = text.lines().filter_map(sequence_number).collect();
        let last = *answered.last().unwrap();
        let lost: Vec<u32> = (1..=last).filter(|number| !answered.contains(number)).collect();
        let (log, found) = (self.rig.daemons[0].log(), self.watcher.whole());
        let most = watcher::most_in_a_minute(&log);
        let ratio = found.memory as f64 / found.quiet as f64;
        say(&format!(
            "honest peer: {} of {} packets; RSS {:.1} MiB quiet, {:.1} MiB at most ({ratio:.2} x); /healthz {} ms at most (aimed at 100); {most} lines of log in the worst minute",
            answered.len(),
            last,
            found.quiet as f64 / 1024.0,
            found.memory as f64 / 1024.0,
            found.slowest.as_millis()
        ));
        assert_eq!(lost, [0; 0]);
        // What was on its way when ping was told to end is not lost.
        assert!(sent - last <= IN_FLIGHT, "{last} of {sent}");
        assert_eq!(found.refusals, 0, "/healthz other than 200:\n{log}");
        assert!(found.slowest <= SLOWEST, "{:?}", found.slowest);
        assert!(memory.is_none_or(|most| ratio <= most), "{ratio}");
        assert!(most <= LINES, "{most} lines in a minute:\n{log}");
        assert_eq!(unprintable(&log), None);
        assert!(self.rig.daemons.iter_mut().all(|daemon| daemon.ended().is_none()));
    }
}

fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// That of an answer, as ping prints it.
fn sequence_number(line: &str) -> Option<u32> {
    let (_, rest) = line.split_once(" bytes from ")?.1.split_once("icmp_seq=")?;
    rest.split(' ').next()?.parse().ok()
}

/// What a terminal would take for something else than text.
fn unprintable(text: &str) -> Option<String> {
    let hides = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}');
    let bad = |c: char| c != '\n' && (c.is_control() || hides(c));
    text.lines()
        .find(|line| line.chars().any(bad))
        .map(|line| format!("{line:?}"))
}

#[test]
fn node_when_anything_is_written_to_the_registry_then_its_honest_peer_notices_nothing() {
    let mut bed = Bed::new(lab::flannel::config(Families::V4, json!({ "Type": "vxlan" })));
    let leases = bed.rig.lab.leases().unwrap();
    let mac = leases.iter().find_map(|(key, value)| {
        let value: Value = serde_json::from_str(value).ok()?;
        let subnet = bed.honest.to_string().replace('/', "-");
        (*key == subnet).then(|| value["BackendData"]["VtepMAC"].as_str().map(str::to_owned))?
    });
    let taken = leases.iter().map(|(key, _)| key.clone()).collect();
    let mut content = Content::new(bed.honest, taken, &mac.unwrap(), bed.rig.lab.spec.host4(1));

    bed.row("240 leases and other entries of a generator", |bed| {
        let entries = content.leases(240);
        bed.put(&entries);
        bed.rig
            .wait("something said of them", 20, |_| {
                Ok(bed.findings().is_empty().then(|| "findings".to_owned()))
            })
            .unwrap();
        bed.check_honest();
        for command in [
            "flannelctl status",
            "flannelctl status --json",
            "flannelctl registry ls /",
        ] {
            let endpoint = bed.rig.lab.store().unwrap().endpoint.clone();
            let flag = if command.contains("registry") {
                format!(" --endpoints {endpoint}")
            } else {
                String::new()
            };
            let shown = bed
                .rig
                .lab
                .host(1)
                .shell(&format!("{command}{flag} || true"))
                .unwrap();
            assert_eq!(unprintable(&shown), None, "{command}");
            assert!(shown.len() < MEGABYTE, "{command}: {} bytes", shown.len());
        }
        let keys: Vec<String> = entries.into_iter().map(|(key, _)| key).collect();
        bed.delete(&keys);
        bed.wait_until_forgotten();
        bed.check_honest();
    });
    let good = bed.rig.lab.get(CONFIG_KEY).unwrap().unwrap();
    bed.row("40 network configs of a generator", |bed| {
        for config in content.configs(40) {
            bed.registry.put(&[(CONFIG_KEY.to_owned(), config)]).unwrap();
        }
        bed.registry.put(&[(CONFIG_KEY.to_owned(), good)]).unwrap();
    });
    bed.row("25 x put and delete of a key with 1 MB", |bed| {
        let large = [("junk".to_owned(), "x".repeat(MEGABYTE))];
        for _ in 0..25 {
            bed.put(&large);
            bed.delete(&["junk".to_owned()]);
        }
        bed.wait_until_forgotten();
    });
    bed.row("one key good and bad, 5 s as fast as it goes", |bed| {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            for value in content.flap() {
                bed.put(&[value]);
            }
        }
        let key = content.flap()[0].0.clone();
        bed.delete(&[key]);
        bed.wait_until_forgotten();
    });
    bed.row("5000 junk keys, there and gone", |bed| {
        let junk: Vec<(String, String)> = (0..5000).map(|n| (format!("junk{n}"), "{}".to_owned())).collect();
        bed.put(&junk);
        bed.rig
            .wait("many of them", 20, |_| {
                Ok((bed.findings().len() < 50).then(|| "findings".to_owned()))
            })
            .unwrap();
        bed.registry.delete_all(&format!("{SUBNETS}junk")).unwrap();
        bed.wait_until_forgotten();
    });
    bed.row("20 values of 1 MB beside the leases, daemon restarted", |bed| {
        let large = "x".repeat(MEGABYTE);
        for n in 0..20 {
            bed.put(&[(format!("10.244.{n}.0-28"), large.clone())]);
        }
        bed.rig.restart(1, &[]).unwrap();
        bed.watcher.follow(bed.rig.daemons[0].pid());
        bed.rig
            .wait("a node that is ready", 20, |_| {
                Ok((bed.status()["ready"] != true).then(|| "ready".to_owned()))
            })
            .unwrap();
        bed.check_honest();
        let keys: Vec<String> = (0..20).map(|n| format!("10.244.{n}.0-28")).collect();
        bed.delete(&keys);
        bed.wait_until_forgotten();
    });
    bed.close(Some(MEMORY));
}

/// More leases than a cluster has, and two of them at odds all the time.
#[test]
#[ignore = "takes minutes: cargo xtask test --suite hostile-long"]
fn node_when_there_are_sixty_thousand_leases_then_its_honest_peer_notices_nothing() {
    const LEASES: usize = 60_000;
    let config = json!({ "Network": "100.64.0.0/10", "SubnetLen": 26, "Backend": { "Type": "vxlan" } });
    let mut bed = Bed::new(config);
    let all: Vec<(String, String)> = content::crowd(LEASES).collect();
    let routed = |bed: &Bed, count: usize| {
        let wait = bed.rig.wait("the routes", 300, |rig| {
            let routes = rig
                .lab
                .host(1)
                .shell("ip -4 route show proto 241 | wc -l")
                .unwrap();
            let there = routes.trim().parse::<usize>().unwrap();
            Ok((there < count).then(|| format!("{there} of {count} routes")))
        });
        wait.unwrap();
    };
    bed.row("60000 leases", |bed| {
        bed.put(&all);
        routed(bed, LEASES + 1);
        bed.check_honest();
    });
    // Each change is one of a lease that has the MAC of another.
    bed.row("1000 changes of a lease whose MAC another has", |bed| {
        let ticks = |bed: &Bed| lab::process::stat(bed.rig.daemons[0].pid()).unwrap().ticks;
        let before = ticks(bed);
        let (key, value) = &all[100];
        let mac = |value: &str| value.rsplit_once("VtepMAC").unwrap().1.to_owned();
        let twin = value.replace(&mac(value), &mac(&all[7].1));
        for n in 0..1000 {
            bed.put(&[(key.clone(), if n % 2 == 0 { twin.clone() } else { value.clone() })]);
        }
        std::thread::sleep(Duration::from_secs(1));
        say(&format!(
            "{:.2} ms of CPU for each",
            (ticks(bed) - before) as f64 * 10.0 / 1000.0
        ));
    });
    bed.row("60 s of a key that is good and bad", |bed| {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(60) {
            for (key, value) in [all[200].clone(), (all[200].0.clone(), "{".to_owned())] {
                bed.put(&[(key, value)]);
            }
        }
    });
    bed.row("all gone at once", |bed| {
        // The hosts that are there have theirs among the first.
        for second in 67..128 {
            bed.registry
                .delete_all(&format!("{SUBNETS}100.{second}."))
                .unwrap();
        }
        bed.rig
            .wait("the honest peer's route alone", 300, |rig| {
                let routes = rig
                    .lab
                    .host(1)
                    .shell("ip -4 route show proto 241 | wc -l")
                    .unwrap();
                Ok((routes.trim() != "1").then(|| format!("{} routes", routes.trim())))
            })
            .unwrap();
        bed.check_honest();
    });
    bed.close(None);
}
