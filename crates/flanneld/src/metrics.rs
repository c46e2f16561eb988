//! `/metrics`: the daemon's numbers in the text format of Prometheus (OpenMetrics 1.0).
//!
//! The numbers live with those who count; a scrape takes them as one [`Numbers`] and renders that. Base units, counters end
//! in `_total`.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// `Content-Type` of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is counted and measured, at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Numbers {
    /// Version of the daemon.
    pub version: String,
    /// Backend type; empty until known.
    pub backend: String,
    /// What `/readyz` says.
    pub ready: bool,
    /// An admin said pause.
    pub paused: bool,
    /// When the daemon started, seconds since 1970.
    pub started: u64,
    /// Leases of other hosts.
    pub peers: u64,
    /// Those of them that are not served in full for want of something of this host.
    pub peers_failed: u64,
    /// Those of them that have published what cannot be served.
    pub peers_degraded: u64,
    /// What is not as it should be: how many findings, by part and kind.
    pub findings: BTreeMap<(&'static str, &'static str), u64>,
    /// Registry entries that are no leases.
    pub rejected: u64,
    /// Objects observed in the kernel, by kind.
    pub objects: BTreeMap<String, u64>,
    /// Foreign objects in our places.
    pub conflicts: u64,
    /// Objects put back after somebody else changed them, by kind.
    pub repairs: BTreeMap<String, u64>,
    /// Steps applied to the kernel, by verb and outcome.
    pub operations: BTreeMap<(String, String), u64>,
    /// Times the kernel's state was read as a whole, by scope.
    pub dumps: BTreeMap<String, u64>,
    /// Rounds of the engine that applied something.
    pub applies: u64,
    /// Time they took, seconds.
    pub apply_seconds: f64,
    /// Time since the engine's loop last came round, seconds.
    pub heartbeat_age_seconds: f64,
    /// The registry is listed and watched right now.
    pub registry_connected: bool,
    /// Revision of what is known of it.
    pub registry_revision: i64,
    /// Requests made to it, by kind.
    pub registry_requests: BTreeMap<String, u64>,
    /// Times the firewall rules were written.
    pub firewall_restores: u64,
    /// The firewall rules are in place, or none are wanted.
    pub firewall_ok: bool,
    /// End of the own lease, seconds since 1970; `None` without a lease, and for a reservation.
    pub lease_expiry: Option<u64>,
    /// When the kernel was last read as a whole, seconds since 1970.
    pub last_audit: Option<u64>,
}

/// Label names with values.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Labels(Vec<(&'static str, String)>);

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        use prometheus_client::encoding::EncodeLabel;
        self.0
            .iter()
            .try_for_each(|(name, value)| (*name, value.as_str()).encode(encoder.encode_label()))
    }
}

struct Page(Registry);

impl Page {
    fn gauge(&mut self, name: &str, help: &str, value: impl TryInto<i64>) {
        let gauge: Gauge = Gauge::default();
        gauge.set(value.try_into().unwrap_or(i64::MAX));
        self.0.register(name, help, gauge);
    }

    fn seconds(&mut self, name: &str, help: &str, value: f64) {
        let gauge = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
        gauge.set(value);
        self.0.register_with_unit(name, help, Unit::Seconds, gauge);
    }

    /// A moment, in seconds since 1970.
    fn moment(&mut self, name: &str, help: &str, value: u64) {
        let gauge: Gauge = Gauge::default();
        gauge.set(value.try_into().unwrap_or(i64::MAX));
        self.0.register_with_unit(name, help, Unit::Seconds, gauge);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        self.0.register(name, help, counter);
    }

    fn gauges(&mut self, name: &str, help: &str, label: &'static str, values: &BTreeMap<String, u64>) {
        let family = Family::<Labels, Gauge>::default();
        for (kind, value) in values {
            let labels = Labels(vec![(label, kind.clone())]);
            family
                .get_or_create(&labels)
                .set((*value).try_into().unwrap_or(i64::MAX));
        }
        self.0.register(name, help, family);
    }

    fn counters<'a>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Vec<(&'static str, String)>, &'a u64)>,
    ) {
        let family = Family::<Labels, Counter>::default();
        for (labels, value) in values {
            family.get_or_create(&Labels(labels)).inc_by(*value);
        }
        self.0.register(name, help, family);
    }
}

