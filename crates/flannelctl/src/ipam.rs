//! `flannelctl ipam`: who holds which address of this host, and freeing what the dead hold.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use cni::flannel::detach::detach;
use cni::inventory::{self, Detach, Fate, Folders, Inventory, Network, Pool, Reservation};
use cni::owner::Owner;
use serde_json::{Value, json};

use crate::arguments::{Arguments, Ended, Grammar};
use crate::output::{Mood, Out, cell, heading, mood};
use crate::status::span;

const HELP: &str = "\
Addresses that the CNI plugins have given to pods of this host.

Usage: flannelctl ipam list|gc [--network NAME] ...

  list  who holds which address since when, and whether its pod is alive
  gc    free the addresses of pods that are gone, with what else the plugins kept for them

Examples:
  flannelctl ipam list
  flannelctl ipam gc --dry-run
";

const LIST_HELP: &str = "\
Shows every reserved address of this host: network, container, interface, since when, and whether it is still needed.

Usage: flannelctl ipam list [--network NAME] [--data-dir DIR] [--json]

  --network NAME      only this network
  --data-dir DIR      folder of the reservations (default /var/lib/cni/networks)
  --flannel-dir DIR   folder of flannel's saved configurations (default /var/lib/cni/flannel)
  --subnet-file FILE  what flanneld wrote (default /run/flannel/subnet.env)
  --json              the same as JSON, with whole container ids

alive: an address of the container is in some network namespace, or its interface or its namespace is there.
young: reserved less than a minute ago, or a plugin is at work for it. garbage: nobody can be using it.
unknown: not to be told from here; it says why. All addresses of a container share its state.

Exit status 1 when an address is garbage or unknown, or none is free.

Examples:
  flannelctl ipam list
  flannelctl ipam list --network cbr0 --json | jq '.reservations[] | select(.state == \"garbage\")'
";

const GC_HELP: &str = "\
Frees the addresses of pods that are gone, and what else was kept for them: flannel's saved configuration, masquerading,
published ports, limits. Never one of a pod that is alive, or was reserved less than a minute ago.

Usage: flannelctl ipam gc [--dry-run] [--network NAME] [--data-dir DIR] [--json]

  --dry-run           only say what would be freed
  --network NAME      only this network; without it, all networks of flannel's, and no other plugin's
  --data-dir DIR      folder of the reservations (default /var/lib/cni/networks)
  --flannel-dir DIR   folder of flannel's saved configurations (default /var/lib/cni/flannel)
  --subnet-file FILE  what flanneld wrote (default /run/flannel/subnet.env)
  --force             also free what is unknown: you know that nobody uses it
  --json              what was freed, as JSON

Where not every network namespace of the machine can be seen (inside a container, not as root), nothing is called garbage:
run it on the host, or in a pod with hostNetwork and hostPID.
Exit status 1 when something is unknown, or could not be freed.

Examples:
  flannelctl ipam gc --dry-run
  flannelctl ipam gc
";

/// Between the two looks after which something is freed.
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);
/// More addresses than this in a pool are not counted out to people.
const COUNTLESS: u128 = 1_000_000;
/// Length of the ids that runtimes make, and how much is shown of those; the tools of runtimes take as much.
const ID: usize = 64;
const ID_SHOWN: usize = 13;

/// `flannelctl ipam ...`.
pub fn run(arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let (verb, rest) = match arguments.split_first() {
        Some((verb, rest)) => (verb.as_str(), rest),
        None => return Err(Ended::Usage(format!("ipam: no verb\n\n{HELP}"))),
    };
    match verb {
        "list" => list(rest, out),
        "gc" => gc(rest, out),
        "-h" | "--help" | "help" => Err(Ended::Help(HELP)),
        other => Err(Ended::Usage(format!("ipam: no verb {other:?}\n\n{HELP}"))),
    }
}

const VALUES: &[&str] = &["network", "data-dir", "flannel-dir", "subnet-file"];

