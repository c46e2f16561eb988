//! Firewall rules as data, and the step from what the firewall holds to what it should hold.
//!
//! Two sets exist: masquerading in `nat` and forwarding in `filter`. Several daemons on one host share the chains
//! (`FLANNEL-POSTRTG`, `FLANNEL-FWD`) and tables (`flannel-ipv4`, `flannel-ipv6`), Go flannel among them, so each daemon answers
//! for the rules that name *its* networks and keeps all others as they stand. The merges ([`iptables::merge`],
//! [`nft::merge`]) are pure: listing in, `None` when it is right, else one transaction that makes it right. They ask that own
//! rules stand in order, not at a place, so two daemons never undo each other's work.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::object::Family;

pub mod iptables;
pub mod nft;

/// Mark that kube-proxy sets on packets it will masquerade itself; others must not do it again.
pub const MASQUERADE_MARK: u32 = 0x4000;

/// One of the two rule sets, by the table that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// `nat`: masquerading.
    Nat,
    /// `filter`: forwarding.
    Filter,
}

impl Table {
    /// Both.
    pub const BOTH: [Table; 2] = [Table::Nat, Table::Filter];

    /// The iptables table.
    pub fn name(self) -> &'static str {
        match self {
            Table::Nat => "nat",
            Table::Filter => "filter",
        }
    }
}

/// How a packet's mark is tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The bit is set, whatever others are.
    Bit,
    /// The whole mark is that bit: Go flannel's nftables rule, which misses packets that carry other bits too.
    Whole,
}

/// An address test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// True for any address outside `net`.
    pub not: bool,
    /// The prefix, host bits clear.
    pub net: IpNet,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Let through.
    Accept,
    /// Left to the rules after the chain.
    Return,
    /// Sent with the address of the outgoing link.
    Masquerade {
        /// With a port taken at random.
        fully_random: bool,
    },
}

/// A rule of flannel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Test of [`MASQUERADE_MARK`].
    pub mark: Option<Mark>,
    /// Test of the source.
    pub source: Option<Match>,
    /// Test of the destination.
    pub destination: Option<Match>,
    /// What to do.
    pub verdict: Verdict,
}

impl Rule {
    /// Whether it tests for one of these prefixes exactly. Every rule but the one on the mark names its network.
    pub fn names(&self, networks: &[IpNet]) -> bool {
        [self.source, self.destination]
            .into_iter()
            .flatten()
            .any(|test| networks.contains(&test.net))
    }

    /// Whether it is the masquerade rule that spares what kube-proxy masquerades, which all daemons share.
    fn is_on_mark(&self) -> bool {
        let bare = self.source.is_none() && self.destination.is_none();
        self.mark.is_some() && bare && self.verdict == Verdict::Return
    }
}

/// What one daemon wants of the firewall in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The family.
    pub family: Family,
    /// The masquerade rules, in order; empty when they are off.
    pub nat: Vec<Rule>,
    /// The forward rules, in order; empty when they are off.
    pub filter: Vec<Rule>,
    /// The networks whose rules are this daemon's: its own and those it had before.
    pub networks: Vec<IpNet>,
}

impl Wish {
    /// What a daemon wants whose network is `network` and whose own part of it is `subnet`. `former` are networks it had
    /// before, whose rules are to go.
    pub fn new(
        network: IpNet,
        subnet: IpNet,
        masquerading: bool,
        forwarding: bool,
        fully_random: bool,
        former: &[IpNet],
    ) -> Wish {
        let (network, subnet) = (network.trunc(), subnet.trunc());
        let nat = if masquerading {
            masquerade(network, subnet, fully_random)
        } else {
            Vec::new()
        };
        let filter = if forwarding { forward(network) } else { Vec::new() };
        let mut wish = Wish::nothing(Family::of_net(network), &[&[network], former].concat());
        wish.nat = nat;
        wish.filter = filter;
        wish
    }

    /// That nothing of these networks is left: for a family that is off, the firewall not in use, a clean-up.
    pub fn nothing(family: Family, networks: &[IpNet]) -> Wish {
        let of_family = |net: &&IpNet| Family::of_net(**net) == family;
        let networks = networks.iter().filter(of_family).map(IpNet::trunc).collect();
        Wish {
            family,
            nat: Vec::new(),
            filter: Vec::new(),
            networks,
        }
    }

    /// The rules for a table.
    pub fn rules(&self, table: Table) -> &[Rule] {
        match table {
            Table::Nat => &self.nat,
            Table::Filter => &self.filter,
        }
    }
}

/// The masquerade rules of a network and the own subnet in it.
pub fn masquerade(network: IpNet, subnet: IpNet, fully_random: bool) -> Vec<Rule> {
    let is = |net| Some(Match { not: false, net });
    let is_not = |net| Some(Match { not: true, net });
    let rule = |source, destination, verdict| Rule {
        mark: None,
        source,
        destination,
        verdict,
    };
    let masquerade = Verdict::Masquerade { fully_random };
    vec![
        Rule {
            mark: Some(Mark::Bit),
            source: None,
            destination: None,
            verdict: Verdict::Return,
        },
        rule(is(subnet), is(network), Verdict::Return),
        rule(is(network), is(subnet), Verdict::Return),
        // What others send to pods here they send unchanged.
        rule(is_not(network), is(subnet), Verdict::Return),
        rule(
            is(network),
            is_not(multicast(Family::of_net(network))),
            masquerade,
        ),
        // A host speaks to pods elsewhere from an address the overlay knows.
        rule(is_not(network), is(network), masquerade),
    ]
}

