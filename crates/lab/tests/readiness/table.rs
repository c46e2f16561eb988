//! One row: something is done to a running node, what is said of it everywhere, and the cure.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::bed::Bed;

/// From the deed to 503; a second is aimed at.
const UNREADY: Duration = Duration::from_secs(3);
/// From the cure to 200.
const READY: Duration = Duration::from_secs(5);
/// What is waited for before a row fails.
const LIMIT: Duration = Duration::from_secs(15);

pub const SOCKET: &str = "/run/flannel/flanneld.sock";

/// What is expected of everybody who is asked.
pub struct Row<'a> {
    /// What is done.
    pub deed: &'a str,
    /// Words of the reason that name the cause.
    pub cause: &'a str,
    /// Labels of the metric.
    pub finding: (&'a str, &'a str),
    pub socket: &'a str,
    /// How often readiness may come and go: a fight is one by its blows.
    pub turns: usize,
    /// From the deed to 503 at most.
    pub within: Duration,
}

impl<'a> Row<'a> {
    pub fn new(deed: &'a str, cause: &'a str, part: &'a str, kind: &'a str) -> Row<'a> {
        Row {
            deed,
            cause,
            finding: (part, kind),
            socket: SOCKET,
            turns: 1,
            within: UNREADY,
        }
    }
}

/// All rows, printed as they come.
#[derive(Default)]
pub struct Table {
    failures: Vec<String>,
}

impl Table {
    /// A node that must not be ready from the deed to the cure. `meanwhile` looks at more, and says what it found.
    pub fn unready(
        &mut self,
        bed: &mut Bed,
        row: &Row<'_>,
        deed: impl FnOnce(&mut Bed) -> Instant,
        meanwhile: impl FnOnce(&mut Bed) -> Result<String, String>,
        cure: impl FnOnce(&mut Bed) -> Instant,
    ) {
        let mut text = format!("{}\n", row.deed);
        let mut wrong = Vec::new();
        bed.mark();
        let done = deed(bed);
        let (part, kind) = row.finding;
        let named = |answer: &crate::witness::Answer| {
            answer.code == 503 && answer.reasons.iter().any(|reason| reason.contains(row.cause))
        };
        let mut since = done;
        match bed.prober.wait(done, LIMIT, named) {
            Ok(answer) => {
                since = answer.answered;
                let took = answer.answered - done;
                let reason = answer.reasons.iter().find(|reason| reason.contains(row.cause));
                let _ = writeln!(
                    text,
                    "    503 after {:>6.3} s  {}",
                    took.as_secs_f64(),
                    reason.cloned().unwrap_or_default()
                );
                if took > row.within {
                    wrong.push(format!("503 after {took:?}"));
                }
            }
            Err(last) => wrong.push(format!("no 503 that names {:?}; {last}", row.cause)),
        }
        bed.until("\"not ready: \" in the log", |bed| {
            bed.log().contains("not ready: ")
        });
        bed.until("STATUS= with the reason", |bed| bed.listen().contains(row.cause));
        let (status, exit) = bed.status(row.socket);
        let headline = status.lines().next().unwrap_or_default().to_owned();
        let (ready, findings) = (
            bed.metric("flannel_ready"),
            bed.metric(&format!("flannel_findings{{part=\"{part}\",kind=\"{kind}\"}}")),
        );
        let notified = bed.listen();
        let _ = writeln!(
            text,
            "    status exit {exit} {headline:?}; flannel_ready {ready}; flannel_findings{{{part},{kind}}} {findings}; STATUS={notified}"
        );
        for (what, is_right) in [
            ("the headline", headline.contains("NOT READY")),
            ("the reason in status", status.contains(row.cause)),
            ("the exit status", exit == 1),
            ("flannel_ready", ready == 0),
            ("flannel_findings", findings > 0),
            ("STATUS=", notified.contains(row.cause)),
        ] {
            if !is_right {
                wrong.push(format!("{what} says otherwise: {status}"));
            }
        }
        match meanwhile(bed) {
            Ok(found) if found.is_empty() => {}
            Ok(found) => {
                let _ = writeln!(text, "    meanwhile {found}");
            }
            Err(problem) => wrong.push(problem),
        }
        let before = Instant::now();
        if row.turns == 1 {
            let ready = bed.prober.others(503, since, before);
            if !ready.is_empty() {
                wrong.push(format!("ready before the cure: {ready:?}"));
            }
        }
        let cured = cure(bed);
        match bed.prober.wait(cured, LIMIT * 2, |answer| answer.code == 200) {
            Ok(answer) => {
                let took = answer.answered - cured;
                let _ = writeln!(text, "    200 after {:>6.3} s", took.as_secs_f64());
                if took > READY {
                    wrong.push(format!("200 after {took:?}"));
                }
            }
            Err(last) => wrong.push(format!("no 200 after the cure; {last}")),
        }
        bed.until("\"ready again\" in the log", |bed| {
            bed.log().contains("ready again: ")
        });
        let log = bed.log();
        let count = |words: &str| log.lines().filter(|line| line.contains(words)).count();
        let (not, again) = (count("not ready: "), count("ready again: "));
        let line = log.lines().find(|line| line.contains("not ready: "));
        let _ = writeln!(
            text,
            "    log {not} × {:?}, {again} × \"ready again\"",
            line.unwrap_or_default().trim()
        );
        if not == 0 || again == 0 || not > row.turns || again > row.turns {
            wrong.push(format!(
                "{not} × \"not ready\", {again} × \"ready again\" in\n{log}"
            ));
        }
        let exit = bed.status(row.socket).1;
        if exit != 0 {
            wrong.push(format!("status exits with {exit} after the cure"));
        }
        self.reachable(bed, &mut wrong);
        self.end(text, row.deed, wrong);
    }

