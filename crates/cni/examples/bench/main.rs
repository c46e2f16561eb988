//! Measures the plugins through their executable: one at a time, fifty at once, beside Debian's Go plugins and beside the
//! kernel's own share (`RTM_DELLINK` alone), all in one run, because only the ratios travel between machines.
//!
//! `bench [--json] [--plugin FILE] [--go FOLDER] [--operations N] [--state FOLDER] [--part NAME]`, as root. Everything happens in
//! namespaces of its own. What plugins write is in memory unless a folder for it is given: an ext4 without a journal makes each file
//! dearer the more have just been removed.

mod node;
mod room;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use fabric::object::LinkName;
use kernel::netns::Netns;
use kernel::rtnl::Rtnl;
use kernel::rtnl::bridge::PortOptions;
use kernel::rtnl::veth::VethPair;
use std::os::fd::AsFd;

use crate::room::{Room, Series, Subject, children_cpu, container, count_of, trace};

/// A figure's budget: its name, the number, whether that is the least or the most allowed, and the number that fails the run.
/// Counts gate where they stand; times on a busy machine say little, so they gate at ten times.
const BUDGETS: &[(&str, f64, Bound, f64)] = &[
    ("ours.add.execs", 1.0, Bound::Most, 1.0),
    ("ours.del.execs", 1.0, Bound::Most, 1.0),
    ("ours.add.children", 0.0, Bound::Most, 0.0),
    ("ours.del.children", 0.0, Bound::Most, 0.0),
    ("ours.port.add.portmap_execs", 2.0, Bound::Most, 2.0),
    ("ours.port.del.portmap_execs", 2.0, Bound::Most, 3.0),
    ("ours.add.p50_ms", 3.9, Bound::Most, 39.0),
    ("ours.at_once.add_per_s", 500.0, Bound::Least, 50.0),
    ("ours.at_once.add_cpu_ms", 4.0, Bound::Most, 40.0),
    ("del_p50_beyond_dellink_ms", 3.0, Bound::Most, 30.0),
    ("ratio.add_p50_to_go_bridge", 0.3, Bound::Most, 1.0),
    ("ratio.add_p50_with_4000_to_without", 1.3, Bound::Most, 3.0),
    ("ratio.port_add_p50_to_go", 0.4, Bound::Most, 1.0),
    ("ratio.port_del_p50_to_go", 0.4, Bound::Most, 1.0),
    ("ours.node.failed", 0.0, Bound::Most, 0.0),
    ("ours.node.add_calls_last_to_first", 1.05, Bound::Most, 1.05),
    ("ours.node.add_last_to_first", 1.3, Bound::Most, 13.0),
    (
        "ours.rules_iptables.port.add.portmap_execs",
        2.0,
        Bound::Most,
        2.0,
    ),
    ("ours.rules_nft.port.add.portmap_execs", 2.0, Bound::Most, 2.0),
    ("ratio.rules_iptables.plain_add_p99_to_go", 0.5, Bound::Most, 2.0),
    ("ratio.rules_iptables.port_add_p99_to_go", 0.5, Bound::Most, 2.0),
    (
        "ratio.rules_iptables.masquerade_add_p99_to_go",
        0.5,
        Bound::Most,
        2.0,
    ),
    ("ratio.rules_nft.plain_add_p99_to_go", 0.5, Bound::Most, 2.0),
    ("ratio.rules_nft.port_add_p99_to_go", 0.5, Bound::Most, 2.0),
    ("ratio.rules_nft.masquerade_add_p99_to_go", 0.5, Bound::Most, 2.0),
];

#[derive(Clone, Copy)]
enum Bound {
    Most,
    Least,
}

impl Bound {
    fn holds(self, value: f64, bound: f64) -> bool {
        match self {
            Bound::Most => value <= bound,
            Bound::Least => value >= bound,
        }
    }
}

/// What everything here comes to.
type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const PODS: usize = 50;
const CROWD: usize = 4000;

