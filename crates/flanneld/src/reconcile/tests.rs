use super::patience::LONGEST;
use super::*;

/// Numbers that shall be others; the steps are written down.
#[derive(Default)]
struct Numbers {
    wanted: BTreeMap<u8, u32>,
    there: BTreeMap<u8, u32>,
    foreign: BTreeSet<u8>,
    refused: BTreeSet<u8>,
    unreadable: BTreeSet<u8>,
    tried: Vec<u8>,
}

#[derive(Debug)]
struct Put(u8, u32, Damage);

impl fmt::Display for Put {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.0, self.1)
    }
}

impl Step for Put {
    type Key = u8;

    fn key(&self) -> u8 {
        self.0
    }

    fn damage(&self) -> Damage {
        self.2
    }
}

impl Target for Numbers {
    type Key = u8;
    type Step = Put;

    fn compare(&mut self, look: Look<'_, u8>) -> Comparison<Put> {
        let mut found = Comparison::default();
        let asked = |key: &u8| match look {
            Look::Whole => true,
            Look::Keys(keys) => keys.contains(key),
        };
        for (key, wanted) in self.wanted.iter().filter(|(key, _)| asked(key)) {
            let there = self.there.get(key);
            if self.unreadable.contains(key) {
                found.unreadable.push((*key, "cannot be read".to_owned()));
            } else if self.foreign.contains(key) {
                let (there, wanted) = (format!("{there:?}"), wanted.to_string());
                found.conflicts.push((*key, Conflict { there, wanted }));
            } else if there != Some(wanted) {
                let damage = there.map_or(Damage::Missing, |_| Damage::Changed);
                found.steps.push(Put(*key, *wanted, damage));
            }
        }
        found
    }

    fn apply(&mut self, steps: Vec<Put>, _: Instant) -> Vec<(Put, Fate)> {
        let fate = |step: Put| {
            self.tried.push(step.0);
            if self.refused.contains(&step.0) {
                let text = "no".to_owned();
                return (
                    step,
                    Fate::Refused {
                        kind: Kind::Failure,
                        text,
                    },
                );
            }
            self.there.insert(step.0, step.1);
            (step, Fate::Done)
        };
        steps.into_iter().map(fate).collect()
    }
}

struct Bench {
    numbers: Numbers,
    reconciler: Reconciler<u8>,
    now: Instant,
}

impl Bench {
    fn new(wanted: impl IntoIterator<Item = u8>) -> Bench {
        let wanted = wanted.into_iter().map(|key| (key, u32::from(key) * 10));
        Bench {
            numbers: Numbers {
                wanted: wanted.collect(),
                ..Numbers::default()
            },
            reconciler: Reconciler::new(LONGEST),
            now: Instant::now(),
        }
    }

    fn round(&mut self) -> Option<Round<Put>> {
        self.reconciler.round(&mut self.numbers, self.now)
    }

    fn whole(&mut self) -> Option<Round<Put>> {
        self.reconciler.due.observed = true;
        self.round()
    }

    fn disturb(&mut self, key: u8, there: Option<u32>) {
        match there {
            Some(number) => self.numbers.there.insert(key, number),
            None => self.numbers.there.remove(&key),
        };
        self.reconciler.due.disturbed.insert(key, Some(Opponent::Port(0)));
    }

    fn kinds(&self) -> Vec<(Kind, String)> {
        let report = self.reconciler.report(Part::Kernel);
        let named = report.findings().iter();
        named
            .map(|finding| (finding.kind, finding.subject.clone()))
            .collect()
    }
}

#[test]
fn round_when_nothing_is_due_then_nothing_is_compared() {
    let mut bench = Bench::new([1]);
    assert!(bench.round().is_none() && bench.numbers.tried.is_empty());
}

#[test]
fn round_when_one_step_is_refused_then_the_others_are_done_and_it_is_tried_again_by_its_own_clock() {
    let mut bench = Bench::new([1, 2, 3]);
    bench.numbers.refused.insert(2);
    let round = bench.whole().unwrap();
    assert_eq!((round.planned, round.done.len()), (3, 2));
    assert_eq!(bench.kinds(), [(Kind::Failure, "2".to_owned())]);
    assert!(bench.round().is_none(), "not before its time");
    bench.numbers.refused.clear();
    bench.now = bench.reconciler.next().unwrap();
    assert_eq!(bench.round().unwrap().done.len(), 1);
    assert_eq!(bench.numbers.tried, [1, 2, 3, 2]);
    assert!(bench.reconciler.is_clear() && bench.kinds().is_empty());
}

