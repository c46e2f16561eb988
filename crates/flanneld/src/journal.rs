//! The log of what is not as it should be: one line when something begins, one when it is over, and one at each change between
//! ready and not ready.
//!
//! Every part only reports; what is logged of it is decided here, so that the log cannot contradict `/readyz` and cannot be
//! flooded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fabric::readiness::{Finding, Gravity, Kind, Part, Report};
use tracing::{info, warn};

/// Findings named one by one, of those that begin or end at the same time; the rest is a number.
const NAMED: usize = 8;
/// Lines about findings in a [`WINDOW`]; what is beyond is a number at its end.
const LINES: usize = 40;
const WINDOW: Duration = Duration::from_secs(60);

/// What tells one finding from another, whatever its text says in detail.
type Id = (Part, Kind, String);

/// Writes the log of one daemon.
#[derive(Debug, Default)]
pub struct Journal {
    known: BTreeMap<Id, String>,
    counts: BTreeMap<(Part, Kind), usize>,
    ready: Option<bool>,
    window: Option<Instant>,
    lines: usize,
    left_out: usize,
}

/// A line that is to be logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// Something begins.
    Begins(String),
    /// Something is over.
    Over(String),
    /// Worth knowing.
    Note(String),
}

impl Journal {
    /// Takes in what is reported now, and logs what is new in it. `summary` says how it stands when all is well.
    pub fn write(&mut self, report: &Report, summary: &str, now: Instant) {
        for line in self.lines(report, summary, now) {
            match line {
                Line::Begins(text) => warn!("{text}"),
                Line::Over(text) | Line::Note(text) => info!("{text}"),
            }
        }
    }

    /// The lines that [`Journal::write`] logs.
    pub fn lines(&mut self, report: &Report, summary: &str, now: Instant) -> Vec<Line> {
        let mut lines = Vec::new();
        self.open_window(now, &mut lines);
        let found: BTreeMap<Id, &Finding> = report
            .findings()
            .iter()
            .map(|finding| ((finding.part, finding.kind, finding.subject.clone()), finding))
            .collect();
        let begun: Vec<Line> = found
            .iter()
            .filter(|(id, _)| !self.known.contains_key(*id))
            .map(|(_, finding)| begins(finding))
            .collect();
        let crowded: BTreeSet<(Part, Kind)> = report
            .counts()
            .iter()
            .filter(|(key, count)| self.counts.get(*key) != Some(count))
            .map(|(key, _)| *key)
            .collect();
        // What is not named any more, because there are many of its kind, is not over.
        let is_named = |part: Part, kind: Kind| {
            let named = found.keys().filter(|(p, k, _)| (*p, *k) == (part, kind)).count();
            report
                .counts()
                .get(&(part, kind))
                .is_none_or(|count| *count <= named)
        };
        let over: Vec<Line> = self
            .known
            .iter()
            .filter(|(id, _)| !found.contains_key(*id) && is_named(id.0, id.1))
            .filter(|((_, kind, _), _)| *kind != Kind::Pending)
            .map(|(_, text)| Line::Over(format!("over: {text}")))
            .collect();
        self.name(begun, "began", &mut lines);
        self.name(over, "are over", &mut lines);
        if crowded.iter().any(|(part, kind)| !is_named(*part, *kind)) {
            let more = report
                .counts()
                .iter()
                .filter(|((part, kind), _)| !is_named(*part, *kind));
            for ((part, kind), count) in more {
                let text = format!("{}: {count} findings of kind {}", part.name(), kind.name());
                self.add(Line::Note(text), &mut lines);
            }
        }
        self.known = found
            .into_iter()
            .map(|(id, finding)| (id, finding.text.clone()))
            .collect();
        self.counts = report.counts().clone();
        let ready = report.is_ready();
        if self.ready != Some(ready) {
            match (ready, self.ready) {
                (true, None) => lines.push(Line::Note(format!("ready: {summary}"))),
                (true, Some(_)) => lines.push(Line::Note(format!("ready again: {summary}"))),
                (false, Some(true)) => {
                    let reasons = report.reasons();
                    let first = reasons.first().map(String::as_str).unwrap_or_default();
                    lines.push(Line::Begins(format!("not ready: {first}")));
                }
                (false, _) => {}
            }
            if ready || self.ready.is_some() {
                self.ready = Some(ready);
            }
        }
        lines
    }

    /// At the end of a window what was left out of it is told as a number.
    fn open_window(&mut self, now: Instant, lines: &mut Vec<Line>) {
        if self
            .window
            .is_some_and(|opened| now.duration_since(opened) < WINDOW)
        {
            return;
        }
        if self.left_out > 0 {
            lines.push(Line::Note(format!(
                "{} more lines like these were left out in {} s",
                self.left_out,
                WINDOW.as_secs()
            )));
        }
        (self.window, self.lines, self.left_out) = (Some(now), 0, 0);
    }

