//! What is not as it should be, and what follows from it.
//!
//! Every part of a daemon says what is wrong in this one type, once. Whether the host is ready, what `status`, the metrics, the
//! log, the service manager and the CNI plugin are told is computed from the same findings, so that none of them can
//! contradict another.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Findings of one kind that a [`Report`] names; the rest is a number, for thousands may have one cause.
const NAMED: usize = 50;

/// Which part of the daemon speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The daemon's own threads.
    Daemon,
    /// Getting from nothing to a network config, an underlay and a lease.
    Start,
    /// The lease of this host.
    Lease,
    /// The registry and the watch on it.
    Registry,
    /// The link and the addresses the fabric leans on.
    Underlay,
    /// Links, addresses, neighbours, forwarding entries, routes.
    Kernel,
    /// Kernel parameters that safety rests on.
    Sysctl,
    /// Masquerading and forwarding rules.
    Firewall,
    /// `subnet.env`.
    SubnetFile,
    /// What survives a reboot: record and cache.
    State,
}

impl Part {
    /// The part as metrics and the log name it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Daemon => "daemon",
            Part::Start => "start",
            Part::Lease => "lease",
            Part::Registry => "registry",
            Part::Underlay => "underlay",
            Part::Kernel => "kernel",
            Part::Sysctl => "sysctl",
            Part::Firewall => "firewall",
            Part::SubnetFile => "subnet-file",
            Part::State => "state",
        }
    }
}

/// What a finding is. It decides what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Something that has to come first is not there yet.
    Waiting,
    /// It is being put in place.
    Pending,
    /// A step of ours was refused, and is tried again.
    Failure,
    /// An object of somebody else's stands where one of ours has to be, or draws traffic away from it. It is left alone.
    Conflict,
    /// Somebody changes it again and again, and it is put right ever more seldom; it is wrong right now.
    Fight,
    /// What is known may be history.
    Stale,
    /// An admin holds all changes back.
    Paused,
    /// What a peer has published cannot be served, in part or at all. Its own business: this host is as it should be.
    Degraded,
    /// Worth knowing; nothing has to be done for this host to be right.
    Remark,
}

/// What a kind of finding means for the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gravity {
    /// The host is not ready.
    NotReady,
    /// The host is ready, and some peer is not served.
    Degraded,
    /// Nothing.
    Remark,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 9] = [
        Kind::Waiting,
        Kind::Pending,
        Kind::Failure,
        Kind::Conflict,
        Kind::Fight,
        Kind::Stale,
        Kind::Paused,
        Kind::Degraded,
        Kind::Remark,
    ];

    /// What it means for the host.
    pub fn gravity(self) -> Gravity {
        match self {
            Kind::Waiting
            | Kind::Pending
            | Kind::Failure
            | Kind::Conflict
            | Kind::Fight
            | Kind::Stale
            | Kind::Paused => Gravity::NotReady,
            Kind::Degraded => Gravity::Degraded,
            Kind::Remark => Gravity::Remark,
        }
    }

    /// Whether services that were ordered after us have to go on waiting: the host has not yet become what it can be.
    pub fn holds_service(self) -> bool {
        matches!(self, Kind::Waiting | Kind::Pending)
    }

    /// The kind as metrics and `status` name it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Waiting => "waiting",
            Kind::Pending => "pending",
            Kind::Failure => "failure",
            Kind::Conflict => "conflict",
            Kind::Fight => "fight",
            Kind::Stale => "stale",
            Kind::Paused => "paused",
            Kind::Degraded => "degraded",
            Kind::Remark => "remark",
        }
    }
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// Who says so.
    pub part: Part,
    /// What it is.
    pub kind: Kind,
    /// What it is about, such as `route 10.5.2.0/24`; with part and kind it tells one finding from another.
    pub subject: String,
    /// The whole of it, in one sentence.
    pub text: String,
    /// What can be done about it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Finding {
    /// A finding without a hint.
    pub fn new(part: Part, kind: Kind, subject: impl Into<String>, text: impl Into<String>) -> Finding {
        Finding {
            part,
            kind,
            subject: subject.into(),
            text: text.into(),
            hint: None,
        }
    }

    /// The same with a word on what can be done.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Finding {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

/// What one part has to say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    findings: Vec<Finding>,
    counts: BTreeMap<(Part, Kind), usize>,
}

impl Report {
    /// Adds a finding: it is counted, and named unless there are many of its kind already.
    pub fn add(&mut self, finding: Finding) {
        self.add_with(finding.part, finding.kind, || finding);
    }

    /// Adds a finding of a kind; it is only put into words if it is going to be named.
    pub fn add_with(&mut self, part: Part, kind: Kind, words: impl FnOnce() -> Finding) {
        let count = self.counts.entry((part, kind)).or_default();
        *count += 1;
        if *count <= NAMED {
            self.findings.push(words());
        }
    }

    /// Adds findings of a kind of which nothing is known but that they are there.
    pub fn add_more(&mut self, part: Part, kind: Kind, count: usize) {
        if count > 0 {
            *self.counts.entry((part, kind)).or_default() += count;
        }
    }

    /// Adds what another part has to say.
    pub fn join(&mut self, other: &Report) {
        self.findings.extend(other.findings.iter().cloned());
        for (key, count) in &other.counts {
            *self.counts.entry(*key).or_default() += count;
        }
    }

    /// The findings that are named.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// How many findings of each part and kind there are, named or not.
    pub fn counts(&self) -> &BTreeMap<(Part, Kind), usize> {
        &self.counts
    }

    /// How many findings of a kind there are, named or not.
    pub fn count(&self, kind: Kind) -> usize {
        let of_kind = self.counts.iter().filter(|((_, other), _)| *other == kind);
        of_kind.map(|(_, count)| count).sum()
    }

