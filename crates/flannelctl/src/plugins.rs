//! `flannelctl cni`: the plugins of this host, and the configuration that makes runtimes use them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use cni::conflist;
use cni::install::{self, ALL, DEFAULT};
use serde_json::json;

use crate::arguments::{Arguments, Ended, Grammar};
use crate::output::{Mood, Out, say};

const HELP: &str = "\
The CNI plugins of this host: `flannel-cni` under the names that container runtimes look for.

Usage: flannelctl cni install|uninstall|conf|install-conf ...

  install       put it where runtimes look; what was in its place is kept
  uninstall     take it away, and give back what was there before
  conf          print or write the configuration for runtimes
  install-conf  put a configuration of one's own there, where it says something new

Examples:
  flannelctl cni install
  flannelctl cni conf --write
";

const INSTALL_HELP: &str = "\
Puts `flannel-cni` where container runtimes look for plugins: as `flannel` alone, beside other plugins, or under every name it
knows. Pods may run and come meanwhile: each file changes in one step. Go's `flannel` that was there is kept as
`.flannel.before`, for `flannelctl cni uninstall`.

Usage: flannelctl cni install [--dir DIR] [--all] [--replace] [--from FILE] [--json]

  --dir DIR    where runtimes look (default /opt/cni/bin)
  --all        also as bridge, host-local, loopback, portmap and bandwidth, for a machine without Go's plugins;
               others' files of those names stay
  --replace    others' files of those names do not stay; they are kept as `flannel` is
  --from FILE  the executable (default: flannel-cni beside flannelctl)
  --json       what was done, as JSON

Examples:
  flannelctl cni install
  flannelctl cni install --all
";

const UNINSTALL_HELP: &str = "\
Takes `flannel-cni` away under every name it has, and gives back what was there before. Pods may run meanwhile: what was made by
either, Go's plugins or ours, the other deletes.

Usage: flannelctl cni uninstall [--dir DIR] [--json]

  --dir DIR  where runtimes look (default /opt/cni/bin)
  --json     what was done, as JSON

The configuration stays. Where the plugins given back are old, write it again by `flannelctl cni conf --write --replace`.

Examples:
  flannelctl cni uninstall
";

const CONF_HELP: &str = "\
Prints the configuration list for container runtimes: flannel, then portmap. It offers CNI 0.3.1 and 0.4.0, which every runtime
can read, also through Multus.

Usage: flannelctl cni conf [--write [FILE]] [--name NAME] [--dir DIR] [--replace] [--all-versions]

  --write [FILE]  write it, in one step (default /etc/cni/net.d/10-flannel.conflist)
  --name NAME     of the network (default cbr0)
  --dir DIR       where the plugins are (default /opt/cni/bin)
  --replace       a file that says something else does not stay
  --all-versions  also 1.0.0 and 1.1.0, as far as the plugins there speak them: a runtime that knows 1.1.0 (containerd 2) then asks
                  for STATUS and GC. Not where thin Multus (`multus`) is called by an older one (containerd 1): no pod would start

Exit status 1 when there is a file that says something else.

Examples:
  flannelctl cni conf
  flannelctl cni conf --write
  flannelctl cni conf --write /etc/cni/net.d/10-pods.conflist --name pods
";

const INSTALL_CONF_HELP: &str = "\
Copies a configuration for container runtimes to where they look, in one step. What says the same already is not touched: runtimes
read a file anew whenever it changes. One that is no JSON is refused, and what is there stays.
In flannel's manifests `install-conf` is a program of its own; called by that name, flannelctl is this command.

Usage: flannelctl cni install-conf SOURCE DESTINATION
       install-conf SOURCE DESTINATION

Examples:
  flannelctl cni install-conf /etc/kube-flannel/cni-conf.json /etc/cni/net.d/10-flannel.conflist
";

/// Called by this name, the executable is the command `cni install-conf`.
pub const INSTALL_CONF: &str = "install-conf";

/// Where runtimes look for plugins.
const FOLDER: &str = "/opt/cni/bin";
const EXECUTABLE: &str = "flannel-cni";

/// `flannelctl cni ...`.
pub fn run(arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let (verb, rest) = match arguments.split_first() {
        Some((verb, rest)) => (verb.as_str(), rest),
        None => return Err(Ended::Usage(format!("cni: no verb\n\n{HELP}"))),
    };
    match verb {
        "install" => install(rest, out),
        "uninstall" => uninstall(rest, out),
        "conf" => conf(rest, out),
        INSTALL_CONF => install_conf(rest, out),
        "-h" | "--help" | "help" => Err(Ended::Help(HELP)),
        other => Err(Ended::Usage(format!("cni: no verb {other:?}\n\n{HELP}"))),
    }
}