    /// A node that is not ready from its start on, because of what was there before. `named` is how long it took to say so, and what
    /// it said.
    pub fn start(
        &mut self,
        bed: &mut Bed,
        deed: &str,
        named: Result<(Duration, Vec<String>), String>,
        cause: &str,
        cure: impl FnOnce(&mut Bed) -> Instant,
    ) {
        let (mut text, mut wrong) = (format!("{deed}\n"), Vec::new());
        match named {
            Ok((took, reasons)) => {
                let reason = reasons.iter().find(|reason| reason.contains(cause));
                let _ = writeln!(
                    text,
                    "    named {:>6.3} s after the exec  {}",
                    took.as_secs_f64(),
                    reason.cloned().unwrap_or_default()
                );
                if reason.is_none() {
                    wrong.push(format!("{cause:?} is not named: {reasons:?}"));
                }
            }
            Err(last) => wrong.push(format!("not named; {last}")),
        }
        let (status, exit) = bed.status(SOCKET);
        let ready = bed.metric("flannel_ready");
        let headline = status.lines().next().unwrap_or_default().to_owned();
        bed.until("a line of the log", |bed| bed.log().contains(cause));
        bed.until("READY=1", |bed| bed.readies() > 0);
        let lines = bed.log().lines().filter(|line| line.contains(cause)).count();
        let readies = bed.readies();
        let _ = writeln!(
            text,
            "    status exit {exit} {headline:?}; flannel_ready {ready}; log {lines} × the reason; READY={readies}; STATUS={}",
            bed.listen()
        );
        if exit != 1 || ready != 0 || !headline.contains("NOT READY") || lines == 0 || readies != 1 {
            wrong.push(format!("{status}\n{}", bed.log()));
        }
        let cured = cure(bed);
        match bed.prober.wait(cured, LIMIT, |answer| answer.code == 200) {
            Ok(answer) => {
                let took = answer.answered - cured;
                let _ = writeln!(text, "    200 after {:>6.3} s", took.as_secs_f64());
                if took > READY {
                    wrong.push(format!("200 after {took:?}"));
                }
            }
            Err(last) => wrong.push(format!("no 200 after the cure; {last}")),
        }
        bed.until("a line of the log", |bed| bed.log().contains("ready: "));
        self.reachable(bed, &mut wrong);
        self.end(text, deed, wrong);
    }

    /// A node that stays ready all the while. `look` looks at what is said of it.
    pub fn ready(
        &mut self,
        bed: &mut Bed,
        deed: &str,
        act: impl FnOnce(&mut Bed) -> Instant,
        look: impl FnOnce(&mut Bed) -> Result<String, String>,
        cure: impl FnOnce(&mut Bed),
    ) {
        let (mut text, mut wrong) = (format!("{deed}\n"), Vec::new());
        let done = act(bed);
        match look(bed) {
            Ok(found) => {
                let _ = writeln!(text, "    {found}");
            }
            Err(problem) => wrong.push(problem),
        }
        let (status, exit) = bed.status(SOCKET);
        let headline = status.lines().next().unwrap_or_default().to_owned();
        let ready = bed.metric("flannel_ready");
        let others = bed.prober.others(200, done, Instant::now());
        let _ = writeln!(
            text,
            "    200 all the while; status exit {exit} {headline:?}; flannel_ready {ready}; STATUS={}",
            bed.listen()
        );
        if exit != 0 || ready != 1 || headline.contains("NOT READY") || !others.is_empty() {
            wrong.push(format!("not ready: {others:?}; {status}"));
        }
        cure(bed);
        self.reachable(bed, &mut wrong);
        self.end(text, deed, wrong);
    }

    fn reachable(&self, bed: &Bed, wrong: &mut Vec<String>) {
        let start = Instant::now();
        loop {
            let (said, answered, _) = bed.ping();
            if answered {
                return;
            }
            if start.elapsed() > READY {
                wrong.push(format!("the peer's pod is not reached again: {said}"));
                return;
            }
        }
    }

    fn end(&mut self, mut text: String, deed: &str, wrong: Vec<String>) {
        for problem in &wrong {
            let _ = writeln!(text, "    WRONG: {problem}");
            self.failures.push(format!("{deed}: {problem}"));
        }
        print(&text);
    }

    /// Every row is as it should be.
    pub fn close(self) {
        assert!(
            self.failures.is_empty(),
            "{} wrong:\n{}",
            self.failures.len(),
            self.failures.join("\n")
        );
    }
}

/// Past the harness, as it comes.
pub fn print(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

pub fn nothing(_: &mut Bed) -> Result<String, String> {
    Ok(String::new())
}