    fn name(&mut self, all: Vec<Line>, what: &str, lines: &mut Vec<Line>) {
        let more = all.len().saturating_sub(NAMED);
        for line in all.into_iter().take(NAMED) {
            self.add(line, lines);
        }
        if more > 0 {
            self.add(Line::Note(format!("{more} more {what}")), lines);
        }
    }

    fn add(&mut self, line: Line, lines: &mut Vec<Line>) {
        if self.lines < LINES {
            self.lines += 1;
            lines.push(line);
        } else {
            self.left_out += 1;
        }
    }

    /// When something is to be said though nothing happens.
    pub fn next(&self) -> Option<Instant> {
        self.window
            .filter(|_| self.left_out > 0)
            .map(|opened| opened + WINDOW)
    }
}

fn begins(finding: &Finding) -> Line {
    match finding.kind {
        Kind::Pending => Line::Note(finding.to_string()),
        Kind::Waiting => Line::Begins(format!("waiting: {finding}")),
        kind if kind.gravity() == Gravity::Remark => Line::Note(finding.to_string()),
        _ => Line::Begins(finding.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(kind: Kind, subjects: impl IntoIterator<Item = usize>) -> Report {
        let finding = |n: usize| Finding::new(Part::Kernel, kind, n.to_string(), format!("{n} is wrong"));
        subjects.into_iter().map(finding).collect()
    }

    #[test]
    fn journal_when_something_begins_and_ends_then_a_line_each_and_one_for_readiness() {
        let (mut journal, now) = (Journal::default(), Instant::now());
        let mut lines = |report: &Report| journal.lines(report, "3 peers", now);
        assert_eq!(
            lines(&Report::default()),
            [Line::Note("ready: 3 peers".to_owned())]
        );
        let wrong = report(Kind::Conflict, [7]);
        assert_eq!(
            lines(&wrong),
            [
                Line::Begins("7 is wrong".to_owned()),
                Line::Begins("not ready: 7 is wrong".to_owned())
            ]
        );
        assert_eq!(lines(&wrong), []);
        assert_eq!(
            lines(&Report::default()),
            [
                Line::Over("over: 7 is wrong".to_owned()),
                Line::Note("ready again: 3 peers".to_owned())
            ]
        );
    }

    #[test]
    fn journal_when_it_began_from_the_cache_then_recovery_is_a_line_and_so_is_every_change_after_it() {
        let (mut journal, now) = (Journal::default(), Instant::now());
        let stale = |text: &str| {
            let finding = Finding::new(Part::Registry, Kind::Stale, "cache", text);
            [finding].into_iter().collect::<Report>()
        };
        let begun = journal.lines(&stale("served from the cache: no endpoint"), "", now);
        assert_eq!(
            begun,
            [Line::Begins("served from the cache: no endpoint".to_owned())]
        );
        let recovered = journal.lines(&Report::default(), "3 peers", now);
        assert!(
            recovered.contains(&Line::Note("ready: 3 peers".to_owned())),
            "{recovered:?}"
        );
        let lost = journal.lines(&stale("not reached"), "", now);
        assert!(
            lost.contains(&Line::Begins("not ready: not reached".to_owned())),
            "{lost:?}"
        );
        let again = journal.lines(&Report::default(), "3 peers", now);
        assert!(
            again.contains(&Line::Note("ready again: 3 peers".to_owned())),
            "{again:?}"
        );
    }

    #[test]
    fn journal_when_a_peer_is_degraded_then_readiness_is_not_spoken_of() {
        let (mut journal, now) = (Journal::default(), Instant::now());
        journal.lines(&Report::default(), "", now);
        let lines = journal.lines(&report(Kind::Degraded, [1]), "", now);
        assert_eq!(lines, [Line::Begins("1 is wrong".to_owned())]);
    }

    #[test]
    fn journal_when_a_text_changes_in_detail_then_nothing_is_said() {
        let (mut journal, now) = (Journal::default(), Instant::now());
        let finding = |text: &str| Finding::new(Part::State, Kind::Waiting, "cache", text);
        let of = |text: &str| [finding(text)].into_iter().collect::<Report>();
        assert_eq!(journal.lines(&of("expired at 15:00:01"), "", now).len(), 1);
        assert_eq!(journal.lines(&of("expired at 15:00:02"), "", now), []);
    }

    #[test]
    fn journal_when_thousands_begin_or_flap_then_the_lines_are_bounded_and_the_rest_is_a_number() {
        let (mut journal, start) = (Journal::default(), Instant::now());
        let all = journal.lines(&report(Kind::Failure, 0..4000), "", start);
        assert!(all.len() < 14, "{all:?}");
        let mut count = 0;
        for n in 0..3000_u64 {
            let now = start + Duration::from_millis(n * 10);
            count += journal
                .lines(&report(Kind::Degraded, [usize::from(n % 2 == 0)]), "", now)
                .len();
        }
        assert!(count <= LINES + 4, "{count}");
        let next = journal.next().unwrap();
        let said = journal.lines(&Report::default(), "", next);
        assert!(
            matches!(&said[0], Line::Note(text) if text.contains("left out")),
            "{said:?}"
        );
    }

    #[test]
    fn journal_when_more_begin_than_are_named_then_the_rest_is_a_number() {
        for (count, more) in [
            (NAMED, None),
            (NAMED + 1, Some("1 more")),
            (NAMED + 2, Some("2 more")),
        ] {
            let (mut journal, now) = (Journal::default(), Instant::now());
            journal.lines(&Report::default(), "", now);
            let begun = journal.lines(&report(Kind::Degraded, 0..count), "", now);
            let ended = journal.lines(&Report::default(), "", now);
            for (lines, what) in [(begun, "began"), (ended, "are over")] {
                let note = more.map(|more| Line::Note(format!("{more} {what}")));
                assert_eq!(lines.len(), NAMED + usize::from(note.is_some()), "{lines:?}");
                assert!(note.is_none_or(|note| lines.last() == Some(&note)));
            }
        }
    }

    #[test]
    fn journal_when_a_kind_of_finding_begins_then_it_is_said_as_what_it_is() {
        let (mut journal, now) = (Journal::default(), Instant::now());
        let text = || "1 is wrong".to_owned();
        let said = [
            (Kind::Waiting, Line::Begins("waiting: 1 is wrong".to_owned())),
            (Kind::Pending, Line::Note(text())),
            (Kind::Failure, Line::Begins(text())),
            (Kind::Degraded, Line::Begins(text())),
            (Kind::Remark, Line::Note(text())),
        ];
        for (kind, expected) in said {
            let lines = journal.lines(&report(kind, [1]), "", now);
            assert!(lines.contains(&expected), "{kind:?}: {lines:?}");
            let over = journal.lines(&report(Kind::Remark, [7]), "", now);
            let is_said = over.contains(&Line::Over("over: 1 is wrong".to_owned()));
            assert_eq!(is_said, kind != Kind::Pending, "{kind:?}: {over:?}");
        }
    }

    #[test]
    fn journal_when_there_are_more_of_a_kind_than_are_named_then_their_number_is_said_when_it_changes() {
        let (mut journal, now) = (Journal::default(), Instant::now());
        let mut many = report(Kind::Remark, [1]);
        many.add_more(Part::Kernel, Kind::Remark, 5);
        let number = |n: usize| Line::Note(format!("kernel: {n} findings of kind remark"));
        assert!(journal.lines(&many, "", now).contains(&number(6)));
        assert!(journal.lines(&many, "", now).is_empty(), "said before");
        many.add_more(Part::Kernel, Kind::Remark, 1);
        assert_eq!(journal.lines(&many, "", now), [number(7)]);
        // Not named any more, but of a kind of which not all are: it need not be over.
        let mut others = report(Kind::Remark, [2]);
        others.add_more(Part::Kernel, Kind::Remark, 6);
        assert_eq!(
            journal.lines(&others, "", now),
            [Line::Note("2 is wrong".to_owned())]
        );
    }

    #[test]
    fn journal_when_a_minute_is_over_then_there_is_room_again_and_what_was_left_out_is_told() {
        let (mut journal, start) = (Journal::default(), Instant::now());
        journal.lines(&Report::default(), "", start);
        assert_eq!(journal.next(), None);
        let mut lines = 0;
        for n in 0..LINES + 3 {
            lines += journal.lines(&report(Kind::Degraded, [n, 1000]), "", start).len();
        }
        assert_eq!(lines, LINES);
        assert_eq!(journal.next(), Some(start + WINDOW));
        let before = start + WINDOW - Duration::from_millis(1);
        assert!(
            journal
                .lines(&report(Kind::Degraded, [1000]), "", before)
                .is_empty()
        );
        let said = journal.lines(&report(Kind::Degraded, [1000, 1]), "", start + WINDOW);
        assert!(
            matches!(&said[0], Line::Note(text) if text.ends_with("left out in 60 s")),
            "{said:?}"
        );
        assert_eq!(said[1..], [Line::Begins("1 is wrong".to_owned())]);
        assert_eq!(journal.next(), None);
    }
}