/// The text of a scrape.
pub fn render(numbers: &Numbers) -> Result<String, fmt::Error> {
    let mut page = Page(Registry::with_prefix("flannel"));
    let build = Info::new([
        ("version", numbers.version.clone()),
        ("backend", numbers.backend.clone()),
    ]);
    page.0.register("build", "The daemon and its backend", build);
    page.moment("start_timestamp", "When the daemon started", numbers.started);
    page.gauge("ready", "1 when /readyz says so", numbers.ready);
    page.gauge(
        "paused",
        "1 while an admin holds all changes back",
        numbers.paused,
    );
    page.gauge("leases", "Leases of other hosts", numbers.peers);
    let unserved = numbers.peers_failed + numbers.peers_degraded;
    let programmed = numbers.peers.saturating_sub(unserved);
    page.gauge(
        "peers_programmed",
        "Other hosts with every object in the kernel",
        programmed,
    );
    page.gauge(
        "peers_failed",
        "Other hosts that are not served in full for want of something of this host",
        numbers.peers_failed,
    );
    page.gauge(
        "peers_degraded",
        "Other hosts that have published what cannot be served",
        numbers.peers_degraded,
    );
    let findings = Family::<Labels, Gauge>::default();
    for ((part, kind), count) in &numbers.findings {
        let labels = Labels(vec![("part", (*part).to_owned()), ("kind", (*kind).to_owned())]);
        findings
            .get_or_create(&labels)
            .set((*count).try_into().unwrap_or(i64::MAX));
    }
    page.0.register(
        "findings",
        "What is not as it should be, by the part that says so and by kind",
        findings,
    );
    page.gauge(
        "registry_entries_rejected",
        "Registry entries that are no leases",
        numbers.rejected,
    );
    page.gauges(
        "kernel_objects",
        "Objects observed in the kernel",
        "kind",
        &numbers.objects,
    );
    page.gauge(
        "kernel_conflicts",
        "Objects of others in the place of ours",
        numbers.conflicts,
    );
    let one = |label: &'static str| move |(kind, value)| (vec![(label, String::clone(kind))], value);
    page.counters(
        "repairs",
        "Objects put back after somebody else changed them",
        numbers.repairs.iter().map(one("kind")),
    );
    page.counters(
        "apply_operations",
        "Steps applied to the kernel",
        numbers
            .operations
            .iter()
            .map(|((op, outcome), value)| (vec![("op", op.clone()), ("outcome", outcome.clone())], value)),
    );
    page.counters(
        "kernel_dumps",
        "Times the kernel's state was read: all of it, all of a link, or the interfaces to choose from",
        numbers.dumps.iter().map(one("scope")),
    );
    page.counter(
        "applies",
        "Rounds that applied something to the kernel",
        numbers.applies,
    );
    let spent = Counter::<f64, std::sync::atomic::AtomicU64>::default();
    spent.inc_by(numbers.apply_seconds);
    page.0
        .register_with_unit("apply_duration", "Time those rounds took", Unit::Seconds, spent);
    page.seconds(
        "heartbeat_age",
        "Time since the loop last came round",
        numbers.heartbeat_age_seconds,
    );
    page.gauge(
        "registry_connected",
        "1 while the registry is watched",
        numbers.registry_connected,
    );
    page.gauge(
        "registry_revision",
        "Registry revision that is known",
        numbers.registry_revision,
    );
    page.counters(
        "registry_requests",
        "Requests made to the registry",
        numbers.registry_requests.iter().map(one("kind")),
    );
    page.counter(
        "firewall_restores",
        "Times the firewall rules were written",
        numbers.firewall_restores,
    );
    page.gauge(
        "firewall_ok",
        "1 when the firewall rules are in place, or none are wanted",
        numbers.firewall_ok,
    );
    if let Some(end) = numbers.lease_expiry {
        page.moment(
            "lease_expiry_timestamp",
            "When the own lease ends if it is not renewed",
            end,
        );
    }
    if let Some(moment) = numbers.last_audit {
        page.moment(
            "last_audit_timestamp",
            "When the kernel was last read as a whole",
            moment,
        );
    }
    let mut text = String::new();
    encode(&mut text, &page.0)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn render_when_given_numbers_is_the_text_format() {
        let numbers = Numbers {
            version: "1.2.3".into(),
            backend: "vxlan".into(),
            ready: true,
            started: 1_700_000_000,
            peers: 5,
            peers_failed: 1,
            peers_degraded: 1,
            findings: [(("kernel", "conflict"), 4)].into(),
            objects: [("route".into(), 5), ("fdb".into(), 4)].into(),
            repairs: [("route".into(), 7)].into(),
            operations: [(("add".into(), "done".into()), 9)].into(),
            apply_seconds: 0.25,
            dumps: [("all".into(), 2)].into(),
            registry_requests: [("range".into(), 3)].into(),
            lease_expiry: Some(1_700_086_400),
            ..Numbers::default()
        };
        let text = render(&numbers).unwrap();
        for line in [
            "flannel_build_info{version=\"1.2.3\",backend=\"vxlan\"} 1",
            "flannel_start_timestamp_seconds 1700000000",
            "flannel_ready 1",
            "flannel_leases 5",
            "flannel_peers_programmed 3",
            "flannel_peers_failed 1",
            "flannel_peers_degraded 1",
            "flannel_findings{part=\"kernel\",kind=\"conflict\"} 4",
            "flannel_kernel_objects{kind=\"fdb\"} 4",
            "flannel_repairs_total{kind=\"route\"} 7",
            "flannel_apply_operations_total{op=\"add\",outcome=\"done\"} 9",
            "flannel_apply_duration_seconds_total 0.25",
            "flannel_kernel_dumps_total{scope=\"all\"} 2",
            "flannel_registry_requests_total{kind=\"range\"} 3",
            "flannel_firewall_restores_total 0",
            "flannel_lease_expiry_timestamp_seconds 1700086400",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        assert!(
            !render(&Numbers::default()).unwrap().contains("lease_expiry"),
            "no lease, no date"
        );
    }
}
