//! The firewall rules as a target, kept on a thread of their own: waiting for the xtables lock delays no route.
//!
//! The live state is read, merged with what is wanted by `fabric::rules`, and written back in one transaction where it
//! differs. nftables, and iptables on top of it, tell of changes; iptables-legacy does not and is looked at every period.

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use fabric::object::Family;
use fabric::readiness::{Finding, Kind, Part};
use fabric::rules::{Table, Wish, iptables, nft};
use fabric::status::{Firewall, FirewallState};
use ipnet::IpNet;
use tokio::sync::watch;
use tracing::{debug, info};

use crate::board::Reporter;
use crate::flags::Options;
use crate::reconcile::keeper::{Account, Kept};
use crate::reconcile::patience::Damage;
use crate::reconcile::{Comparison, Fate, Look, Opponent, Step, Target};

pub use self::programs::{Installed, Programs};

mod programs;

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
pub struct Wanted {
    /// Masquerade what leaves the network.
    pub masquerade: bool,
    /// Accept what is forwarded to and from the network.
    pub forward: bool,
    /// Take ports at random where the host can.
    pub fully_random: bool,
    /// How often rules are looked at whose changes nobody tells of, and the longest time until a refusal is tried again.
    pub resync: Duration,
}

impl Wanted {
    /// As the flags say.
    pub fn of(options: &Options) -> Wanted {
        Wanted {
            masquerade: options.masquerade,
            forward: options.forward_rules,
            fully_random: options.fully_random,
            resync: options.firewall_resync,
        }
    }

    /// How it stands before anything was done.
    pub fn at_first(&self) -> Firewall {
        Firewall {
            state: if self.is_off() {
                FirewallState::Off
            } else {
                FirewallState::Pending
            },
            ..Firewall::default()
        }
    }

    fn is_off(&self) -> bool {
        !self.masquerade && !self.forward
    }
}

/// One table: of iptables, or flannel's own in nftables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its family.
    pub family: Family,
    /// Which of iptables' tables; `None` for nftables.
    pub table: Option<Table>,
}

impl Place {
    fn all(nftables: bool) -> Vec<Place> {
        let tables = match nftables {
            true => vec![None],
            false => Table::BOTH.map(Some).to_vec(),
        };
        let of = |family| {
            tables.iter().map(move |table| Place {
                family,
                table: *table,
            })
        };
        Family::BOTH.into_iter().flat_map(of).collect()
    }

    /// What writes it.
    fn program(&self) -> &'static str {
        match (self.table, self.family) {
            (Some(_), Family::V4) => "iptables-restore",
            (Some(_), Family::V6) => "ip6tables-restore",
            (None, _) => "nft",
        }
    }
}

impl Place {
    /// What reads it.
    fn lister(&self) -> &'static str {
        match (self.table, self.family) {
            (Some(_), Family::V4) => "iptables-save",
            (Some(_), Family::V6) => "ip6tables-save",
            (None, _) => "nft",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.table {
            Some(table) => write!(f, "{} firewall rules (iptables {})", self.family, table.name()),
            None => write!(f, "{} firewall rules (nftables)", self.family),
        }
    }
}

/// One transaction that brings a place to what is wished.
#[derive(Debug)]
pub struct Mend {
    place: Place,
    text: String,
    damage: Damage,
}

impl Step for Mend {
    type Key = Place;

    fn key(&self) -> Place {
        self.place
    }

    fn damage(&self) -> Damage {
        self.damage
    }
}

impl fmt::Display for Mend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(f)
    }
}

/// What stays the same as long as the order does.
#[derive(Debug)]
struct Ground {
    wishes: Vec<Wish>,
    nftables: bool,
    /// nft takes comments on tables and chains, per family.
    comments: [bool; 2],
}

impl Ground {
    fn wish(&self, family: Family) -> Option<&Wish> {
        self.wishes.iter().find(|wish| wish.family == family)
    }

    /// What has to be written for a place to be as wished, and what is wrong with it as it is.
    fn mend(&self, programs: &mut impl Programs, place: Place) -> Result<Option<Mend>, String> {
        let Some(wish) = self.wish(place.family) else {
            return Ok(None);
        };
        let comments = self.comments[usize::from(place.family == Family::V6)];
        mend(programs, place, wish, comments)
    }
}

