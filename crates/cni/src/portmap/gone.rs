//! Rules of containers that are gone: found in one listing of a family, removed in one transaction.
//!
//! iptables rules tell network and container by the name of their chain. nftables rules tell the container alone, so that they
//! count for a network only where they name an address that the container had in it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use fabric::object::Family;

use crate::netfilter::{Firewall, FirewallError};
use crate::notice::say;
use crate::owner::{Holding, Owner};
use crate::portmap::conntrack;
use crate::portmap::iptables::{self, chains};
use crate::portmap::nft::{self, TABLE};
use crate::portmap::presence;

/// A container that no longer has an attachment in a network, and the addresses it had there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// Whose.
    pub container: String,
    /// Of all its attachments.
    pub addresses: Vec<IpAddr>,
}

impl Gone {
    /// The containers of these attachments of which no attachment is to stay.
    pub fn among(gone: &[Holding], valid: &[Owner]) -> Vec<Gone> {
        let stays: HashSet<&str> = valid.iter().map(|owner| owner.container.as_str()).collect();
        let mut all: HashMap<&str, Vec<IpAddr>> = HashMap::new();
        for (owner, addresses) in gone.iter().filter(|(o, _)| !stays.contains(o.container.as_str())) {
            all.entry(&owner.container).or_default().extend(addresses);
        }
        let all = all.into_iter().map(|(container, addresses)| Gone {
            container: container.to_owned(),
            addresses,
        });
        all.collect()
    }
}

/// Removes the rules that publish ports of these containers in a network.
///
/// # Errors
///
/// What could not be removed in each family, in one.
pub fn remove_rules(network: &str, gone: &[Gone]) -> Result<(), FirewallError> {
    if gone.is_empty() {
        return Ok(());
    }
    let firewall = Firewall::begin()?;
    let (mut errors, mut some) = (Vec::new(), false);
    for v6 in [false, true] {
        let of_iptables = firewall.save(v6).and_then(|present| {
            let lines = stale_lines(&present.unwrap_or_default(), network, gone);
            some |= !lines.is_empty();
            match lines.is_empty() {
                true => Ok(()),
                false => firewall.restore(v6, &lines).map(drop),
            }
        });
        errors.extend(of_iptables.err());
        match remove_nft_rules(&firewall, v6, gone) {
            Ok(removed) => some |= removed,
            Err(e) => errors.push(e),
        }
    }
    drop(firewall);
    if some {
        let addresses: Vec<IpAddr> = gone
            .iter()
            .flat_map(|gone| gone.addresses.iter().copied())
            .collect();
        forget_flows(&addresses);
    }
    FirewallError::all_of(errors)
}

/// Deletes UDP flows translated to addresses of containers that are gone.
pub fn forget_flows(pods: &[IpAddr]) {
    if let Err(e) = conntrack::delete_udp_flows_into(pods) {
        // A flow that nobody sends on times out by itself.
        let list: Vec<String> = pods.iter().map(ToString::to_string).collect();
        let list = list.join(" ");
        say(&format!(
            "failed to delete stale UDP conntrack entries for {list}: {e}"
        ));
    }
}

/// Removes the rules that publish a container's ports at these addresses of its, whatever the network was called when they were made:
/// a list may have been renamed since, or have lost its portmap, and the next owner of the port would stand behind them.
///
/// # Errors
///
/// The firewall program's words; a passing one when it or the lock took too long.
pub fn unpublish(container: &str, addresses: &[IpAddr]) -> Result<(), FirewallError> {
    let addresses: Vec<IpAddr> = addresses
        .iter()
        .copied()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let addresses = addresses.as_slice();
    // Most containers have no ports, so the kernel is asked first.
    let words = format!("id: \"{container}\"");
    let families: Vec<bool> = [false, true]
        .into_iter()
        .filter(|v6| addresses.iter().any(|ip| ip.is_ipv6() == *v6))
        .collect();
    let family = |v6: bool| if v6 { Family::V6 } else { Family::V4 };
    let of_iptables: Vec<bool> = families
        .into_iter()
        .filter(|v6| presence::may_hold_text(family(*v6), iptables::DNAT, &words))
        .collect();
    let of_nft = nft::deletions_at(container, addresses)?;
    if of_iptables.is_empty() && of_nft.is_empty() {
        return Ok(());
    }
    let mut firewall = Firewall::begin()?;
    firewall.begin_undoing();
    let mut some = !of_nft.is_empty();
    for v6 in of_iptables {
        let Some(entries) = firewall.list(v6, &[iptables::DNAT])? else {
            continue;
        };
        let targets = targets_of(&entries, container);
        let names: Vec<&str> = targets.iter().map(String::as_str).collect();
        let present = firewall.list(v6, &names)?.unwrap_or_default();
        let lines = lines_into(&entries, &present, container, addresses);
        if !lines.is_empty() {
            firewall.restore(v6, &lines)?;
            some = true;
        }
    }
    nft::apply(&firewall, &of_nft)?;
    drop(firewall);
    if some {
        forget_flows(addresses);
    }
    Ok(())
}

