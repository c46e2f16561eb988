//! A lab as tables and as JSON.

use ::lab::Lab;
use ::lab::reach::{Cell, Matrix};
use ::lab::speed::Speed;
use ::lab::store::Kind;
use serde_json::{Value, json};

use super::{DEFAULT_NAME, verdict};
use crate::arguments::Ended;
use crate::output::{Mood, Out, cell, heading, mood};

/// How it stands with the daemon of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Daemon {
    /// It runs and answers.
    Runs,
    /// There is a process, and this is why it counts for nothing.
    Hangs(String),
    /// There is none.
    Down,
}

/// How it stands with the daemons, by host; asks each.
pub fn daemons(lab: &Lab) -> Vec<Daemon> {
    let of_host = |number: usize| {
        let daemon = lab.state.daemons.iter().find(|d| d.0 == number);
        let Some((_, process)) = daemon.filter(|d| d.1.alive()) else {
            return Daemon::Down;
        };
        // The host's own `/run`, through the process.
        let socket = format!("/proc/{}/root{}", process.pid, crate::socket::DEFAULT);
        match crate::socket::why_silent(&socket) {
            None => Daemon::Runs,
            Some(why) => Daemon::Hangs(why.replace(&socket, crate::socket::DEFAULT)),
        }
    };
    (1..=lab.spec.hosts).map(of_host).collect()
}

/// Every daemon runs and answers, and the registry runs.
pub fn alive(lab: &Lab, daemons: &[Daemon]) -> bool {
    daemons.iter().all(|daemon| *daemon == Daemon::Runs)
        && lab.state.store.as_ref().is_some_and(|s| s.process.alive())
}

fn subnets(lab: &Lab, host: usize) -> Vec<String> {
    lab.env(host)
        .map(|e| e.subnets().iter().map(ToString::to_string).collect())
        .unwrap_or_default()
}

fn underlay(lab: &Lab, host: usize) -> Vec<String> {
    lab.spec
        .families
        .each()
        .into_iter()
        .map(|f| lab.spec.host_address(host, f).to_string())
        .collect()
}

fn pods(lab: &Lab, host: usize) -> Vec<String> {
    let of_host = lab.state.pods.iter().filter(|p| p.host == host);
    of_host
        .map(|p| {
            let addresses: Vec<String> = p.addresses.iter().map(|a| a.addr().to_string()).collect();
            format!("{} {}", p.full_name(), addresses.join(" "))
        })
        .collect()
}

/// What is there, as JSON.
pub fn inventory_json(lab: &Lab, daemons: &[Daemon]) -> Value {
    let host = |number: usize| {
        let daemon = lab.state.daemons.iter().find(|d| d.0 == number).map(|d| &d.1);
        json!({
            "name": format!("h{number}"),
            "netns": lab.host(number).netns,
            "addresses": underlay(lab, number),
            "subnets": subnets(lab, number),
            "flanneld": { "pid": daemon.map(|d| d.pid), "alive": daemon.is_some_and(|d| d.alive()), "silent": silent(daemons, number), "log": daemon.map(|d| &d.log) },
        })
    };
    let store = lab.state.store.as_ref();
    json!({
        "name": lab.spec.name,
        "backend": lab.state.backend,
        "family": lab.spec.families.to_string(),
        "mtu": lab.spec.mtu,
        "registry": store.map(|s| json!({ "kind": s.kind, "endpoint": s.endpoint, "pid": s.process.pid, "alive": s.process.alive() })),
        "hosts": (1..=lab.spec.hosts).map(host).collect::<Vec<_>>(),
        "pods": lab.state.pods.iter().map(|p| json!({ "name": p.full_name(), "host": format!("h{}", p.host), "addresses": p.addresses })).collect::<Vec<_>>(),
    })
}

/// Why the daemon of a host does not answer, where there is one that does not.
fn silent(daemons: &[Daemon], number: usize) -> Option<&str> {
    match daemons.get(number - 1) {
        Some(Daemon::Hangs(why)) => Some(why),
        _ => None,
    }
}

/// What is there, as a table.
pub fn inventory(lab: &Lab, daemons: &[Daemon], out: &mut Out) -> Result<(), Ended> {
    let store = match &lab.state.store {
        None => "no registry".to_owned(),
        Some(store) => {
            let state = if store.process.alive() {
                ""
            } else {
                " (NOT RUNNING)"
            };
            format!("{} at {}{state}", store.kind, store.endpoint)
        }
    };
    let family = match lab.spec.families.to_string().as_str() {
        "4" => "IPv4",
        "6" => "IPv6",
        _ => "IPv4 and IPv6",
    };
    let title = format!(
        "lab {}: {} hosts, {}, {family}, {store}",
        lab.spec.name, lab.spec.hosts, lab.state.backend
    );
    let title = out.paint(Mood::Strong, &title);
    out.line(&title)?;
    let mut rows = vec![heading(&["HOST", "FLANNELD", "UNDERLAY", "SUBNETS", "PODS"])];
    for number in 1..=lab.spec.hosts {
        let daemon = daemons.get(number - 1);
        let word = if silent(daemons, number).is_some() {
            "HANGS"
        } else {
            "DOWN"
        };
        rows.push(vec![
            cell(format!("h{number}")),
            verdict(daemon == Some(&Daemon::Runs), "runs", word),
            cell(underlay(lab, number).join(" ")),
            cell(subnets(lab, number).join(" ")),
            cell(pods(lab, number).join(", ")),
        ]);
    }
    out.table(&rows)?;
    for number in 1..=lab.spec.hosts {
        if let Some(why) = silent(daemons, number) {
            let line = out.paint(Mood::Bad, &format!("h{number}: {why}"));
            out.line(&line)?;
        }
    }
    Ok(())
}

