//! The firewall rules, kept by a thread of their own: waiting for the xtables lock delays no route.
//!
//! The live state is read, merged with what is wanted by `fabric::rules`, and written back in one transaction where it
//! differs. nftables, and iptables on top of it, tell of changes; iptables-legacy does not and is looked at every period.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fabric::object::Family;
use fabric::rules::{Table, Wish, iptables, nft};
use fabric::status::{Firewall, FirewallState};
use ipnet::IpNet;
use kernel::exec::ExecError;
use kernel::firewall::{self as programs, legacy, monitor};
use kernel::poll::Waker;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use crate::engine::report::Reporter;
use crate::flags::Options;

/// A full comparison at least this often, whatever the notifications said.
const AUDIT: Duration = Duration::from_secs(60);
/// Who changes a rule often changes more: one look for all that happens within this time.
const SETTLE: Duration = Duration::from_millis(30);
/// Damage that somebody does more often than this within [`WINDOW`] is mended ever more slowly.
const REPAIRS: usize = 3;
const WINDOW: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(30);
/// The first pause in a fight; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Chains of the shared tables whose changes concern us.
const NAT_CHAINS: &[&str] = &["FLANNEL-POSTRTG", "POSTROUTING"];
const FILTER_CHAINS: &[&str] = &["FLANNEL-FWD", "FORWARD"];

/// What the rules are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// nftables instead of iptables.
    pub nftables: bool,
    /// Network and own subnet, per family in use.
    pub halves: Vec<(IpNet, IpNet)>,
    /// Networks of earlier configs, whose rules are to go.
    pub former: Vec<IpNet>,
}

/// What the flags say.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    masquerade: bool,
    forward: bool,
    fully_random: bool,
    resync: Duration,
}

/// The thread's letter box.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    rules: Mutex<Option<Rules>>,
    stop: AtomicBool,
    waker: Waker,
}

impl Handle {
    /// Gives the thread what to keep from now on.
    pub fn set(&self, rules: Rules) {
        *self.0.rules.lock().unwrap_or_else(PoisonError::into_inner) = Some(rules);
        self.0.waker.wake();
    }

    /// Ends the thread. What is in the kernel stays there.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::Relaxed);
        self.0.waker.wake();
    }
}

/// Starts the thread. It does nothing until it is given rules.
pub fn start(
    options: &Options,
    state: watch::Sender<Firewall>,
    reporter: Reporter,
) -> std::io::Result<Handle> {
    let handle = Handle(Arc::new(Shared {
        rules: Mutex::new(None),
        stop: AtomicBool::new(false),
        waker: Waker::new()?,
    }));
    let wanted = Wanted {
        masquerade: options.masquerade,
        forward: options.forward_rules,
        fully_random: options.fully_random,
        resync: options.firewall_resync,
    };
    let keeper = Keeper {
        shared: Arc::clone(&handle.0),
        wanted,
        state,
        reporter,
        ground: None,
        fights: BTreeMap::new(),
    };
    std::thread::Builder::new()
        .name("firewall".to_owned())
        .spawn(move || keeper.run())?;
    Ok(handle)
}

/// What stays the same as long as the rules do.
struct Ground {
    wishes: Vec<Wish>,
    nftables: bool,
    /// nft takes comments on tables and chains, per family.
    comments: [bool; 2],
    monitor: Option<monitor::Monitor>,
    /// Families whose iptables tells nobody of changes.
    legacy: Vec<legacy::Probe>,
}

/// The clock of one kind of damage that somebody else does again and again.
#[derive(Debug, Default)]
struct Fight {
    repairs: Vec<Instant>,
    delay: Duration,
    until: Option<Instant>,
}

impl Fight {
    fn repaired(&mut self, now: Instant) {
        self.repairs.retain(|at| now.duration_since(*at) <= WINDOW);
        self.repairs.push(now);
        self.until = None;
        if self.repairs.len() > REPAIRS {
            self.delay = (self.delay * 2).clamp(FIRST_PAUSE, LONGEST);
            self.until = Some(now + self.delay);
        } else {
            self.delay = Duration::ZERO;
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.repairs
            .last()
            .is_none_or(|at| now.duration_since(*at) > WINDOW)
    }
}

/// One transaction that brings a family's live state to what is wished.
#[derive(Debug, Hash)]
struct Mend {
    nftables: bool,
    v6: bool,
    text: String,
}

impl Mend {
    fn apply(&self) -> Result<(), ExecError> {
        let family = if self.v6 { Family::V6 } else { Family::V4 };
        if self.nftables {
            programs::nft_apply(&self.text)
        } else {
            programs::iptables_restore(family, &self.text)
        }
    }

