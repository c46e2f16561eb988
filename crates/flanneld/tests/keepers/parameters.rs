use std::cell::{RefCell, RefMut};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric::object::LinkName;
use fabric::readiness::{Kind, Part, Report};
use flanneld::board::Reporter;
use flanneld::parameters::{LOOK, Parameters, Sysctl};
use flanneld::reconcile::keeper::{Keeper, Letters};

use crate::pass;

const V4: &str = "net/ipv6/conf/flannel.1/accept_ra";
const V6: &str = "net/ipv6/conf/flannel-v6.1/accept_ra";

/// `/proc/sys` in memory.
#[derive(Default)]
struct Tree {
    values: BTreeMap<String, String>,
    read_only: bool,
}

#[derive(Default)]
struct Proc(RefCell<Tree>);

impl Sysctl for Proc {
    fn get(&self, path: &str) -> io::Result<Option<String>> {
        Ok(self.0.borrow().values.get(path).cloned())
    }

    fn set(&self, path: &str, value: &str) -> io::Result<()> {
        let mut tree = self.0.borrow_mut();
        if tree.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        tree.values.insert(path.to_owned(), value.to_owned());
        Ok(())
    }
}

struct Rig {
    keeper: Keeper<Parameters<Proc>>,
    letters: Arc<Letters<Vec<LinkName>>>,
    reporter: Reporter,
    now: Instant,
}

impl Rig {
    fn new(values: &[(&str, &str)]) -> Rig {
        let letters = Letters::new().unwrap();
        let reporter = Reporter::default();
        let now = Instant::now();
        let kept = Parameters::new(Proc::default(), reporter.clone());
        let mut rig = Rig {
            keeper: Keeper::new(kept, Arc::clone(&letters), LOOK, now),
            letters,
            reporter,
            now,
        };
        values.iter().for_each(|(path, value)| rig.set(path, value));
        rig
    }

    fn order(&mut self) {
        let links = ["flannel.1", "flannel-v6.1"].map(|name| LinkName::new(name).unwrap());
        self.letters.set(links.to_vec());
        self.pass(10);
    }

    fn tree(&mut self) -> RefMut<'_, Tree> {
        self.keeper.target().sysctl().0.borrow_mut()
    }

    fn set(&mut self, path: &str, value: &str) {
        self.tree().values.insert(path.to_owned(), value.to_owned());
    }

    fn get(&mut self, path: &str) -> String {
        self.tree().values.get(path).cloned().unwrap_or_default()
    }

    fn pass(&mut self, millis: u64) -> usize {
        pass(&mut self.keeper, &mut self.now, Duration::from_millis(millis))
    }

    fn report(&self) -> Report {
        let reports = self.reporter.reports();
        let reports = reports.borrow();
        reports.get(&Part::Sysctl).cloned().unwrap_or_default()
    }
}

#[test]
fn parameters_when_wrong_on_devices_that_were_there_before_then_set_and_kept() {
    let mut rig = Rig::new(&[(V4, "1"), (V6, "2")]);
    rig.order();
    assert_eq!((rig.get(V4), rig.get(V6)), ("0".to_owned(), "0".to_owned()));
    assert!(rig.report().is_ready());
    for _ in 0..60 {
        rig.set(V6, "1");
        rig.pass(1000);
        assert_eq!(rig.get(V6), "0", "at once, however often somebody does it");
    }
    assert_eq!(rig.reporter.counters().repairs()["sysctl"], 60);
    assert_eq!(rig.report().texts_of(Kind::Remark).len(), 1, "{:?}", rig.report());
    assert!(rig.report().is_ready());
}

#[test]
fn parameters_when_a_device_comes_later_or_goes_then_that_is_no_trouble() {
    let mut rig = Rig::new(&[]);
    rig.order();
    assert!(rig.report().findings().is_empty());
    rig.set(V4, "1");
    rig.pass(1000);
    assert_eq!(rig.get(V4), "0");
    rig.tree().values.clear();
    rig.pass(3000);
    assert!(rig.report().is_ready());
}

#[test]
fn parameters_when_they_cannot_be_set_and_are_wrong_then_that_is_said_until_they_are_right() {
    let mut rig = Rig::new(&[(V4, "1"), ("net/ipv6/conf/flannel.1/forwarding", "0")]);
    rig.tree().read_only = true;
    rig.order();
    rig.pass(20_000);
    let report = rig.report();
    assert!(report.is_ready(), "a container may have no right to: {report:?}");
    let said = report.texts_of(Kind::Remark);
    assert_eq!(said.len(), 1, "{said:?}");
    for word in [V4, "\"1\"", "\"0\"", "cannot be set", "default route"] {
        assert!(said[0].contains(word), "{word}: {said:?}");
    }
    rig.tree().read_only = false;
    rig.pass(1100);
    assert_eq!(rig.get(V4), "0");
    assert!(
        !rig.report()
            .texts_of(Kind::Remark)
            .iter()
            .any(|text| text.contains("cannot be set"))
    );
}

/// The host forwards IPv6, so that the kernel takes no advertisement with `accept_ra=1`.
#[test]
fn parameters_when_they_cannot_be_set_and_are_wrong_to_no_effect_then_nothing_is_said_until_that_changes() {
    let forwarding = "net/ipv6/conf/flannel.1/forwarding";
    let mut rig = Rig::new(&[(V4, "1"), (forwarding, "1")]);
    rig.tree().read_only = true;
    rig.order();
    rig.pass(5000);
    assert!(rig.report().findings().is_empty(), "{:?}", rig.report());
    rig.set(forwarding, "0");
    rig.pass(1500);
    assert_eq!(rig.report().texts_of(Kind::Remark).len(), 1);
    rig.set(forwarding, "1");
    rig.pass(2500);
    assert!(rig.report().findings().is_empty(), "{:?}", rig.report());
    rig.tree().read_only = false;
    rig.set(forwarding, "0");
    rig.pass(1500);
    assert_eq!(rig.get(V4), "0");
}

#[test]
fn parameters_when_nothing_happens_then_they_are_only_looked_at() {
    let mut rig = Rig::new(&[(V4, "0"), (V6, "0")]);
    rig.order();
    rig.pass(50_000);
    assert!(rig.reporter.counters().repairs().is_empty());
    rig.letters.pause(true);
    rig.pass(100);
    rig.set(V4, "1");
    rig.pass(10_000);
    assert_eq!(rig.get(V4), "1", "an admin holds the hand still");
    rig.letters.pause(false);
    rig.pass(1500);
    assert_eq!(rig.get(V4), "0");
}