    /// Whether nothing keeps the host from being ready.
    pub fn is_ready(&self) -> bool {
        self.counts
            .keys()
            .all(|(_, kind)| kind.gravity() != Gravity::NotReady)
    }

    /// Whether services that were ordered after us have to go on waiting.
    pub fn holds_service(&self) -> bool {
        self.counts.keys().any(|(_, kind)| kind.holds_service())
    }

    /// What keeps the host from being ready, one sentence each; empty when nothing does.
    pub fn reasons(&self) -> Vec<String> {
        self.texts(|kind| kind.gravity() == Gravity::NotReady)
    }

    /// What is found of a kind, one sentence each.
    pub fn texts_of(&self, kind: Kind) -> Vec<String> {
        self.texts(|other| other == kind)
    }

    fn texts(&self, wanted: impl Fn(Kind) -> bool) -> Vec<String> {
        let named = self.findings.iter().filter(|finding| wanted(finding.kind));
        let mut texts: Vec<String> = named.map(ToString::to_string).collect();
        for ((part, kind), count) in self.counts.iter().filter(|((_, kind), _)| wanted(*kind)) {
            let said = |finding: &&Finding| (finding.part, finding.kind) == (*part, *kind);
            let more = count.saturating_sub(self.findings.iter().filter(said).count());
            if more > 0 {
                texts.push(format!("{}: {more} more of kind {}", part.name(), kind.name()));
            }
        }
        texts
    }
}

impl FromIterator<Finding> for Report {
    fn from_iter<T: IntoIterator<Item = Finding>>(findings: T) -> Report {
        let mut report = Report::default();
        findings.into_iter().for_each(|finding| report.add(finding));
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(kind: Kind, subject: &str) -> Finding {
        Finding::new(Part::Kernel, kind, subject, format!("{subject} is wrong"))
    }

    #[test]
    fn report_when_only_peers_are_at_fault_then_the_host_is_ready() {
        let report: Report = [finding(Kind::Degraded, "a"), finding(Kind::Remark, "b")]
            .into_iter()
            .collect();
        assert!(report.is_ready() && report.reasons().is_empty() && !report.holds_service());
        assert_eq!(report.texts_of(Kind::Degraded), ["a is wrong"]);
    }

    #[test]
    fn report_when_anything_of_ours_is_wrong_then_the_host_is_not_ready_and_says_why() {
        for kind in Kind::ALL {
            let report: Report = [finding(kind, "x")].into_iter().collect();
            let own = !matches!(kind, Kind::Degraded | Kind::Remark);
            assert_eq!(report.is_ready(), !own, "{kind:?}");
            assert_eq!(report.reasons().len(), usize::from(own), "{kind:?}");
            let holds = matches!(kind, Kind::Waiting | Kind::Pending);
            assert_eq!(report.holds_service(), holds, "{kind:?}");
        }
    }

    #[test]
    fn report_when_there_are_thousands_then_all_are_counted_and_few_are_named() {
        let mut report: Report = (0..4000)
            .map(|n| finding(Kind::Failure, &n.to_string()))
            .collect();
        report.join(&[finding(Kind::Failure, "y")].into_iter().collect());
        assert_eq!(report.count(Kind::Failure), 4001);
        assert_eq!(report.count(Kind::Conflict), 0);
        let counts: Vec<_> = report.counts().iter().collect();
        assert_eq!(counts, [(&(Part::Kernel, Kind::Failure), &4001)]);
        let subjects: Vec<&str> = report
            .findings()
            .iter()
            .map(|finding| &*finding.subject)
            .collect();
        assert_eq!((subjects.len(), subjects[0], subjects[50]), (NAMED + 1, "0", "y"));
        let reasons = report.reasons();
        assert_eq!(reasons.len(), NAMED + 2);
        assert_eq!(
            reasons.last().map(String::as_str),
            Some("kernel: 3950 more of kind failure")
        );
    }

    #[test]
    fn report_when_there_are_more_than_anybody_names_then_they_are_counted() {
        let mut report: Report = [finding(Kind::Remark, "a")].into_iter().collect();
        report.add_more(Part::Registry, Kind::Remark, 0);
        assert_eq!(report.counts().len(), 1);
        report.add_more(Part::Registry, Kind::Remark, 7);
        report.add_more(Part::Registry, Kind::Remark, 2);
        assert_eq!(report.count(Kind::Remark), 10);
        assert_eq!(
            report.texts_of(Kind::Remark),
            ["a is wrong", "registry: 9 more of kind remark"]
        );
    }

    #[test]
    fn finding_when_there_is_a_cure_then_it_is_said_with_it() {
        let finding = finding(Kind::Conflict, "x").hint("ip link del x");
        assert_eq!(finding.to_string(), "x is wrong (ip link del x)");
    }

    /// Metrics, logs and other versions read them: they are the names in the JSON.
    #[test]
    fn names_when_said_then_those_of_the_json() {
        let parts = [
            Part::Daemon,
            Part::Start,
            Part::Lease,
            Part::Registry,
            Part::Underlay,
            Part::Kernel,
            Part::Sysctl,
            Part::Firewall,
            Part::SubnetFile,
            Part::State,
        ];
        for part in parts {
            assert_eq!(serde_json::json!(part), part.name());
        }
        for kind in Kind::ALL {
            assert_eq!(serde_json::json!(kind), kind.name());
        }
        assert_eq!(
            Kind::ALL.map(Kind::gravity)[6..],
            [Gravity::NotReady, Gravity::Degraded, Gravity::Remark]
        );
    }
}
