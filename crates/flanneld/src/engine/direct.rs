//! Which peers the kernel reaches without a gateway, for plans that depend on it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fabric::lease::{Lease, Update};
use fabric::object::{Family, LinkName};
use fabric::plan::Need;
use kernel::{Host, Ways};
use tracing::warn;

use super::Engine;

impl<H: Host> Engine<H> {
    fn needs_direct(&self) -> bool {
        let world = self.target.world.as_ref();
        world.is_some_and(|world| world.backend().needs().contains(&Need::DirectRoutes))
    }

    /// Asks the kernel which of the new peers it reaches without a gateway, before the plan that depends on it.
    pub(super) fn learn_direct(&mut self, update: &Update) {
        if !self.needs_direct() {
            return;
        }
        let leases: Vec<&Lease> = match update {
            Update::Snapshot(snapshot) => snapshot.leases.values().collect(),
            Update::Delta(delta) => delta
                .changes
                .iter()
                .filter_map(|(_, lease)| lease.as_ref())
                .collect(),
        };
        let peers = public_addresses(leases.into_iter());
        let Some(found) = self.ask_direct(&peers) else {
            return;
        };
        if let Some(world) = &mut self.target.world {
            self.reconciler.due.replanned |= world.learn_direct(peers.into_iter().zip(found));
        }
    }

    /// Asks anew for all peers: addresses or links of the underlay changed.
    pub(super) fn refresh_direct(&mut self) {
        if !self.needs_direct() {
            return;
        }
        let peers = public_addresses(self.target.world.iter().flat_map(|world| world.peers()));
        let Some(found) = self.ask_direct(&peers) else {
            return;
        };
        self.direct_unknown = false;
        let direct = peers
            .into_iter()
            .zip(found)
            .filter_map(|(ip, link)| Some((ip, link?)))
            .collect();
        if let Some(world) = &mut self.target.world {
            self.reconciler.due.replanned |= world.set_direct(direct);
        }
    }

    /// Asks anew for those peers to whom the way may be another now.
    pub(super) fn follow_ways(&mut self, ways: &Ways) {
        if !self.needs_direct() {
            return;
        }
        let mut peers = public_addresses(self.target.world.iter().flat_map(|world| world.peers()));
        peers.retain(|peer| ways.covers(*peer));
        let Some(found) = self.ask_direct(&peers) else {
            return;
        };
        if let Some(world) = &mut self.target.world {
            self.reconciler.due.replanned |= world.learn_direct(peers.into_iter().zip(found));
        }
    }

    fn ask_direct(&mut self, peers: &[IpAddr]) -> Option<Vec<Option<LinkName>>> {
        match self.target.kernel.direct(peers) {
            Ok(found) => Some(found),
            Err(failure) => {
                self.direct_unknown = true;
                warn!(
                    "asking the kernel for the way to {} peers: {failure}",
                    peers.len()
                );
                None
            }
        }
    }
}

fn public_addresses<'a>(leases: impl Iterator<Item = &'a Lease>) -> Vec<IpAddr> {
    let set: BTreeSet<IpAddr> = leases
        .flat_map(|lease| Family::BOTH.map(|family| lease.attributes.public_ip_of(family)))
        .flatten()
        .filter(|ip| !ip.is_unspecified())
        .collect();
    set.into_iter().collect()
}