fn mend(
    programs: &mut impl Programs,
    place: Place,
    wish: &Wish,
    comments: bool,
) -> Result<Option<Mend>, String> {
    // Nothing wanted and nothing to remove: the programs of a family that is off need not even be there.
    let is_nothing = wish.nat.is_empty() && wish.filter.is_empty();
    // And what is not installed has left nothing over.
    if is_nothing && (wish.networks.is_empty() || !programs.is_installed(place)) {
        return Ok(None);
    }
    let live = programs.list(place)?;
    let (text, wanted, there) = match place.table {
        Some(table) => {
            let text = iptables::merge(table, &live, wish).map_err(|failure| failure.to_string())?;
            let ours = |line: &&str| line.contains("FLANNEL-") && line.starts_with("-A");
            let wanted = iptables::lines(table, wish).len();
            (text, wanted, live.lines().filter(ours).count())
        }
        None => {
            if !nft::is_whole(&live) {
                let table = nft::table(place.family);
                return Err(format!(
                    "the listing of table {table} has no end: nft stopped in the middle of it"
                ));
            }
            let verdicts = ["accept", "return", "masquerade"];
            let ours = |line: &&str| {
                let mut words = line.split_ascii_whitespace();
                !line.contains("policy") && words.any(|word| verdicts.contains(&word))
            };
            let wanted = wish.nat.len() + wish.filter.len();
            (
                nft::merge(&live, wish, comments),
                wanted,
                live.lines().filter(ours).count(),
            )
        }
    };
    Ok(text.map(|text| Mend {
        place,
        text,
        damage: if there < wanted {
            Damage::Missing
        } else {
            Damage::Changed
        },
    }))
}

/// The rules of one daemon.
pub struct RuleSet<P> {
    programs: P,
    wanted: Wanted,
    state: watch::Sender<Firewall>,
    reporter: Reporter,
    ground: Option<Ground>,
    /// Tables in which the variant of iptables that is not in use has rules of flannel's, and the program that prints them.
    beside: Vec<(Place, String)>,
}

impl<P: Programs> RuleSet<P> {
    /// Nothing to keep yet.
    pub fn new(
        programs: P,
        wanted: Wanted,
        state: watch::Sender<Firewall>,
        reporter: Reporter,
    ) -> RuleSet<P> {
        RuleSet {
            programs,
            wanted,
            state,
            reporter,
            ground: None,
            beside: Vec::new(),
        }
    }

    /// The programs.
    pub fn programs(&mut self) -> &mut P {
        &mut self.programs
    }

    fn knows_fully_random(&self, nftables: bool, family: Family) -> bool {
        if nftables {
            self.programs.nft_would_take(&nft::fully_random_probe(family))
        } else {
            let version = self.programs.iptables_version(family);
            version.is_ok_and(|version| iptables::knows_fully_random(&version))
        }
    }

    /// Removes what an earlier run left with the firewall that is not in use any more. It may not even be installed.
    fn clean_up(&mut self, rules: &Rules) {
        let own = rules.halves.iter().map(|(network, _)| *network);
        let networks: Vec<IpNet> = own.chain(rules.former.iter().copied()).collect();
        for place in Place::all(!rules.nftables) {
            let wish = Wish::nothing(place.family, &networks);
            let result = mend(&mut self.programs, place, &wish, false).and_then(|mend| match mend {
                Some(mend) => self.programs.change(place, &mend.text).map(|()| true),
                None => Ok(false),
            });
            match result {
                Ok(true) => info!("removed {place} of the firewall that is not in use any more"),
                Ok(false) => {}
                Err(failure) => debug!("looking for {place}: {failure}"),
            }
        }
    }

    /// Looks for rules of an earlier flannel in the variant of iptables that is not in use: they apply all the same.
    fn look_beside(&mut self) {
        let places = Place::all(false).into_iter();
        let found = places.filter_map(|place| {
            let (program, listing) = self.programs.other_variant(place)?;
            let table = place.table?;
            iptables::has_flannels(table, &listing).then_some((place, program))
        });
        self.beside = found.collect();
    }

