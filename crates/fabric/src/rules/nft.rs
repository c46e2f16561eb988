//! The rules as nftables has them: tables `ip flannel-ipv4` and `ip6 flannel-ipv6`, as scripts for `nft -f -`.
//!
//! The semantics are those of the iptables set, where Go flannel's nftables rules differ from it: the mark is tested by bit, and
//! rule four spares what comes from outside the network to the own subnet.

use std::borrow::Cow;

use super::{Chain, Entry, Listed, MASQUERADE_MARK, Mark, Match, Rule, Table, Verdict, Wish, settle};
use crate::object::Family;

/// The table of a family, as `nft` names it: family and name.
pub fn table(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip flannel-ipv4",
        Family::V6 => "ip6 flannel-ipv6",
    }
}

/// Names of one base chain and where it is hooked.
struct Names {
    chain: &'static str,
    hook: &'static str,
    /// Priority as a number and as `nft` prints it.
    priority: [&'static str; 2],
    comment: &'static str,
}

fn names(table: Table) -> Names {
    match table {
        Table::Nat => Names {
            chain: "postrtg",
            hook: "type nat hook postrouting",
            priority: ["100", "srcnat"],
            comment: "chain to manage traffic masquerading by flannel",
        },
        Table::Filter => Names {
            chain: "forward",
            hook: "type filter hook forward",
            priority: ["0", "filter"],
            comment: "chain to accept flannel traffic",
        },
    }
}

/// What to feed `nft -f -` so that a family's table holds what is wished; `None` when it does.
///
/// `live` is the output of `nft list table <family> <name>`, empty where there is no such table. The script is one transaction. It
/// touches nothing but flannel's two chains; the table goes when nothing is left in it. `comments` is false for an nft or
/// kernel that refuses comments on tables and chains; whether the live ones carry any is never looked at.
pub fn merge(live: &str, wish: &Wish, comments: bool) -> Option<String> {
    let table = table(wish.family);
    let listing = Listing::read(live, table);
    let mut script = Vec::new();
    // Whether anything stays in the table that is not written here.
    let mut stays = listing.others;
    for set in Table::BOTH {
        let names = names(set);
        let wanted = wish.rules(set);
        let live = listing.chains.iter().find(|chain| chain.name == names.chain);
        let rules: Option<Vec<Listed<'_>>> = live.map(|chain| {
            chain
                .rules
                .iter()
                .map(|text| Listed {
                    text,
                    rule: rule(text, wish.family),
                })
                .collect()
        });
        let hook = live.map_or(Hook::Right, |chain| chain.hook(&names));
        let entries = match (settle(set, rules.as_deref(), wish), &rules) {
            (Chain::Remove, _) => {
                script.push(format!("flush chain {table} {}", names.chain));
                script.push(format!("delete chain {table} {}", names.chain));
                continue;
            }
            (Chain::Rewrite(entries), _) => entries,
            (Chain::Right, Some(rules)) if hook != Hook::Right && !wanted.is_empty() => {
                rules.iter().map(|line| Entry::Kept(line.text)).collect()
            }
            (Chain::Right, rules) => {
                stays |= rules.is_some();
                continue;
            }
        };
        stays = true;
        if hook == Hook::Elsewhere {
            script.push(format!("flush chain {table} {}", names.chain));
            script.push(format!("delete chain {table} {}", names.chain));
        }
        let [priority, _] = names.priority;
        let comment = if comments {
            format!(" comment \"{}\" ;", names.comment)
        } else {
            String::new()
        };
        let options = format!("{} priority {priority} ; policy accept ;{comment}", names.hook);
        script.push(format!("add chain {table} {} {{ {options} }}", names.chain));
        script.push(format!("flush chain {table} {}", names.chain));
        script.extend(entries.into_iter().map(|entry| {
            let text = match entry {
                Entry::Ours(rule) => text(&rule, wish.family),
                Entry::Kept(text) => text.to_owned(),
            };
            format!("add rule {table} {} {text}", names.chain)
        }));
    }
    let wanted = Table::BOTH.into_iter().any(|set| !wish.rules(set).is_empty());
    if !stays {
        return listing.exists.then(|| format!("delete table {table}\n"));
    }
    let asleep = listing.dormant && wanted;
    if script.is_empty() && !asleep {
        return None;
    }
    // Also wakes a table that was put to sleep (`flags dormant`).
    let (_, name) = table.split_once(' ').unwrap_or_default();
    let comment = if comments {
        format!(" {{ comment \"rules for {name}\" ; }}")
    } else {
        String::new()
    };
    let add_table = (wanted || asleep).then(|| format!("add table {table}{comment}"));
    let lines: Vec<String> = add_table.into_iter().chain(script).collect();
    Some(lines.join("\n") + "\n")
}