/// Chains that a container's entries lead to.
fn targets_of(entries: &str, container: &str) -> Vec<String> {
    let mut targets: Vec<String> = entries_of(entries, container)
        .map(|(_, target)| target.to_owned())
        .collect();
    targets.sort_unstable();
    targets.dedup();
    targets
}

/// Rules that lead on for a container, by its id, with the chain each leads to.
fn entries_of<'a>(entries: &'a str, container: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let id = format!("id: \\\"{container}\\\"\"");
    let lines = entries
        .lines()
        .filter(move |line| line.starts_with("-A ") && line.contains(&id));
    lines
        .filter_map(|line| Some((line, line.rsplit_once(" -j ")?.1)))
        .filter(|(_, target)| target.starts_with("CNI-DN-"))
}

/// Deletions of a container's entries and of the chains they lead to, where those translate to one of these addresses.
fn lines_into(entries: &str, present: &str, container: &str, addresses: &[IpAddr]) -> Vec<String> {
    let leads_there = |target: &str| {
        let start = format!("-A {target} ");
        present
            .lines()
            .filter(|line| line.starts_with(&start))
            .filter_map(|line| line.split_once("--to-destination ")?.1.split(' ').next())
            .filter_map(address_of)
            .any(|ip| addresses.contains(&ip))
    };
    let (mut jumps, mut flushes, mut removals) = (Vec::new(), Vec::new(), Vec::new());
    for (line, target) in entries_of(entries, container).filter(|(_, target)| leads_there(target)) {
        jumps.push(line.replacen("-A", "-D", 1));
        let flush = format!("-F {target}");
        if !flushes.contains(&flush) {
            flushes.push(flush);
            removals.push(format!("-X {target}"));
        }
    }
    // Every jump has to go before its chain can.
    [jumps, flushes, removals].concat()
}

/// Deletions of these containers' chains and of all that leads there.
fn stale_lines(present: &str, network: &str, gone: &[Gone]) -> Vec<String> {
    let theirs: HashSet<String> = gone
        .iter()
        .flat_map(|gone| chains(network, &gone.container))
        .collect();
    let (mut jumps, mut flushes, mut removals) = (Vec::new(), Vec::new(), Vec::new());
    for line in present.lines() {
        if let Some((name, _)) = line.strip_prefix(':').and_then(|rest| rest.split_once(' ')) {
            if theirs.contains(name) {
                flushes.push(format!("-F {name}"));
                removals.push(format!("-X {name}"));
            }
        } else if let Some((_, target)) = line.strip_prefix("-A ").and_then(|rule| rule.rsplit_once(" -j "))
            && theirs.contains(target)
        {
            jumps.push(line.replacen("-A", "-D", 1));
        }
    }
    // Every jump has to go before its chain can.
    [jumps, flushes, removals].concat()
}

/// True when there were some.
fn remove_nft_rules(firewall: &Firewall, v6: bool, gone: &[Gone]) -> Result<bool, FirewallError> {
    let family = if v6 { "ip6" } else { "ip" };
    let listed = match firewall.run("nft", &["-a", "list", "table", family, TABLE], "") {
        Ok(listed) => listed.unwrap_or_default(),
        // No such table: nobody has used it yet.
        Err(e) if e.says("No such file or directory") => return Ok(false),
        Err(e) => return Err(e),
    };
    let lines: String = stale_rules(&listed, gone)
        .into_iter()
        .map(|(chain, handle)| format!("delete rule {family} {TABLE} {chain} handle {handle}\n"))
        .collect();
    match lines.is_empty() {
        true => Ok(false),
        false => firewall.run("nft", &["-f", "-"], &lines).map(|_| true),
    }
}

