//! What a report of this node means for others who rely on it.

use fabric::readiness::{Finding, Gravity, Kind, Part, Report};
use registry::DataPath;

/// What others who rely on this node are to know.
///
/// INVARIANT: broken is only what all pods here suffer from: the own device, its address, the underlay, the file that new pods are set
/// up by. The registry and what we write there are not in it: who cannot write that all is well would else be told to write that it
/// is not. Nor are one peer's route, an admin who holds changes back, and rules whose state is not known.
pub(crate) fn data_path(report: &Report) -> DataPath {
    if report.is_ready() {
        return DataPath::Stands;
    }
    let is_broken = |finding: &&Finding| {
        let kind = matches!(finding.kind, Kind::Failure | Kind::Conflict | Kind::Fight);
        let own = ["link ", "address "]
            .iter()
            .any(|key| finding.subject.starts_with(key));
        kind && match finding.part {
            Part::Underlay | Part::SubnetFile => true,
            Part::Kernel => own,
            _ => false,
        }
    };
    // Some peer may not be reached, and pods here stand.
    let is_of_kernel =
        |finding: &Finding| finding.part == Part::Kernel && finding.kind.gravity() == Gravity::NotReady;
    match report.findings().iter().find(is_broken) {
        Some(finding) => DataPath::Broken(finding.to_string()),
        None if report.holds_service() || report.findings().iter().any(is_of_kernel) => DataPath::Unknown,
        None => DataPath::Stands,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_path_when_all_pods_suffer_then_broken_and_else_nobody_is_kept_from_this_node() {
        let of = |found: &[(Part, Kind, &str)]| {
            let finding = |(part, kind, subject): &(Part, Kind, &str)| {
                Finding::new(*part, *kind, *subject, kind.name())
            };
            data_path(&found.iter().map(finding).collect())
        };
        assert_eq!(of(&[]), DataPath::Stands);
        for (part, kind, subject) in [
            (Part::Registry, Kind::Degraded, "x"),
            (Part::Kernel, Kind::Remark, "link docker0"),
            // The registry is away, what is written there is refused: that says nothing of the data path.
            (Part::Registry, Kind::Stale, "watch"),
            (Part::Lease, Kind::Failure, "lease"),
            (Part::Firewall, Kind::Failure, "nat"),
        ] {
            assert_eq!(
                of(&[(part, kind, subject)]),
                DataPath::Stands,
                "{part:?} {kind:?}"
            );
        }
        for (part, kind, subject) in [
            (Part::Kernel, Kind::Paused, "pause"),
            (Part::Kernel, Kind::Pending, "comparison"),
            (Part::Start, Kind::Waiting, "config"),
            (Part::SubnetFile, Kind::Pending, "file"),
            // One peer's.
            (Part::Kernel, Kind::Conflict, "route 10.1.2.0/24"),
        ] {
            assert_eq!(
                of(&[(part, kind, subject)]),
                DataPath::Unknown,
                "{part:?} {kind:?}"
            );
        }
        for (part, kind, subject) in [
            (Part::Kernel, Kind::Conflict, "link flannel.1"),
            (Part::Kernel, Kind::Fight, "address flannel.1 10.1.2.0/32"),
            (Part::Underlay, Kind::Failure, "link eth0"),
            (Part::SubnetFile, Kind::Failure, "file"),
        ] {
            let DataPath::Broken(why) = of(&[(Part::Registry, Kind::Stale, "watch"), (part, kind, subject)])
            else {
                panic!("{part:?} {kind:?}")
            };
            assert!(why.contains(kind.name()), "{why}");
        }
    }
}
