//! Keeping the own Node as peers and Kubernetes have to find it: its annotations, and its condition `NetworkUnavailable`.

use std::time::{Duration, SystemTime};

use fabric::annotations::{NodeObject, time_text};
use fabric::lease::Lease;
use serde::Deserialize;
use tracing::{info, warn};

use super::{Kube, Own};
use crate::chance::Backoff;
use crate::{Held, Holding, Over, RegistryError, Wanted};

/// The condition by which Kubernetes knows that pods may be put on a node.
const CONDITION: &str = "NetworkUnavailable";
/// What it is to be: its status and, as Go flannel writes it, why.
const IS_UP: &str = "False FlannelIsUp";
/// After so long without having had to write anything, whoever wrote over it has stopped.
const QUIET: Duration = Duration::from_secs(60);

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

/// The body of a patch that sets the condition.
fn condition_patch(now: SystemTime) -> String {
    let seconds = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    let now = time_text(seconds);
    format!(
        r#"{{"status":{{"conditions":[{{"type":"{CONDITION}","status":"False","lastHeartbeatTime":"{now}","lastTransitionTime":"{now}","reason":"FlannelIsUp","message":"Flannel is running on this node"}}]}}}}"#
    )
}

/// What is to be done next for the own Node.
enum Step {
    /// Nothing, until it or our own state changes.
    Wait,
    /// Its annotations have to be written.
    Annotate(Box<NodeObject>),
    /// Its condition has to be set.
    SetCondition,
    /// It is another Node by now, with another subnet, or none of its own yet.
    Moved(String),
    /// There is no such Node.
    Gone,
}

fn next_step(kube: &Kube, wanted: &Wanted<'_>, held: &Lease) -> Step {
    let subnet = held.subnet;
    let own = kube.own.borrow();
    let (node, condition) = match &*own {
        Own::Unknown => return Step::Wait,
        Own::Absent => return Step::Gone,
        Own::Present { node, condition } => (node, condition),
    };
    match node.subnet(wanted.config) {
        Ok(now) if now == subnet => {}
        Ok(now) => {
            return Step::Moved(format!(
                "Kubernetes has given this node {now} instead of {subnet}"
            ));
        }
        Err(reason) => return Step::Moved(format!("Node {}: {reason}", node.name)),
    }
    if node
        .patch(&kube.options.prefix, &node.wanted(&held.attributes))
        .is_some()
    {
        return Step::Annotate(node.clone());
    }
    let is_up = kube.options.sets_condition && *kube.ready.borrow();
    if is_up && condition.as_deref() != Some(IS_UP) {
        return Step::SetCondition;
    }
    Step::Wait
}

/// See [`crate::Registry::keep`].
pub(super) async fn keep(
    kube: &Kube,
    wanted: &Wanted<'_>,
    held: Held,
    report: &(dyn Fn(Holding) + Send + Sync),
) -> Over {
    let (mut own, mut ready) = (kube.own.subscribe(), kube.ready.subscribe());
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(20), &kube.chance);
    let mut is_gone = false;
    loop {
        own.mark_unchanged();
        ready.mark_unchanged();
        let step = next_step(kube, wanted, &held.lease);
        if is_gone && !matches!(step, Step::Gone) {
            is_gone = false;
            if !matches!(step, Step::Moved(_)) {
                report(Holding::Regained {
                    created: 0,
                    expires: None,
                });
            }
        }
        let done = match step {
            Step::Moved(why) => return Over::Moved(why),
            Step::Gone => {
                if !std::mem::replace(&mut is_gone, true) {
                    report(Holding::Lost);
                }
                None
            }
            Step::Wait => None,
            Step::Annotate(node) => Some((
                kube.annotate(&node, &held.lease.attributes).await,
                "what the own Node is annotated with",
            )),
            Step::SetCondition => {
                let set = async {
                    let name = kube.own_name().await?;
                    kube.patch_status("patch node", &name, condition_patch(SystemTime::now()))
                        .await
                };
                Some((set.await, "condition NetworkUnavailable of the own Node"))
            }
        };
        let pause = match done {
            None => QUIET,
            Some((Ok(()), what)) => {
                info!("{what}: written as it should be");
                report(Holding::Renewed { expires: None });
                backoff.step()
            }
            Some((Err(failure), what)) => {
                let retry_in = backoff.step();
                let error = match failure {
                    RegistryError::Refused { .. } => format!("{what}: {failure}"),
                    other => other.to_string(),
                };
                warn!("{error}");
                report(Holding::Failing {
                    error,
                    expires: None,
                    retry_in,
                });
                retry_in
            }
        };
        // After a write there is always a pause: whoever writes against us is not answered as fast as can be.
        if pause < QUIET {
            tokio::time::sleep(pause).await;
            continue;
        }
        tokio::select! {
            changed = own.changed() => drop(changed),
            changed = ready.changed() => drop(changed),
            () = tokio::time::sleep(QUIET) => backoff.reset(),
        }
    }
}
