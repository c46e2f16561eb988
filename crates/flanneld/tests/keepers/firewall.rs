use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric::object::Family;
use fabric::readiness::{Kind, Part, Report};
use fabric::rules::{Table, Wish, iptables};
use fabric::status::{Firewall, FirewallState};
use flanneld::board::Reporter;
use flanneld::firewall::{Place, Programs, RuleSet, Rules, Wanted};
use flanneld::reconcile::Opponent;
use flanneld::reconcile::keeper::{Keeper, Letters};
use tokio::sync::watch;

use crate::pass;

/// iptables in memory: chains of rules, changed by what `iptables-restore --noflush` takes.
#[derive(Default)]
struct Tables {
    chains: BTreeMap<Place, BTreeMap<String, Vec<String>>>,
    /// Everything fails with this.
    broken: Option<String>,
    /// The programs are not there.
    missing: bool,
    /// What the other variant holds.
    beside: Option<String>,
    /// What they print stops in the middle.
    torn: bool,
    /// Changes of others nobody has heard of yet.
    unheard: BTreeSet<Place>,
    calls: usize,
    /// What was said of the firewall while something was written.
    said: Vec<String>,
    reporter: Reporter,
}

fn report_of(reporter: &Reporter) -> Report {
    let reports = reporter.reports();
    let report = reports.borrow().get(&Part::Firewall).cloned();
    report.unwrap_or_default()
}

impl Tables {
    fn table(&mut self, place: Place) -> &mut BTreeMap<String, Vec<String>> {
        let parents = match place.table {
            Some(Table::Nat) => "POSTROUTING",
            _ => "FORWARD",
        };
        let chains = self.chains.entry(place).or_default();
        chains.entry(parents.to_owned()).or_default();
        chains
    }

    /// Somebody's deed.
    fn act(&mut self, place: Place, deed: impl FnOnce(&mut BTreeMap<String, Vec<String>>)) {
        deed(self.table(place));
        self.unheard.insert(place);
    }

    fn rules(&mut self, place: Place) -> Vec<String> {
        let saved = self.list(place).unwrap();
        saved
            .lines()
            .filter(|line| line.starts_with("-A"))
            .map(ToOwned::to_owned)
            .collect()
    }
}

impl Programs for Tables {
    fn iptables_version(&self, _: Family) -> Result<String, String> {
        Ok("iptables v1.8.9 (nf_tables)".to_owned())
    }

    fn nft_would_take(&self, _: &str) -> bool {
        false
    }

    fn other_variant(&self, place: Place) -> Option<(String, String)> {
        let listing = self.beside.clone().filter(|_| place == NAT)?;
        Some(("iptables-legacy-save".to_owned(), listing))
    }

    fn is_installed(&self, _: Place) -> bool {
        !self.missing
    }

    fn list(&mut self, place: Place) -> Result<String, String> {
        self.calls += 1;
        if self.missing {
            return Err("iptables-save: not found".to_owned());
        }
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        let Some(table) = place.table else {
            return Ok(String::new());
        };
        let chains = self.table(place);
        let names = chains.keys().map(|name| format!(":{name} - [0:0]"));
        let rules = chains
            .iter()
            .flat_map(|(name, rules)| rules.iter().map(move |rule| format!("-A {name} {rule}")));
        let lines: Vec<String> = names.chain(rules).collect();
        if self.torn {
            return Ok(format!("*{}\n{}\n", table.name(), lines[..1].join("\n")));
        }
        Ok(format!("*{}\n{}\nCOMMIT\n", table.name(), lines.join("\n")))
    }

    fn change(&mut self, place: Place, text: &str) -> Result<(), String> {
        self.calls += 1;
        self.said
            .extend(report_of(&self.reporter).texts_of(Kind::Pending));
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        let chains = self.table(place);
        for line in text.lines() {
            let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
            let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
            match verb {
                "-A" => chains.get_mut(chain).ok_or(line)?.push(rule.to_owned()),
                "-D" => {
                    let rules = chains.get_mut(chain).ok_or(line)?;
                    let at = rules.iter().position(|there| there == rule).ok_or(line)?;
                    rules.remove(at);
                }
                "-F" => chains.get_mut(chain).ok_or(line)?.clear(),
                "-X" => {
                    chains.remove(chain).ok_or(line)?;
                }
                _ if line.starts_with(':') => {
                    chains.insert(verb.trim_start_matches(':').to_owned(), Vec::new());
                }
                _ if line.starts_with('*') || line == "COMMIT" => {}
                other => return Err(format!("unknown line {other}")),
            }
        }
        // What we write is heard like anybody's deed.
        self.unheard.insert(place);
        Ok(())
    }

    fn listen(&mut self, _: &[Place]) {}

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// So that the test's clock comes round to listening.
    fn has_silent(&self) -> bool {
        true
    }

    fn hear(&mut self) -> Vec<(Place, Option<Opponent>)> {
        let heard = std::mem::take(&mut self.unheard);
        heard
            .into_iter()
            .map(|place| (place, Some(Opponent::Process(4242, "other".to_owned()))))
            .collect()
    }
}