/// The forward rules of a network.
pub fn forward(network: IpNet) -> Vec<Rule> {
    let test = Some(Match {
        not: false,
        net: network,
    });
    vec![
        Rule {
            mark: None,
            source: test,
            destination: None,
            verdict: Verdict::Accept,
        },
        Rule {
            mark: None,
            source: None,
            destination: test,
            verdict: Verdict::Accept,
        },
    ]
}

/// All multicast addresses of a family.
pub fn multicast(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)),
        Family::V6 => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8)),
    }
}

/// Reads an address test's prefix; a bare address is a prefix of full length.
fn prefix(text: &str, family: Family) -> Option<IpNet> {
    let net = match text.contains('/') {
        true => text.parse().ok()?,
        false => IpNet::from(text.parse::<IpAddr>().ok()?),
    };
    (Family::of_net(net) == family).then_some(net)
}

/// A rule in a listing: its text, and what it means where it has the form of one of flannel's.
struct Listed<'a> {
    text: &'a str,
    rule: Option<Rule>,
}

/// A rule in a chain that is written anew.
enum Entry<'a> {
    /// One of ours.
    Ours(Rule),
    /// Somebody else's, as it was listed.
    Kept(&'a str),
}

/// What has to happen to a chain.
enum Chain<'a> {
    /// Nothing.
    Right,
    /// It must hold exactly this.
    Rewrite(Vec<Entry<'a>>),
    /// Nobody needs it any more.
    Remove,
}

/// Whether a rule's text has a prefix outside these networks that is not multicast.
fn names_others(text: &str, networks: &[IpNet]) -> bool {
    text.split(|c: char| !(c.is_ascii_hexdigit() || matches!(c, '.' | ':' | '/')))
        .filter_map(|word| {
            let net: Option<IpNet> = word.parse().ok();
            net.or_else(|| word.parse::<IpAddr>().ok().map(IpNet::from))
        })
        .any(|net| {
            let inside = networks
                .iter()
                .any(|ours| ours.contains(&net) || net.contains(ours));
            !inside && !net.addr().is_multicast()
        })
}

/// Compares the content of a chain (`None`: there is no such chain) with the rules wanted in it.
fn settle<'a>(table: Table, listed: Option<&[Listed<'a>]>, wish: &Wish) -> Chain<'a> {
    let (wanted, networks) = (wish.rules(table), wish.networks.as_slice());
    let Some(listed) = listed else {
        return match wanted {
            [] => Chain::Right,
            _ => Chain::Rewrite(wanted.iter().copied().map(Entry::Ours).collect()),
        };
    };
    let on_mark = |line: &Listed<'_>| table == Table::Nat && line.rule.is_some_and(|rule| rule.is_on_mark());
    let own = |line: &Listed<'_>| line.rule.is_some_and(|rule| rule.names(networks));
    // The chain is flannel's. A rule about other networks may be another daemon's, whatever its form; any other that is none of
    // ours was put there by hand, and could be a drop before all of ours.
    let stray = |line: &Listed<'_>| {
        let about_nothing = line
            .rule
            .is_none_or(|rule| rule.source.is_none() && rule.destination.is_none());
        !on_mark(line) && about_nothing && !names_others(line.text, networks)
    };
    let foreign = || {
        listed
            .iter()
            .filter(|line| !on_mark(line) && !own(line) && !stray(line))
    };
    if wanted.is_empty() {
        if foreign().next().is_none() {
            return Chain::Remove;
        }
        if !listed.iter().any(|line| own(line) || stray(line)) {
            return Chain::Right;
        }
        let rest = listed.iter().filter(|line| !own(line) && !stray(line));
        return Chain::Rewrite(rest.map(|line| Entry::Kept(line.text)).collect());
    }
    let (first, others): (Vec<Rule>, Vec<Rule>) = wanted.iter().partition(|rule| rule.is_on_mark());
    let own_in_order = listed
        .iter()
        .filter(|line| own(line))
        .filter_map(|line| line.rule)
        .eq(others.iter().copied());
    // The test of the mark only helps where no masquerading comes before it.
    let marks_at_front = listed
        .iter()
        .take(first.len())
        .filter_map(|line| line.rule)
        .eq(first.iter().copied());
    let one_mark = listed.iter().filter(|line| on_mark(line)).count() == first.len();
    if own_in_order && marks_at_front && one_mark && !listed.iter().any(stray) {
        return Chain::Right;
    }
    let ours = |rules: Vec<Rule>| rules.into_iter().map(Entry::Ours);
    Chain::Rewrite(
        ours(first)
            .chain(foreign().map(|line| Entry::Kept(line.text)))
            .chain(ours(others))
            .collect(),
    )
}

#[cfg(test)]
mod tests;
