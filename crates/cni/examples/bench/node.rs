//! A full node: 250 pods, and 20,000 firewall rules of somebody else's that are all written anew every second, as service proxies
//! do.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::room::{Room, Series, Subject, container, count_of, ip, trace};
use crate::{Figures, Options, Outcome, Plugins, port_config};

/// Pods before anything is compared.
const FULL: usize = 250;
/// ADDs at once.
const BURST: usize = 30;
/// Rules of the other program, three for each of its services.
const RULES: usize = 20_000;
/// ADDs that make up "the first" and "the last".
const SAMPLE: usize = 25;

/// Ours, then Go's.
pub fn fill(figures: &mut Figures, options: &Options) -> Outcome<()> {
    for (name, is_ours) in [("ours", true), ("go_bridge", false)] {
        let room = Room::new(name, FULL + BURST, &options.state)?;
        let plugins = Plugins::new(&room, options)?;
        let (link, ports) = match is_ours {
            true => (&plugins.ours, &plugins.our_ports),
            false => (&plugins.go, &plugins.go_ports),
        };
        grow(figures, name, link)?;
        let mut failed = 0;
        for writer in Writer::ALL {
            let crowd = Crowd {
                room: &room,
                link,
                ports,
                is_ours,
                series: format!("{name}.rules_{}", writer.name()),
            };
            failed += crowd.measure(figures, writer)?;
        }
        figures.insert(format!("{name}.node.failed"), failed as f64);
    }
    for writer in Writer::ALL {
        for kind in Kind::ALL {
            let get = |name: &str| {
                let key = format!("{name}.rules_{}.{}.add_p99_ms", writer.name(), kind.name());
                figures.get(&key).copied().unwrap_or(f64::NAN)
            };
            figures.insert(
                format!("ratio.rules_{}.{}_add_p99_to_go", writer.name(), kind.name()),
                get("ours") / get("go_bridge"),
            );
        }
    }
    Ok(())
}

/// One pod after the other until the node is full.
fn grow(figures: &mut Figures, name: &str, link: &Subject<'_>) -> Outcome<()> {
    let calls = |pod: usize| -> Outcome<f64> {
        let calls = trace(link, "ADD", pod, &container(pod))?.lines().count();
        link.once("DEL", pod, &container(pod))?;
        Ok(calls as f64)
    };
    // The very first makes the bridge.
    link.once("ADD", 0, &container(0))?;
    let first_calls = calls(1)?;
    let mut times = Vec::with_capacity(FULL);
    for pod in 1..FULL {
        times.push(link.once("ADD", pod, &container(pod))?);
    }
    let median = |sample: &[Duration]| {
        let mut series = Series::default();
        sample.iter().for_each(|time| series.push(*time));
        series.at(0.5)
    };
    let first = median(times.get(..SAMPLE).unwrap_or_default());
    let last = median(times.get(times.len() - SAMPLE..).unwrap_or_default());
    figures.insert(format!("{name}.node.add_first_p50_ms"), first);
    figures.insert(format!("{name}.node.add_last_p50_ms"), last);
    figures.insert(format!("{name}.node.add_last_to_first"), last / first);
    figures.insert(
        format!("{name}.node.add_calls_last_to_first"),
        calls(FULL)? / first_calls,
    );
    Ok(())
}

/// What the burst asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A link and an address.
    Plain,
    /// And a port of the host.
    Port,
    /// And masquerading, which a flanneld without `--ip-masq` leaves to the plugin.
    Masquerade,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Plain, Kind::Port, Kind::Masquerade];

    fn name(self) -> &'static str {
        match self {
            Kind::Plain => "plain",
            Kind::Port => "port",
            Kind::Masquerade => "masquerade",
        }
    }
}

/// Thirty pods that come and go together.
struct Crowd<'a> {
    room: &'a Room,
    link: &'a Subject<'a>,
    ports: &'a Subject<'a>,
    is_ours: bool,
    series: String,
}