/// Takes stock; only of the network asked for.
fn look(read: &Arguments) -> Result<(Folders, Inventory), Ended> {
    let usual = Folders::default();
    let folders = Folders {
        data_dir: read.value_or("data-dir", &usual.data_dir).to_owned(),
        flannel_dir: read.value_or("flannel-dir", &usual.flannel_dir).to_owned(),
        subnet_file: read.value_or("subnet-file", &usual.subnet_file).to_owned(),
    };
    let mut found = inventory::look(&folders)?;
    if let Some(name) = read.value("network") {
        if !found.networks.iter().any(|n| n.name == name) {
            let names: Vec<&str> = found.networks.iter().map(|n| n.name.as_str()).collect();
            let there = match names.is_empty() {
                true => "there is none".to_owned(),
                false => format!("there are {}", names.join(", ")),
            };
            let dir = &folders.data_dir;
            return Err(Ended::Failed(anyhow!("no network {name} in {dir}: {there}")));
        }
        found.networks.retain(|n| n.name == name);
        found.reservations.retain(|r| r.network == name);
        if count(&found.reservations, Fate::Unknown) == 0 {
            found.doubts.clear();
        }
    }
    Ok((folders, found))
}

fn count(reservations: &[Reservation], fate: Fate) -> usize {
    reservations.iter().filter(|r| r.fate == fate).count()
}

fn list(arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let grammar = Grammar {
        help: LIST_HELP,
        values: VALUES,
        switches: &["json"],
        stop_at_positional: false,
    };
    let read = grammar.read(arguments)?;
    read.exactly([])?;
    let (folders, found) = look(&read)?;
    let is_full = |pool: &Pool| pool.free == 0;
    let dead = [Fate::Garbage, Fate::Unknown].map(|fate| count(&found.reservations, fate));
    let good = dead == [0, 0] && !found.networks.iter().any(|n| n.pools.iter().any(is_full));
    if read.has("json") {
        let reservations: Vec<Value> = found.reservations.iter().map(reservation_json).collect();
        let networks = found.networks.iter();
        let networks: Vec<Value> = networks.map(|n| network_json(n, &found.reservations)).collect();
        out.json(&json!({
            "data_dir": folders.data_dir,
            "networks": networks,
            "reservations": reservations,
            "doubts": found.doubts,
        }))?;
    } else {
        show(&folders, &found, out)?;
    }
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn seconds(since: SystemTime) -> u64 {
    since.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn reservation_json(r: &Reservation) -> Value {
    json!({
        "network": r.network,
        "address": r.address,
        "container": r.owner.container,
        "interface": r.owner.ifname,
        "since": seconds(r.since),
        "state": r.fate.as_str(),
        "why": r.why,
    })
}

fn network_json(network: &Network, all: &[Reservation]) -> Value {
    let own: Vec<Reservation> = all
        .iter()
        .filter(|r| r.network == network.name)
        .cloned()
        .collect();
    let whole = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
    let pool = |pool: &Pool| json!({ "ranges": pool.ranges.to_string(), "size": whole(pool.size), "free": whole(pool.free) });
    json!({
        "name": network.name,
        "flannel": network.is_flannels,
        "held": own.len(),
        "alive": count(&own, Fate::Alive),
        "young": count(&own, Fate::Young),
        "garbage": count(&own, Fate::Garbage),
        "unknown": count(&own, Fate::Unknown),
        "pools": network.pools.iter().map(pool).collect::<Vec<_>>(),
    })
}

fn fate_mood(fate: Fate) -> Mood {
    match fate {
        Fate::Alive => Mood::Good,
        Fate::Young => Mood::Faint,
        Fate::Garbage => Mood::Bad,
        Fate::Unknown => Mood::Warn,
    }
}

fn short(owner: &Owner) -> &str {
    let id = owner.container.as_str();
    id.get(..ID_SHOWN).filter(|_| id.len() == ID).unwrap_or(id)
}

fn age(since: SystemTime) -> String {
    since
        .elapsed()
        .map_or_else(|_| "in the future".to_owned(), |age| span(age.as_secs()) + " ago")
}

fn show(folders: &Folders, found: &Inventory, out: &mut Out) -> Result<(), Ended> {
    if !found.reservations.is_empty() {
        let mut rows = vec![heading(&[
            "NETWORK",
            "ADDRESS",
            "CONTAINER",
            "INTERFACE",
            "SINCE",
            "STATE",
            "",
        ])];
        for r in &found.reservations {
            let interface = match r.owner.ifname.as_str() {
                "" => "?",
                name => name,
            };
            rows.push(vec![
                cell(r.network.as_str()),
                cell(r.address.to_string()),
                cell(short(&r.owner)),
                cell(interface),
                cell(age(r.since)),
                mood(fate_mood(r.fate), r.fate.as_str()),
                mood(Mood::Faint, r.why.as_str()),
            ]);
        }
        out.table(&rows)?;
        out.line("")?;
    }
    if found.networks.is_empty() {
        out.line(&format!(
            "no network has reserved an address in {}",
            folders.data_dir
        ))?;
    }
    for network in &found.networks {
        let text = sum(network, &found.reservations, out);
        out.line(&text)?;
    }
    doubts(found, out)?;
    if count(&found.reservations, Fate::Garbage) > 0 {
        out.line("`flannelctl ipam gc` frees the garbage")?;
    }
    Ok(())
}

/// One line about a network.
fn sum(network: &Network, all: &[Reservation], out: &Out) -> String {
    let own: Vec<Reservation> = all
        .iter()
        .filter(|r| r.network == network.name)
        .cloned()
        .collect();
    let fates = [Fate::Alive, Fate::Young, Fate::Garbage, Fate::Unknown];
    let parts = fates.map(|fate| (count(&own, fate), fate));
    let parts: Vec<String> = parts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, fate)| out.paint(fate_mood(*fate), &format!("{number} {}", fate.as_str())))
        .collect();
    let mut text = format!("{}: {} held", network.name, own.len());
    if !parts.is_empty() {
        text.push_str(&format!(" ({})", parts.join(", ")));
    }
    for pool in &network.pools {
        let free = match pool.free {
            0 => out.paint(Mood::Bad, &format!("none of {} free", pool.size)),
            free if free > COUNTLESS => "no end of them free".to_owned(),
            free => format!("{free} of {} free", pool.size),
        };
        text.push_str(&format!(", {free} in {}", pool.ranges));
    }
    if !network.is_flannels {
        text.push_str(" (not flannel's)");
    }
    text
}