    /// Says that rules are being put in place: the programs may take long, or hang.
    fn say_pending(&self, by: &str) {
        let text = format!("firewall rules are being put in place{by}");
        let finding = Finding::new(Part::Firewall, Kind::Pending, "firewall rules", text);
        self.reporter
            .publish(Part::Firewall, [finding].into_iter().collect());
    }
}

impl<P: Programs> Target for RuleSet<P> {
    type Key = Place;
    type Step = Mend;

    fn compare(&mut self, look: Look<'_, Place>) -> Comparison<Mend> {
        let mut comparison = Comparison::default();
        let Some(ground) = &self.ground else {
            return comparison;
        };
        let places: BTreeSet<Place> = match look {
            Look::Whole => Place::all(ground.nftables).into_iter().collect(),
            Look::Keys(keys) => keys.clone(),
        };
        for place in places {
            let what = format!("{} (reading {place})", place.lister());
            self.reporter.asks(Part::Firewall, what, Instant::now());
            let mend = ground.mend(&mut self.programs, place);
            self.reporter.answered(Part::Firewall);
            match mend {
                Ok(mend) => comparison.steps.extend(mend),
                Err(failure) => comparison.unreadable.push((place, failure)),
            }
        }
        comparison
    }

    fn apply(&mut self, steps: Vec<Mend>, _: Instant) -> Vec<(Mend, Fate)> {
        let mut fates = Vec::with_capacity(steps.len());
        for mend in steps {
            self.say_pending(&format!(" by {}", mend.place.program()));
            let fate = match self.programs.change(mend.place, &mend.text) {
                Ok(()) => Fate::Done,
                Err(text) => Fate::Refused {
                    kind: Kind::Failure,
                    text,
                },
            };
            fates.push((mend, fate));
        }
        fates
    }
}

impl<P: Programs> Kept for RuleSet<P> {
    type Order = Rules;

    fn obey(&mut self, rules: Rules) {
        if !self.wanted.is_off() {
            self.say_pending("");
        }
        let wish = |family: Family| {
            let of_family = |half: &&(IpNet, IpNet)| Family::of_net(half.0) == family;
            match rules.halves.iter().find(of_family) {
                Some((network, subnet)) => Wish::new(
                    *network,
                    *subnet,
                    self.wanted.masquerade,
                    self.wanted.forward,
                    self.wanted.fully_random && self.knows_fully_random(rules.nftables, family),
                    &rules.former,
                ),
                None => Wish::nothing(family, &rules.former),
            }
        };
        let wishes = Family::BOTH.map(wish).to_vec();
        self.programs.listen(&Place::all(rules.nftables));
        let comments = Family::BOTH
            .map(|family| rules.nftables && self.programs.nft_would_take(&nft::comment_probe(family)));
        self.ground = Some(Ground {
            wishes,
            nftables: rules.nftables,
            comments,
        });
        self.clean_up(&rules);
        self.look_beside();
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.programs.fds()
    }

    fn listen_every(&self) -> Option<Duration> {
        self.programs.has_silent().then_some(self.wanted.resync)
    }

    fn hear(&mut self) -> Vec<(Place, Option<Opponent>)> {
        self.programs.hear()
    }

