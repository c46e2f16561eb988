//! The subnet file as a target: written when the first state stands, put back when it changes.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fabric::readiness::{Finding, Kind, Part};
use fabric::subnet_env::SubnetEnv;
use tracing::info;

use super::folder::{Disk, Folder};
use crate::board::Reporter;
use crate::reconcile::keeper::{Account, Kept};
use crate::reconcile::patience::Damage;
use crate::reconcile::{Comparison, Fate, Look, Opponent, Step, Target};

/// Without a watch there are looks instead; and a disk that was full may have room again.
pub const LOOK: Duration = Duration::from_secs(1);

/// What shall stand where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The file.
    pub path: PathBuf,
    /// Our lines in it.
    pub wanted: SubnetEnv,
}

/// The one place there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place;

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("subnet file")
    }
}

/// Putting it right.
#[derive(Debug)]
pub struct Rewrite {
    order: Order,
    /// Nothing else stays in it: another program may have written over all of it before we started.
    whole: bool,
}

impl fmt::Display for Rewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "subnet file {}", self.order.path.display())
    }
}

impl Step for Rewrite {
    type Key = Place;

    fn key(&self) -> Place {
        Place
    }

    /// Whatever somebody wrote into it: what counts is that our lines are not there, and docker and the CNI plugin read nothing.
    fn damage(&self) -> Damage {
        Damage::Missing
    }
}

/// One subnet file.
#[derive(Debug)]
pub struct SubnetFile<F = Disk> {
    reporter: Reporter,
    folder: F,
    order: Option<Order>,
    /// It was written since we started: foreign lines in it stay from then on.
    is_written: bool,
}

impl SubnetFile {
    /// Nothing to keep yet, on the system's disks.
    pub fn new(reporter: Reporter) -> SubnetFile {
        SubnetFile::within(Disk::default(), reporter)
    }
}

impl<F: Folder> SubnetFile<F> {
    /// Nothing to keep yet, in a folder.
    pub fn within(folder: F, reporter: Reporter) -> SubnetFile<F> {
        SubnetFile {
            reporter,
            folder,
            order: None,
            is_written: false,
        }
    }
}

impl<F: Folder> Target for SubnetFile<F> {
    type Key = Place;
    type Step = Rewrite;

    fn compare(&mut self, _: Look<'_, Place>) -> Comparison<Rewrite> {
        let mut comparison = Comparison::default();
        let Some(order) = &self.order else {
            return comparison;
        };
        // Before the look, so that nothing happens unheard in between.
        self.folder.follow(&order.path);
        if !self.is_written || !self.folder.is_right(&order.path, &order.wanted) {
            comparison.steps.push(Rewrite {
                order: order.clone(),
                whole: !self.is_written,
            });
        }
        comparison
    }

    fn apply(&mut self, steps: Vec<Rewrite>, _: Instant) -> Vec<(Rewrite, Fate)> {
        let mut fates = Vec::new();
        for step in steps {
            let path = step.order.path.display();
            // Said before it is tried: a disk may hang.
            let text = format!("subnet file {path}: it is being written");
            let pending = Finding::new(Part::SubnetFile, Kind::Pending, Place.to_string(), text);
            self.reporter
                .publish(Part::SubnetFile, [pending].into_iter().collect());
            let result = if step.whole {
                self.folder.write(&step.order.path, &step.order.wanted)
            } else {
                self.folder.repair(&step.order.path, &step.order.wanted)
            };
            // Where the directory was made only now.
            if !self.folder.is_watched() {
                self.folder.follow(&step.order.path);
            }
            let fate = match result {
                Ok(()) => {
                    if !std::mem::replace(&mut self.is_written, true) {
                        info!("subnet file {path}: written");
                    }
                    Fate::Done
                }
                Err(failure) => Fate::Refused {
                    kind: Kind::Failure,
                    text: failure.to_string(),
                },
            };
            fates.push((step, fate));
        }
        fates
    }
}

impl<F: Folder> Kept for SubnetFile<F> {
    type Order = Order;

    fn obey(&mut self, order: Order) {
        let same_file = self
            .order
            .as_ref()
            .is_some_and(|before| before.path == order.path);
        self.is_written &= same_file;
        self.order = Some(order);
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.folder.fds()
    }

    fn listen_every(&self) -> Option<Duration> {
        (!self.folder.is_watched()).then_some(LOOK)
    }

    fn hear(&mut self) -> Vec<(Place, Option<Opponent>)> {
        let touched = match self.folder.is_watched() {
            true => self.folder.take_touched(),
            false => self.order.is_some(),
        };
        touched.then_some((Place, None)).into_iter().collect()
    }

    fn report(&mut self, account: &Account<'_, Self>) {
        for _ in account.round.iter().flat_map(|round| &round.repaired) {
            self.reporter.repaired_kind("subnet_file");
        }
        self.reporter
            .publish(Part::SubnetFile, account.reconciler.report(Part::SubnetFile));
    }
}
