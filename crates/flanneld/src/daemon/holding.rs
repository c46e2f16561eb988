//! What happens to the own lease, told to those who ask.

use fabric::lease::Subnet;
use registry::Holding;
use tracing::{info, warn};

use super::Daemon;

impl Daemon {
    pub(super) fn note(&self, subnet: Subnet, holding: Holding) {
        match holding {
            Holding::Renewed { expires } => {
                self.recorder.renewed(expires);
                self.truth.hold(&subnet, expires);
                self.truth.update(|situation| situation.lease_trouble = None);
            }
            Holding::Failing {
                error,
                expires,
                retry_in,
            } => {
                warn!(
                    "lease {subnet} could not be renewed: {error}; next try in {} s",
                    retry_in.as_secs()
                );
                let ended = expires.is_some_and(|at| at <= tokio::time::Instant::now());
                self.truth.update(|situation| {
                    situation.lease_trouble = ended.then(|| format!("lease {subnet} has expired: {error}"));
                });
            }
            Holding::Unwritten {
                what,
                error,
                retry_in,
            } => {
                let text = format!("{what} of the own Node cannot be written: {error}");
                warn!("{text}; next try in {} s", retry_in.as_secs());
                self.truth
                    .update(|situation| situation.lease_trouble = Some(text));
            }
            Holding::Lost => {
                self.recorder.lost();
                warn!("lease {subnet} is gone from the registry; asking for it again");
                self.truth.update(|situation| {
                    situation.lease_trouble = Some(format!("lease {subnet} is gone from the registry"));
                });
            }
            Holding::Occupied => {
                self.recorder.lost();
                let text = format!(
                    "lease {subnet} is gone from the registry, and its key holds what came later and is no lease: delete that key, and \
                     the subnet is asked for again"
                );
                warn!("{text}");
                self.truth
                    .update(|situation| situation.lease_trouble = Some(text));
            }
            Holding::Regained { expires, .. } => {
                self.recorder.renewed(expires);
                info!("lease {subnet} is ours again");
                self.truth.hold(&subnet, expires);
                self.truth.update(|situation| situation.lease_trouble = None);
            }
            Holding::Repaired => info!("lease {subnet} had been written over; its value is ours again"),
        }
    }
}
