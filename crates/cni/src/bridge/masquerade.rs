//! Masquerading of a container's packets that leave its network: the rules of Go's bridge plugin, letter by letter, because Go's
//! DEL finds them by their text.
//!
//! With iptables one transaction does it all. What is there already is only listed when that transaction is refused, which
//! happens when a second attachment of the container shares the chain (its name does not contain the interface's).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::call::Call;
use crate::digest::sha512;
use crate::failure::Failure;
use crate::netfilter::{Firewall, FirewallError};
use crate::owner::Owner;

/// Longest comment nft takes, in bytes.
const NFT_COMMENT: usize = 128;
const NFT_TABLE: &str = "cni_plugins_masquerade";

/// The program that masquerades.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MasqueradeBackend {
    /// iptables.
    Iptables,
    /// nft.
    Nftables,
    /// Refused by an ADD; a DEL looks for what any has left.
    Unknown(String),
}

impl MasqueradeBackend {
    /// Reads its name.
    pub fn read(name: &str) -> MasqueradeBackend {
        match name {
            "iptables" => MasqueradeBackend::Iptables,
            "nftables" => MasqueradeBackend::Nftables,
            other => MasqueradeBackend::Unknown(other.to_owned()),
        }
    }
}

/// Whose packets, and by which program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// Network name.
    pub network: String,
    /// Container id.
    pub container: String,
    /// The container's interface; iptables rules do not tell.
    pub ifname: String,
    /// By which program; `None` is whichever works.
    pub backend: Option<MasqueradeBackend>,
}

impl Masquerade {
    /// The masquerading of a call's attachment.
    pub fn of(call: &Call, backend: Option<MasqueradeBackend>) -> Masquerade {
        Masquerade {
            network: call.name.clone(),
            container: call.env.container_id.clone(),
            ifname: call.env.ifname.clone(),
            backend,
        }
    }

    /// Name of the container's chain: 28 characters.
    pub fn chain(&self) -> String {
        format!(
            "CNI-{}",
            sha512(&format!("{}{}", self.network, self.container), 24)
        )
    }

    /// Comment of iptables rules, as it stands between quotes.
    fn comment(&self) -> String {
        format!("name: \\\"{}\\\" id: \\\"{}\\\"", self.network, self.container)
    }

    /// What the comments of nft rules start with.
    pub fn nft_key(&self) -> String {
        format!(
            "{}-{}",
            sha512(&self.network, 16),
            sha512(&format!("{}:{}", self.ifname, self.container), 16)
        )
    }

    fn nft_comment(&self) -> String {
        let mut text = format!(
            "{}, net: {}, if: {}, id: {}",
            self.nft_key(),
            self.network,
            self.ifname,
            self.container
        );
        text.retain(|c| c != '"');
        while text.len() > NFT_COMMENT {
            text.pop();
        }
        text
    }
}

/// Adds the rules for these addresses; those that are there stay as they are.
///
/// # Errors
///
/// The firewall program's words; code 11 when it, or the lock, took too long.
pub fn setup(masquerade: &Masquerade, addresses: &[IpNet]) -> Result<(), Failure> {
    let firewall = Firewall::begin()?;
    let done = match &masquerade.backend {
        Some(MasqueradeBackend::Iptables) => iptables_setup(&firewall, masquerade, addresses),
        Some(MasqueradeBackend::Nftables) => nft_setup(&firewall, masquerade, addresses),
        Some(MasqueradeBackend::Unknown(other)) => {
            return Err(Failure::internal(format!("unknown ipmasq backend {other:?}")));
        }
        None => iptables_setup(&firewall, masquerade, addresses).or_else(|first| {
            // Only where nothing but nftables works; otherwise the first reason is the one to know.
            nft_setup(&firewall, masquerade, addresses).map_err(|_| first)
        }),
    };
    Ok(done?)
}

