//! The firewall bodies: the merges against a model of what `iptables-restore` and `nft -f` do with their output.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use fabric::object::Family;
use fabric::rules::{Table, Wish, iptables, nft};

fn wishes() -> &'static [Wish; 3] {
    static WISHES: OnceLock<[Wish; 3]> = OnceLock::new();
    WISHES.get_or_init(|| {
        let net = |text: &str| text.parse().expect("a constant");
        let ours = Wish::new(
            net("10.5.0.0/16"),
            net("10.5.1.0/24"),
            true,
            true,
            true,
            &[net("10.4.0.0/16")],
        );
        let masquerade_only = Wish {
            filter: Vec::new(),
            ..ours.clone()
        };
        let nothing = Wish::nothing(Family::V4, &ours.networks);
        [ours, masquerade_only, nothing]
    })
}

/// One of the wishes and a yes or no, as the length has it.
fn choice(data: &[u8]) -> (&'static Wish, bool) {
    (&wishes()[data.len() % 3], data.len() / 3 % 2 == 1)
}

fn other_instance() -> Wish {
    let net = |text: &str| text.parse().expect("a constant");
    Wish::new(net("10.9.0.0/16"), net("10.9.1.0/24"), true, true, false, &[])
}

/// Any text merges without panic; any listing that a host could show settles in one step, foreign rules kept.
pub fn iptables_save(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (wish, odd) = choice(data);
    let table = if odd { Table::Filter } else { Table::Nat };
    if let Ok(Some(payload)) = iptables::merge(table, &text, wish) {
        assert!(payload.starts_with(&format!("*{}\n", table.name())) && payload.ends_with("\nCOMMIT\n"));
    }
    let live = Tables::from_menu(table, data);
    let mut settled = live.clone();
    if let Ok(Some(payload)) = iptables::merge(table, &live.save(), wish) {
        settled.restore(&payload);
    }
    let saved = settled.save();
    assert_eq!(
        iptables::merge(table, &saved, wish),
        Ok(None),
        "{}\nsettled to\n{saved}",
        live.save()
    );
    assert_eq!(settled.foreign(), live.foreign());
}

/// One table as `iptables-restore` sees it: rule texts by chain.
#[derive(Clone)]
struct Tables {
    table: Table,
    chains: BTreeMap<String, Vec<String>>,
}

impl Tables {
    /// A listing of lines that the bytes pick from what may stand in such a table.
    fn from_menu(table: Table, picks: &[u8]) -> Tables {
        let (parent, chain) = match table {
            Table::Nat => ("POSTROUTING", "FLANNEL-POSTRTG"),
            Table::Filter => ("FORWARD", "FLANNEL-FWD"),
        };
        let menu = Tables::menu(table);
        let mut chains = BTreeMap::from([(parent.to_owned(), Vec::new())]);
        for pick in picks.iter().take(40) {
            let (name, rule) = &menu[usize::from(*pick) % menu.len()];
            chains.entry(chain.to_owned()).or_default();
            chains.entry(name.clone()).or_default().push(rule.clone());
        }
        Tables { table, chains }
    }