/// Whether what `nft list table` printed is whole: what is opened in it is closed. Nothing at all is whole.
pub fn is_whole(listing: &str) -> bool {
    listing.lines().map(balance).sum::<i32>() == 0
}

/// A script for `nft --check -f -` that passes where `masquerade fully-random` is understood in this family.
pub fn fully_random_probe(family: Family) -> String {
    let table = table(family);
    format!(
        "add table {table}\nadd chain {table} probe {{ type nat hook postrouting priority 100 ; }}\nadd rule {table} probe masquerade fully-random\n"
    )
}

/// A script for `nft --check -f -` that passes where tables and chains may carry comments.
pub fn comment_probe(family: Family) -> String {
    let table = table(family);
    format!(
        "add table {table} {{ comment \"probe\" ; }}\nadd chain {table} probe {{ comment \"probe\" ; }}\n"
    )
}

/// A rule as it is added.
fn text(rule: &Rule, family: Family) -> String {
    let ip = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    let mut out = match rule.mark {
        Some(Mark::Bit) => format!("meta mark & {MASQUERADE_MARK:#x} == {MASQUERADE_MARK:#x} "),
        Some(Mark::Whole) => format!("meta mark {MASQUERADE_MARK:#x} "),
        None => String::new(),
    };
    for (field, test) in [("saddr", rule.source), ("daddr", rule.destination)] {
        if let Some(Match { not, net }) = test {
            out.push_str(&format!("{ip} {field} {}{net} ", if not { "!= " } else { "" }));
        }
    }
    out.push_str(match rule.verdict {
        Verdict::Accept => "accept",
        Verdict::Return => "return",
        Verdict::Masquerade { fully_random: false } => "masquerade",
        Verdict::Masquerade { fully_random: true } => "masquerade fully-random",
    });
    out
}

/// Reads a listed rule as far as flannel's rules use the language; `None` for anything beyond.
fn rule(text: &str, family: Family) -> Option<Rule> {
    let ip = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    let (mut mark, mut source, mut destination) = (None, None, None);
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let mut rest = words.as_slice();
    loop {
        rest = match rest {
            ["meta", "mark", ..] | ["mark", ..] if mark.is_none() => {
                let rest = rest.strip_prefix(&["meta"]).unwrap_or(rest);
                match rest {
                    ["mark", "&" | "and", mask, "==", value, left @ ..]
                        if is_mark(mask) && is_mark(value) =>
                    {
                        mark = Some(Mark::Bit);
                        left
                    }
                    ["mark", value, left @ ..] if is_mark(value) => {
                        mark = Some(Mark::Whole);
                        left
                    }
                    _ => return None,
                }
            }
            [word, field @ ("saddr" | "daddr"), left @ ..] if *word == ip => {
                let slot = if *field == "saddr" {
                    &mut source
                } else {
                    &mut destination
                };
                let (not, left) = match left {
                    ["!=", left @ ..] => (true, left),
                    _ => (false, left),
                };
                let (net, left) = left.split_first()?;
                let test = Match {
                    not,
                    net: super::prefix(net, family)?,
                };
                if slot.replace(test).is_some() {
                    return None;
                }
                left
            }
            verdict => {
                let verdict = match verdict {
                    ["accept"] => Verdict::Accept,
                    ["return"] => Verdict::Return,
                    ["masquerade"] => Verdict::Masquerade { fully_random: false },
                    ["masquerade", "fully-random"] => Verdict::Masquerade { fully_random: true },
                    _ => return None,
                };
                return Some(Rule {
                    mark,
                    source,
                    destination,
                    verdict,
                });
            }
        };
    }
}