fn main() -> ExitCode {
    match Options::read().and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "bench: {e}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    json: bool,
    plugin: PathBuf,
    go: PathBuf,
    operations: usize,
    state: PathBuf,
    part: Option<String>,
}

impl Options {
    fn read() -> Outcome<Options> {
        let here = std::env::current_exe()?;
        let folder = std::env::var_os("FLANNEL_BIN_DIR").map(PathBuf::from);
        let beside = here.parent().and_then(Path::parent).unwrap_or(Path::new("."));
        let built = folder.as_deref().unwrap_or(beside).join("flannel-cni");
        let memory = PathBuf::from("/dev/shm");
        let mut options = Options {
            json: false,
            plugin: built,
            go: "/usr/lib/cni".into(),
            operations: 200,
            state: if memory.is_dir() {
                memory
            } else {
                std::env::temp_dir()
            },
            part: None,
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--json" => options.json = true,
                "--plugin" => options.plugin = value()?.into(),
                "--go" => options.go = value()?.into(),
                "--operations" => options.operations = value()?.parse()?,
                "--state" => options.state = value()?.into(),
                "--part" => options.part = Some(value()?),
                _ => return Err(format!("unknown argument {arg}").into()),
            }
        }
        Ok(options)
    }
}

type Figures = BTreeMap<String, f64>;

fn sequential(figures: &mut Figures, name: &str, subject: &Subject<'_>, operations: usize) -> Outcome<()> {
    let (mut adds, mut dels) = (Series::default(), Series::default());
    for i in 0..3 {
        subject.once("ADD", 0, &container(i))?;
        subject.once("DEL", 0, &container(i))?;
    }
    let (mut add_cpu, mut del_cpu) = (0.0, 0.0);
    for chunk in 0..operations.div_ceil(PODS) {
        let before = children_cpu()?;
        for pod in 0..PODS {
            adds.push(subject.once("ADD", pod, &container(chunk * PODS + pod))?);
        }
        let between = children_cpu()?;
        for pod in 0..PODS {
            dels.push(subject.once("DEL", pod, &container(chunk * PODS + pod))?);
        }
        add_cpu += between - before;
        del_cpu += children_cpu()? - between;
    }
    let count = adds.0.len() as f64;
    for (verb, series, cpu) in [("add", adds, add_cpu), ("del", dels, del_cpu)] {
        figures.insert(format!("{name}.{verb}.p50_ms"), series.at(0.5));
        figures.insert(format!("{name}.{verb}.p99_ms"), series.at(0.99));
        figures.insert(format!("{name}.{verb}.cpu_ms"), cpu / count);
    }
    Ok(())
}

/// Starts an operation on every pod at once, and again as often as asked.
fn crowd(figures: &mut Figures, name: &str, subject: &Subject<'_>, rounds: usize) -> Outcome<()> {
    let (mut adds, mut dels) = (Series::default(), Series::default());
    let (mut add_cpu, mut del_cpu) = (0.0, 0.0);
    for round in 0..rounds {
        for (verb, rates, cpu) in [("ADD", &mut adds, &mut add_cpu), ("DEL", &mut dels, &mut del_cpu)] {
            let before = children_cpu()?;
            let started = Instant::now();
            let mut running = Vec::new();
            for pod in 0..PODS {
                running.push((pod, subject.spawn(verb, pod, &container(round * PODS + pod))?));
            }
            for (pod, child) in running {
                subject.finish(verb, pod, child)?;
            }
            rates.0.push(PODS as f64 / started.elapsed().as_secs_f64());
            *cpu += children_cpu()? - before;
        }
    }
    let operations = (rounds * PODS) as f64;
    figures.insert(format!("{name}.at_once.add_per_s"), adds.at(0.5));
    figures.insert(format!("{name}.at_once.del_per_s"), dels.at(0.5));
    figures.insert(format!("{name}.at_once.add_cpu_ms"), add_cpu / operations);
    figures.insert(format!("{name}.at_once.del_cpu_ms"), del_cpu / operations);
    Ok(())
}