#[test]
fn round_when_somebody_else_did_what_was_refused_then_nothing_is_failing_any_more() {
    let mut bench = Bench::new([1]);
    bench.numbers.refused.insert(1);
    bench.whole();
    bench.disturb(1, Some(10));
    bench.round();
    assert!(bench.reconciler.is_clear() && bench.reconciler.next().is_none());
}

#[test]
fn round_when_a_stranger_has_a_place_then_it_is_named_until_it_is_gone() {
    let mut bench = Bench::new([1, 2]);
    bench.numbers.foreign.insert(1);
    bench.whole();
    assert_eq!(bench.kinds(), [(Kind::Conflict, "1".to_owned())]);
    // A look at another place says nothing about this one.
    bench.disturb(2, None);
    bench.round();
    assert!(bench.reconciler.conflict(&1).is_some());
    bench.numbers.foreign.clear();
    bench.disturb(1, None);
    bench.round();
    assert!(bench.reconciler.is_clear());
    assert_eq!(bench.numbers.there, bench.numbers.wanted);
}

#[test]
fn round_when_a_place_cannot_be_read_then_that_is_a_failure_and_looked_at_again() {
    let mut bench = Bench::new([1, 2]);
    bench.numbers.unreadable.insert(1);
    bench.whole();
    assert_eq!(bench.kinds(), [(Kind::Failure, "1".to_owned())]);
    bench.numbers.unreadable.clear();
    bench.now = bench.reconciler.next().unwrap();
    bench.round();
    assert_eq!(bench.numbers.there, bench.numbers.wanted);
    assert!(bench.reconciler.is_clear());
}

#[test]
fn round_when_something_was_changed_by_others_then_it_is_a_repair_and_news_is_none() {
    let mut bench = Bench::new([1, 2]);
    assert!(!bench.whole().unwrap().done.is_empty());
    bench.disturb(1, None);
    assert_eq!(bench.round().unwrap().repaired, [1]);
    bench.numbers.wanted.insert(3, 30);
    bench.reconciler.due.keys.insert(3);
    let round = bench.round().unwrap();
    assert!(round.repaired.is_empty() && round.done.len() == 1);
    bench.numbers.wanted.insert(2, 21);
    bench.reconciler.due.replanned = true;
    assert!(bench.round().unwrap().repaired.is_empty());
}

#[test]
fn round_when_a_place_is_fought_over_then_it_is_left_for_a_while_and_said_to_be() {
    let mut bench = Bench::new([1, 2]);
    bench.whole();
    for _ in 0..4 {
        bench.disturb(1, Some(99));
        bench.round();
        bench.now += Duration::from_millis(10);
    }
    assert_eq!(
        bench.kinds(),
        [(Kind::Remark, "1".to_owned())],
        "right at the moment"
    );
    bench.disturb(1, Some(99));
    bench.disturb(2, None);
    bench.round();
    assert_eq!(bench.kinds(), [(Kind::Fight, "1".to_owned())]);
    assert!(bench.reconciler.is_paused(&1) && bench.numbers.there[&2] == 20);
    bench.now = bench.reconciler.next().unwrap();
    bench.round();
    assert_eq!(bench.numbers.there, bench.numbers.wanted);
    assert_eq!(bench.kinds(), [(Kind::Remark, "1".to_owned())]);
    bench.now += Duration::from_secs(120);
    bench.reconciler.forget(bench.now);
    assert!(bench.kinds().is_empty());
}

#[test]
fn due_when_asked_then_disturbances_alone_are_no_news() {
    let mut due: Due<u8> = Due::default();
    assert!(due.is_empty() && !due.is_news());
    due.disturbed.insert(1, None);
    assert!(!due.is_empty() && !due.is_news());
    for news in 0..3 {
        let due = Due {
            replanned: news == 0,
            observed: news == 1,
            keys: (0..u8::from(news == 2)).collect(),
            ..Due::default()
        };
        assert!(due.is_news() && !due.is_empty(), "{news}");
    }
}

#[test]
fn opponent_when_named_then_by_its_number_and_name_as_far_as_they_are_known() {
    assert_eq!(Opponent::Process(7, "nft".to_owned()).to_string(), "pid 7 (nft)");
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    let own = Opponent::Port(std::process::id()).to_string();
    assert!(
        own.starts_with(&format!("pid {} (", std::process::id())) && !own.contains('\n'),
        "{own} {name}"
    );
    assert_eq!(Opponent::Port(0).to_string(), "pid 0");
    let conflict = Conflict {
        there: "x".to_owned(),
        wanted: "y".to_owned(),
    };
    assert_eq!(conflict.to_string(), "x in the place of y");
}

