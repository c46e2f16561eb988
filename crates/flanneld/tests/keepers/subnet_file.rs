use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric::readiness::{Kind, Part, Report};
use fabric::subnet_env::SubnetEnv;
use flanneld::board::Reporter;
use flanneld::reconcile::keeper::{Keeper, Letters};
use flanneld::subnet_file::{LOOK, Order, SubnetFile};

use crate::pass;

struct Rig {
    keeper: Keeper<SubnetFile>,
    letters: Arc<Letters<Order>>,
    reporter: Reporter,
    now: Instant,
    directory: tempfile::TempDir,
}

impl Rig {
    fn new() -> Rig {
        let letters = Letters::new().unwrap();
        let reporter = Reporter::default();
        let now = Instant::now();
        Rig {
            keeper: Keeper::new(SubnetFile::new(reporter.clone()), Arc::clone(&letters), LOOK, now),
            letters,
            reporter,
            now,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn running() -> Rig {
        let mut rig = Rig::new();
        rig.order(1450);
        rig.pass(100);
        rig
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("flannel/subnet.env")
    }

    fn order(&self, mtu: u32) {
        let wanted = SubnetEnv {
            network: Some("10.5.0.0/16".parse().unwrap()),
            subnet: Some("10.5.0.0/24".parse().unwrap()),
            network6: None,
            subnet6: None,
            mtu,
            ipmasq: false,
        };
        self.letters.set(Order {
            path: self.path(),
            wanted,
        });
    }

    /// Lets time pass; what happens to the file is heard of by the kernel's own clock.
    fn pass(&mut self, millis: u64) -> usize {
        pass(&mut self.keeper, &mut self.now, Duration::from_millis(millis))
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.path()).unwrap_or_default()
    }

    fn report(&self) -> Report {
        let reports = self.reporter.reports();
        let reports = reports.borrow();
        reports.get(&Part::SubnetFile).cloned().unwrap_or_default()
    }

    fn repairs(&self) -> u64 {
        self.reporter.counters().repairs().values().sum()
    }
}

#[test]
fn subnet_file_when_ordered_then_it_is_written_whole_and_later_lines_of_others_stay() {
    let mut rig = Rig::new();
    std::fs::create_dir_all(rig.path().parent().unwrap()).unwrap();
    std::fs::write(rig.path(), "DOCKER_OPTS=\"of an earlier run\"\n").unwrap();
    rig.order(1450);
    rig.pass(100);
    let ours = rig.text();
    assert!(
        ours.contains("FLANNEL_MTU=1450") && !ours.contains("DOCKER_OPTS"),
        "{ours}"
    );
    std::fs::write(rig.path(), format!("{ours}DOCKER_OPT_MTU=\"--mtu=1450\"\n")).unwrap();
    rig.pass(1000);
    // Another order for the same file.
    rig.order(1430);
    rig.pass(1000);
    let text = rig.text();
    assert!(
        text.contains("DOCKER_OPT_MTU") && text.contains("FLANNEL_MTU=1430"),
        "{text}"
    );
    assert_eq!(rig.repairs(), 0, "an order is no repair");
    assert!(rig.report().is_ready());
}

#[test]
fn subnet_file_when_written_over_without_end_then_it_is_right_within_a_second_each_time() {
    let mut rig = Rig::running();
    let mut longest = 0;
    for _ in 0..60 {
        std::fs::write(rig.path(), "DOCKER_OPTS=\"\"\n").unwrap();
        let mut waited = 0;
        while !rig.text().contains("FLANNEL_MTU=1450") {
            rig.pass(100);
            waited += 100;
        }
        longest = longest.max(waited);
    }
    assert!(longest <= 1000, "{longest} ms");
    assert_eq!(rig.repairs(), 60);
    assert_eq!(
        rig.report().texts_of(Kind::Remark).len(),
        1,
        "a fight, and right at the moment"
    );
    rig.pass(130_000);
    assert!(rig.report().findings().is_empty(), "{:?}", rig.report());
}

#[test]
fn subnet_file_when_its_folder_is_in_the_way_then_that_is_said_and_cured_without_anybody_touching_it() {
    let mut rig = Rig::running();
    let folder = rig.path().parent().unwrap().to_owned();
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, "in the way").unwrap();
    rig.pass(3000);
    let reasons = rig.report().reasons();
    assert!(
        reasons.iter().any(|reason| reason.contains("subnet.env")),
        "{reasons:?}"
    );
    std::fs::remove_file(&folder).unwrap();
    rig.pass(2000);
    assert!(rig.text().contains("FLANNEL_MTU=1450") && rig.report().is_ready());
}

#[test]
fn subnet_file_when_nothing_happens_then_nothing_is_done() {
    let mut rig = Rig::running();
    rig.pass(2000);
    let steps = rig.pass(50_000);
    assert!(steps <= 3, "{steps} steps in 50 quiet seconds");
}

#[test]
fn subnet_file_when_paused_then_it_is_left_alone() {
    let mut rig = Rig::running();
    rig.letters.pause(true);
    rig.pass(100);
    std::fs::remove_file(rig.path()).unwrap();
    rig.pass(10_000);
    assert!(!rig.path().exists());
    rig.letters.pause(false);
    rig.pass(500);
    assert!(rig.path().exists());
}