/// Removes the rules for these addresses, and the chain when no other attachment of the container uses it. Without addresses
/// every rule of the container in this network goes but for those of `others`: addresses of its other attachments there.
///
/// # Errors
///
/// As [`setup`].
pub fn teardown(masquerade: &Masquerade, addresses: &[IpNet], others: &[IpAddr]) -> Result<(), Failure> {
    let mut firewall = Firewall::begin()?;
    firewall.begin_undoing();
    let nft_first = masquerade.backend == Some(MasqueradeBackend::Nftables);
    // The attachment may be of another version or configuration than this call.
    if nft_first {
        nft_teardown(&firewall, masquerade)?;
        iptables_teardown(&firewall, masquerade, addresses, others)?;
        return Ok(());
    }
    let found = iptables_teardown(&firewall, masquerade, addresses, others)?;
    if !found {
        nft_teardown(&firewall, masquerade)?;
    }
    Ok(())
}

/// The rules for one address, as `iptables-save` prints them.
fn rules(masquerade: &Masquerade, address: IpNet) -> [String; 3] {
    let (chain, comment) = (masquerade.chain(), masquerade.comment());
    let multicast = if address.addr().is_ipv4() {
        "224.0.0.0/4"
    } else {
        "ff00::/8"
    };
    let network = address.trunc();
    [
        format!("-A {chain} -d {network} -m comment --comment \"{comment}\" -j ACCEPT"),
        format!("-A {chain} ! -d {multicast} -m comment --comment \"{comment}\" -j MASQUERADE"),
        format!(
            "-A POSTROUTING -s {} -m comment --comment \"{comment}\" -j {chain}",
            host_of(address)
        ),
    ]
}

fn host_of(address: IpNet) -> String {
    format!("{}/{}", address.addr(), address.max_prefix_len())
}

fn of_family(addresses: &[IpNet], v6: bool) -> Vec<IpNet> {
    let of_it = addresses.iter().filter(|a| a.addr().is_ipv6() == v6);
    of_it.copied().collect()
}

fn iptables_setup(
    firewall: &Firewall,
    masquerade: &Masquerade,
    addresses: &[IpNet],
) -> Result<(), FirewallError> {
    let chain = masquerade.chain();
    for v6 in [false, true] {
        let of_family = of_family(addresses, v6);
        let mut wanted: Vec<String> = Vec::new();
        for rule in of_family.iter().flat_map(|address| rules(masquerade, *address)) {
            if !wanted.contains(&rule) {
                wanted.push(rule);
            }
        }
        if wanted.is_empty() {
            continue;
        }
        let mut lines = vec![format!("-N {chain}")];
        lines.extend(wanted.iter().cloned());
        let refused = match firewall.restore(v6, &lines) {
            Ok(Some(_)) => continue,
            Ok(None) => {
                return Err(FirewallError::lasting(
                    "failed to locate iptables: executable file not in $PATH",
                ));
            }
            Err(e) => e,
        };
        // The chain is there: another attachment of the container, or an ADD that was cut off.
        let Some(present) = firewall
            .list(v6, &[&chain, "POSTROUTING"])
            .map_err(|_| refused.clone())?
        else {
            return Err(refused);
        };
        let mut lines: Vec<String> = wanted
            .into_iter()
            .filter(|rule| !present.lines().any(|line| line == rule))
            .collect();
        if !present
            .lines()
            .any(|line| line.starts_with(&format!(":{chain} ")))
        {
            lines.insert(0, format!("-N {chain}"));
        }
        if !lines.is_empty() {
            firewall.restore(v6, &lines)?;
        }
    }
    Ok(())
}

/// Removes what iptables holds; true when there was something.
fn iptables_teardown(
    firewall: &Firewall,
    masquerade: &Masquerade,
    addresses: &[IpNet],
    others: &[IpAddr],
) -> Result<bool, FirewallError> {
    let mut found = false;
    for v6 in [false, true] {
        let of_family = of_family(addresses, v6);
        if of_family.is_empty() && !addresses.is_empty() {
            continue;
        }
        let chain = masquerade.chain();
        if !of_family.is_empty() {
            let jumps = of_family.iter().map(|address| {
                let [_, _, jump] = rules(masquerade, *address);
                jump.replacen("-A", "-D", 1)
            });
            let mut lines: Vec<String> = jumps.collect();
            lines.extend([format!("-F {chain}"), format!("-X {chain}")]);
            match firewall.restore(v6, &lines) {
                Ok(Some(_)) => {
                    found = true;
                    continue;
                }
                Ok(None) => continue,
                // Refused as a whole: something is missing, or another attachment still uses the chain.
                Err(_) => {}
            }
        }
        let Some(present) = firewall.list(v6, &[&chain, "POSTROUTING"])? else {
            continue;
        };
        let lines = leftovers(&present, &chain, &of_family, others);
        if !lines.is_empty() {
            firewall.restore(v6, &lines)?;
            found = true;
        }
    }
    Ok(found)
}