/// A port of the host on top of the chain: both plugins in turn, as a runtime calls them.
fn ports(
    figures: &mut Figures,
    name: &str,
    link: &Subject<'_>,
    portmap: &Subject<'_>,
    rounds: usize,
) -> Outcome<()> {
    let (mut adds, mut dels) = (Series::default(), Series::default());
    let id = container(7);
    let prepare = || -> Outcome<()> {
        let result = std::fs::read_to_string(link.room.file("out-0"))?;
        std::fs::write(&portmap.config, port_config(20000, &result))?;
        Ok(())
    };
    for i in 0..=rounds {
        let add = link.once("ADD", 0, &id)?;
        prepare()?;
        let add = add + portmap.once("ADD", 0, &id)?;
        let del = portmap.once("DEL", 0, &id)?;
        let del = del + link.once("DEL", 0, &id)?;
        // The first makes the chains that all share.
        if i > 0 {
            adds.push(add);
            dels.push(del);
        }
    }
    figures.insert(format!("{name}.port.add.p50_ms"), adds.at(0.5));
    figures.insert(format!("{name}.port.del.p50_ms"), dels.at(0.5));
    link.once("ADD", 0, &id)?;
    prepare()?;
    for (verb, key) in [("ADD", "add"), ("DEL", "del")] {
        let trace = trace(portmap, verb, 0, &id)?;
        figures.insert(
            format!("{name}.port.{key}.portmap_execs"),
            count_of(&trace, &["execve"]),
        );
    }
    link.once("DEL", 0, &id)?;
    Ok(())
}

/// portmap's configuration for one port of the host, after the plugin that made this result.
fn port_config(port: usize, result: &str) -> String {
    format!(
        r#"{{"cniVersion":"0.3.1","name":"cbr0","type":"portmap","capabilities":{{"portMappings":true}},"runtimeConfig":{{"portMappings":[{{"hostPort":{port},"containerPort":80,"protocol":"tcp"}}]}},"prevResult":{result}}}"#
    )
}

/// Programs executed, threads and processes started, and system calls of one operation.
fn count_calls(figures: &mut Figures, name: &str, subject: &Subject<'_>) -> Outcome<()> {
    subject.once("ADD", 1, &container(1))?;
    for (verb, key) in [("ADD", "add"), ("DEL", "del")] {
        let trace = trace(subject, verb, 0, &container(0))?;
        figures.insert(format!("{name}.{key}.execs"), count_of(&trace, &["execve"]));
        figures.insert(
            format!("{name}.{key}.children"),
            count_of(&trace, &["clone", "clone3", "fork", "vfork"]),
        );
        figures.insert(format!("{name}.{key}.syscalls"), trace.lines().count() as f64);
    }
    subject.once("DEL", 1, &container(1))?;
    Ok(())
}

/// The kernel's share of a DEL: the pair of an attached, configured container is deleted and nothing else.
fn dellink(figures: &mut Figures, room: &Room, operations: usize) -> Outcome<()> {
    let name = |text: &str| LinkName::new(text).ok_or("link name");
    let host_ns = Netns::current()?;
    let mut host = Rtnl::open()?;
    let bridge = host.link_by_name(name("cni0")?)?.ok_or("no bridge cni0")?;
    let pod_ns = Netns::open(format!("/run/netns/{}", room.pod(0)))?;
    let mut pod = Rtnl::open_in(pod_ns.as_fd())?;
    let (mut adds, mut dels) = (Series::default(), Series::default());
    for i in 0..operations {
        let (near, far) = (name("eth0")?, name(&format!("bench{i}"))?);
        let started = Instant::now();
        let pair = VethPair {
            name: near,
            mac: None,
            peer: far,
            peer_netns: host_ns.as_fd(),
            mtu: 1450,
        };
        let link = pod.add_veth(&pair)?;
        let options = PortOptions {
            hairpin: true,
            isolated: false,
        };
        host.attach_port(far, bridge.index, options)?;
        pod.configure_pod(link.index, &["10.244.7.200/24".parse()?], &[], false)
            .map_err(|e| format!("{e:?}"))?;
        adds.push(started.elapsed());
        let started = Instant::now();
        pod.delete_link_by_name(near)?;
        dels.push(started.elapsed());
    }
    figures.insert("kernel.make_pair.p50_ms".into(), adds.at(0.5));
    figures.insert("kernel.dellink.p50_ms".into(), dels.at(0.5));
    figures.insert("kernel.dellink.p99_ms".into(), dels.at(0.99));
    Ok(())
}

