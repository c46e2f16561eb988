//! Kubernetes Events about the own Node: what an admin has to see and to do, where admins of a cluster look.
//!
//! Each node speaks of itself alone: what one peer does wrong is not told by five thousand.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use fabric::config::NetworkConfig;
use fabric::go_json::write_quoted;
use fabric::utc;
use tokio::time::Instant;
use tracing::warn;

use super::listing::sample_of;
use super::{Kube, Own};
use crate::{RegistryError, lock};

/// Kubernetes forgets Events after an hour; what lasts is said again.
const AGAIN: Duration = Duration::from_secs(3600);
/// What changes its words is said anew no sooner than this.
const SELDOM: Duration = Duration::from_secs(60);
/// What could not be written is tried again after this long.
const REFUSED: Duration = Duration::from_secs(600);
/// Events about a Node, which is in no namespace, are in this one.
const NAMESPACE: &str = "default";
/// Nodes that are looked at to find out why one has no subnet.
const SAMPLE: usize = 100;
/// Bytes of the longest message an API server takes.
const LONGEST: usize = 1024;

/// What is wrong with the own Node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// Kubernetes has given it no subnet that can be used.
    PodCidrNotAssigned,
    /// Its subnet is not inside the network.
    PodCidrOutsideNetwork,
    /// Its subnet, or a part of it, is another Node's as well.
    PodCidrOverlaps,
    /// Another Node publishes its address.
    DuplicatePublicIp,
}

impl Reason {
    fn text(self) -> &'static str {
        match self {
            Reason::PodCidrNotAssigned => "PodCIDRNotAssigned",
            Reason::PodCidrOutsideNetwork => "PodCIDROutsideNetwork",
            Reason::PodCidrOverlaps => "PodCIDROverlaps",
            Reason::DuplicatePublicIp => "DuplicatePublicIP",
        }
    }
}

/// What is wrong now, in words.
pub(super) type Alarms = BTreeMap<Reason, String>;

/// What was told last for a reason.
#[derive(Debug)]
pub(super) struct Said {
    message: String,
    at: Instant,
    outcome: Outcome,
}

#[derive(Debug, PartialEq)]
enum Outcome {
    /// It is there, and is to be said again after this long.
    Written { again: Duration },
    /// The server was not there.
    Unanswered,
    /// It says no.
    Refused,
}

/// Whether two messages say the same but for numbers: those of others who wait change all the time.
fn is_same(a: &str, b: &str) -> bool {
    let words = |text: &str| text.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    words(a) == words(b)
}

impl Said {
    fn due(&self, message: &str) -> Instant {
        self.at
            + match (&self.outcome, is_same(&self.message, message)) {
                (Outcome::Unanswered, _) => SELDOM,
                (Outcome::Refused, _) => REFUSED,
                (Outcome::Written { again }, true) => *again,
                (Outcome::Written { .. }, false) => SELDOM,
            }
    }
}

impl Kube {
    /// Notes what is wrong for a reason, or that nothing is any more.
    pub(super) fn alarm(&self, reason: Reason, message: Option<String>) {
        self.alarms.send_if_modified(|alarms| match message {
            Some(message) => alarms.insert(reason, message.clone()) != Some(message),
            None => alarms.remove(&reason).is_some(),
        });
    }

    /// Compares the own Node with the others.
    pub(super) fn compare_own(&self, own: &str) {
        let nodes = lock(&self.nodes);
        let (overlap, namesake) = (nodes.overlap_with(own), nodes.namesake_of(own));
        drop(nodes);
        self.alarm(Reason::PodCidrOverlaps, overlap);
        self.alarm(Reason::DuplicatePublicIp, namesake);
    }

    /// Writes Events for what is wrong and due to be said; when the next is.
    pub(super) async fn tell_alarms(&self) -> Option<Instant> {
        let alarms = self.alarms.borrow().clone();
        for (reason, message) in &alarms {
            let now = Instant::now();
            let due = lock(&self.said).get(reason).map(|said| said.due(message));
            if due.is_some_and(|due| due > now) {
                continue;
            }
            let (outcome, failure) = match self.write_event(*reason, message).await {
                Ok(()) => {
                    let again = self.chance.jitter(AGAIN);
                    (Outcome::Written { again }, None)
                }
                Err(RegistryError::Refused { reason, .. }) => (Outcome::Refused, Some(reason)),
                Err(other) => (Outcome::Unanswered, Some(other.to_string())),
            };
            let said = Said {
                message: message.clone(),
                at: now,
                outcome,
            };
            let before = lock(&self.said).insert(*reason, said);
            let is_news = before.is_none_or(|before| matches!(before.outcome, Outcome::Written { .. }));
            if let Some(failure) = failure.filter(|_| is_news) {
                warn!("{message}. An Event of this cannot be written: {failure}");
            }
        }
        let said = lock(&self.said);
        let due = alarms
            .iter()
            .filter_map(|(reason, message)| Some(said.get(reason)?.due(message)));
        due.min()
    }