    /// Chain and rule of everything that may stand in such a table.
    fn menu(table: Table) -> &'static [(String, String)] {
        static MENUS: [OnceLock<Vec<(String, String)>>; 2] = [const { OnceLock::new() }; 2];
        let (at, parent, chain, comment) = match table {
            Table::Nat => (0, "POSTROUTING", "FLANNEL-POSTRTG", "flanneld masq"),
            Table::Filter => (1, "FORWARD", "FLANNEL-FWD", "flanneld forward"),
        };
        MENUS[at].get_or_init(|| {
            let mut lines = iptables::lines(table, &wishes()[0]);
            lines.extend(lines.clone().iter().map(|line| line.replace("10.5.", "10.4.")));
            lines.extend(
                lines
                    .clone()
                    .iter()
                    .map(|line| line.replace("10.5.1.", "10.5.2.")),
            );
            lines.extend(iptables::lines(table, &other_instance()));
            lines.extend([
                format!("-A {parent} -s 10.5.0.0/16 -d 10.5.0.0/16 -j RETURN"),
                format!("-A {parent} ! -s 10.5.0.0/16 -d 10.5.9.0/24 -j RETURN"),
                format!("-A {parent} -s 10.5.0.0/16 -j ACCEPT"),
                format!("-A {parent} -d 10.5.0.0/16 -m comment --comment \"{comment}\" -j ACCEPT"),
                format!("-A {parent} -o eth0 -j {chain}"),
                format!("-A {parent} -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"),
                format!("-A {chain} -s 10.77.0.0/16 -j LOG --log-prefix \"a \\\"b\\\" -j X\""),
                format!("-A {chain} -s 10.5.0.0/16 -j DROP"),
                format!("-A {chain} -j DROP"),
                format!("-A {chain} -m mark --mark 0x4000 -m comment --comment \"{comment}\" -j RETURN"),
                format!("-A {chain} -m mark --mark 0x4000/0x4000 -j RETURN"),
            ]);
            let split = |line: &String| {
                let (name, rule) = line[3..].split_once(' ').expect("a rule has words");
                (name.to_owned(), rule.to_owned())
            };
            lines.iter().map(split).collect()
        })
    }

    fn save(&self) -> String {
        let mut out = format!("# Generated\n*{}\n", self.table.name());
        for name in self.chains.keys() {
            let policy = if name.starts_with("FLANNEL") {
                "-"
            } else {
                "ACCEPT"
            };
            out.push_str(&format!(":{name} {policy} [0:0]\n"));
        }
        for (name, rules) in &self.chains {
            rules
                .iter()
                .for_each(|rule| out.push_str(&format!("-A {name} {rule}\n")));
        }
        out + "COMMIT\n"
    }

    fn restore(&mut self, payload: &str) {
        for line in payload.lines() {
            let mut words = line.splitn(3, ' ');
            match (
                words.next().unwrap_or_default(),
                words.next().unwrap_or_default(),
                words.next(),
            ) {
                ("COMMIT", ..) => {}
                (table, "", None) if table.starts_with('*') => assert_eq!(&table[1..], self.table.name()),
                (declared, "-", Some("[0:0]")) if declared.starts_with(':') => {
                    self.chains.insert(declared[1..].to_owned(), Vec::new());
                }
                ("-A", chain, Some(rule)) => self.chain(chain).push(rule.to_owned()),
                ("-D", chain, Some(rule)) => {
                    let at = self.chain(chain).iter().position(|have| have == rule);
                    let at = at.unwrap_or_else(|| panic!("no such rule in {chain}: {rule}"));
                    self.chain(chain).remove(at);
                }
                ("-F", chain, None) => self.chain(chain).clear(),
                ("-X", chain, None) => {
                    let used = format!("-j {chain}");
                    assert!(
                        self.chain(chain).is_empty()
                            && !self.chains.values().flatten().any(|rule| rule.ends_with(&used))
                    );
                    self.chains.remove(chain);
                }
                _ => panic!("not understood: {line}"),
            }
        }
    }

    fn chain(&mut self, name: &str) -> &mut Vec<String> {
        self.chains
            .get_mut(name)
            .unwrap_or_else(|| panic!("no chain {name}"))
    }

    /// The rules that no merge may touch, in order.
    fn foreign(&self) -> Vec<String> {
        let kept = |rule: &&String| {
            ["10.9.", "10.77.", "docker0", "-o eth0"]
                .iter()
                .any(|word| rule.contains(word))
        };
        self.chains.values().flatten().filter(kept).cloned().collect()
    }
}

/// Any text merges without panic; any table that a host could hold settles in one step, foreign rules kept.
pub fn nft_list(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (wish, comments) = choice(data);
    if let Some(script) = nft::merge(&text, wish, comments) {
        assert!(script.ends_with('\n') && !script.contains("\n\n"));
    }
    let live = Nft::from_menu(data);
    let mut settled = live.clone();
    if let Some(script) = nft::merge(&live.list(), wish, comments) {
        settled.feed(&script);
    }
    let listed = settled.list();
    assert_eq!(
        nft::merge(&listed, wish, comments),
        None,
        "{}\nsettled to\n{listed}",
        live.list()
    );
    assert_eq!(settled.foreign(), live.foreign());
}

const TABLE: &str = "ip flannel-ipv4";

/// The table as the kernel holds it: chains with header line and rules as `nft` lists them.
#[derive(Clone, Default)]
struct Nft {
    exists: bool,
    dormant: bool,
    set: bool,
    chains: BTreeMap<String, (String, Vec<String>)>,
}

impl Nft {
    fn from_menu(picks: &[u8]) -> Nft {
        let Some((flags, picks)) = picks.split_first() else {
            return Nft::default();
        };
        let mut table = Nft {
            exists: true,
            dormant: flags & 1 != 0,
            set: flags & 2 != 0,
            ..Nft::default()
        };
        let menu = Nft::menu();
        for pick in picks.iter().take(40) {
            let (name, header) = match (pick & 1, flags >> 4) {
                (0, 3) => (
                    "postrtg",
                    "type nat hook postrouting priority srcnat + 1; policy accept;",
                ),
                (0, 4) => ("postrtg", ""),
                (0, _) => (
                    "postrtg",
                    "type nat hook postrouting priority srcnat; policy accept;",
                ),
                (_, 5) => (
                    "forward",
                    "type filter hook forward priority filter; policy drop;",
                ),
                (_, 6) => ("mine", "type filter hook forward priority filter; policy accept;"),
                _ => (
                    "forward",
                    "type filter hook forward priority filter; policy accept;",
                ),
            };
            let chain = table
                .chains
                .entry(name.to_owned())
                .or_insert_with(|| (header.to_owned(), Vec::new()));
            chain.1.push(menu[usize::from(pick >> 1) % menu.len()].clone());
        }
        table
    }