impl Crowd<'_> {
    /// Every kind of burst while rules are written; returns how many operations failed.
    fn measure(&self, figures: &mut Figures, writer: Writer) -> Outcome<usize> {
        let text = writer.text();
        // The shared chains of port mappings go as well: the first of them has to make them in the midst of it.
        Command::new("nft").args(["flush", "ruleset"]).status()?;
        let started = Instant::now();
        writer.write(&text)?;
        let series = &self.series;
        figures.insert(
            format!("{series}.rewrite_ms"),
            started.elapsed().as_secs_f64() * 1e3,
        );
        let (over, written) = (AtomicBool::new(false), AtomicUsize::new(0));
        let failed = std::thread::scope(|scope| -> Outcome<usize> {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    // What comes between its own transactions is this program's trouble.
                    written.fetch_add(usize::from(writer.write(&text).is_ok()), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_secs(1).saturating_sub(started.elapsed()));
                }
            });
            let mut failed = Ok(0);
            for kind in Kind::ALL {
                failed = failed.and_then(|failed| Ok(failed + self.burst(figures, kind)?));
            }
            over.store(true, Ordering::Relaxed);
            failed
        })?;
        figures.insert(
            format!("{series}.rewrites"),
            written.load(Ordering::Relaxed) as f64,
        );
        Ok(failed)
    }

    fn burst(&self, figures: &mut Figures, kind: Kind) -> Outcome<usize> {
        // Of each burst its own: what Go's reserve stays.
        let (series, name) = (&self.series, kind.name());
        let id = |pod: usize| format!("{series}.{name}.{pod}");
        let pods = FULL..FULL + BURST;
        let (adds, mut failed) = at_once(pods.clone(), |pod| self.add(kind, pod, &id(pod)));
        self.note(figures, kind, "add", &adds);
        if self.is_ours {
            let (dels, more) = at_once(pods, |pod| self.del(kind, pod, &id(pod)));
            failed += more;
            self.note(figures, kind, "del", &dels);
            if kind == Kind::Port {
                let execs = self.execs_of_port()?;
                figures.insert(format!("{}.port.add.portmap_execs", self.series), execs);
            }
        } else {
            // Go's DELs take minutes here, and are not what is asked.
            for pod in pods {
                let _ = ip(&["-n", &self.room.pod(pod), "link", "del", "eth0"]);
            }
        }
        Ok(failed)
    }

    fn note(&self, figures: &mut Figures, kind: Kind, verb: &str, times: &Series) {
        let (series, kind) = (&self.series, kind.name());
        // Go's take minutes: somebody may be waiting.
        let p99 = times.at(0.99);
        let _ = writeln!(std::io::stderr(), "{series}.{kind}.{verb}: p99 {p99:.0} ms");
        figures.insert(format!("{series}.{kind}.{verb}_p50_ms"), times.at(0.5));
        figures.insert(format!("{series}.{kind}.{verb}_p99_ms"), p99);
    }

    fn link_of(&self, kind: Kind) -> Subject<'_> {
        let mut link = self.link.clone();
        if kind == Kind::Masquerade
            && let Some(name) = self.link.config.file_name()
        {
            link.config = self.room.file(&format!("masq-{}", name.display()));
        }
        link
    }

    fn ports_of(&self, pod: usize) -> Subject<'_> {
        Subject {
            config: self.room.file(&format!("portmap-{pod}.json")),
            ..self.ports.clone()
        }
    }

    fn add(&self, kind: Kind, pod: usize, id: &str) -> Outcome<()> {
        self.link_of(kind).once("ADD", pod, id)?;
        if kind == Kind::Port {
            let ports = self.ports_of(pod);
            let result = std::fs::read_to_string(self.room.file(&format!("out-{pod}")))?;
            std::fs::write(&ports.config, port_config(20_000 + pod, &result))?;
            ports.once("ADD", pod, id)?;
        }
        Ok(())
    }

    fn del(&self, kind: Kind, pod: usize, id: &str) -> Outcome<()> {
        if kind == Kind::Port {
            self.ports_of(pod).once("DEL", pod, id)?;
        }
        self.link_of(kind).once("DEL", pod, id).map(drop)
    }

    /// Programs that one more mapping takes.
    fn execs_of_port(&self) -> Outcome<f64> {
        let id = container(99_999);
        self.add(Kind::Port, FULL, &id)?;
        let ports = self.ports_of(FULL);
        ports.once("DEL", FULL, &id)?;
        let execs = count_of(&trace(&ports, "ADD", FULL, &id)?, &["execve"]);
        self.del(Kind::Port, FULL, &id)?;
        Ok(execs)
    }
}