fn install(arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let grammar = Grammar {
        help: INSTALL_HELP,
        values: &["dir", "from"],
        switches: &["all", "replace", "json"],
        stop_at_positional: false,
    };
    let read = grammar.read(arguments)?;
    read.exactly([])?;
    let executable = executable(read.value("from"))?;
    let folder = Path::new(read.value_or("dir", FOLDER));
    let names = if read.has("all") { ALL } else { DEFAULT };
    let installed = install::install(&executable, folder, names, read.has("replace"))?;
    if read.has("json") {
        let replaced = installed.replaced.iter();
        out.json(&json!({
            "installed": installed.done,
            "replaced": replaced.map(|(place, aside)| json!({ "place": place, "kept_as": aside })).collect::<Vec<_>>(),
            "kept": installed.kept,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for place in &installed.done {
        let aside = installed.replaced.iter().find(|(replaced, _)| replaced == place);
        let aside = aside.map(|(_, aside)| format!("; what was there is kept as {}", aside.display()));
        out.line(&format!(
            "{} is ours{}",
            place.display(),
            aside.unwrap_or_default()
        ))?;
    }
    for place in &installed.kept {
        let text = format!(
            "{} is another's and stays (--replace puts ours there)",
            place.display()
        );
        let text = out.paint(Mood::Warn, &text);
        out.line(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The executable to install, which has to be ours and to run on this machine.
fn executable(given: Option<&str>) -> anyhow::Result<PathBuf> {
    let file = match given {
        Some(file) => PathBuf::from(file),
        None => {
            let own = std::env::current_exe().context("where am I?")?;
            own.with_file_name(EXECUTABLE)
        }
    };
    let shown = file.display();
    if !file.is_file() {
        bail!("no {EXECUTABLE} at {shown}: name its place by --from");
    }
    if !install::is_ours(&file).with_context(|| shown.to_string())? {
        bail!("{shown} is not {EXECUTABLE}");
    }
    conflist::versions_of(&file, EXECUTABLE).map_err(|e| anyhow!("it does not run on this machine: {e}"))?;
    Ok(file)
}

fn uninstall(arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let grammar = Grammar {
        help: UNINSTALL_HELP,
        values: &["dir"],
        switches: &["json"],
        stop_at_positional: false,
    };
    let read = grammar.read(arguments)?;
    read.exactly([])?;
    let folder = Path::new(read.value_or("dir", FOLDER));
    let gone = install::uninstall(folder, ALL)?;
    if read.has("json") {
        out.json(&json!({ "restored": gone.restored, "removed": gone.removed, "aside": gone.aside }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for place in &gone.restored {
        out.line(&format!("{} is what it was before", place.display()))?;
    }
    for place in &gone.removed {
        out.line(&format!("{} is gone; nothing was there before", place.display()))?;
    }
    for aside in &gone.aside {
        let text = format!(
            "{} stays aside: somebody has put another in its place since",
            aside.display()
        );
        let text = out.paint(Mood::Warn, &text);
        out.line(&text)?;
    }
    if gone == install::Uninstalled::default() {
        out.line(&format!("nothing of ours is in {}", folder.display()))?;
    } else {
        let there = kernel::file::read(Path::new(conflist::PLACE), conflist::LARGEST);
        let there = String::from_utf8(there.ok().flatten().unwrap_or_default()).unwrap_or_default();
        let mut offered = conflist::OFFERED.to_vec();
        offered.retain(|version| there.contains(&format!("\"{version}\"")));
        let spoken = conflist::spoken(folder, &offered);
        for note in spoken.notes.iter().filter(|_| !there.is_empty()) {
            say(note);
            say("write the configuration again: flannelctl cni conf --write --replace");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn conf(arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let grammar = Grammar {
        help: CONF_HELP,
        values: &["name", "dir"],
        switches: &["write", "replace", "all-versions"],
        stop_at_positional: false,
    };
    // `--write` has a value or none.
    let mut words = Vec::new();
    for word in arguments {
        match word.strip_prefix("--write=") {
            Some(file) => words.extend(["--write".to_owned(), file.to_owned()]),
            None => words.push(word.clone()),
        }
    }
    let read = grammar.read(&words)?;
    let place = place(&read)?;
    let folder = Path::new(read.value_or("dir", FOLDER));
    let offered: &[&str] = if read.has("all-versions") {
        &conflist::OFFERED
    } else {
        &conflist::SAFE
    };
    let mut spoken = conflist::spoken(folder, offered);
    let multus = folder.join("multus");
    if read.has("all-versions") && multus.is_file() {
        spoken.notes.push(format!(
            "{} hands results on in the newest version offered: where the runtime is older than that, no pod starts",
            multus.display()
        ));
    }
    let text = conflist::text(read.value_or("name", conflist::NAME), &spoken.versions)
        .map_err(|why| Ended::Usage(format!("--name: {why}")))?;
    for note in &spoken.notes {
        say(note);
    }
    let Some(place) = place else {
        out.text(&text)?;
        return Ok(ExitCode::SUCCESS);
    };
    let shown = place.display();
    match kernel::file::read(&place, conflist::LARGEST) {
        Ok(Some(there)) if there == text.as_bytes() => {
            out.line(&format!("{shown} says so already"))?;
        }
        Ok(Some(_)) if !read.has("replace") => {
            return Err(Ended::Failed(anyhow!(
                "{shown} says something else (`flannelctl cni conf` prints what would be written): --replace writes over it"
            )));
        }
        Err(e) => return Err(Ended::Failed(anyhow!("{shown}: {e}"))),
        Ok(_) => {
            // What is half written has no name that a runtime reads.
            kernel::file::replace(&place, text.as_bytes(), 0o644).with_context(|| shown.to_string())?;
            out.line(&format!("{shown} is written"))?;
        }
    }
    name_earlier(&place, out)?;
    Ok(ExitCode::SUCCESS)
}

fn install_conf(arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let grammar = Grammar {
        help: INSTALL_CONF_HELP,
        values: &[],
        switches: &[],
        stop_at_positional: false,
    };
    let read = grammar.read(arguments)?;
    let [source, destination] = read.exactly(["SOURCE", "DESTINATION"])?.map(Path::new);
    let shown = destination.display();
    let in_source = || source.display().to_string();
    let wanted = kernel::file::read(source, conflist::LARGEST).with_context(in_source)?;
    let wanted = wanted.ok_or_else(|| anyhow!("there is no {}", source.display()))?;
    let mode = mode(source).with_context(in_source)?;
    let is_object = serde_json::from_slice(&wanted).map(|value: serde_json::Value| value.is_object());
    let refused = match is_object {
        Ok(true) => None,
        Ok(false) => Some("no JSON object".to_owned()),
        Err(why) => Some(format!("no JSON: {why}")),
    };
    if let Some(what) = refused {
        let source = source.display();
        return Err(Ended::Failed(anyhow!(
            "{source} is {what}; {shown} stays as it is"
        )));
    }
    // What cannot be read is something else than wanted: a FIFO, a folder. Replacing it says what hinders it.
    let there = kernel::file::read(destination, conflist::LARGEST).unwrap_or_default();
    if there.is_some_and(|there| there == wanted) {
        out.line(&format!("{shown} says so already"))?;
    } else {
        kernel::file::replace(destination, &wanted, mode).with_context(|| shown.to_string())?;
        out.line(&format!("{shown} is written"))?;
    }
    name_earlier(destination, out)?;
    Ok(ExitCode::SUCCESS)
}

fn mode(file: &Path) -> std::io::Result<u32> {
    use std::os::unix::fs::PermissionsExt;
    Ok(file.metadata()?.permissions().mode() & 0o777)
}

/// Warns of other configurations that a runtime would take in this one's place.
fn name_earlier(place: &Path, out: &mut Out) -> Result<(), Ended> {
    for earlier in earlier(place) {
        let text = format!(
            "{} comes before it: a runtime that takes the first takes that",
            earlier.display()
        );
        let text = out.paint(Mood::Warn, &text);
        out.line(&text)?;
    }
    Ok(())
}

/// Where to write, if at all.
fn place(read: &Arguments) -> Result<Option<PathBuf>, Ended> {
    let place = match (read.has("write"), read.positionals.as_slice()) {
        (true, []) => conflist::PLACE,
        (true, [file]) => file,
        _ => {
            read.exactly([])?;
            return Ok(None);
        }
    };
    let place = Path::new(place);
    // Anything else runtimes read as one plugin, or not at all.
    match place.extension() {
        Some(end) if end == "conflist" => Ok(Some(place.to_path_buf())),
        _ => Err(Ended::Usage(format!(
            "--write {}: expected a name that ends in .conflist",
            place.display()
        ))),
    }
}

/// Other configurations in the folder that come first by name.
fn earlier(place: &Path) -> Vec<PathBuf> {
    let entries = place.parent().and_then(|folder| std::fs::read_dir(folder).ok());
    let paths = entries.into_iter().flatten().flatten().map(|e| e.path());
    let is_conf = |path: &PathBuf| {
        let end = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        ["conf", "conflist", "json"].contains(&end)
    };
    let mut found: Vec<PathBuf> = paths
        .filter(is_conf)
        .filter(|p| p.file_name() < place.file_name())
        .collect();
    found.sort();
    found
}
