//! Rules of containers that are gone: found in one listing of a family, removed in one transaction.
//!
//! iptables rules tell network and container by the name of their chain. nftables rules tell the container alone, so that they
//! count for a network only where they name an address that the container had in it.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::host_local::store::Owner;
use crate::netfilter::{self, restore, run, save};
use crate::portmap::iptables::chains;
use crate::portmap::nft::TABLE;

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
    pub fn among(gone: &[(Owner, Vec<IpAddr>)], valid: &[Owner]) -> Vec<Gone> {
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
pub fn forget(network: &str, gone: &[Gone]) -> Result<(), String> {
    if gone.is_empty() {
        return Ok(());
    }
    let _lock = netfilter::lock();
    let mut errors = Vec::new();
    for v6 in [false, true] {
        let of_iptables = save(v6).and_then(|present| {
            let lines = stale_lines(&present.unwrap_or_default(), network, gone);
            match lines.is_empty() {
                true => Ok(()),
                false => restore(v6, &lines).map(drop),
            }
        });
        errors.extend(of_iptables.err());
        errors.extend(forget_nft(v6, gone).err());
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(errors.join("\n")),
    }
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

fn forget_nft(v6: bool, gone: &[Gone]) -> Result<(), String> {
    let family = if v6 { "ip6" } else { "ip" };
    let listed = match run("nft", &["-a", "list", "table", family, TABLE], "") {
        Ok(listed) => listed.unwrap_or_default(),
        // No such table: nobody has used it yet.
        Err(e) if e.contains("No such file or directory") => return Ok(()),
        Err(e) => return Err(e),
    };
    let lines: String = stale_rules(&listed, gone)
        .into_iter()
        .map(|(chain, handle)| format!("delete rule {family} {TABLE} {chain} handle {handle}\n"))
        .collect();
    match lines.is_empty() {
        true => Ok(()),
        false => run("nft", &["-f", "-"], &lines).map(drop),
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

/// The address in `10.244.7.3`, `10.244.7.3:80` or `[fd00::3]:80`.
fn address_of(word: &str) -> Option<IpAddr> {
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
}
