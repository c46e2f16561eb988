//! `flannelctl cleanup`: takes what flannel has made on this host away, whichever flannel it was, and nothing else.
//!
//! INVARIANT: what is taken away has been shown before by `--dry-run` of the same host: both look by the same eyes, and what is done
//! is one act for each thing that was seen.

mod files;
mod firewall;
mod kernel_objects;
mod processes;
mod runtimes;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::anyhow;
use fabric::object::{Family, LinkName, Op};
use flanneld::state_dir::{self, State};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::arguments::{Ended, Grammar};
use crate::output::{Mood, Out, say};

const HELP: &str = "\
Takes away what flannel has made on this host: devices, routes, firewall rules, the bridge and the records of its CNI plugins, its
files. Whichever flannel made it, this one or Go's. What is somebody else's, or may be, stays and is named.

Usage: flannelctl cleanup [--dry-run] [--force] [--cni-bin DIR] [--cni-conf DIR] [--json]

  --dry-run       only say what would go
  --force         also while containers are attached to the bridge, which then stays
  --cni-bin DIR   where runtimes look for plugins (default /opt/cni/bin)
  --cni-conf DIR  where they look for configurations (default /etc/cni/net.d)
  --json          the same as JSON

Refused while a flanneld runs: it would put everything back. The host's lease stays in the registry until it expires; units and
packages are the package manager's. Exit status 1 when something could not be taken away.

Examples:
  flannelctl cleanup --dry-run
  flannelctl cleanup
";

/// Something of flannel's.
struct Item {
    kind: &'static str,
    text: String,
    act: Act,
}

/// How it goes.
enum Act {
    /// An object of the kernel's.
    Object(Box<Op>),
    /// Rules, by the program that brought them in.
    Rules(firewall::Removal),
    /// The plugins' bridge.
    Bridge(LinkName),
    /// The executables of the plugins; what was there before is put back.
    Plugins(PathBuf),
    /// A file.
    File(PathBuf),
    /// A folder with what is in it.
    Folder(PathBuf),
    /// A folder, where nothing is left in it.
    EmptyFolder(PathBuf),
}

/// What is on the host.
#[derive(Default)]
struct Findings {
    /// What goes, in this order.
    items: Vec<Item>,
    /// What stays, and why.
    stays: Vec<String>,
    /// What could not be looked at.
    unread: Vec<String>,
    /// Containers' ends on the bridge.
    attached: Vec<String>,
}

impl Item {
    /// Of a file or folder, which.
    fn path(&self) -> Option<&PathBuf> {
        match &self.act {
            Act::File(path) | Act::Folder(path) | Act::EmptyFolder(path) => Some(path),
            Act::Object(_) | Act::Rules(_) | Act::Bridge(_) | Act::Plugins(_) => None,
        }
    }
}

impl Findings {
    fn add(&mut self, kind: &'static str, text: impl Into<String>, act: Act) {
        let text = text.into();
        self.items.push(Item { kind, text, act });
    }
}

/// Where things are.
struct Places<'a> {
    plugins: &'a Path,
    configurations: &'a Path,
}

/// What flannel is known to have had here.
struct Past {
    states: Vec<(PathBuf, State)>,
    networks: Vec<IpNet>,
}

impl Past {
    fn read(findings: &mut Findings) -> Past {
        let mut past = Past {
            states: Vec::new(),
            networks: Vec::new(),
        };
        for (folder, state) in state_dir::all_under(Path::new(state_dir::DEFAULT_DIRECTORY)) {
            match state {
                Ok(state) => past.states.push((folder, state)),
                Err(why) => {
                    let file = folder.join(state_dir::FILE);
                    findings.unread.push(format!(
                        "{}: {why}; routes that it alone knows of stay",
                        file.display()
                    ));
                }
            }
        }
        let recorded = past.states.iter().flat_map(|(_, state)| state.former_networks());
        let mut networks: Vec<IpNet> = recorded.collect();
        for file in past.subnet_files() {
            let previous = flanneld::subnet_file::read_previous(&file);
            networks.extend(previous.network.map(IpNet::V4));
            networks.extend(previous.network6.map(IpNet::V6));
        }
        networks.sort();
        networks.dedup();
        past.networks = networks;
        past
    }

    /// The subnet files of all daemons that have left a state, the default one first.
    fn subnet_files(&self) -> Vec<PathBuf> {
        let mut files = vec![PathBuf::from(fabric::status::SUBNET_FILE)];
        let named = self
            .states
            .iter()
            .map(|(_, state)| PathBuf::from(&state.subnet_file));
        for file in named.filter(|file| file.is_absolute()) {
            if !files.contains(&file) {
                files.push(file);
            }
        }
        files
    }

    fn networks_of(&self, family: Family) -> Vec<IpNet> {
        let of_family = |net: &&IpNet| Family::of_net(**net) == family;
        self.networks.iter().filter(of_family).copied().collect()
    }
}

fn look(places: &Places<'_>) -> Findings {
    let mut findings = Findings::default();
    let past = Past::read(&mut findings);
    kernel_objects::look(&past, &mut findings);
    firewall::look(&past, &mut findings);
    runtimes::look(places, &mut findings);
    files::look(&past, &mut findings);
    findings
}

