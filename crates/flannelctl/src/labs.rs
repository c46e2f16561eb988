//! `flannelctl lab`: a network of hosts and pods on this machine.

mod show;
mod up;

use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ::lab::fault::{FAULTS, WORLD};
use ::lab::{Lab, topology};
use anyhow::anyhow;
use serde_json::json;

use crate::arguments::{Arguments, Ended, Grammar};
use crate::output::{Mood, Out, cell, heading, mood, say};

const HELP: &str = "\
A network of hosts and pods on this machine, made of network namespaces. Needs root and iproute2.

Usage: flannelctl lab up|status|exec|break|down [--name NAME] ...

  up       build it: hosts, registry, flanneld on each, a pod on each; then prove that every pod reaches every pod
  status   what is there and whether it runs; --matrix proves it again
  exec     run a command in a host, a pod, or the switch
  break    do a named fault to a host, to watch it being repaired
  down     take it down without a trace

Examples:
  flannelctl lab up --nodes 3 --backend vxlan --family 46
  flannelctl lab exec h1-p1 ping 10.244.7.2
  flannelctl lab break h1 link-del
  flannelctl lab down
";

const STATUS_HELP: &str = "\
Shows a lab: hosts, subnets, pods, and whether daemons and registry run.

Usage: flannelctl lab status [--name NAME] [--matrix] [--json]

  --name NAME  which lab (default: $FLANNEL_LAB_NAME, else lab)
  --matrix     ping every pod from every pod and host, and find the largest unfragmented packet
  --json       the same as JSON

Exit status 1 when a process does not run, or a cell of the matrix is not good.

Examples:
  flannelctl lab status
  flannelctl lab status --matrix --json
";

const EXEC_HELP: &str = "\
Runs a command in a host (h1), in a pod (h1-p1), or on the switch (sw); without a command, a shell.

Usage: flannelctl lab exec [--name NAME] NODE|POD [COMMAND ...]

Examples:
  flannelctl lab exec h1 flannelctl status
  flannelctl lab exec h1-p1 ip addr
";

const BREAK_HELP: &str = "\
Does a named fault to a host, says what it did, when all was as before and what flanneld logged of it, and how to look oneself.
To see the host while it is broken, let flanneld hold its hand still first: `flannelctl lab exec HOST flannelctl pause`.

Usage: flannelctl lab break [--name NAME] HOST FAULT
       flannelctl lab break --list [--json]

Examples:
  flannelctl lab break --list
  flannelctl lab break h2 link-del
  flannelctl lab break h2 route-replace
";

const DOWN_HELP: &str = "\
Ends every process of a lab and removes its namespaces and files. A lab that is not there is no error.

Usage: flannelctl lab down [--name NAME | --all]

Examples:
  flannelctl lab down
  flannelctl lab down --all
";

/// A repair that takes longer than this is none: what is merely missing is back within a second.
const LONGEST_REPAIR: Duration = Duration::from_secs(10);
/// So many of the daemon's own lines on it are shown.
const MOST_REPAIRS: usize = 5;

/// Name of a lab when neither `--name` nor `FLANNEL_LAB_NAME` gives one.
pub const DEFAULT_NAME: &str = "lab";

/// The lab meant by a command line.
pub fn name(read: &Arguments) -> String {
    let named = read.value("name").map(str::to_owned);
    named
        .or_else(|| std::env::var("FLANNEL_LAB_NAME").ok().filter(|n| !n.is_empty()))
        .unwrap_or_else(|| DEFAULT_NAME.to_owned())
}

/// `flannelctl lab ...`.
pub fn run(arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let (verb, rest) = match arguments.split_first() {
        Some((verb, rest)) => (verb.as_str(), rest),
        None => return Err(Ended::Usage(format!("lab: no verb\n\n{HELP}"))),
    };
    match verb {
        "up" => up::run(rest, out),
        "status" => status(rest, out),
        "exec" => exec(rest),
        "break" => strike(rest, out),
        "down" => down(rest, out),
        "-h" | "--help" | "help" => Err(Ended::Help(HELP)),
        other => Err(Ended::Usage(format!("lab: no verb {other:?}\n\n{HELP}"))),
    }
}