/// Many other reservations in the same network.
fn populate(room: &Room) -> Outcome<()> {
    let store = room.file("networks/cbr0");
    std::fs::create_dir_all(&store)?;
    for i in 0..CROWD {
        let (a, b) = (100 + i / 250, i % 250 + 2);
        std::fs::write(
            store.join(format!("10.244.{a}.{b}")),
            format!("{}\r\neth0", container(100_000 + i)),
        )?;
    }
    Ok(())
}

fn run(options: &Options) -> Outcome<()> {
    let mut figures = Figures::new();
    let wants = |part: &str| options.part.as_deref().is_none_or(|only| only == part);
    if wants("calls") {
        calls(&mut figures, options)?;
    }
    if wants("node") {
        node::fill(&mut figures, options)?;
    }
    derive(&mut figures);
    report(options, &figures)
}

/// Single calls, and many at once.
fn calls(figures: &mut Figures, options: &Options) -> Outcome<()> {
    let room = Room::new("", PODS, &options.state)?;
    let plugins = Plugins::new(&room, options)?;
    let Plugins {
        ours,
        go,
        our_ports,
        go_ports,
    } = &plugins;
    let mut floor = Series::default();
    for _ in 0..50 {
        let started = Instant::now();
        Command::new("/bin/true")
            .env_clear()
            .stdin(Stdio::null())
            .status()?;
        floor.push(started.elapsed());
    }
    figures.insert("floor.true.p50_ms".into(), floor.at(0.5));
    let mut version = Series::default();
    for _ in 0..50 {
        version.push(ours.once("VERSION", 0, "")?);
    }
    figures.insert("ours.version.p50_ms".into(), version.at(0.5));

    sequential(figures, "ours", ours, options.operations)?;
    dellink(figures, &room, options.operations.min(100))?;
    count_calls(figures, "ours", ours)?;
    crowd(figures, "ours", ours, 5)?;
    ports(figures, "ours", ours, our_ports, 20)?;
    room.clear()?;
    populate(&room)?;
    sequential(figures, "ours_with_4000", ours, options.operations.min(100))?;
    room.clear()?;
    sequential(figures, "go_bridge", go, options.operations.min(100))?;
    count_calls(figures, "go_bridge", go)?;
    crowd(figures, "go_bridge", go, 2)?;
    ports(figures, "go_bridge", go, go_ports, 10)?;
    room.clear()
}

/// Ours and Go's, with the same work to do.
struct Plugins<'a> {
    ours: Subject<'a>,
    go: Subject<'a>,
    our_ports: Subject<'a>,
    go_ports: Subject<'a>,
}

