//! The fabric out of the cache, while the registry does not answer: after a reboot the pods of known peers talk all the same.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use fabric::lease::{Lease, Snapshot};
use fabric::subnet_env::Previous;
use tokio::time::sleep;
use tracing::{info, warn};

use super::ground::{Config, Former, Ground, addresses};
use super::{Daemon, listed_at};
use crate::cache::{Doubt, Head, utc};
use crate::truth::Cached;

/// A registry that has neither answered nor failed by then does not answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// A cache that cannot be served from is looked at again this often: an interface may come, or a clock be set.
const LOOK: Duration = Duration::from_secs(1);

/// What the cache comes to on this host.
struct Fabric {
    head: Head,
    lease: Lease,
    ground: Ground,
    snapshot: Snapshot,
    /// What cannot be told of it.
    doubt: Option<Doubt>,
}

impl Daemon {
    /// Serves from the cache once the registry is found not to answer, until this is dropped because it does.
    pub(super) async fn stand_in(&self, previous: &Previous) -> anyhow::Result<Infallible> {
        if self.truth.situation().lease.is_some() {
            // What this process came to stands already, and is newer.
            return pending().await;
        }
        tokio::select! {
            biased;
            () = self.doubt.notified() => {}
            () = sleep(PATIENCE) => {}
        }
        loop {
            let useless = match self.fabric_of_cache().await {
                Ok(None) => return pending().await,
                Ok(Some(fabric)) => self.serve(fabric, previous).await?,
                Err(useless) => useless,
            };
            self.truth.cached(Cached::Useless(useless));
            tokio::select! {
                biased;
                () = self.underlay_changed.notified() => {}
                () = sleep(LOOK) => {}
            }
        }
    }

    /// `None` where there is no cache; the error says why it cannot be served from.
    async fn fabric_of_cache(&self) -> Result<Option<Fabric>, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let Some(head) = self.records.cached_head().await? else {
            return Ok(None);
        };
        let doubt = head
            .judge(self.recorder.source(), &self.records.now())
            .map_err(|e| text(&e))?;
        let network = self
            .registry
            .understand(head.config.as_bytes())
            .map_err(|e| text(&e))?;
        let lease = Lease::read(&head.own.subnet, head.own.value.as_bytes(), 0)
            .map_err(|e| format!("the own lease in it: {}", e.reason))?;
        let config = Config {
            text: head.config.clone(),
            network,
        };
        let ground = self
            .find("ground of the cache", config)
            .await
            .map_err(|e| text(&e))?;
        if !ground.me().own(ground.network(), &lease) {
            return Err(format!(
                "the own lease {} in it is of another address than {}",
                lease.subnet,
                addresses(&ground.underlay)
            ));
        }
        let subnet = ground
            .served(lease.subnet)
            .ok_or_else(|| format!("no half of the own lease {} in it can be served", lease.subnet))?;
        let lease = Lease { subnet, ..lease };
        let Some((head, snapshot)) = self.records.cached().await? else {
            return Ok(None);
        };
        Ok(Some(Fabric {
            head,
            lease,
            ground,
            snapshot,
            doubt,
        }))
    }

    /// Serves for as long as peers know us by the address in the cache; then says what it is now.
    async fn serve(&self, fabric: Fabric, previous: &Previous) -> anyhow::Result<String> {
        let Fabric {
            head,
            lease,
            ground,
            snapshot,
            doubt,
        } = fabric;
        let subnet = lease.subnet;
        let identity = ground.identity(&subnet, Some(&lease.attributes));
        warn!(
            "the registry does not answer: serving {subnet} from the cache of {}, {} leases of revision {}; newer ones are not known",
            utc(head.saved.wall),
            snapshot.leases.len(),
            head.revision
        );
        if let Some(doubt) = &doubt {
            warn!("{doubt}; it is served from all the same");
        }
        let mut state = self.records.state().await;
        let mut former = Former::take(&mut state, &ground, previous);
        self.records.save_state(state);
        self.claim(&mut former).await;
        self.show(&ground);
        let left = head.left(&self.records.now());
        let ends = left.map(|left| tokio::time::Instant::now() + Duration::from_secs(left));
        self.truth.hold(&subnet, ends);
        self.set_up(&ground, subnet, identity.clone(), former.clone(), Some(snapshot))?;
        self.truth.cached(Cached::Served {
            saved: head.saved.wall,
            revision: head.revision,
            doubt: doubt.map(|doubt| doubt.to_string()),
        });
        former.leases.clear();
        self.follow_underlay(&ground, subnet, identity, former).await
    }

    /// What was known of the registry, when it has gone back since: emptied, restored or exchanged, it is told the leases again
    /// by their owners, and until then what is known stays in force.
    pub(super) async fn history(&self, ground: &Ground) -> Option<Snapshot> {
        let head = self.records.cached_head().await.ok()??;
        // Where another store is spoken to by now, its revisions say nothing.
        let is_same = head.is_of(self.recorder.source()) && head.was_by(self.truth.spoken());
        let gone_back = is_same && listed_at(&*self.registry) < head.revision;
        if !gone_back || head.config != ground.config.text {
            return None;
        }
        let (_, snapshot) = self.records.cached().await.ok()??;
        info!(
            "the registry is behind the cache: {} leases of revision {} stay in force for now",
            snapshot.leases.len(),
            snapshot.revision
        );
        Some(snapshot)
    }
}