fn status(arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let grammar = Grammar {
        help: STATUS_HELP,
        values: &["name"],
        switches: &["matrix", "json"],
        stop_at_positional: false,
    };
    let read = grammar.read(arguments)?;
    read.exactly([])?;
    let lab = Lab::load(&name(&read))?;
    let matrix = if read.has("matrix") {
        Some(lab.matrix()?)
    } else {
        None
    };
    let daemons = show::daemons(&lab);
    let good = show::alive(&lab, &daemons) && matrix.as_ref().is_none_or(|m| m.good());
    if read.has("json") {
        let mut value = show::inventory_json(&lab, &daemons);
        value["good"] = json!(good);
        if let Some(matrix) = &matrix {
            value["matrix"] = serde_json::to_value(matrix)?;
        }
        out.json(&value)?;
    } else {
        show::inventory(&lab, &daemons, out)?;
        if let Some(matrix) = &matrix {
            out.line("")?;
            show::matrix(&lab, matrix, out)?;
        }
    }
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn exec(arguments: &[String]) -> Result<ExitCode, Ended> {
    let grammar = Grammar {
        help: EXEC_HELP,
        values: &["name"],
        switches: &[],
        stop_at_positional: true,
    };
    let read = grammar.read(arguments)?;
    let Some((place, command)) = read.positionals.split_first() else {
        return Err(Ended::Usage(
            "lab exec: expected NODE|POD [COMMAND ...]".to_owned(),
        ));
    };
    let lab = Lab::load(&name(&read))?;
    let (node, pod) = lab.find(place)?;
    let mut words: Vec<&str> = command.iter().map(String::as_str).collect();
    if words.first() == Some(&"--") {
        words.remove(0);
    }
    if words.is_empty() {
        words.push("bash");
    }
    if let Some(pod) = pod {
        words.splice(0..0, ["ip", "netns", "exec", &pod.name]);
    }
    let error = node.command(&words).exec();
    Err(Ended::Failed(anyhow!("cannot run {}: {error}", words.join(" "))))
}

fn strike(arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let grammar = Grammar {
        help: BREAK_HELP,
        values: &["name"],
        switches: &["list", "json"],
        stop_at_positional: false,
    };
    let read = grammar.read(arguments)?;
    if read.has("list") {
        let faults = FAULTS
            .iter()
            .map(|f| (f.name, f.about))
            .chain(WORLD.iter().copied());
        if read.has("json") {
            let list: Vec<_> = faults
                .map(|(name, about)| json!({ "name": name, "about": about }))
                .collect();
            out.json(&list)?;
        } else {
            let mut rows = vec![heading(&["FAULT", "WHAT IT DOES"])];
            rows.extend(faults.map(|(name, about)| vec![cell(name), cell(about)]));
            out.table(&rows)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let [place, fault] = read.exactly(["HOST", "FAULT"])?;
    let mut lab = Lab::load(&name(&read))?;
    let number = place
        .trim_start_matches('h')
        .parse::<usize>()
        .ok()
        .filter(|n| (1..=lab.spec.hosts).contains(n));
    let Some(number) = number else {
        return Err(Ended::Usage(format!(
            "{place}: expected a host, h1 to h{}",
            lab.spec.hosts
        )));
    };
    // How the host stood before is what the repair is known by: seen by ip, bridge and iptables, not by who repairs.
    let part = ::lab::fault::find(fault).map(|fault| fault.part);
    let before = part
        .map(|part| ::lab::fault::part_text(lab.host(number), part))
        .transpose()?;
    let said_before = lab.log_of(number).len();
    let broken = lab.strike(number, fault)?;
    let struck = Instant::now();
    let lab_flag = match read.value("name") {
        Some(name) => format!(" --name {name}"),
        None => String::new(),
    };
    out.line(&format!("on h{number}:  {}", broken.did))?;
    if let (Some(part), Some(before)) = (part, before) {
        let back = loop {
            if ::lab::fault::part_text(lab.host(number), part)? == before {
                break Some(struck.elapsed());
            }
            if struck.elapsed() > LONGEST_REPAIR {
                break None;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        out.line(&match back {
            Some(time) => format!("by then:  all as before, {:.2} s later", time.as_secs_f64()),
            None => format!(
                "by then:  still not as before, {} s later",
                LONGEST_REPAIR.as_secs()
            ),
        })?;
        // What it says comes a moment after what it does.
        std::thread::sleep(Duration::from_millis(100));
        let log = lab.log_of(number);
        let news = log.get(said_before..).unwrap_or_default();
        for line in news
            .lines()
            .filter(|line| line.contains("repaired"))
            .take(MOST_REPAIRS)
        {
            out.line(&format!("flanneld: {line}"))?;
        }
    }
    let looks: Vec<String> = broken
        .look
        .split("; ")
        .map(|l| format!("flannelctl lab exec{lab_flag} h{number} {l}"))
        .collect();
    for (index, look) in looks.iter().enumerate() {
        let before = if index == 0 { "to look:" } else { "" };
        out.line(&format!("{before:8}  {look}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn down(arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let grammar = Grammar {
        help: DOWN_HELP,
        values: &["name"],
        switches: &["all"],
        stop_at_positional: false,
    };
    let read = grammar.read(arguments)?;
    read.exactly([])?;
    let names = if read.has("all") {
        topology::names()
    } else {
        vec![name(&read)]
    };
    for name in names {
        let text = if topology::remove(&name)? {
            "is gone"
        } else {
            "was not there"
        };
        let text = out.paint(Mood::Good, text);
        out.line(&format!("lab {name} {text}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A coloured word for something that should be true.
fn verdict(good: bool, yes: &str, no: &str) -> (String, Option<Mood>) {
    if good {
        mood(Mood::Good, yes)
    } else {
        mood(Mood::Bad, no)
    }
}

/// Warns that a command interrupted itself.
fn interrupted() -> Ended {
    say("interrupted: what was built is gone again");
    Ended::Failed(anyhow!("interrupted"))
}