    fn report(&mut self, account: &Account<'_, Self>) {
        let wrote = account.round.is_some_and(|round| !round.done.is_empty());
        if wrote && account.is_first {
            info!("firewall rules are in place");
        }
        let repaired = account.round.is_some_and(|round| !round.repaired.is_empty());
        if repaired {
            self.reporter.repaired_kind("firewall");
        }
        let mut report = account.reconciler.report(Part::Firewall);
        for (place, program) in &self.beside {
            let table = place.table.map_or("", Table::name);
            let text = format!(
                "{program} shows rules of an earlier flannel in table {table}: they apply beside those of the variant in use"
            );
            let restore = program.replace("-save", "-restore");
            let cure =
                format!("{program} -t {table} | grep -v -e FLANNEL- -e flanneld | {restore} removes them");
            report.add(Finding::new(Part::Firewall, Kind::Remark, place.to_string(), text).hint(cure));
        }
        let off = self.wanted.is_off();
        let nftables = self.ground.as_ref().is_some_and(|ground| ground.nftables);
        let kind = if nftables { "nftables" } else { "iptables" };
        self.state.send_if_modified(|state| {
            let before = state.clone();
            let reasons = report.reasons();
            state.kind = if off { String::new() } else { kind.to_owned() };
            state.state = match (reasons.is_empty(), off) {
                (false, _) => FirewallState::Failed,
                (true, true) => FirewallState::Off,
                (true, false) => FirewallState::Ok,
            };
            state.error = (!reasons.is_empty()).then(|| reasons.join("; "));
            state.restores += u64::from(repaired);
            *state != before
        });
        self.reporter.publish(Part::Firewall, report);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host whose places hold this text each, and on which nothing is heard of.
    #[derive(Default)]
    struct Host {
        live: String,
        is_missing: bool,
        is_broken: bool,
        takes: bool,
        version: &'static str,
        beside: Option<&'static str>,
        is_silent: bool,
        changed: Vec<(Place, String)>,
        listened: Vec<Place>,
        asked: std::cell::RefCell<Vec<String>>,
    }

    impl Programs for Host {
        fn iptables_version(&self, _: Family) -> Result<String, String> {
            match self.version {
                "" => Err("not found".to_owned()),
                version => Ok(version.to_owned()),
            }
        }

        fn is_installed(&self, _: Place) -> bool {
            !self.is_missing
        }

        fn nft_would_take(&self, script: &str) -> bool {
            self.asked.borrow_mut().push(script.to_owned());
            self.takes
        }

        fn list(&mut self, _: Place) -> Result<String, String> {
            match self.is_broken {
                true => Err("it does not answer".to_owned()),
                false => Ok(self.live.clone()),
            }
        }

        fn other_variant(&self, _: Place) -> Option<(String, String)> {
            Some(("iptables-legacy-save".to_owned(), self.beside?.to_owned()))
        }

        fn change(&mut self, place: Place, text: &str) -> Result<(), String> {
            self.changed.push((place, text.to_owned()));
            Ok(())
        }

        fn listen(&mut self, places: &[Place]) {
            self.listened = places.to_vec();
        }

        fn fds(&self) -> Vec<BorrowedFd<'_>> {
            Vec::new()
        }

        fn has_silent(&self) -> bool {
            self.is_silent
        }

        fn hear(&mut self) -> Vec<(Place, Option<Opponent>)> {
            Vec::new()
        }
    }

    const fn place(family: Family, table: Option<Table>) -> Place {
        Place { family, table }
    }

    const NFT: Place = place(Family::V4, None);
    const NAT: Place = place(Family::V4, Some(Table::Nat));

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn wish() -> Wish {
        Wish::new(net("10.5.0.0/16"), net("10.5.1.0/24"), true, true, false, &[])
    }

    fn host(live: &str) -> Host {
        Host {
            live: live.to_owned(),
            ..Host::default()
        }
    }

    /// What is wrong with a place that holds this.
    fn damage(place: Place, live: &str) -> Option<Damage> {
        let mend = mend(&mut host(live), place, &wish(), true).unwrap();
        mend.map(|mend| mend.damage())
    }

    #[test]
    fn place_when_named_then_by_family_table_and_the_programs_that_read_and_write_it() {
        let names = [
            (
                NAT,
                "iptables-save",
                "iptables-restore",
                "IPv4 firewall rules (iptables nat)",
            ),
            (
                place(Family::V6, Some(Table::Filter)),
                "ip6tables-save",
                "ip6tables-restore",
                "IPv6 firewall rules (iptables filter)",
            ),
            (NFT, "nft", "nft", "IPv4 firewall rules (nftables)"),
            (
                place(Family::V6, None),
                "nft",
                "nft",
                "IPv6 firewall rules (nftables)",
            ),
        ];
        for (place, lister, program, text) in names {
            assert_eq!(
                (place.lister(), place.program(), place.to_string().as_str()),
                (lister, program, text)
            );
        }
        assert_eq!(Place::all(true), [NFT, place(Family::V6, None)]);
        assert_eq!(Place::all(false).len(), 4);
        let mend = mend(&mut host(""), NFT, &wish(), false).unwrap().unwrap();
        assert_eq!((mend.key(), mend.to_string()), (NFT, NFT.to_string()));
    }