    async fn write_event(&self, reason: Reason, message: &str) -> Result<(), RegistryError> {
        let name = self.own_name().await?;
        let mut connection = self.connect().await?;
        let url = connection.url().to_owned();
        let body = event(&name, reason, message, SystemTime::now());
        let path = format!("/api/v1/namespaces/{NAMESPACE}/events");
        let written = connection.post(&path, body).await;
        written
            .map(drop)
            .map_err(|failed| self.failed("create event", failed, &url))
    }

    /// Why Kubernetes has given the own Node no subnet: which of the causes there are, as far as the other Nodes show it.
    pub(super) async fn why_unassigned(&self, network: &NetworkConfig) -> Option<String> {
        if let Own::Present { node, .. } = &*self.own.borrow()
            && !node.cidrs.is_empty()
        {
            return Some(format!(
                "the cluster hands out {}, and the network config asks for {}: the controller manager's --cluster-cidr and the network \
                 config have to have a family in common",
                node.cidrs.join(", "),
                network
                    .networks()
                    .map(|net| net.to_string())
                    .collect::<Vec<_>>()
                    .join(", ")
            ));
        }
        // Not all of them: a sample shows what there is to be seen, and what all who wait ask for has to be little.
        let mut connection = self.connect().await.ok()?;
        let text = connection
            .get_page(&format!("/api/v1/nodes?limit={SAMPLE}"))
            .await
            .ok()?;
        let (nodes, are_all) = sample_of(&text, &self.options.prefix)?;
        let mut given = Given {
            are_all,
            ..Given::default()
        };
        nodes.iter().for_each(|node| given.count(node.as_ref(), network));
        Some(given.cause(network))
    }
}

/// How subnets are given out to the Nodes of a cluster.
#[derive(Debug, Default)]
struct Given {
    /// No Node is left out.
    are_all: bool,
    nodes: usize,
    with_subnet: usize,
    /// Prefix length of a subnet of the network's first family, and how many lie inside the network.
    length: Option<u8>,
    inside: u64,
}

impl Given {
    fn count(&mut self, node: Option<&fabric::annotations::NodeObject>, network: &NetworkConfig) {
        self.nodes += 1;
        let Some(Ok(subnet)) = node.map(|node| node.subnet(network)) else {
            return;
        };
        self.with_subnet += 1;
        let first = network.families().next();
        let half = first.and_then(|family| Some((subnet.of(family)?, network.space(family)?.network)));
        if let Some((half, net)) = half {
            self.length = Some(half.prefix_len());
            self.inside += u64::from(net.contains(&half));
        }
    }

    fn cause(&self, network: &NetworkConfig) -> String {
        let net = network.networks().next();
        let (Some(length), Some(net)) = (self.length, net) else {
            return format!(
                "none of {} Nodes looked at has one: the controller manager hands none out (is it run, with --allocate-node-cidrs=true and \
                 --cluster-cidr?)",
                self.nodes
            );
        };
        let (with_subnet, nodes) = (self.with_subnet, self.nodes);
        match length.checked_sub(net.prefix_len()) {
            None => format!(
                "the cluster hands out a /{length} to each Node, which is more than the network {net} has: the controller manager's \
                 --node-cidr-mask-size and --cluster-cidr do not fit it"
            ),
            Some(bits) if self.are_all && bits < 64 && self.inside >= 1 << bits => format!(
                "all {} subnets of /{length} in {net} are given out: --cluster-cidr is used up",
                1_u64 << bits
            ),
            Some(_) => format!(
                "{with_subnet} of {nodes} Nodes looked at have one, of /{length}, and {net} may have room for more: the controller manager's \
                 --cluster-cidr is smaller than the network and used up, its --node-cidr-mask-size leaves too few, or it does not run"
            ),
        }
    }
}

/// Writes Events whenever something begins to be wrong, for ever.
pub(super) async fn tell(kube: &Kube) -> Infallible {
    let mut alarms = kube.alarms.subscribe();
    loop {
        alarms.mark_unchanged();
        let due = kube.tell_alarms().await;
        let due = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = alarms.changed() => {}
            () = due => {}
        }
    }
}

