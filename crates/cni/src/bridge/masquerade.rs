//! Masquerading of a container's packets that leave its network: the rules of Go's bridge plugin, letter by letter, because Go's
//! DEL finds them by their text.
//!
//! With iptables one transaction does it all. What is there already is only listed when that transaction is refused, which
//! happens when a second attachment of the container shares the chain (its name does not contain the interface's).

use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha512};

use crate::call::Call;
use crate::failure::Failure;
use crate::host_local::store::Owner;
use crate::netfilter::{self, list, restore, run, save};

/// Longest comment nft takes, in bytes.
const NFT_COMMENT: usize = 128;
const NFT_TABLE: &str = "cni_plugins_masquerade";

/// Whose packets, and by which program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// Network name.
    pub network: String,
    /// Container id.
    pub container: String,
    /// The container's interface; iptables rules do not tell.
    pub ifname: String,
    /// `iptables`, `nftables`, or whichever works.
    pub backend: Option<String>,
}

impl Masquerade {
    /// The masquerading of a call's attachment.
    pub fn of(call: &Call, backend: Option<&str>) -> Masquerade {
        Masquerade {
            network: call.name.clone(),
            container: call.env.container_id.clone(),
            ifname: call.env.ifname.clone(),
            backend: backend.map(str::to_owned),
        }
    }

    /// Name of the container's chain: 28 characters.
    pub fn chain(&self) -> String {
        format!("CNI-{}", hash(&format!("{}{}", self.network, self.container), 24))
    }

    /// Comment of iptables rules, as it stands between quotes.
    fn comment(&self) -> String {
        format!("name: \\\"{}\\\" id: \\\"{}\\\"", self.network, self.container)
    }

