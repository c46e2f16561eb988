//! The rules as iptables has them: the lines `iptables-save` prints and payloads for `iptables-restore --noflush`.
//!
//! Good for `iptables` and `ip6tables`, in the legacy and the nf_tables variant: all four print and take the same text.

use super::{
    Chain, Entry, Listed, MASQUERADE_MARK, Mark, Match, Rule, Table, Verdict, Wish, multicast, prefix, settle,
};
use ipnet::IpNet;

use crate::object::Family;

/// Why a listing cannot be merged with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    /// nft rules that iptables cannot show stand in iptables' own table.
    #[error(
        "table {0} holds rules that iptables cannot show (they were added with nft): expected a table that only iptables manages; move them to a table of their own or set EnableNFTables"
    )]
    Incompatible(&'static str),
    /// It stops in the middle, whatever status it came with.
    #[error(
        "the listing of table {0} has no end: iptables-save stopped in the middle of it, and what it left out is not known"
    )]
    Torn(&'static str),
}

/// Names of one set: chain, the built-in chain that jumps to it, and the comment on every rule.
struct Names {
    chain: &'static str,
    parent: &'static str,
    comment: &'static str,
}

fn names(table: Table) -> Names {
    match table {
        Table::Nat => Names {
            chain: "FLANNEL-POSTRTG",
            parent: "POSTROUTING",
            comment: "flanneld masq",
        },
        Table::Filter => Names {
            chain: "FLANNEL-FWD",
            parent: "FORWARD",
            comment: "flanneld forward",
        },
    }
}

/// Every line of a table as `iptables-save` prints it, the jump first; none when nothing is wanted.
pub fn lines(table: Table, wish: &Wish) -> Vec<String> {
    let names = names(table);
    let rules = wish.rules(table);
    let jump = rules.first().map(|_| format!("-A {}", jump(&names)));
    jump.into_iter()
        .chain(rules.iter().map(|rule| line(&names, rule)))
        .collect()
}

fn jump(names: &Names) -> String {
    format!(
        "{} -m comment --comment \"{}\" -j {}",
        names.parent, names.comment, names.chain
    )
}

fn line(names: &Names, rule: &Rule) -> String {
    let mut out = format!("-A {}", names.chain);
    for (option, test) in [("-s", rule.source), ("-d", rule.destination)] {
        if let Some(Match { not, net }) = test {
            out.push_str(&format!("{} {option} {net}", if not { " !" } else { "" }));
        }
    }
    match rule.mark {
        Some(Mark::Bit) => out.push_str(&format!(
            " -m mark --mark {MASQUERADE_MARK:#x}/{MASQUERADE_MARK:#x}"
        )),
        Some(Mark::Whole) => out.push_str(&format!(" -m mark --mark {MASQUERADE_MARK:#x}")),
        None => {}
    }
    let target = match rule.verdict {
        Verdict::Accept => "ACCEPT",
        Verdict::Return => "RETURN",
        Verdict::Masquerade { fully_random: false } => "MASQUERADE",
        Verdict::Masquerade { fully_random: true } => "MASQUERADE --random-fully",
    };
    out.push_str(&format!(
        " -m comment --comment \"{}\" -j {target}",
        names.comment
    ));
    out
}

