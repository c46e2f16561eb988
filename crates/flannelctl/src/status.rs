//! `flannelctl status` and `flannelctl plan`: what the daemon of this host says.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use fabric::readiness::Kind;
use fabric::status::{FirewallState, Peer, PeerState, RegistryState, Status};

use crate::arguments::{Ended, Grammar};
use crate::output::{Mood, Out, cell, heading, mood};
use crate::socket::{DEFAULT, ask};

const STATUS_HELP: &str = "\
Shows how it stands with flannel on this host: lease, registry, underlay, every peer and its kernel objects.

Usage: flannelctl status [--socket PATH] [--all] [--json]

  --socket PATH  the daemon's socket (default /run/flannel/flanneld.sock)
  --all          every peer and object, also when there are many and all is well
  --json         the daemon's whole answer

Exit status 1 when the host is not ready. A peer whose own lease cannot be served is named as degraded and makes none.

Examples:
  flannelctl status
  flannelctl status --json | jq .peers
";

const PLAN_HELP: &str = "\
Shows what the daemon would change in the kernel now. Nothing on a healthy host.

Usage: flannelctl plan [--socket PATH] [--json]

Exit status 1 when there is something to change.

Examples:
  flannelctl plan
  flannelctl plan --json
";

const PAUSE_HELP: &str = "\
Makes the daemon hold its hand still: it looks, and says what it would do (`flannelctl plan`), but changes nothing in the
kernel until `flannelctl resume`.

Usage: flannelctl pause|resume [--socket PATH]

Examples:
  flannelctl pause
  flannelctl resume
";

/// More peers than this are shown only when asked for, or not well.
const MANY: usize = 40;
/// Of more peers than this the kernel objects are only counted, unless asked for.
const FEW: usize = 8;

/// `flannelctl status`.
pub fn status(arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let grammar = Grammar {
        help: STATUS_HELP,
        values: &["socket"],
        switches: &["all", "json"],
        stop_at_positional: false,
    };
    let read = grammar.read(arguments)?;
    read.exactly([])?;
    let (_, body) = ask(read.value_or("socket", DEFAULT), "GET", "/status")?;
    let status: Status = serde_json::from_slice(&body).context("the daemon's answer is no status")?;
    if read.has("json") {
        let value: serde_json::Value = serde_json::from_slice(&body)?;
        out.json(&value)?;
    } else {
        show(&status, read.has("all"), out)?;
    }
    Ok(if status.ready {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn show(status: &Status, all: bool, out: &mut Out) -> Result<(), Ended> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let ready = if status.ready {
        out.paint(Mood::Good, "ready")
    } else {
        out.paint(Mood::Bad, "NOT READY")
    };
    let subnet = status.lease.as_ref().map_or("no lease", |l| l.subnet.as_str());
    out.line(&format!(
        "flanneld {} (pid {})  {ready}  backend {}  subnet {subnet}  up {}",
        status.version,
        status.pid,
        if status.backend.is_empty() {
            "unknown"
        } else {
            &status.backend
        },
        span(status.uptime.unwrap_or(now.saturating_sub(status.started))),
    ))?;
    for reason in &status.reasons {
        let reason = out.paint(Mood::Bad, reason);
        out.line(&format!("          {reason}"))?;
    }
    if let Some(underlay) = &status.underlay {
        let join =
            |list: &[std::net::IpAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let mut line = format!(
            "underlay  {} {} mtu {}",
            underlay.link,
            join(&underlay.addresses),
            underlay.mtu
        );
        if underlay.public != underlay.addresses {
            line.push_str(&format!("  advertised {}", join(&underlay.public)));
        }
        out.line(&format!("{line}  pods mtu {}", status.mtu))?;
        for warning in &underlay.warnings {
            let warning = out.paint(Mood::Warn, warning);
            out.line(&format!("          {warning}"))?;
        }
    }
    let (state, feel) = match status.registry.state {
        RegistryState::Connected => ("connected", Mood::Good),
        RegistryState::Connecting => ("connecting", Mood::Warn),
        RegistryState::WaitingForConfig => ("waiting for the network config", Mood::Warn),
        RegistryState::Stale => ("lost: working from what is known", Mood::Warn),
    };
    let registry = &status.registry;
    // A daemon of an older version says no durations; from moments they are right as long as nobody has set the clock.
    let expiry = status.lease.as_ref().and_then(|l| {
        let by_wall = || Some(l.expires?.saturating_sub(now));
        l.left.or_else(by_wall)
    });
    let expiry = expiry.map_or(String::new(), |left| format!("  lease ends in {}", span(left)));
    out.line(&format!(
        "registry  {} {} {}  {}  revision {}{expiry}",
        registry.kind,
        registry.endpoint,
        registry.prefix,
        out.paint(feel, state),
        registry.revision
    ))?;
    if let Some(error) = &registry.error {
        let line = match (registry.state, registry.failed_at) {
            (RegistryState::Connected, Some(at)) => {
                let text = format!("over, {} ago: {error}", span(now.saturating_sub(at)));
                out.paint(Mood::Faint, &text)
            }
            _ => error.clone(),
        };
        out.line(&format!("          {line}"))?;
    }
    let by_wall = || Some(now.saturating_sub(status.last_audit?));
    let audit = status.last_audit_age.or_else(by_wall);
    let audit = audit.map_or("never".to_owned(), |age| format!("{} ago", span(age)));
    out.line(&format!(
        "kernel    read as a whole {audit}, {} objects put back since the start",
        status.repairs
    ))?;
    let firewall = &status.firewall;
    let (state, feel) = match firewall.state {
        FirewallState::Off => ("no rules asked for", Mood::Faint),
        FirewallState::Pending => ("not applied yet", Mood::Warn),
        FirewallState::Ok => ("in place", Mood::Good),
        FirewallState::Failed => ("FAILED", Mood::Bad),
    };
    let mut words = vec!["firewall ".to_owned()];
    if !firewall.kind.is_empty() {
        words.push(firewall.kind.clone());
    }
    words.push(out.paint(feel, state));
    words.extend(firewall.error.clone());
    out.line(&format!("{}, {}", words.join(" "), put_back(firewall.restores)))?;
    lists(status, out)?;
    peers(&status.peers, all, out)
}

fn put_back(times: u64) -> String {
    match times {
        0 => "never put back".to_owned(),
        1 => "put back once".to_owned(),
        n => format!("put back {n} times"),
    }
}

/// What does not keep the host from being ready: the rest stands at the top.
fn lists(status: &Status, out: &mut Out) -> Result<(), Ended> {
    for (kind, feel) in [(Kind::Degraded, Mood::Warn), (Kind::Remark, Mood::Faint)] {
        for finding in status.findings_of(kind) {
            let name = out.paint(feel, &format!("{:<10}", kind.name()));
            out.line(&format!("{name}{finding}"))?;
        }
    }
    Ok(())
}

fn peers(peers: &[Peer], all: bool, out: &mut Out) -> Result<(), Ended> {
    let count = |state| peers.iter().filter(|p| p.state == state).count();
    let (ok, failed, conflict, degraded) = (
        count(PeerState::Ok),
        count(PeerState::Failed),
        count(PeerState::Conflict),
        count(PeerState::Degraded),
    );
    out.line(&format!(
        "peers     {}: {ok} ok, {failed} failed, {conflict} in conflict, {degraded} degraded",
        peers.len()
    ))?;
    let shown: Vec<&Peer> = peers
        .iter()
        .filter(|p| all || peers.len() <= MANY || p.state != PeerState::Ok)
        .collect();
    if shown.is_empty() {
        return Ok(());
    }
    let mut rows = vec![heading(&["SUBNET", "HOST", "BACKEND", "OBJECTS", "STATE", ""])];
    for peer in &shown {
        let hosts: Vec<String> = peer.public.iter().map(ToString::to_string).collect();
        rows.push(vec![
            cell(peer.subnet.as_str()),
            cell(hosts.join(" ")),
            cell(peer.backend.as_str()),
            cell(format!("{}/{}", peer.programmed, peer.expected)),
            match peer.state {
                PeerState::Ok => mood(Mood::Good, "ok"),
                PeerState::Failed => mood(Mood::Bad, "FAILED"),
                PeerState::Conflict => mood(Mood::Bad, "CONFLICT"),
                PeerState::Degraded => mood(Mood::Warn, "DEGRADED"),
            },
            cell(peer.error.as_deref().unwrap_or_default()),
        ]);
    }
    out.table(&rows)?;
    if all || shown.len() <= FEW {
        for peer in shown {
            out.line(&format!("objects of {}", peer.subnet))?;
            for object in &peer.objects {
                let (feel, word) = if object.ok {
                    (Mood::Good, "ok     ")
                } else {
                    (Mood::Bad, "MISSING")
                };
                let word = out.paint(feel, word);
                out.line(&format!("  {word} {}", object.object))?;
            }
        }
    }
    Ok(())
}

/// Seconds as a person says them.
pub fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, m) => format!("{m} min"),
        (0, h, m) => format!("{h} h {m} min"),
        (d, h, _) => format!("{d} d {h} h"),
    }
}