/// Chains and handles of these containers' rules in a listing of the table.
fn stale_rules<'a>(listed: &'a str, gone: &[Gone]) -> Vec<(&'a str, &'a str)> {
    let of: HashMap<&str, &[IpAddr]> = gone
        .iter()
        .map(|gone| (gone.container.as_str(), gone.addresses.as_slice()))
        .collect();
    let (mut chain, mut found) = ("", Vec::new());
    for line in listed.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("chain ") {
            chain = rest.split(' ').next().unwrap_or_default();
            continue;
        }
        let rule = line.rsplit_once(" # handle ");
        let Some((rule, comment, handle)) = rule.and_then(|(rule, handle)| {
            let (rule, comment) = rule.rsplit_once(" comment \"")?;
            Some((rule, comment.strip_suffix('"')?, handle))
        }) else {
            continue;
        };
        let Some(addresses) = of.get(comment) else {
            continue;
        };
        let names_one = rule
            .split(' ')
            .filter_map(address_of)
            .any(|ip| addresses.contains(&ip));
        if names_one {
            found.push((chain, handle));
        }
    }
    found
}

/// The addresses that rules of a chain of these names translate to, in a listing.
pub fn destinations(listed: &str, chains: &[String]) -> Vec<IpAddr> {
    let of_one = |line: &&str| {
        let chain = line.strip_prefix("-A ").and_then(|rest| rest.split(' ').next());
        chain.is_some_and(|chain| chains.iter().any(|name| name == chain))
    };
    let mut found: Vec<IpAddr> = listed
        .lines()
        .filter(of_one)
        .filter_map(|line| line.split_once("--to-destination ")?.1.split(' ').next())
        .filter_map(address_of)
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// The address in `10.244.7.3`, `10.244.7.3:80` or `[fd00::3]:80`.
pub(super) fn address_of(word: &str) -> Option<IpAddr> {
    if let Some(rest) = word.strip_prefix('[') {
        return rest.split_once(']')?.0.parse().ok();
    }
    word.parse().ok().or_else(|| word.split_once(':')?.0.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(container: &str, addresses: &[&str]) -> Gone {
        Gone {
            container: container.to_owned(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn lines_when_a_container_is_gone_are_its_chain_and_jumps_and_nobody_elses() {
        let [own, old] = chains("cbr0", "c1");
        let table = format!(
            "*nat\n:POSTROUTING ACCEPT [0:0]\n:CNI-DN-other - [0:0]\n:{own} - [0:0]\n-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 80 -j {own}\n\
             -A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 81 -j CNI-DN-other\n-A {own} -p tcp -j DNAT --to-destination 10.0.0.2:80\nCOMMIT\n"
        );
        assert_eq!(
            stale_lines(&table, "cbr0", &[gone("c1", &[]), gone("c2", &[])]),
            [
                format!("-D CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 80 -j {own}"),
                format!("-F {own}"),
                format!("-X {own}")
            ]
        );
        assert_eq!(
            stale_lines(&table, "podman", &[gone("c1", &[])]),
            Vec::<String>::new()
        );
        assert!(own.starts_with("CNI-DN-") && old.starts_with("CNI-SN-"));
    }

    #[test]
    fn entries_when_they_lead_to_the_containers_address_go_whatever_the_network_is_called() {
        let entry = |network: &str, id: &str, target: &str| {
            format!(
                "-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: \\\"{network}\\\" id: \\\"{id}\\\"\" -m multiport --dports 80 -j {target}"
            )
        };
        let ours = entry("former", "c1", "CNI-DN-aaa");
        let entries = [
            ":CNI-HOSTPORT-DNAT - [0:0]".to_owned(),
            ours.clone(),
            entry("other", "c1", "CNI-DN-bbb"),
            entry("former", "c10", "CNI-DN-ccc"),
            entry("former", "c1", "SOMEBODYS"),
        ]
        .join("\n");
        assert_eq!(targets_of(&entries, "c1"), ["CNI-DN-aaa", "CNI-DN-bbb"]);
        let present = "-A CNI-DN-aaa -s 10.244.7.0/24 -p tcp -j CNI-HOSTPORT-SETMARK\n\
            -A CNI-DN-aaa -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.7.2:80\n\
            -A CNI-DN-bbb -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.88.0.2:80\n";
        let at = |ip: &str| lines_into(&entries, present, "c1", &[ip.parse().unwrap()]);
        assert_eq!(
            at("10.244.7.2"),
            [
                ours.replacen("-A", "-D", 1),
                "-F CNI-DN-aaa".into(),
                "-X CNI-DN-aaa".into()
            ]
        );
        assert_eq!(at("10.244.7.20"), Vec::<String>::new());
    }

    #[test]
    fn rules_when_they_name_another_address_are_of_another_network() {
        let listed = "table ip cni_hostport { # handle 9\n\tcomment \"CNI portmap plugin\"\n\tchain hostports { # handle 1\n\
            \t\ttcp dport 80 dnat to 10.244.7.2:80 comment \"c1\" # handle 6\n\
            \t\ttcp dport 81 dnat to 10.88.0.2:80 comment \"c1\" # handle 7\n\
            \t\ttcp dport 82 dnat to 10.244.7.2:80 comment \"c10\" # handle 8\n\t}\n\tchain masquerading { # handle 2\n\
            \t\tip saddr 127.0.0.1 ip daddr 10.244.7.2 masquerade comment \"c1\" # handle 11\n\t}\n}\n";
        let found = stale_rules(listed, &[gone("c1", &["10.244.7.2"])]);
        assert_eq!(found, [("hostports", "6"), ("masquerading", "11")]);
        assert!(stale_rules(listed, &[gone("c1", &[])]).is_empty());
        let v6 = "chain hostports {\n udp dport 53 dnat to [fd00::2]:53 comment \"c1\" # handle 3\n";
        assert_eq!(stale_rules(v6, &[gone("c1", &["fd00::2"])]), [("hostports", "3")]);
    }

    #[test]
    fn containers_when_another_attachment_of_theirs_stays_are_not_gone() {
        let ip = |text: &str| vec![text.parse().unwrap()];
        let all = [
            (Owner::new("a", "eth0"), ip("10.0.0.2")),
            (Owner::new("a", "net1"), ip("10.0.0.3")),
            (Owner::new("b", "net1"), ip("10.0.0.4")),
        ];
        assert_eq!(
            Gone::among(&all, &[Owner::new("b", "eth0")]),
            [gone("a", &["10.0.0.2", "10.0.0.3"])]
        );
    }

    #[test]
    fn destinations_when_listed_are_those_of_these_chains_each_once() {
        let listed = "-A CNI-DN-a -p tcp -j DNAT --to-destination 10.0.0.2:80\n\
            -A CNI-DN-a -p udp -j DNAT --to-destination [fd00::2]:53\n\
            -A CNI-DN-a -j DNAT --to-destination 10.0.0.2:81 --random\n\
            -A CNI-DN-ab -j DNAT --to-destination 10.0.0.9:80\n\
            -A CNI-DN-a -j MARK\n-N CNI-DN-a\n";
        let of = |names: &[&str]| -> Vec<String> {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            destinations(listed, &names)
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(of(&["CNI-DN-a", "CNI-SN-a"]), ["10.0.0.2", "fd00::2"]);
        assert_eq!(of(&["CNI-DN-ab"]), ["10.0.0.9"]);
        assert_eq!(of(&[]), Vec::<String>::new());
        for (word, address) in [
            ("10.0.0.2", "10.0.0.2"),
            ("10.0.0.2:80", "10.0.0.2"),
            ("[fd00::2]:80", "fd00::2"),
            ("fd00::2", "fd00::2"),
        ] {
            assert_eq!(address_of(word), address.parse().ok(), "{word}");
        }
        assert_eq!((address_of("dport"), address_of("[x]:1")), (None, None));
    }
}