struct Rig {
    keeper: Keeper<RuleSet<Tables>>,
    letters: Arc<Letters<Rules>>,
    reporter: Reporter,
    state: watch::Receiver<Firewall>,
    now: Instant,
}

const WANTED: Wanted = Wanted {
    masquerade: true,
    forward: true,
    fully_random: true,
    resync: Duration::from_millis(200),
};
const NAT: Place = Place {
    family: Family::V4,
    table: Some(Table::Nat),
};

fn rules() -> Rules {
    Rules {
        nftables: false,
        halves: vec![("10.5.0.0/16".parse().unwrap(), "10.5.1.0/24".parse().unwrap())],
        former: Vec::new(),
    }
}

/// What has to be there, asked of the pure rules.
fn wanted(table: Table) -> Vec<String> {
    let rules = rules();
    let (network, subnet) = rules.halves[0];
    iptables::lines(table, &Wish::new(network, subnet, true, true, true, &[]))
}

impl Rig {
    fn new(wanted: Wanted) -> Rig {
        let letters = Letters::new().unwrap();
        let reporter = Reporter::default();
        let (sender, state) = watch::channel(wanted.at_first());
        let now = Instant::now();
        let tables = Tables {
            reporter: reporter.clone(),
            ..Tables::default()
        };
        let set = RuleSet::new(tables, wanted, sender, reporter.clone());
        Rig {
            keeper: Keeper::new(set, Arc::clone(&letters), wanted.resync, now),
            letters,
            reporter,
            state,
            now,
        }
    }

    fn running() -> Rig {
        let mut rig = Rig::new(WANTED);
        rig.letters.set(rules());
        rig.pass(1000);
        rig
    }

    fn pass(&mut self, millis: u64) -> usize {
        pass(&mut self.keeper, &mut self.now, Duration::from_millis(millis))
    }

    fn tables(&mut self) -> &mut Tables {
        self.keeper.target().programs()
    }

    fn report(&self) -> Report {
        report_of(&self.reporter)
    }

    fn is_right(&mut self) -> bool {
        Table::BOTH.into_iter().all(|table| {
            let place = Place {
                table: Some(table),
                ..NAT
            };
            let mut there = self.tables().rules(place);
            there.retain(|line| line.contains("flanneld"));
            let mut wanted = wanted(table);
            there.sort();
            wanted.sort();
            there == wanted
        })
    }

    fn repairs(&self) -> u64 {
        self.reporter.counters().repairs().values().sum()
    }
}

#[test]
fn firewall_when_ordered_then_the_rules_are_in_place_and_that_is_said() {
    let mut rig = Rig::new(WANTED);
    rig.pass(1000);
    assert_eq!(rig.tables().calls, 0, "nothing is asked before there is an order");
    rig.letters.set(rules());
    rig.pass(1000);
    assert!(rig.is_right());
    assert!(rig.report().is_ready() && rig.state.borrow().state == FirewallState::Ok);
    assert_eq!((rig.repairs(), rig.state.borrow().restores), (0, 0));
}

#[test]
fn firewall_when_no_rules_are_asked_for_and_no_programs_installed_then_there_is_nothing_to_do() {
    let off = Wanted {
        masquerade: false,
        forward: false,
        ..WANTED
    };
    let mut rig = Rig::new(off);
    rig.tables().missing = true;
    rig.letters.set(rules());
    rig.pass(60_000);
    assert!(rig.report().findings().is_empty(), "{:?}", rig.report());
    assert_eq!(rig.state.borrow().state, FirewallState::Off);
    // With rules to put in place it is said.
    let mut rig = Rig::new(WANTED);
    rig.tables().missing = true;
    rig.letters.set(rules());
    rig.pass(60_000);
    let reasons = rig.report().reasons();
    assert!(
        reasons.iter().any(|reason| reason.contains("not found")),
        "{reasons:?}"
    );
    // And where they are installed what an earlier run left is removed.
    let mut rig = Rig::running();
    let left = std::mem::take(&mut rig.tables().chains);
    let mut rig = Rig::new(off);
    rig.tables().chains = left;
    rig.letters.set(rules());
    rig.pass(1000);
    assert_eq!(rig.tables().rules(NAT), Vec::<String>::new());
}

#[test]
fn firewall_when_a_listing_stops_in_the_middle_then_nothing_is_added_and_that_is_said() {
    let mut rig = Rig::running();
    rig.tables().torn = true;
    rig.tables().act(NAT, |_| {});
    rig.pass(120_000);
    let reasons = rig.report().reasons();
    assert!(
        reasons.iter().any(|reason| reason.contains("has no end")),
        "{reasons:?}"
    );
    rig.tables().torn = false;
    rig.pass(1000);
    assert!(rig.is_right() && rig.report().is_ready(), "{:?}", rig.report());
    assert_eq!(rig.repairs(), 0);
}