/// What to remove of a nat table: jumps into the chain from these addresses (when there are none, from all but `keep`), and the
/// chain itself once nothing else jumps there.
fn leftovers(present: &str, chain: &str, addresses: &[IpNet], keep: &[IpAddr]) -> Vec<String> {
    let target = format!(" -j {chain}");
    let (mut lines, mut others) = (Vec::new(), false);
    for line in present
        .lines()
        .filter(|line| line.starts_with("-A ") && line.ends_with(&target))
    {
        // Old versions gave the source with its network's prefix length.
        let sources = |a: &IpNet| [host_of(*a), a.trunc().to_string(), a.to_string()];
        let source = |a: &IpNet| {
            sources(a)
                .iter()
                .any(|source| line.contains(&format!(" -s {source} ")))
        };
        let gone = match addresses {
            [] => !keep.iter().any(|ip| source(&IpNet::from(*ip))),
            _ => addresses.iter().any(source),
        };
        if gone {
            lines.push(line.replacen("-A", "-D", 1));
        } else {
            others = true;
        }
    }
    if !others
        && present
            .lines()
            .any(|line| line.starts_with(&format!(":{chain} ")))
    {
        lines.extend([format!("-F {chain}"), format!("-X {chain}")]);
    }
    lines
}

/// Removes the masquerading of attachments of a network that are not listed. iptables rules do not tell interfaces apart: those of
/// a container stay as long as any of its attachments does.
///
/// # Errors
///
/// As [`setup`].
pub fn sweep(network: &str, valid: &[Owner]) -> Result<(), Failure> {
    let firewall = Firewall::begin()?;
    for v6 in [false, true] {
        let Some(present) = firewall.save(v6)? else {
            continue;
        };
        for container in unlisted(&present, network, valid) {
            let ours = Masquerade {
                network: network.to_owned(),
                container,
                ifname: String::new(),
                backend: None,
            };
            let lines = leftovers(&present, &ours.chain(), &[], &[]);
            if !lines.is_empty() {
                firewall.restore(v6, &lines)?;
            }
        }
    }
    Ok(nft_sweep(&firewall, network, valid)?)
}

/// Containers of a network that rules in a nat table are of and that are not listed.
fn unlisted(present: &str, network: &str, valid: &[Owner]) -> Vec<String> {
    let name = format!("\"name: \\\"{network}\\\" id: \\\"");
    let id = |line: &str| -> Option<String> {
        let (_, rest) = line.split_once(&name)?;
        Some(rest.split_once("\\\"\"")?.0.to_owned())
    };
    let mut gone: Vec<String> = present.lines().filter_map(id).collect();
    gone.retain(|id| !valid.iter().any(|owner| owner.container == *id));
    gone.sort_unstable();
    gone.dedup();
    gone
}

fn nft_sweep(firewall: &Firewall, network: &str, valid: &[Owner]) -> Result<(), FirewallError> {
    let lines = deletions(&stale(nft_rules(firewall)?, network, valid));
    if lines.is_empty() {
        Ok(())
    } else {
        firewall.run("nft", &["-f", "-"], &lines).map(drop)
    }
}