    #[test]
    fn damage_when_rules_are_missing_or_only_others_then_the_one_or_the_other() {
        let whole = |rules: &[&str]| {
            format!(
                "table ip flannel-ipv4 {{\n\tchain postrtg {{\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n\t\t{}\n\t}}\n}}\n",
                rules.join("\n\t\t")
            )
        };
        assert_eq!(damage(NFT, ""), Some(Damage::Missing));
        let wanted = wish().nat.len() + wish().filter.len();
        let odd = vec!["ip saddr 192.0.2.1 accept"; wanted];
        assert_eq!(damage(NFT, &whole(&odd)), Some(Damage::Changed));
        assert_eq!(damage(NFT, &whole(&odd[1..])), Some(Damage::Missing));
        for verdict in ["return", "masquerade", "counter accept"] {
            let odd = vec![verdict; wanted];
            assert_eq!(damage(NFT, &whole(&odd)), Some(Damage::Changed), "{verdict}");
        }
        let other = vec!["counter drop"; wanted];
        assert_eq!(
            damage(NFT, &whole(&other)),
            Some(Damage::Missing),
            "no verdict of ours"
        );
        let lines = iptables::lines(Table::Nat, &wish());
        let saved = |rules: &[String]| {
            format!(
                "*nat\n:POSTROUTING ACCEPT [0:0]\n:FLANNEL-POSTRTG - [0:0]\n{}\nCOMMIT\n",
                rules.join("\n")
            )
        };
        assert_eq!(damage(NAT, &saved(&lines)), None);
        assert_eq!(damage(NAT, &saved(&lines[1..])), Some(Damage::Missing));
        let mut reversed = lines.clone();
        reversed[1..].reverse();
        assert_eq!(damage(NAT, &saved(&reversed)), Some(Damage::Changed));
        let mut strange = lines.clone();
        strange.push("-A POSTROUTING -j ACCEPT".to_owned());
        strange.remove(0);
        assert_eq!(
            damage(NAT, &saved(&strange)),
            Some(Damage::Missing),
            "another's rule is none of ours"
        );
    }

    #[test]
    fn mend_when_nothing_is_wanted_or_the_listing_is_none_then_nothing_is_written() {
        let nothing = Wish::nothing(Family::V4, &[]);
        let mut broken = Host {
            is_broken: true,
            ..Host::default()
        };
        assert!(
            mend(&mut broken, NFT, &nothing, true).unwrap().is_none(),
            "it is not even read"
        );
        let former = Wish::nothing(Family::V4, &[net("10.5.0.0/16")]);
        assert_eq!(
            mend(&mut broken, NFT, &former, true).unwrap_err(),
            "it does not answer"
        );
        broken.is_missing = true;
        assert!(
            mend(&mut broken, NFT, &former, true).unwrap().is_none(),
            "and has left nothing over"
        );
        assert!(
            mend(&mut broken, NFT, &wish(), true).is_err(),
            "what is wanted needs the program"
        );
        let torn = mend(
            &mut host("table ip flannel-ipv4 {\n\tchain postrtg {\n"),
            NFT,
            &wish(),
            true,
        );
        assert!(torn.unwrap_err().contains("ip flannel-ipv4 has no end"));
    }

    #[test]
    fn wanted_when_it_is_nothing_then_off_and_otherwise_pending() {
        let at_first = |masquerade, forward| {
            let wanted = Wanted {
                masquerade,
                forward,
                fully_random: true,
                resync: Duration::from_secs(5),
            };
            wanted.at_first().state
        };
        assert_eq!(at_first(false, false), FirewallState::Off);
        for (masquerade, forward) in [(true, false), (false, true), (true, true)] {
            assert_eq!(at_first(masquerade, forward), FirewallState::Pending);
        }
    }

    fn ordered(host: Host, fully_random: bool, rules: Rules) -> RuleSet<Host> {
        let wanted = Wanted {
            masquerade: true,
            forward: true,
            fully_random,
            resync: Duration::from_secs(5),
        };
        let state = watch::Sender::new(wanted.at_first());
        let mut set = RuleSet::new(host, wanted, state, Reporter::default());
        set.obey(rules);
        set
    }

