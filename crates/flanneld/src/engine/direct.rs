//! Which peers the kernel reaches without a gateway, for plans that depend on it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fabric::lease::{Lease, Update};
use fabric::object::Family;
use kernel::Host;
use tracing::warn;

use super::Engine;

impl<H: Host> Engine<H> {
    /// Asks the kernel which of the new peers it reaches without a gateway, before the plan that depends on it.
    pub(super) fn learn_direct(&mut self, update: &Update) {
        let Some(world) = &mut self.world else { return };
        if !world.backend().wants_direct() {
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
        match self.kernel.direct(&peers) {
            Ok(found) => self.due.replanned |= world.learn_direct(peers.into_iter().zip(found)),
            Err(failure) => {
                self.direct_unknown = true;
                warn!(
                    "asking the kernel for the way to {} peers: {failure}",
                    peers.len()
                );
            }
        }
    }

    /// Asks anew for all peers: the underlay's routes or addresses changed.
    pub(super) fn refresh_direct(&mut self) {
        let Some(world) = &mut self.world else { return };
        if !world.backend().wants_direct() {
            return;
        }
        let peers = public_addresses(world.peers());
        match self.kernel.direct(&peers) {
            Ok(found) => {
                self.direct_unknown = false;
                let direct = peers
                    .into_iter()
                    .zip(found)
                    .filter_map(|(ip, link)| Some((ip, link?)))
                    .collect();
                self.due.replanned |= world.set_direct(direct);
            }
            Err(failure) => {
                self.direct_unknown = true;
                warn!(
                    "asking the kernel for the way to {} peers: {failure}",
                    peers.len()
                );
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