fn is_mark(text: &str) -> bool {
    let value = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    value == Ok(MASQUERADE_MARK)
}

/// Whether a chain is where it has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hook {
    Right,
    /// Right but for its policy, which declaring it again sets.
    Policy,
    /// At another hook, priority or none: it has to be made anew.
    Elsewhere,
}

struct LiveChain<'a> {
    name: &'a str,
    /// The line `type … hook …`, where there is one.
    header: Option<&'a str>,
    rules: Vec<Cow<'a, str>>,
}

impl LiveChain<'_> {
    fn hook(&self, names: &Names) -> Hook {
        let mut parts = self.header.unwrap_or_default().split(';').map(str::trim);
        let hook = parts.next().unwrap_or_default();
        if !names
            .priority
            .iter()
            .any(|priority| hook == format!("{} priority {priority}", names.hook))
        {
            return Hook::Elsewhere;
        }
        match parts.next() {
            None | Some("" | "policy accept") => Hook::Right,
            Some(_) => Hook::Policy,
        }
    }
}

/// What `nft list table` printed.
#[derive(Default)]
struct Listing<'a> {
    exists: bool,
    /// `flags dormant`: the whole table is switched off.
    dormant: bool,
    chains: Vec<LiveChain<'a>>,
    /// Whether there is anything in the table beyond flannel's two chains.
    others: bool,
}

impl<'a> Listing<'a> {
    fn read(live: &'a str, table: &str) -> Listing<'a> {
        let mut listing = Listing::default();
        let mut lines = live.lines().map(str::trim).filter(|line| !line.is_empty());
        while let Some(line) = lines.next() {
            let header = line.strip_prefix("table ").and_then(|line| line.split_once('{'));
            if header.is_some_and(|(name, _)| name.trim() == table) {
                listing.exists = true;
                listing.read_table(&mut lines);
            } else {
                skip_block(line, &mut lines);
            }
        }
        listing
    }

    fn read_table(&mut self, lines: &mut impl Iterator<Item = &'a str>) {
        while let Some(line) = lines.next() {
            if line.starts_with('}') {
                return;
            } else if let Some(flags) = line.strip_prefix("flags ") {
                self.dormant |= flags.split([',', ' ', ';']).any(|flag| flag == "dormant");
            } else if let Some((name, _)) = line.strip_prefix("chain ").and_then(|line| line.split_once('{'))
            {
                let chain = read_chain(name.trim(), lines);
                self.others |= !Table::BOTH.into_iter().any(|set| names(set).chain == chain.name);
                self.chains.push(chain);
            } else if line.ends_with('{') {
                self.others = true;
                skip_block(line, lines);
            }
        }
    }
}

fn read_chain<'a>(name: &'a str, lines: &mut impl Iterator<Item = &'a str>) -> LiveChain<'a> {
    let mut chain = LiveChain {
        name,
        header: None,
        rules: Vec::new(),
    };
    while let Some(line) = lines.next() {
        if line.starts_with('}') {
            break;
        } else if line.starts_with("type ") && line.contains(" hook ") {
            chain.header = Some(line);
        } else if !line.starts_with("comment \"") && !line.starts_with('#') {
            // A long set goes on over several lines.
            let mut rule = Cow::Borrowed(line);
            let mut depth = balance(line);
            while depth > 0
                && let Some(more) = lines.next()
            {
                depth += balance(more);
                rule.to_mut().push(' ');
                rule.to_mut().push_str(more);
            }
            chain.rules.push(rule);
        }
    }
    chain
}

fn skip_block<'a>(first: &str, lines: &mut impl Iterator<Item = &'a str>) {
    let mut depth = balance(first);
    while depth > 0
        && let Some(line) = lines.next()
    {
        depth += balance(line);
    }
}

/// Opened less closed braces, outside of quotes (nft's strings have no escapes).
fn balance(line: &str) -> i32 {
    let mut quoted = false;
    line.chars().fold(0, |depth, c| {
        quoted ^= c == '"';
        match c {
            '{' if !quoted => depth + 1,
            '}' if !quoted => depth - 1,
            _ => depth,
        }
    })
}