    /// Every rule that may stand in such a table.
    fn menu() -> &'static [String] {
        static MENU: OnceLock<Vec<String>> = OnceLock::new();
        MENU.get_or_init(|| {
            let mut menu = Nft::rules(&wishes()[0]);
            menu.extend(menu.clone().iter().map(|rule| rule.replace("10.5.1.", "10.5.2.")));
            menu.extend(Nft::rules(&other_instance()));
            let set = "10.5.0.0/16, 10.7.0.0/16,\n\t\t\t     10.8.0.0/16";
            menu.extend([
                "meta mark 0x00004000 return".to_owned(),
                "meta mark 0x00004000 accept".to_owned(),
                format!("ip saddr {{ {set} }} counter packets 1 bytes 2 return comment \"a {{ b\""),
            ]);
            menu
        })
    }

    /// The rules of a wish as they are listed, taken from the script that makes them.
    fn rules(wish: &Wish) -> Vec<String> {
        let script = nft::merge("", wish, false).unwrap_or_default();
        let rule = |line: &str| {
            Some(
                line.strip_prefix("add rule ip flannel-ipv4 ")?
                    .split_once(' ')?
                    .1
                    .to_owned(),
            )
        };
        script
            .lines()
            .filter_map(rule)
            .map(|rule| rule.replace("0x4000", "0x00004000"))
            .collect()
    }

    fn list(&self) -> String {
        if !self.exists {
            return String::new();
        }
        let mut out = format!(
            "table {TABLE} {{\n{}",
            if self.dormant { "\tflags dormant\n" } else { "" }
        );
        if self.set {
            out.push_str(
                "\tset s {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1,\n\t\t\t     10.0.0.2 }\n\t}\n\n",
            );
        }
        for (name, (header, rules)) in &self.chains {
            out.push_str(&format!("\tchain {name} {{\n"));
            for line in [header].into_iter().chain(rules).filter(|line| !line.is_empty()) {
                out.push_str(&format!("\t\t{line}\n"));
            }
            out.push_str("\t}\n\n");
        }
        out + "}\n"
    }

    fn feed(&mut self, script: &str) {
        for line in script.lines() {
            let Some((verb, rest)) = line.split_once(&format!(" {TABLE}")) else {
                panic!("another table: {line}")
            };
            let (name, rest) = rest
                .trim_start()
                .split_once(' ')
                .unwrap_or((rest.trim_start(), ""));
            match verb {
                "add table" => (self.exists, self.dormant) = (true, false),
                "delete table" => *self = Nft::default(),
                "add chain" => {
                    let hook = rest
                        .trim_start_matches("{ ")
                        .split(" ;")
                        .next()
                        .unwrap_or_default();
                    let hook = hook
                        .replace("priority 100", "priority srcnat")
                        .replace("priority 0", "priority filter");
                    let header = format!("{hook}; policy accept;");
                    let chain = self
                        .chains
                        .entry(name.to_owned())
                        .or_insert_with(|| (header.clone(), Vec::new()));
                    assert_eq!(
                        chain.0.split(';').next(),
                        Some(hook.as_str()),
                        "a kernel refuses to move a chain"
                    );
                    chain.0 = header;
                }
                "flush chain" => self.chain(name).1.clear(),
                "delete chain" => {
                    assert!(
                        self.chain(name).1.is_empty(),
                        "a kernel refuses to delete a chain with rules"
                    );
                    self.chains.remove(name);
                }
                "add rule" => {
                    let rule = rest.replace(" 0x4000", " 0x00004000");
                    self.chain(name).1.push(rule);
                }
                _ => panic!("not understood: {line}"),
            }
        }
    }

    fn chain(&mut self, name: &str) -> &mut (String, Vec<String>) {
        self.chains
            .get_mut(name)
            .unwrap_or_else(|| panic!("no chain {name}"))
    }

    /// The rules that no merge may touch, in order, blanks evened out.
    fn foreign(&self) -> Vec<(String, String)> {
        let rules = self
            .chains
            .iter()
            .flat_map(|(name, (_, rules))| rules.iter().map(move |rule| (name, rule)));
        let kept = |(name, rule): &(&String, &String)| {
            *name == "mine" || rule.contains("10.9.") || rule.contains("counter")
        };
        let even = |rule: &str| rule.split_whitespace().collect::<Vec<_>>().join(" ");
        rules
            .filter(kept)
            .map(|(name, rule)| (name.clone(), even(rule)))
            .collect()
    }
}