    fn rules(nftables: bool) -> Rules {
        Rules {
            nftables,
            halves: vec![(net("10.5.0.0/16"), net("10.5.1.0/24"))],
            former: vec![net("10.9.0.0/16")],
        }
    }

    fn is_random(set: &RuleSet<Host>) -> bool {
        let wish = set
            .ground
            .as_ref()
            .and_then(|ground| ground.wish(Family::V4))
            .unwrap();
        iptables::lines(Table::Nat, wish)
            .iter()
            .any(|line| line.contains("random-fully"))
    }

    #[test]
    fn ports_when_they_are_to_be_random_then_only_where_the_host_can_and_it_is_asked_for() {
        let with = |version| Host {
            version,
            ..Host::default()
        };
        assert!(is_random(&ordered(
            with("iptables v1.8.9 (legacy)"),
            true,
            rules(false)
        )));
        assert!(!is_random(&ordered(
            with("iptables v1.8.9 (legacy)"),
            false,
            rules(false)
        )));
        assert!(!is_random(&ordered(with("iptables v1.4.21"), true, rules(false))));
        assert!(!is_random(&ordered(with(""), true, rules(false))));
        let nft = |takes| Host {
            takes,
            ..Host::default()
        };
        assert!(is_random(&ordered(nft(true), true, rules(true))));
        assert!(!is_random(&ordered(nft(false), true, rules(true))));
    }

    #[test]
    fn order_when_obeyed_then_listened_to_and_what_the_other_firewall_was_left_goes() {
        let left = "*nat\n:POSTROUTING ACCEPT [0:0]\n:FLANNEL-POSTRTG - [0:0]\n-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n-A FLANNEL-POSTRTG -s 10.9.0.0/16 -d 10.9.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN\nCOMMIT\n";
        let set = ordered(
            Host {
                takes: true,
                beside: Some(left),
                ..host(left)
            },
            false,
            rules(true),
        );
        assert_eq!(set.programs.listened, Place::all(true));
        assert_eq!(
            set.ground.as_ref().map(|ground| ground.comments),
            Some([true, true])
        );
        assert!(
            set.programs.changed.iter().any(|(place, _)| *place == NAT),
            "iptables is not in use"
        );
        assert!(
            set.programs
                .changed
                .iter()
                .all(|(place, _)| place.table.is_some())
        );
        assert!(
            set.beside
                .iter()
                .any(|(place, program)| *place == NAT && program == "iptables-legacy-save")
        );
        let other = ordered(
            Host {
                takes: true,
                ..Host::default()
            },
            false,
            rules(false),
        );
        assert_eq!(other.programs.listened, Place::all(false));
        assert_eq!(
            other.ground.as_ref().map(|ground| ground.comments),
            Some([false, false])
        );
        assert!(other.beside.is_empty() && other.programs.changed.is_empty());
        assert_eq!(other.listen_every(), None);
        let silent = ordered(
            Host {
                is_silent: true,
                ..Host::default()
            },
            false,
            rules(false),
        );
        assert_eq!(silent.listen_every(), Some(Duration::from_secs(5)));
    }

    #[test]
    fn comparison_when_made_then_of_all_places_in_use_or_those_that_were_asked_for() {
        let mut set = ordered(Host::default(), false, rules(true));
        let places =
            |comparison: Comparison<Mend>| -> Vec<Place> { comparison.steps.iter().map(Step::key).collect() };
        assert_eq!(
            places(set.compare(Look::Whole)),
            [NFT],
            "no IPv6 network, and nothing of it is there"
        );
        let keys = BTreeSet::from([place(Family::V6, None)]);
        assert_eq!(places(set.compare(Look::Keys(&keys))), []);
        set.programs.is_broken = true;
        let comparison = set.compare(Look::Whole);
        assert!(
            comparison
                .unreadable
                .iter()
                .any(|(place, why)| *place == NFT && why == "it does not answer")
        );
        set.ground = None;
        assert_eq!(places(set.compare(Look::Whole)), []);
    }
}