/// An Event about a Node, in JSON. COMPAT: Kubernetes' own components name a Node by its name where a uid is asked for, and `kubectl
/// describe node` looks for that.
fn event(node: &str, reason: Reason, message: &str, now: SystemTime) -> String {
    let seconds = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let quoted = |text: &str| {
        let mut quoted = String::new();
        write_quoted(&mut quoted, text);
        quoted
    };
    let message = message
        .get(..message.floor_char_boundary(LONGEST))
        .unwrap_or_default();
    format!(
        r#"{{"apiVersion":"v1","kind":"Event","metadata":{{"generateName":{generated},"namespace":"{NAMESPACE}"}},"involvedObject":{{"apiVersion":"v1","kind":"Node","name":{node},"uid":{node}}},"reason":"{reason}","message":{message},"type":"Warning","source":{{"component":"flannel","host":{node}}},"reportingComponent":"flannel","reportingInstance":{node},"count":1,"firstTimestamp":"{now}Z","lastTimestamp":"{now}Z"}}"#,
        generated = quoted(&format!("{node}.")),
        node = quoted(node),
        reason = reason.text(),
        message = quoted(message),
        now = utc::Seconds(seconds),
    )
}

#[cfg(test)]
mod tests {
    use fabric::annotations::NodeObject;
    use fabric::config::Declared;

    use super::*;

    fn network(json: &str) -> NetworkConfig {
        Declared::parse(json.as_bytes())
            .unwrap()
            .without_allocation()
            .unwrap()
    }

    fn given(config: &str, cidrs: &[&str], without: usize) -> String {
        let network = network(config);
        let mut given = Given {
            are_all: true,
            ..Given::default()
        };
        for cidr in cidrs {
            let node = NodeObject {
                name: (*cidr).to_owned(),
                uid: String::new(),
                version: String::new(),
                created: 0,
                annotations: BTreeMap::new(),
                cidrs: vec![(*cidr).to_owned()],
            };
            given.count(Some(&node), &network);
        }
        (0..without).for_each(|_| given.count(None, &network));
        given.cause(&network)
    }

    #[test]
    fn cause_when_no_subnet_is_given_then_which_of_them_is_told_by_the_other_nodes() {
        const CONFIG: &str = r#"{"Network":"10.244.0.0/22"}"#;
        assert!(
            given(CONFIG, &[], 3)
                .starts_with("none of 3 Nodes looked at has one: the controller manager hands none out")
        );
        let all = ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"];
        assert!(given(CONFIG, &all, 1).starts_with("all 4 subnets of /24 in 10.244.0.0/22 are given out"));
        // One of them is elsewhere: there is room yet.
        let elsewhere = ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.9.3.0/24"];
        assert!(given(CONFIG, &elsewhere, 1).starts_with(
            "4 of 5 Nodes looked at have one, of /24, and 10.244.0.0/22 may have room for more"
        ));
        assert!(given(CONFIG, &["10.244.0.0/16"], 1).starts_with("the cluster hands out a /16 to each Node"));
        // Of so many that no number holds them.
        let v6 = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/16"}"#;
        assert!(given(v6, &["fd00::/96"], 1).contains("1 of 2 Nodes looked at have one, of /96"));
    }

    #[test]
    fn event_when_its_words_are_a_strangers_then_it_is_json_all_the_same_and_no_longer_than_allowed() {
        let message = format!("\"quoted\" \u{7}{}", "é".repeat(1000));
        let text = event(
            "node-1",
            Reason::DuplicatePublicIp,
            &message,
            SystemTime::UNIX_EPOCH,
        );
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["reason"], "DuplicatePublicIP");
        assert_eq!(value["involvedObject"]["uid"], "node-1");
        assert_eq!(value["metadata"]["generateName"], "node-1.");
        assert_eq!(value["firstTimestamp"], "1970-01-01T00:00:00Z");
        let said = value["message"].as_str().unwrap();
        assert!(
            said.starts_with("\"quoted\" \u{7}é") && said.len() <= LONGEST,
            "{}",
            said.len()
        );
    }

    #[test]
    fn said_when_it_lasts_changes_or_was_refused_then_due_accordingly() {
        let at = Instant::now();
        let said = |outcome| Said {
            message: "3 of 10 wait".to_owned(),
            at,
            outcome,
        };
        let written = || Outcome::Written { again: AGAIN };
        assert_eq!(said(written()).due("3 of 10 wait"), at + AGAIN);
        assert_eq!(
            said(written()).due("4 of 12 wait"),
            at + AGAIN,
            "the same, in other numbers"
        );
        assert_eq!(said(written()).due("none waits"), at + SELDOM);
        assert_eq!(said(Outcome::Refused).due("none waits"), at + REFUSED);
        assert_eq!(said(Outcome::Unanswered).due("3 of 10 wait"), at + SELDOM);
    }
}