fn texts(bench: &Bench) -> Vec<String> {
    let report = bench.reconciler.report(Part::Firewall);
    assert!(
        report
            .findings()
            .iter()
            .all(|finding| finding.part == Part::Firewall)
    );
    report
        .findings()
        .iter()
        .map(|finding| finding.text.clone())
        .collect()
}

#[test]
fn report_when_something_is_wrong_then_what_and_since_whom() {
    let mut bench = Bench::new([1, 2, 3]);
    bench.numbers.foreign.insert(1);
    bench.numbers.refused.insert(2);
    bench.whole();
    assert_eq!(texts(&bench), ["None in the place of 10", "2: no"]);
    assert_eq!(
        (bench.reconciler.error(&2), bench.reconciler.error(&1)),
        (Some("no"), None)
    );
    assert!(!bench.reconciler.is_degraded(&2) && !bench.reconciler.is_clear());
    bench.numbers.foreign.clear();
    bench.numbers.refused.clear();
    bench.reconciler.hurry(bench.now, |_| true);
    bench.whole();
    for _ in 0..5 {
        bench.disturb(3, Some(99));
        bench.round();
    }
    assert_eq!(
        texts(&bench),
        ["3 is changed again and again by pid 0: it is put right ever more seldom"]
    );
    assert!(
        bench.reconciler.is_paused(&3) && !bench.reconciler.is_paused(&1) && !bench.reconciler.is_clear()
    );
    // Disturbed by nobody who is known, while it waits: who it was before is still named.
    bench.reconciler.due.disturbed.insert(3, None);
    bench.round();
    bench.now = bench.reconciler.next().unwrap();
    let round = bench.round().unwrap();
    assert_eq!(round.repaired, [3], "it was left alone for a while");
    assert_eq!(texts(&bench), ["3 is changed again and again by pid 0"]);
    assert!(!bench.reconciler.is_paused(&3) && bench.reconciler.is_clear());
}

#[test]
fn round_when_asked_what_it_was_then_what_was_compared() {
    let mut bench = Bench::new([1, 2]);
    let round = bench.whole().unwrap();
    assert!(round.whole && round.keys.is_empty());
    bench.disturb(1, None);
    let round = bench.round().unwrap();
    assert!(!round.whole);
    assert_eq!(round.keys, BTreeSet::from([1]));
    assert!(!round.done[0].retried);
    bench.reconciler.due.replanned = true;
    assert!(bench.round().unwrap().whole);
    assert!(bench.round().is_none());
}

#[test]
fn repair_when_it_is_the_success_of_what_was_refused_then_it_is_none() {
    let mut bench = Bench::new([1]);
    bench.numbers.refused.insert(1);
    bench.whole();
    bench.numbers.refused.clear();
    bench.now = bench.reconciler.next().unwrap();
    let round = bench.round().unwrap();
    assert!(round.done[0].retried && round.repaired.is_empty());
    // Nobody told of it: only a look at everything finds it, and that is a repair.
    bench.numbers.there.clear();
    assert_eq!(bench.whole().unwrap().repaired, [1]);
    assert!(bench.reconciler.patience.fights().next().is_none());
    for _ in 0..9 {
        bench.numbers.there.clear();
        bench.whole();
    }
    assert!(
        !bench.reconciler.patience.is_fought(&1),
        "nobody was told to have done it"
    );
}

#[test]
fn failures_when_only_some_places_were_looked_at_then_the_others_are_kept() {
    let mut bench = Bench::new([1, 2]);
    bench.numbers.refused.extend([1, 2]);
    bench.whole();
    bench.numbers.there.insert(1, 10);
    bench.numbers.there.insert(2, 20);
    bench.reconciler.due.keys.insert(1);
    bench.round();
    assert_eq!(bench.kinds(), [(Kind::Failure, "2".to_owned())]);
    bench.whole();
    assert!(bench.kinds().is_empty());
}

#[test]
fn repairs_when_there_are_thousands_then_a_second_names_a_few_and_counts_the_others() {
    let (mut said, start) = (Said::default(), Instant::now());
    assert_eq!(said.turn(start), 0);
    let named = |said: &mut Said, count: usize| (0..count).filter(|_| said.names()).count();
    assert_eq!(named(&mut said, 5), 5);
    // Another round of the same second goes on where the one before stopped.
    assert_eq!(said.turn(start + Duration::from_millis(999)), 0);
    assert_eq!(named(&mut said, 1000), NAMED - 5);
    assert_eq!(said.turn(start + SECOND), 1000 - (NAMED - 5));
    assert_eq!(named(&mut said, 3), 3);
    assert_eq!(said.turn(start + SECOND * 2), 0);
}