/// What to feed `iptables-restore --noflush` so that the table holds what is wished; `None` when it does.
///
/// `live` is the output of `iptables-save -t <table>`, empty where there is no such table. The payload is one transaction: a chain
/// is never seen empty. Rules in the built-in chain in which flannel before 0.20 put them go too; the jump stays where it
/// is, as others may have added theirs after it.
///
/// # Errors
///
/// The listing is not one of this table.
pub fn merge(table: Table, live: &str, wish: &Wish) -> Result<Option<String>, ListingError> {
    let names = names(table);
    let saved = Saved::read(table, live, &names, wish)?;
    let wanted = wish.rules(table);
    let mut commands: Vec<String> = saved.old.iter().map(|line| deletion(line)).collect();
    let delete_jump = || format!("-D {}", jump(&names));
    let chain = settle(table, saved.chain.as_deref(), wish);
    if let Chain::Rewrite(entries) = &chain {
        // Declaring a chain empties it within the transaction.
        commands.insert(0, format!(":{} - [0:0]", names.chain));
        commands.extend(entries.iter().map(|entry| match entry {
            Entry::Ours(rule) => line(&names, rule),
            Entry::Kept(text) => (*text).to_owned(),
        }));
    }
    match chain {
        Chain::Remove => {
            commands.extend((0..saved.jumps).map(|_| delete_jump()));
            if saved.chain.as_ref().is_some_and(|lines| !lines.is_empty()) || !saved.referenced {
                commands.push(format!("-F {}", names.chain));
            }
            if !saved.referenced {
                commands.push(format!("-X {}", names.chain));
            }
        }
        _ if wanted.is_empty() => {}
        _ if saved.jumps == 0 => commands.push(format!("-A {}", jump(&names))),
        // `-D` takes the first that matches, so that the last one stays.
        _ => commands.extend((1..saved.jumps).map(|_| delete_jump())),
    }
    if commands.is_empty() {
        return Ok(None);
    }
    Ok(Some(format!(
        "*{}\n{}\nCOMMIT\n",
        table.name(),
        commands.join("\n")
    )))
}

fn deletion(line: &str) -> String {
    format!("-D{}", line.strip_prefix("-A").unwrap_or(line))
}

/// Whether rules of flannel's are in a listing of a table, of this version or an earlier one.
pub fn has_flannels(table: Table, listing: &str) -> bool {
    let names = names(table);
    let rules = listing.lines().filter(|line| line.starts_with("-A "));
    rules.into_iter().map(words).any(|words| {
        let is_comment = words.windows(2).any(|pair| {
            let [option, comment] = pair else { return false };
            option == "--comment" && comment == names.comment
        });
        is_comment || words.iter().any(|word| word == names.chain)
    })
}

/// The networks that rules of flannel's in a listing of a table name, whosever they are; each subnet among them as well.
pub fn networks(table: Table, listing: &str) -> Vec<IpNet> {
    let names = names(table);
    let rules = listing.lines().filter(|line| line.starts_with("-A ")).map(words);
    let ours = rules.filter(|words| words.get(1).is_some_and(|chain| chain == names.chain));
    let tested = ours.flat_map(|words| {
        let pairs = words.windows(2).filter(|pair| pair[0] == "-s" || pair[0] == "-d");
        pairs
            .filter_map(|pair| pair[1].parse().ok())
            .collect::<Vec<IpNet>>()
    });
    let mut found: Vec<IpNet> = tested.filter(|net| !net.addr().is_multicast()).collect();
    found.sort();
    found.dedup();
    found
}

/// Whether what `iptables-save` printed is whole: every table has its `COMMIT`, and a listing that says where it begins says
/// where it ends. Nothing at all is whole: a kernel without the table has none to print.
pub fn is_whole(listing: &str) -> bool {
    let (mut inside, mut begun) = (false, false);
    for line in listing.lines() {
        if line.starts_with('*') {
            if inside {
                return false;
            }
            inside = true;
        } else if line == "COMMIT" {
            inside = false;
        } else if line.starts_with("# Generated by ") {
            begun = true;
        } else if line.starts_with("# Completed on ") {
            begun = false;
        }
    }
    !inside && !begun
}

/// Whether this `iptables --version` output is of a version that knows `--random-fully` (1.6.2 and later).
pub fn knows_fully_random(version: &str) -> bool {
    number_of(version).is_some_and(|number| number >= (1, 6, 2))
}

/// Whether the `iptables-restore` of this `iptables --version` output knows `--wait` (1.6.2 and later). One that does not takes no
/// lock either.
pub fn knows_wait(version: &str) -> bool {
    number_of(version).is_none_or(|number| number >= (1, 6, 2))
}