fn doubts(found: &Inventory, out: &mut Out) -> Result<(), Ended> {
    let unknown = count(&found.reservations, Fate::Unknown);
    if unknown == 0 {
        return Ok(());
    }
    let text = format!("whether {unknown} of them are still in use cannot be told from here:");
    let text = out.paint(Mood::Warn, &text);
    out.line(&text)?;
    for doubt in &found.doubts {
        out.line(&format!("  {doubt}"))?;
    }
    Ok(())
}

fn gc(arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let grammar = Grammar {
        help: GC_HELP,
        values: VALUES,
        switches: &["dry-run", "force", "json"],
        stop_at_positional: false,
    };
    let read = grammar.read(arguments)?;
    read.exactly([])?;
    let (folders, mut found) = look(&read)?;
    let wish = GcWish {
        dry_run: read.has("dry-run"),
        force: read.has("force"),
        json: read.has("json"),
        any_network: read.value("network").is_some(),
    };
    if !wish.dry_run && count(&found.reservations, Fate::Garbage) > 0 {
        // What is not seen once may have been looked for at a bad moment.
        std::thread::sleep(BETWEEN_LOOKS);
        let again = inventory::look(&folders)?;
        let same = |a: &Reservation, b: &Reservation| {
            (&a.network, a.address, &a.owner, a.since, a.fate)
                == (&b.network, b.address, &b.owner, b.since, b.fate)
        };
        let stands = |r: &Reservation| again.reservations.iter().any(|now| same(r, now));
        found
            .reservations
            .retain(|r| r.fate != Fate::Garbage || stands(r));
    }
    let flannels = |name: &str| found.networks.iter().any(|n| n.name == name && n.is_flannels);
    let wanted = |r: &Reservation| wish.any_network || flannels(&r.network);
    let is_dead = |r: &Reservation| r.fate == Fate::Garbage || wish.force && r.fate == Fate::Unknown;
    let mut dead: BTreeMap<(&str, &Owner), Vec<&Reservation>> = BTreeMap::new();
    let mut others: BTreeMap<&str, usize> = BTreeMap::new();
    for r in found.reservations.iter().filter(|r| is_dead(r)) {
        if wanted(r) {
            dead.entry((&r.network, &r.owner)).or_default().push(r);
        } else {
            *others.entry(&r.network).or_default() += 1;
        }
    }
    let along: Detach<'_> = &detach;
    let mut done = Done::default();
    for ((network, _), attachment) in dead {
        if wish.dry_run {
            done.freed.extend(attachment.into_iter().cloned());
            continue;
        }
        match inventory::free(&folders, &attachment, flannels(network).then_some(along)) {
            Ok(freed) => {
                let gone = attachment.iter().filter(|r| freed.addresses.contains(&r.address));
                let gone: Vec<Reservation> = gone.map(|r| (*r).clone()).collect();
                let of = gone
                    .first()
                    .map(|r| format!("{} {}", r.owner.container, r.owner.ifname));
                let left = freed.left.iter();
                done.left
                    .extend(left.map(|why| format!("{}: {why}", of.as_deref().unwrap_or_default())));
                done.freed.extend(gone);
            }
            Err(e) => done.failed.push(e.to_string()),
        }
    }
    done.others = others.into_iter().map(|(name, n)| (name.to_owned(), n)).collect();
    if wish.force {
        found.reservations.retain(|r| r.fate != Fate::Unknown);
        found.doubts.clear();
    }
    done.say(&found, wish, out)
}