/// Handles of a network's rules whose attachments are not listed.
fn stale(rules: Vec<(String, String)>, network: &str, valid: &[Owner]) -> Vec<String> {
    let keep: Vec<String> = valid
        .iter()
        .map(|owner| {
            let (container, ifname) = (owner.container.clone(), owner.ifname.clone());
            Masquerade {
                network: network.to_owned(),
                container,
                ifname,
                backend: None,
            }
            .nft_key()
        })
        .collect();
    let ours = format!("comment \"{}-", sha512(network, 16));
    let stale = rules.into_iter().filter(|(rule, _)| {
        rule.contains(&ours) && !keep.iter().any(|key| rule.contains(&format!("comment \"{key}")))
    });
    stale.map(|(_, handle)| handle).collect()
}

/// Deletions of rules by their handles.
fn deletions(handles: &[String]) -> String {
    let line = |handle: &String| format!("delete rule inet {NFT_TABLE} masq_checks handle {handle}\n");
    handles.iter().map(line).collect()
}

/// Handles of the attachment's rules in nft's table.
fn nft_handles(firewall: &Firewall, masquerade: &Masquerade) -> Result<Vec<String>, FirewallError> {
    let key = format!("comment \"{}", masquerade.nft_key());
    let ours = nft_rules(firewall)?
        .into_iter()
        .filter(|(rule, _)| rule.contains(&key));
    Ok(ours.map(|(_, handle)| handle).collect())
}

/// Every rule of nft's chain with its handle.
fn nft_rules(firewall: &Firewall) -> Result<Vec<(String, String)>, FirewallError> {
    let listed = match firewall.run(
        "nft",
        &["-a", "list", "chain", "inet", NFT_TABLE, "masq_checks"],
        "",
    ) {
        Ok(listed) => listed.unwrap_or_default(),
        // No such table: nobody has used it yet.
        Err(e) if e.says("No such file or directory") => String::new(),
        Err(e) => return Err(e),
    };
    Ok(rules_in(&listed))
}

fn rules_in(listed: &str) -> Vec<(String, String)> {
    let rules = listed.lines().filter_map(|line| line.rsplit_once("# handle "));
    rules
        .map(|(rule, handle)| (rule.to_owned(), handle.trim().to_owned()))
        .collect()
}

fn nft_setup(firewall: &Firewall, masquerade: &Masquerade, addresses: &[IpNet]) -> Result<(), FirewallError> {
    let text = nft_text(masquerade, addresses, &nft_handles(firewall, masquerade)?);
    match firewall.run("nft", &["-f", "-"], &text)? {
        Some(_) => Ok(()),
        None => Err(FirewallError::lasting(
            "could not find nftables binary: executable file not in $PATH",
        )),
    }
}

/// The transaction that puts the rules for these addresses in the place of the attachment's former ones.
fn nft_text(masquerade: &Masquerade, addresses: &[IpNet], stale: &[String]) -> String {
    let mut text = format!(
        "add table inet {NFT_TABLE} {{ comment \"Masquerading for plugins from github.com/containernetworking/plugins\"; }}\n\
         add chain inet {NFT_TABLE} masq_checks {{ comment \"Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet\"; }}\n\
         add chain inet {NFT_TABLE} postrouting {{ type nat hook postrouting priority 100; }}\n\
         flush chain inet {NFT_TABLE} postrouting\n\
         add rule inet {NFT_TABLE} postrouting ip daddr == 224.0.0.0/4 return\n\
         add rule inet {NFT_TABLE} postrouting ip6 daddr == ff00::/8 return\n\
         add rule inet {NFT_TABLE} postrouting goto masq_checks\n"
    );
    text.push_str(&deletions(stale));
    for address in addresses {
        let ip = if address.addr().is_ipv4() { "ip" } else { "ip6" };
        text.push_str(&format!(
            "add rule inet {NFT_TABLE} masq_checks {ip} saddr == {} {ip} daddr != {} masquerade comment \"{}\"\n",
            address.addr(),
            address.trunc(),
            masquerade.nft_comment()
        ));
    }
    text
}

fn nft_teardown(firewall: &Firewall, masquerade: &Masquerade) -> Result<(), FirewallError> {
    let handles = nft_handles(firewall, masquerade)?;
    if handles.is_empty() {
        return Ok(());
    }
    firewall.run("nft", &["-f", "-"], &deletions(&handles)).map(drop)
}

#[cfg(test)]
mod tests;