/// `flannelctl plan`.
pub fn plan(arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let grammar = Grammar {
        help: PLAN_HELP,
        values: &["socket"],
        switches: &["json"],
        stop_at_positional: false,
    };
    let read = grammar.read(arguments)?;
    read.exactly([])?;
    let (code, body) = ask(read.value_or("socket", DEFAULT), "GET", "/plan")?;
    if code != 200 {
        return Err(Ended::Failed(anyhow!(
            "{}",
            String::from_utf8_lossy(&body).trim()
        )));
    }
    let plan: serde_json::Value = serde_json::from_slice(&body).context("the daemon's answer is no plan")?;
    if read.has("json") {
        out.json(&plan)?;
    }
    let steps = plan
        .get("ops")
        .unwrap_or(&plan)
        .as_array()
        .cloned()
        .unwrap_or_default();
    if !read.has("json") {
        for step in &steps {
            out.line(step.as_str().unwrap_or(&step.to_string()))?;
        }
        if steps.is_empty() {
            let text = out.paint(Mood::Good, "nothing to change");
            out.line(&text)?;
        }
    }
    Ok(if steps.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// `flannelctl pause` and `flannelctl resume`.
pub fn pause(verb: &'static str, arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let grammar = Grammar {
        help: PAUSE_HELP,
        values: &["socket"],
        switches: &[],
        stop_at_positional: false,
    };
    let read = grammar.read(arguments)?;
    read.exactly([])?;
    ask(read.value_or("socket", DEFAULT), "POST", &format!("/{verb}"))?;
    out.line(if verb == "pause" {
        "paused: nothing is applied or repaired"
    } else {
        "at work again"
    })?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::span;

    #[test]
    fn spans_are_said_in_their_two_largest_units() {
        assert_eq!(span(59), "59 s");
        assert_eq!(span(60 * 5 + 3), "5 min");
        assert_eq!(span(3600 * 3 + 61), "3 h 1 min");
        assert_eq!(span(86_400 * 3 + 3600 * 4), "3 d 4 h");
    }
}
