//! Rules: flannel's chains in iptables, of both variants, and its tables in nftables.

use anyhow::anyhow;
use fabric::object::Family;
use fabric::rules::{Table, Wish, iptables, nft};
use kernel::exec;
use kernel::firewall;

use super::{Act, Findings, Past};

/// A transaction that takes rules away.
pub struct Removal {
    family: Family,
    by: By,
    text: String,
}

enum By {
    Iptables,
    /// The variant of iptables that is not in use here, by the program that lists it.
    Other(String),
    Nft,
}

pub fn look(past: &Past, findings: &mut Findings) {
    for family in Family::BOTH {
        for table in Table::BOTH {
            look_in_iptables(past, family, table, findings);
        }
        look_in_nft(family, findings);
    }
}

fn look_in_iptables(past: &Past, family: Family, table: Table, findings: &mut Findings) {
    // What is not installed has left nothing over.
    let lister = firewall::iptables(family, "-save");
    if exec::find(&lister).is_none() {
        return;
    }
    match firewall::iptables_save(family, table) {
        Ok(listing) => judge(past, family, table, &listing, By::Iptables, findings),
        Err(why) => findings
            .unread
            .push(format!("{family} rules in table {}: {why}", table.name())),
    }
    if let Some((program, listing)) = firewall::other_variant(family, table) {
        judge(past, family, table, &listing, By::Other(program), findings);
    }
}

fn judge(past: &Past, family: Family, table: Table, listing: &str, by: By, findings: &mut Findings) {
    let variant = match &by {
        By::Other(program) => format!(" ({program} shows them)"),
        By::Iptables | By::Nft => String::new(),
    };
    let what = format!("{family} rules in table {} of iptables{variant}", table.name());
    // Nobody runs whose rules could stand beside these: every network that flannel's chains name goes with them.
    let mut networks = past.networks_of(family);
    networks.extend(iptables::networks(table, listing));
    match iptables::merge(table, listing, &Wish::nothing(family, &networks)) {
        Ok(Some(text)) => findings.add("rules", what, Act::Rules(Removal { family, by, text })),
        Ok(None) if iptables::has_flannels(table, listing) => {
            findings
                .stays
                .push(format!("{what}: what is left there is not flannel's"));
        }
        Ok(None) => {}
        Err(why) => findings.unread.push(format!("{what}: {why}")),
    }
}

fn look_in_nft(family: Family, findings: &mut Findings) {
    if exec::find("nft").is_none() {
        return;
    }
    let table = nft::table(family);
    match firewall::nft_list(table) {
        Ok(listing) if listing.is_empty() => {}
        Ok(_) => {
            let text = format!("delete table {table}\n");
            let by = By::Nft;
            findings.add(
                "rules",
                format!("table {table} of nftables"),
                Act::Rules(Removal { family, by, text }),
            );
        }
        Err(why) => findings.unread.push(format!("table {table} of nftables: {why}")),
    }
}

pub fn remove(removal: &Removal) -> anyhow::Result<()> {
    let done = match &removal.by {
        By::Iptables => firewall::iptables_restore(removal.family, &removal.text),
        By::Other(lister) => firewall::other_restore(lister, removal.family, &removal.text),
        By::Nft => firewall::nft_apply(&removal.text),
    };
    done.map_err(|why| anyhow!(why))
}