/// The number in a line such as `iptables v1.8.9 (nf_tables)`.
fn number_of(version: &str) -> Option<(u32, u32, u32)> {
    let (_, number) = version.split_once(" v")?;
    let number = number.split([' ', '\n', '-']).next().unwrap_or_default();
    let mut parts = number.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let mut part = || parts.next().unwrap_or(0);
    Some((part(), part(), part()))
}

/// The part of a listing that matters here.
struct Saved<'a> {
    /// Rules of our chain; `None` where it does not exist.
    chain: Option<Vec<Listed<'a>>>,
    /// How many times the built-in chain jumps to it in flannel's words.
    jumps: usize,
    /// Whether anything else jumps to it, so that it cannot be deleted.
    referenced: bool,
    /// Rules in the built-in chain that flannel before 0.20 left.
    old: Vec<&'a str>,
}

impl<'a> Saved<'a> {
    fn read(table: Table, live: &'a str, names: &Names, wish: &Wish) -> Result<Saved<'a>, ListingError> {
        let mut saved = Saved {
            chain: None,
            jumps: 0,
            referenced: false,
            old: Vec::new(),
        };
        let mut inside = false;
        let is_whole = is_whole(live);
        for text in live.lines() {
            if text.starts_with('#') {
                if text.contains(&format!("`{}' is incompatible", table.name())) {
                    return Err(ListingError::Incompatible(table.name()));
                }
            } else if let Some(name) = text.strip_prefix('*') {
                inside = name == table.name();
            } else if inside && let Some(declared) = text.strip_prefix(':') {
                if declared.split(' ').next() == Some(names.chain) {
                    saved.chain.get_or_insert_default();
                }
            } else if inside && let Some(rule) = text.strip_prefix("-A ") {
                saved.add(table, text, rule, names, wish);
            }
        }
        if !is_whole {
            return Err(ListingError::Torn(table.name()));
        }
        Ok(saved)
    }

    fn add(&mut self, table: Table, text: &'a str, rule: &str, names: &Names, wish: &Wish) {
        let words = words(rule);
        let Some((chain, spec)) = words.split_first() else {
            return;
        };
        let parsed = Spec::read(spec, wish.family);
        if chain == names.chain {
            let rule = parsed
                .as_ref()
                .filter(|spec| spec.comment == Some(names.comment))
                .and_then(Spec::rule);
            self.chain.get_or_insert_default().push(Listed { text, rule });
            return;
        }
        if chain == names.parent
            && let Some(spec) = parsed
        {
            if spec.is_jump(names) {
                self.jumps += 1;
                return;
            }
            if spec.is_old(table, names, wish) {
                self.old.push(text);
                return;
            }
        }
        self.referenced |= spec.windows(2).any(|pair| matches!(pair, [option, target] if (option == "-j" || option == "-g") && target == names.chain));
    }
}

/// A rule's specification as far as flannel's rules use the language; `None` for anything beyond.
#[derive(Debug, Default)]
struct Spec<'a> {
    mark: Option<Mark>,
    source: Option<Match>,
    destination: Option<Match>,
    comment: Option<&'a str>,
    target: &'a str,
    fully_random: bool,
}

