//! The kernel parameters of our devices that safety rests on, as a target.
//!
//! Nobody tells of their changes, so they are looked at every second. Where one cannot be set and is wrong, that is a finding:
//! in a container `/proc/sys` is often read-only.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use fabric::object::LinkName;
use fabric::parameter::Parameter;
use fabric::readiness::{Kind, Part};
use kernel::sysctl;

use crate::board::Reporter;
use crate::reconcile::keeper::{Account, Kept};
use crate::reconcile::patience::Damage;
use crate::reconcile::{Comparison, Fate, Look, Opponent, Step, Target};

/// How often they are looked at, and what is refused is tried again.
pub const LOOK: Duration = Duration::from_secs(1);

/// The parameters of a network namespace.
pub trait Sysctl {
    /// The value at a path below `/proc/sys`; `None` where there is none.
    ///
    /// # Errors
    /// The system's.
    fn get(&self, path: &str) -> io::Result<Option<String>>;

    /// Sets the value at a path.
    ///
    /// # Errors
    /// The system's.
    fn set(&self, path: &str, value: &str) -> io::Result<()>;
}

/// Those of the calling thread's.
#[derive(Debug, Default)]
pub struct Proc;

impl Sysctl for Proc {
    fn get(&self, path: &str) -> io::Result<Option<String>> {
        sysctl::get(path)
    }

    fn set(&self, path: &str, value: &str) -> io::Result<()> {
        sysctl::set(path, value).map(|_| ())
    }
}

/// Setting one parameter.
#[derive(Debug)]
pub struct Setting {
    parameter: Parameter,
    was: String,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wanted = self.parameter.wanted();
        write!(f, "{} from {:?} to {wanted:?}", self.parameter, self.was)
    }
}

impl Step for Setting {
    type Key = Parameter;

    fn key(&self) -> Parameter {
        self.parameter
    }

    /// It is put back at once, however often somebody sets it: what it opens is open for as long.
    fn damage(&self) -> Damage {
        Damage::Missing
    }
}

/// The parameters of our devices.
#[derive(Debug)]
pub struct Parameters<S> {
    sysctl: S,
    reporter: Reporter,
    wanted: Vec<Parameter>,
    /// What they were when they were last looked at, where that is not as wanted.
    wrong: BTreeMap<Parameter, String>,
    /// These could not be set and are wrong to no effect.
    harmless: BTreeSet<Parameter>,
}

impl<S: Sysctl> Parameters<S> {
    /// None to keep yet.
    pub fn new(sysctl: S, reporter: Reporter) -> Parameters<S> {
        Parameters {
            sysctl,
            reporter,
            wanted: Vec::new(),
            wrong: BTreeMap::new(),
            harmless: BTreeSet::new(),
        }
    }

    /// The parameters of the namespace.
    pub fn sysctl(&mut self) -> &mut S {
        &mut self.sysctl
    }

    /// Reads one; what it is where it is wrong.
    fn look(&mut self, parameter: Parameter) -> Result<Option<String>, String> {
        let read = self.sysctl.get(&parameter.path());
        // Without the device, or without IPv6, there is nothing to set.
        let value = read.map_err(|failure| format!("it cannot be read: {failure}"))?;
        let wrong = value.filter(|value| value != parameter.wanted());
        match &wrong {
            Some(value) => self.wrong.insert(parameter, value.clone()),
            None => self.wrong.remove(&parameter),
        };
        // Others' settings decide about that, so it is asked each time.
        let is_settled = self.harmless.contains(&parameter) && self.is_harmless(parameter);
        if wrong.is_none() || !is_settled {
            self.harmless.remove(&parameter);
        }
        Ok(wrong.filter(|_| !is_settled))
    }

    fn is_harmless(&self, parameter: Parameter) -> bool {
        parameter.is_harmless(|path| self.sysctl.get(path).ok().flatten())
    }
}

impl<S: Sysctl> Target for Parameters<S> {
    type Key = Parameter;
    type Step = Setting;

    fn compare(&mut self, look: Look<'_, Parameter>) -> Comparison<Setting> {
        let mut comparison = Comparison::default();
        for parameter in self.wanted.clone() {
            if matches!(look, Look::Keys(keys) if !keys.contains(&parameter)) {
                continue;
            }
            match self.look(parameter) {
                Ok(wrong) => comparison
                    .steps
                    .extend(wrong.map(|was| Setting { parameter, was })),
                Err(failure) => comparison.unreadable.push((parameter, failure)),
            }
        }
        comparison
    }

    fn apply(&mut self, steps: Vec<Setting>, _: Instant) -> Vec<(Setting, Fate)> {
        let mut fates = Vec::with_capacity(steps.len());
        for step in steps {
            let parameter = step.parameter;
            let fate = match self.sysctl.set(&parameter.path(), parameter.wanted()) {
                Ok(()) => Fate::Done,
                Err(_) if self.is_harmless(parameter) => {
                    self.harmless.insert(parameter);
                    Fate::Withheld
                }
                // COMPAT: said, and no reason to be unready: where flannel runs without the right to set it (a container with its
                // own view of /proc/sys, as in flannel's manifest), the network is as good as with Go flannel.
                Err(failure) => Fate::Refused {
                    kind: Kind::Remark,
                    text: format!(
                        "it is {:?}, has to be {:?} and cannot be set ({failure}): {}",
                        step.was,
                        parameter.wanted(),
                        parameter.danger()
                    ),
                },
            };
            fates.push((step, fate));
        }
        fates
    }

    fn longest_retry(&self, _: &Parameter) -> Option<Duration> {
        Some(LOOK)
    }
}

impl<S: Sysctl> Kept for Parameters<S> {
    type Order = Vec<LinkName>;

    fn obey(&mut self, links: Vec<LinkName>) {
        self.wanted = Parameter::of(&links);
        self.wrong.clear();
        self.harmless.clear();
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn listen_every(&self) -> Option<Duration> {
        (!self.wanted.is_empty()).then_some(LOOK)
    }

    /// What is another value than at the last look.
    fn hear(&mut self) -> Vec<(Parameter, Option<Opponent>)> {
        let is_news = |parameter: &Parameter| {
            let value = self.sysctl.get(&parameter.path()).ok().flatten();
            let wrong = value.filter(|value| value != parameter.wanted());
            let turned = self.harmless.contains(parameter) && !self.is_harmless(*parameter);
            turned || wrong.as_ref() != self.wrong.get(parameter)
        };
        let news: Vec<Parameter> = self.wanted.iter().copied().filter(is_news).collect();
        news.into_iter().map(|parameter| (parameter, None)).collect()
    }

    fn report(&mut self, account: &Account<'_, Self>) {
        for parameter in account.round.iter().flat_map(|round| &round.repaired) {
            self.wrong.remove(parameter);
            self.reporter.repaired_kind("sysctl");
        }
        for done in account.round.iter().flat_map(|round| &round.done) {
            self.wrong.remove(&done.step.parameter);
        }
        self.reporter
            .publish(Part::Sysctl, account.reconciler.report(Part::Sysctl));
    }
}