/// `flannelctl cleanup`.
pub fn run(arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let grammar = Grammar {
        help: HELP,
        values: &["cni-bin", "cni-conf"],
        switches: &["dry-run", "force", "json"],
        stop_at_positional: false,
    };
    let read = grammar.read(arguments)?;
    read.exactly([])?;
    let places = Places {
        plugins: Path::new(read.value_or("cni-bin", runtimes::PLUGINS)),
        configurations: Path::new(read.value_or("cni-conf", runtimes::CONFIGURATIONS)),
    };
    let findings = look(&places);
    let refused = refusal(&findings, read.has("force"));
    if read.has("dry-run") {
        return show(&findings, refused.as_deref(), read.has("json"), out);
    }
    if let Some(why) = refused {
        return Err(Ended::Failed(anyhow!(why)));
    }
    take_away(findings, &places, read.has("json"), out)
}

/// Why nothing is taken away.
fn refusal(findings: &Findings, force: bool) -> Option<String> {
    let running = processes::flannelds();
    if !running.is_empty() {
        let pids: Vec<String> = running.iter().map(u32::to_string).collect();
        return Some(format!(
            "flanneld runs here (pid {}) and would put everything back: stop it first (systemctl stop flanneld; in Kubernetes take its DaemonSet away)",
            pids.join(", ")
        ));
    }
    if !findings.attached.is_empty() && !force {
        return Some(format!(
            "containers are attached to the bridge of the pods ({}): end them first, or --force",
            findings.attached.join(", ")
        ));
    }
    None
}

fn show(findings: &Findings, refused: Option<&str>, as_json: bool, out: &mut Out) -> Result<ExitCode, Ended> {
    if as_json {
        let items: Vec<Value> = findings.items.iter().map(shown).collect();
        out.json(&json!({
            "would_remove": items,
            "stays": findings.stays,
            "unread": findings.unread,
            "refused": refused,
        }))?;
        return Ok(code(findings.unread.is_empty()));
    }
    for item in &findings.items {
        out.line(&format!("would remove {}", item.text))?;
    }
    if findings.items.is_empty() {
        out.line("nothing of flannel's is here")?;
    }
    name_rest(findings, out)?;
    if let Some(refused) = refused {
        say(&format!("would be refused now: {refused}"));
    }
    Ok(code(findings.unread.is_empty()))
}

fn name_rest(findings: &Findings, out: &mut Out) -> Result<(), Ended> {
    for text in &findings.stays {
        let text = out.paint(Mood::Warn, &format!("stays: {text}"));
        out.line(&text)?;
    }
    for text in &findings.unread {
        let text = out.paint(Mood::Bad, &format!("not looked at: {text}"));
        out.line(&text)?;
    }
    Ok(())
}

fn shown(item: &Item) -> Value {
    json!({ "kind": item.kind, "what": item.text })
}

fn take_away(
    mut findings: Findings,
    places: &Places<'_>,
    as_json: bool,
    out: &mut Out,
) -> Result<ExitCode, Ended> {
    let (mut removed, mut failed) = (Vec::new(), Vec::new());
    let mut remover = kernel_objects::Remover::default();
    for item in std::mem::take(&mut findings.items) {
        match act(&item, &mut remover) {
            Ok(()) => {
                if !as_json {
                    out.line(&format!("removed {}", item.text))?;
                }
                removed.push(shown(&item));
            }
            Err(why) => {
                let text = format!("{}: {why:#}", item.text);
                if !as_json {
                    let painted = out.paint(Mood::Bad, &format!("not removed: {text}"));
                    out.line(&painted)?;
                }
                failed.push(text);
            }
        }
    }
    // Somebody may have made it anew, or a program have said "done" that was not.
    let after = look(places);
    let left = after.items.iter().map(|item| item.text.clone());
    let left: Vec<String> = left
        .filter(|text| !failed.iter().any(|one| one.starts_with(text)))
        .collect();
    let is_good = failed.is_empty() && left.is_empty() && findings.unread.is_empty();
    if as_json {
        out.json(&json!({
            "removed": removed,
            "failed": failed,
            "there_again": left,
            "stays": findings.stays,
            "unread": findings.unread,
        }))?;
        return Ok(code(is_good));
    }
    for text in &left {
        let text = out.paint(Mood::Bad, &format!("there again: {text}"));
        out.line(&text)?;
    }
    if removed.is_empty() && failed.is_empty() {
        out.line("nothing of flannel's is here")?;
    }
    // As it was seen with the record that is gone by now.
    name_rest(&findings, out)?;
    Ok(code(is_good))
}

fn code(is_good: bool) -> ExitCode {
    if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn act(item: &Item, remover: &mut kernel_objects::Remover) -> anyhow::Result<()> {
    match &item.act {
        Act::Object(op) => remover.remove(op),
        Act::Rules(removal) => firewall::remove(removal),
        Act::Bridge(name) => kernel_objects::remove_bridge(*name),
        Act::Plugins(folder) => runtimes::uninstall(folder),
        Act::File(path) => Ok(std::fs::remove_file(path)?),
        Act::Folder(path) => Ok(std::fs::remove_dir_all(path)?),
        Act::EmptyFolder(path) => Ok(std::fs::remove_dir(path)?),
    }
}