impl<'a> Spec<'a> {
    fn read(words: &'a [String], family: Family) -> Option<Spec<'a>> {
        let mut spec = Spec::default();
        let mut words = words.iter().map(String::as_str);
        let mut not = false;
        while let Some(word) = words.next() {
            match word {
                "!" if !not => {
                    not = true;
                    continue;
                }
                "-s" | "-d" => {
                    let test = Some(Match {
                        not,
                        net: prefix(words.next()?, family)?,
                    });
                    let slot = if word == "-s" {
                        &mut spec.source
                    } else {
                        &mut spec.destination
                    };
                    if std::mem::replace(slot, test).is_some() {
                        return None;
                    }
                    not = false;
                    continue;
                }
                "-m" if matches!(words.clone().next(), Some("mark" | "comment")) => {
                    words.next();
                }
                "--mark" => spec.mark = Some(mark(words.next()?)?),
                "--comment" => spec.comment = Some(words.next()?),
                "-j" => spec.target = words.next()?,
                "--random-fully" => spec.fully_random = true,
                _ => return None,
            }
            if not {
                return None;
            }
        }
        (!not).then_some(spec)
    }

    fn rule(&self) -> Option<Rule> {
        let verdict = match (self.target, self.fully_random) {
            ("ACCEPT", false) => Verdict::Accept,
            ("RETURN", false) => Verdict::Return,
            ("MASQUERADE", fully_random) => Verdict::Masquerade { fully_random },
            _ => return None,
        };
        Some(Rule {
            mark: self.mark,
            source: self.source,
            destination: self.destination,
            verdict,
        })
    }

    fn is_jump(&self, names: &Names) -> bool {
        let bare = self.mark.is_none() && self.source.is_none() && self.destination.is_none();
        bare && self.target == names.chain && self.comment == Some(names.comment)
    }

    /// Whether flannel before 0.20 wrote it into the built-in chain: without a comment until 0.16, then with one.
    fn is_old(&self, table: Table, names: &Names, wish: &Wish) -> bool {
        // An administrator may well have written the two filter rules himself. They are taken for flannel's only where
        // nothing changes for him, because the same is wanted in our chain.
        let anonymous = self.comment.is_none() && (table == Table::Nat || !wish.filter.is_empty());
        let (Some(rule), true) = (self.rule(), anonymous || self.comment == Some(names.comment)) else {
            return false;
        };
        let is =
            |test: Option<Match>, not| test.is_some_and(|t| t.not == not && wish.networks.contains(&t.net));
        let within = |test: Option<Match>| {
            test.is_some_and(|t| !t.not && wish.networks.iter().any(|network| network.contains(&t.net)))
        };
        let to_all = rule.destination
            == Some(Match {
                not: true,
                net: multicast(wish.family),
            });
        let masquerades = matches!(rule.verdict, Verdict::Masquerade { .. });
        let (source, destination, verdict) = (rule.source, rule.destination, rule.verdict);
        let known = match table {
            Table::Nat if masquerades => {
                (is(source, false) && to_all) || (is(source, true) && is(destination, false))
            }
            Table::Nat => {
                verdict == Verdict::Return
                    && ((is(source, false) && is(destination, false))
                        || (is(source, true) && within(destination)))
            }
            Table::Filter => {
                verdict == Verdict::Accept
                    && ((is(source, false) && destination.is_none())
                        || (source.is_none() && is(destination, false)))
            }
        };
        known && rule.mark.is_none()
    }
}

fn mark(text: &str) -> Option<Mark> {
    let number = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let (value, mask) = match text.split_once('/') {
        Some((value, mask)) => (number(value)?, number(mask)?),
        None => (number(text)?, u32::MAX),
    };
    match (value, mask) {
        (MASQUERADE_MARK, MASQUERADE_MARK) => Some(Mark::Bit),
        (MASQUERADE_MARK, u32::MAX) => Some(Mark::Whole),
        _ => None,
    }
}

/// Splits as `iptables-restore` does: blanks separate, double quotes keep together, a backslash inside them escapes.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let (mut quoted, mut escaped, mut open) = (false, false, false);
    for c in text.chars() {
        if !quoted && (c == ' ' || c == '\t') {
            open = false;
            continue;
        }
        if !open {
            words.push(String::new());
            open = true;
        }
        if escaped {
            escaped = false;
        } else if c == '"' {
            quoted = !quoted;
            continue;
        } else if quoted && c == '\\' {
            escaped = true;
            continue;
        }
        if let Some(word) = words.last_mut() {
            word.push(c);
        }
    }
    words
}
