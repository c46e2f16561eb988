//! Keeping the own Node as peers and Kubernetes have to find it: its annotations, and its condition `NetworkUnavailable`.

use std::time::{Duration, SystemTime};

use fabric::go_json::write_quoted;
use fabric::lease::Lease;
use fabric::utc;
use serde::Deserialize;
use tokio::time::Instant;
use tracing::info;

use super::{Kube, Own};
use crate::chance::Backoff;
use crate::{DataPath, Held, Holding, Over, RegistryError, Wanted};

/// The condition by which Kubernetes knows that pods may be put on a node.
const CONDITION: &str = "NetworkUnavailable";
/// What it is to be: its status and, as Go flannel writes it, why.
const IS_UP: &str = "False FlannelIsUp";
/// The reason while the data path does not stand.
const IS_DOWN: &str = "FlannelIsDown";
/// What has not stood for so long is said to be down: the scheduler then puts no new pod there. What is repaired sooner is nobody's business.
const DOWN_AFTER: Duration = Duration::from_secs(60);
/// After so long without having had to write anything, whoever wrote over it has stopped.
const QUIET: Duration = Duration::from_secs(60);
/// What is merely missing is written again no sooner than this after it was written.
const AT_ONCE: Duration = Duration::from_millis(200);
/// What somebody writes over again and again is written at most this seldom in the end,
const DAMPED: Duration = Duration::from_secs(20);
/// as is what is refused.
const REFUSED: Duration = Duration::from_secs(20);
/// A server that is away is asked at least this often.
const AWAY: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
struct Whole {
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize, Default)]
struct Status {
    #[serde(default)]
    conditions: Option<Vec<Condition>>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    reason: String,
}

/// Status and reason of the condition `NetworkUnavailable` in a Node object.
pub(super) fn condition_in(json: &str) -> Option<String> {
    let whole: Whole = serde_json::from_str(json).ok()?;
    let conditions = whole.status.conditions.unwrap_or_default();
    let found = conditions
        .into_iter()
        .find(|condition| condition.kind == CONDITION)?;
    Some(format!("{} {}", found.status, found.reason))
}

/// The body of a patch that sets the condition: down for a reason, or up.
fn condition_patch(down: Option<&str>, now: SystemTime) -> String {
    let seconds = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let now = format!("{}Z", utc::Seconds(seconds));
    let (status, reason) = match down {
        None => ("False", "FlannelIsUp"),
        Some(_) => ("True", IS_DOWN),
    };
    let mut message = String::new();
    write_quoted(&mut message, down.unwrap_or("Flannel is running on this node"));
    format!(
        r#"{{"status":{{"conditions":[{{"type":"{CONDITION}","status":"{status}","lastHeartbeatTime":"{now}","lastTransitionTime":"{now}","reason":"{reason}","message":{message}}}]}}}}"#
    )
}

/// What is to be done next for the own Node.
enum Step {
    /// Nothing, until it or our own state changes.
    Wait,
    /// Its annotations have to be written.
    Annotate {
        /// The patch that does so.
        body: String,
        /// Somebody wrote others in their place.
        contested: bool,
    },
    /// Its condition has to be set.
    SetCondition {
        /// Why the data path does not stand; none: it does.
        down: Option<String>,
        /// Somebody wrote another in its place.
        contested: bool,
    },
    /// It has another subnet by now.
    Moved(String),
    /// There is no such Node, or it has no subnet yet.
    Gone,
}

impl Step {
    /// Somebody wrote something else in the place of what is to be written.
    fn is_contested(&self) -> bool {
        matches!(
            self,
            Step::Annotate { contested: true, .. } | Step::SetCondition { contested: true, .. }
        )
    }
}

fn next_step(kube: &Kube, wanted: &Wanted<'_>, held: &Lease) -> Step {
    let subnet = held.subnet;
    let own = kube.own.borrow();
    let (node, condition) = match &*own {
        Own::Unknown => return Step::Wait,
        Own::Absent => return Step::Gone,
        Own::Present { node, condition } => (node, condition),
    };
    if node.cidrs.is_empty() {
        // As kubelet registers it; what it will have is not known yet.
        return Step::Gone;
    }
    match node.subnet(wanted.config) {
        Ok(now) if now == subnet => {}
        Ok(now) => {
            return Step::Moved(format!(
                "Kubernetes has given this node {now} instead of {subnet}"
            ));
        }
        Err(reason) => return Step::Moved(format!("Node {}: {reason}", node.name)),
    }
    let annotations = node.wanted(&held.attributes);
    if let Some(body) = node.patch(&kube.options.prefix, &annotations) {
        let mut wanted = annotations.iter();
        let contested =
            wanted.any(|(name, text)| node.annotations.get(name).is_some_and(|there| there != text));
        return Step::Annotate { body, contested };
    }
    if !kube.options.sets_condition {
        return Step::Wait;
    }
    match &*kube.data_path.borrow() {
        (DataPath::Stands, _) if condition.as_deref() != Some(IS_UP) => Step::SetCondition {
            down: None,
            contested: is_others(condition.as_deref()),
        },
        // Whoever else says so has another reason to.
        (DataPath::Broken(why), since)
            if since.elapsed() >= DOWN_AFTER && !says_down(condition.as_deref()) =>
        {
            Step::SetCondition {
                down: Some(why.clone()),
                contested: is_others(condition.as_deref()),
            }
        }
        _ => Step::Wait,
    }
}

