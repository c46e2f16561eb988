//! What the firewall's keeper needs of a host: its rules as text, a way to change them, and word of others' changes.

use std::os::fd::BorrowedFd;

use fabric::object::Family;
use fabric::rules::{Table, nft};
use kernel::exec;
use kernel::firewall::{self as installed, legacy, monitor};
use tracing::warn;

use super::Place;
use crate::reconcile::Opponent;

/// Chains of the shared tables whose changes concern us.
const NAT_CHAINS: &[&str] = &["FLANNEL-POSTRTG", "POSTROUTING"];
const FILTER_CHAINS: &[&str] = &["FLANNEL-FWD", "FORWARD"];

/// The firewall of a host. Errors are in the programs' own words.
pub trait Programs {
    /// Version line of a family's iptables.
    fn iptables_version(&self, family: Family) -> Result<String, String>;

    /// Whether the program that lists a place is there.
    fn is_installed(&self, place: Place) -> bool;

    /// Whether nft and the kernel would take a script; nothing is changed.
    fn nft_would_take(&self, script: &str) -> bool;

    /// What a place holds: the output of `iptables-save -t <table>` or of `nft list table`; empty where there is no such table.
    fn list(&mut self, place: Place) -> Result<String, String>;

    /// What the variant of iptables that is not in use here holds in a place of iptables, and the program that prints it.
    fn other_variant(&self, place: Place) -> Option<(String, String)>;

    /// One transaction for a place: the input of `iptables-restore --noflush` or of `nft -f -`.
    fn change(&mut self, place: Place, text: &str) -> Result<(), String>;

    /// Says which places to listen to from now on.
    fn listen(&mut self, places: &[Place]);

    /// What becomes readable when something in one of the places may have changed.
    fn fds(&self) -> Vec<BorrowedFd<'_>>;

    /// Some of the places tell nobody of changes: [`Programs::hear`] has to be called every so often.
    fn has_silent(&self) -> bool;

    /// Places in which something changed since the last call, or may have, and who did it.
    fn hear(&mut self) -> Vec<(Place, Option<Opponent>)>;
}

/// The programs that are installed here.
#[derive(Debug, Default)]
pub struct Installed {
    places: Vec<Place>,
    monitor: Option<monitor::Monitor>,
    /// Places whose iptables tells nobody of changes.
    probes: Vec<(Place, legacy::Probe)>,
}

impl Programs for Installed {
    fn iptables_version(&self, family: Family) -> Result<String, String> {
        installed::iptables_version(family).map_err(|failure| failure.to_string())
    }

    fn nft_would_take(&self, script: &str) -> bool {
        installed::nft_would_take(script)
    }

    fn is_installed(&self, place: Place) -> bool {
        exec::find(place.lister()).is_some()
    }

    fn list(&mut self, place: Place) -> Result<String, String> {
        let listed = match place.table {
            Some(table) => installed::iptables_save(place.family, table),
            None => installed::nft_list(nft::table(place.family)),
        };
        listed.map_err(|failure| failure.to_string())
    }

    fn other_variant(&self, place: Place) -> Option<(String, String)> {
        installed::other_variant(place.family, place.table?)
    }

    fn change(&mut self, place: Place, text: &str) -> Result<(), String> {
        let changed = match place.table {
            Some(_) => installed::iptables_restore(place.family, text),
            None => installed::nft_apply(text),
        };
        changed.map_err(|failure| failure.to_string())
    }

    fn listen(&mut self, places: &[Place]) {
        self.places = places.to_vec();
        self.probes = places
            .iter()
            .filter_map(|place| {
                let table = place.table?;
                let version = installed::iptables_version(place.family).unwrap_or_default();
                let is_legacy = !version.is_empty() && !installed::is_nft_variant(&version);
                is_legacy.then(|| (*place, legacy::Probe::new(place.family, table.name())))
            })
            .collect();
        let heard = places.iter().map(|place| monitor::Place {
            family: place.family,
            table: match place.table {
                Some(table) => table.name(),
                None => nft::table(place.family).split_once(' ').unwrap_or_default().1,
            },
            chains: match place.table {
                Some(Table::Nat) => NAT_CHAINS,
                Some(Table::Filter) => FILTER_CHAINS,
                None => &[],
            },
        });
        self.monitor = monitor::Monitor::open(heard.collect())
            .inspect_err(|failure| {
                warn!("changes of firewall rules are not heard of, only looked for: {failure}")
            })
            .ok();
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.monitor.iter().map(monitor::Monitor::fd).collect()
    }

    fn has_silent(&self) -> bool {
        !self.probes.is_empty()
    }

    fn hear(&mut self) -> Vec<(Place, Option<Opponent>)> {
        let mut heard = Vec::new();
        if let Some(monitor) = &mut self.monitor {
            let changes = monitor.drain();
            let by = changes.by.map(|(pid, name)| Opponent::Process(pid, name));
            if changes.touched {
                heard.extend(self.places.iter().map(|place| (*place, by.clone())));
            }
        }
        for (place, probe) in &mut self.probes {
            if probe.changed() {
                heard.push((*place, None));
            }
        }
        heard
    }
}