    /// What the comments of nft rules start with.
    pub fn nft_key(&self) -> String {
        format!(
            "{}-{}",
            hash(&self.network, 16),
            hash(&format!("{}:{}", self.ifname, self.container), 16)
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

/// The first characters of a text's SHA-512 in hexadecimal.
pub fn hash(text: &str, length: usize) -> String {
    let digest = Sha512::digest(text.as_bytes());
    digest
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 0xf])
        .map(|n| char::from_digit(n.into(), 16).unwrap_or('0'))
        .take(length)
        .collect()
}

/// Adds the rules for these addresses; those that are there stay as they are.
pub fn setup(masquerade: &Masquerade, addresses: &[IpNet]) -> Result<(), Failure> {
    let _lock = netfilter::lock();
    match masquerade.backend.as_deref() {
        Some("iptables") => iptables_setup(masquerade, addresses).map_err(Failure::internal),
        Some("nftables") => nft_setup(masquerade, addresses).map_err(Failure::internal),
        Some(other) => Err(Failure::internal(format!("unknown ipmasq backend {other:?}"))),
        None => iptables_setup(masquerade, addresses).or_else(|first| {
            // Only where nothing but nftables works; otherwise the first reason is the one to know.
            nft_setup(masquerade, addresses).map_err(|_| Failure::internal(first))
        }),
    }
}

/// Removes the rules for these addresses, and the chain when no other attachment of the container uses it. Without addresses
/// every rule of the container in this network goes but for those of `others`: addresses of its other attachments there.
pub fn teardown(masquerade: &Masquerade, addresses: &[IpNet], others: &[IpAddr]) -> Result<(), Failure> {
    let _lock = netfilter::lock();
    let nft_first = masquerade.backend.as_deref() == Some("nftables");
    // The attachment may be of another version or configuration than this call.
    if nft_first {
        nft_teardown(masquerade).map_err(Failure::internal)?;
        return iptables_teardown(masquerade, addresses, others)
            .map(drop)
            .map_err(Failure::internal);
    }
    let found = iptables_teardown(masquerade, addresses, others).map_err(Failure::internal)?;
    if !found {
        nft_teardown(masquerade).map_err(Failure::internal)?;
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

fn iptables_setup(masquerade: &Masquerade, addresses: &[IpNet]) -> Result<(), String> {
    let chain = masquerade.chain();
    for v6 in [false, true] {
        let of_family: Vec<IpNet> = addresses
            .iter()
            .copied()
            .filter(|a| a.addr().is_ipv6() == v6)
            .collect();
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
        let refused = match restore(v6, &lines) {
            Ok(Some(_)) => continue,
            Ok(None) => return Err("failed to locate iptables: executable file not in $PATH".to_owned()),
            Err(e) => e,
        };
        // The chain is there: another attachment of the container, or an ADD that was cut off.
        let Some(present) = list(v6, &[&chain, "POSTROUTING"]).map_err(|_| refused.clone())? else {
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
            restore(v6, &lines)?;
        }
    }
    Ok(())
}

/// Removes what iptables holds; true when there was something.
fn iptables_teardown(
    masquerade: &Masquerade,
    addresses: &[IpNet],
    others: &[IpAddr],
) -> Result<bool, String> {
    let mut found = false;
    for v6 in [false, true] {
        let of_family: Vec<IpNet> = addresses
            .iter()
            .copied()
            .filter(|a| a.addr().is_ipv6() == v6)
            .collect();
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
            match restore(v6, &lines) {
                Ok(Some(_)) => {
                    found = true;
                    continue;
                }
                Ok(None) => continue,
                // Refused as a whole: something is missing, or another attachment still uses the chain.
                Err(_) => {}
            }
        }
        let Some(present) = list(v6, &[&chain, "POSTROUTING"])? else {
            continue;
        };
        let lines = leftovers(&present, &chain, &of_family, others);
        if !lines.is_empty() {
            restore(v6, &lines)?;
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
pub fn sweep(network: &str, valid: &[Owner]) -> Result<(), Failure> {
    let _lock = netfilter::lock();
    for v6 in [false, true] {
        let Some(present) = save(v6).map_err(Failure::internal)? else {
            continue;
        };
        let name = format!("\"name: \\\"{network}\\\" id: \\\"");
        let id = |line: &str| -> Option<String> {
            let (_, rest) = line.split_once(&name)?;
            Some(rest.split_once("\\\"\"")?.0.to_owned())
        };
        let mut gone: Vec<String> = present.lines().filter_map(id).collect();
        gone.retain(|id| !valid.iter().any(|owner| owner.container == *id));
        gone.sort_unstable();
        gone.dedup();
        for container in gone {
            let ours = Masquerade {
                network: network.to_owned(),
                container,
                ifname: String::new(),
                backend: None,
            };
            let lines = leftovers(&present, &ours.chain(), &[], &[]);
            if !lines.is_empty() {
                restore(v6, &lines).map_err(Failure::internal)?;
            }
        }
    }
    nft_sweep(network, valid).map_err(Failure::internal)
}

fn nft_sweep(network: &str, valid: &[Owner]) -> Result<(), String> {
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
    let ours = format!("comment \"{}-", hash(network, 16));
    let stale = nft_rules()?.into_iter().filter(|(rule, _)| {
        rule.contains(&ours) && !keep.iter().any(|key| rule.contains(&format!("comment \"{key}")))
    });
    let lines: String = stale
        .map(|(_, handle)| format!("delete rule inet {NFT_TABLE} masq_checks handle {handle}\n"))
        .collect();
    if lines.is_empty() {
        Ok(())
    } else {
        run("nft", &["-f", "-"], &lines).map(drop)
    }
}

/// Handles of the attachment's rules in nft's table.
fn nft_handles(masquerade: &Masquerade) -> Result<Vec<String>, String> {
    let key = format!("comment \"{}", masquerade.nft_key());
    let ours = nft_rules()?.into_iter().filter(|(rule, _)| rule.contains(&key));
    Ok(ours.map(|(_, handle)| handle).collect())
}

/// Every rule of nft's chain with its handle.
fn nft_rules() -> Result<Vec<(String, String)>, String> {
    let listed = match run(
        "nft",
        &["-a", "list", "chain", "inet", NFT_TABLE, "masq_checks"],
        "",
    ) {
        Ok(listed) => listed.unwrap_or_default(),
        // No such table: nobody has used it yet.
        Err(e) if e.contains("No such file or directory") => String::new(),
        Err(e) => return Err(e),
    };
    let rules = listed.lines().filter_map(|line| line.rsplit_once("# handle "));
    Ok(rules
        .map(|(rule, handle)| (rule.to_owned(), handle.trim().to_owned()))
        .collect())
}

fn nft_setup(masquerade: &Masquerade, addresses: &[IpNet]) -> Result<(), String> {
    let stale = nft_handles(masquerade)?;
    let mut text = format!(
        "add table inet {NFT_TABLE} {{ comment \"Masquerading for plugins from github.com/containernetworking/plugins\"; }}\n\
         add chain inet {NFT_TABLE} masq_checks {{ comment \"Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet\"; }}\n\
         add chain inet {NFT_TABLE} postrouting {{ type nat hook postrouting priority 100; }}\n\
         flush chain inet {NFT_TABLE} postrouting\n\
         add rule inet {NFT_TABLE} postrouting ip daddr == 224.0.0.0/4 return\n\
         add rule inet {NFT_TABLE} postrouting ip6 daddr == ff00::/8 return\n\
         add rule inet {NFT_TABLE} postrouting goto masq_checks\n"
    );
    for handle in stale {
        text.push_str(&format!(
            "delete rule inet {NFT_TABLE} masq_checks handle {handle}\n"
        ));
    }
    for address in addresses {
        let ip = if address.addr().is_ipv4() { "ip" } else { "ip6" };
        text.push_str(&format!(
            "add rule inet {NFT_TABLE} masq_checks {ip} saddr == {} {ip} daddr != {} masquerade comment \"{}\"\n",
            address.addr(),
            address.trunc(),
            masquerade.nft_comment()
        ));
    }
    match run("nft", &["-f", "-"], &text)? {
        Some(_) => Ok(()),
        None => Err("could not find nftables binary: executable file not in $PATH".to_owned()),
    }
}

fn nft_teardown(masquerade: &Masquerade) -> Result<(), String> {
    let handles = nft_handles(masquerade)?;
    if handles.is_empty() {
        return Ok(());
    }
    let lines = handles
        .iter()
        .map(|handle| format!("delete rule inet {NFT_TABLE} masq_checks handle {handle}\n"));
    run("nft", &["-f", "-"], &lines.collect::<String>()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masquerade() -> Masquerade {
        Masquerade {
            network: "cbr0".into(),
            container: "c1".into(),
            ifname: "eth0".into(),
            backend: None,
        }
    }

    #[test]
    fn names_when_made_are_gos() {
        assert_eq!(masquerade().chain(), "CNI-68f1f1eeb62cad3d0bdd579c");
        let golden = Masquerade {
            container: "c0ffee0123456789".into(),
            ..masquerade()
        };
        assert_eq!(golden.chain(), "CNI-2221f4dc78971479c8f12d4e");
        assert_eq!(
            golden.nft_comment(),
            "cb6e746fae1a4d6c-d4583dafd1439c34, net: cbr0, if: eth0, id: c0ffee0123456789"
        );
        let long = Masquerade {
            container: "x".repeat(200),
            ..masquerade()
        };
        assert_eq!(long.nft_comment().len(), 128);
        assert_eq!(
            rules(&masquerade(), "10.244.7.2/24".parse().unwrap()),
            [
                r#"-A CNI-68f1f1eeb62cad3d0bdd579c -d 10.244.7.0/24 -m comment --comment "name: \"cbr0\" id: \"c1\"" -j ACCEPT"#,
                r#"-A CNI-68f1f1eeb62cad3d0bdd579c ! -d 224.0.0.0/4 -m comment --comment "name: \"cbr0\" id: \"c1\"" -j MASQUERADE"#,
                r#"-A POSTROUTING -s 10.244.7.2/32 -m comment --comment "name: \"cbr0\" id: \"c1\"" -j CNI-68f1f1eeb62cad3d0bdd579c"#,
            ]
        );
    }

    #[test]
    fn leftovers_when_another_attachment_uses_the_chain_spare_it() {
        let nets: Vec<IpNet> = ["10.244.7.2/24", "10.244.7.3/24"]
            .map(|t| t.parse().unwrap())
            .to_vec();
        let m = masquerade();
        let chain = m.chain();
        let mut table = format!("*nat\n:POSTROUTING ACCEPT [0:0]\n:{chain} - [0:0]\n");
        for net in &nets {
            table.push_str(&rules(&m, *net).join("\n"));
            table.push('\n');
        }
        table.push_str("-A POSTROUTING -s 10.244.7.2/32 -j CNI-other\n");
        let jump = |i: usize| rules(&m, nets[i])[2].replacen("-A", "-D", 1);
        assert_eq!(leftovers(&table, &chain, &nets[..1], &[]), [jump(0)]);
        let gone = [format!("-F {chain}"), format!("-X {chain}")];
        assert_eq!(
            leftovers(&table, &chain, &nets, &[]),
            [&[jump(0), jump(1)][..], &gone[..]].concat()
        );
        assert_eq!(
            leftovers(&table, &chain, &[], &[]),
            leftovers(&table, &chain, &nets, &[])
        );
        assert_eq!(leftovers("*nat\n", &chain, &nets, &[]), Vec::<String>::new());
        // Nothing is known of this attachment any more, but the other one lives.
        assert_eq!(leftovers(&table, &chain, &[], &[nets[1].addr()]), [jump(0)]);
        // What an old version or a cut off ADD left.
        let old = format!(":{chain} - [0:0]\n-A POSTROUTING -s 10.244.7.0/24 -j {chain}\n");
        assert_eq!(leftovers(&old, &chain, &nets[..1], &[]).len(), 3);
    }
}