/// What a collection is to do.
#[derive(Clone, Copy)]
struct GcWish {
    /// Say what would be done.
    dry_run: bool,
    /// What may still be in use goes too.
    force: bool,
    json: bool,
    /// Its network was named, flannel's or not.
    any_network: bool,
}

/// What a collection has done.
#[derive(Default)]
struct Done {
    freed: Vec<Reservation>,
    /// What stayed behind of those that were freed.
    left: Vec<String>,
    failed: Vec<String>,
    /// Dead addresses of networks that are not flannel's.
    others: BTreeMap<String, usize>,
}

impl Done {
    fn say(&self, found: &Inventory, wish: GcWish, out: &mut Out) -> Result<ExitCode, Ended> {
        let unknown = count(&found.reservations, Fate::Unknown);
        let good = unknown == 0 && self.left.is_empty() && self.failed.is_empty();
        let code = if good {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
        if wish.json {
            let freed: Vec<Value> = self.freed.iter().map(reservation_json).collect();
            out.json(&json!({
                "dry_run": wish.dry_run,
                "freed": freed,
                "left": self.left,
                "failed": self.failed,
                "not_flannels": self.others,
                "unknown": unknown,
                "doubts": found.doubts,
            }))?;
            return Ok(code);
        }
        let verb = if wish.dry_run { "would free" } else { "freed" };
        for r in &self.freed {
            let (container, ifname) = (&r.owner.container, &r.owner.ifname);
            out.line(&format!(
                "{verb} {} in {}, held by {container} {ifname} since {}",
                r.address,
                r.network,
                age(r.since)
            ))?;
        }
        for (feel, list) in [(Mood::Warn, &self.left), (Mood::Bad, &self.failed)] {
            for text in list {
                let text = out.paint(feel, text);
                out.line(&text)?;
            }
        }
        for (network, number) in &self.others {
            out.line(&format!(
                "{network} is not flannel's: its {number} dead addresses stay; `--network {network}` frees them"
            ))?;
        }
        doubts(found, out)?;
        if unknown > 0 {
            out.line("nothing of that was freed; `--force` frees it all the same")?;
        }
        if self.freed.is_empty() && unknown == 0 && self.failed.is_empty() {
            out.line("nothing to free")?;
        }
        Ok(code)
    }
}