/// Works for each pod at the same time; how long each took, and how many failed.
fn at_once(pods: std::ops::Range<usize>, work: impl Fn(usize) -> Outcome<()> + Sync) -> (Series, usize) {
    let (mut series, mut failed) = (Series::default(), 0);
    std::thread::scope(|scope| {
        let timed = |pod| {
            let started = Instant::now();
            work(pod).map(|()| started.elapsed()).map_err(|e| e.to_string())
        };
        let threads: Vec<_> = pods.map(|pod| scope.spawn(move || timed(pod))).collect();
        for thread in threads {
            match thread.join() {
                Ok(Ok(time)) => series.push(time),
                Ok(Err(e)) => {
                    failed += 1;
                    let _ = writeln!(std::io::stderr(), "bench: {e}");
                }
                Err(_) => failed += 1,
            }
        }
    });
    (series, failed)
}

/// The other program.
#[derive(Clone, Copy)]
enum Writer {
    /// In the nat table, by `iptables-restore --noflush`, as kube-proxy.
    Iptables,
    /// In a table of its own, by `nft -f`.
    Nft,
}

impl Writer {
    const ALL: [Writer; 2] = [Writer::Iptables, Writer::Nft];

    fn name(self) -> &'static str {
        match self {
            Writer::Iptables => "iptables",
            Writer::Nft => "nft",
        }
    }

    /// All its rules, in place of those there are.
    fn text(self) -> String {
        let services =
            (0..RULES / 3).map(|i| (i, format!("10.{}.{}.{}", 96 + (i >> 16), (i >> 8) & 255, i & 255)));
        let (mut head, mut text) = (String::new(), String::new());
        match self {
            Writer::Iptables => {
                head.push_str("*nat\n:KUBE-SERVICES - [0:0]\n");
                for (i, address) in services {
                    let _ = writeln!(head, ":KUBE-SVC-{i:06} - [0:0]");
                    let _ = writeln!(
                        text,
                        "-A KUBE-SERVICES -d {address}/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-{i:06}\n\
                         -A KUBE-SVC-{i:06} ! -s 10.244.0.0/16 -p tcp -j MARK --set-xmark 0x4000/0x4000\n\
                         -A KUBE-SVC-{i:06} -p tcp -j DNAT --to-destination 10.244.3.7:8080"
                    );
                }
                text.push_str("COMMIT\n");
            }
            Writer::Nft => {
                head.push_str("table ip kube-proxy\ndelete table ip kube-proxy\ntable ip kube-proxy {\nchain services {\n");
                for (_, address) in services {
                    for verdict in ["meta mark set 0x4000", "counter", "accept"] {
                        let _ = writeln!(text, "ip daddr {address} tcp dport 80 {verdict}");
                    }
                }
                text.push_str("}\n}\n");
            }
        }
        head + &text
    }

    fn write(self, text: &str) -> Outcome<()> {
        let (program, arguments): (&str, &[&str]) = match self {
            Writer::Iptables => ("iptables-restore", &["--noflush", "--wait"]),
            Writer::Nft => ("nft", &["-f", "-"]),
        };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(text.as_bytes())?;
        }
        match child.wait()?.success() {
            true => Ok(()),
            false => Err(format!("{program} failed").into()),
        }
    }
}