/// At most so many pods are shown as a matrix; beyond, counts and what is not good.
const WIDEST: usize = 8;

/// Who reaches whom.
pub fn matrix(lab: &Lab, matrix: &Matrix, out: &mut Out) -> Result<(), Ended> {
    let families: Vec<&str> = lab
        .spec
        .families
        .each()
        .iter()
        .map(|f| if *f == 4 { "IPv4" } else { "IPv6" })
        .collect();
    if lab.state.pods.len() <= WIDEST {
        let title = format!(
            "largest unfragmented packet in bytes, {}, from row to column",
            families.join(" / ")
        );
        let title = out.paint(Mood::Strong, &title);
        out.line(&title)?;
        let names: Vec<String> = lab.state.pods.iter().map(::lab::pod::Pod::full_name).collect();
        let mut head = vec![mood(Mood::Strong, "")];
        head.extend(names.iter().map(|n| mood(Mood::Strong, n.as_str())));
        let mut rows = vec![head];
        let mut senders: Vec<&str> = matrix.cells.iter().map(|c| c.from.as_str()).collect();
        senders.dedup();
        for from in senders {
            let mut row = vec![cell(from)];
            for to in &names {
                let cells: Vec<&Cell> = matrix
                    .cells
                    .iter()
                    .filter(|c| c.from == from && c.to == *to)
                    .collect();
                row.push(path(&cells));
            }
            rows.push(row);
        }
        out.table(&rows)?;
    }
    let good = matrix.cells.iter().filter(|c| c.good()).count();
    let text = format!(
        "{good} of {} paths answer with packets of full size; {} fragments were made",
        matrix.cells.len(),
        matrix.fragments
    );
    let text = out.paint(if matrix.good() { Mood::Good } else { Mood::Bad }, &text);
    out.line(&text)?;
    for bad in matrix.bad().iter().take(20) {
        let what = match (bad.reachable, bad.largest) {
            (false, _) => "no answer".to_owned(),
            (true, None) => "answers small packets, none that must not be fragmented".to_owned(),
            (true, Some(size)) => format!("largest packet {size}, expected {}", bad.expected),
        };
        let what = out.paint(Mood::Bad, &what);
        out.line(&format!("  {} -> {} IPv{}: {what}", bad.from, bad.to, bad.family))?;
    }
    Ok(())
}

fn path(cells: &[&Cell]) -> (String, Option<Mood>) {
    if cells.is_empty() {
        return mood(Mood::Faint, ".");
    }
    let text: Vec<String> = cells
        .iter()
        .map(|c| {
            if !c.reachable {
                "FAIL".to_owned()
            } else {
                c.largest.map_or("?".to_owned(), |l| l.to_string())
            }
        })
        .collect();
    let good = cells.iter().all(|c| c.good());
    mood(if good { Mood::Good } else { Mood::Bad }, text.join(" / "))
}

/// Figures beside the bare underlay of the same family.
pub fn speeds(speeds: &[Speed], out: &mut Out) -> Result<(), Ended> {
    let mut rows = vec![heading(&[
        "PATH",
        "FAMILY",
        "TCP GBIT/S",
        "OF UNDERLAY",
        "ROUND TRIP MS",
    ])];
    for speed in speeds {
        let bare = speeds
            .iter()
            .find(|s| s.family == speed.family && !s.from.contains('-'));
        let ratio = bare.map_or(String::new(), |b| format!("{:.2}", speed.gbit_s / b.gbit_s));
        let kind = if speed.from.contains('-') {
            ""
        } else {
            " (underlay)"
        };
        rows.push(vec![
            cell(format!("{} -> {}{kind}", speed.from, speed.to)),
            cell(format!("IPv{}", speed.family)),
            cell(format!("{:.2}", speed.gbit_s)),
            cell(ratio),
            cell(speed.rtt_ms.map_or("?".to_owned(), |r| format!("{r:.3}"))),
        ]);
    }
    out.table(&rows)
}

/// How to go on from here.
pub fn ways_in(lab: &Lab, out: &mut Out) -> Result<(), Ended> {
    let own = std::env::current_exe().map_or("flannelctl".to_owned(), |p| p.display().to_string());
    let name = if lab.spec.name == DEFAULT_NAME {
        String::new()
    } else {
        format!(" --name {}", lab.spec.name)
    };
    let target = lab
        .state
        .pods
        .last()
        .and_then(|p| Some(p.addresses.first()?.addr().to_string()));
    let target = target.unwrap_or_else(|| "ADDRESS".to_owned());
    let mut rows = Vec::new();
    for (verb, rest, what) in [
        ("exec", " h1".to_owned(), "a shell in host h1"),
        ("exec", format!(" h1-p1 ping {target}"), "a command in a pod"),
        ("exec", " h1 flannelctl status".to_owned(), "what a daemon says"),
        (
            "break",
            " h1 link-del".to_owned(),
            "break something (--list names the faults)",
        ),
        ("status", " --matrix".to_owned(), "prove it again"),
        ("down", String::new(), "take it down"),
    ] {
        rows.push(vec![
            cell(format!("{own} lab {verb}{name}{rest}")),
            mood(Mood::Faint, what),
        ]);
    }
    out.table(&rows)?;
    if lab
        .state
        .store
        .as_ref()
        .is_some_and(|store| store.kind == Kind::Kube)
    {
        out.line(&format!("kubectl:        {}", lab.cluster().entry()?))?;
    }
    out.line(&format!("logs and state: {}", lab.spec.directory().display()))
}