#[test]
fn firewall_when_an_earlier_flannel_left_rules_in_the_other_variant_then_they_are_named_with_the_cure() {
    let mut rig = Rig::running();
    let left = rig.tables().list(NAT).unwrap();
    for (beside, named) in [(Some(left), 1), (Some("*nat\nCOMMIT\n".to_owned()), 0), (None, 0)] {
        rig.tables().beside = beside;
        rig.letters.set(rules());
        rig.pass(1000);
        let said = rig.report().texts_of(Kind::Remark);
        assert_eq!(said.len(), named, "{said:?}");
        assert!(
            said.iter()
                .all(|text| text.contains("iptables-legacy-restore removes them")),
            "{said:?}"
        );
        assert!(rig.report().is_ready());
    }
}

#[test]
fn firewall_when_paused_then_it_is_left_alone() {
    let mut rig = Rig::running();
    rig.letters.pause(true);
    rig.pass(100);
    rig.tables().act(NAT, BTreeMap::clear);
    rig.pass(10_000);
    assert!(!rig.is_right());
    rig.letters.pause(false);
    rig.pass(1000);
    assert!(rig.is_right());
}

#[test]
fn firewall_when_a_program_has_begun_then_it_is_named_for_it_may_never_return() {
    let mut rig = Rig::running();
    rig.tables().said.clear();
    rig.tables().act(NAT, BTreeMap::clear);
    rig.pass(1000);
    let text = "firewall rules are being put in place by iptables-restore";
    assert_eq!(rig.tables().said, [text]);
    assert!(rig.report().is_ready(), "and it is over with it");
}

#[test]
fn firewall_when_flushed_then_it_is_back_within_a_second_however_often_and_counted() {
    let mut rig = Rig::running();
    let mut longest = 0;
    for _ in 0..60 {
        rig.tables().act(NAT, BTreeMap::clear);
        let mut waited = 0;
        while !rig.is_right() {
            rig.pass(100);
            waited += 100;
        }
        longest = longest.max(waited);
    }
    assert!(longest <= 1000, "{longest} ms");
    assert_eq!(rig.repairs(), 60);
    let fights = rig.report().texts_of(Kind::Remark);
    assert!(fights[0].contains("pid 4242 (other)"), "{fights:?}");
}

#[test]
fn firewall_when_a_rule_is_put_among_ours_again_and_again_then_it_yields_and_is_not_ready_meanwhile() {
    let mut rig = Rig::running();
    let (mut repaired, mut told) = (0, 0);
    for _ in 0..600 {
        if rig.is_right() {
            let extra = "-s 10.5.0.0/16 -m comment --comment \"flanneld masq\" -j ACCEPT";
            rig.tables().act(NAT, |chains| {
                chains
                    .get_mut("FLANNEL-POSTRTG")
                    .unwrap()
                    .insert(0, extra.to_owned());
            });
            repaired += 1;
        } else {
            let report = rig.report();
            told += usize::from(!report.is_ready() && report.count(Kind::Fight) == 1);
        }
        rig.pass(100);
    }
    assert!((4..20).contains(&repaired), "{repaired}");
    assert!(told > 300, "{told}");
    rig.pass(31_000);
    assert!(rig.is_right() && rig.report().is_ready());
}

#[test]
fn firewall_when_the_programs_fail_for_minutes_then_that_is_said_and_cured_soon_after() {
    let mut rig = Rig::running();
    rig.tables().act(NAT, BTreeMap::clear);
    rig.tables().broken = Some("iptables-save: Permission denied".to_owned());
    rig.pass(300_000);
    let reasons = rig.report().reasons();
    assert!(
        reasons.iter().any(|reason| reason.contains("Permission denied")),
        "{reasons:?}"
    );
    assert_eq!(rig.state.borrow().state, FirewallState::Failed);
    rig.tables().broken = None;
    rig.pass(1000);
    assert!(rig.is_right() && rig.report().is_ready());
    assert_eq!(rig.state.borrow().state, FirewallState::Ok);
}

#[test]
fn firewall_when_nothing_happens_then_nothing_is_run_between_two_audits() {
    let mut rig = Rig::running();
    rig.pass(120_000);
    let before = rig.tables().calls;
    rig.pass(50_000);
    let calls = rig.tables().calls - before;
    assert!(calls <= 4, "{calls} programs in 50 quiet seconds");
}

#[test]
fn firewall_when_paused_then_nothing_is_changed_until_it_is_allowed() {
    let mut rig = Rig::running();
    rig.letters.pause(true);
    rig.pass(100);
    rig.tables().act(NAT, BTreeMap::clear);
    rig.pass(100_000);
    assert!(!rig.is_right());
    rig.letters.pause(false);
    rig.pass(500);
    assert!(rig.is_right());
}

#[test]
fn firewall_when_switched_off_then_what_was_there_goes_and_the_host_is_ready() {
    let mut rig = Rig::running();
    let tables = std::mem::take(rig.tables());
    let off = Wanted {
        masquerade: false,
        forward: false,
        ..WANTED
    };
    let mut rig = Rig::new(off);
    *rig.tables() = tables;
    rig.letters.set(rules());
    rig.pass(1000);
    assert!(rig.tables().rules(NAT).is_empty());
    assert!(rig.report().is_ready() && rig.state.borrow().state == FirewallState::Off);
}