impl<'a> Plugins<'a> {
    fn new(room: &'a Room, options: &Options) -> Outcome<Plugins<'a>> {
        let program = room.executable("flannel");
        std::fs::copy(&options.plugin, &program).map_err(|e| format!("{}: {e}", options.plugin.display()))?;
        std::fs::copy(&program, room.executable("portmap"))?;
        let (flannel, networks) = (room.path("flannel"), room.path("networks"));
        for (masquerades, config) in [(false, ""), (true, "masq-")] {
            // Who does not masquerade leaves it to the plugin.
            let env = room.path(&format!("{config}subnet.env"));
            std::fs::write(
                &env,
                format!(
                    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.0.1/16\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ={}\n",
                    !masquerades
                ),
            )?;
            std::fs::write(
                room.file(&format!("{config}flannel.json")),
                format!(
                    r#"{{"cniVersion":"0.3.1","name":"cbr0","type":"flannel","subnetFile":"{env}","dataDir":"{flannel}","ipam":{{"dataDir":"{networks}"}},"delegate":{{"hairpinMode":true,"isDefaultGateway":true}}}}"#
                ),
            )?;
            std::fs::write(
                room.file(&format!("{config}bridge.json")),
                format!(
                    r#"{{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":{masquerades},"ipam":{{"type":"host-local","dataDir":"{networks}","ranges":[[{{"subnet":"10.244.0.0/16"}}]],"routes":[{{"dst":"10.244.0.0/16"}}]}},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}}"#
                ),
            )?;
        }
        let subject = |program: PathBuf, config: &str| Subject {
            room,
            plugins: program.parent().map(PathBuf::from).unwrap_or_default(),
            program,
            config: room.file(config),
        };
        Ok(Plugins {
            ours: subject(program, "flannel.json"),
            go: subject(options.go.join("bridge"), "bridge.json"),
            our_ports: subject(room.executable("portmap"), "portmap.json"),
            go_ports: subject(options.go.join("portmap"), "portmap.json"),
        })
    }
}

/// Prints the figures beside their budgets; an error when one is missed by far.
fn report(options: &Options, figures: &Figures) -> Outcome<()> {
    let mut text = String::new();
    if options.json {
        let fields = figures
            .iter()
            .map(|(name, value)| format!("  \"{name}\": {value:.3}"));
        let _ = writeln!(text, "{{\n{}\n}}", fields.collect::<Vec<_>>().join(",\n"));
    } else {
        for (name, value) in figures {
            let budget = BUDGETS.iter().find(|(have, ..)| have == name);
            let beside = budget.map_or_else(String::new, |(_, number, bound, _)| {
                let sign = match bound {
                    Bound::Most => '≤',
                    Bound::Least => '≥',
                };
                let verdict = if bound.holds(*value, *number) {
                    ""
                } else {
                    "  missed"
                };
                format!("   budget {sign} {number}{verdict}")
            });
            let _ = writeln!(text, "{name:<34} {value:>10.2}{beside}");
        }
    }
    std::io::stdout().write_all(text.as_bytes())?;
    // Of a part that was not asked for there is no figure.
    let failed = BUDGETS
        .iter()
        .filter(|(name, _, bound, gate)| match figures.get(*name) {
            Some(value) => !bound.holds(*value, *gate),
            None => options.part.is_none(),
        });
    let failed: Vec<&str> = failed.map(|(name, ..)| *name).collect();
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!("far over budget: {}", failed.join(", ")).into())
    }
}

/// The ratios that budgets are about.
fn derive(figures: &mut Figures) {
    let get = |name: &str| figures.get(name).copied().unwrap_or(f64::NAN);
    let ratios = [
        (
            "ratio.add_p50_to_go_bridge",
            get("ours.add.p50_ms") / get("go_bridge.add.p50_ms"),
        ),
        (
            "ratio.del_p50_to_go_bridge",
            get("ours.del.p50_ms") / get("go_bridge.del.p50_ms"),
        ),
        (
            "ratio.add_rate_to_go_bridge",
            get("ours.at_once.add_per_s") / get("go_bridge.at_once.add_per_s"),
        ),
        (
            "ratio.add_p50_with_4000_to_without",
            get("ours_with_4000.add.p50_ms") / get("ours.add.p50_ms"),
        ),
        (
            "ratio.port_add_p50_to_go",
            get("ours.port.add.p50_ms") / get("go_bridge.port.add.p50_ms"),
        ),
        (
            "ratio.port_del_p50_to_go",
            get("ours.port.del.p50_ms") / get("go_bridge.port.del.p50_ms"),
        ),
        (
            "del_p50_beyond_dellink_ms",
            get("ours.del.p50_ms") - get("kernel.dellink.p50_ms"),
        ),
    ];
    for (name, value) in ratios {
        if !value.is_nan() {
            figures.insert(name.to_owned(), value);
        }
    }
}