    /// The same damage needs the same mend.
    fn damage(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

struct Keeper {
    shared: Arc<Shared>,
    wanted: Wanted,
    state: watch::Sender<Firewall>,
    reporter: Reporter,
    ground: Option<Ground>,
    fights: BTreeMap<u64, Fight>,
}

impl Keeper {
    fn run(mut self) {
        let mut audit_at = Instant::now();
        let (mut look_at, mut by) = (None, None);
        let mut first = true;
        loop {
            self.wait(audit_at.min(look_at.unwrap_or(audit_at)));
            self.shared.waker.clear();
            if self.shared.stop.load(Ordering::Relaxed) {
                return;
            }
            let given = self
                .shared
                .rules
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if let Some(rules) = given {
                self.prepare(&rules);
                (audit_at, first) = (Instant::now(), true);
            }
            let now = Instant::now();
            let Some(ground) = &mut self.ground else {
                audit_at = now + AUDIT;
                continue;
            };
            let changes = ground
                .monitor
                .as_mut()
                .map(monitor::Monitor::drain)
                .unwrap_or_default();
            by = changes.by.or(by);
            if changes.touched {
                look_at.get_or_insert(now + SETTLE);
            }
            if ground.legacy.iter_mut().any(legacy::Probe::changed) {
                look_at = Some(now);
            }
            if now < audit_at && look_at.is_none_or(|at| now < at) {
                continue;
            }
            let (took, again) = self.keep(first, by.take());
            look_at = again;
            first = first && !took;
            // A failure is tried again after a period, success is checked again after a minute.
            audit_at = Instant::now() + if took { AUDIT } else { self.wanted.resync };
        }
    }

    fn wait(&self, until: Instant) {
        let mut until = until;
        let mut fds: Vec<BorrowedFd<'_>> = vec![self.shared.waker.fd()];
        if let Some(ground) = &self.ground {
            fds.extend(ground.monitor.as_ref().map(monitor::Monitor::fd));
            if !ground.legacy.is_empty() {
                until = until.min(Instant::now() + self.wanted.resync);
            }
        }
        if let Err(failure) = kernel::poll::wait(&fds, until.saturating_duration_since(Instant::now())) {
            error!("poll: {failure}");
            std::thread::sleep(self.wanted.resync);
        }
    }

    /// Works out what is wanted, and how changes to it are heard of.
    fn prepare(&mut self, rules: &Rules) {
        let mut wishes = Vec::new();
        for family in Family::BOTH {
            let half = rules
                .halves
                .iter()
                .find(|(network, _)| Family::of_net(*network) == family);
            wishes.push(match half {
                Some((network, subnet)) => Wish::new(
                    *network,
                    *subnet,
                    self.wanted.masquerade,
                    self.wanted.forward,
                    self.wanted.fully_random && knows_fully_random(rules.nftables, family),
                    &rules.former,
                ),
                None => Wish::nothing(family, &rules.former),
            });
        }
        let mut places = Vec::new();
        let mut probes = Vec::new();
        for family in Family::BOTH {
            if rules.nftables {
                let (_, table) = nft::table(family).split_once(' ').unwrap_or_default();
                places.push(monitor::Place {
                    family,
                    table,
                    chains: &[],
                });
            } else {
                places.push(monitor::Place {
                    family,
                    table: Table::Nat.name(),
                    chains: NAT_CHAINS,
                });
                places.push(monitor::Place {
                    family,
                    table: Table::Filter.name(),
                    chains: FILTER_CHAINS,
                });
                let version = programs::iptables_version(family).unwrap_or_default();
                if !version.is_empty() && !programs::is_nft_variant(&version) {
                    probes.extend(Table::BOTH.map(|table| legacy::Probe::new(family, table.name())));
                }
            }
        }
        let monitor = monitor::Monitor::open(places)
            .inspect_err(|failure| {
                warn!("changes of firewall rules are not heard of, only looked for: {failure}")
            })
            .ok();
        let comments = [Family::V4, Family::V6]
            .map(|family| rules.nftables && programs::nft_would_take(&nft::comment_probe(family)));
        self.ground = Some(Ground {
            wishes,
            nftables: rules.nftables,
            comments,
            monitor,
            legacy: probes,
        });
        self.fights.clear();
        self.clean_up(rules);
    }

    /// Removes what an earlier run left with the firewall that is not in use any more. It may not even be installed.
    fn clean_up(&self, rules: &Rules) {
        let networks: Vec<IpNet> = rules
            .halves
            .iter()
            .map(|(network, _)| *network)
            .chain(rules.former.iter().copied())
            .collect();
        for family in Family::BOTH {
            let wish = Wish::nothing(family, &networks);
            let result = mends(&wish, !rules.nftables, false).and_then(|mends| {
                mends
                    .iter()
                    .try_for_each(Mend::apply)
                    .map_err(|failure| failure.to_string())?;
                Ok(!mends.is_empty())
            });
            match result {
                Ok(true) => info!("removed {family} rules of the firewall that is not in use any more"),
                Ok(false) => {}
                Err(failure) => debug!("looking for rules of the firewall that is not in use: {failure}"),
            }
        }
    }

    /// Compares and, where needed, writes. Says whether all is as wanted now, and when to look again because of a fight.
    fn keep(&mut self, first: bool, by: Option<(u32, String)>) -> (bool, Option<Instant>) {
        let Some(ground) = &mut self.ground else {
            return (true, None);
        };
        let now = Instant::now();
        self.fights.retain(|_, fight| !fight.is_over(now));
        let (mut wrote, mut failures, mut again) = (false, Vec::new(), None);
        for wish in &ground.wishes {
            // Nothing wanted and nothing to remove: the programs of a family that is off need not even be there.
            if wish.nat.is_empty() && wish.filter.is_empty() && wish.networks.is_empty() {
                continue;
            }
            let comments = ground.comments[usize::from(wish.family == Family::V6)];
            let mended = mends(wish, ground.nftables, comments).and_then(|mends| {
                for mend in mends {
                    let fight = self.fights.entry(mend.damage()).or_default();
                    if let Some(until) = fight.until.filter(|until| *until > now) {
                        again = Some(again.map_or(until, |at: Instant| at.min(until)));
                        continue;
                    }
                    mend.apply().map_err(|failure| failure.to_string())?;
                    wrote = true;
                    fight.repaired(now);
                }
                Ok(())
            });
            if let Err(failure) = mended {
                failures.push(format!("{}: {failure}", wish.family));
            }
        }
        if wrote {
            // What was just written comes back as news and is looked at once more: somebody may have changed something between our
            // reading and our writing, and that is not to be told apart from the echo.
            if first {
                self.fights.clear();
                info!("firewall rules are in place");
            } else {
                let by = by.map_or_else(String::new, |(pid, name)| {
                    format!(" (changed by pid {pid} ({name}))")
                });
                info!("repaired: firewall rules{by}");
                self.reporter.repaired_kind("firewall");
            }
        }
        let fought = again.map(|_| {
            "somebody changes the rules again and again: they are put back ever more slowly".to_owned()
        });
        let error = if failures.is_empty() {
            fought
        } else {
            Some(failures.join("; "))
        };
        let off = !self.wanted.masquerade && !self.wanted.forward;
        let kind = if ground.nftables { "nftables" } else { "iptables" };
        self.state.send_if_modified(|state| {
            let before = state.clone();
            if let Some(error) = error.as_ref().filter(|_| state.error != error) {
                error!("firewall rules: {error}");
            }
            state.kind = if off { String::new() } else { kind.to_owned() };
            state.state = match (&error, off) {
                (Some(_), _) => FirewallState::Failed,
                (None, true) => FirewallState::Off,
                (None, false) => FirewallState::Ok,
            };
            state.error = error;
            state.restores += u64::from(wrote);
            *state != before
        });
        (failures.is_empty(), again)
    }
}

fn knows_fully_random(nftables: bool, family: Family) -> bool {
    if nftables {
        programs::nft_would_take(&nft::fully_random_probe(family))
    } else {
        programs::iptables_version(family).is_ok_and(|version| iptables::knows_fully_random(&version))
    }
}

/// What has to be written for a family to be as wished.
fn mends(wish: &Wish, nftables: bool, comments: bool) -> Result<Vec<Mend>, String> {
    let v6 = wish.family == Family::V6;
    let mend = |text| Mend { nftables, v6, text };
    if nftables {
        let live = programs::nft_list(nft::table(wish.family)).map_err(|failure| failure.to_string())?;
        return Ok(nft::merge(&live, wish, comments).map(mend).into_iter().collect());
    }
    let mut mends = Vec::new();
    for table in Table::BOTH {
        let live = programs::iptables_save(wish.family, table).map_err(|failure| failure.to_string())?;
        let payload = iptables::merge(table, &live, wish).map_err(|failure| failure.to_string())?;
        mends.extend(payload.map(mend));
    }
    Ok(mends)
}