/// Whether there is a condition that this daemon did not write.
fn is_others(condition: Option<&str>) -> bool {
    let words = condition.and_then(|condition| condition.split_once(' '));
    condition.is_some_and(|condition| condition != IS_UP) && words.is_none_or(|(_, why)| why != IS_DOWN)
}

fn says_down(condition: Option<&str>) -> bool {
    condition.is_some_and(|condition| condition.starts_with("True "))
}

/// When what does not stand is to be said to be down, if that is to come.
fn down_at(kube: &Kube) -> Option<Instant> {
    match &*kube.data_path.borrow() {
        (DataPath::Broken(_), since) => Some(*since + DOWN_AFTER).filter(|at| *at > Instant::now()),
        _ => None,
    }
}

/// See [`crate::Registry::keep`].
pub(super) async fn keep(
    kube: &Kube,
    wanted: &Wanted<'_>,
    held: Held,
    report: &(dyn Fn(Holding) + Send + Sync),
) -> Over {
    let (mut own, mut data_path) = (kube.own.subscribe(), kube.data_path.subscribe());
    let backoff = |most| Backoff::new(Duration::from_millis(100), most, &kube.chance);
    let (mut contested, mut refused) = (backoff(DAMPED), backoff(REFUSED));
    let mut not_before = Instant::now();
    // Only what somebody writes over waits until then: what is missing, as all is in a Node that was made anew, does not.
    let mut damped_until = not_before;
    let mut is_gone = false;
    let mut failing = false;
    loop {
        own.mark_unchanged();
        data_path.mark_unchanged();
        let step = next_step(kube, wanted, &held.lease);
        let now = Instant::now();
        let is_late = now < not_before || step.is_contested() && now < damped_until;
        let write = match step {
            Step::Moved(why) => return Over::Moved(why),
            Step::Gone => {
                if !std::mem::replace(&mut is_gone, true) {
                    report(Holding::Lost);
                }
                None
            }
            Step::Wait | Step::SetCondition { .. } if std::mem::take(&mut is_gone) => {
                report(Holding::Regained {
                    created: 0,
                    expires: None,
                });
                continue;
            }
            // What was refused, or not answered, has come about all the same, or is not wanted any more.
            Step::Wait if std::mem::take(&mut failing) => {
                report(Holding::Renewed { expires: None });
                continue;
            }
            Step::Wait => None,
            Step::Annotate { .. } | Step::SetCondition { .. } if is_late => None,
            Step::Annotate { body, contested } => {
                Some((kube.patch_own(body).await, contested, "annotations"))
            }
            Step::SetCondition { down, contested } => {
                let body = condition_patch(down.as_deref(), SystemTime::now());
                let written = kube.patch_own(body).await;
                Some((written, contested, "condition NetworkUnavailable"))
            }
        };
        match write {
            Some((Ok(()), is_contested, what)) => {
                info!("{what} of the own Node: written");
                refused.reset();
                not_before = Instant::now() + AT_ONCE;
                if is_contested {
                    damped_until = Instant::now() + contested.step();
                }
                if std::mem::take(&mut failing) {
                    report(Holding::Renewed { expires: None });
                }
                continue;
            }
            Some((Err(failure), _, what)) => {
                let retry_in = refused.step().min(match failure {
                    RegistryError::Unreachable(_) => AWAY,
                    _ => REFUSED,
                });
                not_before = Instant::now() + retry_in;
                failing = true;
                report(Holding::Unwritten {
                    what,
                    error: failure.to_string(),
                    retry_in,
                });
            }
            None => {}
        }
        let now = Instant::now();
        let due = [not_before, damped_until]
            .into_iter()
            .filter(|at| *at > now)
            .min();
        let until = due.unwrap_or(now + QUIET);
        let down_at = down_at(kube);
        let sooner = down_at.map_or(until, |at| at.min(until));
        tokio::select! {
            _ = own.changed() => {}
            _ = data_path.changed() => {}
            () = tokio::time::sleep_until(sooner) => if sooner == until && due.is_none() {
                contested.reset();
            },
        }
    }
}
